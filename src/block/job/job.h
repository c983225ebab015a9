/*
 * Jobs: what is done to a disk as a whole, while it is in use. One at a time on a disk (disk.h).
 *
 *      stream    what backing files have comes into the image, which needs them no more (or only those behind a base)
 *      commit    what the image holds goes into its backing file; the image is empty then, or the disk goes on in the backing file (pivot)
 *      mirror    all of the disk goes to a target, and what is written meanwhile as well; the disk can go on there (pivot)
 *      backup    the disk as it is when the job begins goes to a target: all of it, or what a bitmap has
 *      resize    the disk becomes larger, or smaller
 *
 *      block_job_start() ─▶ running ⇄ paused ─▶ [ready: what is written is followed] ─complete─▶ over: done() from the loop, then freed
 *                              └── cancel, an error ──────────────────────────────────────────▶ over: the disk is as it was
 *
 * Whatever ends a job but its success leaves the disk reading what it would have without it: a target is worth nothing then, a stream or commit is
 * done in part, which nobody sees, and can be started again; so it is after a crash. What was done before is not done again by a stream (the image
 * has it), nor by a mirror with `resume` (where both read the same nothing is written).
 *
 * All of it on the thread of the disk's loop.
 */
#pragma once

#include "block/block.h"
#include "block/disk.h"
#include "block/job/copy.h"

enum block_job_kind { BLOCK_JOB_STREAM, BLOCK_JOB_COMMIT, BLOCK_JOB_MIRROR, BLOCK_JOB_BACKUP, BLOCK_JOB_RESIZE };

enum block_job_state { BLOCK_JOB_RUNNING, BLOCK_JOB_READY, BLOCK_JOB_ENDING };

struct block_job_config {
        enum block_job_kind kind;
        struct block *disk;      /* block_disk_new() */
        struct block *target;    /* mirror, backup: the job's when it was started */
        bool target_is_empty;    /* it reads as zeroes */
        bool resume;             /* mirror: the target has some of it, from before */
        /*
         * stream: what stays behind the image, with the name and format that the image is to have for it; NULL: nothing does.
         * commit: where to; NULL: the image's backing file.
         */
        struct block *base;
        const char *base_name, *base_format;
        const char *bitmap;      /* backup: only what this one has; it is empty from then on, unless the job fails */
        bool pivot;              /* commit, mirror: the disk goes on in the base, in the target */
        bool follow;             /* mirror: goes on until block_job_complete() */
        uint64_t size_bytes;     /* resize: of the disk from then on */
        bool shrink;             /* resize: it may become smaller */
        uint64_t bytes_a_second; /* 0: no limit */
        /* From the loop; why is NULL when all went well, -ECANCELED is an error, too. The job is freed when it returns. */
        void (*done)(struct block_job *job, void *ctx, int result, const struct err *why);
        void *ctx;
};

struct block_job_progress {
        enum block_job_kind kind;
        enum block_job_state state;
        bool paused;
        uint64_t done_bytes, total_bytes; /* what is written meanwhile does not count */
        uint64_t bytes_a_second;
};

/* What it says about why it cannot be started changes nothing. */
int block_job_start(const struct block_job_config *config, struct block_job **job, struct err *err) _must_check_;
void block_job_pause(struct block_job *job, bool pause);
void block_job_set_speed(struct block_job *job, uint64_t bytes_a_second);
/* done comes later. Too late when the job is ending: then it does. */
void block_job_cancel(struct block_job *job);
/* A mirror that follows: it ends as soon as both are the same, with or without a pivot. */
void block_job_complete(struct block_job *job, bool pivot);
struct block_job_progress block_job_progress(const struct block_job *job);
const char *block_job_name(enum block_job_kind kind);
/* Runs the loop until the disk has no job any more, which is cancelled. */
void block_job_end(struct block *disk, uv_loop_t *loop);

/* ---- text.c ---- */

/*
 * A job by words: "stream [BASE]", "commit [BASE] [pivot]", "mirror TARGET [pivot|follow] [existing] [resume]",
 * "backup TARGET [bitmap=NAME] [backing=FILE] [existing]", "resize SIZE [shrink]", with speed=SIZE (a second), format=FORMAT and secret=SECRET (of the target). The target is made, unless
 * `existing` or `resume` says that it is there, or its name is that of a server's. What was made is taken away when the job cannot start.
 * kind, target and the like of *config are set; the rest is the caller's.
 */
struct block_job_words {
        const char *name;              /* BASE, TARGET */
        const char *format, *bitmap, *backing;
        const char *secret;            /* of the target (block/secret.h) */
        bool pivot, follow, existing, resume, shrink;
        uint64_t speed;
        unsigned flags;                /* BLOCK_OPEN_: of the target */
};

/* The same when the words were taken apart; config->kind is the caller's. */
int block_job_start_words(struct block_job_config *config, const struct block_job_words *words, struct block_job **job, struct err *err) _must_check_;
int block_job_start_text(struct block_job_config *config, const char *text, struct block_job **job, struct err *err) _must_check_;
extern const char block_job_text_help[];

/* ---- what jobs are made of ---- */

struct block_job_ops {
        const char *name;
        size_t size_bytes; /* of the struct, which starts with struct block_job */
        /* What can be refused is; the disk is prepared. Not in a fiber. */
        int (*begin)(struct block_job *job, struct err *err);
        /* In a fiber: all of it. 0, or -errno with job->why set, perhaps. */
        int (*run)(struct block_job *job);
        /* From the loop: takes the preparations back, and closes what is not the disk's now. */
        void (*end)(struct block_job *job);
};

struct block_job {
        const struct block_job_ops *ops;
        struct block_job_config config;
        struct block *disk;
        enum block_job_state state;
        struct block_copy *copy;    /* the one that runs */
        struct fiber *fiber;        /* waits for it */
        struct fiber_queue wake;    /* waits for a tick, or somebody's wish */
        uv_timer_t timer;
        bool paused, cancelled, complete;
        bool again;                 /* what is copied now was counted before */
        char *base_name;            /* its own copy of config.base_name */
        uint64_t done_bytes, total_bytes; /* of copies that are over; of all */
        int result;
        struct err why;
};

extern const struct block_job_ops block_job_stream, block_job_commit, block_job_mirror, block_job_backup, block_job_resize;

/* In the job's fiber. The copy runs as long as the job may; its error, said as "cannot …: what". */
int block_job_copy(struct block_job *job, struct block_copy *copy) _must_check_;
/* Until something was wished for, or some time has passed. */
void block_job_wait(struct block_job *job);
/* From the loop: what the disk, or a job, does not need any more; what it holds is written back, and that that fails is the job's failure. */
void block_job_close(struct block_job *job, struct block *block);
/* Sets why, unless it is set. Returns r. */
int block_job_fail(struct block_job *job, int r, const char *fmt, ...) _printf_(3, 4);
