/*
 * Persistent dirty bitmaps ("Bitmaps extension", "Bitmap directory", "Bitmap table", "Dirty tracking bitmaps").
 *
 *      header extension ─▶ directory ─▶ for each: table ─▶ clusters of bits; an entry without a cluster stands for all zeroes, or all ones
 *
 * While the image is written to, bits are in memory, and the directory in the file says of each bitmap that it is in use: after a crash
 * what the file has of it is old, and it is inconsistent. When the image is finished, bitmaps that changed go into new clusters, a new
 * directory is written beside the old one, and the header's first sector changes over to it. An image whose autoclear bit is gone was written to
 * by somebody who does not know bitmaps: all of them are dropped.
 *
 * The flag `auto` of the format is the core's `enabled`.
 */
#include <errno.h>

#include "base/cursor.h"
#include "base/log.h"
#include "block/bitmap.h"
#include "block/qcow2/qcow2.h"

#define FLAG_IN_USE 1u
#define FLAG_AUTO 2u
#define FLAG_EXTRA_COMPATIBLE 4u
#define TYPE_DIRTY 1
#define FIXED_BYTES 24
#define EXTENSION_BYTES 24
#define GRANULARITY_BITS_MIN 9
#define GRANULARITY_BITS_MAX 31
/* As QEMU has them. */
#define BITMAPS_MAX 65535u
#define DIRECTORY_BYTES_MAX ((uint64_t)64 << 20)
#define BITS_BYTES_MAX ((uint64_t)512 << 20)
#define TABLE_RESERVED (~(QCOW2_OFFSET | 1))

static void entry_free(struct qcow2_bitmap *e)
{
        free(e->name);
        free(e->extra);
        free(e);
}

static void list_free(struct qcow2_bitmap *list)
{
        while (list) {
                struct qcow2_bitmap *next = list->next;

                entry_free(list);
                list = next;
        }
}

void qcow2_bitmaps_done(struct qcow2 *q)
{
        list_free(q->bitmap);
        q->bitmap = NULL;
}

static uint64_t table_clusters(const struct qcow2 *q, const struct qcow2_bitmap *e)
{
        return qcow2_clusters(q, e->table_entries * 8ull);
}

/* So many bits does a cluster have, and so many clusters a bitmap of the disk. */
static uint64_t cluster_bits(const struct qcow2 *q)
{
        return q->cluster_bytes * 8;
}

static uint64_t entries_of(const struct qcow2 *q, uint64_t size_bytes, unsigned granularity_bits)
{
        uint64_t bits = (size_bytes >> granularity_bits) + !!(size_bytes & ((UINT64_C(1) << granularity_bits) - 1));

        return (bits + cluster_bits(q) - 1) / cluster_bits(q);
}

/* Bits that we understand. */
static bool usable(const struct qcow2_bitmap *e)
{
        return e->type == TYPE_DIRTY && !(e->flags & FLAG_IN_USE) && (!e->extra_bytes || e->flags & FLAG_EXTRA_COMPATIBLE) &&
               !(e->flags & ~(FLAG_IN_USE | FLAG_AUTO | FLAG_EXTRA_COMPATIBLE));
}

/* ---- reading ---- */

static int damaged(const struct qcow2 *q, struct err *err, const char *what)
{
        return err_set(err, -EIO, "disk %s: %s damaged; to go on without its bitmaps: virta disk check --repair %s", q->block.path, what, q->block.path);
}

static int parse_entry(struct qcow2 *q, struct cursor *in, struct qcow2_bitmap *e)
{
        size_t before = cursor_left(in);
        uint16_t name_bytes;
        const char *name;
        const void *extra;

        e->table_offset = cursor_be64(in);
        e->table_entries = cursor_be32(in);
        e->flags = cursor_be32(in);
        e->type = cursor_u8(in);
        e->granularity_bits = cursor_u8(in);
        name_bytes = cursor_be16(in);
        e->extra_bytes = cursor_be32(in);
        extra = cursor_take(in, e->extra_bytes);
        name = cursor_take(in, name_bytes);
        (void)cursor_take(in, -(before - cursor_left(in)) & 7);
        if (in->bad || !name_bytes || name_bytes > BLOCK_BITMAP_NAME_MAX || memchr(name, 0, name_bytes) || !e->table_entries ||
            !qcow2_offset_good(q, e->table_offset) || e->table_entries > BITS_BYTES_MAX >> q->header.cluster_bits || e->granularity_bits > 63)
                return -EIO;
        e->name = strndup(name, name_bytes);
        e->extra = malloc(MAX(e->extra_bytes, 1u));
        if (!e->name || !e->extra)
                return -ENOMEM;
        memcpy(e->extra, extra, e->extra_bytes);
        return 0;
}

