/*
 * The sandbox from inside: a child enters all stages and then tries to get out in every way listed here.
 *
 * Each attempt must fail; the child tells over a pipe which one did not. What must still work is tried as well, so that a
 * sandbox that merely breaks everything does not pass.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "base/sandbox.h"

static const struct syscall_rule rules[] = {
        ALLOW(read), ALLOW(write), ALLOW(close), ALLOW(exit), ALLOW(exit_group), ALLOW(openat), ALLOW(openat2), ALLOW(mkdirat),
        ALLOW(unlinkat), ALLOW(newfstatat), ALLOW(socket), ALLOW(connect), ALLOW(brk), ALLOW(futex),
};

struct inside {
        int share; /* descriptor of the directory that stays */
        pid_t parent;
        uint16_t port; /* something listens there outside */
};

/* Every attempt returns 0 or more when it got what it should not. */
static long open_passwd(const struct inside *in)
{
        return open("/etc/passwd", O_RDONLY);
}

static long open_above_share(const struct inside *in)
{
        return openat(in->share, "../../../../../etc/passwd", O_RDONLY);
}

static long open_link_out(const struct inside *in)
{
        return openat(in->share, "link-to-etc/passwd", O_RDONLY);
}

static long open_proc(const struct inside *in)
{
        return open("/proc/self/mem", O_RDWR);
}

static long write_root(const struct inside *in)
{
        return openat(AT_FDCWD, "/new", O_CREAT | O_WRONLY, 0600);
}

static long execute(const struct inside *in)
{
        return execl("/bin/true", "true", NULL);
}

static long connect_tcp(const struct inside *in)
{
        struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(in->port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        int fd = socket(AF_INET, SOCK_STREAM, 0);

        return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&to, sizeof(to));
}

static long connect_unix(const struct inside *in)
{
        struct sockaddr_un to = { .sun_family = AF_UNIX, .sun_path = "/run/systemd/journal/stdout" };
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);

        return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&to, sizeof(to));
}

static long trace_parent(const struct inside *in)
{
        return ptrace(PTRACE_SEIZE, in->parent, NULL, NULL);
}

static long read_parent(const struct inside *in)
{
        char byte;
        struct iovec to = { &byte, 1 }, from = { (void *)in, 1 };

        return process_vm_readv(in->parent, &to, 1, &from, 1, 0);
}

static long signal_parent(const struct inside *in)
{
        return kill(in->parent, 0);
}

static long mount_tmpfs(const struct inside *in)
{
        return mount("none", "/", "tmpfs", 0, NULL);
}

static long new_user_namespace(const struct inside *in)
{
        return unshare(CLONE_NEWUSER);
}

static long fork_process(const struct inside *in)
{
        pid_t pid = fork();

        if (pid == 0)
                _exit(0);
        return pid;
}

static long become_root(const struct inside *in)
{
        return setuid(0);
}

static long make_device(const struct inside *in)
{
        return mknodat(in->share, "disk", S_IFBLK | 0600, 8 << 8);
}

static const struct {
        const char *name;
        long (*try)(const struct inside *in);
} attempts[] = {
        { "open /etc/passwd", open_passwd },     { "open above the share", open_above_share },
        { "follow a link out", open_link_out },  { "open /proc/self/mem", open_proc },
        { "write to the root", write_root },     { "execute a program", execute },
        { "connect by TCP", connect_tcp },       { "connect to a unix socket", connect_unix },
        { "trace the parent", trace_parent },    { "read the parent's memory", read_parent },
        { "signal the parent", signal_parent },  { "mount", mount_tmpfs },
        { "make a namespace", new_user_namespace }, { "fork", fork_process },
        { "become root", become_root },          { "make a device node", make_device },
};

static int run_inside(struct inside *in, const char *share, int report)
{
        struct sandbox_directory directory = { .path = share };
        const struct sandbox_plan plan = {
                .directories = &directory, .directory_count = 1, .limits = { .extra_memory_bytes = 1 << 30, .files = 64, .threads = 8 },
        };
        struct sandbox sandbox;
        struct err err = ERR_INIT;
        int failed = 0;

        if (sandbox_isolate(&sandbox, false, &err) < 0) {
                dprintf(report, "isolating: %s\n", err.text);
                return 1;
        }
        directory.fd = in->share = open(share, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (sandbox_confine(&sandbox, &plan, &err) < 0 ||
            sandbox_filter(rules, ARRAY_SIZE(rules), true, &err) < 0) {
                dprintf(report, "entering: %s\n", err.text);
                return 1;
        }
        if (openat(in->share, "allowed", O_CREAT | O_WRONLY, 0600) < 0 || openat(in->share, "there", O_RDONLY) < 0)
                failed += dprintf(report, "the shared directory cannot be used: errno %d\n", errno) > 0;
        for (size_t i = 0; i < ARRAY_SIZE(attempts); i++)
                if (attempts[i].try(in) >= 0)
                        failed += dprintf(report, "it could %s\n", attempts[i].name) > 0;
        return failed;
}

static void no_way_out(void **state)
{
        char share[] = "/tmp/virta-sandbox-XXXXXX";
        struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        socklen_t length = sizeof(address);
        int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct inside in = { .parent = getpid() };
        char text[4096] = "";
        int report[2];
        int status;
        pid_t pid;

        assert_non_null(mkdtemp(share));
        in.share = open(share, O_PATH | O_DIRECTORY | O_CLOEXEC);
        assert_int_equal(symlinkat("/etc", in.share, "link-to-etc"), 0);
        close(openat(in.share, "there", O_CREAT | O_WRONLY, 0600));
        assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
        assert_int_equal(listen(listener, 1), 0);
        assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &length), 0);
        in.port = ntohs(address.sin_port);
        assert_int_equal(pipe2(report, O_CLOEXEC), 0);
        pid = fork();
        if (pid == 0)
                _exit(run_inside(&in, share, report[1]));
        close(report[1]);
        while (read(report[0], text + strlen(text), sizeof(text) - 1 - strlen(text)) > 0)
                ;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        unlinkat(in.share, "allowed", 0);
        unlinkat(in.share, "there", 0);
        unlinkat(in.share, "link-to-etc", 0);
        rmdir(share);
        if (text[0])
                print_error("%s", text);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
        print_message("%zu ways out tried, none worked\n", ARRAY_SIZE(attempts));
}

int main(void)
{
        const struct CMUnitTest tests[] = { cmocka_unit_test(no_way_out) };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
