/*
 * Vector loads and stores under a mask, and gathers.
 *
 * An element whose mask bit is clear is not accessed and cannot fault. A masked store probes all its elements before it writes
 * the first one. A gather is interrupted by a fault with the elements before it done and their mask cleared, so that it can be
 * started again (SDM vol. 2C "VPGATHERDD"). The mask of each element is its highest bit.
 */
#include "cpu/x86/simd.h"


/* VMASKMOVPS …: aux is the element's size, imm2 the width. reg[0] = [mem] under reg[1], or [mem] = reg[2] under reg[1]. */
static bool masked(const union x86_vector *mask, unsigned at, unsigned bytes)
{
        return mask->u8[at + bytes - 1] & 0x80;
}

HANDLER(vmaskmov_load)
{
        const union x86_vector *mask = simd_reg(cpu, i->reg[1]);
        unsigned bytes = (unsigned)(uintptr_t)i->aux;
        uint64_t offset = insn_offset(cpu, i);
        union x86_vector out = { 0 };

        for (unsigned k = 0; k < i->imm2; k += bytes)
                if (masked(mask, k, bytes))
                        simd_read(cpu, x86_linear(cpu, i->seg, offset + k, bytes, false), out.u8 + k, bytes);
        *simd_reg(cpu, i->reg[0]) = out;
        return i + 1;
}

HANDLER(vmaskmov_store)
{
        const union x86_vector *mask = simd_reg(cpu, i->reg[1]), *from = simd_reg(cpu, i->reg[2]);
        unsigned bytes = (unsigned)(uintptr_t)i->aux;
        uint64_t offset = insn_offset(cpu, i);

        for (unsigned k = 0; k < i->imm2; k += bytes)
                if (masked(mask, k, bytes))
                        mmu_probe_write(cpu, x86_linear(cpu, i->seg, offset + k, bytes, true), bytes);
        for (unsigned k = 0; k < i->imm2; k += bytes)
                if (masked(mask, k, bytes))
                        simd_write(cpu, x86_linear(cpu, i->seg, offset + k, bytes, true), from->u8 + k, bytes);
        return i + 1;
}

/* MASKMOVQ, MASKMOVDQU: bytes to [segment:rDI]; i->seg was set by the binder. */
static void mask_bytes(struct x86_cpu *cpu, const struct insn *i, const uint8_t *from, const uint8_t *mask, unsigned bytes)
{
        uint64_t offset = cpu->s.gpr[7], width = i->asize == 8 ? UINT64_MAX : i->asize == 4 ? UINT32_MAX : UINT16_MAX;

        for (unsigned k = 0; k < bytes; k++)
                if (mask[k] & 0x80)
                        mmu_probe_write(cpu, x86_linear(cpu, i->seg, (offset + k) & width, 1, true), 1);
        for (unsigned k = 0; k < bytes; k++)
                if (mask[k] & 0x80)
                        mmu_write8(cpu, x86_linear(cpu, i->seg, (offset + k) & width, 1, true), from[k]);
}

HANDLER(maskmovdqu)
{
        mask_bytes(cpu, i, simd_reg(cpu, i->reg[0])->u8, simd_reg(cpu, i->reg[1])->u8, 16);
        return i + 1;
}

HANDLER(maskmovq)
{
        x87_check_pending(cpu);
        mask_bytes(cpu, i, cpu->s.fpu.r[i->reg[0] & 7], cpu->s.fpu.r[i->reg[1] & 7], 8);
        mmx_enter(cpu);
        return i + 1;
}

/* ---- gathers: reg[0] destination, reg[1] index vector, reg[2] mask; aux says the sizes ---- */

struct gather {
        uint16_t mnemonic;
        uint8_t index_bytes, element_bytes;
};

static const struct gather gathers[] = {
        { ZYDIS_MNEMONIC_VGATHERDPS, 4, 4 }, { ZYDIS_MNEMONIC_VPGATHERDD, 4, 4 },
        { ZYDIS_MNEMONIC_VGATHERDPD, 4, 8 }, { ZYDIS_MNEMONIC_VPGATHERDQ, 4, 8 },
        { ZYDIS_MNEMONIC_VGATHERQPS, 8, 4 }, { ZYDIS_MNEMONIC_VPGATHERQD, 8, 4 },
        { ZYDIS_MNEMONIC_VGATHERQPD, 8, 8 }, { ZYDIS_MNEMONIC_VPGATHERQQ, 8, 8 },
};

