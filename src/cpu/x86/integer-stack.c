/*
 * The stack: PUSH and POP of general registers, memory and immediates, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE. Segment registers
 * are pushed and popped by system instructions.
 */
#include "cpu/x86/integer.h"

uint64_t exec_stack_read(struct x86_cpu *cpu, uint64_t sp, unsigned size_bytes)
{
        uint64_t linear = x86_linear(cpu, X86_SS, sp, size_bytes, false);

        switch (size_bytes) {
        case 2: return mmu_read16(cpu, linear);
        case 4: return mmu_read32(cpu, linear);
        default: return mmu_read64(cpu, linear);
        }
}

void exec_stack_write(struct x86_cpu *cpu, uint64_t sp, uint64_t value, unsigned size_bytes)
{
        uint64_t linear = x86_linear(cpu, X86_SS, sp, size_bytes, true);

        switch (size_bytes) {
        case 2: mmu_write16(cpu, linear, (uint16_t)value); break;
        case 4: mmu_write32(cpu, linear, (uint32_t)value); break;
        default: mmu_write64(cpu, linear, value); break;
        }
}

/* ---- 64-bit mode, 8 bytes ---- */

HANDLER(push64_r)
{
        stack_push64(cpu, reg_get64(cpu, i->reg[0]));
        NEXT;
}

HANDLER(push64_i)
{
        stack_push64(cpu, i->imm);
        NEXT;
}

HANDLER(push64_m)
{
        stack_push64(cpu, load64(cpu, i, FORM_ANY));
        NEXT;
}

/* POP RSP keeps the value read: the increment comes first. */
HANDLER(pop64_r)
{
        uint64_t value = stack_peek64(cpu);

        cpu->s.gpr[X86_RSP] += 8;
        reg_set64(cpu, i->reg[0], value);
        NEXT;
}

/* ---- any mode and size ---- */

static uint64_t get_sized(const struct x86_cpu *cpu, uint8_t at, unsigned size_bytes)
{
        return size_bytes == 2 ? reg_get16(cpu, at) : size_bytes == 4 ? reg_get32(cpu, at) : reg_get64(cpu, at);
}

static void set_sized(struct x86_cpu *cpu, uint8_t at, uint64_t value, unsigned size_bytes)
{
        if (size_bytes == 2)
                reg_set16(cpu, at, (uint16_t)value);
        else if (size_bytes == 4)
                reg_set32(cpu, at, (uint32_t)value);
        else
                reg_set64(cpu, at, value);
}

HANDLER(push_r)
{
        exec_push(cpu, get_sized(cpu, i->reg[0], i->opsize), i->opsize);
        NEXT;
}

HANDLER(push_i)
{
        exec_push(cpu, i->imm, i->opsize);
        NEXT;
}

HANDLER(push_m)
{
        uint64_t linear = insn_linear(cpu, i, i->opsize, false);

        exec_push(cpu,
                  i->opsize == 2   ? mmu_read16(cpu, linear)
                  : i->opsize == 4 ? mmu_read32(cpu, linear)
                                   : mmu_read64(cpu, linear),
                  i->opsize);
        NEXT;
}

HANDLER(pop_r)
{
        uint64_t value = exec_peek(cpu, i->opsize);

        stack_set(cpu, cpu->s.gpr[X86_RSP] + i->opsize);
        set_sized(cpu, i->reg[0], value, i->opsize);
        NEXT;
}

/* An address with rSP as base is computed with rSP incremented (SDM vol. 2 "POP"); a fault of the store leaves it as it was. */
HANDLER(pop_m)
{
        uint64_t value = exec_peek(cpu, i->opsize), rsp = cpu->s.gpr[X86_RSP], linear, after;

        stack_set(cpu, rsp + i->opsize);
        after = cpu->s.gpr[X86_RSP];
        linear = insn_offset(cpu, i);
        cpu->s.gpr[X86_RSP] = rsp;
        linear = x86_linear(cpu, i->seg, linear, i->opsize, true);
        if (i->opsize == 2)
                mmu_write16(cpu, linear, (uint16_t)value);
        else if (i->opsize == 4)
                mmu_write32(cpu, linear, (uint32_t)value);
        else
                mmu_write64(cpu, linear, value);
        cpu->s.gpr[X86_RSP] = after;
        NEXT;
}

