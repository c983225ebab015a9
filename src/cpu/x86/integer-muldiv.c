/*
 * MUL, IMUL, DIV, IDIV.
 *
 * The manual defines only CF and OF after a multiplication; the hardware also sets SF and PF from the low half and clears
 * ZF and AF. It leaves all flags alone after a division.
 */
#include "cpu/x86/integer.h"

typedef unsigned __int128 uint128;
typedef __int128 int128;

/* Flags of a product whose low half is low; wide: the high half is needed. SF and PF come from a result that is never 0. */
static inline void flags_product(struct x86_cpu *cpu, uint64_t low_sign_extended, uint64_t wide)
{
        cpu->lazy.result = low_sign_extended;
        cpu->lazy.carry = lazy_carry_of(wide, wide, 0);
        if (low_sign_extended == 0) {
                /* ZF stays clear although the low half is 0: another result with its sign and parity. */
                cpu->lazy.result = 3;
        }
}

/* One operand: b is multiplied with the accumulator. */
static inline void mul_by_8(struct x86_cpu *cpu, uint8_t b)
{
        uint16_t product = (uint16_t)(reg_get8(cpu, RAX_AT) * b);

        reg_set16(cpu, RAX_AT, product);
        flags_product(cpu, (uint64_t)(int8_t)product, product >> 8 != 0);
}

static inline void imul_by_8(struct x86_cpu *cpu, uint8_t b)
{
        int16_t product = (int16_t)((int8_t)reg_get8(cpu, RAX_AT) * (int8_t)b);

        reg_set16(cpu, RAX_AT, (uint16_t)product);
        flags_product(cpu, (uint64_t)(int8_t)product, product != (int8_t)product);
}

