#include "base/arena.h"

#include <stdarg.h>
#include <stdio.h>

#define CHUNK_BYTES 8192

struct arena_chunk {
        struct arena_chunk *older;
        max_align_t memory[];
};

void *arena_take(struct arena *arena, size_t count, size_t size_bytes)
{
        size_t bytes;
        void *piece;

        if (__builtin_mul_overflow(count, size_bytes, &bytes) || bytes > PTRDIFF_MAX - CHUNK_BYTES)
                return NULL;
        bytes = align_up(MAX(bytes, (size_t)1), _Alignof(max_align_t));
        if ((size_t)(arena->end - arena->next) < bytes) {
                size_t room = MAX(bytes, (size_t)CHUNK_BYTES - sizeof(struct arena_chunk));
                struct arena_chunk *chunk = calloc(1, sizeof(*chunk) + room);

                if (!chunk)
                        return NULL;
                chunk->older = arena->chunks;
                arena->chunks = chunk;
                arena->next = (char *)chunk->memory;
                arena->end = arena->next + room;
        }
        piece = arena->next;
        arena->next += bytes;
        return piece;
}

char *arena_text(struct arena *arena, const char *fmt, ...)
{
        va_list args, again;
        char *text;
        int length;

        va_start(args, fmt);
        va_copy(again, args);
        length = vsnprintf(NULL, 0, fmt, args);
        text = length < 0 ? NULL : arena_take(arena, (size_t)length + 1, 1);
        if (text)
                vsnprintf(text, (size_t)length + 1, fmt, again);
        va_end(again);
        va_end(args);
        return text;
}

void arena_done(struct arena *arena)
{
        while (arena->chunks) {
                struct arena_chunk *chunk = arena->chunks;

                arena->chunks = chunk->older;
                free(chunk);
        }
        *arena = (struct arena){ 0 };
}
