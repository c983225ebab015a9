/* 16550A by its data sheet: registers, FIFOs, interrupts, loopback, modem lines, and what the host's end sees. */
#include "device/test-board.h"
#include "device/uart.h"

#define PORT 0x3f8
enum { DATA = PORT, IER, IIR, LCR, MCR, LSR, MSR, SCR };

struct line {
        uint8_t sent[256];
        size_t size, room;
        unsigned readable;
};

static size_t line_write(void *ctx, const uint8_t *bytes, size_t size_bytes)
{
        struct line *line = ctx;
        size_t taken = MIN(size_bytes, line->room);

        memcpy(line->sent + line->size, bytes, taken);
        line->size += taken;
        line->room -= taken;
        return taken;
}

static void line_readable(void *ctx)
{
        ((struct line *)ctx)->readable++;
}

struct setup {
        struct bench *b;
        struct line line;
        struct device *uart;
};

static struct setup *setup(void)
{
        struct setup *s = calloc(1, sizeof(*s));
        struct irq_line irq;
        struct char_backend backend = { .write = line_write, .readable = line_readable, .ctx = &s->line };

        s->b = bench_new();
        s->line.room = sizeof(s->line.sent);
        irq = bench_line(s->b, 4);
        assert_int_equal(uart_new(&s->b->host, "com1", PORT, &irq, &backend, &s->uart, &s->b->err), 0);
        return s;
}

static void done(struct setup *s)
{
        device_end(s->uart);
        bench_free(s->b);
        free(s);
}

static void test_registers(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        assert_int_equal(inb(b, IIR), 0x01);
        assert_int_equal(inb(b, LSR), 0x60);
        assert_int_equal(inb(b, MSR), 0xb0);
        outb(b, SCR, 0x5a);
        assert_int_equal(inb(b, SCR), 0x5a);
        outb(b, IER, 0xff);
        assert_int_equal(inb(b, IER), 0x0f);
        outb(b, IER, 0);
        outb(b, MCR, 0xff);
        assert_int_equal(inb(b, MCR), 0x1f);
        outb(b, MCR, 0);
        outb(b, LCR, 0x83);
        out(b, DATA, 0x0102, 2);
        assert_int_equal(in(b, DATA, 2), 0x0102);
        outb(b, LCR, 0x03);
        assert_int_equal(inb(b, IER), 0);
        /* A 16550A: IIR 7-6 both set, no bit 5 (16750), nothing behind LCR 0xbf. */
        outb(b, IIR, 0x21);
        assert_int_equal(inb(b, IIR), 0xc1);
        outb(b, LCR, 0xbf);
        assert_int_equal(inb(b, IIR), 0xc1);
        outb(b, LCR, 0);
        outb(b, IIR, 0);
        assert_int_equal(inb(b, IIR), 0x01);
        done(s);
}

static void test_transmit(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        outb(b, MCR, 0x08);
        outb(b, IER, 0x02);
        assert_true(b->wire[4]); /* empty already */
        assert_int_equal(inb(b, IIR), 0x02);
        assert_false(b->wire[4]);
        assert_int_equal(inb(b, IIR), 0x01);
        outb(b, DATA, 'a');
        assert_true(b->wire[4]);
        assert_int_equal(s->line.size, 1);
        assert_int_equal(s->line.sent[0], 'a');
        /* The host has no room: THRE stays clear until it has. */
        inb(b, IIR);
        outb(b, IIR, 0x01);
        s->line.room = 2;
        for (unsigned i = 0; i < 20; i++)
                outb(b, DATA, (uint8_t)('A' + i));
        assert_int_equal(inb(b, LSR) & 0x60, 0);
        assert_false(inb(b, IIR) == 0xc2);
        assert_int_equal(s->line.size, 3);
        s->line.room = 5;
        uart_writable(s->uart);
        assert_int_equal(inb(b, LSR) & 0x60, 0);
        s->line.room = 100;
        uart_writable(s->uart);
        assert_int_equal(inb(b, LSR) & 0x60, 0x60);
        assert_true(b->wire[4]);
        assert_int_equal(s->line.size, 1 + 18); /* two went, sixteen waited, two were lost */
        assert_memory_equal(s->line.sent + 1, "ABCDEFGHIJKLMNOPQR", 18);
        done(s);
}

static void test_receive(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;
        const uint8_t text[] = "0123456789abcdefghijklmnop";

        /* Nobody listens. */
        assert_int_equal(uart_receive(s->uart, text, 26), 0);
        outb(b, IIR, 0x87); /* FIFOs on, trigger 8 */
        assert_int_equal(s->line.readable, 0);
        outb(b, IER, 0x01);
        outb(b, MCR, 0x0b);
        assert_int_equal(s->line.readable, 1);
        assert_int_equal(uart_receive(s->uart, text, 3), 3);
        assert_true(b->wire[4]);
        assert_int_equal(inb(b, IIR), 0xcc); /* time-out: below the trigger */
        assert_int_equal(uart_receive(s->uart, text + 3, 23), 13);
        assert_int_equal(inb(b, IIR), 0xc4);
        assert_int_equal(inb(b, LSR) & 0x03, 0x01);
        for (unsigned i = 0; i < 16; i++) {
                assert_int_equal(inb(b, DATA), text[i]);
                assert_int_equal(b->wire[4], i < 15);
        }
        assert_int_equal(s->line.readable, 2);
        assert_int_equal(inb(b, LSR) & 0x01, 0);
        assert_int_equal(inb(b, IIR), 0xc1);
        assert_int_equal(inb(b, DATA), 0);
        /* Clearing the FIFO. */
        assert_int_equal(uart_receive(s->uart, text, 4), 4);
        outb(b, IIR, 0x03);
        assert_int_equal(inb(b, LSR) & 0x01, 0);
        assert_false(b->wire[4]);
        /* Without FIFOs one at a time. */
        outb(b, IIR, 0);
        assert_int_equal(uart_receive(s->uart, text, 4), 1);
        assert_int_equal(inb(b, IIR), 0x04);
        assert_int_equal(inb(b, DATA), '0');
        done(s);
}

