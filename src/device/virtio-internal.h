/*
 * What virtio's own files share: the state of a queue, its two ring formats, the core and its transport.
 *
 * Nobody else includes this; device types use virtio.h.
 */
#pragma once

#include <endian.h>

#include "device/virtio.h"

#define VIRTIO_NO_VECTOR 0xffff

/* Descriptor flags of both formats, §2.7.5 and §2.8.1 */
#define DESC_F_NEXT 0x0001
#define DESC_F_WRITE 0x0002
#define DESC_F_INDIRECT 0x0004

struct ring_format;

struct virtqueue {
        /* Set by the transport while the queue is disabled. */
        uint16_t size_max, size;
        uint16_t vector;
        bool enabled;
        uint64_t desc_gpa, driver_gpa, device_gpa;

        /* Fixed while it is enabled. */
        const struct ring_format *format;
        bool event_idx, indirect;
        uint8_t *desc, *driver, *device; /* the three areas in guest memory; device may be written by us */

        /* Positions. Split: free-running indices. Packed: slots, with the wrap counters of §2.8.1. */
        uint16_t avail_idx, used_idx;
        bool avail_wrap, used_wrap;
        uint16_t unsignalled; /* used entries (packed: slots) since the last decision to interrupt; saturates */
        bool notifications;   /* wanted from the driver */
        struct ring_inflight *inflight; /* split: a record of what is in flight, in memory that outlives us; NULL: none is kept */
};

/* One descriptor as it was copied from the ring. */
struct virtq_desc {
        uint64_t address;
        uint32_t length;
        uint16_t flags;
        uint16_t next; /* split: next; packed: buffer id */
};

/* Each value in shared memory is read or written once, by one instruction. */
static inline uint16_t ring_load16(const void *at)
{
        return le16toh(__atomic_load_n((const uint16_t *)at, __ATOMIC_RELAXED));
}

static inline uint16_t ring_load16_acquire(const void *at)
{
        return le16toh(__atomic_load_n((const uint16_t *)at, __ATOMIC_ACQUIRE));
}

static inline void ring_store16(void *at, uint16_t value)
{
        __atomic_store_n((uint16_t *)at, htole16(value), __ATOMIC_RELAXED);
}

static inline void ring_store16_release(void *at, uint16_t value)
{
        __atomic_store_n((uint16_t *)at, htole16(value), __ATOMIC_RELEASE);
}

static inline void ring_store32(void *at, uint32_t value)
{
        __atomic_store_n((uint32_t *)at, htole32(value), __ATOMIC_RELAXED);
}

static inline uint32_t ring_load32(const void *at)
{
        return le32toh(__atomic_load_n((const uint32_t *)at, __ATOMIC_RELAXED));
}

static inline uint64_t ring_load64(const void *at)
{
        return le64toh(__atomic_load_n((const uint64_t *)at, __ATOMIC_RELAXED));
}

