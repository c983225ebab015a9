/*
 * Layers unpacked: one directory each in the store, by the digest of the plain tar, shared by all images that have it. A root is what
 * overlayfs makes of them.
 *
 * A layer appears under its name by rename when all of it is there; nobody writes to it after.
 *
 * Source: the kernel's Documentation/filesystems/overlayfs.rst.
 */
#pragma once

#include "image/store.h"

/* What the work tells of itself; may be called often. done of total bytes of the stored layers. */
struct layers_progress {
        void (*report)(void *ctx, uint64_t done_bytes, uint64_t total_bytes);
        void *ctx;
};

/* Unpacks those of the layers that are not there, several at once. progress may be NULL. */
int layers_unpack(struct image_store *store, const struct manifest *manifest, const struct digest *diff_ids, const struct layers_progress *progress,
                  struct err *err) _must_check_;

/* The directory of one; the descriptor is the caller's. */
int layer_open(const struct image_store *store, const struct digest *diff_id, struct err *err) _must_check_;
/* "STORE/layers/sha256-HEX"; text is returned. */
const char *layer_path(const struct image_store *store, const struct digest *diff_id, char *text, size_t size_bytes);
/* What marks a directory as opaque in this store's layers. */
const char *layers_opaque_attribute(void);
