/*
 * The header of a qcow2 image with its extensions ("Header", "Header extensions"), and what opening and closing an image means.
 *
 * Opening checks all that the header says against the format's limits and the file. What L1, L2 and the counts say is checked when somebody
 * comes by; the first thing that is wrong there ends all writing (qcow2_corrupt()).
 */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/cursor.h"
#include "base/log.h"
#include "base/work.h"
#include "block/luks/luks.h"
#include "block/qcow2/qcow2.h"

#define TABLE_BYTES ((size_t)8 << 20) /* of L2 and counts in memory */

int qcow2_probe(const uint8_t *head, size_t size_bytes)
{
        struct cursor in = cursor_from(head, size_bytes);

        if (cursor_be32(&in) != QCOW2_MAGIC)
                return 0;
        return cursor_be32(&in) - 2 < 2 && !in.bad ? 100 : 0;
}

/* ---- damage ---- */

static void mark_work(void *arg)
{
        struct qcow2 *q = arg;

        q->unmarked = qcow2_mark(q, QCOW2_INCOMPATIBLE_CORRUPT, true) < 0;
}

int qcow2_corrupt(struct qcow2 *q, const char *fmt, ...)
{
        va_list args;
        bool news;

        va_start(args, fmt);
        news = block_damaged(&q->block, &q->broken, fmt, args);
        va_end(args);
        /* Whoever found it may be no fiber, and must not wait. Without memory for one it is marked at the end. */
        if (news && !q->block.info.readonly && q->header.version >= 3 && q->opened)
                q->unmarked = fiber_start(mark_work, q) < 0;
        return -EIO;
}

/* ---- reading ---- */

static int parse_fixed(struct qcow2 *q, struct cursor *in, struct err *err)
{
        struct qcow2_header *h = &q->header;

        if (cursor_be32(in) != QCOW2_MAGIC || in->bad)
                return err_set(err, -EINVAL, "disk %s is not a qcow2 image", q->block.path);
        h->version = cursor_be32(in);
        if (h->version != 2 && h->version != 3)
                return err_set(err, -EOPNOTSUPP, "disk %s is of version %" PRIu32 " of qcow2; 2 and 3 are known", q->block.path, h->version);
        h->backing_offset = cursor_be64(in);
        h->backing_bytes = cursor_be32(in);
        h->cluster_bits = cursor_be32(in);
        h->size_bytes = cursor_be64(in);
        h->crypt_method = cursor_be32(in);
        h->l1_entries = cursor_be32(in);
        h->l1_offset = cursor_be64(in);
        h->refcount_offset = cursor_be64(in);
        h->refcount_clusters = cursor_be32(in);
        h->snapshots = cursor_be32(in);
        h->snapshots_offset = cursor_be64(in);
        h->refcount_order = 4;
        h->header_bytes = QCOW2_HEADER_BYTES_V2;
        if (h->version == 3) {
                h->incompatible = cursor_be64(in);
                h->compatible = cursor_be64(in);
                h->autoclear = cursor_be64(in);
                h->refcount_order = cursor_be32(in);
                h->header_bytes = cursor_be32(in);
                if (h->header_bytes > QCOW2_HEADER_BYTES_V3)
                        h->compression = cursor_u8(in);
        }
        return in->bad ? err_set(err, -EINVAL, "disk %s ends in its header", q->block.path) : 0;
}

static int bad(struct qcow2 *q, struct err *err, const char *what, uint64_t value)
{
        return err_set(err, -EINVAL, "disk %s is damaged: its header says %s %" PRIu64, q->block.path, what, value);
}

static bool table_fits(const struct qcow2 *q, uint64_t offset, uint64_t size_bytes)
{
        return !(offset & ((UINT64_C(1) << q->header.cluster_bits) - 1)) && offset && offset < q->file->info.size_bytes &&
               size_bytes <= INT64_MAX - offset;
}

static int check_features(struct qcow2 *q, unsigned flags, struct err *err)
{
        const struct qcow2_header *h = &q->header;
        uint64_t unknown = h->incompatible & ~QCOW2_INCOMPATIBLE_KNOWN;

        if (unknown)
                return err_set(err, -EOPNOTSUPP, "disk %s uses features of qcow2 that are not known here (bits %#" PRIx64 ")", q->block.path, unknown);
        if (h->crypt_method && h->crypt_method != QCOW2_CRYPT_LUKS)
                return err_set(err, -EOPNOTSUPP, "disk %s is encrypted by method %" PRIu32 ", which is not known here; LUKS (2) is", q->block.path,
                               h->crypt_method);
        if (h->compression > QCOW2_ZSTD || !h->compression != !(h->incompatible & QCOW2_INCOMPATIBLE_COMPRESSION))
                return bad(q, err, "compression of type", h->compression);
        if (h->incompatible & QCOW2_INCOMPATIBLE_CORRUPT && !(flags & (BLOCK_OPEN_READONLY | BLOCK_OPEN_REPAIR)))
                return err_set(err, -EROFS, "disk %s was found damaged before; mend it with: virta disk check --repair %s", q->block.path, q->block.path);
        return 0;
}

