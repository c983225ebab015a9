/*
 * Running a vCPU under KVM: the loop around KVM_RUN, its exits, and the kick.
 *
 * A kick sets immediate_exit, then sends a signal when the thread may be inside KVM_RUN. The thread clears immediate_exit after
 * it came back and before its caller looks at what it was kicked for. So a kick before, during or after the system call is seen:
 *
 *      kicker: immediate_exit = 1; if in_kernel: signal          vCPU: in_kernel = 1; KVM_RUN; in_kernel = 0; immediate_exit = 0;
 * look
 *
 * Source: Linux Documentation/virt/kvm/api.rst, "The kvm_run structure".
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include "base/log.h"
#include "vmm/accel-kvm.h"

/* The kick's signal is let in on this thread only. Its handler is there since the machine was made: a thread may not set one. */
static void prepare_thread(struct kvm_vcpu *vcpu)
{
        sigset_t set;

        sigemptyset(&set);
        sigaddset(&set, VCPU_KICK_SIGNAL);
        pthread_sigmask(SIG_UNBLOCK, &set, NULL);
        vcpu->thread = pthread_self();
        vcpu->thread_ready = true;
}

void kvm_kick(struct accel_vcpu *v)
{
        struct kvm_vcpu *vcpu = to_kvm_vcpu(v);

        __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
        if (atomic_load(&vcpu->in_kernel))
                pthread_kill(vcpu->thread, VCPU_KICK_SIGNAL);
}

static uint64_t load_le(const uint8_t *bytes, unsigned size)
{
        uint64_t value = 0;

        memcpy(&value, bytes, MIN(size, 8u));
        return value;
}

/* A string instruction comes as count items in a row. */
static void exit_ports(struct kvm_vcpu *vcpu)
{
        struct kvm_run *run = vcpu->run;
        uint8_t *data = (uint8_t *)run + run->io.data_offset;
        unsigned size = run->io.size;

        if (run->io.data_offset + (uint64_t)run->io.count * size > vcpu->kvm->run_bytes)
                return;
        for (uint32_t i = 0; i < run->io.count; i++, data += size) {
                if (run->io.direction == KVM_EXIT_IO_OUT) {
                        bus_write(vcpu->kvm->host->bus, BUS_PORTS, run->io.port, load_le(data, size), size);
                } else {
                        uint64_t value = bus_read(vcpu->kvm->host->bus, BUS_PORTS, run->io.port, size);

                        memcpy(data, &value, size);
                }
        }
}

/* The kernel cuts accesses into 1 to 8 bytes, not always a power of two. */
static void exit_memory(struct kvm_vcpu *vcpu)
{
        struct kvm_run *run = vcpu->run;
        struct bus *bus = vcpu->kvm->host->bus;
        unsigned left = MIN(run->mmio.len, 8u);
        uint8_t *data = run->mmio.data;
        uint64_t gpa = run->mmio.phys_addr;

        while (left) {
                unsigned size = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;

                if (run->mmio.is_write) {
                        bus_write(bus, BUS_MEMORY, gpa, load_le(data, size), size);
                } else {
                        uint64_t value = bus_read(bus, BUS_MEMORY, gpa, size);

                        memcpy(data, &value, size);
                }
                data += size;
                gpa += size;
                left -= size;
        }
}

/* Before KVM_RUN, on the boot processor: the 8259's interrupt goes in, or the kernel is asked to say when it can. */
static int offer_extint(struct kvm_vcpu *vcpu, struct err *err)
{
        struct kvm *kvm = vcpu->kvm;
        struct kvm_interrupt interrupt;
        int vector, r;

        if (vcpu->vcpu.index || !kvm->pic_ack)
                return 0;
        if (!atomic_load(&kvm->extint)) {
                vcpu->run->request_interrupt_window = 0;
                return 0;
        }
        if (!vcpu->run->ready_for_interrupt_injection) {
                vcpu->run->request_interrupt_window = 1;
                return 0;
        }
        vector = kvm->pic_ack(kvm->pic_ctx);
        if (vector < 0)
                return 0;
        interrupt.irq = (uint32_t)vector;
        r = kvm_ioctl(vcpu->fd, KVM_INTERRUPT, &interrupt);
        if (r < 0)
                return err_errno(err, r, "KVM does not take interrupt vector %d", vector);
        vcpu->run->ready_for_interrupt_injection = 0;
        vcpu->run->request_interrupt_window = atomic_load(&kvm->extint);
        return 0;
}

