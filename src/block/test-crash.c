/*
 * Formats through crashes: a workload is recorded write by write, and the image is put together as a crash could have left it: up to each
 * write, and with any choice of what was written since the last flush, torn at 512 bytes. Each time it must open, have no errors (space may
 * be lost), and hold all that was flushed. The same workload then meets an error, a full disk and a failing allocation at each call in turn.
 *
 * test-crash [STATES [CASE]]: so many torn states for each set of options; only that case (* and ? as in names of files).
 */
#include "base/test.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/fiber.h"
#include "base/log.h"
#include "base/test-alloc.h"
#include "block/bitmap.h"
#include "block/block.h"
#include "block/test-memory.h"

#define DISK_BYTES (UINT64_C(1) << 20)
#define SECTORS (DISK_BYTES / 512)
#define OPS_MAX 400

static unsigned torn_states = 60;

/* What a sector may hold since an operation: the number of the write that stamped it; 0: zeroes. */
struct version {
        uint32_t op, stamp;
        bool maybe; /* of a discard: what was there before may still be */
};

struct history {
        struct version *version;
        unsigned count;
};

struct fixture {
        uv_loop_t loop;
        const struct block_driver *driver;
        const struct block_option *option;
        unsigned options;
        char path[32];
        uint64_t room_bytes;        /* no file becomes longer */
        uint8_t *image;             /* as created */
        uint64_t image_bytes, seed;
        struct memory_log log;
        struct history history[SECTORS];
        unsigned ops, begin[OPS_MAX]; /* events before each operation */
        unsigned flushes, flushed_at[OPS_MAX], flushed_ops[OPS_MAX]; /* events then, and operations that it covers */
        struct memory_file *file;
        struct block *disk;
        unsigned states;
        bool bitmap;                /* the image has one, and is finished in the end */
        uint64_t dirty;             /* what it has then */
};

static uint32_t random_of(struct fixture *f, uint32_t below)
{
        f->seed = f->seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        return below ? (uint32_t)(f->seed >> 33) % below : 0;
}

/* ---- images in memory ---- */

static int open_disk(struct fixture *f, const uint8_t *bytes, uint64_t size_bytes, unsigned flags, struct err *err)
{
        struct block_opening opening = { .loop = &f->loop, .path = f->path, .flags = flags };
        int r;

        f->file = memory_file_new(&f->loop, bytes, size_bytes);
        f->file->block.info.readonly = flags & BLOCK_OPEN_READONLY;
        opening.file = &f->file->block;
        r = f->driver->open(&opening, &f->disk, err);
        if (r < 0) {
                block_close(&f->file->block);
                f->file = NULL;
                f->disk = NULL;
        }
        return r;
}

static void close_disk(struct fixture *f)
{
        block_close(f->disk);
        f->disk = NULL;
        f->file = NULL;
        uv_run(&f->loop, UV_RUN_NOWAIT);
}

static void create_image(struct fixture *f)
{
        struct block_creation creation = { .size_bytes = DISK_BYTES, .option = f->option, .options = f->options };
        struct memory_file *file = memory_file_new(&f->loop, NULL, 0);
        struct err err = ERR_INIT;

        if (f->driver->create(&file->block, &creation, &err) < 0)
                fail_msg("%s", err.text);
        f->image_bytes = file->size_bytes;
        f->image = malloc(file->size_bytes);
        memcpy(f->image, file->bytes, file->size_bytes);
        block_close(&file->block);
}

/* ---- the workload ---- */

static void remember(struct fixture *f, uint64_t offset, uint64_t size_bytes, uint32_t stamp, bool maybe)
{
        for (uint64_t n = offset / 512; n < (offset + size_bytes) / 512; n++) {
                struct history *h = &f->history[n];

                h->version = __real_realloc(h->version, (h->count + 1) * sizeof(*h->version));
                h->version[h->count++] = (struct version){ f->ops, stamp, maybe };
        }
}

