/*
 * Jobs that follow what is written: commit and mirror. A bitmap of the image has what is still to be copied; writes set its bits again.
 *
 *      all ─▶ pass: a bit is cleared, then its place is read and written there ─▶ few are left, or few become fewer?
 *              ▲                                                   no │  │ yes, and nobody wants to wait
 *              └──────────────────────────────────────────────────────┘  ▼
 *                                         the disk is held ─▶ the rest ─▶ flush ─▶ the end: pivot, or the image is emptied ─▶ let go
 *
 * A bit is cleared before its place is read: a write that comes between sets it again when it ends, so what is copied last is what was written
 * last. While the disk is held nothing is waited for but the two disks, and neither pauses nor limits count.
 *
 * Commit writes to the base only where an image in front of it decides: nobody sees it before the pivot, or before the image is emptied.
 */
#include <errno.h>
#include <inttypes.h>

#include "block/bitmap.h"
#include "block/job/job.h"

#define FEW_BYTES (UINT64_C(4) << 20)
#define PASSES_MAX 20
#define LOOK_BYTES (UINT64_C(256) << 20)
#define REST_BYTES (UINT64_C(1) << 20)

struct follow {
        struct block_job job;
        struct block *image;  /* the disk's root */
        struct block *to;     /* mirror: the target; commit: the base */
        struct block_bitmap *dirty;
        struct block *old;    /* to be closed */
        bool commit, reopened;
};

static struct follow *to_follow(struct block_job *job)
{
        return container_of(job, struct follow, job);
}

/* ---- what is to be copied ---- */

static int look_at_all(const struct follow *f, uint64_t at, uint64_t *size_bytes, enum block_copy_what *what)
{
        struct block_extent extent;
        int r = block_status_through(f->image, at, *size_bytes, &extent);

        if (r < 0)
                return r;
        *size_bytes = extent.size_bytes;
        *what = extent.zero ? BLOCK_COPY_ZERO : BLOCK_COPY_DATA;
        return 0;
}

static int look(const struct follow *f, uint64_t at, uint64_t *size_bytes, enum block_copy_what *what)
{
        return f->commit ? block_copy_look_in_front(f->image, f->to, at, size_bytes, what) : look_at_all(f, at, size_bytes, what);
}

/* The next that the bitmap has, at or behind a place; its bits are clear from then on. */
static bool take_dirty(struct follow *f, uint64_t *at, uint64_t *size_bytes, uint64_t most)
{
        if (!block_bitmap_next(f->dirty, *at, at, size_bytes))
                return false;
        *size_bytes = MIN(*size_bytes, most);
        block_bitmap_clear(f->dirty, *at, *size_bytes);
        return true;
}

/*
 * Bits are cleared before anybody looks: what is written while that waits is looked at again. They stand for whole units: what is not the same in
 * one of them is read.
 */
static int look_for_dirty(struct block_copy *copy, uint64_t at, uint64_t *size_bytes, enum block_copy_what *what)
{
        struct follow *f = to_follow(copy->ctx);
        uint64_t from = at, run, unit = UINT64_C(1) << f->dirty->shift;
        int r;

        *what = BLOCK_COPY_SKIP;
        if (!take_dirty(f, &from, &run, MAX(LOOK_BYTES, unit)))
                return 0;
        if (from > at) {
                block_bitmap_set(f->dirty, from, run);
                *size_bytes = from - at;
                return 0;
        }
        *size_bytes = run;
        r = look(f, at, size_bytes, what);
        if (r < 0 || *size_bytes >= run)
                return r;
        if (*size_bytes < unit)
                *what = BLOCK_COPY_DATA;
        *size_bytes = MIN(MAX(align_down(*size_bytes, unit), unit), run);
        block_bitmap_set(f->dirty, at + *size_bytes, run - *size_bytes);
        return 0;
}

/* ---- the passes ---- */

static uint64_t dirty_bytes(const struct follow *f)
{
        return MIN(f->dirty->dirty << f->dirty->shift, f->dirty->size_bytes);
}

static int failed(struct follow *f, int r)
{
        return r == -ECANCELED ? r : block_job_fail(&f->job, r, "cannot copy disk %s to %s", f->image->path, f->to->path);
}

