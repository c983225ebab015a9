/* Raw disks with both engines: data, ends of files, locks, full disks, and what cannot be opened. */
#include "base/test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "block/block-file.h"
#include "block/file-io.h"

#define MIB (UINT64_C(1) << 20)

struct fixture {
        uv_loop_t loop;
        char dir[64];
        char path[96];
        unsigned flags; /* of the engine */
        struct block *disk;
        unsigned batches;
};

static struct fixture *new_fixture(unsigned flags)
{
        struct fixture *f = calloc(1, sizeof(*f));

        assert_int_equal(uv_loop_init(&f->loop), 0);
        snprintf(f->dir, sizeof(f->dir), "/tmp/virta-block-XXXXXX");
        assert_non_null(mkdtemp(f->dir));
        snprintf(f->path, sizeof(f->path), "%s/disk", f->dir);
        f->flags = flags;
        return f;
}

static int setup_uring(void **state)
{
        *state = new_fixture(0);
        return 0;
}

static int setup_pool(void **state)
{
        *state = new_fixture(BLOCK_OPEN_NO_URING);
        return 0;
}

static void run_out(struct fixture *f)
{
        uv_run(&f->loop, UV_RUN_NOWAIT);
        while (!f->disk && uv_loop_alive(&f->loop))
                uv_run(&f->loop, UV_RUN_ONCE);
}

static void close_disk(struct fixture *f)
{
        block_close(f->disk);
        f->disk = NULL;
        run_out(f);
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        close_disk(f);
        assert_int_equal(uv_loop_close(&f->loop), 0);
        unlink(f->path);
        rmdir(f->dir);
        free(f);
        return 0;
}

