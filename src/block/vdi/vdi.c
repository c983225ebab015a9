/*
 * VDI, VirtualBox's disk images, version 1.1: dynamic and static ones. The format is that of VirtualBox's VDICore.h and of QEMU's
 * block/vdi.c (comments on the header): "the header" here.
 *
 *      0            map offset                     data offset
 *      header 512   an index for each block …      blocks 0, 1, 2 …    (each with `extra` bytes in front, 0 as a rule)
 *
 * An entry of the map is where the block of the guest is, counted in blocks; or that it is nowhere, and reads as zeroes. The header counts
 * the blocks in the file. Differencing images, whose parents are named by a UUID that only VirtualBox's registry resolves, are refused.
 *
 * The order on the disk, beside that of mapped.h: the header's count is raised ahead, for more and more blocks at once (the reserve), and
 * flushed, before any of them is named: no entry of the map is ever behind what the header says. A crash leaves the reserve, and blocks
 * that were written and not named, as lost space: whoever opens the image next takes such blocks first, and a check moves the last blocks
 * into the holes that are left, each behind a flush, copy first. block_finish() lowers the count to what is used, and cuts the file there.
 */
#include "block/vdi/vdi.h"

#include <errno.h>
#include <inttypes.h>

#include "base/cursor.h"
#include "block/mapped.h"

#define SIGNATURE 0xbeda107fu
#define VERSION 0x00010001u
#define HEADER_BYTES 512u
#define TEXT_BYTES 64
#define TYPE_DYNAMIC 1u
#define TYPE_STATIC 2u
#define ABSENT 0xffffffffu
#define ZEROES 0xfffffffeu
#define BLOCKS_MAX 0x1fffff80u /* so that a map has less than 2 GiB */
#define BLOCK_BYTES_DEFAULT (1u << 20)
#define BLOCK_BYTES_MIN 4096u
#define BLOCK_BYTES_MAX (64u << 20)
#define DATA_ALIGNMENT (1u << 20)
#define RESERVE_MAX 256u
#define HOLES_MAX (1u << 27) /* of an image with more blocks nobody looks for lost ones */
#define SCAN_BYTES 65536u

/* Where fields are in the header. */
#define AT_SIZE 0x170
#define AT_BLOCKS 0x180
#define AT_ALLOCATED 0x184

struct vdi {
        struct mapped m;
        uint32_t type, map_offset, data_offset, block_bytes, extra;
        uint32_t blocks;         /* of the guest: entries of the map */
        uint32_t allocated;      /* as the header says */
        uint32_t next;           /* no block of the file from here on is named */
        uint32_t fresh_from;     /* nor was written to from here on */
        uint32_t reserve_next;
        uint64_t size_bytes;
        uint8_t *named;          /* a bit for each block in front of `next`; NULL: all are */
        uint32_t hole;           /* all in front of it are */
};

static struct vdi *to_vdi(struct mapped *m)
{
        return container_of(m, struct vdi, m);
}

static uint64_t stride(const struct vdi *v)
{
        return (uint64_t)v->block_bytes + v->extra;
}

/* Of the guest's bytes in a block of the file. */
static uint64_t place_of(const struct vdi *v, uint32_t index)
{
        return v->data_offset + index * stride(v) + v->extra;
}

static uint64_t entry_place(const struct vdi *v, uint64_t block)
{
        return v->map_offset + block * 4;
}

/* ---- the map ---- */

static int get_entry(struct vdi *v, uint64_t block, bool wait, uint32_t *entry)
{
        int r = mapped_entry(&v->m, v->m.file, entry_place(v, block), 4, wait, entry);

        if (r < 0)
                return r;
        if (*entry < ZEROES && *entry >= v->allocated)
                return mapped_corrupt(&v->m, "block %" PRIu64 " is said to be the file's block %" PRIu32 " of %" PRIu32, block, *entry, v->allocated);
        return 0;
}

static enum mapped_kind kind_of(uint32_t entry)
{
        return entry < ZEROES ? MAPPED_DATA : MAPPED_ZEROES;
}

