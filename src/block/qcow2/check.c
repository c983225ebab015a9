/*
 * Checking: walks over all that names clusters, counts, and compares with what the image itself has counted.
 *
 *      more than found    a leak: the cluster is lost until it is mended; nothing is in danger
 *      less than found    an error: it could be given to somebody else
 *      COPIED where it is shared; names of places that cannot be: errors
 *
 * Mending leaks lowers counts where they are. Mending errors writes all counts anew, table and blocks behind the end of the file, and then
 * changes the header over to them: a crash leaves the old or the new. Entries that name impossible places become empty.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/cursor.h"
#include "block/qcow2/qcow2.h"

/* Of a file that would take more memory to count than anybody would like. */
#define CLUSTERS_MAX (UINT64_C(1) << 31)
#define REFS_MAX UINT16_MAX
#define SNAPSHOT_TABLE_BYTES_MAX ((uint64_t)64 << 20)
#define BITMAP_BYTES_MAX ((uint64_t)64 << 20)

struct walk {
        struct qcow2 *q;
        struct block_check *found;
        uint16_t *refs;     /* found, up to REFS_MAX */
        uint64_t clusters;  /* entries of it */
        uint64_t *table;    /* a cluster of room for L2 tables */
        bool rebuild;       /* counts must be written anew */
        bool drop_bitmaps;
};

static void _printf_(2, 3) say(struct walk *w, const char *fmt, ...)
{
        char text[256];
        va_list args;

        if (!w->found->say)
                return;
        va_start(args, fmt);
        vsnprintf(text, sizeof(text), fmt, args);
        va_end(args);
        w->found->say(w->found->ctx, text);
}

/* ---- counting ---- */

static bool possible(const struct walk *w, uint64_t offset)
{
        return offset && !(offset & (w->q->cluster_bytes - 1)) && offset >> w->q->header.cluster_bits < w->clusters;
}

/* false: they are not all in the file. */
static bool ref(struct walk *w, uint64_t offset, uint64_t size_bytes)
{
        uint64_t first = offset >> w->q->header.cluster_bits, end = first + qcow2_clusters(w->q, size_bytes);

        if (end > w->clusters || end < first)
                return false;
        for (; first < end; first++)
                w->refs[first] += w->refs[first] < REFS_MAX;
        return true;
}

/* Takes back what ref() did for the same range; a count that had reached its end stays. */
static void unref(struct walk *w, uint64_t offset, uint64_t size_bytes)
{
        uint64_t first = offset >> w->q->header.cluster_bits, end = first + qcow2_clusters(w->q, size_bytes);

        if (end > w->clusters || end < first)
                return;
        for (; first < end; first++)
                w->refs[first] -= w->refs[first] && w->refs[first] < REFS_MAX;
}

static int ref_or_error(struct walk *w, uint64_t offset, uint64_t size_bytes, const char *what)
{
        if (!(offset & (w->q->cluster_bytes - 1)) && ref(w, offset, size_bytes))
                return 0;
        say(w, "%s is said to be at %#" PRIx64, what, offset);
        w->found->errors++;
        return 0;
}

/* ---- L1 and L2 ---- */

/* One entry of an L2 table. true: it was changed. */
static bool walk_entry(struct walk *w, uint64_t *entry, uint64_t guest, bool active, uint64_t *next)
{
        struct qcow2 *q = w->q;
        uint64_t e = *entry, offset, size_bytes;
        bool same = false, wrong;

        if (e & QCOW2_COMPRESSED) {
                qcow2_packed_place(q, e, &offset, &size_bytes);
                same = ref(w, align_down(offset, q->cluster_bytes), (offset & (q->cluster_bytes - 1)) + size_bytes);
                wrong = !same || e & QCOW2_COPIED || q->data != q->file;
                w->found->compressed += active;
        } else {
                offset = e & QCOW2_OFFSET;
                if (!offset && !(q->data != q->file && e & QCOW2_COPIED))
                        return false;
                if (q->data != q->file)
                        wrong = offset != guest;
                else
                        wrong = !possible(w, offset) || !ref(w, offset, q->cluster_bytes);
                w->found->fragmented += active && *next && *next != offset;
                *next = offset + q->cluster_bytes;
        }
        w->found->clusters += active;
        if (!wrong)
                return false;
        say(w, "guest offset %#" PRIx64 " has the impossible entry %#" PRIx64, guest, e);
        w->found->errors++;
        if (w->found->mend != BLOCK_MEND_ALL)
                return false;
        w->found->errors_mended++;
        *entry = q->header.version >= 3 && !q->extended ? QCOW2_ZERO : 0;
        return true;
}

