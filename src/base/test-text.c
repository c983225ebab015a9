#include "base/test.h"

#include <errno.h>
#include <unistd.h>

#include "base/test-alloc.h"
#include "base/text.h"

#define MIB (UINT64_C(1) << 20)

static void sizes(void **state)
{
        static const struct { const char *text; uint64_t bytes; } good[] = {
                { "512M", 512 * MIB }, { "2G", 2048 * MIB },     { "1536K", 1536 * 1024 }, { "64", 64 * MIB },
                { "1T", MIB * MIB },   { "0001m", MIB },         { "3g", 3072 * MIB },     { "17592186044415", UINT64_MAX - MIB + 1 },
        };
        static const struct { const char *text; int code; } bad[] = {
                { "", -EINVAL },      { "-1", -EINVAL },       { "+1", -EINVAL },    { " 1", -EINVAL },  { "1 ", -EINVAL },
                { "1.5G", -EINVAL },  { "M", -EINVAL },        { "1MB", -EINVAL },   { "0x10", -EINVAL }, { "1P", -EINVAL },
                { "0", -EINVAL },     { "0K", -EINVAL },       { "abc", -EINVAL },   { "1\n", -EINVAL },
                { "17592186044416", -ERANGE }, { "99999999999999999999999", -ERANGE }, { "16777216T", -ERANGE },
        };
        char text[SIZE_TEXT_MAX];

        for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
                uint64_t bytes = 1;

                assert_int_equal(size_parse(good[i].text, &bytes, NULL), 0);
                assert_int_equal(bytes, good[i].bytes);
        }
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                struct err err = ERR_INIT;
                uint64_t bytes = 1;

                assert_int_equal(size_parse(bad[i].text, &bytes, &err), bad[i].code);
                assert_int_equal(bytes, 1);
                assert_non_null(strstr(err.text, bad[i].text));
        }
        assert_string_equal(size_format(512 * MIB, text), "512M");
        assert_string_equal(size_format(1536 * 1024, text), "1536K");
        assert_string_equal(size_format(3 * 1024 * MIB, text), "3G");
        assert_string_equal(size_format(17, text), "17 bytes");
        assert_string_equal(size_format(0, text), "0 bytes");
}

static void numbers(void **state)
{
        uint64_t number = 77;
        struct err err = ERR_INIT;

        assert_int_equal(number_parse("1", 1, 255, &number, NULL), 0);
        assert_int_equal(number, 1);
        assert_int_equal(number_parse("0xfF", 1, 255, &number, NULL), 0);
        assert_int_equal(number, 255);
        assert_int_equal(number_parse("256", 1, 255, &number, &err), -ERANGE);
        assert_string_equal(err.text, "'256' is not in the range from 1 to 255");
        assert_int_equal(number_parse("0", 1, 255, &number, NULL), -ERANGE);
        assert_int_equal(number_parse("18446744073709551616", 1, UINT64_MAX, &number, NULL), -ERANGE);
        assert_int_equal(number_parse("18446744073709551615", 1, UINT64_MAX, &number, NULL), 0);
        for (const char *const *bad = (const char *const[]){ "", "-1", "+1", " 1", "1x", "0x", "one", "1 ", NULL }; *bad; bad++)
                assert_int_not_equal(number_parse(*bad, 0, 255, &number, NULL), 0);
        assert_int_equal(number, UINT64_MAX);
}

static void check_escape(const char *from, size_t size, const char *to)
{
        char text[256];

        assert_int_equal(text_escape(from, size, text, sizeof(text)), strlen(to));
        assert_string_equal(text, to);
}

static void escapes(void **state)
{
        char text[8];

        check_escape("plain", 5, "plain");
        check_escape("a\033[2Jb", 6, "a\\x1b[2Jb");
        check_escape("a\0b", 3, "a\\x00b");
        check_escape("\r\n\x7f", 3, "\\x0d\\x0a\\x7f");
        check_escape("é€😀", 9, "é€😀");
        check_escape("\xc2\x9b" "1m", 4, "\\xc2\\x9b1m");             /* a C1 control: CSI */
        check_escape("\xe2\x80\xae", 3, "\\xe2\\x80\\xae");           /* right-to-left override */
        check_escape("\xc0\xaf\xed\xa0\x80\xff", 6, "\\xc0\\xaf\\xed\\xa0\\x80\\xff");
        check_escape("\xe2\x82", 2, "\\xe2\\x82");
        assert_int_equal(text_escape("\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac", 9, text, sizeof(text)), 6);
        assert_int_equal(text_escape("\1\1\1", 3, text, sizeof(text)), 4);
        assert_int_equal(text_escape("12345678", 8, text, sizeof(text)), 7);
        assert_int_equal(text_escape("12345678", 8, text, 1), 0);
}

static void copies(void **state)
{
        char text[4] = "old";

        assert_false(text_copy(text, sizeof(text), "four"));
        assert_false(text_copy(text, 0, ""));
        assert_string_equal(text, "old");
        assert_true(text_copy(text, sizeof(text), "new"));
        assert_string_equal(text, "new");
        assert_true(text_copy(text, 1, ""));
        assert_string_equal(text, "");
}

static void fields(void **state)
{
        char text[] = "/a,,b,ro,,,format=raw,";
        char *rest = text;

        assert_string_equal(field_next(&rest), "/a,b");
        assert_string_equal(field_next(&rest), "ro,");
        assert_string_equal(field_next(&rest), "format=raw");
        assert_string_equal(field_next(&rest), "");
        assert_null(field_next(&rest));
        assert_null(field_next(&rest));
}

static void reads(void **state)
{
        char text[8] = "before";
        int ends[2];

        assert_int_equal(pipe(ends), 0);
        /* In two pieces, as a pipe gives them; cut where there is no room; the rest is there for the next. */
        assert_int_equal(write(ends[1], "abc", 3), 3);
        assert_int_equal(write(ends[1], "defghijk", 8), 8);
        assert_int_equal(text_read(ends[0], text, sizeof(text)), 7);
        assert_string_equal(text, "abcdefg");
        close(ends[1]);
        assert_int_equal(text_read(ends[0], text, sizeof(text)), 4);
        assert_string_equal(text, "hijk");
        assert_int_equal(text_read(ends[0], text, sizeof(text)), 0);
        assert_string_equal(text, "");
        close(ends[0]);
        assert_int_equal(text_read(ends[0], text, sizeof(text)), -EBADF);
        assert_string_equal(text, "");
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(sizes),
                cmocka_unit_test(numbers),
                cmocka_unit_test(escapes),
                cmocka_unit_test(copies),
                cmocka_unit_test(fields),
                cmocka_unit_test(reads),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
