/*
 * `virta disk serve`: a disk given to others, until a signal, or until the last client has left.
 *
 *   open image ─▶ sockets ─▶ ready (a line, a file with the process's number, systemd told) ─▶ loop ─▶ signal ─▶ clients answered ─▶ written back
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/log.h"
#include "base/text.h"
#include "block/bitmap.h"
#include "block/disk.h"
#include "block/export/fuse.h"
#include "block/filter/filter.h"
#include "block/job/job.h"
#include "block/nbd/server.h"
#include "block/nbd/tls.h"
#include "cli/disk.h"
#include "device/vhost-user.h"

#define ADDRESSES_MAX 8
#define NBD_PORT "10809"
#define SYSTEMD_FIRST_FD 3 /* sd_listen_fds(3) */
#define BACKLOG 128

struct serve_args {
        const char *path, *format, *export_name, *description, *tls, *tls_psk, *pid_file, *fuse, *vhost_user, *serial, *secret, *job;
        const char *filter[BLOCK_FILTERS_MAX];
        const char *address[ADDRESSES_MAX];
        const char *bitmap[NBD_BITMAPS_MAX];
        unsigned addresses, connections, bitmaps, filters, queues;
        bool readonly, json, once, any_backing, tls_anyone;
};

#define SERVE(field) offsetof(struct serve_args, field)

static int add_address(void *into, const char *value, struct err *err)
{
        struct serve_args *args = into;

        if (args->addresses == ADDRESSES_MAX)
                return err_set(err, -E2BIG, "'%s' is one too many, at most %d", value, ADDRESSES_MAX);
        if (strcmp(value, "stdio") && strcmp(value, "systemd") && strncmp(value, "unix:", 5) && strncmp(value, "tcp:", 4))
                return err_set(err, -EINVAL, "'%s' is none of unix:PATH, tcp:HOST:PORT, stdio, systemd", value);
        args->address[args->addresses++] = value;
        return 0;
}

static int add_bitmap(void *into, const char *value, struct err *err)
{
        struct serve_args *args = into;

        if (args->bitmaps == NBD_BITMAPS_MAX)
                return err_set(err, -E2BIG, "'%s' is one too many, at most %u", value, NBD_BITMAPS_MAX);
        args->bitmap[args->bitmaps++] = value;
        return 0;
}

static int add_filter(void *into, const char *value, struct err *err)
{
        struct serve_args *args = into;

        if (args->filters == BLOCK_FILTERS_MAX)
                return err_set(err, -E2BIG, "'%s' is one too many, at most %u", value, BLOCK_FILTERS_MAX);
        args->filter[args->filters++] = value;
        return 0;
}

