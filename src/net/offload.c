#include "net/offload.h"

#include <endian.h>
#include <errno.h>
#include <netinet/in.h>

#define ETH_TYPE_IPV4 0x0800
#define ETH_TYPE_IPV6 0x86dd
#define ETH_TYPE_VLAN 0x8100
#define ETH_TYPE_QINQ 0x88a8
#define VLAN_TAGS_MAX 2
#define IPV6_EXTENSIONS_MAX 8

#define TCP_FIN 0x01
#define TCP_PSH 0x08
#define TCP_CWR 0x80

static uint16_t get16(const uint8_t *at)
{
        return (uint16_t)(at[0] << 8 | at[1]);
}

static uint32_t get32(const uint8_t *at)
{
        return (uint32_t)get16(at) << 16 | get16(at + 2);
}

static void put16(uint8_t *at, uint16_t value)
{
        at[0] = (uint8_t)(value >> 8);
        at[1] = (uint8_t)value;
}

static void put32(uint8_t *at, uint32_t value)
{
        put16(at, (uint16_t)(value >> 16));
        put16(at + 2, (uint16_t)value);
}

/*
 * Words are added in the host's byte order: the ones' complement sum does not care (RFC 1071 §2 B), so long as the fold swaps
 * it back. 32-bit pieces into 64 bits leave room for 2^32 of them.
 */
uint64_t net_sum(const void *bytes, size_t size_bytes, uint64_t sum)
{
        const uint8_t *at = bytes;

        while (size_bytes >= 32) {
                uint32_t word[8];

                memcpy(word, at, sizeof(word));
                for (unsigned i = 0; i < ARRAY_SIZE(word); i++)
                        sum += word[i];
                at += sizeof(word);
                size_bytes -= sizeof(word);
        }
        while (size_bytes >= 2) {
                uint16_t word;

                memcpy(&word, at, sizeof(word));
                sum += word;
                at += sizeof(word);
                size_bytes -= sizeof(word);
        }
        if (size_bytes) {
                uint8_t last[2] = { *at, 0 };
                uint16_t word;

                memcpy(&word, last, sizeof(word));
                sum += word;
        }
        return sum;
}

uint16_t net_sum_fold(uint64_t sum)
{
        sum = (sum >> 32) + (sum & 0xffffffff);
        sum = (sum >> 32) + (sum & 0xffffffff);
        sum = (sum >> 16) + (sum & 0xffff);
        sum = (sum >> 16) + (sum & 0xffff);
        sum = (sum >> 16) + (sum & 0xffff);
        return be16toh((uint16_t)sum);
}

/* The part of an IPv6 packet that is before TCP or UDP: RFC 8200 §4. */
static int parse_ipv6(const uint8_t *frame, size_t size_bytes, struct net_headers *headers)
{
        size_t at = headers->ip + 40u;
        uint8_t next;

        if (size_bytes < at || frame[headers->ip] >> 4 != 6)
                return -EBADMSG;
        next = frame[headers->ip + 6];
        for (unsigned i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
                if (next == IPPROTO_TCP || next == IPPROTO_UDP) {
                        headers->ipv6 = true;
                        headers->protocol = next;
                        headers->l4 = (uint16_t)at;
                        return 0;
                }
                if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS)
                        return -EBADMSG;
                if (size_bytes < at + 8)
                        return -EBADMSG;
                next = frame[at];
                at += (frame[at + 1] + 1u) * 8;
        }
        return -EBADMSG;
}

static int parse_ipv4(const uint8_t *frame, size_t size_bytes, struct net_headers *headers)
{
        const uint8_t *ip = frame + headers->ip;
        size_t length;

        if (size_bytes < headers->ip + 20u || ip[0] >> 4 != 4)
                return -EBADMSG;
        length = (ip[0] & 15) * 4u;
        if (length < 20 || size_bytes < headers->ip + length)
                return -EBADMSG;
        /* RFC 791 §3.1: more fragments, or an offset. A fragment has no checksum of its own. */
        if (get16(ip + 6) & 0x3fff)
                return -EBADMSG;
        if (ip[9] != IPPROTO_TCP && ip[9] != IPPROTO_UDP)
                return -EBADMSG;
        headers->ipv6 = false;
        headers->protocol = ip[9];
        headers->l4 = (uint16_t)(headers->ip + length);
        return 0;
}

int net_headers_parse(const uint8_t *frame, size_t size_bytes, struct net_headers *headers)
{
        struct net_headers found = { 0 };
        size_t at = 12;
        size_t length;
        uint16_t type;
        int r;

        if (size_bytes < NET_FRAME_MIN || size_bytes > NET_FRAME_MAX)
                return -EBADMSG;
        type = get16(frame + at);
        for (unsigned i = 0; i < VLAN_TAGS_MAX && (type == ETH_TYPE_VLAN || type == ETH_TYPE_QINQ); i++) {
                at += 4;
                if (size_bytes < at + 2)
                        return -EBADMSG;
                type = get16(frame + at);
        }
        found.ip = (uint16_t)(at + 2);
        if (type == ETH_TYPE_IPV4)
                r = parse_ipv4(frame, size_bytes, &found);
        else if (type == ETH_TYPE_IPV6)
                r = parse_ipv6(frame, size_bytes, &found);
        else
                return -EBADMSG;
        if (r < 0)
                return r;

        length = 8;
        if (found.protocol == IPPROTO_TCP) {
                if (size_bytes < found.l4 + 20u)
                        return -EBADMSG;
                length = (frame[found.l4 + 12] >> 4) * 4u;
                if (length < 20)
                        return -EBADMSG;
        }
        if (size_bytes < found.l4 + length)
                return -EBADMSG;
        found.payload = (uint16_t)(found.l4 + length);
        *headers = found;
        return 0;
}

