/* Dirty bitmaps against an array of flags; and what writes leave in them. */
#include "base/test.h"

#include <errno.h>

#include "block/bitmap.h"
#include "block/test-memory.h"

#define DISK_BYTES (UINT64_C(40) << 20)
#define BITS_MAX 120000

struct fixture {
        struct memory_disk on;
        uint64_t seed;
};

static uint64_t random_of(struct fixture *f, uint64_t below)
{
        f->seed = f->seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        return (f->seed >> 30) % below;
}

static int setup(void **state)
{
        struct fixture *f = calloc(1, sizeof(*f));

        memory_disk_begin(&f->on, DISK_BYTES);
        *state = f;
        return 0;
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        memory_disk_end(&f->on);
        free(f);
        return 0;
}

static void compare(const struct block_bitmap *b, const bool *model)
{
        uint64_t bits = block_bitmap_bits(b), at = 0, offset, size_bytes, dirty = 0, next = 0;
        uint8_t *bytes = malloc((bits + 7) / 8);

        block_bitmap_to_bytes(b, 0, bits, bytes);
        for (uint64_t n = 0; n < bits; n++) {
                assert_int_equal(bytes[n / 8] >> (n & 7) & 1, model[n]);
                assert_int_equal(block_bitmap_test(b, n << b->shift), model[n]);
                dirty += model[n];
        }
        assert_int_equal(b->dirty, dirty);
        assert_int_equal(block_bitmap_count(b, 0, bits), dirty);
        for (; block_bitmap_next(b, at, &offset, &size_bytes); at = offset + size_bytes) {
                for (; next < offset >> b->shift; next++)
                        assert_false(model[next]);
                for (; next << b->shift < offset + size_bytes; next++)
                        assert_true(model[next]);
        }
        for (; next < bits; next++)
                assert_false(model[next]);
        free(bytes);
}

static void as_an_array(void **state)
{
        struct fixture *f = *state;
        static bool model[BITS_MAX];
        struct block_bitmap *b, *other;
        uint8_t *bytes;

        f->seed = 5;
        assert_int_equal(block_bitmap_add(&f->on.file->block, "one", 512, &b, NULL), 0);
        for (unsigned n = 0; n < 300; n++) {
                uint64_t from = random_of(f, b->size_bytes), size = MIN(1 + random_of(f, random_of(f, 3) ? 100000 : 30000000), b->size_bytes - from);
                uint64_t bits = block_bitmap_bits(b);

                if (random_of(f, 2)) {
                        block_bitmap_set(b, from, size);
                        for (uint64_t k = from / 512; k <= (from + size - 1) / 512; k++)
                                model[k] = true;
                } else {
                        block_bitmap_clear(b, from, size);
                        for (uint64_t k = (from + 511) / 512; k < (from + size == b->size_bytes ? bits : (from + size) / 512); k++)
                                model[k] = false;
                }
                if (n % 30 == 29) {
                        uint64_t to = (DISK_BYTES / 2 + random_of(f, DISK_BYTES / 3)) / 512 * 512;

                        assert_int_equal(block_resize(&f->on.file->block, to, NULL), 0);
                        for (uint64_t k = to / 512; k < BITS_MAX; k++)
                                model[k] = false;
                }
                if (n % 10 == 9)
                        compare(b, model);
        }
        bytes = malloc(block_bitmap_bits(b) / 8 + 1);
        block_bitmap_to_bytes(b, 0, block_bitmap_bits(b), bytes);
        assert_int_equal(block_bitmap_add(&f->on.file->block, "two", 512, &other, NULL), 0);
        block_bitmap_from_bytes(other, 0, block_bitmap_bits(b), bytes);
        compare(other, model);
        free(bytes);
}

static void what_writes_leave(void **state)
{
        struct fixture *f = *state;
        struct block *disk = &f->on.file->block;
        struct block_bitmap *fine, *coarse, *off;
        uint64_t offset, size_bytes;
        uint8_t bytes[3000] = { 1 };

        assert_int_equal(block_bitmap_add(disk, "fine", 512, &fine, NULL), 0);
        assert_int_equal(block_bitmap_add(disk, "coarse", 65536, &coarse, NULL), 0);
        assert_int_equal(block_bitmap_add(disk, NULL, 65536, &off, NULL), 0);
        assert_int_equal(block_bitmap_add(disk, "fine", 512, &off, NULL), -EEXIST);
        assert_int_equal(block_bitmap_add(disk, "odd", 700, &off, NULL), -EINVAL);
        off->enabled = false;
        assert_int_equal(block_write(disk, 1000, bytes, 3000), 0);
        assert_int_equal(fine->dirty, 7);
        assert_int_equal(coarse->dirty, 1);
        assert_int_equal(off->dirty, 0);
        assert_int_equal(block_do(disk, BLOCK_DISCARD, 0, 1 << 20, 1 << 17, NULL, 0), 0);
        assert_int_equal(coarse->dirty, 3);
        assert_int_equal(block_flush(disk), 0);
        assert_int_equal(block_read(disk, 4 << 20, bytes, 3000), 0);
        f->on.file->fail_after = 0;
        f->on.file->fail_error = -EIO;
        assert_int_equal(block_write(disk, 8 << 20, bytes, 3000), -EIO);
        assert_true(block_bitmap_next(fine, 2 << 20, &offset, &size_bytes));
        assert_int_equal(offset, 8 << 20);
        assert_int_equal(size_bytes, 3072);
        assert_int_equal(block_bitmap_merge(off, fine, NULL), 0);
        assert_int_equal(off->dirty, 4);
        assert_ptr_equal(block_bitmap_find(disk, "coarse"), coarse);
        block_bitmap_remove(coarse);
        assert_null(block_bitmap_find(disk, "coarse"));
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = { CASE(as_an_array), CASE(what_writes_leave) };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
