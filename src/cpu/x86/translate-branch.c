/*
 * Leaving a block: branches, calls, returns, and running off its end (docs/translator.md "Calls", "From block to block").
 *
 * Jumps within the page take the guest's flags along in the host's, or where flags_pass() has them: nothing there may touch the host's
 * flags, what would be CMP elsewhere is JRCXZ. The edge that a JRCXZ leads to stands within 127 bytes, so behind the jump that ends the
 * block. Indirect jumps, calls, returns and jumps to other pages have the flags in jit.flags, and the host's are free.
 *
 * A call need not end the block: it goes on where a host RET comes back to. That place begins with an instruction of 5 bytes, and is
 * aligned, so that it can become a jump when the block dies (TSITE_RETURN).
 *
 * A conditional jump forward leaves the block when it is taken and the block goes on behind it. One backward ends the block: it is
 * taken mostly, and looks for requests first.
 */
#include "cpu/x86/translate.h"

#include <assert.h>

#include "cpu/x86/flags.h"

/* Entries of the shadow stack that one mode of execution pushed never match a return in another. */
static int32_t shadow_mark(const struct translation *t)
{
        return t->tlb_mode == TLB_SUPERVISOR ? 0x1b5e4a33 : 0;
}

static bool in_page(uint32_t target)
{
        return target < GUEST_PAGE_SIZE;
}

static struct asm_mem temp(unsigned n)
{
        return asm_gs(offsetof(struct x86_cpu, jit.temp) + n * 8);
}

/* ---- requests ---- */

/* RCX 0: there is one. */
static void load_go(struct translation *t)
{
        asm_load(t->a, 4, TREG_SCRATCH, asm_gs(offsetof(struct x86_cpu, jit.go)));
}

static void test_go(struct translation *t)
{
        asm_rm(t->a, 4, 0x83, 7, asm_gs(offsetof(struct x86_cpu, jit.go)));
        asm_byte(t->a, 0);
}

/* Where the host's flags are free: to the run loop, at the start of i. */
static void check_go(struct translation *t, struct tinsn *i)
{
        uint32_t number;
        struct tsite *site = translate_site(t, TSITE_GO, i, &number);

        test_go(t);
        asm_jcc(t->a, ASM_Z, translate_edge(t, site, number, TTHUNK_GO));
}

static void bind_go(struct translation *t, struct asm_label *label, struct tinsn *i, uint32_t target)
{
        uint32_t number;
        struct tsite *site = translate_site(t, TSITE_GO, i, &number);

        if (!i)
                site->at = target;
        asm_bind(t->a, label);
        translate_edge_here(t, number, TTHUNK_GO);
}

/* ---- direct ---- */

/* The rel32 of a branch whose opcode bytes are emitted by the caller, after align_chain(). */
static void align_chain(struct translation *t, unsigned opcode_bytes)
{
        asm_align(t->a, 4, opcode_bytes);
        while (!asm_fits(t->a, 0, opcode_bytes + 4))
                asm_nops(t->a, 4);
}

static struct asm_label *chain_from(struct translation *t, struct tsite *site, uint32_t number, uint32_t target, unsigned opcode_bytes, bool backward)
{
        struct asm_label *label = translate_edge(t, site, number, TTHUNK_CHAIN);

        site->at = target;
        site->patch = translate_here(t) + opcode_bytes;
        t->edge[t->edges - 1].chain = true;
        return label;
}

static struct asm_label *chain(struct translation *t, uint32_t target, unsigned opcode_bytes, bool backward)
{
        uint32_t number;
        struct tsite *site = translate_site(t, TSITE_CHAIN, NULL, &number);

        return chain_from(t, site, number, target, opcode_bytes, backward);
}

/* A site that is linked instead of the one for when the host's flags are wanted, which comes next: slow. Its rel32 follows an opcode byte. */
static uint32_t chain_without_flags(struct translation *t, struct asm_label *slow, void (*jump)(struct x86_asm *a, struct asm_label *label))
{
        uint32_t number;
        struct tsite *site = translate_site(t, TSITE_CHAIN, NULL, &number);

        site->not_host = true;
        flags_pass(t, site);
        align_chain(t, 1);
        site->patch = translate_here(t) + 1;
        jump(t->a, slow);
        return number;
}

