/*
 * What translator.c, translator-service.c, translator-thunks.c and translator-signal.c share.
 */
#pragma once

#include <pthread.h>

#include "cpu/x86/translator-sites.h"

#define TSIGNAL_STACK_BYTES ((size_t)64 << 10)

#define TRANSLATOR_REGIONS_MAX 16
#define TRANSLATOR_STARTS_BITS 22
#define TPAGE_BASE(rip) ((rip) & ~(GUEST_PAGE_SIZE - 1))

/*
 * What belongs to the blocks of one region of the code cache; all of it goes when the region is emptied. A region is full when its host
 * code, its blocks or their data are: so what is beside the code cache is bounded whatever the guest's code is like.
 */
struct tregion {
        uint32_t first;            /* number of its first block; they are in the order of their host code */
        uint32_t blocks;
        uint32_t data_first, data_used;
        uint64_t retired;          /* the epoch from which on nobody can be in it any more; 0: in use or empty */
};

struct translator_stats {
        _Atomic uint64_t blocks, guest_bytes, host_bytes, killed, evictions;
};

struct translator {
        struct x86_complex *complex;
        struct guest_memory *mem;
        struct code_cache *cache;
        pthread_mutex_t lock;      /* for all changes below */
        _Atomic uint32_t *hash;    /* by gpa and key: numbers of blocks; read without the lock */
        uint32_t *page;            /* by guest page */
        _Atomic uint64_t *starts;  /* a bit for each byte of some pages: a block may begin there, see translator_known() */
        unsigned hash_bits, page_bits;
        struct tregion region[TRANSLATOR_REGIONS_MAX];
        unsigned regions, current;
        uint32_t region_blocks, region_data; /* at most */
        struct tblock *block;      /* as mapped: all regions'; the first one is nobody's */
        uint8_t *data;             /* see tblock.data */
        size_t block_size, data_size; /* of the mappings */
        struct translation *translation;
        _Atomic uint64_t epoch;    /* raised when blocks were retired, so that jump caches are emptied */
        uint32_t thunk[TTHUNKS];
        const void *vectors_save;  /* void (struct x86_cpu *), host code */
        bool lock_step, wants_stats;
        bool host_avx;
        int perf_map;              /* -1: none */
        struct translator_stats stats;
};

/* ---- blocks, sites and notes by their numbers, see TNUMBER_BITS ---- */

static inline uint32_t tblock_number(const struct translator *tr, const struct tblock *block)
{
        return (uint32_t)(block - tr->block);
}

static inline struct tblock *tblock_of(const struct translator *tr, uint32_t number)
{
        return &tr->block[number >> TNUMBER_BITS];
}

static inline struct tnote *tblock_note(const struct translator *tr, const struct tblock *block, unsigned own)
{
        return (struct tnote *)(tr->data + block->data) + own - 1;
}

/* The packed site. All of a block: own = 1; own <= block->sites; own += tsite_units(site.kind). */
static inline uint32_t *tblock_unit(const struct translator *tr, const struct tblock *block, unsigned own)
{
        return (uint32_t *)(tr->data + block->data) - block->sites + own - 1;
}

static inline struct tsite tblock_site(const struct translator *tr, const struct tblock *block, unsigned own)
{
        return tsite_unpack(tblock_unit(tr, block, own));
}

static inline struct tsite tsite_of(const struct translator *tr, uint32_t number)
{
        return tblock_site(tr, tblock_of(tr, number), number & TNUMBER_OWN);
}

static inline struct tsecond tblock_second(const struct translator *tr, const struct tblock *block)
{
        struct tsecond second;

        memcpy(&second, tblock_note(tr, block, block->notes + 1u), sizeof(second));
        return second;
}

/* The guest's bytes as translated, and before them, with TKEY_CROSSING, where they go on. */
static inline const uint8_t *tblock_bytes(const struct translator *tr, const struct tblock *block)
{
        return (const uint8_t *)tblock_note(tr, block, block->notes + 1u) + (block->key & TKEY_CROSSING ? sizeof(struct tsecond) : 0);
}

/* ---- translator.c ---- */

/* The live block at gpa for key, NULL when there is none. Only while jit.inside holds the epoch. */
struct tblock *translator_lookup(const struct translator *tr, uint64_t gpa, uint32_t key);
/*
 * The block of the instruction at rip, which goes on in the next page. find: one that is there and right, as long as both pages'
 * translations for fetching are. make: translates it; NULL: not now.
 */
