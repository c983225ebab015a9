/*
 * Writing the header: its fixed part, which lies in the file's first sector and so is the old or the new after a crash; and its whole
 * cluster, with extensions and the backing file's name, which a crash could tear. Changing that in an image that is there goes by way of a
 * copy:
 *
 *      1. the new extensions and name into sectors that nobody uses               flush
 *      2. the first sector: the new fixed part, and an extension that skips to them    flush
 *      3. the other sectors as they are to be                                     flush
 *      4. the first sector as it is to be                                         flush
 *
 * When only the first sector differs, that alone is written. In clusters of 1 and 2 KiB there may be no room for a copy; names of features
 * are left out there, so that seldom more than one sector is used.
 */
#include <errno.h>

#include "block/qcow2/qcow2.h"

#define SECTOR 512u
#define FEATURES_FROM_BYTES 4096u /* in smaller clusters names of features have no place */

static void put_fixed(const struct qcow2_header *h, uint8_t *bytes)
{
        put_be32(bytes, QCOW2_MAGIC);
        put_be32(bytes + 4, h->version);
        put_be64(bytes + 8, h->backing_offset);
        put_be32(bytes + 16, h->backing_bytes);
        put_be32(bytes + 20, h->cluster_bits);
        put_be64(bytes + 24, h->size_bytes);
        put_be32(bytes + 32, h->crypt_method);
        put_be32(bytes + 36, h->l1_entries);
        put_be64(bytes + 40, h->l1_offset);
        put_be64(bytes + 48, h->refcount_offset);
        put_be32(bytes + 56, h->refcount_clusters);
        put_be32(bytes + 60, h->snapshots);
        put_be64(bytes + 64, h->snapshots_offset);
        if (h->version == 2)
                return;
        put_be64(bytes + 72, h->incompatible);
        put_be64(bytes + 80, h->compatible);
        put_be64(bytes + 88, h->autoclear);
        put_be32(bytes + 96, h->refcount_order);
        put_be32(bytes + 100, h->header_bytes);
}

int qcow2_write_header(struct qcow2 *q)
{
        uint8_t bytes[QCOW2_HEADER_BYTES_V3];

        put_fixed(&q->header, bytes);
        return block_write(q->file, 0, bytes, q->header.version == 2 ? QCOW2_HEADER_BYTES_V2 : QCOW2_HEADER_BYTES_V3);
}

int qcow2_mark(struct qcow2 *q, uint64_t bit, bool on)
{
        uint64_t before = q->header.incompatible;
        int r;

        q->header.incompatible = on ? before | bit : before & ~bit;
        if (q->header.incompatible == before)
                return 0;
        r = qcow2_write_header(q);
        if (r == 0)
                r = block_flush(q->file);
        if (r < 0)
                q->header.incompatible = before;
        return r;
}

/* One extension; NULL: there is no room. */
static uint8_t *put_extension(uint8_t *at, const uint8_t *end, uint32_t type, const void *bytes, size_t size_bytes)
{
        if (!at || (size_t)(end - at) < 8 + align_up(size_bytes, 8) + 8)
                return NULL;
        put_be32(at, type);
        put_be32(at + 4, (uint32_t)size_bytes);
        memcpy(at + 8, bytes, size_bytes);
        return at + 8 + align_up(size_bytes, 8);
}

static uint8_t *put_feature(uint8_t *at, uint8_t kind, uint8_t bit, const char *name)
{
        at[0] = kind;
        at[1] = bit;
        memcpy(at + 2, name, strlen(name));
        return at + 48;
}

/* So that who does not know a feature can say what it is called. */
static uint8_t *put_features(uint8_t *at, const uint8_t *end)
{
        uint8_t table[8 * 48] = { 0 }, *to = table;

        to = put_feature(to, 0, 0, "dirty bit");
        to = put_feature(to, 0, 1, "corrupt bit");
        to = put_feature(to, 0, 2, "external data file");
        to = put_feature(to, 0, 3, "compression type");
        to = put_feature(to, 0, 4, "extended L2 entries");
        to = put_feature(to, 1, 0, "lazy refcounts");
        to = put_feature(to, 2, 0, "bitmaps");
        to = put_feature(to, 2, 1, "raw external data");
        return put_extension(at, end, QCOW2_EXT_FEATURE_NAMES, table, sizeof(table));
}

