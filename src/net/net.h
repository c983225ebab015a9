/*
 * Network backends: where the frames of a virtual network card go to and come from.
 *
 * A backend is one struct of functions (struct net_ops) and one entry in net_drivers[]. Today there is `user` (a network of
 * its own in user space, libslirp); taps, bridges and overlays take the same shape. The other side, the network card, is a
 * struct net_client. Frames are whole Ethernet frames without FCS, beside them a struct net_offload that says what is still
 * to be done to them, as virtio-net's header does (virtio 1.2 §5.1.6).
 *
 *      guest ─▶ card ──net_send()──▶ backend        -EAGAIN: full; client->writable() is called when there is room
 *      guest ◀─ card ◀─client->receive()─ backend   -EAGAIN: full; net_resume() is called when there is room
 *
 * Threads: all calls, in both directions, are made on the loop's thread. receive(), flush() and writable() are never called from
 * inside of net_send() or net_resume(): a card may hold its lock while it sends, and takes it when it receives.
 */
#pragma once

#include <netinet/in.h>
#include <sys/uio.h>
#include <uv.h>

#include "base/err.h"
#include "base/record.h"

#define NET_FRAME_MIN 14              /* an Ethernet header */
#define NET_FRAME_MAX (65535 + 14 + 8) /* the largest IP packet, its Ethernet header, two VLAN tags */
#define NET_FORWARDS_MAX 64

/* What is left to do to a frame. All zero: nothing. Values are as in virtio 1.2 §5.1.6, in the host's byte order. */
#define NET_NEEDS_CSUM 1 /* the sum from csum_start to the end goes to csum_start + csum_offset */
#define NET_DATA_VALID 2 /* receive: the transport checksum was verified */

enum net_gso { NET_GSO_NONE = 0, NET_GSO_TCPV4 = 1, NET_GSO_TCPV6 = 4 };

struct net_offload {
        uint8_t flags;
        uint8_t gso;        /* enum net_gso */
        bool ecn;           /* the TCP segment has CWR set */
        uint16_t gso_bytes; /* TCP payload of each segment */
        uint16_t header_bytes;
        uint16_t csum_start;
        uint16_t csum_offset;
};

/* What a backend takes from (send) or may give to (receive) its client. */
#define NET_FEATURE_SEND_CSUM (1u << 0)    /* takes frames with NET_NEEDS_CSUM */
#define NET_FEATURE_SEND_TSO4 (1u << 1)    /* takes NET_GSO_TCPV4 */
#define NET_FEATURE_SEND_TSO6 (1u << 2)
#define NET_FEATURE_SEND_BIG (1u << 3)     /* takes TCP segments of any size as one frame, checksums complete */
#define NET_FEATURE_RECEIVE_CSUM (1u << 4) /* may give NET_NEEDS_CSUM */
#define NET_FEATURE_RECEIVE_TSO4 (1u << 5)
#define NET_FEATURE_RECEIVE_TSO6 (1u << 6)

struct net_client {
        /*
         * A frame for the guest, of at most NET_FRAME_MAX bytes; the buffers are the backend's and valid during the call. 0:
         * taken (or dropped, as a card with its receiver off does). -EAGAIN: no room, keep it and wait for net_resume().
         */
        int (*receive)(void *ctx, const struct iovec *iov, unsigned count, const struct net_offload *offload);
        /* A batch of calls to receive() is over: interrupt the guest now. May be NULL. */
        void (*flush)(void *ctx);
        /* There is room again after net_send() said -EAGAIN. May be NULL for a client that drops. */
        void (*writable)(void *ctx);
        /* The cable was plugged or pulled; net_link() says which. May be NULL. */
        void (*link_changed)(void *ctx);
        void *ctx;
};

struct net_forward {
        bool udp;
        struct in_addr host; /* 127.0.0.1 unless given */
        uint16_t host_port;
        uint16_t guest_port;
};

/* What --net says. */
struct net_options {
        const struct net_ops *driver; /* NULL: none, no network card */
        unsigned forwards;
        struct net_forward forward[NET_FORWARDS_MAX];
};

/* The part of a backend that all have; drivers embed it. */
struct net_backend {
        const struct net_ops *ops;
        struct net_client client; /* receive NULL: not connected, frames are dropped */
        uint32_t features;        /* NET_FEATURE_… */
        uint16_t mtu;             /* largest IP packet in either direction */
        bool link_up;
};

struct net_ops {
        const char *name; /* as in --net */
        const char *text; /* one line for help */
        int (*new)(const struct net_options *options, uv_loop_t *loop, struct net_backend **net, struct err *err);
        /* On the loop's thread; the loop must run once more afterwards so that its handles close. */
        void (*free)(struct net_backend *net);
        /*
         * The buffers are the caller's and valid during the call. They may be guest memory, which changes under the reader, for a
         * backend with NET_FEATURE_SEND_CSUM; others get one buffer that is the caller's own. 0 (taken, or dropped for good) or
         * -EAGAIN.
         */
        int (*send)(struct net_backend *net, const struct iovec *iov, unsigned count, const struct net_offload *offload);
        /* The client has room again. */
        void (*resume)(struct net_backend *net);
};

/* NULL-terminated. */
extern const struct net_ops *const net_drivers[];
extern const struct net_ops net_user_ops;

/*
 * "none", or a driver's name and its options: "user[,forward=tcp|udp:[HOSTADDRESS:]HOSTPORT:GUESTPORT]…", with an IPv4 address.
 * -EINVAL says which part is wrong.
 */
int net_options_parse(const char *text, struct net_options *options, struct err *err) _must_check_;

/* The backend that options->driver names (not NULL). -EADDRINUSE and the like name the port. */
int net_new(const struct net_options *options, uv_loop_t *loop, struct net_backend **net, struct err *err) _must_check_;
void net_free(struct net_backend *net);

/* One client a backend; NULL disconnects. */
void net_connect(struct net_backend *net, const struct net_client *client);

static inline int net_send(struct net_backend *net, const struct iovec *iov, unsigned count, const struct net_offload *offload)
{
        return net->ops->send(net, iov, count, offload);
}

static inline void net_resume(struct net_backend *net)
{
        net->ops->resume(net);
}

static inline bool net_link(const struct net_backend *net)
{
        return net->link_up;
}
