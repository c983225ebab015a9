/* What the kernel lets this user do: namespaces, confinement, memory, fast input and output. */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/landlock.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/sandbox.h"
#include "cli/doctor.h"

static int probe_user_ns(char found[FOUND_MAX])
{
        int r = doctor_unshare(CLONE_NEWUSER);

        if (r < 0)
                return r;
        if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 && geteuid() == 0)
                snprintf(found, FOUND_MAX, "entered one as its root");
        else if (unshare(CLONE_NEWNS) < 0)
                return -errno;
        else
                snprintf(found, FOUND_MAX, "entered one as its root, with rights over what it owns");
        return geteuid() == 0 ? FOUND_WORKS : -EPERM;
}

static int probe_mount_ns(char found[FOUND_MAX])
{
        int r = doctor_unshare(CLONE_NEWNS);

        if (r < 0)
                return r;
        if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 || mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=64k") < 0)
                return -errno;
        snprintf(found, FOUND_MAX, "entered one and mounted a tmpfs");
        return FOUND_WORKS;
}

static int probe_net_ns(char found[FOUND_MAX])
{
        int r = doctor_unshare(CLONE_NEWNET);

        if (r < 0)
                return r;
        snprintf(found, FOUND_MAX, "entered one");
        return FOUND_WORKS;
}

static int probe_pid_ns(char found[FOUND_MAX])
{
        int r = doctor_unshare(CLONE_NEWPID);
        int status;
        pid_t pid;

        if (r < 0)
                return r;
        pid = fork();
        if (pid < 0)
                return -errno;
        if (!pid)
                _exit(getpid() == 1 ? 0 : 1);
        if (waitpid(pid, &status, 0) < 0 || status)
                return -ECHILD;
        snprintf(found, FOUND_MAX, "a process in it is number 1");
        return FOUND_WORKS;
}

static int probe_other_ns(char found[FOUND_MAX])
{
        int r = doctor_unshare(CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP);

        if (r < 0)
                return r;
        snprintf(found, FOUND_MAX, "entered IPC, UTS and cgroup namespaces");
        return FOUND_WORKS;
}

static int probe_seccomp(char found[FOUND_MAX])
{
        static const struct syscall_rule rules[] = { ALLOW(write), ALLOW(exit_group), ALLOW(exit) };
        unsigned notify = SECCOMP_RET_USER_NOTIF;
        bool has_notify = syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &notify) == 0;
        struct err err = ERR_INIT;
        int r;

        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
                return -errno;
        snprintf(found, FOUND_MAX, "a filter held%s", has_notify ? "; a supervisor can answer system calls" : "");
        r = sandbox_filter(rules, ARRAY_SIZE(rules), false, &err);
        if (r < 0) {
                snprintf(found, FOUND_MAX, "%.300s", err.text);
                return r;
        }
        return syscall(SYS_getppid) < 0 && errno == EPERM ? FOUND_WORKS : FOUND_PARTLY;
}

static int probe_landlock(char found[FOUND_MAX])
{
        struct landlock_ruleset_attr attr = { .handled_access_fs = LANDLOCK_ACCESS_FS_READ_FILE };
        long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
        long fd;

        if (version < 0)
                return -errno;
        fd = syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr), 0);
        if (fd < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || syscall(SYS_landlock_restrict_self, fd, 0) < 0)
                return -errno;
        if (open("/proc/self/status", O_RDONLY | O_CLOEXEC) >= 0) {
                snprintf(found, FOUND_MAX, "version %ld, but a forbidden file was opened", version);
                return FOUND_PARTLY;
        }
        snprintf(found, FOUND_MAX, "version %ld, a forbidden file stayed shut", version);
        return FOUND_WORKS;
}

