/*
 * High precision event timer: a 64-bit counter at 100 MHz with three comparators.
 *
 * The counter is the guest's clock plus an offset while it is enabled. A comparator arms a host timer for the tick at which the
 * counter (or its low 32 bits, in 32-bit mode) will be equal to it. A periodic comparator adds its period at each match, as often
 * as it takes to be ahead again, and fires at most every 20 us. One that nothing would come of (edge-triggered, not enabled: Linux leaves
 * its first tick so) arms none, and catches up when it is looked at.
 *
 * With legacy replacement timer 0 drives IRQ 0 and timer 1 drives IRQ 8; the PIT and the RTC are cut off. Otherwise a timer drives
 * one of the I/O APIC lines 20-23. An edge is a pulse; a level stays until its status bit is cleared.
 *
 * Limits: no FSB (message) delivery.
 *
 * Source: IA-PC HPET Specification 1.0a (October 2004), §2.3.
 */
#include "device/hpet.h"

#include <errno.h>
#include <inttypes.h>

#include "device/board.h"

#define PERIOD_NS 10
#define PERIOD_FS UINT64_C(10000000)
#define CAPABILITIES (PERIOD_FS << 32 | BOARD_HPET_ID)
#define FIRE_MIN_TICKS 2000 /* 20 us */
#define ROUTES UINT64_C(0x00f00000)

enum { REG_CAPABILITIES = 0x000, REG_CONFIG = 0x010, REG_STATUS = 0x020, REG_COUNTER = 0x0f0, REG_TIMERS = 0x100 };
enum { CONFIG_ENABLE = 1, CONFIG_LEGACY = 2 };
enum {
        TIMER_LEVEL = 0x0002, TIMER_ENABLE = 0x0004, TIMER_PERIODIC = 0x0008, TIMER_CAN_PERIODIC = 0x0010, TIMER_CAN_64 = 0x0020,
        TIMER_SET_VALUE = 0x0040, TIMER_32BIT = 0x0100, TIMER_ROUTE = 0x3e00, TIMER_WRITABLE = 0x3f4e,
};

struct hpet_timer {
        struct hpet *hpet;
        struct timer timer;
        uint32_t config;
        uint64_t comparator, period;
        uint64_t fire; /* the full counter's value at the next match; valid while armed */
        bool armed;
};

struct hpet {
        struct device dev;
        struct device_host *host;
        struct hpet_wiring wiring;
        uint64_t config, status;
        uint64_t offset; /* counter - ticks of the guest's clock, while enabled */
        uint64_t halted; /* counter while it is not */
        struct hpet_timer timer[HPET_TIMERS];
};

static uint64_t clock_ticks(const struct hpet *hpet)
{
        return board_clock_ns(hpet->host->clock) / PERIOD_NS;
}

static uint64_t counter(const struct hpet *hpet)
{
        return hpet->config & CONFIG_ENABLE ? clock_ticks(hpet) + hpet->offset : hpet->halted;
}

static uint64_t width(const struct hpet_timer *t)
{
        return t->config & TIMER_32BIT ? UINT32_MAX : UINT64_MAX;
}

static unsigned number(const struct hpet_timer *t)
{
        return (unsigned)(t - t->hpet->timer);
}

static const struct irq_line *line(const struct hpet_timer *t)
{
        const struct hpet *hpet = t->hpet;
        unsigned route = t->config >> 9 & 31;

        if ((hpet->config & CONFIG_LEGACY) && number(t) < 2)
                return number(t) ? &hpet->wiring.irq8 : &hpet->wiring.irq0;
        return ROUTES >> route & 1 ? &hpet->wiring.gsi[route] : NULL;
}

static void interrupt(struct hpet_timer *t)
{
        const struct irq_line *wire = line(t);

        if (t->config & TIMER_LEVEL)
                t->hpet->status |= 1u << number(t); /* set even when not enabled (§2.3.6) */
        if (!wire || !(t->config & TIMER_ENABLE))
                return;
        if (t->config & TIMER_LEVEL)
                irq_set(wire, true);
        else
                irq_pulse(wire);
}

static void lower(struct hpet_timer *t)
{
        const struct irq_line *wire = line(t);

        if (wire && (t->config & TIMER_LEVEL))
                irq_set(wire, false);
}

/* Nobody sees its matches. */
static bool quiet(const struct hpet_timer *t)
{
        return !(t->config & (TIMER_LEVEL | TIMER_ENABLE));
}

