/*
 * Packets from the guest. Data goes into the host's socket; what that does not take is kept, within the credit that the guest was
 * given (§5.10.6.3).
 */
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/log.h"
#include "device/vsock-internal.h"

static void freed(struct virtio_vsock *dev, struct vsock_connection *c, uint32_t bytes)
{
        uint32_t told_free;

        c->forwarded += bytes;
        told_free = BUFFER_BYTES - (c->received - c->forwarded_told);
        if (told_free < BUFFER_BYTES / 2)
                vsock_owe(dev, c, OWED_CREDIT);
}

bool vsock_drain(struct virtio_vsock *dev, struct vsock_connection *c)
{
        while (c->buffered) {
                uint32_t part = MIN(c->buffered, BUFFER_BYTES - c->buffer_at);
                ssize_t n = send(c->fd, c->buffer + c->buffer_at, part, MSG_NOSIGNAL | MSG_DONTWAIT);

                if (n < 0 && (errno == EAGAIN || errno == EINTR))
                        break;
                if (n < 0) {
                        vsock_connection_reset(dev, c);
                        return false;
                }
                c->buffer_at = (c->buffer_at + (uint32_t)n) % BUFFER_BYTES;
                c->buffered -= (uint32_t)n;
                freed(dev, c, (uint32_t)n);
        }
        if (!c->buffered) {
                free(steal_ptr(c->buffer));
                c->buffer_at = 0;
                if (c->state == VSOCK_DRAINING) {
                        vsock_connection_reset(dev, c);
                        return false;
                }
                if (c->guest_shutdown & SHUTDOWN_SEND)
                        shutdown(c->fd, SHUT_WR);
        }
        vsock_watch(dev, c);
        return true;
}

static bool keep(struct vsock_connection *c, const struct iovec *iov, unsigned count, size_t at, uint32_t bytes)
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

static void take_data(struct virtio_vsock *dev, struct vsock_connection *c, const struct virtio_chain *chain, uint32_t length)
{
        size_t at = sizeof(struct vsock_header);
        uint32_t left = length;

        /* §5.10.6.3: more than it was given credit for */
        if (length > BUFFER_BYTES - (c->received - c->forwarded)) {
                log_guest("%s: the driver sends more than it has credit for", dev->virtio.pci.dev.id);
                vsock_connection_reset(dev, c);
                return;
        }
        c->received += length;
        if (!c->buffered && length) {
                struct msghdr message = { .msg_iov = dev->part };
                ssize_t n;

                message.msg_iovlen = iov_slice(chain->out, chain->out_count, at, length, dev->part);
                n = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
                if (n < 0 && errno != EAGAIN && errno != EINTR) {
                        vsock_connection_reset(dev, c);
                        return;
                }
                if (n > 0) {
                        at += (size_t)n;
                        left -= (uint32_t)n;
                        freed(dev, c, (uint32_t)n);
                }
        }
        if (left && !keep(c, chain->out, chain->out_count, at, left)) {
                vsock_connection_reset(dev, c);
                return;
        }
        vsock_watch(dev, c);
}

static void guest_connects(struct virtio_vsock *dev, const struct vsock_header *header)
{
        int fd = vsock_host_connect(&dev->host, header->dst_port);
        struct vsock_connection *c = fd < 0 ? NULL : vsock_connection_new(dev, fd, VSOCK_OPEN);

        if (!c) {
                vsock_owe_reset(dev, header->src_port, header->dst_port);
                return;
        }
        c->guest_port = header->src_port;
        c->host_port = header->dst_port;
        c->peer_buf_alloc = header->buf_alloc;
        c->peer_fwd_cnt = header->fwd_cnt;
        vsock_hash(dev, c);
        vsock_owe(dev, c, OWED_RESPONSE);
        vsock_watch(dev, c);
}

/* The guest accepted: the client on the host is told the port that it is known by. */
static void guest_accepted(struct virtio_vsock *dev, struct vsock_connection *c)
{
        char text[32];
        int length = snprintf(text, sizeof(text), "OK %u\n", c->host_port);

        if (c->state != VSOCK_REQUESTED || send(c->fd, text, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT) != length) {
                vsock_connection_reset(dev, c);
                return;
        }
        c->state = VSOCK_OPEN;
        c->deadline_ns = 0;
        vsock_watch(dev, c);
}

static void guest_shuts(struct virtio_vsock *dev, struct vsock_connection *c, uint32_t flags)
{
        c->guest_shutdown |= flags & SHUTDOWN_BOTH;
        if (c->state != VSOCK_OPEN) {
                vsock_connection_reset(dev, c);
                return;
        }
        if (c->guest_shutdown == SHUTDOWN_BOTH) {
                c->state = VSOCK_DRAINING;
                c->deadline_ns = vsock_in_s(CLOSE_TIMEOUT_S);
        }
        if (c->guest_shutdown & SHUTDOWN_RECEIVE)
                c->owed &= ~OWED_DATA;
        vsock_drain(dev, c);
}

static void take_packet(struct virtio_vsock *dev, const struct vsock_header *header, const struct virtio_chain *chain)
{
        struct vsock_connection *c = vsock_find(dev, header->src_port, header->dst_port);

        if (!c) {
                if (header->op == OP_REQUEST)
                        guest_connects(dev, header);
                else if (header->op != OP_RST)
                        vsock_owe_reset(dev, header->src_port, header->dst_port);
                return;
        }
        c->peer_buf_alloc = header->buf_alloc;
        c->peer_fwd_cnt = header->fwd_cnt;
        switch (header->op) {
        case OP_RESPONSE:
                guest_accepted(dev, c);
                break;
        case OP_RST:
                vsock_connection_free(dev, c);
                break;
        case OP_SHUTDOWN:
                guest_shuts(dev, c, header->flags);
                break;
        case OP_RW:
                if (c->state == VSOCK_OPEN && !(c->guest_shutdown & SHUTDOWN_SEND))
                        take_data(dev, c, chain, header->len);
                else
                        vsock_connection_reset(dev, c);
                break;
        case OP_CREDIT_REQUEST:
                vsock_owe(dev, c, OWED_CREDIT);
                break;
        case OP_CREDIT_UPDATE:
                break;
        default: /* a second REQUEST too */
                vsock_connection_reset(dev, c);
                return;
        }
        c = vsock_find(dev, header->src_port, header->dst_port);
        if (c)
                vsock_watch(dev, c);
}

static bool header_get(const struct virtio_chain *chain, struct vsock_header *header)
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

void vsock_receive_all(struct virtio_vsock *dev)
{
        struct virtio *v = &dev->virtio;
        unsigned budget = BATCH, used = 0;
        struct virtio_chain chain;

        /* A packet owes one reset at most. */
        while (budget && dev->reset_count < RESETS_MAX) {
                struct vsock_header header;

                if (virtqueue_pop(v, VSOCK_TX, &dev->storage, &chain) <= 0)
                        break;
                if (!header_get(&chain, &header))
                        log_guest("%s: the driver sends a packet of %u bytes that its header does not fit", v->pci.dev.id,
                                  chain.out_bytes);
                else if (header.src_cid == dev->cid && header.dst_cid == HOST_CID && header.type == TYPE_STREAM)
                        take_packet(dev, &header, &chain);
                else if (header.op != OP_RST && header.dst_cid == HOST_CID)
                        vsock_owe_reset(dev, header.src_port, header.dst_port);
                virtqueue_push(v, VSOCK_TX, &chain, 0);
                budget--;
                used++;
        }
        if (used)
                virtqueue_interrupt(v, VSOCK_TX);
        if (!budget)
                virtio_wake(v, VSOCK_TX);
}
