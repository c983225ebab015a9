/* A sparse matrix (five-point star plus random entries) times a vector, and conjugate gradients on it: doubles by index. */
#include "../bench.h"

#define SIDE 160
#define ROWS (SIDE * SIDE)

struct sparse {
        int32_t start[ROWS + 1];
        int32_t column[8 * ROWS];
        double value[8 * ROWS];
};

static void build(struct sparse *m)
{
        int32_t count = 0;

        for (int n = 0; n < ROWS; n++) {
                int near[7] = { n - SIDE, n - 1, n, n + 1, n + SIDE, ROWS - 1 - n, -1 };

                m->start[n] = count;
                for (int k = 0; k < 6; k++) {
                        if (near[k] < 0 || near[k] >= ROWS || (k == 5 && near[k] == n))
                                continue;
                        m->column[count] = near[k];
                        m->value[count++] = near[k] == n ? 5.5 : -1;
                }
        }
        m->start[ROWS] = count;
}

static BENCH_NOINLINE void product(const struct sparse *m, const double *x, double *y)
{
        for (int n = 0; n < ROWS; n++) {
                double sum = 0;

                for (int32_t k = m->start[n]; k < m->start[n + 1]; k++)
                        sum += m->value[k] * x[m->column[k]];
                y[n] = sum;
        }
}

static BENCH_NOINLINE double dot(const double *a, const double *b)
{
        double sum = 0;

        for (int n = 0; n < ROWS; n++)
                sum += a[n] * b[n];
        return sum;
}

int main(int argc, char **argv)
{
        struct sparse *m = bench_alloc(sizeof(*m));
        double *x = bench_alloc(ROWS * 8), *r = bench_alloc(ROWS * 8), *p = bench_alloc(ROWS * 8), *q = bench_alloc(ROWS * 8);
        double start, rr;
        uint64_t seed = 131, sum = 0;

        build(m);
        for (int n = 0; n < ROWS; n++)
                p[n] = r[n] = (double)bench_random(&seed) / 4294967296.0;
        start = bench_now();
        rr = dot(r, r);
        for (int round = 0; round < 200; round++) {
                double alpha, beta, next;

                product(m, p, q);
                alpha = rr / dot(p, q);
                for (int n = 0; n < ROWS; n++) {
                        x[n] += alpha * p[n];
                        r[n] -= alpha * q[n];
                }
                next = dot(r, r);
                beta = next / rr;
                rr = next > 1e-290 ? next : 1;
                for (int n = 0; n < ROWS; n++)
                        p[n] = r[n] + beta * p[n];
        }
        start = bench_now() - start;
        for (int n = 0; n < ROWS; n++)
                sum = bench_mix_double(sum, x[n]);
        return bench_report(argc, argv, start, sum);
}
