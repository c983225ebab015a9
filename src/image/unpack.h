/*
 * A layer's tar, put into a directory.
 *
 * The tar is hostile. No entry leaves the directory: names with ".." are refused, a leading slash does not count, and every name is
 * resolved with the directory as root by the kernel (openat2, RESOLVE_IN_ROOT), so that links on the way lead somewhere inside of it. What
 * an entry replaces is taken away first, never followed or written through. Sizes and numbers are bounded.
 *
 * Devices are left out: a container's are made by its runtime. Whiteouts become those of overlayfs: a character device 0/0 for a name
 * that is gone, an attribute for a directory that hides what is below.
 *
 * Source: image-spec layer.md; the kernel's Documentation/filesystems/overlayfs.rst "whiteouts and opaque directories".
 */
#pragma once

#include "image/layer-stream.h"

struct unpack_limits {
        uint64_t entries;    /* 0: UNPACK_ENTRIES_MAX */
        uint64_t size_bytes; /* of all files as they look, holes counted; 0: UNPACK_SIZE_MAX */
};

#define UNPACK_ENTRIES_MAX UINT64_C(4000000)
#define UNPACK_SIZE_MAX (UINT64_C(1) << 40)

struct unpack {
        int root_fd; /* an empty directory */
        bool owners; /* are set; else everything is the caller's own: what a user without root can do */
        const char *opaque_attribute; /* trusted.overlay.opaque, or user.overlay.opaque where that may not be set */
        struct unpack_limits limits;
};

/*
 * Reads the stream to its end; position, where it is not NULL, follows how far the stored layer was read. The directory is left half-filled by
 * an error: it is the caller's to take away.
 */
int unpack_layer(const struct unpack *unpack, struct layer_stream *stream, _Atomic uint64_t *position_bytes, struct err *err) _must_check_;

/*
 * The same in a process of its own, which can do nothing but this (unpack-process.c), and in which the plain tar's digest is compared with
 * diff_id. Several may be at work.
 */
struct unpack_process;

int unpack_start(const struct unpack *unpack, int layer_fd, enum layer_compression compression, const struct digest *diff_id,
                 struct unpack_process **process, struct err *err) _must_check_;
/* To be polled: readable at its end. */
int unpack_fd(const struct unpack_process *process);
uint64_t unpack_position(const struct unpack_process *process);
/* Waits for its end, and frees it. */
int unpack_finish(struct unpack_process *process, struct err *err) _must_check_;
/* Ends it. NULL: nothing. */
void unpack_abort(struct unpack_process *process);
