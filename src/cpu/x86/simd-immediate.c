/*
 * Vector instructions with an immediate that the host executes itself: the instruction stands here once for each value of the
 * immediate's meaningful bits (simd.h, IMM_KERNEL). Those that only move lanes about are in simd-lane.c.
 *
 * Source: SDM vol. 2.
 */
#include "cpu/x86/simd.h"

IMM_KERNEL_SSE(pshufd, 256)
IMM_KERNEL_SSE(pshufhw, 256)
IMM_KERNEL_SSE(pshuflw, 256)
IMM_KERNEL_SSE(shufps, 256)
IMM_KERNEL_SSE(shufpd, 4)
IMM_KERNEL_SSE(pblendw, 256)
IMM_KERNEL_SSE(blendps, 16)
IMM_KERNEL_SSE(blendpd, 4)
IMM_KERNEL_SSE(mpsadbw, 8)
IMM_KERNEL_SSE(pclmulqdq, 32)
IMM_KERNEL_SSE(aeskeygenassist, 256)
IMM_KERNEL_SSE(dpps, 256)
IMM_KERNEL_SSE(dppd, 64)
IMM_KERNEL_SSE(cmpps, 8)
IMM_KERNEL_SSE(cmppd, 8)
IMM_KERNEL_SSE(cmpss, 8)
IMM_KERNEL_SSE(cmpsd, 8)
IMM_KERNEL_SSE(roundps, 16)
IMM_KERNEL_SSE(roundpd, 16)
IMM_KERNEL_SSE(roundss, 16)
IMM_KERNEL_SSE(roundsd, 16)

IMM_KERNEL_VEX(cmpps, 32)
IMM_KERNEL_VEX(cmppd, 32)
IMM_KERNEL_VEX(cmpss, 32)
IMM_KERNEL_VEX(cmpsd, 32)
IMM_KERNEL_VEX_UNARY(permilps, 256)
IMM_KERNEL_VEX_UNARY(permilpd, 4)

IMM_KERNEL_AVX_UNARY(pshufd, 256)
IMM_KERNEL_AVX_UNARY(pshufhw, 256)
IMM_KERNEL_AVX_UNARY(pshuflw, 256)
IMM_KERNEL_AVX(shufps, 256)
IMM_KERNEL_AVX(shufpd, 16)
IMM_KERNEL_AVX(pblendw, 256)
IMM_KERNEL_AVX(blendps, 256)
IMM_KERNEL_AVX(blendpd, 16)
IMM_KERNEL_AVX(mpsadbw, 64)
IMM_KERNEL_AVX(dpps, 256)
IMM_KERNEL_AVX(cmpps, 32)
IMM_KERNEL_AVX(cmppd, 32)
IMM_KERNEL_AVX_UNARY(roundps, 16)
IMM_KERNEL_AVX_UNARY(roundpd, 16)
IMM_KERNEL_AVX_UNARY(permilps, 256)
IMM_KERNEL_AVX_UNARY(permilpd, 16)
IMM_KERNEL_AVX_UNARY(permq, 256)

/* Selected by a register instead, under the same mnemonic. */
SIMD_KERNEL(vex_permilps_by, LOAD_VEX, "vpermilps %%xmm1, %%xmm0, %%xmm0", STORE_VEX)
SIMD_KERNEL(vex_permilpd_by, LOAD_VEX, "vpermilpd %%xmm1, %%xmm0, %%xmm0", STORE_VEX)
SIMD_KERNEL(avx_permilps_by, LOAD_AVX, "vpermilps %%ymm1, %%ymm0, %%ymm0", STORE_AVX)
SIMD_KERNEL(avx_permilpd_by, LOAD_AVX, "vpermilpd %%ymm1, %%ymm0, %%ymm0", STORE_AVX)

#define BOTH(name, ...)                                                                  \
        {                                                                                \
                ZYDIS_MNEMONIC_##name, ZYDIS_MNEMONIC_V##name, { __VA_ARGS__ }           \
        }
