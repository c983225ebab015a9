/* Finds the command that argv[1] names, parses its options, runs it. */
#include <errno.h>
#include <limits.h>
#include <signal.h>

#include "base/log.h"
#include "cli/cli.h"
#include "net/peer-wire.h"
#include "net/peer.h"

static const struct cli_command *const commands[] = {
        &cli_boot, &cli_disk_create, &cli_disk_info, &cli_disk_check, &cli_disk_map, &cli_disk_convert, &cli_disk_compare,
        &cli_disk_resize, &cli_disk_snapshot, &cli_disk_bitmap, &cli_disk_commit, &cli_disk_rebase, &cli_disk_amend, &cli_disk_measure,
        &cli_disk_stream, &cli_disk_mirror, &cli_disk_backup,
        &cli_disk_serve,
        &cli_doctor, &cli_oci, &cli_help, &cli_version, &cli_completion,
};

/* ctx: the group whose commands it may be; NULL: any. */
static const char *command_name(const void *ctx, size_t i)
{
        const struct opt_command *command = cli_program.commands[i];

        if (!command)
                return NULL;
        return !ctx ? command->name : opt_in_group(command, ctx) ? strchr(command->name, ' ') + 1 : "";
}

static int unknown_command(const char *name, const struct opt_command *group)
{
        const char *nearest = opt_nearest(name, command_name, group), *blank = group ? " " : "", *first = group ? group->name : "";

        if (nearest)
                log_error("unknown command '%s%s%s' (did you mean '%s%s%s'?)", first, blank, name, first, group && *nearest ? blank : "", nearest);
        else
                log_error("unknown command '%s%s%s' (try 'virta help%s%s')", first, blank, name, blank, first);
        return CLI_USAGE;
}

/* Its name alone, or with --help. */
static int run_group(const struct opt_command *group, int argc, char **argv)
{
        if (argc && strcmp(argv[0], "--help") && strcmp(argv[0], "-h"))
                return unknown_command(argv[0], group);
        opt_help(&cli_program, group, argc ? stdout : stderr);
        return argc ? cli_flush() : CLI_USAGE;
}

static const struct cli_command *command_of(const struct opt_command *table)
{
        size_t i = 0;

        while (commands[i]->table != table)
                i++;
        return commands[i];
}

/*
 * The commands of images are another executable's, in this one's folder: what they link (libcurl, libarchive) would be paid for by each start
 * of all the others.
 */
static int run_beside(const char *program, char **argv)
{
        char path[PATH_MAX];
        ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);
        char *slash = length < 0 ? NULL : memrchr(path, '/', (size_t)length);

        if (slash && (size_t)(slash + 1 - path) + strlen(program) < sizeof(path)) {
                strcpy(slash + 1, program);
                execv(path, argv);
        }
        log_error("cannot run '%s', which does this: %s", slash ? path : program, strerror(errno));
        return CLI_FAILED;
}

/* The network process of a machine: this program again, with fewer rights. What goes wrong is told over its socket. */
static int serve_net(void)
{
        struct err err = ERR_INIT;

        return net_serve(NET_SERVE_FD, true, &err) < 0 ? CLI_FAILED : CLI_OK;
}

int main(int argc, char **argv)
{
        const struct opt_command *table;
        const char *name;
        int words;

        cli_open_standard_descriptors();
        signal(SIGPIPE, SIG_IGN); /* a reader that left is an error to be told, not the end of a guest */
        log_init("virta", LOG_INFO);
        if (argc < 2) {
                opt_help(&cli_program, NULL, stderr);
                return CLI_USAGE;
        }
        name = argv[1];
        if (!strcmp(name, NET_SERVE_COMMAND) && argc == 2)
                return serve_net();
        if (!strcmp(name, "--help") || !strcmp(name, "-h"))
                argv[1] = (char *)"help";
        else if (!strcmp(name, "--version"))
                argv[1] = (char *)"version";
        table = opt_find(&cli_program, argc - 1, argv + 1, &words);
        if (!table)
                return unknown_command(name, NULL);
        if (table->group)
                return run_group(table, argc - 2, argv + 2);
        if (opt_in_group(table, &image_table))
                return run_beside("virta-image", argv);
        return cli_run(&cli_program, command_of(table), argc - 1 - words, argv + 1 + words);
}