/* ---- all registers ---- */

HANDLER(pusha)
{
        unsigned size = i->opsize;
        uint64_t mask = stack_mask(cpu), sp = cpu->s.gpr[X86_RSP];

        for (unsigned n = 0; n < 8; n++)
                exec_stack_write(cpu, (sp - (n + 1) * size) & mask, get_sized(cpu, (uint8_t)(n * 8), size), size);
        stack_set(cpu, sp - 8 * size);
        NEXT;
}

HANDLER(popa)
{
        unsigned size = i->opsize;
        uint64_t mask = stack_mask(cpu), sp = cpu->s.gpr[X86_RSP], value[8];

        for (unsigned n = 8; n-- > 0;)
                value[n] = exec_stack_read(cpu, (sp + (7 - n) * size) & mask, size);
        for (unsigned n = 0; n < 8; n++)
                if (n != X86_RSP)
                        set_sized(cpu, (uint8_t)(n * 8), value[n], size);
        stack_set(cpu, sp + 8 * size);
        NEXT;
}

/* ---- EFLAGS ---- */

static unsigned iopl(const struct x86_cpu *cpu)
{
        return (unsigned)(cpu->s.rflags >> 12) & 3;
}

/* In virtual-8086 mode with IOPL below 3 VME gives 16-bit PUSHF and POPF a virtual IF; else they fault (SDM vol. 3B §20.3).
 */
static bool v86_virtual(struct x86_cpu *cpu, const struct insn *i)
{
        if (!(cpu->mode_key & MODE_V86) || iopl(cpu) == 3)
                return false;
        if (!(cpu->s.cr4 & X86_CR4_VME) || i->opsize != 2)
                x86_gp0(cpu);
        return true;
}

HANDLER(pushf)
{
        uint64_t flags = x86_flags(cpu) & ~(X86_FLAG_VM | X86_FLAG_RF);

        if (v86_virtual(cpu, i)) {
                flags |= X86_FLAG_IOPL;
                flags = flags & X86_FLAG_VIF ? flags | X86_FLAG_IF : flags & ~X86_FLAG_IF;
        }
        if (cpu->mode64 && i->opsize == 8)
                stack_push64(cpu, flags);
        else
                exec_push(cpu, flags, i->opsize);
        NEXT;
}

/* The bits that POPF may change here. RF is always cleared. */
static uint64_t popf_changes(const struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t changes = X86_FLAGS_STATUS | X86_FLAG_TF | X86_FLAG_DF | X86_FLAG_NT;

        if (i->opsize != 2)
                changes |= X86_FLAG_AC | X86_FLAG_ID;
        if (cpu->cpl <= iopl(cpu))
                changes |= X86_FLAG_IF;
        if (cpu->cpl == 0)
                changes |= X86_FLAG_IOPL;
        return changes;
}

static uint64_t popf_value(struct x86_cpu *cpu, const struct insn *i, uint64_t popped)
{
        uint64_t flags = x86_flags(cpu), changes;

        if (!v86_virtual(cpu, i)) {
                changes = popf_changes(cpu, i);
                return ((flags & ~changes) | (popped & changes)) & ~X86_FLAG_RF;
        }
        if (popped & X86_FLAG_TF || (popped & X86_FLAG_IF && flags & X86_FLAG_VIP))
                x86_gp0(cpu);
        changes = X86_FLAGS_STATUS | X86_FLAG_TF | X86_FLAG_DF | X86_FLAG_NT;
        flags = ((flags & ~changes) | (popped & changes)) & ~X86_FLAG_RF;
        return popped & X86_FLAG_IF ? flags | X86_FLAG_VIF : flags & ~X86_FLAG_VIF;
}

HANDLER(popf)
{
        uint64_t before = cpu->s.rflags, flags;

        flags = popf_value(cpu, i, exec_peek(cpu, i->opsize));
        stack_set(cpu, cpu->s.gpr[X86_RSP] + i->opsize);
        x86_set_flags_and_mode(cpu, flags);
        /* Interrupts that open may be waiting; single step and alignment checks are other blocks. */
        if ((flags & ~before & X86_FLAG_IF) || (flags ^ before) & (X86_FLAG_TF | X86_FLAG_AC | X86_FLAG_RF))
                return block_leave(cpu, insn_rip(cpu, i->end));
        NEXT;
}

