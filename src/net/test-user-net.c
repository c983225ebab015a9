/*
 * The user network, driven by hand-made frames: what libslirp answers is read as a guest would read it. TCP connections go to a
 * server of the test's own on the host's loopback, and come from there through a forward.
 */
#include "base/test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>

#include "base/timer.h"
#include "net/offload.h"

static const uint8_t guest_mac[6] = { 0x52, 0x54, 0x00, 0x12, 0x34, 0x56 };
static const uint8_t guest_ip[4] = { 10, 0, 2, 15 };
static const uint8_t router_ip[4] = { 10, 0, 2, 2 };

struct guest {
        uv_loop_t loop;
        struct net_backend *net;
        uint8_t router_mac[6];
        uint8_t frame[NET_FRAME_MAX]; /* the last that was received */
        size_t size_bytes;
        bool (*wanted)(struct guest *guest);
        uv_timer_t guard; /* of tests that would wait for ever */
        bool seen, late;
        bool full; /* takes nothing */
        unsigned frames, refused;
        uint32_t sequence, acknowledge; /* of the one TCP connection */
        uint16_t port, peer_port;
        uint8_t data[1 << 20];
        size_t data_bytes;
        size_t largest;
};

static int receive(void *ctx, const struct iovec *iov, unsigned count, const struct net_offload *offload)
{
        struct guest *guest = ctx;

        if (guest->full) {
                guest->refused++;
                return -EAGAIN;
        }
        guest->size_bytes = 0;
        for (unsigned i = 0; i < count; i++) {
                assert_true(guest->size_bytes + iov[i].iov_len <= sizeof(guest->frame));
                memcpy(guest->frame + guest->size_bytes, iov[i].iov_base, iov[i].iov_len);
                guest->size_bytes += iov[i].iov_len;
        }
        guest->frames++;
        if (guest->wanted && guest->wanted(guest))
                guest->seen = true;
        return 0;
}

static void guest_start(struct guest *guest, const char *options_text)
{
        struct net_options options;
        struct err err = ERR_INIT;

        memset(guest, 0, sizeof(*guest));
        assert_int_equal(uv_loop_init(&guest->loop), 0);
        uv_timer_init(&guest->loop, &guest->guard);
        assert_int_equal(net_options_parse(options_text, &options, &err), 0);
        assert_int_equal(net_new(&options, &guest->loop, &guest->net, &err), 0);
        net_connect(guest->net, &(struct net_client){ .receive = receive, .ctx = guest });
}

static void guest_end(struct guest *guest)
{
        net_free(guest->net);
        uv_close((uv_handle_t *)&guest->guard, NULL);
        assert_int_equal(uv_run(&guest->loop, UV_RUN_DEFAULT), 0);
        assert_int_equal(uv_loop_close(&guest->loop), 0);
}

static void send_frame(struct guest *guest, const uint8_t *frame, size_t size_bytes)
{
        /* In two parts, as a card has them. */
        struct iovec iov[2] = { { (void *)frame, 14 }, { (void *)(frame + 14), size_bytes - 14 } };
        struct net_offload offload = { 0 };

        assert_int_equal(net_send(guest->net, iov, 2, &offload), 0);
}

static void guard_fired(uv_timer_t *timer)
{
        container_of(timer, struct guest, guard)->late = true;
}

/* Runs the loop until a frame is the wanted one. */
static bool wait_for(struct guest *guest, bool (*wanted)(struct guest *guest))
{
        guest->wanted = wanted;
        guest->seen = guest->late = false;
        uv_timer_start(&guest->guard, guard_fired, 5000, 0);
        while (!guest->seen && !guest->late)
                uv_run(&guest->loop, UV_RUN_ONCE);
        uv_timer_stop(&guest->guard);
        guest->wanted = NULL;
        return guest->seen;
}

static void ethernet(struct guest *guest, uint8_t *frame, uint16_t type, bool broadcast)
{
        memset(frame, 0xff, 6);
        if (!broadcast)
                memcpy(frame, guest->router_mac, 6);
        memcpy(frame + 6, guest_mac, 6);
        frame[12] = (uint8_t)(type >> 8);
        frame[13] = (uint8_t)type;
}

static bool is_arp_reply(struct guest *guest)
{
        const uint8_t *f = guest->frame;

        if (guest->size_bytes < 42 || f[12] != 8 || f[13] != 6 || f[21] != 2 || memcmp(f + 28, router_ip, 4) != 0)
                return false;
        memcpy(guest->router_mac, f + 22, 6);
        return true;
}

