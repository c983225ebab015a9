/*
 * See transfer.h. libcurl's "multi socket" interface: it says which sockets it wants to know of and when it wants to be called, we tell it.
 *
 * Sources: libcurl's curl_multi_socket_action(3), CURLMOPT_SOCKETFUNCTION(3); RFC 9110 §8.8.3 (ETag), §14 (ranges).
 */
#define CURL_DISABLE_TYPECHECK
#include "block/http/transfer.h"

#include <curl/curl.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <strings.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/text.h"
#include "block/secret.h"

#define CONNECT_MS 15000L
#define STALL_S 20L        /* not a byte for so long: begun again */
#define REDIRECTS_MAX 5L
#define HEADERS_MAX 65536u /* of all headers of an answer */
#define DELAY_MS 100u
#define DELAY_MAX_MS 5000u
#define CA_BYTES_MAX (8u << 20)
#define SOCKETS_MAX 64u

#define FUNCTIONS(F)            \
        F(curl_easy_cleanup)    \
        F(curl_easy_getinfo)    \
        F(curl_easy_init)       \
        F(curl_easy_reset)      \
        F(curl_easy_setopt)     \
        F(curl_easy_strerror)   \
        F(curl_global_init)     \
        F(curl_multi_add_handle) \
        F(curl_multi_cleanup)   \
        F(curl_multi_info_read) \
        F(curl_multi_init)      \
        F(curl_multi_remove_handle) \
        F(curl_multi_setopt)    \
        F(curl_multi_socket_action)

struct library {
#define MEMBER(name) __typeof__(name) *name;
        FUNCTIONS(MEMBER)
#undef MEMBER
};

/* One of libcurl's sockets. */
struct watch {
        uv_poll_t poll;
        struct http_transfers *all; /* NULL: it is being closed */
        struct watch *next;
        curl_socket_t fd;
        int wants; /* UV_READABLE, UV_WRITABLE */
};

struct http_transfers {
        struct library lib;
        const struct http_url *url;
        const char *what;
        const struct http_transfer_ops *ops;
        void *ctx;
        uv_loop_t *loop;
        CURLM *multi;
        uv_timer_t *timer;
        uint64_t curl_due_ms; /* when libcurl wants to be called; 0: not by time */
        struct watch *watches;
        struct http_fetch *fetch[HTTP_FETCHES]; /* that run, or wait */
        struct secret login;
        char *ca; /* the authorities' certificates: once read, no file is needed any more */
        size_t ca_bytes;
        struct http_file file;
        bool known;           /* file is */
};

