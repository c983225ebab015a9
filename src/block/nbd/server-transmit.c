/*
 * The server's side of the transmission.
 *
 *   reader fiber   takes requests out of the stream's buffer and submits them to the disk, until the buffer is empty; then it kicks the disk,
 *                  takes what has ended at once, sends replies, and reads again
 *   done           puts the reply into the connection's queue; the batch's end sends all of them with few system calls
 *   other fibers   what takes several steps: block status, reads with holes, zeroes, discards, cache
 *
 *   header ─▶ (payload) ─▶ checked ─▶ working ─▶ replied ─▶ sent
 *
 * A connection has at most NBD_REQUESTS_MAX requests and NBD_IN_FLIGHT_BYTES of their data; its reader waits beyond that.
 */
#include <errno.h>

#include "base/iov.h"
#include "block/bitmap.h"
#include "block/nbd/server-internal.h"

#define SEND_PIECES 128u
#define SPARE_BYTES ((size_t)8 << 20)
#define SPARSE_BYTES 65536u       /* reads of so much leave out holes */
#define HOLE_BYTES 4096u          /* of at least this */
#define SPARSE_RUNS 16u
#define STATUS_RUNS 1024u
#define ZEROES_BYTES (UINT32_C(1) << 20) /* pieces that any disk takes */
#define CACHE_BYTES (UINT32_C(1) << 20)

/* ---- requests ---- */

static struct nbd_request *request_new(struct nbd_connection *c, size_t data_bytes)
{
        struct nbd_request *request = c->spare;

        if (request) {
                c->spare = request->next;
                c->spare_bytes -= request->room;
        } else {
                request = malloc(sizeof(*request));
                if (!request)
                        return NULL;
                request->data = NULL;
                request->room = 0;
        }
        if (request->room < data_bytes) {
                free(request->data);
                request->data = malloc(data_bytes);
                if (!request->data) {
                        free(request);
                        return NULL;
                }
                request->room = data_bytes;
        }
        request->connection = c;
        request->counted = data_bytes;
        request->head_bytes = 0;
        request->pieces = request->piece;
        request->piece_count = 0;
        c->in_flight++;
        c->in_flight_bytes += data_bytes;
        return request;
}

static void request_free(struct nbd_request *request)
{
        struct nbd_connection *c = request->connection;

        c->in_flight--;
        c->in_flight_bytes -= request->counted;
        if (request->pieces != request->piece)
                free(request->pieces);
        if (c->spare_bytes + request->room > SPARE_BYTES) {
                free(request->data);
                free(request);
                return;
        }
        c->spare_bytes += request->room;
        request->next = c->spare;
        c->spare = request;
}

void nbd_connection_drop_spares(struct nbd_connection *c)
{
        while (c->spare) {
                struct nbd_request *next = c->spare->next;

                free(c->spare->data);
                free(c->spare);
                c->spare = next;
        }
}

static bool has_room(const struct nbd_connection *c, size_t data_bytes)
{
        return !c->in_flight || (c->in_flight < NBD_REQUESTS_MAX && c->in_flight_bytes + data_bytes <= NBD_IN_FLIGHT_BYTES);
}

static void idle(void *ctx)
{
        struct nbd_connection *c = ctx;

        block_kick(c->server->disk);
        block_reap(c->server->disk);
        nbd_server_batch(c->server);
}

static void wait_for_room(struct nbd_connection *c, size_t data_bytes)
{
        while (!has_room(c, data_bytes) && !c->gone) {
                idle(c);
                if (has_room(c, data_bytes) || c->gone)
                        break;
                c->fiber = fiber_self();
                fiber_wait();
        }
}

/* ---- sending ---- */

static unsigned gather(const struct nbd_connection *c, struct iovec *iov)
{
        size_t skip = c->out_sent;
        unsigned count = 0;

        for (const struct nbd_request *request = c->out; request; request = request->next)
                for (unsigned n = 0; n <= request->piece_count; n++) {
                        struct iovec piece = n ? request->pieces[n - 1] : (struct iovec){ (void *)request->head, request->head_bytes };

                        count = iov_append(iov, count, piece, &skip);
                        if (count == SEND_PIECES)
                                return count;
                }
        return count;
}

