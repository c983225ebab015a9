/*
 * System instructions: who executes what, and those without a topic of their own.
 *
 * Handlers check privilege first, then their operands, and change state last. What changes interrupts, modes, paging or the
 * instruction pointer ends its block.
 *
 * Source: Intel SDM vol. 2, each instruction's page; MWAIT and MONITOR are not offered (CPUID), so they are #UD.
 */
#include "cpu/x86/system.h"

#include <sched.h>
#include <sys/random.h>

#include "cpu/x86/cpuid.h"
#include "cpu/x86/paravirt.h"

insn_fn system_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        insn_fn fn = system_misc_bind(cpu, insn, d);

        if (!fn)
                fn = system_control_bind(cpu, insn, d);
        if (!fn)
                fn = system_segment_bind(cpu, insn, d);
        if (!fn)
                fn = system_transfer_bind(cpu, insn, d);
        if (!fn)
                fn = system_call_bind(cpu, insn, d);
        if (!fn)
                fn = system_io_bind(cpu, insn, d);
        return fn;
}

/* ---- interrupts ---- */

static const struct insn *op_cli(struct x86_cpu *cpu, const struct insn *i)
{
        if (cpu->cpl > x86_iopl(cpu) && cpu->s.cr0 & X86_CR0_PE)
                x86_gp0(cpu);
        cpu->s.rflags &= ~X86_FLAG_IF;
        return i + 1; /* nothing becomes possible by it that the run loop would have to look for */
}

static const struct insn *op_sti(struct x86_cpu *cpu, const struct insn *i)
{
        if (cpu->cpl > x86_iopl(cpu) && cpu->s.cr0 & X86_CR0_PE)
                x86_gp0(cpu);
        if (!(cpu->s.rflags & X86_FLAG_IF)) {
                cpu->s.rflags |= X86_FLAG_IF;
                cpu->s.interrupt_shadow = true;
        }
        return system_leave(cpu, i);
}

static const struct insn *op_hlt(struct x86_cpu *cpu, const struct insn *i)
{
        system_need_cpl0(cpu);
        cpu->s.halted = true;
        return system_leave(cpu, i);
}

/* ---- identification, counters, random numbers ---- */

static const struct insn *op_cpuid(struct x86_cpu *cpu, const struct insn *i)
{
        uint32_t reg[4], leaf = (uint32_t)cpu->s.gpr[X86_RAX], subleaf = (uint32_t)cpu->s.gpr[X86_RCX];

        x86_model_cpuid(cpu->model, cpu->index, cpu->s.cr4, cpu->s.xcr0, leaf, subleaf, reg);
        *cpuid_known_at(cpu, leaf, subleaf) = (struct cpuid_known){
                .leaf = leaf, .subleaf = subleaf, .cr4 = cpu->s.cr4, .xcr0 = cpu->s.xcr0, .reg = { reg[0], reg[1], reg[2], reg[3] },
        };
        cpu->s.gpr[X86_RAX] = reg[0];
        cpu->s.gpr[X86_RBX] = reg[1];
        cpu->s.gpr[X86_RCX] = reg[2];
        cpu->s.gpr[X86_RDX] = reg[3];
        return i + 1;
}

uint64_t x86_tsc(const struct x86_cpu *cpu)
{
        return __builtin_ia32_rdtsc() + cpu->s.tsc_offset;
}

static void put_edx_eax(struct x86_cpu *cpu, uint64_t value)
{
        cpu->s.gpr[X86_RAX] = (uint32_t)value;
        cpu->s.gpr[X86_RDX] = value >> 32;
}

static const struct insn *op_rdtsc(struct x86_cpu *cpu, const struct insn *i)
{
        if (cpu->s.cr4 & X86_CR4_TSD && cpu->cpl != 0)
                x86_gp0(cpu);
        put_edx_eax(cpu, x86_tsc(cpu));
        if (i->op == ZYDIS_MNEMONIC_RDTSCP)
                cpu->s.gpr[X86_RCX] = (uint32_t)cpu->s.tsc_aux;
        return i + 1;
}

static const struct insn *op_rdpid(struct x86_cpu *cpu, const struct insn *i)
{
        system_set_reg(cpu, i->reg[0], (uint32_t)cpu->s.tsc_aux, 8);
        return i + 1;
}

/* No counters are offered (CPUID leaf 0xa is 0), so every index is out of range. */
static const struct insn *op_rdpmc(struct x86_cpu *cpu, const struct insn *i)
{
        x86_gp0(cpu);
}

