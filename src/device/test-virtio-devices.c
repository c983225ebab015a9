/* Disk, console, entropy and balloon, played by a driver through the bus. */
#include "base/test.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "device/test-virtio.h"
#include "device/virtio-balloon.h"
#include "device/virtio-blk.h"
#include "device/virtio-console.h"
#include "device/virtio-rng.h"

#define VERSION_1 (UINT64_C(1) << VIRTIO_F_VERSION_1)
#define RING (UINT64_C(1) << VIRTIO_F_RING_INDIRECT_DESC | UINT64_C(1) << VIRTIO_F_RING_EVENT_IDX)
#define PACKED (UINT64_C(1) << VIRTIO_F_RING_PACKED)
#define DISK_BYTES (UINT64_C(4) << 20)

struct fixture {
        struct testbed bed;
        struct test_driver d;
        struct device *dev;
        struct block *disk;
        struct test_ring ring[5];
        char path[64];
        unsigned disk_flags;
        enum virtio_blk_on_error on_error;
        unsigned stalls;
        unsigned queues;
        /* console */
        uint8_t out[100000];
        size_t out_bytes, out_limit;
        unsigned readable;
        void *got;
        unsigned got_ring;
        uint32_t written;
};

static int setup(void **state)
{
        struct fixture *f = calloc(1, sizeof(*f));

        testbed_init(&f->bed);
        f->out_limit = sizeof(f->out);
        *state = f;
        return 0;
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        device_end(f->dev);
        block_close(f->disk);
        testbed_done(&f->bed);
        if (f->path[0])
                unlink(f->path);
        free(f);
        return 0;
}

static void start(struct fixture *f, unsigned id, uint64_t features, unsigned rings, unsigned size)
{
        assert_true(test_driver_find(&f->d, &f->bed, id));
        assert_true(test_driver_start(&f->d, features | VERSION_1));
        test_driver_msix(&f->d);
        for (unsigned i = 0; i < rings; i++)
                test_ring_init(&f->ring[i], &f->d, i, size);
        test_driver_ok(&f->d);
        testbed_run(&f->bed);
        assert_int_equal(test_status(&f->d), 15);
}

static bool got_one(void *ctx)
{
        struct fixture *f = ctx;

        f->got = test_ring_get(&f->ring[f->got_ring], &f->written);
        return f->got;
}

static void *wait_used(struct fixture *f, unsigned ring)
{
        f->got_ring = ring;
        assert_true(testbed_wait(&f->bed, got_one, f));
        return f->got;
}

/* Entropy */

static void test_rng(void **state)
{
        struct fixture *f = *state;
        uint64_t gpa = test_alloc(&f->bed, 16384);
        struct test_buffer in[] = { { gpa, 100 }, { gpa + 200, 60 } }, large = { gpa, 16384 }, out = { gpa, 4 };
        const uint8_t *bytes = test_at(&f->bed, gpa, 300);
        unsigned zeroes = 0;

        assert_int_equal(virtio_rng_new(&f->bed.host, f->bed.pci, "virtio-rng0", &f->dev, NULL), 0);
        for (unsigned packed = 0; packed < 2; packed++) {
                start(f, VIRTIO_RNG, RING | (packed ? PACKED : 0), 1, 8);
                assert_true(test_ring_add(&f->ring[0], NULL, 0, in, 2, f));
                test_ring_kick(&f->ring[0]);
                wait_used(f, 0);
                assert_int_equal(f->written, 160);
                for (unsigned i = 0; i < 260; i++)
                        zeroes += !bytes[i] && (i < 100 || i >= 200);
                assert_true(zeroes < 20);
                assert_int_equal(bytes[150], 0);
                assert_true(test_ring_add(&f->ring[0], NULL, 0, &large, 1, f));
                test_ring_kick(&f->ring[0]);
                wait_used(f, 0);
                assert_int_equal(f->written, 4096);
                memset(test_at(&f->bed, gpa, 16384), 0, 16384);
        }
        assert_true(test_ring_add(&f->ring[0], &out, 1, NULL, 0, f));
        test_ring_kick(&f->ring[0]);
        testbed_run(&f->bed);
        assert_true(test_status(&f->d) & VIRTIO_STATUS_NEEDS_RESET);
}

/* Console */

static size_t host_write(void *ctx, const uint8_t *bytes, size_t size_bytes)
{
        struct fixture *f = ctx;
        size_t n = MIN(size_bytes, f->out_limit - f->out_bytes);

        memcpy(f->out + f->out_bytes, bytes, n);
        f->out_bytes += n;
        return n;
}

static void host_readable(void *ctx)
{
        ((struct fixture *)ctx)->readable++;
}

static void new_console(struct fixture *f)
{
        struct char_backend backend = { .write = host_write, .readable = host_readable, .ctx = f };

        assert_int_equal(virtio_console_new(&f->bed.host, f->bed.pci, "virtio-console0", &backend, &f->dev, NULL), 0);
}

