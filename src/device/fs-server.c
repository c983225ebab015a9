/*
 * Requests of the file server: what was sent is copied once, checked, handed to the operation, and answered.
 *
 *   new ──INIT──▶ serving ──INIT, DESTROY──▶ everything forgotten, serving
 *
 * Before INIT everything but INIT is refused. Locks on files and mappings (DAX) are not offered: the client keeps locks itself.
 */
#include "device/fs-internal.h"

#include <errno.h>
#include <stdio.h>

#include "base/iov.h"

#define MINOR_MIN 31u /* the first with virtiofs (Linux 5.4) */
#define MAX_BACKGROUND 64
#define MAX_PAGES (FS_WRITE_MAX >> 12)
#define WANTED_FLAGS                                                                                                \
        (FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS |     \
         FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_HANDLE_KILLPRIV_V2 | FUSE_MAX_PAGES | \
         FUSE_CACHE_SYMLINKS)

size_t fs_room(const struct fs_request *rq)
{
        return rq->in_bytes - sizeof(struct fuse_out_header);
}

int fs_reply(struct fs_request *rq, const void *body, size_t size_bytes)
{
        if (size_bytes > fs_room(rq))
                return -ENOBUFS;
        buf_to_iov(rq->in, rq->in_count, sizeof(struct fuse_out_header), body, size_bytes);
        return (int)size_bytes;
}

const char *fs_arg_text(struct fs_request *rq, size_t max)
{
        const char *text = (const char *)rq->args.at;
        size_t length = strnlen(text, cursor_left(&rq->args));

        if (length > max || !cursor_take(&rq->args, length + 1))
                return NULL;
        return text;
}

const char *fs_arg_name(struct fs_request *rq, int *error)
{
        const char *name = fs_arg_text(rq, FS_ARGS_MAX);

        *error = -EINVAL;
        if (!name || !*name || strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
                return NULL;
        *error = -ENAMETOOLONG;
        return strlen(name) > NAME_MAX ? NULL : name;
}

static int op_init(struct fs_request *rq)
{
        struct fs_server *fs = rq->fs;
        struct fuse_init_out out = { .major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION };
        struct { uint32_t major, minor, max_readahead, flags; } in;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0)
                return -EINVAL;
        /* A newer major version asks again with ours. */
        if (in.major > FUSE_KERNEL_VERSION)
                return fs_reply(rq, &out, sizeof(out));
        if (in.major < FUSE_KERNEL_VERSION || in.minor < MINOR_MIN)
                return -EPROTO;
        fs_nodes_reset(fs);
        out.minor = MIN(in.minor, (uint32_t)FUSE_KERNEL_MINOR_VERSION);
        out.max_readahead = MIN(in.max_readahead, FS_WRITE_MAX);
        out.flags = in.flags & WANTED_FLAGS;
        out.max_background = MAX_BACKGROUND;
        out.congestion_threshold = MAX_BACKGROUND * 3 / 4;
        out.max_write = FS_WRITE_MAX;
        out.time_gran = 1;
        out.max_pages = MAX_PAGES;
        pthread_mutex_lock(&fs->lock);
        fs->minor = out.minor;
        fs->initialized = true;
        pthread_mutex_unlock(&fs->lock);
        return fs_reply(rq, &out, sizeof(out));
}

static int op_destroy(struct fs_request *rq)
{
        fs_nodes_reset(rq->fs);
        return 0;
}

static int op_forget(struct fs_request *rq)
{
        struct fuse_forget_in in;

        if (cursor_get(&rq->args, &in, sizeof(in)) == 0)
                fs_forget(rq->fs, rq->header.nodeid, in.nlookup);
        return 0;
}

static int op_batch_forget(struct fs_request *rq)
{
        struct fuse_batch_forget_in in;
        struct fuse_forget_one one;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0)
                return 0;
        while (in.count-- && cursor_get(&rq->args, &one, sizeof(one)) == 0)
                fs_forget(rq->fs, one.nodeid, one.nlookup);
        return 0;
}

/* Requests are short but for those that block in the host's file system, which cannot be called back. */
static int op_interrupt(struct fs_request *rq)
{
        return 0;
}

static int op_ioctl(struct fs_request *rq)
{
        return -ENOTTY;
}

#define CHANGES 1u  /* refused in a read-only share */
#define NO_REPLY 2u

