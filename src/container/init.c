#include "container/init.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "container/channel.h"
#include "container/console.h"
#include "container/hook.h"
#include "container/mount.h"
#include "container/process.h"
#include "container/procfs.h"
#include "container/start-gate.h"
#include "container/words.h"

/* What is known while it goes on. */
struct init {
        const struct init_plan *plan;
        struct rootfs rootfs;
        int root_tree;
        int *trees;
        bool joined;
};

char *hook_state(const char *id, const char *status, pid_t pid, const char *bundle, const json_t *annotations)
{
        json_t *json = json_pack("{s:s, s:s, s:s, s:i, s:s, s:O*}", "ociVersion", "1.2.0", "id", id, "status", status, "pid", (int)pid, "bundle", bundle,
                                 "annotations", annotations && json_object_size(annotations) ? (json_t *)annotations : NULL);
        char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;

        json_decref(json);
        return text;
}

/* The runtime may be killed at any moment: then this process is nobody's, and goes too. Changing user takes the wish away, so it is repeated. */
static void die_with_runtime(void)
{
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
}

/* Until MAPPED: the mounts that the runtime has made for us. */
static int receive_trees(struct init *init, struct err *err)
{
        for (;;) {
                struct message message = { 0 };
                int fd, r = channel_receive(init->plan->channel, &message, &fd, err);

                if (r < 0)
                        return r;
                if (message.kind == MESSAGE_MAPPED)
                        return 0;
                if (message.kind != MESSAGE_TREE || fd < 0)
                        return err_set(err, -EBADMSG, "message %d came instead of the mounts", message.kind);
                if (message.number < 0)
                        init->root_tree = fd;
                else
                        init->trees[message.number] = fd;
        }
}

static int wait_for_cgroup(void *ctx, struct err *err)
{
        struct init *init = ctx;
        const struct init_plan *plan = init->plan;
        int r;

        if (init->joined)
                return 0;
        r = channel_expect(plan->channel, MESSAGE_JOINED, NULL, err);
        if (r < 0)
                return r;
        init->joined = true;
        /* Its own group is what it is to see as the root. */
        if (plan->namespaces->new_flags & CLONE_NEWCGROUP && unshare(CLONE_NEWCGROUP) < 0)
                return err_errno(err, -errno, "cannot make a cgroup namespace");
        return 0;
}

