/*
 * What translated code calls, and how C enters it.
 *
 * A thunk has saved the guest's general registers and the host's flags; the guest's vector registers are still in the host's.
 * This file and those it calls before translator_vectors_out() are compiled without vector instructions.
 *
 * Where rip and the flags are:
 *      jit.site             not 0: an instruction of that site is under way; s.rip is stale, GPR_BLOCK + tsite.at is it
 *      jit.flags_pending    the flags are still as the site says; else they are in cpu->lazy
 *      jit.status           while a fast handler runs, and from then on to the next block: the status flags, which cpu->lazy does not have
 * x86_raise() unwinds from here to the run loop, which calls translator_recover().
 *
 * go_on() is the end of every service that leaves its block: with s.rip and jit.status right, it finds the next block and goes on in
 * translated code, or, when the run loop has something to do, out.
 */
#include "cpu/x86/translator-internal.h"

#include "cpu/x86/block.h"
#include "cpu/x86/decode.h"
#include "cpu/x86/flags.h"
#include "cpu/x86/system.h"

static struct tsite site_at(const struct x86_cpu *cpu, uint64_t number)
{
        return tsite_of(cpu->translator, (uint32_t)number);
}

static const struct tblock *block_of(const struct x86_cpu *cpu, uint64_t number)
{
        return tblock_of(cpu->translator, (uint32_t)number);
}

static uint64_t rip_of(const struct x86_cpu *cpu, uint64_t number)
{
        return insn_rip(cpu, site_at(cpu, number).at);
}

static bool is_dead(const struct tblock *block)
{
        return __atomic_load_n(&block->dead, __ATOMIC_ACQUIRE);
}

/* ---- flags ---- */

/* By a note of the block that number is of. */
static uint64_t eflags_by(const struct x86_cpu *cpu, uint64_t number, unsigned own)
{
        struct tflags_recipe recipe = tnote_recipe(tblock_note(cpu->translator, block_of(cpu, number), own));

        return translator_flags_by(cpu, &recipe);
}

static uint64_t saved_eflags(const struct x86_cpu *cpu)
{
        uint32_t flags = cpu->jit.flags;

        if (!(flags & TFLAGS_REAL))
                return eflags_by(cpu, flags, flags & TNUMBER_OWN);
        return tflags_to_eflags((uint16_t)flags);
}

static uint64_t eflags_at(const struct x86_cpu *cpu, uint64_t number)
{
        const struct tsite site = site_at(cpu, number);

        switch (site.flags) {
        case TFLAGS_HOST:
                return tflags_to_eflags(cpu->jit.host_flags);
        case TFLAGS_SAVED:
                return saved_eflags(cpu);
        default:
                return eflags_by(cpu, number, site.note);
        }
}

/* The site's flags into cpu->lazy. */
static void flags_in(struct x86_cpu *cpu, uint64_t number)
{
        flags_set_status(cpu, eflags_at(cpu, number));
        cpu->jit.flags_pending = false;
}

/* The same into jit.status, which is where the next block or the run loop gets them from. */
static void status_in(struct x86_cpu *cpu, uint64_t number)
{
        cpu->jit.status = eflags_at(cpu, number);
}

static void status_from_lazy(struct x86_cpu *cpu)
{
        cpu->jit.status = flags_status(cpu);
}

static void status_to_lazy(struct x86_cpu *cpu)
{
        flags_set_status(cpu, cpu->jit.status);
        cpu->jit.flags_pending = false;
}

/* jit.status to where translated code may look for them. */
static void flags_out(struct x86_cpu *cpu)
{
        cpu->jit.host_flags = cpu->jit.flags = tflags_of_eflags(cpu->jit.status);
}

static void begin(struct x86_cpu *cpu, uint64_t number)
{
        unsigned note = site_at(cpu, number).note;
        uint32_t x87_op = note ? tblock_note(cpu->translator, block_of(cpu, number), note)->x87_op : 0;

        cpu->jit.site = (uint32_t)number;
        cpu->jit.flags_pending = true;
        if (x87_op) {
                cpu->jit.x87_op = x87_op;
                cpu->jit.x87_page = cpu->s.gpr[GPR_BLOCK];
        }
}

