/* The whole board: its wires from device to controller, reset, pause, its record, and that no clock drifts from another. */
#include "device/acpi-pm.h"
#include "device/ioapic.h"
#include "device/pic.h"
#include "device/test-board.h"

struct setup {
        struct bench *b;
        struct board *board;
        bool intr;
        unsigned intr_rises;
};

static void on_extint(void *ctx, bool level)
{
        struct setup *s = ctx;

        if (level && !s->intr)
                s->intr_rises++;
        s->intr = level;
}

static struct setup *setup(void)
{
        struct setup *s = calloc(1, sizeof(*s));
        struct board_config config = { .cpus = 2, .extint = on_extint, .ctx = s };

        s->b = bench_new();
        assert_int_equal(board_new(&s->b->host, &config, &s->board, &s->b->err), 0);
        return s;
}

static void done(struct setup *s)
{
        board_free(s->board);
        bench_free(s->b);
        free(s);
}

static void route(struct setup *s, unsigned line, uint32_t low)
{
        mmio_out(s->b, BOARD_IOAPIC, 0x10 + 2 * line, 4);
        mmio_out(s->b, BOARD_IOAPIC + 0x10, low, 4);
}

static void init_pic(struct setup *s)
{
        static const struct { uint8_t port, value; } writes[] = {
                { 0x20, 0x11 }, { 0x21, 0x30 }, { 0x21, 0x04 }, { 0x21, 0x01 }, { 0xa0, 0x11 }, { 0xa1, 0x38 }, { 0xa1, 0x02 }, { 0xa1, 0x01 },
        };

        for (unsigned i = 0; i < ARRAY_SIZE(writes); i++)
                outb(s->b, writes[i].port, writes[i].value);
}

static void test_wires(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        assert_int_equal(in(b, BOARD_PORT_ELCR, 2), 0x0e00);
        for (unsigned i = 0; i < 16; i++) {
                if (i == 2)
                        continue;
                route(s, i ? i : 2, 0x40 + i);
                irq_pulse(&s->board->isa[i]);
                assert_int_equal(b->message[(b->messages - 1) % TEST_MESSAGES].data, 0x40 + i);
                route(s, i ? i : 2, 0x10000);
        }
        assert_int_equal(b->messages, 15);
        /* IRQ 2 is no line of its own: line 2 is IRQ 0's. */
        route(s, 2, 0x42);
        irq_pulse(&s->board->isa[2]);
        assert_int_equal(b->messages, 16);
        init_pic(s);
        irq_pulse(&s->board->isa[4]);
        assert_true(s->intr);
        assert_int_equal(pic_ack(s->board->pic), 0x34);
        done(s);
}

struct probe {
        struct pci_device pci;
};

static void probe_reset(struct device *dev)
{
        pci_device_reset(container_of(dev, struct pci_device, dev));
}

static const struct device_ops probe_dev_ops = { .name = "probe", .reset = probe_reset };
static const struct pci_ops probe_ops = { .read = NULL };

static void test_pci_wires(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;
        struct pci_device p[4];
        static const char *const ids[] = { "p0", "p1", "p2", "p3" };

        init_pic(s);
        for (unsigned i = 0; i < 4; i++) {
                assert_int_equal(pci_device_init(&p[i], s->board->pci, &probe_dev_ops, &probe_ops, ids[i], 1, 2, 3, 4, 5, &b->err), 0);
                route(s, BOARD_GSI_PCI + i, 0xa050 + i);
        }
        /* Slots 1 and 3 (lines 1 and 3) share 8259 input 11. */
        pci_intx(&p[0], true);
        assert_int_equal(b->messages, 1);
        assert_int_equal(b->message[0].data, 0xc051);
        assert_int_equal(pic_ack(s->board->pic), 0x3b);
        outb(b, 0xa0, 0x20);
        outb(b, 0x20, 0x20);
        pci_intx(&p[2], true);
        pci_intx(&p[0], false);
        assert_true(s->intr);
        pci_intx(&p[2], false);
        assert_false(s->intr);
        assert_int_equal(b->messages, 2);
        assert_int_equal(b->message[1].data, 0xc053);
        for (unsigned i = 0; i < 4; i++)
                pci_device_done(&p[i]);
        done(s);
}

static void test_legacy_replacement(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;
        uint64_t start;

        route(s, 2, 0x42);
        outb(b, 0x43, 0x34);
        outb(b, 0x40, 0xa9);
        outb(b, 0x40, 0x04); /* 1 kHz */
        run_until(b, &b->messages, 3);
        mmio_out(b, BOARD_HPET + 0x10, 3, 8);
        b->messages = 0;
        start = monotonic_ns();
        while (monotonic_ns() - start < 5000000)
                uv_run(&b->loop, UV_RUN_NOWAIT);
        assert_int_equal(b->messages, 0); /* the PIT is cut off */
        mmio_out(b, BOARD_HPET + 0x100, 0x4c, 8);
        mmio_out(b, BOARD_HPET + 0x108, mmio_in(b, BOARD_HPET + 0xf0, 8) + 100000, 8);
        mmio_out(b, BOARD_HPET + 0x108, 100000, 8);
        run_until(b, &b->messages, 3);
        mmio_out(b, BOARD_HPET + 0x100, 0, 8);
        mmio_out(b, BOARD_HPET + 0x10, 1, 8);
        b->messages = 0;
        run_until(b, &b->messages, 2); /* and back */
        done(s);
}

static uint64_t pm_timer(struct setup *s)
{
        return in(s->b, BOARD_PORT_PM_TIMER, 4);
}

static uint64_t hpet_counter(struct setup *s)
{
        return mmio_in(s->b, BOARD_HPET + 0xf0, 8);
}

