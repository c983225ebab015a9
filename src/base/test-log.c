#include "base/test.h"

#include <fcntl.h>
#include <stdio.h>

#include "base/log.h"
#include "base/test-alloc.h"

/* What fn writes to standard error. */
static void capture(void (*fn)(void), char *text, size_t size)
{
        FILE *file = tmpfile();
        int saved = dup(STDERR_FILENO);

        assert_non_null(file);
        dup2(fileno(file), STDERR_FILENO);
        fn();
        dup2(saved, STDERR_FILENO);
        close(saved);
        rewind(file);
        text[fread(text, 1, size - 1, file)] = 0;
        fclose(file);
}

static void levels_fn(void)
{
        log_init("prog", LOG_INFO);
        log_error("cannot open '%s'", "a\033b");
        log_warning("slow");
        log_debug("hidden");
        log_context("vm", "web 1\n");
        log_info("up err=%d", 3);
}

static void levels(void **state)
{
        char text[1024];

        capture(levels_fn, text, sizeof(text));
        assert_string_equal(text, "prog: cannot open 'a\\x1bb'\nprog: warning: slow\nprog: up err=3 vm=web 1\\x0a\n");
}

static void storm_fn(void)
{
        log_init("prog", LOG_INFO);
        for (int i = 0; i < 100000; i++)
                log_guest("wild write %d", i);
}

static void guests_cannot_flood(void **state)
{
        unsigned lines = 0;
        char text[4096];

        capture(storm_fn, text, sizeof(text));
        for (const char *at = text; (at = strchr(at, '\n')); at++)
                lines++;
        assert_int_equal(lines, 10);
        assert_non_null(strstr(text, "prog: warning: wild write 9\n"));
}

static void says_what_was_dropped_fn(void)
{
        struct log_limit limit = { .window_start_ns = 1, .lines = 10, .dropped = 7 };

        log_limited(&limit, "again");
}

static void says_what_was_dropped(void **state)
{
        char text[1024];

        capture(says_what_was_dropped_fn, text, sizeof(text));
        assert_string_equal(text, "prog: warning: 7 lines like the next one were left out\nprog: warning: again\n");
}

static void long_fn(void)
{
        char text[10000];

        memset(text, 'a', sizeof(text) - 1);
        text[sizeof(text) - 1] = 0;
        log_init(text, LOG_INFO);
        for (int i = 0; i < 6; i++)
                log_context(text, text);
        memset(text, 1, sizeof(text) - 1);
        log_info("%s", text);
}

static void long_lines_are_cut(void **state)
{
        char text[10000];

        capture(long_fn, text, sizeof(text));
        assert_true(strlen(text) < 2100);
        assert_int_equal(text[strlen(text) - 1], '\n');
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(levels),
                cmocka_unit_test(guests_cannot_flood),
                cmocka_unit_test(says_what_was_dropped),
                cmocka_unit_test(long_lines_are_cut),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
