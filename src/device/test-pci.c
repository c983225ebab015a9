/* PCI: both configuration mechanisms, BARs that are sized, moved and refused, INTx, capabilities, MSI-X. */
#include "device/test-board.h"

#define PROBE_BAR 0
#define PROBE_BAR64 2
#define PROBE_MSIX 4

struct probe {
        struct pci_device pci;
        unsigned reads, writes, moves, resets;
        unsigned bar;
        uint64_t offset, value;
};

struct setup {
        struct bench *b;
        struct pci_bus *bus;
};

static uint64_t probe_read(struct pci_device *pci, unsigned bar, uint64_t offset, unsigned size_bytes)
{
        struct probe *p = container_of(pci, struct probe, pci);

        p->reads++;
        p->bar = bar;
        p->offset = offset;
        return 0xa5a5a5a5a5a5a5a5;
}

static void probe_write(struct pci_device *pci, unsigned bar, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        struct probe *p = container_of(pci, struct probe, pci);

        p->writes++;
        p->bar = bar;
        p->offset = offset;
        p->value = value;
}

static void probe_moved(struct pci_device *pci)
{
        container_of(pci, struct probe, pci)->moves++;
}

static void probe_reset(struct device *dev)
{
        struct probe *p = container_of(dev, struct probe, pci.dev);

        p->resets++;
        pci_device_reset(&p->pci);
}

static void probe_save(struct device *dev, struct writer *out_)
{
        pci_device_save(container_of(dev, struct pci_device, dev), out_);
}

static int probe_load(struct device *dev, uint16_t version, struct cursor *in_, struct err *err)
{
        return pci_device_load(container_of(dev, struct pci_device, dev), in_, err);
}

static const struct device_ops probe_dev_ops = { .name = "probe", .reset = probe_reset, .version = 1, .save = probe_save, .load = probe_load };
static const struct pci_ops probe_ops = { .read = probe_read, .write = probe_write, .bars_changed = probe_moved };

static struct setup *setup(void)
{
        struct setup *s = calloc(1, sizeof(*s));
        struct irq_line intx[4];

        s->b = bench_new();
        for (unsigned i = 0; i < 4; i++)
                intx[i] = bench_line(s->b, 16 + i);
        assert_int_equal(pci_bus_new(&s->b->host, intx, UINT64_C(0x800000000), BOARD_WINDOW64_SIZE, &s->bus, &s->b->err), 0);
        return s;
}

static void done(struct setup *s)
{
        pci_bus_free(s->bus);
        bench_free(s->b);
        free(s);
}

static struct probe *probe_new(struct setup *s, unsigned vectors)
{
        struct probe *p = calloc(1, sizeof(*p));
        char id[32];
        static unsigned n;

        snprintf(id, sizeof(id), "probe%u", n++);
        if (pci_device_init(&p->pci, s->bus, &probe_dev_ops, &probe_ops, id, 0x1af4, 0x1042, 0x018000, 0x1af4, 0x40, &s->b->err) < 0) {
                free(p);
                return NULL;
        }
        pci_add_bar(&p->pci, PROBE_BAR, 0x4000, false);
        pci_add_bar(&p->pci, PROBE_BAR64, 0x100000, true);
        if (vectors)
                pci_add_msix(&p->pci, PROBE_MSIX, vectors);
        return p;
}

static void probe_free(struct probe *p)
{
        pci_device_done(&p->pci);
        free(p);
}

static uint64_t ecam(unsigned slot, unsigned reg)
{
        return BOARD_ECAM + ((uint64_t)slot << 15) + reg;
}

static uint32_t get(struct setup *s, unsigned slot, unsigned reg)
{
        return (uint32_t)mmio_in(s->b, ecam(slot, reg), 4);
}

static void put(struct setup *s, unsigned slot, unsigned reg, uint32_t value)
{
        mmio_out(s->b, ecam(slot, reg), value, 4);
}

static uint32_t get1(struct setup *s, unsigned slot, unsigned reg, unsigned size_bytes)
{
        out(s->b, 0xcf8, 0x80000000 | slot << 11 | (reg & 0xfc), 4);
        return in(s->b, (uint16_t)(0xcfc + (reg & 3)), size_bytes);
}

