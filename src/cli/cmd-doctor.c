/* `virta doctor`: runs the probes of doctor.h one after the other and shows what they found. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include "base/json.h"
#include "base/log.h"
#include "base/text.h"
#include "base/timer.h"
#include "cli/cli.h"
#include "cli/doctor.h"

#define PROBE_TIMEOUT_S 20
#define NAME_WIDTH 20

struct doctor_args {
        bool json;
};

static const struct opt doctor_options[] = {
        { "json", NULL, "print a JSON list instead of a table", OPT_FLAG, offsetof(struct doctor_args, json) },
        { 0 },
};

const struct opt_command doctor_table = {
        .name = "doctor",
        .summary = "show what this machine offers and what is missing",
        .description = "Tries each facility that Virta can use, and says whether it works here, what Virta does without it, and what to do to "
                       "have it. Nothing on the machine is changed. Some facilities differ between root and other users: it shows what "
                       "the user who asks can have.",
        .options = doctor_options,
};

struct report {
        int finding;
        char found[FOUND_MAX];
};

int doctor_write(const char *path, const char *text)
{
        _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

        if (fd < 0)
                return -errno;
        return write(fd, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : -errno;
}

int doctor_read_line(const char *path, char *line, size_t size_bytes)
{
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n;

        if (fd < 0)
                return -errno;
        n = read(fd, line, size_bytes - 1);
        if (n < 0)
                return -errno;
        line[n] = 0;
        line[strcspn(line, "\n")] = 0;
        return 0;
}

int doctor_unshare(int flags)
{
        unsigned uid = geteuid(), gid = getegid();
        char map[64];
        int r;

        if (!(flags & CLONE_NEWUSER) && !unshare(flags))
                return 0;
        if (unshare(flags | CLONE_NEWUSER) < 0)
                return -errno;
        r = doctor_write("/proc/self/setgroups", "deny");
        if (r < 0 && r != -ENOENT)
                return r;
        snprintf(map, sizeof(map), "0 %u 1", uid);
        r = doctor_write("/proc/self/uid_map", map);
        if (r < 0)
                return r;
        snprintf(map, sizeof(map), "0 %u 1", gid);
        return doctor_write("/proc/self/gid_map", map);
}

/* In the child: never returns. */
static void probe_child(const struct facility *facility, int fd)
{
        struct report report = { 0 };
        int r;

        alarm(PROBE_TIMEOUT_S);
        signal(SIGALRM, SIG_DFL);
        r = facility->probe(report.found);
        report.finding = r < 0 ? FOUND_MISSING : r;
        if (r < 0 && !report.found[0])
                snprintf(report.found, sizeof(report.found), "%s", strerror(-r));
        _exit(write(fd, &report, sizeof(report)) == sizeof(report) ? 0 : 1);
}

static int probe(const struct facility *facility, struct report *report)
{
        struct report got = { 0 };
        int fds[2], status;
        ssize_t n;
        pid_t pid;

        if (pipe2(fds, O_CLOEXEC) < 0)
                return -errno;
        pid = fork();
        if (pid < 0) {
                int r = -errno;

                close(fds[0]);
                close(fds[1]);
                return r;
        }
        if (!pid) {
                close(fds[0]);
                probe_child(facility, fds[1]);
        }
        close(fds[1]);
        n = read(fds[0], &got, sizeof(got));
        close(fds[0]);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
                ;
        got.found[FOUND_MAX - 1] = 0;
        if (n != sizeof(got)) {
                got.finding = FOUND_MISSING;
                if (WIFSIGNALED(status))
                        snprintf(got.found, sizeof(got.found), "trying it ended with signal %d (%s)", WTERMSIG(status),
                                 strsignal(WTERMSIG(status)));
                else
                        snprintf(got.found, sizeof(got.found), "trying it ended without an answer");
        }
        *report = got;
        return 0;
}

static const char *const finding_words[] = { "works", "partly", "missing" };