static void test_console_output(void **state)
{
        struct fixture *f = *state;
        uint64_t gpa = test_alloc(&f->bed, 65536);
        uint8_t *data = test_at(&f->bed, gpa, 30000);
        struct test_buffer out[] = { { gpa, 10000 }, { gpa + 10000, 20000 } };

        for (unsigned i = 0; i < 30000; i++)
                data[i] = (uint8_t)(i * 13 >> 2);
        new_console(f);
        for (unsigned packed = 0; packed < 2; packed++) {
                f->out_bytes = 0;
                f->out_limit = 100;
                start(f, VIRTIO_CONSOLE, RING | (packed ? PACKED : 0), 2, 8);
                assert_true(test_ring_add(&f->ring[1], out, 2, NULL, 0, f));
                test_ring_kick(&f->ring[1]);
                testbed_run(&f->bed);
                assert_int_equal(f->out_bytes, 100);
                assert_null(test_ring_get(&f->ring[1], NULL));
                /* The host takes the rest in steps; nothing is lost or doubled. */
                while (f->out_bytes < 30000) {
                        f->out_limit = MIN(f->out_limit + 5001, (size_t)30000);
                        virtio_console_writable(f->dev);
                        testbed_run(&f->bed);
                        assert_int_equal(f->out_bytes, f->out_limit);
                }
                assert_ptr_equal(wait_used(f, 1), f);
                assert_memory_equal(f->out, data, 30000);
        }
        /* Emergency write, also after a reset. */
        f->out_limit = sizeof(f->out);
        test_write(&f->d, f->d.common + 20, 0, 1);
        test_write(&f->d, f->d.device + 8, '!', 4);
        assert_int_equal(f->out[f->out_bytes - 1], '!');
}

static size_t host_takes_all(void *ctx, const uint8_t *bytes, size_t size_bytes)
{
        ((struct fixture *)ctx)->out_bytes += size_bytes;
        return size_bytes;
}

/* A chain that is longer than what one wake-up of the loop may cost comes whole all the same. */
static void test_console_long_chain(void **state)
{
        struct fixture *f = *state;
        struct char_backend backend = { .write = host_takes_all, .ctx = f };
        uint64_t gpa = test_alloc(&f->bed, 1500000);
        struct test_buffer out[7];

        for (unsigned i = 0; i < ARRAY_SIZE(out); i++)
                out[i] = (struct test_buffer){ gpa, 1500000 };
        assert_int_equal(virtio_console_new(&f->bed.host, f->bed.pci, "virtio-console0", &backend, &f->dev, NULL), 0);
        start(f, VIRTIO_CONSOLE, RING, 2, 8);
        assert_true(test_ring_add(&f->ring[1], out, ARRAY_SIZE(out), NULL, 0, f));
        test_ring_kick(&f->ring[1]);
        uv_run(&f->bed.loop, UV_RUN_NOWAIT);
        assert_in_range(f->out_bytes, 1, 2 << 20);
        assert_ptr_equal(wait_used(f, 1), f);
        assert_int_equal(f->out_bytes, 7 * 1500000);
        /* The next one starts at its beginning. */
        out[0].size = 1 << 20;
        assert_true(test_ring_add(&f->ring[1], out, 1, NULL, 0, f));
        test_ring_kick(&f->ring[1]);
        assert_ptr_equal(wait_used(f, 1), f);
        assert_int_equal(f->out_bytes, 7 * 1500000 + (1 << 20));
}

static void test_console_input(void **state)
{
        struct fixture *f = *state;
        uint64_t gpa = test_alloc(&f->bed, 65536);
        static uint8_t data[10000];
        size_t at = 0, seen = 0;

        for (unsigned i = 0; i < sizeof(data); i++)
                data[i] = (uint8_t)(i ^ i >> 7);
        new_console(f);
        start(f, VIRTIO_CONSOLE, RING, 2, 8);
        assert_int_equal(test_read(&f->d, f->d.device, 4), 80 | 25 << 16);
        /* Before there is a buffer it keeps a little and refuses the rest. */
        at = virtio_console_receive(f->dev, data, sizeof(data));
        assert_true(at > 100 && at < sizeof(data));
        assert_int_equal(f->readable, 0);
        while (seen < sizeof(data)) {
                struct test_buffer in = { gpa, 300 };

                assert_true(test_ring_add(&f->ring[0], NULL, 0, &in, 1, f));
                test_ring_kick(&f->ring[0]);
                wait_used(f, 0);
                assert_true(f->written > 0 && f->written <= 300);
                assert_memory_equal(test_at(&f->bed, gpa, 300), data + seen, f->written);
                seen += f->written;
                if (f->readable) {
                        f->readable = 0;
                        at += virtio_console_receive(f->dev, data + at, sizeof(data) - at);
                }
        }
        assert_int_equal(at, sizeof(data));
        /* Buffers first, then bytes. */
        assert_true(test_ring_add(&f->ring[0], NULL, 0, &(struct test_buffer){ gpa, 300 }, 1, f));
        test_ring_kick(&f->ring[0]);
        testbed_run(&f->bed);
        assert_int_equal(virtio_console_receive(f->dev, (const uint8_t *)"x", 1), 1);
        wait_used(f, 0);
        assert_int_equal(f->written, 1);

        virtio_console_resize(f->dev, 132, 50);
        assert_int_equal(test_read(&f->d, f->d.device, 4), 132 | 50 << 16);
        assert_int_equal(f->bed.interrupts[0], 1);
        assert_int_equal(test_read(&f->d, f->d.common + 21, 1), 1);
}

/* Balloon */

