/*
 * The monitor: a few commands typed at the console after Ctrl-A c. Lines of at most MONITOR_LINE_MAX bytes; Backspace and Ctrl-U
 * edit, Ctrl-C drops the line, an empty line does nothing.
 */
#pragma once

#include "base/util.h"

#define MONITOR_LINE_MAX 120u

enum monitor_command {
        MONITOR_NONE,
        MONITOR_UNKNOWN,
        MONITOR_STATUS,
        MONITOR_CPUS,
        MONITOR_POWER_BUTTON,
        MONITOR_BALLOON,
        MONITOR_DISK,
        MONITOR_JOB,
        MONITOR_RESET,
        MONITOR_PAUSE,
        MONITOR_RESUME,
        MONITOR_QUIT,
        MONITOR_CLOSE,
        MONITOR_HELP,
};

struct monitor {
        char line[MONITOR_LINE_MAX + 1];
        size_t length;
        const char *argument; /* in line */
};

/*
 * One typed byte. What is to be echoed goes to echo (at least 8 bytes, 0-terminated). The command when it ends a line, else
 * MONITOR_NONE; the line itself is then in monitor->line until the next byte, and what follows the command's word in
 * monitor->argument (empty when nothing does).
 */
enum monitor_command monitor_type(struct monitor *monitor, uint8_t byte, char echo[8]);

const char *monitor_help(void);
#define MONITOR_PROMPT "(virta) "
