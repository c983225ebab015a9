/*
 * Between the files of the cgroups.
 */
#pragma once

#include "container/cgroup.h"

/* The hierarchy that has the controller; version 2's has all. NULL: none. */
const struct cgroup_place *cgroup_find(const struct cgroup *cgroup, const char *controller);
const char *cgroup_place_directory(const struct cgroup_place *place, char *text, size_t size_bytes);

/* cgroup-systemd.c */
int cgroup_plan_systemd(struct cgroup *cgroup, const char *path, const char *id, int proc_fd, struct err *err) _must_check_;
int cgroup_stop_systemd(const struct cgroup *cgroup, struct err *err);
