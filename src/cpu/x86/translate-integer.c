/*
 * Integer instructions that are emitted: nearly all go through the rewriter as they are. What is not listed here (or in
 * translate-stack.c, translate-branch.c and their like) is left to its interpreter's handler.
 */
#include "cpu/x86/flags.h"
#include "cpu/x86/translate.h"

static void emit_nothing(struct translation *t, struct tinsn *i)
{
}

/* ---- LEA ---- */

static void emit_lea(struct translation *t, struct tinsn *i)
{
        const struct insn *insn = &i->insn;
        unsigned guest = insn->reg[0] / 8, to = treg_of(guest), base = ASM_NONE, index = ASM_NONE;

        flags_before(t, i);
        if (flags_wanted(t, i))
                flags_to_host(t);
        if (insn->base != GPR_ZERO * 8)
                base = insn->base == GPR_BLOCK * 8 ? TREG_ADDRESS : guest_load(t, insn->base / 8, TREG_ADDRESS);
        if (insn->base == GPR_BLOCK * 8)
                asm_load(t->a, 8, TREG_ADDRESS, guest_slot(GPR_BLOCK));
        if (insn->index != GPR_ZERO * 8)
                index = guest_load(t, insn->index / 8, TREG_SCRATCH);
        if (to == TREG_NONE) {
                to = TREG_ADDRESS;
                if (insn->opsize == 2) {
                        asm_rm(t->a, 8, 0x8d, TREG_SCRATCH, asm_at_index(base, index, 1u << insn->shift, (int32_t)insn->disp));
                        asm_load(t->a, 8, TREG_ADDRESS, guest_slot(guest));
                        asm_rr(t->a, 2, 0x89, TREG_SCRATCH, TREG_ADDRESS);
                        guest_store(t, guest, TREG_ADDRESS);
                        flags_after(t, i);
                        return;
                }
        }
        if (base == ASM_NONE && index == ASM_NONE)
                asm_mov_imm(t->a, to, insn->opsize == 8 && insn->asize == 8 ? (uint64_t)insn->disp : (uint32_t)insn->disp);
        else
                /* A 32-bit address size with a 64-bit result is the result of 32 bits. */
                asm_rm(t->a, insn->asize == 4 ? 4 : insn->opsize, 0x8d, to, asm_at_index(base, index, 1u << insn->shift, (int32_t)insn->disp));
        if (treg_of(guest) == TREG_NONE)
                guest_store(t, guest, to);
        flags_after(t, i);
}

static bool lea_possible(const struct tinsn *i)
{
        if (!memory_possible(i))
                return false;
        /* 16 bits into a register keep the rest, which the form without registers does not. */
        return i->insn.opsize != 2 || (i->insn.asize == 8 && (i->insn.base != GPR_ZERO * 8 || i->insn.index != GPR_ZERO * 8));
}

static bool lea_keeps_address(const struct insn *insn)
{
        if (insn->base == GPR_BLOCK * 8 || treg_of(insn->reg[0] / 8) == TREG_NONE)
                return false;
        return insn->base == GPR_ZERO * 8 || treg_of(insn->base / 8) != TREG_NONE;
}

/* ---- what the host has ---- */

/* The model may have instruction sets that this host lacks; the interpreter computes those. */
static bool host_has(const struct tinsn *i)
{
        switch (i->z.meta.isa_set) {
        case ZYDIS_ISA_SET_BMI1: return __builtin_cpu_supports("bmi");
        case ZYDIS_ISA_SET_BMI2: return __builtin_cpu_supports("bmi2");
        case ZYDIS_ISA_SET_POPCNT: return __builtin_cpu_supports("popcnt");
        case ZYDIS_ISA_SET_SSE42: return __builtin_cpu_supports("sse4.2");
        /* Processors with AVX2 have these. */
        case ZYDIS_ISA_SET_LZCNT:
        case ZYDIS_ISA_SET_MOVBE: return __builtin_cpu_supports("avx2");
        case ZYDIS_ISA_SET_ADOX_ADCX: return false;
        default: return true;
        }
}

static bool operands_general(const struct tinsn *i)
{
        for (unsigned n = 0; n < i->z.operand_count_visible; n++) {
                ZydisRegister reg = i->operand[n].reg.value;

                if (i->operand[n].type == ZYDIS_OPERAND_TYPE_REGISTER && (reg < ZYDIS_REGISTER_AL || reg > ZYDIS_REGISTER_R15))
                        return false;
        }
        return true;
}

#define CASE_SETCC(cc) case ZYDIS_MNEMONIC_SET##cc:
#define CASE_CMOVCC(cc) case ZYDIS_MNEMONIC_CMOV##cc:

