/*
 * A network driver in a process of its own.
 *
 * The machine's process has an empty network namespace and cannot open sockets; a user network is made of the host's sockets. So
 * the driver runs beside it, started from the same executable (`virta serve-net`) before the machine gives up its rights, and
 * frames go between the two over a socket pair (frame-pipe.h). The network process can make connections and nothing else:
 * empty root, no capabilities, its own list of system calls. It ends when the machine does.
 *
 *      machine ── net_peer_spawn() ──fork, exec──▶ net_serve(): parse, open the driver, hello, confine, loop
 *              ◀─ hello: features, MTU, or what went wrong ─
 *              ── net_peer_attach() … frames … ──
 */
#pragma once

#include "net/net.h"

/* The command that main() hands to net_serve(); it is not shown in help. */
#define NET_SERVE_COMMAND "serve-net"
#define NET_SERVE_FD 3

/* Starts the process; *fd is its socket, for net_peer_attach() or close(). options->driver is not NULL. */
int net_peer_spawn(const struct net_options *options, int *fd, struct err *err) _must_check_;

/* Waits for the hello (the driver's own error comes back here) and gives a backend; takes fd over in any case. */
int net_peer_attach(int fd, uv_loop_t *loop, struct net_backend **net, struct err *err) _must_check_;

/* The network process's main function: serves what arrives on fd until the machine is gone. */
int net_serve(int fd, bool sandbox, struct err *err) _must_check_;
