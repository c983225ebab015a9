#include "image/registry-http.h"

#include <ctype.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <strings.h>
#include <time.h>

#include "base/text.h"

#define CONNECT_S 15L
#define REDIRECTS_MAX 5L
#define TOKEN_MAX ((size_t)64 << 10)
#define AUTHORIZED_MAX 20u

/* ---- documents ---- */

int bytes_take(void *ctx, const void *bytes, size_t size_bytes, struct err *err)
{
        struct bytes *to = ctx;

        if (size_bytes > to->max - to->length)
                return err_set(err, -EFBIG, "the answer is larger than %zu KiB", to->max >> 10);
        if (to->length + size_bytes + 1 > to->room) {
                size_t room = MAX(2 * to->room, to->length + size_bytes + 1);
                char *text = realloc(to->text, room);

                if (!text)
                        return err_nomem(err);
                to->text = text;
                to->room = room;
        }
        memcpy(to->text + to->length, bytes, size_bytes);
        to->length += size_bytes;
        to->text[to->length] = 0;
        return 0;
}

void bytes_forget(void *ctx)
{
        ((struct bytes *)ctx)->length = 0;
}

/* ---- what curl calls ---- */

static void keep_value(char *to, size_t size_bytes, const char *value, size_t length)
{
        length = MIN(length, size_bytes - 1);
        memcpy(to, value, length);
        to[length] = 0;
}

static size_t on_header(char *line, size_t size, size_t count, void *ctx)
{
        struct request *q = ctx;
        struct {
                const char *name;
                char *to;
                size_t size_bytes;
        } wanted[] = {
                { "www-authenticate", q->challenge, sizeof(q->challenge) },
                { "location", q->location, sizeof(q->location) },
                { "content-type", q->media_type_got, sizeof(q->media_type_got) },
                { "content-range", q->content_range, sizeof(q->content_range) },
        };
        size_t length = size * count, name = 0, end = length;
        char seconds[16] = "";

        /* Of redirects the last answer counts. */
        if (length > 5 && !strncasecmp(line, "HTTP/", 5)) {
                q->challenge[0] = q->location[0] = q->media_type_got[0] = q->content_range[0] = 0;
                q->retry_after_s = 0;
                return length;
        }
        while (name < length && line[name] != ':')
                name++;
        if (name == length)
                return length;
        while (end > name + 1 && isspace((unsigned char)line[end - 1]))
                end--;
        size_t begin = name + 1;
        while (begin < end && isspace((unsigned char)line[begin]))
                begin++;
        for (size_t i = 0; i < ARRAY_SIZE(wanted); i++)
                if (strlen(wanted[i].name) == name && !strncasecmp(line, wanted[i].name, name))
                        keep_value(wanted[i].to, wanted[i].size_bytes, line + begin, end - begin);
        if (name == 11 && !strncasecmp(line, "retry-after", 11)) {
                keep_value(seconds, sizeof(seconds), line + begin, end - begin);
                q->retry_after_s = (unsigned)MIN(strtoul(seconds, NULL, 10), 60ul);
        }
        return length;
}

static size_t on_bytes(char *bytes, size_t size, size_t count, void *ctx)
{
        struct request *q = ctx;
        size_t length = size * count;
        long status = 0;

        curl_easy_getinfo(q->easy, CURLINFO_RESPONSE_CODE, &status);
        if ((status == 200 || status == 206) && q->take) {
                unsigned long long from = 0;

                /* A part that was not asked for would be put where it does not belong; one that begins at 0 is what take() must know. */
                if (status == 206 && (sscanf(q->content_range, "bytes %llu-", &from) != 1 || from != q->from_byte)) {
                        err_set(&q->err, -EBADMSG, "the registry sent bytes from %llu on, asked for were those from %llu", from,
                                (unsigned long long)q->from_byte);
                        return 0;
                }
                q->status = status;
                return q->take(q->ctx, bytes, length, &q->err) < 0 ? 0 : length;
        }
        size_t take = MIN(length, sizeof(q->error_body) - 1 - q->error_length);
        memcpy(q->error_body + q->error_length, bytes, take);
        q->error_length += take;
        q->error_body[q->error_length] = 0;
        return length;
}

