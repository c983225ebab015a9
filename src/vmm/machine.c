/*
 * Making, running and ending a machine. See machine.h.
 *
 * A vCPU's thread:
 *
 *      wait while paused or stopped ──▶ run ──kicked──▶ wait …
 *                                        └─triple fault, failure──▶ stopped: event to the main thread, wait for a reset
 *
 * Locks: machine->lock guards run control only; no device is called with it held. Everything else belongs to the main thread.
 * Events from other threads are bits in machine->events and one uv_async; the main thread handles the gravest of them.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

#include "base/log.h"
#include "device/acpi-pm.h"
#include "device/virtio-balloon.h"
#include "device/virtio-blk.h"
#include "device/virtio-fs.h"
#include "device/virtio-vsock.h"
#include "vmm/acpi.h"
#include "vmm/machine-internal.h"

#define GIB (UINT64_C(1) << 30)
#define MEMORY_DEFAULT_BYTES (UINT64_C(512) << 20)
#define WINDOW64_LOWEST (64 * GIB)
#define PHYSICAL_BITS_DEFAULT 39u
#define VCPU_STACK_BYTES (UINT64_C(1) << 20)
/* What firmware leaves behind: MTRRs on, everything write-back (SDM vol. 3A §12.11.2.1). */
#define MTRR_ENABLED_WRITE_BACK 0x806u

/* ---- memory ---- */

int machine_layout(uint64_t memory_bytes, unsigned physical_bits, struct machine_layout *layout, struct err *err)
{
        uint64_t limit = UINT64_C(1) << physical_bits;
        uint64_t top;

        if (memory_bytes < VMM_MEMORY_MIN_BYTES || memory_bytes > VMM_MEMORY_MAX_BYTES || memory_bytes % GUEST_PAGE_SIZE)
                return err_set(err, -EINVAL,
                               "memory of %" PRIu64 " KiB: it must be from %" PRIu64 " MiB to %" PRIu64 " GiB, in steps of 4 KiB",
                               memory_bytes >> 10, VMM_MEMORY_MIN_BYTES >> 20, VMM_MEMORY_MAX_BYTES >> 30);
        *layout = (struct machine_layout){ .low_bytes = MIN(memory_bytes, (uint64_t)BOARD_HOLE) };
        layout->high_bytes = memory_bytes - layout->low_bytes;
        top = BOARD_FIRMWARE_END + layout->high_bytes;
        if (top > limit)
                return err_set(err, -EINVAL, "memory of %" PRIu64 " MiB: the processor has addresses of %u bits only",
                               memory_bytes >> 20, physical_bits);
        /* Room to grow to twice the memory, as far as the processor's addresses go. */
        layout->window64 = MAX(WINDOW64_LOWEST, align_up(2 * top, BOARD_WINDOW64_SIZE));
        layout->window64_size = BOARD_WINDOW64_SIZE;
        if (layout->window64 + layout->window64_size > limit)
                layout->window64 = align_up(top, GIB);
        if (layout->window64 + layout->window64_size > limit)
                layout->window64 = layout->window64_size = 0;
        return 0;
}

