/* The commands of virta-oci: their options are runc's. What they do is in container/. */
#include <errno.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "base/text.h"
#include "cli/oci.h"
#include "container/process.h"

#define LIST_MAX 256

/* Texts of a repeated option, NULL-terminated. */
struct texts {
        const char *list[LIST_MAX + 1];
        size_t count;
};

static int add_text(struct texts *texts, const char *value, struct err *err)
{
        if (texts->count == LIST_MAX)
                return err_set(err, -E2BIG, "more than %d are given", LIST_MAX);
        texts->list[texts->count++] = value;
        return 0;
}

static int print_json(json_t *json, int flags)
{
        char *text = json_dumps(json, flags | JSON_ENCODE_ANY);

        if (text)
                puts(text);
        free(text);
        json_decref(json);
        return text ? 0 : -ENOMEM;
}

/* create, run */

struct create_args {
        struct create_options options;
        unsigned preserved_fds;
};

#define CREATE(member) offsetof(struct create_args, options.member)

#define CREATE_OPTIONS                                                                                                                              \
        { "bundle", "DIRECTORY", "where config.json is", OPT_TEXT, CREATE(bundle), .fallback = ".", .complete = OPT_COMPLETE_DIRECTORY, .letter = 'b' }, \
        { "console-socket", "PATH", "a unix socket that is sent the terminal", OPT_TEXT, CREATE(console_socket), .complete = OPT_COMPLETE_FILE },      \
        { "pid-file", "FILE", "write the number of the container's process there", OPT_TEXT, CREATE(pid_file), .complete = OPT_COMPLETE_FILE },        \
        { "no-pivot", NULL, "do without pivot_root, on an initial ramfs", OPT_FLAG, CREATE(no_pivot) },                                              \
        { "no-new-keyring", NULL, "keep the caller's session keyring", OPT_FLAG, CREATE(no_new_keyring) },                                           \
        { "preserve-fds", "COUNT", "hand on so many descriptors after the standard three", OPT_NUMBER, offsetof(struct create_args, preserved_fds),   \
          .fallback = "0", .max = 65536 }

static const struct opt create_options[] = { CREATE_OPTIONS, { 0 } };

static const struct opt run_options[] = {
        CREATE_OPTIONS,
        { "detach", NULL, "come back when the program runs", OPT_FLAG, CREATE(detach), .letter = 'd' },
        { "keep", NULL, "do not delete the container at its end", OPT_FLAG, CREATE(keep) },
        { 0 },
};

static const struct opt create_operands[] = {
        { NULL, "ID", "the container's name", OPT_TEXT, CREATE(id), .required = true },
        { 0 },
};

static void create_prepare(void *into)
{
        ((struct create_args *)into)->options.bundle = ".";
}

static int create_run(const struct runtime *runtime, void *into, int *exit_code, struct err *err)
{
        struct create_args *args = into;

        args->options.preserved_fds = (int)args->preserved_fds;
        return container_create(runtime, &args->options, err);
}

/* As a shell has it, when it is the program that cannot be run; 1 for anything else. */
static int program_exit_code(int code, const struct err *err)
{
        bool program = !strncmp(err->text, "executable file not found", 25) || !strncmp(err->text, "cannot run '", 12);

        return program ? process_exit_code(code) : 1;
}

static int run_run(const struct runtime *runtime, void *into, int *exit_code, struct err *err)
{
        struct create_args *args = into;
        int r;

        args->options.preserved_fds = (int)args->preserved_fds;
        r = container_run(runtime, &args->options, exit_code, err);
        if (r < 0)
                *exit_code = program_exit_code(r, err);
        return r;
}

static const struct opt_command create_table = {
        .name = "create",
        .summary = "make a container that waits to be started",
        .description = "Makes the container ID from a bundle: its namespaces, groups and file system. Its program runs when 'start' is called.",
        .options = create_options,
        .operands = create_operands,
};

static const struct opt_command run_table = {
        .name = "run",
        .summary = "make a container and start it",
        .description = "Makes the container ID from a bundle, starts it, waits for its end and deletes it. Ends as the program did.",
        .options = run_options,
        .operands = create_operands,
};

static const struct oci_command create_command = { &create_table, sizeof(struct create_args), create_run, create_prepare, true };
static const struct oci_command run_command = { &run_table, sizeof(struct create_args), run_run, create_prepare, true };

