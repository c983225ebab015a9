/*
 * One look-up for several accesses through the same registers.
 *
 * PUSH PUSH PUSH, MOV [rbp-8] … MOV [rbp-16], POP POP RET, ADDSD [rdx+rax*8] MOVSD [rdx+rax*8]: a run of accesses at constant distances
 * from a base with an index, with nothing in between that writes these (but by constants) or needs RBP. The first of them looks up
 * the lowest address and sees that the whole span lies in its page, for writing when any of them writes; RBP then holds the host's
 * address of where the registers pointed, and the others are [rbp + distance], with no look-up and the host's flags left alone.
 *
 * When the check fails nothing of the group has been done yet. A TSITE_GROUP tries to fill the TLB for the whole span. Else (a span over
 * two pages, a page that holds code, a device, a fault that is not the first instruction's) execution goes on in a *plain* block
 * (TKEY_PLAIN), which begins at the group's first instruction, has no groups, and leads to ordinary blocks. Once a span has lain on
 * two pages the edge is linked to that block, since the next will, too: a loop over such a stack frame stays in emitted code.
 *
 * Nothing between the check and the last access may leave translated code and come back (a service could take the translation away),
 * so a group ends before any such site. A conditional jump out of it is none, nor is an exception of vector arithmetic.
 */
#include "cpu/x86/translate.h"

#define SPAN_MAX 512
#define EDGE_BYTES 10 /* the last 4 are the jump's */

/* Registers that accesses count from, numbers as s.gpr[] has them; GPR_ZERO: none. */
struct origin {
        uint8_t base, index, shift;
};

struct access {
        struct origin origin;
        int64_t disp;
        unsigned size_bytes;
        bool write;
};

/* false: no access for a group. */
static bool access_of(const struct tinsn *i, struct access *a)
{
        const struct insn *insn = &i->insn;
        const ZydisDecodedOperand *o;

        *a = (struct access){ .origin = { X86_RSP, GPR_ZERO, 0 }, .size_bytes = 8 };
        switch (i->access) {
        case TACCESS_PUSH:
                a->disp = -8;
                a->write = true;
                return true;
        case TACCESS_POP: return true;
        case TACCESS_OPERAND: break;
        default: return false;
        }
        if (insn->seg >= X86_FS || insn->asize != 8 || insn->flags & INSN_LOCK || i->z.mnemonic == ZYDIS_MNEMONIC_XCHG ||
            i->z.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B || (insn->base == GPR_ZERO * 8 && insn->index == GPR_ZERO * 8))
                return false;
        o = &i->operand[insn->memory_operand];
        a->origin = (struct origin){ insn->base / 8, insn->index / 8, insn->shift };
        a->disp = insn->disp;
        a->size_bytes = o->size / 8u;
        a->write = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
        return a->disp == (int32_t)a->disp;
}

static bool same_origin(struct origin a, struct origin b)
{
        return a.base == b.base && a.index == b.index && a.shift == b.shift;
}

