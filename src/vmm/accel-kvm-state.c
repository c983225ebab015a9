/*
 * A vCPU's state under KVM: to and from struct x86_state, and whole as a record.
 *
 * The record "kvm-vcpu" holds an "x86-cpu" record, which a person or another accelerator can read, and beside it what KVM alone
 * knows: the raw XSAVE area, every MSR of the kernel's list, the local APIC, pending events, MP state, the guest's TSC and (with
 * processor 0) kvm-clock. Reset is a load of the record that was taken when the vCPU was made, except for the TSC.
 *
 * Source: Linux Documentation/virt/kvm/api.rst; Intel SDM vol. 1 §13.4 (XSAVE area), vol. 4 (MSRs).
 */
#include <errno.h>
#include <inttypes.h>

#include "vmm/accel-kvm.h"

#define RECORD_NAME "kvm-vcpu"
#define RECORD_VERSION 1
#define MSRS_MAX 1024u

#define MSR_TSC 0x10u
#define MSR_TSC_ADJUST 0x3bu
#define MSR_SPEC_CTRL 0x48u
#define MSR_SYSENTER_CS 0x174u
#define MSR_SYSENTER_ESP 0x175u
#define MSR_SYSENTER_EIP 0x176u
#define MSR_MISC_ENABLE 0x1a0u
#define MSR_PAT 0x277u
#define MSR_MTRR_DEF_TYPE 0x2ffu
#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_STAR 0xc0000081u
#define MSR_LSTAR 0xc0000082u
#define MSR_CSTAR 0xc0000083u
#define MSR_SFMASK 0xc0000084u
#define MSR_KERNEL_GS_BASE 0xc0000102u
#define MSR_TSC_AUX 0xc0000103u
#define MSR_KVM_WALL_CLOCK 0x4b564d00u
#define MSR_KVM_SYSTEM_TIME 0x4b564d01u
#define MSR_KVM_ASYNC_PF 0x4b564d02u
#define MSR_KVM_STEAL_TIME 0x4b564d03u
#define MSR_KVM_PV_EOI 0x4b564d04u
#define MSR_KVM_POLL_CONTROL 0x4b564d05u

static const struct {
        uint32_t index;
        size_t offset;
} state_msrs[] = {
#define MSR(index, member)                                \
        {                                                 \
                index, offsetof(struct x86_state, member) \
        }
        MSR(MSR_TSC_ADJUST, tsc_adjust),
        MSR(MSR_SPEC_CTRL, spec_ctrl),
        MSR(MSR_SYSENTER_CS, sysenter_cs),
        MSR(MSR_SYSENTER_ESP, sysenter_esp),
        MSR(MSR_SYSENTER_EIP, sysenter_eip),
        MSR(MSR_MISC_ENABLE, misc_enable),
        MSR(MSR_PAT, pat),
        MSR(MSR_MTRR_DEF_TYPE, mtrr_def_type),
        MSR(0x250, mtrr_fixed[0]),
        MSR(0x258, mtrr_fixed[1]),
        MSR(0x259, mtrr_fixed[2]),
        MSR(0x268, mtrr_fixed[3]),
        MSR(0x269, mtrr_fixed[4]),
        MSR(0x26a, mtrr_fixed[5]),
        MSR(0x26b, mtrr_fixed[6]),
        MSR(0x26c, mtrr_fixed[7]),
        MSR(0x26d, mtrr_fixed[8]),
        MSR(0x26e, mtrr_fixed[9]),
        MSR(0x26f, mtrr_fixed[10]),
        MSR(0x200, mtrr_var[0]),
        MSR(0x201, mtrr_var[1]),
        MSR(0x202, mtrr_var[2]),
        MSR(0x203, mtrr_var[3]),
        MSR(0x204, mtrr_var[4]),
        MSR(0x205, mtrr_var[5]),
        MSR(0x206, mtrr_var[6]),
        MSR(0x207, mtrr_var[7]),
        MSR(0x208, mtrr_var[8]),
        MSR(0x209, mtrr_var[9]),
        MSR(0x20a, mtrr_var[10]),
        MSR(0x20b, mtrr_var[11]),
        MSR(0x20c, mtrr_var[12]),
        MSR(0x20d, mtrr_var[13]),
        MSR(0x20e, mtrr_var[14]),
        MSR(0x20f, mtrr_var[15]),
        MSR(MSR_STAR, star),
        MSR(MSR_LSTAR, lstar),
        MSR(MSR_CSTAR, cstar),
        MSR(MSR_SFMASK, sfmask),
        MSR(MSR_KERNEL_GS_BASE, kernel_gs_base),
        MSR(MSR_TSC_AUX, tsc_aux),
        MSR(MSR_KVM_WALL_CLOCK, pv_wall_clock),
        MSR(MSR_KVM_SYSTEM_TIME, pv_system_time),
        MSR(MSR_KVM_ASYNC_PF, pv_async_pf),
        MSR(MSR_KVM_STEAL_TIME, pv_steal_time),
        MSR(MSR_KVM_PV_EOI, pv_eoi),
        MSR(MSR_KVM_POLL_CONTROL, pv_poll_control),
#undef MSR
};

