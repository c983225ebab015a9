/*
 * Mounts, made detached and moved into place.
 *
 * By the mount API of descriptors (Linux 5.12: open_tree, fsopen, fsmount, mount_setattr, move_mount) a mount has all its attributes
 * before anybody can see it, and its place is a descriptor that was resolved inside the container's root (inside.h), so there is no
 * moment and no path that somebody could change in between. File systems say in words what they do not like about an option;
 * these words are part of our errors.
 *
 * Source: mount_setattr(2), move_mount(2), open_tree(2), fsopen(2); runtime-spec config.md "Mounts".
 */
#pragma once

#include "container/config.h"

/* A detached copy of what is at path (below dir_fd), with what is mounted below it when recursive. The descriptor is the caller's. */
int mount_copy(int dir_fd, const char *path, bool recursive, int *tree_fd, struct err *err) _must_check_;

/* A new file system, detached. data: NULL-terminated "key=value" and "key"; attr: MOUNT_ATTR_…. */
int mount_new(const char *type, const char *source, const char *const *data, uint64_t attr, int *tree_fd, struct err *err) _must_check_;

/* Sets and clears MOUNT_ATTR_…, and the propagation (MS_SHARED …, 0: as it is). */
int mount_change(int tree_fd, uint64_t set, uint64_t clear, uint64_t propagation, bool recursive, struct err *err) _must_check_;

/* Ids of files as the user namespace of userns_fd sees them. A detached tree only. */
int mount_map_ids(int tree_fd, int userns_fd, bool recursive, struct err *err) _must_check_;

/* Puts it where place_fd is. */
int mount_attach(int tree_fd, int place_fd, struct err *err) _must_check_;

/* A bind mount's source, or a file system, with all that its entry says but its place. bundle_fd: relative sources are below it. */
int mount_prepare(const struct mount_config *mount, int bundle_fd, int *tree_fd, struct err *err) _must_check_;
