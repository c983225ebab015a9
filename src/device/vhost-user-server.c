/*
 * A vhost-user back end: one front end at a time, its messages and their answers. QEMU's docs/interop/vhost-user.
 *
 *   listening ──comes──▶ connected ──its socket ends, or it breaks a rule──▶ listening: everything as if it had never come
 *
 *   message: header (12 bytes), payload (bounded), descriptors with the first of it ─▶ table of requests ─▶ an answer of its own, or an
 *            acknowledgement when that is asked for
 *
 * A request that fails is told by the acknowledgement; where none is asked for the front end is left, since it would not know otherwise. Answers are
 * small: a front end that does not take them until its socket is full is left as well.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/socket.h>

#include "base/log.h"
#include "device/vhost-user-internal.h"
#include "device/vhost-user-wire.h"
#include "device/vhost-user.h"
#include "device/virtio-blk.h"

#define PAYLOAD_MAX 512u
#define QUEUE_SIZE VIRTIO_QUEUE_SIZE_MAX
#define MESSAGES 32u /* at one go */
#define PROTOCOL_BIT(n) (UINT64_C(1) << VHOST_USER_PROTOCOL_##n)
#define PROTOCOL_FEATURES                                                                                                      \
        (PROTOCOL_BIT(MQ) | PROTOCOL_BIT(REPLY_ACK) | PROTOCOL_BIT(BACKEND_REQ) | PROTOCOL_BIT(CONFIG) | PROTOCOL_BIT(INFLIGHT_SHMFD) | \
         PROTOCOL_BIT(RESET_DEVICE) | PROTOCOL_BIT(CONFIGURE_MEM_SLOTS))
#define F_PROTOCOL (UINT64_C(1) << VHOST_USER_F_PROTOCOL_FEATURES)

struct message {
        union {
                struct vhost_user_header head;
                uint8_t bytes[sizeof(struct vhost_user_header) + PAYLOAD_MAX];
        };
        size_t got; /* of bytes */
        int fd[VHOST_USER_FDS_MAX];
        unsigned fds;
        /* The answer. */
        uint8_t reply[PAYLOAD_MAX];
        size_t reply_bytes;
        int reply_fd;
        bool replied;
};

struct vhost_user_server {
        struct vhost_user_config config;
        uv_loop_t *loop;
        struct guest_memory mem;
        struct device_host host;
        struct device *dev;
        struct virtio *v;
        struct vhost_user_watch *listening, *socket;
        int backend_fd; /* for what we have to say; -1: nothing */
        uint64_t protocol;
        struct message message;
};

struct request {
        const char *name;
        uint32_t size_bytes; /* of its payload, at least */
        uint64_t needs;      /* of PROTOCOL_FEATURES */
        int (*handle)(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err);
};

/* ---- the other side ---- */

static void close_fds(struct message *message)
{
        for (unsigned i = 0; i < message->fds; i++)
                closep(&message->fd[i]);
        message->fds = 0;
}

static void begin_message(struct message *message)
{
        close_fds(message);
        message->got = 0;
        message->reply_bytes = 0;
        message->reply_fd = -1;
        message->replied = false;
}

static void leave(struct vhost_user_server *server, const struct err *why)
{
        if (!server->socket)
                return;
        vhost_user_forget(server->v);
        begin_message(&server->message);
        vhost_user_watch_free(server->socket);
        server->socket = NULL;
        closep(&server->backend_fd);
        server->backend_fd = -1;
        server->protocol = 0;
        if (why && server->config.trouble)
                server->config.trouble(server->config.ctx, why);
        if (server->config.left)
                server->config.left(server->config.ctx);
}

