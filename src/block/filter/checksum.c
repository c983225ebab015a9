/*
 * Checksums: what is read is what was written, or an error (-EIO, and a line in the log), whatever lies below.
 *
 * They are in a file of their own, one for each block of 4096 bytes of the disk: a CRC-32C as a little-endian word, or 0 where none is known (a CRC
 * of 0 is kept as 0xffffffff). Blocks that were there before become known when they are first read.
 *
 *      0          header: "VIRTASUM", version 1, size of a block, size of the disk; its own CRC-32C at 32
 *      4096       a bit for each region of 4 MiB: 1 while it is being written to
 *      2 MiB + 4 KiB    the checksums; those of a region are one page of 4096 bytes
 *
 * Crashes. A write and its checksum are not on the disk at once. So a region's bit is on stable storage before the region is written to, and goes
 * back only some flushes after the last write to it: data flushed, then checksums flushed, then the bit. After a crash the checksums of regions
 * whose bit is set are not known, and are learned anew. A block that was written lately is thus not watched over across a crash, and all others are.
 *
 *      clean ──bit set, flushed──▶ written to ──KEEP flushes without a write, or the end──▶ checksums flushed ──▶ clean
 *
 * Writes copy the guest's bytes, which may change under way, and are alone in their blocks (claim.h). Whoever writes to the image without the
 * filter has to remove the file. CRC-32C: RFC 3720 §12.1 (Castagnoli).
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>

#include "base/iov.h"
#include "base/log.h"
#include "block/block-file.h"
#include "block/filter/filter.h"
#include "block/table-cache.h"

#define UNIT 4096u
#define REGION_BYTES (UINT64_C(4) << 20)
#define INTENT_AT UINT64_C(4096)
#define INTENT_BYTES (UINT64_C(2) << 20)
#define SUMS_AT (INTENT_AT + INTENT_BYTES)
#define DISK_BYTES_MAX (INTENT_BYTES * 8 * REGION_BYTES)
#define CACHE_BYTES ((size_t)16 << 20)
#define PIECE_BYTES (UINT64_C(1) << 20)
#define ZEROES_BYTES (UINT32_C(32) << 20) /* at once */
#define KEEP 16u /* flushes */
#define SECTOR_BITS (BLOCK_SECTOR * 8u)

struct header {
        char magic[8];
        uint32_t version, unit_bytes;
        uint64_t disk_bytes;
        uint64_t reserved;
        uint32_t crc;
};
_Static_assert(offsetof(struct header, crc) == 32, "as the file has it");

struct checksum {
        struct block block;
        struct claims claims;
        struct table_cache sums;
        struct fiber_lock intent_lock;
        uint8_t *intent;          /* of regions, as they are on stable storage; one that is about to go back is clear */
        uint32_t *written;        /* of a region: the flush behind its last write */
        uint16_t *busy;           /* writes in flight in it */
        uint64_t regions;
        uint32_t flushes;
        bool retiring;
        uint32_t table[8][256];   /* of the CRC */
};

static const struct block_driver block_checksum_driver;

static struct checksum *to_checksum(struct block *block)
{
        assert(block->driver == &block_checksum_driver);
        return container_of(block, struct checksum, block);
}

static struct block *child_of(const struct checksum *c)
{
        return c->block.child[BLOCK_FILE];
}

static struct block *side_of(const struct checksum *c)
{
        return c->block.child[BLOCK_DATA];
}

/* ---- CRC-32C, eight bytes at a time ---- */

static void make_table(uint32_t table[8][256])
{
        for (uint32_t n = 0; n < 256; n++) {
                uint32_t crc = n;

                for (unsigned bit = 0; bit < 8; bit++)
                        crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
                table[0][n] = crc;
        }
        for (uint32_t n = 0; n < 256; n++)
                for (unsigned k = 1; k < 8; k++)
                        table[k][n] = table[k - 1][n] >> 8 ^ table[0][table[k - 1][n] & 0xff];
}

