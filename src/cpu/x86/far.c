/*
 * Far transfers: JMP, CALL, RET and IRET between segments, privilege levels and modes.
 *
 * Each works in two parts: everything that may fault (descriptors, stack reads and writes, checks), in the order of the manual's
 * pseudo code; then the registers. Call gates and the frames of inner stacks are here; task switches are in task.c.
 *
 * Source: Intel SDM vol. 2 "JMP", "CALL", "RET", "IRET/IRETD/IRETQ"; vol. 3A §5.8 (control transfer), §5.8.3 (call gates).
 */
#include "cpu/x86/system.h"

static uint64_t cut(uint64_t value, unsigned bytes)
{
        return bytes == 8 ? value : bytes == 4 ? (uint32_t)value : (uint16_t)value;
}

void check_code_target(struct x86_cpu *cpu, const struct x86_segment *cs, uint64_t rip)
{
        if (x86_long(cpu) && cs->access & X86_ACCESS_L ? !x86_canonical(rip) : rip > cs->limit)
                x86_gp0(cpu);
}

void set_code(struct x86_cpu *cpu, const struct x86_segment *cs, uint64_t rip)
{
        cpu->s.seg[X86_CS] = *cs;
        cpu->s.rip = rip;
        x86_mode_changed(cpu);
}

static void jump_real(struct x86_cpu *cpu, uint16_t selector, uint64_t offset)
{
        struct x86_segment cs = cpu->s.seg[X86_CS];

        if (x86_v86(cpu)) {
                cs = segment_real(selector, true);
        } else {
                cs.selector = selector;
                cs.base = (uint64_t)selector << 4;
                cs.access = (cs.access & (X86_ACCESS_DB | X86_ACCESS_G)) | 3 | X86_ACCESS_S | X86_ACCESS_P;
        }
        check_code_target(cpu, &cs, offset);
        set_code(cpu, &cs, offset);
}

/* ---- targets ---- */

static _Noreturn void gp(struct x86_cpu *cpu, uint16_t selector)
{
        x86_raise(cpu, X86_GP, selector & 0xfffcu);
}

/* L and D together are not a code segment in long mode. */
static void check_long_code(struct x86_cpu *cpu, const struct descriptor *d)
{
        if (x86_long(cpu) && DESC_L(d->raw) && DESC_DB(d->raw))
                gp(cpu, d->selector);
}

/* A code segment reached directly by JMP or CALL: stays at this CPL. */
static struct x86_segment direct_code(struct x86_cpu *cpu, struct descriptor *d)
{
        struct x86_segment cs;

        check_long_code(cpu, d);
        if (DESC_CONFORMING(d->raw) ? DESC_DPL(d->raw) > cpu->cpl : (d->selector & 3u) > cpu->cpl || DESC_DPL(d->raw) != cpu->cpl)
                gp(cpu, d->selector);
        if (!DESC_P(d->raw))
                x86_raise(cpu, X86_NP, d->selector & 0xfffcu);
        descriptor_set_accessed(cpu, d);
        cs = descriptor_segment(d);
        cs.selector = (uint16_t)((cs.selector & ~3u) | cpu->cpl);
        return cs;
}

/* What a call gate leads to. */
struct gate {
        struct descriptor code;
        uint64_t offset;
        uint8_t slot_bytes; /* 2, 4, 8 */
        uint8_t params;
};

static struct gate call_gate(struct x86_cpu *cpu, const struct descriptor *d, bool jump)
{
        struct gate g = { .slot_bytes = x86_long(cpu) ? 8 : DESC_TYPE(d->raw) == TYPE_CALL32 ? 4 : 2, .params = d->raw >> 32 & 31 };
        uint16_t selector = (uint16_t)(d->raw >> 16);

        if (DESC_DPL(d->raw) < cpu->cpl || DESC_DPL(d->raw) < (d->selector & 3u))
                gp(cpu, d->selector);
        g.offset = (d->raw & 0xffff) | (d->raw >> 32 & 0xffff0000);
        if (g.slot_bytes == 2)
                g.offset &= 0xffff;
        if (x86_long(cpu))
                g.offset |= descriptor_high(cpu, d) << 32;
        if (!DESC_P(d->raw))
                x86_raise(cpu, X86_NP, d->selector & 0xfffcu);
        if (!(selector & 0xfffc))
                x86_gp0(cpu);
        descriptor_need(cpu, selector, X86_GP, 0, &g.code);
        if (!DESC_S(g.code.raw) || !DESC_CODE(g.code.raw) || DESC_DPL(g.code.raw) > cpu->cpl)
                gp(cpu, selector);
        if (x86_long(cpu) && (!DESC_L(g.code.raw) || DESC_DB(g.code.raw)))
                gp(cpu, selector);
        if (jump && !DESC_CONFORMING(g.code.raw) && DESC_DPL(g.code.raw) != cpu->cpl)
                gp(cpu, selector);
        if (!DESC_P(g.code.raw))
                x86_raise(cpu, X86_NP, selector & 0xfffcu);
        return g;
}