/* The one that must change without anything else first. */
static uint8_t *put_names(const struct qcow2 *q, uint8_t *at, const uint8_t *end)
{
        for (const struct qcow2_extension *e = q->extension; e; e = e->next)
                if (e->type == QCOW2_EXT_BITMAPS)
                        at = put_extension(at, end, e->type, e->bytes, e->size_bytes);
        if (q->backing_format)
                at = put_extension(at, end, QCOW2_EXT_BACKING_FORMAT, q->backing_format, strlen(q->backing_format));
        if (q->data_name)
                at = put_extension(at, end, QCOW2_EXT_DATA_FILE, q->data_name, strlen(q->data_name));
        for (const struct qcow2_extension *e = q->extension; e; e = e->next)
                if (e->type != QCOW2_EXT_BITMAPS)
                        at = put_extension(at, end, e->type, e->bytes, e->size_bytes);
        return at;
}

/* Extensions and the name into a cluster, from some place on: where they end. 0: there is no room. The header learns where the name is. */
static uint64_t put_list(struct qcow2 *q, uint8_t *cluster, uint64_t from)
{
        uint64_t name_bytes = q->backing_name ? strlen(q->backing_name) : 0;
        uint8_t *at, *end, *with_features = NULL;

        if (from + name_bytes > q->cluster_bytes)
                return 0;
        end = cluster + q->cluster_bytes - name_bytes;
        at = put_names(q, cluster + from, end);
        if (!at || end - at < 8)
                return 0;
        if (q->header.version > 2 && q->cluster_bytes >= FEATURES_FROM_BYTES)
                with_features = put_features(at, end);
        at = with_features ? with_features : at;
        memset(at, 0, 8);
        at += 8;
        q->header.backing_offset = name_bytes ? (uint64_t)(at - cluster) : 0;
        q->header.backing_bytes = (uint32_t)name_bytes;
        if (name_bytes)
                memcpy(at, q->backing_name, name_bytes);
        return (uint64_t)(at - cluster) + name_bytes;
}

static void put_head(struct qcow2 *q, uint8_t *cluster)
{
        put_fixed(&q->header, cluster);
        if (q->header.version == 3)
                cluster[QCOW2_HEADER_BYTES_V3] = q->header.compression;
}

static void choose_length(struct qcow2 *q)
{
        q->header.header_bytes = q->header.version == 2 ? QCOW2_HEADER_BYTES_V2 : MAX(q->header.header_bytes, (uint32_t)QCOW2_HEADER_BYTES);
}

int qcow2_write_header_cluster(struct qcow2 *q)
{
        _cleanup_free_ uint8_t *cluster = calloc(1, q->cluster_bytes);

        if (!cluster)
                return -ENOMEM;
        choose_length(q);
        if (!put_list(q, cluster, q->header.header_bytes))
                return -ENOSPC;
        put_head(q, cluster);
        return block_write(q->file, 0, cluster, q->cluster_bytes);
}

/* ---- in an image that is there ---- */

static int write_and_flush(struct qcow2 *q, const uint8_t *cluster, uint64_t from, uint64_t to)
{
        int r = block_write(q->file, from, cluster + from, to - from);

        return r == 0 ? block_flush(q->file) : r;
}

static uint64_t used_end(const uint8_t *cluster, uint64_t size_bytes)
{
        while (size_bytes && !cluster[size_bytes - 1])
                size_bytes--;
        return align_up(size_bytes, SECTOR);
}

