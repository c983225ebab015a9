/*
 * Buses: which device answers at a port or a memory address.
 *
 * Each space is a table of ranges, sorted by address, found by bisection. vCPUs look up all the time, BARs move now and then:
 * so the table is under a sequence lock. A writer (one at a time, under the mutex) makes the sequence odd, changes the table and
 * makes it even again; a reader takes a copy of the one entry it needs and starts over when the sequence has changed meanwhile.
 * Entries are atomics read without order of their own; the sequence gives the order. A bisection over a table in motion may
 * read any entry of it but none outside, because the count is clamped.
 *
 * A device is called outside the table's lock, with its own lock held: after bus_remove() an access that was looked up before
 * may still arrive. Devices are freed only while no vCPU runs.
 *
 * Limits: 256 ranges a space; ports end at 0xffff.
 */
#include "device/device.h"

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdatomic.h>

#define BUS_RANGES_MAX 256
#define PORTS_END 0x10000u

struct bus_range {
        _Atomic uint64_t start, last;
        _Atomic(struct device *) dev;
        atomic_uint region;
};

struct bus_table {
        atomic_uint sequence; /* odd while it changes */
        atomic_uint count;
        struct bus_range range[BUS_RANGES_MAX];
};

struct bus {
        pthread_mutex_t lock; /* of writers */
        struct bus_table table[2];
};

struct bus_hit {
        uint64_t start, last;
        struct device *dev; /* NULL: nobody answers from start to last */
        unsigned region;
};

#define relaxed(field) atomic_load_explicit(&(field), memory_order_relaxed)

int bus_new(struct bus **bus, struct err *err)
{
        struct bus *b = calloc(1, sizeof(*b));

        if (!b)
                return err_nomem(err);
        pthread_mutex_init(&b->lock, NULL);
        *bus = b;
        return 0;
}

void bus_free(struct bus *bus)
{
        if (!bus)
                return;
        pthread_mutex_destroy(&bus->lock);
        free(bus);
}

/* The index of the first range whose last address is not below address. */
static unsigned first_not_below(const struct bus_table *table, uint64_t address)
{
        unsigned low = 0, high = MIN(relaxed(table->count), (unsigned)BUS_RANGES_MAX);

        while (low < high) {
                unsigned middle = (low + high) / 2;

                if (relaxed(table->range[middle].last) < address)
                        low = middle + 1;
                else
                        high = middle;
        }
        return low;
}

static struct bus_hit find_once(const struct bus_table *table, uint64_t address)
{
        unsigned i = first_not_below(table, address);
        uint64_t start;

        if (i >= MIN(relaxed(table->count), (unsigned)BUS_RANGES_MAX))
                return (struct bus_hit){ .start = address, .last = UINT64_MAX };
        start = relaxed(table->range[i].start);
        if (start > address)
                return (struct bus_hit){ .start = address, .last = start - 1 };
        return (struct bus_hit){
                .start = start,
                .last = relaxed(table->range[i].last),
                .dev = relaxed(table->range[i].dev),
                .region = relaxed(table->range[i].region),
        };
}

static struct bus_hit find(const struct bus_table *table, uint64_t address)
{
        for (;;) {
                unsigned before = atomic_load_explicit(&table->sequence, memory_order_acquire);
                struct bus_hit hit;

                if (before & 1) {
                        sched_yield();
                        continue;
                }
                hit = find_once(table, address);
                atomic_thread_fence(memory_order_acquire);
                if (relaxed(table->sequence) == before)
                        return hit;
        }
}

static void change_begin(struct bus_table *table)
{
        atomic_fetch_add_explicit(&table->sequence, 1, memory_order_relaxed);
        atomic_thread_fence(memory_order_release);
}

static void change_end(struct bus_table *table)
{
        atomic_fetch_add_explicit(&table->sequence, 1, memory_order_release);
}

static void range_copy(struct bus_range *to, const struct bus_range *from)
{
        atomic_store_explicit(&to->start, relaxed(from->start), memory_order_relaxed);
        atomic_store_explicit(&to->last, relaxed(from->last), memory_order_relaxed);
        atomic_store_explicit(&to->dev, relaxed(from->dev), memory_order_relaxed);
        atomic_store_explicit(&to->region, relaxed(from->region), memory_order_relaxed);
}

static void insert(struct bus_table *table, unsigned at, uint64_t start, uint64_t last, struct device *dev, unsigned region)
{
        unsigned count = relaxed(table->count);

        change_begin(table);
        for (unsigned i = count; i > at; i--)
                range_copy(&table->range[i], &table->range[i - 1]);
        atomic_store_explicit(&table->range[at].start, start, memory_order_relaxed);
        atomic_store_explicit(&table->range[at].last, last, memory_order_relaxed);
        atomic_store_explicit(&table->range[at].dev, dev, memory_order_relaxed);
        atomic_store_explicit(&table->range[at].region, region, memory_order_relaxed);
        atomic_store_explicit(&table->count, count + 1, memory_order_relaxed);
        change_end(table);
}

