/*
 * An assembler for x86-64: bytes into a buffer, labels, memory operands.
 *
 * Running out of room is noted (x86_asm.full) and further bytes are dropped, so that emitters need no check at each call; the owner
 * looks once at the end.
 *
 * Source: Intel SDM vol. 2A chapter 2 (instruction format).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/util.h"

struct x86_asm {
        uint8_t *buffer;     /* where bytes are written */
        uint64_t address;    /* what buffer's first byte will be executed at; rel32 are computed from it */
        size_t size, used;
        bool full;
        bool fit_jumps;      /* asm_fit() does something */
};

/* A memory operand: [base + index * scale + disp], gs: when asked. base and index may be ASM_NONE. */
#define ASM_NONE 0xff
struct asm_mem {
        uint8_t base, index, scale; /* scale 1, 2, 4, 8 */
        bool gs;
        int32_t disp;
};

/* A place in the code: forward uses are chained until it is bound. */
struct asm_label {
        uint32_t at;         /* offset in the buffer once bound */
        bool bound;
        uint16_t uses;
        uint32_t use[8];     /* offsets of the fields to fill; bit 31: rel8 */
};

enum asm_reg {
        ASM_RAX, ASM_RCX, ASM_RDX, ASM_RBX, ASM_RSP, ASM_RBP, ASM_RSI, ASM_RDI,
        ASM_R8, ASM_R9, ASM_R10, ASM_R11, ASM_R12, ASM_R13, ASM_R14, ASM_R15,
};

/* Conditions as Jcc, SETcc and CMOVcc encode them. */
enum asm_condition {
        ASM_O, ASM_NO, ASM_B, ASM_NB, ASM_Z, ASM_NZ, ASM_BE, ASM_NBE, ASM_S, ASM_NS, ASM_P, ASM_NP, ASM_L, ASM_NL, ASM_LE, ASM_NLE,
};

/* Opcode maps, as they stand in asm_insn.map and, shifted by 8, in the opcodes of asm_rr() and asm_rm(). */
enum { ASM_MAP_ONE, ASM_MAP_0F, ASM_MAP_0F38, ASM_MAP_0F3A };
#define ASM_0F 0x100u
#define ASM_0F38 0x200u
#define ASM_0F3A 0x300u

/* One instruction in parts. Registers are host numbers 0-15 of whatever kind the opcode takes. */
struct asm_insn {
        uint8_t prefix[4], prefixes; /* legacy ones (66, F2, F3, F0), in order; none of a segment */
        uint8_t map, opcode;
        bool vex;
        uint8_t vex_l, vex_pp, vvvv; /* vvvv: the register; 0 where the encoding has none */
        bool w;
        bool rex;       /* a REX prefix even without bits in it: SPL, BPL, SIL, DIL */
        bool no_rex;    /* AH, CH, DH, BH: must come out without */
        bool modrm;     /* else low_reg goes into the opcode's low three bits when opcode_reg is set */
        bool opcode_reg;
        bool memory;
        uint8_t reg, rm;
        struct asm_mem mem;
        uint8_t imm[8], imm_size;
};

void asm_byte(struct x86_asm *a, uint8_t value);
void asm_u32(struct x86_asm *a, uint32_t value);
void asm_u64(struct x86_asm *a, uint64_t value);
void asm_bytes(struct x86_asm *a, const void *bytes, size_t size_bytes);
/* NOPs until used is a multiple of alignment (a power of two) after ahead more bytes. */
void asm_align(struct x86_asm *a, unsigned alignment, unsigned ahead);

/*
 * NOPs, so that the next n bytes (a jump, or a pair that the processor fuses; at most 31) neither cross a 32-byte boundary nor end at one:
 * some processors do not keep code decoded in which a jump does (Intel, "Mitigations for Jump Conditional Code Erratum", 2019).
 */
void asm_fit(struct x86_asm *a, unsigned n);
/* Whether n bytes would do so after ahead more bytes. */
bool asm_fits(const struct x86_asm *a, unsigned ahead, unsigned n);
void asm_nops(struct x86_asm *a, unsigned n);

