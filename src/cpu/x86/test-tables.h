/*
 * Descriptor tables, page tables and a TSS for the tests of segments and exceptions: long mode and 32-bit protected mode.
 *
 * All memory is identity-mapped for everybody; selectors and addresses are fixed.
 */
#pragma once

#include "cpu/x86/test-machine.h"

#define T_GDT 0x1000u
#define T_IDT 0x2000u
#define T_TSS 0x3000u
#define T_TSS2 0x3200u
#define T_STACK0 0x8000u /* RSP0 */
#define T_IST1 0x9000u
#define T_CODE 0x10000u
#define T_HANDLER 0x20000u
#define T_USER_STACK 0x30000u
#define T_PAGES 0x40000u

enum test_selector {
        SEL_CODE = 0x08,    /* 64-bit or 32-bit, DPL 0 */
        SEL_DATA = 0x10,
        SEL_UCODE = 0x18,   /* DPL 3 */
        SEL_UDATA = 0x20,
        SEL_CODE16 = 0x28,
        SEL_CONFORMING = 0x30,
        SEL_ABSENT = 0x38,
        SEL_READONLY = 0x40,
        SEL_TSS = 0x48,     /* and 0x50 in long mode */
        SEL_GATE = 0x58,    /* call gate, DPL 3; and 0x60 in long mode */
        SEL_TSS2 = 0x68,
        SEL_SMALL = 0x70,   /* data, limit 0xff */
        SEL_DOWN = 0x78,    /* expand-down, limit 0xfff */
        SEL_TASKGATE = 0x80,
        SEL_COMPAT = 0x88,  /* 32-bit user code in long mode */
};

static uint64_t test_descriptor(uint32_t base, uint32_t limit, unsigned access, unsigned flags)
{
        return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)access << 40 | (uint64_t)(limit >> 16 & 15) << 48 |
               (uint64_t)flags << 52 | (uint64_t)(base >> 24) << 56;
}

static void test_gdt(struct test_machine *m, unsigned selector, uint64_t raw)
{
        test_poke64(m, T_GDT + selector, raw);
}

/* type 14 interrupt, 15 trap, in the size of the mode. */
_unused_ static void test_gate64(struct test_machine *m, unsigned vector, uint64_t rip, unsigned type, unsigned dpl, unsigned ist)
{
        test_poke64(m, T_IDT + vector * 16, (rip & 0xffff) | SEL_CODE << 16 | (uint64_t)ist << 32 |
                    (uint64_t)(0x80 | dpl << 5 | type) << 40 | (rip >> 16 & 0xffff) << 48);
        test_poke64(m, T_IDT + vector * 16 + 8, rip >> 32);
}

_unused_ static void test_gate32(struct test_machine *m, unsigned vector, uint32_t eip, unsigned type, unsigned dpl)
{
        test_poke64(m, T_IDT + vector * 8, (eip & 0xffff) | SEL_CODE << 16 | (uint64_t)(0x80 | dpl << 5 | type) << 40 |
                    (uint64_t)(eip >> 16) << 48);
}

static void test_descriptors(struct test_machine *m, bool long_mode)
{
        test_gdt(m, SEL_CODE, long_mode ? test_descriptor(0, 0xfffff, 0x9a, 0xa) : test_descriptor(0, 0xfffff, 0x9a, 0xc));
        test_gdt(m, SEL_DATA, test_descriptor(0, 0xfffff, 0x92, 0xc));
        test_gdt(m, SEL_UCODE, long_mode ? test_descriptor(0, 0xfffff, 0xfa, 0xa) : test_descriptor(0, 0xfffff, 0xfa, 0xc));
        test_gdt(m, SEL_UDATA, test_descriptor(0, 0xfffff, 0xf2, 0xc));
        test_gdt(m, SEL_CODE16, test_descriptor(0x10000, 0xffff, 0x9a, 0));
        test_gdt(m, SEL_CONFORMING, test_descriptor(0, 0xfffff, 0x9e, long_mode ? 0xa : 0xc));
        test_gdt(m, SEL_ABSENT, test_descriptor(0, 0xfffff, 0x12, 0xc));
        test_gdt(m, SEL_READONLY, test_descriptor(0, 0xfffff, 0x90, 0xc));
        test_gdt(m, SEL_TSS, test_descriptor(T_TSS, 0x1ff, 0x89, 0));
        test_gdt(m, SEL_TSS + 8, 0);
        test_gdt(m, SEL_TSS2, test_descriptor(T_TSS2, 0x1ff, 0x89, 0));
        test_gdt(m, SEL_SMALL, test_descriptor(0x5000, 0xff, 0x92, 4));
        test_gdt(m, SEL_DOWN, test_descriptor(0x5000, 0xfff, 0x96, 4));
        test_gdt(m, SEL_TASKGATE, (uint64_t)SEL_TSS2 << 16 | 0xe5ull << 40);
        test_gdt(m, SEL_COMPAT, test_descriptor(0, 0xfffff, 0xfa, 0xc));
        m->cpu->s.gdtr = (struct x86_table){ .base = T_GDT, .limit = 0x8f };
}

