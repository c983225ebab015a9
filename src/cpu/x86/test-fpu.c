/*
 * Floating-point and vector state: which control bits make which instruction fault, pending exceptions, the environment in its
 * four formats, XSAVE images. What the instructions compute is compared with the host's processor by tests/diff.
 */
#include <errno.h>

#include "cpu/x86/cpu.h"
#include "cpu/x86/fpu.h"
#include "cpu/x86/test-run.h"

#define HLT 0xf4

/* ---- control bits: SDM vol. 2A tables 2-19 ff., vol. 3A table 2-3 (x87), vol. 3A §13.1 ---- */

enum { EM = 1, TS = 2, MP = 4, OSFXSR = 8, OSXSAVE = 16, XCR0_AVX = 32 };

static const struct {
        const char *name;
        uint8_t code[8];
        uint8_t length;
        struct {
                uint8_t bits;
                int8_t vector; /* -1: it runs */
        } when[8];
        uint8_t count;
} gates[] = {
        { "paddb xmm0, xmm1", { 0x66, 0x0f, 0xfc, 0xc1 }, 4,
          { { OSFXSR, -1 }, { 0, X86_UD }, { OSFXSR | EM, X86_UD }, { OSFXSR | TS, X86_NM }, { EM | TS, X86_UD } }, 5 },
        { "paddb mm0, mm1", { 0x0f, 0xfc, 0xc1 }, 3, { { 0, -1 }, { EM, X86_UD }, { TS, X86_NM }, { OSFXSR, -1 } }, 4 },
        { "vpaddb xmm0, xmm1, xmm2", { 0xc5, 0xf1, 0xfc, 0xc2 }, 4,
          { { OSFXSR | OSXSAVE | XCR0_AVX, -1 }, { OSFXSR | OSXSAVE, X86_UD }, { OSFXSR | XCR0_AVX, X86_UD }, { OSXSAVE | XCR0_AVX | TS, X86_NM },
            { OSXSAVE | XCR0_AVX | EM, -1 } }, 5 },
        { "fld1", { 0xd9, 0xe8 }, 2, { { 0, -1 }, { EM, X86_NM }, { TS, X86_NM }, { MP, -1 } }, 4 },
        { "fwait", { 0x9b }, 1, { { EM, -1 }, { TS, -1 }, { MP, -1 }, { MP | TS, X86_NM } }, 4 },
        { "fxsave [rdi]", { 0x0f, 0xae, 0x07 }, 3, { { 0, -1 }, { OSFXSR, -1 }, { EM, X86_NM }, { TS, X86_NM } }, 4 },
        { "xsave [rdi]", { 0x0f, 0xae, 0x27 }, 3,
          { { OSXSAVE, -1 }, { 0, X86_UD }, { OSXSAVE | TS, X86_NM }, { TS, X86_UD }, { OSXSAVE | EM, -1 } }, 5 },
        { "ldmxcsr [rdi]", { 0x0f, 0xae, 0x17 }, 3, { { OSFXSR, -1 }, { 0, X86_UD }, { OSFXSR | EM, X86_UD }, { OSFXSR | TS, X86_NM } }, 4 },
        { "movnti [rdi], eax", { 0x0f, 0xc3, 0x07 }, 3, { { 0, -1 }, { EM | TS, -1 } }, 2 },
        { "emms", { 0x0f, 0x77 }, 2, { { 0, -1 }, { EM, X86_UD }, { TS, X86_NM } }, 3 },
        { "movq2dq xmm0, mm1", { 0xf3, 0x0f, 0xd6, 0xc1 }, 4, { { OSFXSR, -1 }, { 0, X86_UD } }, 2 },
};

static struct x86_state *gate_state(struct test_machine *m, unsigned bits)
{
        struct x86_state *s = run_64(m);

        s->cr0 &= ~(X86_CR0_EM | X86_CR0_TS | X86_CR0_MP);
        s->cr0 |= (bits & EM ? X86_CR0_EM : 0) | (bits & TS ? X86_CR0_TS : 0) | (bits & MP ? X86_CR0_MP : 0);
        s->cr4 &= ~(X86_CR4_OSFXSR | X86_CR4_OSXSAVE);
        s->cr4 |= (bits & OSFXSR ? X86_CR4_OSFXSR : 0) | (bits & OSXSAVE ? X86_CR4_OSXSAVE : 0);
        s->xcr0 = bits & XCR0_AVX ? 7 : 3;
        s->gpr[X86_RDI] = RUN_DATA;
        s->gpr[X86_RAX] = 7;
        return s;
}

