/*
 * The pair of 8259A interrupt controllers of a PC, with the chipset's edge/level registers.
 *
 *   inputs 0,1,3-7 ─▶ master ─INTR─▶ boot processor          ports 0x20, 0x21; 0xa0, 0xa1; 0x4d0, 0x4d1 (ELCR)
 *   inputs 8-15 ──▶ slave ──▶ master's input 2
 *
 * An input that is edge-triggered latches its rising edge in IRR until it is acknowledged; a falling wire does not take the
 * request back (the part would answer with a spurious IRQ 7 then; nothing relies on that). A level-triggered input is in IRR
 * exactly while its wire is high. The slave's output is seen by the master as a level, so that a second request behind one that
 * was acknowledged is never lost.
 *
 * Limits: 8080 mode and buffered mode are stored and not acted on; the slave is always on input 2.
 *
 * Source: Intel 8259A data sheet (1988); ELCR: Intel ICH9 data sheet §13.4.
 */
#include "device/pic.h"

#include <errno.h>

#include "device/board.h"

enum { REGION_MASTER, REGION_SLAVE, REGION_ELCR };
enum { CASCADE = 2, SPURIOUS = 7, NO_IRQ = 8 };

/* Where an initialization sequence stands. */
enum pic_init { INIT_DONE, INIT_ICW2, INIT_ICW3, INIT_ICW4 };

struct pic_chip {
        uint8_t irr, imr, isr;
        uint8_t wires;
        uint8_t elcr;
        uint8_t base;     /* ICW2: vector of input 0 */
        uint8_t highest;  /* the input with the highest priority: rotation */
        uint8_t init;     /* enum pic_init */
        bool single, needs_icw4;
        bool auto_eoi, rotate_auto_eoi, special_mask, special_nested;
        bool read_isr, poll;
};

struct pic {
        struct device dev;
        struct bus *bus;
        struct irq_line intr;
        bool intr_level;
        struct pic_chip chip[2];
};

static const uint8_t elcr_writable[2] = { 0xf8, 0xde }; /* IRQ 0, 1, 2, 8 and 13 are edges always */

/* The requested input of highest priority: 0 (highest) to 7 in order of priority, NO_IRQ when none. */
static unsigned first_priority(const struct pic_chip *chip, uint8_t bits)
{
        unsigned priority = 0;

        if (!bits)
                return NO_IRQ;
        while (!(bits >> ((priority + chip->highest) & 7) & 1))
                priority++;
        return priority;
}

/* The input to serve now, or NO_IRQ: requested, not masked, above what is in service (data sheet "Fully nested mode"). */
static unsigned chip_request(const struct pic_chip *chip, bool master)
{
        unsigned request = first_priority(chip, chip->irr & (uint8_t)~chip->imr);
        uint8_t serving = chip->isr;
        unsigned current;

        if (request == NO_IRQ)
                return NO_IRQ;
        if (chip->special_mask)
                serving &= (uint8_t)~chip->imr;
        /* Special fully nested: a higher input of the slave may interrupt a lower one. */
        if (chip->special_nested && master)
                serving &= (uint8_t)~(1u << CASCADE);
        current = first_priority(chip, serving);
        return request < current ? (request + chip->highest) & 7 : NO_IRQ;
}

static void update(struct pic *pic)
{
        bool slave = chip_request(&pic->chip[1], false) != NO_IRQ;
        bool level;

        if (slave)
                pic->chip[0].irr |= 1u << CASCADE;
        else
                pic->chip[0].irr &= (uint8_t)~(1u << CASCADE);
        level = chip_request(&pic->chip[0], true) != NO_IRQ;
        if (level != pic->intr_level) {
                pic->intr_level = level;
                irq_set(&pic->intr, level);
        }
}

static void pic_set(void *ctx, unsigned number, bool level)
{
        struct pic *pic = ctx;
        struct pic_chip *chip = &pic->chip[number >> 3 & 1];
        uint8_t bit = (uint8_t)(1u << (number & 7));

        pthread_mutex_lock(&pic->dev.lock);
        if (chip->elcr & bit)
                chip->irr = level ? chip->irr | bit : chip->irr & (uint8_t)~bit;
        else if (level && !(chip->wires & bit))
                chip->irr |= bit;
        chip->wires = level ? chip->wires | bit : chip->wires & (uint8_t)~bit;
        update(pic);
        pthread_mutex_unlock(&pic->dev.lock);
}

struct irq_line pic_line(struct device *dev, unsigned irq)
{
        if (irq == CASCADE || irq > 15)
                return (struct irq_line){ .set = NULL };
        return (struct irq_line){ .set = pic_set, .ctx = container_of(dev, struct pic, dev), .number = irq };
}

/* The second INTA cycle: the request becomes in service. */
static void serve(struct pic_chip *chip, unsigned irq)
{
        uint8_t bit = (uint8_t)(1u << irq);

        if (chip->auto_eoi) {
                if (chip->rotate_auto_eoi)
                        chip->highest = (irq + 1) & 7;
        } else {
                chip->isr |= bit;
        }
        if (!(chip->elcr & bit))
                chip->irr &= (uint8_t)~bit;
}

