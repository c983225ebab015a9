/*
 * The job that gives a disk another size while it is in use. All of it is one step: the disk is held, so that nothing is in flight, and goes on with
 * its new size. Whoever shows the disk to a guest is told when the job is over (done), and tells the guest.
 *
 * A disk that became smaller gets requests of guests that do not know it yet: what lies behind the end fails (block/disk.c).
 */
#include <errno.h>
#include <inttypes.h>

#include "block/job/job.h"

static int resize_begin(struct block_job *job, struct err *err)
{
        struct block *image = block_disk_root(job->disk);
        uint64_t size_bytes = job->config.size_bytes;

        if (image->info.readonly)
                return err_set(err, -EROFS, "disk %s is read-only: no resize", image->path);
        if (!image->driver->resize)
                return err_set(err, -EOPNOTSUPP, "disk %s: a %s image cannot be resized", image->path, image->driver->name);
        if (!size_bytes || size_bytes % BLOCK_SECTOR || size_bytes > INT64_MAX)
                return err_set(err, -EINVAL, "disk %s: %" PRIu64 " bytes are no size for a disk", image->path, size_bytes);
        if (size_bytes < image->info.size_bytes && !job->config.shrink)
                return err_set(err, -EINVAL, "disk %s has %" PRIu64 " bytes; to make it smaller, and lose what is behind, say `shrink`", image->path,
                               image->info.size_bytes);
        job->total_bytes = size_bytes;
        return 0;
}

static int resize_run(struct block_job *job)
{
        int r;

        if (job->cancelled)
                return -ECANCELED;
        job->state = BLOCK_JOB_ENDING;
        block_disk_hold(job->disk);
        r = block_disk_resize(job->disk, job->config.size_bytes, &job->why);
        block_disk_let_go(job->disk);
        if (r == 0)
                job->done_bytes = job->total_bytes;
        return r;
}

static void resize_end(struct block_job *job)
{
}

const struct block_job_ops block_job_resize = {
        .name = "resize", .size_bytes = sizeof(struct block_job), .begin = resize_begin, .run = resize_run, .end = resize_end,
};
