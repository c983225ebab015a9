/*
 * virtio memory balloon, virtio 1.2 §5.5.
 *
 *   set_target() ─▶ num_pages ─interrupt─▶ driver ─▶ inflate queue (0): page numbers ─▶ hole in the memfd ─▶ the host has them
 *                                                ─▶ deflate queue (1): page numbers, nothing to do: pages come back when touched
 *   get_stats() ─▶ buffer of the statistics queue (2) back to the driver ─▶ it fills it and gives it again
 *   free-page reports (4): ranges that are free now ─▶ hole in the memfd; they are the guest's again when the buffer is
 *
 * Guest memory is one memfd, so that a hole in it (fallocate) takes the page from every mapping, KVM's and other processes'
 * included; when it is touched again it is zeroes. Its code generations rise, as its contents changed.
 *
 * Queue numbers: free-page hints (3) are offered although we never ask for them (free_page_hint_cmd_id stays at STOP), because
 * Linux before 6.11 gives the number 3 to the reports when hints are not negotiated. Without hints both numbers are reports.
 * With PAGE_POISON and a value other than 0 reports change nothing: the driver expects the value to be there (§5.5.6.7).
 */
#include "device/virtio-balloon.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>

#define QUEUE_SIZE 128
#define PAGES_AT_ONCE 256
#define PAGES_MAX 1024 /* of one chain; drivers send 256 or as many as one page has room for, 1024 */
#define BUDGET 64

enum { INFLATE, DEFLATE, STATS, HINT, REPORT, QUEUES };

/* §5.5.3 */
#define F_STATS 1
#define F_DEFLATE_ON_OOM 2
#define F_FREE_PAGE_HINT 3
#define F_PAGE_POISON 4
#define F_REPORTING 5
#define BIT(n) (UINT64_C(1) << (n))

#define STATS_TAGS 10 /* §5.5.6.3.3 */
#define STATS_BYTES_MAX 512

struct balloon_config {
        uint32_t num_pages, actual;
        uint32_t hint_command, poison;
};

struct balloon {
        struct virtio v;
        uint32_t target_pages, actual_pages, poison;
        uint64_t returned_bytes;
        uint64_t stats[STATS_TAGS];
        uint64_t stats_ns;
        bool stats_held; /* a buffer of the statistics queue waits for the next question */
        struct virtio_chain stats_chain;
        struct virtio_iov iov;
};

static struct balloon *to_balloon(struct virtio *v)
{
        return container_of(v, struct balloon, v);
}

/* Giving memory back to the host */

static void punch(struct balloon *balloon, const struct guest_region *region, uint64_t offset, uint64_t size_bytes)
{
        struct guest_memory *mem = balloon->v.host->mem;

        if (fallocate(mem->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(region->fd_offset + offset),
                      (off_t)size_bytes) < 0)
                return; /* the memory stays: nothing is wrong but its use */
        balloon->returned_bytes += size_bytes;
        guest_memory_written(mem, region->gpa + offset, size_bytes);
}

static int by_number(const void *a, const void *b)
{
        uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

        return x < y ? -1 : x > y;
}

/* Pages [first, first + count) as far as memory goes; false when one is no memory. */
static bool punch_pages(struct balloon *balloon, uint64_t first, uint64_t count)
{
        uint64_t gpa = first << GUEST_PAGE_SHIFT, left = count << GUEST_PAGE_SHIFT;

        while (left) {
                const struct guest_region *region = guest_memory_find(balloon->v.host->mem, gpa);
                uint64_t part;

                if (!region || region->readonly) {
                        virtio_break(&balloon->v, "page 0x%" PRIx64 " for the balloon is not memory", gpa >> GUEST_PAGE_SHIFT);
                        return false;
                }
                part = MIN(left, region->size_bytes - (gpa - region->gpa));
                punch(balloon, region, gpa - region->gpa, part);
                gpa += part;
                left -= part;
        }
        return true;
}

/* Neighbours are given back in one go. */
static bool inflate_pages(struct balloon *balloon, uint32_t *page, unsigned count)
{
        for (unsigned i = 0; i < count; i++)
                page[i] = le32toh(page[i]);
        qsort(page, count, sizeof(*page), by_number);
        for (unsigned i = 0, n; i < count; i += n) {
                uint64_t pages = 1;

                for (n = 1; i + n < count && page[i + n] - page[i] <= pages; n++)
                        pages = (uint64_t)page[i + n] - page[i] + 1;
                if (!punch_pages(balloon, page[i], pages))
                        return false;
        }
        return true;
}

