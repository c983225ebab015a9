/* Buses: which range answers, accesses that straddle, overlaps, changes while others look up. */
#include "device/test-board.h"

struct probe {
        struct device dev;
        unsigned reads, writes;
        uint64_t offset, value;
        unsigned region, size_bytes;
};

static uint64_t probe_read(struct device *dev, unsigned region, uint64_t offset, unsigned size_bytes)
{
        struct probe *p = container_of(dev, struct probe, dev);

        p->reads++;
        p->region = region;
        p->offset = offset;
        p->size_bytes = size_bytes;
        return 0x1122334455667788 + (region << 4) + offset;
}

static void probe_write(struct device *dev, unsigned region, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        struct probe *p = container_of(dev, struct probe, dev);

        p->writes++;
        p->region = region;
        p->offset = offset;
        p->size_bytes = size_bytes;
        p->value = value;
}

static const struct device_ops probe_ops = { .name = "probe", .read = probe_read, .write = probe_write };

static void test_access(void **state)
{
        struct bench *b = bench_new();
        struct probe p = { 0 };

        device_init(&p.dev, &probe_ops, "probe0");
        assert_int_equal(bus_add(b->host.bus, BUS_PORTS, 0x100, 8, &p.dev, 3, &b->err), 0);
        assert_int_equal(in(b, 0x104, 2), 0x77bc & 0xffff);
        assert_int_equal(p.region, 3);
        assert_int_equal(p.offset, 4);
        assert_int_equal(p.size_bytes, 2);
        out(b, 0x100, 0xabcdef01, 4);
        assert_int_equal(p.value, 0xabcdef01);
        bus_write(b->host.bus, BUS_PORTS, 0x101, 0xabcd, 1);
        assert_int_equal(p.value, 0xcd);
        /* Nobody. */
        assert_int_equal(in(b, 0x200, 4), 0xffffffff);
        assert_int_equal(in(b, 0xff, 1), 0xff);
        assert_true(mmio_in(b, 0x100, 8) == UINT64_MAX);
        out(b, 0x200, 1, 4);
        device_done(&p.dev);
        bench_free(b);
}

static void test_straddle(void **state)
{
        struct bench *b = bench_new();
        struct probe p = { 0 }, q = { 0 };

        device_init(&p.dev, &probe_ops, "probe0");
        device_init(&q.dev, &probe_ops, "probe1");
        assert_int_equal(bus_add(b->host.bus, BUS_MEMORY, 0x1000, 0x10, &p.dev, 0, &b->err), 0);
        assert_int_equal(bus_add(b->host.bus, BUS_MEMORY, 0x1010, 0x10, &q.dev, 0, &b->err), 0);
        /* Two bytes of each: 0x88 + offset. */
        assert_int_equal(mmio_in(b, 0x100e, 4), 0x89889796);
        assert_int_equal(p.reads, 2);
        assert_int_equal(q.reads, 2);
        /* The start is in nobody's range, the end is in p's; and past q's end. */
        assert_int_equal(mmio_in(b, 0xffe, 4), 0x8988ffff);
        assert_int_equal(mmio_in(b, 0x101f, 2), 0xff97);
        mmio_out(b, 0x100f, 0x0201, 2);
        assert_int_equal(p.value, 1);
        assert_int_equal(q.value, 2);
        assert_true(mmio_in(b, UINT64_MAX - 1, 8) == UINT64_MAX);
        device_done(&p.dev);
        device_done(&q.dev);
        bench_free(b);
}

static void test_overlap(void **state)
{
        struct bench *b = bench_new();
        struct probe p = { 0 }, q = { 0 };

        device_init(&p.dev, &probe_ops, "probe0");
        device_init(&q.dev, &probe_ops, "probe1");
        assert_int_equal(bus_add(b->host.bus, BUS_MEMORY, 0x1000, 0x1000, &p.dev, 0, &b->err), 0);
        assert_int_equal(bus_add(b->host.bus, BUS_MEMORY, 0x1fff, 1, &q.dev, 0, &b->err), -EEXIST);
        assert_non_null(strstr(b->err.text, "probe0"));
        assert_non_null(strstr(b->err.text, "probe1"));
        assert_int_equal(bus_add(b->host.bus, BUS_MEMORY, 0xfff, 2, &q.dev, 0, &b->err), -EEXIST);
        assert_int_equal(bus_add(b->host.bus, BUS_MEMORY, 0, 0x10000, &q.dev, 0, &b->err), -EEXIST);
        assert_int_equal(bus_add(b->host.bus, BUS_MEMORY, 0x2000, 0, &q.dev, 0, &b->err), -EINVAL);
        assert_int_equal(bus_add(b->host.bus, BUS_MEMORY, UINT64_MAX, 2, &q.dev, 0, &b->err), -EINVAL);
        assert_int_equal(bus_add(b->host.bus, BUS_PORTS, 0xfff8, 9, &q.dev, 0, &b->err), -EINVAL);
        assert_int_equal(bus_add(b->host.bus, BUS_MEMORY, 0x2000, 0x1000, &q.dev, 0, &b->err), 0);
        /* Another's range is not removed. */
        bus_remove(b->host.bus, BUS_MEMORY, 0x1000, &q.dev);
        bus_remove(b->host.bus, BUS_MEMORY, 0x1800, &p.dev);
        mmio_in(b, 0x1000, 1);
        assert_int_equal(p.reads, 1);
        bus_remove(b->host.bus, BUS_MEMORY, 0x1000, &p.dev);
        assert_int_equal(mmio_in(b, 0x1000, 1), 0xff);
        assert_int_equal(mmio_in(b, 0x2000, 1), 0x88);
        device_done(&p.dev);
        device_done(&q.dev);
        bench_free(b);
}

