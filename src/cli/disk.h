/*
 * What the commands of `virta disk` share: an image opened for the time of a command, on a loop of its own.
 */
#pragma once

#include "block/block.h"
#include "cli/cli.h"

struct disk_session {
        uv_loop_t loop;
        bool started;
};

/* Runs a command's work with a session; its error is told, and CLI_FAILED returned. */
int disk_command(int (*work)(struct disk_session *session, void *args, struct err *err), void *args);
/* Closes images and waits until their handles are gone. */
void disk_close(struct disk_session *session, struct block *block);
/* format NULL: by suffix or contents. */
int disk_open(struct disk_session *session, const char *path, const char *format, unsigned flags, struct block **block, struct err *err);

/* "backing=any" and the like: what images may pull in. */
#define DISK_ALLOW_OPTION(type)                                                                                                        \
        { "allow-backing", NULL, "follow names of backing files to any place, not only to the folder of the image", OPT_FLAG,          \
          offsetof(type, any_backing) }

/* ---- disk-copy.c ---- */

struct disk_copy {
        struct block *from, *to; /* to NULL: compare with `other` */
        struct block *other;
        bool to_is_empty;        /* it reads as zeroes */
        bool compress;           /* whole clusters of `to`, compressed */
        bool quiet;
        /* Of a comparison: the first byte that differs; BLOCK_NOWHERE: none. */
        uint64_t differs;
};

/* All of `from`. Shows progress on a terminal. */
int disk_copy_run(struct disk_session *session, struct disk_copy *copy, struct err *err) _must_check_;
