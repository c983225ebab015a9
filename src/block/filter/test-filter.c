/* Throttle, fault and checksum filters over a file in memory. */
#include "base/test.h"

#include <errno.h>
#include <fcntl.h>

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

/* ---- checksums ---- */

static struct memory_file *memory_of(struct fixture *f)
{
        return f->on.file;
}

static void open_checksum(struct fixture *f, const char *path)
{
        struct err err = ERR_INIT;

        if (block_checksum_new(&f->on.file->block, path, &f->on.disk, &err) < 0)
                fail_msg("%s", err.text);
}

/* As a crash leaves it; the file in memory stays. */
static void crash(struct fixture *f)
{
        struct block *file = block_detach(f->on.disk, BLOCK_FILE);

        assert_ptr_equal(file, &f->on.file->block);
        block_close(f->on.disk);
        f->on.disk = NULL;
        uv_run(&f->on.loop, UV_RUN_NOWAIT);
}

static uint32_t next_random(uint64_t *seed, uint32_t below)
{
        *seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        return (uint32_t)(*seed >> 33) % below;
}

static void random_requests(struct fixture *f, uint8_t *model, uint64_t *seed, unsigned count)
{
        static uint8_t bytes[1 << 18];

        for (unsigned n = 0; n < count; n++) {
                uint64_t at = next_random(seed, DISK_BYTES / 512) * UINT64_C(512);
                uint64_t size = MIN((1 + next_random(seed, next_random(seed, 2) ? 9 : 500)) * UINT64_C(512), DISK_BYTES - at);

                switch (next_random(seed, 8)) {
                case 0:
                        assert_int_equal(block_do(f->on.disk, BLOCK_WRITE_ZEROES, 0, at, size, NULL, 0), 0);
                        memset(model + at, 0, size);
                        break;
                case 1:
                        assert_int_equal(block_do(f->on.disk, BLOCK_DISCARD, 0, at, size, NULL, 0), 0);
                        memset(model + at, 0, size); /* as the file in memory does it */
                        break;
                case 2:
                        assert_int_equal(block_flush(f->on.disk), 0);
                        break;
                case 3:
                case 4:
                        assert_int_equal(block_read(f->on.disk, at, bytes, size), 0);
                        assert_memory_equal(bytes, model + at, size);
                        break;
                default:
                        memset(model + at, (int)(1 + next_random(seed, 255)), size);
                        assert_int_equal(block_write(f->on.disk, at, model + at, size), 0);
                }
        }
}

static void checksums(void **state)
{
        struct fixture *f = *state;
        uint8_t *model = calloc(1, DISK_BYTES), *seen = malloc(DISK_BYTES);
        char path[] = "/tmp/virta-checksum-XXXXXX";
        uint64_t seed = 5;
        struct err err = ERR_INIT;
        int fd;

        close(mkstemp(path));
        for (unsigned round = 0; round < 4; round++) {
                open_checksum(f, path);
                random_requests(f, model, &seed, 300);
                assert_int_equal(block_read(f->on.disk, 0, seen, DISK_BYTES), 0);
                assert_memory_equal(seen, model, DISK_BYTES);
                if (round % 2)
                        assert_int_equal(block_finish(f->on.disk, &err), 0);
                crash(f);
        }
        /* A bit turns: only its block cannot be read, until it is written anew. */
        memory_of(f)->bytes[5000001] ^= 4;
        open_checksum(f, path);
        assert_int_equal(block_read(f->on.disk, 0, seen, 4997120 - 512), 0);
        assert_int_equal(block_read(f->on.disk, 5000192 - 512, seen, 512), -EIO);
        assert_int_equal(block_write(f->on.disk, 4999680, model, 512), -EIO);
        assert_int_equal(block_read(f->on.disk, 5001216, seen, 4096), 0);
        assert_int_equal(block_write(f->on.disk, 4997120, model, 4096), 0);
        assert_int_equal(block_read(f->on.disk, 4997120, seen, 4096), 0);
        /* What was written long before a crash is watched over; what was written just then is not. */
        for (unsigned n = 0; n < 40; n++)
                assert_int_equal(block_flush(f->on.disk), 0);
        memset(model, 7, 4096);
        assert_int_equal(block_write(f->on.disk, 0, model, 4096), 0);
        crash(f);
        memory_of(f)->bytes[100] ^= 1;
        memory_of(f)->bytes[4997120] ^= 1;
        open_checksum(f, path);
        assert_int_equal(block_read(f->on.disk, 0, seen, 4096), 0);
        assert_int_equal(block_read(f->on.disk, 4997120, seen, 4096), -EIO);
        crash(f);
        assert_int_equal(truncate(path, 4096), 0);
        assert_int_equal(block_checksum_new(&f->on.file->block, "/dev/full", &f->on.disk, &err), -EINVAL);
        fd = open(path, O_WRONLY | O_CLOEXEC);
        assert_int_equal(pwrite(fd, "x", 1, 0), 1);
        close(fd);
        assert_int_equal(block_checksum_new(&f->on.file->block, path, &f->on.disk, &err), -EINVAL);
        assert_null(f->on.disk);
        unlink(path);
        free(model);
        free(seen);
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
                CASE(so_many_requests), CASE(so_many_bytes), CASE(larger_than_a_burst), CASE(a_group), CASE(faults), CASE(checksums), CASE(by_a_text),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
