/* What the decoder makes of bytes: operands, lengths, modes, faults, and CPUID's say. Expected values are from SDM vol. 2. */
#include "cpu/x86/test-run.h"

#include <errno.h>

#include "cpu/x86/decode.h"

static struct insn decode(struct test_machine *m, unsigned start, const uint8_t *bytes, size_t size_bytes)
{
        struct insn insn;
        uint8_t padded[INSN_LENGTH_MAX] = { 0 };

        memcpy(padded, bytes, size_bytes);
        assert_int_equal(decode_insn(m->cpu, padded, sizeof(padded), start, &insn), 0);
        assert_non_null(insn.fn);
        return insn;
}

#define DECODE(m, start, ...) decode(m, start, (const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

static void test_operands(void **state)
{
        struct test_machine *m = *state;
        struct insn i;

        run_64(m);
        x86_cpu_state_changed(m->cpu);
        i = DECODE(m, 0, 0x88, 0xe5); /* mov ch, ah */
        assert_int_equal(i.op, ZYDIS_MNEMONIC_MOV);
        assert_int_equal(i.opsize, 1);
        assert_int_equal(i.reg[0], 9);
        assert_int_equal(i.reg[1], 1);
        i = DECODE(m, 0, 0x40, 0x88, 0xe5); /* mov bpl, spl */
        assert_int_equal(i.reg[0], X86_RBP * 8);
        assert_int_equal(i.reg[1], X86_RSP * 8);
        i = DECODE(m, 16, 0x8b, 0x05, 1, 0, 0, 0); /* mov eax, [rip+1] */
        assert_int_equal(i.base, GPR_BLOCK * 8);
        assert_int_equal(i.disp, 16 + 6 + 1);
        assert_int_equal(i.memory_operand, 1);
        i = DECODE(m, 0, 0x67, 0x8b, 0x05, 1, 0, 0, 0); /* mov eax, [eip+1] */
        assert_int_equal(i.asize, 4);
        i = DECODE(m, 0, 0x65, 0x48, 0x89, 0x44, 0x8b, 0xf0); /* mov gs:[rbx+rcx*4-16], rax */
        assert_int_equal(i.seg, X86_GS);
        assert_int_equal(i.base, X86_RBX * 8);
        assert_int_equal(i.index, X86_RCX * 8);
        assert_int_equal(i.shift, 2);
        assert_int_equal(i.disp, -16);
        assert_int_equal(i.memory_size, 8);
        i = DECODE(m, 8, 0xeb, 0xfe); /* jmp $ */
        assert_int_equal((int64_t)i.imm, 8);
        assert_true(i.flags & INSN_ENDS_BLOCK);
        i = DECODE(m, 0, 0xc8, 0x34, 0x12, 5); /* enter 0x1234, 5 */
        assert_int_equal(i.imm, 0x1234);
        assert_int_equal(i.imm2, 5);
        i = DECODE(m, 0, 0x48, 0x05, 0xff, 0xff, 0xff, 0xff); /* add rax, -1 */
        assert_int_equal((int64_t)i.imm, -1);
        i = DECODE(m, 0, 0x64, 0xa4); /* movsb from fs */
        assert_int_equal(i.seg, X86_FS);
        i = DECODE(m, 0, 0xf3, 0x48, 0xab); /* rep stosq */
        assert_true(i.flags & INSN_REP);
        assert_int_equal(i.opsize, 8);
}

