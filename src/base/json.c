#include "base/json.h"

#include <errno.h>

int json_parse(const void *text, size_t size_bytes, json_t **json, struct err *err)
{
        json_error_t why;
        json_t *parsed;

        if (size_bytes > JSON_TEXT_MAX)
                return err_set(err, -EFBIG, "JSON of %zu bytes is longer than %zu", size_bytes, JSON_TEXT_MAX);
        parsed = json_loadb(text, size_bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
        if (!parsed) {
                enum json_error_code code = json_error_code(&why);

                return err_set(err, code == json_error_out_of_memory ? -ENOMEM : code == json_error_numeric_overflow ? -ERANGE : -EBADMSG,
                               "line %d, column %d: %s", why.line, why.column, why.text);
        }
        *json = parsed;
        return 0;
}

struct sink {
        int fd;
        int failed; /* -errno */
};

static int put(const char *bytes, size_t size_bytes, void *ctx)
{
        struct sink *sink = ctx;

        while (size_bytes) {
                ssize_t n = write(sink->fd, bytes, size_bytes);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0) {
                        sink->failed = -errno;
                        return -1;
                }
                bytes += n;
                size_bytes -= (size_t)n;
        }
        return 0;
}

int json_write(const json_t *json, int fd, struct err *err)
{
        struct sink sink = { .fd = fd };

        if (json_dump_callback(json, put, &sink, JSON_INDENT(2) | JSON_ENCODE_ANY) < 0 || put("\n", 1, &sink) < 0) {
                if (sink.failed)
                        return err_errno(err, sink.failed, "cannot write JSON");
                return err_nomem(err);
        }
        return 0;
}
