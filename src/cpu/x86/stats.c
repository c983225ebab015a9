/*
 * Where a processor's time went (--cpu-stats, the monitor's "cpus"): counts that are kept anyway, and, when they are asked for, ticks
 * of the host's time stamp counter for each thing that a processor's thread does, and handlers by instruction.
 */
#include "cpu/x86/stats.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "cpu/x86/translator-internal.h"

#define TOP 12u /* instructions that are listed */

int x86_stats_new(struct x86_stats **out, struct err *err)
{
        struct x86_stats *stats = calloc(1, sizeof(*stats));

        if (!stats)
                return err_nomem(err);
        stats->since = __rdtsc();
        *out = stats;
        return 0;
}

struct text {
        char *at;
        size_t left;
};

static void say(struct text *text, const char *format, ...) _printf_(2, 3);

static void say(struct text *text, const char *format, ...)
{
        va_list args;
        int n;

        va_start(args, format);
        n = vsnprintf(text->at, text->left, format, args);
        va_end(args);
        n = n < 0 ? 0 : (int)MIN((size_t)n, text->left ? text->left - 1 : 0);
        text->at += n;
        text->left -= (size_t)n;
}

static void say_times(struct text *text, const struct x86_cpu *cpu, const struct x86_stats *stats)
{
        static const char *const names[X86_PHASES] = {
                [X86_IN_TRANSLATED] = "in translated code and its services", [X86_INTERPRETING] = "interpreting",
                [X86_TRANSLATING] = "translating", [X86_OUT] = "halted or out",
        };
        uint64_t all = 0;

        for (unsigned phase = 0; phase < X86_PHASES; phase++)
                all += stats->ticks[phase];
        say(text, "cpu %u:", cpu->index);
        for (unsigned phase = X86_PHASES; all && phase-- > 0;)
                say(text, " %.1f %% %s%s", 100.0 * (double)stats->ticks[phase] / (double)all, names[phase], phase ? "," : "");
        say(text, "\n");
}

static void say_handlers(struct text *text, const struct x86_cpu *cpu, const struct x86_stats *stats)
{
        uint64_t most = UINT64_MAX;

        say(text, "cpu %u: interpreter's handlers:", cpu->index);
        for (unsigned n = 0; n < TOP; n++) {
                unsigned found = 0;
                uint64_t best = 0;

                for (unsigned op = 0; op < ARRAY_SIZE(stats->handler); op++)
                        if (stats->handler[op] > best && stats->handler[op] < most) {
                                best = stats->handler[op];
                                found = op;
                        }
                if (!best)
                        break;
                most = best;
                say(text, " %s %" PRIu64, ZydisMnemonicGetString((ZydisMnemonic)found), best);
        }
        say(text, "\n");
}

void x86_cpu_stats(const struct x86_cpu *cpu, char *to, size_t size_bytes)
{
        const struct x86_jit *jit = &cpu->jit;
        struct text text = { to, size_bytes };

        if (size_bytes)
                to[0] = '\0';
        if (!cpu->translator)
                return;
        if (cpu->stats)
                say_times(&text, cpu, cpu->stats);
        say(&text, "cpu %u: translated code entered %" PRIu64 " times; left for TLB misses %" PRIu64 ", handlers %" PRIu64 ", chains %" PRIu64
            ", jumps %" PRIu64 ", requests %" PRIu64 ", the interpreter %" PRIu64 ", stale blocks %" PRIu64 "\n",
            cpu->index, jit->entered, jit->tlb_misses, jit->handlers, jit->chains, jit->jumps, jit->asked, jit->left, jit->stale);
        if (cpu->stats)
                say_handlers(&text, cpu, cpu->stats);
}

void x86_complex_stats(const struct x86_complex *complex, char *to, size_t size_bytes)
{
        const struct translator *tr = complex_translator(complex);
        struct text text = { to, size_bytes };

        if (size_bytes)
                to[0] = '\0';
        if (!tr)
                return;
        say(&text, "translator: %" PRIu64 " blocks of %" PRIu64 " bytes of guest code into %" PRIu64 " bytes; %" PRIu64
            " blocks invalidated, %" PRIu64 " regions evicted; %zu of %zu KiB of cache in use\n",
            tr->stats.blocks, tr->stats.guest_bytes, tr->stats.host_bytes, tr->stats.killed, tr->stats.evictions,
            code_cache_used(tr->cache) >> 10, code_cache_size(tr->cache) >> 10);
}
