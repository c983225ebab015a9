/* New VMDK images. Tables of sparse extents are there from the beginning, twice, as VMware has it; flat extents are files with holes. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/random.h>

#include "block/block-file.h"
#include "block/vmdk/image.h"

#define TEXT_SECTORS 20u
#define PIECE_SECTORS UINT64_C(4192256) /* of 2 GiB, the sectors that VMware puts into one */
#define TABLE_SECTORS (VMDK_TABLE_ENTRIES * 4 / VMDK_SECTOR)

const struct block_option_about vmdk_options[] = {
        { "subformat", "NAME", "monolithicSparse, monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat, streamOptimized; default: monolithicSparse" },
        { "adapter_type", "NAME", "ide, lsilogic, buslogic, legacyESX; default: ide" },
        { "zeroed_grain", "on|off", "grains may be said to be zeroes in front of a backing file; default: off" },
        { NULL, NULL, NULL },
};

static const char *const subformats[] = { "monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized", NULL };
static const char *const adapters[] = { "ide", "lsilogic", "buslogic", "legacyESX", NULL };
enum subformat { MONOLITHIC_SPARSE, MONOLITHIC_FLAT, SPLIT_SPARSE, SPLIT_FLAT, STREAM };

struct making {
        struct block *file;
        const struct block_creation *creation;
        int subformat, adapter;
        bool zeroed;
        uint64_t sectors;
        uint32_t parent_cid;
        struct vmdk_line *line;
        unsigned lines, made; /* made: extents that are files now */
};

static int choose(const struct block_option *o, const char *const names[], const char *wanted, int *which, struct err *err)
{
        for (int n = 0; names[n]; n++)
                if (strcmp(o->value, names[n]) == 0) {
                        *which = n;
                        return 0;
                }
        return mapped_bad_option(o, wanted, err);
}

static int take_option(struct making *m, const struct block_option *o, struct err *err)
{
        if (strcmp(o->key, "subformat") == 0)
                return choose(o, subformats, vmdk_options[0].text, &m->subformat, err);
        if (strcmp(o->key, "adapter_type") == 0)
                return choose(o, adapters, vmdk_options[1].text, &m->adapter, err);
        if (strcmp(o->key, "zeroed_grain") == 0)
                return mapped_option_switch(o, "off", "on", &m->zeroed, err);
        return err_set(err, -EINVAL, "option %s: VMDK has none of this name", o->key);
}

void vmdk_put_header(const struct vmdk_header *h, uint8_t bytes[VMDK_SECTOR])
{
        memset(bytes, 0, VMDK_SECTOR);
        put_le32(bytes, VMDK_MAGIC);
        put_le32(bytes + 4, h->version);
        put_le32(bytes + 8, h->flags);
        put_le64(bytes + 12, h->capacity);
        put_le64(bytes + 20, h->grain);
        put_le64(bytes + 28, h->text_offset);
        put_le64(bytes + 36, h->text_sectors);
        put_le32(bytes + 44, h->table_entries);
        put_le64(bytes + 48, h->redundant_offset);
        put_le64(bytes + 56, h->directory_offset);
        put_le64(bytes + 64, h->overhead);
        put_letters(bytes + 73, "\n \r\n");
        put_le16(bytes + 77, h->compression);
}

/* A directory, and behind it its tables, which stay holes. */
static int put_directory(struct block *file, uint64_t sector, uint64_t entries, uint64_t first_table)
{
        uint8_t bytes[4096];
        int r = 0;

        for (uint64_t n = 0; n < entries && r == 0;) {
                uint64_t count = MIN(entries - n, (uint64_t)sizeof(bytes) / 4);

                for (uint64_t k = 0; k < count; k++)
                        put_le32(bytes + k * 4, (uint32_t)(first_table + (n + k) * TABLE_SECTORS));
                r = block_write(file, sector * VMDK_SECTOR + n * 4, bytes, count * 4);
                n += count;
        }
        return r;
}

