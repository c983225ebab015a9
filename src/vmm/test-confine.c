/* What a vCPU's thread can still do when its list of system calls is in force: all that devices do on it. */
#include "base/test.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "vmm/confine.h"

struct tried {
        int epoll_fd, pair[2];
        int confined, removed, closed, opened;
};

/* A driver's reset of the vsock device: its connections leave the epoll set and are closed. */
static void *vcpu(void *ctx)
{
        const struct confine confine = { .off = false };
        struct tried *tried = ctx;
        struct err err = ERR_INIT;

        tried->confined = confine_vcpu(&confine, &err);
        if (tried->confined < 0)
                return NULL;
        tried->removed = epoll_ctl(tried->epoll_fd, EPOLL_CTL_DEL, tried->pair[0], NULL);
        tried->closed = close(tried->pair[0]);
        tried->opened = open("/", O_RDONLY | O_CLOEXEC) < 0 ? -errno : 0;
        return NULL;
}

static void test_vcpu(void **state)
{
        struct epoll_event event = { .events = EPOLLIN };
        struct tried tried = { .removed = -1, .closed = -1 };
        pthread_t thread;
        char byte;

        tried.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        assert_true(tried.epoll_fd >= 0);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, tried.pair), 0);
        assert_int_equal(epoll_ctl(tried.epoll_fd, EPOLL_CTL_ADD, tried.pair[0], &event), 0);
        assert_int_equal(pthread_create(&thread, NULL, vcpu, &tried), 0);
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_int_equal(tried.confined, 0);
        assert_int_equal(tried.removed, 0);
        assert_int_equal(tried.closed, 0);
        assert_int_equal(tried.opened, -EPERM);
        /* The other end hears of it. */
        assert_int_equal(recv(tried.pair[1], &byte, 1, MSG_DONTWAIT), 0);
        close(tried.pair[1]);
        close(tried.epoll_fd);
}

int main(void)
{
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_vcpu) };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
