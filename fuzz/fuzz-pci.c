/* A hostile guest against PCI: configuration space by both mechanisms, BARs moved over each other and everything else, MSI-X. */
#include "device/board.h"

#define FUNCTIONS 3
#define COMMANDS_MAX 500

struct probe {
        struct pci_device pci;
        uint64_t size[PCI_BARS];
};

static uint64_t probe_read(struct pci_device *pci, unsigned bar, uint64_t offset, unsigned size_bytes)
{
        struct probe *p = container_of(pci, struct probe, pci);

        if (bar >= PCI_BARS || offset + size_bytes > p->size[bar])
                abort();
        return offset;
}

static void probe_write(struct pci_device *pci, unsigned bar, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        probe_read(pci, bar, offset, size_bytes);
        if (value & 1)
                pci_msix_send(pci, (unsigned)value >> 1 & 0x7f);
        else
                pci_intx(pci, value & 2);
}

static void probe_save(struct device *dev, struct writer *out)
{
        pci_device_save(container_of(dev, struct pci_device, dev), out);
}

static int probe_load(struct device *dev, uint16_t version, struct cursor *in, struct err *err)
{
        return pci_device_load(container_of(dev, struct pci_device, dev), in, err);
}

static void probe_reset(struct device *dev)
{
        pci_device_reset(container_of(dev, struct pci_device, dev));
}

static void send_message(void *ctx, uint64_t address, uint32_t data)
{
        if (address & 3)
                abort();
}

static const struct device_ops dev_ops = { .name = "probe", .version = 1, .reset = probe_reset, .save = probe_save, .load = probe_load };
static const struct pci_ops ops = { .read = probe_read, .write = probe_write };

static void probe_new(struct probe *p, struct pci_bus *bus, unsigned i)
{
        char id[2] = { (char)('a' + i), 0 };

        memset(p, 0, sizeof(*p));
        if (pci_device_init(&p->pci, bus, &dev_ops, &ops, id, 0x1af4, 0x1040, 0x020000, 0x1af4, 0x40, NULL) < 0)
                abort();
        pci_add_bar(&p->pci, 0, 0x2000u << i, false);
        pci_add_bar(&p->pci, 2, 0x10000u << i, true);
        pci_add_msix(&p->pci, 4, i ? 5 : 64);
        for (unsigned b = 0; b < PCI_BARS; b++)
                p->size[b] = p->pci.bar[b].size_bytes;
}

/* Wherever the BARs are now, no two of them decode the same address. */
static void check(const struct probe probe[FUNCTIONS])
{
        for (unsigned i = 0; i < FUNCTIONS * PCI_BARS; i++) {
                const struct pci_bar *x = &probe[i / PCI_BARS].pci.bar[i % PCI_BARS];

                if (x->address && x->address < 1 << 20)
                        abort();
                for (unsigned j = 0; j < i; j++) {
                        const struct pci_bar *y = &probe[j / PCI_BARS].pci.bar[j % PCI_BARS];

                        if (x->address && y->address && x->address <= y->address + (y->size_bytes - 1) &&
                            y->address <= x->address + (x->size_bytes - 1))
                                abort();
                }
        }
}

static void record(struct probe *p, uint16_t at, uint8_t damage)
{
        struct writer out = { 0 };
        struct cursor in;
        struct record head;

        device_record_save(&p->pci.dev, &out);
        out.bytes[at % out.size] ^= damage;
        in = cursor_from(out.bytes, out.size);
        if (record_next(&in, &head, NULL) == 0 && device_record_load(&p->pci.dev, &head, NULL) < 0 && !damage)
                abort();
        writer_done(&out);
}

static void command(struct bus *bus, struct probe probe[FUNCTIONS], struct cursor *in)
{
        uint8_t what = cursor_u8(in), reg = cursor_u8(in);
        struct probe *p = &probe[(what >> 4 & 3) % FUNCTIONS];
        unsigned size_bytes = 1u << (what >> 6), slot = p->pci.slot;
        const struct pci_bar *bar = &p->pci.bar[reg % PCI_BARS];
        uint64_t ecam = BOARD_ECAM + ((uint64_t)slot << 15) + reg;

        switch (what & 7) {
        case 0:
                bus_write(bus, BUS_MEMORY, ecam, cursor_le64(in), size_bytes);
                break;
        case 1:
                bus_read(bus, BUS_MEMORY, ecam + (what & 8 ? 0xf00 : 0), size_bytes);
                break;
        case 2:
                bus_write(bus, BUS_PORTS, 0xcf8, 0x80000000u | slot << 11 | reg, 4);
                bus_write(bus, BUS_PORTS, 0xcfc + (reg & 3), cursor_le32(in), MIN(size_bytes, 4u));
                bus_read(bus, BUS_PORTS, 0xcfc + (reg & 3), MIN(size_bytes, 4u));
                break;
        case 3:
                bus_write(bus, BUS_PORTS, 0xcf8 + (reg & 7), cursor_le32(in), MIN(size_bytes, 4u));
                break;
        case 4:
                bus_write(bus, BUS_MEMORY, bar->address + cursor_le16(in), cursor_le64(in), size_bytes);
                break;
        case 5:
                bus_read(bus, BUS_MEMORY, bar->address + cursor_le16(in), size_bytes);
                break;
        case 6:
                record(p, cursor_le16(in), reg);
                break;
        default:
                if (reg == 0)
                        probe_reset(&p->pci.dev);
                pci_msix_send(&p->pci, reg);
                break;
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        struct cursor in = cursor_from(bytes, size_bytes);
        struct guest_memory mem;
        struct device_host host = { .mem = &mem, .msi = { .send = send_message } };
        struct irq_line intx[4] = { 0 };
        struct pci_bus *bus;
        static struct probe probe[FUNCTIONS];

        if (bus_new(&host.bus, NULL) < 0 || guest_memory_init(&mem, "fuzz", NULL) < 0 || guest_memory_add(&mem, 0, 1 << 20, NULL) < 0 ||
            pci_bus_new(&host, intx, UINT64_C(1) << 36, BOARD_WINDOW64_SIZE, &bus, NULL) < 0)
                abort();
        for (unsigned i = 0; i < FUNCTIONS; i++)
                probe_new(&probe[i], bus, i);
        for (unsigned i = 0; i < COMMANDS_MAX && cursor_left(&in); i++) {
                command(host.bus, probe, &in);
                check(probe);
        }
        for (unsigned i = 0; i < FUNCTIONS; i++)
                pci_device_done(&probe[i].pci);
        pci_bus_free(bus);
        guest_memory_done(&mem);
        bus_free(host.bus);
        return 0;
}
