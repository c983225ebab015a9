/*
 * The integer instructions, each form with random and edge operands, on the host's processor and on ours.
 *
 * A form is a mnemonic, its operands as letters, and the widths it exists in:
 *      r register   m memory   i immediate as wide as the form allows   b immediate of 8 bits   c CL
 *      1 2 4 register or memory (R or M before it) of that many bytes, whatever the form's width: "r1" is written R1
 * Everything that the host's processor shows is compared: registers, all status flags (also those the manual leaves undefined),
 * memory, and the fault with its address.
 *
 * usage: diff-integer [--seed N] [--cases N] [--form MNEMONIC]     (cases a form)
 */
#include "tests/diff/diff.h"

#include <inttypes.h>
#include <stdio.h>
#include <Zydis/Zydis.h>

#define W8 1u
#define W16 2u
#define W32 4u
#define W64 8u
#define WORDS (W16 | W32 | W64)
#define WIDTHS (W8 | WORDS)
#define WIDE (W32 | W64)

struct form {
        ZydisMnemonic mnemonic;
        const char *operands; /* "" none; forms are separated by spaces */
        unsigned widths;
        unsigned flags;       /* enum form_flag */
        enum x86_feature feature; /* 0: every model has it */
};

enum form_flag {
        LOCKABLE = 1,   /* also with LOCK when the first operand is memory */
        BIT_OFFSET = 2, /* the second register is a bit number: keep it small */
        STRING = 4,     /* rSI, rDI in the data, rCX small; with and without REP */
        FRAME = 8,      /* rBP in the stack */
        QUOTIENT = 16,  /* make overflow rare */
};