static size_t on_body(char *to, size_t size, size_t count, void *ctx)
{
        struct request *q = ctx;
        size_t room = (size_t)MIN(size * count, q->body_bytes - q->body_at);
        ssize_t n = (ssize_t)room;

        if (q->body)
                memcpy(to, (const char *)q->body + q->body_at, room);
        else
                n = pread(q->body_fd, to, room, (off_t)q->body_at);
        if (n < 0 || (!n && room))
                return CURL_READFUNC_ABORT;
        q->body_at += (uint64_t)n;
        return (size_t)n;
}

static int on_rewind(void *ctx, curl_off_t offset, int origin)
{
        struct request *q = ctx;

        if (origin != SEEK_SET || offset < 0 || (uint64_t)offset > q->body_bytes)
                return CURL_SEEKFUNC_FAIL;
        q->body_at = (uint64_t)offset;
        return CURL_SEEKFUNC_OK;
}

/* ---- requests ---- */

void request_done(struct request *q)
{
        curl_easy_cleanup(q->easy);
        curl_slist_free_all(q->headers);
        *q = REQUEST_INIT;
}

static bool add_header(struct request *q, const char *fmt, ...) _printf_(2, 3);
static bool add_header(struct request *q, const char *fmt, ...)
{
        _cleanup_free_ char *line = NULL;
        struct curl_slist *grown;
        va_list args;
        int n;

        va_start(args, fmt);
        n = vasprintf(&line, fmt, args);
        va_end(args);
        if (n < 0) {
                line = NULL;
                return false;
        }
        grown = curl_slist_append(q->headers, line);
        if (grown)
                q->headers = grown;
        return grown;
}

/* On the registry's own host: our rights are for it alone. */
static bool is_own(const struct registry *registry, const char *url)
{
        const char *host = strstr(url, "://");
        size_t length = strlen(registry->host);

        return url[0] == '/' || (host && !strncmp(host + 3, registry->host, length) && (host[3 + length] == '/' || host[3 + length] == '?'));
}

