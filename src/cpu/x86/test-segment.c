/*
 * Segments: loading with their checks, limits, far transfers and gates, mode changes, fast system calls, questions on selectors.
 *
 * Each case is written from the page of Intel SDM vol. 2, or the section of vol. 3A, that it names.
 */
#include <errno.h>

#include "cpu/x86/test-tables.h"

#define HLT 0xf4

static void assert_fault(struct test_machine *m, int got, int vector, unsigned error)
{
        assert_int_equal(got, vector);
        assert_int_equal(m->cpu->fault.error_code, error);
}

#define ASSERT_FAULT(m, statement, vector, error) assert_fault(m, FAULT_OF(m, statement), vector, error)

static void test_loads(void **state)
{
        struct test_machine *m = *state;
        struct x86_cpu *cpu = m->cpu;

        test_protected_mode(m);
        ASSERT_FAULT(m, x86_load_segment(cpu, X86_DS, 0x1000), X86_GP, 0x1000);
        ASSERT_FAULT(m, x86_load_segment(cpu, X86_DS, SEL_ABSENT), X86_NP, SEL_ABSENT);
        ASSERT_FAULT(m, x86_load_segment(cpu, X86_SS, SEL_ABSENT), X86_SS_FAULT, SEL_ABSENT);
        ASSERT_FAULT(m, x86_load_segment(cpu, X86_SS, SEL_READONLY), X86_GP, SEL_READONLY);
        ASSERT_FAULT(m, x86_load_segment(cpu, X86_SS, SEL_UDATA), X86_GP, SEL_UDATA);
        ASSERT_FAULT(m, x86_load_segment(cpu, X86_SS, SEL_DATA | 1), X86_GP, SEL_DATA);
        ASSERT_FAULT(m, x86_load_segment(cpu, X86_SS, 0), X86_GP, 0);
        ASSERT_FAULT(m, x86_load_segment(cpu, X86_ES, SEL_TSS), X86_GP, SEL_TSS);
        ASSERT_FAULT(m, x86_load_segment(cpu, X86_ES, 0x0c), X86_GP, 0x0c); /* no LDT */
        /* RPL 3 on a DPL 0 segment is refused, on a conforming one it is not. */
        ASSERT_FAULT(m, x86_load_segment(cpu, X86_ES, SEL_DATA | 3), X86_GP, SEL_DATA);
        assert_int_equal(FAULT_OF(m, x86_load_segment(cpu, X86_ES, SEL_CONFORMING | 3)), -1);
        /* Loading sets the accessed bit in memory. */
        test_gdt(m, SEL_DATA, test_descriptor(0, 0xfffff, 0x92, 0xc));
        assert_int_equal(FAULT_OF(m, x86_load_segment(cpu, X86_ES, SEL_DATA)), -1);
        assert_int_equal(test_peek64(m, T_GDT + SEL_DATA) >> 40 & 0xff, 0x93);
        /* A null selector loads, an access through it is #GP(0). */
        assert_int_equal(FAULT_OF(m, x86_load_segment(cpu, X86_ES, 3)), -1);
        ASSERT_FAULT(m, segment_check(cpu, X86_ES, 0, 1, false), X86_GP, 0);
}

static void test_limits(void **state)
{
        struct test_machine *m = *state;
        struct x86_cpu *cpu = m->cpu;

        test_protected_mode(m);
        test_load(m, X86_ES, SEL_SMALL);
        assert_int_equal(FAULT_OF(m, assert_int_equal(segment_check(cpu, X86_ES, 0xfc, 4, true), 0x50fc)), -1);
        ASSERT_FAULT(m, segment_check(cpu, X86_ES, 0xfd, 4, true), X86_GP, 0);
        test_load(m, X86_ES, SEL_DOWN); /* valid above the limit, to 4 GiB with B set */
        ASSERT_FAULT(m, segment_check(cpu, X86_ES, 0xfff, 1, false), X86_GP, 0);
        assert_int_equal(FAULT_OF(m, assert_int_equal(segment_check(cpu, X86_ES, 0x1000, 4, false), 0x6000)), -1);
        ASSERT_FAULT(m, segment_check(cpu, X86_ES, 0xfffffffe, 4, false), X86_GP, 0);
        test_load(m, X86_ES, SEL_READONLY);
        ASSERT_FAULT(m, segment_check(cpu, X86_ES, 0, 1, true), X86_GP, 0);
        ASSERT_FAULT(m, segment_check(cpu, X86_CS, 0, 1, true), X86_GP, 0);
        test_load(m, X86_SS, SEL_SMALL);
        x86_mode_changed(cpu);
        ASSERT_FAULT(m, segment_check(cpu, X86_SS, 0x100, 1, true), X86_SS_FAULT, 0);
}

