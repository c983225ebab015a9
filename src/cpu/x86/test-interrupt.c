/*
 * Exceptions and interrupts in every mode: frames, error codes, double and triple faults, single step, breakpoints, IRET.
 *
 * Each case is written from the clause of Intel SDM vol. 3A chapter 6 that it names.
 */
#include "cpu/x86/test-tables.h"

#define HLT 0xf4

static void test_real_mode(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = &m->cpu->s;

        /* mov ax, 0x1234; int 0x21; hlt — the handler at 0x1000:0x0010 is: inc ax; iret */
        s->seg[X86_CS].selector = 0;
        s->seg[X86_CS].base = 0;
        s->gpr[X86_RSP] = 0x700;
        s->rflags |= X86_FLAG_IF;
        x86_cpu_state_changed(m->cpu);
        test_poke32(m, 0x21 * 4, 0x10000010);
        test_code(m, 0x10010, (const uint8_t[]){ 0x40, 0xcf }, 2);
        RUN(m, 0x600, 0xb8, 0x34, 0x12, 0xcd, 0x21, HLT);
        assert_int_equal(s->gpr[X86_RAX], 0x1235);
        assert_int_equal(s->gpr[X86_RSP], 0x700);
        assert_true(s->rflags & X86_FLAG_IF);
        /* The frame: IP, CS, FLAGS. */
        assert_int_equal(test_peek64(m, 0x6fa) & 0xffffffff, 0x605);
        assert_true(test_peek64(m, 0x6fe) & X86_FLAG_IF);
        /* Past the IDT limit: #GP, whose entry is past it too, and so on: shutdown (§6.15, §20.1.4). */
        s->idtr.limit = 7;
        s->rip = 0x603;
        assert_int_equal(x86_cpu_run(m->cpu), X86_EXIT_SHUTDOWN);
        assert_int_equal(s->rip, 0x603);
}

static void test_long_inner(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = &m->cpu->s;

        test_long_mode(m);
        test_enter(m, SEL_UCODE | 3, SEL_UDATA | 3, T_CODE, T_USER_STACK);
        s->rflags |= X86_FLAG_IF;
        test_gate64(m, X86_GP, T_HANDLER, 14, 0, 0);
        test_code(m, T_HANDLER, (const uint8_t[]){ HLT }, 1);
        RUN(m, T_CODE, 0x90, HLT); /* HLT at CPL 3 is #GP(0); the handler halts */
        assert_int_equal(s->rip, T_HANDLER + 1);
        assert_int_equal(m->cpu->cpl, 0);
        assert_int_equal(s->seg[X86_SS].selector, 0);
        assert_int_equal(s->gpr[X86_RSP], T_STACK0 - 48);
        assert_int_equal(test_peek64(m, T_STACK0 - 8), SEL_UDATA | 3);
        assert_int_equal(test_peek64(m, T_STACK0 - 16), T_USER_STACK);
        assert_int_equal(test_peek64(m, T_STACK0 - 24), X86_FLAG_FIXED | X86_FLAG_IF | X86_FLAG_RF); /* a fault pushes RF */
        assert_int_equal(test_peek64(m, T_STACK0 - 32), SEL_UCODE | 3);
        assert_int_equal(test_peek64(m, T_STACK0 - 40), T_CODE + 1);
        assert_int_equal(test_peek64(m, T_STACK0 - 48), 0);
        assert_false(s->rflags & X86_FLAG_IF);
        /* IRETQ goes back. */
        s->gpr[X86_RSP] += 8;
        assert_int_equal(FAULT_OF(m, interrupt_return(m->cpu, 8, 0)), -1);
        assert_int_equal(m->cpu->cpl, 3);
        assert_int_equal(s->rip, T_CODE + 1);
        assert_int_equal(s->gpr[X86_RSP], T_USER_STACK);
        assert_true(s->rflags & X86_FLAG_IF);
}

