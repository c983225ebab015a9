/*
 * New VHD images, and other sizes. A table has room for some more entries than it needs, so that a disk can grow: entries are cleared and
 * flushed, then the header says so, then the footers.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "block/vhd/image.h"

#define TABLE_ROOM 65536u
#define EPOCH INT64_C(946684800) /* 2000-01-01, in seconds since 1970 */

const struct block_option_about vhd_options[] = {
        { "subformat", "dynamic|fixed", "grows as it is written to, or has all its space from the beginning; default: dynamic" },
        { "force_size", "on|off", "exactly of this size; off: rounded up to cylinders, as Virtual PC counts; default: on" },
        { "block_size", "SIZE", "of a dynamic image, what space is taken by: 4K to 256M, a power of two; default: 2M" },
        { NULL, NULL, NULL },
};

struct choice {
        bool fixed, by_geometry;
        uint32_t block_bytes;
};

static int take_option(const struct block_option *o, void *into, struct err *err)
{
        struct choice *choice = into;

        if (strcmp(o->key, "subformat") == 0)
                return mapped_option_switch(o, "dynamic", "fixed", &choice->fixed, err);
        if (strcmp(o->key, "force_size") == 0)
                return mapped_option_switch(o, "on", "off", &choice->by_geometry, err);
        if (strcmp(o->key, "block_size") == 0)
                return mapped_option_block(o, 4096, 256u << 20, &choice->block_bytes, err);
        return err_set(err, -EINVAL, "option %s: VHD has none of this name", o->key);
}

struct geometry {
        uint32_t cylinders, heads, track;
};

/* "Appendix: CHS Calculation". */
static struct geometry geometry_of(uint64_t sectors)
{
        struct geometry g = { .heads = 16, .track = 255 };
        uint64_t tracks;

        sectors = MIN(sectors, UINT64_C(65535) * 16 * 255);
        if (sectors >= UINT64_C(65535) * 16 * 63) {
                tracks = sectors / 255;
        } else {
                g.track = 17;
                tracks = sectors / 17;
                g.heads = (uint32_t)MAX((tracks + 1023) / 1024, UINT64_C(4));
                if (tracks >= g.heads * 1024ull || g.heads > 16) {
                        g = (struct geometry){ .heads = 16, .track = 31 };
                        tracks = sectors / 31;
                }
                if (tracks >= g.heads * 1024ull) {
                        g = (struct geometry){ .heads = 16, .track = 63 };
                        tracks = sectors / 63;
                }
        }
        g.cylinders = (uint32_t)(tracks / g.heads);
        return g;
}

/* The next size that cylinders, heads and sectors can say. */
static uint64_t round_up(uint64_t sectors)
{
        uint64_t try = sectors;
        struct geometry g;

        do {
                g = geometry_of(try++);
        } while ((uint64_t)g.cylinders * g.heads * g.track < sectors && try < VHD_SECTORS_MAX);
        return MAX((uint64_t)g.cylinders * g.heads * g.track, sectors);
}

static void put_size(uint8_t *footer, uint64_t size_bytes)
{
        struct geometry g = geometry_of(size_bytes / VHD_SECTOR);

        put_be64(footer + VHD_SIZE, size_bytes);
        footer[VHD_CYLINDERS] = (uint8_t)(g.cylinders >> 8);
        footer[VHD_CYLINDERS + 1] = (uint8_t)g.cylinders;
        footer[VHD_CYLINDERS + 2] = (uint8_t)g.heads;
        footer[VHD_CYLINDERS + 3] = (uint8_t)g.track;
        put_be32(footer + VHD_CHECKSUM, vhd_checksum(footer, VHD_FOOTER_BYTES, VHD_CHECKSUM));
}

