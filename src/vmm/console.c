/*
 * The console's thread, queues and terminal. See console.h.
 *
 * Source: termios(3), tty_ioctl(2), poll(2), unix(7).
 */
#include "vmm/console.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <time.h>

#include "base/text.h"

#define OUTPUT_BYTES (64u << 10)
#define INPUT_BYTES 4096u
/* A terminal or pipe that poll() says is ready takes this much without waiting (PIPE_BUF; a terminal's low-water mark). */
#define WRITE_CHUNK_TERMINAL 256u
#define WRITE_CHUNK 4096u
#define FLUSH_LIMIT_MS 1000
#define ESCAPE_KEY 0x01u /* Ctrl-A */

struct queue {
        uint8_t *bytes;
        size_t size, start, used;
};

struct console {
        struct console_host host;
        enum vmm_serial kind;
        char *path;   /* of the unix socket, removed at the end */
        int in, out;  /* -1: none */
        int listener; /* unix: waits for who connects */
        bool own_fds; /* in and out are to be closed */
        bool terminal;
        size_t chunk;

        pthread_mutex_t lock; /* queues and flags */
        struct queue output, input;
        bool output_refused, input_closed, stop;
        pthread_t thread;
        bool has_thread;
        int wake;         /* eventfd to the thread */
        uv_async_t async; /* to the loop */
        bool has_async;
        atomic_bool writable; /* tell the device */
        bool escape;          /* Ctrl-A was typed; loop's thread */
};

/*
 * What is needed to put the terminal back from a signal handler: the only globals of this folder, since a handler has no
 * argument. Set before the handlers are, never freed.
 */
static struct {
        volatile sig_atomic_t raw;
        struct termios saved;
        bool installed;
} terminal;

static const int crash_signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP, SIGSYS, SIGQUIT };

static void restore_terminal(void)
{
        if (!terminal.raw)
                return;
        terminal.raw = 0;
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal.saved);
}

static void crashed(int number)
{
        restore_terminal();
        /* SA_RESETHAND: what it would have done without us happens now. */
        raise(number);
}

static void install_restore(void)
{
        struct sigaction action = { .sa_handler = crashed, .sa_flags = (int)SA_RESETHAND };

        if (terminal.installed)
                return;
        terminal.installed = true;
        atexit(restore_terminal);
        for (size_t i = 0; i < ARRAY_SIZE(crash_signals); i++) {
                struct sigaction now;

                /* A sanitizer's or a program's own handler stays. */
                if (sigaction(crash_signals[i], NULL, &now) == 0 && now.sa_handler == SIG_DFL)
                        sigaction(crash_signals[i], &action, NULL);
        }
}

void console_raw(struct console *console)
{
        struct termios raw;

        /* In the background the terminal is somebody else's; touching it would stop us. */
        if (!console->terminal || tcgetpgrp(STDIN_FILENO) != getpgrp())
                return;
        if (!terminal.raw && tcgetattr(STDIN_FILENO, &terminal.saved) < 0)
                return;
        raw = terminal.saved;
        raw.c_iflag &= ~(tcflag_t)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
        raw.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | ISIG | IEXTEN);
        raw.c_cflag = (raw.c_cflag & ~(tcflag_t)(CSIZE | PARENB)) | CS8;
        raw.c_cc[VMIN] = 1;
        raw.c_cc[VTIME] = 0;
        install_restore();
        terminal.raw = 1;
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
}

bool console_is_terminal(const struct console *console)
{
        return console->terminal;
}

/* ---- queues; with the lock held ---- */

static size_t queue_put(struct queue *q, const uint8_t *bytes, size_t size)
{
        size_t taken = MIN(size, q->size - q->used);

        for (size_t i = 0; i < taken; i++)
                q->bytes[(q->start + q->used + i) % q->size] = bytes[i];
        q->used += taken;
        return taken;
}

/* The first bytes that lie in a row. */
static size_t queue_peek(const struct queue *q, const uint8_t **bytes)
{
        *bytes = q->bytes + q->start;
        return MIN(q->used, q->size - q->start);
}

static void queue_drop(struct queue *q, size_t size)
{
        q->start = (q->start + size) % q->size;
        q->used -= size;
}

