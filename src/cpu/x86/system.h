/*
 * What the files of system instructions, segments, exceptions and paging share among themselves.
 *
 * Source: Intel SDM volume 3A chapters 3 to 7; AMD APM volume 2 chapters 4 and 8.
 */
#pragma once

#include "cpu/x86/cpu.h"

#define X86_PHYSICAL_BITS 46u

/* Page-fault error code (SDM vol. 3A §4.7). */
#define X86_PF_P (1u << 0)
#define X86_PF_W (1u << 1)
#define X86_PF_U (1u << 2)
#define X86_PF_RSVD (1u << 3)
#define X86_PF_I (1u << 4)

/* Bits of the other error codes: external event, IDT, LDT. */
#define X86_ERROR_EXT 1u
#define X86_ERROR_IDT 2u

/* Every bit of EFLAGS that POPF, IRET and task switches may load at most. */
#define X86_FLAGS_ALL \
        (X86_FLAGS_STATUS | X86_FLAG_TF | X86_FLAG_IF | X86_FLAG_DF | X86_FLAG_IOPL | X86_FLAG_NT | X86_FLAG_RF | X86_FLAG_VM | \
         X86_FLAG_AC | X86_FLAG_VIF | X86_FLAG_VIP | X86_FLAG_ID)

static inline bool x86_canonical(uint64_t address)
{
        return (uint64_t)((int64_t)(address << 16) >> 16) == address;
}

static inline bool x86_protected(const struct x86_cpu *cpu)
{
        return cpu->mode_key & MODE_PROTECTED;
}

static inline bool x86_v86(const struct x86_cpu *cpu)
{
        return cpu->mode_key & MODE_V86;
}

static inline bool x86_long(const struct x86_cpu *cpu)
{
        return cpu->mode_key & MODE_LONG;
}

static inline unsigned x86_iopl(const struct x86_cpu *cpu)
{
        return (unsigned)(cpu->s.rflags >> 12) & 3;
}

/* Bytes of a stack slot for a 16-, 32- or 64-bit operand are the caller's; this is the mask of the stack pointer. */
static inline uint64_t x86_stack_mask(const struct x86_cpu *cpu)
{
        return cpu->mode64 ? UINT64_MAX : cpu->stack32 ? UINT32_MAX : UINT16_MAX;
}

/* Sets the part of RSP that the stack size covers. */
static inline void x86_set_sp(struct x86_cpu *cpu, uint64_t sp)
{
        uint64_t mask = x86_stack_mask(cpu);

        if (mask == UINT16_MAX)
                cpu->s.gpr[X86_RSP] = (cpu->s.gpr[X86_RSP] & ~mask) | (sp & mask);
        else
                cpu->s.gpr[X86_RSP] = sp & mask;
}

/*
 * A stack that is being read or built while faults are still possible: nothing is stored in the state before stack_commit().
 * Pushes are to the current SS, or to one that is about to be loaded (then base, limit and rights are those of segment).
 */
struct stack {
        struct x86_segment ss;
        uint64_t sp;
        uint64_t mask;
        uint16_t error;  /* the selector for #SS */
        bool system;     /* access as supervisor: the frame of a more privileged handler */
        bool flat;       /* 64-bit mode: no limits */
        uint8_t bytes;   /* of a slot: 2, 4 or 8 */
};

struct stack stack_current(struct x86_cpu *cpu, unsigned slot_bytes);
void stack_push(struct x86_cpu *cpu, struct stack *stack, uint64_t value);
uint64_t stack_pop(struct x86_cpu *cpu, struct stack *stack);
/* Faults now as pushing slots times would. */
void stack_probe(struct x86_cpu *cpu, const struct stack *stack, unsigned slots);

/* ---- descriptors (segment.c) ---- */

/* A descriptor of the GDT or LDT, 8 bytes as in memory; the upper half of 16-byte ones is read on its own. */
struct descriptor {
        uint64_t raw;
        uint64_t linear;   /* where it is */
        uint16_t selector;
};

#define DESC_TYPE(raw) ((unsigned)((raw) >> 40) & 15)
#define DESC_S(raw) ((unsigned)((raw) >> 44) & 1)
#define DESC_DPL(raw) ((unsigned)((raw) >> 45) & 3)
#define DESC_P(raw) ((unsigned)((raw) >> 47) & 1)
#define DESC_L(raw) ((unsigned)((raw) >> 53) & 1)
#define DESC_DB(raw) ((unsigned)((raw) >> 54) & 1)
#define DESC_CODE(raw) (DESC_TYPE(raw) & 8)
#define DESC_CONFORMING(raw) (DESC_TYPE(raw) & 4)
#define DESC_RW(raw) (DESC_TYPE(raw) & 2)

