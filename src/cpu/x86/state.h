/*
 * The architectural state of one x86-64 processor: what every accelerator can give and take.
 *
 * The software processor lives in this struct; the KVM backend converts to and from it. Loaders fill it for the first
 * instruction, snapshots save it, a triple fault prints it.
 *
 * Source: Intel SDM volume 3A chapters 2-3, 11 (APIC is a device), AMD APM volume 2 chapters 3-4.
 */
#pragma once

#include "base/record.h"

enum x86_reg { X86_RAX, X86_RCX, X86_RDX, X86_RBX, X86_RSP, X86_RBP, X86_RSI, X86_RDI, X86_R8, X86_R15 = 15 };
enum x86_seg_name { X86_ES, X86_CS, X86_SS, X86_DS, X86_FS, X86_GS, X86_SEGS };

/* A segment register with its hidden part. */
struct x86_segment {
        uint16_t selector;
        /* Descriptor bits 40-55 as VMX lays them out: type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15, unusable 16. */
        uint32_t access;
        uint32_t limit; /* in bytes, granularity applied: the last valid offset */
        uint64_t base;
};

#define X86_ACCESS_TYPE 0x0fu
#define X86_ACCESS_S (1u << 4)
#define X86_ACCESS_DPL_SHIFT 5
#define X86_ACCESS_P (1u << 7)
#define X86_ACCESS_AVL (1u << 12)
#define X86_ACCESS_L (1u << 13)
#define X86_ACCESS_DB (1u << 14)
#define X86_ACCESS_G (1u << 15)
#define X86_ACCESS_UNUSABLE (1u << 16)

struct x86_table {
        uint64_t base;
        uint16_t limit;
};

union x86_vector {
        uint8_t u8[32];
        uint16_t u16[16];
        uint32_t u32[8];
        uint64_t u64[4];
        int8_t i8[32];
        int16_t i16[16];
        int32_t i32[8];
        int64_t i64[4];
        float f32[8];
        double f64[4];
} __attribute__((aligned(32)));

struct x86_fpu {
        uint16_t fcw;
        uint16_t fsw; /* TOP is in bits 11-13 */
        uint8_t ftw;  /* abridged: bit n set when physical register n is not empty */
        uint16_t fop;
        uint16_t fcs, fds;
        uint64_t fip, fdp;
        uint32_t mxcsr;
        /* Physical registers R0-R7, not ST(i): 80 bits each in the first 10 bytes. */
        uint8_t r[8][16] __attribute__((aligned(16)));
        union x86_vector ymm[16];
};

struct x86_state {
        /* 16 is always 0 and 17 holds the linear base of the running block in software (see insn.h); not architectural. */
        uint64_t gpr[18];
        uint64_t rip;
        uint64_t rflags;
        struct x86_segment seg[X86_SEGS];
        struct x86_segment ldtr, tr;
        struct x86_table gdtr, idtr;
        uint64_t cr0, cr2, cr3, cr4;
        uint64_t dr[8]; /* 4 and 5 unused */
        uint64_t efer;
        uint64_t xcr0;
        uint32_t pkru;
        struct x86_fpu fpu;

        uint64_t star, lstar, cstar, sfmask;
        uint64_t kernel_gs_base; /* fs and gs base are seg[].base */
        uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
        uint64_t pat;
        uint64_t tsc_offset; /* guest TSC - host TSC */
        uint64_t tsc_adjust, tsc_aux;
        uint64_t misc_enable, spec_ctrl;
        uint64_t mtrr_def_type, mtrr_fixed[11], mtrr_var[16];
        uint64_t apic_base;
        /* KVM paravirtual MSRs (Documentation/virt/kvm/x86/msr.rst). */
        uint64_t pv_wall_clock, pv_system_time, pv_steal_time, pv_eoi, pv_async_pf, pv_poll_control;

        bool halted;             /* HLT executed, nothing woke it yet */
        bool wait_for_sipi;      /* after INIT on an application processor */
        bool interrupt_shadow;   /* STI or MOV SS before this instruction */
        bool nmi_masked;         /* an NMI is being handled */
        bool nmi_pending;
        bool exception_pending;  /* to be delivered before the next instruction */
        uint8_t exception_vector;
        bool exception_has_error;
        uint32_t exception_error;
};