static unsigned host_physical_bits(void)
{
        unsigned eax = 0, ebx, ecx, edx;

        __asm__("cpuid" : "=a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx) : "a"(0x80000008u), "c"(0u));
        return (eax & 0xff) >= 36 && (eax & 0xff) <= 52 ? eax & 0xff : PHYSICAL_BITS_DEFAULT;
}

static int check_host_memory(uint64_t memory_bytes, struct err *err)
{
        struct sysinfo info;
        uint64_t host;

        if (sysinfo(&info) < 0)
                return 0;
        host = ((uint64_t)info.totalram + info.totalswap) * info.mem_unit;
        if (memory_bytes > host)
                return err_set(err, -ENOMEM, "memory of %" PRIu64 " MiB: this host has %" PRIu64 " MiB; give a smaller --memory",
                               memory_bytes >> 20, host >> 20);
        return 0;
}

static int make_memory(struct machine *machine, struct err *err)
{
        int r = check_host_memory(machine->config.memory_bytes, err);

        if (r >= 0)
                r = guest_memory_init(&machine->mem, "virta-guest", err);
        if (r >= 0)
                r = guest_memory_add(&machine->mem, 0, machine->layout.low_bytes, err);
        if (r >= 0 && machine->layout.high_bytes)
                r = guest_memory_add(&machine->mem, BOARD_FIRMWARE_END, machine->layout.high_bytes, err);
        return r;
}

/* Back to zeroes, and the pages to the host. */
static void clear_memory(struct machine *machine)
{
        for (unsigned i = 0; i < machine->mem.regions; i++) {
                const struct guest_region *region = &machine->mem.region[i];

                if (madvise(region->host, region->size_bytes, MADV_REMOVE) < 0)
                        memset(region->host, 0, region->size_bytes);
                guest_memory_written(&machine->mem, region->gpa, region->size_bytes);
        }
}

static void add_range(struct load_input *in, uint64_t start, uint64_t end, uint32_t type)
{
        in->e820[in->ranges++] = (struct e820_range){ start, end - start, type };
}

static void make_memory_map(struct machine *machine)
{
        struct load_input *in = &machine->input;

        in->ranges = 0;
        in->low_end = machine->layout.low_bytes;
        add_range(in, 0, LOAD_LOW_END, E820_RAM);
        add_range(in, LOAD_LOW_END, 0xa0000, E820_RESERVED);
        add_range(in, ACPI_BASE, ACPI_END, E820_RESERVED);
        add_range(in, LOAD_HIGH, in->low_end, E820_RAM);
        add_range(in, BOARD_ECAM, (uint64_t)BOARD_ECAM + BOARD_ECAM_SIZE, E820_RESERVED);
        if (machine->layout.high_bytes)
                add_range(in, BOARD_FIRMWARE_END, BOARD_FIRMWARE_END + machine->layout.high_bytes, E820_RAM);
}

/* ---- the vCPUs' threads ---- */

static void post(struct machine *machine, unsigned event)
{
        atomic_fetch_or(&machine->events, event);
        uv_async_send(&machine->wake);
}

/* With the lock held. */
static void vcpu_stopped(struct machine_vcpu *vcpu, enum vcpu_exit exit, const struct err *err)
{
        struct machine *machine = vcpu->machine;

        vcpu->stopped = true;
        if (exit == VCPU_EXIT_FAILED && !machine->failure.code)
                machine->failure = *err;
        if (exit == VCPU_EXIT_SHUTDOWN)
                machine->shutdown_vcpu = vcpu->index;
        post(machine, exit == VCPU_EXIT_FAILED ? MACHINE_FAILED : MACHINE_SHUTDOWN);
}

static void *vcpu_thread(void *ctx)
{
        struct machine_vcpu *vcpu = ctx;
        struct machine *machine = vcpu->machine;
        struct err err = ERR_INIT;
        char name[16];
        int r = 0;

        /* By itself: another thread's name needs /proc, which the sandbox has not. */
        snprintf(name, sizeof(name), "vcpu%u", vcpu->index);
        pthread_setname_np(pthread_self(), name);
        if (machine->to.thread_start)
                r = machine->to.thread_start(machine->to.ctx, &err);
        pthread_mutex_lock(&machine->lock);
        if (r < 0) {
                err_wrap(&err, r, "vCPU %u", vcpu->index);
                vcpu_stopped(vcpu, VCPU_EXIT_FAILED, &err);
        }
        while (!machine->stop) {
                enum vcpu_exit exit;

                if (machine->pauses || vcpu->stopped) {
                        pthread_cond_wait(&machine->changed, &machine->lock);
                        continue;
                }
                machine->running++;
                pthread_mutex_unlock(&machine->lock);
                exit = machine->ops->run(vcpu->vcpu, &err);
                pthread_mutex_lock(&machine->lock);
                machine->running--;
                if (exit != VCPU_EXIT_REQUESTED)
                        vcpu_stopped(vcpu, exit, &err);
                pthread_cond_broadcast(&machine->changed);
        }
        pthread_mutex_unlock(&machine->lock);
        return NULL;
}

static int make_thread(struct machine_vcpu *vcpu, const pthread_attr_t *attr, struct err *err)
{
        int r = pthread_create(&vcpu->thread, attr, vcpu_thread, vcpu);

        if (r)
                return err_errno(err, -r, "cannot make the thread of vCPU %u", vcpu->index);
        vcpu->has_thread = true;
        return 0;
}

int machine_start(struct machine *machine, struct err *err)
{
        sigset_t all, old;
        pthread_attr_t attr;
        int r = 0;

        /* Signals are the main thread's. */
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, &old);
        pthread_attr_init(&attr);
        pthread_attr_setstacksize(&attr, VCPU_STACK_BYTES);
        for (unsigned i = 0; r >= 0 && i < machine->config.cpus; i++)
                r = make_thread(&machine->vcpu[i], &attr, err);
        pthread_attr_destroy(&attr);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        return r;
}

