/*
 * The run loop of one processor, and what other threads see of it.
 *
 * Between two blocks the processor is at an instruction boundary with s.rip valid; only there requests, interrupts and single
 * step are looked at, in the order of SDM vol. 3A table 6-2 as far as it can be observed. Within a block each handler calls the
 * next one's (insn.h, exec.h) and returns at the block's end; a chain of blocks is left when a request is up that could be acted
 * on (cpu->request_mask), so an interrupt waits for one block at most.
 *
 *      boundary() ──▶ block_enter() ──▶ handlers … ──▶ next block … ──▶ NULL: rip is set ──▶ boundary()
 *          ▲                                  │ x86_raise() unwinds
 *          └──────── x86_deliver_fault() ◀────┘
 *
 * INTERRUPT stays up while interrupts are closed. The mask leaves it out then, so that code with interrupts off runs at full
 * speed; whatever opens them (STI, POPF, IRET, CR8, the end of a shadow) leaves its block, and boundary() looks again.
 *
 * Halted, a processor first looks out for requests for a while (poll_halted()), because what it waits for is often another processor's next
 * step, and a thread of the host that sleeps wakes late. How long follows from how long it slept: a halt that was short makes it
 * longer, one that was long ends it, so that an idle guest costs nothing.
 *
 * Sleeping: x86_cpu_wait() sets cpu->wake and looks at the requests once more before it sleeps; x86_cpu_request() sets the
 * request and then takes wake away. Both orders are sequentially consistent, so one of the two sees the other.
 */
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "cpu/x86/block.h"
#include "cpu/x86/cpuid.h"
#include "cpu/x86/flags.h"
#include "cpu/x86/lock-step.h"
#include "cpu/x86/paravirt.h"
#include "cpu/x86/translator.h"

int x86_cpu_new(struct x86_complex *complex, unsigned index, const struct x86_model *model, const struct x86_platform *platform,
                void *ctx, struct x86_cpu **out, struct err *err)
{
        struct x86_cpu *cpu;
        int r = x86_cpu_map(&cpu, err);

        if (r < 0)
                return r;
        cpu->index = index;
        cpu->complex = complex;
        cpu->model = model;
        cpu->platform = platform;
        cpu->ctx = ctx;
        for (unsigned n = 0; n < CPUID_KNOWN; n++)
                cpu->cpuid[n].cr4 = UINT64_MAX;
        cpu->jit.tlb_mask = (uint64_t)(TLB_ENTRIES - 1) << GUEST_PAGE_SHIFT;
        r = complex_add(cpu, err);
        if (r < 0) {
                x86_cpu_unmap(cpu);
                return r;
        }
        cpu->translator = complex_translator(complex);
        r = translator_cpu_new(cpu, err);
        if (r == 0 && translator_lock_step(cpu->translator))
                r = lock_step_new(&cpu->lock_step, err);
        if (r == 0 && translator_wants_stats(cpu->translator))
                r = x86_stats_new(&cpu->stats, err);
        if (r == 0)
                r = block_cache_new(cpu, err);
        if (r == 0)
                r = paravirt_new(cpu, err);
        if (r < 0) {
                x86_cpu_free(cpu);
                return r;
        }
        x86_state_reset(&cpu->s, index == 0);
        x86_cpu_state_changed(cpu);
        *out = cpu;
        return 0;
}

void x86_cpu_free(struct x86_cpu *cpu)
{
        if (!cpu)
                return;
        complex_remove(cpu);
        paravirt_free(cpu);
        block_cache_free(cpu->blocks);
        translator_cpu_free(cpu);
        lock_step_free(cpu->lock_step);
        free(cpu->stats);
        x86_cpu_unmap(cpu);
}

/* ---- requests ---- */

static bool interrupts_open(const struct x86_cpu *cpu)
{
        return cpu->s.rflags & X86_FLAG_IF;
}

