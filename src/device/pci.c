/*
 * PCI: one root bus with 32 slots of one function each, its host bridge, and how the guest reaches configuration space.
 *
 *   port 0xcf8 (4 bytes) selects, 0xcfc-0xcff reads and writes    PCI Local Bus 3.0 §3.2.2.3.2 (mechanism 1), 256 bytes
 *   memory at BOARD_ECAM, 4 KiB a function, 1 MiB a bus           PCI Express 5.0 §7.2.2
 *   port 0xcf9 (1 byte) resets the machine                        Intel ICH9 data sheet §13.7.5 "RST_CNT"
 *
 * Nobody runs firmware before the guest: a BAR gets its address when it is added, the first place in its window that is free, and
 * the command register has memory decoding and bus mastering on. A machine reset puts this back. A guest may move BARs anywhere
 * outside RAM; where one would cover another range of the bus it is not decoded until that one has gone.
 *
 * INTx: each of the four lines is the OR of the slots wired to it, kept as a bit a slot.
 *
 * Locks: configuration accesses hold the host bridge's lock, then the function's. A line's state has its own, the last one.
 */
#include <errno.h>
#include <inttypes.h>

#include "device/board.h"
#include "device/pci-internal.h"

#define PCI_SLOTS 32
#define REGION_PORTS 0
#define REGION_ECAM 1

/* Type 0 header: PCI Local Bus 3.0 §6.1. */
enum {
        PCI_VENDOR = 0x00, PCI_DEVICE = 0x02, PCI_COMMAND = 0x04, PCI_STATUS = 0x06, PCI_CLASS = 0x08, PCI_CACHE_LINE = 0x0c,
        PCI_BAR0 = 0x10, PCI_BARS_END = 0x28, PCI_SUBSYSTEM_VENDOR = 0x2c, PCI_SUBSYSTEM = 0x2e, PCI_CAPABILITIES = 0x34,
        PCI_INTERRUPT_LINE = 0x3c, PCI_INTERRUPT_PIN = 0x3d, PCI_HEADER_END = 0x40,
};
enum { COMMAND_MEMORY = 0x0002, COMMAND_MASTER = 0x0004, COMMAND_WRITABLE = 0x0546, COMMAND_INTX_OFF = 0x0400 };
enum { STATUS_INTX = 0x08, STATUS_CAPABILITIES = 0x10 };
enum { BAR_MEMORY64 = 0x4 };
enum { RST_CNT_HARD = 0x02, RST_CNT_CPU = 0x04, RST_CNT_WRITABLE = 0x0e };

#define BRIDGE_VENDOR 0x1b36 /* Red Hat: "QEMU PCIe Host bridge" in pci.ids, a host bridge without registers of its own */
#define BRIDGE_DEVICE 0x0008
#define BRIDGE_CLASS 0x060000

struct pci_bus {
        struct device dev;
        struct device_host *host;
        struct pci_device *slot[PCI_SLOTS];
        struct pci_device bridge;
        uint64_t window64, window64_size;
        uint32_t address; /* 0xcf8 */
        uint8_t reset_control;
        bool unplaced; /* some BAR is not decoded because its place was taken */
        pthread_mutex_t intx_lock;
        struct irq_line intx[4];
        uint32_t intx_slots[4];
};

struct device_host *pci_bus_host(struct pci_bus *bus)
{
        return bus->host;
}

struct device *pci_bus_device(struct pci_bus *bus)
{
        return &bus->dev;
}

uint64_t pci_bus_ecam_base(const struct pci_bus *bus)
{
        return BOARD_ECAM;
}

unsigned pci_intx_line(unsigned slot, unsigned pin)
{
        return (slot + pin) % 4;
}

/* ---- INTx ---- */

