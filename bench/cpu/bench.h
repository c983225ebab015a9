/*
 * What the programs of `make bench-cpu` share. Each file beside this one is a program of its own: it does a fixed amount of work,
 * measures it with the clock it sees, and prints one line "NAME SECONDS CHECKSUM". The name is the command's words joined by
 * dashes, as in the table bench/cpu/rows. Preparation (filling arrays) is not measured. The checksum depends on all that was
 * computed, and on nothing else: not on addresses, not on the processor's features.
 *
 * bench/cpu/build makes one executable of them all, as busybox is one, so that the initial RAM disk stays small.
 */
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BENCH_NOINLINE __attribute__((noinline))

/* The compiler must take `x` for read and changed here. */
#define bench_keep(x) __asm__ volatile("" : "+r"(x) : : "memory")

static inline double bench_now(void)
{
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static inline uint64_t bench_mix(uint64_t hash, uint64_t value)
{
        return (hash ^ value) * 0x9e3779b97f4a7c15u ^ hash >> 29;
}

static inline uint64_t bench_mix_double(uint64_t hash, double value)
{
        uint64_t bits;

        memcpy(&bits, &value, sizeof(bits));
        return bench_mix(hash, bits);
}

static inline uint64_t bench_mix_bytes(uint64_t hash, const void *bytes, size_t size)
{
        const uint8_t *p = bytes;

        for (size_t n = 0; n < size; n++)
                hash = (hash ^ p[n]) * 0x100000001b3u;
        return hash;
}

/* xorshift64*: `state` starts at anything but 0. */
static inline uint32_t bench_random(uint64_t *state)
{
        uint64_t x = *state;

        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        *state = x;
        return (uint32_t)(x * 0x2545f4914f6cdd1du >> 32);
}

/* Memory that is there: zeroed and touched. */
static inline void *bench_alloc(size_t size)
{
        void *p = aligned_alloc(4096, (size + 4095) / 4096 * 4096);

        if (!p) {
                fprintf(stderr, "no memory for %zu bytes\n", size);
                exit(1);
        }
        return memset(p, 0, size);
}

static inline void bench_fail(const char *what)
{
        perror(what);
        exit(1);
}

static inline const char *bench_word(int argc, char **argv, int n, const char *otherwise)
{
        return argc > n ? argv[n] : otherwise;
}

/* "64k", "1m", "512". */
static inline size_t bench_size(const char *text)
{
        char *end;
        size_t size = strtoul(text, &end, 10);

        return *end == 'k' ? size << 10 : *end == 'm' ? size << 20 : size;
}

static inline int bench_report(int argc, char **argv, double seconds, uint64_t checksum)
{
        for (int n = 0; n < argc; n++)
                printf("%s%s", n ? "-" : "", argv[n]);
        printf(" %.6f %016llx\n", seconds, (unsigned long long)checksum);
        return 0;
}

/* What the processor cannot do is not an error: the row stays empty. */
static inline int bench_unsupported(int argc, char **argv)
{
        for (int n = 0; n < argc; n++)
                printf("%s%s", n ? "-" : "", argv[n]);
        printf(" unsupported\n");
        return 0;
}
