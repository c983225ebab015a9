/*
 * Executing one instruction in the interpreter: a processor in long mode at CPL 3 with page tables for the test's addresses.
 *
 * The run loop is left out: one instruction is decoded as under single step, run, and a fault caught where the run loop would.
 */
#include "diff.h"

#include <errno.h>

#include "cpu/x86/block.h"
#include "cpu/x86/cpuid.h"
#include "cpu/x86/fpu.h"

#define MEMORY_BYTES (1u << 20)
#define GPA_DATA 0x10000u
#define GPA_CODE 0x20000u
#define TSS_BASE UINT64_C(0xffff800000000000)

struct guest {
        struct guest_memory mem;
        struct x86_model model;
        struct x86_complex *complex;
        struct x86_cpu *cpu;
        uint8_t *host;
        uint64_t tsc_offset;
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

static uint8_t no_tpr(void *ctx)
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

static const struct x86_platform platform = {
        .mmio_read = no_mmio_read, .mmio_write = no_mmio_write, .pio_read = no_pio_read, .pio_write = no_pio_write,
        .interrupt_ack = no_interrupt, .tpr_read = no_tpr, .tpr_write = no_tpr_write, .apic_msr_read = no_msr_read,
        .apic_msr_write = no_msr_write, .hypercall = no_hypercall,
};

enum { PTE_P = 1, PTE_W = 2, PTE_U = 4, PTE_A = 0x20, PTE_D = 0x40, PTE_TABLE = PTE_P | PTE_W | PTE_U | PTE_A };

static void put_entry(struct guest *guest, uint64_t table, unsigned index, uint64_t value)
{
        memcpy(guest->host + table + index * 8, &value, 8);
}

static void map_pages(struct guest *guest)
{
        /* The TSS, for the supervisor, at TSS_BASE. */
        put_entry(guest, 0x1000, 256, 0x8000 | PTE_TABLE);
        put_entry(guest, 0x8000, 0, 0x9000 | PTE_TABLE);
        put_entry(guest, 0x9000, 0, 0x6000 | PTE_TABLE);
        put_entry(guest, 0x6000, 0, 0x7000 | PTE_P | PTE_W | PTE_A | PTE_D);
        put_entry(guest, 0x1000, 0, 0x2000 | PTE_TABLE);
        put_entry(guest, 0x2000, 0, 0x3000 | PTE_TABLE);
        put_entry(guest, 0x3000, DATA_BASE >> 21, 0x4000 | PTE_TABLE);
        put_entry(guest, 0x3000, CODE_BASE >> 21, 0x5000 | PTE_TABLE);
        put_entry(guest, 0x4000, 0, GPA_DATA | PTE_TABLE | PTE_D);
        put_entry(guest, 0x4000, 1, (GPA_DATA + PAGE) | PTE_TABLE | PTE_D);
        put_entry(guest, 0x4000, 3, (GPA_DATA + 3 * PAGE) | PTE_P | PTE_U | PTE_A | PTE_D);
        for (unsigned n = 0; n < CODE_BYTES / PAGE; n++)
                put_entry(guest, 0x5000, n, (GPA_CODE + n * PAGE) | PTE_P | PTE_U | PTE_A | PTE_D);
}

static void long_mode(struct guest *guest)
{
        struct x86_state *s = x86_cpu_state(guest->cpu);

        x86_state_reset(s, true);
        s->cr0 = X86_CR0_PE | X86_CR0_MP | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_AM | X86_CR0_PG;
        s->cr3 = 0x1000;
        s->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE | X86_CR4_FSGSBASE;
        s->efer = X86_EFER_SCE | X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE;
        s->xcr0 = 7;
        for (unsigned n = 0; n < X86_SEGS; n++)
                s->seg[n] = (struct x86_segment){ .access = X86_ACCESS_UNUSABLE | 3 << X86_ACCESS_DPL_SHIFT };
        s->seg[X86_CS] = (struct x86_segment){ .selector = 0x33, .limit = UINT32_MAX,
                .access = 0xb | X86_ACCESS_S | 3 << X86_ACCESS_DPL_SHIFT | X86_ACCESS_P | X86_ACCESS_L | X86_ACCESS_G };
        s->seg[X86_SS] = (struct x86_segment){ .selector = 0x2b, .limit = UINT32_MAX,
                .access = 0x3 | X86_ACCESS_S | 3 << X86_ACCESS_DPL_SHIFT | X86_ACCESS_P | X86_ACCESS_DB | X86_ACCESS_G };
        /* Too short for an I/O permission bitmap: ports are forbidden, as they are natively. */
        s->tr = (struct x86_segment){ .selector = 8, .base = TSS_BASE, .limit = 0x67, .access = 0xb | X86_ACCESS_P };
        x86_cpu_state_changed(guest->cpu);
}

int guest_new(struct guest **out, const char *model, struct err *err)
{
        struct guest *guest = calloc(1, sizeof(*guest));
        int r;

        if (!guest)
                return err_nomem(err);
        guest->mem.fd = -1;
        r = guest_memory_init(&guest->mem, "diff", err);
        if (!r)
                r = guest_memory_add(&guest->mem, 0, MEMORY_BYTES, err);
        if (!r)
                r = x86_model_init(&guest->model, model, 1, err);
        if (!r)
                r = x86_complex_new(&guest->mem, &guest->complex, err);
        if (!r)
                r = x86_cpu_new(guest->complex, 0, &guest->model, &platform, guest, &guest->cpu, err);
        if (r) {
                guest_free(guest);
                return r;
        }
        guest->host = guest_memory_at(&guest->mem, 0, MEMORY_BYTES);
        map_pages(guest);
        memset(guest->host + GPA_CODE, 0xcc, CODE_BYTES);
        memset(guest->host + 0x7000, 0xff, PAGE);
        long_mode(guest);
        complex_enter(guest->cpu);
        *out = guest;
        return 0;
}

void guest_free(struct guest *guest)
{
        if (!guest)
                return;
        if (guest->cpu) {
                complex_leave(guest->cpu);
                x86_cpu_free(guest->cpu);
        }
        if (guest->complex)
                x86_complex_free(guest->complex);
        guest_memory_done(&guest->mem);
        free(guest);
}

const bool *guest_isa_sets(const struct guest *guest)
{
        return guest->cpu->blocks->isa_set;
}

uint8_t *guest_data(struct guest *guest)
{
        return guest->host + GPA_DATA;
}

uint8_t *guest_readonly(struct guest *guest)
{
        return guest->host + GPA_DATA + 3 * PAGE;
}

void guest_code(struct guest *guest, const struct code *code)
{
        uint8_t bytes[64];
        uint64_t gpa = code->address - CODE_BASE + GPA_CODE;

        memset(bytes, 0xcc, sizeof(bytes));
        memcpy(bytes + 16, code->bytes, code->z.length);
        if (guest_memory_write(&guest->mem, gpa - 16, bytes, sizeof(bytes)) < 0)
                abort();
}

static void execute(struct x86_cpu *cpu)
{
        const struct insn *i = block_enter(cpu);

        do {
                cpu->insn = i;
                i = i->fn(cpu, i);
        } while (i);
        cpu->block = NULL;
}

#define REPEATED (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)

void guest_run(struct guest *guest, const struct code *code, const struct image *in, struct image *out)
{
        struct x86_cpu *cpu = guest->cpu;

        memcpy(cpu->s.gpr, in->gpr, sizeof(in->gpr));
        cpu->s.rip = code->address;
        x86_set_flags(cpu, in->rflags);
        if (x86_fpu_from_xsave(&cpu->s, in->xsave, sizeof(in->xsave), NULL) < 0)
                abort();
        x86_mode_changed(cpu);
        cpu->mode_key |= MODE_STEP;
        cpu->block = NULL;
        out->vector = -1;
        out->error_code = 0;
        out->cr2 = 0;
        if (!_setjmp(cpu->unwind)) {
                do /* a repeated string instruction steps once each time */
                        execute(cpu);
                while (cpu->s.rip == code->address && code->z.attributes & REPEATED);
                out->rip = cpu->s.rip;
        } else {
                out->rip = cpu->block ? insn_rip(cpu, cpu->insn->start) : cpu->s.rip;
                cpu->block = NULL;
                out->vector = cpu->fault.vector;
                out->error_code = cpu->fault.has_error ? cpu->fault.error_code : 0;
                out->cr2 = cpu->s.cr2;
        }
        memcpy(out->gpr, cpu->s.gpr, sizeof(out->gpr));
        out->rflags = x86_flags(cpu);
        x86_fpu_to_xsave(&cpu->s, out->xsave);
}
