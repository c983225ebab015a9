/*
 * The KVM accelerator: virtual machine, memory, interrupt routes, doorbells, time. See accel-kvm.h.
 *
 * Level-triggered interrupts: KVM reports the end of an interrupt only for vectors that a route of the first 24 GSIs names as
 * level-triggered. Messages are sent directly (KVM_SIGNAL_MSI), so these routes exist for that alone: one for each
 * level-triggered vector of the I/O APIC, to all processors.
 */
#include "vmm/accel-kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <x86intrin.h>

/* Three pages for real mode on processors without unrestricted guests, and one for its page table; below the firmware's end. */
#define TSS_ADDRESS 0xfffbd000u
#define IDENTITY_MAP_ADDRESS 0xfffbc000u
#define IOAPIC_PINS 24u
#define KVM_MSR_LIST_MAX 1024u
#define MSI_ALL_CPUS 0xfeeff000u /* physical destination 0xff */
#define MSI_LEVEL_ASSERT 0xc000u
#define MSR_TSC 0x10u
#define MSR_TSC_DEADLINE 0x6e0u

int kvm_ioctl(int fd, unsigned long request, void *argument)
{
        int r;

        do
                r = ioctl(fd, request, argument);
        while (r < 0 && errno == EINTR);
        return r < 0 ? -errno : r;
}

int kvm_ioctl_value(int fd, unsigned long request, unsigned long argument)
{
        return kvm_ioctl(fd, request, (void *)argument);
}

int kvm_open(struct err *err)
{
        int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
        int version;

        if (fd < 0 && errno == ENOENT)
                return err_set(err, -ENOENT, "there is no /dev/kvm: no VT-x or AMD-V, or the kvm module is not loaded");
        if (fd < 0 && errno == EACCES)
                return err_set(err, -EACCES, "no permission to open /dev/kvm; let an administrator add you to the group 'kvm'");
        if (fd < 0)
                return err_errno(err, -errno, "cannot open /dev/kvm");
        version = kvm_ioctl_value(fd, KVM_GET_API_VERSION, 0);
        if (version != KVM_API_VERSION) {
                close(fd);
                return err_set(err, -ENOTSUP, "/dev/kvm speaks version %d, not %d", version, KVM_API_VERSION);
        }
        return fd;
}

static bool has(const struct kvm *kvm, int capability)
{
        return kvm_ioctl_value(kvm->vm_fd, KVM_CHECK_EXTENSION, (unsigned long)capability) > 0;
}

/* ---- messages, doorbells, routes ---- */

static void send_message(void *ctx, uint64_t address, uint32_t data)
{
        struct kvm *kvm = ctx;
        struct kvm_msi msi = { .address_lo = (uint32_t)address, .address_hi = (uint32_t)(address >> 32), .data = data };

        /* A message that reaches no processor is lost, as on a bus. */
        (void)kvm_ioctl(kvm->vm_fd, KVM_SIGNAL_MSI, &msi);
}

static int kvm_doorbell(struct accel *accel, bool add, enum bus_space space, uint64_t address, unsigned size_bytes,
                        bool match_value, uint32_t value, int eventfd)
{
        struct kvm_ioeventfd bell = {
                .datamatch = value,
                .addr = address,
                .len = size_bytes,
                .fd = eventfd,
                .flags = (match_value ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0u) | (space == BUS_PORTS ? KVM_IOEVENTFD_FLAG_PIO : 0u) |
                         (add ? 0u : KVM_IOEVENTFD_FLAG_DEASSIGN),
        };

        return kvm_ioctl(to_kvm(accel)->vm_fd, KVM_IOEVENTFD, &bell);
}

static void kvm_ioapic_changed(struct accel *accel, const uint64_t level_vectors[4])
{
        union {
                struct kvm_irq_routing list; /* of at most so many entries: */
                uint8_t room[sizeof(struct kvm_irq_routing) + IOAPIC_PINS * sizeof(struct kvm_irq_routing_entry)];
        } routes = { .room = { 0 } };
        struct kvm *kvm = to_kvm(accel);

        pthread_mutex_lock(&kvm->routes_lock);
        if (memcmp(kvm->level_vectors, level_vectors, sizeof(kvm->level_vectors))) {
                memcpy(kvm->level_vectors, level_vectors, sizeof(kvm->level_vectors));
                for (unsigned vector = 0; vector < 256 && routes.list.nr < IOAPIC_PINS; vector++) {
                        if (!(level_vectors[vector / 64] >> vector % 64 & 1))
                                continue;
                        routes.list.entries[routes.list.nr] = (struct kvm_irq_routing_entry){
                                .gsi = routes.list.nr,
                                .type = KVM_IRQ_ROUTING_MSI,
                                .u.msi = { .address_lo = MSI_ALL_CPUS, .data = vector | MSI_LEVEL_ASSERT },
                        };
                        routes.list.nr++;
                }
                (void)kvm_ioctl(kvm->vm_fd, KVM_SET_GSI_ROUTING, &routes);
        }
        pthread_mutex_unlock(&kvm->routes_lock);
}

