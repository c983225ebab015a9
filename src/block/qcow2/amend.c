/*
 * What changes in an image that is there: the backing file that it names, its options, and everything at once, when it is emptied.
 *
 * Each of them ends with one change of the header (header-write.c), and can be seen as done, or not, after a crash. Emptying goes entry by
 * entry: the caller has made sure that what is behind reads the same.
 */
#include <errno.h>

#include "block/qcow2/qcow2.h"

/* ---- the backing file ---- */

int qcow2_set_backing(struct block *block, const char *name, const char *format, struct err *err)
{
        struct qcow2 *q = to_qcow2(block);
        char *old_name = q->backing_name, *old_format = q->backing_format;
        int r;

        if (block->info.readonly || q->broken)
                return err_set(err, -EROFS, "disk %s %s", block->path, q->broken ? "is damaged" : "is read-only");
        if (name && q->header.autoclear & QCOW2_AUTOCLEAR_RAW_DATA)
                return err_set(err, -EINVAL, "disk %s keeps its data as a raw image, which has no backing file", block->path);
        if (name && (!*name || strlen(name) > QCOW2_BACKING_BYTES_MAX))
                return err_set(err, -ENAMETOOLONG, "a backing file's name has 1 to %d bytes", QCOW2_BACKING_BYTES_MAX);
        q->backing_name = name ? strdup(name) : NULL;
        q->backing_format = name && format ? strdup(format) : NULL;
        r = (name && !q->backing_name) || (name && format && !q->backing_format) ? -ENOMEM : qcow2_flush(q);
        if (r == 0)
                r = qcow2_change_header(q);
        if (r < 0) {
                free(q->backing_name);
                free(q->backing_format);
                q->backing_name = old_name;
                q->backing_format = old_format;
                return err_errno(err, r, "disk %s cannot name %s as its backing file", block->path, name ? name : "none");
        }
        free(old_name);
        free(old_format);
        return 0;
}

void qcow2_backing_changed(struct block *block)
{
        struct qcow2 *q = to_qcow2(block);

        q->backing = block->child[BLOCK_BACKING];
        free(steal_ptr(q->holder));
}

/* ---- emptying ---- */

int qcow2_make_empty(struct block *block, struct err *err)
{
        struct qcow2 *q = to_qcow2(block);
        uint64_t end = align_up(block->info.size_bytes, q->cluster_bytes), at = 0;
        int r = 0;

        if (q->header.autoclear & QCOW2_AUTOCLEAR_RAW_DATA)
                return err_set(err, -EOPNOTSUPP, "disk %s keeps its data as a raw image, which cannot be emptied", block->path);
        while (at < end && r == 0) {
                struct qcow2_run run;

                r = qcow2_map(q, at, end - at, true, &run);
                if (r == 0 && run.kind == QCOW2_ABSENT && run.size_bytes >= q->cluster_bytes) {
                        at += align_down(run.size_bytes, q->cluster_bytes);
                        continue;
                }
                if (r == 0)
                        r = qcow2_drop_cluster(q, at);
                at += q->cluster_bytes;
        }
        if (r == 0)
                r = qcow2_flush(q);
        if (r == 0)
                r = qcow2_flush(q); /* what the first gave back */
        return r < 0 ? err_errno(err, r, "cannot empty disk %s", block->path) : 0;
}

/* ---- options ---- */

static int has(const struct qcow2 *q, bool it, const char *what, struct err *err)
{
        return it ? err_set(err, -EOPNOTSUPP, "disk %s has %s, which version 2 of qcow2 does not", q->block.path, what) : 0;
}

static int can_be_old(struct qcow2 *q, struct err *err)
{
        const struct qcow2_header *h = &q->header;
        int r = has(q, q->data != q->file, "a data file of its own", err);

        if (r == 0)
                r = has(q, q->extended, "subclusters", err);
        if (r == 0)
                r = has(q, h->compression != QCOW2_ZLIB, "clusters compressed by zstd", err);
        if (r == 0)
                r = has(q, h->refcount_order != 4, "counts that are not of 16 bits", err);
        if (r == 0)
                r = has(q, q->block.bitmaps, "bitmaps", err);
        if (r == 0)
                r = has(q, h->snapshots, "snapshots that may hold clusters of zeroes", err);
        return r;
}

