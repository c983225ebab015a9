/* Quicksort with insertion sort for short parts, written out, and qsort() of the C library (merge sort, calls back). */
#include "../bench.h"

#define COUNT 200000

static BENCH_NOINLINE void sort(int32_t *low, int32_t *high)
{
        while (high - low > 12) {
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
        for (int32_t *at = low + 1; at <= high; at++) {
                int32_t value = *at, *to = at;

                for (; to > low && to[-1] > value; to--)
                        *to = to[-1];
                *to = value;
        }
}

static int compare(const void *a, const void *b)
{
        int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;

        return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
        int32_t *numbers = bench_alloc(COUNT * sizeof(*numbers));
        uint64_t seed = 3, sum = 0;
        double start = bench_now();

        for (int round = 0; round < 8; round++) {
                for (int n = 0; n < COUNT; n++)
                        numbers[n] = (int32_t)bench_random(&seed);
                if (round % 4 == 3)
                        qsort(numbers, COUNT, sizeof(*numbers), compare);
                else
                        sort(numbers, numbers + COUNT - 1);
                for (int n = 0; n < COUNT; n++)
                        sum = bench_mix(sum, (uint32_t)numbers[n]);
        }
        return bench_report(argc, argv, bench_now() - start, sum);
}
