/*
 * Fast handlers for what task switches and signals do to the vector registers: XSAVEC64 and XRSTOR64 of all three components, in the
 * compacted format, and XSAVE64 and XRSTOR64 in the standard one, of a guest whose x87 registers are as FNINIT left them and zero.
 *
 * The guest's vector registers are the host's, so the host's XSAVEC or XSAVE writes the image, but for its x87 component, which is
 * absent as it is initial, or written here. The other way the image is checked first, and what was checked is what counts, whatever another
 * processor makes of the memory meanwhile: XRSTOR on it could fault. The registers are loaded one by one, which cannot.
 *
 * Compiled without vector instructions, so that what stands here is all that touches them.
 *
 * Source: Intel SDM vol. 1 §13.4.1 (legacy region), §13.4.3 (compacted format), §13.7 (XSAVE), §13.8 (XRSTOR), §13.10 (XSAVEC); vol. 2 "XSAVEC", "XRSTOR".
 */
#include "cpu/x86/fpu.h"
#include "cpu/x86/simd.h"
#include "cpu/x86/system.h"
#include "cpu/x86/translator-fast.h"

#define ALL (FPU_XCR0_X87 | FPU_XCR0_SSE | FPU_XCR0_AVX)
#define COMPACTED (UINT64_C(1) << 63)
#define ALIGNMENT 64u

/* What is in the image, in words. */
enum { WORD_MXCSR = 24 / 8, WORD_ST = 32 / 8, WORD_XMM = 160 / 8, WORD_BV = FPU_XSAVE_HEADER / 8, WORD_AVX = FPU_XSAVE_AVX / 8 };

static bool x87_initial(const struct x86_fpu *fpu)
{
        uint64_t used = (uint64_t)(fpu->fcw ^ FPU_FCW_DEFAULT) | fpu->fsw | fpu->ftw | fpu->fop | fpu->fcs | fpu->fds | fpu->fip | fpu->fdp;

        for (unsigned n = 0; n < 8; n++) {
                uint64_t low;
                uint16_t high;

                __builtin_memcpy(&low, fpu->r[n], 8);
                __builtin_memcpy(&high, fpu->r[n] + 8, 2);
                used |= low | high;
        }
        return !used;
}

static void x87_make_initial(struct x86_cpu *cpu)
{
        struct x86_fpu *fpu = &cpu->s.fpu;

        if (!cpu->jit.x87_out) {
                __asm__ volatile("fninit");
                cpu->jit.x87_out = 1;
        }
        fpu->fcw = FPU_FCW_DEFAULT;
        fpu->fsw = fpu->ftw = 0;
        fpu->fop = fpu->fcs = fpu->fds = 0;
        fpu->fip = fpu->fdp = 0;
        for (unsigned n = 0; n < 8; n++)
                for (unsigned byte = 0; byte < 16; byte += 8)
                        __builtin_memset(fpu->r[n] + byte, 0, 8);
}

static bool reachable(struct x86_cpu *cpu, uint64_t linear, uint64_t size_bytes, bool write)
{
        return tlb_find(cpu, linear, size_bytes, write) || mmu_fill_fast(cpu, linear, (unsigned)size_bytes, write);
}

/* Where size_bytes lie in the host's memory, in one page or two that are neighbours there as well. */
static void *run_at(struct x86_cpu *cpu, uint64_t linear, uint64_t size_bytes, bool write)
{
        uint64_t first_bytes = MIN(size_bytes, GUEST_PAGE_SIZE - (linear & (GUEST_PAGE_SIZE - 1))), rest_bytes = size_bytes - first_bytes;
        char *at, *rest;

        if (!reachable(cpu, linear, first_bytes, write) || (rest_bytes && !reachable(cpu, linear + first_bytes, rest_bytes, write)))
                return NULL;
        at = tlb_find(cpu, linear, first_bytes, write);
        if (!at || !rest_bytes)
                return at;
        rest = tlb_find(cpu, linear + first_bytes, rest_bytes, write);
        return rest == at + first_bytes ? at : NULL;
}

