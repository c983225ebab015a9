/*
 * Names in directories. Each operation works on one name beneath the descriptor of its directory and follows no link.
 */
#include "device/fs-internal.h"

#include <errno.h>
#include <stdio.h>

#define CREATE_FLAGS (O_ACCMODE | O_APPEND | O_SYNC | O_DSYNC)

/* The next name in the arguments, and the directory that the request is on, pinned. */
static int take_name(struct fs_request *rq, const char **name, struct fs_node **dir)
{
        int r = 0;

        *name = fs_arg_name(rq, &r);
        if (!*name)
                return r < 0 ? r : -EINVAL;
        return fs_pin_dir(rq->fs, rq->header.nodeid, dir);
}

int fs_lookup(struct fs_server *fs, struct fs_node *dir, const char *name, struct fuse_entry_out *entry, struct fs_node **found)
{
        struct statx st;
        int fd = fs_openat_relieved(fs, dir->fd, name, O_PATH, 0);
        int r;

        if (fd < 0)
                return fd;
        r = fs_statx(fd, &st);
        if (r < 0) {
                close(fd);
                return r;
        }
        r = fs_node_found(fs, dir, name, fd, &st, true, found);
        if (r < 0)
                return r;
        fs_entry_fill(fs, *found, &st, entry);
        return 0;
}

/* Looks the name up and answers with its entry; what cannot be told to the client it does not know. */
static int reply_entry(struct fs_request *rq, struct fs_node *dir, const char *name)
{
        struct fuse_entry_out entry;
        struct fs_node *node;
        int r = fs_lookup(rq->fs, dir, name, &entry, &node);

        if (r < 0)
                return r;
        r = fs_reply(rq, &entry, sizeof(entry));
        if (r < 0)
                fs_forget(rq->fs, entry.nodeid, 1);
        fs_unpin(rq->fs, node);
        return r;
}

int fs_op_lookup(struct fs_request *rq)
{
        struct fs_node *dir;
        const char *name;
        int r = take_name(rq, &name, &dir);

        if (r < 0)
                return r;
        r = reply_entry(rq, dir, name);
        fs_unpin(rq->fs, dir);
        return r;
}

/*
 * Gives what was just made to the user of the guest who made it, and the permissions that this process's umask took. In a
 * directory with set-group-id the group is the directory's (inode(7)). Where files may not be given away they stay ours.
 */
static int give_away(struct fs_request *rq, struct fs_node *dir, struct fs_node *node, mode_t mode, bool chmod_needed)
{
        struct fs_server *fs = rq->fs;
        struct statx st;
        bool keep_group;

        if (fs_statx(dir->fd, &st) < 0)
                return 0;
        keep_group = st.stx_mode & S_ISGID;
        if (fs->own_uid == 0 && (rq->header.uid != 0 || (rq->header.gid != fs->own_gid && !keep_group))) {
                if (fchownat(node->fd, "", rq->header.uid, keep_group ? (gid_t)-1 : rq->header.gid,
                             AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0 && errno != EPERM && errno != EINVAL)
                        return -errno;
        }
        if (chmod_needed && mode & fs->umask & 0777) {
                if (keep_group && node->type == S_IFDIR)
                        mode |= S_ISGID;
                return fs_chmod(fs, node, mode);
        }
        return 0;
}

/* What comes after making name in dir: its owner and its entry. On failure it is taken away again. */
static int finish_new(struct fs_request *rq, struct fs_node *dir, const char *name, mode_t mode, bool chmod_needed)
{
        struct fuse_entry_out entry;
        struct fs_node *node;
        struct statx st;
        int r = fs_lookup(rq->fs, dir, name, &entry, &node);

        if (r < 0)
                return r;
        r = give_away(rq, dir, node, mode, chmod_needed);
        if (r == 0)
                r = fs_statx(node->fd, &st);
        if (r == 0) {
                fs_entry_fill(rq->fs, node, &st, &entry);
                r = fs_reply(rq, &entry, sizeof(entry));
        }
        if (r < 0)
                fs_forget(rq->fs, fs_node_id(node), 1);
        fs_unpin(rq->fs, node);
        return r;
}

int fs_op_mkdir(struct fs_request *rq)
{
        struct fuse_mkdir_in in;
        struct fs_node *dir;
        const char *name;
        int r;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0)
                return -EINVAL;
        r = take_name(rq, &name, &dir);
        if (r < 0)
                return r;
        r = mkdirat(dir->fd, name, in.mode & 07777) < 0 ? -errno : finish_new(rq, dir, name, in.mode & 07777, true);
        fs_unpin(rq->fs, dir);
        return r;
}

