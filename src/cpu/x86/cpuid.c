/*
 * Processor models: what CPUID answers.
 *
 * A model is a list of features. Those that our own code implements (system instructions, integer instructions) are always there;
 * the SIMD families run the host's instructions, so they are offered when the host has them. "max" is all of that; the numbered
 * models are the levels of the x86-64 psABI, with the system features an operating system expects of any processor of today.
 *
 * Family, model and stepping are those of no processor: lists of affected processors do not name it, and with
 * IA32_ARCH_CAPABILITIES (msr.c) a guest leaves out mitigations that cost much and protect nothing here. Nor may it be one that
 * programs know to have more than is offered: a function with versions for architectures, as GCC makes them (target_clones), goes
 * by the model's number alone.
 *
 * Source: Intel SDM vol. 2A "CPUID", tables 3-8 to 3-21; x86-64 psABI §3.1.1 (levels); KVM: Documentation/virt/kvm/x86/cpuid.rst.
 */
#include "cpu/x86/cpuid.h"

#include <cpuid.h>
#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "cpu/x86/cpu.h"
#include "cpu/x86/system.h"

#define SIGNATURE 0x00010681u /* family 6, model 0x18, stepping 1 */
#define LINEAR_BITS 48u

#define LEAF_KVM 0x40000000u
#define LEAF_KVM_MAX 0x40000010u
#define LEAF_EXTENDED_MAX 0x80000008u
#define LEAF_BASIC_MAX 0x16u

enum level { LEVEL_V1, LEVEL_V2, LEVEL_V3, LEVEL_MAX };

static const struct {
        const char *name;
        enum level level;
} models[] = {
        { "max", LEVEL_MAX },
        { "x86-64-v1", LEVEL_V1 },
        { "x86-64-v2", LEVEL_V2 },
        { "x86-64-v3", LEVEL_V3 },
};

/* Features with no name in enum x86_feature: nothing asks for them but CPUID. */
#define F_DE X86_FEATURE(1u, 0u, 3u, 2u)
#define F_MSR X86_FEATURE(1u, 0u, 3u, 5u)
#define F_MCE X86_FEATURE(1u, 0u, 3u, 7u)
#define F_APIC X86_FEATURE(1u, 0u, 3u, 9u)
#define F_MTRR X86_FEATURE(1u, 0u, 3u, 12u)
#define F_PGE X86_FEATURE(1u, 0u, 3u, 13u)
#define F_MCA X86_FEATURE(1u, 0u, 3u, 14u)
#define F_PAT X86_FEATURE(1u, 0u, 3u, 16u)
#define F_PSE36 X86_FEATURE(1u, 0u, 3u, 17u)
#define F_SELF_SNOOP X86_FEATURE(1u, 0u, 3u, 27u)
#define F_TSC_DEADLINE X86_FEATURE(1u, 0u, 2u, 24u)
#define F_HYPERVISOR X86_FEATURE(1u, 0u, 2u, 31u)
#define F_TSC_ADJUST X86_FEATURE(7u, 0u, 1u, 1u)
#define F_FSRM X86_FEATURE(7u, 0u, 3u, 4u)
#define F_MD_CLEAR X86_FEATURE(7u, 0u, 3u, 10u)
#define F_SPEC_CTRL X86_FEATURE(7u, 0u, 3u, 26u)
#define F_STIBP X86_FEATURE(7u, 0u, 3u, 27u)
#define F_ARCH_CAPABILITIES X86_FEATURE(7u, 0u, 3u, 29u)
#define F_SSBD X86_FEATURE(7u, 0u, 3u, 31u)
#define F_BHI_CTRL X86_FEATURE(7u, 2u, 3u, 4u) /* BHI_DIS_S: a bit to set in place of a loop at each system call */
#define F_ARAT X86_FEATURE(6u, 0u, 0u, 2u)
#define F_PREFETCHW X86_FEATURE(0x80000001u, 0u, 2u, 8u)
#define F_INVARIANT_TSC X86_FEATURE(0x80000007u, 0u, 3u, 8u)