#define VEX(name, ...)                                                                   \
        {                                                                                \
                ZYDIS_MNEMONIC_INVALID, ZYDIS_MNEMONIC_V##name, { __VA_ARGS__ }          \
        }

static const struct {
        uint16_t legacy, vex;
        struct simd_row row;
} table[] = {
        BOTH(PSHUFD, .sse = sse_pshufd, .avx = avx_pshufd),
        BOTH(PSHUFHW, .sse = sse_pshufhw, .avx = avx_pshufhw),
        BOTH(PSHUFLW, .sse = sse_pshuflw, .avx = avx_pshuflw),
        BOTH(SHUFPS, .sse = sse_shufps, .avx = avx_shufps),
        BOTH(SHUFPD, .sse = sse_shufpd, .avx = avx_shufpd),
        BOTH(PBLENDW, .sse = sse_pblendw, .avx = avx_pblendw),
        BOTH(BLENDPS, .sse = sse_blendps, .avx = avx_blendps),
        BOTH(BLENDPD, .sse = sse_blendpd, .avx = avx_blendpd),
        VEX(PBLENDD, .vex = sse_blendps, .avx = avx_blendps),
        BOTH(MPSADBW, .sse = sse_mpsadbw, .avx = avx_mpsadbw),
        BOTH(PCLMULQDQ, .sse = sse_pclmulqdq),
        BOTH(AESKEYGENASSIST, .sse = sse_aeskeygenassist),
        BOTH(DPPS, .sse = sse_dpps, .avx = avx_dpps, .fp = SIMD_F32),
        BOTH(DPPD, .sse = sse_dppd, .fp = SIMD_F64),
        BOTH(CMPPS, .sse = sse_cmpps, .vex = vex_cmpps, .avx = avx_cmpps, .fp = SIMD_FP),
        BOTH(CMPPD, .sse = sse_cmppd, .vex = vex_cmppd, .avx = avx_cmppd, .fp = SIMD_FP),
        BOTH(CMPSS, .sse = sse_cmpss, .vex = vex_cmpss, .fp = SIMD_FP),
        BOTH(CMPSD, .sse = sse_cmpsd, .vex = vex_cmpsd, .fp = SIMD_FP),
        BOTH(ROUNDPS, .sse = sse_roundps, .avx = avx_roundps, .fp = SIMD_FP),
        BOTH(ROUNDPD, .sse = sse_roundpd, .avx = avx_roundpd, .fp = SIMD_FP),
        BOTH(ROUNDSS, .sse = sse_roundss, .fp = SIMD_FP),
        BOTH(ROUNDSD, .sse = sse_roundsd, .fp = SIMD_FP),
        VEX(PERMILPS, .vex = vex_permilps, .avx = avx_permilps),
        VEX(PERMILPD, .vex = vex_permilpd, .avx = avx_permilpd),
        VEX(PERMQ, .avx = avx_permq),
        VEX(PERMPD, .avx = avx_permq),
};

static const struct simd_row permilps_by = { .vex = vex_permilps_by, .avx = avx_permilps_by };
static const struct simd_row permilpd_by = { .vex = vex_permilpd_by, .avx = avx_permilpd_by };

insn_fn simd_bind_immediate(struct insn *i, const struct decoded *d)
{
        const struct simd_row *row = NULL;

        for (unsigned k = 0; k < ARRAY_SIZE(table) && !row; k++)
                if (d->z->mnemonic == table[k].legacy || d->z->mnemonic == table[k].vex)
                        row = &table[k].row;
        if (!row)
                return NULL;
        if (d->operand[d->z->operand_count_visible - 1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
                row = d->z->mnemonic == ZYDIS_MNEMONIC_VPERMILPS ? &permilps_by : &permilpd_by;
        return simd_bind_row(i, d, row);
}