static void kvm_connect_pic(struct accel *accel, int (*ack)(void *ctx), void *ctx)
{
        struct kvm *kvm = to_kvm(accel);

        kvm->pic_ctx = ctx;
        kvm->pic_ack = ack;
}

static void kvm_extint(struct accel *accel, bool level)
{
        struct kvm *kvm = to_kvm(accel);

        if (atomic_exchange(&kvm->extint, level) != level && level)
                kvm_kick(&kvm->vcpu[0].vcpu);
}

static void kvm_connect_ioapic(struct accel *accel, void (*eoi)(void *ctx, uint8_t vector), void *ctx)
{
        struct kvm *kvm = to_kvm(accel);

        kvm->ioapic_ctx = ctx;
        kvm->ioapic_eoi = eoi;
}

/* ---- time ---- */

static void kvm_pause(struct accel *accel)
{
        struct kvm *kvm = to_kvm(accel);
        struct kvm_clock_data clock = { 0 };

        if (kvm->paused++)
                return;
        kvm->paused_tsc = __rdtsc();
        if (kvm_ioctl(kvm->vm_fd, KVM_GET_CLOCK, &clock) >= 0)
                kvm->paused_clock_ns = clock.clock;
        /* The guest's watchdogs are told at its next look at the clock that it stood still. */
        for (unsigned i = 0; i < kvm->count && kvm->has_clock_control; i++)
                (void)kvm_ioctl_value(kvm->vcpu[i].fd, KVM_KVMCLOCK_CTRL, 0);
}

static void kvm_resume(struct accel *accel)
{
        struct kvm *kvm = to_kvm(accel);
        struct kvm_clock_data clock = { .clock = kvm->paused_clock_ns };
        uint64_t stood, offset, deadline;

        if (--kvm->paused)
                return;
        stood = __rdtsc() - kvm->paused_tsc;
        for (unsigned i = 0; i < kvm->count; i++) {
                struct kvm_vcpu *vcpu = &kvm->vcpu[i];

                if (kvm_tsc_offset(vcpu, &offset) >= 0)
                        (void)kvm_set_tsc_offset(vcpu, offset - stood);
                /* Armed again by the moved TSC. */
                if (kvm_msr_read(vcpu, MSR_TSC_DEADLINE, &deadline) >= 0 && deadline)
                        (void)kvm_msr_write(vcpu, MSR_TSC_DEADLINE, deadline);
        }
        (void)kvm_ioctl(kvm->vm_fd, KVM_SET_CLOCK, &clock);
}

/* ---- making one ---- */

static int add_memory(struct kvm *kvm, struct err *err)
{
        const struct guest_memory *mem = kvm->host->mem;

        for (unsigned i = 0; i < mem->regions; i++) {
                struct kvm_userspace_memory_region region = {
                        .slot = i,
                        .flags = mem->region[i].readonly ? KVM_MEM_READONLY : 0,
                        .guest_phys_addr = mem->region[i].gpa,
                        .memory_size = mem->region[i].size_bytes,
                        .userspace_addr = (uintptr_t)mem->region[i].host,
                };
                int r = kvm_ioctl(kvm->vm_fd, KVM_SET_USER_MEMORY_REGION, &region);

                if (r < 0)
                        return err_errno(err, r, "KVM does not take %" PRIu64 " MiB of memory at 0x%" PRIx64,
                                         mem->region[i].size_bytes >> 20, mem->region[i].gpa);
        }
        return 0;
}

