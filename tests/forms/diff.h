/*
 * Differential test of the interpreter: what its parts share.
 *
 * A form (forms.c) is one way to encode one instruction. A case is a form with registers, addressing and immediate chosen, and
 * an input image (operands.c). It is executed by the host's processor (native.c) and by the interpreter (guest.c), at the same
 * linear addresses with the same memory contents; diff.c compares the two outputs.
 *
 * Linear addresses, in both: code at CODE_BASE, data at DATA_BASE between unmapped pages, a read-only page behind it.
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

/* Registers before or after; vector < 0: no fault. */
struct image {
        uint8_t xsave[896] __attribute__((aligned(64))); /* standard format: x87, SSE, AVX */
        uint64_t gpr[16];
        uint64_t rip, rflags;
        int vector;
        uint32_t error_code;
        uint64_t cr2;
};

struct form {
        uint8_t vex;     /* 0 legacy, 1 VEX */
        uint8_t prefix;  /* index into form_prefixes */
        uint8_t map;     /* 0 one byte, 1 0F, 2 0F38, 3 0F3A */
        uint8_t opcode;
        uint8_t w, l;
        int8_t reg, rm;  /* ModRM fields that select the instruction, or -1 */
        uint8_t modrm;   /* has one */
        uint8_t memory;  /* ModRM selects memory */
        uint8_t lock;
        uint16_t mnemonic;
};

struct forms {
        struct form *form;
        size_t count, capacity;
        /* By mnemonic: how many forms are tested, and why those that are not are not. */
        uint32_t tested[ZYDIS_MNEMONIC_MAX_VALUE + 1];
        const char *reason[ZYDIS_MNEMONIC_MAX_VALUE + 1];
        bool seen[ZYDIS_MNEMONIC_MAX_VALUE + 1]; /* decodes in 64-bit mode */
};

/* offered[isa_set]: whether the model has the set. */
int forms_new(struct forms *forms, const bool offered[ZYDIS_ISA_SET_MAX_VALUE + 1], struct err *err) _must_check_;
void forms_free(struct forms *forms);
void form_print(const struct form *form);

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

/* One instruction as bytes, decoded. */
struct code {
        uint8_t bytes[16];
        uint64_t address; /* linear */
        ZydisDecodedInstruction z;
        ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
        bool branch; /* rip after it is not simply its end */
};

/* A random encoding of form; false when this try did not decode to it. */
bool form_encode(const struct form *form, struct random *r, const ZydisDecoder *decoder, struct code *code);

/* Memory that a case sets up before it runs: bytes at linear. */
struct patch {
        uint64_t linear;
        unsigned size;
        uint8_t bytes[1024];
};

/* A random input for code, whose displacement or branch distance is set to go with it. */
void operands_make(struct code *code, struct random *r, struct image *in, struct patch *patch);
/* RFLAGS bits that the instruction leaves undefined. */
uint64_t operands_undefined_flags(const struct code *code, const struct image *in);

struct native;
int native_new(struct native **native, struct err *err) _must_check_;
void native_free(struct native *native);
void native_code(struct native *native, const struct code *code);
void native_run(struct native *native, const struct code *code, const struct image *in, struct image *out);

struct guest;
int guest_new(struct guest **guest, const char *model, struct err *err) _must_check_;
void guest_free(struct guest *guest);
const bool *guest_isa_sets(const struct guest *guest);
void guest_code(struct guest *guest, const struct code *code);
void guest_run(struct guest *guest, const struct code *code, const struct image *in, struct image *out);
/* The guest's copy of what is at DATA_BASE and RO_BASE. */
uint8_t *guest_data(struct guest *guest);
uint8_t *guest_readonly(struct guest *guest);
