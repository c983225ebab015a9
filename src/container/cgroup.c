/*
 * Finding, making, filling and removing the groups. What is written into them is in cgroup-limits.c, what is read in cgroup-stats.c.
 */
#include "container/cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>

#include "container/cgroup-file.h"
#include "container/cgroup-internal.h"
#include "container/procfs.h"

static void sleep_ms(unsigned ms)
{
        nanosleep(&(struct timespec){ .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 }, NULL);
}

/* The next field of a line, ended by a blank; NULL at its end. */
static char *next_word(char **line)
{
        char *word = *line + strspn(*line, " ");
        size_t length = strcspn(word, " ");

        if (!length)
                return NULL;
        *line = word + length + (word[length] != 0);
        word[length] = 0;
        return word;
}

/* "cpu,cpuacct" has "cpuacct". */
static bool list_has(const char *list, const char *name)
{
        size_t length = strlen(name);

        for (const char *at = list; (at = strstr(at, name)); at += length)
                if ((at == list || at[-1] == ',') && (at[length] == 0 || at[length] == ','))
                        return true;
        return false;
}

/*
 * The caller's own group in a hierarchy, from /proc/self/cgroup: lines "7:cpu,cpuacct:/a/b"; version 2 is "0::/a/b". Returns a
 * pointer into the text (which is changed), or NULL.
 */
static char *own_group(char *text, const char *controllers)
{
        for (char *line = text, *next; *line; line = next) {
                char *first = strchr(line, ':'), *second = first ? strchr(first + 1, ':') : NULL, *end = strchrnul(line, '\n');
                size_t length = second ? (size_t)(second - first - 1) : 0;

                next = *end ? end + 1 : end;
                if (second && second < end && strlen(controllers) == length && !strncmp(first + 1, controllers, length)) {
                        *end = 0;
                        return second + 1;
                }
        }
        return NULL;
}

/*
 * The path of the container's group below the mount point. root: the part of the hierarchy that is mounted there (mountinfo's
 * fourth field); own: the caller's group.
 */
static char *group_path(const char *wanted, const char *id, const char *root, const char *own)
{
        char *path;
        int n;

        if (wanted && *wanted == '/')
                n = asprintf(&path, "%s", wanted);
        else if (strcmp(root, "/") != 0 && !strncmp(own, root, strlen(root)))
                n = asprintf(&path, "%s/%s", own + strlen(root), wanted ? wanted : id);
        else
                n = asprintf(&path, "%s/%s", strcmp(own, "/") ? own : "", wanted ? wanted : id);
        return n < 0 ? NULL : path;
}

/* A path with ".." would lead out of what was meant. */
static int check_path(const char *path, struct err *err)
{
        for (const char *at = path; at; at = strchr(at, '/')) {
                at += strspn(at, "/");
                if (!strncmp(at, "..", 2) && (at[2] == '/' || !at[2]))
                        return err_set(err, -EINVAL, "linux.cgroupsPath '%s' has a '..'", path);
        }
        return 0;
}

static int add_place(struct cgroup *cgroup, const char *controllers, const char *mount_point, char *path, struct err *err)
{
        struct cgroup_place *place = &cgroup->places[cgroup->count];

        if (!path)
                return err_nomem(err);
        if (cgroup->count == CGROUP_PLACES_MAX) {
                free(path);
                return err_set(err, -E2BIG, "more than %d cgroup hierarchies are mounted", CGROUP_PLACES_MAX);
        }
        place->controllers = strdup(controllers);
        place->mount_point = strdup(mount_point);
        place->path = path;
        place->made = false;
        cgroup->count++;
        return place->controllers && place->mount_point ? 0 : err_nomem(err);
}

/* Options of the super block that are no controllers. */
static void controllers_only(const char *super, char *to, size_t size_bytes)
{
        static const char *const others[] = { "rw", "ro", "xattr", "clone_children", "noprefix", "none", "release_agent=", "cpuset_v2_mode" };
        size_t used = 0;

        to[0] = 0;
        while (*super) {
                size_t length = strcspn(super, ",");
                bool other = false;

                for (size_t i = 0; i < ARRAY_SIZE(others); i++)
                        other |= !strncmp(super, others[i], strlen(others[i])) && (others[i][strlen(others[i]) - 1] == '=' || length == strlen(others[i]));
                if (!other && used + length + 2 < size_bytes)
                        used += (size_t)sprintf(to + used, "%s%.*s", used ? "," : "", (int)length, super);
                super += length + (super[length] == ',');
        }
}

