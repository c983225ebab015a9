/*
 * The NBD client: a disk that a server gives.
 *
 *   one fiber    connects, shakes hands, reads replies; when the connection is lost it begins anew
 *   submit       makes requests of the protocol, parts, and queues them; kick sends the queue with few system calls
 *
 *   queued ─▶ sent (has a slot, which its cookie names) ─▶ answered ─▶ the guest's request is over when all its parts are
 *     ▲          │
 *     └──────────┘ the connection is lost: all of them are asked again, which changes nothing as no answer to them was seen
 *
 * Requests wait for a server that is gone for as long as the URI says, counted from the last answer; then they fail, until it is there again.
 *
 * Waiting without the loop (block_drain() and the like) is done by acting for the loop on what the fiber waits for.
 *
 * Blocks of the server's that are larger than a sector: what is not whole blocks is read, changed and written back, while no other write is on
 * its way.
 */
#include "block/nbd/client.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/iov.h"
#include "base/text.h"
#include "block/nbd/client-internal.h"

#define CONNECT_MS 10000u
#define SEND_PIECES 128u
#define RANGE_BYTES (UINT32_C(1) << 30)  /* of zeroes and discards in one request */
#define ZEROES_BYTES (UINT32_C(1) << 20) /* of zeroes that we write ourselves */
#define ZERO_PIECE 65536u
#define DELAY_MS 50u
#define DELAY_MAX_MS 5000u

enum { STAGE_FIRST, STAGE_FLUSH };

static const uint8_t zeroes[ZERO_PIECE];

static struct nbd_client *to_client(struct block *block)
{
        return container_of(block, struct nbd_client, block);
}

/* ---- parts ---- */

static struct nbd_part *part_new(struct nbd_client *c, struct block_request *guest, uint16_t command, uint16_t flags, uint64_t offset, uint64_t length)
{
        struct nbd_part *part = c->spare;

        if (part)
                c->spare = part->next;
        else
                part = malloc(sizeof(*part));
        if (!part)
                return NULL;
        part->guest = guest;
        part->header = (struct nbd_header){ .flags = flags, .command = command, .offset = offset, .length = length };
        part->iov = NULL;
        part->iov_count = 0;
        part->more = NULL;
        part->over = NULL;
        part->fiber = NULL;
        return part;
}

static void part_free(struct nbd_client *c, struct nbd_part *part)
{
        free(part->more);
        part->next = c->spare;
        c->spare = part;
}

static void enqueue(struct nbd_client *c, struct nbd_part *part)
{
        part->has_slot = part->sent = false;
        part->ranges = 0;
        part->came = 0;
        part->result = 0;
        part->next = NULL;
        *c->queue_last = part;
        c->queue_last = &part->next;
}

struct nbd_part *nbd_client_find(struct nbd_client *c, uint64_t cookie)
{
        struct nbd_part *part = c->slot[(uint32_t)cookie % NBD_SLOTS];

        return part && part->sent && part->header.cookie == cookie ? part : NULL;
}

static void leave_slot(struct nbd_client *c, struct nbd_part *part)
{
        c->slot[(uint32_t)part->header.cookie % NBD_SLOTS] = NULL;
        c->slots_used--;
}

static void take_slot(struct nbd_client *c, struct nbd_part *part)
{
        while (c->slot[c->slot_next % NBD_SLOTS])
                c->slot_next++;
        part->header.cookie = (uint64_t)++c->generation << 32 | c->slot_next % NBD_SLOTS;
        c->slot[c->slot_next % NBD_SLOTS] = part;
        c->slots_used++;
        part->has_slot = true;
        nbd_put_request(part->bytes, &part->header, c->export.extended);
}

/* ---- sending ---- */

