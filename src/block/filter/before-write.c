/*
 * The state of a disk at one point in time, while it goes on being written: what is about to be overwritten is copied to a target first.
 *
 *      guest ─▶ before-write ─write─▶ source          left: what the target does not have yet, and has to get
 *                    └──────old data─▶ target
 *      view  ─read─▶ target, where it has it; else source
 *
 * A write waits until the parts of it that are left have been copied; units of unit_bytes are copied as a whole. A backup copies what is left
 * besides, piece by piece, with the same claims (claim.h), so that nothing is copied twice and no write comes between. When the source cannot be
 * read for that, or the target not be written, the point in time is lost: the guest's writes go on, and the error is kept.
 */
#include <assert.h>
#include <errno.h>

#include "base/iov.h"
#include "block/bitmap.h"
#include "block/filter/filter.h"

#define COPY_BYTES (UINT64_C(1) << 20)

struct before_write {
        struct block block;
        struct claims claims;
        struct block_bitmap *left;
        uint64_t unit_bytes;
        bool target_is_empty;
        int error;
};

struct writing {
        struct block_request req;
        struct block_request *guest;
        struct before_write *f;
        struct claim claim;
};

static const struct block_driver block_before_write_driver;

static struct before_write *to_before_write(struct block *block)
{
        assert(block->driver == &block_before_write_driver);
        return container_of(block, struct before_write, block);
}

static struct block *source_of(const struct before_write *f)
{
        return f->block.child[BLOCK_FILE];
}

static struct block *target_of(const struct before_write *f)
{
        return f->block.child[BLOCK_DATA];
}

static void give_up(struct before_write *f, int error)
{
        if (!f->error)
                f->error = error;
        block_bitmap_clear(f->left, 0, f->left->size_bytes);
}

/* ---- copying ---- */

/* The first range that is left in [at, end); it may have been copied meanwhile when the claim is granted: then none is claimed. */
static bool claim_left(struct before_write *f, uint64_t at, uint64_t end, uint64_t most, struct claim *claim, uint64_t *from, uint64_t *size_bytes)
{
        uint64_t now;

        if (!block_bitmap_next(f->left, at, from, size_bytes) || *from >= end)
                return false;
        *size_bytes = MIN(*size_bytes, most);
        claim_begin(&f->claims, claim, *from, *size_bytes, CLAIM_COPY);
        if (block_bitmap_next(f->left, *from, &now, size_bytes) && now == *from) {
                *size_bytes = MIN(*size_bytes, claim->to - claim->from);
                return true;
        }
        *size_bytes = 0;
        claim_end(&f->claims, claim);
        return true;
}

static int copy_range(struct before_write *f, uint64_t from, uint64_t size_bytes, uint8_t *bytes)
{
        int r = block_read(source_of(f), from, bytes, size_bytes);

        if (r == 0 && f->target_is_empty && !bytes[0] && !memcmp(bytes, bytes + 1, size_bytes - 1))
                return 0;
        return r == 0 ? block_write(target_of(f), from, bytes, size_bytes) : r;
}

static int copy_left(struct before_write *f, uint64_t at, uint64_t end)
{
        uint64_t most = MAX(MIN(align_up(end, f->unit_bytes) - at, COPY_BYTES), f->unit_bytes), from, size_bytes;
        _cleanup_free_ uint8_t *bytes = malloc(most);
        struct claim claim;
        int r = bytes ? 0 : -ENOMEM;

        while (r == 0 && claim_left(f, at, end, most, &claim, &from, &size_bytes)) {
                if (!size_bytes)
                        continue;
                r = copy_range(f, from, size_bytes, bytes);
                if (r == 0)
                        block_bitmap_clear(f->left, from, size_bytes);
                claim_end(&f->claims, &claim);
        }
        return r;
}

/* ---- writes of the guest ---- */

static void written(struct block_request *req, int result)
{
        struct writing *w = container_of(req, struct writing, req);
        struct block_request *guest = w->guest;
        struct before_write *f = w->f;

        claim_end(&f->claims, &w->claim);
        free(w);
        block_complete(&f->block, guest, result);
}

static void write_on(struct writing *w)
{
        w->req = *w->guest;
        w->req.done = written;
        block_submit(source_of(w->f), &w->req);
}