int request_prepare(struct registry *registry, struct request *q, struct err *err)
{
        char url[URL_MAX + NAME_HOST_MAX];
        bool good = true;

        q->registry = registry;
        if (q->again)
                q->again(q->ctx);
        if (!q->easy)
                q->easy = curl_easy_init();
        if (!q->easy)
                return err_nomem(err);
        curl_easy_reset(q->easy);
        curl_slist_free_all(q->headers);
        q->headers = NULL;
        q->err = ERR_INIT;
        q->status = 0;
        q->error_length = 0;
        q->error_body[0] = q->challenge[0] = q->location[0] = q->media_type_got[0] = q->content_range[0] = 0;
        snprintf(url, sizeof(url), "%s%s%s", q->url[0] == '/' ? registry->plain_http ? "http://" : "https://" : "",
                 q->url[0] == '/' ? registry->host : "", q->url);
        if (q->accept)
                good = good && add_header(q, "Accept: %s", q->accept);
        if (q->media_type)
                good = good && add_header(q, "Content-Type: %s", q->media_type);
        if (q->from_byte)
                good = good && add_header(q, "Range: bytes=%llu-", (unsigned long long)q->from_byte);
        /* Sent by this name, curl does not hand it on to another host when it is redirected. */
        if (registry->authorization && is_own(registry, q->url))
                good = good && add_header(q, "%s", registry->authorization);
        good = good && add_header(q, "Expect:");
        if (!good)
                return err_nomem(err);
        curl_easy_setopt(q->easy, CURLOPT_URL, url);
        curl_easy_setopt(q->easy, CURLOPT_HTTPHEADER, q->headers);
        curl_easy_setopt(q->easy, CURLOPT_USERAGENT, "virta");
        curl_easy_setopt(q->easy, CURLOPT_NOSIGNAL, 1L);
        curl_easy_setopt(q->easy, CURLOPT_CONNECTTIMEOUT, CONNECT_S);
        curl_easy_setopt(q->easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
        curl_easy_setopt(q->easy, CURLOPT_LOW_SPEED_TIME, (long)(registry->options.stall_s ? registry->options.stall_s : 30));
        curl_easy_setopt(q->easy, CURLOPT_FOLLOWLOCATION, q->method ? 0L : 1L);
        curl_easy_setopt(q->easy, CURLOPT_MAXREDIRS, REDIRECTS_MAX);
        curl_easy_setopt(q->easy, CURLOPT_PROTOCOLS_STR, registry->insecure ? "https,http" : "https");
        curl_easy_setopt(q->easy, CURLOPT_REDIR_PROTOCOLS_STR, registry->insecure ? "https,http" : "https");
        curl_easy_setopt(q->easy, CURLOPT_SSL_VERIFYPEER, registry->insecure ? 0L : 1L);
        curl_easy_setopt(q->easy, CURLOPT_SSL_VERIFYHOST, registry->insecure ? 0L : 2L);
        curl_easy_setopt(q->easy, CURLOPT_HEADERFUNCTION, on_header);
        curl_easy_setopt(q->easy, CURLOPT_HEADERDATA, q);
        curl_easy_setopt(q->easy, CURLOPT_WRITEFUNCTION, on_bytes);
        curl_easy_setopt(q->easy, CURLOPT_WRITEDATA, q);
        curl_easy_setopt(q->easy, CURLOPT_PRIVATE, q);
        if (q->method && !strcmp(q->method, "HEAD"))
                curl_easy_setopt(q->easy, CURLOPT_NOBODY, 1L);
        else if (q->method)
                curl_easy_setopt(q->easy, CURLOPT_CUSTOMREQUEST, q->method);
        if (q->body || q->body_fd >= 0 || (q->method && !strcmp(q->method, "POST"))) {
                q->body_at = 0;
                curl_easy_setopt(q->easy, CURLOPT_UPLOAD, 1L);
                curl_easy_setopt(q->easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)q->body_bytes);
                curl_easy_setopt(q->easy, CURLOPT_READFUNCTION, on_body);
                curl_easy_setopt(q->easy, CURLOPT_READDATA, q);
                curl_easy_setopt(q->easy, CURLOPT_SEEKFUNCTION, on_rewind);
                curl_easy_setopt(q->easy, CURLOPT_SEEKDATA, q);
        }
        return 0;
}

/* ---- the right to ask ---- */

/* The value of key="…" in a challenge. */
static bool parameter(const char *challenge, const char *key, char *to, size_t size_bytes)
{
        size_t length = strlen(key);

        for (const char *at = challenge; (at = strcasestr(at, key)); at += length) {
                const char *end;

                if ((at > challenge && isalnum((unsigned char)at[-1])) || at[length] != '=' || at[length + 1] != '"')
                        continue;
                end = strchr(at + length + 2, '"');
                if (!end || (size_t)(end - (at + length + 2)) >= size_bytes)
                        return false;
                keep_value(to, size_bytes, at + length + 2, (size_t)(end - (at + length + 2)));
                return true;
        }
        return false;
}

static int set_authorization(struct registry *registry, const char *scheme, const char *value, struct err *err)
{
        char *line;

        /* It becomes a line of a header. */
        for (const char *at = value; *at; at++)
                if ((unsigned char)*at <= ' ' || (unsigned char)*at >= 0x7f)
                        return err_set(err, -EBADMSG, "the token that '%s' is entered with is no token", registry->host);
        if (asprintf(&line, "Authorization: %s %s", scheme, value) < 0)
                return err_nomem(err);
        free(registry->authorization);
        registry->authorization = line;
        return 0;
}

static int set_basic(struct registry *registry, const char *credentials, struct err *err)
{
        size_t length = strlen(credentials);
        _cleanup_free_ char *text = malloc(4 * (length / 3 + 1) + 1);

        if (!text)
                return err_nomem(err);
        EVP_EncodeBlock((unsigned char *)text, (const unsigned char *)credentials, (int)length);
        return set_authorization(registry, "Basic", text, err);
}