/* The requests that boundary() would act on in this state. */
uint32_t x86_request_mask(const struct x86_cpu *cpu)
{
        uint32_t mask = X86_REQUEST_INIT | X86_REQUEST_EXIT | X86_REQUEST_FLUSH | X86_REQUEST_PAUSE;

        /* A kick that comes before the HLT it is meant for stays up until then. */
        if (cpu->s.halted)
                mask |= X86_REQUEST_KICK;

        if (cpu->s.wait_for_sipi)
                return mask | X86_REQUEST_SIPI;
        if (!cpu->s.nmi_masked)
                mask |= X86_REQUEST_NMI;
        if (interrupts_open(cpu))
                mask |= X86_REQUEST_INTERRUPT;
        return mask;
}

void x86_cpu_request(struct x86_cpu *cpu, uint32_t requests)
{
        atomic_fetch_or(&cpu->requests, requests);
        atomic_store(&cpu->jit.go, 0);
        if (atomic_exchange(&cpu->wake, 0))
                syscall(SYS_futex, &cpu->wake, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void x86_cpu_sipi(struct x86_cpu *cpu, uint8_t vector)
{
        atomic_store(&cpu->sipi_vector, vector);
        x86_cpu_request(cpu, X86_REQUEST_SIPI);
}

/* Of the requests those that end a halt. */
static uint32_t wait_ends(const struct x86_cpu *cpu)
{
        return x86_request_mask(cpu) & ~(uint32_t)(X86_REQUEST_FLUSH | X86_REQUEST_PAUSE);
}

#define POLL_FIRST_US 10u
#define POLL_MOST_US 200u
#define POLL_LOOKS 32u /* between two looks at the clock, and chances for other threads of the host */

static uint64_t ticks_of_us(const struct x86_cpu *cpu, uint64_t us)
{
        return cpu->model->tsc_frequency_hz / 1000000 * us;
}

/* Whether a request that ends the halt came soon. Others need not wait for this processor meanwhile. */
static bool poll_halted(struct x86_cpu *cpu)
{
        uint32_t ends = wait_ends(cpu);
        bool came = false;

        cpu->halted_at = __builtin_ia32_rdtsc();
        if (!cpu->poll_ticks)
                return false;
        complex_leave(cpu);
        do {
                for (unsigned n = 0; n < POLL_LOOKS && !came; n++) {
                        __builtin_ia32_pause();
                        came = atomic_load_explicit(&cpu->requests, memory_order_relaxed) & ends;
                }
                if (!came)
                        sched_yield();
        } while (!came && __builtin_ia32_rdtsc() - cpu->halted_at < cpu->poll_ticks);
        complex_enter(cpu);
        return came;
}

/* How long the halt was decides how long to poll in the next. */
static void poll_adapt(struct x86_cpu *cpu)
{
        uint64_t halted = __builtin_ia32_rdtsc() - cpu->halted_at;

        if (halted > ticks_of_us(cpu, POLL_MOST_US))
                cpu->poll_ticks = 0;
        else if (halted > cpu->poll_ticks)
                cpu->poll_ticks = MIN(MAX(2 * cpu->poll_ticks, ticks_of_us(cpu, POLL_FIRST_US)), ticks_of_us(cpu, POLL_MOST_US));
}

void x86_cpu_wait(struct x86_cpu *cpu)
{
        uint32_t ends = wait_ends(cpu);

        for (;;) {
                atomic_store(&cpu->wake, 1);
                if (atomic_load(&cpu->requests) & ends)
                        break;
                syscall(SYS_futex, &cpu->wake, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
        }
        atomic_store(&cpu->wake, 0);
        poll_adapt(cpu);
}

static void request_clear(struct x86_cpu *cpu, uint32_t requests)
{
        atomic_fetch_and(&cpu->requests, ~requests);
}

/* ---- the boundary between instructions ---- */

enum boundary { BOUNDARY_RUN, BOUNDARY_EXIT, BOUNDARY_HALTED, BOUNDARY_SHUTDOWN };

static int deliver_interrupt(struct x86_cpu *cpu)
{
        int vector;

        /* Cleared first: a request that comes while the controller is asked is not lost. */
        request_clear(cpu, X86_REQUEST_INTERRUPT);
        vector = cpu->platform->interrupt_ack(cpu->ctx);
        if (vector < 0)
                return 0;
        atomic_fetch_or(&cpu->requests, X86_REQUEST_INTERRUPT); /* there may be more */
        cpu->s.halted = false;
        return x86_deliver(cpu, (unsigned)vector, false, false, 0);
}

static int deliver_nmi(struct x86_cpu *cpu)
{
        request_clear(cpu, X86_REQUEST_NMI);
        cpu->s.nmi_pending = false;
        cpu->s.nmi_masked = true;
        cpu->s.halted = false;
        return x86_deliver(cpu, X86_NMI, false, false, 0);
}

static int deliver_pending(struct x86_cpu *cpu)
{
        cpu->s.exception_pending = false;
        cpu->s.halted = false;
        cpu->fault = (struct x86_fault){ .vector = cpu->s.exception_vector };
        return x86_deliver(cpu, cpu->s.exception_vector, false, cpu->s.exception_has_error, cpu->s.exception_error);
}

static void start_up(struct x86_cpu *cpu)
{
        request_clear(cpu, X86_REQUEST_SIPI);
        if (cpu->s.wait_for_sipi)
                x86_sipi_received(cpu, atomic_load(&cpu->sipi_vector));
}

/* One event at most is delivered; the caller comes back until there is none. */
static int deliver_event(struct x86_cpu *cpu, uint32_t requests, bool *delivered)
{
        bool shadow = cpu->s.interrupt_shadow;

        *delivered = true;
        if (cpu->s.exception_pending)
                return deliver_pending(cpu);
        if ((requests & X86_REQUEST_NMI || cpu->s.nmi_pending) && !cpu->s.nmi_masked && !shadow)
                return deliver_nmi(cpu);
        if (requests & X86_REQUEST_INTERRUPT && interrupts_open(cpu) && !shadow)
                return deliver_interrupt(cpu);
        *delivered = false;
        return 0;
}

static enum boundary boundary(struct x86_cpu *cpu)
{
        for (;;) {
                uint32_t requests;
                bool delivered;

                /* Before looking at the requests: one that comes afterwards is seen there or clears it again. */
                atomic_store(&cpu->jit.go, 1);
                requests = atomic_load_explicit(&cpu->requests, memory_order_acquire);

                if (requests & (X86_REQUEST_FLUSH | X86_REQUEST_PAUSE))
                        complex_service(cpu);
                if (requests & X86_REQUEST_INIT) {
                        request_clear(cpu, X86_REQUEST_INIT);
                        x86_init_received(cpu);
                        /* The owner resets the local APIC before a SIPI, which may be there already, starts the processor. */
                        return BOUNDARY_EXIT;
                }
                if (requests & X86_REQUEST_SIPI) {
                        start_up(cpu);
                        continue;
                }
                if (requests & X86_REQUEST_KICK && cpu->s.halted) {
                        request_clear(cpu, X86_REQUEST_KICK);
                        cpu->s.halted = false;
                }
                if (requests & X86_REQUEST_EXIT) {
                        request_clear(cpu, X86_REQUEST_EXIT);
                        return BOUNDARY_EXIT;
                }
                if (cpu->s.wait_for_sipi)
                        return BOUNDARY_HALTED;
                if (deliver_event(cpu, requests, &delivered) < 0)
                        return BOUNDARY_SHUTDOWN;
                if (delivered)
                        continue;
                if (cpu->s.halted)
                        return BOUNDARY_HALTED;
                break;
        }
        cpu->request_mask = x86_request_mask(cpu);
        return BOUNDARY_RUN;
}

/* ---- running ---- */

/* One block and those chained to it. */
void block_run(struct x86_cpu *cpu)
{
        const struct insn *i = block_enter(cpu);

        x86_expect_vectors_out(cpu);
        do {
                cpu->insn = i;
                i = i->fn(cpu, i);
        } while (i);
        cpu->block = NULL;
}

/* Translated code, or the interpreter where there is none: cold blocks, odd modes, and what the translator asks for. */
static void run_any(struct x86_cpu *cpu)
{
        const struct tblock *block = NULL;

        if (cpu->translator && cpu->mode64 && cpu->tlb_mode != TLB_CHECKED && !cpu->jit.interpret)
                block = translator_find(cpu);
        cpu->jit.interpret = false;
        stats_phase(cpu->stats, block ? X86_IN_TRANSLATED : X86_INTERPRETING);
        if (!block)
                block_run(cpu);
        else if (unlikely(cpu->lock_step))
                lock_step_run(cpu, block);
        else
                translator_enter(cpu, block);
}

static void run_step(struct x86_cpu *cpu)
{
        cpu->s.interrupt_shadow = false;
        cpu->request_mask = x86_request_mask(cpu);
        x86_step_begin(cpu);
        block_run(cpu);
        x86_step_end(cpu);
}

/*
 * The instruction after a shadow, alone when something waits for the shadow's end: STI, NOP, CLI lets a waiting interrupt in
 * (SDM vol. 2B "STI"). A fault in it recomputes the mode by being delivered.
 */
static void run_shadowed(struct x86_cpu *cpu)
{
        cpu->s.interrupt_shadow = false;
        cpu->request_mask = x86_request_mask(cpu);
        if (!block_interrupted(cpu)) {
                run_any(cpu);
                return;
        }
        cpu->mode_key |= MODE_STEP;
        block_run(cpu);
        x86_mode_changed(cpu);
}

/* A fault unwound to here: back to the instruction that raised it. -1: triple fault. */
static int recover(struct x86_cpu *cpu)
{
        if (cpu->block) {
                cpu->s.rip = insn_rip(cpu, cpu->insn->start);
                cpu->block = NULL;
        } else if (cpu->translator) {
                translator_recover(cpu);
        }
        return x86_deliver_fault(cpu);
}

enum x86_exit x86_cpu_run(struct x86_cpu *cpu)
{
        enum x86_exit reason;

        if (cpu->translator)
                translator_thread_begin(cpu);
        stats_phase(cpu->stats, X86_INTERPRETING);
        complex_enter(cpu);
        paravirt_enter(cpu);
        if (_setjmp(cpu->unwind) && recover(cpu) < 0) {
                paravirt_leave(cpu);
                complex_leave(cpu);
                return X86_EXIT_SHUTDOWN;
        }
        for (;;) {
                switch (boundary(cpu)) {
                case BOUNDARY_RUN:
                        if (unlikely(cpu->mode_key & MODE_STEP))
                                run_step(cpu);
                        else if (unlikely(cpu->s.interrupt_shadow))
                                run_shadowed(cpu);
                        else
                                run_any(cpu);
                        continue;
                case BOUNDARY_EXIT:
                        reason = X86_EXIT_REQUESTED;
                        break;
                case BOUNDARY_HALTED:
                        if (poll_halted(cpu))
                                continue;
                        reason = X86_EXIT_HALTED;
                        break;
                default:
                        reason = X86_EXIT_SHUTDOWN;
                        break;
                }
                break;
        }
        paravirt_leave(cpu);
        complex_leave(cpu);
        stats_phase(cpu->stats, X86_OUT);
        return reason;
}

/* ---- state ---- */

struct x86_state *x86_cpu_state(struct x86_cpu *cpu)
{
        cpu->s.rflags = x86_flags(cpu);
        return &cpu->s;
}

void x86_cpu_state_changed(struct x86_cpu *cpu)
{
        cpu->s.gpr[GPR_ZERO] = 0;
        cpu->block = NULL;
        x86_set_flags(cpu, cpu->s.rflags);
        x86_mode_changed(cpu);
        mmu_flush(cpu, true);
        mmu_load_pdpte(cpu, cpu->s.cr0, cpu->s.cr3, cpu->s.cr4);
        if (cpu->s.nmi_pending) {
                cpu->s.nmi_pending = false;
                atomic_fetch_or(&cpu->requests, X86_REQUEST_NMI);
        }
        paravirt_refresh(cpu);
}

uint64_t x86_cpu_tsc_offset(const struct x86_cpu *cpu)
{
        return __atomic_load_n(&cpu->s.tsc_offset, __ATOMIC_RELAXED);
}

uint64_t x86_cpu_instructions(const struct x86_cpu *cpu)
{
        return atomic_load_explicit(&cpu->instructions, memory_order_relaxed);
}
