/* The vsock device between a driver played here and unix sockets of the host. */
#include "base/test.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "device/test-virtio.h"
#include "device/virtio-vsock.h"

#define VERSION_1 (UINT64_C(1) << VIRTIO_F_VERSION_1)
#define RING (UINT64_C(1) << VIRTIO_F_RING_INDIRECT_DESC | UINT64_C(1) << VIRTIO_F_RING_EVENT_IDX)
#define RX_BUFFERS 16
#define RX_BYTES 4096
#define GUEST_CID 3
#define BUFFER_BYTES (256u << 10)

enum { RX, TX, EVENT };
enum { OP_REQUEST = 1, OP_RESPONSE, OP_RST, OP_SHUTDOWN, OP_RW, OP_CREDIT_UPDATE, OP_CREDIT_REQUEST };

struct header {
        uint64_t src_cid, dst_cid;
        uint32_t src_port, dst_port, len;
        uint16_t type, op;
        uint32_t flags, buf_alloc, fwd_cnt;
} __attribute__((packed));

struct fixture {
        struct testbed bed;
        struct test_driver d;
        struct virtio *v;
        struct test_ring ring[3];
        char dir[64], path[96];
        uint64_t rx_gpa, tx_gpa, event_gpa;
        unsigned rx_posted;
        struct header got;
        uint8_t data[RX_BYTES];
        uint32_t received; /* data bytes, for the credit we give */
        uint32_t buf_alloc;
        uint32_t peer_fwd;
};

static void post(struct fixture *f, uintptr_t i)
{
        struct test_buffer in = { f->rx_gpa + i * RX_BYTES, RX_BYTES };

        assert_true(test_ring_add(&f->ring[RX], NULL, 0, &in, 1, (void *)(i + 1)));
}

static void start(struct fixture *f)
{
        assert_true(test_driver_find(&f->d, &f->bed, VIRTIO_VSOCK));
        assert_true(test_driver_start(&f->d, RING | VERSION_1 | 1));
        test_driver_msix(&f->d);
        for (unsigned i = 0; i < 3; i++)
                test_ring_init(&f->ring[i], &f->d, i, 0);
        test_driver_ok(&f->d);
        for (uintptr_t i = 0; i < RX_BUFFERS; i++)
                post(f, i);
        test_ring_kick(&f->ring[RX]);
        testbed_run(&f->bed);
        assert_int_equal(test_status(&f->d), 15);
}

