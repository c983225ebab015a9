/*
 * The DSDT: devices that cannot be found by looking. ACPI 6.5 §5.6 (event model), §6 (device configuration), §7.4 (sleep states).
 *
 * \_SB.PCI0   host bridge: its windows, _PRT straight to I/O APIC lines, _OSC that grants the PCI Express capability (PCI
 *             Firmware 3.3 §4.5.1)
 * \_SB.MRES   what is in use and must not be given to devices: ECAM, the PM block
 * \_SB.COM1 … serial port, RTC, HPET, pvpanic
 * \_SB.Cnnn   one processor each
 * The power button is a fixed one (FADT), S5 is the only sleep state. There is no keyboard device: nobody types on one.
 */
#include <stdio.h>

#include "device/board.h"
#include "vmm/acpi.h"
#include "vmm/aml.h"

#define STA_PRESENT 0xfu /* present, enabled, shown, working */
#define PCI_SLOTS 32u
#define PCI_PINS 4u

#define AML_STORE_AND 0x7bu
#define AML_STORE_OR 0x7du
#define AML_EQUAL 0x93u
#define AML_RETURN 0xa4u
#define AML_ARG0 0x68u
#define AML_ARG3 0x6bu
#define AML_CREATE_DWORD_FIELD 0x8au
#define OSC_EXPRESS_CAPABILITY 0x10u
#define OSC_UNKNOWN_UUID 0x4u

static size_t device_open(struct writer *out, const char *name, const char *hid, unsigned uid)
{
        size_t device = aml_open(out, AML_DEVICE);

        aml_path(out, name);
        if (strlen(hid) == 7)
                aml_name_eisa_id(out, "_HID", hid);
        else
                aml_name_string(out, "_HID", hid);
        aml_name_integer(out, "_UID", uid);
        return device;
}

static void put_pci_windows(struct writer *out, const struct acpi_config *config)
{
        struct aml_resources res = { 0 };

        aml_bus_window(&res, 0, (BOARD_ECAM_SIZE >> 20) - 1);
        aml_io(&res, BOARD_PORT_PCI, 8);
        aml_io_window(&res, 0, BOARD_PORT_PCI - 1);
        aml_io_window(&res, BOARD_PORT_PCI_WINDOW, 0xffff);
        aml_memory32_window(&res, BOARD_PCI_WINDOW, BOARD_PCI_WINDOW_SIZE);
        aml_memory32_window(&res, BOARD_PCI_WINDOW_B, BOARD_PCI_WINDOW_B_SIZE);
        if (config->window64_size)
                aml_memory64_window(&res, config->window64, config->window64_size);
        aml_crs(out, &res);
}

/* Package { address, pin, 0, GSI } for each slot and pin, §6.2.13. */
static void put_pci_routing(struct writer *out)
{
        size_t table;

        writer_u8(out, 0x08);
        aml_path(out, "_PRT");
        table = aml_open(out, AML_PACKAGE);
        writer_u8(out, PCI_SLOTS * PCI_PINS);
        for (unsigned i = 0; i < PCI_SLOTS * PCI_PINS; i++) {
                unsigned slot = i / PCI_PINS, pin = i % PCI_PINS;
                size_t entry = aml_open(out, AML_PACKAGE);

                writer_u8(out, 4);
                aml_integer(out, slot << 16 | 0xffff);
                aml_integer(out, pin);
                aml_integer(out, 0);
                aml_integer(out, BOARD_GSI_PCI + pci_intx_line(slot, pin));
                aml_close(out, entry);
        }
        aml_close(out, table);
}

static void create_dword_field(struct writer *out, unsigned offset, const char *name)
{
        writer_u8(out, AML_CREATE_DWORD_FIELD);
        writer_u8(out, AML_ARG3);
        aml_integer(out, offset);
        aml_path(out, name);
}

/* operation (name, value, name) */
static void update_field(struct writer *out, uint8_t operation, const char *name, unsigned value)
{
        writer_u8(out, operation);
        aml_path(out, name);
        aml_integer(out, value);
        aml_path(out, name);
}

