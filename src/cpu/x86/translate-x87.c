/*
 * x87 and MMX: as they are, on the host's registers, which are the guest's while jit.x87_out is 0 (translator-x87.c).
 *
 * A block with such instructions looks at jit.x87_out where it begins, and behind each handler that one of them follows; x87_plan() finds
 * these places once all is lifted. In between every slow path brings the state back before it goes on (tsite.x87).
 *
 * The pointers to the last instruction (x87_plan(), too): an x87 instruction leaves nothing behind by itself. Sites behind it have it in
 * x87_op, and before a branch, or where the block ends, it is stored.
 *
 * Left to handlers: FNINIT, the environment and FNSAVE, which touch what is not in registers; MMX instructions that convert or have an
 * XMM register.
 *
 * Source: Intel SDM vol. 1 §8, §9; vol. 2 of each instruction.
 */
#include "cpu/x86/translate.h"

#define X87_MASKS 0x3f

static struct asm_mem jit_at(size_t at)
{
        return asm_gs(offsetof(struct x86_cpu, jit) + at);
}
#define JIT(member) jit_at(offsetof(struct x86_jit, member))

/* ---- where the state must be looked for, and where pointers are stored ---- */

/* An x87 or MMX instruction comes before the next handler. */
static bool wanted_from(const struct translation *t, unsigned n)
{
        for (; n < t->count && t->insn[n].emit != emit_handler; n++)
                if (t->insn[n].x87)
                        return true;
        return false;
}

static bool transfers(const struct tinsn *i)
{
        switch (i->z.meta.category) {
        case ZYDIS_CATEGORY_COND_BR:
        case ZYDIS_CATEGORY_UNCOND_BR:
        case ZYDIS_CATEGORY_CALL:
        case ZYDIS_CATEGORY_RET: return true;
        default: return i->ends;
        }
}

void x87_plan(struct translation *t)
{
        uint32_t last = 0;
        bool in = false, look = true;

        for (unsigned n = 0; n < t->count; n++) {
                struct tinsn *i = &t->insn[n];

                if (look) {
                        i->x87_check = in = wanted_from(t, n);
                        look = false;
                }
                if (i->emit == emit_handler) {
                        i->x87_op = last;
                        last = 0;
                        in = false;
                        look = true;
                        continue;
                }
                i->x87_in = in;
                if (last && transfers(i)) {
                        i->x87_store = last;
                        last = 0;
                }
                i->x87_op = last;
                if (i->x87 == TX87_COUNTS)
                        last = TX87_OP_VALID | (uint32_t)(i->insn.imm & 0x7ff) | (uint32_t)i->insn.start << TX87_OP_START;
        }
        t->x87_last = last;
}

void x87_store(struct translation *t, uint32_t op)
{
        if (!op)
                return;
        asm_load(t->a, 8, TREG_SCRATCH, guest_slot(GPR_BLOCK));
        asm_store(t->a, 8, JIT(x87_page), TREG_SCRATCH);
        asm_rm(t->a, 4, 0xc7, 0, JIT(x87_op));
        asm_u32(t->a, op);
}

void x87_check(struct translation *t, struct tinsn *i)
{
        bool keep = t->places == TPLACE_HOST;
        struct asm_label there = { 0 }, *edge;
        struct tsite *site;
        uint32_t number;

        if (!i->x87_check)
                return;
        if (!keep)
                t->places &= ~(unsigned)TPLACE_HOST;
        site = translate_site(t, TSITE_X87, i, &number);
        edge = translate_edge(t, site, number, TTHUNK_X87);
        if (keep) {
                asm_load(t->a, 4, TREG_SCRATCH, JIT(x87_out));
                asm_jrcxz(t->a, &there);
                asm_jmp(t->a, edge);
                asm_bind(t->a, &there);
        } else {
                asm_rm(t->a, 4, 0x83, 7, JIT(x87_out)); /* cmp */
                asm_byte(t->a, 0);
                asm_jcc(t->a, ASM_NZ, edge);
        }
        site->retry = translate_here(t);
}

/* ---- instructions ---- */

static void emit_fwait(struct translation *t, struct tinsn *i)
{
}

