/*
 * Inside the vector instructions (simd*.c, fpu-state.c): kernels, rows and the helpers that their handlers share.
 *
 * A kernel is the host's own instruction between loads and a store: it computes d = op(a, b, imm) on 8 (MMX), 16 or 32 bytes.
 * Everything else (operands, memory, alignment, MXCSR, upper halves, faults) is done by a handful of handlers around it. A row
 * says which kernels a mnemonic has. Kernels read and write exactly their width, except that scalar ones read 16 bytes, so
 * that memory operands of fewer than 16 bytes go through a buffer.
 *
 * Operands in struct insn are put in one order by the binder: reg[0] destination, reg[1] first source, reg[2] second source,
 * reg[3] third.
 */
#pragma once

#include "cpu/x86/exec.h"

typedef void simd_kernel(void *d, const void *a, const void *b, unsigned imm);

/* How a row treats MXCSR, and what its results are (an exact denormal matters when underflow is unmasked). */
enum simd_fp { SIMD_INT, SIMD_FP, SIMD_F16, SIMD_F32, SIMD_F64, SIMD_SCALAR_F32, SIMD_SCALAR_F64 };

struct simd_row {
        simd_kernel *sse; /* legacy, and VEX.128 where vex is NULL */
        simd_kernel *vex; /* VEX.128 */
        simd_kernel *avx; /* VEX.256; NULL: VEX.L is ignored */
        simd_kernel *mmx;
        uint8_t fp;       /* enum simd_fp */
        bool count;       /* the second source may be an immediate: shifts */
};

/* One binder a topic: the handler, or NULL when the mnemonic is not of this topic. They look at mnemonics only. */
insn_fn simd_bind_row(struct insn *i, const struct decoded *d, const struct simd_row *row);
insn_fn simd_bind_integer(struct insn *i, const struct decoded *d);
insn_fn simd_bind_float(struct insn *i, const struct decoded *d);
insn_fn simd_bind_immediate(struct insn *i, const struct decoded *d);
insn_fn simd_bind_fma(struct insn *i, const struct decoded *d);
insn_fn simd_bind_move(struct insn *i, const struct decoded *d);
insn_fn simd_bind_lane(struct insn *i, const struct decoded *d);
insn_fn simd_bind_convert(struct insn *i, const struct decoded *d);
insn_fn simd_bind_masked(struct insn *i, const struct decoded *d);
insn_fn simd_bind_string(struct insn *i, const struct decoded *d);
insn_fn simd_bind_mmx(struct insn *i, const struct decoded *d);
insn_fn fpu_state_bind(struct insn *i, const struct decoded *d);

/* ---- operands ---- */

static inline bool simd_has_mmx(const struct decoded *d)
{
        for (unsigned k = 0; k < d->z->operand_count_visible; k++)
                if (d->operand[k].type == ZYDIS_OPERAND_TYPE_REGISTER &&
                    ZydisRegisterGetClass(d->operand[k].reg.value) == ZYDIS_REGCLASS_MMX)
                        return true;
        return false;
}

static inline union x86_vector *simd_reg(struct x86_cpu *cpu, unsigned n)
{
        return &cpu->s.fpu.ymm[n];
}

static inline void simd_zero_upper(union x86_vector *v)
{
        v->u64[2] = v->u64[3] = 0;
}

/* Copies only the lower half, or all 32 bytes; VEX.128 clears the upper half. */
static inline void simd_set128(union x86_vector *to, const void *from)
{
        memcpy(to, from, 16);
}

static inline void simd_set_vex128(union x86_vector *to, const void *from)
{
        memcpy(to, from, 16);
        simd_zero_upper(to);
}

static inline void simd_read(struct x86_cpu *cpu, uint64_t linear, void *to, unsigned size_bytes)
{
        const void *at = tlb_find(cpu, linear, size_bytes, false);

        if (likely(at))
                memcpy(to, at, size_bytes);
        else
                mmu_read_bytes(cpu, linear, to, size_bytes);
}

static inline void simd_write(struct x86_cpu *cpu, uint64_t linear, const void *from, unsigned size_bytes)
{
        void *at = tlb_find(cpu, linear, size_bytes, true);

        if (likely(at))
                memcpy(at, from, size_bytes);
        else
                mmu_write_bytes(cpu, linear, from, size_bytes);
}

/* The linear address of a memory operand of size_bytes that has to be aligned to its size (#GP(0)). */
static inline uint64_t simd_aligned(struct x86_cpu *cpu, const struct insn *i, unsigned size_bytes, bool write)
{
        if (unlikely(!insn_aligned(cpu, i, size_bytes)))
                x86_gp0(cpu);
        return insn_linear(cpu, i, size_bytes, write);
}

