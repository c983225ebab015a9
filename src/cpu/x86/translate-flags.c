/*
 * Where the guest's status flags are while a block is emitted, and bringing them back (docs/translator.md "Flags").
 *
 * A place in tinsn.places that is set holds the flags as they are before the next instruction:
 *
 *      host     the host's flags
 *      saved    jit.flags (LAHF in the upper byte, SETO in the lower)
 *      recipe   values that are still in guest registers, see below
 *
 * None may hold them when nothing needs them (tinsn.needed is 0). Recipes, with A the register as it is now plus delta (which
 * follows the stack pointer through PUSH and POP), and B another register or an immediate:
 *
 *      CMP     A - B                           CMP; nothing was written
 *      TEST    A & B
 *      LOGIC   A is the result of AND, OR, XOR
 *      SUB     A is the result of x - B        x = A + B
 *      ADD     A is the result of x + B        x = A - B
 *      NEG     A is the result of 0 - x
 *      SHL SHR SAR     A was shifted by B, a constant
 *      DOUBLE  A was added to itself
 *
 * An operand whose register is about to change, or that was none, is stored in jit.flags_of, and is as good as a register from then on.
 * jit.flags may name a recipe from there as well. There is only one set of flags at a time, so nobody else can want these slots.
 *
 * Undefined flags follow the hardware: see the interpreter's integer-*.c.
 */
#include "cpu/x86/translate.h"

enum trecipe_op {
        TRECIPE_CMP, TRECIPE_TEST, TRECIPE_LOGIC, TRECIPE_SUB, TRECIPE_ADD, TRECIPE_NEG, TRECIPE_SHL, TRECIPE_SHR, TRECIPE_SAR, TRECIPE_DOUBLE,
};
#define NO_REGISTER 0xff

#define OPCODE_ADD 0x03
#define OPCODE_SUB 0x2b
#define OPCODE_CMP 0x3b
#define OPCODE_TEST 0x85

/* ---- what an instruction does to the flags ---- */

static void set_flags(struct tinsn *i, uint32_t reads, uint32_t writes, uint32_t changes)
{
        i->reads = (uint16_t)(reads & TFLAGS_ALL);
        i->writes = (uint16_t)(writes & TFLAGS_ALL);
        i->changes = (uint16_t)(changes & TFLAGS_ALL);
}

/* Shifts by a count that may be 0 change flags or leave them. */
static bool count_is_nonzero(const struct tinsn *i)
{
        unsigned last = i->z.operand_count_visible - 1u;
        const ZydisDecodedOperand *count = &i->operand[last];

        return count->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && count->imm.value.u & (i->insn.opsize == 8 ? 63 : 31);
}

static uint8_t register_at(const ZydisDecodedOperand *o)
{
        ZydisRegister reg = o->reg.value;
        unsigned guest = reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B ? reg - ZYDIS_REGISTER_SPL + 4u
                         : reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL ? (unsigned)(reg - ZYDIS_REGISTER_AL)
                                                                                : (unsigned)ZydisRegisterGetId(reg);

        return (uint8_t)(guest * 8);
}

/* General registers that it writes. */
static uint16_t registers_written(const struct tinsn *i)
{
        unsigned mask = 0;

        for (unsigned n = 0; n < i->z.operand_count; n++) {
                const ZydisDecodedOperand *o = &i->operand[n];
                ZydisRegister reg = o->reg.value;

                if (o->type != ZYDIS_OPERAND_TYPE_REGISTER || !(o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) || reg < ZYDIS_REGISTER_AL ||
                    reg > ZYDIS_REGISTER_R15)
                        continue;
                if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH)
                        mask |= 1u << (reg - ZYDIS_REGISTER_AH);
                else
                        mask |= 1u << register_at(o) / 8;
        }
        return (uint16_t)mask;
}

