/* What all devices share: their lock, their record's head, and byte-wide register files. */
#include "device/device.h"

#include <errno.h>
#include <stdio.h>

void device_init(struct device *dev, const struct device_ops *ops, const char *id)
{
        dev->ops = ops;
        snprintf(dev->id, sizeof(dev->id), "%s", id);
        pthread_mutex_init(&dev->lock, NULL);
}

void device_done(struct device *dev)
{
        pthread_mutex_destroy(&dev->lock);
}

void device_end(struct device *dev)
{
        if (dev)
                dev->ops->free(dev);
}

void device_record_save(struct device *dev, struct writer *out)
{
        size_t mark;

        if (!dev->ops->save)
                return;
        mark = record_begin(out, dev->id, dev->ops->version);
        dev->ops->save(dev, out);
        record_end(out, mark);
}

int device_record_load(struct device *dev, const struct record *record, struct err *err)
{
        struct record body = *record;
        int r;

        if (!dev->ops->load || strcmp(record->name, dev->id) != 0)
                return err_set(err, -EBADMSG, "record \"%s\" is not that of device %s", record->name, dev->id);
        if (record->version > dev->ops->version)
                return err_set(err, -ENOTSUP, "record of device %s has version %u, newer than %u", dev->id, record->version,
                               dev->ops->version);
        r = dev->ops->load(dev, record->version, &body.body, err);
        if (r == 0)
                r = record_finish(&body, err);
        if (r < 0 && dev->ops->reset)
                dev->ops->reset(dev);
        return r < 0 ? err_wrap(err, r, "restoring device %s", dev->id) : 0;
}

uint64_t device_read_bytes(struct device *dev, uint64_t offset, unsigned size_bytes, uint8_t (*read)(struct device *dev, uint64_t offset))
{
        uint64_t value = 0;

        for (unsigned i = 0; i < size_bytes; i++)
                value |= (uint64_t)read(dev, offset + i) << (8 * i);
        return value;
}

void device_write_bytes(struct device *dev, uint64_t offset, uint64_t value, unsigned size_bytes,
                        void (*write)(struct device *dev, uint64_t offset, uint8_t value))
{
        for (unsigned i = 0; i < size_bytes; i++)
                write(dev, offset + i, (uint8_t)(value >> (8 * i)));
}
