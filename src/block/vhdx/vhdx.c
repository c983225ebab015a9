/* VHDX images: opening, closing, requests; see image.h. */
#include <errno.h>
#include <inttypes.h>

#include "block/vhdx/image.h"

/* ---- requests ---- */

static bool place_good(const struct vhdx *v, uint64_t offset, uint64_t size_bytes)
{
        return offset >= VHDX_MIB && size_bytes <= v->m.file->info.size_bytes && offset <= v->m.file->info.size_bytes - size_bytes;
}

static int get_entry(struct vhdx *v, uint64_t block, bool wait, uint64_t *entry)
{
        int r = mapped_entry(&v->m, v->m.file, vhdx_entry_place(v, block), 8, wait, entry);
        enum vhdx_state state;

        if (r < 0)
                return r;
        state = vhdx_state_of(*entry);
        if (state == 4 || state == 5 || (state == VHDX_PARTIAL && !v->differencing))
                return mapped_corrupt(&v->m, "block %" PRIu64 " is in state %d", block, state);
        if ((state == VHDX_PRESENT || state == VHDX_PARTIAL) && !place_good(v, vhdx_offset_of(*entry), v->block_bytes))
                return mapped_corrupt(&v->m, "block %" PRIu64 " is said to be at byte %" PRIu64, block, vhdx_offset_of(*entry));
        return 0;
}

static enum mapped_kind kind_of(uint64_t entry)
{
        enum vhdx_state state = vhdx_state_of(entry);

        return state == VHDX_PRESENT || state == VHDX_PARTIAL ? MAPPED_DATA : state == VHDX_NOT_PRESENT ? MAPPED_ABSENT : MAPPED_ZEROES;
}

/* How far sectors of a block that is there in part are like the first (§2.5.2). */
static int look_at_bits(struct vhdx *v, uint64_t at, uint64_t size_bytes, bool wait, bool *there, uint64_t *same)
{
        uint64_t sector = at / v->sector_bytes % (UINT64_C(1) << 23), first = sector, end, entry;
        uint64_t chunk_at = at - at % v->sector_bytes - sector * v->sector_bytes;
        int r = mapped_entry(&v->m, v->m.file, vhdx_bitmap_entry_place(v, at / v->block_bytes), 8, wait, &entry);

        if (r < 0)
                return r;
        if (vhdx_state_of(entry) != VHDX_PRESENT || !place_good(v, vhdx_offset_of(entry), VHDX_MIB))
                return mapped_corrupt(&v->m, "the bitmap of block %" PRIu64 " is nowhere", at / v->block_bytes);
        end = (at + size_bytes - chunk_at + v->sector_bytes - 1) / v->sector_bytes;
        while (sector < end) {
                uint8_t bits[512];

                r = mapped_entry(&v->m, v->m.file, vhdx_offset_of(entry) + sector / 8 / sizeof(bits) * sizeof(bits), sizeof(bits), wait, bits);
                if (r < 0 && (sector == first || wait))
                        return r;
                if (r < 0)
                        break;
                do {
                        bool set = bits[sector / 8 % sizeof(bits)] >> sector % 8 & 1;

                        if (sector == first)
                                *there = set;
                        if (set != *there)
                                end = sector;
                } while (sector < end && ++sector % (sizeof(bits) * 8));
        }
        *same = MIN(size_bytes, chunk_at + sector * v->sector_bytes - at);
        return 0;
}

