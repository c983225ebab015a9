/*
 * Nodes: the files that the client knows, their descriptors, and the handles of what it has open.
 *
 * A node is found by its id (slot and generation) and by what it is on the host (device, inode number and time of birth, so that
 * a number used again is another file). Descriptors of nodes that nobody pins form a list from the oldest; past node_fds_max
 * the oldest is closed, and opened again by name when it is wanted.
 *
 * Locks: fs->lock covers the tables. Only pinning a node whose descriptor was closed calls the file system under it.
 */
#include "device/fs-internal.h"

#include <errno.h>
#include <linux/openat2.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "base/log.h"
#include "base/text.h"

#define HASH_MIN 256u
#define FILES_MAX 4096u
#define NONE UINT32_MAX

/* --- the host's file system --- */

int fs_openat(int dir_fd, const char *name, int flags, mode_t mode)
{
        struct open_how how = {
                .flags = (uint64_t)(unsigned)(flags | O_NOFOLLOW | O_CLOEXEC),
                .mode = flags & O_CREAT ? mode : 0,
                .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS,
        };
        long fd;

        do {
                fd = syscall(SYS_openat2, dir_fd, name, &how, sizeof(how));
        } while (fd < 0 && (errno == EINTR || errno == EAGAIN));
        /* Names here have no slash and are not "..": before Linux 5.6 O_NOFOLLOW says the same. */
        if (fd < 0 && errno == ENOSYS)
                fd = openat(dir_fd, name, (int)how.flags, mode);
        return fd < 0 ? -errno : (int)fd;
}

int fs_statx(int fd, struct statx *st)
{
        if (statx(fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_BASIC_STATS | STATX_BTIME, st) < 0)
                return -errno;
        if (!(st->stx_mask & STATX_BTIME))
                st->stx_btime = (struct statx_timestamp){ 0 };
        return 0;
}

static uint64_t device_of(const struct statx *st)
{
        return (uint64_t)st->stx_dev_major << 32 | st->stx_dev_minor;
}

bool fs_same(const struct fs_node *node, const struct statx *st)
{
        return node->ino == st->stx_ino && node->device == device_of(st) && node->type == (st->stx_mode & S_IFMT) &&
               node->born_s == st->stx_btime.tv_sec && node->born_ns == st->stx_btime.tv_nsec;
}

static void set_identity(struct fs_node *node, const struct statx *st)
{
        node->device = device_of(st);
        node->ino = st->stx_ino;
        node->type = st->stx_mode & S_IFMT;
        node->born_s = st->stx_btime.tv_sec;
        node->born_ns = st->stx_btime.tv_nsec;
}

/* --- the hash, by what a node is --- */

static uint32_t bucket(const struct fs_server *fs, uint64_t device, uint64_t ino)
{
        uint64_t h = (ino ^ device * UINT64_C(0x9e3779b97f4a7c15)) * UINT64_C(0xff51afd7ed558ccd);

        return (uint32_t)(h >> 33) & (fs->hash_size - 1);
}

static void hash_insert(struct fs_server *fs, struct fs_node *node)
{
        struct fs_node **at = &fs->hash[bucket(fs, node->device, node->ino)];

        node->hash_next = *at;
        *at = node;
}

static void hash_remove(struct fs_server *fs, struct fs_node *node)
{
        struct fs_node **at = &fs->hash[bucket(fs, node->device, node->ino)];

        while (*at && *at != node)
                at = &(*at)->hash_next;
        if (*at)
                *at = node->hash_next;
}

static struct fs_node *hash_find(const struct fs_server *fs, const struct statx *st)
{
        struct fs_node *node = fs->hash[bucket(fs, device_of(st), st->stx_ino)];

        while (node && (node->stale || !fs_same(node, st)))
                node = node->hash_next;
        return node;
}

/* Without memory for a larger one the chains become longer, no more. */
static void hash_grow(struct fs_server *fs)
{
        struct fs_node **grown, **old = fs->hash;
        uint32_t old_size = fs->hash_size;

        if (fs->nodes < old_size || !(grown = calloc((size_t)old_size * 2, sizeof(*grown))))
                return;
        fs->hash = grown;
        fs->hash_size = old_size * 2;
        for (uint32_t i = 0; i < old_size; i++) {
                while (old[i]) {
                        struct fs_node *node = old[i];

                        old[i] = node->hash_next;
                        hash_insert(fs, node);
                }
        }
        free(old);
}

