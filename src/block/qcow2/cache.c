/*
 * Pages of L2 tables and refcount blocks in memory, found by their place in the file.
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

#include "block/qcow2/qcow2.h"

/* So many are written at once. */
#define WRITES_MAX 16

static unsigned hash_of(const struct qcow2 *q, uint64_t offset)
{
        return (unsigned)((offset / q->cache.page_bytes) * UINT64_C(0x9e3779b97f4a7c15) >> (64 - QCOW2_HASH_BITS));
}

static uint64_t page_start(const struct qcow2 *q, uint64_t offset)
{
        return align_down(offset, q->cache.page_bytes);
}

int qcow2_cache_init(struct qcow2 *q, size_t max_bytes, struct err *err)
{
        q->cache.page_bytes = (uint32_t)MIN(q->cluster_bytes, (uint64_t)QCOW2_PAGE_BYTES);
        q->cache.pages_max = (unsigned)MAX(max_bytes / q->cache.page_bytes, (size_t)64);
        return 0;
}

static void unlink_use(struct qcow2_cache *c, struct qcow2_page *page)
{
        *(page->newer ? &page->newer->older : &c->newest) = page->older;
        *(page->older ? &page->older->newer : &c->oldest) = page->newer;
}

static void link_newest(struct qcow2_cache *c, struct qcow2_page *page)
{
        page->newer = NULL;
        page->older = c->newest;
        *(c->newest ? &c->newest->newer : &c->oldest) = page;
        c->newest = page;
}

static void free_page(struct qcow2_page *page)
{
        free(page->bytes);
        free(page);
}

/* Nobody finds it from now on. */
static void take_out(struct qcow2 *q, struct qcow2_page *page)
{
        struct qcow2_page **at = &q->cache.hash[hash_of(q, page->offset)];

        while (*at != page)
                at = &(*at)->chain;
        *at = page->chain;
        unlink_use(&q->cache, page);
        q->cache.pages--;
        q->cache.dirty -= page->dirty;
}

static void drop(struct qcow2 *q, struct qcow2_page *page)
{
        assert(!page->pins && !page->loading && !page->writing);
        take_out(q, page);
        free_page(page);
}

void qcow2_cache_done(struct qcow2 *q)
{
        while (q->cache.oldest)
                drop(q, q->cache.oldest);
}

static struct qcow2_page *find(struct qcow2 *q, uint64_t start)
{
        struct qcow2_page *page = q->cache.hash[hash_of(q, start)];

        while (page && page->offset != start)
                page = page->chain;
        return page;
}

struct qcow2_page *qcow2_page_peek(struct qcow2 *q, uint64_t offset)
{
        struct qcow2_page *page = find(q, page_start(q, offset));

        if (!page || page->loading)
                return NULL;
        if (page->newer) {
                unlink_use(&q->cache, page);
                link_newest(&q->cache, page);
        }
        return page;
}

/* ---- writing ---- */

/* What was written to clusters so far is on stable storage. */
static int barrier(struct qcow2 *q)
{
        uint64_t written = q->written;
        int r = block_flush(q->data);

        if (r == 0)
                q->flushed = MAX(q->flushed, written);
        return r;
}

struct page_write {
        struct block_batch_request request;
        struct qcow2_page *page;
        struct iovec iov;
};

static void begin_write(struct qcow2 *q, struct page_write *w, struct qcow2_page *page, uint8_t *copy, struct block_batch *batch)
{
        memcpy(copy, page->bytes, q->cache.page_bytes);
        page->writing = true;
        page->dirty = false;
        q->cache.dirty--;
        w->page = page;
        w->iov = (struct iovec){ copy, q->cache.page_bytes };
        w->request.req = (struct block_request){
                .op = BLOCK_WRITE, .offset_bytes = page->offset, .size_bytes = q->cache.page_bytes, .iov = &w->iov, .iov_count = 1,
        };
        block_batch_add(batch, q->file, &w->request);
}

static void end_write(struct qcow2 *q, struct page_write *w, int result)
{
        struct qcow2_page *page = w->page;

        page->writing = false;
        if (result < 0 && !page->dirty) { /* it stays */
                page->dirty = true;
                q->cache.dirty++;
        }
        fiber_queue_wake_all(&page->waiting);
}

static int write_some(struct qcow2 *q, struct qcow2_page *const page[], unsigned count)
{
        _cleanup_free_ uint8_t *copies = malloc((size_t)count * q->cache.page_bytes);
        _cleanup_free_ struct page_write *write = calloc(count, sizeof(*write));
        struct block_batch batch = { 0 };
        int r;

        if (!copies || !write)
                return -ENOMEM;
        for (unsigned n = 0; n < count; n++)
                begin_write(q, &write[n], page[n], copies + (size_t)n * q->cache.page_bytes, &batch);
        r = block_batch_wait(&batch, q->file);
        for (unsigned n = 0; n < count; n++)
                end_write(q, &write[n], r);
        return r;
}

/* One page that makes room. */
static int write_one(struct qcow2 *q, struct qcow2_page *page)
{
        int r = page->after > q->flushed ? barrier(q) : 0;

        return r < 0 || !page->dirty || page->writing ? r : write_some(q, &page, 1);
}

