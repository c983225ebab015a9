/* The assembler against Zydis: what was meant is what is decoded. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include <Zydis/Zydis.h>

#include "jit/x86-asm.h"

struct fixture {
        uint8_t buffer[512];
        struct x86_asm a;
};

static struct x86_asm *fresh(struct fixture *f)
{
        f->a = (struct x86_asm){ .buffer = f->buffer, .address = 0x1000, .size = sizeof(f->buffer) };
        return &f->a;
}

/* The instruction at the buffer's start as text; it must be all there is. */
static const char *text_of(struct fixture *f, char *text, size_t size)
{
        ZydisDisassembledInstruction d;

        assert_false(f->a.full);
        assert_true(ZYAN_SUCCESS(ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, 0x1000, f->buffer, f->a.used, &d)));
        assert_int_equal(d.info.length, f->a.used);
        snprintf(text, size, "%s", d.text);
        return text;
}

#define ASSERT_TEXT(f, expected)                                             \
        do {                                                                 \
                char text_[128];                                             \
                                                                             \
                assert_string_equal(text_of(f, text_, sizeof(text_)), expected); \
        } while (0)

static void test_memory_forms(void **state)
{
        static const uint8_t scales[] = { 1, 2, 4, 8 };
        static const int32_t disps[] = { 0, 1, -128, 127, 128, -129, 0x12345678, INT32_MIN };
        struct fixture f;

        /* Each base, index, scale and displacement comes back as it went in. */
        for (unsigned base = 0; base <= 16; base++)
                for (unsigned index = 0; index <= 16; index++)
                        for (unsigned n = 0; n < ARRAY_SIZE(scales) * ARRAY_SIZE(disps); n++) {
                                struct asm_mem mem = {
                                        .base = base == 16 ? ASM_NONE : (uint8_t)base, .index = index == 16 ? ASM_NONE : (uint8_t)index,
                                        .scale = scales[n % 4], .disp = disps[n / 4], .gs = n & 1,
                                };
                                ZydisDecodedOperand o[ZYDIS_MAX_OPERAND_COUNT];
                                ZydisDecodedInstruction z;
                                ZydisDecoder decoder;

                                if (index == ASM_RSP)
                                        continue;
                                asm_load(fresh(&f), 8, n % 16, mem);
                                ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
                                assert_true(ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, f.buffer, f.a.used, &z, o)));
                                assert_int_equal(z.length, f.a.used);
                                assert_int_equal(o[0].reg.value, ZYDIS_REGISTER_RAX + (int)(n % 16));
                                assert_int_equal(o[1].mem.base, base == 16 ? ZYDIS_REGISTER_NONE : ZYDIS_REGISTER_RAX + (int)base);
                                assert_int_equal(o[1].mem.index, index == 16 ? ZYDIS_REGISTER_NONE : ZYDIS_REGISTER_RAX + (int)index);
                                if (index != 16)
                                        assert_int_equal(o[1].mem.scale, mem.scale);
                                assert_int_equal(o[1].mem.disp.value, mem.disp);
                                assert_int_equal(o[1].mem.segment == ZYDIS_REGISTER_GS, mem.gs);
                        }
}

