/*
 * The parts that are not Linux's own: root, process, mounts, hooks, annotations. The rest is in config-linux.c.
 */
#include "container/config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "container/config-internal.h"
#include "container/words.h"

const char *const hook_names[HOOK_COUNT] = {
        [HOOK_PRESTART] = "prestart",
        [HOOK_CREATE_RUNTIME] = "createRuntime",
        [HOOK_CREATE_CONTAINER] = "createContainer",
        [HOOK_START_CONTAINER] = "startContainer",
        [HOOK_POSTSTART] = "poststart",
        [HOOK_POSTSTOP] = "poststop",
};

int read_word(const struct place *object, const char *key, const struct word *table, const struct word **to, struct err *err)
{
        struct place place = place_member(object, key);
        const char *text = NULL;
        int r = read_text(object, key, &text, err);

        if (r < 0 || !text)
                return r;
        *to = word_find(table, text);
        return *to ? 0 : place_error(&place, -EINVAL, err, "is '%s', which is not known here", text);
}

int read_path(const struct place *object, const char *key, const char **to, struct err *err)
{
        struct place place = place_member(object, key);
        int r = read_text(object, key, to, err);

        if (!r && *to && strlen(*to) >= PATH_MAX)
                return place_error(&place, -ENAMETOOLONG, err, "is a path of %zu bytes", strlen(*to));
        return r;
}

static int parse_named_texts(const struct place *root, const char *key, struct config *config, struct named_text **to, size_t *count,
                             struct err *err)
{
        struct place object;
        const char *name;
        json_t *value;
        int r = read_object(root, key, &object, err);
        struct named_text *entry;

        if (r < 0 || !object.json)
                return r;
        entry = arena_take(&config->arena, json_object_size(object.json), sizeof(*entry));
        if (!entry)
                return err_nomem(err);
        *to = entry;
        json_object_foreach(object.json, name, value) {
                entry->name = name;
                r = read_required_text(&object, name, &entry->text, err);
                /* An empty value is a value. */
                if (r < 0 && !(json_is_string(value) && !json_string_length(value)))
                        return r;
                if (r < 0)
                        entry->text = "";
                entry++;
        }
        *count = (size_t)(entry - *to);
        return 0;
}

int parse_sysctls(const struct place *linux_place, struct config *config, struct err *err)
{
        return parse_named_texts(linux_place, "sysctl", config, &config->sysctls, &config->sysctl_count, err);
}

static int parse_capability_set(const struct place *sets, const char *key, uint64_t *to, struct err *err)
{
        struct place array;
        size_t count;
        int r = read_array(sets, key, &array, &count, err);

        *to = 0;
        for (size_t i = 0; !r && i < count; i++) {
                struct place element = place_element(&array, i);
                const char *name = json_string_value(element.json);
                const struct word *word = name ? word_find(capability_words, name) : NULL;

                if (!name)
                        return place_error(&element, -EINVAL, err, "is not a string");
                /* "Any value which cannot be mapped to a relevant kernel interface … MUST be logged as a warning": config.md. */
                if (word)
                        *to |= UINT64_C(1) << word->value;
        }
        return r;
}

static int parse_capabilities(const struct place *process, struct capability_sets *to, struct err *err)
{
        struct {
                const char *key;
                uint64_t *set;
        } const sets[] = {
                { "effective", &to->effective }, { "bounding", &to->bounding }, { "inheritable", &to->inheritable },
                { "permitted", &to->permitted }, { "ambient", &to->ambient },
        };
        struct place place;
        int r = read_object(process, "capabilities", &place, err);

        if (r < 0 || !place.json)
                return r;
        to->given = true;
        for (size_t i = 0; i < ARRAY_SIZE(sets) && !r; i++)
                r = parse_capability_set(&place, sets[i].key, sets[i].set, err);
        return r;
}

