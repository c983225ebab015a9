/*
 * The software accelerator: processors of src/cpu, one local APIC of src/device each, and what connects them to the machine.
 *
 * Doorbells are looked up before the bus: a store to one of their addresses writes the eventfd and is over. The guest's TSC is
 * the host's plus an offset for each processor; while the machine is paused it is paused_tsc + offset, and resume moves all
 * offsets by the time that has passed.
 *
 * Locks: doorbells have a read-write lock that is never held across a call. A local APIC calls its processor's request functions
 * from any thread; they only set bits and wake.
 */
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdatomic.h>
#include <x86intrin.h>

#include "base/log.h"
#include "cpu/x86/cpuid.h"
#include "cpu/x86/x86.h"

#include "device/board.h"
#include "device/lapic.h"
#include "vmm/accel.h"

#define RECORD_NAME "software-vcpu"
#define RECORD_VERSION 1
#define DOORBELLS_MAX 512u
#define LAPIC_PAGE GUEST_PAGE_SIZE
#define MSR_KVM_PV_EOI 0x4b564d04u

/* Linux Documentation/virt/kvm/x86/hypercalls.rst. */
#define HYPERCALL_KICK_CPU 5u
#define HYPERCALL_SEND_IPI 10u
#define HYPERCALL_SCHED_YIELD 11u

struct software;

struct doorbell {
        enum bus_space space;
        uint64_t address;
        unsigned size_bytes; /* 0: any */
        bool match_value;
        uint32_t value;
        int eventfd;
};

struct software_vcpu {
        struct accel_vcpu vcpu;
        struct software *software;
        struct x86_cpu *cpu;
        struct lapic *lapic;
        atomic_bool kicked;
        atomic_bool init; /* INIT arrived: the local APIC is to be reset on the processor's thread */
};

struct software {
        struct accel accel;
        struct device_host *host;
        unsigned count;
        struct x86_model model;
        struct x86_complex *complex;
        struct lapic_bus *lapics;
        struct software_vcpu *vcpu;
        pthread_rwlock_t doorbells_lock;
        unsigned doorbells;
        struct doorbell doorbell[DOORBELLS_MAX];
        unsigned paused;
        uint64_t paused_tsc;
};

static struct software *to_software(struct accel *accel)
{
        return container_of(accel, struct software, accel);
}

static struct software_vcpu *to_vcpu(struct accel_vcpu *vcpu)
{
        return container_of(vcpu, struct software_vcpu, vcpu);
}

/* ---- doorbells ---- */

static bool ring(struct software *software, enum bus_space space, uint64_t address, uint64_t value, unsigned size_bytes)
{
        int fd = -1;

        pthread_rwlock_rdlock(&software->doorbells_lock);
        for (unsigned i = 0; i < software->doorbells; i++) {
                const struct doorbell *bell = &software->doorbell[i];

                if (bell->address == address && bell->space == space && (!bell->size_bytes || bell->size_bytes == size_bytes) &&
                    (!bell->match_value || bell->value == value)) {
                        fd = bell->eventfd;
                        break;
                }
        }
        /* Written with the lock held, so that the descriptor cannot be closed and taken by another file meanwhile. */
        if (fd >= 0) {
                uint64_t one = 1;
                ssize_t written = write(fd, &one, sizeof(one));

                (void)written; /* full: it is readable already */
        }
        pthread_rwlock_unlock(&software->doorbells_lock);
        return fd >= 0;
}

static bool same_bell(const struct doorbell *a, const struct doorbell *b)
{
        return a->space == b->space && a->address == b->address && a->size_bytes == b->size_bytes &&
               a->match_value == b->match_value && (!a->match_value || a->value == b->value) && a->eventfd == b->eventfd;
}

