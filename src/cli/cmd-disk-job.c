/*
 * `virta disk stream, mirror, backup`: the jobs of block/job on an image that nobody else uses.
 *
 * SIGINT and SIGTERM cancel the job, so that the image is closed as it should be: a bitmap in it stays good.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>

#include "block/job/job.h"
#include "cli/disk.h"

#define PROGRESS_MS 200
#define SIGNALS 3

struct job_args {
        const char *path, *format, *secret;
        struct block_job_words words;
        bool any_backing, quiet;
};

#define JOB(field) offsetof(struct job_args, field)
#define FORMAT_OPTION { "format", "FORMAT", "of the image; without it, what its suffix says", OPT_TEXT, JOB(format) }
#define SPEED_OPTION { "speed", "SIZE", "so much a second at most", OPT_SIZE, JOB(words.speed) }
#define QUIET_OPTION { "quiet", NULL, "no progress", OPT_FLAG, JOB(quiet) }
#define TO_OPTION { "to", "FORMAT", "of the target; without it, what its suffix says", OPT_TEXT, JOB(words.format) }
#define TO_SECRET_OPTION { "to-secret", "SECRET", "where the passphrase of the target is: file:PATH, - or keyring:NAME", OPT_TEXT, JOB(words.secret) }
#define EXISTING_OPTION { "existing", NULL, "write to an image that is there, instead of making one", OPT_FLAG, JOB(words.existing) }

static const struct opt stream_options[] = {
        FORMAT_OPTION,
        { "base", "FILE", "the image of the chain that stays behind; without it, none does", OPT_TEXT, JOB(words.name), .complete = OPT_COMPLETE_FILE },
        SPEED_OPTION,
        QUIET_OPTION,
        DISK_ALLOW_OPTION(struct job_args),
        DISK_SECRET_OPTION(struct job_args),
        { 0 },
};

static const struct opt stream_operands[] = {
        { NULL, "FILE", "the image", OPT_TEXT, JOB(path), .required = true, .complete = OPT_COMPLETE_FILE },
        { 0 },
};

const struct opt_command disk_stream_table = {
        .name = "disk stream",
        .summary = "copy what backing files have into an image, which then needs them no more",
        .description = "The disk reads the same at any time. When it is ended before it is done, or killed, what was copied stays copied, and the next stream "
                       "goes on from there.",
        .options = stream_options,
        .operands = stream_operands,
};

static const struct opt mirror_options[] = {
        FORMAT_OPTION,
        TO_OPTION,
        TO_SECRET_OPTION,
        EXISTING_OPTION,
        { "resume", NULL, "to an image that is there, and has some of it: only what differs is written", OPT_FLAG, JOB(words.resume) },
        SPEED_OPTION,
        QUIET_OPTION,
        DISK_ALLOW_OPTION(struct job_args),
        DISK_SECRET_OPTION(struct job_args),
        { 0 },
};

static const struct opt pair_operands[] = {
        { NULL, "FILE", "the image", OPT_TEXT, JOB(path), .required = true, .complete = OPT_COMPLETE_FILE },
        { NULL, "TARGET", "the other one, or a server's disk (nbd://…)", OPT_TEXT, JOB(words.name), .required = true, .complete = OPT_COMPLETE_FILE },
        { 0 },
};

const struct opt_command disk_mirror_table = {
        .name = "disk mirror",
        .summary = "make another image, or a server's disk, read the same as an image",
        .description = "Copies all of a disk, its backing files included. What was made stays when it is ended, or killed: --resume goes on with it.",
        .options = mirror_options,
        .operands = pair_operands,
};

static const struct opt backup_options[] = {
        FORMAT_OPTION,
        TO_OPTION,
        TO_SECRET_OPTION,
        { "bitmap", "NAME", "copy only what this bitmap of the image has, and empty it", OPT_TEXT, JOB(words.bitmap) },
        { "backing", "FILE", "with --bitmap, for a new target: the backup before this one, which it lies on", OPT_TEXT, JOB(words.backing),
          .complete = OPT_COMPLETE_FILE },
        EXISTING_OPTION,
        SPEED_OPTION,
        QUIET_OPTION,
        DISK_ALLOW_OPTION(struct job_args),
        DISK_SECRET_OPTION(struct job_args),
        { 0 },
};

static const struct opt_note backup_notes[] = {
        { "virta disk bitmap add root.qcow2 daily", "before the first one: writes are noted from now on" },
        { "virta disk backup root.qcow2 full.qcow2 --bitmap daily", "all of it, when the bitmap is new: it does not know of anything before" },
        { "virta disk backup root.qcow2 monday.qcow2 --bitmap daily --backing full.qcow2", "what was written since" },
        { 0 },
};

static const struct opt_section backup_sections[] = { { "Examples", NULL, backup_notes }, { 0 } };

const struct opt_command disk_backup_table = {
        .name = "disk backup",
        .summary = "copy a disk, or what a bitmap says was written to it",
        .description = "Copies all of a disk to a new image, or what was written to it since the last backup, which the image's bitmap knows (see virta disk "
                       "bitmap). The bitmap is empty afterwards; when the backup fails, or is ended, it has what it had, and the target is worth nothing.",
        .options = backup_options,
        .operands = pair_operands,
        .sections = backup_sections,
};

/* ---- a job from start to end ---- */

