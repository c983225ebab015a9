/*
 * The console with real descriptors: a pseudo-terminal, a unix socket, a file; and the monitor's line editor. The loop is run
 * until what is waited for is there, or 5 s have passed.
 */
#include "base/test.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <utmp.h>

#include "vmm/console.h"
#include "vmm/monitor.h"

struct host {
        uv_loop_t loop;
        struct console *console;
        uint8_t input[65536];
        size_t used, room;
        enum console_command command;
        unsigned commands;
        unsigned writable;
};

static size_t take_input(void *ctx, const uint8_t *bytes, size_t size)
{
        struct host *host = ctx;
        size_t taken = MIN(size, host->room - host->used);

        memcpy(host->input + host->used, bytes, taken);
        host->used += taken;
        return taken;
}

static void take_command(void *ctx, enum console_command command)
{
        struct host *host = ctx;

        host->command = command;
        host->commands++;
}

static void take_writable(void *ctx)
{
        ((struct host *)ctx)->writable++;
}

static void nothing(uv_timer_t *timer)
{
}

/* Runs the loop until *counter is at least wanted. */
static void run_until(struct host *host, const size_t *counter, size_t wanted)
{
        uint64_t end = uv_hrtime() + UINT64_C(5000000000);
        uv_timer_t timer;

        uv_timer_init(&host->loop, &timer);
        uv_timer_start(&timer, nothing, 10, 10);
        while (*counter < wanted && uv_hrtime() < end)
                uv_run(&host->loop, UV_RUN_ONCE);
        uv_close((uv_handle_t *)&timer, NULL);
        uv_run(&host->loop, UV_RUN_NOWAIT);
        assert_true(*counter >= wanted);
}

static struct host *host_new(enum vmm_serial kind, const char *path)
{
        struct host *host = calloc(1, sizeof(*host));
        const struct console_host to = { take_input, take_command, take_writable, host };
        struct err err = ERR_INIT;

        assert_non_null(host);
        host->room = sizeof(host->input);
        assert_int_equal(uv_loop_init(&host->loop), 0);
        assert_int_equal(console_new(kind, path, &host->loop, &to, &host->console, &err), 0);
        assert_int_equal(console_start(host->console, &err), 0);
        return host;
}

static void host_free(struct host *host)
{
        console_free(host->console);
        uv_run(&host->loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_close(&host->loop), 0);
        free(host);
}

static void file_gets_everything(void **state)
{
        char path[] = "/tmp/virta-console-XXXXXX", back[100] = "";
        int fd = mkstemp(path);
        struct host *host = host_new(VMM_SERIAL_FILE, path);

        assert_int_equal(console_write(host->console, (const uint8_t *)"hello\n", 6), 6);
        host_free(host);
        assert_int_equal(read(fd, back, sizeof(back)), 6);
        assert_string_equal(back, "hello\n");
        close(fd);
        unlink(path);
}

static int connect_to(const char *path)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
        return fd;
}

static void read_all(int fd, char *to, size_t size)
{
        for (size_t n = 0; n < size;) {
                struct pollfd p = { .fd = fd, .events = POLLIN };
                ssize_t got;

                assert_int_equal(poll(&p, 1, 5000), 1);
                got = read(fd, to + n, size - n);
                assert_true(got > 0);
                n += (size_t)got;
        }
}

/* Comes and goes; what is written while nobody is there is lost and never holds up the guest. */
static void socket_clients_come_and_go(void **state)
{
        char path[] = "/tmp/virta-console-XXXXXX", back[8] = "";
        static const uint8_t much[100000];
        struct host *host;
        int fd;

        close(mkstemp(path));
        unlink(path);
        host = host_new(VMM_SERIAL_UNIX, path);
        assert_int_equal(console_write(host->console, much, sizeof(much)), sizeof(much));
        for (unsigned i = 0; i < 3; i++) {
                fd = connect_to(path);
                assert_int_equal(write(fd, "typed", 5), 5);
                run_until(host, &host->used, 5 * (i + 1));
                assert_int_equal(console_write(host->console, (const uint8_t *)"shown", 5), 5);
                read_all(fd, back, 5);
                assert_memory_equal(back, "shown", 5);
                close(fd);
                /* The console sees the end before the next one comes. */
                for (unsigned n = 0; n < 20; n++) {
                        uv_run(&host->loop, UV_RUN_NOWAIT);
                        usleep(5000);
                }
        }
        host_free(host);
        assert_int_equal(access(path, F_OK), -1);
}

