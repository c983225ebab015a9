/*
 * Instructions on segment registers and selectors: MOV, PUSH, POP, LDS and its like, LAR, LSL, VERR, VERW, ARPL.
 *
 * Source: Intel SDM vol. 2 "MOV", "POP", "LDS/LES/LFS/LGS/LSS", "LAR", "LSL", "VERR/VERW", "ARPL".
 */
#include "cpu/x86/system.h"

/* After SS was loaded interrupts and debug traps wait for one more instruction (SDM vol. 3A §6.8.3). */
static const struct insn *loaded(struct x86_cpu *cpu, const struct insn *i, unsigned seg)
{
        if (seg == X86_SS)
                cpu->s.interrupt_shadow = true;
        else if (cpu->mode64 || seg >= X86_FS)
                return i + 1;
        return system_leave(cpu, i);
}

static const struct insn *op_mov_to_seg(struct x86_cpu *cpu, const struct insn *i)
{
        unsigned seg = i->imm2;

        if (seg == X86_CS || seg > X86_GS)
                x86_ud(cpu);
        x86_load_segment(cpu, seg, system_word(cpu, i, 1));
        return loaded(cpu, i, seg);
}

static const struct insn *op_mov_from_seg(struct x86_cpu *cpu, const struct insn *i)
{
        uint16_t selector = cpu->s.seg[i->imm2].selector;

        if (i->memory_operand == 0)
                mmu_write16(cpu, insn_linear(cpu, i, 2, true), selector);
        else
                system_set_reg(cpu, i->reg[0], selector, i->opsize);
        return i + 1;
}

static const struct insn *op_push_seg(struct x86_cpu *cpu, const struct insn *i)
{
        struct stack stack = stack_current(cpu, i->stack_size);
        uint16_t selector = cpu->s.seg[i->imm2].selector;

        if (i->stack_size == 4) {
                /* Only the low word is written; the slot is as wide as the operand. */
                uint64_t sp = (stack.sp - 4) & stack.mask;

                mmu_write16(cpu, x86_linear(cpu, X86_SS, sp, 2, true), selector);
                stack.sp = sp;
        } else {
                stack_push(cpu, &stack, selector);
        }
        x86_set_sp(cpu, stack.sp);
        return i + 1;
}

static const struct insn *op_pop_seg(struct x86_cpu *cpu, const struct insn *i)
{
        struct stack stack = stack_current(cpu, i->stack_size);
        unsigned seg = i->imm2;
        uint64_t sp;
        uint16_t selector = (uint16_t)stack_pop(cpu, &stack);

        sp = stack.sp;
        if (seg == X86_SS) {
                uint64_t mask = stack.mask;

                x86_load_segment(cpu, seg, selector);
                /* The old stack's width counts for the increment. */
                cpu->s.gpr[X86_RSP] = mask == UINT16_MAX ? (cpu->s.gpr[X86_RSP] & ~mask) | sp : sp;
        } else {
                x86_load_segment(cpu, seg, selector);
                x86_set_sp(cpu, sp);
        }
        return loaded(cpu, i, seg);
}

/* A far pointer in memory: offset, then selector. */
static const struct insn *op_load_far(struct x86_cpu *cpu, const struct insn *i)
{
        unsigned seg = i->imm2, bytes = i->opsize;
        uint64_t linear = insn_linear(cpu, i, bytes + 2, false), offset = 0;
        uint8_t pointer[10];
        uint16_t selector;

        mmu_read_bytes(cpu, linear, pointer, bytes + 2);
        memcpy(&offset, pointer, bytes);
        memcpy(&selector, pointer + bytes, 2);
        x86_load_segment(cpu, seg, selector);
        system_set_reg(cpu, i->reg[0], offset, bytes);
        /* LSS has no shadow: ESP comes with it. */
        return seg == X86_SS ? system_leave(cpu, i) : loaded(cpu, i, seg);
}

/* ---- asking about a selector ---- */

static void set_zf(struct x86_cpu *cpu, bool zf)
{
        uint64_t flags = x86_flags(cpu) & ~X86_FLAG_ZF;

        x86_set_flags(cpu, zf ? flags | X86_FLAG_ZF : flags);
}

/* The descriptor when it exists and is visible at this CPL and the selector's RPL. */
static bool visible(struct x86_cpu *cpu, uint16_t selector, struct descriptor *d)
{
        if (!(selector & 0xfffc) || !descriptor_read(cpu, selector, d))
                return false;
        if (DESC_S(d->raw) && DESC_CODE(d->raw) && DESC_CONFORMING(d->raw))
                return true;
        return DESC_DPL(d->raw) >= cpu->cpl && DESC_DPL(d->raw) >= (selector & 3u);
}

static void need_protected(struct x86_cpu *cpu)
{
        if (!x86_protected(cpu))
                x86_ud(cpu);
}