static uint32_t crc32c(uint32_t table[8][256], const uint8_t *bytes, size_t size_bytes)
{
        uint32_t crc = UINT32_MAX;

        for (; size_bytes >= 8; bytes += 8, size_bytes -= 8) {
                uint32_t low, high;

                memcpy(&low, bytes, 4);
                memcpy(&high, bytes + 4, 4);
                low ^= crc;
                crc = table[7][low & 0xff] ^ table[6][low >> 8 & 0xff] ^ table[5][low >> 16 & 0xff] ^ table[4][low >> 24] ^ table[3][high & 0xff] ^
                      table[2][high >> 8 & 0xff] ^ table[1][high >> 16 & 0xff] ^ table[0][high >> 24];
        }
        while (size_bytes--)
                crc = crc >> 8 ^ table[0][(crc ^ *bytes++) & 0xff];
        return ~crc;
}

/* Of one block; the disk's last one may be shorter. */
static uint32_t sum_of(struct checksum *c, const uint8_t *bytes, size_t size_bytes)
{
        uint32_t crc = crc32c(c->table, bytes, size_bytes);

        return crc ? crc : UINT32_MAX;
}

/* ---- the checksums; in a fiber ---- */

enum sums_what { SUMS_SET, SUMS_FORGET, SUMS_WANT };

static void say_wrong(struct checksum *c, uint64_t at)
{
        log_guest("disk %s: the %u bytes at %" PRIu64 " are not what was written there", c->block.path, UNIT, at);
}

/* Of blocks from `at` on, which have these bytes. SUMS_WANT learns what is not known. */
static int sums(struct checksum *c, enum sums_what what, uint64_t at, const uint8_t *bytes, uint64_t size_bytes)
{
        struct table_page *page = NULL;
        int r = 0;

        for (uint64_t done = 0; done < size_bytes && r == 0; done += UNIT) {
                uint64_t entry = SUMS_AT + (at + done) / UNIT * 4;
                uint32_t known, now = bytes ? sum_of(c, bytes + done, MIN(size_bytes - done, (uint64_t)UNIT)) : 0;
                uint8_t *place;

                if (!page || !(entry % TABLE_PAGE_BYTES)) {
                        if (page)
                                table_page_put(page);
                        page = NULL;
                        r = table_page_get(&c->sums, side_of(c), entry, &page);
                        if (r < 0)
                                break;
                }
                place = table_page_at(&c->sums, page, entry);
                memcpy(&known, place, sizeof(known));
                if (what == SUMS_WANT && known && known != now) {
                        say_wrong(c, at + done);
                        r = -EIO;
                } else if (known != now) {
                        memcpy(place, &now, sizeof(now));
                        table_page_changed(&c->sums, page, false);
                }
        }
        if (page)
                table_page_put(page);
        return r;
}

/* ---- what is being written to ---- */

static bool is_set(const struct checksum *c, uint64_t region)
{
        return c->intent[region / 8] >> (region % 8) & 1;
}

/* The sector of bits that has the region's, with that one set, or as they are. */
static int write_intent(struct checksum *c, uint64_t region, bool set)
{
        uint8_t sector[BLOCK_SECTOR];
        uint64_t first = region / SECTOR_BITS * SECTOR_BITS;

        memcpy(sector, c->intent + first / 8, sizeof(sector));
        if (set)
                sector[(region - first) / 8] |= (uint8_t)(1u << (region % 8));
        return block_write(side_of(c), INTENT_AT + first / 8, sector, sizeof(sector));
}

static int set_intent(struct checksum *c, uint64_t region)
{
        int r = 0;

        fiber_lock(&c->intent_lock);
        if (!is_set(c, region)) {
                r = write_intent(c, region, true);
                if (r == 0)
                        r = block_flush(side_of(c));
                if (r == 0)
                        c->intent[region / 8] |= (uint8_t)(1u << (region % 8));
        }
        fiber_unlock(&c->intent_lock);
        return r;
}

static int begin_writing(struct checksum *c, uint64_t at, uint64_t size_bytes)
{
        int r = 0;

        for (uint64_t n = at / REGION_BYTES; n <= (at + size_bytes - 1) / REGION_BYTES; n++)
                c->busy[n]++;
        for (uint64_t n = at / REGION_BYTES; n <= (at + size_bytes - 1) / REGION_BYTES && r == 0; n++)
                if (!is_set(c, n))
                        r = set_intent(c, n);
        return r;
}

static void end_writing(struct checksum *c, uint64_t at, uint64_t size_bytes)
{
        for (uint64_t n = at / REGION_BYTES; n <= (at + size_bytes - 1) / REGION_BYTES; n++) {
                c->busy[n]--;
                c->written[n] = c->flushes + 1;
        }
}

