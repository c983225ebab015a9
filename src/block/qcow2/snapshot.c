/*
 * Internal snapshots ("Snapshots"): further L1 tables, whose clusters are counted once more each, and a table that lists them.
 *
 *      create   count all that L1 names once more; copy L1; write a longer list; no entry is COPIED any more; the header names the new list
 *      delete   the header names a shorter list; count all that its L1 names once less; what is alone again is COPIED
 *      apply    count all that its L1 names once more; write a copy; the header names it as L1; count what the old one named once less
 *
 * Lists and L1 tables are written beside the old ones, and the header changes from one to the other in one sector. Counts are raised
 * before and lowered after that, so a crash loses space at most; the dirty bit, which is set meanwhile, has the next who opens the image
 * give it back. Nothing else is in flight: the caller has drained the disk.
 */
#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "base/cursor.h"
#include "block/qcow2/qcow2.h"

#define FIXED_BYTES 40
#define EXTRA_BYTES 16 /* as version 3 wants them */
#define SNAPSHOTS_MAX 65536u
#define TABLE_BYTES_MAX ((uint64_t)64 << 20)

/* An entry of the list as it is in the file. */
struct entry {
        uint64_t l1_offset;
        uint32_t l1_entries;
        uint64_t disk_bytes, state_bytes, clock_ns;
        uint32_t date_s, date_ns;
        char *id, *name;
        uint8_t *extra; /* as it was */
        uint32_t extra_bytes;
};

struct list {
        struct entry *entry;
        uint32_t count;
        uint64_t size_bytes; /* of the table in the file */
};

static void entry_done(struct entry *e)
{
        free(e->id);
        free(e->name);
        free(e->extra);
}

static void list_done(struct list *list)
{
        for (uint32_t n = 0; n < list->count; n++)
                entry_done(&list->entry[n]);
        free(list->entry);
}

/* ---- the list ---- */

static char *take_name(struct cursor *in, size_t size_bytes)
{
        const char *text = cursor_take(in, size_bytes);

        return text ? strndup(text, size_bytes) : NULL;
}

static int parse_entry(struct qcow2 *q, struct cursor *in, struct entry *e)
{
        uint16_t id_bytes, name_bytes;
        const uint8_t *extra;
        size_t before = cursor_left(in);

        *e = (struct entry){ .l1_offset = cursor_be64(in), .l1_entries = cursor_be32(in) };
        id_bytes = cursor_be16(in);
        name_bytes = cursor_be16(in);
        e->date_s = cursor_be32(in);
        e->date_ns = cursor_be32(in);
        e->clock_ns = cursor_be64(in);
        e->state_bytes = cursor_be32(in);
        e->extra_bytes = cursor_be32(in);
        extra = cursor_take(in, e->extra_bytes);
        if (!extra)
                return -EIO;
        if (e->extra_bytes >= 8)
                e->state_bytes = be64(extra);
        e->disk_bytes = e->extra_bytes >= 16 ? be64(extra + 8) : q->header.size_bytes;
        e->extra = malloc(MAX(e->extra_bytes, 1u));
        if (e->extra)
                memcpy(e->extra, extra, e->extra_bytes);
        e->id = take_name(in, id_bytes);
        e->name = take_name(in, name_bytes);
        (void)cursor_take(in, -(before - cursor_left(in)) & 7);
        return in->bad ? -EIO : e->extra && e->id && e->name ? 0 : -ENOMEM;
}

/* How long the table is nobody says: it is read as far as its entries go. */
static int read_bytes(struct qcow2 *q, uint8_t **bytes, size_t *size_bytes)
{
        uint64_t at = q->header.snapshots_offset, end = MIN(at + TABLE_BYTES_MAX, MAX(q->file_clusters << q->header.cluster_bits, at));
        size_t size = (size_t)MIN(end - at, (uint64_t)65536 * q->header.snapshots);

        *bytes = malloc(MAX(size, (size_t)1));
        if (!*bytes)
                return -ENOMEM;
        *size_bytes = size;
        return size ? block_read(q->file, at, *bytes, size) : 0;
}

