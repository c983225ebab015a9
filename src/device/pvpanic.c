/*
 * pvpanic: one port on which a guest says that it has crashed. A read tells which events are understood.
 *
 * Source: QEMU docs/specs/pvpanic.rst.
 */
#include "device/pvpanic.h"

#include "device/board.h"

#define EVENTS 0x03 /* panicked; crash kernel loaded */

struct pvpanic {
        struct device dev;
        struct bus *bus;
        void (*panicked)(void *ctx, unsigned events);
        void *ctx;
};

static uint64_t pvpanic_read(struct device *dev, unsigned region, uint64_t offset, unsigned size_bytes)
{
        return EVENTS;
}

static void pvpanic_write(struct device *dev, unsigned region, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        struct pvpanic *pv = container_of(dev, struct pvpanic, dev);

        if ((value & EVENTS) && pv->panicked)
                pv->panicked(pv->ctx, (unsigned)value & EVENTS);
}

static void pvpanic_free(struct device *dev)
{
        struct pvpanic *pv = container_of(dev, struct pvpanic, dev);

        bus_remove(pv->bus, BUS_PORTS, BOARD_PORT_PVPANIC, dev);
        device_done(dev);
        free(pv);
}

/* It has no state. */
static const struct device_ops pvpanic_ops = { .name = "pvpanic", .read = pvpanic_read, .write = pvpanic_write, .free = pvpanic_free };

int pvpanic_new(struct device_host *host, void (*panicked)(void *ctx, unsigned events), void *ctx, struct device **dev, struct err *err)
{
        struct pvpanic *pv = calloc(1, sizeof(*pv));
        int r;

        if (!pv)
                return err_nomem(err);
        device_init(&pv->dev, &pvpanic_ops, "pvpanic");
        pv->bus = host->bus;
        pv->panicked = panicked;
        pv->ctx = ctx;
        r = bus_add(host->bus, BUS_PORTS, BOARD_PORT_PVPANIC, 1, &pv->dev, 0, err);
        if (r < 0) {
                pvpanic_free(&pv->dev);
                return r;
        }
        *dev = &pv->dev;
        return 0;
}