static unsigned gather(struct nbd_client *c, struct iovec *iov)
{
        size_t skip = c->out_sent;
        unsigned count = 0;

        for (struct nbd_part *part = c->queue; part; part = part->next) {
                unsigned pieces = part->header.command == NBD_CMD_WRITE ? part->iov_count : 0;

                if (!part->has_slot && c->slots_used == NBD_SLOTS)
                        break;
                if (!part->has_slot)
                        take_slot(c, part);
                for (unsigned n = 0; n <= pieces; n++) {
                        struct iovec piece = n ? part->iov[n - 1] : (struct iovec){ part->bytes, nbd_request_bytes(c->export.extended) };

                        count = iov_append(iov, count, piece, &skip);
                        if (count == SEND_PIECES)
                                return count;
                }
        }
        return count;
}

static void went(struct nbd_client *c, size_t size_bytes)
{
        c->out_sent += size_bytes;
        while (c->queue) {
                struct nbd_part *part = c->queue;
                size_t whole = nbd_request_bytes(c->export.extended) + (part->header.command == NBD_CMD_WRITE ? part->header.length : 0);

                if (c->out_sent < whole)
                        return;
                c->out_sent -= whole;
                c->queue = part->next;
                part->sent = true;
        }
        c->queue_last = &c->queue;
}

static void send_queue(struct nbd_client *c)
{
        struct iovec iov[SEND_PIECES];

        while (c->queue && c->connected && !c->blocked) {
                unsigned count = gather(c, iov);
                ssize_t r;

                if (!count)
                        return;
                r = nbd_stream_writev(c->stream, iov, count);
                if (r == -EAGAIN)
                        c->blocked = true;
                else if (r < 0)
                        return; /* the reader finds out, too */
                else
                        went(c, (size_t)r);
        }
}

static void writable(void *ctx)
{
        struct nbd_client *c = ctx;

        c->blocked = false;
        send_queue(c);
}

static void tell(struct nbd_client *c)
{
        if (!c->told)
                return;
        c->told = false;
        if (c->block.listener)
                c->block.listener(c->block.listener_ctx);
}

void nbd_client_idle(void *ctx)
{
        struct nbd_client *c = ctx;

        tell(c);
        send_queue(c);
}

/* ---- the end of requests ---- */

static int add_flush(struct nbd_client *c, struct block_request *guest);
static void resume_held(struct nbd_client *c);

static bool is_write(const struct block_request *guest)
{
        return guest->op == BLOCK_WRITE || guest->op == BLOCK_WRITE_ZEROES || guest->op == BLOCK_DISCARD;
}

static void over(struct nbd_client *c, struct block_request *guest)
{
        if (guest->result == 0 && guest->stage == STAGE_FIRST && is_write(guest) && guest->flags & BLOCK_F_DURABLE && !(c->export.flags & NBD_SEND_FUA)) {
                guest->stage = STAGE_FLUSH;
                guest->rest = 1;
                guest->result = add_flush(c, guest);
                if (guest->result == 0)
                        return;
        }
        if (is_write(guest) && --c->writes == 0)
                fiber_queue_wake_all(&c->rmw_quiet);
        c->told = true;
        block_complete(&c->block, guest, guest->result);
}

static void let_go(struct nbd_client *c, struct block_request *guest, int result)
{
        if (guest->result == 0)
                guest->result = result;
        if (--guest->rest == 0)
                over(c, guest);
}

static void part_over(struct nbd_client *c, struct nbd_part *part, int result)
{
        struct block_request *guest = part->guest;

        c->progress++;
        if (!guest) { /* block status: its caller has the part */
                part->result = result;
                *part->over = true;
                c->told = true; /* whoever waited may have completed something of its own */
                if (part->fiber)
                        fiber_wake(part->fiber);
                return;
        }
        part_free(c, part);
        let_go(c, guest, result);
}

void nbd_client_done(struct nbd_client *c, struct nbd_part *part)
{
        c->lost_ms = 0;
        c->attempts = 0;
        leave_slot(c, part);
        part_over(c, part, part->result);
}

static void fail_all(struct nbd_client *c)
{
        c->failing = true;
        while (c->queue) {
                struct nbd_part *part = c->queue;

                c->queue = part->next;
                if (!c->queue)
                        c->queue_last = &c->queue;
                part_over(c, part, -EIO);
        }
        tell(c);
}

