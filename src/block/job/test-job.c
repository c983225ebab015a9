/*
 * Jobs on a chain of images that a guest goes on writing to, at random and several requests at once, against a copy in memory: during the job, after
 * it, and when the images are opened again. Then errors and full disks in their middle, pause, cancelling, and the speed limit.
 *
 * test-job [SEED]: another course of things.
 */
#include "base/test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/log.h"
#include "block/bitmap.h"
#include "block/block-file.h"
#include "block/filter/filter.h"
#include "block/job/job.h"
#include "block/qcow2/qcow2.h"

#define DISK_BYTES ((UINT64_C(12) << 20) + 1536)
#define BASE_BYTES ((UINT64_C(9) << 20) + 512)
#define SECTORS (DISK_BYTES / 512)
#define DEPTH 12
#define SPEED (UINT64_C(40) << 20)

static uint64_t first_seed = 1;

struct fixture;

struct op {
        struct block_request req;
        struct iovec iov;
        struct fixture *f;
        bool busy;
        uint8_t bytes[1 << 18];
};

struct fixture {
        uv_loop_t loop;
        char dir[64];
        struct block *disk;
        uint8_t *model, *before, *seen;
        uint64_t seed;
        struct op op[DEPTH];
        unsigned busy, ended;
        bool stop;               /* the guest begins nothing more */
        uint64_t limit_bytes;    /* what ends behind it may fail; 0: nothing may */
        struct block_fault fault; /* of the file of top.qcow2; error 0: none */
        struct block *fault_filter;
        bool over;
        int result;
        struct err why;
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
        snprintf(f->dir, sizeof(f->dir), "%s/virta-job-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        assert_non_null(mkdtemp(f->dir));
        f->model = calloc(1, DISK_BYTES);
        f->before = calloc(1, DISK_BYTES);
        f->seen = calloc(1, DISK_BYTES);
        f->seed = first_seed * UINT64_C(0x9e3779b97f4a7c15);
        *state = f;
        return 0;
}

static void remove_images(struct fixture *f)
{
        DIR *dir = opendir(f->dir);

        for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir))
                unlinkat(dirfd(dir), e->d_name, 0);
        closedir(dir);
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        block_close(f->disk);
        uv_run(&f->loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_close(&f->loop), 0);
        fiber_thread_done();
        remove_images(f);
        rmdir(f->dir);
        free(f->model);
        free(f->before);
        free(f->seen);
        free(f);
        return 0;
}

/* ---- images ---- */

static void path_of(struct fixture *f, const char *name, char path[128])
{
        snprintf(path, 128, "%s/%s", f->dir, name);
}

static void create(struct fixture *f, const char *name, const char *backing, uint64_t size_bytes, const char *cluster)
{
        const struct block_option option = { "cluster_size", cluster };
        struct block_creation creation = {
                .size_bytes = size_bytes, .backing = backing, .backing_format = backing ? "qcow2" : NULL, .option = &option, .options = cluster ? 1 : 0,
        };
        struct err err = ERR_INIT;
        char path[128];

        path_of(f, name, path);
        if (block_create(&(struct block_opening){ .loop = &f->loop, .path = path }, &creation, false, &err) < 0)
                fail_msg("%s", err.text);
}

static struct block *open_image(struct fixture *f, const char *name, unsigned flags)
{
        struct err err = ERR_INIT;
        struct block *block;
        char path[128];

        path_of(f, name, path);
        if (block_open(&(struct block_opening){ .loop = &f->loop, .path = path, .flags = flags }, &block, &err) < 0)
                fail_msg("%s", err.text);
        return block;
}

/* The disk, with f->fault in the file of its image. */
static void open_disk(struct fixture *f, const char *name)
{
        struct err err = ERR_INIT;
        struct block *file, *image;
        char path[128];
        struct block_opening opening = { .loop = &f->loop, .path = path };

        path_of(f, name, path);
        assert_int_equal(block_file.open(&opening, &file, &err), 0);
        if (f->fault.error)
                assert_int_equal(block_fault_new(file, &f->fault, 1, &file, &err), 0);
        f->fault_filter = file;
        opening.file = file;
        if (block_qcow2.open(&opening, &image, &err) < 0)
                fail_msg("%s", err.text);
        assert_int_equal(block_disk_new(image, &f->disk, &err), 0);
}