static void test_control_bits(void **state)
{
        struct test_machine *m = *state;

        for (size_t g = 0; g < ARRAY_SIZE(gates); g++) {
                uint8_t code[16] = { 0 };

                memcpy(code, gates[g].code, gates[g].length);
                code[gates[g].length] = HLT;
                for (unsigned n = 0; n < gates[g].count; n++) {
                        int vector;

                        gate_state(m, gates[g].when[n].bits);
                        run_code(m, RUN_CODE, code, sizeof(code));
                        test_poke32(m, RUN_DATA, 0x1f80);
                        vector = run_go(m);
                        if (vector != gates[g].when[n].vector)
                                fail_msg("%s with bits %#x gives %d, not %d", gates[g].name, gates[g].when[n].bits, vector, gates[g].when[n].vector);
                }
        }
}

static void test_pending_x87(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = run_64(m);

        /* FNINIT; FLDCW [rdi] (divide by zero unmasked); FLDZ; FLD1; FDIV ST0, ST1; FNSTSW AX; FLD1 */
        s->gpr[X86_RDI] = RUN_DATA;
        test_poke32(m, RUN_DATA, 0x37b);
        RUN_BYTES(m, RUN_CODE, 0xdb, 0xe3, 0xd9, 0x2f, 0xd9, 0xee, 0xd9, 0xe8, 0xd8, 0xf1, 0xdf, 0xe0, 0xd9, 0xe8, HLT);
        assert_int_equal(run_go(m), X86_MF);
        assert_int_equal(s->gpr[X86_RAX] & 0xffff, 0xb084); /* B, TOP 6, ES, ZE */
        assert_int_equal(run_frame(m, 0, false), RUN_CODE + 12);
        assert_int_equal(s->fpu.fip, RUN_CODE + 8);
        assert_int_equal(s->fpu.fop, 0x0f1);

        /* FNCLEX takes it away; FWAIT then passes. */
        s->rip = RUN_CODE;
        RUN_BYTES(m, RUN_CODE, 0xdb, 0xe2, 0x9b, HLT);
        assert_int_equal(run_go(m), -1);
        assert_int_equal(s->fpu.fsw & 0x80ff, 0);
}

static void test_unmasked_sse(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s;

        /* DIVSS XMM0, XMM1 with 1 / 0 and divide by zero unmasked */
        for (unsigned os = 0; os < 2; os++) {
                s = run_64(m);
                s->cr4 &= ~X86_CR4_OSXMMEXCPT;
                s->cr4 |= os ? X86_CR4_OSXMMEXCPT : 0;
                s->fpu.mxcsr = 0x1d80;
                s->fpu.ymm[0] = (union x86_vector){ .f32 = { 1, 2, 3, 4 } };
                s->fpu.ymm[1] = (union x86_vector){ 0 };
                RUN_BYTES(m, RUN_CODE, 0xf3, 0x0f, 0x5e, 0xc1, HLT);
                assert_int_equal(run_go(m), os ? X86_XM : X86_UD);
                assert_int_equal(s->fpu.mxcsr, 0x1d84);
                assert_true(s->fpu.ymm[0].f32[0] == 1);
        }
}

/* ---- the environment (SDM vol. 1 §8.1.10) ---- */

static void test_environment_32(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = run_32(m);

        /* FLD dword [0x100040]; FNSTENV [0x100100]; FNSAVE [0x100200]; FRSTOR [0x100200] */
        test_poke32(m, RUN_DATA + 0x40, 0x3f800000);
        RUN_BYTES(m, RUN_CODE, 0xd9, 0x05, 0x40, 0, 0x10, 0, 0xd9, 0x35, 0, 1, 0x10, 0, 0xdd, 0x35, 0, 2, 0x10, 0, 0xdd, 0x25, 0, 2, 0x10, 0, HLT);
        fpu_init_x87(&s->fpu);
        assert_int_equal(run_go(m), -1);
        assert_int_equal(test_peek32(m, RUN_DATA + 0x100), 0xffff037f);
        assert_int_equal(test_peek32(m, RUN_DATA + 0x104), 0xffff3800);
        assert_int_equal(test_peek32(m, RUN_DATA + 0x108), 0xffff3fff);
        assert_int_equal(test_peek32(m, RUN_DATA + 0x10c), RUN_CODE);
        assert_int_equal(test_peek32(m, RUN_DATA + 0x110), 0x01050008);
        assert_int_equal(test_peek32(m, RUN_DATA + 0x114), RUN_DATA + 0x40);
        assert_int_equal(test_peek32(m, RUN_DATA + 0x118), 0xffff0010);
        assert_int_equal(test_peek64(m, RUN_DATA + 0x21c), UINT64_C(1) << 63);
        /* FNSTENV masked everything, FNSAVE's image says so, FRSTOR brought it back. */
        assert_int_equal(s->fpu.fcw, 0x37f);
        assert_int_equal(fpu_top(&s->fpu), 7);
        assert_int_equal(s->fpu.ftw, 0x80);
        assert_int_equal(s->fpu.fdp, RUN_DATA + 0x40);
        assert_int_equal(s->fpu.fop, 0x105);
}