void qcow2_geometry(struct qcow2 *q)
{
        const struct qcow2_header *h = &q->header;
        unsigned bits = 1u << h->refcount_order;

        q->extended = h->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2;
        q->cluster_bytes = UINT64_C(1) << h->cluster_bits;
        q->l2_entry_bytes = q->extended ? 16 : 8;
        q->l2_bits = h->cluster_bits - (q->extended ? 4 : 3);
        q->unit_bits = h->cluster_bits - (q->extended ? 5 : 0);
        q->refcount_block_bits = h->cluster_bits + 3 - h->refcount_order;
        q->refcount_max = bits == 64 ? UINT64_MAX : (UINT64_C(1) << bits) - 1;
}

static int flush_data(struct table_cache *cache)
{
        return block_flush(container_of(cache, struct qcow2, cache)->data);
}

void qcow2_cache_init(struct qcow2 *q, size_t max_bytes)
{
        table_cache_init(&q->cache, (uint32_t)MIN(q->cluster_bytes, (uint64_t)TABLE_PAGE_BYTES), max_bytes);
        q->cache.barrier = flush_data;
}

static int check_fixed(struct qcow2 *q, struct err *err)
{
        const struct qcow2_header *h = &q->header;
        uint64_t l1_wanted;

        if (h->cluster_bits < QCOW2_CLUSTER_BITS_MIN || h->cluster_bits > QCOW2_CLUSTER_BITS_MAX)
                return bad(q, err, "clusters of bits", h->cluster_bits);
        if (h->version == 3 && (h->header_bytes < QCOW2_HEADER_BYTES_V3 || h->header_bytes % 8 || h->header_bytes > 1u << h->cluster_bits))
                return bad(q, err, "a length of", h->header_bytes);
        if (h->refcount_order > 6)
                return bad(q, err, "counts of order", h->refcount_order);
        if (h->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2 && h->cluster_bits < 14)
                return bad(q, err, "subclusters in clusters of bits", h->cluster_bits);
        if (!h->size_bytes || h->size_bytes > INT64_MAX / 2)
                return bad(q, err, "a size of", h->size_bytes);
        qcow2_geometry(q);
        if (h->l1_entries * 8ull > QCOW2_L1_BYTES_MAX || !table_fits(q, h->l1_offset, h->l1_entries * 8ull))
                return bad(q, err, "an L1 table at", h->l1_offset);
        l1_wanted = qcow2_clusters(q, h->size_bytes);
        l1_wanted = (l1_wanted >> q->l2_bits) + !!(l1_wanted & ((UINT64_C(1) << q->l2_bits) - 1));
        if (h->l1_entries < l1_wanted)
                return bad(q, err, "an L1 table that is too short, entries", h->l1_entries);
        if (!h->refcount_clusters || (uint64_t)h->refcount_clusters << h->cluster_bits > QCOW2_REFCOUNT_TABLE_BYTES_MAX ||
            !table_fits(q, h->refcount_offset, (uint64_t)h->refcount_clusters << h->cluster_bits))
                return bad(q, err, "a refcount table at", h->refcount_offset);
        return 0;
}

static int take_text(struct qcow2 *q, const void *bytes, size_t size_bytes, char **text, struct err *err)
{
        if (!bytes || memchr(bytes, 0, size_bytes))
                return err_set(err, -EINVAL, "disk %s is damaged: a name in its header is", q->block.path);
        *text = strndup(bytes, size_bytes);
        return *text ? 0 : err_nomem(err);
}

