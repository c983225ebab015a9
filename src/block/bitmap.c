/*
 * Dirty bitmaps. Bits are in pieces of 4 KiB: one that has none set is not there, one that has all of them set is `full`, which stands for
 * any of these.
 */
#include "block/bitmap.h"

#include <errno.h>
#include <inttypes.h>

#define PIECE_WORDS 512
#define PIECE_BITS (UINT64_C(64) * PIECE_WORDS)
#define BITS_MAX (UINT64_C(1) << 34)

static const uint64_t full_piece[1];

static uint64_t *full(void)
{
        return (uint64_t *)full_piece; /* a name, never written to */
}

/* ---- pieces ---- */

static uint64_t piece_bits(const struct block_bitmap *b, size_t n)
{
        return MIN(block_bitmap_bits(b) - n * PIECE_BITS, PIECE_BITS);
}

static uint64_t word_mask(unsigned first, uint64_t count)
{
        return (count >= 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1) << first;
}

static uint64_t count_in(const uint64_t *words, uint64_t first, uint64_t count)
{
        uint64_t sum = 0;

        while (count) {
                unsigned bit = (unsigned)(first & 63);
                uint64_t some = MIN(count, UINT64_C(64) - bit);

                sum += (uint64_t)__builtin_popcountll(words[first / 64] & word_mask(bit, some));
                first += some;
                count -= some;
        }
        return sum;
}

static void fill_in(uint64_t *words, uint64_t first, uint64_t count, bool on)
{
        while (count) {
                unsigned bit = (unsigned)(first & 63);
                uint64_t some = MIN(count, UINT64_C(64) - bit), mask = word_mask(bit, some);

                words[first / 64] = on ? words[first / 64] | mask : words[first / 64] & ~mask;
                first += some;
                count -= some;
        }
}

static void drop_piece(struct block_bitmap *b, size_t n)
{
        if (b->piece[n] != full())
                free(b->piece[n]);
        b->piece[n] = NULL;
}

static uint64_t set_in(const struct block_bitmap *b, size_t n, uint64_t first, uint64_t count)
{
        return !b->piece[n] ? 0 : b->piece[n] == full() ? count : count_in(b->piece[n], first, count);
}

/* One that is written to. NULL: no memory. */
static uint64_t *own_piece(struct block_bitmap *b, size_t n)
{
        uint64_t *words;

        if (b->piece[n] && b->piece[n] != full())
                return b->piece[n];
        words = calloc(PIECE_WORDS, sizeof(*words));
        if (words && b->piece[n] == full())
                fill_in(words, 0, piece_bits(b, n), true);
        if (words)
                b->piece[n] = words;
        return words;
}

static void change_piece(struct block_bitmap *b, size_t n, uint64_t first, uint64_t count, bool on)
{
        uint64_t bits = piece_bits(b, n), before = set_in(b, n, first, count), *words;

        if (before == (on ? count : 0))
                return;
        b->changed = true;
        if (count == bits) {
                drop_piece(b, n);
                b->piece[n] = on ? full() : NULL;
        } else if ((words = own_piece(b, n))) {
                fill_in(words, first, count, on);
        } else if (on) { /* more than was asked for, never less */
                before = set_in(b, n, 0, bits);
                count = bits;
                drop_piece(b, n);
                b->piece[n] = full();
        } else {
                return;
        }
        b->dirty = on ? b->dirty + count - before : b->dirty - before;
}

static void change(struct block_bitmap *b, uint64_t first, uint64_t end, bool on)
{
        end = MIN(end, block_bitmap_bits(b));
        while (first < end) {
                uint64_t inside = first % PIECE_BITS, some = MIN(end - first, PIECE_BITS - inside);

                change_piece(b, first / PIECE_BITS, inside, some, on);
                first += some;
        }
}

/* ---- one bitmap ---- */

static uint64_t bits_of(uint64_t size_bytes, unsigned shift)
{
        return (size_bytes >> shift) + !!(size_bytes & ((UINT64_C(1) << shift) - 1));
}

static size_t pieces_of(uint64_t bits)
{
        return (size_t)((bits + PIECE_BITS - 1) / PIECE_BITS);
}

static int check_new(const struct block *block, const char *name, uint32_t granularity_bytes, struct err *err)
{
        if (!is_power_of_two(granularity_bytes) || granularity_bytes < BLOCK_BITMAP_GRANULARITY_MIN)
                return err_set(err, -EINVAL, "a bitmap's granularity of %" PRIu32 " bytes: it is a power of two, 512 to 2G", granularity_bytes);
        if (name && (!*name || strlen(name) > BLOCK_BITMAP_NAME_MAX))
                return err_set(err, -EINVAL, "a bitmap's name has 1 to %d bytes", BLOCK_BITMAP_NAME_MAX);
        if (name && block_bitmap_find(block, name))
                return err_set(err, -EEXIST, "disk %s has a bitmap %s already", block->path, name);
        if (bits_of(block->info.size_bytes, (unsigned)__builtin_ctz(granularity_bytes)) > BITS_MAX)
                return err_set(err, -EFBIG, "disk %s is too large for a bitmap of %" PRIu32 " bytes a bit", block->path, granularity_bytes);
        return 0;
}

