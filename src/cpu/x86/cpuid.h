/*
 * Processor models: what CPUID answers, and the features that decoding and control registers depend on.
 *
 * CPUID is true to what is implemented and to what the host's processor can execute natively for us (the SIMD families use the
 * host's own instructions). Source: Intel SDM vol. 2A "CPUID"; AMD APM vol. 3 appendix E; KVM: Documentation/virt/kvm/x86/cpuid.rst.
 */
#pragma once

#include "base/err.h"

/* leaf, subleaf, register (0 eax .. 3 edx) and bit, packed. */
#define X86_FEATURE(leaf, subleaf, reg, bit) ((unsigned)(((leaf) & 0xff) | ((leaf) >> 31) << 8 | (subleaf) << 9 | (reg) << 16 | (bit) << 18))

enum x86_feature {
        X86_F_FPU = X86_FEATURE(1u, 0u, 3u, 0u), X86_F_VME = X86_FEATURE(1u, 0u, 3u, 1u), X86_F_PSE = X86_FEATURE(1u, 0u, 3u, 3u),
        X86_F_TSC = X86_FEATURE(1u, 0u, 3u, 4u), X86_F_PAE = X86_FEATURE(1u, 0u, 3u, 6u), X86_F_CX8 = X86_FEATURE(1u, 0u, 3u, 8u),
        X86_F_SEP = X86_FEATURE(1u, 0u, 3u, 11u), X86_F_CMOV = X86_FEATURE(1u, 0u, 3u, 15u), X86_F_CLFSH = X86_FEATURE(1u, 0u, 3u, 19u),
        X86_F_MMX = X86_FEATURE(1u, 0u, 3u, 23u), X86_F_FXSR = X86_FEATURE(1u, 0u, 3u, 24u), X86_F_SSE = X86_FEATURE(1u, 0u, 3u, 25u),
        X86_F_SSE2 = X86_FEATURE(1u, 0u, 3u, 26u), X86_F_SSE3 = X86_FEATURE(1u, 0u, 2u, 0u), X86_F_PCLMUL = X86_FEATURE(1u, 0u, 2u, 1u),
        X86_F_SSSE3 = X86_FEATURE(1u, 0u, 2u, 9u), X86_F_FMA = X86_FEATURE(1u, 0u, 2u, 12u), X86_F_CX16 = X86_FEATURE(1u, 0u, 2u, 13u),
        X86_F_PCID = X86_FEATURE(1u, 0u, 2u, 17u), X86_F_SSE41 = X86_FEATURE(1u, 0u, 2u, 19u), X86_F_SSE42 = X86_FEATURE(1u, 0u, 2u, 20u),
        X86_F_X2APIC = X86_FEATURE(1u, 0u, 2u, 21u), X86_F_MOVBE = X86_FEATURE(1u, 0u, 2u, 22u), X86_F_POPCNT = X86_FEATURE(1u, 0u, 2u, 23u),
        X86_F_AES = X86_FEATURE(1u, 0u, 2u, 25u), X86_F_XSAVE = X86_FEATURE(1u, 0u, 2u, 26u), X86_F_AVX = X86_FEATURE(1u, 0u, 2u, 28u),
        X86_F_F16C = X86_FEATURE(1u, 0u, 2u, 29u), X86_F_RDRAND = X86_FEATURE(1u, 0u, 2u, 30u),
        X86_F_FSGSBASE = X86_FEATURE(7u, 0u, 1u, 0u), X86_F_BMI1 = X86_FEATURE(7u, 0u, 1u, 3u), X86_F_AVX2 = X86_FEATURE(7u, 0u, 1u, 5u),
        X86_F_SMEP = X86_FEATURE(7u, 0u, 1u, 7u), X86_F_BMI2 = X86_FEATURE(7u, 0u, 1u, 8u), X86_F_ERMS = X86_FEATURE(7u, 0u, 1u, 9u),
        X86_F_INVPCID = X86_FEATURE(7u, 0u, 1u, 10u), X86_F_RDSEED = X86_FEATURE(7u, 0u, 1u, 18u), X86_F_ADX = X86_FEATURE(7u, 0u, 1u, 19u),
        X86_F_SMAP = X86_FEATURE(7u, 0u, 1u, 20u), X86_F_CLFLUSHOPT = X86_FEATURE(7u, 0u, 1u, 23u), X86_F_CLWB = X86_FEATURE(7u, 0u, 1u, 24u),
        X86_F_UMIP = X86_FEATURE(7u, 0u, 2u, 2u), X86_F_PKU = X86_FEATURE(7u, 0u, 2u, 3u), X86_F_RDPID = X86_FEATURE(7u, 0u, 2u, 22u),
        X86_F_XSAVEOPT = X86_FEATURE(13u, 1u, 0u, 0u), X86_F_XSAVEC = X86_FEATURE(13u, 1u, 0u, 1u), X86_F_XGETBV1 = X86_FEATURE(13u, 1u, 0u, 2u),
        X86_F_LAHF = X86_FEATURE(0x80000001u, 0u, 2u, 0u), X86_F_LZCNT = X86_FEATURE(0x80000001u, 0u, 2u, 5u),
        X86_F_SYSCALL = X86_FEATURE(0x80000001u, 0u, 3u, 11u), X86_F_NX = X86_FEATURE(0x80000001u, 0u, 3u, 20u),
        X86_F_PDPE1GB = X86_FEATURE(0x80000001u, 0u, 3u, 26u), X86_F_RDTSCP = X86_FEATURE(0x80000001u, 0u, 3u, 27u),
        X86_F_LM = X86_FEATURE(0x80000001u, 0u, 3u, 29u),
};

struct x86_cpuid_entry {
        uint32_t leaf, subleaf;
        uint32_t reg[4]; /* eax, ebx, ecx, edx */
};

/* One for each machine. Topology and APIC IDs are filled in for a processor when it asks. */
struct x86_model {
        const char *name;
        unsigned cpus;
        unsigned entries;
        uint64_t tsc_frequency_hz;
        struct x86_cpuid_entry entry[64];
};

/* name: "x86-64-v1", "-v2", "-v3" or "max"; what the host lacks is left out with "max" and an error (-ENOTSUP, names it) else. */
int x86_model_init(struct x86_model *model, const char *name, unsigned cpus, struct err *err) _must_check_;
/* "max, x86-64-v1, …" for help and errors. */
const char *x86_model_names(void);
bool x86_model_has(const struct x86_model *model, enum x86_feature feature);
/* CPUID as processor index would answer with its state's XCR0 and CR4 (OSXSAVE). */
void x86_model_cpuid(const struct x86_model *model, unsigned index, uint64_t cr4, uint64_t xcr0, uint32_t leaf, uint32_t subleaf, uint32_t reg[4]);
/* The host's TSC frequency: from CPUID 0x15/0x16, the kernel's pvclock, or measured against CLOCK_MONOTONIC. */
uint64_t x86_host_tsc_hz(void);
