/* Requests on images that map blocks to places; see mapped.h. */
#include "block/mapped.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/random.h>

#include "base/iov.h"
#include "base/text.h"

#define TABLE_BYTES ((size_t)4 << 20) /* in memory */
#define PART_PIECES 16
#define AROUND_BYTES ((uint64_t)1 << 20) /* of a backing file, copied at once */

struct mapped_part {
        struct block_request req;
        struct mapped *m;
        struct block_request *guest;
        struct mapped_part *next;
        struct iovec *more; /* when the pieces are too many */
        struct iovec iov[PART_PIECES];
};

/* ---- parts of a request, which counts them in req->rest, and itself while it hands them out ---- */

static void let_go(struct mapped *m, struct block_request *guest)
{
        if (--guest->rest == 0)
                block_complete(&m->block, guest, guest->result);
}

static void failed(struct block_request *guest, int result)
{
        if (guest->result == 0)
                guest->result = result;
}

static void part_free(struct mapped *m, struct mapped_part *part)
{
        free(part->more);
        part->next = m->parts;
        m->parts = part;
}

static struct mapped_part *part_new(struct mapped *m, struct block_request *guest)
{
        struct mapped_part *part = m->parts;

        if (part)
                m->parts = part->next;
        else
                part = malloc(sizeof(*part));
        if (!part)
                return NULL;
        part->m = m;
        part->guest = guest;
        part->more = NULL;
        return part;
}

static void part_done(struct block_request *req, int result)
{
        struct mapped_part *part = container_of(req, struct mapped_part, req);
        struct block_request *guest = part->guest;
        struct mapped *m = part->m;

        if (result < 0)
                failed(guest, result);
        part_free(m, part);
        let_go(m, guest);
}

/* size_bytes of the request from how far it has come, to or from a place of another disk. */
static int send_part(struct mapped *m, struct block *to, struct block_request *guest, uint64_t at, uint64_t size_bytes)
{
        struct mapped_part *part = part_new(m, guest);
        struct iovec *iov;

        if (!part)
                return -ENOMEM;
        iov = part->iov;
        if (guest->iov_count > PART_PIECES)
                iov = part->more = calloc(guest->iov_count, sizeof(*iov));
        if (!iov) {
                part_free(m, part);
                return -ENOMEM;
        }
        part->req = (struct block_request){ .op = guest->op, .offset_bytes = at, .size_bytes = size_bytes, .done = part_done, .iov = iov };
        part->req.iov_count = iov_slice(guest->iov, guest->iov_count, guest->transferred, size_bytes, iov);
        guest->rest++;
        block_submit(to, &part->req);
        return 0;
}

/* ---- fibers ---- */

/* Runs work on the request in a fiber, which lets go of it at its end. */
static void in_fiber(struct mapped *m, struct block_request *guest, void (*work)(void *guest))
{
        guest->next = (struct block_request *)m; /* nobody else has the request now */
        if (fiber_start(work, guest) < 0) {
                failed(guest, -ENOMEM);
                let_go(m, guest);
        }
}

static struct mapped *of_request(struct block_request *guest)
{
        return (struct mapped *)guest->next;
}

static void end_work(struct mapped *m, struct block_request *guest, int result)
{
        if (result < 0)
                failed(guest, result);
        block_kick(&m->block);
        let_go(m, guest);
}

/* ---- reading ---- */

/* How much of that range the backing file has. */
static uint64_t behind(const struct mapped *m, uint64_t at, uint64_t size_bytes)
{
        return m->backing && at < m->backing->info.size_bytes ? MIN(size_bytes, m->backing->info.size_bytes - at) : 0;
}

static int read_absent(struct mapped *m, struct block_request *guest, uint64_t at, uint64_t size_bytes)
{
        uint64_t there = behind(m, at, size_bytes);
        int r = there ? send_part(m, m->backing, guest, at, there) : 0;

        if (there < size_bytes)
                iov_zero(guest->iov, guest->iov_count, guest->transferred + there, size_bytes - there);
        return r;
}