void flags_classify(struct tinsn *i)
{
        const ZydisAccessedFlags *f = i->z.cpu_flags;
        uint32_t defined, all;

        i->written = registers_written(i);
        if (!f) {
                set_flags(i, 0, 0, 0);
                return;
        }
        defined = f->modified | f->set_0 | f->set_1;
        all = defined | f->undefined;
        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_SHL:
        case ZYDIS_MNEMONIC_SHR:
        case ZYDIS_MNEMONIC_SAR:
        case ZYDIS_MNEMONIC_SHLD:
        case ZYDIS_MNEMONIC_SHRD: set_flags(i, 0, count_is_nonzero(i) ? all : 0, TFLAGS_ALL); break;
        case ZYDIS_MNEMONIC_ROL:
        case ZYDIS_MNEMONIC_ROR:
                set_flags(i, 0, count_is_nonzero(i) ? X86_FLAG_CF : 0, X86_FLAG_CF | X86_FLAG_OF);
                break;
        case ZYDIS_MNEMONIC_RCL:
        case ZYDIS_MNEMONIC_RCR: set_flags(i, X86_FLAG_CF, 0, X86_FLAG_CF | X86_FLAG_OF); break;
        case ZYDIS_MNEMONIC_BT:
        case ZYDIS_MNEMONIC_BTS:
        case ZYDIS_MNEMONIC_BTR:
        case ZYDIS_MNEMONIC_BTC: set_flags(i, 0, X86_FLAG_CF, X86_FLAG_CF); break;
        case ZYDIS_MNEMONIC_DIV:
        case ZYDIS_MNEMONIC_IDIV: set_flags(i, 0, 0, 0); break;
        default: set_flags(i, f->tested, all, all); break;
        }
}

/* ---- recipes ---- */

static bool low_register(const ZydisDecodedOperand *o)
{
        return o->type == ZYDIS_OPERAND_TYPE_REGISTER && !(o->reg.value >= ZYDIS_REGISTER_AH && o->reg.value <= ZYDIS_REGISTER_BH);
}

