/*
 * Sockets between guest and host, virtio 1.2 §5.10: stream sockets with the guest's kernel on one side and unix sockets of the
 * host (vsock-host.h) on the other.
 *
 *   host connects:  LINE ──CONNECT line──▶ REQUESTED ──RESPONSE──▶ OPEN          each ──RST, error, time──▶ gone
 *   guest connects:                        REQUEST, connect() ───▶ OPEN
 *   OPEN ──guest shuts both ways──▶ DRAINING ──all written──▶ RST, gone
 *   OPEN ──host closed both ways, all read──▶ SHUTDOWN to the guest ──its RST, or time──▶ gone
 *
 * Credit (§5.10.6.3): the guest may have BUFFER_BYTES on their way to a host socket that does not take them, kept per connection
 * and allocated only then; a guest that sends more loses the connection. Towards the guest no byte is taken from the host's
 * socket before the guest has said it has room and given a buffer, so nothing is kept there.
 *
 * Packets for the guest are made when there is a buffer for them: each connection notes what it owes (owed) and waits in a
 * list. Only resets for connections that do not exist have a list of their own; when it is full no more packets are taken from
 * the guest until it is not.
 *
 * Descriptors live in an epoll set (one uv_poll), of which each thread may take them: a reset closes them on a vCPU's thread.
 * All of this state has the device's lock. Limits: CONNECTIONS_MAX connections. After a load all connections are gone and the
 * guest is told so (§5.10.6.7).
 */
#include "device/virtio-vsock.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/log.h"
#include "device/vsock-host.h"

enum { RX, TX, EVENT, QUEUES };

#define QUEUE_SIZE 128
#define EVENT_SIZE 16
#define BATCH 256u
#define CONNECTIONS_MAX 256u
#define RESETS_MAX 128u
#define BUFFER_BYTES (256u << 10)
#define PACKET_MAX (64u << 10) /* payload of one packet to the guest */
#define FIRST_HOST_PORT (1u << 30)
#define HOST_CID 2u
#define HASH_SIZE 128u

#define LINE_TIMEOUT_S 10u
#define REQUEST_TIMEOUT_S 5u
#define CLOSE_TIMEOUT_S 8u
#define HOUSEKEEPING_MS 1000u

/* §5.10.6: operations, types, flags of SHUTDOWN */
enum { OP_INVALID, OP_REQUEST, OP_RESPONSE, OP_RST, OP_SHUTDOWN, OP_RW, OP_CREDIT_UPDATE, OP_CREDIT_REQUEST };
#define TYPE_STREAM 1
#define SHUTDOWN_RECEIVE 1u
#define SHUTDOWN_SEND 2u
#define SHUTDOWN_BOTH 3u

#define FEATURE_STREAM 0

/* struct virtio_vsock_hdr; little-endian on the wire, in the host's order after header_get() */
struct header {
        uint64_t src_cid, dst_cid;
        uint32_t src_port, dst_port;
        uint32_t len;
        uint16_t type, op;
        uint32_t flags, buf_alloc, fwd_cnt;
} __attribute__((packed));
_Static_assert(sizeof(struct header) == 44, "virtio_vsock_hdr");

enum state { LINE, REQUESTED, OPEN, DRAINING };

/* What a connection owes the guest. */
#define OWED_REQUEST 1u
#define OWED_RESPONSE 2u
#define OWED_CREDIT 4u
#define OWED_CREDIT_REQUEST 8u
#define OWED_SHUTDOWN 16u
#define OWED_DATA 32u /* the socket is readable */

struct connection {
        unsigned index;
        enum state state;
        int fd;
        uint32_t guest_port, host_port;
        uint32_t watched;     /* EPOLL… */
        uint64_t deadline_ns; /* 0: none */
        struct vsock_line line;

        /* From the guest: what the socket did not take yet. */
        uint8_t *buffer; /* BUFFER_BYTES, a ring; NULL when it is empty */
        uint32_t buffer_at, buffered;
        uint32_t received, forwarded; /* bytes, modulo 2^32 */
        uint32_t forwarded_told;
        /* To the guest */
        uint32_t sent, peer_buf_alloc, peer_fwd_cnt;
        uint32_t guest_shutdown; /* SHUTDOWN_… it sent */
        uint32_t host_shutdown;  /* SHUTDOWN_… we owe or sent */
        uint32_t owed;

