/*
 * The board: where everything is, and one function that makes and wires all of it but the processors.
 *
 *   ISA IRQ n ──┬─▶ 8259 input n ──INTR──▶ boot processor's LINT0 (board_config.extint)
 *               └─▶ I/O APIC line n (0 ▶ 2) ──message──▶ host->msi
 *   PCI INTx 0-3 ─▶ I/O APIC lines 16-19, and 8259 inputs 10, 11, 10, 11 (for guests without an I/O APIC)
 *
 * The addresses below are what ACPI tables and loaders publish.
 */
#pragma once

#include "device/char.h"
#include "device/clock.h"
#include "device/device.h"
#include "device/pci.h"

/* Guest physical memory. RAM ends at or below BOARD_HOLE; more of it starts at 4 GiB. */
#define BOARD_HOLE 0xc0000000u          /* 3 GiB */
#define BOARD_PCI_WINDOW 0xc0000000u    /* 32-bit BARs */
#define BOARD_PCI_WINDOW_SIZE 0x20000000u
#define BOARD_ECAM 0xe0000000u          /* 256 buses of 1 MiB */
#define BOARD_ECAM_SIZE 0x10000000u
#define BOARD_PCI_WINDOW_B 0xf0000000u  /* more room for 32-bit BARs */
#define BOARD_PCI_WINDOW_B_SIZE 0x0ec00000u
#define BOARD_IOAPIC 0xfec00000u
#define BOARD_IOAPIC_SIZE 0x1000u
#define BOARD_HPET 0xfed00000u
#define BOARD_HPET_SIZE 0x400u
#define BOARD_LAPIC 0xfee00000u
#define BOARD_LAPIC_SIZE 0x100000u
#define BOARD_FIRMWARE_END 0x100000000u /* a ROM would end at 4 GiB */
#define BOARD_WINDOW64_SIZE 0x800000000u /* 32 GiB for 64-bit BARs, above RAM and aligned to 1 GiB */

/* Ports. */
#define BOARD_PORT_PIC_MASTER 0x20
#define BOARD_PORT_PIT 0x40
#define BOARD_PORT_I8042 0x60           /* data; 0x64 is status and command */
#define BOARD_PORT_SPEAKER 0x61
#define BOARD_PORT_RTC 0x70
#define BOARD_PORT_A20 0x92
#define BOARD_PORT_PIC_SLAVE 0xa0
#define BOARD_PORT_COM1 0x3f8
#define BOARD_PORT_COM2 0x2f8
#define BOARD_PORT_ELCR 0x4d0
#define BOARD_PORT_PVPANIC 0x505
#define BOARD_PORT_FW_CFG 0x510         /* selector, data 0x511, DMA 0x514-0x51b */
#define BOARD_PORT_FW_CFG_SIZE 12
#define BOARD_PORT_PM 0x600             /* ACPI fixed hardware from here */
#define BOARD_PORT_PM1_EVENT 0x600      /* 4 bytes: status, enable */
#define BOARD_PORT_PM1_CONTROL 0x604    /* 2 bytes */
#define BOARD_PORT_PM_TIMER 0x608       /* 4 bytes, 32-bit counter */
#define BOARD_PORT_SMI_COMMAND 0x60c    /* not used: ACPI is always on, FADT SMI_CMD = 0 */
#define BOARD_PORT_GPE0 0x620           /* 4 bytes: 2 status, 2 enable */
#define BOARD_PORT_GPE0_SIZE 4
#define BOARD_PORT_PM_SIZE 0x40
#define BOARD_PORT_RESET 0xcf9          /* FADT RESET_REG; RESET_VALUE 6 */
#define BOARD_RESET_VALUE 0x06
#define BOARD_PORT_PCI 0xcf8
#define BOARD_PM1_SLP_TYP_S5 5          /* \_S5: Package { 5, 5 } */
#define BOARD_PM1_SLP_TYP_S0 0
#define BOARD_PORT_PCI_WINDOW 0x1000    /* I/O window for _CRS (no device uses it): up to 0xffff */

/* Interrupts. GSI n is I/O APIC line n. */
#define BOARD_GSIS 24
#define BOARD_IRQ_TIMER 0               /* GSI 2: MADT interrupt source override, edge, active high */
#define BOARD_GSI_TIMER 2
#define BOARD_IRQ_KEYBOARD 1
#define BOARD_IRQ_COM2 3
#define BOARD_IRQ_COM1 4
#define BOARD_IRQ_RTC 8
#define BOARD_IRQ_SCI 9                 /* level, active high: MADT override with flags 0xd */
#define BOARD_IRQ_MOUSE 12
#define BOARD_GSI_PCI 16                /* 16-19: level, active low by PCI's rule; _PRT by pci_intx_line() */
/* The 8259 input of INTx line 0-3, for the interrupt line register. */
static inline unsigned board_pci_irq(unsigned line)
{
        return line & 1 ? 11 : 10;
}
#define BOARD_IOAPIC_ID 0               /* in MADT; the register's value */

/* HPET: GSIs its timers may use (T0-T2), period 10 ns. */
#define BOARD_HPET_ID 0x8086a201u       /* event timer block ID for the ACPI table: General Capabilities bits 31-0 */

#define BOARD_PM_TIMER_HZ 3579545u
#define BOARD_PIT_HZ 1193182u

struct board_config {
        unsigned cpus;
        /* The 8259's INTR wire (accel->extint); any thread, a device's lock held. */
        void (*extint)(void *ctx, bool level);
        /* The I/O APIC's level-triggered vectors changed (accel->ioapic_changed); may be NULL. */
        void (*ioapic_changed)(void *ctx, const uint64_t level_vectors[4]);
        /* The guest says that it panicked (pvpanic); may be NULL. */
        void (*panicked)(void *ctx, unsigned events);
        void *ctx;
        const struct char_backend *serial; /* COM1; NULL: not connected */
        uint64_t window64, window64_size;  /* for 64-bit BARs; size 0: none */
};

#define BOARD_DEVICES_MAX 16

/* Read-only for others. The PCI devices on it belong to whoever made them. */
struct board {
        struct device_host *host;
        struct board_config config;
        struct board_clock clock;
        struct pci_bus *pci;
        struct device *pic, *ioapic, *pit, *rtc, *hpet, *pm, *com1, *i8042, *fw_cfg, *pvpanic;
        struct device *device[BOARD_DEVICES_MAX]; /* all of them (with the PCI host bridge): reset, save and load in this order */
        unsigned devices;
        struct irq_line isa[16]; /* to the 8259 and the I/O APIC */
        struct board_wires *wires;
};

/*
 * host->bus, ->timers, ->mem, ->msi and ->power are set; host->clock is set by this. Then: accel->connect_pic(accel, pic_ack,
 * board->pic) and accel->connect_ioapic(accel, ioapic_eoi, board->ioapic).
 */
int board_new(struct device_host *host, const struct board_config *config, struct board **board, struct err *err) _must_check_;
void board_free(struct board *board);
/* All its devices; vCPUs do not run. */
void board_reset(struct board *board);
/* Stops the guest's clock and the devices' timers; starts them again where they stood. vCPUs do not run. */
void board_pause(struct board *board);
void board_resume(struct board *board);
/*
 * One record "board" that holds the clock's and each device's; while paused. A load that fails leaves the devices reset.
 * Devices on the PCI bus save themselves.
 */
void board_save(struct board *board, struct writer *out);
int board_load(struct board *board, uint16_t version, struct cursor *body, struct err *err) _must_check_;
#define BOARD_RECORD_VERSION 1
