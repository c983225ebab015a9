/*
 * Model-specific registers.
 *
 * Most are members of the state; the table below names them, with the bits that may be set. The local APIC's own MSRs and KVM's
 * PV EOI go to the platform, the rest of KVM's to paravirt.c. Anything else is #GP(0), which operating systems expect of registers that are not there.
 *
 * Source: Intel SDM vol. 4; vol. 3A §12.11 (MTRRs), §17.17 (TSC).
 */
#include "cpu/x86/system.h"

#include <errno.h>
#include <stddef.h>

#include "base/log.h"
#include "cpu/x86/cpuid.h"
#include "cpu/x86/paravirt.h"

enum msr {
        MSR_PLATFORM_ID = 0x17, MSR_APIC_BASE = 0x1b, MSR_SMI_COUNT = 0x34, MSR_FEATURE_CONTROL = 0x3a, MSR_TSC = 0x10,
        MSR_TSC_ADJUST = 0x3b, MSR_SPEC_CTRL = 0x48, MSR_PRED_CMD = 0x49, MSR_PPIN_CTL = 0x4e, MSR_UCODE_WRITE = 0x79, MSR_UCODE_REV = 0x8b,
        MSR_PLATFORM_INFO = 0xce, MSR_MTRR_CAP = 0xfe, MSR_ARCH_CAPABILITIES = 0x10a, MSR_MISC_FEATURES = 0x140,
        MSR_SYSENTER_CS = 0x174, MSR_SYSENTER_ESP = 0x175, MSR_SYSENTER_EIP = 0x176, MSR_MCG_CAP = 0x179, MSR_MCG_STATUS = 0x17a,
        MSR_PERF_STATUS = 0x198, MSR_PERF_CTL = 0x199, MSR_MISC_ENABLE = 0x1a0, MSR_DEBUGCTL = 0x1d9, MSR_PAT = 0x277,
        MSR_MTRR_VAR = 0x200, MSR_MTRR_DEF_TYPE = 0x2ff, MSR_TSC_DEADLINE = 0x6e0, MSR_X2APIC = 0x800,
        MSR_EFER = 0xc0000080, MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_SFMASK,
        MSR_FS_BASE = 0xc0000100, MSR_GS_BASE, MSR_KERNEL_GS_BASE, MSR_TSC_AUX,
};

/* Variable MTRRs: 8 pairs; fixed ones and write-combining are supported (SDM vol. 3A §12.11.1). */
#define MTRR_CAP 0x508u
#define MTRR_VAR_COUNT 16

/*
 * Not open to: rogue data cache load (0), store bypass (4), MDS (5), machine-check on page size change (6), TAA (8), the MMIO
 * stale data family (13-15), BHI (20), PBRSB (24), GDS (26), RFDS (27), ITS (62); enhanced IBRS is there (1). All of it is true of an
 * interpreter, and a guest that knows it leaves its costly mitigations out.
 */
#define ARCH_CAPABILITIES (1ull << 0 | 1ull << 1 | 1ull << 4 | 1ull << 5 | 1ull << 6 | 1ull << 8 | 7ull << 13 | 1ull << 20 | \
                           1ull << 24 | 1ull << 26 | 1ull << 27 | 1ull << 62)

/* MSRs that are plain members of the state. */
static const struct plain {
        uint32_t index;
        uint32_t offset;
        uint64_t mask;  /* bits that may be 1 */
        bool canonical;
} plain_msrs[] = {
        { MSR_SPEC_CTRL, offsetof(struct x86_state, spec_ctrl), 7 | 1u << 10, false }, /* IBRS, STIBP, SSBD, BHI_DIS_S */
        { MSR_SYSENTER_CS, offsetof(struct x86_state, sysenter_cs), UINT32_MAX, false },
        { MSR_SYSENTER_ESP, offsetof(struct x86_state, sysenter_esp), UINT64_MAX, true },
        { MSR_SYSENTER_EIP, offsetof(struct x86_state, sysenter_eip), UINT64_MAX, true },
        { MSR_MISC_ENABLE, offsetof(struct x86_state, misc_enable), UINT64_MAX, false },
        { MSR_MTRR_DEF_TYPE, offsetof(struct x86_state, mtrr_def_type), 0xcff, false },
        { MSR_STAR, offsetof(struct x86_state, star), UINT64_MAX, false },
        { MSR_LSTAR, offsetof(struct x86_state, lstar), UINT64_MAX, true },
        { MSR_CSTAR, offsetof(struct x86_state, cstar), UINT64_MAX, true },
        { MSR_SFMASK, offsetof(struct x86_state, sfmask), UINT32_MAX, false },
        { MSR_FS_BASE, offsetof(struct x86_state, seg[X86_FS].base), UINT64_MAX, true },
        { MSR_GS_BASE, offsetof(struct x86_state, seg[X86_GS].base), UINT64_MAX, true },
        { MSR_KERNEL_GS_BASE, offsetof(struct x86_state, kernel_gs_base), UINT64_MAX, true },
        { MSR_TSC_AUX, offsetof(struct x86_state, tsc_aux), UINT32_MAX, false },
};