static int vdi_map(struct mapped *m, uint64_t at, uint64_t size_bytes, bool wait, struct mapped_run *run)
{
        struct vdi *v = to_vdi(m);
        uint64_t block = at / v->block_bytes, inside = at % v->block_bytes, known;
        uint32_t first, next;
        int r = get_entry(v, block, wait, &first);

        if (r < 0)
                return r;
        *run = (struct mapped_run){ .kind = kind_of(first), .in = m->file, .host = kind_of(first) == MAPPED_DATA ? place_of(v, first) + inside : 0 };
        known = v->block_bytes - inside;
        for (uint32_t n = 1; known < size_bytes; n++, known += v->block_bytes) {
                /* What is in memory is enough to know of. */
                if (get_entry(v, block + n, false, &next) < 0 || kind_of(next) != run->kind)
                        break;
                if (run->kind == MAPPED_DATA && (v->extra || next != first + n))
                        break;
        }
        run->size_bytes = MIN(known, size_bytes);
        return 0;
}

/* ---- writing ---- */

static int write_allocated(struct vdi *v, uint32_t allocated)
{
        uint8_t bytes[4];
        int r;

        put_le32(bytes, allocated);
        r = block_write(v->m.file, AT_ALLOCATED, bytes, sizeof(bytes));
        if (r == 0)
                r = block_flush(v->m.file);
        if (r == 0)
                v->allocated = allocated;
        return r;
}

/* The file is long enough for what the header is about to say. */
static int raise_allocated(struct vdi *v)
{
        uint32_t left = v->blocks > v->next ? v->blocks - v->next : 1, allocated = v->next + MIN(v->reserve_next, left);
        uint64_t end = v->data_offset + allocated * stride(v);
        int r = 0;

        if (v->m.file->info.grows) {
                if (end > v->m.file->info.size_bytes)
                        r = block_resize(v->m.file, end, NULL);
        } else if (end > v->m.file->info.size_bytes) {
                r = -ENOSPC;
        }
        if (r == 0)
                r = write_allocated(v, allocated);
        if (r == 0)
                v->reserve_next = MIN(v->reserve_next * 2, RESERVE_MAX);
        return r;
}

/* A block that was lost; false: there is none. */
static bool find_hole(struct vdi *v)
{
        while (v->named && v->hole < v->next && v->named[v->hole / 8] >> v->hole % 8 & 1)
                v->hole++;
        return v->named && v->hole < v->next;
}

static int vdi_take(struct mapped *m, uint64_t at, uint64_t size_bytes, struct mapped_place *place)
{
        struct vdi *v = to_vdi(m);
        uint64_t block = at / v->block_bytes, end = (at + size_bytes - 1) / v->block_bytes + 1, last;
        uint32_t index, count = 1;
        int r;

        if (find_hole(v)) {
                index = v->hole;
        } else {
                if (v->next >= v->allocated) {
                        r = raise_allocated(v);
                        if (r < 0)
                                return r;
                }
                index = v->next;
                count = (uint32_t)MIN(end - block, (uint64_t)(v->allocated - v->next));
                if (v->extra)
                        count = 1;
        }
        last = (block + count) * v->block_bytes;
        *place = (struct mapped_place){
                .first = block * v->block_bytes, .end = MIN(last, v->m.block.info.size_bytes), .in = m->file, .host = place_of(v, index),
                .fresh = index >= v->fresh_from,
        };
        v->fresh_from = MAX(v->fresh_from, index + count);
        return 0;
}

static int vdi_name(struct mapped *m, const struct mapped_place *place)
{
        struct vdi *v = to_vdi(m);
        uint32_t index = (uint32_t)((place->host - v->extra - v->data_offset) / stride(v));
        int r = 0;

        for (uint64_t at = place->first; at < place->end && r == 0; at += v->block_bytes, index++) {
                uint8_t entry[4];

                put_le32(entry, index);
                r = mapped_set_entry(m, m->file, entry_place(v, at / v->block_bytes), 4, true, entry);
                if (r == 0 && index == v->next)
                        v->next++;
                else if (r == 0)
                        v->named[index / 8] |= (uint8_t)(1u << index % 8);
        }
        return r;
}

