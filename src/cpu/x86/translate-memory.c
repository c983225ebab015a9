/*
 * The inlined look-up of the soft TLB (docs/translator.md "Memory").
 *
 *      lea  rbp, [guest address]
 *      pext rcx, rbp, gs:[jit.tlb_mask]
 *      xor  rbp, gs:[rcx*8 + tag]
 *      cmp  rbp, 4096 - size
 *      ja   edge
 *      mov  rcx, gs:[rcx*8 + host]
 *
 * An entry's tag is a page address, so the XOR leaves the offset in the page when it is that page, and something above 4095
 * when it is not, because the tags of empty entries have other index bits (tlb_empty_tag()). An operand with LOCK must also be
 * aligned: the host would split it as well, but hosts may forbid that (split lock detection).
 */
#include "cpu/x86/translate.h"

#define PAGE_BYTES 4096

bool memory_possible(const struct tinsn *i)
{
        const struct insn *insn = &i->insn;

        /* A RIP-relative address must still be base + disp32 once the instruction's end is in it. */
        return insn->flags & INSN_MEMORY && insn->disp == (int32_t)insn->disp && (insn->asize == 8 || insn->asize == 4);
}

struct asm_mem guest_slot(unsigned guest)
{
        return asm_gs(offsetof(struct x86_cpu, s.gpr) + guest * 8);
}

unsigned guest_load(struct translation *t, unsigned guest, unsigned scratch)
{
        if (treg_of(guest) != TREG_NONE)
                return treg_of(guest);
        asm_load(t->a, 8, scratch, guest_slot(guest));
        return scratch;
}

void guest_store(struct translation *t, unsigned guest, unsigned from)
{
        if (treg_of(guest) == TREG_NONE)
                asm_store(t->a, 8, guest_slot(guest), from);
        else if (treg_of(guest) != from)
                asm_mov(t->a, 8, treg_of(guest), from);
}

/* ---- the address ---- */

static unsigned address_part(struct translation *t, uint8_t at, unsigned scratch)
{
        if (at == GPR_ZERO * 8)
                return ASM_NONE;
        if (at == GPR_BLOCK * 8) {
                asm_load(t->a, 8, scratch, guest_slot(GPR_BLOCK));
                return scratch;
        }
        return guest_load(t, at / 8, scratch);
}

/* LEA of 4 bytes cuts the offset as a 32-bit address size does. */
static void address_sum(struct translation *t, unsigned base, unsigned index, unsigned scale, int32_t disp, unsigned size_bytes)
{
        if (base == ASM_NONE && index == ASM_NONE)
                asm_mov_imm(t->a, TREG_ADDRESS, size_bytes == 8 ? (uint64_t)(int64_t)disp : (uint32_t)disp);
        else if (index == ASM_NONE && !disp)
                base == TREG_ADDRESS && size_bytes == 8 ? (void)0 : asm_mov(t->a, size_bytes, TREG_ADDRESS, base);
        else
                asm_rm(t->a, size_bytes, 0x8d, TREG_ADDRESS, asm_at_index(base, index, scale, disp));
}

static void offset_to_address(struct translation *t, const struct insn *insn)
{
        unsigned base = address_part(t, insn->base, TREG_ADDRESS);
        unsigned index = address_part(t, insn->index, TREG_SCRATCH);

        address_sum(t, base, index, 1u << insn->shift, (int32_t)insn->disp, insn->asize);
}

static struct asm_mem segment_base(unsigned seg)
{
        return asm_gs(offsetof(struct x86_cpu, s.seg) + seg * sizeof(struct x86_segment) + offsetof(struct x86_segment, base));
}

void memory_address(struct translation *t, const struct insn *insn)
{
        offset_to_address(t, insn);
}

/* ---- the look-up ---- */

static void emit_index(struct translation *t)
{
        if (t->fast_pext) {
                asm_pext(t->a, TREG_SCRATCH, TREG_ADDRESS, asm_gs(offsetof(struct x86_cpu, jit.tlb_mask)));
                return;
        }
        asm_mov(t->a, 4, TREG_SCRATCH, TREG_ADDRESS);
        asm_rr(t->a, 4, 0xc1, 5, TREG_SCRATCH); /* shr */
        asm_byte(t->a, GUEST_PAGE_SHIFT);
        asm_alu_imm(t->a, 4, 4, TREG_SCRATCH, TLB_ENTRIES - 1);
}

static void emit_probe(struct translation *t, unsigned size_bytes, bool write, struct asm_label *slow)
{
        uint32_t set = tlb_set_offset(t->tlb_mode);
        uint32_t tags = set + (uint32_t)(write ? offsetof(struct tlb_set, write_tag) : offsetof(struct tlb_set, read_tag));

        emit_index(t);
        asm_rm(t->a, 8, 0x33, TREG_ADDRESS, asm_gs_index(TREG_SCRATCH, 8, tags)); /* xor */
        asm_fit(t->a, 7 + 6); /* both instructions */
        asm_alu_imm(t->a, 7, 8, TREG_ADDRESS, (int32_t)(PAGE_BYTES - size_bytes));
        asm_jcc(t->a, ASM_NBE, slow);
        asm_load(t->a, 8, TREG_SCRATCH, asm_gs_index(TREG_SCRATCH, 8, set + offsetof(struct tlb_set, host)));
}