/* Those that take a name and no more */

struct id_args {
        const char *id;
        bool force, all;
        const char *signal;
};

static const struct opt no_options[] = { { 0 } };

static const struct opt id_operands[] = {
        { NULL, "ID", "the container's name", OPT_TEXT, offsetof(struct id_args, id), .required = true },
        { 0 },
};

static int start_run(const struct runtime *runtime, void *into, int *exit_code, struct err *err)
{
        return container_start(runtime, ((struct id_args *)into)->id, err);
}

static const struct opt_command start_table = {
        .name = "start",
        .summary = "start a container that was created",
        .description = "Lets the program of the container run, and comes back when it does.",
        .options = no_options,
        .operands = id_operands,
};

static int state_run(const struct runtime *runtime, void *into, int *exit_code, struct err *err)
{
        json_t *json;
        int r = container_state_json(runtime, ((struct id_args *)into)->id, &json, err);

        return r < 0 ? r : print_json(json, JSON_INDENT(2));
}

static const struct opt_command state_table = {
        .name = "state",
        .summary = "print the state of a container",
        .description = "Prints the container's state as JSON: its status is one of creating, created, running, paused and stopped.",
        .options = no_options,
        .operands = id_operands,
};

static const struct opt delete_options[] = {
        { "force", NULL, "kill it first when it runs; one that is not there is no error", OPT_FLAG, offsetof(struct id_args, force), .letter = 'f' },
        { 0 },
};

static int delete_run(const struct runtime *runtime, void *into, int *exit_code, struct err *err)
{
        struct id_args *args = into;

        return container_delete(runtime, args->id, args->force, err);
}

static const struct opt_command delete_table = {
        .name = "delete",
        .summary = "take away a container that has stopped",
        .description = "Takes away what is left of the container: its groups, and its record.",
        .options = delete_options,
        .operands = id_operands,
};

static int pause_run(const struct runtime *runtime, void *into, int *exit_code, struct err *err)
{
        return container_pause(runtime, ((struct id_args *)into)->id, true, err);
}

static int resume_run(const struct runtime *runtime, void *into, int *exit_code, struct err *err)
{
        return container_pause(runtime, ((struct id_args *)into)->id, false, err);
}

static const struct opt_command pause_table = {
        .name = "pause",
        .summary = "stop the processes of a container where they are",
        .description = "Stops all processes of the container until 'resume'. Needs a cgroup.",
        .options = no_options,
        .operands = id_operands,
};

static const struct opt_command resume_table = {
        .name = "resume",
        .summary = "let a paused container go on",
        .description = "Lets the processes of a paused container go on.",
        .options = no_options,
        .operands = id_operands,
};

static const struct oci_command start_command = { &start_table, sizeof(struct id_args), start_run };
static const struct oci_command state_command = { &state_table, sizeof(struct id_args), state_run };
static const struct oci_command delete_command = { &delete_table, sizeof(struct id_args), delete_run };
static const struct oci_command pause_command = { &pause_table, sizeof(struct id_args), pause_run };
static const struct oci_command resume_command = { &resume_table, sizeof(struct id_args), resume_run };

/* kill */

static const struct opt kill_options[] = {
        { "all", NULL, "to all its processes", OPT_FLAG, offsetof(struct id_args, all), .letter = 'a' },
        { 0 },
};

static const struct opt kill_operands[] = {
        { NULL, "ID", "the container's name", OPT_TEXT, offsetof(struct id_args, id), .required = true },
        { NULL, "SIGNAL", "a name (TERM, SIGTERM) or number", OPT_TEXT, offsetof(struct id_args, signal), .fallback = "SIGTERM" },
        { 0 },
};

static int parse_signal(const char *text, int *number, struct err *err)
{
        uint64_t value;

        if (number_parse(text, 0, NSIG - 1, &value, NULL) == 0) {
                *number = (int)value;
                return 0;
        }
        if (!strncasecmp(text, "SIG", 3))
                text += 3;
        for (int i = 1; i < NSIG; i++) {
                const char *name = sigabbrev_np(i);

                if (name && !strcasecmp(name, text)) {
                        *number = i;
                        return 0;
                }
        }
        if (!strncasecmp(text, "RTMIN+", 6) && number_parse(text + 6, 0, (uint64_t)(SIGRTMAX - SIGRTMIN), &value, NULL) == 0) {
                *number = SIGRTMIN + (int)value;
                return 0;
        }
        return err_set(err, -EINVAL, "'%s' is not a signal", text);
}

