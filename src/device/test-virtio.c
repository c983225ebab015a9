/* The driver's side of virtio; see test-virtio.h. Written from virtio 1.2 §2.7, §2.8, §4.1, apart from the device's code. */
#include "device/test-virtio.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>

#include "device/board.h"

#define FAIL(...)                             \
        do {                                  \
                fprintf(stderr, __VA_ARGS__); \
                abort();                      \
        } while (0)

/* The machine */

static void msi_send(void *ctx, uint64_t address, uint32_t data)
{
        struct testbed *bed = ctx;

        if (data >= TEST_VECTORS)
                return;
        bed->interrupts[data]++;
        if (bed->on_interrupt)
                bed->on_interrupt(bed, data);
}

static void intx_set(void *ctx, unsigned number, bool level)
{
        ((struct testbed *)ctx)->line[number] = level;
}

struct fast_bell {
        uint64_t address;
        int fd;
};

static struct fast_bell fast[64];

static int doorbell(void *ctx, bool add, enum bus_space space, uint64_t address, unsigned size_bytes, bool match, uint32_t value,
                    int fd)
{
        struct testbed *bed = ctx;

        if (!bed->fast_doorbells)
                return -ENOTSUP;
        for (unsigned i = 0; i < ARRAY_SIZE(fast); i++) {
                if (add ? !fast[i].address : fast[i].address == address) {
                        fast[i] = (struct fast_bell){ .address = add ? address : 0, .fd = fd };
                        bed->doorbells += add ? 1 : -1u;
                        return 0;
                }
        }
        return -ENOSPC;
}

void testbed_init(struct testbed *bed)
{
        bool fast_doorbells = bed->fast_doorbells;
        struct err err = ERR_INIT;
        struct irq_line line[4];

        memset(bed, 0, sizeof(*bed));
        bed->fast_doorbells = fast_doorbells;
        if (uv_loop_init(&bed->loop) < 0 || guest_memory_init(&bed->mem, "test", &err) < 0 ||
            guest_memory_add(&bed->mem, 0, TEST_RAM_BYTES, &err) < 0 ||
            guest_memory_add(&bed->mem, TEST_HIGH_GPA, TEST_HIGH_BYTES, &err) < 0 ||
            guest_memory_add(&bed->mem, TEST_HIGH_GPA + TEST_HIGH_BYTES, TEST_HIGH_BYTES, &err) < 0)
                FAIL("testbed: %s\n", err.text);
        bed->host = (struct device_host){
                .loop = &bed->loop,
                .mem = &bed->mem,
                .msi = { .send = msi_send, .ctx = bed },
                .doorbell = doorbell,
                .ctx = bed,
        };
        for (unsigned i = 0; i < 4; i++)
                line[i] = (struct irq_line){ .set = intx_set, .ctx = bed, .number = i };
        if (bus_new(&bed->host.bus, &err) < 0 ||
            pci_bus_new(&bed->host, line, UINT64_C(1) << 36, UINT64_C(1) << 30, &bed->pci, &err) < 0)
                FAIL("testbed: %s\n", err.text);
        bed->free_gpa = 0x10000;
}

void testbed_run(struct testbed *bed)
{
        for (unsigned i = 0; i < 4; i++)
                uv_run(&bed->loop, UV_RUN_NOWAIT);
}

void testbed_done(struct testbed *bed)
{
        for (unsigned i = 0; uv_loop_alive(&bed->loop) && i < 10000; i++)
                uv_run(&bed->loop, UV_RUN_ONCE);
        pci_bus_free(bed->pci);
        bus_free(bed->host.bus);
        if (uv_loop_close(&bed->loop) < 0)
                FAIL("testbed: handles are left on the loop\n");
        guest_memory_done(&bed->mem);
}

bool testbed_wait(struct testbed *bed, bool (*condition)(void *ctx), void *ctx)
{
        uint64_t end = uv_hrtime() + UINT64_C(5000000000);

        while (!condition(ctx)) {
                struct pollfd fd = { .fd = uv_backend_fd(&bed->loop), .events = POLLIN };

                if (uv_hrtime() > end)
                        return false;
                poll(&fd, 1, 20);
                uv_run(&bed->loop, UV_RUN_NOWAIT);
        }
        return true;
}