static bool rewritten(ZydisMnemonic mnemonic)
{
        switch (mnemonic) {
                FOR_EACH_CONDITION(CASE_SETCC)
                FOR_EACH_CONDITION(CASE_CMOVCC)
        case ZYDIS_MNEMONIC_MOV:
        case ZYDIS_MNEMONIC_MOVZX:
        case ZYDIS_MNEMONIC_MOVSX:
        case ZYDIS_MNEMONIC_MOVSXD:
        case ZYDIS_MNEMONIC_MOVBE:
        case ZYDIS_MNEMONIC_MOVNTI:
        case ZYDIS_MNEMONIC_ADD:
        case ZYDIS_MNEMONIC_ADC:
        case ZYDIS_MNEMONIC_SUB:
        case ZYDIS_MNEMONIC_SBB:
        case ZYDIS_MNEMONIC_AND:
        case ZYDIS_MNEMONIC_OR:
        case ZYDIS_MNEMONIC_XOR:
        case ZYDIS_MNEMONIC_CMP:
        case ZYDIS_MNEMONIC_TEST:
        case ZYDIS_MNEMONIC_INC:
        case ZYDIS_MNEMONIC_DEC:
        case ZYDIS_MNEMONIC_NEG:
        case ZYDIS_MNEMONIC_NOT:
        case ZYDIS_MNEMONIC_SHL:
        case ZYDIS_MNEMONIC_SHR:
        case ZYDIS_MNEMONIC_SAR:
        case ZYDIS_MNEMONIC_ROL:
        case ZYDIS_MNEMONIC_ROR:
        case ZYDIS_MNEMONIC_RCL:
        case ZYDIS_MNEMONIC_RCR:
        case ZYDIS_MNEMONIC_SHLD:
        case ZYDIS_MNEMONIC_SHRD:
        case ZYDIS_MNEMONIC_IMUL:
        case ZYDIS_MNEMONIC_MUL:
        case ZYDIS_MNEMONIC_DIV:
        case ZYDIS_MNEMONIC_IDIV:
        case ZYDIS_MNEMONIC_BT:
        case ZYDIS_MNEMONIC_BTS:
        case ZYDIS_MNEMONIC_BTR:
        case ZYDIS_MNEMONIC_BTC:
        case ZYDIS_MNEMONIC_BSF:
        case ZYDIS_MNEMONIC_BSR:
        case ZYDIS_MNEMONIC_TZCNT:
        case ZYDIS_MNEMONIC_LZCNT:
        case ZYDIS_MNEMONIC_POPCNT:
        case ZYDIS_MNEMONIC_CRC32:
        case ZYDIS_MNEMONIC_BSWAP:
        case ZYDIS_MNEMONIC_XCHG:
        case ZYDIS_MNEMONIC_XADD:
        case ZYDIS_MNEMONIC_CMPXCHG:
        case ZYDIS_MNEMONIC_CMPXCHG8B:
        case ZYDIS_MNEMONIC_CMPXCHG16B:
        case ZYDIS_MNEMONIC_CBW:
        case ZYDIS_MNEMONIC_CWDE:
        case ZYDIS_MNEMONIC_CDQE:
        case ZYDIS_MNEMONIC_CWD:
        case ZYDIS_MNEMONIC_CDQ:
        case ZYDIS_MNEMONIC_CQO:
        case ZYDIS_MNEMONIC_LAHF:
        case ZYDIS_MNEMONIC_SAHF:
        case ZYDIS_MNEMONIC_CLC:
        case ZYDIS_MNEMONIC_STC:
        case ZYDIS_MNEMONIC_CMC:
        case ZYDIS_MNEMONIC_ANDN:
        case ZYDIS_MNEMONIC_BEXTR:
        case ZYDIS_MNEMONIC_BLSI:
        case ZYDIS_MNEMONIC_BLSMSK:
        case ZYDIS_MNEMONIC_BLSR:
        case ZYDIS_MNEMONIC_BZHI:
        case ZYDIS_MNEMONIC_MULX:
        case ZYDIS_MNEMONIC_PDEP:
        case ZYDIS_MNEMONIC_PEXT:
        case ZYDIS_MNEMONIC_RORX:
        case ZYDIS_MNEMONIC_SARX:
        case ZYDIS_MNEMONIC_SHLX:
        case ZYDIS_MNEMONIC_SHRX:
        case ZYDIS_MNEMONIC_LFENCE:
        case ZYDIS_MNEMONIC_MFENCE:
        case ZYDIS_MNEMONIC_SFENCE: return true;
        default: return false;
        }
}

temit_fn integer_translate(struct tinsn *i)
{
        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_NOP:
        case ZYDIS_MNEMONIC_PREFETCHNTA:
        case ZYDIS_MNEMONIC_PREFETCHT0:
        case ZYDIS_MNEMONIC_PREFETCHT1:
        case ZYDIS_MNEMONIC_PREFETCHT2:
        case ZYDIS_MNEMONIC_PREFETCHW:
                i->keeps_address = true;
                return emit_nothing;
        case ZYDIS_MNEMONIC_LEA:
                i->keeps_address = lea_keeps_address(&i->insn);
                return lea_possible(i) ? emit_lea : NULL;
        default: break;
        }
        if (!rewritten(i->z.mnemonic) || !operands_general(i) || !host_has(i) || !rewrite_possible(i))
                return NULL;
        i->faults = i->z.mnemonic == ZYDIS_MNEMONIC_DIV || i->z.mnemonic == ZYDIS_MNEMONIC_IDIV;
        i->miss_to_handler = i->z.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B;
        i->site = i->insn.flags & INSN_MEMORY || i->faults;
        i->access = i->insn.flags & INSN_MEMORY ? TACCESS_OPERAND : TACCESS_NONE;
        i->keeps_address = rewrite_keeps_address(i);
        return emit_rewritten;
}
