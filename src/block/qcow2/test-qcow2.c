/*
 * qcow2 images: random requests, several at once, against a copy in memory; what comes out is judged by our own check, by a second opening
 * and by qemu-img, where that is installed.
 */
#include "base/test.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/fiber.h"
#include "base/log.h"
#include "block/block.h"

#define KIB UINT64_C(1024)
#define MIB (UINT64_C(1) << 20)
#define DEPTH 12
#define SNAPSHOTS 3

struct fixture {
        uv_loop_t loop;
        char dir[64], path[96], base[96], model_path[96];
        struct block *disk;
        uint8_t *model, *seen;
        uint64_t size_bytes, seed;
        const struct block_option *option;
        unsigned options;
        uint8_t *kept[SNAPSHOTS]; /* what the snapshots have; NULL: there is none */
        bool no_snapshots;        /* counts are too narrow */
        bool backing, plain_units; /* plain_units: requests are of whole sectors */
        unsigned flags;
};

struct op {
        struct block_request req;
        struct fixture *f;
        struct iovec iov[3];
        uint8_t *bytes;
        bool busy;
        int result;
};

static uint32_t random_of(struct fixture *f, uint32_t below)
{
        f->seed ^= f->seed << 13;
        f->seed ^= f->seed >> 7;
        f->seed ^= f->seed << 17;
        return below ? (uint32_t)(f->seed >> 20) % below : 0;
}

static int setup(void **state)
{
        struct fixture *f = calloc(1, sizeof(*f));

        assert_int_equal(uv_loop_init(&f->loop), 0);
        snprintf(f->dir, sizeof(f->dir), "/tmp/virta-qcow2-XXXXXX");
        assert_non_null(mkdtemp(f->dir));
        snprintf(f->path, sizeof(f->path), "%s/disk.qcow2", f->dir);
        snprintf(f->base, sizeof(f->base), "%s/base.raw", f->dir);
        snprintf(f->model_path, sizeof(f->model_path), "%s/model.raw", f->dir);
        *state = f;
        return 0;
}

static void run_loop(struct fixture *f)
{
        while (uv_run(&f->loop, UV_RUN_NOWAIT))
                ;
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        block_close(f->disk);
        run_loop(f);
        uv_run(&f->loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_close(&f->loop), 0);
        fiber_thread_done();
        unlink(f->path);
        unlink(f->base);
        unlink(f->model_path);
        rmdir(f->dir);
        for (unsigned n = 0; n < SNAPSHOTS; n++)
                free(f->kept[n]);
        free(f->model);
        free(f->seen);
        free(f);
        return 0;
}

/* ---- images ---- */

static void dump(const char *path, const uint8_t *bytes, uint64_t size_bytes)
{
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

        assert_true(fd >= 0);
        assert_int_equal(write(fd, bytes, size_bytes), size_bytes);
        close(fd);
}

static void open_image(struct fixture *f, unsigned flags)
{
        struct err err = ERR_INIT;
        struct block_opening opening = { .loop = &f->loop, .path = f->path, .format = "qcow2", .flags = f->flags | flags };

        if (block_open(&opening, &f->disk, &err) < 0)
                fail_msg("%s", err.text);
        assert_int_equal(f->disk->info.size_bytes, f->size_bytes);
}

static void close_image(struct fixture *f, bool finish)
{
        struct err err = ERR_INIT;

        if (finish && block_finish(f->disk, &err) < 0)
                fail_msg("%s", err.text);
        block_close(f->disk);
        f->disk = NULL;
        run_loop(f);
}

