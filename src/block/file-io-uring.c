/*
 * File I/O with io_uring: one ring a file, no thread of our own.
 *
 *   submit ─▶ submission queue ─kick▶ kernel ─▶ completion queue ─▶ (eventfd wakes the loop) reap ─▶ done
 *
 * A reap takes all that is there, starts what follows (the rest of a short read, the next piece of zeroes), then calls the
 * listener once. The kernel signals the eventfd for each completion, also for those that were reaped already; a wake-up that
 * finds nothing costs one read. When the submission queue is full it is submitted at once, and what finds no room then waits
 * in a list for the next reap.
 */
#include "block/file-io.h"

#include <errno.h>
#include <liburing.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>

#define RING_ENTRIES 256
#define REAP_BATCH 64

struct uring {
        struct file_io io;
        struct io_uring ring;
        int event;
        uv_poll_t poll;
        unsigned unsubmitted;
        bool reaping;
        struct block_request *waiting, **last; /* for room in the submission queue */
};

static struct uring *to_uring(struct file_io *io)
{
        return container_of(io, struct uring, io);
}

static void uring_kick(struct file_io *io)
{
        struct uring *u = to_uring(io);

        while (u->unsubmitted) {
                int r = io_uring_submit(&u->ring);

                if (r > 0) {
                        u->unsubmitted -= MIN(u->unsubmitted, (unsigned)r);
                        continue;
                }
                /* Completions are in the way, or memory is short: the next reap tries again, and it comes soon. */
                if (r != -EINTR) {
                        (void)!eventfd_write(u->event, 1);
                        return;
                }
        }
}

static struct io_uring_sqe *get_sqe(struct uring *u)
{
        struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

        if (!sqe) {
                uring_kick(&u->io);
                sqe = io_uring_get_sqe(&u->ring);
        }
        return sqe;
}

/* Puts the request's next system call into the submission queue; false when that is full. */
static bool put(struct uring *u, struct block_request *req)
{
        struct file_io_step step = file_io_step(req);
        struct io_uring_sqe *sqe = get_sqe(u);

        if (!sqe)
                return false;
        switch (step.call) {
        case FILE_IO_READV:
                io_uring_prep_readv2(sqe, u->io.fd, step.iov, step.iov_count, step.offset_bytes, step.flags);
                break;
        case FILE_IO_WRITEV:
                io_uring_prep_writev2(sqe, u->io.fd, step.iov, step.iov_count, step.offset_bytes, step.flags);
                break;
        case FILE_IO_SYNC:
                io_uring_prep_fsync(sqe, u->io.fd, IORING_FSYNC_DATASYNC);
                break;
        case FILE_IO_FALLOCATE:
                io_uring_prep_fallocate(sqe, u->io.fd, step.flags, (off_t)step.offset_bytes, (off_t)step.size_bytes);
                break;
        }
        io_uring_sqe_set_data(sqe, req);
        u->unsubmitted++;
        return true;
}

static void start(struct uring *u, struct block_request *req)
{
        if (!u->waiting && put(u, req))
                return;
        req->next = NULL;
        *u->last = req;
        u->last = &req->next;
        (void)!eventfd_write(u->event, 1);
}

static void uring_submit(struct file_io *io, struct block_request *req)
{
        file_io_begin(req);
        start(to_uring(io), req);
}

static void start_waiting(struct uring *u)
{
        while (u->waiting) {
                struct block_request *req = u->waiting;
                struct block_request *next = req->next;

                if (!put(u, req))
                        return;
                u->waiting = next;
                if (!next)
                        u->last = &u->waiting;
        }
}

static unsigned reap_batch(struct uring *u)
{
        struct io_uring_cqe *cqe[REAP_BATCH];
        struct block_request *req[REAP_BATCH];
        int result[REAP_BATCH];
        unsigned n = io_uring_peek_batch_cqe(&u->ring, cqe, REAP_BATCH);

        /* Copied first: done may submit, and the ring's entries are the kernel's again then. */
        for (unsigned i = 0; i < n; i++) {
                req[i] = io_uring_cqe_get_data(cqe[i]);
                result[i] = cqe[i]->res;
        }
        io_uring_cq_advance(&u->ring, n);
        for (unsigned i = 0; i < n; i++) {
                if (file_io_result(req[i], result[i]))
                        block_complete(u->io.disk, req[i], req[i]->result);
                else
                        start(u, req[i]);
        }
        return n;
}