static int software_doorbell(struct accel *accel, bool add, enum bus_space space, uint64_t address, unsigned size_bytes,
                             bool match_value, uint32_t value, int eventfd)
{
        const struct doorbell bell = { space, address, size_bytes, match_value, value, eventfd };
        struct software *software = to_software(accel);
        int r = add ? 0 : -ENOENT;

        pthread_rwlock_wrlock(&software->doorbells_lock);
        if (add) {
                if (software->doorbells == DOORBELLS_MAX)
                        r = -ENOSPC;
                else
                        software->doorbell[software->doorbells++] = bell;
        }
        for (unsigned i = 0; !add && i < software->doorbells; i++) {
                if (same_bell(&software->doorbell[i], &bell)) {
                        software->doorbell[i] = software->doorbell[--software->doorbells];
                        r = 0;
                        break;
                }
        }
        pthread_rwlock_unlock(&software->doorbells_lock);
        return r;
}

/* ---- what the processor sees (struct x86_platform) ---- */

static uint64_t mmio_read(void *ctx, uint64_t gpa, unsigned size_bytes)
{
        struct software_vcpu *vcpu = ctx;

        if (gpa - BOARD_LAPIC < LAPIC_PAGE)
                return lapic_mmio_read(vcpu->lapic, gpa - BOARD_LAPIC, size_bytes);
        return bus_read(vcpu->software->host->bus, BUS_MEMORY, gpa, size_bytes);
}

static void mmio_write(void *ctx, uint64_t gpa, uint64_t value, unsigned size_bytes)
{
        struct software_vcpu *vcpu = ctx;

        if (gpa - BOARD_LAPIC < LAPIC_PAGE)
                lapic_mmio_write(vcpu->lapic, gpa - BOARD_LAPIC, value, size_bytes);
        else if (!ring(vcpu->software, BUS_MEMORY, gpa, value, size_bytes))
                bus_write(vcpu->software->host->bus, BUS_MEMORY, gpa, value, size_bytes);
}

static uint32_t pio_read(void *ctx, uint16_t port, unsigned size_bytes)
{
        struct software_vcpu *vcpu = ctx;

        return (uint32_t)bus_read(vcpu->software->host->bus, BUS_PORTS, port, size_bytes);
}

static void pio_write(void *ctx, uint16_t port, uint32_t value, unsigned size_bytes)
{
        struct software_vcpu *vcpu = ctx;

        if (!ring(vcpu->software, BUS_PORTS, port, value, size_bytes))
                bus_write(vcpu->software->host->bus, BUS_PORTS, port, value, size_bytes);
}

static int interrupt_ack(void *ctx)
{
        return lapic_ack(((struct software_vcpu *)ctx)->lapic);
}

static uint8_t tpr_read(void *ctx)
{
        return lapic_tpr(((struct software_vcpu *)ctx)->lapic);
}

static void tpr_write(void *ctx, uint8_t priority)
{
        lapic_set_tpr(((struct software_vcpu *)ctx)->lapic, priority);
}

static int apic_msr_read(void *ctx, uint32_t index, uint64_t *value)
{
        struct software_vcpu *vcpu = ctx;

        if (index == MSR_KVM_PV_EOI) {
                *value = lapic_pv_eoi(vcpu->lapic);
                return 0;
        }
        return lapic_msr_read(vcpu->lapic, index, value);
}

static int apic_msr_write(void *ctx, uint32_t index, uint64_t value)
{
        struct software_vcpu *vcpu = ctx;

        if (index == MSR_KVM_PV_EOI) {
                lapic_set_pv_eoi(vcpu->lapic, value);
                return 0;
        }
        return lapic_msr_write(vcpu->lapic, index, value);
}

static int64_t hypercall(void *ctx, uint64_t nr, const uint64_t arg[4])
{
        struct software_vcpu *vcpu = ctx;
        struct software *software = vcpu->software;

        switch (nr) {
        case HYPERCALL_KICK_CPU: /* flags, APIC ID */
                if (arg[1] < software->count)
                        x86_cpu_request(software->vcpu[arg[1]].cpu, X86_REQUEST_KICK);
                return 0;
        case HYPERCALL_SEND_IPI: /* two words of the bitmap, its first APIC ID, ICR */
                lapic_send_ipi(vcpu->lapic, arg[0], arg[1], (uint32_t)arg[2], (uint32_t)arg[3]);
                return (int64_t)__builtin_popcountll(arg[0]) + __builtin_popcountll(arg[1]);
        case HYPERCALL_SCHED_YIELD:
                sched_yield();
                return 0;
        default:
                return -ENOSYS;
        }
}