static int load(struct library *lib, struct err *err)
{
        static const char *const names[] = { "libcurl.so.4", "libcurl-gnutls.so.4" };
        void *handle = NULL;

        for (unsigned n = 0; n < ARRAY_SIZE(names) && !handle; n++)
                handle = dlopen(names[n], RTLD_NOW | RTLD_LOCAL);
        if (!handle)
                return err_set(err, -ENOPKG, "disks of web servers need libcurl (Debian: libcurl4): %s", dlerror());
#define LOAD(name)                                                          \
        *(void **)&lib->name = dlsym(handle, #name);                         \
        if (!lib->name)                                                     \
                return err_set(err, -ENOPKG, "libcurl has no %s", #name);
        FUNCTIONS(LOAD)
#undef LOAD
        return lib->curl_global_init(CURL_GLOBAL_DEFAULT) ? err_set(err, -ENOPKG, "libcurl cannot be used") : 0;
}

static uint64_t now_ms(void)
{
        return uv_hrtime() / 1000000;
}

/* ---- time ---- */

static void act_by_time(struct http_transfers *t);

static uint64_t next_due(const struct http_transfers *t)
{
        uint64_t due = t->curl_due_ms;

        for (unsigned n = 0; n < HTTP_FETCHES; n++)
                if (t->fetch[n] && t->fetch[n]->due_ms && (!due || t->fetch[n]->due_ms < due))
                        due = t->fetch[n]->due_ms;
        return due;
}

static void timer_rang(uv_timer_t *timer)
{
        struct http_transfers *t = timer->data;

        if (t)
                act_by_time(t);
}

static void arm(struct http_transfers *t)
{
        uint64_t due = next_due(t), now = now_ms();

        if (!due) {
                uv_timer_stop(t->timer);
                return;
        }
        uv_update_time(t->loop);
        uv_timer_start(t->timer, timer_rang, due > now ? due - now : 0, 0);
}

static int timer_wanted(CURLM *multi, long timeout_ms, void *ctx)
{
        struct http_transfers *t = ctx;

        t->curl_due_ms = timeout_ms < 0 ? 0 : now_ms() + (uint64_t)timeout_ms + !timeout_ms;
        return 0;
}

static void timer_closed(uv_handle_t *handle)
{
        free(handle);
}

/* ---- sockets ---- */

static void act_on_socket(struct http_transfers *t, curl_socket_t fd, int events);

static void watch_ready(uv_poll_t *poll, int status, int events)
{
        struct watch *watch = container_of(poll, struct watch, poll);

        if (watch->all)
                act_on_socket(watch->all, watch->fd, status < 0 ? CURL_CSELECT_ERR
                                                                : (events & UV_READABLE ? CURL_CSELECT_IN : 0) | (events & UV_WRITABLE ? CURL_CSELECT_OUT : 0));
}

static void watch_closed(uv_handle_t *handle)
{
        free(container_of((uv_poll_t *)handle, struct watch, poll));
}

static void watch_end(struct http_transfers *t, struct watch *watch)
{
        struct watch **at = &t->watches;

        while (*at && *at != watch)
                at = &(*at)->next;
        if (*at)
                *at = watch->next;
        watch->all = NULL;
        uv_poll_stop(&watch->poll);
        uv_close((uv_handle_t *)&watch->poll, watch_closed);
}

static struct watch *watch_find(struct http_transfers *t, curl_socket_t fd)
{
        struct watch *watch = t->watches;

        while (watch && watch->fd != fd)
                watch = watch->next;
        return watch;
}

static int socket_wanted(CURL *easy, curl_socket_t fd, int what, void *ctx, void *unused)
{
        struct http_transfers *t = ctx;
        struct watch *watch = watch_find(t, fd);

        if (what == CURL_POLL_REMOVE) {
                if (watch)
                        watch_end(t, watch);
                return 0;
        }
        if (!watch) {
                watch = calloc(1, sizeof(*watch));
                if (!watch)
                        return -1;
                if (uv_poll_init(t->loop, &watch->poll, fd) < 0) {
                        free(watch);
                        return -1;
                }
                watch->all = t;
                watch->fd = fd;
                watch->next = t->watches;
                t->watches = watch;
        }
        watch->wants = (what & CURL_POLL_IN ? UV_READABLE : 0) | (what & CURL_POLL_OUT ? UV_WRITABLE : 0);
        uv_poll_start(&watch->poll, watch->wants, watch_ready);
        return 0;
}

/* ---- answers ---- */

static int bad(struct http_fetch *f, int error, const char *fmt, ...) _printf_(3, 4);

static int bad(struct http_fetch *f, int error, const char *fmt, ...)
{
        char text[256];
        va_list args;

        if (f->result == 0) {
                va_start(args, fmt);
                vsnprintf(text, sizeof(text), fmt, args);
                va_end(args);
                f->result = err_set(&f->why, error, "%s", text);
        }
        return error;
}

static bool header_is(const char *line, size_t length, const char *name, const char **value, size_t *value_length)
{
        size_t n = strlen(name);

        if (length <= n || strncasecmp(line, name, n) || line[n] != ':')
                return false;
        line += n + 1;
        length -= n + 1;
        while (length && (*line == ' ' || *line == '\t')) {
                line++;
                length--;
        }
        while (length && strchr(" \t\r\n", line[length - 1]))
                length--;
        *value = line;
        *value_length = length;
        return true;
}

static bool number_at(const char **at, const char *end, uint64_t *number)
{
        const char *c = *at;

        for (*number = 0; c < end && *c >= '0' && *c <= '9'; c++) {
                if (*number > (INT64_MAX - 9) / 10)
                        return false;
                *number = *number * 10 + (uint64_t)(*c - '0');
        }
        if (c == *at)
                return false;
        *at = c;
        return true;
}

/* RFC 9110 §14.4: bytes FIRST-LAST/TOTAL. A total of * is of no use here. */
static bool parse_range(struct http_fetch *f, const char *at, const char *end)
{
        if (end - at < 6 || strncasecmp(at, "bytes ", 6))
                return false;
        at += 6;
        return number_at(&at, end, &f->range_first) && at < end && *at++ == '-' && number_at(&at, end, &f->range_last) && at < end && *at++ == '/' &&
               number_at(&at, end, &f->total_bytes) && at == end;
}

static void copy_tag(char to[HTTP_TAG_MAX], const char *value, size_t length)
{
        length = MIN(length, (size_t)HTTP_TAG_MAX - 1);
        memcpy(to, value, length);
        to[length] = '\0';
}

static void new_answer(struct http_fetch *f)
{
        f->ranged = f->encoded = false;
        f->tag[0] = f->date[0] = '\0';
}

static size_t header_came(char *line, size_t size, size_t count, void *ctx)
{
        struct http_fetch *f = ctx;
        size_t length = size * count, n;
        const char *value;

        if (length > 5 && !strncmp(line, "HTTP/", 5))
                new_answer(f); /* of a redirect's target, of an interim answer */
        else if (header_is(line, length, "Content-Range", &value, &n))
                f->ranged = parse_range(f, value, value + n);
        else if (header_is(line, length, "Content-Encoding", &value, &n))
                f->encoded = n != 8 || strncasecmp(value, "identity", 8);
        else if (header_is(line, length, "ETag", &value, &n))
                copy_tag(f->tag, value, n);
        else if (header_is(line, length, "Last-Modified", &value, &n))
                copy_tag(f->date, value, n);
        return length;
}

static int check_same(struct http_fetch *f)
{
        struct http_file *file = &f->all->file;

        if (!f->all->known) {
                file->size_bytes = f->total_bytes;
                memcpy(file->tag, f->tag, sizeof(file->tag));
                memcpy(file->date, f->date, sizeof(file->date));
                f->all->known = true;
                return 0;
        }
        if (f->total_bytes != file->size_bytes)
                return bad(f, -ESTALE, "the file has changed on the server: it had %" PRIu64 " bytes and has %" PRIu64, file->size_bytes, f->total_bytes);
        if (strcmp(f->tag, file->tag) || (!*file->tag && strcmp(f->date, file->date)))
                return bad(f, -ESTALE, "the file has changed on the server");
        return 0;
}

/* Before the first byte of an answer is taken. */
static int check_answer(struct http_fetch *f)
{
        uint64_t first = f->offset_bytes + f->got_bytes, last = f->offset_bytes + f->size_bytes - 1;
        long status = 0;

        (void)f->all->lib.curl_easy_getinfo(f->easy, CURLINFO_RESPONSE_CODE, &status);
        f->status = (unsigned)status;
        if (status == 200)
                return bad(f, -EOPNOTSUPP, "the server gives no parts of the file (no byte ranges)");
        if (status != 206)
                return -EIO; /* said when it is over */
        if (f->encoded)
                return bad(f, -EPROTO, "the server gives it encoded");
        if (!f->ranged)
                return bad(f, -EPROTO, "the server does not say which part it gives");
        if (f->probe)
                last = MIN(last, f->total_bytes - 1);
        if (f->range_first != first || f->range_last != last || f->range_last >= f->total_bytes)
                return bad(f, -EPROTO, "the server gives bytes %" PRIu64 "-%" PRIu64 "/%" PRIu64 " where %" PRIu64 "-%" PRIu64 " were asked for", f->range_first,
                           f->range_last, f->total_bytes, first, last);
        if (f->probe)
                f->size_bytes = last + 1 - f->offset_bytes;
        return check_same(f);
}

static size_t bytes_came(char *bytes, size_t size, size_t count, void *ctx)
{
        struct http_fetch *f = ctx;
        size_t length = size * count;

        if (!f->status && check_answer(f) < 0)
                return 0;
        if (f->status != 206)
                return 0;
        if (length > f->size_bytes - f->got_bytes) {
                bad(f, -EPROTO, "the server gives more than was asked for");
                return 0;
        }
        f->all->ops->bytes(f->all->ctx, f, (const uint8_t *)bytes, length);
        f->got_bytes += length;
        f->tries = 0;
        f->begun_ms = now_ms();
        return length;
}

/* ---- tries ---- */

static int set_options(struct http_transfers *t, struct http_fetch *f)
{
        struct library *lib = &t->lib;
        char range[64];
        int r = 0;

        snprintf(range, sizeof(range), "%" PRIu64 "-%" PRIu64, f->offset_bytes + f->got_bytes, f->offset_bytes + f->size_bytes - 1);
        lib->curl_easy_reset(f->easy);
#define SET(option, value) r |= (int)lib->curl_easy_setopt(f->easy, option, value)
        SET(CURLOPT_URL, t->url->url);
        SET(CURLOPT_RANGE, range);
        SET(CURLOPT_WRITEFUNCTION, bytes_came);
        SET(CURLOPT_WRITEDATA, f);
        SET(CURLOPT_HEADERFUNCTION, header_came);
        SET(CURLOPT_HEADERDATA, f);
        SET(CURLOPT_ERRORBUFFER, f->text);
        SET(CURLOPT_PRIVATE, f);
        SET(CURLOPT_NOSIGNAL, 1L);
        SET(CURLOPT_FOLLOWLOCATION, 1L);
        SET(CURLOPT_MAXREDIRS, REDIRECTS_MAX);
        SET(CURLOPT_PROTOCOLS_STR, t->url->tls ? "https" : "http");
        SET(CURLOPT_REDIR_PROTOCOLS_STR, t->url->tls ? "https" : "http,https");
        SET(CURLOPT_CONNECTTIMEOUT_MS, CONNECT_MS);
        SET(CURLOPT_LOW_SPEED_LIMIT, 1L);
        SET(CURLOPT_LOW_SPEED_TIME, t->url->retry_s && t->url->retry_s < STALL_S ? (long)t->url->retry_s : STALL_S);
        SET(CURLOPT_TCP_KEEPALIVE, 1L);
        SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
        SET(CURLOPT_USERAGENT, "virta");
        SET(CURLOPT_BUFFERSIZE, 262144L);
        if (t->login.size_bytes) {
                SET(CURLOPT_USERPWD, (const char *)t->login.bytes);
                SET(CURLOPT_HTTPAUTH, (long)(t->url->tls ? CURLAUTH_BASIC | CURLAUTH_DIGEST : CURLAUTH_DIGEST | CURLAUTH_BASIC));
        }
        if (t->ca)
                SET(CURLOPT_CAINFO_BLOB, (&(struct curl_blob){ .data = t->ca, .len = t->ca_bytes, .flags = CURL_BLOB_NOCOPY }));
#undef SET
        return r ? -EINVAL : 0;
}

static void run(struct http_transfers *t, struct http_fetch *f)
{
        f->due_ms = 0;
        f->status = 0;
        f->result = 0;
        f->text[0] = '\0';
        new_answer(f);
        if (set_options(t, f) < 0 || t->lib.curl_multi_add_handle(t->multi, f->easy)) {
                bad(f, -EIO, "libcurl refuses it");
                f->over = true;
                return;
        }
        f->running = true;
}

static void over(struct http_transfers *t, struct http_fetch *f, int result)
{
        for (unsigned n = 0; n < HTTP_FETCHES; n++)
                if (t->fetch[n] == f)
                        t->fetch[n] = NULL;
        f->due_ms = 0;
        t->ops->done(t->ctx, f, result);
}

/* What may be better at the next try. */
static bool may_pass(const struct http_fetch *f, CURLcode code)
{
        if (f->result)
                return false;
        if (f->status >= 400)
                return f->status == 408 || f->status == 429 || f->status >= 500;
        switch (code) {
        case CURLE_COULDNT_RESOLVE_HOST:
        case CURLE_COULDNT_CONNECT:
        case CURLE_OPERATION_TIMEDOUT:
        case CURLE_GOT_NOTHING:
        case CURLE_SEND_ERROR:
        case CURLE_RECV_ERROR:
        case CURLE_PARTIAL_FILE:
        case CURLE_SSL_CONNECT_ERROR:
        case CURLE_HTTP2:
        case CURLE_HTTP2_STREAM:
                return true;
        default:
                return code == CURLE_OK; /* too short */
        }
}

static int status_error(struct http_fetch *f)
{
        switch (f->status) {
        case 401:
        case 407:
                return bad(f, -EACCES, "the server wants another login (%u); #login=SECRET says where USER:PASSWORD is", f->status);
        case 403:
                return bad(f, -EACCES, "the server forbids it (403)");
        case 404:
        case 410:
                return bad(f, -ENOENT, "the server has no such file (%u)", f->status);
        case 416:
                return f->probe ? bad(f, -EINVAL, "the file is empty") : bad(f, -ESTALE, "the file has changed on the server: it is shorter now");
        default:
                return bad(f, -EIO, "the server answers %u", f->status);
        }
}

static void say_why(struct http_transfers *t, struct http_fetch *f, CURLcode code)
{
        if (f->result)
                return;
        if (code == CURLE_TOO_MANY_REDIRECTS)
                bad(f, -ELOOP, "more than %ld redirects", REDIRECTS_MAX);
        else if (f->status >= 400 || (f->status && f->status != 206 && code == CURLE_OK))
                status_error(f);
        else if (code == CURLE_OK)
                bad(f, -EIO, "the server's answer ends %" PRIu64 " bytes too early", f->size_bytes - f->got_bytes);
        else
                bad(f, code == CURLE_OPERATION_TIMEDOUT ? -ETIMEDOUT : -EIO, "%s", *f->text ? f->text : t->lib.curl_easy_strerror(code));
}

static void ended(struct http_transfers *t, struct http_fetch *f, CURLcode code)
{
        uint64_t now = now_ms();
        long status = 0;

        t->lib.curl_multi_remove_handle(t->multi, f->easy);
        f->running = false;
        (void)t->lib.curl_easy_getinfo(f->easy, CURLINFO_RESPONSE_CODE, &status);
        if (!f->status)
                f->status = (unsigned)status;
        if (f->status == 200 && f->result == 0)
                (void)check_answer(f); /* of nothing, or without a body */
        if (code == CURLE_OK && f->result == 0 && f->status == 206 && f->got_bytes == f->size_bytes) {
                over(t, f, 0);
                return;
        }
        if (may_pass(f, code) && t->url->retry_s && now - f->begun_ms < UINT64_C(1000) * t->url->retry_s) {
                f->due_ms = now + MIN((uint64_t)DELAY_MS << MIN(f->tries, 10u), (uint64_t)DELAY_MAX_MS);
                f->tries++;
                return;
        }
        say_why(t, f, code);
        over(t, f, f->result);
}

/* libcurl has returned: what has ended is told. */
static void look(struct http_transfers *t)
{
        CURLMsg *message;
        int left;

        while ((message = t->lib.curl_multi_info_read(t->multi, &left))) {
                struct http_fetch *f = NULL;
                CURLcode code = message->data.result;

                if (message->msg != CURLMSG_DONE)
                        continue;
                (void)t->lib.curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)&f);
                ended(t, f, code);
        }
        for (unsigned n = 0; n < HTTP_FETCHES; n++)
                if (t->fetch[n] && t->fetch[n]->over)
                        over(t, t->fetch[n], t->fetch[n]->result);
        t->ops->progress(t->ctx);
        arm(t);
}

