/*
 * Random bytes as guest code, in every mode: the processor may fault the guest, never this process.
 *
 * The first byte chooses mode, privilege and features, the next 64 fill the registers, the rest is code, which also lies at a few
 * other places so that wild jumps find some. Blocks and runs of string instructions are done one at a time by a request that is always
 * up, until a budget is spent, so no input runs forever.
 */
#include "cpu/x86/test-run.h"

#include "cpu/x86/block.h"

#define BUDGET 300

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes);

static void prepare(struct test_machine *m, uint8_t choice, const uint8_t *registers, const uint8_t *code, size_t size_bytes)
{
        static const uint32_t places[] = { RUN_CODE, RUN_CODE + 0xff0, RUN_DATA, 0x200000 - 5, 0x400, 0x7c00 };
        struct x86_state *s = choice & 1 ? run_64(m) : choice & 2 ? run_32(m) : run_16(m);

        if (choice & 3 && choice & 4) {
                s->seg[X86_CS].access |= 3 << X86_ACCESS_DPL_SHIFT;
                s->seg[X86_CS].selector |= 3;
                s->seg[X86_SS].access |= 3 << X86_ACCESS_DPL_SHIFT;
                s->seg[X86_SS].selector |= 3;
        }
        if (choice & 8)
                s->rflags |= X86_FLAG_IF | X86_FLAG_IOPL;
        if (choice & 16)
                s->rflags |= X86_FLAG_TF;
        if (choice & 32)
                s->cr4 |= X86_CR4_OSFXSR | X86_CR4_OSXSAVE;
        if (choice & 64)
                s->xcr0 = 7;
        if (choice & 128 && !(choice & 3))
                s->idtr.limit = 0x3ff;
        for (unsigned n = 0; n < 16; n++) {
                uint32_t value;

                memcpy(&value, registers + n * 4, 4);
                /* Small ones are addresses in memory, others extend their sign. */
                if (n != X86_RSP)
                        s->gpr[n] = value & 1 ? (uint64_t)(int32_t)value : value % TEST_MEMORY;
        }
        for (size_t n = 0; n < ARRAY_SIZE(places); n++)
                run_code(m, places[n], code, MIN(size_bytes, (size_t)0x400));
        x86_cpu_state_changed(m->cpu);
}

/* One block, or what of a string instruction is done at a time; -1: triple fault. */
static int step(struct x86_cpu *cpu)
{
        const struct insn *i;

        if (_setjmp(cpu->unwind)) {
                if (cpu->block)
                        cpu->s.rip = insn_rip(cpu, cpu->insn->start);
                cpu->block = NULL;
                return x86_deliver_fault(cpu);
        }
        cpu->s.interrupt_shadow = false;
        if (cpu->mode_key & MODE_STEP)
                x86_step_begin(cpu);
        i = block_enter(cpu);
        do {
                cpu->insn = i;
                i = i->fn(cpu, i);
        } while (i);
        cpu->block = NULL;
        if (cpu->mode_key & MODE_STEP)
                x86_step_end(cpu);
        return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        struct test_machine *m;
        void *state;

        if (size_bytes < 66)
                return 0;
        test_machine_setup(&state);
        m = state;
        prepare(m, bytes[0], bytes + 1, bytes + 65, size_bytes - 65);
        m->cpu->request_mask = X86_REQUEST_EXIT;
        atomic_fetch_or(&m->cpu->requests, X86_REQUEST_EXIT);
        complex_enter(m->cpu);
        for (unsigned n = 0; n < BUDGET && !m->cpu->s.halted && step(m->cpu) == 0; n++)
                ;
        complex_leave(m->cpu);
        test_machine_teardown(&state);
        return 0;
}
