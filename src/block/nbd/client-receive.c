/*
 * The client's side of the transmission: replies.
 *
 * A reply is checked against the request that its cookie names before any of it is used; the data of a read goes from the stream to where it is
 * wanted. A read has come when its chunks cover it, each byte once. What makes no sense ends the connection, and the requests are asked again.
 */
#include <errno.h>

#include "base/iov.h"
#include "block/nbd/client-internal.h"

#define EXTENTS_MAX ARRAY_SIZE(((struct nbd_extents *)0)->extent)
#define STATUS_REPLY_MAX (UINT32_C(8) << 20)
#define ERROR_MAX 65536u

/* Takes note that [from, to) of the export came; -EPROTO: for the second time, or in too many pieces. */
static int note_range(struct nbd_part *part, uint64_t from, uint64_t to)
{
        struct nbd_range *join = NULL;
        unsigned n = 0;

        while (n < part->ranges) {
                struct nbd_range *range = &part->range[n];

                if (from < range->to && to > range->from)
                        return -EPROTO;
                if (from != range->to && to != range->from) {
                        n++;
                } else if (!join) {
                        range->from = MIN(range->from, from);
                        range->to = MAX(range->to, to);
                        join = range;
                        n++;
                } else { /* it was the gap between two */
                        join->from = MIN(join->from, range->from);
                        join->to = MAX(join->to, range->to);
                        *range = part->range[--part->ranges];
                }
        }
        if (!join) {
                if (part->ranges == NBD_RANGES)
                        return -EPROTO;
                part->range[part->ranges++] = (struct nbd_range){ from, to };
        }
        part->came += to - from;
        return 0;
}

/* A range that lies within the request. */
static bool is_within(const struct nbd_part *part, uint64_t offset, uint64_t size_bytes)
{
        return size_bytes && offset >= part->header.offset && size_bytes <= part->header.length &&
               offset - part->header.offset <= part->header.length - size_bytes;
}

static int read_into(struct nbd_client *c, const struct nbd_part *part, uint64_t at, uint64_t size_bytes)
{
        for (unsigned n = 0; n < part->iov_count && size_bytes; n++) {
                uint64_t some;
                int r;

                if (at >= part->iov[n].iov_len) {
                        at -= part->iov[n].iov_len;
                        continue;
                }
                some = MIN(part->iov[n].iov_len - at, size_bytes);
                r = nbd_stream_get(c->stream, (uint8_t *)part->iov[n].iov_base + at, some);
                if (r < 0)
                        return r;
                at = 0;
                size_bytes -= some;
        }
        return 0;
}

static int data_chunk(struct nbd_client *c, struct nbd_part *part, const struct nbd_chunk *chunk)
{
        uint8_t bytes[8];
        uint64_t offset;
        int r;

        if (part->header.command != NBD_CMD_READ || chunk->length <= sizeof(bytes))
                return -EPROTO;
        r = nbd_stream_get(c->stream, bytes, sizeof(bytes));
        if (r < 0)
                return r;
        offset = nbd_get64(bytes);
        if (!is_within(part, offset, chunk->length - sizeof(bytes)))
                return -EPROTO;
        r = note_range(part, offset, offset + chunk->length - sizeof(bytes));
        return r == 0 ? read_into(c, part, offset - part->header.offset, chunk->length - sizeof(bytes)) : r;
}

static int hole_chunk(struct nbd_client *c, struct nbd_part *part, const struct nbd_chunk *chunk)
{
        uint8_t bytes[12];
        uint64_t offset, size_bytes;
        int r;

        if (part->header.command != NBD_CMD_READ || chunk->length != sizeof(bytes))
                return -EPROTO;
        r = nbd_stream_get(c->stream, bytes, sizeof(bytes));
        if (r < 0)
                return r;
        offset = nbd_get64(bytes);
        size_bytes = nbd_get32(bytes + 8);
        if (!is_within(part, offset, size_bytes))
                return -EPROTO;
        iov_zero(part->iov, part->iov_count, offset - part->header.offset, size_bytes);
        return note_range(part, offset, offset + size_bytes);
}

static int error_chunk(struct nbd_client *c, struct nbd_part *part, const struct nbd_chunk *chunk)
{
        uint8_t bytes[6];
        int r;

        if (chunk->length < sizeof(bytes) || chunk->length > ERROR_MAX)
                return -EPROTO;
        r = nbd_stream_get(c->stream, bytes, sizeof(bytes));
        if (r == 0)
                r = nbd_stream_skip(c->stream, chunk->length - sizeof(bytes));
        if (r < 0)
                return r;
        if (!nbd_get32(bytes))
                return -EPROTO;
        if (part->result == 0)
                part->result = nbd_error_to(nbd_get32(bytes));
        return 0;
}

