/*
 * A hostile driver of the disk. The disk is memory with a driver of its own, as rings and threads would take most of the time;
 * it checks what the device must have checked.
 */
#include <errno.h>

#include "device/virtio-blk.h"
#include "virtio-hostile.h"

#define DISK_BYTES (1u << 16)

struct disk {
        struct block block;
        uv_async_t async;
        struct block_request *first;
        uint64_t size_bytes;
        uint8_t bytes[DISK_BYTES];
};

static struct disk *to_disk(struct block *block)
{
        return container_of(block, struct disk, block);
}

static void disk_submit(struct block *block, struct block_request *req)
{
        struct disk *disk = to_disk(block);
        uint64_t total = 0;

        if (req->offset_bytes > DISK_BYTES || req->size_bytes > DISK_BYTES - req->offset_bytes)
                abort();
        for (unsigned i = 0; i < req->iov_count; i++)
                total += req->iov[i].iov_len;
        if ((req->op == BLOCK_READ || req->op == BLOCK_WRITE) && (!total || total != req->size_bytes || total % BLOCK_SECTOR))
                abort();
        req->next = disk->first;
        disk->first = req;
}

static void disk_kick(struct block *block)
{
        uv_async_send(&to_disk(block)->async);
}

static void transfer(struct disk *disk, const struct block_request *req)
{
        uint64_t at = req->offset_bytes;

        for (unsigned i = 0; i < req->iov_count; at += req->iov[i++].iov_len) {
                if (req->op == BLOCK_READ)
                        memcpy(req->iov[i].iov_base, disk->bytes + at, req->iov[i].iov_len);
                else if (req->op == BLOCK_WRITE)
                        memcpy(disk->bytes + at, req->iov[i].iov_base, req->iov[i].iov_len);
        }
        if (req->op == BLOCK_WRITE_ZEROES)
                memset(disk->bytes + at, 0, req->size_bytes);
}

/* Half of them, the newest first; every eighth fails. */
static void complete(struct disk *disk, unsigned count)
{
        bool any = count && disk->first;

        while (disk->first && count--) {
                struct block_request *req = disk->first;

                disk->first = req->next;
                transfer(disk, req);
                block_complete(&disk->block, req, req->offset_bytes / BLOCK_SECTOR % 8 == 7 ? -EIO : 0);
        }
        if (any && disk->block.listener)
                disk->block.listener(disk->block.listener_ctx);
        if (disk->first)
                uv_async_send(&disk->async);
}

static void disk_reap(struct block *block)
{
        complete(to_disk(block), block->in_flight / 2);
}

static void disk_wait(struct block *block)
{
        complete(to_disk(block), UINT32_MAX);
}

static int disk_refresh(struct block *block, struct err *err)
{
        block->info.size_bytes = to_disk(block)->size_bytes;
        return 0;
}

static void woken(uv_async_t *async)
{
        complete(container_of(async, struct disk, async), 3);
}

static void closed(uv_handle_t *handle)
{
        free(container_of((uv_async_t *)handle, struct disk, async));
}

static void disk_close(struct block *block)
{
        block_done(block);
        uv_close((uv_handle_t *)&to_disk(block)->async, closed);
}

static const struct block_driver disk_driver = {
        .name = "memory",
        .close = disk_close,
        .submit = disk_submit,
        .kick = disk_kick,
        .reap = disk_reap,
        .wait = disk_wait,
        .refresh = disk_refresh,
};

static void make(struct hostile *h)
{
        const struct virtio_blk_config config = { .serial = "fuzz", .queues = 2 };
        struct disk *disk = calloc(1, sizeof(*disk));

        if (block_init(&disk->block, &disk_driver, &(struct block_opening){ .loop = &h->bed.loop, .path = "memory" }, NULL) < 0)
                abort();
        disk->block.info = (struct block_info){
                .size_bytes = DISK_BYTES, .logical_bytes = 512, .physical_bytes = 4096, .discard_bytes = 4096, .zeroes_bytes = 1u << 31,
        };
        h->ctx = disk;
        if (uv_async_init(&h->bed.loop, &disk->async, woken) < 0 ||
            virtio_blk_new(&h->bed.host, h->bed.pci, "virtio-blk0", &disk->block, &config, &h->dev, NULL) < 0)
                abort();
}

static void host(struct hostile *h, struct cursor *in)
{
        struct disk *disk = h->ctx;

        disk->size_bytes = BLOCK_SECTOR * (1 + cursor_u8(in) % (DISK_BYTES / BLOCK_SECTOR));
        if (virtio_blk_resized(h->dev, NULL) < 0)
                abort();
}

static void done(struct hostile *h)
{
        block_close(&((struct disk *)h->ctx)->block);
}

static const struct hostile_device device = { .id = VIRTIO_BLOCK, .queues = 2, .make = make, .host = host, .done = done };

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        return hostile_run(&device, bytes, size_bytes);
}
