/*
 * Exceptions and interrupts: raising, delivery in every mode, double and triple faults.
 *
 * x86_raise() notes the fault and unwinds to whoever set cpu->unwind: the run loop, or x86_deliver() when the fault happens while
 * another is being delivered. deliver_once() reads everything it needs and builds the frame before it changes a register, so the
 * state of the first event is whole when a second one takes its place.
 *
 *      first \ second    benign       contributory    page fault
 *      benign            second       second          second
 *      contributory      second       #DF             second
 *      page fault        second       #DF             #DF
 *      #DF               second       shutdown        shutdown
 *
 * Limits: no virtual-8086 mode extensions (CPUID says so), so that INT n there needs IOPL 3.
 *
 * Source: Intel SDM vol. 3A chapter 6, tables 6-4 and 6-5 (double fault), §20.1.4 (real mode), vol. 2 "INT n/INTO/INT3/INT1".
 */
#include "cpu/x86/paravirt.h"
#include "cpu/x86/system.h"

/* ---- raising ---- */

static bool pushes_error(unsigned vector)
{
        return vector == X86_DF || (vector >= X86_TS && vector <= X86_PF) || vector == X86_AC || vector == 21;
}

void x86_raise(struct x86_cpu *cpu, enum x86_exception vector, uint32_t error_code)
{
        x86_expect_vectors_out(cpu);
        cpu->fault = (struct x86_fault){
                .vector = (uint8_t)vector,
                .has_error = pushes_error(vector),
                .error_code = pushes_error(vector) ? error_code : 0,
        };
        complex_exclusive_end(cpu);
        longjmp(cpu->unwind, 1);
}

void x86_raise_page_fault(struct x86_cpu *cpu, uint64_t linear, uint32_t error_code)
{
        cpu->s.cr2 = linear;
        x86_raise(cpu, X86_PF, error_code);
}

/* ---- delivery ---- */

/* What is being delivered, as far as frames and error codes need it. */
struct event {
        unsigned vector;
        enum event_kind kind;
        uint64_t return_rip;
        bool has_error;
        uint32_t error;
};

static unsigned ext_bit(const struct event *e)
{
        return e->kind == EVENT_SOFTWARE ? 0 : X86_ERROR_EXT;
}

/* The error code that names an IDT entry. */
static uint32_t idt_error(const struct event *e)
{
        return e->vector * 8 | X86_ERROR_IDT | ext_bit(e);
}

/* The EFLAGS image that is pushed: RF is set for faults, so that an instruction breakpoint does not hit again. */
static uint64_t flags_image(struct x86_cpu *cpu, const struct event *e)
{
        uint64_t flags = x86_flags(cpu);
        bool fault = e->kind == EVENT_EXCEPTION && e->vector != X86_BP && e->vector != X86_OF_TRAP && e->vector != X86_DF &&
                     e->vector != X86_MC && (e->vector != X86_DB || cpu->fault.breakpoint);

        return fault ? flags | X86_FLAG_RF : flags;
}

static void entered(struct x86_cpu *cpu, const struct event *e)
{
        cpu->s.halted = false;
        cpu->s.interrupt_shadow = false;
        cpu->step_trap = false; /* the handler runs with TF clear, and INT n is not stepped over */
        if (e->kind == EVENT_EXTERNAL)
                paravirt_tick(cpu);
        if (e->vector == X86_NMI && e->kind == EVENT_EXTERNAL)
                cpu->s.nmi_masked = true;
        if (e->vector == X86_DB)
                cpu->s.dr[7] &= ~(1ull << 13); /* GD, so that the handler may use the registers */
}

static void deliver_real(struct x86_cpu *cpu, const struct event *e)
{
        struct stack stack = stack_current(cpu, 2);
        struct x86_segment *cs = &cpu->s.seg[X86_CS];
        uint16_t entry[2];

        if (e->vector * 4 + 3 > cpu->s.idtr.limit)
                x86_raise(cpu, X86_GP, idt_error(e));
        mmu_system_read(cpu, cpu->s.idtr.base + e->vector * 4, entry, 4);
        stack_probe(cpu, &stack, 3);
        stack_push(cpu, &stack, x86_flags(cpu));
        stack_push(cpu, &stack, cs->selector);
        stack_push(cpu, &stack, e->return_rip);
        x86_set_sp(cpu, stack.sp);
        cs->selector = entry[1];
        cs->base = (uint64_t)entry[1] << 4;
        cpu->s.rip = entry[0];
        cpu->s.rflags &= ~(X86_FLAG_IF | X86_FLAG_TF | X86_FLAG_AC | X86_FLAG_RF);
        x86_mode_changed(cpu);
        entered(cpu, e);
}