static unsigned chip_ack(struct pic_chip *chip, bool master)
{
        unsigned irq = chip_request(chip, master);

        if (irq == NO_IRQ)
                return SPURIOUS; /* and nothing is in service */
        serve(chip, irq);
        return irq;
}

int pic_ack(void *dev)
{
        struct pic *pic = container_of((struct device *)dev, struct pic, dev);
        unsigned irq;
        int vector;

        pthread_mutex_lock(&pic->dev.lock);
        irq = chip_ack(&pic->chip[0], true);
        vector = pic->chip[0].base + (int)irq;
        if (irq == CASCADE)
                vector = pic->chip[1].base + (int)chip_ack(&pic->chip[1], false);
        update(pic);
        pthread_mutex_unlock(&pic->dev.lock);
        return vector;
}

static void write_icw1(struct pic_chip *chip, uint8_t value)
{
        chip->init = INIT_ICW2;
        chip->single = value & 0x02;
        chip->needs_icw4 = value & 0x01;
        chip->irr &= chip->elcr; /* the edge sense circuit is reset */
        chip->imr = chip->isr = 0;
        chip->highest = 0;
        chip->special_mask = chip->read_isr = chip->poll = false;
        chip->auto_eoi = chip->rotate_auto_eoi = chip->special_nested = false;
}

static void end_of_interrupt(struct pic_chip *chip, unsigned irq, bool rotate)
{
        chip->isr &= (uint8_t)~(1u << irq);
        if (rotate)
                chip->highest = (irq + 1) & 7;
}

/* Non-specific: the one in service of highest priority; with the special mask, of those not masked. */
static void end_highest(struct pic_chip *chip, bool rotate)
{
        uint8_t serving = chip->special_mask ? chip->isr & (uint8_t)~chip->imr : chip->isr;
        unsigned priority = first_priority(chip, serving);

        if (priority != NO_IRQ)
                end_of_interrupt(chip, (priority + chip->highest) & 7, rotate);
}

static void write_ocw2(struct pic_chip *chip, uint8_t value)
{
        switch (value >> 5) {
        case 0:
        case 4:
                chip->rotate_auto_eoi = value >> 7;
                break;
        case 1:
        case 5:
                end_highest(chip, value >> 7);
                break;
        case 3:
        case 7:
                end_of_interrupt(chip, value & 7, value >> 7);
                break;
        case 6:
                chip->highest = (value + 1) & 7;
                break;
        default: /* 2: no operation */
                break;
        }
}

static void write_ocw3(struct pic_chip *chip, uint8_t value)
{
        chip->poll = value & 0x04;
        if (value & 0x02)
                chip->read_isr = value & 0x01;
        if (value & 0x40)
                chip->special_mask = value & 0x20;
}

static void write_data(struct pic_chip *chip, uint8_t value)
{
        switch (chip->init) {
        case INIT_ICW2:
                chip->base = value & 0xf8;
                chip->init = !chip->single ? INIT_ICW3 : chip->needs_icw4 ? INIT_ICW4 : INIT_DONE;
                break;
        case INIT_ICW3:
                chip->init = chip->needs_icw4 ? INIT_ICW4 : INIT_DONE;
                break;
        case INIT_ICW4:
                chip->special_nested = value & 0x10;
                chip->auto_eoi = value & 0x02;
                chip->init = INIT_DONE;
                break;
        default:
                chip->imr = value;
                break;
        }
}

static void chip_write(struct pic_chip *chip, unsigned a0, uint8_t value)
{
        if (a0)
                write_data(chip, value);
        else if (value & 0x10)
                write_icw1(chip, value);
        else if (value & 0x08)
                write_ocw3(chip, value);
        else
                write_ocw2(chip, value);
}

static uint8_t chip_read(struct pic_chip *chip, bool master, unsigned a0)
{
        if (chip->poll) {
                unsigned irq = chip_request(chip, master);

                chip->poll = false;
                if (irq == NO_IRQ)
                        return 0;
                serve(chip, irq);
                return (uint8_t)(0x80 | irq);
        }
        if (a0)
                return chip->imr;
        return chip->read_isr ? chip->isr : chip->irr;
}

static void write_elcr(struct pic_chip *chip, uint8_t value)
{
        uint8_t to_edge = chip->elcr & (uint8_t)~value;

        chip->elcr = value;
        chip->irr &= (uint8_t)~to_edge;
        chip->irr = (chip->irr & (uint8_t)~value) | (chip->wires & value);
}

static uint64_t pic_read(struct device *dev, unsigned region, uint64_t offset, unsigned size_bytes)
{
        struct pic *pic = container_of(dev, struct pic, dev);
        uint64_t value = 0;

        for (unsigned i = 0; i < size_bytes; i++) {
                uint8_t byte = region == REGION_ELCR ? pic->chip[offset + i].elcr :
                                                       chip_read(&pic->chip[region], region == REGION_MASTER, (unsigned)offset + i);

                value |= (uint64_t)byte << (8 * i);
        }
        update(pic);
        return value;
}

