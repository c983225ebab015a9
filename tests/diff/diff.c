/*
 * Differential test of the software processor against the host's own.
 *
 *      diff [--sequences] [--code32] [--strict] [--seed N] [--cases N] [--form MNEMONIC] [--model NAME] [--engine NAME]
 *           [--show N] [--list] [--list-skipped]
 *
 * Single cases go round all forms; with --sequences a case is 2 to 20 of them. Each runs natively and in every other engine (or
 * the one named). A mismatch prints the code, its input and both outcomes, --show of each form; of a sequence first every
 * instruction is made a NOP that the mismatch does not need. --strict compares undefined flags too where the host is one of
 * Intel's, whose ours are. The exit status is 1 after a mismatch, 77 when the host does not run such code.
 */
#include "tests/diff/diff.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

/*
 * The first is what the others are compared with; the second knows which instruction sets there are. Those from FIRST_HOT on are slow
 * and run only when they are named.
 */
static const struct engine_ops *const engines[] = { &native_ops, &interpreter_ops, &hot_interpreter_ops, &hot_translator_ops };
#define FIRST_HOT 2

struct options {
        bool sequences, code32, strict;
        uint64_t seed, cases;
        ZydisMnemonic only;
        unsigned show; /* mismatches of a form, or of all sequences */
        const char *model, *engine;
        int list; /* an option's letter, or 0 */
};

struct diff {
        struct options options;
        struct forms forms;
        struct engine *engine[ARRAY_SIZE(engines)];
        ZydisDecoder decoder;
        struct random random;
        struct diff_case c;
        struct outcome outcome[ARRAY_SIZE(engines)];
        uint8_t before[DATA_BYTES]; /* data of all, when c began */
        uint64_t cases, instructions, mismatches, failed_forms, faults;
        uint64_t unproved; /* forms that no case reached, mnemonics that a binder takes without a form */
};

/* ---- running ---- */

static struct pair pair_of(const struct diff *d, unsigned n)
{
        return (struct pair){
                .c = &d->c,
                .native = &d->outcome[0],
                .other = &d->outcome[n],
                .native_data = d->engine[0]->data,
                .other_data = d->engine[n]->data,
                .strict = d->options.strict,
        };
}

/* Runs the case natively and in engine n. */
static bool engines_agree(struct diff *d, unsigned n)
{
        struct pair pair = pair_of(d, n);

        memcpy(d->engine[0]->data, d->before, DATA_BYTES);
        memcpy(d->engine[n]->data, d->before, DATA_BYTES);
        d->engine[0]->ops->run(d->engine[0], &d->c, &d->outcome[0]);
        d->engine[n]->ops->run(d->engine[n], &d->c, &d->outcome[n]);
        return pair_same(&pair);
}

/* Makes NOPs of instructions that a mismatch does not need. */
static void shorten(struct diff *d, unsigned n)
{
        for (unsigned i = 0; i < d->c.count; i++) {
                struct code *code = &d->c.insn[i], kept = *code;

                memset(code->bytes, 0x90, code->z.length);
                if (engines_agree(d, n))
                        *code = kept;
        }
        engines_agree(d, n);
}

static void report(struct diff *d, unsigned n, const struct form *form)
{
        struct pair pair = pair_of(d, n);

        if (!form)
                shorten(d, n);
        printf("mismatch: ");
        if (form)
                form_print(form);
        else
                printf("sequence %" PRIu64 "\n", d->cases);
        pair_print(&pair, d->engine[n]->ops->name);
}

/* Runs the case in all engines, each from the same memory; false for a mismatch. */
static bool run_case(struct diff *d, const struct form *form, bool print)
{
        bool good = true;

        memcpy(d->before, d->engine[0]->data, DATA_BYTES);
        d->engine[0]->ops->run(d->engine[0], &d->c, &d->outcome[0]);
        d->cases++;
        d->instructions += d->c.count;
        d->faults += d->outcome[0].vector >= 0;
        for (unsigned n = 1; n < ARRAY_SIZE(engines); n++) {
                struct pair pair;

                if (!d->engine[n])
                        continue;
                pair = pair_of(d, n);
                d->engine[n]->ops->run(d->engine[n], &d->c, &d->outcome[n]);
                if (!pair_same(&pair)) {
                        good = false;
                        if (print)
                                report(d, n, form);
                } else if (!pair_memory_open(&pair)) {
                        continue;
                }
                memcpy(d->engine[n]->data, d->engine[0]->data, DATA_BYTES);
        }
        return good;
}

