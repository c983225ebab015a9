/*
 * Handlers that translated code calls with the guest's vector registers still in the host's: the usual case of what system calls,
 * faults, task switches and copies of memory are made of. They decline whatever is odd, before anything is changed; the
 * interpreter's handler does it then. None of them raises a fault.
 */
#pragma once

#include "cpu/x86/cpu.h"

enum fast_result {
        FAST_NO,   /* the interpreter's handler is to do it; an instruction with REP may be part done, with its registers right */
        FAST_NEXT, /* on to the next instruction */
        FAST_LEFT, /* s.rip says where to go on */
};

typedef enum fast_result (*fast_fn)(struct x86_cpu *cpu, const struct insn *insn);

/* The one for an instruction of a 64-bit block, or NULL. A MOV is one to a control register, MOVS the string instruction. */
fast_fn fast_handler(const struct insn *insn);
/* MOV of a selector into a general register; BT, BTS, BTR, BTC on memory by a register. */
fast_fn fast_segment_handler(void);
fast_fn fast_bit_handler(const struct insn *insn, bool locked);

/*
 * A page fault of a data access at CPL 3, through a gate to CPL 0 without an IST stack, all of whose tables and stack the TLB knows. First
 * whether it is one, with nothing changed; then, with s.rip and the flags those of the instruction, its delivery.
 */
struct fast_fault {
        uint64_t linear, rip, code, rsp, *frame;
        uint32_t error;
        uint16_t selector;
        bool clears_if;
};
bool fast_fault_prepare(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes, bool write, struct fast_fault *fault);
void fast_fault_deliver(struct x86_cpu *cpu, const struct fast_fault *fault);

/* translator-xstate.c */
enum fast_result fast_xsave(struct x86_cpu *cpu, const struct insn *insn);
enum fast_result fast_xsavec(struct x86_cpu *cpu, const struct insn *insn);
enum fast_result fast_xrstor(struct x86_cpu *cpu, const struct insn *insn);
