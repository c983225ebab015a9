/*
 * 16550A serial port.
 *
 *   guest ──THR──▶ transmit FIFO (16) ──backend->write──▶ host          host ──uart_receive()──▶ receive FIFO (16) ──RBR──▶ guest
 *
 * Bytes move at once, not at the line's speed: a character leaves the transmit FIFO as soon as the host's end takes it, so
 * that THRE is nearly always set. When the host has no room the bytes stay in the FIFO, THRE stays clear and the guest's driver
 * waits for its interrupt as it would for a slow line; uart_writable() goes on.
 *
 * Input is taken while the guest has RTS raised (it says that it listens) and is not in loopback, as many bytes as the receive
 * FIFO holds; the host's end keeps the rest and is told when there is room. So input that is sent before the guest has opened
 * its port is not lost when the driver clears the FIFOs. The character timeout (data sheet §8.11 "FIFO interrupt mode") is due
 * as soon as the FIFO is below its trigger level, since nobody can tell when the host's next byte comes.
 *
 * The interrupt line is the PC's: gated by OUT2. Limits: baud rate, word length and parity are stored and change nothing; DMA
 * modes of the FIFO likewise.
 *
 * Source: National Semiconductor PC16550D data sheet (June 1995), §8.
 */
#include "device/uart.h"

#include <errno.h>

#include "device/board.h"

#define UART_PORTS 8
#define UART_FIFO 16

enum { REG_DATA, REG_IER, REG_IIR_FCR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCR };

enum { IER_RX = 0x01, IER_TX = 0x02, IER_LINE = 0x04, IER_MODEM = 0x08 };
enum { IIR_MODEM = 0x00, IIR_NONE = 0x01, IIR_TX = 0x02, IIR_RX = 0x04, IIR_LINE = 0x06, IIR_TIMEOUT = 0x0c, IIR_FIFO = 0xc0 };
enum { FCR_ENABLE = 0x01, FCR_CLEAR_RX = 0x02, FCR_CLEAR_TX = 0x04, FCR_KEPT = 0xc9 };
enum { LCR_DLAB = 0x80 };
enum { MCR_DTR = 0x01, MCR_RTS = 0x02, MCR_OUT1 = 0x04, MCR_OUT2 = 0x08, MCR_LOOP = 0x10 };
enum { LSR_DR = 0x01, LSR_OE = 0x02, LSR_PE = 0x04, LSR_FE = 0x08, LSR_BI = 0x10, LSR_THRE = 0x20, LSR_TEMT = 0x40, LSR_FIFO_ERROR = 0x80 };
enum { LSR_ERRORS = LSR_OE | LSR_PE | LSR_FE | LSR_BI };
enum { MSR_DCTS = 0x01, MSR_DDSR = 0x02, MSR_TERI = 0x04, MSR_DDCD = 0x08, MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80 };

struct uart_fifo {
        uint8_t byte[UART_FIFO];
        uint8_t error[UART_FIFO]; /* LSR bits of each received character */
        uint8_t head, count;
};

struct uart {
        struct device dev;
        struct bus *bus;
        uint16_t port;
        struct irq_line irq;
        struct char_backend backend;
        bool connected;
        bool starved; /* the host's end offered more than we took */
        uint8_t ier, fcr, lcr, mcr, msr, scr, dll, dlm;
        uint8_t line_errors;  /* LSR 1-4, until read */
        bool tx_empty_pending; /* the THRE interrupt: set by emptying, cleared by reading IIR or writing THR */
        bool irq_level;
        struct uart_fifo rx, tx;
};

static unsigned fifo_depth(const struct uart *uart)
{
        return uart->fcr & FCR_ENABLE ? UART_FIFO : 1;
}

static void fifo_push(struct uart_fifo *fifo, uint8_t byte, uint8_t error)
{
        unsigned at = (fifo->head + fifo->count) % UART_FIFO;

        fifo->byte[at] = byte;
        fifo->error[at] = error;
        fifo->count++;
}

static void fifo_drop(struct uart_fifo *fifo, unsigned count)
{
        fifo->head = (fifo->head + count) % UART_FIFO;
        fifo->count -= count;
}

static unsigned trigger_level(const struct uart *uart)
{
        static const uint8_t level[4] = { 1, 4, 8, 14 };

        return uart->fcr & FCR_ENABLE ? level[uart->fcr >> 6] : 1;
}