static void stop_vcpus(struct machine *machine)
{
        for (unsigned i = 0; i < machine->config.cpus; i++)
                if (machine->vcpu[i].has_thread)
                        machine->ops->kick(machine->vcpu[i].vcpu);
}

static void join_threads(struct machine *machine)
{
        pthread_mutex_lock(&machine->lock);
        machine->stop = true;
        pthread_cond_broadcast(&machine->changed);
        pthread_mutex_unlock(&machine->lock);
        if (!machine->accel)
                return;
        stop_vcpus(machine);
        for (unsigned i = 0; i < machine->config.cpus; i++)
                if (machine->vcpu[i].has_thread)
                        pthread_join(machine->vcpu[i].thread, NULL);
}

void machine_pause(struct machine *machine)
{
        bool first;

        pthread_mutex_lock(&machine->lock);
        first = !machine->pauses++;
        pthread_mutex_unlock(&machine->lock);
        if (!first)
                return;
        stop_vcpus(machine);
        pthread_mutex_lock(&machine->lock);
        while (machine->running)
                pthread_cond_wait(&machine->changed, &machine->lock);
        pthread_mutex_unlock(&machine->lock);
        for (unsigned i = 0; i < machine->devices; i++)
                if (machine->device[i]->ops->quiesce)
                        machine->device[i]->ops->quiesce(machine->device[i]);
        machine->ops->pause(machine->accel);
        board_pause(machine->board);
}

void machine_resume(struct machine *machine)
{
        /* Only the main thread changes pauses. */
        if (machine->pauses == 1) {
                board_resume(machine->board); /* the clock runs again before the local APICs' timers are armed by it */
                machine->ops->resume(machine->accel);
                for (unsigned i = 0; i < machine->devices; i++)
                        if (machine->device[i]->ops->resume)
                                machine->device[i]->ops->resume(machine->device[i]);
        }
        pthread_mutex_lock(&machine->lock);
        machine->pauses--;
        pthread_cond_broadcast(&machine->changed);
        pthread_mutex_unlock(&machine->lock);
}

/* ---- boot and reset ---- */