/* The connection is gone: what the server had comes first, in front of what it did not get. */
static void ask_again(struct nbd_client *c)
{
        struct nbd_part *queued = c->queue;

        c->queue = NULL;
        c->queue_last = &c->queue;
        c->out_sent = 0;
        c->blocked = false;
        for (unsigned n = 0; n < NBD_SLOTS; n++) {
                struct nbd_part *part = c->slot[n];

                c->slot[n] = NULL;
                if (part && part->sent)
                        enqueue(c, part);
        }
        c->slots_used = 0;
        while (queued) {
                struct nbd_part *next = queued->next;

                enqueue(c, queued);
                queued = next;
        }
}

/* ---- submitting ---- */

/* Some of the guest's request, from `done` bytes into it. */
static int add_part(struct nbd_client *c, struct block_request *guest, uint16_t command, uint16_t flags, uint64_t done, uint64_t length)
{
        struct nbd_part *part = part_new(c, guest, command, flags, guest->offset_bytes + done, length);

        if (!part)
                return -ENOMEM;
        if (guest->iov_count && length == guest->size_bytes) {
                part->iov = (struct iovec *)guest->iov;
                part->iov_count = guest->iov_count;
        } else if (guest->iov_count || command == NBD_CMD_WRITE) {
                unsigned count = guest->iov_count ? guest->iov_count : ZEROES_BYTES / ZERO_PIECE;

                part->iov = part->more = calloc(count, sizeof(*part->more));
                if (!part->more) {
                        part_free(c, part);
                        return -ENOMEM;
                }
                if (guest->iov_count)
                        part->iov_count = iov_slice(guest->iov, guest->iov_count, done, length, part->more);
                else
                        for (uint64_t at = 0; at < length; at += ZERO_PIECE)
                                part->more[part->iov_count++] = (struct iovec){ (void *)zeroes, MIN(length - at, (uint64_t)ZERO_PIECE) };
        }
        guest->rest++;
        enqueue(c, part);
        return 0;
}

static int add_parts(struct nbd_client *c, struct block_request *guest, uint16_t command, uint16_t flags, uint64_t size_bytes, uint64_t most)
{
        int r = 0;

        for (uint64_t done = 0; done < size_bytes && r == 0;) {
                uint64_t some = MIN(size_bytes - done, most);

                r = add_part(c, guest, command, flags, done, some);
                done += some;
        }
        return r;
}

static int add_flush(struct nbd_client *c, struct block_request *guest)
{
        struct nbd_part *part = part_new(c, guest, NBD_CMD_FLUSH, 0, 0, 0);

        if (!part)
                return -ENOMEM;
        enqueue(c, part);
        send_queue(c);
        return 0;
}

/* How much of it is within the export, which may end amid a sector. What is behind reads as zeroes, and only zeroes may be written there. */
static int clip(const struct nbd_client *c, const struct block_request *guest, uint64_t *size_bytes)
{
        uint64_t there = guest->offset_bytes < c->export.size_bytes ? MIN(guest->size_bytes, c->export.size_bytes - guest->offset_bytes) : 0;
        uint8_t behind[BLOCK_SECTOR];
        size_t tail;

        *size_bytes = there;
        if (there == guest->size_bytes)
                return 0;
        if (guest->op == BLOCK_READ)
                iov_zero(guest->iov, guest->iov_count, there, guest->size_bytes - there);
        if (guest->op != BLOCK_WRITE)
                return 0;
        tail = iov_to_buf(guest->iov, guest->iov_count, there, behind, sizeof(behind));
        for (size_t n = 0; n < tail; n++)
                if (behind[n])
                        return -ENOSPC;
        return 0;
}

