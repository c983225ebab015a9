/*
 * See fuse.h. The kernel's side of the protocol is linux/fuse.h, 7.31; its words come one message a read from /dev/fuse, and answers go by one
 * write each.
 *
 *   readable ─▶ messages, until there are no more ─▶ submitted to the disk, kicked once ─▶ done: answered
 *
 * Steps that wait (zeroes, looking for holes) are fibers'. Mounting takes root, or fusermount3, which hands over the descriptor.
 */
#include "block/export/fuse.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/fiber.h"

#define DEVICE "/dev/fuse"
#define HELPER "fusermount3"
#define MINOR_MIN 23u
#define MINOR 31u
#define DATA_BYTES (UINT32_C(1) << 20) /* of a read or a write */
#define HEAD_BYTES 4096u               /* room for the rest of a message */
#define MESSAGES 64u                   /* at one go */
#define BACKGROUND 64u
#define SPARES_MAX 16u
#define ZEROES_BYTES (UINT32_C(1) << 20)
#define ATTR_S 1

struct message {
        struct block_request req;
        struct fuse_export *export;
        struct message *next;
        struct iovec iov;
        struct fuse_in_header head;
        size_t size_bytes;
        uint8_t *bytes; /* HEAD_BYTES + DATA_BYTES: the message, then a read's data */
};

struct fuse_export {
        struct fuse_export_config config;
        struct block *disk;
        char *path;
        int fd;
        bool readonly, made, mounted, by_helper, over, stopping, told;
        uv_poll_t poll;
        uv_idle_t idle; /* has ended() called from the loop */
        unsigned handles, in_flight;
        struct message *spare;
        unsigned spares;
};

static void tell_ended(uv_idle_t *idle);

/* ---- answers ---- */

static void maybe_ended(struct fuse_export *export)
{
        if (export->over && !export->in_flight && !export->told) {
                export->told = true;
                uv_idle_start(&export->idle, tell_ended);
        }
}

static void message_free(struct message *message)
{
        struct fuse_export *export = message->export;

        export->in_flight--;
        if (export->spares < SPARES_MAX) {
                message->next = export->spare;
                export->spare = message;
                export->spares++;
        } else {
                free(message->bytes);
                free(message);
        }
        maybe_ended(export);
}

/* error: -errno. A message that nobody waits for any more has no answer: ENOENT. */
static void answer(struct message *message, int error, const void *bytes, size_t size_bytes)
{
        struct fuse_out_header head = { .len = (uint32_t)(sizeof(head) + (error ? 0 : size_bytes)), .error = error, .unique = message->head.unique };
        const struct iovec iov[2] = { { &head, sizeof(head) }, { (void *)bytes, size_bytes } };

        while (writev(message->export->fd, iov, error || !size_bytes ? 1 : 2) < 0 && errno == EINTR)
                ;
        message_free(message);
}

static void plain_done(struct block_request *req, int result)
{
        answer(container_of(req, struct message, req), result == -EOPNOTSUPP ? -EOPNOTSUPP : result < 0 ? result : 0, NULL, 0);
}

static void read_done(struct block_request *req, int result)
{
        struct message *message = container_of(req, struct message, req);

        answer(message, result < 0 ? result : 0, message->bytes, message->iov.iov_len);
}

static void write_done(struct block_request *req, int result)
{
        const struct fuse_write_out out = { .size = (uint32_t)req->size_bytes };

        answer(container_of(req, struct message, req), result < 0 ? result : 0, &out, sizeof(out));
}

/* ---- messages ---- */

static void fill_attr(const struct fuse_export *export, struct fuse_attr *attr)
{
        *attr = (struct fuse_attr){
                .ino = FUSE_ROOT_ID,
                .size = export->disk->info.size_bytes,
                .blocks = export->disk->info.size_bytes / 512,
                .mode = S_IFREG | (export->readonly ? 0400 : 0600),
                .nlink = 1,
                .uid = getuid(),
                .gid = getgid(),
                .blksize = 4096,
        };
}

static void get_attr(struct message *message)
{
        struct fuse_attr_out out = { .attr_valid = ATTR_S };

        fill_attr(message->export, &out.attr);
        answer(message, 0, &out, sizeof(out));
}