static int add_locked(struct bus_table *table, uint64_t start, uint64_t last, struct device *dev, unsigned region, struct err *err)
{
        unsigned at = first_not_below(table, start), count = relaxed(table->count);

        if (at < count && relaxed(table->range[at].start) <= last)
                return err_set(err, -EEXIST, "range 0x%" PRIx64 "-0x%" PRIx64 " of device %s overlaps that of device %s at 0x%" PRIx64,
                               start, last, dev->id, relaxed(table->range[at].dev)->id, relaxed(table->range[at].start));
        if (count == BUS_RANGES_MAX)
                return err_set(err, -ENOSPC, "no place on the bus for device %s: it has %d ranges already", dev->id, BUS_RANGES_MAX);
        insert(table, at, start, last, dev, region);
        return 0;
}

int bus_add(struct bus *bus, enum bus_space space, uint64_t start, uint64_t size_bytes, struct device *dev, unsigned region,
            struct err *err)
{
        uint64_t last = start + size_bytes - 1;
        int r;

        if (!size_bytes || last < start || (space == BUS_PORTS && last >= PORTS_END))
                return err_set(err, -EINVAL, "device %s cannot have %" PRIu64 " bytes at 0x%" PRIx64 " of the bus", dev->id, size_bytes,
                               start);
        pthread_mutex_lock(&bus->lock);
        r = add_locked(&bus->table[space], start, last, dev, region, err);
        pthread_mutex_unlock(&bus->lock);
        return r;
}

void bus_remove(struct bus *bus, enum bus_space space, uint64_t start, struct device *dev)
{
        struct bus_table *table = &bus->table[space];
        unsigned at, count;

        pthread_mutex_lock(&bus->lock);
        at = first_not_below(table, start);
        count = relaxed(table->count);
        if (at < count && relaxed(table->range[at].start) == start && relaxed(table->range[at].dev) == dev) {
                change_begin(table);
                for (unsigned i = at; i + 1 < count; i++)
                        range_copy(&table->range[i], &table->range[i + 1]);
                atomic_store_explicit(&table->count, count - 1, memory_order_relaxed);
                change_end(table);
        }
        pthread_mutex_unlock(&bus->lock);
}

static uint64_t ones(unsigned size_bytes)
{
        return size_bytes >= 8 ? UINT64_MAX : (UINT64_C(1) << (8 * size_bytes)) - 1;
}

static bool whole(const struct bus_hit *hit, uint64_t address, unsigned size_bytes)
{
        return is_power_of_two(size_bytes) && size_bytes <= 8 && hit->last - address >= size_bytes - 1;
}

static uint64_t read_hit(const struct bus_hit *hit, uint64_t address, unsigned size_bytes)
{
        uint64_t value;

        if (!hit->dev)
                return ones(size_bytes);
        pthread_mutex_lock(&hit->dev->lock);
        value = hit->dev->ops->read(hit->dev, hit->region, address - hit->start, size_bytes);
        pthread_mutex_unlock(&hit->dev->lock);
        return value & ones(size_bytes);
}

static void write_hit(const struct bus_hit *hit, uint64_t address, uint64_t value, unsigned size_bytes)
{
        if (!hit->dev)
                return;
        pthread_mutex_lock(&hit->dev->lock);
        hit->dev->ops->write(hit->dev, hit->region, address - hit->start, value & ones(size_bytes), size_bytes);
        pthread_mutex_unlock(&hit->dev->lock);
}

uint64_t bus_read(struct bus *bus, enum bus_space space, uint64_t address, unsigned size_bytes)
{
        struct bus_hit hit = find(&bus->table[space], address);
        uint64_t value = 0;

        if (whole(&hit, address, size_bytes))
                return read_hit(&hit, address, size_bytes);
        for (unsigned i = 0; i < size_bytes && i < 8; i++) {
                hit = find(&bus->table[space], address + i);
                value |= read_hit(&hit, address + i, 1) << (8 * i);
        }
        return value;
}

void bus_write(struct bus *bus, enum bus_space space, uint64_t address, uint64_t value, unsigned size_bytes)
{
        struct bus_hit hit = find(&bus->table[space], address);

        if (whole(&hit, address, size_bytes)) {
                write_hit(&hit, address, value, size_bytes);
                return;
        }
        for (unsigned i = 0; i < size_bytes && i < 8; i++) {
                hit = find(&bus->table[space], address + i);
                write_hit(&hit, address + i, value >> (8 * i), 1);
        }
}