static int read_list(struct qcow2 *q, struct list *list, struct err *err)
{
        _cleanup_free_ uint8_t *bytes = NULL;
        size_t size_bytes = 0;
        struct cursor in;
        int r;

        *list = (struct list){ 0 };
        if (!q->header.snapshots)
                return 0;
        if (q->header.snapshots > SNAPSHOTS_MAX || q->header.snapshots_offset & (q->cluster_bytes - 1))
                return err_set(err, -EIO, "disk %s is damaged: its header says %" PRIu32 " snapshots", q->block.path, q->header.snapshots);
        r = read_bytes(q, &bytes, &size_bytes);
        in = cursor_from(bytes, size_bytes);
        if (r == 0)
                list->entry = calloc(q->header.snapshots, sizeof(*list->entry));
        if (r == 0 && !list->entry)
                r = -ENOMEM;
        while (r == 0 && list->count < q->header.snapshots)
                r = parse_entry(q, &in, &list->entry[list->count++]);
        if (r == 0) {
                list->size_bytes = size_bytes - cursor_left(&in);
                return 0;
        }
        list_done(list);
        return err_errno(err, r, "disk %s: cannot read its list of snapshots", q->block.path);
}

static size_t entry_bytes(const struct entry *e)
{
        return align_up(FIXED_BYTES + e->extra_bytes + strlen(e->id) + strlen(e->name), 8);
}

static void put_entry(uint8_t *to, const struct entry *e)
{
        put_be64(to, e->l1_offset);
        put_be32(to + 8, e->l1_entries);
        put_be16(to + 12, (uint16_t)strlen(e->id));
        put_be16(to + 14, (uint16_t)strlen(e->name));
        put_be32(to + 16, e->date_s);
        put_be32(to + 20, e->date_ns);
        put_be64(to + 24, e->clock_ns);
        put_be32(to + 32, e->state_bytes > UINT32_MAX ? 0 : (uint32_t)e->state_bytes);
        put_be32(to + 36, e->extra_bytes);
        to += FIXED_BYTES;
        memcpy(to, e->extra, e->extra_bytes);
        memcpy(to + e->extra_bytes, e->id, strlen(e->id));
        memcpy(to + e->extra_bytes + strlen(e->id), e->name, strlen(e->name));
}

static int write_aside(struct qcow2 *q, const void *bytes, uint64_t size_bytes, bool flush, uint64_t *offset)
{
        uint64_t count = qcow2_clusters(q, size_bytes), cluster;
        _cleanup_free_ uint8_t *whole = NULL;
        bool fresh;
        int r = qcow2_take(q, &count, true, &cluster, &fresh);

        if (r < 0)
                return r;
        *offset = cluster << q->header.cluster_bits;
        whole = calloc(count, q->cluster_bytes);
        if (whole) {
                memcpy(whole, bytes, size_bytes);
                r = block_write(q->file, *offset, whole, count << q->header.cluster_bits);
        } else {
                r = -ENOMEM;
        }
        if (r == 0 && flush)
                r = block_flush(q->file);
        if (r < 0)
                qcow2_untake(q, cluster, count);
        return r;
}

int qcow2_write_aside(struct qcow2 *q, const void *bytes, uint64_t size_bytes, uint64_t *offset)
{
        return write_aside(q, bytes, size_bytes, true, offset);
}