/* The site's instruction is behind us, or it is none: s.rip counts. */
static void at_rip(struct x86_cpu *cpu, uint64_t rip)
{
        cpu->s.rip = rip;
        cpu->jit.site = 0;
}

void translator_recover(struct x86_cpu *cpu)
{
        if (cpu->jit.site) {
                if (cpu->jit.flags_pending)
                        flags_in(cpu, cpu->jit.site);
                cpu->s.rip = rip_of(cpu, cpu->jit.site);
                cpu->jit.site = 0;
        }
        translator_outside(cpu);
}

/* ---- on to the next block ---- */

static bool run_loop_wanted(struct x86_cpu *cpu)
{
        uint32_t requests = atomic_load_explicit(&cpu->requests, memory_order_acquire);

        if ((requests && requests & x86_request_mask(cpu)) || !atomic_load_explicit(&cpu->jit.go, memory_order_relaxed) || cpu->s.halted ||
            cpu->mode_key & MODE_STEP || !cpu->mode64 || cpu->tlb_mode == TLB_CHECKED || cpu->translator->lock_step)
                return true;
        /* Nothing waits for the shadow's end, and the next instruction comes before the next look at jit.go. */
        cpu->s.interrupt_shadow = false;
        return false;
}

static const void *host_at(const struct x86_cpu *cpu, uint32_t at)
{
        return (const void *)(cpu->jit.code + at);
}

/* Code of the site's block. */
static const void *code_at(const struct x86_cpu *cpu, uint64_t number, uint16_t offset)
{
        return host_at(cpu, block_of(cpu, number)->host + offset);
}

/* With the flags in cpu->lazy. */
static const void *out(struct x86_cpu *cpu)
{
        translator_vectors_out(cpu);
        return NULL;
}

static const void *out_with_status(struct x86_cpu *cpu)
{
        status_to_lazy(cpu);
        return out(cpu);
}

static const void *enter_direct(struct x86_cpu *cpu, const struct tblock *block, uint64_t rip)
{
        cpu->s.gpr[GPR_BLOCK] = TPAGE_BASE(rip);
        cpu->jit.site = 0;
        return host_at(cpu, block->host);
}

/* The jump caches are for the mode as it is. */
static void check_jump_key(struct x86_cpu *cpu)
{
        uint32_t key = translation_key(cpu) & ~(MODE_USER | 7u << 28);

        if (key == cpu->jit.jump_key)
                return;
        tjump_forget(cpu, TJUMPS_ALL);
        cpu->jit.jump_key = key;
}

/* What the jump cache has for rip: code to go on with, or NULL. */
static const void *enter_known(struct x86_cpu *cpu, uint64_t rip)
{
        const struct tjump *jump = tjump_find(cpu, rip);

        if (!jump || !x86_canonical(rip))
                return NULL;
        cpu->s.gpr[GPR_BLOCK] = TPAGE_BASE(rip);
        cpu->jit.site = 0;
        return (const void *)(uintptr_t)(jump->host - TBLOCK_JUMP);
}

/* The block at gpa, be it one instruction that goes on in the next page. */
static struct tblock *lookup_any(const struct translator *tr, uint64_t gpa, uint32_t key)
{
        struct tblock *block = translator_lookup(tr, gpa, key);

        if (!block && (gpa & (GUEST_PAGE_SIZE - 1)) > GUEST_PAGE_SIZE - INSN_LENGTH_MAX)
                block = translator_lookup(tr, gpa, key | TKEY_CROSSING);
        return block;
}

