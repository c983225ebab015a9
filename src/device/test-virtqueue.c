/* Queues of both formats and the transport, played by a driver through the bus; the device echoes. */
#include "base/test.h"

#include <errno.h>
#include <pthread.h>

#include "device/test-virtio.h"

#define ECHO_ID 40
#define ALL_RING_FEATURES                                                                      \
        (UINT64_C(1) << VIRTIO_F_RING_INDIRECT_DESC | UINT64_C(1) << VIRTIO_F_RING_EVENT_IDX | \
         UINT64_C(1) << VIRTIO_F_RING_PACKED)
#define VERSION_1 (UINT64_C(1) << VIRTIO_F_VERSION_1)

/* A device that copies what it reads to what it writes. */
struct echo {
        struct virtio v;
        struct virtio_iov iov;
        unsigned chains, notifies;
        bool hold_next; /* keep the next chain in flight */
        bool held;
        struct virtio_chain held_chain;
        struct virtio_iov held_iov;
        unsigned reverse;  /* give back in the other order, so many at a time */
        unsigned together; /* give back in groups of so many, each group at once */
};

static struct echo *to_echo(struct virtio *v)
{
        return container_of(v, struct echo, v);
}

static uint32_t copy(const struct virtio_chain *chain)
{
        uint8_t bytes[70000];
        size_t n = iov_to_buf(chain->out, chain->out_count, 0, bytes, sizeof(bytes));

        return (uint32_t)buf_to_iov(chain->in, chain->in_count, 0, bytes, n);
}

static void echo_reverse(struct echo *echo, unsigned queue)
{
        struct virtio_chain chain[16];
        struct virtio_iov *iov = calloc(16, sizeof(*iov));
        unsigned n = 0;

        while (n < echo->reverse && virtqueue_pop(&echo->v, queue, &iov[n], &chain[n]) > 0)
                n++;
        while (n--) {
                echo->chains++;
                virtqueue_push(&echo->v, queue, &chain[n], copy(&chain[n]));
        }
        virtqueue_interrupt(&echo->v, queue);
        free(iov);
}

static void echo_together(struct echo *echo, unsigned queue)
{
        struct virtio_chain chain[4] = { 0 };
        unsigned n = 0;

        while (virtqueue_pop(&echo->v, queue, &echo->iov, &chain[n]) > 0) {
                chain[n].written = copy(&chain[n]);
                chain[n].in_count = 0; /* echo->iov is the next one's now */
                if (++n == echo->together) {
                        virtqueue_push_together(&echo->v, queue, chain, n);
                        n = 0;
                }
        }
        while (n)
                virtqueue_unpop(&echo->v, queue, &chain[--n]);
        virtqueue_interrupt(&echo->v, queue);
}

static void echo_notify(struct virtio *v, unsigned queue)
{
        struct echo *echo = to_echo(v);
        struct virtio_chain chain;

        echo->notifies++;
        if (echo->hold_next) {
                if (virtqueue_pop(v, queue, &echo->held_iov, &echo->held_chain) <= 0)
                        return;
                echo->hold_next = false;
                echo->held = true;
                virtio_hold(v);
                return;
        }
        if (echo->reverse || echo->together) {
                (echo->together ? echo_together : echo_reverse)(echo, queue);
                return;
        }
        while (virtqueue_pop(v, queue, &echo->iov, &chain) > 0) {
                echo->chains++;
                virtqueue_push(v, queue, &chain, copy(&chain));
        }
        virtqueue_interrupt(v, queue);
}

static void echo_release(struct echo *echo)
{
        virtio_lock(&echo->v);
        echo->held = false;
        virtqueue_push(&echo->v, 0, &echo->held_chain, 0);
        virtqueue_interrupt(&echo->v, 0);
        virtio_release(&echo->v);
        virtio_unlock(&echo->v);
}

static uint64_t echo_features(struct virtio *v)
{
        return 1;
}

static void echo_config_read(struct virtio *v, uint32_t offset, void *to, unsigned size_bytes)
{
        static const uint8_t config[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };

        memcpy(to, config + offset, size_bytes);
}

static void echo_quiesce(struct virtio *v)
{
        if (to_echo(v)->held)
                echo_release(to_echo(v));
}

static void echo_free(struct virtio *v)
{
        virtio_done(v);
        free(to_echo(v));
}

static const struct virtio_ops echo_ops = {
        .name = "virtio-echo",
        .id = ECHO_ID,
        .class_code = 0x00ff00,
        .features = echo_features,
        .config_bytes = 8,
        .config_read = echo_config_read,
        .notify = echo_notify,
        .quiesce = echo_quiesce,
        .version = 1,
        .free = echo_free,
};

struct fixture {
        struct testbed bed;
        struct test_driver d;
        struct echo *echo;
        struct test_ring ring;
};

static struct echo *echo_new(struct testbed *bed, const char *id)
{
        static const uint16_t sizes[] = { 256, 8 };
        struct echo *echo = calloc(1, sizeof(*echo));
        struct err err = ERR_INIT;

