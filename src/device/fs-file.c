/* Open files. Data goes straight between the host's file and the client's memory. */
#include "device/fs-internal.h"

#include <errno.h>

#include "device/virtio.h"

#define OPEN_FLAGS (O_ACCMODE | O_APPEND | O_SYNC | O_DSYNC)
#define COPY_MAX (UINT64_C(64) << 20) /* at a time: a copy is not interrupted */

int fs_op_open(struct fs_request *rq)
{
        struct fuse_open_out out = { 0 };
        struct fuse_open_in in;
        struct fs_node *node;
        struct statx st;
        bool writes;
        int fd, r;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0 || (in.flags & O_ACCMODE) == O_ACCMODE)
                return -EINVAL;
        writes = (in.flags & O_ACCMODE) != O_RDONLY;
        if (rq->fs->readonly && (writes || in.flags & O_TRUNC))
                return -EROFS;
        r = fs_pin(rq->fs, rq->header.nodeid, &node);
        if (r < 0)
                return r;
        fd = node->type == S_IFDIR ? -EISDIR : fs_node_open(rq->fs, node, (int)(in.flags & OPEN_FLAGS));
        r = fd < 0 ? fd : fs_statx(fd, &st);
        if (r >= 0 && writes) {
                fs_strip_privileges(fd, &st);
                r = in.flags & O_TRUNC && ftruncate(fd, 0) < 0 ? -errno : 0;
        }
        if (r >= 0)
                r = fs_handle_new(rq->fs, node, steal_fd(&fd), in.flags, &out.fh);
        closep(&fd);
        fs_unpin(rq->fs, node);
        if (r < 0)
                return r;
        r = fs_reply(rq, &out, sizeof(out));
        if (r < 0)
                fs_handle_release(rq->fs, out.fh);
        return r;
}

/* Moves size_bytes at a place of the client's memory, as far as the file goes. */
static ssize_t transfer(struct fs_handle *handle, const struct iovec *iov, unsigned count, size_t at, size_t size_bytes,
                        uint64_t offset, bool write)
{
        struct iovec part[VIRTIO_CHAIN_MAX];
        size_t done = 0;

        if (offset > INT64_MAX || size_bytes > INT64_MAX - offset || count > VIRTIO_CHAIN_MAX)
                return -EINVAL;
        while (done < size_bytes) {
                unsigned parts = iov_slice(iov, count, at + done, size_bytes - done, part);
                ssize_t n = write ? pwritev(handle->fd, part, (int)parts, (off_t)(offset + done)) :
                                    preadv(handle->fd, part, (int)parts, (off_t)(offset + done));

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0 && !done)
                        return -errno;
                if (n <= 0)
                        break;
                done += (size_t)n;
        }
        return (ssize_t)done;
}

int fs_op_read(struct fs_request *rq)
{
        struct fs_handle *handle;
        struct fuse_read_in in;
        size_t size_bytes;
        ssize_t done;
        int r;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0)
                return -EINVAL;
        r = fs_handle_get(rq->fs, in.fh, false, &handle);
        if (r < 0)
                return r;
        size_bytes = MIN(MIN((size_t)in.size, fs_room(rq)), (size_t)FS_WRITE_MAX);
        done = transfer(handle, rq->in, rq->in_count, sizeof(struct fuse_out_header), size_bytes, in.offset, false);
        fs_handle_put(rq->fs, handle);
        return (int)done;
}

int fs_op_write(struct fs_request *rq)
{
        const size_t head = sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in);
        struct fuse_write_out out = { 0 };
        struct fs_handle *handle;
        struct fuse_write_in in;
        ssize_t done;
        int r;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0 || in.size > rq->out_bytes - head || in.size > FS_WRITE_MAX)
                return -EINVAL;
        r = fs_handle_get(rq->fs, in.fh, false, &handle);
        if (r < 0)
                return r;
        done = transfer(handle, rq->out, rq->out_count, head, in.size, in.offset, true);
        fs_handle_put(rq->fs, handle);
        if (done < 0)
                return (int)done;
        out.size = (uint32_t)done;
        return fs_reply(rq, &out, sizeof(out));
}