static void arm_host(struct hpet_timer *t)
{
        struct board_clock *clock = t->hpet->host->clock;
        uint64_t left = t->fire - counter(t->hpet);

        if (board_clock_stopped(clock))
                return;
        if ((int64_t)left < 0)
                left = 0; /* late */
        if (left > INT64_MAX / PERIOD_NS / 4 || quiet(t))
                timer_cancel(&t->timer);
        else
                timer_arm(&t->timer, board_clock_host(clock, board_clock_ns(clock) + left * PERIOD_NS));
}

/* Waits for the next match. now_counts: equality at this moment is a match. */
static void arm(struct hpet_timer *t, bool now_counts)
{
        uint64_t now = counter(t->hpet), left = (t->comparator - now) & width(t);

        /* Equal just now and not again before it comes round: in 43 s with 32 bits, in 5849 years (never) with 64. */
        if (!left && !now_counts)
                left = width(t) == UINT64_MAX ? UINT64_MAX : (uint64_t)UINT32_MAX + 1;
        t->armed = (t->hpet->config & CONFIG_ENABLE) && left <= INT64_MAX;
        if (!t->armed) {
                timer_cancel(&t->timer);
                return;
        }
        t->fire = now + left;
        arm_host(t);
}

/* Ahead of the counter again. */
static void next_period(struct hpet_timer *t, uint64_t now)
{
        uint64_t behind = now - t->fire, periods = behind / t->period + 1;

        if (t->period < FIRE_MIN_TICKS)
                periods += FIRE_MIN_TICKS / t->period;
        t->comparator = (t->comparator + periods * t->period) & width(t);
        t->fire += periods * t->period;
        arm_host(t);
}

static void match(struct hpet_timer *t, uint64_t now)
{
        interrupt(t);
        if ((t->config & TIMER_PERIODIC) && t->period)
                next_period(t, now);
        else
                arm(t, false);
}

/* Before its registers count. */
static void catch_up(struct hpet_timer *t)
{
        uint64_t now = counter(t->hpet);

        if (t->armed && quiet(t) && (int64_t)(now - t->fire) >= 0)
                match(t, now);
}

static void catch_up_all(struct hpet *hpet)
{
        for (unsigned i = 0; i < HPET_TIMERS; i++)
                catch_up(&hpet->timer[i]);
}

static void timer_fired(void *ctx)
{
        struct hpet_timer *t = ctx;
        struct hpet *hpet = t->hpet;
        uint64_t now;

        pthread_mutex_lock(&hpet->dev.lock);
        now = counter(hpet);
        if (t->armed && !board_clock_stopped(hpet->host->clock)) {
                if ((int64_t)(now - t->fire) < 0)
                        arm_host(t);
                else
                        match(t, now);
        }
        pthread_mutex_unlock(&hpet->dev.lock);
}

/* ---- registers ---- */

static uint64_t read_timer(struct hpet_timer *t, uint64_t offset)
{
        switch (offset) {
        case 0x00:
                return t->config | TIMER_CAN_PERIODIC | TIMER_CAN_64 | ROUTES << 32;
        case 0x08:
                catch_up(t);
                return t->comparator;
        default:
                return 0;
        }
}

static uint64_t read_register(struct hpet *hpet, uint64_t offset)
{
        switch (offset) {
        case REG_CAPABILITIES:
                return CAPABILITIES;
        case REG_CONFIG:
                return hpet->config;
        case REG_STATUS:
                return hpet->status;
        case REG_COUNTER:
                return counter(hpet);
        default:
                if (offset >= REG_TIMERS && offset < REG_TIMERS + 0x20 * HPET_TIMERS)
                        return read_timer(&hpet->timer[(offset - REG_TIMERS) / 0x20], offset & 0x1f);
                return 0;
        }
}

static void write_config(struct hpet *hpet, uint64_t value)
{
        uint64_t before = hpet->config, now = counter(hpet);

        catch_up_all(hpet);
        for (unsigned i = 0; ((before ^ value) & CONFIG_LEGACY) && i < HPET_TIMERS; i++)
                lower(&hpet->timer[i]); /* the old wires */
        hpet->config = value & (CONFIG_ENABLE | CONFIG_LEGACY);
        hpet->halted = now;
        hpet->offset = now - clock_ticks(hpet);
        if (((before ^ value) & CONFIG_LEGACY) && hpet->wiring.legacy)
                hpet->wiring.legacy(hpet->wiring.ctx, value & CONFIG_LEGACY);
        for (unsigned i = 0; ((before ^ value) & CONFIG_ENABLE) && i < HPET_TIMERS; i++)
                arm(&hpet->timer[i], true);
}