/* Where a feature comes from: from our own code, or from the host. */
static const struct {
        uint8_t level; /* the lowest that has it */
        bool host;
        unsigned feature;
} features[] = {
        { LEVEL_V1, false, X86_F_FPU }, { LEVEL_V1, false, F_DE }, { LEVEL_V1, false, X86_F_PSE }, { LEVEL_V1, false, X86_F_TSC },
        { LEVEL_V1, false, F_MSR }, { LEVEL_V1, false, X86_F_PAE }, { LEVEL_V1, false, F_MCE }, { LEVEL_V1, false, X86_F_CX8 },
        { LEVEL_V1, false, F_APIC }, { LEVEL_V1, false, X86_F_SEP }, { LEVEL_V1, false, F_MTRR }, { LEVEL_V1, false, F_PGE },
        { LEVEL_V1, false, F_MCA }, { LEVEL_V1, false, X86_F_CMOV }, { LEVEL_V1, false, F_PAT }, { LEVEL_V1, false, F_PSE36 },
        { LEVEL_V1, false, X86_F_CLFSH }, { LEVEL_V1, true, X86_F_MMX }, { LEVEL_V1, true, X86_F_FXSR }, { LEVEL_V1, true, X86_F_SSE },
        { LEVEL_V1, true, X86_F_SSE2 }, { LEVEL_V1, false, F_SELF_SNOOP },
        { LEVEL_V1, false, X86_F_PCID }, { LEVEL_V1, false, X86_F_X2APIC }, { LEVEL_V1, false, F_TSC_DEADLINE },
        { LEVEL_V1, false, F_HYPERVISOR }, { LEVEL_V1, false, X86_F_RDRAND },
        { LEVEL_V1, false, X86_F_FSGSBASE }, { LEVEL_V1, false, F_TSC_ADJUST }, { LEVEL_V1, false, X86_F_SMEP },
        { LEVEL_V1, false, X86_F_ERMS }, { LEVEL_V1, false, X86_F_INVPCID }, { LEVEL_V1, false, X86_F_RDSEED },
        { LEVEL_V1, false, X86_F_SMAP }, { LEVEL_V1, false, X86_F_UMIP }, { LEVEL_V1, false, F_FSRM }, { LEVEL_V1, false, F_MD_CLEAR },
        { LEVEL_V1, false, F_SPEC_CTRL }, { LEVEL_V1, false, F_STIBP }, { LEVEL_V1, false, F_ARCH_CAPABILITIES },
        { LEVEL_V1, false, F_SSBD }, { LEVEL_V1, false, F_BHI_CTRL }, { LEVEL_V1, false, F_ARAT },
        { LEVEL_V1, false, X86_F_SYSCALL }, { LEVEL_V1, false, X86_F_NX },
        { LEVEL_V1, false, X86_F_PDPE1GB }, { LEVEL_V1, false, X86_F_RDTSCP }, { LEVEL_V1, false, X86_F_LM },
        { LEVEL_V1, false, F_INVARIANT_TSC },

        { LEVEL_V2, true, X86_F_SSE3 }, { LEVEL_V2, true, X86_F_SSSE3 }, { LEVEL_V2, false, X86_F_CX16 }, { LEVEL_V2, true, X86_F_SSE41 },
        { LEVEL_V2, true, X86_F_SSE42 }, { LEVEL_V2, false, X86_F_POPCNT }, { LEVEL_V2, false, X86_F_LAHF },

        { LEVEL_V3, true, X86_F_FMA }, { LEVEL_V3, false, X86_F_MOVBE }, { LEVEL_V3, true, X86_F_XSAVE }, { LEVEL_V3, true, X86_F_AVX },
        { LEVEL_V3, true, X86_F_F16C }, { LEVEL_V3, false, X86_F_BMI1 }, { LEVEL_V3, true, X86_F_AVX2 }, { LEVEL_V3, false, X86_F_BMI2 },
        { LEVEL_V3, false, X86_F_LZCNT },

        { LEVEL_MAX, true, X86_F_PCLMUL }, { LEVEL_MAX, true, X86_F_AES }, { LEVEL_MAX, false, X86_F_ADX },
        { LEVEL_MAX, false, X86_F_CLFLUSHOPT }, { LEVEL_MAX, false, X86_F_CLWB }, { LEVEL_MAX, false, X86_F_RDPID },
        { LEVEL_MAX, true, X86_F_XSAVEOPT }, { LEVEL_MAX, true, X86_F_XSAVEC }, { LEVEL_MAX, true, X86_F_XGETBV1 },
        { LEVEL_MAX, false, F_PREFETCHW },
};

