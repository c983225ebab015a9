#include "container/channel.h"

#include <errno.h>
#include <sys/socket.h>

int channel_make(int ends[2], struct err *err)
{
        return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0 ? err_errno(err, -errno, "cannot make a socket pair") : 0;
}

static int send_message(int channel, const struct message *message, int fd)
{
        union {
                struct cmsghdr header;
                char room[CMSG_SPACE(sizeof(int))];
        } control = { 0 };
        struct iovec iov = { (void *)message, offsetof(struct message, text) + strlen(message->text) + 1 };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
        ssize_t n;

        if (fd >= 0) {
                struct cmsghdr *header;

                msg.msg_control = &control;
                msg.msg_controllen = sizeof(control.room);
                header = CMSG_FIRSTHDR(&msg);
                header->cmsg_level = SOL_SOCKET;
                header->cmsg_type = SCM_RIGHTS;
                header->cmsg_len = CMSG_LEN(sizeof(int));
                memcpy(CMSG_DATA(header), &fd, sizeof(int));
        }
        do
                n = sendmsg(channel, &msg, MSG_NOSIGNAL);
        while (n < 0 && errno == EINTR);
        return n < 0 ? -errno : 0;
}

int channel_send(int channel, enum message_kind kind, int number, int fd, struct err *err)
{
        struct message message = { .kind = kind, .number = number };
        int r;

        message.text[0] = 0;
        r = send_message(channel, &message, fd);
        return r < 0 ? err_errno(err, r, "cannot talk to the container's process") : 0;
}

void channel_send_error(int channel, const struct err *err)
{
        struct message message = { .kind = MESSAGE_ERROR, .number = err->code };

        memcpy(message.text, err->text, sizeof(message.text));
        (void)send_message(channel, &message, -1);
}

int channel_receive(int channel, struct message *message, int *fd, struct err *err)
{
        union {
                struct cmsghdr header;
                char room[CMSG_SPACE(sizeof(int))];
        } control;
        struct iovec iov = { message, sizeof(*message) };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control.room) };
        struct cmsghdr *header;
        ssize_t n;

        *fd = -1;
        do
                n = recvmsg(channel, &msg, MSG_CMSG_CLOEXEC);
        while (n < 0 && errno == EINTR);
        if (n < 0 && errno != ECONNRESET)
                return err_errno(err, -errno, "cannot hear from the container's process");
        if (n <= 0)
                return err_set(err, -EPIPE, "the container's process ended before it was ready");
        header = CMSG_FIRSTHDR(&msg);
        if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS && header->cmsg_len == CMSG_LEN(sizeof(int)))
                memcpy(fd, CMSG_DATA(header), sizeof(int));
        if ((size_t)n <= offsetof(struct message, text)) {
                closep(fd);
                *fd = -1;
                return err_set(err, -EBADMSG, "the container's process sent %zd bytes that are no message", n);
        }
        ((char *)message)[n - 1] = 0;
        if (message->kind != MESSAGE_ERROR)
                return 0;
        closep(fd);
        *fd = -1;
        return err_set(err, message->number < 0 ? message->number : -EIO, "%s", message->text);
}

int channel_expect(int channel, enum message_kind kind, int *number, struct err *err)
{
        struct message message = { 0 };
        int fd, r = channel_receive(channel, &message, &fd, err);

        if (r < 0)
                return r;
        closep(&fd);
        if (message.kind != kind)
                return err_set(err, -EBADMSG, "message %d came instead of %d", message.kind, kind);
        if (number)
                *number = message.number;
        return 0;
}