        bool waiting; /* in the list */
        struct connection *wait_next, *hash_next;
};

struct reset {
        uint32_t guest_port, host_port;
};

struct virtio_vsock {
        struct virtio virtio;
        uint64_t cid;
        struct vsock_host host;
        int epoll_fd;
        uv_poll_t *poll;   /* on the heap, closed late */
        uv_timer_t *timer; /* housekeeping; runs while there are connections */
        bool timer_runs;
        bool listening; /* in the epoll set */
        bool event_owed;

        struct connection *connection[CONNECTIONS_MAX];
        uint32_t generation[CONNECTIONS_MAX]; /* events of the one before are not for the next */
        unsigned connections;
        struct connection *hash[HASH_SIZE];
        struct connection *wait_first, **wait_last;
        struct reset resets[RESETS_MAX];
        unsigned reset_first, reset_count;
        uint32_t next_port;
        struct virtio_iov storage;
        struct iovec part[VIRTIO_CHAIN_MAX];
};

static struct virtio_vsock *from_virtio(struct virtio *v)
{
        return container_of(v, struct virtio_vsock, virtio);
}

/* --- connections --- */

static unsigned bucket(uint32_t guest_port, uint32_t host_port)
{
        return (guest_port * 2654435761u ^ host_port * 40503u) >> 16 & (HASH_SIZE - 1);
}

static struct connection *find(const struct virtio_vsock *dev, uint32_t guest_port, uint32_t host_port)
{
        struct connection *c = dev->hash[bucket(guest_port, host_port)];

        while (c && (c->guest_port != guest_port || c->host_port != host_port))
                c = c->hash_next;
        return c;
}

static void hash_insert(struct virtio_vsock *dev, struct connection *c)
{
        struct connection **at = &dev->hash[bucket(c->guest_port, c->host_port)];

        c->hash_next = *at;
        *at = c;
}

static void housekeeping(uv_timer_t *timer);

/* On the loop's thread. */
static void start_timer(struct virtio_vsock *dev)
{
        if (!dev->timer_runs)
                uv_timer_start(dev->timer, housekeeping, HOUSEKEEPING_MS, HOUSEKEEPING_MS);
        dev->timer_runs = true;
}

/* Takes fd. NULL when there are too many. */
static struct connection *connection_new(struct virtio_vsock *dev, int fd, enum state state)
{
        struct connection *c = NULL;
        unsigned index = 0;

        while (index < CONNECTIONS_MAX && dev->connection[index])
                index++;
        if (index < CONNECTIONS_MAX)
                c = calloc(1, sizeof(*c));
        if (!c) {
                close(fd);
                return NULL;
        }
        c->index = index;
        c->fd = fd;
        c->state = state;
        dev->connection[index] = c;
        dev->connections++;
        start_timer(dev);
        return c;
}

static void listen_again(struct virtio_vsock *dev, bool on)
{
        struct epoll_event event = { .events = EPOLLIN, .data.u64 = UINT64_MAX };

        if (on != dev->listening &&
            epoll_ctl(dev->epoll_fd, on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, dev->host.listen_fd, &event) == 0)
                dev->listening = on;
}

/* The connection and its socket are gone at once. */
static void connection_free(struct virtio_vsock *dev, struct connection *c)
{
        struct connection **at;

        for (at = &dev->hash[bucket(c->guest_port, c->host_port)]; *at; at = &(*at)->hash_next) {
                if (*at == c) {
                        *at = c->hash_next;
                        break;
                }
        }
        if (c->waiting) {
                for (at = &dev->wait_first; *at != c; at = &(*at)->wait_next)
                        ;
                *at = c->wait_next;
                if (!*at)
                        dev->wait_last = at;
        }
        close(c->fd);
        dev->connection[c->index] = NULL;
        dev->generation[c->index]++;
        dev->connections--;
        free(c->buffer);
        free(c);
        listen_again(dev, true);
}

static void forget_all(struct virtio_vsock *dev)
{
        for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
                if (dev->connection[i])
                        connection_free(dev, dev->connection[i]);
        }
        dev->reset_count = 0;
}

static uint32_t credit(const struct connection *c)
{
        uint32_t used = c->sent - c->peer_fwd_cnt;

        return used >= c->peer_buf_alloc ? 0 : c->peer_buf_alloc - used;
}

