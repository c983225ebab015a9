/*
 * Fast handlers: see translator-fast.h. 64-bit mode without MODE_STEP and TLB_CHECKED, as for all translated code; jit.status holds the
 * status flags.
 *
 * Compiled without vector instructions, and calling only what is.
 *
 * Source: Intel SDM vol. 2 "SYSCALL", "SYSRET", "IRET", "MOV—Move to/from Control Registers", "INVLPG", "WRMSR", "RDTSC", "PUSHF",
 * "POPF", "REP"; vol. 3A §3.4.5 (segment descriptors), §5.8 (return to an outer level).
 */
#include "cpu/x86/translator-fast.h"

#include "cpu/x86/flags.h"
#include "cpu/x86/system.h"

#define R11_AT 11
#define CR3_NOFLUSH (1ull << 63)
#define FLAGS_KEPT                                                                                                          \
        (X86_FLAG_TF | X86_FLAG_IF | X86_FLAG_DF | X86_FLAG_IOPL | X86_FLAG_NT | X86_FLAG_RF | X86_FLAG_VM | X86_FLAG_AC | \
         X86_FLAG_VIF | X86_FLAG_VIP | X86_FLAG_ID)

static uint64_t flags_get(const struct x86_cpu *cpu)
{
        return (cpu->s.rflags & FLAGS_KEPT) | X86_FLAG_FIXED | cpu->jit.status;
}

static void flags_put(struct x86_cpu *cpu, uint64_t rflags)
{
        cpu->s.rflags = (rflags & (FLAGS_KEPT | X86_FLAGS_STATUS)) | X86_FLAG_FIXED;
        cpu->jit.status = rflags & X86_FLAGS_STATUS;
}

/* Whether 64-bit code may go on with these flags at that CPL without single step and alignment checks. */
static bool plain_flags(const struct x86_cpu *cpu, uint64_t rflags, unsigned cpl)
{
        return !(rflags & (X86_FLAG_TF | X86_FLAG_VM)) && !(cpl == 3 && rflags & X86_FLAG_AC && cpu->s.cr0 & X86_CR0_AM);
}

/* What x86_mode_changed() would find when only CPL and AC differ. */
static void set_cpl(struct x86_cpu *cpu, unsigned cpl)
{
        cpu->cpl = (uint8_t)cpl;
        cpu->mode_key = cpl == 3 ? cpu->mode_key | MODE_USER : cpu->mode_key & ~MODE_USER;
        if (cpl == 3)
                tlb_use_mode(cpu, TLB_USER);
        else
                tlb_use_mode(cpu, cpu->s.cr4 & X86_CR4_SMAP && !(cpu->s.rflags & X86_FLAG_AC) ? TLB_SUPERVISOR_SMAP : TLB_SUPERVISOR);
}

static uint64_t *gpr(struct x86_cpu *cpu, uint8_t at)
{
        return (uint64_t *)((char *)cpu->s.gpr + at);
}

static void *find_or_fill(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes, bool write)
{
        void *at = tlb_find(cpu, linear, size_bytes, write);

        if (likely(at))
                return at;
        return mmu_fill_fast(cpu, linear, size_bytes, write) ? tlb_find(cpu, linear, size_bytes, write) : NULL;
}

/* ---- system calls ---- */

/* The fixed segments: present, accessed, 4 GiB. */
static void flat_segment(struct x86_segment *s, uint16_t selector, unsigned dpl, bool code)
{
        s->selector = selector;
        s->access = (code ? 0xbu | X86_ACCESS_L : 3u | X86_ACCESS_DB) | X86_ACCESS_S | X86_ACCESS_P | dpl << X86_ACCESS_DPL_SHIFT | X86_ACCESS_G;
        s->limit = UINT32_MAX;
        s->base = 0;
}

static enum fast_result fast_syscall(struct x86_cpu *cpu, const struct insn *i)
{
        uint16_t selector = (uint16_t)(cpu->s.star >> 32) & 0xfffc;
        uint64_t flags = flags_get(cpu);

