/*
 * A processor of ours without a machine: memory, page tables, gates to HLT, no devices.
 *
 * Physical memory is 272 MiB from 0 (sparse). Its first MiB holds the tables:
 *      0x1000 PML4, 0x2000 PDPT, 0x3000 PD: identity, 2 MiB pages for the supervisor; 0x4000 a page table for the 2 MiB at
 *      DIFF_BASE, of which only code, data and stack are present, for all; 0x5000 GDT, 0x6000 IDT, 0x7000 TSS, 0x8000 handlers
 * (HLT each), 0xa000 their stack's end
 */
#include "tests/diff/diff.h"

#include <errno.h>

#include "cpu/x86/cpu.h"

#define MEMORY_BYTES 0x11000000u
#define PML4 0x1000u
#define PDPT 0x2000u
#define PD 0x3000u
#define PT 0x4000u
#define GDT 0x5000u
#define IDT 0x6000u
#define TSS 0x7000u
#define HANDLERS 0x8000u
#define HANDLER_STACK 0xa000u

#define PAGE_ALL 7u /* present, writable, user */
#define PAGE_SUPERVISOR 3u
#define PAGE_LARGE 0x80u

struct bare {
        struct guest_memory mem;
        struct x86_complex *complex;
        struct x86_model model;
        struct x86_cpu *cpu;
        uint8_t *ram;
};

static uint64_t no_mmio_read(void *ctx, uint64_t gpa, unsigned size_bytes)
{
        return UINT64_MAX;
}

static void no_mmio_write(void *ctx, uint64_t gpa, uint64_t value, unsigned size_bytes)
{
}

static uint32_t no_pio_read(void *ctx, uint16_t port, unsigned size_bytes)
{
        return UINT32_MAX;
}

static void no_pio_write(void *ctx, uint16_t port, uint32_t value, unsigned size_bytes)
{
}

static int no_interrupt(void *ctx)
{
        return -1;
}

static uint8_t no_tpr_read(void *ctx)
{
        return 0;
}

static void no_tpr_write(void *ctx, uint8_t priority)
{
}

static int no_msr_read(void *ctx, uint32_t index, uint64_t *value)
{
        return -EPERM;
}

static int no_msr_write(void *ctx, uint32_t index, uint64_t value)
{
        return -EPERM;
}

static int64_t no_hypercall(void *ctx, uint64_t nr, const uint64_t arg[4])
{
        return -ENOSYS;
}

static const struct x86_platform no_platform = {
        .mmio_read = no_mmio_read, .mmio_write = no_mmio_write, .pio_read = no_pio_read, .pio_write = no_pio_write,
        .interrupt_ack = no_interrupt, .tpr_read = no_tpr_read, .tpr_write = no_tpr_write,
        .apic_msr_read = no_msr_read, .apic_msr_write = no_msr_write, .hypercall = no_hypercall,
};

static void put64(struct bare *bare, uint64_t gpa, uint64_t value)
{
        memcpy(bare->ram + gpa, &value, sizeof(value));
}

static void put_pages(struct bare *bare)
{
        static const struct {
                uint32_t from, bytes;
        } present[] = { { DIFF_CODE, 0x1000 }, { DIFF_DATA, DIFF_DATA_BYTES }, { DIFF_STACK, DIFF_STACK_BYTES } };

        put64(bare, PML4, PDPT | PAGE_ALL);
        put64(bare, PDPT, PD | PAGE_ALL);
        for (uint64_t n = 0; n < MEMORY_BYTES >> 21; n++)
                put64(bare, PD + n * 8, n << 21 | PAGE_SUPERVISOR | PAGE_LARGE);
        put64(bare, PD + (DIFF_BASE >> 21) * 8, PT | PAGE_ALL);
        for (size_t n = 0; n < ARRAY_SIZE(present); n++)
                for (uint64_t at = present[n].from; at < present[n].from + present[n].bytes; at += 0x1000)
                        put64(bare, PT + (at >> 12 & 511) * 8, at | PAGE_ALL);
}

/* 0x08 code 0, 0x10 data 0, 0x18 code 3, 0x20 data 3, 0x28 TSS. */
static void put_tables(struct bare *bare)
{
        put64(bare, GDT + 0x08, UINT64_C(0x00af9b000000ffff));
        put64(bare, GDT + 0x10, UINT64_C(0x00cf93000000ffff));
        put64(bare, GDT + 0x18, UINT64_C(0x00affb000000ffff));
        put64(bare, GDT + 0x20, UINT64_C(0x00cff3000000ffff));
        put64(bare, GDT + 0x28, UINT64_C(0x00008b0000000067) | (uint64_t)TSS << 16);
        put64(bare, GDT + 0x30, 0);
        for (uint64_t vector = 0; vector < 256; vector++) {
                uint64_t handler = HANDLERS + vector * 16;

                put64(bare, IDT + vector * 16, (handler & 0xffff) | 0x08u << 16 | UINT64_C(0xee00) << 32 | (handler >> 16) << 48);
                put64(bare, IDT + vector * 16 + 8, 0);
                memset(bare->ram + handler, 0xf4, 16);
        }
        put64(bare, TSS + 4, HANDLER_STACK);
}

