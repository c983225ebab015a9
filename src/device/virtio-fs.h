/* A shared directory: virtio 1.2 §5.11, the FUSE protocol served in this process (fs.h). */
#pragma once

#include "device/virtio.h"

#define VIRTIO_FS_TAG_MAX 36

struct virtio_fs_config {
        const char *dir; /* opened here, once; must be a directory */
        const char *tag; /* what the guest mounts: mount -t virtiofs TAG /mnt; 1-36 bytes */
        bool readonly;
        unsigned shares; /* of this machine, itself included: they divide the process's descriptors; 0 is 1 */
};

/* -ENOENT, -ENOTDIR, -EACCES name the directory; -EINVAL the tag. */
int virtio_fs_new(struct device_host *host, struct pci_bus *bus, const char *id, const struct virtio_fs_config *config,
                  struct virtio **fs, struct err *err) _must_check_;

/* The descriptor of the directory, for a sandbox that keeps it reachable (base/sandbox.h). */
int virtio_fs_directory(const struct virtio *fs);