static void wake_thread(struct console *console)
{
        uint64_t one = 1;
        ssize_t written = write(console->wake, &one, sizeof(one));

        (void)written;
}

size_t console_write(struct console *console, const uint8_t *bytes, size_t size_bytes)
{
        size_t taken = size_bytes;

        pthread_mutex_lock(&console->lock);
        if (console->out >= 0) {
                bool idle = !console->output.used;

                taken = queue_put(&console->output, bytes, size_bytes);
                if (taken < size_bytes)
                        console->output_refused = true;
                if (idle && taken)
                        wake_thread(console);
        }
        pthread_mutex_unlock(&console->lock);
        return taken;
}

void console_print(struct console *console, const char *text)
{
        console_write(console, (const uint8_t *)text, strlen(text));
}

void console_resume(struct console *console)
{
        uv_async_send(&console->async);
}

/* ---- the thread ---- */

static void drop_client(struct console *console)
{
        pthread_mutex_lock(&console->lock);
        if (console->in >= 0)
                close(console->in);
        console->in = console->out = -1;
        console->output.used = 0;
        console->output_refused = false;
        pthread_mutex_unlock(&console->lock);
        atomic_store(&console->writable, true);
        uv_async_send(&console->async);
}

static void accept_client(struct console *console)
{
        int fd = accept4(console->listener, NULL, NULL, SOCK_CLOEXEC);

        if (fd < 0)
                return;
        if (console->in >= 0) {
                close(fd); /* one at a time */
                return;
        }
        pthread_mutex_lock(&console->lock);
        console->in = console->out = fd;
        console->input_closed = false;
        pthread_mutex_unlock(&console->lock);
}

static void end_input(struct console *console)
{
        if (console->listener >= 0) {
                drop_client(console);
                return;
        }
        pthread_mutex_lock(&console->lock);
        console->input_closed = true;
        pthread_mutex_unlock(&console->lock);
}

static void read_input(struct console *console, size_t room)
{
        uint8_t bytes[INPUT_BYTES];
        ssize_t n = read(console->in, bytes, MIN(room, sizeof(bytes)));

        if (n < 0 && (errno == EINTR || errno == EAGAIN))
                return;
        if (n <= 0) {
                end_input(console);
                return;
        }
        pthread_mutex_lock(&console->lock);
        queue_put(&console->input, bytes, (size_t)n);
        pthread_mutex_unlock(&console->lock);
        uv_async_send(&console->async);
}

static void write_output(struct console *console)
{
        uint8_t bytes[WRITE_CHUNK];
        const uint8_t *from;
        size_t size;
        ssize_t n;
        bool tell;

        pthread_mutex_lock(&console->lock);
        size = MIN(queue_peek(&console->output, &from), console->chunk);
        memcpy(bytes, from, size);
        pthread_mutex_unlock(&console->lock);
        if (!size)
                return;
        n = console->listener >= 0 ? send(console->out, bytes, size, MSG_NOSIGNAL) : write(console->out, bytes, size);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
                return;
        if (n < 0 && console->listener >= 0) {
                drop_client(console);
                return;
        }
        pthread_mutex_lock(&console->lock);
        if (n < 0) {
                /* Nobody reads any more (a closed pipe, a full disk): the guest goes on without its console. */
                console->out = -1;
                queue_drop(&console->output, console->output.used);
        } else {
                queue_drop(&console->output, (size_t)n);
        }
        tell = console->output_refused && console->output.used <= console->output.size / 2;
        console->output_refused &= !tell;
        pthread_mutex_unlock(&console->lock);
        if (tell) {
                atomic_store(&console->writable, true);
                uv_async_send(&console->async);
        }
}