int bare_new(const char *model, struct bare **out, struct err *err)
{
        struct bare *bare = calloc(1, sizeof(*bare));
        int r;

        if (!bare)
                return err_nomem(err);
        bare->mem.fd = -1;
        r = guest_memory_init(&bare->mem, "bare", err);
        if (r == 0)
                r = guest_memory_add(&bare->mem, 0, MEMORY_BYTES, err);
        if (r == 0)
                r = x86_complex_new(&bare->mem, &bare->complex, err);
        if (r == 0)
                r = x86_model_init(&bare->model, model, 1, err);
        if (r == 0)
                r = x86_cpu_new(bare->complex, 0, &bare->model, &no_platform, bare, &bare->cpu, err);
        if (r < 0) {
                bare_free(bare);
                return r;
        }
        bare->ram = guest_memory_at(&bare->mem, 0, MEMORY_BYTES);
        put_pages(bare);
        put_tables(bare);
        *out = bare;
        return 0;
}

void bare_free(struct bare *bare)
{
        if (!bare)
                return;
        x86_cpu_free(bare->cpu);
        x86_complex_free(bare->complex);
        guest_memory_done(&bare->mem);
        free(bare);
}

struct x86_cpu *bare_cpu(struct bare *bare)
{
        return bare->cpu;
}

struct guest_memory *bare_memory(struct bare *bare)
{
        return &bare->mem;
}

const struct x86_model *bare_model(struct bare *bare)
{
        return &bare->model;
}

static struct x86_segment flat(uint16_t selector, uint32_t access)
{
        return (struct x86_segment){ .selector = selector, .access = access, .limit = UINT32_MAX };
}

void bare_reset(struct bare *bare, unsigned cpl, uint64_t rip)
{
        struct x86_state *s = x86_cpu_state(bare->cpu);
        uint32_t dpl = cpl << X86_ACCESS_DPL_SHIFT;
        uint16_t rpl = cpl ? 0x10 | 3 : 0;

        x86_state_reset(s, true);
        s->cr0 = X86_CR0_PE | X86_CR0_MP | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_PG;
        s->cr3 = PML4;
        s->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE;
        s->xcr0 = x86_model_has(&bare->model, X86_F_AVX) ? 7 : 3;
        s->efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_SCE | X86_EFER_NXE;
        s->seg[X86_CS] = flat(0x08 + rpl, 0xb | X86_ACCESS_S | X86_ACCESS_P | X86_ACCESS_L | X86_ACCESS_G | dpl);
        for (unsigned n = 0; n < X86_SEGS; n++)
                if (n != X86_CS)
                        s->seg[n] = flat(0x10 + rpl, 3 | X86_ACCESS_S | X86_ACCESS_P | X86_ACCESS_DB | X86_ACCESS_G | dpl);
        s->tr = (struct x86_segment){ .selector = 0x28, .access = 0xb | X86_ACCESS_P, .limit = 0x67, .base = TSS };
        s->gdtr = (struct x86_table){ .base = GDT, .limit = 0x37 };
        s->idtr = (struct x86_table){ .base = IDT, .limit = 0xfff };
        s->rip = rip;
        s->rflags = X86_FLAG_FIXED;
        memset(s->gpr, 0, sizeof(s->gpr));
        x86_cpu_state_changed(bare->cpu);
}

void bare_reset32(struct bare *bare, uint64_t rip)
{
        struct x86_state *s = x86_cpu_state(bare->cpu);

        bare_reset(bare, 0, rip);
        s->cr0 &= ~X86_CR0_PG;
        s->efer = 0;
        s->seg[X86_CS].access = (s->seg[X86_CS].access & ~X86_ACCESS_L) | X86_ACCESS_DB;
        x86_cpu_state_changed(bare->cpu);
}

void bare_reset16(struct bare *bare, uint16_t ip)
{
        struct x86_state *s = x86_cpu_state(bare->cpu);

        x86_state_reset(s, true);
        s->seg[X86_CS].base = 0;
        s->seg[X86_CS].selector = 0;
        s->rip = ip;
        x86_cpu_state_changed(bare->cpu);
}

int bare_vector(struct bare *bare, struct bare_frame *frame)
{
        static const uint32_t with_error = 1u << 8 | 1u << 10 | 1u << 11 | 1u << 12 | 1u << 13 | 1u << 14 | 1u << 17 | 1u << 21;
        struct x86_state *s = x86_cpu_state(bare->cpu);
        uint64_t at = s->rip - 1 - HANDLERS;
        unsigned vector = (unsigned)(at / 16);

        if (at % 16 || vector > 255)
                return -1;
        memset(frame, 0, sizeof(*frame));
        if (vector < 32 && with_error >> vector & 1)
                memcpy(frame, bare->ram + s->gpr[X86_RSP], sizeof(*frame));
        else
                memcpy(&frame->rip, bare->ram + s->gpr[X86_RSP], sizeof(*frame) - sizeof(frame->error_code));
        return (int)vector;
}

