/*
 * The qcow2 image format, versions 2 and 3 (QEMU, docs/interop/qcow2: "the specification" here). What the files of this folder share.
 *
 *   header.c     the header with its extensions; opening, closing, describing
 *   header-write.c  the header written
 *   bitmap.c     persistent dirty bitmaps
 *   refcount.c   counts of the file's clusters, and taking and giving back clusters
 *   map.c        from places of the guest to places of the file: L1, L2
 *   data.c       requests: reading, writing, zeroes, discarding, flushing
 *   compress.c   compressed clusters
 *   crypt.c      encryption
 *   snapshot.c   internal snapshots
 *   resize.c     another size
 *   amend.c      other options, another backing file
 *   check.c      finds out what counts should be, and mends them
 *   create.c     new images
 *
 * The order of things on the disk. A crash may keep any part of what was written since the last flush. So:
 *
 *   1. A cluster is taken only once its count is 1 on stable storage. Counts are raised ahead, for many clusters at once (the reserve),
 *      so taking one is a matter of memory. A crash leaves the reserve as lost space, which a check gives back.
 *   2. A table's page that names a new cluster may be written at any time when the cluster reads as zeroes until it is written to, and so did
 *      the guest's; else behind a flush of what was written to the cluster (table_page.after).
 *   3. A cluster that nobody names any more is given back, its count lowered, behind the flush that made that so (pending).
 *   4. A new L2 table or refcount block is whole on stable storage before L1 or the refcount table names it.
 *
 * What takes more than that (snapshots) is done with the dirty bit set: whoever opens the image then counts again.
 *
 * All of it runs on the loop's thread; what has to wait runs in fibers.
 */
#pragma once

#include <inttypes.h>

#include "base/fiber.h"
#include "block/block.h"
#include "block/table-cache.h"

#define QCOW2_MAGIC 0x514649fbu
#define QCOW2_CLUSTER_BITS_MIN 9
#define QCOW2_CLUSTER_BITS_MAX 21
/* As QEMU has them. */
#define QCOW2_L1_BYTES_MAX (32u << 20)
#define QCOW2_REFCOUNT_TABLE_BYTES_MAX (8u << 20)

#define QCOW2_INCOMPATIBLE_DIRTY (UINT64_C(1) << 0)
#define QCOW2_INCOMPATIBLE_CORRUPT (UINT64_C(1) << 1)
#define QCOW2_INCOMPATIBLE_DATA_FILE (UINT64_C(1) << 2)
#define QCOW2_INCOMPATIBLE_COMPRESSION (UINT64_C(1) << 3)
#define QCOW2_INCOMPATIBLE_EXTENDED_L2 (UINT64_C(1) << 4)
#define QCOW2_INCOMPATIBLE_KNOWN UINT64_C(0x1f)
#define QCOW2_COMPATIBLE_LAZY_REFCOUNTS (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_BITMAPS (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_RAW_DATA (UINT64_C(1) << 1)
#define QCOW2_AUTOCLEAR_KNOWN UINT64_C(3)

/* In entries of L1 and L2. */
#define QCOW2_COPIED (UINT64_C(1) << 63)
#define QCOW2_COMPRESSED (UINT64_C(1) << 62)
#define QCOW2_ZERO UINT64_C(1)
#define QCOW2_OFFSET UINT64_C(0x00fffffffffffe00)

#define QCOW2_SUBCLUSTERS 32

enum qcow2_compression { QCOW2_ZLIB, QCOW2_ZSTD };

/* What the header says; all but the offsets into the file stays as it was when the image was opened. */
struct qcow2_header {
        uint32_t version;
        uint64_t backing_offset;
        uint32_t backing_bytes;
        uint32_t cluster_bits;
        uint64_t size_bytes;
        uint32_t crypt_method;
        uint32_t l1_entries;
        uint64_t l1_offset;
        uint64_t refcount_offset;
        uint32_t refcount_clusters;
        uint32_t snapshots;
        uint64_t snapshots_offset;
        uint64_t incompatible, compatible, autoclear;
        uint32_t refcount_order;
        uint32_t header_bytes;
        uint8_t compression;
};

