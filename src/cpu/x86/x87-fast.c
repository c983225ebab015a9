/*
 * The short way for the x87 instructions that programs are full of: arithmetic, loads, stores, FXCH, FCHS, FABS, FCOMI.
 *
 * The way of x87.c moves the whole x87 state to the host and back, which takes hundreds of nanoseconds. When all exceptions are
 * masked and the registers that the instruction reads are valid, and the one that it fills is empty, only its operands need to go
 * there: the host's stack is empty between instructions (the C calling convention wants it so), the operands are loaded as 80
 * bits, which raises nothing, the instruction is executed with ST(1) in place of ST(i), and its result is stored as 80 bits. The
 * control word is loaded only when the guest's is not the usual one. Sticky flags on the host that the guest has too do no harm.
 *
 * Everything else goes the long way. Source: SDM vol. 1 §8.
 */
#include "cpu/x86/x87.h"

#define FPU (&cpu->s.fpu)
#define FSW_C1 0x200u
#define FSW_FLAGS 0x3fu

/* rdi: ST(0), rsi: ST(i) or the operand in memory, rdx: form. The status word comes back; x87_fast_compare adds AH from LAHF << 16. */
typedef uint32_t fast_fn(void *st0, void *other, const void *form);

/* st0 = op(st0, [memory]) */
fast_fn x87_fast_one __attribute__((visibility("hidden")));
/* both registers change places or one of them changes */
fast_fn x87_fast_two __attribute__((visibility("hidden")));
/* sti = op(sti, st0), st0 popped */
fast_fn x87_fast_pop __attribute__((visibility("hidden")));
/* st0 = [memory] */
fast_fn x87_fast_load __attribute__((visibility("hidden")));
/* [memory] = st0; the form pops */
fast_fn x87_fast_store __attribute__((visibility("hidden")));
/* the form does not pop */
fast_fn x87_fast_compare __attribute__((visibility("hidden")));

