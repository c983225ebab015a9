/*
 * Formats through crashes: a workload is recorded write by write, and the image is put together as a crash could have left it: up to each
 * write, and with any choice of what was written since the last flush, torn at 512 bytes, its file as long as it was then or is now. Each time
 * it must open, have no errors (space may be lost), and hold all that was flushed. The workload is one request behind the other, or several at
 * once, which the files below do and tell of in any order. The same workload then meets an error, a full disk and a failing allocation at each
 * call in turn.
 *
 * test-crash [STATES [CASE]]: so many torn states for each set of options; only that case (* and ? as in names of files).
 */
#include "base/test.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "base/fiber.h"
#include "base/log.h"
#include "base/test-alloc.h"
#include "block/bitmap.h"
#include "block/block.h"
#include "block/test-memory.h"

#define DISK_BYTES (UINT64_C(1) << 20)
#define SECTORS (DISK_BYTES / 512)
#define OPS_MAX 400
#define AT_ONCE 8
#define WRITE_SECTORS_MAX 160
#define PARTS 2 /* files of an image */

static unsigned torn_states = 40;

/* What a sector may hold since an operation: the number of the write that stamped it; 0: zeroes. */
struct version {
        uint32_t op, stamp;
        bool maybe; /* of a discard: what was there before may still be */
};

struct history {
        struct version *version;
        unsigned count;
};

struct fixture;

struct op {
        struct block_request req;
        struct iovec iov;
        struct fixture *f;
        bool busy;
        unsigned number, asked; /* asked: the tick when it began */
        uint8_t bytes[WRITE_SECTORS_MAX * 512];
};

/* The files of an image, one behind the other, with room_bytes each. */
struct image {
        uint8_t *bytes;
        uint64_t size_bytes[PARTS];
};