/* What that one's rel32 leads to: flags, and the other jump. */
static void chain_with_flags(struct translation *t, uint32_t instead, struct asm_label *slow, uint32_t target, bool backward)
{
        uint32_t number;
        struct tsite *site;

        if (!t->failed)
                translate_site_at(t, instead)->next = translate_here(t);
        asm_bind(t->a, slow);
        flags_to_host(t);
        site = translate_site(t, TSITE_CHAIN, NULL, &number);
        site->instead = instead & TNUMBER_OWN;
        align_chain(t, 1);
        asm_jmp(t->a, chain_from(t, site, number, target, 1, backward));
}

/* ---- loops of one block ---- */

static bool loops_back(struct translation *t, uint32_t target)
{
        if (!t->may_loop || target != (t->source->gpa & (GUEST_PAGE_SIZE - 1)) || !(t->places & TPLACE_RECIPE) ||
            t->tlb_mode != t->source->key >> 28)
                return false;
        if (t->in_loop)
                return !memcmp(&t->recipe, &t->loop_recipe, sizeof(t->recipe));
        t->loops = true;
        t->loop_recipe = t->recipe;
        return true;
}

/* A chain that is linked to the block itself from the start; the branch is emitted next, to t->loop. */
static void chain_to_loop(struct translation *t, uint32_t target, unsigned opcode_bytes)
{
        struct tedge *edge;

        chain(t, target, opcode_bytes, true);
        if (t->failed)
                return;
        edge = &t->edge[t->edges - 1];
        translate_site_at(t, edge->site)->incoming = t->block->incoming;
        t->block->incoming = edge->site;
}

#define LOOP_HEAD_BYTES 24

void emit_loop_head(struct translation *t)
{
        asm_fit(t->a, LOOP_HEAD_BYTES);
        asm_bind(t->a, &t->loop);
        t->recipe = t->loop_recipe;
        t->places = TPLACE_RECIPE;
        check_go(t, &t->insn[0]);
}

/* ---- the jump cache: RBP is the linear target, the flags are in jit.flags ---- */

_Static_assert(sizeof(struct tjump) == 16, "what is shifted right by 16 is the offset in the jump cache");

static struct asm_mem cached(struct translation *t, size_t member)
{
        struct asm_mem mem = asm_at(TREG_SCRATCH, (int32_t)(tjump_offset(t->tlb_mode) + member));

        mem.gs = true;
        return mem;
}

/* Compares with the entry, whose offset RCX is then. */
static void probe(struct translation *t)
{
        asm_rr(t->a, 4, 0x69, TREG_SCRATCH, TREG_ADDRESS); /* imul ecx, ebp, … */
        asm_u32(t->a, TJUMP_HASH);
        asm_rr(t->a, 4, 0xc1, 5, TREG_SCRATCH);            /* shr */
        asm_byte(t->a, (uint8_t)(32 - tjump_bits(t->tlb_mode) - 4));
        asm_alu_imm(t->a, 4, 4, TREG_SCRATCH, (int32_t)(((1u << tjump_bits(t->tlb_mode)) - 1) * sizeof(struct tjump)));
        asm_rm(t->a, 8, 0x3b, TREG_ADDRESS, cached(t, offsetof(struct tjump, rip)));
}

/* opcode_extension 2: CALL, 4: JMP */
#define GO_THERE_BYTES 7
static void go_there(struct translation *t, unsigned opcode_extension)
{
        asm_fit(t->a, GO_THERE_BYTES);
        asm_rm(t->a, 4, 0xff, opcode_extension, cached(t, offsetof(struct tjump, host)));
}

/*
 * i: the instruction at which a target that is not canonical faults; NULL: none. pop: what RET adds to RSP, once it is known that it goes
 * there. A request leaves as a miss does: the service looks.
 */
static void jump_to_address(struct translation *t, struct tinsn *i, unsigned pop)
{
        struct asm_label *out;
        struct tsite *site;
        uint32_t number;

        flags_to_slot(t);
        site = translate_site(t, TSITE_JUMP, i, &number);
        site->size_bytes = (uint8_t)pop;
        site->checked = i != NULL;
        out = translate_edge(t, site, number, TTHUNK_JUMP);
        test_go(t);
        asm_jcc(t->a, ASM_Z, out);
        probe(t);
        asm_jcc(t->a, ASM_NZ, out);
        if (pop)
                asm_lea(t->a, treg_of(X86_RSP), asm_at(treg_of(X86_RSP), (int32_t)pop));
        go_there(t, 4);
}

