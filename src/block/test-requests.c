#include "block/test-requests.h"

#include "base/test.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/wait.h>

#include "base/fiber.h"

#define DEPTH 12

struct op {
        struct block_request req;
        struct model_disk *m;
        struct iovec iov[2];
        uint8_t *bytes;
        bool busy;
};

/* ---- beginning and end ---- */

void model_begin(struct model_disk *m, const char *name, bool in_memory)
{
        assert_int_equal(uv_loop_init(&m->loop), 0);
        snprintf(m->dir, sizeof(m->dir), "%s/virta-%s-XXXXXX", in_memory && access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", name);
        assert_non_null(mkdtemp(m->dir));
        snprintf(m->model_path, sizeof(m->model_path), "%s/model.raw", m->dir);
}

void model_room(struct model_disk *m, uint64_t size_bytes)
{
        m->model = calloc(1, size_bytes);
        m->seen = malloc(size_bytes);
        assert_true(m->model && m->seen);
}

void model_run_loop(struct model_disk *m)
{
        while (uv_run(&m->loop, UV_RUN_NOWAIT))
                ;
}

void model_close(struct model_disk *m, bool finish)
{
        struct err err = ERR_INIT;

        if (finish && block_finish(m->disk, &err) < 0)
                fail_msg("%s", err.text);
        block_close(m->disk);
        m->disk = NULL;
        model_run_loop(m);
}

static void remove_all(const char *path)
{
        DIR *dir = opendir(path);

        for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir))
                unlinkat(dirfd(dir), e->d_name, 0);
        if (dir)
                closedir(dir);
        rmdir(path);
}

void model_end(struct model_disk *m)
{
        model_close(m, false);
        uv_run(&m->loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_close(&m->loop), 0);
        fiber_thread_done();
        remove_all(m->dir);
        free(m->model);
        free(m->seen);
}

/* ---- random requests ---- */

uint32_t random_of(struct model_disk *m, uint32_t below)
{
        m->seed ^= m->seed << 13;
        m->seed ^= m->seed >> 7;
        m->seed ^= m->seed << 17;
        return below ? (uint32_t)(m->seed >> 20) % below : 0;
}

void random_range(struct model_disk *m, uint64_t *from, uint64_t *size_bytes)
{
        uint32_t unit = random_of(m, 4) ? 512 : 1, most = random_of(m, 5) == 0 ? 300 * 1024 : random_of(m, 2) ? 4096 : 70000;

        *from = random_of(m, (uint32_t)m->size_bytes) / unit * unit;
        *size_bytes = (1 + random_of(m, most)) / unit * unit;
        *size_bytes = MIN(MAX(*size_bytes, (uint64_t)unit), m->size_bytes - *from);
}

static void op_done(struct block_request *req, int result)
{
        struct op *op = container_of(req, struct op, req);

        op->busy = false;
        if (result < 0)
                fail_msg("request %d of %" PRIu64 " bytes at %#" PRIx64 " fails: %s", req->op, req->size_bytes, req->offset_bytes, strerror(-result));
        if (req->op == BLOCK_READ && memcmp(op->bytes, op->m->model + req->offset_bytes, req->size_bytes) != 0)
                fail_msg("read of %" PRIu64 " bytes at %#" PRIx64 " is wrong", req->size_bytes, req->offset_bytes);
        free(op->bytes);
        op->bytes = NULL;
}

static bool overlaps(const struct op *op, uint64_t from, uint64_t to)
{
        return op->busy && op->req.offset_bytes < to && op->req.offset_bytes + op->req.size_bytes > from;
}

