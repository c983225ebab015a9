/* See virtio-hostile.h. */
#include "virtio-hostile.h"

#include <stdio.h>

#include "base/log.h"

#define RING_GPA 0x4000 /* queue i's areas are at RING_GPA + 0x4000 * i */
#define DATA_GPA 0x100000
#define STEPS_MAX 200

static uint64_t ring_at(unsigned queue)
{
        return RING_GPA + 0x4000 * (uint64_t)queue;
}

/* Right up to DRIVER_OK, so that most inputs get somewhere. */
static void quick_start(struct hostile *h, const struct hostile_device *device, struct cursor *in)
{
        uint64_t features = (test_offered(&h->d) & ~cursor_le64(in)) | UINT64_C(1) << VIRTIO_F_VERSION_1;
        uint8_t size_shift = cursor_u8(in) % 6 + 2;

        if (!test_driver_start(&h->d, features))
                return;
        test_driver_msix(&h->d);
        for (unsigned i = 0; i < device->queues; i++) {
                memset(test_at(&h->bed, ring_at(i), 0x4000), 0, 0x4000);
                test_write(&h->d, h->d.common + 22, i, 2);
                test_write(&h->d, h->d.common + 24, 1u << size_shift, 2);
                test_write(&h->d, h->d.common + 26, i, 2);
                test_write(&h->d, h->d.common + 32, ring_at(i), 8);
                test_write(&h->d, h->d.common + 40, ring_at(i) + 0x2000, 8);
                test_write(&h->d, h->d.common + 48, ring_at(i) + 0x3000, 8);
                test_write(&h->d, h->d.common + 28, 1, 2);
        }
        test_driver_ok(&h->d);
}

/* A buffer address that is usually good. */
static uint64_t address(struct cursor *in)
{
        uint8_t kind = cursor_u8(in);

        if (kind < 200)
                return DATA_GPA + cursor_le16(in);
        if (kind < 220)
                return TEST_HIGH_GPA + TEST_HIGH_BYTES - (cursor_u8(in));
        if (kind < 235)
                return cursor_le16(in);
        return cursor_le64(in);
}

/* Descriptors in a row from a slot on, and for split queues their announcement. */
static void put_chain(struct hostile *h, const struct hostile_device *device, struct cursor *in)
{
        unsigned queue = cursor_u8(in) % device->queues;
        unsigned slot = cursor_u8(in), count = cursor_u8(in) % 8 + 1u;
        bool packed = h->d.features >> VIRTIO_F_RING_PACKED & 1;
        uint8_t *desc = test_at(&h->bed, ring_at(queue), 0x4000);
        uint8_t *avail = desc + 0x2000;
        unsigned size;

        test_write(&h->d, h->d.common + 22, queue, 2);
        size = (unsigned)test_read(&h->d, h->d.common + 24, 2);
        if (!size || size > 256)
                return;
        for (unsigned i = 0; i < count; i++) {
                uint8_t *at = desc + 16 * ((slot + i) % size);
                uint64_t gpa = address(in);
                uint32_t length = cursor_u8(in);
                uint8_t flags = cursor_u8(in);
                uint16_t word;

                length = flags & 0x10 ? cursor_le32(in) : flags & 0x20 ? length * 16 : length;
                memcpy(at, &gpa, 8);
                memcpy(at + 8, &length, 4);
                word = packed ? (uint16_t)((flags & 7) | (flags & 8 ? 0x8000 : 0x80)) : (uint16_t)(flags & 7);
                memcpy(at + (packed ? 14 : 12), &word, 2);
                word = (uint16_t)((slot + i + 1) % size);
                memcpy(at + (packed ? 12 : 14), &word, 2);
        }
        if (!packed) {
                uint16_t idx;

                memcpy(&idx, avail + 2, 2);
                avail[4 + 2 * (idx % size)] = (uint8_t)(slot % size);
                avail[5 + 2 * (idx % size)] = 0;
                idx++;
                memcpy(avail + 2, &idx, 2);
        }
}

static void poke_memory(struct hostile *h, struct cursor *in)
{
        uint64_t gpa = cursor_u8(in) & 1 ? DATA_GPA + cursor_le16(in) : RING_GPA + cursor_le16(in);
        size_t size = MIN((size_t)cursor_u8(in), cursor_left(in));
        const void *bytes = cursor_take(in, size);

        if (bytes)
                memcpy(test_at(&h->bed, gpa, MAX(size, (size_t)1)), bytes, size);
}

