/*
 * Inputs: registers and memory for one instruction, random but mostly meaningful.
 *
 * Numbers come from pools of edge values of each type mixed with random bits. Every memory operand is aimed at a target in the
 * data area by solving for its base register: mostly inside, aligned or not, sometimes across the page boundary, at an unmapped
 * or read-only page or at an address that is not canonical. What cannot be solved (one register twice) faults in both.
 *
 * In a sequence the initial value of a register can be chosen until an instruction needs it (it is held then) or may write it.
 * A memory operand on a register that was written would go anywhere, so such instructions are mostly refused.
 */
#include "tests/diff/diff.h"

#include "cpu/x86/state.h"

#define STATUS 0x8d5u

static uint64_t integer(struct random *r)
{
        static const uint64_t edges[] = { 0,          1,          2,          3,           7,         8,
                                          15,         16,         31,         32,          63,        64,
                                          0x7f,       0x80,       0xff,       0x7fff,      0x8000,    0xffff,
                                          0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, INT64_MAX, (uint64_t)INT64_MIN,
                                          UINT64_MAX };
        uint64_t value = random64(r);

        switch (random_below(r, 6)) {
        case 0:
                return edges[random_below(r, ARRAY_SIZE(edges))];
        case 1:
                return -edges[random_below(r, ARRAY_SIZE(edges))];
        case 2:
                return value >> random_below(r, 64);
        case 3:
                return ~(value >> random_below(r, 64));
        default:
                return value;
        }
}

static uint32_t bits_of_single(float value)
{
        uint32_t bits;

        memcpy(&bits, &value, 4);
        return bits;
}

static uint64_t bits_of_double(double value)
{
        uint64_t bits;

        memcpy(&bits, &value, 8);
        return bits;
}

static uint32_t single(struct random *r)
{
        static const uint32_t edges[] = { 0,          1,          0x7fffff,   0x800000,   0x3f800000, 0x3f7fffff,
                                          0x40000000, 0x4b000000, 0x4f000000, 0x5f000000, 0x7f7fffff, 0x7f800000,
                                          0x7f800001, 0x7fc00000, 0x7fffffff, 0x34000000, 0x3f000000, 0x3fc00000 };
        uint32_t value = (uint32_t)random64(r);

        switch (random_below(r, 4)) {
        case 0:
                return edges[random_below(r, ARRAY_SIZE(edges))] | (value & 0x80000000);
        case 1: /* near 1: results that are neither huge nor tiny */
                return (value & 0x807fffff) | (127 - 16 + random_below(r, 32)) << 23;
        case 2: /* a small integer or half */
                return bits_of_single((float)((int32_t)(value % 4096) - 2048) * 0.5f);
        default:
                return value;
        }
}

static uint64_t twice(struct random *r)
{
        static const uint64_t edges[] = { 0,
                                          1,
                                          0xfffffffffffff,
                                          0x10000000000000,
                                          0x3ff0000000000000,
                                          0x3fefffffffffffff,
                                          0x4000000000000000,
                                          0x4330000000000000,
                                          0x41dfffffffc00000,
                                          0x41e0000000000000,
                                          0x43e0000000000000,
                                          0x7fefffffffffffff,
                                          0x7ff0000000000000,
                                          0x7ff0000000000001,
                                          0x7ff8000000000000,
                                          0x3810000000000000,
                                          0x36a0000000000000,
                                          0x47efffffe0000000,
                                          0x47f0000000000000,
                                          0x3fe0000000000000 };
        uint64_t value = random64(r);

        switch (random_below(r, 4)) {
        case 0:
                return edges[random_below(r, ARRAY_SIZE(edges))] | (value & UINT64_C(1) << 63);
        case 1:
                return (value & UINT64_C(0x800fffffffffffff)) | (uint64_t)(1023 - 32 + random_below(r, 64)) << 52;
        case 2:
                return bits_of_double((double)((int64_t)(value % 65536) - 32768) * 0.5);
        default:
                return value;
        }
}

