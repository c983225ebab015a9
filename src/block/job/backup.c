/*
 * Backup: the disk as it is when the job begins. A filter (before-write.c) copies what is about to be overwritten; the rest is copied in turn.
 *
 * By a bitmap: only what that has. It is emptied at the beginning, so that it has what is written from then on, for the next backup; when the
 * job fails what it had comes back.
 */
#include <errno.h>

#include "block/bitmap.h"
#include "block/filter/filter.h"
#include "block/job/job.h"

struct backup {
        struct block_job job;
        struct block *image, *filter;
        struct block_bitmap *bitmap, *frozen; /* frozen: what it had */
};

static struct backup *to_backup(struct block_job *job)
{
        return container_of(job, struct backup, job);
}

static int claim_piece(struct block_copy *copy, uint64_t at, uint64_t *size_bytes, enum block_copy_what *what, void **claim)
{
        struct backup *b = to_backup(copy->ctx);
        struct claim *mine = malloc(sizeof(*mine));
        bool skip = true, zero = false;
        int r = mine ? block_before_write_claim(b->filter, at, size_bytes, copy->piece_bytes, mine, &skip, &zero) : -ENOMEM;

        *what = skip ? BLOCK_COPY_SKIP : zero ? BLOCK_COPY_ZERO : BLOCK_COPY_DATA;
        *claim = mine;
        if (r < 0 || skip)
                free(mine);
        return r;
}

static void release_piece(struct block_copy *copy, void *claim, uint64_t at, uint64_t size_bytes, int result)
{
        block_before_write_release(to_backup(copy->ctx)->filter, claim, at, size_bytes, result);
        free(claim);
}

/* What the bitmap has, and an empty one in its place. */
static int freeze(struct backup *b, struct err *err)
{
        int r = block_bitmap_get(b->image, b->job.config.bitmap, false, &b->bitmap, err);

        if (r < 0)
                return r;
        r = block_bitmap_add(b->image, NULL, 1u << b->bitmap->shift, &b->frozen, err);
        if (r < 0)
                return r;
        b->frozen->enabled = false;
        return block_bitmap_merge(b->frozen, b->bitmap, err);
}

static int backup_begin(struct block_job *job, struct err *err)
{
        struct backup *b = to_backup(job);
        int r = 0;

        b->image = block_disk_root(job->disk);
        block_disk_hold(job->disk);
        if (job->config.bitmap)
                r = freeze(b, err);
        if (r == 0)
                r = block_before_write_new(b->image, job->config.target, job->config.target_is_empty, b->frozen, &b->filter, err);
        if (r == 0) {
                if (b->bitmap) {
                        b->bitmap->users++;
                        block_bitmap_clear(b->bitmap, 0, b->bitmap->size_bytes);
                }
                block_disk_swap(job->disk, b->filter);
        } else if (b->frozen) {
                block_bitmap_remove(b->frozen);
        }
        block_disk_let_go(job->disk);
        job->total_bytes = b->image->info.size_bytes;
        return r;
}

static int backup_run(struct block_job *job)
{
        struct backup *b = to_backup(job);
        struct block_copy copy = {
                .from = b->image, .to = job->config.target, .size_bytes = b->image->info.size_bytes, .to_is_empty = job->config.target_is_empty,
                .claim = claim_piece, .release = release_piece,
        };
        int r = block_job_copy(job, &copy);

        job->state = BLOCK_JOB_ENDING;
        if (r == 0)
                r = block_before_write_error(b->filter);
        if (r == 0)
                r = block_flush(job->config.target);
        if (r < 0) {
                block_before_write_give_up(b->filter, r); /* the guest need not wait for it */
                return r == -ECANCELED ? r : block_job_fail(job, r, "cannot copy disk %s to %s", b->image->path, job->config.target->path);
        }
        return 0;
}

static void backup_end(struct block_job *job)
{
        struct backup *b = to_backup(job);

        block_disk_hold(job->disk);
        block_disk_swap(job->disk, b->image);
        block_disk_let_go(job->disk);
        block_filter_remove(b->filter);
        block_job_close(job, job->config.target);
        if (!b->bitmap)
                return;
        if (job->result < 0)
                (void)!block_bitmap_merge(b->bitmap, b->frozen, NULL); /* of the same size */
        b->bitmap->users--;
        block_bitmap_remove(b->frozen);
}

const struct block_job_ops block_job_backup = {
        .name = "backup", .size_bytes = sizeof(struct backup), .begin = backup_begin, .run = backup_run, .end = backup_end,
};