static const struct insn *op_random(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t value = 0, flags = x86_flags(cpu) & ~X86_FLAGS_STATUS;

        if (getrandom(&value, sizeof(value), GRND_NONBLOCK) == (ssize_t)sizeof(value))
                flags |= X86_FLAG_CF;
        else
                value = 0;
        system_set_reg(cpu, i->reg[0], value, i->opsize);
        x86_set_flags(cpu, flags);
        return i + 1;
}

/* ---- caches: memory is always coherent here, so only the checks remain ---- */

static const struct insn *op_clflush(struct x86_cpu *cpu, const struct insn *i)
{
        (void)mmu_read8(cpu, insn_linear(cpu, i, 1, false));
        return i + 1;
}

static const struct insn *op_wbinvd(struct x86_cpu *cpu, const struct insn *i)
{
        system_need_cpl0(cpu);
        return i + 1;
}

static const struct insn *op_nop(struct x86_cpu *cpu, const struct insn *i)
{
        return i + 1;
}

/* A spinning guest: with more processors than cores the one it waits for may need this core. */
static const struct insn *op_pause(struct x86_cpu *cpu, const struct insn *i)
{
        if ((cpu->pauses++ & (X86_PAUSES_YIELD - 1)) == 0)
                sched_yield();
        return i + 1;
}

static const struct insn *op_fence(struct x86_cpu *cpu, const struct insn *i)
{
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        return i + 1;
}

static const struct insn *op_hypercall(struct x86_cpu *cpu, const struct insn *i)
{
        paravirt_hypercall(cpu);
        return system_leave(cpu, i);
}

static const struct insn *op_ud(struct x86_cpu *cpu, const struct insn *i)
{
        x86_ud(cpu);
}

insn_fn system_misc_bind(struct x86_cpu *cpu, struct insn *insn, const struct decoded *d)
{
        switch (insn->op) {
        case ZYDIS_MNEMONIC_CLI:
                return op_cli;
        case ZYDIS_MNEMONIC_STI:
                insn->flags |= INSN_ENDS_BLOCK;
                return op_sti;
        case ZYDIS_MNEMONIC_HLT:
                insn->flags |= INSN_ENDS_BLOCK;
                return op_hlt;
        case ZYDIS_MNEMONIC_CPUID:
                return op_cpuid;
        case ZYDIS_MNEMONIC_RDTSC:
        case ZYDIS_MNEMONIC_RDTSCP:
                return op_rdtsc;
        case ZYDIS_MNEMONIC_RDPID:
                return op_rdpid;
        case ZYDIS_MNEMONIC_RDPMC:
                return op_rdpmc;
        case ZYDIS_MNEMONIC_RDRAND:
        case ZYDIS_MNEMONIC_RDSEED:
                return op_random;
        case ZYDIS_MNEMONIC_CLFLUSH:
        case ZYDIS_MNEMONIC_CLFLUSHOPT:
        case ZYDIS_MNEMONIC_CLWB:
                return op_clflush;
        case ZYDIS_MNEMONIC_WBINVD:
        case ZYDIS_MNEMONIC_INVD:
                return op_wbinvd;
        case ZYDIS_MNEMONIC_PREFETCH:
        case ZYDIS_MNEMONIC_PREFETCHNTA:
        case ZYDIS_MNEMONIC_PREFETCHT0:
        case ZYDIS_MNEMONIC_PREFETCHT1:
        case ZYDIS_MNEMONIC_PREFETCHT2:
        case ZYDIS_MNEMONIC_PREFETCHW:
        case ZYDIS_MNEMONIC_PREFETCHWT1:
                return op_nop;
        case ZYDIS_MNEMONIC_PAUSE:
                return op_pause;
        case ZYDIS_MNEMONIC_LFENCE:
        case ZYDIS_MNEMONIC_SFENCE:
        case ZYDIS_MNEMONIC_MFENCE:
                return op_fence;
        case ZYDIS_MNEMONIC_VMCALL:
        case ZYDIS_MNEMONIC_VMMCALL:
                insn->flags |= INSN_ENDS_BLOCK;
                return op_hypercall;
        case ZYDIS_MNEMONIC_UD0:
        case ZYDIS_MNEMONIC_UD1:
        case ZYDIS_MNEMONIC_UD2:
        case ZYDIS_MNEMONIC_MONITOR:
        case ZYDIS_MNEMONIC_MWAIT:
        case ZYDIS_MNEMONIC_RSM:
                insn->flags |= INSN_ENDS_BLOCK;
                return op_ud;
        default:
                return NULL;
        }
}
