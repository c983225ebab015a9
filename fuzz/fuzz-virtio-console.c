/* A hostile driver of the console, whose host side takes now more, now less. */
#include "device/virtio-console.h"
#include "virtio-hostile.h"

struct terminal {
        size_t room;
};

static size_t take(void *ctx, const uint8_t *bytes, size_t size_bytes)
{
        struct terminal *terminal = ctx;
        size_t n = MIN(size_bytes, terminal->room);

        terminal->room -= n;
        return n;
}

static void readable(void *ctx)
{
}

static void make(struct hostile *h)
{
        struct char_backend backend = { .write = take, .readable = readable };

        backend.ctx = h->ctx = calloc(1, sizeof(struct terminal));
        if (virtio_console_new(&h->bed.host, h->bed.pci, "virtio-console0", &backend, &h->dev, NULL) < 0)
                abort();
}

static void host(struct hostile *h, struct cursor *in)
{
        struct terminal *terminal = h->ctx;
        static const uint8_t bytes[6000];
        uint8_t what = cursor_u8(in);

        if (what & 1) {
                if (virtio_console_receive(h->dev, bytes, (size_t)what * 20) > (size_t)what * 20)
                        abort();
        } else if (what & 2) {
                terminal->room = (size_t)what * 16;
                virtio_console_writable(h->dev);
        } else {
                virtio_console_resize(h->dev, what, what);
        }
}

static void done(struct hostile *h)
{
        free(h->ctx);
}

static const struct hostile_device device = { .id = VIRTIO_CONSOLE, .queues = 2, .make = make, .host = host, .done = done };

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        return hostile_run(&device, bytes, size_bytes);
}