/* ---- walking over the whole map ---- */

/* each() of every entry that names a block, which says 1 when it is to be taken away; the map is read in pieces, as it is in the file. */
static int walk(struct vdi *v, int (*each)(struct vdi *v, void *ctx, uint32_t block, uint32_t index), void *ctx)
{
        _cleanup_free_ uint8_t *piece = malloc(SCAN_BYTES);
        int r = piece ? 0 : -ENOMEM;

        for (uint32_t block = 0; block < v->blocks && r == 0;) {
                uint32_t count = MIN(v->blocks - block, SCAN_BYTES / 4);

                r = block_read(v->m.file, entry_place(v, block), piece, count * 4);
                for (uint32_t n = 0; n < count && r >= 0; n++) {
                        uint32_t index = get_le32(piece + n * 4);
                        int away = index < ZEROES ? each(v, ctx, block + n, index) : 0;

                        if (away > 0)
                                put_le32(piece + n * 4, ABSENT);
                        r = away ? away : r;
                }
                if (r > 0)
                        r = block_write(v->m.file, entry_place(v, block), piece, count * 4);
                block += count;
        }
        return r;
}

struct usage {
        uint32_t named, next;
};

static int look_at(struct vdi *v, void *ctx, uint32_t block, uint32_t index)
{
        struct usage *usage = ctx;

        (void)block;
        if (index < v->allocated) {
                usage->named++;
                usage->next = MAX(usage->next, index + 1);
        }
        return 0;
}

static int mark_named(struct vdi *v, void *ctx, uint32_t block, uint32_t index)
{
        (void)ctx;
        (void)block;
        if (index < v->next)
                v->named[index / 8] |= (uint8_t)(1u << index % 8);
        return 0;
}

/* Which blocks of the file are free, as a crash may have left some. */
static int find_free(struct vdi *v, struct err *err)
{
        struct usage usage = { 0 };
        uint64_t size_bytes = v->m.file->info.size_bytes, blocks;
        int r = walk(v, look_at, &usage);

        v->next = usage.next;
        if (r == 0 && usage.named < usage.next && usage.next <= HOLES_MAX) {
                v->named = calloc(1, usage.next / 8 + 1);
                r = v->named ? walk(v, mark_named, NULL) : -ENOMEM;
        }
        if (r < 0)
                return err_errno(err, r, "disk %s: cannot read its map", v->m.block.path);
        blocks = size_bytes > v->data_offset ? (size_bytes - v->data_offset + stride(v) - 1) / stride(v) : 0;
        v->fresh_from = v->m.file->info.grows && blocks < ABSENT ? (uint32_t)blocks : ABSENT;
        return 0;
}

/* ---- opening and closing ---- */

static int vdi_probe(const uint8_t *head, size_t size_bytes)
{
        return size_bytes >= HEADER_BYTES && get_le32(head + TEXT_BYTES) == SIGNATURE ? 100 : 0;
}

static int parse(struct vdi *v, const uint8_t *head, struct err *err)
{
        struct cursor in = cursor_from(head + TEXT_BYTES, HEADER_BYTES - TEXT_BYTES);
        static const uint8_t nobody[32];
        const uint8_t *links;
        uint32_t version, sector;

        if (cursor_le32(&in) != SIGNATURE)
                return err_set(err, -EINVAL, "disk %s is not a VDI image", v->m.block.path);
        version = cursor_le32(&in);
        if (version != VERSION)
                return err_set(err, -EOPNOTSUPP, "disk %s is of version %u.%u of VDI; 1.1 is known", v->m.block.path, version >> 16, version & 0xffff);
        (void)cursor_le32(&in); /* the size of the header */
        v->type = cursor_le32(&in);
        (void)cursor_le32(&in); /* flags */
        (void)cursor_take(&in, 256);
        v->map_offset = cursor_le32(&in);
        v->data_offset = cursor_le32(&in);
        (void)cursor_take(&in, 12); /* cylinders, heads, sectors */
        sector = cursor_le32(&in);
        (void)cursor_le32(&in);
        v->size_bytes = cursor_le64(&in);
        v->block_bytes = cursor_le32(&in);
        v->extra = cursor_le32(&in);
        v->blocks = cursor_le32(&in);
        v->allocated = cursor_le32(&in);
        (void)cursor_take(&in, 32); /* UUIDs of the image and its last change */
        links = cursor_take(&in, 32);
        if (!links || sector != BLOCK_SECTOR)
                return err_set(err, -EINVAL, "disk %s is damaged: its header says sectors of %u bytes", v->m.block.path, sector);
        if (v->type > TYPE_STATIC || memcmp(links, nobody, sizeof(nobody)) != 0)
                return err_set(err, -EOPNOTSUPP, "disk %s holds what differs from another that VirtualBox knows by a number; only whole VDI images can be used",
                               v->m.block.path);
        return 0;
}