static void test_modes(void **state)
{
        struct test_machine *m = *state;

        run_64(m);
        x86_cpu_state_changed(m->cpu);
        assert_int_equal(DECODE(m, 0, 0x48, 0x40, 0x90).op,
                         ZYDIS_MNEMONIC_NOP); /* a REX that is not the last counts for nothing */
        assert_int_equal(DECODE(m, 0, 0x50).opsize, 8);
        assert_int_equal(DECODE(m, 0, 0xe9, 0, 0, 0, 0).opsize, 8);
        assert_int_equal(DECODE(m, 0, 0x66, 0xe9, 0, 0, 0, 0).length, 6); /* Intel: 66 does not shorten a near branch */
        run_32(m);
        x86_cpu_state_changed(m->cpu);
        assert_int_equal(DECODE(m, 0, 0x48).op, ZYDIS_MNEMONIC_DEC);
        assert_int_equal(DECODE(m, 0, 0x50).opsize, 4);
        assert_int_equal(DECODE(m, 0, 0x66, 0xe9, 0, 0).length, 4);
        assert_int_equal(DECODE(m, 0, 0x67, 0x8b, 0x07).asize, 2);
        run_16(m);
        x86_cpu_state_changed(m->cpu);
        assert_int_equal(DECODE(m, 0, 0x48).opsize, 2);
        assert_int_equal(DECODE(m, 0, 0x66, 0x50).opsize, 4);
        assert_int_equal(DECODE(m, 0, 0x8b, 0x40, 0xff).asize, 2);
        assert_int_equal(DECODE(m, 0, 0x67, 0x66, 0x8b, 0x00).asize, 4);
}

/* Runs the bytes and gives the vector; rip of the fault must be where they start. */
static int vector_of(struct test_machine *m, const uint8_t *bytes, size_t size_bytes)
{
        int vector;

        run_64(m);
        run_code(m, RUN_CODE, bytes, size_bytes);
        vector = run_go(m);
        if (vector >= 0)
                assert_int_equal(run_frame(m, 0, vector == X86_GP), RUN_CODE);
        return vector;
}

#define VECTOR(m, ...) vector_of(m, (const uint8_t[]){ __VA_ARGS__, 0xf4 }, sizeof((const uint8_t[]){ __VA_ARGS__, 0xf4 }))

static void test_faults(void **state)
{
        struct test_machine *m = *state;

        assert_int_equal(VECTOR(m, 0x0f, 0x0b), X86_UD);             /* ud2 */
        assert_int_equal(VECTOR(m, 0x06), X86_UD);                   /* push es in 64-bit mode */
        assert_int_equal(VECTOR(m, 0xf0, 0x01, 0xc3), X86_UD);       /* lock add ebx, eax */
        assert_int_equal(VECTOR(m, 0xf0, 0x8b, 0x03), X86_UD);       /* lock mov */
        assert_int_equal(VECTOR(m, 0xf0, 0x39, 0x03), X86_UD);       /* lock cmp [rbx], eax */
        assert_int_equal(VECTOR(m, 0xf0, 0x90), X86_UD);             /* lock nop */
        assert_int_equal(VECTOR(m, 0x0f, 0xff, 0xc0), X86_UD);       /* ud0 */
        assert_int_equal(VECTOR(m, 0x62, 0xf1, 0x7c, 0x48, 0x10, 0xc0), X86_UD); /* AVX-512 is in no model */
        assert_int_equal(VECTOR(m, 0x0f, 0x01, 0xc1 + 7), X86_UD);   /* monitor: not in our CPUID */
        /* 15 bytes are an instruction, 16 are #GP(0). */
        assert_int_equal(VECTOR(m, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90), -1);
        assert_int_equal(
                VECTOR(m, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90),
                X86_GP);
}

/* What an older processor takes as NOP stays one. */
static void test_nops(void **state)
{
        struct test_machine *m = *state;

        assert_int_equal(VECTOR(m, 0xf3, 0x0f, 0x1e, 0xfa), -1);             /* endbr64 */
        assert_int_equal(VECTOR(m, 0xf3, 0x0f, 0x1e, 0xc8), -1);             /* rdsspd eax */
        assert_int_equal(VECTOR(m, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0), -1);    /* multi-byte nop */
        assert_int_equal(VECTOR(m, 0x0f, 0x1a, 0xc0), -1);                   /* bndldx and its like */
        assert_int_equal(VECTOR(m, 0x0f, 0x1c, 0x00), -1);                   /* cldemote */
        assert_int_equal(VECTOR(m, 0x0f, 0x0d, 0x08), -1);                   /* prefetchw */
        assert_int_equal(VECTOR(m, 0xf3, 0x90), -1);                         /* pause */
}