static void access_config(struct hostile *h, struct cursor *in)
{
        static const unsigned sizes[] = { 1, 2, 4, 8 };
        uint8_t kind = cursor_u8(in);
        unsigned size = sizes[kind >> 4 & 3];
        uint64_t base = kind & 1   ? h->d.common + (cursor_u8(in) & 0x3f)
                        : kind & 2 ? h->d.device + cursor_u8(in)
                        : kind & 4 ? h->d.common + (cursor_le16(in) & 0x3fff)
                                   : h->d.config + (cursor_le16(in) & 0xfff);

        if (kind & 8)
                test_read(&h->d, base, size);
        else
                test_write(&h->d, base, cursor_le64(in), size);
}

/* What is saved must load, and be the same when saved again. */
static void save_and_load(struct hostile *h)
{
        const struct device_ops *ops = h->dev->ops;
        struct writer first = { 0 }, second = { 0 };
        struct err err = ERR_INIT;
        struct cursor in;

        ops->quiesce(h->dev);
        ops->save(h->dev, &first);
        in = cursor_from(first.bytes, first.size);
        if (ops->load(h->dev, ops->version, &in, &err) < 0 || cursor_left(&in)) {
                fprintf(stderr, "what was saved does not load: %s\n", err.text);
                abort();
        }
        ops->save(h->dev, &second);
        for (size_t i = 0; i < MAX(first.size, second.size); i++) {
                if (first.size != second.size || first.bytes[i] != second.bytes[i]) {
                        fprintf(stderr, "byte %zu of %zu differs after a load\n", i, first.size);
                        abort();
                }
        }
        ops->resume(h->dev);
        writer_done(&first);
        writer_done(&second);
}

/* The record with some bytes changed. */
static void load_damaged(struct hostile *h, struct cursor *in)
{
        const struct device_ops *ops = h->dev->ops;
        struct writer out = { 0 };
        struct cursor record;
        struct err err = ERR_INIT;
        unsigned changes = cursor_u8(in) % 8;

        ops->quiesce(h->dev);
        ops->save(h->dev, &out);
        for (unsigned i = 0; i < changes; i++) {
                unsigned at = cursor_le16(in);

                /* Past the configuration space most of the time. */
                out.bytes[(at & 0x8000 ? at : 256 + at) % out.size] = cursor_u8(in);
        }
        record = cursor_from(out.bytes, out.size - cursor_u8(in) % 4);
        if (ops->load(h->dev, ops->version, &record, &err) < 0 && virtio_from_device(h->dev)->status)
                abort();
        ops->resume(h->dev);
        writer_done(&out);
}

static void step(struct hostile *h, const struct hostile_device *device, struct cursor *in)
{
        switch (cursor_u8(in) % 13) {
        case 0:
                quick_start(h, device, in);
                break;
        case 1:
        case 2:
                put_chain(h, device, in);
                break;
        case 3:
                test_write(&h->d, h->d.notify + 4 * (cursor_u8(in) % (device->queues + 1)), 0, 2);
                break;
        case 4:
        case 5:
                poke_memory(h, in);
                break;
        case 6:
                access_config(h, in);
                break;
        case 7:
                save_and_load(h);
                break;
        case 8:
                load_damaged(h, in);
                break;
        case 9:
                if (device->host)
                        device->host(h, in);
                break;
        case 10:
                if (cursor_u8(in) == 0)
                        h->dev->ops->reset(h->dev);
                break;
        default:
                for (unsigned i = 0; i < device->queues; i++)
                        test_write(&h->d, h->d.notify + 4 * i, 0, 2);
                testbed_run(&h->bed);
                break;
        }
}

int hostile_run(const struct hostile_device *device, const uint8_t *bytes, size_t size_bytes)
{
        struct hostile *h = calloc(1, sizeof(*h));
        struct cursor in = cursor_from(bytes, size_bytes);

        if (!h)
                abort();
        log_init("fuzz", LOG_ERROR);
        testbed_init(&h->bed);
        device->make(h);
        if (!test_driver_find(&h->d, &h->bed, device->id))
                abort();
        quick_start(h, device, &(struct cursor){ .bad = true });
        for (unsigned i = 0; i < STEPS_MAX && cursor_left(&in); i++)
                step(h, device, &in);
        testbed_run(&h->bed);
        device_end(h->dev);
        if (device->done)
                device->done(h);
        testbed_done(&h->bed);
        free(h);
        return 0;
}
