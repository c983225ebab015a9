/*
 * Compressed clusters ("Compressed Clusters Descriptor"): deflate without a header and with a window of 4 KiB, or a zstd frame. How many
 * bytes they really have nobody says: decompression ends with the cluster's last byte.
 *
 * The last one is kept, since small reads tend to follow each other.
 */
#include <errno.h>
#include <zlib.h>
#include <zstd.h>

#include "block/qcow2/qcow2.h"

#define DEFLATE_WINDOW (-12)

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

static int unpack(struct qcow2 *q, uint64_t entry, uint8_t *to)
{
        uint64_t offset, size_bytes;
        _cleanup_free_ uint8_t *packed = NULL;
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
        return q->header.compression == QCOW2_ZSTD ? unzstd_cluster(q, packed, size_bytes, to) : inflate_cluster(q, packed, size_bytes, to);
}

int qcow2_unpack(struct qcow2 *q, uint64_t entry, uint8_t *to)
{
        int r = 0;

        fiber_lock(&q->compress_lock);
        if (q->decompressed_at != entry || !q->decompressed) {
                if (!q->decompressed)
                        q->decompressed = malloc(q->cluster_bytes);
                q->decompressed_at = 0;
                r = q->decompressed ? unpack(q, entry, q->decompressed) : -ENOMEM;
                if (r == 0)
                        q->decompressed_at = entry;
        }
        if (r == 0)
                memcpy(to, q->decompressed, q->cluster_bytes);
        fiber_unlock(&q->compress_lock);
        return r;
}
