/* Two processes on one processor that give way to each other: task switches with a change of address space. */
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../bench.h"

#define STEPS 60000u

static uint64_t give_way(void)
{
        uint64_t sum = 0;

        for (uint32_t n = 0; n < STEPS; n++) {
                sched_yield();
                sum = bench_mix(sum, n);
        }
        return sum;
}

int main(int argc, char **argv)
{
        cpu_set_t set;
        double start;
        uint64_t sum;
        pid_t pid;

        CPU_ZERO(&set);
        CPU_SET(0, &set);
        sched_setaffinity(0, sizeof(set), &set);
        start = bench_now();
        pid = fork();
        if (pid < 0)
                bench_fail("fork");
        sum = give_way();
        if (!pid)
                _exit(0);
        waitpid(pid, NULL, 0);
        return bench_report(argc, argv, bench_now() - start, sum);
}