/* --- the list of descriptors that may be closed --- */

static void list_remove(struct fs_server *fs, struct fs_node *node)
{
        if (node->older)
                node->older->newer = node->newer;
        else
                fs->oldest = node->newer;
        if (node->newer)
                node->newer->older = node->older;
        else
                fs->newest = node->older;
        node->older = node->newer = NULL;
        fs->node_fds--;
}

static void list_append(struct fs_server *fs, struct fs_node *node)
{
        node->older = fs->newest;
        node->newer = NULL;
        if (fs->newest)
                fs->newest->newer = node;
        else
                fs->oldest = node;
        fs->newest = node;
        fs->node_fds++;
}

static void close_oldest(struct fs_server *fs, uint32_t left)
{
        struct fs_node *node;

        while (fs->node_fds > left && (node = fs->oldest)) {
                list_remove(fs, node);
                close(node->fd);
                node->fd = -1;
        }
}

/* --- life of a node --- */

static struct fs_node *node_new(struct fs_server *fs, uint32_t index)
{
        struct fs_node *node = calloc(1, sizeof(*node));

        if (!node)
                return NULL;
        node->fd = -1;
        node->index = index;
        node->generation = fs->slot[index].generation;
        fs->slot[index].node = node;
        fs->nodes++;
        return node;
}

/* Slots up to and with index exist; those added are free. */
static int grow_slots(struct fs_server *fs, uint32_t index)
{
        uint32_t count = fs->slots;
        struct fs_slot *grown;

        if (index < fs->slots)
                return 0;
        if (index >= FS_NODES_MAX)
                return -ENFILE;
        while (count <= index)
                count = count ? count * 2 : 64;
        grown = realloc(fs->slot, count * sizeof(*grown));
        if (!grown)
                return -ENOMEM;
        fs->slot = grown;
        for (uint32_t i = count; i-- > fs->slots;) {
                fs->slot[i] = (struct fs_slot){ .next_free = fs->free_slot };
                if (i > 1)
                        fs->free_slot = i;
        }
        fs->slots = count;
        return 0;
}

static int slot_take(struct fs_server *fs, uint32_t *index)
{
        if (fs->free_slot == NONE) {
                int r = grow_slots(fs, fs->slots);

                if (r < 0)
                        return r;
        }
        *index = fs->free_slot;
        fs->free_slot = fs->slot[*index].next_free;
        return 0;
}

/* Frees the node when nothing is left of it, and then perhaps its parent. */
static void node_check(struct fs_server *fs, struct fs_node *node)
{
        while (node && !node->lookups && !node->refs && !node->pins && node != fs->root) {
                struct fs_node *parent = node->parent;
                struct fs_slot *slot = &fs->slot[node->index];

                hash_remove(fs, node);
                if (node->fd >= 0) {
                        list_remove(fs, node);
                        close(node->fd);
                }
                slot->node = NULL;
                slot->generation++;
                slot->next_free = fs->free_slot;
                fs->free_slot = node->index;
                fs->nodes--;
                free(node->name);
                free(node);
                if (parent)
                        parent->refs--;
                node = parent;
        }
}

static void node_orphan(struct fs_server *fs, struct fs_node *node)
{
        struct fs_node *parent = steal_ptr(node->parent);

        free(steal_ptr(node->name));
        if (parent) {
                parent->refs--;
                node_check(fs, parent);
        }
}

/*
 * Where the node was last seen. The host may have moved directories about, so that what is remembered would become a circle;
 * the link that closed it is then the one that is out of date.
 */
static void node_name(struct fs_server *fs, struct fs_node *node, struct fs_node *parent, const char *name)
{
        unsigned depth = 0;
        char *copy;

        if (node == fs->root || node == parent || (node->parent == parent && node->name && strcmp(node->name, name) == 0))
                return;
        for (struct fs_node *up = parent; up; up = up->parent) {
                if (up->parent == node) {
                        node_orphan(fs, up);
                        break;
                }
                if (++depth == FS_DEPTH_MAX)
                        return;
        }
        copy = strdup(name);
        if (!copy)
                return;
        parent->refs++;
        node_orphan(fs, node);
        node->parent = parent;
        node->name = copy;
}

