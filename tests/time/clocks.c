/*
 * clocks SECONDS: runs in a guest and holds its clocks against each other.
 *
 * A thread on each processor reads every clock as fast as it can, which is also the load. Each reading is held against the latest
 * one that any processor has published: a clock that shows less than what was read before, here or elsewhere, runs backwards. Now
 * and then the thread sleeps a millisecond, by its own processor's timer, and must not wake early. The first thread prints the time
 * twenty times a second; tests/machine compares that with the host's.
 *
 *      clocks: 4 processors, source kvm-clock
 *      clocks: at 5123456789 1795256143123456789       CLOCK_MONOTONIC, CLOCK_REALTIME, in ns
 *      clocks: monotonic: BACKWARDS by 1234 ns on processor 3, 1 times
 *      clocks: ok, 1234567 readings, 890 sleeps, late by up to 5.1 ms
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PROCESSORS_MAX 64
#define SLEEP_EVERY 2000
#define SLEEP_NS 1000000u
#define REPORT_NS 50000000u
#define SECOND_NS 1000000000u
#define TSC (-1)

struct guest_clock {
        const char *name;
        int id;
        _Atomic uint64_t latest; /* the highest reading of any processor */
        _Atomic uint64_t worst;  /* how far it went back at most */
        _Atomic unsigned processor;
        _Atomic uint64_t times;
};

struct test {
        struct guest_clock clock[5];
        atomic_bool stop;
        _Atomic uint64_t readings, sleeps, early, latest_wake_ns;
};

struct reader {
        struct test *test;
        unsigned processor;
        pthread_t thread;
};

static uint64_t read_clock(int id)
{
        struct timespec now;

        if (id == TSC) {
                uint32_t low, high;

                /* Not before the load of `latest` that precedes it. */
                __asm__ volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high) : : "memory");
                return (uint64_t)high << 32 | low;
        }
        clock_gettime(id, &now);
        return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

static void raise_to(_Atomic uint64_t *highest, uint64_t value)
{
        uint64_t now = atomic_load(highest);

        while (now < value && !atomic_compare_exchange_weak(highest, &now, value))
                ;
}

static void check(struct guest_clock *clock, unsigned processor)
{
        uint64_t before = atomic_load(&clock->latest);
        uint64_t now = read_clock(clock->id);

        if (now < before) {
                raise_to(&clock->worst, before - now);
                atomic_store(&clock->processor, processor);
                atomic_fetch_add(&clock->times, 1);
        }
        raise_to(&clock->latest, now);
}

static void sleep_and_check(struct test *test)
{
        const struct timespec length = { .tv_nsec = SLEEP_NS };
        uint64_t start = read_clock(CLOCK_MONOTONIC), slept;

        while (clock_nanosleep(CLOCK_MONOTONIC, 0, &length, NULL) == EINTR)
                start = read_clock(CLOCK_MONOTONIC);
        slept = read_clock(CLOCK_MONOTONIC) - start;
        atomic_fetch_add(&test->sleeps, 1);
        if (slept < SLEEP_NS)
                atomic_fetch_add(&test->early, 1);
        else
                raise_to(&test->latest_wake_ns, slept - SLEEP_NS);
}

static void *reader(void *ctx)
{
        struct reader *self = ctx;
        struct test *test = self->test;
        uint64_t rounds = 0;

        while (!atomic_load(&test->stop)) {
                for (size_t i = 0; i < sizeof(test->clock) / sizeof(test->clock[0]); i++)
                        check(&test->clock[i], self->processor);
                if (++rounds % SLEEP_EVERY == 0)
                        sleep_and_check(test);
        }
        atomic_fetch_add(&test->readings, rounds * (sizeof(test->clock) / sizeof(test->clock[0])));
        return NULL;
}

static void start(struct reader *self)
{
        pthread_attr_t attr;
        cpu_set_t set;

        CPU_ZERO(&set);
        CPU_SET(self->processor, &set);
        pthread_attr_init(&attr);
        if (pthread_attr_setaffinity_np(&attr, sizeof(set), &set) || pthread_create(&self->thread, &attr, reader, self)) {
                printf("clocks: FAILED, no thread on processor %u\n", self->processor);
                exit(1);
        }
        pthread_attr_destroy(&attr);
}

static void print_source(unsigned processors)
{
        FILE *file = fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "re");
        char name[32] = "unknown";

        if (file && !fgets(name, sizeof(name), file))
                strcpy(name, "unknown");
        name[strcspn(name, "\n")] = '\0';
        printf("clocks: %u processors, source %s\n", processors, name);
        if (file)
                fclose(file);
}

/* Prints the time until duration_ns have passed, at an even pace, whatever a line takes. */
static void report(uint64_t duration_ns)
{
        uint64_t start_ns = read_clock(CLOCK_MONOTONIC), next = start_ns;

        while (next - start_ns < duration_ns) {
                struct timespec until;
                uint64_t now;

                next += REPORT_NS;
                now = read_clock(CLOCK_MONOTONIC);
                if (next < now)
                        next = now;
                until = (struct timespec){ .tv_sec = (time_t)(next / SECOND_NS), .tv_nsec = (long)(next % SECOND_NS) };
                clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
                printf("clocks: at %" PRIu64 " %" PRIu64 "\n", read_clock(CLOCK_MONOTONIC), read_clock(CLOCK_REALTIME));
        }
}

static bool verdict(struct test *test)
{
        bool good = true;

        for (size_t i = 0; i < sizeof(test->clock) / sizeof(test->clock[0]); i++) {
                struct guest_clock *clock = &test->clock[i];

                if (!clock->times)
                        continue;
                printf("clocks: %s: BACKWARDS by %" PRIu64 "%s on processor %u, %" PRIu64 " times\n", clock->name, clock->worst,
                       clock->id == TSC ? " cycles" : " ns", clock->processor, clock->times);
                good = false;
        }
        if (test->early) {
                printf("clocks: EARLY, %" PRIu64 " of %" PRIu64 " sleeps\n", test->early, test->sleeps);
                good = false;
        }
        printf("clocks: %s, %" PRIu64 " readings, %" PRIu64 " sleeps, late by up to %.1f ms\n", good ? "ok" : "FAILED",
               test->readings, test->sleeps, (double)test->latest_wake_ns / 1e6);
        return good;
}

int main(int argc, char **argv)
{
        static struct test test = {
                .clock = {
                        { .name = "monotonic", .id = CLOCK_MONOTONIC },
                        { .name = "monotonic-raw", .id = CLOCK_MONOTONIC_RAW },
                        { .name = "realtime", .id = CLOCK_REALTIME },
                        { .name = "boottime", .id = CLOCK_BOOTTIME },
                        { .name = "tsc", .id = TSC },
                },
        };
        static struct reader readers[PROCESSORS_MAX];
        long processors = sysconf(_SC_NPROCESSORS_ONLN);
        int seconds = argc > 1 ? atoi(argv[1]) : 5;

        if (processors < 1 || processors > PROCESSORS_MAX || seconds < 1) {
                printf("clocks: FAILED, %ld processors, %d seconds\n", processors, seconds);
                return 1;
        }
        setvbuf(stdout, NULL, _IOLBF, 0);
        print_source((unsigned)processors);
        for (long i = 0; i < processors; i++) {
                readers[i] = (struct reader){ .test = &test, .processor = (unsigned)i };
                start(&readers[i]);
        }
        report((uint64_t)seconds * SECOND_NS);
        atomic_store(&test.stop, true);
        for (long i = 0; i < processors; i++)
                pthread_join(readers[i].thread, NULL);
        return verdict(&test) ? 0 : 1;
}
