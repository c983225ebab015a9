/*
 * virtio over PCI, the modern interface. virtio 1.2 §4.1.
 *
 * All registers are in BAR 0 (64-bit memory), each structure on a page of its own; MSI-X is BAR 2:
 *
 *   0x0000 common configuration   0x1000 ISR status   0x2000 device configuration   0x3000 notifications, 4 bytes a queue
 *
 * and are found through five vendor capabilities (§4.1.4). The fifth is a window for firmware that cannot map BARs.
 *
 * Doorbells: each queue has an eventfd that the event loop polls. Where the accelerator can, a write to the queue's notification
 * address signals it without coming here; else the write handler does. Either way ops->notify runs on the loop's thread.
 *
 * Interrupts: with MSI-X on, one vector for each queue and one for configuration changes as the driver chooses; with it off,
 * INTx with the ISR status register, cleared by reading (§4.1.4.5).
 *
 * The libuv handles outlive the device until the loop has closed them, so they live in the transport, which frees itself then.
 */
#include "device/virtio-internal.h"

#include <errno.h>
#include <sys/eventfd.h>

#define VENDOR_ID 0x1af4 /* §4.1.2 */
#define DEVICE_ID_BASE 0x1040
#define SUBSYSTEM_ID 0x0040 /* §4.1.2.1: 0x40 or more says non-transitional */

#define BAR_REGISTERS 0
#define BAR_MSIX 2
#define BAR_BYTES 0x4000
#define COMMON_OFFSET 0x0000
#define COMMON_BYTES 60
#define ISR_OFFSET 0x1000
#define DEVICE_OFFSET 0x2000
#define DEVICE_BYTES 0x1000
#define NOTIFY_OFFSET 0x3000
#define NOTIFY_MULTIPLIER 4

#define ISR_QUEUE 1
#define ISR_CONFIG 2

#define STATE_VERSION 1

/* Capability types, §4.1.4 */
enum { CAP_COMMON = 1, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, CAP_PCI_WINDOW };

/* struct virtio_pci_common_cfg, §4.1.4.3 */
enum {
        COMMON_DEVICE_FEATURE_SELECT = 0,
        COMMON_DEVICE_FEATURE = 4,
        COMMON_DRIVER_FEATURE_SELECT = 8,
        COMMON_DRIVER_FEATURE = 12,
        COMMON_CONFIG_VECTOR = 16,
        COMMON_NUM_QUEUES = 18,
        COMMON_STATUS = 20,
        COMMON_GENERATION = 21,
        COMMON_QUEUE_SELECT = 22,
        COMMON_QUEUE_SIZE = 24,
        COMMON_QUEUE_VECTOR = 26,
        COMMON_QUEUE_ENABLE = 28,
        COMMON_QUEUE_NOTIFY_OFF = 30,
        COMMON_QUEUE_DESC = 32,
        COMMON_QUEUE_DRIVER = 40,
        COMMON_QUEUE_DEVICE = 48,
};

struct doorbell {
        struct virtio_pci *transport;
        unsigned queue;
        int fd;
        bool polled;     /* poll is initialised */
        bool registered; /* with the accelerator */
        uv_poll_t poll;
};

struct virtio_pci {
        struct virtio_transport transport;
        struct virtio *v; /* NULL once the device is gone */
        struct device_ops dev_ops;
        bool on_bus;
        unsigned window;        /* offset of the PCI configuration access capability */
        uint64_t doorbell_base; /* where the doorbells are registered; 0: nowhere */

        uint32_t device_feature_select, driver_feature_select;
        uint64_t driver_features;
        uint16_t config_vector;
        uint16_t queue_select;
        uint8_t isr;
        uint8_t generation;

        unsigned open_handles;
        unsigned doorbells;
        struct doorbell doorbell[VIRTIO_QUEUES_MAX];
};

static struct virtio *from_pci(struct pci_device *pci)
{
        return container_of(pci, struct virtio, pci);
}

static struct virtio_pci *to_pci(struct virtio *v)
{
        return container_of(v->transport, struct virtio_pci, transport);
}

/* Interrupts */

static void interrupt(struct virtio *v, uint16_t vector, uint8_t isr)
{
        struct virtio_pci *t = to_pci(v);

        if (pci_msix_enabled(&v->pci)) {
                if (vector != VIRTIO_NO_VECTOR)
                        pci_msix_send(&v->pci, vector);
                return;
        }
        t->isr |= isr;
        pci_intx(&v->pci, true);
}

