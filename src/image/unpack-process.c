/*
 * Unpacking in a process that can do nothing else: an error in reading a compressed stream or a tar is then of no use to whoever
 * made the layer.
 *
 * The child has the layer, the directory, which is its root (chroot(2)), and a page that it shares with us; no other descriptor.
 * It keeps the rights that files of other owners need, may not gain any, and has a list of system calls without sockets, processes
 * or mounts. What it says comes back in the shared page, and is text from outside.
 */
#include "image/unpack.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/sandbox.h"
#include "base/text.h"

struct shared {
        _Atomic uint64_t position_bytes;
        struct err err; /* the child's; its code is -EINPROGRESS until it ends by itself */
};

struct unpack_process {
        pid_t pid;
        int pid_fd;
        struct shared *shared;
};

static const struct syscall_rule rules[] = {
        ALLOW(read), ALLOW(pread64), ALLOW(write), ALLOW(pwrite64), ALLOW(lseek), ALLOW(close), ALLOW(fcntl),
        ALLOW(openat), ALLOW(openat2), ALLOW(fstat), ALLOW(newfstatat), ALLOW(getdents64),
        ALLOW(mkdirat), ALLOW(symlinkat), ALLOW(linkat), ALLOW(unlinkat),
        /* Pipes with names, and whiteouts: never a device. */
        ALLOW_IF(mknodat, 3, UINT64_MAX, 0),
        ALLOW(fchown), ALLOW(fchownat), ALLOW(fchmod), ALLOW(fchmodat), ALLOW(utimensat), ALLOW(ftruncate), ALLOW(fsetxattr),
        ALLOW_IF(mmap, 2, PROT_EXEC, 0), ALLOW(munmap), ALLOW(mremap), ALLOW(brk), ALLOW(madvise), ALLOW_IF(mprotect, 2, PROT_EXEC, 0),
        ALLOW(futex), ALLOW(getrandom), ALLOW(clock_gettime), ALLOW(getpid), ALLOW(gettid), ALLOW_OWN_PID(tgkill, 0),
        ALLOW(rt_sigprocmask), ALLOW(rt_sigaction), ALLOW(rt_sigreturn), ALLOW(exit), ALLOW(exit_group),
};

/* Of root's rights those over files. trusted.overlay.opaque asks for CAP_SYS_ADMIN; nothing else that it allows is on the list. */
static int keep_file_rights(struct err *err)
{
        static const uint32_t kept = 1u << CAP_CHOWN | 1u << CAP_DAC_OVERRIDE | 1u << CAP_FOWNER | 1u << CAP_FSETID | 1u << CAP_SYS_ADMIN |
                                     1u << CAP_SETFCAP;
        struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
        struct __user_cap_data_struct data[2];

        if (syscall(SYS_capget, &header, data) < 0)
                return err_errno(err, -errno, "cannot read capabilities");
        data[0].effective = data[0].permitted &= kept;
        data[1].effective = data[1].permitted = 0;
        data[0].inheritable = data[1].inheritable = 0;
        return syscall(SYS_capset, &header, data) < 0 ? err_errno(err, -errno, "cannot drop capabilities") : 0;
}

/* Keeps these two and the standard ones, which become /dev/null's. */
static int close_others(int first, int second, struct err *err)
{
        int low = MIN(first, second), high = MAX(first, second), null = open("/dev/null", O_RDWR | O_CLOEXEC);

        if (null < 0)
                return err_errno(err, -errno, "cannot open /dev/null");
        for (int fd = 0; fd < 3; fd++)
                if (fd != first && fd != second && dup2(null, fd) < 0)
                        return err_errno(err, -errno, "cannot use /dev/null");
        if ((low > 3 && syscall(SYS_close_range, 3, low - 1, 0) < 0) ||
            (high > low + 1 && syscall(SYS_close_range, MAX(low + 1, 3), high - 1, 0) < 0) || syscall(SYS_close_range, MAX(high + 1, 3), ~0u, 0) < 0)
                return err_errno(err, -errno, "cannot close descriptors");
        return 0;
}

