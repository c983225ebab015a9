/*
 * Compressed grains, and the stream that they are written in ("Stream-Optimized Compressed Sparse Extents").
 *
 *      header · descriptor · {marker + grain}… · marker, table · {marker + grain}… · … · marker, directory · marker, footer · marker of the end
 *
 * A grain's marker says which sector of the disk it is of and how many bytes of zlib's follow. Grains come in ascending order, each once; the
 * table of 512 grains is written when the first behind them comes, so one table and the directory are all that is kept in memory.
 */
#include <errno.h>
#include <inttypes.h>
#include <zlib.h>

#include "base/iov.h"
#include "block/vmdk/image.h"

#define MARKER_BYTES 12 /* in front of a grain's bytes */

/* ---- reading ---- */

static int inflate_grain(const uint8_t *bytes, uint32_t size_bytes, uint8_t *to, uint32_t grain_bytes)
{
        uLongf there = grain_bytes;
        int z = uncompress(to, &there, bytes, size_bytes);

        if (z == Z_OK)
                memset(to + there, 0, grain_bytes - there); /* the last of the disk may be short */
        return z == Z_OK ? 0 : z == Z_MEM_ERROR ? -ENOMEM : -EIO;
}

int vmdk_unpack(struct mapped *m, const struct mapped_run *run, uint8_t *to)
{
        struct vmdk *v = to_vmdk(m);
        uint32_t size_bytes, most = m->packed_bytes + m->packed_bytes / 8 + 4096;
        bool markers = v->extent[0].header.flags & VMDK_FLAG_MARKERS;
        _cleanup_free_ uint8_t *bytes = NULL;
        uint8_t marker[MARKER_BYTES];
        int r = block_read(run->in, run->host, marker, sizeof(marker));

        if (r < 0)
                return r;
        size_bytes = get_le32(marker + (markers ? 8 : 0));
        if (!size_bytes || size_bytes > most)
                return mapped_corrupt(m, "a grain at byte %" PRIu64 " has %" PRIu32 " bytes", run->host, size_bytes);
        bytes = malloc(size_bytes);
        if (!bytes)
                return -ENOMEM;
        r = block_read(run->in, run->host + (markers ? MARKER_BYTES : 4), bytes, size_bytes);
        if (r == 0)
                r = inflate_grain(bytes, size_bytes, to, m->packed_bytes);
        return r == -EIO ? mapped_corrupt(m, "the grain at byte %" PRIu64 " cannot be unpacked", run->host) : r;
}

/* ---- writing ---- */

static int put_marker(struct vmdk *v, uint64_t sectors, enum vmdk_marker type)
{
        uint8_t bytes[VMDK_SECTOR] = { 0 };
        int r;

        put_le64(bytes, sectors);
        put_le32(bytes + 12, type);
        r = block_write(v->m.file, v->stream->end * VMDK_SECTOR, bytes, sizeof(bytes));
        v->stream->end += r == 0;
        return r;
}

/* In whole sectors; *at is where it lies. */
static int put_sectors(struct vmdk *v, const void *bytes, size_t size_bytes, uint32_t *at)
{
        struct vmdk_stream *s = v->stream;
        int r = s->end > UINT32_MAX - size_bytes ? -EFBIG : block_write(v->m.file, s->end * VMDK_SECTOR, bytes, size_bytes);

        if (r < 0)
                return r;
        *at = (uint32_t)s->end;
        s->end += size_bytes / VMDK_SECTOR;
        return 0;
}

/* The table that was filled, unless nothing is in it. */
static int put_table(struct vmdk *v)
{
        struct vmdk_stream *s = v->stream;
        int r = 0;

        if (!s->table_used)
                return 0;
        r = put_marker(v, sizeof(s->table) / VMDK_SECTOR, VMDK_TABLE);
        if (r == 0)
                r = put_sectors(v, s->table, sizeof(s->table), &s->directory[s->table_index]);
        if (r == 0) {
                memset(s->table, 0, sizeof(s->table));
                s->table_used = false;
        }
        return r;
}

static bool is_zero(const uint8_t *bytes, size_t size_bytes)
{
        return !bytes[0] && !memcmp(bytes, bytes + 1, size_bytes - 1);
}