/* The block that was unpacked last is kept. */
static int read_packed(struct mapped *m, struct block_request *guest, uint64_t at, const struct mapped_run *run)
{
        int r = 0;

        fiber_lock(&m->unpack_lock);
        if (!m->unpacked)
                m->unpacked = malloc(m->packed_bytes);
        if (!m->unpacked)
                r = -ENOMEM;
        if (r == 0 && (m->unpacked_in != run->in || m->unpacked_host != run->host)) {
                m->unpacked_in = NULL;
                r = m->ops->unpack(m, run, m->unpacked);
                if (r == 0) {
                        m->unpacked_in = run->in;
                        m->unpacked_host = run->host;
                }
        }
        if (r == 0)
                buf_to_iov(guest->iov, guest->iov_count, guest->transferred, m->unpacked + at % m->packed_bytes, run->size_bytes);
        fiber_unlock(&m->unpack_lock);
        return r;
}

/* -EAGAIN: the rest wants a fiber. */
static int read_on(struct mapped *m, struct block_request *guest, bool wait)
{
        while (guest->transferred < guest->size_bytes) {
                uint64_t at = guest->offset_bytes + guest->transferred;
                struct mapped_run run;
                int r = m->ops->map(m, at, guest->size_bytes - guest->transferred, wait, &run);

                if (r == 0 && run.kind == MAPPED_PACKED && !wait)
                        r = -EAGAIN;
                if (r < 0)
                        return r;
                switch (run.kind) {
                case MAPPED_DATA: r = send_part(m, run.in, guest, run.host, run.size_bytes); break;
                case MAPPED_ABSENT: r = read_absent(m, guest, at, run.size_bytes); break;
                case MAPPED_ZEROES: iov_zero(guest->iov, guest->iov_count, guest->transferred, run.size_bytes); break;
                case MAPPED_PACKED: r = read_packed(m, guest, at, &run); break;
                }
                if (r < 0)
                        return r;
                guest->transferred += run.size_bytes;
        }
        return 0;
}

static void read_work(void *arg)
{
        struct block_request *guest = arg;
        struct mapped *m = of_request(guest);

        end_work(m, guest, read_on(m, guest, true));
}

static void submit_read(struct mapped *m, struct block_request *guest)
{
        int r = read_on(m, guest, false);

        if (r == -EAGAIN) {
                in_fiber(m, guest, read_work);
                return;
        }
        if (r < 0)
                failed(guest, r);
        let_go(m, guest);
}

/* ---- writing ---- */

/* In a new place: what the guest sees in [from, to), which it does not write itself. */
static int write_around(struct mapped *m, const struct mapped_place *place, bool absent, uint64_t from, uint64_t to)
{
        uint64_t there = absent && from < to ? behind(m, from, to - from) : 0;
        _cleanup_free_ uint8_t *bytes = there ? malloc(MIN(there, AROUND_BYTES)) : NULL;
        int r = there && !bytes ? -ENOMEM : 0;

        for (uint64_t end = from + there; from < end && r == 0;) {
                uint64_t some = MIN(end - from, AROUND_BYTES);

                r = block_read(m->backing, from, bytes, some);
                if (r == 0)
                        r = block_write(place->in, place->host + (from - place->first), bytes, some);
                from += some;
        }
        while (from < to && r == 0 && !place->fresh) {
                uint64_t some = MIN(to - from, (uint64_t)place->in->info.zeroes_bytes);

                r = block_do(place->in, BLOCK_WRITE_ZEROES, 0, place->host + (from - place->first), some, NULL, 0);
                from += some;
        }
        return r;
}