struct fixture {
        uv_loop_t loop;
        const struct block_driver *driver;
        const struct block_option *option;
        unsigned options, parts;
        char dir[32], path[64], secret[64]; /* secret: empty when there is none */
        uint64_t room_bytes;        /* no file becomes longer */
        struct image image;         /* as created */
        uint64_t seed;
        struct memory_log log;
        struct history history[SECTORS];
        struct op op[AT_ONCE];
        unsigned at_once;           /* 1: one behind the other */
        unsigned tick, ops, begin[OPS_MAX], ended[OPS_MAX]; /* begin: events before each operation; ended: the tick */
        unsigned durable[OPS_MAX];  /* events when one was over that is durable by itself; 0: it is not */
        unsigned flushes, flushed_at[OPS_MAX], flushed_tick[OPS_MAX]; /* events then, and what had ended by that tick is covered */
        int wrong;                  /* a sector that was read and should not have been so; -1: none */
        const struct image *opened;
        struct memory_file *file, *piece;
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

static struct fixture *opening_for; /* while a disk is opened */

int __wrap_block_open_beside(const struct block_opening *front, const char *name, struct block **file, struct err *err);

/* The other file of an image that has two. */
int __wrap_block_open_beside(const struct block_opening *front, const char *name, struct block **file, struct err *err)
{
        struct fixture *f = opening_for;

        (void)front;
        (void)name;
        (void)err;
        f->piece = memory_file_new(&f->loop, f->opened->bytes + f->room_bytes, f->opened->size_bytes[1]);
        f->piece->part = 1;
        *file = &f->piece->block;
        return 0;
}

static int open_disk(struct fixture *f, const struct image *image, struct err *err)
{
        struct block_opening opening = { .loop = &f->loop, .path = f->path, .secret = f->secret[0] ? f->secret : NULL };
        int r;

        f->opened = image;
        f->piece = NULL;
        f->file = memory_file_new(&f->loop, image->bytes, image->size_bytes[0]);
        opening.file = &f->file->block;
        opening_for = f;
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
        f->file = f->piece = NULL;
        uv_run(&f->loop, UV_RUN_NOWAIT);
}

/* What the files are now. */
static void keep(struct fixture *f, struct image *image)
{
        const struct memory_file *part[PARTS] = { f->file, f->piece };

        if (!image->bytes)
                image->bytes = calloc(PARTS, f->room_bytes);
        for (unsigned n = 0; n < PARTS; n++)
                memset(image->bytes + n * f->room_bytes, 0, image->size_bytes[n]);
        for (unsigned n = 0; n < PARTS && part[n]; n++) {
                assert_true(part[n]->size_bytes <= f->room_bytes);
                memcpy(image->bytes + n * f->room_bytes, part[n]->bytes, part[n]->size_bytes);
                image->size_bytes[n] = part[n]->size_bytes;
        }
}

/* An image's second file, which was made beside its first. */
static void take_piece(struct fixture *f)
{
        char path[128];
        int fd;

        snprintf(path, sizeof(path), "%s/memory-s001.vmdk", f->dir);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return;
        f->image.size_bytes[1] = (uint64_t)read(fd, f->image.bytes + f->room_bytes, f->room_bytes);
        assert_true(f->image.size_bytes[1] < f->room_bytes);
        close(fd);
        unlink(path);
}

static void create_image(struct fixture *f)
{
        struct block_creation creation = { .size_bytes = DISK_BYTES, .option = f->option, .options = f->options, .secret = f->secret[0] ? f->secret : NULL };
        struct err err = ERR_INIT;
        static uint8_t zeroes[DISK_BYTES];

        f->file = memory_file_new(&f->loop, NULL, 0);
        f->piece = NULL;
        free(f->file->block.path);
        f->file->block.path = strdup(f->path);
        if (f->driver->create(&f->file->block, &creation, &err) < 0)
                fail_msg("%s", err.text);
        keep(f, &f->image);
        block_close(&f->file->block);
        take_piece(f);
        if (open_disk(f, &f->image, &err) < 0)
                fail_msg("%s", err.text);
        if (f->disk->info.noise) {
                assert_int_equal(block_write(f->disk, 0, zeroes, DISK_BYTES), 0);
                assert_int_equal(block_finish(f->disk, NULL), 0);
                keep(f, &f->image);
        }
        close_disk(f);
}

/* ---- the workload ---- */

static void remember(struct fixture *f, const struct op *op, uint32_t stamp, bool maybe)
{
        for (uint64_t n = op->req.offset_bytes / 512; n < (op->req.offset_bytes + op->req.size_bytes) / 512; n++) {
                struct history *h = &f->history[n];

                h->version = __real_realloc(h->version, (h->count + 1) * sizeof(*h->version));
                h->version[h->count++] = (struct version){ op->number, stamp, maybe };
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

static bool is_stamp(const uint8_t *sector, uint32_t stamp, uint64_t offset)
{
        uint8_t expected[512] = { 0 };

        if (stamp)
                stamp_bytes(expected, offset, 512, stamp);
        return memcmp(sector, expected, 512) == 0;
}

/*
 * What had ended at tick `flushed`, or was durable by itself at event `events`, holds, unless something that began before event `events` has
 * taken its place.
 */
static bool sector_good(const struct fixture *f, unsigned n, const uint8_t *sector, unsigned flushed, unsigned events)
{
        const struct history *h = &f->history[n];

        for (unsigned k = h->count; k-- > 0;) {
                const struct version *v = &h->version[k];
                bool covered = f->ended[v->op] && f->ended[v->op] <= flushed;

                if (f->begin[v->op] > events)
                        continue;
                if (is_stamp(sector, v->stamp, (uint64_t)n * 512))
                        return true;
                covered |= f->durable[v->op] && f->durable[v->op] <= events;
                if (covered && !v->maybe)
                        return false;
        }
        return is_stamp(sector, 0, 0);
}

static void random_range(struct fixture *f, uint64_t *offset, uint64_t *size_bytes)
{
        *offset = (uint64_t)random_of(f, SECTORS) * 512;
        *size_bytes = (1 + (uint64_t)random_of(f, random_of(f, 4) ? 24 : WRITE_SECTORS_MAX)) * 512;
        *size_bytes = MIN(*size_bytes, DISK_BYTES - *offset);
}

/* One that failed may have been done, or not, or in part: then both count. */
static void undecided(struct fixture *f, const struct block_request *req)
{
        for (uint64_t n = req->offset_bytes / 512; n < (req->offset_bytes + req->size_bytes) / 512; n++)
                f->history[n].version[f->history[n].count - 1].maybe = true;
}

/* All that is over is seen by a read. */
static void look_at_read(struct fixture *f, const struct op *op)
{
        for (uint64_t at = 0; at < op->req.size_bytes; at += 512) {
                unsigned n = (unsigned)((op->req.offset_bytes + at) / 512);

                if (!sector_good(f, n, op->bytes + at, f->tick, f->log.events))
                        f->wrong = (int)n;
        }
}

static void op_done(struct block_request *req, int result)
{
        struct op *op = container_of(req, struct op, req);
        struct fixture *f = op->f;

        op->busy = false;
        f->ended[op->number] = ++f->tick;
        if (req->op == BLOCK_READ) {
                if (result == 0)
                        look_at_read(f, op);
        } else if (result < 0) {
                undecided(f, req);
        } else if (req->op == BLOCK_FLUSH) {
                f->flushed_at[f->flushes] = f->log.events;
                f->flushed_tick[f->flushes++] = op->asked;
        } else if (req->flags & BLOCK_F_DURABLE) {
                f->durable[op->number] = MAX(f->log.events, 1u);
        }
}

static void some_progress(struct fixture *f)
{
        block_kick(f->disk);
        (void)block_wait_some(f->disk);
        if (f->wrong >= 0)
                fail_msg("operation %u: a read finds sector %d wrong", f->ops, f->wrong);
}

static void drain(struct fixture *f)
{
        while (f->disk->in_flight)
                some_progress(f);
}

static struct op *free_op(struct fixture *f)
{
        for (;;) {
                for (unsigned n = 0; n < f->at_once; n++)
                        if (!f->op[n].busy)
                                return &f->op[n];
                some_progress(f);
        }
}

static bool overlaps(const struct fixture *f, uint64_t offset, uint64_t size_bytes)
{
        for (unsigned n = 0; n < f->at_once; n++) {
                const struct block_request *req = &f->op[n].req;

                if (f->op[n].busy && offset < req->offset_bytes + req->size_bytes && offset + size_bytes > req->offset_bytes)
                        return true;
        }
        return false;
}

static void submit(struct fixture *f, struct op *op, enum block_op kind, unsigned flags, uint64_t offset, uint64_t size_bytes)
{
        bool data = kind == BLOCK_READ || kind == BLOCK_WRITE;

        while (kind != BLOCK_FLUSH && overlaps(f, offset, size_bytes))
                some_progress(f);
        op->f = f;
        op->number = f->ops++;
        op->asked = f->tick;
        op->iov = (struct iovec){ op->bytes, size_bytes };
        op->req = (struct block_request){ .op = kind, .flags = flags, .offset_bytes = offset, .size_bytes = size_bytes, .done = op_done };
        op->req.iov = data ? &op->iov : NULL;
        op->req.iov_count = data;
        f->begin[op->number] = f->log.events;
        f->ended[op->number] = f->durable[op->number] = 0;
        if (kind == BLOCK_WRITE)
                stamp_bytes(op->bytes, offset, size_bytes, op->number + 1);
        if (kind != BLOCK_READ && kind != BLOCK_FLUSH)
                remember(f, op, kind == BLOCK_WRITE ? op->number + 1 : 0, kind == BLOCK_DISCARD);
        op->busy = true;
        block_submit(f->disk, &op->req);
        block_kick(f->disk);
}

static void one_op(struct fixture *f)
{
        uint64_t offset, size_bytes, whole = f->disk->info.optimal_bytes;
        struct op *op = free_op(f);
        uint32_t kind = random_of(f, 20);

        random_range(f, &offset, &size_bytes);
        if (kind < 9)
                submit(f, op, BLOCK_WRITE, kind == 0 ? BLOCK_F_DURABLE : 0, offset, size_bytes);
        else if (kind < 12)
                submit(f, op, BLOCK_WRITE_ZEROES, kind == 9 ? BLOCK_F_UNMAP : 0, offset, size_bytes);
        else if (kind < 13)
                submit(f, op, f->disk->info.noise ? BLOCK_WRITE_ZEROES : BLOCK_DISCARD, 0, offset, size_bytes);
        else if (kind < 16)
                submit(f, op, BLOCK_FLUSH, 0, 0, 0);
        else if (kind < 19 || !f->driver->snapshots || whole > sizeof(op->bytes))
                submit(f, op, BLOCK_READ, 0, offset, size_bytes);
        else
                submit(f, op, BLOCK_WRITE, BLOCK_F_COMPRESS, offset / whole * whole, whole);
        if (f->at_once == 1)
                drain(f);
        while (f->at_once > 1 && random_of(f, 2) && f->disk->in_flight)
                some_progress(f);
}

static void snapshots(struct fixture *f, unsigned step)
{
        const struct block_snapshot_ops *ops = f->driver->snapshots;
        int r = 0;

        if (!ops || (step != 30 && step != 60 && step != 80))
                return;
        drain(f);
        if (step == 30)
                r = ops->create(f->disk, "one", NULL);
        else if (step == 60)
                r = ops->create(f->disk, "two", NULL);
        else
                r = ops->delete(f->disk, "one", NULL);
        (void)r;
}

static void workload(struct fixture *f, unsigned ops)
{
        for (unsigned n = 0; n < ops; n++) {
                one_op(f);
                snapshots(f, n);
        }
        drain(f);
}

static void begin_workload(struct fixture *f, struct memory_log *log)
{
        struct memory_file *part[PARTS] = { f->file, f->piece };

        f->tick = f->ops = f->flushes = 0;
        f->wrong = -1;
        for (unsigned n = 0; n < PARTS && part[n]; n++) {
                part[n]->log = log;
                part[n]->shuffle = f->at_once > 1 ? n + 1 : 0;
        }
}

static void end_workload(struct fixture *f)
{
        struct memory_file *part[PARTS] = { f->file, f->piece };

        for (unsigned n = 0; n < PARTS && part[n]; n++)
                part[n]->log = NULL;
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

static void look(struct fixture *f, const char *what, unsigned events)
{
        static uint8_t disk[DISK_BYTES];
        struct block_check check = { .mend = BLOCK_MEND_NOTHING };
        struct err err = ERR_INIT;
        unsigned flushed = 0;

        for (unsigned n = 0; n < f->flushes; n++)
                if (f->flushed_at[n] <= events)
                        flushed = MAX(flushed, f->flushed_tick[n]);
        if (f->driver->check && f->driver->check(f->disk, &check, &err) < 0)
                fail_msg("%s at event %u: %s", what, events, err.text);
        if (check.errors)
                fail_msg("%s at event %u: %" PRIu64 " errors", what, events, check.errors);
        if (block_read(f->disk, 0, disk, DISK_BYTES) < 0)
                fail_msg("%s at event %u: cannot be read", what, events);
        for (unsigned n = 0; n < SECTORS; n++)
                if (!sector_good(f, n, disk + (size_t)n * 512, flushed, events))
                        fail_msg("%s at event %u: sector %u has stamp %" PRIu64 ", what was over at tick %u was flushed", what, events, n,
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

static void judge(struct fixture *f, const char *what, const struct image *image, unsigned events)
{
        struct err err = ERR_INIT;

        if (open_disk(f, image, &err) < 0)
                fail_msg("%s at event %u: %s", what, events, err.text);
        if (f->bitmap)
                look_at_bitmap(f, what, events);
        look(f, what, events);
        close_disk(f);
        f->states++;
}

/* ---- crashes ---- */

/* Makes the image one that has a bitmap. */
static void add_bitmap(struct fixture *f)
{
        struct block_bitmap *b;

        assert_int_equal(open_disk(f, &f->image, NULL), 0);
        assert_int_equal(block_bitmap_add(f->disk, "one", 512, &b, NULL), 0);
        b->persistent = true;
        assert_int_equal(block_finish(f->disk, NULL), 0);
        keep(f, &f->image);
        close_disk(f);
}

/* Where there is anything to finish, it counts as a flush, too. */
static void finish(struct fixture *f)
{
        struct err err = ERR_INIT;

        if (f->bitmap) {
                f->dirty = block_bitmap_find(f->disk, "one")->dirty;
                assert_true(f->dirty);
                block_bitmap_find(f->disk, "one")->enabled = f->ops % 2;
        }
        if (block_finish(f->disk, &err) < 0)
                fail_msg("%s", err.text);
        if (!f->driver->finish)
                return;
        f->flushed_at[f->flushes] = f->log.events;
        f->flushed_tick[f->flushes++] = f->tick;
}

static void record(struct fixture *f, unsigned ops)
{
        struct err err = ERR_INIT;

        create_image(f);
        if (f->bitmap)
                add_bitmap(f);
        if (open_disk(f, &f->image, &err) < 0)
                fail_msg("%s", err.text);
        if (f->bitmap)
                keep(f, &f->image); /* it says now that the bitmap is in use */
        begin_workload(f, &f->log);
        workload(f, ops);
        finish(f);
        if (!f->bitmap)
                workload(f, ops / 4);
        end_workload(f);
        close_disk(f);
}

static void replay(struct fixture *f, struct image *image, const struct memory_event *event, uint64_t from, uint64_t to)
{
        uint8_t *bytes = image->bytes + event->part * f->room_bytes;
        uint64_t end = event->offset_bytes + MIN(to, event->size_bytes), *size_bytes = &image->size_bytes[event->part];

        memory_replay(bytes, f->room_bytes, event, from, to);
        if (event->op == BLOCK_WRITE)
                *size_bytes = MAX(*size_bytes, end);
        if (event->op != BLOCK_WRITE_ZEROES || event->size_bytes)
                return;
        if (event->file_bytes < *size_bytes)
                memset(bytes + event->file_bytes, 0, *size_bytes - event->file_bytes);
        *size_bytes = event->file_bytes;
}

/* Behind their ends both are zeroes. */
static void copy_image(const struct fixture *f, struct image *to, const struct image *from)
{
        if (!to->bytes)
                to->bytes = calloc(PARTS, f->room_bytes);
        for (unsigned n = 0; n < f->parts; n++)
                memcpy(to->bytes + n * f->room_bytes, from->bytes + n * f->room_bytes, MAX(to->size_bytes[n], from->size_bytes[n]));
        memcpy(to->size_bytes, from->size_bytes, sizeof(to->size_bytes));
}

/* settled: what is on stable storage already. */
static void tear(struct fixture *f, struct image *image, const bool *settled, unsigned to)
{
        for (unsigned n = 0; n < to; n++) {
                const struct memory_event *event = &f->log.event[n];
                uint32_t how = settled[n] ? 0 : random_of(f, 3);

                if (how == 0)
                        continue;
                if (event->op == BLOCK_WRITE_ZEROES && !event->size_bytes)
                        replay(f, image, event, 0, 0);
                for (uint64_t at = 0; at < event->size_bytes;) {
                        uint64_t some = MIN(512 - (event->offset_bytes + at) % 512, event->size_bytes - at);

                        if (how == 1 || random_of(f, 2))
                                replay(f, image, event, at, at + some);
                        at += some;
                }
        }
}

/* What the flush covers is on stable storage. */
static void settle(struct fixture *f, struct image *sound, bool *settled, unsigned flush)
{
        for (unsigned n = 0; n < flush; n++) {
                const struct memory_event *event = &f->log.event[n];

                if (settled[n] || event->part != f->log.event[flush].part || !event->told || event->told > f->log.event[flush].asked)
                        continue;
                replay(f, sound, event, 0, UINT64_MAX);
                settled[n] = true;
        }
}

static void crash(struct fixture *f)
{
        struct image sound = { 0 }, now = { 0 }, torn = { 0 };
        unsigned each = MAX(f->log.events / (f->secret[0] ? torn_states / 3 : torn_states), 1u); /* a passphrase takes its time */
        bool *settled = calloc(f->log.events, 1);

        copy_image(f, &sound, &f->image); /* what is on stable storage */
        copy_image(f, &now, &f->image);
        for (unsigned n = 0; n < f->log.events; n++) {
                const struct memory_event *event = &f->log.event[n];

                replay(f, &now, event, 0, UINT64_MAX);
                if (event->op == BLOCK_FLUSH)
                        settle(f, &sound, settled, n);
                if (n % each)
                        continue;
                judge(f, "crash", &now, n + 1);
                for (unsigned times = 0; times < 2; times++) {
                        copy_image(f, &torn, &sound);
                        tear(f, &torn, settled, n + 1);
                        judge(f, "torn crash", &torn, n + 1);
                }
        }
        free(sound.bytes);
        free(now.bytes);
        free(torn.bytes);
        free(settled);
}

static void crashes(struct fixture *f, unsigned ops)
{
        unsigned events = 0;

        for (f->at_once = 1; f->at_once <= AT_ONCE; f->at_once += AT_ONCE - 1) {
                record(f, ops);
                crash(f);
                events += f->log.events;
                forget_workload(f);
        }
        print_message("%u states of %u events\n", f->states, events);
}

static int setup(void **state)
{
        struct fixture *f = calloc(1, sizeof(*f));

        assert_int_equal(uv_loop_init(&f->loop), 0);
        f->parts = 1;
        f->at_once = 1;
        strcpy(f->dir, "/tmp/virta-crash-XXXXXX");
        assert_non_null(mkdtemp(f->dir));
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
        if (f->secret[0])
                unlink(f->secret + strlen("file:"));
        rmdir(f->dir);
        free(f->image.bytes);
        free(f);
        return 0;
}

/* ---- failures at each call ---- */

enum trouble { TROUBLE_IO, TROUBLE_SPACE, TROUBLE_MEMORY };

/* false: the trouble did not come any more. */
static bool with_trouble(struct fixture *f, enum trouble trouble, long at)
{
        struct err err = ERR_INIT;
        struct image image = { 0 };
        struct memory_file *file;
        bool came;

        f->seed = 77;
        if (open_disk(f, &f->image, &err) < 0)
                fail_msg("%s", err.text);
        begin_workload(f, trouble == TROUBLE_MEMORY ? NULL : &f->log); /* which needs some, too */
        file = f->piece ? f->piece : f->file;
        if (trouble == TROUBLE_IO) {
                file->fail_after = at;
                file->fail_error = -EIO;
        } else if (trouble == TROUBLE_SPACE) {
                file->limit_bytes = file->size_bytes + (uint64_t)at * 4096;
        } else {
                test_alloc_fail_after(at);
        }
        workload(f, 100);
        came = trouble == TROUBLE_IO ? file->failed : trouble == TROUBLE_SPACE ? file->size_bytes + 65536 > file->limit_bytes : alloc_left_ < 0;
        test_alloc_fail_after(-1);
        end_workload(f);
        keep(f, &image);
        close_disk(f);
        judge(f, "trouble", &image, f->log.events);
        free(image.bytes);
        forget_workload(f);
        return came;
}

static void trouble(struct fixture *f, enum trouble kind, unsigned step)
{
        create_image(f);
        for (f->at_once = 1; f->at_once <= AT_ONCE; f->at_once += AT_ONCE - 1)
                for (long at = 0; with_trouble(f, kind, at); at += step)
                        ;
        print_message("%u states\n", f->states);
}

/* ---- formats ---- */

static void make_secret(struct fixture *f)
{
        int fd;

        snprintf(f->secret, sizeof(f->secret), "file:%s/secret", f->dir);
        fd = open(f->secret + strlen("file:"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        assert_int_equal(write(fd, "crash", 5), 5);
        close(fd);
}

static bool is_of(const struct fixture *f, const char *key, const char *value)
{
        for (unsigned n = 0; n < f->options; n++)
                if (strcmp(f->option[n].key, key) == 0 && strcmp(f->option[n].value, value) == 0)
                        return true;
        return false;
}

static void use_format(struct fixture *f, const char *name, const struct block_option *option, unsigned options)
{
        bool luks = strcmp(name, "luks") == 0;

        f->option = option;
        f->options = options;
        f->driver = block_driver_find(name);
        assert_non_null(f->driver);
        f->room_bytes = (strcmp(name, "qcow2") == 0 || strcmp(name, "vhdx") == 0 ? UINT64_C(20) : luks ? UINT64_C(18) : UINT64_C(4)) << 20;
        f->parts = is_of(f, "subformat", "twoGbMaxExtentSparse") ? 2 : 1;
        if (luks || is_of(f, "encrypt", "luks"))
                make_secret(f);
        snprintf(f->path, sizeof(f->path), "%s/memory%s", f->dir, f->driver->suffixes ? f->driver->suffixes[0] : "");
}

/* One set of options through crashes. */
#define CRASH(name, format, number, ...)                                                       \
        static const struct block_option options_##name[] = { __VA_ARGS__ };                   \
                                                                                               \
        static void crash_##name(void **state)                                                 \
        {                                                                                      \
                struct fixture *f = *state;                                                    \
                                                                                               \
                use_format(f, format, options_##name, ARRAY_SIZE(options_##name));             \
                f->seed = number;                                                              \
                f->bitmap = number == 6 || number == 7;                                        \
                crashes(f, 120);                                                               \
        }

/* And through each kind of trouble. step: so many calls from one to the next, in the short test. */
#define FORMAT(name, format, number, step, ...)                                                \
        CRASH(name, format, number, __VA_ARGS__)                                               \
                                                                                               \
        static void an_error_at_each_call_##name(void **state)                                 \
        {                                                                                      \
                use_format(*state, format, options_##name, ARRAY_SIZE(options_##name));        \
                trouble(*state, TROUBLE_IO, torn_states > 100 ? 1 : (step));                   \
        }                                                                                      \
                                                                                               \
        static void a_full_disk_at_each_place_##name(void **state)                             \
        {                                                                                      \
                use_format(*state, format, options_##name, ARRAY_SIZE(options_##name));        \
                trouble(*state, TROUBLE_SPACE, torn_states > 100 ? 1 : (step));                \
        }                                                                                      \
                                                                                               \
        static void no_memory_at_each_call_##name(void **state)                                \
        {                                                                                      \
                use_format(*state, format, options_##name, ARRAY_SIZE(options_##name));        \
                trouble(*state, TROUBLE_MEMORY, torn_states > 100 ? 1 : 2 * (step));           \
        }

FORMAT(plain, "qcow2", 1, 17, { "version", "3" })
FORMAT(small_clusters, "qcow2", 2, 29, { "cluster_size", "4K" })
FORMAT(tiny_clusters, "qcow2", 3, 67, { "cluster_size", "512" })
FORMAT(old_version, "qcow2", 4, 29, { "version", "2" }, { "cluster_size", "4K" })
FORMAT(subclusters, "qcow2", 5, 29, { "extended_l2", "on" }, { "cluster_size", "16K" })
CRASH(bitmap, "qcow2", 6, { "version", "3" })
CRASH(bitmap_small, "qcow2", 7, { "cluster_size", "4K" })
FORMAT(encrypted, "qcow2", 12, 29, { "encrypt", "luks" }, { "encrypt.iter_time", "1" }, { "cluster_size", "4K" })
FORMAT(vdi, "vdi", 8, 23, { "block_size", "16K" })
FORMAT(vhd, "vhd", 9, 23, { "block_size", "16K" })
FORMAT(vmdk, "vmdk", 10, 23, { "zeroed_grain", "on" })
FORMAT(vmdk_split, "vmdk", 13, 23, { "subformat", "twoGbMaxExtentSparse" })
FORMAT(vhdx, "vhdx", 11, 23, { "block_size", "1M" })
FORMAT(luks1, "luks", 14, 29, { "version", "1" }, { "iter_time", "1" })
FORMAT(luks2, "luks", 15, 29, { "pbkdf", "pbkdf2" }, { "sector_size", "4096" }, { "iter_time", "1" })

int main(int argc, char **argv)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define TROUBLES(name) CASE(an_error_at_each_call_##name), CASE(a_full_disk_at_each_place_##name), CASE(no_memory_at_each_call_##name)
        const struct CMUnitTest tests[] = {
                CASE(crash_plain), CASE(crash_small_clusters), CASE(crash_tiny_clusters), CASE(crash_old_version), CASE(crash_subclusters),
                CASE(crash_bitmap), CASE(crash_bitmap_small), CASE(crash_encrypted), CASE(crash_vdi), CASE(crash_vhd), CASE(crash_vmdk),
                CASE(crash_vmdk_split), CASE(crash_vhdx), CASE(crash_luks1), CASE(crash_luks2),
                TROUBLES(plain), TROUBLES(small_clusters), TROUBLES(tiny_clusters), TROUBLES(old_version), TROUBLES(subclusters),
                TROUBLES(encrypted), TROUBLES(vdi), TROUBLES(vhd), TROUBLES(vmdk), TROUBLES(vmdk_split), TROUBLES(vhdx), TROUBLES(luks1),
                TROUBLES(luks2),
        };

        if (argc > 1)
                torn_states = (unsigned)atoi(argv[1]);
        if (argc > 2)
                cmocka_set_test_filter(argv[2]);
        log_init("test-crash", LOG_ERROR);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