static int make_sparse(const struct making *m, struct block *file, uint64_t sectors, const char *text, struct err *err)
{
        uint64_t grains = (sectors + VMDK_GRAIN_SECTORS - 1) / VMDK_GRAIN_SECTORS, entries = (grains + VMDK_TABLE_ENTRIES - 1) / VMDK_TABLE_ENTRIES;
        uint64_t directory = (entries * 4 + VMDK_SECTOR - 1) / VMDK_SECTOR, tables = entries * TABLE_SECTORS;
        struct vmdk_header h = {
                .version = m->zeroed ? 2 : 1, .flags = VMDK_FLAG_NEWLINES | VMDK_FLAG_REDUNDANT | (m->zeroed ? VMDK_FLAG_ZEROED : 0), .capacity = sectors,
                .grain = VMDK_GRAIN_SECTORS, .text_offset = text ? 1 : 0, .text_sectors = text ? TEXT_SECTORS : 0, .table_entries = VMDK_TABLE_ENTRIES,
                .redundant_offset = 1 + TEXT_SECTORS,
        };
        uint8_t bytes[VMDK_SECTOR];
        int r;

        h.directory_offset = h.redundant_offset + directory + tables;
        h.overhead = align_up(h.directory_offset + directory + tables, VMDK_GRAIN_SECTORS);
        if (h.overhead > UINT32_MAX - VMDK_GRAIN_SECTORS)
                return err_set(err, -EFBIG, "%" PRIu64 " bytes are more than one extent can have; say -o subformat=twoGbMaxExtentSparse",
                               sectors * VMDK_SECTOR);
        r = block_make_empty(file, h.overhead * VMDK_SECTOR, err);
        if (r < 0)
                return r;
        r = put_directory(file, h.redundant_offset, entries, h.redundant_offset + directory);
        if (r == 0)
                r = put_directory(file, h.directory_offset, entries, h.directory_offset + directory);
        if (r == 0 && text)
                r = block_write(file, VMDK_SECTOR, text, strlen(text));
        if (r == 0)
                r = block_flush(file);
        vmdk_put_header(&h, bytes);
        if (r == 0)
                r = block_write(file, 0, bytes, sizeof(bytes));
        return r < 0 ? err_errno(err, r, "cannot write") : 0;
}

/* One that is empty: a directory that names nothing, a footer, the end. Whoever writes to it begins where the directory is now. */
static int make_stream(struct block *file, uint64_t sectors, const char *text, struct err *err)
{
        uint64_t grains = (sectors + VMDK_GRAIN_SECTORS - 1) / VMDK_GRAIN_SECTORS, entries = (grains + VMDK_TABLE_ENTRIES - 1) / VMDK_TABLE_ENTRIES;
        uint64_t directory = (entries * 4 + VMDK_SECTOR - 1) / VMDK_SECTOR;
        struct vmdk_header h = {
                .version = 3, .flags = VMDK_FLAG_NEWLINES | VMDK_FLAG_COMPRESSED | VMDK_FLAG_MARKERS, .capacity = sectors, .grain = VMDK_GRAIN_SECTORS,
                .text_offset = 1, .text_sectors = TEXT_SECTORS, .table_entries = VMDK_TABLE_ENTRIES, .directory_offset = VMDK_AT_END,
                .overhead = VMDK_GRAIN_SECTORS, .compression = 1,
        };
        uint8_t bytes[VMDK_SECTOR], end[4 * VMDK_SECTOR] = { 0 };
        uint64_t at = h.overhead * VMDK_SECTOR;
        int r = block_make_empty(file, at + directory * VMDK_SECTOR + sizeof(end), err);

        if (r < 0)
                return r;
        vmdk_put_header(&h, bytes);
        r = block_write(file, 0, bytes, sizeof(bytes));
        if (r == 0)
                r = block_write(file, VMDK_SECTOR, text, strlen(text));
        put_le64(end, directory); /* the directory's marker; itself it is zeroes */
        put_le32(end + 12, VMDK_DIRECTORY);
        if (r == 0)
                r = block_write(file, at, end, VMDK_SECTOR);
        memset(end, 0, VMDK_SECTOR);
        put_le64(end + VMDK_SECTOR, 1);
        put_le32(end + VMDK_SECTOR + 12, VMDK_FOOTER);
        h.directory_offset = h.overhead + 1;
        vmdk_put_header(&h, end + 2 * VMDK_SECTOR);
        if (r == 0)
                r = block_write(file, at + (1 + directory) * VMDK_SECTOR, end + VMDK_SECTOR, 3 * VMDK_SECTOR);
        return r < 0 ? err_errno(err, r, "cannot write") : 0;
}