int fs_op_mknod(struct fs_request *rq)
{
        struct fuse_mknod_in in;
        struct fs_node *dir;
        const char *name;
        mode_t type;
        int r;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0)
                return -EINVAL;
        type = in.mode & S_IFMT;
        /* A device node would be the host's device. */
        if (type != S_IFREG && type != S_IFIFO && type != S_IFSOCK)
                return -EPERM;
        r = take_name(rq, &name, &dir);
        if (r < 0)
                return r;
        r = mknodat(dir->fd, name, type | (in.mode & 01777), 0) < 0 ? -errno : finish_new(rq, dir, name, in.mode & 01777, true);
        fs_unpin(rq->fs, dir);
        return r;
}

int fs_op_symlink(struct fs_request *rq)
{
        struct fs_node *dir;
        const char *name, *target;
        int r = take_name(rq, &name, &dir);

        if (r < 0)
                return r;
        target = fs_arg_text(rq, PATH_MAX - 1);
        if (!target || !*target)
                r = target ? -ENOENT : -EINVAL;
        else
                r = symlinkat(target, dir->fd, name) < 0 ? -errno : finish_new(rq, dir, name, 0, false);
        fs_unpin(rq->fs, dir);
        return r;
}

static int remove_name(struct fs_request *rq, int flags)
{
        struct fs_node *dir;
        const char *name;
        int r = take_name(rq, &name, &dir);

        if (r < 0)
                return r;
        r = unlinkat(dir->fd, name, flags) < 0 ? -errno : 0;
        fs_unpin(rq->fs, dir);
        return r;
}

int fs_op_unlink(struct fs_request *rq)
{
        return remove_name(rq, 0);
}

int fs_op_rmdir(struct fs_request *rq)
{
        return remove_name(rq, AT_REMOVEDIR);
}

static int do_rename(struct fs_request *rq, uint64_t new_dir, uint32_t flags)
{
        struct fs_server *fs = rq->fs;
        struct fs_node *from, *to;
        const char *name, *new_name;
        int r;

        /* A white-out would be a device node. */
        if (flags & ~(uint32_t)(RENAME_NOREPLACE | RENAME_EXCHANGE))
                return -EINVAL;
        r = take_name(rq, &name, &from);
        if (r < 0)
                return r;
        new_name = fs_arg_name(rq, &r);
        if (new_name)
                r = fs_pin_dir(fs, new_dir, &to);
        if (new_name && r == 0) {
                r = renameat2(from->fd, name, to->fd, new_name, flags) < 0 ? -errno : 0;
                if (r == 0) {
                        fs_node_renamed(fs, to, new_name);
                        if (flags & RENAME_EXCHANGE)
                                fs_node_renamed(fs, from, name);
                }
                fs_unpin(fs, to);
        }
        fs_unpin(fs, from);
        return r;
}

int fs_op_rename(struct fs_request *rq)
{
        struct fuse_rename_in in;

        return cursor_get(&rq->args, &in, sizeof(in)) < 0 ? -EINVAL : do_rename(rq, in.newdir, 0);
}

int fs_op_rename2(struct fs_request *rq)
{
        struct fuse_rename2_in in;

        return cursor_get(&rq->args, &in, sizeof(in)) < 0 ? -EINVAL : do_rename(rq, in.newdir, in.flags);
}

/*
 * A second name. By descriptor this needs CAP_DAC_READ_SEARCH before Linux 6.10, so that it may have to go by the first name,
 * which can be another file's by then: such a link is taken away again.
 */