static int boot_vcpus(struct machine *machine, struct err *err)
{
        _cleanup_free_ struct x86_state *state = aligned_alloc(64, align_up(sizeof(*state), 64));
        int r;

        if (!state)
                return err_nomem(err);
        for (unsigned i = 0; i < machine->config.cpus; i++) {
                struct accel_vcpu *vcpu = machine->vcpu[i].vcpu;

                r = machine->ops->reset(vcpu, err);
                if (r >= 0)
                        r = machine->ops->get_state(vcpu, state, err);
                if (r < 0)
                        return r;
                state->mtrr_def_type = MTRR_ENABLED_WRITE_BACK;
                if (!i)
                        r = load_boot(&machine->input, &machine->mem, state, err);
                if (r >= 0)
                        r = machine->ops->set_state(vcpu, state, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

int machine_boot(struct machine *machine, struct err *err)
{
        const struct acpi_config acpi = {
                .cpus = machine->config.cpus,
                .window64 = machine->layout.window64,
                .window64_size = machine->layout.window64_size,
                .hpet = machine->board->hpet != NULL,
        };
        int r = acpi_build(&acpi, &machine->mem, &machine->input.rsdp, err);

        return r < 0 ? r : boot_vcpus(machine, err);
}

int machine_reset(struct machine *machine, struct err *err)
{
        int r;

        machine_pause(machine);
        for (unsigned i = 0; i < machine->devices; i++)
                machine->device[i]->ops->reset(machine->device[i]);
        board_reset(machine->board);
        clear_memory(machine);
        r = machine_boot(machine, err);
        /* Without a kernel there is nothing that the processors could run: they stay where they are until another reset. */
        pthread_mutex_lock(&machine->lock);
        for (unsigned i = 0; i < machine->config.cpus; i++)
                machine->vcpu[i].stopped = r < 0;
        if (r >= 0)
                machine->failure = ERR_INIT;
        pthread_mutex_unlock(&machine->lock);
        if (r >= 0) {
                atomic_store(&machine->events, 0);
                machine->ended = false;
                machine->resets++;
        }
        machine_resume(machine);
        return r;
}

void machine_power_button(struct machine *machine)
{
        acpi_pm_power_button(machine->board->pm);
}

int machine_balloon(struct machine *machine, uint64_t target_bytes, struct err *err)
{
        return virtio_balloon_set_target(machine->balloon, target_bytes, err);
}

int machine_disk_grow(struct machine *machine, unsigned index, uint64_t size_bytes, struct err *err)
{
        struct block *disk = index < machine->disks ? machine->disk[index] : NULL;
        int r;

        if (!disk)
                return err_set(err, -ENOENT, "there is no disk %u", index);
        if (disk->info.readonly)
                return err_set(err, -EROFS, "disk %s is read-only", disk->path);
        if (size_bytes < disk->info.size_bytes)
                return err_set(err, -EINVAL, "disk %s has %" PRIu64 " MiB, and does not become smaller while a guest uses it", disk->path,
                               disk->info.size_bytes >> 20);
        machine_pause(machine); /* nothing is in flight then */
        r = block_resize(disk, size_bytes, err);
        if (r == 0)
                r = virtio_blk_resized(machine->blk[index], err);
        machine_resume(machine);
        return r;
}

/* ---- events ---- */

static void end(struct machine *machine, enum vmm_exit exit, const struct err *err)
{
        if (machine->ended)
                return;
        machine->ended = true;
        machine_pause(machine);
        machine->to.ended(machine->to.ctx, exit, err);
}

static void reset_wanted(struct machine *machine)
{
        struct err err = ERR_INIT;

        if (machine->config.no_reboot) {
                end(machine, VMM_EXIT_RESET, NULL);
                return;
        }
        if (machine_reset(machine, &err) < 0)
                end(machine, VMM_EXIT_FAILED, &err);
        else if (machine->to.was_reset)
                machine->to.was_reset(machine->to.ctx);
}

/* On the main thread. */
static void handle_events(uv_async_t *wake)
{
        struct machine *machine = container_of(wake, struct machine, wake);
        unsigned events = atomic_exchange(&machine->events, 0);
        struct err err = ERR_INIT;

        if (machine->ended || !events)
                return;
        if (events & MACHINE_FAILED) {
                pthread_mutex_lock(&machine->lock);
                err = machine->failure;
                pthread_mutex_unlock(&machine->lock);
                end(machine, VMM_EXIT_FAILED, &err);
        } else if (events & MACHINE_POWER_OFF) {
                end(machine, VMM_EXIT_OK, NULL);
        } else if (events & MACHINE_RESET) {
                reset_wanted(machine);
        } else if (events & MACHINE_SHUTDOWN) {
                machine_pause(machine);
                machine_print_crash(machine, machine->shutdown_vcpu);
                machine_resume(machine);
                end(machine, VMM_EXIT_TRIPLE_FAULT, NULL);
        }
}

/* ---- making and ending ---- */

static void fill_defaults(struct vmm_config *config)
{
        if (!config->name)
                config->name = "vm";
        if (!config->memory_bytes)
                config->memory_bytes = MEMORY_DEFAULT_BYTES;
        if (!config->cpus)
                config->cpus = 1;
        if (!config->append)
                config->append = "console=ttyS0";
}

static int check_config(const struct vmm_config *config, struct err *err)
{
        if (!config->kernel)
                return err_set(err, -EINVAL, "no kernel is given; give one with --kernel");
        if (config->cpus > VMM_CPUS_MAX)
                return err_set(err, -EINVAL, "%u processors: 1 to %u are possible", config->cpus, VMM_CPUS_MAX);
        if (config->disks > VMM_DISKS_MAX || config->nets > VMM_NETS_MAX || config->shares > VMM_SHARES_MAX)
                return err_set(err, -EINVAL, "at most %u disks, %u network cards and %u shared directories are possible",
                               VMM_DISKS_MAX, VMM_NETS_MAX, VMM_SHARES_MAX);
        return 0;
}

static int make_loop_side(struct machine *machine, uv_loop_t *loop, struct err *err)
{
        int r = uv_async_init(loop, &machine->wake, handle_events);

        if (r < 0)
                return err_set(err, r, "cannot make the machine's wake-up: %s", uv_strerror(r));
        machine->has_wake = true;
        machine->host.loop = loop;
        r = timer_set_new(loop, &machine->host.timers, err);
        if (r >= 0)
                r = bus_new(&machine->host.bus, err);
        return r;
}

static int make_machine(struct machine *machine, uv_loop_t *loop, const int net_fd[VMM_NETS_MAX], struct err *err)
{
        int r = check_config(&machine->config, err);

        if (r >= 0)
                r = machine_layout(machine->config.memory_bytes, host_physical_bits(), &machine->layout, err);
        if (r >= 0)
                r = load_open(&machine->input, machine->config.kernel, machine->config.initrd, machine->config.append, err);
        if (r >= 0)
                r = make_memory(machine, err);
        if (r >= 0)
                r = make_loop_side(machine, loop, err);
        if (r < 0) {
                for (unsigned i = 0; i < machine->config.nets && i < VMM_NETS_MAX; i++)
                        if (net_fd[i] >= 0)
                                close(net_fd[i]);
                return r;
        }
        make_memory_map(machine);
        machine->host.mem = &machine->mem;
        r = machine_make_devices(machine, net_fd, err);
        return r < 0 ? r : machine_stall_init(machine, err);
}

int machine_new(const struct vmm_config *config, const struct accel_ops *ops, uv_loop_t *loop, const struct machine_host *host,
                const int net_fd[VMM_NETS_MAX], struct machine **out, struct err *err)
{
        struct machine *machine = calloc(1, sizeof(*machine));
        int r;

        if (!machine)
                return err_nomem(err);
        machine->config = *config;
        machine->to = *host;
        machine->ops = ops;
        machine->mem.fd = machine->job_folder = -1;
        machine->input.kernel.fd = machine->input.initrd.fd = -1;
        machine->pauses = 1;
        pthread_mutex_init(&machine->lock, NULL);
        pthread_cond_init(&machine->changed, NULL);
        fill_defaults(&machine->config);
        r = make_machine(machine, loop, net_fd, err);
        if (r < 0) {
                machine_free(machine);
                return r;
        }
        *out = machine;
        return 0;
}

static void wake_closed(uv_handle_t *handle)
{
        struct machine *machine = container_of((uv_async_t *)handle, struct machine, wake);

        free(machine);
}

void machine_free(struct machine *machine)
{
        if (!machine)
                return;
        join_threads(machine);
        machine_stall_free(machine);
        machine_free_devices(machine);
        bus_free(machine->host.bus);
        timer_set_free(machine->host.timers);
        guest_memory_done(&machine->mem);
        load_close(&machine->input);
        pthread_cond_destroy(&machine->changed);
        pthread_mutex_destroy(&machine->lock);
        if (machine->has_wake)
                uv_close((uv_handle_t *)&machine->wake, wake_closed);
        else
                free(machine);
}

struct device *machine_serial(struct machine *machine)
{
        return machine->board->com1;
}

struct device *machine_console(struct machine *machine)
{
        return machine->console;
}

struct guest_memory *machine_memory(struct machine *machine)
{
        return &machine->mem;
}

unsigned machine_directories(struct machine *machine, struct sandbox_directory *directories, unsigned max)
{
        unsigned count = MIN(machine->shares, max);

        for (unsigned i = 0; i < count; i++)
                directories[i] = (struct sandbox_directory){
                        .path = machine->config.share[i].path,
                        .fd = virtio_fs_directory(machine->share[i]),
                        .readonly = machine->config.share[i].readonly,
                };
        if (machine->vsock && count < max)
                directories[count++] = (struct sandbox_directory){
                        .path = machine->config.vsock_path,
                        .fd = virtio_vsock_directory(machine->vsock),
                };
        if (machine->job_folder >= 0 && count < max)
                directories[count++] = (struct sandbox_directory){ .path = machine->config.job_folder, .fd = machine->job_folder };
        return count;
}

/* ---- for a person ---- */

static void append(char **at, char *end_of_text, const char *fmt, ...) _printf_(3, 4);
static void append(char **at, char *end_of_text, const char *fmt, ...)
{
        va_list args;
        int n;

        va_start(args, fmt);
        n = vsnprintf(*at, (size_t)(end_of_text - *at), fmt, args);
        va_end(args);
        if (n > 0)
                *at += MIN(n, (int)(end_of_text - *at) - 1);
}

void machine_status(struct machine *machine, char *text, size_t size_bytes)
{
        char *at = text, *last = text + size_bytes;
        struct virtio_balloon_state balloon;

        append(&at, last, "name        %s\n", machine->config.name);
        append(&at, last, "state       %s\n", machine->ended ? "ended" : machine->pauses ? "paused" : "running");
        if (machine_stall_why(machine))
                append(&at, last, "waits       %s\n", machine_stall_why(machine));
        append(&at, last, "accelerator %s\n", machine->ops->name);
        append(&at, last, "memory      %" PRIu64 " MiB\n", machine->config.memory_bytes >> 20);
        if (machine->balloon) {
                virtio_balloon_get_state(machine->balloon, &balloon);
                append(&at, last, "balloon     %" PRIu64 " MiB of %" PRIu64 " MiB taken, %" PRIu64 " MiB given back\n",
                       balloon.actual_bytes >> 20, balloon.target_bytes >> 20, balloon.returned_bytes >> 20);
        }
        append(&at, last, "uptime      %.1f s\n", (double)board_clock_ns(&machine->board->clock) / 1e9);
        if (machine->resets)
                append(&at, last, "resets      %" PRIu64 "\n", machine->resets);
        for (unsigned i = 0; i < machine->config.cpus; i++) {
                uint64_t instructions = machine->ops->instructions(machine->vcpu[i].vcpu);

                if (instructions)
                        append(&at, last, "vCPU %-6u %" PRIu64 " million instructions\n", i, instructions / 1000000);
                else
                        append(&at, last, "vCPU %-6u\n", i);
        }
        append(&at, last, "devices    ");
        for (unsigned i = 0; i < machine->devices; i++)
                append(&at, last, " %s", machine->device[i]->id);
        append(&at, last, "\n");
}

void machine_cpu_stats(struct machine *machine, char *text, size_t size_bytes)
{
        char *at = text, *last = text + size_bytes;

        *at = '\0';
        if (!machine->ops->stats)
                return;
        machine->ops->stats(machine->accel, NULL, at, size_bytes);
        for (unsigned i = 0; i < machine->config.cpus; i++) {
                at += strlen(at);
                machine->ops->stats(machine->accel, machine->vcpu[i].vcpu, at, (size_t)(last - at));
        }
}
