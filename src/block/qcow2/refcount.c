/*
 * Counts of the file's clusters ("Host cluster management"): a table of blocks of counts, of 1 to 64 bits each.
 *
 *      free ──reserve──▶ counted 1, in the reserve ──take──▶ named by a table ──release──▶ pending ──flush──▶ free
 *
 * The reserve is filled for many clusters at once: the pages with their counts are written and flushed before any of them is handed out.
 * It grows with use, so that an image which is hardly written to loses little in a crash.
 *
 * A new block is put into the first free cluster that is wanted of it, and counts itself. When the table is full a longer one is built
 * behind the end of the file, with the blocks that count it, and the header then changes over to it.
 */
#include <assert.h>
#include <errno.h>

#include "block/qcow2/qcow2.h"

#define RESERVE_FIRST 4u
#define RESERVE_BYTES_MAX (UINT64_C(64) << 20)
#define RESERVE_MAX 4096u
/* Counts that are looked at for a free one; and behind the end of the file when an image is opened. */
#define SEARCH_MAX (UINT64_C(1) << 20)
#define BEHIND_MAX (16 * (uint64_t)RESERVE_MAX)

static uint64_t block_counts(const struct qcow2 *q)
{
        return UINT64_C(1) << q->refcount_block_bits;
}

/* ---- one count ---- */

static uint64_t count_get(const struct qcow2 *q, const uint8_t *page, uint64_t index)
{
        unsigned bits = 1u << q->header.refcount_order;
        uint64_t v = 0;

        if (bits < 8)
                return page[index * bits / 8] >> (index * bits % 8) & ((1u << bits) - 1);
        for (unsigned n = 0; n < bits / 8; n++)
                v = v << 8 | page[index * (bits / 8) + n];
        return v;
}

static void count_set(const struct qcow2 *q, uint8_t *page, uint64_t index, uint64_t value)
{
        unsigned bits = 1u << q->header.refcount_order, shift = (unsigned)(index * bits % 8);
        uint8_t *at;

        if (bits < 8) {
                at = &page[index * bits / 8];
                *at = (uint8_t)((*at & ~(((1u << bits) - 1) << shift)) | value << shift);
                return;
        }
        at = &page[index * (bits / 8)];
        for (unsigned n = bits / 8; n-- > 0; value >>= 8)
                at[n] = (uint8_t)value;
}

/* How many counts are in a page, and where in its block a cluster's page is. */
static uint64_t page_counts(const struct qcow2 *q)
{
        return (uint64_t)q->cache.page_bytes * 8 >> q->header.refcount_order;
}

/* The page with the cluster's count; NULL and 0: its block is not there, the count is 0. */
static int page_of(struct qcow2 *q, uint64_t cluster, struct table_page **page)
{
        uint64_t at = cluster >> q->refcount_block_bits, block;

        *page = NULL;
        if (at >= q->refcount_entries || !(block = q->refcount_table[at]))
                return 0;
        if (!qcow2_offset_good(q, block))
                return qcow2_corrupt(q, "refcount block %" PRIu64 " is said to be at %#" PRIx64, at, block);
        cluster &= block_counts(q) - 1;
        return qcow2_page_get(q, block + cluster / page_counts(q) * q->cache.page_bytes, page);
}

int qcow2_refcount(struct qcow2 *q, uint64_t cluster, uint64_t *count)
{
        struct table_page *page;
        int r = page_of(q, cluster, &page);

        if (r < 0)
                return r;
        *count = page ? count_get(q, page->bytes, cluster & (page_counts(q) - 1)) : 0;
        if (page)
                qcow2_page_put(page);
        return 0;
}

/* ---- blocks and the table ---- */

static int write_table_entry(struct qcow2 *q, uint64_t at)
{
        uint8_t bytes[8];

        put_be64(bytes, q->refcount_table[at]);
        return block_write(q->file, q->header.refcount_offset + at * 8, bytes, 8);
}

/*
 * Block `at`, put into cluster `home`, which is free: one that the block itself counts, or one whose block is there. Once it is in the table
 * it counts itself on stable storage.
 */