static void sent(struct nbd_connection *c, size_t size_bytes)
{
        c->out_sent += size_bytes;
        while (c->out) {
                struct nbd_request *request = c->out;
                size_t whole = request->head_bytes + iov_total(request->pieces, request->piece_count);

                if (c->out_sent < whole)
                        return;
                c->out_sent -= whole;
                c->out = request->next;
                request_free(request);
        }
        c->out_last = &c->out;
}

void nbd_connection_cut(struct nbd_connection *c)
{
        c->gone = true;
        while (c->out) {
                struct nbd_request *request = c->out;

                c->out = request->next;
                request_free(request);
        }
        c->out_last = &c->out;
        c->out_sent = 0;
}

void nbd_connection_send(struct nbd_connection *c)
{
        struct iovec iov[SEND_PIECES];

        while (c->out && !c->gone && !c->blocked) {
                ssize_t r = nbd_stream_writev(c->stream, iov, gather(c, iov));

                if (r == -EAGAIN)
                        c->blocked = true;
                else if (r < 0)
                        nbd_connection_cut(c);
                else
                        sent(c, (size_t)r);
        }
        if (c->fiber && (c->gone || has_room(c, c->fiber_wants))) {
                struct fiber *fiber = c->fiber;

                c->fiber = NULL;
                fiber_wake(fiber);
                return;
        }
        nbd_connection_settle(c);
}

/* The head is there, and the pieces. */
static void reply(struct nbd_request *request)
{
        struct nbd_connection *c = request->connection;

        c->working--;
        if (c->gone) {
                request_free(request);
                nbd_connection_dirty(c); /* it may be over */
                return;
        }
        request->next = NULL;
        *c->out_last = request;
        c->out_last = &request->next;
        nbd_connection_dirty(c);
}

static uint8_t *put_chunk(const struct nbd_request *request, uint8_t *at, uint16_t type, uint16_t flags, uint64_t length)
{
        const struct nbd_chunk chunk = {
                .flags = flags, .type = type, .cookie = request->header.cookie, .offset = request->header.offset, .length = length,
        };

        return nbd_put_chunk(at, &chunk, request->connection->extended);
}

static void reply_error(struct nbd_request *request, int result)
{
        const struct nbd_connection *c = request->connection;
        uint16_t command = request->header.command;
        uint8_t *at = request->head;

        request->piece_count = 0;
        if (c->extended || (c->structured && (command == NBD_CMD_READ || command == NBD_CMD_BLOCK_STATUS))) {
                at = put_chunk(request, at, NBD_CHUNK_ERROR, NBD_CHUNK_DONE, 6);
                at = nbd_put32(at, nbd_error_from(result));
                at = nbd_put16(at, 0);
        } else {
                at = nbd_put32(at, NBD_SIMPLE_REPLY_MAGIC);
                at = nbd_put32(at, nbd_error_from(result));
                at = nbd_put64(at, request->header.cookie);
        }
        request->head_bytes = (unsigned)(at - request->head);
        reply(request);
}

/* Of a command without data in its reply; or a read of nothing. */
static void reply_plain(struct nbd_request *request, int result)
{
        const struct nbd_connection *c = request->connection;

        if (result < 0 || (!c->extended && !(c->structured && request->header.command == NBD_CMD_READ))) {
                reply_error(request, result);
                return;
        }
        request->head_bytes = (unsigned)(put_chunk(request, request->head, NBD_CHUNK_NONE, NBD_CHUNK_DONE, 0) - request->head);
        reply(request);
}

static void plain_done(struct block_request *req, int result)
{
        reply_plain(container_of(req, struct nbd_request, req), result);
}

/* ---- reading ---- */

static void read_done(struct block_request *req, int result)
{
        struct nbd_request *request = container_of(req, struct nbd_request, req);
        uint8_t *at = request->head;

        if (result < 0) {
                reply_error(request, result);
                return;
        }
        if (request->connection->structured) {
                at = put_chunk(request, at, NBD_CHUNK_OFFSET_DATA, NBD_CHUNK_DONE, 8 + request->header.length);
                at = nbd_put64(at, request->header.offset);
        } else {
                at = nbd_put32(at, NBD_SIMPLE_REPLY_MAGIC);
                at = nbd_put32(at, 0);
                at = nbd_put64(at, request->header.cookie);
        }
        request->head_bytes = (unsigned)(at - request->head);
        request->piece[0] = request->iov;
        request->piece_count = 1;
        reply(request);
}

