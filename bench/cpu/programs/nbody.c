/* Five bodies that attract each other: scalar doubles with square roots and divisions in dependent chains. */
#include "../../kernels.h"
#include "../bench.h"

#define BODIES 5

static BENCH_NOINLINE void advance(struct kernel_body *body, double dt)
{
        kernel_attract(body, BODIES, 0, dt);
}

int main(int argc, char **argv)
{
        struct kernel_body body[BODIES];
        uint64_t sum = 0;
        double start;

        for (int i = 0; i < BODIES; i++)
                for (int k = 0; k < 3; k++) {
                        body[i].at[k] = (i + 1) * (k == 0 ? 5.2 : k == 1 ? -1.7 : 0.3) * (i % 2 ? -1 : 1);
                        body[i].speed[k] = (i ? 0.4 : 0) * (k == 0 ? 1 : k == 1 ? 1.3 : -0.2) * (i % 3 ? 1 : -1);
                        body[i].mass = i ? 0.03 / i : 39.5;
                }
        start = bench_now();
        for (int n = 0; n < 200000; n++)
                advance(body, 0.001);
        start = bench_now() - start;
        for (int i = 0; i < BODIES; i++)
                for (int k = 0; k < 3; k++)
                        sum = bench_mix_double(sum, body[i].at[k]);
        return bench_report(argc, argv, start, sum);
}
