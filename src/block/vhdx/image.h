/*
 * VHDX, Hyper-V's disk images: dynamic, fixed, and differencing ones, which are only read. Sections are those of Microsoft's [MS-VHDX],
 * "Virtual Hard Disk v2 (VHDX) File Format".
 *
 *      0          64K, 128K   192K, 256K       1M …
 *      identifier headers     region tables    log, metadata, block allocation table (BAT), blocks: each begins at a whole MiB
 *
 *   vhdx.c    opening, closing, requests
 *   header.c  headers, regions, metadata
 *   log.c     the log: replayed when an image is opened, written for every change of a table
 *   parent.c  the image that a differencing one needs
 *   change.c  new images, a larger size
 *   check.c   checking
 *
 * An entry of the BAT is the state of a block and its place in MiB (§2.5); behind each chunk of entries is one of a bitmap block, which says
 * in differencing images which sectors are there.
 *
 * The order on the disk, beside that of mapped.h: pages of the BAT and of the metadata change only through the log (§2.3). Pages go into one
 * log entry, which is flushed, then to their places; the next entry is written behind a flush of these. Every entry is a sequence by
 * itself (its tail is where it begins): a crash leaves at most one to be replayed, whole or not at all, as its checksum tells. Before the first write
 * the headers get numbers that say so (§2.2.2), the older one of the two being written, and flushed; block_finish() leaves an empty log.
 * A crash leaves blocks at the end of the file that nobody names, and a check cuts them off.
 */
#pragma once

#include "block/mapped.h"
#include "block/vhdx/vhdx.h"

#define VHDX_MIB (UINT64_C(1) << 20)
#define VHDX_HEADER_BYTES 4096u
#define VHDX_TABLE_BYTES 65536u
#define VHDX_HEADER_AT(n) (UINT64_C(65536) << (n))
#define VHDX_REGIONS_AT(n) (UINT64_C(196608) + UINT64_C(65536) * (n))
#define VHDX_LOG_SECTOR 4096u
#define VHDX_SIZE_MAX (UINT64_C(64) << 40)

enum vhdx_state { VHDX_NOT_PRESENT = 0, VHDX_UNDEFINED = 1, VHDX_ZERO = 2, VHDX_UNMAPPED = 3, VHDX_PRESENT = 6, VHDX_PARTIAL = 7 };

struct vhdx {
        struct mapped m;
        uint32_t crc[256];
        uint8_t header[VHDX_HEADER_BYTES]; /* the current one, as it is in the file */
        unsigned current;                  /* which of the two */
        uint64_t sequence;                 /* of it */
        uint8_t data_guid[16], log_guid[16];
        uint64_t log_offset, bat_offset, metadata_offset;
        uint32_t log_bytes, bat_bytes, metadata_bytes;
        uint64_t size_bytes, size_at;      /* size_at: where the file says it */
        uint32_t block_bytes, sector_bytes, physical_bytes;
        uint64_t blocks, ratio;            /* ratio: of blocks to a bitmap block */
        bool differencing, fixed;
        uint64_t locator_at;               /* the parent's names; 0: there are none */
        uint32_t locator_bytes;
        uint64_t end, fresh_from;          /* of the file's blocks; nothing was written behind */
        uint64_t flushed_end;              /* the file is so long on stable storage, at least */
        /* log.c */
        uint32_t log_head;
        uint64_t log_sequence;
        bool in_place;                     /* pages were written to their places since the log was */
};

static inline struct vhdx *to_vhdx(struct mapped *m)
{
        return container_of(m, struct vhdx, m);
}

static inline uint64_t vhdx_entry_place(const struct vhdx *v, uint64_t block)
{
        return v->bat_offset + (block + block / v->ratio) * 8;
}

/* The bitmap block of a block's chunk. */
static inline uint64_t vhdx_bitmap_entry_place(const struct vhdx *v, uint64_t block)
{
        return v->bat_offset + (block / v->ratio * (v->ratio + 1) + v->ratio) * 8;
}

static inline enum vhdx_state vhdx_state_of(uint64_t entry)
{
        return (enum vhdx_state)(entry & 7);
}

static inline uint64_t vhdx_offset_of(uint64_t entry)
{
        return entry & ~(VHDX_MIB - 1);
}

/* ---- vhdx.c ---- */

/* All is flushed, and the log is empty. */
int vhdx_finish_log(struct vhdx *v) _must_check_;
int vhdx_begin(struct mapped *m);

/* ---- header.c ---- */

extern const uint8_t vhdx_guid_bat[16], vhdx_guid_metadata[16];
extern const uint8_t vhdx_guid_parameters[16], vhdx_guid_size[16], vhdx_guid_id[16], vhdx_guid_sector[16], vhdx_guid_physical[16];

void vhdx_crc_init(uint32_t table[256]);
/* CRC-32C as checksums of headers, tables and log entries have it: the four bytes at `at` count as zeroes. */
uint32_t vhdx_checksum(const uint32_t table[256], const uint8_t *bytes, size_t size_bytes, size_t at);
int vhdx_read_headers(struct vhdx *v, struct err *err) _must_check_;
/* When the log was replayed. */
int vhdx_read_metadata(struct vhdx *v, struct err *err) _must_check_;
/* The older header becomes the current one, with what v has, on stable storage. fresh: it is about to be written to for the first time. */
int vhdx_write_header(struct vhdx *v, bool fresh) _must_check_;
/* Tables as they are with what the log has. */
int vhdx_read(struct vhdx *v, uint64_t offset, uint8_t *to, size_t size_bytes) _must_check_;

/* ---- log.c ---- */

/* Into the file, or for a read-only image into memory. */
int vhdx_replay(struct vhdx *v, struct err *err) _must_check_;
int vhdx_journal(struct table_cache *cache, struct table_page *const page[], const uint8_t *bytes, unsigned count);

/* ---- parent.c ---- */

int vhdx_open_parent(struct vhdx *v, const struct block_opening *opening, struct err *err) _must_check_;

/* ---- change.c, check.c ---- */

extern const struct block_option_about vhdx_options[];
int vhdx_create(struct block *file, const struct block_creation *creation, struct err *err);
int vhdx_resize(struct block *block, uint64_t size_bytes, struct err *err);
int vhdx_check(struct block *block, struct block_check *check, struct err *err);