/* The highest source that is enabled and pending (data sheet table IV). */
static uint8_t interrupt_source(const struct uart *uart)
{
        if ((uart->ier & IER_LINE) && uart->line_errors)
                return IIR_LINE;
        if ((uart->ier & IER_RX) && uart->rx.count)
                return uart->rx.count >= trigger_level(uart) ? IIR_RX : IIR_TIMEOUT;
        if ((uart->ier & IER_TX) && uart->tx_empty_pending)
                return IIR_TX;
        if ((uart->ier & IER_MODEM) && uart->msr & (MSR_DCTS | MSR_DDSR | MSR_TERI | MSR_DDCD))
                return IIR_MODEM;
        return IIR_NONE;
}

static void update_irq(struct uart *uart)
{
        bool level = (uart->mcr & MCR_OUT2) && interrupt_source(uart) != IIR_NONE;

        if (level != uart->irq_level) {
                uart->irq_level = level;
                irq_set(&uart->irq, level);
        }
}

/* A character comes in, from the host or in loopback. */
static void receive(struct uart *uart, uint8_t byte, uint8_t error)
{
        if (uart->rx.count >= fifo_depth(uart)) {
                uart->line_errors |= LSR_OE;
                /* Without FIFOs the new character takes the old one's place (data sheet §8.4 bit 1). */
                if (fifo_depth(uart) == 1)
                        uart->rx.byte[uart->rx.head] = byte;
                return;
        }
        fifo_push(&uart->rx, byte, error);
        if (uart->rx.count == 1)
                uart->line_errors |= error;
}

static bool listens(const struct uart *uart)
{
        return (uart->mcr & (MCR_RTS | MCR_LOOP)) == MCR_RTS && uart->rx.count < fifo_depth(uart);
}

/* After the guest made room or raised RTS. */
static void offer_room(struct uart *uart)
{
        if (uart->starved && listens(uart)) {
                uart->starved = false;
                if (uart->connected)
                        uart->backend.readable(uart->backend.ctx);
        }
}

static void transmit(struct uart *uart)
{
        while (uart->tx.count) {
                unsigned run = MIN((unsigned)uart->tx.count, UART_FIFO - (unsigned)uart->tx.head);
                size_t taken = run;

                if (uart->connected)
                        taken = uart->backend.write(uart->backend.ctx, &uart->tx.byte[uart->tx.head], run);
                fifo_drop(&uart->tx, (unsigned)MIN(taken, (size_t)run));
                if (taken < run)
                        return;
        }
        uart->tx_empty_pending = true;
}

static void write_data(struct uart *uart, uint8_t value)
{
        uart->tx_empty_pending = false;
        if (uart->mcr & MCR_LOOP) {
                receive(uart, value, 0);
                uart->tx_empty_pending = true;
                return;
        }
        if (uart->tx.count >= fifo_depth(uart))
                return; /* a driver that does not look at THRE loses what it writes */
        fifo_push(&uart->tx, value, 0);
        transmit(uart);
}

static uint8_t read_data(struct uart *uart)
{
        uint8_t value = uart->rx.byte[uart->rx.head];

        if (!uart->rx.count)
                return 0;
        fifo_drop(&uart->rx, 1);
        if (uart->rx.count)
                uart->line_errors |= uart->rx.error[uart->rx.head];
        offer_room(uart);
        return value;
}

static uint8_t read_line_status(struct uart *uart)
{
        uint8_t value = uart->line_errors;

        if (uart->rx.count)
                value |= LSR_DR;
        for (unsigned i = 0; (uart->fcr & FCR_ENABLE) && i < uart->rx.count; i++) {
                if (uart->rx.error[(uart->rx.head + i) % UART_FIFO])
                        value |= LSR_FIFO_ERROR;
        }
        if (!uart->tx.count)
                value |= LSR_THRE | LSR_TEMT;
        uart->line_errors = 0;
        return value;
}

/* The modem inputs: in loopback the four outputs (data sheet §8.6 bit 4), else what is connected. */
static void update_modem(struct uart *uart)
{
        uint8_t lines = uart->connected ? MSR_CTS | MSR_DSR | MSR_DCD : 0;
        uint8_t changed;

        if (uart->mcr & MCR_LOOP)
                lines = (uart->mcr & MCR_RTS ? MSR_CTS : 0) | (uart->mcr & MCR_DTR ? MSR_DSR : 0) |
                        (uart->mcr & MCR_OUT1 ? MSR_RI : 0) | (uart->mcr & MCR_OUT2 ? MSR_DCD : 0);
        changed = (uart->msr ^ lines) & 0xf0;
        /* The ring indicator counts only when it ends. */
        if ((changed & MSR_RI) && (lines & MSR_RI))
                changed &= (uint8_t)~MSR_RI;
        uart->msr = lines | (uart->msr & 0x0f) | changed >> 4;
}

