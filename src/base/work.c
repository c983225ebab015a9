/*
 * Work on libuv's pool; work.h says what it promises.
 *
 * A job's memory is libuv's until its after-work callback, which may come after the end was told (waiting does not run the loop), and
 * even after the queue was freed: a job goes when both have let go of it, and the queue with the last of jobs and async handle.
 */
#include "base/work.h"

#include <errno.h>
#include <pthread.h>

#include "base/fiber.h"

struct work_queue {
        uv_loop_t *loop;
        uv_async_t async;
        pthread_mutex_t lock;
        pthread_cond_t finished;
        struct job *first, **last; /* the finished list; under lock */
        unsigned references;       /* jobs that libuv has, and the async handle */
        unsigned under_way;
        bool reaping;
        void (*batch)(void *ctx);
        void *ctx;
};

struct job {
        uv_work_t work;
        struct work_queue *queue;
        struct job *next;
        void (*run)(void *arg);
        void (*done)(void *arg);
        void *arg;
        unsigned owners; /* libuv, and who tells of its end; this thread's */
};

static void unref(struct work_queue *queue)
{
        if (--queue->references)
                return;
        pthread_cond_destroy(&queue->finished);
        pthread_mutex_destroy(&queue->lock);
        free(queue);
}

static void let_go(struct job *job)
{
        if (--job->owners == 0)
                free(job);
}

/* On a thread of the pool. */
static void job_run(uv_work_t *work)
{
        struct job *job = container_of(work, struct job, work);
        struct work_queue *queue = job->queue;

        job->run(job->arg);
        pthread_mutex_lock(&queue->lock);
        job->next = NULL;
        *queue->last = job;
        queue->last = &job->next;
        pthread_cond_signal(&queue->finished);
        pthread_mutex_unlock(&queue->lock);
        uv_async_send(&queue->async);
}

static void job_over(uv_work_t *work, int status)
{
        struct job *job = container_of(work, struct job, work);

        unref(job->queue);
        let_go(job);
}

int work_submit(struct work_queue *queue, void (*run)(void *arg), void (*done)(void *arg), void *arg)
{
        struct job *job = malloc(sizeof(*job));

        if (!job)
                return -ENOMEM;
        *job = (struct job){ .queue = queue, .run = run, .done = done, .arg = arg, .owners = 2 };
        queue->references++;
        queue->under_way++;
        /* Fails only for a NULL callback. */
        (void)uv_queue_work(queue->loop, &job->work, job_run, job_over);
        return 0;
}

static struct job *take_finished(struct work_queue *queue, bool wait)
{
        struct job *first;

        pthread_mutex_lock(&queue->lock);
        while (wait && !queue->first)
                pthread_cond_wait(&queue->finished, &queue->lock);
        first = queue->first;
        queue->first = NULL;
        queue->last = &queue->first;
        pthread_mutex_unlock(&queue->lock);
        return first;
}

static bool tell(struct work_queue *queue, bool wait)
{
        struct job *job;
        bool any;

        if (queue->reaping)
                return false;
        job = take_finished(queue, wait);
        any = job;
        queue->reaping = true;
        while (job) {
                struct job *next = job->next;

                queue->under_way--;
                job->done(job->arg);
                let_go(job);
                job = next;
        }
        if (any && queue->batch)
                queue->batch(queue->ctx);
        queue->reaping = false;
        return any;
}

bool work_reap(struct work_queue *queue)
{
        return tell(queue, false);
}

void work_wait(struct work_queue *queue)
{
        (void)tell(queue, true);
}

unsigned work_under_way(const struct work_queue *queue)
{
        return queue->under_way;
}

static void wake(void *arg)
{
        fiber_wake(*(struct fiber **)arg);
}

struct call {
        struct fiber *fiber;
        void (*run)(void *arg);
        void *arg;
};

static void run_call(void *arg)
{
        const struct call *call = arg;

        call->run(call->arg);
}

void work_do(struct work_queue *queue, void (*run)(void *arg), void *arg)
{
        struct call call = { fiber_self(), run, arg };

        if (call.fiber && work_submit(queue, run_call, wake, &call) == 0)
                fiber_wait();
        else
                run(arg);
}

static void woken(uv_async_t *async)
{
        (void)work_reap(container_of(async, struct work_queue, async));
}

static void async_closed(uv_handle_t *handle)
{
        unref(container_of((uv_async_t *)handle, struct work_queue, async));
}

void work_queue_free(struct work_queue *queue)
{
        if (queue)
                uv_close((uv_handle_t *)&queue->async, async_closed);
}

int work_queue_new(uv_loop_t *loop, void (*batch)(void *ctx), void *ctx, struct work_queue **out, struct err *err)
{
        struct work_queue *queue = calloc(1, sizeof(*queue));
        int r;

        if (!queue)
                return err_nomem(err);
        queue->loop = loop;
        queue->last = &queue->first;
        queue->batch = batch;
        queue->ctx = ctx;
        r = uv_async_init(loop, &queue->async, woken);
        if (r < 0) {
                free(queue);
                return err_set(err, r, "cannot set up work on other threads: %s", uv_strerror(r));
        }
        pthread_mutex_init(&queue->lock, NULL);
        pthread_cond_init(&queue->finished, NULL);
        queue->references = 1;
        *out = queue;
        return 0;
}