static void test_long_ist_and_trap(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = &m->cpu->s;

        test_long_mode(m);
        s->rflags |= X86_FLAG_IF;
        s->gpr[X86_RSP] = T_STACK0 - 0x805; /* is aligned down to 16 (§6.14.2) */
        test_gate64(m, X86_BP, T_HANDLER, 15, 3, 0);
        test_gate64(m, X86_UD, T_HANDLER, 14, 0, 1);
        test_code(m, T_HANDLER, (const uint8_t[]){ HLT }, 1);
        RUN(m, T_CODE, 0xcc);
        assert_int_equal(s->gpr[X86_RSP], T_STACK0 - 0x810 - 40);
        assert_true(s->rflags & X86_FLAG_IF); /* a trap gate */
        assert_int_equal(test_peek64(m, s->gpr[X86_RSP]), T_CODE + 1);
        assert_false(test_peek64(m, s->gpr[X86_RSP] + 16) & X86_FLAG_RF); /* a trap */
        RUN(m, T_CODE, 0x0f, 0x0b);
        assert_int_equal(s->gpr[X86_RSP], T_IST1 - 40);
        assert_int_equal(test_peek64(m, T_IST1 - 40), T_CODE);
}

static void test_software_privilege(void **state)
{
        struct test_machine *m = *state;

        test_long_mode(m);
        test_enter(m, SEL_UCODE | 3, SEL_UDATA | 3, T_CODE, T_USER_STACK);
        test_gate64(m, 0x80, T_HANDLER, 14, 0, 0);
        test_gate64(m, 0x81, T_HANDLER, 14, 3, 0);
        assert_int_equal(FAULT_OF(m, deliver_once(m->cpu, 0x80, EVENT_SOFTWARE, T_CODE, false, 0)), X86_GP);
        assert_int_equal(m->cpu->fault.error_code, 0x80 * 8 | 2); /* IDT, not EXT */
        assert_int_equal(FAULT_OF(m, deliver_once(m->cpu, 0x90, EVENT_EXTERNAL, T_CODE, false, 0)), X86_GP);
        assert_int_equal(m->cpu->fault.error_code, 0x90 * 8 | 3);
        test_poke64(m, T_IDT + 0x82 * 16, (T_HANDLER & 0xffff) | SEL_CODE << 16 | 0x6eull << 40); /* P = 0 */
        assert_int_equal(FAULT_OF(m, deliver_once(m->cpu, 0x82, EVENT_SOFTWARE, T_CODE, false, 0)), X86_NP);
        assert_int_equal(FAULT_OF(m, deliver_once(m->cpu, 0x81, EVENT_SOFTWARE, T_CODE, false, 0)), -1);
        assert_int_equal(m->cpu->cpl, 0);
}

static void test_double_fault(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = &m->cpu->s;

        test_long_mode(m);
        test_gate64(m, X86_DF, T_HANDLER, 14, 0, 1);
        test_code(m, T_HANDLER, (const uint8_t[]){ HLT }, 1);
        /* #GP (no gate) while #GP is delivered: contributory twice (table 6-5). */
        RUN(m, T_CODE, 0x0f, 0x22, 0xc8, HLT); /* mov cr1, rax is #UD: benign, then #GP, then #GP again */
        assert_int_equal(s->rip, T_HANDLER + 1);
        assert_int_equal(test_peek64(m, T_IST1 - 48), 0); /* its error code */
        assert_int_equal(test_peek64(m, T_IST1 - 40), T_CODE);
        /* A page fault whose handler's stack is not there. */
        test_enter(m, SEL_UCODE | 3, SEL_UDATA | 3, T_CODE, T_USER_STACK);
        test_poke64(m, T_TSS + 4, 0x40000000);
        test_gate64(m, X86_PF, T_HANDLER, 14, 0, 0);
        RUN(m, T_CODE, 0xa0, 0, 0, 0, 0x50, 0, 0, 0, 0); /* mov al, [0x50000000] */
        assert_int_equal(s->rip, T_HANDLER + 1);
        assert_int_equal(test_peek64(m, T_IST1 - 40), T_CODE);
        assert_int_equal(s->cr2, 0x40000000 - 8);
        /* And without a #DF gate: shutdown, with the state of the faulting instruction. */
        test_poke64(m, T_IDT + X86_DF * 16, 0);
        test_enter(m, SEL_UCODE | 3, SEL_UDATA | 3, T_CODE, T_USER_STACK);
        assert_int_equal(x86_cpu_run(m->cpu), X86_EXIT_SHUTDOWN);
        assert_int_equal(s->rip, T_CODE);
        assert_int_equal(m->cpu->cpl, 3);
}

