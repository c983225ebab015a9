/*
 * Integer instructions that tests/diff cannot run natively: 16- and 32-bit modes, decimal arithmetic, limits, privilege,
 * interrupts between elements. Expected values are from SDM vol. 2.
 */
#include "cpu/x86/test-run.h"

#include <pthread.h>

#define STATUS(m) (x86_flags((m)->cpu) & X86_FLAGS_STATUS)

/* ---- decimal: the manual's algorithms written down once more, all inputs ---- */

static void decimal(struct test_machine *m, uint8_t opcode, uint16_t ax, uint64_t flags, uint16_t *result, uint64_t *result_flags)
{
        struct x86_state *s = run_32(m);

        s->gpr[X86_RAX] = ax;
        s->rflags = X86_FLAG_FIXED | flags;
        RUN_BYTES(m, RUN_CODE, opcode, 0xf4);
        assert_int_equal(run_go(m), -1);
        *result = (uint16_t)m->cpu->s.gpr[X86_RAX];
        *result_flags = STATUS(m);
}

static void test_daa_das(void **state)
{
        struct test_machine *m = *state;

        for (unsigned al = 0; al < 256; al += 3) {
                for (unsigned in = 0; in < 4; in++) {
                        uint64_t flags = (in & 1 ? X86_FLAG_CF : 0) | (in & 2 ? X86_FLAG_AF : 0), got_flags;
                        uint16_t got, want;
                        bool cf = in & 1, af = in & 2;

                        want = (uint16_t)al;
                        if ((al & 15) > 9 || af)
                                want = (uint16_t)(want + 6);
                        if (al > 0x99 || cf)
                                want = (uint16_t)(want + 0x60);
                        decimal(m, 0x27, (uint16_t)al, flags, &got, &got_flags);
                        assert_int_equal(got & 0xff, want & 0xff);
                        assert_int_equal(!!(got_flags & X86_FLAG_CF), al > 0x99 || cf);
                        assert_int_equal(!!(got_flags & X86_FLAG_AF), (al & 15) > 9 || af);

                        want = (uint16_t)al;
                        if ((al & 15) > 9 || af)
                                want = (uint16_t)(want - 6);
                        if (al > 0x99 || cf)
                                want = (uint16_t)(want - 0x60);
                        decimal(m, 0x2f, (uint16_t)al, flags, &got, &got_flags);
                        assert_int_equal(got & 0xff, want & 0xff);
                        assert_int_equal(!!(got_flags & X86_FLAG_CF), al > 0x99 || cf || ((((al & 15) > 9 || af) && al < 6)));
                }
        }
}

static void test_ascii(void **state)
{
        struct test_machine *m = *state;
        uint64_t flags;
        uint16_t ax;

        decimal(m, 0x37, 0x000b, 0, &ax, &flags); /* aaa */
        assert_int_equal(ax, 0x0101);
        assert_true(flags & X86_FLAG_CF);
        decimal(m, 0x37, 0x0005, 0, &ax, &flags);
        assert_int_equal(ax, 0x0005);
        assert_false(flags & X86_FLAG_CF);
        decimal(m, 0x3f, 0x020c, 0, &ax, &flags); /* aas */
        assert_int_equal(ax, 0x0106);

        run_32(m)->gpr[X86_RAX] = 0x3f;
        RUN_BYTES(m, RUN_CODE, 0xd4, 0x0a, 0xf4); /* aam */
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RAX], 0x0603);
        run_32(m)->gpr[X86_RAX] = 0x0603;
        RUN_BYTES(m, RUN_CODE, 0xd5, 0x0a, 0xf4); /* aad */
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RAX], 0x3f);
        run_32(m)->rflags |= X86_FLAG_CF;
        RUN_BYTES(m, RUN_CODE, 0xd6, 0xf4); /* salc */
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RAX], 0xff);
}

/* ---- 16- and 32-bit forms ---- */

static void test_pusha(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = run_32(m);

        for (unsigned n = 0; n < 8; n++)
                if (n != X86_RSP)
                        s->gpr[n] = 0x11110000u + n;
        RUN_BYTES(m, RUN_CODE, 0x60, 0x31, 0xc0, 0x31, 0xdb, 0x61, 0xf4); /* pusha; clear two; popa */
        assert_int_equal(run_go(m), -1);
        for (unsigned n = 0; n < 8; n++)
                assert_int_equal(m->cpu->s.gpr[n], n == X86_RSP ? RUN_STACK : 0x11110000u + n);
        assert_int_equal(test_peek32(m, RUN_STACK - 20), RUN_STACK); /* ESP as it was before */
}