static uint64_t blocks(struct fixture *f)
{
        struct stat st;

        assert_int_equal(fstat(f->bed.mem.fd, &st), 0);
        return (uint64_t)st.st_blocks * 512;
}

static void test_balloon(void **state)
{
        struct fixture *f = *state;
        uint64_t gpa = test_alloc(&f->bed, 4096), pages = test_alloc(&f->bed, 64 * 4096);
        uint32_t *pfn = test_at(&f->bed, gpa, 4096);
        struct virtio_balloon_state balloon;
        uint64_t before;

        assert_int_equal(virtio_balloon_new(&f->bed.host, f->bed.pci, "virtio-balloon0", &f->dev, NULL), 0);
        start(f, VIRTIO_BALLOON, RING | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5, 5, 8);
        assert_int_equal(virtio_balloon_set_target(f->dev, UINT64_C(1) << 40, NULL), -EINVAL);
        assert_int_equal(virtio_balloon_set_target(f->dev, 64 * 4096 + 5, NULL), 0);
        assert_int_equal(f->bed.interrupts[0], 1);
        assert_int_equal(test_read(&f->d, f->d.device, 4), 64);

        memset(test_at(&f->bed, pages, 64 * 4096), 0xaa, 64 * 4096);
        for (unsigned i = 0; i < 64; i++)
                pfn[i] = (uint32_t)(pages / 4096) + (i * 37 + 5) % 64; /* any order */
        atomic_store(guest_region_code(&f->bed.mem.region[0], pages), GUEST_CODE_PRESENT);
        before = blocks(f);
        assert_true(test_ring_add(&f->ring[0], &(struct test_buffer){ gpa, 64 * 4 }, 1, NULL, 0, f));
        test_ring_kick(&f->ring[0]);
        wait_used(f, 0);
        assert_true(blocks(f) <= before - 60 * 4096); /* a page of a ring may have come */
        assert_int_not_equal(atomic_load(guest_region_code(&f->bed.mem.region[0], pages)), GUEST_CODE_PRESENT);
        assert_int_equal(*(uint8_t *)test_at(&f->bed, pages + 5000, 1), 0);
        test_write(&f->d, f->d.device + 4, 64, 4);
        virtio_balloon_get_state(f->dev, &balloon);
        assert_int_equal(balloon.actual_bytes, 64 * 4096);
        assert_int_equal(balloon.returned_bytes, 64 * 4096);
        assert_int_equal(balloon.target_bytes, 64 * 4096);
        assert_true(test_ring_add(&f->ring[1], &(struct test_buffer){ gpa, 64 * 4 }, 1, NULL, 0, f));
        test_ring_kick(&f->ring[1]);
        wait_used(f, 1);

        /* A free-page report; whole pages only. */
        memset(test_at(&f->bed, pages, 64 * 4096), 0xbb, 64 * 4096);
        before = blocks(f);
        assert_true(test_ring_add(&f->ring[4], NULL, 0, &(struct test_buffer){ pages + 100, 16 * 4096 }, 1, f));
        test_ring_kick(&f->ring[4]);
        wait_used(f, 4);
        assert_true(blocks(f) <= before - 13 * 4096);
        assert_int_equal(*(uint8_t *)test_at(&f->bed, pages + 4095, 1), 0xbb);
        assert_int_equal(*(uint8_t *)test_at(&f->bed, pages + 4096, 1), 0);
        /* Not with poison. */
        test_write(&f->d, f->d.device + 12, 0xaaaaaaaa, 4);
        assert_true(test_ring_add(&f->ring[4], NULL, 0, &(struct test_buffer){ pages + 32 * 4096, 4096 }, 1, f));
        test_ring_kick(&f->ring[4]);
        wait_used(f, 4);
        assert_int_equal(*(uint8_t *)test_at(&f->bed, pages + 32 * 4096, 1), 0xbb);

        pfn[0] = 0xffffffff;
        assert_true(test_ring_add(&f->ring[0], &(struct test_buffer){ gpa, 4 }, 1, NULL, 0, f));
        test_ring_kick(&f->ring[0]);
        testbed_run(&f->bed);
        assert_true(test_status(&f->d) & VIRTIO_STATUS_NEEDS_RESET);
}

/* Without hints Linux before 6.11 has the reports on queue 3. */
static void test_balloon_queue3(void **state)
{
        struct fixture *f = *state;
        uint64_t pages = test_alloc(&f->bed, 4096);

        assert_int_equal(virtio_balloon_new(&f->bed.host, f->bed.pci, "virtio-balloon0", &f->dev, NULL), 0);
        start(f, VIRTIO_BALLOON, RING | 1 << 1 | 1 << 5, 4, 8);
        memset(test_at(&f->bed, pages, 4096), 0xbb, 4096);
        assert_true(test_ring_add(&f->ring[3], NULL, 0, &(struct test_buffer){ pages, 4096 }, 1, f));
        test_ring_kick(&f->ring[3]);
        wait_used(f, 3);
        assert_int_equal(*(uint8_t *)test_at(&f->bed, pages, 1), 0);
}