static void stamp_bytes(uint8_t *bytes, uint64_t offset, uint64_t size_bytes, uint32_t stamp)
{
        for (uint64_t at = 0; at < size_bytes; at += 512) {
                uint64_t words[2] = { stamp, offset + at };

                memset(bytes + at, (int)(stamp & 0xff), 512);
                memcpy(bytes + at, words, sizeof(words));
        }
}

static void random_range(struct fixture *f, uint64_t *offset, uint64_t *size_bytes)
{
        *offset = (uint64_t)random_of(f, SECTORS) * 512;
        *size_bytes = (1 + (uint64_t)random_of(f, random_of(f, 4) ? 24 : 160)) * 512;
        *size_bytes = MIN(*size_bytes, DISK_BYTES - *offset);
}

static int do_write(struct fixture *f, uint64_t offset, uint64_t size_bytes)
{
        uint8_t *bytes = __real_malloc(size_bytes);
        int r;

        stamp_bytes(bytes, offset, size_bytes, f->ops + 1);
        remember(f, offset, size_bytes, f->ops + 1, false);
        r = block_write(f->disk, offset, bytes, size_bytes);
        free(bytes);
        return r;
}

/* One that fails may have been done, or not, or in part: then both count. */
static void undecided(struct fixture *f, uint64_t offset, uint64_t size_bytes)
{
        for (uint64_t n = offset / 512; n < (offset + size_bytes) / 512; n++)
                f->history[n].version[f->history[n].count - 1].maybe = true;
}

static void one_op(struct fixture *f)
{
        uint64_t offset, size_bytes;
        uint32_t kind = random_of(f, 16);
        int r;

        random_range(f, &offset, &size_bytes);
        f->begin[f->ops] = f->log.events;
        if (kind < 9) {
                r = do_write(f, offset, size_bytes);
        } else if (kind < 12) {
                remember(f, offset, size_bytes, 0, false);
                r = block_do(f->disk, BLOCK_WRITE_ZEROES, kind == 9 ? BLOCK_F_UNMAP : 0, offset, size_bytes, NULL, 0);
        } else if (kind < 13) {
                remember(f, offset, size_bytes, 0, true);
                r = block_do(f->disk, BLOCK_DISCARD, 0, offset, size_bytes, NULL, 0);
        } else {
                size_bytes = 0;
                r = block_flush(f->disk);
                if (r == 0) {
                        f->flushed_at[f->flushes] = f->log.events;
                        f->flushed_ops[f->flushes++] = f->ops;
                }
        }
        if (r < 0 && size_bytes)
                undecided(f, offset, size_bytes);
        f->ops++;
}

static void snapshots(struct fixture *f, unsigned step)
{
        const struct block_snapshot_ops *ops = f->driver->snapshots;
        int r = 0;

        if (!ops)
                return;
        if (step == 30)
                r = ops->create(f->disk, "one", NULL);
        else if (step == 60)
                r = ops->create(f->disk, "two", NULL);
        else if (step == 80)
                r = ops->delete(f->disk, "one", NULL);
        (void)r;
}

static void workload(struct fixture *f, unsigned ops)
{
        f->ops = f->flushes = 0;
        for (unsigned n = 0; n < ops; n++) {
                one_op(f);
                snapshots(f, n);
        }
}

static void forget_workload(struct fixture *f)
{
        for (unsigned n = 0; n < SECTORS; n++) {
                free(f->history[n].version);
                f->history[n] = (struct history){ 0 };
        }
        memory_log_done(&f->log);
}

/* ---- what must hold ---- */

static bool is_stamp(const uint8_t *sector, uint32_t stamp, uint64_t offset)
{
        uint8_t expected[512] = { 0 };

        if (stamp)
                stamp_bytes(expected, offset, 512, stamp);
        return memcmp(sector, expected, 512) == 0;
}

/* What was written before `flushed` holds, unless something that began before event `events` has taken its place. */
static bool sector_good(const struct fixture *f, unsigned n, const uint8_t *sector, unsigned flushed, unsigned events)
{
        const struct history *h = &f->history[n];

        for (unsigned k = h->count; k-- > 0;) {
                const struct version *v = &h->version[k];

                if (f->begin[v->op] > events)
                        continue;
                if (is_stamp(sector, v->stamp, (uint64_t)n * 512))
                        return true;
                if (v->op < flushed && !v->maybe)
                        return false;
        }
        return is_stamp(sector, 0, 0);
}

