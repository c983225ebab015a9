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

/* The commands that may come first, or second behind a group's name; NULL: the first ones. */
static void names(FILE *out, const struct opt_program *program, const struct opt_command *group)
{
        const char *between = "";

        for (unsigned i = 0; program->commands[i]; i++) {
                const char *second = strchr(program->commands[i]->name, ' ');

                if (group ? !opt_in_group(program->commands[i], group) : !!second)
                        continue;
                fprintf(out, "%s%s", between, group ? second + 1 : program->commands[i]->name);
                between = " ";
        }
}

static void bash_group(FILE *out, const struct opt_program *program, const struct opt_command *group)
{
        fprintf(out, "    '%s '*)\n      COMPREPLY=($(compgen -W '", group->name);
        names(out, program, group);
        fputs("' -- \"$cur\")) ;;\n", out);
}

static void bash_command(FILE *out, const struct opt_command *command)
{
        fprintf(out, "    '%s'%s)\n      case \"$prev\" in\n", command->name, strchr(command->name, ' ') ? "" : "' '*");
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
        names(out, program, NULL);
        fputs("' -- \"$cur\"))\n    return\n  fi\n  local second=\n  [ \"$COMP_CWORD\" -eq 2 ] || second=${COMP_WORDS[2]}\n"
              "  case \"${COMP_WORDS[1]} $second\" in\n", out);
        for (unsigned i = 0; program->commands[i]; i++)
                if (!program->commands[i]->group)
                        bash_command(out, program->commands[i]);
        for (unsigned i = 0; program->commands[i]; i++)
                if (program->commands[i]->group)
                        bash_group(out, program, program->commands[i]);
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

/* What to choose from behind `words` words. */
static void zsh_names(FILE *out, const struct opt_program *program, const struct opt_command *group, int words)
{
        fprintf(out, "    if (( CURRENT == %d )); then\n      commands=(\n", words + 1);
        for (unsigned i = 0; program->commands[i]; i++) {
                const char *second = strchr(program->commands[i]->name, ' ');

                if (group ? !opt_in_group(program->commands[i], group) : !!second)
                        continue;
                fprintf(out, "        '%s:", group ? second + 1 : program->commands[i]->name);
                quote_spec(out, program->commands[i]->summary);
                fputs("'\n", out);
        }
        fputs("      )\n      _describe command commands\n      return\n    fi\n", out);
}

static void zsh_command(FILE *out, const struct opt_command *command)
{
        const char *blank = strchr(command->name, ' ');

        fprintf(out, "    '%s'%s)\n      shift %d words\n      (( CURRENT -= %d ))\n      _arguments '--help[show the options]'", command->name,
                blank ? "" : "' '*", blank ? 2 : 1, blank ? 2 : 1);
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

static void zsh(FILE *out, const struct opt_program *program)
{
        fprintf(out, "#compdef %s\n_%s() {\n    local -a commands\n", program->name, program->name);
        zsh_names(out, program, NULL, 1);
        fputs("    case $words[2] in\n", out);
        for (unsigned i = 0; program->commands[i]; i++)
                if (program->commands[i]->group) {
                        fprintf(out, "    %s)\n", program->commands[i]->name);
                        zsh_names(out, program, program->commands[i], 2);
                        fputs("    ;;\n", out);
                }
        fputs("    esac\n    case \"$words[2] $words[3]\" in\n", out);
        for (unsigned i = 0; program->commands[i]; i++)
                if (!program->commands[i]->group)
                        zsh_command(out, program->commands[i]);
        fprintf(out, "    esac\n}\n_%s \"$@\"\n", program->name);
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

/* When a command's options are offered: its words were seen. */
static void fish_seen(FILE *out, const struct opt_program *program, const struct opt_command *command)
{
        const char *blank = strchr(command->name, ' ');

        fprintf(out, "complete -c %s -n '__fish_seen_subcommand_from %.*s", program->name, blank ? (int)(blank - command->name) : 99, command->name);
        if (blank)
                fprintf(out, "; and __fish_seen_subcommand_from %s", blank + 1);
        fputc('\'', out);
}

static void fish_name(FILE *out, const struct opt_program *program, const struct opt_command *command)
{
        const char *blank = strchr(command->name, ' ');

        if (!blank)
                fprintf(out, "complete -c %s -n __fish_use_subcommand -a %s -d ", program->name, command->name);
        else
                fprintf(out, "complete -c %s -n '__fish_seen_subcommand_from %.*s; and test (count (commandline -opc)) -eq 2' -a %s -d ", program->name,
                        (int)(blank - command->name), command->name, blank + 1);
        quote(out, command->summary);
        fputc('\n', out);
}

/* fish takes \' within single quotes; the texts have none, so the POSIX form does. */
static void fish(FILE *out, const struct opt_program *program)
{
        fprintf(out, "# fish completion for %s\ncomplete -c %s -f\n", program->name, program->name);
        for (unsigned i = 0; program->commands[i]; i++)
                fish_name(out, program, program->commands[i]);
        for (unsigned i = 0; program->commands[i]; i++) {
                const struct opt_command *command = program->commands[i];

                if (command->group)
                        continue;
                for (const struct opt *opt = command->options; opt->name; opt++) {
                        fish_seen(out, program, command);
                        fprintf(out, " -l %s", opt->name);
                        if (opt->argument)
                                fish_value(out, opt);
                        fputs(" -d ", out);
                        quote(out, opt->text);
                        fputc('\n', out);
                }
                for (const struct opt *operand = command->operands; operand && operand->argument; operand++) {
                        fish_seen(out, program, command);
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
