/*
 * The software processor against the host's: what the parts of the test share.
 *
 * A form (forms.c) is one way to encode one instruction. A case is one form, or a sequence of them, with registers, addressing
 * and immediates chosen, placed somewhere in the code area, and an input image (operands.c, sequence.c). An engine takes a case
 * and gives an outcome: the host's processor (native.c), the interpreter (interpreter.c), and
 * engines of ours with the case hot before it counts (hot.c). compare.c compares two outcomes,
 * diff.c goes round forms and engines.
 *
 * All engines run at privilege level 3, in 64-bit or in 32-bit (compatibility) mode, at the same linear addresses with the same
 * memory contents: code at CODE_BASE, data at DATA_BASE between unmapped pages, a read-only page behind it. So an operand's
 * address is the same number in all. A case ends at its end, or where a branch out of it leads in the code area (all else there
 * is INT3), or with an exception.
 *
 * Limits: no system instructions, no far branches, no segment registers, no TF.
 */
#pragma once

#include <Zydis/Zydis.h>

#include "base/err.h"

#define PAGE 4096u
#define DATA_BASE 0x20000000u
#define DATA_BYTES (2 * PAGE) /* writable; the page after it is not mapped */
#define RO_BASE (DATA_BASE + 3 * PAGE)
#define CODE_BASE 0x30000000u
#define CODE_BYTES 0x10000u
#define XSAVE_BYTES 832u
#define CASE_INSNS 20

/* ---- random numbers: splitmix64, so that a seed names a run ---- */

struct random {
        uint64_t state;
};

static inline uint64_t random64(struct random *r)
{
        uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);

        z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
        return z ^ z >> 31;
}

static inline unsigned random_below(struct random *r, unsigned limit)
{
        return (unsigned)((random64(r) >> 32) * limit >> 32);
}

static inline bool one_in(struct random *r, unsigned n)
{
        return !random_below(r, n);
}

/* ---- forms ---- */

struct form {
        uint8_t vex;    /* 0 legacy, 1 VEX */
        uint8_t prefix; /* index into form_prefixes */
        uint8_t map;    /* 0 one byte, 1 0F, 2 0F38, 3 0F3A */
        uint8_t opcode;
        uint8_t w, l;
        int8_t reg, rm; /* ModRM fields that select the instruction, or -1 */
        uint8_t modrm;  /* has one */
        uint8_t memory; /* ModRM selects memory */
        uint8_t lock;
        uint16_t mnemonic;
};

struct forms {
        bool code32;
        struct form *form;
        size_t count, capacity;
        /* Those of the general registers, by number: what sequences are mostly made of. In the order of their mnemonics; where each begins. */
        uint32_t *integer;
        size_t integers;
        uint32_t mnemonic[ZYDIS_MNEMONIC_MAX_VALUE + 2];
        size_t mnemonics;
        /* By mnemonic: how many forms are tested, and why those that are not are not. */
        uint32_t tested[ZYDIS_MNEMONIC_MAX_VALUE + 1];
        const char *reason[ZYDIS_MNEMONIC_MAX_VALUE + 1];
        bool seen[ZYDIS_MNEMONIC_MAX_VALUE + 1]; /* decodes in this mode */
};

/* offered[isa_set]: whether the processor has the set. */
int forms_new(struct forms *forms, bool code32, const bool offered[ZYDIS_ISA_SET_MAX_VALUE + 1], struct err *err) _must_check_;
void forms_free(struct forms *forms);
void form_print(const struct form *form);
void forms_decoder(bool code32, ZydisDecoder *decoder);

/* ---- cases ---- */

/* One instruction as bytes, decoded. */
struct code {
        uint8_t bytes[16];
        uint64_t address; /* linear */
        ZydisDecodedInstruction z;
        ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
};

/* A random encoding of form at code->address; false when this try did not decode to it. */
bool form_encode(const struct form *form, bool code32, struct random *r, const ZydisDecoder *decoder, struct code *code);
/* Not straight on: a branch of any kind. */
bool code_branches(const struct code *code);

struct image {
        uint8_t xsave[896] __attribute__((aligned(64))); /* standard format: x87, SSE, AVX */
        uint64_t gpr[16];
        uint64_t rip, rflags;
};

