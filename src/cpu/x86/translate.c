/*
 * One guest block to host code; see translate.h for the passes and docs/translator.md for what comes out.
 *
 *      host + 0    jmp                                                              for services: flags in the host's
 *      host + 16   lea rcx, [rbp - offset in the page]; mov gs:[GPR_BLOCK], rcx     for the jump cache
 *      host + 32   the block                                                       for direct branches: flags in jit.flags
 *                  once more, when it ends with a branch to its own start: emit_loop_head()
 *                  its edges
 */
#include "cpu/x86/translate.h"

#include <assert.h>
#include <errno.h>

#include "cpu/x86/decode.h"
#include "cpu/x86/flags.h"

/* The longest block that is worth a second copy. */
#define LOOP_INSNS_MAX 32

/* Code behind calls would be translated too often otherwise: with each place from where a block leads there. */
#define GOES_ON_INSNS_MAX 12

/*
 * Less for the same code: a block ends where another begins, unless little is left of it, and user code, which is translated at first sight,
 * behind some conditional jumps: the fourth part is reached by one of three that are entered, and the eighth by one of six.
 */
#define KNOWN_INSNS_MIN 2
#define USER_JUMPS_MAX 3

/* ---- sites ---- */

uint16_t translate_here(const struct translation *t)
{
        return (uint16_t)t->a->used;
}

unsigned translate_note(struct translation *t, const struct tflags_recipe *recipe, uint32_t x87_op)
{
        if (t->notes == TNOTES_MAX) {
                t->failed = true;
                return 0;
        }
        t->note[t->notes] = tnote_of(recipe, x87_op);
        return ++t->notes;
}

/* Mostly one like that of the site before. */
static unsigned note_for(struct translation *t, const struct tsite *site, uint32_t x87_op)
{
        static const struct tflags_recipe none;
        const struct tflags_recipe *recipe = site->flags == TFLAGS_RECIPE ? &t->recipe : &none;
        struct tnote note;

        if (recipe == &none && !x87_op)
                return 0;
        note = tnote_of(recipe, x87_op);
        if (t->last_note && !memcmp(&t->note[t->last_note - 1], &note, sizeof(note)))
                return t->last_note;
        t->last_note = translate_note(t, recipe, x87_op);
        return t->last_note;
}

struct tsite *translate_site(struct translation *t, enum tsite_kind kind, struct tinsn *i, uint32_t *number)
{
        struct tsite *site;

        if (t->sites == TRANSLATE_SITES_MAX || t->units + tsite_units(kind) > TNUMBER_OWN) {
                t->failed = true;
                *number = 0;
                t->no_site = (struct tsite){ 0 };
                return &t->no_site;
        }
        *number = t->number | (t->units + 1);
        t->site_at[t->units + 1] = (uint16_t)t->sites;
        t->units += tsite_units(kind);
        site = &t->site[t->sites++];
        *site = (struct tsite){ .kind = (uint8_t)kind };
        if (i) {
                site->at = i->insn.start;
                site->x87 = i->x87_in;
        }
        if (kind == TSITE_CHAIN || kind == TSITE_RETURN) /* the host's, or nobody asks */
                return site;
        site->flags = t->places & TPLACE_HOST ? TFLAGS_HOST : t->places & TPLACE_SAVED ? TFLAGS_SAVED : TFLAGS_RECIPE;
        site->note = (uint8_t)note_for(t, site, i ? i->x87_op : 0);
        return site;
}

struct tsite *translate_site_at(struct translation *t, uint32_t number)
{
        return number & TNUMBER_OWN ? &t->site[t->site_at[number & TNUMBER_OWN]] : &t->no_site;
}

struct asm_label *translate_edge(struct translation *t, struct tsite *site, uint32_t number, enum tthunk thunk)
{
        struct tedge *edge;

        if (t->edges == TRANSLATE_EDGES_MAX) {
                t->failed = true;
                t->nowhere = (struct asm_label){ 0 };
                return &t->nowhere;
        }
        edge = &t->edge[t->edges++];
        edge->label = (struct asm_label){ 0 };
        edge->site = number;
        edge->thunk = thunk;
        edge->chain = false;
        return &edge->label;
}

void translate_edge_here(struct translation *t, uint32_t number, enum tthunk thunk)
{
        asm_mov_imm(t->a, TREG_SCRATCH, number);
        asm_byte(t->a, 0xe9);
        asm_u32(t->a, translator_thunk(t->tr, thunk) - (t->block->host + translate_here(t) + 4));
}