static int write_pieces(struct block *in, uint64_t host, const struct block_request *guest, uint64_t size_bytes)
{
        _cleanup_free_ struct iovec *iov = calloc(MAX(guest->iov_count, 1u), sizeof(*iov));

        if (!iov)
                return -ENOMEM;
        return block_do(in, BLOCK_WRITE, 0, host, size_bytes, iov, iov_slice(guest->iov, guest->iov_count, guest->transferred, size_bytes, iov));
}

/* The next of the request's bytes, where no place is. */
static int fill_some(struct mapped *m, struct block_request *guest, uint64_t at, uint64_t size_bytes, bool absent)
{
        struct mapped_place place = { 0 };
        int r = m->ops->take(m, at, size_bytes, &place);
        uint64_t to;

        if (r < 0)
                return r;
        assert(place.first <= at && place.end > at);
        to = MIN(at + size_bytes, place.end);
        r = write_around(m, &place, absent, place.first, at);
        if (r == 0)
                r = write_around(m, &place, absent, to, place.end);
        if (r == 0)
                r = write_pieces(place.in, place.host + (at - place.first), guest, to - at);
        if (r < 0)
                return r;
        m->cache.written++;
        r = m->ops->name(m, &place);
        if (r == 0)
                guest->transferred += to - at;
        return r;
}

static int begin(struct mapped *m)
{
        int r = m->broken ? -EIO : 0;

        if (r == 0 && !m->begun && m->ops->begin)
                r = m->ops->begin(m);
        m->begun |= r == 0;
        return r;
}

static int write_some(struct mapped *m, struct block_request *guest)
{
        uint64_t at = guest->offset_bytes + guest->transferred, left = guest->size_bytes - guest->transferred;
        struct mapped_run run;
        int r = m->ops->map(m, at, left, true, &run);

        if (r == 0 && run.kind == MAPPED_DATA) {
                r = send_part(m, run.in, guest, run.host, run.size_bytes);
                if (r == 0)
                        guest->transferred += run.size_bytes;
        } else if (r == 0 && run.kind == MAPPED_PACKED) {
                r = -EROFS; /* such images are opened to be read */
        } else if (r == 0) {
                r = fill_some(m, guest, at, run.size_bytes, run.kind == MAPPED_ABSENT);
        }
        return r;
}

static void write_work(void *arg)
{
        struct block_request *guest = arg;
        struct mapped *m = of_request(guest);
        int r = 0;

        while (r == 0 && guest->transferred < guest->size_bytes) {
                fiber_lock(&m->lock);
                r = begin(m);
                if (r == 0)
                        r = write_some(m, guest);
                fiber_unlock(&m->lock);
        }
        end_work(m, guest, r);
}

/* As much as can be written where it is. -EAGAIN: the rest wants a fiber. */
static int write_on(struct mapped *m, struct block_request *guest)
{
        int r = m->broken ? -EIO : m->begun ? 0 : -EAGAIN;

        while (r == 0 && guest->transferred < guest->size_bytes) {
                uint64_t at = guest->offset_bytes + guest->transferred;
                struct mapped_run run;

                r = m->ops->map(m, at, guest->size_bytes - guest->transferred, false, &run);
                if (r == 0 && run.kind != MAPPED_DATA)
                        r = -EAGAIN;
                if (r == 0)
                        r = send_part(m, run.in, guest, run.host, run.size_bytes);
                if (r == 0)
                        guest->transferred += run.size_bytes;
        }
        return r;
}

static void pack_work(void *arg)
{
        struct block_request *guest = arg;
        struct mapped *m = of_request(guest);
        int r;

        fiber_lock(&m->lock);
        r = begin(m);
        if (r == 0)
                r = m->ops->pack ? m->ops->pack(m, guest->offset_bytes, guest->iov, guest->iov_count, guest->size_bytes) : -EOPNOTSUPP;
        fiber_unlock(&m->lock);
        end_work(m, guest, r);
}

