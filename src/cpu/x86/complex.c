/*
 * All processors of one machine: who is in the guest, being alone, and taking write translations away.
 *
 * Each processor has a word `in_guest`: while it is set the processor may use translations that it has looked up.
 *
 *              enter (waits while another is alone, flushes when asked)
 *      outside ─────────────────────────────────────────────────────────▶ in guest
 *              ◀─────────────────────────────────────────────────────────
 *              leave: halt, platform call, return from run, waiting here
 *
 * Being alone (split locks, locked accesses to what is not plain RAM): the processor leaves, takes alone_lock, sets `alone`,
 * asks all others to pause and waits until each is outside. Nobody enters while `alone` is set.
 *
 * Taking write translations of a page away (it becomes code): only processors that have one are asked to flush and waited
 * for. The one that waits is outside meanwhile, so two that do it at once do not wait for each other for ever. A processor that
 * is outside flushes when it enters.
 *
 * Words are written and then the other side's word is read, all sequentially consistent, so that of two racing sides one sees
 * the other. The mutex is for sleeping only.
 */
#include "cpu/x86/system.h"
#include "cpu/x86/translator.h"

#include <errno.h>
#include <pthread.h>

struct x86_complex {
        struct guest_memory *mem;
        struct translator *translator; /* NULL: processors interpret */
        pthread_mutex_t alone_lock; /* held by the one that is alone */
        pthread_mutex_t lock;       /* for changed */
        pthread_cond_t changed;     /* alone ended, someone left or flushed */
        _Atomic uint32_t alone;
        _Atomic uint32_t waiters;   /* sleeping on changed */
        _Atomic uint32_t drops;     /* complex_drop_writers() under way */
        unsigned cpus;              /* present */
        struct x86_cpu *cpu[COMPLEX_CPUS_MAX];
};

int x86_complex_new(struct guest_memory *mem, struct x86_complex **complex, struct err *err)
{
        struct x86_complex *c = calloc(1, sizeof(*c));

        if (!c)
                return err_nomem(err);
        c->mem = mem;
        pthread_mutex_init(&c->alone_lock, NULL);
        pthread_mutex_init(&c->lock, NULL);
        pthread_cond_init(&c->changed, NULL);
        *complex = c;
        return 0;
}

void x86_complex_free(struct x86_complex *complex)
{
        if (!complex)
                return;
        translator_free(complex->translator);
        pthread_mutex_destroy(&complex->alone_lock);
        pthread_mutex_destroy(&complex->lock);
        pthread_cond_destroy(&complex->changed);
        free(complex);
}

int x86_complex_translate(struct x86_complex *complex, const struct translator_options *options, struct err *err)
{
        return translator_new(complex, options, &complex->translator, err);
}

struct translator *complex_translator(const struct x86_complex *complex)
{
        return complex->translator;
}

struct x86_cpu *complex_cpu(const struct x86_complex *complex, unsigned index)
{
        return index < COMPLEX_CPUS_MAX ? __atomic_load_n(&complex->cpu[index], __ATOMIC_RELAXED) : NULL;
}

/* Sets a bit that the other one looks at soon. */
static void ask(struct x86_cpu *other, uint32_t request)
{
        atomic_fetch_or(&other->requests, request);
        atomic_store(&other->jit.go, 0);
}

struct guest_memory *complex_memory(const struct x86_complex *complex)
{
        return complex->mem;
}

int complex_add(struct x86_cpu *cpu, struct err *err)
{
        struct x86_complex *c = cpu->complex;
        int r = 0;

        cpu->mem = c->mem;
        mmu_reset(cpu);
        pthread_mutex_lock(&c->lock);
        if (cpu->index >= COMPLEX_CPUS_MAX)
                r = err_set(err, -ENOSPC, "processor %u is past the last, %d", cpu->index, COMPLEX_CPUS_MAX - 1);
        else if (c->cpu[cpu->index])
                r = err_set(err, -EEXIST, "processor %u is there already", cpu->index);
        else
                c->cpu[cpu->index] = cpu;
        if (!r)
                c->cpus++;
        for (unsigned i = 0; i < COMPLEX_CPUS_MAX && c->cpus > 1; i++)
                if (c->cpu[i])
                        c->cpu[i]->has_others = true; /* all are added before the first one runs */
        pthread_mutex_unlock(&c->lock);
        return r;
}

void complex_remove(struct x86_cpu *cpu)
{
        struct x86_complex *c = cpu->complex;

        pthread_mutex_lock(&c->lock);
        if (cpu->index < COMPLEX_CPUS_MAX && c->cpu[cpu->index] == cpu) {
                c->cpu[cpu->index] = NULL;
                c->cpus--;
        }
        pthread_mutex_unlock(&c->lock);
}