static void copy_and_write(void *arg)
{
        struct writing *w = arg;
        struct before_write *f = w->f;
        uint64_t from = w->guest->offset_bytes, size_bytes = w->guest->size_bytes;
        int r = copy_left(f, align_down(from, f->unit_bytes), from + size_bytes);

        if (r < 0)
                give_up(f, r);
        claim_begin(&f->claims, &w->claim, from, size_bytes, CLAIM_WRITE);
        write_on(w);
        block_kick(source_of(f));
}

static bool any_left(const struct before_write *f, uint64_t at, uint64_t end)
{
        uint64_t from, size_bytes;

        return f->left->dirty && block_bitmap_next(f->left, at, &from, &size_bytes) && from < end;
}

static void submit_write(struct before_write *f, struct block_request *req)
{
        uint64_t end = req->offset_bytes + req->size_bytes;
        struct writing *w = malloc(sizeof(*w));

        if (!w) {
                block_complete(&f->block, req, -ENOMEM);
                return;
        }
        *w = (struct writing){ .guest = req, .f = f };
        if (!any_left(f, align_down(req->offset_bytes, f->unit_bytes), end) &&
            claim_try(&f->claims, &w->claim, req->offset_bytes, req->size_bytes, CLAIM_WRITE)) {
                write_on(w);
                return;
        }
        if (fiber_start(copy_and_write, w) < 0) {
                free(w);
                block_complete(&f->block, req, -ENOMEM);
        }
}

static void before_write_submit(struct block *block, struct block_request *req)
{
        if (req->op == BLOCK_READ || req->op == BLOCK_FLUSH || !req->size_bytes)
                filter_pass(block, req, 0);
        else
                submit_write(to_before_write(block), req);
}

static int before_write_resize(struct block *block, uint64_t size_bytes, struct err *err)
{
        return err_set(err, -EBUSY, "disk %s: its size stays while a state of it is kept", block->path);
}

static void before_write_close(struct block *block)
{
        block_done(block);
        free(to_before_write(block));
}

static const struct block_driver block_before_write_driver = {
        .name = "copy-before-write",
        .text = "keeps the state of a disk at one point in time",
        .close = before_write_close,
        .submit = before_write_submit,
        .status = filter_status,
        .resize = before_write_resize,
        .refresh = filter_refresh,
};

/* ---- for who makes it ---- */

int block_before_write_new(struct block *source, struct block *target, bool target_is_empty, const struct block_bitmap *only, struct block **filter,
                           struct err *err)
{
        struct before_write *f;
        struct block *block;
        int r;

        if (target->info.size_bytes < source->info.size_bytes)
                return err_set(err, -EINVAL, "disk %s is smaller than %s", target->path, source->path);
        r = filter_new(source, &block_before_write_driver, sizeof(struct before_write), &block, err);
        if (r < 0)
                return r;
        block->info = source->info;
        f = to_before_write(block);
        claims_init(&f->claims);
        f->target_is_empty = target_is_empty;
        f->unit_bytes = MAX(block_bitmap_granularity(target), block_bitmap_granularity(source));
        r = block_bitmap_add(block, NULL, (uint32_t)f->unit_bytes, &f->left, err);
        if (r == 0 && only)
                r = block_bitmap_merge(f->left, only, err);
        else if (r == 0)
                block_bitmap_set(f->left, 0, f->left->size_bytes);
        if (r < 0) {
                before_write_close(block);
                return r;
        }
        f->left->enabled = false;
        block_adopt(block, BLOCK_FILE, source);
        block_adopt(block, BLOCK_DATA, target);
        *filter = block;
        return 0;
}

int block_before_write_error(struct block *filter)
{
        return to_before_write(filter)->error;
}

uint64_t block_before_write_left(struct block *filter)
{
        const struct block_bitmap *left = to_before_write(filter)->left;

        return MIN(left->dirty << left->shift, left->size_bytes);
}

/* ---- for a copy that takes what is left in turn ---- */

static int look_at(struct before_write *f, uint64_t at, uint64_t *size_bytes, bool *zero)
{
        struct block_extent extent;
        int r = block_status_through(source_of(f), at, *size_bytes, &extent);

        if (r < 0)
                return r;
        *zero = extent.zero && (extent.size_bytes >= *size_bytes || extent.size_bytes >= f->unit_bytes);
        if (*zero && extent.size_bytes < *size_bytes)
                *size_bytes = align_down(extent.size_bytes, f->unit_bytes);
        return 0;
}

