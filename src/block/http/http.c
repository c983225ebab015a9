/*
 * Disks that are files of web servers: http and https, read-only.
 *
 *   read ─▶ chunks ─all there─▶ copied, done
 *             └ some not ─▶ fetched, several behind one another by one request (transfer.h) ─▶ those that wait are looked at again
 *
 * A chunk is CHUNK_BYTES of the file. CHUNKS of them are kept, those used last; this is all the memory that is taken. Reads that go on where others
 * have ended are recognised, up to STREAMS of these at a time, and what comes next is fetched ahead, the more the longer it goes on.
 *
 * The file must not change while it is open: each answer says its length and its ETag (or date), and when one is another the disk fails for good.
 */
#include "block/http/http.h"

#include <errno.h>
#include <inttypes.h>

#include "base/iov.h"
#include "base/log.h"
#include "block/http/transfer.h"

#define CHUNK_BYTES 65536u
#define CHUNKS 256u             /* 16 MiB */
#define FETCH_CHUNKS 16u        /* in one request at most */
#define BUCKETS 512u
#define STREAMS 4u
#define NEAR_BYTES (UINT64_C(2) << 20)  /* reads of a stream come in any order, this far from each other */
#define AHEAD_MIN_BYTES (UINT64_C(256) << 10)
#define AHEAD_MAX_BYTES (UINT64_C(4) << 20)
#define SPARED_FETCHES 2u       /* not taken by reading ahead */

struct chunk {
        uint64_t index;
        struct chunk *in_bucket;
        struct chunk *newer, *older; /* of those that are valid */
        bool used, valid;
        uint8_t *bytes;
};

struct stream {
        uint64_t end, ahead; /* what was read, what is to be fetched */
        uint64_t window, used;
};

struct http {
        struct block block;
        struct http_url url;
        struct http_transfers *transfers;
        uint64_t file_bytes;
        struct http_fetch fetch[HTTP_FETCHES];
        struct chunk chunk[CHUNKS];
        struct chunk *bucket[BUCKETS];
        struct chunk *newest, *oldest;
        struct stream stream[STREAMS];
        uint64_t reads;
        struct block_request *waiting, **waiting_last;
        bool pumping, again, told;
        int broken; /* -errno for good */
        struct err why;
};

static struct http *to_http(struct block *block)
{
        return container_of(block, struct http, block);
}

/* ---- chunks ---- */

static struct chunk **bucket_of(struct http *h, uint64_t index)
{
        return &h->bucket[index % BUCKETS];
}

static struct chunk *chunk_find(struct http *h, uint64_t index)
{
        struct chunk *chunk = *bucket_of(h, index);

        while (chunk && chunk->index != index)
                chunk = chunk->in_bucket;
        return chunk;
}

static void unlink_age(struct http *h, struct chunk *chunk)
{
        *(chunk->newer ? &chunk->newer->older : &h->newest) = chunk->older;
        *(chunk->older ? &chunk->older->newer : &h->oldest) = chunk->newer;
        chunk->newer = chunk->older = NULL;
}

static void make_newest(struct http *h, struct chunk *chunk)
{
        chunk->older = h->newest;
        chunk->newer = NULL;
        *(h->newest ? &h->newest->newer : &h->oldest) = chunk;
        h->newest = chunk;
}

static void chunk_drop(struct http *h, struct chunk *chunk)
{
        struct chunk **at = bucket_of(h, chunk->index);

        while (*at != chunk)
                at = &(*at)->in_bucket;
        *at = chunk->in_bucket;
        if (chunk->valid)
                unlink_age(h, chunk);
        chunk->used = chunk->valid = false;
}

/* A free one, or the oldest that is valid; NULL: all are being fetched, or memory is short. */
static struct chunk *chunk_take(struct http *h, uint64_t index)
{
        struct chunk *chunk = NULL;