        assert_int_equal(virtio_init(&echo->v, &bed->host, bed->pci, &echo_ops, id, sizes, 2, &err), 0);
        return echo;
}

static int setup(void **state)
{
        struct fixture *f = calloc(1, sizeof(*f));

        testbed_init(&f->bed);
        f->echo = echo_new(&f->bed, "virtio-echo0");
        assert_true(test_driver_find(&f->d, &f->bed, ECHO_ID));
        *state = f;
        return 0;
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        if (f->echo)
                device_end(&f->echo->v.pci.dev);
        testbed_done(&f->bed);
        free(f);
        return 0;
}

static void start(struct fixture *f, uint64_t features, unsigned queue, unsigned size)
{
        assert_true(test_driver_start(&f->d, features | VERSION_1));
        test_driver_msix(&f->d);
        test_ring_init(&f->ring, &f->d, queue, size);
        test_driver_ok(&f->d);
        testbed_run(&f->bed);
        assert_int_equal(test_status(&f->d), 15);
}

/* One buffer there and back in outs and ins pieces. */
static void echo_once(struct fixture *f, unsigned outs, unsigned ins, uint32_t piece, uint64_t gpa)
{
        struct test_buffer buffer[64];
        uint8_t *out = test_at(&f->bed, gpa, outs * piece);
        uint8_t *in = test_at(&f->bed, gpa + outs * piece, ins * piece);
        uint32_t written = 0;

        for (unsigned i = 0; i < outs * piece; i++)
                out[i] = (uint8_t)(i * 7 + outs + piece);
        memset(in, 0, ins * piece);
        for (unsigned i = 0; i < outs + ins; i++)
                buffer[i] = (struct test_buffer){ gpa + i * piece, piece };
        assert_true(test_ring_add(&f->ring, buffer, outs, buffer + outs, ins, f));
        test_ring_kick(&f->ring);
        testbed_run(&f->bed);
        assert_ptr_equal(test_ring_get(&f->ring, &written), f);
        assert_int_equal(written, MIN(outs, ins) * piece);
        assert_memory_equal(out, in, MIN(outs, ins) * piece);
        assert_false(test_ring_interrupts(&f->ring, true));
}

/* Every combination of ring features, with chains of different lengths over many rounds of a small ring. */
static void test_formats(void **state)
{
        struct fixture *f = *state;
        uint64_t gpa = test_alloc(&f->bed, 65536);

        for (unsigned mask = 0; mask < 8; mask++) {
                uint64_t features = (mask & 1 ? UINT64_C(1) << VIRTIO_F_RING_INDIRECT_DESC : 0) |
                                    (mask & 2 ? UINT64_C(1) << VIRTIO_F_RING_EVENT_IDX : 0) |
                                    (mask & 4 ? UINT64_C(1) << VIRTIO_F_RING_PACKED : 0);

                start(f, features, 1, 8);
                for (unsigned i = 0; i < 200; i++) {
                        f->ring.indirect = mask & 1 && i % 3;
                        echo_once(f, 1 + i % 4, 1 + i % 3, 1 + i, gpa);
                }
                assert_int_equal(f->bed.interrupts[2], 200 * (mask + 1));
        }
}

/* Split indices pass 2^16; a packed ring whose size is no power of two. */
static void test_wrap(void **state)
{
        struct fixture *f = *state;
        uint64_t gpa = test_alloc(&f->bed, 4096);

        start(f, UINT64_C(1) << VIRTIO_F_RING_EVENT_IDX, 1, 4);
        for (unsigned i = 0; i < 66000; i++)
                echo_once(f, 1, 1, 4, gpa);
        start(f, UINT64_C(1) << VIRTIO_F_RING_EVENT_IDX | UINT64_C(1) << VIRTIO_F_RING_PACKED, 1, 7);
        for (unsigned i = 0; i < 1000; i++)
                echo_once(f, 1 + i % 5, 2, 4, gpa);
}

static void test_full_and_out_of_order(void **state)
{
        struct fixture *f = *state;
        uint64_t gpa = test_alloc(&f->bed, 4096);
        static int tokens[16];

        for (unsigned packed = 0; packed < 2; packed++) {
                start(f, packed ? UINT64_C(1) << VIRTIO_F_RING_PACKED : 0, 1, 8);
                f->echo->reverse = 16;
                for (unsigned round = 0; round < 50; round++) {
                        struct test_buffer buffer = { gpa, 16 };
                        unsigned n = 0, back = 0;
                        int *token;

                        while (test_ring_add(&f->ring, NULL, 0, (struct test_buffer[]){ buffer, buffer }, 1 + (n + round) % 2,
                                             &tokens[n]))
                                n++;
                        test_ring_kick(&f->ring);
                        testbed_run(&f->bed);
                        while ((token = test_ring_get(&f->ring, NULL))) {
                                back++;
                                assert_ptr_equal(token, &tokens[n - back]);
                        }
                        assert_int_equal(back, n);
                }
                f->echo->reverse = 0;
        }
}

