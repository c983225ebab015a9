/* Shortest paths in a grid with random weights, by Dijkstra with a binary heap: branches that no predictor knows. */
#include "../bench.h"

#define SIDE 256u
#define NODES (SIDE * SIDE)

struct entry {
        uint32_t distance;
        uint32_t node;
};

struct heap {
        struct entry *entries; /* from 1 */
        uint32_t count;
};

static BENCH_NOINLINE void push(struct heap *heap, struct entry entry)
{
        uint32_t at = ++heap->count;

        for (; at > 1 && heap->entries[at / 2].distance > entry.distance; at /= 2)
                heap->entries[at] = heap->entries[at / 2];
        heap->entries[at] = entry;
}

static BENCH_NOINLINE struct entry pop(struct heap *heap)
{
        struct entry top = heap->entries[1], last = heap->entries[heap->count--];
        uint32_t at = 1;

        for (uint32_t child; (child = 2 * at) <= heap->count; at = child) {
                if (child < heap->count && heap->entries[child + 1].distance < heap->entries[child].distance)
                        child++;
                if (heap->entries[child].distance >= last.distance)
                        break;
                heap->entries[at] = heap->entries[child];
        }
        heap->entries[at] = last;
        return top;
}

static BENCH_NOINLINE uint64_t paths(const uint8_t *weight, uint32_t *distance, struct heap *heap, uint32_t from)
{
        uint64_t sum = 0;

        memset(distance, 0xff, NODES * sizeof(*distance));
        distance[from] = 0;
        heap->count = 0;
        push(heap, (struct entry){ 0, from });
        while (heap->count) {
                struct entry e = pop(heap);
                uint32_t x = e.node % SIDE, y = e.node / SIDE;
                uint32_t next[4] = { x > 0 ? e.node - 1 : NODES, x < SIDE - 1 ? e.node + 1 : NODES, y > 0 ? e.node - SIDE : NODES,
                                     y < SIDE - 1 ? e.node + SIDE : NODES };

                if (e.distance != distance[e.node])
                        continue;
                sum = bench_mix(sum, e.distance);
                for (int n = 0; n < 4; n++) {
                        uint32_t d;

                        if (next[n] == NODES)
                                continue;
                        d = e.distance + weight[next[n]];
                        if (d >= distance[next[n]])
                                continue;
                        distance[next[n]] = d;
                        push(heap, (struct entry){ d, next[n] });
                }
        }
        return sum;
}

int main(int argc, char **argv)
{
        uint8_t *weight = bench_alloc(NODES);
        uint32_t *distance = bench_alloc(NODES * sizeof(*distance));
        struct heap heap = { .entries = bench_alloc((4 * NODES + 1) * sizeof(struct entry)) };
        uint64_t seed = 5, sum = 0;
        double start;

        for (uint32_t n = 0; n < NODES; n++)
                weight[n] = (uint8_t)(bench_random(&seed) % 100 + 1);
        start = bench_now();
        for (uint32_t round = 0; round < 12; round++)
                sum = bench_mix(sum, paths(weight, distance, &heap, round * 4099 % NODES));
        return bench_report(argc, argv, bench_now() - start, sum);
}
