/* What lapic.c (registers, priorities), lapic-bus.c (messages and IPIs) and lapic-timer.c share. */
#pragma once

#include <stdatomic.h>

#include "device/clock.h"
#include "device/lapic.h"

/* IA32_APIC_BASE, SDM vol. 3A §11.4.4. */
#define APIC_BASE_BSP (UINT64_C(1) << 8)
#define APIC_BASE_X2 (UINT64_C(1) << 10)
#define APIC_BASE_ON (UINT64_C(1) << 11)
#define APIC_BASE_ADDRESS UINT64_C(0x000ffffffffff000)

#define SVR_ENABLED 0x100u
#define SVR_NO_EOI_BROADCAST 0x1000u

/* Local vector table, §11.5.1, in the order of the version register's Max LVT Entry. */
enum lapic_lvt { LVT_TIMER, LVT_THERMAL, LVT_COUNTER, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVTS };
#define LVT_MASKED 0x10000u
#define LVT_TIMER_MODE 0x60000u
#define LVT_TIMER_PERIODIC 0x20000u
#define LVT_TIMER_DEADLINE 0x40000u

/* Delivery modes, of LVT, ICR and messages. */
enum lapic_mode { MODE_FIXED, MODE_LOWEST, MODE_SMI, MODE_RESERVED, MODE_NMI, MODE_INIT, MODE_SIPI, MODE_EXTINT };

/* Error status register, §11.5.3. */
enum { ESR_SEND_VECTOR = 0x20, ESR_RECEIVE_VECTOR = 0x40, ESR_REGISTER = 0x80 };

#define ICR_LOGICAL 0x800u
#define ICR_ASSERT 0x4000u
#define ICR_LEVEL 0x8000u
#define ICR_WRITABLE 0x000ccfffu

struct lapic {
        struct lapic_bus *bus;
        struct lapic_processor processor;
        unsigned index; /* its x2APIC ID */

        /* Written by the own processor, read by senders of interrupts on other threads. */
        _Atomic uint64_t base;
        _Atomic uint32_t id; /* xAPIC ID register, bits 31-24 */
        _Atomic uint32_t ldr, dfr, svr, tpr;
        _Atomic uint32_t lvt[LVTS];
        _Atomic uint32_t isr[8];
        /* Written by all. */
        _Atomic uint32_t irr[8], tmr[8];
        _Atomic uint32_t errors; /* since the last write of ESR */
        atomic_bool extint_message;

        /* The own processor's. */
        uint32_t esr;
        uint64_t icr;
        uint64_t pv_eoi; /* MSR 0x4b564d04 */
        bool pv_eoi_pending;

        /*
         * The timer. One-shot and periodic: deadline_ns is the guest time of the next expiry, 0 when it does not run. Deadline
         * mode: tsc_deadline.
         */
        pthread_mutex_t timer_lock;
        struct timer timer;
        uint32_t timer_initial;
        uint32_t timer_divide; /* the register's form */
        uint64_t deadline_ns;
        uint64_t tsc_deadline;
};

struct lapic_bus {
        struct device_host *host;
        uint64_t tsc_frequency_hz;
        int (*pic_ack)(void *ctx);
        void *pic_ctx;
        void (*ioapic_eoi)(void *ctx, uint8_t vector);
        void *ioapic_ctx;
        atomic_bool extint;
        atomic_uint turn; /* lowest priority: where the search among equals begins */
        unsigned count;
        struct lapic lapic[];
};

#define lapic_get(field) atomic_load_explicit(&(field), memory_order_relaxed)
#define lapic_put(field, value) atomic_store_explicit(&(field), (value), memory_order_relaxed)

static inline bool lapic_on(const struct lapic *lapic)
{
        return lapic_get(lapic->base) & APIC_BASE_ON;
}

static inline bool lapic_x2(const struct lapic *lapic)
{
        return lapic_get(lapic->base) & APIC_BASE_X2;
}

static inline bool lapic_enabled(const struct lapic *lapic)
{
        return lapic_on(lapic) && (lapic_get(lapic->svr) & SVR_ENABLED);
}

/* A fixed interrupt arrives; any thread. */
void lapic_accept(struct lapic *lapic, uint8_t vector, bool level);
/* Any delivery mode of a message or IPI arrives. */
void lapic_deliver(struct lapic *lapic, enum lapic_mode mode, uint8_t vector, bool level);
/* A local source fires: what its LVT entry says. */
void lapic_local(struct lapic *lapic, enum lapic_lvt source);
void lapic_error(struct lapic *lapic, uint32_t bits);
/* Processor priority as others see it, for arbitration. */
unsigned lapic_priority(const struct lapic *lapic);
/* ICR was written by lapic's processor: low word and destination (32-bit in x2APIC mode, else 8-bit). */
void lapic_ipi(struct lapic *lapic, uint32_t icr, uint32_t destination);

void lapic_timer_init(struct lapic *lapic);
void lapic_timer_stop(struct lapic *lapic);
void lapic_timer_set_initial(struct lapic *lapic, uint32_t count);
uint32_t lapic_timer_current(struct lapic *lapic);
void lapic_timer_set_divide(struct lapic *lapic, uint32_t divide);
/* The LVT entry's mode changes from before to after. */
void lapic_timer_mode(struct lapic *lapic, uint32_t before, uint32_t after);
uint64_t lapic_timer_deadline(struct lapic *lapic);
void lapic_timer_set_deadline(struct lapic *lapic, uint64_t tsc);
void lapic_timer_rearm(struct lapic *lapic);
