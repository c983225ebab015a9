#include "base/record.h"

#include <ctype.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>

#define LENGTH_BYTES sizeof(uint32_t)

size_t record_begin(struct writer *out, const char *name, uint16_t version)
{
        size_t name_size = strlen(name);

        if (!name_size || name_size > RECORD_NAME_MAX) {
                out->bad = true;
                return 0;
        }
        writer_u8(out, (uint8_t)name_size);
        writer_put(out, name, name_size);
        writer_le16(out, version);
        writer_le32(out, 0);
        return out->size;
}

void record_end(struct writer *out, size_t mark)
{
        uint64_t body_size = out->size - mark;
        uint32_t length;

        if (out->bad)
                return;
        if (mark < LENGTH_BYTES || mark > out->size || body_size > UINT32_MAX) {
                out->bad = true;
                return;
        }
        length = htole32((uint32_t)body_size);
        memcpy(out->bytes + mark - LENGTH_BYTES, &length, LENGTH_BYTES);
}

static bool is_record_name(const uint8_t *name, size_t size_bytes)
{
        for (size_t i = 0; i < size_bytes; i++) {
                if (!isascii(name[i]) || !isgraph(name[i]))
                        return false;
        }
        return size_bytes > 0;
}

int record_next(struct cursor *in, struct record *record, struct err *err)
{
        struct record next = { 0 };
        const uint8_t *name;
        size_t name_size;
        uint32_t body_size;

        if (in->bad)
                return err_set(err, -EBADMSG, "the stream of records was already found cut");
        if (!cursor_left(in))
                return err_set(err, -ENODATA, "there is no further record");
        name_size = cursor_u8(in);
        name = name_size <= RECORD_NAME_MAX ? cursor_take(in, name_size) : NULL;
        if (!name || !is_record_name(name, name_size)) {
                in->bad = true;
                return err_set(err, -EBADMSG, "a record has no proper name (%zu bytes long)", name_size);
        }
        memcpy(next.name, name, name_size);
        next.version = cursor_le16(in);
        body_size = cursor_le32(in);
        if (in->bad)
                return err_set(err, -EBADMSG, "record '%s' ends within its header", next.name);
        if (body_size > cursor_left(in)) {
                size_t left = cursor_left(in);

                in->bad = true;
                return err_set(err, -EBADMSG, "record '%s' says %" PRIu32 " bytes, only %zu are there", next.name, body_size,
                               left);
        }
        next.body = cursor_sub(in, body_size);
        *record = next;
        return 0;
}

int record_expect(struct cursor *in, const char *name, uint16_t version, struct record *record, struct err *err)
{
        struct record next = { .name = "" };
        int r = record_next(in, &next, err);

        if (r < 0)
                return r;
        if (strcmp(next.name, name) != 0 || next.version != version)
                return err_set(err, -EBADMSG, "record '%s' version %u in place of '%s' version %u", next.name, next.version, name,
                               version);
        *record = next;
        return 0;
}

int record_finish(const struct record *record, struct err *err)
{
        if (record->body.bad)
                return err_set(err, -EBADMSG, "record '%s' version %u is too short", record->name, record->version);
        if (cursor_left(&record->body))
                return err_set(err, -EBADMSG, "record '%s' version %u has %zu bytes too many", record->name, record->version,
                               cursor_left(&record->body));
        return 0;
}