/* One page a thousand times, and one more that is past what a chain may cost. */
static void test_balloon_long_chain(void **state)
{
        struct fixture *f = *state;
        uint64_t gpa = test_alloc(&f->bed, 8192), pages = test_alloc(&f->bed, 2 * 4096);
        uint32_t *pfn = test_at(&f->bed, gpa, 8192);
        uint8_t *bytes = test_at(&f->bed, pages, 2 * 4096);

        assert_int_equal(virtio_balloon_new(&f->bed.host, f->bed.pci, "virtio-balloon0", &f->dev, NULL), 0);
        start(f, VIRTIO_BALLOON, RING, 2, 8);
        memset(bytes, 0xaa, 2 * 4096);
        for (unsigned i = 0; i <= 1024; i++)
                pfn[i] = (uint32_t)(pages / 4096) + i / 1024;
        assert_true(test_ring_add(&f->ring[0], &(struct test_buffer){ gpa, 1025 * 4 }, 1, NULL, 0, f));
        test_ring_kick(&f->ring[0]);
        wait_used(f, 0);
        assert_int_equal(bytes[0], 0);
        assert_int_equal(bytes[4096], 0xaa);
}

static void test_balloon_stats(void **state)
{
        struct fixture *f = *state;
        uint64_t gpa = test_alloc(&f->bed, 4096);
        uint8_t *at = test_at(&f->bed, gpa, 40);
        struct virtio_balloon_stats stats;
        uint64_t value = 123456;
        uint16_t tag = 4;

        assert_int_equal(virtio_balloon_new(&f->bed.host, f->bed.pci, "virtio-balloon0", &f->dev, NULL), 0);
        start(f, VIRTIO_BALLOON, RING | 1 << 1, 3, 8);
        virtio_balloon_get_stats(f->dev, &stats);
        assert_int_equal(stats.updated_ns, 0);
        memcpy(at, &tag, 2);
        memcpy(at + 2, &value, 8);
        tag = 60000;
        memcpy(at + 10, &tag, 2);
        for (unsigned i = 0; i < 3; i++) {
                assert_true(test_ring_add(&f->ring[2], &(struct test_buffer){ gpa, 25 }, 1, NULL, 0, f));
                test_ring_kick(&f->ring[2]);
                testbed_run(&f->bed);
                /* It is kept until somebody asks. */
                assert_null(test_ring_get(&f->ring[2], NULL));
                virtio_balloon_get_stats(f->dev, &stats);
                assert_int_equal(stats.free_memory, 123456);
                assert_true(stats.total_memory == UINT64_MAX && stats.updated_ns);
                wait_used(f, 2);
        }
}

/* Disk */

static void new_disk(struct fixture *f, unsigned queues)
{
        const struct virtio_blk_config config = { .serial = "serial-1", .queues = queues, .on_error = f->on_error };
        struct err err = ERR_INIT;
        int fd;

        snprintf(f->path, sizeof(f->path), "/tmp/virta-blk-XXXXXX");
        fd = mkstemp(f->path);
        assert_true(fd >= 0);
        assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
        close(fd);
        if (block_open(&(struct block_opening){ .loop = &f->bed.loop, .path = f->path, .flags = f->disk_flags }, &f->disk, &err) < 0 ||
            virtio_blk_new(&f->bed.host, f->bed.pci, "virtio-blk0", f->disk, &config, &f->dev, &err) < 0)
                fail_msg("%s", err.text);
        f->queues = queues;
}

#define BLK_FEATURES (RING | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 14)

struct blk_slot {
        uint64_t gpa; /* header at 0, status at 16, data at 4096 */
};

static struct blk_slot new_slot(struct fixture *f, uint64_t data_bytes)
{
        return (struct blk_slot){ test_alloc(&f->bed, 4096 + data_bytes) };
}

static uint8_t *slot_data(struct fixture *f, const struct blk_slot *slot)
{
        return test_at(&f->bed, slot->gpa + 4096, 1);
}

static bool blk_add(struct fixture *f, unsigned ring, struct blk_slot *slot, uint32_t type, uint64_t sector, uint32_t bytes)
{
        struct {
                uint32_t type, reserved;
                uint64_t sector;
        } header = { type, 0, sector };
        struct test_buffer out[3], in[3];
        unsigned outs = 0, ins = 0;
        bool data_in = type == 0 || type == 8;

        memcpy(test_at(&f->bed, slot->gpa, 16), &header, 16);
        *(uint8_t *)test_at(&f->bed, slot->gpa + 16, 1) = 0xff;
        out[outs++] = (struct test_buffer){ slot->gpa, 16 };
        if (bytes > 512 && data_in) {
                in[ins++] = (struct test_buffer){ slot->gpa + 4096, 512 };
                in[ins++] = (struct test_buffer){ slot->gpa + 4096 + 512, bytes - 512 };
        } else if (bytes && data_in) {
                in[ins++] = (struct test_buffer){ slot->gpa + 4096, bytes };
        } else if (bytes) {
                out[outs++] = (struct test_buffer){ slot->gpa + 4096, bytes };
        }
        in[ins++] = (struct test_buffer){ slot->gpa + 16, 1 };
        return test_ring_add(&f->ring[ring], out, outs, in, ins, slot);
}

static uint8_t slot_status(struct fixture *f, const struct blk_slot *slot)
{
        return *(uint8_t *)test_at(&f->bed, slot->gpa + 16, 1);
}

