/*
 * Virtqueues: what both ring formats share. virtio 1.2 §2.6.
 *
 *   disabled ──virtqueue_enable()──▶ ready ──reset──▶ disabled
 *
 * When a queue is enabled its three areas are checked (alignment, size, in one region of guest memory) and mapped; memory does
 * not go away while vCPUs run, so that the data path needs no further check on them. Buffers are checked one by one as they
 * are popped. Positions are the device's own: nothing that decides about bounds is ever read back from the ring.
 *
 * Notifications are lost on neither side because each side publishes first, then passes a full barrier, then looks:
 * the device publishes "notify me from here on" and looks at the ring again (virtqueue_notifications(), and virtqueue_pop()
 * before it says that there is nothing); it publishes used entries and looks at what the driver wants (virtqueue_interrupt()).
 */
#include "device/virtio-internal.h"

#include <errno.h>
#include <inttypes.h>

static struct virtqueue *ready_queue(const struct virtio *v, unsigned queue)
{
        struct virtqueue *q = queue < v->queues ? v->queue[queue] : NULL;

        return q && q->enabled ? q : NULL;
}

bool virtqueue_ready(const struct virtio *v, unsigned queue)
{
        return virtio_running(v) && ready_queue(v, queue);
}

unsigned virtqueue_size(const struct virtio *v, unsigned queue)
{
        const struct virtqueue *q = ready_queue(v, queue);

        return q ? q->size : 0;
}

void ring_written(struct virtio *v, const void *host, uint64_t size_bytes)
{
        uint64_t gpa;

        if (guest_memory_gpa(v->host->mem, host, &gpa))
                guest_memory_written(v->host->mem, gpa, size_bytes);
}

/* Buffers may cross from one region to the next when these touch, so that a descriptor can take more than one iovec. */
static int add_buffer(struct chain_builder *b, const struct virtq_desc *desc)
{
        const struct guest_memory *mem = b->v->host->mem;
        struct virtio_chain *chain = b->chain;
        bool in = desc->flags & DESC_F_WRITE;
        uint64_t address = desc->address;
        uint32_t left = desc->length;
        uint32_t *total = in ? &chain->in_bytes : &chain->out_bytes;

        if (!in && chain->in_count) {
                /* §2.7.4.2, §2.8.17: what the device reads comes before what it writes. */
                virtio_break(b->v, "queue %u: a readable buffer follows a writable one", b->queue);
                return -EBADMSG;
        }
        if (left > UINT32_MAX - *total) {
                virtio_break(b->v, "queue %u: a chain of 4 GiB and more", b->queue);
                return -EBADMSG;
        }
        *total += left;
        while (left) {
                const struct guest_region *region = guest_memory_find(mem, address);
                uint64_t part;

                if (!region || (in && region->readonly)) {
                        virtio_break(b->v, "queue %u: buffer at 0x%" PRIx64 " of %" PRIu32 " bytes is not in %smemory", b->queue,
                                     desc->address, desc->length, in ? "writable " : "");
                        return -EBADMSG;
                }
                if (b->count == VIRTIO_CHAIN_MAX) {
                        virtio_break(b->v, "queue %u: a chain of more than %d buffers", b->queue, VIRTIO_CHAIN_MAX);
                        return -EBADMSG;
                }
                part = MIN((uint64_t)left, region->size_bytes - (address - region->gpa));
                b->iov[b->count++] = (struct iovec){ .iov_base = region->host + (address - region->gpa), .iov_len = part };
                if (in)
                        chain->in_count++;
                else
                        chain->out_count++;
                address += part;
                left -= (uint32_t)part;
        }
        return 0;
}

