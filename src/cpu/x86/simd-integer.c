/*
 * Vector integer, logical, shuffle and AES instructions whose result is the host's own: one line each.
 *
 * Each line makes the kernels (simd.h) of one legacy mnemonic, which serve its VEX form too. Source: SDM vol. 2.
 */
#include "cpu/x86/simd.h"

/* d = op(a, b): MMX, SSE, AVX, AVX2 */
#define ROWS_MMX(X)                                                                                                  \
        X(PADDB, paddb) X(PADDW, paddw) X(PADDD, paddd) X(PADDQ, paddq)                                              \
        X(PADDSB, paddsb) X(PADDSW, paddsw) X(PADDUSB, paddusb) X(PADDUSW, paddusw)                                  \
        X(PSUBB, psubb) X(PSUBW, psubw) X(PSUBD, psubd) X(PSUBQ, psubq)                                              \
        X(PSUBSB, psubsb) X(PSUBSW, psubsw) X(PSUBUSB, psubusb) X(PSUBUSW, psubusw)                                  \
        X(PMULHW, pmulhw) X(PMULHUW, pmulhuw) X(PMULLW, pmullw) X(PMULUDQ, pmuludq) X(PMADDWD, pmaddwd)              \
        X(PAND, pand) X(PANDN, pandn) X(POR, por) X(PXOR, pxor)                                                      \
        X(PCMPEQB, pcmpeqb) X(PCMPEQW, pcmpeqw) X(PCMPEQD, pcmpeqd)                                                  \
        X(PCMPGTB, pcmpgtb) X(PCMPGTW, pcmpgtw) X(PCMPGTD, pcmpgtd)                                                  \
        X(PACKSSDW, packssdw) X(PACKSSWB, packsswb) X(PACKUSWB, packuswb)                                            \
        X(PUNPCKLBW, punpcklbw) X(PUNPCKLWD, punpcklwd) X(PUNPCKLDQ, punpckldq)                                      \
        X(PUNPCKHBW, punpckhbw) X(PUNPCKHWD, punpckhwd) X(PUNPCKHDQ, punpckhdq)                                      \
        X(PAVGB, pavgb) X(PAVGW, pavgw) X(PSADBW, psadbw)                                                            \
        X(PMAXSW, pmaxsw) X(PMAXUB, pmaxub) X(PMINSW, pminsw) X(PMINUB, pminub)                                      \
        X(PHADDW, phaddw) X(PHADDD, phaddd) X(PHADDSW, phaddsw)                                                      \
        X(PHSUBW, phsubw) X(PHSUBD, phsubd) X(PHSUBSW, phsubsw)                                                      \
        X(PMADDUBSW, pmaddubsw) X(PMULHRSW, pmulhrsw) X(PSHUFB, pshufb)                                              \
        X(PSIGNB, psignb) X(PSIGNW, psignw) X(PSIGND, psignd)

/* d = op(b): MMX, SSE, AVX, AVX2 */
#define ROWS_MMX_UNARY(X) X(PABSB, pabsb) X(PABSW, pabsw) X(PABSD, pabsd)

/* Shifts: b is the count, 128 bits whatever the width */
#define ROWS_SHIFT(X)                                                                                                \
        X(PSLLW, psllw) X(PSLLD, pslld) X(PSLLQ, psllq) X(PSRLW, psrlw) X(PSRLD, psrld) X(PSRLQ, psrlq)              \
        X(PSRAW, psraw) X(PSRAD, psrad)

/* d = op(a, b): SSE, AVX, AVX2 */
#define ROWS_SSE(X)                                                                                                  \
        X(PUNPCKLQDQ, punpcklqdq) X(PUNPCKHQDQ, punpckhqdq) X(PACKUSDW, packusdw)                                    \
        X(PCMPEQQ, pcmpeqq) X(PCMPGTQ, pcmpgtq) X(PMULDQ, pmuldq) X(PMULLD, pmulld)                                  \
        X(PMAXSB, pmaxsb) X(PMAXSD, pmaxsd) X(PMAXUW, pmaxuw) X(PMAXUD, pmaxud)                                      \
        X(PMINSB, pminsb) X(PMINSD, pminsd) X(PMINUW, pminuw) X(PMINUD, pminud)                                      \
        X(ANDPS, andps) X(ANDPD, andpd) X(ANDNPS, andnps) X(ANDNPD, andnpd)                                          \
        X(ORPS, orps) X(ORPD, orpd) X(XORPS, xorps) X(XORPD, xorpd)                                                  \
        X(UNPCKLPS, unpcklps) X(UNPCKLPD, unpcklpd) X(UNPCKHPS, unpckhps) X(UNPCKHPD, unpckhpd)

/* d = op(a, b), 128 bits only; the estimates signal nothing (SDM: SIMD floating-point exceptions none) */
#define ROWS_SSE_128(X)                                                                                              \
        X(AESENC, aesenc) X(AESENCLAST, aesenclast) X(AESDEC, aesdec) X(AESDECLAST, aesdeclast)                      \
        X(RCPSS, rcpss) X(RSQRTSS, rsqrtss)

/* d = op(b): SSE, AVX */
#define ROWS_SSE_UNARY(X)                                                                                            \
        X(MOVDDUP, movddup) X(MOVSHDUP, movshdup) X(MOVSLDUP, movsldup) X(RCPPS, rcpps) X(RSQRTPS, rsqrtps)

/* d = op(b), 128 bits only */
#define ROWS_SSE_UNARY_128(X) X(PHMINPOSUW, phminposuw) X(AESIMC, aesimc)

