/* Within virtio-blk: virtio-blk.c serves the queues, virtio-blk-parked.c keeps the requests that wait for the host. */
#pragma once

#include "device/virtio-blk.h"

#define BLK_REQUESTS 128
#define BLK_SEGMENTS_MAX 254 /* data buffers in a request */
#define BLK_RANGES_MAX 32    /* ranges in a discard */
#define BLK_SERIAL_BYTES 20
#define BLK_SECTOR_SHIFT 9

struct blk_range {
        uint64_t sector;
        uint32_t sectors, flags;
};

struct blk_request {
        struct block_request io;
        struct blk *blk;
        struct blk_request *next; /* free, finished or parked */
        struct virtio_chain chain;
        unsigned queue;
        int result; /* of io */
        uint8_t status;
        unsigned range, ranges; /* discard, write zeroes: the one in flight */
        struct blk_range ranges_at[BLK_RANGES_MAX];
        struct iovec iov[BLK_SEGMENTS_MAX + 2]; /* data, then the status byte */
};

struct blk {
        struct virtio v;
        struct block *disk;
        enum virtio_blk_on_error on_error;
        char serial[BLK_SERIAL_BYTES];
        bool writeback;
        bool serving;      /* on the loop's thread, with the lock held by ourselves */
        uint32_t stalled;  /* queues that wait for a free request */
        uint64_t capacity; /* sectors */
        struct virtio_iov iov;
        struct blk_request *free;
        struct blk_request *finished, **finished_last; /* the loop's thread only */
        struct blk_request *parked, **parked_last;     /* held (virtio_hold()), and not at the disk */
        struct blk_request *requests;
};

static inline struct blk *to_blk(struct virtio *v)
{
        return container_of(v, struct blk, v);
}

/* All with the lock held. */

/* Whether the request, whose result is an error, is to be tried again later; it is then parked and the host knows. */
bool virtio_blk_park(struct blk *blk, struct blk_request *req);
/* All of them to the disk again. The caller kicks. */
void virtio_blk_unpark(struct blk *blk);
/* Nobody waits for them any more. */
void virtio_blk_drop_parked(struct blk *blk);
void virtio_blk_save_parked(struct blk *blk, struct writer *out);
/* The device was reset just now, and its queues are loaded; what is not possible leaves it without parked requests. */
int virtio_blk_load_parked(struct blk *blk, struct cursor *in, struct err *err) _must_check_;