static uint64_t *state_msr(struct x86_state *state, unsigned i)
{
        return (uint64_t *)((char *)state + state_msrs[i].offset);
}

union one_msr {
        struct kvm_msrs list; /* of one entry, which has its room here: */
        uint8_t room[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)];
};

int kvm_msr_read(struct kvm_vcpu *vcpu, uint32_t index, uint64_t *value)
{
        union one_msr msr = { .room = { 0 } };
        int r;

        msr.list.nmsrs = 1;
        msr.list.entries[0].index = index;
        r = kvm_ioctl(vcpu->fd, KVM_GET_MSRS, &msr);
        if (r == 1)
                *value = msr.list.entries[0].data;
        return r == 1 ? 0 : r < 0 ? r : -ENOENT;
}

int kvm_msr_write(struct kvm_vcpu *vcpu, uint32_t index, uint64_t value)
{
        union one_msr msr = { .room = { 0 } };
        int r;

        msr.list.nmsrs = 1;
        msr.list.entries[0].index = index;
        msr.list.entries[0].data = value;
        r = kvm_ioctl(vcpu->fd, KVM_SET_MSRS, &msr);
        return r == 1 ? 0 : r < 0 ? r : -ENOENT;
}

int kvm_tsc_offset(struct kvm_vcpu *vcpu, uint64_t *offset)
{
        struct kvm_device_attr attr = {
                .group = KVM_VCPU_TSC_CTRL,
                .attr = KVM_VCPU_TSC_OFFSET,
                .addr = (uintptr_t)offset,
        };

        if (!vcpu->kvm->has_tsc_offset)
                return -ENOTSUP;
        return kvm_ioctl(vcpu->fd, KVM_GET_DEVICE_ATTR, &attr);
}

int kvm_set_tsc_offset(struct kvm_vcpu *vcpu, uint64_t offset)
{
        struct kvm_device_attr attr = {
                .group = KVM_VCPU_TSC_CTRL,
                .attr = KVM_VCPU_TSC_OFFSET,
                .addr = (uintptr_t)&offset,
        };

        if (!vcpu->kvm->has_tsc_offset)
                return -ENOTSUP;
        return kvm_ioctl(vcpu->fd, KVM_SET_DEVICE_ATTR, &attr);
}

/* The guest's TSC while the machine is paused. */
static int paused_tsc(struct kvm_vcpu *vcpu, uint64_t *tsc)
{
        uint64_t offset;

        if (kvm_tsc_offset(vcpu, &offset) < 0)
                return kvm_msr_read(vcpu, MSR_TSC, tsc);
        *tsc = vcpu->kvm->paused_tsc + offset;
        return 0;
}

static int set_paused_tsc(struct kvm_vcpu *vcpu, uint64_t tsc)
{
        int r = kvm_set_tsc_offset(vcpu, tsc - vcpu->kvm->paused_tsc);

        return r == -ENOTSUP ? kvm_msr_write(vcpu, MSR_TSC, tsc) : r;
}