struct tlate *translate_late(struct translation *t, enum tlate_kind kind, uint32_t number)
{
        struct tlate *late = &t->late[t->lates];

        if (t->lates + 1 < ARRAY_SIZE(t->late))
                t->lates++;
        else
                t->failed = true;
        *late = (struct tlate){ .kind = (uint8_t)kind, .number = number, .places = t->places, .real = t->real, .recipe = t->recipe };
        return late;
}

static void emit_edges(struct translation *t)
{
        for (unsigned n = 0; n < t->edges; n++) {
                struct tedge *edge = &t->edge[n];

                if (edge->chain)
                        translate_site_at(t, edge->site)->next = translate_here(t);
                asm_bind(t->a, &edge->label);
                translate_edge_here(t, edge->site, edge->thunk);
        }
}

/* ---- the interpreter's handler ---- */

void emit_handler(struct translation *t, struct tinsn *i)
{
        uint32_t number;
        struct tsite *site = translate_site(t, TSITE_HANDLER, i, &number);

        translate_edge_here(t, number, TTHUNK_HANDLER);
        if (i->ends)
                return;
        site->next = translate_here(t);
        flags_after_handler(t);
}

/* What translations depend on may be another behind it, and the handler goes on all the same. */
static bool changes_key(const struct tinsn *i)
{
        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_STAC:
        case ZYDIS_MNEMONIC_CLAC:
        case ZYDIS_MNEMONIC_POPF:
        case ZYDIS_MNEMONIC_POPFQ:
        case ZYDIS_MNEMONIC_XSETBV:
        case ZYDIS_MNEMONIC_WRMSR:
        case ZYDIS_MNEMONIC_CLTS:
        case ZYDIS_MNEMONIC_LMSW: return true;
        case ZYDIS_MNEMONIC_MOV: return i->z.opcode_map == ZYDIS_OPCODE_MAP_0F || i->insn.flags & INSN_ENDS_BLOCK;
        default: return false;
        }
}

static void leave_to_handler(struct tinsn *i)
{
        i->emit = emit_handler;
        i->site = true;
        i->ends = i->insn.flags & INSN_ENDS_BLOCK || changes_key(i);
        i->reads = TFLAGS_ALL;
        i->writes = 0;
        i->changes = TFLAGS_ALL;
}

/* ---- lifting ---- */

static void choose(struct tinsn *i, uint32_t key)
{
        flags_classify(i);
        i->emit = branch_translate(i);
        if (!i->emit)
                i->emit = system_translate(i, key);
        /* Beside branches an instruction that ends a block faults for certain, or changes the mode. */
        if (!i->emit && !(i->insn.flags & INSN_ENDS_BLOCK)) {
                i->emit = stack_translate(i);
                if (!i->emit)
                        i->emit = integer_translate(i);
                if (!i->emit)
                        i->emit = simd_translate(i, key);
                if (!i->emit)
                        i->emit = x87_translate(i, key);
        }
        if (!i->emit)
                leave_to_handler(i);
}

static bool is_known(const struct translation *t, uint32_t at)
{
        return translator_known(t->tr, (t->source->gpa & ~(GUEST_PAGE_SIZE - 1)) + at, t->source->key & ~TKEY_PLAIN);
}

/* One instruction at an offset in the page; false when it goes on in the next page. */
static bool lift_one(struct translation *t, uint32_t at, bool may_follow)
{
        uint32_t first = t->source->gpa & (GUEST_PAGE_SIZE - 1);
        struct tinsn *i = &t->insn[t->count];

        memset(i, 0, offsetof(struct tinsn, operand));
        i->emit = NULL;
        i->hands_on = i->site = i->ends = i->faults = i->miss_to_handler = i->keeps_address = false;
        i->x87 = TX87_NO;
        i->x87_check = i->x87_in = false;
        i->x87_op = i->x87_store = 0;
        i->access = TACCESS_NONE;
        i->group = NULL;
        i->followed = may_follow;
        i->goes_on = may_follow && t->count < GOES_ON_INSNS_MAX && !translator_lock_step(t->tr) && !(t->source->key & TKEY_CROSSING);
        if (decode_insn_full(t->cpu, t->source->bytes + (at - first), t->source->size_bytes - (at - first), at, &i->insn, &i->z,
                             i->operand) < 0)
                return false;
        choose(i, t->source->key);
        /* What comes behind the call is there already. */
        if (i->hands_on && !i->ends && is_known(t, i->insn.end))
                i->ends = true;
        t->count++;
        return true;
}