        if (!(cpu->s.efer & X86_EFER_SCE))
                return FAST_NO;
        cpu->s.gpr[X86_RCX] = insn_rip(cpu, i->end);
        cpu->s.gpr[R11_AT] = flags & ~X86_FLAG_RF;
        cpu->s.rip = cpu->s.lstar;
        flags_put(cpu, flags & ~(cpu->s.sfmask | X86_FLAG_RF));
        flat_segment(&cpu->s.seg[X86_CS], selector, 0, true);
        flat_segment(&cpu->s.seg[X86_SS], (uint16_t)(selector + 8), 0, false);
        cpu->step_trap = false;
        set_cpl(cpu, 0);
        return FAST_LEFT;
}

static enum fast_result fast_sysret(struct x86_cpu *cpu, const struct insn *i)
{
        uint16_t selector = (uint16_t)(cpu->s.star >> 48);
        uint64_t rip = cpu->s.gpr[X86_RCX], flags = cpu->s.gpr[R11_AT] & 0x3c7fd7;

        if (cpu->cpl != 0 || !(cpu->s.efer & X86_EFER_SCE) || i->opsize != 8 || !x86_canonical(rip) || !plain_flags(cpu, flags, 3))
                return FAST_NO;
        cpu->s.rip = rip;
        flags_put(cpu, flags);
        flat_segment(&cpu->s.seg[X86_CS], (uint16_t)((selector + 16) | 3), 3, true);
        flat_segment(&cpu->s.seg[X86_SS], (uint16_t)((selector + 8) | 3), 3, false);
        set_cpl(cpu, 3);
        return FAST_LEFT;
}

/* ---- IRETQ ---- */

/* What the processor itself reads or writes for the supervisor, when it is plain; NULL: not. Also fills the TLB. */
static void *system_find(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes, bool write)
{
        unsigned mode = cpu->s.cr4 & X86_CR4_SMAP ? TLB_SUPERVISOR_SMAP : TLB_SUPERVISOR, was = cpu->tlb_mode;
        void *at = tlb_find_in(cpu->set[mode], linear, size_bytes, write);
        bool filled;

        if (likely(at))
                return at;
        tlb_use_mode(cpu, mode);
        filled = mmu_fill_fast(cpu, linear, size_bytes, write);
        tlb_use_mode(cpu, was);
        return filled ? tlb_find_in(cpu->set[mode], linear, size_bytes, write) : NULL;
}

/* A descriptor of the GDT; 0: not to be had. */
static uint64_t descriptor_at(struct x86_cpu *cpu, uint16_t selector)
{
        const uint64_t *at;

        if (!(selector & 0xfffc) || selector & 4 || (selector | 7u) > cpu->s.gdtr.limit)
                return 0;
        at = system_find(cpu, cpu->s.gdtr.base + (selector & 0xfff8u), 8, false);
        return at ? __atomic_load_n(at, __ATOMIC_RELAXED) : 0;
}

#define RAW(access) ((uint64_t)(access) << 40)
#define RAW_CHECKED RAW(0x609f) /* P, S, type; L, D/B */

/* 64-bit code that is not conforming, and writable data that does not expand down: accessed already, of that privilege. */
static bool good_code(uint64_t raw, unsigned dpl)
{
        return (raw & (RAW_CHECKED & ~RAW(2))) == RAW(0x2099) && DESC_DPL(raw) == dpl;
}

static bool good_stack(uint64_t raw, unsigned dpl)
{
        return (raw & RAW(0x9f)) == RAW(0x93) && DESC_DPL(raw) == dpl;
}

/* A null SS, which 64-bit kernels have after an interrupt from CPL 3. */
static bool good_null_stack(uint16_t selector, unsigned cpl)
{
        return !(selector & 0xfffc) && cpl == 0;
}

static void set_segment(struct x86_segment *s, uint16_t selector, uint64_t raw)
{
        uint32_t limit = (uint32_t)(raw & 0xffff) | ((uint32_t)(raw >> 32) & 0xf0000);

        s->selector = selector;
        s->access = (uint32_t)(raw >> 40) & 0xf0ff;
        s->limit = raw >> 55 & 1 ? limit << 12 | 0xfff : limit;
        s->base = (raw >> 16 & 0xffffff) | (raw >> 32 & 0xff000000);
}

