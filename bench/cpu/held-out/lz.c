/*
 * A compressor of the LZ77 family with hash chains, its decompressor, and a comparison: bytes, short copies, branches that
 * cannot be predicted.
 */
#include "../bench.h"

#define SIZE (1u << 20)
#define WINDOW 32768u
#define HASH_BITS 14

struct state {
        int32_t head[1 << HASH_BITS];
        int32_t previous[WINDOW];
};

static uint32_t hash3(const uint8_t *p)
{
        return ((uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | p[2]) * 2654435761u >> (32 - HASH_BITS);
}

static uint32_t match(const uint8_t *in, uint32_t at, uint32_t other)
{
        uint32_t length = 0, most = SIZE - at < 130 ? SIZE - at : 130;

        while (length < most && in[at + length] == in[other + length])
                length++;
        return length;
}

/* A byte below 128: so many + 1 literals follow; else a copy of (byte & 127) + 3 bytes from a distance of two bytes. */
static BENCH_NOINLINE uint32_t compress(struct state *s, const uint8_t *in, uint8_t *out)
{
        uint32_t size = 0, literals = 0, at = 0;

        memset(s->head, 0xff, sizeof(s->head));
        while (at < SIZE) {
                uint32_t best = 0, distance = 0, taken = 1;

                if (at + 3 <= SIZE) {
                        int32_t other = s->head[hash3(in + at)];

                        for (int depth = 0; depth < 8 && other >= 0 && at - (uint32_t)other < WINDOW; depth++) {
                                uint32_t length = match(in, at, (uint32_t)other);

                                if (length > best) {
                                        best = length;
                                        distance = at - (uint32_t)other;
                                }
                                other = s->previous[(uint32_t)other % WINDOW];
                        }
                }
                if (best >= 4) {
                        out[size++] = (uint8_t)(128 | (best - 3));
                        out[size++] = (uint8_t)distance;
                        out[size++] = (uint8_t)(distance >> 8);
                        literals = 0;
                        taken = best;
                } else {
                        if (!literals || out[literals - 1] == 127) {
                                out[size++] = 0;
                                literals = size;
                        } else {
                                out[literals - 1]++;
                        }
                        out[size++] = in[at];
                }
                for (; taken; taken--, at++) {
                        if (at + 3 > SIZE)
                                continue;
                        s->previous[at % WINDOW] = s->head[hash3(in + at)];
                        s->head[hash3(in + at)] = (int32_t)at;
                }
        }
        return size;
}

static BENCH_NOINLINE uint32_t decompress(const uint8_t *in, uint32_t in_size, uint8_t *out)
{
        uint32_t size = 0, at = 0;

        while (at < in_size) {
                uint32_t token = in[at++];

                if (token < 128) {
                        for (uint32_t n = 0; n <= token; n++)
                                out[size++] = in[at++];
                } else {
                        uint32_t distance = in[at] | (uint32_t)in[at + 1] << 8;

                        at += 2;
                        for (uint32_t n = 0; n < (token & 127) + 3; n++, size++)
                                out[size] = out[size - distance];
                }
        }
        return size;
}

int main(int argc, char **argv)
{
        struct state *s = bench_alloc(sizeof(*s));
        uint8_t *text = bench_alloc(SIZE), *packed = bench_alloc(2 * SIZE), *again = bench_alloc(SIZE + 256);
        uint64_t seed = 101, sum;
        uint32_t size = 0;
        double start;

        /* Words of a small vocabulary, so that there is something to find. */
        for (uint32_t n = 0; n < SIZE;) {
                uint32_t word = bench_random(&seed) % 700 * (bench_random(&seed) % 3 + 1), length = word % 7 + 2;

                for (uint32_t k = 0; k < length && n < SIZE; k++)
                        text[n++] = (uint8_t)('a' + (word * 31 + k * k * 7) % 26);
                if (n < SIZE)
                        text[n++] = ' ';
        }
        start = bench_now();
        for (int round = 0; round < 2; round++) {
                size = compress(s, text, packed);
                if (decompress(packed, size, again) != SIZE || memcmp(text, again, SIZE))
                        return 1;
                text[round * 1000 + 5] ^= 1;
        }
        start = bench_now() - start;
        sum = bench_mix_bytes(size, packed, size);
        return bench_report(argc, argv, start, sum);
}
