/*
 * A guest instruction with other registers and another memory operand: prefixes, opcode, and immediates stay.
 *
 * Each general register that the instruction names goes into the field that named it as the host register that holds it. Those
 * that are in memory become a memory operand where they are the rm operand and that does the same, else they are loaded into a
 * scratch register before and stored after. RCX and RBP are the scratch registers; a memory operand takes both, unless it is
 * folded into [rbp]. What cannot be placed is left to the interpreter's handler.
 *
 *      AH, CH, DH, BH    cannot stand beside a REX prefix, which the registers that moved need: they go through a scratch
 *                        register, CH (guest RCX is R11) with it
 *      CL, RCX           where the instruction names it without saying so (shifts, CMPXCHG16B): copied into RCX, never written
 *
 * VEX.vvvv, is4 and vector registers: only general registers move, the others are where they were.
 *
 * Source: Intel SDM vol. 2A chapter 2.
 */
#include "cpu/x86/translate.h"

/* ---- what the operands are ---- */

static bool is_general(const ZydisDecodedOperand *o)
{
        return o->reg.value >= ZYDIS_REGISTER_AL && o->reg.value <= ZYDIS_REGISTER_R15;
}

static bool is_high_byte(ZydisRegister reg)
{
        return reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH;
}

static unsigned guest_of(ZydisRegister reg)
{
        if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B)
                return (unsigned)(reg - ZYDIS_REGISTER_SPL + 4);
        if (is_high_byte(reg))
                return (unsigned)(reg - ZYDIS_REGISTER_AH);
        if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL)
                return (unsigned)(reg - ZYDIS_REGISTER_AL);
        return (unsigned)ZydisRegisterGetId(reg);
}

/* The register may come out as it went in, or in part. */
static bool keeps_old_value(const struct tinsn *i, const ZydisDecodedOperand *o)
{
        return o->actions != ZYDIS_OPERAND_ACTION_WRITE || o->size < 32 || i->z.mnemonic == ZYDIS_MNEMONIC_BSF ||
               i->z.mnemonic == ZYDIS_MNEMONIC_BSR;
}

/* With a memory operand a bit number counts from there, XCHG locks, rotations differ in an undefined flag. */
static bool memory_differs(const struct tinsn *i)
{
        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_BT:
        case ZYDIS_MNEMONIC_BTS:
        case ZYDIS_MNEMONIC_BTR:
        case ZYDIS_MNEMONIC_BTC: return i->operand[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE;
        case ZYDIS_MNEMONIC_XCHG: return true;
        /* OF after a rotation by more than one. */
        case ZYDIS_MNEMONIC_ROL:
        case ZYDIS_MNEMONIC_ROR: return !(i->insn.flags & INSN_MEMORY);
        default: return false;
        }
}

static bool slot_possible(const struct tinsn *i, const ZydisDecodedOperand *o)
{
        if (i->insn.flags & INSN_MEMORY || memory_differs(i) || !(i->z.attributes & ZYDIS_ATTRIB_HAS_MODRM))
                return false;
        return !(o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) ||
               (o->size == 64 && i->z.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && i->z.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT);
}

/* ---- the encoding as it is ---- */

static bool take_prefixes(struct asm_insn *out, const ZydisDecodedInstruction *z)
{
        for (unsigned n = 0; n < z->raw.prefix_count; n++) {
                uint8_t value = z->raw.prefixes[n].value;

                switch (value) {
                case 0x66:
                        if (z->raw.prefixes[n].type == ZYDIS_PREFIX_TYPE_IGNORED)
                                continue;
                        break;
                case 0xf2:
                case 0xf3:
                        if (z->raw.prefixes[n].type != ZYDIS_PREFIX_TYPE_MANDATORY)
                                continue;
                        break;
                case 0xf0:
                        if (!(z->attributes & ZYDIS_ATTRIB_HAS_LOCK))
                                continue;
                        break;
                default: continue;
                }
                if (memchr(out->prefix, value, out->prefixes))
                        continue;
                if (out->prefixes == ARRAY_SIZE(out->prefix))
                        return false;
                out->prefix[out->prefixes++] = value;
        }
        return true;
}

