#include "base/test.h"

#include <errno.h>

#include "base/opt.h"
#include "base/test-alloc.h"

struct args {
        const char *kernel;
        bool quiet;
        unsigned cpus;
        uint64_t memory;
        int accel;
        unsigned disks;
        const char *shell;
        const char *append;
};

static int add_disk(void *into, const char *value, struct err *err)
{
        struct args *args = into;

        if (!strcmp(value, "bad"))
                return err_set(err, -ENOENT, "no disk '%s'", value);
        args->disks++;
        return 0;
}

static const char *const accels[] = { "auto", "kvm", "software", NULL };

static const struct opt options[] = {
        { "kernel", "FILE", "what to boot", OPT_TEXT, offsetof(struct args, kernel), .required = true, .complete = OPT_COMPLETE_FILE },
        { "append", "TEXT", "more of the command line", OPT_TEXT, offsetof(struct args, append), .may_be_empty = true },
        { "quiet", NULL, "say less", OPT_FLAG, offsetof(struct args, quiet) },
        { "cpus", "N", "processors", OPT_NUMBER, offsetof(struct args, cpus), .fallback = "1", .min = 1, .max = 255 },
        { "memory", "SIZE", "memory", OPT_SIZE, offsetof(struct args, memory), .min = 1 << 20, .max = UINT64_C(1) << 40 },
        { "accel", "NAME", "accelerator", OPT_CHOICE, offsetof(struct args, accel), .fallback = "auto", .choices = accels },
        { "disk", "FILE", "a disk", OPT_CALL, .call = add_disk, .repeated = true },
        { 0 },
};

static const struct opt operands[] = {
        { NULL, "SHELL", "which shell", OPT_TEXT, offsetof(struct args, shell), .choices = opt_shells },
        { 0 },
};

static const struct opt_note exits[] = { { "0", "all went well" }, { "2", "usage" }, { 0 } };
static const struct opt_section sections[] = { { "Exit status", NULL, exits }, { 0 } };
static const struct opt_command command = {
        .name = "boot", .summary = "boot something", .description = "Boots.\n.Not a request", .options = options,
        .operands = operands, .sections = sections,
};
static const struct opt_command *const commands[] = { &command, NULL };
static const struct opt_program program = {
        .name = "virta", .summary = "virtual things", .version = "1.2", .description = "Does it.", .commands = commands,
};

static int parse(struct args *args, struct err *err, const char *first, ...)
{
        char *argv[32];
        int argc = 0;
        va_list list;

        *args = (struct args){ .cpus = 1 };
        va_start(list, first);
        for (const char *arg = first; arg; arg = va_arg(list, const char *))
                argv[argc++] = (char *)(uintptr_t)arg;
        va_end(list);
        return opt_parse(&command, argc, argv, args, err);
}

#define PARSE(...) parse(&args, &err, __VA_ARGS__, NULL)

static void takes_every_kind(void **state)
{
        struct err err = ERR_INIT;
        struct args args;

        assert_int_equal(PARSE("--kernel", "k", "--quiet", "--cpus=4", "--memory", "2G", "--accel", "software", "--disk", "a",
                               "--disk=b", "--append=", "fish"), 0);
        assert_string_equal(args.kernel, "k");
        assert_true(args.quiet);
        assert_int_equal(args.cpus, 4);
        assert_int_equal(args.memory, UINT64_C(2) << 30);
        assert_int_equal(args.accel, 2);
        assert_int_equal(args.disks, 2);
        assert_string_equal(args.append, "");
        assert_string_equal(args.shell, "fish");
        assert_int_equal(PARSE("--kernel", "--quiet", "--", "--cpus"), 0);
        assert_string_equal(args.kernel, "--quiet");
        assert_string_equal(args.shell, "--cpus");
        assert_int_equal(PARSE("--nonsense", "--help"), OPT_HELP);
        assert_int_equal(PARSE("--kernel", "a", "--", "--help"), 0);
}

static void refuse(const char *text, int code, const struct err *err)
{
        assert_true(code < 0);
        assert_string_equal(err->text, text);
}

