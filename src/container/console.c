#include "container/console.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <termios.h>

#include "container/inside.h"
#include "container/mount.h"

static int open_master(int root_fd, struct err *err)
{
        _cleanup_close_ int fd = inside_open(root_fd, "/dev/pts/ptmx", O_RDWR | O_NOCTTY);
        const int unlock = 0;
        struct statfs fs;
        struct stat st;

        if (fd < 0)
                return err_errno(err, fd, "cannot open '/dev/pts/ptmx' of the container, which process.terminal needs");
        if (fstatfs(fd, &fs) < 0 || fs.f_type != DEVPTS_SUPER_MAGIC || fstat(fd, &st) < 0 || !S_ISCHR(st.st_mode) || st.st_rdev != makedev(5, 2))
                return err_set(err, -ENOTTY, "'/dev/pts/ptmx' of the container is not a terminal's");
        if (ioctl(fd, TIOCSPTLCK, &unlock) < 0)
                return err_errno(err, -errno, "cannot unlock the container's terminal");
        return steal_fd(&fd);
}

static int cover_dev_console(int root_fd, int slave, struct err *err)
{
        _cleanup_close_ int tree = -1;
        _cleanup_close_ int place = -1;
        int r = mount_copy(slave, "", false, &tree, err);

        if (!r)
                r = inside_file(root_fd, "/dev/console", 0600, &place, err);
        if (!r)
                r = mount_attach(tree, place, err);
        return r < 0 ? err_wrap(err, r, "the container's /dev/console") : 0;
}

int console_open(int root_fd, const struct process_config *process, bool cover_console, int *master, struct err *err)
{
        _cleanup_close_ int master_fd = open_master(root_fd, err);
        _cleanup_close_ int slave = -1;
        struct statfs fs;
        int r;

        if (master_fd < 0)
                return master_fd;
        slave = ioctl(master_fd, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
        if (slave < 0 || fstatfs(slave, &fs) < 0)
                return err_errno(err, -errno, "cannot open the container's terminal");
        if (fs.f_type != DEVPTS_SUPER_MAGIC)
                return err_set(err, -ENOTTY, "the container's terminal is none");
        if (process->console_rows || process->console_columns) {
                struct winsize size = { .ws_row = (unsigned short)process->console_rows, .ws_col = (unsigned short)process->console_columns };

                (void)ioctl(slave, TIOCSWINSZ, &size);
        }
        if (fchown(slave, process->uid, (gid_t)-1) < 0 && errno != EINVAL && errno != EPERM)
                return err_errno(err, -errno, "cannot give the container's terminal to user %u", process->uid);
        r = cover_console ? cover_dev_console(root_fd, slave, err) : 0;
        if (r < 0)
                return r;
        if (ioctl(slave, TIOCSCTTY, 0) < 0)
                return err_errno(err, -errno, "cannot take the container's terminal as the controlling one");
        for (int fd = 0; fd < 3; fd++)
                if (dup2(slave, fd) < 0)
                        return err_errno(err, -errno, "cannot put the terminal on descriptor %d", fd);
        *master = steal_fd(&master_fd);
        return 0;
}

int console_send(const char *path, int master, struct err *err)
{
        _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        union {
                struct cmsghdr header;
                char room[CMSG_SPACE(sizeof(int))];
        } control = { 0 };
        char name[] = "/dev/ptmx";
        struct iovec iov = { name, strlen(name) };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control.room) };
        struct cmsghdr *header = CMSG_FIRSTHDR(&msg);

        if (strlen(path) >= sizeof(address.sun_path))
                return err_set(err, -ENAMETOOLONG, "the path of the console socket '%s' is longer than %zu", path, sizeof(address.sun_path) - 1);
        strcpy(address.sun_path, path);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
                return err_errno(err, -errno, "cannot connect to the console socket '%s'", path);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &master, sizeof(int));
        if (sendmsg(fd, &msg, MSG_NOSIGNAL) < 0)
                return err_errno(err, -errno, "cannot send the terminal to the console socket '%s'", path);
        return 0;
}