static int read_directory(struct qcow2 *q, const struct qcow2_extension *extension, struct err *err)
{
        struct cursor in = cursor_from(extension->bytes, extension->size_bytes);
        struct qcow2_bitmap **end = &q->bitmap;
        uint32_t count = cursor_be32(&in);
        _cleanup_free_ uint8_t *bytes = NULL;
        int r;

        (void)cursor_be32(&in);
        q->directory_bytes = cursor_be64(&in);
        q->directory_offset = cursor_be64(&in);
        if (in.bad || count > BITMAPS_MAX || q->directory_bytes > DIRECTORY_BYTES_MAX || !qcow2_offset_good(q, q->directory_offset) ||
            count * (uint64_t)FIXED_BYTES > q->directory_bytes)
                return damaged(q, err, "the directory of bitmaps is");
        bytes = malloc(MAX(q->directory_bytes, UINT64_C(1)));
        if (!bytes)
                return err_nomem(err);
        r = block_read(q->file, q->directory_offset, bytes, q->directory_bytes);
        in = cursor_from(bytes, q->directory_bytes);
        for (uint32_t n = 0; n < count && r == 0; n++) {
                struct qcow2_bitmap *e = calloc(1, sizeof(*e));

                if (!e)
                        return err_nomem(err);
                *end = e;
                end = &e->next;
                r = parse_entry(q, &in, e);
        }
        if (r == -ENOMEM)
                return err_nomem(err);
        return r < 0 ? damaged(q, err, "the directory of bitmaps is") : 0;
}

static int read_table(struct qcow2 *q, const struct qcow2_bitmap *e, uint64_t **table)
{
        int r;

        *table = calloc(e->table_entries, 8);
        if (!*table)
                return -ENOMEM;
        r = block_read(q->file, e->table_offset, *table, e->table_entries * 8ull);
        for (uint32_t n = 0; n < e->table_entries; n++)
                (*table)[n] = be64(&(*table)[n]);
        return r;
}

static int read_bits(struct qcow2 *q, const struct qcow2_bitmap *e, struct block_bitmap *b)
{
        _cleanup_free_ uint64_t *table = NULL;
        _cleanup_free_ uint8_t *bytes = malloc(q->cluster_bytes);
        uint64_t bits = block_bitmap_bits(b);
        int r = bytes ? read_table(q, e, &table) : -ENOMEM;

        for (uint32_t n = 0; n < e->table_entries && r == 0; n++) {
                uint64_t first = n * cluster_bits(q), count = MIN(cluster_bits(q), bits - first), offset = table[n] & QCOW2_OFFSET;

                if (table[n] & TABLE_RESERVED || (offset && (table[n] & 1 || !qcow2_offset_good(q, offset))))
                        return -EIO;
                if (offset) {
                        r = block_read(q->file, offset, bytes, q->cluster_bytes);
                        if (r == 0)
                                block_bitmap_from_bytes(b, first, count, bytes);
                } else if (table[n]) {
                        block_bitmap_set(b, first << b->shift, count << b->shift);
                }
        }
        return r;
}

static int load(struct qcow2 *q, const struct qcow2_bitmap *e, struct err *err)
{
        unsigned shift = MIN(MAX(e->granularity_bits, GRANULARITY_BITS_MIN), GRANULARITY_BITS_MAX);
        bool good = usable(e);
        struct block_bitmap *b;
        int r;

        if (good && (shift != e->granularity_bits || e->table_entries != entries_of(q, q->block.info.size_bytes, shift)))
                return damaged(q, err, "a bitmap is");
        r = block_bitmap_add(&q->block, e->name, UINT32_C(1) << shift, &b, err);
        if (r < 0)
                return r;
        b->persistent = true;
        b->inconsistent = !good;
        b->enabled = good && e->flags & FLAG_AUTO;
        r = good ? read_bits(q, e, b) : 0;
        b->changed = false;
        if (r == -ENOMEM)
                return err_nomem(err);
        return r < 0 ? damaged(q, err, "a bitmap is") : 0;
}

