/*
 * virtio console, virtio 1.2 §5.3: one port, its size, and emergency output.
 *
 *   host ─receive()─▶ FIFO ─▶ receive queue (0)          transmit queue (1) ─▶ backend->write ─▶ host
 *
 * Towards the guest a small FIFO holds what finds no buffer; when that is full the host side keeps the rest until
 * backend->readable. Towards the host a chain that the backend takes in part only goes back into the queue, and we remember how
 * many of its bytes are gone: nothing is in flight between two calls, so that reset and save have nothing to wait for.
 */
#include "device/virtio-console.h"

#include <endian.h>
#include <errno.h>

#define QUEUE_SIZE 64
#define FIFO_BYTES 4096
#define CHUNK_BYTES 4096
#define BUDGET 64
#define BUDGET_BYTES (1u << 20) /* a chain can have 4 GiB, and a backend without a listener takes all */

#define RECEIVE 0
#define TRANSMIT 1

/* §5.3.3 */
#define F_SIZE 0
#define F_EMERG_WRITE 2

struct console_config {
        uint16_t columns, rows;
        uint32_t max_ports;
        uint32_t emergency;
};

struct console {
        struct virtio v;
        struct char_backend backend;
        uint16_t columns, rows;
        bool refused;        /* the host side was told to wait */
        uint32_t sent_bytes; /* of the first chain in the transmit queue */
        unsigned fifo_start, fifo_used;
        uint8_t fifo[FIFO_BYTES];
        struct virtio_iov iov;
};

static struct console *to_console(struct virtio *v)
{
        return container_of(v, struct console, v);
}

/* To the guest */

static size_t fifo_take(struct console *console, const struct virtio_chain *chain)
{
        size_t done = 0;

        while (console->fifo_used && done < chain->in_bytes) {
                size_t part = MIN(console->fifo_used, FIFO_BYTES - console->fifo_start);

                part = buf_to_iov(chain->in, chain->in_count, done, console->fifo + console->fifo_start, part);
                console->fifo_start = (console->fifo_start + (unsigned)part) % FIFO_BYTES;
                console->fifo_used -= (unsigned)part;
                done += part;
        }
        return done;
}

static void fill_receive_queue(struct console *console)
{
        struct virtio *v = &console->v;
        struct virtio_chain chain;

        /* Ends: each round takes bytes out of the FIFO. */
        while (console->fifo_used && virtqueue_pop(v, RECEIVE, &console->iov, &chain) > 0) {
                if (!chain.in_bytes || chain.out_bytes) {
                        virtio_break(v, "a receive buffer that is not writable");
                        return;
                }
                virtqueue_push(v, RECEIVE, &chain, (uint32_t)fifo_take(console, &chain));
        }
        virtqueue_interrupt(v, RECEIVE);
        if (console->refused && console->fifo_used <= FIFO_BYTES / 2) {
                console->refused = false;
                if (console->backend.readable)
                        console->backend.readable(console->backend.ctx);
        }
}

static size_t fifo_put(struct console *console, const uint8_t *bytes, size_t size_bytes)
{
        size_t taken = MIN(size_bytes, (size_t)(FIFO_BYTES - console->fifo_used));

        for (size_t i = 0; i < taken; i++)
                console->fifo[(console->fifo_start + console->fifo_used + i) % FIFO_BYTES] = bytes[i];
        console->fifo_used += (unsigned)taken;
        return taken;
}

size_t virtio_console_receive(struct device *dev, const uint8_t *bytes, size_t size_bytes)
{
        struct virtio *v = virtio_from_device(dev);
        struct console *console = to_console(v);
        size_t taken = 0, part;

        virtio_lock(v);
        do {
                part = fifo_put(console, bytes + taken, size_bytes - taken);
                taken += part;
                if (!v->quiesced)
                        fill_receive_queue(console);
        } while (part && taken < size_bytes);
        if (taken < size_bytes)
                console->refused = true;
        virtio_unlock(v);
        return taken;
}

/* To the host */

static size_t to_host(struct console *console, const uint8_t *bytes, size_t size_bytes)
{
        return console->backend.write ? console->backend.write(console->backend.ctx, bytes, size_bytes) : size_bytes;
}

/* The rest of a chain; false when the backend is full, or the budget spent (0 is left of it then). */
static bool send_chain(struct console *console, const struct virtio_chain *chain, size_t *budget)
{
        uint8_t bytes[CHUNK_BYTES];

        while (console->sent_bytes < chain->out_bytes) {
                size_t part = iov_to_buf(chain->out, chain->out_count, console->sent_bytes, bytes, MIN(sizeof(bytes), *budget));
                size_t taken = MIN(to_host(console, bytes, part), part);

                console->sent_bytes += (uint32_t)taken;
                *budget -= taken;
                if (taken < part)
                        return false;
                if (!*budget && console->sent_bytes < chain->out_bytes)
                        return false;
        }
        console->sent_bytes = 0;
        return true;
}

