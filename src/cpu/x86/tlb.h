/*
 * The soft TLB: what one processor knows of linear addresses, and the address spaces it knows it of.
 *
 * Data accesses look into a direct-mapped set by the page of their first byte; there is one for each way of access rights. A tag is
 * the linear page address when the access is allowed and plain (RAM, no code on a page that is written). So linear ^ tag is the
 * offset in the page on a hit, and comparing it with the page size less the access's sees an access that leaves its page as well.
 *
 * Spaces. What depends on the address space - user pages, and with them everything that a supervisor with AC set sees - is kept for
 * the last X86_SPACES PCIDs, so that a switch of tasks flushes nothing. Translated code reaches all of it at fixed offsets from GS:
 * struct x86_cpu is mapped once for each space ("window", window.c); what is common is the same memory in each window, and
 * `own`, at its end, is the window's own. C code holds one cpu pointer, the first window, and takes cpu->space for the current
 * space's own part.
 *
 *      window 0        │ common │ own of space 0 │          cpu
 *      window 1        │ common │ own of space 1 │          cpu->window, GS base, while space 1 is current
 *      …
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/util.h"

enum tlb_mode {
        TLB_SUPERVISOR,      /* with AC set, or without CR4.SMAP: the space's own */
        TLB_SUPERVISOR_SMAP, /* shared by all spaces: global pages stay, others are dropped when the space changes */
        TLB_USER,            /* the space's own */
        TLB_CHECKED,         /* never filled: alignment checks (#AC) and data breakpoints take the slow path for every access */
        TLB_MODES,
};
#define TLB_BITS 12 /* at most 12: struct tlb_used has one summary word */
#define TLB_ENTRIES (1u << TLB_BITS)

/* Low bits of tlb_set.gpa, and tlb_exec_entry.flags. */
#define TLB_GLOBAL 1u
#define TLB_LARGE_2M 2u /* or 4M */
#define TLB_LARGE_1G 4u

struct tlb_set {
        uint64_t read_tag[TLB_ENTRIES];
        uint64_t write_tag[TLB_ENTRIES];
        uintptr_t host[TLB_ENTRIES]; /* of the page's first byte */
        uint64_t gpa[TLB_ENTRIES];   /* page, with TLB_GLOBAL and TLB_LARGE_* in the low bits; valid with any tag that is not empty */
};

/*
 * Bloom filters, each with one hash: numbers that were added since it was empty, and some that were not. A processor forgets pages one
 * by one far more often than it has anything of them, and most of these questions end here.
 */
#define TLB_FILTER_PAGE_BITS 13
#define TLB_FILTER_4M_BITS 10
#define TLB_FILTER_1G_BITS 8

/* Large pages that there may be entries of; one of 2M counts as the 4M it is in. */
struct tlb_large {
        uint64_t in_4m[(1u << TLB_FILTER_4M_BITS) / 64];
        uint64_t in_1g[(1u << TLB_FILTER_1G_BITS) / 64];
};

/*
 * Which entries of a set may hold a translation, so that a flush is as long as what it drops. Bit n of summary: word[n] is not 0.
 * large_word: those of them that are of large pages.
 */
struct tlb_used {
        uint64_t summary;
        uint64_t word[TLB_ENTRIES / 64], large_word[TLB_ENTRIES / 64];
        struct tlb_large large;
        bool low_global; /* a global page of the lower half may be there */
};

/* Translations for fetching; user or not (SMAP and AC do not matter). host is NULL where there is no RAM. */
#define TLB_EXEC_ENTRIES 256u
struct tlb_exec_entry {
        uint64_t tag;
        uint64_t gpa;
        const uint8_t *host;
        uint32_t flags; /* TLB_GLOBAL, TLB_LARGE_* */
};

/* The same for an exec TLB. The filters also know what was replaced in it: the jump caches may still hold that. */
struct tlb_exec_used {
        uint64_t word[TLB_EXEC_ENTRIES / 64];
        uint64_t first, last; /* addresses that it knows lie between them, including; last 0: none */
        uint64_t page[(1u << TLB_FILTER_PAGE_BITS) / 64];
        struct tlb_large large;
};

/*
 * Jump caches: where translated code of a linear address is, one for each tlb_mode that a block may be translated for. As in the TLB an
 * empty entry has an address that is looked up elsewhere.
 */
