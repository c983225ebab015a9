/*
 * What translator.c, translator-service.c, translator-thunks.c and translator-signal.c share.
 */
#pragma once

#include <pthread.h>

#include "cpu/x86/translator.h"

#define TSIGNAL_STACK_BYTES ((size_t)64 << 10)

#define TRANSLATOR_REGIONS_MAX 16
#define TPAGE_BASE(rip) ((rip) & ~(GUEST_PAGE_SIZE - 1))

/* What belongs to the blocks of one region of the code cache; all of it goes when the region is emptied. */
struct tregion {
        struct tblock *block;      /* in the order of their host code */
        unsigned blocks, blocks_max;
        struct insn *insn;
        unsigned insns, insns_max;
        uint8_t *bytes;            /* the guest's bytes of the blocks */
        size_t bytes_used, bytes_max;
        uint32_t site_first, site_next, site_end;
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
        struct tblock *_Atomic *hash;  /* by gpa and key; read without the lock */
        struct tblock **page;      /* by guest page */
        unsigned hash_bits;
        struct tregion region[TRANSLATOR_REGIONS_MAX];
        unsigned regions, current;
        struct tsite *site;
        struct insn *pool_insn;    /* as mapped: all regions' */
        struct tblock *pool_block;
        uint8_t *pool_bytes;
        size_t site_size, insn_size, block_size, bytes_size; /* of the mappings */
        _Atomic uint64_t epoch;    /* raised when blocks were retired, so that jump caches are emptied */
        uint32_t thunk[TTHUNKS];
        const void *vectors_save;  /* void (struct x86_cpu *), host code */
        bool lock_step, wants_stats;
        bool host_avx;
        int perf_map;              /* -1: none */
        struct translator_stats stats;
};

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
void translator_link(struct translator *tr, struct tsite *site, struct tblock *to);
/* The block whose host code holds that offset; NULL. */
struct tblock *translator_block_at(struct translator *tr, uint32_t host);
/* Says that this processor may use blocks from now on; empties its jump caches when some were retired since. */
void translator_begin(struct x86_cpu *cpu);
static inline void translator_outside(struct x86_cpu *cpu)
{
        atomic_store_explicit(&cpu->jit.inside, 0, memory_order_release);
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