static void write_fcr(struct uart *uart, uint8_t value)
{
        bool switched = (value ^ uart->fcr) & FCR_ENABLE;

        if (switched || (value & FCR_ENABLE && value & FCR_CLEAR_RX)) {
                uart->rx = (struct uart_fifo){ 0 };
                uart->line_errors &= LSR_OE;
        }
        if ((switched || (value & FCR_ENABLE && value & FCR_CLEAR_TX)) && uart->tx.count) {
                uart->tx = (struct uart_fifo){ 0 };
                uart->tx_empty_pending = true;
        }
        /* The other bits are programmed only together with bit 0 (data sheet §8.5). */
        uart->fcr = value & FCR_ENABLE ? value & FCR_KEPT : 0;
        offer_room(uart);
}

static uint8_t uart_register_read(struct device *dev, uint64_t offset)
{
        struct uart *uart = container_of(dev, struct uart, dev);
        uint8_t value;

        switch (offset) {
        case REG_DATA:
                return uart->lcr & LCR_DLAB ? uart->dll : read_data(uart);
        case REG_IER:
                return uart->lcr & LCR_DLAB ? uart->dlm : uart->ier;
        case REG_IIR_FCR:
                value = interrupt_source(uart);
                if (value == IIR_TX)
                        uart->tx_empty_pending = false;
                return value | (uart->fcr & FCR_ENABLE ? IIR_FIFO : 0);
        case REG_LCR:
                return uart->lcr;
        case REG_MCR:
                return uart->mcr;
        case REG_LSR:
                return read_line_status(uart);
        case REG_MSR:
                value = uart->msr;
                uart->msr &= 0xf0;
                return value;
        default:
                return uart->scr;
        }
}

static void write_ier(struct uart *uart, uint8_t value)
{
        uint8_t enabled = value & (uint8_t)~uart->ier;

        uart->ier = value & 0x0f;
        /* Enabling the transmitter's interrupt while it is empty interrupts at once. */
        if ((enabled & IER_TX) && !uart->tx.count)
                uart->tx_empty_pending = true;
}

static void uart_register_write(struct device *dev, uint64_t offset, uint8_t value)
{
        struct uart *uart = container_of(dev, struct uart, dev);

        switch (offset) {
        case REG_DATA:
                if (uart->lcr & LCR_DLAB)
                        uart->dll = value;
                else
                        write_data(uart, value);
                break;
        case REG_IER:
                if (uart->lcr & LCR_DLAB)
                        uart->dlm = value;
                else
                        write_ier(uart, value);
                break;
        case REG_IIR_FCR:
                write_fcr(uart, value);
                break;
        case REG_LCR:
                uart->lcr = value;
                break;
        case REG_MCR:
                uart->mcr = value & 0x1f;
                update_modem(uart);
                offer_room(uart);
                break;
        case REG_SCR:
                uart->scr = value;
                break;
        default: /* LSR and MSR: writes are for factory tests */
                break;
        }
}

static uint64_t uart_read(struct device *dev, unsigned region, uint64_t offset, unsigned size_bytes)
{
        uint64_t value = device_read_bytes(dev, offset, size_bytes, uart_register_read);

        update_irq(container_of(dev, struct uart, dev));
        return value;
}

static void uart_write(struct device *dev, unsigned region, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        device_write_bytes(dev, offset, value, size_bytes, uart_register_write);
        update_irq(container_of(dev, struct uart, dev));
}

size_t uart_receive(struct device *dev, const uint8_t *bytes, size_t size_bytes)
{
        struct uart *uart = container_of(dev, struct uart, dev);
        size_t taken = 0;

        pthread_mutex_lock(&dev->lock);
        while (taken < size_bytes && listens(uart))
                receive(uart, bytes[taken++], 0);
        uart->starved = taken < size_bytes;
        update_irq(uart);
        pthread_mutex_unlock(&dev->lock);
        return taken;
}

void uart_writable(struct device *dev)
{
        struct uart *uart = container_of(dev, struct uart, dev);

        pthread_mutex_lock(&dev->lock);
        if (uart->tx.count)
                transmit(uart);
        update_irq(uart);
        pthread_mutex_unlock(&dev->lock);
}

void uart_break(struct device *dev)
{
        struct uart *uart = container_of(dev, struct uart, dev);

        pthread_mutex_lock(&dev->lock);
        /* A break is one zero character with its flag (data sheet §8.4 bit 4). */
        if (!(uart->mcr & MCR_LOOP))
                receive(uart, 0, LSR_BI);
        update_irq(uart);
        pthread_mutex_unlock(&dev->lock);
}

