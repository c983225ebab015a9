/*
 * Asynchronous requests on one host file: io_uring, or libuv's thread pool where io_uring is not to be had.
 *
 * Block drivers put their requests here. The contract is that of block.h: one thread, done never from within submit or kick.
 */
#pragma once

#include "block/block.h"

struct file_io;

struct file_io_ops {
        const char *name; /* "io_uring", "threads" */
        void (*submit)(struct file_io *io, struct block_request *req);
        void (*kick)(struct file_io *io);
        void (*reap)(struct file_io *io);
        void (*wait)(struct file_io *io); /* until something was reaped; something is in flight */
        void (*free)(struct file_io *io);
};

/* What both engines' structs start with. */
struct file_io {
        const struct file_io_ops *ops;
        struct block *disk; /* whose requests they are */
        int fd;             /* borrowed */
};

/* allow_uring false takes the pool. fd stays the caller's and is open until file_io_free(). */
int file_io_new(uv_loop_t *loop, int fd, struct block *disk, bool allow_uring, struct file_io **io, struct err *err) _must_check_;
/* Nothing is in flight; NULL is fine. */
void file_io_free(struct file_io *io);

static inline const char *file_io_name(const struct file_io *io)
{
        return io->ops->name;
}

static inline void file_io_submit(struct file_io *io, struct block_request *req)
{
        io->ops->submit(io, req);
}

static inline void file_io_kick(struct file_io *io)
{
        io->ops->kick(io);
}

static inline void file_io_reap(struct file_io *io)
{
        io->ops->reap(io);
}

static inline void file_io_wait(struct file_io *io)
{
        io->ops->wait(io);
}

/* The engines. */
int file_io_uring_new(uv_loop_t *loop, int fd, struct block *disk, struct file_io **io, struct err *err) _must_check_;
int file_io_pool_new(uv_loop_t *loop, int fd, struct block *disk, struct file_io **io, struct err *err) _must_check_;

/*
 * Each request is a sequence of system calls. file_io_step() says which comes next; file_io_result() takes its result and says
 * whether the request is over (then req->result is it).
 */
/* Of a write zeroes that the host's file system does not take: more is not written in one request. */
#define FILE_IO_ZEROES_WRITTEN (UINT32_C(1) << 20)

enum file_io_call { FILE_IO_READV, FILE_IO_WRITEV, FILE_IO_SYNC, FILE_IO_FALLOCATE };

struct file_io_step {
        enum file_io_call call;
        const struct iovec *iov;
        unsigned iov_count;
        uint64_t offset_bytes, size_bytes;
        int flags; /* RWF_ of readv and writev; mode of fallocate */
};

void file_io_begin(struct block_request *req);
struct file_io_step file_io_step(const struct block_request *req);
bool file_io_result(struct block_request *req, int64_t result);
