/* VMDK images: extents and requests on them; see image.h. */
#include "block/vmdk/image.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/random.h>

#include "base/cursor.h"

#define GRAIN_SECTORS_MIN 8u
#define GRAIN_SECTORS_MAX 32768u
#define CAPACITY_MAX (INT64_MAX / 1024)
#define DIRECTORY_MAX (UINT64_C(1) << 26)

/* ---- tables ---- */

bool vmdk_table_good(const struct vmdk_extent *e, uint32_t sector)
{
        return sector && (uint64_t)sector * VMDK_SECTOR + e->header.table_entries * 4ull <= MAX(e->file->info.size_bytes, e->end);
}

/* The last one may be cut where its extent ends. */
bool vmdk_grain_good(const struct vmdk_extent *e, uint32_t sector)
{
        return sector && (uint64_t)sector * VMDK_SECTOR < MAX(e->file->info.size_bytes, e->end);
}

int vmdk_directory_entry(struct vmdk *v, const struct vmdk_extent *e, bool redundant, uint64_t n, bool wait, uint32_t *sector)
{
        uint64_t directory = redundant ? e->header.redundant_offset : e->header.directory_offset;
        int r = mapped_entry(&v->m, e->file, directory * VMDK_SECTOR + n * 4, 4, wait, sector);

        if (r == 0 && *sector && !vmdk_table_good(e, *sector))
                return mapped_corrupt(&v->m, "%s's table %" PRIu64 " is said to be at sector %" PRIu32, e->file->path, n, *sector);
        return r;
}

int vmdk_table_entry(struct vmdk *v, const struct vmdk_extent *e, uint32_t table, uint64_t grain, bool wait, uint32_t *entry)
{
        return mapped_entry(&v->m, e->file, (uint64_t)table * VMDK_SECTOR + grain % e->header.table_entries * 4, 4, wait, entry);
}

static int grain_entry(struct vmdk *v, const struct vmdk_extent *e, uint64_t grain, bool wait, uint32_t *entry)
{
        uint64_t n = grain / e->header.table_entries;
        uint32_t table;
        int r;

        if (v->stream && n == v->stream->table_index) {
                *entry = v->stream->table[grain % e->header.table_entries];
                return 0;
        }
        if (v->stream) {
                table = v->stream->directory[n];
                r = 0;
        } else {
                r = vmdk_directory_entry(v, e, false, n, wait, &table);
        }
        *entry = 0;
        if (r == 0 && table)
                r = vmdk_table_entry(v, e, table, grain, wait, entry);
        if (r == 0 && *entry && !vmdk_is_zeroed(e, *entry) && !vmdk_grain_good(e, *entry))
                return mapped_corrupt(&v->m, "%s's grain %" PRIu64 " is said to be at sector %" PRIu32, e->file->path, grain, *entry);
        return r;
}

/* ---- requests ---- */

static struct vmdk_extent *extent_at(struct vmdk *v, uint64_t at)
{
        unsigned low = 0, high = v->extents;

        while (high - low > 1) {
                unsigned middle = (low + high) / 2;

                if (v->extent[middle].first <= at)
                        low = middle;
                else
                        high = middle;
        }
        return &v->extent[low];
}

static enum mapped_kind kind_of(const struct vmdk_extent *e, uint32_t entry)
{
        return !entry                                       ? MAPPED_ABSENT
               : vmdk_is_zeroed(e, entry)                   ? MAPPED_ZEROES
               : e->header.flags & VMDK_FLAG_COMPRESSED     ? MAPPED_PACKED
                                                            : MAPPED_DATA;
}

static int map_sparse(struct vmdk *v, struct vmdk_extent *e, uint64_t at, uint64_t size_bytes, bool wait, struct mapped_run *run)
{
        uint64_t grain = at / e->grain_bytes, inside = at % e->grain_bytes, known = e->grain_bytes - inside;
        uint32_t first, next;
        int r = grain_entry(v, e, grain, wait, &first);

        if (r < 0)
                return r;
        *run = (struct mapped_run){ .kind = kind_of(e, first), .in = e->file };
        if (run->kind == MAPPED_DATA || run->kind == MAPPED_PACKED)
                run->host = (uint64_t)first * VMDK_SECTOR + (run->kind == MAPPED_DATA ? inside : 0);
        for (uint64_t n = 1; known < size_bytes && run->kind != MAPPED_PACKED; n++, known += e->grain_bytes) {
                /* What is in memory is enough to know of. */
                if (grain_entry(v, e, grain + n, false, &next) < 0 || kind_of(e, next) != run->kind)
                        break;
                if (run->kind == MAPPED_DATA && next != first + n * e->header.grain)
                        break;
        }
        run->size_bytes = MIN(known, size_bytes);
        return 0;
}

