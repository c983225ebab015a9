/* 8254 interval timer and port 0x61. Intel 8254 data sheet. See pit.c. */
#pragma once

#include "device/device.h"

int pit_new(struct device_host *host, const struct irq_line *irq0, struct device **dev, struct err *err) _must_check_;
