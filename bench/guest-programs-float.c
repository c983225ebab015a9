/*
 * As guest-programs.c, with floating point: SSE2, AVX2 and x87. Numbers come from integers, as constants would be in another section.
 */
#include "bench/guest-programs.h"

#define GUEST __attribute__((section("guest_code"), noinline, used))
#define SIZE 96

typedef double quad __attribute__((vector_size(32)));

/* Hidden from the compiler, which would make a constant of it. */
static inline int hidden(int n)
{
        __asm__("" : "+r"(n));
        return n;
}

static inline uint64_t mix(const double *from, unsigned count)
{
        const uint64_t *bits = (const uint64_t *)from;
        uint64_t sum = 0;

        for (unsigned n = 0; n < count; n++)
                sum = sum * 31 + bits[n];
        return sum;
}

static inline void fill(double *to, unsigned count)
{
        uint32_t seed = 19;

        for (unsigned n = 0; n < count; n++) {
                seed = seed * 1664525 + 1013904223;
                to[n] = (double)(int)(seed >> 20) / (double)(n + 3);
        }
}

GUEST uint64_t guest_matmul(uint8_t *memory)
{
        double *a = (double *)memory, *b = a + SIZE * SIZE, *c = b + SIZE * SIZE;

        fill(a, 3 * SIZE * SIZE);
        for (unsigned round = 0; round < 4; round++)
                for (int i = 0; i < SIZE; i++)
                        for (int k = 0; k < SIZE; k++) {
                                double x = a[i * SIZE + k];

                                for (int j = 0; j < SIZE; j++)
                                        c[i * SIZE + j] += x * b[k * SIZE + j];
                        }
        return mix(c, SIZE * SIZE);
}

GUEST __attribute__((target("avx2"))) uint64_t guest_matmul_avx2(uint8_t *memory)
{
        double *a = (double *)memory, *b = a + SIZE * SIZE, *c = b + SIZE * SIZE;

        fill(a, 3 * SIZE * SIZE);
        for (unsigned round = 0; round < 12; round++)
                for (int i = 0; i < SIZE; i++)
                        for (int j = 0; j < SIZE; j += 16) {
                                quad *to = (quad *)&c[i * SIZE + j], s0 = to[0], s1 = to[1], s2 = to[2], s3 = to[3];

                                for (int k = 0; k < SIZE; k++) {
                                        const quad *from = (const quad *)&b[k * SIZE + j];
                                        double y = a[i * SIZE + k];
                                        quad x = { y, y, y, y };

                                        s0 += x * from[0];
                                        s1 += x * from[1];
                                        s2 += x * from[2];
                                        s3 += x * from[3];
                                }
                                to[0] = s0, to[1] = s1, to[2] = s2, to[3] = s3;
                        }
        return mix(c, SIZE * SIZE);
}

struct body {
        double at[3], speed[3], mass;
};

static inline double root(double x)
{
        __asm__("sqrtsd %0, %0" : "+x"(x));
        return x;
}

GUEST uint64_t guest_nbody(uint8_t *memory)
{
        struct body *body = (struct body *)memory;
        double dt = (double)hidden(1) / hidden(1000);

        fill((double *)memory, 35);
        for (unsigned round = 0; round < 20000; round++) {
                for (int i = 0; i < 5; i++)
                        for (int j = i + 1; j < 5; j++) {
                                double d[3], square = dt, force;

                                for (int k = 0; k < 3; k++) {
                                        d[k] = body[i].at[k] - body[j].at[k];
                                        square += d[k] * d[k];
                                }
                                force = dt / (square * root(square));
                                for (int k = 0; k < 3; k++) {
                                        body[i].speed[k] -= d[k] * body[j].mass * force;
                                        body[j].speed[k] += d[k] * body[i].mass * force;
                                }
                        }
                for (int i = 0; i < 5; i++)
                        for (int k = 0; k < 3; k++)
                                body[i].at[k] += dt * body[i].speed[k];
        }
        return mix((double *)memory, 35);
}

GUEST uint64_t guest_x87(uint8_t *memory)
{
        long double *coefficient = (long double *)memory, sum = 0;

        for (int n = 0; n < 16; n++)
                coefficient[n] = (long double)(n % 3 ? 1 : -1) / (long double)(n + 1);
        for (int n = 1; n < 30000; n++) {
                long double x = 1 / (long double)n, y = 0, r = x;

                for (int k = 0; k < 16; k++)
                        y = y * x + coefficient[k];
                __asm__("fsqrt" : "+t"(r));
                sum += y / (1 + r) - (long double)(n % 5);
        }
        coefficient[0] = sum;
        return *(uint64_t *)memory;
}