/* Whether moving from old to now passed event, all modulo 2^16 (§2.7.7.2, §2.8.10). */
static inline bool ring_passed(uint16_t event, uint16_t now, uint16_t old)
{
        return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

/* Collects a chain. */
struct chain_builder {
        struct virtio *v;
        unsigned queue;
        struct virtio_chain *chain;
        struct iovec *iov;
        unsigned count;
        bool in_table;
};

/*
 * Adds what one descriptor describes, also all of an indirect table: 1 when its list goes on, 0 when it ends, -EBADMSG after
 * virtio_break().
 */
int chain_add(struct chain_builder *b, const struct virtq_desc *desc);
/* The device wrote bytes at host, which lies in guest memory. */
void ring_written(struct virtio *v, const void *host, uint64_t size_bytes);

/* One of the two formats, for a queue that is enabled. */
struct ring_format {
        bool packed;
        bool (*empty)(const struct virtqueue *q);
        int (*pop)(struct virtqueue *q, struct chain_builder *b);
        /* Descriptors of an indirect table through chain_add(). */
        int (*walk_table)(struct chain_builder *b, const uint8_t *table, unsigned entries);
        void (*unpop)(struct virtqueue *q, const struct virtio_chain *chain);
        /* One or more, which the driver sees all at once. */
        void (*push)(struct virtio *v, struct virtqueue *q, const struct virtio_chain *chains, unsigned count);
        bool (*wants_interrupt)(const struct virtqueue *q);
        /* Whether the driver shall notify. */
        void (*ask)(struct virtio *v, struct virtqueue *q, bool notify);
};
extern const struct ring_format split_format, packed_format;

/*
 * What a split ring has in flight, in memory shared with whoever can start a successor of this process: the successor does it again.
 * "Inflight I/O tracking" of the vhost-user specification, which has the layout.
 */
struct ring_inflight {
        uint8_t *region;        /* shared: read as anything from outside */
        uint16_t entries;       /* of its table */
        uint64_t counter;       /* of the next that is popped */
        uint16_t *again;        /* heads that a predecessor has left in flight, to be popped first */
        unsigned agains, next_again;
};

#define RING_INFLIGHT_HEADER_BYTES 16u
#define RING_INFLIGHT_ENTRY_BYTES 16u

/*
 * The ring is enabled just now, with its positions of before: looks at what is recorded. region has the header and as many entries as the ring.
 * The positions follow from it; what the record has in flight is popped again.
 */
int ring_inflight_attach(struct virtqueue *q, uint8_t *region, struct err *err) _must_check_;
void ring_inflight_detach(struct virtqueue *q);
void ring_inflight_popped(struct ring_inflight *inflight, uint16_t head);
void ring_inflight_unpopped(struct ring_inflight *inflight, uint16_t head);
/* Before and behind the store of the used index that announces these. */
void ring_inflight_using(struct ring_inflight *inflight, const struct virtio_chain *chains, unsigned count);
void ring_inflight_used(struct ring_inflight *inflight, const struct virtio_chain *chains, unsigned count, uint16_t used_idx);

/* Checks size and addresses and maps the rings for v->features; -EINVAL with the reason, and the queue stays disabled. */
int virtqueue_enable(struct virtio *v, struct virtqueue *q, struct err *err) _must_check_;
/* As after reset: disabled, with its largest size. */
void virtqueue_disable(struct virtqueue *q);
void virtqueue_save(const struct virtqueue *q, struct writer *out);
/* v->features is there already; leaves q disabled on failure. */
int virtqueue_load(struct virtio *v, struct virtqueue *q, struct cursor *in, struct err *err) _must_check_;

/* The core for its transport. */
uint64_t virtio_offered(struct virtio *v);
/* A write to device_status (§2.1); accepted is what the driver wrote to driver_feature so far. */
void virtio_write_status(struct virtio *v, uint8_t status, uint64_t accepted);
/* Back to the state before any driver. */
void virtio_reset(struct virtio *v);
void virtio_core_save(struct virtio *v, struct writer *out);
int virtio_core_load(struct virtio *v, struct cursor *in, struct err *err) _must_check_;

/* How a device is reached by its driver: PCI (virtio-pci.c), or another process, over a socket (vhost-user.c). */
struct virtio_transport_ops {
        /* Its registers as after power-on. */
        void (*reset)(struct virtio *v);
        /* ops->notify of queue is called soon from the loop. Any thread. */
        void (*wake)(struct virtio *v, unsigned queue);
        void (*queue_interrupt)(struct virtio *v, const struct virtqueue *q);
        /* The device is broken, and the driver runs. */
        void (*config_interrupt)(struct virtio *v);
        void (*config_changed)(struct virtio *v);
        void (*done)(struct virtio *v);
};

/* What each of them starts with. */
struct virtio_transport {
        const struct virtio_transport_ops *ops;
};

int virtio_pci_init(struct virtio *v, struct pci_bus *bus, const char *id, struct err *err) _must_check_;
int virtio_user_init(struct virtio *v, const char *id, struct err *err) _must_check_;
