/*
 * The architectural state: reset, its record, and how a person reads it.
 *
 * The record "x86-cpu" lists every member in the order of struct x86_state, little-endian, with no padding. Loading checks what
 * the software processor and KVM rely on and refuses the rest, with the state left alone.
 *
 * Source: Intel SDM vol. 3A table 10-1 (state after power-up, reset and INIT), vol. 3A §2.5 (control registers).
 */
#include "cpu/x86/state.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#define STATE_VERSION 1

/* Family 6, a plausible stepping: what EDX holds after reset (CPUID leaf 1 EAX, see cpuid.c). */
#define RESET_EDX 0x00010681u

void x86_state_reset(struct x86_state *state, bool bsp)
{
        const struct x86_segment data = { .access = 3 | X86_ACCESS_S | X86_ACCESS_P, .limit = 0xffff };

        memset(state, 0, sizeof(*state));
        state->gpr[X86_RDX] = RESET_EDX;
        state->rip = 0xfff0;
        state->rflags = X86_FLAG_FIXED;
        for (unsigned i = 0; i < X86_SEGS; i++)
                state->seg[i] = data;
        state->seg[X86_CS].selector = 0xf000;
        state->seg[X86_CS].base = 0xffff0000;
        state->seg[X86_CS].access = 11 | X86_ACCESS_S | X86_ACCESS_P;
        state->ldtr = (struct x86_segment){ .access = 2 | X86_ACCESS_P, .limit = 0xffff };
        state->tr = (struct x86_segment){ .access = 11 | X86_ACCESS_P, .limit = 0xffff };
        state->gdtr.limit = 0xffff;
        state->idtr.limit = 0xffff;
        state->cr0 = X86_CR0_CD | X86_CR0_NW | X86_CR0_ET;
        state->dr[6] = 0xffff0ff0;
        state->dr[7] = 0x400;
        state->xcr0 = 1;
        state->fpu.fcw = 0x37f; /* as after FNINIT, which every kernel does first; power-on has 0x40 */
        state->fpu.mxcsr = 0x1f80;
        state->pat = 0x0007040600070406;
        state->misc_enable = 1;
        state->apic_base = 0xfee00000u | 1u << 11 | (bsp ? 1u << 8 : 0);
        state->wait_for_sipi = !bsp;
}

/* ---- the record ---- */

static void put_segment(struct writer *out, const struct x86_segment *seg)
{
        writer_le16(out, seg->selector);
        writer_le32(out, seg->access);
        writer_le32(out, seg->limit);
        writer_le64(out, seg->base);
}

static void get_segment(struct cursor *in, struct x86_segment *seg)
{
        seg->selector = cursor_le16(in);
        seg->access = cursor_le32(in);
        seg->limit = cursor_le32(in);
        seg->base = cursor_le64(in);
}

static void put_table(struct writer *out, const struct x86_table *table)
{
        writer_le64(out, table->base);
        writer_le16(out, table->limit);
}

static void get_table(struct cursor *in, struct x86_table *table)
{
        table->base = cursor_le64(in);
        table->limit = cursor_le16(in);
}

static void put_fpu(struct writer *out, const struct x86_fpu *fpu)
{
        writer_le16(out, fpu->fcw);
        writer_le16(out, fpu->fsw);
        writer_u8(out, fpu->ftw);
        writer_le16(out, fpu->fop);
        writer_le16(out, fpu->fcs);
        writer_le16(out, fpu->fds);
        writer_le64(out, fpu->fip);
        writer_le64(out, fpu->fdp);
        writer_le32(out, fpu->mxcsr);
        for (unsigned i = 0; i < 8; i++)
                writer_put(out, fpu->r[i], 10);
        for (unsigned i = 0; i < 16; i++)
                for (unsigned j = 0; j < 4; j++)
                        writer_le64(out, fpu->ymm[i].u64[j]);
}

static int get_fpu(struct cursor *in, struct x86_fpu *fpu)
{
        fpu->fcw = cursor_le16(in);
        fpu->fsw = cursor_le16(in);
        fpu->ftw = cursor_u8(in);
        fpu->fop = cursor_le16(in);
        fpu->fcs = cursor_le16(in);
        fpu->fds = cursor_le16(in);
        fpu->fip = cursor_le64(in);
        fpu->fdp = cursor_le64(in);
        fpu->mxcsr = cursor_le32(in);
        for (unsigned i = 0; i < 8; i++)
                if (cursor_get(in, fpu->r[i], 10) < 0)
                        return -EBADMSG;
        for (unsigned i = 0; i < 16; i++)
                for (unsigned j = 0; j < 4; j++)
                        fpu->ymm[i].u64[j] = cursor_le64(in);
        return 0;
}