static int vhdx_map(struct mapped *m, uint64_t at, uint64_t size_bytes, bool wait, struct mapped_run *run)
{
        struct vhdx *v = to_vhdx(m);
        uint64_t block = at / v->block_bytes, inside = at % v->block_bytes, known = v->block_bytes - inside, first, next;
        bool there = true;
        int r = get_entry(v, block, wait, &first);

        if (r < 0)
                return r;
        *run = (struct mapped_run){ .kind = kind_of(first), .in = m->file };
        if (run->kind == MAPPED_DATA)
                run->host = vhdx_offset_of(first) + inside;
        if (vhdx_state_of(first) == VHDX_PARTIAL) {
                r = look_at_bits(v, at, MIN(known, size_bytes), wait, &there, &run->size_bytes);
                run->kind = there ? MAPPED_DATA : MAPPED_ABSENT;
                return r;
        }
        for (uint64_t n = 1; known < size_bytes; n++, known += v->block_bytes) {
                if (get_entry(v, block + n, false, &next) < 0 || kind_of(next) != run->kind || vhdx_state_of(next) == VHDX_PARTIAL)
                        break;
                if (run->kind == MAPPED_DATA && vhdx_offset_of(next) != vhdx_offset_of(first) + n * v->block_bytes)
                        break;
        }
        run->size_bytes = MIN(known, size_bytes);
        return 0;
}

/* At the end of the file, which is made longer: how long it is, is part of what the log says. */
static int vhdx_take(struct mapped *m, uint64_t at, uint64_t size_bytes, struct mapped_place *place)
{
        struct vhdx *v = to_vhdx(m);
        uint64_t block = at / v->block_bytes, count = (at + size_bytes - 1) / v->block_bytes + 1 - block, host = v->end;
        int r = 0;

        if (host + count * v->block_bytes > m->file->info.size_bytes)
                r = m->file->info.grows ? block_resize(m->file, host + count * v->block_bytes, NULL) : -ENOSPC;
        if (r < 0)
                return r;
        *place = (struct mapped_place){
                .first = block * v->block_bytes, .end = MIN((block + count) * v->block_bytes, v->size_bytes), .in = m->file, .host = host,
                .fresh = host >= v->fresh_from,
        };
        v->fresh_from = MAX(v->fresh_from, host + count * v->block_bytes);
        return 0;
}

static int vhdx_name(struct mapped *m, const struct mapped_place *place)
{
        struct vhdx *v = to_vhdx(m);
        uint64_t host = place->host;
        int r = 0;

        v->end = host + (place->end - place->first + v->block_bytes - 1) / v->block_bytes * v->block_bytes;
        for (uint64_t at = place->first; at < place->end && r == 0; at += v->block_bytes, host += v->block_bytes) {
                uint8_t entry[8];

                put_le64(entry, host | VHDX_PRESENT);
                r = mapped_set_entry(m, m->file, vhdx_entry_place(v, at / v->block_bytes), 8, true, entry);
        }
        return r;
}

/* How long the file is on stable storage is part of what the log says, too. */
static int barrier(struct table_cache *cache)
{
        struct vhdx *v = to_vhdx(container_of(cache, struct mapped, cache));
        uint64_t end = v->end;
        int r = block_flush(v->m.file);

        if (r == 0)
                v->flushed_end = MAX(v->flushed_end, end);
        return r;
}

int vhdx_begin(struct mapped *m)
{
        struct vhdx *v = to_vhdx(m);
        int r = mapped_new_uuid(v->data_guid);

        if (r == 0)
                r = mapped_new_uuid(v->log_guid);
        v->log_head = 0;
        v->log_sequence = 1;
        return r == 0 ? vhdx_write_header(v, true) : r;
}

/* ---- opening ---- */

static int vhdx_probe(const uint8_t *head, size_t size_bytes)
{
        return size_bytes >= 8 && memcmp(head, "vhdxfile", 8) == 0 ? 100 : 0;
}