/* SP wraps within 64 KiB, the upper half of ESP stays. */
static void test_stack16(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = run_16(m);

        s->gpr[X86_RSP] = 0x12340000;
        s->gpr[X86_RAX] = 0xbeef;
        RUN_BYTES(m, RUN_CODE, 0x50, 0x5b, 0x50, 0xf4); /* push ax; pop bx; push ax */
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RSP], 0x1234fffe);
        assert_int_equal(m->cpu->s.gpr[X86_RBX], 0xbeef);
        assert_int_equal(test_peek32(m, 0x7fffc) >> 16, 0xbeef);
}

static void test_loop16(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = run_16(m);

        s->gpr[X86_RCX] = 0x50005;
        RUN_BYTES(m, RUN_CODE, 0x40, 0xe2, 0xfd, 0xf4); /* inc ax; loop */
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RAX], 5);
        assert_int_equal(m->cpu->s.gpr[X86_RCX], 0x50000);
        s = run_16(m);
        s->gpr[X86_RCX] = 0x50000;
        RUN_BYTES(m, RUN_CODE, 0xe3, 0x01, 0x40, 0xf4); /* jcxz over inc ax */
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RAX], 0);
}

static void test_enter(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = run_32(m);

        s->gpr[X86_RBP] = RUN_STACK - 0x100;
        test_poke32(m, RUN_STACK - 0x104, 0xaaaa);
        RUN_BYTES(m, RUN_CODE, 0xc8, 0x10, 0, 2, 0xf4); /* enter 16, 2 */
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RBP], RUN_STACK - 4);
        assert_int_equal(m->cpu->s.gpr[X86_RSP], RUN_STACK - 12 - 16);
        assert_int_equal(test_peek32(m, RUN_STACK - 4), RUN_STACK - 0x100);
        assert_int_equal(test_peek32(m, RUN_STACK - 8), 0xaaaa);
        assert_int_equal(test_peek32(m, RUN_STACK - 12), RUN_STACK - 4);
}

/* POP [rSP + …] uses the incremented stack pointer. */
static void test_pop_memory(void **state)
{
        struct test_machine *m = *state;

        run_64(m)->gpr[X86_RSP] = RUN_STACK - 32;
        test_poke64(m, RUN_STACK - 32, 0x1234);
        RUN_BYTES(m, RUN_CODE, 0x8f, 0x44, 0x24, 8, 0xf4); /* pop qword [rsp+8] */
        assert_int_equal(run_go(m), -1);
        assert_int_equal(test_peek64(m, RUN_STACK - 16), 0x1234);
}

static void test_bound(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = run_32(m);

        test_poke32(m, RUN_DATA, (uint32_t)-5);
        test_poke32(m, RUN_DATA + 4, 5);
        s->gpr[X86_RBX] = RUN_DATA;
        s->gpr[X86_RAX] = (uint32_t)-5;
        RUN_BYTES(m, RUN_CODE, 0x62, 0x03, 0xf4);
        assert_int_equal(run_go(m), -1);
        s = run_32(m);
        s->gpr[X86_RBX] = RUN_DATA;
        s->gpr[X86_RAX] = 6;
        x86_cpu_state_changed(m->cpu);
        assert_int_equal(x86_cpu_run(m->cpu), X86_EXIT_SHUTDOWN); /* #BR with no IDT */
        assert_int_equal(x86_cpu_state(m->cpu)->rip, RUN_CODE);
}

/* ---- faults leave everything as it was ---- */

static void test_divide_error(void **state)
{
        struct test_machine *m = *state;

        run_64(m)->gpr[X86_RDX] = 5;
        m->cpu->s.gpr[X86_RBX] = 5;
        RUN_BYTES(m, RUN_CODE, 0x48, 0xf7, 0xf3, 0xf4); /* div rbx: the quotient is 2^64 */
        assert_int_equal(run_go(m), X86_DE);
        assert_int_equal(run_frame(m, 0, false), RUN_CODE);
        assert_int_equal(m->cpu->s.gpr[X86_RDX], 5);
}

