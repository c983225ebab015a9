/*
 * Multiplies square matrices of doubles. `matmul scalar`: plain loops, one number at a time; `sse2`: two at a time; `avx2`: four
 * at a time. All add in the same order, so the results are equal.
 */
#include "../../kernels.h"
#include "../bench.h"

#define SIZE 192

typedef double pair __attribute__((vector_size(16)));

static __attribute__((noinline, optimize("no-tree-vectorize"))) void scalar(double *c, const double *a, const double *b)
{
        for (int i = 0; i < SIZE; i++)
                for (int k = 0; k < SIZE; k++) {
                        double x = a[i * SIZE + k];

                        for (int j = 0; j < SIZE; j++)
                                c[i * SIZE + j] += x * b[k * SIZE + j];
                }
}

static BENCH_NOINLINE void sse2(double *c, const double *a, const double *b)
{
        for (int i = 0; i < SIZE; i++)
                for (int j = 0; j < SIZE; j += 8) {
                        pair *to = (pair *)&c[i * SIZE + j], s0 = to[0], s1 = to[1], s2 = to[2], s3 = to[3];

                        for (int k = 0; k < SIZE; k++) {
                                const pair *from = (const pair *)&b[k * SIZE + j];
                                pair x = { a[i * SIZE + k], a[i * SIZE + k] };

                                s0 += x * from[0];
                                s1 += x * from[1];
                                s2 += x * from[2];
                                s3 += x * from[3];
                        }
                        to[0] = s0, to[1] = s1, to[2] = s2, to[3] = s3;
                }
}

static __attribute__((noinline, target("avx2"))) void avx2(double *c, const double *a, const double *b)
{
        kernel_matmul_avx2(c, a, b, SIZE);
}

int main(int argc, char **argv)
{
        double *a = bench_alloc(SIZE * SIZE * sizeof(*a)), *b = bench_alloc(SIZE * SIZE * sizeof(*b));
        double *c = bench_alloc(SIZE * SIZE * sizeof(*c)), start;
        const char *how = bench_word(argc, argv, 1, "scalar");
        uint64_t seed = 19, sum = 0;
        int rounds = !strcmp(how, "scalar") ? 5 : !strcmp(how, "sse2") ? 10 : 15;

        if (!strcmp(how, "avx2") && !__builtin_cpu_supports("avx2"))
                return bench_unsupported(argc, argv);
        for (int n = 0; n < SIZE * SIZE; n++) {
                a[n] = (double)bench_random(&seed) / 4294967296.0 - 0.5;
                b[n] = (double)bench_random(&seed) / 4294967296.0 - 0.5;
        }
        start = bench_now();
        for (int round = 0; round < rounds; round++) {
                (!strcmp(how, "scalar") ? scalar : !strcmp(how, "sse2") ? sse2 : avx2)(c, a, b);
                a[round] += c[round];
        }
        start = bench_now() - start;
        for (int n = 0; n < SIZE * SIZE; n++)
                sum = bench_mix_double(sum, c[n]);
        return bench_report(argc, argv, start, sum);
}
