/*
 * Command lines: one table a command, from which parsing, --help, man page and shell completion all come.
 *
 * A table's entries store into a struct of the caller's by offset, or call a function for values with a form of their own.
 * Options are long: `--name VALUE`, `--name=VALUE`, `--name` for a flag, `--` ends them; few have a letter, too. Each may be given once unless it is
 * `repeated`. Errors name the option, the value and what would be right.
 *
 *      static const struct opt options[] = {
 *              { "memory", "SIZE", "memory of the machine", OPT_SIZE, offsetof(struct args, memory), .fallback = "512M" },
 *              { 0 },
 *      };
 */
#pragma once

#include <stdio.h>

#include "base/err.h"

enum opt_kind {
        OPT_FLAG,   /* bool; takes no value */
        OPT_TEXT,   /* const char *, borrowed from argv; not empty unless may_be_empty */
        OPT_NUMBER, /* unsigned, min to max */
        OPT_SIZE,   /* uint64_t bytes, min to max where max is not 0; see size_parse() */
        OPT_CHOICE, /* int: the index in choices */
        OPT_CALL,   /* call() does it */
        OPT_REST,   /* char *const *: this word and all after it, options or not; NULL-terminated as argv is. The last operand only; when it
                       is all that a command takes, from the first word on */
};

/* What a shell offers for a value, beside choices. */
enum opt_complete { OPT_COMPLETE_NONE, OPT_COMPLETE_FILE, OPT_COMPLETE_DIRECTORY };

struct opt {
        const char *name;     /* without the dashes; NULL ends options (operands: argument NULL does) */
        const char *argument; /* its value in help: "FILE"; NULL for a flag */
        const char *text;     /* one phrase, no full stop */
        enum opt_kind kind;
        size_t offset;
        const char *fallback; /* the default as help shows it, or NULL; the caller puts it into the struct beforehand */
        uint64_t min, max;
        const char *const *choices; /* NULL-terminated; offered as completion also with other kinds */
        int (*call)(void *into, const char *value, struct err *err);
        enum opt_complete complete;
        bool required;
        char letter;   /* "-o VALUE" besides, when it is not 0 */
        bool repeated; /* OPT_CALL only */
        bool may_be_empty;
};

/* A term and what it means: exit codes, keys, examples. Ends with term NULL. */
struct opt_note {
        const char *term;
        const char *text;
};

struct opt_section {
        const char *title; /* "Exit status"; NULL ends the list */
        const char *text;  /* a paragraph in front, or NULL */
        const struct opt_note *notes;
};

struct opt_command {
        const char *name;        /* "boot"; "disk create" is one of the group "disk" */
        const char *summary;     /* one phrase, no full stop */
        const char *description; /* paragraphs, separated by a line feed; for the man page and --help */
        const struct opt *options;
        const struct opt *operands; /* in their order; name NULL. May be NULL */
        const struct opt_section *sections; /* may be NULL */
        bool group;              /* only a first word: those that begin with it are its commands */
};

struct opt_program {
        const char *name;
        const char *summary;
        const char *version;
        const char *description;
        const struct opt *options; /* in front of the command, for opt_parse_leading(); may be NULL */
        const struct opt_command *const *commands; /* NULL-terminated */
        const struct opt_section *sections;
};

#define OPT_HELP 1 /* opt_parse(): --help was given */

/*
 * Parses argv (without the command's own name) into *into. 0, OPT_HELP, or -EINVAL and the like. On failure *into may hold some
 * of the values: it is the caller's to throw away.
 */
int opt_parse(const struct opt_command *command, int argc, char *const argv[], void *into, struct err *err) _must_check_;

/*
 * The options in front of a program's command: *used is how many words they took, up to the first that is no option. As opt_parse()
 * otherwise.
 */
int opt_parse_leading(const struct opt_program *program, int argc, char *const argv[], void *into, int *used, struct err *err) _must_check_;

/* Whether command is one of the group. */
bool opt_in_group(const struct opt_command *command, const struct opt_command *group);
/* The command that argv begins with, and how many words that took; a group when its second word is missing or unknown. NULL: none. */
const struct opt_command *opt_find(const struct opt_program *program, int argc, char *const argv[], int *words);

/* --help of the program (command NULL) or of one command. */
void opt_help(const struct opt_program *program, const struct opt_command *command, FILE *out);
/* The man page, roff with the man macros. */
void opt_man(const struct opt_program *program, const struct opt_command *command, FILE *out);

/* A completion script; shell is one of opt_shells. -EINVAL when it is not. */
extern const char *const opt_shells[];
int opt_completion(const struct opt_program *program, const char *shell, FILE *out) _must_check_;

/* The name nearest to a mistyped one, for "did you mean"; NULL when none is near. next() gives name i, NULL at the end. */
const char *opt_nearest(const char *typed, const char *(*next)(const void *ctx, size_t i), const void *ctx);
