/*
 * A further process in a container that runs.
 *
 * All its namespaces are entered at once, by the descriptor of its first process (setns(2), Linux 5.8); the process in between then
 * makes the one that becomes the program, since a PID namespace holds for children only. Until it is the program neither can be
 * looked into by the container's processes (not dumpable), and their file is a copy of the runtime's that cannot be written to
 * (sealed-exe.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "container/channel.h"
#include "container/console.h"
#include "container/container.h"
#include "container/launch.h"
#include "container/process.h"
#include "container/procfs.h"
#include "container/words.h"

struct execution {
        const struct runtime *runtime;
        const struct exec_options *options;
        struct container_state state;
        struct config process; /* of --process, or what the options say */
        struct seccomp_filter seccomp;
        int pid_fd, channel, master;
        pid_t pid;
};

static void execution_done(struct execution *e)
{
        seccomp_filter_done(&e->seccomp);
        closep(&e->pid_fd);
        closep(&e->channel);
        closep(&e->master);
        config_done(&e->process);
        state_done(&e->state);
}

static size_t count_of(const char *const *list)
{
        size_t n = 0;

        while (list && list[n])
                n++;
        return n;
}

/* "UID[:GID]" */
static int set_user(struct process_config *process, const char *user, struct err *err)
{
        char *end;
        unsigned long uid = strtoul(user, &end, 10), gid = 0;

        if (end == user || (*end && *end != ':'))
                return err_set(err, -EINVAL, "'%s' is not UID[:GID]: names are for the caller to look up", user);
        if (*end == ':') {
                char *second = end + 1;

                gid = strtoul(second, &end, 10);
                if (end == second || *end)
                        return err_set(err, -EINVAL, "'%s' is not UID[:GID]: names are for the caller to look up", user);
        }
        if (uid >= UINT32_MAX || gid >= UINT32_MAX)
                return err_set(err, -EINVAL, "'%s' is not UID[:GID]: an id is too great", user);
        process->uid = (uint32_t)uid;
        process->gid = (uint32_t)gid;
        return 0;
}

/* The container's own process with the options' changes. */
static int compose_process(struct execution *e, struct err *err)
{
        const struct exec_options *o = e->options;
        struct process_config *process = &e->process.process;
        size_t own, added = count_of(o->env);
        const char **env;
        int r = 0;

        *process = e->state.config.process;
        own = process->env_count;
        env = arena_take(&e->process.arena, own + added + 1, sizeof(*env));
        if (!env)
                return err_nomem(err);
        memcpy(env, process->env, own * sizeof(*env));
        for (size_t i = 0; i < added; i++)
                env[own + i] = o->env[i];
        process->env = env;
        process->env_count = own + added;
        process->args = (const char **)o->args;
        process->arg_count = count_of(o->args);
        process->terminal = o->terminal;
        process->cwd = o->cwd ? o->cwd : process->cwd;
        process->apparmor_profile = o->apparmor ? o->apparmor : process->apparmor_profile;
        process->selinux_label = o->label ? o->label : process->selinux_label;
        process->no_new_privileges |= o->no_new_privileges;
        process->limits = e->state.config.process.limits;
        if (!process->arg_count)
                return err_set(err, -EINVAL, "no program is given to run in container '%s'", o->id);
        if (o->user)
                r = set_user(process, o->user, err);
        if (!r && o->group_count) {
                process->groups = (uint32_t *)o->groups;
                process->group_count = o->group_count;
        }
        for (const char *const *name = o->capabilities; !r && name && *name; name++) {
                const struct word *word = word_find(capability_words, *name);

                if (!word)
                        return err_set(err, -EINVAL, "'%s' is not a capability", *name);
                uint64_t bit = UINT64_C(1) << word->value;
                process->capabilities.bounding |= bit;
                process->capabilities.effective |= bit;
                process->capabilities.permitted |= bit;
        }
        return r;
}

