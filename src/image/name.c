#include "image/name.h"

#include <ctype.h>
#include <stdio.h>

static bool is_host(const char *text, size_t length)
{
        return memchr(text, '.', length) || memchr(text, ':', length) || (length == 9 && !memcmp(text, "localhost", 9));
}

/* Letters, digits, and between them dots, dashes; a port; an IPv6 address in brackets. */
static bool host_is_good(const char *host)
{
        const char *port = host[0] == '[' ? strchr(host, ']') : host + strcspn(host, ":");

        if (!port)
                return false;
        port += host[0] == '[';
        for (const char *at = host; at < port; at++)
                if (!isalnum((unsigned char)*at) && !strchr(host[0] == '[' ? "[]:." : ".-", *at))
                        return false;
        if (port == host || (*port && *port != ':'))
                return false;
        return !*port || (strlen(port) > 1 && strlen(port) <= 6 && strspn(port + 1, "0123456789") == strlen(port + 1));
}

/* Parts of small letters and digits, with one '.', one or two '_' or any number of '-' between, and slashes between parts. */
static bool path_is_good(const char *path)
{
        bool begun = false;

        for (const char *at = path; *at; at++) {
                if (islower((unsigned char)*at) || isdigit((unsigned char)*at)) {
                        begun = true;
                        continue;
                }
                if (!begun || !at[1])
                        return false;
                if (*at == '/')
                        begun = false;
                else if (*at == '_' && at[1] == '_')
                        at++;
                else if (*at == '-')
                        at += strspn(at, "-") - 1;
                else if (*at != '.' && *at != '_')
                        return false;
                if (begun && !islower((unsigned char)at[1]) && !isdigit((unsigned char)at[1]))
                        return false;
        }
        return begun;
}

static bool tag_is_good(const char *tag)
{
        if (!isalnum((unsigned char)tag[0]) && tag[0] != '_')
                return false;
        for (const char *at = tag; *at; at++)
                if (!isalnum((unsigned char)*at) && !strchr("_.-", *at))
                        return false;
        return true;
}

static int refuse(struct err *err, const char *text, const char *what)
{
        return err_set(err, -EINVAL, "'%.300s' is not an image's name ([HOST/]NAME[:TAG][@DIGEST]): %s", text, what);
}

/* The piece from text to end into `to`. */
static bool piece(char *to, size_t size_bytes, const char *text, const char *end)
{
        size_t length = (size_t)(end - text);

        if (!length || length >= size_bytes)
                return false;
        memcpy(to, text, length);
        to[length] = 0;
        return true;
}

int image_name_parse(const char *text, struct image_name *name, struct err *err)
{
        const char *at = strchr(text, '@'), *end = at ? at : text + strlen(text), *begin = text, *slash = memchr(text, '/', (size_t)(end - text));
        const char *colon;

        *name = (struct image_name){ 0 };
        if (at) {
                int r = digest_parse(at + 1, &name->digest, err);

                if (r < 0)
                        return r;
        }
        if (slash && is_host(text, (size_t)(slash - text))) {
                if (!piece(name->host, sizeof(name->host), text, slash) || !host_is_good(name->host))
                        return refuse(err, text, "its host is none");
                begin = slash + 1;
        }
        colon = memrchr(begin, ':', (size_t)(end - begin));
        if (colon && (!piece(name->tag, sizeof(name->tag), colon + 1, end) || !tag_is_good(name->tag)))
                return refuse(err, text, "a tag has up to 128 letters, digits, '_', '.' and '-'");
        if (!piece(name->path, sizeof(name->path), begin, colon ? colon : end) || !path_is_good(name->path))
                return refuse(err, text, "it takes small letters and digits, with '.', '_', '-' and '/' between them");
        if (!colon && !at)
                strcpy(name->tag, "latest");
        return 0;
}

const char *image_name_format(const struct image_name *name, char text[NAME_TEXT_MAX])
{
        snprintf(text, NAME_TEXT_MAX, "%s%s%s%s%s", name->host, name->host[0] ? "/" : "", name->path, name->tag[0] ? ":" : "@",
                 name->tag[0] ? name->tag : name->digest.text);
        return text;
}