/* Has the epoll set tell what this connection waits for. Hang-ups are always told, so what waits for nothing is not in it. */
static void watch(struct virtio_vsock *dev, struct connection *c)
{
        struct epoll_event event = { .data.u64 = (uint64_t)dev->generation[c->index] << 32 | c->index };
        uint32_t wanted = 0;

        if (c->state == LINE || (c->state == OPEN && !(c->host_shutdown & SHUTDOWN_SEND) && !(c->owed & OWED_DATA) &&
                                 !(c->guest_shutdown & SHUTDOWN_RECEIVE) && credit(c)))
                wanted |= EPOLLIN;
        if (c->buffered)
                wanted |= EPOLLOUT;
        if (wanted == c->watched)
                return;
        event.events = wanted;
        epoll_ctl(dev->epoll_fd, !wanted ? EPOLL_CTL_DEL : c->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &event);
        c->watched = wanted;
}

static void owe(struct virtio_vsock *dev, struct connection *c, uint32_t what)
{
        c->owed |= what;
        if (c->waiting)
                return;
        c->waiting = true;
        c->wait_next = NULL;
        *dev->wait_last = c;
        dev->wait_last = &c->wait_next;
}

static void owe_reset(struct virtio_vsock *dev, uint32_t guest_port, uint32_t host_port)
{
        if (dev->reset_count == RESETS_MAX)
                return;
        dev->resets[(dev->reset_first + dev->reset_count++) % RESETS_MAX] = (struct reset){ guest_port, host_port };
}

static void connection_reset(struct virtio_vsock *dev, struct connection *c)
{
        owe_reset(dev, c->guest_port, c->host_port);
        connection_free(dev, c);
}

static uint64_t in_s(unsigned seconds)
{
        return monotonic_ns() + (uint64_t)seconds * 1000000000;
}

/* --- packets to the guest --- */

/* A buffer of the guest with at least the header's room; false when there is none. */
static bool take_buffer(struct virtio_vsock *dev, struct virtio_chain *chain)
{
        int r = virtqueue_pop(&dev->virtio, RX, &dev->storage, chain);

        if (r > 0 && (chain->in_bytes < sizeof(struct header) || chain->out_bytes)) {
                virtio_break(&dev->virtio, "a receive buffer of %u bytes, of which %u to be read", chain->in_bytes,
                             chain->out_bytes);
                return false;
        }
        return r > 0;
}

static void put_packet(struct virtio_vsock *dev, const struct virtio_chain *chain, struct connection *c, uint32_t guest_port,
                       uint32_t host_port, unsigned op, uint32_t flags, uint32_t length)
{
        struct header header = {
                .src_cid = htole64(HOST_CID),
                .dst_cid = htole64(dev->cid),
                .src_port = htole32(host_port),
                .dst_port = htole32(guest_port),
                .len = htole32(length),
                .type = htole16(TYPE_STREAM),
                .op = htole16((uint16_t)op),
                .flags = htole32(flags),
                .buf_alloc = htole32(c ? BUFFER_BYTES : 0),
                .fwd_cnt = htole32(c ? c->forwarded : 0),
        };

        if (c) {
                c->forwarded_told = c->forwarded;
                c->owed &= ~OWED_CREDIT;
        }
        buf_to_iov(chain->in, chain->in_count, 0, &header, sizeof(header));
        virtqueue_push(&dev->virtio, RX, chain, (uint32_t)sizeof(header) + length);
}

