/*
 * ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT; and comparisons joined with the conditional jump behind them.
 * The forms with LOCK are in integer-atomic.c.
 *
 * AF after AND, OR, XOR and TEST is undefined; it is 0 here as on the hardware.
 */
#include "cpu/x86/integer.h"

#define OPERATIONS(bits)                                                                                              \
        static _always_inline_ uint##bits##_t op_add##bits(struct x86_cpu *cpu, uint##bits##_t a, uint##bits##_t b)    \
        {                                                                                                             \
                uint##bits##_t r = (uint##bits##_t)(a + b);                                                           \
                                                                                                                      \
                flags_sum##bits(cpu, a, b, r);                                                                        \
                return r;                                                                                             \
        }                                                                                                             \
        static _always_inline_ uint##bits##_t op_adc##bits(struct x86_cpu *cpu, uint##bits##_t a, uint##bits##_t b)    \
        {                                                                                                             \
                uint##bits##_t r = (uint##bits##_t)(a + b + flag_cf(cpu));                                            \
                                                                                                                      \
                flags_sum##bits(cpu, a, b, r);                                                                        \
                return r;                                                                                             \
        }                                                                                                             \
        static _always_inline_ uint##bits##_t op_sub##bits(struct x86_cpu *cpu, uint##bits##_t a, uint##bits##_t b)    \
        {                                                                                                             \
                uint##bits##_t r = (uint##bits##_t)(a - b);                                                           \
                                                                                                                      \
                flags_difference##bits(cpu, a, b, r);                                                                 \
                return r;                                                                                             \
        }                                                                                                             \
        static _always_inline_ uint##bits##_t op_sbb##bits(struct x86_cpu *cpu, uint##bits##_t a, uint##bits##_t b)    \
        {                                                                                                             \
                uint##bits##_t r = (uint##bits##_t)(a - b - flag_cf(cpu));                                            \
                                                                                                                      \
                flags_difference##bits(cpu, a, b, r);                                                                 \
                return r;                                                                                             \
        }                                                                                                             \
        static _always_inline_ uint##bits##_t op_and##bits(struct x86_cpu *cpu, uint##bits##_t a, uint##bits##_t b)    \
        {                                                                                                             \
                flags_logic##bits(cpu, (uint##bits##_t)(a & b));                                                      \
                return (uint##bits##_t)(a & b);                                                                       \
        }                                                                                                             \
        static _always_inline_ uint##bits##_t op_or##bits(struct x86_cpu *cpu, uint##bits##_t a, uint##bits##_t b)     \
        {                                                                                                             \
                flags_logic##bits(cpu, (uint##bits##_t)(a | b));                                                      \
                return (uint##bits##_t)(a | b);                                                                       \
        }                                                                                                             \
        static _always_inline_ uint##bits##_t op_xor##bits(struct x86_cpu *cpu, uint##bits##_t a, uint##bits##_t b)    \
        {                                                                                                             \
                flags_logic##bits(cpu, (uint##bits##_t)(a ^ b));                                                      \
                return (uint##bits##_t)(a ^ b);                                                                       \
        }                                                                                                             \
        static _always_inline_ uint##bits##_t op_inc##bits(struct x86_cpu *cpu, uint##bits##_t a)                      \
        {                                                                                                             \
                flags_increment##bits(cpu, (uint##bits##_t)(a + 1));                                                  \
                return (uint##bits##_t)(a + 1);                                                                       \
        }                                                                                                             \
        static _always_inline_ uint##bits##_t op_dec##bits(struct x86_cpu *cpu, uint##bits##_t a)                      \
        {                                                                                                             \
                flags_decrement##bits(cpu, (uint##bits##_t)(a - 1));                                                  \
                return (uint##bits##_t)(a - 1);                                                                       \
        }                                                                                                             \
        static _always_inline_ uint##bits##_t op_neg##bits(struct x86_cpu *cpu, uint##bits##_t a)                      \
        {                                                                                                             \
                flags_difference##bits(cpu, 0, a, (uint##bits##_t)(0 - a));                                           \
                return (uint##bits##_t)(0 - a);                                                                       \
        }                                                                                                             \
        static _always_inline_ uint##bits##_t op_not##bits(struct x86_cpu *cpu, uint##bits##_t a)                      \
        {                                                                                                             \
                return (uint##bits##_t)~a;                                                                            \
        }
FOR_EACH_WIDTH(OPERATIONS)

/* ---- two operands, the first one is written ---- */

#define BINARY_MEMORY(form, bits, op)                                                                  \
        HANDLER(op##bits##_rm_##form)                                                                  \
        {                                                                                              \
                uint##bits##_t b = load##bits(cpu, i, FORM_##form);                                    \
                                                                                                       \
                reg_set##bits(cpu, i->reg[0], op_##op##bits(cpu, reg_get##bits(cpu, i->reg[0]), b));   \
                NEXT;                                                                                  \
        }                                                                                              \
        HANDLER(op##bits##_mr_##form)                                                                  \
        {                                                                                              \
                MODIFY(bits, FORM_##form, r = op_##op##bits(cpu, a, reg_get##bits(cpu, i->reg[1])));   \
                NEXT;                                                                                  \
        }                                                                                              \
        HANDLER(op##bits##_mi_##form)                                                                  \
        {                                                                                              \
                MODIFY(bits, FORM_##form, r = op_##op##bits(cpu, a, (uint##bits##_t)i->imm));          \
                NEXT;                                                                                  \
        }

#define BINARY(bits, op)                                                                                            \
        HANDLER(op##bits##_rr)                                                                                      \
        {                                                                                                           \
                reg_set##bits(cpu, i->reg[0],                                                                       \
                              op_##op##bits(cpu, reg_get##bits(cpu, i->reg[0]), reg_get##bits(cpu, i->reg[1])));    \
                NEXT;                                                                                               \
        }                                                                                                           \
        HANDLER(op##bits##_ri)                                                                                      \
        {                                                                                                           \
                reg_set##bits(cpu, i->reg[0], op_##op##bits(cpu, reg_get##bits(cpu, i->reg[0]), (uint##bits##_t)i->imm)); \
                NEXT;                                                                                               \
        }                                                                                                           \
        FOR_EACH_FORM(BINARY_MEMORY, bits, op)

FOR_EACH_WIDTH(BINARY, add)
FOR_EACH_WIDTH(BINARY, or)
FOR_EACH_WIDTH(BINARY, adc)
FOR_EACH_WIDTH(BINARY, sbb)
FOR_EACH_WIDTH(BINARY, and)
FOR_EACH_WIDTH(BINARY, sub)
FOR_EACH_WIDTH(BINARY, xor)

/* ---- two operands, only flags are written: name (cmp, test) by operation (sub, and) ---- */

#define COMPARE_MEMORY(form, bits, name, op)                                                                       \
        HANDLER(name##bits##_rm_##form)                                                                            \
        {                                                                                                          \
                uint##bits##_t b = load##bits(cpu, i, FORM_##form);                                                \
                                                                                                                   \
                op_##op##bits(cpu, reg_get##bits(cpu, i->reg[0]), b);                                              \
                NEXT;                                                                                              \
        }                                                                                                          \
        HANDLER(name##bits##_mr_##form)                                                                            \
        {                                                                                                          \
                op_##op##bits(cpu, load##bits(cpu, i, FORM_##form), reg_get##bits(cpu, i->reg[1]));                \
                NEXT;                                                                                              \
        }                                                                                                          \
        HANDLER(name##bits##_mi_##form)                                                                            \
        {                                                                                                          \
                op_##op##bits(cpu, load##bits(cpu, i, FORM_##form), (uint##bits##_t)i->imm);                       \
                NEXT;                                                                                              \
        }

#define COMPARE(bits, name, op)                                                                            \
        HANDLER(name##bits##_rr)                                                                           \
        {                                                                                                  \
                op_##op##bits(cpu, reg_get##bits(cpu, i->reg[0]), reg_get##bits(cpu, i->reg[1]));          \
                NEXT;                                                                                      \
        }                                                                                                  \
        HANDLER(name##bits##_ri)                                                                           \
        {                                                                                                  \
                op_##op##bits(cpu, reg_get##bits(cpu, i->reg[0]), (uint##bits##_t)i->imm);                 \
                NEXT;                                                                                      \
        }                                                                                                  \
        FOR_EACH_FORM(COMPARE_MEMORY, bits, name, op)

FOR_EACH_WIDTH(COMPARE, cmp, sub)
FOR_EACH_WIDTH(COMPARE, test, and)

/* ---- one operand ---- */

#define UNARY_MEMORY(form, bits, op)                                          \
        HANDLER(op##bits##_m_##form)                                          \
        {                                                                     \
                MODIFY(bits, FORM_##form, r = op_##op##bits(cpu, a));         \
                NEXT;                                                         \
        }

#define UNARY(bits, op)                                                                                 \
        HANDLER(op##bits##_r)                                                                           \
        {                                                                                               \
                reg_set##bits(cpu, i->reg[0], op_##op##bits(cpu, reg_get##bits(cpu, i->reg[0])));       \
                NEXT;                                                                                   \
        }                                                                                               \
        FOR_EACH_FORM(UNARY_MEMORY, bits, op)

FOR_EACH_WIDTH(UNARY, inc)
FOR_EACH_WIDTH(UNARY, dec)
FOR_EACH_WIDTH(UNARY, neg)
FOR_EACH_WIDTH(UNARY, not)

/* The idiom XOR r,r (SUB r,r): the result does not depend on the register. */
HANDLER(zero_r)
{
        cpu->lazy.result = 0;
        cpu->lazy.carry = 0;
        reg_set64(cpu, i->reg[0], 0);
        NEXT;
}

/* ---- tables: [width][form] ---- */

enum binary_form { RR, RI, RM, MR = RM + ADDRESS_FORMS, MI = MR + ADDRESS_FORMS, BINARY_FORMS = MI + ADDRESS_FORMS };

#define BINARY_ROW_FORM(form, bits, op)                      \
        [RM + FORM_##form] = op##bits##_rm_##form,           \
        [MR + FORM_##form] = op##bits##_mr_##form,           \
        [MI + FORM_##form] = op##bits##_mi_##form,
#define BINARY_ROW(bits, op) { [RR] = op##bits##_rr, [RI] = op##bits##_ri, FOR_EACH_FORM(BINARY_ROW_FORM, bits, op) },
#define BINARY_TABLE(op) static const insn_fn op##_table[4][BINARY_FORMS] = { FOR_EACH_WIDTH(BINARY_ROW, op) }

BINARY_TABLE(add);
BINARY_TABLE(or);
BINARY_TABLE(adc);
BINARY_TABLE(sbb);
BINARY_TABLE(and);
BINARY_TABLE(sub);
BINARY_TABLE(xor);
BINARY_TABLE(cmp);
BINARY_TABLE(test);

enum { UNARY_R, UNARY_M, UNARY_FORMS = UNARY_M + ADDRESS_FORMS };

#define UNARY_ROW_FORM(form, bits, op) [UNARY_M + FORM_##form] = op##bits##_m_##form,
#define UNARY_ROW(bits, op) { [UNARY_R] = op##bits##_r, FOR_EACH_FORM(UNARY_ROW_FORM, bits, op) },
#define UNARY_TABLE(op) static const insn_fn op##_table[4][UNARY_FORMS] = { FOR_EACH_WIDTH(UNARY_ROW, op) }

UNARY_TABLE(inc);
UNARY_TABLE(dec);
UNARY_TABLE(neg);
UNARY_TABLE(not);

static unsigned binary_form(const struct insn *insn, const struct decoded *d)
{
        bool immediate = d->operand[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;

        switch (insn->memory_operand) {
        case 0:
                return (immediate ? MI : MR) + address_form(insn);
        case 1:
                return RM + address_form(insn);
        default:
                return immediate ? RI : RR;
        }
}

insn_fn alu_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        const insn_fn(*binary)[BINARY_FORMS] = NULL;
        const insn_fn(*unary)[UNARY_FORMS] = NULL;

        if (insn->flags & INSN_LOCK)
                return atomic_bind(cpu, insn, d);
        switch (d->z->mnemonic) {
        case ZYDIS_MNEMONIC_ADD: binary = add_table; break;
        case ZYDIS_MNEMONIC_OR: binary = or_table; break;
        case ZYDIS_MNEMONIC_ADC: binary = adc_table; break;
        case ZYDIS_MNEMONIC_SBB: binary = sbb_table; break;
        case ZYDIS_MNEMONIC_AND: binary = and_table; break;
        case ZYDIS_MNEMONIC_SUB: binary = sub_table; break;
        case ZYDIS_MNEMONIC_XOR: binary = xor_table; break;
        case ZYDIS_MNEMONIC_CMP: binary = cmp_table; break;
        case ZYDIS_MNEMONIC_TEST: binary = test_table; break;
        case ZYDIS_MNEMONIC_INC: unary = inc_table; break;
        case ZYDIS_MNEMONIC_DEC: unary = dec_table; break;
        case ZYDIS_MNEMONIC_NEG: unary = neg_table; break;
        case ZYDIS_MNEMONIC_NOT: unary = not_table; break;
        default: return NULL;
        }
        if (unary)
                return unary[width_index(insn->opsize)][insn->memory_operand == 0 ? UNARY_M + address_form(insn) : UNARY_R];
        if ((binary == xor_table || binary == sub_table) && binary_form(insn, d) == RR && insn->opsize >= 4 &&
            insn->reg[0] == insn->reg[1])
                return zero_r;
        return binary[width_index(insn->opsize)][binary_form(insn, d)];
}

/* ---- a comparison and the conditional jump behind it in one ---- */

/* The conditions that a comparison leads to, from its operands (a, b) or from the result of TEST (r). */
#define CMP_Z(bits) (a == b)
#define CMP_NZ(bits) (a != b)
#define CMP_B(bits) (a < b)
#define CMP_NB(bits) (a >= b)
#define CMP_BE(bits) (a <= b)
#define CMP_NBE(bits) (a > b)
#define CMP_L(bits) ((int##bits##_t)a < (int##bits##_t)b)
#define CMP_NL(bits) ((int##bits##_t)a >= (int##bits##_t)b)
#define CMP_LE(bits) ((int##bits##_t)a <= (int##bits##_t)b)
#define CMP_NLE(bits) ((int##bits##_t)a > (int##bits##_t)b)
#define CMP_S(bits) ((int##bits##_t)(a - b) < 0)
#define CMP_NS(bits) ((int##bits##_t)(a - b) >= 0)

#define TEST_Z(bits) ((a & b) == 0)
#define TEST_NZ(bits) ((a & b) != 0)
#define TEST_S(bits) ((int##bits##_t)(a & b) < 0)
#define TEST_NS(bits) ((int##bits##_t)(a & b) >= 0)
#define TEST_LE(bits) ((int##bits##_t)(a & b) <= 0)
#define TEST_NLE(bits) ((int##bits##_t)(a & b) > 0)

/* The jump is the running instruction when the block is left. */
#define FUSED_END(condition)                           \
        do {                                           \
                i++;                                   \
                cpu->insn = i;                         \
                if (condition)                         \
                        return block_take(cpu, i);     \
                return block_go_on(cpu, i);            \
        } while (0)

#define FUSED(bits, name, op, NAME, cc)                                                    \
        HANDLER(name##bits##_rr_j##cc)                                                     \
        {                                                                                  \
                uint##bits##_t a = reg_get##bits(cpu, i->reg[0]), b = reg_get##bits(cpu, i->reg[1]); \
                                                                                           \
                op_##op##bits(cpu, a, b);                                                  \
                FUSED_END(NAME##_##cc(bits));                                              \
        }                                                                                  \
        HANDLER(name##bits##_ri_j##cc)                                                     \
        {                                                                                  \
                uint##bits##_t a = reg_get##bits(cpu, i->reg[0]), b = (uint##bits##_t)i->imm; \
                                                                                           \
                op_##op##bits(cpu, a, b);                                                  \
                FUSED_END(NAME##_##cc(bits));                                              \
        }                                                                                  \
        HANDLER(name##bits##_mi_j##cc)                                                     \
        {                                                                                  \
                uint##bits##_t a = load##bits(cpu, i, FORM_BASE), b = (uint##bits##_t)i->imm; \
                                                                                           \
                op_##op##bits(cpu, a, b);                                                  \
                FUSED_END(NAME##_##cc(bits));                                              \
        }                                                                                  \
        HANDLER(name##bits##_rm_j##cc)                                                     \
        {                                                                                  \
                uint##bits##_t b = load##bits(cpu, i, FORM_BASE), a = reg_get##bits(cpu, i->reg[0]); \
                                                                                           \
                op_##op##bits(cpu, a, b);                                                  \
                FUSED_END(NAME##_##cc(bits));                                              \
        }                                                                                  \
        HANDLER(name##bits##_mr_j##cc)                                                     \
        {                                                                                  \
                uint##bits##_t a = load##bits(cpu, i, FORM_BASE), b = reg_get##bits(cpu, i->reg[1]); \
                                                                                           \
                op_##op##bits(cpu, a, b);                                                  \
                FUSED_END(NAME##_##cc(bits));                                              \
        }

#define FUSED_CMP(cc) FUSED(8, cmp, sub, CMP, cc) FUSED(32, cmp, sub, CMP, cc) FUSED(64, cmp, sub, CMP, cc)
#define FUSED_TEST(cc) FUSED(8, test, and, TEST, cc) FUSED(32, test, and, TEST, cc) FUSED(64, test, and, TEST, cc)
#define FOR_EACH_FUSED_CMP(X) X(Z) X(NZ) X(B) X(NB) X(BE) X(NBE) X(L) X(NL) X(LE) X(NLE) X(S) X(NS)
#define FOR_EACH_FUSED_TEST(X) X(Z) X(NZ) X(S) X(NS) X(LE) X(NLE)
FOR_EACH_FUSED_CMP(FUSED_CMP)
FOR_EACH_FUSED_TEST(FUSED_TEST)

#define FUSED_CASE(bits, name, cc)                                        \
        if (fn == name##bits##_rr) return name##bits##_rr_j##cc;          \
        if (fn == name##bits##_ri) return name##bits##_ri_j##cc;          \
        if (fn == name##bits##_mi_BASE) return name##bits##_mi_j##cc;     \
        if (fn == name##bits##_rm_BASE) return name##bits##_rm_j##cc;     \
        if (fn == name##bits##_mr_BASE) return name##bits##_mr_j##cc;
#define FUSED_CASES(name, cc)                       \
        case ZYDIS_MNEMONIC_J##cc:                  \
                FUSED_CASE(8, name, cc)             \
                FUSED_CASE(32, name, cc)            \
                FUSED_CASE(64, name, cc)            \
                break;
#define FUSED_CMP_CASES(cc) FUSED_CASES(cmp, cc)
#define FUSED_TEST_CASES(cc) FUSED_CASES(test, cc)

/* TEST compared as CMP with 0 would be: its carry and overflow are 0. */
insn_fn alu_fused(const struct insn *compare, const struct insn *jump)
{
        insn_fn fn = compare->fn;

        if (compare->op == ZYDIS_MNEMONIC_CMP) {
                switch (jump->op) {
                        FOR_EACH_FUSED_CMP(FUSED_CMP_CASES)
                default:
                        break;
                }
        } else if (compare->op == ZYDIS_MNEMONIC_TEST) {
                switch (jump->op) {
                        FOR_EACH_FUSED_TEST(FUSED_TEST_CASES)
                default:
                        break;
                }
        }
        return NULL;
}
