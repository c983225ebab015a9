/*
 * Differential test of the interpreter against the host's own processor.
 *
 *      diff-forms [--seed N] [--cases N] [--form MNEMONIC] [--model NAME] [--list] [--list-skipped]
 *
 * Cases go round all forms. A mismatch prints the instruction, its bytes, the input and both outputs; the first of each form
 * is printed, and the exit status is 1. Compared are general registers, RFLAGS but for undefined bits, RIP, fault vector, error
 * code and address, x87, SSE and AVX state, and all data memory. Not compared: FOP, FIP and FDP after an instruction (whether
 * a processor updates them without an exception is its own affair, SDM vol. 1 §8.1.8).
 *
 * Limits: 64-bit mode at CPL 3 only; instructions of 32-bit mode alone and privileged ones have tests elsewhere.
 */
#include "diff.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

struct diff {
        struct forms forms;
        struct native *native;
        struct guest *guest;
        ZydisDecoder decoder;
        struct random random;
        uint64_t cases, mismatches, failed_forms, faults;
        uint64_t unproved; /* forms that no case reached, mnemonics that a binder takes without a form */
};

struct one {
        const struct form *form;
        struct code code;
        struct image in, native, guest;
        struct patch patch;
};

static const char *const gpr_names[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                           "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15" };

/* ---- the two memories ---- */

static void data_put(struct diff *d, const struct patch *patch)
{
        if (patch->linear >= DATA_BASE && patch->linear < DATA_BASE + DATA_BYTES) {
                uint64_t at = patch->linear - DATA_BASE;
                size_t n = MIN((uint64_t)patch->size, DATA_BYTES - at);

                memcpy((void *)(uintptr_t)patch->linear, patch->bytes, n);
                memcpy(guest_data(d->guest) + at, patch->bytes, n);
        }
}

static bool data_same(struct diff *d)
{
        return !memcmp((void *)(uintptr_t)DATA_BASE, guest_data(d->guest), DATA_BYTES);
}

static void data_sync(struct diff *d)
{
        memcpy(guest_data(d->guest), (void *)(uintptr_t)DATA_BASE, DATA_BYTES);
}

/* ---- comparison ---- */

static bool same_bytes(const struct one *one, unsigned from, unsigned to)
{
        return !memcmp(one->native.xsave + from, one->guest.xsave + from, to - from);
}

static bool same_floating(const struct one *one)
{
        if (!same_bytes(one, 0, 5) || !same_bytes(one, 24, 28) || !same_bytes(one, 160, 416) || !same_bytes(one, 576, 832))
                return false;
        for (unsigned n = 0; n < 8; n++)
                if (!same_bytes(one, 32 + n * 16, 42 + n * 16))
                        return false;
        return true;
}

/* A jump to a page that is not there: natively the fault comes with the jump done, here the case ends before. */
static bool jumped_away(const struct one *one)
{
        return one->native.vector == 14 && one->native.cr2 == one->native.rip && one->guest.vector < 0;
}

/* This host stores the return address before it finds that the target is not canonical. */
static bool call_nowhere(const struct one *one)
{
        return one->code.z.meta.category == ZYDIS_CATEGORY_CALL && one->native.vector >= 12 && one->native.vector <= 14;
}

/* How a processor cuts long accesses into pieces, and which of them it does first, is its own affair: it has to be nearby. */
static bool same_place(const struct one *one)
{
        const ZydisDecodedInstruction *z = &one->code.z;
        unsigned memory = 0;

        if (one->native.cr2 == one->guest.cr2)
                return true;
        for (unsigned n = 0; n < z->operand_count; n++) {
                const ZydisDecodedOperand *o = &one->code.operand[n];

                if (o->type != ZYDIS_OPERAND_TYPE_MEMORY)
                        continue;
                memory++;
                if (o->size > 80 || one->code.z.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ)
                        return (uint32_t)(one->native.cr2 - one->guest.cr2) < PAGE || (uint32_t)(one->guest.cr2 - one->native.cr2) < PAGE;
        }
        return memory > 1;
}

/* Two faults at once (an access that begins on an absent page and ends beyond the canonical half): either may win. */
static bool two_faults(const struct one *one)
{
        const uint64_t edge = UINT64_C(0x7fffffffe000);

        return one->native.vector >= 12 && one->native.vector <= 14 && one->guest.vector >= 12 && one->guest.vector <= 14 &&
               (one->native.cr2 >= edge || one->guest.cr2 >= edge || call_nowhere(one));
}