/* A buffer over the border of two regions takes two iovecs; ring areas must lie in one. */
static void test_regions(void **state)
{
        struct fixture *f = *state;
        uint64_t border = TEST_HIGH_GPA + TEST_HIGH_BYTES;
        struct test_buffer out = { border - 100, 300 }, in = { test_alloc(&f->bed, 4096), 300 };
        uint32_t written;

        start(f, 0, 0, 0);
        memset(test_at(&f->bed, border - 100, 100), 0x11, 100);
        memset(test_at(&f->bed, border, 200), 0x22, 200);
        assert_true(test_ring_add(&f->ring, &out, 1, &in, 1, f));
        test_ring_kick(&f->ring);
        testbed_run(&f->bed);
        assert_ptr_equal(test_ring_get(&f->ring, &written), f);
        assert_int_equal(written, 300);
        assert_int_equal(*(uint8_t *)test_at(&f->bed, in.gpa + 99, 1), 0x11);
        assert_int_equal(*(uint8_t *)test_at(&f->bed, in.gpa + 100, 1), 0x22);
}

/* What a driver must not do: the device stops, says so, and works again after a reset. */
static void expect_broken(struct fixture *f)
{
        testbed_run(&f->bed);
        assert_true(test_status(&f->d) & VIRTIO_STATUS_NEEDS_RESET);
        assert_true(f->echo->v.broken);
}

static void add_raw(struct fixture *f, struct test_buffer buffer, uint16_t flags, uint16_t next)
{
        memcpy(f->ring.desc_at, &buffer.gpa, 8);
        memcpy(f->ring.desc_at + 8, &buffer.size, 4);
        memcpy(f->ring.desc_at + 12, f->ring.packed ? &next : &flags, 2);
        memcpy(f->ring.desc_at + 14, f->ring.packed ? &flags : &next, 2);
}

static void publish(struct fixture *f)
{
        if (!f->ring.packed) {
                *(uint16_t *)(f->ring.driver_at + 4) = 0;
                *(uint16_t *)(f->ring.driver_at + 2) = 1;
        }
        test_ring_notify(&f->ring);
}

static void test_violations(void **state)
{
        struct fixture *f = *state;
        uint64_t gpa = test_alloc(&f->bed, 65536);
        uint64_t far = UINT64_MAX - 15;
        const struct {
                struct test_buffer buffer;
                uint16_t flags;
        } bad[] = {
                { { gpa, 16 }, 1 },                   /* loop: next is itself; packed: the list never ends */
                { { TEST_RAM_BYTES - 8, 16 }, 0 },    /* past the end of memory */
                { { TEST_RAM_BYTES + 4096, 16 }, 2 }, /* no memory */
                { { far, 32 }, 0 },                   /* address + length overflows */
                { { 0, UINT32_MAX }, 0 },
                { { gpa, 16 }, 4 }, /* indirect: table entry 0 is checked below */
                { { gpa, 8 }, 4 },  /* half a descriptor */
                { { gpa, 0 }, 4 },
                { { gpa, 16 }, 5 }, /* indirect with next */
                { { far, 16 }, 4 },
        };

        for (unsigned packed = 0; packed < 2; packed++) {
                for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
                        uint8_t *table = test_at(&f->bed, gpa, 16);

                        start(f, UINT64_C(1) << VIRTIO_F_RING_INDIRECT_DESC | (packed ? UINT64_C(1) << VIRTIO_F_RING_PACKED : 0),
                              1, 8);
                        memset(table, 0, 16);
                        table[packed ? 14 : 12] = 4; /* a table in a table */
                        if (packed && bad[i].flags == 1) {
                                for (unsigned n = 0; n < 8; n++) {
                                        add_raw(f, bad[i].buffer, 0x80 | 1, 0);
                                        memcpy(f->ring.desc_at + 16 * n, f->ring.desc_at, 16);
                                }
                        }
                        add_raw(f, bad[i].buffer, bad[i].flags | (packed ? 0x80 : 0), 0);
                        publish(f);
                        expect_broken(f);
                        assert_int_equal(f->bed.interrupts[0], i + 1 + packed * ARRAY_SIZE(bad));
                        /* Nothing moves until reset. */
                        test_ring_notify(&f->ring);
                        testbed_run(&f->bed);
                }
        }
        assert_int_equal(f->echo->chains, 0);
        start(f, 0, 1, 8);
        echo_once(f, 1, 1, 100, gpa);
}

static void test_more_violations(void **state)
{
        struct fixture *f = *state;
        uint64_t gpa = test_alloc(&f->bed, 4096);

        /* Index too far ahead; head out of range; indirect without the feature; writable before readable. */
        start(f, 0, 1, 8);
        *(uint16_t *)(f->ring.driver_at + 2) = 9;
        test_ring_notify(&f->ring);
        expect_broken(f);
        start(f, 0, 1, 8);
        *(uint16_t *)(f->ring.driver_at + 4) = 8;
        *(uint16_t *)(f->ring.driver_at + 2) = 1;
        test_ring_notify(&f->ring);
        expect_broken(f);
        start(f, 0, 1, 8);
        add_raw(f, (struct test_buffer){ gpa, 16 }, 4, 0);
        publish(f);
        expect_broken(f);
        start(f, 0, 1, 8);
        add_raw(f, (struct test_buffer){ gpa, 16 }, 3, 1);
        *(uint16_t *)(f->ring.desc_at + 16 + 8) = 4;
        publish(f);
        expect_broken(f);
        /* Status bits cleared; DRIVER_OK without FEATURES_OK. */
        start(f, 0, 1, 8);
        test_write(&f->d, f->d.common + 20, 1, 1);
        expect_broken(f);
        test_write(&f->d, f->d.common + 20, 0, 1);
        test_write(&f->d, f->d.common + 20, 7, 1);
        expect_broken(f);
}

