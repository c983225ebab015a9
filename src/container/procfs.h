/*
 * /proc, known to be the kernel's own.
 *
 * What a runtime writes there (labels, id maps, sysctls) must not end up in a file that a container put in its place
 * (CVE-2019-16884, CVE-2025-52881). The directory is opened once, before any container's mounts are seen, and checked to be the
 * root of a procfs; each file below it is then opened without crossing a mount and without a magic link.
 * The descriptor's `self` is the caller, whatever namespaces it has entered since.
 */
#pragma once

#include "base/err.h"

/* The process's /proc. The descriptor is the caller's. */
int procfs_open(int *proc_fd, struct err *err) _must_check_;

/* openat2() below it: path as "self/attr/exec"; flags as open(2). Returns a descriptor or -errno. */
int procfs_openat(int proc_fd, const char *path, int flags);

int procfs_write(int proc_fd, const char *path, const char *text, struct err *err) _must_check_;
/* Reads at most size_bytes - 1 bytes and ends them with 0; returns their number or -errno. */
ssize_t procfs_read(int proc_fd, const char *path, char *text, size_t size_bytes);

/* "self/fd/N", to open again what an O_PATH descriptor names. Returns a descriptor or -errno. */
int procfs_reopen(int proc_fd, int fd, int flags);

/* Field 22 of /proc/PID/stat: when it started, in clock ticks since boot; tells a process from a later one of its number. state may be NULL. */
int procfs_start_time(int proc_fd, pid_t pid, uint64_t *ticks, char *state);

/* The caller's number in the PID namespace of this /proc (getpid() says the one in its own). */
pid_t procfs_own_pid(int proc_fd);
