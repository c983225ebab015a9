/*
 * File I/O on libuv's thread pool: plain system calls, one piece of work a request (base/work.h).
 */
#include "block/file-io.h"

#include <errno.h>
#include <fcntl.h>

#include "base/work.h"

struct pool {
        struct file_io io;
        struct work_queue *queue;
};

struct job {
        struct pool *pool;
        struct block_request *req;
};

static struct pool *to_pool(struct file_io *io)
{
        return container_of(io, struct pool, io);
}

static int64_t run_step(int fd, const struct file_io_step *step)
{
        int64_t r = -1;

        switch (step->call) {
        case FILE_IO_READV:
                r = preadv2(fd, step->iov, (int)step->iov_count, (off_t)step->offset_bytes, step->flags);
                break;
        case FILE_IO_WRITEV:
                r = pwritev2(fd, step->iov, (int)step->iov_count, (off_t)step->offset_bytes, step->flags);
                break;
        case FILE_IO_SYNC:
                r = fdatasync(fd);
                break;
        case FILE_IO_FALLOCATE:
                r = fallocate(fd, step->flags, (off_t)step->offset_bytes, (off_t)step->size_bytes);
                break;
        }
        return r < 0 ? -errno : r;
}

/* On a thread of the pool. */
static void job_run(void *arg)
{
        const struct job *job = arg;
        struct file_io_step step;

        do {
                step = file_io_step(job->req);
        } while (!file_io_result(job->req, run_step(job->pool->io.fd, &step)));
}

static void job_done(void *arg)
{
        struct job *job = arg;
        struct block *disk = job->pool->io.disk;
        struct block_request *req = job->req;

        free(job);
        block_complete(disk, req, req->result);
}

static void pool_submit(struct file_io *io, struct block_request *req)
{
        struct pool *pool = to_pool(io);
        struct job *job = malloc(sizeof(*job));

        file_io_begin(req);
        if (job)
                *job = (struct job){ pool, req };
        if (job && work_submit(pool->queue, job_run, job_done, job) == 0)
                return;
        free(job);
        block_complete(io->disk, req, -ENOMEM);
}

static void pool_kick(struct file_io *io)
{
}

static void pool_reap(struct file_io *io)
{
        (void)work_reap(to_pool(io)->queue);
}

static void pool_wait(struct file_io *io)
{
        work_wait(to_pool(io)->queue);
}

static void batch(void *ctx)
{
        const struct pool *pool = ctx;

        if (pool->io.disk->listener)
                pool->io.disk->listener(pool->io.disk->listener_ctx);
}

static void pool_free(struct file_io *io)
{
        work_queue_free(to_pool(io)->queue);
        free(to_pool(io));
}

static const struct file_io_ops pool_ops = {
        .name = "threads",
        .submit = pool_submit,
        .kick = pool_kick,
        .reap = pool_reap,
        .wait = pool_wait,
        .free = pool_free,
};

int file_io_pool_new(uv_loop_t *loop, int fd, struct block *disk, struct file_io **io, struct err *err)
{
        struct pool *pool = calloc(1, sizeof(*pool));
        int r;

        if (!pool)
                return err_nomem(err);
        pool->io = (struct file_io){ .ops = &pool_ops, .disk = disk, .fd = fd };
        r = work_queue_new(loop, batch, pool, &pool->queue, err);
        if (r < 0) {
                free(pool);
                return r;
        }
        *io = &pool->io;
        return 0;
}
