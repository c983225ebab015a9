/*
 * A virtio device whose driver is reached through a vhost-user front end: memory, rings and eventfds as messages give them, in place of PCI's
 * registers. QEMU's docs/interop/vhost-user, "Ring states".
 *
 *   ring:  stopped ──kick fd──▶ started (disabled) ⇄ enable ⇄ served      base: back to stopped
 *
 * A ring is served while it has all it needs: it is started, enabled, has a size and addresses, and these are in memory. Whatever changes one of
 * these drains the disk first, takes the rings that are concerned out of service and puts those back that can be (settle()), so that nothing is in
 * flight in memory that goes away.
 *
 * The front end is as hostile as its guest. Descriptors have to be eventfds; reads of them cannot wait. A file that is cut while it is mapped gives
 * SIGBUS, which is answered with a page of zeroes: all that is done to guest memory can be done to that as well.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "base/log.h"
#include "device/vhost-user-internal.h"

#define INFLIGHT_ALIGNMENT 64u

struct ring {
        uint32_t size, base;
        bool have_addresses, started, enabled;
        struct vhost_user_ring_addresses at;
        struct vhost_user_watch *kick;
        int call, error;
};

struct vhost_user {
        struct virtio_transport transport;
        struct virtio *v; /* NULL once the device is gone */
        struct device_ops dev_ops;
        uv_async_t async;
        uint32_t wanted; /* by atomic operations: queues to be looked at */
        unsigned regions;
        struct vhost_user_region region[VHOST_USER_REGIONS_MAX];
        struct ring ring[VIRTIO_QUEUES_MAX];
        uint8_t *inflight;      /* mapped from the file's first byte */
        uint64_t inflight_bytes, inflight_offset;
        unsigned inflight_queues, inflight_entries;
        void (*config)(void *ctx);
        void *config_ctx;
};

static struct vhost_user *to_user(struct virtio *v)
{
        return container_of(v->transport, struct vhost_user, transport);
}

/* ---- polled descriptors ---- */

struct vhost_user_watch {
        uv_poll_t poll;
        void (*readable)(void *ctx, unsigned number);
        void *ctx;
        unsigned number;
        int fd;
};

static void watch_closed(uv_handle_t *handle)
{
        free(container_of(handle, struct vhost_user_watch, poll));
}

static void watch_ready(uv_poll_t *poll, int status, int events)
{
        struct vhost_user_watch *watch = container_of(poll, struct vhost_user_watch, poll);

        watch->readable(watch->ctx, watch->number);
}

int vhost_user_watch_new(uv_loop_t *loop, int fd, void (*readable)(void *ctx, unsigned number), void *ctx, unsigned number,
                         struct vhost_user_watch **watch, struct err *err)
{
        struct vhost_user_watch *w = calloc(1, sizeof(*w));
        int r;

        if (!w)
                return err_nomem(err);
        r = uv_poll_init(loop, &w->poll, fd);
        if (r < 0) {
                free(w);
                return err_set(err, r, "cannot poll a descriptor: %s", uv_strerror(r));
        }
        w->readable = readable;
        w->ctx = ctx;
        w->number = number;
        w->fd = fd;
        uv_poll_start(&w->poll, UV_READABLE, watch_ready);
        *watch = w;
        return 0;
}

void vhost_user_watch_free(struct vhost_user_watch *watch)
{
        if (!watch)
                return;
        uv_poll_stop(&watch->poll);
        close(watch->fd);
        uv_close((uv_handle_t *)&watch->poll, watch_closed);
}

int vhost_user_watch_fd(const struct vhost_user_watch *watch)
{
        return watch->fd;
}

/* ---- eventfds ---- */

static bool is_eventfd(int fd)
{
        char path[32], target[32];
        ssize_t n;

        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        n = readlink(path, target, sizeof(target) - 1);
        if (n < 0)
                return false;
        target[n] = '\0';
        return !strncmp(target, "anon_inode:[eventfd", 19);
}

/* Whoever shares it could have made it one that blocks again. */
static void empty_eventfd(int fd)
{
        uint64_t count;
        const struct iovec iov = { &count, sizeof(count) };

        if (preadv2(fd, &iov, 1, -1, RWF_NOWAIT) < 0 && errno == EOPNOTSUPP)
                (void)!read(fd, &count, sizeof(count));
}

static void signal_eventfd(int fd)
{
        if (fd >= 0)
                (void)!eventfd_write(fd, 1);
}