/* Those that are other than our own; entering one's own user namespace again is refused. */
static int namespaces_of(const struct execution *e, int *flags, struct err *err)
{
        *flags = 0;
        for (int kind = 0; kind < NAMESPACE_COUNT; kind++) {
                char path[64];
                struct stat theirs, ours;

                snprintf(path, sizeof(path), "/proc/%d/ns/%s", (int)e->state.pid, namespace_words[kind].file);
                if (stat(path, &theirs) < 0) {
                        if (errno == ENOENT && kind == NAMESPACE_TIME)
                                continue;
                        return err_errno(err, -errno, "cannot look at the namespaces of container '%s'", e->state.id);
                }
                snprintf(path, sizeof(path), "/proc/self/ns/%s", namespace_words[kind].file);
                if (stat(path, &ours) < 0 || ours.st_ino != theirs.st_ino)
                        *flags |= namespace_words[kind].flag;
        }
        return 0;
}

static int tell_listener(void *ctx, int fd, struct err *err)
{
        int channel = *(int *)ctx, r = channel_send(channel, MESSAGE_LISTENER, fd, -1, err);

        return r < 0 ? r : channel_expect(channel, MESSAGE_LISTENER_TAKEN, NULL, err);
}

static int open_terminal(int channel, int root_fd, const struct process_config *process, struct err *err)
{
        _cleanup_close_ int master = -1;
        int r = console_open(root_fd, process, false, &master, err);

        return r < 0 ? r : channel_send(channel, MESSAGE_CONSOLE, 0, master, err);
}

/* In the container, on the way to the program. */
static _Noreturn void be_process(struct execution *e, int channel, bool own_user_namespace)
{
        struct process_plan plan = {
                .process = &e->process.process, .config = &e->state.config, .seccomp = &e->seccomp, .id = e->state.id, .proc_fd = e->runtime->proc_fd,
                .preserved_fds = e->options->preserved_fds, .listen = tell_listener, .ctx = &channel,
        };
        struct err err = ERR_INIT;
        int r = channel_expect(channel, MESSAGE_JOINED, NULL, &err);

        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        if (!r && own_user_namespace) {
                (void)setgroups(0, NULL);
                if (setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
                        r = err_errno(&err, -errno, "cannot become root of the user namespace");
        }
        if (!r && setsid() < 0)
                r = err_errno(&err, -errno, "cannot make a session");
        plan.root_fd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (!r && plan.root_fd < 0)
                r = err_errno(&err, -errno, "cannot open the container's root");
        if (!r && plan.process->terminal)
                r = open_terminal(channel, plan.root_fd, plan.process, &err);
        if (!r)
                r = process_prepare(&plan, &err);
        if (!r)
                r = channel_send(channel, MESSAGE_READY, 0, -1, &err);
        if (!r)
                r = channel_expect(channel, MESSAGE_RELEASE, NULL, &err);
        prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0);
        if (!r)
                r = process_execute(&plan, &err);
        err.code = r;
        channel_send_error(channel, &err);
        _exit(process_exit_code(r));
}

static _Noreturn void be_step(struct execution *e, int channel, int flags)
{
        struct err err = ERR_INIT;
        pid_t pid;
        int r = 0;

        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        /* The container's processes may not look into us, nor take our descriptors. */
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
        if (flags && setns(e->pid_fd, flags) < 0)
                r = err_errno(&err, -errno, "cannot enter the namespaces of container '%s'", e->state.id);
        if (!r) {
                pid = namespaces_clone(CLONE_PARENT, -1);
                if (pid == 0)
                        be_process(e, channel, flags & CLONE_NEWUSER);
                r = pid < 0 ? err_errno(&err, pid, "cannot make a process in container '%s'", e->state.id)
                            : channel_send(channel, MESSAGE_PID, pid, -1, &err);
        }
        if (r < 0)
                channel_send_error(channel, &err);
        _exit(r < 0);
}

static int answer(struct execution *e, const struct message *message, int *fd, struct err *err)
{
        json_t *state;
        int r;

        switch (message->kind) {
        case MESSAGE_CONSOLE:
                if (e->options->console_socket)
                        return console_send(e->options->console_socket, *fd, err);
                e->master = steal_fd(fd);
                return 0;
        case MESSAGE_LISTENER:
                state = state_json(&e->state, CONTAINER_RUNNING, e->state.pid);
                r = state ? send_listener(&e->state.config.seccomp, e->pid, message->number, state, err) : err_nomem(err);
                json_decref(state);
                return r < 0 ? r : channel_send(e->channel, MESSAGE_LISTENER_TAKEN, 0, -1, err);
        default:
                return err_set(err, -EBADMSG, "message %d is not expected from the process", message->kind);
        }
}