static const struct x86_platform platform = {
        .mmio_read = mmio_read,
        .mmio_write = mmio_write,
        .pio_read = pio_read,
        .pio_write = pio_write,
        .interrupt_ack = interrupt_ack,
        .tpr_read = tpr_read,
        .tpr_write = tpr_write,
        .apic_msr_read = apic_msr_read,
        .apic_msr_write = apic_msr_write,
        .hypercall = hypercall,
};

/* ---- what the local APIC sees (struct lapic_processor) ---- */

static void processor_interrupt(void *ctx)
{
        x86_cpu_request(((struct software_vcpu *)ctx)->cpu, X86_REQUEST_INTERRUPT);
}

static void processor_nmi(void *ctx)
{
        x86_cpu_request(((struct software_vcpu *)ctx)->cpu, X86_REQUEST_NMI);
}

static void processor_init(void *ctx)
{
        struct software_vcpu *vcpu = ctx;

        atomic_store(&vcpu->init, true);
        x86_cpu_request(vcpu->cpu, X86_REQUEST_INIT | X86_REQUEST_EXIT);
}

static void processor_sipi(void *ctx, uint8_t vector)
{
        x86_cpu_sipi(((struct software_vcpu *)ctx)->cpu, vector);
}

static uint64_t processor_tsc(void *ctx)
{
        struct software_vcpu *vcpu = ctx;
        uint64_t host = vcpu->software->paused ? vcpu->software->paused_tsc : __rdtsc();

        return host + x86_cpu_tsc_offset(vcpu->cpu);
}

/* ---- running ---- */

static enum vcpu_exit software_run(struct accel_vcpu *v, struct err *err)
{
        struct software_vcpu *vcpu = to_vcpu(v);

        for (;;) {
                enum x86_exit exit = x86_cpu_run(vcpu->cpu);

                if (exit == X86_EXIT_SHUTDOWN)
                        return VCPU_EXIT_SHUTDOWN;
                if (atomic_exchange(&vcpu->init, false))
                        lapic_reset(vcpu->lapic, true);
                if (atomic_exchange(&vcpu->kicked, false))
                        return VCPU_EXIT_REQUESTED;
                if (exit == X86_EXIT_HALTED)
                        x86_cpu_wait(vcpu->cpu);
        }
}

static void software_kick(struct accel_vcpu *v)
{
        struct software_vcpu *vcpu = to_vcpu(v);

        atomic_store(&vcpu->kicked, true);
        x86_cpu_request(vcpu->cpu, X86_REQUEST_EXIT);
}

/* ---- state ---- */

static int software_get_state(struct accel_vcpu *v, struct x86_state *state, struct err *err)
{
        *state = *x86_cpu_state(to_vcpu(v)->cpu);
        return 0;
}

static int software_set_state(struct accel_vcpu *v, const struct x86_state *state, struct err *err)
{
        struct software_vcpu *vcpu = to_vcpu(v);

        *x86_cpu_state(vcpu->cpu) = *state;
        x86_cpu_state_changed(vcpu->cpu);
        return 0;
}

/* The TSC goes on, so that the TSCs of all processors stay together. */
static int software_reset(struct accel_vcpu *v, struct err *err)
{
        struct software_vcpu *vcpu = to_vcpu(v);
        struct x86_state *state = x86_cpu_state(vcpu->cpu);
        uint64_t tsc_offset = state->tsc_offset;

        atomic_store(&vcpu->init, false);
        x86_state_reset(state, !v->index);
        state->tsc_offset = tsc_offset;
        x86_cpu_state_changed(vcpu->cpu);
        lapic_reset(vcpu->lapic, false);
        return 0;
}

