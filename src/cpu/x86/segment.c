/*
 * Segments: descriptors, loading segment registers with their checks, the mode that follows from the state, stacks.
 *
 * The hidden part of a segment register keeps the access bits as VMX lays them out; a null selector is "unusable". CPL is the DPL
 * of SS, which every way of loading SS keeps true (a null SS in long mode carries CPL in its DPL field). Real mode loads only
 * change selector and base, so limits set in protected mode stay ("unreal mode").
 *
 * Source: Intel SDM vol. 3A §3.4 (segment registers and descriptors), chapter 5 (protection); vol. 2 "MOV", "RET", "LDS".
 */
#include "cpu/x86/lock-step.h"
#include "cpu/x86/system.h"

/* ---- the mode ---- */

static bool flat_data(const struct x86_segment *s)
{
        return s->base == 0 && s->limit == UINT32_MAX &&
               (s->access & (X86_ACCESS_UNUSABLE | X86_ACCESS_P | X86_ACCESS_S | 0xe)) == (X86_ACCESS_P | X86_ACCESS_S | 2);
}

static bool flat_code(const struct x86_segment *s)
{
        return s->base == 0 && s->limit == UINT32_MAX && (s->access & (X86_ACCESS_P | X86_ACCESS_S | 0xa)) == (X86_ACCESS_P | X86_ACCESS_S | 0xa);
}

static uint32_t control_bits(const struct x86_state *s)
{
        uint32_t key = 0;

        if (s->cr0 & X86_CR0_EM)
                key |= MODE_CR0_EM;
        if (s->cr0 & X86_CR0_TS)
                key |= MODE_CR0_TS;
        if (s->cr0 & X86_CR0_MP)
                key |= MODE_CR0_MP;
        if (s->cr4 & X86_CR4_OSFXSR)
                key |= MODE_OSFXSR;
        if (s->cr4 & X86_CR4_OSXSAVE)
                key |= MODE_OSXSAVE | ((s->xcr0 & 6) == 6 ? MODE_AVX : 0);
        if (s->cr4 & X86_CR4_FSGSBASE)
                key |= MODE_FSGSBASE;
        if (s->rflags & X86_FLAG_TF || s->dr[7] & 0xff)
                key |= MODE_STEP;
        return key;
}

/* An enabled breakpoint on data: R/W field 1 or 3 (SDM vol. 3B §18.2.4). */
static bool data_breakpoints(uint64_t dr7)
{
        for (unsigned i = 0; (dr7 & 0xff) && i < 4; i++)
                if (dr7 >> (i * 2) & 3 && dr7 >> (16 + i * 4) & 1)
                        return true;
        return false;
}

static uint8_t data_mode(const struct x86_cpu *cpu)
{
        if (cpu->alignment_check || unlikely(data_breakpoints(cpu->s.dr[7])))
                return TLB_CHECKED;
        if (unlikely(cpu->lock_step) && lock_step_walking(cpu))
                return TLB_CHECKED;
        if (cpu->cpl == 3)
                return TLB_USER;
        return cpu->s.cr4 & X86_CR4_SMAP && !(cpu->s.rflags & X86_FLAG_AC) ? TLB_SUPERVISOR_SMAP : TLB_SUPERVISOR;
}

