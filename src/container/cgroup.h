/*
 * A container's control groups: where they are, who is in them, what limits they have.
 *
 * One struct for the three kinds of host. With version 1, and with the hybrid of both, a container has a directory in each mounted
 * hierarchy; with version 2 one in all. Version 2 without controllers beside version 1 serves only to hold the processes together.
 * The directories are named by what the configuration's cgroupsPath says: absolute from the hierarchy's root, else from the
 * caller's own group. With systemd the path is SLICE:PREFIX:NAME and systemd makes the group (cgroup-systemd.c).
 *
 * Where the caller may not make groups (a plain user without delegation) the container runs in the caller's own, and limits that
 * it asks for are an error.
 *
 * Source: Linux admin-guide/cgroup-v1, admin-guide/cgroup-v2; runtime-spec config-linux.md "Control groups".
 */
#pragma once

#include "base/json.h"
#include "container/config.h"

#define CGROUP_PLACES_MAX 24

enum cgroup_mode { CGROUP_NONE, CGROUP_V1, CGROUP_V2 };

/* One hierarchy. */
struct cgroup_place {
        char *controllers; /* "cpu,cpuacct", "name=systemd"; "": version 2 */
        char *mount_point; /* "/sys/fs/cgroup/cpu" */
        char *path;        /* of the container's group, from the mount point: "/user/web1" */
        bool made;         /* by us: taken away with the container */
};

struct cgroup {
        enum cgroup_mode mode;
        struct cgroup_place places[CGROUP_PLACES_MAX];
        unsigned count;
        char *scope; /* systemd's unit; NULL: made without it */
};

/* Finds the hierarchies and names the groups; nothing is made. */
int cgroup_plan(struct cgroup *cgroup, const struct config *config, const char *id, bool systemd, int proc_fd, struct err *err) _must_check_;

/* Makes the groups that are planned and sets their limits. On failure what was made is taken away. rootless: what may not be made is left out. */
int cgroup_make(struct cgroup *cgroup, const struct resources *resources, bool rootless, struct err *err) _must_check_;

/* Puts a process in. */
int cgroup_enter(const struct cgroup *cgroup, pid_t pid, struct err *err) _must_check_;

/* Sets the limits that are given. */
int cgroup_limit(const struct cgroup *cgroup, const struct resources *resources, struct err *err) _must_check_;

/* Whether anything is limited by them. */
bool resources_given(const struct resources *resources);

/* Stops or continues all processes, and waits until they are. */
int cgroup_freeze(const struct cgroup *cgroup, bool freeze, struct err *err) _must_check_;
bool cgroup_is_frozen(const struct cgroup *cgroup);
bool cgroup_can_freeze(const struct cgroup *cgroup);

/* All processes, also of groups below; *pids is the caller's to free. */
int cgroup_processes(const struct cgroup *cgroup, pid_t **pids, size_t *count, struct err *err) _must_check_;

/* Sends a signal to all, until none is left when it is SIGKILL (at most some seconds). */
int cgroup_kill(const struct cgroup *cgroup, int signal, struct err *err) _must_check_;

/* Takes the groups away, and those below. One that is still in use is tried again for a while. */
int cgroup_remove(struct cgroup *cgroup, struct err *err) _must_check_;

/* What the groups measure, as `events --stats` prints it (runc's form); the caller's. NULL: no memory. */
json_t *cgroup_stats(const struct cgroup *cgroup);
/* How often the kernel ended a process for want of memory; -1 when it is not told. */
int64_t cgroup_oom_kills(const struct cgroup *cgroup);

/* The directory of a controller ("memory"), or of version 2; "" when there is none. Returns text. */
const char *cgroup_directory(const struct cgroup *cgroup, const char *controller, char *text, size_t size_bytes);

json_t *cgroup_save(const struct cgroup *cgroup);
int cgroup_load(struct cgroup *cgroup, const json_t *json, struct err *err) _must_check_;
void cgroup_done(struct cgroup *cgroup);

/* cgroup-devices.c: version 2 has no file for them but a program. */
int cgroup_devices_program(int cgroup_fd, const struct device_rule *rules, size_t count, struct err *err) _must_check_;
