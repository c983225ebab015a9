/* fw_cfg: named files for firmware. QEMU docs/specs/fw_cfg.rst. See fw-cfg.c. */
#pragma once

#include "device/device.h"

#define FW_CFG_FILES_MAX 32

int fw_cfg_new(struct device_host *host, unsigned cpus, struct device **dev, struct err *err) _must_check_;
/* Adds a file (copied); before the guest runs. -EEXIST, -ENOSPC, -ENAMETOOLONG (55 bytes). */
int fw_cfg_add(struct device *dev, const char *name, const void *bytes, size_t size_bytes, struct err *err) _must_check_;