static void bus_intx(void *ctx, unsigned slot, bool level)
{
        struct pci_bus *bus = ctx;
        unsigned line = pci_intx_line(slot, 0);
        uint32_t before, after;

        pthread_mutex_lock(&bus->intx_lock);
        before = bus->intx_slots[line];
        after = level ? before | 1u << slot : before & ~(1u << slot);
        bus->intx_slots[line] = after;
        if (!before != !after)
                irq_set(&bus->intx[line], after != 0);
        pthread_mutex_unlock(&bus->intx_lock);
}

void pci_intx_update(struct pci_device *pci)
{
        bool off = pci_config_le16(pci, PCI_COMMAND) & COMMAND_INTX_OFF;

        irq_set(&pci->intx, pci->intx_level && !off && !pci_msix_enabled(pci));
}

void pci_intx(struct pci_device *pci, bool level)
{
        if (pci->intx_level == level)
                return;
        pci->intx_level = level;
        pci_intx_update(pci);
}

/* ---- BARs ---- */

static uint64_t bar_wanted(const struct pci_device *pci, unsigned bar)
{
        uint64_t address = pci_config_le32(pci, PCI_BAR0 + 4 * bar) & ~0xfu;

        if (pci->bar[bar].memory64)
                address |= (uint64_t)pci_config_le32(pci, PCI_BAR0 + 4 * bar + 4) << 32;
        return address;
}

static void bar_store(struct pci_device *pci, unsigned bar, uint64_t address)
{
        uint8_t *at = &pci->config[PCI_BAR0 + 4 * bar];

        pci_config_set32(at, (uint32_t)address | (pci->bar[bar].memory64 ? BAR_MEMORY64 : 0));
        if (pci->bar[bar].memory64)
                pci_config_set32(at + 4, (uint32_t)(address >> 32));
}

/* Where a bridge would not forward: address 0, past the top, RAM. */
static bool bar_forbidden(const struct pci_bus *bus, uint64_t address, uint64_t size_bytes)
{
        const struct guest_memory *mem = bus->host->mem;

        if (!address || address + size_bytes - 1 < address)
                return true;
        for (unsigned i = 0; mem && i < mem->regions; i++) {
                if (address < mem->region[i].gpa + mem->region[i].size_bytes && mem->region[i].gpa < address + size_bytes)
                        return true;
        }
        return false;
}

/* Decodes each BAR where configuration space says; true when something moved. */
static bool update_mapping(struct pci_device *pci)
{
        struct pci_bus *bus = pci->bus;
        bool decode = pci_config_le16(pci, PCI_COMMAND) & COMMAND_MEMORY;
        bool moved = false;

        for (unsigned i = 0; i < PCI_BARS; i++) {
                struct pci_bar *bar = &pci->bar[i];
                uint64_t wanted = bar->size_bytes && decode ? bar_wanted(pci, i) : 0;

                if (!bar->size_bytes || wanted == bar->address)
                        continue;
                if (bar->address)
                        bus_remove(bus->host->bus, BUS_MEMORY, bar->address, &pci->dev);
                moved |= bar->address != 0;
                bar->address = 0;
                if (bar_forbidden(bus, wanted, bar->size_bytes))
                        continue;
                if (bus_add(bus->host->bus, BUS_MEMORY, wanted, bar->size_bytes, &pci->dev, i, NULL) < 0) {
                        bus->unplaced = true;
                        continue;
                }
                bar->address = wanted;
                moved = true;
        }
        if (moved && pci->ops->bars_changed)
                pci->ops->bars_changed(pci);
        return moved;
}

/* Something has moved: BARs that found their place taken may find it free. The host bridge's lock is held, no function's. */
static void place_unplaced(struct pci_bus *bus)
{
        bus->unplaced = false;
        for (unsigned i = 0; i < PCI_SLOTS; i++) {
                if (!bus->slot[i])
                        continue;
                pthread_mutex_lock(&bus->slot[i]->dev.lock);
                update_mapping(bus->slot[i]);
                pthread_mutex_unlock(&bus->slot[i]->dev.lock);
        }
}