/* What is read from one side and not yet written to the other. */
struct relay {
        int from, to;
        char bytes[8192];
        size_t start, end;
        bool done;
};

static void relay_step(struct relay *relay, bool readable, bool writable)
{
        if (writable && relay->start < relay->end) {
                ssize_t n = write(relay->to, relay->bytes + relay->start, relay->end - relay->start);

                if (n > 0)
                        relay->start += (size_t)n;
                else if (n < 0 && errno != EAGAIN && errno != EINTR)
                        relay->done = true;
        }
        if (relay->start == relay->end)
                relay->start = relay->end = 0;
        if (readable && !relay->end) {
                ssize_t n = read(relay->from, relay->bytes, sizeof(relay->bytes));

                if (n > 0)
                        relay->end = (size_t)n;
                else if (n == 0 || (errno != EAGAIN && errno != EINTR))
                        relay->done = true; /* a master whose slaves are all closed reads EIO */
        }
}

static void pass_size(int master)
{
        struct winsize size;

        if (ioctl(STDIN_FILENO, TIOCGWINSZ, &size) == 0)
                (void)ioctl(master, TIOCSWINSZ, &size);
}

static void take_signal(int signal_fd, int pid_fd, int master)
{
        struct signalfd_siginfo info;

        if (read(signal_fd, &info, sizeof(info)) != sizeof(info))
                return;
        if (info.ssi_signo == SIGWINCH)
                pass_size(master);
        else
                (void)syscall(SYS_pidfd_send_signal, pid_fd, (int)info.ssi_signo, NULL, 0);
}

static void relay_until_end(int master, int pid_fd, int signal_fd)
{
        struct relay in = { .from = STDIN_FILENO, .to = master }, out = { .from = master, .to = STDOUT_FILENO };
        bool ended = false;

        while (!out.done) {
                struct pollfd events[] = {
                        { .fd = in.done || in.end ? -1 : STDIN_FILENO, .events = POLLIN },
                        { .fd = master, .events = (short)((out.end ? 0 : POLLIN) | (in.end ? POLLOUT : 0)) },
                        { .fd = out.end ? STDOUT_FILENO : -1, .events = POLLOUT },
                        { .fd = ended ? -1 : pid_fd, .events = POLLIN },
                        { .fd = signal_fd, .events = POLLIN },
                };
                /* After the end: what is still in the terminal, and no longer, since something else may hold it open. */
                int n = poll(events, ARRAY_SIZE(events), ended ? 100 : -1);

                if (n < 0 && errno != EINTR)
                        return;
                if (ended && n == 0)
                        return;
                ended |= events[3].revents != 0;
                if (events[4].revents)
                        take_signal(signal_fd, pid_fd, master);
                relay_step(&in, events[0].revents, events[1].revents & POLLOUT);
                relay_step(&out, events[1].revents & (POLLIN | POLLHUP | POLLERR), events[2].revents);
        }
}

int console_relay(int master, int pid_fd, struct err *err)
{
        bool terminal = isatty(STDIN_FILENO);
        struct termios old, raw;
        sigset_t signals, before;
        int signal_fd;

        sigfillset(&signals);
        sigdelset(&signals, SIGCHLD);
        sigprocmask(SIG_BLOCK, &signals, &before);
        signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
        if (signal_fd < 0)
                return err_errno(err, -errno, "cannot watch for signals");
        if (terminal && tcgetattr(STDIN_FILENO, &old) == 0) {
                raw = old;
                cfmakeraw(&raw);
                (void)tcsetattr(STDIN_FILENO, TCSANOW, &raw);
                pass_size(master);
        }
        relay_until_end(master, pid_fd, signal_fd);
        if (terminal)
                (void)tcsetattr(STDIN_FILENO, TCSANOW, &old);
        close(signal_fd);
        sigprocmask(SIG_SETMASK, &before, NULL);
        return 0;
}
