/* A hostile driver of the shared directory: its queues; the requests themselves are fuzz-fs.c's. The share is read-only. */
#include <stdio.h>
#include <sys/stat.h>

#include "device/virtio-fs.h"
#include "virtio-hostile.h"

static void make(struct hostile *h)
{
        char *dir = strdup("/tmp/virta-fuzz-virtio-fs-XXXXXX");
        struct virtio *v;

        if (!dir || !mkdtemp(dir) ||
            virtio_fs_new(&h->bed.host, h->bed.pci, "fs0", &(struct virtio_fs_config){ .dir = dir, .tag = "t", .readonly = true },
                          &v, NULL) < 0)
                abort();
        h->dev = &v->pci.dev;
        h->ctx = dir;
}

static void done(struct hostile *h)
{
        rmdir(h->ctx);
        free(h->ctx);
}

static const struct hostile_device device = { .id = VIRTIO_FS, .queues = 2, .make = make, .done = done };

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        return hostile_run(&device, bytes, size_bytes);
}