static int software_save(struct accel_vcpu *v, struct writer *out, struct err *err)
{
        struct software_vcpu *vcpu = to_vcpu(v);
        const struct x86_state *state = x86_cpu_state(vcpu->cpu);
        size_t mark = record_begin(out, RECORD_NAME, RECORD_VERSION);

        x86_state_save(state, out);
        writer_le64(out, vcpu->software->paused_tsc + state->tsc_offset);
        lapic_save(vcpu->lapic, out);
        record_end(out, mark);
        return out->bad ? err_nomem(err) : 0;
}

static int software_load(struct accel_vcpu *v, struct cursor *in, struct err *err)
{
        _cleanup_free_ struct x86_state *state = aligned_alloc(64, align_up(sizeof(*state), 64));
        struct software_vcpu *vcpu = to_vcpu(v);
        struct record record;
        uint64_t tsc;
        int r;

        if (!state)
                return err_nomem(err);
        r = record_expect(in, RECORD_NAME, RECORD_VERSION, &record, err);
        if (r < 0)
                return r;
        r = x86_state_load(state, &record.body, err);
        if (r < 0)
                return r;
        tsc = cursor_le64(&record.body);
        state->tsc_offset = tsc - vcpu->software->paused_tsc;
        /* The processor before its local APIC, whose deadline is in the guest's TSC. */
        r = software_set_state(v, state, err);
        if (r >= 0)
                r = lapic_load(vcpu->lapic, &record.body, err);
        return r < 0 ? r : record_finish(&record, err);
}

static void software_pause(struct accel *accel)
{
        struct software *software = to_software(accel);

        if (software->paused++)
                return;
        if (software->lapics)
                lapic_bus_quiesce(software->lapics);
        software->paused_tsc = __rdtsc();
}

static void software_resume(struct accel *accel)
{
        struct software *software = to_software(accel);
        uint64_t stood;

        if (--software->paused)
                return;
        stood = __rdtsc() - software->paused_tsc;
        for (unsigned i = 0; i < software->count; i++) {
                x86_cpu_state(software->vcpu[i].cpu)->tsc_offset -= stood;
                x86_cpu_state_changed(software->vcpu[i].cpu);
        }
        lapic_bus_resume(software->lapics);
}

/* ---- making one ---- */

static void send_message(void *ctx, uint64_t address, uint32_t data)
{
        lapic_bus_message(((struct software *)ctx)->lapics, address, data);
}

static int software_probe(double *million_instructions_s, struct err *err)
{
        *million_instructions_s = 0;
        return 0;
}

static void software_free(struct accel *accel)
{
        struct software *software = to_software(accel);

        for (unsigned i = 0; software->vcpu && i < software->count; i++)
                x86_cpu_free(software->vcpu[i].cpu);
        lapic_bus_free(software->lapics);
        x86_complex_free(software->complex);
        free(software->vcpu);
        pthread_rwlock_destroy(&software->doorbells_lock);
        free(software);
}

static int make_vcpu(struct software *software, unsigned index, struct err *err)
{
        struct software_vcpu *vcpu = &software->vcpu[index];
        struct x86_state *state;
        int r;

        vcpu->vcpu = (struct accel_vcpu){ .accel = &software->accel, .index = index };
        vcpu->software = software;
        vcpu->lapic = lapic_bus_at(software->lapics, index);
        r = x86_cpu_new(software->complex, index, &software->model, &platform, vcpu, &vcpu->cpu, err);
        if (r < 0)
                return r;
        state = x86_cpu_state(vcpu->cpu);
        x86_state_reset(state, !index);
        state->tsc_offset = -software->paused_tsc; /* the guest's TSC starts at 0 */
        x86_cpu_state_changed(vcpu->cpu);
        lapic_connect(vcpu->lapic, &(struct lapic_processor){
                                           .interrupt = processor_interrupt,
                                           .nmi = processor_nmi,
                                           .init = processor_init,
                                           .sipi = processor_sipi,
                                           .tsc = processor_tsc,
                                           .ctx = vcpu,
                                   });
        return 0;
}

#define CODE_CACHE_BYTES (UINT64_C(64) << 20)

