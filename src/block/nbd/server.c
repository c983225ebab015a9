/*
 * The NBD server's connections: accepting, counting, ending.
 *
 *   accepted ─▶ handshake ─▶ transmission ─▶ reader over ─▶ last reply sent ─▶ freed
 *                    each a fiber's, which ends here
 *
 * A connection is freed once its reader is over, the disk has none of its requests, and its replies are sent or nobody wants them.
 */
#include "block/nbd/server.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "block/nbd/server-internal.h"

#define HANDSHAKE_MS 10000u
#define STOP_MS 10000u
#define RETRY_MS 1000u

struct nbd_listener {
        struct nbd_listener *next;
        struct nbd_server *server;
        uv_poll_t poll;
        int fd;
};

/* ---- replies ---- */

void nbd_connection_dirty(struct nbd_connection *c)
{
        if (c->listed)
                return;
        c->listed = true;
        c->next_dirty = c->server->dirty;
        c->server->dirty = c;
}

void nbd_server_batch(struct nbd_server *server)
{
        while (server->dirty) {
                struct nbd_connection *c = server->dirty;

                server->dirty = c->next_dirty;
                c->listed = false;
                nbd_connection_send(c);
        }
}

static void writable(void *ctx)
{
        struct nbd_connection *c = ctx;

        c->blocked = false;
        nbd_connection_send(c);
}

/* ---- the end of a connection ---- */

static void maybe_stopped(struct nbd_server *server);
static void listen_on(struct nbd_server *server, bool on);

void nbd_connection_settle(struct nbd_connection *c)
{
        struct nbd_server *server = c->server;

        if (c->reading || c->working || c->listed || (c->out && !c->gone))
                return;
        *c->link = c->next;
        if (c->next)
                c->next->link = c->link;
        nbd_connection_cut(c);
        nbd_connection_drop_spares(c);
        nbd_stream_free(c->stream);
        free(c);
        server->clients--;
        if (server->stopping) {
                maybe_stopped(server);
                return;
        }
        listen_on(server, true);
        if (server->config.left)
                server->config.left(server->config.ctx, server->clients);
}

static void connection_main(void *arg)
{
        struct nbd_connection *c = arg;
        struct nbd_server *server = c->server;
        struct err err = ERR_INIT;
        int r;

        nbd_stream_set_deadline(c->stream, HANDSHAKE_MS);
        r = nbd_server_handshake(c, &err);
        if (r == 0) {
                nbd_stream_set_deadline(c->stream, 0);
                r = nbd_server_transmit(c);
        }
        if (r < 0 && r != -ECONNRESET && r != -ESHUTDOWN) {
                if (!err.code)
                        err_errno(&err, r, "a client");
                if (server->config.trouble)
                        server->config.trouble(server->config.ctx, &err);
        }
        /* Answers to what came before stay good when a client has ended its side; not when what it says makes no sense. */
        if (r < 0 && r != -ECONNRESET && r != -ESHUTDOWN)
                nbd_connection_cut(c);
        nbd_stream_set_deadline(c->stream, 0);
        c->reading = false;
        nbd_connection_settle(c);
}

int nbd_server_connect(struct nbd_server *server, int in, int out, struct err *err)
{
        struct nbd_connection *c = calloc(1, sizeof(*c));
        int r, one = 1;

        if (!c) {
                close(in);
                if (out != in)
                        close(out);
                return err_nomem(err);
        }
        /* Of no use for sockets that are not TCP, and harmless. */
        (void)setsockopt(in, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        (void)setsockopt(in, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
        r = nbd_stream_new(server->loop, in, out, &c->stream, err);
        if (r < 0) {
                free(c);
                return r;
        }
        nbd_stream_set_writable(c->stream, writable, c);
        c->server = server;
        c->out_last = &c->out;
        c->reading = true;
        c->next = server->connections;
        c->link = &server->connections;
        if (c->next)
                c->next->link = &c->next;
        server->connections = c;
        server->clients++;
        if (fiber_start(connection_main, c) < 0) {
                c->reading = false;
                nbd_connection_settle(c);
                return err_nomem(err);
        }
        return 0;
}

/* ---- listening ---- */

static bool accept_one(struct nbd_server *server, int listener)
{
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        struct err err = ERR_INIT;

        if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS))
                listen_on(server, false);
        if (fd < 0)
                return errno == ECONNABORTED || errno == EINTR;
        if (nbd_server_connect(server, fd, fd, &err) < 0 && server->config.trouble)
                server->config.trouble(server->config.ctx, &err);
        return true;
}

