/*
 * Packets to the guest. They are made when there is a buffer for them, from what each connection owes; data goes from the host's
 * socket straight into the guest's buffer.
 */
#include <endian.h>
#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "device/vsock-internal.h"

#define PACKET_MAX (64u << 10) /* payload of one packet */

/* A buffer of the guest with at least the header's room; false when there is none. */
static bool take_buffer(struct virtio_vsock *dev, struct virtio_chain *chain)
{
        int r = virtqueue_pop(&dev->virtio, VSOCK_RX, &dev->storage, chain);

        if (r > 0 && (chain->in_bytes < sizeof(struct vsock_header) || chain->out_bytes)) {
                virtio_break(&dev->virtio, "a receive buffer of %u bytes, of which %u to be read", chain->in_bytes,
                             chain->out_bytes);
                return false;
        }
        return r > 0;
}

static void put_packet(struct virtio_vsock *dev, const struct virtio_chain *chain, struct vsock_connection *c,
                       uint32_t guest_port, uint32_t host_port, unsigned op, uint32_t flags, uint32_t length)
{
        struct vsock_header header = {
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
        virtqueue_push(&dev->virtio, VSOCK_RX, chain, (uint32_t)sizeof(header) + length);
}

/* Reads from the socket straight into the guest's buffer; whether the buffer was used. */
static bool put_data(struct virtio_vsock *dev, struct vsock_connection *c, const struct virtio_chain *chain)
{
        size_t room = MIN(MIN(chain->in_bytes - sizeof(struct vsock_header), (size_t)vsock_credit(c)), (size_t)PACKET_MAX);
        unsigned parts = iov_slice(chain->in, chain->in_count, sizeof(struct vsock_header), room, dev->part);
        struct msghdr message = { .msg_iov = dev->part, .msg_iovlen = parts };
        ssize_t n = parts ? recvmsg(c->fd, &message, MSG_DONTWAIT) : (errno = EAGAIN, -1);

        if (n > 0) {
                c->sent += (uint32_t)n;
                if (!vsock_credit(c)) {
                        c->owed &= ~OWED_DATA;
                        vsock_owe(dev, c, OWED_CREDIT_REQUEST);
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
        vsock_owe(dev, c, OWED_SHUTDOWN);
        return false;
}

static bool has_work(const struct vsock_connection *c)
{
        return c->owed & ~OWED_DATA || (c->owed & OWED_DATA && c->state == VSOCK_OPEN && vsock_credit(c));
}

/* Pays one thing that is owed, into a buffer of the guest; whether the buffer was used. */
static bool pay(struct virtio_vsock *dev, struct vsock_connection *c, const struct virtio_chain *chain)
{
        static const struct {
                uint32_t owed;
                unsigned op;
        } order[] = {
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
        if (c->owed & OWED_DATA && c->state == VSOCK_OPEN && vsock_credit(c))
                return put_data(dev, c, chain);
        if (c->owed & OWED_SHUTDOWN) {
                c->owed &= ~OWED_SHUTDOWN;
                put_packet(dev, chain, c, c->guest_port, c->host_port, OP_SHUTDOWN, c->host_shutdown, 0);
                if (c->host_shutdown == SHUTDOWN_BOTH)
                        c->deadline_ns = vsock_in_s(CLOSE_TIMEOUT_S);
                return true;
        }
        return false;
}

void vsock_send_all(struct virtio_vsock *dev)
{
        struct virtio *v = &dev->virtio;
        bool was_full = dev->reset_count == RESETS_MAX;
        unsigned budget = BATCH, used = 0;
        struct virtio_chain chain;

        while (budget && (dev->reset_count || dev->wait_first)) {
                struct vsock_connection *c = dev->wait_first;

                if (!dev->reset_count && !has_work(c)) {
                        dev->wait_first = c->wait_next;
                        if (!dev->wait_first)
                                dev->wait_last = &dev->wait_first;
                        c->waiting = false;
                        vsock_watch(dev, c);
                        continue;
                }
                if (!take_buffer(dev, &chain))
                        break;
                budget--;
                if (dev->reset_count) {
                        struct vsock_reset *reset = &dev->resets[dev->reset_first];

                        put_packet(dev, &chain, NULL, reset->guest_port, reset->host_port, OP_RST, 0, 0);
                        dev->reset_first = (dev->reset_first + 1) % RESETS_MAX;
                        dev->reset_count--;
                        used++;
                        continue;
                }
                if (pay(dev, c, &chain))
                        used++;
                else
                        virtqueue_unpop(v, VSOCK_RX, &chain);
                /* To the end of the list: each connection has its turn. */
                if (c->wait_next) {
                        dev->wait_first = c->wait_next;
                        c->wait_next = NULL;
                        *dev->wait_last = c;
                        dev->wait_last = &c->wait_next;
                }
        }
        if (used)
                virtqueue_interrupt(v, VSOCK_RX);
        if (!budget)
                virtio_wake(v, VSOCK_RX);
        if (was_full && dev->reset_count < RESETS_MAX)
                virtio_wake(v, VSOCK_TX);
}
