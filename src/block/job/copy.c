/* Copying and comparing disks. */
#include "block/job/copy.h"

#include <errno.h>

#define FIBERS 8
#define PIECE_BYTES (UINT64_C(1) << 20)
#define ZERO_BYTES UINT64_C(4096) /* zeroes of so much are left out */
#define RUNS_MAX 16
#define SLICE_MS 100

struct piece {
        uint64_t at, size_bytes;
        bool skip, zero, other_zero;
        uint64_t number; /* whose turn */
        void *claim;
};

static bool is_zero(const uint8_t *bytes, size_t size_bytes)
{
        return !size_bytes || (!bytes[0] && !memcmp(bytes, bytes + 1, size_bytes - 1));
}

/* ---- pause, speed ---- */

static void tick(uv_timer_t *timer)
{
        struct block_copy *c = timer->data;

        c->slice_left = c->bytes_a_second * SLICE_MS / 1000 + 1;
        fiber_queue_wake_all(&c->gate);
}

static void wait_at_gate(struct block_copy *c)
{
        while (c->result == 0 && (c->paused || (c->bytes_a_second && !c->slice_left)))
                fiber_queue_wait(&c->gate);
}

void block_copy_set_speed(struct block_copy *copy, uint64_t bytes_a_second)
{
        copy->bytes_a_second = bytes_a_second;
        copy->slice_left = bytes_a_second * SLICE_MS / 1000 + 1;
        if (bytes_a_second)
                uv_timer_start(&copy->timer, tick, SLICE_MS, SLICE_MS);
        else
                uv_timer_stop(&copy->timer);
        fiber_queue_wake_all(&copy->gate);
}

void block_copy_pause(struct block_copy *copy, bool pause)
{
        copy->paused = pause;
        if (!pause)
                fiber_queue_wake_all(&copy->gate);
}

void block_copy_cancel(struct block_copy *copy)
{
        if (copy->result == 0)
                copy->result = -ECANCELED;
        fiber_queue_wake_all(&copy->gate);
}

/* ---- the next piece ---- */

static int look_at(struct block *disk, uint64_t at, uint64_t *size_bytes, enum block_copy_what *what)
{
        struct block_extent extent;
        int r;

        *what = BLOCK_COPY_ZERO;
        if (!disk || at >= disk->info.size_bytes) /* the shorter of two */
                return 0;
        r = block_status_through(disk, at, MIN(*size_bytes, disk->info.size_bytes - at), &extent);
        if (r < 0)
                return r;
        *what = extent.zero ? BLOCK_COPY_ZERO : BLOCK_COPY_DATA;
        *size_bytes = extent.size_bytes;
        return 0;
}

/* An answer holds for as long as it was said to: some file systems take long for each. */
static int look(struct block_copy *c)
{
        uint64_t size_bytes = c->size_bytes - c->next;
        int r = 0;

        if (c->next >= c->known_end) {
                r = c->look ? c->look(c, c->next, &size_bytes, &c->known) : look_at(c->from, c->next, &size_bytes, &c->known);
                c->known_end = c->next + size_bytes;
        }
        size_bytes = c->size_bytes - c->next;
        if (r == 0 && c->compare && c->next >= c->other_end) {
                r = look_at(c->other, c->next, &size_bytes, &c->other_known);
                c->other_end = c->next + size_bytes;
        }
        return r;
}

/* As its claim says. */
static int take_claimed(struct block_copy *c, struct piece *piece)
{
        enum block_copy_what what;
        int r;

        piece->size_bytes = c->size_bytes - c->next;
        r = c->claim(c, c->next, &piece->size_bytes, &what, &piece->claim);
        if (r < 0)
                return r;
        piece->skip = what == BLOCK_COPY_SKIP;
        piece->zero = what == BLOCK_COPY_ZERO;
        c->next += piece->size_bytes;
        if (!piece->skip)
                piece->number = c->taken++;
        return 1;
}

/* 1: there is one; 0: no more. */
static int take_piece(struct block_copy *c, struct piece *piece)
{
        uint64_t unit = MAX(c->unit_bytes, UINT64_C(1)), end;
        int r;

        *piece = (struct piece){ .at = c->next };
        if (c->next >= c->size_bytes || c->result < 0)
                return c->result;
        if (c->claim)
                return take_claimed(c, piece);
        r = look(c);
        if (r < 0)
                return r;
        piece->skip = c->known == BLOCK_COPY_SKIP;
        piece->zero = c->known == BLOCK_COPY_ZERO;
        piece->other_zero = c->compare && c->other_known == BLOCK_COPY_ZERO;
        end = c->compare && !piece->skip ? MIN(c->known_end, c->other_end) : c->known_end;
        piece->size_bytes = MIN(end, c->size_bytes) - c->next;
        if ((piece->zero || piece->skip) && piece->size_bytes < unit)
                piece->zero = piece->skip = false; /* of a part of it nobody asked */
        if (piece->zero || piece->skip)
                piece->size_bytes = align_down(piece->size_bytes, unit);
        if (!piece->skip && !(piece->zero && (!c->compare || piece->other_zero))) /* ends where pieces end, so that clusters are written whole */
                piece->size_bytes = MIN(align_up(piece->size_bytes, unit), c->piece_bytes - piece->at % c->piece_bytes);
        piece->size_bytes = MIN(piece->size_bytes, c->size_bytes - piece->at);
        c->next += piece->size_bytes;
        if (!piece->skip)
                piece->number = c->taken++;
        return 1;
}