static void test_environment_16(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = run_16(m);

        /* MOV DS, AX; FLD dword [0x40]; FNSTENV [0x100]; FLDENV [0x100] */
        s->gpr[X86_RAX] = 0x2000;
        RUN_BYTES(m, RUN_CODE, 0x8e, 0xd8, 0xd9, 0x06, 0x40, 0, 0xd9, 0x36, 0, 1, 0xd9, 0x26, 0, 1, HLT);
        fpu_init_x87(&s->fpu);
        assert_int_equal(run_go(m), -1);
        assert_int_equal(test_peek32(m, 0x20100), 0x3800037f);
        assert_int_equal(test_peek32(m, 0x20104), 0x00027fff);
        assert_int_equal(test_peek32(m, 0x20108), 0x00401106); /* linear 0x10002: its top 4 bits, then the opcode */
        assert_int_equal(test_peek32(m, 0x2010c) & 0xffff, 0x2000);
        assert_int_equal(s->fpu.fip, 0x10002);
        assert_int_equal(s->fpu.fdp, 0x20040);
}

/* ---- images ---- */

static void test_xsave_image(void **state)
{
        struct x86_state *from = calloc(1, sizeof(*from)), *to = calloc(1, sizeof(*to));
        uint8_t area[FPU_XSAVE_BYTES];
        struct err err = ERR_INIT;

        assert_non_null(from);
        assert_non_null(to);
        from->fpu = (struct x86_fpu){ .fcw = 0x37f, .fsw = 0x2900, .ftw = 0xe0, .fop = 0x123, .fip = 0x123456789abc, .fdp = 0x7ff0, .mxcsr = 0x1fa0 };
        for (unsigned n = 0; n < 8; n++)
                memset(from->fpu.r[n], (int)(n + 1), 10);
        for (unsigned n = 0; n < 16; n++)
                memset(&from->fpu.ymm[n], (int)(0x40 + n), 32);
        x86_fpu_to_xsave(from, area);
        assert_int_equal(area[FPU_XSAVE_HEADER], 7);
        assert_int_equal(area[32], 6); /* ST(0) is register 5 */
        assert_int_equal(x86_fpu_from_xsave(to, area, sizeof(area), &err), 0);
        assert_memory_equal(&from->fpu, &to->fpu, sizeof(from->fpu));

        /* Absent components get their initial values; bad images change nothing. */
        area[FPU_XSAVE_HEADER] = 0;
        assert_int_equal(x86_fpu_from_xsave(to, area, sizeof(area), &err), 0);
        assert_int_equal(to->fpu.fcw, FPU_FCW_DEFAULT);
        assert_int_equal(to->fpu.mxcsr, 0x1f80);
        assert_int_equal(to->fpu.ymm[3].u64[3], 0);
        area[FPU_XSAVE_HEADER] = 7;
        area[27] = 1;
        assert_int_equal(x86_fpu_from_xsave(to, area, sizeof(area), &err), -EINVAL);
        area[27] = 0;
        area[FPU_XSAVE_HEADER + 15] = 0x80;
        assert_int_equal(x86_fpu_from_xsave(to, area, sizeof(area), &err), -EINVAL);
        assert_int_equal(x86_fpu_from_xsave(to, area, 512, &err), -EINVAL);
        assert_int_equal(to->fpu.fcw, FPU_FCW_DEFAULT);
        free(from);
        free(to);
}

/* A step through a loop traps after each instruction, also when the branch's target was run before. */
static void test_step_through_loop(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = run_64(m);

        RUN_BYTES(m, RUN_CODE, 0xff, 0xc8, 0x75, 0xfc, HLT); /* DEC EAX; JNZ back */
        s->gpr[X86_RAX] = 3;
        for (unsigned n = 0; n < 6; n++) {
                s->rflags |= X86_FLAG_TF;
                assert_int_equal(run_go(m), X86_DB);
                assert_int_equal(s->gpr[X86_RAX], 3 - (n + 2) / 2);
                s->rip = run_frame(m, 0, false);
                s->rflags = run_frame(m, 2, false);
                s->gpr[X86_RSP] = RUN_STACK;
        }
        assert_int_equal(s->rip, RUN_CODE + 4);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_control_bits, test_machine_setup, test_machine_teardown),
                cmocka_unit_test_setup_teardown(test_pending_x87, test_machine_setup, test_machine_teardown),
                cmocka_unit_test_setup_teardown(test_unmasked_sse, test_machine_setup, test_machine_teardown),
                cmocka_unit_test_setup_teardown(test_environment_32, test_machine_setup, test_machine_teardown),
                cmocka_unit_test_setup_teardown(test_environment_16, test_machine_setup, test_machine_teardown),
                cmocka_unit_test(test_xsave_image),
                cmocka_unit_test_setup_teardown(test_step_through_loop, test_machine_setup, test_machine_teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
