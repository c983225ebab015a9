/*
 * Dirty bitmaps: which parts of a disk were written to since somebody began to watch. Incremental backups, mirrors and NBD's
 * dirty-bitmap contexts read them; any node can have some.
 *
 *      block_bitmap_add(disk, "daily", 65536, &bitmap, &err);       watches from now on
 *        … writes, write zeroes and discards set bits as they end, also those that fail …
 *      for (at = 0; block_bitmap_next(bitmap, at, &from, &size_bytes); at = from + size_bytes)
 *
 * A bit stands for granularity_bytes; a write that touches any of them sets it. Of persistent ones an image format keeps what they have
 * beyond the end of the program: they are there again when the image is opened, unless that was not closed (then they are inconsistent, and
 * good for nothing but removal). Memory is taken in pieces as bits are set; where there is none a piece counts as set throughout, so that
 * what was written is never missed.
 *
 * Of the thread of the node's loop.
 */
#pragma once

#include "block/block.h"

#define BLOCK_BITMAP_GRANULARITY_MIN 512u
#define BLOCK_BITMAP_GRANULARITY_MAX (UINT32_C(1) << 31)
#define BLOCK_BITMAP_NAME_MAX 1023

struct block_bitmap {
        struct block_bitmap *next; /* of the same node */
        struct block *block;
        char *name;                /* NULL: a job's own, that nobody finds */
        unsigned shift;            /* log2 of the granularity */
        uint64_t size_bytes;       /* of the disk */
        uint64_t dirty;            /* bits that are set */
        bool enabled;              /* writes set bits */
        bool persistent;           /* the image keeps it */
        bool inconsistent;         /* writes were missed */
        bool changed;              /* since the image last had it */
        unsigned users;            /* jobs and exports that have it: it is not removed or changed by hand */
        uint64_t **piece;          /* NULL: no bit is set there */
        size_t pieces;
};

/* name NULL: an anonymous one. -EEXIST, -EINVAL (granularity, name), -EFBIG. It is enabled, and empty. */
int block_bitmap_add(struct block *block, const char *name, uint32_t granularity_bytes, struct block_bitmap **bitmap, struct err *err) _must_check_;
void block_bitmap_remove(struct block_bitmap *bitmap);
/* NULL: there is none. */
struct block_bitmap *block_bitmap_find(const struct block *block, const char *name);
/* The same, for who wants to use it: -ENOENT, -EINVAL (inconsistent), -EBUSY (somebody uses it; may_share: that is fine). */
int block_bitmap_get(const struct block *block, const char *name, bool may_share, struct block_bitmap **bitmap, struct err *err) _must_check_;
/* So large by default: the cluster of the image, between 4 KiB and 64 KiB. */
uint32_t block_bitmap_granularity(const struct block *block);
/* Whether the node's format can keep this one; then bitmap->persistent may be set. */
int block_bitmap_can_persist(struct block *block, const char *name, uint32_t granularity_bytes, struct err *err) _must_check_;

/* All bits that the range touches. */
void block_bitmap_set(struct block_bitmap *bitmap, uint64_t offset_bytes, uint64_t size_bytes);
/* Those that lie in the range as a whole, the disk's end taken for the end of the last. */
void block_bitmap_clear(struct block_bitmap *bitmap, uint64_t offset_bytes, uint64_t size_bytes);
bool block_bitmap_test(const struct block_bitmap *bitmap, uint64_t offset_bytes);
/* The next range that is set, at or behind at_bytes, cut at the disk's end. false: none is. */
bool block_bitmap_next(const struct block_bitmap *bitmap, uint64_t at_bytes, uint64_t *offset_bytes, uint64_t *size_bytes);
/* What is set in from is set in into, of whatever granularities. -EINVAL: the disks have different sizes. */
int block_bitmap_merge(struct block_bitmap *into, const struct block_bitmap *from, struct err *err) _must_check_;

static inline uint64_t block_bitmap_bits(const struct block_bitmap *bitmap)
{
        return (bitmap->size_bytes >> bitmap->shift) + !!(bitmap->size_bytes & ((UINT64_C(1) << bitmap->shift) - 1));
}

/* ---- for formats: bits as bytes, the first bit the lowest of the first byte ---- */

/* first and count are multiples of 8, but that count may end with the last bit. */
void block_bitmap_to_bytes(const struct block_bitmap *bitmap, uint64_t first, uint64_t count, uint8_t *to);
void block_bitmap_from_bytes(struct block_bitmap *bitmap, uint64_t first, uint64_t count, const uint8_t *from);
/* How many of these bits are set. */
uint64_t block_bitmap_count(const struct block_bitmap *bitmap, uint64_t first, uint64_t count);

/* ---- for the core ---- */

void block_bitmaps_wrote(struct block *block, const struct block_request *req);
/* The disk has another size. -ENOMEM leaves them as they were. */
int block_bitmaps_resize(struct block *block, uint64_t size_bytes, struct err *err) _must_check_;
void block_bitmaps_free(struct block *block);
