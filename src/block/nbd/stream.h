/*
 * A connection as NBD uses it: bytes in order, both ways, over a socket or a pair of pipes, with or without TLS.
 *
 * Reading is done by one fiber, which waits here; what comes is buffered, so that many small messages cost one system call. Writing is done by
 * that fiber, too (handshake), or never waits and has a callback (transmission), not both at one time. All on the loop's thread.
 *
 * Errors: -ECONNRESET at the end of the other side's bytes, -ETIMEDOUT past the deadline, what nbd_stream_stop() was told, what the kernel or
 * TLS says.
 */
#pragma once

#include <uv.h>

#include "base/err.h"

struct nbd_stream;
struct nbd_tls;

/* Takes the descriptors, which may be the same one, also when it fails. */
int nbd_stream_new(uv_loop_t *loop, int in, int out, struct nbd_stream **stream, struct err *err) _must_check_;
/* No fiber waits in it. NULL is fine. The loop may have to run once more to close handles. */
void nbd_stream_free(struct nbd_stream *stream);

/* ---- reading, in the fiber ---- */

/* Called in the fiber whenever all that was here is used up, before more is asked for. */
void nbd_stream_set_idle(struct nbd_stream *stream, void (*idle)(void *ctx), void *ctx);
int nbd_stream_get(struct nbd_stream *stream, void *to, size_t size_bytes) _must_check_;
int nbd_stream_skip(struct nbd_stream *stream, uint64_t size_bytes) _must_check_;
/* The next size_bytes (64 KiB at most) where they lie, passed over; good until the next call. NULL: *error. */
const uint8_t *nbd_stream_take(struct nbd_stream *stream, size_t size_bytes, int *error) _must_check_;
/* The same, not passed over. */
const uint8_t *nbd_stream_peek(struct nbd_stream *stream, size_t size_bytes, int *error) _must_check_;

/* ---- writing ---- */

/* In the fiber. */
int nbd_stream_put(struct nbd_stream *stream, const void *from, size_t size_bytes) _must_check_;
/* How many bytes went, from the first on; -EAGAIN: none, and writable will be called. */
ssize_t nbd_stream_writev(struct nbd_stream *stream, const struct iovec *iov, unsigned count) _must_check_;
/* In the fiber: until there is room to write; of a socket that connects, until it has. */
int nbd_stream_wait_writable(struct nbd_stream *stream) _must_check_;
void nbd_stream_set_writable(struct nbd_stream *stream, void (*writable)(void *ctx), void *ctx);

/* ---- both ---- */

/* Over TLS from now on, in the fiber. hostname: of the server, for a client; NULL: it is the server, or the name does not matter. */
int nbd_stream_start_tls(struct nbd_stream *stream, struct nbd_tls *tls, const char *hostname, struct err *err) _must_check_;
bool nbd_stream_has_tls(const struct nbd_stream *stream);
/* Whoever reads, or will, gets -ETIMEDOUT so many milliseconds from now; 0: no more. */
void nbd_stream_set_deadline(struct nbd_stream *stream, unsigned timeout_ms);
/* Whoever reads, or will, gets this error once there is nothing left in the buffer. The fiber may run on from within it. */
void nbd_stream_stop(struct nbd_stream *stream, int error);
/* Waits for what the stream waits for without the loop, and acts on it; -1: for as long as it takes. */
void nbd_stream_poll(struct nbd_stream *stream, int timeout_ms);
int nbd_stream_fd(const struct nbd_stream *stream);
