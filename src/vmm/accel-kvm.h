/*
 * Inside the KVM accelerator: its structs, for accel-kvm*.c.
 *
 * The kernel has the local APICs, the board has everything else (split irqchip): the I/O APIC and devices send messages with
 * KVM_SIGNAL_MSI, ends of level-triggered interrupts come back as exits, the 8259's vector is given with KVM_INTERRUPT when the
 * processor's LINT0 and flags let it in.
 *
 * Time: while the machine is paused each vCPU's TSC is paused_tsc + tsc_offset, and resume moves all offsets by the time that has
 * passed, so that the TSCs of all vCPUs stay together. kvm-clock is read at pause and set at resume.
 *
 * Source: Linux Documentation/virt/kvm/api.rst; Intel SDM vol. 4 (MSRs).
 */
#pragma once

#include <linux/kvm.h>
#include <stdatomic.h>

#include "vmm/accel.h"

#define KVM_XSAVE_BYTES_MAX 65536u

struct kvm;

struct kvm_vcpu {
        struct accel_vcpu vcpu;
        struct kvm *kvm;
        int fd;
        struct kvm_run *run; /* NULL until mapped */
        pthread_t thread;
        bool thread_ready;      /* signals are set up; only its own thread looks */
        atomic_bool in_kernel;  /* thread is valid and KVM_RUN may be sleeping */
        struct writer power_on; /* its state when it was made, for reset */
};

struct kvm {
        struct accel accel;
        int fd, vm_fd;
        struct device_host *host;
        unsigned count;
        struct kvm_vcpu *vcpu;

        bool has_xcrs, has_tsc_offset, has_debug_regs, has_clock_control;
        size_t run_bytes, xsave_bytes;
        uint32_t avx_offset; /* of the upper halves in the XSAVE area; 0: no AVX */
        struct kvm_cpuid2 *cpuid;
        struct kvm_msr_list *msrs;

        int (*pic_ack)(void *ctx);
        void *pic_ctx;
        atomic_bool extint;
        void (*ioapic_eoi)(void *ctx, uint8_t vector);
        void *ioapic_ctx;
        pthread_mutex_t routes_lock;
        uint64_t level_vectors[4];

        unsigned paused;
        uint64_t paused_tsc, paused_clock_ns;
};

static inline struct kvm *to_kvm(struct accel *accel)
{
        return container_of(accel, struct kvm, accel);
}

static inline struct kvm_vcpu *to_kvm_vcpu(struct accel_vcpu *vcpu)
{
        return container_of(vcpu, struct kvm_vcpu, vcpu);
}

/* ioctl() that is tried again when a signal came in between; -errno. */
int kvm_ioctl(int fd, unsigned long request, void *argument);
int kvm_ioctl_value(int fd, unsigned long request, unsigned long argument);

/* Opens /dev/kvm and checks the interface version; the descriptor. */
int kvm_open(struct err *err) _must_check_;

/* probe.c */
int kvm_probe(double *million_instructions_s, struct err *err);

/* cpuid.c: kvm->cpuid for cpu_model; then each vCPU's own copy is set. */
int kvm_cpuid_init(struct kvm *kvm, const char *cpu_model, struct err *err) _must_check_;
int kvm_cpuid_set(struct kvm_vcpu *vcpu, struct err *err) _must_check_;

/* state.c */
int kvm_get_state(struct accel_vcpu *vcpu, struct x86_state *state, struct err *err) _must_check_;
int kvm_set_state(struct accel_vcpu *vcpu, const struct x86_state *state, struct err *err) _must_check_;
int kvm_save(struct accel_vcpu *vcpu, struct writer *out, struct err *err) _must_check_;
int kvm_load(struct accel_vcpu *vcpu, struct cursor *in, struct err *err) _must_check_;
int kvm_reset(struct accel_vcpu *vcpu, struct err *err) _must_check_;
int kvm_msr_read(struct kvm_vcpu *vcpu, uint32_t index, uint64_t *value);
int kvm_msr_write(struct kvm_vcpu *vcpu, uint32_t index, uint64_t value);
/* KVM's TSC offset of a vCPU; -ENOTSUP where the kernel is too old (Linux 5.16). */
int kvm_tsc_offset(struct kvm_vcpu *vcpu, uint64_t *offset);
int kvm_set_tsc_offset(struct kvm_vcpu *vcpu, uint64_t offset);

/* vcpu.c */
enum vcpu_exit kvm_run_vcpu(struct accel_vcpu *vcpu, struct err *err);
void kvm_kick(struct accel_vcpu *vcpu);