/* The 64-bit members between the segments and the FPU, and those after it, in the record's order. */
#define WORDS_BEFORE_FPU(state)                                                                            \
        { &(state)->cr0, &(state)->cr2, &(state)->cr3, &(state)->cr4, &(state)->dr[0], &(state)->dr[1],    \
          &(state)->dr[2], &(state)->dr[3], &(state)->dr[6], &(state)->dr[7], &(state)->efer, &(state)->xcr0 }

#define WORDS_AFTER_FPU(state)                                                                             \
        { &(state)->star, &(state)->lstar, &(state)->cstar, &(state)->sfmask, &(state)->kernel_gs_base,    \
          &(state)->sysenter_cs, &(state)->sysenter_esp, &(state)->sysenter_eip, &(state)->pat,            \
          &(state)->tsc_offset, &(state)->tsc_adjust, &(state)->tsc_aux, &(state)->misc_enable,            \
          &(state)->spec_ctrl, &(state)->mtrr_def_type, &(state)->apic_base, &(state)->pv_wall_clock,      \
          &(state)->pv_system_time, &(state)->pv_steal_time, &(state)->pv_eoi, &(state)->pv_async_pf,      \
          &(state)->pv_poll_control }

enum run_bit {
        RUN_HALTED = 1u << 0,
        RUN_WAIT_FOR_SIPI = 1u << 1,
        RUN_SHADOW = 1u << 2,
        RUN_NMI_MASKED = 1u << 3,
        RUN_NMI_PENDING = 1u << 4,
        RUN_EXCEPTION = 1u << 5,
        RUN_EXCEPTION_ERROR = 1u << 6,
        RUN_ALL = (1u << 7) - 1,
};

static uint32_t run_bits(const struct x86_state *state)
{
        return (state->halted ? RUN_HALTED : 0u) | (state->wait_for_sipi ? RUN_WAIT_FOR_SIPI : 0u) |
               (state->interrupt_shadow ? RUN_SHADOW : 0u) | (state->nmi_masked ? RUN_NMI_MASKED : 0u) |
               (state->nmi_pending ? RUN_NMI_PENDING : 0u) | (state->exception_pending ? RUN_EXCEPTION : 0u) |
               (state->exception_has_error ? RUN_EXCEPTION_ERROR : 0u);
}

void x86_state_save(const struct x86_state *state, struct writer *out)
{
        const uint64_t *before[] = WORDS_BEFORE_FPU(state), *after[] = WORDS_AFTER_FPU(state);
        size_t mark = record_begin(out, "x86-cpu", STATE_VERSION);

        for (unsigned i = 0; i < 16; i++)
                writer_le64(out, state->gpr[i]);
        writer_le64(out, state->rip);
        writer_le64(out, state->rflags);
        for (unsigned i = 0; i < X86_SEGS; i++)
                put_segment(out, &state->seg[i]);
        put_segment(out, &state->ldtr);
        put_segment(out, &state->tr);
        put_table(out, &state->gdtr);
        put_table(out, &state->idtr);
        for (unsigned i = 0; i < ARRAY_SIZE(before); i++)
                writer_le64(out, *before[i]);
        writer_le32(out, state->pkru);
        put_fpu(out, &state->fpu);
        for (unsigned i = 0; i < ARRAY_SIZE(after); i++)
                writer_le64(out, *after[i]);
        for (unsigned i = 0; i < ARRAY_SIZE(state->mtrr_fixed); i++)
                writer_le64(out, state->mtrr_fixed[i]);
        for (unsigned i = 0; i < ARRAY_SIZE(state->mtrr_var); i++)
                writer_le64(out, state->mtrr_var[i]);
        writer_le32(out, run_bits(state));
        writer_u8(out, state->exception_vector);
        writer_le32(out, state->exception_error);
        record_end(out, mark);
}

static bool canonical(uint64_t address)
{
        return (uint64_t)((int64_t)(address << 16) >> 16) == address;
}

