/*
 * See stream.h. Descriptors do not block.
 *
 *   readable   set when the kernel said so, cleared when a read came back short: then the next one would find nothing, and is saved
 *   interest   what the loop's poll looks for. It is left on while the fiber works, and taken back only when an event comes that nobody
 *              waits for, as each change is a system call
 */
#include "block/nbd/stream.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <sys/uio.h>

#include "base/fiber.h"
#include "block/nbd/tls.h"

#define BUFFER_BYTES ((size_t)256 << 10)
#define TAKE_MAX ((size_t)64 << 10)

struct nbd_stream {
        int fd[2];                /* in, out */
        unsigned polls;           /* 1: both are one */
        uv_poll_t poll[2];
        int interest[2];          /* UV_READABLE, UV_WRITABLE */
        uv_timer_t timer;
        unsigned handles;         /* to be closed */
        bool closed;

        struct fiber *fiber;      /* waits for `events` */
        int events;
        bool readable;
        int stopped;              /* -errno */

        void (*idle)(void *ctx);
        void *idle_ctx;
        void (*writable)(void *ctx);
        void *writable_ctx;
        bool wants_write;         /* writable is to be called */

        struct nbd_tls_session *tls;
        uint8_t *buffer;
        size_t at, end;
};

/* ---- events ---- */

static void happened(uv_poll_t *poll, int status, int events);

static unsigned poll_of(const struct nbd_stream *stream, int event)
{
        return event == UV_WRITABLE ? stream->polls - 1 : 0;
}

static void set_interest(struct nbd_stream *stream, unsigned n, int interest)
{
        if (stream->interest[n] == interest)
                return;
        stream->interest[n] = interest;
        if (interest)
                uv_poll_start(&stream->poll[n], interest, happened);
        else
                uv_poll_stop(&stream->poll[n]);
}

static void add_interest(struct nbd_stream *stream, int event)
{
        unsigned n = poll_of(stream, event);

        set_interest(stream, n, stream->interest[n] | event);
}

static void drop_interest(struct nbd_stream *stream, int event)
{
        unsigned n = poll_of(stream, event);

        set_interest(stream, n, stream->interest[n] & ~event);
}

static void wake(struct nbd_stream *stream)
{
        struct fiber *fiber = stream->fiber;

        stream->fiber = NULL;
        fiber_wake(fiber);
}

/* Whether the session has nothing left to send of what it took. Errors come up again with the next call. */
static bool push_tls(struct nbd_stream *stream)
{
        return !stream->tls || !nbd_tls_unsent(stream->tls) || nbd_tls_sendv(stream->tls, NULL, 0) != -EAGAIN;
}

/* The stream may be gone after each wake: its memory stays until the handles are closed. */
static void dispatch(struct nbd_stream *stream, int events)
{
        if (events & UV_READABLE) {
                if (stream->fiber && stream->events == UV_READABLE) {
                        stream->readable = true;
                        wake(stream);
                } else {
                        stream->readable = true;
                        drop_interest(stream, UV_READABLE);
                }
        }
        if (stream->closed || !(events & UV_WRITABLE))
                return;
        if (stream->fiber && stream->events == UV_WRITABLE) {
                drop_interest(stream, UV_WRITABLE);
                wake(stream);
        } else if (stream->wants_write && push_tls(stream)) {
                stream->wants_write = false;
                drop_interest(stream, UV_WRITABLE);
                stream->writable(stream->writable_ctx);
        } else if (!stream->wants_write) {
                drop_interest(stream, UV_WRITABLE);
        }
}

static void happened(uv_poll_t *poll, int status, int events)
{
        struct nbd_stream *stream = poll->data;

        dispatch(stream, status < 0 ? stream->interest[poll - stream->poll] : events);
}

static int wait_for(struct nbd_stream *stream, int event)
{
        if (stream->stopped)
                return stream->stopped;
        stream->fiber = fiber_self();
        stream->events = event;
        assert(stream->fiber);
        add_interest(stream, event);
        fiber_wait();
        return stream->stopped;
}