HANDLER(gather)
{
        const struct gather *g = i->aux;
        union x86_vector *to = simd_reg(cpu, i->reg[0]), *index = simd_reg(cpu, i->reg[1]), *mask = simd_reg(cpu, i->reg[2]);
        unsigned width = i->imm2 & 0x30, scale = i->imm2 & 3, bytes = g->element_bytes;
        unsigned count = MIN(width / bytes, width / g->index_bytes), used = count * bytes;
        uint64_t base = *(uint64_t *)gpr_at(cpu, i->base) + (uint64_t)i->disp;

        for (unsigned k = 0; k < sizeof(*mask); k += bytes)
                memset(mask->u8 + k, k < width && masked(mask, k, bytes) ? 0xff : 0, bytes);
        for (unsigned k = 0; k < count; k++) {
                uint64_t offset = g->index_bytes == 4 ? (uint64_t)(int64_t)index->i32[k] : index->u64[k], value;

                if (!masked(mask, k * bytes, bytes))
                        continue;
                offset = base + (offset << scale);
                if (i->asize == 4)
                        offset = (uint32_t)offset;
                simd_read(cpu, x86_linear(cpu, i->seg, offset, bytes, false), &value, bytes);
                memcpy(to->u8 + k * bytes, &value, bytes);
                memset(mask->u8 + k * bytes, 0, bytes);
                if (width == 16)
                        simd_zero_upper(to);
        }
        memset(to->u8 + used, 0, sizeof(*to) - used);
        memset(mask, 0, sizeof(*mask));
        return i + 1;
}

static insn_fn bind_gather(struct insn *i, const struct decoded *d)
{
        for (unsigned k = 0; k < ARRAY_SIZE(gathers); k++) {
                const ZydisDecodedOperandMem *mem = &d->operand[1].mem;

                if (gathers[k].mnemonic != d->z->mnemonic)
                        continue;
                i->aux = (void *)&gathers[k];
                i->reg[1] = (uint8_t)ZydisRegisterGetId(mem->index);
                i->index = GPR_ZERO * 8;
                i->imm2 = (uint8_t)((d->z->raw.vex.L ? 0x20 : 0x10) | (mem->scale ? __builtin_ctz(mem->scale) : 0));
                return gather;
        }
        return NULL;
}

static insn_fn bind_vmaskmov(struct insn *i, const struct decoded *d, unsigned bytes)
{
        i->aux = (void *)(uintptr_t)bytes;
        i->imm2 = d->z->raw.vex.L ? 32 : 16;
        return d->operand[0].type == ZYDIS_OPERAND_TYPE_MEMORY ? vmaskmov_store : vmaskmov_load;
}

/* The destination is an operand that is not written in the instruction. */
static insn_fn bind_maskmov(struct insn *i, const struct decoded *d, insn_fn fn)
{
        unsigned last = d->z->operand_count - 1u;
        ZydisRegister segment = d->operand[last].type == ZYDIS_OPERAND_TYPE_MEMORY ? d->operand[last].mem.segment : ZYDIS_REGISTER_DS;

        i->seg = segment == ZYDIS_REGISTER_NONE ? X86_DS : (uint8_t)(segment - ZYDIS_REGISTER_ES);
        return fn;
}

insn_fn simd_bind_masked(struct insn *i, const struct decoded *d)
{
        switch (d->z->mnemonic) {
        case ZYDIS_MNEMONIC_VMASKMOVPS:
        case ZYDIS_MNEMONIC_VPMASKMOVD:
                return bind_vmaskmov(i, d, 4);
        case ZYDIS_MNEMONIC_VMASKMOVPD:
        case ZYDIS_MNEMONIC_VPMASKMOVQ:
                return bind_vmaskmov(i, d, 8);
        case ZYDIS_MNEMONIC_MASKMOVDQU:
        case ZYDIS_MNEMONIC_VMASKMOVDQU:
                return bind_maskmov(i, d, maskmovdqu);
        case ZYDIS_MNEMONIC_MASKMOVQ:
                return bind_maskmov(i, d, maskmovq);
        default:
                return bind_gather(i, d);
        }
}
