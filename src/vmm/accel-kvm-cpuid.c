/*
 * CPUID under KVM: what the kernel can offer, less what Virta does not save or the model does not have, with each processor's
 * place in the topology. One socket, one thread a core.
 *
 * Source: Linux Documentation/virt/kvm/api.rst (KVM_GET_SUPPORTED_CPUID), x86/cpuid.rst; Intel SDM vol. 2A "CPUID"; AMD APM vol.
 * 3 appendix E.
 */
#include <errno.h>

#include "cpu/x86/cpuid.h"
#include "vmm/accel-kvm.h"

#define ENTRIES_START 128u
#define ENTRIES_MAX 1024u

/* Leaf 1 ECX. */
#define F1C_MONITOR (1u << 3)
#define F1C_VMX (1u << 5)
#define F1C_PCID (1u << 17)
#define F1C_X2APIC (1u << 21)
#define F1C_TSC_DEADLINE (1u << 24)
#define F1C_OSXSAVE (1u << 27)
#define F1C_HYPERVISOR (1u << 31)
#define F1D_HTT (1u << 28)
/* Leaf 0x80000001 ECX. */
#define FX1C_CMP_LEGACY (1u << 1)
#define FX1C_SVM (1u << 2)
#define FX1C_TOPOLOGY_EXTENSIONS (1u << 22)

static int read_supported(struct kvm *kvm, struct err *err)
{
        for (unsigned n = ENTRIES_START; n <= ENTRIES_MAX; n *= 2) {
                struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + n * sizeof(cpuid->entries[0]));
                int r;

                if (!cpuid)
                        return err_nomem(err);
                cpuid->nent = n;
                r = kvm_ioctl(kvm->fd, KVM_GET_SUPPORTED_CPUID, cpuid);
                if (r >= 0) {
                        kvm->cpuid = cpuid;
                        return 0;
                }
                free(cpuid);
                if (r != -E2BIG)
                        return err_errno(err, r, "KVM does not tell the processor's features");
        }
        return err_set(err, -E2BIG, "KVM has more than %u CPUID entries", ENTRIES_MAX);
}

static struct kvm_cpuid_entry2 *find(struct kvm_cpuid2 *cpuid, uint32_t leaf, uint32_t subleaf)
{
        for (unsigned i = 0; i < cpuid->nent; i++)
                if (cpuid->entries[i].function == leaf && cpuid->entries[i].index == subleaf)
                        return &cpuid->entries[i];
        return NULL;
}

/* Keeps the features that the model has, too, in the leaves that are feature lists. */
static int apply_model(struct kvm *kvm, const char *name, struct err *err)
{
        static const struct {
                uint32_t leaf, subleaf;
                uint8_t regs;  /* bit n: register n (eax .. edx) is a list of features */
                uint32_t keep; /* in ecx, whatever the model says: what the platform gives, not the level */
        } lists[] = {
                { 1, 0, 0xc, F1C_X2APIC | F1C_TSC_DEADLINE | F1C_HYPERVISOR | F1C_PCID },
                { 7, 0, 0xe, 0 },
                { 7, 1, 0x1, 0 },
                { 0x80000001, 0, 0xc, FX1C_TOPOLOGY_EXTENSIONS | FX1C_CMP_LEGACY },
        };
        struct x86_model *model;
        int r;

        if (!name || !strcmp(name, "max"))
                return 0;
        model = calloc(1, sizeof(*model));
        if (!model)
                return err_nomem(err);
        r = x86_model_init(model, name, kvm->count, err);
        for (unsigned i = 0; r >= 0 && i < ARRAY_SIZE(lists); i++) {
                struct kvm_cpuid_entry2 *entry = find(kvm->cpuid, lists[i].leaf, lists[i].subleaf);
                uint32_t reg[4];

                if (!entry)
                        continue;
                x86_model_cpuid(model, 0, 0, 0, lists[i].leaf, lists[i].subleaf, reg);
                entry->eax &= lists[i].regs & 1 ? reg[0] : UINT32_MAX;
                entry->ebx &= lists[i].regs & 2 ? reg[1] : UINT32_MAX;
                entry->ecx &= lists[i].regs & 4 ? reg[2] | lists[i].keep : UINT32_MAX;
                entry->edx &= lists[i].regs & 8 ? reg[3] | (lists[i].leaf == 1 ? F1D_HTT : 0) : UINT32_MAX;
        }
        free(model);
        return r;
}

/* Nested virtualization and the performance counters have state that is not saved. */
static void remove_unsaved(struct kvm *kvm)
{
        for (unsigned i = 0; i < kvm->cpuid->nent; i++) {
                struct kvm_cpuid_entry2 *entry = &kvm->cpuid->entries[i];

                switch (entry->function) {
                case 1:
                        entry->ecx &= ~(F1C_MONITOR | F1C_VMX);
                        break;
                case 0xa:        /* performance monitoring */
                case 0x12:       /* SGX */
                case 0x14:       /* processor trace */
                case 0x8000000a: /* SVM */
                case 0x80000022: /* AMD performance monitoring */
                        entry->eax = entry->ebx = entry->ecx = entry->edx = 0;
                        break;
                case 0x80000001:
                        entry->ecx &= ~(FX1C_SVM | 1u << 23 | 1u << 24); /* and the extended counters */
                        break;
                }
        }
}

