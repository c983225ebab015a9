/* `memory copy SIZE`, `memory set SIZE`: the C library's memcpy and memset on buffers of that size, until enough was moved. */
#include "../bench.h"

int main(int argc, char **argv)
{
        int copy = !strcmp(bench_word(argc, argv, 1, "copy"), "copy");
        size_t size = bench_size(bench_word(argc, argv, 2, "64k"));
        size_t rounds = (size <= 4096 ? 512u : 256u) * (size_t)(1 << 20) / size;
        uint8_t *from = bench_alloc(size + 64), *to = bench_alloc(size + 64);
        void *(*volatile move)(void *, const void *, size_t) = memcpy;
        void *(*volatile fill)(void *, int, size_t) = memset;
        uint64_t seed = 29, sum = 0;
        double start;

        for (size_t n = 0; n < size; n += n < 4096 ? 1 : 509)
                from[n] = (uint8_t)(bench_random(&seed) >> 3);
        memset(to, 1, size);
        start = bench_now();
        for (size_t n = 0; n < rounds; n++) {
                /* Not always aligned. */
                if (copy)
                        move(to + (n & 16), from, size);
                else
                        fill(to + (n & 16), (int)n & 255, size);
                sum = bench_mix(sum, to[n * 97 % size]);
        }
        start = bench_now() - start;
        for (size_t n = 0; n < size; n += n < 4096 ? 1 : 127)
                sum = bench_mix(sum, to[n]);
        return bench_report(argc, argv, start, sum);
}
