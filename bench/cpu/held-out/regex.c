/* A backtracking matcher of regular expressions (. * + ? [] | () ^ $) over generated lines: recursion, bytes, branches. */
#include "../bench.h"

static const char *alternatives(const char *re, const char *end, const char *text, const char *rest, const char *rest_end);

/* The end of the atom at `re`. */
static const char *atom_end(const char *re)
{
        int depth = 0;

        if (*re == '[')
                return strchr(re + 1, ']') + 1;
        if (*re != '(')
                return re + (*re == '\\' ? 2 : 1);
        do {
                depth += (*re == '(') - (*re == ')');
                re++;
        } while (depth);
        return re;
}

static int one(const char *re, char c)
{
        int found = 0, negated;

        if (!c)
                return 0;
        if (*re == '.')
                return 1;
        if (*re == '\\')
                return re[1] == 'd' ? c >= '0' && c <= '9' : re[1] == 'w' ? (c >= 'a' && c <= 'z') || c == '_' : c == re[1];
        if (*re != '[')
                return c == *re;
        negated = re[1] == '^';
        for (re += 1 + negated; *re != ']'; re++) {
                if (re[1] == '-' && re[2] != ']') {
                        found |= c >= re[0] && c <= re[2];
                        re += 2;
                } else {
                        found |= c == *re;
                }
        }
        return found != negated;
}

/* Matches re..end and after it rest..rest_end; returns the end of the match or NULL. */
static const char *sequence(const char *re, const char *end, const char *text, const char *rest, const char *rest_end)
{
        const char *next, *match;
        char repeat;

        if (re == end)
                return rest ? sequence(rest, rest_end, text, NULL, NULL) : text;
        if (*re == '$' && re + 1 == end)
                return *text ? NULL : text;
        next = atom_end(re);
        repeat = next < end ? *next : 0;
        if (*re == '(') /* groups repeat nowhere here */
                return alternatives(re + 1, next - 1, text, next, end);
        if (repeat == '?') {
                match = one(re, *text) ? sequence(next + 1, end, text + 1, rest, rest_end) : NULL;
                return match ? match : sequence(next + 1, end, text, rest, rest_end);
        }
        if (repeat == '*' || repeat == '+') {
                const char *from = text + (repeat == '+'), *to = text;

                while (one(re, *to))
                        to++;
                for (; to >= from; to--) {
                        match = sequence(next + 1, end, to, rest, rest_end);
                        if (match)
                                return match;
                }
                return NULL;
        }
        return one(re, *text) ? sequence(next, end, text + 1, rest, rest_end) : NULL;
}

static const char *alternatives(const char *re, const char *end, const char *text, const char *rest, const char *rest_end)
{
        while (re <= end) {
                const char *bar = re, *match;

                while (bar < end && *bar != '|')
                        bar = atom_end(bar);
                match = sequence(re, bar, text, rest, rest_end);
                if (match)
                        return match;
                re = bar + 1;
        }
        return NULL;
}

static BENCH_NOINLINE uint64_t search(const char *re, const char *text)
{
        const char *end = re + strlen(re);
        uint64_t sum = 0;

        for (uint64_t at = 0; text[at]; at++) {
                const char *match = sequence(re, end, text + at, NULL, NULL);

                if (!match)
                        continue;
                sum = bench_mix(sum, at * 1000 + (uint64_t)(match - text));
                if (match > text + at)
                        at = (uint64_t)(match - text) - 1;
        }
        return sum;
}

int main(int argc, char **argv)
{
        static const char *const expressions[] = {
                "\\d+\\.\\d+\\.\\d+", "[a-f]+(x|y|z)\\d", "(error|warning|note): [^ ]+ ", "\\w+_\\w+", "a.*b.*c\\d", "q?u?i?x+$",
        };
        static const char *const words[] = {
                "error: ", "warning: ", "note: ", "disk_full ", "10.0.3 ", "abcx7 ", "dead_beef ", "quix",
        };
        char (*lines)[128] = bench_alloc(400 * sizeof(*lines));
        uint64_t seed = 103, sum = 0;
        double start;

        for (int n = 0; n < 400; n++) {
                lines[n][0] = 0;
                while (strlen(lines[n]) < 90)
                        strcat(lines[n], words[bench_random(&seed) % 8]);
        }
        start = bench_now();
        for (int round = 0; round < 8; round++)
                for (int n = 0; n < 400; n++)
                        for (int e = 0; e < 6; e++)
                                sum = bench_mix(sum, search(expressions[e], lines[n]));
        return bench_report(argc, argv, bench_now() - start, sum);
}