static void test_canonical(void **state)
{
        struct test_machine *m = *state;
        struct x86_cpu *cpu = m->cpu;

        test_long_mode(m);
        ASSERT_FAULT(m, segment_check(cpu, X86_DS, 0x800000000000, 1, false), X86_GP, 0);
        ASSERT_FAULT(m, segment_check(cpu, X86_DS, 0x7fffffffffff, 2, false), X86_GP, 0);
        ASSERT_FAULT(m, segment_check(cpu, X86_SS, 0x800000000000, 1, false), X86_SS_FAULT, 0);
        assert_int_equal(FAULT_OF(m, segment_check(cpu, X86_DS, 0xffff800000000000, 8, true)), -1);
        cpu->s.seg[X86_FS].base = 0x1000;
        assert_int_equal(segment_check(cpu, X86_FS, 0x10, 1, false), 0x1010);
        assert_int_equal(segment_check(cpu, X86_DS, 0x10, 1, false), 0x10); /* DS has no base here */
}

static void test_far_checks(void **state)
{
        struct test_machine *m = *state;
        struct x86_cpu *cpu = m->cpu;

        test_protected_mode(m);
        ASSERT_FAULT(m, far_jump(cpu, 0, 0, 4, 0), X86_GP, 0);
        ASSERT_FAULT(m, far_jump(cpu, SEL_DATA, 0, 4, 0), X86_GP, SEL_DATA);
        ASSERT_FAULT(m, far_jump(cpu, SEL_UCODE, 0, 4, 0), X86_GP, SEL_UCODE); /* DPL 3 is not CPL */
        ASSERT_FAULT(m, far_jump(cpu, SEL_CODE | 3, 0, 4, 0), X86_GP, SEL_CODE);
        ASSERT_FAULT(m, far_jump(cpu, SEL_CODE16, 0x10000, 4, 0), X86_GP, 0); /* past its limit */
        assert_int_equal(FAULT_OF(m, far_jump(cpu, SEL_CODE16, 0x12345678, 2, 0)), -1); /* 16-bit operand: the offset is cut */
        assert_int_equal(cpu->s.rip, 0x5678);
        assert_false(cpu->code32);
        assert_int_equal(FAULT_OF(m, far_jump(cpu, SEL_CONFORMING, 0x100, 4, 0)), -1);
        test_enter(m, SEL_UCODE | 3, SEL_UDATA | 3, T_CODE, T_USER_STACK);
        assert_int_equal(FAULT_OF(m, far_jump(cpu, SEL_CONFORMING, 0x100, 4, 0)), -1);
        assert_int_equal(cpu->cpl, 3); /* a conforming segment keeps CPL */
        assert_int_equal(cpu->s.seg[X86_CS].selector, SEL_CONFORMING | 3);
        ASSERT_FAULT(m, far_jump(cpu, SEL_TSS2, 0, 4, 0), X86_GP, SEL_TSS2); /* DPL 0 */
}

static void test_call_gate32(void **state)
{
        struct test_machine *m = *state;
        struct x86_cpu *cpu = m->cpu;

        test_protected_mode(m);
        /* A gate with 2 parameters, DPL 3. */
        test_gdt(m, SEL_GATE, (T_HANDLER & 0xffff) | SEL_CODE << 16 | 2ull << 32 | 0xecull << 40 | (uint64_t)(T_HANDLER >> 16) << 48);
        test_enter(m, SEL_UCODE | 3, SEL_UDATA | 3, T_CODE, T_USER_STACK);
        test_poke32(m, T_USER_STACK, 0x1111);
        test_poke32(m, T_USER_STACK + 4, 0x2222);
        ASSERT_FAULT(m, far_jump(cpu, SEL_GATE | 3, 0, 4, 0), X86_GP, SEL_CODE); /* JMP does not change CPL */
        assert_int_equal(FAULT_OF(m, far_call(cpu, SEL_GATE | 3, 0xdead, 4, T_CODE + 7)), -1);
        assert_int_equal(cpu->cpl, 0);
        assert_int_equal(cpu->s.rip, T_HANDLER);
        assert_int_equal(cpu->s.gpr[X86_RSP], T_STACK0 - 24);
        assert_int_equal(test_peek32(m, T_STACK0 - 24), T_CODE + 7);
        assert_int_equal(test_peek32(m, T_STACK0 - 20), SEL_UCODE | 3);
        assert_int_equal(test_peek32(m, T_STACK0 - 16), 0x1111);
        assert_int_equal(test_peek32(m, T_STACK0 - 12), 0x2222);
        assert_int_equal(test_peek32(m, T_STACK0 - 8), T_USER_STACK);
        assert_int_equal(test_peek32(m, T_STACK0 - 4), SEL_UDATA | 3);
        assert_int_equal(FAULT_OF(m, far_return(cpu, 4, 8)), -1);
        assert_int_equal(cpu->cpl, 3);
        assert_int_equal(cpu->s.rip, T_CODE + 7);
        assert_int_equal(cpu->s.gpr[X86_RSP], T_USER_STACK + 8); /* the parameters go from both stacks */
        assert_int_equal(cpu->s.seg[X86_SS].selector, SEL_UDATA | 3);
        /* RET to a more privileged level is refused. */
        test_poke32(m, T_USER_STACK + 8, T_CODE);
        test_poke32(m, T_USER_STACK + 12, SEL_CODE);
        ASSERT_FAULT(m, far_return(cpu, 4, 0), X86_GP, SEL_CODE);
}

