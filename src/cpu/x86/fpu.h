/*
 * The floating-point state between its forms: struct x86_fpu, FXSAVE and XSAVE images, the x87 environment.
 */
#pragma once

#include "cpu/x86/state.h"

#define FPU_FCW_DEFAULT 0x37fu
#define FPU_FSW_TOP_SHIFT 11
#define FPU_FSW_ES 0x80u
#define FPU_FSW_BUSY 0x8000u

/* Bytes of a standard XSAVE image with x87, SSE and AVX state: legacy region, header, upper halves (SDM vol. 1 §13.4). */
#define FPU_XSAVE_BYTES 832u
#define FPU_XSAVE_HEADER 512u
#define FPU_XSAVE_AVX 576u
#define FPU_XCR0_X87 1u
#define FPU_XCR0_SSE 2u
#define FPU_XCR0_AVX 4u

static inline unsigned fpu_top(const struct x86_fpu *fpu)
{
        return fpu->fsw >> FPU_FSW_TOP_SHIFT & 7;
}

/* What FNINIT does. */
void fpu_init_x87(struct x86_fpu *fpu);
/* Sets the control word's fixed bits, and the error summary from flags and masks: after either was loaded. */
void fpu_normalise(struct x86_fpu *fpu);

/* The 512-byte region of FXSAVE64; reserved bytes are 0. */
void fpu_to_fxsave(const struct x86_fpu *fpu, uint8_t area[512]);

/* A standard XSAVE image as KVM_SET_XSAVE takes it, with all three components present. */
void x86_fpu_to_xsave(const struct x86_state *state, uint8_t area[FPU_XSAVE_BYTES]);
/*
 * The other way, from at least FPU_XSAVE_BYTES; components absent from its header get their initial values. -EINVAL, with the
 * state untouched, when MXCSR has reserved bits set or the image is compacted.
 */
int x86_fpu_from_xsave(struct x86_state *state, const uint8_t *area, size_t size_bytes, struct err *err) _must_check_;
