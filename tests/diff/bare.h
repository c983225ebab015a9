/*
 * A processor of ours without a machine: memory, tables, gates to HLT, no devices.
 *
 * Physical memory begins at 0. The supervisor sees all of it at BARE_LINEAR; what the user sees is put there by bare_map(). An
 * exception goes to a HLT at level 0, so x86_cpu_run() returns X86_EXIT_HALTED and bare_vector() says which it was.
 */
#pragma once

#include "cpu/x86/cpuid.h"
#include "cpu/x86/x86.h"

#define BARE_MEMORY (64u << 20)
#define BARE_LINEAR UINT64_C(0xffff800000000000)
#define BARE_FREE 0x100000u /* physical memory from here on is the caller's */

struct bare;
enum bare_engine { BARE_INTERPRETER, BARE_TRANSLATOR };
int bare_new_engine(const char *model, enum bare_engine engine, struct bare **bare, struct err *err) _must_check_;
int bare_new(const char *model, struct bare **bare, struct err *err) _must_check_; /* BARE_INTERPRETER */
void bare_free(struct bare *bare);

struct x86_cpu *bare_cpu(struct bare *bare);
struct guest_memory *bare_memory(struct bare *bare);
/* Its memory at gpa; what is written there is data, or code that did not run yet. */
uint8_t *bare_at(struct bare *bare, uint64_t gpa, uint64_t size_bytes);
/* By enum ZydisISASet: which instruction sets the processor has. */
const bool *bare_isa_sets(const struct bare *bare);

/*
 * Pages for the user, in the first GiB of linear memory, that may be executed or written but not both; NONE is not there, KERNEL is not
 * for the user. What was mapped there may stay in the TLB: INVLPG is the caller's.
 */
enum bare_pages { BARE_READ, BARE_WRITE, BARE_EXECUTE, BARE_NONE, BARE_KERNEL };
void bare_map(struct bare *bare, uint64_t linear, uint64_t gpa, uint64_t size_bytes, enum bare_pages pages);

/* Flat states with paging on: 64-bit at level 0 or 3, 32-bit (compatibility mode) at level 3. Registers are 0. */
enum bare_mode { BARE_SUPERVISOR, BARE_USER64, BARE_USER32 };
void bare_state(const struct bare *bare, enum bare_mode mode, struct x86_state *state);

struct bare_frame {
        uint64_t error_code, rip, cs, rflags, rsp, ss;
};

/* The vector that ended x86_cpu_run() with its frame; -1 when it was a HLT of the code itself. */
int bare_vector(struct bare *bare, struct bare_frame *frame);

/* From now on the supervisor goes on at linear when it is woken from the HLT of an exception. */
void bare_go_on(struct bare *bare, uint64_t linear);
