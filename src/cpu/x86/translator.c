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
/*
 * What a region has beside its host code, a quarter of that: blocks, and their data. In compilers and kernels a block has 600 bytes of host
 * code and 180 of data.
 */
#define HOST_BYTES_PER_BLOCK 768u
#define DATA_BYTES_IN(host_bytes) ((host_bytes) / 128 * 24)

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
        pool_unmap(tr->block, tr->block_size);
        pool_unmap(tr->data, tr->data_size);
        translation_free(tr->translation);
        code_cache_free(tr->cache);
        if (tr->perf_map >= 0)
                close(tr->perf_map);
        free(tr->hash);
        free(tr->page);
        free(tr->starts);
        pthread_mutex_destroy(&tr->lock);
        free(tr);
}

static int make_pools(struct translator *tr, struct err *err)
{
        uint32_t region_bytes = (uint32_t)code_cache_region_size(tr->cache);

        tr->regions = (unsigned)(code_cache_size(tr->cache) / region_bytes);
        tr->region_blocks = MIN(region_bytes / HOST_BYTES_PER_BLOCK, (1u << (32 - TNUMBER_BITS)) / tr->regions - 1);
        tr->region_data = DATA_BYTES_IN(region_bytes);
        tr->block_size = (1 + (size_t)tr->region_blocks * tr->regions) * sizeof(*tr->block);
        tr->data_size = (size_t)tr->region_data * tr->regions;
        tr->block = pool_map(tr->block_size);
        tr->data = pool_map(tr->data_size);
        tr->translation = translation_new();
        if (!tr->block || !tr->data || !tr->translation)
                return err_nomem(err);
        for (unsigned i = 0; i < tr->regions; i++)
                tr->region[i] = (struct tregion){ .first = 1 + i * tr->region_blocks, .data_first = i * tr->region_data };
        return 0;
}

static int make_tables(struct translator *tr, struct err *err)
{
        tr->hash_bits = 12;
        while (tr->hash_bits < 20 && (UINT32_C(1) << tr->hash_bits) < tr->region_blocks * tr->regions)
                tr->hash_bits++;
        tr->page_bits = tr->hash_bits - 2;
        tr->hash = calloc((size_t)1 << tr->hash_bits, sizeof(*tr->hash));
        tr->page = calloc((size_t)1 << tr->page_bits, sizeof(*tr->page));
        tr->starts = calloc((size_t)1 << (TRANSLATOR_STARTS_BITS - 6), sizeof(*tr->starts));
        return tr->hash && tr->page && tr->starts ? 0 : err_nomem(err);
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
        jit->blocks = cpu->translator->block;
        jit->data = cpu->translator->data;
        jit->decoded = calloc((size_t)1 << TDECODED_BITS, sizeof(*jit->decoded));
        if (!jit->decoded)
                return err_nomem(err);
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
        free(cpu->jit.decoded);
}

/* ---- the tables ---- */

static size_t hash_bits_of(uint64_t value, unsigned bits)
{
        return (size_t)(value * UINT64_C(0x9e3779b97f4a7c15) >> (64 - bits));
}

static _Atomic uint32_t *hash_at(const struct translator *tr, uint64_t gpa, uint32_t key)
{
        return &tr->hash[hash_bits_of(gpa ^ (uint64_t)key << 38, tr->hash_bits)];
}

static uint32_t *page_at(const struct translator *tr, uint64_t gpa)
{
        return &tr->page[hash_bits_of(gpa >> GUEST_PAGE_SHIFT, tr->page_bits)];
}

struct tblock *translator_lookup(const struct translator *tr, uint64_t gpa, uint32_t key)
{
        uint32_t at = atomic_load_explicit(hash_at(tr, gpa, key), memory_order_acquire);

        while (at && (tr->block[at].gpa != gpa || tr->block[at].key != key))
                at = __atomic_load_n(&tr->block[at].next, __ATOMIC_ACQUIRE);
        return at ? &tr->block[at] : NULL;
}

