/*
 * vmm_run(): one machine from its description to its end. See vmm.h.
 *
 * The order in which rights are given up:
 *
 *      network processes are started ─▶ accelerator is chosen (probe) ─▶ confine_isolate() ─▶ files, console and machine are
 *      opened and made ─▶ kernel is loaded ─▶ confine_enter() ─▶ threads: console, vCPUs (each: confine_vcpu()) ─▶ first instruction
 *
 * Ends: the machine says so (power-off, reset, triple fault, failure), the user does (Ctrl-A x, quit), or a signal's time is up.
 */
#include "vmm/vmm.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>

#include "base/log.h"
#include "base/text.h"
#include "device/uart.h"
#include "device/virtio-console.h"
#include "net/peer.h"
#include "vmm/confine.h"
#include "vmm/console.h"
#include "vmm/machine.h"
#include "vmm/monitor.h"

#define PATHS_MAX (VMM_SHARES_MAX + 2)

static const int watched_signals[] = { SIGTERM, SIGINT, SIGHUP, SIGCONT };

struct vmm {
        const struct vmm_config *config;
        const struct accel_ops *ops;
        struct err no_kvm; /* why --accel auto took another one; said when all else went well */
        struct machine *machine;
        struct console *console;
        struct char_backend serial, hvc;
        struct confine confine;
        struct monitor monitor;
        bool in_monitor;
        bool user_paused;
        bool input_to_hvc; /* the kernel's console is hvc0: typing goes there */

        uv_loop_t loop;
        bool has_loop;
        uv_signal_t signal[ARRAY_SIZE(watched_signals)];
        unsigned signals;
        uv_timer_t stop_timer;
        bool has_timer;
        bool stopping; /* the power button was pressed by a signal */
        bool ended;
        enum vmm_exit exit;
        struct err failure;
};

static void end(struct vmm *vmm, enum vmm_exit exit)
{
        if (vmm->ended)
                return;
        vmm->ended = true;
        vmm->exit = exit;
        uv_stop(&vmm->loop);
}

/* ---- the machine's words ---- */

static void machine_ended(void *ctx, enum vmm_exit exit, const struct err *err)
{
        struct vmm *vmm = ctx;

        if (exit == VMM_EXIT_FAILED && err)
                vmm->failure = *err;
        end(vmm, exit);
}

static int thread_start(void *ctx, struct err *err)
{
        return confine_vcpu(&((struct vmm *)ctx)->confine, err);
}

/* ---- console and monitor ---- */

static size_t serial_write(void *ctx, const uint8_t *bytes, size_t size_bytes)
{
        return console_write(((struct vmm *)ctx)->console, bytes, size_bytes);
}

static void serial_readable(void *ctx)
{
        console_resume(((struct vmm *)ctx)->console);
}

static void console_writable(void *ctx)
{
        struct vmm *vmm = ctx;

        if (!vmm->machine)
                return;
        uart_writable(machine_serial(vmm->machine));
        if (machine_console(vmm->machine))
                virtio_console_writable(machine_console(vmm->machine));
}

static void print_status(struct vmm *vmm)
{
        char text[4096];

        machine_status(vmm->machine, text, sizeof(text));
        console_print(vmm->console, text);
}

static void print_cpu_stats(struct vmm *vmm)
{
        char text[16384];

        machine_cpu_stats(vmm->machine, text, sizeof(text));
        console_print(vmm->console, *text ? text : "nothing is known\n");
}

static void monitor_open(struct vmm *vmm, bool open)
{
        vmm->in_monitor = open;
        vmm->monitor = (struct monitor){ 0 };
        console_print(vmm->console, open ? "\r\nmonitor; 'help' lists its commands\r\n" MONITOR_PROMPT : "\r\n");
}

static void monitor_pause(struct vmm *vmm, bool pause)
{
        if (vmm->user_paused == pause)
                return;
        vmm->user_paused = pause;
        if (pause)
                machine_pause(vmm->machine);
        else
                machine_resume(vmm->machine);
}

