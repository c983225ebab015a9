/*
 * Namespaces: which are joined, which are new, and whose ids they map.
 *
 * Joining and then making needs a process in between: what is joined as a PID or time namespace holds for children only. It makes the
 * container's process as its sibling (CLONE_PARENT), tells its number, and ends. Where nothing is joined there is no such process.
 *
 * Source: namespaces(7), user_namespaces(7), setns(2), time_namespaces(7); runtime-spec config-linux.md "Namespaces".
 */
#pragma once

#include "container/config.h"

/* Those to join, opened before anything else; -1: not joined. */
struct namespace_set {
        int joined[NAMESPACE_COUNT];
        int new_flags; /* CLONE_NEW… of those to make */
};

#define NAMESPACE_SET_INIT ((struct namespace_set){ .joined = { -1, -1, -1, -1, -1, -1, -1, -1 } })

/* Opens the paths of the configuration and checks that each is a namespace of its kind. */
int namespaces_open(struct namespace_set *set, const struct config *config, struct err *err) _must_check_;
void namespaces_close(struct namespace_set *set);

/* Whether a process in between is needed. */
bool namespaces_need_step(const struct namespace_set *set, const struct config *config);

/* In the process in between: joins, and prepares a time namespace with its offsets. */
int namespaces_join(const struct namespace_set *set, const struct config *config, int proc_fd, struct err *err) _must_check_;

/* clone3() without a stack of its own, as fork(). cgroup_fd -1: none (else version 2's directory). Returns as fork() does, or -errno. */
pid_t namespaces_clone(int flags, int cgroup_fd);

/* Writes uid_map, gid_map and (where it must be) setgroups of a new user namespace's first process; by newuidmap and newgidmap for a plain user. */
int namespaces_map_ids(const struct id_maps *maps, pid_t pid, int proc_fd, struct err *err) _must_check_;

/* A user namespace that has these ids, for mounts. The descriptor is the caller's. */
int namespaces_make_user(const struct id_maps *maps, int proc_fd, int *userns_fd, struct err *err) _must_check_;
