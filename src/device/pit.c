/*
 * 8254 programmable interval timer, and port 0x61 beside it.
 *
 *   counter 0 ─OUT─▶ IRQ 0      counter 1: memory refresh, unused      counter 2 ─OUT─▶ port 0x61 bit 5, gated by its bit 0
 *
 * Nothing counts: a counter remembers at which tick of 1.193182 MHz guest time it was loaded, and its value and OUT follow from
 * the tick now. Only counter 0 arms a host timer, for OUT's next rising edge. A periodic counter that is late skips what it
 * missed, and fires at most every 20 us.
 *
 *   mode 0  interrupt on terminal count   OUT low, high from the count's end on
 *   mode 1  one-shot by the gate          OUT low from the gate's edge for the count
 *   mode 2  rate generator                OUT low for the last tick of each period
 *   mode 3  square wave                   OUT high for the first half (the longer one) of each period
 *   mode 4  strobe                        OUT low for one tick at the count's end; mode 5 the same, started by the gate
 *
 * Source: Intel 8254 data sheet (231164); port 0x61: Intel ICH9 data sheet §13.7.1 "NMI_SC".
 */
#include "device/pit.h"

#include <errno.h>

#include "device/board.h"

#define COUNTERS 3
#define PERIOD_MIN_TICKS 24 /* 20 us */

enum { REGION_PIT, REGION_SPEAKER };
enum { RW_LATCH, RW_LOW, RW_HIGH, RW_BOTH };
enum { SPEAKER_GATE = 0x01, SPEAKER_DATA = 0x02, SPEAKER_WRITABLE = 0x0f, SPEAKER_REFRESH = 0x10, SPEAKER_OUT = 0x20 };

struct counter {
        uint8_t mode, rw;
        bool bcd, gate;
        bool counting;       /* loaded, and not held by the gate */
        bool null_count;     /* the last count written is not in the counting element yet */
        bool write_high;     /* the next write is the high byte */
        bool read_high;
        uint8_t write_low;
        bool status_latched;
        uint8_t status_latch;
        uint8_t count_latched; /* bytes left to read of it */
        uint16_t count_latch;
        uint32_t count;      /* 1-65536 (10000 BCD) */
        uint32_t next_count; /* modes 2 and 3: takes over at switch_tick; 1 and 5: at the gate's edge; 0: none */
        uint64_t switch_tick;
        uint64_t start;      /* the tick at which count was loaded */
        uint64_t held;       /* ticks that had passed when the gate stopped it (modes 0 and 4) */
};

struct pit {
        struct device dev;
        struct device_host *host;
        struct irq_line irq0;
        struct timer timer;
        uint64_t fire_tick; /* counter 0's next rising edge; 0: none */
        uint8_t speaker;
        bool level; /* of IRQ 0 */
        struct counter counter[COUNTERS];
};

static uint64_t tick_now(const struct pit *pit)
{
        return muldiv64(board_clock_ns(pit->host->clock), BOARD_PIT_HZ, 1000000000);
}

static bool by_gate(const struct counter *c)
{
        return c->mode == 1 || c->mode == 5;
}

static bool cyclic(const struct counter *c)
{
        return c->mode == 2 || c->mode == 3;
}

/* A count that was written while the old one ran takes over at a period's end. */
static void advance(struct counter *c, uint64_t now)
{
        if (cyclic(c) && c->counting && c->next_count && now >= c->switch_tick) {
                c->start = c->switch_tick;
                c->count = c->next_count;
                c->next_count = 0;
                c->null_count = false;
        }
}

/* Ticks since the load. */
static uint64_t elapsed(const struct counter *c, uint64_t now)
{
        return c->counting ? now - c->start : c->held;
}

