/*
 * Whether two outcomes of a case are the same, and what to say when they are not.
 *
 * Compared are general registers, RFLAGS but for undefined bits, RIP, the exception with its error code and address, x87, SSE and
 * AVX state, and all data memory. Not compared: FOP, FIP and FDP (whether a processor updates them without an exception is its
 * own affair, SDM vol. 1 §8.1.8). The rest of this file are the places where the manual lets processors differ.
 */
#include "tests/diff/diff.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>

#include "cpu/x86/state.h"

static const char *const gpr_names[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                           "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15" };

/* The number of the instruction whose exception ended the case natively; the last one when none did. */
static unsigned number_of(const struct pair *pair)
{
        for (unsigned n = 0; n < pair->c->count && pair->native->vector >= 0; n++)
                if (pair->c->insn[n].address == pair->native->after.rip)
                        return n;
        return pair->c->count - 1;
}

static const struct code *at(const struct pair *pair)
{
        return &pair->c->insn[number_of(pair)];
}

static bool same_bytes(const struct pair *pair, unsigned from, unsigned to)
{
        return !memcmp(pair->native->after.xsave + from, pair->other->after.xsave + from, to - from);
}

static bool same_floating(const struct pair *pair)
{
        if (!same_bytes(pair, 0, 5) || !same_bytes(pair, 24, 28) || !same_bytes(pair, 160, 416) || !same_bytes(pair, 576, 832))
                return false;
        for (unsigned n = 0; n < 8; n++)
                if (!same_bytes(pair, 32 + n * 16, 42 + n * 16))
                        return false;
        return true;
}

/* This host stores the return address before it finds that the target is not canonical. */
static bool call_nowhere(const struct pair *pair)
{
        return at(pair)->z.meta.category == ZYDIS_CATEGORY_CALL && pair->native->vector >= 12 && pair->native->vector <= 14;
}

/*
 * How a processor cuts long accesses into pieces, and which of them it does first, is its own affair: it has to be nearby. With addresses
 * of 16 bits, pieces behind 64 KiB may be at its begin, too.
 */
static bool same_place(const struct pair *pair)
{
        const ZydisDecodedInstruction *z = &at(pair)->z;
        uint32_t within = z->address_width == 16 ? UINT16_MAX : UINT32_MAX;
        unsigned memory = 0;

        if (pair->native->cr2 == pair->other->cr2)
                return true;
        for (unsigned n = 0; n < z->operand_count; n++) {
                const ZydisDecodedOperand *o = &at(pair)->operand[n];

                if (o->type != ZYDIS_OPERAND_TYPE_MEMORY)
                        continue;
                memory++;
                if (o->size > 80 || at(pair)->z.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ)
                        return ((pair->native->cr2 - pair->other->cr2) & within) < PAGE || ((pair->other->cr2 - pair->native->cr2) & within) < PAGE;
        }
        return memory > 1;
}

/* Two faults at once (an access that begins on an absent page and ends beyond the canonical half): either may win. */
static bool two_faults(const struct pair *pair)
{
        const uint64_t edge = UINT64_C(0x7fffffffe000);

        return pair->native->vector >= 12 && pair->native->vector <= 14 && pair->other->vector >= 12 &&
               pair->other->vector <= 14 && (pair->native->cr2 >= edge || pair->other->cr2 >= edge || call_nowhere(pair));
}

/* Whether an access that wraps round at 4 GiB is beyond a limit of 4 GiB varies (SDM vol. 3A §5.3). */
static bool wraps(const struct pair *pair)
{
        return pair->c->code32 && pair->native->vector == 14 && (uint32_t)pair->native->cr2 + XSAVE_BYTES < 2 * XSAVE_BYTES &&
               (pair->other->vector == 12 || pair->other->vector == 13);
}

/* The code area is writable for the native side alone. */
static bool code_touched(const struct pair *pair)
{
        return pair->other->vector == 14 && pair->other->cr2 >= CODE_BASE && pair->other->cr2 < CODE_BASE + CODE_BYTES;
}

/* The process has memory of its own where ours faults: the sanitizers' shadow is within reach of 32-bit code. */
static bool own_touched(const struct pair *pair)
{
        uint64_t page = pair->other->cr2 & ~(uint64_t)(PAGE - 1);
        unsigned char resident;

        return pair->other->vector == 14 && page - (DATA_BASE - PAGE) >= 6 * PAGE && !mincore((void *)(uintptr_t)page, PAGE, &resident);
}