static int setup(void **state)
{
        struct fixture *f = calloc(1, sizeof(*f));
        struct err err = ERR_INIT;

        testbed_init(&f->bed);
        strcpy(f->dir, "/tmp/virta-test-vsock-XXXXXX");
        assert_non_null(mkdtemp(f->dir));
        snprintf(f->path, sizeof(f->path), "%s/v.sock", f->dir);
        f->rx_gpa = test_alloc(&f->bed, RX_BUFFERS * RX_BYTES);
        f->tx_gpa = test_alloc(&f->bed, 65536 + 4096);
        f->event_gpa = test_alloc(&f->bed, 4096);
        f->buf_alloc = 65536;
        assert_int_equal(virtio_vsock_new(&f->bed.host, f->bed.pci, "vsock0", &(struct virtio_vsock_config){ .path = f->path },
                                          &f->v, &err),
                         0);
        start(f);
        *state = f;
        return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
        return remove(path);
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        device_end(&f->v->pci.dev);
        testbed_done(&f->bed);
        assert_int_equal(access(f->path, F_OK), -1);
        nftw(f->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
        free(f);
        return 0;
}

/* --- the driver --- */

static void send_packet(struct fixture *f, unsigned op, uint32_t guest_port, uint32_t host_port, uint32_t flags, const void *data,
                        uint32_t length)
{
        struct header header = { .src_cid = GUEST_CID,
                                 .dst_cid = 2,
                                 .src_port = guest_port,
                                 .dst_port = host_port,
                                 .len = length,
                                 .type = 1,
                                 .op = (uint16_t)op,
                                 .flags = flags,
                                 .buf_alloc = f->buf_alloc,
                                 .fwd_cnt = f->received };
        struct test_buffer out[2] = { { f->tx_gpa, sizeof(header) }, { f->tx_gpa + sizeof(header), length } };

        memcpy(test_at(&f->bed, f->tx_gpa, sizeof(header)), &header, sizeof(header));
        if (length)
                memcpy(test_at(&f->bed, f->tx_gpa + sizeof(header), length), data, length);
        assert_true(test_ring_add(&f->ring[TX], out, length ? 2 : 1, NULL, 0, f));
        test_ring_kick(&f->ring[TX]);
        testbed_run(&f->bed);
        assert_ptr_equal(test_ring_get(&f->ring[TX], NULL), f);
}

static bool got_packet(void *ctx)
{
        struct fixture *f = ctx;
        uint32_t written;
        uintptr_t i = (uintptr_t)test_ring_get(&f->ring[RX], &written);
        const uint8_t *at;

        if (!i--)
                return false;
        assert_in_range(written, sizeof(f->got), RX_BYTES);
        at = test_at(&f->bed, f->rx_gpa + i * RX_BYTES, RX_BYTES);
        memcpy(&f->got, at, sizeof(f->got));
        assert_int_equal(f->got.len, written - sizeof(f->got));
        memcpy(f->data, at + sizeof(f->got), f->got.len);
        assert_int_equal(f->got.src_cid, 2);
        assert_int_equal(f->got.dst_cid, GUEST_CID);
        assert_int_equal(f->got.type, 1);
        f->peer_fwd = f->got.fwd_cnt;
        post(f, i);
        test_ring_kick(&f->ring[RX]);
        return true;
}

static void expect(struct fixture *f, unsigned op)
{
        assert_true(testbed_wait(&f->bed, got_packet, f));
        assert_int_equal(f->got.op, op);
}

static void expect_nothing(struct fixture *f)
{
        testbed_run(&f->bed);
        assert_false(got_packet(f));
}

/* --- the host --- */

static int unix_socket(struct fixture *f, const char *suffix, bool listening)
{
        struct sockaddr_un un = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        int r;

        snprintf(un.sun_path, sizeof(un.sun_path), "%s%s", f->path, suffix);
        r = listening ? bind(fd, (struct sockaddr *)&un, sizeof(un)) : connect(fd, (struct sockaddr *)&un, sizeof(un));
        assert_int_equal(r, 0);
        if (listening)
                assert_int_equal(listen(fd, 8), 0);
        return fd;
}

static int take(int listener)
{
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        assert_true(fd >= 0);
        return fd;
}

static void test_guest_connects(void **state)
{
        struct fixture *f = *state;
        char text[64] = "";
        int listener, fd;

        /* Nobody there */
        send_packet(f, OP_REQUEST, 1000, 52, 0, NULL, 0);
        expect(f, OP_RST);
        assert_int_equal(f->got.dst_port, 1000);
        assert_int_equal(f->got.src_port, 52);

        listener = unix_socket(f, "_52", true);
        send_packet(f, OP_REQUEST, 1000, 52, 0, NULL, 0);
        expect(f, OP_RESPONSE);
        assert_int_equal(f->got.buf_alloc, BUFFER_BYTES);
        fd = take(listener);
        send_packet(f, OP_RW, 1000, 52, 0, "hello", 5);
        assert_int_equal(read(fd, text, sizeof(text)), 5);
        assert_string_equal(text, "hello");
        assert_int_equal(write(fd, "howdy", 5), 5);
        expect(f, OP_RW);
        assert_int_equal(f->got.fwd_cnt, 5);
        assert_memory_equal(f->data, "howdy", 5);

        /* The guest says no more; the host may. */
        send_packet(f, OP_SHUTDOWN, 1000, 52, 2, NULL, 0);
        assert_int_equal(read(fd, text, sizeof(text)), 0);
        assert_int_equal(write(fd, "late", 4), 4);
        expect(f, OP_RW);
        close(fd);
        expect(f, OP_SHUTDOWN);
        assert_int_equal(f->got.flags, 3);
        send_packet(f, OP_RST, 1000, 52, 0, NULL, 0);
        expect_nothing(f);
        /* The connection is gone: what comes for it is answered so. */
        send_packet(f, OP_RW, 1000, 52, 0, "x", 1);
        expect(f, OP_RST);
        send_packet(f, OP_RST, 1000, 52, 0, NULL, 0);
        expect_nothing(f);
        close(listener);
}

static void test_host_connects(void **state)
{
        struct fixture *f = *state;
        char text[64] = "";
        uint32_t host_port;
        int fd = unix_socket(f, "", false);

        assert_int_equal(write(fd, "CONN", 4), 4);
        testbed_run(&f->bed);
        assert_int_equal(write(fd, "ECT 1234\nearly", 14), 14);
        expect(f, OP_REQUEST);
        assert_int_equal(f->got.dst_port, 1234);
        host_port = f->got.src_port;
        send_packet(f, OP_RESPONSE, 1234, host_port, 0, NULL, 0);
        assert_true(read(fd, text, sizeof(text)) > 4);
        assert_int_equal(strtoul(text + 3, NULL, 10), host_port);
        /* What came behind the line is the guest's. */
        expect(f, OP_RW);
        assert_int_equal(f->got.len, 5);
        assert_memory_equal(f->data, "early", 5);
        send_packet(f, OP_SHUTDOWN, 1234, host_port, 3, NULL, 0);
        expect(f, OP_RST);
        assert_int_equal(read(fd, text, sizeof(text)), 0);
        close(fd);

        /* Refused by the guest */
        fd = unix_socket(f, "", false);
        assert_int_equal(write(fd, "CONNECT 99\n", 11), 11);
        expect(f, OP_REQUEST);
        send_packet(f, OP_RST, 99, f->got.src_port, 0, NULL, 0);
        assert_int_equal(read(fd, text, sizeof(text)), 0);
        close(fd);
}

static void test_bad_lines(void **state)
{
        static const char *const bad[] = {
                "connect 1\n",           "CONNECT\n",    "CONNECT \n", "CONNECT x\n",
                "CONNECT 4294967296\n",  "CONNECT 1 \n", "\n",         "CONNECT 00000000000000000000000000000000001\n",
                "GET / HTTP/1.1\r\n\r\n"
        };
        struct fixture *f = *state;
        char text[8];

        for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
                int fd = unix_socket(f, "", false);

                assert_int_equal(write(fd, bad[i], strlen(bad[i])), strlen(bad[i]));
                testbed_run(&f->bed);
                testbed_run(&f->bed);
                errno = 0;
                assert_true(recv(fd, text, sizeof(text), MSG_DONTWAIT) <= 0 && errno != EAGAIN);
                close(fd);
                expect_nothing(f);
        }
}

