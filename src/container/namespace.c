#include "container/namespace.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/nsfs.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "container/procfs.h"
#include "container/words.h"

int namespaces_open(struct namespace_set *set, const struct config *config, struct err *err)
{
        struct namespace_set opened = NAMESPACE_SET_INIT;

        for (int kind = 0; kind < NAMESPACE_COUNT; kind++) {
                const struct namespace_wish *wish = &config->namespaces[kind];

                if (wish->wanted && !wish->path)
                        opened.new_flags |= namespace_words[kind].flag;
                if (!wish->path)
                        continue;
                opened.joined[kind] = open(wish->path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
                if (opened.joined[kind] < 0 || ioctl(opened.joined[kind], NS_GET_NSTYPE) != namespace_words[kind].flag) {
                        int r = opened.joined[kind] < 0 ? err_errno(err, -errno, "cannot open the %s namespace '%s'", namespace_words[kind].name, wish->path)
                                                        : err_set(err, -EINVAL, "'%s' is not a %s namespace", wish->path, namespace_words[kind].name);

                        namespaces_close(&opened);
                        return r;
                }
        }
        *set = opened;
        return 0;
}

void namespaces_close(struct namespace_set *set)
{
        for (int kind = 0; kind < NAMESPACE_COUNT; kind++) {
                closep(&set->joined[kind]);
                set->joined[kind] = -1;
        }
}

bool namespaces_need_step(const struct namespace_set *set, const struct config *config)
{
        for (int kind = 0; kind < NAMESPACE_COUNT; kind++)
                if (set->joined[kind] >= 0)
                        return true;
        return set->new_flags & CLONE_NEWTIME;
}

/* time_namespaces(7): written before the first process is in it. */
static int make_time_namespace(const struct config *config, int proc_fd, struct err *err)
{
        char text[160];

        if (unshare(CLONE_NEWTIME) < 0)
                return err_errno(err, -errno, "cannot make a time namespace");
        if (!config->time_offsets_given)
                return 0;
        snprintf(text, sizeof(text), "monotonic %lld %u\nboottime %lld %u\n", (long long)config->monotonic_s, config->monotonic_ns,
                 (long long)config->boottime_s, config->boottime_ns);
        int r = procfs_write(proc_fd, "self/timens_offsets", text, err);

        return r < 0 ? err_wrap(err, r, "linux.timeOffsets") : 0;
}

/*
 * Namespaces of the host are joined with the host's rights, those of a joined user namespace with the rights in it: what is refused
 * at first is tried again after the user namespace.
 */
int namespaces_join(const struct namespace_set *set, const struct config *config, int proc_fd, struct err *err)
{
        bool done[NAMESPACE_COUNT] = { false };

        for (int pass = 0; pass < 2; pass++) {
                for (int kind = NAMESPACE_COUNT - 1; kind >= 0; kind--) {
                        if (set->joined[kind] < 0 || done[kind] || (pass == 0 && kind == NAMESPACE_USER))
                                continue;
                        if (setns(set->joined[kind], namespace_words[kind].flag) == 0)
                                done[kind] = true;
                        else if (pass == 1 || errno != EPERM || set->joined[NAMESPACE_USER] < 0)
                                return err_errno(err, -errno, "cannot join the %s namespace '%s'", namespace_words[kind].name,
                                                 config->namespaces[kind].path);
                }
                if (pass == 0 && set->joined[NAMESPACE_USER] >= 0) {
                        if (setns(set->joined[NAMESPACE_USER], CLONE_NEWUSER) < 0)
                                return err_errno(err, -errno, "cannot join the user namespace '%s'", config->namespaces[NAMESPACE_USER].path);
                        done[NAMESPACE_USER] = true;
                }
        }
        return set->new_flags & CLONE_NEWTIME ? make_time_namespace(config, proc_fd, err) : 0;
}

pid_t namespaces_clone(int flags, int cgroup_fd)
{
        struct clone_args args = { .flags = (uint64_t)flags, .exit_signal = flags & CLONE_PARENT ? 0 : SIGCHLD };
        long pid;

        if (cgroup_fd >= 0) {
                args.flags |= CLONE_INTO_CGROUP;
                args.cgroup = (uint64_t)cgroup_fd;
        }
        pid = syscall(SYS_clone3, &args, sizeof(args));
        return pid < 0 ? -errno : (pid_t)pid;
}

static int format_map(const struct id_map *maps, size_t count, char **text)
{
        char *at = malloc(count * 36 + 1);

        *text = at;
        if (!at)
                return -ENOMEM;
        *at = 0;
        for (size_t i = 0; i < count; i++)
                at += sprintf(at, "%u %u %u\n", maps[i].inside, maps[i].outside, maps[i].count);
        return 0;
}

/* newuidmap(1) may map what /etc/subuid gives to the user. */
static int run_helper(const char *program, pid_t pid, const struct id_map *maps, size_t count, struct err *err)
{
        _cleanup_free_ char **args = calloc(2 + 3 * count + 1, sizeof(*args));
        _cleanup_free_ char *words = malloc((2 + 3 * count) * 16);
        char *word = words;
        pid_t helper;
        int status;

        if (!args || !words)
                return err_nomem(err);
        args[0] = (char *)program;
        args[1] = word;
        word += sprintf(word, "%d", (int)pid) + 1;
        for (size_t i = 0; i < 3 * count; i++) {
                const uint32_t numbers[] = { maps[i / 3].inside, maps[i / 3].outside, maps[i / 3].count };

                args[2 + i] = word;
                word += sprintf(word, "%u", numbers[i % 3]) + 1;
        }
        helper = fork();
        if (helper == 0) {
                execvp(program, args);
                _exit(errno == ENOENT ? 127 : 126);
        }
        if (helper < 0 || waitpid(helper, &status, 0) < 0)
                return err_errno(err, -errno, "cannot run '%s'", program);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
                return err_set(err, -ENOENT, "'%s' is needed to map more ids than one's own and is not installed (Debian: uidmap)", program);
        return WIFEXITED(status) && WEXITSTATUS(status) == 0
                       ? 0
                       : err_set(err, -EPERM, "'%s' did not map the ids (does /etc/sub%cid give them to this user?)", program, program[3]);
}

static int write_map(const char *file, const char *helper, const struct id_map *maps, size_t count, pid_t pid, int proc_fd, struct err *err)
{
        _cleanup_free_ char *text = NULL;
        char path[64];
        int r;

        if (!count)
                return 0;
        if (format_map(maps, count, &text) < 0)
                return err_nomem(err);
        snprintf(path, sizeof(path), "%d/%s", (int)pid, file);
        r = procfs_write(proc_fd, path, text, err);
        /* The kernel lets a plain user map only itself. */
        return r == -EPERM && geteuid() != 0 ? run_helper(helper, pid, maps, count, err) : r;
}

static bool maps_only_self(const struct id_maps *maps)
{
        return maps->gid_count == 1 && maps->gids[0].count == 1 && maps->gids[0].outside == getegid();
}

int namespaces_map_ids(const struct id_maps *maps, pid_t pid, int proc_fd, struct err *err)
{
        char path[64];
        int r;

        /* "Before writing the gid_map a process without rights must deny setgroups": user_namespaces(7). */
        if (geteuid() != 0 && maps_only_self(maps)) {
                snprintf(path, sizeof(path), "%d/setgroups", (int)pid);
                r = procfs_write(proc_fd, path, "deny", err);
                if (r < 0)
                        return r;
        }
        r = write_map("gid_map", "newgidmap", maps->gids, maps->gid_count, pid, proc_fd, err);
        if (!r)
                r = write_map("uid_map", "newuidmap", maps->uids, maps->uid_count, pid, proc_fd, err);
        return r < 0 ? err_wrap(err, r, "linux.uidMappings") : 0;
}

/* A process that does nothing, as long as the namespace has no other holder. */
int namespaces_make_user(const struct id_maps *maps, int proc_fd, int *userns_fd, struct err *err)
{
        pid_t pid = namespaces_clone(CLONE_NEWUSER, -1);
        char path[64];
        int r, fd;

        if (pid == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                pause();
                _exit(0);
        }
        if (pid < 0)
                return err_errno(err, pid, "cannot make a user namespace");
        r = namespaces_map_ids(maps, pid, proc_fd, err);
        if (!r) {
                snprintf(path, sizeof(path), "/proc/%d/ns/user", (int)pid);
                fd = open(path, O_RDONLY | O_CLOEXEC);
                if (fd < 0)
                        r = err_errno(err, -errno, "cannot open a user namespace");
                else
                        *userns_fd = fd;
        }
        kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, 0);
        return r;
}