static uint8_t blk_run(struct fixture *f, struct blk_slot *slot, uint32_t type, uint64_t sector, uint32_t bytes)
{
        assert_true(blk_add(f, 0, slot, type, sector, bytes));
        test_ring_kick(&f->ring[0]);
        assert_ptr_equal(wait_used(f, 0), slot);
        return slot_status(f, slot);
}

static void check_blk(void **state, unsigned flags)
{
        struct fixture *f = *state;
        struct blk_slot slot;
        uint8_t *data;

        f->disk_flags = flags;
        new_disk(f, 1);
        for (unsigned packed = 0; packed < 2; packed++) {
                start(f, VIRTIO_BLOCK, BLK_FEATURES | (packed ? PACKED : 0), 1, 16);
                assert_int_equal(test_read(&f->d, f->d.device, 8), DISK_BYTES / 512);
                assert_int_equal(test_read(&f->d, f->d.device + 20, 4), 512);
                slot = new_slot(f, 65536);
                data = slot_data(f, &slot);
                for (unsigned i = 0; i < 65536; i++)
                        data[i] = (uint8_t)(i * 11 >> 4);
                assert_int_equal(blk_run(f, &slot, 1, 100, 65536), 0);
                memset(data, 0, 65536);
                assert_int_equal(blk_run(f, &slot, 0, 100, 65536), 0);
                assert_int_equal(f->written, 65537);
                for (unsigned i = 0; i < 65536; i++)
                        assert_int_equal(data[i], (uint8_t)(i * 11 >> 4));
                assert_int_equal(blk_run(f, &slot, 4, 0, 0), 0);
                assert_int_equal(blk_run(f, &slot, 8, 0, 20), 0);
                assert_string_equal((char *)data, "serial-1");
                /* The last sector, the first that is not there, and sectors that overflow. */
                assert_int_equal(blk_run(f, &slot, 0, DISK_BYTES / 512 - 1, 512), 0);
                assert_int_equal(blk_run(f, &slot, 0, DISK_BYTES / 512, 512), 1);
                assert_int_equal(blk_run(f, &slot, 1, DISK_BYTES / 512 - 1, 1024), 1);
                assert_int_equal(blk_run(f, &slot, 0, UINT64_MAX, 512), 1);
                assert_int_equal(blk_run(f, &slot, 1, UINT64_MAX / 512, 512), 1);
                assert_int_equal(blk_run(f, &slot, 0, 0, 511), 1);
                assert_int_equal(blk_run(f, &slot, 77, 0, 512), 2);
                assert_int_equal(blk_run(f, &slot, 8, 0, 19), 1);
        }
}

static void test_blk(void **state)
{
        check_blk(state, 0);
}

static void test_blk_threads(void **state)
{
        check_blk(state, BLOCK_OPEN_NO_URING);
}

static void put_range(uint8_t *at, uint64_t sector, uint32_t sectors, uint32_t flags)
{
        memcpy(at, &sector, 8);
        memcpy(at + 8, &sectors, 4);
        memcpy(at + 12, &flags, 4);
}

static void test_blk_ranges(void **state)
{
        struct fixture *f = *state;
        struct blk_slot slot, ranges;
        uint8_t *data, *range;

        new_disk(f, 1);
        start(f, VIRTIO_BLOCK, BLK_FEATURES, 1, 16);
        slot = new_slot(f, 65536);
        ranges = new_slot(f, 4096);
        data = slot_data(f, &slot);
        range = slot_data(f, &ranges);
        memset(data, 0x99, 65536);
        assert_int_equal(blk_run(f, &slot, 1, 0, 65536), 0);
        put_range(range, 8, 8, 0);
        put_range(range + 16, 32, 16, 1);
        put_range(range + 32, 100, 1, 0);
        assert_int_equal(blk_run(f, &ranges, 13, 0, 48), 0);
        assert_int_equal(blk_run(f, &slot, 0, 0, 65536), 0);
        for (unsigned i = 0; i < 128; i++) {
                bool zero = (i >= 8 && i < 16) || (i >= 32 && i < 48) || i == 100;

                assert_int_equal(data[i * 512 + 17], zero ? 0 : 0x99);
        }
        put_range(range, 0, 128, 0);
        assert_int_equal(blk_run(f, &ranges, 11, 0, 16), 0);
        put_range(range, 0, 128, 1); /* unmap means nothing for discard */
        assert_int_equal(blk_run(f, &ranges, 11, 0, 16), 2);
        put_range(range, 0, 128, 2);
        assert_int_equal(blk_run(f, &ranges, 13, 0, 16), 2);
        put_range(range, DISK_BYTES / 512 - 1, 2, 0);
        assert_int_equal(blk_run(f, &ranges, 13, 0, 16), 1);
        put_range(range, UINT64_MAX, 2, 0);
        assert_int_equal(blk_run(f, &ranges, 13, 0, 16), 1);
        put_range(range, 0, UINT32_MAX, 0);
        assert_int_equal(blk_run(f, &ranges, 13, 0, 16), 1);
        assert_int_equal(blk_run(f, &ranges, 13, 0, 15), 1);
        assert_int_equal(blk_run(f, &ranges, 13, 0, 0), 1);
        assert_int_equal(blk_run(f, &ranges, 13, 0, 16 * 33), 1);
}