/* false: no_rex with a register that needs one; nothing is emitted. */
bool asm_insn(struct x86_asm *a, const struct asm_insn *insn);

/*
 * opcode with ModRM. size_bytes 1: byte registers (REX so that 4-7 are SPL to DIL), 2: prefix 66, 8: REX.W. The opcode itself tells byte
 * operations from others (88, 89). An immediate is emitted by the caller right after.
 */
void asm_rr(struct x86_asm *a, unsigned size_bytes, uint32_t opcode, unsigned reg, unsigned rm);
void asm_rm(struct x86_asm *a, unsigned size_bytes, uint32_t opcode, unsigned reg, struct asm_mem mem);

static inline struct asm_mem asm_at(unsigned base, int32_t disp)
{
        return (struct asm_mem){ .base = (uint8_t)base, .index = ASM_NONE, .scale = 1, .disp = disp };
}

static inline struct asm_mem asm_at_index(unsigned base, unsigned index, unsigned scale, int32_t disp)
{
        return (struct asm_mem){ .base = (uint8_t)base, .index = (uint8_t)index, .scale = (uint8_t)scale, .disp = disp };
}

/* gs:[disp], and gs:[index * scale + disp] */
static inline struct asm_mem asm_gs(size_t disp)
{
        return (struct asm_mem){ .base = ASM_NONE, .index = ASM_NONE, .scale = 1, .gs = true, .disp = (int32_t)disp };
}

static inline struct asm_mem asm_gs_index(unsigned index, unsigned scale, size_t disp)
{
        return (struct asm_mem){ .base = ASM_NONE, .index = (uint8_t)index, .scale = (uint8_t)scale, .gs = true, .disp = (int32_t)disp };
}

void asm_mov(struct x86_asm *a, unsigned size_bytes, unsigned to, unsigned from);   /* size 4 or 8 */
void asm_load(struct x86_asm *a, unsigned size_bytes, unsigned to, struct asm_mem mem);
void asm_store(struct x86_asm *a, unsigned size_bytes, struct asm_mem mem, unsigned from);
void asm_lea(struct x86_asm *a, unsigned to, struct asm_mem mem); /* 64 bits */
void asm_mov_imm(struct x86_asm *a, unsigned to, uint64_t value); /* the shortest form; no flags change */
/* ADD 0, OR 1, ADC 2, SBB 3, AND 4, SUB 5, XOR 6, CMP 7 */
void asm_alu_imm(struct x86_asm *a, unsigned op, unsigned size_bytes, unsigned reg, int32_t imm);
/* pext rcx-like: VEX.LZ.F3.0F38.W1 F5 with a memory mask. */
void asm_pext(struct x86_asm *a, unsigned to, unsigned from, struct asm_mem mask);

/* Labels. The rel32 (rel8) of each use is filled when the label is bound, or at once. More than 8 forward uses: full. */
void asm_bind(struct x86_asm *a, struct asm_label *label);
/* A rel32 behind an opcode of one's own. */
void asm_rel32(struct x86_asm *a, struct asm_label *label);
void asm_jmp(struct x86_asm *a, struct asm_label *label);
void asm_jcc(struct x86_asm *a, enum asm_condition condition, struct asm_label *label);
void asm_call(struct x86_asm *a, struct asm_label *label);
void asm_lea_label(struct x86_asm *a, unsigned to, struct asm_label *label);
void asm_jrcxz(struct x86_asm *a, struct asm_label *label); /* rel8: out of reach counts as full */
void asm_jmp_short(struct x86_asm *a, struct asm_label *label);
void asm_jcc_short(struct x86_asm *a, enum asm_condition condition, struct asm_label *label);
/* rel32 from here to an address (of the kind of x86_asm.address). */
void asm_jmp_to(struct x86_asm *a, uint64_t address);
void asm_call_to(struct x86_asm *a, uint64_t address);