        for (unsigned n = 0; n < CHUNKS && !chunk; n++)
                if (!h->chunk[n].used)
                        chunk = &h->chunk[n];
        if (!chunk && h->oldest) {
                chunk = h->oldest;
                chunk_drop(h, chunk);
        }
        if (chunk && !chunk->bytes)
                chunk->bytes = malloc(CHUNK_BYTES);
        if (!chunk || !chunk->bytes)
                return NULL;
        chunk->used = true;
        chunk->index = index;
        chunk->in_bucket = *bucket_of(h, index);
        *bucket_of(h, index) = chunk;
        return chunk;
}

/* ---- fetching ---- */

static struct http_fetch *free_fetch(struct http *h, unsigned spare)
{
        struct http_fetch *found = NULL;
        unsigned count = 0;

        for (unsigned n = 0; n < HTTP_FETCHES; n++) {
                if (!h->fetch[n].busy) {
                        found = &h->fetch[n];
                        count++;
                }
        }
        return count > spare ? found : NULL;
}

/* What is missing from that place on, up to end; what came of it is one fetch. False: nothing can be begun. */
static bool fetch_from(struct http *h, uint64_t first, uint64_t end, unsigned spare)
{
        struct http_fetch *f = free_fetch(h, spare);
        unsigned count = 0;

        while (f && count < FETCH_CHUNKS && first + count < end && !chunk_find(h, first + count) && chunk_take(h, first + count))
                count++;
        if (!count)
                return false;
        f->busy = true;
        f->probe = false;
        f->first = first;
        f->count = count;
        f->offset_bytes = first * CHUNK_BYTES;
        f->size_bytes = MIN((uint64_t)count * CHUNK_BYTES, h->file_bytes - f->offset_bytes);
        http_transfer_start(h->transfers, f);
        return true;
}

static void fetch_range(struct http *h, uint64_t from, uint64_t to, unsigned spare)
{
        uint64_t end = (MIN(to, h->file_bytes) + CHUNK_BYTES - 1) / CHUNK_BYTES;

        for (uint64_t index = from / CHUNK_BYTES; index < end; index++)
                if (!chunk_find(h, index) && !fetch_from(h, index, end, spare))
                        return;
}

/* From within libcurl. */
static void bytes(void *ctx, struct http_fetch *f, const uint8_t *from, size_t size_bytes)
{
        struct http *h = ctx;
        uint64_t at = f->offset_bytes + f->got_bytes;

        if (f->probe && !f->got_bytes && !h->file_bytes) { /* its chunk is there before anybody knows how long the file is */
                h->file_bytes = http_transfers_file(h->transfers)->size_bytes;
        }
        while (size_bytes) {
                struct chunk *chunk = chunk_find(h, at / CHUNK_BYTES);
                size_t within = at % CHUNK_BYTES, n = MIN(size_bytes, (size_t)CHUNK_BYTES - within);

                memcpy(chunk->bytes + within, from, n);
                at += n;
                from += n;
                size_bytes -= n;
                if (at % CHUNK_BYTES == 0 || at == h->file_bytes) {
                        memset(chunk->bytes + within + n, 0, CHUNK_BYTES - within - n);
                        chunk->valid = true;
                        make_newest(h, chunk);
                        h->again = true;
                }
        }
}

/* ---- requests ---- */

static void finish(struct http *h, struct block_request *req, int result)
{
        h->told = true;
        block_complete(&h->block, req, result);
}

static uint64_t needs(const struct block_request *req)
{
        return (req->offset_bytes + req->transferred) / CHUNK_BYTES;
}

/* Those that wait for one of these chunks fail; what others wait for is asked again for them. */
static void fail_waiting(struct http *h, uint64_t first, uint64_t count, int result)
{
        struct block_request *req = h->waiting, *next;

        h->waiting = NULL;
        h->waiting_last = &h->waiting;
        for (; req; req = next) {
                next = req->next;
                if (needs(req) - first < count) {
                        finish(h, req, result);
                } else {
                        req->next = NULL;
                        *h->waiting_last = req;
                        h->waiting_last = &req->next;
                }
        }
}