/* Where zeroes would have to be written there is little to wait for. */
static void test_blk_slow_zeroes(void **state)
{
        struct fixture *f = *state;
        struct blk_slot slot;
        uint8_t *range;

        new_disk(f, 1);
        f->disk->info.zeroes_bytes = 8192;
        start(f, VIRTIO_BLOCK, BLK_FEATURES, 1, 16);
        assert_int_equal(test_read(&f->d, f->d.device + 48, 4), 16);
        assert_int_equal(test_read(&f->d, f->d.device + 52, 4), 1);
        slot = new_slot(f, 4096);
        range = slot_data(f, &slot);
        put_range(range, 0, 16, 0);
        put_range(range + 16, 32, 1, 0);
        assert_int_equal(blk_run(f, &slot, 13, 0, 16), 0);
        assert_int_equal(blk_run(f, &slot, 13, 0, 32), 2);
        put_range(range, 0, 17, 0);
        assert_int_equal(blk_run(f, &slot, 13, 0, 16), 2);
        assert_int_equal(blk_run(f, &slot, 11, 0, 32), 0);
}

/* More requests than the device keeps in flight, on four queues at once, in both engines. */
static void check_blk_many(void **state, unsigned flags)
{
        struct fixture *f = *state;
        enum { PER_QUEUE = 100, ROUNDS = 3 };
        static struct blk_slot slot[4][PER_QUEUE];
        unsigned before, interrupts, back = 0;

        f->disk_flags = flags;
        new_disk(f, 4);
        start(f, VIRTIO_BLOCK, BLK_FEATURES | 1 << 12, 4, 256);
        assert_int_equal(test_read(&f->d, f->d.device + 34, 2), 4);
        for (unsigned q = 0; q < 4; q++) {
                for (unsigned i = 0; i < PER_QUEUE; i++)
                        slot[q][i] = new_slot(f, 512);
        }
        for (unsigned round = 0; round < ROUNDS; round++) {
                back = 0;
                before = f->bed.interrupts[1] + f->bed.interrupts[2] + f->bed.interrupts[3] + f->bed.interrupts[4];
                for (unsigned q = 0; q < 4; q++) {
                        for (unsigned i = 0; i < PER_QUEUE; i++) {
                                uint8_t *data = slot_data(f, &slot[q][i]);

                                if (round == 0)
                                        memset(data, (int)(q * 50 + i), 512);
                                else if (round == 1)
                                        memset(data, 0, 512);
                                assert_true(blk_add(f, q, &slot[q][i], round == 0 ? 1 : 0, q * PER_QUEUE + i, 512));
                        }
                        test_ring_kick(&f->ring[q]);
                }
                while (back < 4 * PER_QUEUE) {
                        for (unsigned q = 0; q < 4; q++) {
                                struct blk_slot *done;

                                while ((done = test_ring_get(&f->ring[q], NULL))) {
                                        assert_int_equal(slot_status(f, done), 0);
                                        back++;
                                }
                                test_ring_interrupts(&f->ring[q], true);
                        }
                        uv_run(&f->bed.loop, UV_RUN_NOWAIT);
                }
                /* One interrupt for a batch; threads that the driver keeps up with have batches of one. */
                interrupts = f->bed.interrupts[1] + f->bed.interrupts[2] + f->bed.interrupts[3] + f->bed.interrupts[4] - before;
                assert_in_range(interrupts, 1, flags ? 4 * PER_QUEUE : 300);
                for (unsigned q = 0; q < 4; q++) {
                        for (unsigned i = 0; i < PER_QUEUE; i++)
                                assert_int_equal(slot_data(f, &slot[q][i])[511], (uint8_t)(q * 50 + i));
                }
        }
}

static void test_blk_many(void **state)
{
        check_blk_many(state, 0);
}

static void test_blk_many_threads(void **state)
{
        check_blk_many(state, BLOCK_OPEN_NO_URING);
}

