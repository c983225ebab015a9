/*
 * Debug exceptions: breakpoints on instructions, data and ports, single step.
 *
 * None of it costs anything while it is not used: EFLAGS.TF or an enabled breakpoint put the processor into MODE_STEP, where
 * blocks hold one instruction and the run loop calls x86_step_begin() and x86_step_end() around each; enabled data breakpoints
 * switch to TLB_CHECKED, where every data access takes the slow path and ends up in x86_debug_data().
 *
 * Source: Intel SDM vol. 3B §18.2 (debug registers), §18.3 (debug exceptions), table 18-2.
 */
#include "cpu/x86/system.h"

#define DR6_BS (1u << 14)

enum breakpoint_kind { BREAK_EXECUTE, BREAK_WRITE, BREAK_IO, BREAK_ACCESS };

static bool enabled(uint64_t dr7, unsigned i)
{
        return dr7 >> (i * 2) & 3;
}

static enum breakpoint_kind kind_of(uint64_t dr7, unsigned i)
{
        return dr7 >> (16 + i * 4) & 3;
}

static unsigned length_of(uint64_t dr7, unsigned i)
{
        static const uint8_t bytes[4] = { 1, 2, 8, 4 };

        return bytes[dr7 >> (18 + i * 4) & 3];
}

static bool overlaps(const struct x86_cpu *cpu, unsigned i, uint64_t address, unsigned size_bytes)
{
        unsigned length = length_of(cpu->s.dr[7], i);
        uint64_t start = cpu->s.dr[i] & ~(uint64_t)(length - 1);

        return address < start + length && start < address + size_bytes;
}

void x86_debug_data(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes, bool write)
{
        uint64_t dr7 = cpu->s.dr[7];

        if (!(dr7 & 0xff))
                return;
        for (unsigned i = 0; i < 4; i++) {
                enum breakpoint_kind kind = kind_of(dr7, i);

                if (enabled(dr7, i) && (kind == BREAK_ACCESS || (kind == BREAK_WRITE && write)) && overlaps(cpu, i, linear, size_bytes))
                        cpu->step_dr6 |= 1u << i;
        }
}

void x86_debug_io(struct x86_cpu *cpu, uint16_t port, unsigned size_bytes)
{
        uint64_t dr7 = cpu->s.dr[7];

        if (!(dr7 & 0xff) || !(cpu->s.cr4 & X86_CR4_DE))
                return;
        for (unsigned i = 0; i < 4; i++)
                if (enabled(dr7, i) && kind_of(dr7, i) == BREAK_IO && overlaps(cpu, i, port, size_bytes))
                        cpu->step_dr6 |= 1u << i;
}

/* B0-B3 for the instruction that begins here. */
static uint32_t instruction_breakpoints(const struct x86_cpu *cpu)
{
        uint64_t dr7 = cpu->s.dr[7], linear = cpu->s.rip + (cpu->mode64 ? 0 : cpu->s.seg[X86_CS].base);
        uint32_t hit = 0;

        if (!cpu->mode64)
                linear = (uint32_t)linear;
        for (unsigned i = 0; i < 4; i++)
                if (enabled(dr7, i) && kind_of(dr7, i) == BREAK_EXECUTE && cpu->s.dr[i] == linear)
                        hit |= 1u << i;
        return hit;
}

void x86_step_begin(struct x86_cpu *cpu)
{
        uint32_t hit;

        cpu->step_dr6 = 0;
        cpu->step_trap = cpu->s.rflags & X86_FLAG_TF;
        if (!(cpu->s.rflags & X86_FLAG_RF) && cpu->s.dr[7] & 0xff) {
                hit = instruction_breakpoints(cpu);
                if (hit) {
                        cpu->s.dr[6] |= hit;
                        cpu->fault = (struct x86_fault){ .vector = X86_DB, .breakpoint = true };
                        longjmp(cpu->unwind, 1);
                }
        }
        cpu->s.rflags &= ~X86_FLAG_RF;
}

void x86_step_pending(struct x86_cpu *cpu)
{
        cpu->s.dr[6] |= DR6_BS;
        cpu->s.exception_pending = true;
        cpu->s.exception_vector = X86_DB;
        cpu->s.exception_has_error = false;
        cpu->s.exception_error = 0;
}

void x86_step_end(struct x86_cpu *cpu)
{
        uint32_t dr6 = (uint32_t)cpu->step_dr6 | (cpu->step_trap ? DR6_BS : 0);

        cpu->step_dr6 = 0;
        cpu->step_trap = false;
        if (!dr6)
                return;
        cpu->s.dr[6] |= dr6;
        cpu->s.exception_pending = false; /* SYSRET's: one trap for both */
        x86_raise(cpu, X86_DB, 0);
}
