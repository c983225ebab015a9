/*
 * Near branches: Jcc, JMP, CALL, RET, LOOPcc, JrCXZ. Far ones are system instructions.
 *
 * A target outside the code segment (or not canonical) faults at the branch, with nothing changed (SDM vol. 2 "CALL", "RET").
 * A direct branch in 64-bit mode is not checked: what it can reach is canonical, or the fetch there faults.
 */
#include "cpu/x86/integer.h"

#define JUMP_IF(cc)                                                   \
        HANDLER(j_##cc)                                               \
        {                                                             \
                if (COND_##cc(cpu))                                   \
                        return block_take(cpu, i);                    \
                return block_go_on(cpu, i);                           \
        }
FOR_EACH_CONDITION(JUMP_IF)

/* Outside 64-bit mode the target is checked against the limit, so a link, made after a check, is not used there. */
#define JUMP_IF_CHECKED(cc)                                           \
        HANDLER(j_checked_##cc)                                       \
        {                                                             \
                if (!COND_##cc(cpu))                                  \
                        return block_go_on(cpu, i);                   \
                check_target(cpu, block_target(cpu, i));              \
                return block_take(cpu, i);                            \
        }
FOR_EACH_CONDITION(JUMP_IF_CHECKED)

HANDLER(jmp_direct)
{
        return block_take(cpu, i);
}

HANDLER(jmp_direct_checked)
{
        check_target(cpu, block_target(cpu, i));
        return block_take(cpu, i);
}

/* ---- counted loops ---- */

static inline uint64_t counter(const struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t rcx = cpu->s.gpr[X86_RCX];

        return i->asize == 8 ? rcx : i->asize == 4 ? (uint32_t)rcx : (uint16_t)rcx;
}

static inline void counter_set(struct x86_cpu *cpu, const struct insn *i, uint64_t value)
{
        if (i->asize == 8)
                reg_set64(cpu, RCX_AT, value);
        else if (i->asize == 4)
                reg_set32(cpu, RCX_AT, (uint32_t)value);
        else
                reg_set16(cpu, RCX_AT, (uint16_t)value);
}

static const struct insn *loop_if(struct x86_cpu *cpu, const struct insn *i, bool condition)
{
        uint64_t left = counter(cpu, i) - 1;

        if (i->asize == 4)
                left = (uint32_t)left;
        else if (i->asize == 2)
                left = (uint16_t)left;
        if (left && condition) {
                check_target(cpu, block_target(cpu, i));
                counter_set(cpu, i, left);
                return block_take(cpu, i);
        }
        counter_set(cpu, i, left);
        return block_go_on(cpu, i);
}

HANDLER(loop)
{
        return loop_if(cpu, i, true);
}

HANDLER(loope)
{
        return loop_if(cpu, i, flag_zf(cpu));
}

HANDLER(loopne)
{
        return loop_if(cpu, i, !flag_zf(cpu));
}

HANDLER(jrcxz)
{
        if (counter(cpu, i))
                return block_go_on(cpu, i);
        check_target(cpu, block_target(cpu, i));
        return block_take(cpu, i);
}

/* ---- calls and indirect jumps, 64-bit ---- */

HANDLER(call64_direct)
{
        stack_push64(cpu, cpu->s.gpr[GPR_BLOCK] + i->end);
        return block_take(cpu, i);
}

static _always_inline_ const struct insn *jump64(struct x86_cpu *cpu, uint64_t rip)
{
        check_target(cpu, rip);
        return block_go(cpu, rip);
}

HANDLER(call64_r)
{
        uint64_t rip = reg_get64(cpu, i->reg[0]);

        check_target(cpu, rip);
        stack_push64(cpu, cpu->s.gpr[GPR_BLOCK] + i->end);
        return block_go(cpu, rip);
}

HANDLER(call64_m)
{
        uint64_t rip = load64(cpu, i, FORM_ANY);

        check_target(cpu, rip);
        stack_push64(cpu, cpu->s.gpr[GPR_BLOCK] + i->end);
        return block_go(cpu, rip);
}

HANDLER(jmp64_r)
{
        return jump64(cpu, reg_get64(cpu, i->reg[0]));
}

HANDLER(jmp64_m)
{
        return jump64(cpu, load64(cpu, i, FORM_ANY));
}

HANDLER(ret64)
{
        uint64_t rip = stack_peek64(cpu);

        check_target(cpu, rip);
        cpu->s.gpr[X86_RSP] += 8 + i->imm;
        return block_go(cpu, rip);
}

/* ---- the same with 16 and 32 bits ---- */

static uint64_t cut_target(const struct insn *i, uint64_t rip)
{
        return i->opsize == 2 ? (uint16_t)rip : (uint32_t)rip;
}

static uint64_t indirect_target(struct x86_cpu *cpu, const struct insn *i)
{
        if (i->flags & INSN_MEMORY)
                return i->opsize == 2 ? load16(cpu, i, FORM_ANY) : load32(cpu, i, FORM_ANY);
        return cut_target(i, reg_get64(cpu, i->reg[0]));
}

HANDLER(call_direct)
{
        check_target(cpu, block_target(cpu, i));
        exec_push(cpu, insn_rip(cpu, i->end), i->opsize);
        return block_take(cpu, i);
}

HANDLER(call_indirect)
{
        uint64_t rip = indirect_target(cpu, i);

        check_target(cpu, rip);
        exec_push(cpu, insn_rip(cpu, i->end), i->opsize);
        return block_go(cpu, rip);
}

HANDLER(jmp_indirect)
{
        uint64_t rip = indirect_target(cpu, i);

        check_target(cpu, rip);
        return block_go(cpu, rip);
}

HANDLER(ret)
{
        uint64_t rip = cut_target(i, exec_peek(cpu, i->opsize));

        check_target(cpu, rip);
        stack_set(cpu, cpu->s.gpr[X86_RSP] + i->opsize + i->imm);
        return block_go(cpu, rip);
}

#define JUMP_CASE(cc) case ZYDIS_MNEMONIC_J##cc: return mode64 ? j_##cc : j_checked_##cc;

static insn_fn bind_call_or_jump(const struct insn *insn, const struct decoded *d, bool call)
{
        bool mode64 = insn->flags & INSN_MODE64;

        if (d->z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
                return NULL;
        if (d->operand[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
                if (call)
                        return mode64 ? call64_direct : call_direct;
                return mode64 ? jmp_direct : jmp_direct_checked;
        }
        if (!mode64)
                return call ? call_indirect : jmp_indirect;
        if (insn->flags & INSN_MEMORY)
                return call ? call64_m : jmp64_m;
        return call ? call64_r : jmp64_r;
}

static insn_fn bind_branch(const struct insn *insn, const struct decoded *d)
{
        bool mode64 = insn->flags & INSN_MODE64;

        switch (d->z->mnemonic) {
                FOR_EACH_CONDITION(JUMP_CASE)
        case ZYDIS_MNEMONIC_JMP: return bind_call_or_jump(insn, d, false);
        case ZYDIS_MNEMONIC_CALL: return bind_call_or_jump(insn, d, true);
        case ZYDIS_MNEMONIC_RET:
                if (d->z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
                        return NULL;
                return mode64 ? ret64 : ret;
        case ZYDIS_MNEMONIC_LOOP: return loop;
        case ZYDIS_MNEMONIC_LOOPE: return loope;
        case ZYDIS_MNEMONIC_LOOPNE: return loopne;
        case ZYDIS_MNEMONIC_JCXZ:
        case ZYDIS_MNEMONIC_JECXZ:
        case ZYDIS_MNEMONIC_JRCXZ: return jrcxz;
        default: return NULL;
        }
}

insn_fn branch_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        insn_fn fn = bind_branch(insn, d);

        if (fn)
                insn->flags |= INSN_ENDS_BLOCK;
        return fn;
}
