/* `virta help`, `virta version`, `virta completion`: what the tables of options say in other forms. */
#include <errno.h>

#include "base/log.h"
#include "cli/cli.h"

struct help_args {
        const char *command, *second;
        bool man;
};

static const struct opt help_options[] = {
        { "man", NULL, "the manual page, as roff", OPT_FLAG, offsetof(struct help_args, man) },
        { 0 },
};

static const struct opt help_operands[] = {
        { NULL, "COMMAND", "the command to explain; without it, the program", OPT_TEXT, offsetof(struct help_args, command) },
        { NULL, "SECOND", "its second word, where it has one", OPT_TEXT, offsetof(struct help_args, second) },
        { 0 },
};

const struct opt_command help_table = {
        .name = "help",
        .summary = "explain the program or a command",
        .description = "Shows what 'virta COMMAND --help' shows, or a manual page made from the same table.",
        .options = help_options,
        .operands = help_operands,
};

static int help_run(void *into)
{
        const struct help_args *args = into;
        const struct opt_command *table = NULL;
        char *const words[] = { (char *)args->command, (char *)args->second };
        int count = !!args->command + !!args->second, used = 0;

        if (count)
                table = opt_find(&cli_program, count, words, &used);
        if (count && (!table || used < count)) {
                log_error("unknown command '%s%s%s' (try 'virta help')", args->command, args->second ? " " : "", args->second ? args->second : "");
                return CLI_USAGE;
        }
        if (args->man)
                opt_man(&cli_program, table, stdout);
        else
                opt_help(&cli_program, table, stdout);
        return cli_flush();
}

const struct cli_command cli_help = { .table = &help_table, .args_size = sizeof(struct help_args), .run = help_run };

static const struct opt no_options[] = { { 0 } };

const struct opt_command version_table = {
        .name = "version",
        .summary = "print the version",
        .description = "Prints the program's name and version.",
        .options = no_options,
};

static int version_run(void *into)
{
        printf("virta %s\n", VIRTA_VERSION);
        return cli_flush();
}

const struct cli_command cli_version = { .table = &version_table, .run = version_run };

struct completion_args {
        int shell;
};

static const struct opt completion_operands[] = {
        { NULL, "SHELL", "for which shell", OPT_CHOICE, offsetof(struct completion_args, shell), .choices = opt_shells, .required = true },
        { 0 },
};

static const struct opt_note completion_notes[] = {
        { "bash", "virta completion bash > ~/.local/share/bash-completion/completions/virta" },
        { "zsh", "virta completion zsh > a file '_virta' in a directory of $fpath" },
        { "fish", "virta completion fish > ~/.config/fish/completions/virta.fish" },
        { 0 },
};

static const struct opt_section completion_sections[] = { { "To use it", NULL, completion_notes }, { 0 } };

const struct opt_command completion_table = {
        .name = "completion",
        .summary = "print a completion script for a shell",
        .description = "Prints a script that completes commands, options and their values. 'make install' puts it in place for all users.",
        .options = no_options,
        .operands = completion_operands,
        .sections = completion_sections,
};

static int completion_run(void *into)
{
        const struct completion_args *args = into;

        if (opt_completion(&cli_program, opt_shells[args->shell], stdout) < 0)
                return CLI_USAGE;
        return cli_flush();
}

const struct cli_command cli_completion = {
        .table = &completion_table, .args_size = sizeof(struct completion_args), .run = completion_run,
};
