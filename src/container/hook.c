#include "container/hook.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

extern char **environ;

/* The state in a file: a pipe would block on a hook that does not read. */
static int make_input(const char *state)
{
        int fd = memfd_create("state", MFD_CLOEXEC);
        size_t length = strlen(state);

        if (fd >= 0 && (write(fd, state, length) != (ssize_t)length || lseek(fd, 0, SEEK_SET) < 0)) {
                close(fd);
                return -EIO;
        }
        return fd < 0 ? -errno : fd;
}

static void run_program(const struct hook_config *hook, const char *directory, int input, int failed)
{
        sigset_t none;
        int code;

        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        setpgid(0, 0);
        if ((directory && chdir(directory) < 0) || dup2(input, STDIN_FILENO) < 0) {
                code = errno;
        } else {
                /* Absent: the runtime's own environment, as the shell would give. */
                execve(hook->path, (char *const *)hook->args, hook->env && *hook->env ? (char *const *)hook->env : environ);
                code = errno;
        }
        ssize_t n _unused_ = write(failed, &code, sizeof(code));
        _exit(127);
}

static int wait_for(const struct hook_config *hook, pid_t pid, struct err *err)
{
        _cleanup_close_ int pid_fd = (int)syscall(SYS_pidfd_open, pid, 0);
        struct pollfd event = { .fd = pid_fd, .events = POLLIN };
        bool late = false;
        int status;

        if (pid_fd >= 0 && hook->timeout_s) {
                int n;

                do
                        n = poll(&event, 1, (int)MIN(hook->timeout_s, (unsigned)(INT32_MAX / 1000)) * 1000);
                while (n < 0 && errno == EINTR);
                late = n == 0;
                if (late)
                        kill(-pid, SIGKILL);
        }
        while (waitpid(pid, &status, 0) < 0)
                if (errno != EINTR)
                        return err_errno(err, -errno, "cannot wait for the hook '%s'", hook->path);
        if (late)
                return err_set(err, -ETIMEDOUT, "the hook '%s' did not end within %u s", hook->path, hook->timeout_s);
        if (WIFSIGNALED(status))
                return err_set(err, -EIO, "the hook '%s' was ended by signal %d", hook->path, WTERMSIG(status));
        if (WEXITSTATUS(status))
                return err_set(err, -EIO, "the hook '%s' ended with %d", hook->path, WEXITSTATUS(status));
        return 0;
}

static int run_hook(const struct hook_config *hook, const char *state, const char *directory, struct err *err)
{
        _cleanup_close_ int input = make_input(state);
        int failed[2], code = 0;
        pid_t pid;
        ssize_t n;

        if (input < 0)
                return err_errno(err, input, "cannot run the hook '%s'", hook->path);
        if (pipe2(failed, O_CLOEXEC) < 0)
                return err_errno(err, -errno, "cannot run the hook '%s'", hook->path);
        pid = fork();
        if (pid == 0)
                run_program(hook, directory, input, failed[1]);
        close(failed[1]);
        if (pid < 0) {
                close(failed[0]);
                return err_errno(err, -errno, "cannot run the hook '%s'", hook->path);
        }
        do
                n = read(failed[0], &code, sizeof(code));
        while (n < 0 && errno == EINTR);
        close(failed[0]);
        if (n == sizeof(code)) {
                (void)waitpid(pid, NULL, 0);
                return err_errno(err, -code, "cannot run the hook '%s'", hook->path);
        }
        return wait_for(hook, pid, err);
}

int hooks_run(const struct config *config, enum hook_kind kind, const char *state, const char *directory, struct err *err)
{
        for (size_t i = 0; i < config->hook_counts[kind]; i++) {
                int r = run_hook(&config->hooks[kind][i], state, directory, err);

                if (r < 0)
                        return err_wrap(err, r, "%s hook %zu", hook_names[kind], i);
        }
        return 0;
}

void hooks_run_all(const struct config *config, enum hook_kind kind, const char *state, const char *directory, void (*warn)(void *ctx, const struct err *err),
                   void *ctx)
{
        for (size_t i = 0; i < config->hook_counts[kind]; i++) {
                struct err err = ERR_INIT;
                int r = run_hook(&config->hooks[kind][i], state, directory, &err);

                if (r < 0) {
                        err_wrap(&err, r, "%s hook %zu", hook_names[kind], i);
                        warn(ctx, &err);
                }
        }
}