static int add_request(struct nbd_client *c, struct block_request *guest)
{
        const struct nbd_export *export = &c->export;
        uint16_t fua = guest->flags & BLOCK_F_DURABLE && export->flags & NBD_SEND_FUA ? NBD_CMD_FLAG_FUA : 0;
        uint64_t size_bytes;
        int r = clip(c, guest, &size_bytes);

        if (r < 0)
                return r;
        switch (guest->op) {
        case BLOCK_READ: return add_parts(c, guest, NBD_CMD_READ, 0, size_bytes, export->maximum_bytes);
        case BLOCK_WRITE:
                return add_parts(c, guest, NBD_CMD_WRITE, fua | (export->extended ? NBD_CMD_FLAG_PAYLOAD_LEN : 0), size_bytes, export->maximum_bytes);
        case BLOCK_FLUSH:
                if (!(export->flags & NBD_SEND_FLUSH))
                        return 0;
                return add_part(c, guest, NBD_CMD_FLUSH, 0, 0, 0);
        case BLOCK_DISCARD:
                if (!(export->flags & NBD_SEND_TRIM))
                        return 0;
                return add_parts(c, guest, NBD_CMD_TRIM, fua, size_bytes, RANGE_BYTES);
        case BLOCK_WRITE_ZEROES:
                if (export->flags & NBD_SEND_WRITE_ZEROES)
                        return add_parts(c, guest, NBD_CMD_WRITE_ZEROES, fua | (guest->flags & BLOCK_F_UNMAP ? 0 : NBD_CMD_FLAG_NO_HOLE), size_bytes,
                                         RANGE_BYTES);
                if (size_bytes > ZEROES_BYTES)
                        return -EOPNOTSUPP;
                return add_parts(c, guest, NBD_CMD_WRITE, fua | (export->extended ? NBD_CMD_FLAG_PAYLOAD_LEN : 0), size_bytes,
                                 MIN(export->maximum_bytes, ZEROES_BYTES));
        }
        return -EINVAL;
}

static void begin(struct nbd_client *c, struct block_request *guest)
{
        int r;

        guest->rest = 1; /* until all parts are there */
        guest->result = 0;
        guest->stage = STAGE_FIRST;
        if (is_write(guest)) {
                c->writes++;
                c->changes++;
        }
        r = c->failing ? -EIO : add_request(c, guest);
        let_go(c, guest, r);
}

/* ---- what is not whole blocks ---- */

static bool is_unaligned(const struct nbd_client *c, const struct block_request *guest)
{
        uint64_t mask = c->export.minimum_bytes - 1, end = guest->offset_bytes + guest->size_bytes;

        return guest->op != BLOCK_FLUSH && (guest->offset_bytes & mask || (end & mask && end < c->export.size_bytes));
}

struct around {
        struct block_batch_request request;
        struct block_batch batch;
        struct iovec iov;
};

/* As block_do(), past the gate for unaligned requests. */
static int do_aligned(struct nbd_client *c, enum block_op op, unsigned flags, uint64_t from, uint8_t *bytes, uint64_t size_bytes)
{
        struct around a = { .iov = { bytes, size_bytes } };

        a.request.req = (struct block_request){ .op = op, .flags = flags, .offset_bytes = from, .size_bytes = size_bytes, .iov = &a.iov, .iov_count = 1 };
        c->past_gate = true;
        block_batch_add(&a.batch, &c->block, &a.request);
        c->past_gate = false;
        return block_batch_wait(&a.batch, &c->block);
}

static int do_around(struct nbd_client *c, struct block_request *guest)
{
        uint64_t block = c->export.minimum_bytes, from = align_down(guest->offset_bytes, block), to = align_up(guest->offset_bytes + guest->size_bytes, block);
        size_t skip = guest->offset_bytes - from;
        _cleanup_free_ uint8_t *bytes = NULL;
        int r;

        if (to - from > NBD_PAYLOAD_MAX)
                return -EOPNOTSUPP;
        to = MIN(to, align_up(c->export.size_bytes, BLOCK_SECTOR));
        bytes = malloc(to - from);
        if (!bytes)
                return -ENOMEM;
        r = do_aligned(c, BLOCK_READ, 0, from, bytes, to - from);
        if (r < 0)
                return r;
        if (guest->op == BLOCK_READ) {
                buf_to_iov(guest->iov, guest->iov_count, 0, bytes + skip, guest->size_bytes);
                return 0;
        }
        if (guest->op == BLOCK_WRITE)
                iov_to_buf(guest->iov, guest->iov_count, 0, bytes + skip, guest->size_bytes);
        else
                memset(bytes + skip, 0, guest->size_bytes);
        return do_aligned(c, BLOCK_WRITE, guest->flags & BLOCK_F_DURABLE, from, bytes, to - from);
}

