/* What main() of each program with commands does: descriptors that are there, one command parsed and run, output that arrived. */
#include <errno.h>
#include <fcntl.h>

#include "base/log.h"
#include "cli/cli.h"

void cli_open_standard_descriptors(void)
{
        for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
                if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == STDIN_FILENO ? O_RDONLY : O_WRONLY) != fd)
                        _exit(CLI_FAILED);
        }
}

int cli_flush(void)
{
        if (fflush(stdout) == 0 && !ferror(stdout))
                return CLI_OK;
        log_error("cannot write to standard output: %s", strerror(errno));
        return CLI_FAILED;
}

int cli_run(const struct opt_program *program, const struct cli_command *command, int argc, char **argv)
{
        void *args = calloc(1, MAX(command->args_size, (size_t)1));
        struct err err = ERR_INIT;
        int status, r;

        if (!args) {
                log_error("out of memory");
                return CLI_FAILED;
        }
        if (command->prepare)
                command->prepare(args);
        r = opt_parse(command->table, argc, argv, args, &err);
        if (r == OPT_HELP) {
                opt_help(program, command->table, stdout);
                status = cli_flush();
        } else if (r < 0) {
                log_error("%s", err.text);
                status = r == -ENOMEM ? CLI_FAILED : CLI_USAGE;
        } else {
                status = command->run(args);
        }
        if (command->finish)
                command->finish(args);
        free(args);
        return status;
}