/* The host does not read: the guest's bytes are kept up to its credit, and none is lost. */
static void test_credit_of_guest(void **state)
{
        static uint8_t block[32768], back[BUFFER_BYTES * 4];
        struct fixture *f = *state;
        size_t sent = 0, have = 0;
        unsigned updates = 0;
        int listener = unix_socket(f, "_1", true), fd;

        send_packet(f, OP_REQUEST, 7, 1, 0, NULL, 0);
        expect(f, OP_RESPONSE);
        fd = take(listener);
        while (sent - f->peer_fwd + sizeof(block) <= BUFFER_BYTES && sent < sizeof(back)) {
                for (size_t i = 0; i < sizeof(block); i++)
                        block[i] = (uint8_t)((sent + i) * 7 + ((sent + i) >> 9));
                send_packet(f, OP_RW, 7, 1, 0, block, sizeof(block));
                sent += sizeof(block);
                send_packet(f, OP_CREDIT_REQUEST, 7, 1, 0, NULL, 0);
                expect(f, OP_CREDIT_UPDATE);
        }
        assert_true(sent > BUFFER_BYTES && sent < sizeof(back));
        /* Everything is sent and then closed; the host gets it all. */
        send_packet(f, OP_SHUTDOWN, 7, 1, 3, NULL, 0);
        for (unsigned i = 0; i < 5000 && have < sent; i++) {
                ssize_t n = read(fd, back + have, sizeof(back) - have);

                if (n > 0)
                        have += (size_t)n;
                testbed_run(&f->bed);
        }
        assert_int_equal(have, sent);
        for (size_t i = 0; i < have; i++)
                assert_int_equal(back[i], (uint8_t)(i * 7 + (i >> 9)));
        do {
                assert_true(testbed_wait(&f->bed, got_packet, f));
                assert_true(++updates < 100);
        } while (f->got.op == OP_CREDIT_UPDATE);
        assert_int_equal(f->got.op, OP_RST);
        assert_int_equal(read(fd, back, 1), 0);
        close(fd);

        /* A guest that sends more than it may loses the connection. */
        send_packet(f, OP_REQUEST, 8, 1, 0, NULL, 0);
        expect(f, OP_RESPONSE);
        fd = take(listener);
        for (unsigned i = 0; i < 64; i++)
                send_packet(f, OP_RW, 8, 1, 0, block, sizeof(block));
        updates = 0;
        do {
                assert_true(testbed_wait(&f->bed, got_packet, f));
                assert_true(++updates < 100);
        } while (f->got.op != OP_RST);
        close(fd);
        close(listener);
}