static int vmdk_map(struct mapped *m, uint64_t at, uint64_t size_bytes, bool wait, struct mapped_run *run)
{
        struct vmdk *v = to_vmdk(m);
        struct vmdk_extent *e = extent_at(v, at);

        at -= e->first;
        size_bytes = MIN(size_bytes, e->size_bytes - at);
        if (e->kind == VMDK_SPARSE)
                return map_sparse(v, e, at, size_bytes, wait, run);
        *run = (struct mapped_run){
                .kind = e->kind == VMDK_FLAT ? MAPPED_DATA : MAPPED_ZEROES, .size_bytes = size_bytes, .in = e->file, .host = e->offset + at,
        };
        return 0;
}

/* At the end of the extent. */
static int take_space(struct vmdk_extent *e, uint64_t size_bytes, uint64_t alignment, uint64_t *at)
{
        uint64_t start = align_up(e->end, alignment);

        if (start + size_bytes > (uint64_t)UINT32_MAX * VMDK_SECTOR)
                return -EFBIG;
        if (!e->file->info.grows && start + size_bytes > e->file->info.size_bytes)
                return -ENOSPC;
        *at = start;
        return 0;
}

/* A table of zeroes, in one directory. */
static int add_table(struct vmdk *v, struct vmdk_extent *e, bool redundant, uint64_t n)
{
        uint64_t directory = redundant ? e->header.redundant_offset : e->header.directory_offset, size_bytes = e->header.table_entries * 4ull, at;
        _cleanup_free_ uint8_t *zeroes = calloc(1, size_bytes);
        uint8_t entry[4];
        int r = zeroes ? take_space(e, size_bytes, VMDK_SECTOR, &at) : -ENOMEM;

        if (r == 0)
                r = block_write(e->file, at, zeroes, size_bytes);
        if (r < 0)
                return r;
        v->m.cache.written++;
        e->end = at + size_bytes;
        e->fresh_from = MAX(e->fresh_from, e->end);
        put_le32(entry, (uint32_t)(at / VMDK_SECTOR));
        return mapped_set_entry(&v->m, e->file, directory * VMDK_SECTOR + n * 4, 4, true, entry);
}

static bool is_redundant(const struct vmdk_extent *e)
{
        return e->header.flags & VMDK_FLAG_REDUNDANT && e->header.redundant_offset;
}

/* Both tables of a grain; *second is 0 without redundancy. */
static int tables_for(struct vmdk *v, struct vmdk_extent *e, uint64_t grain, uint32_t *first, uint32_t *second)
{
        uint64_t n = grain / e->header.table_entries;
        int r = vmdk_directory_entry(v, e, false, n, true, first);

        *second = 0;
        if (r == 0 && !*first) {
                r = add_table(v, e, false, n);
                if (r == 0)
                        r = vmdk_directory_entry(v, e, false, n, true, first);
        }
        if (r < 0 || !is_redundant(e))
                return r;
        r = vmdk_directory_entry(v, e, true, n, true, second);
        if (r == 0 && !*second) {
                r = add_table(v, e, true, n);
                if (r == 0)
                        r = vmdk_directory_entry(v, e, true, n, true, second);
        }
        return r;
}

static int set_grain(struct vmdk *v, struct vmdk_extent *e, uint64_t grain, uint32_t value)
{
        uint64_t inside = grain % e->header.table_entries * 4;
        uint32_t first, second;
        uint8_t entry[4];
        int r = tables_for(v, e, grain, &first, &second);

        put_le32(entry, value);
        if (r == 0 && second)
                r = mapped_set_entry(&v->m, e->file, (uint64_t)second * VMDK_SECTOR + inside, 4, true, entry);
        if (r == 0)
                r = mapped_set_entry(&v->m, e->file, (uint64_t)first * VMDK_SECTOR + inside, 4, true, entry);
        return r;
}

