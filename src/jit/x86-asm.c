#include "jit/x86-asm.h"

#define REL8 (1u << 31)

/* ---- bytes ---- */

void asm_bytes(struct x86_asm *a, const void *bytes, size_t size_bytes)
{
        if (a->size - a->used < size_bytes) {
                a->full = true;
                return;
        }
        memcpy(a->buffer + a->used, bytes, size_bytes);
        a->used += size_bytes;
}

void asm_byte(struct x86_asm *a, uint8_t value)
{
        asm_bytes(a, &value, 1);
}

void asm_u32(struct x86_asm *a, uint32_t value)
{
        asm_bytes(a, &value, sizeof(value));
}

void asm_u64(struct x86_asm *a, uint64_t value)
{
        asm_bytes(a, &value, sizeof(value));
}

/* The forms that the SDM recommends (vol. 2B "NOP", table 4-12). */
void asm_nops(struct x86_asm *a, unsigned left)
{
        static const uint8_t nop[11][11] = {
                { 0x90 },
                { 0x66, 0x90 },
                { 0x0f, 0x1f, 0x00 },
                { 0x0f, 0x1f, 0x40, 0x00 },
                { 0x0f, 0x1f, 0x44, 0x00, 0x00 },
                { 0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00 },
                { 0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00 },
                { 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00 },
                { 0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00 },
                { 0x66, 0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00 },
                { 0x66, 0x66, 0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00 },
        };

        while (left) {
                unsigned n = MIN(left, 11u);

                asm_bytes(a, nop[n - 1], n);
                left -= n;
        }
}

void asm_align(struct x86_asm *a, unsigned alignment, unsigned ahead)
{
        asm_nops(a, (unsigned)(-(a->used + ahead)) & (alignment - 1));
}

bool asm_fits(const struct x86_asm *a, unsigned ahead, unsigned n)
{
        return !a->fit_jumps || (a->address + a->used + ahead) % 32 + n < 32;
}

void asm_fit(struct x86_asm *a, unsigned n)
{
        if (!asm_fits(a, 0, n))
                asm_nops(a, 32 - (unsigned)((a->address + a->used) % 32));
}

/* ---- one instruction ---- */

static unsigned high(uint8_t reg)
{
        return reg == ASM_NONE ? 0 : reg >> 3 & 1;
}

/* R, X, B as they stand in a REX prefix. */
static unsigned extension_bits(const struct asm_insn *i)
{
        unsigned bits = 0;

        if (i->modrm) {
                bits |= high(i->reg) << 2;
                if (i->memory)
                        bits |= high(i->mem.index) << 1 | high(i->mem.base);
                else
                        bits |= high(i->rm);
        } else if (i->opcode_reg) {
                bits |= high(i->rm);
        }
        return bits;
}

static uint8_t *put_vex(uint8_t *to, const struct asm_insn *i)
{
        unsigned rxb = extension_bits(i);
        uint8_t last = (uint8_t)((~i->vvvv & 15) << 3 | i->vex_l << 2 | i->vex_pp);

        if (!(rxb & 3) && !i->w && i->map == ASM_MAP_0F) {
                *to++ = 0xc5;
                *to++ = (uint8_t)((rxb & 4 ? 0 : 0x80) | last);
                return to;
        }
        *to++ = 0xc4;
        *to++ = (uint8_t)((~rxb & 7) << 5 | i->map);
        *to++ = (uint8_t)(i->w << 7 | last);
        return to;
}

static uint8_t *put_memory(uint8_t *to, unsigned reg, const struct asm_mem *mem)
{
        unsigned field = (reg & 7) << 3, base = mem->base & 7;
        bool sib = mem->base == ASM_NONE || mem->index != ASM_NONE || base == ASM_RSP;
        unsigned mod = mem->disp == 0 && base != ASM_RBP ? 0 : mem->disp == (int8_t)mem->disp ? 1 : 2;

        if (mem->base == ASM_NONE) /* a SIB byte without base, so that it is not relative to RIP */
                mod = 0;
        *to++ = (uint8_t)(mod << 6 | field | (sib ? 4 : base));
        if (sib) {
                unsigned index = mem->index == ASM_NONE ? 4 : mem->index & 7u;

                *to++ = (uint8_t)(__builtin_ctz(mem->scale ? mem->scale : 1) << 6 | index << 3 | (mem->base == ASM_NONE ? 5 : base));
        }
        if (mem->base == ASM_NONE || mod == 2) {
                memcpy(to, &mem->disp, 4);
                to += 4;
        } else if (mod == 1) {
                *to++ = (uint8_t)mem->disp;
        }
        return to;
}