static void extended(struct random *r, uint8_t out[10])
{
        uint64_t mantissa = random64(r);
        uint16_t exponent = (uint16_t)random64(r), sign = exponent & 0x8000;

        switch (random_below(r, 8)) {
        case 0:
                mantissa = 0;
                exponent = sign;
                break;
        case 1: /* denormal or pseudo-denormal */
                exponent = sign;
                break;
        case 2: /* infinity, NaN, unsupported */
                exponent |= 0x7fff;
                mantissa = one_in(r, 2) ? UINT64_C(1) << 63 : one_in(r, 2) ? mantissa : mantissa | UINT64_C(3) << 62;
                break;
        case 3: /* unnormal */
                break;
        case 4:
                mantissa = UINT64_C(1) << 63;
                exponent = (uint16_t)(sign | (0x3fff + random_below(r, 70)));
                break;
        case 5:
                mantissa |= UINT64_C(1) << 63;
                break;
        default:
                mantissa |= UINT64_C(1) << 63;
                exponent = (uint16_t)(sign | (0x3fff - 20 + random_below(r, 90)));
        }
        memcpy(out, &mantissa, 8);
        memcpy(out + 8, &exponent, 2);
}

/* 16 bytes of one type. */
static void lane(struct random *r, uint8_t out[16])
{
        unsigned type = random_below(r, 5);

        for (unsigned k = 0; k < 16; k += 8) {
                uint64_t value = 0;

                switch (type) {
                case 0:
                        value = single(r) | (uint64_t)single(r) << 32;
                        break;
                case 1:
                        value = twice(r);
                        break;
                case 2:
                        value = integer(r);
                        break;
                case 3: /* short strings: few letters, some zeros */
                        for (unsigned n = 0; n < 8; n++)
                                value |= (uint64_t) "ab\0cAz\xff\x80"[random_below(r, 8)] << n * 8 & UINT64_C(0xff) << n * 8;
                        break;
                default:
                        value = random64(r);
                }
                memcpy(out + k, &value, 8);
        }
}

static void floating_state(struct random *r, uint8_t *xsave)
{
        uint16_t fcw = 0x37f, fsw = 0;
        uint8_t ftw;
        uint32_t mxcsr = 0x1f80;
        uint64_t header = 7;

        if (one_in(r, 2))
                fcw = (uint16_t)((fcw & 0x3f) | 0x40 | (random64(r) & 0xf00));
        if (one_in(r, 6))
                fcw &= (uint16_t)(~0x3f | random64(r));
        fsw = (uint16_t)(random64(r) & 0x7f00);
        if (one_in(r, 4))
                fsw |= (uint16_t)(random64(r) & 0x3f & (one_in(r, 4) ? 0x3f : fcw));
        if (fsw & ~fcw & 0x3f)
                fsw |= 0x8080;
        ftw = one_in(r, 3) ? (uint8_t)random64(r) : 0xff;
        memset(xsave, 0, 896);
        memcpy(xsave, &fcw, 2);
        memcpy(xsave + 2, &fsw, 2);
        xsave[4] = ftw;
        for (unsigned n = 0; n < 8; n++)
                extended(r, xsave + 32 + n * 16);
        if (one_in(r, 2))
                mxcsr |= (uint32_t)random64(r) & 0xe07f;
        if (one_in(r, 8))
                mxcsr &= (uint32_t)random64(r) | ~0x1f80u;
        memcpy(xsave + 24, &mxcsr, 4);
        for (unsigned n = 0; n < 32; n++)
                lane(r, xsave + (n < 16 ? 160 + n * 16 : 576 + (n - 16) * 16));
        memcpy(xsave + 512, &header, 8);
}

/* Where a memory operand of size bytes goes. */
static uint64_t target_for(struct random *r, unsigned size)
{
        unsigned align = size >= 512 ? 64 : size >= 32 ? 32 : 16;

        switch (random_below(r, 48)) {
        case 0: /* runs into the unmapped page */
                return DATA_BASE + DATA_BYTES - random_below(r, size + 1);
        case 1:
                return RO_BASE + random_below(r, PAGE - 1024) / align * align;
        case 2:
                return (UINT64_C(1) << 47) - random_below(r, size + 8);
        case 3:
                return DATA_BASE - PAGE / 2 + random_below(r, PAGE);
        case 4:
        case 5:
        case 6: /* across the boundary of the two pages */
                return DATA_BASE + PAGE - random_below(r, size + 1);
        case 7:
        case 8:
        case 9:
        case 10:
        case 11:
        case 12:
                return DATA_BASE + random_below(r, DATA_BYTES - 2048);
        default:
                return DATA_BASE + random_below(r, DATA_BYTES - 2048) / align * align;
        }
}

