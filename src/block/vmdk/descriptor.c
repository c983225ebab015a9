/*
 * The descriptor of a VMDK image ("The Descriptor File"): lines of text, read strictly. Lines of KEY=VALUE that nobody here needs are passed
 * over; a line that is neither one of them, nor an extent, nor a comment, is an error.
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "block/vmdk/image.h"

/* ---- reading ---- */

struct reader {
        struct vmdk_text *text;
        const char *path;
        const char *start;
        unsigned line;
};

static int bad_line(const struct reader *reader, const char *what, struct err *err)
{
        return err_set(err, -EINVAL, "disk %s: line %u of its descriptor is damaged: %s", reader->path, reader->line, what);
}

static char *trim(char *text)
{
        size_t length;

        while (*text == ' ' || *text == '\t')
                text++;
        length = strlen(text);
        while (length && isspace((unsigned char)text[length - 1]))
                text[--length] = '\0';
        return text;
}

/* "NAME" with its quotation marks, at *at, which moves behind them; NULL: it is none. */
static char *take_quoted(char **at)
{
        char *text = *at, *end;

        if (*text != '"')
                return NULL;
        end = strchr(++text, '"');
        if (!end)
                return NULL;
        *end = '\0';
        *at = end + 1;
        return text;
}

static char *take_word(char **at)
{
        char *text = *at;

        while (**at && **at != ' ' && **at != '\t')
                ++*at;
        if (**at)
                *(*at)++ = '\0';
        *at = trim(*at);
        return text;
}

static bool take_number(char **at, uint64_t *value)
{
        char *word = take_word(at), *end;

        if (!isdigit((unsigned char)*word))
                return false;
        errno = 0;
        *value = strtoull(word, &end, 10);
        return !*end && errno == 0;
}

/* Only a name where the descriptor is: no folders, no devices. */
static int take_name(struct reader *reader, const char *name, struct vmdk_line *line, struct err *err)
{
        if (!name || !*name)
                return bad_line(reader, "an extent without a file's name", err);
        if (strchr(name, '/') || strchr(name, '\\') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strchr(name, ':'))
                return err_set(err, -EACCES, "disk %s: its extent '%s' is not where the descriptor is; only such are opened", reader->path, name);
        line->name = strdup(name);
        return line->name ? 0 : err_nomem(err);
}

/* RW 4192256 SPARSE "disk-s001.vmdk"; RW 63 FLAT "disk-flat.vmdk" 0; RW 63 ZERO */
static int parse_extent(struct reader *reader, char *at, const char *access, struct err *err)
{
        struct vmdk_text *text = reader->text;
        struct vmdk_line line = { .readonly = strcmp(access, "RDONLY") == 0 }, *more;
        const char *kind, *name;
        int r;

        if (strcmp(access, "NOACCESS") == 0)
                return err_set(err, -EACCES, "disk %s: line %u of its descriptor has an extent that nobody may read", reader->path, reader->line);
        if (!take_number(&at, &line.sectors) || !line.sectors || line.sectors > INT64_MAX / 1024)
                return bad_line(reader, "the size of an extent", err);
        kind = take_word(&at);
        if (text->lines == VMDK_EXTENTS_MAX)
                return bad_line(reader, "too many extents", err);
        if (strcmp(kind, "ZERO") == 0) {
                line.kind = VMDK_ZERO;
        } else {
                line.kind = strcmp(kind, "SPARSE") == 0 ? VMDK_SPARSE : VMDK_FLAT;
                if (line.kind == VMDK_FLAT && strcmp(kind, "FLAT") != 0 && strcmp(kind, "VMFS") != 0)
                        return err_set(err, -EOPNOTSUPP, "disk %s has an extent of kind '%.32s'; SPARSE, FLAT, VMFS and ZERO are known", reader->path, kind);
                name = take_quoted(&at);
                at = trim(at);
                if (line.kind == VMDK_FLAT && *at && !take_number(&at, &line.offset))
                        return bad_line(reader, "the place of an extent in its file", err);
                if (line.offset > INT64_MAX / 1024)
                        return bad_line(reader, "the place of an extent in its file", err);
                r = take_name(reader, name, &line, err);
                if (r < 0)
                        return r;
        }
        more = *at ? NULL : reallocarray(text->line, text->lines + 1, sizeof(*more));
        if (!more) {
                free(line.name);
                return *at ? bad_line(reader, "something behind an extent", err) : err_nomem(err);
        }
        text->line = more;
        text->line[text->lines++] = line;
        return 0;
}

/* A content ID: eight digits as a rule, which can be changed where they are. */
static int parse_cid(struct reader *reader, const char *value, uint32_t *cid, size_t *at, struct err *err)
{
        size_t length = strlen(value);

        if (!length || length > 8 || strspn(value, "0123456789abcdefABCDEF") != length)
                return bad_line(reader, "a content ID", err);
        *cid = (uint32_t)strtoul(value, NULL, 16);
        if (at && length == 8)
                *at = (size_t)(value - reader->start);
        return 0;
}