/* By way of a copy at `aside`. */
static int change_by_copy(struct qcow2 *q, const uint8_t *whole, uint64_t end, uint64_t aside)
{
        _cleanup_free_ uint8_t *copy = calloc(1, q->cluster_bytes);
        uint64_t backing_offset = q->header.backing_offset, copy_end;
        int r;

        if (!copy)
                return -ENOMEM;
        memcpy(copy, whole, SECTOR);
        copy_end = put_list(q, copy, aside);
        put_head(q, copy);
        q->header.backing_offset = backing_offset;
        if (!copy_end)
                return -ENOSPC;
        put_be32(copy + q->header.header_bytes, QCOW2_EXT_PADDING);
        put_be32(copy + q->header.header_bytes + 4, (uint32_t)(aside - q->header.header_bytes - 8));
        r = write_and_flush(q, copy, aside, align_up(copy_end, SECTOR));
        if (r == 0)
                r = write_and_flush(q, copy, 0, SECTOR);
        if (r == 0)
                r = write_and_flush(q, whole, SECTOR, end);
        if (r == 0)
                r = write_and_flush(q, whole, 0, SECTOR);
        return r == 0 ? block_write(q->file, aside, whole + aside, align_up(copy_end, SECTOR) - aside) : r;
}

static int change_header(struct qcow2 *q, const uint8_t *old, uint8_t *new, bool *begun)
{
        uint32_t old_bytes = q->header.header_bytes;
        uint64_t end;
        int r;

        choose_length(q);
        if (q->header.version == 3 && old_bytes > QCOW2_HEADER_BYTES) /* fields that others know */
                memcpy(new + QCOW2_HEADER_BYTES, old + QCOW2_HEADER_BYTES, old_bytes - QCOW2_HEADER_BYTES);
        if (!put_list(q, new, q->header.header_bytes))
                return -ENOSPC;
        put_head(q, new);
        *begun = true;
        end = MAX(used_end(old, q->cluster_bytes), used_end(new, q->cluster_bytes));
        if (end <= SECTOR || !memcmp(old + SECTOR, new + SECTOR, q->cluster_bytes - SECTOR))
                return write_and_flush(q, new, 0, SECTOR);
        r = q->header.header_bytes + 8 <= SECTOR && end < q->cluster_bytes ? change_by_copy(q, new, end, end) : -ENOSPC;
        return r == -ENOSPC ? write_and_flush(q, new, 0, q->cluster_bytes) : r;
}

int qcow2_change_header(struct qcow2 *q)
{
        _cleanup_free_ uint8_t *old = malloc(q->cluster_bytes), *new = calloc(1, q->cluster_bytes);
        struct qcow2_header before = q->header;
        bool begun = false;
        int r = old && new ? block_read(q->file, 0, old, q->cluster_bytes) : -ENOMEM;

        if (r == 0)
                r = change_header(q, old, new, &begun);
        if (r < 0 && begun) {
                q->broken = true; /* which of them the disk has, who knows */
        } else if (r < 0) {
                q->header.header_bytes = before.header_bytes;
                q->header.backing_offset = before.backing_offset;
                q->header.backing_bytes = before.backing_bytes;
        }
        return r;
}

/* ---- extensions ---- */

struct qcow2_extension *qcow2_extension(struct qcow2 *q, uint32_t type)
{
        struct qcow2_extension *e = q->extension;

        while (e && e->type != type)
                e = e->next;
        return e;
}

void qcow2_drop_extension(struct qcow2 *q, uint32_t type)
{
        struct qcow2_extension **at = &q->extension;

        while (*at) {
                struct qcow2_extension *e = *at;

                if (e->type != type) {
                        at = &e->next;
                        continue;
                }
                *at = e->next;
                free(e);
        }
}

struct qcow2_extension *qcow2_set_extension(struct qcow2 *q, uint32_t type, uint32_t size_bytes)
{
        struct qcow2_extension *e = calloc(1, sizeof(*e) + size_bytes);

        if (!e)
                return NULL;
        qcow2_drop_extension(q, type);
        e->type = type;
        e->size_bytes = size_bytes;
        e->next = q->extension;
        q->extension = e;
        return e;
}
