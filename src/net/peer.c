/*
 * The machine's side: a backend whose driver is another process. See peer.h.
 */
#include "net/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>

#include "base/text.h"
#include "net/frame-pipe.h"
#include "net/peer-wire.h"

struct peer {
        struct net_backend net;
        struct frame_pipe *pipe;
};

static int peer_deliver(void *ctx, const struct iovec *iov, unsigned count, const struct net_offload *offload)
{
        struct peer *peer = ctx;

        return peer->net.client.receive ? peer->net.client.receive(peer->net.client.ctx, iov, count, offload) : 0;
}

static void peer_flush(void *ctx)
{
        struct peer *peer = ctx;

        if (peer->net.client.flush)
                peer->net.client.flush(peer->net.client.ctx);
}

static void peer_room(void *ctx)
{
        struct peer *peer = ctx;

        if (peer->net.client.writable)
                peer->net.client.writable(peer->net.client.ctx);
}

/* The network process is gone: the cable is pulled. */
static void peer_closed(void *ctx)
{
        struct peer *peer = ctx;

        peer->net.link_up = false;
        if (peer->net.client.link_changed)
                peer->net.client.link_changed(peer->net.client.ctx);
}

static const struct frame_pipe_ops peer_pipe_ops = {
        .deliver = peer_deliver, .flush = peer_flush, .room = peer_room, .closed = peer_closed,
};

static void peer_free(struct net_backend *net)
{
        struct peer *peer = container_of(net, struct peer, net);

        frame_pipe_free(peer->pipe);
        free(peer);
}

static int peer_send(struct net_backend *net, const struct iovec *iov, unsigned count, const struct net_offload *offload)
{
        return frame_pipe_send(container_of(net, struct peer, net)->pipe, iov, count, offload);
}

static void peer_resume(struct net_backend *net)
{
        frame_pipe_resume(container_of(net, struct peer, net)->pipe);
}

static const struct net_ops peer_ops = {
        .name = "peer",
        .text = "a driver in a process of its own",
        .free = peer_free,
        .send = peer_send,
        .resume = peer_resume,
};

/* Between fork and exec: only what is async-signal-safe. */
static _Noreturn void become_server(int fd)
{
        char *const argv[] = { (char *)"virta", (char *)NET_SERVE_COMMAND, NULL };
        sigset_t none;

        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        setpgid(0, 0); /* the terminal's Ctrl-C is not for it */
        if (fd != NET_SERVE_FD)
                dup2(fd, NET_SERVE_FD);
        else
                fcntl(fd, F_SETFD, 0);
        execv("/proc/self/exe", argv);
        _exit(127);
}

int net_peer_spawn(const struct net_options *options, int *fd, struct err *err)
{
        struct peer_request request = { .options = *options };
        int room = 1 << 20; /* as much as the host allows */
        int pair[2];
        pid_t pid;

        if (!text_copy(request.driver, sizeof(request.driver), options->driver->name))
                return err_set(err, -EINVAL, "network driver '%s' has a long name", options->driver->name);
        request.options.driver = NULL;
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
                return err_errno(err, -errno, "cannot make a socket pair for the network");
        for (unsigned i = 0; i < 2; i++)
                setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
        pid = fork();
        if (pid == 0)
                become_server(pair[1]);
        close(pair[1]);
        if (pid < 0 || send(pair[0], &request, sizeof(request), MSG_NOSIGNAL) < 0) {
                int r = err_errno(err, -errno, "cannot start the network process");

                close(pair[0]);
                return r;
        }
        *fd = pair[0];
        return 0;
}

static int receive_hello(int fd, struct peer_hello *hello, struct err *err)
{
        ssize_t n;

        do
                n = recv(fd, hello, sizeof(*hello), 0);
        while (n < 0 && errno == EINTR);
        if (n != sizeof(*hello))
                return err_set(err, -EPIPE, "the network process ended before it was ready");
        hello->text[sizeof(hello->text) - 1] = 0;
        if (hello->result < 0)
                return err_set(err, hello->result, "%s", hello->text);
        return 0;
}

int net_peer_attach(int fd, uv_loop_t *loop, struct net_backend **net, struct err *err)
{
        _cleanup_close_ int owned = fd;
        struct peer_hello hello;
        struct peer *peer;
        int r = receive_hello(fd, &hello, err);

        if (r < 0)
                return r;
        peer = calloc(1, sizeof(*peer));
        if (!peer)
                return err_nomem(err);
        peer->net = (struct net_backend){ .ops = &peer_ops, .features = hello.features, .mtu = hello.mtu, .link_up = true };
        r = frame_pipe_new(loop, fd, &peer_pipe_ops, peer, &peer->pipe, err);
        if (r < 0) {
                free(peer);
                return r;
        }
        steal_fd(&owned);
        *net = &peer->net;
        return 0;
}
