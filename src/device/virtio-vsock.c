/*
 * Sockets between guest and host, virtio 1.2 §5.10: stream sockets with the guest's kernel on one side and unix sockets of the
 * host (vsock-host.h) on the other.
 *
 *   host connects:  LINE ──CONNECT line──▶ REQUESTED ──RESPONSE──▶ OPEN          each ──RST, error, time──▶ gone
 *   guest connects:                        REQUEST, connect() ───▶ OPEN
 *   OPEN ──guest shuts both ways──▶ DRAINING ──all written──▶ RST, gone
 *   OPEN ──host closed both ways, all read──▶ SHUTDOWN to the guest ──its RST, or time──▶ gone
 *
 * Credit (§5.10.6.3): the guest may have BUFFER_BYTES on their way to a host socket that does not take them, kept per connection
 * and allocated only then; a guest that sends more loses the connection. Towards the guest no byte is taken from the host's
 * socket before the guest has said it has room and given a buffer, so nothing is kept there.
 *
 * Packets for the guest are made when there is a buffer for them: each connection notes what it owes (owed) and waits in a
 * list. Only resets for connections that do not exist have a list of their own; when it is full no more packets are taken from
 * the guest until it is not.
 *
 * Descriptors live in an epoll set (one uv_poll), of which each thread may take them: a reset closes them on a vCPU's thread.
 * All of this state has the device's lock. Limits: CONNECTIONS_MAX connections. After a load all connections are gone and the
 * guest is told so (§5.10.6.7).
 */
#include "device/virtio-vsock.h"

#include <endian.h>
#include <errno.h>
#include <sys/epoll.h>

#include "device/vsock-internal.h"

#define QUEUE_SIZE 128
#define EVENT_SIZE 16
#define FEATURE_STREAM 0
#define FIRST_HOST_PORT (1u << 30)
#define LINE_TIMEOUT_S 10u
#define REQUEST_TIMEOUT_S 5u

static struct virtio_vsock *from_virtio(struct virtio *v)
{
        return container_of(v, struct virtio_vsock, virtio);
}

/* --- the host --- */

static void accept_all(struct virtio_vsock *dev)
{
        for (unsigned i = 0; i < 16; i++) {
                int fd = vsock_host_accept(&dev->host);
                struct vsock_connection *c;

                if (fd < 0) {
                        /* Without descriptors it would be asked again at once: wait for one to be free. */
                        if (fd != -EAGAIN && fd != -EINTR && fd != -ECONNABORTED) {
                                vsock_listen(dev, false);
                                vsock_start_timer(dev);
                        }
                        return;
                }
                if (!virtqueue_ready(&dev->virtio, VSOCK_RX)) {
                        close(fd);
                        continue;
                }
                c = vsock_connection_new(dev, fd, VSOCK_LINE);
                if (!c)
                        continue;
                c->deadline_ns = vsock_in_s(LINE_TIMEOUT_S);
                vsock_watch(dev, c);
        }
}

/* A port of the host that is on no connection with this port of the guest. */
static uint32_t free_port(struct virtio_vsock *dev, uint32_t guest_port)
{
        do {
                dev->next_port = dev->next_port == UINT32_MAX - 1 ? FIRST_HOST_PORT : dev->next_port + 1;
        } while (vsock_find(dev, guest_port, dev->next_port));
        return dev->next_port;
}

static void read_line(struct virtio_vsock *dev, struct vsock_connection *c)
{
        uint32_t port;
        int r = vsock_line_read(&c->line, c->fd, &port);

        if (r < 0) {
                vsock_connection_free(dev, c);
        } else if (r > 0) {
                c->guest_port = port;
                c->host_port = free_port(dev, port);
                c->state = VSOCK_REQUESTED;
                c->deadline_ns = vsock_in_s(REQUEST_TIMEOUT_S);
                vsock_hash(dev, c);
                vsock_owe(dev, c, OWED_REQUEST);
                vsock_watch(dev, c);
        }
}