static unsigned immediate_bytes(const struct tinsn *i)
{
        const ZydisDecodedInstruction *z = &i->z;

        if (!(z->attributes & ZYDIS_ATTRIB_HAS_MODRM))
                return (z->raw.imm[0].size + z->raw.imm[1].size) / 8u;
        if (z->raw.disp.size)
                return z->length - z->raw.disp.offset - z->raw.disp.size / 8u;
        if (z->attributes & ZYDIS_ATTRIB_HAS_SIB)
                return z->length - z->raw.sib.offset - 1u;
        return z->length - z->raw.modrm.offset - 1u;
}

static bool take_encoding(struct asm_insn *out, const struct tinsn *i)
{
        const ZydisDecodedInstruction *z = &i->z;
        unsigned r, b;

        *out = (struct asm_insn){ .opcode = z->opcode, .modrm = z->attributes & ZYDIS_ATTRIB_HAS_MODRM };
        switch (z->opcode_map) {
        case ZYDIS_OPCODE_MAP_DEFAULT: out->map = ASM_MAP_ONE; break;
        case ZYDIS_OPCODE_MAP_0F: out->map = ASM_MAP_0F; break;
        case ZYDIS_OPCODE_MAP_0F38: out->map = ASM_MAP_0F38; break;
        case ZYDIS_OPCODE_MAP_0F3A: out->map = ASM_MAP_0F3A; break;
        default: return false;
        }
        if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
                out->vex = true;
                out->w = z->raw.vex.W;
                out->vex_l = z->raw.vex.L;
                out->vex_pp = z->raw.vex.pp;
                out->vvvv = ~z->raw.vex.vvvv & 15;
                r = !z->raw.vex.R;
                b = !z->raw.vex.B;
        } else if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY) {
                out->w = z->raw.rex.W;
                r = z->raw.rex.R;
                b = z->raw.rex.B;
                if (!take_prefixes(out, z))
                        return false;
        } else {
                return false;
        }
        out->reg = (uint8_t)(z->raw.modrm.reg | r << 3);
        out->rm = (uint8_t)(z->raw.modrm.rm | b << 3);
        out->imm_size = (uint8_t)immediate_bytes(i);
        return out->imm_size <= sizeof(out->imm);
}

/* ---- placing ---- */

static int field_of(const ZydisDecodedOperand *o)
{
        switch (o->encoding) {
        case ZYDIS_OPERAND_ENCODING_MODRM_REG: return TFIELD_REG;
        case ZYDIS_OPERAND_ENCODING_MODRM_RM:
        case ZYDIS_OPERAND_ENCODING_OPCODE: return TFIELD_RM;
        case ZYDIS_OPERAND_ENCODING_NDSNDD: return TFIELD_VVVV;
        default: return -1;
        }
}