static int parse_value(struct reader *reader, const char *key, char *value, struct err *err)
{
        struct vmdk_text *text = reader->text;
        char *quoted = take_quoted(&value);
        const char *plain = quoted ? quoted : value;

        if (quoted && *trim(value))
                return bad_line(reader, "something behind a quoted value", err);
        if (strcasecmp(key, "CID") == 0)
                return parse_cid(reader, plain, &text->cid, &text->cid_at, err);
        if (strcasecmp(key, "parentCID") == 0)
                return parse_cid(reader, plain, &text->parent_cid, NULL, err);
        if (strcasecmp(key, "version") == 0 && (strlen(plain) != 1 || *plain < '1' || *plain > '4'))
                return bad_line(reader, "an unknown version", err);
        if (strcasecmp(key, "createType") == 0) {
                if (strlen(plain) >= sizeof(text->type))
                        return bad_line(reader, "a createType", err);
                strcpy(text->type, plain);
        }
        if (strcasecmp(key, "parentFileNameHint") == 0) {
                if (text->parent || !*plain)
                        return bad_line(reader, "a parentFileNameHint", err);
                text->parent = strdup(plain);
                return text->parent ? 0 : err_nomem(err);
        }
        return 0;
}

static int parse_line(struct reader *reader, char *line, struct err *err)
{
        char *equals, *at = trim(line), *rest = at;

        if (!*at || *at == '#')
                return 0;
        if (strncmp(at, "RW ", 3) == 0 || strncmp(at, "RDONLY ", 7) == 0 || strncmp(at, "NOACCESS ", 9) == 0) {
                const char *access = take_word(&rest);

                return parse_extent(reader, rest, access, err);
        }
        equals = strchr(at, '=');
        if (!equals || equals == at)
                return bad_line(reader, "neither an extent nor KEY=VALUE", err);
        *equals = '\0';
        return parse_value(reader, trim(at), trim(equals + 1), err);
}

int vmdk_parse_text(struct vmdk_text *text, const char *path, const uint8_t *bytes, size_t size_bytes, struct err *err)
{
        struct reader reader = { .text = text, .path = path };
        size_t length = strnlen((const char *)bytes, size_bytes);
        _cleanup_free_ char *copy = malloc(length + 1);
        char *next = copy;
        int r = 0;

        if (!copy)
                return err_nomem(err);
        memcpy(copy, bytes, length);
        copy[length] = '\0';
        reader.start = copy;
        text->parent_cid = VMDK_NO_PARENT;
        while (next && *next && r == 0) {
                char *line = next;

                next = strchr(line, '\n');
                if (next)
                        *next++ = '\0';
                reader.line++;
                r = parse_line(&reader, line, err);
        }
        if (r == 0 && !text->type[0])
                r = err_set(err, -EINVAL, "disk %s: its descriptor does not say of which kind it is (createType)", path);
        return r;
}

void vmdk_text_done(struct vmdk_text *text)
{
        for (unsigned n = 0; n < text->lines; n++)
                free(text->line[n].name);
        free(text->line);
        free(text->parent);
}

/* ---- writing ---- */

static void print_line(FILE *out, const struct vmdk_line *line)
{
        static const char *const kinds[] = { "SPARSE", "FLAT", "ZERO" };

        fprintf(out, "RW %" PRIu64 " %s", line->sectors, kinds[line->kind]);
        if (line->kind != VMDK_ZERO)
                fprintf(out, " \"%s\"", line->name);
        if (line->kind == VMDK_FLAT)
                fprintf(out, " %" PRIu64, line->offset);
        fputc('\n', out);
}

char *vmdk_make_text(const struct vmdk_make *make)
{
        bool ide = strcmp(make->adapter, "ide") == 0;
        uint64_t heads = ide ? 16 : 255, cylinders = make->sectors / (heads * 63);
        char *text = NULL;
        size_t size_bytes;
        FILE *out = open_memstream(&text, &size_bytes);
        bool failed;

        if (!out)
                return NULL;
        fprintf(out, "# Disk DescriptorFile\nversion=1\nCID=%08x\nparentCID=%08x\ncreateType=\"%s\"\n", make->cid, make->parent_cid, make->type);
        if (make->parent)
                fprintf(out, "parentFileNameHint=\"%s\"\n", make->parent);
        fprintf(out, "\n# Extent description\n");
        for (unsigned n = 0; n < make->lines; n++)
                print_line(out, &make->line[n]);
        fprintf(out,
                "\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"%" PRIu64 "\"\nddb.geometry.heads = \"%" PRIu64
                "\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"%s\"\n",
                ide ? MIN(cylinders, UINT64_C(16383)) : cylinders, heads, make->adapter);
        failed = ferror(out);
        if (fclose(out) == 0 && !failed)
                return text;
        free(text);
        return NULL;
}