/* The list, and then the header that names it; the old one's clusters are given back. */
static int change_list(struct qcow2 *q, const struct list *list)
{
        uint64_t size_bytes = 0, offset = 0, old = q->header.snapshots_offset, old_bytes = list->size_bytes;
        _cleanup_free_ uint8_t *bytes = NULL;
        uint8_t *to;
        int r = 0;

        for (uint32_t n = 0; n < list->count; n++)
                size_bytes += entry_bytes(&list->entry[n]);
        if (size_bytes > TABLE_BYTES_MAX)
                return -EFBIG;
        to = bytes = calloc(1, MAX(size_bytes, UINT64_C(1)));
        if (!bytes)
                return -ENOMEM;
        for (uint32_t n = 0; n < list->count; n++) {
                put_entry(to, &list->entry[n]);
                to += entry_bytes(&list->entry[n]);
        }
        if (size_bytes)
                r = qcow2_write_aside(q, bytes, size_bytes, &offset);
        if (r < 0)
                return r;
        q->header.snapshots = list->count;
        q->header.snapshots_offset = offset;
        r = qcow2_write_header(q);
        if (r == 0)
                r = block_flush(q->file);
        if (r == 0 && old && old_bytes)
                r = qcow2_release(q, old >> q->header.cluster_bits, qcow2_clusters(q, old_bytes));
        return r;
}

/* By its id, else by its name; NULL. */
static struct entry *find(const struct list *list, const char *which)
{
        for (uint32_t n = 0; n < list->count; n++)
                if (strcmp(list->entry[n].id, which) == 0)
                        return &list->entry[n];
        for (uint32_t n = 0; n < list->count; n++)
                if (strcmp(list->entry[n].name, which) == 0)
                        return &list->entry[n];
        return NULL;
}

/* ---- counting all that an L1 names ---- */

/* Clusters side by side are counted in one go. */
struct run {
        struct qcow2 *q;
        uint64_t first, count;
        int64_t by;
};

static int run_end(struct run *run)
{
        int r = run->count ? qcow2_refcount_add(run->q, run->first, run->count, run->by) : 0;

        run->count = 0;
        return r;
}

static int run_add(struct run *run, uint64_t first, uint64_t count)
{
        int r;

        if (run->count && run->first + run->count == first) {
                run->count += count;
                return 0;
        }
        r = run_end(run);
        run->first = first;
        run->count = count;
        return r;
}

static int count_l2(struct run *run, const uint8_t *table)
{
        struct qcow2 *q = run->q;
        int r = 0;

        for (uint64_t at = 0; at < q->cluster_bytes && r == 0; at += q->l2_entry_bytes) {
                uint64_t entry = be64(table + at), offset, size_bytes;

                if (entry & QCOW2_COMPRESSED) {
                        qcow2_packed_place(q, entry, &offset, &size_bytes);
                        r = run_add(run, offset >> q->header.cluster_bits,
                                    ((offset + size_bytes - 1) >> q->header.cluster_bits) - (offset >> q->header.cluster_bits) + 1);
                } else if (entry & QCOW2_OFFSET) {
                        r = run_add(run, (entry & QCOW2_OFFSET) >> q->header.cluster_bits, 1);
                }
        }
        return r;
}

/* entries of an L1 in the host's byte order. When it fails midway what was counted is counted back; `done` entries of it. */
static int count_l1_part(struct qcow2 *q, const uint64_t *l1, uint64_t entries, int64_t by, uint64_t *done)
{
        _cleanup_free_ uint8_t *table = malloc(q->cluster_bytes);
        struct run run = { .q = q, .by = by };
        int r = table ? 0 : -ENOMEM;

        for (*done = 0; *done < entries && r == 0; ++*done) {
                uint64_t offset = l1[*done] & QCOW2_OFFSET;

                if (!offset)
                        continue;
                if (!qcow2_offset_good(q, offset))
                        return qcow2_corrupt(q, "an L2 table is said to be at %#" PRIx64, offset);
                r = block_read(q->file, offset, table, q->cluster_bytes);
                if (r == 0)
                        r = count_l2(&run, table);
                if (r == 0)
                        r = run_add(&run, offset >> q->header.cluster_bits, 1);
        }
        return r == 0 ? run_end(&run) : r;
}

static int count_l1(struct qcow2 *q, const uint64_t *l1, uint64_t entries, int64_t by)
{
        uint64_t done;

        return count_l1_part(q, l1, entries, by, &done);
}

/* ---- COPIED ---- */

