/* The 8259A pair by its data sheet: initialization, priorities, ends of interrupt, rotation, masks, cascade, poll, ELCR. */
#include "device/pic.h"
#include "device/test-board.h"

struct setup {
        struct bench *b;
        struct device *pic;
        struct irq_line irq[16];
};

static struct setup *setup(void)
{
        struct setup *s = calloc(1, sizeof(*s));
        struct irq_line intr;

        s->b = bench_new();
        intr = bench_line(s->b, 0);
        assert_int_equal(pic_new(&s->b->host, &intr, &s->pic, &s->b->err), 0);
        for (unsigned i = 0; i < 16; i++)
                s->irq[i] = pic_line(s->pic, i);
        return s;
}

static void done(struct setup *s)
{
        device_end(s->pic);
        bench_free(s->b);
        free(s);
}

static void initialize(struct bench *b, uint8_t icw4)
{
        outb(b, 0x20, 0x11);
        outb(b, 0x21, 0x30);
        outb(b, 0x21, 0x04);
        outb(b, 0x21, icw4);
        outb(b, 0xa0, 0x11);
        outb(b, 0xa1, 0x38);
        outb(b, 0xa1, 0x02);
        outb(b, 0xa1, icw4);
}

static void test_power_on(void **state)
{
        struct setup *s = setup();

        irq_pulse(&s->irq[1]);
        assert_false(s->b->wire[0]); /* all masked */
        assert_int_equal(inb(s->b, 0x21), 0xff);
        initialize(s->b, 0x01);
        assert_int_equal(inb(s->b, 0x21), 0x00);
        assert_int_equal(inb(s->b, 0x20), 0x00); /* edges are forgotten */
        outb(s->b, 0x21, 0xa5);
        assert_int_equal(inb(s->b, 0x21), 0xa5);
        done(s);
}

static void test_priority(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        initialize(b, 0x01);
        irq_pulse(&s->irq[4]);
        irq_pulse(&s->irq[1]);
        assert_true(b->wire[0]);
        assert_int_equal(inb(b, 0x20), 0x12);
        assert_int_equal(pic_ack(s->pic), 0x31);
        assert_false(b->wire[0]); /* 4 is below 1 */
        irq_pulse(&s->irq[0]);
        assert_true(b->wire[0]);
        assert_int_equal(pic_ack(s->pic), 0x30);
        outb(b, 0x20, 0x0b);
        assert_int_equal(inb(b, 0x20), 0x03);
        outb(b, 0x20, 0x20); /* non-specific: 0 */
        assert_int_equal(inb(b, 0x20), 0x02);
        assert_false(b->wire[0]);
        outb(b, 0x20, 0x61); /* specific: 1 */
        assert_int_equal(inb(b, 0x20), 0x00);
        assert_true(b->wire[0]);
        assert_int_equal(pic_ack(s->pic), 0x34);
        outb(b, 0x20, 0x20);
        /* Nothing left: spurious. */
        assert_int_equal(pic_ack(s->pic), 0x37);
        assert_int_equal(inb(b, 0x20), 0x00);
        done(s);
}

static void test_cascade(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        initialize(b, 0x01);
        irq_pulse(&s->irq[12]);
        irq_pulse(&s->irq[9]);
        assert_true(b->wire[0]);
        assert_int_equal(pic_ack(s->pic), 0x39);
        assert_false(b->wire[0]);
        irq_pulse(&s->irq[8]); /* higher, but the master serves its input 2 */
        assert_false(b->wire[0]);
        outb(b, 0xa0, 0x20);
        outb(b, 0x20, 0x62);
        assert_true(b->wire[0]);
        assert_int_equal(pic_ack(s->pic), 0x38);
        outb(b, 0xa0, 0x20);
        outb(b, 0x20, 0x62);
        assert_int_equal(pic_ack(s->pic), 0x3c);
        outb(b, 0xa0, 0x20);
        outb(b, 0x20, 0x62);
        assert_false(b->wire[0]);
        /* Masked at the slave after the master has seen it: gone. */
        irq_pulse(&s->irq[10]);
        outb(b, 0xa1, 0xff);
        assert_false(b->wire[0]);
        done(s);
}

static void test_special_nested(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        initialize(b, 0x11);
        irq_pulse(&s->irq[12]);
        assert_int_equal(pic_ack(s->pic), 0x3c);
        irq_pulse(&s->irq[9]);
        assert_true(b->wire[0]);
        assert_int_equal(pic_ack(s->pic), 0x39);
        done(s);
}