struct fs_node *fs_node_at(struct fs_server *fs, uint64_t id)
{
        uint32_t index = (uint32_t)id;

        if (index >= fs->slots || !fs->slot[index].node || fs->slot[index].generation != id >> 32)
                return NULL;
        return fs->slot[index].node;
}

/* Opens the descriptors from the nearest ancestor that has one down to the node. fs->lock held. */
static int reopen(struct fs_server *fs, struct fs_node *node)
{
        struct fs_node *path[FS_DEPTH_MAX];
        unsigned depth = 0;

        for (struct fs_node *up = node; up->fd < 0; up = up->parent) {
                if (up->stale || !up->parent || depth == FS_DEPTH_MAX)
                        return -ESTALE;
                path[depth++] = up;
        }
        while (depth--) {
                struct fs_node *next = path[depth];
                struct statx st;
                int fd = fs_openat(next->parent->fd, next->name, O_PATH, 0);
                int r;

                if (fd < 0)
                        return fd == -ENOENT || fd == -ENOTDIR ? -ESTALE : fd;
                r = fs_statx(fd, &st);
                if (r == 0 && !fs_same(next, &st))
                        r = -ESTALE;
                if (r < 0) {
                        close(fd);
                        return r;
                }
                next->fd = fd;
                list_append(fs, next);
        }
        return 0;
}

static void pin(struct fs_server *fs, struct fs_node *node)
{
        if (!node->pins++ && node != fs->root)
                list_remove(fs, node);
}

int fs_pin(struct fs_server *fs, uint64_t id, struct fs_node **found)
{
        struct fs_node *node;
        int r = 0;

        pthread_mutex_lock(&fs->lock);
        node = fs_node_at(fs, id);
        if (!node) {
                r = -ENOENT;
        } else if (node->fd < 0) {
                r = reopen(fs, node);
                if (r == -EMFILE || r == -ENFILE) {
                        close_oldest(fs, fs->node_fds / 2);
                        r = reopen(fs, node);
                }
        }
        if (r >= 0) {
                pin(fs, node);
                close_oldest(fs, fs->node_fds_max);
                *found = node;
        }
        pthread_mutex_unlock(&fs->lock);
        return r;
}

int fs_pin_dir(struct fs_server *fs, uint64_t id, struct fs_node **found)
{
        struct fs_node *node;
        int r = fs_pin(fs, id, &node);

        if (r < 0)
                return r;
        if (node->type != S_IFDIR) {
                fs_unpin(fs, node);
                return -ENOTDIR;
        }
        *found = node;
        return 0;
}

static void unpin(struct fs_server *fs, struct fs_node *node)
{
        if (--node->pins || node == fs->root)
                return;
        list_append(fs, node);
        node_check(fs, node);
        close_oldest(fs, fs->node_fds_max);
}

void fs_unpin(struct fs_server *fs, struct fs_node *node)
{
        pthread_mutex_lock(&fs->lock);
        unpin(fs, node);
        pthread_mutex_unlock(&fs->lock);
}

void fs_forget(struct fs_server *fs, uint64_t id, uint64_t lookups)
{
        struct fs_node *node;

        pthread_mutex_lock(&fs->lock);
        node = fs_node_at(fs, id);
        if (node && node != fs->root) {
                node->lookups -= MIN(node->lookups, lookups);
                node_check(fs, node);
        }
        pthread_mutex_unlock(&fs->lock);
}

int fs_node_found(struct fs_server *fs, struct fs_node *parent, const char *name, int fd, const struct statx *st, bool lookup,
                  struct fs_node **found)
{
        struct fs_node *node;
        uint32_t index;
        int r;