/* "Hard Disk Footer Format". */
static int make_footer(uint8_t *footer, const struct choice *choice, uint64_t size_bytes)
{
        put_letters(footer, "conectix");
        put_be32(footer + 8, 2);
        put_be32(footer + 12, 0x00010000);
        put_be64(footer + VHD_DATA_OFFSET, choice->fixed ? UINT64_MAX : VHD_FOOTER_BYTES);
        put_be32(footer + 24, (uint32_t)(time(NULL) - EPOCH));
        /* What says to readers that the size counts, or that the geometry does. */
        memcpy(footer + VHD_CREATOR, choice->by_geometry ? "vpc " : "win ", 4);
        put_be32(footer + 32, 0x00060002);
        put_letters(footer + 36, "Wi2k");
        put_be64(footer + VHD_ORIGINAL_SIZE, size_bytes);
        put_be32(footer + VHD_TYPE, choice->fixed ? VHD_FIXED : VHD_DYNAMIC);
        if (mapped_new_uuid(footer + VHD_UUID) < 0)
                return -EIO;
        put_size(footer, size_bytes);
        return 0;
}

/* Entries that name nothing. */
static int clear_entries(struct block *file, uint64_t from, uint64_t to)
{
        uint8_t ones[4096];
        int r = 0;

        memset(ones, 0xff, sizeof(ones));
        while (from < to && r == 0) {
                uint64_t some = MIN(to - from, (uint64_t)sizeof(ones));

                r = block_write(file, from, ones, some);
                from += some;
        }
        return r;
}

static int make_dynamic(struct block *file, const uint8_t *footer, uint64_t size_bytes, uint32_t block_bytes, struct err *err)
{
        uint64_t entries = (size_bytes + block_bytes - 1) / block_bytes, table = VHD_FOOTER_BYTES + VHD_HEADER_BYTES;
        uint64_t end = align_up(table + entries * 4, TABLE_ROOM);
        uint8_t header[VHD_HEADER_BYTES] = { 0 };
        int r = block_make_empty(file, end + VHD_FOOTER_BYTES, err);

        if (r < 0)
                return r;
        put_letters(header, "cxsparse");
        put_be64(header + 8, UINT64_MAX);
        put_be64(header + VHD_TABLE_OFFSET, table);
        put_be32(header + 24, 0x00010000);
        put_be32(header + VHD_ENTRIES, (uint32_t)((end - table) / 4));
        put_be32(header + VHD_BLOCK_SIZE, block_bytes);
        put_be32(header + VHD_HEADER_CHECKSUM, vhd_checksum(header, VHD_HEADER_BYTES, VHD_HEADER_CHECKSUM));
        r = clear_entries(file, table, end);
        if (r == 0)
                r = block_write(file, VHD_FOOTER_BYTES, header, sizeof(header));
        if (r == 0)
                r = block_write(file, end, footer, VHD_FOOTER_BYTES);
        if (r == 0)
                r = block_flush(file);
        if (r == 0)
                r = block_write(file, 0, footer, VHD_FOOTER_BYTES);
        return r < 0 ? err_errno(err, r, "cannot write") : 0;
}

int vhd_create(struct block *file, const struct block_creation *creation, struct err *err)
{
        uint64_t sectors = align_up(creation->size_bytes, VHD_SECTOR) / VHD_SECTOR;
        struct choice choice = { .block_bytes = VHD_BLOCK_BYTES };
        uint8_t footer[VHD_FOOTER_BYTES] = { 0 };
        int r = mapped_take_options(creation, "VHD", take_option, &choice, err);

        if (r < 0)
                return r;
        if (choice.by_geometry)
                sectors = round_up(sectors);
        if (sectors > VHD_SECTORS_MAX)
                return err_set(err, -EFBIG, "%" PRIu64 " bytes are more than a VHD image can have (2040 GiB)", creation->size_bytes);
        if (make_footer(footer, &choice, sectors * VHD_SECTOR) < 0)
                return err_set(err, -EIO, "cannot make a number for the image");
        if (!choice.fixed)
                return make_dynamic(file, footer, sectors * VHD_SECTOR, choice.block_bytes, err);
        r = block_make_empty(file, sectors * VHD_SECTOR + VHD_FOOTER_BYTES, err);
        if (r < 0)
                return r;
        r = block_write(file, sectors * VHD_SECTOR, footer, VHD_FOOTER_BYTES);
        return r < 0 ? err_errno(err, r, "cannot write") : 0;
}

