#include "jit/code-cache.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/test.h"

static struct code_cache *make(size_t size_bytes)
{
        struct err err = ERR_INIT;
        struct code_cache *cache = NULL;

        assert_int_equal(code_cache_new(size_bytes, &cache, &err), 0);
        return cache;
}

/* mov eax, 42; ret: written at one address, run at the other. */
static void test_runs(void **state)
{
        static const uint8_t code[] = { 0xb8, 42, 0, 0, 0, 0xc3 };
        struct code_cache *cache = make(1 << 20);
        uint32_t at, back;
        int (*run)(void);

        assert_int_equal(code_cache_reserve(cache, sizeof(code), &at), 0);
        memcpy(code_cache_rw(cache, at), code, sizeof(code));
        code_cache_commit(cache, at, sizeof(code));
        assert_int_equal(code_cache_used(cache), sizeof(code));
        run = (int (*)(void))(uintptr_t)code_cache_rx(cache, at);
        assert_int_equal(run(), 42);
        assert_true(code_cache_holds(cache, (uintptr_t)code_cache_rx(cache, at) + 3, &back));
        assert_int_equal(back, at + 3);
        assert_false(code_cache_holds(cache, (uintptr_t)code_cache_rx(cache, 0) + code_cache_size(cache), &back));
        assert_false(code_cache_holds(cache, (uintptr_t)code_cache_rw(cache, at), &back));
        code_cache_free(cache);
}

/* The ring: each region is filled and the oldest comes next. */
static void test_regions(void **state)
{
        struct code_cache *cache = make(4 << 20);
        size_t region = code_cache_region_size(cache);
        uint32_t at, from, to;

        assert_int_equal(code_cache_size(cache) % region, 0);
        assert_true(code_cache_size(cache) / region >= 4);
        for (unsigned round = 0; round < 40; round++) {
                assert_int_equal(code_cache_reserve(cache, region, &at), 0);
                code_cache_commit(cache, at, region - 5);
                assert_int_equal(code_cache_reserve(cache, 16, &at), -ENOSPC);
                code_cache_next_region(cache, &from, &to);
                assert_int_equal(to - from, region);
                assert_int_equal(from, ((round + 1) * region) % code_cache_size(cache));
                code_cache_advance(cache);
        }
        assert_int_equal(code_cache_reserve(cache, region + 1, &at), -ENOSPC);
        code_cache_free(cache);
}

/* No page of the process is writable and executable at once. */
static void test_never_both(void **state)
{
        struct code_cache *cache = make(1 << 20);
        FILE *maps = fopen("/proc/self/maps", "re");
        unsigned seen = 0;
        char line[512];

        assert_non_null(maps);
        while (fgets(line, sizeof(line), maps)) {
                if (!strstr(line, "virta-code"))
                        continue;
                seen++;
                assert_null(strstr(line, " rwx"));
        }
        fclose(maps);
        assert_int_equal(seen, 2);
        code_cache_free(cache);
        code_cache_free(NULL);
}

static void test_too_large(void **state)
{
        struct err err = ERR_INIT;
        struct code_cache *cache = NULL;

        assert_int_equal(code_cache_new((size_t)4 << 30, &cache, &err), -EINVAL);
        assert_null(cache);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_runs),
                cmocka_unit_test(test_regions),
                cmocka_unit_test(test_never_both),
                cmocka_unit_test(test_too_large),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