static json_t *as_json(const struct facility *facility, const struct report *report)
{
        char found[2 * FOUND_MAX];

        text_escape(report->found, strlen(report->found), found, sizeof(found));
        return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "name", facility->name, "group", facility->group, "purpose",
                         facility->purpose, "state", finding_words[report->finding], "found", found, "without", facility->without,
                         "remedy", facility->remedy);
}

/* Words of text from column `indent` to the terminal's width. */
static void print_wrapped(const char *text, unsigned indent, unsigned width)
{
        unsigned column = indent;
        bool first = true;

        while (*text) {
                size_t length = strcspn(text, " ");

                if (!first && column + 1 + length > width) {
                        printf("\n%*s", (int)indent, "");
                        column = indent;
                } else if (!first) {
                        putchar(' ');
                        column++;
                }
                printf("%.*s", (int)length, text);
                column += (unsigned)length;
                text += length;
                while (*text == ' ')
                        text++;
                first = false;
        }
        putchar('\n');
}

static void print_row(const struct facility *facility, const struct report *report, bool colour, unsigned width)
{
        static const char *const colours[] = { "\033[32m", "\033[33m", "\033[31m" };
        static const char *const marks[] = { "yes", "partly", "no" };
        char text[2 * FOUND_MAX];

        text_escape(report->found, strlen(report->found), text, sizeof(text));
        printf("  %-*s %s%-6s%s  ", NAME_WIDTH, facility->name, colour ? colours[report->finding] : "", marks[report->finding],
               colour ? "\033[0m" : "");
        print_wrapped(text[0] ? text : facility->purpose, NAME_WIDTH + 11, width);
        if (report->finding == FOUND_WORKS)
                return;
        printf("%*s", NAME_WIDTH + 11, "");
        snprintf(text, sizeof(text), "without it: %s", facility->without);
        print_wrapped(text, NAME_WIDTH + 11, width);
        printf("%*s", NAME_WIDTH + 11, "");
        snprintf(text, sizeof(text), "to have it: %s", facility->remedy);
        print_wrapped(text, NAME_WIDTH + 11, width);
}

static unsigned terminal_width(void)
{
        struct winsize size;

        if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0 || size.ws_col < 60)
                return 110;
        return size.ws_col;
}

static int doctor_run(void *into)
{
        static const struct facility *const lists[] = { doctor_host, doctor_kernel, doctor_network };
        const struct doctor_args *args = into;
        _cleanup_json_ json_t *json = json_array();
        bool colour = isatty(STDOUT_FILENO) && !getenv("NO_COLOR");
        unsigned width = terminal_width();
        unsigned counts[3] = { 0 };
        const char *group = "";
        struct err err = ERR_INIT;

        if (!json) {
                log_error("out of memory");
                return CLI_FAILED;
        }
        for (size_t i = 0; i < ARRAY_SIZE(lists); i++) {
                for (const struct facility *facility = lists[i]; facility->name; facility++) {
                        struct report report = { 0 };
                        int r = probe(facility, &report);

                        if (r < 0) {
                                log_error("cannot start a process to try '%s': %s", facility->name, strerror(-r));
                                return CLI_FAILED;
                        }
                        counts[report.finding]++;
                        if (args->json) {
                                if (json_array_append_new(json, as_json(facility, &report)) < 0) {
                                        log_error("out of memory");
                                        return CLI_FAILED;
                                }
                                continue;
                        }
                        if (strcmp(group, facility->group) != 0)
                                printf("%s%s\n", *group ? "\n" : "", facility->group);
                        group = facility->group;
                        print_row(facility, &report, colour, width);
                        fflush(stdout);
                }
        }
        if (args->json) {
                if (json_write(json, STDOUT_FILENO, &err) < 0) {
                        log_error("%s", err.text);
                        return CLI_FAILED;
                }
                return CLI_OK;
        }
        printf("\n%u work, %u partly, %u missing\n", counts[FOUND_WORKS], counts[FOUND_PARTLY], counts[FOUND_MISSING]);
        return cli_flush();
}

const struct cli_command cli_doctor = { .table = &doctor_table, .args_size = sizeof(struct doctor_args), .run = doctor_run };
