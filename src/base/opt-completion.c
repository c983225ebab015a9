/*
 * Completion scripts from the tables of opt.h. Each shell gets the commands, each command's options, and for an option's value
 * its choices, files or directories. Texts of the tables have no quotes that would need more care than quote() gives.
 */
#include "base/opt.h"

#include <errno.h>

const char *const opt_shells[] = { "bash", "zsh", "fish", NULL };

/* Within single quotes of a POSIX shell. */
static void quote(FILE *out, const char *text)
{
        fputc('\'', out);
        for (; *text; text++) {
                if (*text == '\'')
                        fputs("'\\''", out);
                else
                        fputc(*text, out);
        }
        fputc('\'', out);
}

/* As quote(), and without the characters that mean something to zsh's _arguments. */
static void quote_spec(FILE *out, const char *text)
{
        for (; *text; text++) {
                if (*text == '\'')
                        fputs("'\\''", out);
                else if (strchr("[]:\\", *text))
                        fprintf(out, "\\%c", *text);
                else
                        fputc(*text, out);
        }
}

static void words(FILE *out, const char *const *choices)
{
        for (unsigned i = 0; choices[i]; i++)
                fprintf(out, "%s%s", i ? " " : "", choices[i]);
}

static void bash_values(FILE *out, const struct opt *opt)
{
        if (opt->choices) {
                fputs("COMPREPLY=($(compgen -W '", out);
                words(out, opt->choices);
                fputs("' -- \"$cur\"))", out);
        } else if (opt->complete == OPT_COMPLETE_FILE) {
                fputs("COMPREPLY=($(compgen -f -- \"$cur\"))", out);
        } else if (opt->complete == OPT_COMPLETE_DIRECTORY) {
                fputs("COMPREPLY=($(compgen -d -- \"$cur\"))", out);
        } else {
                fputs("COMPREPLY=()", out);
        }
}

static void bash_command(FILE *out, const struct opt_command *command)
{
        fprintf(out, "    %s)\n      case \"$prev\" in\n", command->name);
        for (const struct opt *opt = command->options; opt->name; opt++) {
                if (!opt->argument)
                        continue;
                fprintf(out, "        --%s) ", opt->name);
                bash_values(out, opt);
                fputs("; return ;;\n", out);
        }
        fputs("      esac\n", out);
        if (command->operands && command->operands->argument) {
                fputs("      if [[ $cur != -* ]]; then ", out);
                bash_values(out, command->operands);
                fputs("; return; fi\n", out);
        }
        fputs("      COMPREPLY=($(compgen -W '", out);
        for (const struct opt *opt = command->options; opt->name; opt++)
                fprintf(out, "--%s ", opt->name);
        fputs("--help' -- \"$cur\")) ;;\n", out);
}

static void bash(FILE *out, const struct opt_program *program)
{
        fprintf(out,
                "# bash completion for %s\n_%s()\n{\n  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
                "  compopt -o filenames 2>/dev/null\n  if [ \"$COMP_CWORD\" -eq 1 ]; then\n    COMPREPLY=($(compgen -W '",
                program->name, program->name);
        for (unsigned i = 0; program->commands[i]; i++)
                fprintf(out, "%s%s", i ? " " : "", program->commands[i]->name);
        fputs("' -- \"$cur\"))\n    return\n  fi\n  case \"${COMP_WORDS[1]}\" in\n", out);
        for (unsigned i = 0; program->commands[i]; i++)
                bash_command(out, program->commands[i]);
        fprintf(out, "  esac\n}\ncomplete -F _%s %s\n", program->name, program->name);
}

static void zsh_value(FILE *out, const struct opt *opt)
{
        fputc(':', out);
        quote_spec(out, opt->argument);
        if (opt->choices) {
                fputs(":(", out);
                words(out, opt->choices);
                fputc(')', out);
        } else if (opt->complete == OPT_COMPLETE_FILE) {
                fputs(":_files", out);
        } else if (opt->complete == OPT_COMPLETE_DIRECTORY) {
                fputs(":_files -/", out);
        } else {
                fputs(": ", out);
        }
}

