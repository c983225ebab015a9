/* Factorials and powers of large integers in 64-bit limbs: wide multiplications and chains of carries. */
#include "../bench.h"

#define LIMBS 640

static BENCH_NOINLINE void multiply(uint64_t *to, const uint64_t *a, const uint64_t *b, int count)
{
        memset(to, 0, 2 * (size_t)count * sizeof(*to));
        for (int i = 0; i < count; i++) {
                uint64_t carry = 0;

                for (int j = 0; j < count; j++) {
                        unsigned __int128 t = (unsigned __int128)a[i] * b[j] + to[i + j] + carry;

                        to[i + j] = (uint64_t)t;
                        carry = (uint64_t)(t >> 64);
                }
                to[i + count] = carry;
        }
}

static BENCH_NOINLINE int add(uint64_t *to, const uint64_t *a, int count)
{
        uint64_t carry = 0;

        for (int n = 0; n < count; n++) {
                unsigned __int128 t = (unsigned __int128)to[n] + a[n] + carry;

                to[n] = (uint64_t)t;
                carry = (uint64_t)(t >> 64);
        }
        return (int)carry;
}

/* The remainder, by division of 128 by 64 bits. */
static BENCH_NOINLINE uint64_t remainder_of(const uint64_t *a, int count, uint64_t divisor)
{
        uint64_t rest = 0;

        for (int n = count - 1; n >= 0; n--) {
                uint64_t quotient;

                __asm__("divq %4" : "=a"(quotient), "=d"(rest) : "a"(a[n]), "d"(rest), "r"(divisor) : "cc");
        }
        return rest;
}

int main(int argc, char **argv)
{
        uint64_t *a = bench_alloc(LIMBS * 8), *b = bench_alloc(LIMBS * 8), *c = bench_alloc(LIMBS * 16), seed = 107, sum = 0;
        double start;

        for (int n = 0; n < LIMBS; n++) {
                a[n] = (uint64_t)bench_random(&seed) << 32 | bench_random(&seed);
                b[n] = (uint64_t)bench_random(&seed) << 32 | bench_random(&seed);
        }
        start = bench_now();
        for (int round = 0; round < 150; round++) {
                multiply(c, a, b, LIMBS);
                sum = bench_mix(sum, (uint64_t)add(a, c + LIMBS / 2, LIMBS));
                sum = bench_mix(sum, remainder_of(c, 2 * LIMBS, 0xfffffffffffffff1u - (uint64_t)round * 2));
                b[round] ^= a[LIMBS - 1 - round];
        }
        start = bench_now() - start;
        return bench_report(argc, argv, start, bench_mix_bytes(sum, a, LIMBS * 8));
}