/* All of it at once, or not at all. */
static int send_all(int socket_fd, const void *bytes, size_t size_bytes, int fd)
{
        struct iovec iov = { (void *)bytes, size_bytes };
        union {
                struct cmsghdr head;
                char room[CMSG_SPACE(sizeof(int))];
        } control = { 0 };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
        ssize_t n;

        if (fd >= 0) {
                msg.msg_control = &control;
                msg.msg_controllen = sizeof(control);
                control.head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
                memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
        }
        do
                n = sendmsg(socket_fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        while (n < 0 && errno == EINTR);
        return n == (ssize_t)size_bytes ? 0 : n < 0 ? -errno : -EAGAIN;
}

static int send_reply(struct vhost_user_server *server, struct message *message)
{
        uint8_t bytes[sizeof(struct vhost_user_header) + PAYLOAD_MAX];
        const struct vhost_user_header head = {
                .request = message->head.request, .flags = VHOST_USER_VERSION | VHOST_USER_F_REPLY, .size = (uint32_t)message->reply_bytes,
        };

        memcpy(bytes, &head, sizeof(head));
        memcpy(bytes + sizeof(head), message->reply, message->reply_bytes);
        return send_all(vhost_user_watch_fd(server->socket), bytes, sizeof(head) + message->reply_bytes, message->reply_fd);
}

static void reply(struct message *message, const void *bytes, size_t size_bytes)
{
        memcpy(message->reply, bytes, size_bytes);
        message->reply_bytes = size_bytes;
        message->replied = true;
}

static void reply_u64(struct message *message, uint64_t value)
{
        reply(message, &value, sizeof(value));
}

/* Structs come in the machine's own order, which is little-endian wherever this runs. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "messages are read as little-endian");

static int take_fd(struct message *message)
{
        return message->fds == 1 ? steal_fd(&message->fd[0]) : -1;
}

static int ring_index(struct vhost_user_server *server, uint64_t index, unsigned *queue, struct err *err)
{
        *queue = 0;
        if (index >= server->v->queues)
                return err_set(err, -EINVAL, "ring %" PRIu64 " of %u", index, server->v->queues);
        *queue = (unsigned)index;
        return 0;
}

/* ---- requests ---- */

static int get_features(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        uint64_t packed = UINT64_C(1) << VIRTIO_F_RING_PACKED; /* what is in flight is recorded for split rings only */

        reply_u64(message, (virtio_offered(server->v) & ~packed) | F_PROTOCOL);
        return 0;
}

static int set_features(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        uint64_t features = cursor_le64(in);

        return vhost_user_set_features(server->v, features & ~F_PROTOCOL, !(features & F_PROTOCOL), err);
}

static int get_protocol_features(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        reply_u64(message, PROTOCOL_FEATURES);
        return 0;
}

static int set_protocol_features(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        uint64_t features = cursor_le64(in);

        if (features & ~PROTOCOL_FEATURES)
                return err_set(err, -EINVAL, "protocol features 0x%" PRIx64 " were not offered", features & ~PROTOCOL_FEATURES);
        server->protocol = features;
        return 0;
}

static int nothing(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        return 0;
}

static int get_queue_num(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        reply_u64(message, server->v->queues);
        return 0;
}

static int get_max_mem_slots(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        reply_u64(message, VHOST_USER_REGIONS_MAX);
        return 0;
}

static void get_region(struct cursor *in, struct vhost_user_region *region)
{
        region->gpa = cursor_le64(in);
        region->size_bytes = cursor_le64(in);
        region->user = cursor_le64(in);
        region->offset = cursor_le64(in);
}

static int set_mem_table(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        struct vhost_user_region region[VHOST_USER_FDS_MAX];
        uint32_t count = cursor_le32(in);

        (void)cursor_le32(in);
        if (count != message->fds)
                return err_set(err, -EINVAL, "%" PRIu32 " pieces of memory with %u descriptors", count, message->fds);
        for (unsigned i = 0; i < count; i++)
                get_region(in, &region[i]);
        if (in->bad)
                return err_set(err, -EBADMSG, "memory of %" PRIu32 " pieces is cut", count);
        return vhost_user_set_memory(server->v, region, message->fd, count, err);
}

static int add_mem_reg(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        struct vhost_user_region region;

        (void)cursor_le64(in);
        get_region(in, &region);
        if (message->fds != 1)
                return err_set(err, -EINVAL, "a piece of memory with %u descriptors", message->fds);
        return vhost_user_add_memory(server->v, &region, message->fd[0], err);
}

static int rem_mem_reg(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        struct vhost_user_region region;

        (void)cursor_le64(in);
        get_region(in, &region);
        return vhost_user_remove_memory(server->v, &region, err);
}

/* struct { u32 index; u32 number } */
static int ring_state(struct vhost_user_server *server, struct cursor *in, unsigned *queue, uint32_t *number, struct err *err)
{
        int r = ring_index(server, cursor_le32(in), queue, err);

        *number = cursor_le32(in);
        return r;
}

static int set_vring_num(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        unsigned queue;
        uint32_t number;
        int r = ring_state(server, in, &queue, &number, err);

        return r < 0 ? r : vhost_user_set_size(server->v, queue, number, err);
}

static int set_vring_base(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        unsigned queue;
        uint32_t number;
        int r = ring_state(server, in, &queue, &number, err);

        return r < 0 ? r : vhost_user_set_base(server->v, queue, number, err);
}

static int get_vring_base(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        unsigned queue;
        uint32_t number;
        int r = ring_state(server, in, &queue, &number, err);

        if (r == 0)
                r = vhost_user_get_base(server->v, queue, &number, err);
        if (r == 0)
                reply(message, (const uint32_t[2]){ queue, number }, 8);
        return r;
}

static int set_vring_enable(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        unsigned queue;
        uint32_t number;
        int r = ring_state(server, in, &queue, &number, err);

        if (r == 0 && number > 1)
                r = err_set(err, -EINVAL, "ring %u: enable %" PRIu32, queue, number);
        return r < 0 ? r : vhost_user_enable(server->v, queue, number, err);
}

/* The log of pages that are written (flag 0) is not offered. */
static int set_vring_addr(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        struct vhost_user_ring_addresses at;
        unsigned queue;
        uint32_t flags;
        int r = ring_state(server, in, &queue, &flags, err);

        at.desc = cursor_le64(in);
        at.used = cursor_le64(in);
        at.avail = cursor_le64(in);
        if (r == 0 && flags)
                r = err_set(err, -EOPNOTSUPP, "ring %u: flags 0x%" PRIx32 " of addresses", queue, flags);
        return r < 0 ? r : vhost_user_set_addresses(server->v, queue, &at, err);
}

static int set_eventfd(struct vhost_user_server *server, struct message *message, struct cursor *in, enum vhost_user_eventfd which, struct err *err)
{
        uint64_t value = cursor_le64(in);
        _cleanup_close_ int fd = take_fd(message);
        unsigned queue;
        int r = ring_index(server, value & VHOST_USER_VRING_INDEX, &queue, err);

        if (r == 0 && !(value & VHOST_USER_VRING_NO_FD) != (fd >= 0))
                r = err_set(err, -EINVAL, "ring %u: an eventfd is announced and not there, or the other way", queue);
        return r < 0 ? r : vhost_user_set_eventfd(server->v, queue, which, &fd, err);
}

static int set_vring_kick(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        return set_eventfd(server, message, in, VHOST_USER_KICK, err);
}

static int set_vring_call(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        return set_eventfd(server, message, in, VHOST_USER_CALL, err);
}

static int set_vring_err(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        return set_eventfd(server, message, in, VHOST_USER_ERR, err);
}

static int set_backend_req_fd(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        int fd = take_fd(message);

        if (fd < 0)
                return err_set(err, -EINVAL, "no descriptor came with it");
        closep(&server->backend_fd);
        server->backend_fd = fd;
        return 0;
}

/* What lies behind our configuration reads as zeroes: front ends have larger ones. */
static int get_config(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        struct virtio *v = server->v;
        uint8_t out[12 + VHOST_USER_CONFIG_MAX] = { 0 };
        uint32_t head[3] = { cursor_le32(in), cursor_le32(in), cursor_le32(in) }; /* offset, size, flags */

        if (!head[1] || head[1] > VHOST_USER_CONFIG_MAX || head[0] > VHOST_USER_CONFIG_MAX - head[1])
                return err_set(err, -EINVAL, "%" PRIu32 " bytes of the configuration at %" PRIu32, head[1], head[0]);
        memcpy(out, head, sizeof(head));
        if (head[0] < v->ops->config_bytes)
                v->ops->config_read(v, head[0], out + sizeof(head), MIN(head[1], v->ops->config_bytes - head[0]));
        reply(message, out, sizeof(head) + head[1]);
        return 0;
}

static int set_config(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        struct virtio *v = server->v;
        uint32_t offset = cursor_le32(in), size_bytes = cursor_le32(in);
        const uint8_t *bytes;

        (void)cursor_le32(in);
        if (!size_bytes || size_bytes > VHOST_USER_CONFIG_MAX || offset > v->ops->config_bytes || size_bytes > v->ops->config_bytes - offset)
                return err_set(err, -EINVAL, "%" PRIu32 " bytes of the configuration at %" PRIu32, size_bytes, offset);
        bytes = cursor_take(in, size_bytes);
        if (!bytes)
                return err_set(err, -EBADMSG, "a configuration that is cut");
        for (uint32_t i = 0; i < size_bytes; i++)
                v->ops->config_write(v, offset + i, bytes + i, 1);
        return 0;
}

struct inflight_words {
        uint64_t size_bytes, offset;
        uint16_t queues, entries;
};

static int inflight_words(struct cursor *in, struct inflight_words *words, struct err *err)
{
        words->size_bytes = cursor_le64(in);
        words->offset = cursor_le64(in);
        words->queues = cursor_le16(in);
        words->entries = cursor_le16(in);
        if (!words->queues || words->queues > VIRTIO_QUEUES_MAX || !words->entries || words->entries > VIRTIO_QUEUE_SIZE_MAX)
                return err_set(err, -EINVAL, "what is in flight in %u rings of %u", words->queues, words->entries);
        return 0;
}

static int get_inflight_fd(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        struct inflight_words words;
        uint8_t out[24] = { 0 };
        uint64_t size_bytes;
        int r = inflight_words(in, &words, err);

        if (r == 0)
                r = vhost_user_new_inflight(words.queues, words.entries, &message->reply_fd, err);
        if (r < 0)
                return r;
        size_bytes = vhost_user_inflight_bytes(words.queues, words.entries);
        memcpy(out, &size_bytes, sizeof(size_bytes));
        memcpy(out + 16, &words.queues, sizeof(words.queues));
        memcpy(out + 18, &words.entries, sizeof(words.entries));
        /* As long as what was asked: some have it padded. */
        reply(message, out, MIN(sizeof(out), (size_t)message->head.size));
        return 0;
}

static int set_inflight_fd(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        struct inflight_words words;
        int r = inflight_words(in, &words, err);

        if (r == 0 && message->fds != 1)
                r = err_set(err, -EINVAL, "a record of what is in flight with %u descriptors", message->fds);
        return r < 0 ? r
                     : vhost_user_set_inflight(server->v, message->fd[0], words.offset, words.size_bytes, words.queues, words.entries, err);
}

static int reset_device(struct vhost_user_server *server, struct message *message, struct cursor *in, struct err *err)
{
        vhost_user_forget(server->v);
        return 0;
}

/* RESET_OWNER is deprecated, and older front ends send it: nothing is to be done. */
static const struct request requests[VHOST_USER_REQUESTS] = {
        [VHOST_USER_GET_FEATURES] = { "GET_FEATURES", 0, 0, get_features },
        [VHOST_USER_SET_FEATURES] = { "SET_FEATURES", 8, 0, set_features },
        [VHOST_USER_SET_OWNER] = { "SET_OWNER", 0, 0, nothing },
        [VHOST_USER_RESET_OWNER] = { "RESET_OWNER", 0, 0, nothing },
        [VHOST_USER_SET_MEM_TABLE] = { "SET_MEM_TABLE", 8, 0, set_mem_table },
        [VHOST_USER_SET_VRING_NUM] = { "SET_VRING_NUM", 8, 0, set_vring_num },
        [VHOST_USER_SET_VRING_ADDR] = { "SET_VRING_ADDR", 40, 0, set_vring_addr },
        [VHOST_USER_SET_VRING_BASE] = { "SET_VRING_BASE", 8, 0, set_vring_base },
        [VHOST_USER_GET_VRING_BASE] = { "GET_VRING_BASE", 8, 0, get_vring_base },
        [VHOST_USER_SET_VRING_KICK] = { "SET_VRING_KICK", 8, 0, set_vring_kick },
        [VHOST_USER_SET_VRING_CALL] = { "SET_VRING_CALL", 8, 0, set_vring_call },
        [VHOST_USER_SET_VRING_ERR] = { "SET_VRING_ERR", 8, 0, set_vring_err },
        [VHOST_USER_GET_PROTOCOL_FEATURES] = { "GET_PROTOCOL_FEATURES", 0, 0, get_protocol_features },
        [VHOST_USER_SET_PROTOCOL_FEATURES] = { "SET_PROTOCOL_FEATURES", 8, 0, set_protocol_features },
        [VHOST_USER_GET_QUEUE_NUM] = { "GET_QUEUE_NUM", 0, PROTOCOL_BIT(MQ), get_queue_num },
        [VHOST_USER_SET_VRING_ENABLE] = { "SET_VRING_ENABLE", 8, 0, set_vring_enable },
        [VHOST_USER_SET_BACKEND_REQ_FD] = { "SET_BACKEND_REQ_FD", 0, PROTOCOL_BIT(BACKEND_REQ), set_backend_req_fd },
        [VHOST_USER_GET_CONFIG] = { "GET_CONFIG", 12, PROTOCOL_BIT(CONFIG), get_config },
        [VHOST_USER_SET_CONFIG] = { "SET_CONFIG", 12, PROTOCOL_BIT(CONFIG), set_config },
        [VHOST_USER_GET_INFLIGHT_FD] = { "GET_INFLIGHT_FD", 20, PROTOCOL_BIT(INFLIGHT_SHMFD), get_inflight_fd },
        [VHOST_USER_SET_INFLIGHT_FD] = { "SET_INFLIGHT_FD", 20, PROTOCOL_BIT(INFLIGHT_SHMFD), set_inflight_fd },
        [VHOST_USER_RESET_DEVICE] = { "RESET_DEVICE", 0, PROTOCOL_BIT(RESET_DEVICE), reset_device },
        [VHOST_USER_GET_MAX_MEM_SLOTS] = { "GET_MAX_MEM_SLOTS", 0, PROTOCOL_BIT(CONFIGURE_MEM_SLOTS), get_max_mem_slots },
        [VHOST_USER_ADD_MEM_REG] = { "ADD_MEM_REG", 40, PROTOCOL_BIT(CONFIGURE_MEM_SLOTS), add_mem_reg },
        [VHOST_USER_REM_MEM_REG] = { "REM_MEM_REG", 40, PROTOCOL_BIT(CONFIGURE_MEM_SLOTS), rem_mem_reg },
};

/* One that is complete. */
static int handle(struct vhost_user_server *server, struct message *message, struct err *err)
{
        uint32_t number = message->head.request;
        const struct request *request = number < VHOST_USER_REQUESTS && requests[number].handle ? &requests[number] : NULL;
        struct cursor in = cursor_from(message->bytes + sizeof(message->head), message->head.size);
        bool ack = message->head.flags & VHOST_USER_F_NEED_REPLY && server->protocol & PROTOCOL_BIT(REPLY_ACK);
        int r;

        if (!request || (request->needs & ~server->protocol))
                r = err_set(err, -EOPNOTSUPP, "request %" PRIu32 " is not offered", number);
        else if (message->head.size < request->size_bytes)
                r = err_set(err, -EBADMSG, "%s of %" PRIu32 " bytes, needs %" PRIu32, request->name, message->head.size, request->size_bytes);
        else
                r = request->handle(server, message, &in, err);
        if (r < 0 && request)
                r = err_wrap(err, r, "%s", request->name);
        if (r < 0 && (!ack || message->replied))
                return r;
        if (r < 0 && server->config.trouble)
                server->config.trouble(server->config.ctx, err);
        if (ack && !message->replied)
                reply_u64(message, r < 0);
        if (!message->replied)
                return 0;
        r = send_reply(server, message);
        closep(&message->reply_fd);
        message->reply_fd = -1;
        return r < 0 ? err_errno(err, r, "cannot answer") : 0;
}

/* ---- bytes ---- */

static void take_control(struct message *message, struct msghdr *msg)
{
        for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
                size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

                if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                        continue;
                for (size_t i = 0; i < count; i++) {
                        int fd;

                        memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
                        if (message->fds < VHOST_USER_FDS_MAX)
                                message->fd[message->fds++] = fd;
                        else
                                close(fd);
                }
        }
}