#define ALU(m) { ZYDIS_MNEMONIC_##m, "rr ri rm mr mi", WIDTHS, LOCKABLE, 0 }
#define UNARY(m) { ZYDIS_MNEMONIC_##m, "r m", WIDTHS, LOCKABLE, 0 }
#define SHIFT(m) { ZYDIS_MNEMONIC_##m, "rb rc mb mc", WIDTHS, 0, 0 }
#define BIT(m) { ZYDIS_MNEMONIC_##m, "rr rb mr mb", WORDS, BIT_OFFSET | LOCKABLE, 0 }
#define CC(m) { ZYDIS_MNEMONIC_CMOV##m, "rr rm", WORDS, 0, 0 }, { ZYDIS_MNEMONIC_SET##m, "r m", W8, 0, 0 }
#define NONE(m) { ZYDIS_MNEMONIC_##m, "", W64, 0, 0 }
#define STR(m) \
        { ZYDIS_MNEMONIC_##m##B, "", W64, STRING, 0 }, { ZYDIS_MNEMONIC_##m##W, "", W64, STRING, 0 }, \
        { ZYDIS_MNEMONIC_##m##D, "", W64, STRING, 0 }, { ZYDIS_MNEMONIC_##m##Q, "", W64, STRING, 0 }

static const struct form forms[] = {
        ALU(ADD),
        ALU(OR),
        ALU(ADC),
        ALU(SBB),
        ALU(AND),
        ALU(SUB),
        ALU(XOR),
        { ZYDIS_MNEMONIC_CMP, "rr ri rm mr mi", WIDTHS, 0, 0 },
        { ZYDIS_MNEMONIC_TEST, "rr ri mr mi", WIDTHS, 0, 0 },
        UNARY(INC),
        UNARY(DEC),
        UNARY(NEG),
        UNARY(NOT),
        SHIFT(ROL),
        SHIFT(ROR),
        SHIFT(RCL),
        SHIFT(RCR),
        SHIFT(SHL),
        SHIFT(SHR),
        SHIFT(SAR),
        { ZYDIS_MNEMONIC_SHLD, "rrb rrc mrb mrc", WORDS, 0, 0 },
        { ZYDIS_MNEMONIC_SHRD, "rrb rrc mrb mrc", WORDS, 0, 0 },
        { ZYDIS_MNEMONIC_MUL, "r m", WIDTHS, 0, 0 },
        { ZYDIS_MNEMONIC_IMUL, "r m", WIDTHS, 0, 0 },
        { ZYDIS_MNEMONIC_IMUL, "rr rm rri rmi rrb rmb", WORDS, 0, 0 },
        { ZYDIS_MNEMONIC_DIV, "r m", WIDTHS, QUOTIENT, 0 },
        { ZYDIS_MNEMONIC_IDIV, "r m", WIDTHS, QUOTIENT, 0 },
        { ZYDIS_MNEMONIC_MOV, "rr ri rm mr mi", WIDTHS, 0, 0 },
        { ZYDIS_MNEMONIC_MOVZX, "rR1 rM1", WORDS, 0, 0 },
        { ZYDIS_MNEMONIC_MOVZX, "rR2 rM2", WIDE, 0, 0 },
        { ZYDIS_MNEMONIC_MOVSX, "rR1 rM1", WORDS, 0, 0 },
        { ZYDIS_MNEMONIC_MOVSX, "rR2 rM2", WIDE, 0, 0 },
        { ZYDIS_MNEMONIC_MOVSXD, "rR4 rM4", W64, 0, 0 },
        { ZYDIS_MNEMONIC_LEA, "rm", WORDS, 0, 0 },
        { ZYDIS_MNEMONIC_BSWAP, "r", WIDE, 0, 0 },
        { ZYDIS_MNEMONIC_MOVBE, "rm mr", WORDS, 0, X86_F_MOVBE },
        { ZYDIS_MNEMONIC_XCHG, "rr mr", WIDTHS, LOCKABLE, 0 },
        { ZYDIS_MNEMONIC_XADD, "rr mr", WIDTHS, LOCKABLE, 0 },
        { ZYDIS_MNEMONIC_CMPXCHG, "rr mr", WIDTHS, LOCKABLE, 0 },
        { ZYDIS_MNEMONIC_CMPXCHG8B, "m", W64, LOCKABLE, 0 },
        { ZYDIS_MNEMONIC_CMPXCHG16B, "X", W64, LOCKABLE, X86_F_CX16 },
        BIT(BTS),
        BIT(BTR),
        BIT(BTC),
        { ZYDIS_MNEMONIC_BT, "rr rb mr mb", WORDS, BIT_OFFSET, 0 },
        { ZYDIS_MNEMONIC_BSF, "rr rm", WORDS, 0, 0 },
        { ZYDIS_MNEMONIC_BSR, "rr rm", WORDS, 0, 0 },
        { ZYDIS_MNEMONIC_TZCNT, "rr rm", WORDS, 0, X86_F_BMI1 },
        { ZYDIS_MNEMONIC_LZCNT, "rr rm", WORDS, 0, X86_F_LZCNT },
        { ZYDIS_MNEMONIC_POPCNT, "rr rm", WORDS, 0, X86_F_POPCNT },
        { ZYDIS_MNEMONIC_CRC32, "rR1 rM1", WIDE, 0, X86_F_SSE42 },
        { ZYDIS_MNEMONIC_CRC32, "rR2 rM2 rR4 rM4", W32, 0, X86_F_SSE42 },
        { ZYDIS_MNEMONIC_CRC32, "rr rm", W64, 0, X86_F_SSE42 },
        CC(O),
        CC(NO),
        CC(B),
        CC(NB),
        CC(Z),
        CC(NZ),
        CC(BE),
        CC(NBE),
        CC(S),
        CC(NS),
        CC(P),
        CC(NP),
        CC(L),
        CC(NL),
        CC(LE),
        CC(NLE),
        { ZYDIS_MNEMONIC_ANDN, "rrr rrm", WIDE, 0, X86_F_BMI1 },
        { ZYDIS_MNEMONIC_BEXTR, "rrr rmr", WIDE, 0, X86_F_BMI1 },
        { ZYDIS_MNEMONIC_BLSI, "rr rm", WIDE, 0, X86_F_BMI1 },
        { ZYDIS_MNEMONIC_BLSMSK, "rr rm", WIDE, 0, X86_F_BMI1 },
        { ZYDIS_MNEMONIC_BLSR, "rr rm", WIDE, 0, X86_F_BMI1 },
        { ZYDIS_MNEMONIC_BZHI, "rrr rmr", WIDE, 0, X86_F_BMI2 },
        { ZYDIS_MNEMONIC_MULX, "rrr rrm", WIDE, 0, X86_F_BMI2 },
        { ZYDIS_MNEMONIC_PDEP, "rrr rrm", WIDE, 0, X86_F_BMI2 },
        { ZYDIS_MNEMONIC_PEXT, "rrr rrm", WIDE, 0, X86_F_BMI2 },
        { ZYDIS_MNEMONIC_RORX, "rrb rmb", WIDE, 0, X86_F_BMI2 },
        { ZYDIS_MNEMONIC_SARX, "rrr rmr", WIDE, 0, X86_F_BMI2 },
        { ZYDIS_MNEMONIC_SHLX, "rrr rmr", WIDE, 0, X86_F_BMI2 },
        { ZYDIS_MNEMONIC_SHRX, "rrr rmr", WIDE, 0, X86_F_BMI2 },
        { ZYDIS_MNEMONIC_ADCX, "rr rm", WIDE, 0, X86_F_ADX },
        { ZYDIS_MNEMONIC_ADOX, "rr rm", WIDE, 0, X86_F_ADX },
        NONE(CBW),
        NONE(CWDE),
        NONE(CDQE),
        NONE(CWD),
        NONE(CDQ),
        NONE(CQO),
        NONE(CLC),
        NONE(STC),
        NONE(CMC),
        NONE(CLD),
        NONE(STD),
        { ZYDIS_MNEMONIC_LAHF, "", W64, 0, X86_F_LAHF },
        { ZYDIS_MNEMONIC_SAHF, "", W64, 0, X86_F_LAHF },
        NONE(NOP),
        NONE(PAUSE),
        NONE(MFENCE),
        NONE(LFENCE),
        NONE(SFENCE),
        { ZYDIS_MNEMONIC_PUSH, "r m", W16 | W64, 0, 0 },
        { ZYDIS_MNEMONIC_PUSH, "i", W32, 0, 0 },
        { ZYDIS_MNEMONIC_POP, "r m", W16 | W64, 0, 0 },
        NONE(PUSHF),
        NONE(PUSHFQ),
        { ZYDIS_MNEMONIC_ENTER, "bb", W64, FRAME, 0 },
        { ZYDIS_MNEMONIC_LEAVE, "", W64, FRAME, 0 },
        STR(MOVS),
        STR(STOS),
        STR(LODS),
        STR(SCAS),
        STR(CMPS),
};

/* ---- random numbers: xorshift*, so that a seed names a run ---- */

static uint64_t random64(uint64_t *seed)
{
        *seed ^= *seed >> 12;
        *seed ^= *seed << 25;
        *seed ^= *seed >> 27;
        return *seed * UINT64_C(0x2545f4914f6cdd1d);
}

static uint64_t below(uint64_t *seed, uint64_t limit)
{
        return random64(seed) % limit;
}

static uint64_t operand_value(uint64_t *seed)
{
        static const uint64_t edges[] = {
                0, 1, 2, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000,
                INT64_MAX, (uint64_t)INT64_MIN, UINT64_MAX, UINT64_MAX - 1, 0xffffffff80000000, 0x8080808080808080,
        };

        switch (below(seed, 4)) {
        case 0: return edges[below(seed, ARRAY_SIZE(edges))];
        case 1: return random64(seed) >> below(seed, 64);
        case 2: return (uint64_t)((int64_t)random64(seed) >> below(seed, 64));
        default: return random64(seed);
        }
}

/* ---- building a case ---- */

struct built {
        uint8_t code[16];
        ZyanUSize size;
        struct diff_run run;
};

static ZydisRegister register_of(unsigned number, unsigned size_bytes, bool high)
{
        switch (size_bytes) {
        case 1:
                if (high && number < 4)
                        return (ZydisRegister)(ZYDIS_REGISTER_AH + number);
                return (ZydisRegister)(number < 4 ? ZYDIS_REGISTER_AL + number : ZYDIS_REGISTER_SPL + number - 4);
        case 2: return (ZydisRegister)(ZYDIS_REGISTER_AX + number);
        case 4: return (ZydisRegister)(ZYDIS_REGISTER_EAX + number);
        default: return (ZydisRegister)(ZYDIS_REGISTER_RAX + number);
        }
}

static ZydisEncoderOperand any_register(uint64_t *seed, unsigned size_bytes)
{
        unsigned number = (unsigned)below(seed, 16);

        return (ZydisEncoderOperand){
                .type = ZYDIS_OPERAND_TYPE_REGISTER, .reg.value = register_of(number, size_bytes, below(seed, 3) == 0),
        };
}

/* Mostly in the data; across its page boundary, at its end, and nowhere now and then. */
static uint64_t any_address(uint64_t *seed)
{
        switch (below(seed, 24)) {
        case 0: return DIFF_DATA + DIFF_DATA_BYTES - below(seed, 20);
        case 1: return DIFF_DATA - below(seed, 12);
        case 2: return UINT64_C(0x800000000000) - below(seed, 20);
        case 3:
        case 4: return DIFF_DATA + 0x1000 - below(seed, 20);
        case 5: return (DIFF_DATA + 64 + below(seed, DIFF_DATA_BYTES - 128)) & ~UINT64_C(15);
        default: return DIFF_DATA + 64 + below(seed, DIFF_DATA_BYTES - 128);
        }
}

/* A memory operand that means address; sets the registers it uses. */
static ZydisEncoderOperand any_memory(uint64_t *seed, struct built *b, unsigned size_bytes)
{
        ZydisEncoderOperand o = { .type = ZYDIS_OPERAND_TYPE_MEMORY };
        uint64_t address = any_address(seed);
        unsigned base = (unsigned)below(seed, 16), index = (unsigned)below(seed, 16);
        bool has_index = below(seed, 3) == 0 && index != X86_RSP && index != base;
        int64_t displacement = below(seed, 2)   ? (int64_t)(int8_t)random64(seed)
                               : below(seed, 2) ? 0
                                                : (int64_t)(int32_t)random64(seed);

        while (base == X86_RSP)
                base = (unsigned)below(seed, 16);
        if (index == base)
                has_index = false;
        o.mem.base = register_of(base, 8, false);
        o.mem.displacement = displacement;
        o.mem.size = (ZyanU16)size_bytes;
        address -= (uint64_t)displacement;
        if (has_index) {
                o.mem.index = register_of(index, 8, false);
                o.mem.scale = (ZyanU8)(1u << below(seed, 4));
                b->run.state.gpr[index] = below(seed, 2) ? below(seed, 4096) : random64(seed);
                address -= b->run.state.gpr[index] * o.mem.scale;
        }
        b->run.state.gpr[base] = address;
        return o;
}

static ZydisEncoderOperand any_immediate(uint64_t *seed, unsigned size_bytes)
{
        ZydisEncoderOperand o = { .type = ZYDIS_OPERAND_TYPE_IMMEDIATE };
        int64_t value = (int64_t)operand_value(seed);

        o.imm.s = size_bytes == 1 ? (int8_t)value : size_bytes == 2 ? (int16_t)value : (int32_t)value;
        return o;
}

static ZydisEncoderOperand operand_for(uint64_t *seed, const char **letters, unsigned width, struct built *b)
{
        static const ZydisEncoderOperand cl = { .type = ZYDIS_OPERAND_TYPE_REGISTER, .reg.value = ZYDIS_REGISTER_CL };
        char letter = *(*letters)++;

        switch (letter) {
        case 'r': return any_register(seed, width);
        case 'm': return any_memory(seed, b, width);
        case 'X': return any_memory(seed, b, 16);
        case 'i': return any_immediate(seed, width);
        case 'b': {
                ZydisEncoderOperand o = any_immediate(seed, 1);

                if (width != 8 || below(seed, 2))
                        o.imm.u &= 0xff;
                return o;
        }
        case 'c': return cl;
        case 'R': return any_register(seed, (unsigned)(*(*letters)++ - '0'));
        case 'M': return any_memory(seed, b, (unsigned)(*(*letters)++ - '0'));
        default: abort();
        }
}

static void adapt_state(uint64_t *seed, const struct form *form, unsigned width, struct built *b)
{
        uint64_t *gpr = b->run.state.gpr;

        if (form->flags & QUOTIENT && below(seed, 4))
                gpr[X86_RDX] = below(seed, 2) ? (uint64_t)((int64_t)gpr[X86_RAX] >> 63) : below(seed, 3);
        if (form->flags & STRING) {
                gpr[X86_RCX] = below(seed, 8) ? below(seed, 40) : below(seed, 3000);
                gpr[X86_RSI] = any_address(seed);
                gpr[X86_RDI] = below(seed, 3) ? any_address(seed) : gpr[X86_RSI] + below(seed, 32) - 16;
        }
        if (form->flags & FRAME)
                gpr[X86_RBP] = DIFF_STACK + 0x400 + below(seed, 0x400);
}

/* Fails when there is no such encoding (AH with REX, say). */
static bool build(uint64_t *seed, const struct form *form, const char *letters, size_t letter_count, unsigned width,
                  struct built *b)
{
        ZydisEncoderRequest request = { .machine_mode = ZYDIS_MACHINE_MODE_LONG_64, .mnemonic = form->mnemonic };
        const char *end = letters + letter_count;
        bool bits = form->flags & BIT_OFFSET;

        for (unsigned n = 0; n < 16; n++)
                b->run.state.gpr[n] = bits && below(seed, 4) ? (uint64_t)((int64_t)random64(seed) >> 50) : operand_value(seed);
        b->run.state.gpr[X86_RSP] = DIFF_STACK + 0x800 + below(seed, 64);
        b->run.state.rflags = random64(seed) & (X86_FLAGS_STATUS | (form->flags & STRING && below(seed, 3) ? 0 : X86_FLAG_DF));
        adapt_state(seed, form, width, b);
        while (letters < end)
                request.operands[request.operand_count++] = operand_for(seed, &letters, width, b);
        if (form->flags & LOCKABLE && request.operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY && below(seed, 2))
                request.prefixes |= ZYDIS_ATTRIB_HAS_LOCK;
        if (form->flags & STRING && below(seed, 3)) {
                bool compares = form->mnemonic >= ZYDIS_MNEMONIC_CMPSB && form->mnemonic <= ZYDIS_MNEMONIC_CMPSW;

                compares |= form->mnemonic >= ZYDIS_MNEMONIC_SCASB && form->mnemonic <= ZYDIS_MNEMONIC_SCASW;
                request.prefixes |= !compares        ? ZYDIS_ATTRIB_HAS_REP
                                    : below(seed, 2) ? ZYDIS_ATTRIB_HAS_REPE
                                                     : ZYDIS_ATTRIB_HAS_REPNE;
        }
        b->size = sizeof(b->code) - 1;
        if (ZYAN_FAILED(ZydisEncoderEncodeInstruction(&request, b->code, &b->size)))
                return false;
        for (size_t n = 0; n < DIFF_DATA_BYTES; n += 8) {
                uint64_t value = operand_value(seed);

                memcpy(b->run.memory.data + n, &value, 8);
        }
        /* Strings that are equal for a while. */
        if (form->flags & STRING && below(seed, 2))
                memset(b->run.memory.data, (int)(b->run.state.gpr[X86_RAX] & 0xff), DIFF_DATA_BYTES / 2);
        memset(b->run.memory.stack, 0x5a, DIFF_STACK_BYTES);
        return true;
}

/* ---- comparing ---- */

static const char *first_difference(const struct diff_run *a, const struct diff_run *b, char text[128])
{
        static const char *const names[] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                             "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15" };
        const uint64_t flags = X86_FLAGS_STATUS | X86_FLAG_DF;

        if (a->vector != b->vector)
                return snprintf(text, 128, "vector %d, ours %d", a->vector, b->vector), text;
        /* Outside our pages it is no matter whether one is present that may not be accessed. */
        if (a->vector == X86_PF &&
            ((a->error_code ^ b->error_code) & (a->cr2 - DIFF_BASE < 0x9000 ? ~0u : ~1u) || a->cr2 != b->cr2))
                return snprintf(text, 128, "#PF 0x%x at 0x%" PRIx64 ", ours 0x%x at 0x%" PRIx64, a->error_code, a->cr2,
                                b->error_code, b->cr2),
                       text;
        for (unsigned n = 0; n < 16; n++)
                if (a->state.gpr[n] != b->state.gpr[n])
                        return snprintf(text, 128, "%s 0x%" PRIx64 ", ours 0x%" PRIx64, names[n], a->state.gpr[n],
                                        b->state.gpr[n]),
                               text;
        if (a->rip != b->rip)
                return snprintf(text, 128, "rip +%" PRIu64 ", ours +%" PRIu64, a->rip, b->rip), text;
        if ((a->state.rflags ^ b->state.rflags) & flags)
                return snprintf(text, 128, "flags 0x%" PRIx64 ", ours 0x%" PRIx64 " (differ 0x%" PRIx64 ")",
                                a->state.rflags & flags, b->state.rflags & flags, (a->state.rflags ^ b->state.rflags) & flags),
                       text;
        for (unsigned n = 0; n < DIFF_DATA_BYTES; n++)
                if (a->memory.data[n] != b->memory.data[n])
                        return snprintf(text, 128, "data+0x%x 0x%02x, ours 0x%02x", n, a->memory.data[n], b->memory.data[n]),
                               text;
        for (unsigned n = 0; n < DIFF_STACK_BYTES; n++)
                if (a->memory.stack[n] != b->memory.stack[n])
                        return snprintf(text, 128, "stack+0x%x 0x%02x, ours 0x%02x", n, a->memory.stack[n], b->memory.stack[n]),
                               text;
        return NULL;
}

static void print_case(const struct built *b, const char *what)
{
        ZydisDisassembledInstruction text;

        if (ZYAN_SUCCESS(ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, DIFF_CODE, b->code, b->size, &text)))
                printf("%-40s", text.text);
        for (size_t n = 0; n < b->size; n++)
                printf(" %02x", b->code[n]);
        printf("\n  %s\n  in: rax %" PRIx64 " rcx %" PRIx64 " rdx %" PRIx64 " rbx %" PRIx64 " rsi %" PRIx64 " rdi %" PRIx64
               " flags %" PRIx64 "\n",
               what, b->run.state.gpr[X86_RAX], b->run.state.gpr[X86_RCX], b->run.state.gpr[X86_RDX], b->run.state.gpr[X86_RBX],
               b->run.state.gpr[X86_RSI], b->run.state.gpr[X86_RDI], b->run.state.rflags);
}