static void test_external(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = &m->cpu->s;

        test_long_mode(m);
        test_gate64(m, 0x40, T_HANDLER, 14, 0, 0);
        test_gate64(m, X86_NMI, T_HANDLER + 0x100, 14, 0, 0);
        test_code(m, T_HANDLER, (const uint8_t[]){ 0xff, 0xc0, 0x48, 0xcf }, 4);         /* inc eax; iretq */
        test_code(m, T_HANDLER + 0x100, (const uint8_t[]){ 0xff, 0xc3, 0x48, 0xcf }, 4); /* inc ebx; iretq */
        s->gpr[X86_RAX] = s->gpr[X86_RBX] = 0;
        m->vector = 0x40;
        x86_cpu_request(m->cpu, X86_REQUEST_INTERRUPT);
        RUN(m, T_CODE, 0x90, HLT); /* IF is clear: it waits */
        assert_int_equal(s->gpr[X86_RAX], 0);
        RUN(m, T_CODE, 0xfb, HLT, 0xfa, HLT); /* sti; hlt; cli; hlt: the shadow of STI covers HLT, which is then woken */
        assert_int_equal(s->gpr[X86_RAX], 1);
        assert_int_equal(s->rip, T_CODE + 4);
        x86_cpu_request(m->cpu, X86_REQUEST_NMI);
        RUN(m, T_CODE, 0x90, HLT);
        assert_int_equal(s->gpr[X86_RBX], 1);
        assert_false(s->nmi_masked); /* IRET unmasks */
}

static void test_single_step(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = &m->cpu->s;

        test_long_mode(m);
        test_gate64(m, X86_DB, T_HANDLER, 14, 0, 0);
        test_code(m, T_HANDLER, (const uint8_t[]){ 0xff, 0xc0, 0x48, 0xcf }, 4);
        s->gpr[X86_RAX] = 0;
        /* pushf; or dword [rsp], 0x100; popf; nop; nop; pushf; and dword [rsp], ~0x100; popf; nop; hlt */
        RUN(m, T_CODE, 0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d, 0x90, 0x90, 0x9c, 0x81, 0x24, 0x24, 0xff, 0xfe, 0xff, 0xff, 0x9d, 0x90, HLT);
        /* After nop, nop, pushf, and, and the second popf, which ran with TF set. */
        assert_int_equal(s->gpr[X86_RAX], 5);
        assert_true(s->dr[6] & 1u << 14);
        assert_false(m->cpu->mode_key & MODE_STEP);
}

static void test_breakpoints(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = &m->cpu->s;

        test_long_mode(m);
        test_gate64(m, X86_DB, T_HANDLER, 14, 0, 0);
        /* inc eax; mov rcx, [rsp]; or dword [rsp+16], 0x10000 (RF); iretq */
        test_code(m, T_HANDLER, (const uint8_t[]){ 0xff, 0xc0, 0x48, 0x8b, 0x0c, 0x24, 0x81, 0x4c, 0x24, 0x10, 0, 0, 1, 0, 0x48, 0xcf }, 16);
        s->gpr[X86_RAX] = 0;
        s->dr[0] = T_CODE + 2;
        s->dr[7] = 0x401;
        x86_cpu_state_changed(m->cpu);
        RUN(m, T_CODE, 0x90, 0x90, 0x90, HLT);
        assert_int_equal(s->gpr[X86_RAX], 1);
        assert_int_equal(s->gpr[X86_RCX], T_CODE + 2); /* a fault: at the instruction */
        assert_int_equal(s->dr[6] & 15, 1);
        /* Data: 4 bytes written at 0x7000 (§18.2.4: R/W 01, LEN 11), a trap. */
        s->gpr[X86_RAX] = 0;
        s->dr[6] = 0xffff0ff0;
        s->dr[1] = 0x7000;
        s->dr[7] = 0x400 | 1 << 2 | 1 << 20 | 3 << 22;
        x86_cpu_state_changed(m->cpu);
        /* mov bl, [0x7000]; mov [0x7002], bl; nop; hlt */
        RUN(m, T_CODE, 0x8a, 0x1c, 0x25, 0, 0x70, 0, 0, 0x88, 0x1c, 0x25, 2, 0x70, 0, 0, 0x90, HLT);
        assert_int_equal(s->gpr[X86_RAX], 1);
        assert_int_equal(s->gpr[X86_RCX], T_CODE + 14);
        assert_int_equal(s->dr[6] & 15, 2);
        s->dr[7] = 0x400;
        x86_cpu_state_changed(m->cpu);
}