int qcow2_bitmaps_open(struct qcow2 *q, unsigned flags, struct err *err)
{
        struct qcow2_extension *extension = qcow2_extension(q, QCOW2_EXT_BITMAPS);
        struct err why = ERR_INIT;
        int r;

        if (!extension)
                return 0;
        if (!(q->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS)) {
                if (!(flags & (BLOCK_OPEN_READONLY | BLOCK_OPEN_REPAIR))) {
                        log_warning("disk %s was written to by a program that does not know bitmaps: those that it had are dropped", q->block.path);
                        qcow2_drop_extension(q, QCOW2_EXT_BITMAPS);
                }
                return 0;
        }
        r = read_directory(q, extension, &why);
        for (struct qcow2_bitmap *e = q->bitmap; e && r == 0; e = e->next)
                r = load(q, e, &why);
        if (r == 0)
                return 0;
        block_bitmaps_free(&q->block);
        qcow2_bitmaps_done(q);
        q->bitmaps_damaged = r != -ENOMEM;
        if (flags & (BLOCK_OPEN_READONLY | BLOCK_OPEN_REPAIR)) /* the disk itself can be read */
                return 0;
        return err_set(err, r, "%s", why.text);
}

/* ---- writing ---- */

static size_t entry_bytes(const struct qcow2_bitmap *e)
{
        return align_up(FIXED_BYTES + e->extra_bytes + strlen(e->name), 8);
}

static uint8_t *directory(const struct qcow2_bitmap *list, uint64_t *size_bytes)
{
        uint8_t *bytes, *to;

        *size_bytes = 0;
        for (const struct qcow2_bitmap *e = list; e; e = e->next)
                *size_bytes += entry_bytes(e);
        to = bytes = calloc(1, MAX(*size_bytes, UINT64_C(1)));
        for (const struct qcow2_bitmap *e = list; bytes && e; e = e->next) {
                put_be64(to, e->table_offset);
                put_be32(to + 8, e->table_entries);
                put_be32(to + 12, e->flags);
                to[16] = e->type;
                to[17] = e->granularity_bits;
                put_be16(to + 18, (uint16_t)strlen(e->name));
                put_be32(to + 20, e->extra_bytes);
                memcpy(to + FIXED_BYTES, e->extra, e->extra_bytes);
                memcpy(to + FIXED_BYTES + e->extra_bytes, e->name, strlen(e->name));
                to += entry_bytes(e);
        }
        return bytes;
}

/* Only flags differ, so that what a crash leaves of it are flags, too. */
int qcow2_bitmaps_use(struct qcow2 *q, struct err *err)
{
        _cleanup_free_ uint8_t *bytes = NULL;
        uint64_t size_bytes;
        int r;

        if (!q->bitmap)
                return 0;
        for (struct qcow2_bitmap *e = q->bitmap; e; e = e->next)
                e->flags |= FLAG_IN_USE;
        bytes = directory(q->bitmap, &size_bytes);
        if (!bytes || size_bytes > q->directory_bytes)
                return err_nomem(err);
        r = block_write(q->file, q->directory_offset, bytes, size_bytes);
        if (r == 0)
                r = block_flush(q->file);
        return r < 0 ? err_errno(err, r, "cannot write to disk %s", q->block.path) : 0;
}

static int write_bits(struct qcow2 *q, const struct block_bitmap *b, uint64_t first, uint64_t count, uint8_t *bytes, uint64_t *entry)
{
        uint64_t dirty = block_bitmap_count(b, first, count), one = 1, cluster;
        bool fresh;
        int r;

        if (!dirty || dirty == count) {
                *entry = dirty ? 1 : 0;
                return 0;
        }
        r = qcow2_take(q, &one, true, &cluster, &fresh);
        if (r < 0)
                return r;
        *entry = cluster << q->header.cluster_bits;
        memset(bytes, 0, q->cluster_bytes);
        block_bitmap_to_bytes(b, first, count, bytes);
        return block_write(q->file, *entry, bytes, q->cluster_bytes);
}