static void full_queue_is_told(void **state)
{
        char path[] = "/tmp/virta-console-XXXXXX";
        static char back[1 << 20];
        static const uint8_t chunk[50000];
        struct host *host;
        size_t put = 0, taken;
        size_t wanted = 0;
        int fd;

        close(mkstemp(path));
        unlink(path);
        host = host_new(VMM_SERIAL_UNIX, path);
        fd = connect_to(path);
        assert_int_equal(write(fd, "x", 1), 1);
        run_until(host, &host->used, 1);
        do {
                taken = console_write(host->console, chunk, sizeof(chunk));
                put += taken;
                usleep(1000);
        } while (taken == sizeof(chunk) && put < sizeof(back) / 2);
        assert_true(taken < sizeof(chunk));
        read_all(fd, back, put);
        for (unsigned n = 0; n < 500 && !wanted; n++) {
                uv_run(&host->loop, UV_RUN_NOWAIT);
                wanted = host->writable;
                usleep(2000);
        }
        assert_true(wanted);
        close(fd);
        host_free(host);
}

/* A guest that takes little: nothing is lost. */
static void slow_guest_loses_nothing(void **state)
{
        char path[] = "/tmp/virta-console-XXXXXX";
        struct host *host;
        uint8_t sent[20000];
        int fd;

        for (size_t i = 0; i < sizeof(sent); i++)
                sent[i] = (uint8_t)(i * 7 + i / 256);
        close(mkstemp(path));
        unlink(path);
        host = host_new(VMM_SERIAL_UNIX, path);
        host->room = 100;
        fd = connect_to(path);
        assert_int_equal(write(fd, sent, sizeof(sent)), sizeof(sent));
        while (host->room < sizeof(sent)) {
                run_until(host, &host->used, host->room);
                host->room = MIN(host->room + 1900, sizeof(sent));
                console_resume(host->console);
        }
        run_until(host, &host->used, sizeof(sent));
        assert_memory_equal(host->input, sent, sizeof(sent));
        close(fd);
        host_free(host);
}

/* In a child with a pseudo-terminal of its own: raw mode, keys, and the terminal as before at the end. */
static int terminal_child(void)
{
        struct termios before, raw, after;
        struct host *host;

        tcgetattr(0, &before);
        host = host_new(VMM_SERIAL_STDIO, NULL);
        assert_true(console_is_terminal(host->console));
        console_raw(host->console);
        tcgetattr(0, &raw);
        assert_int_equal(raw.c_lflag & (ECHO | ICANON | ISIG), 0);
        assert_int_equal(write(1, "ready", 5), 5);
        run_until(host, &host->used, 4); /* "ab", Ctrl-A, "c" */
        assert_memory_equal(host->input, "ab\001c", 4);
        assert_int_equal(host->commands, 2);
        assert_int_equal(host->command, CONSOLE_END);
        host_free(host);
        tcgetattr(0, &after);
        assert_int_equal(after.c_lflag, before.c_lflag);
        assert_int_equal(after.c_iflag, before.c_iflag);
        return 0;
}

static void terminal_is_raw_and_put_back(void **state)
{
        char back[16] = "";
        int master, status;
        pid_t pid = forkpty(&master, NULL, NULL, NULL);

        if (pid == 0)
                _exit(terminal_child());
        read_all(master, back, 5);
        assert_memory_equal(back, "ready", 5);
        /* Two commands, an unknown key that is dropped, a doubled Ctrl-A. */
        assert_int_equal(write(master, "\001ca\001xb\001z\001\001c", 11), 11);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        close(master);
        assert_int_equal(status, 0);
}