static void queue_interrupt(struct virtio *v, const struct virtqueue *q)
{
        interrupt(v, q->vector, ISR_QUEUE);
}

static void config_interrupt(struct virtio *v)
{
        interrupt(v, to_pci(v)->config_vector, ISR_CONFIG);
}

static void config_changed(struct virtio *v)
{
        to_pci(v)->generation++;
        /* §4.1.4.5.1: only a driver that runs is told. */
        if (v->status & VIRTIO_STATUS_DRIVER_OK && !v->resetting)
                config_interrupt(v);
}

/* Doorbells */

static void wake(struct virtio *v, unsigned queue)
{
        /* Fails only when the counter is full: it is readable then. */
        if (queue < to_pci(v)->doorbells)
                (void)!eventfd_write(to_pci(v)->doorbell[queue].fd, 1);
}

static void doorbell_rang(uv_poll_t *poll, int status, int events)
{
        struct doorbell *bell = poll->data;
        struct virtio *v = bell->transport->v;
        eventfd_t count;

        /* Emptied before the queue is looked at: what comes later rings again. */
        if (eventfd_read(bell->fd, &count) < 0 || !v)
                return;
        virtio_lock(v);
        if (virtqueue_ready(v, bell->queue) && v->ops->notify)
                v->ops->notify(v, bell->queue);
        virtio_unlock(v);
}

static void set_doorbells(struct virtio *v, uint64_t base)
{
        struct virtio_pci *t = to_pci(v);
        struct device_host *host = v->host;

        if (base == t->doorbell_base || !host->doorbell)
                return;
        for (unsigned i = 0; i < t->doorbells; i++) {
                struct doorbell *bell = &t->doorbell[i];
                uint64_t offset = NOTIFY_OFFSET + NOTIFY_MULTIPLIER * i;

                if (bell->registered)
                        host->doorbell(host->ctx, false, BUS_MEMORY, t->doorbell_base + offset, 2, false, 0, bell->fd);
                /* When the accelerator cannot, the write handler rings. */
                bell->registered = base && host->doorbell(host->ctx, true, BUS_MEMORY, base + offset, 2, false, 0, bell->fd) == 0;
        }
        t->doorbell_base = base;
}

static void bars_changed(struct pci_device *pci)
{
        struct virtio *v = from_pci(pci);

        if (v->transport)
                set_doorbells(v, pci->bar[BAR_REGISTERS].address);
}

static void poll_doorbells(struct virtio_pci *t, bool on)
{
        for (unsigned i = 0; i < t->doorbells; i++) {
                if (on)
                        uv_poll_start(&t->doorbell[i].poll, UV_READABLE, doorbell_rang);
                else
                        uv_poll_stop(&t->doorbell[i].poll);
        }
}

/* Registers */

static struct virtqueue *selected(struct virtio *v)
{
        return to_pci(v)->queue_select < v->queues ? v->queue[to_pci(v)->queue_select] : NULL;
}

static uint32_t feature_word(uint64_t features, uint32_t select)
{
        return select < 2 ? (uint32_t)(features >> 32 * select) : 0;
}

/* The whole structure as it reads now; reads of any size and place are cut from it. */
static void common_snapshot(struct virtio *v, uint8_t at[COMMON_BYTES])
{
        struct virtio_pci *t = to_pci(v);
        const struct virtqueue *q = selected(v);
        struct writer out = { .bytes = at, .capacity = COMMON_BYTES };

        writer_le32(&out, t->device_feature_select);
        writer_le32(&out, feature_word(virtio_offered(v), t->device_feature_select));
        writer_le32(&out, t->driver_feature_select);
        writer_le32(&out, feature_word(t->driver_features, t->driver_feature_select));
        writer_le16(&out, t->config_vector);
        writer_le16(&out, (uint16_t)v->queues);
        writer_u8(&out, v->status);
        writer_u8(&out, t->generation);
        writer_le16(&out, t->queue_select);
        writer_le16(&out, q ? q->size : 0); /* §4.1.4.3: 0 says that there is no such queue */
        writer_le16(&out, q ? q->vector : VIRTIO_NO_VECTOR);
        writer_le16(&out, q ? q->enabled : 0);
        writer_le16(&out, q ? t->queue_select : 0);
        writer_le64(&out, q ? q->desc_gpa : 0);
        writer_le64(&out, q ? q->driver_gpa : 0);
        writer_le64(&out, q ? q->device_gpa : 0);
        writer_le16(&out, 0); /* queue_notify_data: NOTIF_CONFIG_DATA is not offered */
        writer_le16(&out, 0); /* queue_reset: RING_RESET is not offered */
}