static void load_target(struct translation *t, uint32_t target)
{
        asm_load(t->a, 8, TREG_ADDRESS, guest_slot(GPR_BLOCK));
        asm_lea(t->a, TREG_ADDRESS, asm_at(TREG_ADDRESS, (int32_t)target));
}

static void exit_checked(struct translation *t, uint32_t target, bool backward)
{
        struct asm_label out = { 0 }, slow = { 0 };
        struct tflags_recipe recipe = t->recipe;
        unsigned places = t->places;
        bool real = t->real;
        uint32_t number;

        if (!in_page(target)) {
                load_target(t, target);
                jump_to_address(t, NULL, 0);
                t->places = places;
                t->real = real;
                t->recipe = recipe;
                return;
        }
        if (backward) {
                load_go(t);
                asm_jrcxz(t->a, &out);
        }
        if (places & TPLACE_HOST) {
                struct tsite *site = translate_site(t, TSITE_CHAIN, NULL, &number);

                flags_pass(t, site);
                align_chain(t, 1);
                asm_jmp(t->a, chain_from(t, site, number, target, 1, backward));
        } else {
                number = chain_without_flags(t, &slow, asm_jmp);
                chain_with_flags(t, number, &slow, target, backward);
        }
        t->places = places;
        if (backward)
                bind_go(t, &out, NULL, target);
}

void emit_exit(struct translation *t, uint32_t target)
{
        exit_checked(t, target, false);
}

/* ---- JMP, Jcc ---- */

static bool is_backward(const struct tinsn *i)
{
        return (uint32_t)i->insn.imm <= i->insn.start;
}

static void emit_followed(struct translation *t, struct tinsn *i)
{
}

static void emit_jmp(struct translation *t, struct tinsn *i)
{
        if (!loops_back(t, (uint32_t)i->insn.imm)) {
                exit_checked(t, (uint32_t)i->insn.imm, is_backward(i));
                return;
        }
        flags_to_host(t);
        align_chain(t, 1);
        chain_to_loop(t, (uint32_t)i->insn.imm, 1);
        asm_jmp(t->a, &t->loop);
}

static void emit_jcc(struct translation *t, struct tinsn *i)
{
        enum asm_condition condition = i->z.opcode & 15;
        uint32_t target = (uint32_t)i->insn.imm;
        struct asm_label skip = { 0 }, out = { 0 };
        struct tsite *site;
        uint32_t number;

        flags_to_host(t);
        if (!in_page(target)) {
                asm_jcc(t->a, condition ^ 1, &skip);
                exit_checked(t, target, false);
                asm_bind(t->a, &skip);
                return;
        }
        if (i->ends && loops_back(t, target)) {
                align_chain(t, 2);
                chain_to_loop(t, target, 2);
                asm_jcc(t->a, condition, &t->loop);
                emit_exit(t, i->insn.end);
                return;
        }
        if (i->ends) {
                load_go(t);
                asm_jrcxz(t->a, &out);
        }
        site = translate_site(t, TSITE_CHAIN, NULL, &number);
        if (i->ends || t->places & TPLACE_SAVED)
                flags_pass(t, site);
        align_chain(t, 2);
        asm_jcc(t->a, condition, chain_from(t, site, number, target, 2, i->ends));
        if (i->ends) {
                emit_exit(t, i->insn.end);
                bind_go(t, &out, i, 0);
        }
}

/* ---- JRCXZ, LOOP: neither changes a flag, and the host's JRCXZ looks at RCX, which is scratch ---- */

static bool counts(const struct tinsn *i)
{
        return i->z.mnemonic == ZYDIS_MNEMONIC_LOOP;
}