static void enable_at(struct fixture *f, uint64_t desc, uint64_t driver, uint64_t device, unsigned size)
{
        const struct test_driver *d = &f->d;

        test_write(d, d->common + 22, 0, 2);
        test_write(d, d->common + 24, size, 2);
        test_write(d, d->common + 32, desc, 8);
        test_write(d, d->common + 40, driver, 8);
        test_write(d, d->common + 48, device, 8);
        test_write(d, d->common + 28, 1, 2);
}

static void test_enable(void **state)
{
        struct fixture *f = *state;
        const struct {
                uint64_t desc, driver, device;
                unsigned size;
                bool packed, good;
        } cases[] = {
                { 0x1000, 0x2000, 0x3000, 8, false, true },
                { 0x1008, 0x2000, 0x3000, 8, false, false },
                { 0x1000, 0x2001, 0x3000, 8, false, false },
                { 0x1000, 0x2002, 0x3000, 8, false, true },
                { 0x1000, 0x2002, 0x3000, 8, true, false },
                { 0x1000, 0x2000, 0x3002, 8, false, false },
                { 0x1000, 0x2000, 0x3000, 7, false, false },
                { 0x1000, 0x2000, 0x3000, 7, true, true },
                { 0x1000, 0x2000, 0x3000, 0, false, false },
                { 0x1000, 0x2000, 0x3000, 512, false, false },
                { TEST_RAM_BYTES - 112, 0x2000, 0x3000, 8, false, false },
                { TEST_RAM_BYTES - 128, 0x2000, 0x3000, 8, false, true },
                { UINT64_MAX - 15, 0x2000, 0x3000, 8, false, false },
                { 0x1000, 0x2000, TEST_HIGH_GPA + TEST_HIGH_BYTES - 64, 8, false, false },
                { 0x1000, UINT64_C(1) << 40, 0x3000, 8, false, false },
        };

        for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
                assert_true(test_driver_start(&f->d, VERSION_1 | (uint64_t)cases[i].packed << VIRTIO_F_RING_PACKED));
                enable_at(f, cases[i].desc, cases[i].driver, cases[i].device, cases[i].size);
                assert_int_equal(test_read(&f->d, f->d.common + 28, 2), cases[i].good);
                assert_int_equal(!!(test_status(&f->d) & VIRTIO_STATUS_NEEDS_RESET), !cases[i].good);
                /* What is on does not change. */
                test_write(&f->d, f->d.common + 32, 0x5000, 8);
                if (cases[i].good)
                        assert_int_equal(test_read(&f->d, f->d.common + 32, 8), cases[i].desc);
        }
        /* Not before FEATURES_OK. */
        test_write(&f->d, f->d.common + 20, 0, 1);
        enable_at(f, 0x1000, 0x2000, 0x3000, 8);
        assert_int_equal(test_read(&f->d, f->d.common + 28, 2), 0);
}

static void test_negotiation(void **state)
{
        struct fixture *f = *state;

        assert_int_equal(test_offered(&f->d), 1 | VERSION_1 | ALL_RING_FEATURES);
        assert_false(test_driver_start(&f->d, 1));             /* without VERSION_1 */
        assert_false(test_driver_start(&f->d, VERSION_1 | 2)); /* not offered */
        assert_false(test_driver_start(&f->d, VERSION_1 | UINT64_C(1) << 50));
        assert_true(test_driver_start(&f->d, VERSION_1 | 1));
        assert_int_equal(f->echo->v.features, VERSION_1 | 1);
        /* Fixed from here on. */
        test_write(&f->d, f->d.common + 8, 0, 4);
        test_write(&f->d, f->d.common + 12, 0, 4);
        assert_int_equal(test_read(&f->d, f->d.common + 12, 4), 1);
        assert_int_equal(test_read(&f->d, f->d.common + 18, 2), 2);
        test_write(&f->d, f->d.common + 22, 2, 2); /* no such queue */
        assert_int_equal(test_read(&f->d, f->d.common + 24, 2), 0);
        assert_int_equal(test_read(&f->d, f->d.common + 30, 2), 0);
        test_write(&f->d, f->d.common + 22, 1, 2);
        assert_int_equal(test_read(&f->d, f->d.common + 24, 2), 8);
        assert_int_equal(test_read(&f->d, f->d.common + 30, 2), 1);
        test_write(&f->d, f->d.common + 26, 2, 2);
        assert_int_equal(test_read(&f->d, f->d.common + 26, 2), 2);
        test_write(&f->d, f->d.common + 26, 3, 2); /* three vectors: 0-2 */
        assert_int_equal(test_read(&f->d, f->d.common + 26, 2), 0xffff);
        /* Device configuration: any size within it, 0 past it. */
        assert_int_equal(test_read(&f->d, f->d.device, 4), 0x04030201);
        assert_int_equal(test_read(&f->d, f->d.device + 6, 2), 0x0807);
        assert_int_equal(test_read(&f->d, f->d.device, 8), 0x0807060504030201);
        assert_int_equal(test_read(&f->d, f->d.device + 6, 4), 0);
}

