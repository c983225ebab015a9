/*
 * Names are relative to the directory's descriptor: that works with paths longer than a unix address, and in a root where the
 * directory has no name any more. connect() and bind() take no directory, so the working directory is changed for the call; it
 * is used for nothing else once a machine runs.
 */
#include "device/vsock-host.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

/* bind() or connect() with a name in the directory. */
static int in_directory(const struct vsock_host *host, int fd, const char *name,
                        int (*call)(int, const struct sockaddr *, socklen_t))
{
        struct sockaddr_un un = { .sun_family = AF_UNIX };
        _cleanup_close_ int before = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
        int r;

        if (snprintf(un.sun_path, sizeof(un.sun_path), "%s", name) >= (int)sizeof(un.sun_path))
                return -ENAMETOOLONG;
        if (fchdir(host->dir_fd) < 0)
                return -errno;
        r = call(fd, (struct sockaddr *)&un, sizeof(un)) < 0 ? -errno : 0;
        /* Without a way back any place that pins nothing of others will do. */
        if ((before < 0 || fchdir(before) < 0) && chdir("/") < 0 && r == 0)
                return 0;
        return r;
}

static int new_socket(void)
{
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

        return fd < 0 ? -errno : fd;
}

int vsock_host_connect(const struct vsock_host *host, uint32_t port)
{
        char name[sizeof(host->name) + 16];
        int fd = new_socket();
        int r;

        if (fd < 0)
                return fd;
        snprintf(name, sizeof(name), "%s_%u", host->name, port);
        r = in_directory(host, fd, name, connect);
        if (r < 0) {
                close(fd);
                return r;
        }
        return fd;
}

int vsock_host_accept(const struct vsock_host *host)
{
        int fd = accept4(host->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        return fd < 0 ? -errno : fd;
}

/* Removes a socket that nobody listens on: what a process left that was killed. */
static int remove_stale(const struct vsock_host *host, const char *path, struct err *err)
{
        struct stat st;
        int fd, r;

        if (fstatat(host->dir_fd, host->name, &st, AT_SYMLINK_NOFOLLOW) < 0)
                return errno == ENOENT ? 0 : err_errno(err, -errno, "cannot use vsock socket '%s'", path);
        if (!S_ISSOCK(st.st_mode))
                return err_set(err, -EEXIST, "cannot use vsock socket '%s': something else is there", path);
        fd = new_socket();
        if (fd < 0)
                return err_errno(err, fd, "cannot make a socket");
        r = in_directory(host, fd, host->name, connect);
        close(fd);
        if (r != -ECONNREFUSED)
                return err_set(err, -EADDRINUSE, "vsock socket '%s' is in use by another process", path);
        if (unlinkat(host->dir_fd, host->name, 0) < 0)
                return err_errno(err, -errno, "cannot remove the old vsock socket '%s'", path);
        return 0;
}

int vsock_host_init(struct vsock_host *host, const char *path, struct err *err)
{
        const char *slash = strrchr(path, '/');
        const char *name = slash ? slash + 1 : path;
        _cleanup_free_ char *dir = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
        int r;

        *host = (struct vsock_host){ .dir_fd = -1, .listen_fd = -1 };
        if (!dir)
                return err_nomem(err);
        if (!*name || snprintf(host->name, sizeof(host->name), "%s", name) >= (int)sizeof(host->name))
                return err_set(err, -EINVAL, "vsock socket '%s' has no name of 1 to %zu bytes", path, sizeof(host->name) - 1);
        host->dir_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (host->dir_fd < 0)
                return err_errno(err, -errno, "cannot use directory '%s' for vsock socket '%s'", dir, path);
        r = remove_stale(host, path, err);
        if (r < 0)
                return r;
        r = host->listen_fd = new_socket();
        if (r >= 0)
                r = in_directory(host, host->listen_fd, host->name, bind);
        if (r == 0) {
                host->bound = true;
                r = listen(host->listen_fd, 64) < 0 ? -errno : 0;
        }
        return r < 0 ? err_errno(err, r, "cannot listen on vsock socket '%s'", path) : 0;
}

void vsock_host_done(struct vsock_host *host)
{
        closep(&host->listen_fd);
        if (host->bound)
                unlinkat(host->dir_fd, host->name, 0);
        closep(&host->dir_fd);
        *host = (struct vsock_host){ .dir_fd = -1, .listen_fd = -1 };
}

static int parse_line(const char *text, uint32_t *port)
{
        uint64_t value = 0;

        if (strncmp(text, "CONNECT ", 8) != 0)
                return -EPROTO;
        text += 8;
        if (!*text || *text == '\n')
                return -EPROTO;
        for (; *text >= '0' && *text <= '9'; text++) {
                value = value * 10 + (uint64_t)(*text - '0');
                if (value > UINT32_MAX)
                        return -ERANGE;
        }
        if (*text == '\r')
                text++;
        if (*text != '\n')
                return -EPROTO;
        *port = (uint32_t)value;
        return 1;
}

int vsock_line_read(struct vsock_line *line, int fd, uint32_t *port)
{
        char *at = line->text + line->length;
        ssize_t n = recv(fd, at, VSOCK_LINE_MAX - line->length, MSG_PEEK);
        const char *end;

        if (n <= 0)
                return n == 0 ? -ECONNRESET : errno == EAGAIN || errno == EINTR ? 0 : -errno;
        end = memchr(at, '\n', (size_t)n);
        n = recv(fd, at, end ? (size_t)(end + 1 - at) : (size_t)n, 0);
        if (n <= 0)
                return -ECONNRESET;
        line->length += (unsigned)n;
        line->text[line->length] = 0;
        if (end)
                return parse_line(line->text, port);
        return line->length == VSOCK_LINE_MAX ? -EPROTO : 0;
}