/* A TSS or task gate as the target of JMP or CALL: the TSS selector. */
static uint16_t task_target(struct x86_cpu *cpu, const struct descriptor *d)
{
        uint16_t selector = d->selector;
        struct descriptor tss;

        if (DESC_DPL(d->raw) < cpu->cpl || DESC_DPL(d->raw) < (d->selector & 3u))
                gp(cpu, d->selector);
        if (DESC_TYPE(d->raw) == TYPE_TASK) {
                if (!DESC_P(d->raw))
                        x86_raise(cpu, X86_NP, d->selector & 0xfffcu);
                selector = (uint16_t)(d->raw >> 16);
                if (selector & 4)
                        gp(cpu, selector);
                descriptor_need(cpu, selector, X86_GP, 0, &tss);
        } else {
                tss = *d;
        }
        if (selector & 4 || DESC_S(tss.raw) || (DESC_TYPE(tss.raw) != TYPE_TSS16 && DESC_TYPE(tss.raw) != TYPE_TSS32))
                gp(cpu, selector);
        if (!DESC_P(tss.raw))
                x86_raise(cpu, X86_NP, selector & 0xfffcu);
        return selector;
}

static bool is_task(const struct descriptor *d)
{
        unsigned type = DESC_TYPE(d->raw);

        return type == TYPE_TSS16 || type == TYPE_TSS32 || type == TYPE_TASK;
}

static bool is_call_gate(const struct x86_cpu *cpu, const struct descriptor *d)
{
        return DESC_TYPE(d->raw) == TYPE_CALL32 || (DESC_TYPE(d->raw) == TYPE_CALL16 && !x86_long(cpu));
}

/* ---- JMP ---- */

void far_jump(struct x86_cpu *cpu, uint16_t selector, uint64_t offset, unsigned opsize, uint64_t next_rip)
{
        struct x86_segment cs;
        struct descriptor d;

        offset = cut(offset, opsize);
        if (!x86_protected(cpu)) {
                jump_real(cpu, selector, offset);
                return;
        }
        if (!(selector & 0xfffc))
                x86_gp0(cpu);
        descriptor_need(cpu, selector, X86_GP, 0, &d);
        if (DESC_S(d.raw)) {
                if (!DESC_CODE(d.raw))
                        gp(cpu, selector);
                cs = direct_code(cpu, &d);
        } else if (is_call_gate(cpu, &d)) {
                struct gate g = call_gate(cpu, &d, true);

                descriptor_set_accessed(cpu, &g.code);
                cs = descriptor_segment(&g.code);
                cs.selector = (uint16_t)((cs.selector & ~3u) | cpu->cpl);
                offset = g.offset;
        } else if (!x86_long(cpu) && is_task(&d)) {
                task_switch(cpu, task_target(cpu, &d), TASK_JUMP, next_rip, false, 0);
                return;
        } else {
                gp(cpu, selector);
        }
        check_code_target(cpu, &cs, offset);
        set_code(cpu, &cs, offset);
}

/* ---- CALL ---- */

static void commit_stack(struct x86_cpu *cpu, const struct stack *stack)
{
        if (stack->mask == UINT16_MAX)
                cpu->s.gpr[X86_RSP] = (cpu->s.gpr[X86_RSP] & ~0xffffull) | stack->sp;
        else
                cpu->s.gpr[X86_RSP] = stack->sp;
}

static uint64_t segment_stack_mask(const struct x86_segment *ss)
{
        return ss->access & X86_ACCESS_DB ? UINT32_MAX : UINT16_MAX;
}

