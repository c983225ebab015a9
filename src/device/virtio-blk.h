/* Block device, virtio 1.2 §5.2. See virtio-blk.c. */
#pragma once

#include "block/block.h"
#include "device/virtio.h"

/* What becomes of a request that the disk could not do. */
enum virtio_blk_on_error {
        VIRTIO_BLK_FULL,   /* no space: the machine pauses until there is; every other error is told to the guest */
        VIRTIO_BLK_REPORT, /* all are told to the guest */
        VIRTIO_BLK_PAUSE,  /* with all the machine pauses until they are gone */
};

struct virtio_blk_config {
        const char *serial; /* at most 20 bytes of text; NULL: the id */
        unsigned queues;    /* 1 to 16, usually the number of vCPUs */
        enum virtio_blk_on_error on_error;
        uint16_t queue_size; /* at most; 0: 256 */
};

/* A disk on the bus. `disk` is borrowed until the device is freed and must be on host->loop. */
int virtio_blk_new(struct device_host *host, struct pci_bus *bus, const char *id, struct block *disk,
                   const struct virtio_blk_config *config, struct device **dev, struct err *err) _must_check_;

/* The image was grown or shrunk: asks the disk for its size and tells the guest. On the loop's thread, without the lock. */
int virtio_blk_resized(struct device *dev, struct err *err) _must_check_;
/* Requests of the disk have ended: for who takes the disk's listener (block_set_listener()), which is the device's otherwise. */
void virtio_blk_batch(struct device *dev);
