/*
 * The user network: a network of the guest's own, in user space, by libslirp. Needs no right on the host.
 *
 * The guest sees 10.0.2.0/24 and fd00::/64 with a router at 10.0.2.2 (which is also the host's loopback), a name server that
 * forwards at 10.0.2.3, and is given 10.0.2.15 by DHCP. Its connections leave as sockets of this process; forwards listen on
 * the host and lead to 10.0.2.15. The MTU is large: a TCP segment crosses as one frame, which saves most of the per-packet work
 * on both sides, and libslirp cuts nothing since it speaks to sockets.
 *
 * It is not larger than a quarter of the TCP window, which libslirp cannot scale past 64 KiB. Linux offers multiples of the largest
 * segment it has seen, and tells of a larger window only when that is twice the last (tcp_cleanup_rbuf()); libslirp sends no
 * segment that is smaller than the MTU's and half the window. With segments of half a window both can wait for the other, until
 * libslirp's persist timer (5 s).
 *
 * How it hangs on the loop: libslirp names the descriptors it waits for only when asked, and all of them each time. They live
 * in an epoll set of their own, watched by one uv_poll, which is brought up to date in a uv_prepare that runs only after
 * something happened ("dirty"). Nothing ticks while nothing happens, but for libslirp's TCP timers while it has connections.
 *
 *      slirp_input, events, timers ──▶ dirty ──prepare──▶ frames to the client, epoll set, timeout ──▶ clean
 *
 * Limits: frames for the guest wait in a queue of QUEUE_FRAMES_MAX frames and QUEUE_BYTES_MAX bytes. While it is more than
 * half full no host socket is read, so that only answers to the guest's own frames can add to it; past its end they are
 * dropped and TCP sends them again.
 */
#include "net/net.h"

#include <errno.h>
#include <inttypes.h>
#include <slirp/libslirp.h>
#include <sys/epoll.h>

#include "base/log.h"
#include "base/timer.h"

#define USER_MTU 16384u /* see above */
#define QUEUE_FRAMES_MAX 1024u
#define QUEUE_BYTES_MAX (2u << 20)
#define FDS_MAX 65536u
#define EVENTS_BATCH 64
#define IDLE_TIMEOUT_MS 1000u /* what libslirp asks for when it waits for nothing */

struct queued_frame {
        struct queued_frame *next;
        size_t size_bytes;
        uint8_t bytes[];
};

/* What libslirp waits for on a descriptor; the index is the descriptor. */
struct watched {
        uint32_t wanted;   /* SLIRP_POLL_… of this round */
        uint32_t set;      /* what the epoll set has */
        uint32_t happened; /* since the set was asked */
        bool in_set;
};

/* libuv handles are closed late: they are on the heap and free themselves. */
struct user_timer {
        uv_timer_t uv;
        struct user_net *user;
        SlirpTimerId id;
        void *cb_opaque;
};

struct user_net {
        struct net_backend net;
        uv_loop_t *loop;
        Slirp *slirp;
        int epoll_fd;
        uv_poll_t *poll;
        uv_prepare_t *prepare;
        uv_timer_t *timeout;
        bool dirty;
        bool blocked; /* the client has no room */

        struct watched *watched;
        unsigned watched_count;

        struct queued_frame *first, **last;
        unsigned queue_frames;
        size_t queue_bytes;
        uint64_t dropped;
        uint8_t frame[NET_FRAME_MAX];
};

static void handle_free(uv_handle_t *handle)
{
        free(handle);
}

static void handle_close(void *handle)
{
        if (handle)
                uv_close(handle, handle_free);
}

static bool queue_half_full(const struct user_net *user)
{
        return user->queue_frames > QUEUE_FRAMES_MAX / 2 || user->queue_bytes > QUEUE_BYTES_MAX / 2;
}

static void mark_dirty(struct user_net *user);

/* --- what libslirp calls --- */

static ssize_t slirp_send_packet(const void *bytes, size_t size_bytes, void *opaque)
{
        struct user_net *user = opaque;
        struct queued_frame *frame;

        if (size_bytes < NET_FRAME_MIN || size_bytes > NET_FRAME_MAX || !user->net.client.receive)
                return (ssize_t)size_bytes;
        if (user->queue_frames == QUEUE_FRAMES_MAX || user->queue_bytes + size_bytes > QUEUE_BYTES_MAX ||
            !(frame = malloc(sizeof(*frame) + size_bytes))) {
                user->dropped++;
                return (ssize_t)size_bytes;
        }
        frame->next = NULL;
        frame->size_bytes = size_bytes;
        memcpy(frame->bytes, bytes, size_bytes);
        *user->last = frame;
        user->last = &frame->next;
        user->queue_frames++;
        user->queue_bytes += size_bytes;
        mark_dirty(user);
        return (ssize_t)size_bytes;
}