/* The guest has no room: the host's socket is not read. */
static void test_credit_of_host(void **state)
{
        static uint8_t block[65536];
        struct fixture *f = *state;
        uint32_t got = 0;
        int listener = unix_socket(f, "_1", true), fd;

        f->buf_alloc = 5000;
        send_packet(f, OP_REQUEST, 7, 1, 0, NULL, 0);
        expect(f, OP_RESPONSE);
        fd = take(listener);
        for (size_t i = 0; i < sizeof(block); i++)
                block[i] = (uint8_t)(i * 11 + (i >> 7));
        assert_int_equal(write(fd, block, sizeof(block)), sizeof(block));
        for (unsigned i = 0; i < 1000 && got < sizeof(block); i++) {
                assert_true(testbed_wait(&f->bed, got_packet, f));
                if (f->got.op == OP_RW) {
                        assert_memory_equal(f->data, block + got, f->got.len);
                        got += f->got.len;
                        assert_true(got - f->received <= 5000);
                } else {
                        assert_int_equal(f->got.op, OP_CREDIT_REQUEST);
                        assert_int_equal(got - f->received, 5000);
                        expect_nothing(f);
                        f->received = got;
                        send_packet(f, OP_CREDIT_UPDATE, 7, 1, 0, NULL, 0);
                }
        }
        assert_int_equal(got, sizeof(block));
        close(fd);
        close(listener);
}

/* More connections than there may be, and packets that are none. */
static void test_hostile(void **state)
{
        struct fixture *f = *state;
        struct header header = { 0 };
        struct test_buffer out = { f->tx_gpa, 10 };
        unsigned refused = 0, accepted = 0;
        int listener = unix_socket(f, "_1", true);

        for (unsigned i = 0; i < 300; i++) {
                send_packet(f, OP_REQUEST, 10000 + i, 1, 0, NULL, 0);
                do {
                        assert_true(testbed_wait(&f->bed, got_packet, f));
                } while (f->got.dst_port != 10000 + i);
                refused += f->got.op == OP_RST;
                accepted += f->got.op == OP_RESPONSE;
                if (f->got.op == OP_RESPONSE)
                        close(take(listener));
        }
        assert_int_equal(refused + accepted, 300);
        assert_true(refused > 0 && accepted >= 200);
        for (unsigned op = 0; op < 70000; op += op < 20 ? 1 : 9973) {
                send_packet(f, op, 5, 6, ~0u, "x", 1);
                while (got_packet(f))
                        ;
        }
        assert_true(test_ring_add(&f->ring[TX], &out, 1, NULL, 0, f)); /* shorter than its header */
        test_ring_kick(&f->ring[TX]);
        testbed_run(&f->bed);
        assert_ptr_equal(test_ring_get(&f->ring[TX], NULL), f);
        header.src_cid = GUEST_CID;
        header.dst_cid = 2;
        header.len = UINT32_MAX;
        header.op = OP_RW;
        header.type = 1;
        memcpy(test_at(&f->bed, f->tx_gpa, sizeof(header)), &header, sizeof(header));
        out.size = sizeof(header);
        assert_true(test_ring_add(&f->ring[TX], &out, 1, NULL, 0, f));
        test_ring_kick(&f->ring[TX]);
        testbed_run(&f->bed);
        assert_ptr_equal(test_ring_get(&f->ring[TX], NULL), f);
        assert_int_equal(test_status(&f->d), 15);
        /* A reset ends all connections. */
        start(f);
        send_packet(f, OP_RW, 10001, 1, 0, "x", 1);
        expect(f, OP_RST);
        close(listener);
}

