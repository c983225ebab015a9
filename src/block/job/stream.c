/*
 * Stream: what an image leaves to its backing files is copied into it, until it needs them no more.
 *
 * A filter (copy-on-read.c) keeps the guest's writes away from the piece that is on its way: it is read through the image and written back, so
 * that nothing newer is lost. In the end the image names what is behind `base`, or nothing, behind a flush; before that it reads the same with
 * its backing files as without. What is there already is not copied again, also after a crash.
 */
#include <errno.h>

#include "block/filter/filter.h"
#include "block/job/job.h"

struct stream {
        struct block_job job;
        struct block *image, *filter;
        struct block *old;   /* the chain that nobody needs now */
        bool filtered;
};

static struct stream *to_stream(struct block_job *job)
{
        return container_of(job, struct stream, job);
}

/* ---- what is to be copied ---- */

static int behind_base(const struct stream *s, uint64_t at, uint64_t *size_bytes, bool *zero)
{
        struct block *base = s->job.config.base;
        struct block_extent extent;
        int r;

        *zero = true;
        if (!base || at >= base->info.size_bytes)
                return 0;
        r = block_status_through(base, at, MIN(*size_bytes, base->info.size_bytes - at), &extent);
        if (r < 0)
                return r;
        *size_bytes = extent.size_bytes;
        *zero = extent.zero;
        return 0;
}

/* Zeroes that an image in front of the base decides: nothing is to be done where the base has none but zeroes. */
static int zeroes_at(const struct stream *s, uint64_t at, uint64_t *size_bytes, enum block_copy_what *what)
{
        bool zero;
        int r = behind_base(s, at, size_bytes, &zero);

        *what = zero ? BLOCK_COPY_SKIP : BLOCK_COPY_ZERO;
        return r;
}

static int look(const struct stream *s, uint64_t at, uint64_t *size_bytes, enum block_copy_what *what)
{
        *what = BLOCK_COPY_SKIP;
        for (struct block *node = s->image; node && node != s->job.config.base; node = node->child[BLOCK_BACKING]) {
                struct block_extent extent;
                int r;

                if (at >= node->info.size_bytes)
                        return zeroes_at(s, at, size_bytes, what);
                *size_bytes = MIN(*size_bytes, node->info.size_bytes - at);
                r = block_status(node, at, *size_bytes, &extent);
                if (r < 0)
                        return r;
                *size_bytes = extent.size_bytes;
                if (!extent.present)
                        continue;
                if (node == s->image)
                        return 0;
                *what = BLOCK_COPY_DATA;
                return extent.zero ? zeroes_at(s, at, size_bytes, what) : 0;
        }
        return 0;
}

static int claim_piece(struct block_copy *copy, uint64_t at, uint64_t *size_bytes, enum block_copy_what *what, void **claim)
{
        struct stream *s = to_stream(copy->ctx);
        struct claim *mine;
        int r = look(s, at, size_bytes, what);

        if (r < 0 || *what == BLOCK_COPY_SKIP)
                return r;
        mine = malloc(sizeof(*mine));
        if (!mine)
                return -ENOMEM;
        *size_bytes = MIN(*size_bytes, copy->piece_bytes - at % copy->piece_bytes);
        block_copy_on_read_claim(s->filter, mine, at, *size_bytes);
        r = look(s, at, size_bytes, what); /* the guest may have been there */
        if (r == 0 && *what != BLOCK_COPY_SKIP) {
                *claim = mine;
                return 0;
        }
        block_copy_on_read_release(s->filter, mine);
        free(mine);
        return r;
}

static void release_piece(struct block_copy *copy, void *claim, uint64_t at, uint64_t size_bytes, int result)
{
        struct claim *mine = claim;

        block_copy_on_read_release(to_stream(copy->ctx)->filter, mine);
        free(mine);
}

/* ---- the job ---- */

static int stream_begin(struct block_job *job, struct err *err)
{
        struct stream *s = to_stream(job);
        struct block *at;
        int r;

        s->image = block_disk_root(job->disk);
        at = s->image->child[BLOCK_BACKING];
        if (!at)
                return err_set(err, -EINVAL, "disk %s has no backing file", s->image->path);
        if (!s->image->driver->set_backing || !s->image->driver->backing_changed)
                return err_set(err, -EOPNOTSUPP, "disk %s: a %s image keeps its backing file", s->image->path, s->image->driver->name);
        while (at && at != job->config.base)
                at = at->child[BLOCK_BACKING];
        if (job->config.base && !at)
                return err_set(err, -EINVAL, "disk %s is not behind %s", job->config.base->path, s->image->path);
        block_disk_hold(job->disk);
        r = block_copy_on_read_new(s->image, false, &s->filter, err);
        if (r == 0)
                block_disk_swap(job->disk, s->filter);
        block_disk_let_go(job->disk);
        s->filtered = r == 0;
        job->total_bytes = s->image->info.size_bytes;
        return r;
}

/* From now on only base is behind the image; the caller closes what was. */
static int cut_chain(struct stream *s)
{
        struct block_job *job = &s->job;
        struct block *image = s->image, *base = job->config.base, *last = image;
        int r = block_flush(image);

        if (r < 0)
                return block_job_fail(job, r, "cannot write disk %s", image->path);
        while (last->child[BLOCK_BACKING] != base)
                last = last->child[BLOCK_BACKING];
        if (last == image)
                return 0; /* it is there already */
        r = image->driver->set_backing(image, base ? job->base_name : NULL, base ? job->config.base_format : NULL, &job->why);
        if (r < 0)
                return r;
        s->old = block_detach(image, BLOCK_BACKING);
        if (base) {
                (void)block_detach(last, BLOCK_BACKING);
                block_adopt(image, BLOCK_BACKING, base);
        }
        image->driver->backing_changed(image);
        return 0;
}

static int stream_run(struct block_job *job)
{
        struct stream *s = to_stream(job);
        struct block_copy copy = { .from = s->image, .to = s->image, .size_bytes = s->image->info.size_bytes, .claim = claim_piece, .release = release_piece };
        int r = block_job_copy(job, &copy);

        if (r < 0)
                return r == -ECANCELED ? r : block_job_fail(job, r, "cannot copy backing files into disk %s", s->image->path);
        job->state = BLOCK_JOB_ENDING;
        block_disk_hold(job->disk);
        r = cut_chain(s);
        block_disk_swap(job->disk, s->image);
        s->filtered = false;
        block_disk_let_go(job->disk);
        return r;
}

static void stream_end(struct block_job *job)
{
        struct stream *s = to_stream(job);

        if (s->filtered) {
                block_disk_hold(job->disk);
                block_disk_swap(job->disk, s->image);
                block_disk_let_go(job->disk);
        }
        block_filter_remove(s->filter);
        block_close(s->old);
}

const struct block_job_ops block_job_stream = {
        .name = "stream", .size_bytes = sizeof(struct stream), .begin = stream_begin, .run = stream_run, .end = stream_end,
};