void x86_mode_changed(struct x86_cpu *cpu)
{
        const struct x86_state *s = &cpu->s;
        const struct x86_segment *cs = &s->seg[X86_CS], *ss = &s->seg[X86_SS];
        uint32_t key = control_bits(s);

        if (unlikely(cpu->lock_step) && lock_step_walking(cpu))
                key |= MODE_STEP;
        if (s->efer & X86_EFER_LMA)
                key |= MODE_LONG;
        cpu->mode64 = false;
        if (!(s->cr0 & X86_CR0_PE)) {
                cpu->cpl = 0;
        } else if (unlikely(s->rflags & X86_FLAG_VM)) {
                key |= MODE_V86;
                cpu->cpl = 3;
        } else {
                key |= MODE_PROTECTED;
                cpu->cpl = ss->access >> X86_ACCESS_DPL_SHIFT & 3;
                cpu->mode64 = key & MODE_LONG && cs->access & X86_ACCESS_L;
                if (cpu->mode64)
                        key |= MODE_64;
                else if (flat_code(cs) && flat_data(ss) && flat_data(&s->seg[X86_DS]) && flat_data(&s->seg[X86_ES]))
                        key |= MODE_FLAT;
        }
        cpu->code32 = !cpu->mode64 && cs->access & X86_ACCESS_DB;
        cpu->stack32 = !cpu->mode64 && ss->access & X86_ACCESS_DB;
        if (cpu->code32)
                key |= MODE_CODE32;
        if (cpu->stack32)
                key |= MODE_STACK32;
        if (cpu->cpl == 3)
                key |= MODE_USER;
        cpu->mode_key = key;
        cpu->alignment_check = cpu->cpl == 3 && s->cr0 & X86_CR0_AM && s->rflags & X86_FLAG_AC;
        tlb_use_mode(cpu, data_mode(cpu));
}

void x86_set_flags_and_mode(struct x86_cpu *cpu, uint64_t rflags)
{
        uint64_t changed = cpu->s.rflags ^ rflags;

        x86_set_flags(cpu, rflags);
        if (changed & (X86_FLAG_TF | X86_FLAG_VM | X86_FLAG_AC))
                x86_mode_changed(cpu);
}

/* ---- checking an access ---- */

static _Noreturn void segment_fault(struct x86_cpu *cpu, unsigned seg)
{
        x86_raise(cpu, seg == X86_SS ? X86_SS_FAULT : X86_GP, 0);
}

/* Whether [offset, offset + size) lies in the segment (expand-down: above the limit). */
static bool in_limit(const struct x86_segment *s, uint64_t offset, unsigned size_bytes, bool may_expand_down)
{
        uint64_t last = offset + size_bytes - 1;

        if (may_expand_down && (s->access & 0xc) == 4)
                return offset > s->limit && last <= (s->access & X86_ACCESS_DB ? UINT32_MAX : UINT16_MAX);
        return last <= s->limit;
}

uint64_t segment_check(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size_bytes, bool write)
{
        const struct x86_segment *s = &cpu->s.seg[seg];

        if (cpu->mode64) {
                uint64_t linear = offset + (seg >= X86_FS ? s->base : 0);

                if (!x86_canonical(linear) || !x86_canonical(linear + size_bytes - 1))
                        segment_fault(cpu, seg);
                return linear;
        }
        if (x86_protected(cpu)) {
                if (s->access & X86_ACCESS_UNUSABLE)
                        segment_fault(cpu, seg);
                if (write ? (s->access & 0xa) != 2 : (s->access & 0xa) == 8)
                        segment_fault(cpu, seg);
        }
        if (!in_limit(s, offset, size_bytes, x86_protected(cpu)))
                segment_fault(cpu, seg);
        return (uint32_t)(s->base + offset);
}

/* ---- stacks ---- */

struct stack stack_current(struct x86_cpu *cpu, unsigned slot_bytes)
{
        return (struct stack){
                .ss = cpu->s.seg[X86_SS],
                .sp = cpu->s.gpr[X86_RSP] & x86_stack_mask(cpu),
                .mask = x86_stack_mask(cpu),
                .flat = cpu->mode64,
                .bytes = (uint8_t)slot_bytes,
        };
}

static uint64_t stack_linear(struct x86_cpu *cpu, const struct stack *stack, uint64_t sp, unsigned size_bytes)
{
        if (stack->flat) {
                if (!x86_canonical(sp) || !x86_canonical(sp + size_bytes - 1))
                        x86_raise(cpu, X86_SS_FAULT, stack->error);
                return sp;
        }
        if (stack->ss.access & X86_ACCESS_UNUSABLE || !in_limit(&stack->ss, sp, size_bytes, cpu->s.cr0 & X86_CR0_PE))
                x86_raise(cpu, X86_SS_FAULT, stack->error);
        return (uint32_t)(stack->ss.base + sp);
}

