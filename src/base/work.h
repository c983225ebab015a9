/*
 * Blocking work on libuv's pool of threads, whose end can also be waited for without running the loop.
 *
 *      work_submit() ─▶ a thread of the pool: run(arg) ─▶ finished list ─▶ (async wakes the loop) work_reap(): done(arg), batch() once
 *
 * A queue is of one thread, that of its loop: everything but run is called there. done is never called from within work_submit().
 */
#pragma once

#include <uv.h>

#include "base/err.h"

struct work_queue;

/* batch, unless NULL, is called after each number of ends that were told together. */
int work_queue_new(uv_loop_t *loop, void (*batch)(void *ctx), void *ctx, struct work_queue **out, struct err *err) _must_check_;
/* Nothing is under way; NULL is fine. The loop may have to run once more to close its handle. */
void work_queue_free(struct work_queue *queue);

/* -ENOMEM: nothing was begun, done is not called. */
int work_submit(struct work_queue *queue, void (*run)(void *arg), void (*done)(void *arg), void *arg) _must_check_;
/* Tells now of all that has ended; false: nothing has. From within done it does nothing. */
bool work_reap(struct work_queue *queue);
/* The same, waiting until something has. Something is under way. */
void work_wait(struct work_queue *queue);
/* How much was submitted and not told of. */
unsigned work_under_way(const struct work_queue *queue);
/* In a fiber: run(arg) on another thread, while this one does other things. Elsewhere, or when memory is short: here and now. */
void work_do(struct work_queue *queue, void (*run)(void *arg), void *arg);
