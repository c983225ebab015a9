/*
 * Signals in translated code, and what a thread needs to run it.
 *
 * Three kinds are the guest's or ours; everything else crashes as it would without a translator.
 *
 *      a TSITE_FAULT      DIV overflowed (SIGFPE), an SSE operand was not aligned (SIGSEGV), a SIMD exception is not masked (SIGFPE):
 *                         execution is bent to the HANDLER thunk with that site, so the interpreter's handler finds out what it is
 *      the shadow stack   ran over its end: it is emptied, but for the word that was pushed last, and the instruction is done again
 *
 * In translated code RSP is not the thread's stack, so signals are taken on one of their own.
 *
 * GS base is the processor's struct. Programs have GS to themselves on x86-64 Linux; it is kept over switches of threads.
 */
#include "cpu/x86/translator-internal.h"

#include <asm/prctl.h>
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static const int signals[] = { SIGSEGV, SIGBUS, SIGFPE };

#define HWCAP2_FSGSBASE (1u << 1)

/* What the signal handler goes by: a handler has no argument of its own. */
static _Thread_local struct x86_cpu *running;

static void set_gs_base(uintptr_t base)
{
        if (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE)
                __asm__ volatile("wrgsbase %0" ::"r"(base));
        else
                syscall(SYS_arch_prctl, ARCH_SET_GS, base);
}

void translator_thread_begin(struct x86_cpu *cpu)
{
        sigset_t ours;
        stack_t stack = { .ss_sp = cpu->jit.signal_stack, .ss_size = TSIGNAL_STACK_BYTES };

        set_gs_base(cpu->window);
        if (running == cpu)
                return;
        sigaltstack(&stack, NULL);
        sigemptyset(&ours);
        for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
                sigaddset(&ours, signals[i]);
        pthread_sigmask(SIG_UNBLOCK, &ours, NULL);
        running = cpu;
}

/* ---- the handler ---- */

static bool fault_site(struct translator *tr, uint32_t host, uint32_t *number)
{
        const struct tblock *block = translator_block_at(tr, host);
        struct tsite site;

        if (!block)
                return false;
        for (unsigned own = 1; own <= block->sites; own += tsite_units(site.kind)) {
                site = tblock_site(tr, block, own);
                if (site.kind == TSITE_FAULT && block->host + site.patch == host) {
                        *number = tblock_number(tr, block) << TNUMBER_BITS | own;
                        return true;
                }
        }
        return false;
}

/* Pushes come in pairs: with half of one on the stack, that word moves to the base with RSP. */
static bool empty_shadow(struct x86_cpu *cpu, greg_t *regs, uintptr_t address)
{
        struct x86_jit *jit = &cpu->jit;
        uintptr_t map = (uintptr_t)jit->shadow_map, rsp = (uintptr_t)regs[REG_RSP];

        if (address - map >= jit->shadow_map_size || rsp - map >= jit->shadow_map_size)
                return false;
        if ((jit->shadow_base - rsp) % 16) {
                *(uint64_t *)(jit->shadow_base - 8) = *(const uint64_t *)rsp;
                regs[REG_RSP] = (greg_t)(jit->shadow_base - 8);
        } else {
                regs[REG_RSP] = (greg_t)jit->shadow_base;
        }
        return true;
}

static bool guests_fault(struct x86_cpu *cpu, const siginfo_t *info, ucontext_t *context)
{
        struct translator *tr = cpu->translator;
        greg_t *regs = context->uc_mcontext.gregs;
        uint32_t host, number;

        if (!code_cache_holds(tr->cache, (uintptr_t)regs[REG_RIP], &host))
                return false;
        if (info->si_signo == SIGSEGV && empty_shadow(cpu, regs, (uintptr_t)info->si_addr))
                return true;
        if (!fault_site(tr, host, &number))
                return false;
        regs[REG_RCX] = number;
        regs[REG_RIP] = (greg_t)(uintptr_t)code_cache_rx(tr->cache, tr->thunk[TTHUNK_HANDLER]);
        return true;
}

static void on_signal(int signal_number, siginfo_t *info, void *context)
{
        struct sigaction standard = { .sa_handler = SIG_DFL };

        if (running && info->si_code > 0 && guests_fault(running, info, context))
                return;
        /* Not ours: it happens again, without a handler. */
        sigaction(signal_number, &standard, NULL);
        if (info->si_code <= 0)
                raise(signal_number);
}

int translator_signals_install(struct err *err)
{
        struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK };

        sigemptyset(&action.sa_mask);
        for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
                if (sigaction(signals[i], &action, NULL) < 0)
                        return err_errno(err, -errno, "cannot take signal %d", signals[i]);
        return 0;
}