static int vmdk_take(struct mapped *m, uint64_t at, uint64_t size_bytes, struct mapped_place *place)
{
        struct vmdk *v = to_vmdk(m);
        struct vmdk_extent *e = extent_at(v, at);
        uint64_t grain = (at - e->first) / e->grain_bytes, end = (at - e->first + size_bytes + e->grain_bytes - 1) / e->grain_bytes, host = 0;
        uint32_t first, second;
        int r;

        if (e->kind != VMDK_SPARSE)
                return -EROFS;
        r = tables_for(v, e, grain, &first, &second);
        if (r == 0)
                r = take_space(e, (end - grain) * e->grain_bytes, e->grain_bytes, &host);
        if (r < 0)
                return r;
        *place = (struct mapped_place){
                .first = e->first + grain * e->grain_bytes, .end = e->first + MIN(end * e->grain_bytes, e->size_bytes), .in = e->file, .host = host,
                .fresh = host >= e->fresh_from,
        };
        e->fresh_from = MAX(e->fresh_from, host + (end - grain) * e->grain_bytes);
        return 0;
}

static int vmdk_name(struct mapped *m, const struct mapped_place *place)
{
        struct vmdk *v = to_vmdk(m);
        struct vmdk_extent *e = extent_at(v, place->first);
        uint64_t grain = (place->first - e->first) / e->grain_bytes, count = (place->end - place->first + e->grain_bytes - 1) / e->grain_bytes;
        int r = 0;

        e->end = place->host + count * e->grain_bytes;
        for (uint64_t n = 0; n < count && r == 0; n++)
                r = set_grain(v, e, grain + n, (uint32_t)((place->host + n * e->grain_bytes) / VMDK_SECTOR));
        return r;
}

static int vmdk_zero(struct mapped *m, uint64_t at, uint64_t size_bytes)
{
        struct vmdk *v = to_vmdk(m);
        int r = 0;

        for (uint64_t to = at + size_bytes; at < to && r == 0;) {
                struct vmdk_extent *e = extent_at(v, at);

                r = set_grain(v, e, (at - e->first) / e->grain_bytes, 1);
                at += MIN(e->grain_bytes, e->first + e->size_bytes - at);
        }
        return r;
}

static int set_unclean(struct vmdk *v, uint8_t unclean)
{
        int r = 0;

        for (unsigned n = 0; n < v->extents && r == 0; n++)
                if (v->extent[n].kind == VMDK_SPARSE && !(v->extent[n].header.flags & VMDK_FLAG_COMPRESSED))
                        r = block_write(v->extent[n].file, VMDK_UNCLEAN, &unclean, 1);
        return r;
}

static int vmdk_flush_files(struct mapped *m)
{
        struct vmdk *v = to_vmdk(m);
        int r = block_flush(m->file);

        for (unsigned n = 0; n < v->extents && r == 0; n++)
                if (v->extent[n].owned)
                        r = block_flush(v->extent[n].file);
        return r;
}

/* The first write: another content ID, and the mark that the extents are in use. */
static int vmdk_begin(struct mapped *m)
{
        struct vmdk *v = to_vmdk(m);
        char digits[9];
        uint32_t cid;
        int r = getrandom(&cid, sizeof(cid), 0) == (ssize_t)sizeof(cid) ? 0 : -EIO;

        cid = cid == VMDK_NO_PARENT ? 1 : cid;
        snprintf(digits, sizeof(digits), "%08x", cid);
        if (r == 0 && v->text.cid_at)
                r = block_write(m->file, v->text_offset + v->text.cid_at, digits, 8);
        if (r == 0)
                r = set_unclean(v, 1);
        if (r == 0)
                r = vmdk_flush_files(m);
        if (r == 0)
                v->text.cid = cid;
        return r;
}

static int open_image(struct mapped *m, const struct block_opening *opening, struct err *err);

static void close_image(struct mapped *m)
{
        struct vmdk *v = to_vmdk(m);

        for (unsigned n = 0; n < v->extents; n++)
                if (v->extent[n].owned)
                        block_close(v->extent[n].file);
        free(v->extent);
        vmdk_text_done(&v->text);
        if (v->stream)
                free(v->stream->directory);
        free(v->stream);
}

/* With and without grains that are said to be zeroes. */
#define VMDK_OPS                                                                                                                                    \
        .struct_bytes = sizeof(struct vmdk), .page_bytes = VMDK_SECTOR, .open = open_image, .close = close_image, .map = vmdk_map, .take = vmdk_take, \
        .name = vmdk_name, .unpack = vmdk_unpack, .pack = vmdk_pack, .begin = vmdk_begin, .flush = vmdk_flush_files