/* Nothing that a return to CPL 3 would have to take away, beside null selectors with an RPL. */
static bool data_segments_stay(const struct x86_cpu *cpu)
{
        static const uint8_t data[] = { X86_ES, X86_DS, X86_FS, X86_GS };

        for (unsigned n = 0; n < ARRAY_SIZE(data); n++) {
                const struct x86_segment *s = &cpu->s.seg[data[n]];

                if (s->access & X86_ACCESS_UNUSABLE ? s->selector : (s->access >> X86_ACCESS_DPL_SHIFT & 3) != 3 || !(s->selector & 0xfffc))
                        return false;
        }
        return true;
}

enum { FRAME_RIP, FRAME_CS, FRAME_FLAGS, FRAME_RSP, FRAME_SS, FRAME_SLOTS };

static enum fast_result fast_iretq(struct x86_cpu *cpu, const struct insn *i)
{
        const uint64_t *frame = find_or_fill(cpu, cpu->s.gpr[X86_RSP], FRAME_SLOTS * 8, false);
        uint64_t may = X86_FLAGS_STATUS | X86_FLAG_DF | X86_FLAG_RF | X86_FLAG_AC | X86_FLAG_ID | X86_FLAG_IF | X86_FLAG_IOPL |
                       X86_FLAG_VIF | X86_FLAG_VIP;
        uint64_t slot[FRAME_SLOTS], flags, code, stack;
        unsigned cpl;

        if (!frame || cpu->cpl != 0 || cpu->s.rflags & X86_FLAG_NT || cpu->s.nmi_masked)
                return FAST_NO;
        for (unsigned n = 0; n < FRAME_SLOTS; n++)
                slot[n] = __atomic_load_n(&frame[n], __ATOMIC_RELAXED);
        cpl = slot[FRAME_CS] & 3;
        flags = slot[FRAME_FLAGS];
        code = descriptor_at(cpu, (uint16_t)slot[FRAME_CS]);
        stack = descriptor_at(cpu, (uint16_t)slot[FRAME_SS]);
        if ((cpl != 0 && cpl != 3) || (slot[FRAME_SS] & 3) != cpl || !good_code(code, cpl) ||
            !(good_stack(stack, cpl) || good_null_stack((uint16_t)slot[FRAME_SS], cpl)) ||
            !x86_canonical(slot[FRAME_RIP]) || flags & X86_FLAG_NT || !plain_flags(cpu, flags, cpl) || (cpl == 3 && !data_segments_stay(cpu)))
                return FAST_NO;
        flags_put(cpu, ((flags_get(cpu) & ~may) | (flags & may)) & ~X86_FLAG_RF); /* there are no breakpoints: useful_flags() of far.c */
        set_segment(&cpu->s.seg[X86_CS], (uint16_t)slot[FRAME_CS], code);
        if (stack)
                set_segment(&cpu->s.seg[X86_SS], (uint16_t)slot[FRAME_SS], stack);
        else
                cpu->s.seg[X86_SS] = (struct x86_segment){ .selector = (uint16_t)slot[FRAME_SS], .access = X86_ACCESS_UNUSABLE };
        cpu->s.gpr[X86_RSP] = slot[FRAME_RSP];
        cpu->s.rip = slot[FRAME_RIP];
        set_cpl(cpu, cpl);
        /* As a read, which may be foreseen: a dirty bit may not, but fill() allows writes where it is set. */
        if (cpl == 3 && cpu->s.rip == cpu->jit.fault_rip)
                (void)mmu_fill_fast(cpu, cpu->jit.fault_linear, 1, false);
        return FAST_LEFT;
}

/* ---- page faults ---- */

enum { PUSHED_ERROR, PUSHED_RIP, PUSHED_CS, PUSHED_FLAGS, PUSHED_RSP, PUSHED_SS, PUSHED_SLOTS };
#define GATE_BYTES 16u
#define TSS_RSP0 4u

static bool gate_plain(uint64_t low)
{
        unsigned ist = low >> 32 & 7;

        return DESC_P(low) && !DESC_S(low) && (DESC_TYPE(low) == TYPE_INT32 || DESC_TYPE(low) == TYPE_TRAP32) && !ist;
}