uint64_t test_alloc(struct testbed *bed, uint64_t size_bytes)
{
        uint64_t gpa = bed->free_gpa;

        bed->free_gpa += align_up(size_bytes, GUEST_PAGE_SIZE);
        if (bed->free_gpa > TEST_RAM_BYTES)
                FAIL("testbed: out of guest memory\n");
        return gpa;
}

void *test_at(struct testbed *bed, uint64_t gpa, uint64_t size_bytes)
{
        void *at = guest_memory_at(&bed->mem, gpa, size_bytes);

        if (!at)
                FAIL("testbed: no guest memory at 0x%llx\n", (unsigned long long)gpa);
        return at;
}

/* The PCI driver */

uint64_t test_read(const struct test_driver *d, uint64_t address, unsigned size_bytes)
{
        uint64_t value = bus_read(d->bed->host.bus, BUS_MEMORY, address, size_bytes);

        return size_bytes < 8 ? value & ((UINT64_C(1) << (8 * size_bytes)) - 1) : value;
}

void test_write(const struct test_driver *d, uint64_t address, uint64_t value, unsigned size_bytes)
{
        bus_write(d->bed->host.bus, BUS_MEMORY, address, value, size_bytes);
}

static uint64_t bar_address(const struct test_driver *d, unsigned bar)
{
        uint64_t address = test_read(d, d->config + 0x10 + 4 * bar, 4);

        if ((address & 6) == 4)
                address |= test_read(d, d->config + 0x14 + 4 * bar, 4) << 32;
        return address & ~UINT64_C(15);
}

static void take_capability(struct test_driver *d, unsigned at)
{
        unsigned type = (unsigned)test_read(d, d->config + at + 3, 1);
        uint64_t address = bar_address(d, (unsigned)test_read(d, d->config + at + 4, 1)) + test_read(d, d->config + at + 8, 4);

        switch (type) {
        case 1:
                d->common = address;
                break;
        case 2:
                d->notify = address;
                d->notify_multiplier = (uint32_t)test_read(d, d->config + at + 16, 4);
                break;
        case 3:
                d->isr = address;
                break;
        case 4:
                d->device = address;
                break;
        case 5:
                d->window = at;
                break;
        }
}

bool test_driver_find(struct test_driver *d, struct testbed *bed, unsigned id)
{
        *d = (struct test_driver){ .bed = bed };
        for (unsigned slot = 0; slot < 32; slot++) {
                d->config = BOARD_ECAM + (slot << 15);
                if (test_read(d, d->config, 4) != ((0x1040u + id) << 16 | 0x1af4))
                        continue;
                if (test_read(d, d->config + 8, 1) < 1 || !(test_read(d, d->config + 6, 2) & 0x10))
                        return false;
                for (unsigned at = (unsigned)test_read(d, d->config + 0x34, 1), n = 0; at && n < 48; n++) {
                        if (test_read(d, d->config + at, 1) == 9)
                                take_capability(d, at);
                        at = (unsigned)test_read(d, d->config + at + 1, 1);
                }
                return d->common && d->notify && d->isr && d->window && d->notify_multiplier == 4;
        }
        return false;
}

uint8_t test_status(const struct test_driver *d)
{
        return (uint8_t)test_read(d, d->common + 20, 1);
}

uint64_t test_offered(const struct test_driver *d)
{
        uint64_t low;

        test_write(d, d->common, 0, 4);
        low = test_read(d, d->common + 4, 4);
        test_write(d, d->common, 1, 4);
        return low | test_read(d, d->common + 4, 4) << 32;
}

bool test_driver_start(struct test_driver *d, uint64_t features)
{
        test_write(d, d->common + 20, 0, 1);
        for (unsigned i = 0; test_status(d) && i < 1000; i++)
                testbed_run(d->bed);
        if (test_status(d))
                return false;
        test_write(d, d->common + 20, 1, 1);
        test_write(d, d->common + 20, 3, 1);
        for (unsigned i = 0; i < 2; i++) {
                test_write(d, d->common + 8, i, 4);
                test_write(d, d->common + 12, (uint32_t)(features >> 32 * i), 4);
        }
        test_write(d, d->common + 20, 11, 1);
        d->features = features;
        return test_status(d) & 8;
}

