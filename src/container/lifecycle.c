/*
 * What is done to a container that is there.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>

#include "container/container.h"
#include "container/hook.h"
#include "container/init.h"
#include "container/procfs.h"
#include "container/start-gate.h"

/* The process, held so that its number cannot become another's; -ESRCH when it is gone. */
static int hold_process(const struct runtime *runtime, const struct container_state *state)
{
        _cleanup_close_ int fd = state->pid ? (int)syscall(SYS_pidfd_open, state->pid, 0) : -1;
        uint64_t ticks;

        if (fd < 0 || procfs_start_time(runtime->proc_fd, state->pid, &ticks, NULL) < 0 || ticks != state->start_ticks)
                return -ESRCH;
        return steal_fd(&fd);
}

static void run_hooks_all(const struct runtime *runtime, const struct container_state *state, enum hook_kind kind, const char *status, pid_t pid)
{
        _cleanup_free_ char *text = NULL;

        if (!state->config.hook_counts[kind])
                return;
        text = hook_state(state->id, status, pid, state->bundle, json_object_get(state->config.json, "annotations"));
        if (text)
                hooks_run_all(&state->config, kind, text, state->bundle, runtime->warn, runtime->ctx);
}

static int refuse(const struct container_state *state, enum container_status status, const char *verb, struct err *err)
{
        return err_set(err, -EBUSY, "cannot %s container '%s': it is %s", verb, state->id, container_status_names[status]);
}

int container_start(const struct runtime *runtime, const char *id, struct err *err)
{
        _cleanup_state_ struct container_state state = CONTAINER_STATE_INIT;
        _cleanup_close_ int pid_fd = -1;
        enum container_status status;
        int r = state_open(runtime->root, id, STATE_LOCK, &state, err);

        if (!r)
                r = state_open_config(&state, err);
        if (r < 0)
                return r;
        status = state_status(&state, runtime->proc_fd);
        if (status != CONTAINER_CREATED)
                return refuse(&state, status, "start", err);
        pid_fd = hold_process(runtime, &state);
        r = pid_fd < 0 ? err_set(err, pid_fd, "its process ended before it was started") : gate_open(state.dir_fd, pid_fd, err);
        if (r < 0)
                return err_wrap(err, r, "container '%s'", id);
        run_hooks_all(runtime, &state, HOOK_POSTSTART, "running", state.pid);
        return 0;
}

int container_state_json(const struct runtime *runtime, const char *id, json_t **json, struct err *err)
{
        _cleanup_state_ struct container_state state = CONTAINER_STATE_INIT;
        enum container_status status;
        int r = state_open(runtime->root, id, STATE_LOCK_NONE, &state, err);

        if (r < 0)
                return r;
        /* One that is being made may not have its copy yet. */
        (void)!state_open_config(&state, NULL);
        status = state_status(&state, runtime->proc_fd);
        *json = state_json(&state, status, status == CONTAINER_STOPPED ? 0 : state.pid);
        return *json ? 0 : err_nomem(err);
}

struct listing {
        const struct runtime *runtime;
        json_t *array;
};

static int list_one(const char *id, void *ctx, struct err *err)
{
        struct listing *listing = ctx;
        json_t *json;
        int r = container_state_json(listing->runtime, id, &json, err);

        /* Taken away meanwhile, or not yet there. */
        if (r == -ENOENT)
                return 0;
        if (r < 0)
                return r;
        return json_array_append_new(listing->array, json) < 0 ? err_nomem(err) : 0;
}

int container_list(const struct runtime *runtime, json_t **json, struct err *err)
{
        struct listing listing = { runtime, json_array() };
        int r = listing.array ? state_each(runtime->root, list_one, &listing, err) : err_nomem(err);

        if (r < 0)
                json_decref(listing.array);
        else
                *json = listing.array;
        return r;
}

int container_kill(const struct runtime *runtime, const char *id, int signal, bool all, struct err *err)
{
        _cleanup_state_ struct container_state state = CONTAINER_STATE_INIT;
        _cleanup_close_ int pid_fd = -1;
        enum container_status status;
        int r = state_open(runtime->root, id, STATE_LOCK_NONE, &state, err);

        if (r < 0)
                return r;
        status = state_status(&state, runtime->proc_fd);
        /* "Attempting to send a signal to a container that is neither created nor running MUST … generate an error": runtime.md, "Kill". */
        if (all)
                return cgroup_kill(&state.cgroup, signal, err);
        if (status == CONTAINER_STOPPED || status == CONTAINER_CREATING)
                return refuse(&state, status, "kill", err);
        pid_fd = hold_process(runtime, &state);
        if (pid_fd < 0)
                return refuse(&state, CONTAINER_STOPPED, "kill", err);
        if (syscall(SYS_pidfd_send_signal, pid_fd, signal, NULL, 0) < 0)
                return errno == ESRCH ? refuse(&state, CONTAINER_STOPPED, "kill", err)
                                      : err_errno(err, -errno, "cannot send signal %d to container '%s'", signal, id);
        /* A stopped one dies when it goes on. */
        if (signal == SIGKILL && status == CONTAINER_PAUSED && state.cgroup.mode == CGROUP_V1)
                (void)!cgroup_freeze(&state.cgroup, false, NULL);
        return 0;
}

