/*
 * Block devices of guests: one interface over files, image formats, protocols and filters, with asynchronous requests.
 *
 * A disk is a tree of nodes, each a struct block: an image format lies on a protocol, and on the disks it was made from.
 *
 *      qcow2 ─file──▶ file (top.qcow2)
 *            └backing▶ qcow2 ─file▶ file (base.qcow2)
 *
 * A tree is opened, driven and closed on one thread, that of its event loop. Requests are structs of the caller, which keeps
 * them and the memory they name until done is called. done is called from the loop (or from block_reap() and block_drain()),
 * never from within block_submit() or block_kick(), and may submit again.
 *
 *      block_submit(disk, &req);       any number, in any order; they may complete in any order
 *      block_kick(disk);               starts what was submitted
 *        … loop …  req->done(req, result) for each, then the listener once for the batch
 *
 * What is not for the data path is blocking: block_read(), block_status() and the like. In a fiber (base/fiber.h) they wait as fibers
 * do; elsewhere they wait for the disk itself, so not from within done.
 *
 * A flush covers the writes that had completed when it was submitted. Drivers are in one explicit table, block-drivers.c.
 */
#pragma once

#include <stdarg.h>
#include <sys/uio.h>
#include <uv.h>

#include "base/err.h"
#include "base/json.h"

#define BLOCK_SECTOR 512

struct block;
struct block_bitmap;
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
/*
 * A write of whole clusters (info.optimal_bytes; the last one may be cut by the disk's end) to where nothing was written yet: to be compressed.
 * -EOPNOTSUPP: the format cannot, or it is not of that shape.
 */
#define BLOCK_F_COMPRESS 4

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
        bool streamed;                          /* written once: whole blocks of optimal_bytes, in ascending order */
        bool noise;                             /* a new one reads as anything, not as zeroes */
        bool grows;                             /* writes behind the end make it longer: files, which formats lie on */
};

/* What is at a place, as block_status() finds it. */
struct block_extent {
        uint64_t size_bytes;   /* so far it is the same; not 0 */
        bool present;          /* this disk decides; else it is as in the disk behind it, or zeroes without one */
        bool zero;             /* reads as zeroes */
        bool compressed;
        unsigned depth;        /* block_status_through(): how many backing files behind; 0: the image itself */
        uint64_t host_bytes;   /* where it is in the file that the node lies on; BLOCK_NOWHERE: no such place */
};
#define BLOCK_NOWHERE UINT64_MAX

#define BLOCK_OPEN_READONLY 1
#define BLOCK_OPEN_NO_LOCK 2     /* for files someone else guards */
#define BLOCK_OPEN_NO_URING 4    /* thread pool only; also taken by itself where io_uring is forbidden */
#define BLOCK_OPEN_PROBE 8       /* a format that neither a name nor a suffix gives is looked for in the contents */
#define BLOCK_OPEN_NO_BACKING 16 /* the one image alone */
#define BLOCK_OPEN_ANY_BACKING 32 /* backing files may be anywhere, not only where the image is */
#define BLOCK_OPEN_REPAIR 64     /* as it is, also when it says that it is damaged */
#define BLOCK_OPEN_COMMIT 256    /* backing files are opened so that block_reopen() needs nothing but their locks */
#define BLOCK_OPEN_NO_FLUSH 128  /* nothing is waited for to be on stable storage: an image that is worth nothing before it is whole */

struct block_opening {
        uv_loop_t *loop;
        const char *path;      /* a file, or a URL of a protocol's */
        const char *format;    /* NULL: by the suffix; raw where that says nothing, or what a probe finds with BLOCK_OPEN_PROBE */
        unsigned flags;
        const char *secret;    /* where the passphrase of an encrypted image is (block/secret.h); NULL: nobody said */

        struct block *file;    /* for formats: what the image lies on; the core's, which closes it when open fails */
        unsigned depth;        /* how many images are in front of it */
        const struct block_opening *front; /* the one that names it as backing; NULL at first */
};

#define BLOCK_DEPTH_MAX 256

/* A new image. */
struct block_option {
        const char *key, *value;
};