int block_before_write_claim(struct block *filter, uint64_t at, uint64_t *size_bytes, uint64_t most, struct claim *claim, bool *skip, bool *zero)
{
        struct before_write *f = to_before_write(filter);
        uint64_t end = at + *size_bytes, from, size;
        int r;

        do {
                if (f->error)
                        return f->error;
                *skip = !block_bitmap_next(f->left, at, &from, &size) || from > at;
                if (*skip) {
                        *size_bytes = (f->left->dirty && from > at && from < end ? from : end) - at;
                        return 0;
                }
        } while (!claim_left(f, at, end, MAX(align_down(most, f->unit_bytes), f->unit_bytes), claim, &from, &size) || !size);
        *size_bytes = size;
        r = look_at(f, at, size_bytes, zero);
        if (r < 0)
                claim_end(&f->claims, claim);
        return r;
}

void block_before_write_release(struct block *filter, struct claim *claim, uint64_t at, uint64_t size_bytes, int result)
{
        struct before_write *f = to_before_write(filter);

        if (result == 0)
                block_bitmap_clear(f->left, at, size_bytes);
        claim_end(&f->claims, claim);
}

void block_before_write_give_up(struct block *filter, int error)
{
        give_up(to_before_write(filter), error);
}

/* ---- the view ---- */

struct view {
        struct block block;
        struct before_write *f;
};

static struct view *to_view(struct block *block)
{
        return container_of(block, struct view, block);
}

static int read_some(struct before_write *f, struct block_request *guest, uint64_t done, uint64_t *size_bytes, uint8_t *bytes)
{
        uint64_t at = guest->offset_bytes + done, from, size;
        struct claim claim;
        int r;

        *size_bytes = MIN(guest->size_bytes - done, COPY_BYTES);
        claim_begin(&f->claims, &claim, at, *size_bytes, CLAIM_READ); /* what is left stays in the source until it ends */
        if (!block_bitmap_next(f->left, at, &from, &size))
                from = UINT64_MAX;
        *size_bytes = from > at ? MIN(*size_bytes, from - at) : MIN(*size_bytes, size);
        r = f->error ? f->error : block_read(from > at ? target_of(f) : source_of(f), at, bytes, *size_bytes);
        claim_end(&f->claims, &claim);
        if (r == 0)
                r = f->error;
        if (r == 0)
                buf_to_iov(guest->iov, guest->iov_count, done, bytes, *size_bytes);
        return r;
}

static void view_read(void *arg)
{
        struct block_request *guest = arg;
        struct view *v = (struct view *)guest->next;
        uint64_t done = 0, some;
        _cleanup_free_ uint8_t *bytes = malloc(COPY_BYTES);
        int r = bytes ? 0 : -ENOMEM;

        for (; r == 0 && done < guest->size_bytes; done += some)
                r = read_some(v->f, guest, done, &some, bytes);
        block_complete(&v->block, guest, r);
        if (!v->block.submitting && v->block.listener)
                v->block.listener(v->block.listener_ctx);
}

static void view_submit(struct block *block, struct block_request *req)
{
        if (req->op == BLOCK_FLUSH || (req->op == BLOCK_READ && !req->size_bytes)) {
                block_complete(block, req, 0);
                return;
        }
        req->next = (struct block_request *)to_view(block);
        if (req->op != BLOCK_READ)
                block_complete(block, req, -EROFS);
        else if (fiber_start(view_read, req) < 0)
                block_complete(block, req, -ENOMEM);
}

static void view_kick(struct block *block)
{
        block_kick(&to_view(block)->f->block);
}

static void view_reap(struct block *block)
{
        block_reap(&to_view(block)->f->block);
}

static void view_wait(struct block *block)
{
        block_kick(&to_view(block)->f->block);
        block_wait_some(&to_view(block)->f->block);
}

static void view_close(struct block *block)
{
        block_done(block);
        free(to_view(block));
}

static const struct block_driver block_view_driver = {
        .name = "view",
        .text = "a disk as it was at one point in time",
        .close = view_close,
        .submit = view_submit,
        .kick = view_kick,
        .reap = view_reap,
        .wait = view_wait,
};

int block_before_write_view(struct block *filter, struct block **view, struct err *err)
{
        int r = filter_new(filter, &block_view_driver, sizeof(struct view), view, err);

        if (r < 0)
                return r;
        to_view(*view)->f = to_before_write(filter);
        (*view)->info = filter->info;
        (*view)->info.readonly = true;
        (*view)->info.discard_bytes = (*view)->info.zeroes_bytes = 0;
        (*view)->info.grows = false;
        return 0;
}
