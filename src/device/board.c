/*
 * Makes the board's devices and the wires between them; see the picture in board.h.
 *
 * Wires that need a thought: each ISA interrupt goes to both controllers; IRQ 0 and 8 have two sources, of which HPET's legacy
 * replacement picks one; two PCI lines share each 8259 input. Pausing stops the clock first, then the devices' timers; a
 * callback that is on its way finds the clock standing and does nothing.
 */
#include "device/board.h"

#include <errno.h>

#include "device/acpi-pm.h"
#include "device/fw-cfg.h"
#include "device/hpet.h"
#include "device/i8042.h"
#include "device/ioapic.h"
#include "device/pic.h"
#include "device/pit.h"
#include "device/pvpanic.h"
#include "device/rtc.h"
#include "device/uart.h"

/* ELCR as firmware sets it: 9 (SCI), 10 and 11 (PCI) are levels. */
#define ELCR_SLAVE 0x0e

struct board_wires {
        struct board *board;
        struct irq_line pic[16], ioapic[BOARD_GSIS];
        atomic_bool legacy; /* HPET has taken IRQ 0 and 8 */
        pthread_mutex_t pci_lock;
        uint8_t pci_lines; /* INTx lines that are high */
};

static void isa_set(void *ctx, unsigned irq, bool level)
{
        struct board_wires *wires = ctx;

        irq_set(&wires->pic[irq], level);
        irq_set(&wires->ioapic[irq == BOARD_IRQ_TIMER ? BOARD_GSI_TIMER : irq], level);
}

/* PIT and RTC, which HPET may replace. */
static void replaced_set(void *ctx, unsigned irq, bool level)
{
        struct board_wires *wires = ctx;

        if (!atomic_load(&wires->legacy))
                isa_set(wires, irq, level);
}

static void legacy(void *ctx, bool on)
{
        struct board_wires *wires = ctx;

        atomic_store(&wires->legacy, on);
        isa_set(wires, BOARD_IRQ_TIMER, false);
        isa_set(wires, BOARD_IRQ_RTC, false);
}

static void pci_set(void *ctx, unsigned line, bool level)
{
        struct board_wires *wires = ctx;
        unsigned pair = line & 1;

        pthread_mutex_lock(&wires->pci_lock);
        wires->pci_lines = (uint8_t)(level ? wires->pci_lines | 1u << line : wires->pci_lines & ~(1u << line));
        irq_set(&wires->pic[board_pci_irq(line)], wires->pci_lines >> pair & 5);
        pthread_mutex_unlock(&wires->pci_lock);
        irq_set(&wires->ioapic[BOARD_GSI_PCI + line], level);
}

static void intr_set(void *ctx, unsigned number, bool level)
{
        struct board *board = ctx;

        if (board->config.extint)
                board->config.extint(board->config.ctx, level);
}

static void add(struct board *board, struct device *dev)
{
        board->device[board->devices++] = dev;
}

static int new_interrupts(struct board *board, struct err *err)
{
        struct irq_line intr = { .set = intr_set, .ctx = board };
        struct ioapic_changed changed = { .fn = board->config.ioapic_changed, .ctx = board->config.ctx };
        int r = pic_new(board->host, &intr, &board->pic, err);

        if (r < 0)
                return r;
        add(board, board->pic);
        r = ioapic_new(board->host, &changed, &board->ioapic, err);
        if (r < 0)
                return r;
        add(board, board->ioapic);
        for (unsigned i = 0; i < 16; i++) {
                board->wires->pic[i] = pic_line(board->pic, i);
                board->isa[i] = (struct irq_line){ .set = isa_set, .ctx = board->wires, .number = i };
        }
        for (unsigned i = 0; i < BOARD_GSIS; i++)
                board->wires->ioapic[i] = ioapic_line(board->ioapic, i);
        return 0;
}

static int new_timers(struct board *board, struct err *err)
{
        struct irq_line irq0 = { .set = replaced_set, .ctx = board->wires, .number = BOARD_IRQ_TIMER };
        struct irq_line irq8 = { .set = replaced_set, .ctx = board->wires, .number = BOARD_IRQ_RTC };
        struct hpet_wiring wiring = {
                .irq0 = board->isa[BOARD_IRQ_TIMER], .irq8 = board->isa[BOARD_IRQ_RTC], .legacy = legacy, .ctx = board->wires,
        };
        int r = pit_new(board->host, &irq0, &board->pit, err);

        if (r < 0)
                return r;
        add(board, board->pit);
        r = rtc_new(board->host, &irq8, &board->rtc, err);
        if (r < 0)
                return r;
        add(board, board->rtc);
        memcpy(wiring.gsi, board->wires->ioapic, sizeof(wiring.gsi));
        r = hpet_new(board->host, &wiring, &board->hpet, err);
        if (r < 0)
                return r;
        add(board, board->hpet);
        return 0;
}