/* An extension as it is in the file: those of unknown types are kept. */
struct qcow2_extension {
        struct qcow2_extension *next;
        uint32_t type, size_bytes;
        uint8_t bytes[];
};
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXT_FEATURE_NAMES 0x6803f857u
#define QCOW2_EXT_BITMAPS 0x23852875u
#define QCOW2_EXT_ENCRYPTION 0x0537be77u
#define QCOW2_EXT_DATA_FILE 0x44415441u
#define QCOW2_CRYPT_LUKS 2u /* its header lies in clusters that the extension names */
#define QCOW2_EXT_PADDING 0x56504144u /* ours: skips what is not valid any more; gone again when the header is whole */

#define QCOW2_HEADER_BYTES_V2 72
#define QCOW2_HEADER_BYTES_V3 104
#define QCOW2_HEADER_BYTES 112 /* with the kind of compression */

#define QCOW2_BACKING_BYTES_MAX 1023

/* Clusters of the file that lie side by side. */
struct qcow2_extent {
        struct qcow2_extent *next;
        uint64_t first, count; /* clusters */
        bool fresh;            /* never written: reads as zeroes */
};

/* An entry of the bitmap directory. What the bitmap holds is the core's struct block_bitmap of that name. */
struct qcow2_bitmap {
        struct qcow2_bitmap *next;
        uint64_t table_offset;     /* 0: it is not in the file yet */
        uint32_t table_entries, flags;
        uint8_t type, granularity_bits;
        char *name;
        uint8_t *extra;
        uint32_t extra_bytes;
};

/* Places of the guest where somebody is about to put a cluster: others wait. */
struct qcow2_busy {
        struct qcow2_busy *next;
        uint64_t from, to; /* bytes */
        struct fiber_queue waiting;
};

/* Which image of the chain has a part of one such piece of the disk; node NULL: none, it is zeroes. */
#define QCOW2_HOLDER_BYTES UINT64_C(65536)
#define QCOW2_HOLDERS 4096u

struct qcow2_holder {
        uint64_t from, to;
        struct block *node;
};

struct qcow2_part;

struct qcow2 {
        struct block block;
        struct block *file, *data, *backing; /* of block.child; data is file when there is no other */
        struct block *content;           /* where the guest's bytes go: data, or a layer on it that encrypts them, at the same places */
        struct block *apart;             /* data that no node has adopted so far */
        struct qcow2_header header;
        struct qcow2_extension *extension;
        char *backing_name, *backing_format, *data_name;
        uint64_t cluster_bytes;
        unsigned l2_bits;                /* log2 of entries in an L2 table */
        unsigned l2_entry_bytes;         /* 8, 16 with subclusters */
        unsigned unit_bits;              /* log2 of what can be there or not by itself: a cluster, or a subcluster */
        bool extended;
        uint64_t *l1;                    /* host's byte order */
        struct fiber_lock l1_lock;
        struct table_cache cache;

        /* refcount.c */
        uint64_t *refcount_table;        /* host's byte order */
        uint32_t refcount_entries;
        unsigned refcount_block_bits;    /* log2 of counts in a block */
        uint64_t refcount_max;
        uint64_t file_clusters;          /* nothing behind was ever taken */
        uint64_t opened_bytes;           /* of the file, as it was opened */
        uint64_t search;                 /* no free cluster before it */
        struct qcow2_extent *reserve;    /* counted as 1, and nobody's yet */
        uint64_t reserved;
        unsigned reserve_next;           /* so many the next time */
        struct qcow2_extent *pending;    /* to be given back behind the next flush */
        struct fiber_lock refcount_lock;

        /* data.c */
        struct qcow2_part *parts;        /* free ones */
        struct qcow2_busy *busy;
        struct fiber_lock flush_lock;
        uint64_t flushes_asked, flushes_done;
        struct qcow2_part *direct;       /* writes in flight to clusters as they are */
        struct fiber_queue direct_over;  /* for one of them to end */
        unsigned reads[2], epoch;        /* in flight from clusters, by the parity of the epoch in which they began */
        struct fiber_queue reads_over;   /* for an epoch's to end */
        struct qcow2_holder *holder;     /* QCOW2_HOLDERS, by place; NULL: not used so far */
        bool opened;                     /* all of it is there */
        bool counts_wrong;               /* something failed half-way: the dirty bit stays until somebody counts */
        bool broken;                     /* tables are not what they should be: nothing is written any more */
        bool unmarked;                   /* and the image does not say so yet */