/* Times may be set, as far as anybody cares; the size is what it is. */
static void set_attr(struct message *message, const struct fuse_setattr_in *in)
{
        if ((in->valid & FATTR_SIZE && in->size != message->export->disk->info.size_bytes) || in->valid & (FATTR_MODE | FATTR_UID | FATTR_GID))
                answer(message, -EPERM, NULL, 0);
        else
                get_attr(message);
}

static void init(struct message *message, const struct fuse_init_in *in)
{
        struct fuse_init_out out = {
                .major = FUSE_KERNEL_VERSION,
                .minor = MINOR,
                .max_readahead = in->max_readahead,
                .flags = in->flags & (FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_MAX_PAGES),
                .max_background = BACKGROUND,
                .congestion_threshold = BACKGROUND * 3 / 4,
                .max_write = DATA_BYTES,
                .time_gran = 1,
                .max_pages = DATA_BYTES / 4096,
        };

        if (in->major < FUSE_KERNEL_VERSION || (in->major == FUSE_KERNEL_VERSION && in->minor < MINOR_MIN))
                answer(message, -EPROTO, NULL, 0);
        else
                answer(message, 0, &out, sizeof(out));
}

static void open_file(struct message *message, const struct fuse_open_in *in)
{
        const struct fuse_open_out out = { .open_flags = FOPEN_KEEP_CACHE };

        if (message->export->readonly && (in->flags & O_ACCMODE) != O_RDONLY)
                answer(message, -EROFS, NULL, 0);
        else
                answer(message, 0, &out, sizeof(out));
}

static void submit(struct message *message, enum block_op op, uint64_t offset, uint64_t size_bytes, uint8_t *bytes,
                   void (*done)(struct block_request *req, int result))
{
        message->iov = (struct iovec){ bytes, size_bytes };
        message->req = (struct block_request){
                .op = op, .offset_bytes = offset, .size_bytes = size_bytes, .iov = bytes ? &message->iov : NULL, .iov_count = bytes ? 1 : 0, .done = done,
        };
        block_submit(message->export->disk, &message->req);
}

static void read_file(struct message *message, const struct fuse_read_in *in)
{
        uint64_t end = message->export->disk->info.size_bytes, offset = in->offset, size_bytes = MIN(in->size, DATA_BYTES);

        if (offset >= end || !size_bytes) {
                answer(message, 0, NULL, 0);
                return;
        }
        submit(message, BLOCK_READ, offset, MIN(size_bytes, end - offset), message->bytes, read_done);
}

static void write_file(struct message *message, const struct fuse_write_in *in)
{
        uint64_t end = message->export->disk->info.size_bytes, offset = in->offset, size_bytes = in->size;

        if (message->export->readonly)
                answer(message, -EROFS, NULL, 0);
        else if (size_bytes > message->size_bytes - sizeof(struct fuse_in_header) - sizeof(*in))
                answer(message, -EINVAL, NULL, 0);
        else if (offset >= end)
                answer(message, -ENOSPC, NULL, 0);
        else
                submit(message, BLOCK_WRITE, offset, MIN(size_bytes, end - offset), message->bytes + sizeof(struct fuse_in_header) + sizeof(*in), write_done);
}

/* ---- in fibers ---- */

static void zero_work(void *arg)
{
        struct message *message = arg;
        const struct fuse_fallocate_in in = *(const struct fuse_fallocate_in *)(message->bytes + sizeof(struct fuse_in_header));
        struct block *disk = message->export->disk;
        uint64_t end = disk->info.size_bytes, at = in.offset, to = at < end ? at + MIN(in.length, end - at) : at;
        unsigned flags = in.mode & FALLOC_FL_PUNCH_HOLE ? BLOCK_F_UNMAP : 0;
        int r = 0;

        while (r == 0 && at < to) {
                uint64_t some = MIN(to - at, (uint64_t)MAX(disk->info.zeroes_bytes, ZEROES_BYTES));

                r = block_do(disk, BLOCK_WRITE_ZEROES, flags, at, some, NULL, 0);
                at += some;
        }
        answer(message, r < 0 ? r : 0, NULL, 0);
}

