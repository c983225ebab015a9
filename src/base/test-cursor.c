#include "base/test.h"

#include <errno.h>

#include "base/cursor.h"
#include "base/test-alloc.h"

static void reads_what_was_written(void **state)
{
        struct writer out = { 0 };
        struct cursor in;
        char text[3];

        writer_u8(&out, 0x12);
        writer_le16(&out, 0x3456);
        writer_le32(&out, 0x789abcde);
        writer_le64(&out, 0xf0123456789abcde);
        writer_put(&out, "ab", 3);
        assert_false(out.bad);
        assert_int_equal(out.size, 18);
        in = cursor_from(out.bytes, out.size);
        assert_int_equal(cursor_u8(&in), 0x12);
        assert_int_equal(cursor_le16(&in), 0x3456);
        assert_int_equal(cursor_le32(&in), 0x789abcde);
        assert_int_equal(cursor_le64(&in), 0xf0123456789abcde);
        assert_int_equal(cursor_get(&in, text, 3), 0);
        assert_string_equal(text, "ab");
        assert_int_equal(cursor_left(&in), 0);
        assert_false(in.bad);
        writer_done(&out);
}

static void big_endian(void **state)
{
        const uint8_t bytes[] = { 1, 2, 1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8 };
        struct cursor in = cursor_from(bytes, sizeof(bytes));

        assert_int_equal(cursor_be16(&in), 0x0102);
        assert_int_equal(cursor_be32(&in), 0x01020304);
        assert_int_equal(cursor_be64(&in), 0x0102030405060708);
}

static void stays_bad_past_the_end(void **state)
{
        const uint8_t bytes[] = { 1, 2, 3 };
        struct cursor in = cursor_from(bytes, sizeof(bytes));
        uint8_t untouched[8] = { 9 };

        assert_int_equal(cursor_get(&in, untouched, 4), -EBADMSG);
        assert_int_equal(untouched[0], 9);
        assert_true(in.bad);
        assert_int_equal(cursor_u8(&in), 0);
        assert_int_equal(cursor_left(&in), 0);
        assert_null(cursor_take(&in, 0));
}

static void sub_cursors_end_where_they_should(void **state)
{
        const uint8_t bytes[] = { 1, 2, 3, 4 };
        struct cursor in = cursor_from(bytes, sizeof(bytes));
        struct cursor sub = cursor_sub(&in, 2);

        assert_int_equal(cursor_le16(&sub), 0x0201);
        assert_int_equal(cursor_u8(&sub), 0);
        assert_true(sub.bad);
        assert_int_equal(cursor_u8(&in), 3);
        assert_true(cursor_sub(&in, SIZE_MAX).bad);
        assert_true(in.bad);
}

static void writer_survives_lack_of_memory(void **state)
{
        for (int n = 0; n < 3; n++) {
                struct writer out = { 0 };

                test_alloc_fail_after(n);
                for (int i = 0; i < 1000; i++)
                        writer_le64(&out, 1);
                test_alloc_fail_after(-1);
                assert_true(out.bad);
                writer_done(&out);
                assert_null(out.bytes);
        }
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(reads_what_was_written),
                cmocka_unit_test(big_endian),
                cmocka_unit_test(stays_bad_past_the_end),
                cmocka_unit_test(sub_cursors_end_where_they_should),
                cmocka_unit_test(writer_survives_lack_of_memory),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
