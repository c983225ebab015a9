/*
 *   socket ──readable──▶ receive_all ──deliver──▶ 0: next
 *                            ▲            └─ -EAGAIN: frame waits, reading stops
 *                            └── idle handle ◀── frame_pipe_resume()
 *
 * Limits: BATCH frames are taken for each wake-up, so that other work of the loop gets its turn.
 */
#include "net/frame-pipe.h"

#include <errno.h>
#include <sys/socket.h>

#define BATCH 64
#define PIECES_MAX 64 /* a frame in more pieces is copied together first */

struct frame_pipe {
        uv_poll_t poll;
        uv_idle_t again; /* brings the waiting frame back from the loop */
        int fd;
        unsigned handles; /* not closed yet */
        const struct frame_pipe_ops *ops;
        void *ctx;
        bool want_room, closed;
        size_t waiting; /* bytes of the frame that was not taken; 0: none */
        struct net_offload offload;
        uint8_t frame[NET_FRAME_MAX + 1]; /* received */
        uint8_t flat[NET_FRAME_MAX];      /* to send, when it comes in many pieces */
};

static void on_ready(uv_poll_t *poll, int status, int events);

static void watch(struct frame_pipe *pipe)
{
        int events = (pipe->waiting ? 0 : UV_READABLE) | (pipe->want_room ? UV_WRITABLE : 0);

        if (pipe->closed || !events)
                uv_poll_stop(&pipe->poll);
        else
                uv_poll_start(&pipe->poll, events, on_ready);
}

static bool offload_fits(const struct net_offload *o, size_t size_bytes)
{
        if (o->flags & NET_NEEDS_CSUM && (size_t)o->csum_start + o->csum_offset + 2 > size_bytes)
                return false;
        return o->gso == NET_GSO_NONE || (o->gso_bytes && o->header_bytes <= size_bytes);
}

/* 1: a frame is in pipe->frame; 0: nothing there; -EBADMSG: a message that is none; -EPIPE: the other end is gone. */
static int receive_one(struct frame_pipe *pipe, size_t *size_bytes)
{
        struct iovec iov[2] = { { &pipe->offload, sizeof(pipe->offload) }, { pipe->frame, sizeof(pipe->frame) } };
        struct msghdr message = { .msg_iov = iov, .msg_iovlen = 2 };
        ssize_t n = recvmsg(pipe->fd, &message, MSG_DONTWAIT);

        if (n < 0)
                return errno == EAGAIN || errno == EINTR ? 0 : -EPIPE;
        if (n == 0)
                return -EPIPE;
        if (message.msg_flags & MSG_TRUNC || (size_t)n < sizeof(pipe->offload) + NET_FRAME_MIN)
                return -EBADMSG;
        *size_bytes = (size_t)n - sizeof(pipe->offload);
        return *size_bytes <= NET_FRAME_MAX && offload_fits(&pipe->offload, *size_bytes) ? 1 : -EBADMSG;
}

/* False when the frame has to wait. */
static bool deliver(struct frame_pipe *pipe, size_t size_bytes)
{
        struct iovec iov = { pipe->frame, size_bytes };

        pipe->waiting = pipe->ops->deliver(pipe->ctx, &iov, 1, &pipe->offload) == -EAGAIN ? size_bytes : 0;
        return !pipe->waiting;
}

static void receive_all(struct frame_pipe *pipe, bool delivered)
{
        for (unsigned i = 0; i < BATCH && !pipe->waiting && !pipe->closed; i++) {
                size_t size_bytes;
                int r = receive_one(pipe, &size_bytes);

                if (r == 0)
                        break;
                if (r == -EBADMSG)
                        continue; /* passed over, and counted: who sends nothing else does not keep the loop */
                if (r < 0) {
                        pipe->closed = true;
                        pipe->ops->closed(pipe->ctx);
                        break;
                }
                delivered |= deliver(pipe, size_bytes);
        }
        if (delivered && pipe->ops->flush)
                pipe->ops->flush(pipe->ctx);
}

static void on_ready(uv_poll_t *poll, int status, int events)
{
        struct frame_pipe *pipe = poll->data;

        if (status < 0)
                events = UV_READABLE; /* the read tells what is wrong */
        if (events & UV_WRITABLE && pipe->want_room) {
                pipe->want_room = false;
                pipe->ops->room(pipe->ctx);
        }
        if (events & UV_READABLE && !pipe->waiting)
                receive_all(pipe, false);
        watch(pipe);
}

static void on_again(uv_idle_t *idle)
{
        struct frame_pipe *pipe = idle->data;

        uv_idle_stop(idle);
        if (pipe->waiting && deliver(pipe, pipe->waiting))
                receive_all(pipe, true);
        watch(pipe);
}

int frame_pipe_new(uv_loop_t *loop, int fd, const struct frame_pipe_ops *ops, void *ctx, struct frame_pipe **out, struct err *err)
{
        struct frame_pipe *pipe = calloc(1, sizeof(*pipe));
        int r;

        if (!pipe)
                return err_nomem(err);
        pipe->fd = fd;
        pipe->ops = ops;
        pipe->ctx = ctx;
        r = uv_poll_init(loop, &pipe->poll, fd);
        if (r < 0) {
                free(pipe);
                return err_set(err, r, "cannot watch the network process: %s", uv_strerror(r));
        }
        uv_idle_init(loop, &pipe->again);
        pipe->poll.data = pipe->again.data = pipe;
        pipe->handles = 2;
        watch(pipe);
        *out = pipe;
        return 0;
}

static void on_closed(uv_handle_t *handle)
{
        struct frame_pipe *pipe = handle->data;

        if (--pipe->handles)
                return;
        close(pipe->fd);
        free(pipe);
}

void frame_pipe_free(struct frame_pipe *pipe)
{
        if (!pipe)
                return;
        pipe->closed = true;
        uv_poll_stop(&pipe->poll);
        uv_close((uv_handle_t *)&pipe->poll, on_closed);
        uv_close((uv_handle_t *)&pipe->again, on_closed);
}

/* The frame in one piece; 0 when it is too long. */
static size_t flatten(struct frame_pipe *pipe, const struct iovec *iov, unsigned count)
{
        size_t size_bytes = 0;

        for (unsigned i = 0; i < count; i++) {
                if (iov[i].iov_len > sizeof(pipe->flat) - size_bytes)
                        return 0;
                memcpy(pipe->flat + size_bytes, iov[i].iov_base, iov[i].iov_len);
                size_bytes += iov[i].iov_len;
        }
        return size_bytes;
}

int frame_pipe_send(struct frame_pipe *pipe, const struct iovec *iov, unsigned count, const struct net_offload *offload)
{
        static const struct net_offload none;
        struct iovec all[1 + PIECES_MAX] = { { (void *)(offload ? offload : &none), sizeof(none) } };
        struct msghdr message = { .msg_iov = all, .msg_iovlen = count + 1 };

        if (pipe->closed)
                return 0; /* nobody hears it */
        if (count <= PIECES_MAX) {
                memcpy(all + 1, iov, count * sizeof(*iov));
        } else {
                all[1] = (struct iovec){ pipe->flat, flatten(pipe, iov, count) };
                message.msg_iovlen = 2;
                if (!all[1].iov_len)
                        return 0;
        }
        if (sendmsg(pipe->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && (errno == EAGAIN || errno == ENOBUFS)) {
                pipe->want_room = true;
                watch(pipe);
                return -EAGAIN;
        }
        return 0;
}

void frame_pipe_resume(struct frame_pipe *pipe)
{
        if (pipe->waiting && !pipe->closed)
                uv_idle_start(&pipe->again, on_again);
}
