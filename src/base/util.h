/*
 * Small things every file needs: cleanup attributes, container_of, sizes and alignment.
 *
 * _cleanup_ follows systemd: the variable's destructor runs when it leaves scope, and steal_ptr() or
 * steal_fd() takes the value away from it. Destructors accept NULL (or -1).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h> /* its MIN and MAX evaluate twice */
#include <sys/types.h>
#include <unistd.h>

#define _cleanup_(fn) __attribute__((cleanup(fn)))
#define _unused_ __attribute__((unused))
#define _must_check_ __attribute__((warn_unused_result))
#define _printf_(fmt, args) __attribute__((format(printf, fmt, args)))

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#undef MIN
#undef MAX
/* __COUNTER__ gives each use names of its own, so that they nest. */
#define MIN(a, b) MIN_(a, b, __COUNTER__)
#define MAX(a, b) MAX_(a, b, __COUNTER__)
#define MIN_(a, b, n) MIN_N_(a, b, n)
#define MAX_(a, b, n) MAX_N_(a, b, n)
#define MIN_N_(a, b, n) MIN__(a, b, a_##n##_, b_##n##_)
#define MAX_N_(a, b, n) MAX__(a, b, a_##n##_, b_##n##_)
#define MIN__(a, b, a_, b_)              \
        ({                               \
                __typeof__(a) a_ = (a);  \
                __typeof__(b) b_ = (b);  \
                a_ < b_ ? a_ : b_;       \
        })
#define MAX__(a, b, a_, b_)              \
        ({                               \
                __typeof__(a) a_ = (a);  \
                __typeof__(b) b_ = (b);  \
                a_ > b_ ? a_ : b_;       \
        })

/* Takes the value out of the variable, so that its cleanup has nothing left to do. */
#define steal_ptr(p)                        \
        ({                                  \
                __typeof__(p) steal_p_ = (p); \
                (p) = NULL;                 \
                steal_p_;                   \
        })

static inline int steal_fd(int *fd)
{
        int taken = *fd;

        *fd = -1;
        return taken;
}

static inline void freep(void *p)
{
        free(*(void **)p);
}

static inline void closep(int *fd)
{
        if (*fd >= 0)
                close(*fd);
}

#define _cleanup_free_ _cleanup_(freep)
#define _cleanup_close_ _cleanup_(closep)

/* A text's bytes, without the 0 at its end. */
static inline void put_letters(uint8_t *to, const char *text)
{
        while (*text)
                *to++ = (uint8_t)*text++;
}

static inline uint64_t align_up(uint64_t value, uint64_t alignment)
{
        return (value + alignment - 1) & ~(alignment - 1);
}

static inline uint64_t align_down(uint64_t value, uint64_t alignment)
{
        return value & ~(alignment - 1);
}

static inline bool is_power_of_two(uint64_t value)
{
        return value && !(value & (value - 1));
}