static void close_block(struct fixture *f, struct block *block)
{
        struct err err = ERR_INIT;

        if (block_finish(block, &err) < 0)
                fail_msg("%s", err.text);
        block_close(block);
        uv_run(&f->loop, UV_RUN_NOWAIT);
}

static void close_disk(struct fixture *f)
{
        close_block(f, f->disk);
        f->disk = NULL;
}

static void fill(struct fixture *f, struct block *block, unsigned writes)
{
        for (unsigned n = 0; n < writes; n++) {
                uint64_t sectors = block->info.size_bytes / 512, at = random_of(f, (uint32_t)sectors), count = MIN(1 + random_of(f, 300), sectors - at);

                if (random_of(f, 4)) {
                        memset(f->model + at * 512, (int)random_of(f, 256), count * 512);
                        assert_int_equal(block_write(block, at * 512, f->model + at * 512, count * 512), 0);
                } else {
                        memset(f->model + at * 512, 0, count * 512);
                        assert_int_equal(block_do(block, BLOCK_WRITE_ZEROES, BLOCK_F_UNMAP, at * 512, count * 512, NULL, 0), 0);
                }
        }
}

/* base, shorter ◀ mid ◀ top, each with something. */
static void make_chain(struct fixture *f)
{
        static const char *const clusters[] = { "4096", "65536", "16384" };
        static const char *const names[] = { "base.qcow2", "mid.qcow2", "top.qcow2" };

        for (unsigned n = 0; n < 3; n++) {
                struct block *block;

                create(f, names[n], n ? names[n - 1] : NULL, n ? DISK_BYTES : BASE_BYTES, clusters[random_of(f, 3)]);
                block = open_image(f, names[n], 0);
                fill(f, block, 30);
                close_block(f, block);
        }
}

static void want(struct fixture *f, struct block *block, const uint8_t *model)
{
        assert_true(block->info.size_bytes >= DISK_BYTES);
        if (block_read(block, 0, f->seen, DISK_BYTES) < 0) /* a fault that had not come before */
                assert_int_equal(block_read(block, 0, f->seen, DISK_BYTES), 0);
        for (uint64_t n = 0; n < SECTORS; n++)
                if (memcmp(f->seen + n * 512, model + n * 512, 512))
                        fail_msg("sector %" PRIu64 " has %02x, not %02x", n, f->seen[n * 512], model[n * 512]);
}

static void check_image(struct fixture *f, const char *name)
{
        struct block_check check = { .mend = BLOCK_MEND_NOTHING };
        struct block *block = open_image(f, name, BLOCK_OPEN_REPAIR | BLOCK_OPEN_NO_BACKING);
        struct err err = ERR_INIT;

        if (block->driver->check && block->driver->check(block, &check, &err) < 0)
                fail_msg("%s", err.text);
        assert_int_equal(check.errors, 0);
        block_close(block);
        uv_run(&f->loop, UV_RUN_NOWAIT);
}

static void want_file(struct fixture *f, const char *name, const uint8_t *model)
{
        struct block *block;

        check_image(f, name);
        block = open_image(f, name, BLOCK_OPEN_READONLY);
        want(f, block, model);
        block_close(block);
        uv_run(&f->loop, UV_RUN_NOWAIT);
}

/* ---- the guest ---- */

static void guest_on(struct op *op);

/* Within the loop: cmocka cannot leave it. */
static void wrong_read(struct fixture *f, const struct op *op)
{
        const uint8_t *want = f->model + op->req.offset_bytes;
        uint64_t n = 0;

        while (op->bytes[n] == want[n])
                n++;
        fprintf(stderr, "a read of %" PRIu64 " bytes at %" PRIu64 " of %s%s: byte %" PRIu64 " is %02x, not %02x\n", op->req.size_bytes, op->req.offset_bytes,
                f->disk->path, f->over ? ", after the job" : "", n, op->bytes[n], want[n]);
        abort();
}