/* ---- struct kvm_regs and kvm_sregs ---- */

static const size_t gpr_offsets[16] = {
        offsetof(struct kvm_regs, rax), offsetof(struct kvm_regs, rcx), offsetof(struct kvm_regs, rdx),
        offsetof(struct kvm_regs, rbx), offsetof(struct kvm_regs, rsp), offsetof(struct kvm_regs, rbp),
        offsetof(struct kvm_regs, rsi), offsetof(struct kvm_regs, rdi), offsetof(struct kvm_regs, r8),
        offsetof(struct kvm_regs, r9),  offsetof(struct kvm_regs, r10), offsetof(struct kvm_regs, r11),
        offsetof(struct kvm_regs, r12), offsetof(struct kvm_regs, r13), offsetof(struct kvm_regs, r14),
        offsetof(struct kvm_regs, r15),
};

static void segment_from_kvm(struct x86_segment *to, const struct kvm_segment *from)
{
        to->selector = from->selector;
        to->base = from->base;
        to->limit = from->limit;
        to->access = (uint32_t)(from->type & 0xf) | (uint32_t)(from->s & 1) << 4 |
                     (uint32_t)(from->dpl & 3) << X86_ACCESS_DPL_SHIFT | (uint32_t)(from->present & 1) << 7 |
                     (uint32_t)(from->avl & 1) << 12 | (uint32_t)(from->l & 1) << 13 | (uint32_t)(from->db & 1) << 14 |
                     (uint32_t)(from->g & 1) << 15 | (uint32_t)(from->unusable & 1) << 16;
}

static void segment_to_kvm(struct kvm_segment *to, const struct x86_segment *from)
{
        *to = (struct kvm_segment){
                .base = from->base,
                .limit = from->limit,
                .selector = from->selector,
                .type = from->access & X86_ACCESS_TYPE,
                .s = !!(from->access & X86_ACCESS_S),
                .dpl = from->access >> X86_ACCESS_DPL_SHIFT & 3,
                .present = !!(from->access & X86_ACCESS_P),
                .avl = !!(from->access & X86_ACCESS_AVL),
                .l = !!(from->access & X86_ACCESS_L),
                .db = !!(from->access & X86_ACCESS_DB),
                .g = !!(from->access & X86_ACCESS_G),
                .unusable = !!(from->access & X86_ACCESS_UNUSABLE),
        };
}

static const size_t segment_offsets[X86_SEGS] = {
        [X86_ES] = offsetof(struct kvm_sregs, es), [X86_CS] = offsetof(struct kvm_sregs, cs),
        [X86_SS] = offsetof(struct kvm_sregs, ss), [X86_DS] = offsetof(struct kvm_sregs, ds),
        [X86_FS] = offsetof(struct kvm_sregs, fs), [X86_GS] = offsetof(struct kvm_sregs, gs),
};

static int get_registers(struct kvm_vcpu *vcpu, struct x86_state *state)
{
        struct kvm_sregs sregs;
        struct kvm_regs regs;
        int r = kvm_ioctl(vcpu->fd, KVM_GET_REGS, &regs);

        if (r >= 0)
                r = kvm_ioctl(vcpu->fd, KVM_GET_SREGS, &sregs);
        if (r < 0)
                return r;
        for (unsigned i = 0; i < 16; i++)
                state->gpr[i] = *(const uint64_t *)((const char *)&regs + gpr_offsets[i]);
        state->rip = regs.rip;
        state->rflags = regs.rflags;
        for (unsigned i = 0; i < X86_SEGS; i++)
                segment_from_kvm(&state->seg[i], (const struct kvm_segment *)((const char *)&sregs + segment_offsets[i]));
        segment_from_kvm(&state->ldtr, &sregs.ldt);
        segment_from_kvm(&state->tr, &sregs.tr);
        state->gdtr = (struct x86_table){ sregs.gdt.base, sregs.gdt.limit };
        state->idtr = (struct x86_table){ sregs.idt.base, sregs.idt.limit };
        state->cr0 = sregs.cr0;
        state->cr2 = sregs.cr2;
        state->cr3 = sregs.cr3;
        state->cr4 = sregs.cr4;
        state->efer = sregs.efer;
        state->apic_base = sregs.apic_base;
        return 0;
}

