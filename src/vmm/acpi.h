/*
 * The machine's ACPI tables: what the guest learns about processors, interrupts, PCI, power and time.
 *
 * Full hardware (not reduced): PM1 and GPE blocks, PM timer and reset register of the board (board.h) with ACPI always on.
 * The tables lie from ACPI_BASE, in the area where a BIOS has them: RSDP first, then all others.
 */
#pragma once

#include "base/cursor.h"
#include "base/guest-memory.h"

#define ACPI_BASE 0xe0000u
#define ACPI_END 0x100000u

struct acpi_config {
        unsigned cpus;                    /* APIC IDs 0 … cpus - 1 */
        uint64_t window64, window64_size; /* for 64-bit BARs; size 0: none */
        bool hpet;
};

/* Writes the tables; *rsdp is their root pointer's address. */
int acpi_build(const struct acpi_config *config, struct guest_memory *mem, uint64_t *rsdp, struct err *err) _must_check_;

/* All tables as in memory from ACPI_BASE, for tests; out grows by at most ACPI_END - ACPI_BASE bytes. */
int acpi_tables(const struct acpi_config *config, struct writer *out, struct err *err) _must_check_;

/* acpi-dsdt.c: the body of the DSDT, without its header. */
void acpi_dsdt(const struct acpi_config *config, struct writer *out);
