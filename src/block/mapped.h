/*
 * Image formats that map blocks of the guest to places of files, and never give a place back: VDI, VHD, VHDX, VMDK. What their drivers
 * have in common: requests, and the order in which things come to the disk.
 *
 *   reading            no fiber as long as the tables are in memory and nothing is packed; else one goes on where that stopped.
 *   writing in place   the same.
 *   else               a fiber, one at a time (m->lock): the format takes a place, the guest's bytes are written to it with what is around
 *                      them (what the backing file has, or zeroes), then the format names the place in its tables.
 *   zeroes, discard    are handed on to the file, where that has a place; no table changes.
 *   flushing           tables whose pages name places go to the disk behind a flush of what was written there, then all is flushed.
 *
 * So a crash, which may keep any part of what was written since the last flush, leaves places that nobody names (leaks) and nothing else:
 * what a table names holds all that was ever written to it before it was named.
 */
#pragma once

#include "base/fiber.h"
#include "block/block.h"
#include "block/table-cache.h"

enum mapped_kind { MAPPED_ABSENT, MAPPED_ZEROES, MAPPED_DATA, MAPPED_PACKED };

/* What the guest's bytes from some place on are. */
struct mapped_run {
        enum mapped_kind kind;
        uint64_t size_bytes; /* so far they are the same, and side by side in the file */
        struct block *in;    /* MAPPED_DATA, MAPPED_PACKED: the file */
        uint64_t host;       /* in it, of the first byte; of the packed block */
};

/* A place for blocks of the guest that have none. */
struct mapped_place {
        uint64_t first, end; /* of the guest: whole blocks, side by side; the last may be cut by the end of the disk */
        struct block *in;
        uint64_t host;       /* of first */
        bool fresh;          /* reads as zeroes */
};

struct mapped;

/* All but map(wait false) block. Those that change anything are called under m->lock. */
struct mapped_ops {
        size_t struct_bytes; /* of what starts with struct mapped */
        uint32_t page_bytes; /* what tables are aligned to */
        /* The rest of opening, on a struct that is all zeroes but for struct mapped; when it fails close() is called, too. */
        int (*open)(struct mapped *m, const struct block_opening *opening, struct err *err);
        /* Frees what the struct owns; nothing is in flight. NULL: nothing. */
        void (*close)(struct mapped *m);
        /* wait false: -EAGAIN when tables are not in memory. */
        int (*map)(struct mapped *m, uint64_t at, uint64_t size_bytes, bool wait, struct mapped_run *run);
        /* For the block of `at`, which has none, and those behind it as far as they are wanted and can lie beside it. */
        int (*take)(struct mapped *m, uint64_t at, uint64_t size_bytes, struct mapped_place *place);
        /* All of it was written: tables say so from now on. */
        int (*name)(struct mapped *m, const struct mapped_place *place);
        /* A block's whole bytes, into memory of m->packed_bytes. NULL: there is no MAPPED_PACKED. */
        int (*unpack)(struct mapped *m, const struct mapped_run *run, uint8_t *to);
        /* The next blocks of a stream, whole; NULL, or -EOPNOTSUPP: not of this image. */
        int (*pack)(struct mapped *m, uint64_t at, const struct iovec *iov, unsigned iov_count, uint64_t size_bytes);
        /* Blocks that are absent, whole ones, read as zeroes from now on. NULL: the format cannot say that. */
        int (*zero)(struct mapped *m, uint64_t at, uint64_t size_bytes);
        /* Before anything is written for the first time. NULL: nothing to do. */
        int (*begin)(struct mapped *m);
        /* Flushes all the files. NULL: the one that the image lies on. */
        int (*flush)(struct mapped *m);
};

struct mapped_part;

struct mapped {
        struct block block;
        const struct mapped_ops *ops;
        struct block *file, *backing;  /* of block.child */
        struct table_cache cache;
        uint32_t packed_bytes;         /* of a packed block */
        bool streamed;                 /* only packed writes are possible */
        bool sparse;                   /* the file may have holes: ask it, too */
        bool begun;
        bool broken;                   /* tables are not what they should be: nothing is written any more */
        struct fiber_lock lock, flush_lock;
        uint64_t flushes_asked, flushes_done;
        uint8_t *unpacked;             /* the block at unpacked_host of unpacked_in */
        struct block *unpacked_in;
        uint64_t unpacked_host;
        struct fiber_lock unpack_lock;
        struct mapped_part *parts;     /* free ones */
};

static inline struct mapped *to_mapped(struct block *block)
{
        return container_of(block, struct mapped, block);
}