#define INSN_BYTES_MAX 32 /* more than the parts can have: 5 of prefixes, 3 of VEX, 1, 2, 4, 8 */

bool asm_insn(struct x86_asm *a, const struct asm_insn *i)
{
        unsigned rex = i->vex ? 0 : extension_bits(i) | (unsigned)i->w << 3;
        uint8_t *to = a->buffer + a->used;

        if (i->no_rex && (rex || i->rex) && !i->vex)
                return false;
        if (a->size - a->used < INSN_BYTES_MAX) {
                a->full = true;
                return true;
        }
        if (i->modrm && i->memory && i->mem.gs)
                *to++ = 0x65;
        for (unsigned n = 0; n < i->prefixes; n++)
                *to++ = i->prefix[n];
        if (i->vex) {
                to = put_vex(to, i);
        } else {
                if (rex || i->rex)
                        *to++ = (uint8_t)(0x40 | rex);
                if (i->map != ASM_MAP_ONE)
                        *to++ = 0x0f;
                if (i->map >= ASM_MAP_0F38)
                        *to++ = i->map == ASM_MAP_0F38 ? 0x38 : 0x3a;
        }
        *to++ = i->opcode_reg ? (uint8_t)((i->opcode & ~7) | (i->rm & 7)) : i->opcode;
        if (i->modrm) {
                if (i->memory)
                        to = put_memory(to, i->reg, &i->mem);
                else
                        *to++ = (uint8_t)(0xc0 | (i->reg & 7) << 3 | (i->rm & 7));
        }
        for (unsigned n = 0; n < i->imm_size; n++)
                *to++ = i->imm[n];
        a->used = (size_t)(to - a->buffer);
        return true;
}

/* ---- shorthands ---- */

static struct asm_insn insn_of(unsigned size_bytes, uint32_t opcode, unsigned reg)
{
        return (struct asm_insn){
                .map = opcode >> 8 & 3, .opcode = (uint8_t)opcode, .modrm = true, .w = size_bytes == 8, .reg = (uint8_t)reg,
                .prefix = { 0x66 }, .prefixes = size_bytes == 2,
        };
}

void asm_rr(struct x86_asm *a, unsigned size_bytes, uint32_t opcode, unsigned reg, unsigned rm)
{
        struct asm_insn i = insn_of(size_bytes, opcode, reg);

        i.rm = (uint8_t)rm;
        i.rex = size_bytes == 1 && ((reg >= 4 && reg < 8) || (rm >= 4 && rm < 8));
        asm_insn(a, &i);
}

void asm_rm(struct x86_asm *a, unsigned size_bytes, uint32_t opcode, unsigned reg, struct asm_mem mem)
{
        struct asm_insn i = insn_of(size_bytes, opcode, reg);

        i.memory = true;
        i.mem = mem;
        i.rex = size_bytes == 1 && reg >= 4 && reg < 8;
        asm_insn(a, &i);
}

void asm_mov(struct x86_asm *a, unsigned size_bytes, unsigned to, unsigned from)
{
        asm_rr(a, size_bytes, 0x89, from, to);
}

void asm_load(struct x86_asm *a, unsigned size_bytes, unsigned to, struct asm_mem mem)
{
        asm_rm(a, size_bytes, size_bytes == 1 ? 0x8a : 0x8b, to, mem);
}

void asm_store(struct x86_asm *a, unsigned size_bytes, struct asm_mem mem, unsigned from)
{
        asm_rm(a, size_bytes, size_bytes == 1 ? 0x88 : 0x89, from, mem);
}

void asm_lea(struct x86_asm *a, unsigned to, struct asm_mem mem)
{
        asm_rm(a, 8, 0x8d, to, mem);
}

void asm_mov_imm(struct x86_asm *a, unsigned to, uint64_t value)
{
        if (value <= UINT32_MAX) {
                if (to >= 8)
                        asm_byte(a, 0x41);
                asm_byte(a, (uint8_t)(0xb8 | (to & 7)));
                asm_u32(a, (uint32_t)value);
        } else if ((int64_t)value == (int32_t)value) {
                asm_rr(a, 8, 0xc7, 0, to);
                asm_u32(a, (uint32_t)value);
        } else {
                asm_byte(a, to >= 8 ? 0x49 : 0x48);
                asm_byte(a, (uint8_t)(0xb8 | (to & 7)));
                asm_u64(a, value);
        }
}

