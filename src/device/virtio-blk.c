/*
 * virtio block device, virtio 1.2 §5.2.
 *
 *   queue ─pop─▶ request ─checked─▶ block_submit() … finished list ─▶ status byte ─push─▶ one interrupt for the batch
 *
 * A request is the 16 byte header, the data, and one status byte at the end of what the device writes; the layout over
 * descriptors is the driver's affair (§2.7.4). All that is needed later is copied when the chain is popped. Everything happens on
 * the loop's thread but configuration and reset: completions are collected without the lock and given back under one lock for
 * each batch.
 *
 * Limits: BLK_REQUESTS in flight on all queues together; a queue that finds none free stays marked as stalled and is served when some
 * come back. A reset by the driver with I/O in flight is over when the last of it is (virtio_hold()); quiesce drains.
 *
 * Durability (§5.2.6.2): with FLUSH negotiated and the write-back mode on, a write is durable after the next flush; in every
 * other case each write is durable before it is reported.
 */
#include "device/virtio-blk-internal.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>

#include "base/log.h"

#define STATE_VERSION 2
#define QUEUE_SIZE 256
#define QUEUES_MAX 16
#define ZEROES_RANGES_MAX 4                   /* and in a write zeroes: each may be written (block.h) */
#define RANGE_SECTORS_MAX (UINT32_C(1) << 22) /* 2 GiB each */
#define HEADER_BYTES 16

/* Features, §5.2.3 */
#define F_SEG_MAX 2
#define F_RO 5
#define F_BLK_SIZE 6
#define F_FLUSH 9
#define F_TOPOLOGY 10
#define F_CONFIG_WCE 11
#define F_MQ 12
#define F_DISCARD 13
#define F_WRITE_ZEROES 14
#define BIT(n) (UINT64_C(1) << (n))

/* Requests and their status, §5.2.6 */
enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2 };
#define RANGE_F_UNMAP 1

struct blk_config {
        uint64_t capacity;
        uint32_t size_max, seg_max;
        uint16_t cylinders;
        uint8_t heads, sectors;
        uint32_t blk_size;
        uint8_t physical_block_exp, alignment_offset;
        uint16_t min_io_size;
        uint32_t opt_io_size;
        uint8_t writeback, unused0;
        uint16_t num_queues;
        uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
        uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
        uint8_t write_zeroes_may_unmap, unused1[3];
};

_Static_assert(sizeof(struct blk_config) == 64 && offsetof(struct blk_config, write_zeroes_may_unmap) == 56, "§5.2.4");
#define CONFIG_BYTES 60

static struct blk_request *to_request(struct block_request *io)
{
        return container_of(io, struct blk_request, io);
}

/* Completion */

static void give_back(struct blk *blk, struct blk_request *req)
{
        const struct iovec *status = &req->chain.in[req->chain.in_count - 1];

        *(volatile uint8_t *)status->iov_base = req->status;
        virtqueue_push(&blk->v, req->queue, &req->chain, req->chain.in_bytes);
        req->next = blk->free;
        blk->free = req;
}

/* Without the lock: the listener gives the whole batch back. */
static void io_done(struct block_request *io, int result)
{
        struct blk_request *req = to_request(io);
        struct blk *blk = req->blk;

        req->result = result;
        req->next = NULL;
        *blk->finished_last = req;
        blk->finished_last = &req->next;
}

/* What the driver is told of an error. */
static void report(struct blk *blk, struct blk_request *req)
{
        const struct block_request *io = &req->io;

        if (req->result == -EOPNOTSUPP && io->op == BLOCK_WRITE_ZEROES) {
                req->status = S_UNSUPP; /* the driver writes them itself */
                return;
        }
        req->status = S_IOERR;
        log_guest("%s: %s of %" PRIu64 " bytes at %" PRIu64 " failed: %s", blk->v.pci.dev.id,
                  io->op == BLOCK_READ    ? "read"
                  : io->op == BLOCK_FLUSH ? "flush"
                                          : "write",
                  io->size_bytes, io->offset_bytes, strerror(-req->result));
}

static void submit(struct blk *blk, struct blk_request *req)
{
        virtio_hold(&blk->v);
        block_submit(blk->disk, &req->io);
}

/* The ranges of a discard or write zeroes go one after the other; true when another was started. */
static bool next_range(struct blk *blk, struct blk_request *req)
{
        const struct blk_range *range;

        if (req->status != S_OK || !virtqueue_ready(&blk->v, req->queue) || req->range + 1 >= req->ranges)
                return false;
        range = &req->ranges_at[++req->range];
        req->io.offset_bytes = range->sector << BLK_SECTOR_SHIFT;
        req->io.size_bytes = (uint64_t)range->sectors << BLK_SECTOR_SHIFT;
        submit(blk, req);
        return true;
}