static void bitmap_free(struct block_bitmap *b)
{
        for (size_t n = 0; b->piece && n < b->pieces; n++)
                drop_piece(b, n);
        free(b->piece);
        free(b->name);
        free(b);
}

int block_bitmap_add(struct block *block, const char *name, uint32_t granularity_bytes, struct block_bitmap **bitmap, struct err *err)
{
        struct block_bitmap *b, **end = &block->bitmaps;
        int r = check_new(block, name, granularity_bytes, err);

        if (r < 0)
                return r;
        b = calloc(1, sizeof(*b));
        if (!b)
                return err_nomem(err);
        *b = (struct block_bitmap){
                .block = block, .shift = (unsigned)__builtin_ctz(granularity_bytes), .size_bytes = block->info.size_bytes, .enabled = true, .changed = true,
        };
        b->pieces = pieces_of(block_bitmap_bits(b));
        b->piece = calloc(MAX(b->pieces, (size_t)1), sizeof(*b->piece));
        b->name = name ? strdup(name) : NULL;
        if (!b->piece || (name && !b->name)) {
                bitmap_free(b);
                return err_nomem(err);
        }
        while (*end)
                end = &(*end)->next;
        *end = b;
        *bitmap = b;
        return 0;
}

void block_bitmap_remove(struct block_bitmap *bitmap)
{
        struct block_bitmap **at = &bitmap->block->bitmaps;

        while (*at != bitmap)
                at = &(*at)->next;
        *at = bitmap->next;
        bitmap_free(bitmap);
}

struct block_bitmap *block_bitmap_find(const struct block *block, const char *name)
{
        struct block_bitmap *b = block->bitmaps;

        while (b && (!b->name || strcmp(b->name, name)))
                b = b->next;
        return b;
}

int block_bitmap_get(const struct block *block, const char *name, bool may_share, struct block_bitmap **bitmap, struct err *err)
{
        struct block_bitmap *b = block_bitmap_find(block, name);

        if (!b)
                return err_set(err, -ENOENT, "disk %s has no bitmap %s", block->path, name);
        if (b->inconsistent)
                return err_set(err, -EINVAL, "disk %s: bitmap %s missed writes, since the image was not closed; it can only be removed", block->path, name);
        if (b->users && !may_share)
                return err_set(err, -EBUSY, "disk %s: bitmap %s is in use", block->path, name);
        *bitmap = b;
        return 0;
}

uint32_t block_bitmap_granularity(const struct block *block)
{
        return is_power_of_two(block->info.optimal_bytes) ? MIN(MAX(block->info.optimal_bytes, 4096u), 65536u) : 65536u;
}

int block_bitmap_can_persist(struct block *block, const char *name, uint32_t granularity_bytes, struct err *err)
{
        if (!block->driver->keep_bitmap)
                return err_set(err, -EOPNOTSUPP, "disk %s: its format keeps no bitmaps", block->path);
        return block->driver->keep_bitmap(block, name, granularity_bytes, err);
}

/* ---- bits ---- */

void block_bitmap_set(struct block_bitmap *bitmap, uint64_t offset_bytes, uint64_t size_bytes)
{
        if (size_bytes)
                change(bitmap, offset_bytes >> bitmap->shift, ((offset_bytes + size_bytes - 1) >> bitmap->shift) + 1, true);
}

void block_bitmap_clear(struct block_bitmap *bitmap, uint64_t offset_bytes, uint64_t size_bytes)
{
        uint64_t end = offset_bytes + size_bytes;

        change(bitmap, bits_of(offset_bytes, bitmap->shift), end >= bitmap->size_bytes ? block_bitmap_bits(bitmap) : end >> bitmap->shift, false);
}

bool block_bitmap_test(const struct block_bitmap *bitmap, uint64_t offset_bytes)
{
        uint64_t bit = offset_bytes >> bitmap->shift;

        return bit < block_bitmap_bits(bitmap) && set_in(bitmap, bit / PIECE_BITS, bit % PIECE_BITS, 1);
}

/* The first bit from `at` on that is as `on` says; the number of bits when none is. */
static uint64_t find_bit(const struct block_bitmap *b, uint64_t at, bool on)
{
        uint64_t bits = block_bitmap_bits(b);

        while (at < bits) {
                const uint64_t *words = b->piece[at / PIECE_BITS];
                uint64_t word, inside = at % PIECE_BITS;

                if (!words || words == full()) {
                        if (!!words == on)
                                return at;
                        at += PIECE_BITS - inside;
                        continue;
                }
                word = (on ? words[inside / 64] : ~words[inside / 64]) & (UINT64_MAX << (at & 63));
                if (word)
                        return MIN(align_down(at, 64) + (uint64_t)__builtin_ctzll(word), bits);
                at = align_down(at, 64) + 64;
        }
        return bits;
}