/* ---- extents that are files of their own ---- */

static bool in_pieces(const struct making *m)
{
        return m->subformat == SPLIT_SPARSE || m->subformat == SPLIT_FLAT;
}

static bool is_flat(const struct making *m)
{
        return m->subformat == MONOLITHIC_FLAT || m->subformat == SPLIT_FLAT;
}

/* disk.vmdk: disk-flat.vmdk, or disk-s001.vmdk, disk-f001.vmdk and so on. */
static char *name_of(const struct making *m, unsigned n)
{
        const char *slash = strrchr(m->file->path, '/'), *base = slash ? slash + 1 : m->file->path, *dot = strrchr(base, '.');
        int stem = dot && dot != base ? (int)(dot - base) : (int)strlen(base);
        const char *suffix = dot && dot != base ? dot : "";
        char *name;
        int r;

        if (m->subformat == MONOLITHIC_SPARSE || m->subformat == STREAM)
                return strdup(base);
        if (m->subformat == MONOLITHIC_FLAT)
                r = asprintf(&name, "%.*s-flat%s", stem, base, suffix);
        else
                r = asprintf(&name, "%.*s-%c%03u%s", stem, base, m->subformat == SPLIT_FLAT ? 'f' : 's', n + 1, suffix);
        return r < 0 ? NULL : name;
}

static int plan_lines(struct making *m, struct err *err)
{
        uint64_t piece = in_pieces(m) ? PIECE_SECTORS : m->sectors, left = m->sectors;

        if ((m->sectors + piece - 1) / piece > VMDK_EXTENTS_MAX)
                return err_set(err, -EFBIG, "%" PRIu64 " bytes would be more than %u pieces of 2 GiB", m->sectors * VMDK_SECTOR, VMDK_EXTENTS_MAX);
        m->line = calloc((m->sectors + piece - 1) / piece, sizeof(*m->line));
        if (!m->line)
                return err_nomem(err);
        for (; left; left -= m->line[m->lines++].sectors) {
                struct vmdk_line *line = &m->line[m->lines];

                line->kind = is_flat(m) ? VMDK_FLAT : VMDK_SPARSE;
                line->sectors = MIN(left, piece);
                line->name = name_of(m, m->lines);
                if (!line->name)
                        return err_nomem(err);
        }
        return 0;
}

static char *path_of(const struct making *m, const char *name)
{
        const char *slash = strrchr(m->file->path, '/');
        char *path;

        return asprintf(&path, "%.*s%s", slash ? (int)(slash - m->file->path) + 1 : 0, m->file->path, name) < 0 ? NULL : path;
}

/* Of somebody else's file not a byte is changed: a piece must not be there yet, unless the image itself is to be replaced. */
static int make_piece(struct making *m, const struct vmdk_line *line, struct err *err)
{
        _cleanup_free_ char *path = path_of(m, line->name);
        struct block_opening opening = { .loop = m->file->loop, .path = path };
        struct block *file;
        int fd, r;

        if (!path)
                return err_nomem(err);
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | (m->creation->overwrite ? 0 : O_EXCL), 0666);
        if (fd < 0)
                return err_errno(err, -errno, "cannot make %s", path);
        close(fd);
        m->made++;
        r = block_file.open(&opening, &file, err);
        if (r < 0)
                return r;
        r = line->kind == VMDK_FLAT ? block_make_empty(file, line->sectors * VMDK_SECTOR, err) : make_sparse(m, file, line->sectors, NULL, err);
        if (r == 0) {
                r = block_flush(file);
                if (r < 0)
                        r = err_errno(err, r, "cannot write %s", path);
        }
        block_close(file);
        return r;
}

