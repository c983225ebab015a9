/*
 * The translator's blocks: finding, making, linking, invalidating, evicting.
 *
 * Blocks are found by the guest physical address of their first byte and translation_key(), so all processors and all mappings
 * of a page share them. Looking up takes no lock; every change does.
 *
 * A block dies when its bytes are written (translator_written()) or its region is emptied. It is taken out of both tables, the
 * branches linked to it go back to their edges, and both its entries become a call to the STALE thunk, which whoever still has
 * its address (jump caches, shadow stacks) runs into. Entries begin with one instruction of 5 bytes at least and are 16-byte
 * aligned, so one store of 8 bytes replaces exactly one instruction for a processor that is about to execute it.
 *
 * Memory of dead blocks is used again only when nobody can be in it: a processor puts the epoch into jit.inside before it looks
 * for blocks and 0 when it is out of translated code. Retiring a region raises the epoch; the region may be filled again when
 * each processor is outside or shows that epoch or a later one, at which it has emptied its jump caches. The region after the
 * one that is being filled is retired ahead, so that mostly nobody waits; when someone is still inside, the others interpret.
 *
 * Against lost writes: a translation takes the page's code generation before it copies the bytes, and compares it once it is
 * in the tables. A writer raises the generation and then looks into the tables. One of the two sees the other.
 */
#include "cpu/x86/translator-internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "cpu/x86/block.h"
#include "cpu/x86/cpuid.h"
#include "cpu/x86/decode.h"
#include "cpu/x86/system.h"

/* The most host code one block takes. */
#define HOST_BYTES_MAX ((size_t)32 << 10)
/* Metadata of a region, from its size in host code: what guest code needs on average, and some to spare. */
#define BYTES_PER_SITE 24u
#define BYTES_PER_INSN 32u
#define BYTES_PER_BLOCK 96u
#define BYTES_PER_GUEST_BYTE 3u

#define SHADOW_BYTES ((size_t)256 << 10)
#define SHADOW_GUARD ((size_t)64 << 10)

/* ---- making and freeing ---- */

static void *pool_map(size_t size_bytes)
{
        void *at = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        return at == MAP_FAILED ? NULL : at;
}

static void pool_unmap(void *at, size_t size_bytes)
{
        if (at)
                munmap(at, size_bytes);
}

bool translator_lock_step(const struct translator *tr)
{
        return tr && tr->lock_step;
}

bool translator_wants_stats(const struct translator *tr)
{
        return tr && tr->wants_stats;
}

void translator_free(struct translator *tr)
{
        if (!tr)
                return;
        if (tr->mem)
                guest_memory_watch(tr->mem, NULL, NULL);
        pool_unmap(tr->site, tr->site_size);
        pool_unmap(tr->pool_insn, tr->insn_size);
        pool_unmap(tr->pool_block, tr->block_size);
        pool_unmap(tr->pool_bytes, tr->bytes_size);
        code_cache_free(tr->cache);
        if (tr->perf_map >= 0)
                close(tr->perf_map);
        free(tr->hash);
        free(tr->page);
        pthread_mutex_destroy(&tr->lock);
        free(tr);
}

static int make_pools(struct translator *tr, struct err *err)
{
        size_t region_bytes = code_cache_region_size(tr->cache);
        size_t sites = region_bytes / BYTES_PER_SITE, insns = region_bytes / BYTES_PER_INSN, blocks = region_bytes / BYTES_PER_BLOCK,
               guest = region_bytes / BYTES_PER_GUEST_BYTE;

        tr->regions = (unsigned)(code_cache_size(tr->cache) / region_bytes);
        tr->site_size = (sites * tr->regions + 1) * sizeof(*tr->site);
        tr->insn_size = insns * tr->regions * sizeof(*tr->pool_insn);
        tr->block_size = blocks * tr->regions * sizeof(*tr->pool_block);
        tr->bytes_size = guest * tr->regions;
        tr->site = pool_map(tr->site_size);
        tr->pool_insn = pool_map(tr->insn_size);
        tr->pool_block = pool_map(tr->block_size);
        tr->pool_bytes = pool_map(tr->bytes_size);
        if (!tr->site || !tr->pool_insn || !tr->pool_block || !tr->pool_bytes)
                return err_nomem(err);
        for (unsigned i = 0; i < tr->regions; i++) {
                /* Site 0 is nobody's. */
                uint32_t first = (uint32_t)(1 + i * sites);

                tr->region[i] = (struct tregion){
                        .block = tr->pool_block + i * blocks, .blocks_max = (unsigned)blocks,
                        .insn = tr->pool_insn + i * insns, .insns_max = (unsigned)insns,
                        .bytes = tr->pool_bytes + i * guest, .bytes_max = guest,
                        .site_first = first, .site_next = first, .site_end = (uint32_t)(first + sites),
                };
        }
        return 0;
}