static void test_protected_inner(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = &m->cpu->s;

        test_protected_mode(m);
        test_enter(m, SEL_UCODE | 3, SEL_UDATA | 3, T_CODE, T_USER_STACK);
        test_gate32(m, 0x80, T_HANDLER, 14, 3);
        test_code(m, T_HANDLER, (const uint8_t[]){ HLT }, 1);
        RUN(m, T_CODE, 0xcd, 0x80);
        assert_int_equal(m->cpu->cpl, 0);
        assert_int_equal(s->seg[X86_SS].selector, SEL_DATA);
        assert_int_equal(s->gpr[X86_RSP], T_STACK0 - 20);
        assert_int_equal(test_peek32(m, T_STACK0 - 20), T_CODE + 2);
        assert_int_equal(test_peek32(m, T_STACK0 - 16), SEL_UCODE | 3);
        assert_int_equal(test_peek32(m, T_STACK0 - 8), T_USER_STACK);
        assert_int_equal(test_peek32(m, T_STACK0 - 4), SEL_UDATA | 3);
        /* On the way back segments that are too privileged become null (vol. 2 "IRET"). */
        test_load(m, X86_ES, SEL_DATA);
        assert_int_equal(FAULT_OF(m, interrupt_return(m->cpu, 4, 0)), -1);
        assert_int_equal(m->cpu->cpl, 3);
        assert_int_equal(s->seg[X86_ES].selector, 0);
        assert_true(s->seg[X86_ES].access & X86_ACCESS_UNUSABLE);
        assert_int_equal(s->seg[X86_DS].selector, SEL_UDATA | 3);
}

static void test_v86(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = &m->cpu->s;
        static const uint32_t frame[] = { 0x10, 0x1000, 0x20202, 0xff0, 0x300, 0x11, 0x22, 0x33, 0x44 };

        test_protected_mode(m);
        test_gate32(m, X86_GP, T_HANDLER, 14, 0);
        test_code(m, T_HANDLER, (const uint8_t[]){ HLT }, 1);
        for (unsigned i = 0; i < ARRAY_SIZE(frame); i++)
                test_poke32(m, T_STACK0 - 0x800 + i * 4, frame[i]);
        test_code(m, 0x10010, (const uint8_t[]){ 0x8c, 0xd8, 0xcd, 0x21 }, 4); /* mov ax, ds; int 0x21 */
        RUN(m, T_CODE + 0x100, 0xcf); /* iretd into virtual-8086 mode, where INT with IOPL 0 is #GP(0) */
        assert_int_equal((uint16_t)s->gpr[X86_RAX], 0x22);
        assert_int_equal(s->rip, T_HANDLER + 1);
        assert_false(s->rflags & X86_FLAG_VM);
        assert_int_equal(m->cpu->cpl, 0);
        assert_int_equal(s->gpr[X86_RSP], T_STACK0 - 40);
        assert_int_equal(test_peek32(m, T_STACK0 - 40), 0);
        assert_int_equal(test_peek32(m, T_STACK0 - 36), 0x12);
        assert_int_equal(test_peek32(m, T_STACK0 - 32), 0x1000);
        assert_int_equal(test_peek32(m, T_STACK0 - 28) & X86_FLAG_VM, X86_FLAG_VM);
        assert_int_equal(test_peek32(m, T_STACK0 - 24), 0xff0);
        assert_int_equal(test_peek32(m, T_STACK0 - 20), 0x300);
        assert_int_equal(test_peek32(m, T_STACK0 - 16), 0x11); /* ES */
        assert_int_equal(test_peek32(m, T_STACK0 - 4), 0x44);  /* GS */
        assert_true(s->seg[X86_DS].access & X86_ACCESS_UNUSABLE);
}