static void test_call_gate64(void **state)
{
        struct test_machine *m = *state;
        struct x86_cpu *cpu = m->cpu;

        test_long_mode(m);
        test_gdt(m, SEL_GATE, (T_HANDLER & 0xffff) | SEL_CODE << 16 | 0xecull << 40 | (uint64_t)(T_HANDLER >> 16) << 48);
        test_gdt(m, SEL_GATE + 8, 0);
        test_enter(m, SEL_UCODE | 3, SEL_UDATA | 3, T_CODE, T_USER_STACK);
        assert_int_equal(FAULT_OF(m, far_call(cpu, SEL_GATE | 3, 0, 8, T_CODE + 7)), -1);
        assert_int_equal(cpu->cpl, 0);
        assert_true(cpu->mode64);
        assert_int_equal(cpu->s.gpr[X86_RSP], T_STACK0 - 32);
        assert_int_equal(cpu->s.seg[X86_SS].selector, 0);
        assert_int_equal(test_peek64(m, T_STACK0 - 32), T_CODE + 7);
        assert_int_equal(test_peek64(m, T_STACK0 - 16), T_USER_STACK);
        assert_int_equal(FAULT_OF(m, far_return(cpu, 8, 0)), -1);
        assert_int_equal(cpu->cpl, 3);
        assert_int_equal(cpu->s.gpr[X86_RSP], T_USER_STACK);
        /* The type bits of the upper half must be 0 (vol. 3A §5.8.3.1). */
        test_gdt(m, SEL_GATE + 8, 1ull << 40);
        ASSERT_FAULT(m, far_call(cpu, SEL_GATE | 3, 0, 8, 0), X86_GP, SEL_GATE);
}