static void monitor_balloon(struct vmm *vmm)
{
        struct err err = ERR_INIT;
        uint64_t bytes = 0;
        int r = 0;

        if (strcmp(vmm->monitor.argument, "0"))
                r = size_parse(vmm->monitor.argument, &bytes, &err);
        if (r >= 0 && machine_balloon(vmm->machine, bytes, &err) >= 0)
                return;
        console_print(vmm->console, err.text);
        console_print(vmm->console, "\n");
}

/* "0 20G" */
static void monitor_disk(struct vmm *vmm)
{
        const char *argument = vmm->monitor.argument;
        struct err err = ERR_INIT;
        uint64_t bytes = 0;
        char *size;
        unsigned long index = strtoul(argument, &size, 10);
        int r = size == argument || *size != ' ' ? err_set(&err, -EINVAL, "'disk N SIZE': which one, and how large") : 0;

        if (r == 0)
                r = size_parse(size + strspn(size, " "), &bytes, &err);
        if (r == 0 && machine_disk_grow(vmm->machine, (unsigned)MIN(index, UINT_MAX), bytes, &err) == 0)
                return;
        console_print(vmm->console, err.text);
        console_print(vmm->console, "\n");
}

static void monitor_job(struct vmm *vmm)
{
        struct err err = ERR_INIT;
        char text[2048];

        if (!*vmm->monitor.argument) {
                machine_jobs(vmm->machine, text, sizeof(text));
                console_print(vmm->console, *text ? text : "no job runs\n");
        } else if (machine_job(vmm->machine, vmm->monitor.argument, &err) < 0) {
                console_print(vmm->console, err.text);
                console_print(vmm->console, "\n");
        }
}

static void monitor_run(struct vmm *vmm, enum monitor_command command)
{
        struct err err = ERR_INIT;

        switch (command) {
        case MONITOR_STATUS:
                print_status(vmm);
                break;
        case MONITOR_CPUS:
                print_cpu_stats(vmm);
                break;
        case MONITOR_POWER_BUTTON:
                machine_power_button(vmm->machine);
                break;
        case MONITOR_BALLOON:
                monitor_balloon(vmm);
                break;
        case MONITOR_DISK:
                monitor_disk(vmm);
                break;
        case MONITOR_JOB:
                monitor_job(vmm);
                break;
        case MONITOR_RESET:
                if (machine_reset(vmm->machine, &err) < 0) {
                        vmm->failure = err;
                        end(vmm, VMM_EXIT_FAILED);
                }
                break;
        case MONITOR_PAUSE:
        case MONITOR_RESUME:
                monitor_pause(vmm, command == MONITOR_PAUSE);
                break;
        case MONITOR_QUIT:
                end(vmm, VMM_EXIT_OK);
                break;
        case MONITOR_CLOSE:
                monitor_open(vmm, false);
                return;
        case MONITOR_UNKNOWN:
                console_print(vmm->console, "there is no command '");
                console_print(vmm->console, vmm->monitor.line);
                console_print(vmm->console, "'; 'help' lists them\n");
                break;
        case MONITOR_HELP:
                console_print(vmm->console, monitor_help());
                break;
        case MONITOR_NONE:
                break;
        }
        console_print(vmm->console, MONITOR_PROMPT);
}

static size_t console_input(void *ctx, const uint8_t *bytes, size_t size_bytes)
{
        struct vmm *vmm = ctx;

        if (!vmm->machine)
                return 0;
        if (!vmm->in_monitor) {
                if (vmm->input_to_hvc)
                        return virtio_console_receive(machine_console(vmm->machine), bytes, size_bytes);
                return uart_receive(machine_serial(vmm->machine), bytes, size_bytes);
        }
        for (size_t i = 0; i < size_bytes; i++) {
                char echo[8];
                enum monitor_command command = monitor_type(&vmm->monitor, bytes[i], echo);

                console_print(vmm->console, echo);
                if (bytes[i] == '\r' || bytes[i] == '\n')
                        monitor_run(vmm, command);
                if (!vmm->in_monitor)
                        return i + 1;
        }
        return size_bytes;
}

