/*
 * Page faults. `fault mmap`: fresh memory is mapped, each page touched, all unmapped; `fault cow`: a child of fork() writes to
 * each page it shares with its parent.
 */
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../bench.h"

#define PAGE 4096u
#define PAGES 2048u

static uint8_t *map(void)
{
        uint8_t *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (memory == MAP_FAILED)
                bench_fail("mmap");
        madvise(memory, PAGES * PAGE, MADV_NOHUGEPAGE);
        return memory;
}

static uint64_t touch(uint8_t *memory, uint32_t round)
{
        uint64_t sum = 0;

        for (uint32_t n = 0; n < PAGES; n++) {
                memory[n * PAGE] += (uint8_t)(n + round);
                sum = bench_mix(sum, memory[n * PAGE]);
        }
        return sum;
}

static uint64_t in_child(uint8_t *memory, uint32_t round)
{
        uint64_t sum;
        int fds[2];
        pid_t pid;

        if (pipe(fds) < 0 || (pid = fork()) < 0)
                bench_fail("fork");
        if (!pid) {
                sum = touch(memory, round);
                _exit(write(fds[1], &sum, sizeof(sum)) != sizeof(sum));
        }
        if (read(fds[0], &sum, sizeof(sum)) != sizeof(sum) || waitpid(pid, NULL, 0) != pid)
                bench_fail("child");
        close(fds[0]);
        close(fds[1]);
        return sum;
}

int main(int argc, char **argv)
{
        int cow = !strcmp(bench_word(argc, argv, 1, "mmap"), "cow");
        uint64_t sum = 0;
        uint8_t *memory;
        double start;

        memory = map();
        if (cow)
                touch(memory, 0);
        start = bench_now();
        for (uint32_t round = 0; round < 12; round++) {
                if (cow) {
                        sum = bench_mix(sum, in_child(memory, round));
                        continue;
                }
                munmap(memory, PAGES * PAGE);
                memory = map();
                sum = bench_mix(sum, touch(memory, round));
        }
        return bench_report(argc, argv, bench_now() - start, sum);
}