/* A source operand in memory of size_bytes (a constant): the bytes themselves when they are plain RAM, else a copy in buffer. */
static inline const void *simd_source(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes, union x86_vector *buffer)
{
        const void *at = tlb_find(cpu, linear, size_bytes, false);

        if (likely(at))
                return at;
        mmu_read_bytes(cpu, linear, buffer, size_bytes);
        return buffer;
}

/* The same for any size the instruction has, zero-extended to a whole register when it is shorter than 16 bytes. */
static inline const void *simd_source_any(struct x86_cpu *cpu, const struct insn *i, union x86_vector *buffer)
{
        uint64_t linear = insn_linear(cpu, i, i->memory_size, false);

        switch (i->memory_size) {
        case 32:
        case 16:
                return simd_source(cpu, linear, i->memory_size, buffer);
        case 8:
                *buffer = (union x86_vector){ .u64 = { mmu_read64(cpu, linear) } };
                return buffer;
        case 4:
                *buffer = (union x86_vector){ .u64 = { mmu_read32(cpu, linear) } };
                return buffer;
        default:
                *buffer = (union x86_vector){ 0 };
                simd_read(cpu, linear, buffer, i->memory_size);
                return buffer;
        }
}

/* ---- MXCSR (SDM vol. 1 §10.2.3, §11.5) ---- */

#define MXCSR_FLAGS 0x3fu
#define MXCSR_UE 0x10u
#define MXCSR_DAZ 0x40u
#define MXCSR_MASKS 0x1f80u
#define MXCSR_UM 0x800u
#define MXCSR_FTZ 0x8000u
#define MXCSR_VALID 0xffffu
#define MXCSR_DEFAULT 0x1f80u

static inline uint32_t host_mxcsr(void)
{
        return __builtin_ia32_stmxcsr();
}

/*
 * The host computes under the guest's rounding and denormal control with all exceptions masked. Between operations the host's
 * sticky flags are left as they are: when they equal the guest's, neither a load nor a merge is needed, which is the usual case.
 * A guest that has exceptions unmasked gets clear flags before every operation, to see which ones it raises.
 */
static inline void simd_fp_begin(const struct x86_cpu *cpu)
{
        uint32_t guest = cpu->s.fpu.mxcsr, want = guest | MXCSR_MASKS;

        if (unlikely(want != guest)) {
                want &= ~MXCSR_FLAGS;
                if (!(guest & MXCSR_UM)) /* flush to zero needs underflow masked */
                        want &= ~MXCSR_FTZ;
        }
        if (unlikely(host_mxcsr() != want))
                __builtin_ia32_ldmxcsr(want);
}

/* Merges flags; raises #XM or #UD for an unmasked one. out: the result of bytes, for the exact denormals of fp. */
void simd_fp_flags(struct x86_cpu *cpu, uint32_t host, enum simd_fp fp, const void *out, unsigned bytes);

static inline void simd_fp_end(struct x86_cpu *cpu, enum simd_fp fp, const void *out, unsigned bytes)
{
        uint32_t host = host_mxcsr();

        if (unlikely(host != cpu->s.fpu.mxcsr || (host & ~MXCSR_FLAGS) != MXCSR_DEFAULT))
                simd_fp_flags(cpu, host, fp, out, bytes);
}

/* All status flags at once: those in set are 1, the others 0. */
static inline void simd_set_flags(struct x86_cpu *cpu, uint64_t set)
{
        x86_set_flags(cpu, (cpu->s.rflags & ~X86_FLAGS_STATUS) | set);
}

/* ---- MMX (SDM vol. 1 §9.5, vol. 3A §12) ---- */

/* Any MMX instruction but EMMS: TOP becomes 0 and every register valid. After the last access that may fault. */
static inline void mmx_enter(struct x86_cpu *cpu)
{
        cpu->s.fpu.fsw &= (uint16_t)~0x3800u;
        cpu->s.fpu.ftw = 0xff;
}

static inline uint64_t mmx_get(const struct x86_cpu *cpu, unsigned n)
{
        uint64_t value;

        memcpy(&value, cpu->s.fpu.r[n & 7], 8);
        return value;
}

static inline void mmx_set(struct x86_cpu *cpu, unsigned n, uint64_t value)
{
        memcpy(cpu->s.fpu.r[n & 7], &value, 8);
        memset(cpu->s.fpu.r[n & 7] + 8, 0xff, 2);
}

/* Raises #MF (or FERR's interrupt) when an unmasked x87 exception is pending; x87.c. */
void x87_check_pending(struct x86_cpu *cpu);

