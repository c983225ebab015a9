/*
 * Vector moves: whole registers, halves, elements, to and from general registers. The hottest vector instructions of most
 * programs, so each has its own handler.
 *
 * Source: SDM vol. 2. Legacy loads of whole registers from memory must be aligned, but for MOVUPS, MOVUPD, MOVDQU, LDDQU; with
 * VEX only MOVAPS, MOVAPD, MOVDQA and the non-temporal ones.
 */
#include "cpu/x86/simd.h"

#define D simd_reg(cpu, i->reg[0])
#define S simd_reg(cpu, i->reg[1])
#define T simd_reg(cpu, i->reg[2])

/* ---- whole registers ---- */

HANDLER(move_sse)
{
        memcpy(D, S, 16);
        NEXT;
}

HANDLER(move_vex)
{
        simd_set_vex128(D, S);
        NEXT;
}

HANDLER(move_avx)
{
        *D = *S;
        NEXT;
}

HANDLER(load_sse)
{
        simd_read(cpu, insn_linear(cpu, i, 16, false), D, 16);
        NEXT;
}

HANDLER(load_vex)
{
        simd_read(cpu, insn_linear(cpu, i, 16, false), D, 16);
        simd_zero_upper(D);
        NEXT;
}

HANDLER(load_avx)
{
        simd_read(cpu, insn_linear(cpu, i, 32, false), D, 32);
        NEXT;
}

HANDLER(load_sse_aligned)
{
        simd_read(cpu, simd_aligned(cpu, i, 16, false), D, 16);
        NEXT;
}

HANDLER(load_vex_aligned)
{
        simd_read(cpu, simd_aligned(cpu, i, 16, false), D, 16);
        simd_zero_upper(D);
        NEXT;
}

HANDLER(load_avx_aligned)
{
        simd_read(cpu, simd_aligned(cpu, i, 32, false), D, 32);
        NEXT;
}

HANDLER(store_128)
{
        simd_write(cpu, insn_linear(cpu, i, 16, true), S, 16);
        NEXT;
}

HANDLER(store_256)
{
        simd_write(cpu, insn_linear(cpu, i, 32, true), S, 32);
        NEXT;
}

HANDLER(store_128_aligned)
{
        simd_write(cpu, simd_aligned(cpu, i, 16, true), S, 16);
        NEXT;
}

HANDLER(store_256_aligned)
{
        simd_write(cpu, simd_aligned(cpu, i, 32, true), S, 32);
        NEXT;
}