/* The block at rip, which is where execution stands; NULL: the run loop's turn. May raise what fetching raises; the flags are in jit.status. */
static const struct tblock *next_block(struct x86_cpu *cpu, uint64_t rip)
{
        uint32_t key = translation_key(cpu);
        const struct tblock *block;
        const uint8_t *host;
        uint64_t gpa;

        if (!x86_canonical(rip))
                return NULL;
        if (!mmu_fetch_cached(cpu, rip)) {
                status_to_lazy(cpu);
                translator_vectors_out(cpu);
        }
        gpa = mmu_fetch(cpu, rip, &host);
        block = lookup_any(cpu->translator, gpa, key);
        if (block)
                tjump_set(cpu, rip, host_at(cpu, block->host + TBLOCK_JUMP));
        return block;
}

static const void *go_on(struct x86_cpu *cpu, bool new_mode)
{
        const struct tblock *block;
        const void *known;

        cpu->jit.flags_pending = false;
        if (run_loop_wanted(cpu))
                return out_with_status(cpu);
        if (new_mode)
                cpu->jit.rsp = cpu->jit.shadow_base;
        check_jump_key(cpu);
        known = enter_known(cpu, cpu->s.rip);
        if (known) {
                flags_out(cpu);
                return known;
        }
        block = next_block(cpu, cpu->s.rip);
        if (!block)
                return out_with_status(cpu);
        flags_out(cpu);
        return enter_direct(cpu, block, cpu->s.rip);
}

/* ---- an instruction by its handler ---- */

#define BRANCH_CASE(cc) case ZYDIS_MNEMONIC_J##cc:

/* Their handlers go by cpu->block, which translated code has none of. */
static bool is_branch(const struct insn *insn)
{
        switch (insn->op) {
                FOR_EACH_CONDITION(BRANCH_CASE)
        case ZYDIS_MNEMONIC_CALL:
        case ZYDIS_MNEMONIC_RET:
        case ZYDIS_MNEMONIC_JMP:
        case ZYDIS_MNEMONIC_LOOP:
        case ZYDIS_MNEMONIC_LOOPE:
        case ZYDIS_MNEMONIC_LOOPNE:
        case ZYDIS_MNEMONIC_JCXZ:
        case ZYDIS_MNEMONIC_JECXZ:
        case ZYDIS_MNEMONIC_JRCXZ:
                return true;
        default:
                return false;
        }
}

/* By the run loop, from the instruction on. */
static const void *interpret_at(struct x86_cpu *cpu, uint64_t number)
{
        if (cpu->jit.flags_pending)
                flags_in(cpu, number);
        at_rip(cpu, rip_of(cpu, number));
        cpu->jit.interpret = true;
        return out(cpu);
}

/* Behind the site's instruction; the flags are in jit.status. The rest of the block is not for what comes when bytes or the key changed. */
static const void *handled(struct x86_cpu *cpu, uint64_t number, const struct insn *insn, bool same_key)
{
        const struct tsite site = site_at(cpu, number);

        if (same_key && site.next && !is_dead(block_of(cpu, number)) && (!site.x87 || translator_x87_load(cpu))) {
                cpu->jit.site = 0;
                flags_out(cpu);
                return code_at(cpu, number, site.next);
        }
        at_rip(cpu, insn_rip(cpu, insn->end));
        return go_on(cpu, !same_key);
}

static const void *run_handler(struct x86_cpu *cpu, uint64_t number)
{
        uint32_t key = translation_key(cpu);
        const struct insn *insn = translator_decoded(cpu, number)->insn, *next;
        bool same;

        if (is_branch(insn))
                return interpret_at(cpu, number);
        if (cpu->jit.flags_pending)
                flags_in(cpu, number);
        cpu->insn = insn;
        if (unlikely(cpu->stats))
                cpu->stats->handler[insn->op]++;
        translator_vectors_out(cpu);
        cpu->request_mask = x86_request_mask(cpu); /* the handler of a long instruction with REP goes by it */
        do
                next = insn->fn(cpu, insn);
        while (next == insn);
        status_from_lazy(cpu);
        same = translation_key(cpu) == key; /* STAC, CLAC … */
        if (next == insn + 1)
                return handled(cpu, number, insn, same);
        if (next) { /* the interpreter's next block, begun: back to its start */
                cpu->s.rip = cpu->s.gpr[GPR_BLOCK];
                cpu->block = NULL;
        }
        cpu->jit.site = 0;
        return go_on(cpu, !same);
}

