/*
 * The log: one line an event, with fields, to standard error.
 *
 * A line reads   virta: warning: <text> vm=web1 dev=virtio-blk0   ; colours only on a terminal. Libraries return errors;
 * programs log. What a guest can cause goes through log_guest(), which lets at most 10 lines through in 5 s for each
 * call site and then says how many were left out. Guest bytes are never a format, and unprintable ones are escaped.
 * Thread-safe.
 */
#pragma once

#include "base/util.h"

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG };

/* The program's name before each line, and the level up to which lines are shown (LOG_INFO when never called). */
void log_init(const char *program, enum log_level level);

/* A field added to every line from now on, say log_context("vm", name). At most 4; the strings are copied. */
void log_context(const char *field, const char *value);

void log_line(enum log_level level, const char *fmt, ...) _printf_(2, 3);

#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_WARNING, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)

/* State of one rate-limited call site. */
struct log_limit {
        uint64_t window_start_ns;
        uint32_t lines;
        uint32_t dropped;
};

void log_limited(struct log_limit *limit, const char *fmt, ...) _printf_(2, 3);

#define log_guest(...)                                 \
        do {                                           \
                static struct log_limit log_limit_;    \
                log_limited(&log_limit_, __VA_ARGS__); \
        } while (0)