/* Counter 2 counts down from 65536, 18 times a second. */
static uint64_t pit_counter(struct setup *s)
{
        outb(s->b, 0x43, 0x80);
        return in(s->b, 0x42, 1) | in(s->b, 0x42, 1) << 8;
}

static void start_clocks(struct setup *s)
{
        mmio_out(s->b, BOARD_HPET + 0x10, 1, 8);
        outb(s->b, 0x61, 1);
        outb(s->b, 0x43, 0xb4);
        outb(s->b, 0x42, 0);
        outb(s->b, 0x42, 0);
}

/* Over years of guest time all counters show the same time, to their last tick. */
static void test_no_drift(void **state)
{
        struct setup *s = setup();
        uint64_t ns = 0;

        at(s->b, 0);
        start_clocks(s);
        for (unsigned i = 0; i < 60; i++) {
                uint64_t pit = muldiv64(ns, BOARD_PIT_HZ, 1000000000);

                at(s->b, ns);
                assert_true(hpet_counter(s) == ns / 10);
                assert_true(pm_timer(s) == (muldiv64(ns, BOARD_PM_TIMER_HZ, 1000000000) & 0xffffffff));
                assert_true(pit_counter(s) == ((65536 - pit % 65536) & 0xffff));
                ns = ns * 7 / 4 + 123457;
        }
        assert_true(ns > UINT64_C(10) * 365 * 86400 * 1000000000);
        done(s);
}

/* While it runs: within what reading them takes. */
static void test_agree(void **state)
{
        uint64_t start, end, born = monotonic_ns();
        struct setup *s = setup();

        start_clocks(s);
        start = monotonic_ns();
        while (monotonic_ns() - start < 50000000) {
                uint64_t before = board_clock_ns(&s->board->clock), hpet = hpet_counter(s) * 10;
                uint64_t pm = muldiv64(pm_timer(s), 1000000000, BOARD_PM_TIMER_HZ), after = board_clock_ns(&s->board->clock);

                assert_true(hpet <= after && pm <= after);
                assert_true(pm + 300 >= before);
        }
        /* Pausing: no counter moves; resuming: all go on from there. */
        board_pause(s->board);
        start = hpet_counter(s);
        end = pm_timer(s);
        for (uint64_t t = monotonic_ns(); monotonic_ns() - t < 2000000;)
                ;
        assert_true(hpet_counter(s) == start);
        assert_true(pm_timer(s) == end);
        board_resume(s->board);
        assert_true(hpet_counter(s) >= start && hpet_counter(s) * 10 <= board_clock_ns(&s->board->clock));
        assert_true(pm_timer(s) >= end);
        /* The pause is not in it: 2 ms less than the host has seen. */
        assert_true(board_clock_ns(&s->board->clock) <= monotonic_ns() - born - 2000000);
        done(s);
}

static void test_state(void **state)
{
        struct setup *s = setup(), *t = setup();
        struct bench *b = s->b;
        struct writer saved = { 0 }, again = { 0 };
        struct cursor cursor;
        struct record record;
        uint64_t hpet;

        start_clocks(s);
        init_pic(s);
        route(s, 4, 0x44);
        outb(b, BOARD_PORT_COM1 + 7, 0x99);
        outb(b, 0x70, 0x8b); /* hold the clock, so that two records are alike */
        outb(b, 0x71, 0x82);
        acpi_pm_power_button(s->board->pm);
        board_pause(s->board);
        hpet = hpet_counter(s);
        board_save(s->board, &saved);
        /* Into another machine. */
        board_pause(t->board);
        cursor = cursor_from(saved.bytes, saved.size);
        assert_int_equal(record_next(&cursor, &record, &b->err), 0);
        assert_string_equal(record.name, "board");
        if (board_load(t->board, record.version, &record.body, &t->b->err) < 0)
                fail_msg("%s", t->b->err.text);
        assert_int_equal(record_finish(&record, &b->err), 0);
        assert_true(hpet_counter(t) == hpet);
        assert_int_equal(inb(t->b, BOARD_PORT_COM1 + 7), 0x99);
        assert_int_equal(in(t->b, BOARD_PORT_PM1_EVENT, 2), 0x100);
        assert_int_equal(inb(t->b, 0x21), 0);
        board_save(t->board, &again);
        assert_int_equal(again.size, saved.size);
        assert_memory_equal(again.bytes, saved.bytes, saved.size);
        board_resume(t->board);
        assert_true(hpet_counter(t) >= hpet);
        /* Each byte damaged in turn: an error or a load, never worse. */
        board_pause(t->board);
        for (size_t i = 0; i < saved.size; i++) {
                saved.bytes[i] ^= 0xff;
                cursor = cursor_from(saved.bytes, saved.size);
                if (record_next(&cursor, &record, NULL) == 0)
                        (void)!board_load(t->board, record.version, &record.body, NULL);
                saved.bytes[i] ^= 0xff;
        }
        for (size_t size = 0; size < saved.size; size += 7) {
                cursor = cursor_from(saved.bytes, size);
                assert_int_not_equal(record_next(&cursor, &record, NULL), 0);
        }
        board_resume(t->board);
        uv_run(&t->b->loop, UV_RUN_NOWAIT);
        board_reset(t->board);
        assert_int_equal(in(t->b, BOARD_PORT_PM1_EVENT, 2), 0);
        assert_int_equal(in(t->b, BOARD_PORT_ELCR, 2), 0x0e00);
        writer_done(&saved);
        writer_done(&again);
        done(s);
        done(t);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_wires),
                cmocka_unit_test(test_pci_wires),
                cmocka_unit_test(test_legacy_replacement),
                cmocka_unit_test(test_no_drift),
                cmocka_unit_test(test_agree),
                cmocka_unit_test(test_state),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