static bool output(const struct counter *c, uint64_t now)
{
        uint64_t gone = elapsed(c, now);

        if (!c->count)
                return c->mode != 0; /* programmed, not loaded */
        switch (c->mode) {
        case 0:
                return gone >= c->count;
        case 1:
                return !c->counting || gone >= c->count;
        case 2:
                return !c->counting || gone % c->count != c->count - 1;
        case 3:
                return !c->counting || gone % c->count < (c->count + 1) / 2;
        default:
                return !c->counting || gone != c->count;
        }
}

static uint16_t to_bcd(uint32_t value)
{
        return (uint16_t)(value / 1000 % 10 << 12 | value / 100 % 10 << 8 | value / 10 % 10 << 4 | value % 10);
}

static uint32_t from_bcd(uint32_t bcd)
{
        return (bcd >> 12 & 15) * 1000 + (bcd >> 8 & 15) * 100 + (bcd >> 4 & 15) * 10 + (bcd & 15);
}

/* What the counting element shows. */
static uint16_t value(const struct counter *c, uint64_t now)
{
        uint64_t gone = elapsed(c, now), modulus = c->bcd ? 10000 : 65536, left;

        if (!c->count)
                return 0;
        if (c->mode == 2) {
                left = c->count - gone % c->count;
        } else if (c->mode == 3) {
                /* Counts down by two, twice a period (data sheet "Mode 3"). */
                uint64_t in_period = gone % c->count, half = (c->count + 1) / 2;

                left = (c->count & ~1u) - 2 * (in_period < half ? in_period : in_period - half);
        } else {
                /* Goes on after the end, from the highest count down. */
                left = (c->count + modulus - gone % modulus) % modulus;
        }
        return c->bcd ? to_bcd((uint32_t)(left % 10000)) : (uint16_t)left;
}

/* ---- counter 0's interrupt ---- */

/* The tick of OUT's next rising edge after now, 0 when there is none. */
static uint64_t next_edge(const struct counter *c, uint64_t now)
{
        uint64_t gone = now - c->start;

        if (!c->counting || !c->count)
                return 0;
        if (cyclic(c)) {
                uint64_t edge = c->start + (gone / c->count + 1) * c->count;

                return c->next_count && edge > c->switch_tick ? c->switch_tick : edge;
        }
        if (c->mode == 0 || c->mode == 1)
                return gone < c->count ? c->start + c->count : 0;
        return gone <= c->count ? c->start + c->count + 1 : 0;
}

static void drive(struct pit *pit, bool level)
{
        pit->level = level;
        irq_set(&pit->irq0, level);
}

static void arm(struct pit *pit)
{
        if (board_clock_stopped(pit->host->clock))
                return;
        if (pit->fire_tick)
                timer_arm(&pit->timer, board_clock_host(pit->host->clock, muldiv64_up(pit->fire_tick, 1000000000, BOARD_PIT_HZ)));
        else
                timer_cancel(&pit->timer);
}

/* Counter 0 was programmed. */
static void reprogram(struct pit *pit, uint64_t now)
{
        pit->fire_tick = next_edge(&pit->counter[0], now);
        drive(pit, output(&pit->counter[0], now));
        arm(pit);
}

static void timer_fired(void *ctx)
{
        struct pit *pit = ctx;
        uint64_t now;

        pthread_mutex_lock(&pit->dev.lock);
        now = tick_now(pit);
        if (!board_clock_stopped(pit->host->clock) && pit->fire_tick) {
                if (now >= pit->fire_tick) {
                        advance(&pit->counter[0], now);
                        drive(pit, false);
                        drive(pit, true);
                        pit->fire_tick = next_edge(&pit->counter[0], now);
                        if (pit->fire_tick && pit->fire_tick < now + PERIOD_MIN_TICKS && cyclic(&pit->counter[0]))
                                pit->fire_tick = now + PERIOD_MIN_TICKS;
                }
                arm(pit);
        }
        pthread_mutex_unlock(&pit->dev.lock);
}

/* ---- programming ---- */