/* Without LZCNT and BMI1 these encodings are BSR and BSF. */
static void test_old_model(void **state)
{
        struct test_machine *m = *state;
        struct x86_model old;
        struct x86_cpu *cpu;
        struct insn insn;
        struct err err = ERR_INIT;
        const uint8_t lzcnt[INSN_LENGTH_MAX] = { 0xf3, 0x0f, 0xbd, 0xc3 }, tzcnt[INSN_LENGTH_MAX] = { 0xf3, 0x0f, 0xbc, 0xc3 };
        const uint8_t movbe[INSN_LENGTH_MAX] = { 0x0f, 0x38, 0xf0, 0x03 };

        assert_int_equal(x86_model_init(&old, "x86-64-v1", 1, &err), 0);
        assert_int_equal(x86_cpu_new(m->complex, 1, &old, &m->platform, m, &cpu, &err), 0);
        assert_int_equal(decode_insn(cpu, lzcnt, sizeof(lzcnt), 0, &insn), 0);
        assert_int_equal(insn.op, ZYDIS_MNEMONIC_BSR);
        assert_int_equal(decode_insn(cpu, tzcnt, sizeof(tzcnt), 0, &insn), 0);
        assert_int_equal(insn.op, ZYDIS_MNEMONIC_BSF);
        assert_int_equal(decode_insn(cpu, movbe, sizeof(movbe), 0, &insn), 0);
        assert_true(insn.flags & INSN_ENDS_BLOCK); /* #UD */
        x86_cpu_free(cpu);
}

/* Cut at each byte: more is asked for, never beyond 15. */
static void test_cut(void **state)
{
        struct test_machine *m = *state;
        static const uint8_t mov[] = { 0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8 };
        struct insn insn;

        run_64(m);
        x86_cpu_state_changed(m->cpu);
        for (size_t n = 1; n < sizeof(mov); n++)
                assert_int_equal(decode_insn(m->cpu, mov, n, 0, &insn), -EAGAIN);
        assert_int_equal(decode_insn(m->cpu, mov, sizeof(mov), 0, &insn), 0);
}

/* The second page of an instruction faults only when the instruction needs it. */
static void test_page_end(void **state)
{
        struct test_machine *m = *state;
        struct x86_state *s = run_64(m);

        test_poke64(m, 0x3000 + 8, 0); /* linear 2 MiB is not there */
        s->rip = 0x1ffffe;
        RUN_BYTES(m, 0x1ffffe, 0xeb, 0x00);
        assert_int_equal(run_go(m), X86_PF); /* the jump is whole; its target is not there */
        assert_int_equal(run_frame(m, 0, true), 0x200000);
        assert_int_equal(m->cpu->s.cr2, 0x200000);

        s = run_64(m);
        test_poke64(m, 0x3000 + 8, 0);
        s->rip = 0x1ffffe;
        RUN_BYTES(m, 0x1ffffe, 0x05, 0x00); /* add eax, imm32 goes on */
        assert_int_equal(run_go(m), X86_PF);
        assert_int_equal(run_frame(m, 0, true), 0x1ffffe);
        assert_int_equal(m->cpu->s.cr2, 0x200000);
}

#define DECODE_TEST(fn) cmocka_unit_test_setup_teardown(fn, test_machine_setup, test_machine_teardown)

int main(void)
{
        const struct CMUnitTest tests[] = {
                DECODE_TEST(test_operands), DECODE_TEST(test_modes), DECODE_TEST(test_faults), DECODE_TEST(test_nops),
                DECODE_TEST(test_old_model), DECODE_TEST(test_cut), DECODE_TEST(test_page_end),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