static void test_break(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        outb(b, IIR, 0x01);
        outb(b, MCR, 0x0b);
        outb(b, IER, 0x05);
        uart_receive(s->uart, (const uint8_t *)"x", 1);
        uart_break(s->uart);
        /* It shows when it is at the top; FIFO error at once. */
        assert_int_equal(inb(b, LSR) & 0x91, 0x81);
        assert_int_equal(inb(b, DATA), 'x');
        assert_int_equal(inb(b, IIR), 0xc6);
        assert_int_equal(inb(b, LSR) & 0x91, 0x91);
        assert_int_equal(inb(b, LSR) & 0x10, 0);
        assert_int_equal(inb(b, DATA), 0);
        assert_int_equal(inb(b, LSR) & 0x81, 0);
        assert_false(b->wire[4]);
        done(s);
}

static void test_loopback(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        outb(b, MCR, 0x1a);
        assert_int_equal(inb(b, MSR) & 0xf0, 0x90);
        outb(b, MCR, 0x15);
        assert_int_equal(inb(b, MSR) & 0xf0, 0x60);
        inb(b, MSR);
        outb(b, MCR, 0x11); /* ring ends */
        assert_int_equal(inb(b, MSR), 0x24);
        assert_int_equal(inb(b, MSR), 0x20);
        outb(b, MCR, 0x15); /* and begins: no delta */
        assert_int_equal(inb(b, MSR), 0x60);
        outb(b, DATA, 'L');
        assert_int_equal(s->line.size, 0);
        assert_int_equal(inb(b, DATA), 'L');
        outb(b, DATA, '1');
        outb(b, DATA, '2');
        assert_int_equal(inb(b, LSR) & 0x03, 0x03); /* overrun */
        assert_int_equal(inb(b, LSR) & 0x03, 0x01);
        assert_int_equal(inb(b, DATA), '2');
        outb(b, MCR, 0x02);
        assert_int_equal(uart_receive(s->uart, (const uint8_t *)"q", 1), 1);
        assert_int_equal(inb(b, DATA), 'q');
        outb(b, IER, 0x08);
        outb(b, MCR, 0x18);
        assert_true(b->wire[4]);
        assert_int_equal(inb(b, IIR), 0x00);
        inb(b, MSR);
        assert_false(b->wire[4]);
        done(s);
}

static void test_out2_gates(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        outb(b, IER, 0x02);
        assert_false(b->wire[4]);
        outb(b, MCR, 0x08);
        assert_true(b->wire[4]);
        outb(b, MCR, 0x00);
        assert_false(b->wire[4]);
        done(s);
}

static void test_state(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;

        outb(b, IIR, 0x41);
        outb(b, MCR, 0x0b);
        outb(b, IER, 0x07);
        outb(b, SCR, 0x77);
        s->line.room = 0;
        outb(b, DATA, 'T');
        outb(b, DATA, 'U');
        uart_receive(s->uart, (const uint8_t *)"wait", 4);
        uart_break(s->uart);
        check_record(s->uart);
        assert_true(b->wire[4]);
        s->line.room = 9;
        s->uart->ops->resume(s->uart);
        assert_memory_equal(s->line.sent, "TU", 2);
        for (unsigned i = 0; i < 4; i++)
                assert_int_equal(inb(b, DATA), "wait"[i]);
        assert_int_equal(inb(b, LSR) & 0x11, 0x11);
        assert_int_equal(inb(b, SCR), 0x77);
        done(s);
}

static void test_unconnected(void **state)
{
        struct bench *b = bench_new();
        struct irq_line irq = bench_line(b, 3);
        struct device *uart;

        assert_int_equal(uart_new(&b->host, "com2", 0x2f8, &irq, NULL, &uart, &b->err), 0);
        assert_int_equal(inb(b, 0x2fe), 0);
        outb(b, 0x2f8, 'x');
        assert_int_equal(inb(b, 0x2fd), 0x60);
        outb(b, 0x2fc, 0x02);
        assert_int_equal(uart_receive(uart, (const uint8_t *)"ab", 2), 1);
        inb(b, 0x2f8);
        assert_int_equal(uart_new(&b->host, "com3", 0x2f8, &irq, NULL, &uart, &b->err), -EEXIST);
        device_end(uart);
        assert_int_equal(inb(b, 0x2f8), 0xff);
        bench_free(b);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_registers),
                cmocka_unit_test(test_transmit),
                cmocka_unit_test(test_receive),
                cmocka_unit_test(test_break),
                cmocka_unit_test(test_loopback),
                cmocka_unit_test(test_out2_gates),
                cmocka_unit_test(test_state),
                cmocka_unit_test(test_unconnected),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
