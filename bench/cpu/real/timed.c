/*
 * timed NAME COMMAND…: runs the command, measures it from fork to end, and prints "NAME SECONDS CHECKSUM" of what it wrote to its
 * standard output, as the programs of bench/cpu do. The output goes to memory, so that no pipe is measured. `timed -o FILE NAME …`
 * takes the checksum of that file instead.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../bench.h"

static uint64_t checksum(int fd)
{
        uint8_t buffer[16384];
        uint64_t sum = 0;
        ssize_t size;

        if (lseek(fd, 0, SEEK_SET) < 0)
                bench_fail("lseek");
        while ((size = read(fd, buffer, sizeof(buffer))) > 0)
                sum = bench_mix_bytes(sum, buffer, (size_t)size);
        if (size < 0)
                bench_fail("read");
        return sum;
}

int main(int argc, char **argv)
{
        const char *file = NULL;
        int fd, status;
        double start;
        pid_t pid;

        if (argc > 2 && !strcmp(argv[1], "-o")) {
                file = argv[2];
                argv += 2;
                argc -= 2;
        }
        if (argc < 3) {
                fprintf(stderr, "usage: timed [-o FILE] NAME COMMAND...\n");
                return 2;
        }
        fd = memfd_create("output", MFD_CLOEXEC);
        if (fd < 0)
                bench_fail("memfd_create");
        start = bench_now();
        pid = fork();
        if (pid < 0)
                bench_fail("fork");
        if (!pid) {
                if (dup2(fd, 1) < 0)
                        bench_fail("dup2");
                execvp(argv[2], argv + 2);
                perror(argv[2]);
                _exit(127);
        }
        if (waitpid(pid, &status, 0) != pid)
                bench_fail("waitpid");
        start = bench_now() - start;
        if (!WIFEXITED(status) || WEXITSTATUS(status)) {
                fprintf(stderr, "%s: %s ended with status %#x\n", argv[1], argv[2], (unsigned)status);
                return 1;
        }
        if (file && (fd = open(file, O_RDONLY | O_CLOEXEC)) < 0)
                bench_fail(file);
        return bench_report(1, argv + 1, start, checksum(fd));
}
