/*
 * The integer instructions, by topic. Each bind function knows the mnemonics that its file lists and returns NULL for others;
 * integer_bind() (integer.c) asks the right one.
 *
 * Flags that the manual leaves undefined are as the processors of the Skylake family leave them, where tests/ show it; the file
 * of each topic says which.
 *
 * Source: Intel SDM volume 2.
 */
#pragma once

#include "cpu/x86/exec.h"

insn_fn alu_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn mov_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn shift_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn muldiv_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn branch_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn stack_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn string_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn bits_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn bmi_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn misc_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn atomic_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);

/* Joins a comparison with the conditional jump after it, at the end of a block of count > 1 instructions. */
void integer_fuse(struct insn *insn, unsigned count);
insn_fn alu_fused(const struct insn *compare, const struct insn *jump);
