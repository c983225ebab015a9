#include "base/test.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/resource.h>

#include "base/fiber.h"
#include "base/test-alloc.h"

static char told[4096];

static void tell(const char *what)
{
        strncat(told, what, sizeof(told) - strlen(told) - 1);
}

static int begin(void **state)
{
        told[0] = '\0';
        return 0;
}

static void stops_twice(void *arg)
{
        struct fiber **self = arg;

        *self = fiber_self();
        tell("a");
        fiber_wait();
        tell("b");
        fiber_wait();
        tell("c");
        *self = NULL;
}

static void waits_and_goes_on(void **state)
{
        struct fiber *fiber = NULL;

        assert_null(fiber_self());
        assert_int_equal(fiber_start(stops_twice, &fiber), 0);
        assert_non_null(fiber);
        assert_null(fiber_self());
        tell("1");
        fiber_wake(fiber);
        tell("2");
        fiber_wake(fiber);
        assert_null(fiber);
        assert_string_equal(told, "a1b2c");
        fiber_thread_done();
}

static void starts_others(void *arg)
{
        struct fiber **inner = arg;

        assert_int_equal(fiber_start(stops_twice, inner), 0);
        tell("(");
        fiber_wake(*inner);
        tell(")");
}

static void nests(void **state)
{
        struct fiber *inner = NULL;

        assert_int_equal(fiber_start(starts_others, &inner), 0);
        tell(".");
        fiber_wake(inner);
        assert_string_equal(told, "a(b).c");
        fiber_thread_done();
}

struct member {
        struct fiber_lock *lock;
        struct fiber *fiber;
        char name[2];
};

static void holds_the_lock_over_a_wait(void *arg)
{
        struct member *m = arg;

        fiber_lock(m->lock);
        tell(m->name);
        m->fiber = fiber_self();
        fiber_wait();
        m->fiber = NULL;
        tell(m->name);
        fiber_unlock(m->lock);
}

static void locks_in_the_order_of_asking(void **state)
{
        struct fiber_lock lock = { 0 };
        struct member member[3] = { { &lock, NULL, "x" }, { &lock, NULL, "y" }, { &lock, NULL, "z" } };

        for (unsigned n = 0; n < ARRAY_SIZE(member); n++)
                assert_int_equal(fiber_start(holds_the_lock_over_a_wait, &member[n]), 0);
        assert_string_equal(told, "x");
        for (unsigned n = 0; n < ARRAY_SIZE(member); n++)
                fiber_wake(member[n].fiber);
        assert_string_equal(told, "xxyyzz");
        assert_false(lock.held);
        fiber_thread_done();
}

struct crowd {
        struct fiber_queue queue;
        unsigned woken, rounds;
};

static void waits_in_the_queue(void *arg)
{
        struct crowd *crowd = arg;
        volatile uint8_t much[40000];

        much[0] = 1;
        much[sizeof(much) - 1] = 1;
        for (unsigned n = 0; n < crowd->rounds; n++) {
                fiber_queue_wait(&crowd->queue);
                crowd->woken += much[0];
        }
}

static void wakes_many(void **state)
{
        struct crowd crowd = { .rounds = 3 };

        for (unsigned n = 0; n < 500; n++)
                assert_int_equal(fiber_start(waits_in_the_queue, &crowd), 0);
        for (unsigned n = 1; n <= 3; n++) {
                fiber_queue_wake_all(&crowd.queue);
                assert_int_equal(crowd.woken, 500 * n);
        }
        assert_false(fiber_queue_wake(&crowd.queue));
        fiber_thread_done();
}

static void *on_another_thread(void *arg)
{
        struct fiber *fiber = NULL;

        if (fiber_start(stops_twice, &fiber) < 0)
                return NULL;
        fiber_wake(fiber);
        fiber_wake(fiber);
        fiber_thread_done();
        return arg;
}

static void belongs_to_its_thread(void **state)
{
        struct fiber *fiber = NULL;
        pthread_t thread;
        void *result;

        assert_int_equal(fiber_start(stops_twice, &fiber), 0);
        assert_int_equal(pthread_create(&thread, NULL, on_another_thread, told), 0);
        assert_int_equal(pthread_join(thread, &result), 0);
        assert_ptr_equal(result, told);
        fiber_wake(fiber);
        fiber_wake(fiber);
        assert_string_equal(told, "aabcbc");
        fiber_thread_done();
}

#ifndef __SANITIZE_ADDRESS__
static void says_when_there_is_no_stack(void **state)
{
        struct rlimit old, none;
        struct fiber *fiber = NULL;
        int r;

        fiber_thread_done();
        assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
        none = (struct rlimit){ 1, old.rlim_max };
        assert_int_equal(setrlimit(RLIMIT_AS, &none), 0);
        r = fiber_start(stops_twice, &fiber);
        assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
        assert_int_equal(r, -ENOMEM);
        assert_string_equal(told, "");
}
#endif

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup(waits_and_goes_on, begin),
                cmocka_unit_test_setup(nests, begin),
                cmocka_unit_test_setup(locks_in_the_order_of_asking, begin),
                cmocka_unit_test_setup(wakes_many, begin),
                cmocka_unit_test_setup(belongs_to_its_thread, begin),
#ifndef __SANITIZE_ADDRESS__
                cmocka_unit_test_setup(says_when_there_is_no_stack, begin),
#endif
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
