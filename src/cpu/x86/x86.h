/*
 * The x86-64 processor in software: what the rest of Virta sees of it.
 *
 * One struct x86_cpu is one virtual processor. Its owner runs it on one thread; other threads only raise requests. The
 * machine behind it is reached through struct x86_platform, whose members are called on the processor's own thread.
 */
#pragma once

#include "base/guest-memory.h"
#include "cpu/x86/state.h"

struct x86_cpu;
struct x86_model; /* cpuid.h: what CPUID says */

/* What the machine offers a processor. No member may be NULL. size_bytes is 1, 2, 4 or 8 (ports: 1, 2, 4). */
struct x86_platform {
        uint64_t (*mmio_read)(void *ctx, uint64_t gpa, unsigned size_bytes);
        void (*mmio_write)(void *ctx, uint64_t gpa, uint64_t value, unsigned size_bytes);
        uint32_t (*pio_read)(void *ctx, uint16_t port, unsigned size_bytes);
        void (*pio_write)(void *ctx, uint16_t port, uint32_t value, unsigned size_bytes);

        /* The vector to deliver now, acknowledged at the local APIC or the 8259; -1 when none is deliverable. */
        int (*interrupt_ack)(void *ctx);
        /* CR8: the task priority, 0-15. Lowering it may raise X86_REQUEST_INTERRUPT. */
        uint8_t (*tpr_read)(void *ctx);
        void (*tpr_write)(void *ctx, uint8_t priority);
        /* MSRs of the local APIC: IA32_APIC_BASE, x2APIC 0x800-0x8ff, IA32_TSC_DEADLINE, KVM's PV EOI 0x4b564d04. -EPERM makes it #GP. */
        int (*apic_msr_read)(void *ctx, uint32_t index, uint64_t *value);
        int (*apic_msr_write)(void *ctx, uint32_t index, uint64_t value);
        /* KVM hypercalls that concern other processors: KICK_CPU (5), SEND_IPI (10), SCHED_YIELD (11); else -ENOSYS. */
        int64_t (*hypercall)(void *ctx, uint64_t nr, const uint64_t arg[4]);
};

/* What other threads may ask of a processor; x86_cpu_request() wakes it from a halt. */
enum x86_request {
        X86_REQUEST_INTERRUPT = 1u << 0, /* ask interrupt_ack() when interrupts are open; stays until it answers -1 */
        X86_REQUEST_NMI = 1u << 1,
        X86_REQUEST_INIT = 1u << 2,
        X86_REQUEST_SIPI = 1u << 3, /* the vector is in sipi_vector */
        X86_REQUEST_EXIT = 1u << 4, /* x86_cpu_run() returns X86_EXIT_REQUESTED at the next instruction boundary */
        X86_REQUEST_KICK = 1u << 6, /* ends a halt, also with interrupts off (KVM's KICK_CPU hypercall) */
        X86_REQUEST_FLUSH = 1u << 5, /* internal: drop the soft TLB (a page became code, memory was hot-added) */
};

enum x86_exit {
        X86_EXIT_REQUESTED, /* EXIT was asked for, or an INIT was acted on: its owner resets the local APIC before running on */
        X86_EXIT_HALTED,   /* nothing to do until a request; run again after x86_cpu_wait() or a request */
        X86_EXIT_SHUTDOWN, /* triple fault; the state is that of the faulting instruction */
};

/* All processors of one machine: they share the code generations of its memory, and stop-the-world for split locks. */
struct x86_complex;
int x86_complex_new(struct guest_memory *mem, struct x86_complex **complex, struct err *err) _must_check_;
void x86_complex_free(struct x86_complex *complex);

/*
 * Has 64-bit guest code translated to host code, for all processors of the complex; without it everything is interpreted. Before the
 * first processor is made and before the sandbox closes; the complex frees what it needs.
 */
struct translator_options {
        size_t cache_bytes; /* of host code */
        bool perf_map;      /* /tmp/perf-PID.map */
        bool stats;         /* keep what x86_cpu_stats() tells of times and handlers */
        bool lock_step;     /* the interpreter executes each block again and compares */
};
int x86_complex_translate(struct x86_complex *complex, const struct translator_options *options, struct err *err) _must_check_;

/* index is the APIC ID. model is borrowed for the processor's life. ctx goes to every platform member. */
int x86_cpu_new(struct x86_complex *complex, unsigned index, const struct x86_model *model, const struct x86_platform *platform,
                void *ctx, struct x86_cpu **cpu, struct err *err) _must_check_;
void x86_cpu_free(struct x86_cpu *cpu);

/* Runs guest instructions until there is a reason to return. */
enum x86_exit x86_cpu_run(struct x86_cpu *cpu);
/* Sleeps until a request that ends the halt (any thread's x86_cpu_request) is there; returns at once when one is. */
void x86_cpu_wait(struct x86_cpu *cpu);
void x86_cpu_request(struct x86_cpu *cpu, uint32_t requests);
void x86_cpu_sipi(struct x86_cpu *cpu, uint8_t vector);

/* Only while the processor does not run. The pointer stays valid; call x86_cpu_state_changed() after writing through it. */
struct x86_state *x86_cpu_state(struct x86_cpu *cpu);
void x86_cpu_state_changed(struct x86_cpu *cpu);

/* Guest TSC - host TSC. Any thread. */
uint64_t x86_cpu_tsc_offset(const struct x86_cpu *cpu);

/* Instructions retired since x86_cpu_new(), about: counted by blocks. Any thread. */
uint64_t x86_cpu_instructions(const struct x86_cpu *cpu);

/* Lines for a person: where a processor's time went, and what all processors have translated. Empty without a translator. Any thread. */
void x86_cpu_stats(const struct x86_cpu *cpu, char *text, size_t size_bytes);
void x86_complex_stats(const struct x86_complex *complex, char *text, size_t size_bytes);