static int kill_run(const struct runtime *runtime, void *into, int *exit_code, struct err *err)
{
        struct id_args *args = into;
        int signal = 0, r = parse_signal(args->signal, &signal, err);

        return r < 0 ? r : container_kill(runtime, args->id, signal, args->all, err);
}

static void kill_prepare(void *into)
{
        ((struct id_args *)into)->signal = "SIGTERM";
}

static const struct opt_command kill_table = {
        .name = "kill",
        .summary = "send a signal to a container",
        .description = "Sends a signal to the first process of the container.",
        .options = kill_options,
        .operands = kill_operands,
};

static const struct oci_command kill_command = { &kill_table, sizeof(struct id_args), kill_run, kill_prepare };

/* exec */

struct exec_args {
        struct exec_options options;
        struct texts env, capabilities;
        uint32_t groups[LIST_MAX];
        unsigned preserved_fds;
        char *const *command;
};

#define EXEC(member) offsetof(struct exec_args, options.member)

static int add_env(void *into, const char *value, struct err *err)
{
        return strchr(value, '=') ? add_text(&((struct exec_args *)into)->env, value, err)
                                  : err_set(err, -EINVAL, "'%s' is not NAME=VALUE", value);
}

static int add_capability(void *into, const char *value, struct err *err)
{
        return add_text(&((struct exec_args *)into)->capabilities, value, err);
}

static int add_group(void *into, const char *value, struct err *err)
{
        struct exec_args *args = into;
        uint64_t number;
        int r = number_parse(value, 0, UINT32_MAX - 1, &number, err);

        if (r < 0)
                return r;
        if (args->options.group_count == LIST_MAX)
                return err_set(err, -E2BIG, "more than %d are given", LIST_MAX);
        args->groups[args->options.group_count++] = (uint32_t)number;
        return 0;
}

static const struct opt exec_table_options[] = {
        { "process", "FILE", "the process as JSON, as config.json has it", OPT_TEXT, EXEC(process_file), .complete = OPT_COMPLETE_FILE, .letter = 'p' },
        { "console-socket", "PATH", "a unix socket that is sent the terminal", OPT_TEXT, EXEC(console_socket), .complete = OPT_COMPLETE_FILE },
        { "pid-file", "FILE", "write the number of the process there", OPT_TEXT, EXEC(pid_file), .complete = OPT_COMPLETE_FILE },
        { "detach", NULL, "come back when the program runs", OPT_FLAG, EXEC(detach), .letter = 'd' },
        { "tty", NULL, "give it a terminal", OPT_FLAG, EXEC(terminal), .letter = 't' },
        { "cwd", "DIRECTORY", "where it starts", OPT_TEXT, EXEC(cwd) },
        { "env", "NAME=VALUE", "add to its environment", OPT_CALL, .call = add_env, .repeated = true, .letter = 'e' },
        { "user", "UID[:GID]", "whose it is", OPT_TEXT, EXEC(user), .letter = 'u' },
        { "additional-gids", "GID", "a further group", OPT_CALL, .call = add_group, .repeated = true, .letter = 'g' },
        { "cap", "NAME", "a further capability", OPT_CALL, .call = add_capability, .repeated = true, .letter = 'c' },
        { "no-new-privs", NULL, "it may not gain rights by executing", OPT_FLAG, EXEC(no_new_privileges) },
        { "apparmor", "PROFILE", "its AppArmor profile", OPT_TEXT, EXEC(apparmor) },
        { "process-label", "LABEL", "its SELinux label", OPT_TEXT, EXEC(label) },
        { "ignore-paused", NULL, "also in a paused container, where it waits", OPT_FLAG, EXEC(ignore_paused) },
        { "preserve-fds", "COUNT", "hand on so many descriptors after the standard three", OPT_NUMBER, offsetof(struct exec_args, preserved_fds),
          .fallback = "0", .max = 65536 },
        { 0 },
};

