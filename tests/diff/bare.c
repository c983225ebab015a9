/*
 * Physical memory: 0x1000 PML4, 0x2000 PDPT and 0x3000 PD of the first GiB, 0x4000 PDPT and 0x5000 PD of BARE_LINEAR, 0x6000 GDT,
 * 0x7000 IDT, 0x8000 TSS, 0x9000 the handlers (HLT each), 0xb000 the end of their stack, 0xc000 page tables as they are needed
 */
#include "tests/diff/bare.h"

#include <errno.h>

#include "cpu/x86/block.h"

#define PML4 0x1000u
#define PDPT 0x2000u
#define PD 0x3000u
#define HIGH_PDPT 0x4000u
#define HIGH_PD 0x5000u
#define GDT 0x6000u
#define IDT 0x7000u
#define TSS 0x8000u
#define TSS_IO_MAP_BASE 102
#define HANDLERS 0x9000u
#define HANDLER_STACK 0xb000u
#define PAGE_TABLES 0xc000u
#define TRANSLATOR_CACHE (8u << 20) /* emptied now and then */

enum { PTE_P = 1, PTE_W = 2, PTE_U = 4, PTE_A = 0x20, PTE_D = 0x40, PTE_LARGE = 0x80, PTE_TABLE = PTE_P | PTE_W | PTE_U | PTE_A };
#define PTE_NX (UINT64_C(1) << 63)

struct bare {
        struct guest_memory mem;
        struct x86_complex *complex;
        struct x86_model model;
        struct x86_cpu *cpu;
        uint8_t *ram;
        uint64_t tables_end;
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
        .mmio_read = no_mmio_read,
        .mmio_write = no_mmio_write,
        .pio_read = no_pio_read,
        .pio_write = no_pio_write,
        .interrupt_ack = no_interrupt,
        .tpr_read = no_tpr_read,
        .tpr_write = no_tpr_write,
        .apic_msr_read = no_msr_read,
        .apic_msr_write = no_msr_write,
        .hypercall = no_hypercall,
};

static void put64(struct bare *bare, uint64_t gpa, uint64_t value)
{
        memcpy(bare->ram + gpa, &value, sizeof(value));
}

static uint64_t get64(const struct bare *bare, uint64_t gpa)
{
        uint64_t value;

        memcpy(&value, bare->ram + gpa, sizeof(value));
        return value;
}

static void put_pages(struct bare *bare)
{
        put64(bare, PML4, PDPT | PTE_TABLE);
        put64(bare, PDPT, PD | PTE_TABLE);
        put64(bare, PML4 + 256 * 8, HIGH_PDPT | PTE_TABLE);
        put64(bare, HIGH_PDPT, HIGH_PD | PTE_TABLE);
        for (uint64_t n = 0; n < BARE_MEMORY >> 21; n++)
                put64(bare, HIGH_PD + n * 8, n << 21 | PTE_P | PTE_W | PTE_A | PTE_D | PTE_LARGE);
        bare->tables_end = PAGE_TABLES;
}

void bare_map(struct bare *bare, uint64_t linear, uint64_t gpa, uint64_t size_bytes, enum bare_pages pages)
{
        uint64_t rights =
                (pages == BARE_NONE ? 0 : PTE_P) | (pages == BARE_KERNEL ? 0 : PTE_U) | PTE_A | PTE_D |
                (pages == BARE_WRITE || pages == BARE_KERNEL ? PTE_W : 0) | (pages == BARE_EXECUTE ? 0 : PTE_NX);

        for (uint64_t at = 0; at < size_bytes; at += GUEST_PAGE_SIZE) {
                uint64_t entry = PD + ((linear + at) >> 21) * 8, table = get64(bare, entry);

                if (!table) {
                        table = bare->tables_end | PTE_TABLE;
                        bare->tables_end += GUEST_PAGE_SIZE;
                        put64(bare, entry, table);
                }
                put64(bare, (table & ~(GUEST_PAGE_SIZE - 1)) + ((linear + at) >> GUEST_PAGE_SHIFT & 511) * 8,
                      (gpa + at) | rights);
        }
}

/* 0x08 the supervisor's code, 0x10 its data. Nothing loads the user's. */
static void put_tables(struct bare *bare)
{
        put64(bare, GDT + 0x08, UINT64_C(0x00af9b000000ffff));
        put64(bare, GDT + 0x10, UINT64_C(0x00cf93000000ffff));
        put64(bare, GDT + 0x20, UINT64_C(0x00cffb000000ffff)); /* those of bare_state(), for IRET */
        put64(bare, GDT + 0x28, UINT64_C(0x00cff3000000ffff));
        put64(bare, GDT + 0x30, UINT64_C(0x00affb000000ffff));
        for (uint64_t vector = 0; vector < 256; vector++) {
                uint64_t handler = BARE_LINEAR + HANDLERS + vector * 16;

                put64(bare, IDT + vector * 16,
                      (handler & 0xffff) | 0x08u << 16 | UINT64_C(0xee00) << 32 | (handler >> 16 & 0xffff) << 48);
                put64(bare, IDT + vector * 16 + 8, handler >> 32);
                memset(bare->ram + handler - BARE_LINEAR, 0xf4, 16);
        }
        put64(bare, TSS + 4, BARE_LINEAR + HANDLER_STACK);
        /* The I/O permission bitmap is beyond the TSS's end: ports are forbidden, as they are to a user of Linux. */
        memset(bare->ram + TSS + TSS_IO_MAP_BASE, 0xff, 2);
}

