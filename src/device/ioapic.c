/*
 * I/O APIC with 24 lines: each line's redirection entry says which message its interrupt becomes.
 *
 *   edge:   wire rises, not masked ──▶ message
 *   level:  wire high, not masked, remote IRR clear ──▶ message, remote IRR set ──EOI of the vector──▶ remote IRR clear, look again
 *
 * Memory: 0x00 IOREGSEL, 0x10 IOWIN, 0x20 the IRQ pin assertion register (not there), 0x40 EOI (version 0x20).
 * Lines carry "asserted", not volts: the polarity bit is stored and changes nothing. Edges on a masked line are lost (82093AA
 * §3.2.4 "Interrupt Mask").
 *
 * Source: Intel 82093AA data sheet (1996) §3; Intel ICH9 data sheet §13.5 (EOI register); destination bits 55-49 as KVM's
 * "MSI extended destination ID" has them.
 */
#include "device/ioapic.h"

#include <errno.h>

#include "device/board.h"

enum { REG_SELECT = 0x00, REG_WINDOW = 0x10, REG_EOI = 0x40 };
enum { INDEX_ID = 0, INDEX_VERSION = 1, INDEX_ARBITRATION = 2, INDEX_TABLE = 0x10 };

#define ENTRY_VECTOR UINT64_C(0xff)
#define ENTRY_MODE UINT64_C(0x700)
#define ENTRY_LOGICAL (UINT64_C(1) << 11)
#define ENTRY_STATUS (UINT64_C(1) << 12)
#define ENTRY_REMOTE_IRR (UINT64_C(1) << 14)
#define ENTRY_LEVEL (UINT64_C(1) << 15)
#define ENTRY_MASKED (UINT64_C(1) << 16)
#define ENTRY_READONLY (ENTRY_STATUS | ENTRY_REMOTE_IRR)
#define ENTRY_KEPT UINT64_C(0xfffe00000001ffff)

#define VERSION (0x20u | (BOARD_GSIS - 1) << 16)
#define MSI_ADDRESS UINT64_C(0xfee00000)

struct ioapic {
        struct device dev;
        struct device_host *host;
        struct ioapic_changed changed;
        uint64_t level_vectors[4];
        uint64_t entry[BOARD_GSIS];
        uint32_t wires;
        uint32_t id;
        uint8_t select;
};

static void send_message(struct ioapic *ioapic, uint64_t entry)
{
        uint64_t address = MSI_ADDRESS | (entry >> 56) << 12 | (entry >> 49 & 0x7f) << 5;
        uint32_t data = (uint32_t)(entry & (ENTRY_VECTOR | ENTRY_MODE));

        if (entry & ENTRY_LOGICAL)
                address |= 1u << 2;
        if (entry & ENTRY_LEVEL)
                data |= 1u << 15 | 1u << 14;
        if (ioapic->host->msi.send)
                ioapic->host->msi.send(ioapic->host->msi.ctx, address, data);
}

/* A level-triggered line whose wire may be high. */
static void serve_level(struct ioapic *ioapic, unsigned line)
{
        uint64_t entry = ioapic->entry[line];

        if (!(ioapic->wires >> line & 1) || !(entry & ENTRY_LEVEL) || (entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR)))
                return;
        ioapic->entry[line] |= ENTRY_REMOTE_IRR;
        send_message(ioapic, entry);
}

static void ioapic_set(void *ctx, unsigned number, bool level)
{
        struct ioapic *ioapic = ctx;
        uint32_t bit = 1u << number, before;

        pthread_mutex_lock(&ioapic->dev.lock);
        before = ioapic->wires;
        ioapic->wires = level ? before | bit : before & ~bit;
        if (ioapic->entry[number] & ENTRY_LEVEL)
                serve_level(ioapic, number);
        else if (level && !(before & bit) && !(ioapic->entry[number] & ENTRY_MASKED))
                send_message(ioapic, ioapic->entry[number]);
        pthread_mutex_unlock(&ioapic->dev.lock);
}