static void create_image(struct fixture *f)
{
        struct err err = ERR_INIT;
        struct block_creation creation = { .size_bytes = f->size_bytes, .option = f->option, .options = f->options };
        struct block_opening opening = { .loop = &f->loop, .path = f->path, .format = "qcow2" };

        f->model = calloc(1, f->size_bytes);
        f->seen = malloc(f->size_bytes);
        if (f->backing) { /* shorter than the image, and not of whole clusters */
                uint64_t size_bytes = f->size_bytes * 3 / 4 / 512 * 512 - 512;

                for (uint64_t at = 0; at < size_bytes; at++)
                        f->model[at] = at % 50000 < 20000 ? 0 : (uint8_t)(at >> 9 ^ at);
                dump(f->base, f->model, size_bytes);
                creation.backing = "base.raw";
                creation.backing_format = "raw";
        }
        if (block_create(&opening, &creation, true, &err) < 0)
                fail_msg("%s", err.text);
        run_loop(f);
}

/* ---- judges ---- */

static void say(void *ctx, const char *text)
{
        print_message("check: %s\n", text);
}

static void check_image(struct fixture *f, bool leaks)
{
        struct block_check check = { .say = leaks ? NULL : say };
        struct err err = ERR_INIT;

        open_image(f, BLOCK_OPEN_READONLY | BLOCK_OPEN_REPAIR | BLOCK_OPEN_NO_LOCK);
        if (f->disk->driver->check(f->disk, &check, &err) < 0)
                fail_msg("%s", err.text);
        if (!leaks)
                assert_int_equal(check.leaks, 0);
        assert_int_equal(check.errors, 0);
        close_image(f, false);
}