static void submit(struct nbd_request *request, enum block_op op, unsigned flags, void (*done)(struct block_request *req, int result))
{
        bool data = op == BLOCK_READ || op == BLOCK_WRITE;

        request->iov = (struct iovec){ request->data, data ? request->header.length : 0 };
        request->req = (struct block_request){
                .op = op,
                .flags = flags,
                .offset_bytes = op == BLOCK_FLUSH ? 0 : request->header.offset,
                .size_bytes = op == BLOCK_FLUSH ? 0 : request->header.length,
                .iov = data ? &request->iov : NULL,
                .iov_count = data,
                .done = done,
        };
        block_submit(request->connection->server->disk, &request->req);
}

struct sparse_run {
        uint64_t at, size_bytes;
        bool zero;
        uint8_t head[NBD_CHUNK_EXT_BYTES + 12];
        struct iovec iov;
        struct block_batch_request read;
};

struct sparse {
        struct iovec piece[2 * SPARSE_RUNS]; /* the first thing: what request->pieces frees */
        struct sparse_run run[SPARSE_RUNS];
        unsigned runs;
};

/* Small holes are read as they are, and so is what follows when there are too many. */
static int find_runs(struct nbd_request *request, struct sparse *sparse)
{
        uint64_t at = request->header.offset, end = at + request->header.length;

        sparse->runs = 0;
        while (at < end) {
                struct sparse_run *last = sparse->runs ? &sparse->run[sparse->runs - 1] : NULL;
                struct block_extent extent = { .size_bytes = end - at };
                bool zero;
                int r = 0;

                if (sparse->runs < SPARSE_RUNS)
                        r = block_status_through(request->connection->server->disk, at, end - at, &extent);
                if (r < 0)
                        return r;
                zero = extent.zero && extent.size_bytes >= HOLE_BYTES && sparse->runs < SPARSE_RUNS;
                if (last && (last->zero == zero || sparse->runs == SPARSE_RUNS)) {
                        last->size_bytes += extent.size_bytes;
                        last->zero &= zero;
                } else {
                        sparse->run[sparse->runs].at = at;
                        sparse->run[sparse->runs].size_bytes = extent.size_bytes;
                        sparse->run[sparse->runs++].zero = zero;
                }
                at += extent.size_bytes;
        }
        return 0;
}

static int read_runs(struct nbd_request *request, struct sparse *sparse)
{
        struct block *disk = request->connection->server->disk;
        struct block_batch batch = { 0 };

        for (unsigned n = 0; n < sparse->runs; n++) {
                struct sparse_run *run = &sparse->run[n];

                if (run->zero)
                        continue;
                run->iov = (struct iovec){ request->data + (run->at - request->header.offset), run->size_bytes };
                run->read = (struct block_batch_request){
                        .req = { .op = BLOCK_READ, .offset_bytes = run->at, .size_bytes = run->size_bytes, .iov = &run->iov, .iov_count = 1 },
                };
                block_batch_add(&batch, disk, &run->read);
        }
        return block_batch_wait(&batch, disk);
}

static void put_runs(struct nbd_request *request, struct sparse *sparse)
{
        for (unsigned n = 0; n < sparse->runs; n++) {
                struct sparse_run *run = &sparse->run[n];
                uint8_t *at = put_chunk(request, run->head, run->zero ? NBD_CHUNK_OFFSET_HOLE : NBD_CHUNK_OFFSET_DATA,
                                        n == sparse->runs - 1 ? NBD_CHUNK_DONE : 0, run->zero ? 12 : 8 + run->size_bytes);

                at = nbd_put64(at, run->at);
                if (run->zero)
                        at = nbd_put32(at, (uint32_t)run->size_bytes);
                sparse->piece[request->piece_count++] = (struct iovec){ run->head, (size_t)(at - run->head) };
                if (!run->zero)
                        sparse->piece[request->piece_count++] = run->iov;
        }
}

