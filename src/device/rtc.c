/*
 * MC146818 real-time clock with 128 bytes of CMOS memory.
 *
 * Two ports: 0x70 selects a register, 0x71 reads or writes it. Time is kept as an offset to the host's CLOCK_REALTIME: a battery
 * keeps it going while the machine is paused, and nothing ticks while nobody looks. The flags of register C follow from what has
 * gone by since they were last read; only an enabled interrupt arms a timer, for the next moment that would set its flag.
 *
 *   running ──SET in B, or the divider held in reset by A──▶ held (registers keep what is written) ──▶ running from there
 *
 * After the divider's reset ends the first update comes half a second later (data sheet "DV2, DV1, DV0"), which is what
 * programs that set the time to the fraction of a second rely on.
 *
 * Limits: no square wave, no daylight saving; the periodic interrupt fires at most at 1024 Hz; years 1900 to 2199.
 *
 * Source: Motorola MC146818A data sheet; ACPI 6.5 §4.8.2.4 (century at 0x32, named by FADT); alarm values 0xc0-0xff: any.
 */
#include "device/rtc.h"

#include <errno.h>
#include <time.h>

#include "device/board.h"

#define RTC_BYTES 128
#define NS_PER_S INT64_C(1000000000)
#define DAY_S 86400
#define UPDATE_WARNING_NS 244000 /* UIP rises this long before an update */
#define PERIOD_MIN_NS (NS_PER_S / 1024)
#define FIRST_S (-INT64_C(2208988800)) /* 1900-01-01 */
#define LAST_S INT64_C(7258118399)     /* 2199-12-31 */

enum {
        REG_SECONDS, REG_SECONDS_ALARM, REG_MINUTES, REG_MINUTES_ALARM, REG_HOURS, REG_HOURS_ALARM, REG_WEEKDAY, REG_DAY, REG_MONTH,
        REG_YEAR, REG_A, REG_B, REG_C, REG_D, REG_CENTURY = 0x32,
};
enum { A_UIP = 0x80, A_DIVIDER = 0x70, A_RATE = 0x0f, A_RESET = 0x60, A_32KHZ = 0x20 };
enum { B_SET = 0x80, B_PIE = 0x40, B_AIE = 0x20, B_UIE = 0x10, B_BINARY = 0x04, B_24H = 0x02 };
enum { C_IRQF = 0x80, C_PF = 0x40, C_AF = 0x20, C_UF = 0x10, C_FLAGS = 0x70 };
enum { D_VALID = 0x80, PM = 0x80, ALARM_ANY = 0xc0 };

struct rtc {
        struct device dev;
        struct device_host *host;
        struct irq_line irq;
        struct timer timer;
        int64_t offset_ns;  /* guest time - host time, while it runs */
        int64_t held_ns;    /* guest time while it is held: its fraction, mostly */
        int64_t looked_ns;  /* guest time up to which register C's flags are set */
        uint8_t index;      /* last value written to port 0x70, bits 0-6 */
        bool irq_level;
        uint8_t cmos[RTC_BYTES];
};