static void uart_reset(struct device *dev)
{
        struct uart *uart = container_of(dev, struct uart, dev);

        uart->ier = uart->fcr = uart->lcr = uart->mcr = uart->scr = uart->dlm = 0;
        uart->dll = 12; /* 9600 baud; undefined in the part */
        uart->rx = uart->tx = (struct uart_fifo){ 0 };
        uart->line_errors = 0;
        uart->tx_empty_pending = false;
        uart->msr = 0;
        update_modem(uart);
        uart->msr &= 0xf0;
        update_irq(uart);
}

static void fifo_save(const struct uart_fifo *fifo, struct writer *out)
{
        writer_u8(out, fifo->count);
        for (unsigned i = 0; i < fifo->count; i++) {
                writer_u8(out, fifo->byte[(fifo->head + i) % UART_FIFO]);
                writer_u8(out, fifo->error[(fifo->head + i) % UART_FIFO]);
        }
}

static int fifo_load(struct uart_fifo *fifo, unsigned depth, struct cursor *in, struct err *err)
{
        unsigned count = cursor_u8(in);

        if (count > depth)
                return err_set(err, -EBADMSG, "uart FIFO of %u bytes holds %u", depth, count);
        *fifo = (struct uart_fifo){ 0 };
        for (unsigned i = 0; i < count; i++) {
                uint8_t byte = cursor_u8(in);

                fifo_push(fifo, byte, cursor_u8(in) & LSR_ERRORS);
        }
        return 0;
}

static void uart_save(struct device *dev, struct writer *out)
{
        struct uart *uart = container_of(dev, struct uart, dev);

        writer_u8(out, uart->ier);
        writer_u8(out, uart->fcr);
        writer_u8(out, uart->lcr);
        writer_u8(out, uart->mcr);
        writer_u8(out, uart->msr);
        writer_u8(out, uart->scr);
        writer_u8(out, uart->dll);
        writer_u8(out, uart->dlm);
        writer_u8(out, uart->line_errors);
        writer_u8(out, uart->tx_empty_pending);
        fifo_save(&uart->rx, out);
        fifo_save(&uart->tx, out);
}

static int uart_load(struct device *dev, uint16_t version, struct cursor *in, struct err *err)
{
        struct uart *uart = container_of(dev, struct uart, dev);
        int r;

        uart->ier = cursor_u8(in) & 0x0f;
        uart->fcr = cursor_u8(in) & FCR_KEPT;
        uart->lcr = cursor_u8(in);
        uart->mcr = cursor_u8(in) & 0x1f;
        uart->msr = cursor_u8(in);
        uart->scr = cursor_u8(in);
        uart->dll = cursor_u8(in);
        uart->dlm = cursor_u8(in);
        uart->line_errors = cursor_u8(in) & LSR_ERRORS;
        uart->tx_empty_pending = cursor_u8(in) & 1;
        r = fifo_load(&uart->rx, fifo_depth(uart), in, err);
        if (r == 0)
                r = fifo_load(&uart->tx, fifo_depth(uart), in, err);
        if (r < 0)
                return r;
        update_modem(uart); /* what is connected here may differ from there */
        update_irq(uart);
        uart->starved = true;
        offer_room(uart);
        return 0;
}

static void uart_free(struct device *dev)
{
        struct uart *uart = container_of(dev, struct uart, dev);

        bus_remove(uart->bus, BUS_PORTS, uart->port, dev);
        device_done(dev);
        free(uart);
}

/* What did not leave before a snapshot leaves now. */
static void uart_resume(struct device *dev)
{
        uart_writable(dev);
}

static const struct device_ops uart_ops = {
        .name = "uart",
        .read = uart_read, .write = uart_write,
        .reset = uart_reset,
        .version = 1, .save = uart_save, .load = uart_load,
        .resume = uart_resume,
        .free = uart_free,
};

int uart_new(struct device_host *host, const char *id, uint16_t port, const struct irq_line *irq, const struct char_backend *backend,
             struct device **dev, struct err *err)
{
        struct uart *uart = calloc(1, sizeof(*uart));
        int r;

        if (!uart)
                return err_nomem(err);
        device_init(&uart->dev, &uart_ops, id);
        uart->bus = host->bus;
        uart->port = port;
        uart->irq = *irq;
        if (backend) {
                uart->backend = *backend;
                uart->connected = true;
        }
        uart_reset(&uart->dev);
        r = bus_add(host->bus, BUS_PORTS, port, UART_PORTS, &uart->dev, 0, err);
        if (r < 0) {
                uart_free(&uart->dev);
                return r;
        }
        *dev = &uart->dev;
        return 0;
}