/* One line of /proc/self/mountinfo, proc_pid_mountinfo(5). */
static int plan_mount(struct cgroup *cgroup, char *line, const char *wanted, const char *id, const char *own_text, struct err *err)
{
        char *fields = strstr(line, " - "), *rest = line, *root = NULL, *point = NULL, *type, *super;
        char controllers[256], own_copy[4096];
        const char *own;

        if (!fields)
                return 0;
        *fields = 0;
        fields += 3;
        for (int i = 0; i < 5; i++) {
                char *word = next_word(&rest);

                root = i == 3 ? word : root;
                point = i == 4 ? word : point;
        }
        type = next_word(&fields);
        (void)next_word(&fields);
        super = next_word(&fields);
        if (!root || !point || !type || !super || strncmp(type, "cgroup", 6) != 0 || strncmp(point, "/sys/fs/cgroup", 14) != 0)
                return 0;
        controllers_only(super, controllers, sizeof(controllers));
        if (!strcmp(type, "cgroup2"))
                controllers[0] = 0;
        else if (!controllers[0])
                return 0;
        for (unsigned i = 0; i < cgroup->count; i++)
                if (!strcmp(cgroup->places[i].controllers, controllers))
                        return 0;
        if (strlen(own_text) >= sizeof(own_copy))
                return 0;
        strcpy(own_copy, own_text);
        own = own_group(own_copy, controllers);
        return own ? add_place(cgroup, controllers, point, group_path(wanted, id, root, own), err) : 0;
}

int cgroup_plan(struct cgroup *cgroup, const struct config *config, const char *id, bool systemd, int proc_fd, struct err *err)
{
        _cleanup_free_ char *mounts = NULL;
        char own[4096];
        const size_t room = 256 << 10;
        struct statfs fs;
        int r = 0;

        *cgroup = (struct cgroup){ 0 };
        if (systemd)
                return cgroup_plan_systemd(cgroup, config->cgroups_path, id, proc_fd, err);
        if (config->cgroups_path)
                r = check_path(config->cgroups_path, err);
        if (r < 0)
                return r;
        if (procfs_read(proc_fd, "self/cgroup", own, sizeof(own)) < 0 || statfs("/sys/fs/cgroup", &fs) < 0)
                return 0;
        if (fs.f_type == CGROUP2_SUPER_MAGIC) {
                const char *group = own_group(own, "");

                cgroup->mode = CGROUP_V2;
                return add_place(cgroup, "", "/sys/fs/cgroup", group_path(config->cgroups_path, id, "/", group ? group : "/"), err);
        }
        mounts = malloc(room);
        if (!mounts)
                return err_nomem(err);
        if (procfs_read(proc_fd, "self/mountinfo", mounts, room) < 0)
                return 0;
        for (char *line = mounts, *next; !r && *line; line = next) {
                char *end = strchrnul(line, '\n');

                next = *end ? end + 1 : end;
                *end = 0;
                r = plan_mount(cgroup, line, config->cgroups_path, id, own, err);
        }
        cgroup->mode = cgroup->count ? CGROUP_V1 : CGROUP_NONE;
        return r;
}

const char *cgroup_place_directory(const struct cgroup_place *place, char *text, size_t size_bytes)
{
        snprintf(text, size_bytes, "%s%s", place->mount_point, place->path);
        return text;
}

const struct cgroup_place *cgroup_find(const struct cgroup *cgroup, const char *controller)
{
        for (unsigned i = 0; i < cgroup->count; i++)
                if (cgroup->mode == CGROUP_V2 || list_has(cgroup->places[i].controllers, controller))
                        return &cgroup->places[i];
        return NULL;
}

const char *cgroup_directory(const struct cgroup *cgroup, const char *controller, char *text, size_t size_bytes)
{
        const struct cgroup_place *place = cgroup_find(cgroup, controller);

        if (place)
                return cgroup_place_directory(place, text, size_bytes);
        text[0] = 0;
        return text;
}

/* A new cpuset group has no processors until it is told: it takes those of the one above. */
static void inherit_cpuset(const char *directory)
{
        static const char *const files[] = { "cpuset.cpus", "cpuset.mems" };
        char above[4096], text[4096];
        const char *slash = strrchr(directory, '/');

        if (!slash || (size_t)(slash - directory) >= sizeof(above))
                return;
        memcpy(above, directory, (size_t)(slash - directory));
        above[slash - directory] = 0;
        for (size_t i = 0; i < ARRAY_SIZE(files); i++)
                if (cgroup_file_read(directory, files[i], text, sizeof(text)) >= 0 && text[strspn(text, " \n")] == 0 &&
                    cgroup_file_read(above, files[i], text, sizeof(text)) >= 0)
                        (void)cgroup_file_write(directory, files[i], text, NULL);
}

