/*
 * Conversions between vector formats, and between vectors, general registers and MMX registers.
 *
 * Source: SDM vol. 2 "CVTxx2yy"; vol. 1 §11.5.1 (exceptions), §14.4 (half precision).
 */
#include "cpu/x86/simd.h"

#define D simd_reg(cpu, i->reg[0])

KERNEL_SSE(cvtdq2ps)
KERNEL_SSE(cvtps2dq)
KERNEL_SSE(cvttps2dq)
KERNEL_SSE(cvtdq2pd)
KERNEL_SSE(cvtps2pd)
KERNEL_SSE(cvtpd2ps)
KERNEL_SSE(cvtpd2dq)
KERNEL_SSE(cvttpd2dq)
KERNEL_AVX_UNARY(cvtdq2ps)
KERNEL_AVX_UNARY(cvtps2dq)
KERNEL_AVX_UNARY(cvttps2dq)
KERNEL_AVX_WIDEN(cvtdq2pd)
KERNEL_AVX_WIDEN(cvtps2pd)
KERNEL_AVX_NARROW(cvtpd2ps)
KERNEL_AVX_NARROW(cvtpd2dq)
KERNEL_AVX_NARROW(cvttpd2dq)
KERNEL_VEX_UNARY(cvtph2ps)
KERNEL_AVX_WIDEN(cvtph2ps)

#define BOTH(name, ...) { ZYDIS_MNEMONIC_##name, ZYDIS_MNEMONIC_V##name, { __VA_ARGS__ } }

static const struct {
        uint16_t legacy, vex;
        struct simd_row row;
} table[] = {
        BOTH(CVTDQ2PS, .sse = sse_cvtdq2ps, .avx = avx_cvtdq2ps, .fp = SIMD_FP),
        BOTH(CVTPS2DQ, .sse = sse_cvtps2dq, .avx = avx_cvtps2dq, .fp = SIMD_FP),
        BOTH(CVTTPS2DQ, .sse = sse_cvttps2dq, .avx = avx_cvttps2dq, .fp = SIMD_FP),
        BOTH(CVTDQ2PD, .sse = sse_cvtdq2pd, .avx = avx_cvtdq2pd),
        BOTH(CVTPS2PD, .sse = sse_cvtps2pd, .avx = avx_cvtps2pd, .fp = SIMD_FP),
        BOTH(CVTPD2PS, .sse = sse_cvtpd2ps, .avx = avx_cvtpd2ps, .fp = SIMD_F32),
        BOTH(CVTPD2DQ, .sse = sse_cvtpd2dq, .avx = avx_cvtpd2dq, .fp = SIMD_FP),
        BOTH(CVTTPD2DQ, .sse = sse_cvttpd2dq, .avx = avx_cvttpd2dq, .fp = SIMD_FP),
        { ZYDIS_MNEMONIC_INVALID, ZYDIS_MNEMONIC_VCVTPH2PS, { .vex = vex_cvtph2ps, .avx = avx_cvtph2ps, .fp = SIMD_FP } },
};

/* ---- half precision stores: the rounding is in the immediate, and flush to zero does not apply ---- */

IMM_KERNEL_VEX_UNARY(cvtps2ph, 8)
IMM_KERNEL(avx_cvtps2ph, 8, "vmovdqu (%rdx), %ymm1\n\t", "vcvtps2ph", "%ymm1, %xmm0", "vmovdqu %xmm0, (%rdi)\n\tvzeroupper")

HANDLER(cvtps2ph)
{
        bool wide = i->imm2;
        union x86_vector out;

        simd_fp_begin(cpu);
        (wide ? avx_cvtps2ph : vex_cvtps2ph)(&out, NULL, simd_reg(cpu, i->reg[1]), (unsigned)i->imm);
        simd_fp_end(cpu, SIMD_F16, &out, wide ? 16 : 8);
        if (i->memory_operand == 0)
                simd_write(cpu, insn_linear(cpu, i, wide ? 16 : 8, true), &out, wide ? 16 : 8);
        else
                simd_set_vex128(D, &out);
        return i + 1;
}

/* ---- general register to scalar ---- */

