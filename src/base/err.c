#define ERR_DEFINED_HERE
#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

int err_set(struct err *err, int code, const char *fmt, ...)
{
        va_list args;

        if (!err)
                return code;
        err->code = code;
        va_start(args, fmt);
        vsnprintf(err->text, sizeof(err->text), fmt, args);
        va_end(args);
        return code;
}

int err_errno(struct err *err, int code, const char *fmt, ...)
{
        va_list args;
        int n;

        if (!err)
                return code;
        err->code = code;
        va_start(args, fmt);
        n = vsnprintf(err->text, sizeof(err->text), fmt, args);
        va_end(args);
        if (n >= 0 && (size_t)n < sizeof(err->text))
                snprintf(err->text + n, sizeof(err->text) - (size_t)n, ": %s", strerror(-code));
        return code;
}

int err_wrap(struct err *err, int code, const char *fmt, ...)
{
        char before[ERR_TEXT_MAX];
        va_list args;
        int n;

        if (!err)
                return code;
        memcpy(before, err->text, sizeof(before));
        err->code = code;
        va_start(args, fmt);
        n = vsnprintf(err->text, sizeof(err->text), fmt, args);
        va_end(args);
        if (before[0] && n >= 0 && (size_t)n < sizeof(err->text))
                snprintf(err->text + n, sizeof(err->text) - (size_t)n, ": %.*s", ERR_TEXT_MAX - 3, before);
        return code;
}

int err_nomem(struct err *err)
{
        return err_set(err, -ENOMEM, "out of memory");
}
