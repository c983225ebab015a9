/*
 * Hardware task switches: JMP, CALL, IRET and exceptions through a TSS, 16- and 32-bit.
 *
 * Two parts. First everything that faults in the old task: the new TSS is read and the old one is known to be writable. Then the
 * old state is stored, the new registers are loaded, and the segment registers are checked one after the other; a fault there
 * belongs to the new task, so it is raised with the new task's rip.
 *
 * Source: Intel SDM vol. 3A §7.2 (TSS), §7.3 (task switching, table 7-1 for the checks and their order), §7.6 (16-bit TSS).
 */
#include "cpu/x86/bytes.h"
#include "cpu/x86/system.h"

/* The part of a TSS that is dynamic, whichever its size. */
struct task {
        uint32_t cr3, eip, eflags, gpr[8];
        uint16_t seg[X86_SEGS], ldt;
        bool trap;
};

#define TSS32_CR3 0x1c
#define TSS32_EIP 0x20
#define TSS32_BYTES 0x68
#define TSS16_IP 0x0e
#define TSS16_BYTES 0x2c

static void read_task(struct x86_cpu *cpu, uint64_t base, bool tss32, struct task *t)
{
        uint8_t bytes[TSS32_BYTES];

        memset(t, 0, sizeof(*t));
        mmu_system_read(cpu, base, bytes, tss32 ? TSS32_BYTES : TSS16_BYTES);
        if (tss32) {
                t->cr3 = get32(bytes + TSS32_CR3);
                t->eip = get32(bytes + TSS32_EIP);
                t->eflags = get32(bytes + TSS32_EIP + 4);
                for (unsigned i = 0; i < 8; i++)
                        t->gpr[i] = get32(bytes + 0x28 + i * 4);
                for (unsigned i = 0; i < X86_SEGS; i++)
                        t->seg[i] = get16(bytes + 0x48 + i * 4);
                t->ldt = get16(bytes + 0x60);
                t->trap = bytes[0x64] & 1;
                return;
        }
        t->eip = get16(bytes + TSS16_IP);
        t->eflags = get16(bytes + TSS16_IP + 2);
        for (unsigned i = 0; i < 8; i++)
                t->gpr[i] = get16(bytes + 0x12 + i * 2) | 0xffff0000u;
        for (unsigned i = 0; i < 4; i++)
                t->seg[i] = get16(bytes + 0x22 + i * 2);
        t->ldt = get16(bytes + 0x2a);
}

/* Stores the old task's registers; its pages are known to be writable. */
static void write_task(struct x86_cpu *cpu, uint32_t eip, uint32_t eflags)
{
        uint64_t base = cpu->s.tr.base;

        if (cpu->s.tr.access & 8) {
                uint32_t words[16] = { eip, eflags };

                for (unsigned i = 0; i < 8; i++)
                        words[2 + i] = (uint32_t)cpu->s.gpr[i];
                for (unsigned i = 0; i < X86_SEGS; i++)
                        words[10 + i] = cpu->s.seg[i].selector;
                mmu_system_write(cpu, base + TSS32_EIP, words, sizeof(words));
        } else {
                uint16_t words[14] = { (uint16_t)eip, (uint16_t)eflags };

                for (unsigned i = 0; i < 8; i++)
                        words[2 + i] = (uint16_t)cpu->s.gpr[i];
                for (unsigned i = 0; i < 4; i++)
                        words[10 + i] = cpu->s.seg[i].selector;
                mmu_system_write(cpu, base + TSS16_IP, words, sizeof(words));
        }
}

static void load_task_ldt(struct x86_cpu *cpu, uint16_t selector)
{
        struct descriptor d;

        cpu->s.ldtr = segment_null(selector);
        if (!(selector & 0xfffc))
                return;
        if (selector & 4)
                x86_raise(cpu, X86_TS, selector & 0xfffcu);
        descriptor_need(cpu, selector, X86_TS, 0, &d);
        if (DESC_S(d.raw) || DESC_TYPE(d.raw) != TYPE_LDT || !DESC_P(d.raw))
                x86_raise(cpu, X86_TS, selector & 0xfffcu);
        cpu->s.ldtr = descriptor_segment(&d);
}

static struct x86_segment task_code(struct x86_cpu *cpu, uint16_t selector)
{
        unsigned rpl = selector & 3;
        struct descriptor d;

        if (!(selector & 0xfffc))
                x86_raise(cpu, X86_TS, 0);
        descriptor_need(cpu, selector, X86_TS, 0, &d);
        if (!DESC_S(d.raw) || !DESC_CODE(d.raw) || (DESC_CONFORMING(d.raw) ? DESC_DPL(d.raw) > rpl : DESC_DPL(d.raw) != rpl))
                x86_raise(cpu, X86_TS, selector & 0xfffcu);
        if (!DESC_P(d.raw))
                x86_raise(cpu, X86_NP, selector & 0xfffcu);
        descriptor_set_accessed(cpu, &d);
        return descriptor_segment(&d);
}

