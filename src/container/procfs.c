#include "container/procfs.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#include "base/text.h"

#define PROC_ROOT_INO 1 /* Linux, include/uapi/linux/fs.h (since 6.17; the number is as old as procfs) */

int procfs_open(int *proc_fd, struct err *err)
{
        _cleanup_close_ int fd = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
        struct statfs fs;
        struct stat st;

        if (fd < 0 || fstatfs(fd, &fs) < 0 || fstat(fd, &st) < 0)
                return err_errno(err, -errno, "cannot open '/proc'");
        if (fs.f_type != PROC_SUPER_MAGIC || st.st_ino != PROC_ROOT_INO)
                return err_set(err, -EINVAL, "'/proc' is not the root of a procfs");
        *proc_fd = steal_fd(&fd);
        return 0;
}

int procfs_openat(int proc_fd, const char *path, int flags)
{
        struct open_how how = { .flags = (unsigned)(flags | O_CLOEXEC), .resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS };
        long fd = syscall(SYS_openat2, proc_fd, path, &how, sizeof(how));

        return fd < 0 ? -errno : (int)fd;
}

int procfs_write(int proc_fd, const char *path, const char *text, struct err *err)
{
        _cleanup_close_ int fd = procfs_openat(proc_fd, path, O_WRONLY);
        ssize_t n;

        if (fd < 0)
                return err_errno(err, fd, "cannot open '/proc/%s'", path);
        do
                n = write(fd, text, strlen(text));
        while (n < 0 && errno == EINTR);
        if (n < 0)
                return err_errno(err, -errno, "cannot write '%.100s' to '/proc/%s'", text, path);
        return 0;
}

ssize_t procfs_read(int proc_fd, const char *path, char *text, size_t size_bytes)
{
        _cleanup_close_ int fd = procfs_openat(proc_fd, path, O_RDONLY);

        return fd < 0 ? fd : text_read(fd, text, size_bytes);
}

int procfs_reopen(int proc_fd, int fd, int flags)
{
        char path[32];
        int reopened;

        /* The last step is a magic link, which procfs_openat() would refuse: its directory is checked instead. */
        snprintf(path, sizeof(path), "%d", fd);
        _cleanup_close_ int directory = procfs_openat(proc_fd, "thread-self/fd", O_PATH | O_DIRECTORY);
        if (directory < 0)
                return directory;
        reopened = openat(directory, path, flags | O_CLOEXEC);
        return reopened < 0 ? -errno : reopened;
}

int procfs_start_time(int proc_fd, pid_t pid, uint64_t *ticks, char *state)
{
        char path[32], stat[1024], *p;
        ssize_t n;

        snprintf(path, sizeof(path), "%d/stat", (int)pid);
        n = procfs_read(proc_fd, path, stat, sizeof(stat));
        if (n < 0)
                return n == -ENOENT ? -ESRCH : (int)n;
        /* "PID (name) S …": the name may hold blanks and brackets, so from the last one on. */
        p = strrchr(stat, ')');
        if (!p || p[1] != ' ')
                return -EBADMSG;
        p += 2;
        if (state)
                *state = *p;
        for (int field = 3; field < 22; field++) {
                p = strchr(p, ' ');
                if (!p)
                        return -EBADMSG;
                p++;
        }
        *ticks = strtoull(p, NULL, 10);
        return 0;
}

pid_t procfs_own_pid(int proc_fd)
{
        char text[32];
        ssize_t n = readlinkat(proc_fd, "self", text, sizeof(text) - 1);

        if (n < 0)
                return 0;
        text[n] = 0;
        return (pid_t)strtol(text, NULL, 10);
}
