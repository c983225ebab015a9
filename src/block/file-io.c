/*
 * What both engines of file I/O share: which system calls make up a request.
 *
 *   read   preadv until all is there; at the end of the file the rest is zeroes
 *   write  pwritev until all is there, with RWF_DSYNC when it is to be durable
 *   flush  fdatasync
 *   discard       fallocate(PUNCH_HOLE); where that is not to be had it does nothing, as a hint may
 *   write zeroes  fallocate(PUNCH_HOLE or ZERO_RANGE); where that is not to be had zeroes are written, up to
 *                 FILE_IO_ZEROES_WRITTEN, so that whoever waits for all requests does not wait for gigabytes; then fdatasync if durable
 */
#include "block/file-io.h"

#include <errno.h>
#include <linux/falloc.h>

#define ZEROES_BYTES 65536

enum { STAGE_FIRST, STAGE_ZEROES, STAGE_SYNC };

static const uint8_t zeroes[ZEROES_BYTES];

void file_io_begin(struct block_request *req)
{
        req->next = NULL;
        req->transferred = 0;
        req->result = 0;
        req->stage = STAGE_FIRST;
        req->rest = 0;
        req->part = (struct iovec){ .iov_base = req->iov_count ? req->iov[0].iov_base : NULL };
}

static struct file_io_step fallocate_step(const struct block_request *req)
{
        bool punch = req->op == BLOCK_DISCARD || req->flags & BLOCK_F_UNMAP;

        return (struct file_io_step){
                .call = FILE_IO_FALLOCATE,
                .offset_bytes = req->offset_bytes,
                .size_bytes = req->size_bytes,
                .flags = (punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE,
        };
}

struct file_io_step file_io_step(const struct block_request *req)
{
        struct file_io_step step = {
                .call = req->op == BLOCK_READ ? FILE_IO_READV : FILE_IO_WRITEV,
                .iov = req->part.iov_len || !req->iov ? &req->part : req->iov + req->rest,
                .iov_count = req->part.iov_len ? 1 : req->iov_count - req->rest,
                .offset_bytes = req->offset_bytes + req->transferred,
                .size_bytes = req->size_bytes - req->transferred,
        };

        if (req->op == BLOCK_FLUSH || req->stage == STAGE_SYNC)
                return (struct file_io_step){ .call = FILE_IO_SYNC };
        if (req->stage == STAGE_FIRST && (req->op == BLOCK_DISCARD || req->op == BLOCK_WRITE_ZEROES))
                return fallocate_step(req);
        if (req->op == BLOCK_WRITE && req->flags & BLOCK_F_DURABLE)
                step.flags = RWF_DSYNC;
        return step;
}

/*
 * After a short transfer: what is left of the entry where it stopped goes first, as a transfer of its own, so that the caller's
 * iovecs stay as they are. transferred is less than the sum of them.
 */
static void find_rest(struct block_request *req)
{
        uint64_t left = req->transferred;
        unsigned i = 0;

        while (left >= req->iov[i].iov_len)
                left -= req->iov[i++].iov_len;
        req->rest = i;
        req->part = (struct iovec){ .iov_base = (uint8_t *)req->iov[i].iov_base + left,
                                    .iov_len = left ? req->iov[i].iov_len - left : 0 };
}

static void zero_rest(const struct block_request *req)
{
        memset(req->part.iov_base, 0, req->part.iov_len);
        for (unsigned i = req->rest + !!req->part.iov_len; i < req->iov_count; i++)
                memset(req->iov[i].iov_base, 0, req->iov[i].iov_len);
}

static bool data_result(struct block_request *req, int64_t result)
{
        if (result == 0 && req->op == BLOCK_READ) {
                zero_rest(req);
                return true;
        }
        if (result == 0) {
                req->result = -EIO;
                return true;
        }
        req->transferred += (uint64_t)result;
        if (req->transferred >= req->size_bytes)
                return true;
        find_rest(req);
        return false;
}

/* The next piece of zeroes, or what follows them. */
static bool zeroes_go_on(struct block_request *req)
{
        if (req->transferred < req->size_bytes) {
                req->stage = STAGE_ZEROES;
                req->part.iov_base = (void *)zeroes;
                req->part.iov_len = MIN(req->size_bytes - req->transferred, (uint64_t)ZEROES_BYTES);
                return false;
        }
        if (req->flags & BLOCK_F_DURABLE) {
                req->stage = STAGE_SYNC;
                return false;
        }
        return true;
}

static bool unsupported(int64_t result)
{
        return result == -EOPNOTSUPP || result == -ENOSYS || result == -ENODEV || result == -ENOTTY;
}

static bool range_result(struct block_request *req, int64_t result)
{
        if (req->stage == STAGE_ZEROES) {
                if (result == 0) {
                        req->result = -EIO;
                        return true;
                }
                req->transferred += (uint64_t)result;
        } else {
                req->transferred = unsupported(result) ? 0 : req->size_bytes;
                if (!req->transferred && req->size_bytes > FILE_IO_ZEROES_WRITTEN) {
                        req->result = -EOPNOTSUPP;
                        return true;
                }
        }
        return zeroes_go_on(req);
}

bool file_io_result(struct block_request *req, int64_t result)
{
        bool range = req->op == BLOCK_DISCARD || req->op == BLOCK_WRITE_ZEROES;

        if (result == -EINTR || result == -EAGAIN)
                return false;
        if (result < 0 && !(range && req->stage == STAGE_FIRST && unsupported(result))) {
                req->result = (int)result;
                return true;
        }
        if (req->op == BLOCK_FLUSH || req->op == BLOCK_DISCARD || req->stage == STAGE_SYNC)
                return true;
        return range ? range_result(req, result) : data_result(req, result);
}

int file_io_new(uv_loop_t *loop, int fd, struct block *disk, bool allow_uring, struct file_io **io, struct err *err)
{
        if (allow_uring && file_io_uring_new(loop, fd, disk, io, NULL) == 0)
                return 0;
        return file_io_pool_new(loop, fd, disk, io, err);
}

void file_io_free(struct file_io *io)
{
        if (io)
                io->ops->free(io);
}
