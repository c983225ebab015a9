/*
 * What the bare programs of one processor share: exceptions that are expected.
 *
 * TRY(code, inputs…) runs code; when it faults, trap() records the fault in `last` and trap_resume() continues behind the code.
 * A vector of NONE says that nothing happened. The handler's frame is in `last` whole, so that error code, IP, CR2 and RF can be
 * checked.
 *
 * A program defines before it includes this, for its width: word; struct frame as its entries push it, with vector, error, ip, cs
 * and flags; TRY_BEFORE, TRY_AFTER and TRY_CLOBBERS, assembly that saves the registers, keeps the stack pointer in try_sp and puts
 * the address of label 99 into resume, and that undoes it.
 */
#pragma once

#include "output.h"

#define NONE 0x100

#define READ_CR(n) ({ word v_; __asm__ volatile("mov %%cr" #n ", %0" : "=r"(v_)); v_; })
#define WRITE_CR(n, v) __asm__ volatile("mov %0, %%cr" #n : : "r"((word)(v)) : "memory")

/* Not static: trap() changes them behind the compiler's back. */
struct frame last;
volatile word last_cr2, traps;
word resume, try_sp;

void trap(struct frame *f); /* called by the entries */

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