static int make_tables(struct translator *tr, struct err *err)
{
        tr->hash_bits = 12;
        while (tr->hash_bits < 20 && ((size_t)1 << tr->hash_bits) < tr->block_size / sizeof(*tr->pool_block) / 8)
                tr->hash_bits++;
        tr->hash = calloc((size_t)1 << tr->hash_bits, sizeof(*tr->hash));
        tr->page = calloc((size_t)1 << tr->hash_bits, sizeof(*tr->page));
        return tr->hash && tr->page ? 0 : err_nomem(err);
}

static void open_perf_map(struct translator *tr)
{
        char path[64];

        snprintf(path, sizeof(path), "/tmp/perf-%ld.map", (long)getpid());
        tr->perf_map = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
}

static void written(void *ctx, uint64_t gpa, uint64_t size_bytes)
{
        translator_written(ctx, gpa, size_bytes);
}

int translator_new(struct x86_complex *complex, const struct translator_options *options, struct translator **out, struct err *err)
{
        struct translator *tr = calloc(1, sizeof(*tr));
        int r;

        if (!tr)
                return err_nomem(err);
        pthread_mutex_init(&tr->lock, NULL);
        tr->complex = complex;
        tr->perf_map = -1;
        tr->lock_step = options->lock_step;
        tr->wants_stats = options->stats;
        tr->host_avx = __builtin_cpu_supports("avx");
        atomic_init(&tr->epoch, 1);
        if (!__builtin_cpu_supports("bmi2")) {
                translator_free(tr);
                return err_set(err, -ENOTSUP, "this processor has no PEXT");
        }
        r = code_cache_new(options->cache_bytes, &tr->cache, err);
        if (r == 0)
                r = make_pools(tr, err);
        if (r == 0)
                r = make_tables(tr, err);
        if (r == 0)
                r = translator_make_thunks(tr, err);
        if (r == 0)
                r = translator_signals_install(err);
        if (r < 0) {
                translator_free(tr);
                return r;
        }
        if (options->perf_map)
                open_perf_map(tr);
        tr->mem = complex_memory(complex);
        guest_memory_watch(tr->mem, written, tr);
        *out = tr;
        return 0;
}

/* An address that nobody may return to: not canonical, and no guest can guess it, to whom such a return is an exception of its own. */
static uint64_t secret_address(void)
{
        uint64_t secret = 0;

        while (getrandom(&secret, sizeof(secret), 0) != sizeof(secret))
                ;
        return (secret | UINT64_C(1) << 63) & ~(UINT64_C(1) << 62);
}