/* The bits into clusters of their own, and a table of these. */
static int write_bitmap(struct qcow2 *q, const struct block_bitmap *b, struct qcow2_bitmap *e)
{
        uint64_t bits = block_bitmap_bits(b), entries = entries_of(q, b->size_bytes, b->shift), entry = 0;
        _cleanup_free_ uint8_t *bytes = malloc(q->cluster_bytes), *table = calloc(entries, 8);
        int r = bytes && table ? 0 : -ENOMEM;

        for (uint64_t n = 0; n < entries && r == 0; n++) {
                r = write_bits(q, b, n * cluster_bits(q), MIN(cluster_bits(q), bits - n * cluster_bits(q)), bytes, &entry);
                put_be64(table + n * 8, entry);
        }
        if (r == 0)
                r = qcow2_write_aside(q, table, entries * 8, &e->table_offset);
        e->table_entries = (uint32_t)entries;
        return r;
}

/* What the entry will say; bits that did not change stay where they are. */
static int store(struct qcow2 *q, const struct block_bitmap *b, const struct qcow2_bitmap *old, struct qcow2_bitmap **new)
{
        struct qcow2_bitmap *e = calloc(1, sizeof(*e));

        if (!e)
                return -ENOMEM;
        *new = e;
        e->type = TYPE_DIRTY;
        e->granularity_bits = (uint8_t)b->shift;
        if (old)
                *e = *old;
        e->next = NULL;
        e->name = strdup(b->name);
        e->extra = malloc(MAX(e->extra_bytes, 1u));
        if (!e->name || !e->extra)
                return -ENOMEM;
        if (e->extra_bytes)
                memcpy(e->extra, old->extra, e->extra_bytes);
        if (b->inconsistent)
                return 0;
        e->flags = (e->flags & FLAG_EXTRA_COMPATIBLE) | (b->enabled ? FLAG_AUTO : 0);
        return b->changed || !old ? write_bitmap(q, b, e) : 0;
}

static struct qcow2_bitmap *find(struct qcow2_bitmap *list, const char *name)
{
        while (list && strcmp(list->name, name))
                list = list->next;
        return list;
}

static int store_all(struct qcow2 *q, struct qcow2_bitmap **list, uint32_t *count)
{
        struct qcow2_bitmap **end = list;
        int r = 0;

        *count = 0;
        for (const struct block_bitmap *b = q->block.bitmaps; b && r == 0; b = b->next) {
                if (!b->name || !b->persistent)
                        continue;
                r = store(q, b, find(q->bitmap, b->name), end);
                while (*end)
                        end = &(*end)->next;
                ++*count;
        }
        return r;
}

/* Table and clusters of a bitmap that the directory does not name any more. */
static int release(struct qcow2 *q, const struct qcow2_bitmap *e)
{
        _cleanup_free_ uint64_t *table = NULL;
        int r = read_table(q, e, &table);

        for (uint32_t n = 0; n < e->table_entries && r == 0; n++)
                if (qcow2_offset_good(q, table[n] & QCOW2_OFFSET))
                        r = qcow2_release(q, (table[n] & QCOW2_OFFSET) >> q->header.cluster_bits, 1);
        return r == 0 ? qcow2_release(q, e->table_offset >> q->header.cluster_bits, table_clusters(q, e)) : r;
}

static int name_directory(struct qcow2 *q, uint64_t offset, uint64_t size_bytes, uint32_t count)
{
        struct qcow2_extension *extension;

        if (!count) {
                qcow2_drop_extension(q, QCOW2_EXT_BITMAPS);
                q->header.autoclear &= ~QCOW2_AUTOCLEAR_BITMAPS;
                return qcow2_change_header(q);
        }
        extension = qcow2_set_extension(q, QCOW2_EXT_BITMAPS, EXTENSION_BYTES);
        if (!extension)
                return -ENOMEM;
        put_be32(extension->bytes, count);
        put_be32(extension->bytes + 4, 0);
        put_be64(extension->bytes + 8, size_bytes);
        put_be64(extension->bytes + 16, offset);
        q->header.autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
        return qcow2_change_header(q);
}

