/*
 * ACPI tables with a fixed layout: RSDP, XSDT, FADT, FACS, MADT, MCFG, HPET. See acpi.h; the DSDT is in acpi-dsdt.c.
 *
 * Source: ACPI 6.5 §5.2 (tables), §4.8 (fixed hardware); PCI Firmware 3.3 §4.1.2 (MCFG); IA-PC HPET 1.0a §3.2.4.
 */
#include "vmm/acpi.h"

#include <endian.h>
#include <errno.h>

#include "device/board.h"
#include "vmm/aml.h"

#define OEM_ID "VIRTA "
#define OEM_TABLE_ID "VIRTA   "
#define OEM_REVISION 1u
#define CREATOR_ID 0x54524956u /* "VIRT" */
#define TABLES_MAX 8
#define RSDP_BYTES 36u
#define FACS_BYTES 64u

/* FADT flags, §5.2.9 table 5.10. */
#define FADT_WBINVD (1u << 0)
#define FADT_PROC_C1 (1u << 2)
#define FADT_SLEEP_BUTTON_NONE (1u << 5)
#define FADT_RTC_WAKE_NONE (1u << 6)
#define FADT_TIMER_32BIT (1u << 8)
#define FADT_RESET_REGISTER (1u << 10)

/* IA-PC boot architecture flags, table 5.11. No 8042 flag: the one there is has no keyboard, only the reset line. */
#define BOOT_LEGACY_DEVICES (1u << 0)
#define BOOT_NO_VGA (1u << 2)

#define GAS_MEMORY 0u
#define GAS_IO 1u

#define MADT_PCAT_COMPAT 1u
#define MADT_CPU_ENABLED 1u
#define MADT_FLAGS_LEVEL_HIGH 0xdu
#define MADT_ALL_CPUS 0xffu
#define CENTURY_REGISTER 0x32u

static size_t table_open(struct writer *out, const char *signature, uint8_t revision)
{
        size_t at = out->size;

        writer_put(out, signature, 4);
        writer_le32(out, 0); /* length and checksum: table_close() */
        writer_u8(out, revision);
        writer_u8(out, 0);
        writer_put(out, OEM_ID, 6);
        writer_put(out, OEM_TABLE_ID, 8);
        writer_le32(out, OEM_REVISION);
        writer_le32(out, CREATOR_ID);
        writer_le32(out, 1);
        return at;
}

static uint8_t checksum(const uint8_t *bytes, size_t size)
{
        uint8_t sum = 0;

        while (size--)
                sum = (uint8_t)(sum + *bytes++);
        return (uint8_t)-sum;
}

static void table_close(struct writer *out, size_t at)
{
        uint32_t length = htole32((uint32_t)(out->size - at));

        if (out->bad)
                return;
        memcpy(out->bytes + at + 4, &length, sizeof(length));
        out->bytes[at + 9] = checksum(out->bytes + at, out->size - at);
}

static void pad_to(struct writer *out, size_t alignment)
{
        while (!out->bad && out->size % alignment)
                writer_u8(out, 0);
}

static void zeroes(struct writer *out, size_t count)
{
        while (count--)
                writer_u8(out, 0);
}

/* Generic address structure, §5.2.3.2; access_bytes 0: any. */
static void gas(struct writer *out, uint8_t space, uint64_t address, uint8_t width_bits, uint8_t access)
{
        writer_u8(out, space);
        writer_u8(out, width_bits);
        writer_u8(out, 0);
        writer_u8(out, access);
        writer_le64(out, address);
}

static void put_facs(struct writer *out)
{
        writer_put(out, "FACS", 4);
        writer_le32(out, FACS_BYTES);
        zeroes(out, FACS_BYTES - 8 - 32);
        writer_u8(out, 2); /* version, at offset 32 */
        zeroes(out, 31);
}