struct irq_line ioapic_line(struct device *dev, unsigned gsi)
{
        if (gsi >= BOARD_GSIS)
                return (struct irq_line){ .set = NULL };
        return (struct irq_line){ .set = ioapic_set, .ctx = container_of(dev, struct ioapic, dev), .number = gsi };
}

static void end_of_interrupt(struct ioapic *ioapic, uint8_t vector)
{
        for (unsigned i = 0; i < BOARD_GSIS; i++) {
                uint64_t entry = ioapic->entry[i];

                if (!(entry & ENTRY_LEVEL) || !(entry & ENTRY_REMOTE_IRR) || (entry & ENTRY_VECTOR) != vector)
                        continue;
                ioapic->entry[i] &= ~ENTRY_REMOTE_IRR;
                serve_level(ioapic, i);
        }
}

void ioapic_eoi(void *dev, uint8_t vector)
{
        struct ioapic *ioapic = container_of((struct device *)dev, struct ioapic, dev);

        pthread_mutex_lock(&ioapic->dev.lock);
        end_of_interrupt(ioapic, vector);
        pthread_mutex_unlock(&ioapic->dev.lock);
}

uint64_t ioapic_entry(struct device *dev, unsigned gsi)
{
        struct ioapic *ioapic = container_of(dev, struct ioapic, dev);
        uint64_t entry;

        pthread_mutex_lock(&dev->lock);
        entry = gsi < BOARD_GSIS ? ioapic->entry[gsi] : 0;
        pthread_mutex_unlock(&dev->lock);
        return entry;
}

/* Tells the accelerator which vectors need their end of interrupt reported. */
static void publish(struct ioapic *ioapic)
{
        uint64_t vectors[4] = { 0 };

        for (unsigned i = 0; i < BOARD_GSIS; i++) {
                uint64_t entry = ioapic->entry[i];

                if ((entry & ENTRY_LEVEL) && (!(entry & ENTRY_MASKED) || (entry & ENTRY_REMOTE_IRR)))
                        vectors[(entry & ENTRY_VECTOR) / 64] |= UINT64_C(1) << (entry & 63);
        }
        if (memcmp(vectors, ioapic->level_vectors, sizeof(vectors)) == 0)
                return;
        memcpy(ioapic->level_vectors, vectors, sizeof(vectors));
        if (ioapic->changed.fn)
                ioapic->changed.fn(ioapic->changed.ctx, vectors);
}

static void write_entry(struct ioapic *ioapic, unsigned index, uint32_t value)
{
        unsigned line = index / 2;
        uint64_t *entry = &ioapic->entry[line];
        uint64_t written = index & 1 ? (*entry & 0xffffffff) | (uint64_t)value << 32 : (*entry & ~UINT64_C(0xffffffff)) | value;

        *entry = (written & ENTRY_KEPT & ~ENTRY_READONLY) | (*entry & ENTRY_READONLY);
        if (!(*entry & ENTRY_LEVEL))
                *entry &= ~ENTRY_REMOTE_IRR;
        publish(ioapic);
        serve_level(ioapic, line);
}

static uint32_t read_window(const struct ioapic *ioapic)
{
        unsigned index = ioapic->select;

        if (index == INDEX_ID || index == INDEX_ARBITRATION)
                return ioapic->id;
        if (index == INDEX_VERSION)
                return VERSION;
        if (index >= INDEX_TABLE && index < INDEX_TABLE + 2 * BOARD_GSIS)
                return (uint32_t)(ioapic->entry[(index - INDEX_TABLE) / 2] >> (index & 1 ? 32 : 0));
        return UINT32_MAX;
}

static void write_window(struct ioapic *ioapic, uint32_t value)
{
        unsigned index = ioapic->select;

        if (index == INDEX_ID)
                ioapic->id = value & 0x0f000000;
        else if (index >= INDEX_TABLE && index < INDEX_TABLE + 2 * BOARD_GSIS)
                write_entry(ioapic, index - INDEX_TABLE, value);
}

