/*
 * Fibers: functions that can wait in their middle, all on the thread of one event loop.
 *
 *      fiber_start(fn, arg)   runs fn at once, on a stack of its own, until it waits or returns
 *      fiber_wait()           in a fiber: back to whoever started or woke it
 *      fiber_wake(fiber)      runs it on from there, until it waits again or returns
 *
 * A callback of the loop that finds what a fiber waits for wakes it. Each wait is ended by exactly one wake, and one that runs, or has
 * ended, is never woken. Fibers may start and wake others; whoever did goes on when they wait.
 *
 * A fiber stays on the thread that started it. Its stack has FIBER_STACK_BYTES and a page below it that nobody can touch; it is kept
 * for the next fiber when fn returns, up to some number a thread, until fiber_thread_done().
 */
#pragma once

#include "base/util.h"

#define FIBER_STACK_BYTES ((size_t)64 << 10)

struct fiber;

/* -ENOMEM: there is no stack to be had, nothing was run. */
int fiber_start(void (*fn)(void *arg), void *arg) _must_check_;
/* The fiber that runs on this thread; NULL: none does. */
struct fiber *fiber_self(void);
void fiber_wait(void);
void fiber_wake(struct fiber *fiber);
/* Gives back the stacks that this thread keeps. No fiber waits or runs. */
void fiber_thread_done(void);

/* Fibers that wait for one thing, first come first served. All zeroes is an empty one. */
struct fiber_queue {
        struct fiber *first, *last;
};

void fiber_queue_wait(struct fiber_queue *queue);
/* The first that waits; false: none does. */
bool fiber_queue_wake(struct fiber_queue *queue);
/* All that wait now, and none that comes while they run. */
void fiber_queue_wake_all(struct fiber_queue *queue);

/* Held by one fiber at a time; handed on in the order of asking. All zeroes is a free one. */
struct fiber_lock {
        bool held;
        struct fiber_queue waiting;
};

void fiber_lock(struct fiber_lock *lock);
void fiber_unlock(struct fiber_lock *lock);