static int gpr_of(ZydisRegister reg)
{
        ZydisRegisterClass class = ZydisRegisterGetClass(reg);

        if (class != ZYDIS_REGCLASS_GPR64 && class != ZYDIS_REGCLASS_GPR32)
                return -1;
        return ZydisRegisterGetId(reg);
}

struct address {
        int base, index; /* general registers or -1 */
        uint64_t disp;
};

static struct address address_of(const struct code *code, const ZydisDecodedOperand *o)
{
        /* Zydis says RBP or R13 then. */
        bool no_base = code->z.raw.modrm.mod == 0 && code->z.raw.modrm.rm == 4 && code->z.raw.sib.base == 5 &&
                       o->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN;

        return (struct address){
                .base = no_base ? -1 : gpr_of(o->mem.base),
                .index = gpr_of(o->mem.index),
                .disp = (uint64_t)(no_base ? code->z.raw.disp.value : o->mem.disp.value),
        };
}

/* Makes the operand's address target, as far as its registers allow. */
static void aim(const struct code *code, const ZydisDecodedOperand *o, uint64_t target, struct random *r, struct image *in)
{
        struct address a = address_of(code, o);
        uint64_t offset = target - a.disp;

        if (a.index >= 0 && a.index != a.base && a.base >= 0) {
                in->gpr[a.index] = one_in(r, 2) ? random_below(r, 256) : random64(r);
                offset -= in->gpr[a.index] * o->mem.scale;
                in->gpr[a.base] = offset;
        } else if (a.index >= 0 && a.base < 0) {
                in->gpr[a.index] = offset / (o->mem.scale ? o->mem.scale : 1);
        } else if (a.index == a.base && a.base >= 0) {
                in->gpr[a.base] = offset / (1u + o->mem.scale);
        } else if (a.base >= 0) {
                in->gpr[a.base] = offset;
        }
        if (code->z.address_width == 32 && a.base >= 0 && one_in(r, 2))
                in->gpr[a.base] |= random64(r) << 32;
}

/* Absolute and RIP-relative addresses are in the instruction's own bytes. */
static void aim_bytes(struct code *code, const ZydisDecodedOperand *o, uint64_t target)
{
        uint64_t value = target;

        if (o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP)
                value = target - (code->address + code->z.length);
        else if (o->mem.base != ZYDIS_REGISTER_NONE || o->mem.index != ZYDIS_REGISTER_NONE)
                return;
        if (!code->z.raw.disp.size)
                return;
        memcpy(code->bytes + code->z.raw.disp.offset, &value, code->z.raw.disp.size / 8);
}

static bool vector_index(const ZydisDecodedOperand *o)
{
        ZydisRegisterClass class = ZydisRegisterGetClass(o->mem.index);

        return class == ZYDIS_REGCLASS_XMM || class == ZYDIS_REGCLASS_YMM;
}

static bool index_is_quad(ZydisMnemonic mnemonic)
{
        return mnemonic == ZYDIS_MNEMONIC_VGATHERQPS || mnemonic == ZYDIS_MNEMONIC_VGATHERQPD ||
               mnemonic == ZYDIS_MNEMONIC_VPGATHERQD || mnemonic == ZYDIS_MNEMONIC_VPGATHERQQ;
}

static void small_indices(struct random *r, unsigned reg, bool wide, struct image *in)
{
        for (unsigned n = 0; n < 4; n++) {
                uint64_t value = wide ? random_below(r, 200) : random_below(r, 200) | (uint64_t)random_below(r, 200) << 32;

                if (one_in(r, 20))
                        value = random64(r);
                memcpy(in->xsave + (n < 2 ? 160 : 576) + reg * 16 + n % 2 * 8, &value, 8);
        }
}

