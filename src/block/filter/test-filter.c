/* Throttle and fault filters over a file in memory. */
#include "base/test.h"

#include <errno.h>

#include "block/bitmap.h"
#include "block/filter/filter.h"
#include "block/test-memory.h"

#define DISK_BYTES (UINT64_C(8) << 20)

struct op {
        struct block_request req;
        struct iovec iov;
        unsigned *ended;
        int result;
};

struct fixture {
        struct memory_disk on;
        uint8_t bytes[1 << 20];
        unsigned ended;
        struct op op[64];
};

static int setup(void **state)
{
        struct fixture *f = calloc(1, sizeof(*f));

        memory_disk_begin(&f->on, DISK_BYTES);
        *state = f;
        return 0;
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        memory_disk_end(&f->on);
        free(f);
        return 0;
}

static void op_done(struct block_request *req, int result)
{
        struct op *op = container_of(req, struct op, req);

        op->result = result;
        ++*op->ended;
}

static void begin(struct fixture *f, struct block *disk, unsigned n, enum block_op kind, uint64_t size_bytes)
{
        struct op *op = &f->op[n];

        *op = (struct op){ .req = { .op = kind, .offset_bytes = n * size_bytes, .size_bytes = size_bytes, .iov = &op->iov, .iov_count = 1, .done = op_done },
                           .iov = { f->bytes, size_bytes }, .ended = &f->ended };
        block_submit(disk, &op->req);
        block_kick(disk);
}

static double run_until(struct fixture *f, unsigned ended)
{
        uint64_t start = uv_hrtime();

        while (f->ended < ended)
                uv_run(&f->on.loop, UV_RUN_ONCE);
        return (double)(uv_hrtime() - start) / 1e9;
}

static void filtered(struct fixture *f, const char *text)
{
        struct err err = ERR_INIT;

        if (block_filter_new(&f->on.file->block, text, &f->on.disk, &err) < 0)
                fail_msg("%s", err.text);
        assert_int_equal(f->on.disk->info.size_bytes, DISK_BYTES);
}

static void so_many_requests(void **state)
{
        struct fixture *f = *state;
        double seconds;

        filtered(f, "throttle:requests=100,burst-requests=5");
        for (unsigned n = 0; n < 25; n++)
                begin(f, f->on.disk, n, n % 2 ? BLOCK_READ : BLOCK_WRITE, 512);
        seconds = run_until(f, 5); /* at once */
        assert_true(seconds < 0.1);
        seconds += run_until(f, 25);
        assert_true(seconds > 0.18); /* 20 more at 100 a second; no upper bound, hosts are busy */
}

static void so_many_bytes(void **state)
{
        struct fixture *f = *state;
        double seconds;

        filtered(f, "throttle:written-bytes=1M,burst-written-bytes=64K");
        for (unsigned n = 0; n < 5; n++)
                begin(f, f->on.disk, n, BLOCK_WRITE, 65536);
        for (unsigned n = 5; n < 10; n++) /* behind them, though not limited */
                begin(f, f->on.disk, n, BLOCK_READ, 65536);
        seconds = run_until(f, 10);
        assert_true(seconds > 0.23);
        for (unsigned n = 0; n < 10; n++)
                assert_int_equal(f->op[n].result, 0);
}

static void larger_than_a_burst(void **state)
{
        struct fixture *f = *state;

        filtered(f, "throttle:bytes=4M,burst-bytes=4K");
        begin(f, f->on.disk, 0, BLOCK_WRITE, 1 << 20);
        assert_true(run_until(f, 1) < 0.2);
        begin(f, f->on.disk, 1, BLOCK_WRITE, 4096);
        assert_true(run_until(f, 2) > 0.2);
}

