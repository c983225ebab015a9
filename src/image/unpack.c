#include "image/unpack.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include "image/store.h"

#define WHITEOUT ".wh."
#define OPAQUE ".wh..wh..opq"

/* Times and modes of directories are set at the end: what is made in them changes the ones, and needs the right to write. */
struct directory {
        char *path;
        mode_t mode;
        struct timespec times[2];
};

struct unpacking {
        const struct unpack *unpack;
        struct layer_stream *stream;
        struct archive *archive;
        _Atomic uint64_t *position_bytes;
        char parent[PATH_MAX]; /* of the entry before; its descriptor is kept */
        int parent_fd;         /* -1: none */
        struct directory *directories;
        size_t directory_count, directory_room;
        uint64_t entries, size_bytes;
        struct err *err;
        int stream_error;
};

/* ---- names ---- */

/* Without "." and doubled slashes; empty: the root itself. */
static int clean_name(struct unpacking *u, const char *name, char to[PATH_MAX])
{
        size_t length = 0;

        if (!name)
                return err_set(u->err, -EBADMSG, "an entry of the layer has no name");
        for (const char *at = name; *at;) {
                size_t part = strcspn(at, "/");

                if (part == 2 && at[0] == '.' && at[1] == '.')
                        return err_set(u->err, -EBADMSG, "the layer's entry '%.200s' leaves the image's root", name);
                if (part && !(part == 1 && at[0] == '.')) {
                        if (length + 1 + part >= PATH_MAX || part > NAME_MAX)
                                return err_set(u->err, -ENAMETOOLONG, "the layer's entry '%.200s…' has too long a name", name);
                        if (length)
                                to[length++] = '/';
                        memcpy(to + length, at, part);
                        length += part;
                }
                at += part + (at[part] == '/');
        }
        to[length] = 0;
        return 0;
}

static int open_inside(int root_fd, const char *path, uint64_t flags)
{
        struct open_how how = { .flags = flags | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };
        int fd;

        do
                fd = (int)syscall(SYS_openat2, root_fd, path[0] ? path : ".", &how, sizeof(how));
        while (fd < 0 && errno == EAGAIN);
        return fd < 0 ? -errno : fd;
}

/* What is missing of the path is made, as others do for a tar without its directories. */
static int make_path(int root_fd, const char *path)
{
        _cleanup_close_ int above = open_inside(root_fd, "", O_PATH | O_DIRECTORY);
        char prefix[PATH_MAX];

        if (above < 0)
                return above;
        for (const char *at = path; *at;) {
                size_t part = strcspn(at, "/"), length = (size_t)(at - path) + part;
                int fd;

                memcpy(prefix, path, length);
                prefix[length] = 0;
                fd = open_inside(root_fd, prefix, O_PATH | O_DIRECTORY);
                if (fd == -ENOENT) {
                        if (mkdirat(above, prefix + (at - path), 0755) < 0)
                                return -errno;
                        fd = open_inside(root_fd, prefix, O_PATH | O_DIRECTORY);
                }
                if (fd < 0)
                        return fd;
                close(above);
                above = fd;
                at += part + (at[part] == '/');
        }
        return steal_fd(&above);
}

/* The directory that the path is in, whose last part *name becomes. The descriptor is u's. */
static int open_parent(struct unpacking *u, char *path, const char **name)
{
        char *slash = strrchr(path, '/');
        const char *parent = slash ? path : "";
        int fd;

        *name = slash ? slash + 1 : path;
        if (slash)
                *slash = 0;
        if (u->parent_fd >= 0 && !strcmp(parent, u->parent)) {
                fd = u->parent_fd;
        } else {
                fd = open_inside(u->unpack->root_fd, parent, O_PATH | O_DIRECTORY);
                if (fd == -ENOENT)
                        fd = make_path(u->unpack->root_fd, parent);
                if (fd >= 0) {
                        closep(&u->parent_fd);
                        u->parent_fd = fd;
                        strcpy(u->parent, parent);
                }
        }
        if (slash)
                *slash = '/';
        return fd < 0 ? err_errno(u->err, fd, "cannot open the directory of the layer's entry '%s'", path) : fd;
}