static int bad(struct vdi *v, struct err *err, const char *what, uint64_t value)
{
        return err_set(err, -EINVAL, "disk %s is damaged: its header says %s %" PRIu64, v->m.block.path, what, value);
}

static int check_header(struct vdi *v, struct err *err)
{
        if (v->type != TYPE_DYNAMIC && v->type != TYPE_STATIC)
                return bad(v, err, "type", v->type);
        if (!is_power_of_two(v->block_bytes) || v->block_bytes < BLOCK_BYTES_MIN || v->block_bytes > BLOCK_BYTES_MAX)
                return bad(v, err, "blocks of", v->block_bytes);
        if (v->extra % BLOCK_SECTOR || v->extra > BLOCK_BYTES_MAX)
                return bad(v, err, "bytes in front of blocks", v->extra);
        if (!v->blocks || v->blocks > BLOCKS_MAX)
                return bad(v, err, "blocks", v->blocks);
        if (v->allocated > BLOCKS_MAX)
                return bad(v, err, "taken blocks", v->allocated);
        if (!v->size_bytes || v->size_bytes > (uint64_t)v->blocks * v->block_bytes)
                return bad(v, err, "a size of", v->size_bytes);
        if (v->map_offset % BLOCK_SECTOR || v->map_offset < HEADER_BYTES || entry_place(v, v->blocks) > v->data_offset)
                return bad(v, err, "a map at", v->map_offset);
        if (v->data_offset % BLOCK_SECTOR || entry_place(v, v->blocks) > v->m.file->info.size_bytes)
                return bad(v, err, "data at", v->data_offset);
        return 0;
}

static int open_image(struct mapped *m, const struct block_opening *opening, struct err *err)
{
        struct vdi *v = to_vdi(m);
        uint8_t head[HEADER_BYTES];
        int r = block_read(v->m.file, 0, head, sizeof(head));

        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", opening->path);
        r = parse(v, head, err);
        if (r == 0)
                r = check_header(v, err);
        if (r < 0)
                return r;
        v->reserve_next = 4;
        v->m.sparse = v->type == TYPE_STATIC;
        mapped_info(&v->m, v->size_bytes, BLOCK_SECTOR, v->block_bytes);
        v->m.block.info.size_bytes = MIN(v->m.block.info.size_bytes, (uint64_t)v->blocks * v->block_bytes);
        return v->m.file->info.readonly ? 0 : find_free(v, err);
}

static void close_image(struct mapped *m)
{
        free(to_vdi(m)->named);
}

static const struct mapped_ops vdi_ops = {
        .struct_bytes = sizeof(struct vdi), .page_bytes = BLOCK_SECTOR, .open = open_image, .close = close_image, .map = vdi_map, .take = vdi_take,
        .name = vdi_name,
};

static int vdi_open(const struct block_opening *opening, struct block **block, struct err *err)
{
        return mapped_open(&block_vdi, &vdi_ops, opening, block, err);
}