static void zsh(FILE *out, const struct opt_program *program)
{
        fprintf(out, "#compdef %s\n_%s() {\n  local -a commands\n  commands=(\n", program->name, program->name);
        for (unsigned i = 0; program->commands[i]; i++) {
                fprintf(out, "    '%s:", program->commands[i]->name);
                quote_spec(out, program->commands[i]->summary);
                fputs("'\n", out);
        }
        fprintf(out, "  )\n  if (( CURRENT == 2 )); then\n    _describe command commands\n    return\n  fi\n"
                     "  local command=$words[2]\n  shift words\n  (( CURRENT-- ))\n  case $command in\n");
        for (unsigned i = 0; program->commands[i]; i++) {
                const struct opt_command *command = program->commands[i];

                fprintf(out, "    %s)\n      _arguments '--help[show the options]'", command->name);
                for (const struct opt *opt = command->options; opt->name; opt++) {
                        fprintf(out, " \\\n        '%s--%s%s[", opt->repeated ? "*" : "", opt->name, opt->argument ? "=" : "");
                        quote_spec(out, opt->text);
                        fputc(']', out);
                        if (opt->argument)
                                zsh_value(out, opt);
                        fputc('\'', out);
                }
                for (const struct opt *operand = command->operands; operand && operand->argument; operand++) {
                        fprintf(out, " \\\n        '%ld%s", (long)(operand - command->operands) + 1, operand->required ? "" : ":");
                        zsh_value(out, operand);
                        fputc('\'', out);
                }
                fputs(" ;;\n", out);
        }
        fprintf(out, "  esac\n}\n_%s \"$@\"\n", program->name);
}

static void fish_value(FILE *out, const struct opt *opt)
{
        if (opt->choices) {
                fputs(" -x -a '", out);
                words(out, opt->choices);
                fputc('\'', out);
        } else if (opt->complete == OPT_COMPLETE_FILE) {
                fputs(" -r -F", out);
        } else if (opt->complete == OPT_COMPLETE_DIRECTORY) {
                fputs(" -x -a '(__fish_complete_directories)'", out);
        } else {
                fputs(" -x", out);
        }
}

/* fish takes \' within single quotes; the texts have none, so the POSIX form does. */
static void fish(FILE *out, const struct opt_program *program)
{
        fprintf(out, "# fish completion for %s\ncomplete -c %s -f\n", program->name, program->name);
        for (unsigned i = 0; program->commands[i]; i++) {
                fprintf(out, "complete -c %s -n __fish_use_subcommand -a %s -d ", program->name, program->commands[i]->name);
                quote(out, program->commands[i]->summary);
                fputc('\n', out);
        }
        for (unsigned i = 0; program->commands[i]; i++) {
                const struct opt_command *command = program->commands[i];

                for (const struct opt *opt = command->options; opt->name; opt++) {
                        fprintf(out, "complete -c %s -n '__fish_seen_subcommand_from %s' -l %s", program->name, command->name, opt->name);
                        if (opt->argument)
                                fish_value(out, opt);
                        fputs(" -d ", out);
                        quote(out, opt->text);
                        fputc('\n', out);
                }
                for (const struct opt *operand = command->operands; operand && operand->argument; operand++) {
                        fprintf(out, "complete -c %s -n '__fish_seen_subcommand_from %s'", program->name, command->name);
                        fish_value(out, operand);
                        fputc('\n', out);
                }
        }
}

int opt_completion(const struct opt_program *program, const char *shell, FILE *out)
{
        if (!strcmp(shell, "bash"))
                bash(out, program);
        else if (!strcmp(shell, "zsh"))
                zsh(out, program);
        else if (!strcmp(shell, "fish"))
                fish(out, program);
        else
                return -EINVAL;
        return 0;
}