static void start(struct counter *c, uint32_t count, uint64_t now)
{
        c->count = count;
        c->next_count = 0;
        c->null_count = false;
        c->start = now;
        c->held = 0;
        c->counting = c->gate;
}

/* A whole count has been written. */
static void load(struct counter *c, uint32_t written, uint64_t now)
{
        uint32_t count = c->bcd ? from_bcd(written) : written;

        if (!count)
                count = c->bcd ? 10000 : 65536;
        advance(c, now);
        if (by_gate(c)) {
                c->next_count = count;
                c->null_count = true;
        } else if (cyclic(c) && c->counting && c->count) {
                c->next_count = count;
                c->null_count = true;
                c->switch_tick = c->start + ((now - c->start) / c->count + 1) * c->count;
        } else {
                start(c, count, now);
        }
}

static void write_counter(struct pit *pit, unsigned index, uint8_t byte)
{
        struct counter *c = &pit->counter[index];
        uint64_t now = tick_now(pit);

        switch (c->rw) {
        case RW_LOW:
                load(c, byte, now);
                break;
        case RW_HIGH:
                load(c, (uint32_t)byte << 8, now);
                break;
        case RW_BOTH:
                if (c->write_high) {
                        c->write_high = false;
                        load(c, c->write_low | (uint32_t)byte << 8, now);
                        break;
                }
                c->write_low = byte;
                c->write_high = true;
                /* Mode 0: the first byte stops it, OUT goes low (data sheet "Mode 0"). */
                if (c->mode == 0) {
                        c->counting = false;
                        c->held = 0;
                        c->count = 0;
                }
                break;
        default: /* never programmed */
                return;
        }
        if (index == 0)
                reprogram(pit, now);
}

static uint8_t status(const struct counter *c, uint64_t now)
{
        return (uint8_t)(output(c, now) << 7 | c->null_count << 6 | c->rw << 4 | c->mode << 1 | c->bcd);
}

static void latch_count(struct counter *c, uint64_t now)
{
        if (c->count_latched)
                return; /* until it has been read (data sheet "Counter Latch Command") */
        c->count_latch = value(c, now);
        c->count_latched = c->rw == RW_BOTH ? 2 : 1;
}

static void read_back(struct pit *pit, uint8_t command)
{
        uint64_t now = tick_now(pit);

        for (unsigned i = 0; i < COUNTERS; i++) {
                struct counter *c = &pit->counter[i];

                if (!(command >> (i + 1) & 1))
                        continue;
                advance(c, now);
                if (!(command & 0x20))
                        latch_count(c, now);
                if (!(command & 0x10) && !c->status_latched) {
                        c->status_latched = true;
                        c->status_latch = status(c, now);
                }
        }
}

static void write_command(struct pit *pit, uint8_t command)
{
        unsigned index = command >> 6;
        struct counter *c = &pit->counter[index & 3];
        bool gate;

        if (index == 3) {
                read_back(pit, command);
                return;
        }
        if (!(command >> 4 & 3)) {
                advance(c, tick_now(pit));
                latch_count(c, tick_now(pit));
                return;
        }
        gate = c->gate;
        *c = (struct counter){ .gate = gate, .rw = command >> 4 & 3, .mode = command >> 1 & 7, .bcd = command & 1, .null_count = true };
        if (c->mode > 5)
                c->mode -= 4; /* 6 and 7 are 2 and 3 */
        if (index == 0)
                reprogram(pit, tick_now(pit));
}

static uint8_t read_counter(struct pit *pit, unsigned index)
{
        struct counter *c = &pit->counter[index];
        uint64_t now = tick_now(pit);
        uint16_t count;
        bool high;

        if (c->status_latched) {
                c->status_latched = false;
                return c->status_latch;
        }
        advance(c, now);
        high = c->rw == RW_HIGH || (c->rw == RW_BOTH && c->read_high);
        count = c->count_latched ? c->count_latch : value(c, now);
        if (c->count_latched)
                c->count_latched--;
        if (c->rw == RW_BOTH)
                c->read_high = !c->read_high;
        return (uint8_t)(high ? count >> 8 : count);
}