/* bytes has room for the marker in front, and is a grain; `packed` has room for whatever becomes of it. */
static int put_grain(struct vmdk *v, uint64_t grain, const uint8_t *bytes, uint8_t *packed, size_t room)
{
        struct vmdk_stream *s = v->stream;
        const struct vmdk_extent *e = &v->extent[0];
        uLongf size_bytes = room - MARKER_BYTES;
        size_t whole;
        int r = 0;

        if (grain / VMDK_TABLE_ENTRIES != s->table_index) {
                r = put_table(v);
                s->table_index = grain / VMDK_TABLE_ENTRIES;
        }
        if (r < 0 || is_zero(bytes, e->grain_bytes))
                return r;
        if (compress2(packed + MARKER_BYTES, &size_bytes, bytes, e->grain_bytes, Z_DEFAULT_COMPRESSION) != Z_OK)
                return -ENOMEM;
        put_le64(packed, grain * e->header.grain);
        put_le32(packed + 8, (uint32_t)size_bytes);
        whole = align_up(MARKER_BYTES + size_bytes, VMDK_SECTOR);
        memset(packed + MARKER_BYTES + size_bytes, 0, whole - MARKER_BYTES - size_bytes);
        r = put_sectors(v, packed, whole, &s->table[grain % VMDK_TABLE_ENTRIES]);
        s->table_used |= r == 0;
        return r;
}

int vmdk_pack(struct mapped *m, uint64_t at, const struct iovec *iov, unsigned iov_count, uint64_t size_bytes)
{
        struct vmdk *v = to_vmdk(m);
        struct vmdk_stream *s = v->stream;
        const struct vmdk_extent *e = &v->extent[0];
        size_t room = e->grain_bytes + e->grain_bytes / 8 + 4096;
        _cleanup_free_ uint8_t *bytes = NULL, *packed = NULL;
        int r = 0;

        if (!s || at % e->grain_bytes || (size_bytes % e->grain_bytes && at + size_bytes != m->block.info.size_bytes) || at / e->grain_bytes < s->next)
                return -EOPNOTSUPP;
        bytes = malloc(e->grain_bytes);
        packed = malloc(room);
        if (!bytes || !packed)
                return -ENOMEM;
        for (uint64_t done = 0; done < size_bytes && r == 0; done += e->grain_bytes) {
                uint64_t some = MIN(size_bytes - done, e->grain_bytes);

                iov_to_buf(iov, iov_count, done, bytes, some);
                memset(bytes + some, 0, e->grain_bytes - some);
                r = put_grain(v, (at + done) / e->grain_bytes, bytes, packed, room);
                s->next = (at + done) / e->grain_bytes + (r == 0);
        }
        m->cache.written++;
        return r;
}

int vmdk_stream_open(struct vmdk *v, struct err *err)
{
        const struct vmdk_extent *e = &v->extent[0];
        struct vmdk_stream *s;
        int r = 0;

        if (e->header.table_entries != VMDK_TABLE_ENTRIES || !(e->header.flags & VMDK_FLAG_MARKERS))
                r = -EROFS;
        for (uint64_t n = 0; n < e->directory_entries && r == 0; n++) {
                uint32_t table;

                r = vmdk_directory_entry(v, e, false, n, true, &table);
                if (r == 0 && table)
                        r = -EROFS;
        }
        if (r == -EROFS)
                return err_set(err, -EROFS, "disk %s is a stream that was written, and is only read now: open it read-only, or convert it", v->m.block.path);
        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", v->m.block.path);
        s = v->stream = calloc(1, sizeof(*s));
        if (s)
                s->directory = calloc(e->directory_entries, sizeof(*s->directory));
        if (!s || !s->directory)
                return err_nomem(err);
        s->end = MAX(e->header.overhead, e->header.text_offset + e->header.text_sectors);
        v->m.streamed = true;
        v->m.block.info.streamed = true;
        v->m.block.info.discard_bytes = 0;
        return 0;
}

/* What a stream ends with, from where its grains ended. */
int vmdk_stream_finish(struct vmdk *v)
{
        struct vmdk_stream *s = v->stream;
        struct vmdk_header header = v->extent[0].header;
        size_t directory_bytes = align_up(v->extent[0].directory_entries * 4, VMDK_SECTOR);
        _cleanup_free_ uint8_t *directory = calloc(1, directory_bytes);
        uint8_t footer[VMDK_SECTOR];
        uint32_t at;
        int r = directory ? put_table(v) : -ENOMEM;

        if (r == 0)
                r = put_marker(v, directory_bytes / VMDK_SECTOR, VMDK_DIRECTORY);
        if (r < 0)
                return r;
        memcpy(directory, s->directory, v->extent[0].directory_entries * 4);
        r = put_sectors(v, directory, directory_bytes, &at);
        if (r == 0)
                r = put_marker(v, 1, VMDK_FOOTER);
        header.directory_offset = at;
        vmdk_put_header(&header, footer);
        if (r == 0)
                r = put_sectors(v, footer, sizeof(footer), &at);
        if (r == 0)
                r = put_marker(v, 0, VMDK_EOS);
        if (r == 0 && v->m.file->info.grows)
                r = block_resize(v->m.file, s->end * VMDK_SECTOR, NULL);
        return r == 0 ? block_flush(v->m.file) : r;
}