static int read_table(struct walk *w, uint64_t offset)
{
        struct qcow2 *q = w->q;
        int r = block_read(q->file, offset, w->table, q->cluster_bytes);

        for (uint64_t n = 0; r == 0 && n < q->cluster_bytes / 8; n++)
                w->table[n] = be64(&w->table[n]);
        return r;
}

static int write_table(struct walk *w, uint64_t offset)
{
        struct qcow2 *q = w->q;

        for (uint64_t n = 0; n < q->cluster_bytes / 8; n++)
                put_be64(&w->table[n], w->table[n]);
        qcow2_cache_forget(q, offset, q->cluster_bytes);
        return block_write(q->file, offset, w->table, q->cluster_bytes);
}

static int walk_l2(struct walk *w, uint64_t offset, uint64_t guest, bool active)
{
        struct qcow2 *q = w->q;
        unsigned words = q->l2_entry_bytes / 8;
        uint64_t next = 0;
        bool changed = false;
        int r = read_table(w, offset);

        for (uint64_t n = 0; r == 0 && n < UINT64_C(1) << q->l2_bits; n++) {
                if (!walk_entry(w, &w->table[n * words], guest + (n << q->header.cluster_bits), active, &next))
                        continue;
                changed = true;
                if (q->extended)
                        w->table[n * words + 1] = UINT64_C(0xffffffff) << 32;
        }
        return r == 0 && changed ? write_table(w, offset) : r;
}

/* An L1 table, in the host's byte order; *changed: entries were emptied. */
static int walk_l1(struct walk *w, uint64_t *l1, uint64_t entries, bool active, bool *changed)
{
        struct qcow2 *q = w->q;
        int r = 0;

        for (uint64_t n = 0; n < entries && r == 0; n++) {
                uint64_t table = l1[n] & QCOW2_OFFSET;

                if (!table)
                        continue;
                if (!possible(w, table) || !ref(w, table, q->cluster_bytes)) {
                        say(w, "the L2 table of L1 entry %" PRIu64 " is said to be at %#" PRIx64, n, table);
                        w->found->errors++;
                        if (w->found->mend == BLOCK_MEND_ALL) {
                                w->found->errors_mended++;
                                l1[n] = 0;
                                *changed = true;
                        }
                        continue;
                }
                r = walk_l2(w, table, n << q->l2_bits << q->header.cluster_bits, active);
        }
        return r;
}

static int write_l1(struct qcow2 *q, uint64_t offset, const uint64_t *l1, uint64_t entries)
{
        _cleanup_free_ uint8_t *bytes = calloc(entries, 8);

        if (!bytes)
                return -ENOMEM;
        for (uint64_t n = 0; n < entries; n++)
                put_be64(bytes + n * 8, l1[n]);
        return block_write(q->file, offset, bytes, entries * 8);
}

static int walk_active(struct walk *w)
{
        struct qcow2 *q = w->q;
        bool changed = false;
        int r = ref_or_error(w, q->header.l1_offset, q->header.l1_entries * 8ull, "L1");

        if (r == 0)
                r = walk_l1(w, q->l1, q->header.l1_entries, true, &changed);
        return r == 0 && changed ? write_l1(q, q->header.l1_offset, q->l1, q->header.l1_entries) : r;
}

/* ---- snapshots and bitmaps ---- */

static int walk_snapshot(struct walk *w, uint64_t offset, uint64_t entries)
{
        struct qcow2 *q = w->q;
        _cleanup_free_ uint64_t *l1 = NULL;
        bool changed = false;
        int r;

        if (entries * 8 > QCOW2_L1_BYTES_MAX || offset & (q->cluster_bytes - 1) || !ref(w, offset, entries * 8)) {
                say(w, "a snapshot's L1 table of %" PRIu64 " entries is said to be at %#" PRIx64, entries, offset);
                w->found->errors++;
                return 0;
        }
        l1 = calloc(MAX(entries, UINT64_C(1)), 8);
        if (!l1)
                return -ENOMEM;
        r = block_read(q->file, offset, l1, entries * 8);
        for (uint64_t n = 0; n < entries && r == 0; n++)
                l1[n] = be64(&l1[n]);
        if (r == 0)
                r = walk_l1(w, l1, entries, false, &changed);
        return r == 0 && changed ? write_l1(q, offset, l1, entries) : r;
}

