/*
 * The clock that timers and rates go by.
 */
#pragma once

#include <stdint.h>

/* CLOCK_MONOTONIC in nanoseconds: does not run while the host is suspended, and is not set. */
uint64_t monotonic_ns(void);