void test_driver_msix(struct test_driver *d)
{
        unsigned at = (unsigned)test_read(d, d->config + 0x34, 1), vectors;
        uint64_t table;

        while (at && test_read(d, d->config + at, 1) != 0x11)
                at = (unsigned)test_read(d, d->config + at + 1, 1);
        if (!at)
                FAIL("testbed: no MSI-X\n");
        vectors = (unsigned)(test_read(d, d->config + at + 2, 2) & 0x7ff) + 1;
        table = bar_address(d, (unsigned)test_read(d, d->config + at + 4, 4) & 7) + (test_read(d, d->config + at + 4, 4) & ~7u);
        for (unsigned i = 0; i < vectors; i++) {
                test_write(d, table + 16 * i, 0xfee00000, 4);
                test_write(d, table + 16 * i + 4, 0, 4);
                test_write(d, table + 16 * i + 8, i, 4);
                test_write(d, table + 16 * i + 12, 0, 4);
        }
        test_write(d, d->config + at + 2, 0x8000, 2);
        test_write(d, d->common + 16, 0, 2);
        d->msix = true;
}

void test_driver_ok(struct test_driver *d)
{
        test_write(d, d->common + 20, test_status(d) | 4, 1);
}

/* Rings */

static uint16_t get16(const uint8_t *at)
{
        return __atomic_load_n((const uint16_t *)at, __ATOMIC_ACQUIRE);
}

static void put16(uint8_t *at, uint16_t value)
{
        __atomic_store_n((uint16_t *)at, value, __ATOMIC_RELEASE);
}

static void put_desc(uint8_t *at, const struct test_buffer *buffer, uint16_t at12, uint16_t at14)
{
        memcpy(at, &buffer->gpa, 8);
        memcpy(at + 8, &buffer->size, 4);
        put16(at + 12, at12);
        put16(at + 14, at14);
}

void test_ring_init(struct test_ring *r, struct test_driver *d, unsigned queue, unsigned size)
{
        uint64_t features = d->features;

        memset(r, 0, sizeof(*r));
        r->d = d;
        r->queue = queue;
        r->packed = features >> VIRTIO_F_RING_PACKED & 1;
        r->event_idx = features >> VIRTIO_F_RING_EVENT_IDX & 1;
        r->indirect = features >> VIRTIO_F_RING_INDIRECT_DESC & 1;
        test_write(d, d->common + 22, queue, 2);
        r->size = size ? size : (unsigned)test_read(d, d->common + 24, 2);
        r->desc = test_alloc(d->bed, 16 * r->size);
        r->driver = test_alloc(d->bed, 6 + 2 * r->size);
        r->device = test_alloc(d->bed, 6 + 8 * r->size);
        r->desc_at = test_at(d->bed, r->desc, 16 * r->size);
        r->driver_at = test_at(d->bed, r->driver, 6 + 2 * r->size);
        r->device_at = test_at(d->bed, r->device, 6 + 8 * r->size);
        memset(r->desc_at, 0, 16 * r->size);
        memset(r->driver_at, 0, 6 + 2 * r->size);
        memset(r->device_at, 0, 6 + 8 * r->size);
        r->avail_wrap = r->used_wrap = true;
        r->free_slots = r->size;
        for (unsigned i = 0; i < r->size; i++) {
                r->free_ids[r->ids++] = (uint16_t)(r->size - 1 - i);
                r->desc_next[i] = (uint16_t)(i + 1);
        }
        test_write(d, d->common + 24, r->size, 2);
        if (d->msix)
                test_write(d, d->common + 26, queue + 1, 2);
        for (unsigned i = 0; i < 2; i++) {
                test_write(d, d->common + 32 + 4 * i, (uint32_t)(r->desc >> 32 * i), 4);
                test_write(d, d->common + 40 + 4 * i, (uint32_t)(r->driver >> 32 * i), 4);
                test_write(d, d->common + 48 + 4 * i, (uint32_t)(r->device >> 32 * i), 4);
        }
        test_write(d, d->common + 28, 1, 2);
}