static int set_registers(struct kvm_vcpu *vcpu, const struct x86_state *state)
{
        struct kvm_regs regs = { .rip = state->rip, .rflags = state->rflags };
        struct kvm_sregs sregs = {
                .gdt = { .base = state->gdtr.base, .limit = state->gdtr.limit },
                .idt = { .base = state->idtr.base, .limit = state->idtr.limit },
                .cr0 = state->cr0,
                .cr2 = state->cr2,
                .cr3 = state->cr3,
                .cr4 = state->cr4,
                .efer = state->efer,
                .apic_base = state->apic_base,
        };
        struct kvm_sregs now;
        int r = kvm_ioctl(vcpu->fd, KVM_GET_SREGS, &now);

        if (r < 0)
                return r;
        sregs.cr8 = now.cr8; /* the local APIC's task priority: its own record has it */
        if (!sregs.apic_base)
                sregs.apic_base = now.apic_base;
        for (unsigned i = 0; i < X86_SEGS; i++)
                segment_to_kvm((struct kvm_segment *)((char *)&sregs + segment_offsets[i]), &state->seg[i]);
        segment_to_kvm(&sregs.ldt, &state->ldtr);
        segment_to_kvm(&sregs.tr, &state->tr);
        for (unsigned i = 0; i < 16; i++)
                *(__u64 *)((char *)&regs + gpr_offsets[i]) = state->gpr[i];
        r = kvm_ioctl(vcpu->fd, KVM_SET_SREGS, &sregs);
        return r < 0 ? r : kvm_ioctl(vcpu->fd, KVM_SET_REGS, &regs);
}

/* ---- the XSAVE area ---- */

#define XSAVE_FCW 0
#define XSAVE_FSW 2
#define XSAVE_FTW 4
#define XSAVE_FOP 6
#define XSAVE_FIP 8
#define XSAVE_FDP 16
#define XSAVE_MXCSR 24
#define XSAVE_ST 32
#define XSAVE_XMM 160
#define XSAVE_BV 512
#define XSAVE_FEATURES 7u /* x87, SSE, AVX */

static int get_xsave(struct kvm_vcpu *vcpu, uint8_t *area)
{
        unsigned long request = vcpu->kvm->xsave_bytes > sizeof(struct kvm_xsave) ? KVM_GET_XSAVE2 : KVM_GET_XSAVE;

        return kvm_ioctl(vcpu->fd, request, area);
}

/* ST(i) is physical register (TOP + i) mod 8. */
static void fpu_from_area(struct x86_fpu *fpu, const uint8_t *area, uint32_t avx_offset)
{
        uint64_t present;
        unsigned top;

        memcpy(&fpu->fcw, area + XSAVE_FCW, 2);
        memcpy(&fpu->fsw, area + XSAVE_FSW, 2);
        fpu->ftw = area[XSAVE_FTW];
        memcpy(&fpu->fop, area + XSAVE_FOP, 2);
        memcpy(&fpu->fip, area + XSAVE_FIP, 8);
        memcpy(&fpu->fdp, area + XSAVE_FDP, 8);
        memcpy(&fpu->mxcsr, area + XSAVE_MXCSR, 4);
        memcpy(&present, area + XSAVE_BV, 8);
        fpu->fcs = fpu->fds = 0;
        top = fpu->fsw >> 11 & 7;
        for (unsigned i = 0; i < 8; i++)
                memcpy(fpu->r[(top + i) & 7], area + XSAVE_ST + 16 * i, 16);
        for (unsigned i = 0; i < 16; i++) {
                memcpy(fpu->ymm[i].u8, area + XSAVE_XMM + 16 * i, 16);
                if (avx_offset && present & 4)
                        memcpy(fpu->ymm[i].u8 + 16, area + avx_offset + 16 * i, 16);
                else
                        memset(fpu->ymm[i].u8 + 16, 0, 16);
        }
}

