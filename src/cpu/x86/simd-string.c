/*
 * The string comparisons of SSE4.2, executed by the host: one instruction for each of the 128 meaningful immediates.
 *
 * The explicit lengths are 32 or 64 bits, of which only the range -16 … 16 matters: longer ones saturate (SDM vol. 1 §12.10),
 * so they are cut to it first and the host's 32-bit form serves both.
 */
#include "cpu/x86/simd.h"

struct string_result {
        uint64_t index;
        uint64_t flags; /* as LAHF and SETO have them: bits 0-7, and 8 for OF */
        union x86_vector mask;
};

/* rdi: struct string_result, rsi: a, rdx: b, ecx: imm, r8d, r9d: lengths */
typedef void string_kernel(struct string_result *result, const void *a, const void *b, unsigned imm, int32_t length_a, int32_t length_b);

#define STRING_KERNEL(name)                                                                                         \
        extern string_kernel kernel_##name __attribute__((visibility("hidden")));                                   \
        __asm__(".text\n\t.balign 16\n\t.type kernel_" #name ", @function\nkernel_" #name ":\n\tendbr64\n\t"        \
                "movdqu (%rsi), %xmm1\n\tmovdqu (%rdx), %xmm2\n\tpxor %xmm0, %xmm0\n\t"                             \
                "andl $127, %ecx\n\tshll $4, %ecx\n\tleaq 1f(%rip), %r10\n\taddq %rcx, %r10\n\txorl %ecx, %ecx\n\t" \
                "movl %r8d, %eax\n\tmovl %r9d, %edx\n\tcall *%r10\n\tseto %dl\n\tlahf\n\tmovb %ah, %al\n\tmovb %dl, %ah\n\t" \
                "movzwl %ax, %eax\n\tmovq %rcx, (%rdi)\n\tmovq %rax, 8(%rdi)\n\tmovdqu %xmm0, 32(%rdi)\n\tret\n\t"  \
                ".balign 16\n1:\n\t" IMM_128(#name, "%xmm2, %xmm1") ".size kernel_" #name ", . - kernel_" #name "\n\t");

STRING_KERNEL(pcmpestri)
STRING_KERNEL(pcmpestrm)
STRING_KERNEL(pcmpistri)
STRING_KERNEL(pcmpistrm)

static int32_t length_of(uint64_t value, bool is64)
{
        int64_t length = is64 ? (int64_t)value : (int32_t)value;

        return (int32_t)MAX(MIN(length, 16), -16);
}

/* imm2: bit 0 a mask is made, bit 1 the lengths have 64 bits. */
static const struct insn *compare_strings(struct x86_cpu *cpu, const struct insn *i)
{
        union x86_vector buffer;
        const void *b = i->memory_operand == 1 ? simd_source(cpu, insn_linear(cpu, i, 16, false), 16, &buffer) : simd_reg(cpu, i->reg[1]);
        struct string_result result;

        _Static_assert(offsetof(struct string_result, mask) == 32, "the kernels store it there");
        ((string_kernel *)i->aux)(&result, simd_reg(cpu, i->reg[0]), b, (unsigned)i->imm, length_of(cpu->s.gpr[X86_RAX], i->imm2 & 2),
                                  length_of(cpu->s.gpr[X86_RDX], i->imm2 & 2));
        if (!(i->imm2 & 1)) {
                cpu->s.gpr[X86_RCX] = result.index;
        } else {
                simd_set128(simd_reg(cpu, 0), &result.mask);
                if (i->flags & INSN_VEX)
                        simd_zero_upper(simd_reg(cpu, 0));
        }
        simd_set_flags(cpu, (result.flags & (X86_FLAG_CF | X86_FLAG_ZF | X86_FLAG_SF)) | (result.flags & 0x100 ? X86_FLAG_OF : 0));
        return i + 1;
}

static insn_fn with_kernel(struct insn *i, const struct decoded *d, string_kernel *kernel, bool mask)
{
        i->aux = (void *)kernel;
        i->imm2 = (uint8_t)(mask | (i->flags & INSN_MODE64 && (i->flags & INSN_VEX ? d->z->raw.vex.W : d->z->raw.rex.W) ? 2 : 0));
        return compare_strings;
}

#define BOTH(name) case ZYDIS_MNEMONIC_##name: case ZYDIS_MNEMONIC_V##name

insn_fn simd_bind_string(struct insn *i, const struct decoded *d)
{
        switch (d->z->mnemonic) {
        BOTH(PCMPESTRI):
                return with_kernel(i, d, kernel_pcmpestri, false);
        BOTH(PCMPESTRM):
                return with_kernel(i, d, kernel_pcmpestrm, true);
        BOTH(PCMPISTRI):
                return with_kernel(i, d, kernel_pcmpistri, false);
        BOTH(PCMPISTRM):
                return with_kernel(i, d, kernel_pcmpistrm, true);
        default:
                return NULL;
        }
}
