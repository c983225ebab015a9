/* Code that changes while it is decoded, running, or mapped elsewhere (SDM vol. 3A §12.6: a processor sees its own stores). */
#include "cpu/x86/test-run.h"

/* mov byte [rip + 1], 2; mov eax, 1: the store hits the immediate of the very next instruction. */
static void test_next_instruction(void **state)
{
        struct test_machine *m = *state;

        run_64(m);
        RUN_BYTES(m, RUN_CODE, 0xc6, 0x05, 1, 0, 0, 0, 2, 0xb8, 1, 0, 0, 0, 0xf4);
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RAX], 2);
}

/* The same with a locked store, a read-modify-write, a push and a string store. */
static void test_next_instruction_ways(void **state)
{
        struct test_machine *m = *state;

        run_64(m);
        RUN_BYTES(m, RUN_CODE, 0xf0, 0x80, 0x05, 1, 0, 0, 0, 3, 0xb8, 1, 0, 0, 0, 0xf4); /* lock add byte [rip+1], 3 */
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RAX], 4);

        run_64(m);
        RUN_BYTES(m, RUN_CODE, 0xfe, 0x05, 1, 0, 0, 0, 0xb8, 1, 0, 0, 0, 0xf4); /* inc byte [rip+1] */
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RAX], 2);

        run_64(m)->gpr[X86_RSP] = RUN_CODE + 2 + 8;
        RUN_BYTES(m, RUN_CODE, 0x6a, 0x90, 0xb8, 1, 0, 0, 0, 0x90, 0x90, 0x90, 0xf4); /* push -112: 90 ff ff … over the mov */
        assert_int_equal(run_go(m), X86_UD); /* ff ff is no instruction */
        assert_int_equal(run_frame(m, 0, false), RUN_CODE + 3);

        run_64(m);
        m->cpu->s.gpr[X86_RDI] = RUN_CODE + 2;
        m->cpu->s.gpr[X86_RCX] = 5;
        m->cpu->s.gpr[X86_RAX] = 0x90;
        RUN_BYTES(m, RUN_CODE, 0xf3, 0xaa, 0xb8, 1, 0, 0, 0, 0xf4); /* rep stosb: NOPs over the mov */
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RAX], 0x90);
}

/* A loop that raises the immediate it adds, 1000 times: the page is code and data at once. */
static void test_loop(void **state)
{
        struct test_machine *m = *state;
        static const uint8_t code[] = {
                0xb9, 0xe8, 3, 0, 0,            /*     mov ecx, 1000 */
                0x05, 0, 0, 0, 0,               /* 1:  add eax, imm32 */
                0xff, 0x05, 0, 0, 0, 0,         /*     inc dword [the immediate]: the displacement is put in below */
                0xff, 0xc9,                     /*     dec ecx */
                0x75, 0xf1,                     /*     jnz 1b */
                0xf4,
        };
        uint8_t patched[sizeof(code)];
        int32_t displacement = 6 - (10 + 6);

        run_64(m);
        memcpy(patched, code, sizeof(code));
        memcpy(patched + 12, &displacement, 4);
        run_code(m, RUN_CODE, patched, sizeof(patched));
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RAX], 999 * 1000 / 2);
}

/* A store into the block's own bytes that changes nothing, and one beside it. */
static void test_same_and_beside(void **state)
{
        struct test_machine *m = *state;

        run_64(m);
        RUN_BYTES(m, RUN_CODE, 0xb9, 100, 0, 0, 0,     /*    mov ecx, 100 */
                  0xc6, 0x05, 7, 0, 0, 0, 5,           /* 1: mov byte [2f + 1], 5 */
                  0xff, 0x05, 0xee, 0, 0, 0,           /*    inc dword [code + 0x100] */
                  0xbb, 5, 0, 0, 0,                    /* 2: mov ebx, 5 */
                  0x90, 0xff, 0xc9, 0x75, 0xe9, 0xf4); /*    dec ecx; jnz 1b */
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RBX], 5);
        assert_int_equal(test_peek32(m, RUN_CODE + 0x100), 100);
}

/* A device writes code between two runs. */
static void test_dma(void **state)
{
        struct test_machine *m = *state;

        for (uint8_t n = 1; n < 20; n++) {
                run_64(m);
                RUN_BYTES(m, RUN_CODE, 0xb8, n, 0, 0, 0, 0xf4);
                assert_int_equal(run_go(m), -1);
                assert_int_equal(m->cpu->s.gpr[X86_RAX], n);
        }
}