static uint64_t now_ms(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* A terminal may only be read by its foreground processes; others would be stopped. */
static bool may_read(const struct console *console)
{
        return !console->terminal || tcgetpgrp(STDIN_FILENO) == getpgrp();
}

static void *console_thread(void *ctx)
{
        struct console *console = ctx;
        uint64_t deadline = 0;

        pthread_setname_np(pthread_self(), "console"); /* another thread's name needs /proc */
        for (;;) {
                struct pollfd fds[4];
                size_t room, queued;
                bool stop, closed;
                int in, out, timeout = -1, count;

                pthread_mutex_lock(&console->lock);
                room = console->input.size - console->input.used;
                queued = console->output.used;
                stop = console->stop;
                closed = console->input_closed;
                in = console->in;
                out = console->out;
                pthread_mutex_unlock(&console->lock);
                if (stop && !deadline)
                        deadline = now_ms() + FLUSH_LIMIT_MS;
                if (stop && (!queued || out < 0 || now_ms() >= deadline))
                        return NULL;
                if (stop)
                        timeout = (int)(deadline - now_ms()) + 1;
                fds[0] = (struct pollfd){ .fd = console->wake, .events = POLLIN };
                fds[1] = (struct pollfd){ .fd = queued ? out : -1, .events = POLLOUT };
                fds[2] = (struct pollfd){ .fd = !stop && !closed && room ? in : -1, .events = POLLIN };
                fds[3] = (struct pollfd){ .fd = stop ? -1 : console->listener, .events = POLLIN };
                if (fds[2].fd >= 0 && !may_read(console)) {
                        fds[2].fd = -1;
                        timeout = FLUSH_LIMIT_MS; /* until it is brought to the foreground */
                }
                count = poll(fds, ARRAY_SIZE(fds), timeout);
                if (count <= 0)
                        continue;
                if (fds[0].revents) {
                        uint64_t value;
                        ssize_t n = read(console->wake, &value, sizeof(value));

                        (void)n;
                }
                if (fds[1].revents)
                        write_output(console);
                if (fds[2].revents && console->in >= 0)
                        read_input(console, room);
                if (fds[3].revents)
                        accept_client(console);
        }
}

/* ---- the loop's side ---- */

/* Takes commands out of a terminal's input; the rest goes to the guest. The number of bytes consumed. */
static size_t input_bytes(struct console *console, const uint8_t *bytes, size_t size)
{
        static const struct {
                uint8_t key;
                enum console_command command;
        } keys[] = { { 'x', CONSOLE_END },
                     { 'h', CONSOLE_HELP },
                     { '?', CONSOLE_HELP },
                     { 'c', CONSOLE_MONITOR },
                     { 'b', CONSOLE_BREAK } };
        const uint8_t *escape;
        size_t plain;

        if (!console->terminal)
                return console->host.input(console->host.ctx, bytes, size);
        if (console->escape) {
                console->escape = false;
                if (bytes[0] == ESCAPE_KEY)
                        return console->host.input(console->host.ctx, bytes, 1);
                for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
                        if (bytes[0] == keys[i].key)
                                console->host.command(console->host.ctx, keys[i].command);
                return 1;
        }
        escape = memchr(bytes, ESCAPE_KEY, size);
        plain = escape ? (size_t)(escape - bytes) : size;
        if (plain)
                return console->host.input(console->host.ctx, bytes, plain);
        console->escape = true;
        return 1;
}

static void on_async(uv_async_t *async)
{
        struct console *console = container_of(async, struct console, async);
        bool took = false;

        if (atomic_exchange(&console->writable, false))
                console->host.writable(console->host.ctx);
        for (;;) {
                uint8_t bytes[INPUT_BYTES];
                const uint8_t *from;
                size_t size, used;

                pthread_mutex_lock(&console->lock);
                size = queue_peek(&console->input, &from);
                memcpy(bytes, from, size);
                pthread_mutex_unlock(&console->lock);
                if (!size)
                        break;
                used = input_bytes(console, bytes, size);
                if (!used)
                        break;
                pthread_mutex_lock(&console->lock);
                queue_drop(&console->input, used);
                pthread_mutex_unlock(&console->lock);
                took = true;
        }
        if (took)
                wake_thread(console);
}

/* ---- opening and closing ---- */

static int open_socket(struct console *console, const char *path, struct err *err)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        struct stat st;
        int r;

        if (!text_copy(address.sun_path, sizeof(address.sun_path), path))
                return err_set(err, -ENAMETOOLONG, "the serial socket's path '%s' has more than %zu bytes", path,
                               sizeof(address.sun_path) - 1);
        console->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (console->listener < 0)
                return err_errno(err, -errno, "cannot make the serial socket");
        if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode)) {
                /* Left behind by a process that is gone, or somebody's? */
                _cleanup_close_ int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

                if (connect(probe, (struct sockaddr *)&address, sizeof(address)) < 0 && errno == ECONNREFUSED)
                        unlink(path);
        }
        r = bind(console->listener, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
        if (r >= 0) {
                console->path = strdup(path);
                r = listen(console->listener, 1) < 0 ? -errno : 0;
        }
        return r < 0 ? err_errno(err, r, "cannot listen on the serial socket '%s'", path) : 0;
}

