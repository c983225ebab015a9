/*
 * vhost-user: a virtio block device whose driver is in another process's machine, reached over a socket that passes the machine's memory and
 * its eventfds. Here is the back end; QEMU's vhost-user-blk-pci is a front end.
 *
 *      vhost_user_server_new() ─▶ vhost_user_server_listen() ─▶ … loop … one front end at a time … ─▶ vhost_user_server_stop() ─▶ free
 *
 * The disk has one listener (block_set_listener()), which may serve several exports: its owner calls vhost_user_server_batch() from it.
 *
 * All of it on the loop's thread. A process that serves so also lives through accesses behind the end of a file that a front end has shared and
 * then cut: it gets zeroes there (SIGBUS is handled).
 */
#pragma once

#include "block/block.h"

struct vhost_user_server;

struct vhost_user_config {
        struct block *disk;
        const char *serial;  /* what get-id says; at most 20 bytes */
        unsigned queues;     /* at most, 1 to 16; a front end may use fewer */
        /* Any of these may be NULL. From the loop. */
        void (*left)(void *ctx); /* the front end has */
        void (*trouble)(void *ctx, const struct err *err); /* why a front end was left */
        void *ctx;
};

int vhost_user_server_new(uv_loop_t *loop, const struct vhost_user_config *config, struct vhost_user_server **server, struct err *err) _must_check_;
/* NULL is fine. The loop has to run once more. */
void vhost_user_server_free(struct vhost_user_server *server);

/* Takes a listening socket, also when it fails. Once. */
int vhost_user_server_listen(struct vhost_user_server *server, int fd, struct err *err) _must_check_;
/* Takes a connection. Nobody is connected. */
int vhost_user_server_connect(struct vhost_user_server *server, int fd, struct err *err) _must_check_;
void vhost_user_server_batch(struct vhost_user_server *server);
/* The disk has another size: the front end is told. */
void vhost_user_server_resized(struct vhost_user_server *server);
/* What is in flight is done; then the front end is left, and none comes any more. */
void vhost_user_server_stop(struct vhost_user_server *server);