static int take_extension(struct qcow2 *q, uint32_t type, struct cursor *in, size_t size_bytes, struct qcow2_extension ***end, struct err *err)
{
        const void *bytes = cursor_take(in, size_bytes);
        struct qcow2_extension *extension;

        (void)cursor_take(in, -size_bytes & 7);
        if (!bytes || in->bad)
                return err_set(err, -EINVAL, "disk %s is damaged: an extension of its header has no end", q->block.path);
        if (type == QCOW2_EXT_BACKING_FORMAT && !q->backing_format)
                return take_text(q, bytes, size_bytes, &q->backing_format, err);
        if (type == QCOW2_EXT_DATA_FILE && !q->data_name)
                return take_text(q, bytes, size_bytes, &q->data_name, err);
        if (type == QCOW2_EXT_FEATURE_NAMES || type == QCOW2_EXT_PADDING)
                return 0; /* written anew */
        extension = calloc(1, sizeof(*extension) + size_bytes);
        if (!extension)
                return err_nomem(err);
        extension->type = type;
        extension->size_bytes = (uint32_t)size_bytes;
        memcpy(extension->bytes, bytes, size_bytes);
        **end = extension;
        *end = &extension->next;
        return 0;
}

static int parse_rest(struct qcow2 *q, const uint8_t *cluster, struct err *err)
{
        const struct qcow2_header *h = &q->header;
        uint64_t end = h->backing_offset ? h->backing_offset : q->cluster_bytes;
        struct qcow2_extension **last = &q->extension;
        struct cursor in;

        if (h->backing_offset && (h->backing_offset < h->header_bytes || h->backing_bytes > QCOW2_BACKING_BYTES_MAX ||
                                  h->backing_offset > q->cluster_bytes || h->backing_bytes > q->cluster_bytes - h->backing_offset))
                return bad(q, err, "a backing file's name at", h->backing_offset);
        in = cursor_from(cluster + h->header_bytes, end - h->header_bytes);
        while (cursor_left(&in) >= 8) {
                uint32_t type = cursor_be32(&in), size_bytes = cursor_be32(&in);
                int r;

                if (!type)
                        break;
                r = take_extension(q, type, &in, size_bytes, &last, err);
                if (r < 0)
                        return r;
        }
        return h->backing_offset && h->backing_bytes ? take_text(q, cluster + h->backing_offset, h->backing_bytes, &q->backing_name, err) : 0;
}

static int read_header(struct qcow2 *q, unsigned flags, struct err *err)
{
        uint8_t head[QCOW2_HEADER_BYTES] = { 0 };
        _cleanup_free_ uint8_t *cluster = NULL;
        struct cursor in = cursor_from(head, MIN(q->file->info.size_bytes, sizeof(head)));
        int r = block_read(q->file, 0, head, sizeof(head));

        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", q->block.path);
        r = parse_fixed(q, &in, err);
        if (r == 0)
                r = check_fixed(q, err);
        if (r == 0)
                r = check_features(q, flags, err);
        if (r < 0)
                return r;
        cluster = malloc(q->cluster_bytes);
        if (!cluster)
                return err_nomem(err);
        r = block_read(q->file, 0, cluster, q->cluster_bytes);
        return r < 0 ? err_errno(err, r, "cannot read disk %s", q->block.path) : parse_rest(q, cluster, err);
}

static int read_l1(struct qcow2 *q, struct err *err)
{
        uint64_t bytes = q->header.l1_entries * 8ull;
        int r;

        q->l1 = calloc(q->header.l1_entries, 8);
        if (!q->l1)
                return err_nomem(err);
        r = block_read(q->file, q->header.l1_offset, q->l1, bytes);
        if (r < 0)
                return err_errno(err, r, "disk %s: cannot read its L1 table", q->block.path);
        for (uint32_t n = 0; n < q->header.l1_entries; n++)
                q->l1[n] = be64(&q->l1[n]);
        return 0;
}

/* ---- opening and closing ---- */

static void qcow2_close(struct block *block)
{
        struct qcow2 *q = to_qcow2(block);

        block_drain(q->file); /* what runs behind the requests, too */
        qcow2_data_done(q);
        table_cache_done(&q->cache);
        qcow2_refcounts_close(q);
        while (q->extension) {
                struct qcow2_extension *next = q->extension->next;

                free(q->extension);
                q->extension = next;
        }
        qcow2_bitmaps_done(q);
        work_queue_free(q->work);
        free(q->unpacked);
        free(q->backing_name);
        free(q->backing_format);
        free(q->data_name);
        block_close(q->apart);
        free(q->l1);
        block_done(block);
        free(q);
}

void qcow2_take_info(struct qcow2 *q)
{
        const struct block_info *file = &q->data->info;

        q->block.info = (struct block_info){
                .size_bytes = align_up(q->header.size_bytes, BLOCK_SECTOR),
                .logical_bytes = BLOCK_SECTOR,
                .physical_bytes = MAX(file->physical_bytes, 4096u),
                .optimal_bytes = (uint32_t)q->cluster_bytes,
                .discard_bytes = file->readonly ? 0 : (uint32_t)q->cluster_bytes,
                .zeroes_bytes = file->readonly ? 0 : UINT32_C(1) << 30,
                .readonly = file->readonly,
        };
}

