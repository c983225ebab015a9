/*
 * Saving and restoring floating-point and vector state: FXSAVE, FXRSTOR, XSAVE, XSAVEOPT, XSAVEC, XRSTOR, and MXCSR.
 *
 * Components: x87 (0), SSE (1), AVX (2), as XCR0 allows. XINUSE is worked out by comparing with the initial values, so the init
 * optimisation of XSAVEOPT and XSAVEC is the largest possible; the modified optimisation is not made. Supervisor components
 * (XSAVES) are not offered.
 *
 * Source: SDM vol. 1 §13 (XSAVE feature set), §10.5 (FXSAVE), vol. 2 of each instruction; KVM API "KVM_GET_XSAVE".
 */
#include <errno.h>

#include "cpu/x86/bytes.h"
#include "cpu/x86/fpu.h"
#include "cpu/x86/simd.h"

#define FPU (&cpu->s.fpu)

/* Offsets in the legacy region, SDM vol. 1 table 10-2. */
enum { FX_FCW = 0, FX_FSW = 2, FX_FTW = 4, FX_FOP = 6, FX_FIP = 8, FX_FDP = 16, FX_MXCSR = 24, FX_MXCSR_MASK = 28, FX_ST = 32, FX_XMM = 160 };

/* The first 24 and the 128 bytes of ST registers; wide: pointers of 64 bits (REX.W). */
static void put_x87(const struct x86_fpu *fpu, uint8_t *area, bool wide)
{
        put16(area + FX_FCW, fpu->fcw);
        put16(area + FX_FSW, fpu->fsw);
        area[FX_FTW] = fpu->ftw;
        area[FX_FTW + 1] = 0;
        put16(area + FX_FOP, fpu->fop);
        put64(area + FX_FIP, wide ? fpu->fip : (uint32_t)fpu->fip | (uint64_t)fpu->fcs << 32);
        put64(area + FX_FDP, wide ? fpu->fdp : (uint32_t)fpu->fdp | (uint64_t)fpu->fds << 32);
        for (unsigned n = 0, top = fpu_top(fpu); n < 8; n++) {
                memcpy(area + FX_ST + n * 16, fpu->r[(top + n) & 7], 10);
                memset(area + FX_ST + n * 16 + 10, 0, 6);
        }
}

static void get_x87(struct x86_fpu *fpu, const uint8_t *area, bool wide)
{
        fpu->fcw = get16(area + FX_FCW);
        fpu->fsw = get16(area + FX_FSW);
        fpu->ftw = area[FX_FTW];
        fpu->fop = get16(area + FX_FOP) & 0x7ff;
        fpu->fip = wide ? get64(area + FX_FIP) : get32(area + FX_FIP);
        fpu->fdp = wide ? get64(area + FX_FDP) : get32(area + FX_FDP);
        fpu->fcs = wide ? 0 : get16(area + FX_FIP + 4);
        fpu->fds = wide ? 0 : get16(area + FX_FDP + 4);
        for (unsigned n = 0, top = fpu_top(fpu); n < 8; n++)
                memcpy(fpu->r[(top + n) & 7], area + FX_ST + n * 16, 10);
        fpu_normalise(fpu);
}

static void put_xmm(const struct x86_fpu *fpu, uint8_t *area, unsigned count)
{
        for (unsigned n = 0; n < count; n++)
                memcpy(area + FX_XMM + n * 16, &fpu->ymm[n], 16);
}

static void get_xmm(struct x86_fpu *fpu, const uint8_t *area, unsigned count)
{
        for (unsigned n = 0; n < count; n++)
                memcpy(&fpu->ymm[n], area + FX_XMM + n * 16, 16);
}

static void put_upper(const struct x86_fpu *fpu, uint8_t *area, unsigned count)
{
        for (unsigned n = 0; n < count; n++)
                memcpy(area + n * 16, &fpu->ymm[n].u64[2], 16);
}

static void get_upper(struct x86_fpu *fpu, const uint8_t *area, unsigned count)
{
        for (unsigned n = 0; n < count; n++)
                memcpy(&fpu->ymm[n].u64[2], area + n * 16, 16);
}

static void init_x87(struct x86_fpu *fpu)
{
        fpu_init_x87(fpu);
        memset(fpu->r, 0, sizeof(fpu->r));
}

static void init_xmm(struct x86_fpu *fpu, unsigned count)
{
        for (unsigned n = 0; n < count; n++)
                fpu->ymm[n].u64[0] = fpu->ymm[n].u64[1] = 0;
}

