/*
 * Lazy status flags.
 *
 * Guest arithmetic is far more frequent than anyone who looks at its flags. So an operation leaves two words behind, and each
 * flag is worked out from them, without a branch, only when it is wanted:
 *
 *      result  the result, sign-extended to 64 bits: ZF is result == 0, SF its sign, PF the parity of its low byte
 *      carry   bit 63      CF: the carry or borrow out of the operand's top bit
 *              bit 62      the one into the top bit: OF is bit 63 ^ bit 62
 *              bit 3       AF: the one out of bit 3
 *              bit 0       SF differs from the result's sign
 *              bits 8-15   exclusive-or'ed into the result's low byte before PF is taken
 *
 * The carries out of all bits of r = a + b + c are (a & b) | ((a | b) & ~r); the borrows of r = a - b - c are
 * (~a & b) | ((~a | b) & r). Bits 0 and 8-15 are only used for combinations that no result has, say ZF with SF after POPF.
 */
#pragma once

#include "cpu/x86/cpu.h"

#define LAZY_CF (UINT64_C(1) << 63)
#define LAZY_INTO_TOP (UINT64_C(1) << 62)
#define LAZY_AF (UINT64_C(1) << 3)
#define LAZY_SIGN UINT64_C(1)
#define LAZY_PARITY (UINT64_C(1) << 8)

static inline unsigned flag_cf(const struct x86_cpu *cpu)
{
        return (unsigned)(cpu->lazy.carry >> 63);
}

static inline unsigned flag_zf(const struct x86_cpu *cpu)
{
        return cpu->lazy.result == 0;
}

static inline unsigned flag_sf(const struct x86_cpu *cpu)
{
        return ((cpu->lazy.result >> 63) ^ cpu->lazy.carry) & 1;
}

static inline unsigned flag_of(const struct x86_cpu *cpu)
{
        return (unsigned)((cpu->lazy.carry ^ (cpu->lazy.carry << 1)) >> 63);
}

static inline unsigned flag_pf(const struct x86_cpu *cpu)
{
        return !__builtin_parity((uint8_t)(cpu->lazy.result ^ (cpu->lazy.carry >> 8)));
}

static inline unsigned flag_af(const struct x86_cpu *cpu)
{
        return (cpu->lazy.carry & LAZY_AF) != 0;
}

/* The conditions of Jcc, SETcc and CMOVcc in the order of their encoding (SDM vol. 2 appendix B). */
#define COND_O(cpu) flag_of(cpu)
#define COND_B(cpu) flag_cf(cpu)
#define COND_Z(cpu) flag_zf(cpu)
#define COND_BE(cpu) (flag_cf(cpu) | flag_zf(cpu))
#define COND_S(cpu) flag_sf(cpu)
#define COND_P(cpu) flag_pf(cpu)
#define COND_L(cpu) (flag_sf(cpu) ^ flag_of(cpu))
#define COND_LE(cpu) ((flag_sf(cpu) ^ flag_of(cpu)) | flag_zf(cpu))
#define COND_NO(cpu) (!COND_O(cpu))
#define COND_NB(cpu) (!COND_B(cpu))
#define COND_NZ(cpu) (!COND_Z(cpu))
#define COND_NBE(cpu) (!COND_BE(cpu))
#define COND_NS(cpu) (!COND_S(cpu))
#define COND_NP(cpu) (!COND_P(cpu))
#define COND_NL(cpu) (!COND_L(cpu))
#define COND_NLE(cpu) (!COND_LE(cpu))

/* X(name) for each of them. */
#define FOR_EACH_CONDITION(X) X(O) X(NO) X(B) X(NB) X(Z) X(NZ) X(BE) X(NBE) X(S) X(NS) X(P) X(NP) X(L) X(NL) X(LE) X(NLE)

#define LAZY_CARRY_MASK (LAZY_CF | LAZY_INTO_TOP | LAZY_AF)

/* carries: out of each bit of an operand of that width. */
static inline uint64_t lazy_carry8(uint8_t carries)
{
        return ((uint64_t)carries << 56 & (LAZY_CF | LAZY_INTO_TOP)) | (carries & LAZY_AF);
}

static inline uint64_t lazy_carry16(uint16_t carries)
{
        return ((uint64_t)carries << 48 & (LAZY_CF | LAZY_INTO_TOP)) | (carries & LAZY_AF);
}

static inline uint64_t lazy_carry32(uint32_t carries)
{
        return ((uint64_t)carries << 32 & (LAZY_CF | LAZY_INTO_TOP)) | (carries & LAZY_AF);
}

static inline uint64_t lazy_carry64(uint64_t carries)
{
        return carries & LAZY_CARRY_MASK;
}