static void test_shorthands(void **state)
{
        struct fixture f;

        asm_mov(fresh(&f), 8, ASM_R11, ASM_RCX);
        ASSERT_TEXT(&f, "mov r11, rcx");
        asm_mov(fresh(&f), 4, ASM_RBP, ASM_R10);
        ASSERT_TEXT(&f, "mov ebp, r10d");
        asm_store(fresh(&f), 1, asm_at(ASM_RAX, 4), ASM_RSI);
        ASSERT_TEXT(&f, "mov [rax+0x04], sil");
        asm_store(fresh(&f), 2, asm_gs(0x10), ASM_RAX);
        ASSERT_TEXT(&f, "mov gs:[0x0000000000000010], ax");
        asm_lea(fresh(&f), ASM_RSP, asm_at(ASM_RSP, 8));
        ASSERT_TEXT(&f, "lea rsp, [rsp+0x08]");
        asm_alu_imm(fresh(&f), 7, 8, ASM_RBP, 4088);
        ASSERT_TEXT(&f, "cmp rbp, 0xFF8");
        asm_alu_imm(fresh(&f), 0, 4, ASM_R12, -1);
        ASSERT_TEXT(&f, "add r12d, 0xFFFFFFFF");
        asm_alu_imm(fresh(&f), 4, 1, ASM_RDI, 15);
        ASSERT_TEXT(&f, "and dil, 0x0F");
        asm_alu_imm(fresh(&f), 6, 2, ASM_RDX, 0x1234);
        ASSERT_TEXT(&f, "xor dx, 0x1234");
        asm_mov_imm(fresh(&f), ASM_RCX, 7);
        ASSERT_TEXT(&f, "mov ecx, 0x07");
        asm_mov_imm(fresh(&f), ASM_R9, (uint64_t)-7);
        ASSERT_TEXT(&f, "mov r9, 0xFFFFFFFFFFFFFFF9");
        asm_mov_imm(fresh(&f), ASM_R9, 0x123456789abcdef0);
        ASSERT_TEXT(&f, "mov r9, 0x123456789ABCDEF0");
        asm_pext(fresh(&f), ASM_RCX, ASM_RBP, asm_gs(0x20));
        ASSERT_TEXT(&f, "pext rcx, rbp, gs:[0x0000000000000020]");
        asm_pext(fresh(&f), ASM_R9, ASM_R12, asm_at(ASM_R13, 0));
        ASSERT_TEXT(&f, "pext r9, r12, [r13]");
}

static void test_labels(void **state)
{
        struct fixture f;
        struct x86_asm *a = fresh(&f);
        struct asm_label before = { 0 }, behind = { 0 };

        asm_bind(a, &before);
        asm_jmp_short(a, &behind);
        asm_bind(a, &behind);
        ASSERT_TEXT(&f, "jmp 0x0000000000001002");
        a = fresh(&f);
        asm_jcc(a, ASM_NZ, &before);
        ASSERT_TEXT(&f, "jnz 0x0000000000001000");
        asm_call(fresh(&f), &before);
        ASSERT_TEXT(&f, "call 0x0000000000001000");
        asm_jrcxz(fresh(&f), &before);
        ASSERT_TEXT(&f, "jrcxz 0x0000000000001000");
        asm_lea_label(fresh(&f), ASM_RCX, &before);
        ASSERT_TEXT(&f, "lea rcx, [0x0000000000001000]");
        asm_jmp_to(fresh(&f), 0x2000);
        ASSERT_TEXT(&f, "jmp 0x0000000000002000");
}

static void test_full(void **state)
{
        struct fixture f;
        struct asm_label far = { 0 };
        struct x86_asm *a = fresh(&f);

        a->size = 3;
        asm_mov_imm(a, ASM_RCX, 1);
        assert_true(a->full);
        assert_true(a->used <= a->size);
        /* A short jump that does not reach. */
        a = fresh(&f);
        asm_jrcxz(a, &far);
        for (unsigned n = 0; n < 128; n++)
                asm_byte(a, 0x90);
        asm_bind(a, &far);
        assert_true(a->full);
}

static void test_align(void **state)
{
        struct fixture f;

        for (unsigned start = 0; start < 16; start++) {
                struct x86_asm *a = fresh(&f);

                for (unsigned n = 0; n < start; n++)
                        asm_byte(a, 0x90);
                asm_align(a, 4, 1);
                assert_int_equal((a->used + 1) % 4, 0);
                assert_true(a->used - start < 4);
        }
}

/* A jump is nowhere at a 32-byte boundary of the address it runs at, and as short as ever otherwise. */
static void test_fit(void **state)
{
        struct fixture f;

        for (unsigned start = 0; start < 64; start++) {
                struct x86_asm *a = fresh(&f);
                struct asm_label here = { 0 };
                uint64_t first, last;

                a->address = 0x7f0000000010;
                a->fit_jumps = true;
                asm_nops(a, start);
                assert_int_equal(a->used, start);
                asm_bind(a, &here);
                asm_jcc(a, ASM_Z, &here);
                last = a->address + a->used;
                first = last - 6;
                assert_int_equal(first / 32, last / 32);
                assert_true((a->address + start) % 32 > 25 ? first % 32 == 0 : first == a->address + start);
        }
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_memory_forms), cmocka_unit_test(test_shorthands), cmocka_unit_test(test_labels),
                cmocka_unit_test(test_full),         cmocka_unit_test(test_align),
                cmocka_unit_test(test_fit),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