static const struct opt serve_options[] = {
        { "nbd", "ADDRESS", "where NBD clients come in: unix:PATH, tcp:HOST:PORT, stdio, or systemd for sockets that are there already", OPT_CALL,
          .call = add_address, .repeated = true },
        { "fuse", "FILE", "show the disk as this file, by FUSE; unmounting it ends that", OPT_TEXT, SERVE(fuse), .complete = OPT_COMPLETE_FILE },
        { "vhost-user", "PATH", "be the back end of a vhost-user-blk device: its machine's front end comes to this socket", OPT_TEXT, SERVE(vhost_user),
          .complete = OPT_COMPLETE_FILE },
        { "queues", "N", "of that device at most", OPT_NUMBER, SERVE(queues), .fallback = "4", .min = 1, .max = 16 },
        { "serial", "TEXT", "what that device says of itself, 20 bytes", OPT_TEXT, SERVE(serial) },
        { "read-only", NULL, "let nobody write; others may read the image meanwhile", OPT_FLAG, SERVE(readonly) },
        { "export", "NAME", "what NBD clients have to ask for", OPT_TEXT, SERVE(export_name), .fallback = "the empty name", .may_be_empty = true },
        { "description", "TEXT", "of the export, for people", OPT_TEXT, SERVE(description) },
        { "bitmap", "NAME", "tell NBD clients what is set in this bitmap of the image (qemu:dirty-bitmap:NAME)", OPT_CALL, .call = add_bitmap,
          .repeated = true },
        { "format", "FORMAT", "of the image; without it, what its suffix says", OPT_TEXT, SERVE(format) },
        { "tls", "DIR", "NBD only over TLS, with DIR/ca-cert.pem, server-cert.pem and server-key.pem; clients show a certificate of that authority",
          OPT_TEXT, SERVE(tls), .complete = OPT_COMPLETE_DIRECTORY },
        { "tls-anyone", NULL, "let clients in that have no certificate", OPT_FLAG, SERVE(tls_anyone) },
        { "tls-psk", "FILE", "NBD only over TLS, with keys that clients know, too: lines USER:KEY, as psktool makes them", OPT_TEXT, SERVE(tls_psk),
          .complete = OPT_COMPLETE_FILE },
        { "connections", "N", "so many NBD clients at a time; more have to wait", OPT_NUMBER, SERVE(connections), .fallback = "16", .min = 1, .max = 1000 },
        { "filter", "NAME[:KEY=VALUE]...", "put a filter in front of the image: throttle, fault, copy-on-read, checksum:file=FILE", OPT_CALL,
          .call = add_filter, .repeated = true },
        { "job", "WORDS", "begin a job on the disk when clients can come: 'stream', 'commit', 'mirror FILE pivot', 'backup FILE bitmap=NAME', 'resize SIZE', …",
          OPT_TEXT, SERVE(job) },
        { "once", NULL, "end when the last client has left", OPT_FLAG, SERVE(once) },
        { "pid-file", "FILE", "write the number of the process there when clients can come", OPT_TEXT, SERVE(pid_file), .complete = OPT_COMPLETE_FILE },
        { "json", NULL, "print JSON", OPT_FLAG, SERVE(json) },
        DISK_ALLOW_OPTION(struct serve_args),
        DISK_SECRET_OPTION(struct serve_args),
        { 0 },
};

static const struct opt serve_operands[] = {
        { NULL, "FILE", "the image", OPT_TEXT, SERVE(path), .required = true, .complete = OPT_COMPLETE_FILE },
        { 0 },
};

static const struct opt_note serve_notes[] = {
        { "virta disk serve root.qcow2 --nbd unix:/run/root.sock", "to programs of this machine" },
        { "virta disk serve root.qcow2 --nbd tcp:0.0.0.0:10809 --tls /etc/pki/nbd", "to other machines" },
        { "virta disk serve root.qcow2 --fuse root.img", "to programs that want a file" },
        { "virta disk serve root.qcow2 --vhost-user /run/root.vhost", "to a virtual machine, QEMU's for one" },
        { "nbdcopy -- [ virta disk serve root.qcow2 --read-only ] copy.raw", "to one program, which starts it" },
        { 0 },
};

static const struct opt_section serve_sections[] = { { "Examples", NULL, serve_notes }, { 0 } };

const struct opt_command disk_serve_table = {
        .name = "disk serve",
        .summary = "give a disk to other programs and machines",
        .description = "Serves an image of any format over NBD, as a file, as a device of another program's virtual machine, or all of these. A line on standard output says when clients can come, and where to. "
                       "SIGTERM, SIGINT and SIGHUP end it: what clients have asked for is answered and written back first. "
                       "Sockets that systemd has opened are used when no other place is named.",
        .options = serve_options,
        .operands = serve_operands,
        .sections = serve_sections,
};

static void serve_prepare(void *into)
{
        struct serve_args *args = into;

        args->connections = 16;
        args->queues = 4;
        args->export_name = "";
}

/* ---- a server's life ---- */

#define SIGNALS 3

struct serving {
        const struct serve_args *args;
        struct disk_session *session;
        struct block *disk, *handle; /* with filters in front, and without */
        struct nbd_tls *tls;
        struct nbd_server *server;
        uv_signal_t signal[SIGNALS];
        unsigned signals;
        struct fuse_export *fuse;
        struct vhost_user_server *vhost_user;
        struct block_bitmap *bitmap[NBD_BITMAPS_MAX];
        unsigned bitmaps;
        bool stopped, stdio, pid_written, fuse_ended, nbd;
        char *socket_path[ADDRESSES_MAX + 1]; /* and that of vhost-user */
        unsigned sockets;
        json_t *places;
};