static void fetched(void *ctx, struct http_fetch *f, int result)
{
        struct http *h = ctx;

        f->busy = false;
        h->again = true;
        if (result == 0)
                return;
        for (unsigned n = 0; n < f->count; n++) {
                struct chunk *chunk = chunk_find(h, f->first + n);

                if (chunk && !chunk->valid)
                        chunk_drop(h, chunk);
        }
        if (f->probe)
                return;
        log_guest("disk %s: %s", h->block.path, f->why.text);
        if (result == -ESTALE || result == -EOPNOTSUPP || result == -EPROTO) {
                h->broken = result;
                h->why = f->why;
        }
        fail_waiting(h, h->broken ? 0 : f->first, h->broken ? UINT64_MAX : f->count, result);
}

/* Copies what there is of it; true: it is all there. Behind the file's end, in its last sector, are zeroes. */
static bool advance(struct http *h, struct block_request *req)
{
        while (req->transferred < req->size_bytes) {
                uint64_t at = req->offset_bytes + req->transferred;
                size_t within = at % CHUNK_BYTES, n = (size_t)MIN(req->size_bytes - req->transferred, (uint64_t)CHUNK_BYTES - within);
                struct chunk *chunk;

                if (at >= h->file_bytes) {
                        n = (size_t)(req->size_bytes - req->transferred);
                        iov_zero(req->iov, req->iov_count, req->transferred, n);
                        req->transferred += n;
                        continue;
                }
                chunk = chunk_find(h, at / CHUNK_BYTES);
                if (!chunk || !chunk->valid)
                        return false;
                buf_to_iov(req->iov, req->iov_count, req->transferred, chunk->bytes + within, n);
                req->transferred += n;
                if (h->newest != chunk) {
                        unlink_age(h, chunk);
                        make_newest(h, chunk);
                }
        }
        return true;
}

static void serve_waiting(struct http *h)
{
        struct block_request *req = h->waiting, *next;

        h->waiting = NULL;
        h->waiting_last = &h->waiting;
        for (; req; req = next) {
                next = req->next;
                if (advance(h, req)) {
                        finish(h, req, 0);
                        continue;
                }
                req->next = NULL;
                *h->waiting_last = req;
                h->waiting_last = &req->next;
        }
}

static void begin_fetches(struct http *h)
{
        for (struct block_request *req = h->waiting; req; req = req->next)
                fetch_range(h, req->offset_bytes + req->transferred, req->offset_bytes + req->size_bytes, 0);
        for (unsigned n = 0; n < STREAMS; n++)
                if (h->stream[n].window)
                        fetch_range(h, h->stream[n].end, h->stream[n].ahead, SPARED_FETCHES);
}

static void pump(struct http *h)
{
        if (h->pumping) {
                h->again = true;
                return;
        }
        h->pumping = true;
        do {
                h->again = false;
                serve_waiting(h);
                if (!h->broken)
                        begin_fetches(h);
        } while (h->again);
        h->pumping = false;
}

static void progress(void *ctx)
{
        struct http *h = ctx;

        pump(h);
        if (h->told) {
                h->told = false;
                if (h->block.listener)
                        h->block.listener(h->block.listener_ctx);
        }
}

/* What the reads so far let expect. */
static void note_read(struct http *h, const struct block_request *req)
{
        uint64_t from = req->offset_bytes, to = from + req->size_bytes;
        struct stream *stream = NULL, *oldest = &h->stream[0];

        for (unsigned n = 0; n < STREAMS && !stream; n++) {
                struct stream *s = &h->stream[n];

                if (s->used && from + NEAR_BYTES >= s->end && from <= s->end + NEAR_BYTES)
                        stream = s;
                if (s->used < oldest->used)
                        oldest = s;
        }
        h->reads++;
        if (!stream) {
                *oldest = (struct stream){ .end = to, .used = h->reads };
                return;
        }
        stream->used = h->reads;
        if (to <= stream->end)
                return;
        stream->end = to;
        if (stream->window < AHEAD_MAX_BYTES)
                stream->window = stream->window ? 2 * stream->window : AHEAD_MIN_BYTES;
        /* In large pieces: not before half of it is used up. */
        if (stream->ahead < to + stream->window / 2)
                stream->ahead = to + stream->window;
}

