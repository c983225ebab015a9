/*
 * The log of a VHDX image (§2.3): a ring of entries, each of whole sectors of 4 KiB.
 *
 *      header, descriptors (rounded up) · data sectors, one for each data descriptor
 *
 * The active sequence is the one whose last entry has the highest number, of those that are whole from the tail that this entry names.
 */
#include <errno.h>
#include <inttypes.h>

#include "block/vhdx/image.h"

#define ENTRY_HEADER_BYTES 64u
#define DESCRIPTOR_BYTES 32u
#define OVERLAY_PAGES_MAX 16384u /* of a read-only image, in memory */

struct ring {
        struct vhdx *v;
        uint8_t *bytes;   /* twice, so that an entry that goes round is in one piece */
        uint32_t size_bytes;
        unsigned pages;   /* put into memory */
};

/* ---- finding ---- */

static uint32_t descriptor_area(uint32_t count)
{
        return (uint32_t)align_up(ENTRY_HEADER_BYTES + (uint64_t)count * DESCRIPTOR_BYTES, VHDX_LOG_SECTOR);
}

static uint32_t data_sectors(const uint8_t *entry)
{
        uint32_t count = get_le32(entry + 24), found = 0;

        for (uint32_t n = 0; n < count; n++)
                found += memcmp(entry + ENTRY_HEADER_BYTES + n * DESCRIPTOR_BYTES, "desc", 4) == 0;
        return found;
}

/* NULL: there is none at that place. */
static const uint8_t *entry_at(const struct ring *ring, uint32_t at)
{
        const uint8_t *entry = ring->bytes + at;
        uint32_t length = get_le32(entry + 8), tail = get_le32(entry + 12), count = get_le32(entry + 24);

        if (memcmp(entry, "loge", 4) != 0 || memcmp(entry + 32, ring->v->log_guid, 16) != 0)
                return NULL;
        if (!length || length % VHDX_LOG_SECTOR || length > ring->size_bytes || tail % VHDX_LOG_SECTOR || tail >= ring->size_bytes)
                return NULL;
        if (!get_le64(entry + 16) || count > ring->size_bytes / DESCRIPTOR_BYTES || descriptor_area(count) > length)
                return NULL;
        if (get_le32(entry + 4) != vhdx_checksum(ring->v->crc, entry, length, 4))
                return NULL;
        return descriptor_area(count) + (uint64_t)data_sectors(entry) * VHDX_LOG_SECTOR <= length ? entry : NULL;
}

/* Whether entries follow each other from the tail of the one at `head` up to it. */
static bool whole(const struct ring *ring, uint32_t head)
{
        const uint8_t *last = ring->bytes + head;
        uint32_t at = get_le32(last + 12);
        uint64_t sequence = 0, passed = 0;

        while (passed < ring->size_bytes) {
                const uint8_t *entry = entry_at(ring, at);

                if (!entry || (sequence && get_le64(entry + 16) != sequence + 1))
                        return false;
                sequence = get_le64(entry + 16);
                if (at == head)
                        return true;
                passed += get_le32(entry + 8);
                at = (at + get_le32(entry + 8)) % ring->size_bytes;
        }
        return false;
}

/* ---- replaying ---- */

static int put_page(struct ring *ring, uint64_t offset, const uint8_t *bytes)
{
        struct vhdx *v = ring->v;
        struct table_page *page;
        int r;

        if (!v->m.file->info.readonly)
                return block_write(v->m.file, offset, bytes, VHDX_LOG_SECTOR);
        if (ring->pages++ >= OVERLAY_PAGES_MAX)
                return -EFBIG;
        r = table_page_get(&v->m.cache, v->m.file, offset, &page); /* it stays pinned */
        if (r == 0)
                memcpy(page->bytes, bytes, VHDX_LOG_SECTOR);
        return r;
}

static int put_zeroes(struct ring *ring, uint64_t offset, uint64_t size_bytes)
{
        static const uint8_t zeroes[VHDX_LOG_SECTOR];
        int r = 0;

        for (uint64_t done = 0; done < size_bytes && r == 0; done += VHDX_LOG_SECTOR)
                r = put_page(ring, offset + done, zeroes);
        return r;
}

/* A data sector holds all but the first 8 and last 4 bytes, which are in the descriptor. */
static int replay_entry(struct ring *ring, const uint8_t *entry)
{
        uint64_t sequence = get_le64(entry + 16), limit = ring->v->m.file->info.size_bytes;
        uint32_t count = get_le32(entry + 24);
        const uint8_t *data = entry + descriptor_area(count);
        int r = 0;

        for (uint32_t n = 0; n < count && r == 0; n++) {
                const uint8_t *d = entry + ENTRY_HEADER_BYTES + n * DESCRIPTOR_BYTES;
                uint64_t offset = get_le64(d + 16), length = get_le64(d + 8);
                uint8_t page[VHDX_LOG_SECTOR];

                if (get_le64(d + 24) != sequence || offset % VHDX_LOG_SECTOR || offset >= limit)
                        return -EINVAL;
                if (memcmp(d, "zero", 4) == 0) {
                        r = length % VHDX_LOG_SECTOR || length > limit - offset ? -EINVAL : put_zeroes(ring, offset, length);
                        continue;
                }
                if (memcmp(d, "desc", 4) != 0 || memcmp(data, "data", 4) != 0 || get_le32(data + 4) != sequence >> 32 ||
                    get_le32(data + VHDX_LOG_SECTOR - 4) != (uint32_t)sequence)
                        return -EINVAL;
                memcpy(page, d + 8, 8);
                memcpy(page + 8, data + 8, VHDX_LOG_SECTOR - 12);
                memcpy(page + VHDX_LOG_SECTOR - 4, d + 4, 4);
                r = put_page(ring, offset, page);
                data += VHDX_LOG_SECTOR;
        }
        return r;
}

