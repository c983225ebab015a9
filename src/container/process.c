#include "container/process.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/keyctl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/text.h"
#include "container/inside.h"
#include "container/procfs.h"
#include "container/words.h"

/* sched_setattr(2); the C library has no declaration. */
struct sched_attributes {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime_ns, deadline_ns, period_ns;
        uint32_t clamp_min, clamp_max;
};

static int refuse_limit(const struct resource_limit *limit, pid_t pid, int code, struct err *err)
{
        const struct word *word = limit_words;
        struct rlimit now;

        while (word->name && (int)word->value != limit->resource)
                word++;
        if (code == -EPERM && prlimit(pid, (enum __rlimit_resource)limit->resource, NULL, &now) == 0 && limit->limit.rlim_max > now.rlim_max)
                return err_set(err, code, "process.rlimits: %s cannot be raised to %llu here, where %llu is the most (it takes CAP_SYS_RESOURCE)", word->name,
                               (unsigned long long)limit->limit.rlim_max, (unsigned long long)now.rlim_max);
        return err_errno(err, code, "process.rlimits: cannot set %s to %llu, at most %llu", word->name, (unsigned long long)limit->limit.rlim_cur,
                         (unsigned long long)limit->limit.rlim_max);
}

int process_limit(const struct process_config *process, pid_t pid, bool rootless, int proc_fd, struct err *err)
{
        const struct scheduling *s = &process->scheduling;
        char path[64], text[16];
        int r;

        for (size_t i = 0; i < process->limit_count; i++) {
                const struct resource_limit *limit = &process->limits[i];

                if (prlimit(pid, (enum __rlimit_resource)limit->resource, &limit->limit, NULL) < 0)
                        return refuse_limit(limit, pid, -errno, err);
        }
        if (process->oom_score_given) {
                snprintf(path, sizeof(path), "%d/oom_score_adj", (int)pid);
                snprintf(text, sizeof(text), "%d", process->oom_score_adj);
                r = procfs_write(proc_fd, path, text, err);
                /* A lower score than one's own needs a right that a plain user does not have. */
                if (r < 0 && !(rootless && r == -EACCES))
                        return err_wrap(err, r, "process.oomScoreAdj");
        }
        if (s->given) {
                struct sched_attributes attr = { .size = sizeof(attr), .policy = s->policy, .flags = s->flags, .nice = s->nice,
                                                 .priority = s->priority, .runtime_ns = s->runtime_ns, .deadline_ns = s->deadline_ns,
                                                 .period_ns = s->period_ns };

                if (syscall(SYS_sched_setattr, pid, &attr, 0) < 0)
                        return err_errno(err, -errno, "cannot set process.scheduler");
        }
        /* ioprio_set(2): 1 is IOPRIO_WHO_PROCESS. */
        if (process->io_priority >= 0 && syscall(SYS_ioprio_set, 1, pid, process->io_priority) < 0)
                return err_errno(err, -errno, "cannot set process.ioPriority");
        return 0;
}

static int set_label(struct process_plan *plan, const char *file, const char *fallback_file, const char *text, const char *what, struct err *err)
{
        int r = procfs_write(plan->proc_fd, file, text, err);

        if (r == -ENOENT && fallback_file)
                r = procfs_write(plan->proc_fd, fallback_file, text, err);
        return r < 0 ? err_wrap(err, r, "%s (does this host have it turned on?)", what) : 0;
}

/* Labels that take effect when the program is executed. */
static int set_labels(struct process_plan *plan, struct err *err)
{
        const struct process_config *process = plan->process;
        char text[512];
        int r = 0;

        if (process->apparmor_profile && *process->apparmor_profile) {
                snprintf(text, sizeof(text), "exec %s", process->apparmor_profile);
                r = set_label(plan, "thread-self/attr/apparmor/exec", "thread-self/attr/exec", text, "process.apparmorProfile", err);
        }
        if (!r && process->selinux_label && *process->selinux_label)
                r = set_label(plan, "thread-self/attr/exec", NULL, process->selinux_label, "process.selinuxLabel", err);
        return r;
}

/* The bounding set needs CAP_SETPCAP, so it comes before the user does. */
static int drop_bounding(uint64_t keep, struct err *err)
{
        for (int capability = 0; capability < 64; capability++) {
                if (keep >> capability & 1)
                        continue;
                if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0) {
                        if (errno == EINVAL)
                                break; /* past the last one that this kernel knows */
                        return err_errno(err, -errno, "cannot drop capability %d from the bounding set", capability);
                }
        }
        return 0;
}