/* An IDT entry, both halves (the upper is 0 outside long mode). */
struct gate {
        uint64_t low, high;
};

static struct gate read_gate(struct x86_cpu *cpu, const struct event *e)
{
        unsigned size_bytes = x86_long(cpu) ? 16 : 8, type;
        struct gate gate = { 0 };

        if (e->vector * size_bytes + size_bytes - 1 > cpu->s.idtr.limit)
                x86_raise(cpu, X86_GP, idt_error(e));
        mmu_system_read(cpu, cpu->s.idtr.base + e->vector * size_bytes, &gate, size_bytes);
        type = DESC_TYPE(gate.low);
        if (DESC_S(gate.low) || !(type == TYPE_INT32 || type == TYPE_TRAP32 ||
                                  (!x86_long(cpu) && (type == TYPE_TASK || type == TYPE_INT16 || type == TYPE_TRAP16))))
                x86_raise(cpu, X86_GP, idt_error(e));
        if (e->kind == EVENT_SOFTWARE && DESC_DPL(gate.low) < cpu->cpl)
                x86_raise(cpu, X86_GP, e->vector * 8 | X86_ERROR_IDT);
        if (!DESC_P(gate.low))
                x86_raise(cpu, X86_NP, idt_error(e));
        return gate;
}

/* The handler's code segment with its checks. */
static void handler_code(struct x86_cpu *cpu, const struct event *e, const struct gate *gate, struct descriptor *code)
{
        uint16_t selector = (uint16_t)(gate->low >> 16);
        uint32_t error = (selector & 0xfffcu) | ext_bit(e);

        if (!(selector & 0xfffc))
                x86_raise(cpu, X86_GP, ext_bit(e));
        descriptor_need(cpu, selector, X86_GP, ext_bit(e), code);
        if (!DESC_S(code->raw) || !DESC_CODE(code->raw) || DESC_DPL(code->raw) > cpu->cpl)
                x86_raise(cpu, X86_GP, error);
        if (x86_long(cpu) && (!DESC_L(code->raw) || DESC_DB(code->raw)))
                x86_raise(cpu, X86_GP, error);
        if (!DESC_P(code->raw))
                x86_raise(cpu, X86_NP, error);
        if (x86_v86(cpu) && (DESC_CONFORMING(code->raw) || DESC_DPL(code->raw) != 0))
                x86_raise(cpu, X86_GP, error);
}

/* The stack in long mode: IST, the inner level's, or this one, aligned to 16 bytes. */
static struct stack long_stack(struct x86_cpu *cpu, const struct event *e, const struct gate *gate, unsigned cpl)
{
        struct stack stack = { .mask = UINT64_MAX, .system = true, .flat = true, .bytes = 8, .error = (uint16_t)ext_bit(e) };
        unsigned ist = gate->low >> 32 & 7;
        uint16_t none;

        stack.ss = cpu->s.seg[X86_SS];
        stack.sp = cpu->s.gpr[X86_RSP];
        if (ist)
                tss_stack(cpu, 3 + ist, ext_bit(e), &none, &stack.sp); /* IST1 follows RSP2 and 8 reserved bytes */
        else if (cpl != cpu->cpl)
                tss_stack(cpu, cpl, ext_bit(e), &none, &stack.sp);
        if (cpl != cpu->cpl) {
                stack.ss = segment_null((uint16_t)cpl);
                stack.ss.access |= cpl << X86_ACCESS_DPL_SHIFT;
        }
        if (!x86_canonical(stack.sp))
                x86_raise(cpu, X86_SS_FAULT, ext_bit(e));
        stack.sp &= ~15ull;
        return stack;
}