static int parse_limit(const struct place *place, void *element, void *ctx, struct err *err)
{
        struct resource_limit *limit = element;
        const struct config *config = ctx;
        const struct word *word = NULL;
        uint64_t soft = 0, hard = 0;
        int r = read_word(place, "type", limit_words, &word, err);

        if (!r)
                r = read_u64(place, "soft", &soft, err);
        if (!r)
                r = read_u64(place, "hard", &hard, err);
        if (r < 0)
                return r;
        if (!word)
                return place_error(place, -EINVAL, err, "has no type");
        if (soft > hard)
                return place_error(place, -EINVAL, err, "has a soft limit %llu above the hard one %llu", (unsigned long long)soft,
                                   (unsigned long long)hard);
        *limit = (struct resource_limit){ (int)word->value, { soft, hard } };
        /* "If rlimits contains duplicated entries with same type, the runtime MUST generate an error": config.md, "POSIX process". */
        for (const struct resource_limit *other = limit - place->index; other < limit; other++)
                if (other->resource == limit->resource)
                        return place_error(place, -EINVAL, err, "gives %s a second time", word->name);
        (void)config;
        return 0;
}

static int parse_scheduler(const struct place *process, struct config *config, struct err *err)
{
        struct scheduling *to = &config->process.scheduling;
        const struct word *word = NULL;
        const char **flags = NULL;
        struct place place;
        int64_t nice = 0, priority = 0;
        int r = read_object(process, "scheduler", &place, err);

        if (r < 0 || !place.json)
                return r;
        r = read_word(&place, "policy", scheduler_words, &word, err);
        if (!r && !word)
                return place_error(&place, -EINVAL, err, "has no policy");
        if (!r)
                r = read_number(&place, "nice", -20, 19, &nice, err);
        if (!r)
                r = read_number(&place, "priority", 0, 99, &priority, err);
        if (!r)
                r = read_u64(&place, "runtime", &to->runtime_ns, err);
        if (!r)
                r = read_u64(&place, "deadline", &to->deadline_ns, err);
        if (!r)
                r = read_u64(&place, "period", &to->period_ns, err);
        if (!r)
                r = read_texts(&place, "flags", &config->arena, &flags, NULL, err);
        if (r < 0)
                return r;
        to->given = true;
        to->policy = (uint32_t)word->value;
        to->nice = (int32_t)nice;
        to->priority = (uint32_t)priority;
        for (; flags && *flags; flags++) {
                word = word_find(scheduler_flag_words, *flags);
                if (!word)
                        return place_error(&place, -EINVAL, err, "has the unknown flag '%s'", *flags);
                to->flags |= word->value;
        }
        return 0;
}

/* ioprio_set(2): the class in the upper 3 bits of 16, the priority below. */
static int parse_io_priority(const struct place *process, int *to, struct err *err)
{
        static const struct word classes[] = {
                { "IOPRIO_CLASS_RT", 1 }, { "IOPRIO_CLASS_BE", 2 }, { "IOPRIO_CLASS_IDLE", 3 }, { 0 },
        };
        const struct word *class = NULL;
        struct place place;
        int64_t priority = 0;
        int r = read_object(process, "ioPriority", &place, err);

        *to = -1;
        if (r < 0 || !place.json)
                return r;
        r = read_word(&place, "class", classes, &class, err);
        if (!r)
                r = read_number(&place, "priority", 0, 7, &priority, err);
        if (r < 0)
                return r;
        if (!class)
                return place_error(&place, -EINVAL, err, "has no class");
        *to = (int)class->value << 13 | (int)priority;
        return 0;
}

static int parse_user(const struct place *process, struct config *config, struct err *err)
{
        struct process_config *to = &config->process;
        struct place user, groups;
        size_t count;
        int r = read_object(process, "user", &user, err);

        if (r < 0 || !user.json)
                return r;
        r = read_u32(&user, "uid", &to->uid, err);
        if (!r)
                r = read_u32(&user, "gid", &to->gid, err);
        if (!r) {
                int64_t umask = -1;

                r = read_number(&user, "umask", 0, 07777, &umask, err);
                to->umask_given = umask >= 0;
                to->umask = (uint32_t)umask;
        }
        if (!r)
                r = read_array(&user, "additionalGids", &groups, &count, err);
        if (r < 0)
                return r;
        if (to->uid == UINT32_MAX || to->gid == UINT32_MAX)
                return place_error(&user, -EINVAL, err, "has an id of %u, which no user can have", UINT32_MAX);
        to->groups = arena_take(&config->arena, count, sizeof(*to->groups));
        if (!to->groups)
                return err_nomem(err);
        for (size_t i = 0; i < count; i++) {
                struct place element = place_element(&groups, i);
                json_int_t group = json_integer_value(element.json);

                if (!json_is_integer(element.json) || group < 0 || group >= UINT32_MAX)
                        return place_error(&element, -EINVAL, err, "is not a group's number");
                to->groups[to->group_count++] = (uint32_t)group;
        }
        return 0;
}