/* The code area is writable for the native side alone. */
static bool code_touched(const struct one *one)
{
        return one->guest.vector == 14 && one->guest.cr2 >= CODE_BASE && one->guest.cr2 < CODE_BASE + CODE_BYTES;
}

static bool same_fault(const struct one *one)
{
        uint32_t ignore = 0;

        if (jumped_away(one) || (one->native.vector != one->guest.vector && two_faults(one)))
                return true;
        if (one->native.vector != one->guest.vector)
                return false;
        if (one->native.vector != 14)
                return one->native.vector < 0 || one->native.error_code == one->guest.error_code;
        if (one->native.cr2 >= UINT64_C(0x7ffffffff000)) /* the host's kernel is there, or not */
                ignore = 1;
        return same_place(one) && !((one->native.error_code ^ one->guest.error_code) & ~ignore);
}

static uint64_t flags_compared(const struct one *one)
{
        uint64_t mask = 0x244cd5 & ~UINT64_C(0x40000);

        return one->native.vector < 0 ? mask & ~operands_undefined_flags(&one->code, &one->in) : mask;
}

/* Results that the manual leaves undefined. */
static bool undefined_result(const struct one *one)
{
        const ZydisDecodedInstruction *z = &one->code.z;

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
static bool stored_partly(const struct one *one)
{
        return one->native.vector == 14 && (one->code.z.mnemonic == ZYDIS_MNEMONIC_FSTP || one->code.z.mnemonic == ZYDIS_MNEMONIC_FBSTP ||
                                            one->code.z.mnemonic == ZYDIS_MNEMONIC_MOVBE);
}

/* An exact tiny product or sum inside of DPPS underflows, unmasked; ours sees only the end. */
static bool dot_product_fault(const struct one *one)
{
        ZydisMnemonic mnemonic = one->code.z.mnemonic;

        return one->native.vector == 19 && one->guest.vector < 0 &&
               (mnemonic == ZYDIS_MNEMONIC_DPPS || mnemonic == ZYDIS_MNEMONIC_DPPD || mnemonic == ZYDIS_MNEMONIC_VDPPS ||
                mnemonic == ZYDIS_MNEMONIC_VDPPD);
}

/* These may fault for bytes that their mask leaves out (SDM vol. 2 "MASKMOVDQU"); ours do not. */
static bool mask_fault(const struct one *one)
{
        ZydisMnemonic mnemonic = one->code.z.mnemonic;

        return one->native.vector >= 12 && one->native.vector <= 14 &&
               (mnemonic == ZYDIS_MNEMONIC_MASKMOVQ || mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU || mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU);
}

/* This host makes TOP 0 before an MMX store finds that it faults. */
static bool mmx_store_fault(const struct one *one)
{
        const ZydisDecodedOperand *source = &one->code.operand[1];

        return one->native.vector >= 12 && one->native.vector <= 14 && source->type == ZYDIS_OPERAND_TYPE_REGISTER &&
               ZydisRegisterGetClass(source->reg.value) == ZYDIS_REGCLASS_MMX;
}

static bool memory_differs(const struct one *one)
{
        return call_nowhere(one) || stored_partly(one) || code_touched(one) || mask_fault(one);
}

/*
 * What a fault leaves behind where the manual leaves it open, or where it hangs on the steps inside an instruction: XRSTOR may
 * have loaded a part; which flags DPPS raises before the unmasked one stops it; PE of an unmasked overflow or underflow.
 */
static bool floating_open(const struct one *one)
{
        bool xm = one->native.vector == 19;

        switch (one->code.z.mnemonic) {
        case ZYDIS_MNEMONIC_XRSTOR:
        case ZYDIS_MNEMONIC_XRSTOR64:
                return one->native.vector >= 0;
        case ZYDIS_MNEMONIC_DPPS:
        case ZYDIS_MNEMONIC_DPPD:
        case ZYDIS_MNEMONIC_VDPPS:
        case ZYDIS_MNEMONIC_VDPPD:
                return xm;
        default:
                return xm && ((one->native.xsave[24] ^ one->guest.xsave[24]) == 0x20);
        }
}

static bool same(struct diff *d, const struct one *one)
{
        if (code_touched(one) || mask_fault(one) || dot_product_fault(one))
                return true;
        if (one->native.rip != one->guest.rip || !same_fault(one) || (!same_floating(one) && !mmx_store_fault(one) && !floating_open(one)))
                return false;
        if (undefined_result(one))
                return true;
        return !memcmp(one->native.gpr, one->guest.gpr, sizeof(one->native.gpr)) &&
               !((one->native.rflags ^ one->guest.rflags) & flags_compared(one)) && (data_same(d) || memory_differs(one));
}

/* ---- reports ---- */

static void print_bytes(const uint8_t *bytes, unsigned n)
{
        while (n--)
                printf("%02x", bytes[n]);
}

static void print_state(const char *name, const struct image *image, const struct image *reference)
{
        printf("  %s: rip=%" PRIx64 " rflags=%" PRIx64, name, image->rip, image->rflags);
        if (image->vector >= 0)
                printf(" vector=%d error=%x cr2=%" PRIx64, image->vector, image->error_code, image->cr2);
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

static void print_memory(struct diff *d)
{
        const uint8_t *native = (const uint8_t *)(uintptr_t)DATA_BASE, *guest = guest_data(d->guest);
        unsigned shown = 0;

        for (unsigned n = 0; n < DATA_BYTES && shown < 32; n++) {
                if (native[n] == guest[n])
                        continue;
                if (!shown++)
                        printf("  memory (address native guest):");
                printf(" %x:%02x:%02x", DATA_BASE + n, native[n], guest[n]);
        }
        if (shown)
                printf("\n");
}

static void report(struct diff *d, const struct one *one)
{
        char text[128] = "?";
        ZydisFormatter formatter;

        ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
        ZydisFormatterFormatInstruction(&formatter, &one->code.z, one->code.operand, one->code.z.operand_count_visible, text,
                                        sizeof(text), one->code.address, NULL);
        printf("mismatch: %s  bytes=", text);
        for (unsigned n = 0; n < one->code.z.length; n++)
                printf("%02x", one->code.bytes[n]);
        printf(" form=");
        form_print(one->form);
        print_state("in    ", &one->in, NULL);
        print_state("native", &one->native, &one->in);
        print_state("guest ", &one->guest, &one->in);
        print_memory(d);
}

/* ---- running ---- */

static bool is_branch(const ZydisDecodedInstruction *z)
{
        return z->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE || z->meta.category == ZYDIS_CATEGORY_RET ||
               z->meta.category == ZYDIS_CATEGORY_CALL || z->meta.category == ZYDIS_CATEGORY_COND_BR ||
               z->meta.category == ZYDIS_CATEGORY_UNCOND_BR;
}

/* One case; false for a mismatch. */
static bool run_case(struct diff *d, struct one *one)
{
        /* Now and then across a page boundary. */
        unsigned offset = one_in(&d->random, 16) ? 8u * PAGE - 1 - random_below(&d->random, 14) : 8u * PAGE + random_below(&d->random, 512);

        one->code.address = CODE_BASE + offset;
        for (unsigned tries = 0; !form_encode(one->form, &d->random, &d->decoder, &one->code);)
                if (++tries == 200)
                        return true;
        one->code.branch = is_branch(&one->code.z);
        operands_make(&one->code, &d->random, &one->in, &one->patch);
        data_put(d, &one->patch);
        native_code(d->native, &one->code);
        guest_code(d->guest, &one->code);
        native_run(d->native, &one->code, &one->in, &one->native);
        guest_run(d->guest, &one->code, &one->in, &one->guest);
        d->cases++;
        d->faults += one->native.vector >= 0;
        if (!same(d, one))
                return false;
        if (memory_differs(one))
                data_sync(d);
        return true;
}

static int run(struct diff *d, uint64_t cases, ZydisMnemonic only, unsigned show)
{
        uint8_t *failed = calloc(d->forms.count, 1), *done = calloc(d->forms.count, 1);
        struct one *one = aligned_alloc(64, align_up(sizeof(*one), 64));

        if (!failed || !done || !one) {
                free(failed);
                free(done);
                free(one);
                return -ENOMEM;
        }
        while (d->cases < cases) {
                uint64_t before = d->cases, at;
                bool good;

                for (size_t n = 0; n < d->forms.count && d->cases < cases; n++) {
                        one->form = &d->forms.form[n];
                        if (only && one->form->mnemonic != only)
                                continue;
                        at = d->cases;
                        good = run_case(d, one);
                        done[n] |= d->cases != at;
                        if (good)
                                continue;
                        d->mismatches++;
                        if (failed[n] < show)
                                report(d, one);
                        d->failed_forms += !failed[n];
                        failed[n] += failed[n] < 255;
                        data_sync(d);
                }
                if (d->cases == before)
                        break;
        }
        for (size_t n = 0; n < d->forms.count && !only && cases >= 2 * d->forms.count; n++) {
                if (done[n])
                        continue;
                printf("never encoded: ");
                form_print(&d->forms.form[n]);
                d->unproved++;
        }
        free(failed);
        free(done);
        free(one);
        return 0;
}

static void list(const struct forms *forms)
{
        for (size_t n = 0; n < forms->count; n++)
                form_print(&forms->form[n]);
}

static void list_skipped(const struct forms *forms)
{
        for (unsigned n = 0; n <= ZYDIS_MNEMONIC_MAX_VALUE; n++)
                if (forms->reason[n])
                        printf("%-18s %s%s\n", ZydisMnemonicGetString(n), forms->reason[n], forms->tested[n] ? " (some forms)" : "");
}

/*
 * The other way round: every mnemonic that the interpreter executes, as the binders say for each opcode, has a form or a reason.
 * The opcodes come from the same walk, so this fails only when a form was dropped after it.
 */
static uint64_t bound_without_form(struct diff *d)
{
        uint64_t missing = 0;

        for (unsigned m = 1; m <= ZYDIS_MNEMONIC_MAX_VALUE; m++) {
                if (!d->forms.seen[m] || d->forms.tested[m] || d->forms.reason[m])
                        continue;
                printf("not covered: %s\n", ZydisMnemonicGetString(m));
                missing++;
        }
        return missing;
}

static unsigned mnemonics_tested(const struct forms *forms)
{
        unsigned n = 0;

        for (unsigned m = 0; m <= ZYDIS_MNEMONIC_MAX_VALUE; m++)
                n += forms->tested[m] != 0;
        return n;
}

static ZydisMnemonic mnemonic_of(const char *name)
{
        for (unsigned n = 1; n <= ZYDIS_MNEMONIC_MAX_VALUE; n++)
                if (!strcasecmp(ZydisMnemonicGetString(n), name))
                        return n;
        return ZYDIS_MNEMONIC_INVALID;
}

static double seconds(void)
{
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
        static const struct option options[] = {
                { "seed", required_argument, NULL, 's' }, { "cases", required_argument, NULL, 'c' }, { "form", required_argument, NULL, 'f' },
                { "model", required_argument, NULL, 'm' }, { "list", no_argument, NULL, 'l' }, { "list-skipped", no_argument, NULL, 'k' },
                { "show", required_argument, NULL, 'n' }, { 0 },
        };
        struct diff *d = calloc(1, sizeof(*d));
        struct err err = ERR_INIT;
        const char *model = "max";
        uint64_t seed = 1, cases = 200000;
        ZydisMnemonic only = ZYDIS_MNEMONIC_INVALID;
        int option, action = 0;
        unsigned show = 1;
        double start;

        while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
                switch (option) {
                case 's': seed = strtoull(optarg, NULL, 0); break;
                case 'c': cases = strtoull(optarg, NULL, 0); break;
                case 'm': model = optarg; break;
                case 'n': show = (unsigned)strtoul(optarg, NULL, 0); break;
                case 'f':
                        only = mnemonic_of(optarg);
                        if (!only) {
                                fprintf(stderr, "diff-forms: no mnemonic is called \"%s\"\n", optarg);
                                return 2;
                        }
                        break;
                case 'l':
                case 'k': action = option; break;
                default: return 2;
                }
        }
        if (!d || guest_new(&d->guest, model, &err) < 0 || forms_new(&d->forms, guest_isa_sets(d->guest), &err) < 0) {
                fprintf(stderr, "diff-forms: %s\n", err.text);
                return 1;
        }
        if (action) {
                (action == 'l' ? list : list_skipped)(&d->forms);
                return 0;
        }
        if (native_new(&d->native, &err) < 0) {
                fprintf(stderr, "diff-forms: %s\n", err.text);
                return 1;
        }
        ZydisDecoderInit(&d->decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
        d->random.state = seed;
        start = seconds();
        d->unproved = bound_without_form(d);
        if (run(d, cases, only, show) < 0)
                return 1;
        printf("%" PRIu64 " cases of %zu forms (%u mnemonics), seed %" PRIu64 ": %" PRIu64 " mismatches in %" PRIu64 " forms; %" PRIu64
               " faults; %.0f cases/s\n", d->cases, d->forms.count, mnemonics_tested(&d->forms), seed, d->mismatches, d->failed_forms,
               d->faults, (double)d->cases / (seconds() - start));
        native_free(d->native);
        guest_free(d->guest);
        forms_free(&d->forms);
        option = d->mismatches || d->unproved;
        free(d);
        return option;
}
