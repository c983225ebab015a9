/*
 * SSE and AVX: as they are, on the host's vector registers, which are the guest's, under the guest's MXCSR.
 *
 * What may fault in ways that the look-up does not see has a TSITE_FAULT site: aligned operands (the handler raises #GP), and
 * arithmetic with unmasked exceptions (#XM). Which those are is told from the exception class that the manual gives each
 * instruction (SDM vol. 2A table 2-18): 2 and 3 are arithmetic, 4 and above are not, 1 is aligned always.
 *
 * Not here: MMX (its registers are the x87's), gathers, MASKMOVDQU, instructions with RCX as an implicit result, LDMXCSR and the
 * saving of state, which go through their handlers.
 */
#include "cpu/x86/translate.h"

static bool host_has(const struct tinsn *i)
{
        switch (i->z.meta.isa_set) {
        case ZYDIS_ISA_SET_SSE:
        case ZYDIS_ISA_SET_SSE2: return true;
        case ZYDIS_ISA_SET_SSE3: return __builtin_cpu_supports("sse3");
        case ZYDIS_ISA_SET_SSSE3: return __builtin_cpu_supports("ssse3");
        case ZYDIS_ISA_SET_SSE4: return __builtin_cpu_supports("sse4.1");
        case ZYDIS_ISA_SET_SSE42: return __builtin_cpu_supports("sse4.2");
        case ZYDIS_ISA_SET_AES:
        case ZYDIS_ISA_SET_AVXAES: return __builtin_cpu_supports("aes") && __builtin_cpu_supports("avx");
        case ZYDIS_ISA_SET_PCLMULQDQ: return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("avx");
        case ZYDIS_ISA_SET_AVX: return __builtin_cpu_supports("avx");
        case ZYDIS_ISA_SET_AVX2: return __builtin_cpu_supports("avx2");
        case ZYDIS_ISA_SET_FMA: return __builtin_cpu_supports("fma");
        case ZYDIS_ISA_SET_F16C: return __builtin_cpu_supports("avx2"); /* all that have AVX2 do */
        default: return false;
        }
}

/* The registers that exist are those of the general and vector files. */
static bool operands_native(const struct tinsn *i)
{
        for (unsigned n = 0; n < i->z.operand_count; n++) {
                const ZydisDecodedOperand *o = &i->operand[n];

                if (o->type == ZYDIS_OPERAND_TYPE_MEMORY && o->mem.type != ZYDIS_MEMOP_TYPE_MEM)
                        return false;
                if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && (ZydisRegisterGetClass(o->reg.value) == ZYDIS_REGCLASS_MMX ||
                                                               ZydisRegisterGetClass(o->reg.value) == ZYDIS_REGCLASS_X87))
                        return false;
        }
        return i->z.mnemonic != ZYDIS_MNEMONIC_FISTTP; /* Zydis has one of its forms in SSE3 */
}

static bool enabled(const struct tinsn *i, uint32_t key)
{
        if (key & (MODE_CR0_EM | MODE_CR0_TS) || !(key & MODE_OSFXSR))
                return false;
        return i->z.encoding != ZYDIS_INSTRUCTION_ENCODING_VEX || key & MODE_AVX;
}

static bool arithmetic(const struct tinsn *i)
{
        switch (i->z.meta.exception_class) {
        case ZYDIS_EXCEPTION_CLASS_SSE1:
        case ZYDIS_EXCEPTION_CLASS_SSE4:
        case ZYDIS_EXCEPTION_CLASS_SSE5:
        case ZYDIS_EXCEPTION_CLASS_SSE7:
        case ZYDIS_EXCEPTION_CLASS_AVX1:
        case ZYDIS_EXCEPTION_CLASS_AVX4:
        case ZYDIS_EXCEPTION_CLASS_AVX5:
        case ZYDIS_EXCEPTION_CLASS_AVX6:
        case ZYDIS_EXCEPTION_CLASS_AVX7:
        case ZYDIS_EXCEPTION_CLASS_AVX8: return false;
        default: return true;
        }
}

static bool wants_alignment(const struct tinsn *i)
{
        if (!(i->insn.flags & INSN_MEMORY))
                return false;
        if (i->z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
                return i->z.meta.exception_class == ZYDIS_EXCEPTION_CLASS_AVX1;
        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_MOVUPS:
        case ZYDIS_MNEMONIC_MOVUPD:
        case ZYDIS_MNEMONIC_MOVDQU:
        case ZYDIS_MNEMONIC_LDDQU: return false;
        default: return i->operand[i->insn.memory_operand].size >= 128;
        }
}

static bool miss_is_no_fault(const struct tinsn *i)
{
        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_VCVTPS2PH: /* raises its flags even when its store faults */
        case ZYDIS_MNEMONIC_VMASKMOVPS: /* elements that are masked out are no access */
        case ZYDIS_MNEMONIC_VMASKMOVPD:
        case ZYDIS_MNEMONIC_VPMASKMOVD:
        case ZYDIS_MNEMONIC_VPMASKMOVQ: return true;
        default: return false;
        }
}

temit_fn simd_translate(struct tinsn *i, uint32_t key)
{
        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_LDMXCSR:
        case ZYDIS_MNEMONIC_STMXCSR:
        case ZYDIS_MNEMONIC_VLDMXCSR:
        case ZYDIS_MNEMONIC_VSTMXCSR: return NULL;
        default: break;
        }
        if (!host_has(i) || !operands_native(i) || !enabled(i, key) || !rewrite_possible(i))
                return NULL;
        i->faults = wants_alignment(i) || arithmetic(i);
        i->miss_to_handler = wants_alignment(i) || miss_is_no_fault(i);
        i->site = i->faults || i->insn.flags & INSN_MEMORY;
        i->access = i->insn.flags & INSN_MEMORY ? TACCESS_OPERAND : TACCESS_NONE;
        i->keeps_address = rewrite_keeps_address(i);
        return emit_rewritten;
}