/* A register that the encoding does not name. */
static bool place_implicit(struct trewrite *p, const ZydisDecodedOperand *o)
{
        unsigned guest = guest_of(o->reg.value);

        if (guest == X86_RCX) {
                p->count = true;
                return !(o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && !is_high_byte(o->reg.value);
        }
        return treg_of(guest) == guest;
}

static void set_field(struct trewrite *p, int field, uint8_t host)
{
        if (field == TFIELD_REG)
                p->insn.reg = host;
        else if (field == TFIELD_VVVV)
                p->insn.vvvv = host;
        else
                p->insn.rm = host;
}

/* The scratch registers that nothing has taken yet, as a mask. */
static unsigned scratch_free(const struct trewrite *p)
{
        unsigned mask = 1u << TREG_SCRATCH | 1u << TREG_ADDRESS;

        if (p->memory)
                mask &= ~(1u << TREG_ADDRESS);
        if (p->count)
                mask &= ~(1u << TREG_SCRATCH);
        for (unsigned n = 0; n < TFIELDS; n++)
                if (p->field[n].load || p->field[n].store)
                        mask &= ~(1u << p->field[n].host);
        return mask;
}

/* Into a scratch register; a register that has one already (ADD R10, R10) shares it. */
static bool place_scratch(struct trewrite *p, struct tplaced *at, bool load, bool store)
{
        unsigned mask = scratch_free(p);

        for (unsigned n = 0; n < TFIELDS; n++) {
                struct tplaced *other = &p->field[n];

                if (other == at || other->guest != at->guest || !(other->load || other->store))
                        continue;
                at->host = other->host;
                at->load = load && !other->load;
                other->load |= at->load;
                at->load = false;
                if (store)
                        other->store = true;
                return true;
        }
        if (!mask)
                return false;
        at->host = (uint8_t)__builtin_ctz(mask);
        at->load = load;
        at->store = store;
        if (p->memory)
                p->fold = true;
        return true;
}

static bool has_high_byte(const struct tinsn *i)
{
        for (unsigned n = 0; n < i->z.operand_count; n++)
                if (i->operand[n].type == ZYDIS_OPERAND_TYPE_REGISTER && is_high_byte(i->operand[n].reg.value) &&
                    field_of(&i->operand[n]) >= 0)
                        return true;
        return false;
}

static bool place_register(struct trewrite *p, const struct tinsn *i, const ZydisDecodedOperand *o, bool high)
{
        int field = field_of(o);
        unsigned guest = guest_of(o->reg.value);
        bool write = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE, load = keeps_old_value(i, o);
        struct tplaced *at = &p->field[field];

        *at = (struct tplaced){ .used = true, .guest = (uint8_t)guest, .host = treg_of(guest) };
        if (high && (is_high_byte(o->reg.value) ? guest == X86_RCX : at->host >= 8)) {
                if (!place_scratch(p, at, load, write))
                        return false;
                /* CL and CH are where RCX is; no other register has its high byte in a scratch register, and BPL needs REX. */
                if (o->size == 8 && at->host != TREG_SCRATCH)
                        return false;
        } else if (at->host == TREG_NONE) {
                if (field == TFIELD_RM && slot_possible(i, o)) {
                        at->slot = true;
                        p->insn.memory = true;
                        p->insn.mem = guest_slot(guest);
                        return true;
                }
                if (!place_scratch(p, at, load, write))
                        return false;
        }
        set_field(p, field, is_high_byte(o->reg.value) ? at->host + 4 : at->host);
        if (o->size == 8 && !is_high_byte(o->reg.value) && at->host >= 4)
                p->insn.rex = true;
        return true;
}

static bool place_all(struct trewrite *p, const struct tinsn *i)
{
        bool high = has_high_byte(i);

        /* What takes RCX first, and the memory operand. */
        for (unsigned n = 0; n < i->z.operand_count; n++) {
                const ZydisDecodedOperand *o = &i->operand[n];

                if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
                        if (p->memory || n >= i->z.operand_count_visible || o->mem.type != ZYDIS_MEMOP_TYPE_MEM || !p->insn.modrm ||
                            !memory_possible(i) || !o->size || o->size > 256)
                                return false;
                        p->memory = true;
                        p->write = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
                        p->size_bytes = o->size / 8u;
                } else if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && is_general(o) && field_of(o) < 0 && !place_implicit(p, o)) {
                        return false;
                }
        }
        if (p->memory && p->count)
                p->fold = true;
        for (unsigned n = 0; n < i->z.operand_count; n++) {
                const ZydisDecodedOperand *o = &i->operand[n];

                if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && is_general(o) && field_of(o) >= 0 && !place_register(p, i, o, high))
                        return false;
        }
        if (high) {
                unsigned bits = p->insn.reg | (p->insn.memory ? 0 : p->insn.rm);

                p->insn.no_rex = true;
                if (p->insn.rex || p->insn.w || bits & 8)
                        return false;
        }
        return true;
}

/* The opcodes with a register in them have no ModRM byte. */
static void use_opcode_register(struct trewrite *p, const struct tinsn *i)
{
        for (unsigned n = 0; n < i->z.operand_count; n++)
                if (i->operand[n].encoding == ZYDIS_OPERAND_ENCODING_OPCODE && i->operand[n].type == ZYDIS_OPERAND_TYPE_REGISTER)
                        p->insn.opcode_reg = true;
}

static bool make_plan(struct trewrite *p, const struct tinsn *i)
{
        *p = (struct trewrite){ 0 };
        if (!take_encoding(&p->insn, i) || !place_all(p, i))
                return false;
        use_opcode_register(p, i);
        if (p->memory)
                p->insn.memory = true;
        return true;
}