static void make(struct fixture *f, uint64_t size_bytes, uint8_t fill)
{
        int fd = open(f->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        uint8_t block[4096];

        assert_true(fd >= 0);
        memset(block, fill, sizeof(block));
        for (uint64_t at = 0; fill && at < size_bytes; at += sizeof(block))
                assert_true(write(fd, block, MIN(sizeof(block), size_bytes - at)) > 0);
        assert_int_equal(ftruncate(fd, (off_t)size_bytes), 0);
        close(fd);
}

static void listener(void *ctx)
{
        ((struct fixture *)ctx)->batches++;
}

static void open_disk(struct fixture *f, unsigned flags)
{
        struct err err = ERR_INIT;
        int r = block_open(&(struct block_opening){ .loop = &f->loop, .path = f->path, .flags = f->flags | flags }, &f->disk, &err);

        if (r < 0)
                fail_msg("%s", err.text);
        block_set_listener(f->disk, listener, f);
}

struct io {
        struct block_request req;
        struct iovec iov[8];
        int result;
        bool done;
};

static void io_done(struct block_request *req, int result)
{
        struct io *io = container_of(req, struct io, req);

        assert_false(io->done);
        io->done = true;
        io->result = result;
}

static void start(struct fixture *f, struct io *io, enum block_op op, uint64_t offset, void *data, size_t size, unsigned flags)
{
        io->done = false;
        io->req = (struct block_request){
                .op = op,
                .flags = flags,
                .offset_bytes = offset,
                .size_bytes = size,
                .iov = io->iov,
                .done = io_done,
        };
        if (data) {
                /* In pieces of different lengths. */
                size_t part = size / 3;

                io->iov[0] = (struct iovec){ data, part };
                io->iov[1] = (struct iovec){ (uint8_t *)data + part, size - part };
                io->req.iov_count = 2;
        }
        block_submit(f->disk, &io->req);
        assert_false(io->done);
        block_kick(f->disk);
        assert_false(io->done);
}

static int run(struct fixture *f, enum block_op op, uint64_t offset, void *data, size_t size, unsigned flags)
{
        struct io io;

        start(f, &io, op, offset, data, size, flags);
        while (!io.done)
                uv_run(&f->loop, UV_RUN_ONCE);
        assert_int_equal(f->disk->in_flight, 0);
        return io.result;
}

static void test_read_write(void **state)
{
        struct fixture *f = *state;
        uint8_t *a = malloc(MIB), *b = malloc(MIB);
        int fd;

        make(f, 4 * MIB, 0);
        open_disk(f, 0);
        assert_int_equal(block_info(f->disk)->size_bytes, 4 * MIB);
        assert_int_equal(block_info(f->disk)->logical_bytes, 512);
        assert_false(block_info(f->disk)->readonly);
        for (size_t i = 0; i < MIB; i++)
                a[i] = (uint8_t)(i * 31 >> 3);
        assert_int_equal(run(f, BLOCK_WRITE, 512 * 3, a, MIB, 0), 0);
        assert_int_equal(run(f, BLOCK_READ, 512 * 3, b, MIB, 0), 0);
        assert_memory_equal(a, b, MIB);
        assert_int_equal(run(f, BLOCK_WRITE, 4 * MIB - 512, a + 7, 512, BLOCK_F_DURABLE), 0);
        assert_int_equal(run(f, BLOCK_FLUSH, 0, NULL, 0, 0), 0);
        assert_true(f->batches >= 4);

        fd = open(f->path, O_RDONLY | O_CLOEXEC);
        assert_int_equal(pread(fd, b, 512, (off_t)(4 * MIB - 512)), 512);
        assert_memory_equal(a + 7, b, 512);
        close(fd);
        free(a);
        free(b);
}

static void test_many(void **state)
{
        struct fixture *f = *state;
        enum { COUNT = 1000 };
        struct io *io = calloc(COUNT, sizeof(*io));
        uint8_t *data = malloc(COUNT * 512), *back = malloc(COUNT * 512);

        make(f, COUNT * 512, 0);
        open_disk(f, 0);
        for (unsigned i = 0; i < COUNT * 512; i++)
                data[i] = (uint8_t)(i / 512 + i);
        /* More than the ring has entries, and one batch that is drained without the loop. */
        for (unsigned i = 0; i < COUNT; i++) {
                io[i].req = (struct block_request){ .op = BLOCK_WRITE,
                                                    .offset_bytes = i * 512,
                                                    .size_bytes = 512,
                                                    .iov = io[i].iov,
                                                    .iov_count = 1,
                                                    .done = io_done };
                io[i].iov[0] = (struct iovec){ data + i * 512, 512 };
                block_submit(f->disk, &io[i].req);
        }
        block_kick(f->disk);
        block_drain(f->disk);
        for (unsigned i = 0; i < COUNT; i++)
                assert_true(io[i].done && io[i].result == 0);
        assert_int_equal(run(f, BLOCK_READ, 0, back, COUNT * 512, 0), 0);
        assert_memory_equal(data, back, COUNT * 512);
        assert_true(f->batches < COUNT);
        free(io);
        free(data);
        free(back);
}

static void test_odd_size(void **state)
{
        struct fixture *f = *state;
        uint8_t data[1024], zero[1024] = { 0 };
        struct stat st;

        make(f, 1000, 0x55);
        open_disk(f, 0);
        assert_int_equal(block_info(f->disk)->size_bytes, 1024);
        memset(data, 0xff, sizeof(data));
        assert_int_equal(run(f, BLOCK_READ, 0, data, 1024, 0), 0);
        assert_int_equal(data[999], 0x55);
        assert_memory_equal(data + 1000, zero, 24);
        assert_int_equal(run(f, BLOCK_WRITE, 512, data, 512, 0), 0);
        assert_int_equal(stat(f->path, &st), 0);
        assert_int_equal(st.st_size, 1024);

        /* Shrunk behind our back. */
        assert_int_equal(truncate(f->path, 100), 0);
        memset(data, 0xff, sizeof(data));
        assert_int_equal(run(f, BLOCK_READ, 0, data, 1024, 0), 0);
        assert_int_equal(data[99], 0x55);
        assert_memory_equal(data + 100, zero, 924);
        memset(data, 0xff, sizeof(data));
        assert_int_equal(run(f, BLOCK_READ, 512, data, 512, 0), 0);
        assert_memory_equal(data, zero, 512);
}

static void test_zeroes(void **state)
{
        struct fixture *f = *state;
        uint8_t *data = malloc(MIB);
        struct stat before, after;

        make(f, MIB, 0x77);
        open_disk(f, 0);
        assert_int_equal(stat(f->path, &before), 0);
        assert_int_equal(run(f, BLOCK_WRITE_ZEROES, 4096, NULL, 300 * 1024, BLOCK_F_DURABLE), 0);
        assert_int_equal(run(f, BLOCK_WRITE_ZEROES, 512 * 1024, NULL, 256 * 1024, BLOCK_F_UNMAP), 0);
        assert_int_equal(run(f, BLOCK_READ, 0, data, MIB, 0), 0);
        for (size_t i = 0; i < MIB; i++) {
                bool zero = (i >= 4096 && i < 4096 + 300 * 1024) || (i >= 512 * 1024 && i < 768 * 1024);

                if (data[i] != (zero ? 0 : 0x77))
                        fail_msg("byte %zu is 0x%x", i, data[i]);
        }
        assert_int_equal(run(f, BLOCK_DISCARD, 0, NULL, MIB, 0), 0);
        assert_int_equal(stat(f->path, &after), 0);
        assert_int_equal(after.st_size, before.st_size);
        if (block_info(f->disk)->discard_bytes)
                assert_true(after.st_blocks < before.st_blocks);
        free(data);
}

/* The steps of a request where the host's answers are short or refuse, which no file does when asked. */
static void test_steps(void **state)
{
        uint8_t data[4096];
        struct iovec iov[] = { { data, 1000 }, { data + 1000, 96 }, { data + 1096, 3000 } };
        struct block_request req = { .op = BLOCK_WRITE, .offset_bytes = 8192, .size_bytes = 4096, .iov = iov, .iov_count = 3 };
        struct file_io_step step;

        file_io_begin(&req);
        step = file_io_step(&req);
        assert_int_equal(step.iov_count, 3);
        assert_false(file_io_result(&req, 1000));
        step = file_io_step(&req);
        assert_int_equal(step.iov_count, 2);
        assert_ptr_equal(step.iov[0].iov_base, data + 1000);
        assert_int_equal(step.offset_bytes, 9192);
        assert_false(file_io_result(&req, -EINTR));
        assert_false(file_io_result(&req, 100));
        step = file_io_step(&req);
        assert_int_equal(step.iov_count, 1);
        assert_ptr_equal(step.iov[0].iov_base, data + 1100);
        assert_int_equal(step.iov[0].iov_len, 2996);
        assert_false(file_io_result(&req, 10));
        step = file_io_step(&req);
        assert_ptr_equal(step.iov[0].iov_base, data + 1110);
        assert_true(file_io_result(&req, 2986));
        assert_int_equal(req.result, 0);
        assert_int_equal(iov[2].iov_len, 3000);

        file_io_begin(&req);
        assert_true(file_io_result(&req, 0));
        assert_int_equal(req.result, -EIO);
        file_io_begin(&req);
        assert_true(file_io_result(&req, -ENOSPC));
        assert_int_equal(req.result, -ENOSPC);

        req.op = BLOCK_WRITE_ZEROES;
        req.flags = BLOCK_F_DURABLE;
        req.size_bytes = 100000;
        req.iov_count = 0;
        file_io_begin(&req);
        assert_int_equal(file_io_step(&req).call, FILE_IO_FALLOCATE);
        assert_false(file_io_result(&req, -EOPNOTSUPP));
        step = file_io_step(&req);
        assert_int_equal(step.call, FILE_IO_WRITEV);
        assert_int_equal(step.iov[0].iov_len, 65536);
        assert_false(file_io_result(&req, 65536));
        step = file_io_step(&req);
        assert_int_equal(step.offset_bytes, 8192 + 65536);
        assert_int_equal(step.iov[0].iov_len, 100000 - 65536);
        assert_false(file_io_result(&req, 100000 - 65536));
        assert_int_equal(file_io_step(&req).call, FILE_IO_SYNC);
        assert_true(file_io_result(&req, 0));
        assert_int_equal(req.result, 0);

        /* Too much to be written where nobody can stop it. */
        req.size_bytes = FILE_IO_ZEROES_WRITTEN + 512;
        file_io_begin(&req);
        assert_true(file_io_result(&req, -EOPNOTSUPP));
        assert_int_equal(req.result, -EOPNOTSUPP);
        file_io_begin(&req);
        assert_false(file_io_result(&req, 0));
        assert_int_equal(file_io_step(&req).call, FILE_IO_SYNC);

        req.op = BLOCK_DISCARD;
        req.flags = 0;
        file_io_begin(&req);
        assert_true(file_io_result(&req, -EOPNOTSUPP));
        assert_int_equal(req.result, 0);
}

static int open_error(struct fixture *f, const char *path, const char *format, unsigned flags, const char *text)
{
        struct err err = ERR_INIT;
        struct block *disk = NULL;
        int r = block_open(&(struct block_opening){ .loop = &f->loop, .path = path, .format = format, .flags = f->flags | flags }, &disk, &err);

        assert_null(disk);
        assert_true(r < 0);
        if (!strstr(err.text, text))
                fail_msg("'%s' is not in '%s'", text, err.text);
        run_out(f);
        return r;
}

static void test_cannot_open(void **state)
{
        struct fixture *f = *state;
        char fifo[128];

        assert_int_equal(open_error(f, f->path, NULL, 0, "No such file"), -ENOENT);
        assert_int_equal(open_error(f, f->dir, NULL, 0, "is a directory"), -EISDIR);
        assert_int_equal(open_error(f, f->dir, NULL, BLOCK_OPEN_READONLY, "is a directory"), -EISDIR);
        assert_int_equal(open_error(f, "/dev/null", NULL, 0, "neither a file nor a block device"), -EINVAL);
        assert_int_equal(open_error(f, f->path, "vhdz", 0, "no format 'vhdz'; there are: raw"), -EINVAL);
        make(f, 0, 0);
        assert_int_equal(open_error(f, f->path, "raw", 0, "is empty"), -EINVAL);
        snprintf(fifo, sizeof(fifo), "%s/fifo", f->dir);
        assert_int_equal(mkfifo(fifo, 0600), 0);
        assert_int_equal(open_error(f, fifo, NULL, BLOCK_OPEN_READONLY, "neither"), -EINVAL);
        unlink(fifo);
        make(f, 4096, 0);
        chmod(f->path, 0400);
        if (geteuid() != 0)
                assert_int_equal(open_error(f, f->path, NULL, 0, "for writing"), -EACCES);
        open_disk(f, BLOCK_OPEN_READONLY);
        assert_true(block_info(f->disk)->readonly);
}

static void test_locks(void **state)
{
        struct fixture *f = *state;
        struct block *second;

        make(f, 4096, 0);
        open_disk(f, 0);
        assert_int_equal(open_error(f, f->path, NULL, 0, "in use by another process; read-only users can share it"), -EBUSY);
        assert_int_equal(open_error(f, f->path, NULL, BLOCK_OPEN_READONLY, "in use by another process that writes it"), -EBUSY);
        assert_int_equal(block_open(&(struct block_opening){ .loop = &f->loop, .path = f->path, .flags = f->flags | BLOCK_OPEN_NO_LOCK }, &second, NULL), 0);
        block_close(second);
        close_disk(f);
        open_disk(f, BLOCK_OPEN_READONLY);
        assert_int_equal(block_open(&(struct block_opening){ .loop = &f->loop, .path = f->path, .flags = f->flags | BLOCK_OPEN_READONLY }, &second, NULL), 0);
        block_close(second);
        run_out(f);
        assert_int_equal(open_error(f, f->path, NULL, 0, "in use"), -EBUSY);
}

static void test_refresh(void **state)
{
        struct fixture *f = *state;
        struct err err = ERR_INIT;

        make(f, 4096, 0);
        open_disk(f, 0);
        assert_int_equal(truncate(f->path, 65536), 0);
        assert_int_equal(block_refresh(f->disk, &err), 0);
        assert_int_equal(block_info(f->disk)->size_bytes, 65536);
        assert_int_equal(truncate(f->path, 0), 0);
        assert_int_equal(block_refresh(f->disk, &err), -EINVAL);
        assert_int_equal(block_info(f->disk)->size_bytes, 65536);
}

/* No room: the limit on the size of files stands for a full disk (in a child, as it holds for the whole process). */
static void test_no_room(void **state)
{
        struct fixture *f = *state;
        int status;
        pid_t pid;

        make(f, 8 * MIB, 0);
        pid = fork();
        if (pid == 0) {
                struct rlimit limit = { 65536, 65536 };
                struct fixture *child = new_fixture(f->flags);
                uint8_t data[4096] = { 1 };
                int r, ok;

                signal(SIGXFSZ, SIG_IGN);
                setrlimit(RLIMIT_FSIZE, &limit);
                memcpy(child->path, f->path, sizeof(f->path));
                open_disk(child, 0);
                ok = run(child, BLOCK_WRITE, 4096, data, sizeof(data), 0);
                r = run(child, BLOCK_WRITE, MIB, data, sizeof(data), 0);
                /* It goes on working. */
                ok |= run(child, BLOCK_READ, 4096, data, sizeof(data), 0);
                rmdir(child->dir);
                _exit(ok == 0 && data[0] == 1 && (r == -EFBIG || r == -ENOSPC) ? 0 : 1);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_close_in_flight(void **state)
{
        struct fixture *f = *state;
        uint8_t data[4][4096];
        struct io io[4];

        make(f, MIB, 0x33);
        open_disk(f, 0);
        for (unsigned i = 0; i < 4; i++)
                start(f, &io[i], BLOCK_READ, 4096 * i, data[i], 4096, 0);
        close_disk(f);
        for (unsigned i = 0; i < 4; i++) {
                assert_true(io[i].done && io[i].result == 0);
                assert_int_equal(data[i][4095], 0x33);
        }
}

#define BOTH(test)                                                                                               \
        { .name = #test " io_uring", .test_func = test, .setup_func = setup_uring, .teardown_func = teardown },  \
        {                                                                                                        \
                .name = #test " threads", .test_func = test, .setup_func = setup_pool, .teardown_func = teardown \
        }

int main(void)
{
        const struct CMUnitTest tests[] = {
                BOTH(test_read_write),      BOTH(test_many),
                BOTH(test_odd_size),        BOTH(test_zeroes),
                BOTH(test_cannot_open),     BOTH(test_locks),
                BOTH(test_refresh),         BOTH(test_no_room),
                BOTH(test_close_in_flight), cmocka_unit_test(test_steps),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
