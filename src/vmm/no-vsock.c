/* In place of sockets between guest and host where they are not part of the build. */
#include <errno.h>

#include "device/virtio-vsock.h"

int virtio_vsock_new(struct device_host *host, struct pci_bus *bus, const char *id, const struct virtio_vsock_config *config,
                     struct virtio **vsock, struct err *err)
{
        return err_set(err, -ENOTSUP, "guest sockets are not part of this build");
}
