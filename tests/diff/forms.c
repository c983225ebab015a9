/*
 * Which instructions there are: every opcode of the legacy and VEX maps, with every prefix that selects an instruction, is
 * offered to Zydis, and what decodes is a form. So the list cannot forget an instruction: it is either tested, or its
 * mnemonic is named below with the reason, or the processor model does not have its instruction set.
 *
 * In 32-bit mode there is no REX; of VEX the bits that would be part of LDS and LES (R, X, vvvv[3]) stay 1.
 */
#include "tests/diff/diff.h"

#include <errno.h>
#include <stdio.h>

static const char *const form_prefixes[] = { "", "\x66", "\xf3", "\xf2", "\x66\xf3", "\x66\xf2" };
static const char *const prefix_names[] = { "", "66 ", "F3 ", "F2 ", "66 F3 ", "66 F2 " };
static const char *const map_names[] = { "", "0F ", "0F38 ", "0F3A " };

#define PRIVILEGED "changes system state or needs CPL 0"
#define KERNEL "enters the host's kernel"
#define SEGMENTS "the host's descriptors differ"
#define VARIES "gives another answer each time or on each machine"

static const struct {
        uint16_t mnemonic;
        const char *reason;
} skipped[] = {
        { ZYDIS_MNEMONIC_SYSCALL, KERNEL },
        { ZYDIS_MNEMONIC_SYSENTER, KERNEL },
        { ZYDIS_MNEMONIC_INT, KERNEL },
        { ZYDIS_MNEMONIC_INT1, KERNEL },
        { ZYDIS_MNEMONIC_INT3, "is the end of a case" },
        { ZYDIS_MNEMONIC_VMCALL, KERNEL },
        { ZYDIS_MNEMONIC_VMMCALL, KERNEL },
        { ZYDIS_MNEMONIC_IRET, SEGMENTS },
        { ZYDIS_MNEMONIC_IRETD, SEGMENTS },
        { ZYDIS_MNEMONIC_IRETQ, SEGMENTS },
        { ZYDIS_MNEMONIC_SGDT, VARIES },
        { ZYDIS_MNEMONIC_SIDT, VARIES },
        { ZYDIS_MNEMONIC_SLDT, VARIES },
        { ZYDIS_MNEMONIC_STR, VARIES },
        { ZYDIS_MNEMONIC_SMSW, VARIES },
        { ZYDIS_MNEMONIC_LAR, SEGMENTS },
        { ZYDIS_MNEMONIC_LSL, SEGMENTS },
        { ZYDIS_MNEMONIC_VERR, SEGMENTS },
        { ZYDIS_MNEMONIC_VERW, SEGMENTS },
        { ZYDIS_MNEMONIC_LSS, SEGMENTS },
        { ZYDIS_MNEMONIC_LFS, SEGMENTS },
        { ZYDIS_MNEMONIC_LGS, SEGMENTS },
        { ZYDIS_MNEMONIC_RDTSC, VARIES },
        { ZYDIS_MNEMONIC_RDTSCP, VARIES },
        { ZYDIS_MNEMONIC_RDPMC, VARIES },
        { ZYDIS_MNEMONIC_RDPID, VARIES },
        { ZYDIS_MNEMONIC_RDRAND, VARIES },
        { ZYDIS_MNEMONIC_RDSEED, VARIES },
        { ZYDIS_MNEMONIC_CPUID, VARIES },
        { ZYDIS_MNEMONIC_XGETBV, VARIES },
        { ZYDIS_MNEMONIC_RDFSBASE, VARIES },
        { ZYDIS_MNEMONIC_RDGSBASE, VARIES },
        { ZYDIS_MNEMONIC_WRFSBASE, "the test's own" },
        { ZYDIS_MNEMONIC_WRGSBASE, "the test's own" },
        { ZYDIS_MNEMONIC_PAUSE, "may leave a virtual machine" },
        { ZYDIS_MNEMONIC_XSETBV, PRIVILEGED },
        { ZYDIS_MNEMONIC_FEMMS, "AMD only" },
        { ZYDIS_MNEMONIC_LDS, SEGMENTS },
        { ZYDIS_MNEMONIC_LES, SEGMENTS },
};

