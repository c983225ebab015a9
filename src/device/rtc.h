/* MC146818 real-time clock with its CMOS memory. See rtc.c. */
#pragma once

#include "device/device.h"

int rtc_new(struct device_host *host, const struct irq_line *irq8, struct device **dev, struct err *err) _must_check_;
/* Sets a byte of CMOS memory (0x0e-0x7f) as firmware would, kept over resets. */
void rtc_set_cmos(struct device *dev, unsigned index, uint8_t value);