static const struct mapped_ops vmdk_ops = { VMDK_OPS };
static const struct mapped_ops vmdk_zero_ops = { VMDK_OPS, .zero = vmdk_zero };

/* ---- headers ---- */

static const char text_magic[] = "# Disk DescriptorFile";

static int vmdk_probe(const uint8_t *head, size_t size_bytes)
{
        if (size_bytes < sizeof(text_magic))
                return 0;
        return get_le32(head) == VMDK_MAGIC || strncasecmp((const char *)head, text_magic, sizeof(text_magic) - 1) == 0 ? 100 : 0;
}

static void parse_header(struct vmdk_header *h, const uint8_t *bytes)
{
        struct cursor in = cursor_from(bytes + 4, VMDK_SECTOR - 4);

        h->version = cursor_le32(&in);
        h->flags = cursor_le32(&in);
        h->capacity = cursor_le64(&in);
        h->grain = cursor_le64(&in);
        h->text_offset = cursor_le64(&in);
        h->text_sectors = cursor_le64(&in);
        h->table_entries = cursor_le32(&in);
        h->redundant_offset = cursor_le64(&in);
        h->directory_offset = cursor_le64(&in);
        h->overhead = cursor_le64(&in);
        (void)cursor_take(&in, 5);
        h->compression = cursor_le16(&in);
}

static int bad(const char *path, struct err *err, const char *what, uint64_t value)
{
        return err_set(err, -EINVAL, "disk %s is damaged: its header says %s %" PRIu64, path, what, value);
}

/* The directory's place is not known when a stream begins: a second header in front of its end has it. */
static int read_footer(struct block *file, struct vmdk_header *h, struct err *err)
{
        uint8_t bytes[3 * VMDK_SECTOR];
        uint64_t size_bytes = file->info.size_bytes;
        struct vmdk_header footer;
        int r;

        if (size_bytes < 4 * VMDK_SECTOR)
                return err_set(err, -EINVAL, "disk %s is a stream without an end", file->path);
        r = block_read(file, size_bytes - sizeof(bytes), bytes, sizeof(bytes));
        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", file->path);
        parse_header(&footer, bytes + VMDK_SECTOR);
        if (get_le32(bytes + 12) != VMDK_FOOTER || get_le32(bytes + VMDK_SECTOR) != VMDK_MAGIC || get_le32(bytes + 2 * VMDK_SECTOR + 12) != VMDK_EOS)
                return err_set(err, -EINVAL, "disk %s is a stream without its end: it was not written to the last byte", file->path);
        footer.text_offset = h->text_offset;
        footer.text_sectors = h->text_sectors;
        *h = footer;
        return 0;
}

static bool in_file(const struct block *file, uint64_t sector, uint64_t size_bytes)
{
        return sector && sector < file->info.size_bytes / VMDK_SECTOR && size_bytes <= file->info.size_bytes - sector * VMDK_SECTOR;
}

static int check_header(struct vmdk_extent *e, struct err *err)
{
        const struct vmdk_header *h = &e->header;
        const char *path = e->file->path;

        if (!h->version || h->version > 3)
                return err_set(err, -EOPNOTSUPP, "disk %s is of version %" PRIu32 " of VMDK; 1 to 3 are known", path, h->version);
        if (h->flags & VMDK_FLAG_NEWLINES && h->compression > 1)
                return err_set(err, -EOPNOTSUPP, "disk %s is compressed by an unknown method (%u)", path, h->compression);
        if (!is_power_of_two(h->grain) || h->grain < GRAIN_SECTORS_MIN || h->grain > GRAIN_SECTORS_MAX)
                return bad(path, err, "grains of sectors", h->grain);
        if (!h->capacity || h->capacity > CAPACITY_MAX)
                return bad(path, err, "a size in sectors of", h->capacity);
        if (!is_power_of_two(h->table_entries) || h->table_entries < 128 || h->table_entries > 65536)
                return bad(path, err, "tables of entries", h->table_entries);
        e->grain_bytes = h->grain * VMDK_SECTOR;
        e->directory_entries = ((h->capacity + h->grain - 1) / h->grain + h->table_entries - 1) / h->table_entries;
        if (e->directory_entries > DIRECTORY_MAX)
                return bad(path, err, "a directory of entries", e->directory_entries);
        if (!in_file(e->file, h->directory_offset, e->directory_entries * 4))
                return bad(path, err, "a directory at sector", h->directory_offset);
        if (h->flags & VMDK_FLAG_REDUNDANT && h->redundant_offset && !in_file(e->file, h->redundant_offset, e->directory_entries * 4))
                return bad(path, err, "a redundant directory at sector", h->redundant_offset);
        return 0;
}

