/*
 * MSI-X: a table of messages in a BAR of its own, with masks and pending bits. PCI Local Bus 3.0 §6.8.2.
 *
 *   BAR   0x000  table: 16 bytes a vector: address, upper address, data, control (bit 0: masked)
 *         0x800  pending bits, 64 of them
 *
 * A vector that is sent while it or the whole function is masked becomes pending; unmasking sends it. A message goes out at
 * most once for any number of sends while it was masked (§6.8.3.4).
 */
#include "device/pci-internal.h"

#include <errno.h>
#include <inttypes.h>

#define MSIX_BAR_BYTES 0x1000
#define MSIX_PBA 0x800
#define MSIX_ENTRY_BYTES 16
#define MSIX_CAPABILITY_ID 0x11
#define MSIX_CAPABILITY_BYTES 12
#define MSIX_CONTROL 2 /* offset in the capability */
#define MSIX_CONTROL_ENABLE 0x8000
#define MSIX_CONTROL_MASK_ALL 0x4000
#define MSIX_ENTRY_MASKED 1u

void pci_add_msix(struct pci_device *pci, unsigned bar, unsigned vectors)
{
        unsigned at;

        vectors = MIN(MAX(vectors, 1u), (unsigned)PCI_MSIX_VECTORS_MAX);
        pci_add_bar(pci, bar, MSIX_BAR_BYTES, false);
        at = pci_add_capability(pci, MSIX_CAPABILITY_ID, MSIX_CAPABILITY_BYTES);
        pci->msix.vectors = (uint16_t)vectors;
        pci->msix.bar = (uint8_t)bar;
        pci->msix.capability = (uint8_t)at;
        pci_config_set16(&pci->config[at + MSIX_CONTROL], (uint16_t)(vectors - 1));
        pci_config_set32(&pci->config[at + 4], bar);
        pci_config_set32(&pci->config[at + 8], MSIX_PBA | bar);
        pci_config_set16(&pci->writable[at + MSIX_CONTROL], MSIX_CONTROL_ENABLE | MSIX_CONTROL_MASK_ALL);
        pci_msix_reset(pci);
}

void pci_msix_reset(struct pci_device *pci)
{
        pci->msix.pending = 0;
        for (unsigned i = 0; i < PCI_MSIX_VECTORS_MAX; i++) {
                pci->msix.entry[i].address = 0;
                pci->msix.entry[i].data = 0;
                pci->msix.entry[i].control = MSIX_ENTRY_MASKED;
        }
}

static uint16_t control(const struct pci_device *pci)
{
        return pci_config_le16(pci, pci->msix.capability + MSIX_CONTROL);
}

bool pci_msix_enabled(const struct pci_device *pci)
{
        return pci->msix.vectors && (control(pci) & MSIX_CONTROL_ENABLE);
}

static bool masked(const struct pci_device *pci, unsigned vector)
{
        return (control(pci) & MSIX_CONTROL_MASK_ALL) || (pci->msix.entry[vector].control & MSIX_ENTRY_MASKED);
}

bool pci_msix_send(struct pci_device *pci, unsigned vector)
{
        const struct msi_target *msi = &pci_bus_host(pci->bus)->msi;

        if (!pci_msix_enabled(pci))
                return false;
        if (vector >= pci->msix.vectors)
                return true;
        if (masked(pci, vector)) {
                pci->msix.pending |= UINT64_C(1) << vector;
                return true;
        }
        pci->msix.pending &= ~(UINT64_C(1) << vector);
        if (msi->send)
                msi->send(msi->ctx, pci->msix.entry[vector].address, pci->msix.entry[vector].data);
        return true;
}

static void send_pending(struct pci_device *pci, unsigned vector)
{
        if (pci_msix_enabled(pci) && (pci->msix.pending >> vector & 1) && !masked(pci, vector))
                pci_msix_send(pci, vector);
}

void pci_msix_config_written(struct pci_device *pci, unsigned offset, unsigned size_bytes)
{
        unsigned at = pci->msix.capability + MSIX_CONTROL;

        if (!pci->msix.vectors || offset >= at + 2 || offset + size_bytes <= at)
                return;
        for (unsigned i = 0; i < pci->msix.vectors; i++)
                send_pending(pci, i);
        pci_intx_update(pci);
}