static void look(struct fixture *f, const char *what, unsigned events)
{
        static uint8_t disk[DISK_BYTES];
        struct block_check check = { .mend = BLOCK_MEND_NOTHING };
        struct err err = ERR_INIT;
        unsigned flushed = 0;

        for (unsigned n = 0; n < f->flushes; n++)
                if (f->flushed_at[n] <= events)
                        flushed = f->flushed_ops[n];
        if (f->driver->check(f->disk, &check, &err) < 0)
                fail_msg("%s at event %u: %s", what, events, err.text);
        if (check.errors)
                fail_msg("%s at event %u: %" PRIu64 " errors", what, events, check.errors);
        if (block_read(f->disk, 0, disk, DISK_BYTES) < 0)
                fail_msg("%s at event %u: cannot be read", what, events);
        for (unsigned n = 0; n < SECTORS; n++)
                if (!sector_good(f, n, disk + (size_t)n * 512, flushed, events))
                        fail_msg("%s at event %u: sector %u has stamp %" PRIu64 ", %u operations were flushed", what, events, n,
                                 *(const uint64_t *)(disk + (size_t)n * 512), flushed);
}

/* Either it says that it missed something, or it has all. */
static void look_at_bitmap(struct fixture *f, const char *what, unsigned events)
{
        struct block_bitmap *b = block_bitmap_find(f->disk, "one");

        if (!b)
                fail_msg("%s at event %u: the bitmap is gone", what, events);
        if (!b->inconsistent && b->dirty != f->dirty)
                fail_msg("%s at event %u: the bitmap has %" PRIu64 " bits, not %" PRIu64, what, events, b->dirty, f->dirty);
}

static void judge(struct fixture *f, const char *what, const uint8_t *bytes, unsigned events)
{
        struct err err = ERR_INIT;

        if (open_disk(f, bytes, f->room_bytes, 0, &err) < 0)
                fail_msg("%s at event %u: %s", what, events, err.text);
        if (f->bitmap)
                look_at_bitmap(f, what, events);
        look(f, what, events);
        close_disk(f);
        f->states++;
}

/* ---- crashes ---- */

static void keep_image(struct fixture *f)
{
        free(f->image);
        f->image_bytes = f->file->size_bytes;
        f->image = malloc(f->image_bytes);
        memcpy(f->image, f->file->bytes, f->image_bytes);
}

/* Makes the image one that has a bitmap. */
static void add_bitmap(struct fixture *f)
{
        struct block_bitmap *b;

        assert_int_equal(open_disk(f, f->image, f->image_bytes, 0, NULL), 0);
        assert_int_equal(block_bitmap_add(f->disk, "one", 512, &b, NULL), 0);
        b->persistent = true;
        assert_int_equal(block_finish(f->disk, NULL), 0);
        keep_image(f);
        close_disk(f);
}

static void finish(struct fixture *f)
{
        struct err err = ERR_INIT;

        f->dirty = block_bitmap_find(f->disk, "one")->dirty;
        assert_true(f->dirty);
        block_bitmap_find(f->disk, "one")->enabled = f->ops % 2;
        if (block_finish(f->disk, &err) < 0)
                fail_msg("%s", err.text);
}

static void record(struct fixture *f, unsigned ops)
{
        struct err err = ERR_INIT;

        create_image(f);
        if (f->bitmap)
                add_bitmap(f);
        if (open_disk(f, f->image, f->image_bytes, 0, &err) < 0)
                fail_msg("%s", err.text);
        if (f->bitmap)
                keep_image(f); /* it says now that the bitmap is in use */
        f->file->log = &f->log;
        workload(f, ops);
        if (f->bitmap)
                finish(f);
        assert_true(f->file->size_bytes <= f->room_bytes);
        f->file->log = NULL;
        close_disk(f);
}