int translator_cpu_new(struct x86_cpu *cpu, struct err *err)
{
        struct x86_jit *jit = &cpu->jit;
        uint64_t nowhere;
        uint8_t *shadow;

        if (!cpu->translator)
                return 0;
        /* A page of each end stays closed: running over an end is a fault (translator-signal.c). */
        shadow = mmap(NULL, SHADOW_BYTES + 2 * SHADOW_GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (shadow == MAP_FAILED)
                return err_nomem(err);
        jit->shadow_map = shadow;
        jit->shadow_map_size = SHADOW_BYTES + 2 * SHADOW_GUARD;
        if (mprotect(shadow + SHADOW_GUARD, SHADOW_BYTES, PROT_READ | PROT_WRITE) < 0)
                return err_nomem(err);
        jit->signal_stack = pool_map(TSIGNAL_STACK_BYTES);
        if (!jit->signal_stack)
                return err_nomem(err);
        jit->shadow_base = (uintptr_t)shadow + SHADOW_GUARD + SHADOW_BYTES - 64;
        nowhere = secret_address();
        for (unsigned i = 0; i < 8; i++)
                ((uint64_t *)jit->shadow_base)[i] = nowhere;
        jit->rsp = jit->shadow_base;
        jit->self = cpu;
        jit->sites = cpu->translator->site;
        jit->code = (uintptr_t)code_cache_rx(cpu->translator->cache, 0);
        jit->host_mxcsr = 0x1f80;
        jit->vectors_out = 1;
        jit->x87_out = 1;
        jit->tlb_mask = (uint64_t)(TLB_ENTRIES - 1) << GUEST_PAGE_SHIFT;
        jit->exec_mask = (uint64_t)(TLB_EXEC_ENTRIES - 1) << GUEST_PAGE_SHIFT;
        atomic_init(&jit->go, 1);
        return 0;
}

void translator_cpu_free(struct x86_cpu *cpu)
{
        pool_unmap(cpu->jit.shadow_map, cpu->jit.shadow_map_size);
        pool_unmap(cpu->jit.signal_stack, TSIGNAL_STACK_BYTES);
}

/* ---- the tables ---- */

static size_t hash_of(const struct translator *tr, uint64_t gpa, uint32_t key)
{
        return (size_t)((gpa ^ (uint64_t)key << 38) * UINT64_C(0x9e3779b97f4a7c15) >> (64 - tr->hash_bits));
}

static struct tblock **page_at(const struct translator *tr, uint64_t gpa)
{
        return &tr->page[hash_of(tr, gpa >> GUEST_PAGE_SHIFT, 0)];
}

struct tblock *translator_lookup(const struct translator *tr, uint64_t gpa, uint32_t key)
{
        struct tblock *block = atomic_load_explicit(&tr->hash[hash_of(tr, gpa, key)], memory_order_acquire);

        while (block && (block->gpa != gpa || block->key != key))
                block = __atomic_load_n(&block->next, __ATOMIC_ACQUIRE);
        return block;
}

bool translator_known(const struct translator *tr, uint64_t gpa, uint32_t key)
{
        return translator_lookup(tr, gpa, key);
}

static void tables_insert(struct translator *tr, struct tblock *block)
{
        struct tblock *_Atomic *head = &tr->hash[hash_of(tr, block->gpa, block->key)];
        struct tblock **page = page_at(tr, block->gpa);

        block->page_next = *page;
        *page = block;
        block->next = atomic_load_explicit(head, memory_order_relaxed);
        atomic_store_explicit(head, block, memory_order_release);
}

/* Whoever walks the chain meanwhile stands on block or passes it; its own next stays. */
static void hash_remove(struct translator *tr, struct tblock *block)
{
        struct tblock *_Atomic *head = &tr->hash[hash_of(tr, block->gpa, block->key)];
        struct tblock *at = atomic_load_explicit(head, memory_order_relaxed);

        if (at == block) {
                atomic_store_explicit(head, block->next, memory_order_release);
                return;
        }
        while (at && at->next != block)
                at = at->next;
        if (at)
                __atomic_store_n(&at->next, block->next, __ATOMIC_RELEASE);
}

static void page_remove(struct translator *tr, struct tblock *block)
{
        for (struct tblock **at = page_at(tr, block->gpa); *at; at = &(*at)->page_next)
                if (*at == block) {
                        *at = block->page_next;
                        return;
                }
}

/* ---- links; under the lock ---- */

static void store_rel32(struct translator *tr, uint32_t at, uint32_t target)
{
        __atomic_store_n((uint32_t *)code_cache_rw(tr->cache, at), target - (at + 4), __ATOMIC_RELEASE);
}

/* Where the site may enter the block; 0: nowhere. */
static uint32_t entry_for(const struct tsite *site, const struct tblock *to)
{
        if (site->kind == TSITE_GROUP)
                return site->flags == TFLAGS_SAVED ? to->fast : to->with_host;
        if (to->entry == TENTRY_FAULTS && site->passes && !(site->passes_by & to->fast_changes))
                return to->fast;
        if (!site->not_host)
                return to->with_host;
        return to->entry == TENTRY_DEAD ? to->fast : 0;
}

void translator_link(struct translator *tr, struct tsite *site, struct tblock *to)
{
        if (site->instead && entry_for(&tr->site[site->instead], to))
                site = &tr->site[site->instead];
        if (tr->lock_step || site->linked)
                return;
        pthread_mutex_lock(&tr->lock);
        if (!site->linked && !site->block->dead && !to->dead) {
                site->incoming = to->incoming;
                to->incoming = (uint32_t)(site - tr->site);
                site->linked = to;
                store_rel32(tr, site->patch, entry_for(site, to));
        }
        pthread_mutex_unlock(&tr->lock);
}

static void unlink_incoming(struct translator *tr, struct tblock *block)
{
        for (uint32_t at = block->incoming, next; at; at = next) {
                struct tsite *site = &tr->site[at];

                next = site->incoming;
                site->incoming = 0;
                site->linked = NULL;
                store_rel32(tr, site->patch, site->next);
        }
        block->incoming = 0;
}

/* call STALE in place of the first instruction there. */
static void patch_entry(struct translator *tr, uint32_t at)
{
        uint64_t *place = (uint64_t *)code_cache_rw(tr->cache, at), bytes = __atomic_load_n(place, __ATOMIC_RELAXED);

        bytes &= ~UINT64_C(0xffffffffff);
        bytes |= 0xe8 | (uint64_t)(uint32_t)(tr->thunk[TTHUNK_STALE] - (at + 5)) << 8;
        __atomic_store_n(place, bytes, __ATOMIC_RELEASE);
}

/* And where calls of the block return to. */
static void unlink_outgoing(struct translator *tr, struct tblock *block)
{
        for (uint32_t i = 0; i < block->sites; i++) {
                uint32_t number = block->site_first + i;
                struct tsite *site = &tr->site[number];

                if (site->kind == TSITE_RETURN)
                        patch_entry(tr, site->patch);
                if (!site->linked)
                        continue;
                for (uint32_t *at = &site->linked->incoming; *at; at = &tr->site[*at].incoming)
                        if (*at == number) {
                                *at = site->incoming;
                                break;
                        }
                site->linked = NULL;
        }
}

static void block_kill(struct translator *tr, struct tblock *block)
{
        if (block->dead)
                return;
        __atomic_store_n(&block->dead, true, __ATOMIC_RELEASE);
        hash_remove(tr, block);
        page_remove(tr, block);
        unlink_incoming(tr, block);
        unlink_outgoing(tr, block);
        patch_entry(tr, block->host);
        patch_entry(tr, block->host + TBLOCK_JUMP);
        atomic_fetch_add_explicit(&tr->stats.killed, 1, memory_order_relaxed);
}

/* ---- bytes that were written ---- */

static void written_in_page(struct translator *tr, uint64_t gpa, uint64_t size_bytes)
{
        for (struct tblock *block = *page_at(tr, gpa), *next; block; block = next) {
                next = block->page_next;
                if (block->gpa < gpa + size_bytes && gpa < block->gpa + block->size_bytes)
                        block_kill(tr, block);
        }
}

void translator_written(struct translator *tr, uint64_t gpa, uint64_t size_bytes)
{
        pthread_mutex_lock(&tr->lock);
        while (size_bytes) {
                uint64_t part = MIN(size_bytes, GUEST_PAGE_SIZE - (gpa & (GUEST_PAGE_SIZE - 1)));

                written_in_page(tr, gpa, part);
                gpa += part;
                size_bytes -= part;
        }
        pthread_mutex_unlock(&tr->lock);
}

/* ---- regions ---- */

static bool quiescent(const struct translator *tr, uint64_t epoch)
{
        for (unsigned i = 0; i < COMPLEX_CPUS_MAX; i++) {
                struct x86_cpu *cpu = complex_cpu(tr->complex, i);
                uint64_t inside = cpu ? atomic_load(&cpu->jit.inside) : 0;

                if (inside && inside < epoch)
                        return false;
        }
        return true;
}

/* Nobody comes into the region's blocks any more; those that are in it are asked to leave. */
static void region_retire(struct translator *tr, struct tregion *region)
{
        if (!region->blocks || region->retired)
                return;
        for (unsigned i = 0; i < region->blocks; i++)
                block_kill(tr, &region->block[i]);
        region->retired = atomic_fetch_add(&tr->epoch, 1) + 1;
        for (unsigned i = 0; i < COMPLEX_CPUS_MAX; i++) {
                struct x86_cpu *cpu = complex_cpu(tr->complex, i);

                if (cpu)
                        atomic_store(&cpu->jit.go, 0);
        }
        atomic_fetch_add_explicit(&tr->stats.evictions, 1, memory_order_relaxed);
}

/* On to the next region. -EAGAIN: someone is still in it. */
static int region_advance(struct translator *tr)
{
        struct tregion *next = &tr->region[(tr->current + 1) % tr->regions];

        region_retire(tr, next);
        if (next->retired && !quiescent(tr, next->retired))
                return -EAGAIN;
        next->blocks = next->insns = 0;
        next->bytes_used = 0;
        next->site_next = next->site_first;
        next->retired = 0;
        code_cache_advance(tr->cache);
        tr->current = (tr->current + 1) % tr->regions;
        region_retire(tr, &tr->region[(tr->current + 1) % tr->regions]);
        return 0;
}

struct tblock *translator_block_at(struct translator *tr, uint32_t host)
{
        struct tregion *region = &tr->region[host / code_cache_region_size(tr->cache)];
        unsigned low = 0, high = region->blocks;

        while (low < high) {
                unsigned middle = (low + high) / 2;

                if (region->block[middle].host_end <= host)
                        low = middle + 1;
                else
                        high = middle;
        }
        return low < region->blocks && region->block[low].host <= host ? &region->block[low] : NULL;
}

/* ---- translating ---- */

uint32_t translator_thunk(const struct translator *tr, enum tthunk thunk)
{
        return tr->thunk[thunk];
}

struct tsite *translator_site_at(struct translator *tr, uint32_t number)
{
        return &tr->site[number];
}

struct tsite *translator_site(struct translator *tr, struct tblock *block, uint32_t *number)
{
        struct tregion *region = &tr->region[tr->current];

        if (region->site_next >= region->site_end)
                return NULL;
        *number = region->site_next++;
        if (!block->sites++)
                block->site_first = *number;
        tr->site[*number] = (struct tsite){ .block = block };
        return &tr->site[*number];
}

static const struct insn *end_mark(struct x86_cpu *cpu, const struct insn *i)
{
        return i;
}

insn_fn translator_end(void)
{
        return end_mark;
}

struct insn *translator_insn(struct translator *tr, struct tblock *block, const struct insn *insn)
{
        struct tregion *region = &tr->region[tr->current];
        struct insn *copy;

        if (region->insns + 2 > region->insns_max)
                return NULL;
        copy = &region->insn[region->insns];
        region->insns += 2;
        copy[0] = *insn;
        copy[1] = (struct insn){ .fn = end_mark, .base = GPR_ZERO * 8, .index = GPR_ZERO * 8, .start = insn->end, .end = insn->end };
        return copy;
}

static void perf_line(const struct translator *tr, const struct tblock *block)
{
        char line[96];
        int n;

        if (tr->perf_map < 0)
                return;
        n = snprintf(line, sizeof(line), "%lx %x guest-%s-%lx\n", (unsigned long)(uintptr_t)code_cache_rx(tr->cache, block->host),
                     block->host_end - block->host, block->key & MODE_USER ? "user" : "kernel", (unsigned long)block->gpa);
        if (write(tr->perf_map, line, (size_t)n) < 0)
                return; /* a listing for a person: a full disk costs its end */
}

/* One try in the current region; under the lock. */
static int translate_here(struct translator *tr, struct x86_cpu *cpu, const struct tsource *source, struct tblock **out)
{
        struct tregion *region = &tr->region[tr->current];
        uint32_t sites = region->site_next;
        unsigned insns = region->insns;
        struct tblock *block;
        struct x86_asm a;
        uint32_t at;
        int r;

        if (region->blocks == region->blocks_max || region->bytes_max - region->bytes_used < source->size_bytes ||
            code_cache_reserve(tr->cache, HOST_BYTES_MAX, &at) < 0)
                return -ENOSPC;
        block = &region->block[region->blocks];
        *block = (struct tblock){ .gpa = source->gpa, .key = source->key, .second = source->second, .host = at };
        a = (struct x86_asm){
                .buffer = code_cache_rw(tr->cache, at), .address = (uintptr_t)code_cache_rx(tr->cache, at), .size = HOST_BYTES_MAX,
                .fit_jumps = true,
        };
        r = translate_block(tr, cpu, source, &a, block);
        if (r < 0) {
                region->site_next = sites;
                region->insns = insns;
                return r;
        }
        block->bytes = region->bytes + region->bytes_used;
        memcpy(block->bytes, source->bytes, block->size_bytes);
        region->bytes_used += block->size_bytes;
        region->blocks++;
        block->host_end = (uint32_t)(at + a.used);
        code_cache_commit(tr->cache, at, a.used);
        atomic_fetch_add_explicit(&tr->stats.blocks, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&tr->stats.guest_bytes, block->size_bytes, memory_order_relaxed);
        atomic_fetch_add_explicit(&tr->stats.host_bytes, a.used, memory_order_relaxed);
        perf_line(tr, block);
        *out = block;
        return 0;
}

static int translate_locked(struct translator *tr, struct x86_cpu *cpu, const struct tsource *source, struct tblock **out)
{
        int r;

        *out = translator_lookup(tr, source->gpa, source->key);
        if (*out)
                return 0;
        r = translate_here(tr, cpu, source, out);
        if (r == -ENOSPC) {
                r = region_advance(tr);
                if (r == 0)
                        r = translate_here(tr, cpu, source, out);
        }
        if (r == 0)
                tables_insert(tr, *out);
        return r;
}

/* NULL: it cannot be translated, or not now. */
static struct tblock *translate_at(struct x86_cpu *cpu, uint64_t gpa, uint32_t key, const uint8_t *host, int *error)
{
        struct translator *tr = cpu->translator;
        uint64_t page = gpa & ~(GUEST_PAGE_SIZE - 1);
        uint8_t bytes[GUEST_PAGE_SIZE];
        struct tsource source = {
                .gpa = gpa, .bytes = bytes, .size_bytes = GUEST_PAGE_SIZE - (gpa & (GUEST_PAGE_SIZE - 1)), .key = key,
        };
        const _Atomic uint32_t *code = guest_region_code(guest_memory_find(cpu->mem, gpa), gpa);
        struct tblock *block = NULL;
        uint32_t generation = mmu_page_becomes_code(cpu, page);
        enum x86_phase before = stats_phase(cpu->stats, X86_TRANSLATING);

        memcpy(bytes, host, source.size_bytes);
        pthread_mutex_lock(&tr->lock);
        *error = translate_locked(tr, cpu, &source, &block);
        if (*error == 0 && atomic_load(code) != generation) {
                block_kill(tr, block);
                *error = -EAGAIN;
        }
        pthread_mutex_unlock(&tr->lock);
        stats_phase(cpu->stats, before);
        return *error ? NULL : block;
}

struct tblock *translator_plain(struct x86_cpu *cpu, const struct tblock *block, uint32_t offset)
{
        uint64_t gpa = TPAGE_BASE(block->gpa) | offset;
        uint32_t key = translation_key(cpu) | TKEY_PLAIN;
        struct tblock *plain = translator_lookup(cpu->translator, gpa, key);
        const struct guest_region *region;
        int error;

        if (plain)
                return plain;
        region = guest_memory_find(cpu->mem, gpa);
        return region ? translate_at(cpu, gpa, key, region->host + (gpa - region->gpa), &error) : NULL;
}

/* ---- instructions that go on in the next page ---- */

static bool crossing_pages(const struct x86_cpu *cpu, uint64_t rip, const struct tlb_exec_entry *page[2])
{
        page[0] = mmu_fetch_cached(cpu, rip);
        page[1] = mmu_fetch_cached(cpu, TPAGE_BASE(rip) + GUEST_PAGE_SIZE);
        return page[0] && page[1];
}

static struct tblock *crossing_at(const struct x86_cpu *cpu, uint64_t gpa)
{
        return translator_lookup(cpu->translator, gpa, translation_key(cpu) | TKEY_CROSSING);
}

const struct tblock *translator_find_crossing(const struct x86_cpu *cpu, uint64_t rip)
{
        const struct tlb_exec_entry *page[2];
        const struct tblock *block;

        if (!crossing_pages(cpu, rip, page))
                return NULL;
        block = crossing_at(cpu, page[0]->gpa | (rip & (GUEST_PAGE_SIZE - 1)));
        if (!block || block->second.gpa != page[1]->gpa ||
            atomic_load_explicit(block->second.code, memory_order_acquire) != block->second.generation)
                return NULL;
        return block;
}

static bool may_cross(const struct translator *tr, uint64_t rip)
{
        return (rip & (GUEST_PAGE_SIZE - 1)) > GUEST_PAGE_SIZE - INSN_LENGTH_MAX && !tr->lock_step;
}

const struct tblock *translator_make_crossing(struct x86_cpu *cpu, uint64_t rip)
{
        struct translator *tr = cpu->translator;
        uint32_t in_page = rip & (GUEST_PAGE_SIZE - 1), first_bytes = (uint32_t)GUEST_PAGE_SIZE - in_page, generation;
        uint8_t bytes[INSN_LENGTH_MAX];
        struct tsource source = { .bytes = bytes, .size_bytes = sizeof(bytes), .key = translation_key(cpu) | TKEY_CROSSING };
        const struct tlb_exec_entry *page[2];
        struct tblock *block = NULL, *old;
        const _Atomic uint32_t *code;
        uint64_t gpa;
        int r;

        if (!may_cross(tr, rip) || !crossing_pages(cpu, rip, page))
                return NULL;
        gpa = page[0]->gpa;
        source.second.gpa = page[1]->gpa;
        generation = mmu_page_becomes_code(cpu, gpa);
        source.second.generation = mmu_page_becomes_code(cpu, source.second.gpa);
        /* Others may have run, and this one's translations may be gone. */
        if (!crossing_pages(cpu, rip, page) || page[0]->gpa != gpa || page[1]->gpa != source.second.gpa)
                return NULL;
        memcpy(bytes, page[0]->host + in_page, first_bytes);
        memcpy(bytes + first_bytes, page[1]->host, INSN_LENGTH_MAX - first_bytes);
        code = guest_region_code(guest_memory_find(cpu->mem, gpa), gpa);
        source.gpa = gpa | in_page;
        source.second.code = guest_region_code(guest_memory_find(cpu->mem, source.second.gpa), source.second.gpa);
        pthread_mutex_lock(&tr->lock);
        old = crossing_at(cpu, source.gpa);
        if (old)
                block_kill(tr, old);
        r = translate_locked(tr, cpu, &source, &block);
        if (r == 0 && atomic_load(code) != generation) {
                block_kill(tr, block);
                r = -EAGAIN;
        }
        pthread_mutex_unlock(&tr->lock);
        return r == 0 ? block : NULL;
}

/* ---- for the run loop ---- */

void translator_begin(struct x86_cpu *cpu)
{
        struct translator *tr = cpu->translator;
        uint64_t epoch;

        do {
                epoch = atomic_load(&tr->epoch);
                atomic_store(&cpu->jit.inside, epoch);
        } while (atomic_load(&tr->epoch) != epoch);
        if (cpu->jit.seen != epoch) {
                tjump_forget(cpu, TJUMPS_ALL);
                cpu->jit.seen = epoch;
        }
}

const struct tblock *translator_find(struct x86_cpu *cpu)
{
        uint64_t rip = cpu->s.rip, gpa;
        const uint8_t *host;
        const struct tblock *block;
        bool plain = cpu->jit.plain;
        uint32_t *heat, key;
        int error;

        if (!x86_canonical(rip))
                return NULL;
        translator_begin(cpu);
        gpa = mmu_fetch(cpu, rip, &host);
        key = translation_key(cpu) | (plain ? TKEY_PLAIN : 0);
        cpu->jit.plain = false;
        block = translator_lookup(cpu->translator, gpa, key);
        if (!block && may_cross(cpu->translator, rip))
                block = translator_find_crossing(cpu, rip);
        if (block || !host)
                return block;
        /*
         * A user's code at first sight: there is so much of it in a compiler or a language runtime that decoding it for the interpreter first
         * costs more than what runs once. The kernel's when it was seen some times, since most of what boots it runs once.
         */
        heat = block_heat(cpu, gpa);
        if (!plain && (heat ? *heat : !(cpu->mode_key & MODE_USER)))
                return NULL;
        block = translate_at(cpu, gpa, key, host, &error);
        if (!block && error == -ENOTSUP && may_cross(cpu->translator, rip))
                return translator_make_crossing(cpu, rip);
        if (!block && error == -ENOTSUP) {
                heat = block_heat(cpu, gpa); /* other processors may have run meanwhile, and this one's tables changed */
                if (heat)
                        *heat = BLOCK_HEAT_NEVER;
        }
        return block;
}