bool block_bitmap_next(const struct block_bitmap *bitmap, uint64_t at_bytes, uint64_t *offset_bytes, uint64_t *size_bytes)
{
        uint64_t first = find_bit(bitmap, at_bytes >> bitmap->shift, true), end;

        if (first >= block_bitmap_bits(bitmap))
                return false;
        end = find_bit(bitmap, first, false);
        *offset_bytes = MAX(first << bitmap->shift, at_bytes);
        *size_bytes = MIN(end << bitmap->shift, bitmap->size_bytes) - *offset_bytes;
        return *size_bytes;
}

int block_bitmap_merge(struct block_bitmap *into, const struct block_bitmap *from, struct err *err)
{
        uint64_t at = 0, offset, size_bytes;

        if (into->size_bytes != from->size_bytes)
                return err_set(err, -EINVAL, "bitmap %s is of a disk of %" PRIu64 " bytes, %s of one of %" PRIu64, from->name, from->size_bytes, into->name,
                               into->size_bytes);
        for (; block_bitmap_next(from, at, &offset, &size_bytes); at = offset + size_bytes)
                block_bitmap_set(into, offset, size_bytes);
        return 0;
}

/* ---- bytes ---- */

void block_bitmap_to_bytes(const struct block_bitmap *bitmap, uint64_t first, uint64_t count, uint8_t *to)
{
        memset(to, 0, (size_t)(count + 7) / 8);
        for (uint64_t n = 0; n < count; n += 8) {
                uint64_t bit = first + n, some = MIN(count - n, UINT64_C(8));
                const uint64_t *words = bitmap->piece[bit / PIECE_BITS];
                uint8_t byte = !words ? 0 : words == full() ? 0xff : (uint8_t)(words[bit % PIECE_BITS / 64] >> (bit & 63));

                to[n / 8] = (uint8_t)(byte & ((1u << some) - 1));
        }
}

void block_bitmap_from_bytes(struct block_bitmap *bitmap, uint64_t first, uint64_t count, const uint8_t *from)
{
        for (uint64_t n = 0; n < count; n++) {
                uint64_t run = n;

                while (run < count && from[run / 8] >> (run & 7) & 1)
                        run++;
                if (run > n)
                        change(bitmap, first + n, first + run, true);
                n = run;
        }
}

uint64_t block_bitmap_count(const struct block_bitmap *bitmap, uint64_t first, uint64_t count)
{
        uint64_t sum = 0;

        while (count) {
                uint64_t inside = first % PIECE_BITS, some = MIN(count, PIECE_BITS - inside);

                sum += set_in(bitmap, first / PIECE_BITS, inside, some);
                first += some;
                count -= some;
        }
        return sum;
}

/* ---- for the core ---- */

void block_bitmaps_wrote(struct block *block, const struct block_request *req)
{
        if (req->op == BLOCK_READ || req->op == BLOCK_FLUSH)
                return;
        for (struct block_bitmap *b = block->bitmaps; b; b = b->next)
                if (b->enabled && !b->inconsistent)
                        block_bitmap_set(b, req->offset_bytes, req->size_bytes);
}

/* Room for what comes in, before anything is changed. */
static int make_room(struct block_bitmap *b, uint64_t size_bytes, struct err *err)
{
        uint64_t bits = bits_of(size_bytes, b->shift);
        size_t pieces = pieces_of(bits);
        uint64_t **grown;

        if (bits > BITS_MAX)
                return err_set(err, -EFBIG, "bitmap %s cannot be of a disk of %" PRIu64 " bytes", b->name ? b->name : "of a job", size_bytes);
        if (pieces <= b->pieces)
                return 0;
        grown = realloc(b->piece, pieces * sizeof(*grown));
        if (!grown)
                return err_nomem(err);
        memset(grown + b->pieces, 0, (pieces - b->pieces) * sizeof(*grown));
        b->piece = grown;
        b->pieces = pieces;
        return 0;
}

static int resize(struct block_bitmap *b, uint64_t size_bytes, struct err *err)
{
        uint64_t before = block_bitmap_bits(b), after = bits_of(size_bytes, b->shift);
        size_t last = before ? pieces_of(before) - 1 : 0;
        int r = make_room(b, size_bytes, err);

        if (r < 0)
                return r;
        if (after < before)
                change(b, after, before, false);
        else if (before && b->piece[last] == full())
                (void)own_piece(b, last); /* no memory: what comes in counts as set */
        b->size_bytes = size_bytes;
        b->dirty = block_bitmap_count(b, 0, after);
        b->changed = true;
        return 0;
}

int block_bitmaps_resize(struct block *block, uint64_t size_bytes, struct err *err)
{
        int r = 0;

        for (struct block_bitmap *b = block->bitmaps; b && r == 0; b = b->next)
                r = make_room(b, size_bytes, err);
        for (struct block_bitmap *b = block->bitmaps; b && r == 0; b = b->next)
                r = resize(b, size_bytes, err);
        return r;
}

void block_bitmaps_free(struct block *block)
{
        while (block->bitmaps)
                block_bitmap_remove(block->bitmaps);
}