#define X86_CR0_PE (1ull << 0)
#define X86_CR0_MP (1ull << 1)
#define X86_CR0_EM (1ull << 2)
#define X86_CR0_TS (1ull << 3)
#define X86_CR0_ET (1ull << 4)
#define X86_CR0_NE (1ull << 5)
#define X86_CR0_WP (1ull << 16)
#define X86_CR0_AM (1ull << 18)
#define X86_CR0_NW (1ull << 29)
#define X86_CR0_CD (1ull << 30)
#define X86_CR0_PG (1ull << 31)

#define X86_CR4_VME (1ull << 0)
#define X86_CR4_PVI (1ull << 1)
#define X86_CR4_TSD (1ull << 2)
#define X86_CR4_DE (1ull << 3)
#define X86_CR4_PSE (1ull << 4)
#define X86_CR4_PAE (1ull << 5)
#define X86_CR4_MCE (1ull << 6)
#define X86_CR4_PGE (1ull << 7)
#define X86_CR4_PCE (1ull << 8)
#define X86_CR4_OSFXSR (1ull << 9)
#define X86_CR4_OSXMMEXCPT (1ull << 10)
#define X86_CR4_UMIP (1ull << 11)
#define X86_CR4_FSGSBASE (1ull << 16)
#define X86_CR4_PCIDE (1ull << 17)
#define X86_CR4_OSXSAVE (1ull << 18)
#define X86_CR4_SMEP (1ull << 20)
#define X86_CR4_SMAP (1ull << 21)
#define X86_CR4_PKE (1ull << 22)

#define X86_EFER_SCE (1ull << 0)
#define X86_EFER_LME (1ull << 8)
#define X86_EFER_LMA (1ull << 10)
#define X86_EFER_NXE (1ull << 11)

#define X86_FLAG_CF (1ull << 0)
#define X86_FLAG_FIXED (1ull << 1)
#define X86_FLAG_PF (1ull << 2)
#define X86_FLAG_AF (1ull << 4)
#define X86_FLAG_ZF (1ull << 6)
#define X86_FLAG_SF (1ull << 7)
#define X86_FLAG_TF (1ull << 8)
#define X86_FLAG_IF (1ull << 9)
#define X86_FLAG_DF (1ull << 10)
#define X86_FLAG_OF (1ull << 11)
#define X86_FLAG_IOPL (3ull << 12)
#define X86_FLAG_NT (1ull << 14)
#define X86_FLAG_RF (1ull << 16)
#define X86_FLAG_VM (1ull << 17)
#define X86_FLAG_AC (1ull << 18)
#define X86_FLAG_VIF (1ull << 19)
#define X86_FLAG_VIP (1ull << 20)
#define X86_FLAG_ID (1ull << 21)
#define X86_FLAGS_STATUS (X86_FLAG_CF | X86_FLAG_PF | X86_FLAG_AF | X86_FLAG_ZF | X86_FLAG_SF | X86_FLAG_OF)

enum x86_exception {
        X86_DE = 0, X86_DB = 1, X86_NMI = 2, X86_BP = 3, X86_OF_TRAP = 4, X86_BR = 5, X86_UD = 6, X86_NM = 7, X86_DF = 8,
        X86_TS = 10, X86_NP = 11, X86_SS_FAULT = 12, X86_GP = 13, X86_PF = 14, X86_MF = 16, X86_AC = 17, X86_MC = 18, X86_XM = 19,
};

/* The state after power-on or INIT (SDM vol. 3A table 10-1); bsp says whether it runs or waits for a SIPI. */
void x86_state_reset(struct x86_state *state, bool bsp);

/* One record named "x86-cpu". Loading checks what the processor relies on (reserved bits, canonical addresses, TOP). */
void x86_state_save(const struct x86_state *state, struct writer *out);
int x86_state_load(struct x86_state *state, struct cursor *in, struct err *err) _must_check_;

/* The registers as a person reads them, for a triple fault and the monitor; at most size_bytes with the final 0. */
void x86_state_format(const struct x86_state *state, char *text, size_t size_bytes);
