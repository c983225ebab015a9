/*
 * Vector instructions that move elements and lanes about, in C: inserts, extracts, blends by a register, whole-register
 * shifts, 128-bit lanes, and those that give a mask or flags to the general registers.
 *
 * Source: SDM vol. 2.
 */
#include "cpu/x86/simd.h"

#define D simd_reg(cpu, i->reg[0])

/* A 128- or 256-bit result goes out as its encoding says. */
static inline const struct insn *finish(struct x86_cpu *cpu, const struct insn *i, const union x86_vector *out)
{
        if (!(i->flags & INSN_VEX))
                simd_set128(D, out);
        else if (i->imm2 == 32)
                *D = *out;
        else
                simd_set_vex128(D, out);
        NEXT;
}

/* imm2 holds the width of the operation in bytes. */
static const union x86_vector *source(struct x86_cpu *cpu, const struct insn *i, unsigned operand, union x86_vector *buffer)
{
        uint64_t linear;

        if (i->memory_operand != operand)
                return simd_reg(cpu, i->reg[operand]);
        if (!(i->flags & INSN_VEX) && i->memory_size == 16)
                linear = simd_aligned(cpu, i, 16, false);
        else
                linear = insn_linear(cpu, i, i->memory_size, false);
        simd_read(cpu, linear, buffer, i->memory_size);
        return buffer;
}

static unsigned last_vector(const struct insn *i)
{
        return i->flags & INSN_VEX ? 2 : 1;
}

static const union x86_vector *first_source(struct x86_cpu *cpu, const struct insn *i)
{
        return simd_reg(cpu, i->reg[i->flags & INSN_VEX ? 1 : 0]);
}

/* ---- inserts and extracts of elements; aux holds the size in bytes ---- */

static unsigned element_bytes(const struct insn *i)
{
        return (unsigned)(uintptr_t)i->aux;
}

HANDLER(pinsr)
{
        unsigned bytes = element_bytes(i), operand = last_vector(i), n = (unsigned)i->imm & (16 / bytes - 1);
        union x86_vector out = *first_source(cpu, i);
        uint64_t value;

        if (i->memory_operand == operand)
                simd_read(cpu, insn_linear(cpu, i, bytes, false), &value, bytes);
        else
                value = *(uint64_t *)gpr_at(cpu, i->reg[operand]);
        memcpy(out.u8 + n * bytes, &value, bytes);
        return finish(cpu, i, &out);
}

HANDLER(pextr)
{
        unsigned bytes = element_bytes(i), n = (unsigned)i->imm & (16 / bytes - 1);
        uint64_t value = 0;

        memcpy(&value, simd_reg(cpu, i->reg[1])->u8 + n * bytes, bytes);
        if (i->memory_operand == 0)
                simd_write(cpu, insn_linear(cpu, i, bytes, true), &value, bytes);
        else
                *(uint64_t *)gpr_at(cpu, i->reg[0]) = value;
        NEXT;
}

HANDLER(insertps)
{
        unsigned operand = last_vector(i), imm = (unsigned)i->imm;
        union x86_vector out = *first_source(cpu, i);

        if (i->memory_operand == operand)
                out.u32[imm >> 4 & 3] = mmu_read32(cpu, insn_linear(cpu, i, 4, false));
        else
                out.u32[imm >> 4 & 3] = simd_reg(cpu, i->reg[operand])->u32[imm >> 6 & 3];
        for (unsigned k = 0; k < 4; k++)
                if (imm >> k & 1)
                        out.u32[k] = 0;
        return finish(cpu, i, &out);
}

/* ---- blends by the sign bits of a mask register: XMM0 in legacy forms, operand 3 with VEX ---- */

HANDLER(blendv)
{
        union x86_vector buffer, out = *first_source(cpu, i);
        const union x86_vector *mask = simd_reg(cpu, i->flags & INSN_VEX ? i->reg[3] : 0);
        const uint8_t *b = source(cpu, i, last_vector(i), &buffer)->u8;
        unsigned bytes = element_bytes(i);

        for (unsigned k = 0; k < i->imm2; k += bytes)
                if (mask->u8[k + bytes - 1] & 0x80)
                        memcpy(out.u8 + k, b + k, bytes);
        return finish(cpu, i, &out);
}

