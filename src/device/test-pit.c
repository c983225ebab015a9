/* 8254 by its data sheet: access, latches, read-back, the six modes, BCD, the gate, and counter 0's interrupt. */
#include "device/pit.h"
#include "device/test-board.h"

struct setup {
        struct bench *b;
        struct device *pit;
};

static struct setup *setup(void)
{
        struct setup *s = calloc(1, sizeof(*s));
        struct irq_line irq;

        s->b = bench_new();
        at(s->b, 0);
        irq = bench_line(s->b, 0);
        assert_int_equal(pit_new(&s->b->host, &irq, &s->pit, &s->b->err), 0);
        return s;
}

static void done(struct setup *s)
{
        device_end(s->pit);
        bench_free(s->b);
        free(s);
}

/* The guest's clock at the middle of a tick. */
static void tick(struct setup *s, uint64_t ticks)
{
        at(s->b, muldiv64_up(ticks, 1000000000, BOARD_PIT_HZ) + 400);
}

static void program(struct setup *s, unsigned counter, uint8_t mode, uint16_t count)
{
        outb(s->b, 0x43, (uint8_t)(counter << 6 | 0x30 | mode << 1));
        outb(s->b, (uint16_t)(0x40 + counter), (uint8_t)count);
        outb(s->b, (uint16_t)(0x40 + counter), (uint8_t)(count >> 8));
}

static uint16_t count(struct setup *s, unsigned counter)
{
        uint8_t low;

        outb(s->b, 0x43, (uint8_t)(counter << 6));
        low = inb(s->b, (uint16_t)(0x40 + counter));
        return (uint16_t)(low | inb(s->b, (uint16_t)(0x40 + counter)) << 8);
}

static uint8_t status(struct setup *s, unsigned counter)
{
        outb(s->b, 0x43, (uint8_t)(0xe0 | 2u << counter));
        return inb(s->b, (uint16_t)(0x40 + counter));
}

static bool out2(struct setup *s)
{
        return inb(s->b, 0x61) & 0x20;
}

static void test_mode0(void **state)
{
        struct setup *s = setup();

        outb(s->b, 0x61, 1);
        tick(s, 100);
        program(s, 2, 0, 1000);
        assert_false(out2(s));
        assert_int_equal(count(s, 2), 1000);
        tick(s, 400);
        assert_int_equal(count(s, 2), 700);
        tick(s, 1099);
        assert_false(out2(s));
        tick(s, 1100);
        assert_true(out2(s));
        assert_int_equal(count(s, 2), 0);
        tick(s, 1101);
        assert_int_equal(count(s, 2), 0xffff); /* goes on */
        assert_true(out2(s));
        /* The gate holds it. */
        program(s, 2, 0, 1000);
        tick(s, 1301);
        outb(s->b, 0x61, 0);
        tick(s, 5000);
        assert_int_equal(count(s, 2), 800);
        outb(s->b, 0x61, 1);
        tick(s, 5100);
        assert_int_equal(count(s, 2), 700);
        /* The first byte of two stops it. */
        outb(s->b, 0x42, 0x10);
        tick(s, 9000);
        assert_false(out2(s));
        outb(s->b, 0x42, 0x00);
        tick(s, 9016);
        assert_true(out2(s));
        done(s);
}

static void test_mode1(void **state)
{
        struct setup *s = setup();

        tick(s, 0);
        program(s, 2, 1, 100);
        assert_true(out2(s));
        tick(s, 500);
        outb(s->b, 0x61, 1);
        assert_false(out2(s));
        tick(s, 599);
        assert_false(out2(s));
        tick(s, 600);
        assert_true(out2(s));
        /* Triggered again while it runs: anew. */
        outb(s->b, 0x61, 0);
        outb(s->b, 0x61, 1);
        tick(s, 650);
        outb(s->b, 0x61, 0);
        outb(s->b, 0x61, 1);
        tick(s, 749);
        assert_false(out2(s));
        tick(s, 750);
        assert_true(out2(s));
        done(s);
}

