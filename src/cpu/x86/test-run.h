/*
 * For tests that run guest code on test-machine.h's processor: flat 64-bit, 32-bit and real mode states, gates that halt.
 *
 * Memory: 0x1000 PML4, 0x2000 PDPT, 0x3000 PD (identity, 2 MiB pages; linear 8 MiB up maps the same memory again), 0x5000 GDT,
 * 0x6000 IDT, 0x7000 TSS, 0x8000 the handlers, one HLT each, 0xa000 the handlers' stack; code at 0x10000, stack below 0x80000.
 */
#pragma once

#include "cpu/x86/test-machine.h"

#define RUN_CODE 0x10000u
#define RUN_STACK 0x80000u
#define RUN_DATA 0x100000u
#define RUN_HANDLERS 0x8000u
#define RUN_ALIAS TEST_MEMORY /* linear distance of the second mapping */

static void run_tables(struct test_machine *m)
{
        test_poke64(m, 0x1000, 0x2007);
        test_poke64(m, 0x2000, 0x3007);
        for (uint64_t n = 0; n < 8; n++)
                test_poke64(m, 0x3000 + n * 8, (n % 4) << 21 | 0x87);
        test_poke64(m, 0x5008, 0x00af9b000000ffff);
        test_poke64(m, 0x5010, 0x00cf93000000ffff);
        test_poke64(m, 0x5018, 0x00affb000000ffff);
        test_poke64(m, 0x5020, 0x00cff3000000ffff);
        for (uint64_t vector = 0; vector < 256; vector++) {
                uint64_t handler = RUN_HANDLERS + vector * 16;

                test_poke64(m, 0x6000 + vector * 16, (handler & 0xffff) | 0x08u << 16 | UINT64_C(0xee00) << 32);
                test_poke64(m, 0x6008 + vector * 16, 0);
                test_poke64(m, handler, 0xf4f4f4f4f4f4f4f4);
        }
        test_poke64(m, 0x7004, 0xa000);
}

static struct x86_segment run_flat(uint16_t selector, uint32_t access)
{
        return (struct x86_segment){ .selector = selector,
                                     .access = access | X86_ACCESS_S | X86_ACCESS_P | X86_ACCESS_G,
                                     .limit = UINT32_MAX };
}

static void run_segments(struct x86_state *s, uint32_t code, uint32_t data)
{
        s->seg[X86_CS] = run_flat(0x08, code);
        for (unsigned n = 0; n < X86_SEGS; n++)
                if (n != X86_CS)
                        s->seg[n] = run_flat(0x10, data);
}

/* The state to run code from, at level 0 with interrupts off; the caller may change it, then calls run_go(). */
_unused_ static struct x86_state *run_64(struct test_machine *m)
{
        struct x86_state *s = x86_cpu_state(m->cpu);

        run_tables(m);
        x86_state_reset(s, true);
        s->cr0 = X86_CR0_PE | X86_CR0_MP | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_PG;
        s->cr3 = 0x1000;
        s->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT;
        s->efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE;
        run_segments(s, 0xb | X86_ACCESS_L, 3 | X86_ACCESS_DB);
        s->tr = (struct x86_segment){ .selector = 0x28, .access = 0xb | X86_ACCESS_P, .limit = 0x67, .base = 0x7000 };
        s->gdtr = (struct x86_table){ .base = 0x5000, .limit = 0x27 };
        s->idtr = (struct x86_table){ .base = 0x6000, .limit = 0xfff };
        s->rip = RUN_CODE;
        s->rflags = X86_FLAG_FIXED;
        memset(s->gpr, 0, sizeof(s->gpr));
        s->gpr[X86_RSP] = RUN_STACK;
        return s;
}

_unused_ static struct x86_state *run_32(struct test_machine *m)
{
        struct x86_state *s = run_64(m);

        s->cr0 &= ~X86_CR0_PG;
        s->cr4 = 0;
        s->efer = 0;
        s->idtr.limit = 0;
        run_segments(s, 0xb | X86_ACCESS_DB, 3 | X86_ACCESS_DB);
        return s;
}

_unused_ static struct x86_state *run_16(struct test_machine *m)
{
        struct x86_state *s = x86_cpu_state(m->cpu);

        run_tables(m);
        x86_state_reset(s, true);
        s->seg[X86_CS].selector = RUN_CODE >> 4;
        s->seg[X86_CS].base = RUN_CODE;
        s->seg[X86_SS].selector = 0x7000;
        s->seg[X86_SS].base = 0x70000;
        s->rip = 0;
        memset(s->gpr, 0, sizeof(s->gpr));
        s->gpr[X86_RSP] = 0x8000;
        return s;
}

_unused_ static void run_code(struct test_machine *m, uint64_t at, const void *code, size_t size_bytes)
{
        assert_int_equal(guest_memory_write(&m->mem, at, code, size_bytes), 0);
}

#define RUN_BYTES(m, at, ...) run_code(m, at, (const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

/* Runs to a HLT; the vector of the handler it was in, -1 when it was the program's own. */
_unused_ static int run_go(struct test_machine *m)
{
        uint64_t at;

        x86_cpu_state_changed(m->cpu);
        assert_int_equal(x86_cpu_run(m->cpu), X86_EXIT_HALTED);
        at = x86_cpu_state(m->cpu)->rip - 1 - RUN_HANDLERS;
        m->cpu->s.halted = false;
        return at < 256 * 16 && at % 16 == 0 ? (int)(at / 16) : -1;
}

/* Of the frame that run_go()'s handler found on its stack: 0 rip, 1 cs, 2 rflags, 3 rsp, 4 ss; error: the vector pushed a code.
 */
_unused_ static uint64_t run_frame(struct test_machine *m, unsigned n, bool error)
{
        return test_peek64(m, x86_cpu_state(m->cpu)->gpr[X86_RSP] + 8 * (n + error));
}
