/*
 * Shifts and rotates: SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD.
 *
 * A count is taken modulo 32 (64 with 64-bit operands); 0 changes no flag. Undefined flags are as on the hardware: OF is what a
 * count of 1 would make of the operand, whatever the count is, but ROL and ROR of a register by an immediate that is not 1
 * leave it; AF is 0 after shifts. RCL and RCR by a multiple of the width with its carry change nothing.
 */
#include "cpu/x86/integer.h"

#define TOP_TWO_DIFFER(bits, a) (((a) >> (bits - 1) ^ (a) >> (bits - 2)) & 1)

/* The operations; count is 1-31 (1-63), for the narrow ones also beyond the width. op_roli and op_rori are by an immediate. */
#define SHIFT_OPERATIONS(bits)                                                                                               \
        static inline uint##bits##_t op_shl##bits(struct x86_cpu *cpu, uint##bits##_t a, unsigned count)                     \
        {                                                                                                                    \
                uint##bits##_t before = (uint##bits##_t)((uint64_t)a << (count - 1)); /* all but the last step */            \
                uint##bits##_t r = (uint##bits##_t)(before << 1);                                                            \
                                                                                                                             \
                flags_given##bits(cpu, r, before >> (bits - 1), TOP_TWO_DIFFER(bits, a), 0);                                 \
                return r;                                                                                                    \
        }                                                                                                                    \
        static inline uint##bits##_t op_shr##bits(struct x86_cpu *cpu, uint##bits##_t a, unsigned count)                     \
        {                                                                                                                    \
                uint##bits##_t before = (uint##bits##_t)((uint64_t)a >> (count - 1));                                        \
                uint##bits##_t r = before >> 1;                                                                              \
                                                                                                                             \
                flags_given##bits(cpu, r, before & 1, a >> (bits - 1), 0);                                                   \
                return r;                                                                                                    \
        }                                                                                                                    \
        static inline uint##bits##_t op_sar##bits(struct x86_cpu *cpu, uint##bits##_t a, unsigned count)                     \
        {                                                                                                                    \
                int64_t before = (int64_t)(int##bits##_t)a >> (count - 1);                                                   \
                uint##bits##_t r = (uint##bits##_t)(before >> 1);                                                            \
                                                                                                                             \
                flags_given##bits(cpu, r, before & 1, 0, 0);                                                                 \
                return r;                                                                                                    \
        }                                                                                                                    \
        static inline uint##bits##_t rotate_left##bits(uint##bits##_t a, unsigned n)                                         \
        {                                                                                                                    \
                n %= bits;                                                                                                   \
                return n ? (uint##bits##_t)(a << n | a >> (bits - n)) : a;                                                   \
        }                                                                                                                    \
        static inline uint##bits##_t op_rol##bits(struct x86_cpu *cpu, uint##bits##_t a, unsigned count)                     \
        {                                                                                                                    \
                uint##bits##_t r = rotate_left##bits(a, count);                                                              \
                                                                                                                             \
                flags_set_cf_of(cpu, r & 1, TOP_TWO_DIFFER(bits, a));                                                        \
                return r;                                                                                                    \
        }                                                                                                                    \
        static inline uint##bits##_t op_roli##bits(struct x86_cpu *cpu, uint##bits##_t a, unsigned count)                    \
        {                                                                                                                    \
                uint##bits##_t r = rotate_left##bits(a, count);                                                              \
                                                                                                                             \
                if (count == 1)                                                                                              \
                        return op_rol##bits(cpu, a, count);                                                                  \
                flags_set_cf(cpu, r & 1);                                                                                    \
                return r;                                                                                                    \
        }                                                                                                                    \
        static inline uint##bits##_t op_ror##bits(struct x86_cpu *cpu, uint##bits##_t a, unsigned count)                     \
        {                                                                                                                    \
                uint##bits##_t r = rotate_left##bits(a, bits - count % bits);                                                \
                                                                                                                             \
                flags_set_cf_of(cpu, r >> (bits - 1), (a ^ (a >> (bits - 1))) & 1);                                          \
                return r;                                                                                                    \
        }                                                                                                                    \
        static inline uint##bits##_t op_rori##bits(struct x86_cpu *cpu, uint##bits##_t a, unsigned count)                    \
        {                                                                                                                    \
                uint##bits##_t r = rotate_left##bits(a, bits - count % bits);                                                \
                                                                                                                             \
                if (count == 1)                                                                                              \
                        return op_ror##bits(cpu, a, count);                                                                  \
                flags_set_cf(cpu, r >> (bits - 1));                                                                          \
                return r;                                                                                                    \
        }                                                                                                                    \
        static inline uint##bits##_t op_rcl##bits(struct x86_cpu *cpu, uint##bits##_t a, unsigned count)                     \
        {                                                                                                                    \
                unsigned n = count % (bits + 1);                                                                             \
                unsigned __int128 wide = (unsigned __int128)flag_cf(cpu) << bits | a;                                        \
                                                                                                                             \
                if (!n)                                                                                                      \
                        return a;                                                                                            \
                wide = wide << n | wide >> (bits + 1 - n);                                                                   \
                flags_set_cf_of(cpu, (uint64_t)(wide >> bits) & 1, TOP_TWO_DIFFER(bits, a));                                 \
                return (uint##bits##_t)wide;                                                                                 \
        }                                                                                                                    \
        static inline uint##bits##_t op_rcr##bits(struct x86_cpu *cpu, uint##bits##_t a, unsigned count)                     \
        {                                                                                                                    \
                unsigned n = count % (bits + 1);                                                                             \
                uint64_t cf = flag_cf(cpu);                                                                                  \
                unsigned __int128 wide = (unsigned __int128)cf << bits | a;                                                  \
                                                                                                                             \
                if (!n)                                                                                                      \
                        return a;                                                                                            \
                wide = wide >> n | wide << (bits + 1 - n);                                                                   \
                flags_set_cf_of(cpu, (uint64_t)(wide >> bits) & 1, cf ^ (a >> (bits - 1)));                                  \
                return (uint##bits##_t)wide;                                                                                 \
        }
FOR_EACH_WIDTH(SHIFT_OPERATIONS)

#define COUNT_MASK(bits) (bits == 64 ? 63u : 31u)

/* An immediate count was masked by the binder and is not 0. */
#define SHIFT(bits, op, opi)                                                                                        \
        HANDLER(op##bits##_ri)                                                                                   \
        {                                                                                                        \
                reg_set##bits(cpu, i->reg[0], op_##opi##bits(cpu, reg_get##bits(cpu, i->reg[0]), (unsigned)i->imm)); \
                NEXT;                                                                                            \
        }                                                                                                        \
        HANDLER(op##bits##_rc)                                                                                   \
        {                                                                                                        \
                unsigned count = reg_get8(cpu, RCX_AT) & COUNT_MASK(bits);                                       \
                uint##bits##_t a = reg_get##bits(cpu, i->reg[0]);                                                \
                                                                                                                 \
                reg_set##bits(cpu, i->reg[0], count ? op_##op##bits(cpu, a, count) : a);                         \
                NEXT;                                                                                            \
        }                                                                                                        \
        HANDLER(op##bits##_mi)                                                                                   \
        {                                                                                                        \
                MODIFY(bits, FORM_ANY, r = op_##op##bits(cpu, a, (unsigned)i->imm));                             \
                NEXT;                                                                                            \
        }                                                                                                        \
        HANDLER(op##bits##_mc)                                                                                   \
        {                                                                                                        \
                unsigned count = reg_get8(cpu, RCX_AT) & COUNT_MASK(bits);                                       \
                                                                                                                 \
                MODIFY(bits, FORM_ANY, r = count ? op_##op##bits(cpu, a, count) : a);                            \
                NEXT;                                                                                            \
        }
FOR_EACH_WIDTH(SHIFT, shl, shl)
FOR_EACH_WIDTH(SHIFT, shr, shr)
FOR_EACH_WIDTH(SHIFT, sar, sar)
FOR_EACH_WIDTH(SHIFT, rol, roli)
FOR_EACH_WIDTH(SHIFT, ror, rori)
FOR_EACH_WIDTH(SHIFT, rcl, rcl)
FOR_EACH_WIDTH(SHIFT, rcr, rcr)

/* A count of 0 by immediate. */
HANDLER(shift_nothing32)
{
        reg_set32(cpu, i->reg[0], reg_get32(cpu, i->reg[0]));
        NEXT;
}

HANDLER(shift_nothing)
{
        NEXT;
}

#define SHIFT_NOTHING_MEMORY(bits)              \
        HANDLER(shift_nothing_m##bits)          \
        {                                       \
                MODIFY(bits, FORM_ANY, r = a);  \
                NEXT;                           \
        }
FOR_EACH_WIDTH(SHIFT_NOTHING_MEMORY)

/* ---- double shifts ---- */

/*
 * With 16 bits and a count above 16 the manual leaves everything undefined. The hardware goes on through destination, source,
 * destination: as if 48 bits were shifted.
 */
static inline uint16_t op_shld16(struct x86_cpu *cpu, uint16_t a, uint16_t b, unsigned count)
{
        uint64_t wide = (uint64_t)a << 32 | (uint64_t)b << 16 | a;
        uint64_t cf = wide >> (48 - count) & 1;
        uint16_t r = (uint16_t)(wide << count >> 32);

        flags_given16(cpu, r, cf, TOP_TWO_DIFFER(16, a), 0);
        return r;
}

static inline uint16_t op_shrd16(struct x86_cpu *cpu, uint16_t a, uint16_t b, unsigned count)
{
        uint64_t wide = (uint64_t)a << 32 | (uint64_t)b << 16 | a;
        uint16_t r = (uint16_t)(wide >> count);

        flags_given16(cpu, r, wide >> (count - 1) & 1, (b ^ a >> 15) & 1, 0);
        return r;
}

#define DOUBLE_OPERATIONS(bits)                                                                                       \
        static inline uint##bits##_t op_shld##bits(struct x86_cpu *cpu, uint##bits##_t a, uint##bits##_t b, unsigned count) \
        {                                                                                                             \
                uint##bits##_t r = a << count | b >> (bits - count);                                                  \
                uint64_t cf = a >> (bits - count) & 1;                                                                \
                                                                                                                      \
                flags_given##bits(cpu, r, cf, TOP_TWO_DIFFER(bits, a), 0);                                            \
                return r;                                                                                             \
        }                                                                                                             \
        static inline uint##bits##_t op_shrd##bits(struct x86_cpu *cpu, uint##bits##_t a, uint##bits##_t b, unsigned count) \
        {                                                                                                             \
                uint##bits##_t r = a >> count | b << (bits - count);                                                  \
                                                                                                                      \
                flags_given##bits(cpu, r, a >> (count - 1) & 1, (b ^ a >> (bits - 1)) & 1, 0);                        \
                return r;                                                                                             \
        }
DOUBLE_OPERATIONS(32)
DOUBLE_OPERATIONS(64)

#define DOUBLE_COUNT(bits) \
        ((d_imm ? (unsigned)i->imm : reg_get8(cpu, RCX_AT)) & COUNT_MASK(bits))

#define DOUBLE_FORM(bits, op, suffix, immediate)                                                            \
        HANDLER(op##bits##_r##suffix)                                                                       \
        {                                                                                                   \
                const bool d_imm = immediate;                                                               \
                unsigned count = DOUBLE_COUNT(bits);                                                        \
                uint##bits##_t a = reg_get##bits(cpu, i->reg[0]), b = reg_get##bits(cpu, i->reg[1]);        \
                                                                                                            \
                reg_set##bits(cpu, i->reg[0], count ? op_##op##bits(cpu, a, b, count) : a);                 \
                NEXT;                                                                                       \
        }                                                                                                   \
        HANDLER(op##bits##_m##suffix)                                                                       \
        {                                                                                                   \
                const bool d_imm = immediate;                                                               \
                unsigned count = DOUBLE_COUNT(bits);                                                        \
                uint##bits##_t b = reg_get##bits(cpu, i->reg[1]);                                           \
                                                                                                            \
                MODIFY(bits, FORM_ANY, r = count ? op_##op##bits(cpu, a, b, count) : a);                    \
                NEXT;                                                                                       \
        }
#define DOUBLE(bits, op) DOUBLE_FORM(bits, op, i, true) DOUBLE_FORM(bits, op, c, false)
FOR_EACH_WORD(DOUBLE, shld)
FOR_EACH_WORD(DOUBLE, shrd)

/* ---- binding ---- */

enum { SHIFT_RI, SHIFT_RC, SHIFT_MI, SHIFT_MC, SHIFT_FORMS };

#define SHIFT_ROW(bits, op) { op##bits##_ri, op##bits##_rc, op##bits##_mi, op##bits##_mc },
#define SHIFT_TABLE(op) static const insn_fn op##_table[4][SHIFT_FORMS] = { FOR_EACH_WIDTH(SHIFT_ROW, op) }
SHIFT_TABLE(shl);
SHIFT_TABLE(shr);
SHIFT_TABLE(sar);
SHIFT_TABLE(rol);
SHIFT_TABLE(ror);
SHIFT_TABLE(rcl);
SHIFT_TABLE(rcr);
#define DOUBLE_TABLE(op) static const insn_fn op##_table[4][SHIFT_FORMS] = { { NULL }, FOR_EACH_WORD(SHIFT_ROW, op) }
DOUBLE_TABLE(shld);
DOUBLE_TABLE(shrd);

static insn_fn bind_nothing(const struct insn *insn)
{
        static const insn_fn memory[] = { shift_nothing_m8, shift_nothing_m16, shift_nothing_m32, shift_nothing_m64 };

        if (insn->flags & INSN_MEMORY)
                return memory[width_index(insn->opsize)];
        return insn->opsize == 4 ? shift_nothing32 : shift_nothing;
}

insn_fn shift_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        const insn_fn(*table)[SHIFT_FORMS];
        unsigned count_operand = 1;
        bool immediate;

        switch (d->z->mnemonic) {
        case ZYDIS_MNEMONIC_SHL: table = shl_table; break;
        case ZYDIS_MNEMONIC_SHR: table = shr_table; break;
        case ZYDIS_MNEMONIC_SAR: table = sar_table; break;
        case ZYDIS_MNEMONIC_ROL: table = rol_table; break;
        case ZYDIS_MNEMONIC_ROR: table = ror_table; break;
        case ZYDIS_MNEMONIC_RCL: table = rcl_table; break;
        case ZYDIS_MNEMONIC_RCR: table = rcr_table; break;
        case ZYDIS_MNEMONIC_SHLD: table = shld_table; count_operand = 2; break;
        case ZYDIS_MNEMONIC_SHRD: table = shrd_table; count_operand = 2; break;
        default: return NULL;
        }
        immediate = d->operand[count_operand].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
        if (immediate) {
                insn->imm &= insn->opsize == 8 ? 63 : 31;
                if (!insn->imm)
                        return bind_nothing(insn);
        }
        return table[width_index(insn->opsize)][insn->flags & INSN_MEMORY ? (immediate ? SHIFT_MI : SHIFT_MC)
                                                                          : (immediate ? SHIFT_RI : SHIFT_RC)];
}