/* Version 2: a controller serves a group when the one above has turned it on for its children. */
static void enable_controllers(const char *directory)
{
        char available[512], one[64], *rest = available, *word;

        if (cgroup_file_read(directory, "cgroup.controllers", available, sizeof(available)) < 0)
                return;
        available[strcspn(available, "\n")] = 0;
        /* One by one: that one of them cannot be had (realtime processes and cpu) does not cost the others. */
        while ((word = next_word(&rest))) {
                snprintf(one, sizeof(one), "+%s", word);
                (void)cgroup_file_write(directory, "cgroup.subtree_control", one, NULL);
        }
}

/* Each directory of the path. The last one must be new, unless another container's creator may share it: podman makes pods' groups. */
static int make_place(const struct cgroup *cgroup, struct cgroup_place *place, struct err *err)
{
        char directory[4096];
        char *end;

        if (snprintf(directory, sizeof(directory), "%s%s", place->mount_point, place->path) >= (int)sizeof(directory))
                return err_set(err, -ENAMETOOLONG, "the path of the cgroup '%s' is too long", place->path);
        end = directory + strlen(place->mount_point);
        do {
                if (cgroup->mode == CGROUP_V2) {
                        char kept = *end;

                        *end = 0;
                        enable_controllers(directory);
                        *end = kept;
                }
                end = strchrnul(end + 1, '/');
                char kept = *end;

                *end = 0;
                if (mkdir(directory, 0755) < 0 && errno != EEXIST)
                        return err_errno(err, -errno, "cannot make the cgroup '%s'", directory);
                if (list_has(place->controllers, "cpuset"))
                        inherit_cpuset(directory);
                *end = kept;
        } while (*end);
        place->made = true;
        return 0;
}

static bool not_allowed(int code)
{
        return code == -EACCES || code == -EPERM || code == -EROFS;
}

static void drop_place(struct cgroup *cgroup, unsigned index)
{
        struct cgroup_place *place = &cgroup->places[index];

        free(place->controllers);
        free(place->mount_point);
        free(place->path);
        memmove(place, place + 1, (--cgroup->count - index) * sizeof(*place));
        cgroup->places[cgroup->count] = (struct cgroup_place){ 0 };
}

int cgroup_make(struct cgroup *cgroup, const struct resources *resources, bool rootless, struct err *err)
{
        struct err refused = ERR_INIT;
        int r = 0;

        for (unsigned i = 0; i < cgroup->count && !cgroup->scope;) {
                struct err why = ERR_INIT;

                r = make_place(cgroup, &cgroup->places[i], &why);
                if (!r) {
                        i++;
                } else if (not_allowed(r) && (rootless || cgroup->places[i].controllers[0] == 0 || geteuid() != 0)) {
                        refused = why;
                        drop_place(cgroup, i);
                        r = 0;
                } else {
                        *(err ? err : &refused) = why;
                        break;
                }
        }
        if (!r && !cgroup->count) {
                if (cgroup->mode != CGROUP_NONE && resources_given(resources))
                        r = err_set(err, -EPERM, "limits cannot be set, since %s", refused.text[0] ? refused.text : "there is no cgroup");
                cgroup->mode = CGROUP_NONE;
        }
        if (!r)
                r = cgroup_limit(cgroup, resources, err);
        if (r < 0)
                (void)!cgroup_remove(cgroup, NULL);
        return r;
}

int cgroup_enter(const struct cgroup *cgroup, pid_t pid, struct err *err)
{
        char directory[4096], number[16];

        snprintf(number, sizeof(number), "%d", (int)pid);
        for (unsigned i = 0; i < cgroup->count; i++) {
                int r = cgroup_file_write(cgroup_place_directory(&cgroup->places[i], directory, sizeof(directory)), "cgroup.procs", number, err);

                /* Version 2: "no internal processes": a group with children of its own takes none itself, but one below does. */
                if (r < 0)
                        return err_wrap(err, r, "putting process %d into its cgroup", (int)pid);
        }
        return 0;
}

/* Which hierarchy holds the processes together: version 2's, else freezer's, else the first. */
static const struct cgroup_place *holding_place(const struct cgroup *cgroup)
{
        const struct cgroup_place *place = NULL;

        if (cgroup->mode == CGROUP_V1)
                place = cgroup_find(cgroup, "freezer");
        return place ? place : cgroup->count ? &cgroup->places[0] : NULL;
}

bool cgroup_can_freeze(const struct cgroup *cgroup)
{
        return cgroup->mode == CGROUP_V2 || (cgroup->mode == CGROUP_V1 && cgroup_find(cgroup, "freezer"));
}