static void test_mode2(void **state)
{
        struct setup *s = setup();

        outb(s->b, 0x61, 1);
        tick(s, 0);
        program(s, 2, 2, 10);
        for (unsigned i = 0; i < 30; i++) {
                tick(s, i);
                assert_int_equal(out2(s), i % 10 != 9);
                assert_int_equal(count(s, 2), 10 - i % 10);
        }
        /* A new count waits for the period's end. */
        tick(s, 33);
        outb(s->b, 0x42, 100);
        outb(s->b, 0x42, 0);
        assert_int_equal(status(s, 2) & 0x40, 0x40);
        assert_int_equal(count(s, 2), 7);
        tick(s, 40);
        assert_int_equal(count(s, 2), 100);
        assert_int_equal(status(s, 2) & 0x40, 0);
        tick(s, 65);
        assert_int_equal(count(s, 2), 75);
        /* The gate: low is high OUT, its edge starts anew. */
        outb(s->b, 0x61, 0);
        assert_true(out2(s));
        tick(s, 200);
        outb(s->b, 0x61, 1);
        tick(s, 201);
        assert_int_equal(count(s, 2), 99);
        done(s);
}

static void test_mode3(void **state)
{
        struct setup *s = setup();

        outb(s->b, 0x61, 1);
        tick(s, 0);
        program(s, 2, 3, 10);
        for (unsigned i = 0; i < 30; i++) {
                tick(s, i);
                assert_int_equal(out2(s), i % 10 < 5);
                assert_int_equal(count(s, 2), 10 - 2 * (i % 5));
        }
        outb(s->b, 0x43, 0xb6);
        tick(s, 100);
        outb(s->b, 0x42, 7);
        outb(s->b, 0x42, 0);
        for (unsigned i = 0; i < 21; i++) {
                tick(s, 100 + i);
                assert_int_equal(out2(s), i % 7 < 4);
                assert_int_equal(count(s, 2) & 1, 0);
        }
        /* 0 is 65536. */
        tick(s, 200);
        program(s, 2, 7, 0);
        tick(s, 200 + 32767);
        assert_true(out2(s));
        tick(s, 200 + 32768);
        assert_false(out2(s));
        assert_int_equal(status(s, 2), 0x36);
        done(s);
}

static void test_mode4_and_5(void **state)
{
        struct setup *s = setup();

        outb(s->b, 0x61, 1);
        tick(s, 0);
        program(s, 2, 4, 50);
        tick(s, 49);
        assert_true(out2(s));
        tick(s, 50);
        assert_false(out2(s));
        tick(s, 51);
        assert_true(out2(s));
        outb(s->b, 0x61, 0);
        program(s, 2, 5, 50);
        tick(s, 200);
        assert_true(out2(s));
        outb(s->b, 0x61, 1);
        tick(s, 250);
        assert_false(out2(s));
        tick(s, 251);
        assert_true(out2(s));
        done(s);
}

static void test_access(void **state)
{
        struct setup *s = setup();

        /* Low byte only, high byte only. */
        tick(s, 0);
        outb(s->b, 0x43, 0x14 | 0x40);
        outb(s->b, 0x41, 0x80);
        assert_int_equal(inb(s->b, 0x41), 0x80);
        assert_int_equal(inb(s->b, 0x41), 0x80);
        outb(s->b, 0x43, 0x24 | 0x40);
        outb(s->b, 0x41, 0x12);
        assert_int_equal(inb(s->b, 0x41), 0x12);
        tick(s, 0x100);
        assert_int_equal(inb(s->b, 0x41), 0x11);
        /* A latch holds until it is read; a second one changes nothing. */
        tick(s, 0);
        program(s, 1, 2, 0x2000);
        outb(s->b, 0x43, 0x40);
        tick(s, 0x123);
        outb(s->b, 0x43, 0x40);
        assert_int_equal(inb(s->b, 0x41), 0x00);
        assert_int_equal(inb(s->b, 0x41), 0x20);
        assert_int_equal(inb(s->b, 0x41), 0xdd);
        assert_int_equal(inb(s->b, 0x41), 0x1e);
        /* Read-back of status and count: status first. */
        outb(s->b, 0x43, 0xc4);
        assert_int_equal(inb(s->b, 0x41), 0xb4);
        assert_int_equal(inb(s->b, 0x41), 0xdd);
        assert_int_equal(inb(s->b, 0x41), 0x1e);
        /* No count yet: null. */
        outb(s->b, 0x43, 0x74);
        assert_int_equal(status(s, 1), 0xf4);
        assert_int_equal(inb(s->b, 0x43), 0);
        /* Wide accesses are bytes. */
        outb(s->b, 0x43, 0x54);
        out(s->b, 0x41, 0x5577, 1);
        assert_int_equal(inb(s->b, 0x41), 0x77);
        done(s);
}

