/*
 * The guest's nanoseconds: CLOCK_MONOTONIC minus the time the machine stood still.
 *
 * PIT, HPET, PM timer and the local APICs' timers all count from this one clock, so that none of them drifts against another,
 * and none sees time pass while the machine is paused or lies in a snapshot. Deadlines are kept in guest nanoseconds; only
 * board_clock_host() turns one into what timer_arm() wants, and only while the clock runs: a paused machine's devices cancel
 * their timers (ops->quiesce) and arm them again (ops->resume).
 *
 * Pause, resume and set are for the machine's main thread; reading is for any thread.
 */
#pragma once

#include <stdatomic.h>

#include "base/timer.h"

struct board_clock {
        _Atomic uint64_t offset_ns;  /* host time - guest time while it runs */
        _Atomic uint64_t stopped_ns; /* guest time while it stands */
        atomic_bool stopped;
};

/* Runs from guest time 0. */
void board_clock_init(struct board_clock *clock);
uint64_t board_clock_ns(const struct board_clock *clock);
/* CLOCK_MONOTONIC at guest time guest_ns, saturated. */
uint64_t board_clock_host(const struct board_clock *clock, uint64_t guest_ns);
bool board_clock_stopped(const struct board_clock *clock);
void board_clock_pause(struct board_clock *clock);
void board_clock_resume(struct board_clock *clock);
/* Sets the guest's time, for a load; the clock must stand. */
void board_clock_set(struct board_clock *clock, uint64_t guest_ns);

/* value * multiplier / divider with a 128-bit product: ticks from nanoseconds and back. */
static inline uint64_t muldiv64(uint64_t value, uint64_t multiplier, uint64_t divider)
{
        return (uint64_t)((unsigned __int128)value * multiplier / divider);
}

/* The same, rounded up: the first nanosecond at which a tick is reached. */
static inline uint64_t muldiv64_up(uint64_t value, uint64_t multiplier, uint64_t divider)
{
        return (uint64_t)(((unsigned __int128)value * multiplier + divider - 1) / divider);
}
