/* The network card between a driver played here and a backend made up here, which is full or empty as a test wants it. */
#include "base/test.h"

#include <endian.h>
#include <errno.h>
#include <netinet/in.h>

#include "device/test-virtio.h"
#include "device/virtio-net.h"
#include "net/offload.h"

#define BIT(n) (UINT64_C(1) << (n))
#define RING (BIT(VIRTIO_F_RING_INDIRECT_DESC) | BIT(VIRTIO_F_RING_EVENT_IDX) | BIT(VIRTIO_F_VERSION_1))
#define F_CSUM BIT(0)
#define F_GUEST_CSUM BIT(1)
#define F_GUEST_TSO4 BIT(7)
#define F_HOST_TSO4 BIT(11)
#define F_MRG BIT(15)
#define F_CTRL (BIT(17) | BIT(18) | BIT(23))
#define RX_BYTES 2048
#define RX_MAX 64

enum { RX, TX, CONTROL };

struct header {
        uint8_t flags, gso_type;
        uint16_t hdr_len, gso_size, csum_start, csum_offset, num_buffers;
};

struct fixture {
        struct testbed bed;
        struct test_driver d;
        struct virtio *v;
        struct test_ring ring[3];
        uint64_t rx_gpa, tx_gpa, control_gpa;
        unsigned posted;

        struct net_backend net;
        bool full;
        unsigned frames, resumes;
        uint8_t sent[NET_FRAME_MAX]; /* the last */
        size_t sent_bytes;
        uint32_t payload; /* of all TCP segments */
        struct net_offload sent_offload;
        bool freed;
};

static struct fixture *from_net(struct net_backend *net)
{
        return container_of(net, struct fixture, net);
}

static int fake_send(struct net_backend *net, const struct iovec *iov, unsigned count, const struct net_offload *offload)
{
        struct fixture *f = from_net(net);
        struct net_headers headers;

        if (f->full)
                return -EAGAIN;
        f->frames++;
        f->sent_bytes = iov_to_buf(iov, count, 0, f->sent, sizeof(f->sent));
        f->sent_offload = *offload;
        if (net_headers_parse(f->sent, f->sent_bytes, &headers) == 0) {
                f->payload += (uint32_t)(f->sent_bytes - headers.payload);
                if (f->frames == 2)
                        f->full = true; /* in the middle of a large segment */
        }
        return 0;
}

static void fake_resume(struct net_backend *net)
{
        from_net(net)->resumes++;
}

static void fake_free(struct net_backend *net)
{
        from_net(net)->freed = true;
}

static const struct net_ops fake_ops = { .name = "fake", .send = fake_send, .resume = fake_resume, .free = fake_free };

static int setup(void **state)
{
        struct fixture *f = calloc(1, sizeof(*f));
        struct err err = ERR_INIT;

        testbed_init(&f->bed);
        f->net = (struct net_backend){ .ops = &fake_ops, .mtu = 9000, .link_up = true };
        f->rx_gpa = test_alloc(&f->bed, RX_MAX * RX_BYTES);
        f->tx_gpa = test_alloc(&f->bed, 72 << 10);
        f->control_gpa = test_alloc(&f->bed, 4096);
        assert_int_equal(virtio_net_new(&f->bed.host, f->bed.pci, "net0", &(struct virtio_net_config){ 0 }, &f->net, &f->v, &err),
                         0);
        *state = f;
        return 0;
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        device_end(&f->v->pci.dev);
        assert_true(f->freed);
        testbed_done(&f->bed);
        free(f);
        return 0;
}

static void start(struct fixture *f, uint64_t features)
{
        assert_true(test_driver_find(&f->d, &f->bed, VIRTIO_NET));
        assert_true(test_driver_start(&f->d, features | RING));
        test_driver_msix(&f->d);
        for (unsigned i = 0; i < 3; i++)
                test_ring_init(&f->ring[i], &f->d, i, 0);
        test_driver_ok(&f->d);
        testbed_run(&f->bed);
        assert_int_equal(test_status(&f->d), 15);
}

static void post(struct fixture *f, unsigned count)
{
        while (count--) {
                uintptr_t i = f->posted++ % RX_MAX;
                struct test_buffer in = { f->rx_gpa + i * RX_BYTES, RX_BYTES };

                assert_true(test_ring_add(&f->ring[RX], NULL, 0, &in, 1, (void *)(i + 1)));
        }
        test_ring_kick(&f->ring[RX]);
        testbed_run(&f->bed);
}