static int converse(struct execution *e, struct err *err)
{
        for (;;) {
                struct message message = { 0 };
                _cleanup_close_ int fd = -1;
                int r = channel_receive(e->channel, &message, &fd, err);

                if (r < 0 || message.kind == MESSAGE_READY)
                        return r;
                r = answer(e, &message, &fd, err);
                if (r < 0)
                        return r;
        }
}

static int begin(struct execution *e, struct err *err)
{
        int ends[2], flags, number = 0;
        struct message message = { 0 };
        int fd, r = namespaces_of(e, &flags, err);
        pid_t step;

        if (!r)
                r = channel_make(ends, err);
        if (r < 0)
                return r;
        e->channel = ends[0];
        step = namespaces_clone(0, -1);
        if (step == 0) {
                close(ends[0]);
                be_step(e, ends[1], flags);
        }
        close(ends[1]);
        if (step < 0)
                return err_errno(err, step, "cannot make a process");
        r = channel_expect(e->channel, MESSAGE_PID, &number, err);
        while (waitpid(step, NULL, 0) < 0 && errno == EINTR)
                ;
        if (r < 0)
                return r;
        e->pid = number;
        r = cgroup_enter(&e->state.cgroup, e->pid, err);
        if (!r)
                r = process_limit(&e->process.process, e->pid, e->runtime->rootless, e->runtime->proc_fd, err);
        if (!r)
                r = channel_send(e->channel, MESSAGE_JOINED, 0, -1, err);
        if (!r)
                r = converse(e, err);
        if (!r)
                r = write_pid_file(e->options->pid_file, e->pid, err);
        if (!r)
                r = channel_send(e->channel, MESSAGE_RELEASE, 0, -1, err);
        if (!r)
                r = channel_receive(e->channel, &message, &fd, err);
        return r == -EPIPE ? 0 : r;
}

static int open_target(struct execution *e, struct err *err)
{
        enum container_status status;
        uint64_t ticks;
        int r = state_open(e->runtime->root, e->options->id, STATE_LOCK_NONE, &e->state, err);

        if (!r)
                r = state_open_config(&e->state, err);
        if (r < 0)
                return r;
        status = state_status(&e->state, e->runtime->proc_fd);
        if (status == CONTAINER_STOPPED || status == CONTAINER_CREATING || (status == CONTAINER_PAUSED && !e->options->ignore_paused))
                return err_set(err, -EBUSY, "cannot run a process in container '%s': it is %s", e->options->id, container_status_names[status]);
        e->pid_fd = (int)syscall(SYS_pidfd_open, e->state.pid, 0);
        if (e->pid_fd < 0 || procfs_start_time(e->runtime->proc_fd, e->state.pid, &ticks, NULL) < 0 || ticks != e->state.start_ticks)
                return err_set(err, -ESRCH, "cannot run a process in container '%s': it is stopped", e->options->id);
        return 0;
}

int container_exec(const struct runtime *runtime, const struct exec_options *options, int *exit_code, struct err *err)
{
        _cleanup_(execution_done) struct execution e = { runtime, options, CONTAINER_STATE_INIT, .pid_fd = -1, .channel = -1, .master = -1 };
        _cleanup_close_ int watch = -1;
        int r = open_target(&e, err);

        if (!r)
                r = options->process_file ? config_read_process(&e.process, options->process_file, err) : compose_process(&e, err);
        if (r < 0)
                return r;
        if (e.process.process.terminal && !options->console_socket && options->detach)
                return err_set(err, -EINVAL, "a terminal is asked for, and nobody is there to take it: --console-socket is needed with --detach");
        r = seccomp_compile(&e.state.config.seccomp, &e.seccomp, err);
        if (!r)
                r = begin(&e, err);
        if (r < 0) {
                if (e.pid > 0)
                        kill_and_reap(e.pid);
                return r;
        }
        *exit_code = 0;
        if (options->detach)
                return 0;
        watch = (int)syscall(SYS_pidfd_open, e.pid, 0);
        if (watch < 0)
                return err_errno(err, -errno, "cannot watch the process");
        if (e.master >= 0)
                r = console_relay(e.master, watch, err);
        if (!r)
                *exit_code = wait_forwarding(e.pid, watch);
        return r;
}
