/* SHA-1 in plain C: rotations and sums in registers, blocks of 64 bytes. Its result for "abc" is checked. */
#include "../bench.h"

#define BYTES (1u << 20)

static inline uint32_t rotate(uint32_t x, int by)
{
        return x << by | x >> (32 - by);
}

static BENCH_NOINLINE void block(uint32_t h[5], const uint8_t *p)
{
        uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];

        for (int n = 0; n < 16; n++)
                w[n] = (uint32_t)p[4 * n] << 24 | (uint32_t)p[4 * n + 1] << 16 | (uint32_t)p[4 * n + 2] << 8 | p[4 * n + 3];
        for (int n = 16; n < 80; n++)
                w[n] = rotate(w[n - 3] ^ w[n - 8] ^ w[n - 14] ^ w[n - 16], 1);
        for (int n = 0; n < 80; n++) {
                uint32_t f = n < 20 ? (b & c) | (~b & d) : n < 40 || n >= 60 ? b ^ c ^ d : (b & c) | (b & d) | (c & d);
                uint32_t k = n < 20 ? 0x5a827999 : n < 40 ? 0x6ed9eba1 : n < 60 ? 0x8f1bbcdc : 0xca62c1d6;
                uint32_t t = rotate(a, 5) + f + e + k + w[n];

                e = d;
                d = c;
                c = rotate(b, 30);
                b = a;
                a = t;
        }
        h[0] += a;
        h[1] += b;
        h[2] += c;
        h[3] += d;
        h[4] += e;
}

static void begin(uint32_t h[5])
{
        static const uint32_t first[5] = { 0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0 };

        memcpy(h, first, sizeof(first));
}

int main(int argc, char **argv)
{
        uint8_t *data = bench_alloc(BYTES), abc[64] = { 'a', 'b', 'c', 0x80, [63] = 24 };
        uint64_t seed = 127;
        uint32_t h[5];
        double start;

        begin(h);
        block(h, abc);
        if (h[0] != 0xa9993e36 || h[4] != 0x9cd0d89d)
                return 1;
        for (uint32_t n = 0; n < BYTES; n++)
                data[n] = (uint8_t)bench_random(&seed);
        begin(h);
        start = bench_now();
        for (int round = 0; round < 24; round++)
                for (uint32_t n = 0; n < BYTES; n += 64)
                        block(h, data + n);
        start = bench_now() - start;
        return bench_report(argc, argv, start, bench_mix_bytes(0, h, sizeof(h)));
}
