/* CRC-32 by bytes with one table: a chain of dependent loads. */
#include "../bench.h"

#define BYTES (256u << 10)

static BENCH_NOINLINE uint32_t crc32(const uint32_t *table, const uint8_t *data, uint32_t crc)
{
        for (uint32_t n = 0; n < BYTES; n++)
                crc = table[(crc ^ data[n]) & 255] ^ crc >> 8;
        return crc;
}

int main(int argc, char **argv)
{
        uint32_t *table = bench_alloc(256 * sizeof(*table)), crc = ~0u;
        uint8_t *data = bench_alloc(BYTES);
        uint64_t seed = 1;
        double start;

        for (uint32_t n = 0; n < 256; n++) {
                uint32_t c = n;

                for (int bit = 0; bit < 8; bit++)
                        c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
                table[n] = c;
        }
        for (uint32_t n = 0; n < BYTES; n++)
                data[n] = (uint8_t)bench_random(&seed);
        start = bench_now();
        for (int round = 0; round < 150; round++)
                crc = crc32(table, data, crc);
        return bench_report(argc, argv, bench_now() - start, crc);
}