static uint32_t feature_leaf(unsigned feature)
{
        return (feature & 0xff) | (feature >> 8 & 1) << 31;
}

static uint32_t feature_subleaf(unsigned feature)
{
        return feature >> 9 & 0x7f;
}

static unsigned feature_reg(unsigned feature)
{
        return feature >> 16 & 3;
}

static uint32_t feature_bit(unsigned feature)
{
        return 1u << (feature >> 18 & 31);
}

static bool host_has(unsigned feature)
{
        uint32_t reg[4] = { 0 };

        if (!__get_cpuid_count(feature_leaf(feature), feature_subleaf(feature), &reg[0], &reg[1], &reg[2], &reg[3]))
                return false;
        return reg[feature_reg(feature)] & feature_bit(feature);
}

const char *x86_model_names(void)
{
        return "max, x86-64-v1, x86-64-v2, x86-64-v3";
}

/* ---- building ---- */

/* The entry of leaf and subleaf, made when it is not there yet. */
static uint32_t *entry(struct x86_model *model, uint32_t leaf, uint32_t subleaf)
{
        for (unsigned i = 0; i < model->entries; i++)
                if (model->entry[i].leaf == leaf && model->entry[i].subleaf == subleaf)
                        return model->entry[i].reg;
        if (model->entries == ARRAY_SIZE(model->entry))
                return model->entry[model->entries - 1].reg;
        model->entry[model->entries] = (struct x86_cpuid_entry){ .leaf = leaf, .subleaf = subleaf };
        return model->entry[model->entries++].reg;
}

static void set_entry(struct x86_model *model, uint32_t leaf, uint32_t subleaf, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
        uint32_t *reg = entry(model, leaf, subleaf);

        reg[0] = a;
        reg[1] = b;
        reg[2] = c;
        reg[3] = d;
}

static uint32_t four(const char *text)
{
        uint32_t value;

        memcpy(&value, text, 4);
        return value;
}

static int add_features(struct x86_model *model, enum level level, struct err *err)
{
        for (unsigned i = 0; i < ARRAY_SIZE(features); i++) {
                unsigned f = features[i].feature;

                if (features[i].level > level)
                        continue;
                if (features[i].host && !host_has(f)) {
                        if (level == LEVEL_MAX)
                                continue;
                        return err_set(err, -ENOTSUP, "cpu model %s needs CPUID leaf 0x%x %s bit %u, which this host's processor lacks; use --cpu max",
                                       model->name, feature_leaf(f), &"eax\0ebx\0ecx\0edx"[feature_reg(f) * 4], f >> 18 & 31);
                }
                entry(model, feature_leaf(f), feature_subleaf(f))[feature_reg(f)] |= feature_bit(f);
        }
        return 0;
}

/* AVX without XSAVE, and what builds on AVX without AVX, do not exist. */
static void drop_orphans(struct x86_model *model)
{
        static const unsigned on_avx[] = { X86_F_FMA, X86_F_F16C, X86_F_AVX2 };
        static const unsigned on_xsave[] = { X86_F_AVX, X86_F_XSAVEOPT, X86_F_XSAVEC, X86_F_XGETBV1 };

        if (!x86_model_has(model, X86_F_XSAVE))
                for (unsigned i = 0; i < ARRAY_SIZE(on_xsave); i++)
                        entry(model, feature_leaf(on_xsave[i]), feature_subleaf(on_xsave[i]))[feature_reg(on_xsave[i])] &= ~feature_bit(on_xsave[i]);
        if (!x86_model_has(model, X86_F_AVX))
                for (unsigned i = 0; i < ARRAY_SIZE(on_avx); i++)
                        entry(model, feature_leaf(on_avx[i]), feature_subleaf(on_avx[i]))[feature_reg(on_avx[i])] &= ~feature_bit(on_avx[i]);
}

