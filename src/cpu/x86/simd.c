/*
 * Vector instructions: choosing a handler, and the handlers of everything that is "destination = op(sources)".
 *
 * Which state a family needs (CR0.EM, CR0.TS, CR4.OSFXSR, CR4.OSXSAVE, XCR0) is part of the mode that blocks are found by, so
 * it is decided once, when the instruction is bound: then #UD or #NM is what the instruction is. Order of the checks and which
 * family has which: SDM vol. 2A §2.4 (exception classes of VEX instructions), vol. 3B §23.25 (tables for MMX, SSE).
 *
 * The names of the handlers below say: encoding (sse: legacy, upper half kept; vex: 128 bits, upper half cleared; avx: 256
 * bits; mmx), whether MXCSR takes part (fp), and where the second source is (reg, mem, imm).
 */
#include "cpu/x86/cpuid.h"
#include "cpu/x86/simd.h"

/* Whether one of n elements is a denormal; a format's masks are those of its exponent and fraction. */
static bool any_denormal(const uint8_t *out, unsigned n, unsigned bytes, uint64_t exponent, uint64_t fraction)
{
        for (unsigned k = 0; k < n; k++) {
                uint64_t value = 0;

                memcpy(&value, out + k * bytes, bytes);
                if (!(value & exponent) && value & fraction)
                        return true;
        }
        return false;
}

static bool tiny(enum simd_fp fp, const void *out, unsigned bytes)
{
        switch (fp) {
        case SIMD_F16:
                return any_denormal(out, bytes / 2, 2, 0x7c00, 0x3ff);
        case SIMD_F32:
        case SIMD_SCALAR_F32:
                return any_denormal(out, fp == SIMD_F32 ? bytes / 4 : 1, 4, 0x7f800000, 0x7fffff);
        case SIMD_F64:
        case SIMD_SCALAR_F64:
                return any_denormal(out, fp == SIMD_F64 ? bytes / 8 : 1, 8, UINT64_C(0x7ff) << 52, (UINT64_C(1) << 52) - 1);
        default:
                return false;
        }
}

void simd_fp_flags(struct x86_cpu *cpu, uint32_t host, enum simd_fp fp, const void *out, unsigned bytes)
{
        uint32_t guest = cpu->s.fpu.mxcsr, unmasked = ~(guest >> 7) & MXCSR_FLAGS, flags = host & MXCSR_FLAGS;

        if ((host & ~MXCSR_FLAGS) != MXCSR_DEFAULT)
                __builtin_ia32_ldmxcsr(MXCSR_DEFAULT | (guest & MXCSR_FLAGS));
        if (unlikely(unmasked)) {
                /* Unmasked underflow is raised for exact tiny results too (SDM vol. 1 §4.9.1.5), which masked is silent. */
                if (unmasked & MXCSR_UE && tiny(fp, out, bytes))
                        flags |= MXCSR_UE;
                /* Invalid, denormal and divide-by-zero are found before anything is computed (§11.5.2). */
                if (flags & unmasked & 7)
                        flags &= 7;
        }
        cpu->s.fpu.mxcsr = guest | flags;
        if (unlikely(flags & unmasked))
                x86_raise(cpu, cpu->s.cr4 & X86_CR4_OSXMMEXCPT ? X86_XM : X86_UD, 0);
}

/* ---- handlers of rows ---- */

static inline simd_kernel *kernel_of(const struct insn *i)
{
        return (simd_kernel *)i->aux;
}

#define SOURCE_REG const void *b = simd_reg(cpu, i->reg[2])
#define SOURCE_MEM                \
        union x86_vector buffer;  \
        const void *b = simd_source_any(cpu, i, &buffer)
#define SOURCE_ALIGNED            \
        union x86_vector buffer;  \
        const void *b = simd_source(cpu, simd_aligned(cpu, i, 16, false), 16, &buffer)
#define SOURCE_IMM                \
        union x86_vector buffer = { .u64 = { (uint8_t)i->imm } }; \
        const void *b = &buffer

