/* MC146818 by its data sheet: forms of the time, setting it, holding it, alarm, flags, memory. */
#include <time.h>

#include "device/rtc.h"
#include "device/test-board.h"

struct setup {
        struct bench *b;
        struct device *rtc;
};

static struct setup *setup(void)
{
        struct setup *s = calloc(1, sizeof(*s));
        struct irq_line irq;

        s->b = bench_new();
        irq = bench_line(s->b, 8);
        assert_int_equal(rtc_new(&s->b->host, &irq, &s->rtc, &s->b->err), 0);
        return s;
}

static void done(struct setup *s)
{
        device_end(s->rtc);
        bench_free(s->b);
        free(s);
}

static uint8_t get(struct setup *s, uint8_t reg)
{
        outb(s->b, 0x70, reg);
        return inb(s->b, 0x71);
}

static void put(struct setup *s, uint8_t reg, uint8_t value)
{
        outb(s->b, 0x70, reg);
        outb(s->b, 0x71, value);
}

static int bcd(uint8_t value)
{
        return (value >> 4) * 10 + (value & 15);
}

/* The time as a careful driver reads it: twice the same. */
static time_t read_time(struct setup *s)
{
        struct tm tm;

        do {
                tm = (struct tm){
                        .tm_sec = bcd(get(s, 0)), .tm_min = bcd(get(s, 2)), .tm_hour = bcd(get(s, 4)), .tm_mday = bcd(get(s, 7)),
                        .tm_mon = bcd(get(s, 8)) - 1, .tm_year = bcd(get(s, 9)) + 100 * bcd(get(s, 0x32)) - 1900,
                };
        } while (tm.tm_sec != bcd(get(s, 0)));
        return timegm(&tm);
}

static void set_time(struct setup *s, int year, int month, int day, int hour, int minute, int second)
{
        static const uint8_t regs[] = { 0x32, 9, 8, 7, 4, 2, 0 };
        const int values[] = { year / 100, year % 100, month, day, hour, minute, second };

        put(s, 0x0b, get(s, 0x0b) | 0x80);
        for (unsigned i = 0; i < ARRAY_SIZE(regs); i++)
                put(s, regs[i], (uint8_t)(values[i] / 10 << 4 | values[i] % 10));
        put(s, 0x0b, get(s, 0x0b) & 0x7f);
}

/* The clock of the device, to the second. time() is not: it reads the last tick and may be a few milliseconds behind. */
static time_t host_time(void)
{
        struct timespec now;

        assert_int_equal(clock_gettime(CLOCK_REALTIME, &now), 0);
        return now.tv_sec;
}

static void test_now(void **state)
{
        struct setup *s = setup();
        time_t before = host_time(), seen = read_time(s), after = host_time();

        assert_in_range(seen, before, after);
        assert_int_equal(get(s, 0x0a) & 0x7f, 0x26);
        assert_int_equal(get(s, 0x0b), 0x02);
        assert_int_equal(get(s, 0x0d), 0x80);
        assert_int_equal(inb(s->b, 0x70), 0xff);
        put(s, 0x0d, 0);
        assert_int_equal(get(s, 0x0d), 0x80);
        done(s);
}

static void test_set(void **state)
{
        struct setup *s = setup();
        struct tm tm = { .tm_year = 1999 - 1900, .tm_mon = 11, .tm_mday = 31, .tm_hour = 23, .tm_min = 59, .tm_sec = 58 };
        time_t when = timegm(&tm);

        set_time(s, 1999, 12, 31, 23, 59, 58);
        assert_in_range(read_time(s), when, when + 4);
        assert_int_equal(get(s, 6), 6); /* a Friday */
        /* Held while SET is on. */
        put(s, 0x0b, 0x82);
        put(s, 0, 0x07);
        assert_int_equal(get(s, 0), 0x07);
        assert_int_equal(get(s, 0x0a) & 0x80, 0);
        put(s, 0x0b, 0x02);
        /* Written without holding it. */
        put(s, 0x32, 0x20);
        put(s, 9, 0x38);
        assert_int_equal(get(s, 9), 0x38);
        assert_int_equal(get(s, 0x32), 0x20);
        /* It survives a reset. */
        s->rtc->ops->reset(s->rtc);
        assert_int_equal(get(s, 9), 0x38);
        done(s);
}

/* The registers can say years that nanoseconds in 64 bits do not carry, held or running. */
static void test_far_years(void **state)
{
        struct setup *s = setup();

        put(s, 0x0b, 0x06); /* binary: centuries up to 255 */
        put(s, 0x32, 255);
        assert_int_equal(get(s, 0x32), 21);
        assert_int_equal(get(s, 9), 99);
        put(s, 0x0b, 0x86);
        put(s, 0x32, 255);
        put(s, 9, 255);
        assert_int_equal(get(s, 0x32), 255);
        put(s, 0x0b, 0x06);
        assert_int_equal(get(s, 0x32), 21);
        assert_int_equal(get(s, 9), 99);
        put(s, 0x32, 0);
        assert_int_equal(get(s, 0x32), 19);
        assert_int_equal(get(s, 9), 0);
        put(s, 0x0b, 0x86); /* held, so that two records are alike */
        check_record(s->rtc);
        done(s);
}