static void run_sequences(struct diff *d)
{
        while (d->cases < d->options.cases) {
                case_sequence(&d->forms, &d->decoder, &d->random, &d->c);
                if (!run_case(d, NULL, d->mismatches < d->options.show))
                        d->mismatches++;
        }
}

static int run_singles(struct diff *d)
{
        uint8_t *failed = calloc(d->forms.count, 1), *done = calloc(d->forms.count, 1);
        uint64_t before;

        if (!failed || !done) {
                free(failed);
                free(done);
                return -ENOMEM;
        }
        do {
                before = d->cases;
                for (size_t n = 0; n < d->forms.count && d->cases < d->options.cases; n++) {
                        const struct form *form = &d->forms.form[n];

                        if ((d->options.only && form->mnemonic != d->options.only) ||
                            !case_single(form, d->options.code32, &d->decoder, &d->random, &d->c))
                                continue;
                        done[n] = 1;
                        if (run_case(d, form, failed[n] < d->options.show))
                                continue;
                        d->mismatches++;
                        d->failed_forms += !failed[n];
                        failed[n] += failed[n] < 255;
                }
        } while (d->cases != before && d->cases < d->options.cases);
        for (size_t n = 0; n < d->forms.count && !d->options.only && d->options.cases >= 2 * d->forms.count; n++) {
                if (done[n])
                        continue;
                printf("never encoded: ");
                form_print(&d->forms.form[n]);
                d->unproved++;
        }
        free(failed);
        free(done);
        return 0;
}

/*
 * The other way round: every mnemonic that the interpreter executes, as the binders say for each opcode, has a form or a reason.
 * The opcodes come from the same walk, so this fails only when a form was dropped after it.
 */
static uint64_t bound_without_form(struct diff *d)
{
        uint64_t missing = 0;

        for (unsigned m = 1; m <= ZYDIS_MNEMONIC_MAX_VALUE; m++) {
                if (!d->forms.seen[m] || d->forms.tested[m] || d->forms.reason[m])
                        continue;
                printf("not covered: %s\n", ZydisMnemonicGetString(m));
                missing++;
        }
        return missing;
}

static unsigned mnemonics_tested(const struct forms *forms)
{
        unsigned n = 0;

        for (unsigned m = 0; m <= ZYDIS_MNEMONIC_MAX_VALUE; m++)
                n += forms->tested[m] != 0;
        return n;
}

static void list(const struct forms *forms, bool skipped)
{
        for (size_t n = 0; n < forms->count && !skipped; n++)
                form_print(&forms->form[n]);
        for (unsigned n = 0; n <= ZYDIS_MNEMONIC_MAX_VALUE && skipped; n++)
                if (forms->reason[n])
                        printf("%-18s %s%s\n", ZydisMnemonicGetString(n), forms->reason[n],
                               forms->tested[n] ? " (some forms)" : "");
}