static void write_status(struct hpet *hpet, uint64_t value)
{
        uint64_t cleared = hpet->status & value;

        hpet->status &= ~value;
        for (unsigned i = 0; i < HPET_TIMERS; i++) {
                if (cleared >> i & 1)
                        lower(&hpet->timer[i]);
        }
}

static void write_counter(struct hpet *hpet, uint64_t value)
{
        catch_up_all(hpet);
        hpet->halted = value;
        hpet->offset = value - clock_ticks(hpet);
        for (unsigned i = 0; i < HPET_TIMERS; i++)
                arm(&hpet->timer[i], true);
}

static void write_timer_config(struct hpet_timer *t, uint32_t value)
{
        uint32_t before = t->config;

        catch_up(t);
        lower(t);
        t->config = value & TIMER_WRITABLE;
        if (t->config & TIMER_32BIT) {
                t->comparator = (uint32_t)t->comparator;
                t->period = (uint32_t)t->period;
        }
        if (!(t->config & TIMER_LEVEL))
                t->hpet->status &= ~(UINT64_C(1) << number(t));
        else if ((t->config & TIMER_ENABLE) && (t->hpet->status >> number(t) & 1) && line(t))
                irq_set(line(t), true);
        if ((before ^ t->config) & (TIMER_32BIT | TIMER_ENABLE | TIMER_PERIODIC))
                arm(t, false);
}

static void write_comparator(struct hpet_timer *t, uint64_t value)
{
        value &= width(t);
        catch_up(t);
        /* Periodic: the comparator only after SET_VALUE, else the period alone (§2.3.9.2.2). */
        if (!(t->config & TIMER_PERIODIC) || (t->config & TIMER_SET_VALUE))
                t->comparator = value;
        if (t->config & TIMER_PERIODIC)
                t->period = value;
        t->config &= ~(uint32_t)TIMER_SET_VALUE;
        arm(t, true);
}

static void write_register(struct hpet *hpet, uint64_t offset, uint64_t value)
{
        struct hpet_timer *t;

        switch (offset) {
        case REG_CONFIG:
                write_config(hpet, value);
                return;
        case REG_STATUS:
                write_status(hpet, value);
                return;
        case REG_COUNTER:
                write_counter(hpet, value);
                return;
        default:
                break;
        }
        if (offset < REG_TIMERS || offset >= REG_TIMERS + 0x20 * HPET_TIMERS)
                return;
        t = &hpet->timer[(offset - REG_TIMERS) / 0x20];
        if ((offset & 0x1f) == 0x00)
                write_timer_config(t, (uint32_t)value);
        else if ((offset & 0x1f) == 0x08)
                write_comparator(t, value);
}

static uint64_t hpet_read(struct device *dev, unsigned region, uint64_t offset, unsigned size_bytes)
{
        struct hpet *hpet = container_of(dev, struct hpet, dev);

        return read_register(hpet, offset & ~UINT64_C(7)) >> (8 * (offset & 7));
}

static void hpet_write(struct device *dev, unsigned region, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        struct hpet *hpet = container_of(dev, struct hpet, dev);
        uint64_t reg = offset & ~UINT64_C(7), old;

        if (offset & 3 || size_bytes < 4 || (size_bytes == 8 && (offset & 7)))
                return; /* §2.4.7: 32- and 64-bit accesses, aligned */
        if (size_bytes == 4) {
                /* The other half is as it was; of the status register it must not clear anything. */
                old = reg == REG_STATUS ? 0 : read_register(hpet, reg);
                value = offset & 4 ? (old & 0xffffffff) | value << 32 : (old & ~UINT64_C(0xffffffff)) | (uint32_t)value;
                if ((offset & 4) && reg != REG_COUNTER && (reg < REG_TIMERS || (reg & 0x1f) != 0x08))
                        return; /* no other register has anything to write there */
        }
        write_register(hpet, reg, value);
}

/* ---- state ---- */

static void hpet_reset(struct device *dev)
{
        struct hpet *hpet = container_of(dev, struct hpet, dev);

        for (unsigned i = 0; i < HPET_TIMERS; i++) {
                struct hpet_timer *t = &hpet->timer[i];

                lower(t);
                timer_cancel(&t->timer);
                t->armed = false;
                t->config = 0;
                t->comparator = UINT64_MAX;
                t->period = 0;
        }
        hpet->status = hpet->halted = 0;
        if ((hpet->config & CONFIG_LEGACY) && hpet->wiring.legacy)
                hpet->wiring.legacy(hpet->wiring.ctx, false);
        hpet->config = 0;
}