/* ---- writing ---- */

/* Those in front have been submitted. */
static void wait_for_turn(struct block_copy *c, const struct piece *piece)
{
        while (c->turn < piece->number)
                fiber_queue_wait(&c->turns);
}

static void pass_turn(struct block_copy *c, const struct piece *piece)
{
        if (c->turn != piece->number)
                return;
        c->turn++;
        fiber_queue_wake_all(&c->turns);
}

static int write_zeroes(struct block_copy *c, uint64_t at, uint64_t size_bytes)
{
        uint64_t most = MAX((uint64_t)c->to->info.zeroes_bytes, UINT64_C(65536));
        int r = 0;

        while (size_bytes && r == 0) {
                uint64_t some = MIN(size_bytes, most);

                r = block_do(c->to, BLOCK_WRITE_ZEROES, BLOCK_F_UNMAP, at, some, NULL, 0);
                if (r == -EOPNOTSUPP) {
                        _cleanup_free_ uint8_t *zeroes = NULL;

                        some = MIN(some, PIECE_BYTES);
                        zeroes = calloc(1, some);
                        r = zeroes ? block_write(c->to, at, zeroes, some) : -ENOMEM;
                }
                at += some;
                size_bytes -= some;
        }
        return r;
}

struct runs {
        struct block_batch batch;
        struct block_batch_request request[RUNS_MAX];
        struct iovec iov[RUNS_MAX];
        unsigned count;
};

static int runs_wait(struct block_copy *c, struct runs *runs)
{
        int r = block_batch_wait(&runs->batch, c->to);

        runs->count = 0;
        return r;
}

static int runs_add(struct block_copy *c, struct runs *runs, uint64_t at, const uint8_t *bytes, uint64_t size_bytes)
{
        struct block_batch_request *request = &runs->request[runs->count];
        struct iovec *iov = &runs->iov[runs->count];

        *iov = (struct iovec){ (void *)bytes, size_bytes };
        request->req = (struct block_request){
                .op = BLOCK_WRITE, .flags = c->compress ? BLOCK_F_COMPRESS : 0, .offset_bytes = at, .size_bytes = size_bytes, .iov = iov, .iov_count = 1,
        };
        block_batch_add(&runs->batch, c->to, request);
        return ++runs->count == RUNS_MAX ? runs_wait(c, runs) : 0;
}

/* What differs from the other disk, or from zeroes in one that is empty. */
static bool wanted(const struct block_copy *c, const uint8_t *bytes, const uint8_t *others, uint64_t size_bytes)
{
        if (c->compare)
                return memcmp(bytes, others, size_bytes) != 0;
        return !c->to_is_empty || !is_zero(bytes, size_bytes);
}

static int write_piece(struct block_copy *c, const struct piece *piece, const uint8_t *bytes, const uint8_t *others)
{
        uint64_t from = 0, at = 0, unit = MAX(c->unit_bytes, ZERO_BYTES);
        struct runs runs = { 0 };
        int r = 0, last;

        wait_for_turn(c, piece);
        while (at < piece->size_bytes && r == 0) {
                uint64_t some = MIN(unit, piece->size_bytes - at);
                bool want = wanted(c, bytes + at, others + at, some);

                if (!want && from < at)
                        r = runs_add(c, &runs, piece->at + from, bytes + from, at - from);
                at += some;
                if (!want)
                        from = at;
        }
        if (r == 0 && from < at)
                r = runs_add(c, &runs, piece->at + from, bytes + from, at - from);
        pass_turn(c, piece);
        last = runs_wait(c, &runs);
        return r == 0 ? last : r;
}

/* ---- one piece ---- */

static int read_piece(struct block *disk, const struct piece *piece, bool zero, uint8_t *bytes)
{
        uint64_t there = disk && piece->at < disk->info.size_bytes && !zero ? MIN(piece->size_bytes, disk->info.size_bytes - piece->at) : 0;
        int r = there ? block_read(disk, piece->at, bytes, there) : 0;

        memset(bytes + there, 0, piece->size_bytes - there);
        return r;
}

static void find_difference(struct block_copy *c, const struct piece *piece, const uint8_t *bytes, const uint8_t *others)
{
        for (uint64_t n = 0; n < piece->size_bytes; n++)
                if (bytes[n] != others[n]) {
                        c->differs = MIN(c->differs, piece->at + n);
                        return;
                }
}