        pthread_mutex_lock(&fs->lock);
        node = hash_find(fs, st);
        if (!node) {
                r = slot_take(fs, &index);
                if (r == 0 && !(node = node_new(fs, index))) {
                        fs->slot[index].next_free = fs->free_slot;
                        fs->free_slot = index;
                        r = -ENOMEM;
                }
                if (r < 0) {
                        pthread_mutex_unlock(&fs->lock);
                        close(fd);
                        return r;
                }
                set_identity(node, st);
                hash_grow(fs);
                hash_insert(fs, node);
        }
        if (node->fd < 0) {
                node->fd = fd;
                list_append(fs, node);
                fd = -1;
        }
        pin(fs, node);
        node->lookups += lookup;
        node_name(fs, node, parent, name);
        close_oldest(fs, fs->node_fds_max);
        *found = node;
        pthread_mutex_unlock(&fs->lock);
        closep(&fd);
        return 0;
}

void fs_node_renamed(struct fs_server *fs, struct fs_node *parent, const char *name)
{
        struct fs_node *node;
        struct statx st;
        int fd = fs_openat(parent->fd, name, O_PATH, 0);

        if (fd < 0)
                return;
        if (fs_statx(fd, &st) == 0) {
                pthread_mutex_lock(&fs->lock);
                node = hash_find(fs, &st);
                if (node) {
                        /* What still names it as its parent may be all that keeps it, and node_name() may take that away. */
                        node->refs++;
                        node_name(fs, node, parent, name);
                        node->refs--;
                        node_check(fs, node);
                }
                pthread_mutex_unlock(&fs->lock);
        }
        close(fd);
}

int fs_node_load(struct fs_server *fs, uint64_t id, uint64_t lookups, struct fs_node *parent, const char *name)
{
        uint32_t index = (uint32_t)id;
        struct fs_node *node;
        struct statx st;
        int fd = -1;

        if (index < 2 || grow_slots(fs, index) < 0 || fs->slot[index].node)
                return -EBADMSG;
        fs->slot[index].generation = (uint32_t)(id >> 32);
        node = node_new(fs, index);
        if (!node)
                return -ENOMEM;
        node->lookups = lookups;
        if (parent)
                node_name(fs, node, parent, name);
        if (parent && (parent->fd >= 0 || reopen(fs, parent) == 0))
                fd = fs_openat(parent->fd, name, O_PATH, 0);
        if (fd >= 0 && fs_statx(fd, &st) == 0 && !hash_find(fs, &st)) {
                set_identity(node, &st);
                node->fd = fd;
                list_append(fs, node);
                close_oldest(fs, fs->node_fds_max);
        } else {
                closep(&fd);
                node->stale = true;
        }
        hash_grow(fs);
        hash_insert(fs, node);
        return 0;
}

int fs_openat_relieved(struct fs_server *fs, int dir_fd, const char *name, int flags, mode_t mode)
{
        int fd = fs_openat(dir_fd, name, flags, mode);

        if (fd != -EMFILE && fd != -ENFILE)
                return fd;
        pthread_mutex_lock(&fs->lock);
        close_oldest(fs, fs->node_fds / 2);
        pthread_mutex_unlock(&fs->lock);
        return fs_openat(dir_fd, name, flags, mode);
}

int fs_node_open(struct fs_server *fs, struct fs_node *node, int flags)
{
        char name[NAME_MAX + 1] = "";
        struct fs_node *parent;
        struct statx st;
        int fd, r;

        if (node->type == S_IFDIR)
                return fs_openat_relieved(fs, node->fd, ".", O_RDONLY | O_DIRECTORY, 0);
        if (node->type != S_IFREG)
                return -EOPNOTSUPP;

        pthread_mutex_lock(&fs->lock);
        parent = node->parent;
        if (parent && parent->fd < 0 && reopen(fs, parent) < 0)
                parent = NULL;
        if (parent && text_copy(name, sizeof(name), node->name))
                pin(fs, parent);
        pthread_mutex_unlock(&fs->lock);
        if (!*name)
                return -ESTALE;

        /* Not waited for and nobody's terminal, should the name be another thing's by now. */
        fd = fs_openat_relieved(fs, parent->fd, name, flags | O_NONBLOCK | O_NOCTTY, 0);
        fs_unpin(fs, parent);
        if (fd < 0)
                return fd == -ENOENT || fd == -ELOOP ? -ESTALE : fd;
        r = fs_statx(fd, &st);
        if (r == 0 && !fs_same(node, &st))
                r = -ESTALE;
        if (r < 0) {
                close(fd);
                return r;
        }
        return fd;
}