struct block_creation {
        uint64_t size_bytes;
        const char *backing, *backing_format; /* as the image is to name them, or NULL */
        const struct block_option *option;    /* of the format's own */
        unsigned options;
        const char *secret;                   /* block_create() sets it: that of the opening */
        bool overwrite;                       /* block_create() sets it: what is there already may be replaced */
};

/* An option of a format, for help. */
struct block_option_about {
        const char *key; /* NULL ends the list */
        const char *argument, *text;
};

enum block_mend { BLOCK_MEND_NOTHING, BLOCK_MEND_LEAKS, BLOCK_MEND_ALL };

struct block_check {
        enum block_mend mend;
        void (*say)(void *ctx, const char *text); /* told of each thing that is wrong; may be NULL */
        void *ctx;
        /* What was found. leaks: space that nobody uses; errors: data is in danger, or gone. */
        uint64_t leaks, errors, leaks_mended, errors_mended;
        uint64_t clusters, compressed, fragmented; /* of the guest's */
        uint64_t end_bytes;                        /* of what the image uses of its file */
};

/* States of the disk that the image itself keeps. Blocking; nothing is in flight. A snapshot is named by its id or its name. */
struct block_snapshot_ops {
        int (*list)(struct block *block, json_t *into, struct err *err); /* appends objects: id, name, date_s, size_bytes, … */
        int (*create)(struct block *block, const char *name, struct err *err);
        int (*apply)(struct block *block, const char *which, struct err *err);
        int (*delete)(struct block *block, const char *which, struct err *err);
};

/* How large the file of a new image would be. */
struct block_measure {
        uint64_t required_bytes;        /* with what the source has, compared with zeroes or a backing file */
        uint64_t fully_allocated_bytes; /* with all of the disk written */
        uint64_t bitmaps_bytes;         /* for the source's bitmaps besides */
};

struct block_driver {
        const char *name; /* "qcow2" */
        const char *text; /* one line for help */
        const char *const *suffixes; /* of file names, with the dot; NULL-terminated. NULL: none */
        /* A protocol: what URLs of it begin with; with a colon at its end, any name that begins so. NULL: a format, or a filter. */
        const char *const *schemes;
        bool is_disk;                /* a protocol whose servers have disks, not files: their names have no suffixes */
        /* Whether these first bytes of a file are of this format, 0-100; NULL for formats only chosen by name. */
        int (*probe)(const uint8_t *head, size_t size_bytes);
        /* Makes a struct of its own that starts with struct block; adopts opening->file, and other children. */
        int (*open)(const struct block_opening *opening, struct block **block, struct err *err);
        /* Writes back what it holds; the image is then as if nobody had it open. NULL: nothing. */
        int (*finish)(struct block *block, struct err *err);
        /* Nothing is in flight. Ends with block_done(), and frees the struct; the core closes the children afterwards. */
        void (*close)(struct block *block);
        void (*submit)(struct block *block, struct block_request *req);
        /* NULL: that of the children is all. */
        void (*kick)(struct block *block);
        void (*reap)(struct block *block);
        /* Something is in flight, of which the node itself waits for a part: returns when some of it has completed. NULL: the children's. */
        void (*wait)(struct block *block);
        /* Looks at the size again (the image was grown); block->info changes. NULL: it never changes by itself. */
        int (*refresh)(struct block *block, struct err *err);
        /* Blocking. NULL: it is all data. size_bytes is what the caller would like to know of. */
        int (*status)(struct block *block, uint64_t offset_bytes, uint64_t size_bytes, struct block_extent *extent);
        int (*resize)(struct block *block, uint64_t size_bytes, struct err *err);
        /* Makes an image of an empty file. NULL: this format is only read. options: what creation->option may have, or NULL. */
        int (*create)(struct block *file, const struct block_creation *creation, struct err *err);
        const struct block_option_about *options;
        /* Nobody else uses it, and it was opened for that: BLOCK_OPEN_REPAIR. NULL: there is nothing to check. */
        int (*check)(struct block *block, struct block_check *check, struct err *err);
        const struct block_snapshot_ops *snapshots; /* NULL: the format has none */
        /* Lets writes in, or keeps them out from now on; the core has drained it, and does its file and data first. NULL: nothing is to do. */
        int (*reopen)(struct block *block, bool writable, struct err *err);
        /* The image names another backing file from now on (NULL: none), which is not opened. NULL: it cannot. */
        int (*set_backing)(struct block *block, const char *name, const char *format, struct err *err);
        /* Its child of that role is another one, or none, as the core has just made it; nothing is in flight. NULL: it cannot. */
        void (*backing_changed)(struct block *block);
        /* All of it is as in the backing file from now on. NULL: it cannot. */
        int (*make_empty)(struct block *block, struct err *err);
        /* Other options of an existing image; all of them or none. NULL: it has none that can change. */
        int (*amend)(struct block *block, const struct block_option *option, unsigned options, struct err *err);
        /* source may be NULL: nothing is written. Blocking. NULL: as long as the disk. */
        int (*measure)(const struct block_creation *creation, struct block *source, struct block_measure *measure, struct err *err);
        /* Whether the image could keep a bitmap of that kind besides those it has. NULL: it keeps none. */
        int (*keep_bitmap)(struct block *block, const char *name, uint32_t granularity_bytes, struct err *err);
        /* Adds what there is to say of it, for `virta disk info`. */
        int (*describe)(struct block *block, json_t *into);
};