/* Where a block begins, most of the time: pages may share their bits, and a bit may be lost. Asked for each instruction that is translated. */
static uint32_t start_bit(uint64_t gpa)
{
        uint32_t page = (uint32_t)((gpa >> GUEST_PAGE_SHIFT) * UINT64_C(0x9e3779b97f4a7c15) >> (64 + GUEST_PAGE_SHIFT - TRANSLATOR_STARTS_BITS));

        return page << GUEST_PAGE_SHIFT | (gpa & (GUEST_PAGE_SIZE - 1));
}

bool translator_known(const struct translator *tr, uint64_t gpa, uint32_t key)
{
        uint32_t bit = start_bit(gpa);

        return atomic_load_explicit(&tr->starts[bit / 64], memory_order_relaxed) >> bit % 64 & 1 && translator_lookup(tr, gpa, key);
}

static void tables_insert(struct translator *tr, struct tblock *block)
{
        _Atomic uint32_t *head = hash_at(tr, block->gpa, block->key);
        uint32_t *page = page_at(tr, block->gpa), number = tblock_number(tr, block), bit = start_bit(block->gpa);

        atomic_fetch_or_explicit(&tr->starts[bit / 64], UINT64_C(1) << bit % 64, memory_order_relaxed);
        block->page_next = *page;
        *page = number;
        block->next = atomic_load_explicit(head, memory_order_relaxed);
        atomic_store_explicit(head, number, memory_order_release);
}

/* Whoever walks the chain meanwhile stands on block or passes it; its own next stays. */
static void hash_remove(struct translator *tr, struct tblock *block)
{
        _Atomic uint32_t *head = hash_at(tr, block->gpa, block->key);
        uint32_t number = tblock_number(tr, block), at = atomic_load_explicit(head, memory_order_relaxed);

        if (at == number) {
                atomic_store_explicit(head, block->next, memory_order_release);
                return;
        }
        while (at && tr->block[at].next != number)
                at = tr->block[at].next;
        if (at)
                __atomic_store_n(&tr->block[at].next, block->next, __ATOMIC_RELEASE);
}

static void page_remove(struct translator *tr, struct tblock *block)
{
        for (uint32_t *at = page_at(tr, block->gpa); *at; at = &tr->block[*at].page_next)
                if (&tr->block[*at] == block) {
                        *at = block->page_next;
                        return;
                }
}

/* ---- links; under the lock ---- */

static void store_rel32(struct translator *tr, uint32_t at, uint32_t target)
{
        __atomic_store_n((uint32_t *)code_cache_rw(tr->cache, at), target - (at + 4), __ATOMIC_RELEASE);
}

static uint32_t *incoming_of(const struct translator *tr, uint32_t number)
{
        return tsite_incoming(tblock_unit(tr, tblock_of(tr, number), number & TNUMBER_OWN));
}

/* Where the rel32 of a CHAIN or GROUP leads to. */
static uint32_t chain_target(const struct translator *tr, const struct tblock *block, const struct tsite *site)
{
        uint32_t at = block->host + site->patch;

        return at + 4 + __atomic_load_n((const uint32_t *)code_cache_rw(tr->cache, at), __ATOMIC_RELAXED);
}

/* And while it is not linked. */
static uint32_t chain_edge(const struct translator *tr, const struct tblock *block, const struct tsite *site)
{
        return site->kind == TSITE_GROUP ? tr->thunk[TTHUNK_MEMORY] : block->host + site->next;
}

static bool chain_linked(const struct translator *tr, const struct tblock *block, const struct tsite *site)
{
        return (site->kind == TSITE_CHAIN || site->kind == TSITE_GROUP) && chain_target(tr, block, site) != chain_edge(tr, block, site);
}

/* The registers of the recipe that jit.flags names. */
static uint16_t passed_by(const struct translator *tr, const struct tblock *block, const struct tsite *site)
{
        struct tflags_recipe recipe;

        if (site->flags != TFLAGS_RECIPE)
                return 0;
        recipe = tnote_recipe(tblock_note(tr, block, site->note));
        return translator_flags_registers(&recipe);
}