static void test_forms(void **state)
{
        struct setup *s = setup();
        static const struct { int hour; uint8_t h12, h24; } hours[] = {
                { 0, 0x12, 0x00 }, { 1, 0x01, 0x01 }, { 11, 0x11, 0x11 }, { 12, 0x92, 0x12 }, { 13, 0x81, 0x13 }, { 23, 0x91, 0x23 },
        };

        for (unsigned i = 0; i < ARRAY_SIZE(hours); i++) {
                put(s, 0x0b, 0x02);
                set_time(s, 2026, 11, 21, hours[i].hour, 30, 15);
                assert_int_equal(get(s, 4), hours[i].h24);
                put(s, 0x0b, 0x00);
                assert_int_equal(get(s, 4), hours[i].h12);
                put(s, 4, hours[i].h12);
                assert_int_equal(get(s, 4), hours[i].h12);
                put(s, 0x0b, 0x06);
                assert_int_equal(get(s, 4), hours[i].hour);
                assert_int_equal(get(s, 9), 26);
                assert_int_equal(get(s, 0x32), 20);
                put(s, 0x0b, 0x04);
                assert_int_equal(get(s, 4), (hours[i].hour % 12 ? hours[i].hour % 12 : 12) | (hours[i].hour >= 12 ? 0x80 : 0));
        }
        done(s);
}

/* How long after the divider's reset the first update comes. */
static uint64_t first_update(struct setup *s)
{
        uint64_t start;

        put(s, 0x0a, 0x66);
        set_time(s, 2030, 1, 1, 0, 0, 10);
        assert_int_equal(get(s, 0), 0x10);
        put(s, 0x0a, 0x26);
        start = monotonic_ns();
        while (get(s, 0) == 0x10)
                assert_true(monotonic_ns() - start < 2000000000);
        assert_int_equal(get(s, 0), 0x11);
        return monotonic_ns() - start;
}

/* Half a second; a host that is busy may see it late, but not each time. */
static void test_divider(void **state)
{
        struct setup *s = setup();
        uint64_t took = 0;

        for (unsigned i = 0; i < 5 && (took < 490000000 || took > 700000000); i++) {
                took = first_update(s);
                assert_true(took >= 490000000);
        }
        assert_in_range(took, 490000000, 700000000);
        done(s);
}

static void test_update_and_alarm(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        get(s, 0x0c);
        put(s, 0x0b, 0x12);
        run_until(b, &b->rises[8], 1);
        assert_int_equal(get(s, 0x0c) & 0xb0, 0x90);
        assert_false(b->wire[8]);
        assert_int_equal(get(s, 0x0c) & 0xb0, 0);
        put(s, 0x0b, 0x02);
        /* One second from now, any hour. */
        put(s, 0x0a, 0x66);
        set_time(s, 2026, 3, 31, 23, 59, 59);
        put(s, 1, 0x00);
        put(s, 3, 0x00);
        put(s, 5, 0xff);
        put(s, 0x0a, 0x20);
        put(s, 0x0b, 0x22);
        get(s, 0x0c);
        run_until(b, &b->rises[8], 2);
        assert_int_equal(get(s, 0x0c) & 0xb0, 0xb0); /* alarm and update */
        assert_int_equal(get(s, 8), 4);
        assert_int_equal(get(s, 7), 1);
        /* An alarm that never comes arms nothing. */
        put(s, 1, 0x77);
        put(s, 0x0b, 0x02);
        put(s, 0x0b, 0x22);
        done(s);
}

static void test_periodic(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;
        uint64_t start = monotonic_ns();

        put(s, 0x0a, 0x28); /* 256 Hz: 3.9 ms */
        get(s, 0x0c);
        put(s, 0x0b, 0x42);
        for (unsigned i = 1; i <= 4; i++) {
                run_until(b, &b->rises[8], i);
                assert_int_equal(get(s, 0x0c) & 0xc0, 0xc0);
        }
        assert_true(monotonic_ns() - start >= 3 * 3900000);
        done(s);
}

static void test_memory_and_state(void **state)
{
        struct setup *s = setup();
        time_t before;

        for (unsigned i = 0x0e; i < 0x80; i++) {
                if (i != 0x32)
                        put(s, (uint8_t)i, (uint8_t)(i * 3));
        }
        assert_int_equal(get(s, 0x8f), 0x0f * 3); /* bit 7 is the NMI mask */
        rtc_set_cmos(s->rtc, 0x34, 0xab);
        rtc_set_cmos(s->rtc, 0x0a, 0xff);
        rtc_set_cmos(s->rtc, 1000, 0xff);
        assert_int_equal(get(s, 0x34), 0xab);
        set_time(s, 2001, 2, 3, 4, 5, 6);
        put(s, 1, 0x55);
        before = read_time(s);
        get(s, 0x0c);
        put(s, 0x0b, 0x82); /* held, so that two records are alike */
        outb(s->b, 0x70, 0x40);
        check_record(s->rtc);
        assert_int_equal(inb(s->b, 0x71), 0xc0);
        assert_int_equal(get(s, 0x0b), 0x82);
        put(s, 0x0b, 0x02);
        assert_in_range(read_time(s), before, before + 5);
        assert_int_equal(get(s, 1), 0x55);
        done(s);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_now),
                cmocka_unit_test(test_set),
                cmocka_unit_test(test_far_years),
                cmocka_unit_test(test_forms),
                cmocka_unit_test(test_divider),
                cmocka_unit_test(test_update_and_alarm),
                cmocka_unit_test(test_periodic),
                cmocka_unit_test(test_memory_and_state),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