static void set_gate(struct pit *pit, struct counter *c, bool gate)
{
        uint64_t now = tick_now(pit);

        if (c->gate == gate)
                return;
        advance(c, now);
        c->gate = gate;
        if (!gate) {
                if (!by_gate(c) && c->counting) {
                        c->held = now - c->start;
                        c->counting = false;
                }
        } else if (by_gate(c)) {
                if (c->next_count || c->count)
                        start(c, c->next_count ? c->next_count : c->count, now);
        } else if (cyclic(c)) {
                if (c->count)
                        start(c, c->next_count ? c->next_count : c->count, now); /* the gate's edge reloads */
        } else if (c->count) {
                c->start = now - c->held;
                c->counting = true;
        }
}

static uint8_t read_speaker(struct pit *pit)
{
        uint64_t now = tick_now(pit);
        uint8_t bits = pit->speaker;

        advance(&pit->counter[2], now);
        if (output(&pit->counter[2], now))
                bits |= SPEAKER_OUT;
        if (now / 18 & 1) /* a memory refresh each 15 us */
                bits |= SPEAKER_REFRESH;
        return bits;
}

static uint64_t pit_read(struct device *dev, unsigned region, uint64_t offset, unsigned size_bytes)
{
        struct pit *pit = container_of(dev, struct pit, dev);
        uint64_t bits = 0;

        if (region == REGION_SPEAKER)
                return read_speaker(pit);
        for (unsigned i = 0; i < size_bytes; i++)
                bits |= (uint64_t)(offset + i < COUNTERS ? read_counter(pit, (unsigned)offset + i) : 0) << (8 * i);
        return bits;
}

static void pit_write(struct device *dev, unsigned region, uint64_t offset, uint64_t bits, unsigned size_bytes)
{
        struct pit *pit = container_of(dev, struct pit, dev);

        if (region == REGION_SPEAKER) {
                pit->speaker = bits & SPEAKER_WRITABLE;
                set_gate(pit, &pit->counter[2], bits & SPEAKER_GATE);
                return;
        }
        for (unsigned i = 0; i < size_bytes; i++) {
                if (offset + i < COUNTERS)
                        write_counter(pit, (unsigned)offset + i, (uint8_t)(bits >> (8 * i)));
                else
                        write_command(pit, (uint8_t)(bits >> (8 * i)));
        }
}

/* ---- state ---- */

static void pit_reset(struct device *dev)
{
        struct pit *pit = container_of(dev, struct pit, dev);

        pit->speaker = 0;
        for (unsigned i = 0; i < COUNTERS; i++)
                pit->counter[i] = (struct counter){ .mode = 3, .rw = RW_BOTH, .gate = i != 2, .null_count = true };
        pit->fire_tick = 0;
        timer_cancel(&pit->timer);
        drive(pit, false);
}

static void counter_save(const struct counter *c, struct writer *out)
{
        writer_u8(out, c->mode);
        writer_u8(out, c->rw);
        writer_u8(out, (uint8_t)(c->bcd | c->gate << 1 | c->counting << 2 | c->null_count << 3 | c->write_high << 4 | c->read_high << 5 |
                                 c->status_latched << 6));
        writer_u8(out, c->write_low);
        writer_u8(out, c->status_latch);
        writer_u8(out, c->count_latched);
        writer_le16(out, c->count_latch);
        writer_le32(out, c->count);
        writer_le32(out, c->next_count);
        writer_le64(out, c->switch_tick);
        writer_le64(out, c->start);
        writer_le64(out, c->held);
}