const struct tblock *translator_find_crossing(const struct x86_cpu *cpu, uint64_t rip);
const struct tblock *translator_make_crossing(struct x86_cpu *cpu, uint64_t rip);
/* The plain block at an offset in block's page, as things are; it is made when there is none. NULL: not now. */
struct tblock *translator_plain(struct x86_cpu *cpu, const struct tblock *block, uint32_t offset);
/* Links the site, or the one that stands for it, to the block; takes the lock. Nothing is done when either died. */
void translator_link(struct translator *tr, uint32_t site, struct tblock *to);
/* The block whose host code holds that offset; NULL. */
struct tblock *translator_block_at(struct translator *tr, uint32_t host);
/* Says that this processor may use blocks from now on; empties its jump caches when some were retired since. */
void translator_begin(struct x86_cpu *cpu);
static inline void translator_outside(struct x86_cpu *cpu)
{
        atomic_store_explicit(&cpu->jit.inside, 0, memory_order_release);
}

/* ---- translator-decode.c: instructions of sites, decoded when a service wants them ---- */

#define TDECODED_BITS 9

struct tdecoded {
        uint32_t site;             /* 0: none */
        fast_fn fast;              /* tried before insn's own handler; NULL: none */
        struct insn insn[2];       /* and an end mark */
};

void translator_decode(struct x86_cpu *cpu, uint32_t site, struct tdecoded *to);
/* Numbers of sites may be used again. */
void translator_decoded_forget(struct x86_cpu *cpu);

/* The instruction of a site, followed by its end mark; there until the next one is asked for. The vector registers may be out then. */
static inline const struct tdecoded *translator_decoded(struct x86_cpu *cpu, uint64_t number)
{
        uint32_t site = (uint32_t)number;
        struct tdecoded *at = &cpu->jit.decoded[site * UINT32_C(0x9e3779b1) >> (32 - TDECODED_BITS)];

        if (unlikely(at->site != site))
                translator_decode(cpu, site, at);
        return at;
}

/* ---- translator-thunks.c ---- */

int translator_make_thunks(struct translator *tr, struct err *err);

/* ---- translator-service.c: what thunks call; each returns where to go on, NULL: out ---- */

const void *translator_serve_memory(struct x86_cpu *cpu, uint64_t site, uint64_t rbp);
const void *translator_serve_handler(struct x86_cpu *cpu, uint64_t site, uint64_t rbp);
const void *translator_serve_chain(struct x86_cpu *cpu, uint64_t site, uint64_t rbp);
const void *translator_serve_jump(struct x86_cpu *cpu, uint64_t site, uint64_t rbp);
const void *translator_serve_arrive(struct x86_cpu *cpu, uint64_t site, uint64_t rbp);
const void *translator_serve_go(struct x86_cpu *cpu, uint64_t site, uint64_t rbp);
const void *translator_serve_leave(struct x86_cpu *cpu, uint64_t site, uint64_t rbp);
const void *translator_serve_stale(struct x86_cpu *cpu, uint64_t host, uint64_t rbp);
const void *translator_serve_x87(struct x86_cpu *cpu, uint64_t site, uint64_t rbp);

/* ---- translator-x87.c ---- */

/* Into the host's x87 unit, unless it is there; false: an exception is not masked. Nothing else may use the unit until it is spilled. */
bool translator_x87_load(struct x86_cpu *cpu);
/* Back, from where it is. */
void translator_x87_spill(struct x86_cpu *cpu);

/* The guest's vector registers and x87 state into s.fpu, unless they are there; before calling what may use the host's. */
static inline void translator_vectors_out(struct x86_cpu *cpu)
{
        const struct translator *tr = cpu->translator;

        if (!cpu->jit.x87_out)
                translator_x87_spill(cpu);
        if (!cpu->jit.vectors_out)
                ((void (*)(struct x86_cpu *))(uintptr_t)tr->vectors_save)(cpu);
}

/* ---- translator-signal.c ---- */

int translator_signals_install(struct err *err);

/* ---- the flags between the host's form (SETO, LAHF) and EFLAGS ---- */

static inline uint64_t tflags_to_eflags(uint16_t flags)
{
        return (flags >> 8 & 0xd5) | (uint64_t)(flags & 1) << 11;
}

static inline uint16_t tflags_of_eflags(uint64_t eflags)
{
        return (uint16_t)(TFLAGS_REAL | (eflags & 0xd5) << 8 | (eflags >> 11 & 1));
}
