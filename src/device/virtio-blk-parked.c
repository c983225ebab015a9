/*
 * Requests of a virtio block device that failed for a reason of the host's, and wait until they can be done: by default those that
 * found no space (onerror=full). The driver knows nothing of it. The machine pauses, so that its timeouts do not pass, and comes back
 * from time to time; the device then tries all of them again, and those that fail again have the machine pause again.
 *
 *      done with an error ─▶ parked ─host->stall()─▶ machine pauses … resumes ─▶ submitted again
 *
 * A parked request is in flight for its driver, and still held (virtio_hold()). It is part of the device's state: its chain was popped,
 * cannot be found in the ring again (a packed ring's slots may have been written over), and is kept as the addresses it named.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "device/virtio-blk-internal.h"

static const char *op_name(enum block_op op)
{
        return op == BLOCK_READ ? "read" : op == BLOCK_FLUSH ? "flush" : "write";
}

static bool no_space(const struct blk_request *req)
{
        return req->io.op != BLOCK_READ && (req->result == -ENOSPC || req->result == -EDQUOT);
}

static void add(struct blk *blk, struct blk_request *req)
{
        req->next = NULL;
        *blk->parked_last = req;
        blk->parked_last = &req->next;
}

bool virtio_blk_park(struct blk *blk, struct blk_request *req)
{
        struct device_host *host = blk->v.host;
        char why[256];

        if (!host->stall || blk->on_error == VIRTIO_BLK_REPORT || (blk->on_error == VIRTIO_BLK_FULL && !no_space(req)))
                return false;
        /* A driver that has reset the device does not wait for anything but the end of what is in flight. */
        if (blk->v.resetting || !virtqueue_ready(&blk->v, req->queue))
                return false;
        add(blk, req);
        snprintf(why, sizeof(why), "cannot %s %s: %s", op_name(req->io.op), blk->disk->path, strerror(-req->result));
        host->stall(host->ctx, blk->v.pci.dev.id, why);
        return true;
}

void virtio_blk_unpark(struct blk *blk)
{
        struct blk_request *req = blk->parked;

        blk->parked = NULL;
        blk->parked_last = &blk->parked;
        while (req) {
                struct blk_request *next = req->next;

                block_submit(blk->disk, &req->io);
                req = next;
        }
}

void virtio_blk_drop_parked(struct blk *blk)
{
        while (blk->parked) {
                struct blk_request *req = blk->parked;

                blk->parked = req->next;
                req->next = blk->free;
                blk->free = req;
                virtio_release(&blk->v);
        }
        blk->parked_last = &blk->parked;
}

/* ---- state ---- */

static void save_request(struct blk *blk, const struct blk_request *req, struct writer *out)
{
        writer_le16(out, (uint16_t)req->queue);
        writer_le16(out, req->chain.head);
        writer_le16(out, req->chain.descriptors);
        writer_le32(out, req->chain.in_bytes);
        writer_u8(out, (uint8_t)req->io.op);
        writer_le32(out, req->io.flags);
        writer_le64(out, req->io.offset_bytes);
        writer_le64(out, req->io.size_bytes);
        writer_u8(out, (uint8_t)req->range);
        writer_u8(out, (uint8_t)req->ranges);
        for (unsigned i = 0; i < req->ranges; i++) {
                writer_le64(out, req->ranges_at[i].sector);
                writer_le32(out, req->ranges_at[i].sectors);
        }
        writer_le16(out, (uint16_t)req->io.iov_count);
        for (unsigned i = 0; i <= req->io.iov_count; i++) {
                /* Of a request without data the status byte is all there is of the chain. */
                const struct iovec *iov = i < req->io.iov_count ? &req->iov[i] : &req->chain.in[req->chain.in_count - 1];
                uint64_t gpa = 0;

                (void)guest_memory_gpa(blk->v.host->mem, iov->iov_base, &gpa);
                writer_le64(out, gpa);
                writer_le32(out, (uint32_t)iov->iov_len);
        }
}

void virtio_blk_save_parked(struct blk *blk, struct writer *out)
{
        unsigned count = 0;

        for (const struct blk_request *req = blk->parked; req; req = req->next)
                count++;
        writer_le16(out, (uint16_t)count);
        for (const struct blk_request *req = blk->parked; req; req = req->next)
                save_request(blk, req, out);
}