static int set_capabilities(const struct capability_sets *sets, struct err *err)
{
        struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
        struct __user_cap_data_struct data[2], held[2];
        uint64_t possible;

        /* What was not held before (a runtime with less than all) cannot be given. */
        if (syscall(SYS_capget, &header, held) < 0)
                return err_errno(err, -errno, "cannot read the capabilities");
        possible = held[0].permitted | (uint64_t)held[1].permitted << 32;
        for (int i = 0; i < 2; i++) {
                data[i].permitted = (uint32_t)((sets->permitted & possible) >> 32 * i);
                data[i].effective = (uint32_t)((sets->effective & sets->permitted & possible) >> 32 * i);
                data[i].inheritable = (uint32_t)((sets->inheritable & possible) >> 32 * i);
        }
        if (syscall(SYS_capset, &header, data) < 0)
                return err_errno(err, -errno, "cannot set the capabilities");
        (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        for (int capability = 0; capability < 64; capability++) {
                /* One that is not inheritable as well cannot be ambient: capabilities(7). It is left out, as other runtimes do. */
                if (sets->ambient >> capability & 1)
                        (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0);
        }
        return 0;
}

static int set_groups(const struct process_plan *plan, struct err *err)
{
        const struct process_config *process = plan->process;
        char text[16] = "";

        /* user_namespaces(7): where setgroups is denied the groups stay as they are. */
        if (procfs_read(plan->proc_fd, "thread-self/setgroups", text, sizeof(text)) > 0 && !strncmp(text, "deny", 4)) {
                if (process->group_count)
                        return err_set(err, -EPERM, "process.user.additionalGids cannot be set in this user namespace");
                return 0;
        }
        if (setgroups(process->group_count, process->groups) < 0)
                return err_errno(err, -errno, "cannot set process.user.additionalGids");
        return 0;
}

static int become_user(const struct process_plan *plan, struct err *err)
{
        const struct process_config *process = plan->process;
        int r;

        if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0)
                return err_errno(err, -errno, "cannot keep the capabilities");
        r = set_groups(plan, err);
        if (r < 0)
                return r;
        if (setresgid(process->gid, process->gid, process->gid) < 0)
                return err_errno(err, -errno, "cannot become group %u (is it mapped in the user namespace?)", process->gid);
        if (setresuid(process->uid, process->uid, process->uid) < 0)
                return err_errno(err, -errno, "cannot become user %u (is it mapped in the user namespace?)", process->uid);
        (void)prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0);
        return 0;
}

/*
 * The working directory must be one inside: a path through a descriptor that was left open leads out, and then getcwd() has no
 * answer that begins with "/" (CVE-2024-21626).
 */
static int enter_directory(const struct process_plan *plan, struct err *err)
{
        char path[PATH_MAX];
        long n;

        if (chdir(plan->process->cwd) < 0)
                return err_errno(err, -errno, "cannot enter process.cwd '%s'", plan->process->cwd);
        n = syscall(SYS_getcwd, path, sizeof(path));
        if (n < 1 || path[0] != '/')
                return err_set(err, -EPERM, "process.cwd '%s' is not inside the container", plan->process->cwd);
        return 0;
}

static int try_program(const char *path, char *program)
{
        struct stat st;

        if (stat(path, &st) < 0)
                return -errno;
        if (S_ISDIR(st.st_mode))
                return -EISDIR;
        if (faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) < 0)
                return -errno;
        return text_copy(program, PATH_MAX, path) ? 0 : -ENAMETOOLONG;
}

static const char *find_env(const char *const *env, const char *name)
{
        size_t length = strlen(name);

        for (; *env; env++)
                if (!strncmp(*env, name, length) && (*env)[length] == '=')
                        return *env + length + 1;
        return NULL;
}

/* As execvp() does it: the first that can be run; one that is there and cannot is remembered. */
static int find_program(struct process_plan *plan, struct err *err)
{
        const char *name = plan->process->args[0], *path = find_env(plan->process->env, "PATH");
        char candidate[PATH_MAX];
        int r, seen = -ENOENT;

        if (strchr(name, '/')) {
                r = try_program(name, plan->program);
                return r < 0 ? err_errno(err, r, "cannot run '%s'", name) : 0;
        }
        if (!path)
                path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        for (;; path++) {
                size_t length = strcspn(path, ":");

                if (snprintf(candidate, sizeof(candidate), "%.*s%s%s", (int)length, path, length ? "/" : "", name) < (int)sizeof(candidate)) {
                        r = try_program(candidate, plan->program);
                        if (r == 0)
                                return 0;
                        if (r == -EACCES || r == -EISDIR)
                                seen = -EACCES;
                }
                path += length;
                if (!*path)
                        break;
        }
        if (seen == -EACCES)
                return err_errno(err, seen, "cannot run '%s'", name);
        return err_set(err, -ENOENT, "executable file not found in $PATH: '%s'", name);
}

