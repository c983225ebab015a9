/* The host's side of the vsock device: unix sockets in one directory. Part of virtio-vsock.c. */
#pragma once

#include "base/err.h"

struct vsock_host {
        int dir_fd;     /* O_PATH; everything is named relative to it */
        char name[64];  /* of the socket that listens */
        int listen_fd;  /* non-blocking */
        bool bound;     /* the name is ours to remove */
};

/* path is DIR/NAME. -EADDRINUSE when somebody listens there, -EEXIST when it is something else than a socket. */
int vsock_host_init(struct vsock_host *host, const char *path, struct err *err) _must_check_;
void vsock_host_done(struct vsock_host *host);

/* A non-blocking connection to NAME_PORT; the descriptor or -errno. Changes the working directory for a moment. */
int vsock_host_connect(const struct vsock_host *host, uint32_t port);
/* The next who connected, non-blocking; -EAGAIN. */
int vsock_host_accept(const struct vsock_host *host);

#define VSOCK_LINE_MAX 32

/*
 * What a client says first: "CONNECT PORT\n". Reads no byte behind it. 1 and *port when it is complete, 0 when more is to come,
 * -errno when it is not that.
 */
struct vsock_line {
        char text[VSOCK_LINE_MAX + 1];
        unsigned length;
};
int vsock_line_read(struct vsock_line *line, int fd, uint32_t *port);
