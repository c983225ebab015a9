/*
 * A virtual machine from its description to its end: what `virta boot` and the daemon's instance process call.
 *
 * vmm_run() makes the machine, boots it, serves its devices on the calling thread (one libuv loop) and returns when the guest
 * is gone. Everything that can be refused is refused before the first guest instruction, with one line that says what, with
 * which value, and what to do. It installs handlers for SIGTERM, SIGINT, SIGHUP and SIGWINCH while it runs and puts the
 * terminal back on every way out.
 *
 *   SIGTERM, SIGHUP: the ACPI power button; a second one, or VMM_STOP_TIMEOUT_S later, ends the machine (exit code 0 when the
 *   guest powered off in time, else 1). SIGINT does the same where the terminal is not in raw mode.
 */
#pragma once

#include "base/err.h"
#include "net/net.h"

#define VMM_CPUS_MAX 64u
#define VMM_MEMORY_MIN_BYTES (UINT64_C(128) << 20)
#define VMM_MEMORY_MAX_BYTES (UINT64_C(1) << 40) /* and what the host can map */
#define VMM_DISKS_MAX 8u
#define VMM_NETS_MAX 4u
#define VMM_SHARES_MAX 8u
#define VMM_COMMAND_LINE_MAX 2047u /* bytes; a kernel may take fewer and says so in its header */
#define VMM_NAME_MAX 63u
#define VMM_STOP_TIMEOUT_S 30u

/* What vmm_run() gives in *exit_code. */
enum vmm_exit {
        VMM_EXIT_OK = 0,           /* the guest powered off, or the user ended it */
        VMM_EXIT_FAILED = 1,       /* it could not go on; said so on standard error */
        VMM_EXIT_USAGE = 2,        /* never from here: the CLI's */
        VMM_EXIT_RESET = 3,        /* the guest reset with no_reboot */
        VMM_EXIT_TRIPLE_FAULT = 4, /* registers and code bytes were printed */
};

#define VMM_FILTERS_MAX 8u

struct vmm_disk {
        const char *path;
        const char *format; /* "raw", "qcow2", …; NULL: found out from the file */
        const char *serial; /* what the guest reads as its serial number; NULL: the device's name */
        const char *on_error; /* "full" (NULL), "report", "pause": see virtio_blk_on_error */
        const char *secret;   /* where the passphrase of an encrypted one is (block/secret.h); NULL: nobody said */
        const char *filter[VMM_FILTERS_MAX]; /* block/filter/filter.h */
        unsigned filters;
        bool commit;          /* its backing files can be written to, when a job wants to */
        bool readonly;
};

struct vmm_share {
        const char *path; /* a directory */
        const char *tag;  /* what the guest mounts; NULL: "share", "share1", … */
        bool readonly;
};

enum vmm_serial { VMM_SERIAL_STDIO, VMM_SERIAL_FILE, VMM_SERIAL_UNIX, VMM_SERIAL_NONE };

/* Everything is borrowed for the time of vmm_run(). A struct of zeroes with kernel set is a machine with the defaults. */
struct vmm_config {
        const char *name;      /* NULL: "vm" */
        const char *kernel;    /* bzImage, PVH ELF or ELF vmlinux */
        const char *initrd;    /* NULL: none */
        const char *append;    /* the kernel's command line; NULL: "console=ttyS0" */
        uint64_t memory_bytes; /* 0: 512 MiB */
        unsigned cpus;         /* 0: 1 */
        const char *cpu_model; /* NULL: "max" */
        const char *cpu_engine;    /* of software processors: NULL or "auto", "translator", "interpreter", "lock-step" */
        uint64_t code_cache_bytes; /* of translated code; 0: 64 MiB */
        bool cpu_stats;            /* print where the processors' time went when the machine ends */
        bool perf_map;             /* /tmp/perf-PID.map for perf */
        const char *accel;     /* NULL or "auto", "kvm", "software" */
        enum vmm_serial serial;
        const char *serial_path; /* of FILE and UNIX */
        bool no_reboot;
        bool no_sandbox;        /* --sandbox off */
        const char *job_folder; /* where jobs on disks may make and open images; NULL: nowhere, in the sandbox */
        const char *vsock_path; /* host unix socket of the guest's vsock; NULL: no such device */
        uint32_t vsock_cid;     /* 0: 3 */
        unsigned disks, nets, shares;
        struct vmm_disk disk[VMM_DISKS_MAX];
        struct net_options net[VMM_NETS_MAX]; /* net_options_parse(); driver NULL: no card */
        struct vmm_share share[VMM_SHARES_MAX];
};

/* 0 and *exit_code when a guest ran; else -errno, err says why and nothing is left behind. Not to be called twice at a time. */
int vmm_run(const struct vmm_config *config, int *exit_code, struct err *err) _must_check_;

/* The accelerators, for doctor: index 0, 1, …; NULL past the last. */
struct vmm_accel_probe {
        const char *name, *text;
        int result;                    /* 0: works here; else -errno */
        double million_instructions_s; /* measured; 0: was not */
        struct err err;                /* why it does not */
};
bool vmm_probe_accel(unsigned index, struct vmm_accel_probe *probe);

/* "auto, kvm, software" for help and errors. */
const char *vmm_accel_names(void);
