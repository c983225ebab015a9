#include "container/sealed-exe.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>

extern char **environ;

#define SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

/* Ours and not the host's: a read-only host file system may be made writable again. A mount that is attached nowhere has no path. */
static bool is_sealed(int exe)
{
        struct statvfs fs;
        char path[4096];
        ssize_t n;

        if ((fcntl(exe, F_GET_SEALS) & SEALS) == SEALS)
                return true;
        if (fstatvfs(exe, &fs) < 0 || !(fs.f_flag & ST_RDONLY))
                return false;
        n = readlink("/proc/self/exe", path, sizeof(path) - 1);
        if (n < 0)
                return false;
        path[n] = 0;
        /* The name of a file mounted by itself is its mount's root: "/". */
        return strcmp(path, "/") == 0;
}

static int mount_read_only(void)
{
        struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV };
        int fd = open_tree(AT_FDCWD, "/proc/self/exe", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);

        if (fd >= 0 && mount_setattr(fd, "", AT_EMPTY_PATH, &attr, sizeof(attr)) < 0) {
                close(fd);
                return -1;
        }
        return fd;
}

static int copy_sealed(int exe, struct err *err)
{
        _cleanup_close_ int copy = memfd_create("virta-oci", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        struct stat st;
        off_t done = 0;

        if (copy < 0 || fstat(exe, &st) < 0)
                return err_errno(err, -errno, "cannot copy the program");
        while (done < st.st_size) {
                ssize_t n = sendfile(copy, exe, &done, (size_t)(st.st_size - done));

                if (n == 0 || (n < 0 && errno != EINTR))
                        return err_errno(err, n ? -errno : -EIO, "cannot copy the program");
        }
        if (fcntl(copy, F_ADD_SEALS, SEALS) < 0)
                return err_errno(err, -errno, "cannot seal the copy of the program");
        return steal_fd(&copy);
}

/* What we were called with; the array and its texts live until the end. */
static char **own_arguments(struct err *err)
{
        const size_t room = 2 << 20; /* ARG_MAX, execve(2) */
        _cleanup_close_ int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
        char *text = fd < 0 ? NULL : malloc(room), **argv = NULL;
        size_t length = 0, count = 0;
        ssize_t n = -1;

        while (text && length < room - 1 && (n = read(fd, text + length, room - 1 - length)) > 0)
                length += (size_t)n;
        if (n < 0 || !length) {
                free(text);
                err_set(err, -EIO, "cannot read '/proc/self/cmdline'");
                return NULL;
        }
        text[length] = 0;
        for (size_t i = 0; i < length; i++)
                count += !text[i];
        argv = calloc(count + 1, sizeof(*argv));
        if (!argv) {
                free(text);
                err_nomem(err);
                return NULL;
        }
        for (size_t i = 0, at = 0; i < count; i++, at += strlen(text + at) + 1)
                argv[i] = text + at;
        return argv;
}

int sealed_exe_ensure(struct err *err)
{
        char **argv;

        _cleanup_close_ int exe = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
        _cleanup_close_ int sealed = -1;

        if (exe < 0)
                return err_errno(err, -errno, "cannot open '/proc/self/exe'");
        if (is_sealed(exe))
                return 0;
        sealed = mount_read_only();
        if (sealed < 0)
                sealed = copy_sealed(exe, err);
        if (sealed < 0)
                return sealed;
        argv = own_arguments(err);
        if (!argv)
                return -EIO;
        execveat(sealed, "", argv, environ, AT_EMPTY_PATH);
        return err_errno(err, -errno, "cannot execute the sealed program");
}
