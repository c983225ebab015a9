/*
 * virtio entropy device, virtio 1.2 §5.4: each buffer is filled from the host's getrandom().
 *
 * A buffer gets at most CHUNK_BYTES (the driver is told how many) and a round of the loop serves at most BUDGET buffers, so that
 * a guest that asks for entropy without end does not keep the event loop.
 */
#include "device/virtio-rng.h"

#include <errno.h>
#include <sys/random.h>

#define QUEUE_SIZE 64
#define CHUNK_BYTES 4096
#define BUDGET 32

struct rng {
        struct virtio v;
        struct virtio_iov iov;
};

static uint32_t fill(const struct virtio_chain *chain)
{
        uint8_t bytes[CHUNK_BYTES];
        size_t size = MIN((size_t)chain->in_bytes, sizeof(bytes));
        ssize_t got = getrandom(bytes, size, 0);

        return got > 0 ? (uint32_t)buf_to_iov(chain->in, chain->in_count, 0, bytes, (size_t)got) : 0;
}

static void rng_notify(struct virtio *v, unsigned queue)
{
        struct rng *rng = container_of(v, struct rng, v);
        struct virtio_chain chain;
        unsigned budget;

        for (budget = BUDGET; budget; budget--) {
                if (virtqueue_pop(v, queue, &rng->iov, &chain) <= 0)
                        break;
                /* §5.4.6.1: buffers of the driver are writable only. */
                if (!chain.in_bytes || chain.out_bytes) {
                        virtio_break(v, "a buffer that is not for entropy");
                        return;
                }
                virtqueue_push(v, queue, &chain, fill(&chain));
        }
        virtqueue_interrupt(v, queue);
        if (!budget)
                virtio_wake(v, queue);
}

static void rng_free(struct virtio *v)
{
        virtio_done(v);
        free(container_of(v, struct rng, v));
}

static const struct virtio_ops rng_ops = {
        .name = "virtio-rng",
        .id = VIRTIO_RNG,
        .class_code = 0x00ff00,
        .notify = rng_notify,
        .version = 1,
        .free = rng_free,
};

int virtio_rng_new(struct device_host *host, struct pci_bus *bus, const char *id, struct device **dev, struct err *err)
{
        static const uint16_t sizes[] = { QUEUE_SIZE };
        struct rng *rng = calloc(1, sizeof(*rng));
        int r;

        if (!rng)
                return err_nomem(err);
        r = virtio_init(&rng->v, host, bus, &rng_ops, id, sizes, ARRAY_SIZE(sizes), err);
        if (r < 0) {
                virtio_done(&rng->v);
                free(rng);
                return r;
        }
        *dev = &rng->v.pci.dev;
        return 0;
}
