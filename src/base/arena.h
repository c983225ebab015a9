/*
 * An arena: memory that is taken in many small pieces and given back all at once.
 *
 * For what is parsed once and then only read. Not thread-safe.
 */
#pragma once

#include "base/util.h"

struct arena_chunk;

/* Starts empty: struct arena arena = { 0 }; */
struct arena {
        struct arena_chunk *chunks;
        char *next, *end; /* what is left of the newest */
};

/* Zeroed, aligned for any type; NULL when there is no memory. A count of 0 gives a pointer that is not NULL. */
void *arena_take(struct arena *arena, size_t count, size_t size_bytes);
char *arena_text(struct arena *arena, const char *fmt, ...) _printf_(2, 3);
/* Frees every piece; the arena is empty again. */
void arena_done(struct arena *arena);