static void slirp_guest_error(const char *message, void *opaque)
{
        log_guest("user network: %s", message);
}

static int64_t slirp_clock_get_ns(void *opaque)
{
        return (int64_t)monotonic_ns();
}

static void timer_fired(uv_timer_t *uv)
{
        struct user_timer *timer = container_of(uv, struct user_timer, uv);
        struct user_net *user = timer->user;

        slirp_handle_timer(user->slirp, timer->id, timer->cb_opaque);
        mark_dirty(user);
}

static void *slirp_timer_new(SlirpTimerId id, void *cb_opaque, void *opaque)
{
        struct user_net *user = opaque;
        struct user_timer *timer = calloc(1, sizeof(*timer));

        if (!timer)
                return NULL;
        timer->user = user;
        timer->id = id;
        timer->cb_opaque = cb_opaque;
        if (uv_timer_init(user->loop, &timer->uv) < 0) {
                free(timer);
                return NULL;
        }
        return timer;
}

static void user_timer_close(uv_handle_t *handle)
{
        free(container_of((uv_timer_t *)handle, struct user_timer, uv));
}

static void slirp_timer_free(void *opaque_timer, void *opaque)
{
        struct user_timer *timer = opaque_timer;

        if (timer)
                uv_close((uv_handle_t *)&timer->uv, user_timer_close);
}

static void slirp_timer_mod(void *opaque_timer, int64_t expire_ms, void *opaque)
{
        struct user_timer *timer = opaque_timer;
        int64_t now_ms = (int64_t)(monotonic_ns() / 1000000);

        if (timer) {
                uv_update_time(timer->user->loop);
                uv_timer_start(&timer->uv, timer_fired, (uint64_t)MAX(expire_ms - now_ms, INT64_C(0)), 0);
        }
}

static void slirp_register_fd(int fd, void *opaque)
{
}