static const struct opt exec_operands[] = {
        { NULL, "ID", "the container's name", OPT_TEXT, EXEC(id), .required = true },
        { NULL, "COMMAND", "the program and its arguments; without --process", OPT_REST, offsetof(struct exec_args, command) },
        { 0 },
};

static int exec_run(const struct runtime *runtime, void *into, int *exit_code, struct err *err)
{
        struct exec_args *args = into;
        int r;

        args->options.args = (const char *const *)args->command;
        args->options.env = args->env.list;
        args->options.capabilities = args->capabilities.list;
        args->options.groups = args->groups;
        args->options.preserved_fds = (int)args->preserved_fds;
        if (!args->options.process_file && !args->command)
                return err_set(err, -EINVAL, "no program is given to run in container '%s'", args->options.id);
        r = container_exec(runtime, &args->options, exit_code, err);
        if (r < 0)
                *exit_code = program_exit_code(r, err);
        return r;
}

static const struct opt_command exec_table = {
        .name = "exec",
        .summary = "run another program in a container",
        .description = "Runs a program in the namespaces, groups and root of a container that runs. Ends as the program did.",
        .options = exec_table_options,
        .operands = exec_operands,
};

static const struct oci_command exec_command = { &exec_table, sizeof(struct exec_args), exec_run, NULL, true };

/* list, ps */

enum { FORMAT_TABLE, FORMAT_JSON };

static const char *const table_formats[] = { "table", "json", NULL };

struct list_args {
        const char *id;
        int format;
        bool quiet;
        char *const *rest;
};

static const struct opt list_options[] = {
        { "format", "FORMAT", "how it is printed", OPT_CHOICE, offsetof(struct list_args, format), .fallback = "table",
          .choices = table_formats, .letter = 'f' },
        { "quiet", NULL, "only the names", OPT_FLAG, offsetof(struct list_args, quiet), .letter = 'q' },
        { 0 },
};

static const char *member(const json_t *json, const char *name)
{
        const char *text = json_string_value(json_object_get(json, name));

        return text ? text : "";
}

static int list_run(const struct runtime *runtime, void *into, int *exit_code, struct err *err)
{
        const struct list_args *args = into;
        json_t *list, *one;
        size_t i;
        int width = 2, r = container_list(runtime, &list, err);

        if (r < 0)
                return r;
        if (args->format == FORMAT_JSON && !args->quiet)
                return print_json(list, JSON_COMPACT);
        json_array_foreach(list, i, one)
                width = MAX(width, (int)strlen(member(one, "id")));
        if (!args->quiet)
                printf("%-*s  %-7s  %-8s  %-30s  %s\n", width, "ID", "PID", "STATUS", "CREATED", "BUNDLE");
        json_array_foreach(list, i, one) {
                if (args->quiet)
                        puts(member(one, "id"));
                else
                        printf("%-*s  %-7lld  %-8s  %-30s  %s\n", width, member(one, "id"), (long long)json_integer_value(json_object_get(one, "pid")),
                               member(one, "status"), member(one, "created"), member(one, "bundle"));
        }
        json_decref(list);
        return 0;
}

static const struct opt_command list_table = {
        .name = "list",
        .summary = "list the containers",
        .description = "Lists the containers below --root.",
        .options = list_options,
};

static const struct opt ps_options[] = {
        { "format", "FORMAT", "how it is printed: json is the numbers alone", OPT_CHOICE, offsetof(struct list_args, format), .fallback = "table",
          .choices = table_formats, .letter = 'f' },
        { 0 },
};

static const struct opt ps_operands[] = {
        { NULL, "ID", "the container's name", OPT_TEXT, offsetof(struct list_args, id), .required = true },
        { NULL, "OPTIONS", "of ps(1)", OPT_REST, offsetof(struct list_args, rest), .fallback = "-ef" },
        { 0 },
};