/* The first extents; the last one may pass the end of the request, and is cut. */
static int status_chunk(struct nbd_client *c, struct nbd_part *part, const struct nbd_chunk *chunk)
{
        bool wide = chunk->type == NBD_CHUNK_BLOCK_STATUS_EXT;
        unsigned head = wide ? 8 : 4, each = wide ? 16 : 8;
        struct nbd_extents *extents = c->extents;
        uint8_t bytes[16];
        uint64_t at = part->header.offset, end = at + part->header.length, count;
        bool ours;
        int r;

        if (part->header.command != NBD_CMD_BLOCK_STATUS || chunk->length < head + each || chunk->length > STATUS_REPLY_MAX ||
            (chunk->length - head) % each || wide != c->export.extended)
                return -EPROTO;
        count = (chunk->length - head) / each;
        r = nbd_stream_get(c->stream, bytes, head);
        if (r < 0)
                return r;
        ours = nbd_get32(bytes) == c->export.context;
        if (wide && nbd_get32(bytes + 4) != count)
                return -EPROTO;
        if (ours)
                *extents = (struct nbd_extents){ .from = at, .to = at };
        for (; count; count--) {
                uint64_t size_bytes, state;

                r = nbd_stream_get(c->stream, bytes, each);
                if (r < 0)
                        return r;
                size_bytes = wide ? nbd_get64(bytes) : nbd_get32(bytes);
                state = wide ? nbd_get64(bytes + 8) : nbd_get32(bytes + 4);
                if (!size_bytes)
                        return -EPROTO;
                if (!ours || at == end || extents->count == EXTENTS_MAX)
                        continue;
                at += MIN(size_bytes, end - at);
                extents->extent[extents->count++] = (struct nbd_extent){ .end = at, .zero = state & NBD_STATE_ZERO };
                extents->to = at;
        }
        return 0;
}

static int one_chunk(struct nbd_client *c)
{
        unsigned rest = nbd_chunk_bytes(c->export.extended);
        struct nbd_part *part;
        struct nbd_chunk chunk;
        const uint8_t *bytes;
        int r = 0;

        bytes = nbd_stream_take(c->stream, rest, &r);
        if (!bytes)
                return r;
        if (!nbd_get_chunk(bytes, &chunk, c->export.extended))
                return -EPROTO;
        part = nbd_client_find(c, chunk.cookie);
        if (!part)
                return -EPROTO;
        switch (chunk.type) {
        case NBD_CHUNK_NONE: r = chunk.length || !(chunk.flags & NBD_CHUNK_DONE) ? -EPROTO : 0; break;
        case NBD_CHUNK_OFFSET_DATA: r = data_chunk(c, part, &chunk); break;
        case NBD_CHUNK_OFFSET_HOLE: r = hole_chunk(c, part, &chunk); break;
        case NBD_CHUNK_BLOCK_STATUS:
        case NBD_CHUNK_BLOCK_STATUS_EXT: r = status_chunk(c, part, &chunk); break;
        default: r = chunk.type & NBD_CHUNK_IS_ERROR ? error_chunk(c, part, &chunk) : -EPROTO; break;
        }
        if (r < 0 || !(chunk.flags & NBD_CHUNK_DONE))
                return r;
        if (part->result == 0 && part->header.command == NBD_CMD_READ && part->came != part->header.length)
                return -EPROTO;
        nbd_client_done(c, part);
        return 0;
}

static int one_simple(struct nbd_client *c)
{
        struct nbd_part *part;
        const uint8_t *bytes;
        int r = 0;

        bytes = nbd_stream_take(c->stream, NBD_SIMPLE_REPLY_BYTES, &r);
        if (!bytes)
                return r;
        if (nbd_get32(bytes) != NBD_SIMPLE_REPLY_MAGIC)
                return -EPROTO;
        part = nbd_client_find(c, nbd_get64(bytes + 8));
        if (!part || (c->export.structured && part->header.command == NBD_CMD_READ) || (part->header.command == NBD_CMD_BLOCK_STATUS && !nbd_get32(bytes + 4)))
                return -EPROTO;
        part->result = nbd_error_to(nbd_get32(bytes + 4));
        if (part->result == 0 && part->header.command == NBD_CMD_READ)
                r = read_into(c, part, 0, part->header.length);
        if (r == 0)
                nbd_client_done(c, part);
        return r;
}

int nbd_client_receive(struct nbd_client *c)
{
        int r = 0;

        nbd_stream_set_idle(c->stream, nbd_client_idle, c);
        while (r == 0 && !c->closing) {
                const uint8_t *magic = nbd_stream_peek(c->stream, sizeof(uint32_t), &r);

                if (!magic)
                        return r;
                r = c->export.extended || (c->export.structured && nbd_get32(magic) == NBD_CHUNK_MAGIC) ? one_chunk(c) : one_simple(c);
        }
        return r;
}
