/*
 * Whether tables and grains lie within their files and apart from each other, and both copies of the tables agree. Mending takes entries
 * away that name impossible places, writes the second copy as the first is, and cuts off grains that a crash left at the end.
 */
#include <errno.h>
#include <inttypes.h>

#include "block/vmdk/image.h"

struct walk {
        struct vmdk *v;
        struct vmdk_extent *e;
        struct block_check *check;
        struct mapped_places places;
        uint64_t end, before;
        uint64_t differ;
        bool mend;
};

static bool wrong(struct walk *w, const char *what, uint64_t n, uint32_t sector)
{
        mapped_say(w->check, "%s: %s %" PRIu64 " is said to be at sector %" PRIu32, w->e->file->path, what, n, sector);
        w->check->errors++;
        w->check->errors_mended += w->mend;
        return w->mend;
}

/* 1: it is to be taken away. */
static int walk_entry(struct walk *w, uint64_t grain, uint32_t sector)
{
        bool packed = w->e->header.flags & VMDK_FLAG_COMPRESSED;

        if (!sector || vmdk_is_zeroed(w->e, sector))
                return 0;
        if (!vmdk_grain_good(w->e, sector))
                return wrong(w, "grain", grain, sector);
        w->check->clusters++;
        w->check->compressed += packed;
        w->check->fragmented += !packed && w->before && sector != w->before + w->e->header.grain;
        w->before = sector;
        w->end = MAX(w->end, (uint64_t)sector * VMDK_SECTOR + (packed ? VMDK_SECTOR : w->e->grain_bytes));
        return mapped_places_add(&w->places, sector);
}

/* A whole table, and the second copy of it when there is one. */
static int walk_table(struct walk *w, uint64_t n, uint32_t table, uint32_t second)
{
        uint32_t count = w->e->header.table_entries;
        uint64_t grains = (w->e->header.capacity + w->e->header.grain - 1) / w->e->header.grain, first = n * count, differ = 0;
        _cleanup_free_ uint8_t *bytes = malloc(count * UINT64_C(8));
        int r = bytes ? block_read(w->e->file, (uint64_t)table * VMDK_SECTOR, bytes, count * 4) : -ENOMEM;

        if (r == 0 && second)
                r = block_read(w->e->file, (uint64_t)second * VMDK_SECTOR, bytes + count * 4ull, count * 4);
        w->end = MAX(w->end, (uint64_t)MAX(table, second) * VMDK_SECTOR + count * 4ull);
        for (uint32_t k = 0; k < count && first + k < grains && r >= 0; k++) {
                int away = walk_entry(w, first + k, get_le32(bytes + k * 4ull));

                if (away > 0)
                        put_le32(bytes + k * 4ull, 0);
                r = away ? away : r;
                differ += second && get_le32(bytes + (count + k) * 4ull) != get_le32(bytes + k * 4ull);
        }
        w->differ += differ;
        if (r > 0)
                r = block_write(w->e->file, (uint64_t)table * VMDK_SECTOR, bytes, count * 4);
        if (r == 0 && differ && w->check->mend)
                r = block_write(w->e->file, (uint64_t)second * VMDK_SECTOR, bytes, count * 4);
        return r;
}

/*
 * Tables that lie over others: how many. Where there are any they are not walked through, for thousands of names of one table would take
 * forever, and as much memory.
 */
static int count_shared(struct walk *w, uint64_t *shared)
{
        uint64_t length = (w->e->header.table_entries * 4ull + VMDK_SECTOR - 1) / VMDK_SECTOR;
        struct mapped_places tables = { 0 };
        int r = 0;

        for (uint64_t n = 0; n < w->e->directory_entries && r == 0; n++) {
                uint32_t table;

                r = mapped_entry(&w->v->m, w->e->file, w->e->header.directory_offset * VMDK_SECTOR + n * 4, 4, true, &table);
                if (r == 0 && vmdk_table_good(w->e, table))
                        r = mapped_places_add(&tables, table);
        }
        *shared = mapped_places_clash(&tables, length);
        mapped_places_done(&tables);
        return r;
}

static int walk_directory(struct walk *w)
{
        const struct vmdk_header *h = &w->e->header;
        bool redundant = h->flags & VMDK_FLAG_REDUNDANT && h->redundant_offset;
        uint64_t shared;
        int r = count_shared(w, &shared);

        if (r == 0 && shared) {
                mapped_say(w->check, "%s: %" PRIu64 " tables lie over others", w->e->file->path, shared);
                w->check->errors += shared;
                w->end = w->e->end;
                return 0;
        }
        w->end = MAX(h->overhead, MAX(h->directory_offset, redundant ? h->redundant_offset : 0)) * VMDK_SECTOR;
        for (uint64_t n = 0; n < w->e->directory_entries && r == 0; n++) {
                uint32_t table, second = 0;

                r = mapped_entry(&w->v->m, w->e->file, h->directory_offset * VMDK_SECTOR + n * 4, 4, true, &table);
                if (r == 0 && redundant)
                        r = mapped_entry(&w->v->m, w->e->file, h->redundant_offset * VMDK_SECTOR + n * 4, 4, true, &second);
                if (r < 0)
                        return r;
                if (table && !vmdk_table_good(w->e, table)) {
                        if (wrong(w, "table", n, table))
                                r = mapped_set_entry(&w->v->m, w->e->file, h->directory_offset * VMDK_SECTOR + n * 4, 4, false, (uint8_t[4]){ 0 });
                } else if (table) {
                        r = walk_table(w, n, table, vmdk_table_good(w->e, second) && second != table ? second : 0);
                }
        }
        return r;
}

static int check_extent(struct vmdk *v, struct vmdk_extent *e, struct block_check *check)
{
        struct walk w = { .v = v, .e = e, .check = check, .mend = check->mend == BLOCK_MEND_ALL };
        bool packed = e->header.flags & VMDK_FLAG_COMPRESSED;
        int r = walk_directory(&w);
        uint64_t lost;
        size_t clashes;

        if (r == 0) {
                clashes = mapped_places_clash(&w.places, packed ? 1 : e->header.grain);
                if (clashes)
                        mapped_say(check, "%s: %zu grains lie over others", e->file->path, clashes);
                check->errors += clashes;
                if (w.differ)
                        mapped_say(check, "%s: %" PRIu64 " entries of the redundant tables are not those of the tables", e->file->path, w.differ);
                check->leaks += w.differ;
                check->leaks_mended += check->mend ? w.differ : 0;
                lost = packed || e->end <= w.end ? 0 : (e->end - w.end) / e->grain_bytes;
                check->leaks += lost;
                if (lost && check->mend && e->file->info.grows) {
                        r = block_resize(e->file, w.end, NULL);
                        e->end = w.end;
                        check->leaks_mended += r == 0 ? lost : 0;
                }
        }
        check->end_bytes = MAX(check->end_bytes, w.end);
        mapped_places_done(&w.places);
        return r;
}

int vmdk_check(struct block *block, struct block_check *check, struct err *err)
{
        struct vmdk *v = to_vmdk(to_mapped(block));
        int r = mapped_flush(&v->m);

        for (unsigned n = 0; n < v->extents && r == 0; n++)
                if (v->extent[n].kind == VMDK_SPARSE)
                        r = check_extent(v, &v->extent[n], check);
        if (r == 0)
                r = table_cache_write(&v->m.cache);
        table_cache_done(&v->m.cache); /* what was mended otherwise is not in it */
        if (r == 0 && check->mend)
                r = v->m.ops->flush(&v->m);
        return r < 0 ? err_errno(err, r, "cannot check disk %s", block->path) : 0;
}
