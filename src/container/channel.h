/*
 * Between the runtime and the process that becomes the container's: short messages over a socket pair, each with a kind, a number, a text
 * and at most one descriptor.
 *
 *      runtime                               container's process
 *         │ ── MAPPED (after TREE…) ───────────▶ │  its ids and the mounts it cannot make are there
 *         │ ── JOINED ─────────────────────────▶ │  it is in its cgroup
 *         │ ◀───────────────────────── HOOKS ─── │  namespaces and mounts stand, the root is not changed yet
 *         │ ── HOOKS_DONE ─────────────────────▶ │
 *         │ ◀──── CONSOLE (master), LISTENER ─── │
 *         │ ◀───────────────────────── READY ─── │
 *         │ ── RELEASE ────────────────────────▶ │  from now on it lives by itself
 *
 * ERROR may come instead of any; the end of the channel means that the other side is gone. The descriptor closes when the program is
 * executed.
 */
#pragma once

#include "base/err.h"

enum message_kind {
        MESSAGE_PID,
        MESSAGE_TREE, /* number: index of the mount (-1: the root); descriptor: its detached tree */
        MESSAGE_MAPPED,
        MESSAGE_JOINED,
        MESSAGE_HOOKS,
        MESSAGE_HOOKS_DONE,
        MESSAGE_CONSOLE,
        MESSAGE_LISTENER, /* number: the descriptor in the other process */
        MESSAGE_LISTENER_TAKEN,
        MESSAGE_READY,
        MESSAGE_RELEASE,
        MESSAGE_ERROR,
};

struct message {
        enum message_kind kind;
        int number;
        char text[ERR_TEXT_MAX];
};

/* Both ends close at exec. */
int channel_make(int ends[2], struct err *err) _must_check_;
/* fd -1: none. */
int channel_send(int channel, enum message_kind kind, int number, int fd, struct err *err) _must_check_;
void channel_send_error(int channel, const struct err *err);
/* The next message; *fd is the caller's (-1: none). -EPIPE: the other side is gone. An ERROR of the other side becomes this side's. */
int channel_receive(int channel, struct message *message, int *fd, struct err *err) _must_check_;
/* One of this kind and nothing else; number may be NULL. */
int channel_expect(int channel, enum message_kind kind, int *number, struct err *err) _must_check_;
