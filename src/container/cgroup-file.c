#include "container/cgroup-file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "base/text.h"

static int open_file(const char *directory, const char *file, int flags)
{
        char path[4096];

        if (snprintf(path, sizeof(path), "%s/%s", directory, file) >= (int)sizeof(path))
                return -ENAMETOOLONG;
        int fd = open(path, flags | O_CLOEXEC);
        return fd < 0 ? -errno : fd;
}

int cgroup_file_write(const char *directory, const char *file, const char *text, struct err *err)
{
        _cleanup_close_ int fd = open_file(directory, file, O_WRONLY);
        ssize_t n;

        if (fd < 0)
                return err_errno(err, fd, "cannot open '%s/%s'", directory, file);
        do
                n = write(fd, text, strlen(text));
        while (n < 0 && errno == EINTR);
        if (n < 0)
                return err_errno(err, -errno, "cannot write '%.100s' to '%s/%s'", text, directory, file);
        return 0;
}

ssize_t cgroup_file_read(const char *directory, const char *file, char *text, size_t size_bytes)
{
        _cleanup_close_ int fd = open_file(directory, file, O_RDONLY);

        text[0] = 0;
        return fd < 0 ? fd : text_read(fd, text, size_bytes);
}

bool cgroup_file_number(const char *directory, const char *file, uint64_t *number)
{
        char text[64], *end;

        if (cgroup_file_read(directory, file, text, sizeof(text)) <= 0)
                return false;
        if (!strncmp(text, "max", 3)) {
                *number = UINT64_MAX;
                return true;
        }
        *number = strtoull(text, &end, 10);
        return end != text;
}