#define FROM_INTEGER(name) SIMD_KERNEL(from_##name, "movdqu (%[a]), %%xmm0\n\t", #name " (%[b]), %%xmm0", STORE_SSE)
FROM_INTEGER(cvtsi2ssl)
FROM_INTEGER(cvtsi2ssq)
FROM_INTEGER(cvtsi2sdl)
FROM_INTEGER(cvtsi2sdq)

/* reg[1] is the first source, reg[2] the general register. */
HANDLER(from_integer)
{
        uint64_t value;
        union x86_vector out;

        if (i->flags & INSN_MEMORY) {
                uint64_t linear = insn_linear(cpu, i, i->memory_size, false);

                value = i->memory_size == 8 ? mmu_read64(cpu, linear) : mmu_read32(cpu, linear);
        } else {
                value = *(uint64_t *)gpr_at(cpu, i->reg[2]);
        }
        simd_fp_begin(cpu);
        ((simd_kernel *)i->aux)(&out, simd_reg(cpu, i->reg[1]), &value, 0);
        simd_fp_end(cpu, SIMD_FP, NULL, 0);
        simd_set128(D, &out);
        if (i->flags & INSN_VEX)
                simd_zero_upper(D);
        return i + 1;
}

static insn_fn bind_from_integer(struct insn *i, const struct decoded *d, bool f64)
{
        unsigned last = d->z->operand_count_visible - 1u;
        bool is64 = d->operand[last].size == 64;

        if (last == 1) {
                i->reg[2] = i->reg[1];
                i->reg[1] = i->reg[0];
        }
        i->aux = (void *)(f64 ? (is64 ? from_cvtsi2sdq : from_cvtsi2sdl) : is64 ? from_cvtsi2ssq : from_cvtsi2ssl);
        return from_integer;
}

/* ---- scalar to general register ---- */

typedef uint64_t to_integer_fn(const void *b);

#define TO_INTEGER(name, reg)                                                                             \
        static uint64_t name##_##reg(const void *b)                                                       \
        {                                                                                                 \
                uint64_t value = 0;                                                                       \
                                                                                                          \
                __asm__ volatile(#name " %[b], %" #reg "[value]"                                          \
                                 : [value] "=r"(value)                                                    \
                                 : [b] "m"(*(const struct { double f64; } __attribute__((packed)) *)b)    \
                                 : "memory");                                                             \
                return value;                                                                             \
        }
#define TO_INTEGER_BOTH(name) TO_INTEGER(name, k) TO_INTEGER(name, q)
TO_INTEGER_BOTH(cvtss2si)
TO_INTEGER_BOTH(cvttss2si)
TO_INTEGER_BOTH(cvtsd2si)
TO_INTEGER_BOTH(cvttsd2si)

HANDLER(to_integer)
{
        union x86_vector buffer;
        const void *b = i->flags & INSN_MEMORY ? simd_source_any(cpu, i, &buffer) : simd_reg(cpu, i->reg[1]);
        uint64_t value;

        simd_fp_begin(cpu);
        value = ((to_integer_fn *)i->aux)(b);
        simd_fp_end(cpu, SIMD_FP, NULL, 0);
        *(uint64_t *)gpr_at(cpu, i->reg[0]) = value;
        return i + 1;
}

static insn_fn bind_to_integer(struct insn *i, const struct decoded *d, to_integer_fn *k, to_integer_fn *q)
{
        i->aux = (void *)(d->operand[0].size == 64 ? q : k);
        return to_integer;
}

/* ---- MMX (SDM vol. 1 §11.6.7): a conversion that touches an MMX register enters MMX state, even when it then faults ---- */

#define FROM_MMX(name)                                                                                            \
        static void mmx_##name(void *d, const void *a, const void *b, unsigned imm)                               \
        {                                                                                                         \
                __asm__ volatile("movdqu (%[a]), %%xmm0\n\t" #name " (%[b]), %%xmm0\n\tmovdqu %%xmm0, (%[d])\n\temms" \
                                 :                                                                                \
                                 : [d] "r"(d), [a] "r"(a), [b] "r"(b)                                             \
                                 : "xmm0", "memory");                                                             \
        }
