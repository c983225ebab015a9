#include "base/test.h"

#include <errno.h>

#include "base/guest-memory.h"
#include "base/test-alloc.h"

#define PAGE GUEST_PAGE_SIZE

static int setup(void **state)
{
        struct guest_memory *mem = malloc(sizeof(*mem));

        assert_int_equal(guest_memory_init(mem, "test", NULL), 0);
        assert_int_equal(guest_memory_add(mem, 0x100000000, 4 * PAGE, NULL), 0);
        assert_int_equal(guest_memory_add(mem, 0, 16 * PAGE, NULL), 0);
        *state = mem;
        return 0;
}

static int teardown(void **state)
{
        guest_memory_done(*state);
        free(*state);
        return 0;
}

static void regions(void **state)
{
        struct guest_memory *mem = *state;
        struct err err = ERR_INIT;

        assert_int_equal(mem->regions, 2);
        assert_int_equal(mem->region[0].gpa, 0);
        assert_int_equal(guest_memory_add(mem, 15 * PAGE, 2 * PAGE, &err), -EEXIST);
        assert_int_equal(guest_memory_add(mem, 17 * PAGE + 1, PAGE, &err), -EINVAL);
        assert_int_equal(guest_memory_add(mem, 17 * PAGE, PAGE - 1, &err), -EINVAL);
        assert_int_equal(guest_memory_add(mem, 17 * PAGE, 0, &err), -EINVAL);
        assert_int_equal(guest_memory_add(mem, (uint64_t)-4096, 2 * PAGE, &err), -EINVAL);
        assert_int_equal(mem->regions, 2);
        for (unsigned i = 2; i < GUEST_REGIONS_MAX; i++)
                assert_int_equal(guest_memory_add(mem, (20 + i) * PAGE, PAGE, &err), 0);
        assert_int_equal(guest_memory_add(mem, 64 * PAGE, PAGE, &err), -ENOSPC);
}

static void bounds(void **state)
{
        struct guest_memory *mem = *state;
        uint64_t value = 0x1122334455667788;

        assert_non_null(guest_memory_at(mem, 0, 16 * PAGE));
        assert_null(guest_memory_at(mem, 0, 16 * PAGE + 1));
        assert_null(guest_memory_at(mem, 0, 0));
        assert_null(guest_memory_at(mem, 16 * PAGE, 1));
        assert_null(guest_memory_at(mem, 1, UINT64_MAX));
        assert_null(guest_memory_at(mem, UINT64_MAX, 2));
        assert_int_equal(guest_memory_write(mem, 0x100000000 + 4 * PAGE - 8, &value, 8), 0);
        assert_int_equal(guest_memory_write(mem, 0x100000000 + 4 * PAGE - 7, &value, 8), -EFAULT);
        value = 0;
        assert_int_equal(guest_memory_read(mem, 0x100000000 + 4 * PAGE - 8, &value, 8), 0);
        assert_int_equal(value, 0x1122334455667788);
        assert_int_equal(guest_memory_read(mem, 0x100000000 - 1, &value, 1), -EFAULT);
        assert_int_equal(guest_memory_read(mem, 12345678901, &value, 0), 0);
}

static void generations(void **state)
{
        struct guest_memory *mem = *state;
        const struct guest_region *low = guest_memory_find(mem, 0);
        uint8_t bytes[2 * PAGE] = { 0 };

        atomic_store(guest_region_code(low, 2 * PAGE), GUEST_CODE_PRESENT);
        atomic_store(guest_region_code(low, 3 * PAGE), GUEST_CODE_PRESENT);
        guest_memory_written(mem, PAGE, PAGE);
        assert_int_equal(atomic_load(guest_region_code(low, 2 * PAGE)), GUEST_CODE_PRESENT);
        guest_memory_written(mem, 3 * PAGE - 1, 1);
        assert_int_equal(atomic_load(guest_region_code(low, 2 * PAGE)), GUEST_CODE_PRESENT + GUEST_CODE_STEP);
        assert_int_equal(atomic_load(guest_region_code(low, 3 * PAGE)), GUEST_CODE_PRESENT);
        assert_int_equal(guest_memory_write(mem, 2 * PAGE + 1, bytes, sizeof(bytes)), 0);
        assert_int_equal(atomic_load(guest_region_code(low, 2 * PAGE)), GUEST_CODE_PRESENT + 2 * GUEST_CODE_STEP);
        assert_int_equal(atomic_load(guest_region_code(low, 3 * PAGE)), GUEST_CODE_PRESENT + GUEST_CODE_STEP);
        assert_int_equal(atomic_load(guest_region_code(low, 4 * PAGE)), 0);
        guest_memory_written(mem, 15 * PAGE, UINT64_MAX);
        guest_memory_written(mem, 99 * PAGE, 1);
}

static void too_much(void **state)
{
        struct guest_memory *mem = *state;
        struct err err = ERR_INIT;

        assert_true(guest_memory_add(mem, UINT64_C(1) << 40, UINT64_C(1) << 62, &err) < 0);
        assert_true(err.text[0]);
        assert_int_equal(mem->regions, 2);
        assert_int_equal(guest_memory_add(mem, 32 * PAGE, PAGE, &err), 0);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(regions, setup, teardown),
                cmocka_unit_test_setup_teardown(bounds, setup, teardown),
                cmocka_unit_test_setup_teardown(generations, setup, teardown),
                cmocka_unit_test_setup_teardown(too_much, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