bool fast_fault_prepare(struct x86_cpu *cpu, uint64_t linear, unsigned size_bytes, bool write, struct fast_fault *fault)
{
        const uint64_t *gate, *stack;
        uint64_t low, high;
        int error;

        if (cpu->tlb_mode != TLB_USER || cpu->cpl != 3 || cpu->lock_step || !x86_canonical(linear) ||
            (linear & (GUEST_PAGE_SIZE - 1)) > GUEST_PAGE_SIZE - size_bytes ||
            cpu->s.idtr.limit < (X86_PF + 1) * GATE_BYTES - 1 || cpu->s.tr.limit < TSS_RSP0 + 7)
                return false;
        error = mmu_user_fault_fast(cpu, linear, write);
        if (error < 0)
                return false;
        gate = system_find(cpu, cpu->s.idtr.base + X86_PF * GATE_BYTES, GATE_BYTES, false);
        stack = system_find(cpu, cpu->s.tr.base + TSS_RSP0, 8, false);
        if (!gate || !stack)
                return false;
        low = __atomic_load_n(&gate[0], __ATOMIC_RELAXED);
        high = __atomic_load_n(&gate[1], __ATOMIC_RELAXED);
        *fault = (struct fast_fault){
                .linear = linear, .error = (uint32_t)error, .selector = (uint16_t)(low >> 16), .clears_if = DESC_TYPE(low) == TYPE_INT32,
                .rip = (low & 0xffff) | (low >> 32 & 0xffff0000) | high << 32,
        };
        fault->code = descriptor_at(cpu, fault->selector);
        __builtin_memcpy(&fault->rsp, stack, 8);
        if (!gate_plain(low) || !good_code(fault->code, 0) || !x86_canonical(fault->rip) || !x86_canonical(fault->rsp))
                return false;
        fault->rsp = (fault->rsp & ~UINT64_C(15)) - PUSHED_SLOTS * 8;
        fault->frame = system_find(cpu, fault->rsp, PUSHED_SLOTS * 8, true); /* last: see mmu_run() */
        return fault->frame;
}

void fast_fault_deliver(struct x86_cpu *cpu, const struct fast_fault *fault)
{
        const uint64_t pushed[PUSHED_SLOTS] = {
                [PUSHED_ERROR] = fault->error,
                [PUSHED_RIP] = cpu->s.rip,
                [PUSHED_CS] = cpu->s.seg[X86_CS].selector,
                [PUSHED_FLAGS] = flags_get(cpu) | X86_FLAG_RF,
                [PUSHED_RSP] = cpu->s.gpr[X86_RSP],
                [PUSHED_SS] = cpu->s.seg[X86_SS].selector,
        };

        for (unsigned n = 0; n < PUSHED_SLOTS; n++)
                __atomic_store_n(&fault->frame[n], pushed[n], __ATOMIC_RELAXED);
        cpu->s.cr2 = cpu->jit.fault_linear = fault->linear;
        cpu->jit.fault_rip = cpu->s.rip;
        tlb_drop_faulted(cpu, fault->linear);
        set_segment(&cpu->s.seg[X86_CS], fault->selector & 0xfffc, fault->code);
        cpu->s.seg[X86_SS] = (struct x86_segment){ .access = X86_ACCESS_UNUSABLE };
        cpu->s.gpr[X86_RSP] = fault->rsp;
        cpu->s.rip = fault->rip;
        cpu->s.rflags &= ~(uint64_t)(X86_FLAG_TF | X86_FLAG_NT | X86_FLAG_RF | X86_FLAG_VM | (fault->clears_if ? X86_FLAG_IF : 0));
        cpu->s.interrupt_shadow = false;
        cpu->step_trap = false;
        set_cpl(cpu, 0);
}

/* ---- translations ---- */

static enum fast_result fast_mov_to_cr(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t value = *gpr(cpu, i->reg[1]);
        bool keep = value & CR3_NOFLUSH && cpu->s.cr4 & X86_CR4_PCIDE;

        if (keep)
                value &= ~CR3_NOFLUSH;
        if (i->imm2 != 3 || cpu->cpl != 0 || value >> X86_PHYSICAL_BITS)
                return FAST_NO;
        cpu->s.rip = insn_rip(cpu, i->end);
        cpu->s.cr3 = value;
        mmu_space_changed(cpu, keep);
        return FAST_LEFT;
}

