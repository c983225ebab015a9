#include "container/inside.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/syscall.h>

#define LINKS_MAX 40 /* as the kernel's own limit: path_resolution(7) */

int inside_open(int root_fd, const char *path, int flags)
{
        struct open_how how = { .flags = (unsigned)(flags | O_CLOEXEC), .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };
        int tries = 0;
        long fd;

        /* EAGAIN: something was renamed meanwhile, and the kernel could not be sure. openat2(2). */
        do
                fd = syscall(SYS_openat2, root_fd, *path ? path : ".", &how, sizeof(how));
        while (fd < 0 && errno == EAGAIN && ++tries < 128);
        return fd < 0 ? -errno : (int)fd;
}

/* The place of the last component, without slashes behind it: 0 when there is none ("/", ""). */
static size_t last_component(char *path)
{
        size_t length = strlen(path);

        while (length && path[length - 1] == '/')
                path[--length] = 0;
        while (length && path[length - 1] != '/')
                length--;
        return length;
}

static int make_directory(int root_fd, const char *path, mode_t mode, unsigned links, int *fd, struct err *err);

/*
 * Where a link that leads to nothing leads to: path is the link's, `base` the length of the part in front of its name. The result
 * is a path from the root again.
 */
static int follow_link(int parent_fd, char *path, size_t base, struct err *err)
{
        char target[PATH_MAX];
        ssize_t length = readlinkat(parent_fd, path + base, target, sizeof(target) - 1);

        if (length < 0)
                return err_errno(err, -errno, "cannot read the link '%s'", path);
        target[length] = 0;
        if (target[0] == '/')
                base = 0;
        if (base + (size_t)length >= PATH_MAX)
                return err_set(err, -ENAMETOOLONG, "'%s' leads to too long a path", path);
        memcpy(path + base, target, (size_t)length + 1);
        return 0;
}

static int make_directory(int root_fd, const char *wanted, mode_t mode, unsigned links, int *fd, struct err *err)
{
        _cleanup_close_ int parent = -1;
        char path[PATH_MAX], above[PATH_MAX];
        size_t base;
        int r;

        if (strlen(wanted) >= sizeof(path))
                return err_set(err, -ENAMETOOLONG, "a path of %zu bytes is too long", strlen(wanted));
        r = inside_open(root_fd, wanted, O_PATH | O_DIRECTORY);
        if (r >= 0) {
                *fd = r;
                return 0;
        }
        if (r != -ENOENT)
                return err_errno(err, r, "cannot open the directory '%s'", wanted);
        if (!links)
                return err_set(err, -ELOOP, "too many links and directories on the way to '%s'", wanted);
        strcpy(path, wanted);
        base = last_component(path);
        memcpy(above, path, base);
        above[base] = 0;
        if (!strcmp(path + base, "..") || !strcmp(path + base, "."))
                return err_set(err, -EINVAL, "'%s' goes through a directory that is not there", wanted);
        r = make_directory(root_fd, base ? above : "/", mode, links - 1, &parent, err);
        if (r < 0)
                return r;
        if (mkdirat(parent, path + base, mode) == 0) {
                int made = openat(parent, path + base, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

                if (made < 0)
                        return err_errno(err, -errno, "cannot open the directory '%s' that was just made", wanted);
                *fd = made;
                return 0;
        }
        if (errno != EEXIST)
                return err_errno(err, -errno, "cannot make the directory '%s'", wanted);
        /* A link that leads to nothing: what it leads to is made. */
        r = follow_link(parent, path, base, err);
        return r < 0 ? r : make_directory(root_fd, path, mode, links - 1, fd, err);
}

/* Directories count as links do: a path has at most PATH_MAX / 2 of them, which would be too deep for a stack of this kind. */
int inside_directory(int root_fd, const char *path, mode_t mode, int *fd, struct err *err)
{
        return make_directory(root_fd, path, mode, LINKS_MAX * 2, fd, err);
}

int inside_parent(int root_fd, const char *path, int *parent_fd, const char **name, struct err *err)
{
        const char *slash = strrchr(path, '/');
        char above[PATH_MAX];

        if (strlen(path) >= sizeof(above))
                return err_set(err, -ENAMETOOLONG, "a path of %zu bytes is too long", strlen(path));
        if (!slash || !slash[1] || !strcmp(slash, "/.") || !strcmp(slash, "/.."))
                return err_set(err, -EINVAL, "'%s' names no file", path);
        memcpy(above, path, (size_t)(slash - path));
        above[slash - path] = 0;
        *name = slash + 1;
        return inside_directory(root_fd, *above ? above : "/", 0755, parent_fd, err);
}

static int make_file(int root_fd, const char *wanted, mode_t mode, unsigned links, int *fd, struct err *err)
{
        _cleanup_close_ int parent = -1;
        char path[PATH_MAX];
        const char *name;
        int made, r = inside_open(root_fd, wanted, O_PATH);

        if (r >= 0) {
                *fd = r;
                return 0;
        }
        if (r != -ENOENT)
                return err_errno(err, r, "cannot open '%s'", wanted);
        r = inside_parent(root_fd, wanted, &parent, &name, err);
        if (r < 0)
                return r;
        made = openat(parent, name, O_CREAT | O_EXCL | O_NOFOLLOW | O_WRONLY | O_CLOEXEC, mode);
        if (made >= 0) {
                int place = openat(parent, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);

                close(made);
                if (place < 0)
                        return err_errno(err, -errno, "cannot open '%s' that was just made", wanted);
                *fd = place;
                return 0;
        }
        if (errno != EEXIST || !links)
                return err_errno(err, -errno, "cannot make '%s'", wanted);
        strcpy(path, wanted);
        r = follow_link(parent, path, (size_t)(name - wanted), err);
        return r < 0 ? r : make_file(root_fd, path, mode, links - 1, fd, err);
}

int inside_file(int root_fd, const char *path, mode_t mode, int *fd, struct err *err)
{
        return make_file(root_fd, path, mode, LINKS_MAX, fd, err);
}
