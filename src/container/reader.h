/*
 * Reading JSON into C with errors that say where: "process.rlimits[2].soft is not a number".
 *
 * A place is a value and the way to it; places live on the stack. Each read_…() looks up a member of an object; one that is absent or null
 * leaves the output as it was. The texts handed out belong to the JSON.
 */
#pragma once

#include "base/arena.h"
#include "base/json.h"

/* As json_parse(), and integers up to 2^64 - 1, which read_u64() takes. */
int read_json(const void *text, size_t size_bytes, json_t **json, struct err *err) _must_check_;

struct place {
        json_t *json;
        const struct place *above; /* NULL: the whole */
        const char *key;           /* member of `above`, or NULL: element `index` of it */
        size_t index;
};

/* "linux.resources.memory", or "the file" for the whole. Returns text. */
const char *place_text(const struct place *place, char *text, size_t size_bytes);
/* Sets the error "<place> <fmt…>"; returns code. */
int place_error(const struct place *place, int code, struct err *err, const char *fmt, ...) _printf_(4, 5);

/* The member; its json is NULL when it is absent or null. */
struct place place_member(const struct place *object, const char *key);
struct place place_element(const struct place *array, size_t index);

/* Refuses anything but the kind; an absent one is fine. */
int read_object(const struct place *object, const char *key, struct place *to, struct err *err) _must_check_;
/* *count is 0 when absent. */
int read_array(const struct place *object, const char *key, struct place *to, size_t *count, struct err *err) _must_check_;
int read_text(const struct place *object, const char *key, const char **to, struct err *err) _must_check_;
/* As read_text(), and absent or empty is an error. */
int read_required_text(const struct place *object, const char *key, const char **to, struct err *err) _must_check_;
int read_bool(const struct place *object, const char *key, bool *to, struct err *err) _must_check_;
/* An integer of min to max. Numbers with a point that are whole are taken too (some writers make them). */
int read_number(const struct place *object, const char *key, int64_t min, int64_t max, int64_t *to, struct err *err) _must_check_;
int read_u32(const struct place *object, const char *key, uint32_t *to, struct err *err) _must_check_;
/* Up to 2^64 - 1. */
int read_u64(const struct place *object, const char *key, uint64_t *to, struct err *err) _must_check_;
/* An array of texts, NULL-terminated in the arena. Absent: *to stays. count may be NULL. */
int read_texts(const struct place *object, const char *key, struct arena *arena, const char ***to, size_t *count, struct err *err) _must_check_;
/* An array, one element at a time: calls fn(place of the element, (char *)array + i * size, ctx, err) on zeroed memory of the arena. */
int read_list(const struct place *object, const char *key, struct arena *arena, size_t element_bytes, void *array, size_t *count,
              int (*fn)(const struct place *place, void *element, void *ctx, struct err *err), void *ctx, struct err *err) _must_check_;
