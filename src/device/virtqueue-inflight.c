/*
 * The record of what a split ring has in flight: vhost-user specification (QEMU's docs/interop/vhost-user), "Inflight I/O tracking".
 *
 *   header   { le64 features; le16 version; le16 entries; le16 last head; le16 used index }
 *   entry    { u8 in flight; 5 bytes; le16 next; le64 counter }, by the number of the descriptor that a chain begins with
 *
 *   popped: counter, in flight ─▶ … done ─▶ last head, its next ─▶ used index of the ring ─▶ not in flight ─▶ used index here
 *
 * A process that dies anywhere in between leaves what its successor needs: when the ring's used index is ahead of the one here, the last so many
 * heads are done, whatever their entries say; all others that are in flight are done again, in the order of their counters.
 *
 * The memory is the front end's as well: nothing in it is believed beyond its bounds.
 */
#include <errno.h>

#include "device/virtio-internal.h"

#define VERSION 1

enum { FEATURES = 0, VERSION_AT = 8, ENTRIES = 10, LAST_HEAD = 12, USED = 14 };
enum { ENTRY_INFLIGHT = 0, ENTRY_NEXT = 6, ENTRY_COUNTER = 8 };

static uint8_t *entry_at(const struct ring_inflight *inflight, unsigned head)
{
        return inflight->region + RING_INFLIGHT_HEADER_BYTES + (size_t)RING_INFLIGHT_ENTRY_BYTES * head;
}

static bool is_in_flight(const struct ring_inflight *inflight, unsigned head)
{
        return __atomic_load_n(entry_at(inflight, head) + ENTRY_INFLIGHT, __ATOMIC_RELAXED);
}

static void set_in_flight(struct ring_inflight *inflight, unsigned head, bool set)
{
        __atomic_store_n(entry_at(inflight, head) + ENTRY_INFLIGHT, set, __ATOMIC_RELEASE);
}

static uint64_t counter_of(const struct ring_inflight *inflight, unsigned head)
{
        return ring_load64(entry_at(inflight, head) + ENTRY_COUNTER);
}

void ring_inflight_popped(struct ring_inflight *inflight, uint16_t head)
{
        __atomic_store_n((uint64_t *)(entry_at(inflight, head) + ENTRY_COUNTER), htole64(inflight->counter++), __ATOMIC_RELAXED);
        set_in_flight(inflight, head, true);
}

void ring_inflight_unpopped(struct ring_inflight *inflight, uint16_t head)
{
        set_in_flight(inflight, head, false);
}

void ring_inflight_using(struct ring_inflight *inflight, const struct virtio_chain *chains, unsigned count)
{
        for (unsigned i = 0; i < count; i++) {
                ring_store16(entry_at(inflight, chains[i].head) + ENTRY_NEXT, ring_load16(inflight->region + LAST_HEAD));
                ring_store16_release(inflight->region + LAST_HEAD, chains[i].head);
        }
}

void ring_inflight_used(struct ring_inflight *inflight, const struct virtio_chain *chains, unsigned count, uint16_t used_idx)
{
        /* Not before the ring says it. */
        __atomic_thread_fence(__ATOMIC_RELEASE);
        for (unsigned i = 0; i < count; i++)
                set_in_flight(inflight, chains[i].head, false);
        ring_store16_release(inflight->region + USED, used_idx);
}

/* The last batch was announced in the ring, and perhaps not taken off the record. */
static void finish_batch(struct ring_inflight *inflight, uint16_t used_idx)
{
        uint16_t batch = (uint16_t)(used_idx - ring_load16(inflight->region + USED));
        uint16_t head = ring_load16(inflight->region + LAST_HEAD);

        for (unsigned n = 0; n < batch && n < inflight->entries && head < inflight->entries; n++) {
                set_in_flight(inflight, head, false);
                head = ring_load16(entry_at(inflight, head) + ENTRY_NEXT);
        }
        ring_store16_release(inflight->region + USED, used_idx);
}

struct left {
        uint64_t counter;
        uint16_t head;
};

static int by_counter(const void *a, const void *b)
{
        const struct left *x = a, *y = b;

        return x->counter < y->counter ? -1 : x->counter > y->counter;
}

/* Those in flight, oldest first. Each is looked at once. */
static int find_left(struct ring_inflight *inflight)
{
        struct left *left = calloc(inflight->entries, sizeof(*left));
        unsigned count = 0;

        inflight->again = calloc(inflight->entries, sizeof(*inflight->again));
        if (!left || !inflight->again) {
                free(left);
                return -ENOMEM;
        }
        for (unsigned head = 0; head < inflight->entries; head++) {
                if (is_in_flight(inflight, head))
                        left[count++] = (struct left){ .counter = counter_of(inflight, head), .head = (uint16_t)head };
        }
        qsort(left, count, sizeof(*left), by_counter);
        for (unsigned n = 0; n < count; n++) {
                inflight->again[n] = left[n].head;
                inflight->counter = MAX(inflight->counter, left[n].counter + 1);
        }
        inflight->agains = count;
        free(left);
        return 0;
}

int ring_inflight_attach(struct virtqueue *q, uint8_t *region, struct err *err)
{
        struct ring_inflight *inflight = calloc(1, sizeof(*inflight));
        uint16_t used_idx = q->used_idx;

        if (!inflight)
                return err_nomem(err);
        inflight->region = region;
        inflight->entries = q->size;
        if (!ring_load16(region + VERSION_AT)) {
                /* Nobody has used it: all is zeroes. */
                ring_store16(region + ENTRIES, q->size);
                ring_store16(region + USED, used_idx);
                ring_store16_release(region + VERSION_AT, VERSION);
        }
        finish_batch(inflight, used_idx);
        if (find_left(inflight) < 0) {
                free(inflight->again);
                free(inflight);
                return err_nomem(err);
        }
        q->inflight = inflight;
        /* What was popped is used or in flight. */
        q->avail_idx = (uint16_t)(used_idx + inflight->agains);
        return 0;
}

void ring_inflight_detach(struct virtqueue *q)
{
        if (!q->inflight)
                return;
        free(q->inflight->again);
        free(q->inflight);
        q->inflight = NULL;
}