/* The header says, and the file has, as much as is used. */
static int return_reserve(struct vdi *v)
{
        uint64_t end = v->data_offset + v->next * stride(v);
        int r = v->next < v->allocated ? write_allocated(v, v->next) : 0;

        if (r == 0 && v->m.file->info.grows && end < v->m.file->info.size_bytes) {
                r = block_resize(v->m.file, end, NULL);
                v->fresh_from = v->next;
        }
        return r;
}

static int vdi_finish(struct block *block, struct err *err)
{
        struct vdi *v = to_vdi(to_mapped(block));
        int r;

        if (block->info.readonly || v->m.broken)
                return 0;
        r = mapped_flush(&v->m);
        if (r == 0 && v->m.begun)
                r = return_reserve(v);
        return r < 0 ? err_errno(err, r, "cannot write the tables of disk %s", block->path) : 0;
}

static int vdi_describe(struct block *block, json_t *into)
{
        const struct vdi *v = to_vdi(to_mapped(block));
        json_t *about = json_pack("{s:s, s:i, s:I, s:I}", "type", v->type == TYPE_STATIC ? "static" : "dynamic", "block_bytes", (int)v->block_bytes,
                                  "blocks", (json_int_t)v->blocks, "allocated", (json_int_t)v->allocated);

        return about && json_object_set_new(into, "vdi", about) == 0 ? 0 : -ENOMEM;
}

/* ---- checking ---- */

struct inspection {
        struct vdi *v;
        struct block_check *check;
        struct mapped_places places;
        uint32_t before;
        bool first;
};

static int inspect(struct vdi *v, void *ctx, uint32_t block, uint32_t index)
{
        struct inspection *i = ctx;

        if (index >= v->allocated) {
                mapped_say(i->check, "block %" PRIu32 " is said to be the file's block %" PRIu32 " of %" PRIu32, block, index, v->allocated);
                i->check->errors++;
                i->check->errors_mended += i->check->mend == BLOCK_MEND_ALL;
                return i->check->mend == BLOCK_MEND_ALL;
        }
        i->check->clusters++;
        i->check->fragmented += !i->first && index != i->before + 1;
        i->first = false;
        i->before = index;
        i->check->end_bytes = MAX(i->check->end_bytes, v->data_offset + (index + 1) * stride(v));
        return mapped_places_add(&i->places, index);
}

static int note_owner(struct vdi *v, void *ctx, uint32_t block, uint32_t index)
{
        uint32_t *owner = ctx;

        if (index < v->next)
                owner[index] = block;
        return 0;
}

struct moving {
        struct vdi *v;
        uint8_t *bytes;
};

static int move_block(void *ctx, uint32_t from, uint32_t to, uint32_t block)
{
        const struct moving *moving = ctx;
        struct vdi *v = moving->v;
        uint8_t entry[4];
        int r = block_read(v->m.file, place_of(v, from), moving->bytes, v->block_bytes);

        if (r == 0)
                r = block_write(v->m.file, place_of(v, to), moving->bytes, v->block_bytes);
        if (r == 0)
                r = block_flush(v->m.file);
        put_le32(entry, to);
        if (r == 0)
                r = block_write(v->m.file, entry_place(v, block), entry, 4);
        return r == 0 ? block_flush(v->m.file) : r;
}

/* The last blocks go into the holes. Nothing of the map is in the cache, and nothing is named twice. */
static int compact(struct vdi *v)
{
        _cleanup_free_ uint32_t *owner = malloc((v->next + UINT64_C(1)) * sizeof(*owner));
        _cleanup_free_ uint8_t *bytes = malloc(v->block_bytes);
        struct moving moving = { v, bytes };
        int r;

        if (!owner || !bytes)
                return -ENOMEM;
        memset(owner, 0xff, (v->next + UINT64_C(1)) * sizeof(*owner));
        r = walk(v, note_owner, owner);
        if (r == 0)
                r = mapped_compact(owner, &v->next, move_block, &moving);
        free(v->named);
        v->named = NULL;
        return r == 0 ? return_reserve(v) : r;
}

