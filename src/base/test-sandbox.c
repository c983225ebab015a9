/*
 * The sandbox from inside: a child enters all stages and then tries to get out in every way of test-escape.c.
 *
 * What must still work is tried as well, so that a sandbox that merely breaks everything does not pass. The list of system calls
 * is wide here, so that files and the network are guarded by namespaces and Landlock and not by the list.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/sandbox.h"
#include "base/test-escape.h"

static const struct syscall_rule rules[] = {
        ALLOW(read), ALLOW(write), ALLOW(close), ALLOW(exit), ALLOW(exit_group), ALLOW(openat), ALLOW(openat2), ALLOW(mkdirat),
        ALLOW(unlinkat), ALLOW(newfstatat), ALLOW(brk), ALLOW(futex), ALLOW(getpid), ALLOW_OWN_PID(tgkill, 0), ALLOW_IF(mmap, 2, PROT_EXEC, 0),
        ALLOW(munmap), ALLOW(madvise),
        ALLOW(sigaltstack), ALLOW(rt_sigprocmask), ALLOW(gettid), ALLOW(mremap),
        /* The last three only where a network namespace guards them. */
        ALLOW_IF(socket, 0, UINT64_MAX, AF_INET), ALLOW_IF(socket, 0, UINT64_MAX, AF_UNIX), ALLOW(connect),
};

static unsigned run_inside(struct escape *in, const char *share, int report)
{
        struct sandbox_directory directory = { .path = share };
        const struct sandbox_plan plan = {
                .directories = &directory, .directory_count = 1, .limits = { .extra_memory_bytes = 1 << 30, .files = 64, .threads = 8 },
        };
        struct sandbox sandbox;
        struct err err = ERR_INIT;

        if (sandbox_isolate(&sandbox, false, &err) < 0)
                return dprintf(report, "isolating: %s\n", err.text) > 0;
        directory.fd = in->share = open(share, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (sandbox_confine(&sandbox, &plan, &err) < 0 || sandbox_filter(rules, ARRAY_SIZE(rules) - (sandbox.net_ns ? 0 : 3), true, &err) < 0)
                return dprintf(report, "entering: %s\n", err.text) > 0;
        if (openat(in->share, "allowed", O_CREAT | O_WRONLY, 0600) < 0 || openat(in->share, "there", O_RDONLY) < 0)
                return dprintf(report, "the shared directory cannot be used: errno %d\n", errno) > 0;
        return escape_try_all(in, report);
}

static void no_way_out(void **state)
{
        char share[] = "/tmp/virta-sandbox-XXXXXX";
        struct escape in;
        int status;
        pid_t pid;

        assert_int_equal(escape_prepare(&in, share), 0);
        pid = fork();
        if (pid == 0)
                _exit((int)run_inside(&in, share, STDERR_FILENO));
        assert_int_equal(waitpid(pid, &status, 0), pid);
        escape_clean_up(&in, share);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
        print_message("%u ways out tried, none worked\n", escape_count());
}

int main(void)
{
        const struct CMUnitTest tests[] = { cmocka_unit_test(no_way_out) };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
