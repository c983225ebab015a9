/*
 * The error object: what went wrong, in words for a person, beside the -errno that code acts on.
 *
 * Whoever finds the error calls err_set(); each caller on the way up may add what only it knows with
 * err_wrap(), which puts its text in front. The text has no full stop, quotes what it is about, and says
 * what to do when that is known. Fallible functions take `struct err *` last; NULL is accepted by all of
 * these when the caller does not want the words. Nothing is allocated: text past the end is cut.
 *
 *      return err_set(err, -EBADMSG, "rtc record is %zu bytes, needs %zu", len, sizeof(rec));
 *      …
 *      return err_wrap(err, r, "restoring device %s", name);
 */
#pragma once

#include <errno.h>

#include "base/util.h"

#define ERR_TEXT_MAX 1024

struct err {
        int code; /* 0 or -errno */
        char text[ERR_TEXT_MAX];
};

/* Starts empty: struct err err = ERR_INIT; */
#define ERR_INIT ((struct err){ .code = 0 })

/* Sets code (a -errno) and text; returns code. */
int err_set(struct err *err, int code, const char *fmt, ...) _printf_(3, 4);

/* As err_set(), and appends ": " and strerror(-code). */
int err_errno(struct err *err, int code, const char *fmt, ...) _printf_(3, 4);

/* Puts "fmt…: " in front of the text that is there; returns code. */
int err_wrap(struct err *err, int code, const char *fmt, ...) _printf_(3, 4);

/* Out of memory, the one error without a subject: returns -ENOMEM. */
int err_nomem(struct err *err);

#if defined(__clang_analyzer__) && !defined(ERR_DEFINED_HERE)
/* It sees one file at a time: which code comes back is said here, so that it does not take an error for none. */
#define err_set(err, code, ...) ((void)err_set(err, code, __VA_ARGS__), (code))
#define err_errno(err, code, ...) ((void)err_errno(err, code, __VA_ARGS__), (code))
#define err_wrap(err, code, ...) ((void)err_wrap(err, code, __VA_ARGS__), (code))
#define err_nomem(err) ((void)err_nomem(err), -ENOMEM)
#endif