/* Images that a state-loading instruction accepts, mostly. */
static void state_image(const struct code *code, struct random *r, uint64_t target, struct patch *patch)
{
        uint32_t mxcsr = (uint32_t)random64(r) & (one_in(r, 16) ? UINT32_MAX : 0xffff);
        uint64_t header[8] = { random64(r) & 7 };

        patch->linear = target;
        switch (code->z.mnemonic) {
        case ZYDIS_MNEMONIC_LDMXCSR:
        case ZYDIS_MNEMONIC_VLDMXCSR:
                patch->size = 4;
                memcpy(patch->bytes, &mxcsr, 4);
                return;
        case ZYDIS_MNEMONIC_XRSTOR:
        case ZYDIS_MNEMONIC_XRSTOR64:
        case ZYDIS_MNEMONIC_FXRSTOR:
        case ZYDIS_MNEMONIC_FXRSTOR64:
                floating_state(r, patch->bytes);
                memcpy(patch->bytes + 24, &mxcsr, 4);
                if (one_in(r, 3))
                        header[1] = UINT64_C(1) << 63 | (one_in(r, 4) ? random64(r) & 7 : 7);
                if (one_in(r, 16))
                        header[random_below(r, 8)] |= random64(r) & 7;
                memcpy(patch->bytes + 512, header, sizeof(header));
                patch->size =
                        code->z.mnemonic == ZYDIS_MNEMONIC_FXRSTOR || code->z.mnemonic == ZYDIS_MNEMONIC_FXRSTOR64 ? 512 : 832;
                return;
        case ZYDIS_MNEMONIC_XSAVE:
        case ZYDIS_MNEMONIC_XSAVE64:
        case ZYDIS_MNEMONIC_XSAVEOPT:
        case ZYDIS_MNEMONIC_XSAVEOPT64:
                patch->linear = target + 512;
                patch->size = 64;
                memcpy(patch->bytes, header, sizeof(header));
                return;
        default: /* numbers of all types */
                patch->size = 64;
                for (unsigned n = 0; n < 64; n += 16)
                        lane(r, patch->bytes + n);
                if (one_in(r, 4))
                        extended(r, patch->bytes);
        }
}

static bool is_state(ZydisMnemonic mnemonic)
{
        switch (mnemonic) {
        case ZYDIS_MNEMONIC_XRSTOR:
        case ZYDIS_MNEMONIC_XRSTOR64:
        case ZYDIS_MNEMONIC_XSAVE:
        case ZYDIS_MNEMONIC_XSAVE64:
        case ZYDIS_MNEMONIC_XSAVEC:
        case ZYDIS_MNEMONIC_XSAVEC64:
        case ZYDIS_MNEMONIC_XSAVEOPT:
        case ZYDIS_MNEMONIC_XSAVEOPT64:
                return true;
        default:
                return false;
        }
}

static void special(const struct code *code, struct random *r, struct image *in, struct patch *patch)
{
        uint64_t value;

        if (is_state(code->z.mnemonic)) {
                in->gpr[0] = (in->gpr[0] & ~UINT64_C(0xffffffff)) | (random64(r) & 7);
                in->gpr[2] &= ~UINT64_C(0xffffffff);
        }
        switch (code->z.mnemonic) {
        case ZYDIS_MNEMONIC_POPF:
        case ZYDIS_MNEMONIC_POPFQ: /* single step and alignment checks would hit the test itself */
                value = random64(r) & ~UINT64_C(0x40100);
                patch->size = 8;
                memcpy(patch->bytes, &value, 8);
                return;
        case ZYDIS_MNEMONIC_CMPXCHG8B:
        case ZYDIS_MNEMONIC_CMPXCHG16B:
                if (one_in(r, 2)) {
                        memcpy(patch->bytes, &in->gpr[0], 4);
                        memcpy(patch->bytes + (code->z.mnemonic == ZYDIS_MNEMONIC_CMPXCHG8B ? 4 : 8), &in->gpr[2], 4);
                }
                return;
        case ZYDIS_MNEMONIC_BT:
        case ZYDIS_MNEMONIC_BTS:
        case ZYDIS_MNEMONIC_BTR:
        case ZYDIS_MNEMONIC_BTC:
                if (code->operand[1].type == ZYDIS_OPERAND_TYPE_REGISTER) {
                        int n = ZydisRegisterGetId(code->operand[1].reg.value);

                        if (n >= 0 && n < 16 && ZydisRegisterGetId(code->operand[0].mem.base) != n)
                                in->gpr[n] = (uint64_t)((int64_t)random_below(r, 4000) - 2000);
                }
                return;
        case ZYDIS_MNEMONIC_DIV:
        case ZYDIS_MNEMONIC_IDIV: /* overflow is the rule else */
                if (one_in(r, 4))
                        return;
                in->gpr[2] = one_in(r, 2) ? (uint64_t)((int64_t)in->gpr[0] >> 63) : random_below(r, 3);
                if (code->operand[0].size == 8)
                        in->gpr[0] = (in->gpr[0] & ~UINT64_C(0xff00)) | (in->gpr[2] & 3) << 8;
                return;
        default:
                break;
        }
        /* Strings that overlap. */
        if (code->z.meta.category == ZYDIS_CATEGORY_STRINGOP && code->z.mnemonic >= ZYDIS_MNEMONIC_MOVSB &&
            code->z.mnemonic <= ZYDIS_MNEMONIC_MOVSW && one_in(r, 3))
                in->gpr[7] = in->gpr[6] + random_below(r, 32) - 16;
}