static int check_capabilities(struct kvm *kvm, struct err *err)
{
        static const struct {
                int capability;
                const char *text;
        } needed[] = {
                { KVM_CAP_USER_MEMORY, "memory regions" },
                { KVM_CAP_SPLIT_IRQCHIP, "a split irqchip (Linux 4.4)" },
                { KVM_CAP_IMMEDIATE_EXIT, "immediate exit (Linux 4.11)" },
                { KVM_CAP_SIGNAL_MSI, "message-signalled interrupts" },
                { KVM_CAP_IOEVENTFD, "ioeventfd" },
                { KVM_CAP_MP_STATE, "MP state" },
                { KVM_CAP_VCPU_EVENTS, "vCPU events" },
                { KVM_CAP_XSAVE, "XSAVE state" },
        };
        int most = kvm_ioctl_value(kvm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
        int size;

        for (unsigned i = 0; i < ARRAY_SIZE(needed); i++)
                if (!has(kvm, needed[i].capability))
                        return err_set(err, -ENOTSUP, "KVM here has no %s", needed[i].text);
        if (most > 0 && kvm->count > (unsigned)most)
                return err_set(err, -EINVAL, "KVM here runs at most %d processors in a machine, %u are asked for", most,
                               kvm->count);
        kvm->has_xcrs = has(kvm, KVM_CAP_XCRS);
        kvm->has_debug_regs = has(kvm, KVM_CAP_DEBUGREGS);
        kvm->has_clock_control = has(kvm, KVM_CAP_KVMCLOCK_CTRL);
        size = kvm_ioctl_value(kvm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
        kvm->xsave_bytes = MAX(sizeof(struct kvm_xsave), size > 0 ? (size_t)size : 0);
        if (kvm->xsave_bytes > KVM_XSAVE_BYTES_MAX)
                return err_set(err, -ENOTSUP, "KVM's vector state has %zu bytes", kvm->xsave_bytes);
        return 0;
}

static int enable(struct kvm *kvm, uint32_t capability, uint64_t argument, const char *text, struct err *err)
{
        struct kvm_enable_cap cap = { .cap = capability, .args = { argument } };
        int r = kvm_ioctl(kvm->vm_fd, KVM_ENABLE_CAP, &cap);

        return r < 0 ? err_errno(err, r, "KVM does not enable %s", text) : 0;
}

static int make_vm(struct kvm *kvm, struct err *err)
{
        uint64_t identity = IDENTITY_MAP_ADDRESS;
        int r;

        kvm->fd = kvm_open(err);
        if (kvm->fd < 0)
                return kvm->fd;
        kvm->vm_fd = kvm_ioctl_value(kvm->fd, KVM_CREATE_VM, 0);
        if (kvm->vm_fd < 0)
                return err_errno(err, kvm->vm_fd, "KVM makes no virtual machine");
        r = check_capabilities(kvm, err);
        if (r < 0)
                return r;
        r = kvm_ioctl(kvm->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
        if (r >= 0)
                r = kvm_ioctl_value(kvm->vm_fd, KVM_SET_TSS_ADDR, TSS_ADDRESS);
        if (r < 0)
                return err_errno(err, r, "KVM does not take the address of its task state");
        r = enable(kvm, KVM_CAP_SPLIT_IRQCHIP, IOAPIC_PINS, "its split irqchip", err);
        if (r >= 0 && has(kvm, KVM_CAP_X2APIC_API))
                r = enable(kvm, KVM_CAP_X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS, "32-bit APIC IDs", err);
        return r < 0 ? r : add_memory(kvm, err);
}

static int read_msr_list(struct kvm *kvm, struct err *err)
{
        int r;

        kvm->msrs = calloc(1, sizeof(*kvm->msrs) + KVM_MSR_LIST_MAX * sizeof(kvm->msrs->indices[0]));
        if (!kvm->msrs)
                return err_nomem(err);
        kvm->msrs->nmsrs = KVM_MSR_LIST_MAX;
        r = kvm_ioctl(kvm->fd, KVM_GET_MSR_INDEX_LIST, kvm->msrs);
        return r < 0 ? err_errno(err, r, "KVM does not list its MSRs") : 0;
}

static int make_vcpu(struct kvm *kvm, unsigned index, struct err *err)
{
        struct kvm_vcpu *vcpu = &kvm->vcpu[index];
        struct kvm_device_attr attr = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET };
        void *run;
        int r;

        vcpu->vcpu = (struct accel_vcpu){ .accel = &kvm->accel, .index = index };
        vcpu->kvm = kvm;
        vcpu->fd = kvm_ioctl_value(kvm->vm_fd, KVM_CREATE_VCPU, index);
        if (vcpu->fd < 0)
                return err_errno(err, vcpu->fd, "KVM makes no vCPU %u", index);
        run = mmap(NULL, kvm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
        if (run == MAP_FAILED)
                return err_errno(err, -errno, "cannot map KVM's run area of vCPU %u", index);
        vcpu->run = run;
        r = kvm_cpuid_set(vcpu, err);
        if (r < 0)
                return r;
        if (!index)
                kvm->has_tsc_offset = kvm_ioctl(vcpu->fd, KVM_HAS_DEVICE_ATTR, &attr) >= 0;
        return kvm_save(&vcpu->vcpu, &vcpu->power_on, err);
}

static void kvm_free(struct accel *accel)
{
        struct kvm *kvm = to_kvm(accel);

        for (unsigned i = 0; kvm->vcpu && i < kvm->count; i++) {
                struct kvm_vcpu *vcpu = &kvm->vcpu[i];

                if (vcpu->run)
                        munmap(vcpu->run, kvm->run_bytes);
                closep(&vcpu->fd);
                writer_done(&vcpu->power_on);
        }
        free(kvm->vcpu);
        free(kvm->cpuid);
        free(kvm->msrs);
        closep(&kvm->vm_fd);
        closep(&kvm->fd);
        pthread_mutex_destroy(&kvm->routes_lock);
        free(kvm);
}

static int make_all(struct kvm *kvm, const char *cpu_model, struct err *err)
{
        int r = make_vm(kvm, err);

        if (r >= 0)
                r = kvm_cpuid_init(kvm, cpu_model, err);
        if (r >= 0)
                r = read_msr_list(kvm, err);
        if (r < 0)
                return r;
        r = kvm_ioctl_value(kvm->fd, KVM_GET_VCPU_MMAP_SIZE, 0);
        if (r < (int)sizeof(struct kvm_run))
                return err_set(err, -EIO, "KVM's run area has %d bytes", r);
        kvm->run_bytes = (size_t)r;
        kvm_pause(&kvm->accel);
        for (unsigned i = 0; i < kvm->count; i++) {
                r = make_vcpu(kvm, i, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

static void ignore_signal(int number)
{
}

static int kvm_new(struct device_host *host, unsigned count, const struct accel_options *options, struct accel **accel, struct err *err)
{
        struct sigaction action = { .sa_handler = ignore_signal };
        struct kvm *kvm = calloc(1, sizeof(*kvm));
        int r;

        if (!kvm)
                return err_nomem(err);
        sigaction(VCPU_KICK_SIGNAL, &action, NULL);
        *kvm = (struct kvm){ .accel.ops = &accel_kvm_ops, .fd = -1, .vm_fd = -1, .host = host, .count = count };
        pthread_mutex_init(&kvm->routes_lock, NULL);
        kvm->vcpu = calloc(count, sizeof(*kvm->vcpu));
        if (!kvm->vcpu) {
                kvm_free(&kvm->accel);
                return err_nomem(err);
        }
        for (unsigned i = 0; i < count; i++)
                kvm->vcpu[i].fd = -1;
        r = make_all(kvm, options->cpu_model, err);
        if (r < 0) {
                kvm_free(&kvm->accel);
                return r;
        }
        host->msi = (struct msi_target){ .send = send_message, .ctx = kvm };
        *accel = &kvm->accel;
        return 0;
}

static struct accel_vcpu *kvm_vcpu_at(struct accel *accel, unsigned index)
{
        return &to_kvm(accel)->vcpu[index].vcpu;
}

static uint64_t kvm_instructions(struct accel_vcpu *vcpu)
{
        return 0;
}

const struct accel_ops accel_kvm_ops = {
        .name = "kvm",
        .text = "the processor's own virtualization, through Linux",
        .probe = kvm_probe,
        .new = kvm_new,
        .free = kvm_free,
        .doorbell = kvm_doorbell,
        .connect_pic = kvm_connect_pic,
        .extint = kvm_extint,
        .connect_ioapic = kvm_connect_ioapic,
        .ioapic_changed = kvm_ioapic_changed,
        .vcpu = kvm_vcpu_at,
        .run = kvm_run_vcpu,
        .kick = kvm_kick,
        .get_state = kvm_get_state,
        .set_state = kvm_set_state,
        .reset = kvm_reset,
        .save = kvm_save,
        .load = kvm_load,
        .pause = kvm_pause,
        .resume = kvm_resume,
        .instructions = kvm_instructions,
};