/* Reads from the socket straight into the guest's buffer; whether the buffer was used. */
static bool put_data(struct virtio_vsock *dev, struct connection *c, const struct virtio_chain *chain)
{
        size_t room = MIN(MIN(chain->in_bytes - sizeof(struct header), (size_t)credit(c)), (size_t)PACKET_MAX);
        unsigned parts = iov_slice(chain->in, chain->in_count, sizeof(struct header), room, dev->part);
        struct msghdr message = { .msg_iov = dev->part, .msg_iovlen = parts };
        ssize_t n = parts ? recvmsg(c->fd, &message, MSG_DONTWAIT) : (errno = EAGAIN, -1);

        if (n > 0) {
                c->sent += (uint32_t)n;
                if (!credit(c)) {
                        c->owed &= ~OWED_DATA;
                        owe(dev, c, OWED_CREDIT_REQUEST);
                }
                put_packet(dev, chain, c, c->guest_port, c->host_port, OP_RW, 0, (uint32_t)n);
                return true;
        }
        c->owed &= ~OWED_DATA;
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return false;
        /* The end; with the other direction closed too nothing is left to do but to say so. */
        c->host_shutdown |= SHUTDOWN_SEND;
        if (n < 0 || send(c->fd, "", 0, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
                c->host_shutdown = SHUTDOWN_BOTH;
        owe(dev, c, OWED_SHUTDOWN);
        return false;
}

static bool has_work(const struct connection *c)
{
        return c->owed & ~OWED_DATA || (c->owed & OWED_DATA && c->state == OPEN && credit(c));
}

/* Pays one thing that is owed, into a buffer of the guest; whether the buffer was used. */
static bool pay(struct virtio_vsock *dev, struct connection *c, const struct virtio_chain *chain)
{
        static const struct { uint32_t owed; unsigned op; } order[] = {
                { OWED_REQUEST, OP_REQUEST },
                { OWED_RESPONSE, OP_RESPONSE },
                { OWED_CREDIT_REQUEST, OP_CREDIT_REQUEST },
                { OWED_CREDIT, OP_CREDIT_UPDATE },
        };

        for (unsigned i = 0; i < ARRAY_SIZE(order); i++) {
                if (c->owed & order[i].owed) {
                        c->owed &= ~order[i].owed;
                        put_packet(dev, chain, c, c->guest_port, c->host_port, order[i].op, 0, 0);
                        return true;
                }
        }
        if (c->owed & OWED_DATA && c->state == OPEN && credit(c))
                return put_data(dev, c, chain);
        if (c->owed & OWED_SHUTDOWN) {
                c->owed &= ~OWED_SHUTDOWN;
                put_packet(dev, chain, c, c->guest_port, c->host_port, OP_SHUTDOWN, c->host_shutdown, 0);
                if (c->host_shutdown == SHUTDOWN_BOTH)
                        c->deadline_ns = in_s(CLOSE_TIMEOUT_S);
                return true;
        }
        return false;
}

/* Fills the guest's buffers with what is owed, in turn. */
static void send_all(struct virtio_vsock *dev)
{
        struct virtio *v = &dev->virtio;
        bool was_full = dev->reset_count == RESETS_MAX;
        unsigned budget = BATCH, used = 0;
        struct virtio_chain chain;

        while (budget && (dev->reset_count || dev->wait_first)) {
                struct connection *c = dev->wait_first;

                if (!dev->reset_count && !has_work(c)) {
                        dev->wait_first = c->wait_next;
                        if (!dev->wait_first)
                                dev->wait_last = &dev->wait_first;
                        c->waiting = false;
                        watch(dev, c);
                        continue;
                }
                if (!take_buffer(dev, &chain))
                        break;
                budget--;
                if (dev->reset_count) {
                        struct reset *reset = &dev->resets[dev->reset_first];

                        put_packet(dev, &chain, NULL, reset->guest_port, reset->host_port, OP_RST, 0, 0);
                        dev->reset_first = (dev->reset_first + 1) % RESETS_MAX;
                        dev->reset_count--;
                        used++;
                        continue;
                }
                if (pay(dev, c, &chain))
                        used++;
                else
                        virtqueue_unpop(v, RX, &chain);
                /* To the end of the list: each connection has its turn. */
                if (c->wait_next) {
                        dev->wait_first = c->wait_next;
                        c->wait_next = NULL;
                        *dev->wait_last = c;
                        dev->wait_last = &c->wait_next;
                }
        }
        if (used)
                virtqueue_interrupt(v, RX);
        if (!budget)
                virtio_wake(v, RX);
        if (was_full && dev->reset_count < RESETS_MAX)
                virtio_wake(v, TX);
}

/* --- packets from the guest --- */

static void freed(struct virtio_vsock *dev, struct connection *c, uint32_t bytes)
{
        uint32_t told_free;

        c->forwarded += bytes;
        told_free = BUFFER_BYTES - (c->received - c->forwarded_told);
        if (told_free < BUFFER_BYTES / 2)
                owe(dev, c, OWED_CREDIT);
}

/* Writes what is kept; false when the connection is gone. */
static bool drain(struct virtio_vsock *dev, struct connection *c)
{
        while (c->buffered) {
                uint32_t part = MIN(c->buffered, BUFFER_BYTES - c->buffer_at);
                ssize_t n = send(c->fd, c->buffer + c->buffer_at, part, MSG_NOSIGNAL | MSG_DONTWAIT);

                if (n < 0 && (errno == EAGAIN || errno == EINTR))
                        break;
                if (n < 0) {
                        connection_reset(dev, c);
                        return false;
                }
                c->buffer_at = (c->buffer_at + (uint32_t)n) % BUFFER_BYTES;
                c->buffered -= (uint32_t)n;
                freed(dev, c, (uint32_t)n);
        }
        if (!c->buffered) {
                free(steal_ptr(c->buffer));
                c->buffer_at = 0;
                if (c->state == DRAINING) {
                        connection_reset(dev, c);
                        return false;
                }
                if (c->guest_shutdown & SHUTDOWN_SEND)
                        shutdown(c->fd, SHUT_WR);
        }
        watch(dev, c);
        return true;
}

static bool keep(struct connection *c, const struct iovec *iov, unsigned count, size_t at, uint32_t bytes)
{
        if (!c->buffer && !(c->buffer = malloc(BUFFER_BYTES)))
                return false;
        while (bytes) {
                uint32_t end = (c->buffer_at + c->buffered) % BUFFER_BYTES;
                uint32_t part = MIN(bytes, BUFFER_BYTES - end);

                iov_to_buf(iov, count, at, c->buffer + end, part);
                c->buffered += part;
                at += part;
                bytes -= part;
        }
        return true;
}

static void take_data(struct virtio_vsock *dev, struct connection *c, const struct virtio_chain *chain, uint32_t length)
{
        size_t at = sizeof(struct header);
        uint32_t left = length;

        /* §5.10.6.3: more than it was given credit for */
        if (length > BUFFER_BYTES - (c->received - c->forwarded)) {
                log_guest("%s: the driver sends more than it has credit for", dev->virtio.pci.dev.id);
                connection_reset(dev, c);
                return;
        }
        c->received += length;
        if (!c->buffered && length) {
                struct msghdr message = { .msg_iov = dev->part };
                ssize_t n;

                message.msg_iovlen = iov_slice(chain->out, chain->out_count, at, length, dev->part);
                n = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
                if (n < 0 && errno != EAGAIN && errno != EINTR) {
                        connection_reset(dev, c);
                        return;
                }
                if (n > 0) {
                        at += (size_t)n;
                        left -= (uint32_t)n;
                        freed(dev, c, (uint32_t)n);
                }
        }
        if (left && !keep(c, chain->out, chain->out_count, at, left)) {
                connection_reset(dev, c);
                return;
        }
        watch(dev, c);
}

static void guest_connects(struct virtio_vsock *dev, const struct header *header)
{
        int fd = vsock_host_connect(&dev->host, header->dst_port);
        struct connection *c = fd < 0 ? NULL : connection_new(dev, fd, OPEN);

        if (!c) {
                owe_reset(dev, header->src_port, header->dst_port);
                return;
        }
        c->guest_port = header->src_port;
        c->host_port = header->dst_port;
        c->peer_buf_alloc = header->buf_alloc;
        c->peer_fwd_cnt = header->fwd_cnt;
        hash_insert(dev, c);
        owe(dev, c, OWED_RESPONSE);
        watch(dev, c);
}

/* The guest accepted: the client on the host is told the port that it is known by. */
static void guest_accepted(struct virtio_vsock *dev, struct connection *c)
{
        char text[32];
        int length = snprintf(text, sizeof(text), "OK %u\n", c->host_port);

        if (c->state != REQUESTED || send(c->fd, text, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT) != length) {
                connection_reset(dev, c);
                return;
        }
        c->state = OPEN;
        c->deadline_ns = 0;
        watch(dev, c);
}

static void guest_shuts(struct virtio_vsock *dev, struct connection *c, uint32_t flags)
{
        c->guest_shutdown |= flags & SHUTDOWN_BOTH;
        if (c->state != OPEN) {
                connection_reset(dev, c);
                return;
        }
        if (c->guest_shutdown == SHUTDOWN_BOTH) {
                c->state = DRAINING;
                c->deadline_ns = in_s(CLOSE_TIMEOUT_S);
        }
        if (c->guest_shutdown & SHUTDOWN_RECEIVE)
                c->owed &= ~OWED_DATA;
        drain(dev, c);
}

static void take_packet(struct virtio_vsock *dev, const struct header *header, const struct virtio_chain *chain)
{
        struct connection *c = find(dev, header->src_port, header->dst_port);

        if (!c) {
                if (header->op == OP_REQUEST)
                        guest_connects(dev, header);
                else if (header->op != OP_RST)
                        owe_reset(dev, header->src_port, header->dst_port);
                return;
        }
        c->peer_buf_alloc = header->buf_alloc;
        c->peer_fwd_cnt = header->fwd_cnt;
        switch (header->op) {
        case OP_RESPONSE:
                guest_accepted(dev, c);
                break;
        case OP_RST:
                connection_free(dev, c);
                break;
        case OP_SHUTDOWN:
                guest_shuts(dev, c, header->flags);
                break;
        case OP_RW:
                if (c->state == OPEN && !(c->guest_shutdown & SHUTDOWN_SEND))
                        take_data(dev, c, chain, header->len);
                else
                        connection_reset(dev, c);
                break;
        case OP_CREDIT_REQUEST:
                owe(dev, c, OWED_CREDIT);
                break;
        case OP_CREDIT_UPDATE:
                break;
        default: /* a second REQUEST too */
                connection_reset(dev, c);
                return;
        }
        c = find(dev, header->src_port, header->dst_port);
        if (c)
                watch(dev, c);
}

static bool header_get(const struct virtio_chain *chain, struct header *header)
{
        if (iov_to_buf(chain->out, chain->out_count, 0, header, sizeof(*header)) < sizeof(*header))
                return false;
        header->src_cid = le64toh(header->src_cid);
        header->dst_cid = le64toh(header->dst_cid);
        header->src_port = le32toh(header->src_port);
        header->dst_port = le32toh(header->dst_port);
        header->len = le32toh(header->len);
        header->type = le16toh(header->type);
        header->op = le16toh(header->op);
        header->flags = le32toh(header->flags);
        header->buf_alloc = le32toh(header->buf_alloc);
        header->fwd_cnt = le32toh(header->fwd_cnt);
        return header->len <= chain->out_bytes - sizeof(*header);
}

static void receive_all(struct virtio_vsock *dev)
{
        struct virtio *v = &dev->virtio;
        unsigned budget = BATCH, used = 0;
        struct virtio_chain chain;

        /* A packet owes one reset at most. */
        while (budget && dev->reset_count < RESETS_MAX) {
                struct header header;

                if (virtqueue_pop(v, TX, &dev->storage, &chain) <= 0)
                        break;
                if (!header_get(&chain, &header))
                        log_guest("%s: the driver sends a packet of %u bytes that its header does not fit", v->pci.dev.id,
                                  chain.out_bytes);
                else if (header.src_cid == dev->cid && header.dst_cid == HOST_CID && header.type == TYPE_STREAM)
                        take_packet(dev, &header, &chain);
                else if (header.op != OP_RST && header.dst_cid == HOST_CID)
                        owe_reset(dev, header.src_port, header.dst_port);
                virtqueue_push(v, TX, &chain, 0);
                budget--;
                used++;
        }
        if (used)
                virtqueue_interrupt(v, TX);
        if (!budget)
                virtio_wake(v, TX);
}

/* --- the host --- */

static void accept_all(struct virtio_vsock *dev)
{
        for (unsigned i = 0; i < 16; i++) {
                int fd = vsock_host_accept(&dev->host);
                struct connection *c;

                if (fd < 0) {
                        /* Without descriptors it would be asked again at once: wait for one to be free. */
                        if (fd != -EAGAIN && fd != -EINTR && fd != -ECONNABORTED) {
                                listen_again(dev, false);
                                start_timer(dev);
                        }
                        return;
                }
                if (!virtqueue_ready(&dev->virtio, RX)) {
                        close(fd);
                        continue;
                }
                c = connection_new(dev, fd, LINE);
                if (!c)
                        continue;
                c->deadline_ns = in_s(LINE_TIMEOUT_S);
                watch(dev, c);
        }
}

/* A port of the host that is on no connection with this port of the guest. */
static uint32_t free_port(struct virtio_vsock *dev, uint32_t guest_port)
{
        do {
                dev->next_port = dev->next_port == UINT32_MAX - 1 ? FIRST_HOST_PORT : dev->next_port + 1;
        } while (find(dev, guest_port, dev->next_port));
        return dev->next_port;
}

static void read_line(struct virtio_vsock *dev, struct connection *c)
{
        uint32_t port;
        int r = vsock_line_read(&c->line, c->fd, &port);

        if (r < 0) {
                connection_free(dev, c);
        } else if (r > 0) {
                c->guest_port = port;
                c->host_port = free_port(dev, port);
                c->state = REQUESTED;
                c->deadline_ns = in_s(REQUEST_TIMEOUT_S);
                hash_insert(dev, c);
                owe(dev, c, OWED_REQUEST);
                watch(dev, c);
        }
}

static void socket_ready(struct virtio_vsock *dev, uint64_t key, uint32_t events)
{
        struct connection *c;

        if (key == UINT64_MAX) {
                accept_all(dev);
                return;
        }
        c = dev->connection[(uint32_t)key % CONNECTIONS_MAX];
        if (!c || dev->generation[c->index] != key >> 32)
                return;
        if (c->state == LINE) {
                read_line(dev, c);
                return;
        }
        if (c->buffered && events & (EPOLLOUT | EPOLLERR | EPOLLHUP) && !drain(dev, c))
                return;
        if (c->watched & EPOLLIN && events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
                owe(dev, c, OWED_DATA);
                watch(dev, c);
        }
}

static void epoll_ready(uv_poll_t *poll, int status, int uv_events)
{
        struct virtio_vsock *dev = poll->data;
        struct epoll_event event[32];
        int count;

        virtio_lock(&dev->virtio);
        count = epoll_wait(dev->epoll_fd, event, ARRAY_SIZE(event), 0);
        for (int i = 0; i < count; i++)
                socket_ready(dev, event[i].data.u64, event[i].events);
        send_all(dev);
        virtio_unlock(&dev->virtio);
}

/* Ends connections that wait for too long. */
static void housekeeping(uv_timer_t *timer)
{
        struct virtio_vsock *dev = timer->data;
        uint64_t now = monotonic_ns();

        virtio_lock(&dev->virtio);
        for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
                struct connection *c = dev->connection[i];

                if (!c || !c->deadline_ns || now < c->deadline_ns)
                        continue;
                if (c->state == LINE)
                        connection_free(dev, c);
                else
                        connection_reset(dev, c);
        }
        listen_again(dev, true);
        send_all(dev);
        if (!dev->connections) {
                uv_timer_stop(timer);
                dev->timer_runs = false;
        }
        virtio_unlock(&dev->virtio);
}

/* --- the device --- */

static void send_event(struct virtio_vsock *dev)
{
        uint32_t transport_reset = 0; /* VIRTIO_VSOCK_EVENT_TRANSPORT_RESET */
        struct virtio_chain chain;

        if (!dev->event_owed || virtqueue_pop(&dev->virtio, EVENT, &dev->storage, &chain) <= 0)
                return;
        buf_to_iov(chain.in, chain.in_count, 0, &transport_reset, sizeof(transport_reset));
        virtqueue_push(&dev->virtio, EVENT, &chain, MIN(chain.in_bytes, (uint32_t)sizeof(transport_reset)));
        virtqueue_interrupt(&dev->virtio, EVENT);
        dev->event_owed = false;
}

static void notify(struct virtio *v, unsigned queue)
{
        struct virtio_vsock *dev = from_virtio(v);

        if (queue == EVENT) {
                send_event(dev);
                return;
        }
        if (queue == TX)
                receive_all(dev);
        send_all(dev);
}

static uint64_t features(struct virtio *v)
{
        return UINT64_C(1) << FEATURE_STREAM;
}

static void config_read(struct virtio *v, uint32_t offset, void *to, unsigned size_bytes)
{
        uint64_t cid = htole64(from_virtio(v)->cid);

        memcpy(to, (uint8_t *)&cid + offset, size_bytes);
}

static void reset(struct virtio *v)
{
        struct virtio_vsock *dev = from_virtio(v);

        forget_all(dev);
        dev->event_owed = false;
}

static void quiesce(struct virtio *v)
{
        struct virtio_vsock *dev = from_virtio(v);

        uv_poll_stop(dev->poll);
        uv_timer_stop(dev->timer);
}

static void resume(struct virtio *v)
{
        struct virtio_vsock *dev = from_virtio(v);

        uv_poll_start(dev->poll, UV_READABLE, epoll_ready);
        dev->timer_runs = false;
        start_timer(dev);
}

static void save(struct virtio *v, struct writer *out)
{
        writer_le64(out, from_virtio(v)->cid);
}

static int load(struct virtio *v, uint16_t version, struct cursor *in, struct err *err)
{
        struct virtio_vsock *dev = from_virtio(v);
        uint64_t cid = cursor_le64(in);

        if (version != 1 || in->bad)
                return err_set(err, -EBADMSG, "a vsock record has version %u and %zu bytes, this is 1 with 8", version,
                               cursor_left(in));
        /* The guest asks for its address again after the event, so that a clone may have another one. */
        if (cid < 3)
                return err_set(err, -EBADMSG, "a vsock record has the address %u", (unsigned)cid);
        forget_all(dev);
        dev->event_owed = virtio_running(v);
        return 0;
}

static void handle_free(uv_handle_t *handle)
{
        free(handle);
}

static void virtio_vsock_free(struct virtio *v)
{
        struct virtio_vsock *dev = from_virtio(v);

        if (dev->poll)
                uv_close((uv_handle_t *)dev->poll, handle_free);
        if (dev->timer)
                uv_close((uv_handle_t *)dev->timer, handle_free);
        virtio_done(v);
        forget_all(dev);
        closep(&dev->epoll_fd);
        vsock_host_done(&dev->host);
        free(dev);
}

static const struct virtio_ops virtio_vsock_ops = {
        .name = "virtio-vsock",
        .id = VIRTIO_VSOCK,
        .class_code = 0x078000,
        .features = features,
        .config_bytes = 8,
        .config_read = config_read,
        .notify = notify,
        .reset = reset,
        .quiesce = quiesce,
        .resume = resume,
        .version = 1,
        .save = save,
        .load = load,
        .free = virtio_vsock_free,
};

static int make_handles(struct virtio_vsock *dev, uv_loop_t *loop, struct err *err)
{
        uv_timer_t *timer = malloc(sizeof(*timer));
        uv_poll_t *poll = malloc(sizeof(*poll));
        int r;

        if (!timer || !poll) {
                free(timer);
                free(poll);
                return err_nomem(err);
        }
        uv_timer_init(loop, timer);
        timer->data = dev;
        dev->timer = timer;
        r = uv_poll_init(loop, poll, dev->epoll_fd);
        if (r < 0) {
                free(poll);
                return err_set(err, r, "cannot watch the vsock sockets: %s", uv_strerror(r));
        }
        poll->data = dev;
        dev->poll = poll;
        uv_poll_start(poll, UV_READABLE, epoll_ready);
        return 0;
}

int virtio_vsock_directory(const struct virtio *v)
{
        return container_of(v, struct virtio_vsock, virtio)->host.dir_fd;
}

int virtio_vsock_new(struct device_host *host, struct pci_bus *bus, const char *id, const struct virtio_vsock_config *config,
                     struct virtio **made, struct err *err)
{
        static const uint16_t sizes[QUEUES] = { QUEUE_SIZE, QUEUE_SIZE, EVENT_SIZE };
        struct virtio_vsock *dev;
        int r;

        /* §5.10.4.1: 0 to 2 have a meaning, the upper half is reserved and 2^32-1 is "any". */
        if (config->cid && (config->cid < 3 || config->cid >= UINT32_MAX))
                return err_set(err, -EINVAL, "vsock address %llu is out of range, 3 to %u", (unsigned long long)config->cid,
                               UINT32_MAX - 1);
        dev = calloc(1, sizeof(*dev));
        if (!dev)
                return err_nomem(err);
        dev->cid = config->cid ? config->cid : VIRTIO_VSOCK_CID_DEFAULT;
        dev->wait_last = &dev->wait_first;
        dev->next_port = FIRST_HOST_PORT;
        dev->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        r = vsock_host_init(&dev->host, config->path, err);
        if (r == 0 && dev->epoll_fd < 0)
                r = err_nomem(err);
        if (r == 0)
                r = make_handles(dev, host->loop, err);
        if (r == 0)
                r = virtio_init(&dev->virtio, host, bus, &virtio_vsock_ops, id, sizes, QUEUES, err);
        if (r < 0) {
                virtio_vsock_free(&dev->virtio);
                return r;
        }
        listen_again(dev, true);
        *made = &dev->virtio;
        return 0;
}