static int open_sparse(struct vmdk_extent *e, const uint8_t *head, struct err *err)
{
        const struct block_info *file = &e->file->info;
        int r = 0;

        parse_header(&e->header, head);
        if (e->header.directory_offset == VMDK_AT_END)
                r = read_footer(e->file, &e->header, err);
        if (r == 0)
                r = check_header(e, err);
        e->size_bytes = e->header.capacity * VMDK_SECTOR;
        /* The last grain may be there in part, of an image that nobody finished: no table comes into the rest of it. */
        e->end = align_up(file->size_bytes, file->grows && e->header.grain ? (uint64_t)e->header.grain * VMDK_SECTOR : VMDK_SECTOR);
        e->fresh_from = file->grows ? e->end : UINT64_MAX;
        return r;
}

/* ---- opening ---- */

static int read_text(struct vmdk *v, uint64_t offset, uint64_t size_bytes, struct err *err)
{
        _cleanup_free_ uint8_t *bytes = NULL;
        int r;

        if (size_bytes > VMDK_TEXT_MAX || offset > v->m.file->info.size_bytes || size_bytes > v->m.file->info.size_bytes - offset)
                return bad(v->m.block.path, err, "a descriptor of bytes", size_bytes);
        bytes = malloc(size_bytes + 1);
        if (!bytes)
                return err_nomem(err);
        r = block_read(v->m.file, offset, bytes, size_bytes);
        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", v->m.block.path);
        v->text_offset = offset;
        v->text_bytes = size_bytes;
        return vmdk_parse_text(&v->text, v->m.block.path, bytes, size_bytes, err);
}

static int open_embedded(struct vmdk *v, const uint8_t *head, struct err *err)
{
        struct vmdk_extent *e = calloc(1, sizeof(*e));
        int r;

        if (!e)
                return err_nomem(err);
        v->extent = e;
        v->extents = 1;
        e->file = v->m.file;
        r = open_sparse(e, head, err);
        if (r < 0)
                return r;
        if (!e->header.text_offset || !e->header.text_sectors)
                return err_set(err, -EINVAL, "disk %s is a piece of one; its descriptor, another file, is what can be opened", v->m.block.path);
        if (e->header.text_offset > INT64_MAX / VMDK_SECTOR || e->header.text_sectors > VMDK_TEXT_MAX / VMDK_SECTOR)
                return bad(v->m.block.path, err, "a descriptor at sector", e->header.text_offset);
        return read_text(v, e->header.text_offset * VMDK_SECTOR, e->header.text_sectors * VMDK_SECTOR, err);
}

static void child_ended(void *ctx)
{
        struct block *block = ctx;

        if (block->listener)
                block->listener(block->listener_ctx);
}

static int open_line(struct vmdk *v, const struct block_opening *opening, const struct vmdk_line *line, struct vmdk_extent *e, struct err *err)
{
        uint8_t head[VMDK_SECTOR];
        int r;

        e->kind = line->kind;
        e->size_bytes = line->sectors * VMDK_SECTOR;
        if (line->kind == VMDK_ZERO)
                return 0;
        if (line->readonly && !v->m.file->info.readonly)
                return err_set(err, -EROFS, "disk %s has a piece that is only read: %s; open it read-only", opening->path, line->name);
        r = block_open_beside(opening, line->name, &e->file, err);
        if (r < 0)
                return r;
        e->owned = true;
        block_set_listener(e->file, child_ended, &v->m.block);
        e->offset = line->offset * VMDK_SECTOR;
        if (line->kind == VMDK_FLAT) {
                if (e->offset > e->file->info.size_bytes || e->size_bytes > e->file->info.size_bytes - e->offset)
                        return err_set(err, -EINVAL, "disk %s: %s is shorter than the piece of the disk that it is said to have", opening->path, line->name);
                return 0;
        }
        r = block_read(e->file, 0, head, sizeof(head));
        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", e->file->path);
        if (get_le32(head) != VMDK_MAGIC)
                return err_set(err, -EINVAL, "disk %s: %s is not a sparse VMDK extent", opening->path, line->name);
        r = open_sparse(e, head, err);
        if (r == 0 && (e->header.flags & VMDK_FLAG_COMPRESSED || e->size_bytes < line->sectors * VMDK_SECTOR))
                r = err_set(err, -EINVAL, "disk %s: %s is not the extent that the descriptor says", opening->path, line->name);
        e->size_bytes = line->sectors * VMDK_SECTOR;
        return r;
}

