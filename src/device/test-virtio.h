/*
 * The driver's side of virtio, for tests and fuzz targets: a machine without processors, a PCI driver that finds its device by
 * configuration space as an operating system does, and rings of both formats.
 */
#pragma once

#include "device/virtio.h"

#define TEST_RAM_BYTES (UINT64_C(8) << 20)
#define TEST_HIGH_GPA (UINT64_C(1) << 32) /* two regions that touch: a buffer may lie in both */
#define TEST_HIGH_BYTES (UINT64_C(1) << 16)
#define TEST_VECTORS 64

struct testbed {
        uv_loop_t loop;
        struct guest_memory mem;
        struct device_host host;
        struct pci_bus *pci;
        _Atomic unsigned interrupts[TEST_VECTORS]; /* messages by their data */
        bool line[4];                              /* INTx */
        bool fast_doorbells;                       /* as an accelerator with ioeventfd; set before the device is made */
        unsigned doorbells;                        /* registered now */
        uint64_t free_gpa;                         /* test_alloc() */
        void (*on_interrupt)(struct testbed *bed, unsigned vector);
        void *ctx;
};

/* Aborts when it cannot. */
void testbed_init(struct testbed *bed);
/* After the devices were freed; runs the loop until its handles are closed. */
void testbed_done(struct testbed *bed);
/* Runs the loop without waiting, a few times. */
void testbed_run(struct testbed *bed);
/* Runs the loop until *condition or about 5 s have passed; whether it came. */
bool testbed_wait(struct testbed *bed, bool (*condition)(void *ctx), void *ctx);
/* A piece of guest memory, page aligned, never given back. */
uint64_t test_alloc(struct testbed *bed, uint64_t size_bytes);
void *test_at(struct testbed *bed, uint64_t gpa, uint64_t size_bytes);

struct test_driver {
        struct testbed *bed;
        uint64_t config; /* of the function, in ECAM */
        uint64_t common, notify, isr, device;
        unsigned window; /* offset of the PCI configuration access capability */
        uint32_t notify_multiplier;
        uint64_t features;
        bool msix;
};

/* Looks for a function with this virtio id on the bus; false when there is none or its capabilities are not right. */
bool test_driver_find(struct test_driver *d, struct testbed *bed, unsigned id);
uint64_t test_read(const struct test_driver *d, uint64_t address, unsigned size_bytes);
void test_write(const struct test_driver *d, uint64_t address, uint64_t value, unsigned size_bytes);
uint8_t test_status(const struct test_driver *d);
uint64_t test_offered(const struct test_driver *d);
/* Reset, ACKNOWLEDGE, DRIVER, the features, FEATURES_OK; false when the device did not take them. */
bool test_driver_start(struct test_driver *d, uint64_t features);
/* MSI-X on, vector i has data i; vector 0 is for configuration, queue i has 1 + i. Before rings are made. */
void test_driver_msix(struct test_driver *d);
void test_driver_ok(struct test_driver *d);

struct test_ring {
        struct test_driver *d;
        unsigned queue, size;
        bool packed, event_idx, indirect; /* indirect may be switched at any time when the feature is on */
        uint64_t desc, driver, device;
        uint8_t *desc_at, *driver_at, *device_at;
        uint64_t table[VIRTIO_QUEUE_SIZE_MAX]; /* indirect tables by id, made when first used */
        uint16_t avail, used;                  /* as in struct virtqueue */
        bool avail_wrap, used_wrap;
        unsigned free_slots, added;
        uint16_t free_ids[VIRTIO_QUEUE_SIZE_MAX], ids; /* stack */
        uint16_t slots[VIRTIO_QUEUE_SIZE_MAX];         /* of an id that is in flight */
        void *token[VIRTIO_QUEUE_SIZE_MAX];
        uint16_t head_of[VIRTIO_QUEUE_SIZE_MAX];
        uint16_t desc_next[VIRTIO_QUEUE_SIZE_MAX], free_desc; /* split: the free descriptors */
};

struct test_buffer {
        uint64_t gpa;
        uint32_t size;
};

#define TEST_INDIRECT_MAX 256

/* Allocates and enables; size 0 takes the largest. */
void test_ring_init(struct test_ring *r, struct test_driver *d, unsigned queue, unsigned size);
/* False when there is no room. token must not be NULL. */
bool test_ring_add(struct test_ring *r, const struct test_buffer *out, unsigned outs, const struct test_buffer *in, unsigned ins,
                   void *token);
/* Notifies if the device wants it, or always; whether it did. */
bool test_ring_kick(struct test_ring *r);
void test_ring_notify(struct test_ring *r);
/* Used buffers that can be seen and were not got; of a packed ring at most 1. */
unsigned test_ring_used(const struct test_ring *r);
/* The next used buffer's token, NULL when there is none. */
void *test_ring_get(struct test_ring *r, uint32_t *written);
/* Asks for interrupts from the next used buffer on, or for none; on returns true when there are used buffers already. */
bool test_ring_interrupts(struct test_ring *r, bool on);