/* Through a gate to a more privileged level: a new stack with the old one's pointer, the parameters and the return address. */
static void call_inner(struct x86_cpu *cpu, struct gate *g, uint64_t next_rip)
{
        unsigned dpl = DESC_DPL(g->code.raw);
        struct stack old = stack_current(cpu, g->slot_bytes), new = { .system = true, .bytes = g->slot_bytes };
        struct x86_segment cs;
        uint16_t selector;
        uint64_t params[31];

        tss_stack(cpu, dpl, 0, &selector, &new.sp);
        if (x86_long(cpu)) {
                new.ss = segment_null((uint16_t)dpl);
                new.ss.access |= dpl << X86_ACCESS_DPL_SHIFT;
                new.mask = UINT64_MAX;
                new.flat = true;
                g->params = 0;
        } else {
                new.ss = stack_segment_fetch(cpu, selector, dpl, X86_TS, 0);
                new.mask = segment_stack_mask(&new.ss);
                new.sp &= new.mask;
                new.error = selector & 0xfffc;
        }
        for (unsigned i = 0; i < g->params; i++)
                params[i] = stack_pop(cpu, &old);
        stack_push(cpu, &new, cpu->s.seg[X86_SS].selector);
        stack_push(cpu, &new, cpu->s.gpr[X86_RSP]);
        for (unsigned i = g->params; i-- > 0;)
                stack_push(cpu, &new, params[i]);
        stack_push(cpu, &new, cpu->s.seg[X86_CS].selector);
        stack_push(cpu, &new, next_rip);
        descriptor_set_accessed(cpu, &g->code);
        cs = descriptor_segment(&g->code);
        cs.selector = (uint16_t)((cs.selector & ~3u) | dpl);
        check_code_target(cpu, &cs, g->offset);
        cpu->s.seg[X86_SS] = new.ss;
        commit_stack(cpu, &new);
        set_code(cpu, &cs, g->offset);
}

static void push_return(struct x86_cpu *cpu, unsigned slot_bytes, uint64_t next_rip, const struct x86_segment *cs, uint64_t target)
{
        struct stack stack = stack_current(cpu, slot_bytes);

        stack_probe(cpu, &stack, 2);
        check_code_target(cpu, cs, target);
        stack_push(cpu, &stack, cpu->s.seg[X86_CS].selector);
        stack_push(cpu, &stack, next_rip);
        commit_stack(cpu, &stack);
        set_code(cpu, cs, target);
}

static void call_real(struct x86_cpu *cpu, uint16_t selector, uint64_t offset, unsigned opsize, uint64_t next_rip)
{
        struct stack stack = stack_current(cpu, opsize);

        if (offset > cpu->s.seg[X86_CS].limit)
                x86_gp0(cpu);
        stack_probe(cpu, &stack, 2);
        stack_push(cpu, &stack, cpu->s.seg[X86_CS].selector);
        stack_push(cpu, &stack, next_rip);
        commit_stack(cpu, &stack);
        jump_real(cpu, selector, offset);
}

void far_call(struct x86_cpu *cpu, uint16_t selector, uint64_t offset, unsigned opsize, uint64_t next_rip)
{
        struct descriptor d;

        offset = cut(offset, opsize);
        if (!x86_protected(cpu)) {
                call_real(cpu, selector, offset, opsize, next_rip);
                return;
        }
        if (!(selector & 0xfffc))
                x86_gp0(cpu);
        descriptor_need(cpu, selector, X86_GP, 0, &d);
        if (DESC_S(d.raw)) {
                struct x86_segment cs;

                if (!DESC_CODE(d.raw))
                        gp(cpu, selector);
                cs = direct_code(cpu, &d);
                push_return(cpu, opsize, next_rip, &cs, offset);
        } else if (is_call_gate(cpu, &d)) {
                struct gate g = call_gate(cpu, &d, false);

                if (!DESC_CONFORMING(g.code.raw) && DESC_DPL(g.code.raw) < cpu->cpl) {
                        call_inner(cpu, &g, next_rip);
                } else {
                        struct x86_segment cs;

                        descriptor_set_accessed(cpu, &g.code);
                        cs = descriptor_segment(&g.code);
                        cs.selector = (uint16_t)((cs.selector & ~3u) | cpu->cpl);
                        push_return(cpu, g.slot_bytes, next_rip, &cs, g.offset);
                }
        } else if (!x86_long(cpu) && is_task(&d)) {
                task_switch(cpu, task_target(cpu, &d), TASK_CALL, next_rip, false, 0);
        } else {
                gp(cpu, selector);
        }
}

/* ---- RET and IRET ---- */

/* The code segment that a return names; its RPL is the new CPL. */
static struct x86_segment return_code(struct x86_cpu *cpu, uint16_t selector)
{
        unsigned rpl = selector & 3;
        struct descriptor d;

        if (!(selector & 0xfffc))
                x86_gp0(cpu);
        descriptor_need(cpu, selector, X86_GP, 0, &d);
        if (!DESC_S(d.raw) || !DESC_CODE(d.raw) || rpl < cpu->cpl)
                gp(cpu, selector);
        if (DESC_CONFORMING(d.raw) ? DESC_DPL(d.raw) > rpl : DESC_DPL(d.raw) != rpl)
                gp(cpu, selector);
        check_long_code(cpu, &d);
        if (!DESC_P(d.raw))
                x86_raise(cpu, X86_NP, selector & 0xfffcu);
        descriptor_set_accessed(cpu, &d);
        return descriptor_segment(&d);
}

