/* Sockets between guest and host: virtio 1.2 §5.10, with unix sockets as the host's side. */
#pragma once

#include "device/virtio.h"

#define VIRTIO_VSOCK_CID_DEFAULT 3

struct virtio_vsock_config {
        uint64_t cid; /* the guest's; 0: VIRTIO_VSOCK_CID_DEFAULT; else 3 to 2^32 - 2 */
        /*
         * "DIR/vsock.sock". The device listens there: a program that connects and writes "CONNECT PORT\n" reaches the guest's
         * PORT and is told "OK HOSTPORT\n". A guest that connects to the host's port P reaches the socket "DIR/vsock.sock_P".
         * -EADDRINUSE when another process listens there; a stale socket is replaced. Removed when the device ends.
         */
        const char *path;
};

int virtio_vsock_new(struct device_host *host, struct pci_bus *bus, const char *id, const struct virtio_vsock_config *config,
                     struct virtio **vsock, struct err *err) _must_check_;

/* The descriptor of the sockets' directory, for a sandbox that keeps it reachable (base/sandbox.h). */
int virtio_vsock_directory(const struct virtio *vsock);
