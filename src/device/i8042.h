/* 8042 keyboard controller without keyboard or mouse: reset line, A20, self-test. See i8042.c. */
#pragma once

#include "device/device.h"

int i8042_new(struct device_host *host, const struct irq_line *irq1, const struct irq_line *irq12, struct device **dev, struct err *err) _must_check_;