static void op_done(struct block_request *req, int result)
{
        struct op *op = container_of(req, struct op, req);
        struct fixture *f = op->f;

        if (result == -EIO && f->limit_bytes && req->offset_bytes + req->size_bytes > f->limit_bytes) {
                op->busy = false;
                f->busy--;
                f->ended++;
                guest_on(op);
                return;
        }
        if (result < 0) {
                fprintf(stderr, "a request of the guest failed: %s\n", strerror(-result));
                abort();
        }
        if (req->op == BLOCK_READ && memcmp(op->bytes, f->model + req->offset_bytes, req->size_bytes))
                wrong_read(f, op);
        if (req->op == BLOCK_WRITE)
                memcpy(f->model + req->offset_bytes, op->bytes, req->size_bytes);
        if (req->op == BLOCK_WRITE_ZEROES)
                memset(f->model + req->offset_bytes, 0, req->size_bytes);
        op->busy = false;
        f->busy--;
        f->ended++;
        guest_on(op);
}

static bool overlaps(struct fixture *f, uint64_t at, uint64_t size_bytes)
{
        for (unsigned n = 0; n < DEPTH; n++) {
                const struct block_request *r = &f->op[n].req;

                if (f->op[n].busy && r->offset_bytes < at + size_bytes && at < r->offset_bytes + r->size_bytes)
                        return true;
        }
        return false;
}

static void guest_on(struct op *op)
{
        static const enum block_op kinds[] = { BLOCK_READ, BLOCK_READ, BLOCK_WRITE, BLOCK_WRITE, BLOCK_WRITE, BLOCK_WRITE_ZEROES, BLOCK_FLUSH };
        struct fixture *f = op->f;
        uint64_t at, count;
        enum block_op kind;

        if (f->stop)
                return;
        do {
                at = random_of(f, (uint32_t)SECTORS);
                count = MIN(1 + random_of(f, random_of(f, 3) ? 20 : 500), SECTORS - at);
                kind = kinds[random_of(f, ARRAY_SIZE(kinds))];
        } while (kind != BLOCK_FLUSH && overlaps(f, at * 512, count * 512));
        op->req = (struct block_request){ .op = kind, .flags = kind == BLOCK_WRITE_ZEROES ? BLOCK_F_UNMAP : 0, .offset_bytes = at * 512,
                                          .size_bytes = count * 512, .iov = &op->iov, .iov_count = 1, .done = op_done };
        op->iov = (struct iovec){ op->bytes, count * 512 };
        if (kind == BLOCK_FLUSH)
                op->req.offset_bytes = op->req.size_bytes = 0;
        if (kind == BLOCK_FLUSH || kind == BLOCK_WRITE_ZEROES)
                op->req.iov_count = 0;
        if (kind == BLOCK_WRITE)
                memset(op->bytes, (int)random_of(f, 256), count * 512);
        op->busy = true;
        f->busy++;
        block_submit(f->disk, &op->req);
}

static void kick(void *ctx)
{
        struct fixture *f = ctx;

        block_kick(f->disk);
}

static void guest_start(struct fixture *f)
{
        f->stop = false;
        block_set_listener(f->disk, kick, f);
        for (unsigned n = 0; n < DEPTH; n++) {
                f->op[n].f = f;
                if (!f->op[n].busy)
                        guest_on(&f->op[n]);
        }
        block_kick(f->disk);
}

static void guest_stop(struct fixture *f)
{
        f->stop = true;
        while (f->busy)
                uv_run(&f->loop, UV_RUN_ONCE);
}

static void job_done(struct block_job *job, void *ctx, int result, const struct err *why)
{
        struct fixture *f = ctx;

        f->over = true;
        f->result = result;
        f->why = why ? *why : ERR_INIT;
        assert_true(!result == !why);
}