static int add_block(struct qcow2 *q, uint64_t at, uint64_t home)
{
        bool inside = home >> q->refcount_block_bits == at;
        _cleanup_free_ uint8_t *bytes = calloc(1, q->cluster_bytes);
        int r;

        if (!bytes)
                return -ENOMEM;
        assert(home);
        if (inside)
                count_set(q, bytes, home & (block_counts(q) - 1), 1);
        q->file_clusters = MAX(q->file_clusters, home + 1);
        r = block_write(q->file, home << q->header.cluster_bits, bytes, q->cluster_bytes);
        if (r == 0 && !inside)
                r = qcow2_refcount_add(q, home, 1, 1);
        if (r == 0 && !inside)
                r = qcow2_cache_write(q);
        if (r == 0)
                r = block_flush(q->file);
        if (r < 0)
                return r;
        q->refcount_table[at] = home << q->header.cluster_bits;
        r = write_table_entry(q, at);
        if (r < 0)
                q->refcount_table[at] = 0;
        return r;
}

/* A longer table behind the end of the file, at cluster `first`, followed by the blocks that count it and themselves. */
struct longer {
        uint64_t *table;
        uint64_t first, table_clusters, entries, end;
};

/* As many blocks as are needed to count the table and them, found by trying. */
static int plan_table(const struct qcow2 *q, uint64_t entries, struct longer *longer)
{
        uint64_t blocks = 0, wanted, from;

        longer->first = q->file_clusters;
        from = longer->first >> q->refcount_block_bits;
        do {
                wanted = ++blocks;
                longer->table_clusters = qcow2_clusters(q, MAX(entries, from + blocks + 1) * 8);
                longer->end = longer->first + longer->table_clusters + blocks;
        } while (((longer->end - 1) >> q->refcount_block_bits) - from + 1 > wanted);
        longer->entries = longer->table_clusters << q->header.cluster_bits >> 3;
        return longer->entries * 8 > QCOW2_REFCOUNT_TABLE_BYTES_MAX ? -EFBIG : 0;
}

/* Empty blocks where there are none yet. */
static int write_new_blocks(struct qcow2 *q, struct longer *longer)
{
        _cleanup_free_ uint8_t *zeroes = calloc(1, q->cluster_bytes);
        uint64_t next = longer->first + longer->table_clusters;
        int r = zeroes ? 0 : -ENOMEM;

        for (uint64_t n = longer->first >> q->refcount_block_bits; n <= (longer->end - 1) >> q->refcount_block_bits && r == 0; n++) {
                if (longer->table[n])
                        continue;
                longer->table[n] = next << q->header.cluster_bits;
                r = block_write(q->file, next++ << q->header.cluster_bits, zeroes, q->cluster_bytes);
        }
        longer->end = next;
        return r;
}

static int write_table(struct qcow2 *q, const struct longer *longer)
{
        _cleanup_free_ uint8_t *bytes = calloc(longer->entries, 8);

        if (!bytes)
                return -ENOMEM;
        for (uint64_t n = 0; n < longer->entries; n++)
                put_be64(bytes + n * 8, longer->table[n]);
        return block_write(q->file, longer->first << q->header.cluster_bits, bytes, longer->entries * 8);
}

/* The new table is the one; nobody but us knows it until the header names it. */
static int change_table(struct qcow2 *q, struct longer *longer)
{
        uint64_t old = q->header.refcount_offset >> q->header.cluster_bits, old_clusters = q->header.refcount_clusters;
        int r;

        free(q->refcount_table);
        q->refcount_table = longer->table;
        q->refcount_entries = (uint32_t)longer->entries;
        q->file_clusters = longer->end;
        r = qcow2_refcount_add(q, longer->first, longer->end - longer->first, 1);
        if (r == 0)
                r = qcow2_cache_write(q);
        if (r == 0)
                r = block_flush(q->file);
        if (r == 0) {
                q->header.refcount_offset = longer->first << q->header.cluster_bits;
                q->header.refcount_clusters = (uint32_t)longer->table_clusters;
                r = qcow2_write_header(q);
        }
        if (r == 0)
                return qcow2_release(q, old, old_clusters);
        q->broken = true; /* which of the two the disk has, who knows: nothing more is written */
        return r;
}

static int grow_table(struct qcow2 *q, uint64_t entries)
{
        struct longer longer = { 0 };
        int r = plan_table(q, MAX(entries, (uint64_t)q->refcount_entries + q->refcount_entries / 2), &longer);

        if (r < 0)
                return r;
        longer.table = calloc(longer.entries, sizeof(*longer.table));
        if (!longer.table)
                return -ENOMEM;
        memcpy(longer.table, q->refcount_table, q->refcount_entries * sizeof(*longer.table));
        r = write_new_blocks(q, &longer);
        if (r == 0)
                r = write_table(q, &longer);
        if (r == 0)
                return change_table(q, &longer);
        free(longer.table);
        return r;
}

