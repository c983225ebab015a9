/* The guest's nanoseconds; see clock.h. */
#include "device/clock.h"

void board_clock_init(struct board_clock *clock)
{
        atomic_store(&clock->offset_ns, monotonic_ns());
        atomic_store(&clock->stopped_ns, 0);
        atomic_store(&clock->stopped, false);
}

uint64_t board_clock_ns(const struct board_clock *clock)
{
        if (!clock)
                return monotonic_ns();
        if (atomic_load_explicit(&clock->stopped, memory_order_acquire))
                return atomic_load_explicit(&clock->stopped_ns, memory_order_relaxed);
        return monotonic_ns() - atomic_load_explicit(&clock->offset_ns, memory_order_relaxed);
}

uint64_t board_clock_host(const struct board_clock *clock, uint64_t guest_ns)
{
        uint64_t host_ns;

        if (!clock)
                return guest_ns;
        /* The offset is negative, modulo 2^64, when a guest older than this host's uptime was loaded. */
        if ((int64_t)guest_ns < 0)
                return INT64_MAX;
        host_ns = guest_ns + atomic_load_explicit(&clock->offset_ns, memory_order_relaxed);
        if ((int64_t)host_ns < 0)
                return (int64_t)atomic_load_explicit(&clock->offset_ns, memory_order_relaxed) < 0 ? 1 : INT64_MAX;
        return host_ns ? host_ns : 1;
}

bool board_clock_stopped(const struct board_clock *clock)
{
        return clock && atomic_load_explicit(&clock->stopped, memory_order_acquire);
}

void board_clock_pause(struct board_clock *clock)
{
        if (board_clock_stopped(clock))
                return;
        atomic_store(&clock->stopped_ns, board_clock_ns(clock));
        atomic_store(&clock->stopped, true);
}

void board_clock_resume(struct board_clock *clock)
{
        if (!board_clock_stopped(clock))
                return;
        atomic_store(&clock->offset_ns, monotonic_ns() - atomic_load(&clock->stopped_ns));
        atomic_store(&clock->stopped, false);
}

void board_clock_set(struct board_clock *clock, uint64_t guest_ns)
{
        atomic_store(&clock->stopped_ns, guest_ns);
}
