/*
 * Image formats beside qcow2: random requests, several at once, against a copy in memory; then QEMU writes to the same image. What comes out
 * is judged by our own check, by a second opening, and by qemu-img, where that is installed.
 */
#include "base/test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/wait.h>

#include "base/fiber.h"
#include "base/log.h"
#include "block/block.h"

#define MIB (UINT64_C(1) << 20)
#define DEPTH 12
#define COMMANDS_MAX 16384

struct fixture {
        uv_loop_t loop;
        char dir[64], path[96], model_path[96];
        const char *format, *theirs; /* the name that QEMU has for it */
        bool checked_by_qemu, backing, resized;
        char secret[96];             /* of encrypted ones, file:PATH */
        const struct block_option *option;
        unsigned options;
        struct block *disk;
        uint8_t *model, *seen;
        uint64_t size_bytes, room_bytes, seed;
};

struct op {
        struct block_request req;
        struct fixture *f;
        struct iovec iov[2];
        uint8_t *bytes;
        bool busy;
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
        /* Flushes cost nothing in memory, and are nothing that this test looks at. */
        snprintf(f->dir, sizeof(f->dir), "%s/virta-formats-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        assert_non_null(mkdtemp(f->dir));
        snprintf(f->model_path, sizeof(f->model_path), "%s/model.raw", f->dir);
        *state = f;
        return 0;
}

static void run_loop(struct fixture *f)
{
        while (uv_run(&f->loop, UV_RUN_NOWAIT))
                ;
}

static void remove_all(const char *path)
{
        DIR *dir = opendir(path);

        for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir))
                unlinkat(dirfd(dir), e->d_name, 0);
        closedir(dir);
        rmdir(path);
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        block_close(f->disk);
        run_loop(f);
        uv_run(&f->loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_close(&f->loop), 0);
        fiber_thread_done();
        remove_all(f->dir);
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
        struct block_opening opening = { .loop = &f->loop, .path = f->path, .format = f->format, .flags = flags, .secret = f->secret };

        if (block_open(&opening, &f->disk, &err) < 0)
                fail_msg("%s", err.text);
        if (!(flags & BLOCK_OPEN_REPAIR))
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

/* What is behind, in the same format. */
static void create_backing(struct fixture *f, struct block_creation *creation)
{
        char path[96], *at = strrchr(f->path, '/');
        struct block_creation base = { .size_bytes = f->size_bytes };
        struct block_opening opening = { .loop = &f->loop, .path = path, .format = f->format };
        struct err err = ERR_INIT;
        struct block *disk;

        snprintf(path, sizeof(path), "%.*s/base%s", (int)(at - f->path), f->path, strrchr(at, '.'));
        for (uint64_t k = 0; k < f->size_bytes; k++)
                f->model[k] = k % 500000 < 200000 ? 0 : (uint8_t)(k >> 9 ^ k);
        if (block_create(&opening, &base, true, &err) < 0 || block_open(&opening, &disk, &err) < 0)
                fail_msg("%s", err.text);
        for (uint64_t k = 0; k < f->size_bytes; k += 500000) {
                uint64_t from = k + 200000;

                if (from < f->size_bytes)
                        assert_int_equal(block_write(disk, from, f->model + from, MIN(UINT64_C(300000), f->size_bytes - from)), 0);
        }
        if (block_finish(disk, &err) < 0)
                fail_msg("%s", err.text);
        block_close(disk);
        run_loop(f);
        creation->backing = strdup(strrchr(path, '/') + 1);
        creation->backing_format = f->format;
}

static void create_image(struct fixture *f)
{
        struct err err = ERR_INIT;
        struct block_creation creation = { .size_bytes = f->size_bytes, .option = f->option, .options = f->options };
        struct block_opening opening = { .loop = &f->loop, .path = f->path, .format = f->format, .secret = f->secret };

        f->room_bytes = f->size_bytes * 2;
        f->model = calloc(1, f->room_bytes);
        f->seen = malloc(f->room_bytes);
        if (f->backing)
                create_backing(f, &creation);
        snprintf(f->secret, sizeof(f->secret), "file:%s/pass", f->dir);
        dump(f->secret + 5, (const uint8_t *)"a passphrase\n", 13);
        if (block_create(&opening, &creation, true, &err) < 0)
                fail_msg("%s", err.text);
        run_loop(f);
        free((char *)creation.backing);
}