/* NOP's operand is no access. Bit numbers in registers reach beyond the operand. */
bool rewrite_possible(struct tinsn *i)
{
        if (i->insn.flags & INSN_MEMORY && memory_differs(i) && i->z.mnemonic != ZYDIS_MNEMONIC_XCHG)
                return false;
        return make_plan(&i->rewrite, i);
}

bool rewrite_keeps_address(const struct tinsn *i)
{
        const struct trewrite *p = &i->rewrite;

        if (p->memory)
                return false;
        for (unsigned n = 0; n < TFIELDS; n++)
                if ((p->field[n].load || p->field[n].store) && p->field[n].host == TREG_ADDRESS)
                        return false;
        return true;
}

/* ---- emission ---- */

static void load_scratch(struct translation *t, const struct trewrite *p)
{
        if (p->count)
                asm_mov(t->a, 8, TREG_SCRATCH, treg_of(X86_RCX));
        for (unsigned n = 0; n < TFIELDS; n++) {
                const struct tplaced *at = &p->field[n];

                if (!at->load)
                        continue;
                if (treg_of(at->guest) == TREG_NONE)
                        asm_load(t->a, 8, at->host, guest_slot(at->guest));
                else
                        asm_mov(t->a, 8, at->host, treg_of(at->guest));
        }
}

static void store_scratch(struct translation *t, const struct trewrite *p)
{
        for (unsigned n = 0; n < TFIELDS; n++)
                if (p->field[n].store)
                        guest_store(t, p->field[n].guest, p->field[n].host);
}

/* A comparison with memory, and the like: its operand is loaded first, so that it is still known when the flags are wanted. */
static void memory_to_register(struct translation *t, const struct tinsn *i, struct trewrite *p)
{
        unsigned slot;

        if (p->size_bytes != i->insn.opsize || !flags_want_operand(t, i, &slot))
                return;
        if (p->size_bytes >= 4)
                asm_load(t->a, p->size_bytes, TREG_SCRATCH, p->insn.mem);
        else
                asm_rm(t->a, 4, ASM_0F | (p->size_bytes == 1 ? 0xb6 : 0xb7), TREG_SCRATCH, p->insn.mem);
        asm_store(t->a, 8, flags_operand_slot(slot), TREG_SCRATCH);
        p->insn.memory = false;
        p->insn.rm = TREG_SCRATCH;
}

void emit_rewritten(struct translation *t, struct tinsn *i)
{
        const uint8_t *bytes = t->source->bytes + (i->insn.start - (t->source->gpa & (GUEST_PAGE_SIZE - 1)));
        bool locked = i->insn.flags & INSN_LOCK || i->z.mnemonic == ZYDIS_MNEMONIC_XCHG ||
                      i->z.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B, wanted;
        struct tsite *site = NULL, *aligned = NULL;
        struct trewrite plan = i->rewrite;
        uint32_t number;

        memcpy(plan.insn.imm, bytes + i->insn.length - plan.insn.imm_size, plan.insn.imm_size);
        if (plan.memory)
                site = memory_look_up(t, i, plan.size_bytes, plan.write);
        if (plan.memory && locked && plan.size_bytes > 1)
                aligned = memory_want_aligned(t, i, plan.size_bytes);
        flags_before(t, i);
        wanted = flags_wanted(t, i) && !(t->places & TPLACE_HOST);
        if (plan.memory)
                plan.insn.mem = plan.fold || wanted ? memory_fold(t) : memory_operand(t);
        if (wanted)
                flags_to_host(t);
        if (plan.memory && !locked && scratch_free(&plan) & 1u << TREG_SCRATCH)
                memory_to_register(t, i, &plan);
        else if (!plan.memory)
                flags_keep_operand(t, i);
        load_scratch(t, &plan);
        if (i->faults) {
                struct tsite *fault = translate_site(t, TSITE_FAULT, i, &number);

                fault->patch = translate_here(t);
        }
        if (!asm_insn(t->a, &plan.insn))
                abort();
        store_scratch(t, &plan);
        flags_after(t, i);
        if (site)
                memory_done(t, site);
        if (aligned)
                memory_done(t, aligned);
}
