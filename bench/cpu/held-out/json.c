/* Parses JSON text into a tree of allocated nodes, walks it, frees it: malloc, recursion, text to numbers. */
#include "../bench.h"

enum kind { NUL, TRUE, FALSE, NUMBER, STRING, ARRAY, OBJECT };

struct value {
        enum kind kind;
        struct value *next, *first; /* members of arrays and objects */
        char *key, *text;
        double number;
};

static const char *blanks(const char *p)
{
        while (*p == ' ' || *p == '\n')
                p++;
        return p;
}

static const char *string(const char *p, char **text)
{
        size_t size = 0, room = 16;
        char *to = malloc(room);

        for (p++; *p != '"'; p++) {
                char c = *p;

                if (c == '\\') {
                        p++;
                        c = *p == 'n' ? '\n' : *p == 't' ? '\t' : *p;
                }
                if (size + 2 > room)
                        to = realloc(to, room *= 2);
                to[size++] = c;
        }
        to[size] = 0;
        *text = to;
        return p + 1;
}

static const char *parse(const char *p, struct value **to)
{
        struct value *v = calloc(1, sizeof(*v)), **last = &v->first;

        *to = v;
        p = blanks(p);
        switch (*p) {
        case 'n': v->kind = NUL; return p + 4;
        case 't': v->kind = TRUE; return p + 4;
        case 'f': v->kind = FALSE; return p + 5;
        case '"': v->kind = STRING; return string(p, &v->text);
        case '[':
        case '{':
                v->kind = *p == '[' ? ARRAY : OBJECT;
                for (p = blanks(p + 1); *p != ']' && *p != '}'; p = blanks(p)) {
                        char *key = NULL;

                        if (v->kind == OBJECT)
                                p = blanks(blanks(string(p, &key)) + 1);
                        p = blanks(parse(p, last));
                        (*last)->key = key;
                        last = &(*last)->next;
                        if (*p == ',')
                                p = blanks(p + 1);
                }
                return p + 1;
        default:
                v->kind = NUMBER;
                v->number = strtod(p, (char **)&p);
                return p;
        }
}

static uint64_t walk(const struct value *v, uint64_t sum)
{
        sum = bench_mix(sum, (uint64_t)v->kind);
        if (v->key)
                sum = bench_mix_bytes(sum, v->key, strlen(v->key));
        if (v->text)
                sum = bench_mix_bytes(sum, v->text, strlen(v->text));
        if (v->kind == NUMBER)
                sum = bench_mix_double(sum, v->number);
        for (const struct value *m = v->first; m; m = m->next)
                sum = walk(m, sum);
        return sum;
}

static void drop(struct value *v)
{
        while (v) {
                struct value *next = v->next;

                drop(v->first);
                free(v->key);
                free(v->text);
                free(v);
                v = next;
        }
}

int main(int argc, char **argv)
{
        char *text = bench_alloc(1 << 20), *to = text;
        uint64_t seed = 109, sum = 0;
        double start;

        to += sprintf(to, "[");
        for (int n = 0; n < 2500; n++) {
                uint32_t r = bench_random(&seed);

                to += sprintf(to, "%s{\"id\": %d, \"name\": \"part\\n %u\", \"price\": %u.%02u, ", n ? ",\n " : "", n, r % 1000,
                              r % 499, r % 97);
                to += sprintf(to, "\"tags\": [\"a%u\", null, true, -%ue%d], \"size\": {\"x\": %u, \"y\": %u}}", r % 53,
                              r % 89 + 1, (int)(r % 19) - 9, r % 641, r % 479);
        }
        sprintf(to, "]");
        start = bench_now();
        for (int round = 0; round < 15; round++) {
                struct value *v;

                parse(text, &v);
                sum = walk(v, sum);
                drop(v);
        }
        return bench_report(argc, argv, bench_now() - start, sum);
}
