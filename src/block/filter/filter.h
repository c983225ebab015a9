/*
 * Filters: nodes that stand in front of another and do something to its requests.
 *
 *      throttle   so many requests, so many bytes a second; several disks may share a group's limits
 *      fault      errors at chosen requests, for tests, ours and users'
 *      copy-on-read   what was read from a backing file is in the image from then on
 *      checksum   what is read is what was written, or an error
 *      copy-before-write   keeps the state of a disk at one point in time
 *
 * A filter takes its child over when it was made; when that fails the child stays the caller's. All that a filter does not do itself (status,
 * size, resizing) is its child's.
 */
#pragma once

#include "block/block.h"
#include "block/filter/claim.h"

/* ---- throttle.c ---- */

struct block_limit {
        uint64_t a_second;       /* on average; 0: no limit */
        uint64_t burst;          /* so many at once after a rest; 0: a tenth of a second's worth, at least one */
};

struct block_limits {
        struct block_limit requests, bytes;             /* of all */
        struct block_limit reads, writes;               /* requests; writes: and write zeroes, discards */
        struct block_limit read_bytes, written_bytes;
        uint64_t request_bytes;  /* one of more counts as several; 0: any is one */
};

struct block_throttle_group;

/* All disks of a group are of one loop's thread. Held once for the caller. */
int block_throttle_group_new(uv_loop_t *loop, const struct block_limits *limits, struct block_throttle_group **group, struct err *err) _must_check_;
void block_throttle_group_unref(struct block_throttle_group *group);
void block_throttle_group_set(struct block_throttle_group *group, const struct block_limits *limits);
/* Requests wait in the order they came, whatever disk of the group they are for. Who drains a disk has what waits there go on at once. */
int block_throttle_new(struct block *child, struct block_throttle_group *group, struct block **block, struct err *err) _must_check_;

/* ---- fault.c ---- */

struct block_fault {
        unsigned ops;            /* bits 1 << enum block_op; 0: all */
        int error;               /* -errno */
        uint64_t after;          /* so many of these go well first */
        uint64_t times;          /* so many fail then; 0: all */
        unsigned chance;         /* in a million, of those that would fail; 0: each does */
        uint64_t seed;           /* of chance */
        uint64_t from_bytes, to_bytes; /* only those that touch this; to 0: anywhere */
        bool late;               /* what fails is done all the same, and its error told afterwards */
};

/* The first rule that applies counts. Copied. */
int block_fault_new(struct block *child, const struct block_fault *fault, unsigned count, struct block **block, struct err *err) _must_check_;
/* How many requests failed so far by a rule. */
uint64_t block_fault_count(const struct block *block, unsigned rule);

/* ---- copy-on-read.c ---- */

/*
 * on_read: what guests read is copied. Else only what block_copy_on_read_claim() is used for, which keeps the guest's writes away from a part of
 * the disk meanwhile: read it through the filter's child, and write it back there.
 */
int block_copy_on_read_new(struct block *child, bool on_read, struct block **block, struct err *err) _must_check_;
/* In a fiber. */
void block_copy_on_read_claim(struct block *block, struct claim *claim, uint64_t offset_bytes, uint64_t size_bytes);
void block_copy_on_read_release(struct block *block, struct claim *claim);

/* ---- checksum.c ---- */

/* With the checksums in that file, which is made when it is not there. block_finish() writes what is known to it. */
int block_checksum_new(struct block *child, const char *path, struct block **block, struct err *err) _must_check_;

/* ---- before-write.c ---- */

/* Keeps the state of now: all of it, or what is set in `only`. Source and target are the filter's children then. */
int block_before_write_new(struct block *source, struct block *target, bool target_is_empty, const struct block_bitmap *only, struct block **filter,
                           struct err *err) _must_check_;
/* The state as a disk that is read; closed before the filter is. */
int block_before_write_view(struct block *filter, struct block **view, struct err *err) _must_check_;
/* 0; or why the state is lost. */
int block_before_write_error(struct block *filter);
/* Bytes that the target does not have yet. */
uint64_t block_before_write_left(struct block *filter);
/*
 * For a copy that goes through the disk, in a fiber: what is to be done at a place, up to most bytes of it; *skip: nothing for *size_bytes, and
 * nothing is claimed. The release has what the claim said.
 */
int block_before_write_claim(struct block *filter, uint64_t at, uint64_t *size_bytes, uint64_t most, struct claim *claim, bool *skip, bool *zero) _must_check_;
void block_before_write_release(struct block *filter, struct claim *claim, uint64_t at, uint64_t size_bytes, int result);
/* Nothing is copied any more. */
void block_before_write_give_up(struct block *filter, int error);

/* ---- by a text ---- */

/*
 * "throttle:requests=100,bytes=10M,burst-bytes=20M", "fault:op=write,errno=EIO,after=5,times=1,chance=1000", "copy-on-read",
 * "checksum:file=PATH": a filter in front of child. Colons will do for commas.
 * -EINVAL says what is wrong with it.
 */
int block_filter_new(struct block *child, const char *text, struct block **block, struct err *err) _must_check_;
#define BLOCK_FILTERS_MAX 8u
/* Several, the first one nearest to the child, in one another's front. When it fails there are none. */
int block_filters_new(struct block *child, const char *const *text, unsigned count, struct block **block, struct err *err) _must_check_;

/* ---- what filters share: filter.c ---- */

struct filter_request {
        struct block_request req; /* to the child */
        struct block_request *guest;
        struct block *block;
        struct filter_request *next;
        int result;               /* told instead of the child's, when it is not 0 */
};

/* A filter's struct, which starts with struct block; of size_bytes. The child is adopted by filter_begin(). */
int filter_new(struct block *child, const struct block_driver *driver, size_t size_bytes, struct block **block, struct err *err) _must_check_;
void filter_begin(struct block *block, struct block *child);
/* Passes a request on to the child; guest completes as it does. */
void filter_pass(struct block *block, struct block_request *guest, int result);
int filter_status(struct block *block, uint64_t offset_bytes, uint64_t size_bytes, struct block_extent *extent);
int filter_resize(struct block *block, uint64_t size_bytes, struct err *err);
int filter_refresh(struct block *block, struct err *err);
/* Frees a filter with nothing in flight, and gives its children back: they stay. */
void block_filter_remove(struct block *filter);
