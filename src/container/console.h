/*
 * A container's terminal.
 *
 * The pair is made from the container's own devpts, so that the program finds its terminal at /dev/pts. What was opened is checked to
 * be of a devpts before it is used (CVE-2025-52565). The master goes to whoever gave --console-socket, or is relayed by us.
 */
#pragma once

#include "container/config.h"

/* In the container's root: makes the pair, puts the slave over /dev/console (unless for an exec'd process) and on 0, 1, 2. *master is the caller's. */
int console_open(int root_fd, const struct process_config *process, bool cover_console, int *master, struct err *err) _must_check_;

/* Sends the master to the unix socket at path, as runc does (its name beside it). */
int console_send(const char *path, int master, struct err *err) _must_check_;

/*
 * Copies between our own terminal and the master until the process of pid_fd has ended and all is read. Our terminal is raw
 * meanwhile; its size is passed on; signals that end us are passed to the process.
 */
int console_relay(int master, int pid_fd, struct err *err) _must_check_;
