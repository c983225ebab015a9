/*
 * The connections of a vsock device: found by their ports, told of by an epoll set, in a list while they owe the guest something.
 */
#include <sys/epoll.h>

#include "device/vsock-internal.h"

#define HOUSEKEEPING_MS 1000u

static unsigned bucket(uint32_t guest_port, uint32_t host_port)
{
        return (guest_port * 2654435761u ^ host_port * 40503u) >> 16 & (HASH_SIZE - 1);
}

struct vsock_connection *vsock_find(const struct virtio_vsock *dev, uint32_t guest_port, uint32_t host_port)
{
        struct vsock_connection *c = dev->hash[bucket(guest_port, host_port)];

        while (c && (c->guest_port != guest_port || c->host_port != host_port))
                c = c->hash_next;
        return c;
}

void vsock_hash(struct virtio_vsock *dev, struct vsock_connection *c)
{
        struct vsock_connection **at = &dev->hash[bucket(c->guest_port, c->host_port)];

        c->hash_next = *at;
        *at = c;
}

void vsock_start_timer(struct virtio_vsock *dev)
{
        if (!dev->timer_runs)
                uv_timer_start(dev->timer, vsock_housekeeping, HOUSEKEEPING_MS, HOUSEKEEPING_MS);
        dev->timer_runs = true;
}

struct vsock_connection *vsock_connection_new(struct virtio_vsock *dev, int fd, enum vsock_state state)
{
        struct vsock_connection *c = NULL;
        unsigned index = 0;

        while (index < CONNECTIONS_MAX && dev->connection[index])
                index++;
        if (index < CONNECTIONS_MAX)
                c = calloc(1, sizeof(*c));
        if (!c) {
                close(fd);
                return NULL;
        }
        c->index = index;
        c->fd = fd;
        c->state = state;
        dev->connection[index] = c;
        dev->connections++;
        vsock_start_timer(dev);
        return c;
}

void vsock_listen(struct virtio_vsock *dev, bool on)
{
        struct epoll_event event = { .events = EPOLLIN, .data.u64 = UINT64_MAX };

        if (on != dev->listening &&
            epoll_ctl(dev->epoll_fd, on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, dev->host.listen_fd, &event) == 0)
                dev->listening = on;
}

void vsock_connection_free(struct virtio_vsock *dev, struct vsock_connection *c)
{
        struct vsock_connection **at;

        for (at = &dev->hash[bucket(c->guest_port, c->host_port)]; *at; at = &(*at)->hash_next) {
                if (*at == c) {
                        *at = c->hash_next;
                        break;
                }
        }
        if (c->waiting) {
                for (at = &dev->wait_first; *at != c; at = &(*at)->wait_next)
                        ;
                *at = c->wait_next;
                if (!*at)
                        dev->wait_last = at;
        }
        close(c->fd);
        dev->connection[c->index] = NULL;
        dev->generation[c->index]++;
        dev->connections--;
        free(c->buffer);
        free(c);
        vsock_listen(dev, true);
}

void vsock_forget_all(struct virtio_vsock *dev)
{
        for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
                if (dev->connection[i])
                        vsock_connection_free(dev, dev->connection[i]);
        }
        dev->reset_count = 0;
}

uint32_t vsock_credit(const struct vsock_connection *c)
{
        uint32_t used = c->sent - c->peer_fwd_cnt;

        return used >= c->peer_buf_alloc ? 0 : c->peer_buf_alloc - used;
}

/* Hang-ups are always told, so what waits for nothing is not in it. */
void vsock_watch(struct virtio_vsock *dev, struct vsock_connection *c)
{
        struct epoll_event event = { .data.u64 = (uint64_t)dev->generation[c->index] << 32 | c->index };
        uint32_t wanted = 0;

        if (c->state == VSOCK_LINE || (c->state == VSOCK_OPEN && !(c->host_shutdown & SHUTDOWN_SEND) && !(c->owed & OWED_DATA) &&
                                       !(c->guest_shutdown & SHUTDOWN_RECEIVE) && vsock_credit(c)))
                wanted |= EPOLLIN;
        if (c->buffered)
                wanted |= EPOLLOUT;
        if (wanted == c->watched)
                return;
        event.events = wanted;
        epoll_ctl(dev->epoll_fd, !wanted ? EPOLL_CTL_DEL : c->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &event);
        c->watched = wanted;
}

void vsock_owe(struct virtio_vsock *dev, struct vsock_connection *c, uint32_t what)
{
        c->owed |= what;
        if (c->waiting)
                return;
        c->waiting = true;
        c->wait_next = NULL;
        *dev->wait_last = c;
        dev->wait_last = &c->wait_next;
}

void vsock_owe_reset(struct virtio_vsock *dev, uint32_t guest_port, uint32_t host_port)
{
        if (dev->reset_count == RESETS_MAX)
                return;
        dev->resets[(dev->reset_first + dev->reset_count++) % RESETS_MAX] = (struct vsock_reset){ guest_port, host_port };
}

void vsock_connection_reset(struct virtio_vsock *dev, struct vsock_connection *c)
{
        vsock_owe_reset(dev, c->guest_port, c->host_port);
        vsock_connection_free(dev, c);
}

uint64_t vsock_in_s(unsigned seconds)
{
        return monotonic_ns() + (uint64_t)seconds * 1000000000;
}