static void resolve_router(struct guest *guest)
{
        uint8_t frame[60] = { 0 };

        ethernet(guest, frame, 0x0806, true);
        memcpy(frame + 14, (uint8_t[]){ 0, 1, 8, 0, 6, 4, 0, 1 }, 8);
        memcpy(frame + 22, guest_mac, 6);
        memcpy(frame + 28, guest_ip, 4);
        memcpy(frame + 38, router_ip, 4);
        send_frame(guest, frame, sizeof(frame));
        assert_true(wait_for(guest, is_arp_reply));
}

static size_t make_ipv4(struct guest *guest, uint8_t *frame, uint8_t protocol, const uint8_t from[4], const uint8_t to[4],
                        size_t l4_bytes)
{
        uint8_t *ip = frame + 14;

        ethernet(guest, frame, 0x0800, to[0] == 255);
        memset(ip, 0, 20);
        ip[0] = 0x45;
        ip[8] = 64;
        ip[9] = protocol;
        memcpy(ip + 12, from, 4);
        memcpy(ip + 16, to, 4);
        assert_int_equal(net_checksum_packet(frame, 34 + l4_bytes), 0);
        return 34 + l4_bytes;
}

static uint32_t be32(const uint8_t *at)
{
        return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void put_be32(uint8_t *at, uint32_t value)
{
        value = htonl(value);
        memcpy(at, &value, 4);
}

static void put_be16(uint8_t *at, uint16_t value)
{
        value = htons(value);
        memcpy(at, &value, 2);
}

static bool is_dhcp_offer(struct guest *guest)
{
        const uint8_t *f = guest->frame;

        return guest->size_bytes > 282 && f[23] == IPPROTO_UDP && f[37] == 68 && f[42] == 2 && memcmp(f + 58, guest_ip, 4) == 0;
}

/* RFC 2131 §3.1: DISCOVER is answered with an OFFER of 10.0.2.15. */
static void test_dhcp(void **state)
{
        static struct guest guest;
        uint8_t frame[14 + 20 + 8 + 300] = { 0 };
        uint8_t *dhcp = frame + 42;

        guest_start(&guest, "user");
        put_be16(frame + 34, 68);
        put_be16(frame + 36, 67);
        memcpy(dhcp, (uint8_t[]){ 1, 1, 6, 0, 1, 2, 3, 4 }, 8);
        memcpy(dhcp + 28, guest_mac, 6);
        memcpy(dhcp + 236, (uint8_t[]){ 99, 130, 83, 99, 53, 1, 1, 255 }, 8);
        send_frame(&guest, frame,
                   make_ipv4(&guest, frame, IPPROTO_UDP, (uint8_t[4]){ 0 }, (uint8_t[]){ 255, 255, 255, 255 }, 308));
        assert_true(wait_for(&guest, is_dhcp_offer));
        guest_end(&guest);
}

/* --- a TCP of the smallest kind: no loss, no reordering, one connection --- */

static void send_tcp(struct guest *guest, uint8_t flags, const void *data, size_t data_bytes)
{
        static uint8_t frame[NET_FRAME_MAX];
        uint8_t *tcp = frame + 34;

        memset(tcp, 0, 20);
        put_be16(tcp, guest->port);
        put_be16(tcp + 2, guest->peer_port);
        put_be32(tcp + 4, guest->sequence);
        put_be32(tcp + 8, guest->acknowledge);
        tcp[12] = 5 << 4;
        if (flags & 2) { /* SYN: the option of a large segment size */
                tcp[12] = 6 << 4;
                tcp[20] = 2;
                tcp[21] = 4;
                put_be16(tcp + 22, 65480);
                data_bytes = 4;
        } else if (data_bytes) {
                memcpy(tcp + 20, data, data_bytes);
        }
        tcp[13] = flags;
        put_be16(tcp + 14, 65535);
        send_frame(guest, frame, make_ipv4(guest, frame, IPPROTO_TCP, guest_ip, router_ip, 20 + data_bytes));
        guest->sequence += flags & 3 ? 1 : (uint32_t)data_bytes;
}

static bool is_tcp(struct guest *guest, uint8_t flags)
{
        const uint8_t *f = guest->frame;

        if (guest->size_bytes < 54 || f[12] != 8 || f[13] != 0 || f[23] != IPPROTO_TCP ||
            (uint16_t)(f[36] << 8 | f[37]) != guest->port)
                return false;
        return (f[47] & flags) == flags;
}

static bool is_syn(struct guest *guest)
{
        if (!is_tcp(guest, 2))
                return false;
        guest->acknowledge = be32(guest->frame + 38) + 1;
        guest->peer_port = (uint16_t)(guest->frame[34] << 8 | guest->frame[35]);
        return true;
}

static bool is_data(struct guest *guest)
{
        const uint8_t *f = guest->frame;
        size_t header = 34 + (f[46] >> 4) * 4u, bytes;

        if (!is_tcp(guest, 0x10))
                return false;
        bytes = 14u + (size_t)(f[16] << 8 | f[17]) - header;
        if (bytes && be32(f + 38) == guest->acknowledge) {
                assert_true(guest->data_bytes + bytes <= sizeof(guest->data));
                memcpy(guest->data + guest->data_bytes, f + header, bytes);
                guest->data_bytes += bytes;
                guest->acknowledge += (uint32_t)bytes;
                guest->largest = MAX(guest->largest, guest->size_bytes);
                return true;
        }
        return false;
}

static int listen_loopback(uint16_t *port)
{
        struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        socklen_t in_bytes = sizeof(in);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

        assert_true(fd >= 0);
        assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof(in)), 0);
        assert_int_equal(listen(fd, 4), 0);
        assert_int_equal(getsockname(fd, (struct sockaddr *)&in, &in_bytes), 0);
        *port = ntohs(in.sin_port);
        return fd;
}

