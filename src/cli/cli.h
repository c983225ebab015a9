/*
 * The commands of `virta`: one entry each in cli_commands[], with its table of options (base/opt.h) beside the function that
 * runs it. To add a command: a file cmd-NAME.c, its declaration here, its line in main.c.
 */
#pragma once

#include "base/opt.h"

/* Exit codes that all commands share; `boot` has more (vmm.h). */
enum cli_exit { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

struct cli_command {
        const struct opt_command *table;
        size_t args_size; /* of the struct that the options go into; zeroed before */
        /* args are parsed; returns the exit code. Errors are told to log_error() by the command itself. */
        int (*run)(void *args);
        /* Defaults into args, before parsing; may be NULL. */
        void (*prepare)(void *args);
        /* Frees what the options' call() functions allocated; may be NULL. Also after a failed parse. */
        void (*finish)(void *args);
};

extern const struct opt_command boot_table, doctor_table, help_table, oci_table, version_table, completion_table;
extern const struct opt_command disk_table, disk_create_table, disk_info_table, disk_check_table, disk_map_table, disk_convert_table,
        disk_compare_table, disk_resize_table, disk_snapshot_table, disk_bitmap_table,
        disk_commit_table, disk_rebase_table, disk_amend_table, disk_measure_table,
        disk_stream_table, disk_mirror_table, disk_backup_table,
        disk_serve_table;
extern const struct opt_command image_table, image_pull_table, image_push_table, image_list_table, image_show_table, image_import_table,
        image_export_table, image_delete_table, image_prune_table;

extern const struct cli_command cli_boot;
extern const struct cli_command cli_disk_create, cli_disk_info, cli_disk_check, cli_disk_map, cli_disk_convert, cli_disk_compare,
        cli_disk_resize, cli_disk_snapshot, cli_disk_bitmap,
        cli_disk_commit, cli_disk_rebase, cli_disk_amend, cli_disk_measure,
        cli_disk_stream, cli_disk_mirror, cli_disk_backup,
        cli_disk_serve;
extern const struct cli_command cli_doctor;
extern const struct cli_command cli_oci;
extern const struct cli_command cli_help;
extern const struct cli_command cli_version;
extern const struct cli_command cli_completion;

/* The program with all commands. */
extern const struct opt_program cli_program;

/*
 * A program may be started with its standard descriptors closed; the next file opened would then be taken for the console, or
 * messages written into a disk. They are opened on nothing instead, each in the direction that fails.
 */
void cli_open_standard_descriptors(void);
/* Parses what is behind the command's name, and runs it; the exit code. */
int cli_run(const struct opt_program *program, const struct cli_command *command, int argc, char **argv);
/* Flushes standard output; an error there (a full disk, a closed pipe) is told and becomes CLI_FAILED. */
int cli_flush(void);
