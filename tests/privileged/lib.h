/*
 * What the bare programs share: output on COM1, polled; checks; exceptions that are expected; a reset at the end.
 *
 * TRY(code, inputs…) runs code; when it faults, trap() records the fault in `last` and trap_resume() continues behind the code.
 * A vector of NONE says that nothing happened. The handler's frame is in `last` whole, so that error code, IP, CR2 and RF can be
 * checked.
 *
 * A program defines before it includes this, for its width: word; struct frame as its stubs push it, with vector, error, ip, cs
 * and flags; TRY_BEFORE, TRY_AFTER and TRY_CLOBBERS, assembly that saves the registers, keeps the stack pointer in try_sp and puts
 * the address of label 99 into resume, and that undoes it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline void outb(uint16_t port, uint8_t value)
{
        __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
        uint8_t value;

        __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
        return value;
}

static inline void put_char(char c)
{
        while (!(inb(0x3fd) & 0x20))
                ;
        outb(0x3f8, (uint8_t)c);
}

static inline void put(const char *text)
{
        for (; *text; text++)
                put_char(*text);
}

static inline void put_hex(uint64_t value)
{
        put("0x");
        for (int shift = 60; shift >= 0; shift -= 4)
                if (value >> shift || !shift)
                        put_char("0123456789abcdef"[value >> shift & 15]);
}

static unsigned checks_done;

static bool tcg; /* under QEMU's TCG, which leaves out what stands in `if (!tcg)` (seen with 7.2) */

static inline bool under_tcg(void)
{
        uint32_t a = 0x40000000, b, c, d;

        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d));
        return b == 0x54474354; /* "TCGT" */
}

/* One check: a line a result, with both values when they differ. */
static inline void check_eq(const char *name, uint64_t got, uint64_t expected)
{
        checks_done++;
        put(got == expected ? "ok " : "not ok ");
        put(name);
        if (got != expected) {
                put(": got ");
                put_hex(got);
                put(" expected ");
                put_hex(expected);
        }
        put("\n");
}

_Noreturn static inline void finish(void)
{
        put("done ");
        put_hex(checks_done);
        put("\n");
        outb(0xcf9, 6); /* full reset */
        outb(0x64, 0xfe);
        for (;;)
                __asm__ volatile("hlt");
}

/* ---- exceptions ---- */

#define NONE 0x100

#define READ_CR(n) ({ word v_; __asm__ volatile("mov %%cr" #n ", %0" : "=r"(v_)); v_; })
#define WRITE_CR(n, v) __asm__ volatile("mov %0, %%cr" #n : : "r"((word)(v)) : "memory")

/* Not static: trap() changes them behind the compiler's back. */
struct frame last;
volatile word last_cr2, traps;
word resume, try_sp;

void trap(struct frame *f); /* called by the stubs */

#define TRY(code, ...)                                                                                        \
        do {                                                                                                  \
                last = (struct frame){ .vector = NONE };                                                      \
                __asm__ volatile(TRY_BEFORE code "\n99: " TRY_AFTER : : __VA_ARGS__ : TRY_CLOBBERS);          \
        } while (0)

#define CHECK_FAULT(name, vector_, error_)                            \
        do {                                                          \
                check_eq(name ": vector", last.vector, vector_);      \
                if ((vector_) != NONE && last.vector == (vector_))    \
                        check_eq(name ": error", last.error, error_); \
        } while (0)

/* A check that TCG fails. */
#define CHECK_STRICT(name, vector, error)                 \
        do {                                              \
                if (!tcg)                                 \
                        CHECK_FAULT(name, vector, error); \
        } while (0)

static inline void trap_record(const struct frame *f)
{
        last = *f;
        traps++;
        last_cr2 = READ_CR(2);
}

/* Return to level 0 at ip, with interrupts off. */
static inline void trap_to_kernel(struct frame *f, void *ip)
{
        f->ip = (word)ip;
        f->cs = 8;
        f->flags = 2;
}

/* Return to behind the TRY() that runs; there has to be one. */
static inline void trap_resume(struct frame *f)
{
        if (!resume) {
                put("unexpected exception ");
                put_hex(f->vector);
                put(" error ");
                put_hex(f->error);
                put(" at ");
                put_hex(f->ip);
                put(" cr2 ");
                put_hex(last_cr2);
                put("\n");
                finish();
        }
        f->ip = resume;
        f->cs = 8;
        f->flags &= ~(word)0x10100; /* RF, TF */
}
