/*
 * Making a container: the runtime's side of channel.h.
 *
 * The record comes first (state.h), then groups, then the process; whatever fails on the way takes away what was made before it. The
 * process waits on the channel at each step, so that it ends with us when we are killed.
 *
 * With version 1 each hierarchy takes a process in only after a moment that the kernel needs for itself (some milliseconds for the
 * first); meanwhile the process builds its file system.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#include "container/channel.h"
#include "container/console.h"
#include "container/container.h"
#include "container/hook.h"
#include "container/init.h"
#include "container/launch.h"
#include "container/mount.h"
#include "container/process.h"
#include "container/procfs.h"
#include "container/start-gate.h"

struct creation {
        const struct runtime *runtime;
        const struct create_options *options;
        struct container_state state;
        struct namespace_set namespaces;
        struct seccomp_filter seccomp;
        int bundle_fd, gate_fd, channel;
        int master; /* the terminal's, for run; -1: none */
        bool with_gate;
};

static void creation_done(struct creation *c)
{
        namespaces_close(&c->namespaces);
        seccomp_filter_done(&c->seccomp);
        closep(&c->bundle_fd);
        closep(&c->gate_fd);
        closep(&c->channel);
        closep(&c->master);
        state_done(&c->state);
}

static int check_bundle(const struct creation *c, struct err *err)
{
        const struct config *config = &c->state.config;

        if (!config->process_given)
                return err_set(err, -EINVAL, "config.json has no process: nothing to run");
        if (config->intel_rdt)
                return err_set(err, -ENOTSUP, "linux.intelRdt is asked for, which is not supported");
        if (config->process.terminal && !c->options->console_socket && (c->with_gate || c->options->detach))
                return err_set(err, -EINVAL, "process.terminal is true, and nobody is there to take the terminal: --console-socket is needed");
        if (!config->process.terminal && c->options->console_socket)
                return err_set(err, -EINVAL, "--console-socket is given, but process.terminal is false");
        if (config->mount_label && *config->mount_label && access("/sys/fs/selinux", F_OK) < 0)
                return err_set(err, -ENOTSUP, "linux.mountLabel is given, but this host has no SELinux");
        return 0;
}