/* A fast handler raises nothing, and finds and leaves the flags in jit.status. */
static const void *run_fast(struct x86_cpu *cpu, uint64_t number)
{
        const struct tdecoded *decoded = translator_decoded(cpu, number);
        uint32_t key = translation_key(cpu);

        if (!decoded->fast)
                return run_handler(cpu, number);
        status_in(cpu, number);
        switch (decoded->fast(cpu, decoded->insn)) {
        case FAST_NEXT:
                return handled(cpu, number, decoded->insn, translation_key(cpu) == key);
        case FAST_LEFT:
                cpu->jit.site = 0;
                return go_on(cpu, translation_key(cpu) != key);
        default:
                status_to_lazy(cpu); /* the registers that a recipe goes by may have changed */
                return run_handler(cpu, number);
        }
}

/* ---- services ---- */

/*
 * The access can be tried again; nothing has been looked at that could have unmasked an exception. A processor that is wanted elsewhere
 * leaves from here, too: whatever keeps an access from its second try, such a processor can be stopped.
 */
static const void *retry(struct x86_cpu *cpu, uint64_t number)
{
        const struct tsite site = site_at(cpu, number);

        if (unlikely(!atomic_load_explicit(&cpu->jit.go, memory_order_relaxed)))
                return interpret_at(cpu, number);
        if (site.x87)
                translator_x87_load(cpu);
        cpu->jit.site = 0;
        return code_at(cpu, number, site.retry);
}

static uint64_t access_address(struct x86_cpu *cpu, uint64_t number)
{
        const struct tsite site = site_at(cpu, number);
        const struct insn *insn;
        uint64_t address;

        if (site.stack)
                return cpu->s.gpr[X86_RSP] - (site.write ? site.size_bytes : 0);
        insn = translator_decoded(cpu, number)->insn;
        address = insn_offset(cpu, insn);
        return insn->seg >= X86_FS ? address + cpu->s.seg[insn->seg].base : address;
}

static bool in_one_page(uint64_t linear, unsigned size_bytes)
{
        return (linear & (GUEST_PAGE_SIZE - 1)) <= GUEST_PAGE_SIZE - size_bytes;
}

static const void *deliver_fault(struct x86_cpu *cpu, uint64_t number, const struct fast_fault *fault)
{
        status_in(cpu, number);
        at_rip(cpu, rip_of(cpu, number));
        fast_fault_deliver(cpu, fault);
        return go_on(cpu, true);
}

/* Without the group: nothing of it has been done. link: as from now on. */
static const void *go_on_plain(struct x86_cpu *cpu, uint64_t number, bool link)
{
        struct translator *tr = cpu->translator;
        uint64_t rip = rip_of(cpu, number);
        struct tblock *plain;

        flags_in(cpu, number);
        at_rip(cpu, rip);
        if (run_loop_wanted(cpu)) {
                cpu->jit.plain = tr->lock_step;
                cpu->jit.interpret = !tr->lock_step;
                return out(cpu);
        }
        translator_vectors_out(cpu);
        plain = translator_plain(cpu, block_of(cpu, number), site_at(cpu, number).at);
        if (!plain) {
                cpu->jit.interpret = true;
                return NULL;
        }
        if (link)
                translator_link(tr, (uint32_t)number, plain);
        status_from_lazy(cpu);
        flags_out(cpu);
        return enter_direct(cpu, plain, rip);
}

/*
 * A group's look-up failed. Whatever its first instruction meets is raised here as it would be without a group; what the others
 * would is for the plain block.
 */
