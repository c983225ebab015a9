/* The node that stays; see disk.h. A request is passed on as one of ours, kept for the next. */
#include "block/disk.h"

#include <assert.h>
#include <errno.h>

#include "base/fiber.h"
#include "block/filter/filter.h"

struct passing {
        struct block_request req;
        struct block_request *guest;
        struct disk *disk;
        struct passing *next;
};

struct disk {
        struct block block;
        struct passing *spare;
        unsigned passed;                            /* at the root now */
        struct block_request *waiting, **waiting_last; /* for the disk to be let go */
        bool held;
        struct fiber *holder;                       /* waits for passed to be 0 */
        struct fiber_queue status_waits;            /* for the disk to be let go */
        struct block_job *job;
};

static const struct block_driver block_disk_driver;

static struct disk *to_disk(const struct block *block)
{
        assert(block->driver == &block_disk_driver);
        return container_of((struct block *)block, struct disk, block);
}

/* One less is at the root. */
static void ended(struct disk *d)
{
        struct fiber *holder = d->holder;

        if (--d->passed || !holder)
                return;
        d->holder = NULL;
        fiber_wake(holder);
}

static void passed(struct block_request *req, int result)
{
        struct passing *passing = container_of(req, struct passing, req);
        struct block_request *guest = passing->guest;
        struct disk *d = passing->disk;

        passing->next = d->spare;
        d->spare = passing;
        block_complete(&d->block, guest, result);
        ended(d);
}

static void pass(struct disk *d, struct block_request *guest)
{
        struct passing *passing = d->spare;

        /* Who sent it may not know yet that the disk has become smaller. */
        if (guest->offset_bytes > d->block.info.size_bytes || guest->size_bytes > d->block.info.size_bytes - guest->offset_bytes) {
                block_complete(&d->block, guest, -EIO);
                return;
        }
        if (passing)
                d->spare = passing->next;
        else
                passing = malloc(sizeof(*passing));
        if (!passing) {
                block_complete(&d->block, guest, -ENOMEM);
                return;
        }
        passing->req = (struct block_request){
                .op = guest->op, .flags = guest->flags, .offset_bytes = guest->offset_bytes, .size_bytes = guest->size_bytes, .iov = guest->iov,
                .iov_count = guest->iov_count, .done = passed,
        };
        passing->guest = guest;
        passing->disk = d;
        d->passed++;
        block_submit(d->block.child[BLOCK_FILE], &passing->req);
}

static void disk_submit(struct block *block, struct block_request *req)
{
        struct disk *d = to_disk(block);

        if (!d->held) {
                pass(d, req);
                return;
        }
        req->next = NULL;
        *d->waiting_last = req;
        d->waiting_last = &req->next;
}

/* One waits for tables to be read: the root stays until then. */
static int look(struct block *block, bool through, uint64_t offset_bytes, uint64_t size_bytes, struct block_extent *extent)
{
        struct disk *d = to_disk(block);
        int r;

        while (d->held && fiber_self())
                fiber_queue_wait(&d->status_waits);
        while (d->held && block_wait_some(block))
                ;
        d->passed++;
        if (through)
                r = filter_status(block, offset_bytes, size_bytes, extent);
        else
                r = block_status(block->child[BLOCK_FILE], offset_bytes, size_bytes, extent);
        ended(d);
        return r;
}

static int disk_status(struct block *block, uint64_t offset_bytes, uint64_t size_bytes, struct block_extent *extent)
{
        return look(block, true, offset_bytes, size_bytes, extent);
}

int block_disk_image_status(struct block *disk, uint64_t offset_bytes, uint64_t size_bytes, struct block_extent *extent)
{
        if (disk->driver != &block_disk_driver)
                return block_status(disk, offset_bytes, size_bytes, extent);
        return look(disk, false, offset_bytes, size_bytes, extent);
}

static int disk_resize(struct block *block, uint64_t size_bytes, struct err *err)
{
        if (to_disk(block)->job)
                return err_set(err, -EBUSY, "disk %s: a job runs on it", block->path);
        return filter_resize(block, size_bytes, err);
}

static int disk_refresh(struct block *block, struct err *err)
{
        return to_disk(block)->job ? 0 : filter_refresh(block, err);
}

static void disk_close(struct block *block)
{
        struct disk *d = to_disk(block);

        assert(!d->job && !d->held);
        while (d->spare) {
                struct passing *next = d->spare->next;

                free(d->spare);
                d->spare = next;
        }
        block_done(block);
        free(d);
}

static const struct block_driver block_disk_driver = {
        .name = "disk",
        .text = "a disk as its users have it",
        .close = disk_close,
        .submit = disk_submit,
        .status = disk_status,
        .resize = disk_resize,
        .refresh = disk_refresh,
};

int block_disk_new(struct block *root, struct block **disk, struct err *err)
{
        int r = filter_new(root, &block_disk_driver, sizeof(struct disk), disk, err);

        if (r < 0)
                return r;
        to_disk(*disk)->waiting_last = &to_disk(*disk)->waiting;
        filter_begin(*disk, root);
        return 0;
}

struct block *block_disk_root(struct block *disk)
{
        return disk->driver == &block_disk_driver ? disk->child[BLOCK_FILE] : NULL;
}

struct block *block_disk_image(struct block *disk)
{
        struct block *root = block_disk_root(disk);

        return root ? root : disk;
}

struct block_job **block_disk_job(struct block *disk)
{
        return &to_disk(disk)->job;
}

/* ---- held ---- */

void block_disk_hold(struct block *disk)
{
        struct disk *d = to_disk(disk);

        assert(!d->held);
        d->held = true;
        if (d->passed && fiber_self()) {
                d->holder = fiber_self();
                block_kick(disk);
                fiber_wait();
        }
        while (d->passed) {
                bool some;

                block_kick(disk);
                some = block_wait_some(disk);
                assert(some);
                (void)some;
        }
}

bool block_disk_held(const struct block *disk)
{
        return to_disk(disk)->held;
}

/* What the guest knows of its sectors stays as it was. */
void block_disk_swap(struct block *disk, struct block *root)
{
        struct disk *d = to_disk(disk);
        struct block_info info = root->info;
        char *path = strdup(root->path);

        assert(d->held && !d->passed);
        assert(root->info.size_bytes == disk->info.size_bytes);
        (void)block_detach(disk, BLOCK_FILE);
        block_adopt(disk, BLOCK_FILE, root);
        info.logical_bytes = disk->info.logical_bytes;
        info.physical_bytes = disk->info.physical_bytes;
        disk->info = info;
        if (path) { /* else messages have the old one */
                free(disk->path);
                disk->path = path;
        }
}

int block_disk_resize(struct block *disk, uint64_t size_bytes, struct err *err)
{
        assert(to_disk(disk)->held && !to_disk(disk)->passed);
        return filter_resize(disk, size_bytes, err);
}

void block_disk_let_go(struct block *disk)
{
        struct disk *d = to_disk(disk);
        struct block_request *req = d->waiting;

        assert(d->held);
        d->held = false;
        d->waiting = NULL;
        d->waiting_last = &d->waiting;
        while (req) {
                struct block_request *next = req->next;

                pass(d, req);
                req = next;
        }
        fiber_queue_wake_all(&d->status_waits);
        block_kick(disk);
}

void block_disk_attach(struct block *disk, struct block *other)
{
        (void)block_detach(disk, BLOCK_DATA);
        block_adopt(disk, BLOCK_DATA, other);
}
