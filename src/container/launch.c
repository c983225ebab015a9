#include "container/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

int write_pid_file(const char *path, pid_t pid, struct err *err)
{
        char temporary[PATH_MAX], text[16];
        int n = snprintf(text, sizeof(text), "%d", (int)pid);

        if (!path)
                return 0;
        if (snprintf(temporary, sizeof(temporary), "%s.new-%d", path, (int)getpid()) >= (int)sizeof(temporary))
                return err_set(err, -ENAMETOOLONG, "the path of the pid file is too long");
        _cleanup_close_ int fd = open(temporary, O_CREAT | O_TRUNC | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0644);
        if (fd < 0)
                return err_errno(err, -errno, "cannot write the pid file '%s'", path);
        if (write(fd, text, (size_t)n) != n || rename(temporary, path) < 0) {
                int r = err_errno(err, -errno, "cannot write the pid file '%s'", path);

                unlink(temporary);
                return r;
        }
        return 0;
}

/* config-linux.md, "The Container Process State": one message, its descriptors named by "fds". */
int send_listener(const struct seccomp_config *seccomp, pid_t pid, int fd, json_t *state, struct err *err)
{
        _cleanup_close_ int pid_fd = (int)syscall(SYS_pidfd_open, pid, 0);
        _cleanup_close_ int listener = pid_fd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pid_fd, fd, 0);
        _cleanup_close_ int to = -1;
        _cleanup_free_ char *text = NULL;
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        union {
                struct cmsghdr header;
                char room[CMSG_SPACE(sizeof(int))];
        } control = { 0 };
        struct msghdr msg = { .msg_control = &control, .msg_controllen = sizeof(control.room) };
        struct cmsghdr *header = CMSG_FIRSTHDR(&msg);
        struct iovec iov;
        json_t *message;

        if (!seccomp->listener_path)
                return err_set(err, -EINVAL, "linux.seccomp has SCMP_ACT_NOTIFY and no listenerPath");
        if (listener < 0)
                return err_errno(err, -errno, "cannot take the seccomp listener");
        message = json_pack("{s:s, s:[s], s:i, s:s, s:O}", "ociVersion", "1.2.0", "fds", "seccompFd", "pid", (int)pid, "metadata",
                            seccomp->listener_metadata ? seccomp->listener_metadata : "", "state", state);
        text = message ? json_dumps(message, JSON_COMPACT) : NULL;
        json_decref(message);
        if (!text)
                return err_nomem(err);
        if (strlen(seccomp->listener_path) >= sizeof(address.sun_path))
                return err_set(err, -ENAMETOOLONG, "linux.seccomp.listenerPath is longer than %zu", sizeof(address.sun_path) - 1);
        strcpy(address.sun_path, seccomp->listener_path);
        to = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (to < 0 || connect(to, (struct sockaddr *)&address, sizeof(address)) < 0)
                return err_errno(err, -errno, "cannot connect to linux.seccomp.listenerPath '%s'", seccomp->listener_path);
        iov = (struct iovec){ text, strlen(text) };
        msg.msg_iov = &iov;
        msg.msg_iovlen = 1;
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &listener, sizeof(int));
        if (sendmsg(to, &msg, MSG_NOSIGNAL) != (ssize_t)iov.iov_len)
                return err_errno(err, -errno, "cannot send the seccomp listener to '%s'", seccomp->listener_path);
        return 0;
}

int wait_forwarding(pid_t pid, int pid_fd)
{
        sigset_t signals;
        int signal_fd, status = 0;

        sigfillset(&signals);
        sigdelset(&signals, SIGCHLD);
        sigprocmask(SIG_BLOCK, &signals, NULL);
        signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
        for (;;) {
                struct pollfd events[] = { { .fd = pid_fd, .events = POLLIN }, { .fd = signal_fd, .events = POLLIN } };
                struct signalfd_siginfo info;

                if (poll(events, ARRAY_SIZE(events), -1) < 0)
                        continue;
                if (events[0].revents)
                        break;
                if (events[1].revents && read(signal_fd, &info, sizeof(info)) == sizeof(info))
                        (void)syscall(SYS_pidfd_send_signal, pid_fd, (int)info.ssi_signo, NULL, 0);
        }
        closep(&signal_fd);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
                ;
        return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

void kill_and_reap(pid_t pid)
{
        kill(pid, SIGKILL);
        while (waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
                ;
}
