/*
 * What a machine is made of: accelerator, board and the devices on its PCI bus, in a fixed order, so that the same description
 * gives the same slots again (a saved machine relies on that).
 */
#include <errno.h>
#include <stdio.h>

#include "base/log.h"
#include "block/block.h"
#include "block/disk.h"
#include "block/filter/filter.h"
#include "device/ioapic.h"
#include "device/pic.h"
#include "device/virtio-balloon.h"
#include "device/virtio-blk.h"
#include "device/virtio-console.h"
#include "device/virtio-fs.h"
#include "device/virtio-net.h"
#include "device/virtio-rng.h"
#include "device/virtio-vsock.h"
#include "net/peer.h"
#include "vmm/machine-internal.h"

#define DISK_QUEUES_MAX 16u

static void request_power(void *ctx, enum power_event event)
{
        struct machine *machine = ctx;

        atomic_fetch_or(&machine->events, event == POWER_OFF ? MACHINE_POWER_OFF : MACHINE_RESET);
        uv_async_send(&machine->wake);
}

static int ring_doorbell(void *ctx, bool add, enum bus_space space, uint64_t address, unsigned size_bytes, bool match_value,
                         uint32_t value, int eventfd)
{
        struct machine *machine = ctx;

        return machine->ops->doorbell(machine->accel, add, space, address, size_bytes, match_value, value, eventfd);
}

static void extint(void *ctx, bool level)
{
        struct machine *machine = ctx;

        machine->ops->extint(machine->accel, level);
}

static void ioapic_changed(void *ctx, const uint64_t level_vectors[4])
{
        struct machine *machine = ctx;

        if (machine->ops->ioapic_changed)
                machine->ops->ioapic_changed(machine->accel, level_vectors);
}

static int add_device(struct machine *machine, struct device *dev, struct err *err)
{
        if (machine->devices == MACHINE_PCI_MAX) {
                dev->ops->free(dev);
                return err_set(err, -ENOSPC, "the machine has room for %u devices on its PCI bus", MACHINE_PCI_MAX);
        }
        machine->device[machine->devices++] = dev;
        return 0;
}

static int make_board(struct machine *machine, struct err *err)
{
        const struct board_config config = {
                .cpus = machine->config.cpus,
                .extint = extint,
                .ioapic_changed = ioapic_changed,
                .ctx = machine,
                .serial = machine->to.serial,
                .window64 = machine->layout.window64,
                .window64_size = machine->layout.window64_size,
        };
        const struct accel_options options = {
                .cpu_model = machine->config.cpu_model,
                .cpu_engine = machine->config.cpu_engine,
                .code_cache_bytes = machine->config.code_cache_bytes,
                .cpu_stats = machine->config.cpu_stats,
                .perf_map = machine->config.perf_map,
        };
        int r = machine->ops->new (&machine->host, machine->config.cpus, &options, &machine->accel, err);

        if (r >= 0)
                r = board_new(&machine->host, &config, &machine->board, err);
        if (r < 0)
                return r;
        board_pause(machine->board);
        machine->ops->connect_pic(machine->accel, pic_ack, machine->board->pic);
        machine->ops->connect_ioapic(machine->accel, ioapic_eoi, machine->board->ioapic);
        for (unsigned i = 0; i < machine->config.cpus; i++) {
                machine->vcpu[i].machine = machine;
                machine->vcpu[i].index = i;
                machine->vcpu[i].vcpu = machine->ops->vcpu(machine->accel, i);
        }
        return 0;
}

static int parse_on_error(const char *name, enum virtio_blk_on_error *on_error, struct err *err)
{
        static const char *const names[] = { [VIRTIO_BLK_FULL] = "full", [VIRTIO_BLK_REPORT] = "report", [VIRTIO_BLK_PAUSE] = "pause" };

        for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
                if (!name || !strcmp(name, names[i])) {
                        *on_error = (enum virtio_blk_on_error)i;
                        return 0;
                }
        }
        return err_set(err, -EINVAL, "onerror=%s: it can be full, report or pause", name);
}

/* The image, a node that jobs may put others behind, and the disk's filters. */
static int open_disk(struct machine *machine, const struct block_opening *opening, const struct vmm_disk *config, struct err *err)
{
        struct block *image, *handle, *disk;
        int r = block_open(opening, &image, err);

        if (r < 0)
                return r;
        r = block_disk_new(image, &handle, err);
        if (r < 0) {
                block_close(image);
                return r;
        }
        r = block_filters_new(handle, config->filter, config->filters, &disk, err);
        if (r < 0) {
                block_close(handle);
                return r;
        }
        machine->handle[machine->disks] = handle;
        machine->disk[machine->disks++] = disk;
        return 0;
}

static int make_disk(struct machine *machine, unsigned index, struct err *err)
{
        const struct vmm_disk *config = &machine->config.disk[index];
        struct device *dev;
        struct block *disk;
        char id[32];
        const struct block_opening opening = {
                .loop = machine->host.loop, .path = config->path, .format = config->format,
                .flags = (config->readonly ? BLOCK_OPEN_READONLY : 0) | (config->commit ? BLOCK_OPEN_COMMIT : 0),
                .secret = config->secret,
        };
        struct virtio_blk_config blk;
        int r = parse_on_error(config->on_error, &blk.on_error, err);

        if (r == 0)
                r = open_disk(machine, &opening, config, err);
        if (r < 0)
                return r;
        disk = machine->disk[index];
        blk.serial = config->serial;
        blk.queues = MIN(machine->config.cpus, DISK_QUEUES_MAX);
        snprintf(id, sizeof(id), "virtio-blk%u", index);
        r = virtio_blk_new(&machine->host, machine->board->pci, id, disk, &blk, &dev, err);
        machine->blk[index] = r < 0 ? NULL : dev;
        return r < 0 ? r : add_device(machine, dev, err);
}