static bool reap_all(struct uring *u)
{
        bool any = false;

        if (u->reaping)
                return false;
        u->reaping = true;
        while (reap_batch(u))
                any = true;
        start_waiting(u);
        if (any && u->io.disk->listener)
                u->io.disk->listener(u->io.disk->listener_ctx);
        uring_kick(&u->io);
        u->reaping = false;
        return any;
}

static void uring_reap(struct file_io *io)
{
        (void)reap_all(to_uring(io));
}

static void uring_wait(struct file_io *io)
{
        struct uring *u = to_uring(io);
        struct io_uring_cqe *cqe;

        uring_kick(io);
        while (!reap_all(u) && !u->reaping) {
                if (!u->unsubmitted && !u->waiting)
                        (void)io_uring_wait_cqe(&u->ring, &cqe);
        }
}

static void woken(uv_poll_t *poll, int status, int events)
{
        struct uring *u = poll->data;
        eventfd_t count;

        (void)eventfd_read(u->event, &count);
        uring_reap(&u->io);
}

static void poll_closed(uv_handle_t *handle)
{
        free(handle->data);
}

static void uring_free(struct file_io *io)
{
        struct uring *u = to_uring(io);

        uv_close((uv_handle_t *)&u->poll, poll_closed);
        io_uring_queue_exit(&u->ring);
        close(u->event);
}

static const struct file_io_ops uring_ops = {
        .name = "io_uring",
        .submit = uring_submit,
        .kick = uring_kick,
        .reap = uring_reap,
        .wait = uring_wait,
        .free = uring_free,
};

/* All that a disk asks of its ring. */
static const int needed[] = { IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC, IORING_OP_FALLOCATE };

/*
 * Operations of a ring pass by the process's list of system calls. So the ring itself is told, for good, that it does these
 * and no others: who takes the process over cannot open or connect through it (io_uring_register(2),
 * IORING_REGISTER_RESTRICTIONS).
 */
static int restrict_ring(struct io_uring *ring)
{
        struct io_uring_restriction allowed[ARRAY_SIZE(needed)] = { 0 };

        for (unsigned i = 0; i < ARRAY_SIZE(needed); i++) {
                allowed[i].opcode = IORING_RESTRICTION_SQE_OP;
                allowed[i].sqe_op = (uint8_t)needed[i];
        }
        /* By hand: liburing 2.3 of Debian 12 declares these two and does not export them. */
        if (syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_RESTRICTIONS, allowed, ARRAY_SIZE(allowed)) < 0 ||
            syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
                return -errno;
        return 0;
}

/* A kernel, container or seccomp filter may refuse the ring or know too few operations. */
static int open_ring(struct uring *u)
{
        struct io_uring_probe *probe;
        int r = io_uring_queue_init(RING_ENTRIES, &u->ring, IORING_SETUP_R_DISABLED);

        if (r < 0)
                return r;
        probe = io_uring_get_probe_ring(&u->ring);
        for (unsigned i = 0; probe && r == 0 && i < ARRAY_SIZE(needed); i++) {
                if (!io_uring_opcode_supported(probe, needed[i]))
                        r = -EOPNOTSUPP;
        }
        if (!probe || !(u->ring.features & IORING_FEAT_NODROP))
                r = -EOPNOTSUPP;
        io_uring_free_probe(probe);
        u->event = r == 0 ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : -1;
        if (r == 0 && u->event < 0)
                r = -errno;
        if (r == 0)
                r = io_uring_register_eventfd(&u->ring, u->event);
        if (r == 0)
                r = restrict_ring(&u->ring);
        if (r < 0) {
                if (u->event >= 0)
                        close(u->event);
                io_uring_queue_exit(&u->ring);
        }
        return r;
}

int file_io_uring_new(uv_loop_t *loop, int fd, struct block *disk, struct file_io **io, struct err *err)
{
        struct uring *u = calloc(1, sizeof(*u));
        int r;

        if (!u)
                return err_nomem(err);
        u->io = (struct file_io){ .ops = &uring_ops, .disk = disk, .fd = fd };
        u->last = &u->waiting;
        r = open_ring(u);
        if (r < 0) {
                free(u);
                return err_errno(err, r, "cannot set up io_uring");
        }
        r = uv_poll_init(loop, &u->poll, u->event);
        if (r < 0) {
                io_uring_queue_exit(&u->ring);
                close(u->event);
                free(u);
                return err_set(err, r, "cannot poll io_uring: %s", uv_strerror(r));
        }
        u->poll.data = u;
        uv_poll_start(&u->poll, UV_READABLE, woken);
        *io = &u->io;
        return 0;
}