static void submit_write(struct mapped *m, struct block_request *guest)
{
        int r;

        if (guest->flags & BLOCK_F_COMPRESS || m->streamed) {
                in_fiber(m, guest, pack_work);
                return;
        }
        r = write_on(m, guest);
        if (r == -EAGAIN) {
                in_fiber(m, guest, write_work);
                return;
        }
        if (r < 0)
                failed(guest, r);
        let_go(m, guest);
}

/* ---- zeroes, and what is not needed ---- */

static int write_zero_bytes(struct mapped *m, uint64_t at, uint64_t size_bytes)
{
        _cleanup_free_ uint8_t *zeroes = calloc(1, MIN(size_bytes, AROUND_BYTES));
        int r = zeroes ? 0 : -ENOMEM;

        while (size_bytes && r == 0) {
                uint64_t some = MIN(size_bytes, AROUND_BYTES);

                r = block_write(&m->block, at, zeroes, some);
                at += some;
                size_bytes -= some;
        }
        return r;
}

static int clear_place(const struct mapped_run *run, const struct block_request *guest)
{
        if (guest->op == BLOCK_DISCARD && !run->in->info.discard_bytes)
                return 0;
        return block_do(run->in, guest->op, guest->flags & BLOCK_F_UNMAP, run->host, run->size_bytes, NULL, 0);
}

/* One that may stay as it is was asked for, or reads as zeroes anyway. *rest: bytes that must be written. */
static int clear_some(struct mapped *m, const struct block_request *guest, uint64_t at, uint64_t size_bytes, uint64_t *done, uint64_t *rest)
{
        struct mapped_run run;
        int r = m->ops->map(m, at, size_bytes, true, &run);

        *rest = 0;
        if (r < 0)
                return r;
        *done = run.size_bytes;
        if (run.kind == MAPPED_DATA)
                return clear_place(&run, guest);
        if (guest->op == BLOCK_DISCARD || run.kind == MAPPED_ZEROES)
                return 0;
        if (run.kind == MAPPED_PACKED)
                return -EROFS;
        *rest = behind(m, at, run.size_bytes);
        if (!*rest)
                return 0;
        if (m->ops->zero) {
                uint64_t unit = m->block.info.optimal_bytes, first = (at + unit - 1) / unit * unit, end = (at + *rest) / unit * unit;

                if (at + run.size_bytes == m->block.info.size_bytes)
                        end = at + run.size_bytes;
                if (first == at && end > first) {
                        *rest = 0;
                        *done = end - at;
                        return m->ops->zero(m, at, end - at);
                }
                if (first > at)
                        *rest = MIN(*rest, first - at);
        }
        *done = *rest;
        return 0;
}

static void clear_work(void *arg)
{
        struct block_request *guest = arg;
        struct mapped *m = of_request(guest);
        uint64_t at = guest->offset_bytes, end = at + guest->size_bytes, done = 0, rest = 0;
        int r = m->streamed ? -EROFS : 0;

        while (r == 0 && at < end) {
                fiber_lock(&m->lock);
                r = begin(m);
                if (r == 0)
                        r = clear_some(m, guest, at, end - at, &done, &rest);
                fiber_unlock(&m->lock);
                if (r == 0 && rest)
                        r = write_zero_bytes(m, at, rest);
                at += done;
        }
        end_work(m, guest, r);
}

/* ---- flushing ---- */

static int flush_files(struct mapped *m)
{
        return m->ops->flush ? m->ops->flush(m) : block_flush(m->file);
}

static int barrier(struct table_cache *cache)
{
        return flush_files(container_of(cache, struct mapped, cache));
}

int mapped_flush(struct mapped *m)
{
        uint64_t asked = ++m->flushes_asked, written;
        int r = 0;

        fiber_lock(&m->flush_lock);
        if (m->flushes_done < asked) { /* else one that began after we asked is over */
                asked = m->flushes_asked;
                written = m->cache.written;
                r = table_cache_write(&m->cache);
                if (r == 0)
                        r = flush_files(m);
                if (r == 0) {
                        m->cache.flushed = MAX(m->cache.flushed, written);
                        m->flushes_done = asked;
                }
        }
        fiber_unlock(&m->flush_lock);
        return r;
}

