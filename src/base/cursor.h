/*
 * Bounds-checked reading and writing of bytes from outside.
 *
 * A cursor reads a buffer it does not own. Once a read would pass the end the cursor is `bad`: that read and all later
 * ones return 0 (or -EBADMSG), so that a parser may read a whole header and check once. A writer grows its own buffer; out
 * of memory makes it `bad` in the same way.
 */
#pragma once

#include "base/util.h"

struct cursor {
        const uint8_t *at;
        const uint8_t *end;
        bool bad;
};

static inline struct cursor cursor_from(const void *bytes, size_t size_bytes)
{
        /* Nothing may have no address. */
        return (struct cursor){ .at = bytes, .end = size_bytes ? (const uint8_t *)bytes + size_bytes : bytes };
}

static inline size_t cursor_left(const struct cursor *in)
{
        return in->bad ? 0 : (size_t)(in->end - in->at);
}

/* Copies exactly size_bytes; 0, or -EBADMSG with `to` untouched. */
int cursor_get(struct cursor *in, void *to, size_t size_bytes) _must_check_;

/* A pointer to the next size_bytes, which are passed over; NULL when they are not there. */
const void *cursor_take(struct cursor *in, size_t size_bytes);

/* The next size_bytes as a cursor of their own; a bad one when they are not there. */
struct cursor cursor_sub(struct cursor *in, size_t size_bytes);

uint8_t cursor_u8(struct cursor *in);
uint16_t cursor_le16(struct cursor *in);
uint32_t cursor_le32(struct cursor *in);
uint64_t cursor_le64(struct cursor *in);
uint16_t cursor_be16(struct cursor *in);
uint32_t cursor_be32(struct cursor *in);
uint64_t cursor_be64(struct cursor *in);

struct writer {
        uint8_t *bytes; /* owned; freed by writer_done() */
        size_t size;
        size_t capacity;
        bool bad;
};

void writer_put(struct writer *out, const void *bytes, size_t size_bytes);
void writer_u8(struct writer *out, uint8_t value);
void writer_le16(struct writer *out, uint16_t value);
void writer_le32(struct writer *out, uint32_t value);
void writer_le64(struct writer *out, uint64_t value);
void writer_done(struct writer *out);
