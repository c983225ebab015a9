/* Recursive Fibonacci numbers: calls and returns, nothing else. */
#include "../bench.h"

/* The optimizer must not turn the recursion into loops. */
static __attribute__((noinline, noclone, optimize("no-optimize-sibling-calls"))) uint64_t fibonacci(uint32_t n)
{
        bench_keep(n);
        return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

int main(int argc, char **argv)
{
        double start = bench_now();
        uint64_t sum = fibonacci(35);

        return bench_report(argc, argv, bench_now() - start, sum);
}
