/*
 * A hostile guest: arbitrary bytes as code, tables and page tables, in every mode. The processor may fault, shut down or loop, but
 * reads and writes nothing outside of guest memory and its own struct.
 *
 * Input: one byte of mode, 16 general registers, the bytes of memory from 0x1000 on (repeated to fill it). A guest that loops is
 * stopped by a timer.
 */
#include <assert.h>
#include <signal.h>
#include <sys/time.h>

#include "cpu/x86/cpu.h"
#include "cpu/x86/cpuid.h"

#define MEMORY (1u << 20)
#define PAGES 0x80000u
#define STOP_AFTER_US 2000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t mmio_read(void *ctx, uint64_t gpa, unsigned size_bytes)
{
        return 0x5a5a5a5a5a5a5a5a;
}

static void mmio_write(void *ctx, uint64_t gpa, uint64_t value, unsigned size_bytes)
{
        assert(size_bytes == 1 || size_bytes == 2 || size_bytes == 4 || size_bytes == 8);
}

static uint32_t pio_read(void *ctx, uint16_t port, unsigned size_bytes)
{
        return 0xa5a5a5a5;
}

static void pio_write(void *ctx, uint16_t port, uint32_t value, unsigned size_bytes)
{
        assert(size_bytes == 1 || size_bytes == 2 || size_bytes == 4);
}

static int interrupt_ack(void *ctx)
{
        return -1;
}

static uint8_t tpr_read(void *ctx)
{
        return 0;
}

static void tpr_write(void *ctx, uint8_t priority)
{
        assert(priority < 16);
}

static int apic_msr_read(void *ctx, uint32_t index, uint64_t *value)
{
        *value = 0;
        return 0;
}

static int apic_msr_write(void *ctx, uint32_t index, uint64_t value)
{
        return 0;
}

static int64_t hypercall(void *ctx, uint64_t nr, const uint64_t arg[4])
{
        return -1;
}

static const struct x86_platform platform = {
        .mmio_read = mmio_read, .mmio_write = mmio_write, .pio_read = pio_read, .pio_write = pio_write, .interrupt_ack = interrupt_ack,
        .tpr_read = tpr_read, .tpr_write = tpr_write, .apic_msr_read = apic_msr_read, .apic_msr_write = apic_msr_write, .hypercall = hypercall,
};

/* The signal handler needs it; a fuzz target has one processor. */
static struct x86_cpu *running;

static void stop(int signal_number)
{
        x86_cpu_request(running, X86_REQUEST_EXIT);
}

struct fuzz_machine {
        struct guest_memory mem;
        struct x86_model model;
        struct x86_complex *complex;
        uint8_t *bytes;
};

static struct fuzz_machine *machine(void)
{
        static struct fuzz_machine m;
        struct err err = ERR_INIT;

        if (m.bytes)
                return &m;
        if (guest_memory_init(&m.mem, "fuzz", &err) < 0 || guest_memory_add(&m.mem, 0, MEMORY, &err) < 0 ||
            x86_model_init(&m.model, "max", 1, &err) < 0 || x86_complex_new(&m.mem, &m.complex, &err) < 0)
                abort();
        m.bytes = guest_memory_at(&m.mem, 0, MEMORY);
        return &m;
}

static void fill_memory(uint8_t *bytes, const uint8_t *data, size_t size)
{
        uint64_t entry[3] = { (PAGES + 0x1000) | 7, (PAGES + 0x2000) | 7, 0x87 };

        memset(bytes, 0, MEMORY);
        for (size_t at = 0x1000; size && at < PAGES; at += size)
                memcpy(bytes + at, data, MIN(size, PAGES - at));
        for (unsigned i = 0; i < 3; i++)
                memcpy(bytes + PAGES + i * 0x1000, &entry[i], 8);
}

enum fuzz_mode { FUZZ_REAL, FUZZ_PROTECTED16, FUZZ_PROTECTED32, FUZZ_PROTECTED_USER, FUZZ_LONG, FUZZ_LONG_USER, FUZZ_COMPAT, FUZZ_V86 };

static void set_segments(struct x86_state *s, unsigned dpl, uint32_t code_bits)
{
        for (unsigned i = 0; i < X86_SEGS; i++)
                s->seg[i] = (struct x86_segment){
                        .selector = (uint16_t)(8 + i * 8 + dpl), .limit = UINT32_MAX,
                        .access = (i == X86_CS ? 11u | code_bits : 3u | X86_ACCESS_DB) | X86_ACCESS_S | X86_ACCESS_P | dpl << 5 | X86_ACCESS_G,
                };
}

static void set_mode(struct x86_state *s, unsigned mode)
{
        unsigned dpl = mode == FUZZ_PROTECTED_USER || mode == FUZZ_LONG_USER || mode == FUZZ_COMPAT || mode == FUZZ_V86 ? 3 : 0;

        s->gdtr = (struct x86_table){ .base = 0x1000, .limit = 0xfff };
        s->idtr = (struct x86_table){ .base = 0x2000, .limit = 0xfff };
        s->ldtr.base = 0x3000;
        s->tr.base = 0x4000;
        s->cr4 = X86_CR4_OSFXSR | X86_CR4_OSXSAVE | X86_CR4_OSXMMEXCPT;
        s->xcr0 = 7;
        if (mode == FUZZ_REAL) {
                s->seg[X86_CS].base = s->seg[X86_CS].selector = 0;
                return;
        }
        s->cr0 |= X86_CR0_PE;
        set_segments(s, dpl, mode == FUZZ_LONG || mode == FUZZ_LONG_USER ? X86_ACCESS_L : mode == FUZZ_PROTECTED16 ? 0 : X86_ACCESS_DB);
        if (mode == FUZZ_V86)
                s->rflags |= X86_FLAG_VM;
        if (mode < FUZZ_LONG || mode > FUZZ_COMPAT)
                return;
        s->cr0 |= X86_CR0_PG;
        s->cr4 |= X86_CR4_PAE;
        s->cr3 = PAGES;
        s->efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_SCE | X86_EFER_NXE;
}

static void run(struct x86_cpu *cpu)
{
        const struct itimerval after = { .it_value.tv_usec = STOP_AFTER_US }, never = { 0 };
        struct sigaction action = { .sa_handler = stop, .sa_flags = SA_RESTART };

        running = cpu;
        sigaction(SIGALRM, &action, NULL);
        setitimer(ITIMER_REAL, &after, NULL);
        (void)x86_cpu_run(cpu);
        setitimer(ITIMER_REAL, &never, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        struct fuzz_machine *m = machine();
        struct err err = ERR_INIT;
        struct x86_cpu *cpu;
        struct x86_state *s;

        if (size < 1 + 128)
                return 0;
        fill_memory(m->bytes, data + 129, size - 129);
        if (x86_cpu_new(m->complex, 0, &m->model, &platform, NULL, &cpu, &err) < 0)
                return 0;
        s = x86_cpu_state(cpu);
        memcpy(s->gpr, data + 1, 128);
        set_mode(s, data[0] & 7);
        s->rip = 0x1000;
        x86_cpu_state_changed(cpu);
        run(cpu);
        running = NULL;
        x86_cpu_free(cpu);
        guest_memory_written(&m->mem, 0, MEMORY);
        return 0;
}
