/*
 * What the file server's own files share.
 *
 *   fs-server.c  requests: parse, dispatch, answer; INIT     fs-name.c  names in directories: lookup, create, rename, …
 *   fs-node.c    nodes and their descriptors                 fs-attr.c  attributes of nodes
 *   fs-file.c    open files                                  fs-dir.c   open directories
 *   fs-state.c   save and load
 */
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <sys/stat.h>

#include "base/cursor.h"
#include "device/fs.h"

#define FS_NODES_MAX (1u << 20)
#define FS_WRITE_MAX (1u << 20)
#define FS_ARGS_MAX (128u << 10) /* of a request other than WRITE */
#define FS_ARGS_INLINE 1024u
#define FS_DEPTH_MAX 1024u
#define FS_VALID_S 1 /* how long the client may believe attributes and names */
#define FS_NOBODY 65534u

/*
 * A file or directory that the client knows. It lives while the client's lookups, references or pins are left.
 *
 *      fd open, pinned ──last unpin──▶ fd open, in the list ──too many──▶ fd closed ──pin──▶ fd open, pinned
 *
 * A closed descriptor is opened again by name beneath the parent, and must be the same file then, else it is stale.
 */
struct fs_node {
        uint32_t index, generation; /* the node id */
        uint64_t device, ino;
        int64_t born_s;
        uint32_t born_ns;
        mode_t type; /* S_IFMT part */
        bool stale;
        uint64_t lookups; /* the client's */
        uint32_t refs;    /* nodes that have it as parent */
        uint32_t pins;    /* requests and open files */
        int fd;           /* O_PATH, or -1 */
        struct fs_node *parent; /* NULL for the root, and when it is not known */
        char *name;             /* in parent */
        struct fs_node *hash_next;
        struct fs_node *older, *newer; /* of those with fd and no pin */
        bool saved;
};

struct fs_slot {
        struct fs_node *node;
        uint32_t generation;
        uint32_t next_free;
};

struct fs_handle {
        uint32_t index, generation;
        uint32_t refs;
        bool released;
        bool directory;
        uint32_t flags; /* as the client opened it */
        int fd;
        struct fs_node *node; /* pinned */
        pthread_mutex_t lock; /* directory: position and buffer */
        struct fs_handle *next_free;
};

struct fs_handle_slot {
        struct fs_handle *handle;
        uint32_t generation;
        uint32_t next_free;
};

struct fs_server {
        pthread_mutex_t lock; /* all below; never held while a client's memory is touched */
        int root_fd;
        bool readonly;
        bool initialized;
        uint32_t minor;
        mode_t umask;
        uid_t own_uid;
        gid_t own_gid;

        struct fs_node *root;
        struct fs_slot *slot; /* [0] is not used, [1] is the root */
        uint32_t slots, free_slot;
        struct fs_node **hash;
        uint32_t hash_size, nodes;
        struct fs_node *oldest, *newest;
        uint32_t node_fds, node_fds_max; /* unpinned ones */

        struct fs_handle_slot *handle;
        uint32_t handles, free_handle, handles_open, handles_max;
};

struct fs_request {
        struct fs_server *fs;
        struct fuse_in_header header;
        const struct iovec *out, *in;
        unsigned out_count, in_count;
        size_t out_bytes; /* of the request, its header included */
        size_t in_bytes;
        struct cursor args; /* a copy of what follows the header; of WRITE only its fixed part */
};

typedef int fs_op(struct fs_request *rq);

/* --- fs-server.c --- */

/* Puts the answer's body; its size, or -ENOBUFS. What an fs_op returns: the size of the body, or -errno. */
int fs_reply(struct fs_request *rq, const void *body, size_t size_bytes);
/* Room for a body. */
size_t fs_room(const struct fs_request *rq);
/* The next argument as a name within a directory: one that is no path. NULL, and -errno in *error. */
const char *fs_arg_name(struct fs_request *rq, int *error);
/* The next argument as a text of at most max bytes; NULL when there is none. */
const char *fs_arg_text(struct fs_request *rq, size_t max);

/* --- fs-node.c --- */

int fs_nodes_init(struct fs_server *fs, struct err *err) _must_check_;
void fs_nodes_done(struct fs_server *fs);
/* All but the root, and all handles. */
void fs_nodes_reset(struct fs_server *fs);

static inline uint64_t fs_node_id(const struct fs_node *node)
{
        return (uint64_t)node->generation << 32 | node->index;
}

