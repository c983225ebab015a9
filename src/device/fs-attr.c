/*
 * Attributes: of nodes, of the file system, and extended ones.
 *
 * Without /proc an O_PATH descriptor is good for statx, utimensat, fchownat, faccessat and readlinkat with AT_EMPTY_PATH; for
 * chmod only since Linux 6.6, and for extended attributes not at all. Those open the file for real (fs_node_open()).
 */
#include "device/fs-internal.h"

#include <endian.h>
#include <errno.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/xattr.h>

#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif

#define PERMISSIONS 07777u
#define PRIVILEGES (mode_t)(S_ISUID | S_ISGID)
#define XATTR_VALUE_MAX 65536u

/* The kernel's encoding of a device number: new_encode_dev(). */
static uint32_t encode_device(uint32_t major, uint32_t minor)
{
        return (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
}

/* What the guest sees of the host's users, see fs.h. */
static uint32_t show_uid(const struct fs_server *fs, uint32_t uid)
{
        if (fs->own_uid == 0)
                return uid;
        return uid == fs->own_uid ? 0 : uid == 0 ? FS_NOBODY : uid;
}

static uint32_t show_gid(const struct fs_server *fs, uint32_t gid)
{
        if (fs->own_gid == 0)
                return gid;
        return gid == fs->own_gid ? 0 : gid == 0 ? FS_NOBODY : gid;
}

static uint32_t host_uid(const struct fs_server *fs, uint32_t uid)
{
        return uid == 0 ? fs->own_uid : uid;
}

static uint32_t host_gid(const struct fs_server *fs, uint32_t gid)
{
        return gid == 0 ? fs->own_gid : gid;
}

void fs_attr_fill(const struct fs_server *fs, const struct statx *st, struct fuse_attr *attr)
{
        uint64_t device = (uint64_t)st->stx_dev_major << 32 | st->stx_dev_minor;

        *attr = (struct fuse_attr){
                .ino = st->stx_ino,
                .size = st->stx_size,
                .blocks = st->stx_blocks,
                .atime = (uint64_t)st->stx_atime.tv_sec,
                .mtime = (uint64_t)st->stx_mtime.tv_sec,
                .ctime = (uint64_t)st->stx_ctime.tv_sec,
                .atimensec = st->stx_atime.tv_nsec,
                .mtimensec = st->stx_mtime.tv_nsec,
                .ctimensec = st->stx_ctime.tv_nsec,
                .mode = st->stx_mode,
                .nlink = st->stx_nlink,
                .uid = show_uid(fs, st->stx_uid),
                .gid = show_gid(fs, st->stx_gid),
                .rdev = encode_device(st->stx_rdev_major, st->stx_rdev_minor),
                .blksize = st->stx_blksize,
        };
        /* Files of another file system mounted below may have the same numbers. */
        if (device != fs->root->device)
                attr->ino ^= (device * UINT64_C(0x9e3779b97f4a7c15)) & ~UINT64_C(0xffffffff);
}

void fs_entry_fill(const struct fs_server *fs, const struct fs_node *node, const struct statx *st, struct fuse_entry_out *entry)
{
        *entry = (struct fuse_entry_out){ .nodeid = fs_node_id(node), .entry_valid = FS_VALID_S, .attr_valid = FS_VALID_S };
        fs_attr_fill(fs, st, &entry->attr);
}

static int reply_attr(struct fs_request *rq, const struct fs_node *node)
{
        struct fuse_attr_out out = { .attr_valid = FS_VALID_S };
        struct statx st;
        int r = fs_statx(node->fd, &st);

        if (r < 0)
                return r;
        fs_attr_fill(rq->fs, &st, &out.attr);
        return fs_reply(rq, &out, sizeof(out));
}

int fs_op_getattr(struct fs_request *rq)
{
        struct fs_node *node;
        int r = fs_pin(rq->fs, rq->header.nodeid, &node);

        if (r < 0)
                return r;
        r = reply_attr(rq, node);
        fs_unpin(rq->fs, node);
        return r;
}

void fs_strip_privileges(int fd, const struct statx *st)
{
        /* Where this fails the process may not keep the bits either, and the kernel takes them away with the first write. */
        if (S_ISREG(st->stx_mode) && st->stx_mode & PRIVILEGES && fchmod(fd, st->stx_mode & PERMISSIONS & ~PRIVILEGES) < 0)
                return;
}

int fs_chmod(struct fs_server *fs, struct fs_node *node, mode_t mode)
{
        int fd, r = 0;

        mode &= PERMISSIONS;
        if (node->type != S_IFDIR)
                mode &= ~PRIVILEGES;
        if (syscall(SYS_fchmodat2, node->fd, "", mode, AT_EMPTY_PATH) == 0)
                return 0;
        /* A filter of system calls may answer EPERM to one that it does not know. */
        if (errno != ENOSYS && errno != EPERM && errno != EINVAL)
                return -errno;
        fd = fs_node_open(fs, node, O_RDONLY);
        if (fd == -EACCES)
                fd = fs_node_open(fs, node, O_WRONLY);
        if (fd < 0)
                return fd;
        if (fchmod(fd, mode) < 0)
                r = -errno;
        close(fd);
        return r;
}

static int set_size(struct fs_request *rq, struct fs_node *node, const struct fuse_setattr_in *in)
{
        struct fs_handle *handle = NULL;
        struct statx st;
        int fd, r;

        if (in->size > INT64_MAX)
                return -EFBIG;
        if (in->valid & FATTR_FH) {
                r = fs_handle_get(rq->fs, in->fh, false, &handle);
                if (r < 0)
                        return r;
                fd = handle->fd;
        } else {
                fd = fs_node_open(rq->fs, node, O_WRONLY);
                if (fd < 0)
                        return fd;
        }
        r = fs_statx(fd, &st);
        if (r == 0) {
                fs_strip_privileges(fd, &st);
                r = ftruncate(fd, (off_t)in->size) < 0 ? -errno : 0;
        }
        if (handle)
                fs_handle_put(rq->fs, handle);
        else
                close(fd);
        return r;
}

static struct timespec pick_time(uint32_t valid, uint32_t set, uint32_t now, uint64_t s, uint32_t ns)
{
        if (valid & now)
                return (struct timespec){ .tv_nsec = UTIME_NOW };
        if (valid & set)
                return (struct timespec){ .tv_sec = (time_t)s, .tv_nsec = ns };
        return (struct timespec){ .tv_nsec = UTIME_OMIT };
}

static int set_attributes(struct fs_request *rq, struct fs_node *node, const struct fuse_setattr_in *in)
{
        struct fs_server *fs = rq->fs;
        int r = 0;

        if (in->valid & FATTR_MODE)
                r = fs_chmod(fs, node, in->mode);
        if (r == 0 && in->valid & (FATTR_UID | FATTR_GID)) {
                uid_t uid = in->valid & FATTR_UID ? host_uid(fs, in->uid) : (uid_t)-1;
                gid_t gid = in->valid & FATTR_GID ? host_gid(fs, in->gid) : (gid_t)-1;

                r = fchownat(node->fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
                /* user_namespaces(7): a user that is not mapped here is one that we may not give files to. */
                if (r == -EINVAL)
                        r = -EPERM;
        }
        if (r == 0 && in->valid & FATTR_SIZE)
                r = set_size(rq, node, in);
        if (r == 0 && in->valid & (FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW | FATTR_MTIME_NOW)) {
                struct timespec times[2] = {
                        pick_time(in->valid, FATTR_ATIME, FATTR_ATIME_NOW, in->atime, in->atimensec),
                        pick_time(in->valid, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime, in->mtimensec),
                };

                if (((in->valid & FATTR_ATIME) && in->atimensec > 999999999) ||
                    ((in->valid & FATTR_MTIME) && in->mtimensec > 999999999))
                        return -EINVAL;
                r = utimensat(node->fd, "", times, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
        }
        return r;
}

int fs_op_setattr(struct fs_request *rq)
{
        struct fuse_setattr_in in;
        struct fs_node *node;
        int r;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0)
                return -EINVAL;
        r = fs_pin(rq->fs, rq->header.nodeid, &node);
        if (r < 0)
                return r;
        r = set_attributes(rq, node, &in);
        if (r == 0)
                r = reply_attr(rq, node);
        fs_unpin(rq->fs, node);
        return r;
}

int fs_op_readlink(struct fs_request *rq)
{
        char target[PATH_MAX];
        struct fs_node *node;
        ssize_t length;
        int r = fs_pin(rq->fs, rq->header.nodeid, &node);

        if (r < 0)
                return r;
        length = node->type == S_IFLNK ? readlinkat(node->fd, "", target, sizeof(target)) : (errno = EINVAL, -1);
        r = length < 0 ? -errno : fs_reply(rq, target, (size_t)length);
        fs_unpin(rq->fs, node);
        return r;
}

int fs_op_statfs(struct fs_request *rq)
{
        struct fuse_statfs_out out = { 0 };
        struct fs_node *node;
        struct statfs st;
        int r = fs_pin(rq->fs, rq->header.nodeid, &node);

        if (r < 0)
                return r;
        r = fstatfs(node->fd, &st) < 0 ? -errno : 0;
        fs_unpin(rq->fs, node);
        if (r < 0)
                return r;
        out.st = (struct fuse_kstatfs){
                .blocks = st.f_blocks,
                .bfree = st.f_bfree,
                .bavail = st.f_bavail,
                .files = st.f_files,
                .ffree = st.f_ffree,
                .bsize = (uint32_t)st.f_bsize,
                .namelen = (uint32_t)st.f_namelen,
                .frsize = (uint32_t)(st.f_frsize ? st.f_frsize : st.f_bsize),
        };
        return fs_reply(rq, &out, sizeof(out));
}

int fs_op_access(struct fs_request *rq)
{
        struct fuse_access_in in;
        struct fs_node *node;
        int r;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0 || in.mask & ~(uint32_t)(R_OK | W_OK | X_OK))
                return -EINVAL;
        if (in.mask & W_OK && rq->fs->readonly)
                return -EROFS;
        r = fs_pin(rq->fs, rq->header.nodeid, &node);
        if (r < 0)
                return r;
        r = faccessat(node->fd, "", (int)in.mask, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_EACCESS) < 0 ? -errno : 0;
        fs_unpin(rq->fs, node);
        return r;
}

/* --- extended attributes: user.*, which only files and directories have --- */

static const char *user_xattr(struct fs_request *rq, int *error)
{
        const char *name = fs_arg_text(rq, XATTR_NAME_MAX);

        *error = !name ? -EINVAL : -EOPNOTSUPP;
        return name && strncmp(name, "user.", 5) == 0 ? name : NULL;
}

/* The node's file opened for reading, which is enough even to set attributes. */
static int open_for_xattr(struct fs_request *rq)
{
        struct fs_node *node;
        int fd = fs_pin(rq->fs, rq->header.nodeid, &node);

        if (fd < 0)
                return fd;
        fd = fs_node_open(rq->fs, node, O_RDONLY);
        fs_unpin(rq->fs, node);
        return fd;
}

int fs_op_setxattr(struct fs_request *rq)
{
        struct { uint32_t size, flags; } in; /* fuse_setxattr_in without FUSE_SETXATTR_EXT */
        const char *name;
        const void *value;
        int fd, r;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0)
                return -EINVAL;
        name = user_xattr(rq, &r);
        if (!name)
                return r;
        value = cursor_take(&rq->args, in.size);
        if (!value || in.size > XATTR_VALUE_MAX || in.flags & ~(uint32_t)(XATTR_CREATE | XATTR_REPLACE))
                return -EINVAL;
        fd = open_for_xattr(rq);
        if (fd < 0)
                return fd;
        r = fsetxattr(fd, name, value, in.size, (int)in.flags) < 0 ? -errno : 0;
        close(fd);
        return r;
}

