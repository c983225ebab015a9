/*
 * Jobs on a machine's disks, as the monitor begins and changes them.
 *
 * In the sandbox there are no files: images are made and opened in one folder alone, which was named when the machine began, and which the loop's
 * thread enters for that. Backing files that are to be written to were opened for it before (--disk …,commit).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "base/log.h"
#include "base/text.h"
#include "block/job/job.h"
#include "device/virtio-blk.h"
#include "vmm/machine-internal.h"

int machine_jobs_init(struct machine *machine, struct err *err)
{
        const char *path = machine->config.job_folder;

        if (!path)
                return 0;
        machine->job_folder = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
        return machine->job_folder < 0 ? err_errno(err, -errno, "cannot open the folder for jobs, %s", path) : 0;
}

void machine_jobs_done(struct machine *machine)
{
        closep(&machine->job_folder);
        machine->job_folder = -1;
}

/* The guest sees the new size. */
static void tell_size(struct machine *machine, const struct block *disk)
{
        struct err err = ERR_INIT;

        for (unsigned n = 0; n < machine->disks; n++)
                if (machine->handle[n] == disk && virtio_blk_resized(machine->blk[n], &err) < 0)
                        log_error("%s", err.text);
}

static void over(struct block_job *job, void *ctx, int result, const struct err *why)
{
        if (result == 0 && job->config.kind == BLOCK_JOB_RESIZE)
                tell_size(ctx, job->disk);
        if (result < 0)
                log_error("%s", why->text);
        else
                log_info("%s of disk %s: done", block_job_name(job->config.kind), job->disk->path);
}

static bool needs_file(const char *text)
{
        return !strncmp(text, "mirror", 6) || !strncmp(text, "backup", 6);
}

static int begin(struct machine *machine, struct block *disk, const char *text, struct err *err)
{
        struct block_job_config config = { .disk = disk, .done = over, .ctx = machine };
        _cleanup_close_ int before = -1;
        int r;

        if (machine->job_folder < 0 && needs_file(text) && !machine->config.no_sandbox)
                return err_set(err, -EACCES, "the machine sees no files: virta boot --job-folder DIR names where jobs may make and open some");
        if (machine->job_folder >= 0) {
                before = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
                if (before < 0 || fchdir(machine->job_folder) < 0)
                        return err_errno(err, -errno, "cannot enter the folder for jobs, %s", machine->config.job_folder);
        }
        r = block_job_start_text(&config, text, NULL, err);
        if (machine->job_folder >= 0 && fchdir(before) < 0 && r == 0)
                log_warning("cannot leave the folder for jobs");
        return r;
}

static int set_speed(struct block_job *job, const char *text, struct err *err)
{
        uint64_t speed = 0;
        int r = strcmp(text, "0") ? size_parse(text, &speed, err) : 0;

        if (r == 0)
                block_job_set_speed(job, speed);
        return r;
}

/* false: it is none of these. */
static bool change(struct block_job *job, const char *text, int *result, struct err *err)
{
        *result = 0;
        if (!strcmp(text, "pause") || !strcmp(text, "resume"))
                block_job_pause(job, *text == 'p');
        else if (!strcmp(text, "cancel"))
                block_job_cancel(job);
        else if (!strcmp(text, "complete") || !strcmp(text, "pivot"))
                block_job_complete(job, *text == 'p');
        else if (!strncmp(text, "speed ", 6))
                *result = set_speed(job, text + 6, err);
        else
                return false;
        return true;
}

static bool is_change(const char *text)
{
        static const char *const words[] = { "pause", "resume", "cancel", "complete", "pivot", "speed" };

        for (size_t n = 0; n < ARRAY_SIZE(words); n++)
                if (!strncmp(text, words[n], strlen(words[n])))
                        return true;
        return false;
}

int machine_job(struct machine *machine, const char *text, struct err *err)
{
        char *rest;
        unsigned long index = strtoul(text, &rest, 10);
        struct block_job *job;
        int r;

        if (rest == text || *rest != ' ')
                return err_set(err, -EINVAL, "'job N WORDS': on which disk, and what");
        if (index >= machine->disks)
                return err_set(err, -ENOENT, "there is no disk %lu", index);
        rest += strspn(rest, " ");
        job = *block_disk_job(machine->handle[index]);
        if (job && change(job, rest, &r, err))
                return r;
        if (!job && is_change(rest))
                return err_set(err, -ENOENT, "no job runs on disk %lu", index);
        return begin(machine, machine->handle[index], rest, err);
}

static const char *state_of(const struct block_job_progress *progress)
{
        if (progress->paused)
                return "paused";
        return progress->state == BLOCK_JOB_READY ? "ready: complete, pivot or cancel" : progress->state == BLOCK_JOB_ENDING ? "ending" : "runs";
}

void machine_jobs(struct machine *machine, char *text, size_t size_bytes)
{
        size_t at = 0;

        *text = '\0';
        for (unsigned n = 0; n < machine->disks; n++) {
                struct block_job *job = *block_disk_job(machine->handle[n]);
                struct block_job_progress progress;
                int written;

                if (!job)
                        continue;
                progress = block_job_progress(job);
                written = snprintf(text + at, size_bytes - at, "disk %u  %-7s %5.1f %%  %s\n", n, block_job_name(progress.kind),
                                   progress.total_bytes ? 100.0 * (double)progress.done_bytes / (double)progress.total_bytes : 0.0, state_of(&progress));
                at = MIN(at + (size_t)MAX(written, 0), size_bytes - 1);
        }
}

void machine_end_jobs(struct machine *machine)
{
        for (unsigned n = 0; n < machine->disks; n++)
                block_job_end(machine->handle[n], machine->host.loop);
}
