/*
 * Split virtqueues, virtio 1.2 §2.7.
 *
 *   descriptor area  desc[size]      { le64 address; le32 length; le16 flags; le16 next }
 *   driver area      available ring  { le16 flags; le16 idx; le16 ring[size]; le16 used_event }
 *   device area      used ring       { le16 flags; le16 idx; { le32 id; le32 length } ring[size]; le16 avail_event }
 *
 * A chain is walked at most `size` descriptors deep in the ring's own table (a longer one is a loop) and at most as deep as an
 * indirect table has entries, so that every walk ends whatever the links say.
 */
#include "device/virtio-internal.h"

#include <errno.h>

#define AVAIL_F_NO_INTERRUPT 1
#define USED_F_NO_NOTIFY 1

static const uint8_t *avail_flags(const struct virtqueue *q)
{
        return q->driver;
}

static const uint8_t *avail_ring(const struct virtqueue *q, uint16_t index)
{
        return q->driver + 4 + 2 * (index & (q->size - 1));
}

static const uint8_t *used_event(const struct virtqueue *q)
{
        return q->driver + 4 + 2 * q->size;
}

static uint8_t *avail_event(const struct virtqueue *q)
{
        return q->device + 4 + 8 * q->size;
}

static struct virtq_desc copy_desc(const uint8_t *table, unsigned index)
{
        const uint8_t *at = table + sizeof(struct virtq_desc) * index;

        return (struct virtq_desc){
                .address = ring_load64(at),
                .length = ring_load32(at + 8),
                .flags = ring_load16(at + 12),
                .next = ring_load16(at + 14),
        };
}

bool split_empty(const struct virtqueue *q)
{
        return ring_load16_acquire(q->driver + 2) == q->avail_idx;
}

static int walk_table(struct chain_builder *b, const uint8_t *table, unsigned entries)
{
        unsigned index = 0;

        for (unsigned steps = 0; steps < entries; steps++) {
                struct virtq_desc desc = copy_desc(table, index);
                int r;

                if (desc.flags & DESC_F_INDIRECT) {
                        virtio_break(b->v, "queue %u: an indirect table inside another", b->queue);
                        return -EBADMSG;
                }
                r = chain_add(b, &desc);
                if (r < 0)
                        return r;
                if (!(desc.flags & DESC_F_NEXT))
                        return 0;
                index = desc.next;
                if (index >= entries) {
                        virtio_break(b->v, "queue %u: link to %u in a table of %u", b->queue, index, entries);
                        return -EBADMSG;
                }
        }
        virtio_break(b->v, "queue %u: a loop in an indirect table", b->queue);
        return -EBADMSG;
}

static int walk_ring(struct chain_builder *b, const struct virtqueue *q, unsigned index)
{
        for (unsigned steps = 0; steps < q->size; steps++) {
                struct virtq_desc desc;
                int r;

                if (index >= q->size) {
                        virtio_break(b->v, "queue %u: descriptor %u of %u", b->queue, index, q->size);
                        return -EBADMSG;
                }
                desc = copy_desc(q->desc, index);
                b->chain->descriptors++;
                if (desc.flags & DESC_F_INDIRECT) {
                        /* The table may end a chain (§2.7.5.3.2) and has no next (§2.7.5.3.1); its write flag means nothing. */
                        unsigned entries;
                        const uint8_t *table = chain_table(b, &desc, &entries);

                        if (table && desc.flags & DESC_F_NEXT) {
                                virtio_break(b->v, "queue %u: a chain goes on after an indirect table", b->queue);
                                return -EBADMSG;
                        }
                        return table ? walk_table(b, table, entries) : -EBADMSG;
                }
                r = chain_add(b, &desc);
                if (r < 0)
                        return r;
                if (!(desc.flags & DESC_F_NEXT))
                        return 0;
                index = desc.next;
        }
        virtio_break(b->v, "queue %u: a loop in a chain", b->queue);
        return -EBADMSG;
}

int split_pop(struct virtio *v, unsigned queue, struct chain_builder *b)
{
        struct virtqueue *q = v->queue[queue];
        uint16_t idx = ring_load16_acquire(q->driver + 2);
        uint16_t head;
        int r;

        if ((uint16_t)(idx - q->avail_idx) > q->size) {
                virtio_break(v, "queue %u: available index went from %u to %u in a queue of %u", queue, q->avail_idx, idx,
                             q->size);
                return -EBADMSG;
        }
        head = ring_load16(avail_ring(q, q->avail_idx));
        r = walk_ring(b, q, head);
        if (r < 0)
                return r;
        b->chain->head = head;
        q->avail_idx++;
        return 0;
}

void split_unpop(struct virtqueue *q, const struct virtio_chain *chain)
{
        q->avail_idx--;
}

void split_push(struct virtio *v, struct virtqueue *q, const struct virtio_chain *chain, uint32_t written)
{
        uint8_t *entry = q->device + 4 + 8 * (q->used_idx & (q->size - 1));

        ring_store32(entry, chain->head);
        ring_store32(entry + 4, written);
        q->used_idx++;
        /* The entry before the index that announces it (§2.7.8.2). */
        ring_store16_release(q->device + 2, q->used_idx);
        if (q->unsignalled < INT16_MAX)
                q->unsignalled++;
        ring_written(v, entry, 8);
        ring_written(v, q->device, 4);
}

/* §2.7.7.2 */
bool split_wants_interrupt(const struct virtqueue *q)
{
        if (!q->event_idx)
                return !(ring_load16(avail_flags(q)) & AVAIL_F_NO_INTERRUPT);
        return ring_passed(ring_load16(used_event(q)), q->used_idx, (uint16_t)(q->used_idx - q->unsignalled));
}

/* §2.7.10: with event index the flags stay 0, and an old avail_event is as good as silence for the next 2^16 buffers. */
void split_ask(struct virtio *v, struct virtqueue *q, bool notify)
{
        if (!q->event_idx)
                ring_store16(q->device, notify ? 0 : USED_F_NO_NOTIFY);
        else if (notify)
                ring_store16(avail_event(q), q->avail_idx);
        else
                return;
        ring_written(v, q->event_idx ? avail_event(q) : q->device, 2);
}