/* ---- the device's side ---- */

static void look_at(struct virtio *v, unsigned queue)
{
        virtio_lock(v);
        if (virtqueue_ready(v, queue) && v->ops->notify)
                v->ops->notify(v, queue);
        virtio_unlock(v);
}

static void kicked(void *ctx, unsigned queue)
{
        struct virtio *v = ctx;

        empty_eventfd(vhost_user_watch_fd(to_user(v)->ring[queue].kick));
        look_at(v, queue);
}

static void woken(uv_async_t *async)
{
        struct vhost_user *u = container_of(async, struct vhost_user, async);
        uint32_t wanted = __atomic_exchange_n(&u->wanted, 0, __ATOMIC_ACQ_REL);

        for (unsigned i = 0; u->v && i < u->v->queues; i++) {
                if (wanted >> i & 1)
                        look_at(u->v, i);
        }
}

static void wake(struct virtio *v, unsigned queue)
{
        struct vhost_user *u = to_user(v);

        if (queue >= v->queues)
                return;
        __atomic_fetch_or(&u->wanted, 1u << queue, __ATOMIC_ACQ_REL);
        uv_async_send(&u->async);
}

static void queue_interrupt(struct virtio *v, const struct virtqueue *q)
{
        struct vhost_user *u = to_user(v);

        for (unsigned i = 0; i < v->queues; i++) {
                if (v->queue[i] == q)
                        signal_eventfd(u->ring[i].call);
        }
}

/* The front end is told by each ring's descriptor for errors. */
static void config_interrupt(struct virtio *v)
{
        for (unsigned i = 0; i < v->queues; i++)
                signal_eventfd(to_user(v)->ring[i].error);
}

static void config_changed(struct virtio *v)
{
        struct vhost_user *u = to_user(v);

        if (u->config)
                u->config(u->config_ctx);
}

void vhost_user_on_config(struct virtio *v, void (*changed)(void *ctx), void *ctx)
{
        to_user(v)->config = changed;
        to_user(v)->config_ctx = ctx;
}

static void transport_reset(struct virtio *v)
{
}

static void async_closed(uv_handle_t *handle)
{
        free(container_of(handle, struct vhost_user, async));
}

static void transport_done(struct virtio *v)
{
        struct vhost_user *u = to_user(v);

        device_done(&v->pci.dev);
        u->v = NULL;
        v->transport = NULL;
        uv_close((uv_handle_t *)&u->async, async_closed);
}

static void device_free(struct device *dev)
{
        struct virtio *v = virtio_from_device(dev);

        v->ops->free(v);
}

static const struct virtio_transport_ops user_ops = {
        .reset = transport_reset,
        .wake = wake,
        .queue_interrupt = queue_interrupt,
        .config_interrupt = config_interrupt,
        .config_changed = config_changed,
        .done = transport_done,
};