/* The control word is read once. One that leaves an exception unmasked is the handler's. */
static void emit_fldcw(struct translation *t, struct tinsn *i)
{
        struct tsite *site = memory_look_up(t, i, 2, false), *unmasked;
        uint32_t number;

        asm_rm(t->a, 4, ASM_0F | 0xb7, TREG_SCRATCH, memory_operand(t)); /* movzx */
        asm_store(t->a, 4, JIT(temp), TREG_SCRATCH);
        unmasked = translate_site(t, TSITE_HANDLER, i, &number);
        asm_rr(t->a, 4, 0xf7, 2, TREG_SCRATCH); /* not */
        asm_rr(t->a, 1, 0xf6, 0, TREG_SCRATCH); /* test */
        asm_byte(t->a, X87_MASKS);
        asm_jcc(t->a, ASM_NZ, translate_edge(t, unmasked, number, TTHUNK_HANDLER));
        asm_rm(t->a, 4, 0xd9, 5, JIT(temp));
        memory_done(t, site);
}

/* For groups: register forms leave RBP alone, memory forms may share a look-up. */
static void groupable(struct tinsn *i)
{
        i->access = i->insn.flags & INSN_MEMORY ? TACCESS_OPERAND : TACCESS_NONE;
        i->keeps_address = rewrite_keeps_address(i);
}

static bool is_x87(const struct tinsn *i)
{
        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_FCOMI:
        case ZYDIS_MNEMONIC_FCOMIP:
        case ZYDIS_MNEMONIC_FUCOMI:
        case ZYDIS_MNEMONIC_FUCOMIP:
        case ZYDIS_MNEMONIC_FISTTP: return true;
        default: return i->z.meta.isa_ext == ZYDIS_ISA_EXT_X87;
        }
}

static bool for_handler(const struct tinsn *i)
{
        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_FNINIT:
        case ZYDIS_MNEMONIC_FENI8087_NOP:
        case ZYDIS_MNEMONIC_FDISI8087_NOP:
        case ZYDIS_MNEMONIC_FSETPM287_NOP:
        case ZYDIS_MNEMONIC_FNSTENV:
        case ZYDIS_MNEMONIC_FLDENV:
        case ZYDIS_MNEMONIC_FNSAVE:
        case ZYDIS_MNEMONIC_FRSTOR: return true;
        default: return false;
        }
}

/* Those that leave the pointers alone. */
static bool is_control(const struct tinsn *i)
{
        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_FNCLEX:
        case ZYDIS_MNEMONIC_FNSTCW:
        case ZYDIS_MNEMONIC_FNSTSW: return true;
        default: return false;
        }
}

/* MMX registers and none of XMM, and nothing of floating point: conversions may raise #XM, and their operands may have to be aligned. */
static bool is_mmx(const struct tinsn *i)
{
        bool mmx = i->z.mnemonic == ZYDIS_MNEMONIC_EMMS;

        if (i->z.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || i->z.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ ||
            i->z.meta.category == ZYDIS_CATEGORY_CONVERT)
                return false;
        for (unsigned n = 0; n < i->z.operand_count_visible; n++) {
                if (i->operand[n].type != ZYDIS_OPERAND_TYPE_REGISTER)
                        continue;
                switch (ZydisRegisterGetClass(i->operand[n].reg.value)) {
                case ZYDIS_REGCLASS_MMX: mmx = true; break;
                case ZYDIS_REGCLASS_XMM: return false;
                default: break;
                }
        }
        return mmx;
}

static temit_fn mmx_translate(struct tinsn *i, uint32_t key)
{
        if (!(key & MODE_OSFXSR) || !rewrite_possible(i))
                return NULL;
        i->x87 = TX87_SILENT;
        i->site = i->insn.flags & INSN_MEMORY;
        groupable(i);
        return emit_rewritten;
}

temit_fn x87_translate(struct tinsn *i, uint32_t key)
{
        if (key & (MODE_CR0_EM | MODE_CR0_TS) || !__builtin_cpu_supports("avx")) /* which means XSAVE as well */
                return NULL;
        if (is_mmx(i))
                return mmx_translate(i, key);
        if (i->z.mnemonic == ZYDIS_MNEMONIC_FWAIT) {
                i->x87 = TX87_SILENT;
                return emit_fwait;
        }
        if (!is_x87(i) || for_handler(i))
                return NULL;
        i->site = i->insn.flags & INSN_MEMORY;
        if (i->z.mnemonic == ZYDIS_MNEMONIC_FLDCW) {
                if (!memory_possible(i))
                        return NULL;
                i->x87 = TX87_SILENT;
                return emit_fldcw;
        }
        if (i->z.opcode < 0xd8 || i->z.opcode > 0xdf || i->z.opcode_map != ZYDIS_OPCODE_MAP_DEFAULT || !rewrite_possible(i))
                return NULL;
        i->x87 = is_control(i) ? TX87_SILENT : TX87_COUNTS;
        groupable(i);
        return emit_rewritten;
}
