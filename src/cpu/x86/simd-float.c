/*
 * Vector floating-point arithmetic that MXCSR governs: one line each. Conversions are in simd-convert.c, FMA in simd-fma.c.
 *
 * Source: SDM vol. 2; exceptions of each: vol. 1 §11.5, appendix C.
 */
#include "cpu/x86/simd.h"

/* d = op(a, b); the letter says what the result is made of */
#define ROWS_PACKED(X)                                                                                              \
        X(ADDPS, addps, SIMD_F32) X(SUBPS, subps, SIMD_F32) X(MULPS, mulps, SIMD_F32) X(DIVPS, divps, SIMD_F32)     \
        X(ADDPD, addpd, SIMD_F64) X(SUBPD, subpd, SIMD_F64) X(MULPD, mulpd, SIMD_F64) X(DIVPD, divpd, SIMD_F64)     \
        X(MAXPS, maxps, SIMD_FP) X(MINPS, minps, SIMD_FP) X(MAXPD, maxpd, SIMD_FP) X(MINPD, minpd, SIMD_FP)         \
        X(ADDSUBPS, addsubps, SIMD_F32) X(ADDSUBPD, addsubpd, SIMD_F64)                                             \
        X(HADDPS, haddps, SIMD_F32) X(HADDPD, haddpd, SIMD_F64)                                                     \
        X(HSUBPS, hsubps, SIMD_F32) X(HSUBPD, hsubpd, SIMD_F64)

/* d = op(b) */
#define ROWS_UNARY(X) X(SQRTPS, sqrtps, SIMD_FP) X(SQRTPD, sqrtpd, SIMD_FP)

/* d = op(a, b) in the lowest element, the others from a */
#define ROWS_SCALAR(X)                                                                                              \
        X(ADDSS, addss, SIMD_SCALAR_F32) X(SUBSS, subss, SIMD_SCALAR_F32)                                           \
        X(MULSS, mulss, SIMD_SCALAR_F32) X(DIVSS, divss, SIMD_SCALAR_F32)                                           \
        X(ADDSD, addsd, SIMD_SCALAR_F64) X(SUBSD, subsd, SIMD_SCALAR_F64)                                           \
        X(MULSD, mulsd, SIMD_SCALAR_F64) X(DIVSD, divsd, SIMD_SCALAR_F64)                                           \
        X(MAXSS, maxss, SIMD_FP) X(MINSS, minss, SIMD_FP) X(MAXSD, maxsd, SIMD_FP) X(MINSD, minsd, SIMD_FP)         \
        X(SQRTSS, sqrtss, SIMD_FP) X(SQRTSD, sqrtsd, SIMD_FP)                                                       \
        X(CVTSS2SD, cvtss2sd, SIMD_FP) X(CVTSD2SS, cvtsd2ss, SIMD_SCALAR_F32)

#define K_PACKED(N, n, fp) KERNEL_SSE(n) KERNEL_AVX(n)
#define K_UNARY(N, n, fp) KERNEL_SSE(n) KERNEL_AVX_UNARY(n)
#define K_SCALAR(N, n, fp) KERNEL_SSE(n)

ROWS_PACKED(K_PACKED)
ROWS_UNARY(K_UNARY)
ROWS_SCALAR(K_SCALAR)

#define ALL(X) ROWS_PACKED(X) ROWS_UNARY(X) ROWS_SCALAR(X)
#define NUMBER(N, n, fp) ROW_##N,
enum { ALL(NUMBER) ROWS };

static const struct simd_row rows[ROWS] = {
#define ROW(N, n, kind) [ROW_##N] = { .sse = sse_##n, .avx = avx_##n, .fp = kind },
        ROWS_PACKED(ROW) ROWS_UNARY(ROW)
#undef ROW
#define ROW(N, n, kind) [ROW_##N] = { .sse = sse_##n, .fp = kind },
        ROWS_SCALAR(ROW)
};

static const uint8_t row_index[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
#define INDEX(N, n, fp) [ZYDIS_MNEMONIC_##N] = ROW_##N + 1, [ZYDIS_MNEMONIC_V##N] = ROW_##N + 1,
        ALL(INDEX)
};

/* (U)COMISx: ZF, PF and CF as LAHF has them; nothing is written when an unmasked exception is raised. */
#define COMPARE(name)                                                                                               \
        static uint64_t compare_##name(const void *a, const void *b)                                                \
        {                                                                                                           \
                uint64_t flags;                                                                                     \
                                                                                                                    \
                __asm__ volatile("movdqu (%[a]), %%xmm0\n\tmovdqu (%[b]), %%xmm1\n\t" #name " %%xmm1, %%xmm0\n\t"   \
                                 "lahf\n\tmovzbl %%ah, %%eax"                                                       \
                                 : "=&a"(flags)                                                                     \
                                 : [a] "r"(a), [b] "r"(b)                                                           \
                                 : "xmm0", "xmm1", "cc", "memory");                                                 \
                return flags & (X86_FLAG_CF | X86_FLAG_PF | X86_FLAG_ZF);                                           \
        }
COMPARE(comiss)
COMPARE(comisd)
COMPARE(ucomiss)
COMPARE(ucomisd)

typedef uint64_t compare_fn(const void *a, const void *b);

static const struct insn *compare(struct x86_cpu *cpu, const struct insn *i, const void *b)
{
        uint64_t flags;

        simd_fp_begin(cpu);
        flags = ((compare_fn *)i->aux)(simd_reg(cpu, i->reg[0]), b);
        simd_fp_end(cpu, SIMD_FP, NULL, 0);
        simd_set_flags(cpu, flags);
        NEXT;
}

static const struct insn *compare_reg(struct x86_cpu *cpu, const struct insn *i)
{
        return compare(cpu, i, simd_reg(cpu, i->reg[1]));
}

static const struct insn *compare_mem(struct x86_cpu *cpu, const struct insn *i)
{
        union x86_vector buffer;

        return compare(cpu, i, simd_source_any(cpu, i, &buffer));
}

static compare_fn *compare_of(ZydisMnemonic mnemonic)
{
        switch (mnemonic) {
        case ZYDIS_MNEMONIC_COMISS:
        case ZYDIS_MNEMONIC_VCOMISS:
                return compare_comiss;
        case ZYDIS_MNEMONIC_COMISD:
        case ZYDIS_MNEMONIC_VCOMISD:
                return compare_comisd;
        case ZYDIS_MNEMONIC_UCOMISS:
        case ZYDIS_MNEMONIC_VUCOMISS:
                return compare_ucomiss;
        case ZYDIS_MNEMONIC_UCOMISD:
        case ZYDIS_MNEMONIC_VUCOMISD:
                return compare_ucomisd;
        default:
                return NULL;
        }
}

insn_fn simd_bind_float(struct insn *i, const struct decoded *d)
{
        const struct simd_row *row = SIMD_LOOKUP(row_index, rows, d->z->mnemonic);
        compare_fn *fn;

        if (row)
                return simd_bind_row(i, d, row);
        fn = compare_of(d->z->mnemonic);
        if (!fn)
                return NULL;
        i->aux = (void *)fn;
        return i->flags & INSN_MEMORY ? compare_mem : compare_reg;
}
