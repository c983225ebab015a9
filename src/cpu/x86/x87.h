/*
 * Between the two ways to execute an x87 instruction: the long one (x87.c), always right, and the short one (x87-fast.c).
 *
 * In a bound instruction imm is the opcode as FOP has it (bits 8-10 the escape byte, 0-7 ModRM), imm2 the bytes of a memory operand.
 */
#pragma once

#include "cpu/x86/fpu.h"
#include "cpu/x86/simd.h"

/* The instruction itself and a return, 8 bytes apart: register forms by escape and ModRM; memory forms with [rsi] by ModRM.reg. */
extern const uint8_t x87_register_forms[8][64][8] __attribute__((visibility("hidden")));
extern const uint8_t x87_memory_forms[8][8][8] __attribute__((visibility("hidden")));

/* The long way. */
const struct insn *x87_run_register(struct x86_cpu *cpu, const struct insn *i);
const struct insn *x87_run_fcomi(struct x86_cpu *cpu, const struct insn *i);
const struct insn *x87_run_load(struct x86_cpu *cpu, const struct insn *i);
const struct insn *x87_run_store(struct x86_cpu *cpu, const struct insn *i);

void x87_set_pointers(struct x86_cpu *cpu, const struct insn *i);

/* Of a store to memory: ModRM.reg 2 is the form that does not pop. */
static inline bool x87_store_pops(const struct insn *i)
{
        return (i->imm >> 3 & 7) != 2;
}

/* The short way for an instruction that imm names, or NULL. */
insn_fn x87_bind_fast(struct insn *i);