static int give(struct fixture *f, const uint8_t *frame, size_t size_bytes, const struct net_offload *offload)
{
        struct iovec iov[2] = { { (void *)frame, 20 }, { (void *)(frame + 20), size_bytes - 20 } };
        int r = f->net.client.receive(f->net.client.ctx, iov, 2, offload);

        f->net.client.flush(f->net.client.ctx);
        return r;
}

/* The next frame the guest has, from as many buffers as it took. */
static size_t take(struct fixture *f, struct header *header, uint8_t *frame)
{
        size_t size_bytes = 0;
        unsigned buffers = 1;

        for (unsigned i = 0; i < buffers; i++) {
                uint32_t written;
                uintptr_t index = (uintptr_t)test_ring_get(&f->ring[RX], &written);
                const uint8_t *at;
                size_t skip = i ? 0 : sizeof(*header);

                if (!index)
                        return 0;
                at = test_at(&f->bed, f->rx_gpa + (index - 1) * RX_BYTES, RX_BYTES);
                if (i == 0) {
                        memcpy(header, at, sizeof(*header));
                        buffers = le16toh(header->num_buffers);
                }
                memcpy(frame + size_bytes, at + skip, written - skip);
                size_bytes += written - skip;
        }
        return size_bytes;
}

static void transmit(struct fixture *f, const struct header *header, const uint8_t *frame, size_t size_bytes)
{
        struct test_buffer out[2] = { { f->tx_gpa, sizeof(*header) }, { f->tx_gpa + 64, (uint32_t)size_bytes } };

        memcpy(test_at(&f->bed, f->tx_gpa, sizeof(*header)), header, sizeof(*header));
        memcpy(test_at(&f->bed, f->tx_gpa + 64, size_bytes), frame, size_bytes);
        assert_true(test_ring_add(&f->ring[TX], out, 2, NULL, 0, f));
        test_ring_kick(&f->ring[TX]);
        testbed_run(&f->bed);
}

/* An Ethernet frame with TCP over IPv4 and a payload of this size; the checksums are right. */
static size_t make_tcp(uint8_t *frame, size_t payload)
{
        memset(frame, 0, 54);
        frame[12] = 8;
        frame[14] = 0x45;
        frame[23] = IPPROTO_TCP;
        frame[26] = 10;
        frame[30] = 10;
        frame[46] = 0x50;
        for (size_t i = 0; i < payload; i++)
                frame[54 + i] = (uint8_t)(i * 3 + (i >> 8));
        assert_int_equal(net_checksum_packet(frame, 54 + payload), 0);
        return 54 + payload;
}

/* Sums over everything, the sum's own field included, are 0xffff when they are right. */
static bool sums_right(const uint8_t *frame, size_t size_bytes)
{
        uint8_t copy[NET_FRAME_MAX];

        memcpy(copy, frame, size_bytes);
        return net_checksum_packet(copy, size_bytes) == 0 && memcmp(copy, frame, size_bytes) == 0;
}

static void test_config(void **state)
{
        struct fixture *f = *state;
        uint64_t mac = 0;

        start(f, BIT(3) | BIT(5) | BIT(16));
        for (unsigned i = 0; i < 6; i++)
                mac = mac << 8 | test_read(&f->d, f->d.device + i, 1);
        assert_int_equal(mac >> 24, 0x525400);
        assert_int_equal(test_read(&f->d, f->d.device + 6, 2), 1);
        assert_int_equal(test_read(&f->d, f->d.device + 10, 2), 9000);
        /* Offloads that need others */
        assert_false(test_driver_start(&f->d, RING | F_HOST_TSO4));
        assert_false(test_driver_start(&f->d, RING | F_GUEST_TSO4));
        assert_false(test_driver_start(&f->d, RING | BIT(18)));
}

