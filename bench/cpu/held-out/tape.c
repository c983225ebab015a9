/*
 * An interpreter of the language with eight signs on a tape, straight from its text with a table of
 * brackets: loops in loops.
 */
#include "../bench.h"

static const char program[] = "++++++++++[>++++++++[>++++++++[>++++++++[>+++>+>+<<<-]>[>+<-]>[>-<-]<<<-]>>>>.<<<<<-]<-]>>>>>>.";

static BENCH_NOINLINE uint64_t run(const uint16_t *partner, uint8_t *tape, uint64_t *steps)
{
        uint64_t sum = 0, count = 0;
        uint8_t *at = tape + 100;

        for (const char *p = program; *p; p++, count++) {
                switch (*p) {
                case '>': at++; break;
                case '<': at--; break;
                case '+': ++*at; break;
                case '-': --*at; break;
                case '.': sum = bench_mix(sum, *at); break;
                case '[':
                        if (!*at)
                                p = program + partner[p - program];
                        break;
                case ']':
                        if (*at)
                                p = program + partner[p - program];
                        break;
                default: break;
                }
        }
        *steps = count;
        return sum;
}

int main(int argc, char **argv)
{
        uint16_t partner[sizeof(program)] = { 0 }, open[64];
        uint8_t *tape = bench_alloc(1 << 16);
        uint64_t sum = 0, steps;
        double start;
        int depth = 0;

        for (uint16_t n = 0; program[n]; n++) {
                if (program[n] == '[') {
                        open[depth++] = n;
                } else if (program[n] == ']') {
                        partner[n] = open[--depth];
                        partner[open[depth]] = n;
                }
        }
        start = bench_now();
        for (int round = 0; round < 100; round++) {
                memset(tape, 0, 1 << 16);
                sum = bench_mix(sum, run(partner, tape, &steps));
        }
        return bench_report(argc, argv, bench_now() - start, bench_mix(sum, steps));
}