/* Enters the handler: the part that cannot fault. */
/* The part of the frame that every mode has. */
static void push_return(struct x86_cpu *cpu, struct stack *stack, const struct event *e)
{
        stack_push(cpu, stack, flags_image(cpu, e));
        stack_push(cpu, stack, cpu->s.seg[X86_CS].selector);
        stack_push(cpu, stack, e->return_rip);
        if (e->has_error)
                stack_push(cpu, stack, e->error);
}

static void enter_handler(struct x86_cpu *cpu, const struct event *e, const struct gate *gate, const struct x86_segment *cs, uint64_t rip)
{
        cpu->s.seg[X86_CS] = *cs;
        cpu->s.rip = rip;
        cpu->s.rflags &= ~(X86_FLAG_TF | X86_FLAG_NT | X86_FLAG_RF | X86_FLAG_VM);
        if (!(DESC_TYPE(gate->low) & 1))
                cpu->s.rflags &= ~X86_FLAG_IF;
        x86_mode_changed(cpu);
        entered(cpu, e);
}

static void deliver_long(struct x86_cpu *cpu, const struct event *e, const struct gate *gate)
{
        uint64_t rip = (gate->low & 0xffff) | (gate->low >> 32 & 0xffff0000) | gate->high << 32;
        struct descriptor code;
        struct x86_segment cs;
        struct stack stack;
        unsigned cpl;

        handler_code(cpu, e, gate, &code);
        cpl = DESC_CONFORMING(code.raw) ? cpu->cpl : DESC_DPL(code.raw);
        if (!x86_canonical(rip))
                x86_raise(cpu, X86_GP, ext_bit(e));
        stack = long_stack(cpu, e, gate, cpl);
        stack_push(cpu, &stack, cpu->s.seg[X86_SS].selector);
        stack_push(cpu, &stack, cpu->s.gpr[X86_RSP]);
        push_return(cpu, &stack, e);
        descriptor_set_accessed(cpu, &code);
        cs = descriptor_segment(&code);
        cs.selector = (uint16_t)((cs.selector & ~3u) | cpl);
        cpu->s.seg[X86_SS] = stack.ss;
        cpu->s.gpr[X86_RSP] = stack.sp;
        enter_handler(cpu, e, gate, &cs, rip);
}

/* The data segments of virtual-8086 mode go to the frame and become null. */
static void push_v86_segments(struct x86_cpu *cpu, struct stack *stack)
{
        stack_push(cpu, stack, cpu->s.seg[X86_GS].selector);
        stack_push(cpu, stack, cpu->s.seg[X86_FS].selector);
        stack_push(cpu, stack, cpu->s.seg[X86_DS].selector);
        stack_push(cpu, stack, cpu->s.seg[X86_ES].selector);
}

static void drop_v86_segments(struct x86_cpu *cpu)
{
        cpu->s.seg[X86_GS] = cpu->s.seg[X86_FS] = cpu->s.seg[X86_DS] = cpu->s.seg[X86_ES] = segment_null(0);
}

static struct stack inner_stack(struct x86_cpu *cpu, const struct event *e, unsigned cpl, unsigned slot_bytes)
{
        struct stack stack = { .system = true, .bytes = (uint8_t)slot_bytes };
        uint16_t selector;

        tss_stack(cpu, cpl, ext_bit(e), &selector, &stack.sp);
        stack.ss = stack_segment_fetch(cpu, selector, cpl, X86_TS, ext_bit(e));
        stack.mask = stack.ss.access & X86_ACCESS_DB ? UINT32_MAX : UINT16_MAX;
        stack.sp &= stack.mask;
        stack.error = (uint16_t)((selector & 0xfffcu) | ext_bit(e));
        return stack;
}

