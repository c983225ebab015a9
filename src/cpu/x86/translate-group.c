/*
 * One look-up for several accesses through one base register.
 *
 * PUSH PUSH PUSH, MOV [rbp-8] … MOV [rbp-16], POP POP RET: a run of accesses at constant distances from one register, with nothing
 * in between that writes it (RSP may move by constants) or needs RBP. The first of them looks up the lowest address and sees that
 * the whole span lies in its page, for writing when any of them writes; RBP then holds the host's address of where the register
 * pointed, and the others are [rbp + distance], with no look-up and the host's flags left alone.
 *
 * When the check fails execution goes to the tail: the same instructions once more, behind the block, each with its own
 * look-up. So a miss, a fault, a span over two pages and a page that holds code all end in code as it is without groups; what
 * comes behind a tail is the block again, with the flags brought to where the block has them there.
 *
 * Nothing between the check and the last access may leave translated code and come back (a service could take the translation away),
 * so a group ends before any other site; a conditional jump out of it is none.
 */
#include "cpu/x86/translate.h"

#define SPAN_MAX 512

/* A register that an access of i counts from, and how far: false when it is no access for a group. */
static bool access_of(const struct tinsn *i, unsigned *base, int64_t *disp, unsigned *size, bool *write)
{
        *base = X86_RSP;
        *size = 8;
        switch (i->access) {
        case TACCESS_PUSH:
                *disp = -8;
                *write = true;
                return true;
        case TACCESS_POP:
                *disp = 0;
                *write = false;
                return true;
        case TACCESS_OPERAND: break;
        default: return false;
        }
        if (i->insn.index != GPR_ZERO * 8 || i->insn.base == GPR_ZERO * 8 || i->insn.seg >= X86_FS || i->insn.asize != 8 ||
            i->miss_to_handler || i->insn.flags & INSN_LOCK || i->z.mnemonic == ZYDIS_MNEMONIC_XCHG)
                return false;
        *base = i->insn.base / 8;
        *disp = i->insn.disp;
        *size = i->operand[i->insn.memory_operand].size / 8u;
        *write = i->operand[i->insn.memory_operand].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
        return *disp == (int32_t)*disp;
}

/* ADD and SUB of an immediate to RSP, LEA RSP, [RSP + disp]. */
static bool moves_stack(const struct tinsn *i, int64_t *by)
{
        if (i->insn.opsize != 8 || i->insn.flags & INSN_MEMORY || i->insn.reg[0] != X86_RSP * 8)
                return false;
        if (i->operand[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
                return false;
        *by = i->z.mnemonic == ZYDIS_MNEMONIC_ADD ? (int64_t)i->insn.imm : -(int64_t)i->insn.imm;
        return i->z.mnemonic == ZYDIS_MNEMONIC_ADD || i->z.mnemonic == ZYDIS_MNEMONIC_SUB;
}

struct span {
        unsigned base, last, members;
        int64_t low, high, moved;
        bool write;
};

static bool take_access(struct span *s, const struct tinsn *i)
{
        unsigned base, size;
        int64_t disp, low, high;
        bool write;

        if (!access_of(i, &base, &disp, &size, &write) || base != s->base)
                return false;
        disp += s->moved;
        low = MIN(s->low, disp);
        high = MAX(s->high, disp + size);
        if (high - low > SPAN_MAX || low != (int32_t)low || high != (int32_t)high)
                return false;
        s->low = low;
        s->high = high;
        s->write |= write;
        s->members++;
        return true;
}

/* Follows the base behind i; false: it is lost. */
static bool follow_base(struct span *s, const struct tinsn *i)
{
        int64_t by;

        if (i->access == TACCESS_PUSH || i->access == TACCESS_POP) {
                bool loads_base = i->access == TACCESS_POP && (i->ends || i->insn.reg[0] == s->base * 8);

                if (s->base == X86_RSP)
                        s->moved += i->access == TACCESS_PUSH ? -8 : 8;
                return !loads_base;
        }
        if (s->base == X86_RSP && moves_stack(i, &by)) {
                s->moved += by;
                return s->moved == (int32_t)s->moved;
        }
        return !flags_guest_written(i, s->base);
}

static void find_group(struct translation *t, unsigned first)
{
        struct span s = { .last = first };
        struct tgroup *group;
        unsigned size;
        int64_t disp;
        bool write;

        if (t->groups == ARRAY_SIZE(t->group) || !access_of(&t->insn[first], &s.base, &disp, &size, &write))
                return;
        s.low = disp;
        s.high = disp + size;
        for (unsigned n = first; n < t->count; n++) {
                struct tinsn *i = &t->insn[n];

                if (n > first && (i->x87_check || i->x87_store))
                        break;
                i->moved = (int32_t)s.moved;
                if (take_access(&s, i))
                        s.last = n;
                else if (!i->keeps_address)
                        break;
                if (i->ends || !follow_base(&s, i))
                        break;
        }
        if (s.members < 2)
                return;
        group = &t->group[t->groups++];
        *group = (struct tgroup){
                .first = first, .last = s.last, .base = (uint8_t)s.base, .low = (int32_t)s.low, .high = (int32_t)s.high, .write = s.write,
        };
        for (unsigned n = first; n <= s.last; n++)
                t->insn[n].group = group;
}

void groups_find(struct translation *t)
{
        for (unsigned n = 0; n < t->count; n++)
                if (!t->insn[n].group)
                        find_group(t, n);
}

bool group_takes(const struct translation *t, const struct tinsn *i)
{
        const struct tgroup *group = i->group;

        if (!group || t->in_tail || i->access == TACCESS_NONE)
                return false;
        if (i->access == TACCESS_OPERAND)
                return i->insn.base / 8 == group->base && i->insn.index == GPR_ZERO * 8;
        return group->base == X86_RSP;
}

/* ---- tails ---- */

static void rejoin(struct translation *t, struct tgroup *group)
{
        unsigned want = group->places_after;

        if (!group->needed_after)
                want = 0;
        if (want & (TPLACE_HOST | TPLACE_SAVED) & ~t->places)
                flags_to_host(t);
        if (want & TPLACE_SAVED && !(t->places & TPLACE_SAVED)) {
                t->places = TPLACE_HOST;
                flags_keep(t);
        }
        asm_jmp(t->a, &group->back);
}

void groups_emit_tails(struct translation *t)
{
        for (struct tgroup *group = t->group; group < t->group + t->groups; group++) {
                if (!group->emitted)
                        continue;
                asm_bind(t->a, &group->tail);
                t->places = group->places;
                t->recipe = group->recipe;
                for (unsigned n = group->first; n <= group->last && !t->a->full && !t->failed; n++)
                        t->insn[n].emit(t, &t->insn[n]);
                if (!t->insn[group->last].ends)
                        rejoin(t, group);
        }
}
