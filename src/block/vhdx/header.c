/* Headers (§2.2.2), region tables (§2.2.3) and metadata (§2.6) of a VHDX image. */
#include <errno.h>
#include <inttypes.h>

#include "block/vhdx/image.h"

#define REGIONS_MAX 2047u
#define ITEMS_MAX 2047u
#define LOG_BYTES_MAX (64u << 20)
#define BLOCK_BYTES_MAX (256u << 20)

/* Their first three fields are little-endian. */
const uint8_t vhdx_guid_bat[16] = { 0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08 };
const uint8_t vhdx_guid_metadata[16] = { 0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e };
const uint8_t vhdx_guid_parameters[16] = { 0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b };
const uint8_t vhdx_guid_size[16] = { 0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8 };
const uint8_t vhdx_guid_id[16] = { 0xab, 0x12, 0xca, 0xbe, 0xe6, 0xb2, 0x23, 0x45, 0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46 };
const uint8_t vhdx_guid_sector[16] = { 0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f };
const uint8_t vhdx_guid_physical[16] = { 0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44, 0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56 };
static const uint8_t guid_locator[16] = { 0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c };

void vhdx_crc_init(uint32_t table[256])
{
        for (uint32_t n = 0; n < 256; n++) {
                uint32_t c = n;

                for (unsigned k = 0; k < 8; k++)
                        c = c >> 1 ^ (c & 1 ? 0x82f63b78u : 0);
                table[n] = c;
        }
}

uint32_t vhdx_checksum(const uint32_t table[256], const uint8_t *bytes, size_t size_bytes, size_t at)
{
        uint32_t c = ~0u;

        for (size_t n = 0; n < size_bytes; n++)
                c = table[(c ^ (n - at < 4 ? 0 : bytes[n])) & 0xff] ^ c >> 8;
        return ~c;
}

static int bad(struct vhdx *v, struct err *err, const char *what, uint64_t value)
{
        return err_set(err, -EINVAL, "disk %s is damaged: it says %s %" PRIu64, v->m.block.path, what, value);
}

static bool header_good(const struct vhdx *v, const uint8_t *bytes)
{
        return memcmp(bytes, "head", 4) == 0 && get_le32(bytes + 4) == vhdx_checksum(v->crc, bytes, VHDX_HEADER_BYTES, 4);
}

/* The one with the higher number of those that are right. */
static int read_newest(struct vhdx *v, struct err *err)
{
        uint8_t bytes[VHDX_HEADER_BYTES];
        bool found = false;

        for (unsigned n = 0; n < 2; n++) {
                int r = block_read(v->m.file, VHDX_HEADER_AT(n), bytes, sizeof(bytes));

                if (r < 0)
                        return err_errno(err, r, "cannot read disk %s", v->m.block.path);
                if (!header_good(v, bytes) || (found && get_le64(bytes + 8) <= v->sequence))
                        continue;
                found = true;
                v->current = n;
                v->sequence = get_le64(bytes + 8);
                memcpy(v->header, bytes, sizeof(bytes));
        }
        return found ? 0 : err_set(err, -EINVAL, "disk %s is damaged: neither of its headers is right", v->m.block.path);
}

int vhdx_read_headers(struct vhdx *v, struct err *err)
{
        uint16_t version;
        int r = read_newest(v, err);

        if (r < 0)
                return r;
        memcpy(v->data_guid, v->header + 32, 16);
        memcpy(v->log_guid, v->header + 48, 16);
        memcpy(&version, v->header + 66, 2);
        v->log_bytes = get_le32(v->header + 68);
        v->log_offset = get_le64(v->header + 72);
        if (version != 1 || v->header[64] || v->header[65])
                return err_set(err, -EOPNOTSUPP, "disk %s is of version %u of VHDX; 1 is known", v->m.block.path, version);
        if (!v->log_bytes || v->log_bytes % VHDX_MIB || v->log_bytes > LOG_BYTES_MAX || v->log_offset % VHDX_MIB || v->log_offset < VHDX_MIB ||
            v->log_offset > v->m.file->info.size_bytes)
                return bad(v, err, "a log at", v->log_offset);
        return 0;
}