enum system_type {
        TYPE_TSS16 = 1, TYPE_LDT = 2, TYPE_TSS16_BUSY = 3, TYPE_CALL16 = 4, TYPE_TASK = 5, TYPE_INT16 = 6, TYPE_TRAP16 = 7,
        TYPE_TSS32 = 9, TYPE_TSS32_BUSY = 11, TYPE_CALL32 = 12, TYPE_INT32 = 14, TYPE_TRAP32 = 15,
};

/* Whether selector lies within its table; reads it (may #PF). */
bool descriptor_read(struct x86_cpu *cpu, uint16_t selector, struct descriptor *d);
/* The same, and a failure raises vector with the selector as error code (with ext in bit 0). */
void descriptor_need(struct x86_cpu *cpu, uint16_t selector, unsigned vector, unsigned ext, struct descriptor *d);
uint64_t descriptor_high(struct x86_cpu *cpu, const struct descriptor *d);
void descriptor_set_accessed(struct x86_cpu *cpu, struct descriptor *d);
void descriptor_set_busy(struct x86_cpu *cpu, uint16_t selector, bool busy);
struct x86_segment descriptor_segment(const struct descriptor *d);
/* A real-mode or virtual-8086 segment. */
struct x86_segment segment_real(uint16_t selector, bool v86);
struct x86_segment segment_null(uint16_t selector);

/* The checks of loading seg in protected mode at privilege cpl; gives the segment, with the accessed bit set in memory. */
struct x86_segment segment_fetch(struct x86_cpu *cpu, unsigned seg, uint16_t selector, unsigned cpl, unsigned vector);
/* SS for a stack of privilege dpl in an inner level (vector: #TS) or IRET's (#GP). */
struct x86_segment stack_segment_fetch(struct x86_cpu *cpu, uint16_t selector, unsigned dpl, unsigned vector, unsigned ext);
/* After a return to a less privileged level: data segments that must not be seen become null (SDM vol. 2 "RET"). */
void segments_drop_privileged(struct x86_cpu *cpu, unsigned cpl);

/* The stack for privilege level dpl from the TSS (32- or 16-bit), or RSPn in long mode. */
void tss_stack(struct x86_cpu *cpu, unsigned dpl, unsigned ext, uint16_t *ss, uint64_t *sp);

/* Far transfers; next_rip is the instruction after. They end with s.rip, CS and CPL set. */
void far_jump(struct x86_cpu *cpu, uint16_t selector, uint64_t offset, unsigned opsize, uint64_t next_rip);
void far_call(struct x86_cpu *cpu, uint16_t selector, uint64_t offset, unsigned opsize, uint64_t next_rip);
void far_return(struct x86_cpu *cpu, unsigned opsize, unsigned drop_bytes);
void interrupt_return(struct x86_cpu *cpu, unsigned opsize, uint64_t next_rip);
void load_ldtr(struct x86_cpu *cpu, uint16_t selector);
void load_tr(struct x86_cpu *cpu, uint16_t selector);
/* Sets CS and rip of a checked target. */
void set_code(struct x86_cpu *cpu, const struct x86_segment *cs, uint64_t rip);
/* #GP(0) when rip is not canonical or past the limit of cs. */
void check_code_target(struct x86_cpu *cpu, const struct x86_segment *cs, uint64_t rip);

/* ---- tasks (task.c) ---- */

enum task_source { TASK_JUMP, TASK_CALL, TASK_INTERRUPT, TASK_IRET };
void task_switch(struct x86_cpu *cpu, uint16_t selector, enum task_source source, uint64_t next_rip, bool has_error, uint32_t error_code);

/* ---- events (interrupt.c) ---- */

enum event_kind { EVENT_EXCEPTION, EVENT_EXTERNAL, EVENT_SOFTWARE, EVENT_ICEBP };
/* One delivery that raises nested faults as x86_raise(). return_rip is pushed. */
void deliver_once(struct x86_cpu *cpu, unsigned vector, enum event_kind kind, uint64_t return_rip, bool has_error, uint32_t error);

/* ---- debug (system-debug.c) ---- */

/* Notes data breakpoints that an access meets; raised by x86_step_end(). */
void x86_debug_data(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes, bool write);
void x86_debug_io(struct x86_cpu *cpu, uint16_t port, unsigned size_bytes);
/* A single-step trap comes before the next instruction. */
void x86_step_pending(struct x86_cpu *cpu);