static void test_tcp_to_host(void **state)
{
        static struct guest guest;
        static uint8_t block[60000], got[sizeof(block)];
        size_t have = 0, from = 0;
        int listener, fd;

        guest_start(&guest, "user");
        listener = listen_loopback(&guest.peer_port);
        guest.port = 40000;
        guest.sequence = 1000;
        resolve_router(&guest);

        send_tcp(&guest, 2, NULL, 0);
        assert_true(wait_for(&guest, is_syn));
        send_tcp(&guest, 0x10, NULL, 0);
        fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        assert_true(fd >= 0);

        /* One segment of 60000 bytes from the guest arrives whole. */
        for (size_t i = 0; i < sizeof(block); i++)
                block[i] = (uint8_t)(i * 7 + (i >> 9));
        send_tcp(&guest, 0x18, block, sizeof(block));
        for (unsigned i = 0; i < 5000 && have < sizeof(got); i++) {
                ssize_t n = read(fd, got + have, sizeof(got) - have);

                if (n > 0)
                        have += (size_t)n;
                else
                        uv_run(&guest.loop, UV_RUN_NOWAIT), usleep(100);
        }
        assert_int_equal(have, sizeof(got));
        assert_memory_equal(got, block, sizeof(block));

        /* And the other way, in large frames. While the guest takes nothing, nothing is lost. */
        assert_int_equal(write(fd, block, sizeof(block)), sizeof(block));
        guest.full = true;
        for (unsigned i = 0; i < 200 && !guest.refused; i++)
                uv_run(&guest.loop, UV_RUN_NOWAIT), usleep(100);
        assert_int_equal(guest.refused, 1);
        guest.full = false;
        net_resume(guest.net);
        while (guest.data_bytes < sizeof(block)) {
                from = guest.data_bytes;
                assert_true(wait_for(&guest, is_data));
                assert_true(guest.data_bytes > from);
                send_tcp(&guest, 0x10, NULL, 0);
        }
        assert_memory_equal(guest.data, block, sizeof(block));
        assert_true(guest.largest > 9000);
        close(fd);
        close(listener);
        guest_end(&guest);
}

static uint16_t free_port(void)
{
        uint16_t port;

        close(listen_loopback(&port));
        return port;
}

static bool is_arp_request(struct guest *guest)
{
        const uint8_t *f = guest->frame;

        return guest->size_bytes >= 42 && f[12] == 8 && f[13] == 6 && f[21] == 1 && memcmp(f + 38, guest_ip, 4) == 0;
}