int vhdx_write_header(struct vhdx *v, bool fresh)
{
        uint8_t bytes[VHDX_HEADER_BYTES];
        int r = 0;

        memcpy(bytes, v->header, sizeof(bytes));
        put_le64(bytes + 8, v->sequence + 1);
        if (fresh)
                r = mapped_new_uuid(bytes + 16);
        memcpy(bytes + 32, v->data_guid, 16);
        memcpy(bytes + 48, v->log_guid, 16);
        put_le32(bytes + 4, vhdx_checksum(v->crc, bytes, sizeof(bytes), 4));
        if (r == 0)
                r = block_write(v->m.file, VHDX_HEADER_AT(!v->current), bytes, sizeof(bytes));
        if (r == 0)
                r = block_flush(v->m.file);
        if (r < 0)
                return r;
        v->current = !v->current;
        v->sequence++;
        memcpy(v->header, bytes, sizeof(bytes));
        return 0;
}

int vhdx_read(struct vhdx *v, uint64_t offset, uint8_t *to, size_t size_bytes)
{
        int r = 0;

        while (size_bytes && r == 0) {
                size_t some = MIN(size_bytes, TABLE_PAGE_BYTES - offset % TABLE_PAGE_BYTES);

                r = mapped_entry(&v->m, v->m.file, offset, some, true, to);
                offset += some;
                to += some;
                size_bytes -= some;
        }
        return r;
}

/* ---- regions ---- */

static bool regions_good(const struct vhdx *v, const uint8_t *bytes)
{
        return memcmp(bytes, "regi", 4) == 0 && get_le32(bytes + 4) == vhdx_checksum(v->crc, bytes, VHDX_TABLE_BYTES, 4) && get_le32(bytes + 8) <= REGIONS_MAX;
}

static int take_region(struct vhdx *v, const uint8_t *entry, struct err *err)
{
        uint64_t offset = get_le64(entry + 16);
        uint32_t size_bytes = get_le32(entry + 24);
        bool bat = memcmp(entry, vhdx_guid_bat, 16) == 0, metadata = memcmp(entry, vhdx_guid_metadata, 16) == 0;

        if (!bat && !metadata)
                return get_le32(entry + 28) & 1 ? err_set(err, -EOPNOTSUPP, "disk %s has a region that is needed and not known", v->m.block.path) : 0;
        if (offset % VHDX_MIB || offset < VHDX_MIB || !size_bytes || size_bytes % VHDX_MIB || offset > v->m.file->info.size_bytes ||
            size_bytes > v->m.file->info.size_bytes - offset)
                return bad(v, err, bat ? "a table of blocks at" : "metadata at", offset);
        *(bat ? &v->bat_offset : &v->metadata_offset) = offset;
        *(bat ? &v->bat_bytes : &v->metadata_bytes) = size_bytes;
        return 0;
}

static int read_regions(struct vhdx *v, uint8_t *bytes, struct err *err)
{
        int r = vhdx_read(v, VHDX_REGIONS_AT(0), bytes, VHDX_TABLE_BYTES);

        if (r == 0 && !regions_good(v, bytes))
                r = vhdx_read(v, VHDX_REGIONS_AT(1), bytes, VHDX_TABLE_BYTES);
        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", v->m.block.path);
        if (!regions_good(v, bytes))
                return err_set(err, -EINVAL, "disk %s is damaged: neither of its region tables is right", v->m.block.path);
        for (uint32_t n = 0; n < get_le32(bytes + 8) && r == 0; n++)
                r = take_region(v, bytes + 16 + n * 32, err);
        if (r == 0 && (!v->bat_offset || !v->metadata_offset))
                r = err_set(err, -EINVAL, "disk %s is damaged: it has no table of blocks, or no metadata", v->m.block.path);
        return r;
}

/* ---- metadata ---- */