/* Loads the segment registers with their checks; the selectors are in place first, for a handler to see. */
static void load_task_segments(struct x86_cpu *cpu, const struct task *t)
{
        static const uint8_t data[] = { X86_ES, X86_DS, X86_FS, X86_GS };
        bool v86 = cpu->s.rflags & X86_FLAG_VM;
        unsigned cpl = t->seg[X86_CS] & 3;

        for (unsigned i = 0; i < X86_SEGS; i++)
                cpu->s.seg[i] = v86 ? segment_real(t->seg[i], true) : segment_null(t->seg[i]);
        if (!v86)
                cpu->s.seg[X86_SS].access |= cpl << X86_ACCESS_DPL_SHIFT;
        x86_mode_changed(cpu);
        load_task_ldt(cpu, t->ldt);
        if (v86)
                return;
        cpu->s.seg[X86_CS] = task_code(cpu, t->seg[X86_CS]);
        cpu->s.seg[X86_SS] = stack_segment_fetch(cpu, t->seg[X86_SS], cpl, X86_TS, 0);
        x86_mode_changed(cpu);
        for (unsigned i = 0; i < ARRAY_SIZE(data); i++)
                cpu->s.seg[data[i]] = segment_fetch(cpu, data[i], t->seg[data[i]], cpl, X86_TS);
        x86_mode_changed(cpu);
}

static void load_task_registers(struct x86_cpu *cpu, const struct task *t, bool tss32, uint32_t eflags)
{
        if (tss32 && cpu->s.cr0 & X86_CR0_PG) {
                cpu->s.cr3 = t->cr3;
                mmu_flush(cpu, false);
                if (!mmu_load_pdpte(cpu, cpu->s.cr0, t->cr3, cpu->s.cr4))
                        x86_raise(cpu, X86_TS, cpu->s.tr.selector & 0xfffcu);
        }
        cpu->s.rip = t->eip;
        x86_set_flags(cpu, (eflags & X86_FLAGS_ALL) | X86_FLAG_FIXED);
        for (unsigned i = 0; i < 8; i++)
                cpu->s.gpr[i] = t->gpr[i];
        cpu->s.dr[7] &= ~0x155ull; /* the local breakpoint enables */
}

static void push_error(struct x86_cpu *cpu, bool tss32, uint32_t error_code)
{
        struct stack stack = stack_current(cpu, tss32 ? 4 : 2);

        stack_push(cpu, &stack, error_code);
        x86_set_sp(cpu, stack.sp);
}

/* What happens in the new task: cpu->block is NULL meanwhile, so that s.rip counts for faults. */
static void enter_task(struct x86_cpu *cpu, const struct task *t, bool tss32, uint32_t eflags, bool has_error, uint32_t error_code)
{
        struct x86_block *running = cpu->block;

        cpu->block = NULL;
        load_task_registers(cpu, t, tss32, eflags);
        load_task_segments(cpu, t);
        if (has_error)
                push_error(cpu, tss32, error_code);
        if (t->eip > cpu->s.seg[X86_CS].limit)
                x86_gp0(cpu);
        if (t->trap) {
                cpu->s.dr[6] |= 1u << 15;
                x86_raise(cpu, X86_DB, 0);
        }
        cpu->block = running;
}

void task_switch(struct x86_cpu *cpu, uint16_t selector, enum task_source source, uint64_t next_rip, bool has_error, uint32_t error_code)
{
        bool nests = source == TASK_CALL || source == TASK_INTERRUPT, tss32, old32 = cpu->s.tr.access & 8;
        uint16_t old_selector = cpu->s.tr.selector;
        uint32_t flags = (uint32_t)x86_flags(cpu), new_flags;
        struct x86_segment tss;
        struct descriptor d;
        struct task t;

        descriptor_need(cpu, selector, X86_TS, 0, &d);
        tss = descriptor_segment(&d);
        tss32 = tss.access & 8;
        if (tss.limit < (tss32 ? TSS32_BYTES : TSS16_BYTES) - 1)
                x86_raise(cpu, X86_TS, selector & 0xfffcu);
        read_task(cpu, tss.base, tss32, &t);
        mmu_system_probe_write(cpu, cpu->s.tr.base, old32 ? TSS32_BYTES : TSS16_BYTES);
        if (nests)
                mmu_system_write(cpu, tss.base, &old_selector, 2);
        if (!nests)
                descriptor_set_busy(cpu, old_selector, false);
        write_task(cpu, (uint32_t)next_rip, source == TASK_IRET ? flags & ~(uint32_t)X86_FLAG_NT : flags);
        if (source != TASK_IRET)
                descriptor_set_busy(cpu, selector, true);
        tss.access |= 2;
        cpu->s.tr = tss;
        cpu->s.cr0 |= X86_CR0_TS;
        new_flags = nests ? t.eflags | (uint32_t)X86_FLAG_NT : t.eflags;
        enter_task(cpu, &t, tss32, new_flags, has_error, error_code);
}
