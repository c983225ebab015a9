/*
 * High-resolution one-shot timers on an event loop.
 *
 * libuv's timers count milliseconds; a guest's local APIC wants microseconds. All timers of a set share one timerfd that is
 * armed for the earliest of them. Arming and cancelling may be done from any thread; the callback runs on the loop's thread,
 * without the set's lock held. A cancelled timer's callback may still be running on the loop's thread when timer_cancel()
 * returns on another: the callback's own lock and state decide.
 */
#pragma once

#include <uv.h>

#include "base/clock.h"
#include "base/err.h"

struct timer_set;

struct timer {
        void (*fn)(void *ctx);
        void *ctx;
        uint64_t deadline_ns; /* CLOCK_MONOTONIC; 0 when not armed */
        struct timer_set *set;
        struct timer *child, *next, *back; /* the set's heap; not for the owner */
};

/* The set keeps the loop alive until it is freed. */
int timer_set_new(uv_loop_t *loop, struct timer_set **set, struct err *err) _must_check_;
/* On the loop's thread, with all timers cancelled. The memory goes when the loop next runs its close callbacks. */
void timer_set_free(struct timer_set *set);

void timer_init(struct timer *timer, struct timer_set *set, void (*fn)(void *ctx), void *ctx);
/* Fires once at deadline_ns (CLOCK_MONOTONIC), at once when that has passed; replaces an earlier deadline. */
void timer_arm(struct timer *timer, uint64_t deadline_ns);
/* Nothing happens when it is not armed, or never was initialised (all zero). */
void timer_cancel(struct timer *timer);
