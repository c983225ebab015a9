/* Streams of records: nested ones are walked as far as they go. */
#include "base/record.h"

static void walk(struct cursor in, unsigned depth)
{
        struct record record;
        struct err err = ERR_INIT;

        while (!record_next(&in, &record, &err)) {
                if (strlen(record.name) > RECORD_NAME_MAX || record.body.end > in.end)
                        abort();
                if (depth < 8)
                        walk(record.body, depth + 1);
                cursor_le64(&record.body);
                if (!record_finish(&record, &err) && cursor_left(&record.body))
                        abort();
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        walk(cursor_from(bytes, size_bytes), 0);
        return 0;
}
