/*
 * Packed virtqueues, virtio 1.2 §2.8.
 *
 *   descriptor area  desc[size]   { le64 address; le32 length; le16 id; le16 flags }, written by both sides
 *   driver area      what the driver wants to be told   { le16 slot and wrap; le16 flags }
 *   device area      what the device wants to be told   { le16 slot and wrap; le16 flags }
 *
 * A slot is available when its AVAIL bit is the wrap counter and its USED bit is not; used when both are. The driver makes the
 * first descriptor of a list available last, so that one acquire load covers the list (§2.8.21). The buffer's id is in the last
 * descriptor of the list; what we give back is one descriptor, after which as many slots are skipped as the list had.
 */
#include "device/virtio-internal.h"

#include <errno.h>

#define PACKED_F_AVAIL 0x0080
#define PACKED_F_USED 0x8000

/* Flags of the two event suppression structures, §2.8.10 */
#define EVENT_ENABLE 0
#define EVENT_DISABLE 1
#define EVENT_AT 2

static uint8_t *slot_at(const struct virtqueue *q, unsigned slot)
{
        return q->desc + sizeof(struct virtq_desc) * slot;
}

static struct virtq_desc copy_desc(const uint8_t *at, uint16_t flags)
{
        return (struct virtq_desc){
                .address = ring_load64(at),
                .length = ring_load32(at + 8),
                .next = ring_load16(at + 12),
                .flags = flags,
        };
}

static bool available(const struct virtqueue *q, uint16_t flags)
{
        return !!(flags & PACKED_F_AVAIL) == q->avail_wrap && !!(flags & PACKED_F_USED) != q->avail_wrap;
}

static bool packed_empty(const struct virtqueue *q)
{
        return !available(q, ring_load16_acquire(slot_at(q, q->avail_idx) + 14));
}

/* §2.8.7: the entries are in order, NEXT means nothing, only WRITE is allowed. */
static int packed_walk_table(struct chain_builder *b, const uint8_t *table, unsigned entries)
{
        for (unsigned i = 0; i < entries; i++) {
                const uint8_t *at = table + sizeof(struct virtq_desc) * i;
                struct virtq_desc desc = copy_desc(at, ring_load16(at + 14));
                int r = chain_add(b, &desc);

                if (r < 0)
                        return r;
        }
        return 0;
}

/* Walks the list that starts at the position; its length and id go to the chain. */
static int walk_ring(struct chain_builder *b, const struct virtqueue *q)
{
        unsigned slot = q->avail_idx;

        for (unsigned steps = 0; steps < q->size; steps++) {
                const uint8_t *at = slot_at(q, slot);
                struct virtq_desc desc = copy_desc(at, ring_load16_acquire(at + 14));
                int r;

                b->chain->descriptors++;
                b->chain->head = desc.next;
                if (steps && desc.flags & DESC_F_INDIRECT) {
                        /* §2.8.18 */
                        virtio_break(b->v, "queue %u: an indirect table in a list", b->queue);
                        return -EBADMSG;
                }
                r = chain_add(b, &desc);
                if (r <= 0)
                        return r;
                if (++slot == q->size)
                        slot = 0;
        }
        virtio_break(b->v, "queue %u: a list longer than the ring", b->queue);
        return -EBADMSG;
}

static int packed_pop(struct virtqueue *q, struct chain_builder *b)
{
        unsigned next;
        int r = walk_ring(b, q);

        if (r < 0)
                return r;
        next = q->avail_idx + b->chain->descriptors;
        if (next >= q->size) {
                next -= q->size;
                q->avail_wrap = !q->avail_wrap;
        }
        q->avail_idx = (uint16_t)next;
        return 0;
}

static void packed_unpop(struct virtqueue *q, const struct virtio_chain *chain)
{
        unsigned back = q->avail_idx + q->size - chain->descriptors;

        if (back < q->size)
                q->avail_wrap = !q->avail_wrap;
        else
                back -= q->size;
        q->avail_idx = (uint16_t)back;
}

/* The driver looks at the slots in order, so the first one's flags, stored last, show it all of them (§2.8.6). */
static void packed_push(struct virtio *v, struct virtqueue *q, const struct virtio_chain *chains, unsigned count)
{
        uint8_t *first = slot_at(q, q->used_idx);
        uint16_t first_flags = 0;

        for (unsigned i = 0; i < count; i++) {
                uint8_t *at = slot_at(q, q->used_idx);
                unsigned next = q->used_idx + chains[i].descriptors;
                uint16_t flags = q->used_wrap ? PACKED_F_AVAIL | PACKED_F_USED : 0;

                if (chains[i].written)
                        flags |= DESC_F_WRITE; /* §2.8.8: the length says something */
                ring_store32(at + 8, chains[i].written);
                ring_store16(at + 12, chains[i].head);
                if (i == 0)
                        first_flags = flags;
                else
                        ring_store16_release(at + 14, flags);
                if (next >= q->size) {
                        next -= q->size;
                        q->used_wrap = !q->used_wrap;
                }
                q->used_idx = (uint16_t)next;
                q->unsignalled = (uint16_t)MIN(q->unsignalled + chains[i].descriptors, INT16_MAX);
                ring_written(v, at, sizeof(struct virtq_desc));
        }
        ring_store16_release(first + 14, first_flags);
}

/* §2.8.10: the event is a slot in this or the previous round of the ring. */
static bool packed_wants_interrupt(const struct virtqueue *q)
{
        uint16_t flags = ring_load16_acquire(q->driver + 2) & 3;
        uint16_t at, event;

        if (flags != EVENT_AT || !q->event_idx)
                return flags != EVENT_DISABLE;
        at = ring_load16(q->driver);
        event = at & 0x7fff;
        if ((at >> 15) != q->used_wrap)
                event = (uint16_t)(event - q->size);
        return ring_passed(event, q->used_idx, (uint16_t)(q->used_idx - q->unsignalled));
}

static void packed_ask(struct virtio *v, struct virtqueue *q, bool notify)
{
        uint16_t flags = notify ? EVENT_ENABLE : EVENT_DISABLE;

        if (notify && q->event_idx) {
                ring_store16(q->device, (uint16_t)(q->avail_idx | q->avail_wrap << 15));
                flags = EVENT_AT;
        }
        ring_store16_release(q->device + 2, flags);
        ring_written(v, q->device, 4);
}

const struct ring_format packed_format = {
        .packed = true,
        .empty = packed_empty,
        .pop = packed_pop,
        .walk_table = packed_walk_table,
        .unpop = packed_unpop,
        .push = packed_push,
        .wants_interrupt = packed_wants_interrupt,
        .ask = packed_ask,
};