static bool same_fault(const struct pair *pair)
{
        uint32_t ignore = 0;

        if (pair->native->vector != pair->other->vector && (two_faults(pair) || wraps(pair)))
                return true;
        if (pair->native->vector != pair->other->vector)
                return false;
        if (pair->native->vector != 14)
                return pair->native->vector < 0 || pair->native->error_code == pair->other->error_code;
        if (pair->native->cr2 >= UINT64_C(0x7ffffffff000)) /* the host's kernel is there, or not */
                ignore = 1;
        return same_place(pair) && !((pair->native->error_code ^ pair->other->error_code) & ~ignore);
}

/* A trap (INTO) ends a case behind its instruction: no instruction's number is its address. */
static uint64_t flags_compared(const struct pair *pair)
{
        uint64_t mask = X86_FLAGS_STATUS | X86_FLAG_DF | X86_FLAG_NT | X86_FLAG_ID;
        unsigned n = number_of(pair);

        if (pair->strict)
                return mask;
        return mask &
               ~pair->c->undefined[pair->native->vector >= 0 && pair->c->insn[n].address == pair->native->after.rip ? n : n + 1];
}

/* Results that the manual leaves undefined. */
static bool undefined_result(const struct pair *pair)
{
        const ZydisDecodedInstruction *z = &at(pair)->z;

        switch (z->mnemonic) {
        case ZYDIS_MNEMONIC_SHLD:
        case ZYDIS_MNEMONIC_SHRD:
                return z->operand_width == 16;
        case ZYDIS_MNEMONIC_BSWAP:
                return z->operand_width == 16;
        default:
                return false;
        }
}

/* Some stores across pages are two, of which the first is done when the second faults. */
static bool stored_partly(const struct pair *pair)
{
        return pair->native->vector == 14 &&
               (at(pair)->z.mnemonic == ZYDIS_MNEMONIC_FSTP || at(pair)->z.mnemonic == ZYDIS_MNEMONIC_FBSTP ||
                at(pair)->z.mnemonic == ZYDIS_MNEMONIC_MOVBE);
}

/* An exact tiny product or sum inside of DPPS underflows, unmasked; ours sees only the end. */
static bool dot_product_fault(const struct pair *pair)
{
        ZydisMnemonic mnemonic = at(pair)->z.mnemonic;

        return pair->native->vector == 19 && pair->other->vector < 0 &&
               (mnemonic == ZYDIS_MNEMONIC_DPPS || mnemonic == ZYDIS_MNEMONIC_DPPD || mnemonic == ZYDIS_MNEMONIC_VDPPS ||
                mnemonic == ZYDIS_MNEMONIC_VDPPD);
}

/* These may fault for bytes that their mask leaves out (SDM vol. 2 "MASKMOVDQU"); ours do not. */
static bool mask_fault(const struct pair *pair)
{
        ZydisMnemonic mnemonic = at(pair)->z.mnemonic;

        return pair->native->vector >= 12 && pair->native->vector <= 14 &&
               (mnemonic == ZYDIS_MNEMONIC_MASKMOVQ || mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU ||
                mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU);
}

/* This host makes TOP 0 before an MMX store finds that it faults. */
static bool mmx_store_fault(const struct pair *pair)
{
        const ZydisDecodedOperand *source = &at(pair)->operand[1];

        return pair->native->vector >= 12 && pair->native->vector <= 14 && source->type == ZYDIS_OPERAND_TYPE_REGISTER &&
               ZydisRegisterGetClass(source->reg.value) == ZYDIS_REGCLASS_MMX;
}

/*
 * What a fault leaves behind where the manual leaves it open, or where it hangs on the steps inside an instruction: XRSTOR may
 * have loaded a part; which flags DPPS raises before the unmasked one stops it; PE of an unmasked overflow or underflow.
 */
static bool floating_open(const struct pair *pair)
{
        bool xm = pair->native->vector == 19;

        switch (at(pair)->z.mnemonic) {
        case ZYDIS_MNEMONIC_XRSTOR:
        case ZYDIS_MNEMONIC_XRSTOR64:
                return pair->native->vector >= 0;
        case ZYDIS_MNEMONIC_DPPS:
        case ZYDIS_MNEMONIC_DPPD:
        case ZYDIS_MNEMONIC_VDPPS:
        case ZYDIS_MNEMONIC_VDPPD:
                return xm;
        default:
                return xm && ((pair->native->after.xsave[24] ^ pair->other->after.xsave[24]) == 0x20);
        }
}

/* This host has loaded what comes before the page that is not there. */
static bool popped_partly(const struct pair *pair)
{
        return pair->native->vector >= 12 && pair->native->vector <= 14 &&
               (at(pair)->z.mnemonic == ZYDIS_MNEMONIC_POPA || at(pair)->z.mnemonic == ZYDIS_MNEMONIC_POPAD);
}