static const char *skip_reason(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *operand)
{
        for (size_t n = 0; n < ARRAY_SIZE(skipped); n++)
                if (skipped[n].mnemonic == z->mnemonic)
                        return skipped[n].reason;
        if (z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
                return SEGMENTS;
        for (unsigned n = 0; n < z->operand_count; n++) {
                if (operand[n].type != ZYDIS_OPERAND_TYPE_REGISTER)
                        continue;
                if (ZydisRegisterGetClass(operand[n].reg.value) == ZYDIS_REGCLASS_SEGMENT)
                        return SEGMENTS;
        }
        return NULL;
}

/* Bytes up to ModRM; the position of ModRM. */
static unsigned put_opcode(const struct form *f, uint8_t rex, const uint8_t vex[2], bool short_vex, uint8_t *out)
{
        static const uint8_t vex_prefix[] = { 0, 1, 2, 3 };
        unsigned n = 0;

        if (f->lock)
                out[n++] = 0xf0;
        if (!f->vex) {
                for (const char *p = form_prefixes[f->prefix]; *p; p++)
                        out[n++] = (uint8_t)*p;
                if (rex || f->w)
                        out[n++] = (uint8_t)(0x40 | rex | f->w << 3);
                if (f->map)
                        out[n++] = 0x0f;
                if (f->map > 1)
                        out[n++] = f->map == 2 ? 0x38 : 0x3a;
        } else if (short_vex) {
                out[n++] = 0xc5;
                out[n++] = (uint8_t)((vex[0] & 0x80) | vex[1] | f->l << 2 | vex_prefix[f->prefix]);
        } else {
                out[n++] = 0xc4;
                out[n++] = (uint8_t)(vex[0] | f->map);
                out[n++] = (uint8_t)(f->w << 7 | vex[1] | f->l << 2 | vex_prefix[f->prefix]);
        }
        out[n++] = f->opcode;
        return n;
}

/* Decodes form with its reg and rm, plainest operands. */
static bool probe(const ZydisDecoder *decoder, const struct form *f, ZydisDecodedInstruction *z, ZydisDecodedOperand *operand)
{
        for (unsigned vvvv = 0; vvvv < 2; vvvv++) {
                uint8_t bytes[16] = { 0 }, vex[2] = { 0xe0, vvvv ? 0x58 : 0x78 };
                unsigned n = put_opcode(f, 0, vex, false, bytes);

                bytes[n] = (uint8_t)(f->memory ? 4 : 0xc0 | (f->rm < 0 ? 1 : f->rm));
                bytes[n] |= (uint8_t)((f->reg < 0 ? 2 : f->reg) << 3);
                if (f->memory)
                        bytes[n + 1] = 0x08; /* [rax + rcx]: good for vector indices too */
                if (ZYAN_SUCCESS(ZydisDecoderDecodeFull(decoder, bytes, 15, z, operand)))
                        return true;
                if (!f->vex)
                        break;
        }
        return false;
}

static int add(struct forms *forms, const struct form *form, bool integer, struct err *err)
{
        if (forms->count == forms->capacity) {
                size_t capacity = forms->capacity ? forms->capacity * 2 : 4096;
                struct form *more = realloc(forms->form, capacity * sizeof(*more));
                uint32_t *integers = realloc(forms->integer, capacity * sizeof(*integers));

                if (more)
                        forms->form = more;
                if (integers)
                        forms->integer = integers;
                if (!more || !integers)
                        return err_nomem(err);
                forms->capacity = capacity;
        }
        if (integer)
                forms->integer[forms->integers++] = (uint32_t)forms->count;
        forms->form[forms->count++] = *form;
        forms->tested[form->mnemonic]++;
        return 0;
}

/* Of the general registers: neither x87 nor vectors. */
static bool is_integer(const ZydisDecodedInstruction *z)
{
        switch (z->meta.isa_ext) {
        case ZYDIS_ISA_EXT_BASE:
        case ZYDIS_ISA_EXT_LONGMODE:
        case ZYDIS_ISA_EXT_BMI1:
        case ZYDIS_ISA_EXT_BMI2:
        case ZYDIS_ISA_EXT_LZCNT:
        case ZYDIS_ISA_EXT_MOVBE:
        case ZYDIS_ISA_EXT_ADOX_ADCX:
                return true;
        default:
                return z->mnemonic == ZYDIS_MNEMONIC_POPCNT || z->mnemonic == ZYDIS_MNEMONIC_CRC32;
        }
}

/* Adds one form when it is an instruction to test. */
static int consider(struct forms *forms, const ZydisDecoder *decoder, const bool *offered, struct form *f, struct err *err)
{
        ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
        ZydisDecodedInstruction z;
        const char *reason;
        int r;

        f->lock = 0;
        if (!probe(decoder, f, &z, operand))
                return 0;
        if (z.opcode != f->opcode || (f->modrm && !(z.attributes & ZYDIS_ATTRIB_HAS_MODRM)))
                return 0;
        f->mnemonic = (uint16_t)z.mnemonic;
        forms->seen[z.mnemonic] = true;
        reason = !offered[z.meta.isa_set] ? "the model does not have it" : skip_reason(&z, operand);
        if (reason) {
                if (!forms->reason[z.mnemonic])
                        forms->reason[z.mnemonic] = reason;
                return 0;
        }
        r = add(forms, f, is_integer(&z), err);
        if (!r && f->memory && z.attributes & ZYDIS_ATTRIB_ACCEPTS_LOCK) {
                f->lock = 1;
                r = add(forms, f, is_integer(&z), err);
        }
        return r;
}

/* All ModRM bytes of an opcode: fields that do not change the mnemonic become free. */
static int consider_modrm(struct forms *forms, const ZydisDecoder *decoder, const bool *offered, struct form *f, struct err *err)
{
        bool x87 = !f->vex && !f->map && f->opcode >= 0xd8 && f->opcode <= 0xdf;
        bool each_rm = x87 || (!f->vex && f->map == 1 && f->opcode == 0x01);
        int r = 0;

        f->modrm = 1;
        for (f->memory = 0; f->memory < 2 && !r; f->memory++) {
                ZydisMnemonic first = ZYDIS_MNEMONIC_INVALID;
                bool same = true;

                for (f->reg = 0; f->reg < 8; f->reg++) {
                        ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
                        ZydisDecodedInstruction z;
                        ZydisMnemonic now;

                        f->rm = each_rm && !f->memory ? 0 : -1;
                        now = probe(decoder, f, &z, operand) ? z.mnemonic : ZYDIS_MNEMONIC_INVALID;
                        if (!f->reg)
                                first = now;
                        same &= now == first;
                }
                if (same && !x87 && !(each_rm && !f->memory)) {
                        f->reg = f->rm = -1;
                        r = consider(forms, decoder, offered, f, err);
                        continue;
                }
                for (f->reg = 0; f->reg < 8 && !r; f->reg++) {
                        if (f->memory || !each_rm) {
                                f->rm = -1;
                                r = consider(forms, decoder, offered, f, err);
                                continue;
                        }
                        for (f->rm = 0; f->rm < 8 && !r; f->rm++)
                                r = consider(forms, decoder, offered, f, err);
                }
        }
        return r;
}

static bool has_modrm(const ZydisDecoder *decoder, const struct form *f)
{
        ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
        ZydisDecodedInstruction z;
        struct form g = *f;

        for (unsigned modrm = 0; modrm < 16; modrm++) {
                g.reg = (int8_t)(modrm & 7);
                g.rm = -1;
                g.memory = modrm >> 3;
                if (probe(decoder, &g, &z, operand))
                        return z.attributes & ZYDIS_ATTRIB_HAS_MODRM;
        }
        return true;
}

static int consider_opcode(struct forms *forms, const ZydisDecoder *decoder, const bool *offered, struct form *f, struct err *err)
{
        if (has_modrm(decoder, f))
                return consider_modrm(forms, decoder, offered, f, err);
        f->modrm = f->memory = 0;
        f->reg = f->rm = -1;
        return consider(forms, decoder, offered, f, err);
}

void forms_decoder(bool code32, ZydisDecoder *decoder)
{
        ZydisDecoderInit(decoder, code32 ? ZYDIS_MACHINE_MODE_LONG_COMPAT_32 : ZYDIS_MACHINE_MODE_LONG_64,
                         code32 ? ZYDIS_STACK_WIDTH_32 : ZYDIS_STACK_WIDTH_64);
}

/* The opcodes of one map with one prefix. */
static int consider_map(struct forms *forms, const ZydisDecoder *decoder, const bool *offered, bool vex, unsigned map,
                        unsigned prefix, struct err *err)
{
        unsigned widths = forms->code32 && !vex ? 1 : 2;

        for (unsigned w = 0; w < widths; w++) {
                for (unsigned at = 0; at < (vex ? 512u : 256u); at++) {
                        struct form f = {
                                .vex = vex,
                                .prefix = (uint8_t)prefix,
                                .map = (uint8_t)map,
                                .w = (uint8_t)w,
                                .l = at >> 8,
                                .opcode = (uint8_t)at,
                        };
                        int r = consider_opcode(forms, decoder, offered, &f, err);

                        if (r < 0)
                                return r;
                }
        }
        return 0;
}

static int group_integers(struct forms *forms, struct err *err)
{
        uint32_t *grouped = malloc((forms->integers + 1) * sizeof(*grouped)), n = 0;

        if (!grouped)
                return err_nomem(err);
        for (unsigned mnemonic = 0; mnemonic <= ZYDIS_MNEMONIC_MAX_VALUE; mnemonic++) {
                uint32_t first = n;

                for (size_t i = 0; forms->tested[mnemonic] && i < forms->integers; i++)
                        if (forms->form[forms->integer[i]].mnemonic == mnemonic)
                                grouped[n++] = forms->integer[i];
                if (n > first)
                        forms->mnemonic[forms->mnemonics++] = first;
        }
        forms->mnemonic[forms->mnemonics] = n;
        free(forms->integer);
        forms->integer = grouped;
        return 0;
}

int forms_new(struct forms *forms, bool code32, const bool offered[ZYDIS_ISA_SET_MAX_VALUE + 1], struct err *err)
{
        ZydisDecoder decoder;
        int r = 0;

        memset(forms, 0, sizeof(*forms));
        forms->code32 = code32;
        forms_decoder(code32, &decoder);
        for (unsigned map = 0; map < 4; map++)
                for (unsigned prefix = 0; prefix < ARRAY_SIZE(form_prefixes) && r == 0; prefix++)
                        r = consider_map(forms, &decoder, offered, false, map, prefix, err);
        for (unsigned map = 1; map < 4; map++)
                for (unsigned prefix = 0; prefix < 4 && r == 0; prefix++)
                        r = consider_map(forms, &decoder, offered, true, map, prefix, err);
        if (!r)
                r = group_integers(forms, err);
        if (r)
                forms_free(forms);
        return r;
}

void forms_free(struct forms *forms)
{
        free(forms->form);
        free(forms->integer);
        forms->form = NULL;
        forms->integer = NULL;
        forms->count = forms->capacity = forms->integers = forms->mnemonics = 0;
}

void form_print(const struct form *f)
{
        printf("%-18s %s%s%s%s%s%s%02X", ZydisMnemonicGetString(f->mnemonic), f->lock ? "LOCK " : "", f->vex ? "VEX" : "",
               f->vex ? (f->l ? ".256 " : ".128 ") : "", f->w ? "W " : "", prefix_names[f->prefix], map_names[f->map], f->opcode);
        if (f->modrm && f->reg >= 0)
                printf(" /%d", f->reg);
        if (f->modrm && f->rm >= 0)
                printf("+%d", f->rm);
        printf("%s\n", !f->modrm ? "" : f->memory ? " mem" : " reg");
}

/* ModRM, SIB and displacement of a random memory operand. */
static unsigned put_memory(struct random *r, uint8_t *out, unsigned reg)
{
        unsigned mod = random_below(r, 3), rm = random_below(r, 8), n = 0;
        uint32_t disp = (uint32_t)random64(r);

        if (one_in(r, 3))
                rm = 4;
        out[n++] = (uint8_t)(mod << 6 | reg << 3 | rm);
        if (rm == 4) {
                uint8_t sib = (uint8_t)random64(r);

                out[n++] = sib;
                if (!mod && (sib & 7) == 5)
                        mod = 2;
        } else if (!mod && rm == 5) {
                mod = 2;
        }
        if (mod == 2 && one_in(r, 2))
                disp = (uint32_t)(int32_t)(int16_t)disp;
        memcpy(out + n, &disp, 4);
        return n + (mod == 1 ? 1 : mod == 2 ? 4 : 0);
}

bool form_encode(const struct form *f, bool code32, struct random *r, const ZydisDecoder *decoder, struct code *code)
{
        uint8_t bytes[32], rex = 0, vex[2];
        bool short_vex = f->vex && f->map == 1 && !f->w && one_in(r, 2);
        unsigned n = 0, reg;
        uint64_t random = random64(r);

        if (one_in(r, code32 ? 60 : 12)) /* 16-bit addresses are none of ours: they fault */
                bytes[n++] = 0x67;
        if (one_in(r, 40))
                bytes[n++] = "\x2e\x36\x3e\x26"[random_below(r, 4)];
        if (one_in(r, 2) && !code32)
                rex = (uint8_t)(0x40 | random_below(r, 8));
        vex[0] = (uint8_t)(short_vex ? 0x60 | (random & 0x80) : random & 0xe0);
        vex[1] = (uint8_t)(one_in(r, 3) ? 0x78 : random >> 8 & 0x78);
        if (code32) {
                vex[0] |= short_vex ? 0x80 : 0xc0;
                vex[1] |= 0x40;
        }
        n += put_opcode(f, rex, vex, short_vex, bytes + n);
        reg = f->reg >= 0 ? (unsigned)f->reg : random_below(r, 8);
        if (f->modrm && f->memory)
                n += put_memory(r, bytes + n, reg);
        else if (f->modrm)
                bytes[n++] = (uint8_t)(0xc0 | reg << 3 | (f->rm >= 0 ? (unsigned)f->rm : random_below(r, 8)));
        random = random64(r);
        if (one_in(r, 3))
                random = (random & ~UINT64_C(0xff)) | random_below(r, 16);
        if (n > 15)
                return false;
        memcpy(bytes + n, &random, 8);
        if (ZYAN_FAILED(ZydisDecoderDecodeFull(decoder, bytes, 15, &code->z, code->operand)) || code->z.mnemonic != f->mnemonic)
                return false;
        memcpy(code->bytes, bytes, 15);
        return true;
}

bool code_branches(const struct code *code)
{
        const ZydisDecodedInstruction *z = &code->z;

        return z->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE || z->meta.category == ZYDIS_CATEGORY_RET ||
               z->meta.category == ZYDIS_CATEGORY_CALL || z->meta.category == ZYDIS_CATEGORY_COND_BR ||
               z->meta.category == ZYDIS_CATEGORY_UNCOND_BR;
}