/* Another file has the data: the core opens it as the front of a chain would be, raw. */
static int open_data(struct qcow2 *q, const struct block_opening *opening, struct err *err)
{
        struct block *data;
        int r;

        q->data = q->file;
        if (!(q->header.incompatible & QCOW2_INCOMPATIBLE_DATA_FILE))
                return 0;
        if (!q->data_name)
                return err_set(err, -EINVAL, "disk %s keeps its data in another file, and does not say in which", q->block.path);
        r = block_open_beside(opening, q->data_name, &data, err);
        if (r < 0)
                return r;
        if (q->header.crypt_method)
                q->apart = data; /* it will be the layer's */
        else
                block_adopt(&q->block, BLOCK_DATA, data);
        q->data = data;
        return 0;
}

static int open_backing(struct qcow2 *q, const struct block_opening *opening, struct err *err)
{
        int r;

        if (!q->backing_name || opening->flags & BLOCK_OPEN_NO_BACKING)
                return 0;
        r = block_open_backing(opening, q->backing_name, q->backing_format, &q->backing, err);
        if (r == 0)
                block_adopt(&q->block, BLOCK_BACKING, q->backing);
        return r;
}

/* Whether the image knows that it uses these clusters itself; else what is written next might overwrite them. */
static int want_counted(struct qcow2 *q, uint64_t offset, uint64_t size_bytes, const char *what, struct err *err)
{
        uint64_t first = offset >> q->header.cluster_bits, count = 1;
        int r = 0;

        for (uint64_t n = 0; n < qcow2_clusters(q, size_bytes) && r == 0 && count; n++)
                r = qcow2_refcount(q, first + n, &count);
        if (r < 0)
                return err_errno(err, r, "disk %s: cannot read its counts", q->block.path);
        return count ? 0 : err_set(err, -EIO, "disk %s is damaged: the clusters of its %s are said to be free; mend it with: virta disk check --repair %s",
                                   q->block.path, what, q->block.path);
}

/* An image that was not closed may have wrong counts, and what others keep about it may be old. */
int qcow2_begin_writing(struct qcow2 *q, unsigned flags, struct err *err)
{
        int r = 0;

        if (q->file->info.readonly || flags & BLOCK_OPEN_REPAIR)
                return 0;
        if (q->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY)
                r = qcow2_repair(q, err);
        if (r == 0)
                r = want_counted(q, 0, 1, "header", err);
        if (r == 0)
                r = want_counted(q, q->header.l1_offset, q->header.l1_entries * 8ull, "L1 table", err);
        if (r == 0)
                r = want_counted(q, q->header.refcount_offset, (uint64_t)q->header.refcount_clusters << q->header.cluster_bits, "refcount table", err);
        if (r == 0)
                r = qcow2_bitmaps_use(q, err);
        if (r == 0 && q->header.autoclear & ~QCOW2_AUTOCLEAR_KNOWN) {
                q->header.autoclear &= QCOW2_AUTOCLEAR_KNOWN;
                r = qcow2_write_header(q);
                if (r < 0)
                        r = err_errno(err, r, "cannot write to disk %s", q->block.path);
        }
        return r;
}

static void work_ended(void *ctx)
{
        struct block *block = ctx;

        if (block->listener)
                block->listener(block->listener_ctx);
}

static int open_all(struct qcow2 *q, const struct block_opening *opening, struct err *err)
{
        int r = work_queue_new(opening->loop, work_ended, &q->block, &q->work, err);

        if (r == 0)
                r = read_header(q, opening->flags, err);

        if (r == 0) {
                qcow2_cache_init(q, TABLE_BYTES);
                r = read_l1(q, err);
        }
        if (r == 0)
                r = qcow2_refcounts_open(q, err);
        if (r == 0)
                r = open_data(q, opening, err);
        if (r == 0)
                r = qcow2_content_open(q, opening, err);
        if (r == 0)
                r = open_backing(q, opening, err);
        if (r == 0)
                qcow2_take_info(q);
        if (r == 0)
                r = qcow2_bitmaps_open(q, opening->flags, err);
        if (r == 0)
                r = qcow2_begin_writing(q, opening->flags, err);
        q->opened = r == 0;
        return r;
}