static int walk_snapshots(struct walk *w)
{
        struct qcow2 *q = w->q;
        uint64_t at = q->header.snapshots_offset, start = at;
        int r = 0;

        for (uint32_t n = 0; n < q->header.snapshots && r == 0; n++) {
                uint8_t fixed[40];
                struct cursor in = cursor_from(fixed, sizeof(fixed));
                uint64_t offset, entries, rest;

                r = block_read(q->file, at, fixed, sizeof(fixed));
                if (r < 0)
                        return r;
                offset = cursor_be64(&in);
                entries = cursor_be32(&in);
                rest = cursor_be16(&in);
                rest += cursor_be16(&in);
                cursor_take(&in, 20);
                rest += cursor_be32(&in);
                at += align_up(sizeof(fixed) + rest, 8);
                if (at - start > SNAPSHOT_TABLE_BYTES_MAX) {
                        say(w, "the table of snapshots has no end");
                        w->found->errors++;
                        break;
                }
                r = walk_snapshot(w, offset, entries);
        }
        return r == 0 && at > start ? ref_or_error(w, start, at - start, "the table of snapshots") : r;
}

static int walk_bitmap_table(struct walk *w, uint64_t offset, uint64_t entries)
{
        struct qcow2 *q = w->q;
        _cleanup_free_ uint64_t *table = NULL;
        int r;

        if (entries * 8 > BITMAP_BYTES_MAX || offset & (q->cluster_bytes - 1) || !ref(w, offset, entries * 8)) {
                say(w, "a bitmap's table of %" PRIu64 " entries is said to be at %#" PRIx64, entries, offset);
                w->found->errors++;
                return 0;
        }
        table = calloc(MAX(entries, UINT64_C(1)), 8);
        if (!table)
                return -ENOMEM;
        r = block_read(q->file, offset, table, entries * 8);
        for (uint64_t n = 0; n < entries && r == 0; n++)
                if (be64(&table[n]) & QCOW2_OFFSET)
                        r = ref_or_error(w, be64(&table[n]) & QCOW2_OFFSET, q->cluster_bytes, "a bitmap's cluster");
        return r;
}

static int walk_bitmaps(struct walk *w, const struct qcow2_extension *extension)
{
        struct qcow2 *q = w->q;
        struct cursor in = cursor_from(extension->bytes, extension->size_bytes), directory;
        uint32_t count = cursor_be32(&in);
        uint64_t size_bytes, offset;
        _cleanup_free_ uint8_t *bytes = NULL;
        int r;

        cursor_be32(&in);
        size_bytes = cursor_be64(&in);
        offset = cursor_be64(&in);
        if (in.bad || size_bytes > BITMAP_BYTES_MAX || offset & (q->cluster_bytes - 1) || !ref(w, offset, size_bytes)) {
                say(w, "the directory of bitmaps is said to be at %#" PRIx64, offset);
                w->found->errors++;
                return 0;
        }
        bytes = malloc(MAX(size_bytes, UINT64_C(1)));
        if (!bytes)
                return -ENOMEM;
        r = block_read(q->file, offset, bytes, size_bytes);
        directory = cursor_from(bytes, size_bytes);
        for (uint32_t n = 0; n < count && r == 0; n++) {
                uint64_t table = cursor_be64(&directory), entries = cursor_be32(&directory), rest;

                cursor_take(&directory, 6);
                rest = cursor_be16(&directory);
                rest += cursor_be32(&directory);
                cursor_take(&directory, align_up(24 + rest, 8) - 24);
                if (directory.bad) {
                        say(w, "the directory of bitmaps ends in entry %" PRIu32, n);
                        w->found->errors++;
                        break;
                }
                r = walk_bitmap_table(w, table, entries);
        }
        return r;
}

/* Bitmaps that cannot be read are dropped. */
static void check_bitmaps(struct walk *w)
{
        struct qcow2 *q = w->q;

        if (!q->bitmaps_damaged)
                return;
        say(w, "the bitmaps cannot be read");
        w->found->errors++;
        if (w->found->mend != BLOCK_MEND_ALL)
                return;
        w->found->errors_mended++;
        w->drop_bitmaps = true;
}