/* §4.1.4.9 */
static void test_window(void **state)
{
        struct fixture *f = *state;
        uint64_t at = f->d.config + f->d.window;

        test_write(&f->d, at + 4, 0, 1);
        test_write(&f->d, at + 8, 0x2000, 4);
        test_write(&f->d, at + 12, 4, 4);
        assert_int_equal(test_read(&f->d, at + 16, 4), 0x04030201);
        test_write(&f->d, at + 12, 2, 4);
        test_write(&f->d, at + 8, 0x2002, 4);
        assert_int_equal(test_read(&f->d, at + 16, 2), 0x0403);
        test_write(&f->d, at + 8, 20, 4);
        test_write(&f->d, at + 12, 1, 4);
        test_write(&f->d, at + 16, 3, 1);
        assert_int_equal(test_status(&f->d), 3);
        /* Out of the BAR, unaligned, another BAR, a bad length: nothing happens. */
        test_write(&f->d, at + 8, 0x4000, 4);
        test_read(&f->d, at + 16, 4);
        test_write(&f->d, at + 8, 0xfffffffc, 4);
        test_write(&f->d, at + 12, 4, 4);
        test_write(&f->d, at + 16, 3, 4);
        test_write(&f->d, at + 8, 2, 4);
        test_read(&f->d, at + 16, 4);
        test_write(&f->d, at + 4, 2, 1);
        test_read(&f->d, at + 16, 4);
        test_write(&f->d, at + 12, 3, 4);
        test_read(&f->d, at + 16, 4);
        assert_int_equal(test_status(&f->d), 3);
}

static void test_intx(void **state)
{
        struct fixture *f = *state;
        uint64_t gpa = test_alloc(&f->bed, 4096);
        unsigned line = f->echo->v.pci.slot % 4;

        assert_true(test_driver_start(&f->d, VERSION_1));
        test_ring_init(&f->ring, &f->d, 1, 8);
        test_driver_ok(&f->d);
        testbed_run(&f->bed);
        assert_false(f->bed.line[line]);
        echo_once(f, 1, 1, 8, gpa);
        assert_true(f->bed.line[line]);
        assert_int_equal(test_read(&f->d, f->d.isr, 1), 1);
        assert_false(f->bed.line[line]);
        assert_int_equal(test_read(&f->d, f->d.isr, 1), 0);
        virtio_lock(&f->echo->v);
        virtio_config_changed(&f->echo->v);
        virtio_unlock(&f->echo->v);
        assert_true(f->bed.line[line]);
        assert_int_equal(test_read(&f->d, f->d.isr, 1), 2);
        echo_once(f, 1, 1, 8, gpa);
        test_write(&f->d, f->d.common + 20, 0, 1);
        assert_false(f->bed.line[line]);
}

/* The driver's side of suppression: none, then exactly one for a batch. */
static void test_interrupt_suppression(void **state)
{
        struct fixture *f = *state;
        uint64_t gpa = test_alloc(&f->bed, 4096);
        struct test_buffer buffer = { gpa, 8 };

        for (unsigned mask = 0; mask < 4; mask++) {
                unsigned before;

                start(f,
                      (mask & 1 ? UINT64_C(1) << VIRTIO_F_RING_EVENT_IDX : 0) |
                              (mask & 2 ? UINT64_C(1) << VIRTIO_F_RING_PACKED : 0),
                      1, 8);
                before = f->bed.interrupts[2];
                for (unsigned round = 0; round < 40; round++) {
                        assert_false(test_ring_interrupts(&f->ring, false));
                        for (unsigned i = 0; i < 3; i++)
                                assert_true(test_ring_add(&f->ring, &buffer, 1, NULL, 0, f));
                        test_ring_kick(&f->ring);
                        testbed_run(&f->bed);
                        assert_int_equal(f->bed.interrupts[2], before + round);
                        assert_true(test_ring_interrupts(&f->ring, true));
                        while (test_ring_get(&f->ring, NULL))
                                ;
                        assert_false(test_ring_interrupts(&f->ring, true));
                        for (unsigned i = 0; i < 3; i++)
                                assert_true(test_ring_add(&f->ring, &buffer, 1, NULL, 0, f));
                        test_ring_kick(&f->ring);
                        testbed_run(&f->bed);
                        assert_int_equal(f->bed.interrupts[2], before + round + 1);
                        while (test_ring_get(&f->ring, NULL))
                                ;
                }
        }
}

