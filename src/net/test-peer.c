/*
 * The network process: started for real (this program again), asked by ARP, refused a port, killed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>

#include "net/peer-wire.h"
#include "net/peer.h"

struct card {
        uv_loop_t loop;
        uv_timer_t limit;
        struct net_backend *net;
        uint8_t frame[2048];
        size_t size_bytes;
        bool timed_out;
};

static int card_receive(void *ctx, const struct iovec *iov, unsigned count, const struct net_offload *offload)
{
        struct card *card = ctx;

        card->size_bytes = 0;
        for (unsigned i = 0; i < count && card->size_bytes + iov[i].iov_len <= sizeof(card->frame); i++) {
                memcpy(card->frame + card->size_bytes, iov[i].iov_base, iov[i].iov_len);
                card->size_bytes += iov[i].iov_len;
        }
        if (card->size_bytes >= 42 && card->frame[12] == 8 && card->frame[13] == 6)
                uv_stop(&card->loop);
        return 0;
}

static void card_link(void *ctx)
{
        struct card *card = ctx;

        uv_stop(&card->loop);
}

static void on_limit(uv_timer_t *timer)
{
        struct card *card = timer->data;

        card->timed_out = true;
        uv_stop(&card->loop);
}

static int card_open(struct card *card, const char *options_text, struct err *err)
{
        struct net_options options;
        int fd;

        assert_int_equal(net_options_parse(options_text, &options, err), 0);
        assert_int_equal(uv_loop_init(&card->loop), 0);
        uv_timer_init(&card->loop, &card->limit);
        card->limit.data = card;
        uv_timer_start(&card->limit, on_limit, 5000, 0);
        assert_int_equal(net_peer_spawn(&options, &fd, err), 0);
        return net_peer_attach(fd, &card->loop, &card->net, err);
}

static void card_close(struct card *card)
{
        if (card->net)
                net_free(card->net);
        uv_close((uv_handle_t *)&card->limit, NULL);
        while (uv_run(&card->loop, UV_RUN_NOWAIT))
                ;
        assert_int_equal(uv_loop_close(&card->loop), 0);
}

/* RFC 826: who has 10.0.2.2, asked by 52:54:00:12:34:56 as 10.0.2.15. */
static const uint8_t arp_request[42] = {
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x08, 0x06, 0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00,
        0x01, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 10,   0,    2,    15,   0,    0,    0,    0,    0,    0,    10,   0,    2,    2,
};

static void answers_arp(void **state)
{
        struct card card = { 0 };
        const struct net_client client = { .receive = card_receive, .link_changed = card_link, .ctx = &card };
        const struct iovec pieces[2] = { { (void *)arp_request, 20 }, { (void *)(arp_request + 20), sizeof(arp_request) - 20 } };
        const struct net_offload offload = { 0 };
        struct err err = ERR_INIT;

        assert_int_equal(card_open(&card, "user", &err), 0);
        net_connect(card.net, &client);
        assert_true(net_link(card.net));
        assert_int_equal(net_send(card.net, pieces, 2, &offload), 0);
        uv_run(&card.loop, UV_RUN_DEFAULT);
        assert_false(card.timed_out);
        assert_int_equal(card.frame[21], 2); /* a reply */
        assert_memory_equal(card.frame + 28, ((const uint8_t[]){ 10, 0, 2, 2 }), 4);
        card_close(&card);
}

static void says_that_a_port_is_taken(void **state)
{
        struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        socklen_t length = sizeof(address);
        struct card card = { 0 };
        struct err err = ERR_INIT;
        char options[64];
        char port[8];

        assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
        assert_int_equal(listen(listener, 1), 0);
        assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &length), 0);
        snprintf(port, sizeof(port), "%u", ntohs(address.sin_port));
        snprintf(options, sizeof(options), "user,forward=tcp:%s:80", port);
        assert_int_equal(card_open(&card, options, &err), -EADDRINUSE);
        assert_non_null(strstr(err.text, port));
        card_close(&card);
        close(listener);
}

/* A network process that was taken over: what is no frame is passed over, a batch at a time. */
static void passes_over_what_is_no_frame(void **state)
{
        const struct peer_hello hello = { .mtu = 1500 };
        struct net_offload offload = { 0 };
        struct iovec iov[2] = { { &offload, sizeof(offload) }, { (void *)arp_request, sizeof(arp_request) } };
        struct card card = { 0 };
        const struct net_client client = { .receive = card_receive, .link_changed = card_link, .ctx = &card };
        struct err err = ERR_INIT;
        int pair[2];

        assert_int_equal(uv_loop_init(&card.loop), 0);
        uv_timer_init(&card.loop, &card.limit);
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
        assert_int_equal(send(pair[1], &hello, sizeof(hello), 0), sizeof(hello));
        assert_int_equal(net_peer_attach(pair[0], &card.loop, &card.net, &err), 0);
        net_connect(card.net, &client);
        for (unsigned i = 0; i < 100; i++)
                assert_int_equal(send(pair[1], "?", 1, MSG_DONTWAIT), 1);
        offload.flags = NET_NEEDS_CSUM;
        offload.csum_start = 60000; /* outside of the frame */
        assert_int_equal(writev(pair[1], iov, 2), sizeof(offload) + sizeof(arp_request));
        offload.flags = 0;
        assert_int_equal(writev(pair[1], iov, 2), sizeof(offload) + sizeof(arp_request));
        uv_run(&card.loop, UV_RUN_NOWAIT);
        assert_int_equal(card.size_bytes, 0); /* not all in one wake-up */
        uv_run(&card.loop, UV_RUN_ONCE);
        assert_int_equal(card.size_bytes, sizeof(arp_request));
        assert_true(net_link(card.net));
        card_close(&card);
        close(pair[1]);
}

int main(int argc, char **argv)
{
        const struct CMUnitTest tests[] = { cmocka_unit_test(answers_arp), cmocka_unit_test(says_that_a_port_is_taken),
                                             cmocka_unit_test(passes_over_what_is_no_frame) };
        struct err err = ERR_INIT;

        if (argc > 1 && strcmp(argv[1], NET_SERVE_COMMAND) == 0)
                return net_serve(NET_SERVE_FD, true, &err) < 0;
        return cmocka_run_group_tests(tests, NULL, NULL);
}
