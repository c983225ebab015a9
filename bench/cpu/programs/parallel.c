/*
 * `parallel 1`, `parallel 2`: as many threads, each with the same work of its own (integers and calls, little memory). On as many
 * processors it takes as long with two as with one.
 */
#include <pthread.h>

#include "../bench.h"

struct work {
        uint64_t seed, sum;
        uint32_t counts[4096];
};

static BENCH_NOINLINE uint32_t digits(uint64_t n)
{
        uint32_t count = 0;

        for (; n; n /= 10)
                count += (uint32_t)(n % 10);
        return count;
}

static void *work(void *arg)
{
        struct work *w = arg;

        for (int n = 0; n < 4000000; n++) {
                uint32_t x = bench_random(&w->seed);

                w->counts[x & 4095] += digits(x & 0xffff);
                w->sum = bench_mix(w->sum, w->counts[x >> 20]);
        }
        return NULL;
}

int main(int argc, char **argv)
{
        int threads = atoi(bench_word(argc, argv, 1, "1"));
        struct work *works = bench_alloc(8 * sizeof(*works));
        pthread_t thread[8];
        uint64_t sum = 0;
        double start;

        if (threads < 1 || threads > 8)
                return 1;
        start = bench_now();
        for (int n = 0; n < threads; n++) {
                works[n].seed = (uint64_t)n + 31;
                if (pthread_create(&thread[n], NULL, work, &works[n]))
                        bench_fail("pthread_create");
        }
        for (int n = 0; n < threads; n++) {
                pthread_join(thread[n], NULL);
                sum = bench_mix(sum, works[n].sum);
        }
        return bench_report(argc, argv, bench_now() - start, sum);
}