/* In a user namespace one is nobody until told otherwise; files are made as its root. */
static int become_root(const struct config *config, struct err *err)
{
        if (!config->namespaces[NAMESPACE_USER].wanted)
                return 0;
        (void)setgroups(0, NULL);
        if (setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
                return err_errno(err, -errno, "cannot become root of the user namespace (linux.uidMappings needs an id for 0)");
        return 0;
}

static int set_names(const struct config *config, struct err *err)
{
        if (config->hostname && sethostname(config->hostname, strlen(config->hostname)) < 0)
                return err_errno(err, -errno, "cannot set the hostname '%s'", config->hostname);
        if (config->domain_name && setdomainname(config->domain_name, strlen(config->domain_name)) < 0)
                return err_errno(err, -errno, "cannot set the domainname '%s'", config->domain_name);
        return 0;
}

/* Each namespace has some of them; one of a namespace that is the host's would change the host. */
static int check_sysctl(const struct config *config, const char *name, struct err *err)
{
        static const char *const ipc[] = { "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
                                           "kernel.shmmni", "kernel.shm_rmid_forced" };
        enum namespace_kind kind = NAMESPACE_COUNT;

        if (!strncmp(name, "net.", 4))
                kind = NAMESPACE_NETWORK;
        else if (!strncmp(name, "fs.mqueue.", 10))
                kind = NAMESPACE_IPC;
        else if (!strcmp(name, "kernel.domainname") || !strcmp(name, "kernel.hostname"))
                kind = NAMESPACE_UTS;
        else if (!strncmp(name, "user.", 5))
                kind = NAMESPACE_USER;
        for (size_t i = 0; i < ARRAY_SIZE(ipc); i++)
                if (!strcmp(name, ipc[i]))
                        kind = NAMESPACE_IPC;
        if (kind == NAMESPACE_COUNT)
                return err_set(err, -EINVAL, "linux.sysctl '%s' is not one of a namespace's: it would be the host's", name);
        if (!config->namespaces[kind].wanted)
                return err_set(err, -EINVAL, "linux.sysctl '%s' needs a %s namespace of the container's own", name, namespace_words[kind].name);
        return 0;
}

static int set_sysctls(const struct config *config, int proc_fd, struct err *err)
{
        for (size_t i = 0; i < config->sysctl_count; i++) {
                const char *name = config->sysctls[i].name;
                char path[256];
                int r, n;

                /* "net.ipv4.ip_forward" and "net/ipv4/ip_forward" are both in use; in the first a "/" stands for a dot in a name. */
                n = snprintf(path, sizeof(path), "sys/%s", name);
                if (n >= (int)sizeof(path) || strstr(name, ".."))
                        return err_set(err, -EINVAL, "linux.sysctl '%s' is not a name", name);
                bool slashes = strcspn(name, "/") < strcspn(name, ".");
                char dotted[256];

                snprintf(dotted, sizeof(dotted), "%s", name);
                for (char *p = path + 4; *p; p++)
                        if (!slashes)
                                *p = *p == '.' ? '/' : *p == '/' ? '.' : *p;
                for (char *p = dotted; slashes && *p; p++)
                        *p = *p == '.' ? '/' : *p == '/' ? '.' : *p;
                r = check_sysctl(config, dotted, err);
                if (!r)
                        r = procfs_write(proc_fd, path, config->sysctls[i].text, err);
                if (r < 0)
                        return err_wrap(err, r, "linux.sysctl");
        }
        return 0;
}

static int build_root(struct init *init, struct err *err)
{
        const struct init_plan *plan = init->plan;
        int r;

        init->rootfs = (struct rootfs){
                .config = plan->config, .cgroup = plan->cgroup, .bundle = plan->bundle, .bundle_fd = -1, .proc_fd = plan->proc_fd,
                .root_fd = -1, .null_fd = -1, .trees = init->trees, .trees_given = init->root_tree >= 0,
                .user_namespace = plan->config->namespaces[NAMESPACE_USER].wanted,
                .no_pivot = plan->no_pivot, .wait_for_cgroup = wait_for_cgroup, .ctx = init,
        };
        r = rootfs_enter_tree(&init->rootfs, plan->root_path, init->root_tree, err);
        if (!r)
                r = rootfs_fill(&init->rootfs, err);
        if (!r)
                r = wait_for_cgroup(init, err);
        return r;
}

static int run_hooks(struct init *init, enum hook_kind kind, const char *status, const char *directory, struct err *err)
{
        const struct init_plan *plan = init->plan;
        json_t *annotations = json_object_get(plan->config->json, "annotations");
        _cleanup_free_ char *state = NULL;

        if (!plan->config->hook_counts[kind])
                return 0;
        state = hook_state(plan->id, status, procfs_own_pid(plan->proc_fd), plan->bundle, annotations);
        return state ? hooks_run(plan->config, kind, state, directory, err) : err_nomem(err);
}

static int open_terminal(struct init *init, struct err *err)
{
        const struct init_plan *plan = init->plan;
        _cleanup_close_ int master = -1;
        int r = console_open(init->rootfs.root_fd, &plan->config->process, true, &master, err);

        return r < 0 ? r : channel_send(plan->channel, MESSAGE_CONSOLE, 0, master, err);
}

static int tell_listener(void *ctx, int fd, struct err *err)
{
        const struct init_plan *plan = ctx;
        int r = channel_send(plan->channel, MESSAGE_LISTENER, fd, -1, err);

        return r < 0 ? r : channel_expect(plan->channel, MESSAGE_LISTENER_TAKEN, NULL, err);
}

/* All that is done before the container is "created". */
static int prepare(struct init *init, struct process_plan *process, struct err *err)
{
        const struct init_plan *plan = init->plan;
        int r = receive_trees(init, err);

        if (!r)
                r = become_root(plan->config, err);
        die_with_runtime();
        if (!r && setsid() < 0)
                r = err_errno(err, -errno, "cannot make a session");
        if (!r)
                r = build_root(init, err);
        if (!r)
                r = set_names(plan->config, err);
        if (!r)
                r = set_sysctls(plan->config, plan->proc_fd, err);
        if (!r)
                r = channel_send(plan->channel, MESSAGE_HOOKS, 0, -1, err);
        if (!r)
                r = channel_expect(plan->channel, MESSAGE_HOOKS_DONE, NULL, err);
        if (!r)
                r = run_hooks(init, HOOK_CREATE_CONTAINER, "creating", plan->bundle, err);
        if (!r)
                r = rootfs_seal(&init->rootfs, err);
        if (!r && plan->terminal)
                r = open_terminal(init, err);
        if (!r)
                r = rootfs_pivot(&init->rootfs, err);
        if (r < 0)
                return r;
        *process = (struct process_plan){
                .process = &plan->config->process, .config = plan->config, .seccomp = plan->seccomp, .id = plan->id, .proc_fd = plan->proc_fd,
                .root_fd = init->rootfs.root_fd, .preserved_fds = plan->preserved_fds, .new_keyring = plan->new_keyring, .listen = tell_listener,
                .ctx = (void *)plan,
        };
        r = process_prepare(process, err);
        die_with_runtime();
        return r;
}

_Noreturn void init_run(const struct init_plan *plan)
{
        struct init init = { .plan = plan, .root_tree = -1 };
        struct process_plan process;
        struct err err = ERR_INIT;
        int gate = -1, r = 0;

        die_with_runtime();
        init.trees = malloc((plan->config->mount_count + 1) * sizeof(int));
        if (!init.trees)
                r = err_nomem(&err);
        for (size_t i = 0; !r && i < plan->config->mount_count; i++)
                init.trees[i] = -1;
        if (!r)
                r = prepare(&init, &process, &err);
        if (!r)
                r = channel_send(plan->channel, MESSAGE_READY, 0, -1, &err);
        if (!r)
                r = channel_expect(plan->channel, MESSAGE_RELEASE, NULL, &err);
        prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0);
        if (!r && plan->gate_fd >= 0) {
                close(plan->channel);
                gate = gate_wait(plan->gate_fd, plan->proc_fd);
                if (gate < 0)
                        _exit(1); /* the container was taken away before it was started */
        }
        if (!r)
                r = run_hooks(&init, HOOK_START_CONTAINER, "created", NULL, &err);
        if (!r)
                r = process_execute(&process, &err);
        err.code = r;
        if (gate >= 0)
                gate_fail(gate, &err);
        else
                channel_send_error(plan->channel, &err);
        _exit(process_exit_code(r));
}
