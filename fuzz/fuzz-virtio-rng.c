/* A hostile driver of the entropy source. */
#include "device/virtio-rng.h"
#include "virtio-hostile.h"

static void make(struct hostile *h)
{
        if (virtio_rng_new(&h->bed.host, h->bed.pci, "virtio-rng0", &h->dev, NULL) < 0)
                abort();
}

static const struct hostile_device device = { .id = VIRTIO_RNG, .queues = 1, .make = make };

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        return hostile_run(&device, bytes, size_bytes);
}