static int walk_extensions(struct walk *w)
{
        int r = 0;

        check_bitmaps(w);
        if (w->drop_bitmaps || w->found->errors) /* what entries were emptied the bitmaps do not know */
                w->q->header.autoclear &= ~(w->found->mend == BLOCK_MEND_ALL ? QCOW2_AUTOCLEAR_BITMAPS : 0);

        for (const struct qcow2_extension *e = w->q->extension; e && r == 0; e = e->next) {
                if (e->type == QCOW2_EXT_BITMAPS && w->q->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS) {
                        r = walk_bitmaps(w, e);
                } else if (e->type == QCOW2_EXT_ENCRYPTION && e->size_bytes >= 16) {
                        r = ref_or_error(w, be64(e->bytes), be64(e->bytes + 8), "the encryption header");
                }
        }
        return r;
}

/* ---- the counts themselves ---- */

static int walk_counts(struct walk *w)
{
        struct qcow2 *q = w->q;
        int r = ref_or_error(w, q->header.refcount_offset, (uint64_t)q->header.refcount_clusters << q->header.cluster_bits, "the refcount table");

        for (uint32_t n = 0; n < q->refcount_entries && r == 0; n++) {
                uint64_t block = q->refcount_table[n];

                if (!block)
                        continue;
                if (possible(w, block) && ref(w, block, q->cluster_bytes))
                        continue;
                say(w, "refcount block %" PRIu32 " is said to be at %#" PRIx64, n, block);
                w->found->errors++;
                w->rebuild = true;
                if (w->found->mend == BLOCK_MEND_ALL)
                        q->refcount_table[n] = 0;
        }
        return r;
}

static int compare(struct walk *w)
{
        struct qcow2 *q = w->q;
        int r = 0;

        for (uint64_t n = 0; n < w->clusters && r == 0; n++) {
                uint64_t count = 0, at = n >> q->refcount_block_bits;

                if (w->refs[n])
                        w->found->end_bytes = (n + 1) << q->header.cluster_bits;
                if (at < q->refcount_entries && q->refcount_table[at] && possible(w, q->refcount_table[at]))
                        r = qcow2_refcount(q, n, &count);
                if (r < 0 || count == w->refs[n] || (w->refs[n] == REFS_MAX && count > REFS_MAX))
                        continue;
                say(w, "cluster %" PRIu64 " is counted %" PRIu64 " times and used %u times: %s", n, count, w->refs[n],
                    count > w->refs[n] ? "a leak" : "an error");
                if (count > w->refs[n]) {
                        w->found->leaks++;
                        if (w->found->mend == BLOCK_MEND_NOTHING)
                                continue;
                        r = qcow2_refcount_add(q, n, 1, (int64_t)w->refs[n] - (int64_t)count);
                        w->found->leaks_mended += r == 0;
                } else {
                        w->found->errors++;
                        w->rebuild = true;
                        w->found->errors_mended += w->found->mend == BLOCK_MEND_ALL;
                }
        }
        return r;
}

/* ---- writing all counts anew ---- */

static void set_count(const struct qcow2 *q, uint8_t *block, uint64_t index, uint64_t value)
{
        unsigned bits = 1u << q->header.refcount_order;

        value = MIN(value, q->refcount_max);
        if (bits < 8) {
                block[index * bits / 8] |= (uint8_t)(value << (index * bits % 8));
                return;
        }
        for (unsigned n = bits / 8; n-- > 0; value >>= 8)
                block[index * (bits / 8) + n] = (uint8_t)value;
}

/* Every block anew, one behind the other from cluster `first` on; empty ones are left out. */
static int write_blocks(struct walk *w, uint64_t first, uint64_t *table, uint64_t blocks)
{
        struct qcow2 *q = w->q;
        _cleanup_free_ uint8_t *block = malloc(q->cluster_bytes);
        uint64_t counts = UINT64_C(1) << q->refcount_block_bits;
        int r = block ? 0 : -ENOMEM;

        for (uint64_t n = 0; n < blocks && r == 0; n++) {
                memset(block, 0, q->cluster_bytes);
                for (uint64_t k = 0; k < counts && n * counts + k < w->clusters; k++)
                        set_count(q, block, k, w->refs[n * counts + k]);
                table[n] = (first + n) << q->header.cluster_bits;
                r = block_write(q->file, table[n], block, q->cluster_bytes);
        }
        return r;
}

