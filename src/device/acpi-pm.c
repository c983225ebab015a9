/*
 * ACPI fixed hardware: PM1a event and control blocks, PM timer, GPE0 block, SCI.
 *
 *   0x600 PM1_STS (16)   0x602 PM1_EN (16)   0x604 PM1_CNT (16)   0x608 PM_TMR (32)   0x620 GPE0_STS (16)   0x622 GPE0_EN (16)
 *
 * The machine is always in ACPI mode (SCI_EN reads 1; FADT.SMI_CMD is 0). SCI is a level: some status bit is set and enabled.
 * Sleeping is S5 only, which ends the machine; other sleep types are ignored. The timer is the guest's clock in 3.579545 MHz
 * ticks; TMR_STS follows from how often bit 31 has turned over since it was last cleared, so that nothing ticks unless TMR_EN
 * asks for the interrupt.
 *
 * Source: ACPI 6.5 §4.8.3 (fixed hardware registers), §4.8.4 (GPE), §4.8.3.3 (timer).
 */
#include "device/acpi-pm.h"

#include <errno.h>

#include "device/board.h"

enum { AT_STS = 0x00, AT_EN = 0x02, AT_CNT = 0x04, AT_TMR = 0x08, AT_GPE_STS = 0x20, AT_GPE_EN = 0x22 };
enum { PM1_TMR = 0x0001, PM1_GBL = 0x0020, PM1_PWRBTN = 0x0100, PM1_SLPBTN = 0x0200, PM1_RTC = 0x0400, PM1_WAK = 0x8000 };
enum { PM1_EVENTS = PM1_TMR | PM1_GBL | PM1_PWRBTN | PM1_SLPBTN | PM1_RTC };
enum { CNT_SCI_EN = 0x0001, CNT_BM_RLD = 0x0002, CNT_SLP_TYP = 0x1c00, CNT_SLP_EN = 0x2000 };

struct acpi_pm {
        struct device dev;
        struct device_host *host;
        struct irq_line sci;
        struct timer timer;
        uint16_t status, enable, control;
        uint16_t gpe_status, gpe_enable;
        uint64_t turns; /* of bit 31, up to which TMR_STS has been set */
        bool sci_level;
};

static uint64_t ticks(const struct acpi_pm *pm)
{
        return muldiv64(board_clock_ns(pm->host->clock), BOARD_PM_TIMER_HZ, 1000000000);
}

/* Brings TMR_STS up to date and the wire with it. */
static void update(struct acpi_pm *pm)
{
        uint64_t turns = ticks(pm) >> 31;
        bool level;

        if (turns != pm->turns) {
                pm->turns = turns;
                pm->status |= PM1_TMR;
        }
        if ((pm->enable & PM1_TMR) && !(pm->status & PM1_TMR) && !board_clock_stopped(pm->host->clock))
                timer_arm(&pm->timer, board_clock_host(pm->host->clock, muldiv64_up((turns + 1) << 31, 1000000000, BOARD_PM_TIMER_HZ)));
        else
                timer_cancel(&pm->timer);
        level = (pm->status & pm->enable & PM1_EVENTS) || (pm->gpe_status & pm->gpe_enable);
        if (level != pm->sci_level) {
                pm->sci_level = level;
                irq_set(&pm->sci, level);
        }
}

static void timer_turned(void *ctx)
{
        struct acpi_pm *pm = ctx;

        pthread_mutex_lock(&pm->dev.lock);
        update(pm);
        pthread_mutex_unlock(&pm->dev.lock);
}

static uint8_t pm_register_read(struct device *dev, uint64_t offset)
{
        struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);
        unsigned shift = offset & 1 ? 8 : 0;

        switch (offset & ~UINT64_C(1)) {
        case AT_STS:
                return (uint8_t)(pm->status >> shift);
        case AT_EN:
                return (uint8_t)(pm->enable >> shift);
        case AT_CNT:
                return (uint8_t)(pm->control >> shift);
        case AT_GPE_STS:
                return (uint8_t)(pm->gpe_status >> shift);
        case AT_GPE_EN:
                return (uint8_t)(pm->gpe_enable >> shift);
        default:
                return 0;
        }
}

static uint64_t pm_read(struct device *dev, unsigned region, uint64_t offset, unsigned size_bytes)
{
        struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);

        if (offset >= AT_TMR && offset < AT_TMR + 4)
                return (uint32_t)ticks(pm) >> (8 * (offset - AT_TMR));
        update(pm);
        return device_read_bytes(dev, offset, size_bytes, pm_register_read);
}