static void act_on_socket(struct http_transfers *t, curl_socket_t fd, int events)
{
        int running;

        (void)t->lib.curl_multi_socket_action(t->multi, fd, events, &running);
        look(t);
}

static void act_by_time(struct http_transfers *t)
{
        uint64_t now = now_ms();
        int running;

        for (unsigned n = 0; n < HTTP_FETCHES; n++)
                if (t->fetch[n] && t->fetch[n]->due_ms && t->fetch[n]->due_ms <= now)
                        run(t, t->fetch[n]);
        if (t->curl_due_ms && t->curl_due_ms <= now) {
                t->curl_due_ms = 0;
                (void)t->lib.curl_multi_socket_action(t->multi, CURL_SOCKET_TIMEOUT, 0, &running);
        }
        look(t);
}

void http_transfer_start(struct http_transfers *t, struct http_fetch *f)
{
        f->all = t;
        f->got_bytes = 0;
        f->tries = 0;
        f->over = false;
        f->begun_ms = now_ms();
        f->why = ERR_INIT;
        for (unsigned n = 0; n < HTTP_FETCHES; n++) {
                if (!t->fetch[n]) {
                        t->fetch[n] = f;
                        break;
                }
        }
        if (!f->easy)
                f->easy = t->lib.curl_easy_init();
        if (f->easy) {
                run(t, f);
        } else {
                bad(f, -ENOMEM, "out of memory");
                f->over = true;
        }
        if (f->over)
                f->due_ms = 0;
        if (f->over && !t->curl_due_ms)
                t->curl_due_ms = now_ms();
        arm(t);
}