static void test_notify_suppression(void **state)
{
        struct fixture *f = *state;
        uint64_t gpa = test_alloc(&f->bed, 4096);
        struct test_buffer buffer = { gpa, 8 };

        for (unsigned mask = 0; mask < 4; mask++) {
                start(f,
                      (mask & 1 ? UINT64_C(1) << VIRTIO_F_RING_EVENT_IDX : 0) |
                              (mask & 2 ? UINT64_C(1) << VIRTIO_F_RING_PACKED : 0),
                      1, 8);
                for (unsigned round = 0; round < 40; round++) {
                        virtio_lock(&f->echo->v);
                        virtqueue_notifications(&f->echo->v, 1, false);
                        virtio_unlock(&f->echo->v);
                        assert_true(test_ring_add(&f->ring, &buffer, 1, NULL, 0, f));
                        /* With event index silence begins after the next notification at the latest. */
                        if (!(mask & 1))
                                assert_false(test_ring_kick(&f->ring));
                        else
                                test_ring_kick(&f->ring);
                        virtio_lock(&f->echo->v);
                        assert_true(virtqueue_notifications(&f->echo->v, 1, true));
                        virtio_unlock(&f->echo->v);
                        test_ring_notify(&f->ring);
                        testbed_run(&f->bed);
                        assert_non_null(test_ring_get(&f->ring, NULL));
                        assert_true(test_ring_add(&f->ring, &buffer, 1, NULL, 0, f));
                        assert_true(test_ring_kick(&f->ring));
                        testbed_run(&f->bed);
                        assert_non_null(test_ring_get(&f->ring, NULL));
                }
        }
}

static void test_unpop(void **state)
{
        struct fixture *f = *state;
        uint64_t gpa = test_alloc(&f->bed, 4096);
        struct test_buffer buffer[] = { { gpa, 8 }, { gpa + 64, 8 }, { gpa + 128, 8 } };
        struct virtio_chain a, b;
        struct virtio_iov *iov = calloc(2, sizeof(*iov));

        for (unsigned packed = 0; packed < 2; packed++) {
                start(f, packed ? UINT64_C(1) << VIRTIO_F_RING_PACKED : 0, 1, 8);
                for (unsigned round = 0; round < 20; round++) {
                        assert_true(test_ring_add(&f->ring, buffer, 2, buffer, 1, &a));
                        assert_true(test_ring_add(&f->ring, buffer, 3, NULL, 0, &b));
                        virtio_lock(&f->echo->v);
                        for (unsigned again = 0; again < 3; again++) {
                                assert_int_equal(virtqueue_pop(&f->echo->v, 1, &iov[0], &a), 1);
                                assert_int_equal(virtqueue_pop(&f->echo->v, 1, &iov[1], &b), 1);
                                assert_int_equal(a.out_bytes, 16);
                                assert_int_equal(a.in_bytes, 8);
                                assert_int_equal(b.out_bytes, 24);
                                assert_true(virtqueue_empty(&f->echo->v, 1));
                                virtqueue_unpop(&f->echo->v, 1, &b);
                                virtqueue_unpop(&f->echo->v, 1, &a);
                                assert_false(virtqueue_empty(&f->echo->v, 1));
                        }
                        virtio_unlock(&f->echo->v);
                        test_ring_notify(&f->ring);
                        testbed_run(&f->bed);
                        assert_ptr_equal(test_ring_get(&f->ring, NULL), &a);
                        assert_ptr_equal(test_ring_get(&f->ring, NULL), &b);
                }
        }
        free(iov);
}

/* A reset with work in flight is not over before the work is. */
static void test_reset_in_flight(void **state)
{
        struct fixture *f = *state;
        struct test_buffer in = { test_alloc(&f->bed, 4096), 8 };

        start(f, 0, 0, 8);
        f->echo->hold_next = true;
        assert_true(test_ring_add(&f->ring, NULL, 0, &in, 1, f));
        test_ring_kick(&f->ring);
        testbed_run(&f->bed);
        assert_true(f->echo->held);
        test_write(&f->d, f->d.common + 20, 0, 1);
        assert_int_not_equal(test_status(&f->d), 0);
        test_write(&f->d, f->d.common + 20, 1, 1);
        enable_at(f, 0x1000, 0x2000, 0x3000, 8);
        assert_int_equal(test_read(&f->d, f->d.common + 28, 2), 0);
        echo_release(f->echo);
        assert_int_equal(test_status(&f->d), 0);
        assert_null(test_ring_get(&f->ring, NULL));

        /* A machine's reset drains. */
        start(f, 0, 0, 8);
        f->echo->hold_next = true;
        assert_true(test_ring_add(&f->ring, NULL, 0, &in, 1, f));
        test_ring_kick(&f->ring);
        testbed_run(&f->bed);
        assert_true(f->echo->held);
        f->echo->v.pci.dev.ops->quiesce(&f->echo->v.pci.dev);
        assert_false(f->echo->held);
        /* As the machine does it: quiesced, and with the lock held. */
        virtio_lock(&f->echo->v);
        f->echo->v.pci.dev.ops->reset(&f->echo->v.pci.dev);
        virtio_unlock(&f->echo->v);
        assert_int_equal(test_status(&f->d), 0);
        f->echo->v.pci.dev.ops->resume(&f->echo->v.pci.dev);
        start(f, 0, 0, 8);
        echo_once(f, 1, 1, 8, in.gpa);
}