static void test_save_load(void **state)
{
        struct fixture *f = *state;
        struct writer out = { 0 };
        struct cursor in;
        struct record record;
        struct err err = ERR_INIT;
        struct device *dev = &f->v->pci.dev;
        struct test_buffer event = { f->event_gpa, 4 };
        uint32_t written;
        int listener = unix_socket(f, "_1", true), fd;

        send_packet(f, OP_REQUEST, 7, 1, 0, NULL, 0);
        expect(f, OP_RESPONSE);
        fd = take(listener);
        memset(test_at(&f->bed, f->event_gpa, 4), 0xff, 4);
        assert_true(test_ring_add(&f->ring[EVENT], NULL, 0, &event, 1, f));
        test_ring_kick(&f->ring[EVENT]);
        testbed_run(&f->bed);
        assert_null(test_ring_get(&f->ring[EVENT], &written));

        dev->ops->quiesce(dev);
        device_record_save(dev, &out);
        in = cursor_from(out.bytes, out.size);
        assert_int_equal(record_next(&in, &record, &err), 0);
        assert_int_equal(device_record_load(dev, &record, &err), 0);
        dev->ops->resume(dev);
        testbed_run(&f->bed);
        /* The guest hears that its connections are gone. */
        assert_ptr_equal(test_ring_get(&f->ring[EVENT], &written), f);
        assert_int_equal(written, 4);
        assert_int_equal(*(uint32_t *)test_at(&f->bed, f->event_gpa, 4), 0);
        assert_int_equal(read(fd, &written, 1), 0);
        send_packet(f, OP_REQUEST, 7, 1, 0, NULL, 0);
        expect(f, OP_RESPONSE);
        writer_done(&out);
        close(fd);
        close(listener);
}

static void test_paths(void **state)
{
        struct fixture *f = *state;
        struct virtio *v = NULL;
        struct err err = ERR_INIT;
        struct virtio_vsock_config config = { .path = f->path };
        char path[256];
        int fd;

        assert_int_equal(virtio_vsock_new(&f->bed.host, f->bed.pci, "vsock1", &config, &v, &err), -EADDRINUSE);
        assert_non_null(strstr(err.text, f->path));
        config.path = "/nonexistent/v.sock";
        assert_int_equal(virtio_vsock_new(&f->bed.host, f->bed.pci, "vsock1", &config, &v, &err), -ENOENT);
        snprintf(path, sizeof(path), "%s/file", f->dir);
        fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
        close(fd);
        config.path = path;
        assert_int_equal(virtio_vsock_new(&f->bed.host, f->bed.pci, "vsock1", &config, &v, &err), -EEXIST);
        config.cid = 2;
        assert_int_equal(virtio_vsock_new(&f->bed.host, f->bed.pci, "vsock1", &config, &v, &err), -EINVAL);
        /* Left by one that was killed */
        close(unix_socket(f, "_old", true));
        snprintf(path, sizeof(path), "%s_old", f->path);
        config.cid = 0;
        assert_int_equal(virtio_vsock_new(&f->bed.host, f->bed.pci, "vsock1", &config, &v, &err), 0);
        device_end(&v->pci.dev);
        assert_int_equal(access(path, F_OK), -1);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_guest_connects, setup, teardown),
                cmocka_unit_test_setup_teardown(test_host_connects, setup, teardown),
                cmocka_unit_test_setup_teardown(test_bad_lines, setup, teardown),
                cmocka_unit_test_setup_teardown(test_credit_of_guest, setup, teardown),
                cmocka_unit_test_setup_teardown(test_credit_of_host, setup, teardown),
                cmocka_unit_test_setup_teardown(test_hostile, setup, teardown),
                cmocka_unit_test_setup_teardown(test_save_load, setup, teardown),
                cmocka_unit_test_setup_teardown(test_paths, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