static void test_forward(void **state)
{
        static struct guest guest;
        struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        uint16_t port = free_port();
        uint8_t frame[60] = { 0 };
        char options[64], line[5];
        int fd;

        snprintf(options, sizeof(options), "user,forward=tcp:%u:80", port);
        guest_start(&guest, options);
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        in.sin_port = htons(port);
        assert_int_equal(connect(fd, (struct sockaddr *)&in, sizeof(in)), 0);
        guest.port = 80;
        guest.sequence = 5000;

        assert_true(wait_for(&guest, is_arp_request));
        memcpy(guest.router_mac, guest.frame + 6, 6);
        ethernet(&guest, frame, 0x0806, false);
        memcpy(frame + 14, (uint8_t[]){ 0, 1, 8, 0, 6, 4, 0, 2 }, 8);
        memcpy(frame + 22, guest_mac, 6);
        memcpy(frame + 28, guest_ip, 4);
        memcpy(frame + 32, guest.router_mac, 6);
        memcpy(frame + 38, router_ip, 4);
        send_frame(&guest, frame, sizeof(frame));
        assert_true(wait_for(&guest, is_syn));
        send_tcp(&guest, 0x12, NULL, 0);
        assert_int_equal(write(fd, "hello", 5), 5);
        assert_true(wait_for(&guest, is_data));
        assert_memory_equal(guest.data, "hello", 5);
        send_tcp(&guest, 0x18, "howdy", 5);
        uv_run(&guest.loop, UV_RUN_NOWAIT);
        assert_int_equal(recv(fd, line, 5, MSG_WAITALL), 5);
        assert_memory_equal(line, "howdy", 5);
        close(fd);
        guest_end(&guest);
}

static void test_port_in_use(void **state)
{
        struct net_options options;
        struct net_backend *net = NULL;
        struct err err = ERR_INIT;
        uv_loop_t loop;
        uint16_t port;
        int listener = listen_loopback(&port);
        char text[64];

        assert_int_equal(uv_loop_init(&loop), 0);
        snprintf(text, sizeof(text), "user,forward=tcp:%u:80", port);
        assert_int_equal(net_options_parse(text, &options, &err), 0);
        assert_int_equal(net_new(&options, &loop, &net, &err), -EADDRINUSE);
        assert_null(net);
        snprintf(text, sizeof(text), "127.0.0.1:%u", port);
        assert_non_null(strstr(err.text, text));
        uv_run(&loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_close(&loop), 0);
        close(listener);
}

static void test_options(void **state)
{
        static const char *const bad[] = {
                "",
                "bridge",
                "user,",
                "user,mtu=3",
                "user,forward=",
                "user,forward=tcp",
                "user,forward=tcp:80",
                "user,forward=tcp:0:80",
                "user,forward=tcp:80:0",
                "user,forward=tcp:65536:80",
                "user,forward=tcp:80:99999999999999999999",
                "user,forward=sctp:1:2",
                "user,forward=tcp:8o:80",
                "user,forward=tcp:1.2.3:80:80",
                "user,forward=tcp:-1:80",
                "none,forward=tcp:1:2",
                "user,forward=tcp::80",
        };
        struct net_options options;

        for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
                struct err err = ERR_INIT;

                assert_int_equal(net_options_parse(bad[i], &options, &err), -EINVAL);
                assert_true(strlen(err.text) > 10 && !strchr(err.text, '\n'));
        }
        assert_int_equal(net_options_parse("none", &options, NULL), 0);
        assert_null(options.driver);
        assert_int_equal(net_options_parse("user,forward=udp:0.0.0.0:5353:53,forward=tcp:1:65535", &options, NULL), 0);
        assert_ptr_equal(options.driver, &net_user_ops);
        assert_int_equal(options.forwards, 2);
        assert_true(options.forward[0].udp && !options.forward[1].udp);
        assert_int_equal(options.forward[0].host.s_addr, 0);
        assert_int_equal(options.forward[0].host_port, 5353);
        assert_int_equal(options.forward[1].host.s_addr, htonl(INADDR_LOOPBACK));
        assert_int_equal(options.forward[1].guest_port, 65535);
}

/* An idle network does not wake the loop. */
static void test_idle(void **state)
{
        static struct guest guest;
        unsigned turns = 0;

        guest_start(&guest, "user");
        uv_timer_start(&guest.guard, guard_fired, 300, 0);
        while (!guest.late && uv_run(&guest.loop, UV_RUN_ONCE))
                turns++;
        assert_true(turns < 10);
        guest_end(&guest);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_options), cmocka_unit_test(test_dhcp),         cmocka_unit_test(test_tcp_to_host),
                cmocka_unit_test(test_forward), cmocka_unit_test(test_port_in_use), cmocka_unit_test(test_idle),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