void http_transfers_wait(struct http_transfers *t)
{
        struct pollfd fds[SOCKETS_MAX];
        uint64_t due = next_due(t), now = now_ms();
        unsigned count = 0;

        for (struct watch *watch = t->watches; watch && count < SOCKETS_MAX; watch = watch->next)
                fds[count++] = (struct pollfd){ .fd = watch->fd, .events = (short)((watch->wants & UV_READABLE ? POLLIN : 0) | (watch->wants & UV_WRITABLE ? POLLOUT : 0)) };
        if (poll(fds, count, due ? (int)MIN(due > now ? due - now : 0, UINT64_C(1000)) : 1000) < 0)
                count = 0;
        for (unsigned n = 0; n < count; n++) {
                short got = fds[n].revents;

                /* What was done for one may have ended another. */
                if (got && watch_find(t, fds[n].fd))
                        act_on_socket(t, fds[n].fd, (got & POLLIN ? CURL_CSELECT_IN : 0) | (got & POLLOUT ? CURL_CSELECT_OUT : 0) |
                                                            (got & (POLLERR | POLLHUP) ? CURL_CSELECT_ERR : 0));
        }
        due = next_due(t);
        if (due && due <= now_ms())
                act_by_time(t);
}

void http_transfer_forget(struct http_transfers *t, struct http_fetch *f)
{
        if (f->running)
                t->lib.curl_multi_remove_handle(t->multi, f->easy);
        if (f->easy)
                t->lib.curl_easy_cleanup(f->easy);
        for (unsigned n = 0; n < HTTP_FETCHES; n++)
                if (t->fetch[n] == f)
                        t->fetch[n] = NULL;
        *f = (struct http_fetch){ 0 };
}