/* A chain can name the same few pages a billion times: what is past PAGES_MAX stays the guest's memory, or the loop would stand. */
static bool inflate(struct balloon *balloon, const struct virtio_chain *chain)
{
        uint32_t page[PAGES_AT_ONCE];
        size_t end = MIN((size_t)chain->out_bytes, PAGES_MAX * sizeof(page[0]));
        size_t offset = 0;

        while (end - offset >= sizeof(page[0])) {
                size_t got = iov_to_buf(chain->out, chain->out_count, offset, page, MIN(sizeof(page), end - offset)) / sizeof(page[0]);

                if (!inflate_pages(balloon, page, (unsigned)got))
                        return false;
                offset += got * sizeof(page[0]);
        }
        return true;
}

/* §5.5.6.6: each writable buffer is a range of free memory. */
static void report(struct balloon *balloon, const struct virtio_chain *chain)
{
        const struct guest_memory *mem = balloon->v.host->mem;

        if (virtio_has(&balloon->v, F_PAGE_POISON) && balloon->poison)
                return;
        for (unsigned i = 0; i < chain->in_count; i++) {
                const uint8_t *at = chain->in[i].iov_base;

                for (unsigned n = 0; n < mem->regions; n++) {
                        const struct guest_region *region = &mem->region[n];
                        uint64_t start, end;

                        if (at < region->host || at >= region->host + region->size_bytes)
                                continue;
                        start = align_up((uint64_t)(at - region->host), GUEST_PAGE_SIZE);
                        end = align_down((uint64_t)(at - region->host) + chain->in[i].iov_len, GUEST_PAGE_SIZE);
                        if (start < end)
                                punch(balloon, region, start, end - start);
                }
        }
}

/* Statistics */

static void read_stats(struct balloon *balloon, const struct virtio_chain *chain)
{
        struct {
                uint16_t tag;
                uint64_t value;
        } __attribute__((packed)) stat;
        size_t end = MIN((size_t)chain->out_bytes, (size_t)STATS_BYTES_MAX);

        memset(balloon->stats, 0xff, sizeof(balloon->stats));
        for (size_t at = 0; end - at >= sizeof(stat); at += sizeof(stat)) {
                iov_to_buf(chain->out, chain->out_count, at, &stat, sizeof(stat));
                if (le16toh(stat.tag) < STATS_TAGS)
                        balloon->stats[le16toh(stat.tag)] = le64toh(stat.value);
        }
        balloon->stats_ns = monotonic_ns();
}

static void give_stats_back(struct balloon *balloon)
{
        if (!balloon->stats_held)
                return;
        balloon->stats_held = false;
        virtqueue_push(&balloon->v, STATS, &balloon->stats_chain, 0);
        virtqueue_interrupt(&balloon->v, STATS);
}

static void take_stats(struct balloon *balloon)
{
        struct virtio_chain chain;

        if (virtqueue_pop(&balloon->v, STATS, &balloon->iov, &chain) <= 0)
                return;
        /* A driver has one such buffer; with a second the first goes back. */
        give_stats_back(balloon);
        read_stats(balloon, &chain);
        balloon->stats_chain = (struct virtio_chain){ .head = chain.head, .descriptors = chain.descriptors };
        balloon->stats_held = true;
        if (virtqueue_notifications(&balloon->v, STATS, true))
                virtio_wake(&balloon->v, STATS);
}

/* Queues */

static bool serve_chain(struct balloon *balloon, unsigned queue, const struct virtio_chain *chain)
{
        if (queue == INFLATE)
                return inflate(balloon, chain);
        if (queue == REPORT || (queue == HINT && !virtio_has(&balloon->v, F_FREE_PAGE_HINT)))
                report(balloon, chain);
        return true;
}

static void balloon_notify(struct virtio *v, unsigned queue)
{
        struct balloon *balloon = to_balloon(v);
        struct virtio_chain chain;
        unsigned budget;

        if (queue == STATS) {
                take_stats(balloon);
                return;
        }
        for (budget = BUDGET; budget; budget--) {
                if (virtqueue_pop(v, queue, &balloon->iov, &chain) <= 0 || !serve_chain(balloon, queue, &chain))
                        break;
                virtqueue_push(v, queue, &chain, 0);
        }
        virtqueue_interrupt(v, queue);
        if (!budget)
                virtio_wake(v, queue);
}

/* Configuration */

static uint64_t balloon_features(struct virtio *v)
{
        return BIT(F_STATS) | BIT(F_DEFLATE_ON_OOM) | BIT(F_FREE_PAGE_HINT) | BIT(F_PAGE_POISON) | BIT(F_REPORTING);
}

static void balloon_config_read(struct virtio *v, uint32_t offset, void *to, unsigned size_bytes)
{
        struct balloon *balloon = to_balloon(v);
        struct balloon_config config = {
                .num_pages = htole32(balloon->target_pages),
                .actual = htole32(balloon->actual_pages),
                .poison = htole32(balloon->poison),
        };

        memcpy(to, (const uint8_t *)&config + offset, size_bytes);
}