static void serve(struct blk *blk, unsigned queue);

static void give_back_finished(struct blk *blk)
{
        struct blk_request *req = blk->finished;
        uint32_t queues = 0;

        blk->finished = NULL;
        blk->finished_last = &blk->finished;
        while (req) {
                struct blk_request *next = req->next;
                bool supported = req->result != -EOPNOTSUPP || req->io.op != BLOCK_WRITE_ZEROES;

                if (req->result < 0 && supported && virtio_blk_park(blk, req)) {
                        req = next;
                        continue;
                }
                if (req->result < 0)
                        report(blk, req);
                queues |= 1u << req->queue;
                if (!next_range(blk, req))
                        give_back(blk, req);
                virtio_release(&blk->v);
                req = next;
        }
        for (unsigned i = 0; i < blk->v.queues; i++) {
                if (queues >> i & 1)
                        virtqueue_interrupt(&blk->v, i);
        }
}

/* The disk completed a batch; from the loop, from block_drain(), or from block_reap() of our own. */
static void batch_done(void *ctx)
{
        struct blk *blk = ctx;
        bool own = blk->serving;
        uint32_t stalled;

        if (!own)
                virtio_lock(&blk->v);
        blk->serving = true;
        give_back_finished(blk);
        stalled = blk->v.quiesced ? 0 : blk->stalled;
        for (unsigned i = 0; i < blk->v.queues; i++) {
                if (stalled >> i & 1)
                        serve(blk, i);
        }
        block_kick(blk->disk);
        blk->serving = own;
        if (!own)
                virtio_unlock(&blk->v);
}

/* Requests */

/* The data's buffers and behind them the status byte go to the request; false when they are too many. */
static bool take_buffers(struct blk_request *req, const struct iovec *data, unsigned data_count, size_t offset, size_t bytes,
                         const struct iovec *status, bool data_in)
{
        struct iovec *last;
        unsigned n;

        if (data_count > BLK_SEGMENTS_MAX + 1)
                return false;
        n = iov_slice(data, data_count, offset, bytes, req->iov);
        last = &req->iov[n];
        *last = *status;
        req->io.iov = req->iov;
        req->io.iov_count = n;
        req->io.size_bytes = bytes;
        req->chain.out = NULL;
        req->chain.out_count = 0;
        req->chain.in = data_in ? req->iov : last;
        req->chain.in_count = (uint16_t)(data_in ? n + 1 : 1);
        return true;
}

static uint8_t data_request(struct blk *blk, struct blk_request *req, uint64_t sector)
{
        uint64_t sectors = req->io.size_bytes >> BLK_SECTOR_SHIFT;

        if (req->io.size_bytes % BLOCK_SECTOR || sector > blk->capacity || sectors > blk->capacity - sector)
                return S_IOERR;
        req->io.offset_bytes = sector << BLK_SECTOR_SHIFT;
        return S_OK;
}

static bool writes_are_durable(const struct blk *blk)
{
        return !virtio_has(&blk->v, F_FLUSH) || !blk->writeback;
}

/*
 * Limits of a write zeroes, the length of ranges and their number. Where the disk writes them it is one short range, since whoever
 * pauses the machine waits for all that is in flight.
 */
static uint32_t zeroes_sectors_max(const struct blk *blk)
{
        return MIN(MAX(block_info(blk->disk)->zeroes_bytes >> BLK_SECTOR_SHIFT, 1u), RANGE_SECTORS_MAX);
}

static uint32_t zeroes_ranges_max(const struct blk *blk)
{
        return zeroes_sectors_max(blk) < RANGE_SECTORS_MAX ? 1 : ZEROES_RANGES_MAX;
}

