/* long double: the x87 stack, with its loads, stores, products, divisions and square roots of 80 bits. */
#include "../bench.h"

#define TERMS 16

static inline long double root(long double x)
{
        __asm__("fsqrt" : "+t"(x));
        return x;
}

static BENCH_NOINLINE long double polynomial(const long double *coefficient, long double x)
{
        long double value = 0;

        for (int n = 0; n < TERMS; n++)
                value = value * x + coefficient[n];
        return value;
}

int main(int argc, char **argv)
{
        long double coefficient[TERMS], sum = 0;
        uint64_t checksum, mantissa;
        double start;

        for (int n = 0; n < TERMS; n++)
                coefficient[n] = 1.0L / (n + 1) * (n % 3 ? 1 : -1);
        start = bench_now();
        for (int n = 1; n < 600000; n++) {
                long double x = 1.0L / n, y = polynomial(coefficient, x);

                sum += y / (1 + root(x)) - (long double)(n % 5);
        }
        start = bench_now() - start;
        memcpy(&mantissa, &sum, sizeof(mantissa));
        checksum = bench_mix_double(mantissa, (double)sum);
        return bench_report(argc, argv, start, checksum);
}