static int counter_load(struct counter *c, struct cursor *in, struct err *err)
{
        uint8_t flags;

        c->mode = cursor_u8(in);
        c->rw = cursor_u8(in);
        flags = cursor_u8(in);
        c->bcd = flags & 0x01;
        c->gate = flags & 0x02;
        c->counting = flags & 0x04;
        c->null_count = flags & 0x08;
        c->write_high = flags & 0x10;
        c->read_high = flags & 0x20;
        c->status_latched = flags & 0x40;
        c->write_low = cursor_u8(in);
        c->status_latch = cursor_u8(in);
        c->count_latched = cursor_u8(in);
        c->count_latch = cursor_le16(in);
        c->count = cursor_le32(in);
        c->next_count = cursor_le32(in);
        c->switch_tick = cursor_le64(in);
        c->start = cursor_le64(in);
        c->held = cursor_le64(in);
        if (c->mode > 5 || c->rw > RW_BOTH || c->count > 65536 || c->next_count > 65536 || c->count_latched > 2)
                return err_set(err, -EBADMSG, "pit counter with mode %u, access %u, count %u is not possible", c->mode, c->rw, c->count);
        return 0;
}

static void pit_save(struct device *dev, struct writer *out)
{
        struct pit *pit = container_of(dev, struct pit, dev);

        writer_u8(out, pit->speaker);
        writer_u8(out, pit->level);
        writer_le64(out, pit->fire_tick);
        for (unsigned i = 0; i < COUNTERS; i++)
                counter_save(&pit->counter[i], out);
}

static int pit_load(struct device *dev, uint16_t version, struct cursor *in, struct err *err)
{
        struct pit *pit = container_of(dev, struct pit, dev);

        bool level;

        pit->speaker = cursor_u8(in) & SPEAKER_WRITABLE;
        level = cursor_u8(in) & 1;
        pit->fire_tick = cursor_le64(in);
        for (unsigned i = 0; i < COUNTERS; i++) {
                int r = counter_load(&pit->counter[i], in, err);

                if (r < 0)
                        return r;
        }
        if (in->bad)
                return err_set(err, -EBADMSG, "pit record is cut");
        drive(pit, level);
        arm(pit);
        return 0;
}

static void pit_quiesce(struct device *dev)
{
        timer_cancel(&container_of(dev, struct pit, dev)->timer);
}

static void pit_resume(struct device *dev)
{
        pthread_mutex_lock(&dev->lock);
        arm(container_of(dev, struct pit, dev));
        pthread_mutex_unlock(&dev->lock);
}

static void pit_free(struct device *dev)
{
        struct pit *pit = container_of(dev, struct pit, dev);

        timer_cancel(&pit->timer);
        bus_remove(pit->host->bus, BUS_PORTS, BOARD_PORT_PIT, dev);
        bus_remove(pit->host->bus, BUS_PORTS, BOARD_PORT_SPEAKER, dev);
        device_done(dev);
        free(pit);
}

static const struct device_ops pit_ops = {
        .name = "pit",
        .read = pit_read, .write = pit_write,
        .reset = pit_reset,
        .version = 1, .save = pit_save, .load = pit_load,
        .quiesce = pit_quiesce, .resume = pit_resume,
        .free = pit_free,
};

int pit_new(struct device_host *host, const struct irq_line *irq0, struct device **dev, struct err *err)
{
        struct pit *pit = calloc(1, sizeof(*pit));
        int r;

        if (!pit)
                return err_nomem(err);
        device_init(&pit->dev, &pit_ops, "pit");
        pit->host = host;
        pit->irq0 = *irq0;
        timer_init(&pit->timer, host->timers, timer_fired, pit);
        pit_reset(&pit->dev);
        r = bus_add(host->bus, BUS_PORTS, BOARD_PORT_PIT, 4, &pit->dev, REGION_PIT, err);
        if (r == 0)
                r = bus_add(host->bus, BUS_PORTS, BOARD_PORT_SPEAKER, 1, &pit->dev, REGION_SPEAKER, err);
        if (r < 0) {
                pit_free(&pit->dev);
                return r;
        }
        *dev = &pit->dev;
        return 0;
}