/* Saved in the middle of things, loaded into a device of another machine, which goes on. */
static void test_save_load(void **state)
{
        struct fixture *f = *state;

        for (unsigned mask = 0; mask < 8; mask++) {
                struct testbed other = { 0 };
                struct writer out = { 0 }, again = { 0 };
                struct err err = ERR_INIT;
                struct cursor in;
                struct record record;
                struct echo *echo;
                uint64_t gpa = test_alloc(&f->bed, 8192);

                start(f,
                      (mask & 1 ? UINT64_C(1) << VIRTIO_F_RING_EVENT_IDX : 0) |
                              (mask & 2 ? UINT64_C(1) << VIRTIO_F_RING_PACKED : 0) | 1,
                      1, 8);
                for (unsigned i = 0; i < 21; i++)
                        echo_once(f, 1 + i % 3, 1, 16, gpa);
                /* A buffer that nobody notified of. */
                assert_true(test_ring_add(&f->ring, &(struct test_buffer){ gpa, 16 }, 1, &(struct test_buffer){ gpa + 64, 16 }, 1,
                                          f));
                f->echo->v.pci.dev.ops->quiesce(&f->echo->v.pci.dev);
                device_record_save(&f->echo->v.pci.dev, &out);
                f->echo->v.pci.dev.ops->resume(&f->echo->v.pci.dev);

                testbed_init(&other);
                for (unsigned i = 0; i < other.mem.regions; i++)
                        memcpy(other.mem.region[i].host, f->bed.mem.region[i].host, other.mem.region[i].size_bytes);
                echo = echo_new(&other, "virtio-echo0");
                echo->v.pci.dev.ops->quiesce(&echo->v.pci.dev);
                in = cursor_from(out.bytes, out.size);
                assert_int_equal(record_next(&in, &record, &err), 0);
                virtio_lock(&echo->v);
                assert_int_equal(device_record_load(&echo->v.pci.dev, &record, &err), 0);
                virtio_unlock(&echo->v);
                device_record_save(&echo->v.pci.dev, &again);
                assert_int_equal(out.size, again.size);
                assert_memory_equal(out.bytes, again.bytes, out.size);
                echo->v.pci.dev.ops->resume(&echo->v.pci.dev);
                testbed_run(&other);
                assert_int_equal(echo->chains, 1);
                assert_int_equal(other.interrupts[2], 1);
                assert_int_equal(echo->v.features, f->echo->v.features);
                assert_int_equal(echo->v.status, 15);

                /* A record cut anywhere is refused and leaves the device reset. */
                for (size_t cut = 0; cut < out.size; cut += 1 + cut % 7) {
                        struct cursor body =
                                cursor_from(record.body.at, MIN(cut, (size_t)(record.body.end - record.body.at) - 1));

                        echo->v.pci.dev.ops->quiesce(&echo->v.pci.dev);
                        assert_true(echo->v.pci.dev.ops->load(&echo->v.pci.dev, record.version, &body, &err) < 0);
                        assert_int_equal(echo->v.status, 0);
                        assert_false(virtqueue_ready(&echo->v, 1));
                        echo->v.pci.dev.ops->resume(&echo->v.pci.dev);
                }
                device_end(&echo->v.pci.dev);
                testbed_done(&other);
                writer_done(&out);
                writer_done(&again);
        }
}

/* With an accelerator that signals eventfds: they follow the BAR, and go with the device. */
static void test_doorbells(void **state)
{
        struct fixture *f = *state;
        struct fixture fast = { .bed.fast_doorbells = true };
        uint64_t gpa, bar;

        testbed_init(&fast.bed);
        fast.echo = echo_new(&fast.bed, "virtio-echo0");
        assert_int_equal(fast.bed.doorbells, 2);
        assert_true(test_driver_find(&fast.d, &fast.bed, ECHO_ID));
        gpa = test_alloc(&fast.bed, 4096);
        start(&fast, 0, 1, 8);
        echo_once(&fast, 1, 1, 10, gpa);
        bar = fast.d.common;
        test_write(&fast.d, fast.d.config + 0x10, bar + 0x100000, 4);
        assert_true(test_driver_find(&fast.d, &fast.bed, ECHO_ID));
        assert_int_equal(fast.d.common, bar + 0x100000);
        fast.ring.d = &fast.d;
        assert_int_equal(fast.bed.doorbells, 2);
        echo_once(&fast, 1, 1, 10, gpa);
        test_write(&fast.d, fast.d.config + 4, 0, 2);
        assert_int_equal(fast.bed.doorbells, 0);
        test_write(&fast.d, fast.d.config + 4, 6, 2);
        echo_once(&fast, 1, 1, 10, gpa);
        device_end(&fast.echo->v.pci.dev);
        assert_int_equal(fast.bed.doorbells, 0);
        testbed_done(&fast.bed);
        (void)f;
}