static void init_upper(struct x86_fpu *fpu, unsigned count)
{
        for (unsigned n = 0; n < count; n++)
                simd_zero_upper(&fpu->ymm[n]);
}

/* The vector registers that this mode's instructions reach. */
static unsigned registers(const struct x86_cpu *cpu)
{
        return cpu->mode64 ? 16 : 8;
}

void fpu_to_fxsave(const struct x86_fpu *fpu, uint8_t area[512])
{
        memset(area, 0, 512);
        put_x87(fpu, area, true);
        put32(area + FX_MXCSR, fpu->mxcsr);
        put32(area + FX_MXCSR_MASK, MXCSR_VALID);
        put_xmm(fpu, area, 16);
}

void x86_fpu_to_xsave(const struct x86_state *state, uint8_t area[FPU_XSAVE_BYTES])
{
        fpu_to_fxsave(&state->fpu, area);
        memset(area + FPU_XSAVE_HEADER, 0, 64);
        put64(area + FPU_XSAVE_HEADER, FPU_XCR0_X87 | FPU_XCR0_SSE | FPU_XCR0_AVX);
        put_upper(&state->fpu, area + FPU_XSAVE_AVX, 16);
}

int x86_fpu_from_xsave(struct x86_state *state, const uint8_t *area, size_t size_bytes, struct err *err)
{
        struct x86_fpu *fpu = &state->fpu;
        uint64_t present;

        if (size_bytes < FPU_XSAVE_BYTES)
                return err_set(err, -EINVAL, "an XSAVE image of %zu bytes, needs %u", size_bytes, FPU_XSAVE_BYTES);
        present = get64(area + FPU_XSAVE_HEADER);
        if (get64(area + FPU_XSAVE_HEADER + 8))
                return err_set(err, -EINVAL, "a compacted XSAVE image");
        if (get32(area + FX_MXCSR) & ~MXCSR_VALID)
                return err_set(err, -EINVAL, "an XSAVE image with reserved bits in MXCSR (%#x)", get32(area + FX_MXCSR));
        if (present & FPU_XCR0_X87)
                get_x87(fpu, area, true);
        else
                init_x87(fpu);
        if (present & FPU_XCR0_SSE)
                get_xmm(fpu, area, 16);
        else
                init_xmm(fpu, 16);
        if (present & FPU_XCR0_AVX)
                get_upper(fpu, area + FPU_XSAVE_AVX, 16);
        else
                init_upper(fpu, 16);
        fpu->mxcsr = present & (FPU_XCR0_SSE | FPU_XCR0_AVX) ? get32(area + FX_MXCSR) : MXCSR_DEFAULT;
        return 0;
}

/* ---- FXSAVE, FXRSTOR, MXCSR; imm2: pointers of 64 bits ---- */

/* #GP(0), before the address is looked at in any other way. */
static void check_alignment(struct x86_cpu *cpu, const struct insn *i, unsigned alignment)
{
        if (!insn_aligned(cpu, i, alignment))
                x86_gp0(cpu);
}

HANDLER(fxsave)
{
        unsigned bytes = FX_XMM + registers(cpu) * 16;
        uint8_t area[512];
        uint64_t linear;

        check_alignment(cpu, i, 16);
        linear = insn_linear(cpu, i, 512, true);
        put_x87(FPU, area, i->imm2);
        put32(area + FX_MXCSR, FPU->mxcsr);
        put32(area + FX_MXCSR_MASK, MXCSR_VALID);
        put_xmm(FPU, area, registers(cpu));
        mmu_probe_write(cpu, linear, sizeof(area));
        mmu_write_bytes(cpu, linear, area, bytes);
        return i + 1;
}

HANDLER(fxrstor)
{
        uint8_t area[512];
        uint64_t linear;

        check_alignment(cpu, i, 16);
        linear = insn_linear(cpu, i, 512, false);
        mmu_read_bytes(cpu, linear, area, sizeof(area));
        if (get32(area + FX_MXCSR) & ~MXCSR_VALID)
                x86_gp0(cpu);
        get_x87(FPU, area, i->imm2);
        FPU->mxcsr = get32(area + FX_MXCSR);
        get_xmm(FPU, area, registers(cpu));
        return i + 1;
}

HANDLER(ldmxcsr)
{
        uint32_t value = mmu_read32(cpu, insn_linear(cpu, i, 4, false));

        if (value & ~MXCSR_VALID)
                x86_gp0(cpu);
        FPU->mxcsr = value;
        return i + 1;
}

HANDLER(stmxcsr)
{
        mmu_write32(cpu, insn_linear(cpu, i, 4, true), FPU->mxcsr);
        return i + 1;
}