static int open_host(struct console *console, enum vmm_serial kind, const char *path, struct err *err)
{
        struct stat st;

        console->chunk = WRITE_CHUNK;
        switch (kind) {
        case VMM_SERIAL_STDIO:
                console->terminal = isatty(STDIN_FILENO) == 1;
                /* A descriptor that is closed is no error: then nobody looks. */
                console->in = fstat(STDIN_FILENO, &st) == 0 ? STDIN_FILENO : -1;
                console->out = fstat(STDOUT_FILENO, &st) == 0 ? STDOUT_FILENO : -1;
                if (console->out >= 0 && isatty(STDOUT_FILENO))
                        console->chunk = WRITE_CHUNK_TERMINAL;
                return 0;
        case VMM_SERIAL_FILE:
                console->out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0666);
                console->own_fds = true;
                return console->out < 0 ? err_errno(err, -errno, "cannot open the serial line's file '%s'", path) : 0;
        case VMM_SERIAL_UNIX:
                console->own_fds = true;
                return open_socket(console, path, err);
        case VMM_SERIAL_NONE:
                return 0;
        }
        return err_set(err, -EINVAL, "there is no serial line of kind %d", kind);
}

static int make_queues(struct console *console, uv_loop_t *loop, struct err *err)
{
        int r;

        console->output.bytes = malloc(OUTPUT_BYTES);
        console->input.bytes = malloc(INPUT_BYTES);
        if (!console->output.bytes || !console->input.bytes)
                return err_nomem(err);
        console->output.size = OUTPUT_BYTES;
        console->input.size = INPUT_BYTES;
        console->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (console->wake < 0)
                return err_errno(err, -errno, "cannot make an eventfd");
        r = uv_async_init(loop, &console->async, on_async);
        if (r < 0)
                return err_set(err, r, "cannot make the console's wake-up: %s", uv_strerror(r));
        console->has_async = true;
        return 0;
}

int console_start(struct console *console, struct err *err)
{
        sigset_t all, old;
        int r;

        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, &old);
        r = pthread_create(&console->thread, NULL, console_thread, console);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (r)
                return err_errno(err, -r, "cannot make the console's thread");
        console->has_thread = true;
        return 0;
}

int console_new(enum vmm_serial kind, const char *path, uv_loop_t *loop, const struct console_host *host, struct console **out,
                struct err *err)
{
        struct console *console = calloc(1, sizeof(*console));
        int r;

        if (!console)
                return err_nomem(err);
        console->host = *host;
        console->kind = kind;
        console->in = console->out = console->listener = console->wake = -1;
        pthread_mutex_init(&console->lock, NULL);
        r = open_host(console, kind, path, err);
        if (r >= 0)
                r = make_queues(console, loop, err);
        if (r < 0) {
                console_free(console);
                return r;
        }
        *out = console;
        return 0;
}

static void async_closed(uv_handle_t *handle)
{
        free(container_of((uv_async_t *)handle, struct console, async));
}

void console_free(struct console *console)
{
        if (!console)
                return;
        if (console->has_thread) {
                pthread_mutex_lock(&console->lock);
                console->stop = true;
                pthread_mutex_unlock(&console->lock);
                wake_thread(console);
                pthread_join(console->thread, NULL);
        }
        if (console->terminal)
                restore_terminal();
        if (console->own_fds) {
                closep(&console->out);
                if (console->listener < 0)
                        closep(&console->in);
        }
        closep(&console->listener);
        closep(&console->wake);
        if (console->path)
                unlink(console->path);
        free(console->path);
        free(console->output.bytes);
        free(console->input.bytes);
        pthread_mutex_destroy(&console->lock);
        if (console->has_async)
                uv_close((uv_handle_t *)&console->async, async_closed);
        else
                free(console);
}
