/*
 * fw_cfg: numbered items and named files that firmware (or a guest that knows of it) reads.
 *
 *   0x510 (16 bits) selects an item    0x511 reads its next byte    0x514, 0x518 (32 bits, big-endian) address of a DMA request
 *
 * Writing the low half of the address runs the request: { control be32, length be32, address be64 } in guest memory; control becomes
 * 0, or 1 when something was wrong with it. Items are read-only; past an item's end there are zeroes.
 *
 * Source: QEMU docs/specs/fw_cfg.rst.
 */
#include "device/fw-cfg.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>

#include "device/board.h"

#define NAME_BYTES 56
#define FIXED_ITEMS 5

enum { KEY_SIGNATURE = 0x00, KEY_ID = 0x01, KEY_CPUS = 0x05, KEY_CPUS_MAX = 0x0f, KEY_DIRECTORY = 0x19, KEY_FILES = 0x20 };
enum { ID_TRADITIONAL = 1, ID_DMA = 2 };
enum { DMA_ERROR = 0x01, DMA_READ = 0x02, DMA_SKIP = 0x04, DMA_SELECT = 0x08, DMA_WRITE = 0x10 };
enum { AT_SELECT = 0, AT_DATA = 1, AT_DMA_HIGH = 4, AT_DMA_LOW = 8 };

struct item {
        uint16_t key;
        uint8_t *bytes;
        uint32_t size;
        char name[NAME_BYTES];
};

struct directory_entry {
        uint32_t size;
        uint16_t select, reserved;
        char name[NAME_BYTES];
};

struct fw_cfg {
        struct device dev;
        struct device_host *host;
        uint16_t selected;
        uint32_t offset;
        uint64_t dma;
        unsigned items; /* the fixed ones first, then the files */
        struct item item[FIXED_ITEMS + FW_CFG_FILES_MAX];
};

static const struct item *find_item(const struct fw_cfg *fw, uint16_t key)
{
        for (unsigned i = 0; i < fw->items; i++) {
                if (fw->item[i].key == key)
                        return &fw->item[i];
        }
        return NULL;
}

static int add_item(struct fw_cfg *fw, uint16_t key, const void *bytes, size_t size_bytes, struct err *err)
{
        struct item *item = &fw->item[fw->items];

        item->bytes = malloc(size_bytes ? size_bytes : 1);
        if (!item->bytes)
                return err_nomem(err);
        if (size_bytes)
                memcpy(item->bytes, bytes, size_bytes);
        item->key = key;
        item->size = (uint32_t)size_bytes;
        fw->items++;
        return 0;
}

/* The directory's bytes follow from the files. */
static int update_directory(struct fw_cfg *fw, struct err *err)
{
        unsigned files = fw->items - FIXED_ITEMS;
        size_t size_bytes = 4 + files * sizeof(struct directory_entry);
        struct item *item = (struct item *)find_item(fw, KEY_DIRECTORY);
        uint32_t count = htobe32(files);
        uint8_t *bytes = malloc(size_bytes);

        if (!bytes)
                return err_nomem(err);
        memcpy(bytes, &count, 4);
        for (unsigned i = 0; i < files; i++) {
                const struct item *file = &fw->item[FIXED_ITEMS + i];
                struct directory_entry entry = { .size = htobe32(file->size), .select = htobe16(file->key) };

                memcpy(entry.name, file->name, NAME_BYTES);
                memcpy(bytes + 4 + i * sizeof(entry), &entry, sizeof(entry));
        }
        free(item->bytes);
        item->bytes = bytes;
        item->size = (uint32_t)size_bytes;
        return 0;
}

int fw_cfg_add(struct device *dev, const char *name, const void *bytes, size_t size_bytes, struct err *err)
{
        struct fw_cfg *fw = container_of(dev, struct fw_cfg, dev);
        unsigned files = fw->items - FIXED_ITEMS;
        int r;

        if (strlen(name) >= NAME_BYTES)
                return err_set(err, -ENAMETOOLONG, "fw_cfg file name \"%s\" is longer than %d bytes", name, NAME_BYTES - 1);
        if (files == FW_CFG_FILES_MAX || size_bytes > INT32_MAX)
                return err_set(err, -ENOSPC, "no place for fw_cfg file \"%s\": it has %u already", name, files);
        for (unsigned i = 0; i < files; i++) {
                if (strcmp(fw->item[FIXED_ITEMS + i].name, name) == 0)
                        return err_set(err, -EEXIST, "fw_cfg file \"%s\" is there already", name);
        }
        r = add_item(fw, (uint16_t)(KEY_FILES + files), bytes, size_bytes, err);
        if (r < 0)
                return r;
        snprintf(fw->item[fw->items - 1].name, NAME_BYTES, "%s", name);
        return update_directory(fw, err);
}

static void select_item(struct fw_cfg *fw, uint16_t key)
{
        fw->selected = key;
        fw->offset = 0;
}

static uint8_t read_byte(struct fw_cfg *fw)
{
        const struct item *item = find_item(fw, fw->selected);

        return item && fw->offset < item->size ? item->bytes[fw->offset++] : 0;
}

/* Bytes of the item that are left at the offset, and passes over them. */
static uint32_t take(struct fw_cfg *fw, const uint8_t **bytes, uint32_t length)
{
        const struct item *item = find_item(fw, fw->selected);
        uint32_t left = item && fw->offset < item->size ? item->size - fw->offset : 0;
        uint32_t taken = MIN(left, length);

        *bytes = taken ? item->bytes + fw->offset : NULL;
        fw->offset += taken;
        return taken;
}

