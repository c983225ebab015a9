/*
 * Compressed clusters ("Compressed Clusters Descriptor"): deflate without a header and with a window of 4 KiB, or a zstd frame. How many
 * bytes they really have nobody says: decompression ends with the cluster's last byte.
 *
 * They lie one behind the other, so that several share a cluster of the file, which is counted once for each. These counts are raised after
 * the cluster was taken; an image that is written to in this way is marked dirty until it is finished, version 2 flushes instead.
 *
 * The processor's work is done on other threads. The last cluster that was unpacked for less than all of it is kept, since small reads tend
 * to follow each other.
 */
#include <errno.h>
#include <zlib.h>
#include <zstd.h>

#include "base/iov.h"
#include "base/work.h"
#include "block/qcow2/qcow2.h"

#define DEFLATE_WINDOW (-12)
#define DEFLATE_MEMORY 9
/* Clusters that are packed side by side, and that are taken for packed ones at once. */
#define PACK_MAX 16u
#define TAKE_MAX 64u

void qcow2_packed_place(const struct qcow2 *q, uint64_t entry, uint64_t *offset, uint64_t *size_bytes)
{
        unsigned x = 62 - (q->header.cluster_bits - 8);

        *offset = entry & ((UINT64_C(1) << x) - 1) & UINT64_C(0x00ffffffffffffff);
        *size_bytes = ((entry & (QCOW2_COMPRESSED - 1)) >> x) * 512 + 512 - (*offset & 511);
}

static int inflate_cluster(struct qcow2 *q, uint8_t *from, size_t size_bytes, uint8_t *to)
{
        z_stream z = { .next_in = from, .avail_in = (uInt)size_bytes, .next_out = to, .avail_out = (uInt)q->cluster_bytes };
        int r;

        if (inflateInit2(&z, DEFLATE_WINDOW) != Z_OK)
                return -ENOMEM;
        r = inflate(&z, Z_FINISH);
        inflateEnd(&z);
        /* Bytes behind the end of the stream belong to others. */
        return (r == Z_STREAM_END || r == Z_BUF_ERROR) && !z.avail_out ? 0 : -EIO;
}

static int unzstd_cluster(struct qcow2 *q, const uint8_t *from, size_t size_bytes, uint8_t *to)
{
        ZSTD_inBuffer in = { from, size_bytes, 0 };
        ZSTD_outBuffer out = { to, q->cluster_bytes, 0 };
        ZSTD_DStream *z = ZSTD_createDStream();
        size_t r = 1;

        if (!z)
                return -ENOMEM;
        while (out.pos < out.size && in.pos < in.size && r && !ZSTD_isError(r))
                r = ZSTD_decompressStream(z, &out, &in);
        ZSTD_freeDStream(z);
        return out.pos == out.size && !ZSTD_isError(r) ? 0 : -EIO;
}

struct unpacking {
        struct qcow2 *q;
        uint8_t *from, *to;
        size_t size_bytes;
        int result;
};

/* On another thread. */
static void unpack_there(void *arg)
{
        struct unpacking *u = arg;

        u->result = u->q->header.compression == QCOW2_ZSTD ? unzstd_cluster(u->q, u->from, u->size_bytes, u->to)
                                                           : inflate_cluster(u->q, u->from, u->size_bytes, u->to);
}

static int unpack(struct qcow2 *q, uint64_t entry, uint8_t *to)
{
        _cleanup_free_ uint8_t *packed = NULL;
        uint64_t offset, size_bytes;
        struct unpacking u;
        int r;

        qcow2_packed_place(q, entry, &offset, &size_bytes);
        if ((offset + size_bytes - 1) >> q->header.cluster_bits >= MAX(q->file_clusters, UINT64_C(1)))
                return qcow2_corrupt(q, "a compressed cluster is said to be at %#" PRIx64, offset);
        packed = malloc(size_bytes);
        if (!packed)
                return -ENOMEM;
        r = block_read(q->file, offset, packed, size_bytes);
        if (r < 0)
                return r;
        u = (struct unpacking){ q, packed, to, size_bytes, 0 };
        work_do(q->work, unpack_there, &u);
        return u.result;
}

int qcow2_unpack(struct qcow2 *q, uint64_t entry, uint8_t *to, bool keep)
{
        int r;

        if (q->unpacked && q->unpacked_entry == entry) {
                memcpy(to, q->unpacked, q->cluster_bytes);
                return 0;
        }
        r = unpack(q, entry, to);
        if (r < 0 || !keep)
                return r;
        if (!q->unpacked)
                q->unpacked = malloc(q->cluster_bytes);
        if (q->unpacked) {
                memcpy(q->unpacked, to, q->cluster_bytes);
                q->unpacked_entry = entry;
        }
        return 0;
}

