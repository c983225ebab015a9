/*
 * Frames over a socket between two of our own processes, in both directions, with back-pressure.
 *
 * Each frame is one message of a SOCK_SEQPACKET pair: struct net_offload, then the frame. A full socket is -EAGAIN to the sender
 * until `room` is called; a receiver that says -EAGAIN keeps the frame waiting here (one, no more is read) until
 * frame_pipe_resume(). The callbacks are never called from inside of frame_pipe_send() or frame_pipe_resume().
 *
 * The other process is ours but serves a guest: a message that is too short, too long or claims offloads outside of its frame is
 * dropped.
 */
#pragma once

#include "net/net.h"

struct frame_pipe;

struct frame_pipe_ops {
        /* 0: taken or dropped; -EAGAIN: keep it. The bytes are the pipe's, valid during the call. */
        int (*deliver)(void *ctx, const struct iovec *iov, unsigned count, const struct net_offload *offload);
        /* A batch of frames was delivered; may be NULL. */
        void (*flush)(void *ctx);
        void (*room)(void *ctx);
        /* The other end is gone; no further callback comes. */
        void (*closed)(void *ctx);
};

/* Takes fd over when it succeeds. On the loop's thread, like all of these. */
int frame_pipe_new(uv_loop_t *loop, int fd, const struct frame_pipe_ops *ops, void *ctx, struct frame_pipe **pipe, struct err *err) _must_check_;
/* The loop must run once more so that its handles close. */
void frame_pipe_free(struct frame_pipe *pipe);

int frame_pipe_send(struct frame_pipe *pipe, const struct iovec *iov, unsigned count, const struct net_offload *offload);
void frame_pipe_resume(struct frame_pipe *pipe);
