/* `virta oci`: the container runtime, which virta-oci is by itself. */
#include "cli/cli.h"
#include "cli/oci.h"

struct oci_words {
        char *const *words;
};

static const struct opt no_options[] = { { 0 } };

static const struct opt operands[] = {
        { NULL, "COMMAND", "a command of virta-oci(1) with its options", OPT_REST, offsetof(struct oci_words, words) },
        { 0 },
};

const struct opt_command oci_table = {
        .name = "oci",
        .summary = "run containers as the OCI runtime specification has them",
        .description = "What virta-oci is by itself: create, start, state, kill, delete, run, exec, ps, list, pause, resume, update, events, features and "
                       "spec, with runc's options. 'virta-oci --help' lists them. Callers that start the runtime often should use "
                       "virta-oci, which starts faster.",
        .options = no_options,
        .operands = operands,
};

static int run(void *into)
{
        const struct oci_words *args = into;
        char *argv[258] = { (char *)"virta-oci" };
        int argc = 1;

        for (char *const *word = args->words; word && *word && argc < 257; word++)
                argv[argc++] = *word;
        return oci_main(argc, argv);
}

const struct cli_command cli_oci = { .table = &oci_table, .args_size = sizeof(struct oci_words), .run = run };