/* Until the process is gone: at most ten seconds. */
static int kill_and_wait(const struct runtime *runtime, const struct container_state *state, struct err *err)
{
        _cleanup_close_ int pid_fd = hold_process(runtime, state);
        struct pollfd event = { .fd = pid_fd, .events = POLLIN };

        if (cgroup_is_frozen(&state->cgroup))
                (void)!cgroup_freeze(&state->cgroup, false, NULL);
        if (pid_fd >= 0) {
                (void)syscall(SYS_pidfd_send_signal, pid_fd, SIGKILL, NULL, 0);
                if (poll(&event, 1, 10000) == 0)
                        return err_set(err, -ETIMEDOUT, "process %d of container '%s' does not end", (int)state->pid, state->id);
        }
        return 0;
}

int container_delete(const struct runtime *runtime, const char *id, bool force, struct err *err)
{
        _cleanup_state_ struct container_state state = CONTAINER_STATE_INIT;
        enum container_status status;
        int r = state_open(runtime->root, id, STATE_LOCK, &state, err);

        if (r == -ENOENT && force) {
                if (err)
                        *err = ERR_INIT;
                r = state_sweep(runtime->root, id, runtime->proc_fd, err);
                return r == -EEXIST ? 0 : r;
        }
        if (r < 0)
                return r;
        (void)!state_open_config(&state, NULL);
        status = state_status(&state, runtime->proc_fd);
        /* One that waits to be started has done nothing yet; it may be taken away without force as other runtimes let it. */
        if (status != CONTAINER_STOPPED && !force && status != CONTAINER_CREATED && status != CONTAINER_CREATING)
                return refuse(&state, status, "delete", err);
        r = kill_and_wait(runtime, &state, err);
        /* Without a PID namespace of its own what it started may live on. */
        if (!r)
                r = cgroup_kill(&state.cgroup, SIGKILL, err);
        if (!r)
                r = cgroup_remove(&state.cgroup, err);
        if (!r)
                r = state_remove(&state, runtime->root, err);
        if (r < 0)
                return err_wrap(err, r, "container '%s'", id);
        run_hooks_all(runtime, &state, HOOK_POSTSTOP, "stopped", 0);
        return 0;
}

int container_pause(const struct runtime *runtime, const char *id, bool pause, struct err *err)
{
        _cleanup_state_ struct container_state state = CONTAINER_STATE_INIT;
        enum container_status status;
        int r = state_open(runtime->root, id, STATE_LOCK, &state, err);

        if (r < 0)
                return r;
        status = state_status(&state, runtime->proc_fd);
        if (pause ? status != CONTAINER_RUNNING && status != CONTAINER_CREATED : status != CONTAINER_PAUSED)
                return refuse(&state, status, pause ? "pause" : "resume", err);
        return cgroup_freeze(&state.cgroup, pause, err);
}

int container_update(const struct runtime *runtime, const char *id, const struct resources *changes, struct err *err)
{
        _cleanup_state_ struct container_state state = CONTAINER_STATE_INIT;
        enum container_status status;
        int r = state_open(runtime->root, id, STATE_LOCK, &state, err);

        if (r < 0)
                return r;
        status = state_status(&state, runtime->proc_fd);
        if (status == CONTAINER_STOPPED || status == CONTAINER_CREATING)
                return refuse(&state, status, "update", err);
        if (state.cgroup.mode == CGROUP_NONE)
                return err_set(err, -ENOTSUP, "container '%s' has no cgroup of its own, so nothing limits it", id);
        r = cgroup_limit(&state.cgroup, changes, err);
        return r < 0 ? err_wrap(err, r, "container '%s'", id) : 0;
}

int container_processes(const struct runtime *runtime, const char *id, pid_t **pids, size_t *count, struct err *err)
{
        _cleanup_state_ struct container_state state = CONTAINER_STATE_INIT;
        int r = state_open(runtime->root, id, STATE_LOCK_NONE, &state, err);

        if (r < 0)
                return r;
        if (state.cgroup.mode == CGROUP_NONE)
                return err_set(err, -ENOTSUP, "container '%s' has no cgroup of its own that would tell its processes", id);
        return cgroup_processes(&state.cgroup, pids, count, err);
}

int container_stats(const struct runtime *runtime, const char *id, json_t **json, struct err *err)
{
        _cleanup_state_ struct container_state state = CONTAINER_STATE_INIT;
        enum container_status status;
        int r = state_open(runtime->root, id, STATE_LOCK_NONE, &state, err);

        if (r < 0)
                return r;
        status = state_status(&state, runtime->proc_fd);
        if (status == CONTAINER_STOPPED || status == CONTAINER_CREATING)
                return refuse(&state, status, "measure", err);
        *json = cgroup_stats(&state.cgroup);
        return *json ? 0 : err_nomem(err);
}
