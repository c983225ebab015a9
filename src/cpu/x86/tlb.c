/*
 * The soft TLB: filling, dropping, spaces (tlb.h says what they are).
 *
 * Translations are kept for 4 KiB each, also those of large pages; entries say so, because INVLPG of any address in a large
 * page must drop all of it. A set keeps a filter of the large pages it may have entries of, so that other addresses cost one entry.
 *
 * Spaces and PCIDs. A space holds translations of one PCID. What is global is in it too (a supervisor with AC set uses its own
 * set), so dropping a global page looks through all spaces, and giving a space to another PCID keeps them. Without CR4.PCIDE
 * there is PCID 0 only, and each load of CR3 drops what is not global. Shared tables hold what is global and, while their space is
 * current, others ("locals"); leaving the space drops these. A processor may drop any translation at any time, so a space that is
 * wanted for a PCID that none has is taken from the one that was used least recently.
 *
 * Jump caches follow the exec TLBs: what drops a translation for fetching empties the jump cache of the same space. The exec TLB may
 * have forgotten a page that the jump cache still knows, so it is its filter that says whether INVLPG concerns either.
 *
 * Compiled without vector instructions: translated code calls it while the guest's vector registers are in the host's.
 *
 * Source: Intel SDM vol. 3A §4.10 (caching translation information), §4.10.4 (invalidation).
 */
#include <asm/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu/x86/cpuid.h"
#include "cpu/x86/system.h"

#define TLB_NONE UINT64_MAX /* tag of the exec TLB */