static bool has_block(const struct qcow2 *q, uint64_t cluster)
{
        uint64_t at = cluster >> q->refcount_block_bits;

        return at < q->refcount_entries && q->refcount_table[at];
}

/* What is free may be another cluster afterwards, since blocks and tables take some. */
static int want_block(struct qcow2 *q, uint64_t cluster, uint64_t home)
{
        uint64_t at = cluster >> q->refcount_block_bits;

        return at >= q->refcount_entries ? grow_table(q, at + 1) : add_block(q, at, home);
}

/* ---- changing counts ---- */

static int add_in_page(struct qcow2 *q, struct table_page *page, uint64_t cluster, uint64_t count, int64_t by)
{
        uint64_t index = cluster & (page_counts(q) - 1);

        for (uint64_t n = 0; n < count; n++) {
                uint64_t v = count_get(q, page->bytes, index + n);

                if (by < 0 ? v < (uint64_t)-by : q->refcount_max - v < (uint64_t)by)
                        return by < 0 ? qcow2_corrupt(q, "the count of cluster %#" PRIx64 " would fall below 0", cluster + n) : -ERANGE;
                count_set(q, page->bytes, index + n, v + (uint64_t)by);
                if (v + (uint64_t)by == 0)
                        q->search = MIN(q->search, cluster + n);
        }
        qcow2_page_changed(q, page, false);
        return 0;
}

int qcow2_refcount_add(struct qcow2 *q, uint64_t cluster, uint64_t count, int64_t by)
{
        while (count) {
                uint64_t some = MIN(count, page_counts(q) - (cluster & (page_counts(q) - 1)));
                struct table_page *page;
                int r = page_of(q, cluster, &page);

                if (r < 0)
                        return r;
                if (!page)
                        return qcow2_corrupt(q, "cluster %#" PRIx64 " is used, and no refcount block counts it", cluster);
                r = add_in_page(q, page, cluster, some, by);
                qcow2_page_put(page);
                if (r < 0)
                        return r;
                cluster += some;
                count -= some;
        }
        return 0;
}

/* ---- the reserve ---- */

static int append(struct qcow2_extent **list, uint64_t first, uint64_t count, bool fresh)
{
        struct qcow2_extent *extent;

        while (*list && (*list)->next)
                list = &(*list)->next;
        extent = *list;
        if (extent && extent->first + extent->count == first && extent->fresh == fresh) {
                extent->count += count;
                return 0;
        }
        extent = calloc(1, sizeof(*extent));
        if (!extent)
                return -ENOMEM;
        *extent = (struct qcow2_extent){ .first = first, .count = count, .fresh = fresh };
        *(*list ? &(*list)->next : list) = extent;
        return 0;
}

static void free_list(struct qcow2_extent *list)
{
        while (list) {
                struct qcow2_extent *next = list->next;

                free(list);
                list = next;
        }
}

/* The next free clusters from *cluster on, at most *count side by side. Where so many are taken, those behind the end of the file. */
static int find_free(struct qcow2 *q, uint64_t *cluster, uint64_t *count)
{
        uint64_t at = *cluster, found = 0;

        while (found < *count) {
                uint64_t value = 0;
                int r = at + found < q->file_clusters ? qcow2_refcount(q, at + found, &value) : 0;

                if (r < 0)
                        return r;
                if (!value) {
                        found++;
                } else if (found) {
                        break;
                } else if (++at - *cluster > SEARCH_MAX) {
                        at = MAX(at, q->file_clusters);
                }
        }
        *cluster = at;
        *count = found;
        return 0;
}

/* Counts them as 1 and puts them on the list; not on stable storage yet. */
static int reserve_run(struct qcow2 *q, uint64_t cluster, uint64_t count, struct qcow2_extent **list)
{
        uint64_t fresh_from = q->file->info.grows ? MAX(cluster, q->file_clusters) : UINT64_MAX;
        int r;

        q->file_clusters = MAX(q->file_clusters, cluster + count);
        r = qcow2_refcount_add(q, cluster, count, 1);
        if (r == 0 && fresh_from > cluster)
                r = append(list, cluster, MIN(fresh_from, cluster + count) - cluster, false);
        if (r == 0 && fresh_from < cluster + count)
                r = append(list, fresh_from, cluster + count - fresh_from, true);
        return r;
}