#define BLOCK_CHILDREN_MAX 3
enum block_role { BLOCK_FILE, BLOCK_BACKING, BLOCK_DATA };

/* What every driver's struct starts with. */
struct block {
        const struct block_driver *driver;
        uv_loop_t *loop;
        char *path;             /* as it was opened */
        struct block_info info;
        struct block *child[BLOCK_CHILDREN_MAX]; /* by enum block_role; owned */
        unsigned in_flight;     /* submitted and not done */
        unsigned submitting;    /* within its submit: what completes there is done later */
        struct block_request *later, **later_last;
        struct block_bitmap *bitmaps; /* bitmap.h */
        struct block_idle *idle; /* has the loop come back for these */
        void (*listener)(void *ctx);
        void *listener_ctx;
};

/* NULL-terminated. */
extern const struct block_driver *const block_drivers[];

/* ---- opening ---- */

/*
 * Opens a disk image with all that it lies on. The format is the one named, else that of the file name's suffix, else raw: guessing
 * would let a guest that writes a header into its raw disk choose the format of its next start. -EINVAL names the formats when it is
 * not one of them; -EBUSY when another process uses the image; -EACCES, -ENOENT, -EISDIR, -EROFS say it with the path.
 */
int block_open(const struct block_opening *opening, struct block **block, struct err *err) _must_check_;
/* Writes back what drivers hold. A disk that is closed without it is as after a crash: sound, with space lost perhaps. */
int block_finish(struct block *block, struct err *err) _must_check_;
/* Drains first. NULL is fine. The loop may have to run once more to close handles. */
void block_close(struct block *block);
/*
 * Makes a new image. -EEXIST: there is something already, and it stays, unless overwrite is set. What fails leaves nothing behind.
 */
int block_create(const struct block_opening *opening, const struct block_creation *creation, bool overwrite, struct err *err) _must_check_;
/* Whether a name is that of a server's disk, which is there already. */
bool block_is_remote(const char *path);
/* The driver of that name; NULL. */
const struct block_driver *block_driver_find(const char *name);

static inline const struct block_info *block_info(const struct block *block)
{
        return &block->info;
}

/* ---- requests ---- */

/* listener is called after each batch of completions, from where these are called. */
static inline void block_set_listener(struct block *block, void (*listener)(void *ctx), void *ctx)
{
        block->listener = listener;
        block->listener_ctx = ctx;
}

static inline void block_submit(struct block *block, struct block_request *req)
{
        block->in_flight++;
        block->submitting++;
        block->driver->submit(block, req);
        block->submitting--;
}

void block_kick(struct block *block);
/* Completes now what has finished, without waiting for the loop. */
void block_reap(struct block *block);
/* Waits until nothing is in flight. */
void block_drain(struct block *block);
int block_refresh(struct block *block, struct err *err);

