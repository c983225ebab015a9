/* A* through mazes, with buckets for a queue and the estimate in floating point: branches, small structures, square roots. */
#include "../bench.h"

#define SIDE 300
#define CELLS (SIDE * SIDE)
#define BUCKETS 4096

struct cell {
        float cost;
        uint8_t wall, closed;
};

/* A cell waits once for each cost it was reached with. */
struct waiting {
        int32_t cell, next;
};

struct queue {
        struct waiting *pool;
        int32_t used, bucket[BUCKETS];
};

static inline void push(struct queue *queue, int place, int cell)
{
        queue->pool[queue->used] = (struct waiting){ cell, queue->bucket[place] };
        queue->bucket[place] = queue->used++;
}

static inline float estimate(int a, int b)
{
        float dx = (float)(a % SIDE - b % SIDE), dy = (float)(a / SIDE - b / SIDE), square = dx * dx + dy * dy;

        __asm__("sqrtss %0, %0" : "+x"(square));
        return square;
}

static BENCH_NOINLINE uint64_t route(struct cell *cell, struct queue *queue, int from, int to)
{
        static const int step_x[8] = { 1, -1, 0, 0, 1, 1, -1, -1 }, step_y[8] = { 0, 0, 1, -1, 1, -1, 1, -1 };
        uint64_t visited = 0;

        memset(queue->bucket, 0xff, sizeof(queue->bucket));
        queue->used = 0;
        for (int n = 0; n < CELLS; n++) {
                cell[n].cost = 1e9f;
                cell[n].closed = 0;
        }
        cell[from].cost = 0;
        push(queue, 0, from);
        for (int b = 0; b < BUCKETS;) {
                int32_t first = queue->bucket[b], at;

                if (first < 0) {
                        b++;
                        continue;
                }
                queue->bucket[b] = queue->pool[first].next;
                at = queue->pool[first].cell;
                if (cell[at].closed)
                        continue;
                cell[at].closed = 1;
                visited++;
                if (at == to)
                        return visited * 1000 + (uint64_t)cell[at].cost;
                for (int n = 0; n < 8; n++) {
                        int x = at % SIDE + step_x[n], y = at / SIDE + step_y[n], next = y * SIDE + x, place;
                        float cost = cell[at].cost + (n < 4 ? 1.0f : 1.4142135f);

                        if (x < 0 || y < 0 || x >= SIDE || y >= SIDE || cell[next].wall || cell[next].closed)
                                continue;
                        if (cost >= cell[next].cost)
                                continue;
                        place = (int)((cost + estimate(next, to)) * 2) - (int)(estimate(from, to) * 2);
                        place = place < b ? b : place >= BUCKETS ? BUCKETS - 1 : place;
                        cell[next].cost = cost;
                        push(queue, place, next);
                }
        }
        return visited;
}

int main(int argc, char **argv)
{
        struct cell *cell = bench_alloc(CELLS * sizeof(*cell));
        struct queue *queue = bench_alloc(sizeof(*queue));
        uint64_t seed = 113, sum = 0;
        double start;

        for (int n = 0; n < CELLS; n++)
                cell[n].wall = bench_random(&seed) % 100 < 33;
        queue->pool = bench_alloc(8 * CELLS * sizeof(*queue->pool));
        start = bench_now();
        for (int round = 0; round < 60; round++) {
                int from = (int)(bench_random(&seed) % (CELLS / 4)), to = CELLS - 1 - (int)(bench_random(&seed) % (CELLS / 4));

                cell[from].wall = cell[to].wall = 0;
                sum = bench_mix(sum, route(cell, queue, from, to));
        }
        return bench_report(argc, argv, bench_now() - start, sum);
}
