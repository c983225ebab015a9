/*
 * The empty root is a tmpfs of its own, read-only and without devices, with one bind mount for each directory that stays.
 * After pivot_root the old tree is detached, so that a descriptor's ".." cannot climb into it: the caller's descriptors are
 * replaced (dup3) by ones opened below the new root.
 *
 * A user namespace maps only the caller's own uid and gid. As root without the right to make one (some containers), the mount
 * and network namespaces are made with the capabilities that are there, which are dropped later in either case.
 */
#include "base/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <sched.h>
#include <seccomp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>

#include "base/mounts.h"

/* Linux 6.2; Debian 12's headers have up to ABI 2. */
#ifndef LANDLOCK_ACCESS_FS_TRUNCATE
#define LANDLOCK_ACCESS_FS_TRUNCATE (1ull << 14)
#endif

#define ROOT_PLACE "/tmp" /* covered by the new root for a moment, in our mount namespace only */

static void note_missing(struct sandbox *sandbox, const char *fmt, ...) _printf_(2, 3);

static void note_missing(struct sandbox *sandbox, const char *fmt, ...)
{
        size_t have = strlen(sandbox->missing);
        va_list args;

        if (have && have < sizeof(sandbox->missing) - 3)
                have += (size_t)snprintf(sandbox->missing + have, sizeof(sandbox->missing) - have, "; ");
        va_start(args, fmt);
        vsnprintf(sandbox->missing + have, sizeof(sandbox->missing) - have, fmt, args);
        va_end(args);
}

static int write_file(const char *path, const char *text, struct err *err)
{
        _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

        if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
                return err_errno(err, -errno, "cannot write '%s'", path);
        return 0;
}

/* user_namespaces(7), "Defining user and group ID mappings": one line each, setgroups denied first. */
static int map_own_ids(uid_t uid, gid_t gid, struct err *err)
{
        char map[64];
        int r = write_file("/proc/self/setgroups", "deny", err);

        if (r < 0 && r != -ENOENT)
                return r;
        snprintf(map, sizeof(map), "%u %u 1", (unsigned)uid, (unsigned)uid);
        r = write_file("/proc/self/uid_map", map, err);
        if (r < 0)
                return r;
        snprintf(map, sizeof(map), "%u %u 1", (unsigned)gid, (unsigned)gid);
        return write_file("/proc/self/gid_map", map, err);
}

int sandbox_isolate(struct sandbox *sandbox, bool keep_network, struct err *err)
{
        const int own = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | (keep_network ? 0 : CLONE_NEWNET);
        uid_t uid = geteuid();
        gid_t gid = getegid();
        int r;

        *sandbox = (struct sandbox){ 0 };
        if (unshare(CLONE_NEWUSER | own) == 0) {
                r = map_own_ids(uid, gid, err);
                if (r < 0)
                        return err_wrap(err, r, "entering a user namespace");
                sandbox->user_ns = true;
        } else {
                note_missing(sandbox, "user namespaces are not allowed here (%s)", strerror(errno));
                if (unshare(own) < 0) {
                        note_missing(sandbox, "nor mount and network namespaces without them");
                        return 0;
                }
        }
        sandbox->mount_ns = true;
        sandbox->net_ns = !keep_network;
        /* From here on nothing that is mounted reaches the host's tree. */
        r = mounts_propagate(MS_PRIVATE);
        if (r < 0)
                return err_errno(err, r, "cannot make the mounts of the sandbox private");
        return 0;
}

/* Flags that a less privileged mount namespace may not clear stay set (mount_namespaces(7)). */
static unsigned long locked_flags(const char *path)
{
        static const struct {
                unsigned long st, ms;
        } map[] = {
                { ST_RDONLY, MS_RDONLY },   { ST_NOSUID, MS_NOSUID },   { ST_NODEV, MS_NODEV },       { ST_NOEXEC, MS_NOEXEC },
                { ST_NOATIME, MS_NOATIME }, { ST_NODIRATIME, MS_NODIRATIME }, { ST_RELATIME, MS_RELATIME },
        };
        struct statvfs fs;
        unsigned long flags = 0;

        if (statvfs(path, &fs) < 0)
                return 0;
        for (size_t i = 0; i < ARRAY_SIZE(map); i++)
                if (fs.f_flag & map[i].st)
                        flags |= map[i].ms;
        return flags;
}

