/*
 * The host's end of a guest's serial line: terminal, file, unix socket or nothing.
 *
 * One thread does all input and output with poll(), so that neither a slow pipe nor a stopped terminal ever holds up a vCPU or
 * the loop, and no descriptor shared with other programs is switched to non-blocking. Both directions have a bounded queue:
 *
 *      vCPU ──write()──▶ output queue ──thread──▶ descriptor      full: the device keeps the rest and is told of room later
 *      descriptor ──thread──▶ input queue ──loop──▶ take()        full: the thread stops reading
 *
 * On a terminal: raw mode (put back on every way out, signals and crashes included), and Ctrl-A starts a command: x ends, h
 * helps, c opens or closes the monitor, b sends a break, Ctrl-A sends itself. Elsewhere every byte is the guest's. An end of
 * input, no terminal, a process in the background: input is then silent, and that is all.
 */
#pragma once

#include "device/char.h"
#include "vmm/vmm.h"

#include <uv.h>

struct console;

enum console_command { CONSOLE_END, CONSOLE_HELP, CONSOLE_MONITOR, CONSOLE_BREAK };

struct console_host {
        /* Input for the guest; the number taken. When fewer, console_resume() says that there is room again. On the loop's
         * thread. */
        size_t (*input)(void *ctx, const uint8_t *bytes, size_t size_bytes);
        void (*command)(void *ctx, enum console_command command);
        /* Output can be taken again after console_write() took less: tell the device. On the loop's thread. */
        void (*writable)(void *ctx);
        void *ctx;
};

/* Opens the file or the socket; output waits in the queue. Raw mode only comes with console_raw(). */
int console_new(enum vmm_serial kind, const char *path, uv_loop_t *loop, const struct console_host *host,
                struct console **console, struct err *err) _must_check_;
/* Starts the thread. After sandbox_confine(), which drops the rights of the calling thread and of those it makes later. */
int console_start(struct console *console, struct err *err) _must_check_;
/* Writes what is queued, for at most a second, and puts the terminal back. The loop must run once more. */
void console_free(struct console *console);

/* Raw mode on when this is a terminal and ours. Again after the process was stopped (SIGCONT). */
void console_raw(struct console *console);
bool console_is_terminal(const struct console *console);

/* From the guest: any thread; the number taken. */
size_t console_write(struct console *console, const uint8_t *bytes, size_t size_bytes);
/* From Virta itself, to the person at the terminal. Not more than the queue has room for. */
void console_print(struct console *console, const char *text);
/* host->input may be called again. Any thread. */
void console_resume(struct console *console);
