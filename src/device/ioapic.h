/* I/O APIC, 24 lines, version 0x20 (with EOI register). Intel 82093AA data sheet; ICH9 data sheet §13.5. See ioapic.c. */
#pragma once

#include "device/device.h"

/* Level-triggered unmasked vectors, bit per vector, whenever the table changes; called with the device's lock held. fn may be NULL. */
struct ioapic_changed {
        void (*fn)(void *ctx, const uint64_t level_vectors[4]);
        void *ctx;
};

/* Messages go to host->msi. */
int ioapic_new(struct device_host *host, const struct ioapic_changed *changed, struct device **dev, struct err *err) _must_check_;
struct irq_line ioapic_line(struct device *dev, unsigned gsi);
/* End of interrupt of a level-triggered vector; any thread. Has the signature of connect_ioapic. */
void ioapic_eoi(void *dev, uint8_t vector);
/* Redirection entry of a line, for tests and the monitor. */
uint64_t ioapic_entry(struct device *dev, unsigned gsi);