static int qcow2_open(const struct block_opening *opening, struct block **block, struct err *err)
{
        struct qcow2 *q = calloc(1, sizeof(*q));
        int r;

        if (!q)
                return err_nomem(err);
        r = block_init(&q->block, &block_qcow2, opening, err);
        if (r < 0) {
                free(q);
                return r;
        }
        q->file = opening->file;
        r = open_all(q, opening, err);
        if (r < 0) {
                block_close(&q->block);
                return r;
        }
        block_adopt(&q->block, BLOCK_FILE, q->file);
        *block = &q->block;
        return 0;
}

static int qcow2_finish(struct block *block, struct err *err)
{
        struct qcow2 *q = to_qcow2(block);
        int r = 0;

        if (q->unmarked)
                r = qcow2_mark(q, QCOW2_INCOMPATIBLE_CORRUPT, true);
        if (block->info.readonly || q->broken)
                return r < 0 ? err_errno(err, r, "disk %s is damaged, and cannot be marked so", block->path) : 0;
        qcow2_pack_return(q);
        r = qcow2_flush(q);
        if (r == 0)
                r = qcow2_bitmaps_store(q);
        if (r == 0)
                r = qcow2_reserve_return(q);
        for (unsigned n = 0; n < 2 && r == 0 && qcow2_unsettled(q); n++)
                r = qcow2_flush(q); /* the second: what the first gave back */
        if (r == 0)
                r = qcow2_cut_file(q);
        if (r == 0 && q->packing && !q->counts_wrong)
                r = qcow2_mark(q, QCOW2_INCOMPATIBLE_DIRTY, false);
        q->packing = false;
        return r < 0 ? err_errno(err, r, "cannot write the tables of disk %s", block->path) : 0;
}

static int qcow2_describe(struct block *block, json_t *into)
{
        struct qcow2 *q = to_qcow2(block);
        const struct qcow2_header *h = &q->header;
        json_t *about = json_pack("{s:i, s:i, s:i, s:s, s:b, s:b, s:b, s:b, s:i}",
                                  "version", (int)h->version, "cluster_bytes", (int)q->cluster_bytes, "refcount_bits", 1 << h->refcount_order,
                                  "compression", h->compression == QCOW2_ZSTD ? "zstd" : "zlib",
                                  "lazy_refcounts", !!(h->compatible & QCOW2_COMPATIBLE_LAZY_REFCOUNTS),
                                  "extended_l2", q->extended, "dirty", !!(h->incompatible & QCOW2_INCOMPATIBLE_DIRTY),
                                  "corrupt", !!(h->incompatible & QCOW2_INCOMPATIBLE_CORRUPT), "snapshots", (int)h->snapshots);

        if (!about)
                return -ENOMEM;
        if (q->backing_name)
                json_object_set_new(about, "backing", json_string(q->backing_name));
        if (q->backing_format)
                json_object_set_new(about, "backing_format", json_string(q->backing_format));
        if (q->data_name)
                json_object_set_new(about, "data_file", json_string(q->data_name));
        if (qcow2_encrypted(q)) {
                json_t *luks = luks_about(luks_layer_header(q->content));

                json_object_del(luks, "payload_offset"); /* there is none */
                json_object_set_new(about, "encryption", luks);
        }
        if (q->bitmap)
                json_object_set_new(about, "bitmaps", qcow2_bitmaps_describe(q));
        return json_object_set_new(into, "qcow2", about) < 0 ? -ENOMEM : 0;
}

static void qcow2_reap(struct block *block)
{
        (void)work_reap(to_qcow2(block)->work);
}

static void qcow2_wait(struct block *block)
{
        assert(work_under_way(to_qcow2(block)->work));
        work_wait(to_qcow2(block)->work);
}

const struct block_driver block_qcow2 = {
        .name = "qcow2",
        .text = "QEMU's format: grows as it is written to, snapshots, backing files, compression",
        .suffixes = (const char *const[]){ ".qcow2", NULL },
        .probe = qcow2_probe,
        .open = qcow2_open,
        .options = qcow2_options,
        .create = qcow2_create,
        .check = qcow2_check_image,
        .finish = qcow2_finish,
        .close = qcow2_close,
        .submit = qcow2_submit,
        .reap = qcow2_reap,
        .wait = qcow2_wait,
        .status = qcow2_status,
        .describe = qcow2_describe,
        .resize = qcow2_resize,
        .snapshots = &qcow2_snapshots,
        .keep_bitmap = qcow2_keep_bitmap,
        .reopen = qcow2_reopen,
        .set_backing = qcow2_set_backing,
        .backing_changed = qcow2_backing_changed,
        .make_empty = qcow2_make_empty,
        .amend = qcow2_amend,
        .measure = qcow2_measure,
};
