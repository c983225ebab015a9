/*
 * Shared directory, virtio 1.2 §5.11: FUSE requests from a high-priority and a request queue to the file server (fs.h).
 *
 *   queue ─pop─▶ request ──worker thread: fs_server_handle()──▶ done list ──loop's thread: push──▶ guest
 *
 * Requests block as the host's file system does, so they run on libuv's pool, at most REQUESTS_MAX at a time; more stay in the
 * queue. What is forgotten needs no file system and is done at once. A request holds the device (virtio_hold()) until it was
 * pushed: a driver's reset is done when the last of them is over.
 *
 * The done list has a lock of its own, which is the innermost: quiesce and free can so wait for the workers without the loop,
 * whose callback (after_work) then finds the request already taken care of and only frees it.
 */
#include "device/virtio-fs.h"

#include <endian.h>
#include <errno.h>
#include <linux/fuse.h>

#include "base/log.h"
#include "device/fs.h"

enum { HIGH_PRIORITY, REQUESTS, QUEUES };

#define HIGH_PRIORITY_SIZE 128
#define REQUESTS_SIZE 1024
#define REQUESTS_MAX 64u
#define BATCH 256u

/* struct virtio_fs_config, §5.11.4; little-endian */
struct config {
        uint8_t tag[VIRTIO_FS_TAG_MAX];
        uint32_t num_request_queues;
};

struct request {
        uv_work_t work;
        struct virtio_fs *dev;
        struct request *next; /* in the done list */
        bool completed;       /* pushed, or forgotten; dev may be gone */
        unsigned queue;
        uint32_t written;
        struct virtio_chain chain;
        struct iovec iov[]; /* of the chain */
};

struct virtio_fs {
        struct virtio virtio;
        struct fs_server *server;
        char tag[VIRTIO_FS_TAG_MAX + 1];
        struct virtio_iov storage;

        unsigned in_flight; /* from submit to complete; with the device's lock */
        pthread_mutex_t lock;
        pthread_cond_t finished;
        unsigned running; /* with the workers */
        struct request *done;
};

static struct virtio_fs *from_virtio(struct virtio *v)
{
        return container_of(v, struct virtio_fs, virtio);
}

static void work(uv_work_t *uv)
{
        struct request *rq = container_of(uv, struct request, work);
        struct virtio_fs *dev = rq->dev;

        rq->written = fs_server_handle(dev->server, rq->chain.out, rq->chain.out_count, rq->chain.in, rq->chain.in_count);
        pthread_mutex_lock(&dev->lock);
        rq->next = dev->done;
        dev->done = rq;
        dev->running--;
        pthread_cond_signal(&dev->finished);
        pthread_mutex_unlock(&dev->lock);
}

/* Gives the guest what the workers are done with; the device's lock is held. */
static void complete_all(struct virtio_fs *dev)
{
        struct virtio *v = &dev->virtio;
        bool pushed[QUEUES] = { false };
        bool was_full = dev->in_flight >= REQUESTS_MAX;
        struct request *list;

        pthread_mutex_lock(&dev->lock);
        list = steal_ptr(dev->done);
        pthread_mutex_unlock(&dev->lock);
        while (list) {
                struct request *rq = list;

                list = rq->next;
                if (!v->resetting) {
                        virtqueue_push(v, rq->queue, &rq->chain, rq->written);
                        pushed[rq->queue] = true;
                }
                rq->completed = true;
                dev->in_flight--;
                virtio_release(v);
        }
        for (unsigned i = 0; i < QUEUES; i++) {
                if (pushed[i])
                        virtqueue_interrupt(v, i);
        }
        if (was_full && dev->in_flight < REQUESTS_MAX) {
                virtio_wake(v, REQUESTS);
                virtio_wake(v, HIGH_PRIORITY);
        }
}

static void after_work(uv_work_t *uv, int status)
{
        struct request *rq = container_of(uv, struct request, work);

        if (!rq->completed) {
                struct virtio_fs *dev = rq->dev;

                virtio_lock(&dev->virtio);
                complete_all(dev);
                virtio_unlock(&dev->virtio);
        }
        free(rq);
}

/* Waits for the workers, and for nothing else. */
static void wait_for_workers(struct virtio_fs *dev)
{
        pthread_mutex_lock(&dev->lock);
        while (dev->running)
                pthread_cond_wait(&dev->finished, &dev->lock);
        pthread_mutex_unlock(&dev->lock);
}

static bool is_forget(const struct virtio_chain *chain)
{
        struct fuse_in_header header;

        return iov_to_buf(chain->out, chain->out_count, 0, &header, sizeof(header)) == sizeof(header) &&
               (header.opcode == FUSE_FORGET || header.opcode == FUSE_BATCH_FORGET);
}