/* The line of /etc/passwd for the user: its sixth field. */
static bool home_of(int root_fd, uint32_t uid, char *home, size_t size_bytes)
{
        _cleanup_close_ int fd = inside_open(root_fd, "/etc/passwd", O_RDONLY | O_NOCTTY | O_NONBLOCK);
        struct stat st;
        char line[4096];
        FILE *file;
        bool found = false;

        if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size > 16 << 20)
                return false;
        file = fdopen(steal_fd(&fd), "r");
        while (file && !found && fgets(line, sizeof(line), file)) {
                char *rest = line, *fields[7];
                size_t count = 0;

                while (count < 7 && (fields[count] = strsep(&rest, ":\n")))
                        count++;
                if (count < 6 || !*fields[2] || strspn(fields[2], "0123456789") != strlen(fields[2]))
                        continue;
                found = strtoull(fields[2], NULL, 10) == uid && *fields[5] && text_copy(home, size_bytes, fields[5]);
        }
        if (file)
                fclose(file);
        return found;
}

/* A program may count on HOME: from the container's own list of users when the configuration has none. */
static int complete_env(struct process_plan *plan, struct err *err)
{
        const struct process_config *process = plan->process;
        char home[1024] = "/";
        char *entry;

        plan->env = process->env;
        if (find_env(process->env, "HOME"))
                return 0;
        (void)home_of(plan->root_fd, process->uid, home, sizeof(home));
        plan->env = calloc(process->env_count + 2, sizeof(*plan->env));
        if (!plan->env || asprintf(&entry, "HOME=%s", home) < 0)
                return err_nomem(err);
        memcpy(plan->env, process->env, process->env_count * sizeof(*plan->env));
        plan->env[process->env_count] = entry;
        return 0;
}

/* So that the program may write to what it was given: /dev/stdout opened again. */
static void give_standard_descriptors(const struct process_config *process)
{
        struct stat null, st;

        if (!process->uid || stat("/dev/null", &null) < 0)
                return;
        for (int fd = 0; fd < 3; fd++)
                if (fstat(fd, &st) == 0 && st.st_uid != process->uid && st.st_rdev != null.st_rdev && (S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode)))
                        (void)!fchown(fd, process->uid, (gid_t)-1);
}

static int load_seccomp(struct process_plan *plan, struct err *err)
{
        int listener, r = seccomp_load_filter(plan->seccomp, &listener, err);

        if (!r && listener >= 0) {
                r = plan->listen(plan->ctx, listener, err);
                close(listener);
        }
        return r;
}

/* Without no_new_privs a filter needs rights that the process is about to give up; one with a listener is wanted before the start. */
static bool seccomp_waits(const struct process_plan *plan)
{
        return plan->process->no_new_privileges && !plan->seccomp->notifies;
}

int process_prepare(struct process_plan *plan, struct err *err)
{
        const struct process_config *process = plan->process;
        sigset_t none;
        int r;

        /* KEYCTL_JOIN_SESSION_KEYRING: keys of the caller are not the container's. Where the kernel has none, there is nothing to hide. */
        if (plan->new_keyring)
                (void)syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, plan->id, 0, 0, 0);
        if (plan->config->personality_given && personality(plan->config->personality) < 0)
                return err_errno(err, -errno, "cannot set linux.personality");
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        for (int number = 1; number < NSIG; number++)
                (void)signal(number, SIG_DFL);
        r = set_labels(plan, err);
        if (!r)
                r = complete_env(plan, err);
        if (r < 0)
                return r;
        give_standard_descriptors(process);
        if (!seccomp_waits(plan) && !process->no_new_privileges) {
                r = load_seccomp(plan, err);
                if (r < 0)
                        return r;
        }
        r = drop_bounding(process->capabilities.bounding, err);
        if (!r)
                r = become_user(plan, err);
        /* Before the capabilities go: a directory that only root may enter is still one to start in. Then again without. */
        if (!r)
                r = enter_directory(plan, err);
        if (!r)
                r = set_capabilities(&process->capabilities, err);
        if (r < 0)
                return r;
        if (process->umask_given)
                umask((mode_t)process->umask);
        else
                umask(0022);
        if (process->no_new_privileges && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
                return err_errno(err, -errno, "cannot set no_new_privs");
        r = find_program(plan, err);
        if (!r && process->no_new_privileges && plan->seccomp->notifies)
                r = load_seccomp(plan, err);
        return r;
}

int process_execute(struct process_plan *plan, struct err *err)
{
        int r;

        if (syscall(SYS_close_range, 3 + plan->preserved_fds, UINT32_MAX, CLOSE_RANGE_CLOEXEC) < 0)
                return err_errno(err, -errno, "cannot close the descriptors");
        if (seccomp_waits(plan)) {
                r = load_seccomp(plan, err);
                if (r < 0)
                        return r;
        }
        execve(plan->program, (char *const *)plan->process->args, (char *const *)plan->env);
        return err_errno(err, -errno, "cannot run '%s'", plan->program);
}

int process_exit_code(int code)
{
        return code == -ENOENT || code == -ENOTDIR ? 127 : code == -EACCES || code == -ENOEXEC || code == -EISDIR ? 126 : 1;
}