void nbd_stream_stop(struct nbd_stream *stream, int error)
{
        if (!stream->stopped)
                stream->stopped = error;
        if (stream->fiber)
                wake(stream);
}

static void timed_out(uv_timer_t *timer)
{
        nbd_stream_stop(timer->data, -ETIMEDOUT);
}

void nbd_stream_set_deadline(struct nbd_stream *stream, unsigned timeout_ms)
{
        if (timeout_ms)
                uv_timer_start(&stream->timer, timed_out, timeout_ms, 0);
        else
                uv_timer_stop(&stream->timer);
}

void nbd_stream_poll(struct nbd_stream *stream, int timeout_ms)
{
        struct pollfd fds[2];
        uint64_t due_ms;
        int events = 0;

        for (unsigned n = 0; n < stream->polls; n++)
                fds[n] = (struct pollfd){ .fd = stream->fd[n], .events = (short)((stream->interest[n] & UV_READABLE ? POLLIN : 0) |
                                                                                 (stream->interest[n] & UV_WRITABLE ? POLLOUT : 0)) };
        if (uv_is_active((uv_handle_t *)&stream->timer)) {
                uv_update_time(stream->timer.loop);
                due_ms = uv_timer_get_due_in(&stream->timer);
                if (timeout_ms < 0 || due_ms < (uint64_t)timeout_ms)
                        timeout_ms = (int)MIN(due_ms + 1, (uint64_t)INT32_MAX);
        }
        if (poll(fds, stream->polls, timeout_ms) > 0)
                for (unsigned n = 0; n < stream->polls; n++) {
                        if (fds[n].revents & (POLLIN | POLLERR | POLLHUP | POLLNVAL))
                                events |= stream->interest[n] & UV_READABLE;
                        if (fds[n].revents & (POLLOUT | POLLERR | POLLHUP | POLLNVAL))
                                events |= stream->interest[n] & UV_WRITABLE;
                }
        uv_update_time(stream->timer.loop);
        if (events)
                dispatch(stream, events);
        else if (uv_is_active((uv_handle_t *)&stream->timer) && !uv_timer_get_due_in(&stream->timer))
                nbd_stream_stop(stream, -ETIMEDOUT);
}

/* ---- reading ---- */

void nbd_stream_set_idle(struct nbd_stream *stream, void (*idle)(void *ctx), void *ctx)
{
        stream->idle = idle;
        stream->idle_ctx = ctx;
}

static ssize_t read_plain(struct nbd_stream *stream, void *to, size_t size_bytes)
{
        const struct iovec iov[2] = { { to, size_bytes }, { stream->buffer + stream->end, BUFFER_BYTES - stream->end } };
        ssize_t got = readv(stream->fd[0], iov, 2);

        if (got < 0)
                return -errno;
        stream->readable = (size_t)got == iov[0].iov_len + iov[1].iov_len;
        return got;
}

/* A record at a time, and there may be more of them in the session than the kernel knows of. */
static ssize_t read_tls(struct nbd_stream *stream, void *to, size_t size_bytes)
{
        if (size_bytes)
                return nbd_tls_recv(stream->tls, to, size_bytes);
        return nbd_tls_recv(stream->tls, stream->buffer + stream->end, BUFFER_BYTES - stream->end);
}

static int wait_for_read(struct nbd_stream *stream)
{
        int event = stream->tls && nbd_tls_wants_write(stream->tls) ? UV_WRITABLE : UV_READABLE;

        stream->readable = false;
        return wait_for(stream, event);
}