static uint64_t common_read(struct virtio *v, uint64_t offset, unsigned size_bytes)
{
        uint8_t at[COMMON_BYTES];
        uint64_t value = 0;

        if (offset + size_bytes > COMMON_BYTES)
                return 0;
        common_snapshot(v, at);
        memcpy(&value, at + offset, size_bytes);
        return le64toh(value);
}

static uint16_t valid_vector(const struct virtio *v, uint64_t vector)
{
        /* §4.1.5.1.2.2: what cannot be mapped reads back as NO_VECTOR. */
        return vector < v->pci.msix.vectors ? (uint16_t)vector : VIRTIO_NO_VECTOR;
}

static void enable_queue(struct virtio *v, struct virtqueue *q, uint64_t value)
{
        struct err err = ERR_INIT;

        if (value != 1 || q->enabled)
                return; /* §4.1.4.3.2: the driver must not write 0 */
        if (!(v->status & VIRTIO_STATUS_FEATURES_OK) || v->broken || v->resetting)
                return;
        if (virtqueue_enable(v, q, &err) < 0) {
                virtio_break(v, "queue %u: %s", to_pci(v)->queue_select, err.text);
                return;
        }
        if (v->status & VIRTIO_STATUS_DRIVER_OK)
                virtio_wake(v, to_pci(v)->queue_select);
}

/* Half or all of a queue's address; fixed while the queue is on. */
static void write_address(uint64_t *address, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        if (size_bytes == 8 && offset == 0)
                *address = value;
        else if (size_bytes == 4 && offset == 0)
                *address = (*address & ~UINT64_C(0xffffffff)) | (uint32_t)value;
        else if (size_bytes == 4 && offset == 4)
                *address = (*address & UINT64_C(0xffffffff)) | value << 32;
}

static void queue_write(struct virtio *v, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        struct virtqueue *q = selected(v);

        if (!q)
                return;
        if (offset == COMMON_QUEUE_VECTOR && size_bytes == 2)
                q->vector = valid_vector(v, value);
        else if (offset == COMMON_QUEUE_ENABLE && size_bytes == 2)
                enable_queue(v, q, value);
        else if (q->enabled)
                return;
        else if (offset == COMMON_QUEUE_SIZE && size_bytes == 2)
                q->size = (uint16_t)value; /* checked when it is enabled */
        else if (offset >= COMMON_QUEUE_DESC && offset < COMMON_QUEUE_DRIVER)
                write_address(&q->desc_gpa, offset - COMMON_QUEUE_DESC, value, size_bytes);
        else if (offset >= COMMON_QUEUE_DRIVER && offset < COMMON_QUEUE_DEVICE)
                write_address(&q->driver_gpa, offset - COMMON_QUEUE_DRIVER, value, size_bytes);
        else if (offset >= COMMON_QUEUE_DEVICE && offset < COMMON_QUEUE_DEVICE + 8)
                write_address(&q->device_gpa, offset - COMMON_QUEUE_DEVICE, value, size_bytes);
}

static void write_driver_feature(struct virtio *v, uint32_t value)
{
        struct virtio_pci *t = to_pci(v);
        unsigned shift = 32 * t->driver_feature_select;

        /* §2.2.1: not after FEATURES_OK */
        if (t->driver_feature_select < 2 && !(v->status & VIRTIO_STATUS_FEATURES_OK))
                t->driver_features = (t->driver_features & ~(UINT64_C(0xffffffff) << shift)) | (uint64_t)value << shift;
}

/* §4.1.3.1: each field is written by an access of its own width (64-bit ones may come in halves); others are ignored. */
static void common_write(struct virtio *v, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        struct virtio_pci *t = to_pci(v);

        if (offset >= COMMON_QUEUE_SIZE)
                queue_write(v, offset, value, size_bytes);
        else if (offset == COMMON_DEVICE_FEATURE_SELECT && size_bytes == 4)
                t->device_feature_select = (uint32_t)value;
        else if (offset == COMMON_DRIVER_FEATURE_SELECT && size_bytes == 4)
                t->driver_feature_select = (uint32_t)value;
        else if (offset == COMMON_DRIVER_FEATURE && size_bytes == 4)
                write_driver_feature(v, (uint32_t)value);
        else if (offset == COMMON_CONFIG_VECTOR && size_bytes == 2)
                t->config_vector = valid_vector(v, value);
        else if (offset == COMMON_STATUS && size_bytes == 1)
                virtio_write_status(v, (uint8_t)value, t->driver_features);
        else if (offset == COMMON_QUEUE_SELECT && size_bytes == 2)
                t->queue_select = (uint16_t)value;
}

