/* A hostile driver of the balloon. */
#include "device/virtio-balloon.h"
#include "virtio-hostile.h"

static void make(struct hostile *h)
{
        if (virtio_balloon_new(&h->bed.host, h->bed.pci, "virtio-balloon0", &h->dev, NULL) < 0)
                abort();
}

static void host(struct hostile *h, struct cursor *in)
{
        struct virtio_balloon_stats stats;

        if (cursor_u8(in) & 1)
                virtio_balloon_get_stats(h->dev, &stats);
        else
                (void)!virtio_balloon_set_target(h->dev, cursor_le32(in), NULL);
}

static const struct hostile_device device = { .id = VIRTIO_BALLOON, .queues = 5, .make = make, .host = host };

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        return hostile_run(&device, bytes, size_bytes);
}
