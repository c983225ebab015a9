#include "container/rootfs.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include "base/mounts.h"
#include "container/copy-up.h"
#include "container/inside.h"
#include "container/mount.h"
#include "container/procfs.h"

bool rootfs_parent_makes(const struct config *config, const struct mount_config *mount)
{
        return mount->id_mapped || (config->namespaces[NAMESPACE_USER].wanted && mount->kind == MOUNT_BIND && !mount->remount);
}

/* CVE-2025-31133: what hides files is checked to be what it is called. */
static int open_null(struct err *err)
{
        _cleanup_close_ int fd = open("/dev/null", O_PATH | O_CLOEXEC);
        struct stat st;

        if (fd < 0 || fstat(fd, &st) < 0)
                return err_errno(err, -errno, "cannot open '/dev/null'");
        if (!S_ISCHR(st.st_mode) || st.st_rdev != makedev(1, 3))
                return err_set(err, -ENODEV, "'/dev/null' is another device");
        return steal_fd(&fd);
}

/* What was opened before this mount namespace belongs to the host's mounts, which cannot be taken from here. */
static int open_host(struct rootfs *rootfs, struct err *err)
{
        rootfs->null_fd = open_null(err);
        if (rootfs->null_fd < 0)
                return rootfs->null_fd;
        rootfs->bundle_fd = open(rootfs->bundle, O_PATH | O_DIRECTORY | O_CLOEXEC);
        /* The root of a user namespace may not be allowed in: the runtime has then made the mounts. */
        if (rootfs->bundle_fd < 0 && !rootfs->trees_given)
                return err_errno(err, -errno, "cannot open the bundle '%s'", rootfs->bundle);
        return 0;
}

