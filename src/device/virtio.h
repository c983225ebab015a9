/*
 * virtio 1.2: queues (split and packed, indirect, event index), the transports PCI and vhost-user; device types sit on top.
 *
 * The driver (guest) is hostile: descriptors are copied once, then checked, then used. A chain is bounded, indirect tables do
 * not nest, every buffer lies in guest memory. A driver that breaks the rules gets DEVICE_NEEDS_RESET (§2.1.2) and its device
 * stops; nothing else happens.
 *
 * Threads: configuration accesses come on vCPU threads with dev->lock held. Notifications arrive on the loop's thread (through
 * eventfds that the accelerator signals): ops->notify runs there, with dev->lock held. A device's own callbacks on the loop take
 * the lock with virtio_lock(). Everything below is called with the lock held unless it says otherwise.
 *
 * A notify handler is this loop; the budget keeps a driver that never stops from owning the event loop:
 *
 *      unsigned budget;
 *
 *      for (budget = 256; budget; budget--) {
 *              if (virtqueue_pop(v, queue, &iov, &chain) <= 0)
 *                      break;
 *              … virtqueue_push(v, queue, &chain, written);
 *      }
 *      virtqueue_interrupt(v, queue);
 *      if (!budget)
 *              virtio_wake(v, queue);
 */
#pragma once

#include "base/iov.h"
#include "device/pci.h"

#define VIRTIO_QUEUES_MAX 32
#define VIRTIO_QUEUE_SIZE_MAX 1024
#define VIRTIO_CHAIN_MAX 1024

enum virtio_id {
        VIRTIO_NET = 1,
        VIRTIO_BLOCK = 2,
        VIRTIO_CONSOLE = 3,
        VIRTIO_RNG = 4,
        VIRTIO_BALLOON = 5,
        VIRTIO_VSOCK = 19,
        VIRTIO_FS = 26,
};

/* Device status, §2.1 */
#define VIRTIO_STATUS_ACKNOWLEDGE 0x01
#define VIRTIO_STATUS_DRIVER 0x02
#define VIRTIO_STATUS_DRIVER_OK 0x04
#define VIRTIO_STATUS_FEATURES_OK 0x08
#define VIRTIO_STATUS_NEEDS_RESET 0x40
#define VIRTIO_STATUS_FAILED 0x80

/* Features of the rings and the transport, §6 */
#define VIRTIO_F_RING_INDIRECT_DESC 28
#define VIRTIO_F_RING_EVENT_IDX 29
#define VIRTIO_F_VERSION_1 32
#define VIRTIO_F_ACCESS_PLATFORM 33
#define VIRTIO_F_RING_PACKED 34
#define VIRTIO_F_RING_RESET 40

struct virtio;

struct virtio_ops {
        const char *name; /* "virtio-blk"; also the name of the device's record */
        enum virtio_id id;
        uint32_t class_code; /* PCI class */
        /* Features offered beside the transport's own (which are INDIRECT, EVENT_IDX, VERSION_1, PACKED). May be NULL. */
        uint64_t (*features)(struct virtio *v);
        /* The driver set FEATURES_OK with this subset; false refuses it. May be NULL. */
        bool (*features_ok)(struct virtio *v, uint64_t features);
        /* Device configuration (§2.5); offset + size is within config_bytes; size is 1, 2, 4 or 8. write may be NULL. */
        uint32_t config_bytes;
        void (*config_read)(struct virtio *v, uint32_t offset, void *to, unsigned size_bytes);
        void (*config_write)(struct virtio *v, uint32_t offset, const void *from, unsigned size_bytes);
        /* DRIVER_OK was set: work may start. Each enabled queue is notified soon after. On a vCPU's thread. May be NULL. */
        void (*start)(struct virtio *v);
        /* There may be new buffers in queue, which is ready. On the loop's thread. */
        void (*notify)(struct virtio *v, unsigned queue);
        /*
         * Status 0 was written (on a vCPU's thread), or the machine is reset: forget the driver and all chains. The queues are
         * disabled already, so that a later push does nothing. Where work is still in flight that touches guest memory, see
         * virtio_hold(): the driver sees the reset as done when that is over.
         */
        void (*reset)(struct virtio *v);
        /*
         * Finish in-flight requests (no virtio_hold() is left when it returns) and stop the background; no notification comes
         * until resume. On the loop's thread, without the lock. May be NULL. After resume each ready queue is notified.
         */
        void (*quiesce)(struct virtio *v);
        void (*resume)(struct virtio *v);
        /* What the type itself keeps, as a record of this version inside the device's record. May be NULL both. */
        uint16_t version;
        void (*save)(struct virtio *v, struct writer *out);
        int (*load)(struct virtio *v, uint16_t version, struct cursor *in, struct err *err);
        /* Calls virtio_done() and frees itself. On the loop's thread, without the lock. */
        void (*free)(struct virtio *v);
};

/* One buffer chain from the driver, checked and translated: out (device reads) then in (device writes). */
struct virtio_chain {
        uint16_t head;        /* what virtqueue_push() needs */
        uint16_t descriptors; /* ring slots it used (packed) */
        uint16_t out_count, in_count;
        uint32_t out_bytes, in_bytes;
        uint32_t written; /* bytes of in that virtqueue_push() gives back */
        struct iovec *out, *in; /* into guest memory; valid until the next virtqueue_pop() with the same storage */
};

