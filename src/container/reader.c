#include "container/reader.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

/*
 * jansson keeps integers as long long and refuses greater ones, but RLIM_INFINITY is 2^64 - 1 in JSON. Such numbers are put in
 * quotes, and read_u64() takes them so.
 */
static char *quote_great_numbers(const char *text, size_t *size_bytes)
{
        char *quoted = malloc(*size_bytes + *size_bytes / 8 + 3), *to = quoted;
        bool within = false;

        for (size_t i = 0; quoted && i < *size_bytes;) {
                size_t digits = 0;

                while (!within && i + digits < *size_bytes && text[i + digits] >= '0' && text[i + digits] <= '9')
                        digits++;
                if (digits == 0) {
                        if (text[i] == '"')
                                within = !within;
                        else if (within && text[i] == '\\' && i + 1 < *size_bytes)
                                *to++ = text[i++];
                        *to++ = text[i++];
                        continue;
                }
                bool great = digits > 19 || (digits == 19 && memcmp(text + i, "9223372036854775807", 19) > 0);

                if (great && (i == 0 || !memchr("-.eE+", text[i - 1], 5)))
                        *to++ = '"';
                else
                        great = false;
                memcpy(to, text + i, digits);
                to += digits;
                i += digits;
                if (great)
                        *to++ = '"';
        }
        *size_bytes = (size_t)(to - quoted);
        return quoted;
}

int read_json(const void *text, size_t size_bytes, json_t **json, struct err *err)
{
        _cleanup_free_ char *quoted = NULL;
        int r = json_parse(text, size_bytes, json, err);

        if (r != -ERANGE)
                return r;
        quoted = quote_great_numbers(text, &size_bytes);
        return quoted ? json_parse(quoted, size_bytes, json, err) : err_nomem(err);
}

const char *place_text(const struct place *place, char *text, size_t size_bytes)
{
        size_t length;

        if (!place->above) {
                snprintf(text, size_bytes, "the file");
                return text;
        }
        if (place->above->above)
                place_text(place->above, text, size_bytes);
        else
                text[0] = 0;
        length = strlen(text);
        if (place->key)
                snprintf(text + length, size_bytes - length, "%s%s", length ? "." : "", place->key);
        else
                snprintf(text + length, size_bytes - length, "[%zu]", place->index);
        return text;
}

int place_error(const struct place *place, int code, struct err *err, const char *fmt, ...)
{
        char where[256], what[512];
        va_list args;

        va_start(args, fmt);
        vsnprintf(what, sizeof(what), fmt, args);
        va_end(args);
        return err_set(err, code, "%s %s", place_text(place, where, sizeof(where)), what);
}

struct place place_member(const struct place *object, const char *key)
{
        json_t *json = object->json ? json_object_get(object->json, key) : NULL;

        return (struct place){ json_is_null(json) ? NULL : json, object, key, 0 };
}

struct place place_element(const struct place *array, size_t index)
{
        return (struct place){ json_array_get(array->json, index), array, NULL, index };
}

int read_object(const struct place *object, const char *key, struct place *to, struct err *err)
{
        struct place place = place_member(object, key);

        if (place.json && !json_is_object(place.json))
                return place_error(&place, -EINVAL, err, "is not an object");
        *to = place;
        return 0;
}

int read_array(const struct place *object, const char *key, struct place *to, size_t *count, struct err *err)
{
        struct place place = place_member(object, key);

        if (place.json && !json_is_array(place.json))
                return place_error(&place, -EINVAL, err, "is not an array");
        *count = place.json ? json_array_size(place.json) : 0;
        *to = place;
        return 0;
}

int read_text(const struct place *object, const char *key, const char **to, struct err *err)
{
        struct place place = place_member(object, key);

        if (!place.json)
                return 0;
        if (!json_is_string(place.json))
                return place_error(&place, -EINVAL, err, "is not a string");
        *to = json_string_value(place.json);
        return 0;
}

int read_required_text(const struct place *object, const char *key, const char **to, struct err *err)
{
        struct place place = place_member(object, key);
        const char *text = NULL;
        int r = read_text(object, key, &text, err);

        if (r < 0)
                return r;
        if (!text || !*text)
                return place_error(&place, -EINVAL, err, text ? "is empty" : "is missing");
        *to = text;
        return 0;
}

