#include "base/test.h"

#include <errno.h>

#include "base/fiber.h"
#include "base/test-alloc.h"
#include "base/work.h"

struct fixture {
        uv_loop_t loop;
        struct work_queue *queue;
        unsigned batches, done;
};

static void batch(void *ctx)
{
        ((struct fixture *)ctx)->batches++;
}

static int setup(void **state)
{
        struct fixture *f = calloc(1, sizeof(*f));

        assert_int_equal(uv_loop_init(&f->loop), 0);
        assert_int_equal(work_queue_new(&f->loop, batch, f, &f->queue, NULL), 0);
        *state = f;
        return 0;
}

static int teardown(void **state)
{
        struct fixture *f = *state;

        work_queue_free(f->queue);
        uv_run(&f->loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_close(&f->loop), 0);
        fiber_thread_done();
        free(f);
        return 0;
}

struct sum {
        struct fixture *f;
        unsigned n, result;
};

static void add_up(void *arg)
{
        struct sum *sum = arg;

        for (unsigned k = 1; k <= sum->n; k++)
                sum->result += k;
}

static void added_up(void *arg)
{
        struct sum *sum = arg;

        assert_int_equal(sum->result, sum->n * (sum->n + 1) / 2);
        sum->f->done++;
        assert_false(work_reap(sum->f->queue));
}

static void ends_are_told_by_the_loop(void **state)
{
        struct fixture *f = *state;
        struct sum sum[20];

        for (unsigned n = 0; n < ARRAY_SIZE(sum); n++) {
                sum[n] = (struct sum){ f, n * 1000, 0 };
                assert_int_equal(work_submit(f->queue, add_up, added_up, &sum[n]), 0);
        }
        while (f->done < ARRAY_SIZE(sum))
                uv_run(&f->loop, UV_RUN_ONCE);
        assert_true(f->batches >= 1 && f->batches <= f->done);
}

static void ends_are_waited_for_without_the_loop(void **state)
{
        struct fixture *f = *state;
        struct sum sum[20];

        for (unsigned n = 0; n < ARRAY_SIZE(sum); n++) {
                sum[n] = (struct sum){ f, n * 1000, 0 };
                assert_int_equal(work_submit(f->queue, add_up, added_up, &sum[n]), 0);
        }
        while (work_under_way(f->queue))
                work_wait(f->queue);
        assert_int_equal(f->done, ARRAY_SIZE(sum));
        assert_false(work_reap(f->queue));
}

static void in_a_fiber(void *arg)
{
        struct sum *sum = arg;

        work_do(sum->f->queue, add_up, sum);
        added_up(sum);
}

static void fibers_wait_for_it(void **state)
{
        struct fixture *f = *state;
        struct sum sum[8], here = { f, 10, 0 };

        for (unsigned n = 0; n < ARRAY_SIZE(sum); n++) {
                sum[n] = (struct sum){ f, n * 1000, 0 };
                assert_int_equal(fiber_start(in_a_fiber, &sum[n]), 0);
        }
        assert_int_equal(work_under_way(f->queue), ARRAY_SIZE(sum));
        work_do(f->queue, add_up, &here);
        assert_int_equal(here.result, 55);
        while (f->done < ARRAY_SIZE(sum))
                work_wait(f->queue);
}

static void says_when_memory_is_short(void **state)
{
        struct fixture *f = *state;
        struct sum sum = { f, 10, 0 };

        test_alloc_fail_after(0);
        assert_int_equal(work_submit(f->queue, add_up, added_up, &sum), -ENOMEM);
        test_alloc_fail_after(-1);
        assert_int_equal(work_under_way(f->queue), 0);
        assert_int_equal(sum.result, 0);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = {
                CASE(ends_are_told_by_the_loop), CASE(ends_are_waited_for_without_the_loop), CASE(fibers_wait_for_it), CASE(says_when_memory_is_short),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
