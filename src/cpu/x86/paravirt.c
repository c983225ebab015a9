/*
 * KVM's paravirtual interface: what a stock Linux guest uses with no change.
 *
 * Clock. The guest computes  time = system_time + ((tsc - tsc_timestamp) scaled by mul and shift). All processors get the same
 * scale from the same TSC frequency, and tsc_timestamp and system_time come from one pair taken when the machine's first clock
 * was set up, moved on exactly by that scale; so the clocks of all processors agree and the flag "TSC stable" is true. The
 * version is odd while the structure is written.
 *
 * Steal time is what the thread was runnable but did not run: wall time inside run minus the thread's CPU time, refreshed when
 * the processor stops running and every few milliseconds at an interrupt.
 *
 * TLB flushes: while the processor does not run its steal-time record says "preempted"; others then leave a flush request in
 * that byte in place of an interrupt, and it is obeyed before the processor runs again.
 *
 * Source: Documentation/virt/kvm/x86/msr.rst, hypercalls.rst, cpuid.rst; the structures are those of asm/kvm_para.h.
 */
#include "cpu/x86/paravirt.h"

#include <errno.h>
#include <time.h>

#include "cpu/x86/cpuid.h"
#include "cpu/x86/system.h"

#define CLOCK_TSC_STABLE 1u
#define STEAL_PREEMPTED 1u
#define STEAL_FLUSH_TLB 2u
#define STEAL_REFRESH_NS 5000000u

struct pv_time {
        uint32_t version;
        uint32_t pad0;
        uint64_t tsc_timestamp;
        uint64_t system_time;
        uint32_t tsc_to_system_mul;
        int8_t tsc_shift;
        uint8_t flags;
        uint8_t pad[2];
};

struct pv_wall {
        uint32_t version;
        uint32_t sec;
        uint32_t nsec;
};

struct pv_steal {
        uint64_t steal;
        uint32_t version;
        uint32_t flags;
        uint8_t preempted;
        uint8_t u8_pad[3];
        uint32_t pad[11];
};

_Static_assert(sizeof(struct pv_time) == 32 && sizeof(struct pv_steal) == 64, "layouts of the KVM interface");

struct paravirt {
        uint32_t mul;       /* ns = ((tsc << shift) * mul) >> 32 */
        int8_t shift;
        uint64_t wall_ns;   /* CLOCK_MONOTONIC and thread CPU time at the last look, 0 before the first */
        uint64_t cpu_ns;
        uint64_t steal_ns;
        uint64_t next_tsc;  /* host TSC of the next refresh while running */
};