static bool long_mode_consistent(const struct x86_state *s)
{
        bool lma = s->efer & X86_EFER_LMA;

        if (lma != (s->efer & X86_EFER_LME && s->cr0 & X86_CR0_PG))
                return false;
        return !lma || (s->cr4 & X86_CR4_PAE && s->cr0 & X86_CR0_PE);
}

static int check_segments(const struct x86_state *s, struct err *err)
{
        for (unsigned i = 0; i < X86_SEGS; i++) {
                if (s->seg[i].access & ~0x1f0ffu)
                        return err_set(err, -EBADMSG, "x86-cpu: segment %u has access bits 0x%x that do not exist", i, s->seg[i].access);
                if (!canonical(s->seg[i].base))
                        return err_set(err, -EBADMSG, "x86-cpu: segment %u has base 0x%" PRIx64 ", not canonical", i, s->seg[i].base);
        }
        if ((s->ldtr.access | s->tr.access) & ~0x1f0ffu || !canonical(s->ldtr.base) || !canonical(s->tr.base))
                return err_set(err, -EBADMSG, "x86-cpu: LDTR or TR is not valid");
        if (!canonical(s->gdtr.base) || !canonical(s->idtr.base))
                return err_set(err, -EBADMSG, "x86-cpu: GDTR or IDTR base is not canonical");
        return 0;
}

static int check_control(const struct x86_state *s, struct err *err)
{
        if (s->cr0 & 0xffffffff1ffaffc0ull || (s->cr0 & X86_CR0_PG && !(s->cr0 & X86_CR0_PE)))
                return err_set(err, -EBADMSG, "x86-cpu: CR0 is 0x%" PRIx64 ", not a possible value", s->cr0);
        if (s->cr4 & ~0x77ffffull)
                return err_set(err, -EBADMSG, "x86-cpu: CR4 is 0x%" PRIx64 ", with bits that do not exist", s->cr4);
        if (s->efer & ~(X86_EFER_SCE | X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE) || !long_mode_consistent(s))
                return err_set(err, -EBADMSG, "x86-cpu: EFER is 0x%" PRIx64 ", which does not agree with CR0 and CR4", s->efer);
        if (!(s->xcr0 & 1) || s->xcr0 & ~7ull || (s->xcr0 & 6) == 4)
                return err_set(err, -EBADMSG, "x86-cpu: XCR0 is 0x%" PRIx64 ", not a possible value", s->xcr0);
        if (s->rflags & ~0x3f7fd7ull || !(s->rflags & X86_FLAG_FIXED))
                return err_set(err, -EBADMSG, "x86-cpu: RFLAGS is 0x%" PRIx64 ", with reserved bits", s->rflags);
        if (!canonical(s->rip) || !canonical(s->lstar) || !canonical(s->cstar) || !canonical(s->kernel_gs_base) ||
            !canonical(s->sysenter_esp) || !canonical(s->sysenter_eip))
                return err_set(err, -EBADMSG, "x86-cpu: RIP or an entry address is not canonical");
        if (s->fpu.mxcsr & 0xffff0000u)
                return err_set(err, -EBADMSG, "x86-cpu: MXCSR is 0x%x, with reserved bits", s->fpu.mxcsr);
        return 0;
}

static int read_body(struct x86_state *s, struct cursor *in)
{
        uint64_t *before[] = WORDS_BEFORE_FPU(s), *after[] = WORDS_AFTER_FPU(s);

        for (unsigned i = 0; i < 16; i++)
                s->gpr[i] = cursor_le64(in);
        s->rip = cursor_le64(in);
        s->rflags = cursor_le64(in);
        for (unsigned i = 0; i < X86_SEGS; i++)
                get_segment(in, &s->seg[i]);
        get_segment(in, &s->ldtr);
        get_segment(in, &s->tr);
        get_table(in, &s->gdtr);
        get_table(in, &s->idtr);
        for (unsigned i = 0; i < ARRAY_SIZE(before); i++)
                *before[i] = cursor_le64(in);
        s->pkru = cursor_le32(in);
        if (get_fpu(in, &s->fpu) < 0)
                return -EBADMSG;
        for (unsigned i = 0; i < ARRAY_SIZE(after); i++)
                *after[i] = cursor_le64(in);
        for (unsigned i = 0; i < ARRAY_SIZE(s->mtrr_fixed); i++)
                s->mtrr_fixed[i] = cursor_le64(in);
        for (unsigned i = 0; i < ARRAY_SIZE(s->mtrr_var); i++)
                s->mtrr_var[i] = cursor_le64(in);
        return 0;
}