/* §2.7.5.3, §2.8.7. The table ends its list; its write flag means nothing (§2.7.5.3.2). */
static int add_table(struct chain_builder *b, const struct virtq_desc *desc)
{
        const struct virtqueue *q = b->v->queue[b->queue];
        const uint8_t *table = NULL;

        if (!q->indirect || b->in_table || desc->flags & DESC_F_NEXT) {
                virtio_break(b->v, "queue %u: an indirect table %s", b->queue,
                             !q->indirect  ? "without the feature"
                             : b->in_table ? "inside another"
                                           : "with more behind it");
                return -EBADMSG;
        }
        if (desc->length && desc->length % sizeof(struct virtq_desc) == 0 &&
            desc->length / sizeof(struct virtq_desc) <= VIRTIO_CHAIN_MAX)
                table = guest_memory_at(b->v->host->mem, desc->address, desc->length);
        if (!table) {
                virtio_break(b->v, "queue %u: bad indirect table of %" PRIu32 " bytes at 0x%" PRIx64, b->queue, desc->length,
                             desc->address);
                return -EBADMSG;
        }
        b->in_table = true;
        return q->format->walk_table(b, table, (unsigned)(desc->length / sizeof(struct virtq_desc)));
}

int chain_add(struct chain_builder *b, const struct virtq_desc *desc)
{
        int r = desc->flags & DESC_F_INDIRECT ? add_table(b, desc) : add_buffer(b, desc);

        return r < 0 ? r : !!(desc->flags & DESC_F_NEXT);
}

int virtqueue_pop(struct virtio *v, unsigned queue, struct virtio_iov *storage, struct virtio_chain *chain)
{
        struct chain_builder b = { .v = v, .queue = queue, .chain = chain, .iov = storage->iov };
        struct virtqueue *q;
        int r;

        if (!virtqueue_ready(v, queue))
                return 0;
        q = v->queue[queue];
        if (q->format->empty(q)) {
                if (!q->notifications || !virtqueue_notifications(v, queue, true))
                        return 0;
        }

        *chain = (struct virtio_chain){ 0 };
        r = q->format->pop(q, &b);
        if (r < 0)
                return r;
        chain->out = storage->iov;
        chain->in = storage->iov + chain->out_count;
        return 1;
}

void virtqueue_unpop(struct virtio *v, unsigned queue, const struct virtio_chain *chain)
{
        struct virtqueue *q = ready_queue(v, queue);

        if (q)
                q->format->unpop(q, chain);
}

void virtqueue_push(struct virtio *v, unsigned queue, const struct virtio_chain *chain, uint32_t written)
{
        struct virtio_chain one = *chain;

        one.written = written;
        virtqueue_push_together(v, queue, &one, 1);
}

void virtqueue_push_together(struct virtio *v, unsigned queue, const struct virtio_chain *chains, unsigned count)
{
        struct virtqueue *q = ready_queue(v, queue);

        /* Also when the queue was reset meanwhile: the memory was written all the same. */
        for (unsigned i = 0; i < count; i++) {
                for (unsigned j = 0; j < chains[i].in_count; j++)
                        ring_written(v, chains[i].in[j].iov_base, chains[i].in[j].iov_len);
        }
        if (q)
                q->format->push(v, q, chains, count);
}

void virtqueue_interrupt(struct virtio *v, unsigned queue)
{
        struct virtqueue *q = ready_queue(v, queue);

        if (!q || !q->unsignalled)
                return;
        /* What was pushed must be seen before what the driver wants is read (§2.7.10, §2.8.10). */
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (q->format->wants_interrupt(q))
                v->transport->ops->queue_interrupt(v, q);
        q->unsignalled = 0;
}

bool virtqueue_empty(struct virtio *v, unsigned queue)
{
        const struct virtqueue *q;

        /* A broken device sees nothing more, or a loop until empty would not end. */
        if (!virtqueue_ready(v, queue))
                return true;
        q = v->queue[queue];
        return q->format->empty(q);
}

bool virtqueue_notifications(struct virtio *v, unsigned queue, bool enable)
{
        struct virtqueue *q = ready_queue(v, queue);

        if (!q)
                return false;
        q->notifications = enable;
        q->format->ask(v, q, enable);
        if (!enable)
                return false;
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        return !virtqueue_empty(v, queue);
}

/* A ring area in guest memory, checked; NULL with the reason. */
static uint8_t *map_area(struct virtio *v, const char *what, uint64_t gpa, uint64_t size_bytes, unsigned alignment, bool writable,
                         struct err *err)
{
        const struct guest_region *region = guest_memory_find(v->host->mem, gpa);
        uint8_t *host = guest_memory_at(v->host->mem, gpa, size_bytes);