static bool operands_simple(const struct tinsn *i)
{
        return low_register(&i->operand[0]) && (low_register(&i->operand[1]) || i->operand[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE);
}

static bool recipe_binary(const struct tinsn *i, struct tflags_recipe *r)
{
        bool immediate = i->operand[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;

        r->a = i->insn.reg[0];
        r->b = immediate ? NO_REGISTER : i->insn.reg[1];
        r->imm = immediate ? (int32_t)i->insn.imm : 0;
        return true;
}

static bool is_slot(uint8_t at)
{
        return at != NO_REGISTER && at >= TRECIPE_SLOT * 8;
}

static struct asm_mem recipe_slot(unsigned n)
{
        return asm_gs(offsetof(struct x86_cpu, jit.flags_of) + n * 8);
}

/* The host register that holds an operand, TREG_NONE: it is in memory, at place_of(). */
static uint8_t host_of(uint8_t at)
{
        return is_slot(at) ? TREG_NONE : treg_of(at / 8);
}

static struct asm_mem place_of(uint8_t at)
{
        return is_slot(at) ? recipe_slot(at / 8 - TRECIPE_SLOT) : guest_slot(at / 8);
}

/* The recipe for the flags that i leaves behind, from the registers as they are behind it. */
static bool recipe_of(const struct tinsn *i, struct tflags_recipe *r)
{
        *r = (struct tflags_recipe){ .size_bytes = i->insn.opsize };
        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_CMP: r->op = TRECIPE_CMP; return operands_simple(i) && recipe_binary(i, r);
        case ZYDIS_MNEMONIC_TEST: r->op = TRECIPE_TEST; return operands_simple(i) && recipe_binary(i, r);
        case ZYDIS_MNEMONIC_SUB: r->op = TRECIPE_SUB; break;
        case ZYDIS_MNEMONIC_ADD: r->op = TRECIPE_ADD; break;
        case ZYDIS_MNEMONIC_AND:
        case ZYDIS_MNEMONIC_OR:
        case ZYDIS_MNEMONIC_XOR:
                r->op = TRECIPE_LOGIC;
                r->a = i->insn.reg[0];
                r->b = NO_REGISTER;
                return low_register(&i->operand[0]);
        case ZYDIS_MNEMONIC_NEG:
                r->op = TRECIPE_NEG;
                r->a = i->insn.reg[0];
                r->b = NO_REGISTER;
                return low_register(&i->operand[0]);
        default: return false;
        }
        if (!operands_simple(i))
                return false;
        if (low_register(&i->operand[1]) && i->insn.reg[0] / 8 == i->insn.reg[1] / 8) {
                if (r->op == TRECIPE_ADD)
                        return false;
                r->op = TRECIPE_LOGIC; /* x - x: the flags of a result of 0 */
                r->a = i->insn.reg[0];
                r->b = NO_REGISTER;
                return true;
        }
        return recipe_binary(i, r);
}

static bool recipe_clobbered(const struct translation *t, const struct tinsn *i)
{
        return flags_guest_written(i, t->recipe.a / 8) || (t->recipe.b != NO_REGISTER && flags_guest_written(i, t->recipe.b / 8));
}

/* reg64 + constant: LEA r, [r + disp]. */
static bool moves_by_constant(const struct tinsn *i, unsigned at)
{
        return i->z.mnemonic == ZYDIS_MNEMONIC_LEA && i->insn.opsize == 8 && i->insn.asize == 8 && i->insn.reg[0] == at &&
               i->insn.base == at && i->insn.index == GPR_ZERO * 8;
}

static void recipe_moved(struct translation *t, int64_t by)
{
        int64_t delta = t->recipe.delta - by;

        t->recipe.delta = (int16_t)delta;
        if (delta != (int16_t)delta || t->recipe.size_bytes != 8)
                t->places &= ~(unsigned)TPLACE_RECIPE;
}

/* ---- state ---- */

bool flags_wanted(const struct translation *t, const struct tinsn *i)
{
        uint16_t pass = i->needed_after & (uint16_t)~i->writes;

        if (i->reads)
                return true;
        if (!pass)
                return false;
        if (i->changes)
                return true;
        return t->places == TPLACE_RECIPE && recipe_clobbered(t, i) &&
               !(moves_by_constant(i, t->recipe.a) && t->recipe.b != t->recipe.a && t->recipe.size_bytes == 8);
}

void flags_after(struct translation *t, const struct tinsn *i)
{
        struct tflags_recipe made;

        if (i->changes) {
                t->places = TPLACE_HOST;
                if (t->has_made || recipe_of(i, &made)) {
                        if (t->has_made)
                                made = t->made;
                        t->has_made = false;
                        t->recipe = made;
                        t->places |= TPLACE_RECIPE;
                }
                return;
        }
        if (!(t->places & TPLACE_RECIPE) || !recipe_clobbered(t, i))
                return;
        if (moves_by_constant(i, t->recipe.a) && t->recipe.b != t->recipe.a)
                recipe_moved(t, i->insn.disp);
        else
                t->places &= ~(unsigned)TPLACE_RECIPE;
}

/* Whether the host's flags are lost while the flags that i leaves behind count. */
static bool kept_later(const struct translation *t, const struct tinsn *i)
{
        if (!i->needed_after)
                return false;
        for (const struct tinsn *next = i + 1; next < t->insn + t->count; next++) {
                if (!next->needed)
                        return false;
                if (next->hands_on || next->x87_check)
                        return true;
                if ((next->insn.flags & INSN_MEMORY || next->access != TACCESS_NONE) && next->site &&
                    (!group_takes(t, next) || next == &t->insn[next->group->first]))
                        return true;
                if (next->ends || next->writes == TFLAGS_ALL)
                        return next->ends;
        }
        return true;
}

static void to_slot(struct translation *t, uint8_t *at, unsigned n)
{
        t->slotted = true;
        asm_store(t->a, 8, recipe_slot(n), treg_of(*at / 8));
        *at = (uint8_t)((TRECIPE_SLOT + n) * 8);
}

static bool in_register(uint8_t at)
{
        return at != NO_REGISTER && !is_slot(at) && treg_of(at / 8) != TREG_NONE;
}

/*
 * Before a shift by a constant, or an addition of a register to itself: its operand goes to a slot, and makes a recipe for the flags that
 * i leaves behind. Takes no register.
 */
void flags_keep_operand(struct translation *t, const struct tinsn *i)
{
        struct tflags_recipe r = { .size_bytes = i->insn.opsize, .a = TRECIPE_SLOT * 8, .b = NO_REGISTER };
        uint8_t at;

        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_SHL: r.op = TRECIPE_SHL; break;
        case ZYDIS_MNEMONIC_SHR: r.op = TRECIPE_SHR; break;
        case ZYDIS_MNEMONIC_SAR: r.op = TRECIPE_SAR; break;
        case ZYDIS_MNEMONIC_ADD: r.op = TRECIPE_DOUBLE; break;
        default: return;
        }
        if (!low_register(&i->operand[0]) || r.size_bytes < 4)
                return;
        at = register_at(&i->operand[0]);
        if (!in_register(at) || !kept_later(t, i))
                return;
        if (r.op == TRECIPE_DOUBLE) {
                if (!low_register(&i->operand[1]) || register_at(&i->operand[1]) != at)
                        return;
        } else {
                if (!count_is_nonzero(i))
                        return;
                r.imm = (int32_t)(i->operand[i->z.operand_count_visible - 1].imm.value.u & (r.size_bytes == 8 ? 63 : 31));
        }
        to_slot(t, &at, 0);
        t->made = r;
        t->has_made = true;
}