/* Not into the instruction or what the native side puts after it. */
static uint64_t branch_away(const struct code *code, struct random *r, unsigned range)
{
        unsigned distance = 24 + random_below(r, range - 24);

        return one_in(r, 2) ? code->address - distance : code->address + code->z.length + distance;
}

/* Near branches through a register or memory, and returns, go to the code area. */
static void branch_target(struct code *code, struct random *r, struct image *in, struct patch *patch)
{
        uint64_t to = branch_away(code, r, 0x2000);

        if (code->operand[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && code->operand[0].imm.is_relative) {
                unsigned size = code->z.raw.imm[0].size / 8u;
                uint64_t relative = (size == 1 ? branch_away(code, r, 100) : to) - (code->address + code->z.length);

                memcpy(code->bytes + code->z.raw.imm[0].offset, &relative, size);
                return;
        }
        if (one_in(r, 30))
                to = random64(r);
        if (code->operand[0].type == ZYDIS_OPERAND_TYPE_REGISTER && gpr_of(code->operand[0].reg.value) >= 0 &&
            gpr_of(code->operand[0].reg.value) != 4)
                in->gpr[gpr_of(code->operand[0].reg.value)] = to;
        patch->size = 8;
        memcpy(patch->bytes, &to, 8);
}

void operands_image(struct random *r, bool code32, uint64_t rip, struct image *in)
{
        uint64_t mask = code32 ? UINT32_MAX : UINT64_MAX;

        for (unsigned n = 0; n < 16; n++)
                in->gpr[n] = integer(r) & mask;
        in->gpr[4] = DATA_BASE + 2048 + random_below(r, 4096) / 8 * 8;
        in->rflags = 0x202 | (random64(r) & STATUS) | (one_in(r, 8) ? 0x400 : 0);
        in->rip = rip;
        floating_state(r, in->xsave);
}

static bool repeated(const struct code *code)
{
        return code->z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE);
}

static unsigned operand_bytes(const struct code *code, const ZydisDecodedOperand *o)
{
        unsigned size = o->size / 8;

        return is_state(code->z.mnemonic) ? 832 : size ? MIN(size, 512u) : 8;
}

void operands_make(struct code *code, bool code32, struct random *r, struct image *in, struct patch *patch)
{
        const ZydisDecodedOperand *vsib = NULL;
        uint64_t target = 0;

        patch->size = 0;
        operands_image(r, code32, code->address, in);
        if (repeated(code))
                in->gpr[1] = random_below(r, one_in(r, 4) ? 300 : 20) | (code->z.address_width == 32 ? random64(r) << 32 : 0);
        for (unsigned n = code->z.operand_count; n-- > 0;) {
                const ZydisDecodedOperand *o = &code->operand[n];

                if (o->type != ZYDIS_OPERAND_TYPE_MEMORY)
                        continue;
                target = target_for(r, operand_bytes(code, o));
                aim_bytes(code, o, target);
                aim(code, o, target, r, in);
                if (vector_index(o))
                        vsib = o;
                if (n < code->z.operand_count_visible || !patch->size)
                        state_image(code, r, target, patch);
        }
        if (vsib)
                small_indices(r, (unsigned)ZydisRegisterGetId(vsib->mem.index), index_is_quad(code->z.mnemonic), in);
        special(code, r, in, patch);
        if (code_branches(code))
                branch_target(code, r, in, patch);
        if (code->z.mnemonic == ZYDIS_MNEMONIC_LEAVE || code->z.mnemonic == ZYDIS_MNEMONIC_ENTER)
                in->gpr[5] = DATA_BASE + 2048 + random_below(r, 4096) / 8 * 8;
        for (unsigned n = 0; n < 16 && code32; n++)
                in->gpr[n] &= UINT32_MAX;
}

