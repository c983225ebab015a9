#include "base/test.h"

#include <errno.h>

#include "base/record.h"
#include "base/test-alloc.h"

static void round_trip(void **state)
{
        struct writer out = { 0 };
        struct cursor in;
        struct record record;
        size_t outer, inner;

        outer = record_begin(&out, "machine", 3);
        writer_le32(&out, 7);
        inner = record_begin(&out, "rtc", 1);
        writer_u8(&out, 5);
        record_end(&out, inner);
        record_end(&out, outer);
        inner = record_begin(&out, "empty", 0);
        record_end(&out, inner);
        assert_false(out.bad);

        in = cursor_from(out.bytes, out.size);
        assert_int_equal(record_next(&in, &record, NULL), 0);
        assert_string_equal(record.name, "machine");
        assert_int_equal(record.version, 3);
        assert_int_equal(cursor_le32(&record.body), 7);
        {
                struct record nested;

                assert_int_equal(record_next(&record.body, &nested, NULL), 0);
                assert_string_equal(nested.name, "rtc");
                assert_int_equal(record_finish(&nested, NULL), -EBADMSG); /* one byte left */
                assert_int_equal(cursor_u8(&nested.body), 5);
                assert_int_equal(record_finish(&nested, NULL), 0);
                assert_int_equal(cursor_u8(&nested.body), 0);
                assert_int_equal(record_finish(&nested, NULL), -EBADMSG); /* read too far */
        }
        assert_int_equal(record_finish(&record, NULL), 0);
        {
                struct cursor again = in;

                assert_int_equal(record_expect(&again, "full", record.version, &record, NULL), -EBADMSG);
                assert_string_equal(record.name, "machine");
        }
        assert_int_equal(record_next(&in, &record, NULL), 0);
        assert_string_equal(record.name, "empty");
        assert_int_equal(record_finish(&record, NULL), 0);
        assert_int_equal(record_next(&in, &record, NULL), -ENODATA);
        writer_done(&out);
}

static void every_cut_is_found(void **state)
{
        struct writer out = { 0 };
        size_t mark = record_begin(&out, "name", 1);

        writer_le64(&out, 1);
        record_end(&out, mark);
        for (size_t size = 1; size < out.size; size++) {
                struct cursor in = cursor_from(out.bytes, size);
                struct record record = { .name = "before" };
                struct err err = ERR_INIT;

                assert_int_equal(record_next(&in, &record, &err), -EBADMSG);
                assert_string_equal(record.name, "before");
                assert_true(err.text[0]);
                assert_int_equal(record_next(&in, &record, &err), -EBADMSG);
        }
        writer_done(&out);
}

static void names_must_be_text(void **state)
{
        static const uint8_t control[] = { 2, 'a', '\n', 1, 0, 0, 0, 0, 0 };
        static const uint8_t none[] = { 0, 1, 0, 0, 0, 0, 0 };
        uint8_t too_long[100] = { 64 };
        struct record record;
        struct cursor in;

        in = cursor_from(control, sizeof(control));
        assert_int_equal(record_next(&in, &record, NULL), -EBADMSG);
        in = cursor_from(none, sizeof(none));
        assert_int_equal(record_next(&in, &record, NULL), -EBADMSG);
        memset(too_long + 1, 'a', sizeof(too_long) - 1);
        in = cursor_from(too_long, sizeof(too_long));
        assert_int_equal(record_next(&in, &record, NULL), -EBADMSG);
}

static void out_of_memory_shows_at_the_end(void **state)
{
        for (int n = 0; n < 2; n++) {
                struct writer out = { 0 };
                size_t mark;

                test_alloc_fail_after(n);
                mark = record_begin(&out, "rtc", 1);
                for (int i = 0; i < 100; i++)
                        writer_le64(&out, 1);
                record_end(&out, mark);
                test_alloc_fail_after(-1);
                assert_true(out.bad);
                writer_done(&out);
        }
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(round_trip),
                cmocka_unit_test(every_cut_is_found),
                cmocka_unit_test(names_must_be_text),
                cmocka_unit_test(out_of_memory_shows_at_the_end),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