static void tear(struct fixture *f, uint8_t *bytes, unsigned from, unsigned to)
{
        for (unsigned n = from; n < to; n++) {
                const struct memory_event *event = &f->log.event[n];
                uint32_t how = random_of(f, 3);

                if (how == 0)
                        continue;
                for (uint64_t at = 0; at < event->size_bytes;) {
                        uint64_t some = MIN(512 - (event->offset_bytes + at) % 512, event->size_bytes - at);

                        if (how == 1 || random_of(f, 2))
                                memory_replay(bytes, f->room_bytes, event, at, at + some);
                        at += some;
                }
        }
}

static void crash(struct fixture *f)
{
        uint8_t *sound = calloc(1, f->room_bytes), *bytes = malloc(f->room_bytes);
        unsigned flush = 0, each = MAX(f->log.events / torn_states, 1u);

        memcpy(sound, f->image, f->image_bytes); /* up to the last flush */
        memcpy(bytes, sound, f->room_bytes);
        for (unsigned n = 0; n < f->log.events; n++) {
                const struct memory_event *event = &f->log.event[n];

                memory_replay(bytes, f->room_bytes, event, 0, event->size_bytes);
                if (event->op == BLOCK_FLUSH) {
                        memcpy(sound, bytes, f->room_bytes);
                        flush = n + 1;
                }
                if (n % each)
                        continue;
                judge(f, "crash", bytes, n + 1);
                if (n + 1 > flush) {
                        uint8_t *torn = malloc(f->room_bytes);

                        memcpy(torn, sound, f->room_bytes);
                        tear(f, torn, flush, n + 1);
                        judge(f, "torn crash", torn, n + 1);
                        free(torn);
                }
        }
        free(sound);
        free(bytes);
}

static int setup(void **state)
{
        struct fixture *f = calloc(1, sizeof(*f));

        assert_int_equal(uv_loop_init(&f->loop), 0);
        *state = f;
        return 0;
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        test_alloc_fail_after(-1);
        if (f->disk)
                close_disk(f);
        forget_workload(f);
        uv_run(&f->loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_close(&f->loop), 0);
        fiber_thread_done();
        free(f->image);
        free(f);
        return 0;
}

/* ---- failures at each call ---- */

enum trouble { TROUBLE_IO, TROUBLE_SPACE, TROUBLE_MEMORY };

/* false: the trouble did not come any more. */
static bool with_trouble(struct fixture *f, enum trouble trouble, long at)
{
        struct err err = ERR_INIT;
        uint8_t *bytes;
        bool came;

        f->seed = 77;
        if (open_disk(f, f->image, f->image_bytes, 0, &err) < 0)
                fail_msg("%s", err.text);
        f->file->log = trouble == TROUBLE_MEMORY ? NULL : &f->log; /* which needs some, too */
        if (trouble == TROUBLE_IO) {
                f->file->fail_after = at;
                f->file->fail_error = -EIO;
        } else if (trouble == TROUBLE_SPACE) {
                f->file->limit_bytes = f->image_bytes + (uint64_t)at * 4096;
        } else {
                test_alloc_fail_after(at);
        }
        workload(f, 100);
        came = trouble == TROUBLE_IO ? f->file->failed : trouble == TROUBLE_SPACE ? f->file->size_bytes + 65536 > f->file->limit_bytes : alloc_left_ < 0;
        test_alloc_fail_after(-1);
        f->file->log = NULL;
        bytes = calloc(1, f->room_bytes);
        memcpy(bytes, f->file->bytes, f->file->size_bytes);
        close_disk(f);
        judge(f, "trouble", bytes, f->log.events);
        free(bytes);
        forget_workload(f);
        return came;
}

static void trouble(struct fixture *f, enum trouble kind, unsigned step)
{
        create_image(f);
        for (long at = 0; with_trouble(f, kind, at); at += step)
                ;
        print_message("%u states\n", f->states);
}