static void pic_write(struct device *dev, unsigned region, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        struct pic *pic = container_of(dev, struct pic, dev);

        for (unsigned i = 0; i < size_bytes; i++) {
                uint8_t byte = (uint8_t)(value >> (8 * i));

                if (region == REGION_ELCR)
                        write_elcr(&pic->chip[offset + i], byte & elcr_writable[offset + i]);
                else
                        chip_write(&pic->chip[region], (unsigned)offset + i, byte);
        }
        update(pic);
}

static void pic_reset(struct device *dev)
{
        struct pic *pic = container_of(dev, struct pic, dev);

        for (unsigned i = 0; i < 2; i++) {
                uint8_t wires = pic->chip[i].wires;

                /* All masked, vectors as a PC's firmware leaves them: the part itself is silent until it is initialized. */
                pic->chip[i] = (struct pic_chip){ .wires = wires, .imr = 0xff, .base = i ? 0x70 : 0x08 };
        }
        update(pic);
}

static void chip_save(const struct pic_chip *chip, struct writer *out)
{
        writer_u8(out, chip->irr);
        writer_u8(out, chip->imr);
        writer_u8(out, chip->isr);
        writer_u8(out, chip->wires);
        writer_u8(out, chip->elcr);
        writer_u8(out, chip->base);
        writer_u8(out, chip->highest);
        writer_u8(out, chip->init);
        writer_u8(out, (uint8_t)(chip->single | chip->needs_icw4 << 1 | chip->auto_eoi << 2 | chip->rotate_auto_eoi << 3 |
                                 chip->special_mask << 4 | chip->special_nested << 5 | chip->read_isr << 6 | chip->poll << 7));
}

static int chip_load(struct pic_chip *chip, unsigned index, struct cursor *in, struct err *err)
{
        uint8_t flags;

        chip->irr = cursor_u8(in);
        chip->imr = cursor_u8(in);
        chip->isr = cursor_u8(in);
        chip->wires = cursor_u8(in);
        chip->elcr = cursor_u8(in);
        chip->base = cursor_u8(in);
        chip->highest = cursor_u8(in);
        chip->init = cursor_u8(in);
        flags = cursor_u8(in);
        chip->single = flags & 0x01;
        chip->needs_icw4 = flags & 0x02;
        chip->auto_eoi = flags & 0x04;
        chip->rotate_auto_eoi = flags & 0x08;
        chip->special_mask = flags & 0x10;
        chip->special_nested = flags & 0x20;
        chip->read_isr = flags & 0x40;
        chip->poll = flags & 0x80;
        if (chip->highest > 7 || chip->init > INIT_ICW4 || (chip->base & 7) || (chip->elcr & ~elcr_writable[index] & 0xff))
                return err_set(err, -EBADMSG, "pic chip %u: priority %u, step %u, base 0x%02x, elcr 0x%02x is not possible", index,
                               chip->highest, chip->init, chip->base, chip->elcr);
        return 0;
}

static void pic_save(struct device *dev, struct writer *out)
{
        struct pic *pic = container_of(dev, struct pic, dev);

        chip_save(&pic->chip[0], out);
        chip_save(&pic->chip[1], out);
}

static int pic_load(struct device *dev, uint16_t version, struct cursor *in, struct err *err)
{
        struct pic *pic = container_of(dev, struct pic, dev);

        for (unsigned i = 0; i < 2; i++) {
                int r = chip_load(&pic->chip[i], i, in, err);

                if (r < 0)
                        return r;
        }
        update(pic);
        return 0;
}

static void pic_free(struct device *dev)
{
        struct pic *pic = container_of(dev, struct pic, dev);

        bus_remove(pic->bus, BUS_PORTS, BOARD_PORT_PIC_MASTER, dev);
        bus_remove(pic->bus, BUS_PORTS, BOARD_PORT_PIC_SLAVE, dev);
        bus_remove(pic->bus, BUS_PORTS, BOARD_PORT_ELCR, dev);
        device_done(dev);
        free(pic);
}

static const struct device_ops pic_ops = {
        .name = "pic",
        .read = pic_read, .write = pic_write,
        .reset = pic_reset,
        .version = 1, .save = pic_save, .load = pic_load,
        .free = pic_free,
};

int pic_new(struct device_host *host, const struct irq_line *intr, struct device **dev, struct err *err)
{
        struct pic *pic = calloc(1, sizeof(*pic));
        int r;

        if (!pic)
                return err_nomem(err);
        device_init(&pic->dev, &pic_ops, "pic");
        pic->bus = host->bus;
        pic->intr = *intr;
        pic_reset(&pic->dev);
        r = bus_add(host->bus, BUS_PORTS, BOARD_PORT_PIC_MASTER, 2, &pic->dev, REGION_MASTER, err);
        if (r == 0)
                r = bus_add(host->bus, BUS_PORTS, BOARD_PORT_PIC_SLAVE, 2, &pic->dev, REGION_SLAVE, err);
        if (r == 0)
                r = bus_add(host->bus, BUS_PORTS, BOARD_PORT_ELCR, 2, &pic->dev, REGION_ELCR, err);
        if (r < 0) {
                pic_free(&pic->dev);
                return r;
        }
        *dev = &pic->dev;
        return 0;
}
