/*
 * The checksums and segments are judged by Linux: two network namespaces with a tap each, whose kernels leave checksums and
 * segmentation to us, talk TCP over this test, which does what they left and passes the frames on as if nothing was left to do.
 * A wrong sum or segment is dropped by the other kernel and the transfer does not end.
 */
#include "base/test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "net/offload.h"

#define TRANSFER_BYTES (3u << 20)

static void test_sum_rfc1071(void **state)
{
        /* RFC 1071 §3: the sum of these is ddf2. */
        const uint8_t bytes[] = { 0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7 };
        uint8_t big[4097];
        uint32_t expected = 0;

        assert_int_equal(net_sum_fold(net_sum(bytes, sizeof(bytes), 0)), 0xddf2);
        for (size_t i = 0; i < sizeof(big); i++)
                big[i] = (uint8_t)(i * 37 + (i >> 7));
        for (size_t length = 0; length <= sizeof(big); length += length < 70 ? 1 : 501) {
                expected = 0;
                for (size_t i = 0; i < length; i++)
                        expected += i & 1 ? big[i] : (uint32_t)big[i] << 8;
                while (expected >> 16)
                        expected = (expected >> 16) + (expected & 0xffff);
                assert_int_equal(net_sum_fold(net_sum(big, length, 0)), expected);
        }
}

static void test_bad_frames(void **state)
{
        uint8_t frame[128] = { [12] = 0x08, [13] = 0x00, [14] = 0x45, [23] = IPPROTO_TCP, [46] = 0x50 };
        uint8_t scratch[NET_FRAME_MAX];
        struct net_headers headers;
        struct net_offload offload = { .flags = NET_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16 };
        size_t done = 0;

        assert_int_equal(net_headers_parse(frame, sizeof(frame), &headers), 0);
        assert_int_equal(headers.payload, 54);
        for (size_t length = 0; length < 54; length++)
                assert_int_equal(net_headers_parse(frame, length, &headers), -EBADMSG);
        assert_int_equal(net_checksum_complete(frame, 51, &offload), -EBADMSG);
        assert_int_equal(net_checksum_complete(frame, 52, &offload), 0);
        offload.csum_start = 0xffff;
        offload.csum_offset = 0xffff;
        assert_int_equal(net_checksum_complete(frame, sizeof(frame), &offload), -EBADMSG);

        offload.gso = NET_GSO_TCPV4;
        assert_int_equal(net_segment(frame, sizeof(frame), &offload, scratch, &done, NULL, NULL), -EBADMSG);
        offload.gso = NET_GSO_TCPV6;
        offload.gso_bytes = 10;
        assert_int_equal(net_segment(frame, sizeof(frame), &offload, scratch, &done, NULL, NULL), -EBADMSG);
        frame[20] = 0x20; /* more fragments */
        assert_int_equal(net_headers_parse(frame, sizeof(frame), &headers), -EBADMSG);
        frame[20] = 0;
        frame[46] = 0x40; /* a TCP header of 16 bytes */
        assert_int_equal(net_headers_parse(frame, sizeof(frame), &headers), -EBADMSG);
}

struct side {
        int tap;
        int sock;
};