int kvm_cpuid_init(struct kvm *kvm, const char *cpu_model, struct err *err)
{
        const struct kvm_cpuid_entry2 *avx;
        struct kvm_cpuid_entry2 *basic;
        int r = read_supported(kvm, err);

        if (r < 0)
                return r;
        r = apply_model(kvm, cpu_model, err);
        if (r < 0)
                return r;
        remove_unsaved(kvm);
        basic = find(kvm->cpuid, 1, 0);
        if (!basic)
                return err_set(err, -EIO, "KVM does not tell the processor's features");
        basic->ecx |= F1C_X2APIC | F1C_HYPERVISOR;
        if (kvm_ioctl_value(kvm->fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0)
                basic->ecx |= F1C_TSC_DEADLINE;
        avx = find(kvm->cpuid, 0xd, 2);
        kvm->avx_offset = avx && avx->eax == 256 ? avx->ebx : 0;
        return 0;
}

static unsigned bits_for(unsigned count)
{
        return count > 1 ? 32u - (unsigned)__builtin_clz(count - 1) : 0;
}

static void place(struct kvm_cpuid_entry2 *entry, unsigned index, unsigned count)
{
        unsigned bits = bits_for(count);

        switch (entry->function) {
        case 1:
                entry->ebx = (entry->ebx & 0xff00) | MIN(1u << bits, 255u) << 16 | index << 24;
                entry->edx = count > 1 ? entry->edx | F1D_HTT : entry->edx & ~F1D_HTT;
                entry->ecx &= ~F1C_OSXSAVE; /* KVM follows CR4 itself */
                break;
        case 4:
        case 0x8000001d: /* caches: the third level is shared by all, the others by none */
                if (entry->eax & 0x1f) {
                        unsigned level = entry->eax >> 5 & 7;

                        entry->eax &= 0x00003fffu;
                        if (level >= 3)
                                entry->eax |= ((1u << bits) - 1) << 14;
                        if (entry->function == 4)
                                entry->eax |= ((1u << bits) - 1) << 26;
                }
                break;
        case 0xb:
        case 0x1f:
                entry->edx = index;
                if (entry->index == 0) {
                        entry->eax = 0;
                        entry->ebx = 1;
                        entry->ecx = 1 << 8; /* level 0: threads */
                } else if (entry->index == 1) {
                        entry->eax = bits;
                        entry->ebx = count;
                        entry->ecx = 2 << 8 | 1; /* level 1: cores */
                } else {
                        entry->eax = entry->ebx = 0;
                        entry->ecx = entry->index & 0xff;
                }
                break;
        case 0x80000001:
                entry->ecx = count > 1 ? entry->ecx | FX1C_CMP_LEGACY : entry->ecx & ~FX1C_CMP_LEGACY;
                break;
        case 0x80000008:
                entry->ecx = (count - 1) | bits << 12;
                break;
        case 0x8000001e:
                entry->eax = index;
                entry->ebx = index; /* core; one thread each */
                entry->ecx = 0;
                break;
        }
}

/* Adds an entry when the kernel gave none: topology leaves must have levels 0 and 1. */
static int ensure(struct kvm_cpuid2 *cpuid, uint32_t leaf, uint32_t subleaf, unsigned room)
{
        if (find(cpuid, leaf, subleaf))
                return 0;
        if (cpuid->nent >= room)
                return -ENOSPC;
        cpuid->entries[cpuid->nent++] = (struct kvm_cpuid_entry2){
                .function = leaf,
                .index = subleaf,
                .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        };
        return 0;
}

int kvm_cpuid_set(struct kvm_vcpu *vcpu, struct err *err)
{
        struct kvm *kvm = vcpu->kvm;
        unsigned room = kvm->cpuid->nent + 2;
        struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + room * sizeof(cpuid->entries[0]));
        const struct kvm_cpuid_entry2 *highest = find(kvm->cpuid, 0, 0);
        int r = 0;

        if (!cpuid)
                return err_nomem(err);
        memcpy(cpuid, kvm->cpuid, sizeof(*cpuid) + kvm->cpuid->nent * sizeof(cpuid->entries[0]));
        if (highest && highest->eax >= 0xb) {
                r = ensure(cpuid, 0xb, 0, room);
                if (r >= 0)
                        r = ensure(cpuid, 0xb, 1, room);
        }
        for (unsigned i = 0; i < cpuid->nent; i++)
                place(&cpuid->entries[i], vcpu->vcpu.index, kvm->count);
        if (r >= 0)
                r = kvm_ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid);
        free(cpuid);
        return r < 0 ? err_errno(err, r, "KVM does not take the processor's features") : 0;
}