/* ---- XSAVE ---- */

static uint64_t requested(const struct x86_cpu *cpu)
{
        return cpu->s.xcr0 & (cpu->s.gpr[X86_RDX] << 32 | (uint32_t)cpu->s.gpr[X86_RAX]) &
               (FPU_XCR0_X87 | FPU_XCR0_SSE | FPU_XCR0_AVX);
}

static uint64_t in_use(const struct x86_cpu *cpu)
{
        const struct x86_fpu *fpu = FPU;
        uint64_t low = 0, high = 0, used = 0, st = 0;

        for (unsigned n = 0; n < registers(cpu); n++) {
                low |= fpu->ymm[n].u64[0] | fpu->ymm[n].u64[1];
                high |= fpu->ymm[n].u64[2] | fpu->ymm[n].u64[3];
        }
        for (unsigned n = 0; n < 8; n++)
                st |= get64(fpu->r[n]) | get16(fpu->r[n] + 8);
        if (fpu->fcw != FPU_FCW_DEFAULT || fpu->fsw || fpu->ftw || fpu->fop || fpu->fip || fpu->fdp || fpu->fcs || fpu->fds || st)
                used |= FPU_XCR0_X87;
        if (low)
                used |= FPU_XCR0_SSE;
        if (high)
                used |= FPU_XCR0_AVX;
        return used;
}

static uint64_t xsave_linear(struct x86_cpu *cpu, const struct insn *i, uint64_t components, bool write)
{
        check_alignment(cpu, i, 64);
        return insn_linear(cpu, i, components & FPU_XCR0_AVX ? FPU_XSAVE_BYTES : FPU_XSAVE_AVX, write);
}

/* Writes the components of `what`, and MXCSR when asked; the header is the caller's. */
static void xsave_components(struct x86_cpu *cpu, const struct insn *i, uint64_t linear, uint64_t what, bool mxcsr)
{
        uint8_t area[FPU_XSAVE_AVX], upper[256];
        unsigned count = registers(cpu);

        /* All that will be written, and no more, before the first of it. */
        if (what & FPU_XCR0_X87 || mxcsr)
                mmu_probe_write(cpu, linear, FX_XMM);
        if (what & FPU_XCR0_SSE)
                mmu_probe_write(cpu, linear + FX_XMM, count * 16);
        if (what & FPU_XCR0_AVX)
                mmu_probe_write(cpu, linear + FPU_XSAVE_AVX, count * 16);
        if (what & FPU_XCR0_X87) {
                put_x87(FPU, area, i->imm2);
                mmu_write_bytes(cpu, linear, area, FX_MXCSR);
                mmu_write_bytes(cpu, linear + FX_ST, area + FX_ST, 128);
        }
        if (mxcsr)
                mmu_write64(cpu, linear + FX_MXCSR, FPU->mxcsr | (uint64_t)MXCSR_VALID << 32);
        if (what & FPU_XCR0_SSE) {
                put_xmm(FPU, area, count);
                mmu_write_bytes(cpu, linear + FX_XMM, area + FX_XMM, count * 16);
        }
        if (what & FPU_XCR0_AVX) {
                put_upper(FPU, upper, count);
                mmu_write_bytes(cpu, linear + FPU_XSAVE_AVX, upper, count * 16);
        }
}

static const struct insn *xsave_standard(struct x86_cpu *cpu, const struct insn *i, bool optimise)
{
        uint64_t rfbm = requested(cpu), used = in_use(cpu), linear = xsave_linear(cpu, i, rfbm, true), header;

        mmu_probe_write(cpu, linear + FPU_XSAVE_HEADER, 8);
        header = mmu_read64(cpu, linear + FPU_XSAVE_HEADER);
        xsave_components(cpu, i, linear, optimise ? rfbm & used : rfbm, rfbm & (FPU_XCR0_SSE | FPU_XCR0_AVX));
        mmu_write64(cpu, linear + FPU_XSAVE_HEADER, (header & ~rfbm) | (used & rfbm));
        return i + 1;
}

HANDLER(xsave)
{
        return xsave_standard(cpu, i, false);
}

HANDLER(xsaveopt)
{
        return xsave_standard(cpu, i, true);
}

