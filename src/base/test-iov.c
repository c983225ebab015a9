#include "base/test.h"

#include "base/iov.h"
#include "base/test-alloc.h"

static void copies_and_slices(void **state)
{
        uint8_t a[10], b[20], c[5], flat[64];
        struct iovec iov[] = { { a, sizeof(a) }, { b, sizeof(b) }, { c, sizeof(c) } }, part[3];
        unsigned count = 0;
        size_t skip;

        for (unsigned i = 0; i < sizeof(flat); i++)
                flat[i] = (uint8_t)i;
        assert_int_equal(buf_to_iov(iov, 3, 0, flat, sizeof(flat)), 35);
        memset(flat, 0, sizeof(flat));
        assert_int_equal(iov_to_buf(iov, 3, 5, flat, 10), 10);
        assert_int_equal(flat[0], 5);
        assert_int_equal(flat[9], 14);
        assert_int_equal(iov_to_buf(iov, 3, 35, flat, 10), 0);
        assert_int_equal(iov_to_buf(iov, 3, 34, flat, 10), 1);
        assert_int_equal(iov_slice(iov, 3, 10, 20, part), 1);
        assert_ptr_equal(part[0].iov_base, b);
        assert_int_equal(iov_slice(iov, 3, 9, 100, part), 3);
        assert_int_equal(part[0].iov_len, 1);
        assert_int_equal(iov_slice(iov, 3, 9, 2, part), 2);
        assert_int_equal(part[1].iov_len, 1);
        assert_int_equal(iov_slice(iov, 3, 40, 2, part), 0);
        assert_int_equal(iov_zero(iov, 3, 9, 2), 2);
        assert_int_equal(iov_to_buf(iov, 3, 8, flat, 4), 4);
        assert_int_equal(flat[0], 8);
        assert_int_equal(flat[1] + flat[2], 0);
        assert_int_equal(flat[3], 11);
        assert_int_equal(iov_total(iov, 3), 35);
        skip = 12;
        for (unsigned i = 0; i < 3; i++)
                count = iov_append(part, count, iov[i], &skip);
        assert_int_equal(count, 2);
        assert_int_equal(skip, 0);
        assert_ptr_equal(part[0].iov_base, b + 2);
        assert_int_equal(part[0].iov_len, 18);
        assert_int_equal(iov_total(part, 2), 23);
}

int main(void)
{
        const struct CMUnitTest tests[] = { cmocka_unit_test(copies_and_slices) };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