        /* compress.c */
        struct work_queue *work;
        uint8_t *unpacked;               /* of the cluster that unpacked_entry names */
        uint64_t unpacked_entry;
        uint64_t pack_at, pack_end;      /* where the next packed cluster goes, and how far there is room */
        struct fiber_lock pack_lock;
        bool packing;                    /* the dirty bit is set for it */

        /* bitmap.c */
        struct qcow2_bitmap *bitmap;     /* as they are in the file */
        uint64_t directory_offset, directory_bytes;
        bool bitmaps_damaged;
};

static inline struct qcow2 *to_qcow2(struct block *block)
{
        return container_of(block, struct qcow2, block);
}

static inline uint64_t be64(const void *p)
{
        uint64_t v;

        memcpy(&v, p, sizeof(v));
        return __builtin_bswap64(v);
}

static inline void put_be64(void *p, uint64_t v)
{
        v = __builtin_bswap64(v);
        memcpy(p, &v, sizeof(v));
}

static inline void put_be32(void *p, uint32_t v)
{
        v = __builtin_bswap32(v);
        memcpy(p, &v, sizeof(v));
}

static inline void put_be16(void *p, uint16_t v)
{
        v = __builtin_bswap16(v);
        memcpy(p, &v, sizeof(v));
}

static inline uint64_t qcow2_clusters(const struct qcow2 *q, uint64_t size_bytes)
{
        return (size_bytes >> q->header.cluster_bits) + !!(size_bytes & (q->cluster_bytes - 1));
}

/* The image is found wrong: says so once, marks it, and nothing is written to it any more. Returns -EIO. */
int qcow2_corrupt(struct qcow2 *q, const char *fmt, ...) _printf_(2, 3);

/* ---- header.c ---- */

extern const struct block_driver block_qcow2;
/* What follows from the header's sizes. */
void qcow2_geometry(struct qcow2 *q);
void qcow2_take_info(struct qcow2 *q);
/* Somebody is going to write. */
int qcow2_begin_writing(struct qcow2 *q, unsigned flags, struct err *err) _must_check_;
/* Tables in memory take so much at most. */
void qcow2_cache_init(struct qcow2 *q, size_t max_bytes);
int qcow2_probe(const uint8_t *head, size_t size_bytes);
/* Writes the header as q->header has it: its fixed part, which lies in one sector. Blocking; a flush is the caller's. */
int qcow2_write_header(struct qcow2 *q);
/* The whole first cluster of a new image: extensions and names, too. -ENOSPC: they are too long for it. */
int qcow2_write_header_cluster(struct qcow2 *q);
/* The same in an image that is there: a crash leaves the old one or the new one. On stable storage afterwards. */
int qcow2_change_header(struct qcow2 *q) _must_check_;
/* The extension of that type; with size_bytes a new one, or the old one with other bytes. NULL: there is none; no memory. */
struct qcow2_extension *qcow2_extension(struct qcow2 *q, uint32_t type);
struct qcow2_extension *qcow2_set_extension(struct qcow2 *q, uint32_t type, uint32_t size_bytes);
void qcow2_drop_extension(struct qcow2 *q, uint32_t type);
/* Sets or clears an incompatible bit, on stable storage. */
int qcow2_mark(struct qcow2 *q, uint64_t bit, bool on);

/* ---- tables; blocking, as table-cache.h has it ---- */

static inline int _must_check_ qcow2_page_get(struct qcow2 *q, uint64_t offset, struct table_page **page)
{
        return table_page_get(&q->cache, q->file, offset, page);
}

static inline int _must_check_ qcow2_page_new(struct qcow2 *q, uint64_t offset, struct table_page **page)
{
        return table_page_new(&q->cache, q->file, offset, page);
}

static inline void qcow2_page_put(struct table_page *page)
{
        table_page_put(page);
}

static inline struct table_page *qcow2_page_peek(struct qcow2 *q, uint64_t offset)
{
        return table_page_peek(&q->cache, q->file, offset);
}

static inline void qcow2_page_changed(struct qcow2 *q, struct table_page *page, bool after_flush)
{
        table_page_changed(&q->cache, page, after_flush);
}

static inline int _must_check_ qcow2_cache_write(struct qcow2 *q)
{
        return table_cache_write(&q->cache);
}

static inline void qcow2_cache_forget(struct qcow2 *q, uint64_t offset, uint64_t size_bytes)
{
        table_cache_forget(&q->cache, q->file, offset, size_bytes);
}

