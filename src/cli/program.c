/* The program as a whole: what its help, manual page and completions start from. */
#include "cli/cli.h"

static const struct opt_note exits[] = {
        { "0", "it worked; with boot: the guest powered off" },
        { "1", "it could not be done; one line on standard error says why" },
        { "2", "the command line was wrong" },
        { "3", "boot: the guest asked for a reset and --no-reboot was given" },
        { "4", "boot: triple fault; the registers and the last code bytes are printed" },
        { 0 },
};

static const struct opt_note examples[] = {
        { "virta boot --kernel vmlinuz --initrd initrd.gz", "boot a kernel on this terminal" },
        { "virta boot --kernel vmlinuz --disk root.img --append 'console=ttyS0 root=/dev/vda'", "boot a disk's root file system" },
        { "virta disk create root.qcow2 20G", "a disk that takes space as it is written to" },
        { "virta doctor", "what this machine offers and what is missing" },
        { 0 },
};

static const struct opt_section sections[] = { { "Exit status", NULL, exits }, { "Examples", NULL, examples }, { 0 } };

static const struct opt_command *const tables[] = {
        &boot_table, &disk_table, &disk_create_table, &disk_info_table, &disk_check_table, &disk_map_table, &disk_convert_table,
        &disk_serve_table, &disk_stream_table, &disk_mirror_table, &disk_backup_table,
        &disk_compare_table, &disk_resize_table, &disk_snapshot_table, &disk_bitmap_table,
        &disk_commit_table, &disk_rebase_table, &disk_amend_table, &disk_measure_table, 
        &image_table, &image_pull_table, &image_push_table, &image_list_table, &image_show_table, &image_import_table, &image_export_table,
        &image_delete_table, &image_prune_table, &doctor_table, &oci_table, &help_table, &version_table, &completion_table, NULL,
};

const struct opt_program cli_program = {
        .name = "virta",
        .summary = "run virtual machines anywhere",
        .version = VIRTA_VERSION,
        .description = "Runs unmodified guests: at hardware speed where the processor offers virtualization, in software where it does not.",
        .commands = tables,
        .sections = sections,
};