static void around_work(void *arg)
{
        struct block_request *guest = arg;
        struct nbd_client *c = (struct nbd_client *)guest->next;
        bool writes = guest->op != BLOCK_READ;
        int r;

        fiber_lock(&c->rmw_lock);
        c->rmw |= writes;
        while (writes && c->writes)
                fiber_queue_wait(&c->rmw_quiet);
        r = do_around(c, guest);
        c->rmw = false;
        fiber_unlock(&c->rmw_lock);
        resume_held(c);
        c->told = true;
        block_complete(&c->block, guest, r);
        block_kick(&c->block);
}

static void start(struct nbd_client *c, struct block_request *guest)
{
        if (c->rmw && is_write(guest) && !c->past_gate) {
                guest->next = NULL;
                *c->held_last = guest;
                c->held_last = &guest->next;
        } else if (is_unaligned(c, guest) && guest->op == BLOCK_DISCARD) {
                block_complete(&c->block, guest, 0); /* a hint */
        } else if (is_unaligned(c, guest)) {
                guest->next = (struct block_request *)c; /* nobody else has the request now */
                if (fiber_start(around_work, guest) < 0)
                        block_complete(&c->block, guest, -ENOMEM);
        } else {
                begin(c, guest);
        }
}

static void resume_held(struct nbd_client *c)
{
        struct block_request *guest = c->held;

        c->held = NULL;
        c->held_last = &c->held;
        while (guest) {
                struct block_request *next = guest->next;

                start(c, guest);
                guest = next;
        }
}

static void client_submit(struct block *block, struct block_request *guest)
{
        start(to_client(block), guest);
}

static void client_kick(struct block *block)
{
        send_queue(to_client(block));
}

/* ---- the connection ---- */

static void timer_rang(uv_timer_t *timer)
{
        struct nbd_client *c = timer->data;
        struct fiber *fiber = c->fiber;

        c->fiber = NULL;
        uv_timer_stop(timer);
        fiber_wake(fiber);
}

static void nap(struct nbd_client *c, unsigned delay_ms)
{
        c->fiber = fiber_self();
        uv_update_time(c->block.loop);
        uv_timer_start(c->timer, timer_rang, delay_ms, 0);
        fiber_wait();
}

static int connect_to(struct nbd_client *c, int family, const struct sockaddr *address, socklen_t size_bytes, struct err *err)
{
        int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), one = 1, result = 0, r;
        socklen_t result_bytes = sizeof(result);

        if (fd < 0)
                return err_errno(err, -errno, "cannot make a socket");
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
        if (connect(fd, address, size_bytes) < 0 && errno != EINPROGRESS) {
                r = err_errno(err, -errno, "cannot connect");
                close(fd);
                return r;
        }
        r = nbd_stream_new(c->block.loop, fd, fd, &c->stream, err);
        if (r < 0)
                return r;
        nbd_stream_set_writable(c->stream, writable, c);
        nbd_stream_set_deadline(c->stream, CONNECT_MS);
        r = nbd_stream_wait_writable(c->stream);
        if (r == 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &result, &result_bytes) == 0)
                r = -result;
        return r < 0 ? err_errno(err, r, "cannot connect") : 0;
}

static void drop_stream(struct nbd_client *c)
{
        nbd_stream_free(c->stream);
        c->stream = NULL;
}

