/* pvpanic: the guest says that it has crashed. QEMU docs/specs/pvpanic.rst: port 0x505, bit 0 panicked, bit 1 crash kernel loaded. */
#pragma once

#include "device/device.h"

/* panicked may be NULL; called with the event bits on a vCPU's thread. */
int pvpanic_new(struct device_host *host, void (*panicked)(void *ctx, unsigned events), void *ctx, struct device **dev, struct err *err) _must_check_;
