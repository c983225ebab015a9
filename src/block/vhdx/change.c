/*
 * New VHDX images, and larger ones: a table has room for more blocks than the disk has, up to its whole MiB, so that a disk grows by a new
 * size in its metadata, through the log.
 */
#include <errno.h>
#include <inttypes.h>

#include "block/vhdx/image.h"

#define BLOCK_BYTES_DEFAULT (8u << 20)
#define LOG_BYTES VHDX_MIB
#define AT_LOG VHDX_MIB
#define AT_METADATA (2 * VHDX_MIB)
#define AT_BAT (3 * VHDX_MIB)
#define AT_ITEMS 65536u

const struct block_option_about vhdx_options[] = {
        { "block_size", "SIZE", "what space is taken by: 1M to 256M, a power of two; default: 8M" },
        { "subformat", "dynamic|fixed", "grows as it is written to, or has all its space from the beginning; default: dynamic" },
        { "logical_sector", "512|4096", "the size of a sector, as the guest sees it; default: 512" },
        { NULL, NULL, NULL },
};

struct choice {
        uint32_t block_bytes, sector_bytes;
        bool fixed;
};

static int take_option(const struct block_option *o, void *into, struct err *err)
{
        struct choice *choice = into;
        uint64_t value;

        if (strcmp(o->key, "block_size") == 0)
                return mapped_option_block(o, VHDX_MIB, 256 * VHDX_MIB, &choice->block_bytes, err);
        if (strcmp(o->key, "subformat") == 0)
                return mapped_option_switch(o, "dynamic", "fixed", &choice->fixed, err);
        if (strcmp(o->key, "logical_sector") != 0)
                return err_set(err, -EINVAL, "option %s: VHDX has none of this name", o->key);
        value = mapped_option_bytes(o->value);
        if (value != 512 && value != 4096)
                return mapped_bad_option(o, "512 or 4096", err);
        choice->sector_bytes = (uint32_t)value;
        return 0;
}

static void put_item(uint8_t *table, unsigned n, const uint8_t guid[16], uint32_t at, uint32_t size_bytes, uint32_t flags)
{
        uint8_t *entry = table + 32 + n * 32;

        memcpy(entry, guid, 16);
        put_le32(entry + 16, AT_ITEMS + at);
        put_le32(entry + 20, size_bytes);
        put_le32(entry + 24, flags);
}

/* §2.6: the table, and the items behind it. */
static int write_metadata(struct block *file, const struct choice *choice, uint64_t size_bytes)
{
        _cleanup_free_ uint8_t *bytes = calloc(1, AT_ITEMS + 4096);
        uint8_t *items = bytes ? bytes + AT_ITEMS : NULL;
        int r = bytes ? mapped_new_uuid(items + 16) : -ENOMEM;

        if (r < 0)
                return r;
        put_letters(bytes, "metadata");
        put_le16(bytes + 10, 5);
        put_item(bytes, 0, vhdx_guid_parameters, 0, 8, 4);
        put_item(bytes, 1, vhdx_guid_size, 8, 8, 6);
        put_item(bytes, 2, vhdx_guid_id, 16, 16, 6);
        put_item(bytes, 3, vhdx_guid_sector, 32, 4, 6);
        put_item(bytes, 4, vhdx_guid_physical, 36, 4, 6);
        put_le32(items, choice->block_bytes);
        put_le32(items + 4, choice->fixed ? 1 : 0);
        put_le64(items + 8, size_bytes);
        put_le32(items + 32, choice->sector_bytes);
        put_le32(items + 36, 4096);
        return block_write(file, AT_METADATA, bytes, AT_ITEMS + 4096);
}

static void put_region(uint8_t *table, unsigned n, const uint8_t guid[16], uint64_t offset, uint64_t size_bytes)
{
        uint8_t *entry = table + 16 + n * 32;

        memcpy(entry, guid, 16);
        put_le64(entry + 16, offset);
        put_le32(entry + 24, (uint32_t)size_bytes);
        put_le32(entry + 28, 1);
}

static int write_regions(struct block *file, const uint32_t crc[256], uint64_t bat_bytes)
{
        _cleanup_free_ uint8_t *bytes = calloc(1, VHDX_TABLE_BYTES);
        int r;

        if (!bytes)
                return -ENOMEM;
        put_letters(bytes, "regi");
        put_le32(bytes + 8, 2);
        put_region(bytes, 0, vhdx_guid_bat, AT_BAT, bat_bytes);
        put_region(bytes, 1, vhdx_guid_metadata, AT_METADATA, VHDX_MIB);
        put_le32(bytes + 4, vhdx_checksum(crc, bytes, VHDX_TABLE_BYTES, 4));
        r = block_write(file, VHDX_REGIONS_AT(0), bytes, VHDX_TABLE_BYTES);
        return r == 0 ? block_write(file, VHDX_REGIONS_AT(1), bytes, VHDX_TABLE_BYTES) : r;
}

