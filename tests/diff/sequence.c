/*
 * Cases: where their code lies, and sequences.
 *
 * A sequence is drawn instruction by instruction; what does not fit behind the ones before is drawn again. It must not depend on
 * anything that the manual leaves undefined: an instruction that looks at a flag which may be undefined is refused, and the flags
 * that are undefined at each place are noted for the comparison. Jumps go forward over a few instructions, so a sequence ends.
 *
 * Left out are instructions that only a single case can set up: state images, POPF, branches out; and those that store where the
 * last x87 instruction was, which no two processors agree on (SDM vol. 1 §8.1.8).
 */
#include "tests/diff/diff.h"

#include <stddef.h>

void case_bytes(const struct diff_case *c, uint8_t *bytes)
{
        for (unsigned n = 0; n < c->count; n++)
                memcpy(bytes + (c->insn[n].address - case_address(c)), c->insn[n].bytes, c->insn[n].z.length);
}

/* Now and then across a page boundary. */
static uint64_t address_for(struct random *r, unsigned size_bytes, unsigned crossing_in)
{
        unsigned offset = one_in(r, crossing_in) ? 8u * PAGE - 1 - random_below(r, size_bytes) : 8u * PAGE + random_below(r, 512);

        return CODE_BASE + offset;
}

bool case_single(const struct form *form, bool code32, const ZydisDecoder *decoder, struct random *r, struct diff_case *c)
{
        struct code *code = &c->insn[0];

        code->address = address_for(r, 14, 16);
        for (unsigned tries = 0; !form_encode(form, code32, r, decoder, code);)
                if (++tries == 200)
                        return false;
        c->code32 = code32;
        c->count = 1;
        c->leaves = code_branches(code);
        operands_make(code, code32, r, &c->in, &c->patch);
        c->undefined[0] = 0;
        c->undefined[1] = operands_undefined_flags(code, &c->in);
        return true;
}

/* ---- sequences ---- */

struct draft {
        const struct forms *forms;
        const ZydisDecoder *decoder;
        struct random *r;
        struct diff_case *c;
        struct registers regs;
        unsigned wanted;                  /* instructions */
        int base;                         /* many an operand counts from this register; -1: none in particular */
        bool accesses;                    /* many an instruction is an access close to where it points */
        unsigned target[CASE_INSNS];      /* of a jump: the instruction's number; 0: no jump */
        uint64_t brought[CASE_INSNS + 1]; /* undefined flags that jumps bring to a place */
};

static bool left_out(const ZydisDecodedInstruction *z)
{
        switch (z->mnemonic) {
        case ZYDIS_MNEMONIC_XSAVE:
        case ZYDIS_MNEMONIC_XSAVE64:
        case ZYDIS_MNEMONIC_XSAVEC:
        case ZYDIS_MNEMONIC_XSAVEC64:
        case ZYDIS_MNEMONIC_XSAVEOPT:
        case ZYDIS_MNEMONIC_XSAVEOPT64:
        case ZYDIS_MNEMONIC_XRSTOR:
        case ZYDIS_MNEMONIC_XRSTOR64:
        case ZYDIS_MNEMONIC_FXSAVE:
        case ZYDIS_MNEMONIC_FXSAVE64:
        case ZYDIS_MNEMONIC_FXRSTOR:
        case ZYDIS_MNEMONIC_FXRSTOR64:
        case ZYDIS_MNEMONIC_FNSAVE:
        case ZYDIS_MNEMONIC_FNSTENV:
        case ZYDIS_MNEMONIC_POPF:
        case ZYDIS_MNEMONIC_POPFD:
        case ZYDIS_MNEMONIC_POPFQ:
        case ZYDIS_MNEMONIC_POPA:
        case ZYDIS_MNEMONIC_POPAD:
                return true;
        case ZYDIS_MNEMONIC_SHLD:
        case ZYDIS_MNEMONIC_SHRD:
        case ZYDIS_MNEMONIC_BSWAP: /* their result is undefined with 16 bits */
                return z->operand_width == 16;
        default:
                return false;
        }
}

