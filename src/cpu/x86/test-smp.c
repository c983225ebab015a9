/*
 * Several processors of one machine: locked operations across pages, and code that one processor writes and another runs.
 *
 * Source: Intel SDM vol. 3A §8.1.2 (bus locking), §8.1.3 (cross-modifying code: the reader serialises before it executes).
 */
#include <pthread.h>

#include "cpu/x86/test-tables.h"

#define PROGRAM(name, text)                                                                                     \
        __asm__(".pushsection .rodata\n" #name ": .code64\n" text "\n" #name "_end:\n.popsection");              \
        extern const uint8_t name[], name##_end[]

/* 4 bytes at 0x6ffe: two pages. */
PROGRAM(split_lock, "movl $5000, %ecx\n1: lock addl $1, 0x6ffe\n lock incl 0x5000\n decl %ecx\n jnz 1b\n hlt");

/*
 * Round i: the writer puts i into the immediate of "mov eax, imm32; ret" at 0x18000 and then says so at 0x7100; the reader answers at
 * 0x7108 and counts at 0x7110 how often it did not get i.
 */
PROGRAM(code_writer, "movl $800, %ebx\n movl $1, %ecx\n"
                     "1: movl %ecx, 0x18001\n movl %ecx, 0x7100\n"
                     "2: pause\n cmpl %ecx, 0x7108\n jne 2b\n"
                     "incl %ecx\n cmpl %ebx, %ecx\n jbe 1b\n hlt");
PROGRAM(code_reader, "movl $800, %r8d\n movl $1, %r9d\n"
                     "1: pause\n cmpl %r9d, 0x7100\n jne 1b\n"
                     "xorl %eax, %eax\n cpuid\n movl $0x18000, %eax\n call *%rax\n"
                     "cmpl %r9d, %eax\n je 3f\n lock incl 0x7110\n"
                     "3: movl %r9d, 0x7108\n incl %r9d\n cmpl %r8d, %r9d\n jbe 1b\n hlt");

/* Each writes code into a page that the other runs: both ask for the other's write translations at the same time. */
PROGRAM(mutual_a, "movl $500, %ecx\n1: movl %ecx, 0x18001\n movl $0x19000, %eax\n call *%rax\n decl %ecx\n jnz 1b\n hlt");
PROGRAM(mutual_b, "movl $500, %ecx\n1: movl %ecx, 0x19001\n movl $0x18000, %eax\n call *%rax\n decl %ecx\n jnz 1b\n hlt");

struct pair {
        struct test_machine *m;
        struct x86_cpu *second;
};

static void *run_second(void *ctx)
{
        struct pair *p = ctx;

        while (x86_cpu_run(p->second) != X86_EXIT_HALTED)
                ;
        return NULL;
}

/* Runs one program on each of two processors until both halt. */
static void run_both(struct test_machine *m, const uint8_t *a, size_t a_bytes, const uint8_t *b, size_t b_bytes)
{
        struct err err = ERR_INIT;
        struct pair p = { .m = m };
        pthread_t thread;

        test_long_mode(m);
        test_code(m, 0x10000, a, a_bytes);
        test_code(m, 0x11000, b, b_bytes);
        test_code(m, 0x18000, (const uint8_t[]){ 0xb8, 0, 0, 0, 0, 0xc3 }, 6); /* mov eax, 0; ret */
        test_code(m, 0x19000, (const uint8_t[]){ 0xb8, 0, 0, 0, 0, 0xc3 }, 6);
        assert_int_equal(x86_cpu_new(m->complex, 1, &m->model, &m->platform, m, &p.second, &err), 0);
        *x86_cpu_state(p.second) = *x86_cpu_state(m->cpu);
        p.second->s.rip = 0x11000;
        p.second->s.gpr[X86_RSP] = T_STACK0 - 0x400;
        x86_cpu_state_changed(p.second);
        m->cpu->s.rip = 0x10000;
        assert_int_equal(pthread_create(&thread, NULL, run_second, &p), 0);
        while (x86_cpu_run(m->cpu) != X86_EXIT_HALTED)
                ;
        pthread_join(thread, NULL);
        x86_cpu_free(p.second);
}

#define RUN_BOTH(m, a, b) run_both(m, a, (size_t)(a##_end - a), b, (size_t)(b##_end - b))

static void test_split_lock(void **state)
{
        struct test_machine *m = *state;

        RUN_BOTH(m, split_lock, split_lock);
        assert_int_equal(test_peek32(m, 0x6ffe), 10000);
        assert_int_equal(test_peek32(m, 0x5000), 10000);
}

static void test_cross_modifying(void **state)
{
        struct test_machine *m = *state;

        RUN_BOTH(m, code_writer, code_reader);
        assert_int_equal(test_peek32(m, 0x7108), 800);
        assert_int_equal(test_peek32(m, 0x7110), 0);
}

static void test_mutual(void **state)
{
        RUN_BOTH(*state, mutual_a, mutual_b);
}

#define MACHINE_TEST(f) cmocka_unit_test_setup_teardown(f, test_machine_setup, test_machine_teardown)

int main(void)
{
        const struct CMUnitTest tests[] = { MACHINE_TEST(test_split_lock), MACHINE_TEST(test_cross_modifying), MACHINE_TEST(test_mutual) };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
