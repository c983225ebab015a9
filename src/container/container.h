/*
 * The runtime: what the commands of `virta-oci` do, one function each.
 *
 * Every function takes the same struct runtime. What a function prints it returns as JSON; the commands print it.
 *
 * Source: runtime-spec runtime.md "Operations"; the options are runc's.
 */
#pragma once

#include "container/state.h"

struct runtime {
        const char *root; /* where containers are recorded */
        bool systemd_cgroup;
        bool rootless;    /* what only root may do to the host is left out */
        int proc_fd;
        void (*warn)(void *ctx, const struct err *err); /* a hook failed that may fail */
        void *ctx;
};

struct create_options {
        const char *id, *bundle;
        const char *console_socket, *pid_file; /* NULL: none */
        int preserved_fds;
        bool no_pivot, no_new_keyring;
        bool detach; /* run: returns when the program runs */
        bool keep;   /* run: the container is not deleted at its end */
};

/* Makes it; its process waits to be started. */
int container_create(const struct runtime *runtime, const struct create_options *options, struct err *err) _must_check_;
int container_start(const struct runtime *runtime, const char *id, struct err *err) _must_check_;
/* Both, and waits for its end unless detached. *exit_code: as a shell has it. */
int container_run(const struct runtime *runtime, const struct create_options *options, int *exit_code, struct err *err) _must_check_;

/* The caller's. */
int container_state_json(const struct runtime *runtime, const char *id, json_t **json, struct err *err) _must_check_;
/* An array of them. */
int container_list(const struct runtime *runtime, json_t **json, struct err *err) _must_check_;

int container_kill(const struct runtime *runtime, const char *id, int signal, bool all, struct err *err) _must_check_;
/* force: it is killed first, and one that is not there is no error. */
int container_delete(const struct runtime *runtime, const char *id, bool force, struct err *err) _must_check_;
int container_pause(const struct runtime *runtime, const char *id, bool pause, struct err *err) _must_check_;
/* resources: a file of linux.resources, "-": standard input; NULL: *changes alone, which may have been read from options. */
int container_update(const struct runtime *runtime, const char *id, const struct resources *changes, struct err *err) _must_check_;
/* pids is the caller's to free. */
int container_processes(const struct runtime *runtime, const char *id, pid_t **pids, size_t *count, struct err *err) _must_check_;
int container_stats(const struct runtime *runtime, const char *id, json_t **json, struct err *err) _must_check_;

struct exec_options {
        const char *id, *process_file; /* NULL: from what follows */
        const char *console_socket, *pid_file;
        const char *const *args; /* NULL-terminated */
        const char *cwd, *apparmor, *label, *const *env, *const *capabilities;
        const char *user; /* "UID[:GID]" */
        const uint32_t *groups;
        size_t group_count;
        int preserved_fds;
        bool terminal, detach, no_new_privileges, ignore_paused;
        const char *cgroup; /* a group below the container's; NULL: the container's */
};

int container_exec(const struct runtime *runtime, const struct exec_options *options, int *exit_code, struct err *err) _must_check_;

/* features.c, spec.c: the caller's; NULL: no memory. */
json_t *container_features(void);
json_t *container_spec(bool rootless);