/* ---- another size ---- */

/* One write makes the file longer and puts the footer there; the old one is then in the middle of zeroes. */
static int resize_fixed(struct vhd *v, uint64_t old, uint64_t size_bytes)
{
        static const uint8_t zeroes[VHD_FOOTER_BYTES];
        int r = block_write(v->m.file, size_bytes, v->footer, VHD_FOOTER_BYTES);

        if (r == 0)
                r = block_flush(v->m.file);
        if (r == 0 && size_bytes > old)
                r = block_write(v->m.file, old, zeroes, VHD_FOOTER_BYTES);
        return r == 0 ? block_resize(v->m.file, size_bytes + VHD_FOOTER_BYTES, NULL) : r;
}

static int forget_entry(struct vhd *v, void *ctx, uint32_t block, uint32_t entry)
{
        const uint64_t *size_bytes = ctx;

        (void)entry;
        return (uint64_t)block * v->block_bytes >= *size_bytes;
}

static int resize_dynamic(struct vhd *v, uint64_t old, uint64_t size_bytes)
{
        int r = 0;

        if (size_bytes < old) { /* smaller first: blocks that nobody can reach are lost, not wrong */
                r = block_write(v->m.file, 0, v->footer, VHD_FOOTER_BYTES);
                if (r == 0)
                        r = block_flush(v->m.file);
                if (r == 0)
                        r = vhd_walk(v, forget_entry, &size_bytes);
                table_cache_forget(&v->m.cache, v->m.file, v->table_offset, v->entries * 4ull);
                if (r == 0)
                        r = block_flush(v->m.file);
                if (r == 0)
                        r = vhd_compact(v, v->end);
                r = r == -EXDEV ? 0 : r;
        } else {
                r = block_write(v->m.file, 0, v->footer, VHD_FOOTER_BYTES);
                if (r == 0)
                        r = block_flush(v->m.file);
                if (r == 0)
                        r = mapped_zero_tail(&v->m, old, v->block_bytes);
        }
        if (r == 0)
                r = block_flush(v->m.file);
        v->reserved = UINT64_MAX; /* the footer at the end is written anew, too */
        return r == 0 ? vhd_cut(v) : r;
}

int vhd_resize(struct block *block, uint64_t size_bytes, struct err *err)
{
        struct vhd *v = to_vhd(to_mapped(block));
        uint64_t old = block->info.size_bytes;
        int r;

        size_bytes = align_up(size_bytes, VHD_SECTOR);
        if (v->m.broken)
                return err_set(err, -EIO, "disk %s is damaged", block->path);
        if (size_bytes > VHD_SECTORS_MAX * VHD_SECTOR || (v->type != VHD_FIXED && size_bytes > (uint64_t)v->entries * v->block_bytes))
                return err_set(err, -EFBIG, "disk %s: its table has room for %" PRIu64 " bytes; convert it to have more", block->path,
                               MIN((uint64_t)v->entries * v->block_bytes, VHD_SECTORS_MAX * VHD_SECTOR));
        if (v->type == VHD_FIXED && !v->m.file->info.grows)
                return err_set(err, -EOPNOTSUPP, "disk %s is on a block device; its size cannot be changed here", block->path);
        r = mapped_flush(&v->m);
        if (r == 0) {
                put_letters(v->footer + VHD_CREATOR, "win "); /* the size counts from now on */
                put_size(v->footer, size_bytes);
                block->info.size_bytes = size_bytes;
                r = v->type == VHD_FIXED ? resize_fixed(v, old, size_bytes) : resize_dynamic(v, old, size_bytes);
        }
        return r < 0 ? err_errno(err, r, "cannot give disk %s %" PRIu64 " bytes", block->path, size_bytes) : 0;
}
