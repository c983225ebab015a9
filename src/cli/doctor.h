/*
 * Doctor's list: each facility of the host is found out by trying it, in a process of its own that may do to itself what it
 * likes, and that may hang or crash without harm.
 */
#pragma once

#include "base/err.h"

#define FOUND_MAX 400

enum finding { FOUND_WORKS, FOUND_PARTLY, FOUND_MISSING };

struct facility {
        const char *name;
        const char *group;
        const char *purpose; /* what Virta does with it */
        const char *without; /* what Virta does without it */
        const char *remedy;  /* what to do to have it */
        /*
         * Tries it, in a child process; found says what was seen (a version, a speed, the reason). A -errno is FOUND_MISSING, and
         * found, when empty, becomes strerror's text.
         */
        int (*probe)(char found[FOUND_MAX]);
};

/* The parts of the list; each ends with name NULL. */
extern const struct facility doctor_host[];    /* accelerators, processor, cgroups, file systems */
extern const struct facility doctor_kernel[];  /* namespaces, security, memory, input and output */
extern const struct facility doctor_network[]; /* devices and packet filters */

/*
 * New namespaces (CLONE_NEW…) for the calling, single-threaded process; with a user namespace in which it is root when it may
 * not have them otherwise. 0 or -errno.
 */
int doctor_unshare(int flags);

/* The first line of a small file without its line feed; -errno. */
int doctor_read_line(const char *path, char *line, size_t size_bytes);
int doctor_write(const char *path, const char *text);
