/*
 * LUKS headers, versions 1 and 2: from their bytes and a passphrase to a cipher, and new ones. "LUKS1 On-Disk Format Specification" 1.2.3 and
 * "LUKS2 On-Disk Format Specification" 1.1.2 are the specifications.
 *
 * Whoever has a header somewhere (a file of its own, an extension of a qcow2 image) says how its bytes are read, gets what it says
 * (luks_parse()), tries a passphrase (luks_unlock()), and then has a cipher that runs over sectors of the disk, and where they begin.
 */
#pragma once

#include "block/luks/cipher.h"

#define LUKS_SLOTS_MAX 32
#define LUKS_NAME_MAX 40

struct luks_slot {
        bool used;
        struct kdf kdf;
        uint32_t stripes;
        enum digest af_digest;
        uint64_t offset_bytes;  /* of its key material, in the header */
        uint32_t area_key_bytes; /* of the key that this is encrypted by */
};

struct luks {
        unsigned version;
        char uuid[41];
        uint32_t key_bytes;
        uint32_t sector_bytes;
        uint64_t payload_bytes;  /* the disk begins there */
        uint64_t tweak_sectors;  /* of its first sector */
        struct kdf digest_kdf;
        uint8_t digest[CIPHER_DIGEST_MAX];
        size_t digest_bytes;
        uint32_t digest_slots;   /* a bit for each slot whose key this is the digest of */
        struct luks_slot slot[LUKS_SLOTS_MAX];
};

/* size_bytes at that place of the header; 0 or -errno. */
typedef int luks_read_fn(void *ctx, uint64_t offset_bytes, uint8_t *to, size_t size_bytes);
typedef int luks_write_fn(void *ctx, uint64_t offset_bytes, const uint8_t *from, size_t size_bytes);

bool luks_is_header(const uint8_t *head, size_t size_bytes);
/* what is said of: the disk's name. Errors: -EINVAL, -EOPNOTSUPP. */
int luks_parse(struct luks *luks, luks_read_fn *read, void *ctx, const char *what, struct err *err) _must_check_;
/* -EACCES: no key slot takes the passphrase. */
int luks_unlock(const struct luks *luks, luks_read_fn *read, void *ctx, const uint8_t *secret, size_t secret_bytes, const char *what,
                struct cipher **cipher, struct err *err) _must_check_;

struct luks_new {
        unsigned version;     /* 1 or 2 */
        bool pbkdf2;          /* of version 2: not Argon2id; version 1 has no other */
        enum digest digest;
        uint32_t key_bytes;   /* 32 or 64 */
        uint32_t sector_bytes; /* 512; of version 2 also 4096 */
        uint32_t iter_ms;     /* how long a passphrase may take to be tried, about */
        uint32_t memory_kib;  /* Argon2id */
};

/* Where the disk begins behind a header that is made so. */
uint64_t luks_payload_bytes(const struct luks_new *how);
/* A header with one key slot. */
int luks_make(const struct luks_new *how, luks_write_fn *write, void *ctx, const uint8_t *secret, size_t secret_bytes, struct err *err) _must_check_;

/* ---- of the two files of this ---- */

/* "Anti-forensic splitter": the key from its stripes, and stripes of a key. */
int luks_af_merge(enum digest digest, const uint8_t *stripes, uint32_t count, size_t key_bytes, uint8_t *key, struct err *err) _must_check_;
int luks_af_split(enum digest digest, const uint8_t *key, size_t key_bytes, uint32_t count, uint8_t *stripes, struct err *err) _must_check_;
