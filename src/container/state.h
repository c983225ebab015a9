/*
 * What is known of a container between two calls of the runtime: a directory of its own below the runtime's root.
 *
 *   ROOT/ID/state.json    this record; written first of all, so that whatever is made later can be found and taken away again
 *   ROOT/ID/config.json   the configuration as it was at creation
 *   ROOT/ID/start         a FIFO: the container's first process waits on it; `start` opens it and takes it away
 *
 * The directory is locked (flock) while a command changes the container. One whose record has no process, or whose creator is
 * gone without having finished, is half-made: it is swept by the next command that meets it.
 *
 *   creating ──create done──▶ created ──start──▶ running ◀──pause, resume──▶ paused
 *                                │                  │
 *                                └──── its process ends ────▶ stopped ──delete──▶ nothing
 *
 * Source: runtime-spec runtime.md, "State", "Lifecycle".
 */
#pragma once

#include "base/json.h"
#include "container/cgroup.h"
#include "container/config.h"

#define STATE_ID_MAX 1023

enum container_status { CONTAINER_CREATING, CONTAINER_CREATED, CONTAINER_RUNNING, CONTAINER_PAUSED, CONTAINER_STOPPED };

extern const char *const container_status_names[];

struct container_state {
        char id[STATE_ID_MAX + 1];
        int dir_fd;    /* ROOT/ID; -1: none */
        pid_t pid;     /* 0: none yet, or none any more */
        uint64_t start_ticks;
        bool complete; /* creation came to its end */
        char *bundle, *rootfs, *created; /* the last: RFC 3339 */
        uid_t owner;
        struct cgroup cgroup;
        bool no_new_cgroup_namespace; /* reserved for exec: joined namespaces are those of the process */
        struct config config;         /* read by state_open() when asked for */
};

#define CONTAINER_STATE_INIT ((struct container_state){ .dir_fd = -1 })
#define _cleanup_state_ _cleanup_(state_done)

/* The id: 1 to STATE_ID_MAX of letters, digits and "_+-.", and neither "." nor "..". */
int state_check_id(const char *id, struct err *err) _must_check_;

/*
 * Makes ROOT (0700) when missing and ROOT/ID, locked. A half-made container of this name is swept first. -EEXIST: one of this
 * name is there.
 */
int state_create(const char *root, const char *id, int proc_fd, struct container_state *state, struct err *err) _must_check_;

/* Writes state.json, whole or not at all. */
int state_save(const struct container_state *state, struct err *err) _must_check_;
/* Copies the configuration's text. */
int state_save_config(const struct container_state *state, struct err *err) _must_check_;

enum state_lock { STATE_LOCK_NONE, STATE_LOCK };

/* Reads one that is there. -ENOENT: there is none. */
int state_open(const char *root, const char *id, enum state_lock lock, struct container_state *state, struct err *err) _must_check_;
/* Reads the configuration into state->config. */
int state_open_config(struct container_state *state, struct err *err) _must_check_;

/* Looks at the process and the cgroup. */
enum container_status state_status(const struct container_state *state, int proc_fd);

/*
 * Takes away what a creator that was killed left of a container, if anything: its groups and its directory. -EEXIST, which has no text:
 * it is a container, or somebody makes it at the moment.
 */
int state_sweep(const char *root, const char *id, int proc_fd, struct err *err) _must_check_;

/* Takes ROOT/ID away. */
int state_remove(struct container_state *state, const char *root, struct err *err) _must_check_;

/* Closes and frees; the directory stays. */
void state_done(struct container_state *state);

/* As `state` prints it; the caller's. NULL: no memory. */
json_t *state_json(const struct container_state *state, enum container_status status, pid_t pid);

/* Calls fn with each id below root. */
int state_each(const char *root, int (*fn)(const char *id, void *ctx, struct err *err), void *ctx, struct err *err) _must_check_;