/* Differences found; at most three of a form are printed. */
static unsigned run_cases(struct bare *bare, const struct form *form, uint64_t seed, unsigned cases, uint64_t *done)
{
        static struct built built;
        static struct diff_run ours;
        unsigned differ = 0;

        for (const char *letters = form->operands; letters;) {
                const char *space = strchr(letters, ' ');
                size_t count = space ? (size_t)(space - letters) : strlen(letters);

                for (unsigned width = 1; width <= 8; width *= 2) {
                        if (!(form->widths & width))
                                continue;
                        for (unsigned n = 0; n < cases; n++) {
                                char what[128];

                                if (!build(&seed, form, letters, count, width, &built))
                                        continue;
                                ours = built.run;
                                struct diff_run host = built.run;

                                native_run(built.code, built.size, &host, false);
                                bare_run(bare, built.code, built.size, &ours, false);
                                (*done)++;
                                if (first_difference(&host, &ours, what) && differ++ < 3)
                                        print_case(&built, what);
                        }
                }
                letters = space ? space + 1 : NULL;
        }
        return differ;
}

int main(int argc, char **argv)
{
        struct err err = ERR_INIT;
        struct bare *bare;
        uint64_t seed = 1, done = 0;
        unsigned cases = 40, differ = 0;
        const char *only = NULL;

        for (int n = 1; n + 1 < argc; n += 2) {
                if (!strcmp(argv[n], "--seed"))
                        seed = strtoull(argv[n + 1], NULL, 0);
                else if (!strcmp(argv[n], "--cases"))
                        cases = (unsigned)strtoul(argv[n + 1], NULL, 0);
                else if (!strcmp(argv[n], "--form"))
                        only = argv[n + 1];
        }
        if (native_init(&err) < 0 || bare_new("max", &bare, &err) < 0) {
                fprintf(stderr, "diff-integer: %s\n", err.text);
                return 1;
        }
        for (size_t n = 0; n < ARRAY_SIZE(forms); n++) {
                const char *name = ZydisMnemonicGetString(forms[n].mnemonic);
                unsigned d;

                if ((only && strcasecmp(only, name)) || (forms[n].feature && !x86_model_has(bare_model(bare), forms[n].feature)))
                        continue;
                d = run_cases(bare, &forms[n], seed * 1000003 + n + 1, cases, &done);
                if (d)
                        printf("%s: %u cases differ\n", name, d);
                differ += d;
        }
        bare_free(bare);
        printf("%" PRIu64 " cases of %zu forms, %u differ\n", done, ARRAY_SIZE(forms), differ);
        return differ ? 1 : 0;
}