static void batch(void *ctx)
{
        struct serving *serving = ctx;

        nbd_server_batch(serving->server);
        if (serving->vhost_user)
                vhost_user_server_batch(serving->vhost_user);
}

static void stop(struct serving *serving)
{
        if (serving->vhost_user)
                vhost_user_server_stop(serving->vhost_user);
        nbd_server_stop(serving->server);
        if (serving->fuse)
                fuse_export_stop(serving->fuse);
}

static void left(void *ctx, unsigned clients)
{
        struct serving *serving = ctx;

        if (!clients && (serving->args->once || serving->stdio))
                stop(serving);
}

static void front_end_left(void *ctx)
{
        struct serving *serving = ctx;

        if (serving->args->once)
                stop(serving);
}

static void trouble(void *ctx, const struct err *err)
{
        log_guest("a client was left: %s", err->text);
}

static void stopped(void *ctx)
{
        struct serving *serving = ctx;

        serving->stopped = true;
        uv_stop(&serving->session->loop);
}

/* Unmounted, by us or by others: then the rest may go on alone. */
static void fuse_ended(void *ctx)
{
        struct serving *serving = ctx;

        serving->fuse_ended = true;
        if (!serving->nbd && !serving->vhost_user)
                nbd_server_stop(serving->server);
        uv_stop(&serving->session->loop);
}

static void signalled(uv_signal_t *handle, int number)
{
        stop(handle->data);
}

static void watch_signals(struct serving *serving)
{
        static const int numbers[SIGNALS] = { SIGTERM, SIGINT, SIGHUP };

        for (; serving->signals < SIGNALS; serving->signals++) {
                uv_signal_t *handle = &serving->signal[serving->signals];

                if (uv_signal_init(&serving->session->loop, handle) < 0)
                        return;
                handle->data = serving;
                uv_signal_start(handle, signalled, numbers[serving->signals]);
        }
}

/* ---- where clients come in ---- */

/* One that nobody listens on any more is in the way: it is taken away. */
static void remove_dead_socket(const struct sockaddr_un *address)
{
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        struct stat st;

        if (fd < 0)
                return;
        if (lstat(address->sun_path, &st) == 0 && S_ISSOCK(st.st_mode) && connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 &&
            errno == ECONNREFUSED)
                (void)unlink(address->sun_path);
        close(fd);
}

static int add_place(struct serving *serving, const char *fmt, ...) _printf_(2, 3);

static int add_place(struct serving *serving, const char *fmt, ...)
{
        _cleanup_free_ char *text = NULL;
        va_list args;
        int r;

        va_start(args, fmt);
        r = vasprintf(&text, fmt, args);
        va_end(args);
        return r >= 0 && json_array_append_new(serving->places, json_string(text)) == 0 ? 0 : -ENOMEM;
}

/* For this user alone: the socket's mode is all that protects it. */
static int bind_unix(struct serving *serving, const char *path, int *out, struct err *err)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd, r;
        mode_t mask;

        if (!*path || !text_copy(address.sun_path, sizeof(address.sun_path), path))
                return err_set(err, -ENAMETOOLONG, "unix:%s: the path of a socket has 1 to %zu bytes", path, sizeof(address.sun_path) - 1);
        remove_dead_socket(&address);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return err_errno(err, -errno, "cannot make a socket");
        mask = umask(0177);
        r = bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
        umask(mask);
        if (r == 0) {
                serving->socket_path[serving->sockets] = strdup(path);
                serving->sockets++;
                r = listen(fd, BACKLOG) < 0 ? -errno : 0;
        }
        if (r < 0) {
                close(fd);
                return err_errno(err, r, "cannot listen on unix:%s", path);
        }
        *out = fd;
        return 0;
}