static int confine(int layer_fd, int root_fd, struct err *err)
{
        int r = close_others(layer_fd, root_fd, err);

        if (r < 0)
                return r;
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
                return err_errno(err, -errno, "cannot confine the unpacking");
        if (fchdir(root_fd) < 0)
                return err_errno(err, -errno, "cannot enter the layer's directory");
        /* A second wall: names are resolved inside of the directory anyway (unpack.c). */
        if (chroot(".") < 0 && errno != EPERM)
                return err_errno(err, -errno, "cannot make the layer's directory the root");
        umask(0);
        r = keep_file_rights(err);
        return r < 0 ? r : sandbox_filter(rules, ARRAY_SIZE(rules), false, err);
}

static int work(const struct unpack *unpack, int layer_fd, enum layer_compression compression, const struct digest *diff_id, struct shared *shared,
                struct err *err)
{
        struct layer_stream *stream = NULL;
        struct digest is = { 0 };
        int r = confine(layer_fd, unpack->root_fd, err);

        if (!r)
                r = layer_stream_open(layer_fd, compression, diff_id, &stream, err);
        if (!r)
                r = unpack_layer(unpack, stream, &shared->position_bytes, err);
        if (r < 0)
                return r;
        layer_stream_digest(stream, &is);
        return digest_equal(&is, diff_id) ? 0 : err_set(err, -EBADMSG, "the layer unpacks to %s, not to %s", is.text, diff_id->text);
}

int unpack_start(const struct unpack *unpack, int layer_fd, enum layer_compression compression, const struct digest *diff_id,
                 struct unpack_process **process, struct err *err)
{
        struct unpack_process *p = calloc(1, sizeof(*p));
        int r = 0;

        if (!p)
                return err_nomem(err);
        p->pid_fd = -1;
        p->shared = mmap(NULL, sizeof(*p->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (p->shared == MAP_FAILED) {
                free(p);
                return err_nomem(err);
        }
        p->shared->err.code = -EINPROGRESS;
        p->pid = fork();
        if (p->pid == 0) {
                struct err own = ERR_INIT;

                own.code = work(unpack, layer_fd, compression, diff_id, p->shared, &own);
                p->shared->err = own;
                _exit(own.code < 0);
        }
        if (p->pid < 0)
                r = err_errno(err, -errno, "cannot make a process for unpacking");
        else
                p->pid_fd = (int)syscall(SYS_pidfd_open, p->pid, 0);
        if (!r && p->pid_fd < 0)
                r = err_errno(err, -errno, "cannot watch the process that unpacks");
        if (r < 0)
                unpack_abort(p);
        else
                *process = p;
        return r;
}

int unpack_fd(const struct unpack_process *p)
{
        return p->pid_fd;
}

uint64_t unpack_position(const struct unpack_process *p)
{
        return atomic_load_explicit(&p->shared->position_bytes, memory_order_relaxed);
}

static int reap(struct unpack_process *p)
{
        int status = 0;

        while (waitpid(p->pid, &status, 0) < 0 && errno == EINTR)
                ;
        return status;
}

static void release(struct unpack_process *p)
{
        closep(&p->pid_fd);
        munmap(p->shared, sizeof(*p->shared));
        free(p);
}

int unpack_finish(struct unpack_process *p, struct err *err)
{
        int status = reap(p), r = 0;
        char text[ERR_TEXT_MAX];
        struct err told = p->shared->err;

        told.text[sizeof(told.text) - 1] = 0;
        text_escape(told.text, strlen(told.text), text, sizeof(text));
        if (WIFSIGNALED(status))
                r = err_set(err, -EBADMSG, "the process that unpacks the layer was ended by signal %d", WTERMSIG(status));
        else if (told.code == -EINPROGRESS)
                r = err_set(err, -EBADMSG, "the process that unpacks the layer ended with %d", WEXITSTATUS(status));
        else if (told.code)
                r = err_set(err, told.code < 0 && told.code > -4096 ? told.code : -EBADMSG, "%s", text);
        release(p);
        return r;
}

void unpack_abort(struct unpack_process *p)
{
        if (!p)
                return;
        if (p->pid > 0) {
                kill(p->pid, SIGKILL);
                reap(p);
        }
        release(p);
}
