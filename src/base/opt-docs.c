/* Help for the terminal and man pages (man(7)) from the tables of opt.h. */
#include "base/opt.h"

#include <ctype.h>

#define HELP_COLUMN 28
#define HELP_WIDTH 96

/* Words of text from `column` on, later lines indented by `indent`. */
static void wrap(FILE *out, const char *text, unsigned column, unsigned indent)
{
        bool first = true;

        while (*text) {
                size_t length = strcspn(text, " \n");

                if (!first && (column + 1 + length > HELP_WIDTH)) {
                        fprintf(out, "\n%*s", (int)indent, "");
                        column = indent;
                } else if (!first) {
                        fputc(' ', out);
                        column++;
                }
                fwrite(text, 1, length, out);
                column += (unsigned)length;
                text += length;
                first = false;
                if (*text == '\n') {
                        fprintf(out, "\n%*s", (int)indent, "");
                        column = indent;
                        first = true;
                        text++;
                }
                while (*text == ' ')
                        text++;
        }
        fputc('\n', out);
}

/* The phrase with what the table knows beside it: choices and the default. */
static void full_text(const struct opt *opt, char *text, size_t size_bytes)
{
        size_t used = (size_t)snprintf(text, size_bytes, "%s", opt->text);

        if (opt->kind == OPT_CHOICE && used < size_bytes) {
                for (unsigned i = 0; opt->choices[i] && used < size_bytes; i++)
                        used += (size_t)snprintf(text + used, size_bytes - used, "%s%s", i ? ", " : ": ", opt->choices[i]);
        }
        if (opt->repeated && used < size_bytes)
                used += (size_t)snprintf(text + used, size_bytes - used, "; may be given several times");
        if (opt->fallback && used < size_bytes)
                snprintf(text + used, size_bytes - used, " (default: %s)", opt->fallback);
}

static void help_row(FILE *out, const char *term, const char *text)
{
        int used = fprintf(out, "  %s", term);

        if (used + 2 > HELP_COLUMN)
                fprintf(out, "\n%*s", HELP_COLUMN, "");
        else
                fprintf(out, "%*s", HELP_COLUMN - used, "");
        wrap(out, text, HELP_COLUMN, HELP_COLUMN);
}

static void help_options(FILE *out, const struct opt *options)
{
        char term[128], text[512];

        for (const struct opt *opt = options; opt->name; opt++) {
                snprintf(term, sizeof(term), "%s--%s%s%s", opt->letter ? (const char[]){ '-', opt->letter, ',', ' ', 0 } : "", opt->name,
                         opt->argument ? " " : "", opt->argument ? opt->argument : "");
                full_text(opt, text, sizeof(text));
                help_row(out, term, text);
        }
        help_row(out, "--help", "show this text");
}

static void help_sections(FILE *out, const struct opt_section *section)
{
        for (; section && section->title; section++) {
                fprintf(out, "\n%s:\n", section->title);
                if (section->text) {
                        fprintf(out, "  ");
                        wrap(out, section->text, 2, 2);
                }
                for (const struct opt_note *note = section->notes; note && note->term; note++)
                        help_row(out, note->term, note->text);
        }
}

static void usage_line(FILE *out, const struct opt_program *program, const struct opt_command *command)
{
        fprintf(out, "%s %s", program->name, command->name);
        for (const struct opt *opt = command->options; opt->name; opt++) {
                if (opt->required)
                        fprintf(out, " --%s %s", opt->name, opt->argument);
        }
        fprintf(out, " [OPTION]...");
        for (const struct opt *operand = command->operands; operand && operand->argument; operand++)
                fprintf(out, operand->required ? " %s" : " [%s]", operand->argument);
}

/* The commands of a group, by their second words; without one, the first words. */
static void help_commands(const struct opt_program *program, const struct opt_command *group, FILE *out)
{
        fprintf(out, "\nCommands:\n");
        for (unsigned i = 0; program->commands[i]; i++) {
                const char *second = strchr(program->commands[i]->name, ' ');

                if (group ? opt_in_group(program->commands[i], group) : !second)
                        help_row(out, group ? second + 1 : program->commands[i]->name, program->commands[i]->summary);
        }
}