static void put_fadt(struct writer *out, uint64_t facs, uint64_t dsdt)
{
        size_t table = table_open(out, "FACP", 6);

        writer_le32(out, (uint32_t)facs);
        writer_le32(out, (uint32_t)dsdt);
        writer_u8(out, 0);
        writer_u8(out, 4); /* preferred profile: enterprise server */
        writer_le16(out, BOARD_IRQ_SCI);
        writer_le32(out, 0); /* SMI_CMD: none, ACPI mode is always on */
        writer_le32(out, 0); /* ACPI_ENABLE, ACPI_DISABLE, S4BIOS_REQ, PSTATE_CNT */
        writer_le32(out, BOARD_PORT_PM1_EVENT);
        writer_le32(out, 0);
        writer_le32(out, BOARD_PORT_PM1_CONTROL);
        writer_le32(out, 0);
        writer_le32(out, 0); /* PM2 */
        writer_le32(out, BOARD_PORT_PM_TIMER);
        writer_le32(out, BOARD_PORT_GPE0);
        writer_le32(out, 0);
        writer_u8(out, 4); /* lengths: PM1 event, PM1 control, PM2, timer, GPE0, GPE1 */
        writer_u8(out, 2);
        writer_u8(out, 0);
        writer_u8(out, 4);
        writer_u8(out, BOARD_PORT_GPE0_SIZE);
        writer_u8(out, 0);
        writer_u8(out, 0); /* GPE1_BASE, CST_CNT */
        writer_u8(out, 0);
        writer_le16(out, 0xffff); /* C2 and C3 latencies: neither is there */
        writer_le16(out, 0xffff);
        writer_le32(out, 0); /* FLUSH_SIZE, FLUSH_STRIDE */
        writer_le16(out, 0); /* DUTY_OFFSET, DUTY_WIDTH */
        writer_le16(out, 0); /* DAY_ALRM, MON_ALRM */
        writer_u8(out, CENTURY_REGISTER);
        writer_le16(out, BOOT_LEGACY_DEVICES | BOOT_NO_VGA);
        writer_u8(out, 0);
        writer_le32(out, FADT_WBINVD | FADT_PROC_C1 | FADT_SLEEP_BUTTON_NONE | FADT_RTC_WAKE_NONE | FADT_TIMER_32BIT |
                                 FADT_RESET_REGISTER);
        gas(out, GAS_IO, BOARD_PORT_RESET, 8, 1);
        writer_u8(out, BOARD_RESET_VALUE);
        writer_le16(out, 0);
        writer_u8(out, 5);   /* minor version: 6.5 */
        writer_le64(out, 0); /* X_FIRMWARE_CTRL: the 32-bit one is given (§5.2.9: only one of them) */
        writer_le64(out, dsdt);
        gas(out, GAS_IO, BOARD_PORT_PM1_EVENT, 32, 2);
        gas(out, 0, 0, 0, 0);
        gas(out, GAS_IO, BOARD_PORT_PM1_CONTROL, 16, 2);
        gas(out, 0, 0, 0, 0);
        gas(out, 0, 0, 0, 0);
        gas(out, GAS_IO, BOARD_PORT_PM_TIMER, 32, 3);
        gas(out, GAS_IO, BOARD_PORT_GPE0, 8 * BOARD_PORT_GPE0_SIZE, 1);
        gas(out, 0, 0, 0, 0);
        gas(out, 0, 0, 0, 0); /* sleep control and status: reduced hardware only */
        gas(out, 0, 0, 0, 0);
        writer_put(out, "VIRTA\0\0", 8); /* hypervisor vendor identity */
        table_close(out, table);
}

static void put_madt(struct writer *out, const struct acpi_config *config)
{
        size_t table = table_open(out, "APIC", 5);

        writer_le32(out, BOARD_LAPIC);
        writer_le32(out, MADT_PCAT_COMPAT);
        for (unsigned i = 0; i < config->cpus; i++) {
                writer_u8(out, 0); /* local APIC, §5.2.12.2 */
                writer_u8(out, 8);
                writer_u8(out, (uint8_t)i);
                writer_u8(out, (uint8_t)i);
                writer_le32(out, MADT_CPU_ENABLED);
        }
        writer_u8(out, 1); /* I/O APIC, §5.2.12.3 */
        writer_u8(out, 12);
        writer_u8(out, BOARD_IOAPIC_ID);
        writer_u8(out, 0);
        writer_le32(out, BOARD_IOAPIC);
        writer_le32(out, 0); /* its first GSI */

        writer_u8(out, 2); /* interrupt source override, §5.2.12.5 */
        writer_u8(out, 10);
        writer_u8(out, 0);
        writer_u8(out, BOARD_IRQ_TIMER);
        writer_le32(out, BOARD_GSI_TIMER);
        writer_le16(out, 0);
        writer_u8(out, 2);
        writer_u8(out, 10);
        writer_u8(out, 0);
        writer_u8(out, BOARD_IRQ_SCI);
        writer_le32(out, BOARD_IRQ_SCI);
        writer_le16(out, MADT_FLAGS_LEVEL_HIGH);

        writer_u8(out, 4); /* local APIC NMI, §5.2.12.7 */
        writer_u8(out, 6);
        writer_u8(out, MADT_ALL_CPUS);
        writer_le16(out, 0);
        writer_u8(out, 1); /* LINT1 */
        table_close(out, table);
}

