/*
 * PUSH, POP and LEAVE with 8 bytes. Everything else on the stack is left to the interpreter.
 */
#include "cpu/x86/translate.h"

static void move_stack(struct translation *t, struct tinsn *i, int32_t bytes)
{
        flags_stack_moves(t, i, bytes);
        asm_lea(t->a, treg_of(X86_RSP), asm_at(treg_of(X86_RSP), bytes));
}

static void emit_push_register(struct translation *t, struct tinsn *i)
{
        struct tsite *site = memory_look_up_at(t, i, X86_RSP, -8, 8, true);
        unsigned guest = i->insn.reg[0] / 8;

        if (treg_of(guest) != TREG_NONE) {
                asm_store(t->a, 8, memory_operand(t), treg_of(guest));
        } else {
                struct asm_mem at = memory_fold(t);

                asm_store(t->a, 8, at, guest_load(t, guest, TREG_SCRATCH));
        }
        move_stack(t, i, -8);
        memory_done(t, site);
}

static void emit_push_immediate(struct translation *t, struct tinsn *i)
{
        struct tsite *site = memory_look_up_at(t, i, X86_RSP, -8, 8, true);

        asm_rm(t->a, 8, 0xc7, 0, memory_operand(t));
        asm_u32(t->a, (uint32_t)i->insn.imm);
        move_stack(t, i, -8);
        memory_done(t, site);
}

/* Each look-up is tried again by itself: both pages may want the same entry of the TLB. */
static void emit_push_memory(struct translation *t, struct tinsn *i)
{
        struct asm_mem temp = asm_gs(offsetof(struct x86_cpu, jit.temp)), at;
        struct tsite *load = memory_look_up(t, i, 8, false), *store;

        asm_load(t->a, 8, TREG_SCRATCH, memory_operand(t));
        asm_store(t->a, 8, temp, TREG_SCRATCH);
        store = memory_look_up_at(t, i, X86_RSP, -8, 8, true);
        at = memory_fold(t);
        asm_load(t->a, 8, TREG_SCRATCH, temp);
        asm_store(t->a, 8, at, TREG_SCRATCH);
        move_stack(t, i, -8);
        memory_done(t, load);
        memory_done(t, store);
}

static void emit_pop_register(struct translation *t, struct tinsn *i)
{
        struct tsite *site = memory_look_up_at(t, i, X86_RSP, 0, 8, false);
        unsigned guest = i->insn.reg[0] / 8;
        struct asm_mem at = memory_operand(t);

        /* Both may have to bring the flags back, which takes RCX. */
        if (t->places == TPLACE_RECIPE)
                at = memory_fold(t);
        flags_register_changes(t, i, guest);
        if (guest != X86_RSP)
                flags_stack_moves(t, i, 8);
        if (treg_of(guest) != TREG_NONE) {
                asm_load(t->a, 8, treg_of(guest), at);
        } else {
                asm_load(t->a, 8, TREG_SCRATCH, at);
                guest_store(t, guest, TREG_SCRATCH);
        }
        if (guest != X86_RSP)
                asm_lea(t->a, treg_of(X86_RSP), asm_at(treg_of(X86_RSP), 8));
        memory_done(t, site);
}

static void emit_leave(struct translation *t, struct tinsn *i)
{
        struct tsite *site = memory_look_up_at(t, i, X86_RBP, 0, 8, false);
        struct asm_mem at = memory_operand(t);

        if (t->places == TPLACE_RECIPE)
                at = memory_fold(t);
        flags_register_changes(t, i, X86_RSP);
        flags_register_changes(t, i, X86_RBP);
        asm_lea(t->a, treg_of(X86_RSP), asm_at(treg_of(X86_RBP), 8));
        asm_load(t->a, 8, treg_of(X86_RBP), at);
        memory_done(t, site);
}

temit_fn stack_translate(struct tinsn *i)
{
        temit_fn emit = NULL;

        if (i->insn.opsize != 8)
                return NULL;
        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_PUSH:
                if (i->operand[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
                        emit = emit_push_immediate;
                else if (i->insn.flags & INSN_MEMORY)
                        emit = memory_possible(i) ? emit_push_memory : NULL;
                else if (ZydisRegisterGetClass(i->operand[0].reg.value) == ZYDIS_REGCLASS_GPR64)
                        emit = emit_push_register;
                break;
        case ZYDIS_MNEMONIC_POP:
                if (!(i->insn.flags & INSN_MEMORY) && ZydisRegisterGetClass(i->operand[0].reg.value) == ZYDIS_REGCLASS_GPR64)
                        emit = emit_pop_register;
                break;
        case ZYDIS_MNEMONIC_LEAVE: emit = emit_leave; break;
        default: break;
        }
        i->site = emit != NULL;
        if (emit == emit_push_register || emit == emit_push_immediate)
                i->access = TACCESS_PUSH;
        else if (emit == emit_pop_register)
                i->access = TACCESS_POP;
        return emit;
}
