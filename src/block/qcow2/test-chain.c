/*
 * A chain of a hundred images, each with something of its own, reads as a copy in memory says; and the figures of long chains, large images
 * and snapshots of them, which are printed. With an argument it reads for longer.
 */
#include "base/test.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/resource.h>

#include "base/log.h"
#include "block/test-requests.h"

#define IMAGES 100
#define DISK_BYTES (UINT64_C(16) << 20)
#define DEPTH 32

static unsigned reads = 3000;

struct op {
        struct block_request req;
        struct iovec iov;
        uint8_t bytes[4096];
        struct fixture *f;
};

struct fixture {
        struct model_disk m;
        unsigned left, under_way;
        struct op op[DEPTH];
};

static int setup(void **state)
{
        struct fixture *f = calloc(1, sizeof(*f));

        model_begin(&f->m, "chain", false);
        *state = f;
        return 0;
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        model_end(&f->m);
        free(f);
        return 0;
}

static void path_of(const struct fixture *f, unsigned n, char path[128])
{
        snprintf(path, 128, "%s/%u.qcow2", f->m.dir, n);
}

static void open_image(struct fixture *f, unsigned n, unsigned flags)
{
        struct block_opening opening = { .loop = &f->m.loop, .flags = flags | BLOCK_OPEN_NO_FLUSH | BLOCK_OPEN_NO_URING };
        struct err err = ERR_INIT;
        char path[128];

        path_of(f, n, path);
        opening.path = path;
        if (block_open(&opening, &f->m.disk, &err) < 0)
                fail_msg("%s", err.text);
}

static void create(struct fixture *f, unsigned n, uint64_t size_bytes, unsigned front_of)
{
        struct block_opening opening = { .loop = &f->m.loop, .flags = BLOCK_OPEN_NO_FLUSH };
        struct block_creation creation = { .size_bytes = size_bytes };
        struct err err = ERR_INIT;
        char path[128], backing[32];

        path_of(f, n, path);
        snprintf(backing, sizeof(backing), "%u.qcow2", front_of);
        opening.path = path;
        creation.backing = front_of ? backing : NULL;
        creation.backing_format = front_of ? "qcow2" : NULL;
        if (block_create(&opening, &creation, true, &err) < 0)
                fail_msg("%s", err.text);
}

static void write_some(struct fixture *f, uint64_t at, uint64_t size_bytes, unsigned n)
{
        for (uint64_t k = at; k < at + size_bytes; k++)
                f->m.model[k] = (uint8_t)(n + (k >> 9));
        assert_int_equal(block_write(f->m.disk, at, f->m.model + at, size_bytes), 0);
}

/* The first has everything, the others two places each. */
static void make_chain(struct fixture *f)
{
        model_room(&f->m, DISK_BYTES);
        for (unsigned n = 1; n <= IMAGES; n++) {
                create(f, n, DISK_BYTES, n - 1);
                open_image(f, n, BLOCK_OPEN_NO_BACKING);
                if (n == 1)
                        write_some(f, 0, DISK_BYTES, n);
                for (unsigned k = 0; n > 1 && k < 2; k++)
                        write_some(f, random_of(&f->m, DISK_BYTES / 65536) * 65536, 65536, n * 7);
                model_close(&f->m, true);
        }
}

static void begin_read(struct op *op)
{
        struct fixture *f = op->f;

        f->left--;
        f->under_way++;
        op->iov = (struct iovec){ op->bytes, sizeof(op->bytes) };
        op->req.op = BLOCK_READ;
        op->req.offset_bytes = random_of(&f->m, DISK_BYTES / 4096) * 4096;
        op->req.size_bytes = 4096;
        op->req.iov = &op->iov;
        op->req.iov_count = 1;
        block_submit(f->m.disk, &op->req);
}

static void read_done(struct block_request *req, int result)
{
        struct op *op = container_of(req, struct op, req);

        assert_int_equal(result, 0);
        assert_memory_equal(op->bytes, op->f->m.model + req->offset_bytes, 4096);
        op->f->under_way--;
        if (op->f->left)
                begin_read(op);
}

static double processor_s(void)
{
        struct rusage usage;

        getrusage(RUSAGE_SELF, &usage);
        return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* Reads of 4 KiB a second of the processor's time. */
static double read_at_random(struct fixture *f)
{
        double start;

        assert_int_equal(block_read(f->m.disk, 0, f->m.seen, DISK_BYTES), 0);
        assert_memory_equal(f->m.seen, f->m.model, DISK_BYTES);
        start = processor_s();
        f->left = reads;
        for (unsigned n = 0; n < DEPTH; n++) {
                f->op[n].f = f;
                f->op[n].req.done = read_done;
                begin_read(&f->op[n]);
        }
        while (f->under_way) {
                block_kick(f->m.disk);
                uv_run(&f->m.loop, UV_RUN_ONCE);
        }
        return reads / (processor_s() - start);
}

static void a_hundred_images(void **state)
{
        struct fixture *f = *state;
        double one, all;

        f->m.seed = 11;
        make_chain(f);
        open_image(f, IMAGES, BLOCK_OPEN_READONLY);
        all = read_at_random(f);
        block_close(f->m.disk);
        create(f, IMAGES, DISK_BYTES, 0);
        open_image(f, IMAGES, 0);
        assert_int_equal(block_write(f->m.disk, 0, f->m.model, DISK_BYTES), 0);
        one = read_at_random(f);
        print_message("4 KiB reads through %d images: %.0f a second of the processor, of one: %.0f; %.2f x\n", IMAGES, all, one, all / one);
}

static void large_images(void **state)
{
        struct fixture *f = *state;
        uint64_t start;
        uint8_t bytes[65536] = { 1 };
        struct err err = ERR_INIT;

        create(f, 1, UINT64_C(1) << 40, 0);
        start = uv_hrtime();
        open_image(f, 1, 0);
        print_message("opening 1 TiB: %.2f ms\n", (double)(uv_hrtime() - start) / 1e6);
        model_close(&f->m, true);
        create(f, 1, UINT64_C(100) << 30, 0);
        open_image(f, 1, 0);
        for (unsigned n = 0; n < 200; n++) /* as many L2 tables as a full one has */
                assert_int_equal(block_write(f->m.disk, (uint64_t)n << 29, bytes, sizeof(bytes)), 0);
        start = uv_hrtime();
        if (f->m.disk->driver->snapshots->create(f->m.disk, "one", &err) < 0)
                fail_msg("%s", err.text);
        print_message("a snapshot of 100 GiB with 200 tables: %.2f ms\n", (double)(uv_hrtime() - start) / 1e6);
}

int main(int argc, char **argv)
{
        (void)argv;
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = { CASE(a_hundred_images), CASE(large_images) };

        if (argc > 1)
                reads = 200000;
        log_init("test-chain", LOG_ERROR);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
