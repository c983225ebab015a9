/* VHD images: what their footer and header say, and requests on them; see image.h. */
#include "block/vhd/image.h"

#include <errno.h>
#include <inttypes.h>

#define RESERVE_MAX 128u
#define SCAN_BYTES 65536u
#define BLOCK_BYTES_MIN 4096u
#define BLOCK_BYTES_MAX (256u << 20)
#define ENTRIES_MAX (1u << 29)
#define CYLINDERS_MAX 65535u
#define HEADS_MAX 16u
#define TRACK_MAX 255u

uint32_t vhd_checksum(const uint8_t *bytes, size_t size_bytes, size_t at)
{
        uint32_t sum = 0;

        for (size_t n = 0; n < size_bytes; n++)
                sum += n - at < 4 ? 0 : bytes[n];
        return ~sum;
}

/* ---- the table ---- */

bool vhd_entry_good(const struct vhd *v, uint32_t entry)
{
        uint64_t at = (uint64_t)entry * VHD_SECTOR;

        return at >= v->first && at + vhd_stride(v) <= v->m.file->info.size_bytes;
}

static int get_entry(struct vhd *v, uint64_t block, bool wait, uint32_t *entry)
{
        int r = mapped_entry(&v->m, v->m.file, vhd_entry_place(v, block), 4, wait, entry);

        if (r < 0)
                return r;
        *entry = __builtin_bswap32(*entry);
        if (*entry != VHD_ABSENT && !vhd_entry_good(v, *entry))
                return mapped_corrupt(&v->m, "block %" PRIu64 " is said to be at sector %" PRIu32, block, *entry);
        return 0;
}

/* How far sectors of a differencing image are there, or not, as the first is ("Data Blocks": the first sector has the highest bit). */
static int look_at_bits(struct vhd *v, uint64_t bitmap, uint64_t inside, uint64_t size_bytes, bool wait, bool *there, uint64_t *same)
{
        uint64_t first = inside / VHD_SECTOR, sector = first, end = (inside + size_bytes + VHD_SECTOR - 1) / VHD_SECTOR;
        uint8_t bits[VHD_SECTOR];

        while (sector < end) {
                uint64_t page = bitmap + sector / 8 / VHD_SECTOR * VHD_SECTOR;
                int r = mapped_entry(&v->m, v->m.file, page, sizeof(bits), wait, bits);

                if (r < 0 && (sector == first || wait))
                        return r;
                if (r < 0)
                        break;
                do {
                        bool set = bits[sector / 8 % VHD_SECTOR] >> (7 - sector % 8) & 1;

                        if (sector == first)
                                *there = set;
                        if (set != *there)
                                end = sector;
                } while (sector < end && ++sector % (VHD_SECTOR * 8));
        }
        *same = MIN(size_bytes, sector * VHD_SECTOR - inside);
        return 0;
}

static int vhd_map(struct mapped *m, uint64_t at, uint64_t size_bytes, bool wait, struct mapped_run *run)
{
        struct vhd *v = to_vhd(m);
        uint64_t inside;
        uint32_t entry;
        bool there = true;
        int r;

        *run = (struct mapped_run){ .kind = MAPPED_DATA, .in = m->file, .host = at, .size_bytes = size_bytes };
        if (v->type == VHD_FIXED)
                return 0;
        r = get_entry(v, at / v->block_bytes, wait, &entry);
        if (r < 0)
                return r;
        inside = at % v->block_bytes;
        run->size_bytes = MIN(v->block_bytes - inside, size_bytes);
        if (entry != VHD_ABSENT && v->type == VHD_DIFFERENCING)
                r = look_at_bits(v, (uint64_t)entry * VHD_SECTOR, inside, run->size_bytes, wait, &there, &run->size_bytes);
        if (entry == VHD_ABSENT || !there)
                run->kind = MAPPED_ABSENT;
        else
                run->host = (uint64_t)entry * VHD_SECTOR + v->bitmap_bytes + inside;
        return r;
}

/* ---- writing ---- */

/* Room behind the last block, and a footer behind that. */
static int reserve(struct vhd *v)
{
        uint64_t end = v->end + v->reserve_next * vhd_stride(v);
        int r = 0;

        if (v->m.file->info.grows)
                r = block_resize(v->m.file, MAX(end + VHD_FOOTER_BYTES, v->m.file->info.size_bytes), NULL);
        else if (end + VHD_FOOTER_BYTES > v->m.file->info.size_bytes)
                r = -ENOSPC;
        if (r == 0)
                r = block_write(v->m.file, end, v->footer, VHD_FOOTER_BYTES);
        if (r == 0)
                r = block_flush(v->m.file);
        if (r < 0)
                return r;
        v->reserved = end;
        v->reserve_next = MIN(v->reserve_next * 2, RESERVE_MAX);
        return 0;
}