static void fpu_to_area(const struct x86_fpu *fpu, uint8_t *area, uint32_t avx_offset)
{
        unsigned top = fpu->fsw >> 11 & 7;
        uint64_t present;

        memcpy(area + XSAVE_FCW, &fpu->fcw, 2);
        memcpy(area + XSAVE_FSW, &fpu->fsw, 2);
        area[XSAVE_FTW] = fpu->ftw;
        memcpy(area + XSAVE_FOP, &fpu->fop, 2);
        memcpy(area + XSAVE_FIP, &fpu->fip, 8);
        memcpy(area + XSAVE_FDP, &fpu->fdp, 8);
        memcpy(area + XSAVE_MXCSR, &fpu->mxcsr, 4);
        for (unsigned i = 0; i < 8; i++)
                memcpy(area + XSAVE_ST + 16 * i, fpu->r[(top + i) & 7], 16);
        for (unsigned i = 0; i < 16; i++) {
                memcpy(area + XSAVE_XMM + 16 * i, fpu->ymm[i].u8, 16);
                if (avx_offset)
                        memcpy(area + avx_offset + 16 * i, fpu->ymm[i].u8 + 16, 16);
        }
        memcpy(&present, area + XSAVE_BV, 8);
        present |= avx_offset ? XSAVE_FEATURES : XSAVE_FEATURES & 3;
        memcpy(area + XSAVE_BV, &present, 8);
}

static int get_fpu(struct kvm_vcpu *vcpu, struct x86_state *state)
{
        _cleanup_free_ uint8_t *area = calloc(1, vcpu->kvm->xsave_bytes);
        struct kvm_xcrs xcrs = { 0 };
        int r = area ? get_xsave(vcpu, area) : -ENOMEM;

        if (r < 0)
                return r;
        fpu_from_area(&state->fpu, area, vcpu->kvm->has_xcrs ? vcpu->kvm->avx_offset : 0);
        state->xcr0 = 1;
        if (!vcpu->kvm->has_xcrs)
                return 0;
        r = kvm_ioctl(vcpu->fd, KVM_GET_XCRS, &xcrs);
        if (r >= 0 && xcrs.nr_xcrs)
                state->xcr0 = xcrs.xcrs[0].value;
        return r;
}

static int set_fpu(struct kvm_vcpu *vcpu, const struct x86_state *state)
{
        _cleanup_free_ uint8_t *area = calloc(1, vcpu->kvm->xsave_bytes);
        struct kvm_xcrs xcrs = { .nr_xcrs = 1, .xcrs = { { .xcr = 0, .value = state->xcr0 | 1 } } };
        int r = area ? get_xsave(vcpu, area) : -ENOMEM;

        if (r >= 0 && vcpu->kvm->has_xcrs)
                r = kvm_ioctl(vcpu->fd, KVM_SET_XCRS, &xcrs);
        if (r < 0)
                return r;
        fpu_to_area(&state->fpu, area, vcpu->kvm->has_xcrs ? vcpu->kvm->avx_offset : 0);
        return kvm_ioctl(vcpu->fd, KVM_SET_XSAVE, area);
}

/* ---- events ---- */

static int get_events(struct kvm_vcpu *vcpu, struct x86_state *state)
{
        struct kvm_mp_state mp = { 0 };
        struct kvm_vcpu_events events = { 0 };
        int r = kvm_ioctl(vcpu->fd, KVM_GET_MP_STATE, &mp);

        if (r >= 0)
                r = kvm_ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events);
        if (r < 0)
                return r;
        state->halted = mp.mp_state == KVM_MP_STATE_HALTED;
        state->wait_for_sipi = mp.mp_state == KVM_MP_STATE_UNINITIALIZED || mp.mp_state == KVM_MP_STATE_INIT_RECEIVED;
        state->interrupt_shadow = events.interrupt.shadow;
        state->nmi_masked = events.nmi.masked;
        state->nmi_pending = events.nmi.pending;
        state->exception_pending = events.exception.injected || events.exception.pending;
        state->exception_vector = events.exception.nr;
        state->exception_has_error = events.exception.has_error_code;
        state->exception_error = events.exception.error_code;
        return 0;
}

