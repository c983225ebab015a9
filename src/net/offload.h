/*
 * Checksums and segmentation in software, for when one side of a network backend leaves them to do and the other does not
 * take them. RFC 1071 (checksum), RFC 791, RFC 8200, RFC 9293; virtio 1.2 §5.1.6.2 for what the fields of struct net_offload
 * may be trusted for: nothing here trusts them, the frame's own headers decide.
 */
#pragma once

#include "net/net.h"

/* The ones' complement sum of bytes, unfolded, on top of sum; every part but the last has an even length. */
uint64_t net_sum(const void *bytes, size_t size_bytes, uint64_t sum);
uint16_t net_sum_fold(uint64_t sum);

/* What the headers of a frame say; offsets are from the frame's start. */
struct net_headers {
        bool ipv6;
        uint16_t ip;      /* offset of the IP header */
        uint16_t l4;      /* offset of the TCP or UDP header */
        uint16_t payload; /* offset of what follows it */
        uint8_t protocol; /* IPPROTO_TCP or IPPROTO_UDP */
};

/* -EBADMSG when it is not a whole, unfragmented TCP or UDP packet (behind at most two VLAN tags). Only headers are read. */
int net_headers_parse(const uint8_t *frame, size_t size_bytes, struct net_headers *headers) _must_check_;

/*
 * Puts the checksum where offload says, over a sum of the pseudo header that is there (NET_NEEDS_CSUM). -EBADMSG when the
 * offsets leave the frame; the frame is then as it was.
 */
int net_checksum_complete(uint8_t *frame, size_t size_bytes, const struct net_offload *offload) _must_check_;

/* Computes IP and TCP or UDP checksums anew from the headers: for a large TCP segment that is sent on as one packet. */
int net_checksum_packet(uint8_t *frame, size_t size_bytes) _must_check_;

/*
 * Cuts a large TCP segment (offload->gso) into packets of offload->gso_bytes payload with complete checksums, each given to
 * emit() from scratch (room for NET_FRAME_MAX bytes). Stops at the first emit() that is not 0 and returns it; *done counts the
 * payload bytes that were emitted, and a call with it goes on from there. -EBADMSG when the frame is not what offload says.
 */
int net_segment(const uint8_t *frame, size_t size_bytes, const struct net_offload *offload, uint8_t *scratch, size_t *done,
                int (*emit)(void *ctx, const uint8_t *frame, size_t size_bytes), void *ctx) _must_check_;