static void put_pci_osc(struct writer *out)
{
        /* 33db4d5b-1ff7-401c-9657-7441c03dd766, as ToUUID() lays it out. */
        static const uint8_t uuid[16] = {
                0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40, 0x96, 0x57, 0x74, 0x41, 0xc0, 0x3d, 0xd7, 0x66,
        };
        size_t method = aml_open(out, AML_METHOD);
        size_t branch, buffer;

        aml_path(out, "_OSC");
        writer_u8(out, 4 | 1 << 3); /* arguments, serialized: it makes named fields */
        create_dword_field(out, 0, "CDW1");
        create_dword_field(out, 8, "CDW3");
        branch = aml_open(out, AML_IF);
        writer_u8(out, AML_EQUAL);
        writer_u8(out, AML_ARG0);
        buffer = aml_open(out, AML_BUFFER);
        aml_integer(out, sizeof(uuid));
        writer_put(out, uuid, sizeof(uuid));
        aml_close(out, buffer);
        update_field(out, AML_STORE_AND, "CDW3", OSC_EXPRESS_CAPABILITY);
        aml_close(out, branch);
        branch = aml_open(out, AML_ELSE);
        update_field(out, AML_STORE_OR, "CDW1", OSC_UNKNOWN_UUID);
        aml_close(out, branch);
        writer_u8(out, AML_RETURN);
        writer_u8(out, AML_ARG3);
        aml_close(out, method);
}

static void put_pci_bridge(struct writer *out, const struct acpi_config *config)
{
        size_t device = device_open(out, "PCI0", "PNP0A08", 0);

        aml_name_eisa_id(out, "_CID", "PNP0A03");
        aml_name_integer(out, "_SEG", 0);
        aml_name_integer(out, "_BBN", 0);
        aml_name_integer(out, "_CCA", 1);
        put_pci_osc(out);
        put_pci_windows(out, config);
        put_pci_routing(out);
        aml_close(out, device);
}

static void put_reserved(struct writer *out)
{
        struct aml_resources res = { 0 };
        size_t device = device_open(out, "MRES", "PNP0C02", 0);

        aml_memory32(&res, BOARD_ECAM, BOARD_ECAM_SIZE);
        aml_io(&res, BOARD_PORT_PM, BOARD_PORT_PM_SIZE);
        aml_io(&res, BOARD_PORT_ELCR, 2);
        aml_crs(out, &res);
        aml_close(out, device);
}

static void put_port_device(struct writer *out, const char *name, const char *hid, uint16_t port, uint8_t ports, int irq)
{
        struct aml_resources res = { 0 };
        size_t device = device_open(out, name, hid, 0);

        aml_name_integer(out, "_STA", STA_PRESENT);
        aml_io(&res, port, ports);
        if (irq >= 0)
                aml_irq(&res, (unsigned)irq);
        aml_crs(out, &res);
        aml_close(out, device);
}

static void put_hpet_device(struct writer *out)
{
        struct aml_resources res = { 0 };
        size_t device = device_open(out, "HPET", "PNP0103", 0);

        aml_memory32(&res, BOARD_HPET, BOARD_HPET_SIZE);
        aml_crs(out, &res);
        aml_close(out, device);
}

static void put_processors(struct writer *out, unsigned cpus)
{
        for (unsigned i = 0; i < cpus; i++) {
                char name[16];

                snprintf(name, sizeof(name), "C%03X", i & 0xfff);
                aml_close(out, device_open(out, name, "ACPI0007", i));
        }
}

static void put_s5(struct writer *out)
{
        size_t package;

        writer_u8(out, 0x08);
        aml_path(out, "_S5_");
        package = aml_open(out, AML_PACKAGE);
        writer_u8(out, 4);
        aml_integer(out, BOARD_PM1_SLP_TYP_S5);
        aml_integer(out, BOARD_PM1_SLP_TYP_S5);
        aml_integer(out, 0);
        aml_integer(out, 0);
        aml_close(out, package);
}

void acpi_dsdt(const struct acpi_config *config, struct writer *out)
{
        size_t scope = aml_open(out, AML_SCOPE);

        aml_path(out, "_SB_");
        put_pci_bridge(out, config);
        put_reserved(out);
        put_port_device(out, "COM1", "PNP0501", BOARD_PORT_COM1, 8, BOARD_IRQ_COM1);
        put_port_device(out, "RTC0", "PNP0B00", BOARD_PORT_RTC, 2, BOARD_IRQ_RTC);
        put_port_device(out, "PEVT", "QEMU0001", BOARD_PORT_PVPANIC, 1, -1);
        if (config->hpet)
                put_hpet_device(out);
        put_processors(out, config->cpus);
        aml_close(out, scope);
        put_s5(out);
}
