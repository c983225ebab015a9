/*
 * Paths inside a container's root, resolved as its own processes would see them and never leaving it.
 *
 * A container's file system is written by somebody else, and may change while it is looked at (CVE-2021-30465). So a path is
 * never used twice: it is resolved once by openat2(RESOLVE_IN_ROOT) to a descriptor, and what follows is done to that descriptor.
 * What is missing is made one component at a time, each in a directory held open.
 */
#pragma once

#include <sys/stat.h>

#include "base/err.h"

/* Opens what is there; flags as open(2), O_CLOEXEC is added. Symbolic links lead inside the root, magic links nowhere. A descriptor or -errno. */
int inside_open(int root_fd, const char *path, int flags);

/* Opens the directory (O_PATH), making it and those above it with the mode when they are missing. */
int inside_directory(int root_fd, const char *path, mode_t mode, int *fd, struct err *err) _must_check_;

/* Opens the directory that holds the path's last component (O_PATH), made when missing; *name points into path. */
int inside_parent(int root_fd, const char *path, int *parent_fd, const char **name, struct err *err) _must_check_;

/* Opens what is there (O_PATH), or makes an empty file, as a place to mount on. */
int inside_file(int root_fd, const char *path, mode_t mode, int *fd, struct err *err) _must_check_;