/* Ends a case at CPL 3, whatever its operands. */
static bool always_faults(const ZydisDecodedInstruction *z)
{
        switch (z->mnemonic) {
        case ZYDIS_MNEMONIC_CLI:
        case ZYDIS_MNEMONIC_STI:
        case ZYDIS_MNEMONIC_UD0:
        case ZYDIS_MNEMONIC_UD1:
        case ZYDIS_MNEMONIC_UD2:
                return true;
        default:
                return z->attributes & ZYDIS_ATTRIB_IS_PRIVILEGED || z->meta.category == ZYDIS_CATEGORY_IO ||
                       z->meta.category == ZYDIS_CATEGORY_IOSTRINGOP;
        }
}

static uint64_t flags_read(const ZydisDecodedInstruction *z)
{
        if (z->mnemonic == ZYDIS_MNEMONIC_PUSHF || z->mnemonic == ZYDIS_MNEMONIC_PUSHFD || z->mnemonic == ZYDIS_MNEMONIC_PUSHFQ)
                return UINT64_MAX;
        return z->cpu_flags ? z->cpu_flags->tested : 0;
}

/* Flags that have a new value afterwards whatever the operands. */
static uint64_t flags_written(const ZydisDecodedInstruction *z)
{
        if (!z->cpu_flags || z->meta.category == ZYDIS_CATEGORY_SHIFT || z->meta.category == ZYDIS_CATEGORY_ROTATE ||
            z->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE))
                return 0;
        return z->cpu_flags->modified | z->cpu_flags->set_0 | z->cpu_flags->set_1;
}

/* The general or vector register as a bit of struct registers; 0 for others. */
static uint32_t register_bit(const struct draft *d, ZydisRegister reg)
{
        ZydisMachineMode mode = d->c->code32 ? ZYDIS_MACHINE_MODE_LONG_COMPAT_32 : ZYDIS_MACHINE_MODE_LONG_64;
        ZydisRegister whole = ZydisRegisterGetLargestEnclosing(mode, reg);

        switch (ZydisRegisterGetClass(whole)) {
        case ZYDIS_REGCLASS_GPR32:
        case ZYDIS_REGCLASS_GPR64:
                return 1u << ZydisRegisterGetId(whole);
        case ZYDIS_REGCLASS_XMM:
        case ZYDIS_REGCLASS_YMM:
        case ZYDIS_REGCLASS_ZMM:
                return ZydisRegisterGetId(whole) < 16 ? 1u << (16 + ZydisRegisterGetId(whole)) : 0;
        default:
                return 0;
        }
}

#define RSP 4
#define RSP_BIT (1u << RSP)