static void test_send(void **state)
{
        static uint8_t frame[NET_FRAME_MAX];
        struct fixture *f = *state;
        struct header header = { 0 };
        size_t size_bytes = make_tcp(frame, 1000);
        uint8_t pseudo[2];

        start(f, F_CSUM | F_HOST_TSO4);
        transmit(f, &header, frame, size_bytes);
        assert_int_equal(f->frames, 1);
        assert_int_equal(f->sent_bytes, size_bytes);
        assert_memory_equal(f->sent, frame, size_bytes);

        /* A checksum left to do: the field holds the pseudo header's sum. */
        memcpy(pseudo, frame + 50, 2);
        memset(frame + 50, 0, 2);
        {
                uint8_t tail[12] = { 10, 0, 0, 0, 10, 0, 0, 0, 0, IPPROTO_TCP, (uint8_t)(1020 >> 8), (uint8_t)1020 };
                uint16_t sum = net_sum_fold(net_sum(tail, sizeof(tail), 0));

                frame[50] = (uint8_t)(sum >> 8);
                frame[51] = (uint8_t)sum;
        }
        header = (struct header){ .flags = 1, .csum_start = htole16(34), .csum_offset = htole16(16) };
        transmit(f, &header, frame, size_bytes);
        assert_int_equal(f->frames, 2);
        assert_true(sums_right(f->sent, f->sent_bytes));
        assert_memory_equal(f->sent + 50, pseudo, 2);
        assert_ptr_equal(test_ring_get(&f->ring[TX], NULL), f);
        assert_ptr_equal(test_ring_get(&f->ring[TX], NULL), f);

        /* The backend is full now: the chain stays with the guest until there is room. */
        assert_true(f->full);
        transmit(f, &header, frame, size_bytes);
        assert_null(test_ring_get(&f->ring[TX], NULL));
        f->full = false;
        f->net.client.writable(f->net.client.ctx);
        testbed_run(&f->bed);
        assert_int_equal(f->frames, 3);
        assert_ptr_equal(test_ring_get(&f->ring[TX], NULL), f);
}

static void test_send_large(void **state)
{
        static uint8_t frame[NET_FRAME_MAX];
        struct fixture *f = *state;
        struct header header = { .flags = 1,
                                 .gso_type = 1,
                                 .gso_size = htole16(1400),
                                 .hdr_len = htole16(54),
                                 .csum_start = htole16(34),
                                 .csum_offset = htole16(16) };
        size_t size_bytes = make_tcp(frame, 60000);

        /* Cut in pieces; after the second the backend is full for a while. */
        start(f, F_CSUM | F_HOST_TSO4);
        transmit(f, &header, frame, size_bytes);
        assert_int_equal(f->frames, 2);
        assert_null(test_ring_get(&f->ring[TX], NULL));
        f->full = false;
        f->net.client.writable(f->net.client.ctx);
        testbed_run(&f->bed);
        assert_int_equal(f->frames, (60000 + 1399) / 1400);
        assert_int_equal(f->payload, 60000);
        assert_true(sums_right(f->sent, f->sent_bytes));
        assert_ptr_equal(test_ring_get(&f->ring[TX], NULL), f);

        /* Whole, to a backend that takes any size, or does it itself. */
        f->net.features = NET_FEATURE_SEND_BIG;
        transmit(f, &header, frame, size_bytes);
        assert_int_equal(f->sent_bytes, size_bytes);
        assert_true(sums_right(f->sent, f->sent_bytes));
        f->net.features = NET_FEATURE_SEND_CSUM | NET_FEATURE_SEND_TSO4;
        transmit(f, &header, frame, size_bytes);
        assert_int_equal(f->sent_bytes, size_bytes);
        assert_int_equal(f->sent_offload.gso, NET_GSO_TCPV4);
        assert_int_equal(f->sent_offload.gso_bytes, 1400);
}

static void test_send_hostile(void **state)
{
        static uint8_t frame[NET_FRAME_MAX];
        struct fixture *f = *state;
        static const struct header bad[] = {
                { .flags = 1, .csum_start = 0xffff, .csum_offset = 0xffff },
                { .flags = 1, .csum_start = 100, .csum_offset = 0 },
                { .flags = 0, .gso_type = 1, .gso_size = 100 },
                { .flags = 1, .gso_type = 1, .gso_size = 0, .csum_start = 34, .csum_offset = 16 },
                { .flags = 1, .gso_type = 4, .gso_size = 100 },
                { .flags = 1, .gso_type = 3, .gso_size = 100 },
                { .flags = 1, .gso_type = 77 },
        };
        size_t size_bytes = make_tcp(frame, 40);
        struct test_buffer out = { f->tx_gpa, 0 };

        start(f, F_CSUM | F_HOST_TSO4);
        for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
                transmit(f, &bad[i], frame, size_bytes);
        for (uint32_t length = 1; length < 90000; length = length * 3 / 2 + 1) {
                if (length > 25 && length < NET_FRAME_MAX)
                        continue;
                out.size = length;
                assert_true(test_ring_add(&f->ring[TX], &out, 1, NULL, 0, f));
                test_ring_kick(&f->ring[TX]);
                testbed_run(&f->bed);
        }
        assert_int_equal(f->frames, 0);
        assert_int_equal(test_status(&f->d), 15);
}