int bare_new_engine(const char *model, enum bare_engine engine, struct bare **out, struct err *err)
{
        struct bare *bare = calloc(1, sizeof(*bare));
        int r;

        if (!bare)
                return err_nomem(err);
        bare->mem.fd = -1;
        r = guest_memory_init(&bare->mem, "bare", err);
        if (r == 0)
                r = guest_memory_add(&bare->mem, 0, BARE_MEMORY, err);
        if (r == 0)
                r = x86_complex_new(&bare->mem, &bare->complex, err);
        if (r == 0 && engine == BARE_TRANSLATOR)
                r = x86_complex_translate(bare->complex, &(struct translator_options){ .cache_bytes = TRANSLATOR_CACHE }, err);
        if (r == 0)
                r = x86_model_init(&bare->model, model, 1, err);
        if (r == 0)
                r = x86_cpu_new(bare->complex, 0, &bare->model, &no_platform, bare, &bare->cpu, err);
        if (r < 0) {
                bare_free(bare);
                return r;
        }
        bare->ram = guest_memory_at(&bare->mem, 0, BARE_MEMORY);
        bare->tsc_offset = x86_cpu_state(bare->cpu)->tsc_offset;
        put_pages(bare);
        put_tables(bare);
        *out = bare;
        return 0;
}

int bare_new(const char *model, struct bare **out, struct err *err)
{
        return bare_new_engine(model, BARE_INTERPRETER, out, err);
}

void bare_free(struct bare *bare)
{
        if (!bare)
                return;
        x86_cpu_free(bare->cpu);
        if (bare->complex)
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

uint8_t *bare_at(struct bare *bare, uint64_t gpa, uint64_t size_bytes)
{
        return guest_memory_at(&bare->mem, gpa, size_bytes);
}

const bool *bare_isa_sets(const struct bare *bare)
{
        return bare->cpu->blocks->isa_set;
}

static struct x86_segment flat(uint16_t selector, uint32_t access)
{
        return (struct x86_segment){ .selector = selector,
                                     .access = access | X86_ACCESS_S | X86_ACCESS_P | X86_ACCESS_G,
                                     .limit = UINT32_MAX };
}

void bare_state(const struct bare *bare, enum bare_mode mode, struct x86_state *s)
{
        uint32_t dpl = (mode == BARE_SUPERVISOR ? 0u : 3u) << X86_ACCESS_DPL_SHIFT;

        memset(s, 0, sizeof(*s));
        x86_state_reset(s, true);
        memset(s->gpr, 0, sizeof(s->gpr));
        s->tsc_offset = bare->tsc_offset;
        s->cr0 = X86_CR0_PE | X86_CR0_MP | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_AM | X86_CR0_PG;
        s->cr3 = PML4;
        s->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE;
        if (x86_model_has(&bare->model, X86_F_FSGSBASE))
                s->cr4 |= X86_CR4_FSGSBASE;
        s->xcr0 = x86_model_has(&bare->model, X86_F_AVX) ? 7 : 3;
        s->efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_SCE | X86_EFER_NXE;
        /* Selectors as Linux has them; FS and GS are null. */
        s->seg[X86_CS] = flat(mode == BARE_SUPERVISOR ? 0x08
                              : mode == BARE_USER64   ? 0x33
                                                      : 0x23,
                              0xb | (mode == BARE_USER32 ? X86_ACCESS_DB : X86_ACCESS_L) | dpl);
        for (unsigned n = 0; n < X86_SEGS; n++)
                if (n != X86_CS)
                        s->seg[n] = flat(mode == BARE_SUPERVISOR ? 0x10 : 0x2b, 3 | X86_ACCESS_DB | dpl);
        s->seg[X86_FS] = s->seg[X86_GS] = (struct x86_segment){ .access = X86_ACCESS_UNUSABLE | dpl };
        s->tr = (struct x86_segment){ .selector = 0x28, .access = 0xb | X86_ACCESS_P, .limit = 0x67, .base = BARE_LINEAR + TSS };
        s->gdtr = (struct x86_table){ .base = BARE_LINEAR + GDT, .limit = 0x37 };
        s->idtr = (struct x86_table){ .base = BARE_LINEAR + IDT, .limit = 0xfff };
        s->rflags = X86_FLAG_FIXED;
}

int bare_vector(struct bare *bare, struct bare_frame *frame)
{
        static const uint32_t with_error = 1u << 8 | 1u << 10 | 1u << 11 | 1u << 12 | 1u << 13 | 1u << 14 | 1u << 17 | 1u << 21;
        struct x86_state *s = x86_cpu_state(bare->cpu);
        uint64_t at = s->rip - 1 - (BARE_LINEAR + HANDLERS), stack = s->gpr[X86_RSP] - BARE_LINEAR;
        unsigned vector = (unsigned)(at / 16);

        if (at % 16 || at / 16 > 255 || stack >= HANDLER_STACK)
                return -1;
        memset(frame, 0, sizeof(*frame));
        if (vector < 32 && with_error >> vector & 1)
                memcpy(frame, bare->ram + stack, sizeof(*frame));
        else
                memcpy(&frame->rip, bare->ram + stack, sizeof(*frame) - sizeof(frame->error_code));
        return (int)vector;
}

void bare_go_on(struct bare *bare, uint64_t linear)
{
        for (uint64_t vector = 0; vector < 256; vector++) {
                uint64_t behind = HANDLERS + vector * 16 + 1;
                uint32_t distance = (uint32_t)(linear - (BARE_LINEAR + behind + 5));

                bare->ram[behind] = 0xe9; /* JMP */
                memcpy(bare->ram + behind + 1, &distance, 4);
        }
        guest_memory_written(&bare->mem, HANDLERS, 256 * 16);
}
