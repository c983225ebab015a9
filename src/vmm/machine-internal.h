/* Inside the machine, for machine*.c. */
#pragma once

#include <stdatomic.h>

#include "device/board.h"
#include "vmm/load.h"
#include "vmm/machine.h"

#define MACHINE_PCI_MAX 30u

enum machine_event {
        MACHINE_POWER_OFF = 1u << 0,
        MACHINE_RESET = 1u << 1,
        MACHINE_SHUTDOWN = 1u << 2, /* triple fault */
        MACHINE_FAILED = 1u << 3,
};

struct block;

struct machine_vcpu {
        struct machine *machine;
        struct accel_vcpu *vcpu;
        unsigned index;
        pthread_t thread;
        bool has_thread;
        bool stopped; /* it cannot go on until a reset; under the machine's lock */
};

struct machine {
        struct vmm_config config; /* with its defaults filled in; the strings are the caller's */
        struct machine_layout layout;
        struct machine_host to;
        struct device_host host;
        struct guest_memory mem;
        const struct accel_ops *ops;
        struct accel *accel;
        struct board *board;
        struct load_input input;

        /* What sits on the PCI bus, in the order it was made: for reset, quiesce, save and load. */
        unsigned devices;
        struct device *device[MACHINE_PCI_MAX];
        struct device *console, *balloon;
        unsigned disks;
        struct block *disk[VMM_DISKS_MAX]; /* with its filters in front */
        struct block *handle[VMM_DISKS_MAX]; /* block/disk.h: for jobs */
        struct device *blk[VMM_DISKS_MAX];
        int job_folder; /* machine-jobs.c; -1: none */
        unsigned shares;
        struct virtio *share[VMM_SHARES_MAX];
        struct virtio *vsock; /* NULL: none */

        /* Run control. */
        pthread_mutex_t lock;
        pthread_cond_t changed; /* pauses, stop, running, stopped */
        unsigned pauses;        /* vCPUs run when it is 0 */
        unsigned running;       /* vCPUs that are in accel->run */
        bool stop;              /* threads end */
        struct machine_vcpu vcpu[VMM_CPUS_MAX];
        struct err failure; /* of the first vCPU that failed */
        unsigned shutdown_vcpu;

        /* From any thread to the main thread. */
        atomic_uint events; /* enum machine_event */
        uv_async_t wake;
        bool has_wake;
        bool ended;
        struct machine_stall *stall; /* machine-stall.c */
        uint64_t resets;
};

/* machine-devices.c: the board, the accelerator and all devices; what was made is freed by machine_free_devices(). */
int machine_make_devices(struct machine *machine, const int net_fd[VMM_NETS_MAX], struct err *err) _must_check_;
void machine_free_devices(struct machine *machine);

/* machine-jobs.c */
int machine_jobs_init(struct machine *machine, struct err *err) _must_check_;
void machine_jobs_done(struct machine *machine);

/* machine-stall.c: pauses while a device waits for the host. machine_stall_free() comes before the loop's last round. */
int machine_stall_init(struct machine *machine, struct err *err) _must_check_;
void machine_stall_free(struct machine *machine);
/* Why it stands still now; NULL: it does not. */
const char *machine_stall_why(const struct machine *machine);

/* machine-crash.c: registers and code bytes of a vCPU, to standard error. */
void machine_print_crash(struct machine *machine, unsigned index);
