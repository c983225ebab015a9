#include "base/test.h"

#include "base/arena.h"
#include "base/test-alloc.h"

static void gives_pieces(void **state)
{
        struct arena arena = { 0 };
        char *all[2000];

        for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
                all[i] = arena_take(&arena, i % 50, 7);
                assert_non_null(all[i]);
                assert_int_equal((uintptr_t)all[i] % _Alignof(max_align_t), 0);
                for (size_t k = 0; k < i % 50 * 7; k++)
                        assert_int_equal(all[i][k], 0);
                memset(all[i], (int)i, i % 50 * 7);
        }
        for (size_t i = 0; i < ARRAY_SIZE(all); i++)
                for (size_t k = 0; k < i % 50 * 7; k++)
                        assert_int_equal((uint8_t)all[i][k], (uint8_t)i);
        assert_non_null(arena_take(&arena, 1, 1 << 20));
        assert_string_equal(arena_text(&arena, "%d-%s", 5, "x"), "5-x");
        arena_done(&arena);
        assert_null(arena.chunks);
}

static void refuses_too_much(void **state)
{
        struct arena arena = { 0 };

        assert_null(arena_take(&arena, SIZE_MAX, 2));
        assert_null(arena_take(&arena, SIZE_MAX, 1));
        test_alloc_fail_after(0);
        assert_null(arena_take(&arena, 1, 1));
        test_alloc_fail_after(0);
        assert_null(arena_text(&arena, "x"));
        test_alloc_fail_after(-1);
        arena_done(&arena);
}

int main(void)
{
        const struct CMUnitTest tests[] = { cmocka_unit_test(gives_pieces), cmocka_unit_test(refuses_too_much) };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