static void put_mcfg(struct writer *out)
{
        size_t table = table_open(out, "MCFG", 1);

        writer_le64(out, 0);
        writer_le64(out, BOARD_ECAM);
        writer_le16(out, 0);
        writer_u8(out, 0);
        writer_u8(out, (BOARD_ECAM_SIZE >> 20) - 1);
        writer_le32(out, 0);
        table_close(out, table);
}

static void put_hpet(struct writer *out)
{
        size_t table = table_open(out, "HPET", 1);

        writer_le32(out, BOARD_HPET_ID);
        gas(out, GAS_MEMORY, BOARD_HPET, 64, 0);
        writer_u8(out, 0);
        writer_le16(out, 100); /* shortest period in ticks: 1 µs */
        writer_u8(out, 0);
        table_close(out, table);
}

static void put_xsdt(struct writer *out, const uint64_t *tables, unsigned count)
{
        size_t table = table_open(out, "XSDT", 1);

        for (unsigned i = 0; i < count; i++)
                writer_le64(out, tables[i]);
        table_close(out, table);
}

static void fill_rsdp(struct writer *out, uint64_t xsdt)
{
        uint8_t *rsdp = out->bytes;
        uint32_t length = htole32(RSDP_BYTES);

        if (out->bad)
                return;
        memcpy(rsdp, "RSD PTR ", 8);  /* NOLINT(bugprone-not-null-terminated-result): fields of these lengths */
        memcpy(rsdp + 9, OEM_ID, 6); /* NOLINT(bugprone-not-null-terminated-result) */
        rsdp[15] = 2;
        memcpy(rsdp + 20, &length, sizeof(length));
        xsdt = htole64(xsdt);
        memcpy(rsdp + 24, &xsdt, sizeof(xsdt));
        rsdp[8] = checksum(rsdp, 20);
        rsdp[32] = checksum(rsdp, RSDP_BYTES);
}

/* The address at which the next byte of out will lie. */
static uint64_t here(struct writer *out)
{
        return ACPI_BASE + out->size;
}

int acpi_tables(const struct acpi_config *config, struct writer *out, struct err *err)
{
        uint64_t tables[TABLES_MAX];
        unsigned count = 0;
        uint64_t facs, dsdt, xsdt;
        size_t table;

        zeroes(out, RSDP_BYTES);
        pad_to(out, 64);
        facs = here(out);
        put_facs(out);
        dsdt = here(out);
        table = table_open(out, "DSDT", 2);
        acpi_dsdt(config, out);
        table_close(out, table);
        pad_to(out, 16);
        tables[count++] = here(out);
        put_fadt(out, facs, dsdt);
        pad_to(out, 16);
        tables[count++] = here(out);
        put_madt(out, config);
        pad_to(out, 16);
        tables[count++] = here(out);
        put_mcfg(out);
        pad_to(out, 16);
        if (config->hpet) {
                tables[count++] = here(out);
                put_hpet(out);
                pad_to(out, 16);
        }
        xsdt = here(out);
        put_xsdt(out, tables, count);
        fill_rsdp(out, xsdt);
        if (out->bad)
                return err_nomem(err);
        if (out->size > ACPI_END - ACPI_BASE)
                return err_set(err, -ENOSPC, "the ACPI tables have %zu bytes, %u is the most", out->size, ACPI_END - ACPI_BASE);
        return 0;
}

int acpi_build(const struct acpi_config *config, struct guest_memory *mem, uint64_t *rsdp, struct err *err)
{
        _cleanup_(writer_done) struct writer out = { 0 };
        int r = acpi_tables(config, &out, err);

        if (r < 0)
                return r;
        if (guest_memory_write(mem, ACPI_BASE, out.bytes, out.size) < 0)
                return err_set(err, -EFAULT, "no memory for the ACPI tables at 0x%x", ACPI_BASE);
        *rsdp = ACPI_BASE;
        return 0;
}
