/*
 * From a process with all rights, already in the container's namespaces and root, to the program that is asked for.
 *
 *   process_prepare()    groups, user, capabilities, working directory, seccomp; finds the program
 *   (waits to be started, startContainer hooks)
 *   process_execute()    what had to wait, and the program
 *
 * What only the host's root may do to a process from outside is process_limit()'s, called by the runtime.
 *
 * Source: runtime-spec config.md "Process"; capabilities(7), "Effect of user ID changes on capabilities".
 */
#pragma once

#include <limits.h>

#include "container/config.h"
#include "container/seccomp-filter.h"

struct process_plan {
        const struct process_config *process;
        const struct config *config; /* of the container: seccomp, personality, mount label */
        const struct seccomp_filter *seccomp;
        const char *id;
        int proc_fd, root_fd;
        int preserved_fds; /* descriptors 3 to 2 + this stay open in the program */
        bool new_keyring;
        /* A filter with a listener was loaded: descriptor `fd` of this process. Called before anything else is done. */
        int (*listen)(void *ctx, int fd, struct err *err);
        void *ctx;

        char program[PATH_MAX]; /* found by process_prepare() */
        const char **env;       /* with HOME */
};

/* Limits, priorities, oom score of the process pid. rootless: a score that may not be set is left out. */
int process_limit(const struct process_config *process, pid_t pid, bool rootless, int proc_fd, struct err *err) _must_check_;

int process_prepare(struct process_plan *plan, struct err *err) _must_check_;
/* Returns only on failure: -ENOENT, -EACCES … of the program. */
int process_execute(struct process_plan *plan, struct err *err) _must_check_;

/* 127 for a program that is not there, 126 for one that cannot be run, else 1. */
int process_exit_code(int code);
