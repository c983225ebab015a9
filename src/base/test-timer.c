#include "base/test.h"

#include <errno.h>
#include <pthread.h>

#include "base/test-alloc.h"
#include "base/timer.h"

#define COUNT 500
#define MS UINT64_C(1000000)

struct bench {
        uv_loop_t loop;
        struct timer_set *set;
        uint64_t last_ns;
        unsigned fired;
        unsigned expected;
};

struct one {
        struct timer timer;
        struct bench *bench;
        uint64_t deadline_ns;
        unsigned fired;
};

static int setup(void **state)
{
        struct bench *b = calloc(1, sizeof(*b));

        uv_loop_init(&b->loop);
        assert_int_equal(timer_set_new(&b->loop, &b->set, NULL), 0);
        *state = b;
        return 0;
}

static int teardown(void **state)
{
        struct bench *b = *state;

        timer_set_free(b->set);
        uv_run(&b->loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_close(&b->loop), 0);
        free(b);
        return 0;
}

static void on_one(void *ctx)
{
        struct one *one = ctx;

        assert_true(monotonic_ns() >= one->deadline_ns);
        assert_true(one->deadline_ns >= one->bench->last_ns); /* in their order */
        assert_int_equal(one->timer.deadline_ns, 0);
        one->bench->last_ns = one->deadline_ns;
        one->bench->fired++;
        one->fired++;
}

/* Runs the loop until `expected` timers fired; the watchdog ends a test that would hang. */
static void run(struct bench *b, unsigned expected)
{
        uint64_t end_ns = monotonic_ns() + 4000 * MS;

        while (b->fired < expected && monotonic_ns() < end_ns)
                uv_run(&b->loop, UV_RUN_NOWAIT);
        assert_int_equal(b->fired, expected);
}

static void many_in_order(void **state)
{
        struct bench *b = *state;
        struct one *one = calloc(COUNT, sizeof(*one));
        uint64_t now_ns = monotonic_ns();
        unsigned armed = 0;

        srandom(1);
        for (unsigned i = 0; i < COUNT; i++) {
                one[i].bench = b;
                timer_init(&one[i].timer, b->set, on_one, &one[i]);
        }
        /* Armed, armed anew and cancelled at random: the heap takes every path. */
        for (unsigned i = 0; i < 20 * COUNT; i++) {
                struct one *o = &one[(unsigned long)random() % COUNT];

                if (random() % 4 == 0) {
                        timer_cancel(&o->timer);
                        o->deadline_ns = 0;
                } else {
                        o->deadline_ns = now_ns + 300 * MS + (uint64_t)random() % (100 * MS);
                        timer_arm(&o->timer, o->deadline_ns);
                }
        }
        for (unsigned i = 0; i < COUNT; i++)
                armed += one[i].deadline_ns != 0;
        assert_true(armed > COUNT / 2);
        run(b, armed);
        for (unsigned i = 0; i < COUNT; i++)
                assert_int_equal(one[i].fired, one[i].deadline_ns != 0);
        free(one);
}

static void past_fires_at_once(void **state)
{
        struct bench *b = *state;
        struct one one = { .bench = b };

        timer_init(&one.timer, b->set, on_one, &one);
        timer_arm(&one.timer, 0);
        run(b, 1);
        one.deadline_ns = 5;
        timer_arm(&one.timer, 5);
        run(b, 2);
}

static void moved_forward_and_back(void **state)
{
        struct bench *b = *state;
        struct one one = { .bench = b };

        timer_init(&one.timer, b->set, on_one, &one);
        timer_arm(&one.timer, monotonic_ns() + 3600 * 1000 * MS);
        timer_arm(&one.timer, monotonic_ns() + 1 * MS);
        one.deadline_ns = monotonic_ns() + 20 * MS;
        timer_arm(&one.timer, one.deadline_ns);
        run(b, 1);
        timer_arm(&one.timer, UINT64_MAX);
        timer_cancel(&one.timer);
        timer_cancel(&one.timer);
}

static void again(void *ctx)
{
        struct one *one = ctx;

        one->fired++;
        one->bench->fired++;
        timer_arm(&one->timer, 1);
}

static void rearming_does_not_starve_the_loop(void **state)
{
        struct bench *b = *state;
        struct one one = { .bench = b };

        timer_init(&one.timer, b->set, again, &one);
        timer_arm(&one.timer, 1);
        while (!one.fired)
                uv_run(&b->loop, UV_RUN_NOWAIT);
        for (int i = 0; i < 100; i++)
                uv_run(&b->loop, UV_RUN_NOWAIT);
        assert_true(one.fired < 10000);
        timer_cancel(&one.timer);
}

static void *arm_from_elsewhere(void *ctx)
{
        struct one *one = ctx;

        for (int i = 0; i < 2000; i++) {
                timer_arm(&one->timer, monotonic_ns() + (uint64_t)(i % 7) * 100000);
                if (i % 3 == 0)
                        timer_cancel(&one->timer);
        }
        timer_cancel(&one->timer);
        return NULL;
}

static void count_only(void *ctx)
{
        struct one *one = ctx;

        one->bench->fired++;
}

static void any_thread(void **state)
{
        struct bench *b = *state;
        struct one one[3] = { 0 };
        pthread_t thread[3];

        for (int i = 0; i < 3; i++) {
                one[i].bench = b;
                timer_init(&one[i].timer, b->set, count_only, &one[i]);
                assert_int_equal(pthread_create(&thread[i], NULL, arm_from_elsewhere, &one[i]), 0);
        }
        for (int i = 0; i < 1000; i++)
                uv_run(&b->loop, UV_RUN_NOWAIT);
        for (int i = 0; i < 3; i++)
                pthread_join(thread[i], NULL);
        for (int i = 0; i < 3; i++)
                assert_int_equal(one[i].timer.deadline_ns, 0);
}

static void no_memory(void **state)
{
        struct timer_set *set = NULL;
        struct bench *b = *state;

        test_alloc_fail_after(0);
        assert_int_equal(timer_set_new(&b->loop, &set, NULL), -ENOMEM);
        test_alloc_fail_after(-1);
        assert_null(set);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(many_in_order, setup, teardown),
                cmocka_unit_test_setup_teardown(past_fires_at_once, setup, teardown),
                cmocka_unit_test_setup_teardown(moved_forward_and_back, setup, teardown),
                cmocka_unit_test_setup_teardown(rearming_does_not_starve_the_loop, setup, teardown),
                cmocka_unit_test_setup_teardown(any_thread, setup, teardown),
                cmocka_unit_test_setup_teardown(no_memory, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