static void hpet_save(struct device *dev, struct writer *out)
{
        struct hpet *hpet = container_of(dev, struct hpet, dev);

        catch_up_all(hpet);
        writer_le64(out, hpet->config);
        writer_le64(out, hpet->status);
        writer_le64(out, counter(hpet));
        for (unsigned i = 0; i < HPET_TIMERS; i++) {
                const struct hpet_timer *t = &hpet->timer[i];

                writer_le32(out, t->config);
                writer_le64(out, t->comparator);
                writer_le64(out, t->period);
                writer_le64(out, t->fire);
                writer_u8(out, t->armed);
        }
}

static void timer_load(struct hpet_timer *t, struct cursor *in)
{
        t->config = cursor_le32(in) & TIMER_WRITABLE;
        t->comparator = cursor_le64(in) & width(t);
        t->period = cursor_le64(in) & width(t);
        t->fire = cursor_le64(in);
        t->armed = (cursor_u8(in) & 1) && (t->hpet->config & CONFIG_ENABLE);
}

static int hpet_load(struct device *dev, uint16_t version, struct cursor *in, struct err *err)
{
        struct hpet *hpet = container_of(dev, struct hpet, dev);

        hpet_reset(dev);
        hpet->config = cursor_le64(in) & (CONFIG_ENABLE | CONFIG_LEGACY);
        hpet->status = cursor_le64(in) & ((1u << HPET_TIMERS) - 1);
        hpet->halted = cursor_le64(in);
        hpet->offset = hpet->halted - clock_ticks(hpet);
        for (unsigned i = 0; i < HPET_TIMERS; i++)
                timer_load(&hpet->timer[i], in);
        if (in->bad)
                return err_set(err, -EBADMSG, "hpet record is cut");
        if ((hpet->config & CONFIG_LEGACY) && hpet->wiring.legacy)
                hpet->wiring.legacy(hpet->wiring.ctx, true);
        for (unsigned i = 0; i < HPET_TIMERS; i++) {
                struct hpet_timer *t = &hpet->timer[i];

                if ((hpet->status >> i & 1) && (t->config & TIMER_ENABLE) && line(t))
                        irq_set(line(t), true);
                if (t->armed)
                        arm_host(t);
        }
        return 0;
}

static void hpet_quiesce(struct device *dev)
{
        for (unsigned i = 0; i < HPET_TIMERS; i++)
                timer_cancel(&container_of(dev, struct hpet, dev)->timer[i].timer);
}

static void hpet_resume(struct device *dev)
{
        struct hpet *hpet = container_of(dev, struct hpet, dev);

        pthread_mutex_lock(&dev->lock);
        for (unsigned i = 0; i < HPET_TIMERS; i++) {
                if (hpet->timer[i].armed)
                        arm_host(&hpet->timer[i]);
        }
        pthread_mutex_unlock(&dev->lock);
}

static void hpet_free(struct device *dev)
{
        struct hpet *hpet = container_of(dev, struct hpet, dev);

        hpet_quiesce(dev);
        bus_remove(hpet->host->bus, BUS_MEMORY, BOARD_HPET, dev);
        device_done(dev);
        free(hpet);
}

static const struct device_ops hpet_ops = {
        .name = "hpet",
        .read = hpet_read, .write = hpet_write,
        .reset = hpet_reset,
        .version = 1, .save = hpet_save, .load = hpet_load,
        .quiesce = hpet_quiesce, .resume = hpet_resume,
        .free = hpet_free,
};

int hpet_new(struct device_host *host, const struct hpet_wiring *wiring, struct device **dev, struct err *err)
{
        struct hpet *hpet = calloc(1, sizeof(*hpet));
        int r;

        if (!hpet)
                return err_nomem(err);
        device_init(&hpet->dev, &hpet_ops, "hpet");
        hpet->host = host;
        hpet->wiring = *wiring;
        for (unsigned i = 0; i < HPET_TIMERS; i++) {
                hpet->timer[i].hpet = hpet;
                timer_init(&hpet->timer[i].timer, host->timers, timer_fired, &hpet->timer[i]);
        }
        hpet_reset(&hpet->dev);
        r = bus_add(host->bus, BUS_MEMORY, BOARD_HPET, BOARD_HPET_SIZE, &hpet->dev, 0, err);
        if (r < 0) {
                hpet_free(&hpet->dev);
                return r;
        }
        *dev = &hpet->dev;
        return 0;
}