void qcow2_forget_unpacked(struct qcow2 *q)
{
        q->unpacked_entry = 0; /* no compressed cluster has this */
}

/* ---- packing ---- */

struct cluster {
        const struct qcow2 *q;
        const uint8_t *from;
        uint8_t *to;         /* as large as a cluster */
        size_t size_bytes;   /* 0: it did not become smaller */
        struct batch *batch;
};

struct batch {
        struct fiber *fiber;
        unsigned left;
        uint8_t *from, *to;
        struct cluster cluster[PACK_MAX];
};

static size_t deflate_cluster(const struct cluster *c)
{
        z_stream z = {
                .next_in = (uint8_t *)c->from, .avail_in = (uInt)c->q->cluster_bytes, .next_out = c->to, .avail_out = (uInt)c->q->cluster_bytes - 1,
        };
        int r;

        if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, DEFLATE_WINDOW, DEFLATE_MEMORY, Z_DEFAULT_STRATEGY) != Z_OK)
                return 0;
        r = deflate(&z, Z_FINISH);
        deflateEnd(&z);
        return r == Z_STREAM_END ? z.total_out : 0;
}

static size_t zstd_cluster(const struct cluster *c)
{
        size_t size_bytes = ZSTD_compress(c->to, c->q->cluster_bytes - 1, c->from, c->q->cluster_bytes, ZSTD_CLEVEL_DEFAULT);

        return ZSTD_isError(size_bytes) ? 0 : size_bytes;
}

/* On another thread. */
static void pack_there(void *arg)
{
        struct cluster *c = arg;

        c->size_bytes = c->q->header.compression == QCOW2_ZSTD ? zstd_cluster(c) : deflate_cluster(c);
}

static void packed(void *arg)
{
        struct batch *batch = ((struct cluster *)arg)->batch;

        if (--batch->left == 0 && batch->fiber)
                fiber_wake(batch->fiber);
}

static int pack_all(struct qcow2 *q, struct batch *batch, unsigned count)
{
        batch->from = calloc(count, q->cluster_bytes);
        batch->to = malloc(count * q->cluster_bytes);
        return batch->from && batch->to ? 0 : -ENOMEM;
}

static void pack(struct qcow2 *q, struct batch *batch, unsigned count)
{
        for (unsigned n = 0; n < count; n++) {
                struct cluster *c = &batch->cluster[n];

                *c = (struct cluster){ q, batch->from + n * q->cluster_bytes, batch->to + n * q->cluster_bytes, 0, batch };
                batch->left++;
                if (work_submit(q->work, pack_there, packed, c) < 0) {
                        pack_there(c);
                        batch->left--;
                }
        }
        batch->fiber = fiber_self();
        if (batch->left)
                fiber_wait();
        batch->fiber = NULL;
}

/* ---- where packed clusters go ---- */

/* Room for so many bytes at q->pack_at: a cluster behind the last one where that is free, else somewhere else. */
static int make_room(struct qcow2 *q, size_t size_bytes)
{
        while (q->pack_end - q->pack_at < size_bytes) {
                uint64_t count = TAKE_MAX, cluster;
                bool fresh;
                int r = qcow2_take(q, &count, false, &cluster, &fresh);

                if (r < 0)
                        return r;
                if (cluster << q->header.cluster_bits != q->pack_end) {
                        qcow2_pack_return(q);
                        q->pack_at = cluster << q->header.cluster_bits;
                }
                q->pack_end = (cluster + count) << q->header.cluster_bits;
        }
        return 0;
}

void qcow2_pack_return(struct qcow2 *q)
{
        uint64_t first = qcow2_clusters(q, q->pack_at), end = q->pack_end >> q->header.cluster_bits;

        if (first < end)
                qcow2_untake(q, first, end - first);
        q->pack_at = q->pack_end = 0;
}

void qcow2_pack_leave(struct qcow2 *q, uint64_t cluster)
{
        if (q->pack_at & (q->cluster_bytes - 1) && q->pack_at >> q->header.cluster_bits == cluster)
                q->pack_at = align_up(q->pack_at, q->cluster_bytes);
}

/* Counts the cluster in which the last ones end once more; when that has no room, or is not ours any more, the place is behind it. */
static int count_shared(struct qcow2 *q, uint64_t at)
{
        uint64_t cluster = at >> q->header.cluster_bits, count;
        int r;

        if (!(at & (q->cluster_bytes - 1)))
                return 0;
        r = qcow2_refcount(q, cluster, &count);
        if (r == 0 && (count == q->refcount_max || !count)) {
                qcow2_pack_leave(q, cluster);
                return -EAGAIN;
        }
        if (r == 0)
                r = qcow2_refcount_add(q, cluster, 1, 1);
        if (r == 0 && q->pack_at != at) { /* left while we waited */
                r = qcow2_refcount_add(q, cluster, 1, -1);
                return r < 0 ? r : -EAGAIN;
        }
        return r;
}