static int open_image(struct mapped *m, const struct block_opening *opening, struct err *err)
{
        struct vhdx *v = to_vhdx(m);
        const struct block_info *file = &v->m.file->info;
        uint8_t head[8];
        int r = block_read(v->m.file, 0, head, sizeof(head));

        m->cache.journal = vhdx_journal;
        m->cache.barrier = barrier;
        vhdx_crc_init(v->crc);
        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", opening->path);
        if (!vhdx_probe(head, sizeof(head)))
                return err_set(err, -EINVAL, "disk %s is not a VHDX image", opening->path);
        r = vhdx_read_headers(v, err);
        if (r == 0)
                r = vhdx_replay(v, err);
        if (r == 0)
                r = vhdx_read_metadata(v, err);
        if (r < 0)
                return r;
        v->m.sparse = v->fixed;
        v->end = align_up(file->size_bytes, VHDX_MIB);
        v->flushed_end = align_down(file->size_bytes, VHDX_MIB);
        v->fresh_from = file->grows ? v->end : UINT64_MAX;
        mapped_info(&v->m, v->size_bytes, v->sector_bytes, v->block_bytes);
        v->m.block.info.physical_bytes = MAX(v->m.block.info.physical_bytes, v->physical_bytes);
        if (v->differencing && !file->readonly)
                return err_set(err, -EROFS, "disk %s is a differencing VHDX image; such are only read: open it read-only, or convert it", opening->path);
        return v->differencing && !(opening->flags & BLOCK_OPEN_NO_BACKING) ? vhdx_open_parent(v, opening, err) : 0;
}

/* The log's, in memory: they are pinned. */
static void close_image(struct mapped *m)
{
        for (struct table_page *page = m->cache.oldest; page; page = page->newer)
                page->pins = 0;
}

static const struct mapped_ops vhdx_ops = {
        .struct_bytes = sizeof(struct vhdx), .page_bytes = TABLE_PAGE_BYTES, .open = open_image, .close = close_image, .map = vhdx_map, .take = vhdx_take,
        .name = vhdx_name, .begin = vhdx_begin,
};

static int vhdx_open(const struct block_opening *opening, struct block **block, struct err *err)
{
        return mapped_open(&block_vhdx, &vhdx_ops, opening, block, err);
}

int vhdx_finish_log(struct vhdx *v)
{
        int r = v->m.begun ? mapped_flush(&v->m) : 0;

        if (r == 0 && v->m.begun) { /* pages are in their places on stable storage: the log is not needed */
                memset(v->log_guid, 0, sizeof(v->log_guid));
                r = vhdx_write_header(v, false);
                v->m.begun = false;
                v->in_place = false;
        }
        return r;
}

static int vhdx_finish(struct block *block, struct err *err)
{
        struct vhdx *v = to_vhdx(to_mapped(block));
        int r = block->info.readonly || v->m.broken ? 0 : vhdx_finish_log(v);

        return r < 0 ? err_errno(err, r, "cannot write the tables of disk %s", block->path) : 0;
}

static int vhdx_describe(struct block *block, json_t *into)
{
        static const uint8_t nobody[16];
        const struct vhdx *v = to_vhdx(to_mapped(block));
        json_t *about = json_pack("{s:s, s:I, s:i, s:i, s:b}", "type", v->differencing ? "differencing" : v->fixed ? "fixed" : "dynamic",
                                  "block_bytes", (json_int_t)v->block_bytes, "logical_sector_bytes", (int)v->sector_bytes, "physical_sector_bytes",
                                  (int)v->physical_bytes, "log_to_replay", memcmp(v->log_guid, nobody, 16) != 0);

        if (about && v->m.backing)
                json_object_set_new(about, "backing", json_string(v->m.backing->path));
        return about && json_object_set_new(into, "vhdx", about) == 0 ? 0 : -ENOMEM;
}

const struct block_driver block_vhdx = {
        .name = "vhdx",
        .text = "Hyper-V's format: grows as it is written to, with a log; differencing (read)",
        .suffixes = (const char *const[]){ ".vhdx", NULL },
        .probe = vhdx_probe,
        .open = vhdx_open,
        .options = vhdx_options,
        .create = vhdx_create,
        .check = vhdx_check,
        .finish = vhdx_finish,
        .close = mapped_close,
        .submit = mapped_submit,
        .status = mapped_status,
        .describe = vhdx_describe,
        .resize = vhdx_resize,
};