static void test_load(struct test_machine *m, unsigned seg, uint16_t selector)
{
        struct descriptor d;

        assert_true(descriptor_read(m->cpu, selector, &d));
        m->cpu->s.seg[seg] = descriptor_segment(&d);
}

/* CPL is the RPL of the two selectors. */
static void test_enter(struct test_machine *m, uint16_t code, uint16_t data, uint64_t rip, uint64_t rsp)
{
        test_load(m, X86_CS, code);
        for (unsigned i = 0; i < X86_SEGS; i++)
                if (i != X86_CS)
                        test_load(m, i, data);
        m->cpu->s.rip = rip;
        m->cpu->s.gpr[X86_RSP] = rsp;
        x86_mode_changed(m->cpu);
}

_unused_ static void test_long_mode(struct test_machine *m)
{
        struct x86_state *s = &m->cpu->s;

        test_poke64(m, T_PAGES, (T_PAGES + 0x1000) | 7);
        test_poke64(m, T_PAGES + 0x1000, (T_PAGES + 0x2000) | 7);
        for (uint64_t i = 0; i < TEST_MEMORY >> 21; i++)
                test_poke64(m, T_PAGES + 0x2000 + i * 8, i << 21 | 0x87);
        s->cr0 = X86_CR0_PE | X86_CR0_PG | X86_CR0_WP | X86_CR0_ET;
        s->cr4 = X86_CR4_PAE | X86_CR4_PGE | X86_CR4_OSFXSR;
        s->cr3 = T_PAGES;
        s->efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE | X86_EFER_SCE;
        s->idtr = (struct x86_table){ .base = T_IDT, .limit = 0xfff };
        x86_cpu_state_changed(m->cpu);
        test_descriptors(m, true);
        test_poke64(m, T_TSS + 4, T_STACK0);
        test_poke64(m, T_TSS + 0x24, T_IST1);
        s->tr = (struct x86_segment){ .selector = SEL_TSS, .access = 0x8b, .limit = 0x1ff, .base = T_TSS };
        s->ldtr = segment_null(0);
        test_enter(m, SEL_CODE, SEL_DATA, T_CODE, T_STACK0 - 0x800);
}

_unused_ static void test_protected_mode(struct test_machine *m)
{
        struct x86_state *s = &m->cpu->s;

        s->cr0 = X86_CR0_PE | X86_CR0_ET;
        s->cr4 = 0;
        s->efer = 0;
        s->idtr = (struct x86_table){ .base = T_IDT, .limit = 0x7ff };
        x86_cpu_state_changed(m->cpu);
        test_descriptors(m, false);
        test_poke32(m, T_TSS + 4, T_STACK0);
        test_poke32(m, T_TSS + 8, SEL_DATA);
        s->tr = (struct x86_segment){ .selector = SEL_TSS, .access = 0x8b, .limit = 0x1ff, .base = T_TSS };
        test_gdt(m, SEL_TSS, test_descriptor(T_TSS, 0x1ff, 0x8b, 0));
        s->ldtr = segment_null(0);
        test_enter(m, SEL_CODE, SEL_DATA, T_CODE, T_STACK0 - 0x800);
}

_unused_ static void test_code(struct test_machine *m, uint64_t gpa, const void *bytes, size_t size_bytes)
{
        assert_int_equal(guest_memory_write(&m->mem, gpa, bytes, size_bytes), 0);
}

/* Runs code at gpa until it halts. */
#define RUN(m, gpa, ...)                                                                  \
        do {                                                                              \
                static const uint8_t code_[] = { __VA_ARGS__ };                           \
                                                                                          \
                test_code(m, gpa, code_, sizeof(code_));                                  \
                (m)->cpu->s.rip = gpa;                                                    \
                assert_int_equal(x86_cpu_run((m)->cpu), X86_EXIT_HALTED);                 \
                (m)->cpu->s.halted = false;                                               \
        } while (0)
