/* 8259A interrupt controllers, the pair of a PC, with its edge/level registers (0x4d0). See pic.c. */
#pragma once

#include "device/device.h"

/* intr: the master's INTR output, to the boot processor (accel->extint); called with the device's lock held. */
int pic_new(struct device_host *host, const struct irq_line *intr, struct device **dev, struct err *err) _must_check_;
/* Input 0-15 (2 is the cascade and goes nowhere). */
struct irq_line pic_line(struct device *dev, unsigned irq);
/* The processor's two INTA cycles: the vector. A spurious one gives IRQ 7's (or 15's). Has the signature of connect_pic. */
int pic_ack(void *dev);