static int listen_unix(struct serving *serving, const char *path, struct err *err)
{
        int fd, r = bind_unix(serving, path, &fd, err);

        if (r == 0)
                r = nbd_server_listen(serving->server, fd, err);
        if (r < 0)
                return r;
        return add_place(serving, "nbd%s+unix:///%s?socket=%s", serving->tls ? "s" : "", serving->args->export_name, path) < 0 ? err_nomem(err) : 0;
}

static int add_tcp_place(struct serving *serving, int fd)
{
        char host[NI_MAXHOST], port[NI_MAXSERV];
        struct sockaddr_storage address;
        socklen_t size_bytes = sizeof(address);
        bool six;

        if (getsockname(fd, (struct sockaddr *)&address, &size_bytes) < 0)
                return -errno;
        if (getnameinfo((struct sockaddr *)&address, size_bytes, host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV))
                return -EINVAL;
        six = strchr(host, ':');
        return add_place(serving, "nbd%s://%s%s%s:%s/%s", serving->tls ? "s" : "", six ? "[" : "", host, six ? "]" : "", port, serving->args->export_name);
}

static int listen_address(struct serving *serving, const struct addrinfo *info, const char *text, struct err *err)
{
        int one = 1, fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, info->ai_protocol), r;

        if (fd < 0)
                return err_errno(err, -errno, "cannot make a socket for tcp:%s", text);
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
        if (info->ai_family == AF_INET6)
                (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
        if (bind(fd, info->ai_addr, info->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0) {
                r = err_errno(err, -errno, "cannot listen on tcp:%s", text);
                close(fd);
                return r;
        }
        r = add_tcp_place(serving, fd);
        if (r < 0) {
                close(fd);
                return err_errno(err, r, "tcp:%s", text);
        }
        return nbd_server_listen(serving->server, fd, err);
}

/* HOST:PORT, HOST in brackets when it has colons; without HOST all addresses of the machine, without PORT that of NBD. */
static int listen_tcp(struct serving *serving, const char *text, struct err *err)
{
        const struct addrinfo hints = { .ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM };
        _cleanup_free_ char *host = strdup(text);
        const char *name = host, *port = NBD_PORT;
        struct addrinfo *list, *info;
        char *colon;
        int r;

        if (!host)
                return err_nomem(err);
        colon = strrchr(host, ':');
        if (colon && !strchr(colon, ']')) {
                *colon = '\0';
                port = colon[1] ? colon + 1 : NBD_PORT;
        }
        if (*name == '[' && strlen(name) > 2 && name[strlen(name) - 1] == ']') {
                host[strlen(host) - 1] = '\0';
                name++;
        }
        r = getaddrinfo(*name && strcmp(name, "*") ? name : NULL, port, &hints, &list);
        if (r)
                return err_set(err, -EINVAL, "tcp:%s: %s", text, gai_strerror(r));
        r = 0;
        for (info = list; info && r == 0; info = info->ai_next) {
                r = listen_address(serving, info, text, err);
                if (r == -EAFNOSUPPORT && info->ai_next) /* a machine without IPv6 */
                        r = 0;
                if (!strcmp(port, "0"))
                        break; /* another address would get another port */
        }
        freeaddrinfo(list);
        return r;
}

/* sd_listen_fds(3): the descriptors from 3 on, when they are meant for this process. */
static unsigned systemd_sockets(void)
{
        const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
        uint64_t number, count;

        if (!pid || !fds || number_parse(pid, 1, INT32_MAX, &number, NULL) < 0 || number != (uint64_t)getpid() ||
            number_parse(fds, 1, ADDRESSES_MAX, &count, NULL) < 0)
                return 0;
        return (unsigned)count;
}

static int take_systemd(struct serving *serving, struct err *err)
{
        unsigned count = systemd_sockets();
        int r = 0;

        if (!count)
                return err_set(err, -ENOTSOCK, "systemd: it has opened no sockets for this process (LISTEN_FDS, LISTEN_PID)");
        for (int fd = SYSTEMD_FIRST_FD; fd < SYSTEMD_FIRST_FD + (int)count && r == 0; fd++) {
                int listens = 0;
                socklen_t size_bytes = sizeof(listens);

                if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size_bytes) < 0)
                        return err_errno(err, -errno, "systemd: descriptor %d", fd);
                (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
                (void)fcntl(fd, F_SETFL, O_NONBLOCK);
                r = listens ? nbd_server_listen(serving->server, fd, err) : nbd_server_connect(serving->server, fd, fd, err);
                if (r == 0 && add_place(serving, "systemd:%d", fd) < 0)
                        r = err_nomem(err);
        }
        return r;
}