static int connect_somewhere(struct nbd_client *c, struct err *err)
{
        struct sockaddr_un local = { .sun_family = AF_UNIX };
        int r = -EADDRNOTAVAIL;

        if (c->uri.socket) {
                if (!text_copy(local.sun_path, sizeof(local.sun_path), c->uri.socket))
                        return err_set(err, -ENAMETOOLONG, "the path of the socket is too long");
                return connect_to(c, AF_UNIX, (struct sockaddr *)&local, sizeof(local), err);
        }
        for (const struct addrinfo *info = c->addresses; info; info = info->ai_next) {
                drop_stream(c);
                r = connect_to(c, info->ai_family, info->ai_addr, info->ai_addrlen, err);
                if (r == 0 || c->closing)
                        break;
        }
        return r;
}

/* After a loss the export must be the one that it was. */
static int check_same(const struct nbd_client *c, const struct nbd_export *export, struct err *err)
{
        uint16_t needed = c->export.flags & (NBD_SEND_FLUSH | NBD_SEND_FUA | NBD_SEND_TRIM | NBD_SEND_WRITE_ZEROES);

        if (export->size_bytes != c->export.size_bytes || (export->flags & needed) != needed || (export->flags & NBD_READ_ONLY && !c->block.info.readonly) ||
            export->maximum_bytes < c->export.maximum_bytes || export->minimum_bytes != c->export.minimum_bytes ||
            (c->export.allocation && !export->allocation))
                return err_set(err, -EPROTO, "the server came back with another export");
        return 0;
}

static int connect_and_shake(struct nbd_client *c, struct err *err)
{
        struct nbd_export export;
        int r = connect_somewhere(c, err);

        if (r == 0)
                r = nbd_client_handshake(c, &export, err);
        if (r == 0 && c->opened)
                r = check_same(c, &export, err);
        if (r < 0)
                return r;
        nbd_stream_set_deadline(c->stream, 0);
        c->export = export;
        return 0;
}

static uint64_t now_ms(void)
{
        return uv_hrtime() / 1000000;
}

/* Between two attempts. */
static void wait_to_retry(struct nbd_client *c)
{
        unsigned delay_ms = MIN(DELAY_MS << MIN(c->attempts, 10u), DELAY_MAX_MS);
        uint64_t now = now_ms();

        c->attempts++;
        if (!c->lost_ms)
                c->lost_ms = now;
        if (now - c->lost_ms >= (uint64_t)c->uri.reconnect_s * 1000)
                fail_all(c);
        if (!c->closing)
                nap(c, delay_ms);
}

static void client_main(void *arg)
{
        struct nbd_client *c = arg;

        c->running = true;
        do {
                struct err err = ERR_INIT;
                int r = connect_and_shake(c, &err);

                if (r == 0) {
                        c->opened = c->connected = true;
                        c->failing = false;
                        if (!c->queue) { /* nobody waits */
                                c->lost_ms = 0;
                                c->attempts = 0;
                        }
                        send_queue(c);
                        (void)nbd_client_receive(c);
                        c->connected = false;
                        ask_again(c);
                        tell(c);
                }
                drop_stream(c);
                if (!c->opened) {
                        if (!err.code)
                                err_errno(&err, r, "NBD");
                        c->open_result = r;
                        c->open_err = err;
                        break;
                }
                if (!c->closing)
                        wait_to_retry(c);
        } while (!c->closing);
        c->running = false;
}

/* What the loop would do next for the fiber. */
static void act(struct nbd_client *c)
{
        if (c->stream) {
                nbd_stream_poll(c->stream, -1);
        } else if (c->fiber) {
                uv_update_time(c->block.loop);
                (void)poll(NULL, 0, (int)uv_timer_get_due_in(c->timer));
                timer_rang(c->timer);
        }
}

static void client_wait(struct block *block)
{
        struct nbd_client *c = to_client(block);
        uint64_t progress = c->progress;

        while (c->progress == progress && block->in_flight && !block->later)
                act(c);
}

/* ---- block status ---- */

