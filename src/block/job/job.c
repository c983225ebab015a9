/* What jobs have in common: from start to end; see job.h. */
#include "block/job/job.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#define TICK_MS 50

static const struct block_job_ops *const kinds[] = {
        [BLOCK_JOB_STREAM] = &block_job_stream, [BLOCK_JOB_COMMIT] = &block_job_commit, [BLOCK_JOB_MIRROR] = &block_job_mirror,
        [BLOCK_JOB_BACKUP] = &block_job_backup, [BLOCK_JOB_RESIZE] = &block_job_resize,
};

const char *block_job_name(enum block_job_kind kind)
{
        return kinds[kind]->name;
}

int block_job_fail(struct block_job *job, int r, const char *fmt, ...)
{
        char text[256];
        va_list args;

        if (job->why.code)
                return r;
        va_start(args, fmt);
        vsnprintf(text, sizeof(text), fmt, args);
        va_end(args);
        return err_errno(&job->why, r, "%s", text);
}

/* ---- its life ---- */

static void freed(uv_handle_t *handle)
{
        struct block_job *job = handle->data;

        job->ops->end(job);
        *block_disk_job(job->disk) = NULL;
        if (job->result < 0 && !job->why.code)
                err_errno(&job->why, job->result, "%s of disk %s", job->ops->name, job->disk->path);
        if (job->config.done)
                job->config.done(job, job->config.ctx, job->result, job->result < 0 ? &job->why : NULL);
        free(job->base_name);
        free(job);
}

static void tick(uv_timer_t *timer)
{
        struct block_job *job = timer->data;

        fiber_queue_wake_all(&job->wake);
}

static void live(void *arg)
{
        struct block_job *job = arg;
        int r = job->ops->run(job);

        if (r < 0 && job->cancelled && r == -ECANCELED)
                err_set(&job->why, r, "%s of disk %s was cancelled", job->ops->name, job->disk->path);
        job->result = r;
        job->state = BLOCK_JOB_ENDING;
        uv_close((uv_handle_t *)&job->timer, freed);
}

/* From the loop, so that who started the job has it before anything else comes of it. */
static void begun(uv_timer_t *timer)
{
        struct block_job *job = timer->data;

        uv_timer_start(timer, tick, TICK_MS, TICK_MS);
        if (fiber_start(live, job) < 0) {
                job->result = -ENOMEM;
                uv_close((uv_handle_t *)timer, freed);
        }
}

static int check(const struct block_job_config *config, struct err *err)
{
        const char *path = config->disk->path, *name = kinds[config->kind]->name;

        if (*block_disk_job(config->disk))
                return err_set(err, -EBUSY, "disk %s: a %s runs on it already", path, (*block_disk_job(config->disk))->ops->name);
        if (config->disk->info.readonly && (config->kind == BLOCK_JOB_STREAM || config->kind == BLOCK_JOB_COMMIT))
                return err_set(err, -EROFS, "disk %s is read-only: no %s", path, name);
        if (config->target && config->target->info.readonly)
                return err_set(err, -EROFS, "disk %s is read-only", config->target->path);
        return 0;
}

int block_job_start(const struct block_job_config *config, struct block_job **job, struct err *err)
{
        const struct block_job_ops *ops = kinds[config->kind];
        struct block_job *j;
        int r = check(config, err);

        if (r < 0)
                return r;
        j = calloc(1, ops->size_bytes);
        if (!j)
                return err_nomem(err);
        j->ops = ops;
        j->config = *config;
        j->disk = config->disk;
        j->base_name = config->base_name ? strdup(config->base_name) : NULL;
        r = config->base_name && !j->base_name ? err_nomem(err) : ops->begin(j, err);
        if (r < 0) {
                free(j->base_name);
                free(j);
                return r;
        }
        *block_disk_job(config->disk) = j;
        uv_timer_init(config->disk->loop, &j->timer);
        j->timer.data = j;
        uv_timer_start(&j->timer, begun, 0, 0);
        if (job)
                *job = j;
        return 0;
}

/* What was the disk's, or the target: what it holds is written back. */
void block_job_close(struct block_job *job, struct block *block)
{
        struct err err = ERR_INIT;
        int r = block ? block_finish(block, &err) : 0;

        if (r < 0 && job->result == 0) {
                job->result = r;
                job->why = err;
        }
        block_close(block);
}

/* ---- while it runs ---- */

static void copy_over(struct block_copy *copy, int result)
{
        struct block_job *job = copy->ctx;

        job->copy = NULL;
        fiber_wake(job->fiber);
}

int block_job_copy(struct block_job *job, struct block_copy *copy)
{
        if (job->cancelled)
                return -ECANCELED;
        copy->done = copy_over;
        copy->ctx = job;
        copy->bytes_a_second = job->config.bytes_a_second;
        copy->paused = job->paused;
        job->copy = copy;
        job->fiber = fiber_self();
        block_copy_start(copy, job->disk->loop);
        fiber_wait();
        if (!job->again)
                job->done_bytes += copy->done_bytes;
        return copy->result;
}

void block_job_wait(struct block_job *job)
{
        fiber_queue_wait(&job->wake);
}

void block_job_pause(struct block_job *job, bool pause)
{
        job->paused = pause;
        if (job->copy)
                block_copy_pause(job->copy, pause);
        fiber_queue_wake_all(&job->wake);
}

void block_job_set_speed(struct block_job *job, uint64_t bytes_a_second)
{
        job->config.bytes_a_second = bytes_a_second;
        if (job->copy)
                block_copy_set_speed(job->copy, bytes_a_second);
}

void block_job_cancel(struct block_job *job)
{
        job->cancelled = true;
        if (job->copy)
                block_copy_cancel(job->copy);
        fiber_queue_wake_all(&job->wake);
}

void block_job_complete(struct block_job *job, bool pivot)
{
        job->config.pivot = pivot;
        job->complete = true;
        fiber_queue_wake_all(&job->wake);
}

struct block_job_progress block_job_progress(const struct block_job *job)
{
        uint64_t done = job->done_bytes + (job->copy && !job->again ? job->copy->done_bytes : 0);

        return (struct block_job_progress){
                .kind = job->config.kind, .state = job->state, .paused = job->paused, .done_bytes = done, .total_bytes = MAX(job->total_bytes, done),
                .bytes_a_second = job->config.bytes_a_second,
        };
}

void block_job_end(struct block *disk, uv_loop_t *loop)
{
        if (*block_disk_job(disk))
                block_job_cancel(*block_disk_job(disk));
        while (*block_disk_job(disk))
                uv_run(loop, UV_RUN_ONCE);
}