static void test_blk_readonly(void **state)
{
        struct fixture *f = *state;
        struct blk_slot slot;

        f->disk_flags = BLOCK_OPEN_READONLY;
        new_disk(f, 1);
        assert_true(test_driver_find(&f->d, &f->bed, VIRTIO_BLOCK));
        assert_int_equal(test_offered(&f->d) & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
        start(f, VIRTIO_BLOCK, RING | 1 << 5, 1, 16);
        slot = new_slot(f, 4096);
        assert_int_equal(blk_run(f, &slot, 0, 0, 4096), 0);
        assert_int_equal(blk_run(f, &slot, 1, 0, 4096), 1);
        assert_int_equal(blk_run(f, &slot, 13, 0, 16), 2);
}

static void test_blk_layouts(void **state)
{
        struct fixture *f = *state;
        uint64_t gpa = test_alloc(&f->bed, 8192);
        uint8_t *at = test_at(&f->bed, gpa, 8192);
        struct test_buffer out[20], in = { gpa + 4096, 513 }, two = { gpa + 4096, 2 }, short_out = { gpa, 15 },
                                    whole = { gpa, 16 };
        uint32_t type = 0;

        /* The header in single bytes; the status at the end of the data's buffer (§2.7.4.1). */
        new_disk(f, 1);
        start(f, VIRTIO_BLOCK, BLK_FEATURES, 1, 32);
        memset(at, 0, 16);
        for (unsigned i = 0; i < 16; i++)
                out[i] = (struct test_buffer){ gpa + i, 1 };
        at[4096 + 512] = 0xff;
        assert_true(test_ring_add(&f->ring[0], out, 16, &in, 1, f));
        test_ring_kick(&f->ring[0]);
        wait_used(f, 0);
        assert_int_equal(f->written, 513);
        assert_int_equal(at[4096 + 512], 0);
        /* A write whose in part has more than the status. */
        type = 1;
        memcpy(at, &type, 4);
        out[0] = whole;
        out[1] = (struct test_buffer){ gpa + 4096, 512 };
        assert_true(test_ring_add(&f->ring[0], out, 2, &two, 1, f));
        test_ring_kick(&f->ring[0]);
        wait_used(f, 0);
        assert_int_equal(at[4097], 0);
        /* No header, no status. */
        assert_true(test_ring_add(&f->ring[0], &short_out, 1, &in, 1, f));
        test_ring_kick(&f->ring[0]);
        testbed_run(&f->bed);
        assert_true(test_status(&f->d) & VIRTIO_STATUS_NEEDS_RESET);
        start(f, VIRTIO_BLOCK, BLK_FEATURES, 1, 32);
        assert_true(test_ring_add(&f->ring[0], &whole, 1, NULL, 0, f));
        test_ring_kick(&f->ring[0]);
        testbed_run(&f->bed);
        assert_true(test_status(&f->d) & VIRTIO_STATUS_NEEDS_RESET);
}

/* The driver resets with I/O in flight, again and again: nothing is written to its memory once the status reads 0. */
static void test_blk_reset(void **state)
{
        struct fixture *f = *state;

        f->disk_flags = BLOCK_OPEN_NO_URING; /* the slower one */
        new_disk(f, 1);
        for (unsigned round = 0; round < 20; round++) {
                struct blk_slot slot[8];

                f->bed.free_gpa = 0x10000;
                start(f, VIRTIO_BLOCK, BLK_FEATURES | (round & 1 ? PACKED : 0), 1, 64);
                for (unsigned i = 0; i < 8; i++) {
                        slot[i] = new_slot(f, 65536);
                        assert_true(blk_add(f, 0, &slot[i], 0, 0, 65536));
                }
                test_ring_notify(&f->ring[0]);
                uv_run(&f->bed.loop, UV_RUN_NOWAIT);
                test_write(&f->d, f->d.common + 20, 0, 1);
                for (unsigned i = 0; test_status(&f->d) && i < 100000; i++)
                        uv_run(&f->bed.loop, UV_RUN_NOWAIT);
                assert_int_equal(test_status(&f->d), 0);
                assert_int_equal(f->disk->in_flight, 0);
                for (unsigned i = 0; i < 8; i++)
                        memset(slot_data(f, &slot[i]), 0xee, 65536);
                testbed_run(&f->bed);
                for (unsigned i = 0; i < 8; i++)
                        assert_int_equal(slot_data(f, &slot[i])[65535], 0xee);
        }
        /* And the device ends with I/O in flight (teardown). */
        start(f, VIRTIO_BLOCK, BLK_FEATURES, 1, 64);
        {
                struct blk_slot slot = new_slot(f, 65536);

                assert_true(blk_add(f, 0, &slot, 0, 0, 65536));
                test_ring_notify(&f->ring[0]);
                uv_run(&f->bed.loop, UV_RUN_NOWAIT);
        }
}

static void count_stall(void *ctx, const char *id, const char *why)
{
        assert_string_equal(id, "virtio-blk0");
        assert_non_null(strstr(why, "cannot write /tmp/virta-blk-"));
        ((struct fixture *)ctx)->stalls++;
}

/* Writes to the host's files fail from here on, or do not. */
static void writes_fail(bool fail)
{
        struct rlimit limit;

        signal(SIGXFSZ, SIG_IGN);
        getrlimit(RLIMIT_FSIZE, &limit);
        limit.rlim_cur = fail ? 0 : limit.rlim_max;
        setrlimit(RLIMIT_FSIZE, &limit);
}

/* With parked, the requests that are saved wait for the host. */
static void check_save_load(struct fixture *f, uint64_t features, bool parked)
{
        struct fixture other = { .disk_flags = BLOCK_OPEN_NO_LOCK };
        struct writer out = { 0 };
        struct err err = ERR_INIT;
        struct record record;
        struct cursor in;
        struct blk_slot slot[8];

        f->disk_flags = parked ? BLOCK_OPEN_NO_URING : 0;
        f->on_error = VIRTIO_BLK_PAUSE;
        f->bed.host.stall = count_stall;
        f->bed.host.ctx = f;
        new_disk(f, 2);
        start(f, VIRTIO_BLOCK, BLK_FEATURES | 1 << 12 | features, 2, 16);
        writes_fail(parked);
        for (unsigned i = 0; i < 8; i++) {
                slot[i] = new_slot(f, 4096);
                memset(slot_data(f, &slot[i]), (int)(i + 1), 4096);
                assert_true(blk_add(f, i % 2, &slot[i], 1, i * 8, 4096));
        }
        test_ring_notify(&f->ring[0]); /* queue 1 is served after the load */
        uv_run(&f->bed.loop, UV_RUN_NOWAIT);
        test_write(&f->d, f->d.device + 32, 0, 1);
        f->dev->ops->quiesce(f->dev);
        assert_int_equal(f->disk->in_flight, 0);
        device_record_save(f->dev, &out);
        writes_fail(false);
        assert_int_equal(f->stalls, parked ? 4 : 0);

        testbed_init(&other.bed);
        for (unsigned i = 0; i < other.bed.mem.regions; i++)
                memcpy(other.bed.mem.region[i].host, f->bed.mem.region[i].host, other.bed.mem.region[i].size_bytes);
        assert_int_equal(block_open(&(struct block_opening){ .loop = &other.bed.loop, .path = f->path, .flags = BLOCK_OPEN_NO_LOCK }, &other.disk, &err), 0);
        assert_int_equal(virtio_blk_new(&other.bed.host, other.bed.pci, "virtio-blk0", other.disk, &(struct virtio_blk_config){ .queues = 2 },
                                        &other.dev, &err), 0);
        other.dev->ops->quiesce(other.dev);
        in = cursor_from(out.bytes, out.size);
        assert_int_equal(record_next(&in, &record, &err), 0);
        if (device_record_load(other.dev, &record, &err) < 0)
                fail_msg("%s", err.text);
        other.dev->ops->resume(other.dev);
        assert_true(test_driver_find(&other.d, &other.bed, VIRTIO_BLOCK));
        assert_int_equal(test_read(&other.d, other.d.device + 32, 1), 0);
        for (unsigned q = 0; q < 2; q++) {
                other.ring[q] = f->ring[q];
                other.ring[q].d = &other.d;
                other.ring[q].desc_at = test_at(&other.bed, f->ring[q].desc, 256);
                other.ring[q].driver_at = test_at(&other.bed, f->ring[q].driver, 4);
                other.ring[q].device_at = test_at(&other.bed, f->ring[q].device, 4);
                for (unsigned i = 0; i < 4; i++) {
                        struct blk_slot *done = wait_used(&other, q);

                        assert_int_equal(slot_status(&other, done), 0);
                }
        }
        device_end(other.dev);
        block_close(other.disk);
        testbed_done(&other.bed);
        writer_done(&out);
        f->dev->ops->resume(f->dev);
}

static void test_blk_save_load(void **state)
{
        check_save_load(*state, PACKED, false);
}

static void test_blk_parked(void **state)
{
        check_save_load(*state, 0, true);
}

static void test_blk_parked_packed(void **state)
{
        check_save_load(*state, PACKED, true);
}

/* The driver loses patience: its reset is over, and nothing of the past comes. */
static void test_blk_parked_reset(void **state)
{
        struct fixture *f = *state;
        struct blk_slot slot;

        f->disk_flags = BLOCK_OPEN_NO_URING;
        f->on_error = VIRTIO_BLK_PAUSE;
        f->bed.host.stall = count_stall;
        f->bed.host.ctx = f;
        new_disk(f, 1);
        start(f, VIRTIO_BLOCK, BLK_FEATURES, 1, 16);
        slot = new_slot(f, 4096);
        writes_fail(true);
        assert_true(blk_add(f, 0, &slot, 1, 0, 4096));
        test_ring_notify(&f->ring[0]);
        while (!f->stalls)
                uv_run(&f->bed.loop, UV_RUN_ONCE);
        writes_fail(false);
        test_write(&f->d, f->d.common + 20, 0, 1);
        assert_int_equal(test_status(&f->d), 0);
        assert_int_equal(slot_status(f, &slot), 0xff);
        start(f, VIRTIO_BLOCK, BLK_FEATURES, 1, 16);
        assert_int_equal(blk_run(f, &slot, 1, 0, 4096), 0);
}

static void test_blk_resize(void **state)
{
        struct fixture *f = *state;
        struct blk_slot slot;

        new_disk(f, 1);
        start(f, VIRTIO_BLOCK, BLK_FEATURES, 1, 16);
        slot = new_slot(f, 512);
        assert_int_equal(blk_run(f, &slot, 0, DISK_BYTES / 512, 512), 1);
        assert_int_equal(truncate(f->path, 2 * DISK_BYTES), 0);
        assert_int_equal(virtio_blk_resized(f->dev, NULL), 0);
        assert_int_equal(f->bed.interrupts[0], 1);
        assert_int_equal(test_read(&f->d, f->d.device, 4), 2 * DISK_BYTES / 512);
        assert_int_equal(blk_run(f, &slot, 0, DISK_BYTES / 512, 512), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_rng),         TEST(test_console_output),   TEST(test_console_input),
                TEST(test_balloon),     TEST(test_balloon_queue3),   TEST(test_balloon_stats),
                TEST(test_balloon_long_chain), TEST(test_console_long_chain),
                TEST(test_blk),         TEST(test_blk_threads),      TEST(test_blk_ranges),  TEST(test_blk_slow_zeroes),
                TEST(test_blk_many),    TEST(test_blk_many_threads), TEST(test_blk_readonly),
                TEST(test_blk_layouts), TEST(test_blk_reset),        TEST(test_blk_save_load),
                TEST(test_blk_resize),  TEST(test_blk_parked),       TEST(test_blk_parked_packed), TEST(test_blk_parked_reset),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