/* The data of regions that were not written to since the flush `before` is on stable storage. */
static int retire(struct checksum *c, uint32_t before)
{
        int r = table_cache_write(&c->sums);

        if (r == 0)
                r = block_flush(side_of(c));
        if (r < 0)
                return r;
        fiber_lock(&c->intent_lock);
        for (uint64_t first = 0; first < c->regions && r == 0; first += SECTOR_BITS) {
                bool any = false;

                for (uint64_t n = first; n < MIN(first + SECTOR_BITS, c->regions); n++)
                        if (is_set(c, n) && !c->busy[n] && c->written[n] <= before) {
                                c->intent[n / 8] &= (uint8_t)~(1u << (n % 8));
                                any = true;
                        }
                if (any)
                        r = write_intent(c, first, false);
        }
        fiber_unlock(&c->intent_lock);
        return r;
}

/* ---- requests; in a fiber ---- */

static int read_checked(struct checksum *c, uint64_t at, uint8_t *bytes, uint64_t size_bytes)
{
        int r = block_read(child_of(c), at, bytes, size_bytes);

        return r == 0 ? sums(c, SUMS_WANT, at, bytes, size_bytes) : r;
}

struct piece {
        uint64_t at, size_bytes;     /* of the guest's */
        uint64_t from, to;           /* with the blocks around */
        uint8_t *bytes;              /* from..to */
};

static int do_read(struct checksum *c, struct block_request *guest, uint64_t done, const struct piece *p)
{
        struct claim claim;
        int r;

        claim_begin(&c->claims, &claim, p->from, p->to - p->from, CLAIM_READ);
        r = read_checked(c, p->from, p->bytes, p->to - p->from);
        claim_end(&c->claims, &claim);
        if (r == 0)
                buf_to_iov(guest->iov, guest->iov_count, done, p->bytes + (p->at - p->from), p->size_bytes);
        return r;
}

/* The blocks that are written in part, as they are. */
static int read_edges(struct checksum *c, const struct piece *p)
{
        uint64_t end = p->at + p->size_bytes, last = align_down(end, UNIT);
        int r = 0;

        if (p->from < p->at)
                r = read_checked(c, p->from, p->bytes, MIN(p->to - p->from, (uint64_t)UNIT));
        if (r == 0 && end < p->to && (last > p->from || p->from == p->at))
                r = read_checked(c, last, p->bytes + (last - p->from), p->to - last);
        return r;
}

static int do_write(struct checksum *c, struct block_request *guest, uint64_t done, const struct piece *p)
{
        uint8_t *bytes = p->bytes + (p->at - p->from);
        struct claim claim;
        int r, forgotten;

        claim_begin(&c->claims, &claim, p->from, p->to - p->from, CLAIM_ALONE);
        r = begin_writing(c, p->from, p->to - p->from);
        if (r == 0)
                r = read_edges(c, p);
        if (r == 0 && guest->op == BLOCK_WRITE) {
                iov_to_buf(guest->iov, guest->iov_count, done, bytes, p->size_bytes);
                r = block_do(child_of(c), BLOCK_WRITE, guest->flags & (unsigned)BLOCK_F_DURABLE, p->at, p->size_bytes,
                             &(struct iovec){ bytes, p->size_bytes }, 1);
        } else if (r == 0) {
                memset(bytes, 0, p->size_bytes);
                r = block_do(child_of(c), BLOCK_WRITE_ZEROES, guest->flags, p->at, p->size_bytes, NULL, 0);
        }
        if (r == 0)
                r = sums(c, SUMS_SET, p->from, p->bytes, p->to - p->from);
        if (r < 0) { /* nobody knows what is there */
                forgotten = sums(c, SUMS_FORGET, p->from, NULL, p->to - p->from);
                (void)forgotten; /* then it is an error when it is read */
        }
        end_writing(c, p->from, p->to - p->from);
        claim_end(&c->claims, &claim);
        return r;
}

static int by_pieces(struct checksum *c, struct block_request *guest)
{
        uint64_t done = 0, end = child_of(c)->info.size_bytes;
        _cleanup_free_ uint8_t *bytes = malloc(MIN(PIECE_BYTES, guest->size_bytes) + 2 * UNIT);
        int r = bytes ? 0 : -ENOMEM;

        while (r == 0 && done < guest->size_bytes) {
                struct piece p = { .at = guest->offset_bytes + done, .bytes = bytes };

                p.size_bytes = MIN(guest->size_bytes - done, PIECE_BYTES);
                p.from = align_down(p.at, UNIT);
                p.to = MIN(align_up(p.at + p.size_bytes, UNIT), end);
                r = guest->op == BLOCK_READ ? do_read(c, guest, done, &p) : do_write(c, guest, done, &p);
                done += p.size_bytes;
        }
        return r;
}

