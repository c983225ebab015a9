/*
 * PCI: one root bus, type 0 functions, ECAM and the 0xcf8 mechanism, BARs and MSI-X. PCI Local Bus 3.0, PCI Express Base 5.0
 * §7.2.2 (ECAM), PCI Firmware 3.3.
 */
#pragma once

#include "device/device.h"

#define PCI_BARS 6
#define PCI_CONFIG_BYTES 4096
#define PCI_MSIX_VECTORS_MAX 64

struct pci_bus;
struct pci_device;

struct pci_ops {
        /* BAR accesses, dev->lock held; bar 0-5, offset within it. MSI-X's own BAR never comes here. */
        uint64_t (*read)(struct pci_device *pci, unsigned bar, uint64_t offset, unsigned size_bytes);
        void (*write)(struct pci_device *pci, unsigned bar, uint64_t offset, uint64_t value, unsigned size_bytes);
        /* After the guest wrote configuration space at offset: for device-specific capabilities; may be NULL. */
        void (*config_written)(struct pci_device *pci, unsigned offset, unsigned size_bytes);
        /* Before a read, for capabilities whose bytes are windows (virtio 1.2 §4.1.4.9); may be NULL. */
        void (*config_reading)(struct pci_device *pci, unsigned offset, unsigned size_bytes);
        /* BARs were moved, decoding switched on or off: doorbells must follow; may be NULL. */
        void (*bars_changed)(struct pci_device *pci);
};

struct pci_bar {
        uint64_t size_bytes; /* 0: none; a power of two, at least 16 */
        bool memory64;       /* else 32-bit memory; Virta's devices have no port BARs */
        uint64_t address;    /* where it is mapped now; 0 when it is not decoded */
        uint64_t assigned;   /* where it is after a reset, as firmware would place it; 0: nowhere */
};

struct pci_device {
        struct device dev; /* ops of the device; the pci layer owns read and write, see pci_device_init() */
        const struct pci_ops *ops;
        struct pci_bus *bus;
        uint8_t slot;
        uint8_t config[PCI_CONFIG_BYTES];
        uint8_t writable[PCI_CONFIG_BYTES]; /* mask of bits the guest may write */
        struct pci_bar bar[PCI_BARS];
        struct irq_line intx;      /* use pci_intx() */
        struct device_ops bus_ops; /* the device's ops with read and write of the pci layer; dev.ops points here */
        unsigned capabilities_end; /* where the next capability goes */
        bool intx_level;           /* what pci_intx() was last told */
        struct pci_msix {
                uint16_t vectors; /* 0: no MSI-X */
                uint8_t bar, capability;
                struct { uint64_t address; uint32_t data, control; } entry[PCI_MSIX_VECTORS_MAX];
                uint64_t pending;
        } msix;
};

/*
 * Makes the bus with its host bridge 00:00.0. [window64, window64 + window64_size) is where 64-bit BARs go (outside RAM; size 0:
 * none); 32-bit BARs, and 64-bit ones that find no place there, go into the window of board.h.
 */
int pci_bus_new(struct device_host *host, const struct irq_line intx[4], uint64_t window64, uint64_t window64_size, struct pci_bus **bus,
                struct err *err) _must_check_;
/* All devices on it have left before (pci_device_done()). */
void pci_bus_free(struct pci_bus *bus);
/* The host bridge and configuration mechanism (also port 0xcf9), to reset, save and load with the other devices. */
struct device *pci_bus_device(struct pci_bus *bus);
uint64_t pci_bus_ecam_base(const struct pci_bus *bus);
/* For ACPI's _PRT: which of the four lines pin 0 (INTA) to 3 (INTD) of a slot uses. */
unsigned pci_intx_line(unsigned slot, unsigned pin);

/*
 * A device's life: pci_device_init(), then pci_add_bar(), pci_add_capability(), pci_add_msix() before the guest runs. The bus
 * decodes its BARs at the addresses assigned as firmware would do it (command register: memory and bus master on).
 *
 * dev_ops: name, reset, save, load, quiesce, resume, free of the device; its read and write are not used. class_code is the
 * 24 bits of base class, subclass, interface. The slot is the next free one.
 */
int pci_device_init(struct pci_device *pci, struct pci_bus *bus, const struct device_ops *dev_ops, const struct pci_ops *ops, const char *id,
                    uint16_t vendor, uint16_t device, uint32_t class_code, uint16_t subsystem_vendor, uint16_t subsystem,
                    struct err *err) _must_check_;
/* Takes it off the bus. */
void pci_device_done(struct pci_device *pci);
/* To be called by the device's ops->reset: guest-writable configuration as after firmware, MSI-X and INTx off. */
void pci_device_reset(struct pci_device *pci);

void pci_add_bar(struct pci_device *pci, unsigned bar, uint64_t size_bytes, bool memory64);
/* Appends a capability of length bytes (with its two first bytes); returns its offset. */
unsigned pci_add_capability(struct pci_device *pci, uint8_t id, unsigned length);
/* MSI-X with its table and pending bits in a BAR of its own. */
void pci_add_msix(struct pci_device *pci, unsigned bar, unsigned vectors);

/* Sends vector (when unmasked; else it is pending) or, with MSI-X off, does nothing and returns false. Any thread, dev->lock held. */
bool pci_msix_send(struct pci_device *pci, unsigned vector);
bool pci_msix_enabled(const struct pci_device *pci);
void pci_intx(struct pci_device *pci, bool level);

/* The common part of a PCI device's record: configuration, BARs, MSI-X. */
void pci_device_save(struct pci_device *pci, struct writer *out);
int pci_device_load(struct pci_device *pci, struct cursor *in, struct err *err) _must_check_;