/* ---- behind other instructions ---- */

static bool is_held(const struct registers *regs, int n)
{
        return n == X86_RSP || (regs->held >> n & 1);
}

static bool is_free(const struct registers *regs, int n)
{
        return n >= 0 && !is_held(regs, n) && !(regs->written >> n & 1);
}

/* Takes a register that no instruction cares about yet. */
static void hold(struct registers *regs, struct image *in, int n, uint64_t value)
{
        in->gpr[n] = value;
        regs->held |= 1u << n;
}

/* A small displacement most often, so that operands lie side by side; inside of the data when what it counts from is. */
static bool lies_near(struct code *code, const ZydisDecodedOperand *o, uint64_t rest, struct random *r)
{
        int32_t disp = (int32_t)random_below(r, 256) - 128;
        uint64_t address = rest + (uint64_t)(int64_t)disp;

        if (!code->z.raw.disp.size || code->z.raw.disp.size == 16 || o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN || one_in(r, 4) ||
            address < DATA_BASE || address + o->size / 8u > DATA_BASE + DATA_BYTES)
                return false;
        if (o->size >= 128 && code->z.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY)
                disp -= (int32_t)(address % 16);
        if (disp < -128 || rest + (uint64_t)(int64_t)disp < DATA_BASE)
                return false;
        memcpy(code->bytes + code->z.raw.disp.offset, &disp, code->z.raw.disp.size / 8);
        return true;
}

/* The address as it is with held registers: inside of the data, or made so by a displacement. */
static bool address_serves(struct code *code, const ZydisDecodedOperand *o, const struct address *a, uint64_t target,
                           struct random *r, const struct image *in)
{
        uint64_t rest = (a->base >= 0 ? in->gpr[a->base] : 0) + (a->index >= 0 ? in->gpr[a->index] * o->mem.scale : 0);
        uint64_t address = rest + a->disp, size = o->size / 8u;
        int64_t disp = (int64_t)(target - rest);

        if (lies_near(code, o, rest, r))
                return true;
        if (code->z.raw.disp.size == 32 && disp == (int32_t)disp && o->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN) {
                memcpy(code->bytes + code->z.raw.disp.offset, &disp, 4);
                return true;
        }
        if (address < DATA_BASE || address + size > DATA_BASE + DATA_BYTES)
                return one_in(r, 32);
        if (size >= 16 && address % 16 && code->z.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY)
                return one_in(r, 8);
        return true;
}

static bool join_memory(struct code *code, const ZydisDecodedOperand *o, struct random *r, struct registers *regs,
                        struct image *in)
{
        struct address a = address_of(code, o);
        uint64_t target = target_for(r, operand_bytes(code, o));
        bool index_free = is_free(regs, a.index) && a.index != a.base, base_free = is_free(regs, a.base);

        if ((a.base >= 0 && !is_held(regs, a.base) && !base_free) ||
            (a.index >= 0 && !is_held(regs, a.index) && !is_free(regs, a.index)))
                return one_in(r, 64);
        if (vector_index(o)) {
                unsigned n = (unsigned)ZydisRegisterGetId(o->mem.index);

                if (regs->written >> (16 + n) & 1)
                        return one_in(r, 64);
                if (!(regs->held >> (16 + n) & 1))
                        small_indices(r, n, index_is_quad(code->z.mnemonic), in);
                regs->held |= 1u << (16 + n);
        }
        if (a.base < 0 && a.index < 0) {
                aim_bytes(code, o, target);
                return true;
        }
        if (index_free && a.base >= 0)
                hold(regs, in, a.index, one_in(r, 4) ? random64(r) : random_below(r, 64));
        if (a.base < 0 && index_free)
                hold(regs, in, a.index, (target - a.disp) / (o->mem.scale ? o->mem.scale : 1u));
        else if (base_free && a.index == a.base)
                hold(regs, in, a.base, (target - a.disp) / (1u + o->mem.scale));
        else if (base_free)
                hold(regs, in, a.base, target - a.disp - (a.index >= 0 ? in->gpr[a.index] * o->mem.scale : 0));
        else
                return address_serves(code, o, &a, target, r, in);
        return true;
}