static void deliver_legacy(struct x86_cpu *cpu, const struct event *e, const struct gate *gate)
{
        bool v86 = x86_v86(cpu), gate32 = DESC_TYPE(gate->low) & 8, inner;
        unsigned slot_bytes = gate32 ? 4 : 2, slots, cpl;
        uint64_t rip = gate->low & 0xffff;
        struct descriptor code;
        struct x86_segment cs;
        struct stack stack;

        if (gate32)
                rip |= gate->low >> 32 & 0xffff0000;
        handler_code(cpu, e, gate, &code);
        cpl = DESC_CONFORMING(code.raw) ? cpu->cpl : DESC_DPL(code.raw);
        inner = cpl != cpu->cpl;
        if (inner) {
                stack = inner_stack(cpu, e, cpl, slot_bytes);
        } else {
                stack = stack_current(cpu, slot_bytes);
                stack.error = (uint16_t)ext_bit(e);
        }
        cs = descriptor_segment(&code);
        cs.selector = (uint16_t)((cs.selector & ~3u) | cpl);
        if (rip > cs.limit)
                x86_raise(cpu, X86_GP, ext_bit(e));
        slots = (v86 ? 4 : 0) + (inner ? 2 : 0) + 3 + (e->has_error ? 1 : 0);
        stack_probe(cpu, &stack, slots);
        if (v86)
                push_v86_segments(cpu, &stack);
        if (inner) {
                stack_push(cpu, &stack, cpu->s.seg[X86_SS].selector);
                stack_push(cpu, &stack, cpu->s.gpr[X86_RSP]);
        }
        push_return(cpu, &stack, e);
        descriptor_set_accessed(cpu, &code);
        if (v86)
                drop_v86_segments(cpu);
        if (inner)
                cpu->s.seg[X86_SS] = stack.ss;
        if (stack.mask == UINT16_MAX)
                cpu->s.gpr[X86_RSP] = (cpu->s.gpr[X86_RSP] & ~0xffffull) | stack.sp;
        else
                cpu->s.gpr[X86_RSP] = stack.sp;
        cs.access |= 1;
        enter_handler(cpu, e, gate, &cs, rip);
}

static void deliver_task(struct x86_cpu *cpu, const struct event *e, const struct gate *gate)
{
        uint16_t selector = (uint16_t)(gate->low >> 16);
        uint32_t error = (selector & 0xfffcu) | ext_bit(e);
        struct descriptor d;

        if (selector & 4)
                x86_raise(cpu, X86_GP, error);
        descriptor_need(cpu, selector, X86_GP, ext_bit(e), &d);
        if (DESC_S(d.raw) || (DESC_TYPE(d.raw) != TYPE_TSS16 && DESC_TYPE(d.raw) != TYPE_TSS32))
                x86_raise(cpu, X86_GP, error);
        if (!DESC_P(d.raw))
                x86_raise(cpu, X86_NP, error);
        task_switch(cpu, selector, TASK_INTERRUPT, e->return_rip, e->has_error, e->error);
        entered(cpu, e);
}

void deliver_once(struct x86_cpu *cpu, unsigned vector, enum event_kind kind, uint64_t return_rip, bool has_error, uint32_t error)
{
        const struct event e = { vector, kind, return_rip, has_error, error };
        struct gate gate;

        if (!(cpu->s.cr0 & X86_CR0_PE)) {
                deliver_real(cpu, &e);
                return;
        }
        gate = read_gate(cpu, &e);
        if (x86_long(cpu))
                deliver_long(cpu, &e, &gate);
        else if (DESC_TYPE(gate.low) == TYPE_TASK)
                deliver_task(cpu, &e, &gate);
        else
                deliver_legacy(cpu, &e, &gate);
}

/* ---- nested faults ---- */

enum fault_class { CLASS_BENIGN, CLASS_CONTRIBUTORY, CLASS_PAGE_FAULT, CLASS_DOUBLE };

static enum fault_class class_of(unsigned vector, enum event_kind kind)
{
        if (kind != EVENT_EXCEPTION)
                return CLASS_BENIGN;
        switch (vector) {
        case X86_DE:
        case X86_TS:
        case X86_NP:
        case X86_SS_FAULT:
        case X86_GP:
                return CLASS_CONTRIBUTORY;
        case X86_PF:
                return CLASS_PAGE_FAULT;
        case X86_DF:
                return CLASS_DOUBLE;
        default:
                return CLASS_BENIGN;
        }
}

/* The fault that takes over when second happens while first is delivered; false for shutdown. */
static bool combine(struct x86_cpu *cpu, enum fault_class first, enum fault_class second)
{
        bool serious = second == CLASS_CONTRIBUTORY || second == CLASS_PAGE_FAULT;

        if (first == CLASS_DOUBLE && serious)
                return false;
        if ((first == CLASS_CONTRIBUTORY && second == CLASS_CONTRIBUTORY) || (first == CLASS_PAGE_FAULT && serious))
                cpu->fault = (struct x86_fault){ .vector = X86_DF, .has_error = true };
        return true;
}

