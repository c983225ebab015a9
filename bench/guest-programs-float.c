/*
 * As guest-programs.c, with floating point: SSE2, AVX2 and x87. Numbers come from integers, as constants would be in another section.
 */
#include "bench/guest-programs.h"
#include "bench/kernels.h"

#define GUEST __attribute__((section("guest_code"), noinline, used))
#define SIZE 96

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
                kernel_matmul_avx2(c, a, b, SIZE);
        return mix(c, SIZE * SIZE);
}

GUEST uint64_t guest_nbody(uint8_t *memory)
{
        struct kernel_body *body = (struct kernel_body *)memory;
        double dt = (double)hidden(1) / hidden(1000);

        fill((double *)memory, 35);
        for (unsigned round = 0; round < 20000; round++)
                kernel_attract(body, 5, dt, dt);
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