/* --- handles --- */

static struct fs_handle *handle_at(struct fs_server *fs, uint64_t id)
{
        uint32_t index = (uint32_t)id;

        if (index >= fs->handles || !fs->handle[index].handle || fs->handle[index].generation != id >> 32)
                return NULL;
        return fs->handle[index].handle;
}

static int grow_handles(struct fs_server *fs, uint32_t index)
{
        uint32_t count = fs->handles;
        struct fs_handle_slot *grown;

        if (index < fs->handles)
                return 0;
        if (index >= fs->handles_max)
                return -ENFILE;
        while (count <= index)
                count = count ? count * 2 : 32;
        grown = realloc(fs->handle, count * sizeof(*grown));
        if (!grown)
                return -ENOMEM;
        fs->handle = grown;
        for (uint32_t i = count; i-- > fs->handles;) {
                fs->handle[i] = (struct fs_handle_slot){ .next_free = fs->free_handle };
                fs->free_handle = i;
        }
        fs->handles = count;
        return 0;
}

/* fs->lock held; the slot was taken from the free list. */
static void handle_place(struct fs_server *fs, struct fs_handle *handle, uint32_t index)
{
        handle->index = index;
        handle->generation = fs->handle[index].generation;
        handle->refs = 1;
        fs->handle[index].handle = handle;
        fs->handles_open++;
        if (!handle->node->pins++ && handle->node != fs->root)
                list_remove(fs, handle->node);
}

static struct fs_handle *handle_alloc(struct fs_node *node, int fd, uint32_t flags)
{
        struct fs_handle *handle = calloc(1, sizeof(*handle));

        if (!handle)
                return NULL;
        handle->fd = fd;
        handle->flags = flags;
        handle->directory = node->type == S_IFDIR;
        handle->node = node;
        pthread_mutex_init(&handle->lock, NULL);
        return handle;
}

int fs_handle_new(struct fs_server *fs, struct fs_node *node, int fd, uint32_t flags, uint64_t *id)
{
        struct fs_handle *handle = handle_alloc(node, fd, flags);
        int r = handle ? 0 : -ENOMEM;

        pthread_mutex_lock(&fs->lock);
        if (r == 0 && fs->handles_open >= fs->handles_max)
                r = -ENFILE;
        if (r == 0 && fs->free_handle == NONE)
                r = grow_handles(fs, fs->handles);
        if (r == 0) {
                uint32_t index = fs->free_handle;

                fs->free_handle = fs->handle[index].next_free;
                handle_place(fs, handle, index);
                *id = (uint64_t)handle->generation << 32 | index;
        }
        pthread_mutex_unlock(&fs->lock);
        if (r == -ENFILE)
                log_guest("the guest has %u files of a shared directory open, and there can be no more", fs->handles_max);
        if (r < 0) {
                close(fd);
                free(handle);
        }
        return r;
}

int fs_handle_load(struct fs_server *fs, uint64_t id, struct fs_node *node, int fd, uint32_t flags)
{
        uint32_t index = (uint32_t)id;
        struct fs_handle *handle;

        if (grow_handles(fs, index) < 0 || fs->handle[index].handle || !(handle = handle_alloc(node, fd, flags))) {
                close(fd);
                return -EBADMSG;
        }
        fs->handle[index].generation = (uint32_t)(id >> 32);
        handle_place(fs, handle, index);
        return 0;
}

int fs_handle_get(struct fs_server *fs, uint64_t id, bool directory, struct fs_handle **found)
{
        struct fs_handle *handle;
        int r = -EBADF;

        pthread_mutex_lock(&fs->lock);
        handle = handle_at(fs, id);
        if (handle && handle->directory == directory) {
                handle->refs++;
                *found = handle;
                r = 0;
        }
        pthread_mutex_unlock(&fs->lock);
        return r;
}