static int fix_table(struct qcow2 *q, uint64_t offset, uint8_t *table)
{
        bool changed = false;
        int r = block_read(q->file, offset, table, q->cluster_bytes);

        for (uint64_t at = 0; at < q->cluster_bytes && r == 0; at += q->l2_entry_bytes) {
                uint64_t entry = be64(table + at), count = 0;

                if (entry & QCOW2_COMPRESSED || !(entry & QCOW2_OFFSET))
                        continue;
                r = qcow2_refcount(q, (entry & QCOW2_OFFSET) >> q->header.cluster_bits, &count);
                if (r == 0 && (count == 1) != !!(entry & QCOW2_COPIED)) {
                        put_be64(table + at, entry ^ QCOW2_COPIED);
                        changed = true;
                }
        }
        if (r == 0 && changed) {
                qcow2_cache_forget(q, offset, q->cluster_bytes);
                r = block_write(q->file, offset, table, q->cluster_bytes);
        }
        return r;
}

/* All of the active tables, by the counts as they are. Nothing of L2 in the cache is dirty. */
static int fix_copied(struct qcow2 *q)
{
        _cleanup_free_ uint8_t *table = malloc(q->cluster_bytes);
        int r = table ? 0 : -ENOMEM;

        for (uint32_t n = 0; n < q->header.l1_entries && r == 0; n++) {
                uint64_t offset = q->l1[n] & QCOW2_OFFSET, count = 0;

                if (!offset)
                        continue;
                r = qcow2_refcount(q, offset >> q->header.cluster_bits, &count);
                if (r == 0)
                        r = fix_table(q, offset, table);
                if (r < 0 || (count == 1) == !!(q->l1[n] & QCOW2_COPIED))
                        continue;
                q->l1[n] ^= QCOW2_COPIED;
                r = qcow2_write_l1(q, n);
        }
        return r;
}

/* ---- the three of them ---- */

static int begin(struct qcow2 *q, struct err *err)
{
        int r;

        if (q->block.info.readonly || q->broken)
                return err_set(err, -EROFS, "disk %s %s", q->block.path, q->broken ? "is damaged" : "is read-only");
        if (q->data != q->file)
                return err_set(err, -EOPNOTSUPP, "disk %s keeps its data in another file, and so has no snapshots", q->block.path);
        r = qcow2_flush(q);
        if (r == 0 && q->header.version >= 3)
                r = qcow2_mark(q, QCOW2_INCOMPATIBLE_DIRTY, true);
        return r < 0 ? err_errno(err, r, "cannot write to disk %s", q->block.path) : 0;
}

/* Counts are as they should be, and on stable storage. What went wrong in between leaves the bit set. */
static int end(struct qcow2 *q, int r, const char *what, const char *name, struct err *err)
{
        if (r == 0)
                r = qcow2_flush(q);
        if (r == 0 && qcow2_unsettled(q))
                r = qcow2_flush(q); /* what the first gave back */
        if (r == 0 && q->header.version >= 3 && !q->counts_wrong && !q->packing)
                r = qcow2_mark(q, QCOW2_INCOMPATIBLE_DIRTY, false);
        q->counts_wrong |= r < 0;
        return r < 0 ? err_errno(err, r, "disk %s: cannot %s snapshot %s", q->block.path, what, name) : 0;
}

static int write_l1_aside(struct qcow2 *q, const uint64_t *l1, uint32_t entries, bool flush, uint64_t *offset)
{
        _cleanup_free_ uint8_t *bytes = calloc(MAX(entries, 1u), 8);

        if (!bytes)
                return -ENOMEM;
        for (uint32_t n = 0; n < entries; n++)
                put_be64(bytes + n * 8ull, l1[n] & ~QCOW2_COPIED);
        return write_aside(q, bytes, MAX(entries, 1u) * 8ull, flush, offset);
}