static void flush_work(void *arg)
{
        struct block_request *guest = arg;
        struct mapped *m = of_request(guest);

        end_work(m, guest, mapped_flush(m));
}

static void submit_flush(struct mapped *m, struct block_request *guest)
{
        struct mapped_part *part;

        if (!table_cache_idle(&m->cache) || m->flush_lock.held || m->ops->flush) {
                in_fiber(m, guest, flush_work);
                return;
        }
        part = part_new(m, guest);
        if (part) {
                part->req = (struct block_request){ .op = BLOCK_FLUSH, .done = part_done };
                guest->rest++;
                block_submit(m->file, &part->req);
        } else {
                failed(guest, -ENOMEM);
        }
        let_go(m, guest);
}

/* A write that is to be durable: a request of our own, and a flush behind it. */
static void durable_work(void *arg)
{
        struct block_request *guest = arg;
        struct mapped *m = of_request(guest);
        int r = block_do(&m->block, guest->op, guest->flags & ~(unsigned)BLOCK_F_DURABLE, guest->offset_bytes, guest->size_bytes, guest->iov,
                         guest->iov_count);

        end_work(m, guest, r < 0 ? r : mapped_flush(m));
}

void mapped_submit(struct block *block, struct block_request *req)
{
        struct mapped *m = to_mapped(block);

        req->result = 0;
        req->rest = 1;
        req->transferred = 0;
        if (req->op != BLOCK_READ && req->op != BLOCK_FLUSH && block->info.readonly) {
                failed(req, -EROFS);
                let_go(m, req);
                return;
        }
        if (req->flags & BLOCK_F_DURABLE && req->op != BLOCK_READ && req->op != BLOCK_FLUSH) {
                in_fiber(m, req, durable_work);
                return;
        }
        switch (req->op) {
        case BLOCK_READ: submit_read(m, req); break;
        case BLOCK_WRITE: submit_write(m, req); break;
        case BLOCK_FLUSH: submit_flush(m, req); break;
        case BLOCK_DISCARD:
        case BLOCK_WRITE_ZEROES: in_fiber(m, req, clear_work); break;
        }
}

int mapped_status(struct block *block, uint64_t offset_bytes, uint64_t size_bytes, struct block_extent *extent)
{
        struct mapped *m = to_mapped(block);
        struct block_extent of_file;
        struct mapped_run run;
        int r = m->ops->map(m, offset_bytes, size_bytes, true, &run);

        if (r < 0)
                return r;
        *extent = (struct block_extent){
                .size_bytes = run.size_bytes,
                .present = run.kind != MAPPED_ABSENT,
                .zero = run.kind == MAPPED_ZEROES || (run.kind == MAPPED_ABSENT && !m->backing),
                .compressed = run.kind == MAPPED_PACKED,
                .host_bytes = run.kind == MAPPED_DATA ? run.host : BLOCK_NOWHERE,
        };
        if (run.kind == MAPPED_DATA && m->sparse && block_status(run.in, run.host, run.size_bytes, &of_file) == 0) {
                extent->zero = of_file.zero;
                extent->size_bytes = MIN(extent->size_bytes, of_file.size_bytes);
        }
        return 0;
}

/* ---- tables ---- */

int mapped_entry(struct mapped *m, struct block *file, uint64_t offset, size_t size_bytes, bool wait, void *entry)
{
        struct table_page *page = table_page_peek(&m->cache, file, offset);
        int r;

        assert(offset % m->cache.page_bytes + size_bytes <= m->cache.page_bytes);
        if (page) {
                memcpy(entry, table_page_at(&m->cache, page, offset), size_bytes);
                return 0;
        }
        if (!wait)
                return -EAGAIN;
        r = table_page_get(&m->cache, file, offset, &page);
        if (r < 0)
                return r;
        memcpy(entry, table_page_at(&m->cache, page, offset), size_bytes);
        table_page_put(page);
        return 0;
}