static uint32_t *entry_word(struct pci_device *pci, uint64_t offset, uint32_t *half)
{
        unsigned vector = (unsigned)(offset / MSIX_ENTRY_BYTES);

        switch (offset % MSIX_ENTRY_BYTES) {
        case 0:
                *half = (uint32_t)pci->msix.entry[vector].address;
                break;
        case 4:
                *half = (uint32_t)(pci->msix.entry[vector].address >> 32);
                break;
        case 8:
                return &pci->msix.entry[vector].data;
        default:
                return &pci->msix.entry[vector].control;
        }
        return half;
}

static uint32_t read_word(struct pci_device *pci, uint64_t offset)
{
        uint32_t half = 0;

        if (offset < (uint64_t)pci->msix.vectors * MSIX_ENTRY_BYTES)
                return *entry_word(pci, offset, &half);
        if (offset == MSIX_PBA)
                return (uint32_t)pci->msix.pending;
        if (offset == MSIX_PBA + 4)
                return (uint32_t)(pci->msix.pending >> 32);
        return 0;
}

static void write_word(struct pci_device *pci, uint64_t offset, uint32_t value)
{
        unsigned vector = (unsigned)(offset / MSIX_ENTRY_BYTES);
        uint64_t *address;

        if (vector >= pci->msix.vectors)
                return; /* the pending bits are the device's alone */
        address = &pci->msix.entry[vector].address;
        switch (offset % MSIX_ENTRY_BYTES) {
        case 0:
                *address = (*address & ~UINT64_C(0xffffffff)) | (value & ~3u);
                break;
        case 4:
                *address = (*address & 0xffffffff) | (uint64_t)value << 32;
                break;
        case 8:
                pci->msix.entry[vector].data = value;
                break;
        default:
                pci->msix.entry[vector].control = value & MSIX_ENTRY_MASKED;
                send_pending(pci, vector);
                break;
        }
}

uint64_t pci_msix_read(struct pci_device *pci, uint64_t offset, unsigned size_bytes)
{
        uint64_t value = read_word(pci, offset & ~UINT64_C(3));

        if (size_bytes == 8 && !(offset & 7))
                return value | (uint64_t)read_word(pci, offset + 4) << 32;
        /* Narrow reads are undefined (§6.8.2); they give the bytes that are there. */
        return value >> (8 * (offset & 3));
}

void pci_msix_write(struct pci_device *pci, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        if (offset & 3 || size_bytes < 4)
                return; /* undefined (§6.8.2) */
        write_word(pci, offset, (uint32_t)value);
        if (size_bytes == 8)
                write_word(pci, offset + 4, (uint32_t)(value >> 32));
}

void pci_msix_save(const struct pci_device *pci, struct writer *out)
{
        writer_le16(out, pci->msix.vectors);
        writer_le64(out, pci->msix.pending);
        for (unsigned i = 0; i < pci->msix.vectors; i++) {
                writer_le64(out, pci->msix.entry[i].address);
                writer_le32(out, pci->msix.entry[i].data);
                writer_le32(out, pci->msix.entry[i].control);
        }
}

int pci_msix_load(struct pci_device *pci, struct cursor *in, struct err *err)
{
        unsigned vectors = cursor_le16(in);

        if (vectors != pci->msix.vectors)
                return err_set(err, -EBADMSG, "record of %s has %u MSI-X vectors, the device %u", pci->dev.id, vectors, pci->msix.vectors);
        pci->msix.pending = cursor_le64(in);
        if (vectors < 64 && pci->msix.pending >> vectors)
                return err_set(err, -EBADMSG, "record of %s has pending MSI-X vectors 0x%" PRIx64 " past its %u", pci->dev.id,
                               pci->msix.pending, vectors);
        for (unsigned i = 0; i < vectors; i++) {
                pci->msix.entry[i].address = cursor_le64(in) & ~UINT64_C(3);
                pci->msix.entry[i].data = cursor_le32(in);
                pci->msix.entry[i].control = cursor_le32(in) & MSIX_ENTRY_MASKED;
        }
        return in->bad ? err_set(err, -EBADMSG, "MSI-X part of the record of %s is cut", pci->dev.id) : 0;
}