static void sparse_work(void *arg)
{
        struct nbd_request *request = arg;
        struct sparse *sparse = malloc(sizeof(*sparse));
        int r = sparse ? find_runs(request, sparse) : -ENOMEM;

        if (r == 0 && sparse->runs == 1 && !sparse->run[0].zero) {
                free(sparse);
                submit(request, BLOCK_READ, 0, read_done);
                block_kick(request->connection->server->disk);
                return;
        }
        if (r == 0)
                r = read_runs(request, sparse);
        if (r < 0) {
                free(sparse);
                reply_error(request, r);
                return;
        }
        request->pieces = sparse->piece;
        put_runs(request, sparse);
        reply(request);
}

/* ---- fibers of other commands ---- */

static void in_fiber(struct nbd_request *request, void (*work)(void *request))
{
        if (fiber_start(work, request) < 0)
                reply_error(request, -ENOMEM);
}

/* The state at a place, and so far it is the same. */
static int state_at(const struct nbd_server *server, unsigned context, uint64_t at, uint64_t end, uint32_t *state, uint64_t *size_bytes)
{
        struct block_extent extent;
        uint64_t from;
        int r;

        if (!context) {
                r = block_status_through(server->disk, at, end - at, &extent);
                *state = extent.zero ? NBD_STATE_HOLE | NBD_STATE_ZERO : 0;
                *size_bytes = extent.size_bytes;
                return r;
        }
        if (!block_bitmap_next(server->config.bitmap[context - 1], at, &from, size_bytes) || from >= end) {
                *state = 0;
                *size_bytes = end - at;
        } else if (from > at) {
                *state = 0;
                *size_bytes = from - at;
        } else {
                *state = NBD_STATE_DIRTY;
                *size_bytes = MIN(*size_bytes, end - at);
        }
        return 0;
}

/* Runs of equal state from the request's start on: how many, as the chunk has them. */
static int put_states(struct nbd_request *request, unsigned context, uint8_t **at)
{
        struct nbd_connection *c = request->connection;
        uint64_t from = request->header.offset, end = from + request->header.length, size_bytes = 0;
        unsigned most = request->header.flags & NBD_CMD_FLAG_REQ_ONE ? 1 : STATUS_RUNS, runs = 0;
        uint32_t state = 0;

        while (from <= end) {
                uint64_t some = 0;
                uint32_t next = 0;
                int r = from < end ? state_at(c->server, context, from, end, &next, &some) : 0;

                if (r < 0)
                        return r;
                if (size_bytes && (next != state || from == end)) {
                        *at = c->extended ? nbd_put64(*at, size_bytes) : nbd_put32(*at, (uint32_t)size_bytes);
                        *at = c->extended ? nbd_put64(*at, state) : nbd_put32(*at, state);
                        size_bytes = 0;
                        if (++runs == most)
                                break;
                }
                if (from == end)
                        break;
                state = next;
                size_bytes += some;
                from += some;
        }
        return (int)runs;
}

/* A chunk for a context. */
static int put_status(struct nbd_request *request, unsigned context, bool last, uint8_t **at)
{
        bool extended = request->connection->extended;
        uint8_t *head = *at, *payload = head + nbd_chunk_bytes(extended), *end = payload + (extended ? 8 : 4);
        int runs = put_states(request, context, &end);

        if (runs < 0)
                return runs;
        put_chunk(request, head, extended ? NBD_CHUNK_BLOCK_STATUS_EXT : NBD_CHUNK_BLOCK_STATUS, last ? NBD_CHUNK_DONE : 0, (uint64_t)(end - payload));
        nbd_put32(payload, context + 1);
        if (extended)
                nbd_put32(payload + 4, (uint32_t)runs);
        *at = end;
        return 0;
}

static void status_work(void *arg)
{
        struct nbd_request *request = arg;
        unsigned contexts = request->connection->contexts;
        uint8_t *at = request->data;
        int r = 0;

        for (unsigned n = 0; contexts && r == 0; n++) {
                if (contexts & 1u << n) {
                        contexts &= ~(1u << n);
                        r = put_status(request, n, !contexts, &at);
                }
        }
        if (r < 0) {
                reply_error(request, r);
                return;
        }
        request->piece[0] = (struct iovec){ request->data, (size_t)(at - request->data) };
        request->piece_count = 1;
        reply(request);
}