static inline uint8_t *qcow2_page_at(const struct qcow2 *q, const struct table_page *page, uint64_t offset)
{
        return table_page_at(&q->cache, page, offset);
}

/* ---- refcount.c; blocking ---- */

int qcow2_refcounts_open(struct qcow2 *q, struct err *err) _must_check_;
void qcow2_refcounts_close(struct qcow2 *q);
int qcow2_refcount(struct qcow2 *q, uint64_t cluster, uint64_t *count) _must_check_;
/* Adds to the counts of clusters. -ERANGE: one would pass what the image can count, or go below 0; some have changed then. */
int qcow2_refcount_add(struct qcow2 *q, uint64_t cluster, uint64_t count, int64_t by) _must_check_;
/*
 * Takes up to *count clusters (at least one, all of them when `whole`), side by side, counted as 1 on stable storage. fresh: they read as
 * zeroes.
 */
int qcow2_take(struct qcow2 *q, uint64_t *count, bool whole, uint64_t *cluster, bool *fresh) _must_check_;
/* Not blocking: from the reserve, one; false: it is empty. */
bool qcow2_take_quickly(struct qcow2 *q, uint64_t *cluster, bool *fresh);
/* Taken, and not named anywhere. */
void qcow2_untake(struct qcow2 *q, uint64_t cluster, uint64_t count);
/* Lowers their counts behind the next flush, as they are not named any more. */
int qcow2_release(struct qcow2 *q, uint64_t cluster, uint64_t count) _must_check_;
/* Those that were released before `list` was taken from q->pending. */
int qcow2_release_now(struct qcow2 *q, struct qcow2_extent *list) _must_check_;
/* What is left of the reserve is free again. */
int qcow2_reserve_return(struct qcow2 *q) _must_check_;
/* What the file was made longer by, and nobody uses, is cut off; counts are on stable storage. */
int qcow2_cut_file(struct qcow2 *q) _must_check_;

/* ---- map.c ---- */

enum qcow2_kind { QCOW2_ABSENT, QCOW2_ZEROES, QCOW2_DATA, QCOW2_PACKED };

/* What the guest's bytes from some place on are. */
struct qcow2_run {
        enum qcow2_kind kind;
        bool copied;         /* QCOW2_DATA: nobody shares it: written in place */
        uint64_t size_bytes; /* so far they are the same, and side by side in the file */
        uint64_t host;       /* QCOW2_DATA: of the first byte; QCOW2_ZEROES: of its cluster when it has one, else 0 */
        uint64_t entry;      /* of the first cluster */
};

/* wait false: -EAGAIN when a page is not in memory. -EIO: the tables are wrong. */
int qcow2_map(struct qcow2 *q, uint64_t offset, uint64_t size_bytes, bool wait, struct qcow2_run *run) _must_check_;
/*
 * The page with the L2 entry of the guest's byte, pinned, and where in it the entry is; its table is there and nobody's but the active one.
 * Blocking.
 */
int qcow2_entry_get(struct qcow2 *q, uint64_t offset, struct table_page **page, uint8_t **entry) _must_check_;
int qcow2_write_l1(struct qcow2 *q, uint32_t index) _must_check_;
/* Checks an offset that a table has: aligned, and within the file. */
bool qcow2_offset_good(const struct qcow2 *q, uint64_t offset);

/* ---- data.c ---- */

void qcow2_submit(struct block *block, struct block_request *req);
/* A cluster of the guest's is as in the backing file from now on. Blocking; nobody else writes there. */
int qcow2_drop_cluster(struct qcow2 *q, uint64_t at) _must_check_;
int qcow2_status(struct block *block, uint64_t offset_bytes, uint64_t size_bytes, struct block_extent *extent);
/* All that was written before is on stable storage. Blocking. */
int qcow2_flush(struct qcow2 *q) _must_check_;
/* Something is left for a flush besides the guest's bytes. */
static inline bool qcow2_unsettled(const struct qcow2 *q)
{
        return !table_cache_idle(&q->cache) || q->pending;
}
void qcow2_data_done(struct qcow2 *q);
/*
 * A read of a cluster that a table named just now, until it ends: the cluster is not used for anything else before. Returns what _end wants.
 */
static inline unsigned qcow2_read_begin(struct qcow2 *q)
{
        q->reads[q->epoch & 1]++;
        return q->epoch & 1;
}