static int vdi_check(struct block *block, struct block_check *check, struct err *err)
{
        struct vdi *v = to_vdi(to_mapped(block));
        struct inspection i = { .v = v, .check = check, .first = true };
        int r = mapped_flush(&v->m);
        size_t clashes;

        table_cache_forget(&v->m.cache, v->m.file, v->map_offset, v->blocks * 4ull);
        check->end_bytes = v->data_offset;
        if (r == 0)
                r = walk(v, inspect, &i);
        clashes = mapped_places_clash(&i.places, 1);
        if (clashes)
                mapped_say(check, "%zu blocks of the guest are where others are", clashes);
        check->errors += clashes;
        check->leaks += v->allocated - MIN(i.places.count - clashes, (size_t)v->allocated);
        mapped_places_done(&i.places);
        if (r == 0 && check->mend && check->leaks && !clashes) {
                r = compact(v);
                check->leaks_mended += r == 0 ? check->leaks : 0;
        }
        if (r == 0 && check->mend)
                r = block_flush(v->m.file);
        return r < 0 ? err_errno(err, r, "cannot check disk %s", block->path) : 0;
}

/* ---- another size ---- */

static int write_geometry(struct vdi *v)
{
        uint8_t bytes[24];

        put_le64(bytes, v->size_bytes);
        put_le32(bytes + 8, v->block_bytes);
        put_le32(bytes + 12, v->extra);
        put_le32(bytes + 16, v->blocks);
        put_le32(bytes + 20, v->allocated);
        return block_write(v->m.file, AT_SIZE, bytes, sizeof(bytes));
}

/* Entries of the map that come in: nowhere. */
static int clear_entries(struct vdi *v, uint32_t from, uint32_t to)
{
        _cleanup_free_ uint8_t *bytes = malloc(SCAN_BYTES);
        int r = bytes ? 0 : -ENOMEM;

        if (bytes)
                memset(bytes, 0xff, SCAN_BYTES);
        while (from < to && r == 0) {
                uint32_t some = MIN(to - from, SCAN_BYTES / 4);

                r = block_write(v->m.file, entry_place(v, from), bytes, some * 4);
                from += some;
        }
        return r == 0 ? block_flush(v->m.file) : r;
}

static int vdi_resize(struct block *block, uint64_t size_bytes, struct err *err)
{
        struct vdi *v = to_vdi(to_mapped(block));
        uint64_t old = v->size_bytes, blocks;
        uint32_t old_blocks = v->blocks;
        int r;

        size_bytes = align_up(size_bytes, BLOCK_SECTOR);
        blocks = (size_bytes + v->block_bytes - 1) / v->block_bytes;
        if (v->m.broken)
                return err_set(err, -EIO, "disk %s is damaged", block->path);
        if (blocks > BLOCKS_MAX || entry_place(v, blocks) > v->data_offset)
                return err_set(err, -EFBIG, "disk %s: its map has room for %" PRIu64 " bytes; convert it to have more", block->path,
                               (uint64_t)(v->data_offset - v->map_offset) / 4 * v->block_bytes);
        r = mapped_flush(&v->m);
        table_cache_forget(&v->m.cache, v->m.file, v->map_offset, MAX(blocks, (uint64_t)old_blocks) * 4);
        if (r == 0 && blocks > old_blocks)
                r = clear_entries(v, old_blocks, (uint32_t)blocks);
        if (r == 0) {
                v->size_bytes = size_bytes;
                v->blocks = (uint32_t)blocks;
                block->info.size_bytes = size_bytes;
                r = write_geometry(v);
        }
        if (r == 0)
                r = block_flush(v->m.file);
        if (r == 0)
                r = blocks < old_blocks ? compact(v) : mapped_zero_tail(&v->m, old, v->block_bytes);
        return r < 0 ? err_errno(err, r, "cannot give disk %s %" PRIu64 " bytes", block->path, size_bytes) : 0;
}

/* ---- new images ---- */

static const struct block_option_about vdi_options[] = {
        { "block_size", "SIZE", "what space is taken by: 4K to 64M, a power of two; default, and all that QEMU knows: 1M" },
        { "static", "on|off", "all blocks have their places from the beginning; default: off" },
        { NULL, NULL, NULL },
};

struct choice {
        uint32_t block_bytes;
        bool fixed;
};