static int parse_console_size(const struct place *process, struct process_config *to, struct err *err)
{
        int64_t rows = 0, columns = 0;
        struct place place;
        int r = read_object(process, "consoleSize", &place, err);

        if (!r)
                r = read_number(&place, "height", 0, UINT16_MAX, &rows, err);
        if (!r)
                r = read_number(&place, "width", 0, UINT16_MAX, &columns, err);
        if (!r) {
                to->console_rows = (unsigned)rows;
                to->console_columns = (unsigned)columns;
        }
        return r;
}

static int check_process(const struct place *place, const struct process_config *process, struct err *err)
{
        /* config.md, "POSIX process": at least one entry; an absolute path. */
        if (!process->arg_count)
                return place_error(place, -EINVAL, err, "has no args: what is to be run?");
        if (!*process->args[0])
                return place_error(place, -EINVAL, err, "has an empty args[0]: what is to be run?");
        if (!process->cwd || process->cwd[0] != '/')
                return place_error(place, -EINVAL, err, "has a cwd '%s' that is not an absolute path", process->cwd ? process->cwd : "");
        return 0;
}

int parse_process(const struct place *place, struct config *config, struct err *err)
{
        struct process_config *to = &config->process;
        struct place affinity;
        int64_t score = 0;
        int r = read_bool(place, "terminal", &to->terminal, err);

        to->args = to->env = arena_take(&config->arena, 1, sizeof(*to->args));
        if (!to->args)
                return err_nomem(err);
        to->io_priority = -1;
        if (!r)
                r = read_bool(place, "noNewPrivileges", &to->no_new_privileges, err);
        if (!r)
                r = parse_console_size(place, to, err);
        if (!r)
                r = read_path(place, "cwd", &to->cwd, err);
        if (!r)
                r = read_texts(place, "args", &config->arena, &to->args, &to->arg_count, err);
        if (!r)
                r = read_texts(place, "env", &config->arena, &to->env, &to->env_count, err);
        if (!r)
                r = parse_user(place, config, err);
        if (!r)
                r = parse_capabilities(place, &to->capabilities, err);
        if (!r)
                r = read_list(place, "rlimits", &config->arena, sizeof(*to->limits), &to->limits, &to->limit_count, parse_limit, config, err);
        if (!r)
                r = read_number(place, "oomScoreAdj", -1000, 1000, &score, err);
        to->oom_score_given = json_is_integer(json_object_get(place->json, "oomScoreAdj"));
        to->oom_score_adj = (int)score;
        if (!r)
                r = read_text(place, "apparmorProfile", &to->apparmor_profile, err);
        if (!r)
                r = read_text(place, "selinuxLabel", &to->selinux_label, err);
        if (!r)
                r = parse_scheduler(place, config, err);
        if (!r)
                r = parse_io_priority(place, &to->io_priority, err);
        if (!r)
                r = read_object(place, "execCPUAffinity", &affinity, err);
        if (!r)
                r = read_text(&affinity, "initial", &to->cpus_initial, err);
        if (!r)
                r = read_text(&affinity, "final", &to->cpus_final, err);
        return r < 0 ? r : check_process(place, to, err);
}