/* ---- shifts of bytes in each 128-bit lane ---- */

HANDLER(palignr)
{
        union x86_vector buffer, out;
        const uint8_t *a = (const uint8_t *)first_source(cpu, i), *b = source(cpu, i, last_vector(i), &buffer)->u8;
        unsigned count = MIN((unsigned)(uint8_t)i->imm, 32u);

        for (unsigned lane = 0; lane < i->imm2; lane += 16) {
                uint8_t both[64] = { 0 };

                memcpy(both, b + lane, 16);
                memcpy(both + 16, a + lane, 16);
                memcpy(out.u8 + lane, both + count, 16);
        }
        return finish(cpu, i, &out);
}

HANDLER(pslldq)
{
        const uint8_t *a = (const uint8_t *)first_source(cpu, i);
        unsigned count = MIN((unsigned)(uint8_t)i->imm, 16u);
        union x86_vector out = { 0 };

        for (unsigned lane = 0; lane < i->imm2; lane += 16)
                memcpy(out.u8 + lane + count, a + lane, 16 - count);
        return finish(cpu, i, &out);
}

HANDLER(psrldq)
{
        const uint8_t *a = (const uint8_t *)first_source(cpu, i);
        unsigned count = MIN((unsigned)(uint8_t)i->imm, 16u);
        union x86_vector out = { 0 };

        for (unsigned lane = 0; lane < i->imm2; lane += 16)
                memcpy(out.u8 + lane, a + lane + count, 16 - count);
        return finish(cpu, i, &out);
}

/* ---- 128-bit lanes of 256-bit registers ---- */

HANDLER(vbroadcast_128)
{
        uint64_t value[2];

        simd_read(cpu, insn_linear(cpu, i, 16, false), value, 16);
        *D = (union x86_vector){ .u64 = { value[0], value[1], value[0], value[1] } };
        NEXT;
}

HANDLER(vinsert_128)
{
        union x86_vector buffer, out = *first_source(cpu, i);

        memcpy(out.u64 + (i->imm & 1) * 2, source(cpu, i, 2, &buffer), 16);
        *D = out;
        NEXT;
}

HANDLER(vextract_128)
{
        uint64_t value[2];

        memcpy(value, simd_reg(cpu, i->reg[1])->u64 + (i->imm & 1) * 2, 16);
        if (i->memory_operand == 0)
                simd_write(cpu, insn_linear(cpu, i, 16, true), value, 16);
        else
                simd_set_vex128(D, value);
        NEXT;
}

HANDLER(vperm2_128)
{
        union x86_vector buffer, out = { 0 };
        const union x86_vector *a = first_source(cpu, i), *b = source(cpu, i, 2, &buffer);

        for (unsigned lane = 0; lane < 2; lane++) {
                unsigned control = (unsigned)i->imm >> lane * 4 & 15;

                if (!(control & 8))
                        memcpy(out.u64 + lane * 2, (control & 2 ? b : a)->u64 + (control & 1) * 2, 16);
        }
        *D = out;
        NEXT;
}

/* ---- masks and flags ---- */

static unsigned sign_mask(const union x86_vector *v, unsigned bytes, unsigned width)
{
        unsigned mask = 0;

        for (unsigned k = 0; k < width / bytes; k++)
                mask |= (unsigned)(v->u8[k * bytes + bytes - 1] >> 7) << k;
        return mask;
}

HANDLER(movmsk)
{
        *(uint64_t *)gpr_at(cpu, i->reg[0]) = sign_mask(simd_reg(cpu, i->reg[1]), element_bytes(i), i->imm2);
        NEXT;
}

HANDLER(pmovmskb)
{
        const char *v = (const char *)simd_reg(cpu, i->reg[1]);
        uint32_t mask = (uint32_t)__builtin_ia32_pmovmskb128(*(const __attribute__((vector_size(16))) char *)v);

        if (i->imm2 == 32)
                mask |= (uint32_t)__builtin_ia32_pmovmskb128(*(const __attribute__((vector_size(16))) char *)(v + 16)) << 16;
        *(uint64_t *)gpr_at(cpu, i->reg[0]) = mask;
        NEXT;
}