/* The image, when the instruction is of the kind that is done here. */
static uint64_t *image_at(struct x86_cpu *cpu, const struct insn *i, bool write)
{
        uint64_t linear = insn_offset(cpu, i);
        uint32_t enabled = MODE_OSXSAVE | MODE_OSFXSR | MODE_AVX;

        uint64_t *image;

        if (i->asize != 8 || i->seg >= X86_FS || cpu->lock_step || linear % ALIGNMENT ||
            (cpu->mode_key & (enabled | MODE_CR0_TS | MODE_CR0_EM)) != enabled || (cpu->s.xcr0 & ALL) != ALL ||
            (cpu->s.gpr[X86_RAX] & ALL) != ALL)
                return NULL;
        image = run_at(cpu, linear, FPU_XSAVE_BYTES, write);
        return cpu->jit.vectors_out ? NULL : image;
}

enum fast_result fast_xsavec(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t *image = image_at(cpu, i, true);

        if (!image || !cpu->jit.x87_out || !x87_initial(&cpu->s.fpu))
                return FAST_NO;
        __asm__ volatile("xsavec64 (%0)" ::"r"(image), "a"(FPU_XCR0_SSE | FPU_XCR0_AVX), "d"(0) : "memory");
        image[WORD_BV + 1] = COMPACTED | ALL;
        return FAST_NEXT;
}

/* XSAVE writes the initial values as well; whether they are that says XSTATE_BV. */
enum fast_result fast_xsave(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t *image = image_at(cpu, i, true);

        if (!image || !cpu->jit.x87_out || !x87_initial(&cpu->s.fpu))
                return FAST_NO;
        __asm__ volatile("xsave64 (%0)" ::"r"(image), "a"(FPU_XCR0_SSE | FPU_XCR0_AVX), "d"(0) : "memory");
        image[0] = FPU_FCW_DEFAULT;
        image[1] = image[2] = 0;
        ((uint32_t *)&image[WORD_MXCSR])[1] = MXCSR_VALID;
        for (unsigned n = WORD_ST; n < WORD_XMM; n++)
                image[n] = 0;
        image[WORD_BV] &= ~(uint64_t)FPU_XCR0_X87;
        return FAST_NEXT;
}

static uint64_t word(const uint64_t *image, unsigned n)
{
        return __atomic_load_n(&image[n], __ATOMIC_RELAXED);
}

/* Of 80 bits of each register. */
static bool image_x87_initial(const uint64_t *image)
{
        uint64_t used = (word(image, 0) ^ FPU_FCW_DEFAULT) | word(image, 1) | word(image, 2);

        for (unsigned n = WORD_ST; n < WORD_XMM; n += 2)
                used |= word(image, n) | (word(image, n + 1) & 0xffff);
        return !used;
}

/* Before the first register changes: what may be wrong with the image. The rest of the header is reserved. */
static bool image_plain(const uint64_t *image, uint64_t *present, uint32_t *mxcsr)
{
        uint64_t rest = 0, format = word(image, WORD_BV + 1);

        *present = word(image, WORD_BV);
        *mxcsr = MXCSR_DEFAULT;
        for (unsigned n = 2; n < 8; n++)
                rest |= word(image, WORD_BV + n);
        if (rest || *present & ~(uint64_t)ALL || (format && format != (COMPACTED | ALL)) ||
            (*present & FPU_XCR0_X87 && !image_x87_initial(image)))
                return false;
        if (*present & FPU_XCR0_SSE || !format)
                *mxcsr = (uint32_t)word(image, WORD_MXCSR);
        return !(*mxcsr & ~MXCSR_VALID);
}

#define EACH_REGISTER(one) one(0) one(1) one(2) one(3) one(4) one(5) one(6) one(7) \
        one(8) one(9) one(10) one(11) one(12) one(13) one(14) one(15)
#define LOAD_LOW(n) "vmovups 16*" #n "(%0), %%xmm" #n "\n\t"
#define LOAD_HIGH(n) "vinsertf128 $1, 16*" #n "(%0), %%ymm" #n ", %%ymm" #n "\n\t"

enum fast_result fast_xrstor(struct x86_cpu *cpu, const struct insn *i)
{
        const uint64_t *image = image_at(cpu, i, false);
        uint64_t present;
        uint32_t mxcsr;

        if (!image || !image_plain(image, &present, &mxcsr))
                return FAST_NO;
        x87_make_initial(cpu);
        __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
        if (present & FPU_XCR0_SSE)
                __asm__ volatile("vzeroupper\n\t" EACH_REGISTER(LOAD_LOW)::"r"(image + WORD_XMM) : "memory");
        else
                __asm__ volatile("vzeroall");
        if (present & FPU_XCR0_AVX)
                __asm__ volatile(EACH_REGISTER(LOAD_HIGH)::"r"(image + WORD_AVX) : "memory");
        return FAST_NEXT;
}
