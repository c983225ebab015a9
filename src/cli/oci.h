/*
 * The commands of the container runtime, which take runc's place: `virta-oci COMMAND`, and `virta oci COMMAND`.
 */
#pragma once

#include "base/opt.h"
#include "container/container.h"

struct oci_command {
        const struct opt_command *table;
        size_t args_size; /* of the struct that the options go into; zeroed before */
        /* 0 and *exit_code, or -errno and *err. */
        int (*run)(const struct runtime *runtime, void *args, int *exit_code, struct err *err);
        void (*prepare)(void *args); /* defaults; may be NULL */
        bool enters;                 /* makes a process that enters a container: the program must be sealed before */
};

/* NULL-terminated, both in one order. */
extern const struct oci_command *const oci_commands[];
extern const struct opt_command *const oci_tables[];
extern const struct opt_program oci_program;

/* The whole of the program; argv[0] is its name. */
int oci_main(int argc, char **argv);