static struct tsite *begin(struct translation *t, struct tinsn *i, unsigned size_bytes, bool write, struct asm_label **slow)
{
        struct tsite *site;
        uint32_t number;

        flags_keep(t);
        t->places &= ~(unsigned)TPLACE_HOST;
        site = translate_site(t, TSITE_MEMORY, i, &number);
        *slow = translate_edge(t, site, number, TTHUNK_MEMORY);
        site->size_bytes = (uint8_t)size_bytes;
        site->write = write;
        site->retry = translate_here(t);
        return site;
}

/* A miss is the handler's, which fills the TLB as well. */
static void miss_to_handler(struct translation *t, struct tsite *site)
{
        site->kind = TSITE_HANDLER;
        t->edge[t->edges - 1].thunk = TTHUNK_HANDLER;
}

static struct tsite *look_up_operand(struct translation *t, struct tinsn *i, unsigned size_bytes, bool write)
{
        struct asm_label *slow;
        struct tsite *site = begin(t, i, size_bytes, write, &slow);

        if (i->miss_to_handler)
                miss_to_handler(t, site);
        offset_to_address(t, &i->insn);
        if (i->insn.seg >= X86_FS)
                asm_rm(t->a, 8, 0x03, TREG_ADDRESS, segment_base(i->insn.seg));
        emit_probe(t, size_bytes, write, slow);
        return site;
}

static struct tsite *look_up_stack(struct translation *t, struct tinsn *i, unsigned guest_base, int32_t disp, unsigned size_bytes, bool write)
{
        struct asm_label *slow;
        struct tsite *site = begin(t, i, size_bytes, write, &slow);

        site->stack = guest_base == X86_RSP;
        if (!site->stack) /* LEAVE: an address that the site cannot name */
                miss_to_handler(t, site);
        address_sum(t, guest_load(t, guest_base, TREG_ADDRESS), ASM_NONE, 1, disp, 8);
        emit_probe(t, size_bytes, write, slow);
        return site;
}

/* The look-up of a whole group, when i is its first; then i's operand. */
static struct tsite *look_up_in_group(struct translation *t, struct tinsn *i, int32_t disp)
{
        struct tgroup *group = i->group;
        struct asm_label *slow;
        unsigned base, index;

        if (i == &t->insn[group->first]) {
                flags_keep(t);
                t->places &= ~(unsigned)TPLACE_HOST;
                group_edge(t, i, &slow);
                base = address_part(t, (uint8_t)(group->base * 8), TREG_ADDRESS);
                index = address_part(t, (uint8_t)(group->index * 8), TREG_SCRATCH);
                address_sum(t, base, index, 1u << group->shift, group->low, 8);
                emit_probe(t, (unsigned)(group->high - group->low), group->write, slow);
                asm_lea(t->a, TREG_ADDRESS, asm_at_index(TREG_SCRATCH, TREG_ADDRESS, 1, -group->low));
        }
        t->member = true;
        t->operand = asm_at(TREG_ADDRESS, i->moved + disp);
        return &t->no_site;
}

struct tsite *memory_look_up(struct translation *t, struct tinsn *i, unsigned size_bytes, bool write)
{
        if (group_takes(t, i))
                return look_up_in_group(t, i, (int32_t)i->insn.disp);
        t->member = false;
        return look_up_operand(t, i, size_bytes, write);
}

struct tsite *memory_look_up_at(struct translation *t, struct tinsn *i, unsigned guest_base, int32_t disp, unsigned size_bytes, bool write)
{
        if (group_takes(t, i))
                return look_up_in_group(t, i, disp);
        t->member = false;
        return look_up_stack(t, i, guest_base, disp, size_bytes, write);
}

/* Not aligned: by the handler. */
struct tsite *memory_want_aligned(struct translation *t, struct tinsn *i, unsigned size_bytes)
{
        uint32_t number;
        struct tsite *site = translate_site(t, TSITE_HANDLER, i, &number);

        asm_rr(t->a, 1, 0xf6, 0, TREG_ADDRESS); /* test */
        asm_byte(t->a, (uint8_t)(size_bytes - 1));
        asm_jcc(t->a, ASM_NZ, translate_edge(t, site, number, TTHUNK_HANDLER));
        return site;
}

struct asm_mem memory_operand(const struct translation *t)
{
        return t->member ? t->operand : asm_at_index(TREG_SCRATCH, TREG_ADDRESS, 1, 0);
}

struct asm_mem memory_fold(struct translation *t)
{
        if (t->member)
                return t->operand;
        asm_lea(t->a, TREG_ADDRESS, memory_operand(t));
        return asm_at(TREG_ADDRESS, 0);
}

void memory_done(struct translation *t, struct tsite *site)
{
        site->next = t->slotted ? 0 : translate_here(t);
}