/* Storage for one chain's iovecs; a device that keeps chains in flight has one for each, or copies what it needs. */
struct virtio_iov {
        struct iovec iov[VIRTIO_CHAIN_MAX];
};

struct virtqueue;

struct virtio {
        struct pci_device pci;
        const struct virtio_ops *ops;
        struct device_host *host;
        struct virtqueue *queue[VIRTIO_QUEUES_MAX];
        unsigned queues;
        uint64_t features; /* negotiated; 0 before FEATURES_OK */
        uint8_t status;
        bool broken;    /* DEVICE_NEEDS_RESET */
        bool resetting; /* status 0 was written, holds are left */
        bool quiesced;  /* take no new chains from queues; set before ops->quiesce, cleared before ops->resume */
        unsigned holds;
        struct virtio_transport *transport; /* virtio-pci.c, vhost-user.c */
};

/*
 * queue_sizes[i] is the largest size of queue i, a power of two up to VIRTIO_QUEUE_SIZE_MAX. On the loop's thread. bus NULL: the driver is
 * reached by vhost-user (vhost-user.h), and host->mem is what its owner shares.
 */
int virtio_init(struct virtio *v, struct device_host *host, struct pci_bus *bus, const struct virtio_ops *ops, const char *id,
                const uint16_t *queue_sizes, unsigned queues, struct err *err) _must_check_;
/* For use in ops->free; also after a failed virtio_init(), or when that was never called on zeroed memory. */
void virtio_done(struct virtio *v);

static inline struct virtio *virtio_from_device(struct device *dev)
{
        return container_of(dev, struct virtio, pci.dev);
}

static inline bool virtio_has(const struct virtio *v, unsigned feature)
{
        return v->features >> feature & 1;
}

/* The driver set DRIVER_OK and has not broken the rules since. */
static inline bool virtio_running(const struct virtio *v)
{
        return v->status & VIRTIO_STATUS_DRIVER_OK && !v->broken && !v->resetting;
}

static inline void virtio_lock(struct virtio *v)
{
        pthread_mutex_lock(&v->pci.dev.lock);
}

static inline void virtio_unlock(struct virtio *v)
{
        pthread_mutex_unlock(&v->pci.dev.lock);
}

/*
 * The next chain: 1, 0 when there is none, -EBADMSG when the driver broke the rules (the device is then broken). When it gives
 * 0 and notifications are on (as they are at first), the driver has been asked to notify of what comes next. Who stops before
 * that asks with virtqueue_notifications(), or comes back by itself.
 */
int virtqueue_pop(struct virtio *v, unsigned queue, struct virtio_iov *storage, struct virtio_chain *chain) _must_check_;
/* Puts back what virtqueue_pop() gave, newest first: as if it had not been popped. */
void virtqueue_unpop(struct virtio *v, unsigned queue, const struct virtio_chain *chain);
/*
 * Gives a chain back with written bytes in its in part; in any order. Raises code generations of all pages of the in part.
 * chain->in must still be valid. The driver sees nothing of it when the queue was reset meanwhile.
 */
void virtqueue_push(struct virtio *v, unsigned queue, const struct virtio_chain *chain, uint32_t written);
/*
 * Gives back chains that hold one thing together, each with its own written, in the order they were popped: the driver sees all
 * of them at once or none. (Linux drops a network frame of which it sees a part.)
 */
void virtqueue_push_together(struct virtio *v, unsigned queue, const struct virtio_chain *chains, unsigned count);
/* Interrupts the driver when it wants that (event index, flags); after one or more pushes, once a batch. */
void virtqueue_interrupt(struct virtio *v, unsigned queue);
/* Whether buffers are there, without taking one. */
bool virtqueue_empty(struct virtio *v, unsigned queue);
/*
 * Off: asks not to be notified of new buffers until switched on again. On returns true when buffers came meanwhile, of which
 * no notification will tell: look at the queue again.
 */
bool virtqueue_notifications(struct virtio *v, unsigned queue, bool enable);
bool virtqueue_ready(const struct virtio *v, unsigned queue);
/* The size the driver chose; 0 when it is not ready. */
unsigned virtqueue_size(const struct virtio *v, unsigned queue);

/* ops->notify of queue is called soon from the loop. Any thread, with or without the lock. */
void virtio_wake(struct virtio *v, unsigned queue);

/*
 * Work is in flight that may touch guest memory: a reset by the driver is not reported as done (§2.4.2, status 0) before each
 * hold was released. A hold outlives the reset; whoever holds looks at virtqueue_ready() or forgets.
 */
static inline void virtio_hold(struct virtio *v)
{
        v->holds++;
}

void virtio_release(struct virtio *v);

/* The device configuration changed: generation and interrupt. */
void virtio_config_changed(struct virtio *v);
/* The driver broke the rules: DEVICE_NEEDS_RESET, a rate-limited log line. */
void virtio_break(struct virtio *v, const char *why, ...) _printf_(2, 3);
