#include "base/text.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

/* Digits at *text in base 10 or, after 0x, 16; moves *text past them. False: no digit there, or more than 64 bits. */
static bool digits(const char **text, uint64_t *number)
{
        const char *at = *text;
        unsigned base = 10;
        uint64_t sum = 0;

        if (at[0] == '0' && (at[1] == 'x' || at[1] == 'X')) {
                base = 16;
                at += 2;
        }
        if (!isxdigit((unsigned char)*at) || (base == 10 && !isdigit((unsigned char)*at)))
                return false;
        for (; base == 10 ? isdigit((unsigned char)*at) : isxdigit((unsigned char)*at); at++) {
                unsigned digit = isdigit((unsigned char)*at) ? (unsigned)(*at - '0') : (unsigned)(tolower(*at) - 'a') + 10;

                if (__builtin_mul_overflow(sum, base, &sum) || __builtin_add_overflow(sum, digit, &sum))
                        return false;
        }
        *number = sum;
        *text = at;
        return true;
}

int size_parse(const char *text, uint64_t *bytes, struct err *err)
{
        static const char units[] = "KMGT";
        const char *at = text;
        const char *unit;
        unsigned shift = 20;
        uint64_t number;

        if (!isdigit((unsigned char)*at) || at[1] == 'x' || at[1] == 'X')
                goto invalid;
        if (!digits(&at, &number))
                return err_set(err, -ERANGE, "size '%s' is too large", text);
        if (*at) {
                unit = strchr(units, toupper((unsigned char)*at));
                if (!unit || at[1])
                        goto invalid;
                shift = 10 * (unsigned)(unit - units + 1);
        }
        if (!number)
                return err_set(err, -EINVAL, "size '%s' is nothing", text);
        if (number > UINT64_MAX >> shift)
                return err_set(err, -ERANGE, "size '%s' is too large", text);
        *bytes = number << shift;
        return 0;
invalid:
        return err_set(err, -EINVAL, "'%s' is not a size (say 512M, 2G, 1536K, or a number of MiB)", text);
}

int number_parse(const char *text, uint64_t min, uint64_t max, uint64_t *number, struct err *err)
{
        const char *at = text;
        uint64_t value;

        if (!isdigit((unsigned char)*at))
                return err_set(err, -EINVAL, "'%s' is not a number (from %" PRIu64 " to %" PRIu64 ")", text, min, max);
        /* Digits that do not fit into 64 bits are past any max; where digits() stopped then does not matter. */
        if (!digits(&at, &value))
                return err_set(err, -ERANGE, "'%s' is not in the range from %" PRIu64 " to %" PRIu64, text, min, max);
        if (*at)
                return err_set(err, -EINVAL, "'%s' is not a number (from %" PRIu64 " to %" PRIu64 ")", text, min, max);
        if (value < min || value > max)
                return err_set(err, -ERANGE, "'%s' is not in the range from %" PRIu64 " to %" PRIu64, text, min, max);
        *number = value;
        return 0;
}

const char *size_format(uint64_t bytes, char text[SIZE_TEXT_MAX])
{
        static const char units[] = "TGMK";

        for (unsigned i = 0; units[i]; i++) {
                unsigned shift = 40 - 10 * i;

                if (bytes && !(bytes & ((UINT64_C(1) << shift) - 1))) {
                        snprintf(text, SIZE_TEXT_MAX, "%" PRIu64 "%c", bytes >> shift, units[i]);
                        return text;
                }
        }
        snprintf(text, SIZE_TEXT_MAX, "%" PRIu64 " bytes", bytes);
        return text;
}

/* Bytes of the printable character at `at`; 0 when it is a control or not UTF-8 (Unicode 15.0 table 3-7). */
static unsigned printable(const uint8_t *at, size_t left)
{
        uint32_t code;
        unsigned length;

        if (*at < 0x80)
                return *at >= 0x20 && *at != 0x7f;
        if (*at >= 0xc2 && *at <= 0xdf)
                length = 2;
        else if (*at >= 0xe0 && *at <= 0xef)
                length = 3;
        else if (*at >= 0xf0 && *at <= 0xf4)
                length = 4;
        else
                return 0;
        if (left < length)
                return 0;
        code = *at & (0x7fu >> length);
        for (unsigned i = 1; i < length; i++) {
                if ((at[i] & 0xc0) != 0x80)
                        return 0;
                code = code << 6 | (at[i] & 0x3fu);
        }
        if ((length == 2 && code < 0xa0) || (length == 3 && (code < 0x800 || (code >= 0xd800 && code <= 0xdfff))) ||
            (length == 4 && (code < 0x10000 || code > 0x10ffff)))
                return 0;
        /* Marks that turn the direction of text, and line separators, can hide what a line says. */
        if ((code >= 0x202a && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069) || code == 0x2028 || code == 0x2029)
                return 0;
        return length;
}

size_t text_escape(const void *from, size_t from_size, char *to, size_t size_bytes)
{
        static const char hex[] = "0123456789abcdef";
        const uint8_t *at = from;
        size_t used = 0;

        if (!size_bytes)
                return 0;
        while (from_size) {
                unsigned length = printable(at, from_size);

                if (length) {
                        if (length >= size_bytes - used)
                                break;
                        memcpy(to + used, at, length);
                        used += length;
                } else {
                        length = 1;
                        if (4 >= size_bytes - used)
                                break;
                        to[used++] = '\\';
                        to[used++] = 'x';
                        to[used++] = hex[*at >> 4];
                        to[used++] = hex[*at & 15];
                }
                at += length;
                from_size -= length;
        }
        to[used] = 0;
        return used;
}

bool text_copy(char *to, size_t size_bytes, const char *from)
{
        size_t length = strnlen(from, size_bytes);

        if (length >= size_bytes)
                return false;
        memcpy(to, from, length + 1);
        return true;
}

char *field_next(char **rest)
{
        char *field = *rest;
        char *to = field;

        if (!field)
                return NULL;
        for (char *at = field;; at++) {
                if (*at == ',' && at[1] == ',') {
                        *to++ = ',';
                        at++;
                } else if (*at == ',' || !*at) {
                        *rest = *at ? at + 1 : NULL;
                        *to = 0;
                        return field;
                } else {
                        *to++ = *at;
                }
        }
}

const char *size_about(uint64_t bytes, char text[SIZE_TEXT_MAX])
{
        static const char units[] = "KMGTPE";
        unsigned unit = 0;
        double value = (double)bytes / 1024;

        if (bytes < 1024) {
                snprintf(text, SIZE_TEXT_MAX, "%u bytes", (unsigned)bytes);
                return text;
        }
        while (value >= 1024 && units[unit + 1]) {
                value /= 1024;
                unit++;
        }
        snprintf(text, SIZE_TEXT_MAX, value == (double)(uint64_t)value ? "%.0f %ciB" : "%.1f %ciB", value, units[unit]);
        return text;
}

ssize_t text_read(int fd, char *text, size_t size_bytes)
{
        size_t have = 0;
        ssize_t n = 1;

        while (n && have < size_bytes - 1) {
                n = read(fd, text + have, size_bytes - 1 - have);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        break;
                have += (size_t)n;
        }
        text[have] = 0;
        return n < 0 ? -errno : (ssize_t)have;
}