static inline void qcow2_read_end(struct qcow2 *q, unsigned epoch)
{
        if (--q->reads[epoch] == 0)
                fiber_queue_wake_all(&q->reads_over);
}

/* ---- compress.c; blocking ---- */

/* The cluster that an entry names, whole, into to. keep: it may be asked for again soon. */
int qcow2_unpack(struct qcow2 *q, uint64_t entry, uint8_t *to, bool keep) _must_check_;
/* Places of compressed clusters may be used anew. */
void qcow2_forget_unpacked(struct qcow2 *q);
/* BLOCK_F_COMPRESS; in a fiber. */
int qcow2_write_packed(struct qcow2 *q, struct block_request *guest) _must_check_;
/* Clusters that were taken for packed ones and hold none. */
void qcow2_pack_return(struct qcow2 *q);
/* Nothing more goes into that cluster. */
void qcow2_pack_leave(struct qcow2 *q, uint64_t cluster);
/* Where its bytes are in the file. */
void qcow2_packed_place(const struct qcow2 *q, uint64_t entry, uint64_t *offset, uint64_t *size_bytes);

/* ---- crypt.c ---- */

/* Unlocks it, unless nobody wants to look at what the guest has; q->content is there afterwards. */
int qcow2_content_open(struct qcow2 *q, const struct block_opening *opening, struct err *err) _must_check_;
static inline bool qcow2_encrypted(const struct qcow2 *q)
{
        return q->content != q->data;
}
/* Where the LUKS header of a new image goes, by the extension. */
int qcow2_crypt_place(struct qcow2 *q, uint64_t offset, uint64_t size_bytes, struct err *err) _must_check_;

/* ---- create.c ---- */

extern const struct block_option_about qcow2_options[];
int qcow2_create(struct block *file, const struct block_creation *creation, struct err *err);

/* Those of its options that an image can change later. */
int qcow2_take_amendment(struct qcow2_header *header, const struct block_option *option, struct err *err) _must_check_;
int qcow2_measure(const struct block_creation *creation, struct block *source, struct block_measure *measure, struct err *err);

/* ---- amend.c; blocking, nothing in flight ---- */

int qcow2_set_backing(struct block *block, const char *name, const char *format, struct err *err);
void qcow2_backing_changed(struct block *block);
int qcow2_make_empty(struct block *block, struct err *err);
int qcow2_amend(struct block *block, const struct block_option *option, unsigned options, struct err *err);
int qcow2_reopen(struct block *block, bool writable, struct err *err);

/* ---- snapshot.c, resize.c; blocking, nothing in flight ---- */

extern const struct block_snapshot_ops qcow2_snapshots;
int qcow2_resize(struct block *block, uint64_t size_bytes, struct err *err);

/* Bytes into new clusters side by side, on stable storage. */
int qcow2_write_aside(struct qcow2 *q, const void *bytes, uint64_t size_bytes, uint64_t *offset) _must_check_;

/* ---- bitmap.c; blocking ---- */

/* Reads the directory, and what the bitmaps hold. Read-only, or to be repaired: what is wrong there is no error. */
int qcow2_bitmaps_open(struct qcow2 *q, unsigned flags, struct err *err) _must_check_;
/* The image is written to from now on: the file says that its bitmaps are in use. */
int qcow2_bitmaps_use(struct qcow2 *q, struct err *err) _must_check_;
/* All of them, as they are. Somebody flushes twice afterwards. */
int qcow2_bitmaps_store(struct qcow2 *q) _must_check_;
void qcow2_bitmaps_done(struct qcow2 *q);
int qcow2_keep_bitmap(struct block *block, const char *name, uint32_t granularity_bytes, struct err *err);
json_t *qcow2_bitmaps_describe(const struct qcow2 *q);
/* What the disk has is not what the bitmaps were told: all of it may have changed. */
int qcow2_bitmaps_all_changed(struct qcow2 *q) _must_check_;

/* ---- check.c; blocking ---- */

int qcow2_check_image(struct block *block, struct block_check *check, struct err *err);
/* All counts anew, of 1 << order bits each. The image must be sound. */
int qcow2_count_anew(struct qcow2 *q, uint32_t order, struct err *err) _must_check_;
/* Makes an image that was not closed right again: counts and COPIED bits; the dirty bit is clear afterwards. */
int qcow2_repair(struct qcow2 *q, struct err *err) _must_check_;
