/*
 * For tests: a file in memory as a block node, that remembers what was done to it, and fails when told to.
 *
 * Requests complete in the order they came, from the loop or a wait. Reads behind the end are zeroes, writes there make it longer.
 * With `shuffle` they are done in any order, and told of in another: when somebody waits (block_wait_some()), or by memory_step().
 */
#pragma once

#include "block/block.h"

struct memory_event {
        enum block_op op;        /* BLOCK_WRITE, BLOCK_WRITE_ZEROES (discards, too; of no bytes: another length), BLOCK_FLUSH */
        uint64_t offset_bytes, size_bytes;
        uint8_t *bytes;          /* of a write */
        unsigned part;           /* of which file */
        unsigned told;           /* when whoever asked for it was told, by the log's clock; 0: not yet */
        unsigned asked;          /* a flush: it covers what had been told then, of this file */
        uint64_t file_bytes;     /* how long the file is then */
};

struct memory_log {
        struct memory_event *event;
        unsigned events, room, clock;
};

struct memory_file {
        struct block block;
        uint8_t *bytes;
        uint64_t size_bytes, room_bytes;
        uint64_t limit_bytes;    /* -ENOSPC behind it; 0: none */
        struct memory_log *log;  /* borrowed; NULL: nobody asks */
        unsigned part;           /* its number in the log */
        long fail_after;         /* so many requests go well, the next one does not; below 0: all do */
        int fail_error;          /* -errno */
        bool failed;
        uint64_t hold_from, hold_to;         /* reads that touch these bytes wait for memory_let_go() */
        enum block_op hold_op;               /* or others */
        struct block_request *held;
        uint64_t shuffle;                    /* not 0: a seed */
        struct block_request *waiting;
        unsigned waiting_count;
};

/* A file in memory, and what a test opens on it, with their loop. */
struct memory_disk {
        uv_loop_t loop;
        struct memory_file *file;
        struct block *disk; /* owns the file; NULL: nothing does */
};

void memory_disk_begin(struct memory_disk *d, uint64_t size_bytes);
void memory_disk_end(struct memory_disk *d);

/* Takes a copy of bytes. */
struct memory_file *memory_file_new(uv_loop_t *loop, const uint8_t *bytes, uint64_t size_bytes);
void memory_let_go(struct memory_file *m);
/* One of those that wait is done, or told of; false: there is none. */
bool memory_step(struct memory_file *m);
void memory_log_done(struct memory_log *log);
/* Does to bytes (of size_bytes, which is never passed) what an event did, [from, to) of its bytes; nothing of another length. */
void memory_replay(uint8_t *bytes, uint64_t size_bytes, const struct memory_event *event, uint64_t from, uint64_t to);
