/*
 * Copying and comparing disks: several fibers, each with a buffer, take the next piece in turn. What reads as zeroes is not read.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/fiber.h"
#include "cli/disk.h"

#define FIBERS 8
#define PIECE_BYTES (UINT64_C(1) << 20)
#define ZERO_BYTES UINT64_C(4096) /* zeroes of so much are left out */
#define PROGRESS_MS 200

struct run {
        struct disk_copy *copy;
        uint64_t size_bytes, next, done;
        uint64_t unit_bytes, piece_bytes; /* pieces begin at and are multiples of the first, and at most the second */
        struct fiber_lock lock; /* over taking the next piece */
        unsigned fibers;
        int result;
};

static bool is_zero(const uint8_t *bytes, size_t size_bytes)
{
        return !size_bytes || (!bytes[0] && !memcmp(bytes, bytes + 1, size_bytes - 1));
}

struct piece {
        uint64_t at, size_bytes;
        bool zero, other_zero;
};

static int look(struct block *disk, uint64_t at, uint64_t *size_bytes, bool *zero)
{
        struct block_extent extent;
        int r;

        if (at >= disk->info.size_bytes) { /* the shorter of two that are compared */
                *zero = true;
                return 0;
        }
        r = block_status_through(disk, at, MIN(*size_bytes, disk->info.size_bytes - at), &extent);
        if (r < 0)
                return r;
        *zero = extent.zero;
        *size_bytes = extent.size_bytes;
        return 0;
}

/* 1: there is one; 0: no more. */
static int take_piece(struct run *run, struct piece *piece)
{
        int r;

        *piece = (struct piece){ .at = run->next, .size_bytes = run->size_bytes - run->next };
        if (!piece->size_bytes || run->result < 0)
                return 0;
        r = look(run->copy->from, piece->at, &piece->size_bytes, &piece->zero);
        if (r == 0 && run->copy->other)
                r = look(run->copy->other, piece->at, &piece->size_bytes, &piece->other_zero);
        if (r < 0)
                return r;
        if (piece->zero && piece->size_bytes < run->unit_bytes)
                piece->zero = false; /* of a part of it nobody asked */
        if (piece->zero)
                piece->size_bytes = align_down(piece->size_bytes, run->unit_bytes);
        if (!piece->zero || (run->copy->other && !piece->other_zero)) /* ends where pieces end, so that clusters are written whole */
                piece->size_bytes = MIN(align_up(piece->size_bytes, run->unit_bytes), run->piece_bytes - piece->at % run->piece_bytes);
        piece->size_bytes = MIN(piece->size_bytes, run->size_bytes - piece->at);
        run->next += piece->size_bytes;
        return 1;
}

static int read_piece(struct block *disk, const struct piece *piece, bool zero, uint8_t *bytes)
{
        uint64_t there = piece->at < disk->info.size_bytes && !zero ? MIN(piece->size_bytes, disk->info.size_bytes - piece->at) : 0;
        int r = there ? block_read(disk, piece->at, bytes, there) : 0;

        memset(bytes + there, 0, piece->size_bytes - there);
        return r;
}

static int write_bytes(struct run *run, uint64_t at, const uint8_t *bytes, uint64_t size_bytes)
{
        const struct iovec iov = { (void *)bytes, size_bytes };

        return block_do(run->copy->to, BLOCK_WRITE, run->copy->compress ? BLOCK_F_COMPRESS : 0, at, size_bytes, &iov, 1);
}

/* But for runs of zeroes. */
static int write_piece(struct run *run, const struct piece *piece, const uint8_t *bytes)
{
        uint64_t from = 0, at = 0, unit = MAX(run->unit_bytes, ZERO_BYTES);
        int r = 0;

        while (at < piece->size_bytes && r == 0) {
                uint64_t some = MIN(unit, piece->size_bytes - at);
                bool zero = run->copy->to_is_empty && is_zero(bytes + at, some);

                if (zero && from < at)
                        r = write_bytes(run, piece->at + from, bytes + from, at - from);
                at += some;
                if (zero)
                        from = at;
        }
        if (r == 0 && from < at)
                r = write_bytes(run, piece->at + from, bytes + from, at - from);
        return r;
}

