/*
 * The runtime's program: options in front of the command, the log that its callers read, and the command.
 *
 * Callers (podman's conmon, containerd's shim) read what went wrong from standard error or from --log, whose JSON form has the
 * members level, msg and time.
 */
#include "cli/oci.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <time.h>

#include "base/log.h"
#include "container/procfs.h"
#include "container/sealed-exe.h"

enum { LOG_FORMAT_TEXT, LOG_FORMAT_JSON };

struct oci_args {
        const char *root, *log;
        int log_format;
        bool systemd_cgroup, debug, version;
        const char *rootless, *criu;
};

static const char *const log_formats[] = { "text", "json", NULL };

static const struct opt leading[] = {
        { "root", "DIRECTORY", "where containers are recorded", OPT_TEXT, offsetof(struct oci_args, root),
          .fallback = "/run/virta/oci, or $XDG_RUNTIME_DIR/virta/oci for a plain user", .complete = OPT_COMPLETE_DIRECTORY },
        { "log", "FILE", "write errors and warnings there, too", OPT_TEXT, offsetof(struct oci_args, log), .complete = OPT_COMPLETE_FILE },
        { "log-format", "FORMAT", "how the log is written", OPT_CHOICE, offsetof(struct oci_args, log_format), .fallback = "text", .choices = log_formats },
        { "systemd-cgroup", NULL, "let systemd make the cgroups: cgroupsPath is SLICE:PREFIX:NAME", OPT_FLAG, offsetof(struct oci_args, systemd_cgroup) },
        { "rootless", "WHETHER", "whether cgroups that may not be made are left out: true, false or auto", OPT_TEXT, offsetof(struct oci_args, rootless),
          .fallback = "auto" },
        { "debug", NULL, "say more", OPT_FLAG, offsetof(struct oci_args, debug) },
        { "criu", "FILE", "the program that checkpoints (it is looked for in $PATH anyway)", OPT_TEXT, offsetof(struct oci_args, criu) },
        { "version", NULL, "print the version and end", OPT_FLAG, offsetof(struct oci_args, version), .letter = 'v' },
        { 0 },
};

static const struct opt_note exits[] = {
        { "0", "it worked; run and exec: the program ended with 0" },
        { "1", "it could not be done; one line on standard error says why" },
        { "2", "the command line was wrong" },
        { "126, 127", "run and exec: the program cannot be run; is not there" },
        { "others", "run and exec: how the program ended, 128 and the signal's number when one ended it" },
        { 0 },
};

static const struct opt_section sections[] = { { "Exit status", NULL, exits }, { 0 } };

const struct opt_program oci_program = {
        .name = "virta-oci",
        .summary = "run containers as the OCI runtime specification has them",
        .version = VIRTA_VERSION,
        .description = "Runs containers from bundles (a directory with config.json and a root file system), in the place of runc or crun: "
                       "podman --runtime virta-oci.",
        .options = leading,
        .commands = oci_tables,
        .sections = sections,
};

/* Where the log goes besides standard error. */
struct log_file {
        int fd; /* -1: nowhere */
        int format;
};

static void write_log(const struct log_file *log, const char *level, const char *text)
{
        struct timespec now;
        struct tm tm;
        char when[64];
        json_t *json;

        if (log->fd < 0)
                return;
        clock_gettime(CLOCK_REALTIME, &now);
        gmtime_r(&now.tv_sec, &tm);
        strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &tm);
        json = log->format == LOG_FORMAT_JSON ? json_pack("{s:s, s:s, s:s}", "level", level, "msg", text, "time", when) : NULL;
        if (json) {
                char *line = json_dumps(json, JSON_COMPACT | JSON_PRESERVE_ORDER);

                if (line)
                        dprintf(log->fd, "%s\n", line);
                free(line);
                json_decref(json);
        } else {
                dprintf(log->fd, "time=\"%s\" level=%s msg=\"%s\"\n", when, level, text);
        }
}

static void tell_error(const struct log_file *log, const struct err *err)
{
        log_error("%s", err->text);
        write_log(log, "error", err->text);
}

static void tell_warning(void *ctx, const struct err *err)
{
        log_warning("%s", err->text);
        write_log(ctx, "warning", err->text);
}

static int default_root(char *root, size_t size_bytes, struct err *err)
{
        const char *runtime_dir = getenv("XDG_RUNTIME_DIR");

        if (geteuid() == 0)
                snprintf(root, size_bytes, "/run/virta/oci");
        else if (runtime_dir && *runtime_dir == '/')
                snprintf(root, size_bytes, "%s/virta/oci", runtime_dir);
        else
                return err_set(err, -ENOENT, "XDG_RUNTIME_DIR is not set: give --root DIRECTORY");
        return 0;
}