/* An id that no other has: a number, as QEMU gives them. */
static int name_it(const struct list *list, const char *name, struct entry *e)
{
        unsigned long highest = 0;

        for (uint32_t n = 0; n < list->count; n++)
                highest = MAX(highest, strtoul(list->entry[n].id, NULL, 10));
        if (asprintf(&e->id, "%lu", highest + 1) < 0)
                e->id = NULL;
        e->name = strdup(name);
        e->extra = calloc(1, EXTRA_BYTES);
        e->extra_bytes = EXTRA_BYTES;
        if (!e->id || !e->name || !e->extra)
                return -ENOMEM;
        put_be64(e->extra + 8, e->disk_bytes);
        return 0;
}

/* What the dirty bit stands for wants no order of its own: it is on stable storage behind the flush of the list, before the header names that. */
static int create(struct qcow2 *q, struct list *list, struct entry *e)
{
        bool marked = q->header.version >= 3;
        uint64_t counted = 0, undone;
        int r = count_l1_part(q, q->l1, q->header.l1_entries, 1, &counted);

        if (r == -ERANGE) { /* the counts are too narrow: as before */
                int undo = count_l1_part(q, q->l1, counted ? counted - 1 : 0, -1, &undone);

                return undo < 0 ? undo : r;
        }
        if (r == 0)
                r = qcow2_cache_write(q);
        if (r == 0)
                r = write_l1_aside(q, q->l1, q->header.l1_entries, !marked, &e->l1_offset);
        if (r == 0)
                r = fix_copied(q);
        if (r == 0 && !marked)
                r = block_flush(q->file);
        return r == 0 ? change_list(q, list) : r;
}

static int snapshot_create(struct block *block, const char *name, struct err *err)
{
        struct qcow2 *q = to_qcow2(block);
        struct list list;
        struct entry *grown, *e;
        struct timespec now;
        int r = read_list(q, &list, err);

        if (r < 0)
                return r;
        clock_gettime(CLOCK_REALTIME, &now);
        if (!*name || strlen(name) > 1023)
                r = err_set(err, -EINVAL, "a snapshot's name has 1 to 1023 bytes");
        else if (find(&list, name))
                r = err_set(err, -EEXIST, "disk %s has a snapshot %s already", block->path, name);
        grown = r == 0 ? realloc(list.entry, (list.count + 1) * sizeof(*grown)) : NULL;
        if (grown) {
                list.entry = grown;
                e = &grown[list.count];
                *e = (struct entry){ .l1_entries = q->header.l1_entries, .disk_bytes = q->header.size_bytes, .date_s = (uint32_t)now.tv_sec,
                                     .date_ns = (uint32_t)now.tv_nsec };
                r = name_it(&list, name, e);
                list.count++;
                if (r == 0)
                        r = begin(q, err);
                if (r == 0)
                        r = end(q, create(q, &list, e), "make", name, err);
        } else if (r == 0) {
                r = err_nomem(err);
        }
        list_done(&list);
        return r;
}

static int read_l1(struct qcow2 *q, const struct entry *e, uint64_t **l1)
{
        int r;

        if (e->l1_entries * 8ull > QCOW2_L1_BYTES_MAX || (e->l1_entries && !qcow2_offset_good(q, e->l1_offset))) {
                qcow2_corrupt(q, "the L1 table of snapshot %s is said to be at %#" PRIx64, e->name, e->l1_offset);
                return -EIO;
        }
        *l1 = calloc(MAX(e->l1_entries, 1u), 8);
        if (!*l1)
                return -ENOMEM;
        r = block_read(q->file, e->l1_offset, *l1, e->l1_entries * 8ull);
        for (uint32_t n = 0; n < e->l1_entries; n++)
                (*l1)[n] = be64(&(*l1)[n]);
        return r;
}

static int drop_l1(struct qcow2 *q, const uint64_t *l1, uint64_t offset, uint32_t entries)
{
        int r = count_l1(q, l1, entries, -1);

        if (r == 0)
                r = qcow2_release(q, offset >> q->header.cluster_bits, qcow2_clusters(q, MAX(entries, 1u) * 8ull));
        return r == 0 ? fix_copied(q) : r;
}

