/*
 * What instruction handlers are made of: dispatch, registers, memory operands, the stack.
 *
 * Handlers are specialised by operand width and form through macros, so that a handler does nothing but the operation. A
 * memory operand comes in three forms:
 *
 *      FORM_BASE    64-bit addressing without FS and GS, base + displacement (RIP-relative too)
 *      FORM_INDEX   the same with an index
 *      FORM_ANY     everything else, through insn_linear() with its checks
 *
 * The first two leave even the check for canonical addresses to the TLB: an entry never holds an address that is not canonical,
 * so such an access misses, and the slow path makes the right fault of it.
 */
#pragma once

#include "cpu/x86/block.h"
#include "cpu/x86/flags.h"

#define HANDLER(name) static const struct insn *name(struct x86_cpu *cpu, const struct insn *i)
#define _cold_ __attribute__((cold, noinline))

/*
 * On to the next instruction of the block: a tail call where the compiler makes one, so that each handler has an indirect jump
 * of its own to be predicted. Ends of blocks return to the run loop, so even calls that are not turned into jumps do not nest
 * deeper than a block.
 */
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__)
#define NEXT                                      \
        do {                                      \
                const struct insn *next_ = i + 1; \
                cpu->insn = next_;                \
                return next_->fn(cpu, next_);     \
        } while (0)
#else
#define NEXT return i + 1
#endif

#define FOR_EACH_WIDTH(X, ...) X(8, ##__VA_ARGS__) X(16, ##__VA_ARGS__) X(32, ##__VA_ARGS__) X(64, ##__VA_ARGS__)
#define FOR_EACH_WORD(X, ...) X(16, ##__VA_ARGS__) X(32, ##__VA_ARGS__) X(64, ##__VA_ARGS__)

/* 0-3 for 1, 2, 4, 8 bytes: the order of tables by width. */
static inline unsigned width_index(unsigned size_bytes)
{
        return (unsigned)__builtin_ctz(size_bytes) & 3;
}

/* ---- registers: at is a byte offset into the register file ---- */