static uint64_t isr_read(struct virtio *v)
{
        uint8_t isr = to_pci(v)->isr;

        to_pci(v)->isr = 0;
        pci_intx(&v->pci, false);
        return isr;
}

static uint64_t registers_read(struct pci_device *pci, unsigned bar, uint64_t offset, unsigned size_bytes)
{
        struct virtio *v = from_pci(pci);
        uint64_t value = 0;

        if (bar != BAR_REGISTERS)
                return 0;
        if (offset < ISR_OFFSET)
                return common_read(v, offset, size_bytes);
        if (offset < DEVICE_OFFSET)
                return offset == ISR_OFFSET ? isr_read(v) : 0;
        if (offset >= NOTIFY_OFFSET)
                return 0;
        offset -= DEVICE_OFFSET;
        if (v->ops->config_read && offset + size_bytes <= v->ops->config_bytes)
                v->ops->config_read(v, (uint32_t)offset, &value, size_bytes);
        return le64toh(value);
}

static void registers_write(struct pci_device *pci, unsigned bar, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        struct virtio *v = from_pci(pci);

        if (bar != BAR_REGISTERS)
                return;
        if (offset < ISR_OFFSET) {
                common_write(v, offset, value, size_bytes);
        } else if (offset >= NOTIFY_OFFSET) {
                /* The address says which queue (§4.1.4.4); what is written there only repeats it. */
                if (offset % NOTIFY_MULTIPLIER == 0)
                        virtio_wake(v, (unsigned)((offset - NOTIFY_OFFSET) / NOTIFY_MULTIPLIER));
        } else if (offset >= DEVICE_OFFSET) {
                offset -= DEVICE_OFFSET;
                value = htole64(value);
                if (v->ops->config_write && offset + size_bytes <= v->ops->config_bytes && !v->broken && !v->resetting)
                        v->ops->config_write(v, (uint32_t)offset, &value, size_bytes);
        }
}

/* The window in configuration space, §4.1.4.9 */

#define WINDOW_BAR 4
#define WINDOW_OFFSET 8
#define WINDOW_LENGTH 12
#define WINDOW_DATA 16

static uint32_t config_le32(const struct pci_device *pci, unsigned at)
{
        uint32_t value;

        memcpy(&value, &pci->config[at], sizeof(value));
        return le32toh(value);
}

/* What the window shows; false when the access does not touch its data or it shows nothing. */
static bool window_target(struct virtio *v, unsigned offset, unsigned size_bytes, uint32_t *at, uint32_t *length)
{
        unsigned window = v->transport ? to_pci(v)->window : 0;

        if (!window || offset >= window + WINDOW_DATA + 4 || offset + size_bytes <= window + WINDOW_DATA)
                return false;
        *at = config_le32(&v->pci, window + WINDOW_OFFSET);
        *length = config_le32(&v->pci, window + WINDOW_LENGTH);
        if (v->pci.config[window + WINDOW_BAR] != BAR_REGISTERS || (*length != 1 && *length != 2 && *length != 4))
                return false;
        return *at % *length == 0 && *at < BAR_BYTES;
}

static void config_reading(struct pci_device *pci, unsigned offset, unsigned size_bytes)
{
        struct virtio *v = from_pci(pci);
        uint32_t at, length;
        uint64_t value;

        if (!window_target(v, offset, size_bytes, &at, &length))
                return;
        value = htole64(registers_read(pci, BAR_REGISTERS, at, length));
        memcpy(&pci->config[to_pci(v)->window + WINDOW_DATA], &value, length);
}

static void config_written(struct pci_device *pci, unsigned offset, unsigned size_bytes)
{
        struct virtio *v = from_pci(pci);
        uint32_t at, length;
        uint64_t value = 0;

        if (!window_target(v, offset, size_bytes, &at, &length))
                return;
        memcpy(&value, &pci->config[to_pci(v)->window + WINDOW_DATA], length);
        registers_write(pci, BAR_REGISTERS, at, le64toh(value), length);
}

static const struct pci_ops virtio_pci_ops = {
        .read = registers_read,
        .write = registers_write,
        .config_written = config_written,
        .config_reading = config_reading,
        .bars_changed = bars_changed,
};

