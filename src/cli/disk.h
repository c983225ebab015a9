/*
 * What the commands of `virta disk` share: an image opened for the time of a command, on a loop of its own.
 */
#pragma once

#include "block/block.h"
#include "block/job/copy.h"
#include "cli/cli.h"

struct disk_session {
        uv_loop_t loop;
        bool started;
        const char *secret; /* of images that are encrypted; see block/secret.h */
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

/* As users name it: a file is "raw". */
const char *disk_format_of(const struct block *block);

/* -o KEY=VALUE, any number of them; the first member of a command's args. */
#define DISK_OPTIONS_MAX 16

struct disk_options {
        char *owned[DISK_OPTIONS_MAX];
        struct block_option option[DISK_OPTIONS_MAX];
        unsigned count;
};

/* opt.call, and the command's finish. */
int disk_option_add(void *into, const char *value, struct err *err);
void disk_options_finish(void *into);

#define DISK_SECRET_OPTION(type)                                                                                                       \
        { "secret", "SECRET", "where the passphrase of an encrypted image is: file:PATH, - (standard input), keyring:NAME", OPT_TEXT,  \
          offsetof(type, secret) }

/* ---- disk-copy.c ---- */

/* block_copy_run() with progress on a terminal, unless quiet. */
int disk_copy_run(struct disk_session *session, struct block_copy *copy, bool quiet, struct err *err) _must_check_;