static struct block_job *start(struct fixture *f, struct block_job_config config)
{
        struct err err = ERR_INIT;
        struct block_job *job;

        config.disk = f->disk;
        config.done = job_done;
        config.ctx = f;
        f->over = false;
        if (block_job_start(&config, &job, &err) < 0)
                fail_msg("%s", err.text);
        memcpy(f->before, f->model, DISK_BYTES);
        return job;
}

static void wait_for_job(struct fixture *f)
{
        while (!f->over)
                uv_run(&f->loop, UV_RUN_ONCE);
}

static void want_success(struct fixture *f)
{
        wait_for_job(f);
        if (f->result < 0)
                fail_msg("%s", f->why.text);
}

static void begin_writing(struct fixture *f)
{
        make_chain(f);
        open_disk(f, "top.qcow2");
        guest_start(f);
        for (unsigned ended = f->ended; f->ended < ended + 20;)
                uv_run(&f->loop, UV_RUN_ONCE);
}

static void finish(struct fixture *f)
{
        for (unsigned ended = f->ended; f->ended < ended + 200;)
                uv_run(&f->loop, UV_RUN_ONCE);
        guest_stop(f);
        want(f, f->disk, f->model);
        close_disk(f);
}

/* ---- jobs that go well ---- */

static void stream_all(void **state)
{
        struct fixture *f = *state;

        begin_writing(f);
        start(f, (struct block_job_config){ .kind = BLOCK_JOB_STREAM, .bytes_a_second = SPEED });
        want_success(f);
        assert_null(block_disk_root(f->disk)->child[BLOCK_BACKING]);
        finish(f);
        for (unsigned n = 0; n < 2; n++) {
                char path[128];

                path_of(f, n ? "mid.qcow2" : "base.qcow2", path);
                assert_int_equal(unlink(path), 0);
        }
        want_file(f, "top.qcow2", f->model);
}

static void stream_to_base(void **state)
{
        struct fixture *f = *state;
        struct block *base;
        char path[128];

        begin_writing(f);
        base = block_disk_root(f->disk)->child[BLOCK_BACKING]->child[BLOCK_BACKING];
        start(f, (struct block_job_config){ .kind = BLOCK_JOB_STREAM, .base = base, .base_name = "base.qcow2", .base_format = "qcow2",
                                                  .bytes_a_second = SPEED });
        want_success(f);
        assert_ptr_equal(block_disk_root(f->disk)->child[BLOCK_BACKING], base);
        finish(f);
        path_of(f, "mid.qcow2", path);
        assert_int_equal(unlink(path), 0);
        want_file(f, "top.qcow2", f->model);
}

static void commit_and_empty(void **state)
{
        struct fixture *f = *state;

        begin_writing(f);
        start(f, (struct block_job_config){ .kind = BLOCK_JOB_COMMIT, .bytes_a_second = SPEED });
        want_success(f);
        finish(f);
        want_file(f, "top.qcow2", f->model);
        check_image(f, "mid.qcow2");
}

static void commit_and_pivot(void **state)
{
        struct fixture *f = *state;

        begin_writing(f);
        start(f, (struct block_job_config){ .kind = BLOCK_JOB_COMMIT, .pivot = true, .bytes_a_second = SPEED });
        want_success(f);
        finish(f);
        want_file(f, "mid.qcow2", f->model);
        check_image(f, "top.qcow2");
}

static void commit_deep(void **state)
{
        struct fixture *f = *state;

        begin_writing(f);
        start(f, (struct block_job_config){ .kind = BLOCK_JOB_COMMIT, .pivot = true, .bytes_a_second = SPEED,
                                            .base = block_disk_root(f->disk)->child[BLOCK_BACKING]->child[BLOCK_BACKING] });
        want_success(f);
        assert_null(block_disk_root(f->disk)->child[BLOCK_BACKING]);
        finish(f);
        want_file(f, "base.qcow2", f->model);
}

static struct block *new_target(struct fixture *f, const char *name)
{
        create(f, name, NULL, DISK_BYTES, NULL);
        return open_image(f, name, 0);
}