static void socket_ready(struct virtio_vsock *dev, uint64_t key, uint32_t events)
{
        struct vsock_connection *c;

        if (key == UINT64_MAX) {
                accept_all(dev);
                return;
        }
        c = dev->connection[(uint32_t)key % CONNECTIONS_MAX];
        if (!c || dev->generation[c->index] != key >> 32)
                return;
        if (c->state == VSOCK_LINE) {
                read_line(dev, c);
                return;
        }
        if (c->buffered && events & (EPOLLOUT | EPOLLERR | EPOLLHUP) && !vsock_drain(dev, c))
                return;
        if (c->watched & EPOLLIN && events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
                vsock_owe(dev, c, OWED_DATA);
                vsock_watch(dev, c);
        }
}

static void epoll_ready(uv_poll_t *poll, int status, int uv_events)
{
        struct virtio_vsock *dev = poll->data;
        struct epoll_event event[32];
        int count;

        virtio_lock(&dev->virtio);
        count = epoll_wait(dev->epoll_fd, event, ARRAY_SIZE(event), 0);
        for (int i = 0; i < count; i++)
                socket_ready(dev, event[i].data.u64, event[i].events);
        vsock_send_all(dev);
        virtio_unlock(&dev->virtio);
}

void vsock_housekeeping(uv_timer_t *timer)
{
        struct virtio_vsock *dev = timer->data;
        uint64_t now = monotonic_ns();

        virtio_lock(&dev->virtio);
        for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
                struct vsock_connection *c = dev->connection[i];

                if (!c || !c->deadline_ns || now < c->deadline_ns)
                        continue;
                if (c->state == VSOCK_LINE)
                        vsock_connection_free(dev, c);
                else
                        vsock_connection_reset(dev, c);
        }
        vsock_listen(dev, true);
        vsock_send_all(dev);
        if (!dev->connections) {
                uv_timer_stop(timer);
                dev->timer_runs = false;
        }
        virtio_unlock(&dev->virtio);
}

/* --- the device --- */

static void send_event(struct virtio_vsock *dev)
{
        uint32_t transport_reset = 0; /* VIRTIO_VSOCK_EVENT_TRANSPORT_RESET */
        struct virtio_chain chain;

        if (!dev->event_owed || virtqueue_pop(&dev->virtio, VSOCK_EVENT, &dev->storage, &chain) <= 0)
                return;
        buf_to_iov(chain.in, chain.in_count, 0, &transport_reset, sizeof(transport_reset));
        virtqueue_push(&dev->virtio, VSOCK_EVENT, &chain, MIN(chain.in_bytes, (uint32_t)sizeof(transport_reset)));
        virtqueue_interrupt(&dev->virtio, VSOCK_EVENT);
        dev->event_owed = false;
}

static void notify(struct virtio *v, unsigned queue)
{
        struct virtio_vsock *dev = from_virtio(v);

        if (queue == VSOCK_EVENT) {
                send_event(dev);
                return;
        }
        if (queue == VSOCK_TX)
                vsock_receive_all(dev);
        vsock_send_all(dev);
}

static uint64_t features(struct virtio *v)
{
        return UINT64_C(1) << FEATURE_STREAM;
}

static void config_read(struct virtio *v, uint32_t offset, void *to, unsigned size_bytes)
{
        uint64_t cid = htole64(from_virtio(v)->cid);

        memcpy(to, (uint8_t *)&cid + offset, size_bytes);
}

static void reset(struct virtio *v)
{
        struct virtio_vsock *dev = from_virtio(v);

        vsock_forget_all(dev);
        dev->event_owed = false;
}

static void quiesce(struct virtio *v)
{
        struct virtio_vsock *dev = from_virtio(v);

        uv_poll_stop(dev->poll);
        uv_timer_stop(dev->timer);
}

static void resume(struct virtio *v)
{
        struct virtio_vsock *dev = from_virtio(v);

        uv_poll_start(dev->poll, UV_READABLE, epoll_ready);
        dev->timer_runs = false;
        vsock_start_timer(dev);
}

static void save(struct virtio *v, struct writer *out)
{
        writer_le64(out, from_virtio(v)->cid);
}