bool cgroup_is_frozen(const struct cgroup *cgroup)
{
        const struct cgroup_place *place = cgroup_can_freeze(cgroup) ? holding_place(cgroup) : NULL;
        char directory[4096], text[64];

        if (!place)
                return false;
        cgroup_place_directory(place, directory, sizeof(directory));
        if (cgroup->mode == CGROUP_V2)
                return cgroup_file_read(directory, "cgroup.freeze", text, sizeof(text)) > 0 && text[0] == '1';
        return cgroup_file_read(directory, "freezer.state", text, sizeof(text)) > 0 && strncmp(text, "THAWED", 6) != 0;
}

static bool freeze_done(const struct cgroup *cgroup, const char *directory, bool freeze)
{
        char text[256];

        if (cgroup->mode == CGROUP_V2)
                return cgroup_file_read(directory, "cgroup.events", text, sizeof(text)) < 0 || strstr(text, freeze ? "frozen 1" : "frozen 0");
        return cgroup_file_read(directory, "freezer.state", text, sizeof(text)) < 0 || !strncmp(text, freeze ? "FROZEN" : "THAWED", 6);
}

int cgroup_freeze(const struct cgroup *cgroup, bool freeze, struct err *err)
{
        const struct cgroup_place *place = cgroup_can_freeze(cgroup) ? holding_place(cgroup) : NULL;
        bool v2 = cgroup->mode == CGROUP_V2;
        char directory[4096];
        int r;

        if (!place)
                return err_set(err, -ENOTSUP, "the container has no cgroup that could stop it");
        cgroup_place_directory(place, directory, sizeof(directory));
        for (unsigned tries = 0; tries < 1000; tries++) {
                r = cgroup_file_write(directory, v2 ? "cgroup.freeze" : "freezer.state", v2 ? (freeze ? "1" : "0") : freeze ? "FROZEN" : "THAWED", err);
                if (r < 0)
                        return r;
                for (unsigned i = 0; i < 5; i++) {
                        if (freeze_done(cgroup, directory, freeze))
                                return 0;
                        sleep_ms(i);
                }
                /* A process that forks while version 1 freezes may keep it from ending: let go and begin again. */
                if (freeze && !v2 && tries % 20 == 19)
                        (void)cgroup_file_write(directory, "freezer.state", "THAWED", NULL);
        }
        (void)cgroup_file_write(directory, v2 ? "cgroup.freeze" : "freezer.state", v2 ? "0" : "THAWED", NULL);
        return err_set(err, -ETIMEDOUT, "the container's processes could not be %s", freeze ? "stopped" : "continued");
}

static int add_processes(const char *directory, pid_t **pids, size_t *count, unsigned depth, struct err *err)
{
        char path[4096];
        FILE *file;
        DIR *dir;
        struct dirent *entry;
        int r = 0, pid;

        snprintf(path, sizeof(path), "%s/cgroup.procs", directory);
        file = fopen(path, "re");
        if (!file)
                return errno == ENOENT ? 0 : err_errno(err, -errno, "cannot read '%s'", path);
        while (!r && fscanf(file, "%d", &pid) == 1) {
                pid_t *grown = reallocarray(*pids, *count + 1, sizeof(**pids));

                if (grown) {
                        *pids = grown;
                        grown[(*count)++] = pid;
                } else {
                        r = err_nomem(err);
                }
        }
        fclose(file);
        dir = r < 0 || !depth ? NULL : opendir(directory);
        while (dir && !r && (entry = readdir(dir))) {
                if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
                        continue;
                if (snprintf(path, sizeof(path), "%s/%s", directory, entry->d_name) < (int)sizeof(path))
                        r = add_processes(path, pids, count, depth - 1, err);
        }
        if (dir)
                closedir(dir);
        return r;
}

int cgroup_processes(const struct cgroup *cgroup, pid_t **pids, size_t *count, struct err *err)
{
        const struct cgroup_place *place = holding_place(cgroup);
        char directory[4096];
        int r;

        *pids = NULL;
        *count = 0;
        if (!place)
                return 0;
        r = add_processes(cgroup_place_directory(place, directory, sizeof(directory)), pids, count, 64, err);
        if (r < 0) {
                free(*pids);
                *pids = NULL;
                *count = 0;
        }
        return r;
}