static const void *serve_group(struct x86_cpu *cpu, uint64_t number, uint64_t linear)
{
        const struct tsite site = site_at(cpu, number);
        uint64_t span = linear - site.below;
        struct fast_fault fault;

        if (mmu_fill_fast(cpu, span, site.span, site.span_write))
                return retry(cpu, number);
        if (!in_one_page(span, site.span))
                return go_on_plain(cpu, number, true);
        if (!site.size_bytes || !x86_canonical(linear))
                return go_on_plain(cpu, number, false);
        if (fast_fault_prepare(cpu, linear, site.size_bytes, site.write, &fault))
                return deliver_fault(cpu, number, &fault);
        translator_vectors_out(cpu);
        if (mmu_fill(cpu, linear, site.size_bytes, site.write) && tlb_find(cpu, span, site.span, site.span_write))
                return retry(cpu, number);
        return go_on_plain(cpu, number, false);
}

const void *translator_serve_memory(struct x86_cpu *cpu, uint64_t number, uint64_t rbp)
{
        const struct tsite site = site_at(cpu, number);
        uint64_t linear = access_address(cpu, number);
        struct fast_fault fault;

        begin(cpu, number);
        cpu->jit.tlb_misses++;
        if (site.kind == TSITE_GROUP)
                return serve_group(cpu, number, linear);
        if (unlikely(!site.size_bytes))
                return run_handler(cpu, number);
        if (mmu_fill_fast(cpu, linear, site.size_bytes, site.write))
                return retry(cpu, number);
        if (fast_fault_prepare(cpu, linear, site.size_bytes, site.write, &fault))
                return deliver_fault(cpu, number, &fault);
        translator_vectors_out(cpu);
        if (x86_canonical(linear) && mmu_fill(cpu, linear, site.size_bytes, site.write))
                return retry(cpu, number);
        return run_fast(cpu, number);
}

const void *translator_serve_handler(struct x86_cpu *cpu, uint64_t number, uint64_t rbp)
{
        begin(cpu, number);
        cpu->jit.handlers++;
        return run_fast(cpu, number);
}

const void *translator_serve_chain(struct x86_cpu *cpu, uint64_t number, uint64_t rbp)
{
        const struct tblock *block = block_of(cpu, number);
        const struct tsite site = site_at(cpu, number);
        struct translator *tr = cpu->translator;
        struct tblock *to;

        cpu->jit.chains++;
        if (!is_dead(block)) {
                to = lookup_any(tr, TPAGE_BASE(block->gpa) | site.at, translation_key(cpu));
                if (to && !tr->lock_step) {
                        translator_vectors_out(cpu);
                        translator_link(tr, (uint32_t)number, to);
                        cpu->jit.flags = cpu->jit.host_flags;
                        return host_at(cpu, to->host);
                }
        }
        cpu->jit.status = tflags_to_eflags(cpu->jit.host_flags);
        at_rip(cpu, rip_of(cpu, number));
        return go_on(cpu, false);
}

const void *translator_serve_jump(struct x86_cpu *cpu, uint64_t number, uint64_t rbp)
{
        const struct tsite site = site_at(cpu, number);

        begin(cpu, number);
        cpu->jit.jumps++;
        if (unlikely(!x86_canonical(rbp)) && site.checked) {
                translator_vectors_out(cpu);
                x86_gp0(cpu);
        }
        cpu->s.gpr[X86_RSP] += site.size_bytes;
        status_in(cpu, number);
        at_rip(cpu, rbp);
        return go_on(cpu, false);
}

/* At rbp with another privilege; the flags are in jit.flags. */
const void *translator_serve_arrive(struct x86_cpu *cpu, uint64_t number, uint64_t rbp)
{
        cpu->jit.jumps++;
        cpu->jit.status = saved_eflags(cpu);
        at_rip(cpu, rbp);
        return go_on(cpu, true);
}

const void *translator_serve_go(struct x86_cpu *cpu, uint64_t number, uint64_t rbp)
{
        cpu->jit.asked++;
        flags_in(cpu, number);
        at_rip(cpu, rip_of(cpu, number));
        return out(cpu);
}