/* A size of 0 asks how much room is needed. */
static int reply_xattr(struct fs_request *rq, uint32_t asked, const void *value, size_t size_bytes)
{
        struct fuse_getxattr_out out = { .size = (uint32_t)size_bytes };

        if (!asked)
                return fs_reply(rq, &out, sizeof(out));
        return size_bytes > asked ? -ERANGE : fs_reply(rq, value, size_bytes);
}

int fs_op_getxattr(struct fs_request *rq)
{
        struct fuse_getxattr_in in;
        _cleanup_free_ void *value = NULL;
        const char *name;
        ssize_t got;
        int fd, r;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0)
                return -EINVAL;
        name = user_xattr(rq, &r);
        if (!name)
                return r;
        value = malloc(XATTR_VALUE_MAX);
        if (!value)
                return -ENOMEM;
        fd = open_for_xattr(rq);
        if (fd < 0)
                return fd;
        got = fgetxattr(fd, name, value, XATTR_VALUE_MAX);
        r = got < 0 ? -errno : reply_xattr(rq, in.size, value, (size_t)got);
        close(fd);
        return r;
}

int fs_op_listxattr(struct fs_request *rq)
{
        struct fuse_getxattr_in in;
        _cleanup_free_ char *names = NULL;
        size_t kept = 0;
        ssize_t got;
        int fd, r = 0;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0)
                return -EINVAL;
        names = malloc(XATTR_LIST_MAX + 1);
        if (!names)
                return -ENOMEM;
        fd = open_for_xattr(rq);
        if (fd == -EOPNOTSUPP)
                return reply_xattr(rq, in.size, names, 0);
        if (fd < 0)
                return fd;
        got = flistxattr(fd, names, XATTR_LIST_MAX);
        if (got < 0)
                r = -errno;
        close(fd);
        if (got < 0)
                return r;
        names[got] = 0;
        for (size_t at = 0; at < (size_t)got;) {
                size_t length = strlen(names + at) + 1;

                if (strncmp(names + at, "user.", 5) == 0) {
                        memmove(names + kept, names + at, length);
                        kept += length;
                }
                at += length;
        }
        return reply_xattr(rq, in.size, names, kept);
}

int fs_op_removexattr(struct fs_request *rq)
{
        int fd, r;
        const char *name = user_xattr(rq, &r);

        if (!name)
                return r;
        fd = open_for_xattr(rq);
        if (fd < 0)
                return fd;
        r = fremovexattr(fd, name) < 0 ? -errno : 0;
        close(fd);
        return r;
}