static int make_net(struct machine *machine, unsigned index, int fd, struct err *err)
{
        const struct virtio_net_config config = { .mtu = 0 };
        struct net_backend *net;
        struct virtio *card;
        char id[32];
        int r = net_peer_attach(fd, machine->host.loop, &net, err);

        if (r < 0)
                return r;
        snprintf(id, sizeof(id), "virtio-net%u", index);
        r = virtio_net_new(&machine->host, machine->board->pci, id, &config, net, &card, err);
        if (r < 0) {
                net_free(net);
                return r;
        }
        return add_device(machine, &card->pci.dev, err);
}

static int make_share(struct machine *machine, unsigned index, struct err *err)
{
        const struct vmm_share *share = &machine->config.share[index];
        char id[32], tag[32] = "share";
        struct virtio_fs_config config = { .dir = share->path,
                                           .tag = share->tag ? share->tag : tag,
                                           .readonly = share->readonly,
                                           .shares = machine->config.shares };
        struct virtio *fs;
        int r;

        if (index)
                snprintf(tag, sizeof(tag), "share%u", index);
        for (unsigned i = 0; i < index; i++)
                if (share->tag && machine->config.share[i].tag && !strcmp(share->tag, machine->config.share[i].tag))
                        return err_set(err, -EINVAL, "two shared directories have the tag '%s'", share->tag);
        snprintf(id, sizeof(id), "virtio-fs%u", index);
        r = virtio_fs_new(&machine->host, machine->board->pci, id, &config, &fs, err);
        if (r < 0)
                return r;
        machine->share[machine->shares++] = fs;
        return add_device(machine, &fs->pci.dev, err);
}

static int make_vsock(struct machine *machine, struct err *err)
{
        const struct virtio_vsock_config config = { .cid = machine->config.vsock_cid, .path = machine->config.vsock_path };
        struct virtio *vsock;
        int r = virtio_vsock_new(&machine->host, machine->board->pci, "virtio-vsock0", &config, &vsock, err);

        if (r < 0)
                return r;
        machine->vsock = vsock;
        return add_device(machine, &vsock->pci.dev, err);
}

/* Those that every machine has, after the ones that were asked for: disks keep the low slots. */
static int make_standard(struct machine *machine, struct err *err)
{
        struct pci_bus *bus = machine->board->pci;
        struct device *dev;
        int r = virtio_rng_new(&machine->host, bus, "virtio-rng0", &dev, err);

        if (r >= 0)
                r = add_device(machine, dev, err);
        if (r < 0)
                return r;
        r = virtio_balloon_new(&machine->host, bus, "virtio-balloon0", &dev, err);
        if (r >= 0)
                r = add_device(machine, dev, err);
        if (r < 0)
                return r;
        machine->balloon = dev;
        if (!machine->to.console)
                return 0;
        r = virtio_console_new(&machine->host, bus, "virtio-console0", machine->to.console, &dev, err);
        if (r >= 0)
                r = add_device(machine, dev, err);
        if (r >= 0)
                machine->console = dev;
        return r;
}

int machine_make_devices(struct machine *machine, const int net_fd[VMM_NETS_MAX], struct err *err)
{
        unsigned nets = 0;
        int r;

        machine->host.power = request_power;
        machine->host.doorbell = ring_doorbell;
        machine->host.ctx = machine;
        r = machine_jobs_init(machine, err);
        if (r >= 0)
                r = make_board(machine, err);
        for (unsigned i = 0; r >= 0 && i < machine->config.disks; i++)
                r = make_disk(machine, i, err);
        for (; r >= 0 && nets < machine->config.nets; nets++)
                if (machine->config.net[nets].driver)
                        r = make_net(machine, nets, net_fd[nets], err);
        for (; nets < machine->config.nets; nets++)
                if (net_fd[nets] >= 0)
                        close(net_fd[nets]);
        for (unsigned i = 0; r >= 0 && i < machine->config.shares; i++)
                r = make_share(machine, i, err);
        if (r >= 0 && machine->config.vsock_path)
                r = make_vsock(machine, err);
        if (r >= 0)
                r = make_standard(machine, err);
        for (unsigned i = 0; r >= 0 && i < machine->devices; i++)
                if (machine->device[i]->ops->quiesce)
                        machine->device[i]->ops->quiesce(machine->device[i]);
        return r;
}

/* What cannot be written back is lost space at worst: what the guest flushed is there. */
static void close_disk(struct block *disk)
{
        struct err err = ERR_INIT;

        if (block_finish(disk, &err) < 0)
                log_warning("%s", err.text);
        block_close(disk);
}

void machine_free_devices(struct machine *machine)
{
        while (machine->devices) {
                struct device *dev = machine->device[--machine->devices];

                dev->ops->free(dev);
        }
        machine_jobs_done(machine);
        while (machine->disks)
                close_disk(machine->disk[--machine->disks]);
        if (machine->board)
                board_free(machine->board);
        if (machine->accel)
                machine->ops->free(machine->accel);
        machine->board = NULL;
        machine->accel = NULL;
}
