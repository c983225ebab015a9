/*
 * Local APICs and what connects them to processors. Intel SDM vol. 3A chapter 11 (xAPIC and x2APIC).
 *
 * Used with the software accelerator; under KVM the kernel has them and only struct msi_target reaches them.
 */
#pragma once

#include "device/device.h"

struct lapic;

/* How a local APIC reaches its processor; any thread. */
struct lapic_processor {
        void (*interrupt)(void *ctx); /* something may be deliverable: ask lapic_ack() */
        void (*nmi)(void *ctx);
        void (*init)(void *ctx); /* the processor's own thread then calls lapic_reset(lapic, true) */
        void (*sipi)(void *ctx, uint8_t vector);
        uint64_t (*tsc)(void *ctx); /* the guest's TSC now */
        void *ctx;
};

/* All local APICs of a machine: routes messages, logical and physical destinations, lowest priority. */
struct lapic_bus;
/* frequency_hz of the TSC, for the deadline timer. The 8259's INTR goes to the boot processor's LINT0 as ExtINT through pic_ack. */
int lapic_bus_new(struct device_host *host, unsigned count, uint64_t tsc_frequency_hz, struct lapic_bus **bus, struct err *err) _must_check_;
void lapic_bus_free(struct lapic_bus *bus);
struct lapic *lapic_bus_at(struct lapic_bus *bus, unsigned index);
void lapic_connect(struct lapic *lapic, const struct lapic_processor *processor);
/* The 8259 pair: its INTR wire changes with lapic_extint(); ack gives its vector. */
void lapic_bus_connect_pic(struct lapic_bus *bus, int (*ack)(void *ctx), void *ctx);
void lapic_bus_extint(struct lapic_bus *bus, bool level);
/* I/O APIC: told of each EOI of a level-triggered vector, on the thread of the processor that ended it. */
void lapic_bus_connect_ioapic(struct lapic_bus *bus, void (*eoi)(void *ctx, uint8_t vector), void *ctx);
/* A message as on the bus: address 0xfee….. and data. */
void lapic_bus_message(struct lapic_bus *bus, uint64_t address, uint32_t data);

/* Stops and restarts the timers, around the pause of host->clock and of the TSC. vCPUs do not run. */
void lapic_bus_quiesce(struct lapic_bus *bus);
void lapic_bus_resume(struct lapic_bus *bus);

/*
 * What follows is called on the thread of the local APIC's own processor, or while that does not run.
 *
 * lapic_ack(): the vector to deliver, moved from IRR to ISR (or taken from the 8259); -1 when none is above the priority. The
 * processor's interrupt() is called again when that may have changed.
 */
int lapic_ack(struct lapic *lapic);
/* Whether lapic_ack() would give a vector now; changes nothing. */
bool lapic_pending(struct lapic *lapic);
uint8_t lapic_tpr(struct lapic *lapic);           /* CR8 form: bits 7-4 */
void lapic_set_tpr(struct lapic *lapic, uint8_t priority);
/* IA32_APIC_BASE, IA32_TSC_DEADLINE, 0x800-0x8ff; -EPERM: #GP */
int lapic_msr_read(struct lapic *lapic, uint32_t index, uint64_t *value);
int lapic_msr_write(struct lapic *lapic, uint32_t index, uint64_t value);
/* xAPIC registers at 0xfee00000, by the processor that asks. */
uint64_t lapic_mmio_read(struct lapic *lapic, uint64_t offset, unsigned size_bytes);
void lapic_mmio_write(struct lapic *lapic, uint64_t offset, uint64_t value, unsigned size_bytes);
/* KVM PV EOI (MSR 0x4b564d04) and PV IPI (hypercall 10) for the software processor. */
void lapic_set_pv_eoi(struct lapic *lapic, uint64_t msr_value);
uint64_t lapic_pv_eoi(const struct lapic *lapic);
void lapic_send_ipi(struct lapic *lapic, uint64_t bitmap_low, uint64_t bitmap_high, uint32_t min_apic_id, uint32_t icr);

void lapic_reset(struct lapic *lapic, bool init_only);
void lapic_save(struct lapic *lapic, struct writer *out);
int lapic_load(struct lapic *lapic, struct cursor *in, struct err *err) _must_check_;
