/*
 * Failing allocations on purpose: for tests that are linked with --wrap=malloc,calloc,realloc.
 *
 * test_alloc_fail_after(n) lets n allocations through and fails the one after; below 0 nothing fails. Include it once a test.
 */
#pragma once

#include <stdlib.h>

static long alloc_left_ = -1;

static inline void test_alloc_fail_after(long allocations)
{
        alloc_left_ = allocations;
}

static inline int alloc_fails_(void)
{
        if (alloc_left_ < 0)
                return 0;
        return alloc_left_-- == 0;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);

void *__wrap_malloc(size_t size)
{
        return alloc_fails_() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
        return alloc_fails_() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
        return alloc_fails_() ? NULL : __real_realloc(old, size);
}