const struct http_file *http_transfers_file(const struct http_transfers *t)
{
        return t->known ? &t->file : NULL;
}

/* ---- making and ending ---- */

static int read_ca(struct http_transfers *t, const char *path, struct err *err)
{
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        struct stat st;
        ssize_t n;

        if (fd < 0 || fstat(fd, &st) < 0)
                return err_errno(err, -errno, "cannot read the authorities in %s", path);
        if (!S_ISREG(st.st_mode) || st.st_size <= 0 || st.st_size > (off_t)CA_BYTES_MAX)
                return err_set(err, -EINVAL, "%s is no file of certificates", path);
        t->ca = malloc((size_t)st.st_size);
        if (!t->ca)
                return err_nomem(err);
        n = read(fd, t->ca, (size_t)st.st_size);
        if (n <= 0)
                return err_errno(err, n < 0 ? -errno : -ENODATA, "cannot read the authorities in %s", path);
        t->ca_bytes = (size_t)n;
        return 0;
}

/* The system's, where its distributions have them; libcurl's own choice when they are elsewhere. */
static int find_ca(struct http_transfers *t, struct err *err)
{
        static const char *const places[] = { "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem" };

        if (!t->url->tls)
                return 0;
        if (t->url->ca)
                return read_ca(t, t->url->ca, err);
        for (unsigned n = 0; n < ARRAY_SIZE(places); n++)
                if (access(places[n], R_OK) == 0)
                        return read_ca(t, places[n], err);
        return 0;
}

