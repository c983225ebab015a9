/*
 * Copy on read: what a guest reads from a backing file is in the image from then on, so that it is fetched once.
 *
 *      read ─▶ all of it is here? ─yes─▶ child
 *                └─no─▶ fiber: claim (claim.h) the clusters, read them through the chain, write back what was not here, answer from the buffer
 *      write ─▶ waits for claims on its place, then child
 *
 * Zeroes behind are not copied. When the copy cannot be written the read is answered all the same.
 */
#include <assert.h>
#include <errno.h>

#include "base/iov.h"
#include "block/disk.h"
#include "block/filter/filter.h"

#define UNIT_MAX (UINT32_C(2) << 20)
#define COPY_BYTES (UINT64_C(1) << 20)

struct copy_on_read {
        struct block block;
        struct claims claims;
        uint64_t unit_bytes;
        bool on_read;
};

struct writing {
        struct block_request req;
        struct block_request *guest;
        struct copy_on_read *f;
        struct claim claim;
};

static const struct block_driver block_copy_on_read_driver;

static struct copy_on_read *to_copy_on_read(struct block *block)
{
        assert(block->driver == &block_copy_on_read_driver);
        return container_of(block, struct copy_on_read, block);
}

static struct block *child_of(const struct copy_on_read *f)
{
        return f->block.child[BLOCK_FILE];
}

/* ---- writes ---- */

static void written(struct block_request *req, int result)
{
        struct writing *w = container_of(req, struct writing, req);
        struct block_request *guest = w->guest;
        struct copy_on_read *f = w->f;

        claim_end(&f->claims, &w->claim);
        free(w);
        block_complete(&f->block, guest, result);
}

static void write_on(struct writing *w)
{
        w->req = *w->guest;
        w->req.done = written;
        block_submit(child_of(w->f), &w->req);
}

static void wait_and_write(void *arg)
{
        struct writing *w = arg;

        claim_begin(&w->f->claims, &w->claim, w->guest->offset_bytes, w->guest->size_bytes, CLAIM_WRITE);
        write_on(w);
        block_kick(child_of(w->f));
}

static void submit_write(struct copy_on_read *f, struct block_request *req)
{
        struct writing *w = malloc(sizeof(*w));

        if (!w) {
                block_complete(&f->block, req, -ENOMEM);
                return;
        }
        *w = (struct writing){ .guest = req, .f = f };
        if (claim_try(&f->claims, &w->claim, req->offset_bytes, req->size_bytes, CLAIM_WRITE)) {
                write_on(w);
        } else if (fiber_start(wait_and_write, w) < 0) {
                free(w);
                block_complete(&f->block, req, -ENOMEM);
        }
}

/* ---- reads ---- */

/* Writes back what of the bytes, read at `at`, the image itself does not have. */
static int keep(struct copy_on_read *f, uint64_t at, uint64_t size_bytes, const uint8_t *bytes)
{
        struct block *child = child_of(f);
        uint64_t done = 0;

        while (done < size_bytes) {
                struct block_extent here, all = { 0 };
                uint64_t some;
                int r = block_disk_image_status(child, at + done, size_bytes - done, &here);

                if (r == 0)
                        r = block_status_through(child, at + done, MIN(here.size_bytes, size_bytes - done), &all);
                if (r < 0)
                        return r;
                some = MIN(MIN(here.size_bytes, all.size_bytes), size_bytes - done);
                if (!here.present && !all.zero)
                        r = block_write(child, at + done, bytes + done, some);
                if (r < 0)
                        return r;
                done += some;
        }
        return 0;
}

static int all_here(struct copy_on_read *f, uint64_t at, uint64_t size_bytes, bool *here)
{
        *here = true;
        while (size_bytes && *here) {
                struct block_extent extent;
                int r = block_disk_image_status(child_of(f), at, size_bytes, &extent);

                if (r < 0)
                        return r;
                *here = extent.present;
                at += extent.size_bytes;
                size_bytes -= MIN(extent.size_bytes, size_bytes);
        }
        return 0;
}