/* Whether i, which reads memory, does better with its operand in RCX and in a slot, because then there is a recipe; which one. */
bool flags_want_operand(struct translation *t, const struct tinsn *i, unsigned *slot)
{
        bool first = i->operand[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
        const ZydisDecodedOperand *other = &i->operand[first];
        struct tflags_recipe r = { .size_bytes = i->insn.opsize };

        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_CMP: r.op = TRECIPE_CMP; break;
        case ZYDIS_MNEMONIC_TEST: r.op = TRECIPE_TEST; break;
        case ZYDIS_MNEMONIC_ADD: r.op = TRECIPE_ADD; break;
        case ZYDIS_MNEMONIC_SUB: r.op = TRECIPE_SUB; break;
        default: return false;
        }
        if ((first && (r.op == TRECIPE_ADD || r.op == TRECIPE_SUB)) || !kept_later(t, i))
                return false;
        r.a = r.b = (uint8_t)((TRECIPE_SLOT + !first) * 8);
        if (other->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
                r.b = NO_REGISTER;
                r.imm = (int32_t)i->insn.imm;
        } else if (low_register(other) && in_register(register_at(other))) {
                *(first ? &r.b : &r.a) = register_at(other);
        } else {
                return false;
        }
        *slot = !first;
        t->made = r;
        t->has_made = t->slotted = true;
        return true;
}

struct asm_mem flags_operand_slot(unsigned slot)
{
        return recipe_slot(slot);
}

/* The recipe's operands that are in that register go to slots, when that is of use. */
static void rescue(struct translation *t, const struct tinsn *i, unsigned guest)
{
        struct tflags_recipe *r = &t->recipe;

        if (!(t->places & TPLACE_RECIPE) || t->places & TPLACE_SAVED || (t->places & TPLACE_HOST && !kept_later(t, i)))
                return;
        if (in_register(r->a) && r->a / 8 == guest)
                to_slot(t, &r->a, 0);
        if (in_register(r->b) && r->b / 8 == guest)
                to_slot(t, &r->b, 1);
}

void flags_before(struct translation *t, const struct tinsn *i)
{
        if (!(t->places & TPLACE_RECIPE) || !(i->needed_after & ~i->writes) || i->changes)
                return;
        if (moves_by_constant(i, t->recipe.a) && t->recipe.b != t->recipe.a && t->recipe.size_bytes == 8)
                return;
        for (unsigned mask = i->written; mask; mask &= mask - 1)
                rescue(t, i, (unsigned)__builtin_ctz(mask));
}

void flags_register_changes(struct translation *t, const struct tinsn *i, unsigned guest)
{
        if (i->needed_after)
                rescue(t, i, guest);
        if (!(t->places & TPLACE_RECIPE) || (t->recipe.a / 8 != guest && (t->recipe.b == NO_REGISTER || t->recipe.b / 8 != guest)))
                return;
        if (t->places == TPLACE_RECIPE && i->needed_after)
                flags_to_host(t);
        t->places &= ~(unsigned)TPLACE_RECIPE;
}

void flags_stack_moves(struct translation *t, const struct tinsn *i, int32_t bytes)
{
        if (t->places & TPLACE_RECIPE && t->recipe.a == X86_RSP * 8 && t->recipe.b != X86_RSP * 8 && t->recipe.size_bytes == 8)
                recipe_moved(t, bytes);
        else
                flags_register_changes(t, i, X86_RSP);
}

void flags_after_handler(struct translation *t)
{
        t->places = TPLACE_HOST | TPLACE_SAVED;
        t->real = true;
}

void flags_from_elsewhere(struct translation *t)
{
        t->places = TPLACE_SAVED;
        t->real = false;
}

/* ---- saving and bringing back ---- */

#define FLAGS_SLOT offsetof(struct x86_cpu, jit.flags)