static int delete(struct qcow2 *q, struct list *list, struct entry *e)
{
        _cleanup_free_ uint64_t *l1 = NULL;
        struct entry gone = *e;
        int r = read_l1(q, e, &l1);

        if (r != 0)
                return r;
        memmove(e, e + 1, (size_t)(&list->entry[list->count] - (e + 1)) * sizeof(*e));
        list->count--;
        r = change_list(q, list);
        if (r == 0)
                r = drop_l1(q, l1, gone.l1_offset, gone.l1_entries);
        entry_done(&gone);
        return r;
}

static int apply(struct qcow2 *q, struct list *list, struct entry *e)
{
        uint64_t offset, old_offset = q->header.l1_offset, counted = 0;
        uint32_t old_entries = q->header.l1_entries;
        uint64_t *l1 = NULL, *old = q->l1;
        int r = read_l1(q, e, &l1);

        if (r == 0)
                r = count_l1_part(q, l1, e->l1_entries, 1, &counted);
        if (r == -ERANGE && counted) {
                int undo = count_l1_part(q, l1, counted - 1, -1, &counted);

                r = undo < 0 ? undo : r;
        }
        if (r == 0)
                r = qcow2_cache_write(q);
        if (r == 0)
                r = write_l1_aside(q, l1, e->l1_entries, true, &offset);
        if (r != 0) {
                free(l1);
                return r;
        }
        for (uint32_t n = 0; n < e->l1_entries; n++)
                l1[n] &= ~QCOW2_COPIED;
        q->header.l1_offset = offset;
        q->header.l1_entries = e->l1_entries;
        q->header.size_bytes = e->disk_bytes;
        q->l1 = l1;
        r = qcow2_write_header(q);
        if (r == 0)
                r = block_flush(q->file);
        if (r == 0)
                r = drop_l1(q, old, old_offset, old_entries);
        free(old);
        q->block.info.size_bytes = align_up(q->header.size_bytes, BLOCK_SECTOR);
        return r == 0 ? qcow2_bitmaps_all_changed(q) : r;
}

/* Does `change` to the one that is named; what: in words. */
static int change_one(struct block *block, const char *which, const char *what, int (*change)(struct qcow2 *q, struct list *list, struct entry *e),
                      struct err *err)
{
        struct qcow2 *q = to_qcow2(block);
        struct list list;
        struct entry *e;
        int r = read_list(q, &list, err);

        if (r < 0)
                return r;
        e = find(&list, which);
        r = e ? begin(q, err) : err_set(err, -ENOENT, "disk %s has no snapshot %s", block->path, which);
        if (e && r == 0)
                r = end(q, change(q, &list, e), what, which, err);
        list_done(&list);
        return r;
}

static int snapshot_delete(struct block *block, const char *which, struct err *err)
{
        return change_one(block, which, "delete", delete, err);
}

static int snapshot_apply(struct block *block, const char *which, struct err *err)
{
        return change_one(block, which, "go back to", apply, err);
}

static int snapshot_list(struct block *block, json_t *into, struct err *err)
{
        struct list list;
        int r = read_list(to_qcow2(block), &list, err);

        for (uint32_t n = 0; r == 0 && n < list.count; n++) {
                const struct entry *e = &list.entry[n];
                json_t *about = json_pack("{s:s%, s:s%, s:I, s:I, s:I, s:I}", "id", e->id, strlen(e->id), "name", e->name, strlen(e->name), "date_s",
                                          (json_int_t)e->date_s, "size_bytes", (json_int_t)e->disk_bytes, "state_bytes", (json_int_t)e->state_bytes,
                                          "clock_ns", (json_int_t)e->clock_ns);

                if (json_array_append_new(into, about) < 0)
                        r = err_set(err, -EINVAL, "disk %s: the name of snapshot %" PRIu32 " is not UTF-8", block->path, n + 1);
        }
        if (r == 0)
                list_done(&list);
        return r;
}

const struct block_snapshot_ops qcow2_snapshots = {
        .list = snapshot_list, .create = snapshot_create, .apply = snapshot_apply, .delete = snapshot_delete,
};