/* d = op(b), b is half of d or less */
#define ROWS_WIDEN(X)                                                                                                \
        X(PMOVSXBW, pmovsxbw) X(PMOVSXBD, pmovsxbd) X(PMOVSXBQ, pmovsxbq)                                            \
        X(PMOVSXWD, pmovsxwd) X(PMOVSXWQ, pmovsxwq) X(PMOVSXDQ, pmovsxdq)                                            \
        X(PMOVZXBW, pmovzxbw) X(PMOVZXBD, pmovzxbd) X(PMOVZXBQ, pmovzxbq)                                            \
        X(PMOVZXWD, pmovzxwd) X(PMOVZXWQ, pmovzxwq) X(PMOVZXDQ, pmovzxdq)

/* d = op(a, b), VEX only */
#define ROWS_VEX(X)                                                                                                  \
        X(PSLLVD, psllvd) X(PSLLVQ, psllvq) X(PSRLVD, psrlvd) X(PSRLVQ, psrlvq) X(PSRAVD, psravd)

/* d = op(b), VEX only, b an element */
#define ROWS_BROADCAST(X)                                                                                            \
        X(PBROADCASTB, pbroadcastb) X(PBROADCASTW, pbroadcastw) X(PBROADCASTD, pbroadcastd)                          \
        X(PBROADCASTQ, pbroadcastq) X(BROADCASTSS, broadcastss)

#define K_MMX(N, n) KERNEL_SSE(n) KERNEL_AVX(n) KERNEL_MMX(n)
#define K_MMX_UNARY(N, n) KERNEL_SSE(n) KERNEL_AVX_UNARY(n) KERNEL_MMX(n)
#define K_SHIFT(N, n) KERNEL_SSE(n) KERNEL_AVX_COUNT(n) KERNEL_MMX(n)
#define K_SSE(N, n) KERNEL_SSE(n) KERNEL_AVX(n)
#define K_SSE_128(N, n) KERNEL_SSE(n)
#define K_SSE_UNARY(N, n) KERNEL_SSE(n) KERNEL_AVX_UNARY(n)
#define K_WIDEN(N, n) KERNEL_SSE(n) KERNEL_AVX_WIDEN(n)
#define K_VEX(N, n) KERNEL_VEX(n) KERNEL_AVX(n)
#define K_BROADCAST(N, n) KERNEL_VEX_UNARY(n) KERNEL_AVX_WIDEN(n)

ROWS_MMX(K_MMX)
ROWS_MMX_UNARY(K_MMX_UNARY)
ROWS_SHIFT(K_SHIFT)
ROWS_SSE(K_SSE)
ROWS_SSE_128(K_SSE_128)
ROWS_SSE_UNARY(K_SSE_UNARY)
ROWS_SSE_UNARY_128(K_SSE_128)
ROWS_WIDEN(K_WIDEN)
ROWS_VEX(K_VEX)
ROWS_BROADCAST(K_BROADCAST)
KERNEL_AVX_WIDEN(broadcastsd)
/* The table's lookup of 8 elements: indices come first in the instruction. */
KERNEL_AVX(permd)
KERNEL_AVX(permps)

#define ALL_LEGACY(X) ROWS_MMX(X) ROWS_MMX_UNARY(X) ROWS_SHIFT(X) ROWS_SSE(X) ROWS_SSE_128(X) ROWS_SSE_UNARY(X) \
        ROWS_SSE_UNARY_128(X) ROWS_WIDEN(X)
#define ALL_VEX(X) ROWS_VEX(X) ROWS_BROADCAST(X)

#define NUMBER(N, n) ROW_##N,
enum { ALL_LEGACY(NUMBER) ALL_VEX(NUMBER) ROW_BROADCASTSD, ROW_PERMD, ROW_PERMPS, ROWS };

static const struct simd_row rows[ROWS] = {
#define ROW(N, n) [ROW_##N] = { .sse = sse_##n, .avx = avx_##n, .mmx = mmx_##n },
        ROWS_MMX(ROW) ROWS_MMX_UNARY(ROW)
#undef ROW
#define ROW(N, n) [ROW_##N] = { .sse = sse_##n, .avx = avx_##n, .mmx = mmx_##n, .count = true },
        ROWS_SHIFT(ROW)
#undef ROW
#define ROW(N, n) [ROW_##N] = { .sse = sse_##n, .avx = avx_##n },
        ROWS_SSE(ROW) ROWS_SSE_UNARY(ROW) ROWS_WIDEN(ROW)
#undef ROW
#define ROW(N, n) [ROW_##N] = { .sse = sse_##n },
        ROWS_SSE_128(ROW) ROWS_SSE_UNARY_128(ROW)
#undef ROW
#define ROW(N, n) [ROW_##N] = { .vex = vex_##n, .avx = avx_##n },
        ROWS_VEX(ROW) ROWS_BROADCAST(ROW)
#undef ROW
        [ROW_BROADCASTSD] = { .avx = avx_broadcastsd },
        [ROW_PERMD] = { .avx = avx_permd },
        [ROW_PERMPS] = { .avx = avx_permps },
};

static const uint8_t row_index[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
#define INDEX(N, n) [ZYDIS_MNEMONIC_##N] = ROW_##N + 1, [ZYDIS_MNEMONIC_V##N] = ROW_##N + 1,
        ALL_LEGACY(INDEX)
#undef INDEX
#define INDEX(N, n) [ZYDIS_MNEMONIC_V##N] = ROW_##N + 1,
        ALL_VEX(INDEX) INDEX(BROADCASTSD, ) INDEX(PERMD, ) INDEX(PERMPS, )
};

insn_fn simd_bind_integer(struct insn *i, const struct decoded *d)
{
        const struct simd_row *row = SIMD_LOOKUP(row_index, rows, d->z->mnemonic);

        return row ? simd_bind_row(i, d, row) : NULL;
}