static uint8_t ranges_request(struct blk *blk, struct blk_request *req, bool zeroes)
{
        uint32_t sectors_max = zeroes ? zeroes_sectors_max(blk) : RANGE_SECTORS_MAX;
        unsigned known = zeroes ? RANGE_F_UNMAP : 0;

        if (!req->io.size_bytes || req->io.size_bytes % sizeof(struct blk_range) || req->io.size_bytes > sizeof(req->ranges_at))
                return S_IOERR;
        req->ranges = (unsigned)(req->io.size_bytes / sizeof(struct blk_range));
        iov_to_buf(req->io.iov, req->io.iov_count, 0, req->ranges_at, req->io.size_bytes);
        for (unsigned i = 0; i < req->ranges; i++) {
                struct blk_range *range = &req->ranges_at[i];

                range->sector = le64toh(range->sector);
                range->sectors = le32toh(range->sectors);
                range->flags = le32toh(range->flags);
                /* §5.2.6.2 */
                if (range->flags & ~known)
                        return S_UNSUPP;
                if (!range->sectors || range->sectors > RANGE_SECTORS_MAX || range->sector > blk->capacity ||
                    range->sectors > blk->capacity - range->sector)
                        return S_IOERR;
                /* Possible on the disk that a machine moved away from, perhaps: the driver then writes zeroes itself. */
                if (range->sectors > sectors_max || (zeroes && req->ranges > zeroes_ranges_max(blk)))
                        return S_UNSUPP;
                if (range->flags & RANGE_F_UNMAP)
                        req->io.flags |= BLOCK_F_UNMAP;
        }
        req->io.iov_count = 0;
        req->io.offset_bytes = req->ranges_at[0].sector << BLK_SECTOR_SHIFT;
        req->io.size_bytes = (uint64_t)req->ranges_at[0].sectors << BLK_SECTOR_SHIFT;
        return S_OK;
}

static uint8_t get_id(struct blk *blk, struct blk_request *req)
{
        if (req->io.size_bytes < BLK_SERIAL_BYTES)
                return S_IOERR;
        buf_to_iov(req->io.iov, req->io.iov_count, 0, blk->serial, BLK_SERIAL_BYTES);
        return S_OK;
}

/* Sets the request up; *now says that it is answered without I/O. */
static uint8_t prepare(struct blk *blk, struct blk_request *req, uint32_t type, uint64_t sector, bool *now)
{
        bool readonly = blk->disk->info.readonly;
        uint8_t status;

        *now = false;
        switch (type) {
        case T_IN:
                req->io.op = BLOCK_READ;
                status = data_request(blk, req, sector);
                break;
        case T_OUT:
                req->io.op = BLOCK_WRITE;
                status = readonly ? S_IOERR : data_request(blk, req, sector);
                break;
        case T_FLUSH:
                req->io.op = BLOCK_FLUSH;
                req->io.iov_count = 0;
                req->io.size_bytes = 0;
                return S_OK;
        case T_DISCARD:
        case T_WRITE_ZEROES:
                if (!virtio_has(&blk->v, type == T_DISCARD ? F_DISCARD : F_WRITE_ZEROES))
                        return S_UNSUPP;
                req->io.op = type == T_DISCARD ? BLOCK_DISCARD : BLOCK_WRITE_ZEROES;
                status = readonly ? S_IOERR : ranges_request(blk, req, type == T_WRITE_ZEROES);
                break;
        case T_GET_ID:
                *now = true;
                return get_id(blk, req);
        default:
                return S_UNSUPP;
        }
        if (status == S_OK && !req->io.size_bytes)
                *now = true;
        if (writes_are_durable(blk))
                req->io.flags |= BLOCK_F_DURABLE;
        return status;
}

/* One popped chain, in blk->iov still; false when the device is broken. */
static bool start_request(struct blk *blk, struct blk_request *req)
{
        struct virtio_chain *chain = &req->chain;
        struct {
                uint32_t type, reserved;
                uint64_t sector;
        } header;
        struct iovec status;
        uint32_t type;
        bool now, fits;

        if (iov_to_buf(chain->out, chain->out_count, 0, &header, HEADER_BYTES) < HEADER_BYTES || !chain->in_bytes) {
                virtio_break(&blk->v, "a request of %" PRIu32 " bytes out and %" PRIu32 " in", chain->out_bytes, chain->in_bytes);
                return false;
        }
        type = le32toh(header.type);
        (void)iov_slice(chain->in, chain->in_count, chain->in_bytes - 1, 1, &status);
        if (type == T_IN || type == T_GET_ID)
                fits = take_buffers(req, chain->in, chain->in_count, 0, chain->in_bytes - 1, &status, true);
        else
                fits = take_buffers(req, chain->out, chain->out_count, HEADER_BYTES, chain->out_bytes - HEADER_BYTES, &status,
                                    false);
        if (!fits) {
                virtio_break(&blk->v, "a request with %u buffers, seg_max is %d", chain->out_count + chain->in_count,
                             BLK_SEGMENTS_MAX);
                return false;
        }

        req->io.flags = 0;
        req->range = req->ranges = 0;
        req->status = prepare(blk, req, type, le64toh(header.sector), &now);
        if (req->status != S_OK || now)
                give_back(blk, req);
        else
                submit(blk, req);
        return true;
}