static uint16_t packed_flags(bool wrap, bool in, bool next)
{
        return (uint16_t)((wrap ? 0x80 : 0x8000) | (in ? 2 : 0) | (next ? 1 : 0));
}

static struct test_buffer make_table(struct test_ring *r, unsigned id, const struct test_buffer *all, unsigned outs,
                                     unsigned count)
{
        uint8_t *at;

        if (!r->table[id])
                r->table[id] = test_alloc(r->d->bed, 16 * TEST_INDIRECT_MAX);
        at = test_at(r->d->bed, r->table[id], 16 * TEST_INDIRECT_MAX);
        for (unsigned i = 0; i < count; i++) {
                uint16_t flags = i >= outs ? 2 : 0;

                if (r->packed)
                        put_desc(at + 16 * i, &all[i], 0, flags);
                else
                        put_desc(at + 16 * i, &all[i], (uint16_t)(flags | (i + 1 < count)), (uint16_t)(i + 1));
        }
        return (struct test_buffer){ .gpa = r->table[id], .size = 16 * count };
}

static void add_packed(struct test_ring *r, unsigned id, const struct test_buffer *all, unsigned outs, unsigned count, bool table)
{
        unsigned first = r->avail, slot = first;
        uint16_t first_flags = 0;
        bool wrap = r->avail_wrap;

        for (unsigned i = 0; i < count; i++) {
                uint16_t flags =
                        table ? (uint16_t)(packed_flags(wrap, false, false) | 4) : packed_flags(wrap, i >= outs, i + 1 < count);

                if (i == 0) {
                        first_flags = flags;
                        put_desc(r->desc_at + 16 * slot, &all[i], (uint16_t)id, get16(r->desc_at + 16 * slot + 14));
                } else {
                        put_desc(r->desc_at + 16 * slot, &all[i], (uint16_t)id, flags);
                }
                if (++slot == r->size) {
                        slot = 0;
                        wrap = !wrap;
                }
        }
        /* The first is made available last (§2.8.21). */
        put16(r->desc_at + 16 * first + 14, first_flags);
        r->avail = (uint16_t)slot;
        r->avail_wrap = wrap;
        r->added += count;
}

static void add_split(struct test_ring *r, unsigned id, const struct test_buffer *all, unsigned outs, unsigned count, bool table)
{
        uint16_t head = r->free_desc, at = head;

        for (unsigned i = 0; i < count; i++) {
                uint16_t flags = table ? 4 : (uint16_t)((i >= outs ? 2 : 0) | (i + 1 < count));
                uint16_t next = r->desc_next[at];

                put_desc(r->desc_at + 16 * at, &all[i], flags, next);
                if (i + 1 == count)
                        r->free_desc = next;
                else
                        at = next;
        }
        r->head_of[head] = (uint16_t)id;
        put16(r->driver_at + 4 + 2 * (r->avail % r->size), head);
        r->avail++;
        put16(r->driver_at + 2, r->avail);
        r->added++;
}

bool test_ring_add(struct test_ring *r, const struct test_buffer *out, unsigned outs, const struct test_buffer *in, unsigned ins,
                   void *token)
{
        struct test_buffer all[TEST_INDIRECT_MAX], table;
        unsigned count = outs + ins;
        bool indirect = r->indirect && count > 1;
        unsigned slots = indirect ? 1 : count;
        unsigned id;

        if (slots > r->free_slots || !r->ids || count > TEST_INDIRECT_MAX)
                return false;
        for (unsigned i = 0; i < count; i++)
                all[i] = i < outs ? out[i] : in[i - outs];
        id = r->free_ids[--r->ids];
        r->token[id] = token;
        r->slots[id] = (uint16_t)slots;
        r->free_slots -= slots;
        if (indirect)
                table = make_table(r, id, all, outs, count);
        if (r->packed)
                add_packed(r, id, indirect ? &table : all, outs, slots, indirect);
        else
                add_split(r, id, indirect ? &table : all, outs, slots, indirect);
        return true;
}