static int pass(struct follow *f, bool first)
{
        const struct block_job_config *config = &f->job.config;
        struct block_copy copy = {
                .from = f->image, .to = f->to, .size_bytes = f->image->info.size_bytes, .look = look_for_dirty,
                .to_is_empty = first && config->target_is_empty && !f->commit,
        };
        int r;

        if (first && config->resume && !f->commit) {
                copy.compare = true;
                copy.other = f->to;
        }
        f->job.total_bytes = copy.size_bytes;
        f->job.again = !first;
        r = block_job_copy(&f->job, &copy);
        return r < 0 ? failed(f, r) : 0;
}

/* What was written meanwhile, until that is little, or does not become less. */
static int come_near(struct follow *f)
{
        uint64_t before = UINT64_MAX, now;
        int r = 0;

        for (unsigned n = 0; r == 0 && n < PASSES_MAX; n++) {
                now = dirty_bytes(f);
                if (now <= FEW_BYTES || now >= before)
                        break;
                before = now;
                r = pass(f, false);
        }
        return r;
}

/* Both are nearly the same, and stay so, until somebody has had enough of it. */
static int stay_near(struct follow *f)
{
        struct block_job *job = &f->job;
        int r = 0;

        job->state = BLOCK_JOB_READY;
        while (r == 0 && !job->complete) {
                if (job->cancelled)
                        return -ECANCELED;
                if (dirty_bytes(f) && !job->paused)
                        r = pass(f, false);
                else
                        block_job_wait(job);
        }
        return r;
}

static int copy_rest(struct follow *f)
{
        _cleanup_free_ uint8_t *bytes = malloc(REST_BYTES);
        uint64_t at = 0, size_bytes;
        int r = bytes ? 0 : -ENOMEM;

        for (; r == 0 && take_dirty(f, &at, &size_bytes, REST_BYTES); at += size_bytes) {
                for (uint64_t done = 0, some; r == 0 && done < size_bytes; done += some) {
                        enum block_copy_what what;

                        some = size_bytes - done;
                        r = look(f, at + done, &some, &what);
                        if (r < 0 || what == BLOCK_COPY_SKIP)
                                continue;
                        r = block_read(f->image, at + done, bytes, some);
                        if (r == 0)
                                r = block_write(f->to, at + done, bytes, some);
                }
        }
        return r == 0 ? block_flush(f->to) : r;
}

/* Who uses a bitmap of an image (an export) would lose it with the image. */
static int check_bitmaps(const struct follow *f, struct err *err)
{
        for (const struct block_bitmap *b = f->image->bitmaps; b; b = b->next)
                if (b->users)
                        return err_set(err, -EBUSY, "disk %s: bitmap %s is in use, so the disk cannot go on in %s", f->image->path, b->name, f->to->path);
        return 0;
}

/* ---- commit ---- */

static struct block *front_of(struct block *node, const struct block *base)
{
        while (node && node->child[BLOCK_BACKING] != base)
                node = node->child[BLOCK_BACKING];
        return node;
}

static int prepare_base(struct follow *f, struct err *err)
{
        struct block *base = f->to;
        uint64_t size_bytes = f->image->info.size_bytes;
        int r = block_reopen(base, true, err);

        f->reopened = r == 0;
        if (r == 0 && base->info.size_bytes > size_bytes && f->job.config.pivot)
                r = err_set(err, -EINVAL, "disk %s is longer than %s: it cannot take its place", base->path, f->image->path);
        if (r == 0 && base->info.size_bytes < size_bytes)
                r = block_resize(base, size_bytes, err);
        return r;
}

static int commit_begin(struct block_job *job, struct err *err)
{
        struct follow *f = to_follow(job);
        int r;

        f->commit = true;
        f->image = block_disk_root(job->disk);
        f->to = job->config.base ? job->config.base : f->image->child[BLOCK_BACKING];
        if (!f->to)
                return err_set(err, -EINVAL, "disk %s has no backing file to write to", f->image->path);
        if (!front_of(f->image, f->to))
                return err_set(err, -EINVAL, "disk %s is not behind %s", f->to->path, f->image->path);
        if (!job->config.pivot && (f->to != f->image->child[BLOCK_BACKING] || !f->image->driver->make_empty))
                return err_set(err, -EOPNOTSUPP, "disk %s cannot be emptied for that; the disk can go on in %s", f->image->path, f->to->path);
        r = job->config.pivot ? check_bitmaps(f, err) : 0;
        if (r == 0)
                r = block_bitmap_add(f->image, NULL, block_bitmap_granularity(f->image), &f->dirty, err);
        if (r < 0)
                return r;
        block_disk_hold(job->disk);
        r = prepare_base(f, err);
        if (r < 0) {
                struct err ignored = ERR_INIT;

                if (f->reopened)
                        (void)!block_reopen(f->to, false, &ignored);
                block_bitmap_remove(f->dirty);
        } else {
                block_bitmap_set(f->dirty, 0, f->dirty->size_bytes);
        }
        block_disk_let_go(job->disk);
        return r;
}