static bool on_disk(const struct blk *blk, uint64_t offset_bytes, uint64_t size_bytes)
{
        uint64_t disk_bytes = blk->capacity << BLK_SECTOR_SHIFT;

        return !((offset_bytes | size_bytes) % BLOCK_SECTOR) && offset_bytes <= disk_bytes && size_bytes <= disk_bytes - offset_bytes;
}

static bool load_ranges(const struct blk *blk, struct blk_request *req, struct cursor *in)
{
        bool good;

        req->range = cursor_u8(in);
        req->ranges = cursor_u8(in);
        good = req->ranges <= BLK_RANGES_MAX && (!req->ranges || req->range < req->ranges) &&
               !req->ranges == !(req->io.op == BLOCK_DISCARD || req->io.op == BLOCK_WRITE_ZEROES);
        for (unsigned i = 0; good && i < req->ranges; i++) {
                struct blk_range *range = &req->ranges_at[i];

                range->sector = cursor_le64(in);
                range->sectors = cursor_le32(in);
                range->flags = 0; /* they are in io.flags */
                good = range->sector <= blk->capacity && range->sectors && range->sectors <= blk->capacity - range->sector;
        }
        return good;
}

static bool load_buffers(const struct blk *blk, struct blk_request *req, struct cursor *in)
{
        unsigned count = cursor_le16(in);
        uint64_t total = 0;

        if (count > BLK_SEGMENTS_MAX + 1)
                return false;
        for (unsigned i = 0; i <= count; i++) {
                uint64_t gpa = cursor_le64(in);
                uint32_t length = cursor_le32(in);

                if (in->bad || !(req->iov[i].iov_base = guest_memory_at(blk->v.host->mem, gpa, length)))
                        return false;
                req->iov[i].iov_len = length;
                total += length;
        }
        req->io.iov = req->iov;
        req->io.iov_count = count;
        req->chain.in = req->io.op == BLOCK_READ ? req->iov : &req->iov[count];
        req->chain.in_count = (uint16_t)(req->io.op == BLOCK_READ ? count + 1 : 1);
        if (req->iov[count].iov_len != 1)
                return false;
        return total - 1 == (req->io.op == BLOCK_READ || req->io.op == BLOCK_WRITE ? req->io.size_bytes : 0);
}

static bool load_request(struct blk *blk, struct blk_request *req, struct cursor *in)
{
        const unsigned flags = BLOCK_F_DURABLE | BLOCK_F_UNMAP;

        req->queue = cursor_le16(in);
        req->chain = (struct virtio_chain){ 0 };
        req->chain.head = cursor_le16(in);
        req->chain.descriptors = cursor_le16(in);
        req->chain.in_bytes = cursor_le32(in);
        req->io.op = cursor_u8(in);
        req->io.flags = cursor_le32(in);
        req->io.offset_bytes = cursor_le64(in);
        req->io.size_bytes = cursor_le64(in);
        req->status = 0;
        if (req->io.op > BLOCK_WRITE_ZEROES || (blk->disk->info.readonly && req->io.op != BLOCK_READ && req->io.op != BLOCK_FLUSH))
                return false;
        return load_ranges(blk, req, in) && load_buffers(blk, req, in) && !in->bad && !(req->io.flags & ~flags) &&
               on_disk(blk, req->io.offset_bytes, req->io.size_bytes) && req->chain.head < virtqueue_size(&blk->v, req->queue) &&
               req->chain.descriptors <= virtqueue_size(&blk->v, req->queue) && req->chain.in_bytes;
}

int virtio_blk_load_parked(struct blk *blk, struct cursor *in, struct err *err)
{
        unsigned count = cursor_le16(in);

        for (unsigned i = 0; i < count; i++) {
                struct blk_request *req = blk->free;

                if (!req || !load_request(blk, req, in)) {
                        virtio_blk_drop_parked(blk);
                        return err_set(err, -EBADMSG, "request %u of %u that waits for the disk is impossible", i, count);
                }
                blk->free = req->next;
                virtio_hold(&blk->v);
                add(blk, req);
        }
        return 0;
}
