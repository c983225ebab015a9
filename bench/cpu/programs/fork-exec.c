/* Starts processes as a shell does: fork, execute this file again (statically linked), end at once, wait. */
#include <sys/wait.h>
#include <unistd.h>

#include "../bench.h"

int main(int argc, char **argv)
{
        uint64_t ended = 0;
        double start;

        if (argc > 1 && !strcmp(argv[1], "child"))
                return 42;
        start = bench_now();
        for (int n = 0; n < 200; n++) {
                pid_t pid = fork();
                int status;

                if (pid < 0)
                        bench_fail("fork");
                if (!pid) {
                        execl("/proc/self/exe", "programs", "fork-exec", "child", NULL);
                        _exit(1);
                }
                if (waitpid(pid, &status, 0) != pid)
                        bench_fail("waitpid");
                ended += WIFEXITED(status) && WEXITSTATUS(status) == 42;
        }
        return bench_report(argc, argv, bench_now() - start, ended);
}