/* Hands a chain to a worker; false when there is no memory for it. */
static bool submit(struct virtio_fs *dev, unsigned queue, const struct virtio_chain *chain)
{
        unsigned count = chain->out_count + chain->in_count;
        struct request *rq = calloc(1, sizeof(*rq) + count * sizeof(struct iovec));

        if (!rq)
                return false;
        rq->dev = dev;
        rq->queue = queue;
        rq->chain = *chain;
        memcpy(rq->iov, chain->out, chain->out_count * sizeof(struct iovec));
        memcpy(rq->iov + chain->out_count, chain->in, chain->in_count * sizeof(struct iovec));
        rq->chain.out = rq->iov;
        rq->chain.in = rq->iov + chain->out_count;
        pthread_mutex_lock(&dev->lock);
        dev->running++;
        pthread_mutex_unlock(&dev->lock);
        if (uv_queue_work(dev->virtio.host->loop, &rq->work, work, after_work) < 0) {
                pthread_mutex_lock(&dev->lock);
                dev->running--;
                pthread_mutex_unlock(&dev->lock);
                free(rq);
                return false;
        }
        dev->in_flight++;
        virtio_hold(&dev->virtio);
        return true;
}

static void notify(struct virtio *v, unsigned queue)
{
        struct virtio_fs *dev = from_virtio(v);
        unsigned budget = BATCH;
        struct virtio_chain chain;
        bool pushed = false;

        for (; budget; budget--) {
                if (dev->in_flight >= REQUESTS_MAX || virtqueue_pop(v, queue, &dev->storage, &chain) <= 0)
                        break;
                if (is_forget(&chain)) {
                        fs_server_handle(dev->server, chain.out, chain.out_count, NULL, 0);
                } else if (submit(dev, queue, &chain)) {
                        continue;
                } else {
                        /* §5.11.6: an answer of no bytes is what the driver makes an I/O error of. */
                        log_guest("%s: no memory for a request", v->pci.dev.id);
                }
                virtqueue_push(v, queue, &chain, 0);
                pushed = true;
        }
        if (pushed)
                virtqueue_interrupt(v, queue);
        if (!budget)
                virtio_wake(v, queue);
}

static void config_read(struct virtio *v, uint32_t offset, void *to, unsigned size_bytes)
{
        struct config config = { .num_request_queues = htole32(1) };

        memcpy(config.tag, from_virtio(v)->tag, sizeof(config.tag));
        memcpy(to, (uint8_t *)&config + offset, size_bytes);
}

/* The client starts with INIT, which forgets what it knew; here it would wait for the workers with the lock held. */
static void reset(struct virtio *v)
{
}

static void quiesce(struct virtio *v)
{
        struct virtio_fs *dev = from_virtio(v);

        wait_for_workers(dev);
        virtio_lock(v);
        complete_all(dev);
        virtio_unlock(v);
}

static void save(struct virtio *v, struct writer *out)
{
        fs_server_save(from_virtio(v)->server, out);
}

static int load(struct virtio *v, uint16_t version, struct cursor *in, struct err *err)
{
        if (version != 1)
                return err_set(err, -EBADMSG, "a shared directory's record has version %u, this is 1", version);
        return fs_server_load(from_virtio(v)->server, in, err);
}

static void virtio_fs_free(struct virtio *v)
{
        struct virtio_fs *dev = from_virtio(v);

        quiesce(v);
        virtio_done(v);
        fs_server_free(dev->server);
        pthread_mutex_destroy(&dev->lock);
        pthread_cond_destroy(&dev->finished);
        free(dev);
}

static const struct virtio_ops virtio_fs_ops = {
        .name = "virtio-fs",
        .id = VIRTIO_FS,
        .class_code = 0x018000,
        .config_bytes = sizeof(struct config),
        .config_read = config_read,
        .notify = notify,
        .reset = reset,
        .quiesce = quiesce,
        .version = 1,
        .save = save,
        .load = load,
        .free = virtio_fs_free,
};

int virtio_fs_directory(const struct virtio *v)
{
        return fs_server_root(container_of(v, struct virtio_fs, virtio)->server);
}

int virtio_fs_new(struct device_host *host, struct pci_bus *bus, const char *id, const struct virtio_fs_config *config,
                  struct virtio **made, struct err *err)
{
        static const uint16_t sizes[QUEUES] = { HIGH_PRIORITY_SIZE, REQUESTS_SIZE };
        size_t tag_bytes = strlen(config->tag);
        struct fs_server *server;
        struct virtio_fs *dev;
        int r;

        if (!tag_bytes || tag_bytes > VIRTIO_FS_TAG_MAX)
                return err_set(err, -EINVAL, "tag '%s' of shared directory '%s' has %zu bytes, 1 to %d are possible", config->tag,
                               config->dir, tag_bytes, VIRTIO_FS_TAG_MAX);
        r = fs_server_new(config->dir, config->readonly, &server, err);
        if (r < 0)
                return r;
        dev = calloc(1, sizeof(*dev));
        if (!dev) {
                fs_server_free(server);
                return err_nomem(err);
        }
        dev->server = server;
        fs_server_divide(server, config->shares);
        memcpy(dev->tag, config->tag, tag_bytes);
        pthread_mutex_init(&dev->lock, NULL);
        pthread_cond_init(&dev->finished, NULL);
        r = virtio_init(&dev->virtio, host, bus, &virtio_fs_ops, id, sizes, QUEUES, err);
        if (r < 0) {
                virtio_done(&dev->virtio);
                fs_server_free(server);
                free(dev);
                return r;
        }
        *made = &dev->virtio;
        return 0;
}
