/*
 * File I/O on libuv's thread pool: plain system calls, one job a request.
 *
 *   submit ─▶ job in the pool ─▶ finished list ─▶ (async wakes the loop) reap ─▶ done
 *
 * A job's memory is libuv's until its after-work callback, which may come after the request was reaped (waiting does not run the
 * loop), and even after the engine was freed: the engine's memory goes with the last of jobs and async handle.
 */
#include "block/file-io.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>

struct pool {
        struct file_io io;
        uv_loop_t *loop;
        uv_async_t async;
        pthread_mutex_t lock;
        pthread_cond_t finished;
        struct block_request *first, **last; /* the finished list; under lock */
        unsigned references;                 /* jobs and the async handle */
};

struct job {
        uv_work_t work;
        struct pool *pool;
        struct block_request *req;
};

static struct pool *to_pool(struct file_io *io)
{
        return container_of(io, struct pool, io);
}

static void unref(struct pool *pool)
{
        if (--pool->references)
                return;
        pthread_cond_destroy(&pool->finished);
        pthread_mutex_destroy(&pool->lock);
        free(pool);
}

static void finish(struct pool *pool, struct block_request *req)
{
        pthread_mutex_lock(&pool->lock);
        req->next = NULL;
        *pool->last = req;
        pool->last = &req->next;
        pthread_cond_signal(&pool->finished);
        pthread_mutex_unlock(&pool->lock);
        uv_async_send(&pool->async);
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
static void job_run(uv_work_t *work)
{
        struct job *job = container_of(work, struct job, work);
        struct file_io_step step;

        do {
                step = file_io_step(job->req);
        } while (!file_io_result(job->req, run_step(job->pool->io.fd, &step)));
        finish(job->pool, job->req);
}

static void job_over(uv_work_t *work, int status)
{
        struct job *job = container_of(work, struct job, work);

        unref(job->pool);
        free(job);
}

static void pool_submit(struct file_io *io, struct block_request *req)
{
        struct pool *pool = to_pool(io);
        struct job *job = malloc(sizeof(*job));

        file_io_begin(req);
        if (!job) {
                req->result = -ENOMEM;
                finish(pool, req);
                return;
        }
        job->pool = pool;
        job->req = req;
        pool->references++;
        /* Fails only for a NULL callback. */
        (void)uv_queue_work(pool->loop, &job->work, job_run, job_over);
}

static void pool_kick(struct file_io *io)
{
}

static struct block_request *take_finished(struct pool *pool, bool wait)
{
        struct block_request *first;

        pthread_mutex_lock(&pool->lock);
        while (wait && !pool->first)
                pthread_cond_wait(&pool->finished, &pool->lock);
        first = pool->first;
        pool->first = NULL;
        pool->last = &pool->first;
        pthread_mutex_unlock(&pool->lock);
        return first;
}

static void complete(struct pool *pool, struct block_request *req)
{
        struct block *disk = pool->io.disk;
        bool any = req;

        if (pool->io.reaping)
                return;
        pool->io.reaping = true;
        while (req) {
                struct block_request *next = req->next;

                block_complete(disk, req, req->result);
                req = next;
        }
        if (any && disk->listener)
                disk->listener(disk->listener_ctx);
        pool->io.reaping = false;
}

static void pool_reap(struct file_io *io)
{
        struct pool *pool = to_pool(io);

        if (!io->reaping)
                complete(pool, take_finished(pool, false));
}

static void pool_wait(struct file_io *io)
{
        if (!io->reaping)
                complete(to_pool(io), take_finished(to_pool(io), true));
}

static void woken(uv_async_t *async)
{
        struct pool *pool = container_of(async, struct pool, async);

        pool_reap(&pool->io);
}

static void async_closed(uv_handle_t *handle)
{
        unref(container_of((uv_async_t *)handle, struct pool, async));
}

static void pool_free(struct file_io *io)
{
        uv_close((uv_handle_t *)&to_pool(io)->async, async_closed);
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
        pool->loop = loop;
        pool->last = &pool->first;
        r = uv_async_init(loop, &pool->async, woken);
        if (r < 0) {
                free(pool);
                return err_set(err, r, "cannot set up the thread pool: %s", uv_strerror(r));
        }
        pthread_mutex_init(&pool->lock, NULL);
        pthread_cond_init(&pool->finished, NULL);
        pool->references = 1;
        *io = &pool->io;
        return 0;
}