static int write_zeroes(struct block *disk, uint64_t at, uint64_t size_bytes)
{
        _cleanup_free_ uint8_t *zeroes = calloc(1, ZEROES_BYTES);
        int r = zeroes ? 0 : -ENOMEM;

        while (r == 0 && size_bytes) {
                uint64_t some = MIN(size_bytes, ZEROES_BYTES);

                r = block_write(disk, at, zeroes, some);
                at += some;
                size_bytes -= some;
        }
        return r;
}

/* Discards, and zeroes: in pieces that do not take long. Where the disk cannot, zeroes are written, unless that is not wanted. */
static void range_work(void *arg)
{
        struct nbd_request *request = arg;
        struct block *disk = request->connection->server->disk;
        const struct nbd_header *header = &request->header;
        bool zeroes = header->command == NBD_CMD_WRITE_ZEROES, fast = header->flags & NBD_CMD_FLAG_FAST_ZERO;
        uint64_t at = header->offset, end = at + header->length, piece = MAX(disk->info.zeroes_bytes, ZEROES_BYTES);
        unsigned flags = zeroes && !(header->flags & NBD_CMD_FLAG_NO_HOLE) ? BLOCK_F_UNMAP : 0;
        int r = 0;

        while (r == 0 && at < end) {
                uint64_t some = MIN(end - at, piece);

                r = block_do(disk, zeroes ? BLOCK_WRITE_ZEROES : BLOCK_DISCARD, flags, at, some, NULL, 0);
                if (r == -EOPNOTSUPP && zeroes && !fast)
                        r = write_zeroes(disk, at, some);
                at += some;
        }
        if (r == 0 && header->flags & NBD_CMD_FLAG_FUA)
                r = block_flush(disk);
        reply_plain(request, r);
}

static void cache_work(void *arg)
{
        struct nbd_request *request = arg;
        uint64_t at = request->header.offset, end = at + request->header.length;
        int r = 0;

        while (r == 0 && at < end && !request->connection->gone) {
                uint64_t some = MIN(end - at, CACHE_BYTES);

                r = block_read(request->connection->server->disk, at, request->data, some);
                at += some;
        }
        reply_plain(request, r);
}

/* ---- taking requests ---- */

uint16_t nbd_server_flags(const struct nbd_connection *c)
{
        const struct block_info *info = &c->server->disk->info;
        unsigned flags = NBD_HAS_FLAGS | NBD_SEND_FLUSH | NBD_CAN_MULTI_CONN | NBD_SEND_CACHE;

        if (c->structured)
                flags |= NBD_SEND_DF;
        if (c->server->readonly)
                flags |= NBD_READ_ONLY;
        else
                flags |= NBD_SEND_FUA | NBD_SEND_TRIM | NBD_SEND_WRITE_ZEROES | (info->zeroes_bytes > ZEROES_BYTES ? NBD_SEND_FAST_ZERO : 0);
        return (uint16_t)flags;
}

static unsigned flags_of(const struct nbd_connection *c, uint16_t command)
{
        switch (command) {
        case NBD_CMD_READ: return NBD_CMD_FLAG_FUA | (c->structured ? NBD_CMD_FLAG_DF : 0);
        case NBD_CMD_WRITE: return NBD_CMD_FLAG_FUA | (c->extended ? NBD_CMD_FLAG_PAYLOAD_LEN : 0);
        case NBD_CMD_WRITE_ZEROES: return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
        case NBD_CMD_BLOCK_STATUS: return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE;
        default: return NBD_CMD_FLAG_FUA;
        }
}

/* Before anything is done: 0, or what is wrong with it. */
static int check(const struct nbd_connection *c, const struct nbd_header *header)
{
        uint64_t size_bytes = c->server->disk->info.size_bytes;
        bool writes = header->command == NBD_CMD_WRITE || header->command == NBD_CMD_TRIM || header->command == NBD_CMD_WRITE_ZEROES;

        if (header->command > NBD_CMD_BLOCK_STATUS || header->flags & ~flags_of(c, header->command))
                return -EINVAL;
        if (writes && c->server->readonly)
                return -EPERM;
        if (header->command == NBD_CMD_FLUSH)
                return 0;
        if (header->offset > size_bytes || header->length > size_bytes - header->offset)
                return writes ? -ENOSPC : -EINVAL;
        if (header->command == NBD_CMD_READ && header->length > NBD_PAYLOAD_MAX)
                return -EOVERFLOW;
        if (header->command == NBD_CMD_BLOCK_STATUS && (!c->contexts || !header->length))
                return -EINVAL;
        return 0;
}