static bool same_registers(const struct pair *pair)
{
        unsigned count = popped_partly(pair) ? 0 : pair->c->code32 ? 8 : 16;

        for (unsigned n = 0; n < count; n++)
                if (pair->c->code32 ? (uint32_t)pair->native->after.gpr[n] != (uint32_t)pair->other->after.gpr[n]
                                    : pair->native->after.gpr[n] != pair->other->after.gpr[n])
                        return false;
        return !((pair->native->after.rflags ^ pair->other->after.rflags) & flags_compared(pair));
}

bool pair_memory_open(const struct pair *pair)
{
        return call_nowhere(pair) || stored_partly(pair) || code_touched(pair) || own_touched(pair) || mask_fault(pair) || dot_product_fault(pair);
}

bool pair_same(const struct pair *pair)
{
        if (code_touched(pair) || own_touched(pair) || mask_fault(pair) || dot_product_fault(pair))
                return true;
        if (pair->native->after.rip != pair->other->after.rip || !same_fault(pair))
                return false;
        if (!same_floating(pair) && !mmx_store_fault(pair) && !floating_open(pair))
                return false;
        if (undefined_result(pair))
                return true;
        return same_registers(pair) && (pair_memory_open(pair) || !memcmp(pair->native_data, pair->other_data, DATA_BYTES));
}

/* ---- reports ---- */

static void print_bytes(const uint8_t *bytes, unsigned n)
{
        while (n--)
                printf("%02x", bytes[n]);
}

static void print_state(const char *name, const struct image *image, const struct image *reference)
{
        printf("  %-8s rip=%" PRIx64 " rflags=%" PRIx64, name, image->rip, image->rflags);
        for (unsigned n = 0; n < 16; n++)
                if (!reference || image->gpr[n] != reference->gpr[n])
                        printf(" %s=%" PRIx64, gpr_names[n], image->gpr[n]);
        if (!reference || memcmp(image->xsave, reference->xsave, 5) || memcmp(image->xsave + 24, reference->xsave + 24, 4))
                printf(" fcw=%02x%02x fsw=%02x%02x ftw=%02x mxcsr=%02x%02x", image->xsave[1], image->xsave[0], image->xsave[3],
                       image->xsave[2], image->xsave[4], image->xsave[25], image->xsave[24]);
        for (unsigned n = 0; n < 8; n++) {
                if (reference && !memcmp(image->xsave + 32 + n * 16, reference->xsave + 32 + n * 16, 10))
                        continue;
                printf(" st%u=", n);
                print_bytes(image->xsave + 32 + n * 16, 10);
        }
        for (unsigned n = 0; n < 16; n++) {
                if (reference && !memcmp(image->xsave + 160 + n * 16, reference->xsave + 160 + n * 16, 16) &&
                    !memcmp(image->xsave + 576 + n * 16, reference->xsave + 576 + n * 16, 16))
                        continue;
                printf(" ymm%u=", n);
                print_bytes(image->xsave + 576 + n * 16, 16);
                printf("_");
                print_bytes(image->xsave + 160 + n * 16, 16);
        }
        printf("\n");
}

static void print_outcome(const char *name, const struct outcome *out, const struct image *in)
{
        print_state(name, &out->after, in);
        if (out->vector >= 0)
                printf("           vector=%d error=%x cr2=%" PRIx64 "\n", out->vector, out->error_code, out->cr2);
}

static void print_memory(const struct pair *pair)
{
        unsigned shown = 0;

        for (unsigned n = 0; n < DATA_BYTES && shown < 32; n++) {
                if (pair->native_data[n] == pair->other_data[n])
                        continue;
                if (!shown++)
                        printf("  memory (address native other):");
                printf(" %x:%02x:%02x", DATA_BASE + n, pair->native_data[n], pair->other_data[n]);
        }
        if (shown)
                printf("\n");
}

void pair_print(const struct pair *pair, const char *name)
{
        ZydisMachineMode mode = pair->c->code32 ? ZYDIS_MACHINE_MODE_LONG_COMPAT_32 : ZYDIS_MACHINE_MODE_LONG_64;

        for (unsigned n = 0; n < pair->c->count; n++) {
                const struct code *code = &pair->c->insn[n];
                ZydisDisassembledInstruction text;

                if (ZYAN_FAILED(ZydisDisassembleIntel(mode, code->address, code->bytes, 15, &text)))
                        snprintf(text.text, sizeof(text.text), "?");
                printf("  %08" PRIx64 "  %-56s ", code->address, text.text);
                print_bytes(code->bytes, code->z.length);
                printf("\n");
        }
        print_state("in", &pair->c->in, NULL);
        print_outcome("native", pair->native, &pair->c->in);
        print_outcome(name, pair->other, &pair->c->in);
        print_memory(pair);
}