void test_ring_notify(struct test_ring *r)
{
        uint64_t address = r->d->notify + r->queue * r->d->notify_multiplier;

        r->added = 0;
        for (unsigned i = 0; i < ARRAY_SIZE(fast); i++) {
                if (fast[i].address == address) {
                        uint64_t one = 1;

                        if (write(fast[i].fd, &one, sizeof(one)) < 0)
                                FAIL("testbed: doorbell\n");
                        return;
                }
        }
        test_write(r->d, address, r->queue, 2);
}

static bool passed(uint16_t event, uint16_t now, uint16_t old)
{
        return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

/* §2.7.10.1, §2.8.10 from the driver's side */
bool test_ring_kick(struct test_ring *r)
{
        uint16_t now = r->avail, old = (uint16_t)(r->avail - r->added), flags, at, event;
        bool wanted;

        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (!r->packed) {
                wanted = r->event_idx ? passed(get16(r->device_at + 4 + 8 * r->size), now, old) : !(get16(r->device_at) & 1);
        } else {
                flags = get16(r->device_at + 2);
                at = get16(r->device_at);
                event = at & 0x7fff;
                if (at >> 15 != r->avail_wrap)
                        event = (uint16_t)(event - r->size);
                wanted = flags == 2 ? passed(event, now, old) : flags != 1;
        }
        r->added = 0;
        if (wanted)
                test_ring_notify(r);
        return wanted;
}

static bool has_used(const struct test_ring *r)
{
        uint16_t flags;

        if (!r->packed)
                return get16(r->device_at + 2) != r->used;
        flags = get16(r->desc_at + 16 * r->used + 14);
        return !!(flags & 0x80) == r->used_wrap && !!(flags & 0x8000) == r->used_wrap;
}

static unsigned get_packed(struct test_ring *r, uint32_t *written)
{
        const uint8_t *at = r->desc_at + 16 * r->used;
        unsigned id = get16(at + 12);

        memcpy(written, at + 8, 4);
        if (id >= r->size || !r->token[id])
                FAIL("testbed: used id %u is not in flight\n", id);
        r->used = (uint16_t)(r->used + r->slots[id]);
        if (r->used >= r->size) {
                r->used = (uint16_t)(r->used - r->size);
                r->used_wrap = !r->used_wrap;
        }
        return id;
}

static unsigned get_split(struct test_ring *r, uint32_t *written)
{
        const uint8_t *at = r->device_at + 4 + 8 * (r->used % r->size);
        uint32_t head;
        uint16_t last;
        unsigned id;

        memcpy(&head, at, 4);
        memcpy(written, at + 4, 4);
        if (head >= r->size)
                FAIL("testbed: used head %u\n", head);
        id = r->head_of[head];
        last = (uint16_t)head;
        for (unsigned i = 1; i < r->slots[id]; i++)
                last = r->desc_next[last];
        r->desc_next[last] = r->free_desc;
        r->free_desc = (uint16_t)head;
        r->used++;
        return id;
}

unsigned test_ring_used(const struct test_ring *r)
{
        return r->packed ? has_used(r) : (uint16_t)(get16(r->device_at + 2) - r->used);
}

void *test_ring_get(struct test_ring *r, uint32_t *written)
{
        uint32_t bytes;
        unsigned id;
        void *token;

        if (!has_used(r))
                return NULL;
        id = r->packed ? get_packed(r, &bytes) : get_split(r, &bytes);
        token = r->token[id];
        if (!token)
                FAIL("testbed: id %u came back twice\n", id);
        r->token[id] = NULL;
        r->free_ids[r->ids++] = (uint16_t)id;
        r->free_slots += r->slots[id];
        if (written)
                *written = bytes;
        return token;
}

bool test_ring_interrupts(struct test_ring *r, bool on)
{
        if (r->packed) {
                if (on && r->event_idx)
                        put16(r->driver_at, (uint16_t)(r->used | r->used_wrap << 15));
                put16(r->driver_at + 2, !on ? 1 : r->event_idx ? 2 : 0);
        } else if (r->event_idx) {
                /* Off: an event that was passed already does not come for 2^16 buffers. */
                put16(r->driver_at + 4 + 2 * r->size, on ? r->used : (uint16_t)(r->used - 1));
        } else {
                put16(r->driver_at, !on);
        }
        if (!on)
                return false;
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        return has_used(r);
}