#define FAST(name, before, after)                                                                                        \
        __asm__(".text\n\t.balign 16\n\t.type " #name ", @function\n" #name ":\n\tendbr64\n\t" before "call *%rdx\n\t" after \
                "ret\n\t.size " #name ", . - " #name "\n\t");

FAST(x87_fast_one, "fldt (%rdi)\n\t", "fnstsw %ax\n\tmovzwl %ax, %eax\n\tfstpt (%rdi)\n\t")
FAST(x87_fast_two, "fldt (%rsi)\n\tfldt (%rdi)\n\t", "fnstsw %ax\n\tmovzwl %ax, %eax\n\tfstpt (%rdi)\n\tfstpt (%rsi)\n\t")
FAST(x87_fast_pop, "fldt (%rsi)\n\tfldt (%rdi)\n\t", "fnstsw %ax\n\tmovzwl %ax, %eax\n\tfstpt (%rsi)\n\t")
FAST(x87_fast_load, "", "fnstsw %ax\n\tmovzwl %ax, %eax\n\tfstpt (%rdi)\n\t")
FAST(x87_fast_store, "fldt (%rdi)\n\t", "fnstsw %ax\n\tmovzwl %ax, %eax\n\t")
FAST(x87_fast_compare, "fldt (%rsi)\n\tfldt (%rdi)\n\t",
     "lahf\n\tmovzbl %ah, %ecx\n\tfnstsw %ax\n\tmovzwl %ax, %eax\n\tshll $16, %ecx\n\torl %ecx, %eax\n\tfstp %st(0)\n\tfstp %st(0)\n\t")

static unsigned physical(const struct x86_fpu *fpu, unsigned st)
{
        return (fpu_top(fpu) + st) & 7;
}

static bool valid(const struct x86_fpu *fpu, unsigned st)
{
        return fpu->ftw >> physical(fpu, st) & 1;
}

static void *value(struct x86_fpu *fpu, unsigned st)
{
        return fpu->r[physical(fpu, st)];
}

static void load_control(uint16_t fcw)
{
        __asm__ volatile("fldcw %0" : : "m"(fcw));
}

/* Makes the host compute as the guest; false when the long way must be gone. */
static bool host_begin(const struct x86_fpu *fpu)
{
        uint16_t host;

        if ((fpu->fcw & FSW_FLAGS) != FSW_FLAGS)
                return false;
        __asm__ volatile("fnstsw %0" : "=a"(host));
        if (host & FSW_FLAGS & ~fpu->fsw)
                __asm__ volatile("fnclex");
        if (fpu->fcw != FPU_FCW_DEFAULT)
                load_control(fpu->fcw);
        return true;
}

static void host_end(struct x86_cpu *cpu, const struct insn *i, uint32_t host)
{
        struct x86_fpu *fpu = FPU;

        if (fpu->fcw != FPU_FCW_DEFAULT)
                load_control(FPU_FCW_DEFAULT);
        fpu->fsw = (uint16_t)((fpu->fsw & ~FSW_C1) | (host & (FSW_C1 | FSW_FLAGS)));
        x87_set_pointers(cpu, i);
}

static void pop(struct x86_fpu *fpu)
{
        fpu->ftw &= (uint8_t)~(1u << fpu_top(fpu));
        fpu->fsw = (uint16_t)((fpu->fsw & ~0x3800) | ((fpu_top(fpu) + 1) & 7) << FPU_FSW_TOP_SHIFT);
}

/* ST(i) of a register form. */
static unsigned other(const struct insn *i)
{
        return (unsigned)i->imm & 7;
}

HANDLER(fast_two)
{
        struct x86_fpu *fpu = FPU;
        unsigned st = other(i);

        x87_check_pending(cpu);
        if (unlikely(!st || !valid(fpu, 0) || !valid(fpu, st) || !host_begin(fpu)))
                return x87_run_register(cpu, i);
        host_end(cpu, i, x87_fast_two(value(fpu, 0), value(fpu, st), i->aux));
        return i + 1;
}

HANDLER(fast_pop)
{
        struct x86_fpu *fpu = FPU;
        unsigned st = other(i);

        x87_check_pending(cpu);
        if (unlikely(!st || !valid(fpu, 0) || !valid(fpu, st) || !host_begin(fpu)))
                return x87_run_register(cpu, i);
        host_end(cpu, i, x87_fast_pop(value(fpu, 0), value(fpu, st), i->aux));
        pop(fpu);
        return i + 1;
}

HANDLER(fast_unary)
{
        struct x86_fpu *fpu = FPU;

        x87_check_pending(cpu);
        if (unlikely(!valid(fpu, 0) || !host_begin(fpu)))
                return x87_run_register(cpu, i);
        host_end(cpu, i, x87_fast_one(value(fpu, 0), NULL, i->aux));
        return i + 1;
}

HANDLER(fast_compare)
{
        struct x86_fpu *fpu = FPU;
        unsigned st = other(i);
        uint32_t result;

        x87_check_pending(cpu);
        if (unlikely(!st || !valid(fpu, 0) || !valid(fpu, st) || !host_begin(fpu)))
                return x87_run_fcomi(cpu, i);
        result = x87_fast_compare(value(fpu, 0), value(fpu, st), i->aux);
        host_end(cpu, i, (result & ~FSW_C1) | (fpu->fsw & FSW_C1)); /* these leave C1 as it is */
        if ((i->imm >> 8 & 7) == 7) /* DF: FCOMIP, FUCOMIP */
                pop(fpu);
        simd_set_flags(cpu, result >> 16 & (X86_FLAG_CF | X86_FLAG_PF | X86_FLAG_ZF));
        return i + 1;
}

HANDLER(fast_memory)
{
        uint8_t memory[16] __attribute__((aligned(16)));
        struct x86_fpu *fpu = FPU;

        if (unlikely(fpu->fsw & FPU_FSW_ES || !valid(fpu, 0)))
                return x87_run_load(cpu, i);
        simd_read(cpu, insn_linear(cpu, i, i->imm2, false), memory, i->imm2);
        if (unlikely(!host_begin(fpu)))
                return x87_run_load(cpu, i);
        host_end(cpu, i, x87_fast_one(value(fpu, 0), memory, i->aux));
        return i + 1;
}

HANDLER(fast_load)
{
        uint8_t memory[16] __attribute__((aligned(16)));
        struct x86_fpu *fpu = FPU;

        if (unlikely(fpu->fsw & FPU_FSW_ES || valid(fpu, 7)))
                return x87_run_load(cpu, i);
        simd_read(cpu, insn_linear(cpu, i, i->imm2, false), memory, i->imm2);
        if (unlikely(!host_begin(fpu)))
                return x87_run_load(cpu, i);
        host_end(cpu, i, x87_fast_load(value(fpu, 7), memory, i->aux));
        fpu->fsw = (uint16_t)((fpu->fsw & ~0x3800) | physical(fpu, 7) << FPU_FSW_TOP_SHIFT);
        fpu->ftw |= (uint8_t)(1u << fpu_top(fpu));
        return i + 1;
}

/* The host's part comes first and changes nothing of the guest's; then the write, which may fault. */
HANDLER(fast_store)
{
        uint8_t memory[16] __attribute__((aligned(16)));
        struct x86_fpu *fpu = FPU;
        uint32_t result;

        if (unlikely(fpu->fsw & FPU_FSW_ES || !valid(fpu, 0) || !host_begin(fpu)))
                return x87_run_store(cpu, i);
        result = x87_fast_store(value(fpu, 0), memory, i->aux);
        if (fpu->fcw != FPU_FCW_DEFAULT)
                load_control(FPU_FCW_DEFAULT);
        simd_write(cpu, insn_linear(cpu, i, i->imm2, true), memory, i->imm2);
        host_end(cpu, i, result);
        if (x87_store_pops(i))
                pop(fpu);
        return i + 1;
}

/* ---- binding: by escape byte (D8 0 … DF 7) and ModRM.reg ---- */

static insn_fn bind_register(struct insn *i, unsigned escape, unsigned reg, unsigned rm)
{
        const uint8_t (*forms)[8] = x87_register_forms[escape];

        i->aux = (void *)forms[reg << 3 | 1];
        switch (escape) {
        case 0: /* D8: ST(0) op= ST(i) */
        case 4: /* DC: ST(i) op= ST(0) */
                return reg == 2 || reg == 3 ? NULL : fast_two;
        case 6: /* DE: the same, and pops */
                return reg == 2 || reg == 3 ? NULL : fast_pop;
        case 1: /* D9: FXCH; FCHS and FABS */
                if (reg == 1)
                        return fast_two;
                if (reg == 4 && rm < 2) {
                        i->aux = (void *)forms[reg << 3 | rm];
                        return fast_unary;
                }
                return NULL;
        case 3: /* DB, DF: FUCOMI, FCOMI and with pop */
        case 7:
                if (reg != 5 && reg != 6)
                        return NULL;
                i->aux = (void *)x87_register_forms[3][reg << 3 | 1];
                return fast_compare;
        default:
                return NULL;
        }
}

static insn_fn bind_memory(struct insn *i, unsigned escape, unsigned reg)
{
        static const uint8_t arithmetic = 1 << 0 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7;
        /* A bit for each ModRM.reg. DB /5 and /7 are FLD and FSTP of 80 bits, DF /5 and /7 FILD and FISTP of 64; FBLD is left out. */
        static const uint8_t loads[8] = { [1] = 1 << 0, [5] = 1 << 0, [3] = 1 << 0 | 1 << 5, [7] = 1 << 0 | 1 << 5 };
        static const uint8_t stores[8] = { [1] = 3 << 2, [5] = 7 << 1, [3] = 7 << 1 | 1 << 7, [7] = 7 << 1 | 1 << 7 };

        i->aux = (void *)x87_memory_forms[escape][reg];
        if (escape % 2 == 0)
                return arithmetic >> reg & 1 ? fast_memory : NULL;
        if (loads[escape] >> reg & 1)
                return fast_load;
        if (!(stores[escape] >> reg & 1))
                return NULL;
        if (reg == 2) /* the form that pops stores the same */
                i->aux = (void *)x87_memory_forms[escape][3];
        return fast_store;
}

insn_fn x87_bind_fast(struct insn *i)
{
        unsigned escape = (unsigned)i->imm >> 8 & 7, reg = (unsigned)i->imm >> 3 & 7, rm = (unsigned)i->imm & 7;

        return (i->imm & 0xc0) == 0xc0 ? bind_register(i, escape, reg, rm) : bind_memory(i, escape, reg);
}