void flags_keep(struct translation *t)
{
        if (t->places != TPLACE_HOST)
                return;
        asm_mov(t->a, 8, TREG_SCRATCH, ASM_RAX);
        asm_byte(t->a, 0x9f);                         /* lahf */
        asm_rr(t->a, 1, ASM_0F | 0x90, 0, ASM_RAX);   /* seto al */
        asm_store(t->a, 2, asm_gs(FLAGS_SLOT), ASM_RAX);
        asm_mov(t->a, 8, ASM_RAX, TREG_SCRATCH);
        t->places |= TPLACE_SAVED;
        t->real = true;
}

/* jit.flags may name a site: its code makes them. */
static void from_saved(struct translation *t)
{
        struct tlate *late = NULL;

        if (!t->real) {
                late = translate_late(t, TLATE_FLAGS, 0);
                asm_load(t->a, 4, TREG_SCRATCH, asm_gs(FLAGS_SLOT));
                asm_fit(t->a, 3 + 6);
                asm_bytes(t->a, "\xf6\xc5", 2); /* test ch, … */
                asm_byte(t->a, TFLAGS_REAL >> 8);
                asm_jcc(t->a, ASM_Z, &late->from);
        }
        asm_mov(t->a, 8, TREG_SCRATCH, ASM_RAX);
        asm_rm(t->a, 4, ASM_0F | 0xb7, ASM_RAX, asm_gs(FLAGS_SLOT)); /* movzx */
        asm_byte(t->a, 0x04);                                        /* add al, 0x7f: OF when it was 1 */
        asm_byte(t->a, 0x7f);
        asm_byte(t->a, 0x9e);                                        /* sahf */
        asm_mov(t->a, 8, ASM_RAX, TREG_SCRATCH);
        if (late)
                asm_bind(t->a, &late->back);
}

/* op reg, B */
static void with_b(struct translation *t, const struct tflags_recipe *r, unsigned opcode, unsigned alu, unsigned reg)
{
        unsigned size = r->size_bytes, byte = size == 1;

        if (r->b == NO_REGISTER)
                asm_alu_imm(t->a, alu, size, reg, r->imm);
        else if (host_of(r->b) == TREG_NONE)
                asm_rm(t->a, size, opcode - byte, reg, place_of(r->b));
        else
                asm_rr(t->a, size, opcode - byte, reg, host_of(r->b));
}

/* A in a register: its own, or the scratch one. */
static unsigned load_a(struct translation *t, const struct tflags_recipe *r, bool changed)
{
        unsigned reg = host_of(r->a);

        if (reg == TREG_NONE) {
                asm_load(t->a, 8, TREG_SCRATCH, place_of(r->a));
                reg = TREG_SCRATCH;
        }
        if (r->delta) {
                asm_lea(t->a, TREG_SCRATCH, asm_at(reg, r->delta));
        } else if (changed && reg != TREG_SCRATCH) {
                asm_mov(t->a, 8, TREG_SCRATCH, reg);
        } else {
                return reg;
        }
        return TREG_SCRATCH;
}

static void emit_test(struct translation *t, const struct tflags_recipe *r, unsigned reg)
{
        unsigned size = r->size_bytes;

        if (r->b != NO_REGISTER) {
                with_b(t, r, OPCODE_TEST, 0, reg);
                return;
        }
        asm_rr(t->a, size, size == 1 ? 0xf6 : 0xf7, 0, reg);
        asm_bytes(t->a, &r->imm, MIN(size, 4u));
}

static void from_recipe(struct translation *t)
{
        const struct tflags_recipe *r = &t->recipe;
        unsigned size = r->size_bytes, reg;

        switch (r->op) {
        case TRECIPE_CMP: with_b(t, r, OPCODE_CMP, 7, load_a(t, r, false)); break;
        case TRECIPE_TEST: emit_test(t, r, load_a(t, r, false)); break;
        case TRECIPE_LOGIC:
                reg = load_a(t, r, false);
                asm_rr(t->a, size, size == 1 ? 0x84 : OPCODE_TEST, reg, reg);
                break;
        case TRECIPE_SUB:
                reg = load_a(t, r, true);
                with_b(t, r, OPCODE_ADD, 0, reg);
                with_b(t, r, OPCODE_CMP, 7, reg);
                break;
        case TRECIPE_SHL:
        case TRECIPE_SHR:
        case TRECIPE_SAR:
                reg = load_a(t, r, true);
                asm_rr(t->a, size, 0xc1, r->op == TRECIPE_SHL ? 4 : r->op == TRECIPE_SHR ? 5 : 7, reg);
                asm_byte(t->a, (uint8_t)r->imm);
                break;
        case TRECIPE_DOUBLE:
                reg = load_a(t, r, true);
                asm_rr(t->a, size, OPCODE_ADD - (size == 1), reg, reg);
                break;
        case TRECIPE_ADD:
                reg = load_a(t, r, true);
                with_b(t, r, OPCODE_SUB, 5, reg);
                with_b(t, r, OPCODE_ADD, 0, reg);
                break;
        default:
                reg = load_a(t, r, true);
                asm_rr(t->a, size, size == 1 ? 0xf6 : 0xf7, 3, reg);
                asm_rr(t->a, size, size == 1 ? 0xf6 : 0xf7, 3, reg);
                break;
        }
}

