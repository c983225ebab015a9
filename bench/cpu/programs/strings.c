/* The C library's string functions on short strings, as programs use them: length, compare, search, copy, format. */
#include "../bench.h"

#define WORDS 4096
#define WORD_MAX 48

int main(int argc, char **argv)
{
        char *words = bench_alloc(WORDS * WORD_MAX), *text = bench_alloc(WORDS * WORD_MAX + 1);
        uint64_t seed = 13, sum = 0;
        double start;

        for (int n = 0; n < WORDS; n++) {
                uint32_t length = bench_random(&seed) % (WORD_MAX - 8) + 4;

                for (uint32_t k = 0; k < length; k++)
                        words[n * WORD_MAX + k] = (char)('a' + bench_random(&seed) % 4);
        }
        start = bench_now();
        for (int round = 0; round < 150; round++) {
                char *to = text;

                for (int n = 0; n < WORDS; n++) {
                        const char *word = words + n * WORD_MAX, *other = words + (n * 7 + round) % WORDS * WORD_MAX;
                        const char *found = strchr(word, 'd');
                        size_t length = strlen(word);

                        sum = bench_mix(sum, (uint64_t)(strcmp(word, other) > 0) + length * 2);
                        sum += found ? (uint64_t)(found - word) : 77;
                        sum += strstr(word, "abca") != NULL;
                        memcpy(to, word, length);
                        to += length;
                        if (n % 64 == 0) {
                                char line[64];

                                sum = bench_mix(sum, (uint64_t)snprintf(line, sizeof(line), "%d %s %x", n, "word", round * n));
                                sum = bench_mix(sum, (uint8_t)line[3]);
                        }
                }
                *to = 0;
                sum = bench_mix(sum, strlen(text));
                sum += memchr(text, 'z', (size_t)(to - text)) != NULL;
        }
        return bench_report(argc, argv, bench_now() - start, sum);
}