static void test_branch_target(void **state)
{
        struct test_machine *m = *state;

        run_64(m)->gpr[X86_RAX] = UINT64_C(0x800000000000);
        RUN_BYTES(m, RUN_CODE, 0xff, 0xd0, 0xf4); /* call rax */
        assert_int_equal(run_go(m), X86_GP);
        assert_int_equal(run_frame(m, 0, true), RUN_CODE);
        assert_int_equal(run_frame(m, 3, true), RUN_STACK); /* nothing pushed */

        run_64(m);
        test_poke64(m, RUN_STACK, UINT64_C(0xffff000000000000));
        RUN_BYTES(m, RUN_CODE, 0xc3, 0xf4);
        assert_int_equal(run_go(m), X86_GP);
        assert_int_equal(run_frame(m, 0, true), RUN_CODE);

        /* Past the limit of a 32-bit code segment: no IDT, so a triple fault at the jump. */
        run_32(m)->seg[X86_CS].limit = RUN_CODE + 0xfff;
        RUN_BYTES(m, RUN_CODE, 0xe9, 0xfb, 0x0f, 0, 0); /* jmp code + 0x1000 */
        x86_cpu_state_changed(m->cpu);
        assert_int_equal(x86_cpu_run(m->cpu), X86_EXIT_SHUTDOWN);
        assert_int_equal(x86_cpu_state(m->cpu)->rip, RUN_CODE);
        run_32(m)->seg[X86_CS].limit = RUN_CODE + 0xfff;
        RUN_BYTES(m, RUN_CODE, 0xe9, 0xf7, 0x0f, 0, 0); /* to the last four bytes, of which the last three are one too few */
        RUN_BYTES(m, RUN_CODE + 0xffc, 0x40, 0xb8, 0, 0, 0, 0, 0xf4);
        x86_cpu_state_changed(m->cpu);
        assert_int_equal(x86_cpu_run(m->cpu), X86_EXIT_SHUTDOWN);
        assert_int_equal(x86_cpu_state(m->cpu)->rip, RUN_CODE + 0xffd);
        assert_int_equal(x86_cpu_state(m->cpu)->gpr[X86_RAX], 1);
}

/* A fault in the middle of REP MOVS: what was moved is moved, the registers say what is left. */
static void test_string_fault(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = run_64(m);

        test_poke64(m, 0x3000 + 8, 0);
        s->gpr[X86_RSI] = RUN_DATA;
        s->gpr[X86_RDI] = 0x200000 - 24;
        s->gpr[X86_RCX] = 10;
        RUN_BYTES(m, RUN_CODE, 0xf3, 0x48, 0xa5, 0xf4);
        assert_int_equal(run_go(m), X86_PF);
        assert_int_equal(m->cpu->s.cr2, 0x200000);
        assert_int_equal(m->cpu->s.gpr[X86_RCX], 7);
        assert_int_equal(m->cpu->s.gpr[X86_RSI], RUN_DATA + 24);
        assert_int_equal(m->cpu->s.gpr[X86_RDI], 0x200000);
}

/* An interrupt comes in the middle of a long REP STOS and the rest is done afterwards. */
static void test_string_interrupt(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = run_64(m);

        s->gpr[X86_RDI] = RUN_DATA;
        s->gpr[X86_RCX] = 0x300000;
        s->gpr[X86_RAX] = 0x77;
        s->rflags |= X86_FLAG_IF;
        RUN_BYTES(m, RUN_CODE, 0x90, 0xf3, 0xaa, 0xf4);
        RUN_BYTES(m, RUN_HANDLERS + 0x40 * 16, 0xff, 0xc3, 0x48, 0x89, 0xca, 0x48, 0xcf); /* inc ebx; mov rdx, rcx; iretq */
        m->vector = 0x40;
        x86_cpu_state_changed(m->cpu);
        x86_cpu_request(m->cpu, X86_REQUEST_INTERRUPT);
        assert_int_equal(x86_cpu_run(m->cpu), X86_EXIT_HALTED);
        assert_int_equal(m->cpu->s.gpr[X86_RBX], 1);
        assert_int_equal(m->cpu->s.gpr[X86_RCX], 0);
        assert_int_equal(test_peek64(m, RUN_DATA + 0x300000 - 8), UINT64_C(0x7777777777777777));
}

/* ---- EFLAGS ---- */

static void test_popf(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = run_64(m);
        const uint64_t all = X86_FLAG_IF | X86_FLAG_IOPL | X86_FLAG_DF | X86_FLAG_AC | X86_FLAG_ID | X86_FLAG_NT | X86_FLAG_VM |
                             X86_FLAG_RF | X86_FLAG_VIF | X86_FLAG_VIP | X86_FLAGS_STATUS;

        test_poke64(m, RUN_STACK, all);
        RUN_BYTES(m, RUN_CODE, 0x9d, 0x9c, 0x58, 0xf4); /* popfq; pushfq; pop rax */
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RAX],
                         (all & ~(X86_FLAG_VM | X86_FLAG_RF | X86_FLAG_VIF | X86_FLAG_VIP)) | X86_FLAG_FIXED);

        /* At level 3 with IOPL 0: neither IF nor IOPL. */
        s = run_64(m);
        s->seg[X86_CS].access |= 3 << X86_ACCESS_DPL_SHIFT;
        s->seg[X86_CS].selector = 0x1b;
        s->seg[X86_SS].access |= 3 << X86_ACCESS_DPL_SHIFT;
        s->seg[X86_SS].selector = 0x23;
        test_poke64(m, RUN_STACK, all);
        RUN_BYTES(m, RUN_CODE, 0x9d, 0x9c, 0x58, 0xcc);
        assert_int_equal(run_go(m), X86_BP);
        assert_int_equal(m->cpu->s.gpr[X86_RAX] & (X86_FLAG_IF | X86_FLAG_IOPL), 0);
        assert_true(m->cpu->s.gpr[X86_RAX] & X86_FLAG_AC);
}