static uint64_t ioapic_read(struct device *dev, unsigned region, uint64_t offset, unsigned size_bytes)
{
        struct ioapic *ioapic = container_of(dev, struct ioapic, dev);

        /* The two registers repeat over the page's first 256 bytes only; narrower reads give the low bytes. */
        switch (offset) {
        case REG_SELECT:
                return ioapic->select;
        case REG_WINDOW:
                return read_window(ioapic);
        default:
                return 0;
        }
}

static void ioapic_write(struct device *dev, unsigned region, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        struct ioapic *ioapic = container_of(dev, struct ioapic, dev);

        switch (offset) {
        case REG_SELECT:
                ioapic->select = (uint8_t)value;
                break;
        case REG_WINDOW:
                if (size_bytes >= 4)
                        write_window(ioapic, (uint32_t)value);
                break;
        case REG_EOI:
                end_of_interrupt(ioapic, (uint8_t)value);
                break;
        default:
                break;
        }
}

static void ioapic_reset(struct device *dev)
{
        struct ioapic *ioapic = container_of(dev, struct ioapic, dev);

        for (unsigned i = 0; i < BOARD_GSIS; i++)
                ioapic->entry[i] = ENTRY_MASKED;
        ioapic->select = 0;
        ioapic->id = BOARD_IOAPIC_ID << 24;
        publish(ioapic);
}

static void ioapic_save(struct device *dev, struct writer *out)
{
        struct ioapic *ioapic = container_of(dev, struct ioapic, dev);

        writer_u8(out, ioapic->select);
        writer_le32(out, ioapic->id);
        writer_le32(out, ioapic->wires);
        for (unsigned i = 0; i < BOARD_GSIS; i++)
                writer_le64(out, ioapic->entry[i]);
}

static int ioapic_load(struct device *dev, uint16_t version, struct cursor *in, struct err *err)
{
        struct ioapic *ioapic = container_of(dev, struct ioapic, dev);
        uint8_t select = cursor_u8(in);
        uint32_t id = cursor_le32(in), wires = cursor_le32(in);

        /* A reset, which follows a load that failed, leaves the wires as they are. */
        if (wires >> BOARD_GSIS)
                return err_set(err, -EBADMSG, "ioapic wires 0x%x are past its %d lines", wires, BOARD_GSIS);
        ioapic->select = select;
        ioapic->id = id & 0x0f000000;
        ioapic->wires = wires;
        for (unsigned i = 0; i < BOARD_GSIS; i++) {
                uint64_t entry = cursor_le64(in) & ENTRY_KEPT & ~ENTRY_STATUS;

                ioapic->entry[i] = entry & ENTRY_LEVEL ? entry : entry & ~ENTRY_REMOTE_IRR;
        }
        if (in->bad)
                return err_set(err, -EBADMSG, "ioapic record is cut");
        publish(ioapic);
        return 0;
}

static void ioapic_free(struct device *dev)
{
        struct ioapic *ioapic = container_of(dev, struct ioapic, dev);

        bus_remove(ioapic->host->bus, BUS_MEMORY, BOARD_IOAPIC, dev);
        device_done(dev);
        free(ioapic);
}

static const struct device_ops ioapic_ops = {
        .name = "ioapic",
        .read = ioapic_read, .write = ioapic_write,
        .reset = ioapic_reset,
        .version = 1, .save = ioapic_save, .load = ioapic_load,
        .free = ioapic_free,
};

int ioapic_new(struct device_host *host, const struct ioapic_changed *changed, struct device **dev, struct err *err)
{
        struct ioapic *ioapic = calloc(1, sizeof(*ioapic));
        int r;

        if (!ioapic)
                return err_nomem(err);
        device_init(&ioapic->dev, &ioapic_ops, "ioapic");
        ioapic->host = host;
        ioapic->changed = *changed;
        ioapic_reset(&ioapic->dev);
        r = bus_add(host->bus, BUS_MEMORY, BOARD_IOAPIC, BOARD_IOAPIC_SIZE, &ioapic->dev, 0, err);
        if (r < 0) {
                ioapic_free(&ioapic->dev);
                return r;
        }
        *dev = &ioapic->dev;
        return 0;
}