static int rebuild(struct walk *w)
{
        struct qcow2 *q = w->q;
        uint64_t first = w->clusters, counts = UINT64_C(1) << q->refcount_block_bits, blocks, before = 0, table_clusters, total, entries;
        uint64_t *table = NULL;
        uint16_t *refs;
        int r;

        /* The old table and blocks are not used any more, and the new ones count themselves. */
        for (uint32_t n = 0; n < q->refcount_entries; n++)
                if (q->refcount_table[n] && possible(w, q->refcount_table[n]))
                        unref(w, q->refcount_table[n], q->cluster_bytes);
        unref(w, q->header.refcount_offset, (uint64_t)q->header.refcount_clusters << q->header.cluster_bits);
        for (blocks = 1; blocks != before;) {
                before = blocks;
                table_clusters = qcow2_clusters(q, blocks * 8);
                total = first + blocks + table_clusters;
                blocks = MAX(blocks, (total + counts - 1) / counts);
        }
        if (table_clusters << q->header.cluster_bits > QCOW2_REFCOUNT_TABLE_BYTES_MAX)
                return -EFBIG;
        refs = realloc(w->refs, total * sizeof(*refs));
        if (!refs)
                return -ENOMEM;
        w->refs = refs;
        for (uint64_t n = first; n < total; n++)
                refs[n] = 1;
        w->clusters = total;
        entries = MAX(table_clusters * q->cluster_bytes / 8, 1u);
        table = calloc(entries, 8);
        if (!table)
                return -ENOMEM;
        table_cache_done(&q->cache); /* counts as they were */
        r = write_blocks(w, first, table, blocks);
        if (r == 0)
                r = write_l1(q, (first + blocks) << q->header.cluster_bits, table, entries);
        if (r == 0)
                r = block_flush(q->file);
        if (r < 0) {
                free(table);
                return r;
        }
        q->header.refcount_offset = (first + blocks) << q->header.cluster_bits;
        q->header.refcount_clusters = (uint32_t)table_clusters;
        free(q->refcount_table);
        q->refcount_table = table;
        q->refcount_entries = (uint32_t)entries;
        q->file_clusters = total;
        q->search = 0;
        r = qcow2_write_header(q);
        return r == 0 ? block_flush(q->file) : r;
}

/* ---- COPIED ---- */

/*
 * Makes the bit as it should be, when that is asked for: true. Where it is missing the cluster is copied once without need, which a crash
 * may leave behind; where it stands on a shared one that would be written to in place.
 */
static bool fix_copied(struct walk *w, uint64_t *entry, const char *what, uint64_t where)
{
        struct qcow2 *q = w->q;
        uint64_t offset = *entry & QCOW2_OFFSET;
        bool alone = possible(w, offset) && w->refs[offset >> q->header.cluster_bits] == 1, mend;

        if (!offset || alone == !!(*entry & QCOW2_COPIED))
                return false;
        mend = w->found->mend == BLOCK_MEND_ALL || (alone && w->found->mend == BLOCK_MEND_LEAKS);
        if (!alone) {
                say(w, "%s %#" PRIx64 " is shared, and said not to be", what, where);
                w->found->errors++;
                w->found->errors_mended += mend;
        }
        if (mend)
                *entry ^= QCOW2_COPIED;
        return mend;
}

static int check_copied_l2(struct walk *w, uint64_t offset, uint64_t guest)
{
        struct qcow2 *q = w->q;
        unsigned words = q->l2_entry_bytes / 8;
        bool changed = false;
        int r = read_table(w, offset);

        for (uint64_t n = 0; r == 0 && n < UINT64_C(1) << q->l2_bits; n++)
                if (!(w->table[n * words] & QCOW2_COMPRESSED))
                        changed |= fix_copied(w, &w->table[n * words], "guest offset", guest + (n << q->header.cluster_bits));
        return r == 0 && changed ? write_table(w, offset) : r;
}

static int check_copied(struct walk *w)
{
        struct qcow2 *q = w->q;
        bool changed = false;
        int r = 0;

        for (uint64_t n = 0; n < q->header.l1_entries && r == 0; n++) {
                if (!possible(w, q->l1[n] & QCOW2_OFFSET))
                        continue;
                changed |= fix_copied(w, &q->l1[n], "L1 entry", n);
                if (q->data == q->file)
                        r = check_copied_l2(w, q->l1[n] & QCOW2_OFFSET, n << q->l2_bits << q->header.cluster_bits);
        }
        return r == 0 && changed ? write_l1(q, q->header.l1_offset, q->l1, q->header.l1_entries) : r;
}

/* ---- all of it ---- */