static int open_pieces(struct vmdk *v, const struct block_opening *opening, struct err *err)
{
        int r = read_text(v, 0, MIN(v->m.file->info.size_bytes, (uint64_t)VMDK_TEXT_MAX), err);

        if (r < 0)
                return r;
        v->extent = calloc(MAX(v->text.lines, 1u), sizeof(*v->extent));
        if (!v->extent)
                return err_nomem(err);
        for (; v->extents < v->text.lines && r == 0; v->extents++)
                r = open_line(v, opening, &v->text.line[v->extents], &v->extent[v->extents], err);
        return r;
}

/* Where each extent begins, and what they have in common. */
static int place_extents(struct vmdk *v, uint64_t *size_bytes, uint64_t *grain_bytes, struct err *err)
{
        *size_bytes = *grain_bytes = 0;
        for (unsigned n = 0; n < v->extents; n++) {
                struct vmdk_extent *e = &v->extent[n];

                e->first = *size_bytes;
                *size_bytes += e->size_bytes;
                if (*size_bytes > INT64_MAX / 2)
                        return err_set(err, -EFBIG, "disk %s is too large", v->m.block.path);
                if (e->kind != VMDK_SPARSE)
                        continue;
                if (*grain_bytes && *grain_bytes != e->grain_bytes)
                        return err_set(err, -EOPNOTSUPP, "disk %s has extents with grains of several sizes", v->m.block.path);
                *grain_bytes = e->grain_bytes;
        }
        return *size_bytes ? 0 : err_set(err, -EINVAL, "disk %s has no extents", v->m.block.path);
}

static int open_parent(struct vmdk *v, const struct block_opening *opening, struct err *err)
{
        struct block *parent;
        struct vmdk *p;
        int r;

        if (v->text.parent_cid == VMDK_NO_PARENT || opening->flags & BLOCK_OPEN_NO_BACKING)
                return 0;
        if (!v->text.parent)
                return err_set(err, -EINVAL, "disk %s lies on another, and does not say on which", opening->path);
        r = block_open_backing(opening, v->text.parent, "vmdk", &parent, err);
        if (r < 0)
                return r;
        block_adopt(&v->m.block, BLOCK_BACKING, parent);
        v->m.backing = parent;
        p = to_vmdk(to_mapped(parent));
        if (p->text.cid != v->text.parent_cid)
                return err_set(err, -EINVAL, "disk %s lies on %s as it was before somebody wrote to it (CID %08x, now %08x)", opening->path, parent->path,
                               v->text.parent_cid, p->text.cid);
        return 0;
}

static bool is_stream(const struct vmdk *v)
{
        return v->extents == 1 && v->extent[0].kind == VMDK_SPARSE && v->extent[0].header.flags & VMDK_FLAG_COMPRESSED;
}

static int open_image(struct mapped *m, const struct block_opening *opening, struct err *err)
{
        struct vmdk *v = to_vmdk(m);
        uint64_t size_bytes = 0, grain_bytes = 0;
        uint8_t head[VMDK_SECTOR];
        int r = block_read(v->m.file, 0, head, sizeof(head));

        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", opening->path);
        if (!vmdk_probe(head, sizeof(head)))
                return err_set(err, -EINVAL, "disk %s is not a VMDK image", opening->path);
        r = get_le32(head) == VMDK_MAGIC ? open_embedded(v, head, err) : open_pieces(v, opening, err);
        if (r == 0)
                r = place_extents(v, &size_bytes, &grain_bytes, err);
        if (r == 0)
                r = open_parent(v, opening, err);
        if (r < 0)
                return r;
        mapped_info(&v->m, size_bytes, BLOCK_SECTOR, grain_bytes);
        for (unsigned n = 0; n < v->extents; n++) {
                const struct vmdk_extent *e = &v->extent[n];

                if (!e->file || v->m.file->info.readonly)
                        continue;
                v->m.block.info.discard_bytes = e->file->info.discard_bytes;
                v->m.block.info.zeroes_bytes = MIN(v->m.block.info.zeroes_bytes, e->file->info.zeroes_bytes);
                if (e->header.flags & VMDK_FLAG_ZEROED)
                        v->m.ops = &vmdk_zero_ops;
        }
        v->m.sparse = !grain_bytes;
        v->m.packed_bytes = (uint32_t)grain_bytes;
        return is_stream(v) && !v->m.file->info.readonly && !(opening->flags & BLOCK_OPEN_REPAIR) ? vmdk_stream_open(v, err) : 0;
}