/* The end of an assigned BAR that overlaps [address, address + size), or 0. */
static uint64_t assigned_overlap(const struct pci_bus *bus, uint64_t address, uint64_t size_bytes)
{
        for (unsigned i = 0; i < PCI_SLOTS; i++) {
                for (unsigned b = 0; bus->slot[i] && b < PCI_BARS; b++) {
                        const struct pci_bar *bar = &bus->slot[i]->bar[b];

                        if (bar->assigned && address < bar->assigned + bar->size_bytes && bar->assigned < address + size_bytes)
                                return bar->assigned + bar->size_bytes;
                }
        }
        return 0;
}

/* The first free place in a window; 0 when there is none. */
static uint64_t find_place(const struct pci_bus *bus, uint64_t window, uint64_t window_size, uint64_t size_bytes)
{
        uint64_t address = align_up(window, size_bytes), taken;

        while (window_size >= size_bytes && address - window <= window_size - size_bytes) {
                taken = assigned_overlap(bus, address, size_bytes);
                if (!taken)
                        return address;
                address = align_up(taken, size_bytes);
        }
        return 0;
}

static uint64_t assign(const struct pci_bus *bus, uint64_t size_bytes, bool memory64)
{
        uint64_t address = memory64 ? find_place(bus, bus->window64, bus->window64_size, size_bytes) : 0;

        if (!address)
                address = find_place(bus, BOARD_PCI_WINDOW, BOARD_PCI_WINDOW_SIZE, size_bytes);
        if (!address)
                address = find_place(bus, BOARD_PCI_WINDOW_B, BOARD_PCI_WINDOW_B_SIZE, size_bytes);
        return address;
}

void pci_add_bar(struct pci_device *pci, unsigned bar, uint64_t size_bytes, bool memory64)
{
        uint64_t mask;

        if (bar >= PCI_BARS || (memory64 && bar + 1 >= PCI_BARS) || pci->bar[bar].size_bytes)
                return;
        /* A page each, so that a guest may map one device and not its neighbour. */
        size_bytes = MAX(size_bytes, (uint64_t)GUEST_PAGE_SIZE);
        while (!is_power_of_two(size_bytes))
                size_bytes += size_bytes & -size_bytes;
        mask = ~(size_bytes - 1);
        pthread_mutex_lock(&pci->bus->dev.lock);
        pci->bar[bar] = (struct pci_bar){
                .size_bytes = size_bytes, .memory64 = memory64, .assigned = assign(pci->bus, size_bytes, memory64),
        };
        pci_config_set32(&pci->writable[PCI_BAR0 + 4 * bar], (uint32_t)mask);
        if (memory64)
                pci_config_set32(&pci->writable[PCI_BAR0 + 4 * bar + 4], (uint32_t)(mask >> 32));
        bar_store(pci, bar, pci->bar[bar].assigned);
        pthread_mutex_lock(&pci->dev.lock);
        update_mapping(pci);
        pthread_mutex_unlock(&pci->dev.lock);
        pthread_mutex_unlock(&pci->bus->dev.lock);
}

/* ---- configuration space ---- */

unsigned pci_add_capability(struct pci_device *pci, uint8_t id, unsigned length)
{
        unsigned at = pci->capabilities_end, link = PCI_CAPABILITIES;

        if (at + length > 256)
                return 0;
        while (pci->config[link])
                link = pci->config[link] + 1u;
        pci->config[link] = (uint8_t)at;
        pci->config[at] = id;
        pci->config[at + 1] = 0;
        pci->config[PCI_STATUS] |= STATUS_CAPABILITIES;
        pci->capabilities_end = (unsigned)align_up(at + length, 4);
        return at;
}

/* Within one dword; dev->lock held. */
static uint32_t config_read(struct pci_device *pci, unsigned offset, unsigned size_bytes)
{
        uint32_t value = 0;

        if (pci->ops->config_reading)
                pci->ops->config_reading(pci, offset, size_bytes);
        for (unsigned i = 0; i < size_bytes; i++) {
                uint8_t byte = pci->config[offset + i];

                if (offset + i == PCI_STATUS && pci->intx_level)
                        byte |= STATUS_INTX;
                value |= (uint32_t)byte << (8 * i);
        }
        return value;
}

