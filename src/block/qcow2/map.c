/*
 * From places of the guest to places of the file ("Cluster mapping", "Extended L2 Entries").
 *
 * L1 is in memory, L2 tables are in the cache's pages. With subclusters what can be there or not by itself is a 32nd of a cluster; a run
 * then goes over subclusters, else over clusters.
 */
#include <errno.h>

#include "block/qcow2/qcow2.h"

bool qcow2_offset_good(const struct qcow2 *q, uint64_t offset)
{
        return offset && !(offset & (q->cluster_bytes - 1)) && !(offset & ~QCOW2_OFFSET) && offset >> q->header.cluster_bits < q->file_clusters;
}

static uint32_t l1_index(const struct qcow2 *q, uint64_t offset)
{
        return (uint32_t)(offset >> q->header.cluster_bits >> q->l2_bits);
}

/* Of the entry in its table. */
static uint64_t l2_place(const struct qcow2 *q, uint64_t offset)
{
        return (offset >> q->header.cluster_bits & ((UINT64_C(1) << q->l2_bits) - 1)) * q->l2_entry_bytes;
}

/* *page NULL and 0: there is no table. */
static int table_page(struct qcow2 *q, uint64_t offset, bool wait, struct table_page **page)
{
        uint32_t index = l1_index(q, offset);
        uint64_t table = index < q->header.l1_entries ? q->l1[index] & QCOW2_OFFSET : 0;
        int r;

        *page = NULL;
        if (!table)
                return 0;
        if (!qcow2_offset_good(q, table))
                return qcow2_corrupt(q, "the L2 table of L1 entry %" PRIu32 " is said to be at %#" PRIx64, index, table);
        table += l2_place(q, offset);
        if (wait) {
                r = qcow2_page_get(q, table, page);
                if (r == 0)
                        qcow2_page_put(*page); /* nothing is waited for from here on */
                return r;
        }
        *page = qcow2_page_peek(q, table);
        return *page ? 0 : -EAGAIN;
}

struct unit {
        enum qcow2_kind kind;
        uint64_t host; /* of the unit; 0: nowhere */
        bool copied;
};

/* Of the unit at offset, which an entry describes. */
static int unit_of(struct qcow2 *q, const uint8_t *entry, uint64_t offset, struct unit *unit)
{
        uint64_t e = be64(entry), host = e & QCOW2_OFFSET, bitmap;
        uint64_t inside = offset & (q->cluster_bytes - 1) & ~((UINT64_C(1) << q->unit_bits) - 1);
        unsigned sub = (unsigned)(inside >> q->unit_bits);
        bool known = host || (q->data != q->file && e & QCOW2_COPIED); /* an external file has a cluster 0 */

        *unit = (struct unit){ .kind = known ? QCOW2_DATA : QCOW2_ABSENT, .copied = e & QCOW2_COPIED };
        if (e & QCOW2_COMPRESSED) {
                unit->kind = QCOW2_PACKED;
                unit->copied = false;
                return 0;
        }
        if (host & (q->cluster_bytes - 1) || (host && q->data == q->file && !qcow2_offset_good(q, host)))
                return qcow2_corrupt(q, "the cluster of guest offset %#" PRIx64 " is said to be at %#" PRIx64, offset, host);
        if (q->data != q->file && known && host != align_down(offset, q->cluster_bytes))
                return qcow2_corrupt(q, "guest offset %#" PRIx64 " is said to be at %#" PRIx64 " of the data file", offset, host);
        unit->host = known ? host + inside : 0;
        if (!q->extended) {
                if (e & QCOW2_ZERO && q->header.version >= 3)
                        unit->kind = QCOW2_ZEROES;
                return 0;
        }
        bitmap = be64(entry + 8);
        if (bitmap >> (32 + sub) & 1) {
                if (bitmap >> sub & 1)
                        return qcow2_corrupt(q, "subcluster %u of guest offset %#" PRIx64 " is there and zero at once", sub, offset);
                unit->kind = QCOW2_ZEROES;
        } else if (!(bitmap >> sub & 1)) {
                unit->kind = QCOW2_ABSENT;
        } else if (!known) {
                return qcow2_corrupt(q, "subcluster %u of guest offset %#" PRIx64 " is there, and its cluster is not", sub, offset);
        }
        return 0;
}

static bool goes_on(const struct unit *first, const struct unit *next, uint64_t distance)
{
        if (next->kind != first->kind || first->kind == QCOW2_PACKED)
                return false;
        if (first->kind == QCOW2_ABSENT)
                return true;
        if (first->kind == QCOW2_ZEROES)
                return !first->host == !next->host && next->copied == first->copied && (!first->host || next->host == first->host + distance);
        return next->copied == first->copied && next->host == first->host + distance;
}

static void begin_run(const struct unit *unit, uint64_t entry, uint64_t inside, struct qcow2_run *run)
{
        *run = (struct qcow2_run){ .kind = unit->kind, .copied = unit->copied, .entry = entry, .host = unit->host };
        if (unit->kind == QCOW2_DATA)
                run->host += inside;
}