/* Files that are cut while they are mapped. Any other bad access ends the process as it would without this. */
static void bus_error(int number, siginfo_t *info, void *context)
{
        int saved = errno;
        void *page = (void *)align_down((uint64_t)(uintptr_t)info->si_addr, GUEST_PAGE_SIZE);

        if (info->si_code != BUS_ADRERR ||
            mmap(page, GUEST_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
                signal(SIGBUS, SIG_DFL);
        errno = saved;
}

int virtio_user_init(struct virtio *v, const char *id, struct err *err)
{
        struct sigaction action = { .sa_sigaction = bus_error, .sa_flags = SA_SIGINFO };
        struct vhost_user *u = calloc(1, sizeof(*u));
        int r;

        if (!u)
                return err_nomem(err);
        r = uv_async_init(v->host->loop, &u->async, woken);
        if (r < 0) {
                free(u);
                return err_set(err, r, "cannot wake the loop: %s", uv_strerror(r));
        }
        u->transport.ops = &user_ops;
        u->v = v;
        u->dev_ops = (struct device_ops){ .name = v->ops->name, .free = device_free };
        for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
                u->ring[i].call = u->ring[i].error = -1;
        device_init(&v->pci.dev, &u->dev_ops, id);
        v->transport = &u->transport;
        (void)sigaction(SIGBUS, &action, NULL);
        return 0;
}

/* ---- in and out of service ---- */

static bool to_gpa(const struct vhost_user *u, uint64_t user, uint64_t *gpa)
{
        for (unsigned i = 0; i < u->regions; i++) {
                if (user - u->region[i].user < u->region[i].size_bytes) {
                        *gpa = u->region[i].gpa + (user - u->region[i].user);
                        return true;
                }
        }
        return false;
}

static uint8_t *inflight_of(const struct vhost_user *u, unsigned queue)
{
        return u->inflight + u->inflight_offset + queue * vhost_user_inflight_bytes(1, u->inflight_entries);
}

/* Where the driver has it: what was used so far is in the ring itself, for the next back end to go on. */
static int serve_ring(struct virtio *v, unsigned queue, struct err *err)
{
        struct vhost_user *u = to_user(v);
        struct ring *ring = &u->ring[queue];
        struct virtqueue *q = v->queue[queue];
        int r;

        q->size = (uint16_t)ring->size;
        if (!to_gpa(u, ring->at.desc, &q->desc_gpa) || !to_gpa(u, ring->at.avail, &q->driver_gpa) || !to_gpa(u, ring->at.used, &q->device_gpa))
                return err_set(err, -EFAULT, "its addresses are not in memory");
        r = virtqueue_enable(v, q, err);
        if (r < 0)
                return r;
        q->avail_idx = (uint16_t)ring->base;
        q->used_idx = ring_load16(q->device + 2);
        if (!u->inflight || queue >= u->inflight_queues)
                r = 0;
        else if (q->size > u->inflight_entries)
                r = err_set(err, -EINVAL, "it has %u entries, and %u can be recorded", q->size, u->inflight_entries);
        else
                r = ring_inflight_attach(q, inflight_of(u, queue), err);
        if (r < 0) {
                virtqueue_disable(q);
                return r;
        }
        /* One of a back end before may not have been told of. */
        signal_eventfd(ring->call);
        wake(v, queue);
        return 0;
}

/* Drained. */
static void retire_ring(struct virtio *v, unsigned queue)
{
        struct virtqueue *q = v->queue[queue];

        if (!q->enabled)
                return;
        to_user(v)->ring[queue].base = q->avail_idx;
        virtqueue_disable(q);
}

/* Whatever can be served is. The first error. */
static int settle(struct virtio *v, struct err *err)
{
        struct vhost_user *u = to_user(v);
        int result = 0;

        for (unsigned i = 0; i < v->queues; i++) {
                struct ring *ring = &u->ring[i];
                int r;

                if (v->queue[i]->enabled || !ring->started || !ring->enabled || !ring->have_addresses || !ring->size || !v->status)
                        continue;
                r = serve_ring(v, i, result == 0 ? err : NULL);
                if (r < 0 && result == 0)
                        result = err_wrap(err, r, "ring %u", i);
        }
        return result;
}

static void pause_device(struct virtio *v)
{
        v->quiesced = true;
        if (v->ops->quiesce)
                v->ops->quiesce(v);
}

static int resume_device(struct virtio *v, struct err *err)
{
        v->quiesced = false;
        if (v->ops->resume)
                v->ops->resume(v);
        for (unsigned i = 0; i < v->queues; i++) {
                if (v->queue[i]->enabled)
                        wake(v, i);
        }
        return settle(v, err);
}

static void retire_all(struct virtio *v)
{
        for (unsigned i = 0; i < v->queues; i++)
                retire_ring(v, i);
}

static bool any_served(const struct virtio *v)
{
        for (unsigned i = 0; i < v->queues; i++) {
                if (v->queue[i]->enabled)
                        return true;
        }
        return false;
}

/* Out of service for a change of what all rings need. */
static void stand_by(struct virtio *v)
{
        if (!any_served(v))
                return;
        pause_device(v);
        retire_all(v);
}

static int go_on(struct virtio *v, struct err *err)
{
        return v->quiesced ? resume_device(v, err) : settle(v, err);
}

static void stop_ring(struct virtio *v, unsigned queue)
{
        if (!v->queue[queue]->enabled)
                return;
        pause_device(v);
        retire_ring(v, queue);
        (void)resume_device(v, NULL);
}

/* ---- features ---- */

int vhost_user_set_features(struct virtio *v, uint64_t features, bool rings_on, struct err *err)
{
        const uint64_t packed = UINT64_C(1) << VIRTIO_F_RING_PACKED;

        if (features & ~virtio_offered(v) || features & packed)
                return err_set(err, -EINVAL, "features 0x%" PRIx64 " were not offered", features & (~virtio_offered(v) | packed));
        stand_by(v);
        v->features = features;
        v->broken = false;
        v->status = VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_DRIVER_OK;
        for (unsigned i = 0; rings_on && i < v->queues; i++)
                to_user(v)->ring[i].enabled = true;
        return go_on(v, err);
}

/* ---- memory ---- */

static void forget_memory(struct virtio *v)
{
        while (v->host->mem->regions)
                guest_memory_unmap(v->host->mem, v->host->mem->regions - 1);
        to_user(v)->regions = 0;
}

static int map_region(struct virtio *v, const struct vhost_user_region *region, int fd, struct err *err)
{
        struct vhost_user *u = to_user(v);
        int r;

        if (u->regions == VHOST_USER_REGIONS_MAX)
                return err_set(err, -ENOSPC, "%u pieces of memory are all there can be", u->regions);
        if (region->user + region->size_bytes < region->user)
                return err_set(err, -EINVAL, "memory at 0x%" PRIx64 " of the front end is not possible", region->user);
        r = guest_memory_map(v->host->mem, region->gpa, region->size_bytes, fd, region->offset, err);
        if (r == 0)
                u->region[u->regions++] = *region;
        return r;
}

int vhost_user_set_memory(struct virtio *v, const struct vhost_user_region *region, const int *fd, unsigned count, struct err *err)
{
        int r = 0, gone;

        stand_by(v);
        forget_memory(v);
        for (unsigned i = 0; i < count && r == 0; i++)
                r = map_region(v, &region[i], fd[i], err);
        if (r < 0)
                forget_memory(v);
        gone = go_on(v, r < 0 ? NULL : err);
        return r < 0 ? r : gone;
}

int vhost_user_add_memory(struct virtio *v, const struct vhost_user_region *region, int fd, struct err *err)
{
        return map_region(v, region, fd, err);
}

int vhost_user_remove_memory(struct virtio *v, const struct vhost_user_region *region, struct err *err)
{
        struct vhost_user *u = to_user(v);
        struct guest_memory *mem = v->host->mem;

        for (unsigned i = 0; i < u->regions; i++) {
                if (u->region[i].gpa != region->gpa || u->region[i].size_bytes != region->size_bytes || u->region[i].user != region->user)
                        continue;
                stand_by(v);
                for (unsigned j = 0; j < mem->regions; j++) {
                        if (mem->region[j].gpa == region->gpa) {
                                guest_memory_unmap(mem, j);
                                break;
                        }
                }
                u->region[i] = u->region[--u->regions];
                return go_on(v, err);
        }
        return err_set(err, -ENOENT, "no memory of %" PRIu64 " bytes at 0x%" PRIx64, region->size_bytes, region->gpa);
}

/* ---- rings ---- */

int vhost_user_set_size(struct virtio *v, unsigned queue, uint32_t size, struct err *err)
{
        if (!is_power_of_two(size) || size > v->queue[queue]->size_max)
                return err_set(err, -EINVAL, "ring %u: a size of %" PRIu32 ", at most %u", queue, size, v->queue[queue]->size_max);
        if (v->queue[queue]->enabled)
                return err_set(err, -EBUSY, "ring %u: another size while it is served", queue);
        to_user(v)->ring[queue].size = size;
        return settle(v, err);
}

int vhost_user_set_addresses(struct virtio *v, unsigned queue, const struct vhost_user_ring_addresses *at, struct err *err)
{
        struct ring *ring = &to_user(v)->ring[queue];

        ring->have_addresses = false;
        stop_ring(v, queue);
        ring->at = *at;
        ring->have_addresses = true;
        return settle(v, err);
}

int vhost_user_set_base(struct virtio *v, unsigned queue, uint32_t base, struct err *err)
{
        if (base > UINT16_MAX)
                return err_set(err, -EINVAL, "ring %u: position %" PRIu32, queue, base);
        if (v->queue[queue]->enabled)
                return err_set(err, -EBUSY, "ring %u: another position while it is served", queue);
        to_user(v)->ring[queue].base = base;
        return 0;
}

int vhost_user_get_base(struct virtio *v, unsigned queue, uint32_t *base, struct err *err)
{
        struct ring *ring = &to_user(v)->ring[queue];

        ring->started = false;
        stop_ring(v, queue);
        vhost_user_watch_free(ring->kick);
        ring->kick = NULL;
        *base = ring->base;
        return 0;
}

int vhost_user_enable(struct virtio *v, unsigned queue, bool on, struct err *err)
{
        to_user(v)->ring[queue].enabled = on;
        if (on)
                return settle(v, err);
        stop_ring(v, queue);
        return 0;
}

static int set_kick(struct virtio *v, unsigned queue, int *fd, struct err *err)
{
        struct ring *ring = &to_user(v)->ring[queue];
        struct vhost_user_watch *kick;
        int r;

        if (*fd < 0)
                return err_set(err, -EOPNOTSUPP, "ring %u: polling in place of kicks is not offered", queue);
        r = vhost_user_watch_new(v->host->loop, *fd, kicked, v, queue, &kick, err);
        if (r < 0)
                return r;
        *fd = -1;
        vhost_user_watch_free(ring->kick);
        ring->kick = kick;
        ring->started = true;
        return settle(v, err);
}

int vhost_user_set_eventfd(struct virtio *v, unsigned queue, enum vhost_user_eventfd which, int *fd, struct err *err)
{
        struct ring *ring = &to_user(v)->ring[queue];
        int *place = which == VHOST_USER_CALL ? &ring->call : &ring->error;

        if (*fd >= 0 && (!is_eventfd(*fd) || fcntl(*fd, F_SETFL, O_NONBLOCK) < 0))
                return err_set(err, -EINVAL, "ring %u: what came is no eventfd", queue);
        if (which == VHOST_USER_KICK)
                return set_kick(v, queue, fd, err);
        closep(place);
        *place = steal_fd(fd);
        /* What was used before it came. */
        if (which == VHOST_USER_CALL && v->queue[queue]->enabled)
                signal_eventfd(*place);
        return 0;
}

/* ---- the record of what is in flight ---- */

uint64_t vhost_user_inflight_bytes(unsigned queues, unsigned entries)
{
        return queues * align_up(RING_INFLIGHT_HEADER_BYTES + (uint64_t)RING_INFLIGHT_ENTRY_BYTES * entries, INFLIGHT_ALIGNMENT);
}

int vhost_user_new_inflight(unsigned queues, unsigned entries, int *fd, struct err *err)
{
        _cleanup_close_ int made = memfd_create("vhost-user in flight", MFD_CLOEXEC | MFD_ALLOW_SEALING);

        if (made < 0 || ftruncate(made, (off_t)vhost_user_inflight_bytes(queues, entries)) < 0 ||
            fcntl(made, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
                return err_errno(err, -errno, "cannot make a record of what is in flight");
        *fd = steal_fd(&made);
        return 0;
}

static void forget_inflight(struct vhost_user *u)
{
        if (u->inflight)
                munmap(u->inflight, u->inflight_bytes);
        u->inflight = NULL;
        u->inflight_bytes = 0;
}

int vhost_user_set_inflight(struct virtio *v, int fd, uint64_t offset, uint64_t size_bytes, unsigned queues, unsigned entries, struct err *err)
{
        struct vhost_user *u = to_user(v);
        int seals = fcntl(fd, F_GET_SEALS);
        struct stat st;
        void *map;

        if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &st) < 0)
                return err_set(err, -EINVAL, "a record of what is in flight that is not sealed");
        if (!queues || queues > v->queues || !entries || entries > VIRTIO_QUEUE_SIZE_MAX || offset % 8 ||
            size_bytes < vhost_user_inflight_bytes(queues, entries) || offset + size_bytes < offset || (uint64_t)st.st_size < offset + size_bytes)
                return err_set(err, -EINVAL, "a record of %" PRIu64 " bytes of what is in flight in %u rings of %u", size_bytes, queues, entries);
        map = mmap(NULL, offset + size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED)
                return err_errno(err, -errno, "cannot map the record of what is in flight");
        stand_by(v);
        forget_inflight(u);
        u->inflight = map;
        u->inflight_bytes = offset + size_bytes;
        u->inflight_offset = offset;
        u->inflight_queues = queues;
        u->inflight_entries = entries;
        return go_on(v, err);
}

void vhost_user_forget(struct virtio *v)
{
        struct vhost_user *u = to_user(v);

        pause_device(v);
        retire_all(v);
        virtio_reset(v);
        v->quiesced = false;
        for (unsigned i = 0; i < v->queues; i++) {
                struct ring *ring = &u->ring[i];

                vhost_user_watch_free(ring->kick);
                closep(&ring->call);
                closep(&ring->error);
                *ring = (struct ring){ .call = -1, .error = -1 };
        }
        forget_memory(v);
        forget_inflight(u);
}