/* A known item's bytes; fewer than wanted are an error. */
static int take_item(struct vhdx *v, const uint8_t *entry, struct err *err)
{
        uint32_t at = get_le32(entry + 16), size_bytes = get_le32(entry + 20);
        uint64_t place = v->metadata_offset + at;
        bool parameters = memcmp(entry, vhdx_guid_parameters, 16) == 0, size = memcmp(entry, vhdx_guid_size, 16) == 0;
        bool sector = memcmp(entry, vhdx_guid_sector, 16) == 0, physical = memcmp(entry, vhdx_guid_physical, 16) == 0;
        bool locator = memcmp(entry, guid_locator, 16) == 0, id = memcmp(entry, vhdx_guid_id, 16) == 0;
        uint8_t bytes[8] = { 0 };
        int r;

        if (!parameters && !size && !sector && !physical && !locator && !id)
                return get_le32(entry + 24) & 4 ? err_set(err, -EOPNOTSUPP, "disk %s has metadata that are needed and not known", v->m.block.path) : 0;
        if (at < VHDX_TABLE_BYTES || at > v->metadata_bytes || size_bytes > v->metadata_bytes - at)
                return bad(v, err, "an item of its metadata at", at);
        if (locator) {
                v->locator_at = place;
                v->locator_bytes = size_bytes;
                return 0;
        }
        if (size_bytes < (sector || physical ? 4 : 8))
                return bad(v, err, "an item of its metadata of bytes", size_bytes);
        r = vhdx_read(v, place, bytes, sector || physical ? 4 : 8);
        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", v->m.block.path);
        if (parameters) {
                v->block_bytes = get_le32(bytes);
                v->fixed = bytes[4] & 1;
                v->differencing = bytes[4] & 2;
        } else if (size) {
                v->size_bytes = get_le64(bytes);
                v->size_at = place;
        } else if (sector || physical) {
                *(sector ? &v->sector_bytes : &v->physical_bytes) = get_le32(bytes);
        }
        return 0;
}

static int check_metadata(struct vhdx *v, struct err *err)
{
        uint64_t entries;

        if (v->sector_bytes != 512 && v->sector_bytes != 4096)
                return bad(v, err, "sectors of", v->sector_bytes);
        if (v->physical_bytes != 512 && v->physical_bytes != 4096)
                return bad(v, err, "physical sectors of", v->physical_bytes);
        if (!is_power_of_two(v->block_bytes) || v->block_bytes < VHDX_MIB || v->block_bytes > BLOCK_BYTES_MAX)
                return bad(v, err, "blocks of", v->block_bytes);
        if (!v->size_bytes || v->size_bytes > VHDX_SIZE_MAX || v->size_bytes % v->sector_bytes || v->size_at % 8)
                return bad(v, err, "a size of", v->size_bytes);
        v->blocks = (v->size_bytes + v->block_bytes - 1) / v->block_bytes;
        v->ratio = (UINT64_C(1) << 23) * v->sector_bytes / v->block_bytes;
        entries = v->differencing ? (v->blocks + v->ratio - 1) / v->ratio * (v->ratio + 1) : v->blocks + (v->blocks - 1) / v->ratio;
        if (entries > v->bat_bytes / 8)
                return bad(v, err, "a table of blocks that is too short, bytes", v->bat_bytes);
        return 0;
}

int vhdx_read_metadata(struct vhdx *v, struct err *err)
{
        _cleanup_free_ uint8_t *bytes = malloc(VHDX_TABLE_BYTES);
        uint16_t count;
        int r = bytes ? read_regions(v, bytes, err) : err_nomem(err);

        if (r < 0)
                return r;
        r = vhdx_read(v, v->metadata_offset, bytes, VHDX_TABLE_BYTES);
        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", v->m.block.path);
        memcpy(&count, bytes + 10, 2);
        if (memcmp(bytes, "metadata", 8) != 0 || count > ITEMS_MAX)
                return err_set(err, -EINVAL, "disk %s is damaged: its metadata are none", v->m.block.path);
        for (unsigned n = 0; n < count && r == 0; n++)
                r = take_item(v, bytes + 32 + n * 32, err);
        return r == 0 ? check_metadata(v, err) : r;
}