static bool is_conditional(const struct tinsn *i)
{
        return i->z.meta.category == ZYDIS_CATEGORY_COND_BR;
}

static bool loops_to_start(const struct translation *t)
{
        const struct tinsn *last = &t->insn[t->count - 1];

        return (is_conditional(last) || last->z.mnemonic == ZYDIS_MNEMONIC_JMP) &&
               (uint32_t)last->insn.imm == (t->source->gpa & (GUEST_PAGE_SIZE - 1));
}

/* Up to where a block begins already, which is an instruction's number, or 0. A loop stays whole. */
static void end_where_known(struct translation *t, unsigned known)
{
        if (known && t->count - known >= KNOWN_INSNS_MIN && !loops_to_start(t)) {
                t->count = known;
                t->end_target = (uint32_t)t->insn[known].insn.start;
        }
}

/* 0, or -ENOTSUP when not even the first instruction is for us. */
static int lift(struct translation *t)
{
        unsigned known = 0, jumps = 0, jumps_max = t->source->key & MODE_USER ? USER_JUMPS_MAX : TRANSLATE_INSNS_MAX;
        uint32_t first = t->source->gpa & (GUEST_PAGE_SIZE - 1), at = first, end = first;

        while (t->count < t->most && at - first < t->source->size_bytes) {
                const struct tinsn *i = &t->insn[t->count];

                if (t->count && !known && is_known(t, at))
                        known = t->count;
                if (!lift_one(t, at, t->count + 1 < t->most))
                        break; /* it goes on in the next page */
                if (t->calls && i->x87 != TX87_NO) { /* whether the state is in the host's x87 unit then, who knows */
                        t->count--;
                        break;
                }
                at = i->insn.end;
                if (i->ends || t->source->key & TKEY_CROSSING)
                        break;
                t->calls |= i->hands_on;
                if (is_conditional(i) && ++jumps == jumps_max)
                        break;
                if (i->z.mnemonic == ZYDIS_MNEMONIC_JMP)
                        at = (uint32_t)i->insn.imm;
        }
        t->end_target = at;
        if (!t->count)
                return -ENOTSUP;
        end_where_known(t, known);
        for (unsigned n = 0; n < t->count; n++)
                end = MAX(end, (uint32_t)t->insn[n].insn.end);
        t->block->size_bytes = (uint16_t)(end - first);
        t->block->insns = (uint8_t)t->count;
        return 0;
}

/* Of a group only the first fails, for all. */
static bool leaves(const struct translation *t, const struct tinsn *i)
{
        if (!i->site || i->faults || i->ends || !group_takes(t, i))
                return i->site;
        return i == &t->insn[i->group->first];
}

static void find_needed(struct translation *t)
{
        uint16_t needed = TFLAGS_ALL;

        for (unsigned n = t->count; n-- > 0;) {
                struct tinsn *i = &t->insn[n];

                if (i->ends)
                        needed = 0;
                i->needed_after = i->hands_on ? TFLAGS_ALL : needed;
                needed = (uint16_t)((needed & ~i->writes) | i->reads);
                if (leaves(t, i) || i->x87_check)
                        needed = TFLAGS_ALL;
                i->needed = needed;
        }
}

/* ---- emission ---- */

/* On when RCX is 0, else to the edge. No flags change. */
static void leave_unless_zero(struct translation *t, struct asm_label *edge)
{
        struct asm_label same = { 0 };

        asm_jrcxz(t->a, &same);
        asm_jmp(t->a, edge);
        asm_bind(t->a, &same);
}

/*
 * Whether the page behind this one is what the instruction was translated from: it is mapped, as the exec TLB knows, to the same
 * physical page, and nothing was written to that.
 */