static void test_mechanisms(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;
        struct probe *p = probe_new(s, 4);

        assert_int_equal(get1(s, 0, 0, 4), 0x00081b36);
        assert_int_equal(get1(s, 0, 8, 4), 0x06000000);
        assert_int_equal(get1(s, 1, 0, 4), 0x10421af4);
        assert_int_equal(get1(s, 1, 2, 2), 0x1042);
        assert_int_equal(get1(s, 1, 3, 1), 0x10);
        assert_int_equal(get1(s, 1, 8, 4), 0x01800000);
        assert_int_equal(get1(s, 1, 0x2c, 4), 0x00401af4);
        assert_int_equal(get1(s, 2, 0, 4), 0xffffffff);
        assert_int_equal(get1(s, 1, 0x0e, 1), 0);
        out(b, 0xcf8, 0x80010800, 4); /* another bus */
        assert_int_equal(in(b, 0xcfc, 4), 0xffffffff);
        out(b, 0xcf8, 0x80000900, 4); /* another function */
        assert_int_equal(in(b, 0xcfc, 4), 0xffffffff);
        out(b, 0xcf8, 0x00000800, 4); /* not enabled */
        assert_int_equal(in(b, 0xcfc, 4), 0xffffffff);
        assert_int_equal(in(b, 0xcf8, 4), 0x00000800);
        out(b, 0xcf8, 0x12, 1);
        out(b, 0xcfa, 0x1234, 2);
        assert_int_equal(in(b, 0xcf8, 4), 0x00000800);
        /* ECAM: all widths, straddling, past the functions. */
        assert_int_equal(get(s, 1, 0), 0x10421af4);
        assert_int_equal(mmio_in(b, ecam(1, 1), 2), 0x421a);
        assert_int_equal(mmio_in(b, ecam(1, 3), 4), 0x10000610);
        assert_true(mmio_in(b, ecam(1, 0), 8) == UINT64_C(0x0010000610421af4));
        assert_int_equal(mmio_in(b, ecam(1, 0xfff), 1), 0);
        assert_int_equal(mmio_in(b, ecam(2, 0), 2), 0xffff);
        assert_int_equal(mmio_in(b, BOARD_ECAM + 0x1000 + (1 << 15), 4), 0xffffffff);
        assert_int_equal(mmio_in(b, BOARD_ECAM + BOARD_ECAM_SIZE - 4, 4), 0xffffffff);
        /* What is read-only stays. */
        put(s, 1, 0, 0);
        put(s, 1, 8, 0);
        put(s, 1, 0x2c, 0);
        assert_int_equal(get(s, 1, 0), 0x10421af4);
        put(s, 1, 4, 0xffffffff);
        assert_int_equal(get(s, 1, 4), 0x00100546);
        put(s, 1, 0x3c, 0xffff);
        assert_int_equal(get(s, 1, 0x3c), 0x01ff);
        probe_free(p);
        assert_int_equal(get(s, 1, 0), 0xffffffff);
        done(s);
}

static void test_reset_register(void **state)
{
        struct setup *s = setup();

        outb(s->b, 0xcf9, 0x02);
        assert_int_equal(inb(s->b, 0xcf9), 0x02);
        assert_int_equal(s->b->power[POWER_RESET], 0);
        outb(s->b, BOARD_PORT_RESET, BOARD_RESET_VALUE);
        assert_int_equal(s->b->power[POWER_RESET], 1);
        done(s);
}