        if (gpa % alignment) {
                err_set(err, -EINVAL, "%s area at 0x%" PRIx64 " is not aligned to %u bytes", what, gpa, alignment);
                return NULL;
        }
        if (!host || (writable && region->readonly)) {
                err_set(err, -EINVAL, "%s area of %" PRIu64 " bytes at 0x%" PRIx64 " is not in memory", what, size_bytes, gpa);
                return NULL;
        }
        return host;
}

/* Sizes and alignments: §2.7 (split), §2.8.10 and §2.8 (packed). */
int virtqueue_enable(struct virtio *v, struct virtqueue *q, struct err *err)
{
        bool packed = virtio_has(v, VIRTIO_F_RING_PACKED);
        uint64_t size = q->size;
        uint8_t *desc, *driver, *device;

        if (!size || size > q->size_max || (!packed && !is_power_of_two(size)))
                return err_set(err, -EINVAL, "size %" PRIu64 " is not possible (at most %u)", size, q->size_max);
        desc = map_area(v, "descriptor", q->desc_gpa, 16 * size, 16, packed, err);
        if (!desc)
                return -EINVAL;
        driver = map_area(v, "driver", q->driver_gpa, packed ? 4 : 6 + 2 * size, packed ? 4 : 2, false, err);
        if (!driver)
                return -EINVAL;
        device = map_area(v, "device", q->device_gpa, packed ? 4 : 6 + 8 * size, 4, true, err);
        if (!device)
                return -EINVAL;

        q->desc = desc;
        q->driver = driver;
        q->device = device;
        q->format = packed ? &packed_format : &split_format;
        q->event_idx = virtio_has(v, VIRTIO_F_RING_EVENT_IDX);
        q->indirect = virtio_has(v, VIRTIO_F_RING_INDIRECT_DESC);
        q->avail_idx = q->used_idx = 0;
        q->avail_wrap = q->used_wrap = true; /* §2.8.1: both counters start at 1 */
        q->unsignalled = 0;
        q->notifications = true;
        q->enabled = true;
        return 0;
}

void virtqueue_disable(struct virtqueue *q)
{
        ring_inflight_detach(q);
        *q = (struct virtqueue){ .size_max = q->size_max, .size = q->size_max, .vector = VIRTIO_NO_VECTOR };
}

void virtqueue_save(const struct virtqueue *q, struct writer *out)
{
        writer_le16(out, q->size);
        writer_le16(out, q->vector);
        writer_le64(out, q->desc_gpa);
        writer_le64(out, q->driver_gpa);
        writer_le64(out, q->device_gpa);
        writer_u8(out, q->enabled);
        writer_le16(out, q->avail_idx);
        writer_le16(out, q->used_idx);
        writer_u8(out, q->avail_wrap);
        writer_u8(out, q->used_wrap);
        writer_le16(out, q->unsignalled);
        writer_u8(out, q->notifications);
}

int virtqueue_load(struct virtio *v, struct virtqueue *q, struct cursor *in, struct err *err)
{
        struct virtqueue saved = { .size_max = q->size_max };
        bool enabled;
        int r;

        virtqueue_disable(q);
        saved.size = cursor_le16(in);
        saved.vector = cursor_le16(in);
        saved.desc_gpa = cursor_le64(in);
        saved.driver_gpa = cursor_le64(in);
        saved.device_gpa = cursor_le64(in);
        enabled = cursor_u8(in);
        if (enabled) {
                r = virtqueue_enable(v, &saved, err);
                if (r < 0)
                        return in->bad ? err_set(err, -EBADMSG, "queue's record is cut") : r;
        }
        saved.avail_idx = cursor_le16(in);
        saved.used_idx = cursor_le16(in);
        saved.avail_wrap = cursor_u8(in);
        saved.used_wrap = cursor_u8(in);
        saved.unsignalled = cursor_le16(in);
        saved.notifications = cursor_u8(in);
        if (in->bad)
                return err_set(err, -EBADMSG, "queue's record is cut");
        if (saved.format && saved.format->packed && (saved.avail_idx >= saved.size || saved.used_idx >= saved.size))
                return err_set(err, -EBADMSG, "position %u or %u is past the queue's %u slots", saved.avail_idx, saved.used_idx,
                               saved.size);
        *q = saved;
        return 0;
}