void flags_emit_call(struct translation *t, struct tlate *late)
{
        asm_bind(t->a, &late->from);
        asm_call_to(t->a, t->a->address + translator_thunk(t->tr, TTHUNK_FLAGS) - t->block->host);
        asm_jmp(t->a, &late->back);
}

void flags_emit_maker(struct translation *t, const struct tlate *late)
{
        t->note[late->number - 1].maker = t->block->host + translate_here(t);
        from_recipe(t);
        asm_byte(t->a, 0xc3);
}

void flags_to_host(struct translation *t)
{
        if (t->places & TPLACE_HOST)
                return;
        if (t->places & TPLACE_RECIPE)
                from_recipe(t);
        else
                from_saved(t);
        t->places |= TPLACE_HOST;
}

/* ---- from block to block ---- */

/*
 * While the flags that the block was entered with count, sites find them in jit.flags, which may name a recipe of the block before: no
 * instruction then may want them in the host's flags, and the recipe's registers must not change before the last of these sites.
 */
void flags_plan_entry(struct translation *t)
{
        uint16_t changed = 0;

        /* emit_second_page_check() is a site in front of all. */
        t->block->entry = t->source->key & TKEY_CROSSING ? TENTRY_FAULTS : TENTRY_DEAD;
        t->block->fast_changes = 0;
        t->block->fast = 0;
        for (unsigned n = 0; n < t->count; n++) {
                const struct tinsn *i = &t->insn[n];

                if (i->site || i->x87_check) {
                        t->block->entry = TENTRY_FAULTS;
                        t->block->fast_changes |= changed;
                }
                if (i->emit == emit_handler)
                        return;
                if (i->hands_on || (i->ends && !i->reads))
                        break;
                if (i->reads || (i->changes && i->needed_after & ~i->writes)) {
                        t->block->entry = TENTRY_HOST;
                        return;
                }
                if (i->changes)
                        return;
                changed |= i->written;
        }
        /* They go on to who knows where. */
        t->block->entry = TENTRY_FAULTS;
        t->block->fast_changes = UINT16_MAX;
}

/* The recipe's note, into jit.flags. The two ways out of a conditional branch have the same. */
static unsigned name_recipe(struct translation *t)
{
        struct tnote note = tnote_of(&t->recipe, 0);

        if (!t->named || t->note[t->named - 1].what != note.what || t->note[t->named - 1].imm != note.imm) {
                t->named = translate_note(t, &t->recipe, 0);
                if (t->named)
                        translate_late(t, TLATE_MAKER, t->named);
        }
        asm_rm(t->a, 4, 0xc7, 0, asm_gs(FLAGS_SLOT));
        asm_u32(t->a, t->number | t->named);
        return t->named;
}

static uint16_t mask_of(uint8_t at)
{
        return at == NO_REGISTER || is_slot(at) ? 0 : (uint16_t)(1u << at / 8);
}

uint16_t translator_flags_registers(const struct tflags_recipe *recipe)
{
        return mask_of(recipe->a) | mask_of(recipe->b);
}

void flags_pass(struct translation *t, struct tsite *site)
{
        if (t->places & TPLACE_SAVED) {
                site->flags = TFLAGS_SAVED;
        } else if (t->places & TPLACE_RECIPE) {
                site->flags = TFLAGS_RECIPE;
                site->note = (uint8_t)name_recipe(t);
        }
}