static bool touches(unsigned offset, unsigned size_bytes, unsigned start, unsigned end)
{
        return offset < end && offset + size_bytes > start;
}

static bool config_write(struct pci_device *pci, unsigned offset, uint32_t value, unsigned size_bytes)
{
        bool moved = false;

        for (unsigned i = 0; i < size_bytes; i++) {
                uint8_t mask = pci->writable[offset + i];

                pci->config[offset + i] = (uint8_t)((pci->config[offset + i] & ~mask) | (value >> (8 * i) & mask));
        }
        if (touches(offset, size_bytes, PCI_COMMAND, PCI_COMMAND + 2) || touches(offset, size_bytes, PCI_BAR0, PCI_BARS_END))
                moved = update_mapping(pci);
        if (touches(offset, size_bytes, PCI_COMMAND, PCI_COMMAND + 2))
                pci_intx_update(pci);
        pci_msix_config_written(pci, offset, size_bytes);
        if (pci->ops->config_written)
                pci->ops->config_written(pci, offset, size_bytes);
        return moved;
}

/* where: bus << 20 | slot << 15 | function << 12 | offset, as in ECAM. */
static struct pci_device *function_at(struct pci_bus *bus, uint32_t where)
{
        if (where >> 20 || (where >> 12 & 7))
                return NULL;
        return bus->slot[where >> 15 & 31];
}

static uint32_t bus_config_read(struct pci_bus *bus, uint32_t where, unsigned size_bytes)
{
        struct pci_device *pci = function_at(bus, where);
        uint32_t value;

        if (!pci)
                return UINT32_MAX;
        pthread_mutex_lock(&pci->dev.lock);
        value = config_read(pci, where & 0xfff, size_bytes);
        pthread_mutex_unlock(&pci->dev.lock);
        return value;
}

static void bus_config_write(struct pci_bus *bus, uint32_t where, uint32_t value, unsigned size_bytes)
{
        struct pci_device *pci = function_at(bus, where);
        bool moved;

        if (!pci)
                return;
        pthread_mutex_lock(&pci->dev.lock);
        moved = config_write(pci, where & 0xfff, value, size_bytes);
        pthread_mutex_unlock(&pci->dev.lock);
        if (moved && bus->unplaced)
                place_unplaced(bus);
}

/* Wider than a dword or across one: in pieces that a bridge would forward. */
static unsigned piece(uint64_t offset, unsigned size_bytes)
{
        if ((offset & 3) + size_bytes <= 4)
                return size_bytes;
        return offset & 3 ? 1 : 4;
}

static uint64_t ecam_read(struct pci_bus *bus, uint64_t offset, unsigned size_bytes)
{
        uint64_t value = 0;

        for (unsigned at = 0, n; at < size_bytes && at < sizeof(value); at += n) {
                n = piece(offset + at, size_bytes - at);
                value |= (uint64_t)(bus_config_read(bus, (uint32_t)(offset + at), n) & (n < 4 ? (1u << 8 * n) - 1 : UINT32_MAX)) << (8 * at);
        }
        return value;
}

static void ecam_write(struct pci_bus *bus, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        for (unsigned at = 0, n; at < size_bytes; at += n) {
                n = piece(offset + at, size_bytes - at);
                bus_config_write(bus, (uint32_t)(offset + at), (uint32_t)(value >> (8 * at)), n);
        }
}

/* 0xcf8: enable 31, bus 23-16, slot 15-11, function 10-8, register 7-2. */
static uint32_t mechanism1(const struct pci_bus *bus, uint64_t offset)
{
        return (bus->address >> 16 & 0xff) << 20 | (bus->address >> 8 & 0xff) << 12 | (bus->address & 0xfc) | (uint32_t)(offset & 3);
}