int mapped_set_entry(struct mapped *m, struct block *file, uint64_t offset, size_t size_bytes, bool after, const void *entry)
{
        struct table_page *page;
        int r = table_page_get(&m->cache, file, offset, &page);

        if (r < 0)
                return r;
        memcpy(table_page_at(&m->cache, page, offset), entry, size_bytes);
        table_page_changed(&m->cache, page, after);
        table_page_put(page);
        return 0;
}

/* ---- beginning and end ---- */

int mapped_corrupt(struct mapped *m, const char *fmt, ...)
{
        va_list args;

        va_start(args, fmt);
        (void)block_damaged(&m->block, &m->broken, fmt, args);
        va_end(args);
        return -EIO;
}

int mapped_open(const struct block_driver *driver, const struct mapped_ops *ops, const struct block_opening *opening, struct block **block,
                struct err *err)
{
        struct mapped *m = calloc(1, ops->struct_bytes);
        int r;

        if (!m)
                return err_nomem(err);
        r = block_init(&m->block, driver, opening, err);
        if (r < 0) {
                free(m);
                return r;
        }
        m->ops = ops;
        m->file = opening->file;
        table_cache_init(&m->cache, ops->page_bytes, TABLE_BYTES);
        m->cache.barrier = barrier;
        r = ops->open(m, opening, err);
        if (r < 0) {
                block_close(&m->block);
                return r;
        }
        block_adopt(&m->block, BLOCK_FILE, m->file);
        *block = &m->block;
        return 0;
}

void mapped_close(struct block *block)
{
        struct mapped *m = to_mapped(block);

        block_drain(m->file); /* an open that failed has not adopted it */
        if (m->ops->close)
                m->ops->close(m);
        while (m->parts) {
                struct mapped_part *next = m->parts->next;

                free(m->parts);
                m->parts = next;
        }
        table_cache_done(&m->cache);
        free(m->unpacked);
        block_done(block);
        free(m);
}

void mapped_info(struct mapped *m, uint64_t size_bytes, uint32_t logical_bytes, uint64_t block_bytes)
{
        const struct block_info *file = &m->file->info;

        m->block.info = (struct block_info){
                .size_bytes = align_up(size_bytes, BLOCK_SECTOR),
                .logical_bytes = logical_bytes,
                .physical_bytes = MAX(file->physical_bytes, 4096u),
                .optimal_bytes = (uint32_t)block_bytes,
                .discard_bytes = file->readonly ? 0 : file->discard_bytes,
                .zeroes_bytes = file->readonly ? 0 : file->zeroes_bytes,
                .readonly = file->readonly,
        };
}

/* ---- options, and other sizes ---- */

int mapped_take_options(const struct block_creation *creation, const char *format,
                        int (*take)(const struct block_option *option, void *choice, struct err *err), void *choice, struct err *err)
{
        int r = creation->backing ? err_set(err, -EINVAL, "a new %s image has no backing file", format) : 0;

        for (unsigned n = 0; n < creation->options && r == 0; n++)
                r = take(&creation->option[n], choice, err);
        return r;
}

int mapped_option_switch(const struct block_option *option, const char *no, const char *yes, bool *is_yes, struct err *err)
{
        *is_yes = strcmp(option->value, yes) == 0;
        return *is_yes || strcmp(option->value, no) == 0 ? 0 : err_set(err, -EINVAL, "option %s=%s: it is %s or %s", option->key, option->value, no, yes);
}

