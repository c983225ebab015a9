/* ACPI fixed hardware: PM1a blocks, PM timer, GPE0 block, SCI. ACPI 6.5 §4.8. See acpi-pm.c. */
#pragma once

#include "device/device.h"

int acpi_pm_new(struct device_host *host, const struct irq_line *sci, struct device **dev, struct err *err) _must_check_;
/* A press of the power button: PWRBTN_STS; any thread. */
void acpi_pm_power_button(struct device *dev);
/* Sets GPE status bit (0-15), for hot-plug events; any thread. */
void acpi_pm_gpe(struct device *dev, unsigned bit);
