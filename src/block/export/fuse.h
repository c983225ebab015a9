/*
 * A disk as a file of this machine: a FUSE file system whose root is that one file.
 *
 *      fuse_export_new() mounts it over a file ─▶ … loop … ─▶ fuse_export_stop(), or somebody unmounts it ─▶ ended() ─▶ free
 *
 * Who mounted it may use it. Writes reach the disk before they return; fsync makes them durable. Its size does not change.
 */
#pragma once

#include "block/block.h"

struct fuse_export;

struct fuse_export_config {
        struct block *disk;
        const char *path;    /* a file, which is made when there is none, and taken away again then */
        bool readonly;
        void (*ended)(void *ctx); /* called from the loop: it is not mounted any more, and nothing is in flight */
        void *ctx;
};

int fuse_export_new(uv_loop_t *loop, const struct fuse_export_config *config, struct fuse_export **export, struct err *err) _must_check_;
void fuse_export_stop(struct fuse_export *export);
/* After ended(). NULL is fine. The loop may have to run once more. */
void fuse_export_free(struct fuse_export *export);
