#include "base/mounts.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mount.h>

/*
 * In a chroot "/" is no mount point, which neither making mounts private nor pivot_root takes. Entering the mount namespace that
 * we are in already leads to its real root, where mounts can be made private; then a copy of the chroot's tree is mounted over the
 * chroot and becomes the root. Paths mean the same as before. setns(2), "Details for specific namespace types"; chroot(2).
 */
static int make_root_a_mount(unsigned long propagation)
{
        _cleanup_close_ int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
        _cleanup_close_ int ns = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
        _cleanup_close_ int tree = -1;
        char cwd[4096];

        if (root < 0 || ns < 0 || !getcwd(cwd, sizeof(cwd)) || setns(ns, CLONE_NEWNS) < 0)
                return -errno;
        if (mount(NULL, "/", NULL, MS_REC | propagation, NULL) == 0)
                tree = open_tree(root, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE | AT_EMPTY_PATH);
        if (tree < 0 || move_mount(tree, "", root, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
                return -errno;
        return fchdir(tree) < 0 || chroot(".") < 0 || chdir(cwd) < 0 ? -errno : 0;
}

int mounts_propagate(unsigned long propagation)
{
        int r = mount(NULL, "/", NULL, MS_REC | propagation, NULL) < 0 ? -errno : 0;

        return r == -EINVAL ? make_root_a_mount(propagation) : r;
}