static int read_some(struct copy_on_read *f, struct block_request *guest, uint64_t done, uint64_t *some)
{
        uint64_t at = guest->offset_bytes + done, from = align_down(at, f->unit_bytes), end;
        _cleanup_free_ uint8_t *bytes = NULL;
        struct claim claim;
        int r;

        end = MIN(MIN(align_up(guest->offset_bytes + guest->size_bytes, f->unit_bytes), from + MAX(COPY_BYTES, f->unit_bytes)),
                  child_of(f)->info.size_bytes);
        *some = MIN(end - at, guest->size_bytes - done);
        bytes = malloc(end - from);
        if (!bytes)
                return -ENOMEM;
        claim_begin(&f->claims, &claim, from, end - from, CLAIM_COPY);
        r = block_read(child_of(f), from, bytes, end - from);
        if (r == 0) {
                (void)keep(f, from, end - from, bytes); /* next time, perhaps */
                buf_to_iov(guest->iov, guest->iov_count, done, bytes + (at - from), *some);
        }
        claim_end(&f->claims, &claim);
        return r;
}

static void read_and_keep(void *arg)
{
        struct block_request *guest = arg;
        struct copy_on_read *f = to_copy_on_read((struct block *)guest->next);
        uint64_t done = 0, some;
        bool here;
        int r = all_here(f, guest->offset_bytes, guest->size_bytes, &here);

        if (r == 0 && here) {
                filter_pass(&f->block, guest, 0);
                block_kick(child_of(f));
                return;
        }
        for (; r == 0 && done < guest->size_bytes; done += some)
                r = read_some(f, guest, done, &some);
        block_complete(&f->block, guest, r);
        if (!f->block.submitting && f->block.listener)
                f->block.listener(f->block.listener_ctx);
}

static void copy_on_read_submit(struct block *block, struct block_request *req)
{
        struct copy_on_read *f = to_copy_on_read(block);

        if (req->op == BLOCK_FLUSH || !req->size_bytes || (req->op == BLOCK_READ && (!f->on_read || !block_disk_image(child_of(f))->child[BLOCK_BACKING]))) {
                filter_pass(block, req, 0);
                return;
        }
        if (req->op != BLOCK_READ) {
                submit_write(f, req);
                return;
        }
        req->next = (struct block_request *)block;
        if (fiber_start(read_and_keep, req) < 0)
                block_complete(block, req, -ENOMEM);
}

static void copy_on_read_close(struct block *block)
{
        block_done(block);
        free(to_copy_on_read(block));
}

static const struct block_driver block_copy_on_read_driver = {
        .name = "copy-on-read",
        .text = "what was read from a backing file is in the image from then on",
        .close = copy_on_read_close,
        .submit = copy_on_read_submit,
        .status = filter_status,
        .resize = filter_resize,
        .refresh = filter_refresh,
};

int block_copy_on_read_new(struct block *child, bool on_read, struct block **block, struct err *err)
{
        struct copy_on_read *f;
        int r;

        if (on_read && child->info.readonly)
                return err_set(err, -EROFS, "disk %s is read-only: nothing can be copied into it", child->path);
        r = filter_new(child, &block_copy_on_read_driver, sizeof(*f), block, err);
        if (r < 0)
                return r;
        f = to_copy_on_read(*block);
        claims_init(&f->claims);
        f->on_read = on_read;
        f->unit_bytes = is_power_of_two(child->info.optimal_bytes) ? MIN(MAX(child->info.optimal_bytes, 4096u), UNIT_MAX) : 65536;
        filter_begin(*block, child);
        return 0;
}

void block_copy_on_read_claim(struct block *block, struct claim *claim, uint64_t offset_bytes, uint64_t size_bytes)
{
        claim_begin(&to_copy_on_read(block)->claims, claim, offset_bytes, size_bytes, CLAIM_COPY);
}

void block_copy_on_read_release(struct block *block, struct claim *claim)
{
        claim_end(&to_copy_on_read(block)->claims, claim);
}
