/*
 * The guest's side of tests/machine's vsock case: a static program, as busybox knows no vsock.
 *
 *   call PORT     connects to the host's PORT, sends a line, prints the line that comes back
 *   echo PORT     takes one connection on PORT and sends back what comes, until the other side has said all
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* After the C library's, from which it takes the address families' type. */
#include <sys/socket.h>
#include <linux/vm_sockets.h>

static int die(const char *what)
{
        printf("vsock: %s: %s\n", what, strerror(errno));
        return 1;
}

static int send_all(int fd, const char *bytes, size_t size)
{
        while (size) {
                ssize_t n = write(fd, bytes, size);

                if (n <= 0)
                        return -1;
                bytes += n;
                size -= (size_t)n;
        }
        return 0;
}

static int call_host(unsigned port)
{
        const struct sockaddr_vm host = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port };
        const char hello[] = "hello from the guest\n";
        int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
        char answer[128];
        ssize_t n;

        if (fd < 0 || connect(fd, (const struct sockaddr *)&host, sizeof(host)) < 0)
                return die("cannot call the host");
        if (send_all(fd, hello, sizeof(hello) - 1) < 0)
                return die("cannot send");
        n = read(fd, answer, sizeof(answer) - 1);
        if (n <= 0)
                return die("no answer");
        answer[n] = '\0';
        printf("vsock: the host says %s", answer);
        close(fd);
        return 0;
}

static int echo(unsigned port)
{
        const struct sockaddr_vm any = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port };
        int listener = socket(AF_VSOCK, SOCK_STREAM, 0), fd;
        unsigned long long total = 0;
        static char bytes[65536];
        ssize_t n;

        if (listener < 0 || bind(listener, (const struct sockaddr *)&any, sizeof(any)) < 0 || listen(listener, 1) < 0)
                return die("cannot listen");
        printf("vsock: listening\n");
        fflush(stdout);
        fd = accept(listener, NULL, NULL);
        if (fd < 0)
                return die("nobody calls");
        while ((n = read(fd, bytes, sizeof(bytes))) > 0) {
                if (send_all(fd, bytes, (size_t)n) < 0)
                        return die("cannot send back");
                total += (unsigned long long)n;
        }
        if (n < 0)
                return die("cannot receive");
        close(fd);
        printf("vsock: sent back %llu bytes\n", total);
        return 0;
}

int main(int argc, char **argv)
{
        if (argc == 3 && !strcmp(argv[1], "call"))
                return call_host((unsigned)atoi(argv[2]));
        if (argc == 3 && !strcmp(argv[1], "echo"))
                return echo((unsigned)atoi(argv[2]));
        return 2;
}
