#include "container/state.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>

#include "container/procfs.h"
#include "container/start-gate.h"

const char *const container_status_names[] = {
        [CONTAINER_CREATING] = "creating", [CONTAINER_CREATED] = "created", [CONTAINER_RUNNING] = "running",
        [CONTAINER_PAUSED] = "paused",     [CONTAINER_STOPPED] = "stopped",
};

int state_check_id(const char *id, struct err *err)
{
        size_t length = strlen(id);

        if (!length || length > STATE_ID_MAX)
                return err_set(err, -EINVAL, length ? "the container's name is %zu bytes long, more than %d" : "the container's name is empty",
                               length, STATE_ID_MAX);
        if (strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.") != length || !strcmp(id, ".") || !strcmp(id, ".."))
                return err_set(err, -EINVAL, "'%s' cannot be a container's name: it takes letters, digits and _ + - .", id);
        return 0;
}

static int open_root(const char *root, bool make, struct err *err)
{
        char path[PATH_MAX];
        int fd;

        if (strlen(root) >= sizeof(path))
                return err_set(err, -ENAMETOOLONG, "the path of the root is too long");
        strcpy(path, root);
        /* Also the directories above: /run/virta may be the first of its kind. */
        for (char *slash = path; make && (slash = strchr(slash + 1, '/')); *slash = '/') {
                *slash = 0;
                if (mkdir(path, 0711) < 0 && errno != EEXIST)
                        return err_errno(err, -errno, "cannot make '%s'", path);
        }
        if (make && mkdir(root, 0700) < 0 && errno != EEXIST)
                return err_errno(err, -errno, "cannot make '%s'", root);
        fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        return fd < 0 ? err_errno(err, -errno, "cannot open '%s'", root) : fd;
}

/* Empties it: nothing in it is a directory. */
static int remove_directory(int root_fd, const char *id)
{
        int fd = openat(root_fd, id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        DIR *dir = fd < 0 ? NULL : fdopendir(fd);
        struct dirent *entry;

        if (!dir) {
                closep(&fd);
                return errno == ENOENT ? 0 : -errno;
        }
        while ((entry = readdir(dir)))
                if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
                        (void)unlinkat(dirfd(dir), entry->d_name, 0);
        closedir(dir);
        return unlinkat(root_fd, id, AT_REMOVEDIR) < 0 && errno != ENOENT ? -errno : 0;
}

static int lock_directory(int fd, bool wait)
{
        int r;

        do
                r = flock(fd, LOCK_EX | (wait ? 0 : LOCK_NB));
        while (r < 0 && errno == EINTR);
        return r < 0 ? -errno : 0;
}

/* What a creator that was killed left behind: its process ended with it, the groups and the directory did not. */
static int sweep(const char *root, int root_fd, const char *id, int proc_fd, struct err *err)
{
        _cleanup_state_ struct container_state old = CONTAINER_STATE_INIT;
        _cleanup_close_ int fd = openat(root_fd, id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        uint64_t ticks;

        if (fd < 0)
                return errno == ENOENT ? 0 : -EEXIST;
        /* Locked: its creator is at work. Complete: it is a container. */
        if (lock_directory(fd, false) < 0)
                return -EEXIST;
        if (state_open(root, id, STATE_LOCK_NONE, &old, NULL) == 0) {
                if (old.complete || (old.pid && procfs_start_time(proc_fd, old.pid, &ticks, NULL) == 0 && ticks == old.start_ticks))
                        return -EEXIST;
                int r = cgroup_remove(&old.cgroup, err);

                if (r < 0)
                        return r;
        }
        return remove_directory(root_fd, id);
}

int state_sweep(const char *root, const char *id, int proc_fd, struct err *err)
{
        _cleanup_close_ int root_fd = open_root(root, false, err);
        int r = root_fd < 0 ? root_fd : sweep(root, root_fd, id, proc_fd, err);

        return r == -ENOENT ? 0 : r;
}

int state_create(const char *root, const char *id, int proc_fd, struct container_state *state, struct err *err)
{
        _cleanup_close_ int root_fd = -1;
        _cleanup_close_ int fd = -1;
        struct timespec now;
        struct tm tm;
        char text[64];
        int r = state_check_id(id, err);

        if (r < 0)
                return r;
        root_fd = open_root(root, true, err);
        if (root_fd < 0)
                return root_fd;
        for (int tries = 0; mkdirat(root_fd, id, 0700) < 0; tries++) {
                if (errno != EEXIST)
                        return err_errno(err, -errno, "cannot make '%s/%s'", root, id);
                r = tries < 3 ? sweep(root, root_fd, id, proc_fd, err) : -EEXIST;
                if (r == -EEXIST)
                        return err_set(err, -EEXIST, "a container named '%s' is there already", id);
                if (r < 0)
                        return r;
        }
        fd = openat(root_fd, id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0 || lock_directory(fd, true) < 0)
                return err_errno(err, -errno, "cannot open '%s/%s'", root, id);
        clock_gettime(CLOCK_REALTIME, &now);
        gmtime_r(&now.tv_sec, &tm);
        r = (int)strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
        snprintf(text + r, sizeof(text) - (size_t)r, ".%09ldZ", now.tv_nsec);
        state->created = strdup(text);
        if (!state->created) {
                (void)unlinkat(root_fd, id, AT_REMOVEDIR);
                return err_nomem(err);
        }
        strcpy(state->id, id);
        state->owner = geteuid();
        state->dir_fd = steal_fd(&fd);
        return 0;
}

/* "file.new" is written and renamed over "file". */
static int write_whole(int dir_fd, const char *file, const json_t *json, struct err *err)
{
        char temporary[64];
        int r;

        if (!json)
                return err_nomem(err);
        snprintf(temporary, sizeof(temporary), "%s.new", file);
        _cleanup_close_ int fd = openat(dir_fd, temporary, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
        if (fd < 0)
                return err_errno(err, -errno, "cannot write '%s' of the container", file);
        r = json_write(json, fd, err);
        if (!r && renameat(dir_fd, temporary, dir_fd, file) < 0)
                r = err_errno(err, -errno, "cannot write '%s' of the container", file);
        if (r < 0)
                (void)unlinkat(dir_fd, temporary, 0);
        return r;
}

int state_save(const struct container_state *state, struct err *err)
{
        _cleanup_json_ json_t *json = json_pack("{s:s, s:i, s:I, s:b, s:s, s:s, s:s, s:I, s:o}", "id", state->id, "pid", (int)state->pid,
                                                "startTicks", (json_int_t)state->start_ticks, "complete", state->complete, "bundle",
                                                state->bundle ? state->bundle : "", "rootfs", state->rootfs ? state->rootfs : "", "created",
                                                state->created, "owner", (json_int_t)state->owner, "cgroup", cgroup_save(&state->cgroup));

        return write_whole(state->dir_fd, "state.json", json, err);
}

int state_save_config(const struct container_state *state, struct err *err)
{
        return write_whole(state->dir_fd, "config.json", state->config.json, err);
}

static int load(struct container_state *state, struct err *err)
{
        _cleanup_close_ int fd = openat(state->dir_fd, "state.json", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        const char *bundle, *rootfs, *created;
        _cleanup_json_ json_t *json = NULL;
        json_int_t ticks, owner;
        json_error_t why;
        json_t *cgroup;
        int pid, complete;

        if (fd < 0) /* a creator that was killed before it wrote one left the directory */
                return errno == ENOENT ? err_set(err, -ENOENT, "container '%s' does not exist", state->id)
                                       : err_errno(err, -errno, "cannot open the state of '%s'", state->id);
        json = json_loadfd(fd, JSON_REJECT_DUPLICATES, &why);
        if (!json || json_unpack_ex(json, &why, 0, "{s:i, s:I, s:b, s:s, s:s, s:s, s:I, s:o}", "pid", &pid, "startTicks", &ticks, "complete",
                                    &complete, "bundle", &bundle, "rootfs", &rootfs, "created", &created, "owner", &owner, "cgroup", &cgroup) < 0)
                return err_set(err, -EBADMSG, "the state of '%s' is damaged: %s", state->id, why.text);
        state->pid = pid;
        state->start_ticks = (uint64_t)ticks;
        state->complete = complete;
        state->owner = (uid_t)owner;
        state->bundle = strdup(bundle);
        state->rootfs = strdup(rootfs);
        state->created = strdup(created);
        if (!state->bundle || !state->rootfs || !state->created)
                return err_nomem(err);
        return cgroup_load(&state->cgroup, cgroup, err);
}

int state_open(const char *root, const char *id, enum state_lock lock, struct container_state *state, struct err *err)
{
        _cleanup_state_ struct container_state opened = CONTAINER_STATE_INIT;
        char path[PATH_MAX];
        struct stat st;
        int r = state_check_id(id, err);

        if (r < 0)
                return r;
        if (snprintf(path, sizeof(path), "%s/%s", root, id) >= (int)sizeof(path))
                return err_set(err, -ENAMETOOLONG, "the path of the root is too long");
        strcpy(opened.id, id);
        opened.dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (opened.dir_fd < 0)
                return errno == ENOENT ? err_set(err, -ENOENT, "container '%s' does not exist", id) : err_errno(err, -errno, "cannot open '%s'", path);
        if (lock == STATE_LOCK && lock_directory(opened.dir_fd, true) < 0)
                return err_errno(err, -errno, "cannot lock '%s'", path);
        /* Taken away while we waited. */
        if (fstat(opened.dir_fd, &st) == 0 && st.st_nlink == 0)
                return err_set(err, -ENOENT, "container '%s' does not exist", id);
        r = load(&opened, err);
        if (r < 0)
                return r;
        *state = opened;
        opened = CONTAINER_STATE_INIT;
        return 0;
}

int state_open_config(struct container_state *state, struct err *err)
{
        int r = config_read(&state->config, state->dir_fd, "config.json", err);

        return r < 0 ? err_wrap(err, r, "container '%s'", state->id) : 0;
}

enum container_status state_status(const struct container_state *state, int proc_fd)
{
        uint64_t ticks;
        char letter;

        if (!state->complete && !state->pid)
                return CONTAINER_CREATING;
        /* One of the same number that started at another time is another one; Z and X are dead. */
        if (!state->pid || procfs_start_time(proc_fd, state->pid, &ticks, &letter) < 0 || ticks != state->start_ticks || letter == 'Z' ||
            letter == 'X')
                return CONTAINER_STOPPED;
        if (!state->complete)
                return CONTAINER_CREATING;
        if (gate_is_there(state->dir_fd))
                return CONTAINER_CREATED;
        return cgroup_is_frozen(&state->cgroup) ? CONTAINER_PAUSED : CONTAINER_RUNNING;
}

int state_remove(struct container_state *state, const char *root, struct err *err)
{
        _cleanup_close_ int root_fd = open_root(root, false, err);
        int r = root_fd < 0 ? root_fd : remove_directory(root_fd, state->id);

        if (root_fd >= 0 && r < 0)
                return err_errno(err, r, "cannot take '%s/%s' away", root, state->id);
        return r;
}

void state_done(struct container_state *state)
{
        closep(&state->dir_fd);
        free(state->bundle);
        free(state->rootfs);
        free(state->created);
        cgroup_done(&state->cgroup);
        config_done(&state->config);
        *state = CONTAINER_STATE_INIT;
}

json_t *state_json(const struct container_state *state, enum container_status status, pid_t pid)
{
        json_t *annotations = state->config.json ? json_object_get(state->config.json, "annotations") : NULL;

        return json_pack("{s:s, s:s, s:s, s:i, s:s, s:s, s:s, s:O*, s:s}", "ociVersion", "1.2.0", "id", state->id, "status",
                         container_status_names[status], "pid", (int)pid, "bundle", state->bundle ? state->bundle : "", "rootfs",
                         state->rootfs ? state->rootfs : "", "created", state->created, "annotations",
                         annotations && json_object_size(annotations) ? annotations : NULL, "owner", "");
}

static int compare_names(const void *a, const void *b)
{
        return strcmp(*(char *const *)a, *(char *const *)b);
}

int state_each(const char *root, int (*fn)(const char *id, void *ctx, struct err *err), void *ctx, struct err *err)
{
        DIR *dir = opendir(root);
        char **names = NULL;
        size_t count = 0;
        struct dirent *entry;
        int r = 0;

        if (!dir)
                return errno == ENOENT ? 0 : err_errno(err, -errno, "cannot open '%s'", root);
        while (!r && (entry = readdir(dir))) {
                char **grown;

                if (state_check_id(entry->d_name, NULL) < 0)
                        continue;
                grown = reallocarray(names, count + 1, sizeof(*names));
                if (grown)
                        names = grown;
                if (!grown || !(names[count] = strdup(entry->d_name)))
                        r = err_nomem(err);
                else
                        count++;
        }
        closedir(dir);
        if (count)
                qsort(names, count, sizeof(*names), compare_names);
        for (size_t i = 0; i < count; i++) {
                if (!r)
                        r = fn(names[i], ctx, err);
                free(names[i]);
        }
        free(names);
        return r;
}