/* `wanted` more clusters, wherever there are free ones. */
static int fill(struct qcow2 *q, uint64_t wanted, struct qcow2_extent **list)
{
        uint64_t at = q->search;
        int r = 0;

        while (wanted && r == 0) {
                uint64_t count = wanted;

                r = find_free(q, &at, &count);
                if (r < 0)
                        return r;
                if (!has_block(q, at)) {
                        r = want_block(q, at, at);
                        continue;
                }
                count = MIN(count, block_counts(q) - (at & (block_counts(q) - 1)));
                if (at == q->search)
                        q->search = at + count;
                r = reserve_run(q, at, count, list);
                wanted -= count;
                at += count;
        }
        return r;
}

/* `wanted` clusters side by side, behind the end of the file. */
static int fill_whole(struct qcow2 *q, uint64_t wanted, struct qcow2_extent **list)
{
        for (;;) {
                uint64_t at = q->file_clusters, missing = at;
                int r;

                while (missing < at + wanted && has_block(q, missing))
                        missing = ((missing >> q->refcount_block_bits) + 1) << q->refcount_block_bits;
                if (missing >= at + wanted)
                        return reserve_run(q, at, wanted, list);
                r = want_block(q, missing, at);
                if (r < 0)
                        return r;
        }
}

/* A table must not name what is behind the file's end, as a crash leaves it: the file is as long as the reserve reaches. */
static int lengthen(struct qcow2 *q)
{
        uint64_t end = q->file_clusters << q->header.cluster_bits;
        int r = q->file->info.grows && end > q->file->info.size_bytes ? block_resize(q->file, end, NULL) : 0;

        return r == -EOPNOTSUPP ? 0 : r;
}

/* The list is apart: nobody takes what is not on stable storage yet. */
static int fill_and_flush(struct qcow2 *q, uint64_t wanted, bool whole)
{
        struct qcow2_extent *list = NULL, **end = &q->reserve;
        int r = whole ? fill_whole(q, wanted, &list) : fill(q, wanted, &list);

        if (r == 0)
                r = lengthen(q);
        if (r == 0)
                r = qcow2_cache_write(q);
        if (r == 0)
                r = block_flush(q->file);
        if (r < 0) {
                free_list(list); /* their counts stay, in memory and perhaps on the disk: lost space until somebody checks */
                return r;
        }
        for (const struct qcow2_extent *e = list; e; e = e->next)
                q->reserved += e->count;
        while (*end)
                end = &(*end)->next;
        *end = list;
        return 0;
}

static void take_from(struct qcow2 *q, struct qcow2_extent **at, uint64_t count, uint64_t *cluster, bool *fresh)
{
        struct qcow2_extent *extent = *at;

        *cluster = extent->first;
        *fresh = extent->fresh;
        extent->first += count;
        extent->count -= count;
        q->reserved -= count;
        if (!extent->count) {
                *at = extent->next;
                free(extent);
        }
}

bool qcow2_take_quickly(struct qcow2 *q, uint64_t *cluster, bool *fresh)
{
        if (!q->reserve)
                return false;
        take_from(q, &q->reserve, 1, cluster, fresh);
        return true;
}

static struct qcow2_extent **find_extent(struct qcow2 *q, uint64_t count, bool whole)
{
        struct qcow2_extent **at = &q->reserve;

        while (*at && whole && (*at)->count < count)
                at = &(*at)->next;
        return at;
}

int qcow2_take(struct qcow2 *q, uint64_t *count, bool whole, uint64_t *cluster, bool *fresh)
{
        struct qcow2_extent **at = find_extent(q, *count, whole);
        int r = 0;

        if (!*at) {
                fiber_lock(&q->refcount_lock);
                at = find_extent(q, *count, whole); /* whoever had the lock may have filled it */
                if (!*at) {
                        uint64_t more = MAX((uint64_t)q->reserve_next, *count);

                        r = q->broken ? -EIO : fill_and_flush(q, more, whole);
                        q->reserve_next = (unsigned)MIN(MIN(q->reserve_next * 2ull, (uint64_t)RESERVE_MAX),
                                                        MAX(RESERVE_BYTES_MAX >> q->header.cluster_bits, UINT64_C(1)));
                        at = find_extent(q, *count, whole);
                }
                fiber_unlock(&q->refcount_lock);
                at = find_extent(q, *count, whole);
        }
        if (r < 0)
                return r;
        if (!*at)
                return qcow2_take(q, count, whole, cluster, fresh); /* whoever got the lock behind us was faster */
        *count = MIN(*count, (*at)->count);
        take_from(q, at, *count, cluster, fresh);
        return 0;
}