/* "auto" is content with the interpreter where the host does not let code be made. */
static int make_translator(struct software *software, const struct accel_options *options, struct err *err)
{
        const char *engine = options->cpu_engine ? options->cpu_engine : "auto";
        const struct translator_options translator = {
                .cache_bytes = options->code_cache_bytes ? options->code_cache_bytes : CODE_CACHE_BYTES,
                .perf_map = options->perf_map,
                .stats = options->cpu_stats,
                .lock_step = !strcmp(engine, "lock-step"),
        };
        struct err why = ERR_INIT;
        int r;

        if (!strcmp(engine, "interpreter"))
                return 0;
        r = x86_complex_translate(software->complex, &translator, &why);
        if (r < 0 && !strcmp(engine, "auto")) {
                log_warning("no translator (%s): guest code is interpreted, many times slower", why.text);
                return 0;
        }
        return r < 0 ? err_set(err, r, "%s", why.text) : 0;
}

static int make_all(struct software *software, const struct accel_options *options, struct err *err)
{
        int r = x86_model_init(&software->model, options->cpu_model ? options->cpu_model : "max", software->count, err);

        if (r >= 0)
                r = x86_complex_new(software->host->mem, &software->complex, err);
        if (r >= 0)
                r = make_translator(software, options, err);
        if (r >= 0)
                r = lapic_bus_new(software->host, software->count, software->model.tsc_frequency_hz, &software->lapics, err);
        if (r < 0)
                return r;
        software_pause(&software->accel);
        for (unsigned i = 0; i < software->count; i++) {
                r = make_vcpu(software, i, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int software_new(struct device_host *host, unsigned count, const struct accel_options *options, struct accel **accel, struct err *err)
{
        struct software *software = calloc(1, sizeof(*software));
        int r;

        if (!software)
                return err_nomem(err);
        *software = (struct software){ .accel.ops = &accel_software_ops, .host = host };
        pthread_rwlock_init(&software->doorbells_lock, NULL);
        software->vcpu = calloc(count, sizeof(*software->vcpu));
        if (!software->vcpu) {
                software_free(&software->accel);
                return err_nomem(err);
        }
        software->count = count;
        r = make_all(software, options, err);
        if (r < 0) {
                software_free(&software->accel);
                return r;
        }
        host->msi = (struct msi_target){ .send = send_message, .ctx = software };
        *accel = &software->accel;
        return 0;
}

static void software_connect_pic(struct accel *accel, int (*ack)(void *ctx), void *ctx)
{
        lapic_bus_connect_pic(to_software(accel)->lapics, ack, ctx);
}

static void software_extint(struct accel *accel, bool level)
{
        lapic_bus_extint(to_software(accel)->lapics, level);
}

static void software_connect_ioapic(struct accel *accel, void (*eoi)(void *ctx, uint8_t vector), void *ctx)
{
        lapic_bus_connect_ioapic(to_software(accel)->lapics, eoi, ctx);
}

static struct accel_vcpu *software_vcpu_at(struct accel *accel, unsigned index)
{
        return &to_software(accel)->vcpu[index].vcpu;
}

static uint64_t software_instructions(struct accel_vcpu *vcpu)
{
        return x86_cpu_instructions(to_vcpu(vcpu)->cpu);
}

static void software_stats(struct accel *accel, struct accel_vcpu *vcpu, char *text, size_t size_bytes)
{
        if (vcpu)
                x86_cpu_stats(to_vcpu(vcpu)->cpu, text, size_bytes);
        else
                x86_complex_stats(to_software(accel)->complex, text, size_bytes);
}

const struct accel_ops accel_software_ops = {
        .name = "software",
        .text = "a processor in software; runs anywhere",
        .probe = software_probe,
        .new = software_new,
        .free = software_free,
        .doorbell = software_doorbell,
        .connect_pic = software_connect_pic,
        .extint = software_extint,
        .connect_ioapic = software_connect_ioapic,
        .vcpu = software_vcpu_at,
        .run = software_run,
        .kick = software_kick,
        .get_state = software_get_state,
        .set_state = software_set_state,
        .reset = software_reset,
        .save = software_save,
        .load = software_load,
        .pause = software_pause,
        .resume = software_resume,
        .instructions = software_instructions,
        .stats = software_stats,
};
