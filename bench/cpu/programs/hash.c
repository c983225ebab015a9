/* A hash table with open addressing: words are inserted, found, not found and removed. 4 MiB, half of it in use. */
#include "../bench.h"

#define SLOTS (1u << 18)

struct slot {
        uint64_t key; /* 0: free */
        uint64_t value;
};

static inline uint32_t place(uint64_t key)
{
        return (uint32_t)(key * 0x9e3779b97f4a7c15u >> 46) & (SLOTS - 1);
}

static BENCH_NOINLINE struct slot *find(struct slot *table, uint64_t key)
{
        uint32_t at = place(key);

        while (table[at].key && table[at].key != key)
                at = (at + 1) & (SLOTS - 1);
        return &table[at];
}

static BENCH_NOINLINE void drop(struct slot *table, struct slot *slot)
{
        uint32_t hole = (uint32_t)(slot - table), at = hole;

        for (;;) {
                uint32_t home;

                at = (at + 1) & (SLOTS - 1);
                if (!table[at].key)
                        break;
                home = place(table[at].key);
                if (((at - home) & (SLOTS - 1)) >= ((at - hole) & (SLOTS - 1))) {
                        table[hole] = table[at];
                        hole = at;
                }
        }
        table[hole].key = 0;
}

int main(int argc, char **argv)
{
        struct slot *table = bench_alloc(SLOTS * sizeof(*table));
        uint64_t seed = 11, sum = 0;
        double start = bench_now();

        for (uint32_t n = 0; n < 2500000; n++) {
                uint64_t key = bench_random(&seed) % 150000 + 1;
                struct slot *slot = find(table, key);

                if (slot->key && n % 7 == 0) {
                        sum = bench_mix(sum, slot->value);
                        drop(table, slot);
                } else if (slot->key) {
                        slot->value += n;
                } else if (n % 3) {
                        slot->key = key;
                        slot->value = n;
                }
        }
        for (uint32_t n = 0; n < SLOTS; n++)
                sum = bench_mix(sum, table[n].key ? table[n].value : 0);
        return bench_report(argc, argv, bench_now() - start, sum);
}
