/* 16550A serial port. National Semiconductor PC16550D data sheet (1995). See uart.c. */
#pragma once

#include "device/char.h"
#include "device/device.h"

/* Eight ports from port on. backend may be NULL: nothing is connected (output is lost, carrier is off). */
int uart_new(struct device_host *host, const char *id, uint16_t port, const struct irq_line *irq, const struct char_backend *backend,
             struct device **dev, struct err *err) _must_check_;
/* Bytes from the host; the number taken. When fewer than offered, backend->readable is called once there is room. Any thread. */
size_t uart_receive(struct device *dev, const uint8_t *bytes, size_t size_bytes);
/* The host's end has room again. Any thread but not from within backend->write. */
void uart_writable(struct device *dev);
/* A break condition from the line (Linux: magic SysRq). Any thread. */
void uart_break(struct device *dev);
