/*
 * The machine: memory, processors and devices put together, its threads, and the control of its run.
 *
 *   created ──machine_boot()──▶ paused ⇄ running ──▶ ended (power-off, reset not wanted, triple fault, failure)
 *                                  └── machine_reset(), machine_save(), machine_load() pause by themselves
 *
 * The calling thread is the main thread: it runs the loop, on which all device back ends work. Each vCPU has a thread that does
 * nothing but run it. Memory (map of guest physical addresses):
 *
 *      0                    RAM, up to BOARD_HOLE (3 GiB)
 *      BOARD_HOLE .. 4 GiB  PCI windows, ECAM, I/O APIC, HPET, local APICs (device/board.h)
 *      4 GiB                the rest of RAM
 *      end of RAM           free for memory that is added while the machine runs
 *      window64             64-bit BARs: machine_layout() puts it far enough above RAM to leave room for hot-plug
 */
#pragma once

#include "base/sandbox.h"
#include "vmm/accel.h"
#include "vmm/vmm.h"

struct machine;

struct machine_layout {
        uint64_t low_bytes;  /* at 0 */
        uint64_t high_bytes; /* at 4 GiB */
        uint64_t window64, window64_size;
};

/* -EINVAL says why memory_bytes is not possible; physical_bits is the processors' width of physical addresses. */
int machine_layout(uint64_t memory_bytes, unsigned physical_bits, struct machine_layout *layout, struct err *err) _must_check_;

/* What the machine needs from who runs it. Called on the main thread. */
struct machine_host {
        /* It ended; err has the words when exit is VMM_EXIT_FAILED. Once, until machine_reset() or machine_load(). */
        void (*ended)(void *ctx, enum vmm_exit exit, const struct err *err);
        /* The guest wants a reset and no_reboot is off: machine_reset() was done. May be NULL. */
        void (*was_reset)(void *ctx);
        /* On a vCPU's thread before its first guest instruction: the sandbox. May be NULL. */
        int (*thread_start)(void *ctx, struct err *err);
        void *ctx;
        const struct char_backend *serial, *console; /* NULL: not connected */
};

/* net_fd[i]: sockets of the network processes for config->net[i]; taken over in any case. */
int machine_new(const struct vmm_config *config, const struct accel_ops *ops, uv_loop_t *loop, const struct machine_host *host,
                const int net_fd[VMM_NETS_MAX], struct machine **machine, struct err *err) _must_check_;
/* Stops and joins the vCPUs' threads. The loop must run once more for handles to close. */
void machine_free(struct machine *machine);

/* Loads ACPI tables and kernel, sets all processors to their start. The machine is paused and has not run, or is ended. */
int machine_boot(struct machine *machine, struct err *err) _must_check_;
/* Makes the threads; they wait until the machine is resumed for the first time. */
int machine_start(struct machine *machine, struct err *err) _must_check_;

/* Nested: each pause has its resume. After pause no vCPU runs, no queue is served, the guest's clocks stand. */
void machine_pause(struct machine *machine);
void machine_resume(struct machine *machine);

/* As after power-on, with kernel and initrd loaded again from their files. When that fails no processor runs any more. */
int machine_reset(struct machine *machine, struct err *err) _must_check_;
void machine_power_button(struct machine *machine);
/* The disk of that number is larger from now on, and the guest is told; it does not become smaller. */
int machine_disk_grow(struct machine *machine, unsigned index, uint64_t size_bytes, struct err *err) _must_check_;
/* Asks the guest to give target_bytes of its memory back; 0: none. -EINVAL when it has less. */
int machine_balloon(struct machine *machine, uint64_t target_bytes, struct err *err) _must_check_;

/*
 * "N stream", "N backup FILE bitmap=daily", … begins a job on a disk (block/job/job.h); "N pause", "N resume", "N cancel", "N complete", "N pivot",
 * "N speed SIZE" change it. How it ended is said in the log.
 */
int machine_job(struct machine *machine, const char *text, struct err *err) _must_check_;
/* Lines about those that run. */
void machine_jobs(struct machine *machine, char *text, size_t size_bytes);
/* Cancels them, and runs the loop until they are over. */
void machine_end_jobs(struct machine *machine);

/*
 * The machine's state as records: "machine" (what it is made of), "board", each device on the PCI bus, each vCPU. Memory's
 * contents are not in it. The machine must be paused; one whose guest has just asked for its end or a reset is -ESHUTDOWN. A load
 * into a machine that is made of other parts is -EINVAL; one that fails in the middle leaves it reset.
 */
int machine_save(struct machine *machine, struct writer *out, struct err *err) _must_check_;
int machine_load(struct machine *machine, struct cursor *in, struct err *err) _must_check_;

struct device *machine_serial(struct machine *machine);  /* for uart_receive() */
struct device *machine_console(struct machine *machine); /* for virtio_console_receive() */
struct guest_memory *machine_memory(struct machine *machine);
/* Directories that must stay reachable in the sandbox. */
unsigned machine_directories(struct machine *machine, struct sandbox_directory *directories, unsigned max);
/* Lines of text for a person: state, processors, memory, devices. */
void machine_status(struct machine *machine, char *text, size_t size_bytes);
/* The same of where the processors' time went; empty when the accelerator does not know. */
void machine_cpu_stats(struct machine *machine, char *text, size_t size_bytes);