static unsigned gather(struct qcow2 *q, struct qcow2_page *page[], bool *want_barrier)
{
        unsigned count = 0;

        for (struct qcow2_page *p = q->cache.oldest; p && count < WRITES_MAX; p = p->newer) {
                if (!p->dirty || p->writing)
                        continue;
                *want_barrier |= p->after > q->flushed;
                page[count++] = p;
        }
        return count;
}

static struct qcow2_page *any_in_writing(struct qcow2 *q)
{
        struct qcow2_page *page = q->cache.oldest;

        while (page && !page->writing)
                page = page->newer;
        return page;
}

int qcow2_cache_write(struct qcow2 *q)
{
        int r = 0;

        while (r == 0) {
                struct qcow2_page *page[WRITES_MAX];
                bool want_barrier = false;
                unsigned count = gather(q, page, &want_barrier);

                if (want_barrier) {
                        r = barrier(q); /* they may be other pages behind it */
                } else if (count) {
                        r = write_some(q, page, count);
                } else {
                        struct qcow2_page *other = any_in_writing(q); /* by somebody else */

                        if (!other)
                                break;
                        fiber_queue_wait(&other->waiting);
                }
        }
        return r;
}

/* ---- reading ---- */

/* Room for one more; more pages than there should be when all are pinned. */
static int make_room(struct qcow2 *q)
{
        struct qcow2_cache *c = &q->cache;
        unsigned tries = 0;

        while (c->pages >= c->pages_max && tries++ < 64) {
                struct qcow2_page *page = c->oldest, *dirty = NULL;
                int r;

                while (page && (page->pins || page->loading || page->writing || page->dirty)) {
                        if (!dirty && page->dirty && !page->pins && !page->writing)
                                dirty = page;
                        page = page->newer;
                }
                if (page) {
                        drop(q, page);
                        continue;
                }
                if (!dirty)
                        return 0;
                dirty->pins++;
                r = write_one(q, dirty);
                dirty->pins--;
                if (r < 0)
                        return r;
        }
        return 0;
}

static struct qcow2_page *add(struct qcow2 *q, uint64_t start)
{
        struct qcow2_page *page = calloc(1, sizeof(*page)), **at = &q->cache.hash[hash_of(q, start)];

        if (page)
                page->bytes = calloc(1, q->cache.page_bytes);
        if (!page || !page->bytes) {
                free(page);
                return NULL;
        }
        page->offset = start;
        page->pins = 1;
        page->chain = *at;
        *at = page;
        link_newest(&q->cache, page);
        q->cache.pages++;
        return page;
}

/* Pins it, and waits until it is there. */
static int join(struct qcow2 *q, struct qcow2_page *page)
{
        page->pins++;
        while (page->loading)
                fiber_queue_wait(&page->waiting);
        if (!page->failed) {
                (void)qcow2_page_peek(q, page->offset);
                return 0;
        }
        if (--page->pins == 0)
                free_page(page);
        return -EIO;
}

/* The last that waited for it frees it. */
static void load_failed(struct qcow2 *q, struct qcow2_page *page)
{
        take_out(q, page);
        page->failed = true;
        fiber_queue_wake_all(&page->waiting);
        if (--page->pins == 0)
                free_page(page);
}

int qcow2_page_get(struct qcow2 *q, uint64_t offset, struct qcow2_page **page)
{
        uint64_t start = page_start(q, offset);
        struct qcow2_page *p = find(q, start);
        int r;

        if (!p) {
                r = make_room(q);
                if (r < 0)
                        return r;
                p = find(q, start); /* somebody may have been faster */
        }
        if (p) {
                r = join(q, p);
        } else {
                p = add(q, start);
                if (!p)
                        return -ENOMEM;
                p->loading = true;
                r = block_read(q->file, start, p->bytes, q->cache.page_bytes);
                p->loading = false;
                if (r < 0)
                        load_failed(q, p);
                else
                        fiber_queue_wake_all(&p->waiting);
        }
        if (r == 0)
                *page = p;
        return r;
}

int qcow2_page_new(struct qcow2 *q, uint64_t offset, struct qcow2_page **page)
{
        uint64_t start = page_start(q, offset);
        int r = make_room(q);

        if (r < 0)
                return r;
        assert(!find(q, start));
        *page = add(q, start);
        if (!*page)
                return -ENOMEM;
        qcow2_page_changed(q, *page, false);
        return 0;
}

void qcow2_page_put(struct qcow2_page *page)
{
        assert(page->pins);
        page->pins--;
}

void qcow2_page_changed(struct qcow2 *q, struct qcow2_page *page, bool after_flush)
{
        if (after_flush)
                page->after = q->written;
        if (!page->dirty)
                q->cache.dirty++;
        page->dirty = true;
}

void qcow2_cache_forget(struct qcow2 *q, uint64_t offset, uint64_t size_bytes)
{
        for (uint64_t at = page_start(q, offset); at < offset + size_bytes; at += q->cache.page_bytes) {
                struct qcow2_page *page = find(q, at);

                while (page && (page->loading || page->writing)) {
                        fiber_queue_wait(&page->waiting);
                        page = find(q, at);
                }
                if (page && !page->pins)
                        drop(q, page);
        }
}