static void emit_count_jump(struct translation *t, struct tinsn *i)
{
        unsigned size_bytes = i->insn.asize, count = treg_of(X86_RCX);
        struct asm_label zero = { 0 }, other = { 0 }, out = { 0 };
        uint32_t target = (uint32_t)i->insn.imm;

        flags_to_host(t);
        if (i->ends) {
                load_go(t);
                asm_jrcxz(t->a, &out);
        }
        if (counts(i)) {
                flags_register_changes(t, i, X86_RCX);
                asm_rm(t->a, size_bytes, 0x8d, count, asm_at(count, -1)); /* lea */
        }
        asm_mov(t->a, size_bytes, TREG_SCRATCH, count);
        asm_jrcxz(t->a, &zero);
        if (counts(i)) {
                exit_checked(t, target, false);
                asm_bind(t->a, &zero);
        } else {
                asm_jmp(t->a, &other);
                asm_bind(t->a, &zero);
                exit_checked(t, target, false);
                asm_bind(t->a, &other);
        }
        if (i->ends) {
                emit_exit(t, i->insn.end);
                bind_go(t, &out, i, 0);
        }
}

/* RBP = the target that an indirect branch names. */
static void load_indirect(struct translation *t, struct tinsn *i)
{
        unsigned guest = i->insn.reg[0] / 8;

        if (i->insn.flags & INSN_MEMORY) {
                memory_look_up(t, i, 8, false);
                asm_load(t->a, 8, TREG_ADDRESS, memory_operand(t));
        } else if (treg_of(guest) == TREG_NONE) {
                asm_load(t->a, 8, TREG_ADDRESS, guest_slot(guest));
        } else {
                asm_mov(t->a, 8, TREG_ADDRESS, treg_of(guest));
        }
}

static void emit_jmp_indirect(struct translation *t, struct tinsn *i)
{
        load_indirect(t, i);
        jump_to_address(t, i, 0);
}

/* ---- CALL, RET ---- */

/* Behind the look-up of the return address's place: stores it, moves RSP, pushes it onto the shadow stack. */
static void push_return(struct translation *t, struct tinsn *i)
{
        struct asm_mem at = memory_fold(t);

        asm_load(t->a, 8, TREG_SCRATCH, guest_slot(GPR_BLOCK));
        asm_lea(t->a, TREG_SCRATCH, asm_at(TREG_SCRATCH, i->insn.end));
        asm_store(t->a, 8, at, TREG_SCRATCH);
        flags_stack_moves(t, i, -8);
        asm_lea(t->a, treg_of(X86_RSP), asm_at(treg_of(X86_RSP), -8));
        if (shadow_mark(t))
                asm_lea(t->a, TREG_SCRATCH, asm_at(TREG_SCRATCH, shadow_mark(t)));
        asm_byte(t->a, 0x51); /* push rcx */
}

/* NOPs, so that what comes behind the next n bytes is where a return may come back to, and they themselves fit as a jump. */
static void align_return(struct translation *t, unsigned n)
{
        unsigned pad = (unsigned)-(t->a->used + n) % TRETURN_ALIGNMENT;

        while (!asm_fits(t->a, pad, n))
                pad += TRETURN_ALIGNMENT;
        asm_nops(t->a, pad);
}

/* Where a host RET comes back to: RBP is the guest's return address. */
static void return_point(struct translation *t, struct tinsn *i)
{
        uint32_t number;
        struct tsite *site = translate_site(t, TSITE_RETURN, NULL, &number);

        assert(t->a->full || t->a->used % TRETURN_ALIGNMENT == 0);
        site->patch = translate_here(t);
        flags_from_elsewhere(t);
        asm_lea(t->a, ASM_RSP, asm_at(ASM_RSP, 8));
        asm_lea(t->a, TREG_SCRATCH, asm_at(TREG_ADDRESS, -(int32_t)i->insn.end));
        asm_store(t->a, 8, guest_slot(GPR_BLOCK), TREG_SCRATCH);
        if (i->ends)
                emit_exit(t, i->insn.end);
}

/* As a jump to the target, but for what is on the shadow stack. */
static void call_in_page(struct translation *t, uint32_t target, bool backward)
{
        uint32_t number;
        struct tsite *site = translate_site(t, TSITE_CHAIN, NULL, &number);
        struct tlate *way;

        if (t->places == TPLACE_HOST) {
                align_return(t, 5);
                asm_call(t->a, chain_from(t, site, number, target, 1, backward));
                return;
        }
        site->not_host = true;
        flags_pass(t, site);
        way = translate_late(t, TLATE_CALL, number);
        way->target = target;
        way->backward = backward;
        align_return(t, 5);
        site->patch = translate_here(t) + 1;
        asm_call(t->a, &way->from);
}