/* As the slots have them, so that registers may change. */
void flags_to_slot(struct translation *t)
{
        struct tflags_recipe *r = &t->recipe;
        unsigned reg;

        if (t->places & TPLACE_RECIPE && !(t->places & TPLACE_SAVED)) {

                if (!is_slot(r->a)) {
                        reg = load_a(t, r, false);
                        asm_store(t->a, 8, recipe_slot(0), reg);
                        r->a = TRECIPE_SLOT * 8;
                        r->delta = 0;
                }
                if (r->b != NO_REGISTER && !is_slot(r->b)) {
                        reg = guest_load(t, r->b / 8, TREG_SCRATCH);
                        asm_store(t->a, 8, recipe_slot(1), reg);
                        r->b = (TRECIPE_SLOT + 1) * 8;
                }
                name_recipe(t);
                flags_from_elsewhere(t);
                return;
        }
        if (!(t->places & TPLACE_SAVED)) {
                t->places = TPLACE_HOST;
                flags_keep(t);
        }
        t->places = TPLACE_SAVED;
}

/* ---- after a fault ---- */

static uint64_t result_flags(uint64_t r, unsigned bits)
{
        uint64_t flags = __builtin_parity((uint8_t)r) ? 0 : X86_FLAG_PF;

        if (!(r << (64 - bits)))
                flags |= X86_FLAG_ZF;
        if (r >> (bits - 1) & 1)
                flags |= X86_FLAG_SF;
        return flags;
}

/* carries: out of each bit of the operation. */
static uint64_t carry_flags(uint64_t carries, unsigned bits)
{
        uint64_t out = carries >> (bits - 1) & 1, in = carries >> (bits - 2) & 1;

        return (out ? X86_FLAG_CF : 0) | (out != in ? X86_FLAG_OF : 0) | (carries & 8 ? X86_FLAG_AF : 0);
}

static uint64_t sum_flags(uint64_t a, uint64_t b, unsigned bits)
{
        uint64_t r = a + b;

        return result_flags(r, bits) | carry_flags((a & b) | ((a | b) & ~r), bits);
}

static uint64_t difference_flags(uint64_t a, uint64_t b, unsigned bits)
{
        uint64_t r = a - b;

        return result_flags(r, bits) | carry_flags((~a & b) | ((~a | b) & r), bits);
}

static uint64_t shift_flags(enum trecipe_op op, uint64_t a, unsigned count, unsigned bits)
{
        uint64_t before, result, carry, top = a >> (bits - 1) & 1, overflow = top;

        if (op == TRECIPE_SHL) {
                before = a << (count - 1);
                result = before << 1;
                carry = before >> (bits - 1) & 1;
                overflow ^= a >> (bits - 2) & 1;
        } else {
                a <<= 64 - bits;
                before = op == TRECIPE_SAR ? (uint64_t)((int64_t)a >> (64 - bits)) : a >> (64 - bits);
                before = op == TRECIPE_SAR ? (uint64_t)((int64_t)before >> (count - 1)) : before >> (count - 1);
                result = op == TRECIPE_SAR ? (uint64_t)((int64_t)before >> 1) : before >> 1;
                carry = before & 1;
                if (op == TRECIPE_SAR)
                        overflow = 0;
        }
        return result_flags(result, bits) | (carry ? X86_FLAG_CF : 0) | (overflow ? X86_FLAG_OF : 0);
}

static uint64_t operand_value(const struct x86_cpu *cpu, uint8_t at)
{
        return is_slot(at) ? cpu->jit.flags_of[at / 8 - TRECIPE_SLOT] : cpu->s.gpr[at / 8];
}

uint64_t translator_flags_by(const struct x86_cpu *cpu, const struct tflags_recipe *r)
{
        uint64_t a = operand_value(cpu, r->a) + (uint64_t)(int64_t)r->delta;
        uint64_t b = r->b == NO_REGISTER ? (uint64_t)(int64_t)r->imm : operand_value(cpu, r->b);
        unsigned bits = r->size_bytes * 8u;

        switch (r->op) {
        case TRECIPE_CMP: return difference_flags(a, b, bits);
        case TRECIPE_TEST: return result_flags(a & b, bits);
        case TRECIPE_LOGIC: return result_flags(a, bits);
        case TRECIPE_SUB: return difference_flags(a + b, b, bits);
        case TRECIPE_ADD: return sum_flags(a - b, b, bits);
        case TRECIPE_DOUBLE: return sum_flags(a, a, bits);
        case TRECIPE_SHL:
        case TRECIPE_SHR:
        case TRECIPE_SAR: return shift_flags(r->op, a, (unsigned)b, bits);
        default: return difference_flags(0, -a, bits);
        }
}