/* MSRs that read as a constant; writes are ignored, or #GP. */
static const struct constant {
        uint32_t index;
        bool write_ignored;
        uint64_t value;
} constant_msrs[] = {
        { MSR_PLATFORM_ID, false, 0 },
        { MSR_SMI_COUNT, false, 0 },
        { MSR_FEATURE_CONTROL, false, 1 }, /* locked, VMX off */
        { MSR_PPIN_CTL, false, 1 }, /* locked, no inventory number */
        { MSR_UCODE_WRITE, true, 0 },
        { MSR_UCODE_REV, true, 1ull << 32 },
        { MSR_PLATFORM_INFO, false, 0 },
        { MSR_MTRR_CAP, false, MTRR_CAP },
        { MSR_MISC_FEATURES, true, 0 },
        { MSR_MCG_CAP, false, 0 }, /* no banks */
        { MSR_MCG_STATUS, true, 0 },
        { MSR_PERF_STATUS, false, 0x1000 },
        { MSR_PERF_CTL, true, 0 },
        { MSR_DEBUGCTL, true, 0 },
};

static const struct plain *plain_find(uint32_t index)
{
        for (unsigned i = 0; i < ARRAY_SIZE(plain_msrs); i++)
                if (plain_msrs[i].index == index)
                        return &plain_msrs[i];
        return NULL;
}

static const struct constant *constant_find(uint32_t index)
{
        for (unsigned i = 0; i < ARRAY_SIZE(constant_msrs); i++)
                if (constant_msrs[i].index == index)
                        return &constant_msrs[i];
        return NULL;
}

static uint64_t *plain_at(struct x86_cpu *cpu, const struct plain *p)
{
        return (uint64_t *)((char *)&cpu->s + p->offset);
}

/* The fixed-range MTRRs in the order of mtrr_fixed: 64K_00000, 16K_80000, 16K_A0000, 4K_C0000 … 4K_F8000. */
static int mtrr_fixed_slot(uint32_t index)
{
        switch (index) {
        case 0x250:
                return 0;
        case 0x258:
        case 0x259:
                return (int)(index - 0x258 + 1);
        default:
                return index >= 0x268 && index <= 0x26f ? (int)(index - 0x268 + 3) : -1;
        }
}

static uint64_t *mtrr_at(struct x86_cpu *cpu, uint32_t index)
{
        int slot = mtrr_fixed_slot(index);

        if (slot >= 0)
                return &cpu->s.mtrr_fixed[slot];
        return index - MSR_MTRR_VAR < MTRR_VAR_COUNT ? &cpu->s.mtrr_var[index - MSR_MTRR_VAR] : NULL;
}

static bool memory_type_valid(unsigned type)
{
        return type <= 7 && type != 2 && type != 3;
}

static bool pat_valid(uint64_t value)
{
        for (unsigned i = 0; i < 8; i++)
                if (!memory_type_valid(value >> (i * 8) & 0xff))
                        return false;
        return true;
}

static bool is_apic(uint32_t index)
{
        return index == MSR_APIC_BASE || index == MSR_TSC_DEADLINE || index == PV_MSR_EOI_EN || (index & ~0xffu) == MSR_X2APIC;
}

static bool is_paravirt(uint32_t index)
{
        return index == PV_MSR_WALL_CLOCK_OLD || index == PV_MSR_SYSTEM_TIME_OLD || (index & ~0xffu) == PV_MSR_WALL_CLOCK;
}

/* The platform may take its time (timers, other processors): this one is outside the guest meanwhile. */
static int apic_read(struct x86_cpu *cpu, uint32_t index, uint64_t *value)
{
        int r;

        complex_leave(cpu);
        r = cpu->platform->apic_msr_read(cpu->ctx, index, value);
        complex_enter(cpu);
        if (r == 0 && index == MSR_APIC_BASE)
                cpu->s.apic_base = *value;
        return r;
}

