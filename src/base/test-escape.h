/*
 * What a process that has been taken over would try: for tests of sandboxes, from inside.
 *
 * The parent prepares what there is to reach (a shared directory, listeners), a process enters its sandbox and tries everything;
 * each attempt must fail.
 */
#pragma once

#include "base/util.h"

struct escape {
        int share; /* the directory that stays, open in the sandbox; set by who enters it */
        pid_t parent;
        bool was_root;
        uint16_t port;
        char path_socket[64], abstract_socket[64];
        int listener[3];
};

/* share: a template for mkdtemp(). 0 or -errno. */
int escape_prepare(struct escape *in, char *share);
void escape_clean_up(struct escape *in, const char *share);

/* On the calling thread; a line to `report` for each that worked. Returns how many did. */
unsigned escape_try_all(const struct escape *in, int report);
unsigned escape_count(void);
/* A line, with write(2) alone: what a confined thread can do. */
void escape_say(int report, const char *fmt, ...) _printf_(2, 3);