/* Where the block's site may enter another block; 0: nowhere. */
static uint32_t entry_for(const struct translator *tr, const struct tblock *block, const struct tsite *site, const struct tblock *to)
{
        if (site->kind == TSITE_GROUP)
                return to->host + (site->flags == TFLAGS_SAVED ? to->fast : to->with_host);
        if (to->entry == TENTRY_FAULTS && site->flags != TFLAGS_HOST && !(passed_by(tr, block, site) & to->fast_changes))
                return to->host + to->fast;
        if (!site->not_host)
                return to->host + to->with_host;
        return to->entry == TENTRY_DEAD ? to->host + to->fast : 0;
}

void translator_link(struct translator *tr, uint32_t number, struct tblock *to)
{
        struct tblock *block = tblock_of(tr, number);
        struct tsite site = tsite_of(tr, number), instead;

        if (tr->lock_step)
                return;
        pthread_mutex_lock(&tr->lock);
        if (site.instead) {
                instead = tblock_site(tr, block, site.instead);
                if (entry_for(tr, block, &instead, to)) {
                        number = (number & ~TNUMBER_OWN) | site.instead;
                        site = instead;
                }
        }
        if (!block->dead && !to->dead && !chain_linked(tr, block, &site)) {
                *incoming_of(tr, number) = to->incoming;
                to->incoming = number;
                store_rel32(tr, block->host + site.patch, entry_for(tr, block, &site, to));
        }
        pthread_mutex_unlock(&tr->lock);
}

static void chain_unlink(struct translator *tr, const struct tblock *block, const struct tsite *site)
{
        store_rel32(tr, block->host + site->patch, chain_edge(tr, block, site));
}

