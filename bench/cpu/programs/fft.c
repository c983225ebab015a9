/* Fast Fourier transforms (radix 2, in place) of 16384 complex doubles: 256 KiB, strides of all powers of two. */
#include "../bench.h"

#define BITS 14
#define COUNT (1 << BITS)

struct complex {
        double re, im;
};

static struct complex product(struct complex a, struct complex b)
{
        return (struct complex){ a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re };
}

/* exp(-2 pi i n / COUNT), by products of the roots' powers, so that no library's sine is asked. */
static void twiddles(struct complex *w)
{
        struct complex power[BITS] = { { 0 } };

        power[BITS - 1] = (struct complex){ -1, 0 }; /* half a turn */
        power[BITS - 2] = (struct complex){ 0, -1 };
        for (int bit = BITS - 3; bit >= 0; bit--) {
                double c = power[bit + 1].re, x = (1 + c) / 2, y = (1 - c) / 2;

                __asm__("sqrtsd %0, %0" : "+x"(x));
                __asm__("sqrtsd %0, %0" : "+x"(y));
                power[bit] = (struct complex){ x, -y };
        }
        for (int n = 0; n < COUNT / 2; n++) {
                w[n] = (struct complex){ 1, 0 };
                for (int bit = 0; bit < BITS; bit++)
                        if (n >> bit & 1)
                                w[n] = product(w[n], power[bit]);
        }
}

static BENCH_NOINLINE void transform(struct complex *data, const struct complex *w)
{
        for (int n = 1, reversed = 0; n < COUNT; n++) {
                int bit = COUNT >> 1;

                for (; reversed & bit; bit >>= 1)
                        reversed ^= bit;
                reversed |= bit;
                if (n < reversed) {
                        struct complex swap = data[n];

                        data[n] = data[reversed];
                        data[reversed] = swap;
                }
        }
        for (int half = 1; half < COUNT; half *= 2)
                for (int start = 0; start < COUNT; start += 2 * half)
                        for (int n = 0; n < half; n++) {
                                struct complex even = data[start + n], *at = &data[start + n + half];
                                struct complex odd = product(*at, w[n * (COUNT / 2 / half)]);

                                data[start + n] = (struct complex){ even.re + odd.re, even.im + odd.im };
                                *at = (struct complex){ even.re - odd.re, even.im - odd.im };
                        }
}

int main(int argc, char **argv)
{
        struct complex *data = bench_alloc(COUNT * sizeof(*data)), *w = bench_alloc(COUNT / 2 * sizeof(*w));
        uint64_t seed = 23, sum = 0;
        double start;

        twiddles(w);
        for (int n = 0; n < COUNT; n++)
                data[n] = (struct complex){ (double)bench_random(&seed) / 4294967296.0, 0 };
        start = bench_now();
        for (int round = 0; round < 40; round++) {
                transform(data, w);
                for (int n = 0; n < COUNT; n++) {
                        data[n].re *= 1.0 / 128;
                        data[n].im *= 1.0 / 128;
                }
        }
        start = bench_now() - start;
        for (int n = 0; n < COUNT; n++)
                sum = bench_mix_double(bench_mix_double(sum, data[n].re), data[n].im);
        return bench_report(argc, argv, start, sum);
}
