/*
 * BMI1, BMI2 and ADX: ANDN, BEXTR, BLSI, BLSMSK, BLSR, BZHI, MULX, PDEP, PEXT, RORX, SARX, SHLX, SHRX, ADCX, ADOX. All with 32 or
 * 64 bits and VEX-coded (but for ADX); VEX.L must be 0 (Zydis checks), and they do not need CR4.OSXSAVE.
 */
#include "cpu/x86/integer.h"

/* PF is undefined after BMI1 and BZHI; the hardware clears it. SF is after BEXTR: cleared as well. */
static inline void flags_clear_pf(struct x86_cpu *cpu)
{
        cpu->lazy.carry |= flag_pf(cpu) * LAZY_PARITY;
}

static inline void flags_bextr(struct x86_cpu *cpu, uint64_t r)
{
        cpu->lazy.result = r ? 1 : 0;
        cpu->lazy.carry = r ? 0 : LAZY_PARITY;
}

/* In the order of the operands: 0 is written; in BLS* operand 1 is the source. b is the one that may be in memory. */
#define BMI_OPERATIONS(bits)                                                                                                    \
        static inline uint##bits##_t op_andn##bits(struct x86_cpu *cpu, uint##bits##_t a, uint##bits##_t b)                      \
        {                                                                                                                       \
                flags_logic##bits(cpu, ~a & b);                                                                                 \
                flags_clear_pf(cpu);                                                                                            \
                return ~a & b;                                                                                                  \
        }                                                                                                                       \
        static inline uint##bits##_t op_bextr##bits(struct x86_cpu *cpu, uint##bits##_t control, uint##bits##_t b)               \
        {                                                                                                                       \
                unsigned start = control & 255, length = control >> 8 & 255;                                                    \
                uint##bits##_t r = start < bits ? b >> start : 0;                                                               \
                                                                                                                                \
                if (length < bits)                                                                                              \
                        r &= ((uint##bits##_t)1 << length) - 1;                                                                 \
                flags_bextr(cpu, r);                                                                                           \
                return r;                                                                                                       \
        }                                                                                                                       \
        static inline uint##bits##_t op_bzhi##bits(struct x86_cpu *cpu, uint##bits##_t control, uint##bits##_t b)                \
        {                                                                                                                       \
                unsigned n = control & 255;                                                                                     \
                uint##bits##_t r = n < bits ? b & (((uint##bits##_t)1 << n) - 1) : b;                                           \
                                                                                                                                \
                flags_given##bits(cpu, r, n >= bits, 0, 0);                                                                     \
                flags_clear_pf(cpu);                                                                                            \
                return r;                                                                                                       \
        }                                                                                                                       \
        static inline uint##bits##_t op_blsi##bits(struct x86_cpu *cpu, uint##bits##_t b)                                        \
        {                                                                                                                       \
                flags_given##bits(cpu, b & -b, b != 0, 0, 0);                                                                   \
                flags_clear_pf(cpu);                                                                                            \
                return b & -b;                                                                                                  \
        }                                                                                                                       \
        static inline uint##bits##_t op_blsmsk##bits(struct x86_cpu *cpu, uint##bits##_t b)                                      \
        {                                                                                                                       \
                flags_given##bits(cpu, b ^ (b - 1), b == 0, 0, 0);                                                              \
                flags_clear_pf(cpu);                                                                                            \
                return b ^ (b - 1);                                                                                             \
        }                                                                                                                       \
        static inline uint##bits##_t op_blsr##bits(struct x86_cpu *cpu, uint##bits##_t b)                                        \
        {                                                                                                                       \
                flags_given##bits(cpu, b & (b - 1), b == 0, 0, 0);                                                              \
                flags_clear_pf(cpu);                                                                                            \
                return b & (b - 1);                                                                                             \
        }                                                                                                                       \
        static inline uint##bits##_t op_shlx##bits(struct x86_cpu *cpu, uint##bits##_t count, uint##bits##_t b)                  \
        {                                                                                                                       \
                return b << (count & (bits - 1));                                                                               \
        }                                                                                                                       \
        static inline uint##bits##_t op_shrx##bits(struct x86_cpu *cpu, uint##bits##_t count, uint##bits##_t b)                  \
        {                                                                                                                       \
                return b >> (count & (bits - 1));                                                                               \
        }                                                                                                                       \
        static inline uint##bits##_t op_sarx##bits(struct x86_cpu *cpu, uint##bits##_t count, uint##bits##_t b)                  \
        {                                                                                                                       \
                return (uint##bits##_t)((int##bits##_t)b >> (count & (bits - 1)));                                              \
        }                                                                                                                       \
        static uint##bits##_t op_pdep##bits(struct x86_cpu *cpu, uint##bits##_t a, uint##bits##_t mask)                          \
        {                                                                                                                       \
                uint##bits##_t r = 0;                                                                                           \
                                                                                                                                \
                for (; mask; mask &= mask - 1, a >>= 1)                                                                         \
                        if (a & 1)                                                                                              \
                                r |= mask & -mask;                                                                              \
                return r;                                                                                                       \
        }                                                                                                                       \
        static uint##bits##_t op_pext##bits(struct x86_cpu *cpu, uint##bits##_t a, uint##bits##_t mask)                          \
        {                                                                                                                       \
                uint##bits##_t r = 0;                                                                                           \
                                                                                                                                \
                for (unsigned n = 0; mask; mask &= mask - 1, n++)                                                               \
                        if (a & mask & -mask)                                                                                   \
                                r |= (uint##bits##_t)1 << n;                                                                    \
                return r;                                                                                                       \
        }                                                                                                                       \
        static inline uint##bits##_t op_adcx##bits(struct x86_cpu *cpu, uint##bits##_t a, uint##bits##_t b)                      \
        {                                                                                                                       \
                uint##bits##_t r = a + b + flag_cf(cpu);                                                                        \
                                                                                                                                \
                flags_set_cf(cpu, ((a & b) | ((a | b) & ~r)) >> (bits - 1));                                                    \
                return r;                                                                                                       \
        }                                                                                                                       \
        static inline uint##bits##_t op_adox##bits(struct x86_cpu *cpu, uint##bits##_t a, uint##bits##_t b)                      \
        {                                                                                                                       \
                uint##bits##_t r = a + b + flag_of(cpu);                                                                        \
                                                                                                                                \
                flags_set_cf_of(cpu, flag_cf(cpu), ((a & b) | ((a | b) & ~r)) >> (bits - 1));                                   \
                return r;                                                                                                       \
        }
BMI_OPERATIONS(32)
BMI_OPERATIONS(64)

/* first and second: which operands hold a and b; b may be in memory. */
#define TWO_SOURCES(bits, op, first, second)                                                                               \
        HANDLER(op##bits##_r)                                                                                              \
        {                                                                                                                  \
                reg_set##bits(cpu, i->reg[0],                                                                              \
                              op_##op##bits(cpu, reg_get##bits(cpu, i->reg[first]), reg_get##bits(cpu, i->reg[second])));  \
                NEXT;                                                                                                      \
        }                                                                                                                  \
        HANDLER(op##bits##_m)                                                                                              \
        {                                                                                                                  \
                uint##bits##_t b = load##bits(cpu, i, FORM_ANY);                                                           \
                                                                                                                           \
                reg_set##bits(cpu, i->reg[0], op_##op##bits(cpu, reg_get##bits(cpu, i->reg[first]), b));                   \
                NEXT;                                                                                                      \
        }
#define ONE_SOURCE(bits, op)                                                                           \
        HANDLER(op##bits##_r)                                                                          \
        {                                                                                              \
                reg_set##bits(cpu, i->reg[0], op_##op##bits(cpu, reg_get##bits(cpu, i->reg[1])));      \
                NEXT;                                                                                  \
        }                                                                                              \
        HANDLER(op##bits##_m)                                                                          \
        {                                                                                              \
                reg_set##bits(cpu, i->reg[0], op_##op##bits(cpu, load##bits(cpu, i, FORM_ANY)));       \
                NEXT;                                                                                  \
        }
#define BOTH(X, ...) X(32, __VA_ARGS__) X(64, __VA_ARGS__)

BOTH(TWO_SOURCES, andn, 1, 2)
BOTH(TWO_SOURCES, pdep, 1, 2)
BOTH(TWO_SOURCES, pext, 1, 2)
BOTH(TWO_SOURCES, bextr, 2, 1)
BOTH(TWO_SOURCES, bzhi, 2, 1)
BOTH(TWO_SOURCES, shlx, 2, 1)
BOTH(TWO_SOURCES, shrx, 2, 1)
BOTH(TWO_SOURCES, sarx, 2, 1)
BOTH(TWO_SOURCES, adcx, 0, 1)
BOTH(TWO_SOURCES, adox, 0, 1)
BOTH(ONE_SOURCE, blsi)
BOTH(ONE_SOURCE, blsmsk)
BOTH(ONE_SOURCE, blsr)

static inline uint32_t rorx32(uint32_t a, unsigned count)
{
        count &= 31;
        return count ? a >> count | a << (32 - count) : a;
}

static inline uint64_t rorx64(uint64_t a, unsigned count)
{
        count &= 63;
        return count ? a >> count | a << (64 - count) : a;
}

#define RORX(bits, unused)                                                                             \
        HANDLER(rorx##bits##_r)                                                                        \
        {                                                                                              \
                reg_set##bits(cpu, i->reg[0], rorx##bits(reg_get##bits(cpu, i->reg[1]), (unsigned)i->imm)); \
                NEXT;                                                                                  \
        }                                                                                              \
        HANDLER(rorx##bits##_m)                                                                        \
        {                                                                                              \
                reg_set##bits(cpu, i->reg[0], rorx##bits(load##bits(cpu, i, FORM_ANY), (unsigned)i->imm)); \
                NEXT;                                                                                  \
        }
BOTH(RORX, 0)

/* The high half is written last: it stays when both destinations are one register. */
#define MULX(bits, wide)                                                                               \
        static inline void do_mulx##bits(struct x86_cpu *cpu, const struct insn *i, uint##bits##_t b)  \
        {                                                                                              \
                wide product = (wide)reg_get##bits(cpu, RDX_AT) * b;                                   \
                                                                                                       \
                reg_set##bits(cpu, i->reg[1], (uint##bits##_t)product);                                \
                reg_set##bits(cpu, i->reg[0], (uint##bits##_t)(product >> bits));                      \
        }                                                                                              \
        HANDLER(mulx##bits##_r)                                                                        \
        {                                                                                              \
                do_mulx##bits(cpu, i, reg_get##bits(cpu, i->reg[2]));                                  \
                NEXT;                                                                                  \
        }                                                                                              \
        HANDLER(mulx##bits##_m)                                                                        \
        {                                                                                              \
                do_mulx##bits(cpu, i, load##bits(cpu, i, FORM_ANY));                                   \
                NEXT;                                                                                  \
        }
MULX(32, uint64_t)
MULX(64, unsigned __int128)

#define BMI_CASE(NAME, op)                                                                                  \
        case ZYDIS_MNEMONIC_##NAME:                                                                         \
                if (insn->opsize == 8)                                                                      \
                        return memory ? op##64_m : op##64_r;                                                \
                return memory ? op##32_m : op##32_r;

insn_fn bmi_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        bool memory = insn->flags & INSN_MEMORY;

        switch (d->z->mnemonic) {
                BMI_CASE(ANDN, andn)
                BMI_CASE(BEXTR, bextr)
                BMI_CASE(BLSI, blsi)
                BMI_CASE(BLSMSK, blsmsk)
                BMI_CASE(BLSR, blsr)
                BMI_CASE(BZHI, bzhi)
                BMI_CASE(MULX, mulx)
                BMI_CASE(PDEP, pdep)
                BMI_CASE(PEXT, pext)
                BMI_CASE(RORX, rorx)
                BMI_CASE(SARX, sarx)
                BMI_CASE(SHLX, shlx)
                BMI_CASE(SHRX, shrx)
                BMI_CASE(ADCX, adcx)
                BMI_CASE(ADOX, adox)
        default: return NULL;
        }
}
