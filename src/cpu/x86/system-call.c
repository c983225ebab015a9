/*
 * Fast system calls, and what goes with them: SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS, FS and GS bases, STAC, CLAC.
 *
 * SYSENTER and SYSEXIT also work in 32-bit and compatibility mode; SYSCALL and SYSRET only in 64-bit mode, as on Intel's
 * processors. SYSRET to an address that is not canonical faults in the kernel, with RSP already the user's (same source). Both look at TF
 * when they are done: SYSCALL whose mask clears it traps no more, and SYSRET that sets it traps before the first instruction at CPL 3, as if
 * the system call were what has been stepped over.
 *
 * Source: Intel SDM vol. 2 "SYSCALL", "SYSRET", "SYSENTER", "SYSEXIT", "SWAPGS", "RDFSBASE", "WRFSBASE", "STAC".
 */
#include "cpu/x86/system.h"

#include "cpu/x86/cpuid.h"

/* The fixed segments these instructions load: flat, present, accessed. */
static struct x86_segment flat_code(uint16_t selector, unsigned dpl, bool long_mode)
{
        return (struct x86_segment){
                .selector = selector,
                .access = 0xb | X86_ACCESS_S | X86_ACCESS_P | dpl << X86_ACCESS_DPL_SHIFT | X86_ACCESS_G |
                          (long_mode ? X86_ACCESS_L : X86_ACCESS_DB),
                .limit = UINT32_MAX,
        };
}

static struct x86_segment flat_stack(uint16_t selector, unsigned dpl)
{
        return (struct x86_segment){
                .selector = selector,
                .access = 3 | X86_ACCESS_S | X86_ACCESS_P | dpl << X86_ACCESS_DPL_SHIFT | X86_ACCESS_G | X86_ACCESS_DB,
                .limit = UINT32_MAX,
        };
}

static const struct insn *op_syscall(struct x86_cpu *cpu, const struct insn *i)
{
        uint16_t selector = (uint16_t)(cpu->s.star >> 32) & 0xfffc;
        uint64_t flags;

        if (!cpu->mode64 || !(cpu->s.efer & X86_EFER_SCE))
                x86_ud(cpu);
        flags = x86_flags(cpu);
        cpu->s.gpr[X86_RCX] = insn_rip(cpu, i->end);
        cpu->s.gpr[X86_R8 + 3] = flags & ~X86_FLAG_RF;
        cpu->s.rip = cpu->s.lstar;
        x86_set_flags(cpu, (flags & ~(cpu->s.sfmask | X86_FLAG_RF)) | X86_FLAG_FIXED);
        cpu->s.seg[X86_CS] = flat_code(selector, 0, true);
        cpu->s.seg[X86_SS] = flat_stack((uint16_t)(selector + 8), 0);
        if (!(cpu->s.rflags & X86_FLAG_TF))
                cpu->step_trap = false;
        x86_mode_changed(cpu);
        return NULL;
}

static const struct insn *op_sysret(struct x86_cpu *cpu, const struct insn *i)
{
        uint16_t selector = (uint16_t)(cpu->s.star >> 48);
        bool to64 = i->opsize == 8;
        uint64_t rip = cpu->s.gpr[X86_RCX], flags = cpu->s.gpr[X86_R8 + 3];

        if (!cpu->mode64 || !(cpu->s.efer & X86_EFER_SCE))
                x86_ud(cpu);
        system_need_cpl0(cpu);
        if (to64 && !x86_canonical(rip))
                x86_gp0(cpu);
        cpu->s.rip = to64 ? rip : (uint32_t)rip;
        x86_set_flags(cpu, (flags & 0x3c7fd7) | X86_FLAG_FIXED);
        cpu->s.seg[X86_CS] = flat_code((uint16_t)((selector + (to64 ? 16 : 0)) | 3), 3, to64);
        cpu->s.seg[X86_SS] = flat_stack((uint16_t)((selector + 8) | 3), 3);
        x86_mode_changed(cpu);
        cpu->step_trap = false;
        if (cpu->s.rflags & X86_FLAG_TF)
                x86_step_pending(cpu);
        return NULL;
}

static const struct insn *op_sysenter(struct x86_cpu *cpu, const struct insn *i)
{
        uint16_t selector = (uint16_t)cpu->s.sysenter_cs & 0xfffc;
        bool lma = x86_long(cpu);

        if (!(cpu->s.cr0 & X86_CR0_PE) || !selector)
                x86_gp0(cpu);
        cpu->s.rflags &= ~(X86_FLAG_VM | X86_FLAG_IF);
        cpu->s.gpr[X86_RSP] = lma ? cpu->s.sysenter_esp : (uint32_t)cpu->s.sysenter_esp;
        cpu->s.rip = lma ? cpu->s.sysenter_eip : (uint32_t)cpu->s.sysenter_eip;
        cpu->s.seg[X86_CS] = flat_code(selector, 0, lma);
        cpu->s.seg[X86_SS] = flat_stack((uint16_t)(selector + 8), 0);
        x86_mode_changed(cpu);
        return NULL;
}