static void emit_second_page_check(struct translation *t)
{
        const struct tsecond *second = &t->source->second;
        size_t table = t->source->key & MODE_USER ? offsetof(struct x86_cpu, own.exec) : offsetof(struct x86_cpu, shared_exec);
        struct asm_mem index = asm_gs(offsetof(struct x86_cpu, jit.temp[0]));
        struct asm_label *edge;
        struct tsite *site;
        uint32_t number;

        _Static_assert(sizeof(struct tlb_exec_entry) == 32, "the index is scaled by 4 and 8");
        site = translate_site(t, TSITE_LEAVE, NULL, &number);
        site->at = (uint32_t)(t->source->gpa & (GUEST_PAGE_SIZE - 1));
        edge = translate_edge(t, site, number, TTHUNK_LEAVE);
        asm_load(t->a, 8, TREG_ADDRESS, guest_slot(GPR_BLOCK));
        asm_lea(t->a, TREG_ADDRESS, asm_at(TREG_ADDRESS, (int32_t)GUEST_PAGE_SIZE));
        asm_pext(t->a, TREG_SCRATCH, TREG_ADDRESS, asm_gs(offsetof(struct x86_cpu, jit.exec_mask)));
        asm_lea(t->a, TREG_SCRATCH, asm_at_index(TREG_SCRATCH, TREG_SCRATCH, 1, 0));
        asm_lea(t->a, TREG_SCRATCH, asm_at_index(TREG_SCRATCH, TREG_SCRATCH, 1, 0));
        asm_store(t->a, 8, index, TREG_SCRATCH);
        asm_load(t->a, 8, TREG_SCRATCH, asm_gs_index(TREG_SCRATCH, 8, table + offsetof(struct tlb_exec_entry, tag)));
        asm_rr(t->a, 8, 0xf7, 2, TREG_ADDRESS); /* not: tag + ~page + 1 is 0 when they are the same */
        asm_lea(t->a, TREG_SCRATCH, asm_at_index(TREG_SCRATCH, TREG_ADDRESS, 1, 1));
        leave_unless_zero(t, edge);
        asm_load(t->a, 8, TREG_SCRATCH, index);
        asm_load(t->a, 8, TREG_SCRATCH, asm_gs_index(TREG_SCRATCH, 8, table + offsetof(struct tlb_exec_entry, gpa)));
        asm_mov_imm(t->a, TREG_ADDRESS, -second->gpa);
        asm_lea(t->a, TREG_SCRATCH, asm_at_index(TREG_SCRATCH, TREG_ADDRESS, 1, 0));
        leave_unless_zero(t, edge);
        asm_mov_imm(t->a, TREG_SCRATCH, (uintptr_t)second->code);
        asm_load(t->a, 4, TREG_SCRATCH, asm_at(TREG_SCRATCH, 0));
        asm_mov_imm(t->a, TREG_ADDRESS, -(uint64_t)second->generation);
        asm_lea(t->a, TREG_SCRATCH, asm_at_index(TREG_SCRATCH, TREG_ADDRESS, 1, 0));
        leave_unless_zero(t, edge);
}
/* The first instruction of each entry may become a call. */
static void emit_entry(struct translation *t, struct asm_label *with_host)
{
        int32_t offset = (int32_t)(t->source->gpa & (GUEST_PAGE_SIZE - 1));

        asm_byte(t->a, 0xe9); /* not asm_jmp(), which may put something before it */
        asm_rel32(t->a, with_host);
        asm_align(t->a, 16, 0);
        assert(t->a->full || t->a->used == TBLOCK_JUMP);
        /* LEA with 32 bits of displacement whatever it is: 7 bytes, and 9. */
        asm_bytes(t->a, "\x48\x8d\x8d", 3);
        asm_u32(t->a, (uint32_t)-offset);
        asm_store(t->a, 8, guest_slot(GPR_BLOCK), TREG_SCRATCH);
        t->block->fast = t->block->with_host = translate_here(t);
        flags_from_elsewhere(t);
        if (t->block->entry == TENTRY_HOST)
                flags_to_host(t);
        if (t->block->entry != TENTRY_FAULTS) {
                asm_bind(t->a, with_host);
                t->block->with_host = translate_here(t);
                t->places = TPLACE_HOST;
        }
        if (t->source->key & TKEY_CROSSING) /* all entries come by here */
                emit_second_page_check(t);
}

/* For those who come with the flags in the host's. */
static void emit_entry_with_host(struct translation *t, struct asm_label *with_host)
{
        if (t->block->entry != TENTRY_FAULTS)
                return;
        asm_bind(t->a, with_host);
        t->block->with_host = translate_here(t);
        t->places = TPLACE_HOST;
        flags_keep(t);
        asm_jmp_to(t->a, t->a->address + t->block->fast);
}

static void emit_end(struct translation *t)
{
        if (t->insn[t->count - 1].ends)
                return;
        x87_store(t, t->x87_last);
        emit_exit(t, t->end_target);
}