/* The lines of ps(1) whose PID is one of the container's. */
static int filter_ps(FILE *ps, const pid_t *pids, size_t count, struct err *err)
{
        char line[4096];
        int column = -1;

        if (!fgets(line, sizeof(line), ps))
                return err_set(err, -EIO, "ps printed nothing");
        fputs(line, stdout);
        int index = 0;
        for (char *rest = line, *word; (word = strtok_r(rest, " \n", &rest)); index++)
                if (!strcmp(word, "PID"))
                        column = index;
        if (column < 0)
                return err_set(err, -EINVAL, "what ps prints has no column PID");
        while (fgets(line, sizeof(line), ps)) {
                char copy[4096], *rest = copy, *word;

                strcpy(copy, line);
                for (index = 0; (word = strtok_r(rest, " \n", &rest)) && index < column; index++)
                        ;
                for (size_t i = 0; word && i < count; i++)
                        if (strtol(word, NULL, 10) == pids[i])
                                fputs(line, stdout);
        }
        return 0;
}

static int show_ps(char *const *options, const pid_t *pids, size_t count, struct err *err)
{
        const char *words[LIST_MAX + 2] = { "ps", "-ef" };
        int pipe_fds[2], status, r;
        FILE *ps;
        pid_t pid;

        for (size_t i = 0; options && options[i] && i < LIST_MAX; i++) {
                words[i + 1] = options[i];
                words[i + 2] = NULL;
        }
        if (pipe2(pipe_fds, 0) < 0)
                return err_errno(err, -errno, "cannot run 'ps'");
        pid = fork();
        if (pid == 0) {
                dup2(pipe_fds[1], STDOUT_FILENO);
                close(pipe_fds[0]);
                close(pipe_fds[1]);
                execvp("ps", (char *const *)words);
                _exit(127);
        }
        close(pipe_fds[1]);
        ps = pid < 0 ? NULL : fdopen(pipe_fds[0], "r");
        r = ps ? filter_ps(ps, pids, count, err) : err_errno(err, -errno, "cannot run 'ps'");
        if (ps)
                fclose(ps);
        else
                close(pipe_fds[0]);
        if (pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 127)
                return err_set(err, -ENOENT, "'ps' is not installed (Debian: procps)");
        return r;
}

static int ps_run(const struct runtime *runtime, void *into, int *exit_code, struct err *err)
{
        const struct list_args *args = into;
        _cleanup_free_ pid_t *pids = NULL;
        size_t count;
        int r = container_processes(runtime, args->id, &pids, &count, err);

        if (r < 0)
                return r;
        if (args->format == FORMAT_JSON) {
                json_t *array = json_array();

                for (size_t i = 0; array && i < count; i++)
                        json_array_append_new(array, json_integer(pids[i]));
                return array ? print_json(array, JSON_COMPACT) : err_nomem(err);
        }
        return show_ps(args->rest, pids, count, err);
}

static const struct opt_command ps_table = {
        .name = "ps",
        .summary = "list the processes of a container",
        .description = "Shows what ps(1) says of the processes in the container's cgroup.",
        .options = ps_options,
        .operands = ps_operands,
};

static const struct oci_command list_command = { &list_table, sizeof(struct list_args), list_run };
static const struct oci_command ps_command = { &ps_table, sizeof(struct list_args), ps_run };

/* events */

struct events_args {
        const char *id, *interval;
        bool stats;
};

static const struct opt events_options[] = {
        { "stats", NULL, "print once and end", OPT_FLAG, offsetof(struct events_args, stats) },
        { "interval", "TIME", "how often: 500ms, 5s, 1m", OPT_TEXT, offsetof(struct events_args, interval), .fallback = "5s" },
        { 0 },
};

static const struct opt events_operands[] = {
        { NULL, "ID", "the container's name", OPT_TEXT, offsetof(struct events_args, id), .required = true },
        { 0 },
};

static int parse_interval(const char *text, unsigned *ms, struct err *err)
{
        static const struct {
                const char *unit;
                unsigned ms;
        } units[] = { { "ms", 1 }, { "s", 1000 }, { "m", 60000 }, { "h", 3600000 } };
        char *end;
        double value = strtod(text, &end);

        for (size_t i = 0; i < ARRAY_SIZE(units); i++)
                if (end != text && !strcmp(end, units[i].unit) && value > 0 && value * units[i].ms < INT32_MAX) {
                        *ms = (unsigned)(value * units[i].ms);
                        return 0;
                }
        return err_set(err, -EINVAL, "'%s' is not a time like 500ms, 5s or 1m", text);
}