static void crash_puts_the_terminal_back(void **state)
{
        char back[16] = "";
        struct termios after;
        int master, slave, status;
        pid_t pid;

        assert_int_equal(openpty(&master, &slave, NULL, NULL, NULL), 0);
        pid = fork();
        if (pid == 0) {
                struct host *host;

                login_tty(slave);
                host = host_new(VMM_SERIAL_STDIO, NULL);
                console_raw(host->console);
                assert_int_equal(write(1, "ready", 5), 5);
                usleep(50000);
                raise(SIGSEGV);
                _exit(0);
        }
        read_all(master, back, 5);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(!WIFEXITED(status) || WEXITSTATUS(status));
        assert_int_equal(tcgetattr(slave, &after), 0);
        assert_int_equal(after.c_lflag & (ECHO | ICANON), ECHO | ICANON);
        close(master);
        close(slave);
}

static void bad_paths_are_refused(void **state)
{
        const struct console_host to = { take_input, take_command, take_writable, NULL };
        struct console *console = NULL;
        struct err err = ERR_INIT;
        uv_loop_t loop;

        assert_int_equal(uv_loop_init(&loop), 0);
        assert_int_equal(console_new(VMM_SERIAL_FILE, "/", &loop, &to, &console, &err), -EISDIR);
        assert_int_equal(console_new(VMM_SERIAL_UNIX, "/no/such/dir/s", &loop, &to, &console, &err), -ENOENT);
        assert_null(console);
        uv_run(&loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_close(&loop), 0);
}

static enum monitor_command type(struct monitor *monitor, const char *text)
{
        enum monitor_command command = MONITOR_NONE;
        char echo[8];

        for (; *text; text++)
                command = monitor_type(monitor, (uint8_t)*text, echo);
        return command;
}

static void monitor_edits_lines(void **state)
{
        struct monitor monitor = { 0 };
        char echo[8];

        assert_int_equal(type(&monitor, "status\r"), MONITOR_STATUS);
        assert_int_equal(type(&monitor, "  st  \r"), MONITOR_STATUS);
        assert_int_equal(type(&monitor, "quix\177t\n"), MONITOR_QUIT);
        assert_int_equal(type(&monitor, "\r"), MONITOR_NONE);
        assert_int_equal(type(&monitor, "res\r"), MONITOR_HELP); /* reset or resume */
        assert_int_equal(type(&monitor, "rese\r"), MONITOR_RESET);
        assert_int_equal(type(&monitor, "junk\025power\r"), MONITOR_POWER_BUTTON);
        assert_int_equal(type(&monitor, "nothing\r"), MONITOR_UNKNOWN);
        assert_int_equal(type(&monitor, " ball   64M \r"), MONITOR_BALLOON);
        assert_string_equal(monitor.argument, "64M");
        assert_int_equal(type(&monitor, "balloon\r"), MONITOR_BALLOON);
        assert_string_equal(monitor.argument, "");
        assert_int_equal(type(&monitor, "status now\r"), MONITOR_UNKNOWN);
        for (unsigned i = 0; i < 1000; i++)
                assert_int_equal(monitor_type(&monitor, 'a', echo), MONITOR_NONE);
        assert_int_equal(type(&monitor, "\r"), MONITOR_UNKNOWN);
        for (unsigned i = 0; i < 256; i++)
                monitor_type(&monitor, (uint8_t)i, echo);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(file_gets_everything),         cmocka_unit_test(socket_clients_come_and_go),
                cmocka_unit_test(full_queue_is_told),           cmocka_unit_test(slow_guest_loses_nothing),
                cmocka_unit_test(terminal_is_raw_and_put_back), cmocka_unit_test(crash_puts_the_terminal_back),
                cmocka_unit_test(bad_paths_are_refused),        cmocka_unit_test(monitor_edits_lines),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