static unsigned add_capability(struct pci_device *pci, unsigned type, uint32_t offset, uint32_t bytes, unsigned extra)
{
        unsigned length = 16 + extra;
        unsigned at = pci_add_capability(pci, 0x09, length);
        uint32_t le;

        pci->config[at + 2] = (uint8_t)length;
        pci->config[at + 3] = (uint8_t)type;
        pci->config[at + 4] = BAR_REGISTERS;
        le = htole32(offset);
        memcpy(&pci->config[at + 8], &le, sizeof(le));
        le = htole32(bytes);
        memcpy(&pci->config[at + 12], &le, sizeof(le));
        return at;
}

static void add_capabilities(struct virtio *v)
{
        struct pci_device *pci = &v->pci;
        uint32_t multiplier = htole32(NOTIFY_MULTIPLIER);
        unsigned at;

        add_capability(pci, CAP_COMMON, COMMON_OFFSET, COMMON_BYTES, 0);
        at = add_capability(pci, CAP_NOTIFY, NOTIFY_OFFSET, NOTIFY_MULTIPLIER * VIRTIO_QUEUES_MAX, 4);
        memcpy(&pci->config[at + 16], &multiplier, sizeof(multiplier));
        add_capability(pci, CAP_ISR, ISR_OFFSET, 1, 0);
        if (v->ops->config_bytes)
                add_capability(pci, CAP_DEVICE, DEVICE_OFFSET, DEVICE_BYTES, 0);
        at = add_capability(pci, CAP_PCI_WINDOW, 0, 0, 4);
        memset(&pci->writable[at + WINDOW_BAR], 0xff, 1);
        memset(&pci->writable[at + WINDOW_OFFSET], 0xff, 12);
        to_pci(v)->window = at;
}

/* The device as the machine sees it */

/* Registers of the transport as after power-on; the interrupt goes down. */
static void transport_reset(struct virtio *v)
{
        struct virtio_pci *t = to_pci(v);

        t->device_feature_select = t->driver_feature_select = 0;
        t->driver_features = 0;
        t->config_vector = VIRTIO_NO_VECTOR;
        t->queue_select = 0;
        t->isr = 0;
        pci_intx(&v->pci, false);
}

static void device_quiesce(struct device *dev)
{
        struct virtio *v = virtio_from_device(dev);

        poll_doorbells(to_pci(v), false);
        v->quiesced = true;
        if (v->ops->quiesce)
                v->ops->quiesce(v);
}

static void device_resume(struct device *dev)
{
        struct virtio *v = virtio_from_device(dev);

        v->quiesced = false;
        if (v->ops->resume)
                v->ops->resume(v);
        poll_doorbells(to_pci(v), true);
        /* A doorbell that rang before a save is not in the record: each queue is looked at again. */
        virtio_lock(v);
        for (unsigned i = 0; i < v->queues; i++) {
                if (v->queue[i]->enabled)
                        virtio_wake(v, i);
        }
        virtio_unlock(v);
}

/*
 * The lock is held by the caller or needed by nobody, here and in save and load. What is in flight was drained by quiesce; a
 * device that was not quiesced ends its reset when the last of it is over, as after a reset by the driver.
 */
static void device_reset(struct device *dev)
{
        struct virtio *v = virtio_from_device(dev);

        virtio_reset(v);
        pci_device_reset(&v->pci);
}

static void device_save(struct device *dev, struct writer *out)
{
        struct virtio *v = virtio_from_device(dev);
        struct virtio_pci *t = to_pci(v);

        pci_device_save(&v->pci, out);
        writer_le32(out, t->device_feature_select);
        writer_le32(out, t->driver_feature_select);
        writer_le64(out, t->driver_features);
        writer_le16(out, t->config_vector);
        writer_le16(out, t->queue_select);
        writer_u8(out, t->isr);
        writer_u8(out, t->generation);
        virtio_core_save(v, out);
}

static int load_all(struct virtio *v, struct cursor *in, struct err *err)
{
        struct virtio_pci *t = to_pci(v);
        int r = pci_device_load(&v->pci, in, err);

        if (r < 0)
                return r;
        t->device_feature_select = cursor_le32(in);
        t->driver_feature_select = cursor_le32(in);
        t->driver_features = cursor_le64(in);
        t->config_vector = cursor_le16(in);
        t->queue_select = cursor_le16(in);
        t->isr = cursor_u8(in);
        t->generation = cursor_u8(in);
        r = virtio_core_load(v, in, err);
        if (r < 0)
                return r;
        t->config_vector = valid_vector(v, t->config_vector);
        for (unsigned i = 0; i < v->queues; i++)
                v->queue[i]->vector = valid_vector(v, v->queue[i]->vector);
        return 0;
}