static int events_run(const struct runtime *runtime, void *into, int *exit_code, struct err *err)
{
        const struct events_args *args = into;
        unsigned ms = 0;
        int r = parse_interval(args->interval ? args->interval : "5s", &ms, err);

        for (bool first = true; !r; first = false) {
                json_t *stats, *event;

                r = container_stats(runtime, args->id, &stats, err);
                /* That it ends meanwhile is the end of the events. */
                if (r < 0 && !first && (r == -EBUSY || r == -ENOENT))
                        return 0;
                if (r < 0)
                        break;
                event = json_pack("{s:s, s:s, s:o}", "type", "stats", "id", args->id, "data", stats);
                r = event ? print_json(event, JSON_COMPACT | JSON_PRESERVE_ORDER) : err_nomem(err);
                fflush(stdout);
                if (args->stats)
                        break;
                usleep(ms * 1000);
        }
        return r;
}

static const struct opt_command events_table = {
        .name = "events",
        .summary = "print what a container uses",
        .description = "Prints what the container uses as JSON, a line each time.",
        .options = events_options,
        .operands = events_operands,
};

static const struct oci_command events_command = { &events_table, sizeof(struct events_args), events_run };

/* update */

struct update_args {
        const char *id, *file;
        struct config config; /* what is to change */
};

#define UPDATE(member) offsetof(struct update_args, config.resources.member)

static int maybe_number(struct maybe *to, const char *value, struct err *err)
{
        uint64_t number;
        int r = 0;

        if (!strcmp(value, "-1") || !strcmp(value, "max"))
                *to = (struct maybe){ true, -1 };
        else if ((r = number_parse(value, 0, INT64_MAX, &number, err)) == 0)
                *to = (struct maybe){ true, (int64_t)number };
        return r;
}

/* Bytes: plain, or with a unit. */
static int maybe_bytes(struct maybe *to, const char *value, struct err *err)
{
        uint64_t bytes;
        int r;

        if (strspn(value, "0123456789") == strlen(value) || *value == '-')
                return maybe_number(to, value, err);
        r = size_parse(value, &bytes, err);
        if (!r)
                *to = (struct maybe){ true, (int64_t)bytes };
        return r;
}

#define SETTER(name, how, field)                                                    \
        static int name(void *into, const char *value, struct err *err)             \
        {                                                                           \
                return how(&((struct update_args *)into)->config.resources.field, value, err); \
        }

SETTER(set_memory, maybe_bytes, memory.limit)
SETTER(set_reservation, maybe_bytes, memory.reservation)
SETTER(set_swap, maybe_bytes, memory.swap)
SETTER(set_shares, maybe_number, cpu.shares)
SETTER(set_quota, maybe_number, cpu.quota_us)
SETTER(set_period, maybe_number, cpu.period_us)
SETTER(set_burst, maybe_number, cpu.burst_us)
SETTER(set_rt_period, maybe_number, cpu.realtime_period_us)
SETTER(set_rt_runtime, maybe_number, cpu.realtime_runtime_us)
SETTER(set_idle, maybe_number, cpu.idle)
SETTER(set_pids, maybe_number, pids_limit)
SETTER(set_block_weight, maybe_number, block.weight)

static const struct opt update_options[] = {
        { "resources", "FILE", "linux.resources as JSON; '-': standard input", OPT_TEXT, offsetof(struct update_args, file),
          .complete = OPT_COMPLETE_FILE, .letter = 'r' },
        { "memory", "SIZE", "memory at most; -1: no limit", OPT_CALL, .call = set_memory },
        { "memory-reservation", "SIZE", "memory that is kept for it", OPT_CALL, .call = set_reservation },
        { "memory-swap", "SIZE", "memory and swap together at most; -1: no limit", OPT_CALL, .call = set_swap },
        { "cpu-share", "SHARES", "its part of the processors among others: 2 to 262144", OPT_CALL, .call = set_shares },
        { "cpu-quota", "MICROSECONDS", "of processor time in each period; -1: no limit", OPT_CALL, .call = set_quota },
        { "cpu-period", "MICROSECONDS", "the period", OPT_CALL, .call = set_period },
        { "cpu-burst", "MICROSECONDS", "what may be saved up from periods before", OPT_CALL, .call = set_burst },
        { "cpu-rt-period", "MICROSECONDS", "the period of realtime processes", OPT_CALL, .call = set_rt_period },
        { "cpu-rt-runtime", "MICROSECONDS", "of realtime in each of their periods", OPT_CALL, .call = set_rt_runtime },
        { "cpu-idle", "0|1", "run only when nothing else does", OPT_CALL, .call = set_idle },
        { "cpuset-cpus", "LIST", "processors: 0-3,7", OPT_TEXT, UPDATE(cpu.cpus) },
        { "cpuset-mems", "LIST", "memory nodes", OPT_TEXT, UPDATE(cpu.mems) },
        { "pids-limit", "COUNT", "processes at most; -1: no limit", OPT_CALL, .call = set_pids },
        { "blkio-weight", "WEIGHT", "its part of the disks among others: 10 to 1000", OPT_CALL, .call = set_block_weight },
        { 0 },
};