/* Memory that a case sets up before it runs: bytes at linear. */
struct patch {
        uint64_t linear;
        unsigned size;
        uint8_t bytes[1024];
};

struct diff_case {
        bool code32;
        bool leaves; /* a branch goes out of it */
        unsigned count;
        struct code insn[CASE_INSNS]; /* one behind the other */
        /* RFLAGS bits with no defined value before each instruction, and after the last one. */
        uint64_t undefined[CASE_INSNS + 1];
        struct image in;
        struct patch patch;
};

struct outcome {
        struct image after; /* rip: of the instruction that raised the exception, or where the case ended */
        int vector;         /* -1: no exception */
        uint32_t error_code;
        uint64_t cr2; /* of a page fault */
};

static inline uint64_t case_address(const struct diff_case *c)
{
        return c->insn[0].address;
}

static inline unsigned case_size(const struct diff_case *c)
{
        const struct code *last = &c->insn[c->count - 1];

        return (unsigned)(last->address + last->z.length - case_address(c));
}

/* All its code, one behind the other; at most CASE_INSNS * 15 bytes. */
void case_bytes(const struct diff_case *c, uint8_t *bytes);

/* Random registers without regard to any instruction. */
void operands_image(struct random *r, bool code32, uint64_t rip, struct image *in);
/* A random input for code alone, whose displacement or branch distance is set to go with it. */
void operands_make(struct code *code, bool code32, struct random *r, struct image *in, struct patch *patch);
/* RFLAGS bits that the instruction leaves undefined, run with these registers; all that it might, when in is NULL. */
uint64_t operands_undefined_flags(const struct code *code, const struct image *in);

/*
 * For instructions that follow others: which registers already mean something (held: an address or a count that a later
 * instruction relies on) and which an earlier instruction may have written. Bits 0-15 general, 16-31 vector registers.
 */
struct registers {
        uint32_t held, written;
};

/* Makes code's operands meaningful behind what regs tells; false when that cannot be, mostly. */
bool operands_join(struct code *code, struct random *r, struct registers *regs, struct image *in);

/* A case of one instruction of form; false when it cannot be encoded. */
bool case_single(const struct form *form, bool code32, const ZydisDecoder *decoder, struct random *r, struct diff_case *c);
/* A case of 2 to CASE_INSNS instructions of any forms, with short jumps forward in it. */
void case_sequence(const struct forms *forms, const ZydisDecoder *decoder, struct random *r, struct diff_case *c);

/* ---- engines ---- */

struct engine {
        const struct engine_ops *ops;
        uint8_t *data; /* its copy of what is at DATA_BASE, which runs change */
};

struct engine_ops {
        const char *name;
        int (*new)(struct engine **engine, const char *model, struct err *err);
        void (*free)(struct engine *engine);
        /* Puts the patch into data and the code in its place, runs it. */
        void (*run)(struct engine *engine, const struct diff_case *c, struct outcome *out);
};

extern const struct engine_ops native_ops, interpreter_ops, hot_interpreter_ops, hot_translator_ops;
/* -ENOTSUP when this host runs no 32-bit code. */
int native_try_code32(struct engine *engine, struct err *err) _must_check_;
const bool *interpreter_isa_sets(const struct engine *engine);

static inline void engine_patch(struct engine *engine, const struct patch *patch)
{
        if (patch->linear >= DATA_BASE && patch->linear < DATA_BASE + DATA_BYTES) {
                uint64_t at = patch->linear - DATA_BASE;

                memcpy(engine->data + at, patch->bytes, MIN((uint64_t)patch->size, DATA_BYTES - at));
        }
}

/* ---- comparing ---- */

/* One case, run: what the host made of it, and another engine. */
struct pair {
        const struct diff_case *c;
        const struct outcome *native, *other;
        const uint8_t *native_data, *other_data;
        bool strict; /* compare the flags that the manual leaves undefined, too */
};

bool pair_same(const struct pair *pair);
/* The memory may differ, although the rest is the same: make it equal again. */
bool pair_memory_open(const struct pair *pair);
void pair_print(const struct pair *pair, const char *name);