static void mirror_and_pivot(void **state)
{
        struct fixture *f = *state;

        begin_writing(f);
        start(f, (struct block_job_config){ .kind = BLOCK_JOB_MIRROR, .target = new_target(f, "new.raw"), .target_is_empty = true, .pivot = true,
                                            .bytes_a_second = SPEED });
        want_success(f);
        assert_string_equal(strrchr(f->disk->path, '/'), "/new.raw");
        finish(f);
        want_file(f, "new.raw", f->model);
        check_image(f, "top.qcow2");
}

static void mirror_that_follows(void **state)
{
        struct fixture *f = *state;
        struct block_job *job;

        begin_writing(f);
        job = start(f, (struct block_job_config){ .kind = BLOCK_JOB_MIRROR, .target = new_target(f, "new.qcow2"), .target_is_empty = true, .follow = true });
        while (block_job_progress(job).state != BLOCK_JOB_READY)
                uv_run(&f->loop, UV_RUN_ONCE);
        for (unsigned ended = f->ended; f->ended < ended + 1000;)
                uv_run(&f->loop, UV_RUN_ONCE);
        assert_false(f->over);
        guest_stop(f);
        block_job_complete(job, false);
        want_success(f);
        want_file(f, "new.qcow2", f->model);
        /* Once more, to the same: little is written. */
        guest_start(f);
        start(f, (struct block_job_config){ .kind = BLOCK_JOB_MIRROR, .target = open_image(f, "new.qcow2", 0), .resume = true, .pivot = true });
        want_success(f);
        finish(f);
        want_file(f, "new.qcow2", f->model);
}

static void backup_full(void **state)
{
        struct fixture *f = *state;

        begin_writing(f);
        start(f, (struct block_job_config){ .kind = BLOCK_JOB_BACKUP, .target = new_target(f, "copy.qcow2"), .target_is_empty = true,
                                                  .bytes_a_second = SPEED });
        want_success(f);
        want_file(f, "copy.qcow2", f->before);
        finish(f);
        want_file(f, "top.qcow2", f->model);
}

static void backup_by_bitmap(void **state)
{
        struct fixture *f = *state;
        struct block_bitmap *bitmap;

        begin_writing(f);
        assert_int_equal(block_bitmap_add(block_disk_root(f->disk), "daily", 65536, &bitmap, NULL), 0);
        block_bitmap_set(bitmap, 0, bitmap->size_bytes);
        start(f, (struct block_job_config){ .kind = BLOCK_JOB_BACKUP, .target = new_target(f, "full.qcow2"), .target_is_empty = true, .bitmap = "daily",
                                            .bytes_a_second = SPEED });
        want_success(f);
        want_file(f, "full.qcow2", f->before);
        for (unsigned n = 0; n < 2; n++) {
                char name[32], behind[32];
                struct block *target;

                snprintf(behind, sizeof(behind), n ? "next0.qcow2" : "full.qcow2");
                snprintf(name, sizeof(name), "next%u.qcow2", n);
                for (unsigned ended = f->ended; f->ended < ended + 30;)
                        uv_run(&f->loop, UV_RUN_ONCE);
                create(f, name, behind, DISK_BYTES, NULL);
                target = open_image(f, name, 0);
                start(f, (struct block_job_config){ .kind = BLOCK_JOB_BACKUP, .target = target, .bitmap = "daily", .bytes_a_second = SPEED });
                want_success(f);
                want_file(f, name, f->before);
        }
        finish(f);
}