/* carry word of given CF, OF and AF (each 0 or 1). */
static inline uint64_t lazy_carry_of(uint64_t cf, uint64_t of, uint64_t af)
{
        return cf << 63 | (cf ^ of) << 62 | af << 3;
}

/*
 * After an operation of that width: sum (r = a + b + carry), difference (r = a - b - borrow), logic (CF = OF = AF = 0), and a
 * result with CF, OF and AF given. Increment and decrement keep CF.
 */
#define FLAGS_AFTER(bits)                                                                                                         \
        static inline void flags_sum##bits(struct x86_cpu *cpu, uint##bits##_t a, uint##bits##_t b, uint##bits##_t r)            \
        {                                                                                                                         \
                cpu->lazy.result = (uint64_t)(int64_t)(int##bits##_t)r;                                                           \
                cpu->lazy.carry = lazy_carry##bits((uint##bits##_t)((a & b) | ((a | b) & ~r)));                                   \
        }                                                                                                                         \
        static inline void flags_difference##bits(struct x86_cpu *cpu, uint##bits##_t a, uint##bits##_t b, uint##bits##_t r)     \
        {                                                                                                                         \
                cpu->lazy.result = (uint64_t)(int64_t)(int##bits##_t)r;                                                           \
                cpu->lazy.carry = lazy_carry##bits((uint##bits##_t)((~a & b) | ((~a | b) & r)));                                  \
        }                                                                                                                         \
        static inline void flags_logic##bits(struct x86_cpu *cpu, uint##bits##_t r)                                              \
        {                                                                                                                         \
                cpu->lazy.result = (uint64_t)(int64_t)(int##bits##_t)r;                                                           \
                cpu->lazy.carry = 0;                                                                                              \
        }                                                                                                                         \
        static inline void flags_given##bits(struct x86_cpu *cpu, uint##bits##_t r, uint64_t cf, uint64_t of, uint64_t af)       \
        {                                                                                                                         \
                cpu->lazy.result = (uint64_t)(int64_t)(int##bits##_t)r;                                                           \
                cpu->lazy.carry = lazy_carry_of(cf, of, af);                                                                      \
        }                                                                                                                         \
        static inline void flags_increment##bits(struct x86_cpu *cpu, uint##bits##_t r)                                          \
        {                                                                                                                         \
                uint64_t overflow = r == (uint##bits##_t)((uint64_t)1 << (bits - 1));                                             \
                                                                                                                                  \
                flags_given##bits(cpu, r, flag_cf(cpu), overflow, (r & 15) == 0);                                                 \
        }                                                                                                                         \
        static inline void flags_decrement##bits(struct x86_cpu *cpu, uint##bits##_t r)                                          \
        {                                                                                                                         \
                uint64_t overflow = r == (uint##bits##_t)(((uint64_t)1 << (bits - 1)) - 1);                                       \
                                                                                                                                  \
                flags_given##bits(cpu, r, flag_cf(cpu), overflow, (r & 15) == 15);                                                \
        }

FLAGS_AFTER(8)
FLAGS_AFTER(16)
FLAGS_AFTER(32)
FLAGS_AFTER(64)

/* CF alone, CF and OF alone: the others stay. */
static inline void flags_set_cf(struct x86_cpu *cpu, uint64_t cf)
{
        uint64_t flip = (cpu->lazy.carry >> 63) ^ cf;

        cpu->lazy.carry ^= flip << 63 | flip << 62; /* OF stays */
}

static inline void flags_set_cf_of(struct x86_cpu *cpu, uint64_t cf, uint64_t of)
{
        cpu->lazy.carry = (cpu->lazy.carry & ~(LAZY_CF | LAZY_INTO_TOP)) | cf << 63 | (cf ^ of) << 62;
}

/* The six status flags as they stand in EFLAGS, and all six set from there. */
static inline uint64_t flags_status(const struct x86_cpu *cpu)
{
        return (uint64_t)flag_cf(cpu) | (uint64_t)flag_pf(cpu) << 2 | (uint64_t)flag_af(cpu) << 4 | (uint64_t)flag_zf(cpu) << 6 |
               (uint64_t)flag_sf(cpu) << 7 | (uint64_t)flag_of(cpu) << 11;
}

static inline void flags_set_status(struct x86_cpu *cpu, uint64_t eflags)
{
        uint64_t cf = eflags & 1, pf = eflags >> 2 & 1, af = eflags >> 4 & 1, sf = eflags >> 7 & 1, of = eflags >> 11 & 1;

        cpu->lazy.carry = lazy_carry_of(cf, of, af);
        if (eflags & X86_FLAG_ZF) {
                cpu->lazy.result = 0;
                cpu->lazy.carry |= sf * LAZY_SIGN | (pf ^ 1) * LAZY_PARITY;
        } else {
                cpu->lazy.result = sf << 63 | (pf ? 3 : 1);
        }
}