static bool known_extent(const struct nbd_client *c, uint64_t offset, uint64_t size_bytes, struct block_extent *extent)
{
        const struct nbd_extents *extents = c->extents;

        if (c->extents_good != c->changes || offset < extents->from || offset >= extents->to)
                return false;
        for (unsigned n = 0; n < extents->count; n++)
                if (offset < extents->extent[n].end) {
                        extent->zero = extents->extent[n].zero;
                        extent->size_bytes = MIN(extents->extent[n].end - offset, size_bytes);
                        return true;
                }
        return false;
}

static int ask_status(struct nbd_client *c, uint64_t offset, uint64_t size_bytes)
{
        struct nbd_part *part = part_new(c, NULL, NBD_CMD_BLOCK_STATUS, 0, offset, MIN(size_bytes, (uint64_t)RANGE_BYTES));
        bool over_ = false;
        int r;

        if (!part)
                return -ENOMEM;
        part->over = &over_;
        part->fiber = fiber_self();
        c->block.in_flight++; /* it counts as one, so that waits are for it, too */
        enqueue(c, part);
        send_queue(c);
        if (part->fiber)
                fiber_wait();
        while (!over_)
                act(c);
        c->block.in_flight--;
        r = part->result;
        part_free(c, part);
        return r;
}

static int client_status(struct block *block, uint64_t offset, uint64_t size_bytes, struct block_extent *extent)
{
        struct nbd_client *c = to_client(block);
        uint64_t changes;
        int r;

        *extent = (struct block_extent){ .size_bytes = size_bytes, .present = true, .host_bytes = BLOCK_NOWHERE };
        if (!c->export.allocation || offset % c->export.minimum_bytes || known_extent(c, offset, size_bytes, extent))
                return 0;
        if (offset >= c->export.size_bytes) {
                extent->zero = true;
                return 0;
        }
        fiber_lock(&c->status_lock);
        changes = c->writes ? UINT64_MAX : c->changes; /* what is on its way may be seen, or not */
        c->extents_good = UINT64_MAX;
        r = c->failing ? -EIO : ask_status(c, offset, align_up(MIN(size_bytes, c->export.size_bytes - offset), c->export.minimum_bytes));
        if (r == 0 && changes == c->changes) {
                c->extents_good = changes;
                (void)known_extent(c, offset, size_bytes, extent);
        }
        fiber_unlock(&c->status_lock);
        return r == -EINVAL ? 0 : r; /* a server that does not tell */
}

/* ---- opening and closing ---- */

static void timer_closed(uv_handle_t *handle)
{
        free(handle);
}

static void client_close(struct block *block)
{
        struct nbd_client *c = to_client(block);
        uint8_t bye[NBD_REQUEST_EXT_BYTES];

        c->closing = true;
        if (c->connected) {
                const struct nbd_header header = { .command = NBD_CMD_DISC };
                struct iovec iov = { bye, (size_t)(nbd_put_request(bye, &header, c->export.extended) - bye) };

                (void)!nbd_stream_writev(c->stream, &iov, 1);
        }
        if (c->stream)
                nbd_stream_stop(c->stream, -ESHUTDOWN);
        else if (c->fiber)
                timer_rang(c->timer);
        assert(!c->running);
        while (c->spare) {
                struct nbd_part *next = c->spare->next;

                free(c->spare);
                c->spare = next;
        }
        if (c->timer)
                uv_close((uv_handle_t *)c->timer, timer_closed);
        if (c->addresses)
                freeaddrinfo(c->addresses);
        nbd_tls_free(c->tls);
        nbd_uri_done(&c->uri);
        free(c->extents);
        block_done(block);
        free(c);
}

static int look_up(struct nbd_client *c, struct err *err)
{
        const struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG };
        int r = getaddrinfo(c->uri.host, c->uri.port, &hints, &c->addresses);

        return r ? err_set(err, -EHOSTUNREACH, "%s", gai_strerror(r)) : 0;
}