/* What a driver's open does; mapped_close() is its close. */
int mapped_open(const struct block_driver *driver, const struct mapped_ops *ops, const struct block_opening *opening, struct block **block,
                struct err *err) _must_check_;
void mapped_close(struct block *block);
/* block->info, when what the file says is known; block_bytes is what places are taken by. */
void mapped_info(struct mapped *m, uint64_t size_bytes, uint32_t logical_bytes, uint64_t block_bytes);

/* The table is wrong: says so once, and nothing is written to the image any more. Returns -EIO. */
int mapped_corrupt(struct mapped *m, const char *fmt, ...) _printf_(2, 3);

/* Of drivers' tables. */
void mapped_submit(struct block *block, struct block_request *req);
int mapped_status(struct block *block, uint64_t offset_bytes, uint64_t size_bytes, struct block_extent *extent);
/* All that was written before is on stable storage. Blocking. */
int mapped_flush(struct mapped *m) _must_check_;

/* ---- pieces of tables; blocking unless wait is false, -EAGAIN then ---- */

/* size_bytes of a table at that place of the file, within a page of the cache. */
int mapped_entry(struct mapped *m, struct block *file, uint64_t offset, size_t size_bytes, bool wait, void *entry) _must_check_;
/* after: it names a place that was written to. */
int mapped_set_entry(struct mapped *m, struct block *file, uint64_t offset, size_t size_bytes, bool after, const void *entry) _must_check_;

/* ---- making images ---- */

/* take() of each option of a new image, which `format` has without a backing file here. */
int mapped_take_options(const struct block_creation *creation, const char *format,
                        int (*take)(const struct block_option *option, void *choice, struct err *err), void *choice, struct err *err) _must_check_;
/* One of two words. */
int mapped_option_switch(const struct block_option *option, const char *no, const char *yes, bool *is_yes, struct err *err) _must_check_;
/* A power of two in that range. */
int mapped_option_block(const struct block_option *option, uint32_t least_bytes, uint32_t most_bytes, uint32_t *block_bytes, struct err *err) _must_check_;
int mapped_bad_option(const struct block_option *option, const char *wanted, struct err *err);
/* Bytes; a number by itself is in bytes. 0: it is none. */
uint64_t mapped_option_bytes(const char *text);

/* ---- another size ---- */

/* The disk ended at old_bytes, and is larger now: what its last block has behind that becomes zeroes. */
int mapped_zero_tail(struct mapped *m, uint64_t old_bytes, uint64_t block_bytes) _must_check_;

/* ---- checking: places that tables name, to find those that are named twice ---- */

struct mapped_places {
        uint32_t *at; /* in a unit of the caller's */
        size_t count, room;
};

int mapped_places_add(struct mapped_places *places, uint64_t at) _must_check_;
/* How many lie over the one in front of them, each being `length` units long. Sorts them. */
size_t mapped_places_clash(struct mapped_places *places, uint64_t length);
void mapped_places_done(struct mapped_places *places);
/*
 * Places of one size, side by side: owner[n] is the guest's block at place n, or MAPPED_NOBODY. The last ones move into the holes, until the
 * first *count are all that is used. move() must make sure that its copy is on stable storage before its name is, and that before it returns.
 */
#define MAPPED_NOBODY UINT32_MAX
int mapped_compact(uint32_t *owner, uint32_t *count, int (*move)(void *ctx, uint32_t from, uint32_t to, uint32_t block), void *ctx) _must_check_;
/* Tells of something that is wrong. */
void mapped_say(const struct block_check *check, const char *fmt, ...) _printf_(2, 3);

/* ---- little things of several formats ---- */

static inline uint32_t get_le32(const void *p)
{
        uint32_t v;

        memcpy(&v, p, sizeof(v));
        return v;
}

static inline uint64_t get_le64(const void *p)
{
        uint64_t v;

        memcpy(&v, p, sizeof(v));
        return v;
}

static inline void put_le16(void *p, uint16_t v)
{
        memcpy(p, &v, sizeof(v));
}

static inline void put_le32(void *p, uint32_t v)
{
        memcpy(p, &v, sizeof(v));
}

static inline void put_le64(void *p, uint64_t v)
{
        memcpy(p, &v, sizeof(v));
}

/* A version 4 UUID; Windows' formats have its first three fields in little-endian order. */
int mapped_new_uuid(uint8_t uuid[16]) _must_check_;
void mapped_uuid_text(const uint8_t uuid[16], bool little, char text[37]);