/* A plain user, or the root of a user namespace that does not map all. */
static bool is_rootless(int proc_fd)
{
        char map[128];
        unsigned inside, outside, count;

        if (geteuid() != 0)
                return true;
        return procfs_read(proc_fd, "self/uid_map", map, sizeof(map)) > 0 && sscanf(map, "%u %u %u", &inside, &outside, &count) == 3 &&
               !(inside == 0 && outside == 0 && count == UINT32_MAX);
}

static int open_log(const struct oci_args *args, struct log_file *log, struct err *err)
{
        if (!args->log)
                return 0;
        log->fd = open(args->log, O_CREAT | O_APPEND | O_WRONLY | O_CLOEXEC, 0644);
        log->format = args->log_format;
        return log->fd < 0 ? err_errno(err, -errno, "cannot open the log '%s'", args->log) : 0;
}

static int set_up(struct runtime *runtime, const struct oci_args *args, char *root, size_t root_bytes, struct err *err)
{
        int r = procfs_open(&runtime->proc_fd, err);

        if (!r && !args->root)
                r = default_root(root, root_bytes, err);
        if (r < 0)
                return r;
        runtime->root = args->root ? args->root : root;
        runtime->systemd_cgroup = args->systemd_cgroup;
        if (!args->rootless || !strcmp(args->rootless, "auto"))
                runtime->rootless = is_rootless(runtime->proc_fd);
        else if (!strcmp(args->rootless, "true") || !strcmp(args->rootless, "false"))
                runtime->rootless = args->rootless[0] == 't';
        else
                return err_set(err, -EINVAL, "option '--rootless': '%s' is none of true, false, auto", args->rootless);
        return 0;
}

static const struct oci_command *find_command(const char *name)
{
        for (size_t i = 0; oci_commands[i]; i++)
                if (!strcmp(oci_commands[i]->table->name, name))
                        return oci_commands[i];
        return NULL;
}

static const char *command_name(const void *ctx, size_t i)
{
        return oci_commands[i] ? oci_commands[i]->table->name : NULL;
}

static int finish(int status)
{
        if (fflush(stdout) == 0 && !ferror(stdout))
                return status;
        log_error("cannot write to standard output: %s", strerror(errno));
        return 1;
}

static int show_help(const struct opt_command *command)
{
        opt_help(&oci_program, command, stdout);
        return finish(0);
}

static int run_command(const struct oci_command *command, const struct oci_args *leading_args, int argc, char **argv)
{
        _cleanup_free_ void *args = calloc(1, MAX(command->args_size, (size_t)1));
        struct log_file log = { .fd = -1 };
        struct runtime runtime = { .proc_fd = -1, .warn = tell_warning, .ctx = &log };
        struct err err = ERR_INIT;
        char root[4096];
        int r, exit_code = 0;

        if (!args)
                return 1;
        if (command->prepare)
                command->prepare(args);
        r = opt_parse(command->table, argc, argv, args, &err);
        if (r == OPT_HELP)
                return show_help(command->table);
        if (r < 0) {
                tell_error(&log, &err);
                return 2;
        }
        r = open_log(leading_args, &log, &err);
        if (!r)
                r = set_up(&runtime, leading_args, root, sizeof(root), &err);
        if (!r && command->enters)
                r = sealed_exe_ensure(&err);
        if (!r)
                r = command->run(&runtime, args, &exit_code, &err);
        if (r < 0) {
                tell_error(&log, &err);
                return exit_code ? exit_code : 1;
        }
        return finish(exit_code);
}

int oci_main(int argc, char **argv)
{
        struct oci_args args = { 0 };
        const struct oci_command *command;
        struct err err = ERR_INIT;
        int used = 0, r;

        log_init("virta-oci", LOG_INFO);
        r = opt_parse_leading(&oci_program, argc - 1, argv + 1, &args, &used, &err);
        if (r == OPT_HELP)
                return show_help(NULL);
        if (r < 0) {
                log_error("%s", err.text);
                return 2;
        }
        if (args.version) {
                printf("virta-oci version %s\nspec: 1.2.0\n", VIRTA_VERSION);
                return finish(0);
        }
        if (used + 1 >= argc) {
                opt_help(&oci_program, NULL, stderr);
                return 2;
        }
        argv += used + 1;
        argc -= used + 1;
        if (!strcmp(argv[0], "help"))
                return show_help(argc > 1 && find_command(argv[1]) ? find_command(argv[1])->table : NULL);
        command = find_command(argv[0]);
        if (!command) {
                const char *nearest = opt_nearest(argv[0], command_name, NULL);

                log_error(nearest ? "unknown command '%s' (did you mean '%s'?)" : "unknown command '%s' (try 'virta-oci --help')", argv[0], nearest);
                return 2;
        }
        return run_command(command, &args, argc - 1, argv + 1);
}