/* A token from where the challenge says. */
static int ask_token(struct registry *registry, const char *challenge, const char *credentials, struct err *err)
{
        char realm[512], service[256] = "", scope[512] = "", url[URL_MAX];
        struct bytes answer = { .max = TOKEN_MAX };
        _cleanup_request_ struct request q = REQUEST_INIT;
        _cleanup_json_ json_t *json = NULL;
        char *service_escaped, *scope_escaped;
        const char *token;
        int r;

        if (!parameter(challenge, "realm", realm, sizeof(realm)) ||
            (strncmp(realm, "https://", 8) != 0 && !(registry->insecure && !strncmp(realm, "http://", 7))))
                return err_set(err, -EACCES, "'%s' does not say where its token is to be had", registry->host);
        (void)parameter(challenge, "service", service, sizeof(service));
        if (!parameter(challenge, "scope", scope, sizeof(scope)))
                snprintf(scope, sizeof(scope), "repository:%s:pull%s", registry->path, registry->options.push ? ",push" : "");
        service_escaped = curl_easy_escape(NULL, service, 0);
        scope_escaped = curl_easy_escape(NULL, scope, 0);
        r = service_escaped && scope_escaped ? 0 : err_nomem(err);
        if (!r && snprintf(url, sizeof(url), "%s%cservice=%s&scope=%s", realm, strchr(realm, '?') ? '&' : '?', service_escaped, scope_escaped) >=
                          (int)sizeof(url))
                r = err_set(err, -EACCES, "'%s' asks for a token in too many words", registry->host);
        curl_free(service_escaped);
        curl_free(scope_escaped);
        if (r < 0)
                return r;
        q.url = url;
        q.take = bytes_take;
        q.ctx = &answer;
        /* Its own easy, with the name and the password and none of our tokens. */
        free(steal_ptr(registry->authorization));
        r = request_prepare(registry, &q, err);
        if (!r && credentials) {
                curl_easy_setopt(q.easy, CURLOPT_HTTPAUTH, CURLAUTH_BASIC);
                curl_easy_setopt(q.easy, CURLOPT_USERPWD, credentials);
        }
        if (!r) {
                CURLcode code = curl_easy_perform(q.easy);
                long status = 0;

                curl_easy_getinfo(q.easy, CURLINFO_RESPONSE_CODE, &status);
                if (code != CURLE_OK)
                        r = err_set(err, -EACCES, "cannot get a token for '%s': %s", registry->host, curl_easy_strerror(code));
                else if (status != 200)
                        r = err_set(err, -EACCES, "a token for '%s' is refused (HTTP %ld)%s", registry->host, status,
                                    credentials ? "" : "; no credentials for it are known");
        }
        if (!r)
                r = json_parse(answer.text, answer.length, &json, err);
        if (!r) {
                token = json_string_value(json_object_get(json, "token"));
                if (!token)
                        token = json_string_value(json_object_get(json, "access_token"));
                r = token ? set_authorization(registry, "Bearer", token, err)
                          : err_set(err, -EACCES, "the answer with the token for '%s' has none", registry->host);
        }
        if (answer.text)
                OPENSSL_cleanse(answer.text, answer.length);
        free(answer.text);
        return r;
}

static int authorize(struct registry *registry, const char *challenge, struct err *err)
{
        char *credentials;
        int r;

        if (registry->authorized++ >= AUTHORIZED_MAX)
                return err_set(err, -EACCES, "'%s' asks for credentials again and again", registry->host);
        r = registry_credentials(registry->host, &credentials, err);
        if (r < 0)
                return r;
        if (!strncasecmp(challenge, "Bearer ", 7))
                r = ask_token(registry, challenge, credentials, err);
        else if (!strncasecmp(challenge, "Basic", 5) && !credentials)
                r = err_set(err, -EACCES, "'%s' asks for credentials; none are known", registry->host);
        else if (!strncasecmp(challenge, "Basic", 5) && registry->authorization)
                r = err_set(err, -EACCES, "'%s' refuses the credentials for it", registry->host);
        else if (!strncasecmp(challenge, "Basic", 5))
                r = set_basic(registry, credentials, err);
        else
                r = err_set(err, -EACCES, "'%s' asks for a kind of credentials that is not known", registry->host);
        if (credentials)
                OPENSSL_cleanse(credentials, strlen(credentials));
        free(credentials);
        return r;
}