/* The node, with its descriptor open until fs_unpin(); -ESTALE, -ENOENT and errors of openat2. */
int fs_pin(struct fs_server *fs, uint64_t id, struct fs_node **node) _must_check_;
/* As fs_pin(), of a directory; -ENOTDIR. */
int fs_pin_dir(struct fs_server *fs, uint64_t id, struct fs_node **node) _must_check_;
void fs_unpin(struct fs_server *fs, struct fs_node *node);
void fs_unpinp(struct fs_server *fs, struct fs_node **node);
void fs_forget(struct fs_server *fs, uint64_t id, uint64_t lookups);

/* A descriptor of name in the directory dir_fd, as openat(); never of a link's target (O_NOFOLLOW is added) nor outside. */
int fs_openat(int dir_fd, const char *name, int flags, mode_t mode);
/* The same, once more after closing descriptors of nodes when there are too many. */
int fs_openat_relieved(struct fs_server *fs, int dir_fd, const char *name, int flags, mode_t mode);
/* Attributes of what an O_PATH or other descriptor stands for. */
int fs_statx(int fd, struct statx *st);
bool fs_same(const struct fs_node *node, const struct statx *st);

/* The node that fd (O_PATH; taken over) and st are, found as name in parent; one more lookup when lookup, pinned in *node. */
int fs_node_found(struct fs_server *fs, struct fs_node *parent, const char *name, int fd, const struct statx *st, bool lookup,
                  struct fs_node **node) _must_check_;
/* What the name is now called, after a rename. */
void fs_node_renamed(struct fs_server *fs, struct fs_node *parent, const char *name);
/* Puts a loaded node in its place; -EBADMSG when that is taken or out of bounds. parent may be NULL: it is stale. */
int fs_node_load(struct fs_server *fs, uint64_t id, uint64_t lookups, struct fs_node *parent, const char *name) _must_check_;
/* After the last fs_node_load() and fs_handle_load(): what is free is known. */
void fs_nodes_loaded(struct fs_server *fs);
struct fs_node *fs_node_at(struct fs_server *fs, uint64_t id); /* fs->lock held; NULL when there is none */

/*
 * A pinned node opened for real: a regular file (flags: access mode, O_APPEND, O_SYNC, O_DSYNC) or a directory (O_RDONLY). The
 * descriptor, or -errno: -ESTALE when its name is another file's now.
 */
int fs_node_open(struct fs_server *fs, struct fs_node *node, int flags);

int fs_handle_new(struct fs_server *fs, struct fs_node *node, int fd, uint32_t flags,
                  uint64_t *id) _must_check_; /* takes fd, pins node */
int fs_handle_load(struct fs_server *fs, uint64_t id, struct fs_node *node, int fd, uint32_t flags) _must_check_;
/* -EBADF unless it is open, on a directory or not as asked for. */
int fs_handle_get(struct fs_server *fs, uint64_t id, bool directory, struct fs_handle **handle) _must_check_;
void fs_handle_put(struct fs_server *fs, struct fs_handle *handle);
void fs_handle_release(struct fs_server *fs, uint64_t id);
/* FSYNC and FSYNCDIR. */
int fs_sync(struct fs_request *rq, bool directory);

/* --- fs-attr.c --- */

void fs_attr_fill(const struct fs_server *fs, const struct statx *st, struct fuse_attr *attr);
void fs_entry_fill(const struct fs_server *fs, const struct fs_node *node, const struct statx *st, struct fuse_entry_out *entry);
/* Permission bits of a pinned node. */
int fs_chmod(struct fs_server *fs, struct fs_node *node, mode_t mode);
/* Takes set-user-id and set-group-id from a file that is about to be changed. */
void fs_strip_privileges(int fd, const struct statx *st);

/* --- fs-name.c --- */

/* Looks name up in a pinned directory: one more lookup, *entry filled. */
int fs_lookup(struct fs_server *fs, struct fs_node *dir, const char *name, struct fuse_entry_out *entry, struct fs_node **node);

/* Operations, by the file that has them. */
fs_op fs_op_lookup, fs_op_symlink, fs_op_mknod, fs_op_mkdir, fs_op_unlink, fs_op_rmdir, fs_op_rename, fs_op_rename2, fs_op_link,
        fs_op_create;
fs_op fs_op_getattr, fs_op_setattr, fs_op_readlink, fs_op_statfs, fs_op_access, fs_op_setxattr, fs_op_getxattr, fs_op_listxattr,
        fs_op_removexattr;
fs_op fs_op_open, fs_op_read, fs_op_write, fs_op_release, fs_op_flush, fs_op_fsync, fs_op_fallocate, fs_op_lseek,
        fs_op_copy_file_range, fs_op_syncfs;
fs_op fs_op_opendir, fs_op_readdir, fs_op_readdirplus, fs_op_releasedir, fs_op_fsyncdir;
