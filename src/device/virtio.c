/*
 * The core of a virtio device: features, status, reset, and the state that every device saves. virtio 1.2 §2.1, §2.2, §3.1.
 *
 *   reset ─ACKNOWLEDGE─▶ ─DRIVER─▶ ─FEATURES_OK─▶ negotiated ─DRIVER_OK─▶ running ──rule broken──▶ needs reset
 *     ▲                                                                                                 │
 *     └── holds are all released ◀── resetting ◀───────────────── status 0 from any state ◀─────────────┘
 *
 * While work is in flight that touches guest memory (virtio_hold()) a reset by the driver stays `resetting`: the status reads as
 * it was, and the driver waits for 0, as §2.4.2 wants it to. A machine is quiesced before its reset.
 */
#include "device/virtio-internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/log.h"

#define CORE_FEATURES                                                                          \
        (UINT64_C(1) << VIRTIO_F_RING_INDIRECT_DESC | UINT64_C(1) << VIRTIO_F_RING_EVENT_IDX | \
         UINT64_C(1) << VIRTIO_F_VERSION_1 | UINT64_C(1) << VIRTIO_F_RING_PACKED)

int virtio_init(struct virtio *v, struct device_host *host, struct pci_bus *bus, const struct virtio_ops *ops, const char *id,
                const uint16_t *queue_sizes, unsigned queues, struct err *err)
{
        int r;

        if (queues > VIRTIO_QUEUES_MAX)
                return err_set(err, -EINVAL, "device %s wants %u queues of at most %d", id, queues, VIRTIO_QUEUES_MAX);
        v->ops = ops;
        v->host = host;
        for (unsigned i = 0; i < queues; i++) {
                if (!is_power_of_two(queue_sizes[i]) || queue_sizes[i] > VIRTIO_QUEUE_SIZE_MAX)
                        return err_set(err, -EINVAL, "device %s wants a queue of %u", id, queue_sizes[i]);
                v->queue[i] = calloc(1, sizeof(*v->queue[i]));
                if (!v->queue[i])
                        return err_nomem(err);
                v->queues++;
                v->queue[i]->size_max = queue_sizes[i];
                virtqueue_disable(v->queue[i]);
        }
        r = bus ? virtio_pci_init(v, bus, id, err) : virtio_user_init(v, id, err);
        return r < 0 ? err_wrap(err, r, "device %s", id) : 0;
}

void virtio_done(struct virtio *v)
{
        if (v->transport)
                v->transport->ops->done(v);
        for (unsigned i = 0; i < v->queues; i++)
                free(v->queue[i]);
        v->queues = 0;
}

uint64_t virtio_offered(struct virtio *v)
{
        return CORE_FEATURES | (v->ops->features ? v->ops->features(v) : 0);
}

static void finish_reset(struct virtio *v)
{
        v->resetting = false;
        v->status = 0;
}

void virtio_reset(struct virtio *v)
{
        for (unsigned i = 0; i < v->queues; i++)
                virtqueue_disable(v->queue[i]);
        v->transport->ops->reset(v);
        v->features = 0;
        v->broken = false;
        v->resetting = true;
        if (v->ops->reset)
                v->ops->reset(v);
        if (!v->holds)
                finish_reset(v);
}

void virtio_release(struct virtio *v)
{
        v->holds--;
        if (!v->holds && v->resetting)
                finish_reset(v);
}

/* §2.2, §3.1.1: a subset of what is offered, with VERSION_1 as no legacy interface is here; else FEATURES_OK does not stick. */
static bool accept_features(struct virtio *v, uint64_t accepted)
{
        if (accepted & ~virtio_offered(v) || !(accepted >> VIRTIO_F_VERSION_1 & 1))
                return false;
        return !v->ops->features_ok || v->ops->features_ok(v, accepted);
}

