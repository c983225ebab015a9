/*
 * Trees of nodes: requests and their completion, children, blocking calls; block-open.c has the opening.
 *
 * A driver may complete a request from within its own submit (a cluster that reads as zeroes needs no I/O). done must not be called
 * there, so such requests wait in block->later, and a handle of the loop comes back for them at once.
 */
#include "block/block.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/fiber.h"
#include "base/log.h"
#include "block/bitmap.h"

struct block_idle {
        uv_idle_t handle;
        struct block *block;
};

/* ---- completion ---- */

static void run_later(struct block *block);

static void batch(struct block *block)
{
        if (block->listener)
                block->listener(block->listener_ctx);
}

static void idle_ran(uv_idle_t *handle)
{
        struct block_idle *idle = container_of(handle, struct block_idle, handle);

        run_later(idle->block);
}

static void idle_closed(uv_handle_t *handle)
{
        free(container_of((uv_idle_t *)handle, struct block_idle, handle));
}

static void call_soon(struct block *block)
{
        uv_idle_start(&block->idle->handle, idle_ran);
}

/* Whoever reads a bitmap, and then the disk, finds what the write left, or will find the bit. */
static void finish_request(struct block *block, struct block_request *req, int result)
{
        if (block->bitmaps)
                block_bitmaps_wrote(block, req);
        block->in_flight--;
        req->done(req, result);
}

void block_complete(struct block *block, struct block_request *req, int result)
{
        if (!block->submitting) {
                finish_request(block, req, result);
                return;
        }
        req->result = result;
        req->next = NULL;
        if (!block->later) {
                block->later_last = &block->later;
                call_soon(block);
        }
        *block->later_last = req;
        block->later_last = &req->next;
}

/* Those that are there now; what their done submits may come to lie in a new list. */
static void run_later(struct block *block)
{
        struct block_request *req = block->later;

        uv_idle_stop(&block->idle->handle);
        if (!req)
                return;
        block->later = NULL;
        while (req) {
                struct block_request *next = req->next;

                finish_request(block, req, req->result);
                req = next;
        }
        batch(block);
}

/* ---- the tree ---- */

static void child_batch(void *ctx)
{
        batch(ctx);
}

void block_adopt(struct block *block, enum block_role role, struct block *child)
{
        assert(!block->child[role]);
        block->child[role] = child;
        if (child)
                block_set_listener(child, child_batch, block);
}

struct block *block_detach(struct block *block, enum block_role role)
{
        struct block *child = block->child[role];

        block->child[role] = NULL;
        if (child && child->listener_ctx == block)
                block_set_listener(child, NULL, NULL);
        return child;
}

void block_kick(struct block *block)
{
        if (block->driver->kick)
                block->driver->kick(block);
        for (unsigned n = 0; n < BLOCK_CHILDREN_MAX; n++)
                if (block->child[n])
                        block_kick(block->child[n]);
}

void block_reap(struct block *block)
{
        if (block->later)
                run_later(block);
        if (block->driver->reap)
                block->driver->reap(block);
        for (unsigned n = 0; n < BLOCK_CHILDREN_MAX; n++)
                if (block->child[n])
                        block_reap(block->child[n]);
}

/* Until something has completed, of a node that waits for itself. */
bool block_wait_some(struct block *block)
{
        if (block->later) {
                run_later(block);
                return true;
        }
        /* One with nothing of its own in flight may lie between: requests can go past it, to what is behind. */
        for (unsigned n = 0; n < BLOCK_CHILDREN_MAX; n++)
                if (block->child[n] && block_wait_some(block->child[n]))
                        return true;
        if (!block->in_flight || !block->driver->wait)
                return false;
        block->driver->wait(block);
        return true;
}

static void make_progress(struct block *block)
{
        bool some;

        block_kick(block);
        some = block_wait_some(block);
        assert(some);
        (void)some;
        block_reap(block); /* elsewhere in the tree, too: else one part of it that is busy all the time would be the only one waited for */
}

void block_drain(struct block *block)
{
        while (block->in_flight)
                make_progress(block);
}

int block_refresh(struct block *block, struct err *err)
{
        return block->driver->refresh ? block->driver->refresh(block, err) : 0;
}

/* ---- blocking calls ---- */

static void batch_done(struct block_request *req, int result)
{
        struct block_batch *batch = container_of(req, struct block_batch_request, req)->batch;

        if (batch->result == 0)
                batch->result = result;
        if (--batch->left == 0 && batch->fiber)
                fiber_wake(batch->fiber);
}

void block_batch_add(struct block_batch *batch, struct block *block, struct block_batch_request *request)
{
        request->req.done = batch_done;
        request->batch = batch;
        batch->left++;
        block_submit(block, &request->req);
}

int block_batch_wait(struct block_batch *batch, struct block *block)
{
        if (batch->left && fiber_self()) {
                batch->fiber = fiber_self();
                block_kick(block);
                fiber_wait();
                batch->fiber = NULL;
        }
        while (batch->left)
                make_progress(block);
        return batch->result;
}

int block_do(struct block *block, enum block_op op, unsigned flags, uint64_t offset_bytes, uint64_t size_bytes, const struct iovec *iov,
             unsigned iov_count)
{
        struct block_batch_request request = {
                .req = { .op = op, .flags = flags, .offset_bytes = offset_bytes, .size_bytes = size_bytes, .iov = iov, .iov_count = iov_count },
        };
        struct block_batch batch = { 0 };

        block_batch_add(&batch, block, &request);
        return block_batch_wait(&batch, block);
}