static void begin(struct nbd_request *request)
{
        const struct nbd_connection *c = request->connection;
        const struct nbd_header *header = &request->header;
        unsigned flags = header->flags & NBD_CMD_FLAG_FUA ? BLOCK_F_DURABLE : 0;

        switch (header->command) {
        case NBD_CMD_READ:
                if (!header->length)
                        reply_plain(request, 0);
                else if (c->structured && !(header->flags & NBD_CMD_FLAG_DF) && header->length >= SPARSE_BYTES)
                        in_fiber(request, sparse_work);
                else
                        submit(request, BLOCK_READ, 0, read_done);
                break;
        case NBD_CMD_WRITE:
                if (header->length)
                        submit(request, BLOCK_WRITE, flags, plain_done);
                else
                        reply_plain(request, 0);
                break;
        case NBD_CMD_FLUSH:
                if (c->server->readonly)
                        reply_plain(request, 0);
                else
                        submit(request, BLOCK_FLUSH, 0, plain_done);
                break;
        case NBD_CMD_CACHE: in_fiber(request, cache_work); break;
        case NBD_CMD_BLOCK_STATUS: in_fiber(request, status_work); break;
        default: in_fiber(request, range_work); break;
        }
}

/* What the request needs of memory. wrong: it will only be refused. */
static size_t data_bytes(const struct nbd_connection *c, const struct nbd_header *header, bool payload, bool wrong)
{
        if (payload)
                return header->length;
        if (wrong)
                return 0;
        switch (header->command) {
        case NBD_CMD_READ: return header->length;
        case NBD_CMD_CACHE: return MIN(header->length, CACHE_BYTES);
        case NBD_CMD_BLOCK_STATUS: return (size_t)__builtin_popcount(c->contexts) * (NBD_CHUNK_EXT_BYTES + 8 + 16 * STATUS_RUNS);
        default: return 0;
        }
}

/* 1: the client has said that it leaves. */
static int one_request(struct nbd_connection *c)
{
        struct nbd_request *request;
        struct nbd_header header;
        int r = 0, wrong;
        const uint8_t *head = nbd_stream_take(c->stream, nbd_request_bytes(c->extended), &r);
        bool payload;

        if (!head)
                return r;
        if (!nbd_get_request(head, &header, c->extended))
                return -EPROTO;
        if (header.command == NBD_CMD_DISC)
                return 1;
        /* With extended headers a flag says so of any command. */
        payload = c->extended ? header.flags & NBD_CMD_FLAG_PAYLOAD_LEN : header.command == NBD_CMD_WRITE;
        if ((payload || header.command == NBD_CMD_WRITE) && header.length > NBD_PAYLOAD_MAX)
                return -EPROTO;
        if (c->extended && header.command == NBD_CMD_WRITE && !payload)
                return -EPROTO;
        wrong = check(c, &header);
        c->fiber_wants = data_bytes(c, &header, payload, wrong);
        wait_for_room(c, c->fiber_wants);
        if (c->gone)
                return -ECONNRESET;
        request = request_new(c, c->fiber_wants);
        if (!request)
                return -ENOMEM;
        request->header = header;
        if (payload)
                r = nbd_stream_get(c->stream, request->data, header.length);
        if (r < 0) {
                request_free(request);
                return r;
        }
        c->working++;
        if (wrong)
                reply_error(request, wrong);
        else
                begin(request);
        return 0;
}

int nbd_server_transmit(struct nbd_connection *c)
{
        int r;

        nbd_stream_set_idle(c->stream, idle, c);
        do
                r = c->gone ? -ECONNRESET : one_request(c);
        while (r == 0);
        idle(c);
        return r < 0 ? r : 0;
}
