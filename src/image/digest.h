/*
 * Digests: the names of contents, "sha256:" and 64 hexadecimal digits (or sha512 and 128).
 *
 * Source: image-spec descriptor.md "Digests".
 */
#pragma once

#include <openssl/evp.h>

#include "base/err.h"

#define DIGEST_TEXT_MAX (7 + 128 + 1)

struct digest {
        char text[DIGEST_TEXT_MAX]; /* empty: none */
};

/* -EINVAL: not one of a kind that is known, or with other letters than 0-9 and a-f. */
int digest_parse(const char *text, struct digest *digest, struct err *err) _must_check_;

static inline bool digest_equal(const struct digest *a, const struct digest *b)
{
        return !strcmp(a->text, b->text);
}

/* Of bytes that come one after the other. Starts empty: struct hasher hasher = { 0 }. */
struct hasher {
        EVP_MD_CTX *ctx;
        const char *kind;
};

/* like: of its kind; NULL: sha256. */
int hasher_begin(struct hasher *hasher, const struct digest *like, struct err *err) _must_check_;
void hasher_add(struct hasher *hasher, const void *bytes, size_t size_bytes);
void hasher_end(struct hasher *hasher, struct digest *digest);
void hasher_done(struct hasher *hasher);

#define _cleanup_hasher_ _cleanup_(hasher_done)

/* Of what is in memory. */
int digest_compute(const void *bytes, size_t size_bytes, struct digest *digest, struct err *err) _must_check_;