int rootfs_enter_tree(struct rootfs *rootfs, const char *path, int root_tree, struct err *err)
{
        _cleanup_close_ int tree = root_tree;
        _cleanup_close_ int place = -1;
        int r = 0;

        /* Nothing that is mounted from here on reaches the host; what the host mounts may still come in, until the pivot. */
        r = mounts_propagate(MS_SLAVE);
        if (r < 0)
                return err_errno(err, r, "cannot separate the container's mounts from the host's");
        r = open_host(rootfs, err);
        if (r < 0)
                return r;
        place = openat(rootfs->bundle_fd, path, O_PATH | O_DIRECTORY | O_CLOEXEC);
        /* The root of a user namespace may not be allowed into the bundle's directory; any place does, since the root leaves it at once. */
        if (place < 0 && tree >= 0)
                place = open("/sys", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (place < 0)
                return err_errno(err, -errno, "cannot open the container's root '%s'", path);
        if (tree < 0)
                r = mount_copy(place, "", true, &tree, err);
        if (!r)
                r = mount_change(tree, 0, 0, MS_PRIVATE, true, err);
        if (!r)
                r = mount_attach(tree, place, err);
        if (r < 0)
                return err_wrap(err, r, "the container's root '%s'", path);
        rootfs->root_fd = steal_fd(&tree);
        return 0;
}

/* Files of /proc that may be covered by ones that tell of the container's limits (lxcfs). */
static bool may_cover_in_proc(const char *destination)
{
        static const char *const files[] = {
                "/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime", "/proc/loadavg",
                "/proc/slabinfo", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled", "/proc/net/dev",
        };

        for (size_t i = 0; i < ARRAY_SIZE(files); i++)
                if (!strcmp(destination, files[i]))
                        return true;
        return false;
}

/* A mount in a procfs would let later writes to /proc end in it. CVE-2019-16884. */
static int check_place(int place, int tree, const struct mount_config *mount, struct err *err)
{
        struct statfs place_fs, tree_fs;
        struct stat st;

        if (fstatfs(place, &place_fs) < 0 || place_fs.f_type != PROC_SUPER_MAGIC)
                return 0;
        /* A procfs again on its root is nothing to fear. */
        if (fstatfs(tree, &tree_fs) == 0 && tree_fs.f_type == PROC_SUPER_MAGIC && fstat(place, &st) == 0 && st.st_ino == 1)
                return 0;
        return may_cover_in_proc(mount->destination) ? 0 : err_set(err, -EPERM, "'%s' is inside /proc, where nothing may be mounted", mount->destination);
}

static int make_place(struct rootfs *rootfs, const struct mount_config *mount, int tree, int *place, struct err *err)
{
        struct stat st;

        if (tree >= 0 && fstat(tree, &st) < 0)
                return err_errno(err, -errno, "cannot look at the source");
        if (tree >= 0 && !S_ISDIR(st.st_mode))
                return inside_file(rootfs->root_fd, mount->destination, 0755, place, err);
        return inside_directory(rootfs->root_fd, mount->destination, 0755, place, err);
}

static int attach(struct rootfs *rootfs, const struct mount_config *mount, int tree, struct err *err)
{
        _cleanup_close_ int place = -1;
        uint64_t propagation = mount->propagation ? mount->propagation : mount->propagation_recursive ? 0 : MS_PRIVATE;
        int r = make_place(rootfs, mount, tree, &place, err);

        if (!r)
                r = check_place(place, tree, mount, err);
        if (!r && mount->copy_up)
                r = copy_up(place, tree, err);
        if (!r)
                r = mount_attach(tree, place, err);
        /* Once attached: a detached mount may belong to a group of the host's, which it leaves or stays a member of as asked. */
        if (!r)
                r = mount_change(tree, 0, 0, mount->propagation_recursive, true, err);
        if (!r)
                r = mount_change(tree, 0, 0, propagation, false, err);
        return r;
}

/* A link as a source, with "copy-symlink": the link itself is made. */
static int copy_link(struct rootfs *rootfs, const struct mount_config *mount, bool *done, struct err *err)
{
        _cleanup_close_ int parent = -1;
        char target[4096];
        const char *name;
        ssize_t length = readlinkat(mount->source[0] == '/' ? AT_FDCWD : rootfs->bundle_fd, mount->source, target, sizeof(target) - 1);
        int r;

        *done = false;
        if (length < 0)
                return 0;
        target[length] = 0;
        *done = true;
        r = inside_parent(rootfs->root_fd, mount->destination, &parent, &name, err);
        if (!r && symlinkat(target, parent, name) < 0 && errno != EEXIST)
                r = err_errno(err, -errno, "cannot make the link '%s'", mount->destination);
        return r;
}

/* "remount" changes what is there. */
static int change_existing(struct rootfs *rootfs, const struct mount_config *mount, struct err *err)
{
        _cleanup_close_ int place = inside_open(rootfs->root_fd, mount->destination, O_PATH);
        int r;

        if (place < 0)
                return err_errno(err, place, "cannot open '%s'", mount->destination);
        r = mount_change(place, mount->set, mount->clear, mount->propagation, false, err);
        return r < 0 ? r : mount_change(place, mount->set_recursive, mount->clear_recursive, mount->propagation_recursive, true, err);
}

/* A plain user may not mount a new sysfs when the network is the host's: the host's is bound. */
static int prepare_sysfs(struct rootfs *rootfs, const struct mount_config *mount, int *tree, struct err *err)
{
        struct err first = ERR_INIT;
        int r = mount_prepare(mount, rootfs->bundle_fd, tree, &first);

        if (r == -EPERM && !mount_copy(AT_FDCWD, "/sys", true, tree, NULL)) {
                struct err ignored;

                return mount_change(*tree, mount->set, 0, 0, true, err ? err : &ignored);
        }
        if (r < 0 && err)
                *err = first;
        return r;
}

static int prepare_cgroup2(struct rootfs *rootfs, const struct mount_config *mount, int *tree, struct err *err)
{
        const struct cgroup_place *place = rootfs->cgroup->mode == CGROUP_V2 && rootfs->cgroup->count ? &rootfs->cgroup->places[0] : NULL;
        char directory[4096];
        int r = -EPERM;

        if (rootfs->config->namespaces[NAMESPACE_CGROUP].wanted) {
                static const char *const options[] = { "nsdelegate", "memory_recursiveprot", NULL };
                struct err refused = ERR_INIT;

                /* The options are the mount's of the host; inside they are taken or ignored. */
                r = mount_new("cgroup2", "cgroup", options, mount->set, tree, &refused);
                if (r < 0)
                        r = mount_new("cgroup2", "cgroup", NULL, mount->set, tree, err);
                if (r != -EPERM && r != -EBUSY)
                        return r;
        }
        snprintf(directory, sizeof(directory), "%s%s", place ? place->mount_point : "/sys/fs/cgroup", place ? place->path : "");
        r = mount_copy(AT_FDCWD, directory, true, tree, err);
        return r < 0 ? r : mount_change(*tree, mount->set, 0, 0, true, err);
}

/* A directory or link of the tmpfs that holds version 1's hierarchies. */
static int attach_hierarchy(struct rootfs *rootfs, const struct mount_config *mount, int top, const struct cgroup_place *place, struct err *err)
{
        const char *name = strrchr(place->mount_point, '/') + 1;
        _cleanup_close_ int tree = -1;
        _cleanup_close_ int spot = -1;
        char directory[4096];
        int r = -EPERM;

        if (mkdirat(top, name, 0755) < 0 && errno != EEXIST)
                return err_errno(err, -errno, "cannot make a place for the cgroup '%s'", name);
        spot = openat(top, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (spot < 0)
                return err_errno(err, -errno, "cannot open the place for the cgroup '%s'", name);
        if (rootfs->config->namespaces[NAMESPACE_CGROUP].wanted) {
                const char *options[] = { place->controllers, NULL };
                const char *named[] = { "none", place->controllers, NULL };

                if (!place->controllers[0])
                        r = mount_new("cgroup2", "cgroup", NULL, mount->set, &tree, NULL);
                else
                        r = mount_new("cgroup", "cgroup", !strncmp(place->controllers, "name=", 5) ? named : options, mount->set, &tree, NULL);
        }
        if (r < 0) {
                snprintf(directory, sizeof(directory), "%s%s", place->mount_point, place->path);
                r = mount_copy(AT_FDCWD, directory, false, &tree, err);
                if (!r)
                        r = mount_change(tree, mount->set, 0, 0, false, err);
        }
        return r < 0 ? r : mount_attach(tree, spot, err);
}

/* "cpu,cpuacct" is found as "cpu" and "cpuacct", too. */
static void link_controllers(int top, const struct cgroup_place *place)
{
        const char *name = strrchr(place->mount_point, '/') + 1;
        char controllers[256], *rest = controllers, *one;

        if (!strchr(name, ','))
                return;
        snprintf(controllers, sizeof(controllers), "%s", place->controllers);
        while ((one = strsep(&rest, ",")))
                if (strcmp(one, name) != 0)
                        (void)!symlinkat(name, top, one);
}

static int mount_cgroup_v1(struct rootfs *rootfs, const struct mount_config *mount, struct err *err)
{
        static const char *const options[] = { "mode=0755", NULL };
        _cleanup_close_ int tree = -1;
        _cleanup_close_ int top = -1;
        int r = mount_new("tmpfs", "cgroup", options, mount->set & ~(uint64_t)MOUNT_ATTR_RDONLY, &tree, err);

        if (!r)
                r = attach(rootfs, mount, tree, err);
        if (r < 0)
                return r;
        top = openat(tree, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (top < 0)
                return err_errno(err, -errno, "cannot open '%s'", mount->destination);
        for (unsigned i = 0; i < rootfs->cgroup->count && !r; i++) {
                r = attach_hierarchy(rootfs, mount, top, &rootfs->cgroup->places[i], err);
                link_controllers(top, &rootfs->cgroup->places[i]);
        }
        return r < 0 ? r : mount_change(tree, mount->set, 0, 0, false, err);
}

static int fill_cgroup(struct rootfs *rootfs, const struct mount_config *mount, struct err *err)
{
        _cleanup_close_ int tree = -1;
        int r = rootfs->wait_for_cgroup(rootfs->ctx, err);

        if (r < 0)
                return r;
        if (rootfs->cgroup->mode == CGROUP_V1)
                return mount_cgroup_v1(rootfs, mount, err);
        r = prepare_cgroup2(rootfs, mount, &tree, err);
        return r < 0 ? r : attach(rootfs, mount, tree, err);
}

static int fill_one(struct rootfs *rootfs, size_t index, struct err *err)
{
        const struct mount_config *mount = &rootfs->config->mounts[index];
        _cleanup_close_ int made = -1;
        int tree = rootfs->trees ? rootfs->trees[index] : -1, r;
        bool done;

        if (mount->remount)
                return change_existing(rootfs, mount, err);
        if (mount->kind == MOUNT_BIND && mount->copy_symlink) {
                r = copy_link(rootfs, mount, &done, err);
                if (r < 0 || done)
                        return r;
        }
        if (tree < 0 && mount->kind == MOUNT_FILESYSTEM && !strncmp(mount->type, "cgroup", 6))
                return fill_cgroup(rootfs, mount, err);
        if (tree < 0) {
                if (mount->kind == MOUNT_FILESYSTEM && !strcmp(mount->type, "sysfs"))
                        r = prepare_sysfs(rootfs, mount, &made, err);
                else
                        r = mount_prepare(mount, rootfs->bundle_fd, &made, err);
                if (r < 0)
                        return r;
                tree = made;
        }
        return attach(rootfs, mount, tree, err);
}

static const struct device_config default_devices[] = {
        { "/dev/null", S_IFCHR, 1, 3, 0666 },   { "/dev/zero", S_IFCHR, 1, 5, 0666 },    { "/dev/full", S_IFCHR, 1, 7, 0666 },
        { "/dev/tty", S_IFCHR, 5, 0, 0666 },    { "/dev/random", S_IFCHR, 1, 8, 0666 },  { "/dev/urandom", S_IFCHR, 1, 9, 0666 },
};

static bool is_device(const struct stat *st, const struct device_config *device)
{
        return (st->st_mode & S_IFMT) == device->type && (device->type == S_IFIFO || st->st_rdev == makedev(device->major, device->minor));
}

/* The host's device of that name, bound: where none can be made. */
static int bind_device(struct rootfs *rootfs, const struct device_config *device, struct err *err)
{
        _cleanup_close_ int tree = -1;
        _cleanup_close_ int place = -1;
        struct stat st;
        int r = mount_copy(AT_FDCWD, device->path, false, &tree, err);

        if (r < 0)
                return r;
        if (fstat(tree, &st) < 0 || !is_device(&st, device))
                return err_set(err, -ENODEV, "'%s' of the host is another device than the one asked for", device->path);
        r = inside_file(rootfs->root_fd, device->path, 0666, &place, err);
        return r < 0 ? r : mount_attach(tree, place, err);
}

static int make_device(struct rootfs *rootfs, const struct device_config *device, struct err *err)
{
        _cleanup_close_ int parent = -1;
        const char *name;
        struct stat st;
        int r;

        if (rootfs->user_namespace && device->type != S_IFIFO)
                return bind_device(rootfs, device, err);
        r = inside_parent(rootfs->root_fd, device->path, &parent, &name, err);
        if (r < 0)
                return r;
        if (mknodat(parent, name, device->type | device->mode, makedev(device->major, device->minor)) < 0) {
                if (errno == EPERM && device->type != S_IFIFO)
                        return bind_device(rootfs, device, err);
                if (errno != EEXIST)
                        return err_errno(err, -errno, "cannot make the device '%s'", device->path);
                /* "If a file already exists at path that does not match the requested device, the runtime MUST generate an error." */
                if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !is_device(&st, device))
                        return err_set(err, -EEXIST, "'%s' is there already and is another file than the device asked for", device->path);
        }
        if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !is_device(&st, device))
                return err_set(err, -EAGAIN, "'%s' was changed while it was made", device->path);
        /* The umask took part in mknod. The file is one that was checked to be this device; a link could only be its replacement: not followed. */
        if (fchownat(parent, name, device->uid, device->gid, AT_SYMLINK_NOFOLLOW) < 0)
                return err_errno(err, -errno, "cannot give the device '%s' to user %u", device->path, device->uid);
        _cleanup_close_ int fd = openat(parent, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        char path[64];
        /* fchmod() does not take an O_PATH descriptor before Linux 6.6; /proc's name for it does. */
        snprintf(path, sizeof(path), "%d", fd);
        _cleanup_close_ int fds = procfs_openat(rootfs->proc_fd, "thread-self/fd", O_PATH | O_DIRECTORY);
        if (fd < 0 || fds < 0 || fstat(fd, &st) < 0 || !is_device(&st, device) || fchmodat(fds, path, device->mode, 0) < 0)
                return err_errno(err, -errno, "cannot set the mode of the device '%s'", device->path);
        return 0;
}

static int make_link(struct rootfs *rootfs, const char *target, const char *path, struct err *err)
{
        _cleanup_close_ int parent = -1;
        const char *name;
        int r = inside_parent(rootfs->root_fd, path, &parent, &name, err);

        if (!r && symlinkat(target, parent, name) < 0 && errno != EEXIST)
                r = err_errno(err, -errno, "cannot make the link '%s'", path);
        return r;
}

/* config-linux.md, "Dev symbolic links"; "Default Devices". Not in a /dev that is bound from elsewhere: it is somebody's. */
static int fill_devices(struct rootfs *rootfs, struct err *err)
{
        static const char *const links[][2] = {
                { "/proc/self/fd", "/dev/fd" },       { "/proc/self/fd/0", "/dev/stdin" }, { "/proc/self/fd/1", "/dev/stdout" },
                { "/proc/self/fd/2", "/dev/stderr" }, { "pts/ptmx", "/dev/ptmx" },
        };
        const struct config *config = rootfs->config;
        int r = 0;

        for (size_t i = 0; i < config->mount_count; i++) {
                const struct mount_config *mount = &config->mounts[i];

                if (mount->kind == MOUNT_BIND && (!strcmp(mount->destination, "/dev") || !strcmp(mount->destination, "/dev/")))
                        return 0;
        }
        for (size_t i = 0; i < config->device_count && !r; i++)
                r = make_device(rootfs, &config->devices[i], err);
        for (size_t i = 0; i < ARRAY_SIZE(default_devices) && !r; i++) {
                bool given = false;

                for (size_t k = 0; k < config->device_count; k++)
                        given |= !strcmp(config->devices[k].path, default_devices[i].path);
                if (!given)
                        r = make_device(rootfs, &default_devices[i], err);
        }
        for (size_t i = 0; i < ARRAY_SIZE(links) && !r; i++)
                r = make_link(rootfs, links[i][0], links[i][1], err);
        return r;
}

int rootfs_fill(struct rootfs *rootfs, struct err *err)
{
        mode_t old = umask(0);
        int r = 0;

        for (size_t i = 0; i < rootfs->config->mount_count && !r; i++) {
                r = fill_one(rootfs, i, err);
                if (r < 0)
                        err_wrap(err, r, "mounting '%s'", rootfs->config->mounts[i].destination);
        }
        if (!r)
                r = fill_devices(rootfs, err);
        umask(old);
        return r;
}

/* CVE-2025-31133: what covers a file is /dev/null itself, seen before the container's /dev was. */
static int mask_paths(struct rootfs *rootfs, struct err *err)
{
        static const char *const options[] = { "size=0k", "nr_inodes=1", "mode=0755", NULL };
        _cleanup_close_ int empty = -1;
        int r = 0;

        for (const char **path = rootfs->config->masked_paths; path && *path && !r; path++) {
                _cleanup_close_ int place = inside_open(rootfs->root_fd, *path, O_PATH);
                _cleanup_close_ int cover = -1;
                struct stat st;

                if (place == -ENOENT || place == -ENOTDIR || place == -EACCES)
                        continue;
                if (place < 0 || fstat(place, &st) < 0)
                        return err_errno(err, place < 0 ? place : -errno, "cannot hide '%s'", *path);
                if (S_ISDIR(st.st_mode)) {
                        if (empty < 0)
                                r = mount_new("tmpfs", "tmpfs", options, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
                                              &empty, err);
                        if (!r)
                                r = mount_copy(empty, "", false, &cover, err);
                        /* Linux before 6.15 copies attached mounts only: then each has its own. */
                        if (r == -EINVAL)
                                r = mount_new("tmpfs", "tmpfs", options, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
                                              &cover, err);
                } else {
                        r = mount_copy(rootfs->null_fd, "", false, &cover, err);
                }
                if (!r)
                        r = mount_attach(cover, place, err);
                if (r < 0)
                        return err_wrap(err, r, "hiding '%s'", *path);
        }
        return 0;
}

static int protect_paths(struct rootfs *rootfs, struct err *err)
{
        for (const char **path = rootfs->config->readonly_paths; path && *path; path++) {
                _cleanup_close_ int place = inside_open(rootfs->root_fd, *path, O_PATH);
                _cleanup_close_ int tree = -1;
                int r;

                if (place == -ENOENT || place == -ENOTDIR || place == -EACCES)
                        continue;
                r = place < 0 ? err_errno(err, place, "cannot open it") : mount_copy(place, "", true, &tree, err);
                if (!r)
                        r = mount_change(tree, MOUNT_ATTR_RDONLY, 0, 0, true, err);
                if (!r)
                        r = mount_attach(tree, place, err);
                if (r < 0)
                        return err_wrap(err, r, "making '%s' read-only", *path);
        }
        return 0;
}

int rootfs_seal(struct rootfs *rootfs, struct err *err)
{
        int r = protect_paths(rootfs, err);

        return r < 0 ? r : mask_paths(rootfs, err);
}

int rootfs_pivot(struct rootfs *rootfs, struct err *err)
{
        int r = 0;

        if (fchdir(rootfs->root_fd) < 0)
                return err_errno(err, -errno, "cannot enter the container's root");
        if (rootfs->no_pivot) {
                /* On a host whose root is the initial ramfs. */
                if (mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0)
                        return err_errno(err, -errno, "cannot make the container's root the root");
        } else {
                /* The old root ends up over the new one, from where it is taken off: no directory is needed for it. */
                if (syscall(SYS_pivot_root, ".", ".") < 0)
                        return err_errno(err, -errno, "cannot make the container's root the root (pivot_root)");
                if (mount(NULL, ".", NULL, MS_REC | MS_SLAVE, NULL) < 0 || umount2(".", MNT_DETACH) < 0)
                        return err_errno(err, -errno, "cannot take the host's root away");
        }
        if (chdir("/") < 0)
                return err_errno(err, -errno, "cannot enter the container's root");
        if (rootfs->config->root_readonly)
                r = mount_change(rootfs->root_fd, MOUNT_ATTR_RDONLY, 0, 0, false, err);
        if (!r)
                r = mount_change(rootfs->root_fd, 0, 0, rootfs->config->root_propagation_recursive, true, err);
        if (!r)
                r = mount_change(rootfs->root_fd, 0, 0, rootfs->config->root_propagation, false, err);
        return r < 0 ? err_wrap(err, r, "the container's root") : 0;
}