int cgroup_kill(const struct cgroup *cgroup, int signal, struct err *err)
{
        const struct cgroup_place *place = holding_place(cgroup);
        char directory[4096];

        if (!place)
                return 0;
        cgroup_place_directory(place, directory, sizeof(directory));
        for (unsigned tries = 0; tries < 500; tries++) {
                _cleanup_free_ pid_t *pids = NULL;
                size_t count;
                int r;

                /* Linux 5.14: all at once, forks included. */
                if (signal == SIGKILL && cgroup->mode == CGROUP_V2 && tries == 0)
                        (void)cgroup_file_write(directory, "cgroup.kill", "1", NULL);
                r = cgroup_processes(cgroup, &pids, &count, err);
                if (r < 0)
                        return r;
                for (size_t i = 0; i < count; i++)
                        (void)kill(pids[i], signal);
                if (signal != SIGKILL || !count)
                        return 0;
                /* A stopped process does not die. */
                if (tries == 0 && cgroup_is_frozen(cgroup))
                        (void)!cgroup_freeze(cgroup, false, NULL);
                sleep_ms(MIN(tries, 20u));
        }
        return err_set(err, -EBUSY, "the container's processes do not end");
}

static int remove_tree(char *directory, size_t size_bytes, unsigned depth)
{
        size_t length = strlen(directory);
        struct dirent *entry;
        DIR *dir;

        if (rmdir(directory) == 0 || errno == ENOENT)
                return 0;
        if (errno != EBUSY && errno != ENOTEMPTY)
                return -errno;
        dir = depth ? opendir(directory) : NULL;
        while (dir && (entry = readdir(dir))) {
                if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
                        continue;
                if (snprintf(directory + length, size_bytes - length, "/%s", entry->d_name) < (int)(size_bytes - length))
                        (void)remove_tree(directory, size_bytes, depth - 1);
                directory[length] = 0;
        }
        if (dir)
                closedir(dir);
        return rmdir(directory) < 0 && errno != ENOENT ? -errno : 0;
}

int cgroup_remove(struct cgroup *cgroup, struct err *err)
{
        char directory[4096];
        int r = 0;

        if (cgroup->scope)
                (void)cgroup_stop_systemd(cgroup, NULL);
        for (unsigned i = 0; i < cgroup->count && !r; i++) {
                struct cgroup_place *place = &cgroup->places[i];

                /* A process that has just ended may still be counted. */
                for (unsigned tries = 0; tries < 200; tries++) {
                        cgroup_place_directory(place, directory, sizeof(directory));
                        r = remove_tree(directory, sizeof(directory), 64);
                        if (r != -EBUSY)
                                break;
                        sleep_ms(MIN(tries, 20u));
                }
                if (r < 0 && cgroup->scope)
                        r = 0;
                if (r < 0)
                        return err_errno(err, r, "cannot take the cgroup '%s%s' away", place->mount_point, place->path);
        }
        return r;
}

json_t *cgroup_save(const struct cgroup *cgroup)
{
        json_t *places = json_array();

        for (unsigned i = 0; places && i < cgroup->count; i++) {
                const struct cgroup_place *place = &cgroup->places[i];

                if (json_array_append_new(places, json_pack("{s:s, s:s, s:s}", "controllers", place->controllers, "mountPoint", place->mount_point,
                                                            "path", place->path)) < 0) {
                        json_decref(places);
                        return NULL;
                }
        }
        return json_pack("{s:i, s:s*, s:o}", "mode", (int)cgroup->mode, "scope", cgroup->scope, "places", places);
}

int cgroup_load(struct cgroup *cgroup, const json_t *json, struct err *err)
{
        const char *scope = NULL;
        json_t *places, *place;
        size_t i;
        int mode, r = 0;

        *cgroup = (struct cgroup){ 0 };
        if (json_unpack((json_t *)json, "{s:i, s?s, s:o}", "mode", &mode, "scope", &scope, "places", &places) < 0 || mode < CGROUP_NONE || mode > CGROUP_V2)
                return err_set(err, -EBADMSG, "the record of the cgroups is damaged");
        cgroup->mode = (enum cgroup_mode)mode;
        cgroup->scope = scope ? strdup(scope) : NULL;
        json_array_foreach(places, i, place) {
                const char *controllers, *mount_point, *path;

                if (json_unpack(place, "{s:s, s:s, s:s}", "controllers", &controllers, "mountPoint", &mount_point, "path", &path) < 0)
                        r = err_set(err, -EBADMSG, "the record of the cgroups is damaged");
                else
                        r = add_place(cgroup, controllers, mount_point, strdup(path), err);
                if (r < 0)
                        break;
        }
        if (r < 0)
                cgroup_done(cgroup);
        return r;
}

void cgroup_done(struct cgroup *cgroup)
{
        while (cgroup->count)
                drop_place(cgroup, cgroup->count - 1);
        free(cgroup->scope);
        *cgroup = (struct cgroup){ 0 };
}