static void test_receive(void **state)
{
        static uint8_t frame[NET_FRAME_MAX], got[NET_FRAME_MAX];
        struct fixture *f = *state;
        struct net_offload none = { .flags = NET_DATA_VALID };
        struct header header;
        size_t size_bytes = make_tcp(frame, 9000 - 40);

        /* No driver yet: nobody hears it. */
        assert_int_equal(give(f, frame, size_bytes, &none), 0);
        start(f, F_MRG | F_GUEST_CSUM);
        assert_int_equal(give(f, frame, size_bytes, &none), -EAGAIN);
        post(f, 3); /* not enough for it */
        assert_int_equal(f->resumes, 1);
        assert_int_equal(give(f, frame, size_bytes, &none), -EAGAIN);
        assert_null(test_ring_get(&f->ring[RX], NULL));
        post(f, 3);
        assert_int_equal(f->resumes, 2);
        assert_int_equal(give(f, frame, size_bytes, &none), 0);
        assert_true(f->bed.interrupts[1 + RX] > 0);
        assert_int_equal(take(f, &header, got), size_bytes);
        assert_int_equal(le16toh(header.num_buffers), 5);
        assert_int_equal(header.flags, 2);
        assert_memory_equal(got, frame, size_bytes);

        /* Without mergeable buffers what does not fit is dropped, and the buffer is not lost. */
        start(f, 0);
        post(f, 1);
        assert_int_equal(give(f, frame, size_bytes, &none), 0);
        assert_null(test_ring_get(&f->ring[RX], NULL));
        size_bytes = make_tcp(frame, 1000);
        assert_int_equal(give(f, frame, size_bytes, &none), 0);
        assert_int_equal(take(f, &header, got), size_bytes);
        assert_int_equal(header.flags, 0);
        assert_memory_equal(got, frame, size_bytes);
}

static void test_receive_large(void **state)
{
        static uint8_t frame[NET_FRAME_MAX], got[NET_FRAME_MAX];
        struct fixture *f = *state;
        struct net_offload tso = { .flags = NET_NEEDS_CSUM,
                                   .gso = NET_GSO_TCPV4,
                                   .gso_bytes = 1000,
                                   .header_bytes = 54,
                                   .csum_start = 34,
                                   .csum_offset = 16 };
        struct header header;
        size_t size_bytes = make_tcp(frame, 10000), payload = 0;

        /* A guest that cuts it itself */
        start(f, F_MRG | F_GUEST_CSUM | F_GUEST_TSO4);
        post(f, 8);
        assert_int_equal(give(f, frame, size_bytes, &tso), 0);
        assert_int_equal(take(f, &header, got), size_bytes);
        assert_int_equal(header.gso_type, 1);
        assert_int_equal(le16toh(header.gso_size), 1000);
        assert_int_equal(header.flags, 1);

        /* One that does not; it has not buffers enough at first. */
        start(f, F_MRG);
        post(f, 4);
        assert_int_equal(give(f, frame, size_bytes, &tso), -EAGAIN);
        for (unsigned i = 0; i < 10; i++) {
                size_t n;

                if (i == 4) {
                        post(f, 16);
                        assert_int_equal(give(f, frame, size_bytes, &tso), 0);
                }
                n = take(f, &header, got);
                assert_int_equal(n, 1054);
                assert_true(sums_right(got, n));
                assert_memory_equal(got + 54, frame + 54 + payload, 1000);
                payload += n - 54;
        }
        assert_int_equal(take(f, &header, got), 0);
}

static uint8_t command(struct fixture *f, const void *bytes, uint32_t size_bytes)
{
        uint8_t *at = test_at(&f->bed, f->control_gpa, 4096);
        struct test_buffer out = { f->control_gpa, size_bytes }, in = { f->control_gpa + 4095, 1 };

        memcpy(at, bytes, size_bytes);
        at[4095] = 0xee;
        assert_true(test_ring_add(&f->ring[CONTROL], &out, 1, &in, 1, f));
        test_ring_kick(&f->ring[CONTROL]);
        testbed_run(&f->bed);
        assert_ptr_equal(test_ring_get(&f->ring[CONTROL], NULL), f);
        return at[4095];
}

static bool reaches(struct fixture *f, const uint8_t destination[6])
{
        uint8_t frame[64] = { 0 }, got[2048];
        struct net_offload none = { 0 };
        struct header header;

        memcpy(frame, destination, 6);
        post(f, 1);
        assert_int_equal(give(f, frame, sizeof(frame), &none), 0);
        return take(f, &header, got) == sizeof(frame);
}