#define TJUMP_BITS 12
#define TJUMP_ENTRIES (1u << TJUMP_BITS)
#define TJUMP_KERNEL_BITS 14 /* there is one kernel, and it is large */
#define TJUMP_KERNEL_ENTRIES (1u << TJUMP_KERNEL_BITS)
#define TJUMP_HASH 0x9e3779b1u /* the upper bits of the product are the index, the next 4 bits the offset in the entry: see tjump_index() */
struct tjump {
        uint64_t rip;
        uint64_t host;
};

/*
 * Behind the jump caches, for what had to make place in them: one table for all spaces and the kernel, which is larger and has another hash.
 * Each has its entries under a generation of its own; a new one forgets them. TTHUNK_JUMP looks here (translator-thunks.c).
 * None for TLB_SUPERVISOR, which copies between user and kernel only.
 */
#define TJUMP_SECOND_BITS 15
#define TJUMP_SECOND_ENTRIES (1u << TJUMP_SECOND_BITS)
#define TJUMP_SECOND_HASH 0x85ebca6bu
struct tjump_second {
        uint64_t rip;
        uint32_t host;       /* an offset in the code cache */
        uint32_t generation; /* 0: empty */
};

/* Which entries of a jump cache were set since it was empty; more than at[] holds: any. */
#define TJUMP_FILLS 512u
struct tjump_fills {
        uint16_t count;
        uint16_t at[TJUMP_FILLS];
};

#define X86_SPACES 8u

/* A space's own part of a window. */
struct x86_space {
        struct tlb_set supervisor, user;
        struct tlb_exec_entry exec[TLB_EXEC_ENTRIES]; /* user */
        struct tjump jump[TJUMP_ENTRIES];             /* TLB_USER */
        uint32_t generation;                          /* of its entries in x86_jit.second */
} __attribute__((aligned(4096)));

/* What is known of a space beside that. */
struct x86_space_info {
        uint16_t pcid;
        bool taken;         /* pcid is valid */
        bool ready;         /* its own part was made empty once: only then memory is there */
        uint64_t base;      /* CR3's table, when last current */
        uint64_t used_at;   /* x86_cpu.space_switches when last current */
        struct tlb_used supervisor, user;
        struct tlb_exec_used exec_used;
        struct tjump_fills fills;
};

/* Entries of the shared tables that are not global; more than at[] holds: look at all. */
#define TLB_LOCALS 64u
struct tlb_locals {
        uint16_t count;
        uint16_t at[TLB_LOCALS];
};

static inline unsigned tlb_index(uint64_t linear)
{
        return (unsigned)(linear >> 12) & (TLB_ENTRIES - 1);
}

static inline unsigned tjump_bits(enum tlb_mode mode)
{
        return mode == TLB_USER ? TJUMP_BITS : TJUMP_KERNEL_BITS;
}

static inline unsigned tjump_index(enum tlb_mode mode, uint64_t linear)
{
        return (uint32_t)linear * TJUMP_HASH >> (32 - tjump_bits(mode));
}

static inline unsigned tjump_second_index(uint64_t linear, uint32_t generation)
{
        return ((uint32_t)linear ^ generation) * TJUMP_SECOND_HASH >> (32 - TJUMP_SECOND_BITS);
}

static inline unsigned tlb_exec_index(uint64_t linear)
{
        return (unsigned)(linear >> 12) & (TLB_EXEC_ENTRIES - 1);
}

/* 0 is looked up at the first entry, 1 elsewhere. */
static inline uint64_t tjump_empty_rip(unsigned index)
{
        return index == 0;
}

/* The tag of an empty entry belongs to another entry's pages: no address that is looked up there, canonical or not, matches it. */
static inline uint64_t tlb_empty_tag(unsigned index)
{
        return (uint64_t)(index ^ 1) << 12;
}

#define _always_inline_ inline __attribute__((always_inline))

/* The host address of a plain access within one page that set knows, else NULL. */
static _always_inline_ void *tlb_find_in(const struct tlb_set *set, uint64_t linear, uint64_t size_bytes, bool write)
{
        unsigned index = tlb_index(linear);
        uint64_t offset = linear ^ (write ? set->write_tag[index] : set->read_tag[index]);
        uintptr_t host;

        if (unlikely(offset > 4096 - size_bytes))
                return NULL;
        host = set->host[index] + offset;
        if (!host)
                __builtin_unreachable(); /* spares callers the second test */
        return (void *)host;
}