static const struct insn *op_sysexit(struct x86_cpu *cpu, const struct insn *i)
{
        uint16_t selector = (uint16_t)cpu->s.sysenter_cs & 0xfffc;
        uint64_t rip = cpu->s.gpr[X86_RDX], rsp = cpu->s.gpr[X86_RCX];
        bool to64 = i->opsize == 8;

        if (!(cpu->s.cr0 & X86_CR0_PE) || !selector || cpu->cpl != 0 || x86_v86(cpu))
                x86_gp0(cpu);
        if (to64 && (!x86_canonical(rip) || !x86_canonical(rsp)))
                x86_gp0(cpu);
        cpu->s.gpr[X86_RSP] = to64 ? rsp : (uint32_t)rsp;
        cpu->s.rip = to64 ? rip : (uint32_t)rip;
        cpu->s.seg[X86_CS] = flat_code((uint16_t)((selector + (to64 ? 32 : 16)) | 3), 3, to64);
        cpu->s.seg[X86_SS] = flat_stack((uint16_t)((selector + (to64 ? 40 : 24)) | 3), 3);
        x86_mode_changed(cpu);
        return NULL;
}

static const struct insn *op_swapgs(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t base = cpu->s.seg[X86_GS].base;

        if (!cpu->mode64)
                x86_ud(cpu);
        system_need_cpl0(cpu);
        cpu->s.seg[X86_GS].base = cpu->s.kernel_gs_base;
        cpu->s.kernel_gs_base = base;
        return i + 1;
}

static void need_fsgsbase(struct x86_cpu *cpu)
{
        if (!cpu->mode64 || !(cpu->s.cr4 & X86_CR4_FSGSBASE))
                x86_ud(cpu);
}

static const struct insn *op_read_base(struct x86_cpu *cpu, const struct insn *i)
{
        unsigned seg = i->op == ZYDIS_MNEMONIC_RDFSBASE ? X86_FS : X86_GS;

        need_fsgsbase(cpu);
        system_set_reg(cpu, i->reg[0], cpu->s.seg[seg].base, i->opsize);
        return i + 1;
}

static const struct insn *op_write_base(struct x86_cpu *cpu, const struct insn *i)
{
        unsigned seg = i->op == ZYDIS_MNEMONIC_WRFSBASE ? X86_FS : X86_GS;
        uint64_t base = system_reg(cpu, i->reg[0], i->opsize);

        need_fsgsbase(cpu);
        if (!x86_canonical(base))
                x86_gp0(cpu);
        cpu->s.seg[seg].base = base;
        return i + 1;
}

/* AC decides which TLB table is used for data; decoding does not depend on it, so the block goes on. */
static const struct insn *op_stac(struct x86_cpu *cpu, const struct insn *i)
{
        if (cpu->cpl != 0 || !(cpu->s.cr0 & X86_CR0_PE))
                x86_ud(cpu);
        if (i->op == ZYDIS_MNEMONIC_STAC)
                cpu->s.rflags |= X86_FLAG_AC;
        else
                cpu->s.rflags &= ~X86_FLAG_AC;
        if (cpu->tlb_mode != TLB_CHECKED)
                tlb_use_mode(cpu, cpu->s.cr4 & X86_CR4_SMAP && i->op == ZYDIS_MNEMONIC_CLAC ? TLB_SUPERVISOR_SMAP : TLB_SUPERVISOR);
        return i + 1;
}

static insn_fn ends(struct insn *insn, insn_fn fn)
{
        insn->flags |= INSN_ENDS_BLOCK;
        return fn;
}

insn_fn system_call_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        switch (insn->op) {
        case ZYDIS_MNEMONIC_SYSCALL:
                return x86_has(cpu, X86_F_SYSCALL) ? ends(insn, op_syscall) : NULL;
        case ZYDIS_MNEMONIC_SYSRET:
                return x86_has(cpu, X86_F_SYSCALL) ? ends(insn, op_sysret) : NULL;
        case ZYDIS_MNEMONIC_SYSENTER:
                return ends(insn, op_sysenter);
        case ZYDIS_MNEMONIC_SYSEXIT:
                return ends(insn, op_sysexit);
        case ZYDIS_MNEMONIC_SWAPGS:
                return op_swapgs;
        case ZYDIS_MNEMONIC_RDFSBASE:
        case ZYDIS_MNEMONIC_RDGSBASE:
                return op_read_base;
        case ZYDIS_MNEMONIC_WRFSBASE:
        case ZYDIS_MNEMONIC_WRGSBASE:
                return op_write_base;
        case ZYDIS_MNEMONIC_STAC:
        case ZYDIS_MNEMONIC_CLAC:
                return op_stac;
        default:
                return NULL;
        }
}