static void test_bars(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;
        struct probe *p = probe_new(s, 4), *q = probe_new(s, 0);
        uint32_t at32 = get(s, 1, 0x10), low, high;
        uint64_t at64;

        assert_int_equal(at32, BOARD_PCI_WINDOW);
        assert_int_equal(get(s, 1, 0x18) & 0xf, 4);
        at64 = (get(s, 1, 0x18) & ~0xfu) | (uint64_t)get(s, 1, 0x1c) << 32;
        assert_true(at64 == UINT64_C(0x800000000));
        assert_true(get(s, 2, 0x10) != at32);
        mmio_in(b, at32 + 0x10, 4);
        assert_int_equal(p->bar, PROBE_BAR);
        assert_int_equal(p->offset, 0x10);
        mmio_out(b, at64 + 0x20, 7, 8);
        assert_int_equal(p->bar, PROBE_BAR64);
        assert_int_equal(p->value, 7);
        /* Sizing. */
        put(s, 1, 4, 0x0000);
        put(s, 1, 0x10, 0xffffffff);
        put(s, 1, 0x18, 0xffffffff);
        put(s, 1, 0x1c, 0xffffffff);
        assert_int_equal(get(s, 1, 0x10), 0xffffc000);
        assert_int_equal(get(s, 1, 0x18), 0xfff00004);
        assert_int_equal(get(s, 1, 0x1c), 0xffffffff);
        put(s, 1, 0x14, 0xffffffff);
        assert_int_equal(get(s, 1, 0x14), 0);
        p->reads = 0;
        assert_int_equal(mmio_in(b, at32, 4), 0xffffffff);
        assert_int_equal(p->reads, 0);
        /* Moved. */
        put(s, 1, 0x10, 0xd0000000);
        put(s, 1, 0x18, 0xd1000000);
        put(s, 1, 0x1c, 0);
        p->moves = 0;
        put(s, 1, 4, 0x0006);
        assert_true(p->moves > 0);
        mmio_in(b, 0xd0000004, 4);
        mmio_in(b, 0xd10ffff8, 8);
        assert_int_equal(p->reads, 2);
        assert_int_equal(p->offset, 0xffff8);
        assert_true(p->pci.bar[PROBE_BAR].address == 0xd0000000);
        /* Over RAM, over another's, over the I/O APIC's place or at 0: not decoded. */
        put(s, 1, 0x10, 0x00080000);
        assert_true(p->pci.bar[PROBE_BAR].address == 0);
        low = get(s, 2, 0x10);
        put(s, 1, 0x10, low);
        assert_true(p->pci.bar[PROBE_BAR].address == 0);
        mmio_in(b, low, 4);
        assert_int_equal(q->reads, 1);
        /* The other leaves: its place is taken. */
        put(s, 2, 0x10, 0xd8000000);
        assert_true(p->pci.bar[PROBE_BAR].address == low);
        put(s, 1, 0x10, 0);
        assert_true(p->pci.bar[PROBE_BAR].address == 0);
        /* The top of the address space does not wrap. */
        put(s, 1, 0x18, 0xfff00000);
        put(s, 1, 0x1c, 0xffffffff);
        assert_true(p->pci.bar[PROBE_BAR64].address == UINT64_C(0xfffffffffff00000));
        mmio_in(b, UINT64_MAX, 1);
        assert_int_equal(p->offset, 0xfffff);
        /* A reset puts all back. */
        p->pci.dev.ops->reset(&p->pci.dev);
        high = get(s, 1, 0x1c);
        assert_int_equal(get(s, 1, 0x10), at32);
        assert_int_equal(high, at64 >> 32);
        assert_int_equal(get(s, 1, 4) & 0xffff, 0x0006);
        mmio_in(b, at32, 4);
        assert_int_equal(p->bar, PROBE_BAR);
        probe_free(p);
        probe_free(q);
        assert_int_equal(mmio_in(b, at32, 4), 0xffffffff);
        done(s);
}

static void test_places(void **state)
{
        struct setup *s = setup();
        struct probe *p[31];

        for (unsigned i = 0; i < 31; i++) {
                p[i] = probe_new(s, 8);
                assert_non_null(p[i]);
                for (unsigned j = 0; j < i; j++) {
                        for (unsigned k = 0; k < 36; k++) {
                                const struct pci_bar *x = &p[i]->pci.bar[k / 6], *y = &p[j]->pci.bar[k % 6];

                                assert_true(!x->size_bytes || !y->size_bytes || x->assigned + x->size_bytes <= y->assigned ||
                                            y->assigned + y->size_bytes <= x->assigned);
                        }
                }
                assert_true(p[i]->pci.bar[0].address == p[i]->pci.bar[0].assigned);
                assert_int_equal(p[i]->pci.bar[0].assigned % 0x4000, 0);
        }
        assert_null(probe_new(s, 0));
        assert_int_equal(s->b->err.code, -ENOSPC);
        for (unsigned i = 0; i < 31; i++)
                probe_free(p[i]);
        done(s);
}

