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

static bool split_empty(const struct virtqueue *q)
{
        if (q->inflight && q->inflight->next_again < q->inflight->agains)
                return false;
        return ring_load16_acquire(q->driver + 2) == q->avail_idx;
}

/* Follows the links in a table of descriptors, the ring's own or an indirect one; walked counts those of the ring. */
static int walk(struct chain_builder *b, const uint8_t *table, unsigned entries, unsigned index, uint16_t *walked)
{
        for (unsigned steps = 0; steps < entries; steps++) {
                struct virtq_desc desc;
                int r;

                if (index >= entries) {
                        virtio_break(b->v, "queue %u: descriptor %u of %u", b->queue, index, entries);
                        return -EBADMSG;
                }
                desc = copy_desc(table, index);
                if (walked)
                        (*walked)++;
                r = chain_add(b, &desc);
                if (r <= 0)
                        return r;
                index = desc.next;
        }
        virtio_break(b->v, "queue %u: a loop in a chain", b->queue);
        return -EBADMSG;
}

static int split_walk_table(struct chain_builder *b, const uint8_t *table, unsigned entries)
{
        return walk(b, table, entries, 0, NULL);
}

/* What a predecessor has left in flight, which is behind the position already. */
static int pop_again(struct virtqueue *q, struct chain_builder *b)
{
        uint16_t head = q->inflight->again[q->inflight->next_again];
        int r = walk(b, q->desc, q->size, head, &b->chain->descriptors);

        if (r < 0)
                return r;
        b->chain->head = head;
        q->inflight->next_again++;
        return 0;
}

static int split_pop(struct virtqueue *q, struct chain_builder *b)
{
        uint16_t idx = ring_load16_acquire(q->driver + 2);
        uint16_t head;
        int r;

        if (q->inflight && q->inflight->next_again < q->inflight->agains)
                return pop_again(q, b);
        if ((uint16_t)(idx - q->avail_idx) > q->size) {
                virtio_break(b->v, "queue %u: available index went from %u to %u in a queue of %u", b->queue, q->avail_idx, idx,
                             q->size);
                return -EBADMSG;
        }
        head = ring_load16(avail_ring(q, q->avail_idx));
        r = walk(b, q->desc, q->size, head, &b->chain->descriptors);
        if (r < 0)
                return r;
        b->chain->head = head;
        q->avail_idx++;
        if (q->inflight)
                ring_inflight_popped(q->inflight, head);
        return 0;
}

static void split_unpop(struct virtqueue *q, const struct virtio_chain *chain)
{
        q->avail_idx--;
        if (q->inflight)
                ring_inflight_unpopped(q->inflight, chain->head);
}

static void split_push(struct virtio *v, struct virtqueue *q, const struct virtio_chain *chains, unsigned count)
{
        for (unsigned i = 0; i < count; i++, q->used_idx++) {
                uint8_t *entry = q->device + 4 + 8 * (q->used_idx & (q->size - 1));

                ring_store32(entry, chains[i].head);
                ring_store32(entry + 4, chains[i].written);
                ring_written(v, entry, 8);
        }
        if (q->inflight)
                ring_inflight_using(q->inflight, chains, count);
        /* The entries before the index that announces them (§2.7.8.2). */
        ring_store16_release(q->device + 2, q->used_idx);
        if (q->inflight)
                ring_inflight_used(q->inflight, chains, count, q->used_idx);
        q->unsignalled = (uint16_t)MIN(q->unsignalled + count, (unsigned)INT16_MAX);
        ring_written(v, q->device, 4);
}

/* §2.7.7.2 */
static bool split_wants_interrupt(const struct virtqueue *q)
{
        if (!q->event_idx)
                return !(ring_load16(avail_flags(q)) & AVAIL_F_NO_INTERRUPT);
        return ring_passed(ring_load16(used_event(q)), q->used_idx, (uint16_t)(q->used_idx - q->unsignalled));
}

/* §2.7.10: with event index the flags stay 0, and an old avail_event is as good as silence for the next 2^16 buffers. */
static void split_ask(struct virtio *v, struct virtqueue *q, bool notify)
{
        if (!q->event_idx)
                ring_store16(q->device, notify ? 0 : USED_F_NO_NOTIFY);
        else if (notify)
                ring_store16(avail_event(q), q->avail_idx);
        else
                return;
        ring_written(v, q->event_idx ? avail_event(q) : q->device, 2);
}

const struct ring_format split_format = {
        .empty = split_empty,
        .pop = split_pop,
        .walk_table = split_walk_table,
        .unpop = split_unpop,
        .push = split_push,
        .wants_interrupt = split_wants_interrupt,
        .ask = split_ask,
};
