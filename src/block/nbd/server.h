/*
 * An NBD server: a disk given to clients over sockets or pipes, on the loop of the disk.
 *
 *      nbd_server_new() ─▶ nbd_server_listen(), nbd_server_connect(): any number ─▶ … loop … ─▶ nbd_server_stop() ─▶ stopped() ─▶ free
 *
 * The disk has one listener (block_set_listener()), which may serve several exports: its owner calls nbd_server_batch() from it.
 */
#pragma once

#include "block/block.h"

struct block_bitmap;
struct nbd_server;
struct nbd_tls;

#define NBD_BITMAPS_MAX 16u

struct nbd_server_config {
        struct block *disk;
        const char *export_name;  /* "" is what clients ask for who name none */
        const char *description;  /* or NULL */
        struct block_bitmap *const *bitmap; /* borrowed; clients may ask what is set in them */
        unsigned bitmaps;         /* NBD_BITMAPS_MAX at most */
        bool readonly;            /* also when the disk is not */
        struct nbd_tls *tls;      /* borrowed; NULL: none. With it nobody comes in without */
        unsigned connections_max; /* more wait to be accepted */
        /* Any of these may be NULL. */
        void (*left)(void *ctx, unsigned clients);           /* a client has, and so many are there still. It may stop the server */
        void (*trouble)(void *ctx, const struct err *err);   /* why a client was left */
        void (*stopped)(void *ctx);                          /* called from the loop */
        void *ctx;
};

int nbd_server_new(uv_loop_t *loop, const struct nbd_server_config *config, struct nbd_server **server, struct err *err) _must_check_;
/* After stopped(), or when nothing was connected. NULL is fine. The loop may have to run once more. */
void nbd_server_free(struct nbd_server *server);

/* Takes a listening socket, also when it fails. */
int nbd_server_listen(struct nbd_server *server, int fd, struct err *err) _must_check_;
/* Takes a connection: a socket, or two pipes. */
int nbd_server_connect(struct nbd_server *server, int in, int out, struct err *err) _must_check_;
/* Requests of the disk have ended: replies go out together. */
void nbd_server_batch(struct nbd_server *server);
/* No more clients, no more requests; what is in flight is answered. Clients that do not take their answers are left after some seconds. */
void nbd_server_stop(struct nbd_server *server);