static void test_intx(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;
        struct probe *p[5];

        for (unsigned i = 0; i < 5; i++)
                p[i] = probe_new(s, i ? 0 : 4);
        assert_int_equal(get(s, 1, 0x3c) & 0xffff, 0x010b);
        assert_int_equal(get(s, 2, 0x3c) & 0xffff, 0x010a);
        assert_int_equal(pci_intx_line(5, 0), 1);
        pci_intx(&p[0]->pci, true);
        assert_true(b->wire[17]);
        assert_int_equal(get(s, 1, 4) >> 16 & 8, 8);
        pci_intx(&p[4]->pci, true); /* slot 5 shares the line */
        pci_intx(&p[0]->pci, false);
        assert_true(b->wire[17]);
        pci_intx(&p[4]->pci, false);
        assert_false(b->wire[17]);
        /* Interrupt disable takes it off the wire, status still shows it. */
        pci_intx(&p[0]->pci, true);
        put(s, 1, 4, 0x0406);
        assert_false(b->wire[17]);
        assert_int_equal(get(s, 1, 4) >> 16 & 8, 8);
        put(s, 1, 4, 0x0006);
        assert_true(b->wire[17]);
        /* MSI-X takes over. */
        put(s, 1, p[0]->pci.msix.capability, 0x80000000);
        assert_false(b->wire[17]);
        put(s, 1, p[0]->pci.msix.capability, 0);
        assert_true(b->wire[17]);
        probe_free(p[0]);
        assert_false(b->wire[17]);
        for (unsigned i = 1; i < 5; i++)
                probe_free(p[i]);
        done(s);
}

static void test_capabilities(void **state)
{
        struct setup *s = setup();
        struct probe *p = probe_new(s, 0);
        unsigned a, c;

        assert_int_equal(get(s, 1, 0x34), 0);
        assert_int_equal(get(s, 1, 4) >> 20 & 1, 0);
        a = pci_add_capability(&p->pci, 0x09, 17);
        c = pci_add_capability(&p->pci, 0x05, 8);
        assert_int_equal(a, 0x40);
        assert_int_equal(c, 0x54);
        assert_int_equal(get(s, 1, 4) >> 20 & 1, 1);
        assert_int_equal(get(s, 1, 0x34), a);
        assert_int_equal(get(s, 1, a) & 0xffff, c << 8 | 0x09);
        assert_int_equal(get(s, 1, c) & 0xffff, 0x05);
        assert_int_equal(pci_add_capability(&p->pci, 0x09, 200), 0);
        probe_free(p);
        done(s);
}