static void add_caches(struct x86_model *model)
{
        set_entry(model, 2, 0, 0x76036301, 0x00f0b5ff, 0, 0x00c30000);
        /* type | level << 5 | self-initialising; ways - 1, partitions - 1, line - 1; sets - 1 */
        set_entry(model, 4, 0, 0x121, 7u << 22 | 63, 63, 0);         /* L1 data, 32 KiB */
        set_entry(model, 4, 1, 0x122, 7u << 22 | 63, 63, 0);         /* L1 code, 32 KiB */
        set_entry(model, 4, 2, 0x143, 15u << 22 | 63, 1023, 0);      /* L2, 1 MiB */
        set_entry(model, 4, 3, 0x163, 15u << 22 | 63, 16383, 1u << 2); /* L3, 16 MiB, shared */
        set_entry(model, 0x80000006, 0, 0, 0, 1024u << 16 | 8u << 12 | 64, 0);
}

static void add_xsave(struct x86_model *model)
{
        uint32_t *reg;

        if (!x86_model_has(model, X86_F_XSAVE))
                return;
        reg = entry(model, 0xd, 0);
        reg[0] = x86_model_has(model, X86_F_AVX) ? 7 : 3;
        reg[2] = x86_model_has(model, X86_F_AVX) ? 832 : 576; /* for everything; EBX follows XCR0 */
        entry(model, 0xd, 1);
        if (x86_model_has(model, X86_F_AVX))
                set_entry(model, 0xd, 2, 256, 576, 0, 0);
}

enum kvm_feature {
        KVM_CLOCKSOURCE = 1u << 0, KVM_NOP_IO_DELAY = 1u << 1, KVM_CLOCKSOURCE2 = 1u << 3, KVM_STEAL_TIME = 1u << 5, KVM_PV_EOI = 1u << 6,
        KVM_PV_UNHALT = 1u << 7, KVM_PV_TLB_FLUSH = 1u << 9, KVM_PV_SEND_IPI = 1u << 11, KVM_PV_SCHED_YIELD = 1u << 13,
        KVM_CLOCKSOURCE_STABLE = 1u << 24,
};

static void add_hypervisor(struct x86_model *model)
{
        set_entry(model, LEAF_KVM, 0, LEAF_KVM_MAX, four("KVMK"), four("VMKV"), four("M\0\0"));
        set_entry(model, LEAF_KVM + 1, 0,
                  KVM_CLOCKSOURCE | KVM_NOP_IO_DELAY | KVM_CLOCKSOURCE2 | KVM_STEAL_TIME | KVM_PV_EOI | KVM_PV_UNHALT | KVM_PV_TLB_FLUSH |
                          KVM_PV_SEND_IPI | KVM_PV_SCHED_YIELD | KVM_CLOCKSOURCE_STABLE,
                  0, 0, 0);
        /* TSC and APIC bus frequency in kHz; the bus runs at 1 GHz. */
        set_entry(model, LEAF_KVM_MAX, 0, (uint32_t)(model->tsc_frequency_hz / 1000), 1000000, 0, 0);
}

static void add_brand(struct x86_model *model)
{
        char brand[48] = "Virta software processor (";

        snprintf(brand + strlen(brand), sizeof(brand) - strlen(brand), "%s)", model->name);
        for (uint32_t i = 0; i < 3; i++)
                set_entry(model, 0x80000002 + i, 0, four(brand + i * 16), four(brand + i * 16 + 4), four(brand + i * 16 + 8),
                          four(brand + i * 16 + 12));
}