/* From real mode through protected mode to 64-bit mode, as a loader does it. */
static void test_mode_changes(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = &m->cpu->s;
        static const uint8_t real[] = {
                0x0f, 0x20, 0xc0,                               /* mov eax, cr0 */
                0x66, 0x83, 0xc8, 0x01,                         /* or eax, 1 */
                0x0f, 0x22, 0xc0,                               /* mov cr0, eax */
                0x66, 0xea, 0, 0, 1, 0, SEL_UCODE, 0,           /* jmp dword SEL_UCODE:0x10000; a 32-bit DPL 0 segment here */
        };
        static const uint8_t protected32[] = {
                0xb8, SEL_DATA, 0, 0, 0, 0x8e, 0xd8, 0x8e, 0xd0, /* mov eax, SEL_DATA; mov ds, ax; mov ss, ax */
                0xbc, 0, 0x78, 0, 0,                            /* mov esp, 0x7800 */
                0xb8, 0x20, 0, 0, 0, 0x0f, 0x22, 0xe0,          /* mov eax, CR4.PAE; mov cr4, eax */
                0xb8, 0, 0, 4, 0, 0x0f, 0x22, 0xd8,             /* mov eax, T_PAGES; mov cr3, eax */
                0xb9, 0x80, 0, 0, 0xc0, 0xb8, 0, 1, 0, 0, 0x31, 0xd2, 0x0f, 0x30, /* EFER.LME */
                0x0f, 0x20, 0xc0, 0x0d, 0, 0, 0, 0x80, 0x0f, 0x22, 0xc0, /* CR0.PG */
                0xea, 0, 0, 2, 0, SEL_CODE, 0,                  /* jmp SEL_CODE:0x20000 */
        };
        static const uint8_t long64[] = { 0x49, 0xb8, 8, 7, 6, 5, 4, 3, 2, 1, 0x41, 0x50, HLT }; /* mov r8, 0x0102…08; push r8; hlt */

        test_long_mode(m); /* for the page tables; then back to what reset leaves */
        x86_state_reset(s, true);
        test_descriptors(m, true);
        test_gdt(m, SEL_UCODE, test_descriptor(0, 0xfffff, 0x9a, 0xc));
        s->seg[X86_CS].selector = 0;
        s->seg[X86_CS].base = 0;
        x86_cpu_state_changed(m->cpu);
        test_code(m, T_CODE, protected32, sizeof(protected32));
        test_code(m, T_HANDLER, long64, sizeof(long64));
        test_code(m, 0x600, real, sizeof(real));
        s->rip = 0x600;
        assert_int_equal(x86_cpu_run(m->cpu), X86_EXIT_HALTED);
        assert_true(m->cpu->mode64);
        assert_int_equal(s->rip, T_HANDLER + sizeof(long64));
        assert_int_equal(test_peek64(m, 0x7800 - 8), 0x0102030405060708);
        assert_true(s->efer & X86_EFER_LMA);
        /* Clearing CR0.PG in 64-bit mode, PAE in long mode, and LME with paging on are #GP(0). */
        ASSERT_FAULT(m, x86_set_cr0(m->cpu, s->cr0 & ~X86_CR0_PG), X86_GP, 0);
        ASSERT_FAULT(m, x86_set_cr4(m->cpu, s->cr4 & ~X86_CR4_PAE), X86_GP, 0);
        assert_int_equal(x86_msr_write(m->cpu, 0xc0000080, s->efer & ~X86_EFER_LME), -EPERM);
        ASSERT_FAULT(m, x86_set_cr0(m->cpu, s->cr0 | 1ull << 32), X86_GP, 0);
        ASSERT_FAULT(m, x86_set_cr4(m->cpu, s->cr4 | X86_CR4_VME), X86_GP, 0);
        ASSERT_FAULT(m, x86_set_cr3(m->cpu, 1ull << 50), X86_GP, 0);
}

static void test_unreal(void **state)
{
        struct test_machine *m = *state;
        struct x86_cpu *cpu = m->cpu;

        /* A limit loaded in protected mode stays when PE is cleared. */
        test_protected_mode(m);
        test_load(m, X86_DS, SEL_DATA);
        cpu->s.cr0 &= ~X86_CR0_PE;
        x86_mode_changed(cpu);
        assert_int_equal(FAULT_OF(m, x86_load_segment(cpu, X86_DS, 0x100)), -1);
        assert_int_equal(cpu->s.seg[X86_DS].base, 0x1000);
        assert_int_equal(FAULT_OF(m, assert_int_equal(segment_check(cpu, X86_DS, 0x100000, 4, true), 0x101000)), -1);
}

static void test_syscall(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = &m->cpu->s;
        /* mov eax, [0x7000]; sysretq */
        static const uint8_t kernel[] = { 0x8b, 0x04, 0x25, 0, 0x70, 0, 0, 0x48, 0x0f, 0x07 };

        test_long_mode(m);
        test_gate64(m, X86_GP, T_HANDLER + 0x100, 14, 0, 0);
        test_code(m, T_HANDLER + 0x100, (const uint8_t[]){ HLT }, 1);
        test_poke32(m, 0x7000, 0xabcd);
        test_code(m, T_HANDLER, kernel, sizeof(kernel));
        assert_int_equal(x86_msr_write(m->cpu, 0xc0000081, (uint64_t)SEL_CODE << 32 | (uint64_t)(SEL_UCODE - 8) << 48), 0);
        assert_int_equal(x86_msr_write(m->cpu, 0xc0000082, T_HANDLER), 0);
        assert_int_equal(x86_msr_write(m->cpu, 0xc0000084, X86_FLAG_IF), 0);
        assert_int_equal(x86_msr_write(m->cpu, 0xc0000082, 1ull << 47), -EPERM);
        test_enter(m, SEL_UCODE | 3, SEL_UDATA | 3, T_CODE, T_USER_STACK);
        s->rflags |= X86_FLAG_IF;
        RUN(m, T_CODE, 0x0f, 0x05, HLT); /* syscall; hlt at CPL 3 ends in the #GP handler */
        assert_int_equal(s->gpr[X86_RAX], 0xabcd);
        assert_int_equal(s->gpr[X86_RCX], T_CODE + 2);
        assert_int_equal(s->gpr[11] & X86_FLAG_IF, X86_FLAG_IF);
        assert_int_equal(test_peek64(m, T_STACK0 - 8), (SEL_UCODE) | 3);      /* SS of SYSRET: STAR + 8 */
        assert_int_equal(test_peek64(m, T_STACK0 - 32), (SEL_UCODE + 8) | 3); /* CS: STAR + 16 */
        assert_int_equal(test_peek64(m, T_STACK0 - 40), T_CODE + 2);
}