/* ---- memory (mmu.c) ---- */

/* What a walk finds. */
struct translation {
        uint64_t gpa;   /* of the page */
        uint32_t flags; /* TLB_GLOBAL, TLB_LARGE_* */
        bool writable;  /* for this mode, and dirty already */
};

enum access { ACCESS_READ = 0, ACCESS_WRITE = X86_PF_W, ACCESS_FETCH = X86_PF_I };

void mmu_system_probe_write(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes);

/* ---- the soft TLB (tlb.c) ---- */

/* An empty one, of a processor that has just been mapped. */
void mmu_reset(struct x86_cpu *cpu);
/* Enters the translation of linear's page, which is RAM of region, into the set of mode. */
void tlb_fill(struct x86_cpu *cpu, uint64_t linear, unsigned mode, const struct translation *t, const struct guest_region *region);
void tlb_fill_exec(struct x86_cpu *cpu, uint64_t linear, uint64_t gpa, uint32_t flags, const uint8_t *host);
void tlb_drop_faulted(struct x86_cpu *cpu, uint64_t linear);
/* A page becomes code: whether any processor's TLB lets it write it; this one's does no more. */
bool mmu_holds_write_tag(struct x86_cpu *cpu, uint64_t gpa);
void tlb_drop_writers(struct x86_cpu *cpu, uint64_t gpa);

/* ---- other processors (complex.c) ---- */

void complex_drop_writers(struct x86_cpu *cpu, uint64_t gpa);
bool complex_drops_pending(const struct x86_cpu *cpu);
#define COMPLEX_CPUS_MAX 256u
struct x86_cpu *complex_cpu(const struct x86_complex *complex, unsigned index);
struct x86_cpu *complex_at(struct x86_cpu *cpu, unsigned index);

/* ---- control registers and MSRs ---- */

void x86_set_cr0(struct x86_cpu *cpu, uint64_t value);
void x86_set_cr3(struct x86_cpu *cpu, uint64_t value);
void x86_set_cr4(struct x86_cpu *cpu, uint64_t value);
/* -EPERM: #GP. */
int x86_msr_read(struct x86_cpu *cpu, uint32_t index, uint64_t *value);
int x86_msr_write(struct x86_cpu *cpu, uint32_t index, uint64_t value);
uint64_t x86_tsc(const struct x86_cpu *cpu);

/* ---- instructions ---- */

/* Each file's share of system_bind(); NULL when the mnemonic is not of its topic. */
insn_fn system_control_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn system_segment_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn system_transfer_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn system_call_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn system_io_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);
insn_fn system_misc_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d);

static inline uint64_t system_reg(const struct x86_cpu *cpu, uint8_t at, unsigned size_bytes)
{
        const char *reg = (const char *)cpu->s.gpr + at;

        switch (size_bytes) {
        case 1:
                return *(const uint8_t *)reg;
        case 2:
                return *(const uint16_t *)reg;
        case 4:
                return *(const uint32_t *)reg;
        default:
                return *(const uint64_t *)reg;
        }
}

/* Writing 4 bytes clears the upper half. */
static inline void system_set_reg(struct x86_cpu *cpu, uint8_t at, uint64_t value, unsigned size_bytes)
{
        char *reg = (char *)cpu->s.gpr + at;

        switch (size_bytes) {
        case 1:
                *(uint8_t *)reg = (uint8_t)value;
                break;
        case 2:
                *(uint16_t *)reg = (uint16_t)value;
                break;
        case 4:
                *(uint64_t *)reg = (uint32_t)value;
                break;
        default:
                *(uint64_t *)reg = value;
        }
}

/* The 16-bit operand 0 of an instruction, in memory or a register. */
static inline uint16_t system_word(struct x86_cpu *cpu, const struct insn *i, unsigned operand)
{
        if (i->memory_operand == operand)
                return mmu_read16(cpu, insn_linear(cpu, i, 2, false));
        return (uint16_t)system_reg(cpu, i->reg[operand], 2);
}

static inline void system_need_cpl0(struct x86_cpu *cpu)
{
        if (cpu->cpl != 0)
                x86_gp0(cpu);
}

/* Leaves the block at the next instruction. */
static inline const struct insn *system_leave(struct x86_cpu *cpu, const struct insn *i)
{
        cpu->s.rip = insn_rip(cpu, i->end);
        return NULL;
}
