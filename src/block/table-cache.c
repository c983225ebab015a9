/*
 * Pages of an image's tables in memory; see table-cache.h.
 *
 * A page is a piece of a table: with clusters of 2 MiB nobody wants to read a table of 2 MiB for one entry. The cache has a fixed size;
 * the page that was used longest ago makes room, written first when it is dirty. Pinned pages stay.
 *
 *      (none) ──get──▶ loading ──read──▶ clean ◀──────written────── writing
 *                                          └──changed──▶ dirty ──────▲
 *
 * While a page is written it may change again: a copy goes to the disk, and it is dirty once more.
 */
#include <assert.h>
#include <errno.h>

#include "block/table-cache.h"

static unsigned hash_of(const struct table_cache *c, const struct block *file, uint64_t offset)
{
        return (unsigned)((offset / c->page_bytes + ((uintptr_t)file >> 4)) * UINT64_C(0x9e3779b97f4a7c15) >> (64 - TABLE_HASH_BITS));
}

static uint64_t page_start(const struct table_cache *c, uint64_t offset)
{
        return align_down(offset, c->page_bytes);
}

void table_cache_init(struct table_cache *c, uint32_t page_bytes, size_t max_bytes)
{
        c->page_bytes = page_bytes;
        c->pages_max = (unsigned)MAX(max_bytes / page_bytes, (size_t)64);
}

static void unlink_use(struct table_cache *c, struct table_page *page)
{
        *(page->newer ? &page->newer->older : &c->newest) = page->older;
        *(page->older ? &page->older->newer : &c->oldest) = page->newer;
}

static void link_newest(struct table_cache *c, struct table_page *page)
{
        page->newer = NULL;
        page->older = c->newest;
        *(c->newest ? &c->newest->newer : &c->oldest) = page;
        c->newest = page;
}

static void free_page(struct table_page *page)
{
        free(page->bytes);
        free(page);
}

/* Nobody finds it from now on. */
static void take_out(struct table_cache *c, struct table_page *page)
{
        struct table_page **at = &c->hash[hash_of(c, page->file, page->offset)];

        while (*at != page)
                at = &(*at)->chain;
        *at = page->chain;
        unlink_use(c, page);
        c->pages--;
        c->dirty -= page->dirty;
}

static void drop(struct table_cache *c, struct table_page *page)
{
        assert(!page->pins && !page->loading && !page->writing);
        take_out(c, page);
        free_page(page);
}

void table_cache_done(struct table_cache *c)
{
        while (c->oldest)
                drop(c, c->oldest);
}

static struct table_page *find(struct table_cache *c, const struct block *file, uint64_t start)
{
        struct table_page *page = c->hash[hash_of(c, file, start)];

        while (page && (page->offset != start || page->file != file))
                page = page->chain;
        return page;
}

struct table_page *table_page_peek(struct table_cache *c, struct block *file, uint64_t offset)
{
        struct table_page *page = find(c, file, page_start(c, offset));

        if (!page || page->loading)
                return NULL;
        if (page->newer) {
                unlink_use(c, page);
                link_newest(c, page);
        }
        return page;
}

/* ---- writing ---- */

/* What was written to clusters so far is on stable storage. */
static int barrier(struct table_cache *c)
{
        uint64_t written = c->written;
        int r = c->barrier(c);

        if (r == 0)
                c->flushed = MAX(c->flushed, written);
        return r;
}

struct page_write {
        struct block_batch_request request;
        struct table_page *page;
        struct iovec iov;
};

/* It may change from now on: the copy goes to the disk. */
static void take_copy(struct table_cache *c, struct page_write *w, struct table_page *page, uint8_t *copy)
{
        memcpy(copy, page->bytes, c->page_bytes);
        page->writing = true;
        page->dirty = false;
        c->dirty--;
        c->writing++;
        w->page = page;
        w->iov = (struct iovec){ copy, c->page_bytes };
}

static void begin_write(struct page_write *w, struct block_batch *batch)
{
        w->request.req = (struct block_request){
                .op = BLOCK_WRITE, .offset_bytes = w->page->offset, .size_bytes = w->iov.iov_len, .iov = &w->iov, .iov_count = 1,
        };
        block_batch_add(batch, w->page->file, &w->request);
}

static void end_write(struct table_cache *c, struct page_write *w, int result)
{
        struct table_page *page = w->page;

        page->writing = false;
        c->writing--;
        if (result < 0 && !page->dirty) { /* it stays */
                page->dirty = true;
                c->dirty++;
        }
        fiber_queue_wake_all(&page->waiting);
}

static int write_some(struct table_cache *c, struct table_page *const page[], unsigned count)
{
        _cleanup_free_ uint8_t *copies = malloc((size_t)count * c->page_bytes);
        _cleanup_free_ struct page_write *write = calloc(count, sizeof(*write));
        struct block_batch batch = { 0 };
        int r;

        if (!copies || !write)
                return -ENOMEM;
        for (unsigned n = 0; n < count; n++)
                take_copy(c, &write[n], page[n], copies + (size_t)n * c->page_bytes);
        if (c->journal)
                fiber_lock(&c->journal_lock);
        r = c->journal ? c->journal(c, page, copies, count) : 0;
        for (unsigned n = 0; n < count && r == 0; n++)
                begin_write(&write[n], &batch);
        if (r == 0)
                r = block_batch_wait(&batch, page[0]->file);
        if (c->journal)
                fiber_unlock(&c->journal_lock);
        for (unsigned n = 0; n < count; n++)
                end_write(c, &write[n], r);
        return r;
}