static const struct opt update_operands[] = {
        { NULL, "ID", "the container's name", OPT_TEXT, offsetof(struct update_args, id), .required = true },
        { 0 },
};

static int update_run(const struct runtime *runtime, void *into, int *exit_code, struct err *err)
{
        struct update_args *args = into;
        int r = args->file ? config_read_resources(&args->config, args->file, err) : 0;

        if (!r)
                r = container_update(runtime, args->id, &args->config.resources, err);
        config_done(&args->config);
        return r;
}

static const struct opt_command update_table = {
        .name = "update",
        .summary = "change the limits of a container",
        .description = "Changes the limits that are given; the others stay.",
        .options = update_options,
        .operands = update_operands,
};

static const struct oci_command update_command = { &update_table, sizeof(struct update_args), update_run };

/* features, spec */

static int features_run(const struct runtime *runtime, void *into, int *exit_code, struct err *err)
{
        json_t *json = container_features();

        return json ? print_json(json, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : err_nomem(err);
}

static const struct opt_command features_table = {
        .name = "features",
        .summary = "print what this runtime can do",
        .description = "Prints what of the specification is supported here, as JSON (features.md of the specification).",
        .options = no_options,
};

static const struct oci_command features_command = { &features_table, 0, features_run };

struct spec_args {
        const char *bundle;
        bool rootless;
};

static const struct opt spec_options[] = {
        { "bundle", "DIRECTORY", "where config.json is written", OPT_TEXT, offsetof(struct spec_args, bundle), .fallback = ".",
          .complete = OPT_COMPLETE_DIRECTORY,
          .letter = 'b' },
        { "rootless", NULL, "for a plain user", OPT_FLAG, offsetof(struct spec_args, rootless) },
        { 0 },
};

static int spec_run(const struct runtime *runtime, void *into, int *exit_code, struct err *err)
{
        const struct spec_args *args = into;
        _cleanup_json_ json_t *json = container_spec(args->rootless);
        char path[4096];
        FILE *file;

        if (!json)
                return err_nomem(err);
        snprintf(path, sizeof(path), "%s/config.json", args->bundle ? args->bundle : ".");
        file = fopen(path, "wxe");
        if (!file)
                return errno == EEXIST ? err_set(err, -EEXIST, "'%s' is there already: take it away first", path)
                                       : err_errno(err, -errno, "cannot write '%s'", path);
        if (json_dumpf(json, file, JSON_INDENT(2) | JSON_PRESERVE_ORDER) < 0 || fputc('\n', file) == EOF || fclose(file) != 0)
                return err_errno(err, -errno, "cannot write '%s'", path);
        return 0;
}

static const struct opt_command spec_table = {
        .name = "spec",
        .summary = "write a config.json to start from",
        .description = "Writes a configuration for a container that runs a shell in the directory rootfs beside it.",
        .options = spec_options,
};

static const struct oci_command spec_command = { &spec_table, sizeof(struct spec_args), spec_run };

const struct oci_command *const oci_commands[] = {
        &create_command, &start_command,  &state_command,  &kill_command,   &delete_command,   &run_command,  &exec_command, &ps_command,
        &list_command,   &pause_command, &resume_command, &update_command, &events_command, &features_command, &spec_command, NULL,
};

const struct opt_command *const oci_tables[] = {
        &create_table, &start_table,  &state_table,  &kill_table,   &delete_table,   &run_table,  &exec_table, &ps_table,
        &list_table,   &pause_table, &resume_table, &update_table, &events_table, &features_table, &spec_table, NULL,
};
