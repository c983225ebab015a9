/*
 * Bits: BT, BTS, BTR, BTC, BSF, BSR, TZCNT, LZCNT, POPCNT, CRC32. With LOCK see integer-atomic.c.
 *
 * Undefined flags as on the hardware: BT and its like change only CF; BSF and BSR clear the others but for PF, which is that of
 * the result, and with a source of 0 they leave the whole destination register alone.
 */
#include "cpu/x86/integer.h"

#define BIT_VALUE_bts(a, bit) ((a) | (bit))
#define BIT_VALUE_btr(a, bit) ((a) & ~(bit))
#define BIT_VALUE_btc(a, bit) ((a) ^ (bit))

/* In a register, or in memory with an immediate: the bit number is taken modulo the width. */
#define BIT_REGISTER(bits, op)                                                                            \
        HANDLER(op##bits##_rr)                                                                            \
        {                                                                                                 \
                unsigned n = reg_get8(cpu, i->reg[1]) & (bits - 1);                                       \
                uint##bits##_t a = reg_get##bits(cpu, i->reg[0]);                                         \
                                                                                                          \
                flags_set_cf(cpu, a >> n & 1);                                                            \
                reg_set##bits(cpu, i->reg[0], (uint##bits##_t)BIT_VALUE_##op(a, (uint##bits##_t)((uint64_t)1 << n))); \
                NEXT;                                                                                     \
        }                                                                                                 \
        HANDLER(op##bits##_ri)                                                                            \
        {                                                                                                 \
                unsigned n = i->imm & (bits - 1);                                                         \
                uint##bits##_t a = reg_get##bits(cpu, i->reg[0]);                                         \
                                                                                                          \
                flags_set_cf(cpu, a >> n & 1);                                                            \
                reg_set##bits(cpu, i->reg[0], (uint##bits##_t)BIT_VALUE_##op(a, (uint##bits##_t)((uint64_t)1 << n))); \
                NEXT;                                                                                     \
        }

#define BIT_MEMORY(bits, op)                                                                              \
        HANDLER(op##bits##_mi)                                                                            \
        {                                                                                                 \
                unsigned n = i->imm & (bits - 1);                                                         \
                                                                                                          \
                MODIFY(bits, FORM_ANY, r = (uint##bits##_t)BIT_VALUE_##op(a, (uint##bits##_t)((uint64_t)1 << n)); \
                       flags_set_cf(cpu, a >> n & 1));                                                    \
                NEXT;                                                                                     \
        }                                                                                                 \
        HANDLER(op##bits##_mr)                                                                            \
        {                                                                                                 \
                unsigned n = reg_get8(cpu, i->reg[1]) & (bits - 1);                                       \
                uint64_t linear = bit_linear(cpu, i, (int##bits##_t)reg_get##bits(cpu, i->reg[1]), bits / 8, true); \
                uint##bits##_t a;                                                                         \
                                                                                                          \
                mmu_probe_write(cpu, linear, bits / 8);                                                   \
                a = mmu_read##bits(cpu, linear);                                                          \
                mmu_write##bits(cpu, linear, (uint##bits##_t)BIT_VALUE_##op(a, (uint##bits##_t)((uint64_t)1 << n))); \
                flags_set_cf(cpu, a >> n & 1);                                                            \
                NEXT;                                                                                     \
        }

/* The operand-sized unit that holds a bit which a register numbers, relative to the operand's address and signed. */
static uint64_t bit_linear(struct x86_cpu *cpu, const struct insn *i, int64_t bit, unsigned size_bytes, bool write)
{
        uint64_t offset = insn_offset(cpu, i) + (uint64_t)((bit >> (3 + width_index(size_bytes))) * (int64_t)size_bytes);

        if (i->asize == 4)
                offset = (uint32_t)offset;
        else if (i->asize == 2)
                offset = (uint16_t)offset;
        return x86_linear(cpu, i->seg, offset, size_bytes, write);
}

FOR_EACH_WORD(BIT_REGISTER, bts)
FOR_EACH_WORD(BIT_REGISTER, btr)
FOR_EACH_WORD(BIT_REGISTER, btc)
FOR_EACH_WORD(BIT_MEMORY, bts)
FOR_EACH_WORD(BIT_MEMORY, btr)
FOR_EACH_WORD(BIT_MEMORY, btc)

#define BIT_TEST(bits)                                                                                           \
        HANDLER(bt##bits##_rr)                                                                                   \
        {                                                                                                        \
                flags_set_cf(cpu, reg_get##bits(cpu, i->reg[0]) >> (reg_get8(cpu, i->reg[1]) & (bits - 1)) & 1); \
                NEXT;                                                                                            \
        }                                                                                                        \
        HANDLER(bt##bits##_ri)                                                                                   \
        {                                                                                                        \
                flags_set_cf(cpu, reg_get##bits(cpu, i->reg[0]) >> (i->imm & (bits - 1)) & 1);                   \
                NEXT;                                                                                            \
        }                                                                                                        \
        HANDLER(bt##bits##_mi)                                                                                   \
        {                                                                                                        \
                flags_set_cf(cpu, load##bits(cpu, i, FORM_ANY) >> (i->imm & (bits - 1)) & 1);                    \
                NEXT;                                                                                            \
        }                                                                                                        \
        HANDLER(bt##bits##_mr)                                                                                   \
        {                                                                                                        \
                unsigned n = reg_get8(cpu, i->reg[1]) & (bits - 1);                                              \
                uint64_t linear = bit_linear(cpu, i, (int##bits##_t)reg_get##bits(cpu, i->reg[1]), bits / 8, false); \
                                                                                                                 \
                flags_set_cf(cpu, mmu_read##bits(cpu, linear) >> n & 1);                                         \
                NEXT;                                                                                            \
        }
FOR_EACH_WORD(BIT_TEST)

enum { BIT_RR, BIT_RI, BIT_MR, BIT_MI, BIT_FORMS };

#define BIT_ROW(bits, op) { op##bits##_rr, op##bits##_ri, op##bits##_mr, op##bits##_mi },
#define BIT_TABLE(op) static const insn_fn op##_table[3][BIT_FORMS] = { FOR_EACH_WORD(BIT_ROW, op) }
BIT_TABLE(bt);
BIT_TABLE(bts);
BIT_TABLE(btr);
BIT_TABLE(btc);

/* ---- counting ---- */

static unsigned trailing16(uint16_t a) { return (unsigned)__builtin_ctz(a); }
static unsigned trailing32(uint32_t a) { return (unsigned)__builtin_ctz(a); }
static unsigned trailing64(uint64_t a) { return (unsigned)__builtin_ctzll(a); }
static unsigned highest16(uint16_t a) { return 31u - (unsigned)__builtin_clz(a); }
static unsigned highest32(uint32_t a) { return 31u - (unsigned)__builtin_clz(a); }
static unsigned highest64(uint64_t a) { return 63u - (unsigned)__builtin_clzll(a); }

/* n is the number found, a byte. */
static inline void flags_scan(struct x86_cpu *cpu, bool found, unsigned n)
{
        cpu->lazy.carry = 0;
        cpu->lazy.result = found ? n | 0x100 : 0;
}

/* CF: the source is 0. ZF: the result is. */
static inline void flags_count(struct x86_cpu *cpu, bool source_zero, bool result_zero)
{
        flags_set_status(cpu, (source_zero ? X86_FLAG_CF : 0) | (result_zero ? X86_FLAG_ZF : 0));
}

#define COUNT(bits)                                                                     \
        static inline void do_bsf##bits(struct x86_cpu *cpu, const struct insn *i, uint##bits##_t a) \
        {                                                                               \
                unsigned n = a ? trailing##bits(a) : 0;                                \
                                                                                        \
                if (a)                                                                  \
                        reg_set##bits(cpu, i->reg[0], (uint##bits##_t)n);               \
                flags_scan(cpu, a != 0, n);                                             \
        }                                                                               \
        static inline void do_bsr##bits(struct x86_cpu *cpu, const struct insn *i, uint##bits##_t a) \
        {                                                                               \
                unsigned n = a ? highest##bits(a) : 0;                                \
                                                                                        \
                if (a)                                                                  \
                        reg_set##bits(cpu, i->reg[0], (uint##bits##_t)n);               \
                flags_scan(cpu, a != 0, n);                                             \
        }                                                                               \
        static inline void do_tzcnt##bits(struct x86_cpu *cpu, const struct insn *i, uint##bits##_t a) \
        {                                                                               \
                unsigned n = a ? trailing##bits(a) : bits;                              \
                                                                                        \
                reg_set##bits(cpu, i->reg[0], (uint##bits##_t)n);                       \
                flags_count(cpu, a == 0, n == 0);                                       \
        }                                                                               \
        static inline void do_lzcnt##bits(struct x86_cpu *cpu, const struct insn *i, uint##bits##_t a) \
        {                                                                               \
                unsigned n = a ? bits - 1 - highest##bits(a) : bits;                    \
                                                                                        \
                reg_set##bits(cpu, i->reg[0], (uint##bits##_t)n);                       \
                flags_count(cpu, a == 0, n == 0);                                       \
        }                                                                               \
        static inline void do_popcnt##bits(struct x86_cpu *cpu, const struct insn *i, uint##bits##_t a) \
        {                                                                               \
                reg_set##bits(cpu, i->reg[0], (uint##bits##_t)__builtin_popcountll(a)); \
                flags_set_status(cpu, a ? 0 : X86_FLAG_ZF);                             \
        }
FOR_EACH_WORD(COUNT)

#define COUNT_HANDLERS(bits, op)                                       \
        HANDLER(op##bits##_r)                                          \
        {                                                              \
                do_##op##bits(cpu, i, reg_get##bits(cpu, i->reg[1]));  \
                NEXT;                                                  \
        }                                                              \
        HANDLER(op##bits##_m)                                          \
        {                                                              \
                do_##op##bits(cpu, i, load##bits(cpu, i, FORM_ANY));   \
                NEXT;                                                  \
        }
FOR_EACH_WORD(COUNT_HANDLERS, bsf)
FOR_EACH_WORD(COUNT_HANDLERS, bsr)
FOR_EACH_WORD(COUNT_HANDLERS, tzcnt)
FOR_EACH_WORD(COUNT_HANDLERS, lzcnt)
FOR_EACH_WORD(COUNT_HANDLERS, popcnt)

#define COUNT_ROW(bits, op) { op##bits##_r, op##bits##_m },
#define COUNT_CASE(NAME, op)                                                                     \
        case ZYDIS_MNEMONIC_##NAME: {                                                            \
                static const insn_fn table[3][2] = { FOR_EACH_WORD(COUNT_ROW, op) };             \
                return table[width_index(insn->opsize) - 1][insn->flags & INSN_MEMORY ? 1 : 0];  \
        }

/* ---- CRC32: the polynomial of iSCSI, by the host's own instruction (models that have it need a host that has it) ---- */

#define CRC(bits, suffix, type)                                                                                             \
        __attribute__((target("sse4.2"))) static uint64_t crc##bits(uint64_t crc, uint##bits##_t value)                     \
        {                                                                                                                   \
                return __builtin_ia32_crc32##suffix((type)crc, value);                                                      \
        }                                                                                                                   \
        HANDLER(crc32_##bits##_r)                                                                                           \
        {                                                                                                                   \
                reg_set64(cpu, i->reg[0], crc##bits(reg_get32(cpu, i->reg[0]), reg_get##bits(cpu, i->reg[1])));             \
                NEXT;                                                                                                       \
        }                                                                                                                   \
        HANDLER(crc32_##bits##_m)                                                                                           \
        {                                                                                                                   \
                uint##bits##_t value = load##bits(cpu, i, FORM_ANY);                                                        \
                                                                                                                            \
                reg_set64(cpu, i->reg[0], crc##bits(reg_get32(cpu, i->reg[0]), value));                                     \
                NEXT;                                                                                                       \
        }
CRC(8, qi, uint32_t)
CRC(16, hi, uint32_t)
CRC(32, si, uint32_t)
CRC(64, di, uint64_t)

static insn_fn bind_crc32(const struct insn *insn, const struct decoded *d)
{
        static const insn_fn table[4][2] = {
                { crc32_8_r, crc32_8_m }, { crc32_16_r, crc32_16_m }, { crc32_32_r, crc32_32_m }, { crc32_64_r, crc32_64_m },
        };

        return table[width_index(d->operand[1].size / 8u)][insn->flags & INSN_MEMORY ? 1 : 0];
}

static insn_fn bind_bit(const insn_fn table[3][BIT_FORMS], const struct insn *insn, const struct decoded *d)
{
        bool immediate = d->operand[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;

        return table[width_index(insn->opsize) - 1][insn->flags & INSN_MEMORY ? (immediate ? BIT_MI : BIT_MR)
                                                                              : (immediate ? BIT_RI : BIT_RR)];
}

insn_fn bits_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        if (insn->flags & INSN_LOCK)
                return atomic_bind(cpu, insn, d);
        switch (d->z->mnemonic) {
        case ZYDIS_MNEMONIC_BT: return bind_bit(bt_table, insn, d);
        case ZYDIS_MNEMONIC_BTS: return bind_bit(bts_table, insn, d);
        case ZYDIS_MNEMONIC_BTR: return bind_bit(btr_table, insn, d);
        case ZYDIS_MNEMONIC_BTC: return bind_bit(btc_table, insn, d);
        COUNT_CASE(BSF, bsf)
        COUNT_CASE(BSR, bsr)
        COUNT_CASE(TZCNT, tzcnt)
        COUNT_CASE(LZCNT, lzcnt)
        COUNT_CASE(POPCNT, popcnt)
        case ZYDIS_MNEMONIC_CRC32: return bind_crc32(insn, d);
        default: return NULL;
        }
}