/* Counts, bit numbers and dividends. */
static bool join_values(const struct code *code, struct random *r, struct registers *regs, struct image *in)
{
        int n;

        if (repeated(code)) {
                if (!is_free(regs, 1))
                        return one_in(r, 64);
                in->gpr[1] = random_below(r, 20);
        }
        switch (code->z.mnemonic) {
        case ZYDIS_MNEMONIC_BT:
        case ZYDIS_MNEMONIC_BTS:
        case ZYDIS_MNEMONIC_BTR:
        case ZYDIS_MNEMONIC_BTC:
                if (code->operand[0].type != ZYDIS_OPERAND_TYPE_MEMORY || code->operand[1].type != ZYDIS_OPERAND_TYPE_REGISTER)
                        return true;
                n = ZydisRegisterGetId(code->operand[1].reg.value);
                if (n < 0 || n > 15 || !is_free(regs, n))
                        return one_in(r, 64);
                hold(regs, in, n, (uint64_t)((int64_t)random_below(r, 4000) - 2000));
                return true;
        case ZYDIS_MNEMONIC_DIV:
        case ZYDIS_MNEMONIC_IDIV:
                if (!is_free(regs, 2))
                        return one_in(r, 4);
                in->gpr[2] = random_below(r, 3);
                return true;
        default:
                return true;
        }
}

bool operands_join(struct code *code, struct random *r, struct registers *regs, struct image *in)
{
        for (unsigned n = code->z.operand_count; n-- > 0;) {
                const ZydisDecodedOperand *o = &code->operand[n];

                if (o->type == ZYDIS_OPERAND_TYPE_MEMORY && o->mem.type != ZYDIS_MEMOP_TYPE_AGEN &&
                    !join_memory(code, o, r, regs, in))
                        return false;
        }
        return join_values(code, r, regs, in);
}

/* ---- undefined flags ---- */

static unsigned shift_count(const struct code *code, const struct image *in)
{
        const ZydisDecodedOperand *o = &code->operand[code->z.operand_count_visible - 1];
        unsigned mask = code->operand[0].size == 64 ? 63 : 31;

        if (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
                return (unsigned)o->imm.value.u & mask;
        return (unsigned)in->gpr[1] & mask;
}

static bool rotates(ZydisMnemonic mnemonic)
{
        return mnemonic == ZYDIS_MNEMONIC_ROL || mnemonic == ZYDIS_MNEMONIC_ROR || mnemonic == ZYDIS_MNEMONIC_RCL ||
               mnemonic == ZYDIS_MNEMONIC_RCR;
}

uint64_t operands_undefined_flags(const struct code *code, const struct image *in)
{
        uint64_t undefined = code->z.cpu_flags ? code->z.cpu_flags->undefined : 0;
        unsigned count;

        switch (code->z.mnemonic) {
        case ZYDIS_MNEMONIC_SHL:
        case ZYDIS_MNEMONIC_SHR:
        case ZYDIS_MNEMONIC_SAR:
        case ZYDIS_MNEMONIC_SHLD:
        case ZYDIS_MNEMONIC_SHRD:
        case ZYDIS_MNEMONIC_ROL:
        case ZYDIS_MNEMONIC_ROR:
        case ZYDIS_MNEMONIC_RCL:
        case ZYDIS_MNEMONIC_RCR:
                if (!in)
                        return code->z.mnemonic == ZYDIS_MNEMONIC_SHLD || code->z.mnemonic == ZYDIS_MNEMONIC_SHRD ? STATUS
                               : rotates(code->z.mnemonic)                                                        ? 0x800
                                                                                                                  : 0x811;
                count = shift_count(code, in);
                if (!count)
                        return 0;
                undefined |= count == 1 ? 0 : 0x800;
                if (count == 1)
                        undefined &= ~UINT64_C(0x800);
                if (rotates(code->z.mnemonic))
                        return undefined & 0x800;
                undefined |= 0x10;
                /* CF is undefined for counts beyond the operand (SHL, SHR), everything for SHLD and SHRD. */
                if (count >= code->operand[0].size)
                        undefined |= 1;
                if (count > code->operand[0].size &&
                    (code->z.mnemonic == ZYDIS_MNEMONIC_SHLD || code->z.mnemonic == ZYDIS_MNEMONIC_SHRD))
                        undefined |= 0x8d5;
                return undefined;
        default:
                return undefined;
        }
}