static int dma_read(struct fw_cfg *fw, uint64_t address, uint32_t length)
{
        const uint8_t *bytes;
        uint8_t *to = guest_memory_at(fw->host->mem, address, length);
        uint32_t taken;

        if (!length)
                return 0;
        if (!to)
                return -EFAULT;
        taken = take(fw, &bytes, length);
        if (taken)
                memcpy(to, bytes, taken);
        memset(to + taken, 0, length - taken);
        guest_memory_written(fw->host->mem, address, length);
        return 0;
}

static uint32_t run_dma(struct fw_cfg *fw, uint32_t control, uint32_t length, uint64_t address)
{
        const uint8_t *bytes;

        if (control & DMA_SELECT)
                select_item(fw, (uint16_t)(control >> 16));
        if (control & DMA_READ)
                return dma_read(fw, address, length) < 0 ? DMA_ERROR : 0;
        if (control & DMA_WRITE)
                return DMA_ERROR;
        if (control & DMA_SKIP)
                take(fw, &bytes, length);
        return 0;
}

static void start_dma(struct fw_cfg *fw)
{
        struct {
                uint32_t control, length;
                uint64_t address;
        } request;
        uint64_t at = fw->dma;
        uint32_t result;

        fw->dma = 0;
        if (!fw->host->mem || guest_memory_read(fw->host->mem, at, &request, sizeof(request)) < 0)
                return; /* nowhere to say so */
        result = htobe32(run_dma(fw, be32toh(request.control), be32toh(request.length), be64toh(request.address)));
        if (guest_memory_write(fw->host->mem, at, &result, sizeof(result)) < 0)
                return;
}

static uint64_t fw_read(struct device *dev, unsigned region, uint64_t offset, unsigned size_bytes)
{
        struct fw_cfg *fw = container_of(dev, struct fw_cfg, dev);

        if (offset == AT_DATA && size_bytes == 1)
                return read_byte(fw);
        /* The DMA register's signature. */
        if (offset == AT_DMA_HIGH && size_bytes == 4)
                return htobe32(0x51454d55);
        if (offset == AT_DMA_LOW && size_bytes == 4)
                return htobe32(0x20434647);
        return UINT64_MAX;
}

static void fw_write(struct device *dev, unsigned region, uint64_t offset, uint64_t value, unsigned size_bytes)
{
        struct fw_cfg *fw = container_of(dev, struct fw_cfg, dev);

        if (offset == AT_SELECT && size_bytes == 2) {
                select_item(fw, (uint16_t)value);
        } else if (offset == AT_DMA_HIGH && size_bytes == 4) {
                fw->dma = (uint64_t)be32toh((uint32_t)value) << 32;
        } else if (offset == AT_DMA_LOW && size_bytes == 4) {
                fw->dma |= be32toh((uint32_t)value);
                start_dma(fw);
        }
}

static void fw_reset(struct device *dev)
{
        struct fw_cfg *fw = container_of(dev, struct fw_cfg, dev);

        select_item(fw, 0);
        fw->dma = 0;
}

/* The files come from the machine's description, not from the record. */
static void fw_save(struct device *dev, struct writer *out)
{
        struct fw_cfg *fw = container_of(dev, struct fw_cfg, dev);

        writer_le16(out, fw->selected);
        writer_le32(out, fw->offset);
        writer_le64(out, fw->dma);
}

static int fw_load(struct device *dev, uint16_t version, struct cursor *in, struct err *err)
{
        struct fw_cfg *fw = container_of(dev, struct fw_cfg, dev);

        fw->selected = cursor_le16(in);
        fw->offset = cursor_le32(in);
        fw->dma = cursor_le64(in);
        return 0;
}

static void fw_free(struct device *dev)
{
        struct fw_cfg *fw = container_of(dev, struct fw_cfg, dev);

        bus_remove(fw->host->bus, BUS_PORTS, BOARD_PORT_FW_CFG, dev);
        for (unsigned i = 0; i < ARRAY_SIZE(fw->item); i++)
                free(fw->item[i].bytes);
        device_done(dev);
        free(fw);
}

static const struct device_ops fw_cfg_ops = {
        .name = "fw-cfg",
        .read = fw_read, .write = fw_write,
        .reset = fw_reset,
        .version = 1, .save = fw_save, .load = fw_load,
        .free = fw_free,
};

static int add_fixed_items(struct fw_cfg *fw, unsigned cpus, struct err *err)
{
        uint32_t id = htole32(ID_TRADITIONAL | ID_DMA), no_files = 0;
        uint16_t count = htole16((uint16_t)cpus);
        int r = add_item(fw, KEY_SIGNATURE, "QEMU", 4, err);

        if (r == 0)
                r = add_item(fw, KEY_ID, &id, sizeof(id), err);
        if (r == 0)
                r = add_item(fw, KEY_CPUS, &count, sizeof(count), err);
        if (r == 0)
                r = add_item(fw, KEY_CPUS_MAX, &count, sizeof(count), err);
        if (r == 0)
                r = add_item(fw, KEY_DIRECTORY, &no_files, sizeof(no_files), err);
        return r;
}

int fw_cfg_new(struct device_host *host, unsigned cpus, struct device **dev, struct err *err)
{
        struct fw_cfg *fw = calloc(1, sizeof(*fw));
        int r;

        if (!fw)
                return err_nomem(err);
        device_init(&fw->dev, &fw_cfg_ops, "fw-cfg");
        fw->host = host;
        r = add_fixed_items(fw, cpus, err);
        if (r == 0)
                r = bus_add(host->bus, BUS_PORTS, BOARD_PORT_FW_CFG, BOARD_PORT_FW_CFG_SIZE, &fw->dev, 0, err);
        if (r < 0) {
                fw_free(&fw->dev);
                return r;
        }
        *dev = &fw->dev;
        return 0;
}