void asm_alu_imm(struct x86_asm *a, unsigned op, unsigned size_bytes, unsigned reg, int32_t imm)
{
        if (size_bytes == 1 || imm == (int8_t)imm) {
                asm_rr(a, size_bytes, size_bytes == 1 ? 0x80 : 0x83, op, reg);
                asm_byte(a, (uint8_t)imm);
                return;
        }
        asm_rr(a, size_bytes, 0x81, op, reg);
        if (size_bytes == 2)
                asm_bytes(a, &imm, 2);
        else
                asm_u32(a, (uint32_t)imm);
}

void asm_pext(struct x86_asm *a, unsigned to, unsigned from, struct asm_mem mask)
{
        asm_insn(a, &(struct asm_insn){
                            .map = ASM_MAP_0F38, .opcode = 0xf5, .vex = true, .vex_pp = 2, .w = true, .vvvv = (uint8_t)from,
                            .modrm = true, .memory = true, .reg = (uint8_t)to, .mem = mask,
                    });
}

/* ---- labels ---- */

static void fill(struct x86_asm *a, uint32_t use, uint32_t at)
{
        uint32_t field = use & ~REL8;
        int32_t rel;

        if (use & REL8) {
                rel = (int32_t)(at - (field + 1));
                if (rel != (int8_t)rel)
                        a->full = true;
                else
                        a->buffer[field] = (uint8_t)rel;
                return;
        }
        rel = (int32_t)(at - (field + 4));
        memcpy(a->buffer + field, &rel, sizeof(rel));
}

void asm_bind(struct x86_asm *a, struct asm_label *label)
{
        label->at = (uint32_t)a->used;
        label->bound = true;
        if (a->full)
                return;
        for (unsigned n = 0; n < label->uses; n++)
                fill(a, label->use[n], label->at);
}

static void use(struct x86_asm *a, struct asm_label *label, bool rel8)
{
        static const uint8_t zero[4];
        uint32_t at = (uint32_t)a->used | (rel8 ? REL8 : 0);

        asm_bytes(a, zero, rel8 ? 1 : 4);
        if (a->full)
                return;
        if (label->bound)
                fill(a, at, label->at);
        else if (label->uses == ARRAY_SIZE(label->use))
                a->full = true;
        else
                label->use[label->uses++] = at;
}

void asm_rel32(struct x86_asm *a, struct asm_label *label)
{
        use(a, label, false);
}

void asm_jmp(struct x86_asm *a, struct asm_label *label)
{
        asm_fit(a, 5);
        asm_byte(a, 0xe9);
        use(a, label, false);
}

void asm_jcc(struct x86_asm *a, enum asm_condition condition, struct asm_label *label)
{
        asm_fit(a, 6);
        asm_byte(a, 0x0f);
        asm_byte(a, (uint8_t)(0x80 | condition));
        use(a, label, false);
}

void asm_call(struct x86_asm *a, struct asm_label *label)
{
        asm_fit(a, 5);
        asm_byte(a, 0xe8);
        use(a, label, false);
}

void asm_lea_label(struct x86_asm *a, unsigned to, struct asm_label *label)
{
        asm_byte(a, to >= 8 ? 0x4c : 0x48);
        asm_byte(a, 0x8d);
        asm_byte(a, (uint8_t)((to & 7) << 3 | 5)); /* [rip + rel32] */
        use(a, label, false);
}

void asm_jrcxz(struct x86_asm *a, struct asm_label *label)
{
        asm_fit(a, 2);
        asm_byte(a, 0xe3);
        use(a, label, true);
}

void asm_jmp_short(struct x86_asm *a, struct asm_label *label)
{
        asm_fit(a, 2);
        asm_byte(a, 0xeb);
        use(a, label, true);
}

void asm_jcc_short(struct x86_asm *a, enum asm_condition condition, struct asm_label *label)
{
        asm_fit(a, 2);
        asm_byte(a, (uint8_t)(0x70 | condition));
        use(a, label, true);
}

static void rel32_to(struct x86_asm *a, uint64_t address)
{
        asm_u32(a, (uint32_t)(address - (a->address + a->used + 4)));
}

void asm_jmp_to(struct x86_asm *a, uint64_t address)
{
        asm_byte(a, 0xe9);
        rel32_to(a, address);
}

void asm_call_to(struct x86_asm *a, uint64_t address)
{
        asm_byte(a, 0xe8);
        rel32_to(a, address);
}
