#include "base/cursor.h"

#include <endian.h>
#include <errno.h>

const void *cursor_take(struct cursor *in, size_t size_bytes)
{
        const uint8_t *at = in->at;

        if (in->bad || size_bytes > (size_t)(in->end - in->at)) {
                in->bad = true;
                return NULL;
        }
        in->at += size_bytes;
        return at;
}

int cursor_get(struct cursor *in, void *to, size_t size_bytes)
{
        const void *from = cursor_take(in, size_bytes);

        if (!from)
                return -EBADMSG;
        memcpy(to, from, size_bytes);
        return 0;
}

struct cursor cursor_sub(struct cursor *in, size_t size_bytes)
{
        const void *from = cursor_take(in, size_bytes);

        if (!from)
                return (struct cursor){ .bad = true };
        return cursor_from(from, size_bytes);
}

#define CURSOR_GET(name, type, convert)                      \
        type name(struct cursor *in)                         \
        {                                                    \
                type value;                                  \
                                                             \
                if (cursor_get(in, &value, sizeof(value)) < 0) \
                        return 0;                            \
                return convert(value);                       \
        }

CURSOR_GET(cursor_u8, uint8_t, (uint8_t))
CURSOR_GET(cursor_le16, uint16_t, le16toh)
CURSOR_GET(cursor_le32, uint32_t, le32toh)
CURSOR_GET(cursor_le64, uint64_t, le64toh)
CURSOR_GET(cursor_be16, uint16_t, be16toh)
CURSOR_GET(cursor_be32, uint32_t, be32toh)
CURSOR_GET(cursor_be64, uint64_t, be64toh)

void writer_put(struct writer *out, const void *bytes, size_t size_bytes)
{
        if (out->bad)
                return;
        if (size_bytes > out->capacity - out->size) {
                size_t capacity = MAX(out->capacity * 2, out->size + size_bytes + 256);
                uint8_t *grown = realloc(out->bytes, capacity);

                if (!grown) {
                        out->bad = true;
                        return;
                }
                out->bytes = grown;
                out->capacity = capacity;
        }
        if (size_bytes)
                memcpy(out->bytes + out->size, bytes, size_bytes);
        out->size += size_bytes;
}

void writer_u8(struct writer *out, uint8_t value)
{
        writer_put(out, &value, sizeof(value));
}

void writer_le16(struct writer *out, uint16_t value)
{
        value = htole16(value);
        writer_put(out, &value, sizeof(value));
}

void writer_le32(struct writer *out, uint32_t value)
{
        value = htole32(value);
        writer_put(out, &value, sizeof(value));
}

void writer_le64(struct writer *out, uint64_t value)
{
        value = htole64(value);
        writer_put(out, &value, sizeof(value));
}

void writer_done(struct writer *out)
{
        free(out->bytes);
        *out = (struct writer){ 0 };
}