/* At least one byte: into `to` at first, of size_bytes, then into the buffer. *got: those in `to`. */
static int read_more(struct nbd_stream *stream, void *to, size_t size_bytes, size_t *got)
{
        ssize_t r = -EAGAIN;

        if (stream->idle)
                stream->idle(stream->idle_ctx);
        while (r == -EAGAIN || r == -EINTR) {
                int waited = 0;

                if (stream->stopped)
                        return stream->stopped;
                if (!stream->readable && !stream->tls)
                        waited = wait_for_read(stream);
                if (waited < 0)
                        return waited;
                r = stream->tls ? read_tls(stream, to, size_bytes) : read_plain(stream, to, size_bytes);
                if (r == -EAGAIN && stream->tls)
                        waited = wait_for_read(stream);
                else if (r == -EAGAIN)
                        stream->readable = false;
                if (waited < 0)
                        return waited;
        }
        if (r <= 0)
                return r ? (int)r : -ECONNRESET;
        *got = MIN((size_t)r, size_bytes);
        stream->end += (size_t)r - *got;
        return 0;
}

int nbd_stream_get(struct nbd_stream *stream, void *to, size_t size_bytes)
{
        uint8_t *at = to;

        while (size_bytes) {
                size_t some = MIN(stream->end - stream->at, size_bytes);
                int r;

                memcpy(at, stream->buffer + stream->at, some);
                stream->at += some;
                at += some;
                size_bytes -= some;
                if (!size_bytes)
                        return 0;
                stream->at = stream->end = 0;
                r = read_more(stream, at, size_bytes, &some);
                if (r < 0)
                        return r;
                at += some;
                size_bytes -= some;
        }
        return 0;
}

const uint8_t *nbd_stream_peek(struct nbd_stream *stream, size_t size_bytes, int *error)
{
        assert(size_bytes <= TAKE_MAX);
        while (stream->end - stream->at < size_bytes) {
                size_t none;

                /* What is there goes to the front, so that as much as possible is read behind it. */
                memmove(stream->buffer, stream->buffer + stream->at, stream->end - stream->at);
                stream->end -= stream->at;
                stream->at = 0;
                *error = read_more(stream, NULL, 0, &none);
                if (*error < 0)
                        return NULL;
        }
        return stream->buffer + stream->at;
}

const uint8_t *nbd_stream_take(struct nbd_stream *stream, size_t size_bytes, int *error)
{
        const uint8_t *at = nbd_stream_peek(stream, size_bytes, error);

        if (at)
                stream->at += size_bytes;
        return at;
}

int nbd_stream_skip(struct nbd_stream *stream, uint64_t size_bytes)
{
        while (size_bytes) {
                size_t some = MIN(size_bytes, (uint64_t)TAKE_MAX);
                int r;

                if (!nbd_stream_take(stream, some, &r))
                        return r;
                size_bytes -= some;
        }
        return 0;
}

/* ---- writing ---- */

static ssize_t write_once(struct nbd_stream *stream, const struct iovec *iov, unsigned count)
{
        ssize_t r;

        if (stream->tls)
                return nbd_tls_sendv(stream->tls, iov, count);
        do
                r = writev(stream->fd[1], iov, (int)count);
        while (r < 0 && errno == EINTR);
        return r < 0 ? -errno : r;
}

ssize_t nbd_stream_writev(struct nbd_stream *stream, const struct iovec *iov, unsigned count)
{
        ssize_t r = write_once(stream, iov, count);

        if (r == -EAGAIN || (stream->tls && nbd_tls_unsent(stream->tls))) {
                stream->wants_write = true;
                add_interest(stream, UV_WRITABLE);
        }
        return r;
}

int nbd_stream_wait_writable(struct nbd_stream *stream)
{
        return wait_for(stream, UV_WRITABLE);
}

int nbd_stream_put(struct nbd_stream *stream, const void *from, size_t size_bytes)
{
        const uint8_t *at = from;

        while (size_bytes || (stream->tls && nbd_tls_unsent(stream->tls))) {
                ssize_t r = write_once(stream, &(struct iovec){ (void *)at, size_bytes }, 1);

                if (r == -EAGAIN)
                        r = nbd_stream_wait_writable(stream);
                if (r < 0)
                        return (int)r;
                at += r;
                size_bytes -= (size_t)r;
        }
        return 0;
}