static int discard(struct checksum *c, struct block_request *guest)
{
        uint64_t end = guest->offset_bytes + guest->size_bytes;
        int r = 0;

        for (uint64_t at = guest->offset_bytes, some; at < end && r == 0; at += some) {
                struct claim claim;
                uint64_t from = align_down(at, UNIT), to;

                some = MIN(end - at, REGION_BYTES);
                to = MIN(align_up(at + some, UNIT), child_of(c)->info.size_bytes);
                claim_begin(&c->claims, &claim, from, to - from, CLAIM_ALONE);
                r = begin_writing(c, from, to - from);
                if (r == 0)
                        r = sums(c, SUMS_FORGET, from, NULL, to - from);
                if (r == 0)
                        r = block_do(child_of(c), BLOCK_DISCARD, guest->flags, at, some, NULL, 0);
                end_writing(c, from, to - from);
                claim_end(&c->claims, &claim);
        }
        return r;
}

/* Of what was written before; regions that rest since go back now and then. */
static int flush(struct checksum *c)
{
        int r = block_flush(child_of(c));

        if (r < 0 || ++c->flushes % KEEP || c->retiring)
                return r;
        c->retiring = true;
        r = retire(c, c->flushes - KEEP);
        c->retiring = false;
        return r;
}

static void work(void *arg)
{
        struct block_request *guest = arg;
        struct checksum *c = to_checksum((struct block *)guest->next);
        int r = guest->op == BLOCK_FLUSH ? flush(c) : guest->op == BLOCK_DISCARD ? discard(c, guest) : by_pieces(c, guest);

        block_complete(&c->block, guest, r);
        if (!c->block.submitting && c->block.listener)
                c->block.listener(c->block.listener_ctx);
}

static void checksum_submit(struct block *block, struct block_request *req)
{
        req->next = (struct block_request *)block;
        if (req->flags & BLOCK_F_COMPRESS)
                block_complete(block, req, -EOPNOTSUPP);
        else if (!req->size_bytes && req->op != BLOCK_FLUSH)
                block_complete(block, req, 0);
        else if (fiber_start(work, req) < 0)
                block_complete(block, req, -ENOMEM);
}

/* ---- its life ---- */

static int checksum_finish(struct block *block, struct err *err)
{
        struct checksum *c = to_checksum(block);
        int r = block->info.readonly ? 0 : block_flush(child_of(c));

        if (r == 0)
                r = retire(c, UINT32_MAX);
        if (r == 0)
                r = block_flush(side_of(c));
        return r < 0 ? err_errno(err, r, "cannot write the checksums of disk %s to %s", block->path, side_of(c)->path) : 0;
}

static void checksum_close(struct block *block)
{
        struct checksum *c = to_checksum(block);

        table_cache_done(&c->sums);
        free(c->intent);
        free(c->written);
        free(c->busy);
        block_done(block);
        free(c);
}

static int checksum_resize(struct block *block, uint64_t size_bytes, struct err *err)
{
        return err_set(err, -EOPNOTSUPP, "disk %s keeps its size while it has checksums", block->path);
}

static const struct block_driver block_checksum_driver = {
        .name = "checksum",
        .text = "what is read is what was written, or an error",
        .finish = checksum_finish,
        .close = checksum_close,
        .submit = checksum_submit, /* no status: what is said to be zeroes would not be looked at */
        .resize = checksum_resize,
};

static uint32_t header_crc(struct checksum *c, const struct header *header)
{
        return crc32c(c->table, (const uint8_t *)header, offsetof(struct header, crc));
}

static int write_header(struct checksum *c, struct block *side, struct err *err)
{
        struct header header = { .magic = "VIRTASUM", .version = 1, .unit_bytes = UNIT, .disk_bytes = c->block.info.size_bytes };
        int r;

        header.crc = header_crc(c, &header);
        r = block_write(side, 0, &header, sizeof(header));
        if (r == 0)
                r = block_flush(side);
        return r < 0 ? err_errno(err, r, "cannot write %s", side->path) : 0;
}