static int take_option(const struct block_option *o, void *into, struct err *err)
{
        struct choice *choice = into;

        if (strcmp(o->key, "block_size") == 0)
                return mapped_option_block(o, BLOCK_BYTES_MIN, BLOCK_BYTES_MAX, &choice->block_bytes, err);
        if (strcmp(o->key, "static") == 0)
                return mapped_option_switch(o, "off", "on", &choice->fixed, err);
        return err_set(err, -EINVAL, "option %s: VDI has none of this name", o->key);
}

static int write_map(struct block *file, uint32_t offset, uint32_t blocks, bool fixed)
{
        _cleanup_free_ uint8_t *piece = malloc(SCAN_BYTES);
        int r = piece ? 0 : -ENOMEM;

        for (uint32_t block = 0; block < blocks && r == 0;) {
                uint32_t count = MIN(blocks - block, SCAN_BYTES / 4);

                for (uint32_t n = 0; n < count; n++)
                        put_le32(piece + n * 4, fixed ? block + n : ABSENT);
                r = block_write(file, offset + block * 4ull, piece, count * 4);
                block += count;
        }
        return r;
}

static int vdi_create(struct block *file, const struct block_creation *creation, struct err *err)
{
        uint64_t size_bytes = align_up(creation->size_bytes, BLOCK_SECTOR), blocks, data;
        struct choice choice = { .block_bytes = BLOCK_BYTES_DEFAULT };
        static const char text[] = "<<< Oracle VM VirtualBox Disk Image >>>\n";
        uint8_t head[HEADER_BYTES] = { 0 };
        int r = mapped_take_options(creation, "VDI", take_option, &choice, err);

        if (r < 0)
                return r;
        blocks = (size_bytes + choice.block_bytes - 1) / choice.block_bytes;
        if (blocks > BLOCKS_MAX)
                return err_set(err, -EFBIG, "%" PRIu64 " bytes are more than a VDI image can have", creation->size_bytes);
        data = align_up(HEADER_BYTES + blocks * 4, DATA_ALIGNMENT);
        memcpy(head, text, sizeof(text) - 1);
        put_le32(head + 0x40, SIGNATURE);
        put_le32(head + 0x44, VERSION);
        put_le32(head + 0x48, 0x190);
        put_le32(head + 0x4c, choice.fixed ? TYPE_STATIC : TYPE_DYNAMIC);
        put_le32(head + 0x154, HEADER_BYTES);
        put_le32(head + 0x158, (uint32_t)data);
        put_le32(head + 0x168, BLOCK_SECTOR);
        put_le64(head + AT_SIZE, size_bytes);
        put_le32(head + 0x178, choice.block_bytes);
        put_le32(head + AT_BLOCKS, (uint32_t)blocks);
        put_le32(head + AT_ALLOCATED, choice.fixed ? (uint32_t)blocks : 0);
        r = mapped_new_uuid(head + 0x188);
        if (r == 0)
                r = mapped_new_uuid(head + 0x198);
        if (r < 0)
                return err_errno(err, r, "cannot make a number for the image");
        r = block_make_empty(file, data + (choice.fixed ? blocks * choice.block_bytes : 0), err);
        if (r < 0)
                return r;
        r = write_map(file, HEADER_BYTES, (uint32_t)blocks, choice.fixed);
        if (r == 0)
                r = block_flush(file);
        if (r == 0)
                r = block_write(file, 0, head, sizeof(head));
        return r < 0 ? err_errno(err, r, "cannot write") : 0;
}

const struct block_driver block_vdi = {
        .name = "vdi",
        .text = "VirtualBox's format: grows as it is written to, or static",
        .suffixes = (const char *const[]){ ".vdi", NULL },
        .probe = vdi_probe,
        .open = vdi_open,
        .options = vdi_options,
        .create = vdi_create,
        .check = vdi_check,
        .finish = vdi_finish,
        .close = mapped_close,
        .submit = mapped_submit,
        .status = mapped_status,
        .describe = vdi_describe,
        .resize = vdi_resize,
};