/* n of each bit that is set. */
#define FOR_EACH_BIT(n, bits) \
        for (uint64_t left_##n = (bits), n; left_##n && (n = (unsigned)__builtin_ctzll(left_##n), true); left_##n &= left_##n - 1)

/* ---- filters ---- */

static unsigned filter_bit(uint64_t number, unsigned bits)
{
        return (unsigned)(number * UINT64_C(0x9e3779b97f4a7c15) >> (64 - bits));
}

static void filter_set(uint64_t *filter, uint64_t number, unsigned bits)
{
        unsigned bit = filter_bit(number, bits);

        filter[bit / 64] |= 1ull << (bit % 64);
}

static bool filter_test(const uint64_t *filter, uint64_t number, unsigned bits)
{
        unsigned bit = filter_bit(number, bits);

        return filter[bit / 64] >> (bit % 64) & 1;
}

static void large_add(struct tlb_large *large, uint64_t linear, uint64_t flags)
{
        if (flags & TLB_LARGE_2M)
                filter_set(large->in_4m, linear >> 22, TLB_FILTER_4M_BITS);
        if (flags & TLB_LARGE_1G)
                filter_set(large->in_1g, linear >> 30, TLB_FILTER_1G_BITS);
}

/* The TLB_LARGE flags of pages around linear that there may be. */
static unsigned large_around(const struct tlb_large *large, uint64_t linear)
{
        return (filter_test(large->in_4m, linear >> 22, TLB_FILTER_4M_BITS) ? TLB_LARGE_2M : 0) |
               (filter_test(large->in_1g, linear >> 30, TLB_FILTER_1G_BITS) ? TLB_LARGE_1G : 0);
}

/* ---- one set; tags and bitmaps are read by other processors: mmu_holds_write_tag() ---- */

static void entry_drop(struct tlb_set *set, unsigned index)
{
        __atomic_store_n(&set->read_tag[index], tlb_empty_tag(index), __ATOMIC_RELAXED);
        __atomic_store_n(&set->write_tag[index], tlb_empty_tag(index), __ATOMIC_RELAXED);
}

static void entry_drop_write(struct tlb_set *set, unsigned index)
{
        __atomic_store_n(&set->write_tag[index], tlb_empty_tag(index), __ATOMIC_RELAXED);
}

static void used_store(struct tlb_used *used, unsigned word, uint64_t bits)
{
        uint64_t summary = used->summary & ~(1ull << word);

        __atomic_store_n(&used->word[word], bits, __ATOMIC_RELEASE);
        __atomic_store_n(&used->summary, bits ? summary | 1ull << word : summary, __ATOMIC_RELEASE);
}

static void used_clear(struct tlb_used *used, unsigned index)
{
        if (used->word[index / 64] >> (index % 64) & 1)
                used_store(used, index / 64, used->word[index / 64] & ~(1ull << (index % 64)));
}

static void set_reset(struct tlb_set *set)
{
        for (unsigned index = 0; index < TLB_ENTRIES; index++)
                entry_drop(set, index);
}

static void set_flush(struct tlb_set *set, struct tlb_used *used, bool global_too)
{
        FOR_EACH_BIT(word, used->summary) {
                uint64_t keep = 0;

                FOR_EACH_BIT(bit, used->word[word]) {
                        unsigned index = (unsigned)(word * 64 + bit);

                        if (!global_too && set->gpa[index] & TLB_GLOBAL)
                                keep |= 1ull << bit;
                        else
                                entry_drop(set, index);
                }
                used_store(used, (unsigned)word, keep);
        }
        if (!used->summary) {
                used->large = (struct tlb_large){ 0 };
                used->low_global = false;
        }
}

/* Whether a translation of page (with its TLB_LARGE flags) goes away with linear's. */
static bool covers(uint64_t page, uint64_t flags, uint64_t linear)
{
        unsigned shift = flags & TLB_LARGE_1G ? 30 : flags & TLB_LARGE_2M ? 22 : 12;

        return !((page ^ linear) >> shift);
}

/* Entries of large pages: those of 2M or 4M lie side by side. */
static void set_flush_large(struct tlb_set *set, struct tlb_used *used, uint64_t linear, uint64_t wanted, unsigned around)
{
        const unsigned words_4m = (4u << 20 >> 12) / 64;
        unsigned first = around & TLB_LARGE_1G ? 0 : tlb_index(linear) / 64 & ~(words_4m - 1);
        unsigned end = around & TLB_LARGE_1G ? TLB_ENTRIES / 64 : first + words_4m;

        for (unsigned word = first; word < end; word++) {
                uint64_t keep = used->word[word];

                FOR_EACH_BIT(bit, keep & used->large_word[word]) {
                        unsigned index = (unsigned)(word * 64 + bit);

                        if ((set->gpa[index] & wanted) != wanted || !covers(set->read_tag[index], set->gpa[index], linear))
                                continue;
                        entry_drop(set, index);
                        keep &= ~(1ull << bit);
                }
                if (keep != used->word[word])
                        used_store(used, word, keep);
        }
}

/* wanted: TLB_GLOBAL when only a global page is dropped, else 0. */
static void set_flush_page(struct tlb_set *set, struct tlb_used *used, uint64_t linear, uint64_t wanted)
{
        unsigned index = tlb_index(linear), around;

        if (wanted && !(linear >> 63) && !used->low_global)
                return;
        around = large_around(&used->large, linear);
        if (around)
                set_flush_large(set, used, linear, wanted, around);
        if (set->read_tag[index] == (linear & ~0xfffull) && (set->gpa[index] & wanted) == wanted) {
                entry_drop(set, index);
                used_clear(used, index);
        }
}

/* ---- exec TLBs ---- */

static void exec_reset(struct tlb_exec_entry *exec, struct tlb_exec_used *used)
{
        for (unsigned i = 0; i < TLB_EXEC_ENTRIES; i++)
                exec[i].tag = TLB_NONE;
        *used = (struct tlb_exec_used){ 0 };
}

/* These two: whether something was dropped. */
static bool exec_flush(struct tlb_exec_entry *exec, struct tlb_exec_used *used, bool global_too)
{
        bool dropped = false;

        for (unsigned word = 0; word < TLB_EXEC_ENTRIES / 64; word++) {
                uint64_t keep = 0;

                FOR_EACH_BIT(bit, used->word[word]) {
                        struct tlb_exec_entry *e = &exec[word * 64 + bit];

                        if (!global_too && e->flags & TLB_GLOBAL) {
                                keep |= 1ull << bit;
                        } else {
                                e->tag = TLB_NONE;
                                dropped = true;
                        }
                }
                used->word[word] = keep;
        }
        return dropped;
}

/* Whether the table, or what was replaced in it, may have a page around linear. */
static bool exec_may_know(const struct tlb_exec_used *used, uint64_t linear)
{
        if (linear < used->first || linear > used->last)
                return false;
        return filter_test(used->page, linear >> 12, TLB_FILTER_PAGE_BITS) || large_around(&used->large, linear);
}

static bool exec_is_empty(const struct tlb_exec_used *used)
{
        uint64_t all = 0;

        for (unsigned word = 0; word < TLB_EXEC_ENTRIES / 64; word++)
                all |= used->word[word];
        return !all;
}

/* exec and the jump caches are empty of all but what is in exec now. */
static void exec_forgot_jumps(struct tlb_exec_used *used)
{
        if (exec_is_empty(used))
                *used = (struct tlb_exec_used){ 0 };
}

/* False when jump caches cannot know the page either. */
static bool exec_flush_page(struct tlb_exec_entry *exec, struct tlb_exec_used *used, uint64_t linear, uint32_t wanted)
{
        if (!exec_may_know(used, linear))
                return false;
        for (unsigned word = 0; word < TLB_EXEC_ENTRIES / 64; word++)
                FOR_EACH_BIT(bit, used->word[word]) {
                        struct tlb_exec_entry *e = &exec[word * 64 + bit];

                        if ((e->flags & wanted) != wanted || !covers(e->tag, e->flags, linear))
                                continue;
                        e->tag = TLB_NONE;
                        used->word[word] &= ~(1ull << bit);
                }
        return true;
}

/* One of 2M counts as the 4M it may be in. */
static void range_add(struct tlb_exec_used *used, uint64_t linear, uint32_t flags)
{
        uint64_t mask = (1ull << (flags & TLB_LARGE_1G ? 30 : flags & TLB_LARGE_2M ? 22 : 12)) - 1, last = linear | mask;

        linear &= ~mask;
        if (!used->last || linear < used->first)
                used->first = linear;
        if (last > used->last)
                used->last = last;
}

void tlb_fill_exec(struct x86_cpu *cpu, uint64_t linear, uint64_t gpa, uint32_t flags, const uint8_t *host)
{
        bool user = cpu->cpl == 3;
        unsigned index = tlb_exec_index(linear);
        struct tlb_exec_entry *e = &cpu->exec[user][index];
        struct tlb_exec_used *used = user ? &cpu->spaces[cpu->space_index].exec_used : &cpu->shared_exec_used;
        uint64_t page = linear & ~0xfffull;

        if (!user && !(flags & TLB_GLOBAL))
                cpu->shared_exec_locals = true;
        *e = (struct tlb_exec_entry){ .tag = page, .gpa = gpa, .host = host, .flags = flags };
        used->word[index / 64] |= 1ull << (index % 64);
        range_add(used, linear, flags);
        if (flags & (TLB_LARGE_2M | TLB_LARGE_1G))
                large_add(&used->large, linear, flags);
        else
                filter_set(used->page, linear >> 12, TLB_FILTER_PAGE_BITS);
}

/* ---- jump caches ---- */

static void jumps_empty(struct tjump *jump, unsigned entries, struct tjump_fills *fills)
{
        if (fills->count > TJUMP_FILLS) {
                for (unsigned i = 0; i < entries; i++)
                        jump[i].rip = tjump_empty_rip(i);
        } else {
                for (unsigned i = 0; i < fills->count; i++)
                        jump[fills->at[i]].rip = tjump_empty_rip(fills->at[i]);
        }
        fills->count = 0;
}

static struct tjump *jump_at(struct x86_cpu *cpu, uint64_t rip)
{
        return (cpu->tlb_mode == TLB_USER ? cpu->space->jump : cpu->jit.jump[cpu->tlb_mode]) + tjump_index(cpu->tlb_mode, rip);
}

static uint32_t generation_of(const struct x86_cpu *cpu)
{
        return cpu->tlb_mode == TLB_USER ? cpu->space->generation : cpu->jit.generation;
}

void tjump_set(struct x86_cpu *cpu, uint64_t rip, const void *host)
{
        unsigned mode = cpu->tlb_mode, index = tjump_index(mode, rip);
        struct tjump_fills *fills = mode == TLB_USER ? &cpu->spaces[cpu->space_index].fills : &cpu->jump_fills[mode];
        uint32_t generation = generation_of(cpu);

        if (fills->count < TJUMP_FILLS)
                fills->at[fills->count++] = (uint16_t)index;
        else
                fills->count = TJUMP_FILLS + 1;
        *jump_at(cpu, rip) = (struct tjump){ rip, (uintptr_t)host };
        if (mode != TLB_SUPERVISOR)
                cpu->jit.second[tjump_second_index(rip, generation)] =
                        (struct tjump_second){ .rip = rip, .host = (uint32_t)((uintptr_t)host - cpu->jit.code), .generation = generation };
}

static struct tjump_second *second_find(struct x86_cpu *cpu, uint64_t rip)
{
        uint32_t generation = generation_of(cpu);
        struct tjump_second *second = &cpu->jit.second[tjump_second_index(rip, generation)];

        return cpu->tlb_mode != TLB_SUPERVISOR && second->rip == rip && second->generation == generation ? second : NULL;
}

/* What the second table knows has its place in the jump cache among the fills since both forgot. */
const struct tjump *tjump_find(struct x86_cpu *cpu, uint64_t rip)
{
        struct tjump *jump = jump_at(cpu, rip);
        const struct tjump_second *second;

        if (jump->rip == rip)
                return jump;
        second = second_find(cpu, rip);
        if (!second)
                return NULL;
        *jump = (struct tjump){ rip, cpu->jit.code + second->host };
        return jump;
}

void tjump_drop(struct x86_cpu *cpu, uint64_t rip)
{
        struct tjump *jump = jump_at(cpu, rip);
        struct tjump_second *second = second_find(cpu, rip);

        if (jump->rip == rip)
                jump->rip = tjump_empty_rip(tjump_index(cpu->tlb_mode, rip));
        if (second)
                second->generation = 0;
}

static struct x86_space *space_at(struct x86_cpu *cpu, unsigned n)
{
        return &((struct x86_cpu *)((uintptr_t)cpu + n * X86_WINDOW_BYTES))->own;
}

/* Not by memset(), which may use the vector registers: the guest's are in them. */
static void clear_plainly(void *to, size_t size_bytes)
{
        __asm__ volatile("rep stosb" : "+D"(to), "+c"(size_bytes) : "a"(0) : "memory");
}

/* One that no entry has. */
static uint32_t new_generation(struct x86_cpu *cpu)
{
        if (!++cpu->jit.generations) {
                clear_plainly(cpu->jit.second, sizeof(cpu->jit.second));
                cpu->jit.generation = ++cpu->jit.generations;
                for (unsigned n = 0; n < X86_SPACES; n++)
                        if (cpu->spaces[n].ready)
                                space_at(cpu, n)->generation = ++cpu->jit.generations;
                cpu->jit.generations++;
        }
        return cpu->jit.generations;
}

static void space_forget_jumps(struct x86_cpu *cpu, unsigned n)
{
        if (!cpu->spaces[n].ready)
                return;
        jumps_empty(space_at(cpu, n)->jump, TJUMP_ENTRIES, &cpu->spaces[n].fills);
        space_at(cpu, n)->generation = new_generation(cpu);
        exec_forgot_jumps(&cpu->spaces[n].exec_used);
}

void tjump_forget(struct x86_cpu *cpu, unsigned scope)
{
        cpu->jit.flushes++;
        if (scope & TJUMPS_ALL)
                for (unsigned n = 0; n < X86_SPACES; n++)
                        space_forget_jumps(cpu, n);
        else if (scope & TJUMPS_SPACE)
                space_forget_jumps(cpu, cpu->space_index);
        if (scope & (TJUMPS_ALL | TJUMPS_SHARED)) {
                for (unsigned i = 0; i < 2; i++)
                        jumps_empty(cpu->jit.jump[i], TJUMP_KERNEL_ENTRIES, &cpu->jump_fills[i]);
                cpu->jit.generation = new_generation(cpu);
                exec_forgot_jumps(&cpu->shared_exec_used);
        }
        cpu->jit.rsp = cpu->jit.shadow_base;
}

/* ---- spaces ---- */

/* The first time only: a space that is never used takes no memory. */
static void space_make_ready(struct x86_cpu *cpu, unsigned n)
{
        struct x86_space *space = space_at(cpu, n);
        struct x86_space_info *info = &cpu->spaces[n];

        if (info->ready)
                return;
        set_reset(&space->supervisor);
        set_reset(&space->user);
        exec_reset(space->exec, &info->exec_used);
        info->fills.count = TJUMP_FILLS + 1;
        jumps_empty(space->jump, TJUMP_ENTRIES, &info->fills);
        space->generation = new_generation(cpu);
        info->ready = true;
}

static void space_flush(struct x86_cpu *cpu, unsigned n, bool global_too)
{
        struct x86_space_info *info = &cpu->spaces[n];
        struct x86_space *space;

        if (!info->ready)
                return;
        space = space_at(cpu, n);
        set_flush(&space->supervisor, &info->supervisor, global_too);
        set_flush(&space->user, &info->user, global_too);
        if (exec_flush(space->exec, &info->exec_used, global_too) || info->fills.count)
                space_forget_jumps(cpu, n);
}

/* What the shared tables hold of the current space. */
static void shared_drop_locals(struct x86_cpu *cpu)
{
        if (cpu->shared_locals.count > TLB_LOCALS) {
                set_flush(&cpu->shared, &cpu->shared_used, false);
        } else {
                for (unsigned i = 0; i < cpu->shared_locals.count; i++) {
                        unsigned index = cpu->shared_locals.at[i];

                        if (cpu->shared.gpa[index] & TLB_GLOBAL)
                                continue; /* another page is there now */
                        entry_drop(&cpu->shared, index);
                        used_clear(&cpu->shared_used, index);
                }
        }
        cpu->shared_locals.count = 0;
        if (cpu->shared_exec_locals) {
                exec_flush(cpu->shared_exec, &cpu->shared_exec_used, false);
                cpu->shared_exec_locals = false;
                tjump_forget(cpu, TJUMPS_SHARED);
        }
}

static void host_gs_base(struct x86_cpu *cpu)
{
        if (!cpu->jit.self)
                return; /* no translator */
        if (cpu->host_fsgsbase)
                __asm__ volatile("wrgsbase %0" ::"r"(cpu->window));
        else
                syscall(SYS_arch_prctl, ARCH_SET_GS, cpu->window);
}

static void space_use(struct x86_cpu *cpu, unsigned n)
{
        space_make_ready(cpu, n);
        cpu->space_index = n;
        cpu->space = space_at(cpu, n);
        cpu->window = (uintptr_t)cpu + n * X86_WINDOW_BYTES;
        cpu->set[TLB_SUPERVISOR] = &cpu->space->supervisor;
        cpu->set[TLB_USER] = &cpu->space->user;
        cpu->exec[1] = cpu->space->exec;
        cpu->data = cpu->set[cpu->tlb_mode];
        cpu->tlb_generation++;
        cpu->spaces[n].used_at = ++cpu->space_switches;
        host_gs_base(cpu);
}

static unsigned current_pcid(const struct x86_cpu *cpu)
{
        return cpu->s.cr4 & X86_CR4_PCIDE ? cpu->s.cr3 & 0xfff : 0;
}

/* The space of a PCID, or -1. */
static int space_of(const struct x86_cpu *cpu, unsigned pcid)
{
        for (unsigned n = 0; n < X86_SPACES; n++)
                if (cpu->spaces[n].taken && cpu->spaces[n].pcid == pcid)
                        return (int)n;
        return -1;
}

/* One for a PCID that has none, empty but for global pages. */
static unsigned space_take(struct x86_cpu *cpu, unsigned pcid)
{
        unsigned oldest = 0;

        for (unsigned n = 0; n < X86_SPACES; n++) {
                if (!cpu->spaces[n].taken) {
                        oldest = n;
                        break;
                }
                if (cpu->spaces[n].used_at < cpu->spaces[oldest].used_at)
                        oldest = n;
        }
        space_flush(cpu, oldest, false);
        cpu->spaces[oldest].taken = true;
        cpu->spaces[oldest].pcid = (uint16_t)pcid;
        return oldest;
}

void mmu_space_changed(struct x86_cpu *cpu, bool keep)
{
        unsigned pcid = current_pcid(cpu);
        uint64_t base = cpu->s.cr3 & ~0xfffull;
        int known = space_of(cpu, pcid);
        unsigned n = known < 0 ? space_take(cpu, pcid) : (unsigned)known;

        if (known >= 0 && (!keep || cpu->spaces[n].base != base))
                space_flush(cpu, n, false);
        else if (n == cpu->space_index)
                return; /* the same tables, and nothing to drop */
        cpu->spaces[n].base = base;
        shared_drop_locals(cpu);
        /* Return addresses of the space that is left. */
        cpu->jit.rsp = cpu->jit.shadow_base;
        if (n != cpu->space_index)
                space_use(cpu, n);
        cpu->tlb_generation++;
}

/* ---- flushing ---- */

/* Everything, after which the current space is that of the PCID as the control registers are now. */
static void flush_everything(struct x86_cpu *cpu)
{
        for (unsigned n = 0; n < X86_SPACES; n++) {
                space_flush(cpu, n, true);
                cpu->spaces[n].taken = n == cpu->space_index;
        }
        cpu->spaces[cpu->space_index].pcid = (uint16_t)current_pcid(cpu);
        cpu->spaces[cpu->space_index].base = cpu->s.cr3 & ~0xfffull;
        set_flush(&cpu->shared, &cpu->shared_used, true);
        cpu->shared_locals.count = 0;
        exec_flush(cpu->shared_exec, &cpu->shared_exec_used, true);
        cpu->shared_exec_locals = false;
        tjump_forget(cpu, TJUMPS_ALL);
        for (unsigned i = 0; i < ARRAY_SIZE(cpu->write_filter); i++)
                __atomic_store_n(&cpu->write_filter[i], 0, __ATOMIC_RELEASE);
}

void mmu_flush(struct x86_cpu *cpu, bool global_too)
{
        if (global_too) {
                flush_everything(cpu);
        } else {
                space_flush(cpu, cpu->space_index, false);
                shared_drop_locals(cpu);
                tjump_forget(cpu, 0);
        }
        cpu->tlb_generation++;
}

void mmu_flush_pcid(struct x86_cpu *cpu, unsigned pcid)
{
        int n = space_of(cpu, pcid);

        if (n >= 0 && (unsigned)n == cpu->space_index)
                mmu_flush(cpu, false);
        else if (n >= 0)
                space_flush(cpu, (unsigned)n, false);
}

void mmu_flush_all_local(struct x86_cpu *cpu)
{
        for (unsigned n = 0; n < X86_SPACES; n++)
                space_flush(cpu, n, false);
        mmu_flush(cpu, false);
}

static void space_flush_page(struct x86_cpu *cpu, unsigned n, uint64_t linear, uint32_t wanted)
{
        struct x86_space_info *info = &cpu->spaces[n];
        struct x86_space *space;

        if (!info->ready)
                return;
        space = space_at(cpu, n);
        set_flush_page(&space->supervisor, &info->supervisor, linear, wanted);
        set_flush_page(&space->user, &info->user, linear, wanted);
        if (exec_flush_page(space->exec, &info->exec_used, linear, wanted)) {
                space_forget_jumps(cpu, n);
                tjump_forget(cpu, 0);
        }
}

static void shared_flush_page(struct x86_cpu *cpu, uint64_t linear)
{
        set_flush_page(&cpu->shared, &cpu->shared_used, linear, 0);
        if (exec_flush_page(cpu->shared_exec, &cpu->shared_exec_used, linear, 0))
                tjump_forget(cpu, TJUMPS_SHARED);
}

void mmu_flush_page(struct x86_cpu *cpu, uint64_t linear)
{
        for (unsigned n = 0; n < X86_SPACES; n++)
                space_flush_page(cpu, n, linear, n == cpu->space_index ? 0 : TLB_GLOBAL);
        shared_flush_page(cpu, linear);
        cpu->tlb_generation++;
}

void mmu_flush_pcid_page(struct x86_cpu *cpu, unsigned pcid, uint64_t linear)
{
        int n = space_of(cpu, pcid);

        if (n < 0)
                return;
        space_flush_page(cpu, (unsigned)n, linear, 0);
        if ((unsigned)n == cpu->space_index)
                shared_flush_page(cpu, linear);
        cpu->tlb_generation++;
}

/* A fault drops what was cached for the address under this PCID (SDM vol. 3A §4.10.4.1). */
void tlb_drop_faulted(struct x86_cpu *cpu, uint64_t linear)
{
        uint64_t page = linear & ~0xfffull;
        unsigned index = tlb_index(linear);

        for (unsigned mode = 0; mode < TLB_CHECKED; mode++)
                if (cpu->set[mode]->read_tag[index] == page)
                        entry_drop(cpu->set[mode], index);
        for (unsigned user = 0; user < 2; user++) {
                struct tlb_exec_entry *e = &cpu->exec[user][tlb_exec_index(linear)];

                if (e->tag != page)
                        continue;
                e->tag = TLB_NONE;
                tjump_forget(cpu, user ? TJUMPS_SPACE : TJUMPS_SHARED);
        }
        cpu->tlb_generation++;
}

void mmu_reset(struct x86_cpu *cpu)
{
        cpu->set[TLB_SUPERVISOR_SMAP] = &cpu->shared;
        cpu->set[TLB_CHECKED] = &cpu->checked;
        cpu->exec[0] = cpu->shared_exec;
        set_reset(&cpu->shared);
        set_reset(&cpu->checked);
        exec_reset(cpu->shared_exec, &cpu->shared_exec_used);
        for (unsigned i = 0; i < 2; i++)
                cpu->jump_fills[i].count = TJUMP_FILLS + 1;
        cpu->pages_1g = x86_has(cpu, X86_F_PDPE1GB);
        cpu->spaces[0].taken = true;
        space_use(cpu, 0);
        flush_everything(cpu);
}

/* ---- filling ---- */

static struct tlb_used *used_of(struct x86_cpu *cpu, unsigned mode)
{
        struct x86_space_info *info = &cpu->spaces[cpu->space_index];

        return mode == TLB_USER ? &info->user : mode == TLB_SUPERVISOR ? &info->supervisor : &cpu->shared_used;
}

static void writers_add(struct x86_cpu *cpu, uint64_t gpa)
{
        uint64_t *word = &cpu->write_filter[gpa >> 18 & (ARRAY_SIZE(cpu->write_filter) - 1)];

        __atomic_store_n(word, *word | 1ull << (gpa >> 12 & 63), __ATOMIC_RELEASE);
}

static bool writers_has(const struct x86_cpu *cpu, uint64_t gpa)
{
        return __atomic_load_n(&cpu->write_filter[gpa >> 18 & (ARRAY_SIZE(cpu->write_filter) - 1)], __ATOMIC_ACQUIRE) >> (gpa >> 12 & 63) & 1;
}

static void locals_add(struct x86_cpu *cpu, unsigned index)
{
        if (cpu->shared_locals.count < TLB_LOCALS)
                cpu->shared_locals.at[cpu->shared_locals.count++] = (uint16_t)index;
        else
                cpu->shared_locals.count = TLB_LOCALS + 1;
}

void tlb_fill(struct x86_cpu *cpu, uint64_t linear, unsigned mode, const struct translation *t, const struct guest_region *region)
{
        unsigned index = tlb_index(linear);
        struct tlb_set *set = cpu->set[mode];
        struct tlb_used *used = used_of(cpu, mode);
        uint64_t page = linear & ~0xfffull;

        entry_drop(set, index);
        __atomic_store_n(&set->gpa[index], t->gpa | t->flags, __ATOMIC_RELAXED);
        set->host[index] = (uintptr_t)region->host + (t->gpa - region->gpa);
        if (!(used->word[index / 64] >> (index % 64) & 1))
                used_store(used, index / 64, used->word[index / 64] | 1ull << (index % 64));
        if (t->flags & (TLB_LARGE_2M | TLB_LARGE_1G)) {
                used->large_word[index / 64] |= 1ull << (index % 64);
                large_add(&used->large, linear, t->flags);
        } else {
                used->large_word[index / 64] &= ~(1ull << (index % 64));
        }
        if (t->flags & TLB_GLOBAL && !(linear >> 63))
                used->low_global = true;
        if (mode == TLB_SUPERVISOR_SMAP && !(t->flags & TLB_GLOBAL))
                locals_add(cpu, index);
        __atomic_store_n(&set->read_tag[index], page, __ATOMIC_RELAXED);
        if (!t->writable || region->readonly)
                return;
        writers_add(cpu, t->gpa);
        __atomic_store_n(&set->write_tag[index], page, __ATOMIC_RELEASE);
        /* Costly behind many stores that missed the caches; nobody looks when there is one processor. */
        if (cpu->has_others)
                __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (atomic_load_explicit(guest_region_code(region, t->gpa), memory_order_relaxed) & GUEST_CODE_PRESENT)
                entry_drop_write(set, index);
}

/* ---- pages that become code ---- */

/*
 * Whether set has a write translation of the page at gpa; drop takes them all away (only its own processor may). Reading another
 * one's: filter and bitmap were stored before the tag, which is stored before the barrier of tlb_fill().
 */
static bool set_find_writer(struct tlb_set *set, const struct tlb_used *used, uint64_t gpa, bool drop)
{
        bool found = false;

        FOR_EACH_BIT(word, __atomic_load_n(&used->summary, __ATOMIC_ACQUIRE)) {
                FOR_EACH_BIT(bit, __atomic_load_n(&used->word[word], __ATOMIC_ACQUIRE)) {
                        unsigned index = (unsigned)(word * 64 + bit);

                        if ((__atomic_load_n(&set->gpa[index], __ATOMIC_RELAXED) & ~0xfffull) != gpa ||
                            __atomic_load_n(&set->write_tag[index], __ATOMIC_RELAXED) == tlb_empty_tag(index))
                                continue;
                        if (!drop)
                                return true;
                        entry_drop_write(set, index);
                        found = true;
                }
        }
        return found;
}

static bool find_writer(struct x86_cpu *cpu, uint64_t gpa, bool drop)
{
        bool found = false;

        if (!writers_has(cpu, gpa))
                return false;
        found |= set_find_writer(&cpu->shared, &cpu->shared_used, gpa, drop);
        for (unsigned n = 0; n < X86_SPACES && (drop || !found); n++) {
                struct x86_space *space = space_at(cpu, n);

                found |= set_find_writer(&space->supervisor, &cpu->spaces[n].supervisor, gpa, drop);
                found |= set_find_writer(&space->user, &cpu->spaces[n].user, gpa, drop);
        }
        return found;
}

bool mmu_holds_write_tag(struct x86_cpu *cpu, uint64_t gpa)
{
        return find_writer(cpu, gpa, false);
}

void tlb_drop_writers(struct x86_cpu *cpu, uint64_t gpa)
{
        find_writer(cpu, gpa, true);
}