/* Its bitmap goes ahead: it is in front of the data, so that the flush before the block is named covers it. */
static int vhd_take(struct mapped *m, uint64_t at, uint64_t size_bytes, struct mapped_place *place)
{
        struct vhd *v = to_vhd(m);
        uint64_t first = at / v->block_bytes * v->block_bytes;
        _cleanup_free_ uint8_t *ones = malloc(v->bitmap_bytes);
        int r = ones ? 0 : -ENOMEM;

        (void)size_bytes;
        if (r == 0 && v->end + vhd_stride(v) > v->reserved)
                r = reserve(v);
        if (r < 0)
                return r;
        memset(ones, 0xff, v->bitmap_bytes);
        r = block_write(m->file, v->end, ones, v->bitmap_bytes);
        if (r < 0)
                return r;
        *place = (struct mapped_place){
                .first = first, .end = MIN(first + v->block_bytes, m->block.info.size_bytes), .in = m->file, .host = v->end + v->bitmap_bytes,
        };
        place->fresh = place->host >= v->fresh_from;
        v->fresh_from = MAX(v->fresh_from, v->end + vhd_stride(v));
        return 0;
}

static int vhd_name(struct mapped *m, const struct mapped_place *place)
{
        struct vhd *v = to_vhd(m);
        uint8_t entry[4];
        int r;

        put_be32(entry, (uint32_t)(v->end / VHD_SECTOR));
        r = mapped_set_entry(m, m->file, vhd_entry_place(v, place->first / v->block_bytes), 4, true, entry);
        if (r == 0)
                v->end += vhd_stride(v);
        return r;
}

int vhd_cut(struct vhd *v)
{
        int r;

        if (v->m.file->info.size_bytes == v->end + VHD_FOOTER_BYTES && v->reserved == v->end)
                return 0;
        r = block_write(v->m.file, v->end, v->footer, VHD_FOOTER_BYTES);
        if (r == 0)
                r = block_flush(v->m.file);
        if (r == 0 && v->m.file->info.grows)
                r = block_resize(v->m.file, v->end + VHD_FOOTER_BYTES, NULL);
        if (r == 0) {
                v->reserved = v->end;
                v->fresh_from = v->m.file->info.grows ? v->end + VHD_FOOTER_BYTES : UINT64_MAX;
        }
        return r;
}

int vhd_walk(struct vhd *v, int (*each)(struct vhd *v, void *ctx, uint32_t block, uint32_t entry), void *ctx)
{
        _cleanup_free_ uint8_t *piece = malloc(SCAN_BYTES);
        int r = piece ? 0 : -ENOMEM;

        for (uint32_t block = 0; block < v->entries && r == 0;) {
                uint32_t count = MIN(v->entries - block, SCAN_BYTES / 4);

                r = block_read(v->m.file, vhd_entry_place(v, block), piece, count * 4);
                for (uint32_t n = 0; n < count && r >= 0; n++) {
                        uint32_t entry = get_be32(piece + n * 4);
                        int away = entry != VHD_ABSENT ? each(v, ctx, block + n, entry) : 0;

                        if (away > 0)
                                put_be32(piece + n * 4, VHD_ABSENT);
                        r = away ? away : r;
                }
                if (r > 0)
                        r = block_write(v->m.file, vhd_entry_place(v, block), piece, count * 4);
                block += count;
        }
        return r;
}

static int find_end(struct vhd *v, void *ctx, uint32_t block, uint32_t entry)
{
        (void)ctx;
        (void)block;
        if (vhd_entry_good(v, entry))
                v->end = MAX(v->end, (uint64_t)entry * VHD_SECTOR + vhd_stride(v));
        return 0;
}

/* ---- opening ---- */

static bool is_footer(const uint8_t *bytes)
{
        return memcmp(bytes, "conectix", 8) == 0;
}

static int vhd_probe(const uint8_t *head, size_t size_bytes)
{
        return size_bytes >= VHD_FOOTER_BYTES && is_footer(head) ? 100 : 0;
}

static int bad(struct vhd *v, struct err *err, const char *what, uint64_t value)
{
        return err_set(err, -EINVAL, "disk %s is damaged: it says %s %" PRIu64, v->m.block.path, what, value);
}