/* Copies, since something else may still be written to the standard ones. */
static int take_stdio(struct serving *serving, struct err *err)
{
        int in = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1), out = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1), r;

        if (in < 0 || out < 0) {
                r = -errno;
                closep(&in);
                closep(&out);
                return err_errno(err, r, "stdio");
        }
        serving->stdio = true;
        r = nbd_server_connect(serving->server, in, out, err);
        return r < 0 ? err_wrap(err, r, "stdio") : 0;
}

static int open_address(struct serving *serving, const char *address, struct err *err)
{
        if (!strcmp(address, "stdio"))
                return take_stdio(serving, err);
        if (!strcmp(address, "systemd"))
                return take_systemd(serving, err);
        return !strncmp(address, "unix:", 5) ? listen_unix(serving, address + 5, err) : listen_tcp(serving, address + 4, err);
}

static int open_addresses(struct serving *serving, struct err *err)
{
        const struct serve_args *args = serving->args;
        int r = 0;

        for (unsigned n = 0; n < args->addresses && r == 0; n++)
                r = open_address(serving, args->address[n], err);
        if (!args->addresses && !args->fuse && !args->vhost_user)
                r = take_systemd(serving, err);
        serving->nbd = args->addresses || (!args->fuse && !args->vhost_user);
        return r;
}

static int open_fuse(struct serving *serving, struct err *err)
{
        const struct fuse_export_config config = {
                .disk = serving->disk, .path = serving->args->fuse, .readonly = serving->args->readonly, .ended = fuse_ended, .ctx = serving,
        };
        int r = fuse_export_new(&serving->session->loop, &config, &serving->fuse, err);

        return r == 0 && add_place(serving, "%s", serving->args->fuse) < 0 ? err_nomem(err) : r;
}

static int open_vhost_user(struct serving *serving, struct err *err)
{
        const struct serve_args *args = serving->args;
        const struct vhost_user_config config = {
                .disk = serving->disk, .serial = args->serial ? args->serial : "virta", .queues = args->queues, .left = front_end_left,
                .trouble = trouble, .ctx = serving,
        };
        int fd, r = vhost_user_server_new(&serving->session->loop, &config, &serving->vhost_user, err);

        /* The device has taken it. */
        block_set_listener(serving->disk, batch, serving);
        if (r == 0)
                r = bind_unix(serving, args->vhost_user, &fd, err);
        if (r == 0)
                r = vhost_user_server_listen(serving->vhost_user, fd, err);
        if (r == 0 && add_place(serving, "vhost-user:%s", args->vhost_user) < 0)
                r = err_nomem(err);
        return r;
}

/* ---- ready ---- */

static int write_pid(const char *path, struct err *err)
{
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), r = 0;

        if (fd < 0)
                return err_errno(err, -errno, "cannot write %s", path);
        if (dprintf(fd, "%d\n", (int)getpid()) < 0)
                r = err_errno(err, -errno, "cannot write %s", path);
        if (close(fd) < 0 && r == 0)
                r = err_errno(err, -errno, "cannot write %s", path);
        return r;
}

/* sd_notify(3). That nobody listens is no error. */
static void notify_systemd(void)
{
        const char *path = getenv("NOTIFY_SOCKET"), text[] = "READY=1";
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd;

        if (!path || (*path != '/' && *path != '@') || !text_copy(address.sun_path, sizeof(address.sun_path), path))
                return;
        if (*path == '@')
                address.sun_path[0] = '\0';
        fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (fd < 0)
                return;
        (void)!sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path)));
        close(fd);
}

