#include "container/copy-up.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

#define DEPTH_MAX 128

static int copy_directory(int from_fd, int to_fd, unsigned depth, struct err *err);

static int copy_file(int from, int to, const char *name, const struct stat *st, struct err *err)
{
        _cleanup_close_ int in = openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        _cleanup_close_ int out = in < 0 ? -1 : openat(to, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
        ssize_t n;

        if (in < 0 || out < 0)
                return err_errno(err, -errno, "cannot copy '%s'", name);
        do
                n = sendfile(out, in, NULL, 1 << 20);
        while (n > 0 || (n < 0 && errno == EINTR));
        if (n < 0 || fchown(out, st->st_uid, st->st_gid) < 0 || fchmod(out, st->st_mode & 07777) < 0)
                return err_errno(err, -errno, "cannot copy '%s'", name);
        (void)futimens(out, (struct timespec[]){ st->st_atim, st->st_mtim });
        return 0;
}

static int copy_link(int from, int to, const char *name, const struct stat *st, struct err *err)
{
        char target[PATH_MAX];
        ssize_t length = readlinkat(from, name, target, sizeof(target) - 1);

        if (length >= 0)
                target[length] = 0;
        if (length < 0 || symlinkat(target, to, name) < 0 || fchownat(to, name, st->st_uid, st->st_gid, AT_SYMLINK_NOFOLLOW) < 0)
                return err_errno(err, -errno, "cannot copy the link '%s'", name);
        return 0;
}

static int copy_below(int from, int to, const char *name, const struct stat *st, unsigned depth, struct err *err)
{
        _cleanup_close_ int in = openat(from, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        _cleanup_close_ int out = -1;
        int r;

        if (!depth)
                return err_set(err, -ELOOP, "'%s' lies deeper than %d directories", name, DEPTH_MAX);
        if (in < 0 || mkdirat(to, name, 0700) < 0)
                return err_errno(err, -errno, "cannot copy the directory '%s'", name);
        out = openat(to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        r = out < 0 ? err_errno(err, -errno, "cannot copy the directory '%s'", name) : copy_directory(in, out, depth - 1, err);
        if (!r && (fchown(out, st->st_uid, st->st_gid) < 0 || fchmod(out, st->st_mode & 07777) < 0))
                r = err_errno(err, -errno, "cannot copy the directory '%s'", name);
        return r;
}

static int copy_directory(int from_fd, int to_fd, unsigned depth, struct err *err)
{
        int fd = openat(from_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DIR *dir = fd < 0 ? NULL : fdopendir(fd);
        struct dirent *entry;
        int r = 0;

        if (!dir) {
                closep(&fd);
                return err_errno(err, -errno, "cannot read a directory to copy");
        }
        while (!r && (entry = readdir(dir))) {
                const char *name = entry->d_name;
                struct stat st;

                if (!strcmp(name, ".") || !strcmp(name, ".."))
                        continue;
                if (fstatat(dirfd(dir), name, &st, AT_SYMLINK_NOFOLLOW) < 0)
                        r = err_errno(err, -errno, "cannot copy '%s'", name);
                else if (S_ISDIR(st.st_mode))
                        r = copy_below(dirfd(dir), to_fd, name, &st, depth, err);
                else if (S_ISREG(st.st_mode))
                        r = copy_file(dirfd(dir), to_fd, name, &st, err);
                else if (S_ISLNK(st.st_mode))
                        r = copy_link(dirfd(dir), to_fd, name, &st, err);
        }
        closedir(dir);
        return r;
}

int copy_up(int from_fd, int to_fd, struct err *err)
{
        struct stat st;
        int r = fstat(from_fd, &st) < 0 ? err_errno(err, -errno, "cannot look at the directory to copy") : copy_directory(from_fd, to_fd, DEPTH_MAX, err);

        /* The top's mode and owner, too: the place looks as it did. A detached mount's root can be changed by its own directory. */
        if (!r) {
                _cleanup_close_ int to = openat(to_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

                if (to < 0 || fchown(to, st.st_uid, st.st_gid) < 0 || fchmod(to, st.st_mode & 07777) < 0)
                        r = err_errno(err, -errno, "cannot give the copy its mode");
        }
        return r;
}