/* What code writes; a stack instruction's RSP, which moves a little, does not count. */
static uint32_t registers_written(const struct draft *d, const struct code *code)
{
        uint32_t written = 0;

        for (unsigned n = 0; n < code->z.operand_count; n++) {
                const ZydisDecodedOperand *o = &code->operand[n];
                uint32_t bit;

                if (o->type != ZYDIS_OPERAND_TYPE_REGISTER || !(o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
                        continue;
                bit = register_bit(d, o->reg.value);
                if (bit != RSP_BIT || o->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN)
                        written |= bit;
        }
        return written;
}

/* A register that moves a little still serves as a base. */
static bool moves_little(const struct code *code)
{
        const ZydisDecodedOperand *o = code->operand;

        if (o[0].type != ZYDIS_OPERAND_TYPE_REGISTER || o[0].size != 64)
                return false;
        switch (code->z.mnemonic) {
        case ZYDIS_MNEMONIC_INC:
        case ZYDIS_MNEMONIC_DEC: return true;
        case ZYDIS_MNEMONIC_ADD:
        case ZYDIS_MNEMONIC_SUB: return o[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && code->z.raw.imm[0].size == 8;
        case ZYDIS_MNEMONIC_LEA:
                return o[1].mem.base == o[0].reg.value && o[1].mem.index == ZYDIS_REGISTER_NONE && code->z.raw.disp.size == 8;
        default: return false;
        }
}

static bool decode(const struct draft *d, struct code *code)
{
        return ZYAN_SUCCESS(ZydisDecoderDecodeFull(d->decoder, code->bytes, 15, &code->z, code->operand));
}

/* [register] and [register + disp]: the common base instead, which has a number below 8. Accesses that may share a look-up come of it. */
static void share_base(const struct draft *d, struct code *code)
{
        const struct ZydisDecodedInstructionRaw_ *raw = &code->z.raw;

        if (d->base < 0 || !(code->z.attributes & ZYDIS_ATTRIB_HAS_MODRM) || raw->modrm.mod == 3 || raw->modrm.rm == 4 ||
            (raw->modrm.mod == 0 && raw->modrm.rm == 5) || d->base == RSP || one_in(d->r, 4))
                return;
        code->bytes[raw->modrm.offset] = (uint8_t)((code->bytes[raw->modrm.offset] & ~7) | d->base);
        if (code->z.attributes & ZYDIS_ATTRIB_HAS_REX)
                code->bytes[raw->rex.offset] &= (uint8_t)~1;
        if (code->z.attributes & ZYDIS_ATTRIB_HAS_VEX && raw->vex.size == 3)
                code->bytes[raw->vex.offset + 1] |= 0x20;
}

/* Any form; else any of an instruction, so that those with few forms come as often as others. */
static uint32_t any_form(struct draft *d)
{
        const struct forms *f = d->forms;
        unsigned mnemonic;

        if (!f->integers || one_in(d->r, 3))
                return random_below(d->r, (unsigned)f->count);
        mnemonic = random_below(d->r, (unsigned)f->mnemonics);
        return f->integer[f->mnemonic[mnemonic] + random_below(d->r, f->mnemonic[mnemonic + 1] - f->mnemonic[mnemonic])];
}

static bool draw_form(struct draft *d, struct code *code)
{
        const struct forms *f = d->forms;
        uint32_t n = any_form(d);

        if (!form_encode(&f->form[n], f->code32, d->r, d->decoder, code))
                return false;
        share_base(d, code);
        if (!decode(d, code) || code_branches(code) || left_out(&code->z) || (always_faults(&code->z) && !one_in(d->r, 64)))
                return false;
        return operands_join(code, d->r, &d->regs, &d->c->in) && decode(d, code);
}

/* Where accesses from one register lie on two pages, or some of them fault: on a page that is not there, or for reading only. */
static uint64_t odd_place(struct random *r)
{
        uint64_t near = random_below(r, 160) - 80u;

        switch (random_below(r, 8)) {
        case 0:
        case 1:
        case 2: return DATA_BASE + PAGE + near;
        case 3:
        case 4: return DATA_BASE + DATA_BYTES + near;
        case 5: return DATA_BASE + near;
        case 6: return RO_BASE + PAGE / 2 + near;
        default: return DATA_BASE + PAGE / 2 + near;
        }
}

/* MOV, ADD, CMP and the like, MOVUPS, MOVSD with [base + disp8]; PUSH and POP. */
static bool draw_access(struct draft *d, struct code *code)
{
        static const uint8_t opcodes[] = { 0x8b, 0x89, 0x8b, 0x89, 0x8a, 0x88, 0x03, 0x01, 0x3b, 0x39, 0x33, 0x31, 0x85, 0x2b, 0x29, 0x0b, 0x21 };
        uint8_t reg = (uint8_t)random_below(d->r, 8), *to = code->bytes;
        uint32_t bit = 1u << d->base;

        if (d->regs.written & bit)
                return false;
        if (!(d->regs.held & bit)) {
                d->c->in.gpr[d->base] = odd_place(d->r);
                d->regs.held |= bit;
        }
        memset(code->bytes, 0, sizeof(code->bytes));
        if (d->base == RSP && one_in(d->r, 2)) {
                *to = (uint8_t)((one_in(d->r, 2) ? 0x50 : 0x58) | reg);
                return decode(d, code);
        }
        if (one_in(d->r, 6)) {
                if (one_in(d->r, 2))
                        *to++ = 0xf2;
                *to++ = 0x0f;
                *to++ = one_in(d->r, 2) ? 0x10 : 0x11;
        } else {
                if (!d->c->code32 && one_in(d->r, 2))
                        *to++ = 0x48;
                *to++ = opcodes[random_below(d->r, ARRAY_SIZE(opcodes))];
        }
        *to++ = (uint8_t)(0x40 | reg << 3 | d->base);
        if (d->base == RSP)
                *to++ = 0x24;
        *to = (uint8_t)(random_below(d->r, 128) - 64u);
        return decode(d, code);
}

/* Jcc, JMP, JRCXZ or LOOP over one to three instructions; where to is put in when all are there. */
static bool draw_jump(struct draft *d, struct code *code, unsigned *target)
{
        unsigned kind = random_below(d->r, 40), cc = random_below(d->r, 16), from = d->c->count;

        memset(code->bytes, 0, sizeof(code->bytes));
        if (kind < 20)
                code->bytes[0] = (uint8_t)(0x70 + cc);
        else if (kind < 32)
                memcpy(code->bytes, (uint8_t[]){ 0x0f, (uint8_t)(0x80 + cc) }, 2);
        else if (kind < 36)
                code->bytes[0] = kind == 32 ? 0xe3 : kind == 33 ? 0xe9 : 0xeb;
        else /* also with the other address size */
                memcpy(code->bytes, (uint8_t[]){ 0x67, kind == 36 ? 0xe3 : 0xe2 }, 2);
        if (kind == 39)
                memcpy(code->bytes, (uint8_t[]){ (uint8_t)(0xe0 + random_below(d->r, 3)), 0 }, 2);
        *target = MIN(from + 2 + random_below(d->r, 3), d->wanted);
        return decode(d, code);
}

static bool draw_any(struct draft *d, struct code *code, unsigned *target)
{
        if (d->c->count + 2 <= d->wanted && one_in(d->r, 6))
                return draw_jump(d, code, target);
        return d->accesses && !one_in(d->r, 3) ? draw_access(d, code) : draw_form(d, code);
}

/* One more instruction; false when this try does not serve. */
static bool draw(struct draft *d)
{
        unsigned n = d->c->count, target = 0;
        struct code *code = &d->c->insn[n];
        uint64_t undefined = d->c->undefined[n] | d->brought[n];
        uint32_t written;

        code->address = n ? code[-1].address + code[-1].z.length : case_address(d->c);
        if (!draw_any(d, code, &target))
                return false;
        if (flags_read(&code->z) & undefined)
                return false;
        written = registers_written(d, code);
        if (moves_little(code) && !(written & RSP_BIT))
                written = 0;
        if ((written & RSP_BIT || (written & d->regs.held && !one_in(d->r, 4))) && !one_in(d->r, 16))
                return false;
        d->target[n] = target;
        d->c->undefined[n] = undefined;
        if (target)
                d->brought[target] |= undefined;
        d->c->undefined[n + 1] = (undefined & ~flags_written(&code->z)) | operands_undefined_flags(code, NULL);
        d->regs.written |= written;
        d->regs.held &= ~written;
        d->c->count = n + 1;
        return true;
}

static void put_jumps(struct draft *d)
{
        for (unsigned n = 0; n < d->c->count; n++) {
                struct code *code = &d->c->insn[n];
                unsigned to = MIN(d->target[n], d->c->count);
                uint64_t end = case_address(d->c) + case_size(d->c);
                uint64_t distance = (to < d->c->count ? d->c->insn[to].address : end) - (code->address + code->z.length);

                if (!d->target[n])
                        continue;
                memcpy(code->bytes + code->z.raw.imm[0].offset, &distance, code->z.raw.imm[0].size / 8u);
                decode(d, code);
        }
}

void case_sequence(const struct forms *forms, const ZydisDecoder *decoder, struct random *r, struct diff_case *c)
{
        struct draft d = { .forms = forms, .decoder = decoder, .r = r, .c = c };
        unsigned tries = 0;

        d.wanted = 2 + random_below(r, CASE_INSNS - 1);
        d.base = one_in(r, 2) ? -1 : (const int8_t[]){ 0, 2, 3, RSP, 6, 7 }[random_below(r, 6)];
        d.accesses = d.base >= 0 && one_in(r, 2);
        c->code32 = forms->code32;
        c->leaves = false;
        c->count = 0;
        c->undefined[0] = 0;
        c->patch.size = 0;
        c->insn[0].address = address_for(r, d.wanted * 5, 2);
        operands_image(r, c->code32, case_address(c), &c->in);
        while (c->count < d.wanted && (tries++ < 400 || !c->count))
                draw(&d);
        /* A jump to behind what was drawn goes to the end. */
        for (unsigned n = c->count + 1; n <= d.wanted; n++)
                d.brought[c->count] |= d.brought[n];
        c->undefined[c->count] |= d.brought[c->count];
        put_jumps(&d);
        for (unsigned n = 0; n < 16 && c->code32; n++)
                c->in.gpr[n] &= UINT32_MAX;
}