/* Code written through another mapping of its page. */
static void test_alias(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = run_64(m);

        RUN_BYTES(m, RUN_CODE, 0xc6, 0x03, 7, 0xb8, 1, 0, 0, 0, 0xf4); /* mov byte [rbx], 7; mov eax, 1; hlt */
        s->gpr[X86_RBX] = RUN_CODE + RUN_ALIAS + 4;
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RAX], 7);

        /* And run through it: the same block at another linear address, RIP-relative. */
        s = run_64(m);
        RUN_BYTES(m, RUN_CODE, 0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xf4); /* lea rax, [rip] */
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RAX], RUN_CODE + 7);
        s = run_64(m);
        s->rip = RUN_CODE + RUN_ALIAS;
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RAX], RUN_CODE + RUN_ALIAS + 7);
}

/* An instruction on two pages: either half changes. */
static void test_crossing(void **state)
{
        struct test_machine *m = *state;
        uint64_t at = RUN_CODE + 0x1000 - 3;

        for (unsigned n = 0; n < 4; n++) {
                run_64(m)->rip = at;
                RUN_BYTES(m, at, 0xb8, (uint8_t)n, 0, 0, (uint8_t)(n * 2), 0xf4);
                assert_int_equal(run_go(m), -1);
                assert_int_equal(m->cpu->s.gpr[X86_RAX], n | n * 2 << 24);
        }
        /* Its own store into the second half of the next, crossing instruction. */
        run_64(m)->rip = at - 7;
        RUN_BYTES(m, at - 7, 0xc6, 0x05, 4, 0, 0, 0, 9, 0xb8, 1, 0, 0, 0, 0xf4);
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RAX], 1 | 9 << 24);
}

/* A function is generated again and again at one place and called: as a just-in-time compiler does. */
static void test_generated(void **state)
{
        struct test_machine *m = *state;
        static const uint8_t code[] = {
                0x31, 0xc0,                               /*    xor eax, eax */
                0xb9, 0x10, 0x27, 0, 0,                   /*    mov ecx, 10000 */
                0x89, 0x4b, 1,                            /* 1: mov [rbx + 1], ecx */
                0xff, 0xd3,                               /*    call rbx */
                0xff, 0xc9,                               /*    dec ecx */
                0x75, 0xf7,                               /*    jnz 1b */
                0xf4,
        };

        run_64(m)->gpr[X86_RBX] = RUN_CODE + 0x2000;
        run_code(m, RUN_CODE, code, sizeof(code));
        RUN_BYTES(m, RUN_CODE + 0x2000, 0x05, 0, 0, 0, 0, 0xc3); /* add eax, imm32; ret */
        assert_int_equal(run_go(m), -1);
        assert_int_equal(m->cpu->s.gpr[X86_RAX], 50005000);
}

/* More blocks than the cache holds: it is dropped and filled again, and everything still runs. */
static void test_cache_overflow(void **state)
{
        struct test_machine *m = *state;
        const uint32_t functions = 400000;
        static const uint8_t code[] = {
                0xff, 0xd3,             /* 1: call rbx */
                0x48, 0x83, 0xc3, 8,    /*    add rbx, 8 */
                0xff, 0xc9,             /*    dec ecx */
                0x75, 0xf6,             /*    jnz 1b */
                0xf4,
        };

        for (unsigned round = 0; round < 2; round++) {
                struct x86_state *s = run_64(m);

                for (uint32_t n = 0; n < functions && RUN_DATA + n * 8 + 8 <= TEST_MEMORY; n++)
                        test_poke64(m, RUN_DATA + n * 8, UINT64_C(0x90909090c3c0ff48)); /* inc rax; ret */
                s->gpr[X86_RBX] = RUN_DATA;
                s->gpr[X86_RCX] = functions;
                run_code(m, RUN_CODE, code, sizeof(code));
                assert_int_equal(run_go(m), -1);
                assert_int_equal(m->cpu->s.gpr[X86_RAX], functions);
        }
}

#define SMC_TEST(fn) cmocka_unit_test_setup_teardown(fn, test_machine_setup, test_machine_teardown)

int main(void)
{
        const struct CMUnitTest tests[] = {
                SMC_TEST(test_next_instruction),
                SMC_TEST(test_next_instruction_ways),
                SMC_TEST(test_loop),
                SMC_TEST(test_same_and_beside),
                SMC_TEST(test_dma),
                SMC_TEST(test_alias),
                SMC_TEST(test_crossing),
                SMC_TEST(test_generated),
                SMC_TEST(test_cache_overflow),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