int read_bool(const struct place *object, const char *key, bool *to, struct err *err)
{
        struct place place = place_member(object, key);

        if (!place.json)
                return 0;
        if (!json_is_boolean(place.json))
                return place_error(&place, -EINVAL, err, "is neither true nor false");
        *to = json_is_true(place.json);
        return 0;
}

static int read_integer(const struct place *place, int64_t *to, struct err *err)
{
        double real;

        if (json_is_integer(place->json)) {
                *to = json_integer_value(place->json);
                return 0;
        }
        if (!json_is_real(place->json))
                return place_error(place, -EINVAL, err, "is not a number");
        real = json_real_value(place->json);
        if (!(real >= -9e15 && real <= 9e15) || real != (double)(int64_t)real)
                return place_error(place, -EINVAL, err, "is %g, not a whole number", real);
        *to = (int64_t)real;
        return 0;
}

int read_number(const struct place *object, const char *key, int64_t min, int64_t max, int64_t *to, struct err *err)
{
        struct place place = place_member(object, key);
        int64_t value;
        int r;

        if (!place.json)
                return 0;
        r = read_integer(&place, &value, err);
        if (r < 0)
                return r;
        if (value < min || value > max)
                return place_error(&place, -ERANGE, err, "is %lld, not in the range from %lld to %lld", (long long)value, (long long)min,
                                   (long long)max);
        *to = value;
        return 0;
}

int read_u32(const struct place *object, const char *key, uint32_t *to, struct err *err)
{
        int64_t value = *to;
        int r = read_number(object, key, 0, UINT32_MAX, &value, err);

        if (!r)
                *to = (uint32_t)value;
        return r;
}

int read_u64(const struct place *object, const char *key, uint64_t *to, struct err *err)
{
        struct place place = place_member(object, key);
        int64_t value = 0;
        int r;

        if (!place.json)
                return 0;
        /* One above 2^63 - 1 comes as a text: read_json(). */
        if (json_is_string(place.json)) {
                const char *digits = json_string_value(place.json);
                unsigned long long number;
                char *end;

                errno = 0;
                number = strtoull(digits, &end, 10);
                if (*end || errno || *digits < '0' || *digits > '9' || number <= INT64_MAX)
                        return place_error(&place, -EINVAL, err, "is not a number");
                *to = number;
                return 0;
        }
        r = read_integer(&place, &value, err);
        if (r < 0)
                return r;
        if (value < 0)
                return place_error(&place, -ERANGE, err, "is %lld, below 0", (long long)value);
        *to = (uint64_t)value;
        return 0;
}

int read_texts(const struct place *object, const char *key, struct arena *arena, const char ***to, size_t *count, struct err *err)
{
        struct place array;
        const char **texts;
        size_t elements;
        int r = read_array(object, key, &array, &elements, err);

        if (r < 0 || !array.json)
                return r;
        texts = arena_take(arena, elements + 1, sizeof(*texts));
        if (!texts)
                return err_nomem(err);
        for (size_t i = 0; i < elements; i++) {
                struct place element = place_element(&array, i);

                if (!json_is_string(element.json))
                        return place_error(&element, -EINVAL, err, "is not a string");
                texts[i] = json_string_value(element.json);
        }
        *to = texts;
        if (count)
                *count = elements;
        return 0;
}

int read_list(const struct place *object, const char *key, struct arena *arena, size_t element_bytes, void *array, size_t *count,
              int (*fn)(const struct place *place, void *element, void *ctx, struct err *err), void *ctx, struct err *err)
{
        struct place list;
        size_t elements;
        char *memory;
        int r = read_array(object, key, &list, &elements, err);

        if (r < 0 || !list.json)
                return r;
        memory = arena_take(arena, elements, element_bytes);
        if (!memory)
                return err_nomem(err);
        for (size_t i = 0; i < elements; i++) {
                struct place element = place_element(&list, i);

                if (!json_is_object(element.json))
                        return place_error(&element, -EINVAL, err, "is not an object");
                r = fn(&element, memory + i * element_bytes, ctx, err);
                if (r < 0)
                        return r;
        }
        *(void **)array = memory;
        *count = elements;
        return 0;
}