static void test_full(void **state)
{
        struct bench *b = bench_new();
        struct probe p = { 0 };
        unsigned added = 0;

        device_init(&p.dev, &probe_ops, "probe0");
        while (bus_add(b->host.bus, BUS_PORTS, (added * 7919 % 512) * 16, 16, &p.dev, added, &b->err) == 0)
                added++;
        assert_int_equal(b->err.code, -ENOSPC);
        for (unsigned i = 0; i < added; i++) {
                in(b, (uint16_t)((i * 7919 % 512) * 16 + 5), 1);
                assert_int_equal(p.region, i);
                assert_int_equal(p.offset, 5);
        }
        device_done(&p.dev);
        bench_free(b);
}

struct race {
        struct bus *bus;
        atomic_bool stop;
        unsigned wrong;
};

static void *look_up(void *arg)
{
        struct race *race = arg;

        while (!atomic_load(&race->stop)) {
                if (bus_read(race->bus, BUS_MEMORY, 0x8000, 1) != 0x88)
                        race->wrong++;
        }
        return NULL;
}

/* A range that stays is always found, whatever moves beside it. */
static void test_change_while_looking(void **state)
{
        struct bench *b = bench_new();
        struct probe p = { 0 }, q = { 0 };
        struct race race = { .bus = b->host.bus };
        pthread_t thread;

        device_init(&p.dev, &probe_ops, "probe0");
        device_init(&q.dev, &probe_ops, "probe1");
        assert_int_equal(bus_add(b->host.bus, BUS_MEMORY, 0x8000, 0x10, &p.dev, 0, &b->err), 0);
        assert_int_equal(pthread_create(&thread, NULL, look_up, &race), 0);
        for (unsigned i = 0; i < 20000; i++) {
                uint64_t start = (i * 37 % 64) * 0x100;

                assert_int_equal(bus_add(b->host.bus, BUS_MEMORY, start, 0x10, &q.dev, 0, &b->err), 0);
                bus_remove(b->host.bus, BUS_MEMORY, start, &q.dev);
        }
        atomic_store(&race.stop, true);
        pthread_join(thread, NULL);
        assert_int_equal(race.wrong, 0);
        device_done(&p.dev);
        device_done(&q.dev);
        bench_free(b);
}

static void test_clock(void **state)
{
        struct board_clock clock;
        uint64_t t;

        board_clock_init(&clock);
        t = board_clock_ns(&clock);
        assert_true(t < 1000000000);
        assert_true(board_clock_ns(&clock) >= t);
        board_clock_pause(&clock);
        t = board_clock_ns(&clock);
        for (volatile int i = 0; i < 100000; i++)
                ;
        assert_true(board_clock_ns(&clock) == t);
        board_clock_resume(&clock);
        assert_true(board_clock_ns(&clock) >= t && board_clock_ns(&clock) < t + 1000000000);
        /* An older guest than this host has been up. */
        board_clock_pause(&clock);
        board_clock_set(&clock, UINT64_C(1) << 60);
        board_clock_resume(&clock);
        assert_true(board_clock_ns(&clock) >= UINT64_C(1) << 60);
        assert_true(board_clock_host(&clock, (UINT64_C(1) << 60) + 5000000000) > monotonic_ns());
        assert_int_equal(board_clock_host(&clock, 5), 1);
        assert_true(board_clock_host(&clock, UINT64_MAX) == INT64_MAX);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_access),
                cmocka_unit_test(test_straddle),
                cmocka_unit_test(test_overlap),
                cmocka_unit_test(test_full),
                cmocka_unit_test(test_change_while_looking),
                cmocka_unit_test(test_clock),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