static int device_load(struct device *dev, uint16_t version, struct cursor *in, struct err *err)
{
        struct virtio *v = virtio_from_device(dev);
        int r;

        if (version != STATE_VERSION)
                return err_set(err, -EBADMSG, "state of %s has version %u, this is %d", dev->id, version, STATE_VERSION);
        virtio_reset(v);
        r = load_all(v, in, err);
        if (r < 0) {
                virtio_reset(v);
                pci_device_reset(&v->pci);
        }
        set_doorbells(v, v->pci.bar[BAR_REGISTERS].address);
        if (to_pci(v)->isr && !pci_msix_enabled(&v->pci))
                pci_intx(&v->pci, true);
        return r;
}

static void device_free(struct device *dev)
{
        struct virtio *v = virtio_from_device(dev);

        v->ops->free(v);
}

/* Making and ending */

static int open_doorbells(struct virtio *v, struct err *err)
{
        struct virtio_pci *t = to_pci(v);

        for (unsigned i = 0; i < v->queues; i++) {
                struct doorbell *bell = &t->doorbell[i];
                int r;

                *bell = (struct doorbell){ .transport = t, .queue = i };
                bell->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
                if (bell->fd < 0)
                        return err_errno(err, -errno, "cannot make an eventfd");
                t->doorbells++;
                r = uv_poll_init(v->host->loop, &bell->poll, bell->fd);
                if (r < 0)
                        return err_set(err, r, "cannot poll an eventfd: %s", uv_strerror(r));
                bell->poll.data = bell;
                bell->polled = true;
                t->open_handles++;
        }
        poll_doorbells(t, true);
        return 0;
}

static void doorbell_closed(uv_handle_t *handle)
{
        struct doorbell *bell = handle->data;
        struct virtio_pci *t = bell->transport;

        if (--t->open_handles == 0)
                free(t);
}

static void transport_done(struct virtio *v)
{
        struct virtio_pci *t = to_pci(v);
        bool handles;

        if (!t)
                return;
        handles = t->open_handles;
        if (t->on_bus) {
                set_doorbells(v, 0);
                pci_device_done(&v->pci);
        }
        t->v = NULL;
        v->transport = NULL;
        for (unsigned i = 0; i < t->doorbells; i++) {
                if (t->doorbell[i].polled)
                        uv_close((uv_handle_t *)&t->doorbell[i].poll, doorbell_closed);
                close(t->doorbell[i].fd);
        }
        if (!handles)
                free(t);
}

static const struct virtio_transport_ops transport_ops = {
        .reset = transport_reset,
        .wake = wake,
        .queue_interrupt = queue_interrupt,
        .config_interrupt = config_interrupt,
        .config_changed = config_changed,
        .done = transport_done,
};

int virtio_pci_init(struct virtio *v, struct pci_bus *bus, const char *id, struct err *err)
{
        struct virtio_pci *t = calloc(1, sizeof(*t));
        int r;

        if (!t)
                return err_nomem(err);
        t->transport.ops = &transport_ops;
        v->transport = &t->transport;
        t->v = v;
        t->dev_ops = (struct device_ops){
                .name = v->ops->name,
                .version = STATE_VERSION,
                .reset = device_reset,
                .save = device_save,
                .load = device_load,
                .quiesce = device_quiesce,
                .resume = device_resume,
                .free = device_free,
        };
        r = open_doorbells(v, err);
        if (r < 0)
                return r;
        r = pci_device_init(&v->pci, bus, &t->dev_ops, &virtio_pci_ops, id, VENDOR_ID, (uint16_t)(DEVICE_ID_BASE + v->ops->id),
                            v->ops->class_code, VENDOR_ID, SUBSYSTEM_ID, err);
        if (r < 0)
                return r;
        t->on_bus = true;
        v->pci.config[0x08] = 1; /* §4.1.2: revision 1 or more */
        pci_add_bar(&v->pci, BAR_REGISTERS, BAR_BYTES, true);
        pci_add_msix(&v->pci, BAR_MSIX, v->queues + 1);
        add_capabilities(v);
        t->config_vector = VIRTIO_NO_VECTOR;
        return 0;
}
