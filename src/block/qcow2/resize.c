/*
 * Another size: a longer L1 is written beside the old one, and the header changes to both in one sector. What comes in is zeroes, also in
 * front of a longer backing file.
 */
#include <errno.h>

#include "block/qcow2/qcow2.h"

static uint64_t l1_wanted(const struct qcow2 *q, uint64_t size_bytes)
{
        uint64_t clusters = qcow2_clusters(q, size_bytes);

        return (clusters >> q->l2_bits) + !!(clusters & ((UINT64_C(1) << q->l2_bits) - 1));
}

/* The header is not written yet. */
static int grow_l1(struct qcow2 *q, uint64_t entries)
{
        uint64_t count = qcow2_clusters(q, entries * 8), cluster, old = q->header.l1_offset >> q->header.cluster_bits;
        uint64_t old_count = qcow2_clusters(q, q->header.l1_entries * 8ull);
        _cleanup_free_ uint8_t *bytes = NULL;
        uint64_t *l1;
        bool fresh;
        int r = qcow2_take(q, &count, true, &cluster, &fresh);

        if (r < 0)
                return r;
        bytes = calloc(count, q->cluster_bytes);
        l1 = calloc(entries, 8);
        r = bytes && l1 ? 0 : -ENOMEM;
        for (uint32_t n = 0; r == 0 && n < q->header.l1_entries; n++) {
                l1[n] = q->l1[n];
                put_be64(bytes + n * 8ull, l1[n]);
        }
        if (r == 0)
                r = block_write(q->file, cluster << q->header.cluster_bits, bytes, count << q->header.cluster_bits);
        if (r == 0)
                r = block_flush(q->file);
        if (r == 0)
                r = qcow2_release(q, old, old_count);
        if (r < 0) {
                free(l1);
                qcow2_untake(q, cluster, count);
                return r;
        }
        free(q->l1);
        q->l1 = l1;
        q->header.l1_offset = cluster << q->header.cluster_bits;
        q->header.l1_entries = (uint32_t)entries;
        return 0;
}

static int write_size(struct qcow2 *q, uint64_t size_bytes)
{
        int r;

        q->header.size_bytes = size_bytes;
        q->block.info.size_bytes = size_bytes;
        r = qcow2_write_header(q);
        if (r < 0)
                q->broken = true; /* what the disk has, who knows */
        return r == 0 ? qcow2_flush(q) : r;
}

/* What a backing file, or the last cluster, has there must not be seen. */
static int zero_new(struct qcow2 *q, uint64_t from, uint64_t to)
{
        uint64_t behind = q->backing ? q->backing->info.size_bytes : 0, end = MIN(to, MAX(behind, align_up(from, q->cluster_bytes)));
        int r = 0;

        while (from < end && r == 0) {
                uint64_t some = MIN(end - from, (uint64_t)q->block.info.zeroes_bytes);

                r = block_do(&q->block, BLOCK_WRITE_ZEROES, BLOCK_F_UNMAP, from, some, NULL, 0);
                from += some;
        }
        return r;
}

static int grow(struct qcow2 *q, uint64_t size_bytes)
{
        uint64_t old = q->header.size_bytes, entries = l1_wanted(q, size_bytes);
        int r = 0;

        if (entries * 8 > QCOW2_L1_BYTES_MAX)
                return -EFBIG;
        if (entries > q->header.l1_entries)
                r = grow_l1(q, entries);
        if (r == 0 && q->data != q->file && q->data->info.size_bytes < size_bytes)
                r = block_resize(q->data, size_bytes, NULL);
        if (r == 0)
                r = write_size(q, size_bytes);
        return r == 0 ? zero_new(q, old, size_bytes) : r;
}

static int shrink(struct qcow2 *q, uint64_t size_bytes)
{
        uint64_t old = q->header.size_bytes, from = align_up(size_bytes, q->cluster_bytes);
        int r = from < old ? block_do(&q->block, BLOCK_DISCARD, 0, from, old - from, NULL, 0) : 0;

        if (r == 0)
                r = qcow2_flush(q);
        return r == 0 ? write_size(q, size_bytes) : r;
}

int qcow2_resize(struct block *block, uint64_t size_bytes, struct err *err)
{
        struct qcow2 *q = to_qcow2(block);
        int r = 0;

        size_bytes = align_up(size_bytes, BLOCK_SECTOR);
        if (q->broken)
                return err_set(err, -EIO, "disk %s is damaged", block->path);
        if (q->header.snapshots && q->header.version < 3)
                return err_set(err, -EOPNOTSUPP, "disk %s has snapshots, which in version 2 of qcow2 do not say how large they are", block->path);
        if (size_bytes > q->header.size_bytes)
                r = grow(q, size_bytes);
        else if (size_bytes < q->header.size_bytes)
                r = shrink(q, size_bytes);
        return r < 0 ? err_errno(err, r, "cannot give disk %s %" PRIu64 " bytes", block->path, size_bytes) : 0;
}