static int set_info(struct nbd_client *c, unsigned flags, struct err *err)
{
        const struct nbd_export *export = &c->export;
        struct block_info *info = &c->block.info;

        info->readonly = flags & BLOCK_OPEN_READONLY;
        if (export->flags & NBD_READ_ONLY && !info->readonly)
                return err_set(err, -EROFS, "the server's export is read-only");
        info->size_bytes = align_up(export->size_bytes, BLOCK_SECTOR);
        info->logical_bytes = MAX(export->minimum_bytes, (uint32_t)BLOCK_SECTOR);
        info->physical_bytes = MAX(info->logical_bytes, 4096u);
        info->optimal_bytes = is_power_of_two(export->preferred_bytes) && export->preferred_bytes > 4096 ? MIN(export->preferred_bytes, 1u << 20) : 0;
        if (info->readonly)
                return 0;
        info->discard_bytes = export->flags & NBD_SEND_TRIM ? info->physical_bytes : 0;
        info->zeroes_bytes = export->flags & NBD_SEND_WRITE_ZEROES ? RANGE_BYTES : ZEROES_BYTES;
        return 0;
}

static int set_up(struct nbd_client *c, struct err *err)
{
        struct nbd_tls_files files;

        c->timer = malloc(sizeof(*c->timer));
        c->extents = calloc(1, sizeof(*c->extents));
        if (!c->timer)
                return err_nomem(err);
        uv_timer_init(c->block.loop, c->timer);
        c->timer->data = c;
        if (!c->extents)
                return err_nomem(err);
        c->extents_good = UINT64_MAX;
        c->queue_last = &c->queue;
        c->held_last = &c->held;
        files = (struct nbd_tls_files){ .directory = c->uri.certificates, .keys = c->uri.keys, .user = c->uri.user, .anyone = c->uri.anyone };
        return c->uri.tls ? nbd_tls_new(&files, &c->tls, err) : 0;
}

static int begin_talk(struct nbd_client *c, unsigned flags, struct err *err)
{
        int r = c->uri.socket ? 0 : look_up(c, err);

        if (r < 0)
                return r;
        if (fiber_start(client_main, c) < 0)
                return err_nomem(err);
        while (c->running && !c->opened)
                act(c);
        if (!c->opened)
                return err_set(err, c->open_result, "%s", c->open_err.text);
        return set_info(c, flags, err);
}

static int client_open(const struct block_opening *opening, struct block **block, struct err *err)
{
        struct nbd_client *c = calloc(1, sizeof(*c));
        int r;

        if (!c)
                return err_nomem(err);
        r = nbd_uri_parse(opening->path, &c->uri, err);
        if (r < 0) {
                free(c);
                return err_wrap(err, r, "disk");
        }
        r = block_init(&c->block, &block_nbd, opening, err);
        if (r < 0) {
                nbd_uri_done(&c->uri);
                free(c);
                return r;
        }
        r = set_up(c, err);
        if (r == 0)
                r = begin_talk(c, opening->flags, err);
        if (r < 0) {
                client_close(&c->block);
                return err_wrap(err, r, "disk %s", opening->path);
        }
        *block = &c->block;
        return 0;
}

static int client_describe(struct block *block, json_t *into)
{
        const struct nbd_client *c = to_client(block);
        json_t *about = json_pack("{s:s, s:b, s:b, s:b}", "export", c->uri.export_name, "tls", c->tls != NULL, "structured_replies", c->export.structured,
                                  "extended_headers", c->export.extended);

        return about && json_object_set_new(into, "nbd", about) == 0 ? 0 : -ENOMEM;
}

static const char *const schemes[] = { "nbd", "nbds", "nbd+unix", "nbds+unix", "nbd:", NULL };

const struct block_driver block_nbd = {
        .name = "nbd",
        .text = "a disk that an NBD server gives",
        .schemes = schemes,
        .is_disk = true,
        .open = client_open,
        .close = client_close,
        .submit = client_submit,
        .kick = client_kick,
        .wait = client_wait,
        .status = client_status,
        .describe = client_describe,
};