static enum fast_result fast_invlpg(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t linear = insn_offset(cpu, i);

        if (cpu->cpl != 0)
                return FAST_NO;
        if (i->seg >= X86_FS)
                linear += cpu->s.seg[i->seg].base;
        if (x86_canonical(linear))
                mmu_flush_page(cpu, linear);
        cpu->s.rip = insn_rip(cpu, i->end);
        return FAST_LEFT;
}

/* ---- registers ---- */

static uint64_t *base_msr(struct x86_cpu *cpu, uint32_t index)
{
        switch (index) {
        case 0xc0000100: return &cpu->s.seg[X86_FS].base;
        case 0xc0000101: return &cpu->s.seg[X86_GS].base;
        case 0xc0000102: return &cpu->s.kernel_gs_base;
        default: return NULL;
        }
}

static enum fast_result fast_wrmsr(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t *at = base_msr(cpu, (uint32_t)cpu->s.gpr[X86_RCX]);
        uint64_t value = (uint64_t)(uint32_t)cpu->s.gpr[X86_RDX] << 32 | (uint32_t)cpu->s.gpr[X86_RAX];

        if (!at || cpu->cpl != 0 || !x86_canonical(value))
                return FAST_NO;
        *at = value;
        return FAST_NEXT;
}

static void set_edx_eax(struct x86_cpu *cpu, uint64_t value)
{
        cpu->s.gpr[X86_RAX] = (uint32_t)value;
        cpu->s.gpr[X86_RDX] = value >> 32;
}

static enum fast_result fast_rdmsr(struct x86_cpu *cpu, const struct insn *i)
{
        const uint64_t *at = base_msr(cpu, (uint32_t)cpu->s.gpr[X86_RCX]);

        if (!at || cpu->cpl != 0)
                return FAST_NO;
        set_edx_eax(cpu, *at);
        return FAST_NEXT;
}

static enum fast_result fast_rdtsc(struct x86_cpu *cpu, const struct insn *i)
{
        if (cpu->s.cr4 & X86_CR4_TSD && cpu->cpl != 0)
                return FAST_NO;
        set_edx_eax(cpu, __builtin_ia32_rdtsc() + cpu->s.tsc_offset);
        if (i->op == ZYDIS_MNEMONIC_RDTSCP)
                cpu->s.gpr[X86_RCX] = (uint32_t)cpu->s.tsc_aux;
        return FAST_NEXT;
}

static enum fast_result fast_pushfq(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t sp = cpu->s.gpr[X86_RSP] - 8, *at = tlb_find(cpu, sp, 8, true);

        if (!at || i->opsize != 8)
                return FAST_NO;
        __atomic_store_n(at, flags_get(cpu) & ~(X86_FLAG_VM | X86_FLAG_RF), __ATOMIC_RELAXED);
        cpu->s.gpr[X86_RSP] = sp;
        return FAST_NEXT;
}

/* Status flags, DF, ID and, for the kernel, IF; whatever else would change is for the handler. */
static enum fast_result fast_popfq(struct x86_cpu *cpu, const struct insn *i)
{
        const uint64_t *at = tlb_find(cpu, cpu->s.gpr[X86_RSP], 8, false);
        uint64_t old = flags_get(cpu), may = X86_FLAGS_STATUS | X86_FLAG_DF | X86_FLAG_ID | (cpu->cpl == 0 ? X86_FLAG_IF : 0), flags;

        if (!at || i->opsize != 8 || old & X86_FLAG_RF)
                return FAST_NO;
        flags = __atomic_load_n(at, __ATOMIC_RELAXED);
        if ((flags ^ old) & FLAGS_KEPT & ~may)
                return FAST_NO;
        flags_put(cpu, (old & ~may) | (flags & may));
        cpu->s.gpr[X86_RSP] += 8;
        if (!(flags & ~old & X86_FLAG_IF))
                return FAST_NEXT;
        cpu->s.rip = insn_rip(cpu, i->end); /* interrupts that wait may come now */
        return FAST_LEFT;
}