int mapped_option_block(const struct block_option *option, uint32_t least_bytes, uint32_t most_bytes, uint32_t *block_bytes, struct err *err)
{
        uint64_t value = mapped_option_bytes(option->value);
        char least[SIZE_TEXT_MAX], most[SIZE_TEXT_MAX];

        if (!is_power_of_two(value) || value < least_bytes || value > most_bytes)
                return err_set(err, -EINVAL, "option %s=%s: it is a power of two, %s to %s", option->key, option->value, size_format(least_bytes, least),
                               size_format(most_bytes, most));
        *block_bytes = (uint32_t)value;
        return 0;
}

int mapped_bad_option(const struct block_option *option, const char *wanted, struct err *err)
{
        return err_set(err, -EINVAL, "option %s=%s: it is %s", option->key, option->value, wanted);
}

uint64_t mapped_option_bytes(const char *text)
{
        uint64_t value = 0;
        char *end;

        if (*text < '0' || *text > '9')
                return 0;
        value = strtoull(text, &end, 10);
        return *end && size_parse(text, &value, NULL) < 0 ? 0 : value;
}

int mapped_zero_tail(struct mapped *m, uint64_t old_bytes, uint64_t block_bytes)
{
        uint64_t end = MIN((old_bytes + block_bytes - 1) / block_bytes * block_bytes, m->block.info.size_bytes);

        return old_bytes < end ? block_do(&m->block, BLOCK_WRITE_ZEROES, 0, old_bytes, end - old_bytes, NULL, 0) : 0;
}

/* ---- checking ---- */

int mapped_places_add(struct mapped_places *places, uint64_t at)
{
        if (places->count == places->room) {
                size_t room = MAX(places->room * 2, (size_t)1024);
                uint32_t *more = realloc(places->at, room * sizeof(*more));

                if (!more)
                        return -ENOMEM;
                places->at = more;
                places->room = room;
        }
        places->at[places->count++] = (uint32_t)at;
        return 0;
}

static int compare(const void *a, const void *b)
{
        uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

        return (x > y) - (x < y);
}

size_t mapped_places_clash(struct mapped_places *places, uint64_t length)
{
        size_t clashes = 0;

        if (places->count)
                qsort(places->at, places->count, sizeof(*places->at), compare);
        for (size_t n = 1; n < places->count; n++)
                clashes += places->at[n] - places->at[n - 1] < length;
        return clashes;
}

void mapped_places_done(struct mapped_places *places)
{
        free(places->at);
}

int mapped_compact(uint32_t *owner, uint32_t *count, int (*move)(void *ctx, uint32_t from, uint32_t to, uint32_t block), void *ctx)
{
        uint32_t hole = 0;
        int r = 0;

        while (r == 0) {
                while (*count && owner[*count - 1] == MAPPED_NOBODY)
                        --*count;
                while (hole < *count && owner[hole] != MAPPED_NOBODY)
                        hole++;
                if (hole >= *count)
                        break;
                r = move(ctx, *count - 1, hole, owner[*count - 1]);
                owner[hole] = owner[*count - 1];
                owner[*count - 1] = MAPPED_NOBODY;
        }
        return r;
}

void mapped_say(const struct block_check *check, const char *fmt, ...)
{
        char text[256];
        va_list args;

        if (!check->say)
                return;
        va_start(args, fmt);
        vsnprintf(text, sizeof(text), fmt, args);
        va_end(args);
        check->say(check->ctx, text);
}

/* ---- UUIDs (RFC 4122 §4.4) ---- */

int mapped_new_uuid(uint8_t uuid[16])
{
        if (getrandom(uuid, 16, 0) != 16)
                return -EIO;
        uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x40);
        uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
        return 0;
}

void mapped_uuid_text(const uint8_t uuid[16], bool little, char text[37])
{
        static const uint8_t swapped[16] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };
        char *at = text;

        for (unsigned n = 0; n < 16; n++) {
                if (n == 4 || n == 6 || n == 8 || n == 10)
                        *at++ = '-';
                at += snprintf(at, 3, "%02x", uuid[little ? swapped[n] : n]);
        }
}