void virtio_write_status(struct virtio *v, uint8_t status, uint64_t accepted)
{
        uint8_t added = status & ~v->status;

        if (v->resetting)
                return;
        if (!status) {
                virtio_reset(v);
                return;
        }
        if (v->status & ~status & ~VIRTIO_STATUS_NEEDS_RESET) {
                virtio_break(v, "status bits 0x%x were cleared without a reset", v->status & ~status);
                return;
        }
        if (added & VIRTIO_STATUS_FEATURES_OK) {
                if (!accept_features(v, accepted))
                        added &= ~VIRTIO_STATUS_FEATURES_OK;
                else
                        v->features = accepted;
        }
        if (added & VIRTIO_STATUS_DRIVER_OK && !((v->status | added) & VIRTIO_STATUS_FEATURES_OK)) {
                virtio_break(v, "DRIVER_OK without FEATURES_OK");
                return;
        }
        v->status |= added & ~VIRTIO_STATUS_NEEDS_RESET;
        if (!(added & VIRTIO_STATUS_DRIVER_OK) || v->broken)
                return;
        if (v->ops->start)
                v->ops->start(v);
        /* Buffers that were put there before are found without a notification. */
        for (unsigned i = 0; i < v->queues; i++) {
                if (v->queue[i]->enabled)
                        virtio_wake(v, i);
        }
}

void virtio_break(struct virtio *v, const char *why, ...)
{
        char text[256];
        va_list args;

        if (v->broken || v->resetting)
                return;
        va_start(args, why);
        vsnprintf(text, sizeof(text), why, args);
        va_end(args);
        log_guest("the driver of %s broke the rules, its device stops until it is reset: %s", v->pci.dev.id, text);
        v->broken = true;
        v->status |= VIRTIO_STATUS_NEEDS_RESET;
        /* §2.1.2: the driver hears of it only when it runs. */
        if (v->status & VIRTIO_STATUS_DRIVER_OK)
                v->transport->ops->config_interrupt(v);
}

void virtio_wake(struct virtio *v, unsigned queue)
{
        v->transport->ops->wake(v, queue);
}

void virtio_config_changed(struct virtio *v)
{
        v->transport->ops->config_changed(v);
}

void virtio_core_save(struct virtio *v, struct writer *out)
{
        size_t mark;

        writer_u8(out, v->status);
        writer_u8(out, v->broken);
        writer_le64(out, v->features);
        writer_le16(out, (uint16_t)v->queues);
        for (unsigned i = 0; i < v->queues; i++)
                virtqueue_save(v->queue[i], out);
        mark = record_begin(out, v->ops->name, v->ops->version);
        if (v->ops->save)
                v->ops->save(v, out);
        record_end(out, mark);
}

static int load_type(struct virtio *v, struct cursor *in, struct err *err)
{
        struct record record;
        int r = record_next(in, &record, err);

        if (r < 0)
                return r == -ENODATA ? err_set(err, -EBADMSG, "the record of %s is cut", v->ops->name) : r;
        if (strcmp(record.name, v->ops->name) != 0)
                return err_set(err, -EBADMSG, "record of %s where %s is due", record.name, v->ops->name);
        if (v->ops->load) {
                r = v->ops->load(v, record.version, &record.body, err);
                if (r < 0)
                        return r;
        }
        return record_finish(&record, err);
}

int virtio_core_load(struct virtio *v, struct cursor *in, struct err *err)
{
        uint8_t status = cursor_u8(in);
        bool broken = cursor_u8(in);
        uint64_t features = cursor_le64(in);
        unsigned queues = cursor_le16(in);
        int r;

        if (in->bad)
                return err_set(err, -EBADMSG, "the record of %s is cut", v->ops->name);
        if (queues != v->queues)
                return err_set(err, -EBADMSG, "%s was saved with %u queues and has %u", v->pci.dev.id, queues, v->queues);
        if (features & ~virtio_offered(v))
                return err_set(err, -EBADMSG, "%s was saved with features 0x%" PRIx64 " that are not offered here", v->pci.dev.id,
                               features & ~virtio_offered(v));
        if (!!(status & VIRTIO_STATUS_FEATURES_OK) != !!(features >> VIRTIO_F_VERSION_1 & 1))
                return err_set(err, -EBADMSG, "%s was saved with status 0x%x and features 0x%" PRIx64, v->pci.dev.id, status,
                               features);
        v->features = features;
        for (unsigned i = 0; i < queues; i++) {
                r = virtqueue_load(v, v->queue[i], in, err);
                if (r < 0)
                        return err_wrap(err, r, "queue %u", i);
        }
        v->status = status;
        v->broken = broken;
        if (features && v->ops->features_ok && !v->ops->features_ok(v, features))
                return err_set(err, -EBADMSG, "%s does not take the features 0x%" PRIx64 " it was saved with", v->pci.dev.id,
                               features);
        return load_type(v, in, err);
}