/* Held. All that the image has is in the base. */
static int commit_over(struct follow *f)
{
        struct block_job *job = &f->job;
        int r;

        if (!job->config.pivot) {
                r = f->image->driver->make_empty(f->image, &job->why);
                return r;
        }
        f->old = f->image;
        (void)block_detach(front_of(f->image, f->to), BLOCK_BACKING);
        block_disk_swap(job->disk, f->to);
        f->reopened = false; /* it stays writable */
        return 0;
}

/* ---- mirror ---- */

static int mirror_begin(struct block_job *job, struct err *err)
{
        struct follow *f = to_follow(job);
        struct block *target = job->config.target;
        int r = 0;

        f->image = block_disk_root(job->disk);
        f->to = target;
        if (target->info.size_bytes < f->image->info.size_bytes)
                r = block_resize(target, f->image->info.size_bytes, err);
        if (r == 0 && target->info.size_bytes != f->image->info.size_bytes && (job->config.pivot || job->config.follow))
                r = err_set(err, -EINVAL, "disk %s has %" PRIu64 " bytes, %s %" PRIu64, target->path, target->info.size_bytes, f->image->path,
                            f->image->info.size_bytes);
        if (r == 0 && job->config.pivot)
                r = check_bitmaps(f, err);
        if (r == 0)
                r = block_bitmap_add(f->image, NULL, block_bitmap_granularity(f->image), &f->dirty, err);
        if (r < 0)
                return r;
        block_bitmap_set(f->dirty, 0, f->dirty->size_bytes);
        block_disk_attach(job->disk, target);
        return 0;
}

static int mirror_over(struct follow *f)
{
        if (!f->job.config.pivot)
                return 0;
        f->old = f->image;
        block_disk_attach(f->job.disk, NULL);
        block_disk_swap(f->job.disk, f->to);
        return 0;
}

/* ---- both ---- */

static int follow_run(struct block_job *job)
{
        struct follow *f = to_follow(job);
        int r = pass(f, true);

        if (r == 0 && job->config.follow && !f->commit)
                r = stay_near(f);
        if (r == 0)
                r = come_near(f);
        if (r == 0 && job->cancelled)
                r = -ECANCELED;
        if (r < 0)
                return r;
        job->state = BLOCK_JOB_ENDING;
        block_disk_hold(job->disk);
        r = copy_rest(f);
        if (r < 0)
                failed(f, r);
        else if (job->config.pivot)
                r = check_bitmaps(f, &job->why); /* it may have been told so only now */
        if (r == 0)
                r = f->commit ? commit_over(f) : mirror_over(f);
        block_disk_let_go(job->disk);
        return r;
}

static void follow_end(struct block_job *job)
{
        struct follow *f = to_follow(job);
        struct err ignored = ERR_INIT;

        block_bitmap_remove(f->dirty);
        if (!f->commit && !f->old) {
                block_disk_attach(job->disk, NULL);
                block_job_close(job, f->to);
        }
        if (f->reopened) {
                block_disk_hold(job->disk);
                (void)!block_reopen(f->to, false, &ignored);
                block_disk_let_go(job->disk);
        }
        if (f->old)
                block_job_close(job, f->old);
}

const struct block_job_ops block_job_commit = {
        .name = "commit", .size_bytes = sizeof(struct follow), .begin = commit_begin, .run = follow_run, .end = follow_end,
};

const struct block_job_ops block_job_mirror = {
        .name = "mirror", .size_bytes = sizeof(struct follow), .begin = mirror_begin, .run = follow_run, .end = follow_end,
};