/* The copy has what the disk will have: nothing else in flight touches it. */
static void begin_op(struct model_disk *m, struct op *op, uint64_t from, uint64_t size_bytes)
{
        static const enum block_op kinds[] = { BLOCK_READ, BLOCK_WRITE, BLOCK_WRITE, BLOCK_WRITE, BLOCK_WRITE_ZEROES };
        uint8_t *model = m->model + from;
        uint64_t cut = random_of(m, (uint32_t)size_bytes + 1);

        op->m = m;
        op->busy = true;
        op->req = (struct block_request){
                .op = random_of(m, m->flush_one_in) ? kinds[random_of(m, ARRAY_SIZE(kinds))] : BLOCK_FLUSH,
                .flags = random_of(m, m->durable_one_in) == 0 ? BLOCK_F_DURABLE : 0, .offset_bytes = from, .size_bytes = size_bytes, .done = op_done,
        };
        if (op->req.op == BLOCK_WRITE_ZEROES) {
                op->req.flags |= random_of(m, 2) ? BLOCK_F_UNMAP : 0;
                memset(model, 0, size_bytes);
        } else if (op->req.op == BLOCK_FLUSH) {
                op->req.offset_bytes = op->req.size_bytes = 0;
        } else {
                op->bytes = malloc(size_bytes);
                for (uint64_t n = 0; op->req.op == BLOCK_WRITE && n < size_bytes; n++)
                        model[n] = op->bytes[n] = (uint8_t)(n + m->seed);
                op->iov[0] = (struct iovec){ op->bytes, cut };
                op->iov[1] = (struct iovec){ op->bytes + cut, size_bytes - cut };
                op->req.iov = op->iov;
                op->req.iov_count = 2;
        }
        block_submit(m->disk, &op->req);
}

void random_requests(struct model_disk *m, unsigned count)
{
        struct op op[DEPTH] = { 0 };

        for (unsigned n = 0; n < count; n++) {
                struct op *free_op = NULL;
                uint64_t from, size_bytes;
                bool clash = false;

                random_range(m, &from, &size_bytes);
                for (unsigned k = 0; k < DEPTH; k++) {
                        clash |= overlaps(&op[k], from, from + size_bytes);
                        if (!op[k].busy)
                                free_op = &op[k];
                }
                if (!clash && free_op)
                        begin_op(m, free_op, from, size_bytes);
                block_kick(m->disk);
                if (!free_op || random_of(m, 3) == 0)
                        uv_run(&m->loop, UV_RUN_ONCE);
        }
        block_drain(m->disk);
}

void random_discards(struct model_disk *m, unsigned count)
{
        for (unsigned n = 0; n < count; n++) {
                uint64_t from, size_bytes;

                random_range(m, &from, &size_bytes);
                assert_int_equal(block_do(m->disk, BLOCK_DISCARD, 0, from, size_bytes, NULL, 0), 0);
                assert_int_equal(block_read(m->disk, from, m->seen, size_bytes), 0);
                for (uint64_t k = 0; k < size_bytes; k++)
                        assert_true(!m->seen[k] || m->seen[k] == m->model[from + k]);
                memcpy(m->model + from, m->seen, size_bytes);
        }
}

/* ---- judges ---- */

void compare_all(struct model_disk *m)
{
        assert_int_equal(block_read(m->disk, 0, m->seen, m->size_bytes), 0);
        for (uint64_t at = 0; at < m->size_bytes; at++)
                if (m->seen[at] != m->model[at])
                        fail_msg("byte %#" PRIx64 " is %#x, should be %#x", at, m->seen[at], m->model[at]);
}

static void say(void *ctx, const char *text)
{
        (void)ctx;
        print_message("check: %s\n", text);
}

void check_disk(struct model_disk *m, bool leaks, enum block_mend mend)
{
        struct block_check check = { .say = leaks ? NULL : say, .mend = mend };
        struct err err = ERR_INIT;

        if (m->disk->driver->check && m->disk->driver->check(m->disk, &check, &err) < 0)
                fail_msg("%s", err.text);
        if (!leaks)
                assert_int_equal(check.leaks, 0);
        assert_int_equal(check.errors, 0);
        if (mend)
                assert_int_equal(check.leaks_mended, check.leaks);
}

void dump(const char *path, const uint8_t *bytes, uint64_t size_bytes)
{
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

        assert_true(fd >= 0);
        assert_int_equal(write(fd, bytes, size_bytes), size_bytes);
        close(fd);
}

int command(const char *fmt, ...)
{
        _cleanup_free_ char *text = NULL;
        va_list args;
        int status;

        va_start(args, fmt);
        status = vasprintf(&text, fmt, args);
        va_end(args);
        assert_true(status > 0);
        status = system(text);
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool have_qemu_img(void)
{
        return command("qemu-img --version >/dev/null 2>&1") == 0;
}

void compare_by_qemu(struct model_disk *m, const char *theirs, const char *path)
{
        dump(m->model_path, m->model, m->size_bytes);
        assert_int_equal(command("qemu-img compare -q -f raw -F %s '%s' '%s'", theirs, m->model_path, path), 0);
}