static uint64_t host_read(struct device *dev, unsigned region, uint64_t offset, unsigned size_bytes)
{
        struct pci_bus *bus = container_of(dev, struct pci_bus, dev);

        if (region == REGION_ECAM)
                return ecam_read(bus, offset, size_bytes);
        if (offset == 0 && size_bytes == 4)
                return bus->address;
        if (offset == 1 && size_bytes == 1)
                return bus->reset_control;
        if (offset >= 4 && (offset & 3) + size_bytes <= 4 && bus->address >> 31)
                return bus_config_read(bus, mechanism1(bus, offset), size_bytes);
        return UINT64_MAX;
}

/* RST_CNT: a reset happens when bit 2 goes from 0 to 1; here each write with it set asks for one, as FADT's RESET_REG wants. */
static void write_reset_control(struct pci_bus *bus, uint8_t value)
{
        bus->reset_control = value & RST_CNT_WRITABLE & (uint8_t)~RST_CNT_CPU;
        if ((value & RST_CNT_CPU) && bus->host->power)
                bus->host->power(bus->host->ctx, POWER_RESET);
}

static void host_write(struct device *dev, unsigned region, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        struct pci_bus *bus = container_of(dev, struct pci_bus, dev);

        if (region == REGION_ECAM)
                ecam_write(bus, offset, value, size_bytes);
        else if (offset == 0 && size_bytes == 4)
                bus->address = (uint32_t)value & 0x80fffffc;
        else if (offset == 1 && size_bytes == 1)
                write_reset_control(bus, (uint8_t)value);
        else if (offset >= 4 && (offset & 3) + size_bytes <= 4 && bus->address >> 31)
                bus_config_write(bus, mechanism1(bus, offset), (uint32_t)value, size_bytes);
}

/* ---- functions ---- */

static uint64_t function_read(struct device *dev, unsigned region, uint64_t offset, unsigned size_bytes)
{
        struct pci_device *pci = container_of(dev, struct pci_device, dev);

        if (pci->msix.vectors && region == pci->msix.bar)
                return pci_msix_read(pci, offset, size_bytes);
        return pci->ops->read ? pci->ops->read(pci, region, offset, size_bytes) : UINT64_MAX;
}

static void function_write(struct device *dev, unsigned region, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        struct pci_device *pci = container_of(dev, struct pci_device, dev);

        if (pci->msix.vectors && region == pci->msix.bar)
                pci_msix_write(pci, offset, value, size_bytes);
        else if (pci->ops->write)
                pci->ops->write(pci, region, offset, value, size_bytes);
}

static void init_header(struct pci_device *pci, uint16_t vendor, uint16_t device, uint32_t class_code, uint16_t subsystem_vendor,
                        uint16_t subsystem)
{
        pci_config_set16(&pci->config[PCI_VENDOR], vendor);
        pci_config_set16(&pci->config[PCI_DEVICE], device);
        pci_config_set32(&pci->config[PCI_CLASS], class_code << 8);
        pci_config_set16(&pci->config[PCI_SUBSYSTEM_VENDOR], subsystem_vendor);
        pci_config_set16(&pci->config[PCI_SUBSYSTEM], subsystem);
        pci->config[PCI_INTERRUPT_PIN] = 1;
        pci_config_set16(&pci->writable[PCI_COMMAND], COMMAND_WRITABLE);
        pci->writable[PCI_CACHE_LINE] = 0xff;
        pci->writable[PCI_INTERRUPT_LINE] = 0xff;
        pci->capabilities_end = PCI_HEADER_END;
}

