/*
 * Whether blocks lie within the file and apart from each other. Mending makes entries absent that name impossible places, and cuts off what a
 * crash left at the end; it changes the table through the log, as everybody.
 */
#include <errno.h>
#include <inttypes.h>

#include "block/vhdx/image.h"

struct walk {
        struct vhdx *v;
        struct block_check *check;
        struct mapped_places places;
        uint64_t end, before;
};

static bool possible(const struct walk *w, uint64_t entry)
{
        uint64_t at = vhdx_offset_of(entry), size_bytes = w->v->m.file->info.size_bytes;

        return at >= VHDX_MIB && size_bytes >= w->v->block_bytes && at <= size_bytes - w->v->block_bytes;
}

static int wrong(struct walk *w, uint64_t block, uint64_t entry)
{
        int r = 0;

        mapped_say(w->check, "block %" PRIu64 " is said to be at byte %" PRIu64 ", in state %d", block, vhdx_offset_of(entry), vhdx_state_of(entry));
        w->check->errors++;
        if (w->check->mend != BLOCK_MEND_ALL)
                return 0;
        if (!w->v->m.begun)
                r = vhdx_begin(&w->v->m);
        w->v->m.begun |= r == 0;
        if (r == 0)
                r = mapped_set_entry(&w->v->m, w->v->m.file, vhdx_entry_place(w->v, block), 8, false, (uint8_t[8]){ 0 });
        w->check->errors_mended += r == 0;
        return r;
}

static int walk_block(struct walk *w, uint64_t block)
{
        enum vhdx_state state;
        uint64_t entry, at;
        int r = mapped_entry(&w->v->m, w->v->m.file, vhdx_entry_place(w->v, block), 8, true, &entry);

        if (r < 0)
                return r;
        state = vhdx_state_of(entry);
        if (state < VHDX_PRESENT && state != 4 && state != 5)
                return 0;
        if (state == 4 || state == 5 || (state == VHDX_PARTIAL && !w->v->differencing) || !possible(w, entry))
                return wrong(w, block, entry);
        at = vhdx_offset_of(entry);
        w->check->clusters++;
        w->check->fragmented += w->before && at != w->before + w->v->block_bytes;
        w->before = at;
        w->end = MAX(w->end, at + w->v->block_bytes);
        return mapped_places_add(&w->places, at / VHDX_MIB);
}

/* Bitmap blocks, of differencing images. */
static int walk_bitmaps(struct walk *w)
{
        int r = 0;

        for (uint64_t block = 0; w->v->differencing && block < w->v->blocks && r == 0; block += w->v->ratio) {
                uint64_t entry;

                r = mapped_entry(&w->v->m, w->v->m.file, vhdx_bitmap_entry_place(w->v, block), 8, true, &entry);
                if (r == 0 && vhdx_state_of(entry) == VHDX_PRESENT)
                        w->end = MAX(w->end, vhdx_offset_of(entry) + VHDX_MIB);
        }
        return r;
}

int vhdx_check(struct block *block, struct block_check *check, struct err *err)
{
        struct vhdx *v = to_vhdx(to_mapped(block));
        struct walk w = { .v = v, .check = check };
        uint64_t lost;
        size_t clashes;
        int r = mapped_flush(&v->m);

        w.end = MAX(v->log_offset + v->log_bytes, MAX(v->bat_offset + v->bat_bytes, v->metadata_offset + v->metadata_bytes));
        for (uint64_t n = 0; n < v->blocks && r == 0; n++)
                r = walk_block(&w, n);
        if (r == 0)
                r = walk_bitmaps(&w);
        clashes = mapped_places_clash(&w.places, v->block_bytes / VHDX_MIB);
        mapped_places_done(&w.places);
        if (clashes)
                mapped_say(check, "%zu blocks of the guest lie over others", clashes);
        check->errors += clashes;
        check->end_bytes = w.end;
        lost = v->end > w.end ? (v->end - w.end) / v->block_bytes : 0;
        check->leaks += lost;
        if (r == 0 && check->mend)
                r = vhdx_finish_log(v);
        if (r == 0 && lost && check->mend && v->m.file->info.grows) {
                r = block_resize(v->m.file, w.end, NULL);
                v->end = w.end;
                v->flushed_end = MIN(v->flushed_end, v->end);
                check->leaks_mended += r == 0 ? lost : 0;
        }
        return r < 0 ? err_errno(err, r, "cannot check disk %s", block->path) : 0;
}