/*
 * An instruction on two pages whose second page is not as it was: translated anew, or interpreted here, with what the interpreter chains to it,
 * so that the way back is short. The shadow stack stays when calls and returns were even.
 */
const void *translator_serve_leave(struct x86_cpu *cpu, uint64_t number, uint64_t rbp)
{
        uint64_t rip = rip_of(cpu, number), sp = cpu->s.gpr[X86_RSP];
        uint32_t key = translation_key(cpu);
        const struct tblock *block;

        cpu->jit.left++;
        flags_in(cpu, number);
        at_rip(cpu, rip);
        if (run_loop_wanted(cpu)) {
                cpu->jit.interpret = true;
                return out(cpu);
        }
        translator_vectors_out(cpu); /* what is called from here on may use vector registers */
        block = translator_find_crossing(cpu, rip);
        if (!block)
                block = translator_make_crossing(cpu, rip);
        if (block) {
                status_from_lazy(cpu);
                flags_out(cpu);
                return enter_direct(cpu, block, rip);
        }
        cpu->request_mask = x86_request_mask(cpu);
        block_run(cpu);
        status_from_lazy(cpu);
        return go_on(cpu, translation_key(cpu) != key || cpu->s.gpr[X86_RSP] != sp);
}

const void *translator_serve_x87(struct x86_cpu *cpu, uint64_t number, uint64_t rbp)
{
        begin(cpu, number);
        if (!translator_x87_load(cpu))
                return interpret_at(cpu, number);
        cpu->jit.site = 0;
        return code_at(cpu, number, site_at(cpu, number).retry);
}

/* A place in a block that its host address names, where a host RET comes back to. */
static bool is_return(const struct translator *tr, const struct tblock *block, uint32_t at)
{
        struct tsite site;

        for (unsigned own = 1; own <= block->sites; own += tsite_units(site.kind)) {
                site = tblock_site(tr, block, own);
                if (site.kind == TSITE_RETURN && block->host + site.patch == at)
                        return true;
        }
        return false;
}

/*
 * A dead block was entered, or a call returned into it: host is the address behind the call that its entry, or the place behind the
 * host's CALL, has become.
 */
const void *translator_serve_stale(struct x86_cpu *cpu, uint64_t host, uint64_t rbp)
{
        struct translator *tr = cpu->translator;
        const struct tblock *block = NULL;
        uint32_t at;

        cpu->jit.stale++;
        if (code_cache_holds(tr->cache, host - 5, &at))
                block = translator_block_at(tr, at);
        if (!block)
                __builtin_trap();
        cpu->jit.flags_pending = false;
        if (at == block->host) {
                cpu->jit.status = tflags_to_eflags(cpu->jit.host_flags);
                at_rip(cpu, cpu->s.gpr[GPR_BLOCK] | (block->gpa & (GUEST_PAGE_SIZE - 1)));
        } else {
                cpu->jit.status = saved_eflags(cpu);
                at_rip(cpu, rbp);
                if (is_return(tr, block, at))
                        cpu->jit.rsp += 8; /* the guest's return address */
        }
        if (cpu->tlb_mode != TLB_CHECKED)
                tjump_drop(cpu, cpu->s.rip); /* what it names may be this block */
        return go_on(cpu, false);
}

/* ---- entering ---- */

void translator_enter(struct x86_cpu *cpu, const struct tblock *block)
{
        struct translator *tr = cpu->translator;
        void (*enter)(struct x86_cpu *) = (void (*)(struct x86_cpu *))(uintptr_t)code_cache_rx(tr->cache, tr->thunk[TTHUNK_ENTER]);

        cpu->jit.entered++;
        cpu->jit.rsp = cpu->jit.shadow_base;
        cpu->jit.resume = (uintptr_t)enter_direct(cpu, block, cpu->s.rip);
        status_from_lazy(cpu);
        flags_out(cpu);
        enter(cpu);
        translator_outside(cpu);
}