static uint64_t clock_ns(clockid_t id)
{
        struct timespec t;

        clock_gettime(id, &t);
        return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* mul and shift such that ns = ((ticks << shift) * mul) >> 32, with mul as large as fits. */
static void scale_for(uint64_t hz, uint32_t *mul, int8_t *shift)
{
        uint64_t ns = 1000000000u, ticks = hz;
        int8_t s = 0;

        while (ticks > ns * 2) {
                ticks >>= 1;
                s--;
        }
        while (ticks <= ns) {
                ticks <<= 1;
                s++;
        }
        *shift = s;
        *mul = (uint32_t)((ns << 32) / ticks);
}

static uint64_t scaled(const struct paravirt *pv, uint64_t ticks)
{
        ticks = pv->shift < 0 ? ticks >> -pv->shift : ticks << pv->shift;
        return (uint64_t)((unsigned __int128)ticks * pv->mul >> 32);
}

int paravirt_new(struct x86_cpu *cpu, struct err *err)
{
        struct paravirt *pv = calloc(1, sizeof(*pv));

        if (!pv)
                return err_nomem(err);
        scale_for(cpu->model->tsc_frequency_hz ? cpu->model->tsc_frequency_hz : 1000000000u, &pv->mul, &pv->shift);
        cpu->paravirt = pv;
        return 0;
}

void paravirt_free(struct x86_cpu *cpu)
{
        free(cpu->paravirt);
        cpu->paravirt = NULL;
}

/* A structure of the guest that lies in RAM and does not cross a region; NULL when it does. */
static void *shared(struct x86_cpu *cpu, uint64_t gpa, size_t size_bytes)
{
        const struct guest_region *region = guest_memory_find(cpu->mem, gpa);

        return region && !region->readonly && gpa % 4 == 0 ? guest_memory_at(cpu->mem, gpa, size_bytes) : NULL;
}

/* ---- clock ---- */

/*
 * The guest's time is its TSC scaled: system_time 0 belongs to TSC 0 of the guest. A guest that writes its TSC moves its clock
 * with it, as without a hypervisor; state loading keeps tsc_offset so that the guest's TSC goes on from where it was.
 */
static void write_clock(struct x86_cpu *cpu)
{
        uint64_t gpa = cpu->s.pv_system_time & ~3ull, tsc;
        struct pv_time *at;
        uint32_t version;

        if (!(cpu->s.pv_system_time & 1))
                return;
        at = shared(cpu, gpa, sizeof(*at));
        if (!at)
                return;
        tsc = x86_tsc(cpu);
        version = (__atomic_load_n(&at->version, __ATOMIC_RELAXED) & ~1u) + 1;
        __atomic_store_n(&at->version, version, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        at->system_time = scaled(cpu->paravirt, tsc - cpu->s.tsc_adjust);
        at->tsc_timestamp = tsc;
        at->tsc_to_system_mul = cpu->paravirt->mul;
        at->tsc_shift = cpu->paravirt->shift;
        at->flags = CLOCK_TSC_STABLE;
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        __atomic_store_n(&at->version, version + 1, __ATOMIC_RELEASE);
        guest_memory_written(cpu->mem, gpa, sizeof(*at));
}

/* The wall-clock time at which system time was 0. */
static void write_wall_clock(struct x86_cpu *cpu, uint64_t gpa)
{
        uint64_t boot = clock_ns(CLOCK_REALTIME) - scaled(cpu->paravirt, x86_tsc(cpu) - cpu->s.tsc_adjust);
        struct pv_wall *at = shared(cpu, gpa, sizeof(*at));
        uint32_t version;

        if (!at)
                return;
        version = (__atomic_load_n(&at->version, __ATOMIC_RELAXED) & ~1u) + 1;
        __atomic_store_n(&at->version, version, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        at->sec = (uint32_t)(boot / 1000000000u);
        at->nsec = (uint32_t)(boot % 1000000000u);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        __atomic_store_n(&at->version, version + 1, __ATOMIC_RELEASE);
        guest_memory_written(cpu->mem, gpa, sizeof(*at));
}

void paravirt_refresh(struct x86_cpu *cpu)
{
        if (cpu->paravirt)
                write_clock(cpu);
}

/* ---- steal time ---- */

static struct pv_steal *steal_record(struct x86_cpu *cpu)
{
        return cpu->s.pv_steal_time & 1 ? shared(cpu, cpu->s.pv_steal_time & ~63ull, sizeof(struct pv_steal)) : NULL;
}

/* Adds what was stolen since the last look. */
static void look(struct paravirt *pv)
{
        uint64_t wall = clock_ns(CLOCK_MONOTONIC), ran = clock_ns(CLOCK_THREAD_CPUTIME_ID);

        if (pv->wall_ns && wall - pv->wall_ns > ran - pv->cpu_ns)
                pv->steal_ns += (wall - pv->wall_ns) - (ran - pv->cpu_ns);
        pv->wall_ns = wall;
        pv->cpu_ns = ran;
        pv->next_tsc = __builtin_ia32_rdtsc() + STEAL_REFRESH_NS; /* a TSC of 1 to 5 GHz: 1 to 5 ms */
}

static void write_steal(struct x86_cpu *cpu, struct pv_steal *at)
{
        uint32_t version = (__atomic_load_n(&at->version, __ATOMIC_RELAXED) & ~1u) + 1;

        __atomic_store_n(&at->version, version, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        __atomic_store_n(&at->steal, cpu->paravirt->steal_ns, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        __atomic_store_n(&at->version, version + 1, __ATOMIC_RELEASE);
}

void paravirt_enter(struct x86_cpu *cpu)
{
        struct pv_steal *at;

        if (!cpu->paravirt || !(at = steal_record(cpu)))
                return;
        if (__atomic_exchange_n(&at->preempted, 0, __ATOMIC_SEQ_CST) & STEAL_FLUSH_TLB)
                mmu_flush(cpu, true);
        cpu->paravirt->wall_ns = 0; /* time asleep is not stolen */
        look(cpu->paravirt);
}

void paravirt_leave(struct x86_cpu *cpu)
{
        struct pv_steal *at;

        if (!cpu->paravirt || !(at = steal_record(cpu)))
                return;
        look(cpu->paravirt);
        write_steal(cpu, at);
        __atomic_store_n(&at->preempted, STEAL_PREEMPTED, __ATOMIC_SEQ_CST);
}

void paravirt_tick(struct x86_cpu *cpu)
{
        struct paravirt *pv = cpu->paravirt;
        struct pv_steal *at;

        if (likely(!pv || !(cpu->s.pv_steal_time & 1) || (int64_t)(__builtin_ia32_rdtsc() - pv->next_tsc) < 0))
                return;
        look(pv);
        at = steal_record(cpu);
        if (at)
                write_steal(cpu, at);
}

/* ---- MSRs ---- */

int paravirt_msr_read(struct x86_cpu *cpu, uint32_t index, uint64_t *value)
{
        switch (index) {
        case PV_MSR_WALL_CLOCK_OLD:
        case PV_MSR_WALL_CLOCK:
                *value = cpu->s.pv_wall_clock;
                return 0;
        case PV_MSR_SYSTEM_TIME_OLD:
        case PV_MSR_SYSTEM_TIME:
                *value = cpu->s.pv_system_time;
                return 0;
        case PV_MSR_STEAL_TIME:
                *value = cpu->s.pv_steal_time;
                return 0;
        default:
                return -EPERM;
        }
}

int paravirt_msr_write(struct x86_cpu *cpu, uint32_t index, uint64_t value)
{
        if (!cpu->paravirt)
                return -EPERM;
        switch (index) {
        case PV_MSR_WALL_CLOCK_OLD:
        case PV_MSR_WALL_CLOCK:
                cpu->s.pv_wall_clock = value;
                write_wall_clock(cpu, value);
                return 0;
        case PV_MSR_SYSTEM_TIME_OLD:
        case PV_MSR_SYSTEM_TIME:
                cpu->s.pv_system_time = value;
                write_clock(cpu);
                return 0;
        case PV_MSR_STEAL_TIME:
                if (value & 0x3e) /* bits 1-5 are reserved */
                        return -EPERM;
                cpu->s.pv_steal_time = value;
                paravirt_enter(cpu);
                return 0;
        default:
                return -EPERM;
        }
}

/* ---- hypercalls ---- */

#define HYPERCALL_VAPIC_POLL_IRQ 1

void paravirt_hypercall(struct x86_cpu *cpu)
{
        uint64_t nr = cpu->s.gpr[X86_RAX], arg[4] = { cpu->s.gpr[X86_RBX], cpu->s.gpr[X86_RCX], cpu->s.gpr[X86_RDX], cpu->s.gpr[X86_RSI] };
        int64_t result;

        if (!cpu->mode64) {
                nr = (uint32_t)nr;
                for (unsigned i = 0; i < 4; i++)
                        arg[i] = (uint32_t)arg[i];
        }
        if (cpu->cpl != 0) {
                result = -EPERM;
        } else if (nr == HYPERCALL_VAPIC_POLL_IRQ) {
                result = 0;
        } else {
                complex_leave(cpu);
                result = cpu->platform->hypercall(cpu->ctx, nr, arg);
                complex_enter(cpu);
        }
        cpu->s.gpr[X86_RAX] = cpu->mode64 ? (uint64_t)result : (uint32_t)result;
}