static int apic_write(struct x86_cpu *cpu, uint32_t index, uint64_t value)
{
        int r;

        complex_leave(cpu);
        r = cpu->platform->apic_msr_write(cpu->ctx, index, value);
        complex_enter(cpu);
        if (r == 0 && index == MSR_APIC_BASE)
                cpu->s.apic_base = value;
        if (r == 0 && index == PV_MSR_EOI_EN)
                cpu->s.pv_eoi = value;
        return r;
}

/* Linux asks every processor for AMD's registers 0xc001xxxx; that is not worth a line. */
static int unknown(const char *what, uint32_t index)
{
        if ((index & 0xffff0000u) == 0xc0010000u)
                return -EPERM;
        log_guest("guest %s MSR 0x%x, which does not exist", what, index);
        return -EPERM;
}

int x86_msr_read(struct x86_cpu *cpu, uint32_t index, uint64_t *value)
{
        const struct plain *plain = plain_find(index);
        const struct constant *constant;
        uint64_t *mtrr;

        if (plain) {
                *value = *plain_at(cpu, plain);
                return 0;
        }
        if (is_apic(index))
                return apic_read(cpu, index, value);
        if (is_paravirt(index))
                return paravirt_msr_read(cpu, index, value);
        switch (index) {
        case MSR_TSC:
                *value = x86_tsc(cpu);
                return 0;
        case MSR_TSC_ADJUST:
                *value = cpu->s.tsc_adjust;
                return 0;
        case MSR_PAT:
                *value = cpu->s.pat;
                return 0;
        case MSR_EFER:
                *value = cpu->s.efer;
                return 0;
        case MSR_ARCH_CAPABILITIES:
                *value = ARCH_CAPABILITIES;
                return 0;
        default:
                break;
        }
        mtrr = mtrr_at(cpu, index);
        constant = constant_find(index);
        if (!mtrr && !constant)
                return unknown("reads", index);
        *value = mtrr ? *mtrr : constant->value;
        return 0;
}

static int write_efer(struct x86_cpu *cpu, uint64_t value)
{
        uint64_t possible = X86_EFER_LMA, old = cpu->s.efer;

        if (x86_has(cpu, X86_F_SYSCALL))
                possible |= X86_EFER_SCE;
        if (x86_has(cpu, X86_F_LM))
                possible |= X86_EFER_LME;
        if (x86_has(cpu, X86_F_NX))
                possible |= X86_EFER_NXE;
        if (value & ~possible || ((old ^ value) & X86_EFER_LME && cpu->s.cr0 & X86_CR0_PG))
                return -EPERM;
        cpu->s.efer = (value & ~X86_EFER_LMA) | (old & X86_EFER_LMA);
        if ((old ^ value) & X86_EFER_NXE)
                mmu_flush(cpu, true);
        x86_mode_changed(cpu);
        return 0;
}

static int write_plain(struct x86_cpu *cpu, const struct plain *p, uint64_t value)
{
        if (value & ~p->mask || (p->canonical && !x86_canonical(value)))
                return -EPERM;
        *plain_at(cpu, p) = value;
        return 0;
}

int x86_msr_write(struct x86_cpu *cpu, uint32_t index, uint64_t value)
{
        const struct plain *plain = plain_find(index);
        const struct constant *constant;
        uint64_t *mtrr;

        if (plain)
                return write_plain(cpu, plain, value);
        if (is_apic(index))
                return apic_write(cpu, index, value);
        if (is_paravirt(index))
                return paravirt_msr_write(cpu, index, value);
        switch (index) {
        case MSR_TSC: /* IA32_TSC_ADJUST moves by the same amount (SDM vol. 3B §17.17.3) */
                value -= x86_tsc(cpu);
                cpu->s.tsc_offset += value;
                cpu->s.tsc_adjust += value;
                paravirt_refresh(cpu);
                return 0;
        case MSR_TSC_ADJUST:
                cpu->s.tsc_offset += value - cpu->s.tsc_adjust;
                cpu->s.tsc_adjust = value;
                paravirt_refresh(cpu);
                return 0;
        case MSR_PAT:
                if (!pat_valid(value))
                        return -EPERM;
                cpu->s.pat = value;
                return 0;
        case MSR_EFER:
                return write_efer(cpu, value);
        case MSR_PRED_CMD:
                return value & ~1ull ? -EPERM : 0;
        default:
                break;
        }
        mtrr = mtrr_at(cpu, index);
        if (mtrr) {
                *mtrr = value;
                return 0;
        }
        constant = constant_find(index);
        if (!constant)
                return unknown("writes", index);
        return constant->write_ignored ? 0 : -EPERM;
}