static int replay_sequence(struct ring *ring, uint32_t head)
{
        struct vhdx *v = ring->v;
        const uint8_t *last = ring->bytes + head;
        uint32_t at = get_le32(last + 12);
        int r = 0;

        if (get_le64(last + 48) > v->m.file->info.size_bytes)
                return -ENODATA; /* it was cut off */
        if (!v->m.file->info.readonly && v->m.file->info.grows && get_le64(last + 56) > v->m.file->info.size_bytes &&
            get_le64(last + 56) - v->m.file->info.size_bytes <= VHDX_MIB * 1024)
                r = block_resize(v->m.file, get_le64(last + 56), NULL);
        while (r == 0) {
                r = replay_entry(ring, ring->bytes + at);
                if (at == head)
                        break;
                at = (at + get_le32(ring->bytes + at + 8)) % ring->size_bytes;
        }
        return r;
}

static int replay_ring(struct ring *ring)
{
        struct vhdx *v = ring->v;
        uint64_t best = 0;
        uint32_t head = 0;
        int r = block_read(v->m.file, v->log_offset, ring->bytes, ring->size_bytes);

        if (r < 0)
                return r;
        memcpy(ring->bytes + ring->size_bytes, ring->bytes, ring->size_bytes);
        for (uint32_t at = 0; at < ring->size_bytes; at += VHDX_LOG_SECTOR) {
                const uint8_t *entry = entry_at(ring, at);

                if (entry && get_le64(entry + 16) > best && whole(ring, at)) {
                        best = get_le64(entry + 16);
                        head = at;
                }
        }
        return best ? replay_sequence(ring, head) : 0;
}

int vhdx_replay(struct vhdx *v, struct err *err)
{
        static const uint8_t nobody[16];
        struct ring ring = { .v = v, .size_bytes = v->log_bytes };
        int r;

        if (memcmp(v->log_guid, nobody, 16) == 0)
                return 0;
        ring.bytes = malloc((size_t)v->log_bytes * 2);
        if (!ring.bytes)
                return err_nomem(err);
        r = replay_ring(&ring);
        free(ring.bytes);
        if (r == 0 && !v->m.file->info.readonly) {
                r = block_flush(v->m.file);
                memset(v->log_guid, 0, 16);
                if (r == 0)
                        r = vhdx_write_header(v, true);
        }
        if (r == -ENODATA)
                return err_set(err, -EINVAL, "disk %s is damaged: it is shorter than its log says", v->m.block.path);
        return r < 0 ? err_errno(err, r, "disk %s: its log cannot be replayed", v->m.block.path) : 0;
}

/* ---- writing ---- */

static void put_descriptor(uint8_t *d, uint8_t *data, uint64_t sequence, uint64_t offset, const uint8_t *page)
{
        put_letters(d, "desc");
        memcpy(d + 4, page + VHDX_LOG_SECTOR - 4, 4);
        memcpy(d + 8, page, 8);
        put_le64(d + 16, offset);
        put_le64(d + 24, sequence);
        put_letters(data, "data");
        put_le32(data + 4, (uint32_t)(sequence >> 32));
        memcpy(data + 8, page + 8, VHDX_LOG_SECTOR - 12);
        put_le32(data + VHDX_LOG_SECTOR - 4, (uint32_t)sequence);
}

/* It may go round. */
static int put_entry(struct vhdx *v, const uint8_t *entry, uint32_t length)
{
        uint32_t first = MIN(length, v->log_bytes - v->log_head);
        int r = block_write(v->m.file, v->log_offset + v->log_head, entry, first);

        if (r == 0 && first < length)
                r = block_write(v->m.file, v->log_offset, entry + first, length - first);
        return r == 0 ? block_flush(v->m.file) : r;
}

int vhdx_journal(struct table_cache *cache, struct table_page *const page[], const uint8_t *bytes, unsigned count)
{
        struct vhdx *v = to_vhdx(container_of(cache, struct mapped, cache));
        uint32_t area = descriptor_area(count), length = area + count * VHDX_LOG_SECTOR;
        _cleanup_free_ uint8_t *entry = calloc(1, length);
        int r = entry ? 0 : -ENOMEM;

        if (r == 0 && v->in_place) /* else the entry before this one would still be needed */
                r = block_flush(v->m.file);
        if (r < 0)
                return r;
        v->in_place = false;
        put_letters(entry, "loge");
        put_le32(entry + 8, length);
        put_le32(entry + 12, v->log_head);
        put_le64(entry + 16, v->log_sequence);
        put_le32(entry + 24, count);
        memcpy(entry + 32, v->log_guid, 16);
        put_le64(entry + 48, v->flushed_end); /* more than a crash leaves would make the image one that was cut off */
        put_le64(entry + 56, align_down(v->end, VHDX_MIB));
        for (unsigned n = 0; n < count; n++)
                put_descriptor(entry + ENTRY_HEADER_BYTES + n * DESCRIPTOR_BYTES, entry + area + n * VHDX_LOG_SECTOR, v->log_sequence, page[n]->offset,
                               bytes + (size_t)n * VHDX_LOG_SECTOR);
        put_le32(entry + 4, vhdx_checksum(v->crc, entry, length, 4));
        r = put_entry(v, entry, length);
        if (r < 0)
                return r;
        v->in_place = true;
        v->log_head = (v->log_head + length) % v->log_bytes;
        v->log_sequence++;
        return 0;
}