/* ---- blocking; 0 or -errno ---- */

int block_do(struct block *block, enum block_op op, unsigned flags, uint64_t offset_bytes, uint64_t size_bytes, const struct iovec *iov,
              unsigned iov_count) _must_check_;

static inline int _must_check_ block_read(struct block *block, uint64_t offset_bytes, void *to, size_t size_bytes)
{
        return block_do(block, BLOCK_READ, 0, offset_bytes, size_bytes, &(struct iovec){ to, size_bytes }, 1);
}

static inline int _must_check_ block_write(struct block *block, uint64_t offset_bytes, const void *from, size_t size_bytes)
{
        return block_do(block, BLOCK_WRITE, 0, offset_bytes, size_bytes, &(struct iovec){ (void *)from, size_bytes }, 1);
}

static inline int _must_check_ block_flush(struct block *block)
{
        return block_do(block, BLOCK_FLUSH, 0, 0, 0, NULL, 0);
}

/*
 * Several at once: all zeroes at first, then block_batch_add() for each, with requests that stay where they are, then the wait. The first
 * error is the result. One disk and what it lies on: block is what is waited for.
 */
struct block_batch {
        struct fiber *fiber;
        unsigned left;
        int result;
};

struct block_batch_request {
        struct block_request req; /* all but done by the caller */
        struct block_batch *batch;
};

void block_batch_add(struct block_batch *batch, struct block *block, struct block_batch_request *request);
int block_batch_wait(struct block_batch *batch, struct block *block) _must_check_;

int block_status(struct block *block, uint64_t offset_bytes, uint64_t size_bytes, struct block_extent *extent) _must_check_;
/* The same with what the disks behind it say: present is whether any of them has it. */
int block_status_through(struct block *block, uint64_t offset_bytes, uint64_t size_bytes, struct block_extent *extent) _must_check_;
/* How much of the disk, in units of unit_bytes (a power of two), has something in it that is not known to be zeroes. */
int block_count_data(struct block *block, uint64_t unit_bytes, uint64_t *bytes) _must_check_;
/* From read-only to writable or back. -EBUSY: somebody else uses the file. What it has as backing files stays read-only. */
int block_reopen(struct block *block, bool writable, struct err *err) _must_check_;
/* -EOPNOTSUPP: the format cannot. */
int block_resize(struct block *block, uint64_t size_bytes, struct err *err) _must_check_;

/* ---- for drivers ---- */

/* The first thing of open, on a struct that is all zeroes; undone by block_done(), the last thing of close and of an open that failed. */
int block_init(struct block *block, const struct block_driver *driver, const struct block_opening *opening, struct err *err) _must_check_;
void block_done(struct block *block);
/* child belongs to block from now on; its batches are block's. */
void block_adopt(struct block *block, enum block_role role, struct block *child);
/* The child is the caller's; NULL: there is none. */
struct block *block_detach(struct block *block, enum block_role role);
/*
 * The image is found wrong: says so, unless *broken says that somebody has, and sets it: the driver writes nothing any more. Returns whether it
 * is news.
 */
bool block_damaged(struct block *block, bool *broken, const char *fmt, va_list args);
/* So many bytes of zeroes and nothing else; of a block device the first so many. -ENOSPC: that is smaller. Blocking. */
int block_make_empty(struct block *file, uint64_t size_bytes, struct err *err) _must_check_;
/* A request is over. */
void block_complete(struct block *block, struct block_request *req, int result);
/* For drivers that have more below them than children: makes progress with a disk's requests; false: nothing is in flight. */
bool block_wait_some(struct block *block);
/* Opens the image that another names, as seen from where that one is. The format NULL: as block_open() does. */
int block_open_backing(const struct block_opening *front, const char *name, const char *format, struct block **backing, struct err *err) _must_check_;
/* The file of that name where the image is, raw, as the image itself is opened: an image's data that is kept apart. */
int block_open_beside(const struct block_opening *front, const char *name, struct block **file, struct err *err) _must_check_;