/* A register form that the processor fuses with the branch behind it: what it becomes can be moved. */
static bool fuses(const struct translation *t, const struct tinsn *i)
{
        if (i->emit != emit_rewritten || i->insn.flags & INSN_MEMORY || i->site || i + 1 == t->insn + t->count ||
            i[1].z.meta.category != ZYDIS_CATEGORY_COND_BR)
                return false;
        switch (i->z.mnemonic) {
        case ZYDIS_MNEMONIC_CMP:
        case ZYDIS_MNEMONIC_TEST:
        case ZYDIS_MNEMONIC_ADD:
        case ZYDIS_MNEMONIC_SUB:
        case ZYDIS_MNEMONIC_AND:
        case ZYDIS_MNEMONIC_INC:
        case ZYDIS_MNEMONIC_DEC: return true;
        default: return false;
        }
}

#define JCC_BYTES 6

/* Moves what was emitted from start on so that it is followed by an aligned Jcc (translate-branch.c: align_chain()) in the same 32 bytes. */
static void fit_pair(struct x86_asm *a, size_t start)
{
        unsigned bytes = (unsigned)(a->used - start), pad = 0;
        uint8_t code[16];

        if (a->full || bytes > sizeof(code))
                return;
        memcpy(code, a->buffer + start, bytes);
        a->used = start;
        while ((start + pad + bytes + JCC_BYTES) % 4 || !asm_fits(a, pad, bytes + JCC_BYTES))
                pad++;
        asm_nops(a, pad);
        asm_bytes(a, code, bytes);
}

static void emit_insns(struct translation *t)
{
        for (unsigned n = 0; n < t->count && !t->a->full && !t->failed; n++) {
                struct tinsn *i = &t->insn[n];
                size_t start;

                if (n || !t->in_loop || !t->insn[t->count - 1].x87_in)
                        x87_check(t, i);
                x87_store(t, i->x87_store);
                start = t->a->used;
                t->slotted = false;
                i->emit(t, i);
                if (fuses(t, i))
                        fit_pair(t->a, start);
        }
        emit_end(t);
}

static void emit_loop(struct translation *t)
{
        t->in_loop = true;
        t->tlb_mode = t->source->key >> 28;
        emit_loop_head(t);
        emit_insns(t);
}

static int emit(struct translation *t)
{
        struct asm_label with_host = { 0 };

        emit_entry(t, &with_host);
        emit_insns(t);
        if (t->loops)
                emit_loop(t);
        emit_entry_with_host(t, &with_host);
        emit_lates(t);
        emit_edges(t);
        return t->a->full || t->failed ? -E2BIG : 0;
}

static int translate_most(struct translation *t, unsigned most)
{
        int r;

        t->most = most;
        t->tlb_mode = t->source->key >> 28 & 7;
        t->failed = t->member = false;
        t->groups = 0;
        t->loops = t->in_loop = false;
        t->loop = (struct asm_label){ 0 };
        t->count = t->edges = t->lates = t->sites = t->units = t->notes = t->last_note = t->named = 0;
        t->real = t->calls = t->has_made = false;
        t->recipe = (struct tflags_recipe){ 0 };
        t->a->used = 0;
        t->a->full = false;
        t->block->incoming = 0;
        r = lift(t);
        if (r < 0)
                return r;
        t->may_loop = t->count <= LOOP_INSNS_MAX && !(t->source->key & TKEY_PLAIN) && !translator_lock_step(t->tr);
        x87_plan(t);
        groups_find(t);
        find_needed(t);
        flags_plan_entry(t);
        return emit(t);
}

int translate_block(struct translation *t, struct translator *tr, struct x86_cpu *cpu, const struct tsource *source, uint32_t number,
                    struct x86_asm *as_, struct tblock *block)
{
        unsigned most = TRANSLATE_INSNS_MAX;
        int r;

        t->tr = tr;
        t->cpu = cpu;
        t->a = as_;
        t->block = block;
        t->source = source;
        t->number = number;
        t->fast_pext = __builtin_cpu_supports("bmi2") && !__builtin_cpu_is("znver1") && !__builtin_cpu_is("znver2");
        do { /* one with more sites or code than there is room for becomes shorter */
                r = translate_most(t, most);
                most = t->count / 2;
        } while (r == -E2BIG && most);
        if (r < 0)
                return -ENOTSUP;
        block->sites = (uint16_t)t->units;
        block->notes = (uint8_t)t->notes;
        return 0;
}

struct translation *translation_new(void)
{
        return malloc(sizeof(struct translation));
}

void translation_free(struct translation *t)
{
        free(t);
}

void translation_pack(const struct translation *t, uint32_t *to)
{
        for (const struct tsite *site = t->site; site < t->site + t->sites; site++) {
                tsite_pack(site, to);
                to += tsite_units(site->kind);
        }
}

const struct tnote *translation_notes(const struct translation *t)
{
        return t->note;
}