static void seek_work(void *arg)
{
        struct message *message = arg;
        const struct fuse_lseek_in in = *(const struct fuse_lseek_in *)(message->bytes + sizeof(struct fuse_in_header));
        struct block *disk = message->export->disk;
        struct fuse_lseek_out out = { .offset = in.offset };
        uint64_t end = disk->info.size_bytes;
        int r = 0;

        while (out.offset < end) {
                struct block_extent extent;

                r = block_status_through(disk, out.offset, end - out.offset, &extent);
                if (r < 0 || extent.zero == (in.whence == SEEK_HOLE))
                        break;
                out.offset += extent.size_bytes;
        }
        if (r == 0 && out.offset >= end && in.whence == SEEK_DATA)
                r = -ENXIO;
        answer(message, r, &out, sizeof(out));
}

static void in_fiber(struct message *message, void (*work)(void *message))
{
        if (fiber_start(work, message) < 0)
                answer(message, -ENOMEM, NULL, 0);
}

static void fallocate_file(struct message *message, const struct fuse_fallocate_in *in)
{
        if (message->export->readonly)
                answer(message, -EROFS, NULL, 0);
        else if (in->mode != (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) && in->mode != (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE) &&
                 in->mode != FALLOC_FL_ZERO_RANGE)
                answer(message, -EOPNOTSUPP, NULL, 0);
        else
                in_fiber(message, zero_work);
}

static void seek_file(struct message *message, const struct fuse_lseek_in *in)
{
        if (in->whence != SEEK_DATA && in->whence != SEEK_HOLE)
                answer(message, -EINVAL, NULL, 0);
        else if (in->offset >= message->export->disk->info.size_bytes)
                answer(message, -ENXIO, NULL, 0);
        else
                in_fiber(message, seek_work);
}

static void stat_fs(struct message *message)
{
        const struct fuse_statfs_out out = {
                .st = { .blocks = message->export->disk->info.size_bytes / 512, .bsize = 512, .frsize = 512, .namelen = 255, .files = 1 },
        };

        answer(message, 0, &out, sizeof(out));
}

/* Whether the kernel sent the whole of the operation's struct. */
static bool has(const struct message *message, size_t size_bytes)
{
        return message->size_bytes >= sizeof(struct fuse_in_header) + size_bytes;
}

static void act(struct message *message)
{
        const void *in = message->bytes + sizeof(struct fuse_in_header);

#define CALL(type, fn)                                     \
        if (has(message, sizeof(type)))                    \
                fn(message, (const type *)in);             \
        else                                               \
                answer(message, -EIO, NULL, 0);            \
        break

        switch (message->head.opcode) {
        case FUSE_INIT: CALL(struct fuse_init_in, init);
        case FUSE_GETATTR: get_attr(message); break;
        case FUSE_SETATTR: CALL(struct fuse_setattr_in, set_attr);
        case FUSE_OPEN: CALL(struct fuse_open_in, open_file);
        case FUSE_READ: CALL(struct fuse_read_in, read_file);
        case FUSE_WRITE: CALL(struct fuse_write_in, write_file);
        case FUSE_FALLOCATE: CALL(struct fuse_fallocate_in, fallocate_file);
        case FUSE_LSEEK: CALL(struct fuse_lseek_in, seek_file);
        case FUSE_STATFS: stat_fs(message); break;
        case FUSE_FSYNC:
                if (message->export->readonly)
                        answer(message, 0, NULL, 0);
                else
                        submit(message, BLOCK_FLUSH, 0, 0, NULL, plain_done);
                break;
        case FUSE_FLUSH:
        case FUSE_RELEASE:
        case FUSE_DESTROY: answer(message, 0, NULL, 0); break;
        case FUSE_LOOKUP: answer(message, -ENOENT, NULL, 0); break;
        case FUSE_FORGET:
        case FUSE_BATCH_FORGET:
        case FUSE_INTERRUPT: message_free(message); break; /* these have no answer */
        default: answer(message, -ENOSYS, NULL, 0); break;
        }
#undef CALL
}

static struct message *message_new(struct fuse_export *export)
{
        struct message *message = export->spare;

        if (message) {
                export->spare = message->next;
                export->spares--;
        } else {
                message = malloc(sizeof(*message));
                if (message)
                        message->bytes = malloc(HEAD_BYTES + DATA_BYTES);
                if (!message || !message->bytes) {
                        free(message);
                        return NULL;
                }
        }
        message->export = export;
        export->in_flight++;
        return message;
}

static void gone(struct fuse_export *export)
{
        export->over = true;
        export->mounted = false;
        uv_poll_stop(&export->poll);
        maybe_ended(export);
}