int block_status(struct block *block, uint64_t offset_bytes, uint64_t size_bytes, struct block_extent *extent)
{
        if (block->driver->status)
                return block->driver->status(block, offset_bytes, size_bytes, extent);
        *extent = (struct block_extent){ .size_bytes = size_bytes, .present = true, .host_bytes = offset_bytes };
        return 0;
}

int block_status_through(struct block *block, uint64_t offset_bytes, uint64_t size_bytes, struct block_extent *extent)
{
        unsigned depth = 0;

        for (;; depth++) {
                struct block *behind = block->child[BLOCK_BACKING];
                int r = block_status(block, offset_bytes, size_bytes, extent);

                if (r < 0)
                        return r;
                extent->depth = depth;
                size_bytes = extent->size_bytes;
                if (extent->present || !behind)
                        break;
                if (offset_bytes >= behind->info.size_bytes) {
                        extent->zero = true;
                        return 0;
                }
                size_bytes = MIN(size_bytes, behind->info.size_bytes - offset_bytes);
                block = behind;
        }
        extent->zero |= !extent->present;
        return 0;
}

int block_count_data(struct block *block, uint64_t unit_bytes, uint64_t *bytes)
{
        uint64_t at = 0, counted = 0, end = block->info.size_bytes; /* up to `counted` it is done */

        for (*bytes = 0; at < end;) {
                struct block_extent extent;
                int r = block_status_through(block, at, end - at, &extent);

                if (r < 0)
                        return r;
                at += extent.size_bytes;
                if (!extent.zero && at > counted) {
                        uint64_t from = MAX(align_down(at - extent.size_bytes, unit_bytes), counted);

                        counted = align_up(at, unit_bytes);
                        *bytes += counted - from;
                }
        }
        return 0;
}

int block_reopen(struct block *block, bool writable, struct err *err)
{
        static const enum block_role roles[] = { BLOCK_FILE, BLOCK_DATA };
        int r = 0;

        if (block->info.readonly == !writable)
                return 0;
        block_drain(block);
        if (!writable && block->driver->reopen)
                r = block->driver->reopen(block, false, err);
        for (unsigned n = 0; n < ARRAY_SIZE(roles) && r == 0; n++)
                if (block->child[roles[n]])
                        r = block_reopen(block->child[roles[n]], writable, err);
        if (r == 0 && writable && block->driver->reopen)
                r = block->driver->reopen(block, true, err);
        return r;
}

static int resize(struct block *block, uint64_t size_bytes, struct err *err)
{
        if (block->info.readonly)
                return err_set(err, -EROFS, "disk %s is read-only", block->path);
        if (!block->driver->resize)
                return err_set(err, -EOPNOTSUPP, "disk %s: a %s image cannot be resized", block->path, block->driver->name);
        return block->driver->resize(block, size_bytes, err);
}

int block_resize(struct block *block, uint64_t size_bytes, struct err *err)
{
        int r = resize(block, size_bytes, err);

        return r == 0 && block->bitmaps ? block_bitmaps_resize(block, block->info.size_bytes, err) : r;
}

/* ---- the end ---- */

int block_finish(struct block *block, struct err *err)
{
        int r;

        block_drain(block);
        r = block->driver->finish ? block->driver->finish(block, err) : 0;
        for (unsigned n = 0; n < BLOCK_CHILDREN_MAX && r == 0; n++)
                if (block->child[n])
                        r = block_finish(block->child[n], err);
        return r;
}

int block_init(struct block *block, const struct block_driver *driver, const struct block_opening *opening, struct err *err)
{
        block->driver = driver;
        block->loop = opening->loop;
        block->path = strdup(opening->path);
        block->idle = calloc(1, sizeof(*block->idle));
        if (!block->path || !block->idle) {
                free(block->path);
                free(block->idle);
                return err_nomem(err);
        }
        block->idle->block = block;
        uv_idle_init(opening->loop, &block->idle->handle);
        return 0;
}

void block_done(struct block *block)
{
        block_bitmaps_free(block);
        uv_close((uv_handle_t *)&block->idle->handle, idle_closed);
        free(block->path);
}

void block_close(struct block *block)
{
        struct block *child[BLOCK_CHILDREN_MAX];

        if (!block)
                return;
        block_drain(block);
        memcpy(child, block->child, sizeof(child));
        block->driver->close(block);
        for (unsigned n = 0; n < BLOCK_CHILDREN_MAX; n++)
                block_close(child[n]);
}

/* ---- for formats ---- */

bool block_damaged(struct block *block, bool *broken, const char *fmt, va_list args)
{
        bool news = !*broken;
        char text[256];

        vsnprintf(text, sizeof(text), fmt, args);
        *broken = true;
        if (news)
                log_warning("disk %s is damaged: %s; nothing is written to it any more (virta disk check --repair)", block->path, text);
        return news;
}

int block_make_empty(struct block *file, uint64_t size_bytes, struct err *err)
{
        int r = 0;

        if (file->info.grows) {
                r = block_resize(file, 0, err);
                return r == 0 ? block_resize(file, size_bytes, err) : r;
        }
        if (size_bytes > file->info.size_bytes)
                return err_set(err, -ENOSPC, "it needs %" PRIu64 " bytes, and there are %" PRIu64, size_bytes, file->info.size_bytes);
        for (uint64_t at = 0; at < size_bytes && r == 0; at += file->info.zeroes_bytes)
                r = block_do(file, BLOCK_WRITE_ZEROES, 0, at, MIN(size_bytes - at, (uint64_t)file->info.zeroes_bytes), NULL, 0);
        return r < 0 ? err_errno(err, r, "cannot write") : 0;
}