/* The copy at the beginning is that of a dynamic image; it may be lost, or the image be fixed: then the one at the end. */
static int read_footer(struct vhd *v, struct err *err)
{
        uint64_t size_bytes = v->m.file->info.size_bytes;
        int r = size_bytes < VHD_FOOTER_BYTES ? 0 : block_read(v->m.file, 0, v->footer, VHD_FOOTER_BYTES);
        bool front = r == 0 && is_footer(v->footer) && get_be32(v->footer + VHD_CHECKSUM) == vhd_checksum(v->footer, VHD_FOOTER_BYTES, VHD_CHECKSUM);

        if (r == 0 && !front && size_bytes >= VHD_FOOTER_BYTES)
                r = block_read(v->m.file, size_bytes - VHD_FOOTER_BYTES, v->footer, VHD_FOOTER_BYTES);
        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", v->m.block.path);
        if (!is_footer(v->footer))
                return err_set(err, -EINVAL, "disk %s is not a VHD image", v->m.block.path);
        if (get_be32(v->footer + VHD_CHECKSUM) != vhd_checksum(v->footer, VHD_FOOTER_BYTES, VHD_CHECKSUM))
                return err_set(err, -EINVAL, "disk %s is damaged: its footer has a wrong checksum", v->m.block.path);
        v->type = get_be32(v->footer + VHD_TYPE);
        if (v->type < VHD_FIXED || v->type > VHD_DIFFERENCING)
                return bad(v, err, "a disk of type", v->type);
        if (v->type == VHD_FIXED && front)
                return bad(v, err, "at its beginning a disk of type", v->type);
        return 0;
}

static uint64_t disk_bytes(const struct vhd *v)
{
        static const char by_size[][5] = { "win ", "qem2", "d2v ", "tap\0", "CTXS", "wa\0\0" };
        uint64_t cylinders = get_be16(v->footer + VHD_CYLINDERS), heads = v->footer[VHD_CYLINDERS + 2], track = v->footer[VHD_CYLINDERS + 3];

        for (unsigned n = 0; n < ARRAY_SIZE(by_size); n++)
                if (memcmp(v->footer + VHD_CREATOR, by_size[n], 4) == 0)
                        return get_be64(v->footer + VHD_SIZE);
        if (!cylinders || (cylinders == CYLINDERS_MAX && heads == HEADS_MAX && track == TRACK_MAX))
                return get_be64(v->footer + VHD_SIZE);
        return cylinders * heads * track * VHD_SECTOR;
}

static int read_header(struct vhd *v, struct err *err)
{
        int r;

        v->header_offset = get_be64(v->footer + VHD_DATA_OFFSET);
        if (v->header_offset % VHD_SECTOR || v->header_offset < VHD_FOOTER_BYTES || v->header_offset > v->m.file->info.size_bytes)
                return bad(v, err, "a header at", v->header_offset);
        r = block_read(v->m.file, v->header_offset, v->header, VHD_HEADER_BYTES);
        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", v->m.block.path);
        if (memcmp(v->header, "cxsparse", 8) != 0)
                return err_set(err, -EINVAL, "disk %s is damaged: its header is none", v->m.block.path);
        if (get_be32(v->header + VHD_HEADER_CHECKSUM) != vhd_checksum(v->header, VHD_HEADER_BYTES, VHD_HEADER_CHECKSUM))
                return err_set(err, -EINVAL, "disk %s is damaged: its header has a wrong checksum", v->m.block.path);
        v->table_offset = get_be64(v->header + VHD_TABLE_OFFSET);
        v->entries = get_be32(v->header + VHD_ENTRIES);
        v->block_bytes = get_be32(v->header + VHD_BLOCK_SIZE);
        if (!is_power_of_two(v->block_bytes) || v->block_bytes < BLOCK_BYTES_MIN || v->block_bytes > BLOCK_BYTES_MAX)
                return bad(v, err, "blocks of", v->block_bytes);
        if (!v->entries || v->entries > ENTRIES_MAX)
                return bad(v, err, "entries of its table", v->entries);
        if (v->table_offset % VHD_SECTOR || v->table_offset < VHD_FOOTER_BYTES || v->table_offset > v->m.file->info.size_bytes ||
            vhd_entry_place(v, v->entries) > v->m.file->info.size_bytes)
                return bad(v, err, "a table at", v->table_offset);
        v->bitmap_bytes = (uint32_t)align_up(v->block_bytes / VHD_SECTOR / 8, VHD_SECTOR);
        v->first = MAX(align_up(vhd_entry_place(v, v->entries), VHD_SECTOR), v->header_offset + VHD_HEADER_BYTES);
        return 0;
}