/* What firmware would write. */
static void init_firmware(struct pci_device *pci)
{
        pci_config_set16(&pci->config[PCI_COMMAND], COMMAND_MEMORY | COMMAND_MASTER);
        if (pci->config[PCI_INTERRUPT_PIN])
                pci->config[PCI_INTERRUPT_LINE] = (uint8_t)board_pci_irq(pci_intx_line(pci->slot, 0));
        for (unsigned i = 0; i < PCI_BARS; i++) {
                if (pci->bar[i].size_bytes)
                        bar_store(pci, i, pci->bar[i].assigned);
        }
}

static int take_slot(struct pci_bus *bus, struct pci_device *pci, struct err *err)
{
        for (unsigned i = 0; i < PCI_SLOTS; i++) {
                if (!bus->slot[i]) {
                        bus->slot[i] = pci;
                        pci->slot = (uint8_t)i;
                        return 0;
                }
        }
        return err_set(err, -ENOSPC, "no place for device %s: the PCI bus has %d already", pci->dev.id, PCI_SLOTS);
}

int pci_device_init(struct pci_device *pci, struct pci_bus *bus, const struct device_ops *dev_ops, const struct pci_ops *ops, const char *id,
                    uint16_t vendor, uint16_t device, uint32_t class_code, uint16_t subsystem_vendor, uint16_t subsystem,
                    struct err *err)
{
        int r;

        memset(pci, 0, sizeof(*pci));
        pci->bus_ops = *dev_ops;
        pci->bus_ops.read = function_read;
        pci->bus_ops.write = function_write;
        device_init(&pci->dev, &pci->bus_ops, id);
        pci->ops = ops;
        pci->bus = bus;
        init_header(pci, vendor, device, class_code, subsystem_vendor, subsystem);
        pthread_mutex_lock(&bus->dev.lock);
        r = take_slot(bus, pci, err);
        if (r == 0) {
                pci->intx = (struct irq_line){ .set = bus_intx, .ctx = bus, .number = pci->slot };
                init_firmware(pci);
        }
        pthread_mutex_unlock(&bus->dev.lock);
        if (r < 0)
                device_done(&pci->dev);
        return r;
}

void pci_device_done(struct pci_device *pci)
{
        struct pci_bus *bus = pci->bus;

        pthread_mutex_lock(&bus->dev.lock);
        for (unsigned i = 0; i < PCI_BARS; i++) {
                if (pci->bar[i].address)
                        bus_remove(bus->host->bus, BUS_MEMORY, pci->bar[i].address, &pci->dev);
                pci->bar[i].address = 0;
        }
        pci_intx(pci, false);
        bus->slot[pci->slot] = NULL;
        pthread_mutex_unlock(&bus->dev.lock);
        device_done(&pci->dev);
}

void pci_device_reset(struct pci_device *pci)
{
        for (unsigned i = 0; i < PCI_CONFIG_BYTES; i++)
                pci->config[i] &= (uint8_t)~pci->writable[i];
        init_firmware(pci);
        pci_msix_reset(pci);
        pci->intx_level = false;
        pci_intx_update(pci);
        update_mapping(pci);
}

#define SAVED_CONFIG_BYTES 256 /* no capability lies past them */

void pci_device_save(struct pci_device *pci, struct writer *out)
{
        writer_put(out, pci->config, SAVED_CONFIG_BYTES);
        writer_u8(out, pci->intx_level);
        for (unsigned i = 0; i < PCI_BARS; i++)
                writer_le64(out, pci->bar[i].assigned);
        pci_msix_save(pci, out);
}

int pci_device_load(struct pci_device *pci, struct cursor *in, struct err *err)
{
        uint8_t config[SAVED_CONFIG_BYTES];
        int r;

        if (cursor_get(in, config, sizeof(config)) < 0)
                return err_set(err, -EBADMSG, "configuration space in the record of %s is cut", pci->dev.id);
        for (unsigned i = 0; i < SAVED_CONFIG_BYTES; i++) {
                if ((config[i] ^ pci->config[i]) & ~pci->writable[i] & 0xff)
                        return err_set(err, -EBADMSG, "configuration byte 0x%x of %s is 0x%02x in the record, 0x%02x here", i,
                                       pci->dev.id, config[i], pci->config[i]);
        }
        memcpy(pci->config, config, sizeof(config));
        pci->intx_level = cursor_u8(in) & 1;
        for (unsigned i = 0; i < PCI_BARS; i++)
                pci->bar[i].assigned = cursor_le64(in) & -MAX(pci->bar[i].size_bytes, UINT64_C(1));
        r = pci_msix_load(pci, in, err);
        if (r < 0)
                return r;
        update_mapping(pci);
        pci_intx_update(pci);
        return 0;
}

