/*
 * Moves: MOV between registers, memory and immediates, MOVZX, MOVSX, MOVSXD, MOVBE, BSWAP, XCHG of registers, LEA, CMOVcc, SETcc,
 * XLAT, the sign extensions CBW to CQO. Moves to and from segment, control and debug registers are system instructions.
 */
#include "cpu/x86/integer.h"

#define MOV_MEMORY(form, bits)                                                      \
        HANDLER(mov##bits##_rm_##form)                                              \
        {                                                                           \
                reg_set##bits(cpu, i->reg[0], load##bits(cpu, i, FORM_##form));     \
                NEXT;                                                               \
        }                                                                           \
        HANDLER(mov##bits##_mr_##form)                                              \
        {                                                                           \
                store##bits(cpu, i, FORM_##form, reg_get##bits(cpu, i->reg[1]));    \
                NEXT;                                                               \
        }                                                                           \
        HANDLER(mov##bits##_mi_##form)                                              \
        {                                                                           \
                store##bits(cpu, i, FORM_##form, (uint##bits##_t)i->imm);           \
                NEXT;                                                               \
        }

#define MOV(bits)                                                                   \
        HANDLER(mov##bits##_rr)                                                     \
        {                                                                           \
                reg_set##bits(cpu, i->reg[0], reg_get##bits(cpu, i->reg[1]));       \
                NEXT;                                                               \
        }                                                                           \
        HANDLER(mov##bits##_ri)                                                     \
        {                                                                           \
                reg_set##bits(cpu, i->reg[0], (uint##bits##_t)i->imm);              \
                NEXT;                                                               \
        }                                                                           \
        FOR_EACH_FORM(MOV_MEMORY, bits)
FOR_EACH_WIDTH(MOV)

enum mov_form { RR, RI, RM, MR = RM + ADDRESS_FORMS, MI = MR + ADDRESS_FORMS, MOV_FORMS = MI + ADDRESS_FORMS };

#define MOV_ROW_FORM(form, bits)                                                                \
        [RM + FORM_##form] = mov##bits##_rm_##form, [MR + FORM_##form] = mov##bits##_mr_##form, \
              [MI + FORM_##form] = mov##bits##_mi_##form,
#define MOV_ROW(bits) { [RR] = mov##bits##_rr, [RI] = mov##bits##_ri, FOR_EACH_FORM(MOV_ROW_FORM, bits) },
static const insn_fn mov_table[4][MOV_FORMS] = { FOR_EACH_WIDTH(MOV_ROW) };

static insn_fn bind_mov(struct insn *insn, const struct decoded *d)
{
        const insn_fn *row = mov_table[width_index(insn->opsize)];

        for (unsigned n = 0; n < 2; n++)
                if (d->operand[n].type == ZYDIS_OPERAND_TYPE_REGISTER && d->operand[n].reg.value > ZYDIS_REGISTER_R15)
                        return NULL; /* a segment, control or debug register */
        if (d->operand[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
                return row[insn->memory_operand == 0 ? MI + address_form(insn) : RI];
        if (insn->memory_operand == 0)
                return row[MR + address_form(insn)];
        return row[insn->memory_operand == 1 ? RM + address_form(insn) : RR];
}

/* ---- zero and sign extension ---- */

#define EXTEND_MEMORY(form, name, to, from, type)                                                     \
        HANDLER(name##to##_##from##_m_##form)                                                         \
        {                                                                                             \
                reg_set##to(cpu, i->reg[0], (uint##to##_t)(type##from##_t)load##from(cpu, i, FORM_##form)); \
                NEXT;                                                                                 \
        }
#define EXTEND(name, to, from, type)                                                                  \
        HANDLER(name##to##_##from##_r)                                                                \
        {                                                                                             \
                reg_set##to(cpu, i->reg[0], (uint##to##_t)(type##from##_t)reg_get##from(cpu, i->reg[1])); \
                NEXT;                                                                                 \
        }                                                                                             \
        FOR_EACH_FORM(EXTEND_MEMORY, name, to, from, type)                                            \
        static const insn_fn name##to##_##from##_table[] = {                                          \
                name##to##_##from##_r, name##to##_##from##_m_BASE, name##to##_##from##_m_INDEX, name##to##_##from##_m_ANY, \
        };

EXTEND(movzx, 16, 8, uint)
EXTEND(movzx, 32, 8, uint)
EXTEND(movzx, 64, 8, uint)
EXTEND(movzx, 16, 16, uint)
EXTEND(movzx, 32, 16, uint)
EXTEND(movzx, 64, 16, uint)
EXTEND(movsx, 16, 8, int)
EXTEND(movsx, 32, 8, int)
EXTEND(movsx, 64, 8, int)
EXTEND(movsx, 16, 16, int)
EXTEND(movsx, 32, 16, int)
EXTEND(movsx, 64, 16, int)
EXTEND(movsx, 32, 32, int)
EXTEND(movsx, 64, 32, int)

static const insn_fn *extend_table(const struct insn *insn, unsigned from, bool sign)
{
        unsigned to = width_index(insn->opsize); /* 1-3 */
        static const insn_fn *const zero8[] = { NULL, movzx16_8_table, movzx32_8_table, movzx64_8_table };
        static const insn_fn *const zero16[] = { NULL, movzx16_16_table, movzx32_16_table, movzx64_16_table };
        static const insn_fn *const sign8[] = { NULL, movsx16_8_table, movsx32_8_table, movsx64_8_table };
        static const insn_fn *const sign16[] = { NULL, movsx16_16_table, movsx32_16_table, movsx64_16_table };
        static const insn_fn *const sign32[] = { NULL, movsx16_16_table, movsx32_32_table, movsx64_32_table };

        switch (from) {
        case 8: return sign ? sign8[to] : zero8[to];
        case 16: return sign ? sign16[to] : zero16[to];
        default: return sign ? sign32[to] : NULL;
        }
}

static insn_fn bind_extend(struct insn *insn, const struct decoded *d, bool sign)
{
        const insn_fn *table = extend_table(insn, d->operand[1].size, sign);

        return table ? table[insn->flags & INSN_MEMORY ? 1 + address_form(insn) : 0] : NULL;
}

/* ---- LEA ---- */

HANDLER(lea64_base)
{
        reg_set64(cpu, i->reg[0], address_of(cpu, i, FORM_BASE));
        NEXT;
}

HANDLER(lea64_index)
{
        reg_set64(cpu, i->reg[0], address_of(cpu, i, FORM_INDEX));
        NEXT;
}

HANDLER(lea64_any)
{
        reg_set64(cpu, i->reg[0], insn_offset(cpu, i));
        NEXT;
}

HANDLER(lea32)
{
        reg_set32(cpu, i->reg[0], (uint32_t)insn_offset(cpu, i));
        NEXT;
}

HANDLER(lea16)
{
        reg_set16(cpu, i->reg[0], (uint16_t)insn_offset(cpu, i));
        NEXT;
}

static insn_fn bind_lea(struct insn *insn)
{
        static const insn_fn lea64[] = { lea64_base, lea64_index, lea64_any };

        insn->seg = X86_DS; /* a segment prefix means nothing */
        switch (insn->opsize) {
        case 8: return lea64[address_form(insn)];
        case 4: return lea32;
        default: return lea16;
        }
}

/* ---- byte order ---- */

HANDLER(bswap32)
{
        reg_set32(cpu, i->reg[0], __builtin_bswap32(reg_get32(cpu, i->reg[0])));
        NEXT;
}

HANDLER(bswap64)
{
        reg_set64(cpu, i->reg[0], __builtin_bswap64(reg_get64(cpu, i->reg[0])));
        NEXT;
}

/* With 16 bits BSWAP is undefined; processors clear the register's low word. */
HANDLER(bswap16)
{
        reg_set16(cpu, i->reg[0], 0);
        NEXT;
}

#define MOVBE(bits)                                                                                         \
        HANDLER(movbe##bits##_rm)                                                                           \
        {                                                                                                   \
                reg_set##bits(cpu, i->reg[0], __builtin_bswap##bits(load##bits(cpu, i, FORM_ANY)));         \
                NEXT;                                                                                       \
        }                                                                                                   \
        HANDLER(movbe##bits##_mr)                                                                           \
        {                                                                                                   \
                store##bits(cpu, i, FORM_ANY, __builtin_bswap##bits(reg_get##bits(cpu, i->reg[1])));        \
                NEXT;                                                                                       \
        }
FOR_EACH_WORD(MOVBE)

static insn_fn bind_movbe(const struct insn *insn)
{
        static const insn_fn table[4][2] = {
                { NULL, NULL }, { movbe16_rm, movbe16_mr }, { movbe32_rm, movbe32_mr }, { movbe64_rm, movbe64_mr },
        };

        return table[width_index(insn->opsize)][insn->memory_operand == 0];
}

/* ---- XCHG of registers; with memory it is atomic ---- */

#define XCHG(bits)                                                                \
        HANDLER(xchg##bits##_rr)                                                  \
        {                                                                         \
                uint##bits##_t a = reg_get##bits(cpu, i->reg[0]);                 \
                                                                                  \
                reg_set##bits(cpu, i->reg[0], reg_get##bits(cpu, i->reg[1]));     \
                reg_set##bits(cpu, i->reg[1], a);                                 \
                NEXT;                                                             \
        }
FOR_EACH_WIDTH(XCHG)

/* ---- conditions ---- */

/* CMOVcc reads its operand (and clears the upper half of a 32-bit register) whether the condition holds or not. */
#define CMOV_MEMORY(form, bits, cc)                                                            \
        HANDLER(cmov##bits##_m_##form##_##cc)                                                  \
        {                                                                                      \
                uint##bits##_t b = load##bits(cpu, i, FORM_##form);                            \
                                                                                               \
                reg_set##bits(cpu, i->reg[0], COND_##cc(cpu) ? b : reg_get##bits(cpu, i->reg[0])); \
                NEXT;                                                                          \
        }
#define CMOV(bits, cc)                                                                         \
        HANDLER(cmov##bits##_r_##cc)                                                           \
        {                                                                                      \
                uint##bits##_t b = reg_get##bits(cpu, i->reg[1]);                              \
                                                                                               \
                reg_set##bits(cpu, i->reg[0], COND_##cc(cpu) ? b : reg_get##bits(cpu, i->reg[0])); \
                NEXT;                                                                          \
        }                                                                                      \
        FOR_EACH_FORM(CMOV_MEMORY, bits, cc)
#define CONDITIONAL(cc)                                               \
        FOR_EACH_WORD(CMOV, cc)                                       \
        HANDLER(set_r_##cc)                                           \
        {                                                             \
                reg_set8(cpu, i->reg[0], COND_##cc(cpu));             \
                NEXT;                                                 \
        }                                                             \
        HANDLER(set_m_##cc)                                           \
        {                                                             \
                store8(cpu, i, FORM_ANY, COND_##cc(cpu));             \
                NEXT;                                                 \
        }
FOR_EACH_CONDITION(CONDITIONAL)

#define CMOV_ROW(bits, cc) { cmov##bits##_r_##cc, cmov##bits##_m_BASE_##cc, cmov##bits##_m_INDEX_##cc, cmov##bits##_m_ANY_##cc },
#define CMOV_CASE(cc)                                                                            \
        case ZYDIS_MNEMONIC_CMOV##cc: {                                                          \
                static const insn_fn table[3][4] = { FOR_EACH_WORD(CMOV_ROW, cc) };              \
                return table[width_index(insn->opsize) - 1][insn->flags & INSN_MEMORY ? 1 + address_form(insn) : 0]; \
        }
#define SET_CASE(cc)                                                             \
        case ZYDIS_MNEMONIC_SET##cc:                                             \
                return insn->flags & INSN_MEMORY ? set_m_##cc : set_r_##cc;

static insn_fn bind_conditional(const struct insn *insn)
{
        switch (insn->op) {
                FOR_EACH_CONDITION(CMOV_CASE)
                FOR_EACH_CONDITION(SET_CASE)
        default:
                return NULL;
        }
}

/* ---- without operands ---- */

HANDLER(cbw)
{
        reg_set16(cpu, RAX_AT, (uint16_t)(int8_t)reg_get8(cpu, RAX_AT));
        NEXT;
}

HANDLER(cwde)
{
        reg_set32(cpu, RAX_AT, (uint32_t)(int16_t)reg_get16(cpu, RAX_AT));
        NEXT;
}

HANDLER(cdqe)
{
        reg_set64(cpu, RAX_AT, (uint64_t)(int32_t)reg_get32(cpu, RAX_AT));
        NEXT;
}

HANDLER(cwd)
{
        reg_set16(cpu, RDX_AT, (uint16_t)((int16_t)reg_get16(cpu, RAX_AT) >> 15));
        NEXT;
}

HANDLER(cdq)
{
        reg_set32(cpu, RDX_AT, (uint32_t)((int32_t)reg_get32(cpu, RAX_AT) >> 31));
        NEXT;
}

HANDLER(cqo)
{
        reg_set64(cpu, RDX_AT, (uint64_t)((int64_t)reg_get64(cpu, RAX_AT) >> 63));
        NEXT;
}

/* AL = [rBX + AL]: the sum is cut to the address size, so the index goes into the offset, not onto the linear address. */
HANDLER(xlat)
{
        uint64_t offset = cpu->s.gpr[X86_RBX] + reg_get8(cpu, RAX_AT);

        if (i->asize == 4)
                offset = (uint32_t)offset;
        else if (i->asize == 2)
                offset = (uint16_t)offset;
        reg_set8(cpu, RAX_AT, mmu_read8(cpu, x86_linear(cpu, i->seg, offset, 1, false)));
        NEXT;
}

insn_fn mov_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        static const insn_fn xchg[] = { xchg8_rr, xchg16_rr, xchg32_rr, xchg64_rr };

        switch (d->z->mnemonic) {
        case ZYDIS_MNEMONIC_MOV: return bind_mov(insn, d);
        case ZYDIS_MNEMONIC_MOVZX: return bind_extend(insn, d, false);
        case ZYDIS_MNEMONIC_MOVSX:
        case ZYDIS_MNEMONIC_MOVSXD: return bind_extend(insn, d, true);
        case ZYDIS_MNEMONIC_LEA: return bind_lea(insn);
        case ZYDIS_MNEMONIC_MOVBE: return bind_movbe(insn);
        case ZYDIS_MNEMONIC_BSWAP: return insn->opsize == 8 ? bswap64 : insn->opsize == 4 ? bswap32 : bswap16;
        case ZYDIS_MNEMONIC_XCHG:
                return insn->flags & INSN_MEMORY ? atomic_bind(cpu, insn, d) : xchg[width_index(insn->opsize)];
        case ZYDIS_MNEMONIC_CBW: return cbw;
        case ZYDIS_MNEMONIC_CWDE: return cwde;
        case ZYDIS_MNEMONIC_CDQE: return cdqe;
        case ZYDIS_MNEMONIC_CWD: return cwd;
        case ZYDIS_MNEMONIC_CDQ: return cdq;
        case ZYDIS_MNEMONIC_CQO: return cqo;
        case ZYDIS_MNEMONIC_XLAT: return xlat;
        default: return bind_conditional(insn);
        }
}