void fs_handle_put(struct fs_server *fs, struct fs_handle *handle)
{
        bool last;

        pthread_mutex_lock(&fs->lock);
        last = --handle->refs == 0;
        if (last)
                unpin(fs, handle->node);
        pthread_mutex_unlock(&fs->lock);
        if (!last)
                return;
        close(handle->fd);
        pthread_mutex_destroy(&handle->lock);
        free(handle);
}

void fs_handle_release(struct fs_server *fs, uint64_t id)
{
        struct fs_handle *handle;

        pthread_mutex_lock(&fs->lock);
        handle = handle_at(fs, id);
        if (handle) {
                struct fs_handle_slot *slot = &fs->handle[handle->index];

                slot->handle = NULL;
                slot->generation++;
                slot->next_free = fs->free_handle;
                fs->free_handle = handle->index;
                fs->handles_open--;
        }
        pthread_mutex_unlock(&fs->lock);
        if (handle)
                fs_handle_put(fs, handle);
}

/* --- the whole --- */

void fs_nodes_loaded(struct fs_server *fs)
{
        fs->free_slot = fs->free_handle = NONE;
        for (uint32_t i = fs->slots; i-- > 2;) {
                if (!fs->slot[i].node) {
                        fs->slot[i].next_free = fs->free_slot;
                        fs->free_slot = i;
                }
        }
        for (uint32_t i = fs->handles; i-- > 0;) {
                if (!fs->handle[i].handle) {
                        fs->handle[i].next_free = fs->free_handle;
                        fs->free_handle = i;
                }
        }
}

/*
 * A part of the descriptors that the process may have: the rest is for disks and networks. An open file has two, its own and its
 * node's. The limit may still be lowered to FILES_MAX by a sandbox.
 */
void fs_server_divide(struct fs_server *fs, unsigned servers)
{
        struct rlimit limit = { .rlim_cur = 1024 };
        rlim_t files;

        getrlimit(RLIMIT_NOFILE, &limit);
        files = MIN(limit.rlim_cur, (rlim_t)FILES_MAX) / MAX(servers, 1u);
        fs->node_fds_max = (uint32_t)MAX(files / 8, (rlim_t)16);
        fs->handles_max = (uint32_t)MAX(files / 4, (rlim_t)16);
}

int fs_nodes_init(struct fs_server *fs, struct err *err)
{
        struct statx st;
        int r;

        fs->free_slot = fs->free_handle = NONE;
        fs_server_divide(fs, 1);
        r = fs_statx(fs->root_fd, &st);
        if (r < 0)
                return err_errno(err, r, "cannot read the shared directory");
        fs->hash_size = HASH_MIN;
        fs->hash = calloc(fs->hash_size, sizeof(struct fs_node *));
        if (!fs->hash || grow_slots(fs, 1) < 0 || !(fs->root = node_new(fs, FUSE_ROOT_ID)))
                return err_nomem(err);
        set_identity(fs->root, &st);
        fs->root->fd = fs->root_fd;
        hash_insert(fs, fs->root);
        return 0;
}

void fs_nodes_reset(struct fs_server *fs)
{
        bool more = true;

        for (uint32_t i = 0; more; i++) {
                uint64_t id;

                pthread_mutex_lock(&fs->lock);
                more = i < fs->handles;
                id = more ? (uint64_t)fs->handle[i].generation << 32 | i : 0;
                pthread_mutex_unlock(&fs->lock);
                if (more)
                        fs_handle_release(fs, id);
        }
        pthread_mutex_lock(&fs->lock);
        /* A node may go when a child of it goes: each slot is looked at afresh. */
        for (uint32_t i = 2; i < fs->slots; i++) {
                struct fs_node *node = fs->slot[i].node;

                if (node) {
                        node->lookups = 0;
                        node_check(fs, node);
                }
        }
        pthread_mutex_unlock(&fs->lock);
}

void fs_nodes_done(struct fs_server *fs)
{
        if (fs->root)
                fs_nodes_reset(fs);
        if (fs->root)
                free(fs->root);
        free(fs->slot);
        free(fs->handle);
        free(fs->hash);
}

void fs_unpinp(struct fs_server *fs, struct fs_node **node)
{
        if (*node)
                fs_unpin(fs, *node);
        *node = NULL;
}
