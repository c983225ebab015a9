/*
 * Filters: nodes that stand in front of another and do something to its requests.
 *
 *      throttle   so many requests, so many bytes a second; several disks may share a group's limits
 *      fault      errors at chosen requests, for tests, ours and users'
 *
 * A filter takes its child over when it was made; when that fails the child stays the caller's. All that a filter does not do itself (status,
 * size, resizing) is its child's.
 */
#pragma once

#include "block/block.h"

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

/* ---- by a text ---- */

/*
 * "throttle:requests=100,bytes=10M,burst-bytes=20M" or "fault:op=write,errno=EIO,after=5,times=1,chance=1000": a filter in front of child.
 * -EINVAL says what is wrong with it.
 */
int block_filter_new(struct block *child, const char *text, struct block **block, struct err *err) _must_check_;

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