/* Takes requests until the queue is empty, none is free or the budget is spent. With the lock; the caller kicks. */
static void serve(struct blk *blk, unsigned queue)
{
        unsigned budget = 2 * QUEUE_SIZE;

        blk->stalled &= ~(1u << queue);
        virtqueue_notifications(&blk->v, queue, false);
        do {
                while (budget && blk->free) {
                        struct blk_request *req = blk->free;

                        if (virtqueue_pop(&blk->v, queue, &blk->iov, &req->chain) <= 0)
                                break;
                        budget--;
                        blk->free = req->next;
                        req->queue = queue;
                        if (!start_request(blk, req)) {
                                req->next = blk->free;
                                blk->free = req;
                                return;
                        }
                }
                if (!blk->free) {
                        blk->stalled |= 1u << queue;
                        break;
                }
                if (!budget) {
                        virtio_wake(&blk->v, queue);
                        break;
                }
        } while (virtqueue_notifications(&blk->v, queue, true));
        virtqueue_interrupt(&blk->v, queue);
}

static void blk_notify(struct virtio *v, unsigned queue)
{
        struct blk *blk = to_blk(v);

        if (v->quiesced)
                return;
        blk->serving = true;
        serve(blk, queue);
        block_kick(blk->disk);
        /* What the page cache had is there already: it shares the interrupt, and the loop's round is saved. */
        block_reap(blk->disk);
        blk->serving = false;
}

/* Configuration */

static uint64_t blk_features(struct virtio *v)
{
        const struct block_info *info = block_info(to_blk(v)->disk);
        uint64_t features = BIT(F_SEG_MAX) | BIT(F_BLK_SIZE) | BIT(F_FLUSH) | BIT(F_TOPOLOGY) | BIT(F_CONFIG_WCE);

        if (info->readonly)
                features |= BIT(F_RO);
        if (v->queues > 1)
                features |= BIT(F_MQ);
        if (info->discard_bytes)
                features |= BIT(F_DISCARD);
        if (!info->readonly)
                features |= BIT(F_WRITE_ZEROES);
        return features;
}

static uint8_t exponent(uint32_t of, uint32_t in)
{
        uint8_t n = 0;

        while (of << (n + 1) <= in && n < 15)
                n++;
        return n;
}

static void blk_config_read(struct virtio *v, uint32_t offset, void *to, unsigned size_bytes)
{
        struct blk *blk = to_blk(v);
        const struct block_info *info = block_info(blk->disk);
        uint32_t discard = MAX(info->discard_bytes, (uint32_t)BLOCK_SECTOR) >> BLK_SECTOR_SHIFT;
        struct blk_config config = {
                .capacity = htole64(blk->capacity),
                .seg_max = htole32(BLK_SEGMENTS_MAX),
                .blk_size = htole32(info->logical_bytes),
                .physical_block_exp = exponent(info->logical_bytes, info->physical_bytes),
                .min_io_size = htole16((uint16_t)MIN(info->physical_bytes / info->logical_bytes, (uint32_t)UINT16_MAX)),
                .opt_io_size = htole32(info->optimal_bytes / info->logical_bytes),
                .writeback = blk->writeback,
                .num_queues = htole16((uint16_t)v->queues),
                .max_discard_sectors = htole32(RANGE_SECTORS_MAX),
                .max_discard_seg = htole32(BLK_RANGES_MAX),
                .discard_sector_alignment = htole32(discard),
                .max_write_zeroes_sectors = htole32(zeroes_sectors_max(blk)),
                .max_write_zeroes_seg = htole32(zeroes_ranges_max(blk)),
                .write_zeroes_may_unmap = 1,
        };

        memcpy(to, (const uint8_t *)&config + offset, size_bytes);
}

static void blk_config_write(struct virtio *v, uint32_t offset, const void *from, unsigned size_bytes)
{
        struct blk *blk = to_blk(v);

        /* §5.2.5: the cache's mode is the one field to write. */
        if (offset == offsetof(struct blk_config, writeback) && size_bytes == 1 && virtio_has(v, F_CONFIG_WCE))
                blk->writeback = *(const uint8_t *)from & 1;
}

static void blk_reset(struct virtio *v)
{
        struct blk *blk = to_blk(v);

        blk->stalled = 0;
        blk->writeback = true;
        virtio_blk_drop_parked(blk);
}

static void blk_quiesce(struct virtio *v)
{
        block_drain(to_blk(v)->disk);
}

static void blk_resume(struct virtio *v)
{
        struct blk *blk = to_blk(v);

        virtio_lock(v);
        blk->serving = true;
        virtio_blk_unpark(blk);
        block_kick(blk->disk);
        blk->serving = false;
        virtio_unlock(v);
}

