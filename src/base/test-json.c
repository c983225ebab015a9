#include "base/test.h"

#include <errno.h>
#include <fcntl.h>

#include "base/json.h"
#include "base/test-alloc.h"

static void parses_and_writes(void **state)
{
        static const char text[] = "{\"a\": [1, 2.5, \"x\"]}";
        _cleanup_json_ json_t *json = NULL;
        char back[256] = "";
        int fds[2];

        assert_int_equal(json_parse(text, strlen(text), &json, NULL), 0);
        assert_int_equal(json_integer_value(json_array_get(json_object_get(json, "a"), 0)), 1);
        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        assert_int_equal(json_write(json, fds[1], NULL), 0);
        assert_true(read(fds[0], back, sizeof(back) - 1) > 0);
        assert_int_equal(back[strlen(back) - 1], '\n');
        close(fds[0]);
        close(fds[1]);
        assert_int_equal(json_write(json, -1, NULL), -EBADF);
}

static void refuses_great_numbers(void **state)
{
        static const char *const great[] = { "{\"a\": 1e999999}", "9223372036854775808", "[-9223372036854775809]" };
        struct err err = ERR_INIT;
        json_t *json = NULL;

        for (size_t i = 0; i < ARRAY_SIZE(great); i++)
                assert_int_equal(json_parse(great[i], strlen(great[i]), &json, &err), -ERANGE);
}

static void refuses(void **state)
{
        static const char *const bad[] = { "", "{", "{\"a\":1,\"a\":2}", "[1,]", "nul", "\"\xff\"", "[1] x" };
        struct err err = ERR_INIT;
        char *deep = malloc(100000);
        json_t *json = NULL;

        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                assert_int_equal(json_parse(bad[i], strlen(bad[i]), &json, &err), -EBADMSG);
                assert_non_null(strstr(err.text, "line 1"));
        }
        memset(deep, '[', 100000);
        assert_int_equal(json_parse(deep, 100000, &json, &err), -EBADMSG);
        assert_int_equal(json_parse(deep, JSON_TEXT_MAX + 1, &json, &err), -EFBIG);
        assert_null(json);
        free(deep);
}

int main(void)
{
        const struct CMUnitTest tests[] = { cmocka_unit_test(parses_and_writes), cmocka_unit_test(refuses), cmocka_unit_test(refuses_great_numbers) };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