/* One page that makes room. While its barrier is waited for it may come to want another. */
static int write_one(struct table_cache *c, struct table_page *page)
{
        int r = 0;

        while (r == 0 && page->dirty && !page->writing && page->after > c->flushed)
                r = barrier(c);
        return r < 0 || !page->dirty || page->writing ? r : write_some(c, &page, 1);
}

static unsigned gather(struct table_cache *c, struct table_page *page[], bool *want_barrier)
{
        unsigned count = 0;

        for (struct table_page *p = c->oldest; p && count < TABLE_WRITES_MAX; p = p->newer) {
                if (!p->dirty || p->writing || (count && p->file != page[0]->file))
                        continue;
                *want_barrier |= p->after > c->flushed;
                page[count++] = p;
        }
        return count;
}

static struct table_page *any_in_writing(struct table_cache *c)
{
        struct table_page *page = c->oldest;

        while (page && !page->writing)
                page = page->newer;
        return page;
}

int table_cache_write(struct table_cache *c)
{
        int r = 0;

        while (r == 0) {
                struct table_page *page[TABLE_WRITES_MAX];
                bool want_barrier = false;
                unsigned count = gather(c, page, &want_barrier);

                if (want_barrier) {
                        r = barrier(c); /* they may be other pages behind it */
                } else if (count) {
                        r = write_some(c, page, count);
                } else {
                        struct table_page *other = any_in_writing(c); /* by somebody else */

                        if (!other)
                                break;
                        fiber_queue_wait(&other->waiting);
                }
        }
        return r;
}

/* ---- reading ---- */

/* Room for one more; more pages than there should be when all are pinned. */
static int make_room(struct table_cache *c)
{
        unsigned tries = 0;

        while (c->pages >= c->pages_max && tries++ < 64) {
                struct table_page *page = c->oldest, *dirty = NULL;
                int r;

                while (page && (page->pins || page->loading || page->writing || page->dirty)) {
                        if (!dirty && page->dirty && !page->pins && !page->writing)
                                dirty = page;
                        page = page->newer;
                }
                if (page) {
                        drop(c, page);
                        continue;
                }
                if (!dirty)
                        return 0;
                dirty->pins++;
                r = write_one(c, dirty);
                dirty->pins--;
                if (r < 0)
                        return r;
        }
        return 0;
}

static struct table_page *add(struct table_cache *c, struct block *file, uint64_t start)
{
        struct table_page *page = calloc(1, sizeof(*page)), **at = &c->hash[hash_of(c, file, start)];

        if (page)
                page->bytes = calloc(1, c->page_bytes);
        if (!page || !page->bytes) {
                free(page);
                return NULL;
        }
        page->file = file;
        page->offset = start;
        page->pins = 1;
        page->chain = *at;
        *at = page;
        link_newest(c, page);
        c->pages++;
        return page;
}

/* Pins it, and waits until it is there. */
static int join(struct table_cache *c, struct table_page *page)
{
        page->pins++;
        while (page->loading)
                fiber_queue_wait(&page->waiting);
        if (!page->failed) {
                (void)table_page_peek(c, page->file, page->offset);
                return 0;
        }
        if (--page->pins == 0)
                free_page(page);
        return -EIO;
}

/* The last that waited for it frees it. */
static void load_failed(struct table_cache *c, struct table_page *page)
{
        take_out(c, page);
        page->failed = true;
        fiber_queue_wake_all(&page->waiting);
        if (--page->pins == 0)
                free_page(page);
}

int table_page_get(struct table_cache *c, struct block *file, uint64_t offset, struct table_page **page)
{
        uint64_t start = page_start(c, offset);
        struct table_page *p = find(c, file, start);
        int r;

        if (!p) {
                r = make_room(c);
                if (r < 0)
                        return r;
                p = find(c, file, start); /* somebody may have been faster */
        }
        if (p) {
                r = join(c, p);
        } else {
                p = add(c, file, start);
                if (!p)
                        return -ENOMEM;
                p->loading = true;
                r = block_read(file, start, p->bytes, c->page_bytes);
                p->loading = false;
                if (r < 0)
                        load_failed(c, p);
                else
                        fiber_queue_wake_all(&p->waiting);
        }
        if (r == 0)
                *page = p;
        return r;
}

int table_page_new(struct table_cache *c, struct block *file, uint64_t offset, struct table_page **page)
{
        uint64_t start = page_start(c, offset);
        int r = make_room(c);

        if (r < 0)
                return r;
        assert(!find(c, file, start));
        *page = add(c, file, start);
        if (!*page)
                return -ENOMEM;
        table_page_changed(c, *page, false);
        return 0;
}

void table_page_put(struct table_page *page)
{
        assert(page->pins);
        page->pins--;
}

void table_page_changed(struct table_cache *c, struct table_page *page, bool after_flush)
{
        if (after_flush)
                page->after = c->written;
        if (!page->dirty)
                c->dirty++;
        page->dirty = true;
}

void table_cache_forget(struct table_cache *c, struct block *file, uint64_t offset, uint64_t size_bytes)
{
        for (uint64_t at = page_start(c, offset); at < offset + size_bytes; at += c->page_bytes) {
                struct table_page *page = find(c, file, at);

                while (page && (page->loading || page->writing)) {
                        fiber_queue_wait(&page->waiting);
                        page = find(c, file, at);
                }
                if (page && !page->pins)
                        drop(c, page);
        }
}