static int begin_writing(struct vhd *v, struct err *err)
{
        int r;

        v->end = v->first;
        v->reserve_next = 4;
        if (v->type == VHD_DIFFERENCING)
                return err_set(err, -EROFS, "disk %s is a differencing VHD image; such are only read: open it read-only, or convert it", v->m.block.path);
        if (v->type == VHD_FIXED)
                return 0;
        r = vhd_walk(v, find_end, NULL);
        v->reserved = v->end; /* where the footer is, or something else: the first block that is taken sees to it */
        v->fresh_from = v->m.file->info.grows ? v->m.file->info.size_bytes : UINT64_MAX;
        return r < 0 ? err_errno(err, r, "disk %s: cannot read its table", v->m.block.path) : 0;
}

static int open_image(struct mapped *m, const struct block_opening *opening, struct err *err)
{
        struct vhd *v = to_vhd(m);
        uint64_t size_bytes, most;
        int r = read_footer(v, err);

        if (r == 0 && v->type != VHD_FIXED)
                r = read_header(v, err);
        if (r < 0)
                return r;
        size_bytes = align_down(disk_bytes(v), VHD_SECTOR);
        most = v->type == VHD_FIXED ? v->m.file->info.size_bytes - VHD_FOOTER_BYTES : (uint64_t)v->entries * v->block_bytes;
        if (!size_bytes || size_bytes > most)
                return bad(v, err, "a size of", size_bytes);
        v->m.sparse = v->type == VHD_FIXED;
        mapped_info(&v->m, size_bytes, BLOCK_SECTOR, v->type == VHD_FIXED ? 0 : v->block_bytes);
        if (v->type == VHD_DIFFERENCING && !(opening->flags & BLOCK_OPEN_NO_BACKING))
                r = vhd_open_parent(v, opening, err);
        return r < 0 || v->m.file->info.readonly ? r : begin_writing(v, err);
}

static const struct mapped_ops vhd_ops = {
        .struct_bytes = sizeof(struct vhd), .page_bytes = VHD_SECTOR, .open = open_image, .map = vhd_map, .take = vhd_take, .name = vhd_name,
};

static int vhd_open(const struct block_opening *opening, struct block **block, struct err *err)
{
        return mapped_open(&block_vhd, &vhd_ops, opening, block, err);
}

static int vhd_finish(struct block *block, struct err *err)
{
        struct vhd *v = to_vhd(to_mapped(block));
        int r;

        if (block->info.readonly || v->m.broken)
                return 0;
        r = mapped_flush(&v->m);
        if (r == 0 && v->m.begun && v->type == VHD_DYNAMIC)
                r = vhd_cut(v);
        return r < 0 ? err_errno(err, r, "cannot write the tables of disk %s", block->path) : 0;
}

static int vhd_describe(struct block *block, json_t *into)
{
        static const char *const types[] = { "fixed", "dynamic", "differencing" };
        const struct vhd *v = to_vhd(to_mapped(block));
        char creator[5] = { 0 };
        json_t *about;

        memcpy(creator, v->footer + VHD_CREATOR, 4);
        for (unsigned n = 0; n < 4; n++)
                creator[n] = creator[n] < ' ' || creator[n] > '~' ? '\0' : creator[n];
        about = json_pack("{s:s, s:s}", "type", types[v->type - VHD_FIXED], "creator", creator);
        if (about && v->type != VHD_FIXED)
                json_object_set_new(about, "block_bytes", json_integer(v->block_bytes));
        if (about && v->m.backing)
                json_object_set_new(about, "backing", json_string(v->m.backing->path));
        return about && json_object_set_new(into, "vhd", about) == 0 ? 0 : -ENOMEM;
}

const struct block_driver block_vhd = {
        .name = "vhd",
        .text = "the format of Virtual PC and of early Hyper-V: fixed, dynamic, differencing (read)",
        .suffixes = (const char *const[]){ ".vhd", ".vpc", NULL },
        .probe = vhd_probe,
        .open = vhd_open,
        .options = vhd_options,
        .create = vhd_create,
        .check = vhd_check,
        .finish = vhd_finish,
        .close = mapped_close,
        .submit = mapped_submit,
        .status = mapped_status,
        .describe = vhd_describe,
        .resize = vhd_resize,
};