int qcow2_map(struct qcow2 *q, uint64_t offset, uint64_t size_bytes, bool wait, struct qcow2_run *run)
{
        uint64_t unit_bytes = UINT64_C(1) << q->unit_bits, start = align_down(offset, unit_bytes), end = offset + size_bytes, at = start;
        uint64_t page_span = (uint64_t)q->cache.page_bytes / q->l2_entry_bytes << q->header.cluster_bits;
        uint64_t page_end = align_down(offset, page_span) + page_span;
        struct unit first, next;
        struct table_page *page;
        const uint8_t *entry;
        int r = table_page(q, offset, wait, &page);

        if (r < 0)
                return r;
        if (!page) {
                *run = (struct qcow2_run){ .kind = QCOW2_ABSENT, .size_bytes = MIN(end, page_end) - offset };
                return 0;
        }
        entry = page->bytes + (l2_place(q, offset) & (q->cache.page_bytes - 1));
        r = unit_of(q, entry, at, &first);
        if (r < 0)
                return r;
        begin_run(&first, be64(entry), offset - start, run);
        end = MIN(end, page_end);
        if (first.kind == QCOW2_PACKED) {
                run->size_bytes = MIN(end, align_down(offset, q->cluster_bytes) + q->cluster_bytes) - offset;
                return 0;
        }
        for (at += unit_bytes; at < end; at += unit_bytes) {
                entry = page->bytes + (l2_place(q, at) & (q->cache.page_bytes - 1));
                r = unit_of(q, entry, at, &next);
                if (r < 0 || !goes_on(&first, &next, at - start))
                        break; /* what is wrong is said when somebody comes to it */
        }
        run->size_bytes = MIN(at, end) - offset;
        return 0;
}

/* ---- for writing ---- */

/* L1 goes to the disk by the sector: its entry, and those beside it. */
int qcow2_write_l1(struct qcow2 *q, uint32_t index)
{
        uint32_t first = index & ~63u, count = MIN(64u, q->header.l1_entries - first);
        uint8_t bytes[512];

        for (uint32_t n = 0; n < count; n++)
                put_be64(bytes + 8 * n, q->l1[first + n]);
        return block_write(q->file, q->header.l1_offset + first * 8ull, bytes, count * 8);
}

/* Whether another fiber makes this L1 entry's table at the moment is decided by the caller's lock: here nobody else does. */
static int make_table(struct qcow2 *q, uint32_t index)
{
        uint64_t old = q->l1[index], count = 1, cluster, offset;
        _cleanup_free_ uint8_t *bytes = calloc(1, q->cluster_bytes);
        bool fresh;
        int r;

        if (!bytes)
                return -ENOMEM;
        if (old & QCOW2_OFFSET && !qcow2_offset_good(q, old & QCOW2_OFFSET))
                return qcow2_corrupt(q, "the L2 table of L1 entry %" PRIu32 " is said to be at %#" PRIx64, index, old & QCOW2_OFFSET);
        r = qcow2_take(q, &count, true, &cluster, &fresh);
        if (r < 0)
                return r;
        offset = cluster << q->header.cluster_bits;
        qcow2_cache_forget(q, offset, q->cluster_bytes);
        if (old & QCOW2_OFFSET) {
                r = qcow2_cache_write(q); /* pages of the old one */
                if (r == 0)
                        r = block_read(q->file, old & QCOW2_OFFSET, bytes, q->cluster_bytes);
        }
        if (r == 0)
                r = block_write(q->file, offset, bytes, q->cluster_bytes);
        if (r == 0)
                r = block_flush(q->file);
        if (r < 0) {
                qcow2_untake(q, cluster, 1);
                return r;
        }
        q->l1[index] = offset | QCOW2_COPIED;
        r = qcow2_write_l1(q, index);
        if (r < 0) {
                q->l1[index] = old;
                q->broken = true; /* the disk may have either */
                return r;
        }
        return old & QCOW2_OFFSET ? qcow2_release(q, (old & QCOW2_OFFSET) >> q->header.cluster_bits, 1) : 0;
}

int qcow2_entry_get(struct qcow2 *q, uint64_t offset, struct table_page **page, uint8_t **entry)
{
        uint32_t index = l1_index(q, offset);
        int r = 0;

        if (index >= q->header.l1_entries)
                return qcow2_corrupt(q, "guest offset %#" PRIx64 " is behind L1's end", offset);
        if (!(q->l1[index] & QCOW2_COPIED)) {
                fiber_lock(&q->l1_lock);
                if (!(q->l1[index] & QCOW2_COPIED))
                        r = make_table(q, index);
                fiber_unlock(&q->l1_lock);
        }
        if (r == 0)
                r = qcow2_page_get(q, (q->l1[index] & QCOW2_OFFSET) + l2_place(q, offset), page);
        if (r == 0)
                *entry = qcow2_page_at(q, *page, l2_place(q, offset));
        return r;
}
