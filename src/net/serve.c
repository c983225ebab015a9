/*
 * The network process: a real driver on one side, the machine's socket on the other. See peer.h.
 *
 * Stages: the driver is opened (its listening ports, the name server's address), then the process keeps the host's network and
 * loses the file system, its capabilities and every system call that is not in `rules`.
 */
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "base/sandbox.h"
#include "net/frame-pipe.h"
#include "net/peer-wire.h"
#include "net/peer.h"

struct server {
        uv_loop_t loop;
        struct net_backend *net;
        struct frame_pipe *pipe;
};

/* From the machine to the driver. */
static int server_deliver(void *ctx, const struct iovec *iov, unsigned count, const struct net_offload *offload)
{
        struct server *server = ctx;

        return net_send(server->net, iov, count, offload);
}

static void server_room(void *ctx)
{
        struct server *server = ctx;

        net_resume(server->net);
}

static void server_closed(void *ctx)
{
        struct server *server = ctx;

        uv_stop(&server->loop);
}

static const struct frame_pipe_ops server_pipe_ops = { .deliver = server_deliver, .room = server_room, .closed = server_closed };

/* From the driver to the machine. */
static int server_receive(void *ctx, const struct iovec *iov, unsigned count, const struct net_offload *offload)
{
        struct server *server = ctx;

        return frame_pipe_send(server->pipe, iov, count, offload);
}

static void server_writable(void *ctx)
{
        struct server *server = ctx;

        frame_pipe_resume(server->pipe);
}

static const struct syscall_rule rules[] = {
        /* frames and the guest's connections */
        ALLOW(read), ALLOW(write), ALLOW(readv), ALLOW(writev), ALLOW(sendmsg), ALLOW(recvmsg), ALLOW(sendto), ALLOW(recvfrom),
        ALLOW(sendmmsg), ALLOW(recvmmsg), ALLOW(close), ALLOW(shutdown),
        ALLOW_IF(socket, 0, UINT64_MAX, AF_INET), ALLOW_IF(socket, 0, UINT64_MAX, AF_INET6), ALLOW(connect), ALLOW(bind),
        ALLOW(listen), ALLOW(accept), ALLOW(accept4), ALLOW(getsockname), ALLOW(getpeername), ALLOW(getsockopt), ALLOW(setsockopt),
        ALLOW(fcntl), ALLOW(ioctl),
        /* the loop */
        ALLOW(epoll_wait), ALLOW(epoll_pwait), ALLOW(epoll_ctl), ALLOW(poll), ALLOW(ppoll), ALLOW(timerfd_settime), ALLOW(eventfd2),
        ALLOW(clock_gettime), ALLOW(clock_nanosleep), ALLOW(gettimeofday),
        /* the name server's address */
        ALLOW(openat), ALLOW(newfstatat), ALLOW(fstat), ALLOW(lseek),
        /* memory, signals, the end */
        ALLOW(brk), ALLOW(mmap), ALLOW(munmap), ALLOW(mremap), ALLOW(madvise), ALLOW(mprotect), ALLOW(futex), ALLOW(getrandom),
        ALLOW(rt_sigreturn), ALLOW(rt_sigprocmask), ALLOW(rt_sigaction), ALLOW(restart_syscall), ALLOW(getpid), ALLOW(gettid),
        ALLOW_OWN_PID(tgkill, 0), ALLOW(exit), ALLOW(exit_group),
};

static int open_driver(struct server *server, int fd, struct err *err)
{
        struct peer_request request;
        ssize_t n = recv(fd, &request, sizeof(request), 0);

        if (n != sizeof(request) || !memchr(request.driver, 0, sizeof(request.driver)))
                return err_set(err, -EBADMSG, "the network process was asked for nothing it knows");
        for (unsigned i = 0; net_drivers[i]; i++)
                if (strcmp(net_drivers[i]->name, request.driver) == 0)
                        request.options.driver = net_drivers[i];
        if (!request.options.driver)
                return err_set(err, -EBADMSG, "network driver '%s' is not known", request.driver);
        return net_new(&request.options, &server->loop, &server->net, err);
}

static int confine(struct err *err)
{
        static const char *const files[] = { "/etc/resolv.conf", NULL };
        const struct sandbox_plan plan = {
                .files = files, .limits = { .extra_memory_bytes = UINT64_C(1) << 30, .threads = 8 },
        };
        struct sandbox sandbox;
        int r = sandbox_isolate(&sandbox, true, err);

        if (!r)
                r = sandbox_confine(&sandbox, &plan, err);
        if (!r)
                r = sandbox_filter(rules, ARRAY_SIZE(rules), true, err);
        return r;
}

static int say_hello(const struct server *server, int fd, int result, const struct err *why, struct err *err)
{
        struct peer_hello hello = { .result = result };

        if (result < 0) {
                memcpy(hello.text, why->text, sizeof(hello.text));
        } else {
                hello.features = server->net->features;
                hello.mtu = server->net->mtu;
        }
        if (send(fd, &hello, sizeof(hello), MSG_NOSIGNAL) != sizeof(hello))
                return err_errno(err, -errno, "the machine is gone");
        return result < 0 ? result : 0;
}

static int serve(struct server *server, int fd, struct err *err)
{
        const struct net_client client = { .receive = server_receive, .writable = server_writable, .ctx = server };
        int r = frame_pipe_new(&server->loop, fd, &server_pipe_ops, server, &server->pipe, err);

        if (r < 0) {
                close(fd);
                return r;
        }
        net_connect(server->net, &client);
        uv_run(&server->loop, UV_RUN_DEFAULT);
        frame_pipe_free(server->pipe);
        return 0;
}

int net_serve(int fd, bool sandbox, struct err *err)
{
        struct server server = { 0 };
        struct err why = ERR_INIT;
        int r = uv_loop_init(&server.loop);

        if (r < 0)
                return err_set(err, r, "cannot make an event loop: %s", uv_strerror(r));
        signal(SIGPIPE, SIG_IGN);
        prctl(PR_SET_NAME, "virta-net");
        r = open_driver(&server, fd, &why);
        if (!r && sandbox)
                r = confine(&why);
        r = say_hello(&server, fd, r, &why, err);
        if (!r)
                r = serve(&server, fd, err);
        if (server.net)
                net_free(server.net);
        uv_run(&server.loop, UV_RUN_NOWAIT);
        uv_loop_close(&server.loop);
        return r;
}
