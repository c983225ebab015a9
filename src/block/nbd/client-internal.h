/* What the files of the NBD client share. */
#pragma once

#include <netdb.h>

#include "base/fiber.h"
#include "block/nbd/client.h"
#include "block/nbd/stream.h"
#include "block/nbd/tls.h"
#include "block/nbd/uri.h"
#include "block/nbd/wire.h"

#define NBD_SLOTS 256u  /* requests that the server has at a time */
#define NBD_RANGES 64u  /* pieces of a read that came out of order */

/* What a server says of its export. */
struct nbd_export {
        uint64_t size_bytes;
        uint16_t flags;
        bool structured, extended, allocation;
        uint32_t context;
        uint32_t minimum_bytes, preferred_bytes, maximum_bytes;
};

struct nbd_range {
        uint64_t from, to;
};

/* What block status found, of one reply. */
struct nbd_extents {
        uint64_t from, to;      /* nothing is known outside; empty: of nothing */
        unsigned count;
        struct nbd_extent {
                uint64_t end;
                bool zero;
        } extent[1024];
};

/* A request of the protocol: a block request, or some of it. */
struct nbd_part {
        struct nbd_part *next;
        struct block_request *guest; /* NULL: block status */
        struct nbd_header header;
        struct iovec *iov;           /* of guest, or of `more` */
        unsigned iov_count;
        struct iovec *more;
        uint8_t bytes[NBD_REQUEST_EXT_BYTES]; /* of the header, as sent */
        bool has_slot, sent;         /* sent: whole */
        int result;
        /* Of a read: what has come. */
        struct nbd_range range[NBD_RANGES];
        unsigned ranges;
        uint64_t came;
        /* Of block status. */
        bool *over;
        struct fiber *fiber;
};

struct nbd_client {
        struct block block;
        struct nbd_uri uri;
        struct nbd_tls *tls;
        struct addrinfo *addresses;
        struct nbd_export export;

        struct fiber *fiber;          /* it sleeps, for the timer */
        uv_timer_t *timer;
        bool running;                 /* the fiber that connects and reads */
        bool closing;
        bool opened, connected;
        bool failing;                 /* requests have waited long enough: they fail until the server is there again */
        bool blocked;                 /* the kernel takes no more for now */
        bool told;                    /* something was completed, and the listener was not told */
        struct nbd_stream *stream;
        uint64_t lost_ms;             /* since when it is gone */
        unsigned attempts;

        struct nbd_part *queue, **queue_last; /* to be sent; of the first out_sent bytes are gone */
        size_t out_sent;
        struct nbd_part *slot[NBD_SLOTS];     /* the server has them */
        unsigned slots_used, slot_next;
        uint32_t generation;
        struct nbd_part *spare;

        /* Writes that are not whole blocks of the server's: read, changed and written, with nobody beside them. */
        struct fiber_lock rmw_lock;
        struct fiber_queue rmw_quiet;
        bool rmw;
        unsigned writes;                      /* requests that the server has, or will */
        struct block_request *held, **held_last;

        struct nbd_extents *extents;
        uint64_t extents_good;                /* for as long as changes is this */
        uint64_t changes;                     /* writes that ever were */
        struct fiber_lock status_lock;
        bool past_gate;                       /* a request of our own, for an unaligned one */
        uint64_t progress;                    /* answers that ever were */
        int open_result;
        struct err open_err;
};

/* ---- client-handshake.c; in the client's fiber ---- */

int nbd_client_handshake(struct nbd_client *c, struct nbd_export *export, struct err *err) _must_check_;

/* ---- client-receive.c; in the client's fiber ---- */

/* Replies until the connection ends. */
int nbd_client_receive(struct nbd_client *c);

/* ---- client.c ---- */

/* NULL: there is no such request. */
struct nbd_part *nbd_client_find(struct nbd_client *c, uint64_t cookie);
/* The server has answered it. */
void nbd_client_done(struct nbd_client *c, struct nbd_part *part);
/* Before the fiber reads. */
void nbd_client_idle(void *ctx);