/* false: there is nothing more. */
static bool take_message(struct fuse_export *export)
{
        struct message *message = message_new(export);
        ssize_t r;
        int error;

        if (!message)
                return false; /* what is in flight ends, and there is memory again */
        r = read(export->fd, message->bytes, HEAD_BYTES + DATA_BYTES);
        error = errno;
        if (r < (ssize_t)sizeof(message->head)) {
                message_free(message);
                if (r >= 0 || error == ENODEV)
                        gone(export);
                return r < 0 && (error == EINTR || error == ENOENT);
        }
        memcpy(&message->head, message->bytes, sizeof(message->head));
        message->size_bytes = (size_t)r;
        act(message);
        return true;
}

static void readable(uv_poll_t *poll, int status, int events)
{
        struct fuse_export *export = poll->data;
        unsigned n = 0;

        while (n < MESSAGES && !export->over && take_message(export))
                n++;
        block_kick(export->disk);
        block_reap(export->disk);
}

/* ---- mounting ---- */

static int options(const struct fuse_export *export, int fd, char *text, size_t size_bytes)
{
        int n = snprintf(text, size_bytes, "fd=%d,rootmode=100000,user_id=%u,group_id=%u,default_permissions,max_read=%u", fd, getuid(), getgid(), DATA_BYTES);

        return n < 0 || (size_t)n >= size_bytes ? -EINVAL : 0;
}

static int mount_directly(struct fuse_export *export)
{
        char text[160];
        int fd = open(DEVICE, O_RDWR | O_CLOEXEC | O_NONBLOCK), r;

        if (fd < 0)
                return -errno;
        r = options(export, fd, text, sizeof(text));
        if (r == 0 && mount("virta", export->path, "fuse.virta", MS_NOSUID | MS_NODEV | (export->readonly ? MS_RDONLY : 0), text) < 0)
                r = -errno;
        if (r < 0) {
                close(fd);
                return r;
        }
        export->fd = fd;
        return 0;
}

static int receive_fd(int socket)
{
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(sizeof(int))];
        } control;
        char byte;
        struct iovec iov = { &byte, 1 };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes) };
        struct cmsghdr *header;
        int fd;

        if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) <= 0)
                return -EPERM;
        header = CMSG_FIRSTHDR(&message);
        if (!header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS || header->cmsg_len != CMSG_LEN(sizeof(int)))
                return -EPERM;
        memcpy(&fd, CMSG_DATA(header), sizeof(fd));
        return fd;
}

/* Runs the helper; its descriptor `socket`, when not -1, is told to it. The exit status, or -errno. */
static int run_helper(const char *const *arguments, int socket)
{
        int status;
        pid_t child = fork();

        if (child < 0)
                return -errno;
        if (child == 0) {
                char number[16];

                snprintf(number, sizeof(number), "%d", socket);
                if (socket >= 0 && (setenv("_FUSE_COMMFD", number, 1) < 0 || fcntl(socket, F_SETFD, 0) < 0))
                        _exit(127);
                execvp(HELPER, (char *const *)arguments);
                _exit(127);
        }
        while (waitpid(child, &status, 0) < 0 && errno == EINTR)
                ;
        return WIFEXITED(status) ? WEXITSTATUS(status) : -EIO;
}

static int mount_by_helper(struct fuse_export *export, struct err *err)
{
        const char *const options = export->readonly ? "ro,default_permissions,fsname=virta,subtype=virta"
                                                     : "rw,default_permissions,fsname=virta,subtype=virta";
        const char *const arguments[] = { HELPER, "-o", options, "--", export->path, NULL };
        int pair[2], r;

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
                return err_errno(err, -errno, "cannot make a socket");
        r = run_helper(arguments, pair[0]);
        close(pair[0]);
        if (r == 0)
                export->fd = receive_fd(pair[1]);
        close(pair[1]);
        if (r == 127)
                return err_set(err, -EPERM, "%s: mounting takes root, or %s (Debian: fuse3)", export->path, HELPER);
        if (r != 0 || export->fd < 0)
                return err_set(err, -EPERM, "%s: %s could not mount it", export->path, HELPER);
        export->by_helper = true;
        return fcntl(export->fd, F_SETFL, O_NONBLOCK) < 0 ? -errno : 0;
}