static const struct operation {
        fs_op *op;
        unsigned flags;
} operations[] = {
        [FUSE_LOOKUP] = { fs_op_lookup, 0 },
        [FUSE_FORGET] = { op_forget, NO_REPLY },
        [FUSE_GETATTR] = { fs_op_getattr, 0 },
        [FUSE_SETATTR] = { fs_op_setattr, CHANGES },
        [FUSE_READLINK] = { fs_op_readlink, 0 },
        [FUSE_SYMLINK] = { fs_op_symlink, CHANGES },
        [FUSE_MKNOD] = { fs_op_mknod, CHANGES },
        [FUSE_MKDIR] = { fs_op_mkdir, CHANGES },
        [FUSE_UNLINK] = { fs_op_unlink, CHANGES },
        [FUSE_RMDIR] = { fs_op_rmdir, CHANGES },
        [FUSE_RENAME] = { fs_op_rename, CHANGES },
        [FUSE_LINK] = { fs_op_link, CHANGES },
        [FUSE_OPEN] = { fs_op_open, 0 },
        [FUSE_READ] = { fs_op_read, 0 },
        [FUSE_WRITE] = { fs_op_write, CHANGES },
        [FUSE_STATFS] = { fs_op_statfs, 0 },
        [FUSE_RELEASE] = { fs_op_release, 0 },
        [FUSE_FSYNC] = { fs_op_fsync, 0 },
        [FUSE_SETXATTR] = { fs_op_setxattr, CHANGES },
        [FUSE_GETXATTR] = { fs_op_getxattr, 0 },
        [FUSE_LISTXATTR] = { fs_op_listxattr, 0 },
        [FUSE_REMOVEXATTR] = { fs_op_removexattr, CHANGES },
        [FUSE_FLUSH] = { fs_op_flush, 0 },
        [FUSE_INIT] = { op_init, 0 },
        [FUSE_OPENDIR] = { fs_op_opendir, 0 },
        [FUSE_READDIR] = { fs_op_readdir, 0 },
        [FUSE_RELEASEDIR] = { fs_op_releasedir, 0 },
        [FUSE_FSYNCDIR] = { fs_op_fsyncdir, 0 },
        [FUSE_ACCESS] = { fs_op_access, 0 },
        [FUSE_CREATE] = { fs_op_create, CHANGES },
        [FUSE_INTERRUPT] = { op_interrupt, NO_REPLY },
        [FUSE_DESTROY] = { op_destroy, 0 },
        [FUSE_IOCTL] = { op_ioctl, 0 },
        [FUSE_BATCH_FORGET] = { op_batch_forget, NO_REPLY },
        [FUSE_FALLOCATE] = { fs_op_fallocate, CHANGES },
        [FUSE_READDIRPLUS] = { fs_op_readdirplus, 0 },
        [FUSE_RENAME2] = { fs_op_rename2, CHANGES },
        [FUSE_LSEEK] = { fs_op_lseek, 0 },
        [FUSE_COPY_FILE_RANGE] = { fs_op_copy_file_range, CHANGES },
        [FUSE_SYNCFS] = { fs_op_syncfs, 0 },
};

static int run(struct fs_request *rq, const struct operation *operation)
{
        if (!operation->op)
                return -ENOSYS;
        if (!rq->fs->initialized && rq->header.opcode != FUSE_INIT)
                return -EIO;
        if (operation->flags & CHANGES && rq->fs->readonly)
                return -EROFS;
        return operation->op(rq);
}

uint32_t fs_server_handle(struct fs_server *fs, const struct iovec *out, unsigned out_count, const struct iovec *in,
                          unsigned in_count)
{
        struct fs_request rq = { .fs = fs, .out = out, .in = in, .out_count = out_count, .in_count = in_count };
        struct operation operation = { 0 };
        struct fuse_out_header reply;
        uint8_t few[FS_ARGS_INLINE];
        _cleanup_free_ uint8_t *many = NULL;
        uint8_t *args = few;
        size_t sent = iov_total(out, out_count);
        size_t args_bytes;
        int r;

        if (iov_to_buf(out, out_count, 0, &rq.header, sizeof(rq.header)) < sizeof(rq.header))
                return 0;
        rq.in_bytes = iov_total(in, in_count);
        rq.out_bytes = rq.header.len;
        if (rq.header.opcode < ARRAY_SIZE(operations))
                operation = operations[rq.header.opcode];
        if (rq.in_bytes < sizeof(reply) && !(operation.flags & NO_REPLY))
                return 0;

        args_bytes = rq.out_bytes - sizeof(rq.header);
        if (rq.header.opcode == FUSE_WRITE)
                args_bytes = MIN(args_bytes, sizeof(struct fuse_write_in));
        if (rq.header.len < sizeof(rq.header) || rq.header.len > sent) {
                r = -EINVAL;
        } else if (args_bytes > FS_ARGS_MAX) {
                r = -E2BIG;
        } else if (args_bytes > sizeof(few) && !(args = many = malloc(args_bytes))) {
                r = -ENOMEM;
        } else {
                iov_to_buf(out, out_count, sizeof(rq.header), args, args_bytes);
                rq.args = cursor_from(args, args_bytes);
                r = run(&rq, &operation);
        }
        if (operation.flags & NO_REPLY || rq.in_bytes < sizeof(reply))
                return 0;
        if (r == -EMFILE)
                r = -ENFILE; /* it is not the limit of the guest's process that was met */
        reply = (struct fuse_out_header){
                .len = (uint32_t)sizeof(reply) + (r > 0 ? (uint32_t)r : 0), .error = r < 0 ? r : 0, .unique = rq.header.unique };
        buf_to_iov(in, in_count, 0, &reply, sizeof(reply));
        return reply.len;
}

int fs_server_new(const char *dir, bool readonly, struct fs_server **made, struct err *err)
{
        struct fs_server *fs = calloc(1, sizeof(*fs));
        int r;

        if (!fs)
                return err_nomem(err);
        pthread_mutex_init(&fs->lock, NULL);
        fs->readonly = readonly;
        /* Asked once: a sandbox keeps our own ids as they are, and may not let us ask again. */
        fs->own_uid = geteuid();
        fs->own_gid = getegid();
        fs->umask = umask(077);
        umask(fs->umask);
        fs->root_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (fs->root_fd < 0)
                r = err_errno(err, -errno, "cannot share directory '%s'", dir);
        else if (faccessat(fs->root_fd, ".", R_OK | X_OK, AT_EACCESS) < 0)
                r = err_errno(err, -errno, "cannot share directory '%s'", dir);
        else
                r = fs_nodes_init(fs, err);
        if (r < 0) {
                fs_server_free(fs);
                return r;
        }
        *made = fs;
        return 0;
}

void fs_server_free(struct fs_server *fs)
{
        if (!fs)
                return;
        fs_nodes_done(fs);
        closep(&fs->root_fd);
        pthread_mutex_destroy(&fs->lock);
        free(fs);
}

int fs_server_root(const struct fs_server *fs)
{
        return fs->root_fd;
}

void fs_server_reset(struct fs_server *fs)
{
        fs_nodes_reset(fs);
        fs->initialized = false;
}