static void a_group(void **state)
{
        struct fixture *f = *state;
        struct block *other_file = &memory_file_new(&f->on.loop, NULL, 0)->block, *other;
        struct block_limits limits = { .requests = { .a_second = 100, .burst = 2 } };
        struct block_throttle_group *group;
        double seconds;

        assert_int_equal(block_resize(other_file, DISK_BYTES, NULL), 0);
        assert_int_equal(block_throttle_group_new(&f->on.loop, &limits, &group, NULL), 0);
        assert_int_equal(block_throttle_new(&f->on.file->block, group, &f->on.disk, NULL), 0);
        assert_int_equal(block_throttle_new(other_file, group, &other, NULL), 0);
        for (unsigned n = 0; n < 22; n++)
                begin(f, n % 2 ? other : f->on.disk, n, BLOCK_WRITE, 512);
        seconds = run_until(f, 22);
        assert_true(seconds > 0.18);
        for (unsigned n = 22; n < 62; n++)
                begin(f, n % 2 ? other : f->on.disk, n, BLOCK_WRITE, 512);
        block_close(other); /* what waits goes on */
        limits.requests.a_second = 0;
        block_throttle_group_set(group, &limits);
        run_until(f, 62);
        block_throttle_group_unref(group);
}

static void faults(void **state)
{
        static const struct block_fault rules[] = {
                { .ops = 1 << BLOCK_FLUSH, .error = -ENOSPC, .after = 1, .times = 2 },
                { .ops = 1 << BLOCK_WRITE, .error = -EIO, .from_bytes = 4096, .to_bytes = 8192 },
                { .ops = 1 << BLOCK_WRITE, .error = -ETIMEDOUT, .from_bytes = 1 << 20, .to_bytes = 2 << 20, .late = true },
                { .ops = 1 << BLOCK_READ, .error = -EIO, .chance = 500000, .seed = 7 },
        };
        struct fixture *f = *state;
        uint8_t seen[512];
        unsigned failed = 0;

        assert_int_equal(block_fault_new(&f->on.file->block, rules, ARRAY_SIZE(rules), &f->on.disk, NULL), 0);
        assert_int_equal(block_flush(f->on.disk), 0);
        assert_int_equal(block_flush(f->on.disk), -ENOSPC);
        assert_int_equal(block_flush(f->on.disk), -ENOSPC);
        assert_int_equal(block_flush(f->on.disk), 0);
        f->bytes[0] = 5;
        assert_int_equal(block_write(f->on.disk, 0, f->bytes, 4096), 0);
        assert_int_equal(block_write(f->on.disk, 0, f->bytes, 4097), -EIO);
        assert_int_equal(block_write(f->on.disk, 8192, f->bytes, 512), 0);
        assert_int_equal(block_write(f->on.disk, 1 << 20, f->bytes, 512), -ETIMEDOUT);
        assert_int_equal(block_read(&f->on.file->block, 1 << 20, seen, 512), 0);
        assert_int_equal(seen[0], 5);
        for (unsigned n = 0; n < 200; n++)
                failed += block_read(f->on.disk, 0, seen, 512) == -EIO;
        assert_in_range(failed, 60, 140);
        assert_int_equal(block_fault_count(f->on.disk, 3), failed);
        assert_int_equal(block_fault_count(f->on.disk, 0), 2);
}

static void by_a_text(void **state)
{
        static const char *const wrong[] = { "slow:requests=1", "throttle:requests", "throttle:requests=many", "throttle:color=1", "fault:errno=EFUN",
                                             "fault:op=dance", "fault:chance=2000000" };
        struct fixture *f = *state;
        struct err err = ERR_INIT;

        for (unsigned n = 0; n < ARRAY_SIZE(wrong); n++)
                assert_int_equal(block_filter_new(&f->on.file->block, wrong[n], &f->on.disk, &err), -EINVAL);
        filtered(f, "fault:op=write,op=flush,errno=ENOSPC,after=1");
        assert_int_equal(block_write(f->on.disk, 0, f->bytes, 512), 0);
        assert_int_equal(block_flush(f->on.disk), -ENOSPC);
        assert_int_equal(block_read(f->on.disk, 0, f->bytes, 512), 0);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = {
                CASE(so_many_requests), CASE(so_many_bytes), CASE(larger_than_a_burst), CASE(a_group), CASE(faults), CASE(by_a_text),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