#define TO_MMX(name)                                                                                              \
        static void mmx_##name(void *d, const void *a, const void *b, unsigned imm)                               \
        {                                                                                                         \
                __asm__ volatile("movdqu (%[b]), %%xmm0\n\t" #name " %%xmm0, %%mm0\n\tmovq %%mm0, (%[d])\n\temms" \
                                 :                                                                                \
                                 : [d] "r"(d), [b] "r"(b)                                                         \
                                 : "xmm0", "mm0", "memory");                                                      \
        }
FROM_MMX(cvtpi2ps)
FROM_MMX(cvtpi2pd)
TO_MMX(cvtps2pi)
TO_MMX(cvttps2pi)
TO_MMX(cvtpd2pi)
TO_MMX(cvttpd2pi)

HANDLER(from_mmx)
{
        bool memory = i->flags & INSN_MEMORY;
        union x86_vector out;
        uint64_t value;

        if (memory) {
                value = mmu_read64(cpu, insn_linear(cpu, i, 8, false));
        } else {
                x87_check_pending(cpu);
                mmx_enter(cpu);
                value = mmx_get(cpu, i->reg[1]);
        }
        simd_fp_begin(cpu);
        ((simd_kernel *)i->aux)(&out, D, &value, 0);
        simd_fp_end(cpu, SIMD_FP, NULL, 0);
        simd_set128(D, &out);
        return i + 1;
}

HANDLER(to_mmx)
{
        union x86_vector buffer;
        const void *b;
        uint64_t out;

        x87_check_pending(cpu);
        if (!(i->flags & INSN_MEMORY))
                b = simd_reg(cpu, i->reg[1]);
        else if (i->memory_size == 16)
                b = simd_source(cpu, simd_aligned(cpu, i, 16, false), 16, &buffer);
        else
                b = simd_source_any(cpu, i, &buffer);
        mmx_enter(cpu);
        simd_fp_begin(cpu);
        ((simd_kernel *)i->aux)(&out, NULL, b, 0);
        simd_fp_end(cpu, SIMD_FP, NULL, 0);
        mmx_set(cpu, i->reg[0], out);
        return i + 1;
}

static insn_fn with_kernel(struct insn *i, simd_kernel *kernel, insn_fn fn)
{
        i->aux = (void *)kernel;
        return fn;
}

#undef BOTH
#define BOTH(name) case ZYDIS_MNEMONIC_##name: case ZYDIS_MNEMONIC_V##name

insn_fn simd_bind_convert(struct insn *i, const struct decoded *d)
{
        for (unsigned k = 0; k < ARRAY_SIZE(table); k++)
                if (d->z->mnemonic == table[k].legacy || d->z->mnemonic == table[k].vex)
                        return simd_bind_row(i, d, &table[k].row);
        switch (d->z->mnemonic) {
        BOTH(CVTSI2SS): return bind_from_integer(i, d, false);
        BOTH(CVTSI2SD): return bind_from_integer(i, d, true);
        BOTH(CVTSS2SI): return bind_to_integer(i, d, cvtss2si_k, cvtss2si_q);
        BOTH(CVTTSS2SI): return bind_to_integer(i, d, cvttss2si_k, cvttss2si_q);
        BOTH(CVTSD2SI): return bind_to_integer(i, d, cvtsd2si_k, cvtsd2si_q);
        BOTH(CVTTSD2SI): return bind_to_integer(i, d, cvttsd2si_k, cvttsd2si_q);
        case ZYDIS_MNEMONIC_CVTPI2PS: return with_kernel(i, mmx_cvtpi2ps, from_mmx);
        case ZYDIS_MNEMONIC_CVTPI2PD: return with_kernel(i, mmx_cvtpi2pd, from_mmx);
        case ZYDIS_MNEMONIC_CVTPS2PI: return with_kernel(i, mmx_cvtps2pi, to_mmx);
        case ZYDIS_MNEMONIC_CVTTPS2PI: return with_kernel(i, mmx_cvttps2pi, to_mmx);
        case ZYDIS_MNEMONIC_CVTPD2PI: return with_kernel(i, mmx_cvtpd2pi, to_mmx);
        case ZYDIS_MNEMONIC_CVTTPD2PI: return with_kernel(i, mmx_cvttpd2pi, to_mmx);
        case ZYDIS_MNEMONIC_VCVTPS2PH:
                i->imm2 = d->z->raw.vex.L;
                return cvtps2ph;
        default:
                return NULL;
        }
}