void qcow2_untake(struct qcow2 *q, uint64_t cluster, uint64_t count)
{
        if (append(&q->reserve, cluster, count, false) == 0)
                q->reserved += count;
}

int qcow2_reserve_return(struct qcow2 *q)
{
        int r = 0;

        while (q->reserve && r == 0) {
                struct qcow2_extent *extent = q->reserve;

                r = qcow2_refcount_add(q, extent->first, extent->count, -1);
                q->reserve = extent->next;
                q->reserved -= extent->count;
                free(extent);
        }
        return r;
}

int qcow2_cut_file(struct qcow2 *q)
{
        uint64_t end = q->file_clusters, least = MAX(qcow2_clusters(q, q->opened_bytes), UINT64_C(1)), count = 0;
        int r = 0;

        if (!q->file->info.grows || q->file->info.size_bytes <= q->opened_bytes)
                return 0;
        while (end > least && r == 0 && !count) {
                r = qcow2_refcount(q, end - 1, &count);
                end -= r == 0 && !count;
        }
        if (r < 0 || end << q->header.cluster_bits >= q->file->info.size_bytes)
                return r;
        q->file_clusters = end;
        q->search = MIN(q->search, end);
        return block_resize(q->file, end << q->header.cluster_bits, NULL);
}

/* ---- giving back ---- */

int qcow2_release(struct qcow2 *q, uint64_t cluster, uint64_t count)
{
        return append(&q->pending, cluster, count, false);
}

/*
 * One less names the cluster. When that was the last, its space is given back to the host before anybody can take it: a discard that is on its way
 * would wipe out what is written next. Compressed clusters that come go elsewhere.
 */
static int give_back(struct qcow2 *q, uint64_t cluster)
{
        uint64_t offset = cluster << q->header.cluster_bits, count;
        int r = qcow2_refcount(q, cluster, &count);

        if (r == 0 && count == 1) {
                int hint;

                qcow2_pack_leave(q, cluster);
                qcow2_cache_forget(q, offset, q->cluster_bytes);
                hint = block_do(q->file, BLOCK_DISCARD, 0, offset, q->cluster_bytes, NULL, 0);
                (void)hint;
        }
        return r == 0 ? qcow2_refcount_add(q, cluster, 1, -1) : r;
}

int qcow2_release_now(struct qcow2 *q, struct qcow2_extent *list)
{
        int r = 0;

        qcow2_forget_unpacked(q); /* a read that ended meanwhile may have kept one of these */
        for (struct qcow2_extent *e = list; e && r == 0; e = e->next)
                for (uint64_t n = 0; n < e->count && r == 0; n++)
                        r = give_back(q, e->first + n);
        free_list(list);
        return r;
}

/* ---- opening ---- */

/* Counts behind the file's end: clusters that were taken, in a reserve perhaps, and never written to. */
static void look_behind(struct qcow2 *q)
{
        uint64_t end = q->file_clusters, count;

        for (uint64_t at = end; at < end + BEHIND_MAX && has_block(q, at); at++)
                if (qcow2_refcount(q, at, &count) == 0 && count)
                        q->file_clusters = at + 1;
}

int qcow2_refcounts_open(struct qcow2 *q, struct err *err)
{
        uint64_t bytes = (uint64_t)q->header.refcount_clusters << q->header.cluster_bits;
        int r;

        q->refcount_entries = (uint32_t)(bytes / 8);
        q->refcount_table = calloc(q->refcount_entries, 8);
        q->reserve_next = RESERVE_FIRST;
        if (!q->refcount_table)
                return err_nomem(err);
        r = block_read(q->file, q->header.refcount_offset, q->refcount_table, bytes);
        if (r < 0)
                return err_errno(err, r, "disk %s: cannot read its refcount table", q->block.path);
        for (uint32_t n = 0; n < q->refcount_entries; n++)
                q->refcount_table[n] = be64(&q->refcount_table[n]);
        q->opened_bytes = q->file->info.size_bytes;
        q->file_clusters = qcow2_clusters(q, q->opened_bytes);
        look_behind(q);
        return 0;
}

void qcow2_refcounts_close(struct qcow2 *q)
{
        free_list(q->reserve);
        free_list(q->pending);
        free(q->refcount_table);
}
