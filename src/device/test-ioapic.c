/* I/O APIC: registers, edges, levels with remote IRR, end of interrupt, what the accelerator is told. */
#include "device/ioapic.h"
#include "device/test-board.h"

struct setup {
        struct bench *b;
        struct device *ioapic;
        struct irq_line line[BOARD_GSIS];
        unsigned changes;
        uint64_t level[4];
};

static void changed(void *ctx, const uint64_t level_vectors[4])
{
        struct setup *s = ctx;

        s->changes++;
        memcpy(s->level, level_vectors, sizeof(s->level));
}

static struct setup *setup(void)
{
        struct setup *s = calloc(1, sizeof(*s));
        struct ioapic_changed fn = { .fn = changed, .ctx = s };

        s->b = bench_new();
        assert_int_equal(ioapic_new(&s->b->host, &fn, &s->ioapic, &s->b->err), 0);
        for (unsigned i = 0; i < BOARD_GSIS; i++)
                s->line[i] = ioapic_line(s->ioapic, i);
        return s;
}

static void done(struct setup *s)
{
        device_end(s->ioapic);
        bench_free(s->b);
        free(s);
}

static uint32_t get(struct bench *b, uint8_t index)
{
        mmio_out(b, BOARD_IOAPIC, index, 4);
        return (uint32_t)mmio_in(b, BOARD_IOAPIC + 0x10, 4);
}

static void put(struct bench *b, uint8_t index, uint32_t value)
{
        mmio_out(b, BOARD_IOAPIC, index, 4);
        mmio_out(b, BOARD_IOAPIC + 0x10, value, 4);
}

static void test_registers(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        assert_int_equal(get(b, 1), 0x00170020);
        put(b, 1, 0);
        assert_int_equal(get(b, 1), 0x00170020);
        put(b, 0, 0xffffffff);
        assert_int_equal(get(b, 0), 0x0f000000);
        assert_int_equal(get(b, 2), 0x0f000000);
        for (unsigned i = 0; i < BOARD_GSIS; i++) {
                assert_int_equal(get(b, (uint8_t)(0x10 + 2 * i)), 0x10000);
                put(b, (uint8_t)(0x10 + 2 * i), 0xffffffff);
                assert_int_equal(get(b, (uint8_t)(0x10 + 2 * i)), 0x1afff); /* status and remote IRR are read-only */
                put(b, (uint8_t)(0x11 + 2 * i), 0xffffffff);
                assert_int_equal(get(b, (uint8_t)(0x11 + 2 * i)), 0xfffe0000);
        }
        assert_int_equal(get(b, 0x40), 0xffffffff);
        put(b, 0xff, 1);
        assert_int_equal(mmio_in(b, BOARD_IOAPIC, 4), 0xff);
        assert_int_equal(mmio_in(b, BOARD_IOAPIC + 0x20, 4), 0);
        s->ioapic->ops->reset(s->ioapic);
        assert_int_equal(get(b, 0x10), 0x10000);
        done(s);
}

static void test_edge(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        irq_pulse(&s->line[2]);
        put(b, 0x15, 0x03000000);
        put(b, 0x14, 0x00000830);
        assert_int_equal(b->messages, 0); /* the edge under the mask is lost */
        irq_set(&s->line[2], true);
        assert_int_equal(b->messages, 1);
        assert_int_equal(b->message[0].address, 0xfee03004);
        assert_int_equal(b->message[0].data, 0x30);
        irq_set(&s->line[2], true);
        assert_int_equal(b->messages, 1);
        irq_set(&s->line[2], false);
        irq_set(&s->line[2], true);
        assert_int_equal(b->messages, 2);
        ioapic_eoi(s->ioapic, 0x30);
        assert_int_equal(b->messages, 2);
        /* Lowest priority, NMI, ExtINT keep their mode; extended destination bits. */
        put(b, 0x14, 0x00000131);
        put(b, 0x15, 0xff020000);
        irq_pulse(&s->line[2]);
        irq_pulse(&s->line[2]);
        assert_int_equal(b->message[2].address, 0xfeeff020);
        assert_int_equal(b->message[2].data, 0x131);
        done(s);
}

static void test_level(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        irq_set(&s->line[17], true);
        put(b, 0x10 + 34, 0x0000a055);
        assert_int_equal(b->messages, 1); /* was high already */
        assert_int_equal(b->message[0].data, 0xc055);
        assert_int_equal(get(b, 0x10 + 34), 0x0000e055);
        assert_int_equal(s->changes, 1);
        assert_true(s->level[1] == UINT64_C(1) << (0x55 - 64));
        irq_set(&s->line[17], false);
        irq_set(&s->line[17], true);
        assert_int_equal(b->messages, 1);
        ioapic_eoi(s->ioapic, 0x54);
        assert_int_equal(b->messages, 1);
        ioapic_eoi(s->ioapic, 0x55); /* still high: again */
        assert_int_equal(b->messages, 2);
        irq_set(&s->line[17], false);
        mmio_out(b, BOARD_IOAPIC + 0x40, 0x55, 4); /* the EOI register */
        assert_int_equal(b->messages, 2);
        assert_int_equal(get(b, 0x10 + 34), 0x0000a055);
        /* Masked it waits, and comes when unmasked. */
        put(b, 0x10 + 34, 0x0001a055);
        irq_set(&s->line[17], true);
        assert_int_equal(b->messages, 2);
        put(b, 0x10 + 34, 0x0000a055);
        assert_int_equal(b->messages, 3);
        /* Masking with an EOI due keeps its report. */
        put(b, 0x10 + 34, 0x0001a055);
        assert_true(s->level[1] == UINT64_C(1) << (0x55 - 64));
        /* To edge and back clears remote IRR. */
        put(b, 0x10 + 34, 0x00012055);
        assert_int_equal(get(b, 0x10 + 34), 0x00012055);
        assert_true(s->level[1] == 0);
        done(s);
}

static void test_state(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        put(b, 0x10 + 34, 0x0000a055);
        irq_set(&s->line[17], true);
        put(b, 0x15, 0x01000000);
        check_record(s->ioapic);
        assert_int_equal(b->messages, 1);
        assert_int_equal(get(b, 0x10 + 34), 0x0000e055);
        assert_true(s->level[1] == UINT64_C(1) << (0x55 - 64));
        ioapic_eoi(s->ioapic, 0x55);
        assert_int_equal(b->messages, 2);
        done(s);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_registers),
                cmocka_unit_test(test_edge),
                cmocka_unit_test(test_level),
                cmocka_unit_test(test_state),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