static enum fast_result fast_mov_from_segment(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t *to = gpr(cpu, i->reg[0]);
        uint16_t selector = cpu->s.seg[i->imm2].selector;

        *to = i->opsize == 2 ? (*to & ~UINT64_C(0xffff)) | selector : selector;
        return FAST_NEXT;
}

static enum fast_result fast_read_base(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t base = cpu->s.seg[i->op == ZYDIS_MNEMONIC_RDFSBASE ? X86_FS : X86_GS].base;

        if (!(cpu->s.cr4 & X86_CR4_FSGSBASE))
                return FAST_NO;
        *gpr(cpu, i->reg[0]) = i->opsize == 8 ? base : (uint32_t)base;
        return FAST_NEXT;
}

static enum fast_result fast_write_base(struct x86_cpu *cpu, const struct insn *i)
{
        uint64_t base = i->opsize == 8 ? *gpr(cpu, i->reg[0]) : (uint32_t)*gpr(cpu, i->reg[0]);

        if (!(cpu->s.cr4 & X86_CR4_FSGSBASE) || !x86_canonical(base))
                return FAST_NO;
        cpu->s.seg[i->op == ZYDIS_MNEMONIC_WRFSBASE ? X86_FS : X86_GS].base = base;
        return FAST_NEXT;
}

/* ---- bits in memory, by a register that may lead far from the operand's address ---- */

#define BIT_INSTRUCTION(name, text)                                                                                         \
        static bool name(void *at, unsigned bit, unsigned size_bytes)                                                       \
        {                                                                                                                   \
                bool carry;                                                                                                 \
                                                                                                                            \
                switch (size_bytes) {                                                                                       \
                case 2: __asm__ volatile(text "w %w2, %1" : "=@ccc"(carry), "+m"(*(uint16_t *)at) : "r"(bit)); break;       \
                case 4: __asm__ volatile(text "l %2, %1" : "=@ccc"(carry), "+m"(*(uint32_t *)at) : "r"(bit)); break;        \
                default: __asm__ volatile(text "q %q2, %1" : "=@ccc"(carry), "+m"(*(uint64_t *)at) : "r"((uint64_t)bit));   \
                }                                                                                                           \
                return carry;                                                                                               \
        }

BIT_INSTRUCTION(bit_test, "bt")
BIT_INSTRUCTION(bit_set, "bts")
BIT_INSTRUCTION(bit_reset, "btr")
BIT_INSTRUCTION(bit_complement, "btc")
BIT_INSTRUCTION(bit_set_locked, "lock bts")
BIT_INSTRUCTION(bit_reset_locked, "lock btr")
BIT_INSTRUCTION(bit_complement_locked, "lock btc")

static _always_inline_ enum fast_result bit_in_memory(struct x86_cpu *cpu, const struct insn *i, bool write,
                                                      bool (*act)(void *at, unsigned bit, unsigned size_bytes))
{
        unsigned size = i->opsize, bits = size * 8;
        int64_t bit = size == 8   ? (int64_t)*gpr(cpu, i->reg[1])
                      : size == 4 ? (int32_t)*gpr(cpu, i->reg[1])
                                  : (int16_t)*gpr(cpu, i->reg[1]);
        uint64_t linear;
        void *at;

        if (i->asize != 8)
                return FAST_NO;
        linear = insn_offset(cpu, i) + (uint64_t)(bit >> (size == 8 ? 6 : size == 4 ? 5 : 4)) * size;
        if (i->seg >= X86_FS)
                linear += cpu->s.seg[i->seg].base;
        at = find_or_fill(cpu, linear, size, write);
        if (!at)
                return FAST_NO;
        cpu->jit.status = (cpu->jit.status & ~(uint64_t)X86_FLAG_CF) | act(at, (unsigned)bit & (bits - 1), size);
        return FAST_NEXT;
}

#define FAST_BIT(name, write)                                                                     \
        static enum fast_result fast_##name(struct x86_cpu *cpu, const struct insn *i)            \
        {                                                                                         \
                return bit_in_memory(cpu, i, write, name);                                        \
        }