/* ADD, SUB, INC, DEC with a constant of a register of 64 bits, LEA reg, [reg + disp]. */
static bool moves(const struct tinsn *i, unsigned guest, int64_t *by)
{
        const struct insn *insn = &i->insn;

        if (insn->opsize != 8 || insn->reg[0] != guest * 8)
                return false;
        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_LEA:
                *by = insn->disp;
                return insn->asize == 8 && insn->base == guest * 8 && insn->index == GPR_ZERO * 8;
        case ZYDIS_MNEMONIC_INC:
        case ZYDIS_MNEMONIC_DEC: *by = i->z.mnemonic == ZYDIS_MNEMONIC_INC ? 1 : -1; return !(insn->flags & INSN_MEMORY);
        case ZYDIS_MNEMONIC_ADD:
        case ZYDIS_MNEMONIC_SUB: break;
        default: return false;
        }
        if (insn->flags & INSN_MEMORY || i->operand[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
                return false;
        *by = i->z.mnemonic == ZYDIS_MNEMONIC_ADD ? (int64_t)insn->imm : -(int64_t)insn->imm;
        return true;
}

struct span {
        struct origin origin;
        unsigned last, members;
        int64_t low, high, moved;
        bool write;
};

static bool take_access(struct span *s, const struct tinsn *i)
{
        struct access a;
        int64_t low, high;

        if (!access_of(i, &a) || !same_origin(a.origin, s->origin))
                return false;
        a.disp += s->moved;
        low = MIN(s->low, a.disp);
        high = MAX(s->high, a.disp + a.size_bytes);
        if (high - low > SPAN_MAX || low != (int32_t)low || high != (int32_t)high)
                return false;
        s->low = low;
        s->high = high;
        s->write |= a.write;
        s->members++;
        return true;
}

static bool follow_register(struct span *s, const struct tinsn *i, unsigned guest, unsigned shift)
{
        int64_t by;

        if (moves(i, guest, &by)) {
                s->moved += by * (1 << shift);
                return s->moved == (int32_t)s->moved;
        }
        return !flags_guest_written(i, guest);
}

/* Follows the registers behind i; false: they are lost. */
static bool follow_origin(struct span *s, const struct tinsn *i)
{
        bool same = true;

        if (i->access == TACCESS_PUSH || i->access == TACCESS_POP) {
                unsigned loaded = i->access != TACCESS_POP ? GPR_ZERO * 8 : i->insn.reg[0];

                if (s->origin.base == X86_RSP)
                        s->moved += i->access == TACCESS_PUSH ? -8 : 8;
                return !(i->access == TACCESS_POP && i->ends) && loaded != s->origin.base * 8 &&
                       (loaded != s->origin.index * 8 || s->origin.index == GPR_ZERO);
        }
        if (s->origin.base != GPR_ZERO)
                same = follow_register(s, i, s->origin.base, 0);
        if (s->origin.index != GPR_ZERO)
                same &= follow_register(s, i, s->origin.index, s->origin.shift);
        return same;
}

static void find_group(struct translation *t, unsigned first)
{
        struct span s = { .last = first };
        struct tgroup *group;
        struct access a;

        if (t->groups == ARRAY_SIZE(t->group) || !access_of(&t->insn[first], &a))
                return;
        s.origin = a.origin;
        s.low = a.disp;
        s.high = a.disp + a.size_bytes;
        for (unsigned n = first; n < t->count; n++) {
                struct tinsn *i = &t->insn[n];

                if (n > first && (i->x87_check || i->x87_store))
                        break;
                i->moved = (int32_t)s.moved;
                if (take_access(&s, i))
                        s.last = n;
                else if (!i->keeps_address)
                        break;
                if (i->ends || i->hands_on || !follow_origin(&s, i))
                        break;
        }
        if (s.members < 2)
                return;
        group = &t->group[t->groups++];
        *group = (struct tgroup){
                .first = first, .last = s.last, .base = s.origin.base, .index = s.origin.index, .shift = s.origin.shift,
                .low = (int32_t)s.low, .high = (int32_t)s.high, .write = s.write,
        };
        for (unsigned n = first; n <= s.last; n++)
                t->insn[n].group = group;
}

void groups_find(struct translation *t)
{
        if (t->source->key & TKEY_PLAIN)
                return;
        for (unsigned n = 0; n < t->count; n++)
                if (!t->insn[n].group)
                        find_group(t, n);
}

bool group_takes(const struct translation *t, const struct tinsn *i)
{
        const struct tgroup *group = i->group;

        if (!group || i->access == TACCESS_NONE)
                return false;
        if (i->access == TACCESS_OPERAND)
                return i->insn.base / 8 == group->base && i->insn.index / 8 == group->index && i->insn.shift == group->shift;
        return group->base == X86_RSP && group->index == GPR_ZERO;
}

/* ---- the edge ---- */

static int32_t first_disp(const struct tinsn *first)
{
        return first->access == TACCESS_PUSH ? -8 : first->access == TACCESS_POP ? 0 : (int32_t)first->insn.disp;
}

struct tsite *group_edge(struct translation *t, struct tinsn *first, struct asm_label **slow)
{
        const struct tgroup *group = first->group;
        struct tsite *site;
        struct access own;
        struct tlate *late;
        uint32_t number;

        access_of(first, &own);
        site = translate_site(t, TSITE_GROUP, first, &number);
        late = translate_late(t, TLATE_GROUP, number);
        late->target = first->x87_op;
        *slow = &late->from;
        site->stack = first->access != TACCESS_OPERAND;
        site->size_bytes = first->miss_to_handler ? 0 : (uint8_t)own.size_bytes;
        site->write = own.write;
        site->below = (uint16_t)(first_disp(first) - group->low);
        site->span = (uint16_t)(group->high - group->low);
        site->span_write = group->write;
        site->retry = translate_here(t);
        return site;
}

/* Linked, it takes the flags along where the site has them, or in the host's when they are a recipe (translator.c: entry_for()). */
void group_emit_edge(struct translation *t, struct tlate *late)
{
        struct tsite *site = translate_site_at(t, late->number);

        asm_bind(t->a, &late->from);
        x87_store(t, late->target);
        if (!(t->places & TPLACE_SAVED))
                flags_to_host(t);
        asm_align(t->a, 4, EDGE_BYTES);
        site->patch = translate_here(t) + EDGE_BYTES - 4;
        translate_edge_here(t, late->number, TTHUNK_MEMORY);
}