static void use_format(struct fixture *f, const char *name)
{
        static const struct block_option small[] = { { "block_size", "16K" } };

        if (strcmp(name, "vdi") == 0 || strcmp(name, "vhd") == 0) {
                f->option = small;
                f->options = 1;
        }
        f->driver = block_driver_find(name);
        assert_non_null(f->driver);
        f->room_bytes = (strcmp(name, "qcow2") == 0 || strcmp(name, "vhdx") == 0 ? UINT64_C(16) : UINT64_C(4)) << 20;
        snprintf(f->path, sizeof(f->path), "memory%s", f->driver->suffixes[0]);
}

#define CRASH(name, format, number, ...)                             \
        static void name(void **state)                               \
        {                                                            \
                static const struct block_option option[] = { __VA_ARGS__ }; \
                struct fixture *f = *state;                          \
                                                                     \
                use_format(f, format);                               \
                f->seed = number;                                    \
                f->option = option;                                  \
                f->bitmap = number == 6 || number == 7;                              \
                f->options = ARRAY_SIZE(option);                     \
                record(f, 120);                                      \
                crash(f);                                            \
                print_message("%u states of %u events\n", f->states, f->log.events); \
        }

CRASH(crash_plain, "qcow2", 1, { "version", "3" })
CRASH(crash_small_clusters, "qcow2", 2, { "cluster_size", "4K" })
CRASH(crash_tiny_clusters, "qcow2", 3, { "cluster_size", "512" })
CRASH(crash_old_version, "qcow2", 4, { "version", "2" }, { "cluster_size", "4K" })
CRASH(crash_subclusters, "qcow2", 5, { "extended_l2", "on" }, { "cluster_size", "16K" })

CRASH(crash_bitmap, "qcow2", 6, { "version", "3" })
CRASH(crash_bitmap_small, "qcow2", 7, { "cluster_size", "4K" })
CRASH(crash_vdi, "vdi", 8, { "block_size", "16K" })
CRASH(crash_vhd, "vhd", 9, { "block_size", "16K" })
CRASH(crash_vhdx, "vhdx", 11, { "block_size", "1M" })
CRASH(crash_vmdk, "vmdk", 10, { "zeroed_grain", "on" })

/* step: so many calls from one trouble to the next, in the short test. */
#define TROUBLE(format, step)                                                                 \
        static void an_error_at_each_call_##format(void **state)                              \
        {                                                                                     \
                use_format(*state, #format);                                                  \
                trouble(*state, TROUBLE_IO, torn_states > 100 ? 1 : (step));                  \
        }                                                                                     \
                                                                                              \
        static void a_full_disk_at_each_place_##format(void **state)                          \
        {                                                                                     \
                use_format(*state, #format);                                                  \
                trouble(*state, TROUBLE_SPACE, torn_states > 100 ? 1 : (step));               \
        }                                                                                     \
                                                                                              \
        static void no_memory_at_each_call_##format(void **state)                             \
        {                                                                                     \
                use_format(*state, #format);                                                  \
                trouble(*state, TROUBLE_MEMORY, torn_states > 100 ? 1 : 2 * (step));          \
        }

TROUBLE(qcow2, 7)
TROUBLE(vdi, 11)
TROUBLE(vhd, 11)
TROUBLE(vhdx, 11)
TROUBLE(vmdk, 11)

int main(int argc, char **argv)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = {
#define TROUBLES(format) CASE(an_error_at_each_call_##format), CASE(a_full_disk_at_each_place_##format), CASE(no_memory_at_each_call_##format)
                CASE(crash_plain), CASE(crash_small_clusters), CASE(crash_tiny_clusters), CASE(crash_old_version), CASE(crash_subclusters),
                CASE(crash_bitmap), CASE(crash_bitmap_small), CASE(crash_vdi), CASE(crash_vhd), CASE(crash_vhdx), CASE(crash_vmdk),
                TROUBLES(qcow2),
                TROUBLES(vdi),
                TROUBLES(vhd),
                TROUBLES(vhdx),
                TROUBLES(vmdk),
        };

        if (argc > 1)
                torn_states = (unsigned)atoi(argv[1]);
        if (argc > 2)
                cmocka_set_test_filter(argv[2]);
        log_init("test-crash", LOG_ERROR);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