static void drain_transmit_queue(struct console *console)
{
        struct virtio *v = &console->v;
        struct virtio_chain chain;
        size_t bytes = BUDGET_BYTES;
        unsigned budget;

        for (budget = BUDGET; budget && bytes; budget--) {
                if (virtqueue_pop(v, TRANSMIT, &console->iov, &chain) <= 0)
                        break;
                if (!send_chain(console, &chain, &bytes)) {
                        virtqueue_unpop(v, TRANSMIT, &chain);
                        break;
                }
                virtqueue_push(v, TRANSMIT, &chain, 0);
        }
        virtqueue_interrupt(v, TRANSMIT);
        if (!budget || !bytes)
                virtio_wake(v, TRANSMIT);
}

void virtio_console_writable(struct device *dev)
{
        /* On the loop, where a backend without end cannot keep this caller. */
        virtio_wake(virtio_from_device(dev), TRANSMIT);
}

static void console_notify(struct virtio *v, unsigned queue)
{
        if (queue == RECEIVE)
                fill_receive_queue(to_console(v));
        else
                drain_transmit_queue(to_console(v));
}

/* Configuration */

static uint64_t console_features(struct virtio *v)
{
        return UINT64_C(1) << F_SIZE | UINT64_C(1) << F_EMERG_WRITE;
}

static void console_config_read(struct virtio *v, uint32_t offset, void *to, unsigned size_bytes)
{
        struct console *console = to_console(v);
        struct console_config config = {
                .columns = htole16(console->columns),
                .rows = htole16(console->rows),
                .max_ports = htole32(1),
        };

        memcpy(to, (const uint8_t *)&config + offset, size_bytes);
}

/* §5.3.4: emerg_wr takes a character at any time, also before the driver is ready; nobody waits for the host there. */
static void console_config_write(struct virtio *v, uint32_t offset, const void *from, unsigned size_bytes)
{
        if (offset == offsetof(struct console_config, emergency))
                (void)to_host(to_console(v), from, 1);
}

void virtio_console_resize(struct device *dev, uint16_t columns, uint16_t rows)
{
        struct virtio *v = virtio_from_device(dev);
        struct console *console = to_console(v);

        virtio_lock(v);
        if (columns != console->columns || rows != console->rows) {
                console->columns = columns;
                console->rows = rows;
                virtio_config_changed(v);
        }
        virtio_unlock(v);
}

static void console_reset(struct virtio *v)
{
        struct console *console = to_console(v);

        console->sent_bytes = 0;
        console->fifo_start = console->fifo_used = 0;
        if (console->refused && console->backend.readable) {
                console->refused = false;
                console->backend.readable(console->backend.ctx);
        }
}

static void console_save(struct virtio *v, struct writer *out)
{
        struct console *console = to_console(v);

        writer_le16(out, console->columns);
        writer_le16(out, console->rows);
        writer_u8(out, console->refused);
        writer_le32(out, console->sent_bytes);
        writer_le16(out, (uint16_t)console->fifo_used);
        for (unsigned i = 0; i < console->fifo_used; i++)
                writer_u8(out, console->fifo[(console->fifo_start + i) % FIFO_BYTES]);
}

static int console_load(struct virtio *v, uint16_t version, struct cursor *in, struct err *err)
{
        struct console *console = to_console(v);
        unsigned used;

        if (version != 1)
                return err_set(err, -EBADMSG, "console state has version %u, this is 1", version);
        console->columns = cursor_le16(in);
        console->rows = cursor_le16(in);
        console->refused = cursor_u8(in);
        console->sent_bytes = cursor_le32(in);
        used = cursor_le16(in);
        if (used > FIFO_BYTES || cursor_get(in, console->fifo, used) < 0)
                return err_set(err, -EBADMSG, "console state with %u bytes of input", used);
        console->fifo_start = 0;
        console->fifo_used = used;
        return 0;
}

static void console_free(struct virtio *v)
{
        virtio_done(v);
        free(to_console(v));
}

static const struct virtio_ops console_ops = {
        .name = "virtio-console",
        .id = VIRTIO_CONSOLE,
        .class_code = 0x078000, /* communication, other */
        .features = console_features,
        .config_bytes = sizeof(struct console_config),
        .config_read = console_config_read,
        .config_write = console_config_write,
        .notify = console_notify,
        .reset = console_reset,
        .version = 1,
        .save = console_save,
        .load = console_load,
        .free = console_free,
};

int virtio_console_new(struct device_host *host, struct pci_bus *bus, const char *id, const struct char_backend *backend,
                       struct device **dev, struct err *err)
{
        static const uint16_t sizes[] = { QUEUE_SIZE, QUEUE_SIZE };
        struct console *console = calloc(1, sizeof(*console));
        int r;

        if (!console)
                return err_nomem(err);
        if (backend)
                console->backend = *backend;
        console->columns = 80;
        console->rows = 25;
        r = virtio_init(&console->v, host, bus, &console_ops, id, sizes, ARRAY_SIZE(sizes), err);
        if (r < 0) {
                virtio_done(&console->v);
                free(console);
                return r;
        }
        *dev = &console->v.pci.dev;
        return 0;
}
