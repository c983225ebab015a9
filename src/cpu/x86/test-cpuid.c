/*
 * CPUID: models, what depends on the processor that asks, and that nothing is claimed that a guest could not use.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <time.h>
#include <cmocka.h>

#include "cpu/x86/cpuid.h"
#include "cpu/x86/state.h"

static void test_models(void **state)
{
        struct err err = ERR_INIT;
        struct x86_model model;

        assert_int_equal(x86_model_init(&model, "pentium", 1, &err), -EINVAL);
        assert_non_null(strstr(err.text, "x86-64-v2"));
        assert_int_equal(x86_model_init(&model, "max", 0, &err), -EINVAL);
        assert_int_equal(x86_model_init(&model, "max", 256, &err), -EINVAL);
        assert_int_equal(x86_model_init(&model, "x86-64-v1", 1, &err), 0);
        assert_true(x86_model_has(&model, X86_F_SSE2));
        assert_true(x86_model_has(&model, X86_F_LM));
        assert_false(x86_model_has(&model, X86_F_SSE42));
        assert_false(x86_model_has(&model, X86_F_AVX));
        assert_int_equal(x86_model_init(&model, "max", 1, &err), 0);
        /* What the processor cannot do is not in its CPUID. */
        assert_false(x86_model_has(&model, X86_F_VME));
        assert_false(x86_model_has(&model, X86_F_PKU));
        assert_true(!x86_model_has(&model, X86_F_AVX) || x86_model_has(&model, X86_F_XSAVE));
}

static void ask(const struct x86_model *model, unsigned index, uint32_t leaf, uint32_t subleaf, uint32_t reg[4])
{
        x86_model_cpuid(model, index, 0, 7, leaf, subleaf, reg);
}

static void test_leaves(void **state)
{
        struct err err = ERR_INIT;
        struct x86_model model;
        uint32_t reg[4], last[4];

        assert_int_equal(x86_model_init(&model, "max", 6, &err), 0);
        ask(&model, 0, 0, 0, reg);
        assert_memory_equal(&reg[1], "Genu", 4);
        assert_memory_equal(&reg[3], "ineI", 4);
        assert_memory_equal(&reg[2], "ntel", 4);
        ask(&model, 0, reg[0], 0, last);
        ask(&model, 0, 0x1000, 0, reg); /* past the last basic leaf: its answer */
        assert_memory_equal(reg, last, sizeof(reg));
        ask(&model, 5, 1, 0, reg);
        assert_int_equal(reg[1] >> 24, 5);
        assert_true(reg[2] >> 31);        /* hypervisor */
        assert_false(reg[2] >> 27 & 1);   /* OSXSAVE follows CR4 */
        assert_false(reg[2] >> 3 & 1);    /* no MONITOR */
        x86_model_cpuid(&model, 5, X86_CR4_OSXSAVE, 7, 1, 0, reg);
        assert_true(reg[2] >> 27 & 1);
        ask(&model, 5, 0xb, 1, reg);
        assert_int_equal(reg[0], 3); /* 6 processors take 3 bits of the APIC ID */
        assert_int_equal(reg[1], 6);
        assert_int_equal(reg[3], 5);
        ask(&model, 5, 0xb, 2, reg);
        assert_int_equal(reg[2] >> 8, 0);
        ask(&model, 0, 0x40000000, 0, reg);
        assert_memory_equal(&reg[1], "KVMKVMKVM\0\0\0", 12);
        ask(&model, 0, 0x80000008, 0, reg);
        assert_int_equal(reg[0], 46 | 48 << 8);
        ask(&model, 0, 0x80000007, 0, reg);
        assert_int_equal(reg[3], 1u << 8); /* invariant TSC */
        ask(&model, 0, 7, 99, reg);
        assert_int_equal(reg[0] | reg[1] | reg[2] | reg[3], 0);
}

static void test_xsave_size(void **state)
{
        struct err err = ERR_INIT;
        struct x86_model model;
        uint32_t reg[4];

        assert_int_equal(x86_model_init(&model, "max", 1, &err), 0);
        if (!x86_model_has(&model, X86_F_AVX))
                skip();
        x86_model_cpuid(&model, 0, 0, 3, 0xd, 0, reg);
        assert_int_equal(reg[1], 576);
        assert_int_equal(reg[2], 832);
        x86_model_cpuid(&model, 0, 0, 7, 0xd, 0, reg);
        assert_int_equal(reg[1], 832);
}

/* Against CLOCK_MONOTONIC_RAW, within 1 %. */
static void test_frequency(void **state)
{
        uint64_t hz = x86_host_tsc_hz(), tsc = __builtin_ia32_rdtsc();
        const struct timespec pause = { .tv_nsec = 50000000 };
        struct timespec a, b;
        double ns, measured;

        clock_gettime(CLOCK_MONOTONIC_RAW, &a);
        nanosleep(&pause, NULL);
        clock_gettime(CLOCK_MONOTONIC_RAW, &b);
        tsc = __builtin_ia32_rdtsc() - tsc;
        ns = (double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec);
        measured = (double)tsc * 1e9 / ns;
        assert_true(fabs(measured - (double)hz) < (double)hz / 100);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_models),
                cmocka_unit_test(test_leaves),
                cmocka_unit_test(test_xsave_size),
                cmocka_unit_test(test_frequency),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