static double now_s(void)
{
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* ---- the program ---- */

static ZydisMnemonic mnemonic_of(const char *name)
{
        for (unsigned n = 1; n <= ZYDIS_MNEMONIC_MAX_VALUE; n++)
                if (!strcasecmp(ZydisMnemonicGetString(n), name))
                        return n;
        return ZYDIS_MNEMONIC_INVALID;
}

static bool known_engine(const char *name)
{
        for (unsigned n = 1; n < ARRAY_SIZE(engines); n++)
                if (!strcmp(engines[n]->name, name))
                        return true;
        return false;
}

static int parse(int argc, char **argv, struct options *o)
{
        static const struct option options[] = {
                { "seed", required_argument, NULL, 's' },   { "cases", required_argument, NULL, 'c' },
                { "form", required_argument, NULL, 'f' },   { "model", required_argument, NULL, 'm' },
                { "engine", required_argument, NULL, 'e' }, { "show", required_argument, NULL, 'n' },
                { "sequences", no_argument, NULL, 'q' },    { "code32", no_argument, NULL, '3' },
                { "strict", no_argument, NULL, 't' },       { "list", no_argument, NULL, 'l' },
                { "list-skipped", no_argument, NULL, 'k' }, { 0 },
        };
        int option;

        *o = (struct options){ .seed = 1, .cases = 200000, .show = 1, .model = "max" };
        while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
                switch (option) {
                case 's':
                        o->seed = strtoull(optarg, NULL, 0);
                        break;
                case 'c':
                        o->cases = strtoull(optarg, NULL, 0);
                        break;
                case 'n':
                        o->show = (unsigned)strtoul(optarg, NULL, 0);
                        break;
                case 'm':
                        o->model = optarg;
                        break;
                case 'e':
                        o->engine = optarg;
                        break;
                case 'q':
                        o->sequences = true;
                        break;
                case '3':
                        o->code32 = true;
                        break;
                case 't':
                        o->strict = __builtin_cpu_is("intel");
                        break;
                case 'l':
                case 'k':
                        o->list = option;
                        break;
                case 'f':
                        o->only = mnemonic_of(optarg);
                        if (o->only)
                                break;
                        fprintf(stderr, "diff: no mnemonic is called \"%s\"\n", optarg);
                        return -EINVAL;
                default:
                        return -EINVAL;
                }
        }
        if (o->engine && !known_engine(o->engine)) {
                fprintf(stderr, "diff: no engine is called \"%s\"\n", o->engine);
                return -EINVAL;
        }
        return 0;
}

static int set_up(struct diff *d, struct err *err)
{
        const struct options *o = &d->options;
        struct engine *interpreter = NULL;
        int r = interpreter_ops.new(&interpreter, o->model, err);

        if (r == 0)
                r = forms_new(&d->forms, o->code32, interpreter_isa_sets(interpreter), err);
        if (interpreter)
                interpreter_ops.free(interpreter);
        for (unsigned n = 0; n < ARRAY_SIZE(engines) && r == 0 && !o->list; n++)
                if (n == 0 || (!o->engine && n < FIRST_HOT) || (o->engine && !strcmp(o->engine, engines[n]->name)))
                        r = engines[n]->new (&d->engine[n], o->model, err);
        if (r == 0 && o->code32 && !o->list)
                r = native_try_code32(d->engine[0], err);
        forms_decoder(o->code32, &d->decoder);
        d->random.state = o->seed;
        return r;
}

/* All engines begin with the same numbers in memory. */
static void fill(struct diff *d)
{
        for (unsigned at = 0; at < DATA_BYTES; at += 8) {
                uint64_t value = random64(&d->random);

                for (unsigned n = 0; n < ARRAY_SIZE(engines); n++)
                        if (d->engine[n])
                                memcpy(d->engine[n]->data + at, &value, 8);
        }
}

static int run(struct diff *d)
{
        double start = now_s();
        int r = 0;

        d->unproved = bound_without_form(d);
        fill(d);
        if (d->options.sequences)
                run_sequences(d);
        else
                r = run_singles(d);
        printf("%" PRIu64 " cases of %" PRIu64 " instructions in %u-bit mode, %zu forms (%u mnemonics), seed %" PRIu64
               ": %" PRIu64 " mismatches in %" PRIu64 " forms; %" PRIu64 " exceptions; %.0f cases/s\n",
               d->cases, d->instructions, d->options.code32 ? 32 : 64, d->forms.count, mnemonics_tested(&d->forms),
               d->options.seed, d->mismatches, d->failed_forms, d->faults, (double)d->cases / (now_s() - start));
        return r < 0 || d->mismatches || d->unproved;
}

int main(int argc, char **argv)
{
        struct diff *d = aligned_alloc(64, align_up(sizeof(*d), 64));
        struct err err = ERR_INIT;
        int r;

        if (!d)
                return 1;
        memset(d, 0, sizeof(*d));
        if (parse(argc, argv, &d->options) < 0) {
                free(d);
                return 2;
        }
        r = set_up(d, &err);
        if (r < 0)
                fprintf(stderr, "diff: %s\n", err.text);
        if (r < 0)
                r = r == -ENOTSUP ? 77 : 1;
        else if (d->options.list)
                list(&d->forms, d->options.list == 'k');
        else
                r = run(d);
        for (unsigned n = 0; n < ARRAY_SIZE(engines); n++)
                if (d->engine[n])
                        engines[n]->free(d->engine[n]);
        forms_free(&d->forms);
        free(d);
        return r;
}