/*
 * Handlers whose locals are passed by address go back to the run loop instead of on to the next handler, which would make their
 * frames pile up.
 */
#define LOOP return i + 1

#define ROW_HANDLER(name, SOURCE, GO, result)                                          \
        static const struct insn *name(struct x86_cpu *cpu, const struct insn *i)      \
        {                                                                              \
                SOURCE;                                                                \
                union x86_vector *d = simd_reg(cpu, i->reg[0]);                        \
                const void *a = simd_reg(cpu, i->reg[1]);                              \
                                                                                       \
                result;                                                                \
                GO;                                                                    \
        }

#define DIRECT kernel_of(i)(d, a, b, (unsigned)i->imm)
/* An unmasked exception leaves the destination as it was, so the result waits in out. */
#define CHECKED(bytes)                                                                 \
        union x86_vector out = *d;                                                     \
                                                                                       \
        simd_fp_begin(cpu);                                                            \
        kernel_of(i)(&out, a, b, (unsigned)i->imm);                                    \
        simd_fp_end(cpu, i->imm2, &out, bytes)

#define HANDLERS(where, SOURCE, GO)                                                    \
        ROW_HANDLER(sse_##where, SOURCE, GO, DIRECT)                                   \
        ROW_HANDLER(vex_##where, SOURCE, GO, DIRECT; simd_zero_upper(d))               \
        ROW_HANDLER(avx_##where, SOURCE, GO, DIRECT)                                   \
        ROW_HANDLER(sse_fp_##where, SOURCE, LOOP, CHECKED(16); simd_set128(d, &out))   \
        ROW_HANDLER(vex_fp_##where, SOURCE, LOOP, CHECKED(16); simd_set_vex128(d, &out)) \
        ROW_HANDLER(avx_fp_##where, SOURCE, LOOP, CHECKED(32); *d = out)

HANDLERS(reg, SOURCE_REG, NEXT)
HANDLERS(mem, SOURCE_MEM, LOOP)
ROW_HANDLER(sse_aligned, SOURCE_ALIGNED, LOOP, DIRECT)
ROW_HANDLER(sse_fp_aligned, SOURCE_ALIGNED, LOOP, CHECKED(16); simd_set128(d, &out))
ROW_HANDLER(sse_imm, SOURCE_IMM, LOOP, DIRECT)
ROW_HANDLER(vex_imm, SOURCE_IMM, LOOP, DIRECT; simd_zero_upper(d))
ROW_HANDLER(avx_imm, SOURCE_IMM, LOOP, DIRECT)

static const struct insn *mmx_run(struct x86_cpu *cpu, const struct insn *i, uint64_t b)
{
        uint64_t a = mmx_get(cpu, i->reg[1]), out;

        kernel_of(i)(&out, &a, &b, (unsigned)i->imm);
        mmx_enter(cpu);
        mmx_set(cpu, i->reg[0], out);
        return i + 1;
}

static const struct insn *mmx_reg(struct x86_cpu *cpu, const struct insn *i)
{
        x87_check_pending(cpu);
        return mmx_run(cpu, i, mmx_get(cpu, i->reg[2]));
}

static const struct insn *mmx_mem(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t linear;

        x87_check_pending(cpu);
        linear = insn_linear(cpu, i, i->memory_size, false);
        return mmx_run(cpu, i, i->memory_size == 4 ? mmu_read32(cpu, linear) : mmu_read64(cpu, linear));
}

static const struct insn *mmx_imm(struct x86_cpu *cpu, const struct insn *i)
{
        x87_check_pending(cpu);
        return mmx_run(cpu, i, (uint8_t)i->imm);
}

/* ---- binding ---- */

static bool is_mmx(const ZydisDecodedOperand *o)
{
        return o->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(o->reg.value) == ZYDIS_REGCLASS_MMX;
}

/* The order of simd.h from that of the explicit operands: legacy forms have the destination as first source. */
static void order_operands(struct insn *i, const struct decoded *d, bool count)
{
        unsigned n = d->z->operand_count_visible;

        n -= d->operand[n - 1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
        if (n + count >= 3)
                return;
        i->reg[2] = i->reg[1];
        i->reg[1] = i->reg[0];
}

static insn_fn pick(const insn_fn by_encoding[3], bool vex, bool wide)
{
        return by_encoding[wide ? 2 : vex];
}

insn_fn simd_bind_row(struct insn *i, const struct decoded *d, const struct simd_row *row)
{
        static const insn_fn integer[4][3] = {
                { sse_reg, vex_reg, avx_reg }, { sse_mem, vex_mem, avx_mem }, { sse_aligned, vex_mem, avx_mem }, { sse_imm, vex_imm, avx_imm },
        };
        static const insn_fn checked[4][3] = {
                { sse_fp_reg, vex_fp_reg, avx_fp_reg }, { sse_fp_mem, vex_fp_mem, avx_fp_mem }, { sse_fp_aligned, vex_fp_mem, avx_fp_mem },
                { NULL }, /* floating point has no counts */
        };
        bool vex = i->flags & INSN_VEX, wide = vex && row->avx && d->z->raw.vex.L;
        bool memory = i->flags & INSN_MEMORY;
        bool immediate = row->count && d->operand[d->z->operand_count_visible - 1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
        unsigned where = immediate ? 3 : !memory ? 0 : i->memory_size == 16 ? 2 : 1;
        simd_kernel *kernel;

        order_operands(i, d, immediate);
        i->imm2 = row->fp;
        if (is_mmx(&d->operand[0])) {
                i->aux = (void *)row->mmx;
                return !row->mmx ? NULL : immediate ? mmx_imm : memory ? mmx_mem : mmx_reg;
        }
        kernel = wide ? row->avx : vex && row->vex ? row->vex : row->sse;
        if (!kernel)
                return NULL;
        i->aux = (void *)kernel;
        return pick(row->fp == SIMD_INT ? integer[where] : checked[where], vex, wide);
}

static const struct insn *raise_ud(struct x86_cpu *cpu, const struct insn *i)
{
        x86_ud(cpu);
}

static const struct insn *raise_nm(struct x86_cpu *cpu, const struct insn *i)
{
        x86_raise(cpu, X86_NM, 0);
}

/* The CPUID feature of each instruction set that this family has; false for a set that it does not know. */
static bool feature_of(const struct decoded *d, bool vex, unsigned *feature)
{
        switch (d->z->meta.isa_set) {
        case ZYDIS_ISA_SET_PENTIUMMMX:
                *feature = X86_F_MMX;
                return true;
        case ZYDIS_ISA_SET_SSE:
        case ZYDIS_ISA_SET_SSEMXCSR:
                *feature = X86_F_SSE;
                return true;
        case ZYDIS_ISA_SET_FXSAVE:
        case ZYDIS_ISA_SET_FXSAVE64:
                *feature = X86_F_FXSR;
                return true;
        case ZYDIS_ISA_SET_SSE2:
        case ZYDIS_ISA_SET_SSE2MMX:
                *feature = X86_F_SSE2;
                return true;
        case ZYDIS_ISA_SET_SSE3:
                *feature = X86_F_SSE3;
                return true;
        case ZYDIS_ISA_SET_SSSE3:
        case ZYDIS_ISA_SET_SSSE3MMX:
                *feature = X86_F_SSSE3;
                return true;
        case ZYDIS_ISA_SET_SSE4:
                *feature = X86_F_SSE41;
                return true;
        case ZYDIS_ISA_SET_SSE42:
                *feature = X86_F_SSE42;
                return true;
        case ZYDIS_ISA_SET_AES:
        case ZYDIS_ISA_SET_AVXAES:
                *feature = X86_F_AES;
                return true;
        case ZYDIS_ISA_SET_PCLMULQDQ:
                *feature = X86_F_PCLMUL;
                return true;
        case ZYDIS_ISA_SET_AVX:
                *feature = d->z->mnemonic == ZYDIS_MNEMONIC_VPCLMULQDQ ? X86_F_PCLMUL : X86_F_AVX;
                return true;
        case ZYDIS_ISA_SET_AVX2:
        case ZYDIS_ISA_SET_AVX2GATHER:
                *feature = X86_F_AVX2;
                return true;
        case ZYDIS_ISA_SET_F16C:
                *feature = X86_F_F16C;
                return true;
        case ZYDIS_ISA_SET_FMA:
                *feature = X86_F_FMA;
                return true;
        case ZYDIS_ISA_SET_XSAVE:
                *feature = X86_F_XSAVE;
                return true;
        case ZYDIS_ISA_SET_XSAVEC:
                *feature = X86_F_XSAVEC;
                return true;
        case ZYDIS_ISA_SET_XSAVEOPT:
                *feature = X86_F_XSAVEOPT;
                return true;
        default:
                return false;
        }
}

/* FXSAVE, XSAVE and MXCSR's instructions have rules of their own; MOVNTI touches no vector state. */
static insn_fn state_gate(struct x86_cpu *cpu, const struct decoded *d, insn_fn fn)
{
        switch (d->z->meta.isa_set) {
        case ZYDIS_ISA_SET_FXSAVE:
        case ZYDIS_ISA_SET_FXSAVE64:
                return cpu->mode_key & (MODE_CR0_EM | MODE_CR0_TS) ? raise_nm : fn;
        case ZYDIS_ISA_SET_XSAVE:
        case ZYDIS_ISA_SET_XSAVEC:
        case ZYDIS_ISA_SET_XSAVEOPT:
                return !(cpu->mode_key & MODE_OSXSAVE) ? raise_ud : cpu->mode_key & MODE_CR0_TS ? raise_nm : fn;
        default:
                break;
        }
        return d->z->mnemonic == ZYDIS_MNEMONIC_MOVNTI ? fn : NULL;
}

static insn_fn mode_gate(struct x86_cpu *cpu, const struct insn *i, const struct decoded *d, insn_fn fn)
{
        insn_fn special = state_gate(cpu, d, fn);
        bool pure_mmx = true, mmx = false;

        if (special)
                return special;
        if (i->flags & INSN_VEX) {
                if (!(cpu->mode_key & MODE_AVX) || !(cpu->mode_key & MODE_PROTECTED))
                        return raise_ud;
        } else {
                for (unsigned k = 0; k < d->z->operand_count_visible; k++) {
                        mmx |= is_mmx(&d->operand[k]);
                        pure_mmx &= d->operand[k].type != ZYDIS_OPERAND_TYPE_REGISTER ||
                                    ZydisRegisterGetClass(d->operand[k].reg.value) != ZYDIS_REGCLASS_XMM;
                }
                pure_mmx &= mmx || d->z->mnemonic == ZYDIS_MNEMONIC_EMMS;
                if (cpu->mode_key & MODE_CR0_EM || (!pure_mmx && !(cpu->mode_key & MODE_OSFXSR)))
                        return raise_ud;
        }
        return cpu->mode_key & MODE_CR0_TS ? raise_nm : fn;
}

insn_fn simd_bind(struct x86_cpu *cpu, struct insn *i, const struct decoded *d)
{
        static insn_fn (*const topics[])(struct insn *, const struct decoded *) = {
                simd_bind_move, simd_bind_integer, simd_bind_float, simd_bind_immediate, simd_bind_lane, simd_bind_convert,
                simd_bind_fma, simd_bind_masked, simd_bind_string, simd_bind_mmx, fpu_state_bind,
        };
        bool vex = d->z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
        unsigned feature;
        insn_fn fn = NULL;

        if ((!vex && d->z->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) || !feature_of(d, vex, &feature) || !x86_has(cpu, feature) ||
            (vex && !x86_has(cpu, X86_F_AVX)))
                return NULL;
        for (unsigned k = 0; k < ARRAY_SIZE(topics) && !fn; k++)
                fn = topics[k](i, d);
        return fn ? mode_gate(cpu, i, d, fn) : NULL;
}