static int new_power(struct board *board, struct err *err)
{
        int r = acpi_pm_new(board->host, &board->isa[BOARD_IRQ_SCI], &board->pm, err);

        if (r < 0)
                return r;
        add(board, board->pm);
        r = i8042_new(board->host, &board->isa[BOARD_IRQ_KEYBOARD], &board->isa[BOARD_IRQ_MOUSE], &board->i8042, err);
        if (r < 0)
                return r;
        add(board, board->i8042);
        r = pvpanic_new(board->host, board->config.panicked, board->config.ctx, &board->pvpanic, err);
        if (r < 0)
                return r;
        add(board, board->pvpanic);
        return 0;
}

static int new_rest(struct board *board, struct err *err)
{
        const struct board_config *config = &board->config;
        struct irq_line intx[4];
        int r = uart_new(board->host, "com1", BOARD_PORT_COM1, &board->isa[BOARD_IRQ_COM1], config->serial, &board->com1, err);

        if (r < 0)
                return r;
        add(board, board->com1);
        r = fw_cfg_new(board->host, config->cpus, &board->fw_cfg, err);
        if (r < 0)
                return r;
        add(board, board->fw_cfg);
        for (unsigned i = 0; i < 4; i++)
                intx[i] = (struct irq_line){ .set = pci_set, .ctx = board->wires, .number = i };
        r = pci_bus_new(board->host, intx, config->window64, config->window64_size, &board->pci, err);
        if (r < 0)
                return r;
        add(board, pci_bus_device(board->pci));
        return 0;
}

/* What firmware does after power-on and reset. */
static void firmware(struct board *board)
{
        bus_write(board->host->bus, BUS_PORTS, BOARD_PORT_ELCR + 1, ELCR_SLAVE, 1);
}

int board_new(struct device_host *host, const struct board_config *config, struct board **board, struct err *err)
{
        struct board *b = calloc(1, sizeof(*b));
        int r;

        if (!b)
                return err_nomem(err);
        b->wires = calloc(1, sizeof(*b->wires));
        if (!b->wires) {
                free(b);
                return err_nomem(err);
        }
        pthread_mutex_init(&b->wires->pci_lock, NULL);
        b->wires->board = b;
        b->host = host;
        b->config = *config;
        board_clock_init(&b->clock);
        host->clock = &b->clock;
        r = new_interrupts(b, err);
        if (r == 0)
                r = new_timers(b, err);
        if (r == 0)
                r = new_power(b, err);
        if (r == 0)
                r = new_rest(b, err);
        if (r < 0) {
                board_free(b);
                return r;
        }
        firmware(b);
        *board = b;
        return 0;
}

void board_free(struct board *board)
{
        if (!board)
                return;
        while (board->devices)
                device_end(board->device[--board->devices]);
        if (board->host->clock == &board->clock)
                board->host->clock = NULL;
        pthread_mutex_destroy(&board->wires->pci_lock);
        free(board->wires);
        free(board);
}

void board_reset(struct board *board)
{
        for (unsigned i = 0; i < board->devices; i++) {
                if (board->device[i]->ops->reset)
                        board->device[i]->ops->reset(board->device[i]);
        }
        firmware(board);
}

void board_pause(struct board *board)
{
        board_clock_pause(&board->clock);
        for (unsigned i = 0; i < board->devices; i++) {
                if (board->device[i]->ops->quiesce)
                        board->device[i]->ops->quiesce(board->device[i]);
        }
}

void board_resume(struct board *board)
{
        board_clock_resume(&board->clock);
        for (unsigned i = 0; i < board->devices; i++) {
                if (board->device[i]->ops->resume)
                        board->device[i]->ops->resume(board->device[i]);
        }
}

void board_save(struct board *board, struct writer *out)
{
        size_t mark = record_begin(out, "board", BOARD_RECORD_VERSION);

        writer_le64(out, board_clock_ns(&board->clock));
        for (unsigned i = 0; i < board->devices; i++)
                device_record_save(board->device[i], out);
        record_end(out, mark);
}

static struct device *device_by_id(struct board *board, const char *id)
{
        for (unsigned i = 0; i < board->devices; i++) {
                if (strcmp(board->device[i]->id, id) == 0)
                        return board->device[i];
        }
        return NULL;
}

static int load_devices(struct board *board, struct cursor *body, struct err *err)
{
        struct record record;
        struct device *dev;
        int r;

        while ((r = record_next(body, &record, err)) == 0) {
                dev = device_by_id(board, record.name);
                if (!dev)
                        return err_set(err, -EBADMSG, "board has no device \"%s\"", record.name);
                r = device_record_load(dev, &record, err);
                if (r < 0)
                        return r;
        }
        return r == -ENODATA ? 0 : r;
}

int board_load(struct board *board, uint16_t version, struct cursor *body, struct err *err)
{
        uint64_t guest_ns = cursor_le64(body);
        int r;

        if (version != BOARD_RECORD_VERSION)
                return err_set(err, -ENOTSUP, "record of the board has version %u, not %d", version, BOARD_RECORD_VERSION);
        /* 146 years: so long after it the arithmetic stays in range. */
        if (body->bad || guest_ns > UINT64_C(1) << 62)
                return err_set(err, -EBADMSG, "record of the board has no possible time");
        board_clock_set(&board->clock, guest_ns);
        r = load_devices(board, body, err);
        if (r < 0)
                board_reset(board);
        return r;
}
