/*
 * The container's file system: its root, mounts, devices, what is hidden and what is read-only.
 *
 * All of it is done by the container's first process, in its new mount namespace:
 *
 *   rootfs_enter_tree()   the host's mounts no longer tell the new ones; the root is a mount of its own
 *   rootfs_fill()         mounts in their order, devices
 *   (createContainer hooks)
 *   rootfs_seal()         masked and read-only paths
 *   rootfs_pivot()        the root becomes "/", read-only if so; the host's tree is gone
 *
 * Source: runtime-spec config-linux.md "Default Filesystems", "Devices", "Masked Paths"; pivot_root(2).
 */
#pragma once

#include "container/cgroup.h"
#include "container/config.h"

struct rootfs {
        const struct config *config;
        const struct cgroup *cgroup;
        const char *bundle; /* its path */
        int bundle_fd, proc_fd;
        int root_fd;           /* of the container's root, once entered */
        int null_fd;           /* the host's /dev/null, known to be it; -1: none */
        const int *trees;      /* made by the parent, one a mount, -1 where it made none; NULL: none */
        bool trees_given;      /* by a user namespace's parent: nothing has to be reached by path */
        bool user_namespace;   /* devices cannot be made: the host's are bound */
        bool no_pivot;
        /* Called before the first mount of cgroups: the process is in its group from then on. */
        int (*wait_for_cgroup)(void *ctx, struct err *err);
        void *ctx;
};

/* root_tree: a detached tree of the root made by the parent, or -1. It becomes ours. */
int rootfs_enter_tree(struct rootfs *rootfs, const char *path, int root_tree, struct err *err) _must_check_;
int rootfs_fill(struct rootfs *rootfs, struct err *err) _must_check_;
int rootfs_seal(struct rootfs *rootfs, struct err *err) _must_check_;
int rootfs_pivot(struct rootfs *rootfs, struct err *err) _must_check_;

/* Whether the parent has to make this mount's tree: it needs rights that a user namespace does not have. */
bool rootfs_parent_makes(const struct config *config, const struct mount_config *mount);
