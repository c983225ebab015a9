/*
 * Small programs that run both natively and as guest code: bench-cpu copies their section into a guest as it is. So they are
 * self-contained: no calls out, no constants in other sections, only general registers.
 */
#include "bench/guest-programs.h"

#define GUEST __attribute__((section("guest_code"), noinline, used))

GUEST uint64_t guest_sieve(uint8_t *memory)
{
        uint64_t sum = 0;

        for (unsigned round = 0; round < 6; round++) {
                for (unsigned n = 0; n < 200000; n++)
                        memory[n] = 1;
                for (unsigned n = 2; n < 200000; n++) {
                        if (!memory[n])
                                continue;
                        sum += n;
                        for (unsigned m = 2 * n; m < 200000; m += n)
                                memory[m] = 0;
                }
        }
        return sum;
}

GUEST uint64_t guest_crc(uint8_t *memory)
{
        uint32_t *table = (uint32_t *)memory;
        uint8_t *data = memory + 4096;
        uint32_t crc = ~0u;

        for (uint32_t n = 0; n < 256; n++) {
                uint32_t c = n;

                for (unsigned bit = 0; bit < 8; bit++)
                        c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
                table[n] = c;
        }
        for (uint32_t n = 0; n < 65536; n++)
                data[n] = (uint8_t)(n * 7 + (n >> 8));
        for (unsigned round = 0; round < 20; round++)
                for (uint32_t n = 0; n < 65536; n++)
                        crc = table[(crc ^ data[n]) & 255] ^ crc >> 8;
        return crc;
}

struct node {
        uint64_t next; /* offset in memory */
        uint64_t value;
};

GUEST uint64_t guest_list(uint8_t *memory)
{
        struct node *nodes = (struct node *)memory;
        uint64_t at = 0, sum = 0;

        for (uint64_t n = 0; n < 4096; n++) {
                nodes[n].next = (n * 1103 + 12345) % 4096;
                nodes[n].value = n * n;
        }
        for (unsigned n = 0; n < 3000000; n++) {
                sum += nodes[at].value ^ n;
                at = nodes[at].next;
        }
        return sum;
}

GUEST static uint64_t fibonacci(unsigned n)
{
        return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

GUEST uint64_t guest_calls(uint8_t *memory)
{
        return fibonacci(27);
}

GUEST static void sort(int32_t *low, int32_t *high)
{
        while (low < high) {
                int32_t pivot = low[(high - low) / 2], *left = low, *right = high;

                do {
                        while (*left < pivot)
                                left++;
                        while (*right > pivot)
                                right--;
                        if (left <= right) {
                                int32_t swap = *left;

                                *left++ = *right;
                                *right-- = swap;
                        }
                } while (left <= right);
                sort(low, right);
                low = left;
        }
}

GUEST uint64_t guest_sort(uint8_t *memory)
{
        int32_t *numbers = (int32_t *)memory;
        uint32_t seed = 1;
        uint64_t sum = 0;

        for (unsigned n = 0; n < 100000; n++) {
                seed = seed * 1664525 + 1013904223;
                numbers[n] = (int32_t)seed;
        }
        sort(numbers, numbers + 99999);
        for (unsigned n = 0; n < 100000; n++)
                sum = sum * 31 + (uint32_t)numbers[n];
        return sum;
}

GUEST uint64_t guest_strings(uint8_t *memory)
{
        uint64_t hash = 5381, equal = 0;

        for (unsigned n = 0; n < 40000; n++)
                memory[n] = (uint8_t)('a' + n % 23);
        for (unsigned round = 0; round < 60; round++) {
                for (unsigned n = 0; n < 40000; n += 40) {
                        const uint8_t *a = memory + n, *b = memory + (n * 7 + round) % 39000;
                        unsigned k = 0;

                        while (k < 40 && a[k] == b[k])
                                k++;
                        equal += k;
                        for (k = 0; k < 16; k++)
                                hash = hash * 33 + a[k];
                }
        }
        return hash ^ equal;
}