static int vmdk_open(const struct block_opening *opening, struct block **block, struct err *err)
{
        return mapped_open(&block_vmdk, &vmdk_ops, opening, block, err);
}

/* ---- extents that are files of their own ---- */

static void vmdk_kick(struct block *block)
{
        struct vmdk *v = to_vmdk(to_mapped(block));

        for (unsigned n = 0; n < v->extents; n++)
                if (v->extent[n].owned)
                        block_kick(v->extent[n].file);
}

static void vmdk_reap(struct block *block)
{
        struct vmdk *v = to_vmdk(to_mapped(block));

        for (unsigned n = 0; n < v->extents; n++)
                if (v->extent[n].owned)
                        block_reap(v->extent[n].file);
}

static void vmdk_wait(struct block *block)
{
        struct vmdk *v = to_vmdk(to_mapped(block));
        bool some = false;

        for (unsigned n = 0; n < v->extents && !some; n++)
                some = v->extent[n].owned && block_wait_some(v->extent[n].file);
        assert(some);
        (void)some;
}

/* ---- the end ---- */

static int finish(struct vmdk *v)
{
        int r = mapped_flush(&v->m);

        for (unsigned n = 0; n < v->extents && r == 0; n++) {
                struct vmdk_extent *e = &v->extent[n];

                if (e->kind == VMDK_SPARSE && e->file->info.grows) /* the last grain is there whole */
                        r = block_resize(e->file, e->end, NULL);
                if (e->kind == VMDK_SPARSE && e->file->info.grows)
                        e->fresh_from = e->end;
        }
        if (r == 0)
                r = vmdk_flush_files(&v->m);
        if (r == 0)
                r = set_unclean(v, 0);
        return r == 0 ? vmdk_flush_files(&v->m) : r;
}

static int vmdk_finish(struct block *block, struct err *err)
{
        struct vmdk *v = to_vmdk(to_mapped(block));
        int r = 0;

        if (block->info.readonly || v->m.broken || !v->m.begun)
                return 0;
        r = v->stream ? vmdk_stream_finish(v) : finish(v);
        if (r == 0)
                v->m.begun = false;
        return r < 0 ? err_errno(err, r, "cannot write the tables of disk %s", block->path) : 0;
}

static int vmdk_describe(struct block *block, json_t *into)
{
        const struct vmdk *v = to_vmdk(to_mapped(block));
        char cid[9], parent[9];
        json_t *about;

        snprintf(cid, sizeof(cid), "%08x", v->text.cid);
        snprintf(parent, sizeof(parent), "%08x", v->text.parent_cid);
        about = json_pack("{s:s, s:i, s:s}", "subformat", v->text.type, "extents", (int)v->extents, "cid", cid);
        if (about && v->m.packed_bytes)
                json_object_set_new(about, "grain_bytes", json_integer(v->m.packed_bytes));
        if (about && v->text.parent_cid != VMDK_NO_PARENT) {
                json_object_set_new(about, "backing", json_string(v->text.parent ? v->text.parent : ""));
                json_object_set_new(about, "parent_cid", json_string(parent));
        }
        return about && json_object_set_new(into, "vmdk", about) == 0 ? 0 : -ENOMEM;
}

const struct block_driver block_vmdk = {
        .name = "vmdk",
        .text = "VMware's format: sparse, flat, in pieces of 2 GiB, or compressed for streaming",
        .suffixes = (const char *const[]){ ".vmdk", NULL },
        .probe = vmdk_probe,
        .open = vmdk_open,
        .options = vmdk_options,
        .create = vmdk_create,
        .check = vmdk_check,
        .finish = vmdk_finish,
        .close = mapped_close,
        .submit = mapped_submit,
        .kick = vmdk_kick,
        .reap = vmdk_reap,
        .wait = vmdk_wait,
        .status = mapped_status,
        .describe = vmdk_describe,
};
