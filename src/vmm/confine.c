#include "vmm/confine.h"

#include <asm/prctl.h>
#include <asm/termbits.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "base/log.h"

/* libuv's pool, io_uring's workers, and some to spare. */
#define OTHER_THREADS 64
/* Stacks of threads, buffers of requests in flight, the decoder's caches: for each vCPU and once. */
#define EXTRA_BYTES (UINT64_C(1) << 30)
#define EXTRA_BYTES_VCPU (UINT64_C(64) << 20)
#define OPEN_FILES 4096

/* No new executable memory: what translates guest code has mapped its cache before. */
#define ALLOW_MEMORY                                                                                     \
        ALLOW_IF(mmap, 2, PROT_EXEC, 0), ALLOW_IF(mprotect, 2, PROT_EXEC, 0), ALLOW(munmap), ALLOW(mremap), \
                ALLOW(madvise), ALLOW(brk)

/* What any thread of a C library does. */
#define ALLOW_THREAD                                                                                              \
        ALLOW(futex), ALLOW(clock_gettime), ALLOW(clock_nanosleep), ALLOW(gettimeofday), ALLOW(sched_yield),      \
                ALLOW(rt_sigreturn), ALLOW(rt_sigprocmask), ALLOW(sigaltstack), ALLOW(restart_syscall), ALLOW(getpid), \
                ALLOW(gettid), ALLOW(getrandom), ALLOW(exit), ALLOW(exit_group)

/*
 * A vCPU: memory, doorbells (eventfds), timers (a timerfd), its own KVM descriptor, a kick to another vCPU's thread. A driver's
 * reset of the vsock device, which ends its connections, happens here too.
 */
static const struct syscall_rule vcpu_rules[] = {
        ALLOW_THREAD,
        ALLOW_MEMORY,
        ALLOW(read),
        ALLOW(write),
        ALLOW(timerfd_settime),
        ALLOW_IF(ioctl, 1, 0xff00, 0xae00), /* KVM's own (linux/kvm.h: KVMIO) */
        ALLOW_OWN_PID(tgkill, 0),
        ALLOW(fallocate), /* the balloon gives memory back */
        ALLOW(close), ALLOW(epoll_ctl), /* the sockets of vsock connections */
        ALLOW(rseq),
        ALLOW(set_robust_list),
        ALLOW_IF(arch_prctl, 0, UINT64_MAX, ARCH_SET_GS), /* translated code, on processors without WRGSBASE */
        ALLOW(rt_sigaction), /* a crash in translated code: the standard action comes back */
};

/* The loop and its pool: disks, shared directories, consoles, unix sockets, the network process's socket. */
static const struct syscall_rule rules[] = {
        ALLOW_THREAD,
        ALLOW_MEMORY,
        /* the loop */
        ALLOW(epoll_wait), ALLOW(epoll_pwait), ALLOW(epoll_pwait2), ALLOW(epoll_ctl), ALLOW(epoll_create1), ALLOW(poll), ALLOW(ppoll),
        ALLOW(timerfd_create), ALLOW(timerfd_settime), ALLOW(eventfd2), ALLOW(pipe2), ALLOW(rt_sigaction), ALLOW_OWN_PID(tgkill, 0), ALLOW(fcntl),
        /* a thread's own, shorter list: a filter can only take away */
        ALLOW_IF(arch_prctl, 0, UINT64_MAX, ARCH_SET_GS),
        ALLOW(seccomp), ALLOW_IF(prctl, 0, UINT64_MAX, PR_SET_NO_NEW_PRIVS), ALLOW_IF(prctl, 0, UINT64_MAX, PR_GET_NO_NEW_PRIVS),
        /* threads: the flags of a process (no CLONE_THREAD) or of a namespace do not pass */
        ALLOW_IF(clone, 0, CLONE_THREAD | CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP,
                 CLONE_THREAD),
        ALLOW(set_robust_list), ALLOW(rseq), ALLOW_IF(prctl, 0, UINT64_MAX, PR_SET_NAME), ALLOW(sched_getaffinity), ALLOW(sched_setaffinity), ALLOW(getrusage),
        /* descriptors */
        ALLOW(read), ALLOW(write), ALLOW(readv), ALLOW(writev), ALLOW(pread64), ALLOW(pwrite64), ALLOW(preadv), ALLOW(pwritev),
        ALLOW(preadv2), ALLOW(pwritev2), ALLOW(lseek), ALLOW(close), ALLOW(fstat), ALLOW(newfstatat), ALLOW(statx), ALLOW(fsync),
        ALLOW(fdatasync), ALLOW(fallocate), ALLOW(ftruncate), ALLOW(dup), ALLOW(dup3), ALLOW(io_uring_enter),
        /* KVM's; the terminal's mode and size, but not TIOCSTI, which types into it */
        ALLOW_IF(ioctl, 1, 0xff00, 0xae00), ALLOW_IF(ioctl, 1, UINT32_MAX, TCGETS), ALLOW_IF(ioctl, 1, UINT32_MAX, TCSETS),
        ALLOW_IF(ioctl, 1, UINT32_MAX, TCSETSW), ALLOW_IF(ioctl, 1, UINT32_MAX, TCSETSF), ALLOW_IF(ioctl, 1, UINT32_MAX, TIOCGWINSZ),
        ALLOW_IF(ioctl, 1, UINT32_MAX, TIOCGPGRP), ALLOW(getpgrp), ALLOW(getpgid), /* who is in the foreground */
        ALLOW_IF(ioctl, 1, UINT32_MAX, FIONREAD), ALLOW_IF(ioctl, 1, UINT32_MAX, FIONBIO), ALLOW_IF(ioctl, 1, UINT32_MAX, FIOCLEX),
        /* unix sockets of the console and vsock; the network namespace is empty */
        ALLOW(accept4), ALLOW(shutdown), ALLOW(sendmsg), ALLOW(recvmsg),
        ALLOW(sendto), ALLOW(recvfrom), ALLOW(getsockopt), ALLOW(setsockopt), ALLOW(fchdir),
        /* shared directories: the file system has nothing else */
        ALLOW(openat), ALLOW(openat2), ALLOW(mkdirat), ALLOW(mknodat), ALLOW(unlinkat), ALLOW(renameat), ALLOW(renameat2), ALLOW(linkat),
        ALLOW(symlinkat), ALLOW(readlinkat), ALLOW(fchmod), ALLOW(fchmodat), ALLOW(fchown), ALLOW(fchownat), ALLOW(utimensat),
        ALLOW(getdents64), ALLOW(statfs), ALLOW(fstatfs), ALLOW(fgetxattr), ALLOW(fsetxattr), ALLOW(flistxattr), ALLOW(fremovexattr),
        { 452, -1, 0, 0 } /* fchmodat2 */, ALLOW(copy_file_range), ALLOW(faccessat), ALLOW(faccessat2), ALLOW(umask), ALLOW(flock), ALLOW(syncfs),
        /* the machine's state in files that are open already */
        ALLOW(memfd_create),
};