/* ---- kernels ---- */

/* asm text of one instruction without operands; the operand order is AT&T's. */
#define SIMD_ASM(load, text, store)                                                                               \
        __asm__ volatile(load text "\n\t" store                                                                   \
                         :                                                                                        \
                         : [d] "r"(d), [a] "r"(a), [b] "r"(b)                                                     \
                         : "xmm0", "xmm1", "xmm2", "memory")

#define SIMD_KERNEL(name, load, text, store)                                                                      \
        static void name(void *d, const void *a, const void *b, unsigned imm)                                     \
        {                                                                                                         \
                SIMD_ASM(load, text, store);                                                                      \
        }

#define LOAD_SSE "movdqu (%[a]), %%xmm0\n\tmovdqu (%[b]), %%xmm1\n\t"
#define STORE_SSE "movdqu %%xmm0, (%[d])"
#define LOAD_VEX "vmovdqu (%[a]), %%xmm0\n\tvmovdqu (%[b]), %%xmm1\n\t"
#define STORE_VEX "vmovdqu %%xmm0, (%[d])"
#define LOAD_AVX "vmovdqu (%[a]), %%ymm0\n\tvmovdqu (%[b]), %%ymm1\n\t"
#define LOAD_AVX_HALF "vmovdqu (%[a]), %%ymm0\n\tvmovdqu (%[b]), %%xmm1\n\t" /* b is 16 bytes */
#define LOAD_FMA_VEX "vmovdqu (%[d]), %%xmm0\n\tvmovdqu (%[a]), %%xmm1\n\tvmovdqu (%[b]), %%xmm2\n\t"
#define LOAD_FMA_AVX "vmovdqu (%[d]), %%ymm0\n\tvmovdqu (%[a]), %%ymm1\n\tvmovdqu (%[b]), %%ymm2\n\t"
#define STORE_AVX "vmovdqu %%ymm0, (%[d])\n\tvzeroupper"

/* op b, a of 16 bytes, legacy encoding */
#define KERNEL_SSE(name) SIMD_KERNEL(sse_##name, LOAD_SSE, #name " %%xmm1, %%xmm0", STORE_SSE)
/* VEX.128 with two and one sources */
#define KERNEL_VEX(name) SIMD_KERNEL(vex_##name, LOAD_VEX, "v" #name " %%xmm1, %%xmm0, %%xmm0", STORE_VEX)
#define KERNEL_VEX_UNARY(name) SIMD_KERNEL(vex_##name, LOAD_VEX, "v" #name " %%xmm1, %%xmm0", STORE_VEX)
/* VEX.256 */
#define KERNEL_AVX(name) SIMD_KERNEL(avx_##name, LOAD_AVX, "v" #name " %%ymm1, %%ymm0, %%ymm0", STORE_AVX)
#define KERNEL_AVX_UNARY(name) SIMD_KERNEL(avx_##name, LOAD_AVX, "v" #name " %%ymm1, %%ymm0", STORE_AVX)
/* VEX.256 with a source of 128 bits: counts of shifts, widening */
#define KERNEL_AVX_COUNT(name) SIMD_KERNEL(avx_##name, LOAD_AVX_HALF, "v" #name " %%xmm1, %%ymm0, %%ymm0", STORE_AVX)
#define KERNEL_AVX_WIDEN(name) SIMD_KERNEL(avx_##name, LOAD_AVX_HALF, "v" #name " %%xmm1, %%ymm0", STORE_AVX)
/* VEX.256 with a result of 128 bits */
#define KERNEL_AVX_NARROW(name) SIMD_KERNEL(avx_##name, LOAD_AVX, "v" #name " %%ymm1, %%xmm0", STORE_AVX)
/* 8 bytes; leaves the host's x87 registers empty */
#define KERNEL_MMX(name)                                                                                          \
        static void mmx_##name(void *d, const void *a, const void *b, unsigned imm)                               \
        {                                                                                                         \
                __asm__ volatile("movq (%[a]), %%mm0\n\tmovq (%[b]), %%mm1\n\t" #name " %%mm1, %%mm0\n\t"         \
                                 "movq %%mm0, (%[d])\n\temms"                                                     \
                                 :                                                                                \
                                 : [d] "r"(d), [a] "r"(a), [b] "r"(b)                                             \
                                 : "mm0", "mm1", "memory");                                                       \
        }

/*
 * Kernels of instructions with an immediate: the instruction exists once for each value, 16 bytes apart, and the kernel calls
 * the one that imm selects. They are written in assembly as a whole because of the call. Arguments: rdi d, rsi a, rdx b, ecx imm.
 */
