/*
 * A tiny machine for the tests of this folder: memory, one processor, a platform that records what reaches it.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "cpu/x86/cpuid.h"
#include "cpu/x86/system.h"

#define TEST_MEMORY (8u << 20)

struct test_machine {
        struct guest_memory mem;
        struct x86_model model;
        struct x86_complex *complex;
        struct x86_cpu *cpu;
        struct x86_platform platform;
        /* What the platform saw last. */
        uint64_t mmio_gpa, mmio_value;
        unsigned mmio_bytes, mmio_calls;
        uint16_t port;
        uint32_t port_value;
        unsigned port_calls;
        int vector; /* interrupt_ack() gives it once */
        uint8_t tpr;
};

static uint64_t test_mmio_read(void *ctx, uint64_t gpa, unsigned size_bytes)
{
        struct test_machine *m = ctx;

        m->mmio_gpa = gpa;
        m->mmio_bytes = size_bytes;
        m->mmio_calls++;
        return m->mmio_value;
}

static void test_mmio_write(void *ctx, uint64_t gpa, uint64_t value, unsigned size_bytes)
{
        struct test_machine *m = ctx;

        m->mmio_gpa = gpa;
        m->mmio_value = value;
        m->mmio_bytes = size_bytes;
        m->mmio_calls++;
}

static uint32_t test_pio_read(void *ctx, uint16_t port, unsigned size_bytes)
{
        struct test_machine *m = ctx;

        m->port = port;
        m->port_calls++;
        return m->port_value;
}

static void test_pio_write(void *ctx, uint16_t port, uint32_t value, unsigned size_bytes)
{
        struct test_machine *m = ctx;

        m->port = port;
        m->port_value = value;
        m->port_calls++;
}

static int test_ack(void *ctx)
{
        struct test_machine *m = ctx;
        int vector = m->vector;

        m->vector = -1;
        return vector;
}

static uint8_t test_tpr_read(void *ctx)
{
        return ((struct test_machine *)ctx)->tpr;
}

static void test_tpr_write(void *ctx, uint8_t priority)
{
        ((struct test_machine *)ctx)->tpr = priority;
}

static int test_apic_read(void *ctx, uint32_t index, uint64_t *value)
{
        *value = 0;
        return 0;
}

static int test_apic_write(void *ctx, uint32_t index, uint64_t value)
{
        return 0;
}

static int64_t test_hypercall(void *ctx, uint64_t nr, const uint64_t arg[4])
{
        return -1000;
}

static int test_machine_setup(void **state)
{
        struct test_machine *m = calloc(1, sizeof(*m));
        struct err err = ERR_INIT;

        assert_non_null(m);
        m->vector = -1;
        m->platform = (struct x86_platform){
                .mmio_read = test_mmio_read, .mmio_write = test_mmio_write, .pio_read = test_pio_read, .pio_write = test_pio_write,
                .interrupt_ack = test_ack, .tpr_read = test_tpr_read, .tpr_write = test_tpr_write,
                .apic_msr_read = test_apic_read, .apic_msr_write = test_apic_write, .hypercall = test_hypercall,
        };
        assert_int_equal(guest_memory_init(&m->mem, "test", &err), 0);
        assert_int_equal(guest_memory_add(&m->mem, 0, TEST_MEMORY, &err), 0);
        assert_int_equal(x86_model_init(&m->model, "max", 1, &err), 0);
        assert_int_equal(x86_complex_new(&m->mem, &m->complex, &err), 0);
        assert_int_equal(x86_cpu_new(m->complex, 0, &m->model, &m->platform, m, &m->cpu, &err), 0);
        *state = m;
        return 0;
}

static int test_machine_teardown(void **state)
{
        struct test_machine *m = *state;

        x86_cpu_free(m->cpu);
        x86_complex_free(m->complex);
        guest_memory_done(&m->mem);
        free(m);
        return 0;
}

_unused_ static void test_poke64(struct test_machine *m, uint64_t gpa, uint64_t value)
{
        assert_int_equal(guest_memory_write(&m->mem, gpa, &value, 8), 0);
}

_unused_ static uint64_t test_peek64(struct test_machine *m, uint64_t gpa)
{
        uint64_t value = 0;

        assert_int_equal(guest_memory_read(&m->mem, gpa, &value, 8), 0);
        return value;
}

_unused_ static void test_poke32(struct test_machine *m, uint64_t gpa, uint32_t value)
{
        assert_int_equal(guest_memory_write(&m->mem, gpa, &value, 4), 0);
}

_unused_ static uint32_t test_peek32(struct test_machine *m, uint64_t gpa)
{
        uint32_t value = 0;

        assert_int_equal(guest_memory_read(&m->mem, gpa, &value, 4), 0);
        return value;
}

/* Runs statement; the fault it raised is in cpu->fault and the result is its vector, or -1 for none. */
#define FAULT_OF(m, statement)                           \
        ({                                               \
                volatile int vector_ = -1;               \
                                                         \
                if (_setjmp((m)->cpu->unwind) == 0) {    \
                        statement;                       \
                } else {                                 \
                        vector_ = (m)->cpu->fault.vector; \
                }                                        \
                vector_;                                 \
        })
