/*
 * The instructions of sites.
 *
 * A site says where its instruction is among the bytes that its block was translated from, and nothing else of it: most sites are never
 * seen, and those that are seen most of the time are few. What a service wants is decoded into a cache of the processor's, by the
 * number of the site. Numbers are used again when a region of the code cache was emptied, which raises the epoch: then all is
 * forgotten. Nobody holds an instruction when another one is asked for: handlers do not run translated code, and what is raised
 * unwinds to the run loop, which goes by the site (translator_recover()).
 */
#include "cpu/x86/decode.h"
#include "cpu/x86/translate.h"
#include "cpu/x86/translator-internal.h"

static const struct insn *end_mark(struct x86_cpu *cpu, const struct insn *i)
{
        return i;
}

void translator_decode(struct x86_cpu *cpu, uint32_t number, struct tdecoded *to)
{
        const struct translator *tr = cpu->translator;
        const struct tblock *block = tblock_of(tr, number);
        uint32_t at = tsite_of(tr, number).at, first = block->gpa & (GUEST_PAGE_SIZE - 1);
        struct tinsn i;

        translator_vectors_out(cpu); /* for Zydis */
        if (decode_insn_full(cpu, tblock_bytes(tr, block) + (at - first), block->size_bytes - (at - first), at, &i.insn, &i.z, i.operand) < 0)
                abort(); /* it could be when the block was translated */
        to->site = number;
        to->fast = system_fast(&i);
        to->insn[0] = i.insn;
        to->insn[1] = (struct insn){ .fn = end_mark, .base = GPR_ZERO * 8, .index = GPR_ZERO * 8, .start = i.insn.end, .end = i.insn.end };
}

void translator_decoded_forget(struct x86_cpu *cpu)
{
        for (unsigned n = 0; n < 1u << TDECODED_BITS; n++)
                cpu->jit.decoded[n].site = 0;
}