static int bind_directory(const struct sandbox_directory *directory, unsigned number, struct err *err)
{
        char place[64];
        _cleanup_close_ int tree = -1;
        unsigned long flags;

        snprintf(place, sizeof(place), ROOT_PLACE "/%u", number);
        if (mkdir(place, 0700) < 0)
                return err_errno(err, -errno, "cannot make a place for '%s' in the sandbox", directory->path);
        tree = open_tree(directory->fd, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
        if (tree < 0 || move_mount(tree, "", AT_FDCWD, place, MOVE_MOUNT_F_EMPTY_PATH) < 0)
                return err_errno(err, -errno, "cannot bind '%s' into the sandbox", directory->path);
        flags = locked_flags(place) | MS_NODEV | MS_NOSUID | MS_NOEXEC | (directory->readonly ? MS_RDONLY : 0);
        if (mount(NULL, place, NULL, MS_REMOUNT | MS_BIND | flags, NULL) < 0)
                return err_errno(err, -errno, "cannot restrict '%s' in the sandbox", directory->path);
        return 0;
}

/* /a/b/c of the host as /a/b/c of the new root, with the directories above it. */
static int copy_file(const char *path, struct err *err)
{
        _cleanup_close_ int from = open(path, O_RDONLY | O_CLOEXEC);
        _cleanup_close_ int to = -1;
        char place[256];
        char buffer[4096];
        ssize_t n;

        if (from < 0)
                return 0;
        if (snprintf(place, sizeof(place), ROOT_PLACE "%s", path) >= (int)sizeof(place))
                return err_set(err, -ENAMETOOLONG, "'%s' is too long a name for the sandbox", path);
        for (char *slash = place + strlen(ROOT_PLACE) + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
                *slash = 0;
                if (mkdir(place, 0755) < 0 && errno != EEXIST)
                        return err_errno(err, -errno, "cannot make a place for '%s' in the sandbox", path);
        }
        to = open(place, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0444);
        while (to >= 0 && (n = read(from, buffer, sizeof(buffer))) > 0)
                if (write(to, buffer, (size_t)n) != n)
                        return err_errno(err, -errno, "cannot copy '%s' into the sandbox", path);
        if (to < 0 || n < 0)
                return err_errno(err, -errno, "cannot copy '%s' into the sandbox", path);
        return 0;
}

static int enter_empty_root(const struct sandbox_plan *plan, struct err *err)
{
        const unsigned long flags = MS_NODEV | MS_NOSUID | MS_NOEXEC;
        int r;

        if (mount("virta", ROOT_PLACE, "tmpfs", flags, "size=256k,nr_inodes=128,mode=0755") < 0)
                return err_errno(err, -errno, "cannot mount an empty root for the sandbox");
        for (size_t i = 0; i < plan->directory_count; i++) {
                r = bind_directory(&plan->directories[i], (unsigned)i, err);
                if (r < 0)
                        return r;
        }
        for (size_t i = 0; plan->files && plan->files[i]; i++) {
                r = copy_file(plan->files[i], err);
                if (r < 0)
                        return r;
        }
        if (mount(NULL, ROOT_PLACE, NULL, MS_REMOUNT | MS_RDONLY | flags, NULL) < 0)
                return err_errno(err, -errno, "cannot make the root of the sandbox read-only");
        /* pivot_root(2), "pivot_root(".", ".")": the old root is stacked on the new one and then detached. */
        if (chdir(ROOT_PLACE) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
                return err_errno(err, -errno, "cannot enter the empty root of the sandbox");
        for (size_t i = 0; i < plan->directory_count; i++) {
                _cleanup_close_ int fd = -1;
                char place[32];

                snprintf(place, sizeof(place), "/%zu", i);
                fd = open(place, O_PATH | O_DIRECTORY | O_CLOEXEC);
                if (fd < 0 || dup3(fd, plan->directories[i].fd, O_CLOEXEC) < 0)
                        return err_errno(err, -errno, "cannot reopen '%s' in the sandbox", plan->directories[i].path);
        }
        return 0;
}

static int drop_capabilities(struct err *err)
{
        struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
        struct __user_cap_data_struct none[2] = { { 0 } };

        for (int cap = 0; cap <= CAP_LAST_CAP; cap++)
                if (prctl(PR_CAPBSET_READ, cap, 0, 0, 0) == 1 && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno != EPERM)
                        return err_errno(err, -errno, "cannot drop capability %d for good", cap);
        if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 && errno != EINVAL)
                return err_errno(err, -errno, "cannot clear the ambient capabilities");
        if (syscall(SYS_capset, &header, none) < 0)
                return err_errno(err, -errno, "cannot drop the capabilities");
        return 0;
}

/* Reading below directory; all else as well when it is not read-only. */
static int landlock_rule(int ruleset, int directory, bool readonly, uint64_t handled, struct err *err)
{
        const uint64_t reading = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR;
        struct landlock_path_beneath_attr attr = {
                .parent_fd = directory, .allowed_access = readonly ? reading : handled & ~(uint64_t)LANDLOCK_ACCESS_FS_EXECUTE,
        };

        if (syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &attr, 0) < 0)
                return err_errno(err, -errno, "cannot allow a directory in the sandbox");
        return 0;
}

static int landlock_file(int ruleset, const char *path, struct err *err)
{
        _cleanup_close_ int fd = open(path, O_PATH | O_CLOEXEC);
        struct landlock_path_beneath_attr attr = { .parent_fd = fd, .allowed_access = LANDLOCK_ACCESS_FS_READ_FILE };

        if (fd >= 0 && syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &attr, 0) < 0)
                return err_errno(err, -errno, "cannot allow '%s' in the sandbox", path);
        return 0;
}