static void blk_save(struct virtio *v, struct writer *out)
{
        struct blk *blk = to_blk(v);

        writer_le64(out, blk->capacity);
        writer_u8(out, blk->writeback);
        virtio_blk_save_parked(blk, out);
}

static int blk_load(struct virtio *v, uint16_t version, struct cursor *in, struct err *err)
{
        struct blk *blk = to_blk(v);
        uint64_t capacity = cursor_le64(in);
        uint8_t writeback = cursor_u8(in);

        if (version != 1 && version != STATE_VERSION)
                return err_set(err, -EBADMSG, "disk state has version %u, this is %d", version, STATE_VERSION);
        if (!in->bad && capacity != blk->capacity)
                return err_set(err, -EBADMSG, "%s was saved with a disk of %" PRIu64 " sectors, this one has %" PRIu64,
                               v->pci.dev.id, capacity, blk->capacity);
        if (writeback > 1)
                return err_set(err, -EBADMSG, "cache mode %u", writeback);
        blk->writeback = writeback;
        return version == 1 ? 0 : virtio_blk_load_parked(blk, in, err); /* 1 had none that are parked */
}

static void blk_free(struct virtio *v)
{
        struct blk *blk = to_blk(v);

        v->quiesced = true;
        block_drain(blk->disk);
        block_set_listener(blk->disk, NULL, NULL);
        virtio_done(v);
        free(blk->requests);
        free(blk);
}

static const struct virtio_ops blk_ops = {
        .name = "virtio-blk",
        .id = VIRTIO_BLOCK,
        .class_code = 0x018000, /* mass storage, other */
        .features = blk_features,
        .config_bytes = CONFIG_BYTES,
        .config_read = blk_config_read,
        .config_write = blk_config_write,
        .notify = blk_notify,
        .reset = blk_reset,
        .quiesce = blk_quiesce,
        .resume = blk_resume,
        .version = STATE_VERSION,
        .save = blk_save,
        .load = blk_load,
        .free = blk_free,
};

static int make_requests(struct blk *blk, struct err *err)
{
        blk->requests = calloc(BLK_REQUESTS, sizeof(*blk->requests));
        if (!blk->requests)
                return err_nomem(err);
        for (unsigned i = BLK_REQUESTS; i-- > 0;) {
                struct blk_request *req = &blk->requests[i];

                req->blk = blk;
                req->io.done = io_done;
                req->next = blk->free;
                blk->free = req;
        }
        return 0;
}

int virtio_blk_new(struct device_host *host, struct pci_bus *bus, const char *id, struct block *disk,
                   const struct virtio_blk_config *config, struct device **dev, struct err *err)
{
        unsigned queues = MIN(MAX(config->queues, 1u), (unsigned)QUEUES_MAX);
        const char *serial = config->serial ? config->serial : id;
        uint16_t sizes[QUEUES_MAX];
        struct blk *blk = calloc(1, sizeof(*blk));
        int r;

        if (!blk)
                return err_nomem(err);
        for (unsigned i = 0; i < queues; i++)
                sizes[i] = config->queue_size ? config->queue_size : QUEUE_SIZE;
        blk->disk = disk;
        blk->capacity = disk->info.size_bytes >> BLK_SECTOR_SHIFT;
        blk->writeback = true;
        blk->on_error = config->on_error;
        blk->finished_last = &blk->finished;
        blk->parked_last = &blk->parked;
        memcpy(blk->serial, serial, strnlen(serial, BLK_SERIAL_BYTES));
        r = make_requests(blk, err);
        if (r == 0)
                r = virtio_init(&blk->v, host, bus, &blk_ops, id, sizes, queues, err);
        if (r < 0) {
                virtio_done(&blk->v);
                free(blk->requests);
                free(blk);
                return r;
        }
        block_set_listener(disk, batch_done, blk);
        *dev = &blk->v.pci.dev;
        return 0;
}

void virtio_blk_batch(struct device *dev)
{
        batch_done(to_blk(virtio_from_device(dev)));
}

int virtio_blk_resized(struct device *dev, struct err *err)
{
        struct virtio *v = virtio_from_device(dev);
        struct blk *blk = to_blk(v);
        int r = 0;

        virtio_lock(v);
        r = block_refresh(blk->disk, err);
        if (r == 0 && blk->capacity != blk->disk->info.size_bytes >> BLK_SECTOR_SHIFT) {
                blk->capacity = blk->disk->info.size_bytes >> BLK_SECTOR_SHIFT;
                virtio_config_changed(v);
        }
        virtio_unlock(v);
        return r;
}