FAST_BIT(bit_test, false)
FAST_BIT(bit_set, true)
FAST_BIT(bit_reset, true)
FAST_BIT(bit_complement, true)
FAST_BIT(bit_set_locked, true)
FAST_BIT(bit_reset_locked, true)
FAST_BIT(bit_complement_locked, true)

fast_fn fast_bit_handler(const struct insn *i, bool locked)
{
        switch (i->op) {
        case ZYDIS_MNEMONIC_BT: return fast_bit_test;
        case ZYDIS_MNEMONIC_BTS: return locked ? fast_bit_set_locked : fast_bit_set;
        case ZYDIS_MNEMONIC_BTR: return locked ? fast_bit_reset_locked : fast_bit_reset;
        default: return locked ? fast_bit_complement_locked : fast_bit_complement;
        }
}

/* ---- REP MOVS and STOS forward ---- */

static void copy_run(void *to, const void *from, uint64_t count, unsigned size_bytes)
{
        switch (size_bytes) {
        case 1: __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count)::"memory"); break;
        case 2: __asm__ volatile("rep movsw" : "+D"(to), "+S"(from), "+c"(count)::"memory"); break;
        case 4: __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(count)::"memory"); break;
        default: __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(count)::"memory"); break;
        }
}

static void fill_run(void *to, uint64_t value, uint64_t count, unsigned size_bytes)
{
        switch (size_bytes) {
        case 1: __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(value) : "memory"); break;
        case 2: __asm__ volatile("rep stosw" : "+D"(to), "+c"(count) : "a"(value) : "memory"); break;
        case 4: __asm__ volatile("rep stosl" : "+D"(to), "+c"(count) : "a"(value) : "memory"); break;
        default: __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(value) : "memory"); break;
        }
}

static bool string_possible(const struct x86_cpu *cpu, const struct insn *i)
{
        return i->flags & INSN_REP && i->asize == 8 && i->seg < X86_FS && !(cpu->s.rflags & X86_FLAG_DF);
}

/* Whole elements that lie in the page of linear. */
static uint64_t elements_in_page(uint64_t linear, unsigned size_bytes)
{
        return (GUEST_PAGE_SIZE - (linear & (GUEST_PAGE_SIZE - 1))) / size_bytes;
}

static bool pause_wanted(struct x86_cpu *cpu)
{
        return !atomic_load_explicit(&cpu->jit.go, memory_order_relaxed);
}

/* More to do, but something wants to come in between: the same instruction again after it. */
static enum fast_result again(struct x86_cpu *cpu, const struct insn *i)
{
        cpu->s.rip = insn_rip(cpu, i->start);
        return FAST_LEFT;
}

static enum fast_result fast_movs(struct x86_cpu *cpu, const struct insn *i)
{
        unsigned size = i->opsize;

        if (!string_possible(cpu, i))
                return FAST_NO;
        while (cpu->s.gpr[X86_RCX]) {
                uint64_t source = cpu->s.gpr[X86_RSI], destination = cpu->s.gpr[X86_RDI];
                uint64_t count = MIN(cpu->s.gpr[X86_RCX], MIN(elements_in_page(source, size), elements_in_page(destination, size)));
                const void *from;
                void *to;

                if (!count)
                        return FAST_NO;
                from = find_or_fill(cpu, source, size, false);
                to = from ? find_or_fill(cpu, destination, size, true) : NULL; /* last: see mmu_run() */
                if (!to)
                        return FAST_NO;
                copy_run(to, from, count, size);
                cpu->s.gpr[X86_RSI] = source + count * size;
                cpu->s.gpr[X86_RDI] = destination + count * size;
                cpu->s.gpr[X86_RCX] -= count;
                if (cpu->s.gpr[X86_RCX] && pause_wanted(cpu))
                        return again(cpu, i);
        }
        return FAST_NEXT;
}

static enum fast_result fast_stos(struct x86_cpu *cpu, const struct insn *i)
{
        unsigned size = i->opsize;