static int make_pieces(struct making *m, const char *text, struct err *err)
{
        int r = 0;

        for (unsigned n = 0; n < m->lines && r == 0; n++)
                r = make_piece(m, &m->line[n], err);
        if (r == 0)
                r = block_make_empty(m->file, 0, err);
        if (r == 0) {
                r = block_write(m->file, 0, text, strlen(text));
                if (r == 0 && m->file->info.grows) /* to the byte: it is a text */
                        r = block_resize(m->file, strlen(text), NULL);
                if (r < 0)
                        r = err_errno(err, r, "cannot write");
        }
        for (unsigned n = 0; n < m->made && r < 0 && !m->creation->overwrite; n++) {
                _cleanup_free_ char *path = path_of(m, m->line[n].name);

                if (path)
                        unlink(path);
        }
        return r;
}

/* ---- what it lies on ---- */

static int look_at_parent(struct making *m, struct err *err)
{
        struct block_opening front = { .loop = m->file->loop, .path = m->file->path, .flags = BLOCK_OPEN_READONLY | BLOCK_OPEN_ANY_BACKING };
        struct block *parent;
        int r;

        if (m->subformat == STREAM || is_flat(m))
                return err_set(err, -EINVAL, "a %s image has no backing file", subformats[m->subformat]);
        if (m->creation->backing_format && strcmp(m->creation->backing_format, "vmdk") != 0)
                return err_set(err, -EINVAL, "the backing file of a VMDK image is one, too, not %s", m->creation->backing_format);
        if (strpbrk(m->creation->backing, "\"\n\r"))
                return err_set(err, -EINVAL, "the backing file's name has a quotation mark or a line feed");
        r = block_open_backing(&front, m->creation->backing, "vmdk", &parent, err);
        if (r < 0)
                return r;
        m->parent_cid = to_vmdk(to_mapped(parent))->text.cid;
        block_close(parent);
        return 0;
}

static int make(struct making *m, struct err *err)
{
        struct vmdk_make text_of = { .type = subformats[m->subformat], .adapter = adapters[m->adapter], .parent = m->creation->backing };
        _cleanup_free_ char *text = NULL;
        int r = plan_lines(m, err);

        if (r < 0)
                return r;
        if (getrandom(&text_of.cid, sizeof(text_of.cid), 0) != (ssize_t)sizeof(text_of.cid))
                return err_set(err, -EIO, "cannot make a number for the image");
        text_of.cid -= text_of.cid == VMDK_NO_PARENT;
        text_of.parent_cid = m->parent_cid;
        text_of.sectors = m->sectors;
        text_of.line = m->line;
        text_of.lines = m->lines;
        text = vmdk_make_text(&text_of);
        if (!text)
                return err_nomem(err);
        if (m->subformat != MONOLITHIC_SPARSE && m->subformat != STREAM)
                return make_pieces(m, text, err);
        if (strlen(text) > TEXT_SECTORS * VMDK_SECTOR)
                return err_set(err, -ENAMETOOLONG, "the names are too long for the descriptor");
        return m->subformat == STREAM ? make_stream(m->file, m->sectors, text, err) : make_sparse(m, m->file, m->sectors, text, err);
}

int vmdk_create(struct block *file, const struct block_creation *creation, struct err *err)
{
        struct making m = { .file = file, .creation = creation, .parent_cid = VMDK_NO_PARENT };
        int r = 0;

        m.sectors = align_up(creation->size_bytes, VMDK_SECTOR) / VMDK_SECTOR;
        for (unsigned n = 0; n < creation->options && r == 0; n++)
                r = take_option(&m, &creation->option[n], err);
        if (r == 0 && creation->backing)
                r = look_at_parent(&m, err);
        if (r == 0 && strpbrk(file->path, "\"\n\r"))
                r = err_set(err, -EINVAL, "its name has a quotation mark or a line feed, which a descriptor cannot have");
        if (r == 0)
                r = make(&m, err);
        for (unsigned n = 0; n < m.lines; n++)
                free(m.line[n].name);
        free(m.line);
        return r;
}
