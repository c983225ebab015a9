/*
 * Far jumps, calls and returns, software interrupts, IRET: the instructions in front of far.c and interrupt.c.
 *
 * Source: Intel SDM vol. 2 "JMP", "CALL", "RET", "INT n/INTO/INT3/INT1", "IRET".
 */
#include "cpu/x86/system.h"

/* A direct far pointer: imm holds the offset, aux the selector. */
static const struct insn *op_far_direct(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t next = insn_rip(cpu, i->end);
        uint16_t selector = (uint16_t)(uintptr_t)i->aux;

        if (i->op == ZYDIS_MNEMONIC_JMP)
                far_jump(cpu, selector, i->imm, i->opsize, next);
        else
                far_call(cpu, selector, i->imm, i->opsize, next);
        return NULL;
}

static const struct insn *op_far_memory(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t next = insn_rip(cpu, i->end), offset = 0;
        unsigned bytes = i->opsize;
        uint8_t pointer[10];
        uint16_t selector;

        mmu_read_bytes(cpu, insn_linear(cpu, i, bytes + 2, false), pointer, bytes + 2);
        memcpy(&offset, pointer, bytes);
        memcpy(&selector, pointer + bytes, 2);
        if (i->op == ZYDIS_MNEMONIC_JMP)
                far_jump(cpu, selector, offset, bytes, next);
        else
                far_call(cpu, selector, offset, bytes, next);
        return NULL;
}

static const struct insn *op_far_return(struct x86_cpu *cpu, const struct insn *i)
{
        far_return(cpu, i->opsize, (uint16_t)i->imm);
        return NULL;
}

static const struct insn *op_iret(struct x86_cpu *cpu, const struct insn *i)
{
        unsigned opsize = i->op == ZYDIS_MNEMONIC_IRET ? 2 : i->op == ZYDIS_MNEMONIC_IRETD ? 4 : 8;

        interrupt_return(cpu, opsize, insn_rip(cpu, i->end));
        return NULL;
}

static const struct insn *op_int(struct x86_cpu *cpu, const struct insn *i)
{
        unsigned vector = i->op == ZYDIS_MNEMONIC_INT3 ? X86_BP : i->op == ZYDIS_MNEMONIC_INTO ? X86_OF_TRAP : (uint8_t)i->imm;

        if (i->op == ZYDIS_MNEMONIC_INTO && !(x86_flags(cpu) & X86_FLAG_OF))
                return i + 1;
        if (i->op == ZYDIS_MNEMONIC_INT && x86_v86(cpu) && x86_iopl(cpu) != 3)
                x86_gp0(cpu);
        deliver_once(cpu, vector, EVENT_SOFTWARE, insn_rip(cpu, i->end), false, 0);
        return NULL;
}

static const struct insn *op_int1(struct x86_cpu *cpu, const struct insn *i)
{
        deliver_once(cpu, X86_DB, EVENT_ICEBP, insn_rip(cpu, i->end), false, 0);
        return NULL;
}

static insn_fn far_bind(struct insn *insn, const struct decoded *d)
{
        if (d->z->meta.branch_type != ZYDIS_BRANCH_TYPE_FAR)
                return NULL;
        insn->flags |= INSN_ENDS_BLOCK;
        if (insn->op == ZYDIS_MNEMONIC_RET)
                return op_far_return;
        if (d->operand[0].type != ZYDIS_OPERAND_TYPE_POINTER)
                return op_far_memory;
        insn->imm = d->operand[0].ptr.offset;
        insn->aux = (void *)(uintptr_t)d->operand[0].ptr.segment;
        return op_far_direct;
}

insn_fn system_transfer_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        switch (insn->op) {
        case ZYDIS_MNEMONIC_JMP:
        case ZYDIS_MNEMONIC_CALL:
        case ZYDIS_MNEMONIC_RET:
                return far_bind(insn, d);
        case ZYDIS_MNEMONIC_IRET:
        case ZYDIS_MNEMONIC_IRETD:
        case ZYDIS_MNEMONIC_IRETQ:
                insn->flags |= INSN_ENDS_BLOCK;
                return op_iret;
        case ZYDIS_MNEMONIC_INT:
        case ZYDIS_MNEMONIC_INT3:
        case ZYDIS_MNEMONIC_INTO:
                insn->flags |= INSN_ENDS_BLOCK;
                return op_int;
        case ZYDIS_MNEMONIC_INT1:
                insn->flags |= INSN_ENDS_BLOCK;
                return op_int1;
        default:
                return NULL;
        }
}