static void test_control(void **state)
{
        struct fixture *f = *state;
        const uint8_t own[6] = { 2, 1, 2, 3, 4, 5 }, other[6] = { 2, 9, 9, 9, 9, 9 }, multicast[6] = { 1, 0, 0x5e, 0, 0, 7 };
        const uint8_t broadcast[6] = { 255, 255, 255, 255, 255, 255 };
        const uint8_t table[] = { 1, 0, 1, 0, 0, 0, 2, 9, 9, 9, 9, 9, 1, 0, 0, 0, 1, 0, 0x5e, 0, 0, 7 };
        uint8_t large[2 + 4 + 70 * 6 + 4] = { 1, 0, 70 };

        start(f, F_MRG | F_CTRL | BIT(20) | BIT(2) | F_GUEST_CSUM);
        assert_true(reaches(f, other)); /* everything, until the driver says otherwise */
        assert_int_equal(command(f, "\0\0\0", 3), 0);
        assert_false(reaches(f, other));
        assert_int_equal(command(f, (uint8_t[]){ 1, 1, 2, 1, 2, 3, 4, 5 }, 8), 0);
        assert_int_equal(test_read(&f->d, f->d.device + 1, 1), 1);
        assert_true(reaches(f, own));
        assert_true(reaches(f, broadcast));
        assert_false(reaches(f, multicast));
        assert_int_equal(command(f, table, sizeof(table)), 0);
        assert_true(reaches(f, multicast));
        assert_true(reaches(f, other));
        assert_int_equal(command(f, table, sizeof(table) - 1), 1);
        assert_int_equal(command(f, "\0\5\1", 3), 0); /* no broadcast */
        assert_false(reaches(f, broadcast));
        assert_int_equal(command(f, large, sizeof(large)), 0);
        assert_true(reaches(f, (uint8_t[]){ 2, 7, 7, 7, 7, 7 }));
        assert_int_equal(command(f, (uint8_t[]){ 5, 0, 2, 0, 0, 0, 0, 0, 0, 0 }, 10), 0);
        assert_int_equal(command(f, (uint8_t[]){ 5, 0, 0x80, 0, 0, 0, 0, 0, 0, 0 }, 10), 1);
        assert_int_equal(command(f, "\0", 1), 1);
        assert_int_equal(command(f, "\0\0\2", 3), 1);
        assert_int_equal(command(f, "\1\0\377\377\377\377", 6), 1);
        assert_int_equal(command(f, "\3\0", 2), 1);
        assert_int_equal(command(f, "\7\7", 2), 1);
}

static void test_save_load(void **state)
{
        struct fixture *f = *state;
        struct device *dev = &f->v->pci.dev;
        struct writer out = { 0 };
        struct record record;
        struct cursor in;
        struct err err = ERR_INIT;

        start(f, F_MRG | F_CTRL | BIT(16) | BIT(21));
        assert_int_equal(command(f, (uint8_t[]){ 1, 1, 2, 1, 2, 3, 4, 5 }, 8), 0);
        assert_int_equal(command(f, "\0\0\0", 3), 0);
        dev->ops->quiesce(dev);
        device_record_save(dev, &out);
        dev->ops->reset(dev);
        in = cursor_from(out.bytes, out.size);
        assert_int_equal(record_next(&in, &record, &err), 0);
        assert_int_equal(device_record_load(dev, &record, &err), 0);
        dev->ops->resume(dev);
        testbed_run(&f->bed);
        assert_int_equal(test_status(&f->d), 15);
        assert_false(reaches(f, (uint8_t[]){ 2, 9, 9, 9, 9, 9 }));
        assert_true(reaches(f, (uint8_t[]){ 2, 1, 2, 3, 4, 5 }));
        /* The driver is asked to announce itself, and told that it was heard. */
        assert_int_equal(test_read(&f->d, f->d.device + 6, 2), 3);
        assert_true(f->bed.interrupts[0] > 0);
        assert_int_equal(command(f, "\3\0", 2), 0);
        assert_int_equal(test_read(&f->d, f->d.device + 6, 2), 1);
        writer_done(&out);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_config, setup, teardown),
                cmocka_unit_test_setup_teardown(test_send, setup, teardown),
                cmocka_unit_test_setup_teardown(test_send_large, setup, teardown),
                cmocka_unit_test_setup_teardown(test_send_hostile, setup, teardown),
                cmocka_unit_test_setup_teardown(test_receive, setup, teardown),
                cmocka_unit_test_setup_teardown(test_receive_large, setup, teardown),
                cmocka_unit_test_setup_teardown(test_control, setup, teardown),
                cmocka_unit_test_setup_teardown(test_save_load, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