/* TF set by POPF: one instruction runs, then #DB, and none before. */
static void test_single_step(void **state)
{
        struct test_machine *m = *state;

        run_64(m);
        test_poke64(m, RUN_STACK, X86_FLAG_TF);
        RUN_BYTES(m, RUN_CODE, 0x9d, 0xff, 0xc0, 0xff, 0xc0, 0xff, 0xc0, 0xf4); /* popf; inc eax three times */
        assert_int_equal(run_go(m), X86_DB);
        assert_int_equal(m->cpu->s.gpr[X86_RAX], 1);
        assert_int_equal(run_frame(m, 0, false), RUN_CODE + 3);
        assert_true(m->cpu->s.dr[6] & 1 << 14);
}

/* ---- interrupts between instructions ---- */

static void test_shadow(void **state)
{
        struct test_machine *m = *state;

        run_64(m);
        RUN_BYTES(m, RUN_CODE, 0xfb, 0xff, 0xc0, 0xfa, 0xff, 0xc0, 0xf4); /* sti; inc eax; cli; inc eax */
        m->vector = 0x40;
        x86_cpu_request(m->cpu, X86_REQUEST_INTERRUPT);
        assert_int_equal(run_go(m), 0x40);
        assert_int_equal(m->cpu->s.gpr[X86_RAX], 1);
        assert_int_equal(run_frame(m, 0, false), RUN_CODE + 3);
}

static void test_halt_and_wake(void **state)
{
        struct test_machine *m = *state;

        run_64(m);
        RUN_BYTES(m, RUN_CODE, 0xfb, 0xf4, 0xff, 0xc0, 0xf4); /* sti; hlt; inc eax */
        assert_int_equal(run_go(m), -1);
        m->cpu->s.halted = true;
        m->vector = 0x41;
        x86_cpu_request(m->cpu, X86_REQUEST_INTERRUPT);
        x86_cpu_wait(m->cpu); /* returns: the request ends it */
        assert_int_equal(x86_cpu_run(m->cpu), X86_EXIT_HALTED);
        assert_int_equal(m->cpu->s.rip, RUN_HANDLERS + 0x41 * 16 + 1);
        assert_int_equal(run_frame(m, 0, false), RUN_CODE + 2);
        x86_cpu_request(m->cpu, X86_REQUEST_EXIT);
        x86_cpu_wait(m->cpu);
        assert_int_equal(x86_cpu_run(m->cpu), X86_EXIT_REQUESTED);
}

/* An endless loop is left for a request. */
static void *request_exit(void *cpu)
{
        usleep(20000);
        x86_cpu_request(cpu, X86_REQUEST_EXIT);
        return NULL;
}

static void test_endless_loop(void **state)
{
        struct test_machine *m = *state;
        pthread_t thread;

        run_64(m);
        RUN_BYTES(m, RUN_CODE, 0xff, 0xc0, 0xeb, 0xfc); /* inc eax; jmp */
        x86_cpu_state_changed(m->cpu);
        assert_int_equal(pthread_create(&thread, NULL, request_exit, m->cpu), 0);
        assert_int_equal(x86_cpu_run(m->cpu), X86_EXIT_REQUESTED);
        pthread_join(thread, NULL);
        assert_true(m->cpu->s.gpr[X86_RAX] > 1000);
}

#define INTEGER_TEST(fn) cmocka_unit_test_setup_teardown(fn, test_machine_setup, test_machine_teardown)

int main(void)
{
        const struct CMUnitTest tests[] = {
                INTEGER_TEST(test_daa_das),       INTEGER_TEST(test_ascii),        INTEGER_TEST(test_pusha),
                INTEGER_TEST(test_stack16),       INTEGER_TEST(test_loop16),       INTEGER_TEST(test_enter),
                INTEGER_TEST(test_pop_memory),    INTEGER_TEST(test_bound),        INTEGER_TEST(test_divide_error),
                INTEGER_TEST(test_branch_target), INTEGER_TEST(test_string_fault), INTEGER_TEST(test_string_interrupt),
                INTEGER_TEST(test_popf),          INTEGER_TEST(test_single_step),  INTEGER_TEST(test_shadow),
                INTEGER_TEST(test_halt_and_wake), INTEGER_TEST(test_endless_loop),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