void stack_push(struct x86_cpu *cpu, struct stack *stack, uint64_t value)
{
        uint64_t sp = (stack->sp - stack->bytes) & stack->mask;
        uint64_t linear = stack_linear(cpu, stack, sp, stack->bytes);

        if (stack->system)
                mmu_system_write(cpu, linear, &value, stack->bytes);
        else if (stack->bytes == 8)
                mmu_write64(cpu, linear, value);
        else if (stack->bytes == 4)
                mmu_write32(cpu, linear, (uint32_t)value);
        else
                mmu_write16(cpu, linear, (uint16_t)value);
        stack->sp = sp;
}

void stack_probe(struct x86_cpu *cpu, const struct stack *stack, unsigned slots)
{
        for (unsigned i = 1; i <= slots; i++) {
                uint64_t linear = stack_linear(cpu, stack, (stack->sp - i * stack->bytes) & stack->mask, stack->bytes);

                if (stack->system)
                        mmu_system_probe_write(cpu, linear, stack->bytes);
                else
                        mmu_probe_write(cpu, linear, stack->bytes);
        }
}

uint64_t stack_pop(struct x86_cpu *cpu, struct stack *stack)
{
        uint64_t linear = stack_linear(cpu, stack, stack->sp, stack->bytes), value;

        if (stack->bytes == 8)
                value = mmu_read64(cpu, linear);
        else if (stack->bytes == 4)
                value = mmu_read32(cpu, linear);
        else
                value = mmu_read16(cpu, linear);
        stack->sp = (stack->sp + stack->bytes) & stack->mask;
        return value;
}

void tss_stack(struct x86_cpu *cpu, unsigned dpl, unsigned ext, uint16_t *ss, uint64_t *sp)
{
        const struct x86_segment *tr = &cpu->s.tr;
        bool tss32 = tr->access & 8;
        unsigned at = tss32 ? 4 + dpl * 8 : 2 + dpl * 4;
        uint8_t bytes[8];

        if (at + (x86_long(cpu) ? 7 : tss32 ? 5 : 3) > tr->limit)
                x86_raise(cpu, X86_TS, (tr->selector & 0xfffcu) | ext);
        if (x86_long(cpu)) {
                mmu_system_read(cpu, tr->base + at, sp, 8);
                *ss = 0;
                return;
        }
        mmu_system_read(cpu, tr->base + at, bytes, tss32 ? 6 : 4);
        *sp = 0;
        memcpy(sp, bytes, tss32 ? 4 : 2);
        memcpy(ss, bytes + (tss32 ? 4 : 2), 2);
}

/* ---- descriptors ---- */

bool descriptor_read(struct x86_cpu *cpu, uint16_t selector, struct descriptor *d)
{
        const struct x86_segment *ldtr = &cpu->s.ldtr;
        unsigned at = selector & 0xfff8u;
        uint64_t base = selector & 4 ? ldtr->base : cpu->s.gdtr.base;
        uint32_t limit = selector & 4 ? ldtr->limit : cpu->s.gdtr.limit;

        if (selector & 4 && ldtr->access & X86_ACCESS_UNUSABLE)
                return false;
        if (at + 7 > limit)
                return false;
        d->linear = base + at;
        d->selector = selector;
        mmu_system_read(cpu, d->linear, &d->raw, 8);
        return true;
}

void descriptor_need(struct x86_cpu *cpu, uint16_t selector, unsigned vector, unsigned ext, struct descriptor *d)
{
        if (!descriptor_read(cpu, selector, d))
                x86_raise(cpu, vector, (selector & 0xfffcu) | ext);
}

