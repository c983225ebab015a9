/*
 * What encryption at rest needs of libcrypto and libargon2, which are loaded when somebody wants them: a program pays for libraries at each start.
 */
#pragma once

#include "base/err.h"

#define CIPHER_KEY_MAX 64
#define CIPHER_DIGEST_MAX 64

/* AES-XTS, each unit of sector_bytes by itself; its tweak is the number of its first 512 bytes, little-endian ("plain64"). */
struct cipher;

/* key_bytes: 32 or 64, both keys of XTS. */
int cipher_new(const uint8_t *key, size_t key_bytes, uint32_t sector_bytes, struct cipher **cipher, struct err *err) _must_check_;
void cipher_free(struct cipher *cipher);
/* In place; offset and size are of whole sectors. -EIO: libcrypto fails. */
int cipher_run(struct cipher *cipher, bool encrypt, uint64_t offset_bytes, uint8_t *bytes, size_t size_bytes) _must_check_;

enum digest { DIGEST_SHA1, DIGEST_SHA256, DIGEST_SHA512 };

/* "sha256"; -1: unknown. */
int digest_find(const char *name);
size_t digest_bytes(enum digest digest);
int digest_of(enum digest digest, const uint8_t *bytes, size_t size_bytes, uint8_t to[CIPHER_DIGEST_MAX], struct err *err) _must_check_;

struct kdf {
        enum { KDF_PBKDF2, KDF_ARGON2I, KDF_ARGON2ID } kind;
        enum digest digest;           /* PBKDF2 */
        uint32_t iterations;          /* Argon2: passes */
        uint32_t memory_kib, threads; /* Argon2 */
        uint8_t salt[64];
        size_t salt_bytes;
};

/* -EINVAL: its numbers are beyond what is sane. It takes as long as whoever made the header wanted. */
int kdf_run(const struct kdf *kdf, const uint8_t *secret, size_t secret_bytes, uint8_t *to, size_t to_bytes, struct err *err) _must_check_;