static insn_fn bind_whole(const struct insn *i, const struct decoded *d, bool aligned)
{
        static const insn_fn load[2][3] = {
                { load_sse, load_vex, load_avx }, { load_sse_aligned, load_vex_aligned, load_avx_aligned },
        };
        static const insn_fn store[2][2] = { { store_128, store_256 }, { store_128_aligned, store_256_aligned } };
        static const insn_fn move[3] = { move_sse, move_vex, move_avx };
        bool vex = i->flags & INSN_VEX, wide = vex && d->z->raw.vex.L;

        if (d->operand[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
                return store[aligned][wide];
        if (d->operand[1].type == ZYDIS_OPERAND_TYPE_MEMORY)
                return load[aligned][wide ? 2 : vex];
        return move[wide ? 2 : vex];
}

/* ---- elements: a load clears what is above it, a move between registers keeps the first source's rest ---- */

HANDLER(load_32)
{
        uint32_t value = mmu_read32(cpu, insn_linear(cpu, i, 4, false));

        D->u64[0] = value;
        D->u64[1] = 0;
        NEXT;
}

HANDLER(load_32_vex)
{
        uint32_t value = mmu_read32(cpu, insn_linear(cpu, i, 4, false));

        *D = (union x86_vector){ .u64 = { value } };
        NEXT;
}

HANDLER(load_64)
{
        uint64_t value = mmu_read64(cpu, insn_linear(cpu, i, 8, false));

        D->u64[0] = value;
        D->u64[1] = 0;
        NEXT;
}

HANDLER(load_64_vex)
{
        uint64_t value = mmu_read64(cpu, insn_linear(cpu, i, 8, false));

        *D = (union x86_vector){ .u64 = { value } };
        NEXT;
}

HANDLER(store_32)
{
        mmu_write32(cpu, insn_linear(cpu, i, 4, true), S->u32[0]);
        NEXT;
}

HANDLER(store_64)
{
        mmu_write64(cpu, insn_linear(cpu, i, 8, true), S->u64[0]);
        NEXT;
}

HANDLER(store_high)
{
        mmu_write64(cpu, insn_linear(cpu, i, 8, true), S->u64[1]);
        NEXT;
}

HANDLER(merge_32)
{
        D->u32[0] = S->u32[0];
        NEXT;
}

HANDLER(merge_64)
{
        D->u64[0] = S->u64[0];
        NEXT;
}

HANDLER(merge_32_vex)
{
        union x86_vector out = *S;

        out.u32[0] = T->u32[0];
        simd_set_vex128(D, &out);
        NEXT;
}

HANDLER(merge_64_vex)
{
        union x86_vector out = *S;

        out.u64[0] = T->u64[0];
        simd_set_vex128(D, &out);
        NEXT;
}

HANDLER(move_low)
{
        uint64_t value = S->u64[0];

        D->u64[0] = value;
        D->u64[1] = 0;
        NEXT;
}

HANDLER(move_low_vex)
{
        *D = (union x86_vector){ .u64 = { S->u64[0] } };
        NEXT;
}

static insn_fn bind_scalar(const struct insn *i, const struct decoded *d, bool is64)
{
        bool vex = i->flags & INSN_VEX;

        if (d->operand[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
                return is64 ? store_64 : store_32;
        if (d->operand[1].type == ZYDIS_OPERAND_TYPE_MEMORY)
                return is64 ? (vex ? load_64_vex : load_64) : vex ? load_32_vex : load_32;
        return is64 ? (vex ? merge_64_vex : merge_64) : vex ? merge_32_vex : merge_32;
}

/* ---- halves: MOVLPS, MOVHPS, MOVHLPS, MOVLHPS ---- */

HANDLER(load_low)
{
        D->u64[0] = mmu_read64(cpu, insn_linear(cpu, i, 8, false));
        NEXT;
}

HANDLER(load_high)
{
        D->u64[1] = mmu_read64(cpu, insn_linear(cpu, i, 8, false));
        NEXT;
}

HANDLER(load_low_vex)
{
        uint64_t value = mmu_read64(cpu, insn_linear(cpu, i, 8, false));

        *D = (union x86_vector){ .u64 = { value, S->u64[1] } };
        NEXT;
}

HANDLER(load_high_vex)
{
        uint64_t value = mmu_read64(cpu, insn_linear(cpu, i, 8, false));

        *D = (union x86_vector){ .u64 = { S->u64[0], value } };
        NEXT;
}

HANDLER(high_to_low)
{
        D->u64[0] = S->u64[1];
        NEXT;
}

HANDLER(low_to_high)
{
        D->u64[1] = S->u64[0];
        NEXT;
}

HANDLER(high_to_low_vex)
{
        *D = (union x86_vector){ .u64 = { T->u64[1], S->u64[1] } };
        NEXT;
}

HANDLER(low_to_high_vex)
{
        *D = (union x86_vector){ .u64 = { S->u64[0], T->u64[0] } };
        NEXT;
}

static insn_fn bind_half(const struct insn *i, const struct decoded *d, bool high)
{
        if (d->operand[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
                return high ? store_high : store_64;
        if (i->flags & INSN_VEX)
                return high ? load_high_vex : load_low_vex;
        return high ? load_high : load_low;
}

/* ---- general registers: reg[] holds a byte offset there ---- */

HANDLER(from_gpr32)
{
        D->u64[0] = *(uint32_t *)gpr_at(cpu, i->reg[1]);
        D->u64[1] = 0;
        NEXT;
}

HANDLER(from_gpr64)
{
        D->u64[0] = *(uint64_t *)gpr_at(cpu, i->reg[1]);
        D->u64[1] = 0;
        NEXT;
}

HANDLER(from_gpr32_vex)
{
        *D = (union x86_vector){ .u64 = { *(uint32_t *)gpr_at(cpu, i->reg[1]) } };
        NEXT;
}

HANDLER(from_gpr64_vex)
{
        *D = (union x86_vector){ .u64 = { *(uint64_t *)gpr_at(cpu, i->reg[1]) } };
        NEXT;
}

HANDLER(to_gpr32)
{
        *(uint64_t *)gpr_at(cpu, i->reg[0]) = S->u32[0];
        NEXT;
}

HANDLER(to_gpr64)
{
        *(uint64_t *)gpr_at(cpu, i->reg[0]) = S->u64[0];
        NEXT;
}

/* MOVD and MOVQ between vector registers, general registers and memory (MMX: simd-mmx.c). */
static insn_fn bind_movdq(const struct insn *i, const struct decoded *d, bool is64)
{
        bool vex = i->flags & INSN_VEX;
        const ZydisDecodedOperand *to = &d->operand[0], *from = &d->operand[1];

        if (to->type == ZYDIS_OPERAND_TYPE_MEMORY)
                return is64 ? store_64 : store_32;
        if (from->type == ZYDIS_OPERAND_TYPE_MEMORY)
                return is64 ? (vex ? load_64_vex : load_64) : vex ? load_32_vex : load_32;
        if (ZydisRegisterGetClass(to->reg.value) != ZYDIS_REGCLASS_XMM)
                return is64 ? to_gpr64 : to_gpr32;
        if (ZydisRegisterGetClass(from->reg.value) == ZYDIS_REGCLASS_XMM)
                return vex ? move_low_vex : move_low;
        return is64 ? (vex ? from_gpr64_vex : from_gpr64) : vex ? from_gpr32_vex : from_gpr32;
}

HANDLER(movnti_32)
{
        mmu_write32(cpu, insn_linear(cpu, i, 4, true), *(uint32_t *)gpr_at(cpu, i->reg[1]));
        NEXT;
}

HANDLER(movnti_64)
{
        mmu_write64(cpu, insn_linear(cpu, i, 8, true), *(uint64_t *)gpr_at(cpu, i->reg[1]));
        NEXT;
}

#define BOTH(name) case ZYDIS_MNEMONIC_##name: case ZYDIS_MNEMONIC_V##name

insn_fn simd_bind_move(struct insn *i, const struct decoded *d)
{
        bool vex = i->flags & INSN_VEX;

        if (simd_has_mmx(d))
                return NULL;
        switch (d->z->mnemonic) {
        BOTH(MOVUPS):
        BOTH(MOVUPD):
        BOTH(MOVDQU):
        BOTH(LDDQU):
                return bind_whole(i, d, false);
        BOTH(MOVAPS):
        BOTH(MOVAPD):
        BOTH(MOVDQA):
        BOTH(MOVNTPS):
        BOTH(MOVNTPD):
        BOTH(MOVNTDQ):
        BOTH(MOVNTDQA):
                return bind_whole(i, d, true);
        BOTH(MOVSS):
                return bind_scalar(i, d, false);
        BOTH(MOVSD):
                return bind_scalar(i, d, true);
        BOTH(MOVLPS):
        BOTH(MOVLPD):
                return bind_half(i, d, false);
        BOTH(MOVHPS):
        BOTH(MOVHPD):
                return bind_half(i, d, true);
        BOTH(MOVHLPS):
                return vex ? high_to_low_vex : high_to_low;
        BOTH(MOVLHPS):
                return vex ? low_to_high_vex : low_to_high;
        BOTH(MOVD):
                return bind_movdq(i, d, false);
        BOTH(MOVQ):
                return bind_movdq(i, d, true);
        case ZYDIS_MNEMONIC_MOVNTI:
                return d->operand[1].size == 64 ? movnti_64 : movnti_32;
        default:
                return NULL;
        }
}