static int _printf_(1, 2) command(const char *fmt, ...)
{
        char text[512];
        va_list args;
        int status;

        va_start(args, fmt);
        vsnprintf(text, sizeof(text), fmt, args);
        va_end(args);
        status = system(text);
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool have_qemu_img(void)
{
        return command("qemu-img --version >/dev/null 2>&1") == 0;
}

static void judge(struct fixture *f, bool leaks)
{
        int r;

        check_image(f, leaks);
        if (!have_qemu_img())
                return;
        r = command("qemu-img check -q -f qcow2 '%s' >/dev/null 2>&1", f->path);
        if (r != 0 && !(leaks && r == 3))
                fail_msg("qemu-img check ends with %d", r);
        dump(f->model_path, f->model, f->size_bytes);
        assert_int_equal(command("qemu-img compare -q -f raw -F qcow2 '%s' '%s'", f->model_path, f->path), 0);
}

static void compare_all(struct fixture *f)
{
        assert_int_equal(block_read(f->disk, 0, f->seen, f->size_bytes), 0);
        for (uint64_t at = 0; at < f->size_bytes; at++)
                if (f->seen[at] != f->model[at])
                        fail_msg("byte %#" PRIx64 " is %#x, should be %#x", at, f->seen[at], f->model[at]);
}

/* ---- random requests ---- */

static void op_done(struct block_request *req, int result)
{
        struct op *op = container_of(req, struct op, req);

        op->result = result;
        op->busy = false;
        if (result < 0)
                fail_msg("request %d of %" PRIu64 " bytes at %#" PRIx64 " fails: %s", req->op, req->size_bytes, req->offset_bytes, strerror(-result));
        if (req->op == BLOCK_READ && memcmp(op->bytes, op->f->model + req->offset_bytes, req->size_bytes) != 0)
                fail_msg("read of %" PRIu64 " bytes at %#" PRIx64 " is wrong", req->size_bytes, req->offset_bytes);
        free(op->bytes);
        op->bytes = NULL;
}

static bool overlaps(const struct op *op, uint64_t from, uint64_t to)
{
        return op->busy && op->req.offset_bytes < to && op->req.offset_bytes + op->req.size_bytes > from;
}

static void random_range(struct fixture *f, uint64_t *from, uint64_t *size_bytes)
{
        uint32_t unit = f->plain_units || random_of(f, 4) ? 512 : 1, most = random_of(f, 5) == 0 ? 300 * 1024 : random_of(f, 2) ? 4096 : 70000;

        *from = random_of(f, (uint32_t)f->size_bytes) / unit * unit;
        *size_bytes = (1 + random_of(f, most)) / unit * unit;
        *size_bytes = MIN(MAX(*size_bytes, (uint64_t)unit), f->size_bytes - *from);
}

/* What the disk will have; nothing else in flight touches it. */
static void begin_op(struct fixture *f, struct op *op)
{
        static const enum block_op kinds[] = { BLOCK_READ, BLOCK_WRITE, BLOCK_WRITE, BLOCK_WRITE, BLOCK_WRITE_ZEROES, BLOCK_FLUSH };
        uint8_t *model = f->model + op->req.offset_bytes;
        uint64_t size_bytes = op->req.size_bytes, cut = random_of(f, (uint32_t)size_bytes + 1);

        op->f = f;
        op->req.op = kinds[random_of(f, ARRAY_SIZE(kinds))];
        op->req.flags = random_of(f, 8) == 0 ? BLOCK_F_DURABLE : 0;
        op->req.done = op_done;
        op->req.iov = NULL;
        op->req.iov_count = 0;
        if (op->req.op == BLOCK_WRITE_ZEROES) {
                op->req.flags |= random_of(f, 2) ? BLOCK_F_UNMAP : 0;
                memset(model, 0, size_bytes);
        } else if (op->req.op == BLOCK_FLUSH) {
                op->req.offset_bytes = op->req.size_bytes = 0;
        } else {
                op->bytes = malloc(size_bytes);
                for (uint64_t n = 0; op->req.op == BLOCK_WRITE && n < size_bytes; n++)
                        model[n] = op->bytes[n] = (uint8_t)(n + f->seed);
                op->iov[0] = (struct iovec){ op->bytes, cut };
                op->iov[1] = (struct iovec){ op->bytes + cut, size_bytes - cut };
                op->req.iov = op->iov;
                op->req.iov_count = 2;
        }
        op->busy = true;
        block_submit(f->disk, &op->req);
}

static void random_requests(struct fixture *f, unsigned count)
{
        struct op op[DEPTH] = { 0 };

        for (unsigned n = 0; n < count; n++) {
                struct op *free_op = NULL;
                uint64_t from, size_bytes;
                bool clash = false;

                random_range(f, &from, &size_bytes);
                for (unsigned k = 0; k < DEPTH; k++) {
                        clash |= overlaps(&op[k], from, from + size_bytes);
                        if (!op[k].busy)
                                free_op = &op[k];
                }
                if (!clash && free_op) {
                        free_op->req.offset_bytes = from;
                        free_op->req.size_bytes = size_bytes;
                        begin_op(f, free_op);
                }
                block_kick(f->disk);
                if (!free_op || random_of(f, 3) == 0)
                        uv_run(&f->loop, UV_RUN_ONCE);
        }
        block_drain(f->disk);
}

/* A discard leaves whatever it leaves: the copy in memory learns it. */
static void random_discards(struct fixture *f, unsigned count)
{
        for (unsigned n = 0; n < count; n++) {
                uint64_t from, size_bytes;

                random_range(f, &from, &size_bytes);
                assert_int_equal(block_do(f->disk, BLOCK_DISCARD, 0, from, size_bytes, NULL, 0), 0);
                assert_int_equal(block_read(f->disk, from, f->seen, size_bytes), 0);
                for (uint64_t k = 0; k < size_bytes; k++)
                        assert_true(!f->seen[k] || f->seen[k] == f->model[from + k]);
                memcpy(f->model + from, f->seen, size_bytes);
        }
}

/* Makes, goes back to or deletes one. */
static void random_snapshot(struct fixture *f)
{
        const struct block_snapshot_ops *ops = f->disk->driver->snapshots;
        unsigned n = random_of(f, SNAPSHOTS);
        struct err err = ERR_INIT;
        char name[16];
        int r;

        snprintf(name, sizeof(name), "state %u", n);
        if (!f->kept[n]) {
                r = ops->create(f->disk, name, &err);
                if (r < 0 && !f->no_snapshots)
                        fail_msg("%s", err.text);
                assert_int_equal(r, f->no_snapshots ? -ERANGE : 0);
                if (f->no_snapshots)
                        return;
                f->kept[n] = malloc(f->size_bytes);
                memcpy(f->kept[n], f->model, f->size_bytes);
        } else if (random_of(f, 2)) {
                if (ops->apply(f->disk, name, &err) < 0)
                        fail_msg("%s", err.text);
                memcpy(f->model, f->kept[n], f->size_bytes);
        } else {
                if (ops->delete(f->disk, name, &err) < 0)
                        fail_msg("%s", err.text);
                free(f->kept[n]);
                f->kept[n] = NULL;
        }
}

static void random_life(struct fixture *f, uint64_t size_bytes, unsigned rounds)
{
        f->size_bytes = size_bytes;
        create_image(f);
        for (unsigned round = 0; round < rounds; round++) {
                bool finish = round % 2;

                open_image(f, 0);
                compare_all(f);
                random_requests(f, 400);
                random_discards(f, 20);
                random_snapshot(f);
                random_requests(f, 200);
                compare_all(f);
                random_snapshot(f);
                random_requests(f, 100);
                random_snapshot(f);
                if (!finish)
                        assert_int_equal(block_flush(f->disk), 0);
                close_image(f, finish);
                judge(f, !finish || round > 0);
        }
}

static void random_plain(void **state)
{
        struct fixture *f = *state;

        f->seed = 1;
        random_life(f, 9 * MIB + 512, 4);
}

static void random_threads(void **state)
{
        struct fixture *f = *state;

        f->seed = 2;
        f->flags = BLOCK_OPEN_NO_URING;
        random_life(f, 9 * MIB + 512, 2);
}

static void random_backing(void **state)
{
        struct fixture *f = *state;

        f->seed = 3;
        f->backing = true;
        random_life(f, 7 * MIB, 4);
}

#define RANDOM_WITH(name, number, behind, size, ...)                                                  \
        static void name(void **state)                                                                \
        {                                                                                             \
                static const struct block_option option[] = { __VA_ARGS__ };                          \
                struct fixture *f = *state;                                                           \
                                                                                                      \
                f->seed = number;                                                                     \
                f->no_snapshots = number == 8;                                                        \
                f->backing = behind;                                                                  \
                f->option = option;                                                                   \
                f->options = ARRAY_SIZE(option);                                                      \
                random_life(f, size, 3);                                                              \
        }

RANDOM_WITH(random_tiny_clusters, 4, false, 4 * MIB, { "cluster_size", "512" })
RANDOM_WITH(random_tiny_backing, 5, true, 4 * MIB, { "cluster_size", "512" })
RANDOM_WITH(random_huge_clusters, 6, true, 16 * MIB, { "cluster_size", "2M" })
RANDOM_WITH(random_old_version, 7, false, 6 * MIB, { "version", "2" }, { "cluster_size", "4096" })
RANDOM_WITH(random_one_bit, 8, true, 6 * MIB, { "refcount_bits", "1" }, { "cluster_size", "4K" })
RANDOM_WITH(random_64_bits, 9, false, 6 * MIB, { "refcount_bits", "64" }, { "cluster_size", "1K" })
RANDOM_WITH(random_subclusters, 10, true, 8 * MIB, { "extended_l2", "on" })
RANDOM_WITH(random_small_subclusters, 11, false, 8 * MIB, { "extended_l2", "on" }, { "cluster_size", "16K" })

int main(void)
{
        log_init("test-qcow2", LOG_INFO);
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = {
                CASE(random_plain), CASE(random_threads), CASE(random_backing), CASE(random_tiny_clusters), CASE(random_tiny_backing),
                CASE(random_huge_clusters), CASE(random_old_version), CASE(random_one_bit), CASE(random_64_bits), CASE(random_subclusters),
                CASE(random_small_subclusters),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