static int set_events(struct kvm_vcpu *vcpu, const struct x86_state *state)
{
        struct kvm_mp_state mp = {
                .mp_state = state->wait_for_sipi ? KVM_MP_STATE_UNINITIALIZED
                            : state->halted      ? KVM_MP_STATE_HALTED
                                                 : KVM_MP_STATE_RUNNABLE,
        };
        struct kvm_vcpu_events events = {
                .exception = {
                        .injected = state->exception_pending,
                        .nr = state->exception_vector,
                        .has_error_code = state->exception_has_error,
                        .error_code = state->exception_error,
                },
                .interrupt.shadow = state->interrupt_shadow ? 1 : 0,
                .nmi = { .pending = state->nmi_pending, .masked = state->nmi_masked },
                .flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        };
        int r = kvm_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events);

        return r < 0 ? r : kvm_ioctl(vcpu->fd, KVM_SET_MP_STATE, &mp);
}

static int get_debug(struct kvm_vcpu *vcpu, struct x86_state *state)
{
        struct kvm_debugregs debug = { 0 };
        int r = vcpu->kvm->has_debug_regs ? kvm_ioctl(vcpu->fd, KVM_GET_DEBUGREGS, &debug) : 0;

        for (unsigned i = 0; i < 4; i++)
                state->dr[i] = debug.db[i];
        state->dr[6] = debug.dr6;
        state->dr[7] = debug.dr7;
        return r;
}

static int set_debug(struct kvm_vcpu *vcpu, const struct x86_state *state)
{
        struct kvm_debugregs debug = {
                .db = { state->dr[0], state->dr[1], state->dr[2], state->dr[3] },
                .dr6 = state->dr[6],
                .dr7 = state->dr[7],
        };

        return vcpu->kvm->has_debug_regs ? kvm_ioctl(vcpu->fd, KVM_SET_DEBUGREGS, &debug) : 0;
}

/* ---- the whole ---- */

int kvm_get_state(struct accel_vcpu *v, struct x86_state *state, struct err *err)
{
        struct kvm_vcpu *vcpu = to_kvm_vcpu(v);
        int r;

        memset(state, 0, sizeof(*state));
        r = get_registers(vcpu, state);
        if (r >= 0)
                r = get_fpu(vcpu, state);
        if (r >= 0)
                r = get_debug(vcpu, state);
        if (r >= 0)
                r = get_events(vcpu, state);
        if (r < 0)
                return err_errno(err, r, "KVM does not tell the state of vCPU %u", v->index);
        /* An MSR that this kernel or model does not have stays 0. */
        for (unsigned i = 0; i < ARRAY_SIZE(state_msrs); i++)
                (void)kvm_msr_read(vcpu, state_msrs[i].index, state_msr(state, i));
        (void)kvm_tsc_offset(vcpu, &state->tsc_offset);
        return 0;
}

int kvm_set_state(struct accel_vcpu *v, const struct x86_state *state, struct err *err)
{
        struct kvm_vcpu *vcpu = to_kvm_vcpu(v);
        int r = set_registers(vcpu, state);

        if (r >= 0)
                r = set_fpu(vcpu, state);
        if (r >= 0)
                r = set_debug(vcpu, state);
        if (r < 0)
                return err_errno(err, r, "KVM does not take the state of vCPU %u", v->index);
        for (unsigned i = 0; i < ARRAY_SIZE(state_msrs); i++) {
                uint64_t value = *state_msr((struct x86_state *)state, i), now = 0;

                if (kvm_msr_read(vcpu, state_msrs[i].index, &now) >= 0 ? now == value : !value)
                        continue;
                r = kvm_msr_write(vcpu, state_msrs[i].index, value);
                if (r < 0)
                        return err_set(err, r, "KVM does not take 0x%" PRIx64 " for MSR 0x%" PRIx32 " of vCPU %u", value,
                                       state_msrs[i].index, v->index);
        }
        r = set_events(vcpu, state);
        return r < 0 ? err_errno(err, r, "KVM does not take the events of vCPU %u", v->index) : 0;
}

