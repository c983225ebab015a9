#include "base/test.h"

#include <errno.h>

#include "base/err.h"
#include "base/test-alloc.h"

static void sets_and_wraps(void **state)
{
        struct err err = ERR_INIT;

        assert_int_equal(err_set(&err, -EBADMSG, "it is %d bytes", 12), -EBADMSG);
        assert_int_equal(err_wrap(&err, -EBADMSG, "restoring device %s", "rtc"), -EBADMSG);
        assert_string_equal(err.text, "restoring device rtc: it is 12 bytes");
        assert_int_equal(err.code, -EBADMSG);
}

static void adds_the_reason(void **state)
{
        struct err err = ERR_INIT;

        assert_int_equal(err_errno(&err, -ENOENT, "cannot open '%s'", "/x"), -ENOENT);
        assert_string_equal(err.text, "cannot open '/x': No such file or directory");
}

static void takes_no_object(void **state)
{
        assert_int_equal(err_set(NULL, -EIO, "x"), -EIO);
        assert_int_equal(err_errno(NULL, -EIO, "x"), -EIO);
        assert_int_equal(err_wrap(NULL, -EIO, "x"), -EIO);
}

static void cuts_what_is_too_long(void **state)
{
        char text[2 * ERR_TEXT_MAX];
        struct err err = ERR_INIT;

        memset(text, 'a', sizeof(text) - 1);
        text[sizeof(text) - 1] = 0;
        err_set(&err, -EIO, "%s", text);
        assert_int_equal(strlen(err.text), ERR_TEXT_MAX - 1);
        for (int i = 0; i < 3; i++)
                err_wrap(&err, -EIO, "reading %s", text);
        assert_int_equal(strlen(err.text), ERR_TEXT_MAX - 1);
}

static void needs_no_memory(void **state)
{
        struct err err = ERR_INIT;

        test_alloc_fail_after(0);
        assert_int_equal(err_nomem(&err), -ENOMEM);
        assert_int_equal(err_wrap(&err, -ENOMEM, "doing %d", 1), -ENOMEM);
        test_alloc_fail_after(-1);
        assert_string_equal(err.text, "doing 1: out of memory");
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(sets_and_wraps),        cmocka_unit_test(adds_the_reason), cmocka_unit_test(takes_no_object),
                cmocka_unit_test(cuts_what_is_too_long), cmocka_unit_test(needs_no_memory),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