static int load(struct virtio *v, uint16_t version, struct cursor *in, struct err *err)
{
        struct virtio_vsock *dev = from_virtio(v);
        uint64_t cid = cursor_le64(in);

        if (version != 1 || in->bad)
                return err_set(err, -EBADMSG, "a vsock record has version %u and %zu bytes, this is 1 with 8", version,
                               cursor_left(in));
        /* The guest asks for its address again after the event, so that a clone may have another one. */
        if (cid < 3)
                return err_set(err, -EBADMSG, "a vsock record has the address %u", (unsigned)cid);
        vsock_forget_all(dev);
        dev->event_owed = virtio_running(v);
        return 0;
}

static void handle_free(uv_handle_t *handle)
{
        free(handle);
}

static void virtio_vsock_free(struct virtio *v)
{
        struct virtio_vsock *dev = from_virtio(v);

        if (dev->poll)
                uv_close((uv_handle_t *)dev->poll, handle_free);
        if (dev->timer)
                uv_close((uv_handle_t *)dev->timer, handle_free);
        virtio_done(v);
        vsock_forget_all(dev);
        closep(&dev->epoll_fd);
        vsock_host_done(&dev->host);
        free(dev);
}

static const struct virtio_ops virtio_vsock_ops = {
        .name = "virtio-vsock",
        .id = VIRTIO_VSOCK,
        .class_code = 0x078000,
        .features = features,
        .config_bytes = 8,
        .config_read = config_read,
        .notify = notify,
        .reset = reset,
        .quiesce = quiesce,
        .resume = resume,
        .version = 1,
        .save = save,
        .load = load,
        .free = virtio_vsock_free,
};

static int make_handles(struct virtio_vsock *dev, uv_loop_t *loop, struct err *err)
{
        uv_timer_t *timer = malloc(sizeof(*timer));
        uv_poll_t *poll = malloc(sizeof(*poll));
        int r;

        if (!timer || !poll) {
                free(timer);
                free(poll);
                return err_nomem(err);
        }
        uv_timer_init(loop, timer);
        timer->data = dev;
        dev->timer = timer;
        r = uv_poll_init(loop, poll, dev->epoll_fd);
        if (r < 0) {
                free(poll);
                return err_set(err, r, "cannot watch the vsock sockets: %s", uv_strerror(r));
        }
        poll->data = dev;
        dev->poll = poll;
        uv_poll_start(poll, UV_READABLE, epoll_ready);
        return 0;
}

int virtio_vsock_directory(const struct virtio *v)
{
        return container_of(v, struct virtio_vsock, virtio)->host.dir_fd;
}

int virtio_vsock_new(struct device_host *host, struct pci_bus *bus, const char *id, const struct virtio_vsock_config *config,
                     struct virtio **made, struct err *err)
{
        static const uint16_t sizes[VSOCK_QUEUES] = { QUEUE_SIZE, QUEUE_SIZE, EVENT_SIZE };
        struct virtio_vsock *dev;
        int r;

        /* §5.10.4.1: 0 to 2 have a meaning, the upper half is reserved and 2^32-1 is "any". */
        if (config->cid && (config->cid < 3 || config->cid >= UINT32_MAX))
                return err_set(err, -EINVAL, "vsock address %llu is out of range, 3 to %u", (unsigned long long)config->cid,
                               UINT32_MAX - 1);
        dev = calloc(1, sizeof(*dev));
        if (!dev)
                return err_nomem(err);
        dev->cid = config->cid ? config->cid : VIRTIO_VSOCK_CID_DEFAULT;
        dev->wait_last = &dev->wait_first;
        dev->next_port = FIRST_HOST_PORT;
        dev->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        r = vsock_host_init(&dev->host, config->path, err);
        if (r == 0 && dev->epoll_fd < 0)
                r = err_nomem(err);
        if (r == 0)
                r = make_handles(dev, host->loop, err);
        if (r == 0)
                r = virtio_init(&dev->virtio, host, bus, &virtio_vsock_ops, id, sizes, VSOCK_QUEUES, err);
        if (r < 0) {
                virtio_vsock_free(&dev->virtio);
                return r;
        }
        vsock_listen(dev, true);
        *made = &dev->virtio;
        return 0;
}