static int save_msrs(struct kvm_vcpu *vcpu, struct writer *out)
{
        struct writer list = { 0 };
        uint32_t count = 0;

        for (uint32_t i = 0; i < vcpu->kvm->msrs->nmsrs; i++) {
                uint32_t index = vcpu->kvm->msrs->indices[i];
                uint64_t value;

                if (index == MSR_TSC || kvm_msr_read(vcpu, index, &value) < 0)
                        continue;
                writer_le32(&list, index);
                writer_le64(&list, value);
                count++;
        }
        writer_le32(out, count);
        writer_put(out, list.bytes, list.size);
        out->bad |= list.bad;
        writer_done(&list);
        return 0;
}

int kvm_save(struct accel_vcpu *v, struct writer *out, struct err *err)
{
        struct kvm_vcpu *vcpu = to_kvm_vcpu(v);
        _cleanup_free_ uint8_t *area = calloc(1, vcpu->kvm->xsave_bytes);
        _cleanup_free_ struct x86_state *state = aligned_alloc(64, align_up(sizeof(*state), 64));
        struct kvm_lapic_state lapic;
        struct kvm_vcpu_events events;
        struct kvm_mp_state mp;
        uint64_t tsc = 0;
        size_t mark;
        int r;

        if (!area || !state)
                return err_nomem(err);
        r = kvm_get_state(v, state, err);
        if (r < 0)
                return r;
        r = get_xsave(vcpu, area);
        if (r >= 0)
                r = kvm_ioctl(vcpu->fd, KVM_GET_LAPIC, &lapic);
        if (r >= 0)
                r = kvm_ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events);
        if (r >= 0)
                r = kvm_ioctl(vcpu->fd, KVM_GET_MP_STATE, &mp);
        if (r >= 0)
                r = paused_tsc(vcpu, &tsc);
        if (r < 0)
                return err_errno(err, r, "KVM does not tell the state of vCPU %u", v->index);
        mark = record_begin(out, RECORD_NAME, RECORD_VERSION);
        x86_state_save(state, out);
        writer_le64(out, tsc);
        writer_le64(out, vcpu->kvm->paused_clock_ns);
        writer_le32(out, (uint32_t)vcpu->kvm->xsave_bytes);
        writer_put(out, area, vcpu->kvm->xsave_bytes);
        writer_put(out, &lapic, sizeof(lapic));
        writer_put(out, &events, sizeof(events));
        writer_le32(out, mp.mp_state);
        save_msrs(vcpu, out);
        record_end(out, mark);
        return out->bad ? err_nomem(err) : 0;
}

/* What a record holds beside x86-cpu; pointers are into the record. */
struct saved {
        uint64_t tsc, clock_ns;
        const uint8_t *area;
        uint32_t area_bytes;
        struct kvm_lapic_state lapic;
        struct kvm_vcpu_events events;
        uint32_t mp_state;
        uint32_t msrs;
        struct cursor msr;
};

static int parse_saved(struct kvm_vcpu *vcpu, struct cursor *body, struct saved *saved, struct err *err)
{
        saved->tsc = cursor_le64(body);
        saved->clock_ns = cursor_le64(body);
        saved->area_bytes = cursor_le32(body);
        if (!body->bad && saved->area_bytes != vcpu->kvm->xsave_bytes)
                return err_set(err, -EBADMSG, "the saved vCPU has %" PRIu32 " bytes of vector state, this processor %zu",
                               saved->area_bytes, vcpu->kvm->xsave_bytes);
        saved->area = cursor_take(body, saved->area_bytes);
        if (cursor_get(body, &saved->lapic, sizeof(saved->lapic)) < 0 ||
            cursor_get(body, &saved->events, sizeof(saved->events)) < 0)
                return err_set(err, -EBADMSG, "the saved vCPU is cut short");
        saved->mp_state = cursor_le32(body);
        saved->msrs = cursor_le32(body);
        if (saved->msrs > MSRS_MAX)
                return err_set(err, -EBADMSG, "the saved vCPU has %" PRIu32 " MSRs, %u is the most", saved->msrs, MSRS_MAX);
        saved->msr = cursor_sub(body, (size_t)saved->msrs * 12);
        return body->bad ? err_set(err, -EBADMSG, "the saved vCPU is cut short") : 0;
}