static int link_node(struct fs_request *rq, struct fs_node *node, struct fs_node *dir, const char *name)
{
        struct fs_server *fs = rq->fs;
        struct fs_node *parent = NULL;
        char old[NAME_MAX + 1] = "";
        struct statx st;
        uint64_t id = 0;
        int fd, r;

        if (linkat(node->fd, "", dir->fd, name, AT_EMPTY_PATH) == 0)
                return 0;
        if (errno != ENOENT && errno != EPERM)
                return -errno;
        pthread_mutex_lock(&fs->lock);
        if (node->parent) {
                id = fs_node_id(node->parent);
                snprintf(old, sizeof(old), "%s", node->name);
        }
        pthread_mutex_unlock(&fs->lock);
        r = id ? fs_pin(fs, id, &parent) : -ESTALE;
        if (r < 0)
                return r;
        r = linkat(parent->fd, old, dir->fd, name, 0) < 0 ? -errno : 0;
        fs_unpin(fs, parent);
        if (r < 0)
                return r;
        fd = fs_openat_relieved(fs, dir->fd, name, O_PATH, 0);
        r = fd < 0 ? fd : fs_statx(fd, &st);
        if (r >= 0 && !fs_same(node, &st))
                r = unlinkat(dir->fd, name, 0) < 0 ? -errno : -ESTALE;
        closep(&fd);
        return r < 0 ? r : 0;
}

int fs_op_link(struct fs_request *rq)
{
        struct fs_node *node, *dir;
        struct fuse_link_in in;
        const char *name;
        int r;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0)
                return -EINVAL;
        r = take_name(rq, &name, &dir);
        if (r < 0)
                return r;
        r = fs_pin(rq->fs, in.oldnodeid, &node);
        if (r == 0) {
                r = node->type == S_IFDIR ? -EPERM : link_node(rq, node, dir, name);
                if (r == 0)
                        r = reply_entry(rq, dir, name);
                fs_unpin(rq->fs, node);
        }
        fs_unpin(rq->fs, dir);
        return r;
}

/* Opens the file that was made, or that was there, and tells both its entry and its handle. */
static int create_reply(struct fs_request *rq, struct fs_node *node, int fd, const struct fuse_create_in *in)
{
        struct {
                struct fuse_entry_out entry;
                struct fuse_open_out open;
        } out = { 0 };
        struct statx st;
        int r = fs_statx(node->fd, &st);

        if (r < 0) {
                close(fd);
                return r;
        }
        fs_entry_fill(rq->fs, node, &st, &out.entry);
        r = fs_handle_new(rq->fs, node, fd, in->flags, &out.open.fh);
        if (r < 0)
                return r;
        r = fs_reply(rq, &out, sizeof(out));
        if (r < 0)
                fs_handle_release(rq->fs, out.open.fh);
        return r;
}

static int do_create(struct fs_request *rq, struct fs_node *dir, const char *name, const struct fuse_create_in *in)
{
        struct fs_server *fs = rq->fs;
        int flags = (int)(in->flags & CREATE_FLAGS);
        struct fuse_entry_out entry;
        struct fs_node *node;
        struct statx st;
        int fd, r;
        bool made;

        fd = fs_openat_relieved(fs, dir->fd, name, flags | O_CREAT | O_EXCL | O_NONBLOCK | O_NOCTTY, in->mode & 01777);
        made = fd >= 0;
        if (!made && (fd != -EEXIST || in->flags & O_EXCL))
                return fd;
        r = fs_lookup(fs, dir, name, &entry, &node);
        if (r < 0) {
                closep(&fd);
                return r;
        }
        if (made) {
                /* The name may be another file's already. */
                r = fs_statx(fd, &st);
                if (r == 0 && !fs_same(node, &st))
                        r = -ESTALE;
                if (r == 0)
                        r = give_away(rq, dir, node, in->mode & 01777, true);
        } else {
                fd = fs_node_open(fs, node, flags);
                r = fd < 0 ? fd : fs_statx(fd, &st);
                if (r >= 0 && (flags & O_ACCMODE) != O_RDONLY) {
                        fs_strip_privileges(fd, &st);
                        r = in->flags & O_TRUNC && ftruncate(fd, 0) < 0 ? -errno : 0;
                }
        }
        if (r >= 0)
                r = create_reply(rq, node, steal_fd(&fd), in);
        closep(&fd);
        if (r < 0)
                fs_forget(fs, fs_node_id(node), 1);
        fs_unpin(fs, node);
        return r;
}

int fs_op_create(struct fs_request *rq)
{
        struct fuse_create_in in;
        struct fs_node *dir;
        const char *name;
        int r;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0 || (in.flags & O_ACCMODE) == O_ACCMODE)
                return -EINVAL;
        r = take_name(rq, &name, &dir);
        if (r < 0)
                return r;
        r = do_create(rq, dir, name, &in);
        fs_unpin(rq->fs, dir);
        return r;
}
