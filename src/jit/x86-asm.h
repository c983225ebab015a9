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
        uint32_t use[8];     /* offsets of rel32 fields to fill */
};
