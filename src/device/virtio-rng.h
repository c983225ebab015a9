/* Entropy source, virtio 1.2 §5.4: the host's getrandom(). See virtio-rng.c. */
#pragma once

#include "device/virtio.h"

int virtio_rng_new(struct device_host *host, struct pci_bus *bus, const char *id, struct device **dev,
                   struct err *err) _must_check_;