/* ---- frames ---- */

static uint64_t frame_level(struct x86_cpu *cpu, uint64_t bp, unsigned size)
{
        return exec_stack_read(cpu, bp & stack_mask(cpu), size);
}

HANDLER(enter)
{
        unsigned size = i->opsize, level = i->imm2 & 31;
        uint64_t mask = stack_mask(cpu), sp = cpu->s.gpr[X86_RSP], bp = cpu->s.gpr[X86_RBP], frame;

        sp -= size;
        exec_stack_write(cpu, sp & mask, get_sized(cpu, RBP_AT, size), size);
        frame = sp;
        for (unsigned n = 1; n < level; n++) {
                bp -= size;
                sp -= size;
                exec_stack_write(cpu, sp & mask, frame_level(cpu, bp, size), size);
        }
        if (level) {
                sp -= size;
                exec_stack_write(cpu, sp & mask, frame, size);
        }
        sp -= i->imm & 0xffff;
        /* A stack that would overflow on its next use faults now (SDM vol. 2 "ENTER"). */
        mmu_probe_write(cpu, x86_linear(cpu, X86_SS, sp & mask, 1, true), 1);
        set_sized(cpu, RBP_AT, frame, size == 2 ? 2 : cpu->mode64 ? 8 : 4);
        stack_set(cpu, sp);
        NEXT;
}

HANDLER(leave)
{
        uint64_t bp = cpu->s.gpr[X86_RBP];
        uint64_t value = exec_stack_read(cpu, bp & stack_mask(cpu), i->opsize);

        stack_set(cpu, bp + i->opsize);
        set_sized(cpu, RBP_AT, value, i->opsize);
        NEXT;
}

HANDLER(leave64)
{
        uint64_t bp = cpu->s.gpr[X86_RBP];
        const uint64_t *at = tlb_find(cpu, bp, 8, false);
        uint64_t value = likely(at) ? __atomic_load_n(at, __ATOMIC_RELAXED) : exec_stack_read(cpu, bp, 8);

        cpu->s.gpr[X86_RSP] = bp + 8;
        cpu->s.gpr[X86_RBP] = value;
        NEXT;
}

static bool is_general(const struct decoded *d)
{
        return d->operand[0].reg.value >= ZYDIS_REGISTER_AL && d->operand[0].reg.value <= ZYDIS_REGISTER_R15;
}

insn_fn stack_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        bool wide = insn->flags & INSN_MODE64 && insn->opsize == 8;

        switch (d->z->mnemonic) {
        case ZYDIS_MNEMONIC_PUSH:
                if (insn->flags & INSN_MEMORY)
                        return wide ? push64_m : push_m;
                if (d->operand[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
                        return wide ? push64_i : push_i;
                return !is_general(d) ? NULL : wide ? push64_r : push_r;
        case ZYDIS_MNEMONIC_POP:
                if (insn->flags & INSN_MEMORY)
                        return pop_m;
                return !is_general(d) ? NULL : wide ? pop64_r : pop_r;
        case ZYDIS_MNEMONIC_PUSHA:
        case ZYDIS_MNEMONIC_PUSHAD: return pusha;
        case ZYDIS_MNEMONIC_POPA:
        case ZYDIS_MNEMONIC_POPAD: return popa;
        case ZYDIS_MNEMONIC_PUSHF:
        case ZYDIS_MNEMONIC_PUSHFD:
        case ZYDIS_MNEMONIC_PUSHFQ: return pushf;
        case ZYDIS_MNEMONIC_POPF:
        case ZYDIS_MNEMONIC_POPFD:
        case ZYDIS_MNEMONIC_POPFQ: return popf;
        case ZYDIS_MNEMONIC_ENTER: return enter;
        case ZYDIS_MNEMONIC_LEAVE: return wide ? leave64 : leave;
        default: return NULL;
        }
}