static void balloon_config_write(struct virtio *v, uint32_t offset, const void *from, unsigned size_bytes)
{
        struct balloon *balloon = to_balloon(v);
        uint32_t value;

        if (size_bytes != sizeof(value))
                return;
        memcpy(&value, from, sizeof(value));
        if (offset == offsetof(struct balloon_config, actual))
                balloon->actual_pages = le32toh(value);
        else if (offset == offsetof(struct balloon_config, poison))
                balloon->poison = le32toh(value);
}

static void balloon_reset(struct virtio *v)
{
        struct balloon *balloon = to_balloon(v);

        balloon->actual_pages = 0;
        balloon->poison = 0;
        balloon->stats_held = false;
}

/* The buffer that we hold goes back; the driver answers with new statistics, which is harmless. */
static void balloon_quiesce(struct virtio *v)
{
        virtio_lock(v);
        give_stats_back(to_balloon(v));
        virtio_unlock(v);
}

static void balloon_save(struct virtio *v, struct writer *out)
{
        struct balloon *balloon = to_balloon(v);

        writer_le32(out, balloon->target_pages);
        writer_le32(out, balloon->actual_pages);
        writer_le32(out, balloon->poison);
}

static int balloon_load(struct virtio *v, uint16_t version, struct cursor *in, struct err *err)
{
        struct balloon *balloon = to_balloon(v);

        if (version != 1)
                return err_set(err, -EBADMSG, "balloon state has version %u, this is 1", version);
        balloon->target_pages = cursor_le32(in);
        balloon->actual_pages = cursor_le32(in);
        balloon->poison = cursor_le32(in);
        return 0;
}

static void balloon_free(struct virtio *v)
{
        virtio_done(v);
        free(to_balloon(v));
}

static const struct virtio_ops balloon_ops = {
        .name = "virtio-balloon",
        .id = VIRTIO_BALLOON,
        .class_code = 0x00ff00,
        .features = balloon_features,
        .config_bytes = sizeof(struct balloon_config),
        .config_read = balloon_config_read,
        .config_write = balloon_config_write,
        .notify = balloon_notify,
        .reset = balloon_reset,
        .quiesce = balloon_quiesce,
        .version = 1,
        .save = balloon_save,
        .load = balloon_load,
        .free = balloon_free,
};

int virtio_balloon_new(struct device_host *host, struct pci_bus *bus, const char *id, struct device **dev, struct err *err)
{
        static const uint16_t sizes[QUEUES] = { QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE };
        struct balloon *balloon = calloc(1, sizeof(*balloon));
        int r;

        if (!balloon)
                return err_nomem(err);
        memset(balloon->stats, 0xff, sizeof(balloon->stats));
        r = virtio_init(&balloon->v, host, bus, &balloon_ops, id, sizes, QUEUES, err);
        if (r < 0) {
                virtio_done(&balloon->v);
                free(balloon);
                return r;
        }
        *dev = &balloon->v.pci.dev;
        return 0;
}

/* For the host */

int virtio_balloon_set_target(struct device *dev, uint64_t target_bytes, struct err *err)
{
        struct virtio *v = virtio_from_device(dev);
        struct balloon *balloon = to_balloon(v);
        uint64_t total = 0;

        for (unsigned i = 0; i < v->host->mem->regions; i++)
                total += v->host->mem->region[i].size_bytes;
        if (target_bytes > total)
                return err_set(err, -EINVAL, "a balloon of %" PRIu64 " bytes in a machine with %" PRIu64, target_bytes, total);
        virtio_lock(v);
        balloon->target_pages = (uint32_t)(target_bytes >> GUEST_PAGE_SHIFT);
        virtio_config_changed(v);
        virtio_unlock(v);
        return 0;
}

void virtio_balloon_get_state(struct device *dev, struct virtio_balloon_state *state)
{
        struct virtio *v = virtio_from_device(dev);
        struct balloon *balloon = to_balloon(v);

        virtio_lock(v);
        *state = (struct virtio_balloon_state){
                .target_bytes = (uint64_t)balloon->target_pages << GUEST_PAGE_SHIFT,
                .actual_bytes = (uint64_t)balloon->actual_pages << GUEST_PAGE_SHIFT,
                .returned_bytes = balloon->returned_bytes,
        };
        virtio_unlock(v);
}

void virtio_balloon_get_stats(struct device *dev, struct virtio_balloon_stats *stats)
{
        struct virtio *v = virtio_from_device(dev);
        struct balloon *balloon = to_balloon(v);
        const uint64_t *s = balloon->stats;

        virtio_lock(v);
        *stats = (struct virtio_balloon_stats){
                .updated_ns = balloon->stats_ns,
                .swap_in = s[0],
                .swap_out = s[1],
                .major_faults_count = s[2],
                .minor_faults_count = s[3],
                .free_memory = s[4],
                .total_memory = s[5],
                .available_memory = s[6],
                .disk_caches = s[7],
                .hugetlb_allocations_count = s[8],
                .hugetlb_failures_count = s[9],
        };
        if (!v->quiesced)
                give_stats_back(balloon);
        virtio_unlock(v);
}