/* Comes before libslirp closes fd, whose number may be another file's next. */
static void slirp_unregister_fd(int fd, void *opaque)
{
        struct user_net *user = opaque;

        if (fd < 0 || (unsigned)fd >= user->watched_count)
                return;
        if (user->watched[fd].in_set)
                epoll_ctl(user->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
        user->watched[fd] = (struct watched){ 0 };
}

static void slirp_notify(void *opaque)
{
        mark_dirty(opaque);
}

static const SlirpCb slirp_callbacks = {
        .send_packet = slirp_send_packet,
        .guest_error = slirp_guest_error,
        .clock_get_ns = slirp_clock_get_ns,
        .timer_free = slirp_timer_free,
        .timer_mod = slirp_timer_mod,
        .register_poll_fd = slirp_register_fd,
        .unregister_poll_fd = slirp_unregister_fd,
        .notify = slirp_notify,
        .timer_new_opaque = slirp_timer_new,
};

/* --- descriptors and time --- */

static uint32_t events_to_epoll(uint32_t wanted)
{
        return (wanted & SLIRP_POLL_IN ? (uint32_t)EPOLLIN : 0) | (wanted & SLIRP_POLL_OUT ? (uint32_t)EPOLLOUT : 0) |
               (wanted & SLIRP_POLL_PRI ? (uint32_t)EPOLLPRI : 0);
}

static uint32_t events_from_epoll(uint32_t events)
{
        return (events & EPOLLIN ? SLIRP_POLL_IN : 0u) | (events & EPOLLOUT ? SLIRP_POLL_OUT : 0u) |
               (events & EPOLLPRI ? SLIRP_POLL_PRI : 0u) | (events & EPOLLERR ? SLIRP_POLL_ERR : 0u) |
               (events & EPOLLHUP ? SLIRP_POLL_HUP : 0u);
}

static int add_poll(int fd, int events, void *opaque)
{
        struct user_net *user = opaque;

        if (fd < 0 || (unsigned)fd >= FDS_MAX)
                return -1;
        if ((unsigned)fd >= user->watched_count) {
                unsigned count = (unsigned)align_up((uint64_t)fd + 1, 64);
                struct watched *grown = realloc(user->watched, count * sizeof(*grown));

                if (!grown)
                        return -1;
                memset(grown + user->watched_count, 0, (count - user->watched_count) * sizeof(*grown));
                user->watched = grown;
                user->watched_count = count;
        }
        user->watched[fd].wanted |= (uint32_t)events;
        return fd;
}

static int get_revents(int index, void *opaque)
{
        struct user_net *user = opaque;

        return index >= 0 && (unsigned)index < user->watched_count ? (int)user->watched[index].happened : 0;
}

static int no_revents(int index, void *opaque)
{
        return 0;
}

/* Makes the epoll set what wanted says. Error and hang-up are always told, so a descriptor with nothing wanted leaves it. */
static void sync_epoll(struct user_net *user)
{
        for (unsigned fd = 0; fd < user->watched_count; fd++) {
                struct watched *w = &user->watched[fd];
                struct epoll_event event = { .events = events_to_epoll(w->wanted), .data.fd = (int)fd };

                if (!w->wanted) {
                        if (w->in_set)
                                epoll_ctl(user->epoll_fd, EPOLL_CTL_DEL, (int)fd, NULL);
                        w->in_set = false;
                } else if (!w->in_set || w->set != w->wanted) {
                        /* A descriptor that was closed behind our back has left the set by itself. */
                        w->in_set = (w->in_set && epoll_ctl(user->epoll_fd, EPOLL_CTL_MOD, (int)fd, &event) == 0) ||
                                    epoll_ctl(user->epoll_fd, EPOLL_CTL_ADD, (int)fd, &event) == 0;
                }
                w->set = w->wanted;
                w->wanted = 0;
        }
}

static void timeout_fired(uv_timer_t *timer)
{
        struct user_net *user = timer->data;

        mark_dirty(user);
}

static void epoll_ready(uv_poll_t *poll, int status, int events)
{
        struct user_net *user = poll->data;
        struct epoll_event ready[EVENTS_BATCH];
        int count = epoll_wait(user->epoll_fd, ready, EVENTS_BATCH, 0);

        if (count <= 0)
                return;
        for (int i = 0; i < count; i++)
                user->watched[ready[i].data.fd].happened = events_from_epoll(ready[i].events);
        slirp_pollfds_poll(user->slirp, 0, get_revents, user);
        for (int i = 0; i < count; i++)
                user->watched[ready[i].data.fd].happened = 0;
        mark_dirty(user);
}

/* --- frames to the client --- */

static void deliver(struct user_net *user)
{
        /* The transport checksum is libslirp's own and right: the guest need not look. */
        const struct net_offload offload = { .flags = NET_DATA_VALID };
        bool some = user->first && !user->blocked;

        while (user->first && !user->blocked) {
                struct queued_frame *frame = user->first;
                struct iovec iov = { .iov_base = frame->bytes, .iov_len = frame->size_bytes };

                if (user->net.client.receive && user->net.client.receive(user->net.client.ctx, &iov, 1, &offload) == -EAGAIN) {
                        user->blocked = true;
                        break;
                }
                user->first = frame->next;
                if (!user->first)
                        user->last = &user->first;
                user->queue_frames--;
                user->queue_bytes -= frame->size_bytes;
                free(frame);
        }
        if (some && user->net.client.flush)
                user->net.client.flush(user->net.client.ctx);
}

static void prepare(uv_prepare_t *handle)
{
        struct user_net *user = handle->data;
        uint32_t timeout_ms = UINT32_MAX;

        /*
         * Without a look at the sockets ("select failed") this runs libslirp's timers, and sends what waited for a neighbour's
         * address that the guest has told just now.
         */
        slirp_pollfds_poll(user->slirp, 1, no_revents, user);
        deliver(user);
        if (user->dropped) {
                log_guest("user network: %" PRIu64 " frames dropped, the guest does not take them", user->dropped);
                user->dropped = 0;
        }
        uv_prepare_stop(user->prepare);
        user->dirty = false;

        slirp_pollfds_fill(user->slirp, &timeout_ms, add_poll, user);
        if (queue_half_full(user)) {
                for (unsigned fd = 0; fd < user->watched_count; fd++)
                        user->watched[fd].wanted &= SLIRP_POLL_OUT;
        }
        sync_epoll(user);
        if (timeout_ms < IDLE_TIMEOUT_MS) {
                uv_update_time(user->loop);
                uv_timer_start(user->timeout, timeout_fired, timeout_ms, 0);
        } else {
                uv_timer_stop(user->timeout);
        }
}

static void mark_dirty(struct user_net *user)
{
        if (!user->dirty && user->prepare) {
                user->dirty = true;
                uv_prepare_start(user->prepare, prepare);
        }
}

/* --- the backend --- */

static int user_send(struct net_backend *net, const struct iovec *iov, unsigned count, const struct net_offload *offload)
{
        struct user_net *user = container_of(net, struct user_net, net);
        const uint8_t *bytes = user->frame;
        size_t size_bytes = 0;

        for (unsigned i = 0; i < count; i++) {
                if (iov[i].iov_len > sizeof(user->frame) - size_bytes)
                        return 0;
                if (count == 1) {
                        bytes = iov[i].iov_base;
                } else {
                        memcpy(user->frame + size_bytes, iov[i].iov_base, iov[i].iov_len);
                }
                size_bytes += iov[i].iov_len;
        }
        if (size_bytes < NET_FRAME_MIN)
                return 0;
        slirp_input(user->slirp, bytes, (int)size_bytes);
        mark_dirty(user);
        return 0;
}

static void user_resume(struct net_backend *net)
{
        struct user_net *user = container_of(net, struct user_net, net);

        user->blocked = false;
        mark_dirty(user);
}

static void user_free(struct net_backend *net)
{
        struct user_net *user = container_of(net, struct user_net, net);
        /* Taken first: mark_dirty() from libslirp's last words must not start it again. */
        uv_prepare_t *taken = steal_ptr(user->prepare);

        handle_close(taken);
        if (user->slirp)
                slirp_cleanup(user->slirp);
        handle_close(user->timeout);
        handle_close(user->poll);
        closep(&user->epoll_fd);
        while (user->first) {
                struct queued_frame *frame = user->first;

                user->first = frame->next;
                free(frame);
        }
        free(user->watched);
        free(user);
}


/* libuv's handles that this backend needs; what was made is closed by user_free(). */
static int make_handles(struct user_net *user, struct err *err)
{
        uv_prepare_t *made_prepare = malloc(sizeof(*made_prepare));
        uv_timer_t *made_timer = malloc(sizeof(*made_timer));
        uv_poll_t *made_poll = malloc(sizeof(*made_poll));
        int r;

        if (!made_prepare || !made_timer || !made_poll || (user->epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0) {
                free(made_prepare);
                free(made_timer);
                free(made_poll);
                return err_errno(err, -ENOMEM, "cannot make the user network");
        }
        uv_prepare_init(user->loop, made_prepare);
        uv_timer_init(user->loop, made_timer);
        made_prepare->data = made_timer->data = made_poll->data = user;
        user->prepare = made_prepare;
        user->timeout = made_timer;

        r = uv_poll_init(user->loop, made_poll, user->epoll_fd);
        if (r < 0) {
                free(made_poll);
                return err_errno(err, r, "cannot watch the user network");
        }
        user->poll = made_poll;
        uv_poll_start(made_poll, UV_READABLE, epoll_ready);
        return 0;
}

static int add_forward(struct user_net *user, const struct net_forward *forward, struct err *err)
{
        /* An address of zero means the first that DHCP gives. */
        struct in_addr guest = { .s_addr = INADDR_ANY };
        char text[INET_ADDRSTRLEN];

        errno = 0;
        if (slirp_add_hostfwd(user->slirp, forward->udp, forward->host, forward->host_port, guest, forward->guest_port) == 0)
                return 0;
        return err_errno(err, errno ? -errno : -EADDRINUSE, "cannot forward %s port %u: cannot listen on %s:%u",
                         forward->udp ? "udp" : "tcp", forward->host_port,
                         inet_ntop(AF_INET, &forward->host, text, sizeof(text)), forward->host_port);
}

static int user_new(const struct net_options *options, uv_loop_t *loop, struct net_backend **net, struct err *err)
{
        SlirpConfig config = {
                .version = 4,
                .in_enabled = true,
                .vnetwork.s_addr = htonl(0x0a000200),
                .vnetmask.s_addr = htonl(0xffffff00),
                .vhost.s_addr = htonl(0x0a000202),
                .vdhcp_start.s_addr = htonl(0x0a00020f),
                .vnameserver.s_addr = htonl(0x0a000203),
                .in6_enabled = true,
                .vprefix_len = 64,
                .vhostname = "virta",
                .if_mtu = USER_MTU,
                .if_mru = USER_MTU,
        };
        struct user_net *user = calloc(1, sizeof(*user));
        int r;

        if (!user)
                return err_nomem(err);
        inet_pton(AF_INET6, "fd00::", &config.vprefix_addr6);
        inet_pton(AF_INET6, "fd00::2", &config.vhost6);
        inet_pton(AF_INET6, "fd00::3", &config.vnameserver6);
        user->net.ops = &net_user_ops;
        user->net.features = NET_FEATURE_SEND_BIG;
        user->net.mtu = USER_MTU;
        user->net.link_up = true;
        user->loop = loop;
        user->epoll_fd = -1;
        user->last = &user->first;

        r = make_handles(user, err);
        if (r == 0 && !(user->slirp = slirp_new(&config, &slirp_callbacks, user)))
                r = err_set(err, -ENOMEM, "libslirp %s cannot make a network", slirp_version_string());
        for (unsigned i = 0; r == 0 && i < options->forwards; i++)
                r = add_forward(user, &options->forward[i], err);
        if (r < 0) {
                user_free(&user->net);
                return r;
        }
        mark_dirty(user);
        *net = &user->net;
        return 0;
}

const struct net_ops net_user_ops = {
        .name = "user",
        .text = "a network of its own behind the host's addresses; needs no rights",
        .new = user_new,
        .free = user_free,
        .send = user_send,
        .resume = user_resume,
};