static int print_ready(struct serving *serving, struct err *err)
{
        char size[SIZE_TEXT_MAX], path[1024];
        json_t *about, *place;
        size_t n;
        int r = 0;

        if (serving->args->json) {
                about = json_pack("{s:s, s:s, s:I, s:b, s:i, s:O}", "file", serving->args->path, "export", serving->args->export_name, "size_bytes",
                                  (json_int_t)serving->disk->info.size_bytes, "read_only", serving->args->readonly, "pid", (int)getpid(), "places",
                                  serving->places);
                r = about ? json_write(about, STDOUT_FILENO, err) : err_nomem(err);
                json_decref(about);
                return r;
        }
        text_escape(serving->args->path, strlen(serving->args->path), path, sizeof(path));
        json_array_foreach(serving->places, n, place)
                printf("%s, %s: ready at %s\n", path, size_about(serving->disk->info.size_bytes, size), json_string_value(place));
        return cli_flush() == CLI_OK ? 0 : err_set(err, -EIO, "nobody can be told that it is ready");
}

static int be_ready(struct serving *serving, struct err *err)
{
        int r = serving->args->pid_file ? write_pid(serving->args->pid_file, err) : 0;

        serving->pid_written = serving->args->pid_file && r == 0;
        if (r == 0 && !serving->stdio)
                r = print_ready(serving, err);
        if (r == 0)
                notify_systemd();
        return r;
}

/* ---- the command ---- */

static int check_args(const struct serve_args *args, struct err *err)
{
        bool stdio = false;

        for (unsigned n = 0; n < args->addresses; n++)
                stdio |= !strcmp(args->address[n], "stdio");
        if (!args->addresses && !args->fuse && !args->vhost_user && !systemd_sockets())
                return err_set(err, -EINVAL, "where to? --nbd unix:PATH, --nbd tcp:HOST:PORT, --vhost-user PATH or --fuse FILE says it");
        if (args->serial && strlen(args->serial) > 20)
                return err_set(err, -EINVAL, "--serial '%s' is longer than 20 bytes", args->serial);
        if (stdio && args->addresses > 1)
                return err_set(err, -EINVAL, "--nbd stdio goes with no other address");
        if (stdio && args->secret && !strcmp(args->secret, "-"))
                return err_set(err, -EINVAL, "--secret -: with --nbd stdio standard input is the client's");
        if (args->tls && args->tls_psk)
                return err_set(err, -EINVAL, "--tls and --tls-psk: one of them");
        if (args->tls_anyone && !args->tls)
                return err_set(err, -EINVAL, "--tls-anyone goes with --tls");
        return 0;
}

static int open_tls(struct serving *serving, struct err *err)
{
        const struct serve_args *args = serving->args;
        const struct nbd_tls_files files = { .server = true, .directory = args->tls, .keys = args->tls_psk, .anyone = args->tls_anyone };

        return args->tls || args->tls_psk ? nbd_tls_new(&files, &serving->tls, err) : 0;
}

static int find_bitmaps(struct serving *serving, struct err *err)
{
        const struct serve_args *args = serving->args;

        for (; serving->bitmaps < args->bitmaps; serving->bitmaps++) {
                int r = block_bitmap_get(block_disk_image(serving->handle), args->bitmap[serving->bitmaps], true, &serving->bitmap[serving->bitmaps], err);

                if (r < 0)
                        return r;
                serving->bitmap[serving->bitmaps]->users++;
        }
        return 0;
}

static void job_over(struct block_job *job, void *ctx, int result, const struct err *why)
{
        struct serving *serving = ctx;

        if (result == 0 && job->config.kind == BLOCK_JOB_RESIZE && serving->vhost_user)
                vhost_user_server_resized(serving->vhost_user);
        if (result < 0)
                log_error("%s", why->text);
        else
                log_info("%s of disk %s: done", block_job_name(job->config.kind), job->disk->path);
}

static int start_job(struct serving *serving, struct err *err)
{
        struct block_job_config config = { .disk = serving->handle, .done = job_over, .ctx = serving };

        return serving->args->job ? block_job_start_text(&config, serving->args->job, NULL, err) : 0;
}