int parse_id_maps(const struct place *object, const char *uids, const char *gids, struct arena *arena, struct id_maps *to, struct err *err)
{
        struct {
                const char *key;
                struct id_map **maps;
                size_t *count;
        } const kinds[] = { { uids, &to->uids, &to->uid_count }, { gids, &to->gids, &to->gid_count } };

        for (size_t kind = 0; kind < ARRAY_SIZE(kinds); kind++) {
                struct place array;
                size_t count;
                struct id_map *map;
                int r = read_array(object, kinds[kind].key, &array, &count, err);

                if (r < 0)
                        return r;
                /* user_namespaces(7): at most 340 lines. */
                if (count > 340)
                        return place_error(&array, -EINVAL, err, "has %zu lines, more than the kernel's 340", count);
                map = arena_take(arena, count, sizeof(*map));
                if (!map)
                        return err_nomem(err);
                for (size_t i = 0; i < count; i++) {
                        struct place line = place_element(&array, i);

                        r = read_u32(&line, "containerID", &map[i].inside, err);
                        if (!r)
                                r = read_u32(&line, "hostID", &map[i].outside, err);
                        if (!r)
                                r = read_u32(&line, "size", &map[i].count, err);
                        if (r < 0)
                                return r;
                        if (!map[i].count)
                                return place_error(&line, -EINVAL, err, "has a size of 0");
                }
                *kinds[kind].maps = map;
                *kinds[kind].count = count;
        }
        return 0;
}

static void apply_mount_word(struct mount_config *mount, const struct mount_word *word)
{
        uint64_t *set = word->recursive ? &mount->set_recursive : &mount->set;
        uint64_t *clear = word->recursive ? &mount->clear_recursive : &mount->clear;

        switch (word->kind) {
        case MOUNT_WORD_SET:
                /* The last one counts: "ro" takes an earlier "rw" away. */
                *set = (*set & ~word->clear) | word->set;
                *clear = (*clear & ~word->set) | word->clear;
                break;
        case MOUNT_WORD_BIND:
                mount->kind = MOUNT_BIND;
                mount->recursive_bind |= word->recursive;
                break;
        case MOUNT_WORD_PROPAGATION:
                *(word->recursive ? &mount->propagation_recursive : &mount->propagation) = word->set;
                break;
        case MOUNT_WORD_SUPER:
                break;
        case MOUNT_WORD_OTHER:
                mount->copy_up |= !strcmp(word->name, "tmpcopyup");
                mount->copy_symlink |= !strcmp(word->name, "copy-symlink");
                mount->remount |= !strcmp(word->name, "remount");
                mount->id_mapped |= strstr(word->name, "idmap") != NULL;
                mount->id_mapped_recursive |= word->recursive;
        }
}

static int parse_mount(const struct place *place, void *element, void *ctx, struct err *err)
{
        struct config *config = ctx;
        struct mount_config *mount = element;
        const char **options = NULL;
        size_t count = 0, data = 0;
        int r = read_required_text(place, "destination", &mount->destination, err);

        if (!r)
                r = read_path(place, "destination", &mount->destination, err);
        if (!r)
                r = read_path(place, "source", &mount->source, err);
        if (!r)
                r = read_text(place, "type", &mount->type, err);
        if (!r)
                r = read_texts(place, "options", &config->arena, &options, &count, err);
        if (!r)
                r = parse_id_maps(place, "uidMappings", "gidMappings", &config->arena, &mount->id_maps, err);
        if (r < 0)
                return r;
        if (mount->type && !strcmp(mount->type, "bind"))
                mount->kind = MOUNT_BIND;
        mount->data = arena_take(&config->arena, count + 1, sizeof(*mount->data));
        if (!mount->data)
                return err_nomem(err);
        for (size_t i = 0; i < count; i++) {
                const struct mount_word *word = mount_word_find(options[i]);

                if (word)
                        apply_mount_word(mount, word);
                if (!word || word->kind == MOUNT_WORD_SUPER)
                        mount->data[data++] = options[i];
        }
        mount->id_mapped |= mount->id_maps.uid_count || mount->id_maps.gid_count;
        if (mount->kind == MOUNT_BIND && !mount->source && !mount->remount)
                return place_error(place, -EINVAL, err, "is a bind mount without a source");
        if (mount->kind == MOUNT_FILESYSTEM && !mount->type && !mount->remount)
                return place_error(place, -EINVAL, err, "has no type");
        return 0;
}