/* vsock calls unix sockets of the host. Without a network namespace any socket could be called: then it only takes calls. */
static const struct syscall_rule call_rules[] = {
        ALLOW_IF(socket, 0, UINT64_MAX, AF_UNIX),
        ALLOW(connect),
};

/* To what confine_enter() leaves: a shared directory takes its part of what there is when it is made. */
static void raise_open_files(void)
{
        struct rlimit limit;

        if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= OPEN_FILES)
                return;
        limit.rlim_cur = MIN(limit.rlim_max, (rlim_t)OPEN_FILES);
        (void)setrlimit(RLIMIT_NOFILE, &limit);
}

int confine_isolate(struct confine *confine, bool off, struct err *err)
{
        int r;

        *confine = (struct confine){ .off = off };
        raise_open_files();
        if (off) {
                log_warning("the sandbox is off: a guest that breaks out of its machine has your rights");
                return 0;
        }
        r = sandbox_isolate(&confine->reached, false, err);
        return r < 0 ? err_wrap(err, r, "isolating the machine") : 0;
}

static int filter_process(bool calls, struct err *err)
{
        struct syscall_rule all[ARRAY_SIZE(rules) + ARRAY_SIZE(call_rules)];

        memcpy(all, rules, sizeof(rules));
        memcpy(all + ARRAY_SIZE(rules), call_rules, sizeof(call_rules));
        return sandbox_filter(all, calls ? ARRAY_SIZE(all) : ARRAY_SIZE(rules), true, err);
}

int confine_enter(struct confine *confine, const struct sandbox_directory *directories, size_t count, unsigned threads, struct err *err)
{
        const struct sandbox_plan plan = {
                .directories = directories,
                .directory_count = count,
                .limits = {
                        .extra_memory_bytes = EXTRA_BYTES + threads * EXTRA_BYTES_VCPU,
                        .files = OPEN_FILES,
                        .threads = threads + OTHER_THREADS,
                },
        };
        int r;

        if (confine->off)
                return 0;
        r = sandbox_confine(&confine->reached, &plan, err);
        if (!r)
                r = filter_process(confine->reached.net_ns, err);
        if (r < 0)
                return err_wrap(err, r, "confining the machine");
        confine->reached.filter = true;
        if (confine->reached.missing[0])
                log_warning("the sandbox is not whole: %s (virta doctor says more)", confine->reached.missing);
        return 0;
}

int confine_vcpu(const struct confine *confine, struct err *err)
{
        return confine->off ? 0 : sandbox_filter(vcpu_rules, ARRAY_SIZE(vcpu_rules), false, err);
}
