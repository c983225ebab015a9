/*
 * From guest bytes to struct insn, by Zydis; see decode.c.
 */
#pragma once

#include "cpu/x86/block.h"

#define INSN_LENGTH_MAX 15u

/* Fills the decoders and the instruction sets that the model has. */
void decode_init(struct x86_cpu *cpu, struct block_cache *cache);

/*
 * Decodes and binds one instruction that starts `start` bytes into its block. What must fault becomes an instruction that
 * raises the fault. -EAGAIN when the instruction does not end within size_bytes; that is only returned below INSN_LENGTH_MAX.
 */
int decode_insn(struct x86_cpu *cpu, const uint8_t *bytes, size_t size_bytes, unsigned start, struct insn *insn) _must_check_;

/*
 * The same, with what Zydis says (operand has room for ZYDIS_MAX_OPERAND_COUNT). An instruction that only raises because it could not be
 * decoded has the mnemonic ZYDIS_MNEMONIC_INVALID and no operands.
 */
int decode_insn_full(struct x86_cpu *cpu, const uint8_t *bytes, size_t size_bytes, unsigned start, struct insn *insn,
                     ZydisDecodedInstruction *z, ZydisDecodedOperand *operand) _must_check_;

/* An instruction of no bytes that goes on with the next block (block_go_on). */
void decode_end_mark(unsigned at, struct insn *insn);