/* Regions that were being written to at the end. */
static int forget_regions(struct checksum *c, struct block *side, struct err *err)
{
        static const uint8_t zeroes[TABLE_PAGE_BYTES];
        bool any = false;
        int r = 0;

        for (uint64_t n = 0; n < c->regions && r == 0; n++) {
                if (!is_set(c, n))
                        continue;
                r = block_write(side, SUMS_AT + n * TABLE_PAGE_BYTES, zeroes, sizeof(zeroes));
                any = true;
        }
        if (!any)
                return 0;
        if (r == 0)
                r = block_flush(side);
        memset(c->intent, 0, align_up((c->regions + 7) / 8, BLOCK_SECTOR));
        if (r == 0)
                r = block_write(side, INTENT_AT, c->intent, align_up((c->regions + 7) / 8, BLOCK_SECTOR));
        return r < 0 ? err_errno(err, r, "cannot write %s", side->path) : 0;
}

static int read_side(struct checksum *c, struct block *side, struct err *err)
{
        struct header header;
        int r;

        if (side->info.size_bytes <= BLOCK_SECTOR) /* made just now */
                return write_header(c, side, err);
        r = block_read(side, 0, &header, sizeof(header));
        if (r == 0)
                r = block_read(side, INTENT_AT, c->intent, align_up((c->regions + 7) / 8, BLOCK_SECTOR));
        if (r < 0)
                return err_errno(err, r, "cannot read %s", side->path);
        if (memcmp(header.magic, "VIRTASUM", 8) || header.crc != header_crc(c, &header))
                return err_set(err, -EINVAL, "%s is no file of checksums", side->path);
        if (header.version != 1 || header.unit_bytes != UNIT)
                return err_set(err, -EINVAL, "%s is of a later kind", side->path);
        if (header.disk_bytes != c->block.info.size_bytes)
                return err_set(err, -EINVAL, "%s is of a disk of %" PRIu64 " bytes, %s has %" PRIu64, side->path, header.disk_bytes, c->block.path,
                               c->block.info.size_bytes);
        return forget_regions(c, side, err);
}

static int open_side(struct block *child, const char *path, struct block **side, struct err *err)
{
        const struct block_opening opening = { .loop = child->loop, .path = path, .format = "raw" };
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);

        if (fd < 0)
                return err_errno(err, -errno, "cannot open the checksums of disk %s, %s", child->path, path);
        close(fd);
        return block_file.open(&opening, side, err);
}

static int no_barrier(struct table_cache *cache)
{
        return 0;
}

static int set_up(struct checksum *c, struct block *child, struct block *side, struct err *err)
{
        claims_init(&c->claims);
        make_table(c->table);
        table_cache_init(&c->sums, TABLE_PAGE_BYTES, CACHE_BYTES);
        c->sums.barrier = no_barrier;
        c->block.info = child->info;
        c->block.info.grows = false;
        c->block.info.zeroes_bytes = MIN(child->info.zeroes_bytes, ZEROES_BYTES);
        c->regions = (child->info.size_bytes + REGION_BYTES - 1) / REGION_BYTES;
        c->intent = calloc(1, align_up((c->regions + 7) / 8, BLOCK_SECTOR));
        c->written = calloc(c->regions, sizeof(*c->written));
        c->busy = calloc(c->regions, sizeof(*c->busy));
        if (!c->intent || !c->written || !c->busy)
                return err_nomem(err);
        return read_side(c, side, err);
}

int block_checksum_new(struct block *child, const char *path, struct block **block, struct err *err)
{
        struct block *side = NULL, *b = NULL;
        int r;

        if (child->info.size_bytes > DISK_BYTES_MAX)
                return err_set(err, -EFBIG, "disk %s is too large for checksums", child->path);
        r = open_side(child, path, &side, err);
        if (r < 0)
                return r;
        r = filter_new(child, &block_checksum_driver, sizeof(struct checksum), &b, err);
        if (r == 0) {
                r = set_up(to_checksum(b), child, side, err);
                if (r < 0)
                        checksum_close(b);
        }
        if (r < 0) {
                block_close(side);
                return r;
        }
        block_adopt(b, BLOCK_FILE, child);
        block_adopt(b, BLOCK_DATA, side);
        *block = b;
        return 0;
}