        if (!string_possible(cpu, i))
                return FAST_NO;
        while (cpu->s.gpr[X86_RCX]) {
                uint64_t destination = cpu->s.gpr[X86_RDI], count = MIN(cpu->s.gpr[X86_RCX], elements_in_page(destination, size));
                void *to = count ? find_or_fill(cpu, destination, size, true) : NULL;

                if (!to)
                        return FAST_NO;
                fill_run(to, cpu->s.gpr[X86_RAX], count, size);
                cpu->s.gpr[X86_RDI] = destination + count * size;
                cpu->s.gpr[X86_RCX] -= count;
                if (cpu->s.gpr[X86_RCX] && pause_wanted(cpu))
                        return again(cpu, i);
        }
        return FAST_NEXT;
}

/* ---- CPUID ---- */

/* What the handler found last for this leaf; nothing but CR4 and XCR0 changes it. */
static enum fast_result fast_cpuid(struct x86_cpu *cpu, const struct insn *i)
{
        uint32_t leaf = (uint32_t)cpu->s.gpr[X86_RAX], subleaf = (uint32_t)cpu->s.gpr[X86_RCX];
        const struct cpuid_known *known = cpuid_known_at(cpu, leaf, subleaf);

        if (known->leaf != leaf || known->subleaf != subleaf || known->cr4 != cpu->s.cr4 || known->xcr0 != cpu->s.xcr0)
                return FAST_NO;
        cpu->s.gpr[X86_RAX] = known->reg[0];
        cpu->s.gpr[X86_RBX] = known->reg[1];
        cpu->s.gpr[X86_RCX] = known->reg[2];
        cpu->s.gpr[X86_RDX] = known->reg[3];
        return FAST_NEXT;
}

/* ---- which ---- */

/* SDM vol. 2 "CPUID", leaf 0DH. */
static bool host_has_xsavec(void)
{
        unsigned a, b, c, d;

        if (!__builtin_cpu_supports("avx"))
                return false;
        __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0xd), "c"(1));
        return a >> 1 & 1;
}

fast_fn fast_segment_handler(void)
{
        return fast_mov_from_segment;
}

fast_fn fast_handler(const struct insn *i)
{
        switch (i->op) {
        case ZYDIS_MNEMONIC_SYSCALL: return fast_syscall;
        case ZYDIS_MNEMONIC_SYSRET: return fast_sysret;
        case ZYDIS_MNEMONIC_IRETQ: return fast_iretq;
        case ZYDIS_MNEMONIC_MOV: return fast_mov_to_cr;
        case ZYDIS_MNEMONIC_INVLPG: return fast_invlpg;
        case ZYDIS_MNEMONIC_WRMSR: return fast_wrmsr;
        case ZYDIS_MNEMONIC_RDMSR: return fast_rdmsr;
        case ZYDIS_MNEMONIC_RDTSC:
        case ZYDIS_MNEMONIC_RDTSCP: return fast_rdtsc;
        case ZYDIS_MNEMONIC_RDFSBASE:
        case ZYDIS_MNEMONIC_RDGSBASE: return fast_read_base;
        case ZYDIS_MNEMONIC_WRFSBASE:
        case ZYDIS_MNEMONIC_WRGSBASE: return fast_write_base;
        case ZYDIS_MNEMONIC_CPUID: return fast_cpuid;
        case ZYDIS_MNEMONIC_XSAVE64: return __builtin_cpu_supports("avx") ? fast_xsave : NULL;
        case ZYDIS_MNEMONIC_XSAVEC64: return host_has_xsavec() ? fast_xsavec : NULL;
        case ZYDIS_MNEMONIC_XRSTOR64: return __builtin_cpu_supports("avx") ? fast_xrstor : NULL;
        case ZYDIS_MNEMONIC_PUSHFQ: return fast_pushfq;
        case ZYDIS_MNEMONIC_POPFQ: return fast_popfq;
        case ZYDIS_MNEMONIC_MOVSB:
        case ZYDIS_MNEMONIC_MOVSW:
        case ZYDIS_MNEMONIC_MOVSD:
        case ZYDIS_MNEMONIC_MOVSQ: return fast_movs;
        case ZYDIS_MNEMONIC_STOSB:
        case ZYDIS_MNEMONIC_STOSW:
        case ZYDIS_MNEMONIC_STOSD:
        case ZYDIS_MNEMONIC_STOSQ: return fast_stos;
        default: return NULL;
        }
}
