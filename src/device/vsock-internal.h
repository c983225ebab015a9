/*
 * The vsock device inside: its connections, shared by virtio-vsock.c (the host's sockets, the device), vsock-connection.c (what
 * there is and what it waits for), vsock-send.c (packets to the guest) and vsock-receive.c (packets from the guest). The theory
 * is in virtio-vsock.c. All functions are called with the device's lock.
 */
#pragma once

#include "device/virtio-vsock.h"
#include "device/vsock-host.h"

enum { VSOCK_RX, VSOCK_TX, VSOCK_EVENT, VSOCK_QUEUES };

#define BATCH 256u /* packets at a time, each way */
#define CONNECTIONS_MAX 256u
#define RESETS_MAX 128u
#define BUFFER_BYTES (256u << 10)
#define HOST_CID 2u
#define HASH_SIZE 128u

#define CLOSE_TIMEOUT_S 8u

/* §5.10.6: operations, types, flags of SHUTDOWN */
enum { OP_INVALID, OP_REQUEST, OP_RESPONSE, OP_RST, OP_SHUTDOWN, OP_RW, OP_CREDIT_UPDATE, OP_CREDIT_REQUEST };
#define TYPE_STREAM 1
#define SHUTDOWN_RECEIVE 1u
#define SHUTDOWN_SEND 2u
#define SHUTDOWN_BOTH 3u

/* struct virtio_vsock_hdr; little-endian on the wire, in the host's order after the guest's was taken */
struct vsock_header {
        uint64_t src_cid, dst_cid;
        uint32_t src_port, dst_port;
        uint32_t len;
        uint16_t type, op;
        uint32_t flags, buf_alloc, fwd_cnt;
} __attribute__((packed));
_Static_assert(sizeof(struct vsock_header) == 44, "virtio_vsock_hdr");

enum vsock_state { VSOCK_LINE, VSOCK_REQUESTED, VSOCK_OPEN, VSOCK_DRAINING };

/* What a connection owes the guest. */
#define OWED_REQUEST 1u
#define OWED_RESPONSE 2u
#define OWED_CREDIT 4u
#define OWED_CREDIT_REQUEST 8u
#define OWED_SHUTDOWN 16u
#define OWED_DATA 32u /* the socket is readable */

struct vsock_connection {
        unsigned index;
        enum vsock_state state;
        int fd;
        uint32_t guest_port, host_port;
        uint32_t watched;     /* EPOLL… */
        uint64_t deadline_ns; /* 0: none */
        struct vsock_line line;

        /* From the guest: what the socket did not take yet. */
        uint8_t *buffer; /* BUFFER_BYTES, a ring; NULL when it is empty */
        uint32_t buffer_at, buffered;
        uint32_t received, forwarded; /* bytes, modulo 2^32 */
        uint32_t forwarded_told;
        /* To the guest */
        uint32_t sent, peer_buf_alloc, peer_fwd_cnt;
        uint32_t guest_shutdown; /* SHUTDOWN_… it sent */
        uint32_t host_shutdown;  /* SHUTDOWN_… we owe or sent */
        uint32_t owed;

        bool waiting; /* in the list */
        struct vsock_connection *wait_next, *hash_next;
};

struct vsock_reset {
        uint32_t guest_port, host_port;
};

struct virtio_vsock {
        struct virtio virtio;
        uint64_t cid;
        struct vsock_host host;
        int epoll_fd;
        uv_poll_t *poll;   /* on the heap, closed late */
        uv_timer_t *timer; /* housekeeping; runs while there are connections */
        bool timer_runs;
        bool listening; /* in the epoll set */
        bool event_owed;

        struct vsock_connection *connection[CONNECTIONS_MAX];
        uint32_t generation[CONNECTIONS_MAX]; /* events of the one before are not for the next */
        unsigned connections;
        struct vsock_connection *hash[HASH_SIZE];
        struct vsock_connection *wait_first, **wait_last;
        struct vsock_reset resets[RESETS_MAX];
        unsigned reset_first, reset_count;
        uint32_t next_port;
        struct virtio_iov storage;
        struct iovec part[VIRTIO_CHAIN_MAX];
};

/* ---- vsock-connection.c ---- */

struct vsock_connection *vsock_find(const struct virtio_vsock *dev, uint32_t guest_port, uint32_t host_port);
/* Takes fd. NULL when there are too many. The ports are not set: vsock_hash() makes it known by them. */
struct vsock_connection *vsock_connection_new(struct virtio_vsock *dev, int fd, enum vsock_state state);
void vsock_hash(struct virtio_vsock *dev, struct vsock_connection *c);
/* The connection and its socket are gone at once. */
void vsock_connection_free(struct virtio_vsock *dev, struct vsock_connection *c);
/* The same, and the guest is told. */
void vsock_connection_reset(struct virtio_vsock *dev, struct vsock_connection *c);
void vsock_forget_all(struct virtio_vsock *dev);

/* Bytes that the guest has room for. */
uint32_t vsock_credit(const struct vsock_connection *c);
/* Has the epoll set tell what this connection waits for. */
void vsock_watch(struct virtio_vsock *dev, struct vsock_connection *c);
/* Whether new connections are waited for. */
void vsock_listen(struct virtio_vsock *dev, bool on);
/* Notes that the guest is owed OWED_…, or a reset of a connection that does not exist. */
void vsock_owe(struct virtio_vsock *dev, struct vsock_connection *c, uint32_t what);
void vsock_owe_reset(struct virtio_vsock *dev, uint32_t guest_port, uint32_t host_port);

/* On the loop's thread: vsock_housekeeping() from now on, each second. */
void vsock_start_timer(struct virtio_vsock *dev);
/* monotonic_ns() that many seconds from now. */
uint64_t vsock_in_s(unsigned seconds);

/* ---- vsock-send.c ---- */

/* Fills the guest's buffers with what is owed, in turn. */
void vsock_send_all(struct virtio_vsock *dev);

/* ---- vsock-receive.c ---- */

/* Takes the guest's packets. */
void vsock_receive_all(struct virtio_vsock *dev);
/* Writes what is kept for the socket; false when the connection is gone. */
bool vsock_drain(struct virtio_vsock *dev, struct vsock_connection *c);

/* ---- virtio-vsock.c ---- */

/* Ends connections that wait for too long. */
void vsock_housekeeping(uv_timer_t *timer);