/* SS of the stack that a return goes to. */
static struct x86_segment return_stack(struct x86_cpu *cpu, uint16_t selector, const struct x86_segment *cs)
{
        unsigned cpl = cs->selector & 3;

        if (!(selector & 0xfffc) && x86_long(cpu) && cs->access & X86_ACCESS_L && cpl != 3 && (selector & 3u) == cpl) {
                struct x86_segment null = segment_null(selector);

                null.access |= cpl << X86_ACCESS_DPL_SHIFT;
                return null;
        }
        return stack_segment_fetch(cpu, selector, cpl, X86_GP, 0);
}

/* Sets RSP for the stack segment of a return, as wide as the target's mode. */
static void set_return_sp(struct x86_cpu *cpu, const struct x86_segment *cs, const struct x86_segment *ss, uint64_t sp)
{
        if (x86_long(cpu) && cs->access & X86_ACCESS_L)
                cpu->s.gpr[X86_RSP] = sp;
        else if (ss->access & X86_ACCESS_DB)
                cpu->s.gpr[X86_RSP] = (uint32_t)sp;
        else
                cpu->s.gpr[X86_RSP] = (cpu->s.gpr[X86_RSP] & ~0xffffull) | (uint16_t)sp;
}

void far_return(struct x86_cpu *cpu, unsigned opsize, unsigned drop_bytes)
{
        struct stack stack = stack_current(cpu, opsize);
        uint64_t rip = stack_pop(cpu, &stack);
        uint16_t selector = (uint16_t)stack_pop(cpu, &stack);
        struct x86_segment cs, ss;
        uint64_t sp;

        stack.sp = (stack.sp + drop_bytes) & stack.mask;
        if (!x86_protected(cpu)) {
                if (rip > cpu->s.seg[X86_CS].limit)
                        x86_gp0(cpu);
                commit_stack(cpu, &stack);
                jump_real(cpu, selector, rip);
                return;
        }
        cs = return_code(cpu, selector);
        if ((selector & 3) == cpu->cpl) {
                check_code_target(cpu, &cs, rip);
                commit_stack(cpu, &stack);
                set_code(cpu, &cs, rip);
                return;
        }
        sp = stack_pop(cpu, &stack);
        ss = return_stack(cpu, (uint16_t)stack_pop(cpu, &stack), &cs);
        check_code_target(cpu, &cs, rip);
        cpu->s.seg[X86_SS] = ss;
        set_return_sp(cpu, &cs, &ss, sp + drop_bytes);
        set_code(cpu, &cs, rip);
        segments_drop_privileged(cpu, cpu->cpl);
        x86_mode_changed(cpu);
}

/* RF is for the next instruction alone (vol. 3B §18.3.1.1). Without breakpoints nothing looks at it, and nothing would clear it then. */
static uint64_t useful_flags(const struct x86_cpu *cpu, uint64_t flags)
{
        return cpu->s.dr[7] & 0xff ? flags : flags & ~X86_FLAG_RF;
}

/* The flags after IRET, by what this CPL may change (SDM vol. 2 "IRET"). */
static uint64_t returned_flags(struct x86_cpu *cpu, uint64_t image, unsigned opsize)
{
        uint64_t may = X86_FLAGS_STATUS | X86_FLAG_TF | X86_FLAG_DF | X86_FLAG_NT;

        if (opsize > 2)
                may |= X86_FLAG_RF | X86_FLAG_AC | X86_FLAG_ID;
        if (cpu->cpl <= x86_iopl(cpu) || !(cpu->s.cr0 & X86_CR0_PE))
                may |= X86_FLAG_IF;
        if (cpu->cpl == 0 && !x86_v86(cpu))
                may |= X86_FLAG_IOPL | (opsize > 2 && cpu->s.cr0 & X86_CR0_PE ? X86_FLAG_VIF | X86_FLAG_VIP : 0);
        return useful_flags(cpu, (x86_flags(cpu) & ~may) | (image & may) | X86_FLAG_FIXED);
}

