/*
 * VHD, the disk images of Virtual PC and of early Hyper-V: fixed, dynamic, and differencing ones, which are only read. Sections in quotation
 * marks are those of Microsoft's "Virtual Hard Disk Image Format Specification" (version 1.0, 2006).
 *
 *      fixed      the disk ……………………………………………………… footer
 *      dynamic    footer · header · table (BAT) ·· bitmap, block · bitmap, block …… footer
 *
 *   vhd.c     footer and header; opening, closing, requests
 *   parent.c  the image that a differencing one needs
 *   check.c   checking
 *   change.c  new images, and other sizes
 *
 * An entry of the table is the sector where the bitmap of a block lies, its data behind it. In differencing images a bit says whether a sector
 * is there; in dynamic ones all that is in a block counts, as QEMU has it, too.
 *
 * The order on the disk, beside that of mapped.h: the footer's copy at the beginning is what an image is opened by. Before blocks take the
 * place of the footer at the end, the file is made longer for a number of them (the reserve), and a footer is flushed to its new end. A
 * block's bitmap, all ones, is written with its data, before it is named. A crash leaves a reserve that nobody names behind the last
 * block: the next one to open the image takes it. block_finish() writes the footer behind the last block and cuts the file there. Blocks that
 * lie in front of named ones, and are not named, stay lost until a check moves the last ones there.
 *
 * How large the disk is: Virtual PC goes by cylinders, heads and sectors, Hyper-V by the size in the footer; who made the image says which
 * holds ("Creator Application"), as QEMU sees it.
 */
#pragma once

#include "block/mapped.h"
#include "block/vhd/vhd.h"

#define VHD_SECTOR 512u
#define VHD_FOOTER_BYTES 512u
#define VHD_HEADER_BYTES 1024u
#define VHD_FIXED 2u
#define VHD_DYNAMIC 3u
#define VHD_DIFFERENCING 4u
#define VHD_ABSENT 0xffffffffu
#define VHD_BLOCK_BYTES 0x200000u
#define VHD_SECTORS_MAX UINT64_C(0xff000000) /* 2040 GiB */

/* Where fields are: "Hard Disk Footer Format". */
#define VHD_DATA_OFFSET 16
#define VHD_CREATOR 28
#define VHD_ORIGINAL_SIZE 40
#define VHD_SIZE 48
#define VHD_CYLINDERS 56
#define VHD_TYPE 60
#define VHD_CHECKSUM 64
#define VHD_UUID 68
/* "Dynamic Disk Header Format". */
#define VHD_TABLE_OFFSET 16
#define VHD_ENTRIES 28
#define VHD_BLOCK_SIZE 32
#define VHD_HEADER_CHECKSUM 36
#define VHD_PARENT_UUID 40
#define VHD_PARENT_NAME 64
#define VHD_LOCATORS 576

struct vhd {
        struct mapped m;
        uint8_t footer[VHD_FOOTER_BYTES], header[VHD_HEADER_BYTES]; /* as they are in the file */
        uint32_t type, entries, block_bytes, bitmap_bytes;
        uint64_t header_offset, table_offset;
        uint64_t first;      /* blocks lie behind it */
        uint64_t end;        /* of the last block */
        uint64_t reserved;   /* blocks may lie up to here, and the footer is there */
        uint64_t fresh_from; /* nothing was written from here on */
        uint32_t reserve_next;
};

static inline struct vhd *to_vhd(struct mapped *m)
{
        return container_of(m, struct vhd, m);
}

static inline uint16_t get_be16(const uint8_t *p)
{
        return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint32_t get_be32(const void *p)
{
        return __builtin_bswap32(get_le32(p));
}

static inline uint64_t get_be64(const void *p)
{
        return __builtin_bswap64(get_le64(p));
}

static inline void put_be32(void *p, uint32_t v)
{
        put_le32(p, __builtin_bswap32(v));
}

static inline void put_be64(void *p, uint64_t v)
{
        put_le64(p, __builtin_bswap64(v));
}

/* A block with its bitmap. */
static inline uint64_t vhd_stride(const struct vhd *v)
{
        return (uint64_t)v->bitmap_bytes + v->block_bytes;
}

static inline uint64_t vhd_entry_place(const struct vhd *v, uint64_t block)
{
        return v->table_offset + block * 4;
}

/* ---- vhd.c ---- */

/* Of a footer or a header, whose own field is at that place. */
uint32_t vhd_checksum(const uint8_t *bytes, size_t size_bytes, size_t at);
/* Whether a block may be where an entry says. */
bool vhd_entry_good(const struct vhd *v, uint32_t entry);
/* each() of every entry that names a block, which says 1 when it is to be taken away; the table is read in pieces, as it is in the file. */
int vhd_walk(struct vhd *v, int (*each)(struct vhd *v, void *ctx, uint32_t block, uint32_t entry), void *ctx) _must_check_;
/* The file ends with a footer behind the last block. */
int vhd_cut(struct vhd *v) _must_check_;

/* ---- parent.c ---- */

int vhd_open_parent(struct vhd *v, const struct block_opening *opening, struct err *err) _must_check_;

/* ---- check.c, change.c ---- */

/* The last of the blocks in front of `end` go into the holes among them. -EXDEV: they are not laid out so that this can be done. */
int vhd_compact(struct vhd *v, uint64_t end) _must_check_;
int vhd_check(struct block *block, struct block_check *check, struct err *err);
extern const struct block_option_about vhd_options[];
int vhd_create(struct block *file, const struct block_creation *creation, struct err *err);
int vhd_resize(struct block *block, uint64_t size_bytes, struct err *err);