static enum vcpu_exit exit_internal_error(struct kvm_vcpu *vcpu, struct err *err)
{
        const struct kvm_run *run = vcpu->run;
        char data[128] = "";
        size_t used = 0;
        struct kvm_regs regs = { 0 };

        for (uint32_t i = 0; i < MIN(run->internal.ndata, 4u); i++)
                used += (size_t)snprintf(data + used, sizeof(data) - used, " %" PRIx64, (uint64_t)run->internal.data[i]);
        kvm_ioctl(vcpu->fd, KVM_GET_REGS, &regs);
        err_set(err, -EIO, "KVM cannot go on with vCPU %u at 0x%" PRIx64 ": %s (suberror %u, data%s)", vcpu->vcpu.index,
                (uint64_t)regs.rip,
                run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION ? "an instruction that it cannot emulate"
                                                                       : "internal error",
                run->internal.suberror, data);
        return VCPU_EXIT_FAILED;
}

/* true: the loop goes on; else *result is what to return. */
static bool handle_exit(struct kvm_vcpu *vcpu, enum vcpu_exit *result, struct err *err)
{
        struct kvm_run *run = vcpu->run;

        switch (run->exit_reason) {
        case KVM_EXIT_IO:
                exit_ports(vcpu);
                return true;
        case KVM_EXIT_MMIO:
                exit_memory(vcpu);
                return true;
        case KVM_EXIT_IOAPIC_EOI:
                if (vcpu->kvm->ioapic_eoi)
                        vcpu->kvm->ioapic_eoi(vcpu->kvm->ioapic_ctx, run->eoi.vector);
                return true;
        case KVM_EXIT_IRQ_WINDOW_OPEN:
        case KVM_EXIT_INTR:
        case KVM_EXIT_HLT:
        case KVM_EXIT_SET_TPR:
                return true;
        case KVM_EXIT_SHUTDOWN:
                *result = VCPU_EXIT_SHUTDOWN;
                return false;
        case KVM_EXIT_SYSTEM_EVENT:
                vcpu->kvm->host->power(vcpu->kvm->host->ctx,
                                       run->system_event.type == KVM_SYSTEM_EVENT_SHUTDOWN ? POWER_OFF : POWER_RESET);
                *result = VCPU_EXIT_REQUESTED;
                return false;
        case KVM_EXIT_FAIL_ENTRY:
                err_set(err, -EIO, "the processor refuses to run vCPU %u: hardware entry failure 0x%" PRIx64, vcpu->vcpu.index,
                        (uint64_t)run->fail_entry.hardware_entry_failure_reason);
                *result = VCPU_EXIT_FAILED;
                return false;
        case KVM_EXIT_INTERNAL_ERROR:
                *result = exit_internal_error(vcpu, err);
                return false;
        default:
                err_set(err, -EIO, "KVM ends vCPU %u with exit %u, which is not known", vcpu->vcpu.index, run->exit_reason);
                *result = VCPU_EXIT_FAILED;
                return false;
        }
}

enum vcpu_exit kvm_run_vcpu(struct accel_vcpu *v, struct err *err)
{
        struct kvm_vcpu *vcpu = to_kvm_vcpu(v);
        enum vcpu_exit result;

        if (!vcpu->thread_ready)
                prepare_thread(vcpu);
        for (;;) {
                int r;

                if (offer_extint(vcpu, err) < 0)
                        return VCPU_EXIT_FAILED;
                atomic_store(&vcpu->in_kernel, true);
                r = ioctl(vcpu->fd, KVM_RUN, 0) < 0 ? -errno : 0;
                atomic_store(&vcpu->in_kernel, false);
                if (r == -EINTR || r == -EAGAIN) {
                        __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
                        return VCPU_EXIT_REQUESTED;
                }
                if (r < 0) {
                        err_errno(err, r, "KVM does not run vCPU %u", v->index);
                        return VCPU_EXIT_FAILED;
                }
                if (!handle_exit(vcpu, &result, err))
                        return result;
        }
}
