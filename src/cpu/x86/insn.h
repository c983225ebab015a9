/*
 * One decoded guest instruction, the currency between decoder, interpreter and (later) translator.
 *
 * Blocks are found by guest physical address, and one page may be mapped at several linear addresses; so nothing in an insn
 * depends on the linear address it runs at. Instruction addresses are offsets from the block's first byte, and the block's
 * linear base (without the CS base) stands in gpr slot GPR_BLOCK while the block runs. A memory operand is always
 *
 *      (gpr[base] + (gpr[index] << shift) + disp) & address mask, then the segment
 *
 * with GPR_ZERO where there is no base or index, and GPR_BLOCK as base with the instruction's end folded into disp where the
 * operand is RIP-relative. Registers are byte offsets into the register file, so that AH is 1 and R8B is 64.
 */
#pragma once

#include <Zydis/Zydis.h>

#include "cpu/x86/state.h"

struct x86_cpu;
struct insn;

/* Executes one instruction and returns the next one to execute, or NULL to leave the block (rip is then set). */
typedef const struct insn *(*insn_fn)(struct x86_cpu *cpu, const struct insn *insn);

#define GPR_ZERO 16
#define GPR_BLOCK 17

enum insn_flag {
        INSN_LOCK = 1u << 0,
        INSN_REP = 1u << 1,   /* F3 */
        INSN_REPNE = 1u << 2, /* F2 */
        INSN_MEMORY = 1u << 3, /* it has a memory operand: base … seg are valid */
        INSN_VEX = 1u << 4,
        INSN_VEX_L = 1u << 5, /* 256 bits */
        INSN_MODE64 = 1u << 6,
        INSN_ENDS_BLOCK = 1u << 7,
};

struct insn {
        insn_fn fn;
        uint64_t imm;      /* immediate, sign-extended to 64 bits; for near branches the target as an offset from the block's base */
        int64_t disp;
        void *aux;         /* the binder's own, not owned */
        uint8_t base, index; /* byte offsets into gpr[] (register number * 8) */
        uint8_t shift;     /* 0-3 */
        uint8_t seg;       /* enum x86_seg_name */
        /* Visible operands 0-3 (those an assembler writes: also AL in ADD AL,1), where they are registers: byte offset for general ones, else number. */
        uint8_t reg[4];
        uint8_t opsize;    /* operand size in bytes as Zydis has it (1, 2, 4, 8) */
        uint8_t asize;     /* address size in bytes */
        uint8_t length;    /* bytes */
        uint8_t memory_operand; /* which visible operand is in memory: 0-3; 0xff none */
        uint16_t start, end; /* offsets from the block's base; start = end - length */
        uint16_t op;       /* ZydisMnemonic */
        uint16_t flags;    /* enum insn_flag */
        uint8_t memory_size; /* bytes of the memory operand; 0 when it has none or it is longer */
        uint8_t stack_size;  /* bytes of a push or pop */
        uint8_t imm2;      /* a second immediate (ENTER, EXTRQ) */
};

/* What the decoder gives a binder beside the filled insn. */
struct decoded {
        const ZydisDecodedInstruction *z;
        const ZydisDecodedOperand *operand; /* z->operand_count of them */
        const uint8_t *bytes;
};

/*
 * Binders choose the function that executes an instruction; NULL means that this family does not know it. The decoder asks
 * them in this order and makes an instruction that nobody knows raise #UD. CPUID-gated instructions that the model does not
 * have are #UD as well (x86_cpu.h: x86_has()).
 */
insn_fn integer_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn system_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn x87_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn simd_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
