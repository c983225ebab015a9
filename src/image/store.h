/*
 * The store of images: a directory that is an OCI image layout, so that other tools can read it, with what is needed beside it.
 *
 *      oci-layout, index.json     names (annotation org.opencontainers.image.ref.name) and what they stand for
 *      blobs/sha256/HEX           contents by digest; whole and durable, or not there
 *      ingest/KIND-HEX            what is being fetched; after a cut it is gone on with
 *      layers/KIND-HEX/           layers unpacked, by the digest of the plain tar (layers.h)
 *      leases/NAME                digests of layers that a container stands on, a line each
 *      lock, index.lock
 *
 * Whoever has the store open holds `lock` shared; collecting garbage needs it alone, and does nothing while it is not. What is added is
 * reachable before the lock is let go: by a name, or by a lease. index.json is replaced whole, under index.lock.
 *
 * A blob appears under its name by rename, after its digest was compared and fsync(): a name never stands for half of it.
 *
 * Source: image-spec image-layout.md.
 */
#pragma once

#include "image/media.h"
#include "image/name.h"

struct image_store;

/* path NULL: /var/lib/virta/images, for others than root $XDG_DATA_HOME/virta/images. It is made when it is not there. */
int image_store_open(const char *path, struct image_store **store, struct err *err) _must_check_;
void image_store_close(struct image_store *store);
void image_store_closep(struct image_store **store);

#define _cleanup_store_ _cleanup_(image_store_closep)

/* A descriptor for use with the …at() calls; the store's. */
int image_store_fd(const struct image_store *store);
const char *image_store_path(const struct image_store *store);

/* ---- names ---- */

/*
 * What an image's name stands for. A short name is found when one image's name ends with it, after a slash; -EEXIST: several do.
 * full, of NAME_TEXT_MAX or NULL: the name it has. -ENOENT: none.
 */
int store_find(const struct image_store *store, const struct image_name *name, struct descriptor *descriptor, char *full, struct err *err) _must_check_;
/* Gives the name, taking it from what had it. */
int store_name(struct image_store *store, const char *name, const struct descriptor *descriptor, struct err *err) _must_check_;
int store_unname(struct image_store *store, const char *name, struct err *err) _must_check_;
/* In the order of the names, until fn() is not 0, which is returned. */
int store_each(const struct image_store *store, int (*fn)(const char *name, const struct descriptor *descriptor, void *ctx, struct err *err), void *ctx,
               struct err *err) _must_check_;

/* ---- contents ---- */

bool store_has(const struct image_store *store, const struct descriptor *descriptor);
/* Opened for reading; -ENOENT, or -EBADMSG when its size is not the descriptor's. */
int store_blob(const struct image_store *store, const struct descriptor *descriptor, struct err *err) _must_check_;
/* A document, compared with its digest; the caller's. */
int store_document(const struct image_store *store, const struct descriptor *descriptor, json_t **json, struct err *err) _must_check_;
/* A document or other small content from memory; descriptor->media_type is given, digest and size are set. */
int store_put(struct image_store *store, const void *bytes, size_t size_bytes, struct descriptor *descriptor, struct err *err) _must_check_;
/* json is written compactly. */
int store_put_json(struct image_store *store, const json_t *json, struct descriptor *descriptor, struct err *err) _must_check_;

/* What comes in pieces. Starts as INGEST_INIT. */
struct ingest {
        struct image_store *store;
        int fd;
        struct hasher hasher;
        struct descriptor want; /* digest empty: whatever it is */
        uint64_t have_bytes;    /* also from an earlier time: to be gone on with from here */
        char name[DIGEST_TEXT_MAX + 32];
};

#define INGEST_INIT ((struct ingest){ .fd = -1 })
#define _cleanup_ingest_ _cleanup_(ingest_done)

/* want NULL: not known. Waits for another process that fetches the same; 1: it is in the store (now), there is nothing to do. */
int ingest_begin(struct image_store *store, const struct descriptor *want, struct ingest *ingest, struct err *err) _must_check_;
/* -EFBIG: more than the descriptor says. */
int ingest_add(struct ingest *ingest, const void *bytes, size_t size_bytes, struct err *err) _must_check_;
/* What was there before is not the beginning of what comes. */
int ingest_restart(struct ingest *ingest, struct err *err) _must_check_;
/* Compares digest and size, and gives it its name; digest, of a content that was not known, may be NULL. -EBADMSG: it is another one; it is gone. */
int ingest_end(struct ingest *ingest, struct digest *digest, struct err *err) _must_check_;
/* What is not ended stays for the next time when its digest is known. */
void ingest_done(struct ingest *ingest);

/* ---- leases and garbage ---- */

int store_lease(struct image_store *store, const char *name, const struct digest *layers, size_t count, struct err *err) _must_check_;
void store_release(struct image_store *store, const char *name);

struct store_garbage {
        unsigned blobs, layers;
        uint64_t size_bytes; /* of the blobs */
};

/* Takes away what no name and no lease reaches. -EBUSY: somebody else has the store open. */
int store_collect(struct image_store *store, struct store_garbage *garbage, struct err *err) _must_check_;

/* Empties and takes away a directory and all that is in it. 0 when it is not there. */
int store_remove_tree(int dir_fd, const char *name);
