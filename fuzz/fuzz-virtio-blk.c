/* A hostile driver of the disk. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>

#include "device/virtio-blk.h"
#include "virtio-hostile.h"

struct disk {
        struct block *block;
        int fd;
};

static void make(struct hostile *h)
{
        struct disk *disk = calloc(1, sizeof(*disk));
        char path[64];

        disk->fd = memfd_create("disk", MFD_CLOEXEC);
        if (disk->fd < 0 || ftruncate(disk->fd, 1 << 16) < 0)
                abort();
        snprintf(path, sizeof(path), "/proc/self/fd/%d", disk->fd);
        h->ctx = disk;
        /* With the pool each input would take a thread's time; without a lock, as every input opens a disk anew. */
        if (block_open(&h->bed.loop, path, NULL, BLOCK_OPEN_NO_LOCK, &disk->block, NULL) < 0 ||
            virtio_blk_new(&h->bed.host, h->bed.pci, "virtio-blk0", disk->block, "fuzz", 2, &h->dev, NULL) < 0)
                abort();
}

static void host(struct hostile *h, struct cursor *in)
{
        struct disk *disk = h->ctx;

        if (ftruncate(disk->fd, 512 * (1 + cursor_u8(in))) < 0 || virtio_blk_resized(h->dev, NULL) < 0)
                abort();
}

static void done(struct hostile *h)
{
        struct disk *disk = h->ctx;

        block_close(disk->block);
        close(disk->fd);
        free(disk);
}

static const struct hostile_device device = { .id = VIRTIO_BLOCK, .queues = 2, .make = make, .host = host, .done = done };

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        return hostile_run(&device, bytes, size_bytes);
}