/* ---- x87, SSE and AVX state: the XSAVE format (SDM vol. 1 §13.4) to ours and back ---- */

static void xsave_to_fpu(struct x86_fpu *fpu, const uint8_t *xsave)
{
        memcpy(&fpu->fcw, xsave, 2);
        memcpy(&fpu->fsw, xsave + 2, 2);
        fpu->ftw = xsave[4];
        memcpy(&fpu->fop, xsave + 6, 2);
        memcpy(&fpu->fip, xsave + 8, 8);
        memcpy(&fpu->fdp, xsave + 16, 8);
        memcpy(&fpu->mxcsr, xsave + 24, 4);
        for (unsigned n = 0; n < 8; n++)
                memcpy(fpu->r[(n + (fpu->fsw >> 11)) & 7], xsave + 32 + 16 * n, 10);
        for (unsigned n = 0; n < 16; n++) {
                memcpy(&fpu->ymm[n].u8[0], xsave + 160 + 16 * n, 16);
                memcpy(&fpu->ymm[n].u8[16], xsave + 576 + 16 * n, 16);
        }
}

static void fpu_to_xsave(uint8_t *xsave, const struct x86_fpu *fpu)
{
        uint64_t all = 7;

        memset(xsave, 0, DIFF_XSAVE_BYTES);
        memcpy(xsave, &fpu->fcw, 2);
        memcpy(xsave + 2, &fpu->fsw, 2);
        xsave[4] = fpu->ftw;
        memcpy(xsave + 6, &fpu->fop, 2);
        memcpy(xsave + 8, &fpu->fip, 8);
        memcpy(xsave + 16, &fpu->fdp, 8);
        memcpy(xsave + 24, &fpu->mxcsr, 4);
        memcpy(xsave + 512, &all, 8);
        for (unsigned n = 0; n < 8; n++)
                memcpy(xsave + 32 + 16 * n, fpu->r[(n + (fpu->fsw >> 11)) & 7], 10);
        for (unsigned n = 0; n < 16; n++) {
                memcpy(xsave + 160 + 16 * n, &fpu->ymm[n].u8[0], 16);
                memcpy(xsave + 576 + 16 * n, &fpu->ymm[n].u8[16], 16);
        }
}

void bare_run(struct bare *bare, const uint8_t *code, size_t size_bytes, struct diff_run *run, bool with_xsave)
{
        struct x86_state *s;
        struct bare_frame frame = { 0 };

        memcpy(bare->ram + DIFF_CODE, code, size_bytes);
        bare->ram[DIFF_CODE + size_bytes] = 0xcc; /* INT3 ends it */
        guest_memory_written(&bare->mem, DIFF_CODE, size_bytes + 1);
        memcpy(bare->ram + DIFF_DATA, run->memory.data, DIFF_DATA_BYTES);
        memcpy(bare->ram + DIFF_STACK, run->memory.stack, DIFF_STACK_BYTES);
        bare_reset(bare, 3, DIFF_CODE);
        s = x86_cpu_state(bare->cpu);
        memcpy(s->gpr, run->state.gpr, sizeof(run->state.gpr));
        s->rflags = (run->state.rflags & (X86_FLAGS_STATUS | X86_FLAG_DF)) | X86_FLAG_FIXED | X86_FLAG_IF;
        if (with_xsave)
                xsave_to_fpu(&s->fpu, run->state.xsave);
        x86_cpu_state_changed(bare->cpu);

        run->vector = x86_cpu_run(bare->cpu) == X86_EXIT_HALTED ? bare_vector(bare, &frame) : -2;
        s = x86_cpu_state(bare->cpu);
        memcpy(run->state.gpr, s->gpr, sizeof(run->state.gpr));
        run->state.gpr[X86_RSP] = frame.rsp;
        run->state.rflags = frame.rflags;
        run->rip = frame.rip - DIFF_CODE;
        run->error_code = (uint32_t)frame.error_code;
        run->cr2 = s->cr2;
        if (run->vector == X86_BP && run->rip == size_bytes + 1) {
                run->vector = -1;
                run->rip = size_bytes;
                run->error_code = 0;
        }
        if (with_xsave)
                fpu_to_xsave(run->state.xsave, &s->fpu);
        memcpy(run->memory.data, bare->ram + DIFF_DATA, DIFF_DATA_BYTES);
        memcpy(run->memory.stack, bare->ram + DIFF_STACK, DIFF_STACK_BYTES);
}
