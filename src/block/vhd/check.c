/* Whether blocks lie apart from each other and within the file, and the footers agree; see image.h. */
#include <errno.h>
#include <inttypes.h>

#include "block/vhd/image.h"

struct inspection {
        struct block_check *check;
        struct mapped_places places;
        uint64_t before;
};

static int inspect(struct vhd *v, void *ctx, uint32_t block, uint32_t entry)
{
        uint64_t at = (uint64_t)entry * VHD_SECTOR;
        struct inspection *i = ctx;

        if (!vhd_entry_good(v, entry)) {
                mapped_say(i->check, "block %" PRIu32 " is said to be at sector %" PRIu32, block, entry);
                i->check->errors++;
                i->check->errors_mended += i->check->mend == BLOCK_MEND_ALL;
                return i->check->mend == BLOCK_MEND_ALL;
        }
        i->check->clusters++;
        i->check->fragmented += i->before && at != i->before + vhd_stride(v);
        i->before = at;
        i->check->end_bytes = MAX(i->check->end_bytes, at + vhd_stride(v));
        return mapped_places_add(&i->places, entry);
}

struct moving {
        struct vhd *v;
        uint8_t *bytes;
};

static uint64_t slot_place(const struct vhd *v, uint32_t slot)
{
        return v->first + slot * vhd_stride(v);
}

static int move_block(void *ctx, uint32_t from, uint32_t to, uint32_t block)
{
        const struct moving *moving = ctx;
        struct vhd *v = moving->v;
        uint8_t entry[4];
        int r = block_read(v->m.file, slot_place(v, from), moving->bytes, vhd_stride(v));

        if (r == 0)
                r = block_write(v->m.file, slot_place(v, to), moving->bytes, vhd_stride(v));
        if (r == 0)
                r = block_flush(v->m.file);
        put_be32(entry, (uint32_t)(slot_place(v, to) / VHD_SECTOR));
        if (r == 0)
                r = block_write(v->m.file, vhd_entry_place(v, block), entry, 4);
        return r == 0 ? block_flush(v->m.file) : r;
}

/* -EXDEV: blocks are not side by side, as somebody else laid them out. */
static int note_owner(struct vhd *v, void *ctx, uint32_t block, uint32_t entry)
{
        uint64_t at = (uint64_t)entry * VHD_SECTOR - v->first;
        uint32_t *owner = ctx;

        if (at % vhd_stride(v))
                return -EXDEV;
        owner[at / vhd_stride(v)] = block;
        return 0;
}

int vhd_compact(struct vhd *v, uint64_t end)
{
        uint32_t count = (uint32_t)((end - v->first) / vhd_stride(v));
        _cleanup_free_ uint32_t *owner = malloc((count + UINT64_C(1)) * sizeof(*owner));
        _cleanup_free_ uint8_t *bytes = malloc(vhd_stride(v));
        struct moving moving = { v, bytes };
        int r;

        if (!owner || !bytes)
                return -ENOMEM;
        memset(owner, 0xff, (count + UINT64_C(1)) * sizeof(*owner));
        r = vhd_walk(v, note_owner, owner);
        if (r == 0)
                r = mapped_compact(owner, &count, move_block, &moving);
        if (r == 0)
                v->end = slot_place(v, count);
        v->reserved = UINT64_MAX; /* wherever the footer is: it is written anew */
        return r;
}

/* The footer at the end: that of the beginning again, where it is. */
static int check_end(struct vhd *v, struct block_check *check)
{
        uint8_t footer[VHD_FOOTER_BYTES];
        uint64_t at = v->m.file->info.size_bytes - VHD_FOOTER_BYTES;
        int r = block_read(v->m.file, at, footer, sizeof(footer));

        if (r < 0 || memcmp(footer, v->footer, sizeof(footer)) == 0)
                return r;
        mapped_say(check, "the footer at the end is not that of the beginning");
        check->leaks++; /* nothing of the disk's is lost */
        return 0;
}

int vhd_check(struct block *block, struct block_check *check, struct err *err)
{
        struct vhd *v = to_vhd(to_mapped(block));
        struct inspection i = { .check = check };
        uint64_t room, middle = 0;
        size_t clashes;
        int r = mapped_flush(&v->m);

        if (v->type == VHD_FIXED)
                return r < 0 ? err_errno(err, r, "cannot check disk %s", block->path) : 0;
        table_cache_forget(&v->m.cache, v->m.file, v->table_offset, v->entries * 4ull);
        check->end_bytes = v->end = v->first;
        if (r == 0)
                r = vhd_walk(v, inspect, &i);
        clashes = mapped_places_clash(&i.places, vhd_stride(v) / VHD_SECTOR);
        if (clashes)
                mapped_say(check, "%zu blocks of the guest lie over others", clashes);
        check->errors += clashes;
        room = (check->end_bytes - v->first) / vhd_stride(v);
        if (room > i.places.count) {
                mapped_say(check, "%" PRIu64 " blocks in the middle belong to nobody", room - i.places.count);
                middle = room - i.places.count;
                check->leaks += middle;
        }
        mapped_places_done(&i.places);
        room = v->m.file->info.size_bytes - VHD_FOOTER_BYTES;
        if (room > check->end_bytes && room - check->end_bytes >= vhd_stride(v)) {
                uint64_t lost = (room - check->end_bytes) / vhd_stride(v);

                check->leaks += lost;
                check->leaks_mended += check->mend ? lost : 0;
        }
        if (r == 0 && v->m.file->info.grows) {
                uint64_t before = check->leaks;

                r = check_end(v, check);
                check->leaks_mended += check->mend ? check->leaks - before : 0;
        }
        v->end = check->end_bytes;
        if (r == 0 && check->mend && middle && check->errors == check->errors_mended) {
                r = vhd_compact(v, v->end);
                check->leaks_mended += r == 0 ? middle : 0;
                r = r == -EXDEV ? 0 : r;
        }
        if (r == 0 && check->mend) {
                v->reserved = UINT64_MAX;
                r = vhd_cut(v);
        }
        return r < 0 ? err_errno(err, r, "cannot check disk %s", block->path) : 0;
}