static int parse_hook(const struct place *place, void *element, void *ctx, struct err *err)
{
        struct config *config = ctx;
        struct hook_config *hook = element;
        const char **args;
        int64_t timeout = 0;
        int r = read_required_text(place, "path", &hook->path, err);

        if (!r && hook->path[0] != '/')
                return place_error(place, -EINVAL, err, "has a path '%s' that is not absolute", hook->path);
        args = arena_take(&config->arena, 2, sizeof(*args));
        if (!r && !args)
                return err_nomem(err);
        if (!r) {
                args[0] = hook->path;
                hook->args = args;
                hook->env = args + 1;
                r = read_texts(place, "args", &config->arena, &hook->args, NULL, err);
        }
        if (!r)
                r = read_texts(place, "env", &config->arena, &hook->env, NULL, err);
        if (!r)
                r = read_number(place, "timeout", 1, INT32_MAX, &timeout, err);
        hook->timeout_s = (unsigned)timeout;
        return r;
}

static int parse_hooks(const struct place *root, struct config *config, struct err *err)
{
        struct place hooks;
        int r = read_object(root, "hooks", &hooks, err);

        for (int kind = 0; !r && hooks.json && kind < HOOK_COUNT; kind++)
                r = read_list(&hooks, hook_names[kind], &config->arena, sizeof(*config->hooks[kind]), &config->hooks[kind],
                              &config->hook_counts[kind], parse_hook, config, err);
        return r;
}

/* config.md, "Specification version": SemVer 2.0; what is 1.x is read as 1.2. */
static int check_version(const struct config *config, struct err *err)
{
        unsigned major, minor, patch;
        int used = 0;

        if (sscanf(config->version, "%u.%u.%u%n", &major, &minor, &patch, &used) != 3 ||
            (config->version[used] && !strchr("-+", config->version[used])))
                return err_set(err, -EINVAL, "ociVersion is '%s', not a version", config->version);
        if (major != 1)
                return err_set(err, -EINVAL, "ociVersion is '%s': only 1.x is known here", config->version);
        return 0;
}

static int parse_root(const struct place *place, struct config *config, struct err *err)
{
        struct place root, process = { 0 }, linux_place;
        int r = read_required_text(place, "ociVersion", &config->version, err);

        if (!r)
                r = check_version(config, err);
        if (!r)
                r = read_object(place, "root", &root, err);
        if (!r && !root.json)
                return place_error(&root, -EINVAL, err, "is missing");
        if (!r)
                r = read_required_text(&root, "path", &config->root_path, err);
        if (!r)
                r = read_path(&root, "path", &config->root_path, err);
        if (!r)
                r = read_bool(&root, "readonly", &config->root_readonly, err);
        if (!r)
                r = read_text(place, "hostname", &config->hostname, err);
        if (!r)
                r = read_text(place, "domainname", &config->domain_name, err);
        if (!r)
                r = read_object(place, "process", &process, err);
        config->process_given = process.json;
        if (!r && process.json)
                r = parse_process(&process, config, err);
        if (!r)
                r = read_list(place, "mounts", &config->arena, sizeof(*config->mounts), &config->mounts, &config->mount_count, parse_mount,
                              config, err);
        if (!r)
                r = parse_hooks(place, config, err);
        if (!r)
                r = parse_named_texts(place, "annotations", config, &config->annotations, &config->annotation_count, err);
        if (!r)
                r = read_object(place, "linux", &linux_place, err);
        if (!r && !linux_place.json)
                return place_error(&linux_place, -EINVAL, err, "is missing: this is a configuration for another system");
        if (!r)
                r = parse_linux(&linux_place, config, err);
        return r;
}