#define MULTIPLY(bits, double_unsigned, double_signed)                                                              \
        static inline void mul_by_##bits(struct x86_cpu *cpu, uint##bits##_t b)                                     \
        {                                                                                                           \
                double_unsigned product = (double_unsigned)reg_get##bits(cpu, RAX_AT) * b;                          \
                                                                                                                    \
                reg_set##bits(cpu, RAX_AT, (uint##bits##_t)product);                                                \
                reg_set##bits(cpu, RDX_AT, (uint##bits##_t)(product >> bits));                                      \
                flags_product(cpu, (uint64_t)(int##bits##_t)product, product >> bits != 0);                         \
        }                                                                                                           \
        static inline void imul_by_##bits(struct x86_cpu *cpu, uint##bits##_t b)                                    \
        {                                                                                                           \
                double_signed product = (double_signed)(int##bits##_t)reg_get##bits(cpu, RAX_AT) * (int##bits##_t)b; \
                                                                                                                    \
                reg_set##bits(cpu, RAX_AT, (uint##bits##_t)product);                                                \
                reg_set##bits(cpu, RDX_AT, (uint##bits##_t)(product >> bits));                                      \
                flags_product(cpu, (uint64_t)(int##bits##_t)product, product != (int##bits##_t)product);            \
        }                                                                                                           \
        static inline uint##bits##_t imul_##bits(struct x86_cpu *cpu, uint##bits##_t a, uint##bits##_t b)           \
        {                                                                                                           \
                double_signed product = (double_signed)(int##bits##_t)a * (int##bits##_t)b;                         \
                                                                                                                    \
                flags_product(cpu, (uint64_t)(int##bits##_t)product, product != (int##bits##_t)product);            \
                return (uint##bits##_t)product;                                                                     \
        }
MULTIPLY(16, uint32_t, int32_t)
MULTIPLY(32, uint64_t, int64_t)
MULTIPLY(64, uint128, int128)

/* ---- division: #DE when the divisor is 0 or the quotient does not fit ---- */

static inline void divide_error(struct x86_cpu *cpu)
{
        x86_raise(cpu, X86_DE, 0);
}

static inline void div_by_8(struct x86_cpu *cpu, uint8_t b)
{
        uint16_t a = reg_get16(cpu, RAX_AT);

        if (b == 0 || a / b > UINT8_MAX)
                divide_error(cpu);
        reg_set16(cpu, RAX_AT, (uint16_t)((a % b) << 8 | a / b));
}

static inline void idiv_by_8(struct x86_cpu *cpu, uint8_t b)
{
        int a = (int16_t)reg_get16(cpu, RAX_AT), divisor = (int8_t)b;

        if (divisor == 0 || a / divisor != (int8_t)(a / divisor))
                divide_error(cpu);
        reg_set16(cpu, RAX_AT, (uint16_t)((uint8_t)(a % divisor) << 8 | (uint8_t)(a / divisor)));
}

#define DIVIDE(bits, double_unsigned, double_signed)                                                                         \
        static inline void div_by_##bits(struct x86_cpu *cpu, uint##bits##_t b)                                              \
        {                                                                                                                    \
                double_unsigned a = (double_unsigned)reg_get##bits(cpu, RDX_AT) << bits | reg_get##bits(cpu, RAX_AT);        \
                                                                                                                             \
                if (b == 0 || a >> bits >= b)                                                                                \
                        divide_error(cpu);                                                                                   \
                reg_set##bits(cpu, RAX_AT, (uint##bits##_t)(a / b));                                                         \
                reg_set##bits(cpu, RDX_AT, (uint##bits##_t)(a % b));                                                         \
        }                                                                                                                    \
        static inline void idiv_by_##bits(struct x86_cpu *cpu, uint##bits##_t b)                                             \
        {                                                                                                                    \
                double_signed a = (double_signed)((double_unsigned)reg_get##bits(cpu, RDX_AT) << bits | reg_get##bits(cpu, RAX_AT)); \
                double_signed divisor = (int##bits##_t)b, quotient;                                                          \
                                                                                                                             \
                if (divisor == 0 || (divisor == -1 && a == (double_signed)((double_unsigned)1 << (2 * bits - 1))))           \
                        divide_error(cpu);                                                                                   \
                quotient = a / divisor;                                                                                      \
                if (quotient != (int##bits##_t)quotient)                                                                     \
                        divide_error(cpu);                                                                                   \
                reg_set##bits(cpu, RAX_AT, (uint##bits##_t)quotient);                                                        \
                reg_set##bits(cpu, RDX_AT, (uint##bits##_t)(a % divisor));                                                   \
        }
DIVIDE(16, uint32_t, int32_t)
DIVIDE(32, uint64_t, int64_t)

/* The compiler would call a function for 128 bits; the processor's own instructions do it when the quotient fits. */
static inline void div_by_64(struct x86_cpu *cpu, uint64_t b)
{
        uint64_t low = reg_get64(cpu, RAX_AT), high = reg_get64(cpu, RDX_AT);

        if (high >= b) /* also b == 0 */
                divide_error(cpu);
        __asm__("divq %2" : "+a"(low), "+d"(high) : "r"(b) : "cc");
        reg_set64(cpu, RAX_AT, low);
        reg_set64(cpu, RDX_AT, high);
}

static inline void idiv_by_64(struct x86_cpu *cpu, uint64_t b)
{
        uint128 a = (uint128)reg_get64(cpu, RDX_AT) << 64 | reg_get64(cpu, RAX_AT);
        bool negative = a >> 127, divisor_negative = b >> 63;
        uint128 magnitude = negative ? -a : a;
        uint64_t divisor = divisor_negative ? -b : b;
        uint64_t low = (uint64_t)magnitude, high = (uint64_t)(magnitude >> 64);
        bool quotient_negative = negative != divisor_negative;

        if (high >= divisor)
                divide_error(cpu);
        __asm__("divq %2" : "+a"(low), "+d"(high) : "r"(divisor) : "cc");
        if (low > (uint64_t)INT64_MAX + quotient_negative)
                divide_error(cpu);
        reg_set64(cpu, RAX_AT, quotient_negative ? -low : low);
        reg_set64(cpu, RDX_AT, negative ? -high : high);
}

/* ---- handlers ---- */

#define ONE_OPERAND(bits, op)                                          \
        HANDLER(op##bits##_r)                                          \
        {                                                              \
                op##_by_##bits(cpu, reg_get##bits(cpu, i->reg[0]));    \
                NEXT;                                                  \
        }                                                              \
        HANDLER(op##bits##_m)                                          \
        {                                                              \
                op##_by_##bits(cpu, load##bits(cpu, i, FORM_ANY));     \
                NEXT;                                                  \
        }
FOR_EACH_WIDTH(ONE_OPERAND, mul)
FOR_EACH_WIDTH(ONE_OPERAND, imul)
FOR_EACH_WIDTH(ONE_OPERAND, div)
FOR_EACH_WIDTH(ONE_OPERAND, idiv)

#define IMUL_MORE(bits)                                                                                                     \
        HANDLER(imul##bits##_rr)                                                                                            \
        {                                                                                                                   \
                reg_set##bits(cpu, i->reg[0], imul_##bits(cpu, reg_get##bits(cpu, i->reg[0]), reg_get##bits(cpu, i->reg[1]))); \
                NEXT;                                                                                                       \
        }                                                                                                                   \
        HANDLER(imul##bits##_rm)                                                                                            \
        {                                                                                                                   \
                uint##bits##_t b = load##bits(cpu, i, FORM_ANY);                                                            \
                                                                                                                            \
                reg_set##bits(cpu, i->reg[0], imul_##bits(cpu, reg_get##bits(cpu, i->reg[0]), b));                          \
                NEXT;                                                                                                       \
        }                                                                                                                   \
        HANDLER(imul##bits##_rri)                                                                                           \
        {                                                                                                                   \
                reg_set##bits(cpu, i->reg[0], imul_##bits(cpu, reg_get##bits(cpu, i->reg[1]), (uint##bits##_t)i->imm));     \
                NEXT;                                                                                                       \
        }                                                                                                                   \
        HANDLER(imul##bits##_rmi)                                                                                           \
        {                                                                                                                   \
                reg_set##bits(cpu, i->reg[0], imul_##bits(cpu, load##bits(cpu, i, FORM_ANY), (uint##bits##_t)i->imm));      \
                NEXT;                                                                                                       \
        }
FOR_EACH_WORD(IMUL_MORE)

#define ONE_OPERAND_ROW(bits, op) { op##bits##_r, op##bits##_m },
#define IMUL_ROW(bits) { imul##bits##_rr, imul##bits##_rm, imul##bits##_rri, imul##bits##_rmi },

insn_fn muldiv_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        static const insn_fn mul[4][2] = { FOR_EACH_WIDTH(ONE_OPERAND_ROW, mul) };
        static const insn_fn imul[4][2] = { FOR_EACH_WIDTH(ONE_OPERAND_ROW, imul) };
        static const insn_fn div[4][2] = { FOR_EACH_WIDTH(ONE_OPERAND_ROW, div) };
        static const insn_fn idiv[4][2] = { FOR_EACH_WIDTH(ONE_OPERAND_ROW, idiv) };
        static const insn_fn imul_more[3][4] = { FOR_EACH_WORD(IMUL_ROW) };
        unsigned width = width_index(insn->opsize), memory = insn->flags & INSN_MEMORY ? 1 : 0;

        switch (d->z->mnemonic) {
        case ZYDIS_MNEMONIC_MUL: return mul[width][memory];
        case ZYDIS_MNEMONIC_DIV: return div[width][memory];
        case ZYDIS_MNEMONIC_IDIV: return idiv[width][memory];
        case ZYDIS_MNEMONIC_IMUL:
                if (d->z->operand_count_visible == 1)
                        return imul[width][memory];
                return imul_more[width - 1][memory + (d->z->operand_count_visible == 3 ? 2 : 0)];
        default: return NULL;
        }
}