static int copy_piece(struct run *run, const struct piece *piece, uint8_t *bytes)
{
        int r;

        if (piece->zero && run->copy->to_is_empty)
                return 0;
        if (piece->zero)
                return block_do(run->copy->to, BLOCK_WRITE_ZEROES, BLOCK_F_UNMAP, piece->at, piece->size_bytes, NULL, 0);
        r = read_piece(run->copy->from, piece, false, bytes);
        return r == 0 ? write_piece(run, piece, bytes) : r;
}

static int compare_piece(struct run *run, const struct piece *piece, uint8_t *bytes)
{
        uint8_t *others = bytes + run->piece_bytes;
        int r;

        if (piece->zero && piece->other_zero)
                return 0;
        r = read_piece(run->copy->from, piece, piece->zero, bytes);
        if (r == 0)
                r = read_piece(run->copy->other, piece, piece->other_zero, others);
        if (r < 0 || !memcmp(bytes, others, piece->size_bytes))
                return r;
        for (uint64_t n = 0; n < piece->size_bytes; n++)
                if (bytes[n] != others[n]) {
                        run->copy->differs = MIN(run->copy->differs, piece->at + n);
                        break;
                }
        return 0;
}

static void work(void *arg)
{
        struct run *run = arg;
        uint8_t *bytes = malloc(2 * run->piece_bytes);
        int r = bytes ? 1 : -ENOMEM;

        run->fibers++;
        while (r > 0) {
                struct piece piece;

                fiber_lock(&run->lock);
                r = take_piece(run, &piece);
                fiber_unlock(&run->lock);
                if (r <= 0)
                        break;
                r = run->copy->other ? compare_piece(run, &piece, bytes) : copy_piece(run, &piece, bytes);
                if (r == 0) {
                        run->done += piece.size_bytes;
                        r = run->copy->differs == BLOCK_NOWHERE;
                }
        }
        if (r < 0 && run->result == 0)
                run->result = r;
        free(bytes);
        run->fibers--;
}

static void show(const struct run *run, uint64_t start_ms)
{
        fprintf(stderr, "\r%5.1f %%  %" PRIu64 " MiB of %" PRIu64 " MiB  %.1f s ", run->size_bytes ? 100.0 * (double)run->done / (double)run->size_bytes : 100.0,
                run->done >> 20, run->size_bytes >> 20, (double)(uv_hrtime() / 1000000 - start_ms) / 1000);
}

int disk_copy_run(struct disk_session *session, struct disk_copy *copy, struct err *err)
{
        struct run run = { .copy = copy, .size_bytes = copy->from->info.size_bytes };
        uint64_t start_ms = uv_hrtime() / 1000000, shown_ms = start_ms + 1000 - PROGRESS_MS;
        bool progress = !copy->quiet && isatty(STDERR_FILENO), any = false;

        copy->differs = BLOCK_NOWHERE;
        run.unit_bytes = copy->compress ? copy->to->info.optimal_bytes : 1;
        run.piece_bytes = MAX(PIECE_BYTES, run.unit_bytes);
        if (copy->other)
                run.size_bytes = MAX(run.size_bytes, copy->other->info.size_bytes);
        for (unsigned n = 0; n < FIBERS; n++)
                if (fiber_start(work, &run) < 0 && !run.fibers)
                        run.result = -ENOMEM;
        while (run.fibers) {
                uint64_t now_ms = uv_hrtime() / 1000000;

                uv_run(&session->loop, UV_RUN_ONCE);
                if (progress && now_ms >= shown_ms + PROGRESS_MS) {
                        show(&run, start_ms);
                        shown_ms = now_ms;
                        any = true;
                }
        }
        if (any)
                fprintf(stderr, "\r\x1b[K");
        fiber_thread_done();
        return run.result < 0 ? err_errno(err, run.result, "%s", copy->other ? "cannot compare" : "cannot copy") : 0;
}
