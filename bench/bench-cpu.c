/*
 * Instructions a second of the software processor: compiled C in a bare 64-bit guest, no devices. Each program's result is
 * compared with the same code run natively, so this is a test as well.
 *
 * usage: bench-cpu [PROGRAM [REPEATS [ENGINE]]]
 *
 * PROGRAM may be all; ENGINE is translator (what is used without one) or interpreter. Times are the thread's own, since others may run as
 * well. Exits with 77 when the host cannot run the engine.
 */
#include "bench/guest-programs.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "tests/diff/bare.h"

/* Guest physical addresses. */
#define GUEST_CODE 0x1000000u
#define GUEST_END 0x1800000u /* a HLT */
#define GUEST_MEMORY 0x2000000u
#define GUEST_STACK 0x3000000u

static const struct {
        const char *name;
        uint64_t (*fn)(uint8_t *memory);
} programs[] = {
        { "sieve", guest_sieve }, { "crc", guest_crc },   { "list", guest_list },
        { "calls", guest_calls }, { "sort", guest_sort }, { "strings", guest_strings },
        { "matmul", guest_matmul }, { "nbody", guest_nbody }, { "x87", guest_x87 },
        { "avx2", guest_matmul_avx2 },
};

static double now_s(void)
{
        struct timespec t;

        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
        return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t run_guest(struct bare *bare, uint64_t (*fn)(uint8_t *memory), double *seconds, uint64_t *instructions)
{
        struct x86_cpu *cpu = bare_cpu(bare);
        uint64_t end = BARE_LINEAR + GUEST_END, before = x86_cpu_instructions(cpu);
        struct x86_state *s;
        double start;

        s = x86_cpu_state(cpu);
        bare_state(bare, BARE_SUPERVISOR, s);
        s->rip = BARE_LINEAR + GUEST_CODE + (uint64_t)((const uint8_t *)(uintptr_t)fn - __start_guest_code);
        s->gpr[X86_RDI] = BARE_LINEAR + GUEST_MEMORY;
        s->gpr[X86_RSP] = BARE_LINEAR + GUEST_STACK - 8;
        x86_cpu_state_changed(cpu);
        if (guest_memory_write(bare_memory(bare), GUEST_STACK - 8, &end, sizeof(end)) < 0)
                abort();
        start = now_s();
        x86_cpu_run(cpu);
        *seconds = now_s() - start;
        *instructions = x86_cpu_instructions(cpu) - before;
        return x86_cpu_state(cpu)->gpr[X86_RAX];
}

int main(int argc, char **argv)
{
        struct err err = ERR_INIT;
        struct bare *bare;
        unsigned repeats = argc > 2 ? (unsigned)atoi(argv[2]) : 3;
        double all_s = 0, all_instructions = 0;
        uint8_t *memory = aligned_alloc(4096, 1 << 20), halt = 0xf4;
        bool interpreter = argc > 3 && !strcmp(argv[3], "interpreter");
        int failed = 0;

        if (!memory)
                return 1;
        if (bare_new_engine("max", interpreter ? BARE_INTERPRETER : BARE_TRANSLATOR, &bare, &err) < 0) {
                fprintf(stderr, "bench-cpu: %s\n", err.text);
                return 77;
        }
        if (guest_memory_write(bare_memory(bare), GUEST_CODE, __start_guest_code,
                               (size_t)(__stop_guest_code - __start_guest_code)) < 0 ||
            guest_memory_write(bare_memory(bare), GUEST_END, &halt, 1) < 0)
                return 1;
        for (size_t n = 0; n < ARRAY_SIZE(programs); n++) {
                double best_s = 1e9, native_s = 1e9;
                uint64_t instructions = 0, want = 0, got = 0;

                if (programs[n].fn == guest_matmul_avx2 && !__builtin_cpu_supports("avx2"))
                        continue;
                if (argc > 1 && strcmp(argv[1], programs[n].name) && strcmp(argv[1], "all"))
                        continue;
                for (unsigned round = 0; round < repeats; round++) {
                        double seconds = now_s();

                        want = programs[n].fn(memory);
                        native_s = MIN(native_s, now_s() - seconds);
                        got = run_guest(bare, programs[n].fn, &seconds, &instructions);
                        best_s = MIN(best_s, seconds);
                }
                printf("%-8s", programs[n].name);
                if (interpreter) /* the translator does not count them */
                        printf(" %8.1f million instructions/s (%.1f M)", (double)instructions / best_s / 1e6, (double)instructions / 1e6);
                printf("  %.4f s, natively %.4f s: %.1f times%s\n", best_s, native_s, best_s / native_s, got == want ? "" : "  WRONG RESULT");
                failed |= got != want;
                all_s += best_s;
                all_instructions += (double)instructions;
        }
        if (interpreter)
                printf("all      %8.1f million instructions/s\n", all_instructions / all_s / 1e6);
        bare_free(bare);
        free(memory);
        return failed;
}
