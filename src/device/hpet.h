/* HPET, three timers, 64-bit counter at 100 MHz. IA-PC HPET Specification 1.0a. See hpet.c. */
#pragma once

#include "device/device.h"

#define HPET_TIMERS 3

struct hpet_wiring {
        struct irq_line gsi[24]; /* I/O APIC inputs a timer may be routed to */
        struct irq_line irq0, irq8; /* used instead with legacy replacement */
        /* Legacy replacement was switched: the PIT's IRQ 0 and the RTC's IRQ 8 are cut off while it is on. Lock held. */
        void (*legacy)(void *ctx, bool on);
        void *ctx;
};

int hpet_new(struct device_host *host, const struct hpet_wiring *wiring, struct device **dev, struct err *err) _must_check_;
