/*
 * Atomic read-modify-write: everything with LOCK, XCHG with memory (always locked), XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B.
 *
 * On plain memory within a page this is a compare-and-exchange of the host at the same address, aligned or not (an unaligned one
 * that crosses a cache line is a split lock there as it would be natively). Where there is no host pointer (two pages, devices,
 * a page that holds code) other processors are stopped around the read and the write. CMPXCHG and its kind write
 * in every case: the old value when the comparison fails (SDM vol. 2 "CMPXCHG"), so a read-only page faults either way.
 */
#include "cpu/x86/integer.h"

/* May be unaligned. */
typedef uint8_t loose8_t;
typedef uint16_t __attribute__((aligned(1))) loose16_t;
typedef uint32_t __attribute__((aligned(1))) loose32_t;
typedef uint64_t __attribute__((aligned(1))) loose64_t;

/* At any alignment: clang makes library calls with locks of their own of the builtins when a type's alignment is small. */
#define EXCHANGE_IF(bits)                                                                                                  \
        static _always_inline_ bool exchange_if##bits(loose##bits##_t *at, uint##bits##_t *old, uint##bits##_t new)        \
        {                                                                                                                  \
                bool same;                                                                                                 \
                                                                                                                           \
                __asm__ volatile("lock cmpxchg %[new], %[at]"                                                              \
                                 : "=@ccz"(same), [at] "+m"(*at), "+a"(*old)                                               \
                                 : [new] "q"(new)                                                                          \
                                 : "memory");                                                                              \
                return same;                                                                                               \
        }
FOR_EACH_WIDTH(EXCHANGE_IF)

enum locked {
        LOCKED_ADD,
        LOCKED_OR,
        LOCKED_ADC,
        LOCKED_SBB,
        LOCKED_AND,
        LOCKED_SUB,
        LOCKED_XOR,
        LOCKED_INC,
        LOCKED_DEC,
        LOCKED_NEG,
        LOCKED_NOT,
        LOCKED_XCHG,
        LOCKED_XADD,
        LOCKED_BTS,
        LOCKED_BTR,
        LOCKED_BTC,
        LOCKED_OPS,
};