#define IMM_1(p, n, q) ".balign 16\n\tendbr64\n\t" p " $" #n ", " q "\n\tret\n\t"
#define IMM_4_(p, a, b, c, d, q) IMM_1(p, a, q) IMM_1(p, b, q) IMM_1(p, c, q) IMM_1(p, d, q)
#define IMM_16_(p, h, q)                                                                                          \
        IMM_4_(p, 0x##h##0, 0x##h##1, 0x##h##2, 0x##h##3, q) IMM_4_(p, 0x##h##4, 0x##h##5, 0x##h##6, 0x##h##7, q) \
        IMM_4_(p, 0x##h##8, 0x##h##9, 0x##h##a, 0x##h##b, q) IMM_4_(p, 0x##h##c, 0x##h##d, 0x##h##e, 0x##h##f, q)
#define IMM_4(p, q) IMM_4_(p, 0, 1, 2, 3, q)
#define IMM_8(p, q) IMM_4_(p, 0, 1, 2, 3, q) IMM_4_(p, 4, 5, 6, 7, q)
#define IMM_16(p, q) IMM_16_(p, 0, q)
#define IMM_32(p, q) IMM_16_(p, 0, q) IMM_16_(p, 1, q)
#define IMM_64(p, q) IMM_32(p, q) IMM_16_(p, 2, q) IMM_16_(p, 3, q)
#define IMM_128(p, q) IMM_64(p, q) IMM_16_(p, 4, q) IMM_16_(p, 5, q) IMM_16_(p, 6, q) IMM_16_(p, 7, q)
#define IMM_256(p, q)                                                                                             \
        IMM_128(p, q) IMM_16_(p, 8, q) IMM_16_(p, 9, q) IMM_16_(p, a, q) IMM_16_(p, b, q) IMM_16_(p, c, q)        \
        IMM_16_(p, d, q) IMM_16_(p, e, q) IMM_16_(p, f, q)

#define IMM_KERNEL(name, count, load, text, operands, store)                                                      \
        extern simd_kernel name __attribute__((visibility("hidden")));                                            \
        __asm__(".text\n\t.balign 16\n\t.type " #name ", @function\n" #name ":\n\tendbr64\n\t" load               \
                "andl $(" #count " - 1), %ecx\n\tleaq 1f(%rip), %rax\n\tshll $4, %ecx\n\taddq %rcx, %rax\n\t"     \
                "call *%rax\n\t" store "\n\tret\n\t.balign 16\n1:\n\t"                                            \
                IMM_##count(text, operands) ".size " #name ", . - " #name "\n\t");

#define IMM_KERNEL_SSE(name, count)                                                                               \
        IMM_KERNEL(sse_##name, count, "movdqu (%rsi), %xmm0\n\tmovdqu (%rdx), %xmm1\n\t", #name,                  \
                   "%xmm1, %xmm0", "movdqu %xmm0, (%rdi)")
#define IMM_KERNEL_VEX(name, count)                                                                               \
        IMM_KERNEL(vex_##name, count, "vmovdqu (%rsi), %xmm0\n\tvmovdqu (%rdx), %xmm1\n\t", "v" #name,            \
                   "%xmm1, %xmm0, %xmm0", "vmovdqu %xmm0, (%rdi)")
#define IMM_KERNEL_VEX_UNARY(name, count)                                                                         \
        IMM_KERNEL(vex_##name, count, "vmovdqu (%rdx), %xmm1\n\t", "v" #name, "%xmm1, %xmm0", "vmovdqu %xmm0, (%rdi)")
#define IMM_KERNEL_AVX(name, count)                                                                               \
        IMM_KERNEL(avx_##name, count, "vmovdqu (%rsi), %ymm0\n\tvmovdqu (%rdx), %ymm1\n\t", "v" #name,            \
                   "%ymm1, %ymm0, %ymm0", "vmovdqu %ymm0, (%rdi)\n\tvzeroupper")
#define IMM_KERNEL_AVX_UNARY(name, count)                                                                         \
        IMM_KERNEL(avx_##name, count, "vmovdqu (%rdx), %ymm1\n\t", "v" #name, "%ymm1, %ymm0",                     \
                   "vmovdqu %ymm0, (%rdi)\n\tvzeroupper")

/* A table of rows by mnemonic: index[mnemonic] is a row's number + 1. */
#define SIMD_LOOKUP(index, rows, mnemonic) ((mnemonic) < ARRAY_SIZE(index) && (index)[mnemonic] ? &(rows)[(index)[mnemonic] - 1] : NULL)