static int serve(struct serving *serving, struct err *err)
{
        const struct serve_args *args = serving->args;
        struct nbd_server_config config = {
                .disk = serving->disk, .export_name = args->export_name, .description = args->description, .readonly = args->readonly,
                .connections_max = args->connections, .left = left, .trouble = trouble, .stopped = stopped, .ctx = serving,
        };
        int r = open_tls(serving, err);

        config.tls = serving->tls;
        if (r == 0)
                r = find_bitmaps(serving, err);
        config.bitmap = serving->bitmap;
        config.bitmaps = serving->bitmaps;
        if (r == 0)
                r = nbd_server_new(&serving->session->loop, &config, &serving->server, err);
        if (r < 0)
                return r;
        block_set_listener(serving->disk, batch, serving);
        watch_signals(serving);
        r = open_addresses(serving, err);
        if (r == 0 && args->vhost_user)
                r = open_vhost_user(serving, err);
        if (r == 0 && args->fuse)
                r = open_fuse(serving, err);
        if (r == 0)
                r = start_job(serving, err);
        if (r == 0)
                r = be_ready(serving, err);
        if (r < 0)
                stop(serving);
        while (!serving->stopped || (serving->fuse && !serving->fuse_ended))
                uv_run(&serving->session->loop, UV_RUN_DEFAULT);
        block_job_end(serving->handle, &serving->session->loop);
        return r;
}

static void close_all(struct serving *serving)
{
        for (unsigned n = 0; n < serving->signals; n++)
                uv_close((uv_handle_t *)&serving->signal[n], NULL);
        for (unsigned n = 0; n < serving->sockets; n++) {
                if (serving->socket_path[n])
                        (void)unlink(serving->socket_path[n]);
                free(serving->socket_path[n]);
        }
        if (serving->pid_written)
                (void)unlink(serving->args->pid_file);
        json_decref(serving->places);
        uv_run(&serving->session->loop, UV_RUN_NOWAIT);
        fuse_export_free(serving->fuse);
        vhost_user_server_free(serving->vhost_user);
        nbd_server_free(serving->server);
        nbd_tls_free(serving->tls);
}

/* The image, a node that jobs may put others behind, and filters. */
static int open_image(struct serving *serving, struct err *err)
{
        const struct serve_args *args = serving->args;
        unsigned flags = (args->readonly ? BLOCK_OPEN_READONLY : 0) | (args->any_backing ? BLOCK_OPEN_ANY_BACKING : 0);
        struct block *image;
        int r = disk_open(serving->session, args->path, args->format, flags, &image, err);

        if (r < 0)
                return r;
        r = block_disk_new(image, &serving->handle, err);
        if (r < 0) {
                disk_close(serving->session, image);
                return r;
        }
        r = block_filters_new(serving->handle, args->filter, args->filters, &serving->disk, err);
        if (r < 0)
                disk_close(serving->session, serving->handle);
        return r;
}

static int serve_work(struct disk_session *session, void *into, struct err *err)
{
        struct serve_args *args = into;
        struct serving serving = { .args = args, .session = session, .places = json_array() };
        int r = check_args(args, err);

        if (r == 0 && !serving.places)
                r = err_nomem(err);
        session->secret = args->secret;
        if (r == 0)
                r = open_image(&serving, err);
        if (r < 0) {
                json_decref(serving.places);
                return r;
        }
        r = serve(&serving, err);
        block_set_listener(serving.disk, NULL, NULL);
        for (unsigned n = 0; n < serving.bitmaps; n++)
                serving.bitmap[n]->users--;
        if (r == 0 && !args->readonly) {
                r = block_finish(serving.disk, err);
                if (r == 0 && block_flush(serving.disk) < 0)
                        r = err_set(err, -EIO, "disk %s: the last of it could not be written", args->path);
        }
        close_all(&serving);
        disk_close(session, serving.disk);
        return r;
}

static int serve_run(void *into)
{
        return disk_command(serve_work, into);
}

const struct cli_command cli_disk_serve = {
        .table = &disk_serve_table, .args_size = sizeof(struct serve_args), .run = serve_run, .prepare = serve_prepare,
};