/* Driver and device on threads of their own, each asleep unless told: no notification and no interrupt may be lost. */
struct race {
        struct fixture *f;
        pthread_mutex_t lock;
        pthread_cond_t interrupt;
        bool pending;
        bool failed;
        unsigned buffers;
        unsigned together; /* buffers that must be seen at once, 1 for none */
        uint64_t gpa;
        uv_async_t stop;
};

static void race_interrupt(struct testbed *bed, unsigned vector)
{
        struct race *race = bed->ctx;

        pthread_mutex_lock(&race->lock);
        race->pending = true;
        pthread_cond_signal(&race->interrupt);
        pthread_mutex_unlock(&race->lock);
}

static void race_wait(struct race *race)
{
        struct timespec end;

        clock_gettime(CLOCK_REALTIME, &end);
        end.tv_sec += 5;
        pthread_mutex_lock(&race->lock);
        while (!race->pending && !race->failed) {
                if (pthread_cond_timedwait(&race->interrupt, &race->lock, &end) == ETIMEDOUT)
                        race->failed = true;
        }
        race->pending = false;
        pthread_mutex_unlock(&race->lock);
}

static void *race_driver(void *arg)
{
        struct race *race = arg;
        struct test_ring *ring = &race->f->ring;
        struct test_buffer out = { race->gpa, 8 }, in = { race->gpa + 64, 8 };
        unsigned sent = 0, back = 0;

        while (back < race->buffers && !race->failed) {
                unsigned batch = (1 + sent % 5) * race->together;

                while (sent < race->buffers && batch-- && test_ring_add(ring, &out, 1, &in, 1, race))
                        sent++;
                test_ring_kick(ring);
                test_ring_interrupts(ring, false);
                /* Who looks all the time sees parts of a group, if there are any. */
                for (unsigned look = race->together > 1 ? 20000 : 0, used = 0; look && !used && back < sent; look--) {
                        used = test_ring_used(ring);
                        race->failed |= !ring->packed && used % race->together;
                }
                while (test_ring_get(ring, NULL)) {
                        if (back++ % race->together == 0) {
                                for (unsigned rest = 1; rest < race->together; rest++, back++)
                                        race->failed |= !test_ring_get(ring, NULL);
                        }
                }
                if (!test_ring_interrupts(ring, true) && (sent == race->buffers || ring->free_slots < 4) && back < sent)
                        race_wait(race);
        }
        uv_async_send(&race->stop);
        return NULL;
}

static void race_stop(uv_async_t *async)
{
        uv_stop(async->loop);
        uv_close((uv_handle_t *)async, NULL);
}

static void test_race(void **state)
{
        struct fixture *f = *state;

        for (unsigned mask = 0; mask < 8; mask++) {
                struct race race = {
                        .f = f,
                        .lock = PTHREAD_MUTEX_INITIALIZER,
                        .interrupt = PTHREAD_COND_INITIALIZER,
                        .buffers = 20000,
                        .together = mask & 4 ? 4 : 1,
                };
                pthread_t thread;

                f->echo->together = mask & 4;
                race.gpa = test_alloc(&f->bed, 4096);
                start(f,
                      (mask & 1 ? UINT64_C(1) << VIRTIO_F_RING_EVENT_IDX : 0) |
                              (mask & 2 ? UINT64_C(1) << VIRTIO_F_RING_PACKED : 0),
                      1, 8);
                f->bed.on_interrupt = race_interrupt;
                f->bed.ctx = &race;
                uv_async_init(&f->bed.loop, &race.stop, race_stop);
                pthread_create(&thread, NULL, race_driver, &race);
                uv_run(&f->bed.loop, UV_RUN_DEFAULT);
                pthread_join(thread, NULL);
                f->bed.on_interrupt = NULL;
                testbed_run(&f->bed);
                assert_false(race.failed);
        }
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_formats, setup, teardown),
                cmocka_unit_test_setup_teardown(test_wrap, setup, teardown),
                cmocka_unit_test_setup_teardown(test_full_and_out_of_order, setup, teardown),
                cmocka_unit_test_setup_teardown(test_regions, setup, teardown),
                cmocka_unit_test_setup_teardown(test_violations, setup, teardown),
                cmocka_unit_test_setup_teardown(test_more_violations, setup, teardown),
                cmocka_unit_test_setup_teardown(test_enable, setup, teardown),
                cmocka_unit_test_setup_teardown(test_negotiation, setup, teardown),
                cmocka_unit_test_setup_teardown(test_window, setup, teardown),
                cmocka_unit_test_setup_teardown(test_intx, setup, teardown),
                cmocka_unit_test_setup_teardown(test_interrupt_suppression, setup, teardown),
                cmocka_unit_test_setup_teardown(test_notify_suppression, setup, teardown),
                cmocka_unit_test_setup_teardown(test_unpop, setup, teardown),
                cmocka_unit_test_setup_teardown(test_reset_in_flight, setup, teardown),
                cmocka_unit_test_setup_teardown(test_save_load, setup, teardown),
                cmocka_unit_test_setup_teardown(test_doorbells, setup, teardown),
                cmocka_unit_test_setup_teardown(test_race, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