static void help_group(const struct opt_program *program, const struct opt_command *group, FILE *out)
{
        fprintf(out, "Usage: %s %s COMMAND [OPTION]...\n\n", program->name, group->name);
        wrap(out, group->description, 0, 0);
        help_commands(program, group, out);
        help_sections(out, group->sections);
        fprintf(out, "\n'%s %s COMMAND --help' says more of one command.\n", program->name, group->name);
}

static void help_program(const struct opt_program *program, FILE *out)
{
        fprintf(out, "Usage: %s %sCOMMAND [OPTION]...\n\n", program->name, program->options ? "[OPTION]... " : "");
        wrap(out, program->description, 0, 0);
        help_commands(program, NULL, out);
        if (program->options) {
                fprintf(out, "\nOptions in front of the command:\n");
                help_options(out, program->options);
        }
        help_sections(out, program->sections);
        fprintf(out, "\n'%s COMMAND --help' says more of one command.\n", program->name);
}

void opt_help(const struct opt_program *program, const struct opt_command *command, FILE *out)
{
        char text[512];

        if (!command) {
                help_program(program, out);
                return;
        }
        if (command->group) {
                help_group(program, command, out);
                return;
        }
        fprintf(out, "Usage: ");
        usage_line(out, program, command);
        fprintf(out, "\n\n");
        wrap(out, command->description, 0, 0);
        if (command->operands) {
                fprintf(out, "\nOperands:\n");
                for (const struct opt *operand = command->operands; operand->argument; operand++) {
                        full_text(operand, text, sizeof(text));
                        help_row(out, operand->argument, text);
                }
        }
        fprintf(out, "\nOptions:\n");
        help_options(out, command->options);
        help_sections(out, command->sections);
}

/* Text as roff: backslashes, hyphens that shall stay hyphens, and dots and quotes that would start a request. */
static void roff(FILE *out, const char *text)
{
        bool line_start = true;

        for (; *text; text++) {
                if (line_start && (*text == '.' || *text == '\''))
                        fputs("\\&", out);
                if (*text == '\\')
                        fputs("\\e", out);
                else if (*text == '-')
                        fputs("\\-", out);
                else if (*text == '\n')
                        fputs("\n.PP\n", out);
                else
                        fputc(*text, out);
                line_start = *text == '\n';
        }
}

static void roff_line(FILE *out, const char *text)
{
        roff(out, text);
        fputc('\n', out);
}

static void roff_title(FILE *out, const char *title)
{
        fputs(".SH \"", out);
        for (; *title; title++)
                fputc(toupper((unsigned char)*title), out);
        fputs("\"\n", out);
}

static void man_sections(FILE *out, const struct opt_section *section)
{
        for (; section && section->title; section++) {
                roff_title(out, section->title);
                if (section->text)
                        roff_line(out, section->text);
                for (const struct opt_note *note = section->notes; note && note->term; note++) {
                        fputs(".TP\n.B ", out);
                        roff_line(out, note->term);
                        roff_line(out, note->text);
                }
        }
}

static void man_head(const struct opt_program *program, const struct opt_command *command, FILE *out)
{
        fprintf(out, ".\\\" Made by 'virta help --man' from the tables of options; do not edit.\n.TH \"");
        for (const char *at = program->name; *at; at++)
                fputc(toupper((unsigned char)*at), out);
        if (command)
                fputc('-', out);
        for (const char *at = command ? command->name : ""; *at; at++)
                fputc(*at == ' ' ? '-' : toupper((unsigned char)*at), out);
        fprintf(out, "\" 1 \"\" \"%s %s\" \"User commands\"\n.SH NAME\n", program->name, program->version);
        roff(out, program->name);
        if (command) {
                fputs("\\-", out);
                for (const char *at = command->name; *at; at++)
                        fputs(*at == ' ' ? "\\-" : (const char[]){ *at, 0 }, out);
        }
        fputs(" \\- ", out);
        roff_line(out, command ? command->summary : program->summary);
}

static void man_commands(const struct opt_program *program, const struct opt_command *group, FILE *out)
{
        fputs(".SH COMMANDS\n", out);
        for (unsigned i = 0; program->commands[i]; i++) {
                const char *second = strchr(program->commands[i]->name, ' ');

                if (group ? !opt_in_group(program->commands[i], group) : !!second)
                        continue;
                fputs(".TP\n.B ", out);
                roff_line(out, group ? second + 1 : program->commands[i]->name);
                roff_line(out, program->commands[i]->summary);
        }
}