static void knocked(uv_poll_t *poll, int status, int events)
{
        struct nbd_listener *listener = poll->data;
        struct nbd_server *server = listener->server;

        while (!server->stopping && server->clients < server->config.connections_max && accept_one(server, listener->fd))
                ;
        if (!server->stopping && server->clients >= server->config.connections_max)
                listen_on(server, false);
}

static void try_again(uv_timer_t *timer)
{
        listen_on(timer->data, true);
}

/* Off when there are as many clients as there may be, or the process is out of descriptors. */
static void listen_on(struct nbd_server *server, bool on)
{
        for (struct nbd_listener *listener = server->listeners; listener; listener = listener->next) {
                if (on)
                        uv_poll_start(&listener->poll, UV_READABLE, knocked);
                else
                        uv_poll_stop(&listener->poll);
        }
        if (on)
                uv_timer_stop(&server->timer);
        else if (server->clients < server->config.connections_max)
                uv_timer_start(&server->timer, try_again, RETRY_MS, 0);
}

int nbd_server_listen(struct nbd_server *server, int fd, struct err *err)
{
        struct nbd_listener *listener = calloc(1, sizeof(*listener));
        int r = listener ? uv_poll_init(server->loop, &listener->poll, fd) : UV_ENOMEM;

        if (r < 0) {
                free(listener);
                close(fd);
                return err_set(err, r, "cannot listen: %s", uv_strerror(r));
        }
        listener->poll.data = listener;
        listener->server = server;
        listener->fd = fd;
        listener->next = server->listeners;
        server->listeners = listener;
        listen_on(server, true);
        return 0;
}

static void listener_closed(uv_handle_t *handle)
{
        free(handle->data);
}

static void close_listeners(struct nbd_server *server)
{
        while (server->listeners) {
                struct nbd_listener *listener = server->listeners;

                server->listeners = listener->next;
                uv_close((uv_handle_t *)&listener->poll, listener_closed);
                close(listener->fd);
        }
}

/* ---- the end ---- */

static void tell_stopped(uv_idle_t *handle)
{
        struct nbd_server *server = handle->data;

        uv_idle_stop(handle);
        if (server->config.stopped)
                server->config.stopped(server->config.ctx);
}

static void maybe_stopped(struct nbd_server *server)
{
        if (server->connections)
                return;
        uv_timer_stop(&server->timer);
        uv_idle_start(&server->idle, tell_stopped);
}

/* Ending one may end others: from the start each time. */
static struct nbd_connection *next_to_stop(struct nbd_server *server)
{
        struct nbd_connection *c = server->connections;

        while (c && c->stopped)
                c = c->next;
        return c;
}

static void no_more_patience(uv_timer_t *timer)
{
        struct nbd_server *server = timer->data;

        for (struct nbd_connection *c = server->connections; c; c = c->next) {
                nbd_connection_cut(c);
                nbd_connection_dirty(c);
        }
        nbd_server_batch(server);
}

void nbd_server_stop(struct nbd_server *server)
{
        struct nbd_connection *c;

        if (server->stopping)
                return;
        server->stopping = true;
        close_listeners(server);
        uv_timer_start(&server->timer, no_more_patience, STOP_MS, 0);
        while ((c = next_to_stop(server))) {
                c->stopped = true;
                nbd_stream_stop(c->stream, -ESHUTDOWN);
        }
        maybe_stopped(server);
}

static void handle_closed(uv_handle_t *handle)
{
        struct nbd_server *server = handle->data;

        if (--server->handles == 0)
                free(server);
}

void nbd_server_free(struct nbd_server *server)
{
        if (!server)
                return;
        close_listeners(server);
        uv_close((uv_handle_t *)&server->timer, handle_closed);
        uv_close((uv_handle_t *)&server->idle, handle_closed);
}

int nbd_server_new(uv_loop_t *loop, const struct nbd_server_config *config, struct nbd_server **out, struct err *err)
{
        struct nbd_server *server;

        if (strlen(config->export_name) > NBD_NAME_MAX || (config->description && strlen(config->description) > NBD_NAME_MAX))
                return err_set(err, -ENAMETOOLONG, "the name of an export has at most %u bytes", NBD_NAME_MAX);
        server = calloc(1, sizeof(*server));
        if (!server)
                return err_nomem(err);
        server->loop = loop;
        server->config = *config;
        server->disk = config->disk;
        server->readonly = config->readonly || config->disk->info.readonly;
        uv_timer_init(loop, &server->timer);
        uv_idle_init(loop, &server->idle);
        server->timer.data = server->idle.data = server;
        server->handles = 2;
        *out = server;
        return 0;
}