#define REGISTER_ACCESS(bits)                                                                   \
        static _always_inline_ uint##bits##_t reg_get##bits(const struct x86_cpu *cpu, uint8_t at) \
        {                                                                                       \
                return *(const uint##bits##_t *)((const char *)cpu->s.gpr + at);                \
        }
FOR_EACH_WIDTH(REGISTER_ACCESS)

static _always_inline_ void reg_set8(struct x86_cpu *cpu, uint8_t at, uint8_t value)
{
        *(uint8_t *)((char *)cpu->s.gpr + at) = value;
}

static _always_inline_ void reg_set16(struct x86_cpu *cpu, uint8_t at, uint16_t value)
{
        *(uint16_t *)((char *)cpu->s.gpr + at) = value;
}

/* Writing 32 bits clears the upper half. */
static _always_inline_ void reg_set32(struct x86_cpu *cpu, uint8_t at, uint32_t value)
{
        *(uint64_t *)((char *)cpu->s.gpr + at) = value;
}

static _always_inline_ void reg_set64(struct x86_cpu *cpu, uint8_t at, uint64_t value)
{
        *(uint64_t *)((char *)cpu->s.gpr + at) = value;
}

/* By register number. */
#define RAX_AT (X86_RAX * 8)
#define RCX_AT (X86_RCX * 8)
#define RDX_AT (X86_RDX * 8)
#define RSP_AT (X86_RSP * 8)
#define RBP_AT (X86_RBP * 8)

/* ---- memory operands ---- */

enum address_form { FORM_BASE, FORM_INDEX, FORM_ANY, ADDRESS_FORMS };

static inline enum address_form address_form(const struct insn *i)
{
        if (!(i->flags & INSN_MODE64) || i->asize != 8 || i->seg >= X86_FS)
                return FORM_ANY;
        return i->index == GPR_ZERO * 8 ? FORM_BASE : FORM_INDEX;
}

#define FOR_EACH_FORM(X, ...) X(BASE, ##__VA_ARGS__) X(INDEX, ##__VA_ARGS__) X(ANY, ##__VA_ARGS__)

static _always_inline_ uint64_t address_of(const struct x86_cpu *cpu, const struct insn *i, enum address_form form)
{
        uint64_t address = reg_get64(cpu, i->base) + (uint64_t)i->disp;

        if (form == FORM_INDEX)
                address += reg_get64(cpu, i->index) << i->shift;
        return address;
}

/* integer.c: out of line, with all checks. */
uint64_t exec_load_slow(struct x86_cpu *cpu, const struct insn *i, unsigned size_bytes);
void exec_store_slow(struct x86_cpu *cpu, const struct insn *i, uint64_t value, unsigned size_bytes);
/* The two halves of a read-modify-write that has no host pointer: the first raises whatever the second could. */
uint64_t exec_modify_load(struct x86_cpu *cpu, const struct insn *i, unsigned size_bytes);
void exec_modify_store(struct x86_cpu *cpu, const struct insn *i, uint64_t value, unsigned size_bytes);

#define MEMORY_ACCESS(bits)                                                                                                \
        static _always_inline_ uint##bits##_t load##bits(struct x86_cpu *cpu, const struct insn *i, enum address_form form) \
        {                                                                                                                  \
                const uint##bits##_t *at;                                                                                  \
                                                                                                                           \
                if (form == FORM_ANY)                                                                                      \
                        return mmu_read##bits(cpu, insn_linear(cpu, i, bits / 8, false));                                  \
                at = tlb_find(cpu, address_of(cpu, i, form), bits / 8, false);                                             \
                if (likely(at))                                                                                            \
                        return __atomic_load_n(at, __ATOMIC_RELAXED);                                                      \
                return (uint##bits##_t)exec_load_slow(cpu, i, bits / 8);                                                   \
        }                                                                                                                  \
        static _always_inline_ void store##bits(struct x86_cpu *cpu, const struct insn *i, enum address_form form,         \
                                                uint##bits##_t value)                                                      \
        {                                                                                                                  \
                uint##bits##_t *at;                                                                                        \
                                                                                                                           \
                if (form == FORM_ANY) {                                                                                    \
                        mmu_write##bits(cpu, insn_linear(cpu, i, bits / 8, true), value);                                  \
                        return;                                                                                            \
                }                                                                                                          \
                at = tlb_find(cpu, address_of(cpu, i, form), bits / 8, true);                                              \
                if (likely(at))                                                                                            \
                        __atomic_store_n(at, value, __ATOMIC_RELAXED);                                                     \
                else                                                                                                       \
                        exec_store_slow(cpu, i, value, bits / 8);                                                          \
        }
FOR_EACH_WIDTH(MEMORY_ACCESS)

/* The host address of a plain operand for read-modify-write, NULL for exec_modify_load() and _store(). */
static _always_inline_ void *modify_at(struct x86_cpu *cpu, const struct insn *i, enum address_form form, unsigned size_bytes)
{
        uint64_t linear = form == FORM_ANY ? insn_linear(cpu, i, size_bytes, true) : address_of(cpu, i, form);

        return tlb_find(cpu, linear, size_bytes, true);
}

/* Without LOCK: statement computes r from a. */
#define MODIFY(bits, form, statement)                                                                                      \
        do {                                                                                                               \
                uint##bits##_t *at_ = modify_at(cpu, i, form, bits / 8);                                                   \
                uint##bits##_t a = likely(at_) ? __atomic_load_n(at_, __ATOMIC_RELAXED)                                    \
                                               : (uint##bits##_t)exec_modify_load(cpu, i, bits / 8);                       \
                uint##bits##_t r;                                                                                          \
                statement;                                                                                                 \
                if (likely(at_))                                                                                           \
                        __atomic_store_n(at_, r, __ATOMIC_RELAXED);                                                        \
                else                                                                                                       \
                        exec_modify_store(cpu, i, r, bits / 8);                                                            \
        } while (0)

/* ---- the stack ---- */

static inline uint64_t stack_mask(const struct x86_cpu *cpu)
{
        return cpu->mode64 ? UINT64_MAX : cpu->stack32 ? UINT32_MAX : UINT16_MAX;
}

/* SP, ESP or RSP set; the rest of the register stays with a 16-bit stack. */
static inline void stack_set(struct x86_cpu *cpu, uint64_t sp)
{
        if (cpu->mode64)
                cpu->s.gpr[X86_RSP] = sp;
        else if (cpu->stack32)
                cpu->s.gpr[X86_RSP] = (uint32_t)sp;
        else
                reg_set16(cpu, RSP_AT, (uint16_t)sp);
}

/* The value at offset sp of the stack segment; writing one there. */
uint64_t exec_stack_read(struct x86_cpu *cpu, uint64_t sp, unsigned size_bytes);
void exec_stack_write(struct x86_cpu *cpu, uint64_t sp, uint64_t value, unsigned size_bytes);

/* 64-bit mode, 8 bytes. */
static _always_inline_ void stack_push64(struct x86_cpu *cpu, uint64_t value)
{
        uint64_t sp = cpu->s.gpr[X86_RSP] - 8;
        uint64_t *at = tlb_find(cpu, sp, 8, true);

        if (likely(at))
                __atomic_store_n(at, value, __ATOMIC_RELAXED);
        else
                exec_stack_write(cpu, sp, value, 8);
        cpu->s.gpr[X86_RSP] = sp;
}

static _always_inline_ uint64_t stack_peek64(struct x86_cpu *cpu)
{
        uint64_t sp = cpu->s.gpr[X86_RSP];
        const uint64_t *at = tlb_find(cpu, sp, 8, false);

        return likely(at) ? __atomic_load_n(at, __ATOMIC_RELAXED) : exec_stack_read(cpu, sp, 8);
}

/* Any mode and size. */
static inline void exec_push(struct x86_cpu *cpu, uint64_t value, unsigned size_bytes)
{
        uint64_t sp = (cpu->s.gpr[X86_RSP] - size_bytes) & stack_mask(cpu);

        exec_stack_write(cpu, sp, value, size_bytes);
        stack_set(cpu, sp);
}

static inline uint64_t exec_peek(struct x86_cpu *cpu, unsigned size_bytes)
{
        return exec_stack_read(cpu, cpu->s.gpr[X86_RSP] & stack_mask(cpu), size_bytes);
}

/* #GP(0) when rip may not be jumped to; before anything is changed. */
static inline void check_target(struct x86_cpu *cpu, uint64_t rip)
{
        if (likely(cpu->mode64)) {
                if (unlikely((((rip >> 47) + 1) & 0x1ffff) > 1))
                        x86_gp0(cpu);
        } else if (unlikely(rip > cpu->s.seg[X86_CS].limit)) {
                x86_gp0(cpu);
        }
}