/* Texts are checked where they are used; what is shared by all is that no list is endless. */
int config_parse(struct config *config, const void *text, size_t size_bytes, struct err *err)
{
        struct config parsed = { 0 };
        int r = read_json(text, size_bytes, &parsed.json, err);
        struct place root = { parsed.json, NULL, NULL, 0 };

        if (!r && !json_is_object(parsed.json))
                r = err_set(err, -EINVAL, "the file is not a JSON object");
        if (!r)
                r = parse_root(&root, &parsed, err);
        if (r < 0) {
                config_done(&parsed);
                return r;
        }
        *config = parsed;
        return 0;
}

/* The whole of a regular file; *text is the caller's to free. */
static int read_file(int dir_fd, const char *path, char **text, size_t *size_bytes, struct err *err)
{
        _cleanup_close_ int fd = !strcmp(path, "-") ? dup(STDIN_FILENO) : openat(dir_fd, path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
        _cleanup_free_ char *buffer = NULL;
        size_t have = 0, room = 0;
        struct stat st;

        if (fd < 0 || fstat(fd, &st) < 0)
                return err_errno(err, -errno, "cannot open '%s'", path);
        if (S_ISDIR(st.st_mode))
                return err_set(err, -EISDIR, "'%s' is a directory", path);
        if (S_ISREG(st.st_mode) && (uint64_t)st.st_size > JSON_TEXT_MAX)
                return err_set(err, -EFBIG, "'%s' is %lld bytes, longer than %zu", path, (long long)st.st_size, JSON_TEXT_MAX);
        for (;;) {
                ssize_t n;

                if (have == room) {
                        char *grown;

                        room = room ? room * 2 : MAX((size_t)st.st_size + 1, (size_t)4096);
                        grown = have > JSON_TEXT_MAX ? NULL : realloc(buffer, room);
                        if (!grown)
                                return have > JSON_TEXT_MAX ? err_set(err, -EFBIG, "'%s' is longer than %zu", path, JSON_TEXT_MAX) : err_nomem(err);
                        buffer = grown;
                }
                n = read(fd, buffer + have, room - have);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return err_errno(err, -errno, "cannot read '%s'", path);
                if (n == 0)
                        break;
                have += (size_t)n;
        }
        *text = steal_ptr(buffer);
        *size_bytes = have;
        return 0;
}

int config_read(struct config *config, int dir_fd, const char *path, struct err *err)
{
        _cleanup_free_ char *text = NULL;
        size_t size;
        int r = read_file(dir_fd, path, &text, &size, err);

        if (!r) {
                r = config_parse(config, text, size, err);
                if (r < 0)
                        err_wrap(err, r, "%s", path);
        }
        return r;
}

/* A part by itself: fn reads it. */
static int read_part(struct config *config, const char *path,
                     int (*fn)(const struct place *place, struct config *config, struct err *err), struct err *err)
{
        _cleanup_free_ char *text = NULL;
        json_t *json = NULL;
        size_t size;
        struct place place;
        int r = read_file(AT_FDCWD, path, &text, &size, err);

        if (r < 0)
                return r;
        r = read_json(text, size, &json, err);
        if (r < 0)
                return err_wrap(err, r, "%s", path);
        place = (struct place){ json, NULL, NULL, 0 };
        r = json_is_object(json) ? fn(&place, config, err) : err_set(err, -EINVAL, "the file is not a JSON object");
        /* The texts live as long as the config: its JSON keeps them. */
        if (!config->json)
                config->json = json_object();
        if (!config->json || json_object_set_new(config->json, path, json) < 0)
                return err_nomem(err);
        return r < 0 ? err_wrap(err, r, "%s", path) : 0;
}

int config_read_process(struct config *config, const char *path, struct err *err)
{
        return read_part(config, path, parse_process, err);
}

int config_read_resources(struct config *config, const char *path, struct err *err)
{
        return read_part(config, path, parse_resources, err);
}

void config_done(struct config *config)
{
        arena_done(&config->arena);
        json_decref(config->json);
        *config = (struct config){ 0 };
}

const char *config_annotation(const struct config *config, const char *name)
{
        for (size_t i = 0; i < config->annotation_count; i++)
                if (!strcmp(config->annotations[i].name, name))
                        return config->annotations[i].text;
        return NULL;
}