static void write_control(struct acpi_pm *pm, uint16_t value)
{
        /* SLP_EN reads as 0; SCI_EN is the hardware's. */
        pm->control = (value & (CNT_BM_RLD | CNT_SLP_TYP)) | CNT_SCI_EN;
        if ((value & CNT_SLP_EN) && (value & CNT_SLP_TYP) == BOARD_PM1_SLP_TYP_S5 << 10 && pm->host->power)
                pm->host->power(pm->host->ctx, POWER_OFF);
}

static void pm_register_write(struct device *dev, uint64_t offset, uint8_t value)
{
        struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);
        unsigned shift = offset & 1 ? 8 : 0;
        uint16_t bits = (uint16_t)(value << shift), mask = (uint16_t)(0xff << shift);

        switch (offset & ~UINT64_C(1)) {
        case AT_STS: /* a one clears */
                pm->status &= (uint16_t)~bits;
                break;
        case AT_EN:
                pm->enable = ((pm->enable & (uint16_t)~mask) | bits) & PM1_EVENTS;
                break;
        case AT_CNT:
                write_control(pm, (pm->control & (uint16_t)~mask) | bits);
                break;
        case AT_GPE_STS:
                pm->gpe_status &= (uint16_t)~bits;
                break;
        case AT_GPE_EN:
                pm->gpe_enable = (pm->gpe_enable & (uint16_t)~mask) | bits;
                break;
        default:
                break;
        }
}

static void pm_write(struct device *dev, unsigned region, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        device_write_bytes(dev, offset, value, size_bytes, pm_register_write);
        update(container_of(dev, struct acpi_pm, dev));
}

void acpi_pm_power_button(struct device *dev)
{
        struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);

        pthread_mutex_lock(&dev->lock);
        pm->status |= PM1_PWRBTN;
        update(pm);
        pthread_mutex_unlock(&dev->lock);
}

void acpi_pm_gpe(struct device *dev, unsigned bit)
{
        struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);

        pthread_mutex_lock(&dev->lock);
        pm->gpe_status |= (uint16_t)(1u << (bit & 15));
        update(pm);
        pthread_mutex_unlock(&dev->lock);
}

static void pm_reset(struct device *dev)
{
        struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);

        pm->status = pm->enable = pm->gpe_status = pm->gpe_enable = 0;
        pm->control = CNT_SCI_EN;
        pm->turns = ticks(pm) >> 31;
        update(pm);
}

static void pm_save(struct device *dev, struct writer *out)
{
        struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);

        update(pm);
        writer_le16(out, pm->status);
        writer_le16(out, pm->enable);
        writer_le16(out, pm->control);
        writer_le16(out, pm->gpe_status);
        writer_le16(out, pm->gpe_enable);
        writer_le64(out, pm->turns);
}

static int pm_load(struct device *dev, uint16_t version, struct cursor *in, struct err *err)
{
        struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);

        pm->status = cursor_le16(in) & (PM1_EVENTS | PM1_WAK);
        pm->enable = cursor_le16(in) & PM1_EVENTS;
        pm->control = (cursor_le16(in) & (CNT_BM_RLD | CNT_SLP_TYP)) | CNT_SCI_EN;
        pm->gpe_status = cursor_le16(in);
        pm->gpe_enable = cursor_le16(in);
        pm->turns = cursor_le64(in);
        if (in->bad)
                return err_set(err, -EBADMSG, "ACPI record is cut");
        update(pm);
        return 0;
}

static void pm_quiesce(struct device *dev)
{
        timer_cancel(&container_of(dev, struct acpi_pm, dev)->timer);
}

static void pm_resume(struct device *dev)
{
        timer_turned(container_of(dev, struct acpi_pm, dev));
}

static void pm_free(struct device *dev)
{
        struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);

        timer_cancel(&pm->timer);
        bus_remove(pm->host->bus, BUS_PORTS, BOARD_PORT_PM, dev);
        device_done(dev);
        free(pm);
}

static const struct device_ops pm_ops = {
        .name = "acpi-pm",
        .read = pm_read, .write = pm_write,
        .reset = pm_reset,
        .version = 1, .save = pm_save, .load = pm_load,
        .quiesce = pm_quiesce, .resume = pm_resume,
        .free = pm_free,
};

int acpi_pm_new(struct device_host *host, const struct irq_line *sci, struct device **dev, struct err *err)
{
        struct acpi_pm *pm = calloc(1, sizeof(*pm));
        int r;

        if (!pm)
                return err_nomem(err);
        device_init(&pm->dev, &pm_ops, "acpi-pm");
        pm->host = host;
        pm->sci = *sci;
        timer_init(&pm->timer, host->timers, timer_turned, pm);
        pm_reset(&pm->dev);
        r = bus_add(host->bus, BUS_PORTS, BOARD_PORT_PM, BOARD_PORT_PM_SIZE, &pm->dev, 0, err);
        if (r < 0) {
                pm_free(&pm->dev);
                return r;
        }
        *dev = &pm->dev;
        return 0;
}
