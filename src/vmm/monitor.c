/*
 * The monitor's line editor and its table of commands. See monitor.h.
 */
#include "vmm/monitor.h"

#include <stdio.h>

static const struct {
        const char *name;
        enum monitor_command command;
        bool takes_argument;
} commands[] = {
        { "status", MONITOR_STATUS },
        { "cpus", MONITOR_CPUS },
        { "power", MONITOR_POWER_BUTTON },
        { "balloon", MONITOR_BALLOON, true },
        { "disk", MONITOR_DISK, true },
        { "job", MONITOR_JOB, true },
        { "reset", MONITOR_RESET },
        { "pause", MONITOR_PAUSE },
        { "resume", MONITOR_RESUME },
        { "quit", MONITOR_QUIT },
        { "close", MONITOR_CLOSE },
        { "help", MONITOR_HELP },
};

const char *monitor_help(void)
{
        return "status  state, processors, memory, devices\n"
               "cpus    where the processors' time went (more with --cpu-stats)\n"
               "power   press the power button\n"
               "balloon SIZE  ask the guest to give so much of its memory back (512M, 2G; 0: none)\n"
               "disk N SIZE  make a disk larger (disk 0 20G: the first one)\n"
               "job     what runs on disks; job N WORDS begins one on disk N: stream, commit, commit pivot,\n"
               "        mirror FILE [pivot|follow], backup FILE [bitmap=NAME], resize SIZE [shrink]; with speed=SIZE, format=FORMAT,\n"
               "        secret=file:PATH (of FILE);\n"
               "        job N pause, resume, cancel, complete, pivot, speed SIZE\n"
               "reset   reset the machine\n"
               "pause   stop the machine where it is\n"
               "resume  let it go on\n"
               "quit    end the machine now\n"
               "close   back to the guest's console (as Ctrl-A c)\n"
               "help    this list; a command's first letters are enough\n";
}

static enum monitor_command find(const char *line, bool has_argument)
{
        enum monitor_command found = MONITOR_UNKNOWN;
        size_t length = strcspn(line, " ");

        if (!length)
                return MONITOR_NONE;
        for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
                if (strncmp(commands[i].name, line, length) || (has_argument && !commands[i].takes_argument))
                        continue;
                if (!commands[i].name[length])
                        return commands[i].command;
                /* Letters that begin two commands are none. */
                found = found == MONITOR_UNKNOWN ? commands[i].command : MONITOR_HELP;
        }
        return found;
}

static enum monitor_command end_line(struct monitor *monitor, char echo[8])
{
        size_t start = 0;

        while (monitor->length && monitor->line[monitor->length - 1] == ' ')
                monitor->length--;
        monitor->line[monitor->length] = '\0';
        while (monitor->line[start] == ' ')
                start++;
        memmove(monitor->line, monitor->line + start, monitor->length - start + 1);
        monitor->length = 0;
        snprintf(echo, 8, "\r\n");
        monitor->argument = monitor->line + strcspn(monitor->line, " ");
        monitor->argument += strspn(monitor->argument, " ");
        return find(monitor->line, *monitor->argument);
}

enum monitor_command monitor_type(struct monitor *monitor, uint8_t byte, char echo[8])
{
        echo[0] = '\0';
        switch (byte) {
        case '\r':
        case '\n':
                return end_line(monitor, echo);
        case 0x7f:
        case '\b':
                if (monitor->length) {
                        monitor->length--;
                        snprintf(echo, 8, "\b \b");
                }
                return MONITOR_NONE;
        case 0x03: /* Ctrl-C */
        case 0x15: /* Ctrl-U */
                monitor->length = 0;
                snprintf(echo, 8, "^%c\r\n", byte + '@');
                return MONITOR_NONE;
        default:
                if (byte < ' ' || byte > '~' || monitor->length == MONITOR_LINE_MAX)
                        return MONITOR_NONE;
                monitor->line[monitor->length++] = (char)byte;
                echo[0] = (char)byte;
                echo[1] = '\0';
                return MONITOR_NONE;
        }
}
