/*
 * The guest's x87 state between s.fpu and the host's x87 unit.
 *
 * Translated code executes x87 and MMX instructions as they are, on the host's own stack, once the state is there: jit.x87_out is 0.
 * Blocks with such instructions look at it at their start; what is not there is brought by a TSITE_X87. From then on it stays until C
 * code that may look at s.fpu or use the x87 unit itself runs (translator_vectors_out()): such code finds it as the ABI wants it,
 * empty and with the default control word.
 *
 * Only states with all exceptions masked go there. So none is ever pending, and no x87 instruction in translated code can fault but
 * for its operand; everything else is the interpreter's. A control word that unmasks one is loaded by its handler.
 *
 * The pointers to the last instruction: emitted code leaves what they are made of in jit.x87_op and jit.x87_page at the end of a
 * block, sites have it for the instructions before them, and the spill makes FOP, FIP and FCS. FDP and FDS are as on processors with
 * CPUID.(7,0).EBX[6] (SDM vol. 1 §8.1.8): an instruction without an unmasked exception need not update them.
 *
 * XSAVE and XRSTOR of the x87 component alone leave the vector registers, which are the guest's too. Source: SDM vol. 1 §13.4, §13.7, §13.8.
 */
#include "cpu/x86/fpu.h"
#include "cpu/x86/translator-internal.h"

/* An XSAVE area as far as the x87 component needs it. */
struct area {
        uint16_t fcw, fsw;
        uint8_t ftw, reserved;
        uint16_t fop;
        uint64_t fip, fdp;
        uint32_t mxcsr, mxcsr_mask;
        uint64_t st[8][2];
        uint64_t xmm[16][2];
        uint64_t available[12];
        uint64_t header[8];
} __attribute__((aligned(64)));
_Static_assert(offsetof(struct area, header) == FPU_XSAVE_HEADER && sizeof(struct area) == 576, "the processor's layout");

#define ALL_MASKED 0x3fu

static void clear_header(struct area *area, uint64_t present)
{
        area->header[0] = present;
        for (unsigned n = 1; n < ARRAY_SIZE(area->header); n++)
                area->header[n] = 0;
}

bool translator_x87_load(struct x86_cpu *cpu)
{
        const struct x86_fpu *fpu = &cpu->s.fpu;
        struct area area;

        if (!cpu->jit.x87_out)
                return true;
        if ((fpu->fcw & ALL_MASKED) != ALL_MASKED || fpu->fsw & FPU_FSW_ES)
                return false;
        area.fcw = fpu->fcw;
        area.fsw = fpu->fsw;
        area.ftw = fpu->ftw;
        area.reserved = 0;
        area.fop = 0;
        area.fip = area.fdp = 0;
        for (unsigned n = 0, top = fpu_top(fpu); n < 8; n++) {
                const uint8_t *from = fpu->r[(top + n) & 7];

                area.st[n][0] = area.st[n][1] = 0;
                __builtin_memcpy(&area.st[n][0], from, 8);
                __builtin_memcpy(&area.st[n][1], from + 8, 2);
        }
        clear_header(&area, FPU_XCR0_X87);
        __asm__ volatile("xrstor64 %0" ::"m"(area), "a"(FPU_XCR0_X87), "d"(0));
        cpu->jit.x87_out = 0;
        cpu->jit.x87_op = 0;
        cpu->jit.x87_fcs = cpu->s.seg[X86_CS].selector;
        return true;
}

void translator_x87_spill(struct x86_cpu *cpu)
{
        struct x86_fpu *fpu = &cpu->s.fpu;
        struct area area;

        clear_header(&area, 0);
        __asm__ volatile("xsave64 %0\n\tfninit" : "+m"(area) : "a"(FPU_XCR0_X87), "d"(0));
        fpu->fcw = area.fcw;
        fpu->fsw = area.fsw;
        fpu->ftw = area.ftw;
        for (unsigned n = 0, top = fpu_top(fpu); n < 8; n++) {
                uint8_t *to = fpu->r[(top + n) & 7];

                __builtin_memcpy(to, &area.st[n][0], 8);
                __builtin_memcpy(to + 8, &area.st[n][1], 2);
        }
        if (cpu->jit.x87_op & TX87_OP_VALID) {
                fpu->fop = cpu->jit.x87_op & 0x7ff;
                fpu->fip = cpu->jit.x87_page + (cpu->jit.x87_op >> TX87_OP_START);
                fpu->fcs = cpu->jit.x87_fcs;
        }
        cpu->jit.x87_out = 1;
}
