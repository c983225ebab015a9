/*
 * Block devices of guests: one interface over image formats, with asynchronous requests.
 *
 * A disk is opened, driven and closed on one thread, that of its event loop. Requests are structs of the caller, which keeps
 * them and the memory they name until done is called. done is called from the loop (or from block_reap() and block_drain()),
 * never from within block_submit() or block_kick(), and may submit again.
 *
 *      block_submit(disk, &req);       any number, in any order; they may complete in any order
 *      block_kick(disk);               starts what was submitted
 *        … loop …  req->done(req, result) for each, then the listener once for the batch
 *
 * A flush covers the writes that had completed when it was submitted. Drivers are in one explicit table, block-drivers.c.
 */
#pragma once

#include <sys/uio.h>
#include <uv.h>

#include "base/err.h"

#define BLOCK_SECTOR 512

struct block;
struct block_driver;

enum block_op {
        BLOCK_READ, /* fills the iovecs; what lies behind the end of a file that shrank reads as zeroes */
        BLOCK_WRITE,
        BLOCK_FLUSH,        /* completed writes are on stable storage when it is done */
        BLOCK_DISCARD,      /* the bytes are not needed any more; they read as anything afterwards. A hint */
        /*
         * With BLOCK_F_UNMAP the space may be given back. -EOPNOTSUPP: so much would have to be written, in one request that nobody
         * can stop; the caller writes zeroes, or asks for less at once.
         */
        BLOCK_WRITE_ZEROES,
};

#define BLOCK_F_DURABLE 1 /* write, write zeroes: as if a flush followed it */
#define BLOCK_F_UNMAP 2

struct block_request {
        enum block_op op;
        unsigned flags;
        uint64_t offset_bytes; /* offset and size are within the disk; of any alignment */
        uint64_t size_bytes;   /* the sum of the iovecs; for the ops without data what they cover; 0 for flush */
        const struct iovec *iov;
        unsigned iov_count;
        /* result is 0 or -errno. */
        void (*done)(struct block_request *req, int result);

        /* Of the driver while the request is in flight. */
        struct block_request *next;
        uint64_t transferred;
        int result;
        unsigned stage, rest;
        struct iovec part;
};

struct block_info {
        uint64_t size_bytes;                    /* rounded up to whole sectors */
        uint32_t logical_bytes, physical_bytes; /* block sizes to tell the guest; powers of two, 512 and more */
        uint32_t optimal_bytes;                 /* good size of I/O, 0 when it does not matter */
        uint32_t discard_bytes;                 /* granularity; 0 when discard does nothing */
        uint32_t zeroes_bytes;                  /* a write zeroes of so much does not take long; 0 when read-only */
        bool readonly;
};

#define BLOCK_OPEN_READONLY 1
#define BLOCK_OPEN_NO_LOCK 2  /* for files someone else guards */
#define BLOCK_OPEN_NO_URING 4 /* thread pool only; also taken by itself where io_uring is forbidden */

struct block_driver {
        const char *name; /* "raw" */
        const char *text; /* one line for help */
        /* Whether these first bytes of a file are of this format, 0-100; NULL for formats only chosen by name. */
        int (*probe)(const uint8_t *head, size_t size_bytes);
        /* Opens path, which the driver may close over in its own struct that starts with struct block. */
        int (*open)(uv_loop_t *loop, const char *path, unsigned flags, struct block **disk, struct err *err);
        /* Nothing is in flight. Ends and frees the disk (the loop may have to run once more to close handles). */
        void (*close)(struct block *disk);
        void (*submit)(struct block *disk, struct block_request *req);
        void (*kick)(struct block *disk);
        void (*reap)(struct block *disk);
        void (*drain)(struct block *disk);
        /* Looks at the size again (the image was grown); disk->info changes. */
        int (*refresh)(struct block *disk, struct err *err);
};

/* What every driver's struct starts with. */
struct block {
        const struct block_driver *driver;
        struct block_info info;
        unsigned in_flight; /* submitted and not done */
        void (*listener)(void *ctx);
        void *listener_ctx;
};

/* NULL-terminated. */
extern const struct block_driver *const block_drivers[];

/*
 * Opens a disk image. format NULL means raw: guessing would let a guest that writes a header into its raw disk choose the format
 * of its next start. -EINVAL names the formats when it is not one of them; -EBUSY when another process uses the image;
 * -EACCES, -ENOENT, -EISDIR, -EROFS say it with the path.
 */
int block_open(uv_loop_t *loop, const char *path, const char *format, unsigned flags, struct block **disk,
               struct err *err) _must_check_;
/* Drains first. NULL is fine. */
void block_close(struct block *disk);

static inline const struct block_info *block_info(const struct block *disk)
{
        return &disk->info;
}

/* listener is called after each batch of completions, from where these are called. */
static inline void block_set_listener(struct block *disk, void (*listener)(void *ctx), void *ctx)
{
        disk->listener = listener;
        disk->listener_ctx = ctx;
}

static inline void block_submit(struct block *disk, struct block_request *req)
{
        disk->in_flight++;
        disk->driver->submit(disk, req);
}

static inline void block_kick(struct block *disk)
{
        disk->driver->kick(disk);
}

/* Completes now what has finished, without waiting for the loop. */
static inline void block_reap(struct block *disk)
{
        disk->driver->reap(disk);
}

/* Waits until nothing is in flight. */
static inline void block_drain(struct block *disk)
{
        disk->driver->drain(disk);
}

static inline int block_refresh(struct block *disk, struct err *err)
{
        return disk->driver->refresh(disk, err);
}

/* For drivers: a request is over. */
static inline void block_complete(struct block *disk, struct block_request *req, int result)
{
        disk->in_flight--;
        req->done(req, result);
}
