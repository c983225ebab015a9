/*
 * What create and exec share: a process that is born in namespaces, and what is said of it to others.
 */
#pragma once

#include "container/namespace.h"

/* Writes the number into a file, whole or not at all. path NULL: nothing. */
int write_pid_file(const char *path, pid_t pid, struct err *err) _must_check_;

/* Hands a seccomp listener (descriptor fd of process pid) to the socket that the configuration names. state: of the container. */
int send_listener(const struct seccomp_config *seccomp, pid_t pid, int fd, json_t *state, struct err *err) _must_check_;

/* Waits for the process; passes signals on to it. Returns the code a shell has for its end (128 + signal). */
int wait_forwarding(pid_t pid, int pid_fd);

/* Ends a process that did not get ready. */
void kill_and_reap(pid_t pid);
