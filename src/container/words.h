/*
 * The words of the specification and the kernel's numbers for them: namespaces, capabilities, mount options, limits.
 *
 * Each table is one list, used to read a config.json, to print `features`, and to write files in /proc.
 *
 * Source: runtime-spec config-linux.md "Namespaces", config.md "Mounts" (Linux mount options), capabilities(7), getrlimit(2).
 */
#pragma once

#include "base/util.h"
#include "container/config.h"

struct namespace_word {
        const char *name; /* "network" */
        const char *file; /* in /proc/PID/ns: "net" */
        int flag;         /* CLONE_NEW… */
};

extern const struct namespace_word namespace_words[NAMESPACE_COUNT];

struct word {
        const char *name;
        uint64_t value;
};

/* Each ends with name NULL. */
extern const struct word capability_words[];  /* "CAP_CHOWN": 0 … */
extern const struct word limit_words[];       /* "RLIMIT_NOFILE" … */
extern const struct word propagation_words[]; /* "rslave": MS_SLAVE | MS_REC … */
extern const struct word scheduler_words[], scheduler_flag_words[];
extern const struct word personality_words[];

/* What an option of a mount does. */
enum mount_word_kind {
        MOUNT_WORD_SET,   /* value: MOUNT_ATTR_… to set, `clear` to clear */
        MOUNT_WORD_BIND,
        MOUNT_WORD_PROPAGATION,
        MOUNT_WORD_SUPER, /* a flag of the super block, handed to the file system by its name ("sync"), when not its default */
        MOUNT_WORD_OTHER,
};

struct mount_word {
        const char *name;
        enum mount_word_kind kind;
        uint64_t set, clear;
        bool recursive;
};

extern const struct mount_word mount_words[];

const struct word *word_find(const struct word *table, const char *name);
const struct mount_word *mount_word_find(const char *name);
