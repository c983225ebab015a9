#include "block/nbd/uri.h"

#include <errno.h>

#include "base/text.h"
#include "block/nbd/wire.h"

#define NBD_PORT "10809"

void nbd_uri_done(struct nbd_uri *uri)
{
        free(uri->socket);
        free(uri->host);
        free(uri->port);
        free(uri->export_name);
        free(uri->user);
        free(uri->certificates);
        free(uri->keys);
}

static int hex(char c)
{
        return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

/* size_bytes of text with %XX decoded, in memory of its own. NULL: no memory, or not so written (no %00). */
static char *decode(const char *text, size_t size_bytes)
{
        char *out = malloc(size_bytes + 1), *at = out;

        for (size_t n = 0; out && n < size_bytes; n++) {
                if (text[n] != '%') {
                        *at++ = text[n];
                        continue;
                }
                if (n + 2 >= size_bytes || hex(text[n + 1]) < 0 || hex(text[n + 2]) < 0 || (text[n + 1] == '0' && text[n + 2] == '0')) {
                        free(out);
                        return NULL;
                }
                *at++ = (char)(hex(text[n + 1]) << 4 | hex(text[n + 2]));
                n += 2;
        }
        if (out)
                *at = '\0';
        return out;
}

static int set(char **to, const char *text, size_t size_bytes)
{
        free(*to);
        *to = decode(text, size_bytes);
        return *to ? 0 : -EINVAL;
}

static int take(char **to, char **value)
{
        free(*to);
        *to = steal_ptr(*value);
        return 0;
}

static int parameter(struct nbd_uri *uri, const char *text, size_t size_bytes, struct err *err)
{
        const char *equals = memchr(text, '=', size_bytes);
        size_t name = equals ? (size_t)(equals - text) : size_bytes, length = equals ? size_bytes - name - 1 : 0;
        _cleanup_free_ char *value = decode(equals ? equals + 1 : "", length);
        uint64_t seconds;

#define IS(word) (name == strlen(word) && !strncmp(text, word, name))
        if (!value)
                return err_set(err, -EINVAL, "'%.*s' is not rightly written", (int)size_bytes, text);
        if (IS("socket"))
                return take(&uri->socket, &value);
        if (IS("tls-certificates"))
                return take(&uri->certificates, &value);
        if (IS("tls-psk-file"))
                return take(&uri->keys, &value);
        if (IS("tls-verify-peer")) {
                uri->anyone = !strcmp(value, "0") || !strcmp(value, "false");
                return 0;
        }
        if (IS("reconnect")) {
                if (number_parse(value, 0, 86400, &seconds, NULL) < 0)
                        return err_set(err, -EINVAL, "reconnect=%s: seconds, 0 to 86400", value);
                uri->reconnect_s = (unsigned)seconds;
                return 0;
        }
#undef IS
        return err_set(err, -EINVAL, "'%.*s' is none of socket, tls-certificates, tls-psk-file, tls-verify-peer, reconnect", (int)name, text);
}

static int parameters(struct nbd_uri *uri, const char *text, struct err *err)
{
        int r = 0;

        while (*text && r == 0) {
                size_t length = strcspn(text, "&");

                r = length ? parameter(uri, text, length, err) : 0;
                text += length + (text[length] == '&');
        }
        return r;
}

/* [USER@]HOST[:PORT], HOST in brackets when it has colons. */
static int authority(struct nbd_uri *uri, const char *text, size_t size_bytes)
{
        const char *end = text + size_bytes, *at = memchr(text, '@', size_bytes), *colon;
        int r = 0;

        if (at) {
                r = set(&uri->user, text, (size_t)(at - text));
                text = at + 1;
        }
        colon = memrchr(text, ':', (size_t)(end - text));
        if (colon && memchr(colon, ']', (size_t)(end - colon)))
                colon = NULL;
        if (r == 0)
                r = colon && colon + 1 < end ? set(&uri->port, colon + 1, (size_t)(end - colon - 1)) : set(&uri->port, NBD_PORT, strlen(NBD_PORT));
        if (colon)
                end = colon;
        if (end - text > 2 && *text == '[' && end[-1] == ']') {
                text++;
                end--;
        }
        return r == 0 ? set(&uri->host, text, (size_t)(end - text)) : r;
}

static int parse_url(const char *text, struct nbd_uri *uri, struct err *err)
{
        const char *rest = strstr(text, "://") + 3;
        size_t host = strcspn(rest, "/?");
        const char *path = rest + host + (rest[host] == '/');
        size_t path_bytes = strcspn(path, "?");
        bool unix_socket = strstr(text, "+unix://") == rest - 8;
        int r;

        uri->tls = !strncmp(text, "nbds", 4);
        r = parameters(uri, path[path_bytes] ? path + path_bytes + 1 : "", err);
        if (r == 0)
                r = authority(uri, rest, host);
        if (r == 0)
                r = set(&uri->export_name, path, path_bytes);
        if (r < 0)
                return err && err->code ? r : err_set(err, r, "it is not rightly written");
        if (unix_socket != !!uri->socket || (!unix_socket && !*uri->host))
                return err_set(err, -EINVAL, "%s",
                               unix_socket ? "socket=PATH is missing" : uri->socket ? "socket= goes with nbd+unix:" : "the host is missing");
        if (!uri->tls)
                return 0;
        if (!uri->certificates == !uri->keys)
                return err_set(err, -EINVAL, "TLS needs tls-certificates=DIR or tls-psk-file=FILE, one of them");
        if (uri->keys && !uri->user)
                return err_set(err, -EINVAL, "tls-psk-file needs to know whose key: nbds://USER@…");
        return 0;
}

/* nbd:unix:PATH[:exportname=NAME], nbd:HOST:PORT[:exportname=NAME]; nothing is encoded. */
static int parse_old(const char *text, struct nbd_uri *uri, struct err *err)
{
        static const char mark[] = ":exportname=";
        const char *name = strstr(text, mark), *end = name ? name : text + strlen(text);

        uri->export_name = strdup(name ? name + strlen(mark) : "");
        if (!uri->export_name)
                return err_nomem(err);
        if (!strncmp(text, "unix:", 5)) {
                uri->socket = strndup(text + 5, (size_t)(end - text) - 5);
                if (!uri->socket)
                        return err_nomem(err);
                return *uri->socket ? 0 : err_set(err, -EINVAL, "the path of the socket is missing");
        }
        if (authority(uri, text, (size_t)(end - text)) < 0 || !*uri->host)
                return err_set(err, -EINVAL, "nbd:unix:PATH or nbd:HOST:PORT");
        return 0;
}

int nbd_uri_parse(const char *text, struct nbd_uri *out, struct err *err)
{
        struct nbd_uri uri = { .reconnect_s = NBD_RECONNECT_S };
        struct err words = ERR_INIT;
        int r = strstr(text, "://") ? parse_url(text, &uri, &words) : parse_old(text + strlen("nbd:"), &uri, &words);

        if (r == 0 && strlen(uri.export_name) > NBD_NAME_MAX)
                r = err_set(&words, -ENAMETOOLONG, "the name of the export has more than %u bytes", NBD_NAME_MAX);
        if (r < 0) {
                nbd_uri_done(&uri);
                return err_set(err, r, "%s: %s", text, words.text);
        }
        *out = uri;
        return 0;
}