/* Which system types LAR accepts (SDM vol. 2 "LAR", table 3-51); LSL only those with a limit. */
static bool type_has_rights(const struct x86_cpu *cpu, unsigned type, bool limit)
{
        switch (type) {
        case TYPE_LDT:
        case TYPE_TSS32:
        case TYPE_TSS32_BUSY:
                return true;
        case TYPE_TSS16:
        case TYPE_TSS16_BUSY:
                return !x86_long(cpu);
        case TYPE_CALL32:
                return !limit;
        case TYPE_CALL16:
        case TYPE_TASK:
                return !limit && !x86_long(cpu);
        default:
                return false;
        }
}

static const struct insn *op_lar(struct x86_cpu *cpu, const struct insn *i)
{
        bool limit = i->op == ZYDIS_MNEMONIC_LSL, ok;
        struct descriptor d;
        uint64_t value = 0;

        need_protected(cpu);
        ok = visible(cpu, system_word(cpu, i, 1), &d) && (DESC_S(d.raw) || type_has_rights(cpu, DESC_TYPE(d.raw), limit));
        if (ok)
                value = limit ? descriptor_segment(&d).limit : d.raw >> 32 & 0xffff00;
        if (ok)
                system_set_reg(cpu, i->reg[0], value, i->opsize);
        set_zf(cpu, ok);
        return i + 1;
}

static const struct insn *op_verr(struct x86_cpu *cpu, const struct insn *i)
{
        struct descriptor d;
        bool ok;

        need_protected(cpu);
        ok = visible(cpu, system_word(cpu, i, 0), &d) && DESC_S(d.raw);
        if (ok && i->op == ZYDIS_MNEMONIC_VERR)
                ok = !DESC_CODE(d.raw) || DESC_RW(d.raw);
        else if (ok)
                ok = !DESC_CODE(d.raw) && DESC_RW(d.raw);
        set_zf(cpu, ok);
        return i + 1;
}

/* Memory is written, and has to be writable, only when the RPL changes: so do processors, though the manual does not say. */
static const struct insn *op_arpl(struct x86_cpu *cpu, const struct insn *i)
{
        uint16_t to, from = (uint16_t)system_reg(cpu, i->reg[1], 2);
        bool raise;

        need_protected(cpu);
        to = system_word(cpu, i, 0);
        raise = (to & 3) < (from & 3);
        if (raise) {
                to = (uint16_t)((to & ~3u) | (from & 3u));
                if (i->memory_operand == 0)
                        mmu_write16(cpu, insn_linear(cpu, i, 2, true), to);
                else
                        system_set_reg(cpu, i->reg[0], to, 2);
        }
        set_zf(cpu, raise);
        return i + 1;
}

/* ---- binding ---- */

static bool segment_operand(const struct decoded *d, unsigned n, uint8_t *seg)
{
        if (d->operand[n].type != ZYDIS_OPERAND_TYPE_REGISTER || ZydisRegisterGetClass(d->operand[n].reg.value) != ZYDIS_REGCLASS_SEGMENT)
                return false;
        *seg = (uint8_t)(d->operand[n].reg.value - ZYDIS_REGISTER_ES);
        return true;
}

static insn_fn load_far_bind(struct insn *insn, unsigned seg)
{
        insn->imm2 = (uint8_t)seg;
        insn->flags |= INSN_ENDS_BLOCK;
        return op_load_far;
}

insn_fn system_segment_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        switch (insn->op) {
        case ZYDIS_MNEMONIC_MOV:
                if (segment_operand(d, 0, &insn->imm2)) {
                        insn->flags |= INSN_ENDS_BLOCK;
                        return op_mov_to_seg;
                }
                return segment_operand(d, 1, &insn->imm2) ? op_mov_from_seg : NULL;
        case ZYDIS_MNEMONIC_PUSH:
                return segment_operand(d, 0, &insn->imm2) ? op_push_seg : NULL;
        case ZYDIS_MNEMONIC_POP:
                if (!segment_operand(d, 0, &insn->imm2))
                        return NULL;
                insn->flags |= INSN_ENDS_BLOCK;
                return op_pop_seg;
        case ZYDIS_MNEMONIC_LDS:
                return load_far_bind(insn, X86_DS);
        case ZYDIS_MNEMONIC_LES:
                return load_far_bind(insn, X86_ES);
        case ZYDIS_MNEMONIC_LFS:
                return load_far_bind(insn, X86_FS);
        case ZYDIS_MNEMONIC_LGS:
                return load_far_bind(insn, X86_GS);
        case ZYDIS_MNEMONIC_LSS:
                return load_far_bind(insn, X86_SS);
        case ZYDIS_MNEMONIC_LAR:
        case ZYDIS_MNEMONIC_LSL:
                return op_lar;
        case ZYDIS_MNEMONIC_VERR:
        case ZYDIS_MNEMONIC_VERW:
                return op_verr;
        case ZYDIS_MNEMONIC_ARPL:
                return op_arpl;
        default:
                return NULL;
        }
}
