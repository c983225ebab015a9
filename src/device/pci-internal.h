/* What pci.c and pci-msix.c share. */
#pragma once

#include "device/pci.h"

struct device_host *pci_bus_host(struct pci_bus *bus);

/* The MSI-X BAR, and what follows a write to the capability's control word. dev->lock held. */
uint64_t pci_msix_read(struct pci_device *pci, uint64_t offset, unsigned size_bytes);
void pci_msix_write(struct pci_device *pci, uint64_t offset, uint64_t value, unsigned size_bytes);
void pci_msix_config_written(struct pci_device *pci, unsigned offset, unsigned size_bytes);
void pci_msix_reset(struct pci_device *pci);
void pci_msix_save(const struct pci_device *pci, struct writer *out);
int pci_msix_load(struct pci_device *pci, struct cursor *in, struct err *err) _must_check_;
/* Drives the wire by what the device asserts, the command register and MSI-X. */
void pci_intx_update(struct pci_device *pci);

static inline uint16_t pci_config_le16(const struct pci_device *pci, unsigned offset)
{
        return (uint16_t)(pci->config[offset] | pci->config[offset + 1] << 8);
}

static inline uint32_t pci_config_le32(const struct pci_device *pci, unsigned offset)
{
        return pci_config_le16(pci, offset) | (uint32_t)pci_config_le16(pci, offset + 2) << 16;
}

static inline void pci_config_set16(uint8_t *at, uint16_t value)
{
        at[0] = (uint8_t)value;
        at[1] = (uint8_t)(value >> 8);
}

static inline void pci_config_set32(uint8_t *at, uint32_t value)
{
        pci_config_set16(at, (uint16_t)value);
        pci_config_set16(at + 2, (uint16_t)(value >> 16));
}
