/* A hostile driver of the network card; the host gives frames of any kind, and its backend is now and then full. */
#include <errno.h>

#include "device/virtio-net.h"
#include "virtio-hostile.h"

struct backend {
        struct net_backend net;
        unsigned left; /* frames it takes before it is full */
        uint8_t sum;
};

static int fake_send(struct net_backend *net, const struct iovec *iov, unsigned count, const struct net_offload *offload)
{
        struct backend *backend = container_of(net, struct backend, net);

        if (!backend->left)
                return -EAGAIN;
        backend->left--;
        /* Every byte is looked at, so that one outside of its buffer is found. */
        for (unsigned i = 0; i < count; i++) {
                for (size_t at = 0; at < iov[i].iov_len; at++)
                        backend->sum ^= ((const uint8_t *)iov[i].iov_base)[at];
        }
        return 0;
}

static void fake_resume(struct net_backend *net)
{
}

static void fake_free(struct net_backend *net)
{
        free(container_of(net, struct backend, net));
}

static const struct net_ops fake_ops = { .name = "fake", .send = fake_send, .resume = fake_resume, .free = fake_free };

static void make(struct hostile *h)
{
        struct backend *backend = calloc(1, sizeof(*backend));
        struct virtio *card;

        backend->net = (struct net_backend){ .ops = &fake_ops, .mtu = 1500, .link_up = true };
        backend->left = 8;
        h->ctx = backend;
        if (virtio_net_new(&h->bed.host, h->bed.pci, "net0", &(struct virtio_net_config){ 0 }, &backend->net, &card, NULL) < 0)
                abort();
        h->dev = &card->pci.dev;
}

static void host(struct hostile *h, struct cursor *in)
{
        static uint8_t frame[NET_FRAME_MAX];
        struct backend *backend = h->ctx;
        struct net_client *client = &backend->net.client;
        uint8_t what = cursor_u8(in);
        struct net_offload offload = { .flags = cursor_u8(in) & 3, .gso = cursor_u8(in) % 5, .ecn = what & 0x80 };
        size_t size_bytes = cursor_le16(in), given;
        struct iovec iov[2];

        if ((what & 3) == 0) {
                backend->net.features = cursor_u8(in) & 0x7f;
                backend->left = cursor_u8(in) % 16;
                client->writable(client->ctx);
                return;
        }
        if ((what & 3) == 1) {
                backend->net.link_up = !backend->net.link_up;
                client->link_changed(client->ctx);
                return;
        }
        offload.gso_bytes = cursor_le16(in);
        offload.csum_start = cursor_u8(in);
        offload.csum_offset = cursor_u8(in);
        given = MIN(cursor_left(in), MIN(size_bytes, (size_t)64));
        if (!in->bad)
                memcpy(frame, in->at, given);
        iov[0] = (struct iovec){ frame, MIN(size_bytes, (size_t)what) };
        iov[1] = (struct iovec){ frame + iov[0].iov_len, size_bytes - iov[0].iov_len };
        for (unsigned i = 0; i < 2 && client->receive(client->ctx, iov, 2, &offload) == -EAGAIN; i++)
                testbed_run(&h->bed);
        client->flush(client->ctx);
}

static const struct hostile_device device = { .id = VIRTIO_NET, .queues = 3, .make = make, .host = host };

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        return hostile_run(&device, bytes, size_bytes);
}