static int walk_all(struct walk *w)
{
        int r = ref_or_error(w, 0, 1, "the header");

        if (r == 0)
                r = walk_active(w);
        if (r == 0)
                r = walk_snapshots(w);
        if (r == 0)
                r = walk_extensions(w);
        if (r == 0)
                r = walk_counts(w);
        if (r == 0)
                r = compare(w);
        if (r == 0 && w->found->mend != BLOCK_MEND_NOTHING)
                r = qcow2_cache_write(w->q);
        if (r == 0 && w->rebuild && w->found->mend == BLOCK_MEND_ALL)
                r = rebuild(w);
        if (r == 0)
                r = check_copied(w);
        if (r == 0 && w->drop_bitmaps) {
                qcow2_drop_extension(w->q, QCOW2_EXT_BITMAPS);
                r = qcow2_change_header(w->q);
                w->q->bitmaps_damaged = false;
        }
        if (r == 0 && w->found->mend != BLOCK_MEND_NOTHING)
                r = block_flush(w->q->file);
        return r;
}

int qcow2_check_image(struct block *block, struct block_check *check, struct err *err)
{
        struct qcow2 *q = to_qcow2(block);
        struct walk w = { .q = q, .found = check, .clusters = q->file_clusters };
        int r;

        if (w.clusters > CLUSTERS_MAX)
                return err_set(err, -EFBIG, "disk %s: a file of %" PRIu64 " clusters is too large to check", q->block.path, w.clusters);
        w.refs = calloc(w.clusters, sizeof(*w.refs));
        w.table = malloc(q->cluster_bytes);
        r = w.refs && w.table ? walk_all(&w) : -ENOMEM;
        free(w.refs);
        free(w.table);
        if (r < 0)
                return err_errno(err, r, "cannot check disk %s", q->block.path);
        if (check->mend == BLOCK_MEND_ALL && check->errors == check->errors_mended) {
                r = qcow2_mark(q, QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT, false);
                if (r == 0 && check->errors)
                        r = qcow2_write_header(q);
                q->broken = r < 0;
                q->counts_wrong = false;
        }
        return r < 0 ? err_errno(err, r, "cannot write to disk %s", q->block.path) : 0;
}

static int count_anew(struct walk *w, uint32_t order, struct err *err)
{
        struct qcow2 *q = w->q;
        struct qcow2_header before = q->header;
        uint64_t most = order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << order)) - 1;
        int r = walk_all(w);

        if (r == 0 && (w->found->errors || w->found->leaks))
                return err_set(err, -EIO, "disk %s is not sound: virta disk check --repair %s", q->block.path, q->block.path);
        for (uint64_t n = 0; n < w->clusters && r == 0; n++)
                if (w->refs[n] > most || w->refs[n] == REFS_MAX)
                        return err_set(err, -ERANGE, "disk %s has clusters that are used %u times, more than %u bits count", q->block.path,
                                       w->refs[n], 1u << order);
        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", q->block.path);
        q->header.refcount_order = order;
        qcow2_geometry(q);
        r = rebuild(w);
        if (r < 0) {
                q->broken |= q->header.refcount_offset != before.refcount_offset;
                q->header = before;
                qcow2_geometry(q);
        }
        return r < 0 ? err_errno(err, r, "cannot write to disk %s", q->block.path) : 0;
}

int qcow2_count_anew(struct qcow2 *q, uint32_t order, struct err *err)
{
        struct block_check found = { .mend = BLOCK_MEND_NOTHING };
        struct walk w = { .q = q, .found = &found, .clusters = q->file_clusters };
        int r;

        if (w.clusters > CLUSTERS_MAX)
                return err_set(err, -EFBIG, "disk %s: a file of %" PRIu64 " clusters is too large for that", q->block.path, w.clusters);
        w.refs = calloc(w.clusters, sizeof(*w.refs));
        w.table = malloc(q->cluster_bytes);
        r = w.refs && w.table ? count_anew(&w, order, err) : err_nomem(err);
        free(w.refs);
        free(w.table);
        return r;
}

int qcow2_repair(struct qcow2 *q, struct err *err)
{
        struct block_check check = { .mend = BLOCK_MEND_ALL };
        int r = qcow2_check_image(&q->block, &check, err);

        if (r == 0 && check.errors != check.errors_mended)
                return err_set(err, -EIO, "disk %s was not closed, and cannot be made right by itself: virta disk check %s", q->block.path, q->block.path);
        return r;
}