static int compare_piece(struct block_copy *c, const struct piece *piece, uint8_t *bytes)
{
        uint8_t *others = bytes + c->piece_bytes;
        int r;

        if (piece->zero && piece->other_zero)
                return 0;
        r = read_piece(c->from, piece, piece->zero, bytes);
        if (r == 0)
                r = read_piece(c->other, piece, piece->other_zero, others);
        if (r < 0 || !memcmp(bytes, others, piece->size_bytes))
                return r;
        if (!c->to) {
                find_difference(c, piece, bytes, others);
                return 0;
        }
        return piece->zero ? write_zeroes(c, piece->at, piece->size_bytes) : write_piece(c, piece, bytes, others);
}

static int copy_piece(struct block_copy *c, const struct piece *piece, uint8_t *bytes)
{
        int r;

        if (c->compare)
                return compare_piece(c, piece, bytes);
        if (piece->zero && c->to_is_empty)
                return 0;
        if (piece->zero)
                return write_zeroes(c, piece->at, piece->size_bytes);
        r = read_piece(c->from, piece, false, bytes);
        return r == 0 ? write_piece(c, piece, bytes, bytes) : r;
}

static int do_piece(struct block_copy *c, const struct piece *piece, uint8_t *bytes)
{
        int r;

        if (piece->skip)
                return 0;
        r = copy_piece(c, piece, bytes);
        wait_for_turn(c, piece); /* who wrote nothing passes it, too */
        pass_turn(c, piece);
        if (c->release)
                c->release(c, piece->claim, piece->at, piece->size_bytes, r);
        return r;
}

static void timer_closed(uv_handle_t *handle)
{
        struct block_copy *c = handle->data;

        c->done(c, c->result);
}

static void one_over(struct block_copy *c)
{
        if (--c->fibers == 0)
                uv_close((uv_handle_t *)&c->timer, timer_closed);
}

static void work(void *arg)
{
        struct block_copy *c = arg;
        uint8_t *bytes = malloc((c->compare ? 2 : 1) * c->piece_bytes);
        int r = bytes ? 1 : -ENOMEM;

        while (r > 0) {
                struct piece piece;

                wait_at_gate(c);
                fiber_lock(&c->lock);
                r = take_piece(c, &piece);
                fiber_unlock(&c->lock);
                if (r <= 0)
                        break;
                c->slice_left -= MIN(c->slice_left, piece.skip || piece.zero ? 0 : piece.size_bytes);
                r = do_piece(c, &piece, bytes);
                if (r == 0) {
                        c->done_bytes += piece.size_bytes;
                        r = c->differs == BLOCK_NOWHERE;
                }
        }
        if (r < 0 && c->result == 0)
                c->result = r;
        if (c->result < 0)
                fiber_queue_wake_all(&c->gate);
        free(bytes);
        one_over(c);
}

/* ---- all of it ---- */

void block_copy_start(struct block_copy *copy, uv_loop_t *loop)
{
        copy->differs = BLOCK_NOWHERE;
        copy->piece_bytes = MAX(PIECE_BYTES, copy->unit_bytes);
        uv_timer_init(loop, &copy->timer);
        copy->timer.data = copy;
        if (copy->bytes_a_second)
                block_copy_set_speed(copy, copy->bytes_a_second);
        copy->fibers = 1; /* we */
        for (unsigned n = 0; n < (copy->to && copy->to->info.streamed ? 1 : FIBERS); n++) {
                copy->fibers++;
                if (fiber_start(work, copy) < 0) {
                        copy->fibers--;
                        if (n == 0)
                                copy->result = -ENOMEM;
                }
        }
        one_over(copy);
}

struct watch {
        bool over;
        int result;
};

static void run_done(struct block_copy *copy, int result)
{
        struct watch *watch = copy->runner;

        watch->over = true;
        watch->result = result;
}

int block_copy_run(struct block_copy *copy, uv_loop_t *loop, void (*show)(struct block_copy *copy, void *ctx), void *ctx)
{
        struct watch watch = { 0 };

        copy->done = run_done;
        copy->runner = &watch; /* cppcheck-suppress autoVariables; until the end of this function */
        block_copy_start(copy, loop);
        while (!watch.over) {
                uv_run(loop, UV_RUN_ONCE);
                if (show)
                        show(copy, ctx);
        }
        copy->runner = NULL;
        return watch.result;
}

int block_copy_look_in_front(struct block *front, const struct block *base, uint64_t at, uint64_t *size_bytes, enum block_copy_what *what)
{
        *what = BLOCK_COPY_SKIP;
        for (struct block *node = front; node != base; node = node->child[BLOCK_BACKING]) {
                struct block_extent extent;
                int r;

                if (at >= node->info.size_bytes) { /* behind the end of a shorter one there is nothing but zeroes */
                        *what = BLOCK_COPY_ZERO;
                        return 0;
                }
                *size_bytes = MIN(*size_bytes, node->info.size_bytes - at);
                r = block_status(node, at, *size_bytes, &extent);
                if (r < 0)
                        return r;
                *size_bytes = extent.size_bytes;
                if (extent.present) {
                        *what = extent.zero ? BLOCK_COPY_ZERO : BLOCK_COPY_DATA;
                        return 0;
                }
        }
        return 0;
}
