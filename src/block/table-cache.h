/*
 * Tables of image formats in memory: pages of files, read when somebody wants them, written when there must be room or all is flushed.
 *
 * What a page says may hold only behind a flush of data that was written before (table_page_changed()): the cache sees to that with `barrier`.
 * A format that writes its tables through a journal has that done by `journal`, for pages that are about to be written. All of it blocks,
 * and runs on the thread of the loop.
 */
#pragma once

#include "base/fiber.h"
#include "block/block.h"

#define TABLE_PAGE_BYTES 4096u
#define TABLE_HASH_BITS 10
/* So many pages are written, and journalled, at once. */
#define TABLE_WRITES_MAX 16

struct table_page {
        struct block *file;
        uint64_t offset; /* in the file */
        uint8_t *bytes;  /* of the cache's page size */
        bool dirty, loading, writing, failed;
        unsigned pins;
        uint64_t after;  /* may be written once cache->flushed has come to this */
        struct table_page *chain;          /* of those with the same hash */
        struct table_page *newer, *older;  /* in the order of use */
        struct fiber_queue waiting;        /* for its bytes */
};

struct table_cache {
        uint32_t page_bytes;
        unsigned pages, pages_max, dirty, writing;
        struct table_page *newest, *oldest;
        struct table_page *hash[1u << TABLE_HASH_BITS];
        uint64_t written, flushed; /* writes that pages wait for (table_page.after), and those of them that are on stable storage */
        int (*barrier)(struct table_cache *cache); /* flushes what data was written to */
        /* NULL: none. Pages of one file, and what they are about to be written as, side by side: that is safe when it returns. One at a time. */
        int (*journal)(struct table_cache *cache, struct table_page *const page[], const uint8_t *bytes, unsigned count);
        struct fiber_lock journal_lock;
};

/* page_bytes: no more than what tables are aligned to. barrier and journal are the caller's to set. */
void table_cache_init(struct table_cache *c, uint32_t page_bytes, size_t max_bytes);
void table_cache_done(struct table_cache *c);
/* The page that holds that byte of the file, pinned. */
int table_page_get(struct table_cache *c, struct block *file, uint64_t offset, struct table_page **page) _must_check_;
/* The same for a page that is not read: it is all zeroes, and dirty. */
int table_page_new(struct table_cache *c, struct block *file, uint64_t offset, struct table_page **page) _must_check_;
void table_page_put(struct table_page *page);
/* Not blocking; NULL: it is not here. Not pinned. */
struct table_page *table_page_peek(struct table_cache *c, struct block *file, uint64_t offset);
/* It was changed. after_flush: what it says holds behind a flush of what was written so far. */
void table_page_changed(struct table_cache *c, struct table_page *page, bool after_flush);
/* Nothing is to be written, nor on its way: a flush of the files is a flush of the tables. */
static inline bool table_cache_idle(const struct table_cache *c)
{
        return !c->dirty && !c->writing;
}

/* All dirty pages, a flush before those that want one. No flush afterwards. */
int table_cache_write(struct table_cache *c) _must_check_;
/* Forgets the pages of these bytes, written or not. */
void table_cache_forget(struct table_cache *c, struct block *file, uint64_t offset, uint64_t size_bytes);

static inline uint8_t *table_page_at(const struct table_cache *c, const struct table_page *page, uint64_t offset)
{
        return page->bytes + (offset & (c->page_bytes - 1));
}
