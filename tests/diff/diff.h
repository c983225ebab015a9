/*
 * One instruction (or a few) run twice from the same state: on the host's processor and on the software one.
 *
 * Both run at privilege level 3 in 64-bit mode at the same addresses: code, data and stack lie at fixed places below 2 GiB in
 * this process, and the guest's memory maps them at the same linear addresses. So an operand's address is the same number in
 * both. What ends a run is the end of the code or an exception; the state then, the exception and what memory holds are compared.
 *
 * Limits: no branches out of the code, no system instructions, no TF. RSP must point into the stack area for those that push.
 */
#pragma once

#include "cpu/x86/cpuid.h"
#include "cpu/x86/x86.h"

#define DIFF_BASE 0x10000000u
#define DIFF_CODE (DIFF_BASE + 0x1000u)  /* one page */
#define DIFF_CODE_BYTES 0xf00u
#define DIFF_DATA (DIFF_BASE + 0x4000u)  /* two pages; before and behind them nothing is mapped */
#define DIFF_DATA_BYTES 0x2000u
#define DIFF_STACK (DIFF_BASE + 0x8000u) /* one page */
#define DIFF_STACK_BYTES 0x1000u
#define DIFF_XSAVE_BYTES 832 /* x87, SSE and AVX state in the standard format */

struct diff_state {
        uint64_t gpr[16];
        uint64_t rflags; /* status flags and DF */
        uint8_t xsave[DIFF_XSAVE_BYTES] __attribute__((aligned(64)));
};

struct diff_memory {
        uint8_t data[DIFF_DATA_BYTES];
        uint8_t stack[DIFF_STACK_BYTES];
};

struct diff_run {
        struct diff_state state;
        struct diff_memory memory;
        int vector;          /* -1: the code ran to its end */
        uint32_t error_code; /* of #PF and #GP */
        uint64_t cr2;        /* of #PF */
        uint64_t rip;        /* offset in the code where it ended */
};

/* The host. One at a time in a process: it owns the fixed addresses and signal handlers. */
int native_init(struct err *err) _must_check_;
/* state and memory of run go in and come out. xsave is used when with_xsave. */
void native_run(const uint8_t *code, size_t size_bytes, struct diff_run *run, bool with_xsave);

/* A processor of ours with memory of its own, in 64-bit mode at privilege level 3, ready to run code at DIFF_CODE. */
struct bare;
int bare_new(const char *model, struct bare **bare, struct err *err) _must_check_;
void bare_free(struct bare *bare);
void bare_run(struct bare *bare, const uint8_t *code, size_t size_bytes, struct diff_run *run, bool with_xsave);

/* For other uses: the processor, its memory, and a flat 64-bit state at level 0 (or 3) with rip there. */
struct x86_cpu *bare_cpu(struct bare *bare);
struct guest_memory *bare_memory(struct bare *bare);
const struct x86_model *bare_model(struct bare *bare);
void bare_reset(struct bare *bare, unsigned cpl, uint64_t rip);
/* The same in flat 32-bit or in real mode. */
void bare_reset32(struct bare *bare, uint64_t rip);
void bare_reset16(struct bare *bare, uint16_t ip);
/* Gates to the vector's HLT, which ends x86_cpu_run(); the vector that came last, -1 when none did, with its frame. */
struct bare_frame {
        uint64_t error_code, rip, cs, rflags, rsp, ss;
};
int bare_vector(struct bare *bare, struct bare_frame *frame);