/* 0, or -EOPNOTSUPP where the kernel has no Landlock. */
static int enter_landlock(const struct sandbox_plan *plan, struct err *err)
{
        long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
        struct landlock_ruleset_attr attr = { .handled_access_fs = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1 };
        _cleanup_close_ int ruleset = -1;
        int r = 0;

        if (abi < 1)
                return -EOPNOTSUPP;
        if (abi >= 2)
                attr.handled_access_fs |= LANDLOCK_ACCESS_FS_REFER;
        if (abi >= 3)
                attr.handled_access_fs |= LANDLOCK_ACCESS_FS_TRUNCATE;
        ruleset = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr), 0);
        if (ruleset < 0)
                return err_errno(err, -errno, "cannot make a Landlock ruleset");
        for (size_t i = 0; !r && i < plan->directory_count; i++)
                r = landlock_rule(ruleset, plan->directories[i].fd, plan->directories[i].readonly, attr.handled_access_fs, err);
        for (size_t i = 0; !r && plan->files && plan->files[i]; i++)
                r = landlock_file(ruleset, plan->files[i], err);
        if (!r && syscall(SYS_landlock_restrict_self, ruleset, 0) < 0)
                return err_errno(err, -errno, "cannot enter Landlock");
        return r;
}

static int limit(int resource, const char *name, uint64_t value, struct err *err)
{
        struct rlimit now;
        struct rlimit lower;

        if (getrlimit((__rlimit_resource_t)resource, &now) < 0)
                return err_errno(err, -errno, "cannot read the limit of %s", name);
        lower.rlim_max = MIN((rlim_t)value, now.rlim_max);
        lower.rlim_cur = lower.rlim_max;
        if (setrlimit((__rlimit_resource_t)resource, &lower) < 0)
                return err_errno(err, -errno, "cannot limit %s to %llu", name, (unsigned long long)lower.rlim_max);
        return 0;
}

static uint64_t mapped_bytes(void)
{
        _cleanup_close_ int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
        char text[128] = "";

        if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
                return 0;
        return strtoull(text, NULL, 10) * (uint64_t)sysconf(_SC_PAGESIZE);
}

static int set_limits(const struct sandbox *sandbox, const struct sandbox_limits *limits, uint64_t mapped, struct err *err)
{
        int r = limit(RLIMIT_CORE, "core dumps", 0, err);

        if (!r && limits->files)
                r = limit(RLIMIT_NOFILE, "open files", limits->files, err);
        /* The count is the user's in this user namespace; without one it would be that of all the user's processes. */
        if (!r && limits->threads && sandbox->user_ns)
                r = limit(RLIMIT_NPROC, "threads", limits->threads, err);
        if (!r && limits->extra_memory_bytes && mapped)
                r = limit(RLIMIT_AS, "memory", mapped + limits->extra_memory_bytes, err);
        return r;
}

int sandbox_confine(struct sandbox *sandbox, const struct sandbox_plan *plan, struct err *err)
{
        uint64_t mapped = mapped_bytes(); /* while there is a /proc */
        int r;

        if (sandbox->mount_ns) {
                r = enter_empty_root(plan, err);
                if (r < 0)
                        return r;
                sandbox->empty_root = true;
        }
        r = drop_capabilities(err);
        if (r < 0)
                return r;
        sandbox->no_capabilities = true;
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
                return err_errno(err, -errno, "cannot set no_new_privs");
        sandbox->no_new_privs = true;
        /* Not dumpable: others of this user cannot trace it or read its memory. */
        if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
                return err_errno(err, -errno, "cannot make the process undumpable");
        r = enter_landlock(plan, err);
        if (r == 0)
                sandbox->landlock = true;
        else if (r == -EOPNOTSUPP)
                note_missing(sandbox, "the kernel has no Landlock");
        else
                return r;
        if (!sandbox->mount_ns && !sandbox->landlock)
                note_missing(sandbox, "files are guarded by the list of system calls alone");
        return set_limits(sandbox, &plan->limits, mapped, err);
}

static int add_rule(scmp_filter_ctx filter, const struct syscall_rule *rule)
{
        struct scmp_arg_cmp compare;

        if (rule->argument < 0)
                return seccomp_rule_add(filter, SCMP_ACT_ALLOW, rule->nr, 0);
        compare = (struct scmp_arg_cmp){
                .arg = (unsigned)rule->argument, .op = SCMP_CMP_MASKED_EQ, .datum_a = rule->mask,
                .datum_b = rule->own_pid ? (uint64_t)getpid() : rule->value,
        };
        return seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, rule->nr, 1, &compare);
}

int sandbox_filter(const struct syscall_rule *rules, size_t count, bool all_threads, struct err *err)
{
        scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
        int r;

        if (!filter)
                return err_set(err, -ENOMEM, "cannot make a system-call filter");
        r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, all_threads);
        if (!r) /* a tree by number instead of a list: the data path makes many calls */
                r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
        if (!r)
                r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
        for (size_t i = 0; !r && i < count; i++)
                r = add_rule(filter, &rules[i]);
        if (!r)
                r = seccomp_load(filter);
        seccomp_release(filter);
        if (r < 0)
                return err_errno(err, r, "cannot load the list of %zu system calls", count);
        return 0;
}
