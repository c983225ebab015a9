/*
 * Fused multiply-add, all 20 operations in their three operand orders: the destination is a source too.
 *
 * Source: SDM vol. 2C "VFMADD132PD …"; vol. 1 §14.5.
 */
#include "cpu/x86/simd.h"

#define FMA_KERNEL(prefix, name, load, r, store) SIMD_KERNEL(prefix##_##name, load, "v" #name " %%" r "2, %%" r "1, %%" r "0", store)
#define PACKED(name) FMA_KERNEL(vex, name, LOAD_FMA_VEX, "xmm", STORE_VEX) FMA_KERNEL(avx, name, LOAD_FMA_AVX, "ymm", STORE_AVX)
#define SCALAR(name) FMA_KERNEL(vex, name, LOAD_FMA_VEX, "xmm", STORE_VEX)

#define ORDERS(X, OP, op, T, t, kind)                                                                                \
        X(OP##132##T, op##132##t, kind) X(OP##213##T, op##213##t, kind) X(OP##231##T, op##231##t, kind)
#define ROWS_PACKED(X)                                                                                               \
        ORDERS(X, FMADD, fmadd, PS, ps, SIMD_F32) ORDERS(X, FMADD, fmadd, PD, pd, SIMD_F64)                          \
        ORDERS(X, FMSUB, fmsub, PS, ps, SIMD_F32) ORDERS(X, FMSUB, fmsub, PD, pd, SIMD_F64)                          \
        ORDERS(X, FNMADD, fnmadd, PS, ps, SIMD_F32) ORDERS(X, FNMADD, fnmadd, PD, pd, SIMD_F64)                      \
        ORDERS(X, FNMSUB, fnmsub, PS, ps, SIMD_F32) ORDERS(X, FNMSUB, fnmsub, PD, pd, SIMD_F64)                      \
        ORDERS(X, FMADDSUB, fmaddsub, PS, ps, SIMD_F32) ORDERS(X, FMADDSUB, fmaddsub, PD, pd, SIMD_F64)              \
        ORDERS(X, FMSUBADD, fmsubadd, PS, ps, SIMD_F32) ORDERS(X, FMSUBADD, fmsubadd, PD, pd, SIMD_F64)
#define ROWS_SCALAR(X)                                                                                               \
        ORDERS(X, FMADD, fmadd, SS, ss, SIMD_SCALAR_F32) ORDERS(X, FMADD, fmadd, SD, sd, SIMD_SCALAR_F64)            \
        ORDERS(X, FMSUB, fmsub, SS, ss, SIMD_SCALAR_F32) ORDERS(X, FMSUB, fmsub, SD, sd, SIMD_SCALAR_F64)            \
        ORDERS(X, FNMADD, fnmadd, SS, ss, SIMD_SCALAR_F32) ORDERS(X, FNMADD, fnmadd, SD, sd, SIMD_SCALAR_F64)        \
        ORDERS(X, FNMSUB, fnmsub, SS, ss, SIMD_SCALAR_F32) ORDERS(X, FNMSUB, fnmsub, SD, sd, SIMD_SCALAR_F64)

#define K_PACKED(N, n, kind) PACKED(n)
#define K_SCALAR(N, n, kind) SCALAR(n)
ROWS_PACKED(K_PACKED)
ROWS_SCALAR(K_SCALAR)

#define NUMBER(N, n, kind) ROW_##N,
enum { ROWS_PACKED(NUMBER) ROWS_SCALAR(NUMBER) ROWS };

static const struct simd_row rows[ROWS] = {
#define ROW(N, n, kind) [ROW_##N] = { .vex = vex_##n, .avx = avx_##n, .fp = kind },
        ROWS_PACKED(ROW)
#undef ROW
#define ROW(N, n, kind) [ROW_##N] = { .vex = vex_##n, .fp = kind },
        ROWS_SCALAR(ROW)
};

static const uint8_t row_index[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
#define INDEX(N, n, kind) [ZYDIS_MNEMONIC_V##N] = ROW_##N + 1,
        ROWS_PACKED(INDEX) ROWS_SCALAR(INDEX)
};

insn_fn simd_bind_fma(struct insn *i, const struct decoded *d)
{
        const struct simd_row *row = SIMD_LOOKUP(row_index, rows, d->z->mnemonic);

        return row ? simd_bind_row(i, d, row) : NULL;
}
