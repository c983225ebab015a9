/*
 * MMX moves and the MMX forms of instructions whose other forms are elsewhere. Arithmetic is in simd-integer.c.
 *
 * The MMX registers are the low 64 bits of the physical x87 registers. Every instruction here but EMMS makes TOP 0 and all
 * registers valid; a written register gets ones in its sign and exponent. Source: SDM vol. 1 §9, vol. 3A §12.
 */
#include "cpu/x86/simd.h"


static const struct insn *set(struct x86_cpu *cpu, const struct insn *i, uint64_t value)
{
        mmx_enter(cpu);
        mmx_set(cpu, i->reg[0], value);
        NEXT;
}

HANDLER(mmx_load_32)
{
        x87_check_pending(cpu);
        return set(cpu, i, mmu_read32(cpu, insn_linear(cpu, i, 4, false)));
}

HANDLER(mmx_load_64)
{
        x87_check_pending(cpu);
        return set(cpu, i, mmu_read64(cpu, insn_linear(cpu, i, 8, false)));
}

HANDLER(mmx_store_32)
{
        x87_check_pending(cpu);
        mmu_write32(cpu, insn_linear(cpu, i, 4, true), (uint32_t)mmx_get(cpu, i->reg[1]));
        mmx_enter(cpu);
        NEXT;
}

HANDLER(mmx_store_64)
{
        x87_check_pending(cpu);
        mmu_write64(cpu, insn_linear(cpu, i, 8, true), mmx_get(cpu, i->reg[1]));
        mmx_enter(cpu);
        NEXT;
}

HANDLER(mmx_move)
{
        x87_check_pending(cpu);
        return set(cpu, i, mmx_get(cpu, i->reg[1]));
}

HANDLER(mmx_from_gpr32)
{
        x87_check_pending(cpu);
        return set(cpu, i, *(uint32_t *)gpr_at(cpu, i->reg[1]));
}

HANDLER(mmx_from_gpr64)
{
        x87_check_pending(cpu);
        return set(cpu, i, *(uint64_t *)gpr_at(cpu, i->reg[1]));
}

HANDLER(mmx_to_gpr32)
{
        x87_check_pending(cpu);
        mmx_enter(cpu);
        *(uint64_t *)gpr_at(cpu, i->reg[0]) = (uint32_t)mmx_get(cpu, i->reg[1]);
        NEXT;
}

HANDLER(mmx_to_gpr64)
{
        x87_check_pending(cpu);
        mmx_enter(cpu);
        *(uint64_t *)gpr_at(cpu, i->reg[0]) = mmx_get(cpu, i->reg[1]);
        NEXT;
}

HANDLER(movdq2q)
{
        x87_check_pending(cpu);
        return set(cpu, i, simd_reg(cpu, i->reg[1])->u64[0]);
}

HANDLER(movq2dq)
{
        union x86_vector *to = simd_reg(cpu, i->reg[0]);

        x87_check_pending(cpu);
        mmx_enter(cpu);
        to->u64[0] = mmx_get(cpu, i->reg[1]);
        to->u64[1] = 0;
        NEXT;
}

HANDLER(mmx_pshufw)
{
        uint64_t from, to = 0;

        x87_check_pending(cpu);
        from = i->memory_operand == 1 ? mmu_read64(cpu, insn_linear(cpu, i, 8, false)) : mmx_get(cpu, i->reg[1]);
        for (unsigned k = 0; k < 4; k++)
                to |= (from >> (i->imm >> k * 2 & 3) * 16 & 0xffff) << k * 16;
        return set(cpu, i, to);
}

HANDLER(mmx_palignr)
{
        unsigned count = MIN((unsigned)(uint8_t)i->imm, 16u) * 8;
        unsigned __int128 both;

        x87_check_pending(cpu);
        both = (unsigned __int128)mmx_get(cpu, i->reg[0]) << 64;
        both |= i->memory_operand == 1 ? mmu_read64(cpu, insn_linear(cpu, i, 8, false)) : mmx_get(cpu, i->reg[1]);
        return set(cpu, i, count < 128 ? (uint64_t)(both >> count) : 0);
}