static void call_cached(struct translation *t)
{
        struct tsite *site;
        struct tlate *way;
        uint32_t number;

        flags_to_slot(t);
        probe(t);
        site = translate_site(t, TSITE_JUMP, NULL, &number);
        way = translate_late(t, TLATE_CALL_MISS, number);
        site->flags = TFLAGS_SAVED;
        asm_jcc(t->a, ASM_NZ, &way->from);
        align_return(t, GO_THERE_BYTES);
        asm_rm(t->a, 4, 0xff, 2, cached(t, offsetof(struct tjump, host)));
        asm_bind(t->a, &way->back);
}

static void emit_call_miss(struct translation *t, struct tlate *way)
{
        asm_bind(t->a, &way->from);
        asm_lea_label(t->a, TREG_SCRATCH, &way->back);
        asm_byte(t->a, 0x51); /* push rcx */
        translate_edge_here(t, way->number, TTHUNK_JUMP);
}

/* More may come while they are emitted. */
void emit_lates(struct translation *t)
{
        for (unsigned n = 0; n < t->lates && !t->failed; n++) {
                struct tlate *way = &t->late[n];

                t->places = way->places;
                t->real = way->real;
                t->recipe = way->recipe;
                switch (way->kind) {
                case TLATE_CALL: chain_with_flags(t, way->number, &way->from, way->target, way->backward); break;
                case TLATE_CALL_MISS: emit_call_miss(t, way); break;
                case TLATE_FLAGS: flags_emit_call(t, way); break;
                case TLATE_GROUP: group_emit_edge(t, way); break;
                default: flags_emit_maker(t, way); break;
                }
        }
}

static void emit_call(struct translation *t, struct tinsn *i)
{
        uint32_t target = (uint32_t)i->insn.imm;

        memory_look_up_at(t, i, X86_RSP, -8, 8, true);
        /* Without backward branches there is no cycle: RET comes back once for each CALL. */
        if ((int32_t)target <= (int32_t)i->insn.start) {
                flags_keep(t);
                t->places &= ~(unsigned)TPLACE_HOST;
                check_go(t, i);
        }
        push_return(t, i);
        if (in_page(target)) {
                call_in_page(t, target, is_backward(i));
        } else {
                load_target(t, target);
                call_cached(t);
        }
        return_point(t, i);
}

/* Canonical addresses have bits 47-63 alike. */
static void check_canonical(struct translation *t, struct asm_label *not_canonical)
{
        asm_mov(t->a, 8, TREG_SCRATCH, TREG_ADDRESS);
        asm_rr(t->a, 8, 0xc1, 7, TREG_SCRATCH); /* sar */
        asm_byte(t->a, 47);
        asm_alu_imm(t->a, 0, 8, TREG_SCRATCH, 1);
        asm_alu_imm(t->a, 7, 8, TREG_SCRATCH, 1);
        asm_jcc(t->a, ASM_NBE, not_canonical);
}

#define CALL_GS_BYTES 8

/*
 * The target is looked up before anything is stored, since one that is not canonical faults first (by the interpreter). Its host
 * address waits in a slot while the stack is looked up: that of the jump edge when it is not in the cache.
 */
static void emit_call_indirect(struct translation *t, struct tinsn *i)
{
        struct asm_label hit = { 0 }, both = { 0 }, *miss;
        struct tsite *site;
        uint32_t number;

        flags_keep(t);
        t->places &= ~(unsigned)TPLACE_HOST;
        load_indirect(t, i);
        check_go(t, i);
        asm_store(t->a, 8, temp(1), TREG_ADDRESS);
        probe(t);
        asm_jcc_short(t->a, ASM_Z, &hit);
        site = translate_site(t, TSITE_HANDLER, i, &number);
        check_canonical(t, translate_edge(t, site, number, TTHUNK_HANDLER));
        site = translate_site(t, TSITE_JUMP, NULL, &number);
        site->flags = TFLAGS_SAVED;
        miss = translate_edge(t, site, number, TTHUNK_JUMP);
        asm_lea_label(t->a, TREG_SCRATCH, miss);
        asm_jmp_short(t->a, &both);
        asm_bind(t->a, &hit);
        asm_load(t->a, 8, TREG_SCRATCH, cached(t, offsetof(struct tjump, host)));
        asm_bind(t->a, &both);
        asm_store(t->a, 8, temp(2), TREG_SCRATCH);
        memory_look_up_at(t, i, X86_RSP, -8, 8, true);
        push_return(t, i);
        flags_to_slot(t);
        asm_load(t->a, 8, TREG_ADDRESS, temp(1));
        align_return(t, CALL_GS_BYTES);
        asm_rm(t->a, 4, 0xff, 2, temp(2));
        return_point(t, i);
}

