/*
 * Inner kernels that two benchmarks share: guest-programs-float.c runs them bare, bench/cpu/programs under an operating system.
 * They become part of whoever calls them, because bare code has a section of its own and nothing outside of it.
 */
#pragma once

#define KERNEL static inline __attribute__((always_inline))

typedef double kernel_quad __attribute__((vector_size(32)));

/* c += a * b for square matrices, rows one after the other; size is a multiple of 16. Four columns of four numbers at a time. */
KERNEL __attribute__((target("avx2"))) void kernel_matmul_avx2(double *c, const double *a, const double *b, int size)
{
        for (int i = 0; i < size; i++)
                for (int j = 0; j < size; j += 16) {
                        kernel_quad *to = (kernel_quad *)&c[i * size + j], s0 = to[0], s1 = to[1], s2 = to[2], s3 = to[3];

                        for (int k = 0; k < size; k++) {
                                const kernel_quad *from = (const kernel_quad *)&b[k * size + j];
                                double y = a[i * size + k];
                                kernel_quad x = { y, y, y, y };

                                s0 += x * from[0];
                                s1 += x * from[1];
                                s2 += x * from[2];
                                s3 += x * from[3];
                        }
                        to[0] = s0, to[1] = s1, to[2] = s2, to[3] = s3;
                }
}

struct kernel_body {
        double at[3], speed[3], mass;
};

KERNEL double kernel_root(double x)
{
        __asm__("sqrtsd %0, %0" : "+x"(x));
        return x;
}

/* Moves bodies that attract each other on by dt. softening is added to each squared distance. */
KERNEL void kernel_attract(struct kernel_body *body, int bodies, double softening, double dt)
{
        for (int i = 0; i < bodies; i++)
                for (int j = i + 1; j < bodies; j++) {
                        double d[3], square = softening, force;

                        for (int k = 0; k < 3; k++) {
                                d[k] = body[i].at[k] - body[j].at[k];
                                square += d[k] * d[k];
                        }
                        force = dt / (square * kernel_root(square));
                        for (int k = 0; k < 3; k++) {
                                body[i].speed[k] -= d[k] * body[j].mass * force;
                                body[j].speed[k] += d[k] * body[i].mass * force;
                        }
                }
        for (int i = 0; i < bodies; i++)
                for (int k = 0; k < 3; k++)
                        body[i].at[k] += dt * body[i].speed[k];
}