static void test_tasks(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = &m->cpu->s;

        test_protected_mode(m);
        for (unsigned i = 0; i < 0x68; i += 4)
                test_poke32(m, T_TSS2 + i, 0);
        test_poke32(m, T_TSS2 + 0x20, T_HANDLER);
        test_poke32(m, T_TSS2 + 0x24, 2);
        test_poke32(m, T_TSS2 + 0x28, 0x77);             /* EAX */
        test_poke32(m, T_TSS2 + 0x38, T_IST1);           /* ESP */
        for (unsigned i = 0; i < X86_SEGS; i++)
                test_poke32(m, T_TSS2 + 0x48 + i * 4, i == X86_CS ? SEL_CODE : SEL_DATA);
        test_code(m, T_HANDLER, (const uint8_t[]){ 0x89, 0xc3, 0xcf, HLT }, 4); /* mov ebx, eax; iretd: back by the link */
        s->gpr[X86_RAX] = 0x55;
        s->gpr[X86_RBX] = 0x66;
        /* call SEL_TSS2:0; hlt */
        RUN(m, T_CODE, 0x9a, 0, 0, 0, 0, SEL_TSS2, 0, HLT);
        assert_int_equal(s->rip, T_CODE + 8);
        assert_int_equal(s->gpr[X86_RAX], 0x55);
        assert_int_equal(s->gpr[X86_RBX], 0x66);
        assert_int_equal(s->tr.selector, SEL_TSS);
        assert_true(s->cr0 & X86_CR0_TS);
        assert_int_equal(test_peek32(m, T_TSS2 + 0x34), 0x77); /* EBX of the other task was saved */
        assert_int_equal(test_peek32(m, T_TSS2 + 0x20), T_HANDLER + 3);
        assert_int_equal(test_peek32(m, T_TSS2) & 0xffff, SEL_TSS);
        assert_int_equal(test_peek64(m, T_GDT + SEL_TSS2) >> 40 & 0xff, 0x89); /* not busy any more */
        /* An exception through a task gate pushes its error code on the new task's stack. */
        test_poke32(m, T_TSS2 + 0x20, T_HANDLER + 3);
        test_poke64(m, T_IDT + X86_GP * 8, (uint64_t)SEL_TSS2 << 16 | 0x85ull << 40);
        RUN(m, T_CODE, 0xb8, 0x00, 0x01, 0, 0, 0x8e, 0xd8); /* mov eax, 0x100; mov ds, ax: past the GDT */
        assert_int_equal(s->rip, T_HANDLER + 4);
        assert_int_equal(s->tr.selector, SEL_TSS2);
        assert_true(s->rflags & X86_FLAG_NT);
        assert_int_equal(test_peek32(m, (uint32_t)s->gpr[X86_RSP]), 0x100);
        assert_int_equal(test_peek32(m, T_TSS + 0x20), T_CODE + 5);
}

#define MACHINE_TEST(f) cmocka_unit_test_setup_teardown(f, test_machine_setup, test_machine_teardown)

int main(void)
{
        const struct CMUnitTest tests[] = {
                MACHINE_TEST(test_real_mode),          MACHINE_TEST(test_long_inner),  MACHINE_TEST(test_long_ist_and_trap),
                MACHINE_TEST(test_software_privilege), MACHINE_TEST(test_double_fault), MACHINE_TEST(test_external),
                MACHINE_TEST(test_single_step),        MACHINE_TEST(test_breakpoints), MACHINE_TEST(test_protected_inner),
                MACHINE_TEST(test_v86),                MACHINE_TEST(test_tasks),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
