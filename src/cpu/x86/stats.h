/*
 * What --cpu-stats keeps for one processor beside the counts of struct x86_jit. Written by its own thread; read by any, which
 * may see a sum that is a moment old.
 */
#pragma once

#include <x86intrin.h>
#include <Zydis/Zydis.h>

#include "base/err.h"

enum x86_phase { X86_OUT, X86_INTERPRETING, X86_IN_TRANSLATED, X86_TRANSLATING, X86_PHASES };

struct x86_stats {
        enum x86_phase phase;
        uint64_t since;                                 /* when it began */
        uint64_t ticks[X86_PHASES];
        uint64_t handler[ZYDIS_MNEMONIC_MAX_VALUE + 1]; /* the interpreter's, called by translated code; by mnemonic */
};

int x86_stats_new(struct x86_stats **out, struct err *err) _must_check_;

/* From now on the processor's thread does something else; what it did. stats may be NULL. In ticks of the host's TSC. */
static inline enum x86_phase stats_phase(struct x86_stats *stats, enum x86_phase phase)
{
        enum x86_phase before;
        uint64_t now;

        if (likely(!stats))
                return X86_OUT;
        before = stats->phase;
        if (before == phase)
                return before;
        now = __rdtsc();
        stats->ticks[before] += now - stats->since;
        stats->since = now;
        stats->phase = phase;
        return before;
}
