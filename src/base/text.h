/*
 * Text for people: numbers and sizes from outside, sizes as words, bytes made safe to print.
 *
 * Parsers take the whole string or nothing: no sign, no blanks, no leftover. Their errors name the value.
 */
#pragma once

#include "base/err.h"

/*
 * A size: digits with one of the suffixes K, M, G, T (powers of 1024; lower case too), or digits alone, which are MiB. 0,
 * overflow, fractions and signs are refused.
 */
int size_parse(const char *text, uint64_t *bytes, struct err *err) _must_check_;

/* A decimal number (hexadecimal with 0x) of min to max. */
int number_parse(const char *text, uint64_t min, uint64_t max, uint64_t *number, struct err *err) _must_check_;

#define SIZE_TEXT_MAX 32

/* "512M", "1536K", "3G", "17 bytes": the largest unit that is exact. Returns text. */
const char *size_format(uint64_t bytes, char text[SIZE_TEXT_MAX]);

/* "20 GiB", "1.5 MiB", "512 bytes": one digit behind the point where it is not exact. Returns text. */
const char *size_about(uint64_t bytes, char text[SIZE_TEXT_MAX]);

/*
 * Copies from (of from_size bytes) with everything that a terminal might act on written as \xNN: C0 and C1 controls, DEL and
 * what is not UTF-8. Cut at `size_bytes`, always ended by 0. Returns the length of the result.
 */
size_t text_escape(const void *from, size_t from_size, char *to, size_t size_bytes);

/* Copies `from` with its ending 0 when that fits into size_bytes; else false, and `to` is as it was. */
bool text_copy(char *to, size_t size_bytes, const char *from) _must_check_;

/*
 * Reads what is left of a file, cut at size_bytes - 1 bytes, and ends it with 0. The number of bytes, or -errno; text is then what came
 * before.
 */
ssize_t text_read(int fd, char *text, size_t size_bytes);

/*
 * Splits "a,b=c,d,,e" in place: the next field of *rest, or NULL when there is none left. A doubled comma stands for one
 * comma within a field, so that any file name can be given.
 */
char *field_next(char **rest);
