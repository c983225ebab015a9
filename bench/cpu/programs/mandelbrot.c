/* Counts iterations of the Mandelbrot set's points: scalar doubles in registers, a branch on each. */
#include "../bench.h"

#define SIDE 200
#define ITERATIONS 400

static BENCH_NOINLINE uint32_t iterations(double cr, double ci)
{
        double zr = 0, zi = 0;

        for (uint32_t n = 0; n < ITERATIONS; n++) {
                double r2 = zr * zr, i2 = zi * zi;

                if (r2 + i2 > 4)
                        return n;
                zi = 2 * zr * zi + ci;
                zr = r2 - i2 + cr;
        }
        return ITERATIONS;
}

int main(int argc, char **argv)
{
        uint64_t sum = 0;
        double start = bench_now();

        for (int repeat = 0; repeat < 2; repeat++)
                for (int y = 0; y < SIDE; y++)
                        for (int x = 0; x < SIDE; x++)
                                sum = bench_mix(sum, iterations(x * 3.0 / SIDE - 2.2, y * 2.4 / SIDE - 1.2 + repeat * 0.001));
        return bench_report(argc, argv, bench_now() - start, sum);
}
