/* The primes below a million, some times over: byte stores with growing strides in the second-level cache. */
#include "../bench.h"

#define LIMIT 1000000u

static BENCH_NOINLINE uint64_t sieve(uint8_t *composite)
{
        uint64_t sum = 0;

        memset(composite, 0, LIMIT);
        for (uint32_t n = 2; n < LIMIT; n++) {
                if (composite[n])
                        continue;
                sum = bench_mix(sum, n);
                for (uint64_t m = (uint64_t)n * n; m < LIMIT; m += n)
                        composite[m] = 1;
        }
        return sum;
}

int main(int argc, char **argv)
{
        uint8_t *composite = bench_alloc(LIMIT);
        uint64_t sum = 0;
        double start = bench_now();

        for (int round = 0; round < 25; round++)
                sum = bench_mix(sum, sieve(composite));
        return bench_report(argc, argv, bench_now() - start, sum);
}