/* The new list is the one: what the old one alone had is given back. */
static int change_over(struct qcow2 *q, struct qcow2_bitmap *list, uint32_t count)
{
        uint64_t size_bytes, offset = 0, old = q->directory_offset, old_bytes = q->directory_bytes;
        _cleanup_free_ uint8_t *bytes = directory(list, &size_bytes);
        struct qcow2_bitmap *before = q->bitmap;
        int r = bytes ? 0 : -ENOMEM;

        if (r == 0 && count)
                r = qcow2_write_aside(q, bytes, size_bytes, &offset); /* with a flush for all that it names */
        if (r == 0)
                r = name_directory(q, offset, size_bytes, count);
        if (r < 0) {
                list_free(list);
                return r;
        }
        q->bitmap = list;
        q->directory_offset = offset;
        q->directory_bytes = count ? size_bytes : 0;
        for (const struct qcow2_bitmap *e = before; e && r == 0; e = e->next) {
                const struct qcow2_bitmap *now = find(list, e->name);

                if (!now || now->table_offset != e->table_offset)
                        r = release(q, e);
        }
        if (r == 0 && before)
                r = qcow2_release(q, old >> q->header.cluster_bits, qcow2_clusters(q, old_bytes));
        list_free(before);
        return r;
}

int qcow2_bitmaps_store(struct qcow2 *q)
{
        struct qcow2_bitmap *list = NULL;
        uint32_t count;
        int r = store_all(q, &list, &count);

        if (r < 0 || (!list && !q->bitmap)) {
                list_free(list);
                return r;
        }
        r = change_over(q, list, count);
        for (struct block_bitmap *b = q->block.bitmaps; b && r == 0; b = b->next)
                b->changed &= !b->persistent;
        return r;
}

/* ---- for others ---- */

int qcow2_keep_bitmap(struct block *block, const char *name, uint32_t granularity_bytes, struct err *err)
{
        struct qcow2 *q = to_qcow2(block);
        unsigned count = 0;

        for (const struct block_bitmap *b = block->bitmaps; b; b = b->next)
                count += b->name && b->persistent;
        if (q->header.version < 3)
                return err_set(err, -EOPNOTSUPP, "disk %s is of version 2 of qcow2, which keeps no bitmaps", block->path);
        if (count >= BITMAPS_MAX || strlen(name) > BLOCK_BITMAP_NAME_MAX)
                return err_set(err, -EFBIG, "disk %s has too many bitmaps, or the name is too long", block->path);
        if (entries_of(q, block->info.size_bytes, (unsigned)__builtin_ctz(granularity_bytes)) > BITS_BYTES_MAX >> q->header.cluster_bits)
                return err_set(err, -EFBIG, "a bitmap of %" PRIu32 " bytes a bit would be too large for disk %s", granularity_bytes, block->path);
        return 0;
}

json_t *qcow2_bitmaps_describe(const struct qcow2 *q)
{
        json_t *list = json_array();

        for (const struct qcow2_bitmap *e = q->bitmap; list && e; e = e->next)
                json_array_append_new(list, json_pack("{s:s, s:I, s:b, s:b}", "name", e->name, "granularity_bytes",
                                                      (json_int_t)(UINT64_C(1) << MIN(e->granularity_bits, GRANULARITY_BITS_MAX)),
                                                      "enabled", !!(e->flags & FLAG_AUTO), "in_use", !!(e->flags & FLAG_IN_USE)));
        return list;
}

int qcow2_bitmaps_all_changed(struct qcow2 *q)
{
        int r = block_bitmaps_resize(&q->block, q->block.info.size_bytes, NULL);

        for (struct block_bitmap *b = q->block.bitmaps; b && r == 0; b = b->next)
                if (b->enabled && !b->inconsistent)
                        block_bitmap_set(b, 0, b->size_bytes);
        return r;
}