static void emit_ret(struct translation *t, struct tinsn *i)
{
        unsigned pop = 8 + (unsigned)i->insn.imm;
        struct asm_label other = { 0 };

        memory_look_up_at(t, i, X86_RSP, 0, 8, false);
        asm_load(t->a, 8, TREG_ADDRESS, memory_operand(t));
        flags_to_slot(t);
        if (shadow_mark(t)) {
                asm_lea(t->a, TREG_SCRATCH, asm_at(TREG_ADDRESS, shadow_mark(t)));
                asm_rm(t->a, 8, 0x3b, TREG_SCRATCH, asm_at(ASM_RSP, 8));
        } else {
                asm_rm(t->a, 8, 0x3b, TREG_ADDRESS, asm_at(ASM_RSP, 8));
        }
        asm_jcc(t->a, ASM_NZ, &other);
        asm_lea(t->a, treg_of(X86_RSP), asm_at(treg_of(X86_RSP), (int32_t)pop));
        asm_fit(t->a, 1);
        asm_byte(t->a, 0xc3);
        asm_bind(t->a, &other);
        jump_to_address(t, i, pop);
}

/* ---- choosing ---- */

#define CASE_JCC(cc) case ZYDIS_MNEMONIC_J##cc:

static temit_fn direct_or_not(const struct tinsn *i, temit_fn direct, temit_fn indirect)
{
        if (i->operand[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
                return direct;
        if (i->insn.opsize != 8 || (i->insn.flags & INSN_MEMORY && !memory_possible(i)))
                return NULL;
        return indirect;
}

temit_fn branch_translate(struct tinsn *i)
{
        temit_fn emit = NULL;
        bool conditional = false;

        if (i->z.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR || i->insn.imm + (1u << 31) > UINT32_MAX)
                return NULL;
        switch (i->z.mnemonic) {
                FOR_EACH_CONDITION(CASE_JCC)
                conditional = true;
                emit = i->insn.opsize == 2 ? NULL : emit_jcc;
                break;
        case ZYDIS_MNEMONIC_LOOP:
        case ZYDIS_MNEMONIC_JECXZ:
        case ZYDIS_MNEMONIC_JRCXZ:
                conditional = true;
                /* Within 127 bytes there is the way out to the same page only. */
                emit = i->insn.opsize == 2 || (counts(i) && !in_page((uint32_t)i->insn.imm)) ? NULL : emit_count_jump;
                break;
        case ZYDIS_MNEMONIC_JMP:
                emit = i->insn.opsize == 2 ? NULL : direct_or_not(i, emit_jmp, emit_jmp_indirect);
                if (emit == emit_jmp && i->insn.imm > i->insn.start && i->insn.imm < GUEST_PAGE_SIZE && i->followed) {
                        i->keeps_address = true;
                        return emit_followed;
                }
                break;
        case ZYDIS_MNEMONIC_CALL:
                emit = i->insn.opsize == 2 ? NULL : direct_or_not(i, emit_call, emit_call_indirect);
                break;
        case ZYDIS_MNEMONIC_RET: emit = i->insn.opsize == 8 && i->insn.imm <= UINT8_MAX - 8 ? emit_ret : NULL; break;
        default: break;
        }
        if (!emit)
                return NULL;
        i->site = true;
        i->hands_on = !conditional && !(emit == emit_jmp && in_page((uint32_t)i->insn.imm));
        i->ends = emit == emit_call || emit == emit_call_indirect ? !i->goes_on : !conditional || is_backward(i);
        if (i->hands_on) {
                i->reads = TFLAGS_ALL;
                i->writes = TFLAGS_ALL;
        }
        if (emit == emit_count_jump) /* on its way out it takes all along in the host's flags */
                i->reads = TFLAGS_ALL;
        i->keeps_address = emit == emit_jcc && !i->ends && in_page((uint32_t)i->insn.imm);
        if (emit == emit_call)
                i->access = TACCESS_PUSH;
        else if (emit == emit_ret)
                i->access = TACCESS_POP;
        return emit;
}
