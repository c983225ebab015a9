#include "container/start-gate.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>

#include "container/procfs.h"

#define NAME "start"

int gate_make(int dir_fd, struct err *err)
{
        return mkfifoat(dir_fd, NAME, 0622) < 0 || fchmodat(dir_fd, NAME, 0622, 0) < 0 ? err_errno(err, -errno, "cannot make the FIFO to start by") : 0;
}

bool gate_is_there(int dir_fd)
{
        struct stat st;

        return fstatat(dir_fd, NAME, &st, AT_SYMLINK_NOFOLLOW) == 0;
}

int gate_hold(int dir_fd)
{
        int fd = openat(dir_fd, NAME, O_PATH | O_CLOEXEC);

        return fd < 0 ? -errno : fd;
}

int gate_wait(int gate_fd, int proc_fd)
{
        int fd;

        do
                fd = procfs_reopen(proc_fd, gate_fd, O_WRONLY);
        while (fd == -EINTR);
        return fd;
}

/* The code and the text, in one write: less than PIPE_BUF. */
void gate_fail(int fd, const struct err *err)
{
        ssize_t n _unused_ = write(fd, err, offsetof(struct err, text) + strlen(err->text) + 1);
}

int gate_open(int dir_fd, int pid_fd, struct err *err)
{
        /* Not blocking, since the process may be gone; the writer's open succeeds from now on. */
        _cleanup_close_ int fd = openat(dir_fd, NAME, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        struct pollfd events[2] = { { .fd = fd, .events = POLLIN }, { .fd = pid_fd, .events = POLLIN } };
        struct err told = ERR_INIT;
        size_t have = 0;

        if (fd < 0)
                return err_errno(err, -errno, "cannot open the FIFO to start by");
        for (;;) {
                ssize_t n;

                /* A FIFO that nobody has opened yet shows neither data nor an end. */
                if (poll(events, 2, -1) < 0 && errno != EINTR)
                        return err_errno(err, -errno, "cannot wait for the start");
                if (!events[0].revents && !events[1].revents)
                        continue;
                n = read(fd, (char *)&told + have, sizeof(told) - 1 - have);
                if (n > 0) {
                        have += (size_t)n;
                        continue;
                }
                if (n < 0 && (errno == EAGAIN || errno == EINTR) && !events[1].revents)
                        continue;
                break;
        }
        (void)unlinkat(dir_fd, NAME, 0);
        if (have > offsetof(struct err, text)) {
                told.text[sizeof(told.text) - 1] = 0;
                return err_set(err, told.code < 0 ? told.code : -EIO, "%s", told.text);
        }
        if (events[1].revents && !events[0].revents)
                return err_set(err, -ESRCH, "its process ended before it was started");
        return 0;
}
