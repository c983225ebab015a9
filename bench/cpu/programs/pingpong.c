/*
 * Two that wait for each other in turn, so that each step is a wake-up and a task switch. `pipe`: processes, a byte in a pipe
 * each way; `futex`: threads of one process. With `apart` each has a processor of its own, else both share one.
 */
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../bench.h"

struct turn {
        _Atomic uint32_t whose;
        uint32_t steps;
        uint64_t sum[2];
        int apart;
};

static void stay_on(int cpu)
{
        cpu_set_t set;

        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
        sched_setaffinity(0, sizeof(set), &set);
}

static void play(struct turn *turn, uint32_t me)
{
        for (uint32_t n = 0; n < turn->steps; n++) {
                while (atomic_load(&turn->whose) != me)
                        syscall(SYS_futex, &turn->whose, FUTEX_WAIT_PRIVATE, 1 - me, NULL, NULL, 0);
                turn->sum[me] = bench_mix(turn->sum[me], n);
                atomic_store(&turn->whose, 1 - me);
                syscall(SYS_futex, &turn->whose, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
        }
}

static void *second(void *arg)
{
        struct turn *turn = arg;

        stay_on(turn->apart);
        play(turn, 1);
        return NULL;
}

static uint64_t by_futex(uint32_t steps, int apart)
{
        struct turn turn = { .steps = steps, .apart = apart };
        pthread_t thread;

        if (pthread_create(&thread, NULL, second, &turn))
                bench_fail("pthread_create");
        play(&turn, 0);
        pthread_join(thread, NULL);
        return bench_mix(turn.sum[0], turn.sum[1]);
}

static uint64_t by_pipe(uint32_t steps, int apart)
{
        int there[2], back[2];
        uint64_t sum = 0;
        uint8_t byte;
        pid_t pid;

        if (pipe(there) < 0 || pipe(back) < 0 || (pid = fork()) < 0)
                bench_fail("fork");
        if (!pid) {
                stay_on(apart);
                for (uint32_t n = 0; n < steps; n++) {
                        if (read(there[0], &byte, 1) != 1)
                                _exit(1);
                        byte++;
                        if (write(back[1], &byte, 1) != 1)
                                _exit(1);
                }
                _exit(0);
        }
        for (uint32_t n = 0; n < steps; n++) {
                byte = (uint8_t)n;
                if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
                        bench_fail("pipe");
                sum = bench_mix(sum, byte);
        }
        waitpid(pid, NULL, 0);
        return sum;
}

int main(int argc, char **argv)
{
        int pipes = !strcmp(bench_word(argc, argv, 1, "pipe"), "pipe"), apart = argc > 2;
        uint32_t steps = apart ? 1500 : 10000;
        double start;
        uint64_t sum;

        stay_on(0);
        start = bench_now();
        sum = pipes ? by_pipe(steps, apart) : by_futex(steps, apart);
        return bench_report(argc, argv, bench_now() - start, sum);
}
