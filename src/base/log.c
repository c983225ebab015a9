/*
 * A line is made in a buffer of bounded size and leaves in one write(2), so that lines of several threads and processes do not
 * mix. The mutex guards the settings and the rate limits, never the write: a blocked terminal does not stop another thread
 * from counting what it drops.
 */
#include "base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <termios.h>

#include "base/clock.h"
#include "base/text.h"

#define CONTEXT_MAX 4
#define LINE_MAX_BYTES 2048
#define LIMIT_WINDOW_NS UINT64_C(5000000000)
#define LIMIT_LINES 10

/* The one piece of process-wide state: what every line of this process starts and ends with. */
static struct {
        pthread_mutex_t lock;
        char program[32];
        enum log_level level;
        unsigned contexts;
        char context[CONTEXT_MAX][128];
} settings = { .lock = PTHREAD_MUTEX_INITIALIZER, .program = "virta", .level = LOG_INFO };

void log_init(const char *program, enum log_level level)
{
        pthread_mutex_lock(&settings.lock);
        snprintf(settings.program, sizeof(settings.program), "%s", program);
        settings.level = level;
        settings.contexts = 0;
        pthread_mutex_unlock(&settings.lock);
}

void log_context(const char *field, const char *value)
{
        char escaped[96];

        text_escape(value, strlen(value), escaped, sizeof(escaped));
        pthread_mutex_lock(&settings.lock);
        if (settings.contexts < CONTEXT_MAX)
                snprintf(settings.context[settings.contexts++], sizeof(settings.context[0]), " %.24s=%s", field, escaped);
        pthread_mutex_unlock(&settings.lock);
}

/* Appends; what does not fit is cut. */
static size_t append(char *line, size_t used, const char *text)
{
        size_t length = MIN(strlen(text), LINE_MAX_BYTES - used);

        memcpy(line + used, text, length); /* NOLINT(bugprone-not-null-terminated-result): the length goes with it */
        return used + length;
}

static void emit(enum log_level level, const char *text)
{
        static const char *const words[] = { "", "warning: ", "", "debug: " };
        static const char *const colours[] = { "\033[31m", "\033[33m", "", "\033[2m" };
        bool coloured = isatty(STDERR_FILENO) && colours[level][0];
        char line[LINE_MAX_BYTES + 16];
        char escaped[LINE_MAX_BYTES - 700];
        struct termios tty;
        size_t used = 0;

        text_escape(text, strlen(text), escaped, sizeof(escaped));
        if (coloured)
                used = append(line, used, colours[level]);
        pthread_mutex_lock(&settings.lock);
        used = append(line, used, settings.program);
        used = append(line, used, ": ");
        used = append(line, used, words[level]);
        used = append(line, used, escaped);
        for (unsigned i = 0; i < settings.contexts; i++)
                used = append(line, used, settings.context[i]);
        pthread_mutex_unlock(&settings.lock);
        if (coloured)
                used = append(line, used, "\033[0m");
        /* A terminal in raw mode (the guest's console is there too) does not turn a line feed into a new line. */
        if (!tcgetattr(STDERR_FILENO, &tty) && !(tty.c_oflag & OPOST))
                line[used++] = '\r';
        line[used++] = '\n';
        for (size_t done = 0; done < used;) {
                ssize_t n = write(STDERR_FILENO, line + done, used - done);

                if (n <= 0)
                        break;
                done += (size_t)n;
        }
}

static bool shown(enum log_level level)
{
        bool is_shown;

        pthread_mutex_lock(&settings.lock);
        is_shown = level <= settings.level;
        pthread_mutex_unlock(&settings.lock);
        return is_shown;
}

void log_line(enum log_level level, const char *fmt, ...)
{
        char text[LINE_MAX_BYTES - 700];
        va_list args;

        if (!shown(level))
                return;
        va_start(args, fmt);
        vsnprintf(text, sizeof(text), fmt, args);
        va_end(args);
        emit(level, text);
}

void log_limited(struct log_limit *limit, const char *fmt, ...)
{
        char text[LINE_MAX_BYTES - 700];
        uint64_t now = monotonic_ns();
        uint32_t dropped = 0;
        bool passes;
        va_list args;

        pthread_mutex_lock(&settings.lock);
        if (!limit->window_start_ns || now - limit->window_start_ns >= LIMIT_WINDOW_NS) {
                dropped = limit->dropped;
                *limit = (struct log_limit){ .window_start_ns = now };
        }
        passes = limit->lines < LIMIT_LINES;
        if (passes)
                limit->lines++;
        else
                limit->dropped++;
        passes = passes && LOG_WARNING <= settings.level;
        pthread_mutex_unlock(&settings.lock);
        if (!passes)
                return;
        va_start(args, fmt);
        vsnprintf(text, sizeof(text), fmt, args);
        va_end(args);
        if (dropped)
                log_warning("%u lines like the next one were left out", dropped);
        emit(LOG_WARNING, text);
}
