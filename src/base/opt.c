#include "base/opt.h"

#include <errno.h>

#include "base/text.h"

#define NAME_MAX_BYTES 64

/* Levenshtein distance of two short names. */
static unsigned distance(const char *a, const char *b)
{
        unsigned row[NAME_MAX_BYTES + 1];
        size_t length = strlen(b);

        for (unsigned j = 0; j <= length; j++)
                row[j] = j;
        for (unsigned i = 1; a[i - 1]; i++) {
                unsigned diagonal = row[0];

                row[0] = i;
                for (unsigned j = 1; j <= length; j++) {
                        unsigned above = row[j];
                        unsigned change = diagonal + (a[i - 1] != b[j - 1]);

                        row[j] = MIN(MIN(above, row[j - 1]) + 1, change);
                        diagonal = above;
                }
        }
        return row[length];
}

const char *opt_nearest(const char *typed, const char *(*next)(const void *ctx, size_t i), const void *ctx)
{
        const char *best = NULL;
        unsigned best_distance = 3;
        const char *name;

        if (!*typed || strlen(typed) > NAME_MAX_BYTES)
                return NULL;
        for (size_t i = 0; (name = next(ctx, i)); i++) {
                unsigned d;

                if (strlen(name) > NAME_MAX_BYTES)
                        continue;
                d = distance(typed, name);
                if (d < best_distance && d < strlen(name)) {
                        best = name;
                        best_distance = d;
                }
        }
        return best;
}

static const char *option_name(const void *ctx, size_t i)
{
        return ((const struct opt *)ctx)[i].name;
}

static int unknown_option(const struct opt_command *command, const char *name, size_t length, struct err *err)
{
        char typed[NAME_MAX_BYTES + 1];
        const char *nearest;

        snprintf(typed, sizeof(typed), "%.*s", (int)MIN(length, (size_t)NAME_MAX_BYTES), name);
        nearest = opt_nearest(typed, option_name, command->options);
        if (nearest)
                return err_set(err, -EINVAL, "unknown option '--%s' (did you mean '--%s'?)", typed, nearest);
        return err_set(err, -EINVAL, "unknown option '--%s' (try 'virta %s --help')", typed, command->name);
}

static int choose(const struct opt *opt, const char *value, int *index, struct err *err)
{
        char list[256] = "";
        size_t used = 0;

        for (int i = 0; opt->choices[i]; i++) {
                if (!strcmp(opt->choices[i], value)) {
                        *index = i;
                        return 0;
                }
                if (used < sizeof(list))
                        used += (size_t)snprintf(list + used, sizeof(list) - used, "%s%s", i ? ", " : "", opt->choices[i]);
        }
        return err_set(err, -EINVAL, "'%s' is none of %s", value, list);
}

static int store_size(const struct opt *opt, const char *value, uint64_t *to, struct err *err)
{
        char low[SIZE_TEXT_MAX], high[SIZE_TEXT_MAX];
        uint64_t bytes;
        int r = size_parse(value, &bytes, err);

        if (r < 0)
                return r;
        if (bytes < opt->min || (opt->max && bytes > opt->max))
                return err_set(err, -ERANGE, "size '%s' is not in the range from %s to %s", value, size_format(opt->min, low),
                               size_format(opt->max, high));
        *to = bytes;
        return 0;
}

static int store(const struct opt *opt, const char *value, void *into, struct err *err)
{
        char *to = (char *)into + opt->offset;
        uint64_t number;
        int r;

        if (opt->kind != OPT_FLAG && !*value && !opt->may_be_empty)
                return err_set(err, -EINVAL, "the value is empty");
        switch (opt->kind) {
        case OPT_FLAG:
                *(bool *)to = true;
                return 0;
        case OPT_TEXT:
                *(const char **)to = value;
                return 0;
        case OPT_NUMBER:
                r = number_parse(value, opt->min, opt->max, &number, err);
                if (!r)
                        *(unsigned *)to = (unsigned)number;
                return r;
        case OPT_SIZE:
                return store_size(opt, value, (uint64_t *)to, err);
        case OPT_CHOICE:
                return choose(opt, value, (int *)to, err);
        case OPT_CALL:
                return opt->call(into, value, err);
        case OPT_REST:
                break; /* parse_operand() */
        }
        return -EINVAL;
}

/* "--name", "--name=value", "-letter". */
static const struct opt *find_option(const struct opt_command *command, const char *arg)
{
        const char *name = arg + 2;
        size_t length = strcspn(name, "=");
        const struct opt *opt = command->options;

        if (arg[1] != '-')
                while (opt->name && (opt->letter != arg[1] || arg[2]))
                        opt++;
        else
                while (opt->name && (strlen(opt->name) != length || strncmp(opt->name, name, length) != 0))
                        opt++;
        return opt->name ? opt : NULL;
}

