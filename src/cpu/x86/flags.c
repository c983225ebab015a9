#include "cpu/x86/flags.h"

/* EFLAGS bits that exist and are kept in s.rflags; the status flags are in cpu->lazy. */
#define FLAGS_KEPT                                                                                                          \
        (X86_FLAG_TF | X86_FLAG_IF | X86_FLAG_DF | X86_FLAG_IOPL | X86_FLAG_NT | X86_FLAG_RF | X86_FLAG_VM | X86_FLAG_AC | \
         X86_FLAG_VIF | X86_FLAG_VIP | X86_FLAG_ID)

uint64_t x86_flags(struct x86_cpu *cpu)
{
        return (cpu->s.rflags & FLAGS_KEPT) | X86_FLAG_FIXED | flags_status(cpu);
}

void x86_set_flags(struct x86_cpu *cpu, uint64_t rflags)
{
        cpu->s.rflags = (rflags & (FLAGS_KEPT | X86_FLAGS_STATUS)) | X86_FLAG_FIXED;
        flags_set_status(cpu, rflags);
}