static void test_bcd(void **state)
{
        struct setup *s = setup();

        outb(s->b, 0x61, 1);
        tick(s, 0);
        outb(s->b, 0x43, 0xb1);
        outb(s->b, 0x42, 0x00);
        outb(s->b, 0x42, 0x10); /* 1000 */
        tick(s, 1);
        assert_int_equal(count(s, 2), 0x0999);
        tick(s, 1000);
        assert_true(out2(s));
        tick(s, 1001);
        assert_int_equal(count(s, 2), 0x9999);
        done(s);
}

static void test_interrupt(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;
        unsigned before;
        uint64_t start;

        board_clock_resume(&b->clock);
        start = monotonic_ns();
        program(s, 0, 0, 2386); /* 2 ms */
        assert_false(b->wire[0]);
        run_until(b, &b->rises[0], 1);
        assert_true(monotonic_ns() - start >= 1999000);
        assert_true(b->wire[0]);
        /* Periodic at 1 kHz: no faster than asked for. */
        program(s, 0, 2, 1193);
        before = b->rises[0];
        start = monotonic_ns();
        run_until(b, &b->rises[0], before + 10);
        assert_true(monotonic_ns() - start >= 9900000);
        /* Paused: nothing. */
        board_clock_pause(&b->clock);
        s->pit->ops->quiesce(s->pit);
        before = b->rises[0];
        start = monotonic_ns();
        while (monotonic_ns() - start < 3000000)
                uv_run(&b->loop, UV_RUN_NOWAIT);
        assert_int_equal(b->rises[0], before);
        board_clock_resume(&b->clock);
        s->pit->ops->resume(s->pit);
        run_until(b, &b->rises[0], before + 1);
        /* As fast as it goes: no flood. */
        program(s, 0, 2, 2);
        before = b->rises[0];
        start = monotonic_ns();
        while (monotonic_ns() - start < 10000000)
                uv_run(&b->loop, UV_RUN_ONCE);
        assert_in_range(b->rises[0] - before, 1, (monotonic_ns() - start) / 20000 + 2);
        done(s);
}

static void test_state(void **state)
{
        struct setup *s = setup();

        outb(s->b, 0x61, 3);
        tick(s, 10);
        program(s, 2, 0, 1000);
        program(s, 0, 2, 100);
        outb(s->b, 0x40, 50);
        outb(s->b, 0x43, 0xd8);
        outb(s->b, 0x43, 0x70);
        outb(s->b, 0x41, 0x34); /* half a count */
        check_record(s->pit);
        tick(s, 500);
        assert_int_equal(inb(s->b, 0x61) & 0x0f, 3);
        inb(s->b, 0x42); /* the latched ones */
        inb(s->b, 0x42);
        assert_int_equal(count(s, 2), 510);
        outb(s->b, 0x41, 0x12);
        assert_int_equal(count(s, 1), 0x1234);
        s->pit->ops->reset(s->pit);
        assert_int_equal(inb(s->b, 0x61) & 0x0f, 0);
        done(s);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_mode0),
                cmocka_unit_test(test_mode1),
                cmocka_unit_test(test_mode2),
                cmocka_unit_test(test_mode3),
                cmocka_unit_test(test_mode4_and_5),
                cmocka_unit_test(test_access),
                cmocka_unit_test(test_bcd),
                cmocka_unit_test(test_interrupt),
                cmocka_unit_test(test_state),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
