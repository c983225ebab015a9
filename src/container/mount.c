#include "container/mount.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/syscall.h>

int mount_copy(int dir_fd, const char *path, bool recursive, int *tree_fd, struct err *err)
{
        int fd = open_tree(dir_fd, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0));

        if (fd < 0)
                return err_errno(err, -errno, "cannot take '%s' as a mount", path);
        *tree_fd = fd;
        return 0;
}

/* What the file system said about its options: lines "e text" (error), "w", "i". fsopen(2). */
static int explain(int fs_fd, int code, const char *type, const char *what, struct err *err)
{
        char line[512], said[512] = "";
        ssize_t n;

        while ((n = read(fs_fd, line, sizeof(line) - 1)) > 0) {
                line[n] = 0;
                line[strcspn(line, "\n")] = 0;
                if (line[0] == 'e' && line[1] == ' ')
                        snprintf(said, sizeof(said), " (%.500s)", line + 2);
        }
        return err_errno(err, code, "cannot mount a file system of the type '%s'%s%s%s%s", type, what ? " with '" : "", what ? what : "",
                         what ? "'" : "", said);
}

static int configure(int fs_fd, const char *option)
{
        const char *equals = strchr(option, '=');
        char key[256];

        if (!equals)
                return fsconfig(fs_fd, FSCONFIG_SET_FLAG, option, NULL, 0) < 0 ? -errno : 0;
        if ((size_t)(equals - option) >= sizeof(key))
                return -EINVAL;
        memcpy(key, option, (size_t)(equals - option));
        key[equals - option] = 0;
        return fsconfig(fs_fd, FSCONFIG_SET_STRING, key, equals + 1, 0) < 0 ? -errno : 0;
}

/*
 * Options in one word ("size=64m,mode=755") are taken apart. devpts: a gid that the user namespace does not map is left out, as other
 * runtimes do: the generated configurations of a plain user have it.
 */
static int configure_all(int fs_fd, const char *type, const char *const *data, struct err *err)
{
        for (; data && *data; data++) {
                char words[4096];
                char *rest = words, *word;

                if (strlen(*data) >= sizeof(words))
                        return err_set(err, -ENAMETOOLONG, "an option of %zu bytes for '%s' is too long", strlen(*data), type);
                strcpy(words, *data);
                while ((word = strsep(&rest, ","))) {
                        int r = *word ? configure(fs_fd, word) : 0;

                        if (r == -EINVAL && !strcmp(type, "devpts") && !strncmp(word, "gid=", 4))
                                continue;
                        if (r < 0)
                                return explain(fs_fd, r, type, word, err);
                }
        }
        return 0;
}

int mount_new(const char *type, const char *source, const char *const *data, uint64_t attr, int *tree_fd, struct err *err)
{
        _cleanup_close_ int fs_fd = fsopen(type, FSOPEN_CLOEXEC);
        int r, fd;

        if (fs_fd < 0)
                return err_errno(err, -errno, "cannot mount a file system of the type '%s'", type);
        if (source && fsconfig(fs_fd, FSCONFIG_SET_STRING, "source", source, 0) < 0)
                return explain(fs_fd, -errno, type, source, err);
        r = configure_all(fs_fd, type, data, err);
        if (r < 0)
                return r;
        if (fsconfig(fs_fd, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
                return explain(fs_fd, -errno, type, NULL, err);
        fd = fsmount(fs_fd, FSMOUNT_CLOEXEC, (unsigned)attr);
        if (fd < 0)
                return explain(fs_fd, -errno, type, NULL, err);
        *tree_fd = fd;
        return 0;
}

int mount_change(int tree_fd, uint64_t set, uint64_t clear, uint64_t propagation, bool recursive, struct err *err)
{
        struct mount_attr attr = { .attr_set = set, .attr_clr = clear, .propagation = propagation };

        if (!set && !clear && !propagation)
                return 0;
        if (mount_setattr(tree_fd, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0), &attr, sizeof(attr)) < 0)
                return err_errno(err, -errno, "cannot change the attributes of a mount (set %#llx, clear %#llx, propagation %#llx%s)",
                                 (unsigned long long)set, (unsigned long long)clear, (unsigned long long)propagation, recursive ? ", recursive" : "");
        return 0;
}

int mount_map_ids(int tree_fd, int userns_fd, bool recursive, struct err *err)
{
        struct mount_attr attr = { .attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (uint64_t)userns_fd };

        if (mount_setattr(tree_fd, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0), &attr, sizeof(attr)) < 0)
                return err_errno(err, -errno, "cannot map the ids of a mount (its file system may not know how)");
        return 0;
}

int mount_attach(int tree_fd, int place_fd, struct err *err)
{
        if (move_mount(tree_fd, "", place_fd, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
                return err_errno(err, -errno, "cannot put a mount into its place");
        return 0;
}

int mount_prepare(const struct mount_config *mount, int bundle_fd, int *tree_fd, struct err *err)
{
        _cleanup_close_ int fd = -1;
        int r;

        if (mount->kind == MOUNT_BIND) {
                r = mount_copy(mount->source[0] == '/' ? AT_FDCWD : bundle_fd, mount->source, mount->recursive_bind, &fd, err);
        } else {
                /* The times' bits are one field of values: only what is to be set goes into fsmount(). */
                r = mount_new(mount->type, mount->source, (const char *const *)mount->data, mount->set, &fd, err);
        }
        if (!r && mount->kind == MOUNT_BIND)
                r = mount_change(fd, mount->set, mount->clear, 0, false, err);
        if (!r)
                r = mount_change(fd, mount->set_recursive, mount->clear_recursive, 0, true, err);
        if (!r)
                *tree_fd = steal_fd(&fd);
        return r;
}
