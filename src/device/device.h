/*
 * Devices: what each of them offers, how they are reached, and the lines by which they interrupt.
 *
 * A device has one lock. The bus takes it around every port and memory access, and the device's own callbacks (timers, host
 * file descriptors, on the event loop's thread) take it themselves. A device may raise its interrupt with its lock held: the
 * order is device → interrupt controller (8259, I/O APIC) → local APIC. No one calls back from a controller into a device.
 */
#pragma once

#include <pthread.h>

#include "base/guest-memory.h"
#include "base/record.h"
#include "base/timer.h"

struct device;

struct device_ops {
        const char *name; /* also the record's name, "rtc" */

        /*
         * An access to the range that was registered with this region number. offset is from the range's start; size_bytes is
         * 1, 2, 4 or 8 and the range's end is not crossed. Unknown registers read as all ones or 0, as the part does. Called
         * on a vCPU's thread with dev->lock held.
         */
        uint64_t (*read)(struct device *dev, unsigned region, uint64_t offset, unsigned size_bytes);
        void (*write)(struct device *dev, unsigned region, uint64_t offset, uint64_t value, unsigned size_bytes);

        /* Machine reset: as after power-on. On the main thread, without dev->lock held; vCPUs do not run. */
        void (*reset)(struct device *dev);
        /*
         * The body of the device's record (the caller writes the record's head with name and version). vCPUs do not run and no
         * queue is being served (quiesce came first). A load checks all it takes and leaves the device reset when it fails.
         */
        uint16_t version;
        void (*save)(struct device *dev, struct writer *out);
        int (*load)(struct device *dev, uint16_t version, struct cursor *in, struct err *err);
        /* Stops and resumes work in the background (queues, host files); NULL when it has none. On the loop's thread. */
        void (*quiesce)(struct device *dev);
        void (*resume)(struct device *dev);
        /* Ends the device; the struct is freed by it. */
        void (*free)(struct device *dev);
};

struct device {
        const struct device_ops *ops;
        char id[32]; /* unique in the machine: "rtc", "virtio-blk0" */
        pthread_mutex_t lock;
};

void device_init(struct device *dev, const struct device_ops *ops, const char *id);
/* Destroys the lock; for use in ops->free. */
void device_done(struct device *dev);
/* Calls ops->free; NULL is fine. */
void device_end(struct device *dev);

/* Its record, named by its id; the head is checked on load. A device without save has no record. */
void device_record_save(struct device *dev, struct writer *out);
int device_record_load(struct device *dev, const struct record *record, struct err *err) _must_check_;

/* For parts on an 8-bit bus: a wider access is as many byte accesses, lowest address first. */
uint64_t device_read_bytes(struct device *dev, uint64_t offset, unsigned size_bytes, uint8_t (*read)(struct device *dev, uint64_t offset));
void device_write_bytes(struct device *dev, uint64_t offset, uint64_t value, unsigned size_bytes,
                        void (*write)(struct device *dev, uint64_t offset, uint8_t value));

/*
 * An interrupt line into a controller: level is the wire. Copies are fine; a line that is all zero goes nowhere.
 */
struct irq_line {
        void (*set)(void *ctx, unsigned number, bool level);
        void *ctx;
        unsigned number;
};

static inline void irq_set(const struct irq_line *line, bool level)
{
        if (line->set)
                line->set(line->ctx, line->number, level);
}

static inline void irq_pulse(const struct irq_line *line)
{
        irq_set(line, true);
        irq_set(line, false);
}

/* Where message-signalled interrupts go: the local APICs or KVM. Thread-safe. */
struct msi_target {
        void (*send)(void *ctx, uint64_t address, uint32_t data);
        void *ctx;
};

/* Buses: sorted tables of ranges for ports and for memory. Lookups from any thread; PCI BARs move ranges while running. */
struct bus;

enum bus_space { BUS_PORTS, BUS_MEMORY };

int bus_new(struct bus **bus, struct err *err) _must_check_;
void bus_free(struct bus *bus);

/* -EEXIST names both devices when the range overlaps another. region comes back in read and write. */
int bus_add(struct bus *bus, enum bus_space space, uint64_t start, uint64_t size_bytes, struct device *dev, unsigned region,
            struct err *err) _must_check_;
/* Removes the range that starts there; nothing happens when there is none. */
void bus_remove(struct bus *bus, enum bus_space space, uint64_t start, struct device *dev);

/* Where nobody answers: reads are all ones, writes are lost. Accesses that cross a range's end are split into bytes. */
uint64_t bus_read(struct bus *bus, enum bus_space space, uint64_t address, unsigned size_bytes);
void bus_write(struct bus *bus, enum bus_space space, uint64_t address, uint64_t value, unsigned size_bytes);

enum power_event { POWER_OFF, POWER_RESET };

struct board_clock;

/*
 * What a device asks its host process for: everything outside the machine. Kept by the machine, borrowed by devices.
 */
struct device_host {
        uv_loop_t *loop;           /* runs on the main thread */
        struct timer_set *timers;
        struct board_clock *clock; /* the guest's nanoseconds (clock.h); board_new() sets it */
        struct guest_memory *mem;
        struct bus *bus;
        struct msi_target msi;
        /*
         * Doorbells: a write of value (any when match_value is false) of size_bytes to address makes eventfd readable without a
         * bus access, where the accelerator can (KVM ioeventfd; the software accelerator writes the eventfd itself).
         * -ENOTSUP: the device must do it in its write handler. May be NULL.
         */
        int (*doorbell)(void *ctx, bool add, enum bus_space space, uint64_t address, unsigned size_bytes, bool match_value,
                        uint32_t value, int eventfd);
        void *ctx;
        /*
         * A device cannot go on for want of something on the host, and why: the machine is paused for a while, then resumed, upon
         * which the device tries again, and so on. On the loop's thread, from anywhere. NULL: there is no such thing.
         */
        void (*stall)(void *ctx, const char *id, const char *why);
        /* The guest asked for power-off or reset. Any thread. */
        void (*power)(void *ctx, enum power_event event);
};