static void http_submit(struct block *block, struct block_request *req)
{
        struct http *h = to_http(block);

        if (req->op == BLOCK_FLUSH) {
                finish(h, req, 0);
                return;
        }
        if (req->op != BLOCK_READ || h->broken) {
                finish(h, req, req->op != BLOCK_READ ? -EROFS : h->broken);
                return;
        }
        req->transferred = 0;
        note_read(h, req);
        if (!h->waiting && advance(h, req)) {
                finish(h, req, 0);
                return;
        }
        req->next = NULL;
        *h->waiting_last = req;
        h->waiting_last = &req->next;
}

/* What completes here is told later. */
static void http_kick(struct block *block)
{
        block->submitting++;
        pump(to_http(block));
        block->submitting--;
}

static void http_wait(struct block *block)
{
        http_transfers_wait(to_http(block)->transfers);
}

static int http_describe(struct block *block, json_t *into)
{
        struct http *h = to_http(block);
        const struct http_file *file = http_transfers_file(h->transfers);

        return file && *file->tag ? json_object_set_new(into, "etag", json_string(file->tag)) : 0;
}

/* ---- opening ---- */

static const struct http_transfer_ops transfer_ops = { .bytes = bytes, .done = fetched, .progress = progress };

/* The first bytes, with which everything else comes. */
static int look_at_file(struct http *h, struct err *err)
{
        struct http_fetch *f = &h->fetch[0];

        if (!chunk_take(h, 0))
                return err_nomem(err);
        f->busy = f->probe = true;
        f->count = 1;
        f->size_bytes = CHUNK_BYTES;
        http_transfer_start(h->transfers, f);
        while (f->busy)
                http_transfers_wait(h->transfers);
        if (f->why.code < 0)
                return err_set(err, f->why.code, "%s", f->why.text);
        f->probe = false;
        return 0;
}

static void http_close(struct block *block)
{
        struct http *h = to_http(block);

        for (unsigned n = 0; h->transfers && n < HTTP_FETCHES; n++)
                http_transfer_forget(h->transfers, &h->fetch[n]);
        http_transfers_free(h->transfers);
        for (unsigned n = 0; n < CHUNKS; n++)
                free(h->chunk[n].bytes);
        http_url_done(&h->url);
        block_done(block);
        free(h);
}

static int begin(struct http *h, const struct block_opening *opening, struct err *err)
{
        struct block_info *info = &h->block.info;
        int r = http_url_parse(opening->path, &h->url, err);

        if (r == 0 && !(opening->flags & BLOCK_OPEN_READONLY))
                r = err_set(err, -EROFS, "what a web server has can only be read; open it read-only, or put an image in front that has it as backing file");
        if (r == 0)
                r = http_transfers_new(opening->loop, &h->url, opening->path, &transfer_ops, h, &h->transfers, err);
        if (r == 0)
                r = look_at_file(h, err);
        if (r < 0)
                return r;
        *info = (struct block_info){
                .size_bytes = align_up(h->file_bytes, BLOCK_SECTOR), .logical_bytes = BLOCK_SECTOR, .physical_bytes = 4096, .optimal_bytes = CHUNK_BYTES,
                .readonly = true,
        };
        return 0;
}

static int http_open(const struct block_opening *opening, struct block **block, struct err *err)
{
        struct http *h = calloc(1, sizeof(*h));
        int r;

        if (!h)
                return err_nomem(err);
        r = block_init(&h->block, &block_http, opening, err);
        if (r < 0) {
                free(h);
                return r;
        }
        h->waiting_last = &h->waiting;
        r = begin(h, opening, err);
        if (r < 0) {
                http_close(&h->block);
                return err_wrap(err, r, "disk %s", opening->path);
        }
        *block = &h->block;
        return 0;
}

static const char *const schemes[] = { "http", "https", NULL };

const struct block_driver block_http = {
        .name = "http",
        .text = "a file of a web server, read-only",
        .schemes = schemes,
        .open = http_open,
        .close = http_close,
        .submit = http_submit,
        .kick = http_kick,
        .wait = http_wait,
        .describe = http_describe,
};