/* argv[0] starts with "-": handles it and its value. Returns the number of arguments used, or -errno. */
static int parse_option(const struct opt_command *command, int left, char *const argv[], uint64_t *seen, void *into, struct err *err)
{
        const char *equals = argv[0][1] == '-' ? strchr(argv[0], '=') : NULL, *value = equals ? equals + 1 : NULL;
        const struct opt *opt = find_option(command, argv[0]);
        int used = 1;
        int r;

        if (!opt && argv[0][1] == '-')
                return unknown_option(command, argv[0] + 2, strcspn(argv[0] + 2, "="), err);
        if (!opt)
                return err_set(err, -EINVAL, "unknown option '%s' (try 'virta %s --help')", argv[0], command->name);
        if (*seen >> (opt - command->options) & 1 && !opt->repeated)
                return err_set(err, -EINVAL, "option '--%s' is given twice", opt->name);
        *seen |= UINT64_C(1) << (opt - command->options);
        if (opt->kind == OPT_FLAG && value)
                return err_set(err, -EINVAL, "option '--%s' takes no value, but '%s' was given", opt->name, value);
        if (opt->kind != OPT_FLAG && !value) {
                if (left < 2)
                        return err_set(err, -EINVAL, "option '--%s' needs a value: --%s %s", opt->name, opt->name, opt->argument);
                value = argv[1];
                used = 2;
        }
        r = store(opt, value, into, err);
        if (r < 0)
                return err_wrap(err, r, "option '--%s'", opt->name);
        return used;
}

/* Returns the number of words used: one, or all that are left. */
static int parse_operand(const struct opt_command *command, unsigned index, int left, char *const argv[], void *into, struct err *err)
{
        const struct opt *operand = command->operands;
        int r;

        for (unsigned i = 0; operand && operand->argument && i < index; i++)
                operand++;
        if (!operand || !operand->argument)
                return err_set(err, -EINVAL, "'%s' is not expected here (try 'virta %s --help')", argv[0], command->name);
        if (operand->kind == OPT_REST) {
                *(char *const **)((char *)into + operand->offset) = argv;
                return left;
        }
        r = store(operand, argv[0], into, err);
        if (r < 0)
                return err_wrap(err, r, "%s", operand->argument);
        return 1;
}

static int check_required(const struct opt_command *command, uint64_t seen, unsigned operands, struct err *err)
{
        for (const struct opt *opt = command->options; opt->name; opt++) {
                if (opt->required && !(seen >> (opt - command->options) & 1))
                        return err_set(err, -EINVAL, "option '--%s %s' is missing: %s", opt->name, opt->argument, opt->text);
        }
        for (const struct opt *operand = command->operands; operand && operand->argument; operand++) {
                if (operand->required && (unsigned)(operand - command->operands) >= operands)
                        return err_set(err, -EINVAL, "%s is missing: %s", operand->argument, operand->text);
        }
        return 0;
}

/* Then --help behind its operands is another program's. */
static bool takes_rest(const struct opt_command *command)
{
        const struct opt *operand = command->operands;

        while (operand && operand->argument && operand->kind != OPT_REST)
                operand++;
        return operand && operand->argument;
}

/* No options of its own: another program's command line. */
static bool is_all_rest(const struct opt_command *command)
{
        return !command->options->name && command->operands && command->operands->kind == OPT_REST;
}

int opt_parse(const struct opt_command *command, int argc, char *const argv[], void *into, struct err *err)
{
        bool ended = false;
        unsigned operands = 0;
        uint64_t seen = 0; /* a bit an option: tables have at most 64, test-opt checks that */

        for (int i = 0; i < argc && !takes_rest(command); i++) {
                if (!ended && (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")))
                        return OPT_HELP;
                if (!strcmp(argv[i], "--"))
                        break;
        }
        for (int i = 0; i < argc;) {
                int used = 1;

                if (!ended && takes_rest(command) && (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")))
                        return OPT_HELP;
                if (!ended && !strcmp(argv[i], "--")) {
                        ended = true;
                } else if (!ended && !is_all_rest(command) && argv[i][0] == '-' && argv[i][1]) {
                        used = parse_option(command, argc - i, argv + i, &seen, into, err);
                } else {
                        used = parse_operand(command, operands++, argc - i, argv + i, into, err);
                }
                if (used < 0)
                        return used;
                i += used;
        }
        return check_required(command, seen, operands, err);
}

int opt_parse_leading(const struct opt_program *program, int argc, char *const argv[], void *into, int *used, struct err *err)
{
        const struct opt_command leading = { .name = "help", .options = program->options };
        uint64_t seen = 0;
        int i = 0;

        while (i < argc && argv[i][0] == '-' && argv[i][1]) {
                int r;

                if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
                        return OPT_HELP;
                r = parse_option(&leading, argc - i, argv + i, &seen, into, err);
                if (r < 0)
                        return r;
                i += r;
        }
        *used = i;
        return 0;
}

bool opt_in_group(const struct opt_command *command, const struct opt_command *group)
{
        size_t length = strlen(group->name);

        return strncmp(command->name, group->name, length) == 0 && command->name[length] == ' ';
}

static bool is_called(const struct opt_command *command, const char *first, const char *second)
{
        size_t length = strlen(first);

        if (!second)
                return strcmp(command->name, first) == 0;
        return strncmp(command->name, first, length) == 0 && command->name[length] == ' ' && strcmp(command->name + length + 1, second) == 0;
}

static const struct opt_command *find_called(const struct opt_program *program, const char *first, const char *second)
{
        for (unsigned i = 0; program->commands[i]; i++)
                if (is_called(program->commands[i], first, second))
                        return program->commands[i];
        return NULL;
}

const struct opt_command *opt_find(const struct opt_program *program, int argc, char *const argv[], int *words)
{
        const struct opt_command *command = argc > 1 ? find_called(program, argv[0], argv[1]) : NULL;

        *words = command ? 2 : 1;
        return command ? command : argc ? find_called(program, argv[0], NULL) : NULL;
}