/* 1: the message is complete; 0: the rest comes later. */
static int receive(struct vhost_user_server *server, struct message *message, struct err *err)
{
        for (;;) {
                size_t want = sizeof(message->head);
                union {
                        struct cmsghdr head;
                        char room[CMSG_SPACE(VHOST_USER_FDS_MAX * sizeof(int))];
                } control;
                struct iovec iov;
                struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
                ssize_t n;

                if (message->got >= sizeof(message->head)) {
                        if ((message->head.flags & VHOST_USER_VERSION_MASK) != VHOST_USER_VERSION || message->head.size > PAYLOAD_MAX)
                                return err_set(err, -EPROTO, "a message with flags 0x%" PRIx32 " and %" PRIu32 " bytes", message->head.flags,
                                               message->head.size);
                        want += message->head.size;
                }
                if (message->got == want)
                        return 1;
                iov = (struct iovec){ message->bytes + message->got, want - message->got };
                n = recvmsg(vhost_user_watch_fd(server->socket), &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
                if (n < 0)
                        return errno == EAGAIN || errno == EINTR ? 0 : err_errno(err, -errno, "cannot read a message");
                take_control(message, &msg);
                if (n == 0)
                        return message->got ? err_set(err, -EPROTO, "its last message is cut") : -ENODATA;
                if (msg.msg_flags & MSG_CTRUNC)
                        return err_set(err, -EPROTO, "more descriptors than there may be");
                message->got += (size_t)n;
        }
}

static void readable(void *ctx, unsigned number)
{
        struct vhost_user_server *server = ctx;
        struct err err = ERR_INIT;
        int r = 0;

        for (unsigned n = 0; n < MESSAGES && server->socket; n++) {
                r = receive(server, &server->message, &err);
                if (r > 0)
                        r = handle(server, &server->message, &err) < 0 ? -EPROTO : 1;
                if (r <= 0)
                        break;
                begin_message(&server->message);
        }
        if (r < 0)
                leave(server, err.code ? &err : NULL);
}

static void comes(void *ctx, unsigned number)
{
        struct vhost_user_server *server = ctx;
        struct err err = ERR_INIT;
        int fd;

        if (server->socket)
                return;
        fd = accept4(vhost_user_watch_fd(server->listening), NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0 && vhost_user_server_connect(server, fd, &err) < 0 && server->config.trouble)
                server->config.trouble(server->config.ctx, &err);
}

int vhost_user_server_connect(struct vhost_user_server *server, int fd, struct err *err)
{
        int r = server->socket ? err_set(err, -EBUSY, "a front end is connected already")
                               : vhost_user_watch_new(server->loop, fd, readable, server, 0, &server->socket, err);

        if (r < 0)
                close(fd);
        return r;
}

int vhost_user_server_listen(struct vhost_user_server *server, int fd, struct err *err)
{
        int r = vhost_user_watch_new(server->loop, fd, comes, server, 0, &server->listening, err);

        if (r < 0)
                close(fd);
        return r;
}

/* ---- its life ---- */

/* The configuration is another one: told when the front end has a socket for that. */
static void tell_config(void *ctx)
{
        const struct vhost_user_header head = { .request = VHOST_USER_BACKEND_CONFIG_CHANGE, .flags = VHOST_USER_VERSION };
        struct vhost_user_server *server = ctx;

        if (server->backend_fd >= 0 && server->protocol & PROTOCOL_BIT(CONFIG))
                (void)send_all(server->backend_fd, &head, sizeof(head), -1);
}

int vhost_user_server_new(uv_loop_t *loop, const struct vhost_user_config *config, struct vhost_user_server **server, struct err *err)
{
        const struct virtio_blk_config blk = { .serial = config->serial, .queues = config->queues, .queue_size = QUEUE_SIZE };
        struct vhost_user_server *s = calloc(1, sizeof(*s));
        int r;

        if (!s)
                return err_nomem(err);
        s->config = *config;
        s->loop = loop;
        s->mem.fd = -1;
        s->host = (struct device_host){ .loop = loop, .mem = &s->mem };
        s->backend_fd = -1;
        begin_message(&s->message);
        r = virtio_blk_new(&s->host, NULL, "vhost-user-blk", config->disk, &blk, &s->dev, err);
        if (r < 0) {
                free(s);
                return r;
        }
        s->v = virtio_from_device(s->dev);
        vhost_user_on_config(s->v, tell_config, s);
        *server = s;
        return 0;
}

void vhost_user_server_stop(struct vhost_user_server *server)
{
        vhost_user_watch_free(server->listening);
        server->listening = NULL;
        leave(server, NULL);
}

void vhost_user_server_free(struct vhost_user_server *server)
{
        if (!server)
                return;
        server->config.left = NULL;
        vhost_user_server_stop(server);
        device_end(server->dev);
        guest_memory_done(&server->mem);
        free(server);
}

void vhost_user_server_batch(struct vhost_user_server *server)
{
        virtio_blk_batch(server->dev);
}

void vhost_user_server_resized(struct vhost_user_server *server)
{
        struct err err = ERR_INIT;

        if (virtio_blk_resized(server->dev, &err) < 0 && server->config.trouble)
                server->config.trouble(server->config.ctx, &err);
}
