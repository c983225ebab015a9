/*
 * What the driver of a network card says through its control queue: the receive filter, the address, the offloads.
 * virtio 1.2 §5.1.6.5. Part of virtio-net.c; nothing here touches a queue.
 */
#pragma once

#include "base/record.h"
#include "base/util.h"

#define VIRTIO_NET_F_CSUM 0
#define VIRTIO_NET_F_GUEST_CSUM 1
#define VIRTIO_NET_F_CTRL_GUEST_OFFLOADS 2
#define VIRTIO_NET_F_MTU 3
#define VIRTIO_NET_F_MAC 5
#define VIRTIO_NET_F_GUEST_TSO4 7
#define VIRTIO_NET_F_GUEST_TSO6 8
#define VIRTIO_NET_F_GUEST_ECN 9
#define VIRTIO_NET_F_HOST_TSO4 11
#define VIRTIO_NET_F_HOST_TSO6 12
#define VIRTIO_NET_F_HOST_ECN 13
#define VIRTIO_NET_F_MRG_RXBUF 15
#define VIRTIO_NET_F_STATUS 16
#define VIRTIO_NET_F_CTRL_VQ 17
#define VIRTIO_NET_F_CTRL_RX 18
#define VIRTIO_NET_F_CTRL_RX_EXTRA 20
#define VIRTIO_NET_F_GUEST_ANNOUNCE 21
#define VIRTIO_NET_F_CTRL_MAC_ADDR 23

/* The features that a driver may switch while it runs (§5.1.6.5.6.1). */
#define VIRTIO_NET_GUEST_OFFLOADS                                                                               \
        (UINT64_C(1) << VIRTIO_NET_F_GUEST_CSUM | UINT64_C(1) << VIRTIO_NET_F_GUEST_TSO4 |                      \
         UINT64_C(1) << VIRTIO_NET_F_GUEST_TSO6 | UINT64_C(1) << VIRTIO_NET_F_GUEST_ECN)

#define NET_FILTER_ADDRESSES_MAX 64u

/* More addresses than fit make a list "all": it then lets everything of its kind through (§5.1.6.5.2.1). */
struct net_filter {
        bool promiscuous, all_multicast, all_unicast, no_multicast, no_unicast, no_broadcast;
        bool all_listed_unicast, all_listed_multicast;
        uint8_t unicast_count, multicast_count;
        uint8_t unicast[NET_FILTER_ADDRESSES_MAX][6];
        uint8_t multicast[NET_FILTER_ADDRESSES_MAX][6];
};

struct net_control {
        struct net_filter filter;
        uint8_t mac[6];
        uint64_t offloads;  /* of VIRTIO_NET_GUEST_OFFLOADS, those that are on */
        bool announce;      /* the driver is asked to say where it is */
};

/* As after reset: everything is let through until the driver says otherwise (§5.1.6.5.1). */
void net_control_reset(struct net_control *control, const uint8_t mac[6]);

/* One command, its class and code first; features are the negotiated ones. 0, or -EINVAL: the answer is VIRTIO_NET_ERR. */
int net_control_command(struct net_control *control, uint64_t features, const void *bytes, size_t size_bytes);

/* Whether a frame, of which the first 6 bytes are here, is for this card. */
bool net_filter_takes(const struct net_control *control, const uint8_t destination[6]);

void net_control_save(const struct net_control *control, struct writer *out);
int net_control_load(struct net_control *control, struct cursor *in, struct err *err) _must_check_;