/* PTEST, and VTESTPS and VTESTPD which look at sign bits only: ZF of a & b, CF of ~a & b. */
HANDLER(ptest)
{
        union x86_vector buffer;
        const union x86_vector *a = simd_reg(cpu, i->reg[0]), *b = source(cpu, i, 1, &buffer);
        uint64_t mask = i->imm, both = 0, rest = 0;

        for (unsigned k = 0; k < i->imm2 / 8; k++) {
                both |= a->u64[k] & b->u64[k];
                rest |= ~a->u64[k] & b->u64[k];
        }
        simd_set_flags(cpu, (both & mask ? 0 : X86_FLAG_ZF) | (rest & mask ? 0 : X86_FLAG_CF));
        NEXT;
}

HANDLER(vzeroupper)
{
        for (unsigned n = 0; n < (cpu->mode64 ? 16 : 8); n++)
                simd_zero_upper(simd_reg(cpu, n));
        NEXT;
}

HANDLER(vzeroall)
{
        memset(cpu->s.fpu.ymm, 0, (cpu->mode64 ? 16 : 8) * sizeof(cpu->s.fpu.ymm[0]));
        NEXT;
}

/* ---- binding ---- */

static insn_fn with_element(struct insn *i, unsigned bytes, insn_fn fn)
{
        i->aux = (void *)(uintptr_t)bytes;
        return fn;
}

static insn_fn with_mask(struct insn *i, uint64_t mask)
{
        i->imm = mask;
        return ptest;
}

#define BOTH(name) case ZYDIS_MNEMONIC_##name: case ZYDIS_MNEMONIC_V##name
#define VEX(name) case ZYDIS_MNEMONIC_V##name

insn_fn simd_bind_lane(struct insn *i, const struct decoded *d)
{
        if (simd_has_mmx(d))
                return NULL;
        i->imm2 = i->flags & INSN_VEX && d->z->raw.vex.L ? 32 : 16;
        switch (d->z->mnemonic) {
        BOTH(PINSRB): return with_element(i, 1, pinsr);
        BOTH(PINSRW): return with_element(i, 2, pinsr);
        BOTH(PINSRD): return with_element(i, 4, pinsr);
        BOTH(PINSRQ): return with_element(i, 8, pinsr);
        BOTH(PEXTRB): return with_element(i, 1, pextr);
        BOTH(PEXTRW): return with_element(i, 2, pextr);
        BOTH(PEXTRD):
        BOTH(EXTRACTPS): return with_element(i, 4, pextr);
        BOTH(PEXTRQ): return with_element(i, 8, pextr);
        BOTH(INSERTPS): return insertps;
        BOTH(PBLENDVB): return with_element(i, 1, blendv);
        BOTH(BLENDVPS): return with_element(i, 4, blendv);
        BOTH(BLENDVPD): return with_element(i, 8, blendv);
        BOTH(PALIGNR): return palignr;
        BOTH(PSLLDQ): return pslldq;
        BOTH(PSRLDQ): return psrldq;
        VEX(BROADCASTF128):
        VEX(BROADCASTI128): return vbroadcast_128;
        VEX(INSERTF128):
        VEX(INSERTI128): return vinsert_128;
        VEX(EXTRACTF128):
        VEX(EXTRACTI128): return vextract_128;
        VEX(PERM2F128):
        VEX(PERM2I128): return vperm2_128;
        BOTH(MOVMSKPS): return with_element(i, 4, movmsk);
        BOTH(MOVMSKPD): return with_element(i, 8, movmsk);
        BOTH(PMOVMSKB): return pmovmskb;
        BOTH(PTEST): return with_mask(i, UINT64_MAX);
        VEX(TESTPS): return with_mask(i, UINT64_C(0x8000000080000000));
        VEX(TESTPD): return with_mask(i, UINT64_C(0x8000000000000000));
        VEX(ZEROUPPER): return vzeroupper;
        VEX(ZEROALL): return vzeroall;
        default: return NULL;
        }
}