/* A view of one point in time, read while the guest writes. */
static void point_in_time(void **state)
{
        struct fixture *f = *state;
        struct block *image, *filter, *view, *target;
        struct err err = ERR_INIT;

        begin_writing(f);
        image = block_disk_root(f->disk);
        target = new_target(f, "old.qcow2");
        block_disk_hold(f->disk);
        assert_int_equal(block_before_write_new(image, target, true, NULL, &filter, &err), 0);
        block_disk_swap(f->disk, filter);
        block_disk_let_go(f->disk);
        memcpy(f->before, f->model, DISK_BYTES);
        assert_int_equal(block_before_write_view(filter, &view, &err), 0);
        for (unsigned n = 0; n < 40; n++) {
                uint64_t at = random_of(f, (uint32_t)SECTORS), count = MIN(1 + random_of(f, 4000), SECTORS - at);

                for (unsigned ended = f->ended; f->ended < ended + 10;)
                        uv_run(&f->loop, UV_RUN_ONCE);
                assert_int_equal(block_read(view, at * 512, f->seen, count * 512), 0);
                assert_memory_equal(f->seen, f->before + at * 512, count * 512);
        }
        want(f, view, f->before);
        assert_int_equal(block_before_write_error(filter), 0);
        block_close(view);
        block_disk_hold(f->disk);
        block_disk_swap(f->disk, image);
        block_disk_let_go(f->disk);
        block_filter_remove(filter);
        close_block(f, target);
        finish(f);
}

/* ---- jobs that do not ---- */

static void cancelled(void **state)
{
        static const enum block_job_kind kinds[] = { BLOCK_JOB_STREAM, BLOCK_JOB_COMMIT, BLOCK_JOB_MIRROR, BLOCK_JOB_BACKUP };
        struct fixture *f = *state;

        begin_writing(f);
        for (unsigned n = 0; n < ARRAY_SIZE(kinds); n++) {
                struct block_job_config config = { .kind = kinds[n], .bytes_a_second = 4 << 20, .target_is_empty = true };
                struct block_job *job;
                char name[32];

                snprintf(name, sizeof(name), "new%u.qcow2", n);
                if (kinds[n] == BLOCK_JOB_MIRROR || kinds[n] == BLOCK_JOB_BACKUP)
                        config.target = new_target(f, name);
                job = start(f, config);
                while (!block_job_progress(job).done_bytes)
                        uv_run(&f->loop, UV_RUN_ONCE);
                assert_int_equal(block_disk_job(f->disk)[0]->config.kind, kinds[n]);
                assert_int_equal(block_resize(f->disk, DISK_BYTES * 2, NULL), -EBUSY);
                block_job_cancel(job);
                wait_for_job(f);
                assert_int_equal(f->result, -ECANCELED);
        }
        finish(f);
        want_file(f, "top.qcow2", f->model);
}

static void paused_and_slow(void **state)
{
        struct fixture *f = *state;
        struct block_job *job;
        uint64_t done, start_ns;

        begin_writing(f);
        job = start(f, (struct block_job_config){ .kind = BLOCK_JOB_MIRROR, .target = new_target(f, "new.raw"), .target_is_empty = true, .pivot = true,
                                                  .bytes_a_second = 8 << 20 });
        start_ns = uv_hrtime();
        while (uv_hrtime() - start_ns < 250000000)
                uv_run(&f->loop, UV_RUN_ONCE);
        done = block_job_progress(job).done_bytes;
        assert_true(done > 0);
        assert_false(f->over);
        block_job_pause(job, true);
        for (unsigned n = 0; n < 2; n++) { /* what was begun ends; then nothing goes on */
                done = block_job_progress(job).done_bytes;
                start_ns = uv_hrtime();
                while (uv_hrtime() - start_ns < 150000000)
                        uv_run(&f->loop, UV_RUN_ONCE);
        }
        assert_int_equal(done, block_job_progress(job).done_bytes);
        assert_true(block_job_progress(job).paused);
        block_job_set_speed(job, 0);
        block_job_pause(job, false);
        want_success(f);
        assert_true(uv_hrtime() - start_ns < UINT64_C(2000000000));
        finish(f);
        want_file(f, "new.raw", f->model);
}

