/*
 * Where a created container waits to be started.
 *
 * A FIFO in the container's directory. Its first process opens it for writing, which blocks until somebody reads: that is `start`,
 * from any process at any time. The writer's descriptor closes by itself when the program is executed, so `start` reads an end
 * when the program runs, and the words of the error when it cannot. A FIFO needs nobody to hold it and goes with the directory.
 */
#pragma once

#include "base/err.h"

int gate_make(int dir_fd, struct err *err) _must_check_;
bool gate_is_there(int dir_fd);

/* The side that waits: a descriptor (O_PATH) that is still good when the directory can no longer be seen. Returns it or -errno. */
int gate_hold(int dir_fd);
/* Waits for the start. gate_fd: of gate_hold(). Returns the descriptor to keep until the program is executed, or -errno. */
int gate_wait(int gate_fd, int proc_fd);
/* Tells why the program cannot run. */
void gate_fail(int fd, const struct err *err);

/*
 * The other side: lets it go and waits until the program runs. pid_fd: the process that waits there; -ESRCH when it ended before. On
 * failure *err is what it told. The FIFO is taken away.
 */
int gate_open(int dir_fd, int pid_fd, struct err *err) _must_check_;
