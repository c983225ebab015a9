/*
 * Walks a linked list whose order is random. `list cache`: 256 KiB, so each step costs what a load costs; `list memory`: 128 MiB,
 * so each step waits for memory (and, in a guest, for its page tables).
 */
#include "../bench.h"

struct node {
        struct node *next;
        uint64_t value;
        uint64_t unused[6];
};

static BENCH_NOINLINE uint64_t walk(const struct node *at, uint64_t steps)
{
        uint64_t sum = 0;

        for (uint64_t n = 0; n < steps; n++) {
                sum += at->value ^ n;
                at = at->next;
        }
        return sum;
}

int main(int argc, char **argv)
{
        int memory = !strcmp(bench_word(argc, argv, 1, "cache"), "memory");
        uint32_t count = memory ? 2u << 20 : 4096;
        uint64_t steps = memory ? 1000000 : 12000000, seed = 7, sum;
        struct node *nodes = bench_alloc(count * sizeof(*nodes));
        uint32_t *order = bench_alloc(count * sizeof(*order));
        double start;

        /* One cycle through all. */
        for (uint32_t n = 0; n < count; n++)
                order[n] = n;
        for (uint32_t n = count - 1; n > 0; n--) {
                uint32_t other = bench_random(&seed) % n, swap = order[n];

                order[n] = order[other];
                order[other] = swap;
        }
        for (uint32_t n = 0; n < count; n++) {
                nodes[order[n]].next = &nodes[order[(n + 1) % count]];
                nodes[n].value = (uint64_t)n * n;
        }
        start = bench_now();
        sum = walk(nodes, steps);
        return bench_report(argc, argv, bench_now() - start, sum);
}