static void unlink_incoming(struct translator *tr, struct tblock *block)
{
        for (uint32_t at = block->incoming, next; at; at = next) {
                struct tsite site = tsite_of(tr, at);

                next = *incoming_of(tr, at);
                chain_unlink(tr, tblock_of(tr, at), &site);
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

static void incoming_remove(struct translator *tr, struct tblock *to, uint32_t number)
{
        for (uint32_t *at = &to->incoming; *at; at = incoming_of(tr, *at))
                if (*at == number) {
                        *at = *incoming_of(tr, number);
                        return;
                }
}

/* And where calls of the block return to. */
static void unlink_outgoing(struct translator *tr, struct tblock *block)
{
        struct tsite site;

        for (unsigned own = 1; own <= block->sites; own += tsite_units(site.kind)) {
                site = tblock_site(tr, block, own);
                if (site.kind == TSITE_RETURN) {
                        patch_entry(tr, block->host + site.patch);
                } else if (chain_linked(tr, block, &site)) {
                        incoming_remove(tr, translator_block_at(tr, chain_target(tr, block, &site)), tblock_number(tr, block) << TNUMBER_BITS | own);
                        chain_unlink(tr, block, &site);
                }
        }
}

static void block_kill(struct translator *tr, struct tblock *block)
{
        if (block->dead)
                return;
        __atomic_store_n(&block->dead, true, __ATOMIC_RELEASE);
        hash_remove(tr, block);
        page_remove(tr, block);
        atomic_fetch_and_explicit(&tr->starts[start_bit(block->gpa) / 64], ~(UINT64_C(1) << start_bit(block->gpa) % 64), memory_order_relaxed);
        unlink_incoming(tr, block);
        unlink_outgoing(tr, block);
        patch_entry(tr, block->host);
        patch_entry(tr, block->host + TBLOCK_JUMP);
        atomic_fetch_add_explicit(&tr->stats.killed, 1, memory_order_relaxed);
}

/* ---- bytes that were written ---- */

static void written_in_page(struct translator *tr, uint64_t gpa, uint64_t size_bytes)
{
        for (uint32_t at = *page_at(tr, gpa), next; at; at = next) {
                struct tblock *block = &tr->block[at];

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
                block_kill(tr, &tr->block[region->first + i]);
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
        next->blocks = next->data_used = 0;
        next->retired = 0;
        code_cache_advance(tr->cache);
        tr->current = (tr->current + 1) % tr->regions;
        region_retire(tr, &tr->region[(tr->current + 1) % tr->regions]);
        return 0;
}

struct tblock *translator_block_at(struct translator *tr, uint32_t host)
{
        const struct tregion *region = &tr->region[host / code_cache_region_size(tr->cache)];
        struct tblock *block = &tr->block[region->first];
        unsigned low = 0, high = region->blocks;

        while (low < high) {
                unsigned middle = (low + high) / 2;

                if (block[middle].host + block[middle].host_bytes <= host)
                        low = middle + 1;
                else
                        high = middle;
        }
        return low < region->blocks && block[low].host <= host ? &block[low] : NULL;
}

/* ---- translating ---- */

uint32_t translator_thunk(const struct translator *tr, enum tthunk thunk)
{
        return tr->thunk[thunk];
}

static void perf_line(const struct translator *tr, const struct tblock *block)
{
        char line[96];
        int n;

        if (tr->perf_map < 0)
                return;
        n = snprintf(line, sizeof(line), "%lx %x guest-%s-%lx\n", (unsigned long)(uintptr_t)code_cache_rx(tr->cache, block->host),
                     block->host_bytes, block->key & MODE_USER ? "user" : "kernel", (unsigned long)block->gpa);
        if (write(tr->perf_map, line, (size_t)n) < 0)
                return; /* a listing for a person: a full disk costs its end */
}

/* What belongs to a block, see tblock.data. false: the region has no room for it. */
static bool keep_data(struct translator *tr, const struct tsource *source, struct tblock *block)
{
        struct tregion *region = &tr->region[tr->current];
        size_t site_bytes = block->sites * sizeof(uint32_t), note_bytes = block->notes * sizeof(struct tnote);
        size_t second_bytes = source->key & TKEY_CROSSING ? sizeof(source->second) : 0;
        size_t bytes = align_up(site_bytes + note_bytes + second_bytes + block->size_bytes, sizeof(uint32_t));

        if (tr->region_data - region->data_used < bytes)
                return false;
        block->data = (uint32_t)(region->data_first + region->data_used + site_bytes);
        region->data_used += (uint32_t)bytes;
        translation_pack(tr->translation, tblock_unit(tr, block, 1));
        memcpy(tblock_note(tr, block, 1), translation_notes(tr->translation), note_bytes);
        memcpy(tblock_note(tr, block, block->notes + 1u), &source->second, second_bytes);
        memcpy((uint8_t *)tblock_note(tr, block, block->notes + 1u) + second_bytes, source->bytes, block->size_bytes);
        return true;
}

/* One try in the current region; under the lock. */
static int translate_here(struct translator *tr, struct x86_cpu *cpu, const struct tsource *source, struct tblock **out)
{
        struct tregion *region = &tr->region[tr->current];
        struct tblock *block;
        struct x86_asm a;
        uint32_t at;
        int r;

        if (region->blocks == tr->region_blocks || code_cache_reserve(tr->cache, HOST_BYTES_MAX, &at) < 0)
                return -ENOSPC;
        block = &tr->block[region->first + region->blocks];
        *block = (struct tblock){ .gpa = source->gpa, .key = source->key, .host = at };
        a = (struct x86_asm){
                .buffer = code_cache_rw(tr->cache, at), .address = (uintptr_t)code_cache_rx(tr->cache, at), .size = HOST_BYTES_MAX,
                .fit_jumps = true,
        };
        r = translate_block(tr->translation, tr, cpu, source, tblock_number(tr, block) << TNUMBER_BITS, &a, block);
        if (r < 0)
                return r;
        if (!keep_data(tr, source, block))
                return -ENOSPC;
        region->blocks++;
        block->host_bytes = (uint16_t)a.used;
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

        x86_expect_vectors_out(cpu);
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
        struct tsecond second;

        x86_expect_vectors_out(cpu);
        if (!crossing_pages(cpu, rip, page))
                return NULL;
        block = crossing_at(cpu, page[0]->gpa | (rip & (GUEST_PAGE_SIZE - 1)));
        if (!block)
                return NULL;
        second = tblock_second(cpu->translator, block);
        if (second.gpa != page[1]->gpa || atomic_load_explicit(second.code, memory_order_acquire) != second.generation)
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

        x86_expect_vectors_out(cpu);
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
                translator_decoded_forget(cpu);
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