static void add_frequencies(struct x86_model *model)
{
        uint32_t mhz = (uint32_t)(model->tsc_frequency_hz / 1000000);

        /* TSC = crystal * numerator / denominator with a crystal of 1 kHz steps: numerator in kHz over 1000 kHz. */
        set_entry(model, 0x15, 0, 1000, (uint32_t)(model->tsc_frequency_hz / 1000), 1000000, 0);
        set_entry(model, 0x16, 0, mhz, mhz, 100, 0);
}

int x86_model_init(struct x86_model *model, const char *name, unsigned cpus, struct err *err)
{
        int known = -1, r;

        for (unsigned i = 0; i < ARRAY_SIZE(models); i++)
                if (strcmp(models[i].name, name) == 0)
                        known = (int)i;
        if (known < 0)
                return err_set(err, -EINVAL, "cpu model \"%s\" is not one of %s", name, x86_model_names());
        if (cpus < 1 || cpus > 255)
                return err_set(err, -EINVAL, "%u processors are not between 1 and 255", cpus);
        *model = (struct x86_model){ .name = models[known].name, .cpus = cpus, .tsc_frequency_hz = x86_host_tsc_hz() };
        set_entry(model, 0, 0, LEAF_BASIC_MAX, four("Genu"), four("ntel"), four("ineI"));
        set_entry(model, 1, 0, SIGNATURE, 0, 0, 0);
        r = add_features(model, models[known].level, err);
        if (r < 0)
                return r;
        drop_orphans(model);
        if (cpus > 1)
                entry(model, 1, 0)[3] |= 1u << 28; /* HTT: the APIC ID field means something */
        entry(model, 7, 0)[0] = 2; /* the last subleaf */
        add_caches(model);
        add_xsave(model);
        add_frequencies(model);
        add_hypervisor(model);
        set_entry(model, 0x80000000, 0, LEAF_EXTENDED_MAX, 0, 0, 0);
        add_brand(model);
        set_entry(model, 0x80000008, 0, X86_PHYSICAL_BITS | LINEAR_BITS << 8, 0, 0, 0);
        return 0;
}

/* ---- answering ---- */

static const struct x86_cpuid_entry *find(const struct x86_model *model, uint32_t leaf, uint32_t subleaf)
{
        for (unsigned i = 0; i < model->entries; i++)
                if (model->entry[i].leaf == leaf && model->entry[i].subleaf == subleaf)
                        return &model->entry[i];
        return NULL;
}

bool x86_model_has(const struct x86_model *model, enum x86_feature feature)
{
        const struct x86_cpuid_entry *e = find(model, feature_leaf(feature), feature_subleaf(feature));

        return e && e->reg[feature_reg(feature)] & feature_bit(feature);
}

bool x86_has(const struct x86_cpu *cpu, unsigned feature)
{
        return x86_model_has(cpu->model, feature);
}

static bool uses_subleaf(uint32_t leaf)
{
        return leaf == 4 || leaf == 7 || leaf == 0xb || leaf == 0xd;
}

/* Bits of an APIC ID that number the processors of the one package. */
static unsigned package_bits(const struct x86_model *model)
{
        return model->cpus > 1 ? 32 - (unsigned)__builtin_clz(model->cpus - 1) : 0;
}

static void topology(const struct x86_model *model, unsigned index, uint32_t subleaf, uint32_t reg[4])
{
        reg[2] = subleaf & 0xff;
        reg[3] = index;
        if (subleaf == 0) { /* threads of a core: one */
                reg[1] = 1;
                reg[2] |= 1u << 8;
        } else if (subleaf == 1) {
                reg[0] = package_bits(model);
                reg[1] = model->cpus;
                reg[2] |= 2u << 8;
        }
}

