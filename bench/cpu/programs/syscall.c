/* The cheapest system call, asked again and again. */
#include <sys/syscall.h>
#include <unistd.h>

#include "../bench.h"

int main(int argc, char **argv)
{
        uint64_t same = 0;
        long first = syscall(SYS_getppid);
        double start = bench_now();

        for (int n = 0; n < 400000; n++)
                same += syscall(SYS_getppid) == first;
        return bench_report(argc, argv, bench_now() - start, same);
}