int fs_op_release(struct fs_request *rq)
{
        struct fuse_release_in in;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0)
                return -EINVAL;
        fs_handle_release(rq->fs, in.fh);
        return 0;
}

/* Every write went to the host's file at once; there is nothing to flush. */
int fs_op_flush(struct fs_request *rq)
{
        return 0;
}

int fs_sync(struct fs_request *rq, bool directory)
{
        struct fs_handle *handle;
        struct fuse_fsync_in in;
        int r;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0)
                return -EINVAL;
        r = fs_handle_get(rq->fs, in.fh, directory, &handle);
        if (r < 0)
                return r;
        r = (in.fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(handle->fd) : fsync(handle->fd)) < 0 ? -errno : 0;
        fs_handle_put(rq->fs, handle);
        return r;
}

int fs_op_fsync(struct fs_request *rq)
{
        return fs_sync(rq, false);
}

int fs_op_syncfs(struct fs_request *rq)
{
        int fd = fs_openat_relieved(rq->fs, rq->fs->root_fd, ".", O_RDONLY | O_DIRECTORY, 0);
        int r;

        if (fd < 0)
                return fd;
        r = syncfs(fd) < 0 ? -errno : 0;
        close(fd);
        return r;
}

int fs_op_fallocate(struct fs_request *rq)
{
        struct fuse_fallocate_in in;
        struct fs_handle *handle;
        int r;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0 || in.offset > INT64_MAX || in.length > INT64_MAX - in.offset)
                return -EINVAL;
        r = fs_handle_get(rq->fs, in.fh, false, &handle);
        if (r < 0)
                return r;
        r = fallocate(handle->fd, (int)in.mode, (off_t)in.offset, (off_t)in.length) < 0 ? -errno : 0;
        fs_handle_put(rq->fs, handle);
        return r;
}

/* Only the questions where data and holes are; other positions are the client's own. */
int fs_op_lseek(struct fs_request *rq)
{
        struct fuse_lseek_out out = { 0 };
        struct fuse_lseek_in in;
        struct fs_handle *handle;
        off_t at;
        int r;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0 || in.offset > INT64_MAX ||
            (in.whence != SEEK_DATA && in.whence != SEEK_HOLE))
                return -EINVAL;
        r = fs_handle_get(rq->fs, in.fh, false, &handle);
        if (r < 0)
                return r;
        at = lseek(handle->fd, (off_t)in.offset, (int)in.whence);
        r = at < 0 ? -errno : 0;
        fs_handle_put(rq->fs, handle);
        if (r < 0)
                return r;
        out.offset = (uint64_t)at;
        return fs_reply(rq, &out, sizeof(out));
}

int fs_op_copy_file_range(struct fs_request *rq)
{
        struct fs_handle *from, *to;
        struct fuse_copy_file_range_in in;
        struct fuse_write_out out = { 0 };
        off_t from_at, to_at;
        ssize_t done;
        int r;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0 || in.flags || in.off_in > INT64_MAX || in.off_out > INT64_MAX)
                return -EINVAL;
        r = fs_handle_get(rq->fs, in.fh_in, false, &from);
        if (r < 0)
                return r;
        r = fs_handle_get(rq->fs, in.fh_out, false, &to);
        if (r < 0) {
                fs_handle_put(rq->fs, from);
                return r;
        }
        from_at = (off_t)in.off_in;
        to_at = (off_t)in.off_out;
        done = copy_file_range(from->fd, &from_at, to->fd, &to_at, MIN(in.len, COPY_MAX), 0);
        r = done < 0 ? -errno : 0;
        fs_handle_put(rq->fs, from);
        fs_handle_put(rq->fs, to);
        if (r < 0)
                return r;
        out.size = (uint32_t)done;
        return fs_reply(rq, &out, sizeof(out));
}