static int read_login(struct http_transfers *t, struct err *err)
{
        int r;

        if (!t->url->login)
                return 0;
        r = secret_read(t->url->login, t->what, &t->login, err);
        if (r < 0)
                return r;
        if (t->login.size_bytes == sizeof(t->login.bytes))
                return err_set(err, -E2BIG, "%s has no USER:PASSWORD", t->url->login);
        t->login.bytes[t->login.size_bytes] = '\0';
        if (!strchr((const char *)t->login.bytes, ':'))
                return err_set(err, -EINVAL, "%s has no USER:PASSWORD", t->url->login);
        return 0;
}

static int make_multi(struct http_transfers *t, struct err *err)
{
        t->multi = t->lib.curl_multi_init();
        t->timer = calloc(1, sizeof(*t->timer));
        if (!t->multi || !t->timer)
                return err_nomem(err);
        uv_timer_init(t->loop, t->timer);
        t->timer->data = t;
        t->lib.curl_multi_setopt(t->multi, CURLMOPT_SOCKETFUNCTION, socket_wanted);
        t->lib.curl_multi_setopt(t->multi, CURLMOPT_SOCKETDATA, t);
        t->lib.curl_multi_setopt(t->multi, CURLMOPT_TIMERFUNCTION, timer_wanted);
        t->lib.curl_multi_setopt(t->multi, CURLMOPT_TIMERDATA, t);
        t->lib.curl_multi_setopt(t->multi, CURLMOPT_MAXCONNECTS, (long)HTTP_FETCHES);
        return 0;
}

int http_transfers_new(uv_loop_t *loop, const struct http_url *url, const char *what, const struct http_transfer_ops *ops, void *ctx,
                       struct http_transfers **transfers, struct err *err)
{
        struct http_transfers *t = calloc(1, sizeof(*t));
        int r;

        if (!t)
                return err_nomem(err);
        t->loop = loop;
        t->url = url;
        t->what = what;
        t->ops = ops;
        t->ctx = ctx;
        r = load(&t->lib, err);
        if (r == 0)
                r = find_ca(t, err);
        if (r == 0)
                r = read_login(t, err);
        if (r == 0)
                r = make_multi(t, err);
        if (r < 0) {
                http_transfers_free(t);
                return r;
        }
        *transfers = t;
        return 0;
}

void http_transfers_free(struct http_transfers *t)
{
        if (!t)
                return;
        if (t->multi)
                t->lib.curl_multi_cleanup(t->multi);
        while (t->watches)
                watch_end(t, t->watches);
        if (t->timer && t->timer->data) {
                t->timer->data = NULL;
                uv_close((uv_handle_t *)t->timer, timer_closed);
        } else {
                free(t->timer);
        }
        free(t->ca);
        secret_wipe(&t->login);
        free(t);
}
