/*
 * A byte stream between a device (UART, console) and the host (terminal, file, socket).
 *
 * Neither side ever waits for the other. The host side takes what it has room for and says later that it has room again; the
 * device does the same. A host side that is closed takes everything and throws it away.
 */
#pragma once

#include "base/util.h"

/* The host's end, given to a device. Members may not be NULL. */
struct char_backend {
        /* Bytes from the guest; the number taken. When not all: the device keeps the rest until its writable function is called. Any thread. */
        size_t (*write)(void *ctx, const uint8_t *bytes, size_t size_bytes);
        /* The device has room for input again, after it took less than was offered. Any thread, device's lock held: only note it. */
        void (*readable)(void *ctx);
        void *ctx;
};
