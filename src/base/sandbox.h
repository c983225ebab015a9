/*
 * The sandbox: how a process gives up what it does not need, in three stages.
 *
 *   sandbox_isolate()   first thing, single-threaded. Must: enter new user, mount, network, IPC and UTS namespaces. Must not:
 *                       hide the file system yet, since disks and kernels are still to be opened.
 *   sandbox_confine()   when all is open, before the first byte from outside is acted on, and single-threaded still: what it
 *                       drops is the calling thread's and that of threads made later. Must: leave an empty root that has
 *                       only the directories given, drop every capability, set no_new_privs, Landlock, limits.
 *   sandbox_filter()    on each thread, with that thread's list of system calls. Must: be the last thing before its work.
 *
 * A stage that the host forbids is told in struct sandbox, not passed over in silence: where user namespaces are not allowed
 * Landlock and the system-call lists stand alone. Failing in the middle of a stage is an error: the caller ends.
 *
 * Source: namespaces(7), user_namespaces(7), landlock(7), seccomp(2), pivot_root(2).
 */
#pragma once

#include <seccomp.h>

#include "base/err.h"

/* What was reached; for doctor, the log and tests. */
struct sandbox {
        bool user_ns, mount_ns, net_ns;
        bool empty_root;
        bool no_capabilities, no_new_privs;
        bool landlock;
        bool filter;
        char missing[256]; /* why something above is false; empty when nothing is missing */
};

/* A directory that stays reachable. Its descriptor is replaced by one whose ".." leads nowhere. */
struct sandbox_directory {
        const char *path; /* for messages */
        int fd;           /* opened (O_PATH is enough) between isolate and confine; keeps its number */
        bool readonly;
};

struct sandbox_limits {
        uint64_t extra_memory_bytes; /* address space beyond what is mapped now; 0: no limit */
        unsigned files;              /* RLIMIT_NOFILE; 0: as it is */
        unsigned threads;            /* RLIMIT_NPROC, within the user namespace; 0: as it is */
};

/* What is left after sandbox_confine(). */
struct sandbox_plan {
        const struct sandbox_directory *directories;
        size_t directory_count;
        const char *const *files; /* NULL, or NULL-terminated: small files (64 KiB), copied; those that are not there are left out */
        struct sandbox_limits limits;
};

/*
 * What the host forbids is noted in *sandbox and not an error. keep_network: stay in the network namespace, for a process whose
 * work is the host's sockets.
 */
int sandbox_isolate(struct sandbox *sandbox, bool keep_network, struct err *err) _must_check_;

int sandbox_confine(struct sandbox *sandbox, const struct sandbox_plan *plan, struct err *err) _must_check_;

/* One allowed system call; with argument >= 0 only when (that argument & mask) == value, or is this process's id. */
struct syscall_rule {
        int nr;
        int argument; /* 0-5, or -1 for any */
        uint64_t mask, value;
        bool own_pid;
};

#define ALLOW(name) { SCMP_SYS(name), -1, 0, 0, false }
#define ALLOW_IF(name, argument, mask, value) { SCMP_SYS(name), argument, mask, value, false }
#define ALLOW_OWN_PID(name, argument) { SCMP_SYS(name), argument, UINT32_MAX, 0, true }

/*
 * Allows these system calls to the calling thread (all threads of the process when all_threads) and its children, and answers
 * EPERM to any other (ENOSYS to clone3, so that libraries fall back to clone, whose flags can be looked at). Adds to filters
 * that are there: the stricter answer counts. Rules are read once; the array may go away.
 */
int sandbox_filter(const struct syscall_rule *rules, size_t count, bool all_threads, struct err *err) _must_check_;