struct x86_cpu *complex_at(struct x86_cpu *cpu, unsigned index)
{
        return index < COMPLEX_CPUS_MAX ? cpu->complex->cpu[index] : NULL;
}

static void wake_waiters(struct x86_complex *c)
{
        if (!atomic_load(&c->waiters))
                return;
        pthread_mutex_lock(&c->lock);
        pthread_cond_broadcast(&c->changed);
        pthread_mutex_unlock(&c->lock);
}

void complex_leave(struct x86_cpu *cpu)
{
        if (cpu->alone)
                return;
        atomic_store(&cpu->in_guest, 0);
        wake_waiters(cpu->complex);
}

static void sleep_while_alone(struct x86_complex *c)
{
        pthread_mutex_lock(&c->lock);
        atomic_fetch_add(&c->waiters, 1);
        while (atomic_load(&c->alone))
                pthread_cond_wait(&c->changed, &c->lock);
        atomic_fetch_sub(&c->waiters, 1);
        pthread_mutex_unlock(&c->lock);
}

static void flush_if_asked(struct x86_cpu *cpu)
{
        if (!(atomic_load(&cpu->requests) & X86_REQUEST_FLUSH))
                return;
        mmu_flush(cpu, true);
        atomic_fetch_and(&cpu->requests, ~(uint32_t)X86_REQUEST_FLUSH);
        wake_waiters(cpu->complex);
}

void complex_enter(struct x86_cpu *cpu)
{
        if (cpu->alone)
                return;
        for (;;) {
                atomic_store(&cpu->in_guest, 1);
                if (likely(!atomic_load(&cpu->complex->alone)))
                        break;
                complex_leave(cpu);
                sleep_while_alone(cpu->complex);
        }
        flush_if_asked(cpu);
}

void complex_service(struct x86_cpu *cpu)
{
        atomic_fetch_and(&cpu->requests, ~(uint32_t)X86_REQUEST_PAUSE);
        complex_leave(cpu);
        complex_enter(cpu);
}

/* Sleeps until other is outside, or (flush) has acted on FLUSH. The caller is outside. */
static void wait_for(struct x86_complex *c, struct x86_cpu *other, bool flush)
{
        if (!atomic_load(&other->in_guest))
                return;
        pthread_mutex_lock(&c->lock);
        atomic_fetch_add(&c->waiters, 1);
        while (atomic_load(&other->in_guest) && (!flush || atomic_load(&other->requests) & X86_REQUEST_FLUSH))
                pthread_cond_wait(&c->changed, &c->lock);
        atomic_fetch_sub(&c->waiters, 1);
        pthread_mutex_unlock(&c->lock);
}

void complex_exclusive_begin(struct x86_cpu *cpu)
{
        struct x86_complex *c = cpu->complex;

        if (cpu->alone)
                return;
        complex_leave(cpu);
        pthread_mutex_lock(&c->alone_lock);
        atomic_store(&c->alone, 1);
        for (unsigned i = 0; i < COMPLEX_CPUS_MAX && c->cpus > 1; i++) {
                struct x86_cpu *other = c->cpu[i];

                if (!other || other == cpu)
                        continue;
                ask(other, X86_REQUEST_PAUSE);
                wait_for(c, other, false);
        }
        cpu->alone = true;
        flush_if_asked(cpu);
}

void complex_exclusive_end(struct x86_cpu *cpu)
{
        struct x86_complex *c = cpu->complex;

        if (!cpu->alone)
                return;
        cpu->alone = false;
        atomic_store(&c->alone, 0);
        pthread_mutex_unlock(&c->alone_lock);
        wake_waiters(c);
        complex_enter(cpu);
}

bool complex_drops_pending(const struct x86_cpu *cpu)
{
        return atomic_load(&cpu->complex->drops);
}

void complex_drop_writers(struct x86_cpu *cpu, uint64_t gpa)
{
        struct x86_complex *c = cpu->complex;

        if (c->cpus < 2 || cpu->alone)
                return;
        atomic_fetch_add(&c->drops, 1);
        for (unsigned i = 0; i < COMPLEX_CPUS_MAX; i++) {
                struct x86_cpu *other = c->cpu[i];

                if (!other || other == cpu || !mmu_holds_write_tag(other, gpa))
                        continue;
                ask(other, X86_REQUEST_FLUSH);
                complex_leave(cpu);
                wait_for(c, other, true);
                complex_enter(cpu);
        }
        atomic_fetch_sub(&c->drops, 1);
}
