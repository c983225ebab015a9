/*
 * A hostile driver of the guest's sockets. The host listens on port 1 and connects, writes, reads and closes as the input says.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "device/virtio-vsock.h"
#include "virtio-hostile.h"

#define SOCKETS 8

struct side {
        char dir[64], path[80], port[84];
        int listener;
        int fd[SOCKETS];
        struct virtio *v;
};

static struct sockaddr_un address(const char *path)
{
        struct sockaddr_un un = { .sun_family = AF_UNIX };

        snprintf(un.sun_path, sizeof(un.sun_path), "%s", path);
        return un;
}

static void make(struct hostile *h)
{
        struct side *side = calloc(1, sizeof(*side));
        struct sockaddr_un un;

        strcpy(side->dir, "/tmp/virta-fuzz-vsock-XXXXXX");
        if (!mkdtemp(side->dir))
                abort();
        snprintf(side->path, sizeof(side->path), "%s/v", side->dir);
        snprintf(side->port, sizeof(side->port), "%s_1", side->path);
        side->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        un = address(side->port);
        if (bind(side->listener, (struct sockaddr *)&un, sizeof(un)) < 0 || listen(side->listener, 8) < 0)
                abort();
        memset(side->fd, -1, sizeof(side->fd));
        if (virtio_vsock_new(&h->bed.host, h->bed.pci, "vsock0", &(struct virtio_vsock_config){ .path = side->path }, &side->v,
                             NULL) < 0)
                abort();
        h->dev = &side->v->pci.dev;
        h->ctx = side;
}

static void host(struct hostile *h, struct cursor *in)
{
        static uint8_t block[4096];
        struct side *side = h->ctx;
        uint8_t what = cursor_u8(in);
        int *fd = &side->fd[what % SOCKETS];
        struct sockaddr_un un = address(side->path);
        char line[64];
        int length;

        switch (what / SOCKETS % 6) {
        case 0:
                closep(fd);
                *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
                if (connect(*fd, (struct sockaddr *)&un, sizeof(un)) == 0) {
                        length = snprintf(line, sizeof(line), "CONNECT %u%s", cursor_u8(in), what & 0x80 ? "\nearly" : "\n");
                        (void)!send(*fd, line, (size_t)length, MSG_NOSIGNAL);
                }
                break;
        case 1:
                closep(fd);
                *fd = accept4(side->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                break;
        case 2:
                (void)!send(*fd, block, cursor_le16(in) % sizeof(block), MSG_NOSIGNAL);
                break;
        case 3:
                (void)!recv(*fd, block, sizeof(block), 0);
                break;
        case 4:
                shutdown(*fd, cursor_u8(in) % 3);
                break;
        default:
                closep(fd);
                *fd = -1;
        }
        testbed_run(&h->bed);
}

static void done(struct hostile *h)
{
        struct side *side = h->ctx;

        for (unsigned i = 0; i < SOCKETS; i++)
                closep(&side->fd[i]);
        close(side->listener);
        unlink(side->port);
        unlink(side->path);
        rmdir(side->dir);
        free(side);
}

static const struct hostile_device device = { .id = VIRTIO_VSOCK, .queues = 3, .make = make, .host = host, .done = done };

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        return hostile_run(&device, bytes, size_bytes);
}