static void test_auto_eoi_and_rotation(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        initialize(b, 0x03);
        outb(b, 0x20, 0x80); /* rotate in auto EOI */
        irq_pulse(&s->irq[3]);
        assert_int_equal(pic_ack(s->pic), 0x33);
        outb(b, 0x20, 0x0b);
        assert_int_equal(inb(b, 0x20), 0);
        /* 3 is now the lowest, 4 the highest. */
        irq_pulse(&s->irq[3]);
        irq_pulse(&s->irq[1]);
        irq_pulse(&s->irq[5]);
        assert_int_equal(pic_ack(s->pic), 0x35);
        assert_int_equal(pic_ack(s->pic), 0x31);
        assert_int_equal(pic_ack(s->pic), 0x33);
        initialize(b, 0x01);
        outb(b, 0x20, 0xc4); /* 4 is lowest, 5 highest */
        irq_pulse(&s->irq[4]);
        irq_pulse(&s->irq[6]);
        assert_int_equal(pic_ack(s->pic), 0x36);
        outb(b, 0x20, 0xa0); /* rotate on non-specific EOI: 6 is lowest */
        irq_pulse(&s->irq[6]);
        assert_int_equal(pic_ack(s->pic), 0x34);
        outb(b, 0x20, 0xe4); /* rotate on specific EOI */
        irq_pulse(&s->irq[3]);
        assert_int_equal(pic_ack(s->pic), 0x36); /* 5 6 7 0 1 2 3 4 */
        done(s);
}

static void test_special_mask(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        initialize(b, 0x01);
        irq_pulse(&s->irq[1]);
        pic_ack(s->pic);
        irq_pulse(&s->irq[5]);
        assert_false(b->wire[0]);
        outb(b, 0x21, 0x02);
        assert_false(b->wire[0]);
        outb(b, 0x20, 0x68); /* special mask: what is masked does not block */
        assert_true(b->wire[0]);
        assert_int_equal(pic_ack(s->pic), 0x35);
        outb(b, 0x20, 0x20); /* ends 5, not the masked 1 */
        outb(b, 0x20, 0x0b);
        assert_int_equal(inb(b, 0x20), 0x02);
        done(s);
}

static void test_poll(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        initialize(b, 0x01);
        outb(b, 0x20, 0x0c);
        assert_int_equal(inb(b, 0x20) & 0x80, 0);
        irq_pulse(&s->irq[6]);
        outb(b, 0x20, 0x0c);
        assert_int_equal(inb(b, 0x20), 0x86);
        outb(b, 0x20, 0x0b);
        assert_int_equal(inb(b, 0x20), 0x40);
        assert_false(b->wire[0]);
        done(s);
}

static void test_level(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        outb(b, 0x4d0, 0xff);
        outb(b, 0x4d1, 0xff);
        assert_int_equal(in(b, 0x4d0, 2), 0xdef8);
        initialize(b, 0x01);
        irq_set(&s->irq[11], true);
        assert_int_equal(pic_ack(s->pic), 0x3b);
        outb(b, 0xa0, 0x20);
        outb(b, 0x20, 0x20);
        assert_true(b->wire[0]); /* still high */
        irq_set(&s->irq[11], false);
        assert_false(b->wire[0]);
        /* To edge while high: forgotten. */
        irq_set(&s->irq[5], true);
        assert_true(b->wire[0]);
        outb(b, 0x4d0, 0);
        assert_false(b->wire[0]);
        done(s);
}

static void test_state(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        initialize(b, 0x01);
        outb(b, 0x4d1, 0x0e);
        irq_set(&s->irq[11], true);
        irq_pulse(&s->irq[3]);
        pic_ack(s->pic);
        irq_pulse(&s->irq[1]);
        outb(b, 0xa0, 0x11); /* half way through an initialization */
        check_record(s->pic);
        assert_true(b->wire[0]);
        assert_int_equal(pic_ack(s->pic), 0x31);
        outb(b, 0xa1, 0x50);
        outb(b, 0xa1, 0x02);
        outb(b, 0xa1, 0x01);
        outb(b, 0x20, 0x61);
        outb(b, 0x20, 0x62);
        assert_int_equal(pic_ack(s->pic), 0x53);
        done(s);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_power_on),
                cmocka_unit_test(test_priority),
                cmocka_unit_test(test_cascade),
                cmocka_unit_test(test_special_nested),
                cmocka_unit_test(test_auto_eoi_and_rotation),
                cmocka_unit_test(test_special_mask),
                cmocka_unit_test(test_poll),
                cmocka_unit_test(test_level),
                cmocka_unit_test(test_state),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