static int64_t host_ns(void)
{
        struct timespec now;

        clock_gettime(CLOCK_REALTIME, &now);
        return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static bool held(const struct rtc *rtc)
{
        return (rtc->cmos[REG_B] & B_SET) || (rtc->cmos[REG_A] & A_RESET) == A_RESET;
}

static int64_t guest_ns(const struct rtc *rtc)
{
        return held(rtc) ? rtc->held_ns : host_ns() + rtc->offset_ns;
}

static int64_t floor_s(int64_t ns)
{
        return ns / NS_PER_S - (ns % NS_PER_S < 0);
}

/* ---- the registers' forms ---- */

static uint8_t encode(const struct rtc *rtc, int value)
{
        return (uint8_t)(rtc->cmos[REG_B] & B_BINARY ? value : value / 10 << 4 | value % 10);
}

static int decode(const struct rtc *rtc, uint8_t value)
{
        return rtc->cmos[REG_B] & B_BINARY ? value : (value >> 4) * 10 + (value & 15);
}

static uint8_t encode_hour(const struct rtc *rtc, int hour)
{
        if (rtc->cmos[REG_B] & B_24H)
                return encode(rtc, hour);
        return encode(rtc, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? PM : 0);
}

static int decode_hour(const struct rtc *rtc, uint8_t value)
{
        if (rtc->cmos[REG_B] & B_24H)
                return decode(rtc, value);
        return decode(rtc, value & (uint8_t)~PM) % 12 + (value & PM ? 12 : 0);
}

/* Guest time into the ten registers. */
static void registers_from_time(struct rtc *rtc, int64_t ns)
{
        time_t seconds = (time_t)floor_s(ns);
        struct tm tm;

        if (!gmtime_r(&seconds, &tm))
                return;
        rtc->cmos[REG_SECONDS] = encode(rtc, tm.tm_sec);
        rtc->cmos[REG_MINUTES] = encode(rtc, tm.tm_min);
        rtc->cmos[REG_HOURS] = encode_hour(rtc, tm.tm_hour);
        rtc->cmos[REG_WEEKDAY] = encode(rtc, tm.tm_wday + 1);
        rtc->cmos[REG_DAY] = encode(rtc, tm.tm_mday);
        rtc->cmos[REG_MONTH] = encode(rtc, tm.tm_mon + 1);
        rtc->cmos[REG_YEAR] = encode(rtc, (tm.tm_year + 1900) % 100);
        rtc->cmos[REG_CENTURY] = encode(rtc, (tm.tm_year + 1900) / 100 % 100);
}

/*
 * What the registers say, in seconds; impossible values are carried over as timegm() does. They can say years up to 99 999: what is
 * outside of those that nanoseconds in 64 bits carry becomes the nearest that is not.
 */
static int64_t seconds_from_registers(const struct rtc *rtc)
{
        struct tm tm = {
                .tm_sec = decode(rtc, rtc->cmos[REG_SECONDS]),
                .tm_min = decode(rtc, rtc->cmos[REG_MINUTES]),
                .tm_hour = decode_hour(rtc, rtc->cmos[REG_HOURS]),
                .tm_mday = decode(rtc, rtc->cmos[REG_DAY]),
                .tm_mon = decode(rtc, rtc->cmos[REG_MONTH]) - 1,
                .tm_year = decode(rtc, rtc->cmos[REG_CENTURY]) * 100 + decode(rtc, rtc->cmos[REG_YEAR]) - 1900,
        };

        return MIN(MAX((int64_t)timegm(&tm), FIRST_S), LAST_S);
}

/* ---- flags and the interrupt ---- */

/* Length of the periodic interrupt in ns, 0 when off. Data sheet table 5. */
static int64_t period_ns(const struct rtc *rtc)
{
        unsigned rate = rtc->cmos[REG_A] & A_RATE;

        if (!rate || (rtc->cmos[REG_A] & A_DIVIDER) != A_32KHZ)
                return 0;
        if (rate < 3)
                rate += 7;
        return MAX((NS_PER_S << (rate - 1)) / 32768, PERIOD_MIN_NS);
}

static bool alarm_field(const struct rtc *rtc, unsigned reg, int value)
{
        uint8_t wanted = rtc->cmos[reg];

        if ((wanted & ALARM_ANY) == ALARM_ANY)
                return true;
        return (reg == REG_HOURS_ALARM ? decode_hour(rtc, wanted) : decode(rtc, wanted)) == value;
}

/* Else a search for it would look at each second of a day. */
static bool alarm_possible(const struct rtc *rtc, unsigned reg, int limit)
{
        for (int value = 0; value < limit; value++) {
                if (alarm_field(rtc, reg, value))
                        return true;
        }
        return false;
}

/* The first second of guest time after `after` at which the alarm is due, within a day; -1 when it never is. */
static int64_t next_alarm(const struct rtc *rtc, int64_t after)
{
        int64_t t = after + 1, last = after + DAY_S;

        if (!alarm_possible(rtc, REG_SECONDS_ALARM, 60) || !alarm_possible(rtc, REG_MINUTES_ALARM, 60) ||
            !alarm_possible(rtc, REG_HOURS_ALARM, 24))
                return -1;
        while (t <= last) {
                int of_day = (int)((t % DAY_S + DAY_S) % DAY_S);

                if (!alarm_field(rtc, REG_HOURS_ALARM, of_day / 3600))
                        t += 3600 - of_day % 3600;
                else if (!alarm_field(rtc, REG_MINUTES_ALARM, of_day / 60 % 60))
                        t += 60 - of_day % 60;
                else if (!alarm_field(rtc, REG_SECONDS_ALARM, of_day % 60))
                        t++;
                else
                        return t;
        }
        return -1;
}

/* Sets the flags of what has gone by. */
static void look(struct rtc *rtc)
{
        int64_t now = guest_ns(rtc), before = rtc->looked_ns, period = period_ns(rtc), alarm;

        if (held(rtc) || now <= before) {
                rtc->looked_ns = now;
                return;
        }
        rtc->looked_ns = now;
        if (period && now / period != before / period)
                rtc->cmos[REG_C] |= C_PF;
        if (floor_s(now) == floor_s(before))
                return;
        rtc->cmos[REG_C] |= C_UF;
        alarm = next_alarm(rtc, floor_s(before));
        if (alarm >= 0 && alarm <= floor_s(now))
                rtc->cmos[REG_C] |= C_AF;
}

/* Guest time of the next moment that an enabled interrupt waits for; INT64_MAX when none does. */
static int64_t next_event(const struct rtc *rtc, int64_t now)
{
        uint8_t waiting = rtc->cmos[REG_B] & (uint8_t)~rtc->cmos[REG_C];
        int64_t period = period_ns(rtc), next = INT64_MAX, alarm;

        if ((waiting & B_PIE) && period)
                next = (now / period + 1) * period;
        if (waiting & B_UIE)
                next = MIN(next, (floor_s(now) + 1) * NS_PER_S);
        if (waiting & B_AIE) {
                alarm = next_alarm(rtc, floor_s(now));
                if (alarm >= 0)
                        next = MIN(next, alarm * NS_PER_S);
        }
        return next;
}

static void update(struct rtc *rtc)
{
        int64_t now, next;
        bool level;

        look(rtc);
        level = rtc->cmos[REG_C] & rtc->cmos[REG_B] & C_FLAGS;
        rtc->cmos[REG_C] = (rtc->cmos[REG_C] & C_FLAGS) | (level ? C_IRQF : 0);
        if (level != rtc->irq_level) {
                rtc->irq_level = level;
                irq_set(&rtc->irq, level);
        }
        now = guest_ns(rtc);
        next = held(rtc) || board_clock_stopped(rtc->host->clock) ? INT64_MAX : next_event(rtc, now);
        if (next == INT64_MAX)
                timer_cancel(&rtc->timer);
        else
                timer_arm(&rtc->timer, monotonic_ns() + (uint64_t)(next - now));
}

static void timer_fired(void *ctx)
{
        struct rtc *rtc = ctx;

        pthread_mutex_lock(&rtc->dev.lock);
        update(rtc);
        pthread_mutex_unlock(&rtc->dev.lock);
}

/* ---- the registers ---- */

/* A write of A or B may hold the time or let it run. */
static void write_control(struct rtc *rtc, unsigned reg, uint8_t value)
{
        bool was_held = held(rtc), was_reset = (rtc->cmos[REG_A] & A_RESET) == A_RESET;
        int64_t now = guest_ns(rtc), fraction = now - floor_s(now) * NS_PER_S;

        look(rtc);
        if (!was_held)
                registers_from_time(rtc, now);
        rtc->cmos[reg] = reg == REG_A ? value & (uint8_t)~A_UIP : value;
        /* The data sheet asks to write all registers anew when the form changes; SET clears UIE. */
        if (reg == REG_B && (value & B_SET))
                rtc->cmos[REG_B] &= (uint8_t)~B_UIE;
        if (was_reset && (rtc->cmos[REG_A] & A_RESET) != A_RESET)
                fraction = NS_PER_S / 2;
        rtc->held_ns = was_held ? seconds_from_registers(rtc) * NS_PER_S + fraction : now;
        if (was_held && !held(rtc))
                rtc->offset_ns = rtc->held_ns - host_ns();
        rtc->looked_ns = guest_ns(rtc);
}

static void write_time(struct rtc *rtc, unsigned reg, uint8_t value)
{
        int64_t now = guest_ns(rtc), fraction = now - floor_s(now) * NS_PER_S;

        if (held(rtc)) {
                rtc->cmos[reg] = value;
                return;
        }
        look(rtc);
        registers_from_time(rtc, now);
        rtc->cmos[reg] = value;
        rtc->offset_ns = seconds_from_registers(rtc) * NS_PER_S + fraction - host_ns();
        rtc->looked_ns = guest_ns(rtc);
}

static uint8_t read_data(struct rtc *rtc)
{
        int64_t now = guest_ns(rtc), fraction = now - floor_s(now) * NS_PER_S;
        uint8_t value;

        if (!held(rtc))
                registers_from_time(rtc, now);
        value = rtc->cmos[rtc->index];
        if (rtc->index == REG_A && !held(rtc) && fraction >= NS_PER_S - UPDATE_WARNING_NS)
                value |= A_UIP;
        if (rtc->index == REG_C) {
                update(rtc);
                value = rtc->cmos[REG_C];
                rtc->cmos[REG_C] = 0;
                update(rtc);
        }
        return value;
}

static void write_data(struct rtc *rtc, uint8_t value)
{
        switch (rtc->index) {
        case REG_SECONDS:
        case REG_MINUTES:
        case REG_HOURS:
        case REG_WEEKDAY:
        case REG_DAY:
        case REG_MONTH:
        case REG_YEAR:
        case REG_CENTURY:
                write_time(rtc, rtc->index, value);
                break;
        case REG_A:
        case REG_B:
                write_control(rtc, rtc->index, value);
                break;
        case REG_C:
        case REG_D:
                return;
        default:
                rtc->cmos[rtc->index] = value;
                break;
        }
        update(rtc);
}

static uint8_t rtc_register_read(struct device *dev, uint64_t offset)
{
        struct rtc *rtc = container_of(dev, struct rtc, dev);

        return offset & 1 ? read_data(rtc) : 0xff;
}

static void rtc_register_write(struct device *dev, uint64_t offset, uint8_t value)
{
        struct rtc *rtc = container_of(dev, struct rtc, dev);

        if (offset & 1)
                write_data(rtc, value);
        else
                rtc->index = value & (RTC_BYTES - 1);
}

static uint64_t rtc_read(struct device *dev, unsigned region, uint64_t offset, unsigned size_bytes)
{
        return device_read_bytes(dev, offset, size_bytes, rtc_register_read);
}

static void rtc_write(struct device *dev, unsigned region, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        device_write_bytes(dev, offset, value, size_bytes, rtc_register_write);
}

void rtc_set_cmos(struct device *dev, unsigned index, uint8_t value)
{
        struct rtc *rtc = container_of(dev, struct rtc, dev);

        pthread_mutex_lock(&dev->lock);
        if (index > REG_D && index < RTC_BYTES && index != REG_CENTURY)
                rtc->cmos[index] = value;
        pthread_mutex_unlock(&dev->lock);
}

/* A reset keeps the time and the memory; interrupts are off (data sheet "RESET"). */
static void rtc_reset(struct device *dev)
{
        struct rtc *rtc = container_of(dev, struct rtc, dev);

        /* Whoever held it is gone: firmware lets it run. */
        if (held(rtc))
                write_control(rtc, REG_B, rtc->cmos[REG_B] & (uint8_t)~B_SET);
        write_control(rtc, REG_A, A_32KHZ | 6);
        rtc->cmos[REG_B] = (rtc->cmos[REG_B] & (B_BINARY | B_24H));
        rtc->cmos[REG_C] = 0;
        rtc->cmos[REG_D] = D_VALID;
        rtc->index = 0;
        update(rtc);
}

static void rtc_save(struct device *dev, struct writer *out)
{
        struct rtc *rtc = container_of(dev, struct rtc, dev);

        look(rtc);
        writer_le64(out, (uint64_t)rtc->offset_ns);
        writer_le64(out, (uint64_t)rtc->held_ns);
        writer_le64(out, (uint64_t)rtc->looked_ns);
        writer_u8(out, rtc->index);
        writer_put(out, rtc->cmos, sizeof(rtc->cmos));
}

/* Times that arithmetic in ns can carry. */
static bool sane(int64_t ns)
{
        return ns > -INT64_C(7500000000) * NS_PER_S && ns < INT64_C(7500000000) * NS_PER_S;
}

static bool sane_offset(int64_t ns)
{
        int64_t guest;

        return !__builtin_add_overflow(host_ns(), ns, &guest) && sane(guest);
}

static int rtc_load(struct device *dev, uint16_t version, struct cursor *in, struct err *err)
{
        struct rtc *rtc = container_of(dev, struct rtc, dev);
        int64_t offset_ns = (int64_t)cursor_le64(in), held_ns = (int64_t)cursor_le64(in), looked_ns = (int64_t)cursor_le64(in);
        uint8_t index = cursor_u8(in);

        if (!sane_offset(offset_ns) || !sane(held_ns) || !sane(looked_ns))
                return err_set(err, -EBADMSG, "rtc offset of %lld ns is not possible", (long long)offset_ns);
        if (index >= RTC_BYTES)
                return err_set(err, -EBADMSG, "rtc index %u is past the last register %d", index, RTC_BYTES - 1);
        if (cursor_get(in, rtc->cmos, sizeof(rtc->cmos)) < 0)
                return err_set(err, -EBADMSG, "rtc record is cut");
        rtc->offset_ns = offset_ns;
        rtc->held_ns = held_ns;
        rtc->looked_ns = looked_ns;
        rtc->index = index;
        rtc->cmos[REG_A] &= (uint8_t)~A_UIP;
        rtc->cmos[REG_C] &= C_FLAGS;
        rtc->cmos[REG_D] = D_VALID;
        /* The wire is driven anew, without an edge that was not there. */
        look(rtc);
        rtc->irq_level = !(rtc->cmos[REG_C] & rtc->cmos[REG_B] & C_FLAGS);
        update(rtc);
        return 0;
}

static void rtc_quiesce(struct device *dev)
{
        timer_cancel(&container_of(dev, struct rtc, dev)->timer);
}

static void rtc_resume(struct device *dev)
{
        timer_fired(container_of(dev, struct rtc, dev));
}

static void rtc_free(struct device *dev)
{
        struct rtc *rtc = container_of(dev, struct rtc, dev);

        timer_cancel(&rtc->timer);
        bus_remove(rtc->host->bus, BUS_PORTS, BOARD_PORT_RTC, dev);
        device_done(dev);
        free(rtc);
}

static const struct device_ops rtc_ops = {
        .name = "rtc",
        .read = rtc_read, .write = rtc_write,
        .reset = rtc_reset,
        .version = 1, .save = rtc_save, .load = rtc_load,
        .quiesce = rtc_quiesce, .resume = rtc_resume,
        .free = rtc_free,
};

int rtc_new(struct device_host *host, const struct irq_line *irq8, struct device **dev, struct err *err)
{
        struct rtc *rtc = calloc(1, sizeof(*rtc));
        int r;

        if (!rtc)
                return err_nomem(err);
        device_init(&rtc->dev, &rtc_ops, "rtc");
        rtc->host = host;
        rtc->irq = *irq8;
        timer_init(&rtc->timer, host->timers, timer_fired, rtc);
        rtc->cmos[REG_A] = A_32KHZ | 6;
        rtc->cmos[REG_B] = B_24H;
        rtc->looked_ns = guest_ns(rtc);
        rtc_reset(&rtc->dev);
        r = bus_add(host->bus, BUS_PORTS, BOARD_PORT_RTC, 2, &rtc->dev, 0, err);
        if (r < 0) {
                rtc_free(&rtc->dev);
                return r;
        }
        *dev = &rtc->dev;
        return 0;
}