/* What depends on the processor that asks. */
static void fill_in(const struct x86_model *model, unsigned index, uint64_t cr4, uint64_t xcr0, uint32_t leaf, uint32_t subleaf, uint32_t reg[4])
{
        switch (leaf) {
        case 1: /* APIC ID, logical processors, CLFLUSH line of 8 * 8 bytes */
                reg[1] = index << 24 | (1u << package_bits(model)) << 16 | 8u << 8;
                if (cr4 & X86_CR4_OSXSAVE)
                        reg[2] |= 1u << 27;
                break;
        case 4: /* cores of the package; who shares L3 */
                if (!(reg[0] & 31))
                        break;
                reg[0] |= ((1u << package_bits(model)) - 1) << 26;
                if ((reg[0] >> 5 & 7) == 3)
                        reg[0] |= ((1u << package_bits(model)) - 1) << 14;
                break;
        case 0xd:
                if (subleaf == 0 && reg[0])
                        reg[1] = xcr0 & 4 ? 832 : 576;
                else if (subleaf == 1 && reg[0])
                        reg[1] = xcr0 & 4 ? 832 : 576; /* compacted: the same, as there is one extended component */
                break;
        default:
                break;
        }
}

void x86_model_cpuid(const struct x86_model *model, unsigned index, uint64_t cr4, uint64_t xcr0, uint32_t leaf, uint32_t subleaf, uint32_t reg[4])
{
        const struct x86_cpuid_entry *e;

        /* Beyond the last leaf: the answer of the last basic one (SDM vol. 2A "CPUID"). */
        if (leaf > LEAF_BASIC_MAX && (leaf < LEAF_KVM || leaf > LEAF_KVM_MAX) && (leaf < 0x80000000u || leaf > LEAF_EXTENDED_MAX))
                leaf = LEAF_BASIC_MAX;
        memset(reg, 0, 4 * sizeof(reg[0]));
        if (leaf == 0xb) {
                topology(model, index, subleaf, reg);
                return;
        }
        e = find(model, leaf, uses_subleaf(leaf) ? subleaf : 0);
        if (!e)
                return;
        memcpy(reg, e->reg, sizeof(e->reg));
        fill_in(model, index, cr4, xcr0, leaf, subleaf, reg);
}

/* ---- the host's TSC ---- */

/* CPUID 0x15: crystal clock and ratio; 0x40000010: what a hypervisor says. */
static uint64_t tsc_hz_from_cpuid(void)
{
        uint32_t a, b, c, d;

        if (__get_cpuid(0x15, &a, &b, &c, &d) && a && b && c)
                return (uint64_t)c * b / a;
        __cpuid(1, a, b, c, d);
        if (!(c >> 31))
                return 0;
        __cpuid(LEAF_KVM, a, b, c, d);
        if (a < LEAF_KVM_MAX || a > LEAF_KVM + 0xff)
                return 0;
        __cpuid(LEAF_KVM_MAX, a, b, c, d);
        return a > 100000 && a < 10000000 ? (uint64_t)a * 1000 : 0;
}

static uint64_t now_ns(void)
{
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC_RAW, &t);
        return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* One pair of readings close together: the best of a few, in case the thread is taken off the processor in between. */
static void read_pair(uint64_t *tsc, uint64_t *ns)
{
        uint64_t best = UINT64_MAX;

        for (unsigned i = 0; i < 16; i++) {
                uint64_t before = __builtin_ia32_rdtsc(), t = now_ns(), after = __builtin_ia32_rdtsc();

                if (after - before >= best)
                        continue;
                best = after - before;
                *tsc = before + best / 2;
                *ns = t;
        }
}

static uint64_t tsc_hz_measured(void)
{
        const struct timespec pause = { .tv_nsec = 20000000 };
        uint64_t tsc0 = 0, ns0 = 0, tsc1 = 0, ns1 = 0;

        read_pair(&tsc0, &ns0);
        nanosleep(&pause, NULL);
        read_pair(&tsc1, &ns1);
        if (ns1 <= ns0)
                return 1000000000u;
        return (uint64_t)((unsigned __int128)(tsc1 - tsc0) * 1000000000u / (ns1 - ns0));
}

uint64_t x86_host_tsc_hz(void)
{
        uint64_t hz = tsc_hz_from_cpuid();

        return hz ? hz : tsc_hz_measured();
}