/* The upper half of a 16-byte descriptor; #GP(selector) when it does not fit in the table or its type bits are not 0. */
uint64_t descriptor_high(struct x86_cpu *cpu, const struct descriptor *d)
{
        uint32_t limit = d->selector & 4 ? cpu->s.ldtr.limit : cpu->s.gdtr.limit;
        uint64_t high;

        if ((d->selector & 0xfff8u) + 15 > limit)
                x86_raise(cpu, X86_GP, d->selector & 0xfffcu);
        mmu_system_read(cpu, d->linear + 8, &high, 8);
        if (high >> 40 & 0x1f)
                x86_raise(cpu, X86_GP, d->selector & 0xfffcu);
        return high;
}

void descriptor_set_accessed(struct x86_cpu *cpu, struct descriptor *d)
{
        uint8_t type;

        if (d->raw >> 40 & 1)
                return;
        d->raw |= 1ull << 40;
        type = (uint8_t)(d->raw >> 40);
        mmu_system_write(cpu, d->linear + 5, &type, 1);
}

void descriptor_set_busy(struct x86_cpu *cpu, uint16_t selector, bool busy)
{
        struct descriptor d;
        uint8_t type;

        if (!descriptor_read(cpu, selector & ~7u, &d))
                return;
        type = (uint8_t)(d.raw >> 40);
        type = busy ? type | 2 : type & ~2u;
        mmu_system_write(cpu, d.linear + 5, &type, 1);
}

struct x86_segment descriptor_segment(const struct descriptor *d)
{
        uint64_t raw = d->raw;
        uint32_t limit = (uint32_t)(raw & 0xffff) | ((uint32_t)(raw >> 32) & 0xf0000);

        return (struct x86_segment){
                .selector = d->selector,
                .access = (uint32_t)(raw >> 40) & 0xf0ff,
                .limit = raw >> 55 & 1 ? limit << 12 | 0xfff : limit,
                .base = (raw >> 16 & 0xffffff) | (raw >> 32 & 0xff000000),
        };
}

struct x86_segment segment_real(uint16_t selector, bool v86)
{
        return (struct x86_segment){
                .selector = selector,
                .access = 3 | X86_ACCESS_S | X86_ACCESS_P | (v86 ? 3u << X86_ACCESS_DPL_SHIFT : 0),
                .limit = 0xffff,
                .base = (uint64_t)selector << 4,
        };
}

struct x86_segment segment_null(uint16_t selector)
{
        return (struct x86_segment){ .selector = selector, .access = X86_ACCESS_UNUSABLE };
}

/* ---- loading ---- */

static struct x86_segment finish(struct x86_cpu *cpu, struct descriptor *d)
{
        descriptor_set_accessed(cpu, d);
        return descriptor_segment(d);
}

struct x86_segment stack_segment_fetch(struct x86_cpu *cpu, uint16_t selector, unsigned dpl, unsigned vector, unsigned ext)
{
        uint32_t error = (selector & 0xfffcu) | ext;
        struct descriptor d;

        if (!(selector & 0xfffc))
                x86_raise(cpu, vector, ext);
        descriptor_need(cpu, selector, vector, ext, &d);
        if ((selector & 3u) != dpl || DESC_DPL(d.raw) != dpl || !DESC_S(d.raw) || DESC_CODE(d.raw) || !DESC_RW(d.raw))
                x86_raise(cpu, vector, error);
        if (!DESC_P(d.raw))
                x86_raise(cpu, X86_SS_FAULT, error);
        return finish(cpu, &d);
}

struct x86_segment segment_fetch(struct x86_cpu *cpu, unsigned seg, uint16_t selector, unsigned cpl, unsigned vector)
{
        struct descriptor d;

