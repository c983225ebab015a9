#include "cpu/x86/block.h"

#include <assert.h>
#include <errno.h>
#include <sys/mman.h>

#include "cpu/x86/decode.h"
#include "cpu/x86/integer.h"

/* Beside a translator it is for what runs a few times, most of which never comes back. */
#define ARENA_BYTES ((size_t)16 << 20)
#define ARENA_BYTES_TRANSLATED ((size_t)6 << 20)
#define HASH_BITS 15
#define BYTES_MAX (BLOCK_INSNS_MAX * INSN_LENGTH_MAX)
/* The most that one block takes. */
#define BLOCK_BYTES_MAX (sizeof(struct x86_block) + (BLOCK_INSNS_MAX + 1) * sizeof(struct insn) + BYTES_MAX + 16)

int block_cache_new(struct x86_cpu *cpu, struct err *err)
{
        struct block_cache *cache = calloc(1, sizeof(*cache));

        if (!cache)
                return err_nomem(err);
        cache->hash = calloc((size_t)1 << HASH_BITS, sizeof(*cache->hash));
        cache->arena_size = cpu->translator ? ARENA_BYTES_TRANSLATED : ARENA_BYTES;
        cache->arena = mmap(NULL, cache->arena_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (!cache->hash || cache->arena == MAP_FAILED) {
                if (cache->arena == MAP_FAILED)
                        cache->arena = NULL;
                block_cache_free(cache);
                return err_nomem(err);
        }
        cpu->blocks = cache;
        decode_init(cpu, cache);
        return 0;
}

void block_cache_free(struct block_cache *cache)
{
        if (!cache)
                return;
        if (cache->arena)
                munmap(cache->arena, cache->arena_size);
        free(cache->hash);
        free(cache);
}

void block_cache_flush(struct block_cache *cache)
{
        memset(cache->jump, 0, sizeof(cache->jump));
        memset(cache->hash, 0, sizeof(*cache->hash) << HASH_BITS);
        cache->arena_used = 0;
        cache->epoch++;
}

static struct x86_block **hash_at(struct block_cache *cache, uint64_t gpa, uint32_t mode_key)
{
        uint64_t key = (gpa ^ (uint64_t)mode_key << 40) * UINT64_C(0x9e3779b97f4a7c15);

        return &cache->hash[key >> (64 - HASH_BITS)];
}

/* ---- decoding ---- */

static const _Atomic uint32_t *code_word(struct x86_cpu *cpu, uint64_t gpa)
{
        const struct guest_region *region = guest_memory_find(cpu->mem, gpa);

        return region ? guest_region_code(region, gpa) : &cpu->blocks->no_code;
}

static uint64_t linear_of(const struct x86_cpu *cpu, uint64_t rip)
{
        return cpu->mode64 ? rip : (uint32_t)(cpu->s.seg[X86_CS].base + rip);
}

/* Where the running block's bytes come from. */
struct source {
        uint64_t gpa;
        const uint8_t *host; /* NULL: not RAM */
        size_t size_bytes;   /* to the page's end */
        uint32_t generation;
};

static struct source source_at(struct x86_cpu *cpu, uint64_t linear)
{
        struct source source;

        source.gpa = mmu_fetch(cpu, linear, &source.host);
        source.size_bytes = GUEST_PAGE_SIZE - (source.gpa & (GUEST_PAGE_SIZE - 1));
        source.generation = 0;
        return source;
}

/* Copies what is there of size_bytes: another processor may write it meanwhile, and decoding looks more than once. */
static size_t source_copy(struct x86_cpu *cpu, struct source *source, uint8_t *to, size_t size_bytes)
{
        size_t n = MIN(size_bytes, source->size_bytes);

        if (source->host) {
                source->generation = mmu_page_becomes_code(cpu, source->gpa & ~(GUEST_PAGE_SIZE - 1));
                memcpy(to, source->host, n);
                return n;
        }
        n = MIN(n, (size_t)INSN_LENGTH_MAX);
        complex_leave(cpu);
        for (size_t i = 0; i < n; i++)
                to[i] = (uint8_t)cpu->platform->mmio_read(cpu->ctx, source->gpa + i, 1);
        complex_enter(cpu);
        return n;
}

/*
 * One instruction that needs bytes of the next page. bytes has room for INSN_LENGTH_MAX and holds the first page's. The
 * processor fetches the second page only because the instruction goes on there, so its fault comes here.
 */
static void decode_crossing(struct x86_cpu *cpu, struct x86_block *block, uint64_t rip, uint8_t *bytes, size_t first_bytes)
{
        uint64_t second_rip = rip + first_bytes;
        struct source second;
        size_t size;

        if (!cpu->mode64 && second_rip > cpu->s.seg[X86_CS].limit)
                x86_gp0(cpu);
        if (cpu->mode64 && second_rip == UINT64_C(0x800000000000))
                x86_gp0(cpu);
        second = source_at(cpu, linear_of(cpu, second_rip));
        size = first_bytes + source_copy(cpu, &second, bytes + first_bytes, INSN_LENGTH_MAX - first_bytes);
        block->crosses = true;
        block->second_gpa = second.gpa;
        block->second_generation = second.generation;
        block->second_code = second.host ? code_word(cpu, second.gpa) : &cpu->blocks->no_code;
        if (!second.host)
                block->second_generation = 1;
        if (decode_insn(cpu, bytes, size, 0, &block->insn[0]) < 0)
                abort(); /* it has INSN_LENGTH_MAX bytes */
}

static void decode_straight(struct x86_cpu *cpu, struct x86_block *block, uint64_t rip, uint8_t *bytes, size_t size,
                            unsigned most)
{
        unsigned n = 0, at = 0;

        while (n < most && at < size) {
                struct insn *insn = &block->insn[n];

                if (decode_insn(cpu, bytes + at, size - at, at, insn) < 0) {
                        if (n)
                                break;
                        decode_crossing(cpu, block, rip, bytes, size);
                }
                at = insn->end;
                n++;
                if (insn->flags & INSN_ENDS_BLOCK)
                        break;
        }
        block->count = (uint16_t)n;
        block->size = (uint16_t)at;
        decode_end_mark(at, &block->insn[n]);
        if (n > 1)
                integer_fuse(block->insn, n);
}

/* What is decoded again, because the arena was dropped, comes back: it is worth translating soon. */
static uint32_t heat_at(const struct x86_cpu *cpu, uint64_t gpa)
{
        struct block_cache *cache = cpu->blocks;
        size_t bit = (size_t)(gpa * UINT64_C(0x9e3779b97f4a7c15) >> (64 - BLOCK_SEEN_BITS));
        bool seen = cache->seen[bit / 8] & 1u << bit % 8;

        if (!cpu->translator || !cpu->mode64)
                return BLOCK_HEAT_NEVER;
        cache->seen[bit / 8] |= (uint8_t)(1u << bit % 8);
        return seen ? BLOCK_HEAT_AGAIN : BLOCK_HEAT;
}

static struct x86_block *block_decode(struct x86_cpu *cpu, uint64_t rip, struct source *source, unsigned most)
{
        struct block_cache *cache = cpu->blocks;
        uint8_t bytes[BYTES_MAX + INSN_LENGTH_MAX];
        struct x86_block *block;
        size_t size;

        if (cache->arena_size - cache->arena_used < BLOCK_BYTES_MAX)
                block_cache_flush(cache);
        size = source_copy(cpu, source, bytes, MIN((size_t)BYTES_MAX, (size_t)most * INSN_LENGTH_MAX));

        block = (struct x86_block *)(cache->arena + cache->arena_used);
        memset(block, 0, sizeof(*block));
        block->gpa = source->gpa;
        block->mode_key = cpu->mode_key;
        block->heat = heat_at(cpu, source->gpa);
        block->code = source->host ? code_word(cpu, source->gpa) : &cache->no_code;
        block->generation = source->host ? source->generation : 1; /* never fresh */
        decode_straight(cpu, block, rip, bytes, size, most);

        block->bytes = (uint8_t *)&block->insn[block->count + 1];
        memcpy(block->bytes, bytes, block->size);
        cache->arena_used = align_up((uint64_t)(block->bytes + block->size - cache->arena), 16);
        return block;
}

/* ---- finding ---- */

static void hash_remove(struct x86_block **at, const struct x86_block *block)
{
        for (; *at; at = &(*at)->next) {
                if (*at == block) {
                        *at = block->next;
                        return;
                }
        }
}

/* The generation changed: valid again when the bytes are as they were. */
static bool block_revive(struct x86_cpu *cpu, struct x86_block *block, const struct source *source)
{
        uint32_t generation;
        uint8_t now[BYTES_MAX];
        size_t first = MIN((size_t)block->size, source->size_bytes);

        if (block->dead || block->crosses || !source->host)
                return false;
        generation = mmu_page_becomes_code(cpu, source->gpa & ~(GUEST_PAGE_SIZE - 1));
        memcpy(now, source->host, first);
        if (memcmp(now, block->bytes, first))
                return false;
        block->generation = generation;
        return true;
}

static bool second_page_same(struct x86_cpu *cpu, const struct x86_block *block, uint64_t rip, size_t first_bytes)
{
        const uint8_t *host;
        uint64_t gpa = mmu_fetch(cpu, linear_of(cpu, rip + first_bytes), &host);

        return host && gpa == block->second_gpa &&
               block->second_generation == atomic_load_explicit(block->second_code, memory_order_acquire);
}

static struct x86_block *block_search(struct x86_cpu *cpu, uint64_t rip, const struct source *source)
{
        struct x86_block **head = hash_at(cpu->blocks, source->gpa, cpu->mode_key);

        for (struct x86_block *block = *head; block; block = block->next) {
                if (block->gpa != source->gpa || block->mode_key != cpu->mode_key)
                        continue;
                if ((block_fresh(block) && !block->dead) || block_revive(cpu, block, source)) {
                        if (!block->crosses || second_page_same(cpu, block, rip, source->size_bytes))
                                return block;
                }
                hash_remove(head, block);
                return NULL;
        }
        return NULL;
}

/* Outside 64-bit mode the last byte of each instruction must be within the code segment's limit. */
static struct x86_block *block_within_limit(struct x86_cpu *cpu, uint64_t rip, struct source *source, struct x86_block *block)
{
        uint64_t limit = cpu->s.seg[X86_CS].limit;

        if (likely(rip + block->size <= limit + 1 && rip <= limit))
                return block;
        if (rip > limit)
                x86_gp0(cpu);
        /* A shorter block, not kept. */
        block = block_decode(cpu, rip, source, 1);
        if (rip + block->size > limit + 1)
                x86_gp0(cpu);
        block->generation = ~block->generation;
        return block;
}

static struct x86_block *block_find(struct x86_cpu *cpu, uint64_t rip)
{
        struct x86_block *block;
        struct source source;

        if (cpu->mode64 && unlikely((((rip >> 47) + 1) & 0x1ffff) > 1))
                x86_gp0(cpu);
        if (!cpu->mode64 && unlikely(rip > cpu->s.seg[X86_CS].limit))
                x86_gp0(cpu);
        source = source_at(cpu, linear_of(cpu, rip));
        block = block_search(cpu, rip, &source);
        if (!block) {
                block = block_decode(cpu, rip, &source, cpu->mode_key & MODE_STEP ? 1 : BLOCK_INSNS_MAX);
                if (source.host) {
                        struct x86_block **head = hash_at(cpu->blocks, source.gpa, cpu->mode_key);

                        block->next = *head;
                        *head = block;
                }
        }
        return cpu->mode64 ? block : block_within_limit(cpu, rip, &source, block);
}

/* ---- going from one to the next ---- */

static struct x86_block *find_and_remember(struct x86_cpu *cpu, uint64_t rip)
{
        struct x86_block *block = block_find(cpu, rip);

        /* Under single step every instruction goes back to the run loop, so a branch must not find its target. */
        if (!block->crosses && !(cpu->mode_key & MODE_STEP))
                *block_jump_at(cpu->blocks, rip) = (struct block_jump){ .rip = rip, .block = block };
        return block;
}

const struct insn *block_enter(struct x86_cpu *cpu)
{
        uint64_t rip = cpu->s.rip;
        struct x86_block *block = block_known(cpu, rip);

        if (!block)
                block = find_and_remember(cpu, rip);
        /* The run loop has looked already: interpreted all the same, and not asked about again soon. */
        if (!block_cool(block))
                block->heat = cpu->translator ? BLOCK_HEAT : BLOCK_HEAT_NEVER;
        return block_begin(cpu, block, rip);
}

uint32_t *block_heat(struct x86_cpu *cpu, uint64_t gpa)
{
        for (struct x86_block *block = *hash_at(cpu->blocks, gpa, cpu->mode_key); block; block = block->next)
                if (block->gpa == gpa && block->mode_key == cpu->mode_key && !block->dead)
                        return &block->heat;
        return NULL;
}

const struct insn *block_leave(struct x86_cpu *cpu, uint64_t rip)
{
        cpu->s.rip = rip;
        cpu->block = NULL;
        return NULL;
}

const struct insn *block_jump_slow(struct x86_cpu *cpu, uint64_t rip)
{
        struct x86_block *to;

        block_leave(cpu, rip);
        if (block_interrupted(cpu) || cpu->mode_key & MODE_STEP)
                return NULL;
        to = find_and_remember(cpu, rip);
        return block_cool(to) ? block_begin(cpu, to, rip) : NULL;
}

const struct insn *block_follow_slow(struct x86_cpu *cpu, enum block_way way, uint64_t rip)
{
        struct x86_block *from = cpu->block, *to;
        uint64_t epoch = cpu->blocks->epoch;

        if (!cpu->mode64 || from->crosses || cpu->mode_key & MODE_STEP ||
            (rip ^ cpu->s.gpr[GPR_BLOCK]) >> GUEST_PAGE_SHIFT)
                return block_go(cpu, rip);
        block_leave(cpu, rip);
        if (block_interrupted(cpu))
                return NULL;
        to = block_find(cpu, rip);
        if (!to->crosses && epoch == cpu->blocks->epoch && to->mode_key == from->mode_key)
                from->link[way] = to;
        return block_cool(to) ? block_begin(cpu, to, rip) : NULL;
}

/* ---- code that changes under way ---- */

static const struct insn *leave_changed(struct x86_cpu *cpu, const struct insn *i)
{
        return block_leave(cpu, insn_rip(cpu, i->start));
}

void block_code_written(struct x86_cpu *cpu, uint64_t gpa, unsigned size_bytes)
{
        struct x86_block *block = cpu->block;
        uint64_t first_bytes;
        bool hit;

        if (!block)
                return;
        first_bytes = MIN((uint64_t)block->size, GUEST_PAGE_SIZE - (block->gpa & (GUEST_PAGE_SIZE - 1)));
        hit = gpa < block->gpa + first_bytes && block->gpa < gpa + size_bytes;
        if (block->crosses)
                hit |= gpa < block->second_gpa + (block->size - first_bytes) && block->second_gpa < gpa + size_bytes;
        if (!hit)
                return;
        block->dead = true;
        /* The end mark is behind the last one, so there always is a next. */
        block->insn[cpu->insn - block->insn + 1].fn = leave_changed;
}
