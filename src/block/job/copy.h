/*
 * Copying and comparing disks, for commands and for jobs: several fibers, each with a buffer, take the next piece in turn.
 *
 *      from ─▶ to             what reads as zeroes is not read, and written as zeroes, or left out where `to` is empty
 *      from, other            compared: where they differ first
 *      from, other ─▶ to      what differs is written to `to`
 *
 * What is copied at all a caller may decide piece by piece (look). Clusters of `to` are given out in the order of the disk, whatever order the
 * reads end in. A copy can be paused, slowed down and cancelled at any time, from the thread of the disks' loop, which all of it runs on.
 */
#pragma once

#include "base/fiber.h"
#include "block/block.h"

enum block_copy_what { BLOCK_COPY_SKIP, BLOCK_COPY_ZERO, BLOCK_COPY_DATA };

struct block_copy {
        struct block *from, *other, *to; /* NULL: from, other: all zeroes; to: nothing is written */
        uint64_t size_bytes;             /* of what is looked at, from the disk's start */
        bool compare;                    /* `other` counts */
        bool to_is_empty;                /* it reads as zeroes */
        bool compress;                   /* whole clusters of `to`, compressed */
        uint64_t unit_bytes;             /* pieces begin and end at multiples of it; 0: anywhere */
        /* What is at a place, and that it is so for *size_bytes (given: as far as anybody wants to know). NULL: what `from` says. In a fiber. */
        int (*look)(struct block_copy *copy, uint64_t at, uint64_t *size_bytes, enum block_copy_what *what);
        /*
         * In look's place, where others write to the disks: called for each piece, one after the other in the order of the disk, in a fiber. It may
         * wait until nobody else is at that place, and keeps others away until release: *claim is what that gets. *size_bytes is all that is left,
         * to be made smaller: to piece_bytes at most, unless it is skipped (then there is no release).
         */
        int (*claim)(struct block_copy *copy, uint64_t at, uint64_t *size_bytes, enum block_copy_what *what, void **claim);
        void (*release)(struct block_copy *copy, void *claim, uint64_t at, uint64_t size_bytes, int result);
        /* From the loop, when all is over: 0, -ECANCELED, or the first error. The struct is the caller's again. */
        void (*done)(struct block_copy *copy, int result);
        void *ctx;

        /* For whoever watches. */
        uint64_t done_bytes;
        uint64_t differs;                /* compared: the first byte; BLOCK_NOWHERE: none so far */

        /* Of the copy. */
        uint64_t next, known_end, other_end; /* what look said, and of `other`, up to there */
        enum block_copy_what known, other_known;
        uint64_t piece_bytes;
        uint64_t taken, turn;            /* pieces that are written: how many were given out, and whose turn it is to be submitted */
        struct fiber_queue turns, gate;
        struct fiber_lock lock;          /* over taking the next piece */
        unsigned fibers;
        int result;
        bool paused;
        uint64_t bytes_a_second, slice_left; /* 0: as fast as it goes */
        uv_timer_t timer;
        void *runner;
};

/* All zeroes but for what is the caller's to set. done comes from the loop. */
void block_copy_start(struct block_copy *copy, uv_loop_t *loop);
void block_copy_pause(struct block_copy *copy, bool pause);
void block_copy_set_speed(struct block_copy *copy, uint64_t bytes_a_second);
/* done comes later. */
void block_copy_cancel(struct block_copy *copy);
/* Runs the loop until it is over, and calls show, unless NULL, now and then. 0 or -errno. done is its own. */
int block_copy_run(struct block_copy *copy, uv_loop_t *loop, void (*show)(struct block_copy *copy, void *ctx), void *ctx) _must_check_;
/*
 * What the images from `front` down to the one in front of `base` decide of a place, for commits; what none of them does is skipped: the base has it.
 * As look.
 */
int block_copy_look_in_front(struct block *front, const struct block *base, uint64_t at, uint64_t *size_bytes, enum block_copy_what *what) _must_check_;