/* ---- the host bridge ---- */

static void host_reset(struct device *dev)
{
        struct pci_bus *bus = container_of(dev, struct pci_bus, dev);

        bus->address = 0;
        bus->reset_control = 0;
        pci_device_reset(&bus->bridge);
}

static void host_save(struct device *dev, struct writer *out)
{
        struct pci_bus *bus = container_of(dev, struct pci_bus, dev);

        writer_le32(out, bus->address);
        writer_u8(out, bus->reset_control);
        pci_device_save(&bus->bridge, out);
}

static int host_load(struct device *dev, uint16_t version, struct cursor *in, struct err *err)
{
        struct pci_bus *bus = container_of(dev, struct pci_bus, dev);

        bus->address = cursor_le32(in) & 0x80fffffc;
        bus->reset_control = cursor_u8(in) & RST_CNT_WRITABLE;
        return pci_device_load(&bus->bridge, in, err);
}

static void host_free(struct device *dev)
{
        pci_bus_free(container_of(dev, struct pci_bus, dev));
}

static const struct device_ops host_ops = {
        .name = "pci-host",
        .read = host_read, .write = host_write,
        .reset = host_reset,
        .version = 1, .save = host_save, .load = host_load,
        .free = host_free,
};

/* 00:00.0 has a header and nothing behind it. */
static const struct device_ops bridge_ops = { .name = "pci-bridge" };
static const struct pci_ops bridge_pci_ops = { .read = NULL };

int pci_bus_new(struct device_host *host, const struct irq_line intx[4], uint64_t window64, uint64_t window64_size, struct pci_bus **bus,
                struct err *err)
{
        struct pci_bus *b = calloc(1, sizeof(*b));
        int r;

        if (!b)
                return err_nomem(err);
        device_init(&b->dev, &host_ops, "pci-host");
        pthread_mutex_init(&b->intx_lock, NULL);
        b->host = host;
        b->window64 = window64;
        b->window64_size = window64_size;
        memcpy(b->intx, intx, sizeof(b->intx));
        r = pci_device_init(&b->bridge, b, &bridge_ops, &bridge_pci_ops, "pci-bridge", BRIDGE_VENDOR, BRIDGE_DEVICE, BRIDGE_CLASS,
                            BRIDGE_VENDOR, 0x1100, err);
        b->bridge.config[PCI_INTERRUPT_PIN] = 0;
        b->bridge.config[PCI_INTERRUPT_LINE] = 0;
        if (r == 0)
                r = bus_add(host->bus, BUS_PORTS, BOARD_PORT_PCI, 8, &b->dev, REGION_PORTS, err);
        if (r == 0)
                r = bus_add(host->bus, BUS_MEMORY, BOARD_ECAM, BOARD_ECAM_SIZE, &b->dev, REGION_ECAM, err);
        if (r < 0) {
                pci_bus_free(b);
                return r;
        }
        *bus = b;
        return 0;
}

void pci_bus_free(struct pci_bus *bus)
{
        if (!bus)
                return;
        bus_remove(bus->host->bus, BUS_PORTS, BOARD_PORT_PCI, &bus->dev);
        bus_remove(bus->host->bus, BUS_MEMORY, BOARD_ECAM, &bus->dev);
        pci_device_done(&bus->bridge);
        pthread_mutex_destroy(&bus->intx_lock);
        device_done(&bus->dev);
        free(bus);
}