/* A directory may have been one of those on the way to it. */
static void forget_parent(struct unpacking *u)
{
        closep(&u->parent_fd);
        u->parent_fd = -1;
}

/* ---- entries ---- */

static int fail(struct unpacking *u, const char *path, const char *what)
{
        return err_errno(u->err, -errno, "cannot %s the layer's entry '%s'", what, path);
}

/* What is in the way of a new entry, unless both are directories. */
static int clear_way(struct unpacking *u, int parent_fd, const char *name, const char *path)
{
        int r = store_remove_tree(parent_fd, name);

        forget_parent(u);
        return r < 0 ? err_errno(u->err, r, "cannot replace '%s' by the layer's entry", path) : 0;
}

static void entry_times(struct archive_entry *entry, struct timespec times[2])
{
        times[1] = (struct timespec){ archive_entry_mtime(entry), archive_entry_mtime_nsec(entry) };
        times[0] = archive_entry_atime_is_set(entry) ? (struct timespec){ archive_entry_atime(entry), archive_entry_atime_nsec(entry) } : times[1];
}

/* Of the attributes that a layer may bring: trusted.* and labels are the host's. */
static bool attribute_is_good(const char *name)
{
        return !strncmp(name, "user.", 5) ? strncmp(name, "user.overlay.", 13) != 0 : !strcmp(name, "security.capability");
}

