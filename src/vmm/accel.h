/*
 * Accelerators: what executes guest instructions. Drivers: accel-software.c (src/cpu) and accel-kvm.c.
 *
 * The machine owns the threads: one a vCPU, on which vcpu->run is called until the machine stops. Everything else is called
 * from the main thread unless it says any thread.
 */
#pragma once

#include <signal.h>

#include "cpu/x86/state.h"
#include "device/device.h"

/* Drivers embed these. */
struct accel {
        const struct accel_ops *ops;
};

struct accel_vcpu {
        struct accel *accel;
        unsigned index;
};

enum vcpu_exit {
        VCPU_EXIT_REQUESTED, /* kicked; look at the machine's state and run again */
        VCPU_EXIT_SHUTDOWN,  /* triple fault */
        VCPU_EXIT_FAILED,    /* the accelerator cannot go on; err says why */
};

/* What a machine's description says about its processors. */
struct accel_options {
        const char *cpu_model;     /* NULL: "max" */
        const char *cpu_engine;    /* software: "auto" (also NULL), "translator", "interpreter", "lock-step" */
        uint64_t code_cache_bytes; /* software: of translated code; 0: the default */
        bool cpu_stats;            /* software: keep what stats tells of times */
        bool perf_map;             /* software: list translated code for perf */
};

struct accel_ops {
        const char *name; /* "kvm", "software" */
        const char *text; /* one line for help and doctor */

        /*
         * Whether this host can: 0, or a -errno with why. kvm opens the device, runs a tiny guest and times it;
         * million_instructions_s is the measured speed (0 when not measured).
         */
        int (*probe)(double *million_instructions_s, struct err *err);
        /*
         * Makes the processors' side of a machine with count vCPUs: local APICs, routing, clock. It sets host->msi; host->bus,
         * ->mem, ->loop and ->timers are there. Guest memory has all its regions; a KVM slot is made for each. The clocks stand
         * until resume.
         */
        int (*new)(struct device_host *host, unsigned count, const struct accel_options *options, struct accel **accel, struct err *err);
        /* No vCPU runs any more. */
        void (*free)(struct accel *accel);
        /* device_host.doorbell; any thread. */
        int (*doorbell)(struct accel *accel, bool add, enum bus_space space, uint64_t address, unsigned size_bytes,
                        bool match_value, uint32_t value, int eventfd);

        /* The 8259's INTR wire and how to acknowledge it; I/O APIC's end-of-interrupt. */
        void (*connect_pic)(struct accel *accel, int (*ack)(void *ctx), void *ctx);
        void (*extint)(struct accel *accel, bool level); /* any thread */
        void (*connect_ioapic)(struct accel *accel, void (*eoi)(void *ctx, uint8_t vector), void *ctx);
        /* Which vectors of the I/O APIC are level-triggered, when its table changed (KVM's EOI exits); may be NULL. Any thread.
         */
        void (*ioapic_changed)(struct accel *accel, const uint64_t level_vectors[4]);

        struct accel_vcpu *(*vcpu)(struct accel *accel, unsigned index);
        /* On the vCPU's thread. Halts and waits for SIPI inside. */
        enum vcpu_exit (*run)(struct accel_vcpu *vcpu, struct err *err);
        /* Makes run return soon. Any thread. */
        void (*kick)(struct accel_vcpu *vcpu);

        /* While the vCPU does not run. The local APIC's state is a record of its own in save and load. */
        int (*get_state)(struct accel_vcpu *vcpu, struct x86_state *state, struct err *err);
        int (*set_state)(struct accel_vcpu *vcpu, const struct x86_state *state, struct err *err);
        int (*reset)(struct accel_vcpu *vcpu, struct err *err); /* power-on, with its local APIC */
        int (*save)(struct accel_vcpu *vcpu, struct writer *out, struct err *err);
        int (*load)(struct accel_vcpu *vcpu, struct cursor *in, struct err *err);
        /* The guest's clocks stand still between pause and resume; machine-wide. Each pause has its resume. */
        void (*pause)(struct accel *accel);
        void (*resume)(struct accel *accel);
        /* Guest instructions executed so far, 0 when not counted. Any thread. */
        uint64_t (*instructions)(struct accel_vcpu *vcpu);
        /* Where a vCPU's time went, in lines for a person, or for vcpu NULL what they share; NULL: nothing to say. Any thread. */
        void (*stats)(struct accel *accel, struct accel_vcpu *vcpu, char *text, size_t size_bytes);
};

#define VCPU_KICK_SIGNAL SIGUSR1 /* blocked in every thread but while a vCPU runs in the kernel */

extern const struct accel_ops accel_software_ops;
extern const struct accel_ops accel_kvm_ops;

/* NULL-terminated, in the order auto tries them. */
extern const struct accel_ops *const accel_drivers[];

/*
 * The accelerator that name ("auto", or NULL, or a driver's) says. auto takes the first whose probe succeeds; why says then, in a
 * line, why the ones before it were passed over (empty when none was). -EINVAL for a name that is none; a named accelerator that
 * does not work here is an error.
 */
int accel_choose(const char *name, const struct accel_ops **ops, struct err *why, struct err *err) _must_check_;
