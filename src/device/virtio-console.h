/* Console, virtio 1.2 §5.3: one port. See virtio-console.c. */
#pragma once

#include "device/char.h"
#include "device/virtio.h"

/* backend is the host's end as a UART has it; NULL: nothing is connected (output is lost). */
int virtio_console_new(struct device_host *host, struct pci_bus *bus, const char *id, const struct char_backend *backend,
                       struct device **dev, struct err *err) _must_check_;
/* Bytes from the host; the number taken. When fewer than offered, backend->readable is called once there is room. Any thread. */
size_t virtio_console_receive(struct device *dev, const uint8_t *bytes, size_t size_bytes);
/* The host's end has room again. Any thread but not from within backend->write. */
void virtio_console_writable(struct device *dev);
/* The terminal's size changed. Any thread. */
void virtio_console_resize(struct device *dev, uint16_t columns, uint16_t rows);