static void unmount(struct fuse_export *export)
{
        const char *const arguments[] = { HELPER, "-u", "-z", "-q", "--", export->path, NULL };

        if (!export->mounted)
                return;
        export->mounted = false;
        if (export->by_helper)
                (void)run_helper(arguments, -1);
        else
                (void)umount2(export->path, MNT_DETACH);
}

static int mount_it(struct fuse_export *export, struct err *err)
{
        int r;

        if (access(DEVICE, F_OK) < 0)
                return err_set(err, -ENODEV, "%s: this machine has no %s (modprobe fuse; in a container it has to be handed in)", export->path, DEVICE);
        r = mount_directly(export);
        if ((r == -EPERM || r == -EACCES) && getuid())
                r = mount_by_helper(export, err);
        else if (r == -EPERM || r == -EACCES)
                return err_set(err, r, "%s: mounting is not allowed here (it takes CAP_SYS_ADMIN and %s)", export->path, DEVICE);
        else if (r < 0)
                return err_errno(err, r, "cannot mount %s", export->path);
        export->mounted = r == 0;
        return r;
}

/* The file that is mounted over. */
static int make_file(struct fuse_export *export, struct err *err)
{
        int fd = open(export->path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        struct stat st;

        if (fd >= 0) {
                export->made = true;
                close(fd);
                return 0;
        }
        if (errno != EEXIST)
                return err_errno(err, -errno, "cannot make %s", export->path);
        if (stat(export->path, &st) < 0)
                return err_errno(err, -errno, "%s", export->path);
        if (!S_ISREG(st.st_mode))
                return err_set(err, -EINVAL, "%s is no file that a disk could be put over", export->path);
        if (st.st_size)
                return err_set(err, -EEXIST, "%s is a file with something in it; an empty one, or a new name, is wanted", export->path);
        return 0;
}

/* ---- the object ---- */

static void tell_ended(uv_idle_t *idle)
{
        struct fuse_export *export = container_of(idle, struct fuse_export, idle);

        uv_idle_stop(idle);
        if (export->config.ended)
                export->config.ended(export->config.ctx);
}

void fuse_export_stop(struct fuse_export *export)
{
        if (export->stopping)
                return;
        export->stopping = true;
        unmount(export);
        /* Detached: what has it open goes on to use it. Closing the device ends that, once what is in flight is answered. */
        gone(export);
}

static void handle_closed(uv_handle_t *handle)
{
        struct fuse_export *export = handle->type == UV_POLL ? container_of((uv_poll_t *)handle, struct fuse_export, poll)
                                                             : container_of((uv_idle_t *)handle, struct fuse_export, idle);

        if (--export->handles == 0)
                free(export);
}

static void free_rest(struct fuse_export *export)
{
        unmount(export);
        if (export->fd >= 0)
                close(export->fd);
        if (export->made && export->path)
                (void)unlink(export->path);
        while (export->spare) {
                struct message *next = export->spare->next;

                free(export->spare->bytes);
                free(export->spare);
                export->spare = next;
        }
        free(export->path);
        if (!export->handles)
                free(export);
}

void fuse_export_free(struct fuse_export *export)
{
        if (!export)
                return;
        if (export->handles) {
                uv_close((uv_handle_t *)&export->idle, handle_closed);
                uv_close((uv_handle_t *)&export->poll, handle_closed);
        }
        free_rest(export);
}

int fuse_export_new(uv_loop_t *loop, const struct fuse_export_config *config, struct fuse_export **out, struct err *err)
{
        struct fuse_export *export = calloc(1, sizeof(*export));
        int r;

        if (!export)
                return err_nomem(err);
        export->config = *config;
        export->disk = config->disk;
        export->readonly = config->readonly || config->disk->info.readonly;
        export->fd = -1;
        export->path = strdup(config->path);
        r = export->path ? make_file(export, err) : err_nomem(err);
        if (r == 0)
                r = mount_it(export, err);
        if (r == 0) {
                r = uv_poll_init(loop, &export->poll, export->fd);
                if (r < 0)
                        r = err_set(err, r, "cannot wait for %s: %s", DEVICE, uv_strerror(r));
        }
        if (r < 0) {
                free_rest(export);
                return r;
        }
        uv_idle_init(loop, &export->idle);
        export->handles = 2;
        export->poll.data = export;
        uv_poll_start(&export->poll, UV_READABLE, readable);
        *out = export;
        return 0;
}