static int set_attributes(struct unpacking *u, int parent_fd, const char *name, const char *path, struct archive_entry *entry)
{
        mode_t type = archive_entry_filetype(entry);
        _cleanup_close_ int fd = -1;
        const char *key;
        const void *value;
        size_t size_bytes;

        if (!archive_entry_xattr_reset(entry) || (type != AE_IFREG && type != AE_IFDIR))
                return 0;
        fd = openat(parent_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (fd < 0)
                return fail(u, path, "open");
        while (archive_entry_xattr_next(entry, &key, &value, &size_bytes) == ARCHIVE_OK)
                if (attribute_is_good(key) && fsetxattr(fd, key, value, size_bytes, 0) < 0 && errno != EOPNOTSUPP && errno != EPERM)
                        return fail(u, path, "set an attribute of");
        return 0;
}

/* Nothing below shows through this directory. */
static int make_opaque(struct unpacking *u, int parent_fd, const char *name, const char *path)
{
        _cleanup_close_ int fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

        return fd < 0 || fsetxattr(fd, u->unpack->opaque_attribute, "y", 1, 0) < 0 ? fail(u, path, "hide what is below") : 0;
}

/* Owner first: a change of it takes set-user-id and capabilities away. Mode after the attributes, which need the right to write. */
static int set_metadata(struct unpacking *u, int parent_fd, const char *name, const char *path, struct archive_entry *entry)
{
        mode_t type = archive_entry_filetype(entry), mode = (mode_t)archive_entry_perm(entry) | (type == AE_IFDIR ? 0700 : 0);
        struct timespec times[2];
        int r;

        if (u->unpack->owners &&
            fchownat(parent_fd, name, (uid_t)archive_entry_uid(entry), (gid_t)archive_entry_gid(entry), AT_SYMLINK_NOFOLLOW) < 0)
                return fail(u, path, "set the owner of");
        r = set_attributes(u, parent_fd, name, path, entry);
        if (r < 0)
                return r;
        if (type != AE_IFLNK && fchmodat(parent_fd, name, mode, 0) < 0)
                return fail(u, path, "set the mode of");
        entry_times(entry, times);
        return utimensat(parent_fd, name, times, AT_SYMLINK_NOFOLLOW) < 0 ? fail(u, path, "set the times of") : 0;
}

static int copy_data(struct unpacking *u, int fd, const char *path, int64_t size_bytes)
{
        const void *bytes;
        size_t count;
        int64_t offset;
        int r;

        while ((r = archive_read_data_block(u->archive, &bytes, &count, &offset)) == ARCHIVE_OK) {
                if (offset < 0 || offset > size_bytes || (int64_t)count > size_bytes - offset)
                        return err_set(u->err, -EBADMSG, "the layer's entry '%s' has data behind its end", path);
                for (size_t done = 0; done < count;) {
                        ssize_t n = pwrite(fd, (const char *)bytes + done, count - done, offset + (int64_t)done);

                        if (n < 0 && errno != EINTR)
                                return fail(u, path, "write");
                        done += n > 0 ? (size_t)n : 0;
                }
        }
        if (r != ARCHIVE_EOF)
                return u->stream_error ? u->stream_error
                                       : err_set(u->err, -EBADMSG, "the layer's entry '%s' is damaged: %s", path, archive_error_string(u->archive));
        /* A hole at the end. */
        return ftruncate(fd, size_bytes) < 0 ? fail(u, path, "write") : 0;
}

static int make_file(struct unpacking *u, int parent_fd, const char *name, const char *path, struct archive_entry *entry)
{
        int64_t size_bytes = archive_entry_size(entry);
        uint64_t limit = u->unpack->limits.size_bytes ? u->unpack->limits.size_bytes : UNPACK_SIZE_MAX;
        _cleanup_close_ int fd = -1;

        if (size_bytes < 0 || (uint64_t)size_bytes > limit - u->size_bytes)
                return err_set(u->err, -EFBIG, "the layer's files are more than %llu GiB, at '%s'", (unsigned long long)(limit >> 30), path);
        u->size_bytes += (uint64_t)size_bytes;
        fd = openat(parent_fd, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0600);
        return fd < 0 ? fail(u, path, "make") : copy_data(u, fd, path, size_bytes);
}

static int make_link(struct unpacking *u, int parent_fd, const char *name, const char *path, const char *target)
{
        _cleanup_close_ int target_fd = -1;
        char clean[PATH_MAX], *slash;
        int r = clean_name(u, target, clean);

        if (r < 0)
                return r;
        slash = strrchr(clean, '/');
        if (slash)
                *slash = 0;
        target_fd = open_inside(u->unpack->root_fd, slash ? clean : "", O_PATH | O_DIRECTORY);
        if (target_fd < 0)
                return err_errno(u->err, target_fd, "cannot open the directory of '%s', which '%s' links to", target, path);
        return linkat(target_fd, slash ? slash + 1 : clean, parent_fd, name, 0) < 0
                       ? err_errno(u->err, -errno, "cannot link the layer's entry '%s' to '%s'", path, target)
                       : 0;
}

static int remember_directory(struct unpacking *u, const char *path, struct archive_entry *entry)
{
        struct directory *d;

        if (u->directory_count == u->directory_room) {
                size_t room = u->directory_room ? 2 * u->directory_room : 256;

                d = reallocarray(u->directories, room, sizeof(*d));
                if (!d)
                        return err_nomem(u->err);
                u->directories = d;
                u->directory_room = room;
        }
        d = &u->directories[u->directory_count];
        d->path = strdup(path);
        if (!d->path)
                return err_nomem(u->err);
        entry_times(entry, d->times);
        d->mode = (mode_t)archive_entry_perm(entry);
        u->directory_count++;
        return 0;
}

static int make_directory(struct unpacking *u, int parent_fd, const char *name, const char *path, struct archive_entry *entry)
{
        struct stat st;
        int r = mkdirat(parent_fd, name, 0700) < 0 ? -errno : 0;

        if (r == -EEXIST && fstatat(parent_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode))
                r = 0;
        errno = -r;
        return r < 0 ? fail(u, path, "make") : remember_directory(u, path, entry);
}

/* The root of the tar itself. */
static int set_root(struct unpacking *u, struct archive_entry *entry)
{
        if (u->unpack->owners && fchown(u->unpack->root_fd, (uid_t)archive_entry_uid(entry), (gid_t)archive_entry_gid(entry)) < 0)
                return fail(u, "/", "set the owner of");
        return remember_directory(u, "", entry);
}

/* ---- whiteouts ---- */

static int whiteout(struct unpacking *u, int parent_fd, const char *name, const char *path)
{
        const char *gone = name + strlen(WHITEOUT);

        if (!strcmp(name, OPAQUE))
                return make_opaque(u, parent_fd, ".", path);
        /* Others of aufs' own are no whiteouts. */
        if (!strncmp(gone, WHITEOUT, strlen(WHITEOUT)))
                return 0;
        if (!gone[0] || !strcmp(gone, ".") || !strcmp(gone, ".."))
                return err_set(u->err, -EBADMSG, "the layer's whiteout '%s' names nothing", path);
        /* One that this layer brings as well is not hidden: whiteouts are of what is below. */
        return mknodat(parent_fd, gone, S_IFCHR, makedev(0, 0)) < 0 && errno != EEXIST ? fail(u, path, "make") : 0;
}

/* ---- all ---- */

static bool is_whiteout(int parent_fd, const char *name)
{
        struct stat st;

        return fstatat(parent_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISCHR(st.st_mode) && !st.st_rdev;
}

static int make_entry(struct unpacking *u, int parent_fd, const char *name, const char *path, struct archive_entry *entry)
{
        const char *target = archive_entry_hardlink(entry), *text;
        mode_t type = archive_entry_filetype(entry);

        if (target)
                return make_link(u, parent_fd, name, path, target);
        switch (type) {
        case AE_IFREG:
                return make_file(u, parent_fd, name, path, entry);
        case AE_IFDIR:
                return make_directory(u, parent_fd, name, path, entry);
        case AE_IFLNK:
                text = archive_entry_symlink(entry);
                if (!text || !text[0] || strlen(text) >= PATH_MAX)
                        return err_set(u->err, -EBADMSG, "the layer's link '%s' leads nowhere, or too far", path);
                return symlinkat(text, parent_fd, name) < 0 ? fail(u, path, "make") : 0;
        case AE_IFIFO:
                return mknodat(parent_fd, name, S_IFIFO | 0600, 0) < 0 ? fail(u, path, "make") : 0;
        default:
                return err_set(u->err, -EBADMSG, "the layer's entry '%s' is of a kind that images do not have", path);
        }
}

static int put_entry(struct unpacking *u, struct archive_entry *entry)
{
        bool directory = archive_entry_filetype(entry) == AE_IFDIR && !archive_entry_hardlink(entry);
        char path[PATH_MAX];
        const char *name;
        struct stat st;
        int parent_fd, r = clean_name(u, archive_entry_pathname(entry), path);

        if (r < 0)
                return r;
        if (!path[0])
                return directory ? set_root(u, entry) : err_set(u->err, -EBADMSG, "the layer's entry '/' is no directory");
        /* The runtime makes a container's devices; those of an image would be the host's. */
        if (archive_entry_filetype(entry) == AE_IFCHR || archive_entry_filetype(entry) == AE_IFBLK)
                return 0;
        parent_fd = open_parent(u, path, &name);
        if (parent_fd < 0)
                return parent_fd;
        if (!strncmp(name, WHITEOUT, strlen(WHITEOUT)))
                return whiteout(u, parent_fd, name, path);
        if (fstatat(parent_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && (!directory || !S_ISDIR(st.st_mode))) {
                bool hidden = directory && is_whiteout(parent_fd, name);

                r = clear_way(u, parent_fd, name, path);
                if (r < 0)
                        return r;
                parent_fd = open_parent(u, path, &name);
                if (parent_fd < 0)
                        return parent_fd;
                /* Gone and made again: nothing below is to be seen through it. */
                if (hidden) {
                        if (mkdirat(parent_fd, name, 0700) < 0)
                                return fail(u, path, "make");
                        r = make_opaque(u, parent_fd, name, path);
                }
        }
        if (!r)
                r = make_entry(u, parent_fd, name, path, entry);
        if (r < 0 || archive_entry_hardlink(entry))
                return r;
        return set_metadata(u, parent_fd, name, path, entry);
}

static la_ssize_t give_bytes(struct archive *archive, void *ctx, const void **bytes)
{
        struct unpacking *u = ctx;
        ssize_t n = layer_stream_read(u->stream, bytes, u->err);

        if (n < 0) {
                u->stream_error = (int)n;
                archive_set_error(archive, EIO, "the stream");
        } else if (u->position_bytes) {
                atomic_store_explicit(u->position_bytes, layer_stream_position(u->stream), memory_order_relaxed);
        }
        return n < 0 ? ARCHIVE_FATAL : n;
}

static int put_entries(struct unpacking *u)
{
        uint64_t limit = u->unpack->limits.entries ? u->unpack->limits.entries : UNPACK_ENTRIES_MAX;
        struct archive_entry *entry;
        int r, status;

        while ((status = archive_read_next_header(u->archive, &entry)) == ARCHIVE_OK || status == ARCHIVE_WARN) {
                if (u->entries++ == limit)
                        return err_set(u->err, -E2BIG, "the layer has more than %llu entries", (unsigned long long)limit);
                r = put_entry(u, entry);
                if (r < 0)
                        return r;
        }
        if (status == ARCHIVE_EOF)
                return 0;
        return u->stream_error ? u->stream_error : err_set(u->err, -EBADMSG, "the layer is no tar: %s", archive_error_string(u->archive));
}

/* From the last to the first: a directory comes before what is in it. */
static int finish_directories(struct unpacking *u)
{
        for (size_t i = u->directory_count; i-- > 0;) {
                const struct directory *d = &u->directories[i];
                _cleanup_close_ int fd = open_inside(u->unpack->root_fd, d->path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);

                /* One that was replaced is not there any more. */
                if (fd >= 0 && fchmod(fd, d->mode) < 0)
                        return fail(u, d->path, "set the mode of");
                if (fd >= 0 && futimens(fd, d->times) < 0)
                        return fail(u, d->path, "set the times of");
        }
        return 0;
}

/* What follows the tar's end belongs to its digest. */
static int drain(struct unpacking *u)
{
        const void *bytes;
        ssize_t n;

        do
                n = layer_stream_read(u->stream, &bytes, u->err);
        while (n > 0);
        return (int)n;
}

int unpack_layer(const struct unpack *unpack, struct layer_stream *stream, _Atomic uint64_t *position_bytes, struct err *err)
{
        struct unpacking u = { .unpack = unpack, .stream = stream, .position_bytes = position_bytes, .parent_fd = -1, .err = err,
                               .archive = archive_read_new() };
        int r = 0;

        /* Names stay the bytes they are, without a locale; libarchive warns of some, which is no error here. */
        if (!u.archive || archive_read_support_format_tar(u.archive) != ARCHIVE_OK ||
            archive_read_support_format_empty(u.archive) != ARCHIVE_OK)
                r = err_nomem(err);
        if (!r && archive_read_open(u.archive, &u, NULL, give_bytes, NULL) != ARCHIVE_OK)
                r = u.stream_error ? u.stream_error : err_set(err, -EBADMSG, "the layer is no tar: %s", archive_error_string(u.archive));
        if (!r)
                r = put_entries(&u);
        if (!r)
                r = finish_directories(&u);
        if (!r)
                r = drain(&u);
        for (size_t i = 0; i < u.directory_count; i++)
                free(u.directories[i].path);
        free(u.directories);
        closep(&u.parent_fd);
        archive_read_free(u.archive);
        return r;
}
