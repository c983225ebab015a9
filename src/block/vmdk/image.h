/*
 * VMDK, VMware's disk images: a descriptor (text) and extents, which may be one file. Sections in quotation marks are those of VMware's
 * "Virtual Disk Format 5.0" technical note.
 *
 *      monolithicSparse        one file: header, descriptor, redundant tables, tables, grains
 *      twoGbMaxExtentSparse    a descriptor, and extents such as that of 2 GiB each
 *      monolithicFlat          a descriptor, and a file that is the disk
 *      twoGbMaxExtentFlat      a descriptor, and pieces of 2 GiB
 *      streamOptimized         one file, written once from front to back: compressed grains with markers, tables behind them, a footer
 *
 *   vmdk.c        opening, closing, requests
 *   descriptor.c  the text
 *   stream.c      compressed grains, and writing a stream
 *   create.c      new images
 *   check.c       checking
 *
 * A sparse extent has a grain directory of grain tables of 512 entries, each the sector of a grain; 0: it is nowhere; 1: it reads as zeroes
 * (where the header allows that). Most have all of it twice. Extents are opened only where the descriptor is, and named without a folder.
 *
 * The order on the disk, beside that of mapped.h: grains are put at the end of their extent, so nothing else has to be known to take one. A
 * table that is missing is written, all zeroes, and named behind a flush. Both copies of an entry name a grain behind the flush of what is in
 * it, and the first counts: when a crash leaves them different, the second names a grain that was lost. A crash leaves such grains at the end
 * of the extent. The header says meanwhile that the extent was not closed ("uncleanShutdown"). The first write gives the disk another content
 * ID, so that images that lie on it are found to be of something else ("CID"); it is changed in place, in one sector.
 *
 * A stream is no image until its footer is written, by block_finish(): as every writer of such files has it.
 */
#pragma once

#include "block/mapped.h"
#include "block/vmdk/vmdk.h"

#define VMDK_SECTOR 512u
#define VMDK_MAGIC 0x564d444bu /* "KDMV" */
#define VMDK_TEXT_MAX 65536u
#define VMDK_EXTENTS_MAX 4096u
#define VMDK_TABLE_ENTRIES 512u
#define VMDK_GRAIN_SECTORS 128u
#define VMDK_NO_PARENT 0xffffffffu
#define VMDK_AT_END UINT64_MAX /* gdOffset: the footer has it */

/* "Hosted Sparse Extent Header": flags, and where fields are. */
#define VMDK_FLAG_NEWLINES (1u << 0)
#define VMDK_FLAG_REDUNDANT (1u << 1)
#define VMDK_FLAG_ZEROED (1u << 2)
#define VMDK_FLAG_COMPRESSED (1u << 16)
#define VMDK_FLAG_MARKERS (1u << 17)
#define VMDK_UNCLEAN 72

enum vmdk_marker { VMDK_EOS, VMDK_TABLE, VMDK_DIRECTORY, VMDK_FOOTER };

struct vmdk_header {
        uint32_t version, flags;
        uint64_t capacity, grain;          /* sectors */
        uint64_t text_offset, text_sectors;
        uint32_t table_entries;
        uint64_t redundant_offset, directory_offset, overhead; /* sectors */
        uint16_t compression;
};

enum vmdk_kind { VMDK_SPARSE, VMDK_FLAT, VMDK_ZERO };

/* A line of the descriptor. */
struct vmdk_line {
        enum vmdk_kind kind;
        bool readonly;
        uint64_t sectors, offset; /* offset: of a flat one, in its file */
        char *name;
};

struct vmdk_text {
        uint32_t cid, parent_cid;
        size_t cid_at;            /* of its eight digits in the text; 0: it cannot be changed in place */
        char type[32];
        char *parent;             /* parentFileNameHint, or NULL */
        struct vmdk_line *line;
        unsigned lines;
};

struct vmdk_extent {
        enum vmdk_kind kind;
        struct block *file;
        bool owned;               /* a file beside the descriptor */
        uint64_t first, size_bytes; /* of the guest */
        uint64_t offset;          /* flat: in the file */
        struct vmdk_header header;
        uint64_t grain_bytes;
        uint64_t directory_entries;
        uint64_t end;             /* the next grain goes here */
        uint64_t fresh_from;
};

/* A stream that is written. */
struct vmdk_stream {
        uint32_t *directory;      /* sectors of tables */
        uint32_t table[VMDK_TABLE_ENTRIES];
        uint64_t table_index;     /* which one that is */
        bool table_used;
        uint64_t next;            /* the first grain that may still come */
        uint64_t end;             /* of the file, in sectors */
};

struct vmdk {
        struct mapped m;
        struct vmdk_text text;
        uint64_t text_offset;     /* in m.file */
        uint64_t text_bytes;
        struct vmdk_extent *extent;
        unsigned extents;
        struct vmdk_stream *stream;
};

static inline struct vmdk *to_vmdk(struct mapped *m)
{
        return container_of(m, struct vmdk, m);
}

/* ---- vmdk.c ---- */

/* Entry n of the directory, or of the redundant one: the sector of a table; 0: there is none. */
int vmdk_directory_entry(struct vmdk *v, const struct vmdk_extent *e, bool redundant, uint64_t n, bool wait, uint32_t *sector) _must_check_;
int vmdk_table_entry(struct vmdk *v, const struct vmdk_extent *e, uint32_t table, uint64_t grain, bool wait, uint32_t *entry) _must_check_;
bool vmdk_table_good(const struct vmdk_extent *e, uint32_t sector);
bool vmdk_grain_good(const struct vmdk_extent *e, uint32_t sector);
static inline bool vmdk_is_zeroed(const struct vmdk_extent *e, uint32_t entry)
{
        return entry == 1 && e->header.flags & VMDK_FLAG_ZEROED;
}

/* ---- descriptor.c ---- */

/* bytes end at a zero or at size_bytes. */
int vmdk_parse_text(struct vmdk_text *text, const char *path, const uint8_t *bytes, size_t size_bytes, struct err *err) _must_check_;
void vmdk_text_done(struct vmdk_text *text);

struct vmdk_make {
        const char *type, *parent, *adapter;
        uint32_t cid, parent_cid;
        uint64_t sectors;
        const struct vmdk_line *line;
        unsigned lines;
};

/* The caller's to free; NULL: no memory. */
char *vmdk_make_text(const struct vmdk_make *make);

/* ---- stream.c ---- */

int vmdk_unpack(struct mapped *m, const struct mapped_run *run, uint8_t *to);
int vmdk_pack(struct mapped *m, uint64_t at, const struct iovec *iov, unsigned iov_count, uint64_t size_bytes);
/* Of an image that holds nothing yet. */
int vmdk_stream_open(struct vmdk *v, struct err *err) _must_check_;
int vmdk_stream_finish(struct vmdk *v) _must_check_;

/* ---- create.c, check.c ---- */

void vmdk_put_header(const struct vmdk_header *header, uint8_t bytes[VMDK_SECTOR]);
extern const struct block_option_about vmdk_options[];
int vmdk_create(struct block *file, const struct block_creation *creation, struct err *err);
int vmdk_check(struct block *block, struct block_check *check, struct err *err);
