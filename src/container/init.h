/*
 * The container's first process, from its birth to the program: the other side of create.c's channel (channel.h).
 */
#pragma once

#include "container/namespace.h"
#include "container/rootfs.h"
#include "container/seccomp-filter.h"

struct init_plan {
        const struct config *config;
        const struct cgroup *cgroup;
        const struct namespace_set *namespaces;
        const struct seccomp_filter *seccomp;
        const char *id, *bundle, *root_path; /* the last as the configuration has it */
        int channel, proc_fd;
        int gate_fd; /* -1: goes on at once when it is released */
        int preserved_fds;
        bool no_pivot, new_keyring, terminal;
};

/* Does not return: executes the program, or tells why not and ends. */
_Noreturn void init_run(const struct init_plan *plan);

/* The state as hooks get it, JSON; the caller's to free. NULL: no memory. */
char *hook_state(const char *id, const char *status, pid_t pid, const char *bundle, const json_t *annotations);