static void test_msix(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;
        struct probe *p = probe_new(s, 4);
        unsigned cap = p->pci.msix.capability;
        uint64_t table = get(s, 1, 0x10 + 4 * PROBE_MSIX);

        assert_int_equal(get(s, 1, cap) & 0x7ff00ff, 0x00030011);
        assert_int_equal(get(s, 1, cap + 4), PROBE_MSIX);
        assert_int_equal(get(s, 1, cap + 8), 0x800 | PROBE_MSIX);
        assert_false(pci_msix_send(&p->pci, 0));
        for (unsigned i = 0; i < 4; i++) {
                assert_int_equal(mmio_in(b, table + 16 * i + 12, 4), 1); /* masked */
                mmio_out(b, table + 16 * i, 0xfee00003 | i << 12, 8);
                mmio_out(b, table + 16 * i + 8, 0x40 + i, 4);
        }
        assert_int_equal(mmio_in(b, table + 16, 4), 0xfee01000);
        assert_int_equal(mmio_in(b, table + 16 + 8, 8), 0x0000000100000041);
        assert_int_equal(mmio_in(b, table + 16 + 9, 1), 0);
        /* Enabled, masked: pending. */
        mmio_out(b, ecam(1, cap + 2), 0x8000, 2);
        assert_true(pci_msix_enabled(&p->pci));
        assert_true(pci_msix_send(&p->pci, 1));
        assert_true(pci_msix_send(&p->pci, 1));
        assert_int_equal(b->messages, 0);
        assert_int_equal(mmio_in(b, table + 0x800, 8), 2);
        mmio_out(b, table + 0x800, 0xff, 8); /* not the guest's to write */
        assert_int_equal(mmio_in(b, table + 0x800, 4), 2);
        mmio_out(b, table + 16 + 12, 0xfffffffe, 4);
        assert_int_equal(b->messages, 1);
        assert_int_equal(b->message[0].address, 0xfee01000);
        assert_int_equal(b->message[0].data, 0x41);
        assert_int_equal(mmio_in(b, table + 0x800, 4), 0);
        assert_true(pci_msix_send(&p->pci, 1));
        assert_int_equal(b->messages, 2);
        /* The function's mask. */
        mmio_out(b, ecam(1, cap + 2), 0xc000, 2);
        assert_true(pci_msix_send(&p->pci, 1));
        assert_true(pci_msix_send(&p->pci, 2));
        assert_int_equal(b->messages, 2);
        assert_int_equal(mmio_in(b, table + 0x800, 4), 6);
        mmio_out(b, ecam(1, cap + 2), 0x8000, 2);
        assert_int_equal(b->messages, 3); /* 2 is masked by itself still */
        assert_int_equal(mmio_in(b, table + 0x800, 4), 4);
        /* Past the table; narrow and unaligned writes. */
        assert_true(pci_msix_send(&p->pci, 63));
        assert_int_equal(mmio_in(b, table + 16 * 4, 4), 0);
        mmio_out(b, table + 16 * 4, 0xffffffff, 4);
        mmio_out(b, table + 2, 0xffff, 2);
        mmio_out(b, table + 2, 0xffffffff, 4);
        assert_int_equal(mmio_in(b, table, 4), 0xfee00000);
        assert_int_equal(p->reads + p->writes, 0);
        p->pci.dev.ops->reset(&p->pci.dev);
        assert_false(pci_msix_enabled(&p->pci));
        assert_int_equal(mmio_in(b, table + 12, 4), 1);
        probe_free(p);
        done(s);
}

static void test_state(void **state)
{
        struct setup *s = setup();
        struct bench *b = s->b;
        struct probe *p = probe_new(s, 4), *q;
        struct writer record = { 0 };
        struct cursor cursor;
        struct record head;
        unsigned cap = p->pci.msix.capability;

        put(s, 1, 0x10, 0xd0000000);
        put(s, 1, cap, 0xc0000000);
        mmio_out(b, get(s, 1, 0x10 + 4 * PROBE_MSIX) + 8, 0x99, 4);
        pci_msix_send(&p->pci, 3);
        out(b, 0xcf8, 0x80000804, 4);
        check_record(&p->pci.dev);
        check_record(pci_bus_device(s->bus));
        assert_int_equal(in(b, 0xcf8, 4), 0x80000804);
        p->reads = 0;
        mmio_in(b, 0xd0000000, 4);
        assert_int_equal(p->reads, 1);
        assert_int_equal(mmio_in(b, get(s, 1, 0x10 + 4 * PROBE_MSIX) + 0x800, 4), 8);
        /* Another kind of device is refused by its configuration space. */
        q = probe_new(s, 2);
        device_record_save(&p->pci.dev, &record);
        cursor = cursor_from(record.bytes, record.size);
        assert_int_equal(record_next(&cursor, &head, &b->err), 0);
        memcpy(head.name, q->pci.dev.id, sizeof(q->pci.dev.id));
        assert_int_equal(device_record_load(&q->pci.dev, &head, &b->err), -EBADMSG);
        assert_non_null(strstr(b->err.text, "configuration byte"));
        writer_done(&record);
        probe_free(p);
        probe_free(q);
        done(s);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_mechanisms),
                cmocka_unit_test(test_reset_register),
                cmocka_unit_test(test_bars),
                cmocka_unit_test(test_places),
                cmocka_unit_test(test_intx),
                cmocka_unit_test(test_capabilities),
                cmocka_unit_test(test_msix),
                cmocka_unit_test(test_state),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