        if (seg == X86_SS) {
                if (!(selector & 0xfffc) && cpu->mode64 && cpl != 3 && (selector & 3u) == cpl) {
                        struct x86_segment null = segment_null(selector);

                        null.access |= cpl << X86_ACCESS_DPL_SHIFT;
                        return null;
                }
                return stack_segment_fetch(cpu, selector, cpl, vector, 0);
        }
        if (!(selector & 0xfffc))
                return segment_null(selector);
        descriptor_need(cpu, selector, vector, 0, &d);
        if (!DESC_S(d.raw) || (DESC_CODE(d.raw) && !DESC_RW(d.raw)))
                x86_raise(cpu, vector, selector & 0xfffcu);
        if (!(DESC_CODE(d.raw) && DESC_CONFORMING(d.raw)) && ((selector & 3u) > DESC_DPL(d.raw) || cpl > DESC_DPL(d.raw)))
                x86_raise(cpu, vector, selector & 0xfffcu);
        if (!DESC_P(d.raw))
                x86_raise(cpu, X86_NP, selector & 0xfffcu);
        return finish(cpu, &d);
}

void x86_load_segment(struct x86_cpu *cpu, enum x86_seg_name seg, uint16_t selector)
{
        struct x86_segment *s = &cpu->s.seg[seg];

        if (x86_protected(cpu)) {
                *s = segment_fetch(cpu, seg, selector, cpu->cpl, X86_GP);
        } else if (x86_v86(cpu)) {
                *s = segment_real(selector, true);
        } else {
                s->selector = selector;
                s->base = (uint64_t)selector << 4;
                s->access = (s->access & (X86_ACCESS_DB | X86_ACCESS_G)) | 3 | X86_ACCESS_S | X86_ACCESS_P;
        }
        if (seg == X86_SS || (!cpu->mode64 && seg < X86_FS))
                x86_mode_changed(cpu);
}

void segments_drop_privileged(struct x86_cpu *cpu, unsigned cpl)
{
        static const uint8_t data[] = { X86_ES, X86_DS, X86_FS, X86_GS };

        for (unsigned i = 0; i < ARRAY_SIZE(data); i++) {
                struct x86_segment *s = &cpu->s.seg[data[i]];
                bool conforming = (s->access & 0xc) == 0xc;

                if (!(s->access & X86_ACCESS_UNUSABLE) && !conforming && (s->access >> X86_ACCESS_DPL_SHIFT & 3) < cpl)
                        *s = segment_null(0);
                else if (!(s->selector & 0xfffc))
                        s->selector = 0;
        }
}

/* ---- LDTR and TR ---- */

/* A system descriptor of the GDT, 8 or 16 bytes, with the type checked. */
static struct x86_segment system_segment(struct x86_cpu *cpu, uint16_t selector, unsigned type, unsigned other_type)
{
        struct x86_segment s;
        struct descriptor d;

        if (selector & 4)
                x86_raise(cpu, X86_GP, selector & 0xfffcu);
        descriptor_need(cpu, selector, X86_GP, 0, &d);
        if (DESC_S(d.raw) || (DESC_TYPE(d.raw) != type && DESC_TYPE(d.raw) != other_type))
                x86_raise(cpu, X86_GP, selector & 0xfffcu);
        s = descriptor_segment(&d);
        if (x86_long(cpu)) {
                s.base |= descriptor_high(cpu, &d) << 32;
                if (!x86_canonical(s.base))
                        x86_raise(cpu, X86_GP, selector & 0xfffcu);
        }
        if (!DESC_P(d.raw))
                x86_raise(cpu, X86_NP, selector & 0xfffcu);
        return s;
}

void load_ldtr(struct x86_cpu *cpu, uint16_t selector)
{
        cpu->s.ldtr = selector & 0xfffc ? system_segment(cpu, selector, TYPE_LDT, TYPE_LDT) : segment_null(selector);
}

void load_tr(struct x86_cpu *cpu, uint16_t selector)
{
        struct x86_segment s;

        if (!(selector & 0xfffc))
                x86_gp0(cpu);
        s = system_segment(cpu, selector, TYPE_TSS32, x86_long(cpu) ? TYPE_TSS32 : TYPE_TSS16);
        descriptor_set_busy(cpu, selector, true);
        s.access |= 2;
        cpu->s.tr = s;
}