static int open_bundle(struct creation *c, struct err *err)
{
        char path[PATH_MAX];
        int r;

        c->bundle_fd = open(c->options->bundle, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (c->bundle_fd < 0)
                return err_errno(err, -errno, "cannot open the bundle '%s'", c->options->bundle);
        r = config_read(&c->state.config, c->bundle_fd, "config.json", err);
        if (r < 0)
                return err_wrap(err, r, "the bundle '%s'", c->options->bundle);
        if (!realpath(c->options->bundle, path))
                return err_errno(err, -errno, "cannot open the bundle '%s'", c->options->bundle);
        c->state.bundle = strdup(path);
        if (c->state.config.root_path[0] == '/')
                c->state.rootfs = strdup(c->state.config.root_path);
        else if (asprintf(&c->state.rootfs, "%s/%s", path, c->state.config.root_path) < 0)
                c->state.rootfs = NULL;
        if (!c->state.bundle || !c->state.rootfs)
                return err_nomem(err);
        return check_bundle(c, err);
}

/* Mounts that need the host's rights, or ids of a user namespace that is only now there. */
static int send_trees(struct creation *c, pid_t pid, struct err *err)
{
        const struct config *config = &c->state.config;
        _cleanup_close_ int own_userns = -1;
        char path[64];
        int r = 0;

        if (config->namespaces[NAMESPACE_USER].wanted) {
                _cleanup_close_ int root = -1;

                snprintf(path, sizeof(path), "/proc/%d/ns/user", (int)pid);
                own_userns = open(path, O_RDONLY | O_CLOEXEC);
                if (own_userns < 0)
                        return err_errno(err, -errno, "cannot open the container's user namespace");
                /* A plain user may not take mounts of the host: then the process does it for itself, as far as it can. */
                r = mount_copy(AT_FDCWD, c->state.rootfs, true, &root, err);
                if (r == -EPERM && geteuid() != 0)
                        return 0;
                if (!r)
                        r = channel_send(c->channel, MESSAGE_TREE, -1, root, err);
        }
        for (size_t i = 0; i < config->mount_count && !r; i++) {
                const struct mount_config *mount = &config->mounts[i];
                _cleanup_close_ int tree = -1, userns = -1;

                if (!rootfs_parent_makes(config, mount))
                        continue;
                r = mount_prepare(mount, c->bundle_fd, &tree, err);
                if (!r && mount->id_mapped && mount->id_maps.uid_count)
                        r = namespaces_make_user(&mount->id_maps, c->runtime->proc_fd, &userns, err);
                if (!r && mount->id_mapped && userns < 0 && own_userns < 0)
                        r = err_set(err, -EINVAL, "an idmap needs mappings: the mount's own, or a user namespace");
                if (!r && mount->id_mapped)
                        r = mount_map_ids(tree, userns >= 0 ? userns : own_userns, mount->id_mapped_recursive, err);
                if (!r)
                        r = channel_send(c->channel, MESSAGE_TREE, (int)i, tree, err);
                if (r < 0)
                        err_wrap(err, r, "mounting '%s'", mount->destination);
        }
        return r;
}

static int run_hooks(struct creation *c, enum hook_kind kind, const char *status, struct err *err)
{
        json_t *annotations = json_object_get(c->state.config.json, "annotations");
        _cleanup_free_ char *text = NULL;

        if (!c->state.config.hook_counts[kind])
                return 0;
        text = hook_state(c->state.id, status, c->state.pid, c->state.bundle, annotations);
        return text ? hooks_run(&c->state.config, kind, text, c->state.bundle, err) : err_nomem(err);
}

static int answer_listener(struct creation *c, int number, struct err *err)
{
        json_t *state = state_json(&c->state, CONTAINER_CREATING, c->state.pid);
        int r = state ? send_listener(&c->state.config.seccomp, c->state.pid, number, state, err) : err_nomem(err);

        json_decref(state);
        return r < 0 ? r : channel_send(c->channel, MESSAGE_LISTENER_TAKEN, 0, -1, err);
}

static int answer_console(struct creation *c, int *master, struct err *err)
{
        if (*master < 0)
                return err_set(err, -EBADMSG, "no terminal came");
        if (c->options->console_socket)
                return console_send(c->options->console_socket, *master, err);
        c->master = steal_fd(master);
        return 0;
}

/* What the process asks for, until it is ready. */
static int converse(struct creation *c, struct err *err)
{
        for (;;) {
                struct message message = { 0 };
                _cleanup_close_ int fd = -1;
                int r = channel_receive(c->channel, &message, &fd, err);

                if (r < 0)
                        return r;
                switch (message.kind) {
                case MESSAGE_HOOKS:
                        r = process_limit(&c->state.config.process, c->state.pid, c->runtime->rootless, c->runtime->proc_fd, err);
                        if (!r)
                                r = run_hooks(c, HOOK_PRESTART, "creating", err);
                        if (!r)
                                r = run_hooks(c, HOOK_CREATE_RUNTIME, "creating", err);
                        if (!r)
                                r = channel_send(c->channel, MESSAGE_HOOKS_DONE, 0, -1, err);
                        break;
                case MESSAGE_CONSOLE:
                        r = answer_console(c, &fd, err);
                        break;
                case MESSAGE_LISTENER:
                        r = answer_listener(c, message.number, err);
                        break;
                case MESSAGE_READY:
                        return 0;
                default:
                        r = err_set(err, -EBADMSG, "message %d is not expected from the container's process", message.kind);
                }
                if (r < 0)
                        return r;
        }
}

/* The record's descriptor holds its lock, which would be the container's as long as it lives. */
static _Noreturn void be_init(const struct creation *c, int channel)
{
        const struct create_options *options = c->options;
        struct init_plan plan = {
                .config = &c->state.config, .cgroup = &c->state.cgroup, .namespaces = &c->namespaces, .seccomp = &c->seccomp, .id = c->state.id,
                .bundle = c->state.bundle, .root_path = c->state.config.root_path, .channel = channel, .proc_fd = c->runtime->proc_fd,
                .gate_fd = c->with_gate ? c->gate_fd : -1, .preserved_fds = options->preserved_fds,
                .no_pivot = options->no_pivot, .new_keyring = !options->no_new_keyring, .terminal = c->state.config.process.terminal,
        };

        close(c->state.dir_fd);
        init_run(&plan);
}

/* In between, where something is joined: namespace.h. */
static _Noreturn void be_step(const struct creation *c, int channel)
{
        struct err err = ERR_INIT;
        pid_t pid;
        int r;

        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        r = namespaces_join(&c->namespaces, &c->state.config, c->runtime->proc_fd, &err);
        if (!r) {
                pid = namespaces_clone((c->namespaces.new_flags & ~(CLONE_NEWCGROUP | CLONE_NEWTIME)) | CLONE_PARENT, -1);
                if (pid == 0)
                        be_init(c, channel);
                r = pid < 0 ? err_errno(&err, pid, "cannot make the container's process") : channel_send(channel, MESSAGE_PID, pid, -1, &err);
        }
        if (r < 0)
                channel_send_error(channel, &err);
        _exit(r < 0);
}

static int clone_process(struct creation *c, struct err *err)
{
        bool step = namespaces_need_step(&c->namespaces, &c->state.config);
        int ends[2], r = channel_make(ends, err);
        pid_t pid;

        if (r < 0)
                return r;
        c->channel = ends[0];
        pid = namespaces_clone(step ? 0 : c->namespaces.new_flags & ~CLONE_NEWCGROUP, -1);
        if (pid == 0) {
                close(ends[0]);
                if (step)
                        be_step(c, ends[1]);
                be_init(c, ends[1]);
        }
        close(ends[1]);
        if (pid < 0)
                return err_errno(err, pid, "cannot make the container's process in new namespaces");
        if (step) {
                int number;

                r = channel_expect(c->channel, MESSAGE_PID, &number, err);
                while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
                        ;
                if (r < 0)
                        return r;
                pid = number;
        }
        c->state.pid = pid;
        r = procfs_start_time(c->runtime->proc_fd, pid, &c->state.start_ticks, NULL);
        return r < 0 ? err_errno(err, r, "cannot look at the container's process %d", (int)pid) : 0;
}

static int start_process(struct creation *c, struct err *err)
{
        int r = clone_process(c, err);

        if (!r && c->namespaces.new_flags & CLONE_NEWUSER)
                r = namespaces_map_ids(&c->state.config.id_maps, c->state.pid, c->runtime->proc_fd, err);
        if (!r)
                r = send_trees(c, c->state.pid, err);
        if (!r)
                r = channel_send(c->channel, MESSAGE_MAPPED, 0, -1, err);
        if (!r)
                r = cgroup_enter(&c->state.cgroup, c->state.pid, err);
        if (!r)
                r = channel_send(c->channel, MESSAGE_JOINED, 0, -1, err);
        /* What the process says is more than that it does not answer. */
        if (r == -EPIPE || !r)
                r = converse(c, err);
        return r;
}

/* Everything up to a process that is ready. */
static int build(struct creation *c, struct err *err)
{
        int r = namespaces_open(&c->namespaces, &c->state.config, err);

        if (!r)
                r = seccomp_compile(&c->state.config.seccomp, &c->seccomp, err);
        if (!r)
                r = cgroup_plan(&c->state.cgroup, &c->state.config, c->state.id, c->runtime->systemd_cgroup, c->runtime->proc_fd, err);
        if (!r)
                r = state_save_config(&c->state, err);
        if (!r)
                r = state_save(&c->state, err);
        if (!r && c->with_gate) {
                r = gate_make(c->state.dir_fd, err);
                if (!r)
                        c->gate_fd = gate_hold(c->state.dir_fd);
        }
        if (!r)
                r = cgroup_make(&c->state.cgroup, &c->state.config.resources, c->runtime->rootless, err);
        if (!r)
                r = start_process(c, err);
        if (!r) {
                c->state.complete = true;
                r = state_save(&c->state, err);
        }
        if (!r)
                r = write_pid_file(c->options->pid_file, c->state.pid, err);
        return r;
}

static void unmake(struct creation *c)
{
        if (c->state.pid > 0)
                kill_and_reap(c->state.pid);
        if (c->state.cgroup.count) {
                (void)!cgroup_kill(&c->state.cgroup, SIGKILL, NULL);
                (void)!cgroup_remove(&c->state.cgroup, NULL);
        }
        (void)!state_remove(&c->state, c->runtime->root, NULL);
}

static int create(struct creation *c, struct err *err)
{
        int r = state_check_id(c->options->id, err);

        if (!r)
                r = open_bundle(c, err);
        if (!r)
                r = state_create(c->runtime->root, c->options->id, c->runtime->proc_fd, &c->state, err);
        if (r < 0)
                return r;
        r = build(c, err);
        if (r < 0)
                unmake(c);
        return r;
}

#define CREATION(runtime, options, gate)                                                                                                    \
        {                                                                                                                                   \
                runtime, options, CONTAINER_STATE_INIT, NAMESPACE_SET_INIT, .bundle_fd = -1, .gate_fd = -1, .channel = -1, \
                                                                             .master = -1, .with_gate = gate                                \
        }

/*
 * Lets the process go on by itself: the channel ends when it no longer ends with us, or, where it does not wait to be started, when the
 * program runs; why it does not is heard before.
 */
static int release(struct creation *c, struct err *err)
{
        struct message message = { 0 };
        int fd, r = channel_send(c->channel, MESSAGE_RELEASE, 0, -1, err);

        if (!r)
                r = channel_receive(c->channel, &message, &fd, err);
        return r == -EPIPE ? 0 : r < 0 ? r : err_set(err, -EBADMSG, "message %d is not expected from the container's process", message.kind);
}

int container_create(const struct runtime *runtime, const struct create_options *options, struct err *err)
{
        _cleanup_(creation_done) struct creation c = CREATION(runtime, options, true);
        int r = create(&c, err);

        if (!r) {
                r = release(&c, err);
                if (r < 0)
                        unmake(&c);
        }
        return r;
}

int container_run(const struct runtime *runtime, const struct create_options *options, int *exit_code, struct err *err)
{
        _cleanup_(creation_done) struct creation c = CREATION(runtime, options, false);
        _cleanup_close_ int pid_fd = -1;
        _cleanup_free_ char *text = NULL;
        int r = create(&c, err);

        if (r < 0)
                return r;
        pid_fd = (int)syscall(SYS_pidfd_open, c.state.pid, 0);
        r = pid_fd < 0 ? err_errno(err, -errno, "cannot watch the container's process") : release(&c, err);
        if (r < 0) {
                unmake(&c);
                return r;
        }
        text = hook_state(c.state.id, "running", c.state.pid, c.state.bundle, json_object_get(c.state.config.json, "annotations"));
        if (text)
                hooks_run_all(&c.state.config, HOOK_POSTSTART, text, c.state.bundle, runtime->warn, runtime->ctx);
        *exit_code = 0;
        if (options->detach)
                return 0;
        /* Others may look at it, kill it and take it away meanwhile. */
        closep(&c.state.dir_fd);
        c.state.dir_fd = -1;
        if (c.master >= 0)
                r = console_relay(c.master, pid_fd, err);
        if (!r)
                *exit_code = wait_forwarding(c.state.pid, pid_fd);
        if (!options->keep) {
                int removed = container_delete(runtime, options->id, true, r < 0 ? NULL : err);

                r = r < 0 ? r : removed;
        }
        return r;
}
