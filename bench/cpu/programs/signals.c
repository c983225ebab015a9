/* Signals to oneself, with a handler: delivery builds a frame with the vector registers, sigreturn takes it down. */
#include <signal.h>
#include <unistd.h>

#include "../bench.h"

static volatile sig_atomic_t received;

static void handle(int number)
{
        received += number;
}

int main(int argc, char **argv)
{
        struct sigaction action = { .sa_handler = handle };
        pid_t self = getpid();
        double start;

        sigaction(SIGUSR1, &action, NULL);
        start = bench_now();
        for (int n = 0; n < 20000; n++)
                kill(self, SIGUSR1);
        return bench_report(argc, argv, bench_now() - start, (uint64_t)received);
}