struct running {
        struct block_job *job; /* NULL: it is over */
        int result;
        struct err why;
        uint64_t start_ms;
        bool any;
};

static void over(struct block_job *job, void *ctx, int result, const struct err *why)
{
        struct running *running = ctx;

        running->job = NULL;
        running->result = result;
        if (why)
                running->why = *why;
}

static void signalled(uv_signal_t *handle, int number)
{
        struct running *running = handle->data;

        if (running->job)
                block_job_cancel(running->job);
}

static void show(uv_timer_t *timer)
{
        struct running *running = timer->data;
        struct block_job_progress p;

        if (!running->job)
                return;
        p = block_job_progress(running->job);
        fprintf(stderr, "\r%5.1f %%  %.1f s ", p.total_bytes ? 100.0 * (double)p.done_bytes / (double)p.total_bytes : 100.0,
                (double)(uv_hrtime() / 1000000 - running->start_ms) / 1000);
        running->any = true;
}

static int run_job(struct disk_session *session, struct block_job_config *config, const struct job_args *args, struct err *err)
{
        static const int numbers[SIGNALS] = { SIGTERM, SIGINT, SIGHUP };
        struct running running = { .start_ms = uv_hrtime() / 1000000 };
        uv_signal_t signals[SIGNALS];
        uv_timer_t timer;
        int r;

        config->done = over;
        config->ctx = &running; /* cppcheck-suppress autoVariables; the job is over when this function is */
        r = block_job_start_words(config, &args->words, &running.job, err);
        if (r < 0)
                return r;
        for (unsigned n = 0; n < SIGNALS; n++) {
                uv_signal_init(&session->loop, &signals[n]);
                signals[n].data = &running;
                uv_signal_start(&signals[n], signalled, numbers[n]);
        }
        uv_timer_init(&session->loop, &timer);
        timer.data = &running;
        if (!args->quiet && isatty(STDERR_FILENO))
                uv_timer_start(&timer, show, 1000, PROGRESS_MS);
        while (running.job)
                uv_run(&session->loop, UV_RUN_ONCE);
        for (unsigned n = 0; n < SIGNALS; n++)
                uv_close((uv_handle_t *)&signals[n], NULL);
        uv_close((uv_handle_t *)&timer, NULL);
        uv_run(&session->loop, UV_RUN_NOWAIT);
        if (running.any)
                fprintf(stderr, "\r\x1b[K");
        if (running.result < 0)
                err_set(err, running.result, "%s", running.why.text);
        return running.result;
}

static int work(struct disk_session *session, struct job_args *args, enum block_job_kind kind, unsigned flags, struct err *err)
{
        struct block_job_config config = { .kind = kind };
        struct err ignored = ERR_INIT;
        struct block *image;
        int r;

        args->words.flags = args->any_backing ? BLOCK_OPEN_ANY_BACKING : 0;
        session->secret = args->secret;
        r = disk_open(session, args->path, args->format, flags | args->words.flags, &image, err);
        if (r < 0)
                return r;
        r = block_disk_new(image, &config.disk, err);
        if (r < 0) {
                disk_close(session, image);
                return r;
        }
        r = run_job(session, &config, args, err);
        if (r == 0)
                r = block_finish(config.disk, err);
        else
                (void)!block_finish(config.disk, &ignored); /* its bitmaps are as they were, and not in use any more */
        disk_close(session, config.disk);
        fiber_thread_done();
        return r;
}

static int stream_work(struct disk_session *session, void *into, struct err *err)
{
        return work(session, into, BLOCK_JOB_STREAM, 0, err);
}

static int mirror_work(struct disk_session *session, void *into, struct err *err)
{
        return work(session, into, BLOCK_JOB_MIRROR, BLOCK_OPEN_READONLY, err);
}

/* The bitmap changes; without one nothing does. */
static int backup_work(struct disk_session *session, void *into, struct err *err)
{
        struct job_args *args = into;

        return work(session, args, BLOCK_JOB_BACKUP, args->words.bitmap ? 0 : BLOCK_OPEN_READONLY, err);
}

static int stream_run(void *into)
{
        return disk_command(stream_work, into);
}

static int mirror_run(void *into)
{
        return disk_command(mirror_work, into);
}

static int backup_run(void *into)
{
        return disk_command(backup_work, into);
}

const struct cli_command cli_disk_stream = { .table = &disk_stream_table, .args_size = sizeof(struct job_args), .run = stream_run };
const struct cli_command cli_disk_mirror = { .table = &disk_mirror_table, .args_size = sizeof(struct job_args), .run = mirror_run };
const struct cli_command cli_disk_backup = { .table = &disk_backup_table, .args_size = sizeof(struct job_args), .run = backup_run };