int net_checksum_complete(uint8_t *frame, size_t size_bytes, const struct net_offload *offload)
{
        size_t start = offload->csum_start;
        size_t at = start + offload->csum_offset;
        uint16_t sum;

        if (start >= size_bytes || at + 2 > size_bytes)
                return -EBADMSG;
        sum = (uint16_t)~net_sum_fold(net_sum(frame + start, size_bytes - start, 0));
        /* RFC 768: a UDP sum of 0 means none, and is sent as all ones; for TCP the two mean the same. */
        put16(frame + at, sum ? sum : 0xffff);
        return 0;
}

/* The sum of the pseudo header of RFC 9293 §3.1 and RFC 8200 §8.1, unfolded. */
static uint64_t pseudo_header(const uint8_t *frame, const struct net_headers *headers, size_t l4_bytes)
{
        uint8_t tail[8] = { 0 };
        uint64_t sum;

        if (headers->ipv6)
                sum = net_sum(frame + headers->ip + 8, 32, 0);
        else
                sum = net_sum(frame + headers->ip + 12, 8, 0);
        put32(tail, (uint32_t)l4_bytes);
        tail[7] = headers->protocol;
        return net_sum(tail, sizeof(tail), sum);
}

/* Sets the lengths and checksums of a packet whose headers were parsed. */
static void finish_packet(uint8_t *frame, size_t size_bytes, const struct net_headers *headers)
{
        uint8_t *ip = frame + headers->ip;
        size_t l4_bytes = size_bytes - headers->l4;
        uint8_t *sum = frame + headers->l4 + (headers->protocol == IPPROTO_TCP ? 16 : 6);
        uint16_t value;

        if (headers->ipv6) {
                put16(ip + 4, (uint16_t)(size_bytes - headers->ip - 40));
        } else {
                put16(ip + 2, (uint16_t)(size_bytes - headers->ip));
                put16(ip + 10, 0);
                put16(ip + 10, (uint16_t)~net_sum_fold(net_sum(ip, headers->l4 - headers->ip, 0)));
        }
        put16(sum, 0);
        value = (uint16_t)~net_sum_fold(net_sum(frame + headers->l4, l4_bytes, pseudo_header(frame, headers, l4_bytes)));
        put16(sum, value ? value : 0xffff);
}

/* An IP length field has 16 bits; IPv6's does not count its fixed header. */
static bool fits_ip(const struct net_headers *headers, size_t size_bytes)
{
        return size_bytes - headers->ip <= (headers->ipv6 ? 65535u + 40 : 65535u);
}

int net_checksum_packet(uint8_t *frame, size_t size_bytes)
{
        struct net_headers headers;
        int r;

        r = net_headers_parse(frame, size_bytes, &headers);
        if (r < 0)
                return r;
        if (!fits_ip(&headers, size_bytes))
                return -EBADMSG;
        if (headers.protocol == IPPROTO_UDP)
                put16(frame + headers.l4 + 4, (uint16_t)(size_bytes - headers.l4));
        finish_packet(frame, size_bytes, &headers);
        return 0;
}

int net_segment(const uint8_t *frame, size_t size_bytes, const struct net_offload *offload, uint8_t *scratch, size_t *done,
                int (*emit)(void *ctx, const uint8_t *frame, size_t size_bytes), void *ctx)
{
        struct net_headers headers;
        size_t payload;
        int r;

        r = net_headers_parse(frame, size_bytes, &headers);
        if (r < 0)
                return r;
        if (headers.protocol != IPPROTO_TCP || headers.ipv6 != (offload->gso == NET_GSO_TCPV6) || !offload->gso_bytes)
                return -EBADMSG;
        payload = size_bytes - headers.payload;
        if (!payload || *done >= payload)
                return *done ? 0 : -EBADMSG;

        while (*done < payload) {
                size_t part = MIN((size_t)offload->gso_bytes, payload - *done);
                uint8_t *tcp = scratch + headers.l4;

                if (!fits_ip(&headers, headers.payload + part))
                        return -EBADMSG;
                memcpy(scratch, frame, headers.payload);
                memcpy(scratch + headers.payload, frame + headers.payload + *done, part);
                /* Each packet but the first has an identification of its own (RFC 6864 §4), each its sequence number. */
                if (!headers.ipv6)
                        put16(scratch + headers.ip + 4, (uint16_t)(get16(frame + headers.ip + 4) + *done / offload->gso_bytes));
                put32(tcp + 4, get32(tcp + 4) + (uint32_t)*done);
                if (*done)
                        tcp[13] &= (uint8_t)~TCP_CWR; /* RFC 3168 §6.1.2: said once */
                if (*done + part < payload)
                        tcp[13] &= (uint8_t)~(TCP_FIN | TCP_PSH);
                finish_packet(scratch, headers.payload + part, &headers);
                r = emit(ctx, scratch, headers.payload + part);
                if (r)
                        return r;
                *done += part;
        }
        return 0;
}