static int set_address(const char *name, bool ipv6, unsigned last)
{
        int fd = socket(ipv6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        struct ifreq ifr = { 0 };
        int r = 0;

        snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
        if (fd < 0)
                return -errno;
        if (ipv6) {
                struct {
                        struct in6_addr address;
                        uint32_t prefix;
                        int index;
                } in6 = { .prefix = 64, .index = (int)if_nametoindex(name) };

                inet_pton(AF_INET6, "2001:db8::", &in6.address);
                in6.address.s6_addr[15] = (uint8_t)last;
                r = ioctl(fd, SIOCSIFADDR, &in6);
        } else {
                struct sockaddr_in *in = (struct sockaddr_in *)&ifr.ifr_addr;

                in->sin_family = AF_INET;
                in->sin_addr.s_addr = htonl(0xc0000200 + last);
                r = ioctl(fd, SIOCSIFADDR, &ifr);
                if (r == 0) {
                        ifr.ifr_flags = IFF_UP | IFF_RUNNING;
                        r = ioctl(fd, SIOCSIFFLAGS, &ifr);
                }
        }
        r = r < 0 ? -errno : 0;
        close(fd);
        return r;
}

static void write_text(const char *path, const char *text)
{
        int fd = open(path, O_WRONLY | O_CLOEXEC);

        if (fd >= 0) {
                ssize_t n = write(fd, text, strlen(text));

                (void)n;
                close(fd);
        }
}

/* A new network namespace with one tap that takes all offloads. */
static int make_side(struct side *side, unsigned last, bool ipv6)
{
        unsigned flags = geteuid() == 0 ? CLONE_NEWNET : CLONE_NEWNET | (last == 1 ? CLONE_NEWUSER : 0);
        struct ifreq ifr = { .ifr_name = "tap", .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
        int header = sizeof(struct virtio_net_hdr);

        if (unshare((int)flags) < 0)
                return -errno;
        /* No duplicate address detection: the address is usable at once. */
        write_text("/proc/sys/net/ipv6/conf/default/accept_dad", "0");
        side->tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
        if (side->tap < 0)
                return -errno;
        if (ioctl(side->tap, TUNSETIFF, &ifr) < 0 || ioctl(side->tap, TUNSETVNETHDRSZ, &header) < 0 ||
            ioctl(side->tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) < 0)
                return -errno;
        if (set_address("tap", false, last) < 0)
                return -EIO;
        if (ipv6 && set_address("tap", true, last) < 0)
                return -EAFNOSUPPORT;
        side->sock = socket(ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        return side->sock < 0 ? -errno : 0;
}

struct counts {
        unsigned gso, segments, sums;
};

struct crossing {
        int tap;
        size_t limit;
        struct counts *counts;
        uint8_t out[sizeof(struct virtio_net_hdr) + NET_FRAME_MAX];
};

static int to_tap(void *ctx, const uint8_t *frame, size_t size_bytes)
{
        struct crossing *crossing = ctx;

        memset(crossing->out, 0, sizeof(struct virtio_net_hdr));
        memcpy(crossing->out + sizeof(struct virtio_net_hdr), frame, size_bytes);
        crossing->counts->segments++;
        assert_true(size_bytes <= crossing->limit);
        assert_int_equal(write(crossing->tap, crossing->out, sizeof(struct virtio_net_hdr) + size_bytes),
                         sizeof(struct virtio_net_hdr) + size_bytes);
        return 0;
}

/* Moves what one kernel sends to the other's tap. big: hands large segments over whole, sums completed. */
static void cross(int from, int to, bool big, struct counts *counts)
{
        static uint8_t in[sizeof(struct virtio_net_hdr) + NET_FRAME_MAX], scratch[NET_FRAME_MAX];
        static struct crossing crossing;
        ssize_t got;

        while ((got = read(from, in, sizeof(in))) > (ssize_t)sizeof(struct virtio_net_hdr)) {
                struct virtio_net_hdr header;
                uint8_t *frame = in + sizeof(header);
                size_t size_bytes = (size_t)got - sizeof(header), done = 0;
                struct net_offload offload;

                memcpy(&header, in, sizeof(header));
                offload = (struct net_offload){
                        .flags = header.flags & NET_NEEDS_CSUM, .gso = header.gso_type & 0x7f, .gso_bytes = header.gso_size,
                        .csum_start = header.csum_start, .csum_offset = header.csum_offset,
                };
                crossing.tap = to;
                crossing.counts = counts;
                crossing.limit = big || !offload.gso ? sizeof(scratch) : (size_t)offload.gso_bytes + 14 + 40 + 60;
                if (offload.gso && big) {
                        counts->gso++;
                        assert_int_equal(net_checksum_packet(frame, size_bytes), 0);
                        assert_int_equal(to_tap(&crossing, frame, size_bytes), 0);
                } else if (offload.gso) {
                        counts->gso++;
                        assert_int_equal(net_segment(frame, size_bytes, &offload, scratch, &done, to_tap, &crossing), 0);
                } else {
                        if (offload.flags) {
                                counts->sums++;
                                assert_int_equal(net_checksum_complete(frame, size_bytes, &offload), 0);
                        }
                        assert_int_equal(to_tap(&crossing, frame, size_bytes), 0);
                }
        }
}

static uint8_t pattern(size_t at)
{
        return (uint8_t)(at * 131 + (at >> 11));
}

static void transfer(bool ipv6, bool big)
{
        struct side a = { -1, -1 }, b = { -1, -1 };
        struct counts counts = { 0 };
        struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(7777), .sin_addr.s_addr = htonl(0xc0000202) };
        struct sockaddr_in6 in6 = { .sin6_family = AF_INET6, .sin6_port = htons(7777) };
        struct sockaddr *to = ipv6 ? (struct sockaddr *)&in6 : (struct sockaddr *)&in;
        socklen_t to_bytes = ipv6 ? sizeof(in6) : sizeof(in);
        size_t sent = 0, received = 0;
        int accepted = -1;

        if (make_side(&a, 1, ipv6) < 0 || make_side(&b, 2, ipv6) < 0) {
                print_message("no network namespaces or no tap here\n");
                skip();
        }
        inet_pton(AF_INET6, "2001:db8::2", &in6.sin6_addr);
        /* An IPv6 address is tentative for a moment, although nobody is asked about it. */
        for (unsigned i = 0; i < 2000 && bind(b.sock, to, to_bytes) < 0 && errno == EADDRNOTAVAIL; i++)
                poll(NULL, 0, 1);
        assert_int_equal(listen(b.sock, 1), 0);
        for (unsigned i = 0; i < 2000 && connect(a.sock, to, to_bytes) < 0 && errno != EINPROGRESS; i++)
                poll(NULL, 0, 1);

        for (unsigned rounds = 0; received < TRANSFER_BYTES && rounds < 200000; rounds++) {
                struct pollfd fds[] = { { a.tap, POLLIN, 0 },
                                        { b.tap, POLLIN, 0 },
                                        { a.sock, sent < TRANSFER_BYTES ? POLLOUT : 0, 0 },
                                        { accepted < 0 ? b.sock : accepted, POLLIN, 0 } };
                static uint8_t buf[65536];
                ssize_t n;

                assert_true(poll(fds, ARRAY_SIZE(fds), 10000) > 0);
                cross(a.tap, b.tap, big, &counts);
                cross(b.tap, a.tap, big, &counts);
                if (accepted < 0)
                        accepted = accept4(b.sock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                for (size_t i = 0; i < sizeof(buf); i++)
                        buf[i] = pattern(sent + i);
                n = sent < TRANSFER_BYTES ? write(a.sock, buf, MIN(sizeof(buf), TRANSFER_BYTES - sent)) : 0;
                if (n > 0)
                        sent += (size_t)n;
                n = accepted < 0 ? 0 : read(accepted, buf, sizeof(buf));
                for (ssize_t i = 0; i < n; i++)
                        assert_int_equal(buf[i], pattern(received + (size_t)i));
                if (n > 0)
                        received += (size_t)n;
        }
        assert_int_equal(received, TRANSFER_BYTES);
        assert_true(counts.gso > 0 && counts.sums > 0);
        assert_true(big || counts.segments > counts.gso);
        close(a.tap);
        close(b.tap);
        close(a.sock);
        close(b.sock);
        close(accepted);
}

static void test_segments_ipv4(void **state)
{
        transfer(false, false);
}

static void test_segments_ipv6(void **state)
{
        transfer(true, false);
}

static void test_big_ipv4(void **state)
{
        transfer(false, true);
}

static void test_big_ipv6(void **state)
{
        transfer(true, true);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_sum_rfc1071),   cmocka_unit_test(test_bad_frames), cmocka_unit_test(test_segments_ipv4),
                cmocka_unit_test(test_segments_ipv6), cmocka_unit_test(test_big_ipv4),   cmocka_unit_test(test_big_ipv6),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