/* A place for bytes. */
static int place(struct qcow2 *q, size_t size_bytes, uint64_t *offset)
{
        int r;

        do {
                r = make_room(q, size_bytes);
                if (r == 0)
                        r = count_shared(q, q->pack_at);
        } while (r == -EAGAIN);
        if (r < 0)
                return r;
        *offset = q->pack_at;
        q->pack_at += size_bytes;
        return 0;
}

static uint64_t entry_of(const struct qcow2 *q, uint64_t offset, size_t size_bytes)
{
        unsigned x = 62 - (q->header.cluster_bits - 8);
        uint64_t sectors = ((offset + size_bytes - 1) >> 9) - (offset >> 9);

        return QCOW2_COMPRESSED | sectors << x | offset;
}

static int begin_packing(struct qcow2 *q)
{
        if (q->packing || q->header.version < 3)
                return 0;
        q->packing = true;
        return qcow2_mark(q, QCOW2_INCOMPATIBLE_DIRTY, true);
}

/* One after the other: where the next lies hangs on how long this one is. */
static int write_cluster(struct qcow2 *q, const struct cluster *c, uint64_t *entry)
{
        uint64_t offset = 0;
        int r;

        fiber_lock(&q->pack_lock);
        r = begin_packing(q);
        if (r == 0)
                r = place(q, c->size_bytes, &offset);
        fiber_unlock(&q->pack_lock);
        if (r < 0)
                return r;
        *entry = entry_of(q, offset, c->size_bytes);
        return block_write(q->file, offset, c->to, c->size_bytes);
}

static int name_cluster(struct qcow2 *q, uint64_t at, uint64_t entry)
{
        struct table_page *page;
        uint8_t *place_of;
        int r = qcow2_entry_get(q, at, &page, &place_of);

        if (r < 0)
                return r;
        if (be64(place_of)) {
                r = -EOPNOTSUPP; /* something is there */
        } else {
                put_be64(place_of, entry);
                if (q->extended)
                        put_be64(place_of + 8, 0);
                qcow2_page_changed(q, page, true);
        }
        qcow2_page_put(page);
        return r;
}

/* What does not become smaller is written as it is. */
static int write_plain(struct qcow2 *q, uint64_t at, const struct cluster *c)
{
        uint64_t size_bytes = MIN(q->cluster_bytes, q->block.info.size_bytes - at);

        return block_write(&q->block, at, c->from, size_bytes);
}

static int write_some(struct qcow2 *q, struct block_request *guest, struct batch *batch, unsigned count)
{
        uint64_t entry[PACK_MAX], at = guest->offset_bytes + guest->transferred;
        int r = 0;

        for (unsigned n = 0; n < count && r == 0; n++)
                if (batch->cluster[n].size_bytes)
                        r = write_cluster(q, &batch->cluster[n], &entry[n]);
        if (r == 0 && q->header.version < 3)
                r = qcow2_cache_write(q);
        if (r == 0 && q->header.version < 3)
                r = block_flush(q->file);
        q->cache.written++;
        for (unsigned n = 0; n < count && r == 0; n++, at += q->cluster_bytes)
                r = batch->cluster[n].size_bytes ? name_cluster(q, at, entry[n]) : write_plain(q, at, &batch->cluster[n]);
        return r;
}

int qcow2_write_packed(struct qcow2 *q, struct block_request *guest)
{
        uint64_t end = guest->offset_bytes + guest->size_bytes;
        struct batch *batch;
        int r = 0;

        if (q->content != q->file || guest->offset_bytes & (q->cluster_bytes - 1) || (end & (q->cluster_bytes - 1) && end != q->block.info.size_bytes))
                return -EOPNOTSUPP;
        batch = calloc(1, sizeof(*batch));
        r = batch ? pack_all(q, batch, PACK_MAX) : -ENOMEM;
        while (r == 0 && guest->transferred < guest->size_bytes) {
                uint64_t some = MIN(guest->size_bytes - guest->transferred, PACK_MAX * q->cluster_bytes);
                unsigned count = (unsigned)qcow2_clusters(q, some);

                memset(batch->from + (count - 1) * q->cluster_bytes, 0, q->cluster_bytes);
                iov_to_buf(guest->iov, guest->iov_count, guest->transferred, batch->from, some);
                pack(q, batch, count);
                r = write_some(q, guest, batch, count);
                guest->transferred += some;
        }
        if (batch) {
                free(batch->from);
                free(batch->to);
        }
        free(batch);
        return r;
}