static void man_see_also(const struct opt_program *program, const struct opt_command *group, FILE *out)
{
        const char *between = "";

        fputs(".SH \"SEE ALSO\"\n", out);
        for (unsigned i = 0; program->commands[i]; i++) {
                const char *name = program->commands[i]->name, *second = strchr(name, ' ');

                if (group ? !opt_in_group(program->commands[i], group) : !!second)
                        continue;
                fprintf(out, "%s.BR %s\\-%.*s%s%s (1)", between, program->name, second ? (int)(second - name) : 99, name, second ? "\\-" : "",
                        second ? second + 1 : "");
                between = ",\n";
        }
        fputc('\n', out);
}

static void man_options(const struct opt *options, FILE *out)
{
        char text[512];

        for (const struct opt *opt = options; opt->name; opt++) {
                fputs(".TP\n", out);
                if (opt->letter)
                        fprintf(out, "\\fB\\-%c\\fR, ", opt->letter);
                fputs("\\fB\\-\\-", out);
                roff(out, opt->name);
                fputs("\\fR", out);
                if (opt->argument) {
                        fputs(" \\fI", out);
                        roff(out, opt->argument);
                        fputs("\\fR", out);
                }
                fputc('\n', out);
                full_text(opt, text, sizeof(text));
                roff_line(out, text);
        }
        fputs(".TP\n\\fB\\-\\-help\\fR\nshow the options and end\n", out);
}

static void man_program(const struct opt_program *program, FILE *out)
{
        man_head(program, NULL, out);
        fprintf(out, ".SH SYNOPSIS\n.B %s\n.I COMMAND\n[\\fIOPTION\\fR]...\n.SH DESCRIPTION\n", program->name);
        roff_line(out, program->description);
        man_commands(program, NULL, out);
        if (program->options) {
                fputs(".SH \"OPTIONS IN FRONT OF THE COMMAND\"\n", out);
                man_options(program->options, out);
        }
        man_sections(out, program->sections);
        man_see_also(program, NULL, out);
}

static void man_group(const struct opt_program *program, const struct opt_command *group, FILE *out)
{
        man_head(program, group, out);
        fprintf(out, ".SH SYNOPSIS\n.B %s %s\n.I COMMAND\n[\\fIOPTION\\fR]...\n.SH DESCRIPTION\n", program->name, group->name);
        roff_line(out, group->description);
        man_commands(program, group, out);
        man_sections(out, group->sections);
        man_see_also(program, group, out);
}

void opt_man(const struct opt_program *program, const struct opt_command *command, FILE *out)
{
        char text[512];

        if (!command) {
                man_program(program, out);
                return;
        }
        if (command->group) {
                man_group(program, command, out);
                return;
        }
        man_head(program, command, out);
        fputs(".SH SYNOPSIS\n", out);
        for (const struct opt *opt = command->options;; opt++) {
                if (opt == command->options)
                        fprintf(out, ".B %s %s\n", program->name, command->name);
                if (!opt->name)
                        break;
                if (opt->required) {
                        fputs(".B ", out);
                        fputs("\\-\\-", out);
                        roff_line(out, opt->name);
                        fprintf(out, ".I %s\n", opt->argument);
                }
        }
        fputs("[\\fIOPTION\\fR]...\n", out);
        for (const struct opt *operand = command->operands; operand && operand->argument; operand++)
                fprintf(out, operand->required ? ".I %s\n" : "[\\fI%s\\fR]\n", operand->argument);
        fputs(".SH DESCRIPTION\n", out);
        roff_line(out, command->description);
        fputs(".SH OPTIONS\n", out);
        for (const struct opt *operand = command->operands; operand && operand->argument; operand++) {
                fprintf(out, ".TP\n.I %s\n", operand->argument);
                full_text(operand, text, sizeof(text));
                roff_line(out, text);
        }
        man_options(command->options, out);
        man_sections(out, command->sections);
        fprintf(out, ".SH \"SEE ALSO\"\n.BR %s (1)\n", program->name);
}
