/* Block device, virtio 1.2 §5.2. See virtio-blk.c. */
#pragma once

#include "block/block.h"
#include "device/virtio.h"

/*
 * A disk on the bus. `disk` is borrowed until the device is freed and must be on host->loop. serial is at most 20 bytes of text
 * (NULL: the id). queues is 1 to 16, usually the number of vCPUs.
 */
int virtio_blk_new(struct device_host *host, struct pci_bus *bus, const char *id, struct block *disk, const char *serial,
                   unsigned queues, struct device **dev, struct err *err) _must_check_;

/* The image was grown or shrunk: asks the disk for its size and tells the guest. On the loop's thread, without the lock. */
int virtio_blk_resized(struct device *dev, struct err *err) _must_check_;