static int deliver(struct x86_cpu *cpu, unsigned first_vector, enum event_kind first_kind, bool first_has_error, uint32_t first_error)
{
        volatile enum event_kind kind = first_kind;
        volatile unsigned vector = first_vector;
        volatile bool has_error = first_has_error;
        volatile uint32_t error = first_error;
        jmp_buf outer;
        int r = 0;

        memcpy(outer, cpu->unwind, sizeof(outer));
        for (;;) {
                if (setjmp(cpu->unwind) == 0) {
                        deliver_once(cpu, vector, kind, cpu->s.rip, has_error, error);
                        break;
                }
                if (!combine(cpu, class_of(vector, kind), class_of(cpu->fault.vector, EVENT_EXCEPTION))) {
                        r = -1;
                        break;
                }
                kind = EVENT_EXCEPTION;
                vector = cpu->fault.vector;
                has_error = cpu->fault.has_error;
                error = cpu->fault.error_code;
        }
        memcpy(cpu->unwind, outer, sizeof(outer));
        return r;
}

int x86_deliver(struct x86_cpu *cpu, unsigned vector, bool software, bool has_error, uint32_t error_code)
{
        enum event_kind kind = software ? EVENT_SOFTWARE : vector < 32 && vector != X86_NMI ? EVENT_EXCEPTION : EVENT_EXTERNAL;

        return deliver(cpu, vector, kind, has_error, error_code);
}

int x86_deliver_fault(struct x86_cpu *cpu)
{
        return deliver(cpu, cpu->fault.vector, EVENT_EXCEPTION, cpu->fault.has_error, cpu->fault.error_code);
}

/* ---- INIT and SIPI ---- */

/* SDM vol. 3A table 10-1, column INIT: FPU, MSRs, TSC and caching stay as they were. */
void x86_init_received(struct x86_cpu *cpu)
{
        struct x86_state old = cpu->s, *s = &cpu->s;
        uint64_t cache = old.cr0 & (X86_CR0_CD | X86_CR0_NW);

        x86_state_reset(s, old.apic_base & 1u << 8);
        s->cr0 = cache | X86_CR0_ET;
        s->fpu = old.fpu;
        s->xcr0 = old.xcr0;
        s->star = old.star;
        s->lstar = old.lstar;
        s->cstar = old.cstar;
        s->sfmask = old.sfmask;
        s->kernel_gs_base = old.kernel_gs_base;
        s->sysenter_cs = old.sysenter_cs;
        s->sysenter_esp = old.sysenter_esp;
        s->sysenter_eip = old.sysenter_eip;
        s->pat = old.pat;
        s->tsc_offset = old.tsc_offset;
        s->tsc_adjust = old.tsc_adjust;
        s->tsc_aux = old.tsc_aux;
        s->misc_enable = old.misc_enable;
        s->spec_ctrl = old.spec_ctrl;
        s->mtrr_def_type = old.mtrr_def_type;
        memcpy(s->mtrr_fixed, old.mtrr_fixed, sizeof(s->mtrr_fixed));
        memcpy(s->mtrr_var, old.mtrr_var, sizeof(s->mtrr_var));
        s->apic_base = old.apic_base;
        s->pv_wall_clock = old.pv_wall_clock;
        s->pv_system_time = old.pv_system_time;
        s->pv_steal_time = old.pv_steal_time;
        s->pv_eoi = old.pv_eoi;
        s->pv_async_pf = old.pv_async_pf;
        s->pv_poll_control = old.pv_poll_control;
        x86_set_flags(cpu, X86_FLAG_FIXED);
        mmu_flush(cpu, true);
        x86_mode_changed(cpu);
}

void x86_sipi_received(struct x86_cpu *cpu, uint8_t vector)
{
        if (!cpu->s.wait_for_sipi)
                return;
        cpu->s.wait_for_sipi = false;
        cpu->s.halted = false;
        cpu->s.seg[X86_CS].selector = (uint16_t)(vector << 8);
        cpu->s.seg[X86_CS].base = (uint64_t)vector << 12;
        cpu->s.rip = 0;
        x86_mode_changed(cpu);
}