static void console_command(void *ctx, enum console_command command)
{
        struct vmm *vmm = ctx;

        if (!vmm->machine)
                return;
        switch (command) {
        case CONSOLE_END:
                console_print(vmm->console, "\r\n");
                end(vmm, VMM_EXIT_OK);
                break;
        case CONSOLE_HELP:
                console_print(vmm->console,
                              "\r\nCtrl-A x  end the machine\r\nCtrl-A c  monitor: status, power button, balloon, reset, quit\r\n"
                              "Ctrl-A b  send a break\r\nCtrl-A Ctrl-A  send Ctrl-A\r\n");
                break;
        case CONSOLE_MONITOR:
                monitor_open(vmm, !vmm->in_monitor);
                break;
        case CONSOLE_BREAK:
                uart_break(machine_serial(vmm->machine));
                break;
        }
}

static int open_console(struct vmm *vmm, struct err *err)
{
        const struct console_host host = {
                .input = console_input,
                .command = console_command,
                .writable = console_writable,
                .ctx = vmm,
        };

        if (vmm->config->serial == VMM_SERIAL_NONE)
                return 0;
        return console_new(vmm->config->serial, vmm->config->serial_path, &vmm->loop, &host, &vmm->console, err);
}

/* ---- signals ---- */

static void stop_time_is_up(uv_timer_t *timer)
{
        struct vmm *vmm = timer->data;

        log_warning("the guest did not power off in %u s after the power button; it is ended", VMM_STOP_TIMEOUT_S);
        vmm->failure = ERR_INIT;
        end(vmm, VMM_EXIT_FAILED);
}

static void on_signal(uv_signal_t *handle, int number)
{
        struct vmm *vmm = handle->data;

        if (number == SIGCONT) {
                if (vmm->console)
                        console_raw(vmm->console);
                return;
        }
        if (vmm->stopping) {
                end(vmm, VMM_EXIT_FAILED);
                return;
        }
        vmm->stopping = true;
        machine_power_button(vmm->machine);
        uv_timer_start(&vmm->stop_timer, stop_time_is_up, VMM_STOP_TIMEOUT_S * 1000, 0);
}

static int watch_signals(struct vmm *vmm, struct err *err)
{
        int r = uv_timer_init(&vmm->loop, &vmm->stop_timer);

        if (r < 0)
                return err_set(err, r, "cannot make a timer: %s", uv_strerror(r));
        vmm->has_timer = true;
        vmm->stop_timer.data = vmm;
        for (; vmm->signals < ARRAY_SIZE(watched_signals); vmm->signals++) {
                uv_signal_t *handle = &vmm->signal[vmm->signals];

                r = uv_signal_init(&vmm->loop, handle);
                if (r < 0)
                        return err_set(err, r, "cannot watch signals: %s", uv_strerror(r));
                handle->data = vmm;
                r = uv_signal_start(handle, on_signal, watched_signals[vmm->signals]);
                if (r < 0) {
                        uv_close((uv_handle_t *)handle, NULL);
                        return err_set(err, r, "cannot watch signal %d: %s", watched_signals[vmm->signals], uv_strerror(r));
                }
        }
        return 0;
}

/* ---- from start to end ---- */

static int spawn_nets(const struct vmm_config *config, int net_fd[VMM_NETS_MAX], struct err *err)
{
        for (unsigned i = 0; i < VMM_NETS_MAX; i++)
                net_fd[i] = -1;
        for (unsigned i = 0; i < config->nets && i < VMM_NETS_MAX; i++) {
                int r = config->net[i].driver ? net_peer_spawn(&config->net[i], &net_fd[i], err) : 0;

                if (r < 0)
                        return r;
        }
        return 0;
}

static void close_nets(const int net_fd[VMM_NETS_MAX])
{
        for (unsigned i = 0; i < VMM_NETS_MAX; i++)
                if (net_fd[i] >= 0)
                        close(net_fd[i]);
}

static int make_machine(struct vmm *vmm, const int net_fd[VMM_NETS_MAX], struct err *err)
{
        struct machine_host host = { .ended = machine_ended, .thread_start = thread_start, .ctx = vmm };
        int r;

        vmm->serial = vmm->hvc = (struct char_backend){ .write = serial_write, .readable = serial_readable, .ctx = vmm };
        if (vmm->console) {
                host.serial = &vmm->serial;
                host.console = &vmm->hvc;
        }
        r = machine_new(vmm->config, vmm->ops, &vmm->loop, &host, net_fd, &vmm->machine, err);
        if (r < 0)
                return r;
        vmm->input_to_hvc = machine_console(vmm->machine) && vmm->config->append && strstr(vmm->config->append, "console=hvc0");
        return machine_boot(vmm->machine, err);
}