static void return_real(struct x86_cpu *cpu, unsigned opsize)
{
        struct stack stack = stack_current(cpu, opsize);
        uint64_t rip = stack_pop(cpu, &stack), flags;
        uint16_t selector = (uint16_t)stack_pop(cpu, &stack);

        flags = stack_pop(cpu, &stack);
        if (rip > cpu->s.seg[X86_CS].limit)
                x86_gp0(cpu);
        flags = returned_flags(cpu, flags, opsize);
        commit_stack(cpu, &stack);
        jump_real(cpu, selector, rip);
        x86_set_flags_and_mode(cpu, flags);
}

/* IRET from CPL 0 to a virtual-8086 task; ip, CS and EFLAGS are popped already. */
static void return_to_v86(struct x86_cpu *cpu, struct stack *stack, uint64_t rip, uint16_t selector, uint64_t flags)
{
        static const uint8_t order[] = { X86_ES, X86_DS, X86_FS, X86_GS };
        uint64_t sp = stack_pop(cpu, stack);
        uint16_t ss = (uint16_t)stack_pop(cpu, stack), data[ARRAY_SIZE(order)];

        for (unsigned i = 0; i < ARRAY_SIZE(order); i++)
                data[i] = (uint16_t)stack_pop(cpu, stack);
        if ((uint32_t)rip > 0xffff)
                x86_gp0(cpu);
        for (unsigned i = 0; i < ARRAY_SIZE(order); i++)
                cpu->s.seg[order[i]] = segment_real(data[i], true);
        cpu->s.seg[X86_SS] = segment_real(ss, true);
        cpu->s.seg[X86_CS] = segment_real(selector, true);
        cpu->s.gpr[X86_RSP] = (uint32_t)sp;
        cpu->s.rip = (uint16_t)rip;
        x86_set_flags(cpu, useful_flags(cpu, (flags & X86_FLAGS_ALL) | X86_FLAG_FIXED));
        x86_mode_changed(cpu);
}

static void return_task(struct x86_cpu *cpu, uint64_t next_rip)
{
        uint16_t link;
        struct descriptor d;

        if (x86_long(cpu))
                x86_gp0(cpu);
        mmu_system_read(cpu, cpu->s.tr.base, &link, 2);
        if (link & 4 || !(link & 0xfffc))
                x86_raise(cpu, X86_TS, link & 0xfffcu);
        descriptor_need(cpu, link, X86_TS, 0, &d);
        if (DESC_S(d.raw) || (DESC_TYPE(d.raw) != TYPE_TSS16_BUSY && DESC_TYPE(d.raw) != TYPE_TSS32_BUSY))
                x86_raise(cpu, X86_TS, link & 0xfffcu);
        if (!DESC_P(d.raw))
                x86_raise(cpu, X86_NP, link & 0xfffcu);
        task_switch(cpu, link, TASK_IRET, next_rip, false, 0);
}

static void return_protected(struct x86_cpu *cpu, unsigned opsize)
{
        struct stack stack = stack_current(cpu, opsize);
        uint64_t rip = stack_pop(cpu, &stack), flags, sp;
        uint16_t selector = (uint16_t)stack_pop(cpu, &stack);
        struct x86_segment cs, ss;
        bool outer;

        flags = stack_pop(cpu, &stack);
        if (flags & X86_FLAG_VM && opsize > 2 && cpu->cpl == 0 && !x86_long(cpu)) {
                return_to_v86(cpu, &stack, rip, selector, flags);
                return;
        }
        cs = return_code(cpu, selector);
        outer = (selector & 3) > cpu->cpl;
        if (outer || cpu->mode64) {
                sp = stack_pop(cpu, &stack);
                ss = return_stack(cpu, (uint16_t)stack_pop(cpu, &stack), &cs);
                check_code_target(cpu, &cs, rip);
                flags = returned_flags(cpu, flags, opsize);
                cpu->s.seg[X86_SS] = ss;
                set_return_sp(cpu, &cs, &ss, sp);
        } else {
                check_code_target(cpu, &cs, rip);
                flags = returned_flags(cpu, flags, opsize);
                commit_stack(cpu, &stack);
        }
        x86_set_flags(cpu, flags);
        cpu->s.seg[X86_CS] = cs;
        cpu->s.rip = rip;
        if (outer)
                segments_drop_privileged(cpu, selector & 3);
        x86_mode_changed(cpu);
}

void interrupt_return(struct x86_cpu *cpu, unsigned opsize, uint64_t next_rip)
{
        if (x86_v86(cpu) && x86_iopl(cpu) != 3)
                x86_gp0(cpu);
        if (!x86_protected(cpu))
                return_real(cpu, opsize);
        else if (cpu->s.rflags & X86_FLAG_NT)
                return_task(cpu, next_rip);
        else
                return_protected(cpu, opsize);
        cpu->s.nmi_masked = false;
}