/* ---- how it went ---- */

/* What a registry says of an error: {"errors":[{"message":…}]}, or nothing. */
static void say_reason(const struct request *q, char *to, size_t size_bytes)
{
        _cleanup_json_ json_t *json = NULL;
        const char *message = NULL;

        if (json_parse(q->error_body, q->error_length, &json, NULL) == 0)
                message = json_string_value(json_object_get(json_array_get(json_object_get(json, "errors"), 0), "message"));
        to[0] = 0;
        if (message && size_bytes > 3) {
                strcpy(to, ": ");
                text_escape(message, strlen(message), to + 2, size_bytes - 2);
        }
}

static bool may_pass(CURLcode code)
{
        switch (code) {
        case CURLE_COULDNT_RESOLVE_HOST:
        case CURLE_COULDNT_CONNECT:
        case CURLE_PARTIAL_FILE:
        case CURLE_OPERATION_TIMEDOUT:
        case CURLE_GOT_NOTHING:
        case CURLE_SEND_ERROR:
        case CURLE_RECV_ERROR:
        case CURLE_HTTP2:
        case CURLE_HTTP2_STREAM:
                return true;
        default:
                return false;
        }
}

int request_judge(struct request *q, CURLcode code, struct err *err)
{
        const char *host = q->registry->host;
        char reason[512];

        curl_easy_getinfo(q->easy, CURLINFO_RESPONSE_CODE, &q->status);
        if (q->err.code) {
                if (err)
                        *err = q->err;
                return q->err.code;
        }
        if (code != CURLE_OK) {
                const char *hint = code == CURLE_PEER_FAILED_VERIFICATION ? " (its certificate is vouched for by nobody that this host trusts)" : "";

                err_set(err, code == CURLE_OPERATION_TIMEDOUT ? -ETIMEDOUT : -EIO, "'%s': %s%s", host, curl_easy_strerror(code), hint);
                return may_pass(code) ? REQUEST_LATER : code == CURLE_OPERATION_TIMEDOUT ? -ETIMEDOUT : -EIO;
        }
        if (q->status >= 200 && q->status < 300)
                return 0;
        if (q->status == 401) {
                int r = authorize(q->registry, q->challenge, err);

                return r < 0 ? r : REQUEST_AGAIN;
        }
        say_reason(q, reason, sizeof(reason));
        if (q->status == 429 || q->status >= 500) {
                err_set(err, -EAGAIN, "'%s' answers HTTP %ld%s", host, q->status, reason);
                return REQUEST_LATER;
        }
        return err_set(err, q->status == 404 ? -ENOENT : q->status == 403 ? -EACCES : -EIO, "'%s' answers HTTP %ld%s", host, q->status, reason);
}

unsigned request_pause_ms(const struct request *q, unsigned n)
{
        return q->retry_after_s ? q->retry_after_s * 1000 : MIN(200u << MIN(n, 6u), 8000u);
}

int request_perform(struct registry *registry, struct request *q, struct err *err)
{
        unsigned tries = registry->options.tries ? registry->options.tries : 5;
        struct err last = ERR_INIT;

        for (unsigned n = 1;;) {
                int r = request_prepare(registry, q, err);

                if (r < 0)
                        return r;
                r = request_judge(q, curl_easy_perform(q->easy), &last);
                if (r == REQUEST_AGAIN)
                        continue;
                if (r == REQUEST_LATER && n < tries) {
                        unsigned pause_ms = request_pause_ms(q, n++);

                        nanosleep(&(struct timespec){ pause_ms / 1000, pause_ms % 1000 * 1000000l }, NULL);
                        continue;
                }
                if (r && err)
                        *err = last;
                return r == REQUEST_LATER ? last.code : r;
        }
}
