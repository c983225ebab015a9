/*
 * The record of a processor's state: a round trip keeps everything, and damage of any kind is refused with the state untouched.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <cmocka.h>

#include "cpu/x86/state.h"

static void fill(struct x86_state *s)
{
        x86_state_reset(s, true);
        for (unsigned i = 0; i < 16; i++) {
                s->gpr[i] = 0x1111111111111111ull * i;
                s->fpu.ymm[i].u64[3] = i;
        }
        s->rip = 0xffffffff81000000;
        s->rflags |= X86_FLAG_IF | X86_FLAG_ZF;
        s->cr0 = X86_CR0_PE | X86_CR0_PG;
        s->cr4 = X86_CR4_PAE | X86_CR4_OSXSAVE;
        s->efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_SCE;
        s->xcr0 = 7;
        s->seg[X86_GS].base = 0xffff888000000000;
        s->seg[X86_FS].access = X86_ACCESS_UNUSABLE;
        s->fpu.r[3][9] = 0x40;
        s->mtrr_var[15] = 5;
        s->tsc_offset = (uint64_t)-12345;
        s->pv_steal_time = 0x1001;
        s->halted = true;
        s->exception_pending = true;
        s->exception_vector = 14;
        s->exception_error = 6;
        s->exception_has_error = true;
}

static struct x86_state a, b;

static void test_round_trip(void **state)
{
        struct err err = ERR_INIT;
        struct writer out = { 0 }, again = { 0 };
        struct cursor in;

        fill(&a);
        x86_state_save(&a, &out);
        assert_false(out.bad);
        in = cursor_from(out.bytes, out.size);
        assert_int_equal(x86_state_load(&b, &in, &err), 0);
        assert_int_equal(cursor_left(&in), 0);
        x86_state_save(&b, &again);
        assert_int_equal(out.size, again.size);
        assert_memory_equal(out.bytes, again.bytes, out.size);
        assert_memory_equal(&a.gpr, &b.gpr, 16 * 8);
        assert_memory_equal(&a.fpu.ymm, &b.fpu.ymm, sizeof(a.fpu.ymm));
        assert_int_equal(b.tsc_offset, (uint64_t)-12345);
        assert_true(b.halted && b.exception_pending && !b.nmi_masked);
        writer_done(&out);
        writer_done(&again);
}

static void test_cut_short(void **state)
{
        struct writer out = { 0 };
        struct x86_state before;

        fill(&a);
        x86_state_save(&a, &out);
        x86_state_reset(&b, false);
        before = b;
        for (size_t n = 0; n < out.size; n++) {
                struct err err = ERR_INIT;
                struct cursor in = cursor_from(out.bytes, n);

                assert_true(x86_state_load(&b, &in, &err) < 0);
        }
        assert_memory_equal(&before, &b, sizeof(b));
        writer_done(&out);
}

#define REFUSED(change)                                                 \
        do {                                                            \
                struct err err_ = ERR_INIT;                             \
                struct writer out_ = { 0 };                             \
                struct cursor in_;                                      \
                                                                        \
                fill(&a);                                               \
                change;                                                 \
                x86_state_save(&a, &out_);                              \
                in_ = cursor_from(out_.bytes, out_.size);               \
                assert_int_equal(x86_state_load(&b, &in_, &err_), -EBADMSG); \
                assert_true(strlen(err_.text) > 10);                    \
                writer_done(&out_);                                     \
        } while (0)

static void test_impossible(void **state)
{
        REFUSED(a.cr0 &= ~X86_CR0_PE);
        REFUSED(a.cr0 |= 1ull << 40);
        REFUSED(a.cr4 &= ~X86_CR4_PAE);
        REFUSED(a.cr4 |= 1ull << 50);
        REFUSED(a.efer &= ~X86_EFER_LME);
        REFUSED(a.efer |= 1u << 3);
        REFUSED(a.xcr0 = 5);
        REFUSED(a.rflags |= 1ull << 33);
        REFUSED(a.rflags &= ~X86_FLAG_FIXED);
        REFUSED(a.rip = 1ull << 47);
        REFUSED(a.lstar = 1ull << 60);
        REFUSED(a.seg[X86_FS].base = 1ull << 55);
        REFUSED(a.seg[X86_ES].access = 0x800);
        REFUSED(a.fpu.mxcsr = 0x80000000);
        REFUSED(a.exception_vector = 200);
}

static void test_wrong_record(void **state)
{
        struct err err = ERR_INIT;
        struct writer out = { 0 };
        struct cursor in;

        record_end(&out, record_begin(&out, "rtc", 1));
        in = cursor_from(out.bytes, out.size);
        assert_int_equal(x86_state_load(&b, &in, &err), -EBADMSG);
        assert_non_null(strstr(err.text, "rtc"));
        writer_done(&out);
}

static void test_format(void **state)
{
        char text[4096], small[20];

        fill(&a);
        x86_state_format(&a, text, sizeof(text));
        assert_non_null(strstr(text, "rip ffffffff81000000"));
        assert_non_null(strstr(text, "halted"));
        x86_state_format(&a, small, sizeof(small));
        assert_int_equal(strlen(small), sizeof(small) - 1);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_round_trip), cmocka_unit_test(test_cut_short), cmocka_unit_test(test_impossible),
                cmocka_unit_test(test_wrong_record), cmocka_unit_test(test_format),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