/* ---- judges ---- */

static void say(void *ctx, const char *text)
{
        print_message("check: %s\n", text);
}

static void check_image(struct fixture *f, bool leaks, enum block_mend mend)
{
        struct block_check check = { .say = leaks ? NULL : say, .mend = mend };
        struct err err = ERR_INIT;

        open_image(f, BLOCK_OPEN_REPAIR | (mend ? 0 : BLOCK_OPEN_READONLY | BLOCK_OPEN_NO_LOCK));
        if (f->disk->driver->check && f->disk->driver->check(f->disk, &check, &err) < 0)
                fail_msg("%s", err.text);
        if (!leaks)
                assert_int_equal(check.leaks, 0);
        assert_int_equal(check.errors, 0);
        assert_int_equal(mend ? check.leaks_mended : 0, mend ? check.leaks : 0);
        close_image(f, mend);
}

static int _printf_(1, 2) command(const char *fmt, ...)
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

static bool have_qemu_img(void)
{
        return command("qemu-img --version >/dev/null 2>&1") == 0;
}

static void judge(struct fixture *f)
{
        if (!f->theirs || !have_qemu_img())
                return;
        if (f->checked_by_qemu)
                assert_int_equal(command("qemu-img check -q -f %s '%s' >'%s/out' 2>&1 || { cat '%s/out'; exit 1; }", f->theirs, f->path, f->dir, f->dir), 0);
        dump(f->model_path, f->model, f->size_bytes);
        assert_int_equal(command("qemu-img compare -q -f raw -F %s '%s' '%s'", f->theirs, f->model_path, f->path), 0);
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

/* Mostly in a few places, so that blocks stay free elsewhere. */
static void random_range(struct fixture *f, uint64_t *from, uint64_t *size_bytes)
{
        uint32_t unit = random_of(f, 4) ? 512 : 1, most = random_of(f, 5) == 0 ? 300 * 1024 : random_of(f, 2) ? 4096 : 70000;

        *from = random_of(f, (uint32_t)f->size_bytes) / unit * unit;
        *size_bytes = (1 + random_of(f, most)) / unit * unit;
        *size_bytes = MIN(MAX(*size_bytes, (uint64_t)unit), f->size_bytes - *from);
}

static void begin_op(struct fixture *f, struct op *op)
{
        static const enum block_op kinds[] = { BLOCK_READ, BLOCK_WRITE, BLOCK_WRITE, BLOCK_WRITE, BLOCK_WRITE_ZEROES };
        uint8_t *model = f->model + op->req.offset_bytes;
        uint64_t size_bytes = op->req.size_bytes, cut = random_of(f, (uint32_t)size_bytes + 1);

        op->f = f;
        op->req.op = random_of(f, 40) ? kinds[random_of(f, ARRAY_SIZE(kinds))] : BLOCK_FLUSH;
        op->req.flags = random_of(f, 60) == 0 ? BLOCK_F_DURABLE : 0;
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

static void random_resize(struct fixture *f)
{
        uint64_t size_bytes = f->room_bytes / 2048 * 512 + (uint64_t)random_of(f, (uint32_t)(f->room_bytes / 4 * 3 / 512)) * 512;
        struct err err = ERR_INIT;

        if (block_resize(f->disk, size_bytes, &err) < 0)
                fail_msg("%s", err.text);
        if (size_bytes > f->size_bytes)
                memset(f->model + f->size_bytes, 0, size_bytes - f->size_bytes);
        f->size_bytes = size_bytes;
}

/* Whole sectors, as it has them; all in one run of qemu-io. */
static void writes_by_qemu(struct fixture *f, unsigned count)
{
        char *commands = malloc(COMMANDS_MAX);
        size_t used = 0;

        if (!f->theirs || !have_qemu_img()) {
                free(commands);
                return;
        }
        for (unsigned n = 0; n < count; n++) {
                uint64_t from, size_bytes;
                unsigned fill = random_of(f, 256);

                random_range(f, &from, &size_bytes);
                from = from / 512 * 512;
                size_bytes = MIN(align_up(size_bytes, 512), f->size_bytes - from);
                if (random_of(f, 4) == 0) {
                        used += (size_t)snprintf(commands + used, COMMANDS_MAX - used, " -c 'write -z %" PRIu64 " %" PRIu64 "'", from, size_bytes);
                        fill = 0;
                } else {
                        used += (size_t)snprintf(commands + used, COMMANDS_MAX - used, " -c 'write -P %u %" PRIu64 " %" PRIu64 "'", fill, from, size_bytes);
                }
                memset(f->model + from, (int)fill, size_bytes);
        }
        assert_int_equal(command("qemu-io -f %s %s '%s' >'%s/out' 2>&1 && ! grep -i -q fail '%s/out' || { cat '%s/out'; exit 1; }", f->theirs, commands, f->path,
                                 f->dir, f->dir, f->dir), 0);
        free(commands);
}

static void random_life(struct fixture *f, unsigned rounds)
{
        create_image(f);
        for (unsigned round = 0; round < rounds; round++) {
                bool finish = round % 2 == 0;

                open_image(f, 0);
                if (round == 0 && f->disk->info.noise)
                        assert_int_equal(block_do(f->disk, BLOCK_WRITE_ZEROES, 0, 0, f->size_bytes, NULL, 0), 0);
                compare_all(f);
                random_requests(f, 30); /* some blocks stay free */
                compare_all(f);
                random_requests(f, 300);
                random_discards(f, 20);
                compare_all(f);
                if (f->resized)
                        random_resize(f);
                random_requests(f, 100);
                compare_all(f);
                if (!finish)
                        assert_int_equal(block_flush(f->disk), 0);
                close_image(f, finish);
                if (!finish && f->theirs && strcmp(f->theirs, "vhdx") == 0 && have_qemu_img()) { /* its log is one for QEMU, too */
                        dump(f->model_path, f->model, f->size_bytes);
                        assert_int_equal(command("cd '%s' && cp disk.vhdx copy && qemu-img check -q -r all -f vhdx copy && "
                                                 "qemu-img compare -q -f raw -F vhdx model.raw copy", f->dir), 0);
                }
                check_image(f, !finish, BLOCK_MEND_NOTHING);
                if (!finish)
                        check_image(f, true, BLOCK_MEND_ALL);
                judge(f);
                writes_by_qemu(f, 20);
                check_image(f, false, BLOCK_MEND_NOTHING);
        }
        open_image(f, BLOCK_OPEN_READONLY);
        compare_all(f);
        close_image(f, true);
}

/* A name; the format, its suffix, QEMU's name for it; flags; size; options. */
#define CHECKED 1
#define BACKED 2
#define RESIZED 4
#define LIFE(name, ours, suffix, qemu, flags, size, ...)                                                                                \
        static void name(void **state)                                                                                                  \
        {                                                                                                                               \
                static const struct block_option option[] = { __VA_ARGS__ };                                                            \
                struct fixture *f = *state;                                                                                             \
                                                                                                                                        \
                f->seed = UINT64_C(88172645463325252) + __LINE__;                                                                       \
                f->format = ours;                                                                                                       \
                f->theirs = qemu;                                                                                                       \
                f->checked_by_qemu = (flags) & CHECKED;                                                                                 \
                f->backing = (flags) & BACKED;                                                                                          \
                f->resized = (flags) & RESIZED;                                                                                         \
                f->size_bytes = size;                                                                                                   \
                f->option = option;                                                                                                     \
                f->options = ARRAY_SIZE(option);                                                                                        \
                snprintf(f->path, sizeof(f->path), "%s/disk" suffix, f->dir);                                                           \
                random_life(f, 3);                                                                                                      \
        }

LIFE(vdi_dynamic, "vdi", ".vdi", "vdi", CHECKED, 40 * MIB + 512, { "static", "off" })
LIFE(vdi_static, "vdi", ".vdi", "vdi", CHECKED, 9 * MIB + 512, { "static", "on" })
LIFE(vdi_small_blocks, "vdi", ".vdi", NULL, RESIZED, 9 * MIB + 512, { "block_size", "8K" })
LIFE(vdi_resized, "vdi", ".vdi", "vdi", CHECKED | RESIZED, 20 * MIB, { "static", "off" })
LIFE(vhd_dynamic, "vhd", ".vhd", "vpc", 0, 40 * MIB + 512, { "subformat", "dynamic" })
LIFE(vhd_fixed, "vhd", ".vhd", "vpc", RESIZED, 9 * MIB + 512, { "subformat", "fixed" })
LIFE(vhd_small_blocks, "vhd", ".vpc", "vpc", RESIZED, 9 * MIB + 512, { "block_size", "16K" })
LIFE(vmdk_sparse, "vmdk", ".vmdk", "vmdk", CHECKED, 40 * MIB + 512, { "subformat", "monolithicSparse" })
LIFE(vmdk_flat, "vmdk", ".vmdk", "vmdk", CHECKED, 9 * MIB + 512, { "subformat", "monolithicFlat" })
LIFE(vmdk_split, "vmdk", ".vmdk", "vmdk", CHECKED, 9 * MIB + 512, { "subformat", "twoGbMaxExtentSparse" })
LIFE(vmdk_split_flat, "vmdk", ".vmdk", "vmdk", CHECKED, 9 * MIB + 512, { "subformat", "twoGbMaxExtentFlat" })
LIFE(vmdk_zeroed, "vmdk", ".vmdk", "vmdk", CHECKED, 40 * MIB + 512, { "zeroed_grain", "on" })
LIFE(vmdk_backing, "vmdk", ".vmdk", "vmdk", CHECKED | BACKED, 20 * MIB, { "zeroed_grain", "off" })
LIFE(vmdk_backing_zeroed, "vmdk", ".vmdk", "vmdk", CHECKED | BACKED, 20 * MIB + 512, { "zeroed_grain", "on" })
LIFE(vhdx_dynamic, "vhdx", ".vhdx", "vhdx", CHECKED, 40 * MIB + 512, { "block_size", "1M" })
LIFE(vhdx_fixed, "vhdx", ".vhdx", "vhdx", CHECKED, 9 * MIB + 512, { "subformat", "fixed" })
LIFE(vhdx_sectors, "vhdx", ".vhdx", NULL, 0, 20 * MIB, { "logical_sector", "4096" }, { "block_size", "2M" })
LIFE(luks_1, "luks", ".luks", NULL, RESIZED, 5 * MIB + 512, { "version", "1" }, { "iter_time", "10" })
LIFE(luks_2, "luks", ".luks", NULL, 0, 5 * MIB, { "sector_size", "4096" }, { "iter_time", "10" }, { "memory", "1M" })

int main(int argc, char **argv)
{
        log_init("test-formats", LOG_INFO);
        if (argc > 1)
                cmocka_set_test_filter(argv[1]);
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = {
                CASE(vdi_dynamic), CASE(vdi_static), CASE(vdi_small_blocks), CASE(vdi_resized),
                CASE(vhd_dynamic), CASE(vhd_fixed), CASE(vhd_small_blocks),
                CASE(vmdk_sparse), CASE(vmdk_flat), CASE(vmdk_split), CASE(vmdk_split_flat), CASE(vmdk_zeroed), CASE(vmdk_backing), CASE(vmdk_backing_zeroed),
                CASE(vhdx_dynamic), CASE(vhdx_fixed), CASE(vhdx_sectors), CASE(luks_1), CASE(luks_2),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