/* The new value of a with operand b. cf is as before the instruction. */
#define LOCKED_VALUE(bits)                                                                                                \
        static _always_inline_ uint##bits##_t locked_value##bits(enum locked op, uint##bits##_t a, uint##bits##_t b, bool cf) \
        {                                                                                                                 \
                switch (op) {                                                                                             \
                case LOCKED_ADD:                                                                                          \
                case LOCKED_XADD: return (uint##bits##_t)(a + b);                                                         \
                case LOCKED_OR:                                                                                           \
                case LOCKED_BTS: return a | b;                                                                            \
                case LOCKED_ADC: return (uint##bits##_t)(a + b + cf);                                                     \
                case LOCKED_SBB: return (uint##bits##_t)(a - b - cf);                                                     \
                case LOCKED_AND: return a & b;                                                                            \
                case LOCKED_BTR: return (uint##bits##_t)(a & ~b);                                                         \
                case LOCKED_SUB: return (uint##bits##_t)(a - b);                                                          \
                case LOCKED_XOR:                                                                                          \
                case LOCKED_BTC: return a ^ b;                                                                            \
                case LOCKED_INC: return (uint##bits##_t)(a + 1);                                                          \
                case LOCKED_DEC: return (uint##bits##_t)(a - 1);                                                          \
                case LOCKED_NEG: return (uint##bits##_t)(0 - a);                                                          \
                case LOCKED_NOT: return (uint##bits##_t)~a;                                                               \
                default: return b;                                                                                        \
                }                                                                                                         \
        }                                                                                                                 \
        static _always_inline_ void locked_flags##bits(struct x86_cpu *cpu, enum locked op, uint##bits##_t a, uint##bits##_t b, \
                                                       uint##bits##_t r)                                                  \
        {                                                                                                                 \
                switch (op) {                                                                                             \
                case LOCKED_ADD:                                                                                          \
                case LOCKED_XADD:                                                                                         \
                case LOCKED_ADC: flags_sum##bits(cpu, a, b, r); break;                                                    \
                case LOCKED_SUB:                                                                                          \
                case LOCKED_SBB: flags_difference##bits(cpu, a, b, r); break;                                             \
                case LOCKED_OR:                                                                                           \
                case LOCKED_AND:                                                                                          \
                case LOCKED_XOR: flags_logic##bits(cpu, r); break;                                                        \
                case LOCKED_INC: flags_increment##bits(cpu, r); break;                                                    \
                case LOCKED_DEC: flags_decrement##bits(cpu, r); break;                                                    \
                case LOCKED_NEG: flags_difference##bits(cpu, 0, a, r); break;                                             \
                case LOCKED_BTS:                                                                                          \
                case LOCKED_BTR:                                                                                          \
                case LOCKED_BTC: flags_set_cf(cpu, (a & b) != 0); break;                                                  \
                default: break;                                                                                           \
                }                                                                                                         \
        }                                                                                                                 \
        /* The old value. */                                                                                              \
        static _always_inline_ uint##bits##_t locked##bits(struct x86_cpu *cpu, enum locked op, uint64_t linear, uint##bits##_t b) \
        {                                                                                                                 \
                loose##bits##_t *at = mmu_rmw(cpu, linear, bits / 8);                                                     \
                bool cf = flag_cf(cpu);                                                                                   \
                uint##bits##_t a, r;                                                                                      \
                                                                                                                          \
                if (likely(at)) {                                                                                         \
                        a = *(const volatile loose##bits##_t *)at;                                                        \
                        do                                                                                                \
                                r = locked_value##bits(op, a, b, cf);                                                     \
                        while (!exchange_if##bits(at, &a, r));                                                            \
                } else {                                                                                                  \
                        complex_exclusive_begin(cpu);                                                                     \
                        a = mmu_read##bits(cpu, linear);                                                                  \
                        r = locked_value##bits(op, a, b, cf);                                                             \
                        mmu_write##bits(cpu, linear, r);                                                                  \
                        complex_exclusive_end(cpu);                                                                       \
                }                                                                                                         \
                locked_flags##bits(cpu, op, a, b, r);                                                                     \
                return a;                                                                                                 \
        }
FOR_EACH_WIDTH(LOCKED_VALUE)

#define LOCKED(bits, op, OP)                                                                                       \
        HANDLER(locked_##op##bits##_mr)                                                                            \
        {                                                                                                          \
                locked##bits(cpu, OP, insn_linear(cpu, i, bits / 8, true), reg_get##bits(cpu, i->reg[1]));         \
                NEXT;                                                                                              \
        }                                                                                                          \
        HANDLER(locked_##op##bits##_mi)                                                                            \
        {                                                                                                          \
                locked##bits(cpu, OP, insn_linear(cpu, i, bits / 8, true), (uint##bits##_t)i->imm);                \
                NEXT;                                                                                              \
        }
FOR_EACH_WIDTH(LOCKED, add, LOCKED_ADD)
FOR_EACH_WIDTH(LOCKED, or, LOCKED_OR)
FOR_EACH_WIDTH(LOCKED, adc, LOCKED_ADC)
FOR_EACH_WIDTH(LOCKED, sbb, LOCKED_SBB)
FOR_EACH_WIDTH(LOCKED, and, LOCKED_AND)
FOR_EACH_WIDTH(LOCKED, sub, LOCKED_SUB)
FOR_EACH_WIDTH(LOCKED, xor, LOCKED_XOR)

#define LOCKED_UNARY(bits, op, OP)                                                      \
        HANDLER(locked_##op##bits)                                                      \
        {                                                                               \
                locked##bits(cpu, OP, insn_linear(cpu, i, bits / 8, true), 0);          \
                NEXT;                                                                   \
        }
FOR_EACH_WIDTH(LOCKED_UNARY, inc, LOCKED_INC)
FOR_EACH_WIDTH(LOCKED_UNARY, dec, LOCKED_DEC)
FOR_EACH_WIDTH(LOCKED_UNARY, neg, LOCKED_NEG)
FOR_EACH_WIDTH(LOCKED_UNARY, not, LOCKED_NOT)

/* The memory operand may be written as the first or the second: the register is the other one. */
#define EXCHANGE(bits)                                                                                                     \
        HANDLER(xchg##bits##_m)                                                                                            \
        {                                                                                                                  \
                uint8_t reg = i->reg[i->memory_operand ? 0 : 1];                                                           \
                                                                                                                           \
                reg_set##bits(cpu, reg, locked##bits(cpu, LOCKED_XCHG, insn_linear(cpu, i, bits / 8, true), reg_get##bits(cpu, reg))); \
                NEXT;                                                                                                      \
        }                                                                                                                  \
        HANDLER(locked_xadd##bits)                                                                                         \
        {                                                                                                                  \
                uint##bits##_t b = reg_get##bits(cpu, i->reg[1]);                                                          \
                                                                                                                           \
                reg_set##bits(cpu, i->reg[1], locked##bits(cpu, LOCKED_XADD, insn_linear(cpu, i, bits / 8, true), b));     \
                NEXT;                                                                                                      \
        }                                                                                                                  \
        HANDLER(xadd##bits##_m)                                                                                            \
        {                                                                                                                  \
                uint##bits##_t b = reg_get##bits(cpu, i->reg[1]), old;                                                     \
                                                                                                                           \
                MODIFY(bits, FORM_ANY, old = a; r = (uint##bits##_t)(a + b); flags_sum##bits(cpu, a, b, r));               \
                reg_set##bits(cpu, i->reg[1], old);                                                                        \
                NEXT;                                                                                                      \
        }                                                                                                                  \
        HANDLER(xadd##bits##_r)                                                                                            \
        {                                                                                                                  \
                uint##bits##_t a = reg_get##bits(cpu, i->reg[0]), b = reg_get##bits(cpu, i->reg[1]);                       \
                uint##bits##_t r = (uint##bits##_t)(a + b);                                                                \
                                                                                                                           \
                flags_sum##bits(cpu, a, b, r);                                                                             \
                reg_set##bits(cpu, i->reg[1], a);                                                                          \
                reg_set##bits(cpu, i->reg[0], r);                                                                          \
                NEXT;                                                                                                      \
        }
FOR_EACH_WIDTH(EXCHANGE)

/* ---- compare and exchange ---- */

#define COMPARE_EXCHANGE(bits)                                                                                             \
        HANDLER(cmpxchg##bits##_r)                                                                                         \
        {                                                                                                                  \
                uint##bits##_t a = reg_get##bits(cpu, RAX_AT), b = reg_get##bits(cpu, i->reg[0]);                          \
                                                                                                                           \
                flags_difference##bits(cpu, a, b, (uint##bits##_t)(a - b));                                                \
                if (a == b)                                                                                                \
                        reg_set##bits(cpu, i->reg[0], reg_get##bits(cpu, i->reg[1]));                                      \
                else                                                                                                       \
                        reg_set##bits(cpu, RAX_AT, b);                                                                     \
                NEXT;                                                                                                      \
        }                                                                                                                  \
        HANDLER(cmpxchg##bits##_m)                                                                                         \
        {                                                                                                                  \
                uint64_t linear = insn_linear(cpu, i, bits / 8, true);                                                     \
                loose##bits##_t *at = mmu_rmw(cpu, linear, bits / 8);                                                      \
                uint##bits##_t expected = reg_get##bits(cpu, RAX_AT), new = reg_get##bits(cpu, i->reg[1]), old = expected; \
                                                                                                                           \
                if (likely(at)) {                                                                                          \
                        exchange_if##bits(at, &old, new);         \
                } else {                                                                                                   \
                        complex_exclusive_begin(cpu);                                                                      \
                        old = mmu_read##bits(cpu, linear);                                                                 \
                        mmu_write##bits(cpu, linear, old == expected ? new : old);                                         \
                        complex_exclusive_end(cpu);                                                                        \
                }                                                                                                          \
                flags_difference##bits(cpu, expected, old, (uint##bits##_t)(expected - old));                              \
                if (old != expected)                                                                                       \
                        reg_set##bits(cpu, RAX_AT, old);                                                                   \
                NEXT;                                                                                                      \
        }
FOR_EACH_WIDTH(COMPARE_EXCHANGE)

HANDLER(cmpxchg8b)
{
        uint64_t linear = insn_linear(cpu, i, 8, true);
        loose64_t *at = mmu_rmw(cpu, linear, 8);
        uint64_t expected = (uint64_t)reg_get32(cpu, RDX_AT) << 32 | reg_get32(cpu, RAX_AT), old = expected;
        uint64_t new = (uint64_t)reg_get32(cpu, RCX_AT) << 32 | reg_get32(cpu, X86_RBX * 8);

        if (likely(at)) {
                exchange_if64(at, &old, new);
        } else {
                complex_exclusive_begin(cpu);
                old = mmu_read64(cpu, linear);
                mmu_write64(cpu, linear, old == expected ? new : old);
                complex_exclusive_end(cpu);
        }
        if (old != expected) {
                reg_set32(cpu, RAX_AT, (uint32_t)old);
                reg_set32(cpu, RDX_AT, (uint32_t)(old >> 32));
        }
        flags_set_status(cpu, (flags_status(cpu) & ~X86_FLAG_ZF) | (old == expected ? X86_FLAG_ZF : 0));
        NEXT;
}

/* *at is 16-aligned; old is what was there. */
static bool exchange16(void *at, uint64_t old[2], const uint64_t new[2])
{
        bool same;

        __asm__ volatile("lock cmpxchg16b %1"
                         : "=@ccz"(same), "+m"(*(volatile unsigned __int128 *)at), "+a"(old[0]), "+d"(old[1])
                         : "b"(new[0]), "c"(new[1])
                         : "memory");
        return same;
}

/* An operand that is not aligned is #GP(0) (SDM vol. 2 "CMPXCHG8B/CMPXCHG16B"), so it never crosses a page. */
HANDLER(cmpxchg16b)
{
        uint64_t linear, old[2], new[2];
        void *at;
        bool same;

        if (!insn_aligned(cpu, i, 16))
                x86_gp0(cpu);
        linear = insn_linear(cpu, i, 16, true);
        at = mmu_rmw(cpu, linear, 16);
        old[0] = cpu->s.gpr[X86_RAX];
        old[1] = cpu->s.gpr[X86_RDX];
        new[0] = cpu->s.gpr[X86_RBX];
        new[1] = cpu->s.gpr[X86_RCX];
        if (likely(at)) {
                same = exchange16(at, old, new);
        } else {
                uint64_t low, high;

                complex_exclusive_begin(cpu);
                low = mmu_read64(cpu, linear);
                high = mmu_read64(cpu, linear + 8);
                same = low == old[0] && high == old[1];
                mmu_write64(cpu, linear, same ? new[0] : low);
                mmu_write64(cpu, linear + 8, same ? new[1] : high);
                complex_exclusive_end(cpu);
                old[0] = low;
                old[1] = high;
        }
        if (!same) {
                cpu->s.gpr[X86_RAX] = old[0];
                cpu->s.gpr[X86_RDX] = old[1];
        }
        flags_set_status(cpu, (flags_status(cpu) & ~X86_FLAG_ZF) | (same ? X86_FLAG_ZF : 0));
        NEXT;
}

/* ---- bits ---- */

#define LOCKED_BIT(bits, op, OP)                                                                                        \
        HANDLER(locked_##op##bits##_mi)                                                                                 \
        {                                                                                                               \
                locked##bits(cpu, OP, insn_linear(cpu, i, bits / 8, true), (uint##bits##_t)((uint64_t)1 << (i->imm & (bits - 1)))); \
                NEXT;                                                                                                   \
        }                                                                                                               \
        HANDLER(locked_##op##bits##_mr)                                                                                 \
        {                                                                                                               \
                int64_t bit = (int##bits##_t)reg_get##bits(cpu, i->reg[1]);                                             \
                uint64_t offset = insn_offset(cpu, i) + (uint64_t)((bit >> __builtin_ctz(bits)) * (bits / 8));          \
                                                                                                                        \
                if (i->asize == 4)                                                                                      \
                        offset = (uint32_t)offset;                                                                      \
                else if (i->asize == 2)                                                                                 \
                        offset = (uint16_t)offset;                                                                      \
                locked##bits(cpu, OP, x86_linear(cpu, i->seg, offset, bits / 8, true),                                  \
                             (uint##bits##_t)((uint64_t)1 << (bit & (bits - 1))));                                      \
                NEXT;                                                                                                   \
        }
FOR_EACH_WORD(LOCKED_BIT, bts, LOCKED_BTS)
FOR_EACH_WORD(LOCKED_BIT, btr, LOCKED_BTR)
FOR_EACH_WORD(LOCKED_BIT, btc, LOCKED_BTC)

/* ---- binding ---- */

#define ROW_MR(bits, op) { locked_##op##bits##_mr, locked_##op##bits##_mi },
#define CASE_BINARY(NAME, op)                                                                      \
        case ZYDIS_MNEMONIC_##NAME: {                                                              \
                static const insn_fn table[4][2] = { FOR_EACH_WIDTH(ROW_MR, op) };                 \
                return table[width][immediate];                                                    \
        }
#define ROW_UNARY(bits, op) locked_##op##bits,
#define CASE_UNARY(NAME, op)                                                                       \
        case ZYDIS_MNEMONIC_##NAME: {                                                              \
                static const insn_fn table[4] = { FOR_EACH_WIDTH(ROW_UNARY, op) };                 \
                return table[width];                                                               \
        }
#define CASE_BIT(NAME, op)                                                                         \
        case ZYDIS_MNEMONIC_##NAME: {                                                              \
                static const insn_fn table[4][2] = { { NULL }, FOR_EACH_WORD(ROW_MR, op) };        \
                return table[width][immediate];                                                    \
        }
#define ROW_PLAIN(bits, op) { op##bits##_r, op##bits##_m },

static insn_fn bind_exchange(const struct insn *insn, const struct decoded *d)
{
        static const insn_fn xchg[] = { xchg8_m, xchg16_m, xchg32_m, xchg64_m };
        static const insn_fn xadd_locked[] = { locked_xadd8, locked_xadd16, locked_xadd32, locked_xadd64 };
        static const insn_fn xadd[4][2] = { FOR_EACH_WIDTH(ROW_PLAIN, xadd) };
        static const insn_fn cmpxchg[4][2] = { FOR_EACH_WIDTH(ROW_PLAIN, cmpxchg) };
        unsigned width = width_index(insn->opsize), memory = insn->flags & INSN_MEMORY ? 1 : 0;

        switch (d->z->mnemonic) {
        case ZYDIS_MNEMONIC_XCHG: return xchg[width];
        case ZYDIS_MNEMONIC_XADD: return insn->flags & INSN_LOCK ? xadd_locked[width] : xadd[width][memory];
        case ZYDIS_MNEMONIC_CMPXCHG: return cmpxchg[width][memory];
        case ZYDIS_MNEMONIC_CMPXCHG8B: return cmpxchg8b;
        case ZYDIS_MNEMONIC_CMPXCHG16B: return cmpxchg16b;
        default: return NULL;
        }
}

insn_fn atomic_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        unsigned width = width_index(insn->opsize);
        unsigned immediate = d->operand[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? 1 : 0;

        switch (d->z->mnemonic) {
                CASE_BINARY(ADD, add)
                CASE_BINARY(OR, or)
                CASE_BINARY(ADC, adc)
                CASE_BINARY(SBB, sbb)
                CASE_BINARY(AND, and)
                CASE_BINARY(SUB, sub)
                CASE_BINARY(XOR, xor)
                CASE_UNARY(INC, inc)
                CASE_UNARY(DEC, dec)
                CASE_UNARY(NEG, neg)
                CASE_UNARY(NOT, not)
                CASE_BIT(BTS, bts)
                CASE_BIT(BTR, btr)
                CASE_BIT(BTC, btc)
        default: return bind_exchange(insn, d);
        }
}