static void test_questions(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = &m->cpu->s;

        test_protected_mode(m);
        test_load(m, X86_DS, SEL_DATA);
        /* mov ecx, SEL_SMALL; lsl eax, ecx; lar ebx, ecx; verw cx; hlt */
        RUN(m, T_CODE, 0xb9, SEL_SMALL, 0, 0, 0, 0x0f, 0x03, 0xc1, 0x0f, 0x02, 0xd9, 0x0f, 0x00, 0xe9, HLT);
        assert_int_equal(s->gpr[X86_RAX], 0xff);
        assert_int_equal(s->gpr[X86_RBX] & 0xf0ff00, 0x409200);
        assert_true(x86_flags(m->cpu) & X86_FLAG_ZF);
        RUN(m, T_CODE + 0x100, 0xb9, SEL_READONLY, 0, 0, 0, 0x0f, 0x00, 0xe9, HLT);
        assert_false(x86_flags(m->cpu) & X86_FLAG_ZF);
        /* LSL of a gate leaves its destination alone and clears ZF. */
        RUN(m, T_CODE + 0x200, 0xb9, SEL_TASKGATE, 0, 0, 0, 0xb8, 1, 0, 0, 0, 0x0f, 0x03, 0xc1, HLT);
        assert_int_equal(s->gpr[X86_RAX], 1);
        assert_false(x86_flags(m->cpu) & X86_FLAG_ZF);
        /* arpl ax, cx raises RPL. */
        RUN(m, T_CODE + 0x300, 0xb8, 0x10, 0, 0, 0, 0xb9, 0x03, 0, 0, 0, 0x63, 0xc8, HLT);
        assert_int_equal(s->gpr[X86_RAX], 0x13);
        assert_true(x86_flags(m->cpu) & X86_FLAG_ZF);
}

static void test_ports(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = &m->cpu->s;

        test_protected_mode(m);
        test_gate32(m, X86_GP, T_HANDLER, 14, 0);
        test_code(m, T_HANDLER, (const uint8_t[]){ HLT }, 1);
        m->port_value = 0x12345678;
        /* mov edi, 0x7000; mov ecx, 3; mov edx, 0x60; cld; rep insb; out 0x80, al; in eax, dx; hlt */
        RUN(m, T_CODE, 0xbf, 0, 0x70, 0, 0, 0xb9, 3, 0, 0, 0, 0xba, 0x60, 0, 0, 0, 0xfc, 0xf3, 0x6c, 0xb0, 0x99, 0xe6, 0x80, HLT);
        assert_int_equal(test_peek32(m, 0x7000), 0x787878);
        assert_int_equal(s->gpr[X86_RDI], 0x7003);
        assert_int_equal(s->gpr[X86_RCX], 0);
        assert_int_equal(m->port, 0x80);
        assert_int_equal(m->port_value, 0x99);
        assert_int_equal(m->port_calls, 4);
        /* At CPL 3 the TSS's bit map decides: port 0x60 open, 0x61 not (vol. 1 §19.5.2). */
        test_poke32(m, T_TSS + 0x64, 0x80u << 16);
        test_poke32(m, T_TSS + 0x80 + 12, 0xfffffffe);
        test_enter(m, SEL_UCODE | 3, SEL_UDATA | 3, T_CODE, T_USER_STACK);
        RUN(m, T_CODE + 0x100, 0xe4, 0x60, 0xe4, 0x61);
        assert_int_equal(s->rip, T_HANDLER + 1);
        assert_int_equal(test_peek32(m, T_STACK0 - 20), T_CODE + 0x102);
        assert_int_equal(m->port_calls, 5);
}

#define MACHINE_TEST(f) cmocka_unit_test_setup_teardown(f, test_machine_setup, test_machine_teardown)

int main(void)
{
        const struct CMUnitTest tests[] = {
                MACHINE_TEST(test_loads),        MACHINE_TEST(test_limits),       MACHINE_TEST(test_canonical),
                MACHINE_TEST(test_far_checks),   MACHINE_TEST(test_call_gate32),  MACHINE_TEST(test_call_gate64),
                MACHINE_TEST(test_mode_changes), MACHINE_TEST(test_unreal),       MACHINE_TEST(test_syscall),
                MACHINE_TEST(test_questions),    MACHINE_TEST(test_ports),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