static int apply_saved(struct kvm_vcpu *vcpu, struct saved *saved, bool reset, struct err *err)
{
        struct kvm_mp_state mp = { .mp_state = saved->mp_state };
        int r = kvm_ioctl(vcpu->fd, KVM_SET_XSAVE, (void *)saved->area);

        if (r >= 0 && !reset)
                r = set_paused_tsc(vcpu, saved->tsc);
        if (r < 0)
                return err_errno(err, r, "KVM does not take the vector state of vCPU %u", vcpu->vcpu.index);
        /* The local APIC before the MSRs: the deadline needs its timer mode. */
        r = kvm_ioctl(vcpu->fd, KVM_SET_LAPIC, &saved->lapic);
        if (r < 0)
                return err_errno(err, r, "KVM does not take the local APIC of vCPU %u", vcpu->vcpu.index);
        for (uint32_t i = 0; i < saved->msrs; i++) {
                uint32_t index = cursor_le32(&saved->msr);
                uint64_t value = cursor_le64(&saved->msr), now;

                if (index == MSR_TSC || (kvm_msr_read(vcpu, index, &now) >= 0 && now == value && index != MSR_TSC_DEADLINE))
                        continue;
                r = kvm_msr_write(vcpu, index, value);
                if (r < 0)
                        return err_set(err, r, "KVM does not take 0x%" PRIx64 " for MSR 0x%" PRIx32 " of vCPU %u", value, index,
                                       vcpu->vcpu.index);
        }
        saved->events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
        saved->events.flags &= ~(uint32_t)KVM_VCPUEVENT_VALID_PAYLOAD;
        r = kvm_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &saved->events);
        if (r >= 0)
                r = kvm_ioctl(vcpu->fd, KVM_SET_MP_STATE, &mp);
        return r < 0 ? err_errno(err, r, "KVM does not take the events of vCPU %u", vcpu->vcpu.index) : 0;
}

static int load_record(struct kvm_vcpu *vcpu, struct cursor *in, bool reset, struct err *err)
{
        _cleanup_free_ struct x86_state *state = aligned_alloc(64, align_up(sizeof(*state), 64));
        struct saved saved = { 0 };
        struct record record;
        int r;

        if (!state)
                return err_nomem(err);
        r = record_expect(in, RECORD_NAME, RECORD_VERSION, &record, err);
        if (r < 0)
                return r;
        r = x86_state_load(state, &record.body, err);
        if (r >= 0)
                r = parse_saved(vcpu, &record.body, &saved, err);
        if (r >= 0)
                r = record_finish(&record, err);
        if (r >= 0)
                r = kvm_set_state(&vcpu->vcpu, state, err);
        if (r >= 0)
                r = apply_saved(vcpu, &saved, reset, err);
        if (r >= 0 && !vcpu->vcpu.index && !reset)
                vcpu->kvm->paused_clock_ns = saved.clock_ns;
        return r;
}

int kvm_load(struct accel_vcpu *v, struct cursor *in, struct err *err)
{
        return load_record(to_kvm_vcpu(v), in, false, err);
}

int kvm_reset(struct accel_vcpu *v, struct err *err)
{
        struct kvm_vcpu *vcpu = to_kvm_vcpu(v);
        struct cursor in = cursor_from(vcpu->power_on.bytes, vcpu->power_on.size);

        return load_record(vcpu, &in, true, err);
}