/* Errors of the target, or a full one: the disk and its image are as if there had been no job. */
static void bad_target(void **state)
{
        static const struct block_fault faults[] = {
                { .ops = 1 << BLOCK_WRITE, .error = -EIO, .after = 7 }, { .ops = 1 << BLOCK_WRITE, .error = -ENOSPC, .after = 3 },
                { .ops = 1 << BLOCK_FLUSH, .error = -EIO },
        };
        static const enum block_job_kind kinds[] = { BLOCK_JOB_MIRROR, BLOCK_JOB_BACKUP };
        struct fixture *f = *state;

        begin_writing(f);
        for (unsigned n = 0; n < ARRAY_SIZE(faults) * 2; n++) {
                struct err err = ERR_INIT;
                struct block *target;
                char name[32];

                snprintf(name, sizeof(name), "new%u.raw", n);
                target = new_target(f, name);
                assert_int_equal(block_fault_new(target, &faults[n / 2], 1, &target, &err), 0);
                start(f, (struct block_job_config){ .kind = kinds[n % 2], .target = target, .target_is_empty = true, .pivot = n % 2 == 0,
                                                          .bytes_a_second = SPEED });
                wait_for_job(f);
                assert_int_equal(f->result, faults[n / 2].error);
                assert_non_null(strstr(f->why.text, name));
                assert_string_equal(strrchr(f->disk->path, '/'), "/top.qcow2");
        }
        finish(f);
        want_file(f, "top.qcow2", f->model);
}

/* The image's own file fails for a while, while nobody else writes. */
static void bad_image(void **state)
{
        static const struct block_job_config jobs[] = {
                { .kind = BLOCK_JOB_STREAM }, { .kind = BLOCK_JOB_COMMIT }, { .kind = BLOCK_JOB_COMMIT, .pivot = true },
        };
        struct fixture *f = *state;
        unsigned failed = 0;

        make_chain(f);
        for (unsigned n = 0; n < ARRAY_SIZE(jobs) * 8; n++) {
                f->fault = (struct block_fault){ .ops = n % 2 ? 1 << BLOCK_WRITE | 1 << BLOCK_FLUSH : 0, .error = n % 3 ? -EIO : -ENOSPC,
                                                 .after = 20 + random_of(f, 80), .times = 1 };
                open_disk(f, "top.qcow2");
                start(f, jobs[n % ARRAY_SIZE(jobs)]);
                wait_for_job(f);
                failed += f->result < 0;
                if (f->result == 0)
                        assert_string_equal(f->why.text, "");
                want(f, f->disk, f->model);
                block_close(f->disk);
                f->disk = NULL;
                uv_run(&f->loop, UV_RUN_NOWAIT);
                if (f->result < 0) {
                        want_file(f, "top.qcow2", f->model);
                        continue;
                }
                remove_images(f); /* the chain is another one now */
                memset(f->model, 0, DISK_BYTES);
                make_chain(f);
        }
        assert_true(failed > 5);
}

static void refused(void **state)
{
        struct fixture *f = *state;
        struct block_job_config config = { .kind = BLOCK_JOB_STREAM };
        struct block_job *job;
        struct err err = ERR_INIT;
        struct block_bitmap *bitmap;
        struct block *target;

        create(f, "alone.qcow2", NULL, DISK_BYTES, NULL);
        open_disk(f, "alone.qcow2");
        config.disk = f->disk;
        assert_int_equal(block_job_start(&config, &job, &err), -EINVAL);
        config.kind = BLOCK_JOB_COMMIT;
        assert_int_equal(block_job_start(&config, &job, &err), -EINVAL);
        config.kind = BLOCK_JOB_BACKUP;
        config.bitmap = "none";
        create(f, "copy.raw", NULL, DISK_BYTES, NULL);
        config.target = target = open_image(f, "copy.raw", 0);
        assert_int_equal(block_job_start(&config, &job, &err), -ENOENT);
        config.bitmap = NULL;
        config.target = open_image(f, "copy.raw", BLOCK_OPEN_READONLY | BLOCK_OPEN_NO_LOCK);
        assert_int_equal(block_job_start(&config, &job, &err), -EROFS);
        block_close(config.target);
        config.target = target;
        config.done = job_done;
        config.ctx = f;
        config.kind = BLOCK_JOB_MIRROR;
        config.pivot = true;
        assert_int_equal(block_bitmap_add(block_disk_root(f->disk), "used", 65536, &bitmap, NULL), 0);
        bitmap->users++;
        assert_int_equal(block_job_start(&config, &job, &err), -EBUSY);
        bitmap->users--;
        config.kind = BLOCK_JOB_BACKUP;
        assert_int_equal(block_job_start(&config, &job, &err), 0);
        assert_int_equal(block_job_start(&config, &job, &err), -EBUSY);
        block_job_end(f->disk, &f->loop);
        assert_true(f->over);
}