static int read_run(struct x86_state *s, struct cursor *in, struct err *err)
{
        uint32_t bits = cursor_le32(in);

        s->exception_vector = cursor_u8(in);
        s->exception_error = cursor_le32(in);
        if (bits & ~(uint32_t)RUN_ALL || s->exception_vector > 31)
                return err_set(err, -EBADMSG, "x86-cpu: run bits 0x%x or pending exception %u do not exist", bits, s->exception_vector);
        s->halted = bits & RUN_HALTED;
        s->wait_for_sipi = bits & RUN_WAIT_FOR_SIPI;
        s->interrupt_shadow = bits & RUN_SHADOW;
        s->nmi_masked = bits & RUN_NMI_MASKED;
        s->nmi_pending = bits & RUN_NMI_PENDING;
        s->exception_pending = bits & RUN_EXCEPTION;
        s->exception_has_error = bits & RUN_EXCEPTION_ERROR;
        return 0;
}

int x86_state_load(struct x86_state *state, struct cursor *in, struct err *err)
{
        struct x86_state *s _cleanup_free_ = NULL;
        struct record record;
        int r = record_expect(in, "x86-cpu", STATE_VERSION, &record, err);

        if (r < 0)
                return r;
        if (posix_memalign((void **)&s, _Alignof(struct x86_state), sizeof(*s)) != 0)
                return err_nomem(err);
        memset(s, 0, sizeof(*s));
        if (read_body(s, &record.body) < 0)
                return err_set(err, -EBADMSG, "x86-cpu record is cut short");
        r = read_run(s, &record.body, err);
        if (r == 0)
                r = record_finish(&record, err);
        if (r == 0)
                r = check_segments(s, err);
        if (r == 0)
                r = check_control(s, err);
        if (r == 0)
                *state = *s;
        return r;
}

/* ---- for people ---- */

static void append(char *text, size_t size_bytes, size_t *at, const char *fmt, ...) _printf_(4, 5);

static void append(char *text, size_t size_bytes, size_t *at, const char *fmt, ...)
{
        va_list args;
        int n;

        if (*at >= size_bytes)
                return;
        va_start(args, fmt);
        n = vsnprintf(text + *at, size_bytes - *at, fmt, args);
        va_end(args);
        if (n > 0)
                *at += (size_t)n;
}

void x86_state_format(const struct x86_state *state, char *text, size_t size_bytes)
{
        static const char *const reg[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                             "r8 ", "r9 ", "r10", "r11", "r12", "r13", "r14", "r15" };
        static const char *const seg[X86_SEGS] = { "es", "cs", "ss", "ds", "fs", "gs" };
        size_t at = 0;

        if (!size_bytes)
                return;
        text[0] = '\0';
        for (unsigned i = 0; i < 16; i++)
                append(text, size_bytes, &at, "%s %016" PRIx64 "%s", reg[i], state->gpr[i], i % 4 == 3 ? "\n" : "  ");
        append(text, size_bytes, &at, "rip %016" PRIx64 "  rflags %08" PRIx64 "%s%s\n", state->rip, state->rflags,
               state->halted ? "  halted" : "", state->wait_for_sipi ? "  waiting for SIPI" : "");
        append(text, size_bytes, &at, "cr0 %08" PRIx64 "  cr2 %016" PRIx64 "  cr3 %016" PRIx64 "  cr4 %08" PRIx64 "  efer %04" PRIx64 "\n",
               state->cr0, state->cr2, state->cr3, state->cr4, state->efer);
        for (unsigned i = 0; i < X86_SEGS; i++)
                append(text, size_bytes, &at, "%s  %04x base %016" PRIx64 " limit %08x access %05x\n", seg[i], state->seg[i].selector,
                       state->seg[i].base, state->seg[i].limit, state->seg[i].access);
        append(text, size_bytes, &at, "ldt %04x base %016" PRIx64 " limit %08x\n", state->ldtr.selector, state->ldtr.base, state->ldtr.limit);
        append(text, size_bytes, &at, "tr  %04x base %016" PRIx64 " limit %08x\n", state->tr.selector, state->tr.base, state->tr.limit);
        append(text, size_bytes, &at, "gdt base %016" PRIx64 " limit %04x  idt base %016" PRIx64 " limit %04x\n", state->gdtr.base,
               state->gdtr.limit, state->idtr.base, state->idtr.limit);
}