/* The last moment before the first guest instruction: everything is open. */
static int enter_sandbox(struct vmm *vmm, struct err *err)
{
        struct sandbox_directory directories[PATHS_MAX];
        unsigned count = machine_directories(vmm->machine, directories, PATHS_MAX);
        unsigned cpus = vmm->config->cpus ? vmm->config->cpus : 1;

        return confine_enter(&vmm->confine, directories, count, cpus, err);
}

static int run(struct vmm *vmm, const int net_fd[VMM_NETS_MAX], struct err *err)
{
        int r = uv_loop_init(&vmm->loop);

        if (r < 0) {
                close_nets(net_fd);
                return err_set(err, r, "cannot make an event loop: %s", uv_strerror(r));
        }
        vmm->has_loop = true;
        r = open_console(vmm, err);
        if (r < 0) {
                close_nets(net_fd);
                return r;
        }
        r = make_machine(vmm, net_fd, err);
        if (r >= 0)
                r = watch_signals(vmm, err);
        if (r >= 0)
                r = enter_sandbox(vmm, err);
        if (r >= 0 && vmm->console)
                r = console_start(vmm->console, err);
        if (r >= 0)
                r = machine_start(vmm->machine, err);
        if (r < 0)
                return r;
        if (vmm->no_kvm.code)
                log_info("no KVM (%s): using the %s accelerator", vmm->no_kvm.text, vmm->ops->name);
        if (vmm->console)
                console_raw(vmm->console);
        machine_resume(vmm->machine);
        uv_run(&vmm->loop, UV_RUN_DEFAULT);
        if (!vmm->ended)
                return err_set(err, -EIO, "the event loop ended before the machine");
        return 0;
}

static void close_left(uv_handle_t *handle, void *ctx)
{
        if (!uv_is_closing(handle))
                uv_close(handle, NULL);
}

/* On the log's stream, so that the guest's console stays the guest's. */
static void say_cpu_stats(struct vmm *vmm)
{
        char text[16384];

        machine_cpu_stats(vmm->machine, text, sizeof(text));
        fputs(text, stderr);
}

static void clean_up(struct vmm *vmm)
{
        if (!vmm->has_loop)
                return;
        if (vmm->machine && vmm->config->cpu_stats)
                say_cpu_stats(vmm);
        if (vmm->machine)
                machine_end_jobs(vmm->machine);
        machine_free(vmm->machine);
        vmm->machine = NULL;
        console_free(vmm->console);
        for (unsigned i = 0; i < vmm->signals; i++)
                uv_close((uv_handle_t *)&vmm->signal[i], NULL);
        if (vmm->has_timer)
                uv_close((uv_handle_t *)&vmm->stop_timer, NULL);
        uv_run(&vmm->loop, UV_RUN_DEFAULT);
        uv_walk(&vmm->loop, close_left, NULL);
        uv_run(&vmm->loop, UV_RUN_DEFAULT);
        uv_loop_close(&vmm->loop);
}

int vmm_run(const struct vmm_config *config, int *exit_code, struct err *err)
{
        _cleanup_free_ struct vmm *vmm = calloc(1, sizeof(*vmm));
        int net_fd[VMM_NETS_MAX];
        int r;

        if (!vmm)
                return err_nomem(err);
        vmm->config = config;
        r = spawn_nets(config, net_fd, err);
        if (r >= 0)
                r = accel_choose(config->accel, &vmm->ops, &vmm->no_kvm, err);
        if (r >= 0)
                r = confine_isolate(&vmm->confine, config->no_sandbox, err);
        if (r < 0) {
                close_nets(net_fd);
                return r;
        }
        r = run(vmm, net_fd, err);
        clean_up(vmm);
        if (r < 0)
                return r;
        if (vmm->exit == VMM_EXIT_FAILED && vmm->failure.code)
                log_error("%s", vmm->failure.text);
        *exit_code = vmm->exit;
        return 0;
}
