/*
 * One repository of a registry, over HTTP.
 *
 * The registry is not trusted: documents are bounded, contents are compared with their digests while they come (store.h), redirects
 * and waits are limited, and credentials go to the host that they are for alone. What is cut is gone on with at the byte where it was
 * cut; a failure that may pass is tried again, with growing pauses.
 *
 * Source: distribution-spec; RFC 9110 (ranges), RFC 6750 and the token specification of Docker's registry.
 */
#pragma once

#include "image/registry-config.h"
#include "image/store.h"

struct registry;

struct registry_options {
        const struct registry_config *config;
        bool insecure;     /* as if the host were in the configuration's list */
        bool push;         /* asks for the right to write */
        unsigned tries;    /* 0: 5 */
        unsigned stall_s;  /* without a byte for so long it is cut; 0: 30 */
};

int registry_open(const char *host, const char *path, const struct registry_options *options, struct registry **registry, struct err *err) _must_check_;
void registry_close(struct registry *registry);
void registry_closep(struct registry **registry);

#define _cleanup_registry_ _cleanup_(registry_closep)

/* What came as a document; bytes is the caller's to free. */
struct registry_document {
        char *bytes;
        size_t size_bytes;
        char media_type[128];
        struct digest digest; /* of the bytes */
};

/* A manifest or an index, by tag or digest; one with a digest is compared with it. -ENOENT: there is none. */
int registry_manifest(struct registry *registry, const char *reference, struct registry_document *document, struct err *err) _must_check_;

/* done of total bytes; may be called often. */
struct registry_progress {
        void (*report)(void *ctx, uint64_t done_bytes, uint64_t total_bytes);
        void *ctx;
};

/* Those of the contents that are not in the store, a few at once. progress may be NULL. */
int registry_blobs(struct registry *registry, struct image_store *store, const struct descriptor *blobs, size_t count,
                   const struct registry_progress *progress, struct err *err) _must_check_;

/* 1: the registry has it already. */
int registry_push_blob(struct registry *registry, const struct image_store *store, const struct descriptor *blob, struct err *err) _must_check_;
int registry_push_manifest(struct registry *registry, const char *reference, const char *media_type, const void *bytes, size_t size_bytes,
                           struct err *err) _must_check_;