HANDLER(mmx_pinsrw)
{
        unsigned shift = (unsigned)(i->imm & 3) * 16;
        uint64_t value;

        x87_check_pending(cpu);
        value = i->memory_operand == 1 ? mmu_read16(cpu, insn_linear(cpu, i, 2, false)) : *(uint16_t *)gpr_at(cpu, i->reg[1]);
        return set(cpu, i, (mmx_get(cpu, i->reg[0]) & ~(UINT64_C(0xffff) << shift)) | value << shift);
}

HANDLER(mmx_pextrw)
{
        x87_check_pending(cpu);
        mmx_enter(cpu);
        *(uint64_t *)gpr_at(cpu, i->reg[0]) = (uint16_t)(mmx_get(cpu, i->reg[1]) >> (i->imm & 3) * 16);
        NEXT;
}

HANDLER(mmx_pmovmskb)
{
        uint64_t value, mask = 0;

        x87_check_pending(cpu);
        mmx_enter(cpu);
        value = mmx_get(cpu, i->reg[1]);
        for (unsigned k = 0; k < 8; k++)
                mask |= (value >> (k * 8 + 7) & 1) << k;
        *(uint64_t *)gpr_at(cpu, i->reg[0]) = mask;
        NEXT;
}

HANDLER(emms)
{
        x87_check_pending(cpu);
        cpu->s.fpu.ftw = 0;
        cpu->s.fpu.fsw &= (uint16_t)~0x3800u;
        NEXT;
}

static enum { NONE, MM, XMM, GPR, MEMORY } class_of(const ZydisDecodedOperand *o)
{
        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY)
                return MEMORY;
        if (o->type != ZYDIS_OPERAND_TYPE_REGISTER)
                return NONE;
        switch (ZydisRegisterGetClass(o->reg.value)) {
        case ZYDIS_REGCLASS_MMX:
                return MM;
        case ZYDIS_REGCLASS_XMM:
                return XMM;
        default:
                return GPR;
        }
}

static insn_fn bind_move(const struct decoded *d, bool is64)
{
        unsigned to = class_of(&d->operand[0]), from = class_of(&d->operand[1]);

        if (to == MM)
                return from == MM ? mmx_move : from == MEMORY ? (is64 ? mmx_load_64 : mmx_load_32) : is64 ? mmx_from_gpr64 : mmx_from_gpr32;
        if (from != MM)
                return NULL;
        return to == MEMORY ? (is64 ? mmx_store_64 : mmx_store_32) : is64 ? mmx_to_gpr64 : mmx_to_gpr32;
}

insn_fn simd_bind_mmx(struct insn *i, const struct decoded *d)
{
        if (d->z->mnemonic == ZYDIS_MNEMONIC_EMMS)
                return emms;
        if (d->z->operand_count_visible < 2 || (class_of(&d->operand[0]) != MM && class_of(&d->operand[1]) != MM))
                return NULL;
        switch (d->z->mnemonic) {
        case ZYDIS_MNEMONIC_MOVD:
                return bind_move(d, false);
        case ZYDIS_MNEMONIC_MOVQ:
                return bind_move(d, true);
        case ZYDIS_MNEMONIC_MOVNTQ:
                return mmx_store_64;
        case ZYDIS_MNEMONIC_MOVDQ2Q:
                return movdq2q;
        case ZYDIS_MNEMONIC_MOVQ2DQ:
                return movq2dq;
        case ZYDIS_MNEMONIC_PSHUFW:
                return mmx_pshufw;
        case ZYDIS_MNEMONIC_PALIGNR:
                return mmx_palignr;
        case ZYDIS_MNEMONIC_PINSRW:
                return mmx_pinsrw;
        case ZYDIS_MNEMONIC_PEXTRW:
                return mmx_pextrw;
        case ZYDIS_MNEMONIC_PMOVMSKB:
                return mmx_pmovmskb;
        default:
                return NULL;
        }
}
