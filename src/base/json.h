/*
 * JSON by jansson: the few lines that every user of it would write again.
 */
#pragma once

#include <jansson.h>

#include "base/err.h"

#define _cleanup_json_ _cleanup_(json_decrefp)

#define JSON_TEXT_MAX ((size_t)16 << 20)

/*
 * Parses text from outside: one value, at most JSON_TEXT_MAX bytes, objects without doubled keys (jansson bounds the depth). The
 * error says line and column; -ERANGE: an integer above 2^63 - 1 (or one that a double cannot hold). The result is the caller's.
 */
int json_parse(const void *text, size_t size_bytes, json_t **json, struct err *err) _must_check_;

/* Writes it, indented, and a final line feed. */
int json_write(const json_t *json, int fd, struct err *err) _must_check_;
