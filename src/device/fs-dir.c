/* Open directories. The host's position cookies are the client's offsets. */
#include "device/fs-internal.h"

#include <errno.h>
#include <sys/syscall.h>

#include "device/virtio.h"

#define DIRENTS_BYTES (32u << 10)

/* What getdents64(2) gives */
struct host_dirent {
        uint64_t ino;
        int64_t next;
        uint16_t size_bytes;
        uint8_t type;
        char name[];
};

int fs_op_opendir(struct fs_request *rq)
{
        struct fuse_open_out out = { 0 };
        struct fs_node *dir;
        int fd, r;

        r = fs_pin_dir(rq->fs, rq->header.nodeid, &dir);
        if (r < 0)
                return r;
        fd = fs_node_open(rq->fs, dir, O_RDONLY);
        r = fd < 0 ? fd : fs_handle_new(rq->fs, dir, fd, O_RDONLY, &out.fh);
        fs_unpin(rq->fs, dir);
        if (r < 0)
                return r;
        r = fs_reply(rq, &out, sizeof(out));
        if (r < 0)
                fs_handle_release(rq->fs, out.fh);
        return r;
}

struct listing {
        struct fs_request *rq;
        struct fs_node *dir;
        bool plus;
        size_t at;   /* in the answer's body */
        size_t room;
};

static bool is_dots(const char *name)
{
        return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

/* Adds one entry: 1, 0 when it does not fit, or -errno. */
static int add_entry(struct listing *list, const struct host_dirent *d)
{
        union {
                struct fuse_direntplus plus;
                struct fuse_dirent plain;
                uint8_t bytes[FUSE_NAME_OFFSET_DIRENTPLUS + NAME_MAX + 8];
        } out = { 0 };
        struct fuse_dirent *dirent = list->plus ? &out.plus.dirent : &out.plain;
        size_t name_bytes = strlen(d->name);
        size_t head = list->plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET;
        size_t size_bytes = FUSE_REC_ALIGN(head + name_bytes);
        struct fs_node *node = NULL;

        if (name_bytes > NAME_MAX)
                return 1;
        if (size_bytes > list->room - list->at)
                return 0;
        *dirent =
                (struct fuse_dirent){ .ino = d->ino, .off = (uint64_t)d->next, .namelen = (uint32_t)name_bytes, .type = d->type };
        memcpy(out.bytes + head, d->name, name_bytes);
        if (list->plus && !is_dots(d->name)) {
                int r = fs_lookup(list->rq->fs, list->dir, d->name, &out.plus.entry_out, &node);

                /* It went away meanwhile, or cannot be told of: a node id of 0 leaves that to a lookup. */
                if (r < 0)
                        out.plus.entry_out = (struct fuse_entry_out){ 0 };
                else
                        dirent->ino = out.plus.entry_out.attr.ino;
        }
        buf_to_iov(list->rq->in, list->rq->in_count, sizeof(struct fuse_out_header) + list->at, out.bytes, size_bytes);
        list->at += size_bytes;
        if (node)
                fs_unpin(list->rq->fs, node);
        return 1;
}

/* Reads on from the handle's position until the answer is full. */
static int fill(struct listing *list, struct fs_handle *handle, uint8_t *buffer)
{
        for (;;) {
                long got = syscall(SYS_getdents64, handle->fd, buffer, DIRENTS_BYTES);

                if (got < 0)
                        return list->at ? 0 : -errno;
                if (got == 0)
                        return 0;
                for (long at = 0; at < got;) {
                        const struct host_dirent *d = (const struct host_dirent *)(buffer + at);

                        if (add_entry(list, d) == 0)
                                return 0;
                        at += d->size_bytes;
                }
        }
}

static int read_directory(struct fs_request *rq, bool plus)
{
        _cleanup_free_ uint8_t *buffer = NULL;
        struct fs_handle *handle;
        struct fuse_read_in in;
        struct listing list;
        int r;

        if (cursor_get(&rq->args, &in, sizeof(in)) < 0 || in.offset > INT64_MAX)
                return -EINVAL;
        buffer = malloc(DIRENTS_BYTES);
        if (!buffer)
                return -ENOMEM;
        r = fs_handle_get(rq->fs, in.fh, true, &handle);
        if (r < 0)
                return r;
        list = (struct listing){ .rq = rq, .dir = handle->node, .plus = plus,
                                 .room = MIN(MIN((size_t)in.size, fs_room(rq)), (size_t)FS_WRITE_MAX) };
        pthread_mutex_lock(&handle->lock);
        r = lseek(handle->fd, (off_t)in.offset, SEEK_SET) < 0 ? -errno : fill(&list, handle, buffer);
        pthread_mutex_unlock(&handle->lock);
        fs_handle_put(rq->fs, handle);
        return r < 0 ? r : (int)list.at;
}

int fs_op_readdir(struct fs_request *rq)
{
        return read_directory(rq, false);
}

int fs_op_readdirplus(struct fs_request *rq)
{
        return read_directory(rq, true);
}

int fs_op_releasedir(struct fs_request *rq)
{
        return fs_op_release(rq);
}

int fs_op_fsyncdir(struct fs_request *rq)
{
        return fs_sync(rq, true);
}