static void says_what_is_wrong(void **state)
{
        struct err err = ERR_INIT;
        struct args args;

        refuse("option '--kernel FILE' is missing: what to boot", parse(&args, &err, NULL), &err);
        refuse("unknown option '--memroy' (did you mean '--memory'?)", PARSE("--memroy", "1"), &err);
        refuse("unknown option '--zzzzzz' (try 'virta boot --help')", PARSE("--zzzzzz=1"), &err);
        refuse("unknown option '--' (try 'virta boot --help')", PARSE("--=1"), &err);
        refuse("unknown option '-k' (try 'virta boot --help')", PARSE("-k"), &err);
        refuse("option '--kernel' is given twice", PARSE("--kernel", "a", "--kernel=b"), &err);
        refuse("option '--kernel' needs a value: --kernel FILE", PARSE("--kernel"), &err);
        refuse("option '--kernel': the value is empty", PARSE("--kernel="), &err);
        refuse("option '--quiet' takes no value, but 'x' was given", PARSE("--quiet=x"), &err);
        refuse("option '--cpus': '0' is not in the range from 1 to 255", PARSE("--cpus", "0"), &err);
        refuse("option '--cpus': '1e3' is not a number (from 1 to 255)", PARSE("--cpus", "1e3"), &err);
        refuse("option '--memory': size '2T' is not in the range from 1M to 1T", PARSE("--memory", "2T"), &err);
        refuse("option '--accel': 'fast' is none of auto, kvm, software", PARSE("--accel", "fast"), &err);
        refuse("option '--disk': no disk 'bad'", PARSE("--disk", "bad"), &err);
        refuse("'more' is not expected here (try 'virta boot --help')", PARSE("--kernel=a", "sh", "more"), &err);
}

static char *text_of(void (*write)(FILE *out))
{
        char *text = NULL;
        size_t size;
        FILE *out = open_memstream(&text, &size);

        write(out);
        fclose(out);
        return text;
}

static void write_help(FILE *out)
{
        opt_help(&program, &command, out);
        opt_help(&program, NULL, out);
}

static void write_man(FILE *out)
{
        opt_man(&program, &command, out);
        opt_man(&program, NULL, out);
}

static void write_completion(FILE *out)
{
        for (unsigned i = 0; opt_shells[i]; i++)
                assert_int_equal(opt_completion(&program, opt_shells[i], out), 0);
        assert_int_equal(opt_completion(&program, "csh", out), -EINVAL);
}

static void texts_have_every_option(void **state)
{
        _cleanup_free_ char *help = text_of(write_help);
        _cleanup_free_ char *man = text_of(write_man);
        _cleanup_free_ char *completion = text_of(write_completion);
        char name[64];

        for (const struct opt *opt = options; opt->name; opt++) {
                snprintf(name, sizeof(name), "  --%s", opt->name);
                assert_non_null(strstr(help, name));
                assert_non_null(strstr(help, opt->text));
                snprintf(name, sizeof(name), "\\-\\-%s", opt->name);
                assert_non_null(strstr(man, name));
                snprintf(name, sizeof(name), "-l %s ", opt->name);
                assert_non_null(strstr(completion, name));
                snprintf(name, sizeof(name), "--%s", opt->name);
                assert_non_null(strstr(completion, name));
        }
        assert_non_null(strstr(help, "(default: auto)"));
        assert_non_null(strstr(man, "\n\\&.Not a request"));
        assert_non_null(strstr(man, ".SH \"EXIT STATUS\""));
        assert_true(ARRAY_SIZE(options) <= 64);
}

struct rest_args {
        bool loud;
        const char *name;
        char *const *words;
};

static const struct opt rest_options[] = {
        { "loud", NULL, "say more", OPT_FLAG, offsetof(struct rest_args, loud), .letter = 'l' },
        { 0 },
};

/* Another program's command line behind our own. */
static void takes_the_rest(void **state)
{
        const struct opt words[] = { { NULL, "NAME", "whose", OPT_TEXT, offsetof(struct rest_args, name), .required = true },
                                        { NULL, "COMMAND", "what", OPT_REST, offsetof(struct rest_args, words) },
                                        { 0 } };
        const struct opt_command exec = { .name = "exec", .options = rest_options, .operands = words };
        char *const argv[] = { (char *)"-l", (char *)"n", (char *)"ls", (char *)"--help", (char *)"-x", NULL };
        struct rest_args args = { 0 };
        struct err err = ERR_INIT;

        assert_int_equal(opt_parse(&exec, 5, argv, &args, &err), 0);
        assert_true(args.loud);
        assert_string_equal(args.name, "n");
        assert_ptr_equal(args.words, argv + 2);
        assert_int_equal(opt_parse(&exec, 1, argv + 3, &args, &err), OPT_HELP);
}

static void takes_leading_options(void **state)
{
        const struct opt_program leading = { .name = "p", .options = rest_options };
        char *const argv[] = { (char *)"--loud", (char *)"run", (char *)"--loud", NULL };
        char *const wrong[] = { (char *)"--laud", (char *)"run", NULL };
        struct rest_args args = { 0 };
        struct err err = ERR_INIT;
        int used = 0;

        assert_int_equal(opt_parse_leading(&leading, 3, argv, &args, &used, &err), 0);
        assert_int_equal(used, 1);
        assert_true(args.loud);
        assert_int_equal(opt_parse_leading(&leading, 2, wrong, &args, &used, &err), -EINVAL);
        assert_non_null(strstr(err.text, "did you mean '--loud'"));
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(takes_every_kind),
                cmocka_unit_test(says_what_is_wrong),
                cmocka_unit_test(texts_have_every_option),
                cmocka_unit_test(takes_the_rest),
                cmocka_unit_test(takes_leading_options),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