static int write_headers(struct block *file, const uint32_t crc[256])
{
        uint8_t bytes[VHDX_HEADER_BYTES] = { 0 };
        int r = mapped_new_uuid(bytes + 16);

        put_letters(bytes, "head");
        if (r == 0)
                r = mapped_new_uuid(bytes + 32);
        put_le16(bytes + 66, 1);
        put_le32(bytes + 68, LOG_BYTES);
        put_le64(bytes + 72, AT_LOG);
        for (unsigned n = 0; n < 2 && r == 0; n++) {
                put_le64(bytes + 8, n + 1);
                put_le32(bytes + 4, vhdx_checksum(crc, bytes, sizeof(bytes), 4));
                r = block_write(file, VHDX_HEADER_AT(n), bytes, sizeof(bytes));
        }
        return r;
}

/* Of a fixed image: all blocks, one behind the other. */
static int write_bat(struct block *file, const struct choice *choice, uint64_t blocks, uint64_t first)
{
        uint64_t ratio = (UINT64_C(1) << 23) * choice->sector_bytes / choice->block_bytes;
        uint8_t bytes[4096] = { 0 };
        uint64_t entries = blocks + (blocks - 1) / ratio, block = 0;
        int r = 0;

        for (uint64_t n = 0; n < entries && r == 0;) {
                uint64_t count = MIN(entries - n, (uint64_t)sizeof(bytes) / 8);

                for (uint64_t k = 0; k < count; k++)
                        put_le64(bytes + k * 8, (n + k) % (ratio + 1) == ratio ? 0 : (first + block++ * choice->block_bytes) | VHDX_PRESENT);
                r = block_write(file, AT_BAT + n * 8, bytes, count * 8);
                n += count;
        }
        return r;
}

int vhdx_create(struct block *file, const struct block_creation *creation, struct err *err)
{
        static const char identifier[8] = "vhdxfile";
        struct choice choice = { .block_bytes = BLOCK_BYTES_DEFAULT, .sector_bytes = 512 };
        uint64_t size_bytes, blocks, ratio, bat_bytes;
        uint32_t crc[256];
        int r = mapped_take_options(creation, "VHDX", take_option, &choice, err);

        if (r < 0)
                return r;
        size_bytes = align_up(creation->size_bytes, choice.sector_bytes);
        if (size_bytes > VHDX_SIZE_MAX)
                return err_set(err, -EFBIG, "%" PRIu64 " bytes are more than a VHDX image can have (64 TiB)", creation->size_bytes);
        blocks = (size_bytes + choice.block_bytes - 1) / choice.block_bytes;
        ratio = (UINT64_C(1) << 23) * choice.sector_bytes / choice.block_bytes;
        bat_bytes = align_up((blocks + blocks / ratio + 1) * 8, VHDX_MIB);
        r = block_make_empty(file, AT_BAT + bat_bytes + (choice.fixed ? blocks * choice.block_bytes : 0), err);
        if (r < 0)
                return r;
        vhdx_crc_init(crc);
        if (choice.fixed)
                r = write_bat(file, &choice, blocks, AT_BAT + bat_bytes);
        if (r == 0)
                r = write_metadata(file, &choice, size_bytes);
        if (r == 0)
                r = write_regions(file, crc, bat_bytes);
        if (r == 0)
                r = write_headers(file, crc);
        if (r == 0)
                r = block_flush(file);
        if (r == 0)
                r = block_write(file, 0, identifier, sizeof(identifier));
        return r < 0 ? err_errno(err, r, "cannot write") : 0;
}

/* ---- another size ---- */

int vhdx_resize(struct block *block, uint64_t size_bytes, struct err *err)
{
        struct vhdx *v = to_vhdx(to_mapped(block));
        uint64_t old = v->size_bytes, blocks;
        uint8_t bytes[8];
        int r = 0;

        size_bytes = align_up(size_bytes, v->sector_bytes);
        blocks = (size_bytes + v->block_bytes - 1) / v->block_bytes;
        if (v->m.broken)
                return err_set(err, -EIO, "disk %s is damaged", block->path);
        if (size_bytes < old)
                return err_set(err, -EOPNOTSUPP, "disk %s: a VHDX image is not made smaller; convert it", block->path);
        if (size_bytes > VHDX_SIZE_MAX || blocks + blocks / v->ratio + 1 > v->bat_bytes / 8 || v->fixed)
                return err_set(err, -EFBIG, "disk %s: its table has no room for %" PRIu64 " bytes; convert it to have more", block->path, size_bytes);
        if (!v->m.begun)
                r = vhdx_begin(&v->m);
        v->m.begun |= r == 0;
        put_le64(bytes, size_bytes);
        if (r == 0)
                r = mapped_set_entry(&v->m, v->m.file, v->size_at, 8, false, bytes);
        if (r == 0) {
                v->size_bytes = block->info.size_bytes = size_bytes;
                v->blocks = blocks;
                r = mapped_flush(&v->m);
        }
        if (r == 0)
                r = mapped_zero_tail(&v->m, old, v->block_bytes);
        return r < 0 ? err_errno(err, r, "cannot give disk %s %" PRIu64 " bytes", block->path, size_bytes) : 0;
}