/* Version 2 has no clusters that are said to be zeroes: they become nothing, or, in front of a backing file, are written. */
static int spell_out_zeroes(struct qcow2 *q)
{
        uint64_t end = q->block.info.size_bytes, at = 0;
        _cleanup_free_ uint8_t *zeroes = calloc(1, q->cluster_bytes);
        int r = zeroes ? 0 : -ENOMEM;

        while (at < end && r == 0) {
                uint64_t some = MIN(q->cluster_bytes, end - at);
                struct qcow2_run run;

                r = qcow2_map(q, at, align_up(end, q->cluster_bytes) - at, true, &run);
                if (r == 0 && run.kind != QCOW2_ZEROES) {
                        at += MAX(align_down(run.size_bytes, q->cluster_bytes), q->cluster_bytes);
                        continue;
                }
                if (r == 0 && q->backing && at < q->backing->info.size_bytes)
                        r = block_write(&q->block, at, zeroes, some);
                else if (r == 0)
                        r = qcow2_drop_cluster(q, at);
                at += q->cluster_bytes;
        }
        return r == 0 ? qcow2_flush(q) : r;
}

static int to_version(struct qcow2 *q, uint32_t version, struct err *err)
{
        struct qcow2_header before = q->header;
        int r = 0;

        if (version == q->header.version)
                return 0;
        if (version == 2) {
                r = can_be_old(q, err);
                if (r < 0)
                        return r;
                if (q->header.backing_bytes && !q->backing)
                        return err_set(err, -EINVAL, "disk %s cannot become one of version 2 without its backing file", q->block.path);
                r = spell_out_zeroes(q);
                q->header.incompatible = q->header.compatible = q->header.autoclear = 0;
        }
        q->header.version = version;
        if (r == 0)
                r = qcow2_flush(q);
        if (r == 0)
                r = qcow2_change_header(q);
        if (r < 0)
                q->header = before;
        return r < 0 ? err_errno(err, r, "cannot make disk %s one of version %" PRIu32, q->block.path, version) : 0;
}

static int to_order(struct qcow2 *q, uint32_t order, struct err *err)
{
        int r;

        if (order == q->header.refcount_order)
                return 0;
        if (q->header.version < 3)
                return err_set(err, -EINVAL, "disk %s: counts of version 2 have 16 bits", q->block.path);
        r = qcow2_flush(q);
        if (r == 0)
                r = qcow2_reserve_return(q);
        if (r == 0)
                r = qcow2_flush(q);
        if (r < 0)
                return err_errno(err, r, "cannot write to disk %s", q->block.path);
        return qcow2_count_anew(q, order, err);
}

int qcow2_amend(struct block *block, const struct block_option *option, unsigned options, struct err *err)
{
        struct qcow2 *q = to_qcow2(block);
        struct qcow2_header wanted = q->header;
        int r = 0;

        if (block->info.readonly || q->broken)
                return err_set(err, -EROFS, "disk %s %s", block->path, q->broken ? "is damaged" : "is read-only");
        for (unsigned n = 0; n < options && r == 0; n++)
                r = qcow2_take_amendment(&wanted, &option[n], err);
        if (r < 0)
                return r;
        if (wanted.version == 2 && (wanted.compatible & QCOW2_COMPATIBLE_LAZY_REFCOUNTS || wanted.refcount_order != 4))
                return err_set(err, -EINVAL, "version 2 of qcow2 has neither lazy_refcounts nor counts that are not of 16 bits");
        if (wanted.version > q->header.version)
                r = to_version(q, wanted.version, err);
        if (r == 0)
                r = to_order(q, wanted.refcount_order, err);
        if (r == 0 && wanted.compatible != q->header.compatible) {
                q->header.compatible = wanted.compatible;
                r = qcow2_write_header(q);
                if (r == 0)
                        r = block_flush(q->file);
                if (r < 0)
                        return err_errno(err, r, "cannot write to disk %s", block->path);
        }
        return r == 0 ? to_version(q, wanted.version, err) : r;
}

/* ---- read-only, and not ---- */

int qcow2_reopen(struct block *block, bool writable, struct err *err)
{
        struct qcow2 *q = to_qcow2(block);
        int r = 0;

        if (!writable) {
                r = block_qcow2.finish(block, err);
                block->info.readonly |= r == 0;
                return r;
        }
        if (q->broken || q->header.incompatible & QCOW2_INCOMPATIBLE_CORRUPT)
                return err_set(err, -EROFS, "disk %s is damaged", block->path);
        qcow2_take_info(q);
        r = qcow2_begin_writing(q, 0, err);
        block->info.readonly |= r < 0;
        return r;
}
