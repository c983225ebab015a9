/* What the files of the NBD server share. */
#pragma once

#include "base/fiber.h"
#include "block/nbd/server.h"
#include "block/nbd/stream.h"
#include "block/nbd/wire.h"

/* Of one connection: requests and their data in flight; then it is not read from until some are answered. */
#define NBD_REQUESTS_MAX 256u
#define NBD_IN_FLIGHT_BYTES ((size_t)64 << 20)

/* Bits of nbd_connection.contexts: the allocation, then the bitmaps. The context of bit N has the number N + 1. */
#define NBD_CONTEXTS_MAX (1u + NBD_BITMAPS_MAX)

struct nbd_connection;

/* A request from its header until its reply is sent. */
struct nbd_request {
        struct block_request req;
        struct nbd_connection *connection;
        struct nbd_request *next;      /* replies to be sent; or requests kept for reuse */
        struct nbd_header header;
        uint8_t *data;                 /* of `room` bytes; kept with the request */
        size_t room;
        size_t counted;                /* of the connection's bytes in flight */
        struct iovec iov;              /* of req */
        /* The reply: head, then the pieces. */
        uint8_t head[NBD_CHUNK_EXT_BYTES + 16];
        unsigned head_bytes;
        struct iovec piece[2];
        struct iovec *pieces;          /* &piece[0], or allocated: more, with their headers behind them */
        unsigned piece_count;
};

struct nbd_connection {
        struct nbd_server *server;
        struct nbd_connection *next, **link; /* server->connections */
        struct nbd_stream *stream;
        bool reading;                  /* its fiber is not over */
        bool structured, extended;
        bool gone;                     /* nothing more is sent */
        bool blocked;                  /* the kernel takes no more for now */
        bool stopped;                  /* it was told to read no more */
        bool listed;                   /* among server->dirty */
        unsigned contexts;
        struct nbd_connection *next_dirty;
        unsigned in_flight;            /* requests whose reply is not sent */
        unsigned working;              /* those of them that the disk, or a fiber, has */
        size_t in_flight_bytes;
        struct fiber *fiber;           /* while it waits for room: for so many bytes */
        size_t fiber_wants;
        struct nbd_request *out, **out_last; /* replies */
        size_t out_sent;               /* bytes of the first one that went */
        struct nbd_request *spare;
        size_t spare_bytes;
};

struct nbd_listener;

struct nbd_server {
        uv_loop_t *loop;
        struct nbd_server_config config;
        struct block *disk;
        bool readonly, stopping, told;
        struct nbd_listener *listeners;
        struct nbd_connection *connections, *dirty;
        unsigned clients;
        uv_timer_t timer;              /* of the end, and until listening is tried again */
        uv_idle_t idle;                /* has stopped() called from the loop */
        unsigned handles;
};

/* ---- server-handshake.c; in the connection's fiber ---- */

/* 0: transmission begins; 1: the client has left; -errno. */
int nbd_server_handshake(struct nbd_connection *c, struct err *err) _must_check_;

/* ---- server-transmit.c ---- */

uint16_t nbd_server_flags(const struct nbd_connection *c);
/* Requests until the client leaves or something is wrong; in the connection's fiber. */
int nbd_server_transmit(struct nbd_connection *c);
/* Sends what there is to send. */
void nbd_connection_send(struct nbd_connection *c);
/* Nothing more is sent: replies are thrown away. */
void nbd_connection_cut(struct nbd_connection *c);
void nbd_connection_drop_spares(struct nbd_connection *c);

/* ---- server.c ---- */

/* It has something to send: it will be, with the batch. */
void nbd_connection_dirty(struct nbd_connection *c);
/* Frees it when nothing is left of it. */
void nbd_connection_settle(struct nbd_connection *c);