static int probe_memfd(char found[FOUND_MAX])
{
        int fd = memfd_create("virta-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);

        if (fd < 0 || ftruncate(fd, 4096) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0)
                return -errno;
        snprintf(found, FOUND_MAX, "made one and sealed its size");
        return FOUND_WORKS;
}

static int probe_huge_pages(char found[FOUND_MAX])
{
        char shmem[128] = "unknown";
        void *page = mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
        int r = page == MAP_FAILED ? -errno : 0;

        (void)doctor_read_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled", shmem, sizeof(shmem));
        snprintf(found, FOUND_MAX, "reserved 2 MiB pages: %s; transparent ones for memfd: %s", r < 0 ? strerror(-r) : "yes", shmem);
        if (!r)
                return FOUND_WORKS;
        return strstr(shmem, "[always]") || strstr(shmem, "[advise]") || strstr(shmem, "[within_size]") ? FOUND_PARTLY : r;
}

static int probe_io_uring(char found[FOUND_MAX])
{
        struct io_uring_params params = { 0 };
        long fd = syscall(SYS_io_uring_setup, 4, &params);

        if (fd < 0)
                return -errno;
        snprintf(found, FOUND_MAX, "a ring was made, features 0x%x", params.features);
        return FOUND_WORKS;
}

static int probe_userfaultfd(char found[FOUND_MAX])
{
        struct uffdio_api api = { .api = UFFD_API };
        long fd = syscall(SYS_userfaultfd, O_CLOEXEC);
        bool user_only = false;

        if (fd < 0 && errno == EPERM) {
                fd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
                user_only = true;
        }
        if (fd < 0 || ioctl((int)fd, UFFDIO_API, &api) < 0)
                return -errno;
        snprintf(found, FOUND_MAX, "%s, features 0x%llx", user_only ? "only for faults in user mode" : "for all faults",
                 (unsigned long long)api.features);
        return user_only ? FOUND_PARTLY : FOUND_WORKS;
}

static int probe_openat2(char found[FOUND_MAX])
{
        struct open_how how = { .flags = O_RDONLY | O_CLOEXEC, .resolve = RESOLVE_BENEATH };
        int dir = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);

        if (dir < 0)
                return -errno;
        if (syscall(SYS_openat2, dir, "status", &how, sizeof(how)) < 0)
                return -errno;
        if (syscall(SYS_openat2, dir, "../version", &how, sizeof(how)) >= 0)
                return -EBADE;
        snprintf(found, FOUND_MAX, "'..' out of a directory was refused");
        return FOUND_WORKS;
}

static int probe_pidfd(char found[FOUND_MAX])
{
        if (syscall(SYS_pidfd_open, getpid(), 0) < 0)
                return -errno;
        snprintf(found, FOUND_MAX, "opened one");
        return FOUND_WORKS;
}

const struct facility doctor_kernel[] = {
        { "user namespace", "Isolation", "the sandbox, containers and networks without root",
          "the sandbox is Landlock and system-call lists alone; containers need root",
          "sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0, and on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0",
          probe_user_ns },
        { "mount namespace", "Isolation", "a machine's process sees an empty file system", "Landlock alone hides the file system",
          "have user namespaces, or run as root", probe_mount_ns },
        { "network namespace", "Isolation", "a machine's process reaches no network", "the system-call list alone forbids sockets",
          "have user namespaces, or run as root", probe_net_ns },
        { "PID namespace", "Isolation", "containers count their own processes", "containers cannot run", "have user namespaces, or run as root",
          probe_pid_ns },
        { "other namespaces", "Isolation", "containers have their own host name, IPC and cgroup view", "containers share them with the host",
          "have user namespaces, or run as root", probe_other_ns },
        { "seccomp", "Isolation", "each thread may only make the system calls of its list", "it is refused to run a guest with --sandbox on",
          "a kernel with CONFIG_SECCOMP_FILTER", probe_seccomp },
        { "Landlock", "Isolation", "files stay shut even without namespaces", "namespaces and system-call lists alone confine a machine",
          "Linux 5.13 or later, booted with lsm=landlock,...", probe_landlock },
        { "openat2", "Isolation", "a guest cannot leave a shared directory", "--share is refused", "Linux 5.6 or later", probe_openat2 },
        { "memfd", "Memory", "guest memory that other processes can serve and clone", "no guest runs", "a kernel with CONFIG_MEMFD_CREATE",
          probe_memfd },
        { "huge pages", "Memory", "fewer TLB misses in large guests", "guest memory is of 4 KiB pages",
          "sysctl vm.nr_hugepages, or write 'advise' to /sys/kernel/mm/transparent_hugepage/shmem_enabled", probe_huge_pages },
        { "userfaultfd", "Memory", "a restored machine runs before its memory was read", "its memory is read first",
          "sysctl vm.unprivileged_userfaultfd=1, or access to /dev/userfaultfd", probe_userfaultfd },
        { "io_uring", "Input and output", "fast disks", "a pool of threads reads and writes", "sysctl kernel.io_uring_disabled=0; Linux 5.6 or later",
          probe_io_uring },
        { "pidfd", "Input and output", "processes are watched without races", "they are watched by signals", "Linux 5.3 or later", probe_pidfd },
        { 0 },
};