void nbd_stream_set_writable(struct nbd_stream *stream, void (*writable)(void *ctx), void *ctx)
{
        stream->writable = writable;
        stream->writable_ctx = ctx;
}

/* ---- TLS ---- */

bool nbd_stream_has_tls(const struct nbd_stream *stream)
{
        return stream->tls;
}

int nbd_stream_start_tls(struct nbd_stream *stream, struct nbd_tls *tls, const char *hostname, struct err *err)
{
        struct nbd_tls_session *session;
        int r;

        /* What somebody put in front of the handshake is not to be taken for what came through it. */
        if (stream->end != stream->at)
                return err_set(err, -EPROTO, "bytes in front of the TLS handshake");
        r = nbd_tls_session_new(tls, stream->fd[0], stream->fd[1], hostname, &session, err);
        if (r < 0)
                return r;
        do {
                r = nbd_tls_handshake(session, err);
                if (r == -EAGAIN)
                        r = wait_for(stream, nbd_tls_wants_write(session) ? UV_WRITABLE : UV_READABLE);
                else if (r == 0)
                        break;
                else
                        goto failed;
        } while (r == 0);
        if (r < 0) {
                r = err_errno(err, r, "TLS handshake");
                goto failed;
        }
        stream->tls = session;
        return 0;
failed:
        nbd_tls_session_free(session, false);
        return r;
}

/* ---- the object ---- */

int nbd_stream_fd(const struct nbd_stream *stream)
{
        return stream->fd[0];
}

static void handle_closed(uv_handle_t *handle)
{
        struct nbd_stream *stream = handle->data;

        if (--stream->handles == 0)
                free(stream);
}

void nbd_stream_free(struct nbd_stream *stream)
{
        if (!stream)
                return;
        assert(!stream->fiber);
        stream->closed = true;
        nbd_tls_session_free(stream->tls, true);
        for (unsigned n = 0; n < stream->polls; n++)
                uv_close((uv_handle_t *)&stream->poll[n], handle_closed);
        uv_close((uv_handle_t *)&stream->timer, handle_closed);
        for (unsigned n = 0; n < stream->polls; n++)
                close(stream->fd[n]);
        free(stream->buffer);
}

static int add_poll(uv_loop_t *loop, struct nbd_stream *stream, unsigned n, struct err *err)
{
        int r = uv_poll_init(loop, &stream->poll[n], stream->fd[n]);

        if (r == UV_EPERM)
                return err_set(err, -EINVAL, "a file is no connection");
        if (r < 0)
                return err_set(err, r, "cannot wait for a connection: %s", uv_strerror(r));
        stream->poll[n].data = stream;
        stream->handles++;
        stream->polls++;
        return 0;
}

int nbd_stream_new(uv_loop_t *loop, int in, int out, struct nbd_stream **out_stream, struct err *err)
{
        struct nbd_stream *stream = calloc(1, sizeof(*stream));
        int r = 0;

        if (stream)
                stream->buffer = malloc(BUFFER_BYTES);
        if (!stream || !stream->buffer) {
                free(stream);
                close(in);
                if (out != in)
                        close(out);
                return err_nomem(err);
        }
        stream->fd[0] = in;
        stream->fd[1] = out;
        uv_timer_init(loop, &stream->timer);
        stream->timer.data = stream;
        stream->handles = 1;
        r = add_poll(loop, stream, 0, err);
        if (r == 0 && out != in)
                r = add_poll(loop, stream, 1, err);
        if (r < 0) {
                for (unsigned n = stream->polls; n < (in == out ? 1u : 2u); n++)
                        close(stream->fd[n]);
                nbd_stream_free(stream);
                return r;
        }
        *out_stream = stream;
        return 0;
}