/* What is read is there afterwards. */
static void copy_on_read(void **state)
{
        struct fixture *f = *state;
        struct err err = ERR_INIT;
        struct block *image, *filter;
        uint64_t at = 0;

        begin_writing(f);
        image = block_disk_root(f->disk);
        block_disk_hold(f->disk);
        assert_int_equal(block_copy_on_read_new(image, true, &filter, &err), 0);
        block_disk_swap(f->disk, filter);
        block_disk_let_go(f->disk);
        for (unsigned ended = f->ended; f->ended < ended + 400;)
                uv_run(&f->loop, UV_RUN_ONCE);
        guest_stop(f);
        want(f, f->disk, f->model); /* reads all of it */
        while (at < DISK_BYTES) {
                struct block_extent here, all;

                assert_int_equal(block_status(image, at, DISK_BYTES - at, &here), 0);
                assert_int_equal(block_status_through(image, at, here.size_bytes, &all), 0);
                assert_true(here.present || all.zero);
                at += all.size_bytes;
        }
        close_disk(f);
        want_file(f, "top.qcow2", f->model);
}

/* Larger, with zeroes behind; then smaller, under a guest that does not know it yet. */
static void resized(void **state)
{
        struct block_job_config config = { .kind = BLOCK_JOB_RESIZE, .size_bytes = 2 * DISK_BYTES };
        struct fixture *f = *state;
        struct err err = ERR_INIT;
        struct block_job *job;
        struct block *again;
        uint64_t half = align_down(DISK_BYTES / 2, 65536);

        begin_writing(f);
        (void)start(f, config);
        want_success(f);
        assert_int_equal(f->disk->info.size_bytes, 2 * DISK_BYTES);
        for (unsigned ended = f->ended; f->ended < ended + 100;)
                uv_run(&f->loop, UV_RUN_ONCE);
        assert_int_equal(block_read(f->disk, DISK_BYTES, f->seen, DISK_BYTES), 0);
        for (uint64_t n = 0; n < DISK_BYTES; n++)
                assert_int_equal(f->seen[n], 0);
        config.disk = f->disk;
        config.size_bytes = half;
        assert_int_equal(block_job_start(&config, &job, &err), -EINVAL);
        config.shrink = true;
        f->limit_bytes = half;
        (void)start(f, config);
        want_success(f);
        assert_int_equal(f->disk->info.size_bytes, half);
        for (unsigned ended = f->ended; f->ended < ended + 200;)
                uv_run(&f->loop, UV_RUN_ONCE);
        guest_stop(f);
        close_disk(f);
        again = open_image(f, "top.qcow2", 0);
        assert_int_equal(again->info.size_bytes, half);
        assert_int_equal(block_read(again, 0, f->seen, half), 0);
        assert_memory_equal(f->seen, f->model, half);
        close_block(f, again);
        check_image(f, "top.qcow2");
}

int main(int argc, char **argv)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = {
                CASE(stream_all), CASE(stream_to_base), CASE(commit_and_empty), CASE(commit_and_pivot), CASE(commit_deep), CASE(mirror_and_pivot),
                CASE(mirror_that_follows), CASE(backup_full), CASE(backup_by_bitmap), CASE(point_in_time), CASE(cancelled), CASE(paused_and_slow),
                CASE(bad_target), CASE(bad_image), CASE(refused), CASE(copy_on_read), CASE(resized),
        };

        if (argc > 1)
                first_seed = strtoull(argv[1], NULL, 10) | 1;
        if (argc > 2)
                cmocka_set_test_filter(argv[2]);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