/* The only component beyond the legacy region is AVX, so it stands at the same place in the compacted format. */
HANDLER(xsavec)
{
        uint64_t rfbm = requested(cpu), used = in_use(cpu) & rfbm, linear = xsave_linear(cpu, i, rfbm, true);
        uint64_t header[2];

        if (rfbm & FPU_XCR0_SSE && FPU->mxcsr != MXCSR_DEFAULT)
                used |= FPU_XCR0_SSE;
        header[0] = used;
        header[1] = rfbm | UINT64_C(1) << 63;
        mmu_probe_write(cpu, linear + FPU_XSAVE_HEADER, sizeof(header));
        xsave_components(cpu, i, linear, used, used & FPU_XCR0_SSE);
        mmu_write_bytes(cpu, linear + FPU_XSAVE_HEADER, header, sizeof(header));
        return i + 1;
}

/* SDM vol. 1 §13.8.1, §13.8.2: what makes an image invalid. */
static bool header_valid(const struct x86_cpu *cpu, const uint64_t header[8], bool compacted)
{
        uint64_t rest = 0;

        for (unsigned n = 2; n < (compacted ? 8 : 3); n++)
                rest |= header[n];
        if (rest)
                return false;
        if (!compacted)
                return !(header[0] & ~cpu->s.xcr0) && !header[1];
        return !(header[1] & ~(UINT64_C(1) << 63) & ~cpu->s.xcr0) && !(header[0] & ~header[1]);
}

HANDLER(xrstor)
{
        uint64_t rfbm = requested(cpu), linear = xsave_linear(cpu, i, rfbm, false), load;
        unsigned count = registers(cpu);
        uint8_t area[FPU_XSAVE_BYTES];
        uint64_t header[8];
        uint32_t mxcsr = FPU->mxcsr;
        bool compacted;

        mmu_read_bytes(cpu, linear, area, FPU_XSAVE_AVX);
        memcpy(header, area + FPU_XSAVE_HEADER, sizeof(header));
        compacted = header[1] >> 63;
        if (!header_valid(cpu, header, compacted))
                x86_gp0(cpu);
        load = rfbm & header[0];
        if (compacted ? load & FPU_XCR0_SSE : rfbm & (FPU_XCR0_SSE | FPU_XCR0_AVX)) {
                mxcsr = get32(area + FX_MXCSR);
                if (mxcsr & ~MXCSR_VALID)
                        x86_gp0(cpu);
        } else if (compacted && rfbm & FPU_XCR0_SSE) {
                mxcsr = MXCSR_DEFAULT;
        }
        if (rfbm & FPU_XCR0_AVX && (!compacted || header[1] & FPU_XCR0_AVX)) /* touched also when it is initial */
                mmu_read_bytes(cpu, linear + FPU_XSAVE_AVX, area + FPU_XSAVE_AVX, count * 16);
        FPU->mxcsr = mxcsr;
        if (load & FPU_XCR0_X87)
                get_x87(FPU, area, i->imm2);
        else if (rfbm & FPU_XCR0_X87)
                init_x87(FPU);
        if (load & FPU_XCR0_SSE)
                get_xmm(FPU, area, count);
        else if (rfbm & FPU_XCR0_SSE)
                init_xmm(FPU, count);
        if (load & FPU_XCR0_AVX)
                get_upper(FPU, area + FPU_XSAVE_AVX, count);
        else if (rfbm & FPU_XCR0_AVX)
                init_upper(FPU, count);
        return i + 1;
}

insn_fn fpu_state_bind(struct insn *i, const struct decoded *d)
{
        i->imm2 = d->z->operand_width == 64;
        switch (d->z->mnemonic) {
        case ZYDIS_MNEMONIC_FXSAVE:
        case ZYDIS_MNEMONIC_FXSAVE64:
                return fxsave;
        case ZYDIS_MNEMONIC_FXRSTOR:
        case ZYDIS_MNEMONIC_FXRSTOR64:
                return fxrstor;
        case ZYDIS_MNEMONIC_LDMXCSR:
        case ZYDIS_MNEMONIC_VLDMXCSR:
                return ldmxcsr;
        case ZYDIS_MNEMONIC_STMXCSR:
        case ZYDIS_MNEMONIC_VSTMXCSR:
                return stmxcsr;
        case ZYDIS_MNEMONIC_XSAVE:
        case ZYDIS_MNEMONIC_XSAVE64:
                return xsave;
        case ZYDIS_MNEMONIC_XSAVEOPT:
        case ZYDIS_MNEMONIC_XSAVEOPT64:
                return xsaveopt;
        case ZYDIS_MNEMONIC_XSAVEC:
        case ZYDIS_MNEMONIC_XSAVEC64:
                return xsavec;
        case ZYDIS_MNEMONIC_XRSTOR:
        case ZYDIS_MNEMONIC_XRSTOR64:
                return xrstor;
        default:
                return NULL;
        }
}
