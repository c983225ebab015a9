/*
 * New qcow2 images: header, refcount table, its blocks, L1, one behind the other; all else comes with use.
 *
 *      cluster 0      1 … T            …  B blocks    …  L1   … LUKS header, if it is encrypted
 *      header         refcount table
 */
#include <errno.h>

#include "base/text.h"
#include "block/bitmap.h"
#include "block/luks/luks.h"
#include "block/qcow2/qcow2.h"

#define CLUSTER_BITS_DEFAULT 16

const struct block_option_about qcow2_options[] = {
        { "cluster_size", "SIZE", "what space is taken by: 512 to 2M, a power of two; default: 64K" },
        { "refcount_bits", "N", "1, 2, 4, 8, 16, 32 or 64; default: 16" },
        { "version", "2|3", "2 is what QEMU before 1.1 reads; default: 3" },
        { "compression", "zlib|zstd", "of clusters that are compressed; default: zlib" },
        { "extended_l2", "on|off", "32 subclusters in each cluster, of 16K and more" },
        { "lazy_refcounts", "on|off", "lets QEMU write counts late" },
        { "encrypt", "luks|off", "the disk's contents, by LUKS1; default: off" },
        { "encrypt.KEY", "VALUE", "an option of luks: hash, key_bits, iter_time" },
        { "data_file", "FILE", "keeps the data apart, in this file, which must be there" },
        { "data_file_raw", "on|off", "and so that it is a raw image by itself" },
        { NULL, NULL, NULL },
};

static int bad_option(const struct block_option *o, const char *wanted, struct err *err)
{
        return err_set(err, -EINVAL, "option %s=%s: it is %s", o->key, o->value, wanted);
}

static int take_switch(const struct block_option *o, uint64_t *bits, uint64_t bit, struct err *err)
{
        if (strcmp(o->value, "on") == 0)
                *bits |= bit;
        else if (strcmp(o->value, "off") == 0)
                *bits &= ~bit;
        else
                return bad_option(o, "on or off", err);
        return 0;
}

/* log2 of a power of two between two others, else 0. */
static unsigned power_between(uint64_t value, uint64_t low, uint64_t high)
{
        return is_power_of_two(value) && value >= low && value <= high ? (unsigned)__builtin_ctzll(value) : 0;
}

/* A number by itself is in bytes. 0: it is none. */
static uint64_t bytes_of(const char *text)
{
        uint64_t value = 0;
        char *end;

        if (*text < '0' || *text > '9')
                return 0;
        value = strtoull(text, &end, 10);
        return *end && size_parse(text, &value, NULL) < 0 ? 0 : value;
}

/* Of the LUKS header inside: version 1 is what QEMU knows. */
static int take_crypt_option(struct qcow2 *q, struct luks_new *luks, const struct block_option *o, struct err *err)
{
        struct block_option inside = { o->key + strlen("encrypt"), o->value };

        if (!*inside.key) {
                q->header.crypt_method = strcmp(o->value, "luks") == 0 ? QCOW2_CRYPT_LUKS : 0;
                return q->header.crypt_method || strcmp(o->value, "off") == 0 ? 0 : bad_option(o, "luks or off", err);
        }
        inside.key++;
        if (strcmp(inside.key, "hash") && strcmp(inside.key, "key_bits") && strcmp(inside.key, "iter_time"))
                return err_set(err, -EINVAL, "option %s: encrypt.hash, encrypt.key_bits and encrypt.iter_time are known", o->key);
        return luks_take_option(&inside, luks, err);
}

static int take_option(struct qcow2 *q, struct luks_new *luks, const struct block_option *o, struct err *err)
{
        struct qcow2_header *h = &q->header;

        if (strcmp(o->key, "cluster_size") == 0) {
                h->cluster_bits = power_between(bytes_of(o->value), 512, 2u << 20);
                return h->cluster_bits ? 0 : bad_option(o, "512 to 2M, a power of two", err);
        }
        if (strcmp(o->key, "refcount_bits") == 0) {
                char *end;
                unsigned long bits = strtoul(o->value, &end, 10);

                if (*end || !is_power_of_two(bits) || bits > 64)
                        return bad_option(o, "1, 2, 4, 8, 16, 32 or 64", err);
                h->refcount_order = (uint32_t)__builtin_ctzl(bits);
                return 0;
        }
        if (strcmp(o->key, "version") == 0) {
                h->version = strcmp(o->value, "2") == 0 ? 2 : strcmp(o->value, "3") == 0 ? 3 : 0;
                return h->version ? 0 : bad_option(o, "2 or 3", err);
        }
        if (strcmp(o->key, "compression") == 0) {
                h->compression = strcmp(o->value, "zstd") == 0 ? QCOW2_ZSTD : QCOW2_ZLIB;
                if (h->compression == QCOW2_ZSTD)
                        h->incompatible |= QCOW2_INCOMPATIBLE_COMPRESSION;
                return h->compression == QCOW2_ZSTD || strcmp(o->value, "zlib") == 0 ? 0 : bad_option(o, "zlib or zstd", err);
        }
        if (strcmp(o->key, "extended_l2") == 0)
                return take_switch(o, &h->incompatible, QCOW2_INCOMPATIBLE_EXTENDED_L2, err);
        if (strcmp(o->key, "lazy_refcounts") == 0)
                return take_switch(o, &h->compatible, QCOW2_COMPATIBLE_LAZY_REFCOUNTS, err);
        if (strcmp(o->key, "data_file_raw") == 0)
                return take_switch(o, &h->autoclear, QCOW2_AUTOCLEAR_RAW_DATA, err);
        if (strcmp(o->key, "data_file") == 0) {
                free(q->data_name);
                q->data_name = strdup(o->value);
                h->incompatible |= QCOW2_INCOMPATIBLE_DATA_FILE;
                return q->data_name ? 0 : err_nomem(err);
        }
        if (strcmp(o->key, "encrypt") == 0 || strncmp(o->key, "encrypt.", 8) == 0)
                return take_crypt_option(q, luks, o, err);
        return err_set(err, -EINVAL, "option %s: a qcow2 image has none of this name", o->key);
}

int qcow2_take_amendment(struct qcow2_header *header, const struct block_option *option, struct err *err)
{
        struct qcow2 q = { .header = *header };
        int r;

        if (strcmp(option->key, "version") && strcmp(option->key, "refcount_bits") && strcmp(option->key, "lazy_refcounts"))
                return err_set(err, -EINVAL, "option %s: of an image that is there version, refcount_bits and lazy_refcounts can change", option->key);
        r = take_option(&q, NULL, option, err); /* none of these is for it */
        if (r == 0)
                *header = q.header;
        return r;
}

static int check_options(const struct qcow2 *q, const struct block_creation *creation, struct err *err)
{
        const struct qcow2_header *h = &q->header;

        if (h->version == 2 && (h->incompatible || h->compatible || h->autoclear || h->refcount_order != 4))
                return err_set(err, -EINVAL, "version 2 of qcow2 has none of the other options but cluster_size");
        if (h->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2 && h->cluster_bits < 14)
                return err_set(err, -EINVAL, "extended_l2 needs clusters of 16K and more");
        if (h->autoclear & QCOW2_AUTOCLEAR_RAW_DATA && (!q->data_name || creation->backing))
                return err_set(err, -EINVAL, "data_file_raw needs a data_file, and no backing file");
        if (h->autoclear & QCOW2_AUTOCLEAR_RAW_DATA && h->crypt_method)
                return err_set(err, -EINVAL, "data_file_raw and encrypt: one of them");
        if (creation->backing && strlen(creation->backing) > QCOW2_BACKING_BYTES_MAX)
                return err_set(err, -ENAMETOOLONG, "the backing file's name has more than %d bytes", QCOW2_BACKING_BYTES_MAX);
        return 0;
}

struct layout {
        uint64_t table_clusters, blocks, l1_clusters, crypt_clusters, total;
};

/* l->crypt_clusters is known: the LUKS header's. */
static int lay_out(struct qcow2 *q, struct layout *l, struct err *err)
{
        uint64_t clusters = qcow2_clusters(q, q->header.size_bytes), entries, counts = UINT64_C(1) << q->refcount_block_bits, before = 0;

        entries = MAX((clusters >> q->l2_bits) + !!(clusters & ((UINT64_C(1) << q->l2_bits) - 1)), UINT64_C(1));
        if (entries * 8 > QCOW2_L1_BYTES_MAX)
                return err_set(err, -EFBIG, "a disk of %" PRIu64 " bytes is too large for clusters of %" PRIu64 " bytes", q->header.size_bytes,
                               q->cluster_bytes);
        q->header.l1_entries = (uint32_t)entries;
        l->l1_clusters = qcow2_clusters(q, entries * 8);
        for (l->blocks = 1; l->blocks != before;) {
                before = l->blocks;
                l->table_clusters = qcow2_clusters(q, l->blocks * 8);
                l->total = 1 + l->table_clusters + l->blocks + l->l1_clusters + l->crypt_clusters;
                l->blocks = MAX(l->blocks, (l->total + counts - 1) / counts);
        }
        q->header.refcount_offset = q->cluster_bytes;
        q->header.refcount_clusters = (uint32_t)l->table_clusters;
        q->header.l1_offset = (1 + l->table_clusters + l->blocks) << q->header.cluster_bits;
        return 0;
}

/* The file is zeroes: a table, and counts by the means that images in use have. */
static int write_all(struct qcow2 *q, const struct layout *l, struct err *err)
{
        uint8_t first[8];
        int r = 0;

        q->refcount_entries = (uint32_t)MAX(l->table_clusters * q->cluster_bytes / 8, 1u);
        q->refcount_table = calloc(q->refcount_entries, 8);
        if (!q->refcount_table)
                return err_nomem(err);
        q->file_clusters = l->total;
        for (uint64_t n = 0; n < l->blocks && r == 0; n++) {
                q->refcount_table[n] = (1 + l->table_clusters + n) << q->header.cluster_bits;
                put_be64(first, q->refcount_table[n]);
                r = block_write(q->file, q->header.refcount_offset + n * 8, first, 8);
        }
        if (r == 0)
                r = qcow2_refcount_add(q, 0, l->total, 1);
        if (r == 0)
                r = qcow2_cache_write(q);
        if (r == 0)
                r = block_flush(q->file);
        if (r == 0)
                r = qcow2_write_header_cluster(q);
        if (r == 0)
                r = block_flush(q->file);
        return r < 0 ? err_errno(err, r, "cannot write") : 0;
}

struct place {
        struct block *file;
        uint64_t offset;
};

static int write_luks(void *ctx, uint64_t offset_bytes, const uint8_t *from, size_t size_bytes)
{
        const struct place *place = ctx;

        return block_write(place->file, place->offset + offset_bytes, from, size_bytes);
}

/* Behind L1. The file reads as zeroes there. */
static int make_crypt(struct qcow2 *q, const struct layout *l, const struct luks_new *luks, const char *secret, struct err *err)
{
        struct place place = { q->file, (l->total - l->crypt_clusters) << q->header.cluster_bits };
        int r = qcow2_crypt_place(q, place.offset, luks_payload_bytes(luks), err);

        return r == 0 ? luks_make_by(luks, write_luks, &place, secret, q->block.path, err) : r;
}

static int make(struct qcow2 *q, const struct block_creation *creation, struct err *err)
{
        struct luks_new luks = luks_new_default(1);
        struct layout layout = { 0 };
        int r = 0;

        for (unsigned n = 0; n < creation->options && r == 0; n++)
                r = take_option(q, &luks, &creation->option[n], err);
        if (r == 0)
                r = check_options(q, creation, err);
        if (r < 0)
                return r;
        q->header.size_bytes = align_up(creation->size_bytes, BLOCK_SECTOR);
        q->header.header_bytes = q->header.version == 2 ? 72 : 104;
        q->backing_name = creation->backing ? strdup(creation->backing) : NULL;
        q->backing_format = creation->backing_format ? strdup(creation->backing_format) : NULL;
        if ((creation->backing && !q->backing_name) || (creation->backing_format && !q->backing_format))
                return err_nomem(err);
        qcow2_geometry(q);
        qcow2_cache_init(q, (size_t)1 << 20);
        layout.crypt_clusters = q->header.crypt_method ? qcow2_clusters(q, luks_payload_bytes(&luks)) : 0;
        r = lay_out(q, &layout, err);
        if (r == 0)
                r = block_make_empty(q->file, layout.total << q->header.cluster_bits, err);
        if (r == 0 && q->header.crypt_method)
                r = make_crypt(q, &layout, &luks, creation->secret, err);
        return r == 0 ? write_all(q, &layout, err) : r;
}

/* ---- how large it would be ---- */

static uint64_t round_up(uint64_t value, uint64_t to)
{
        return (value + to - 1) / to;
}

/* Blocks of counts and their table for so many clusters, themselves included. */
static uint64_t count_clusters(const struct qcow2 *q, uint64_t clusters)
{
        uint64_t counts = UINT64_C(1) << q->refcount_block_bits, blocks = 0, table = 0, before;

        do {
                before = blocks + table;
                blocks = round_up(clusters + blocks + table, counts);
                table = round_up(blocks, q->cluster_bytes / 8);
        } while (blocks + table != before);
        return blocks + table;
}

int qcow2_measure(const struct block_creation *creation, struct block *source, struct block_measure *measure, struct err *err)
{
        struct qcow2 q = { .header = { .version = 3, .cluster_bits = CLUSTER_BITS_DEFAULT, .refcount_order = 4 } };
        struct luks_new luks = luks_new_default(1);
        uint64_t clusters, tables, entries, data = 0;
        int r = 0;

        for (unsigned n = 0; n < creation->options && r == 0; n++)
                r = take_option(&q, &luks, &creation->option[n], err);
        if (r == 0)
                r = check_options(&q, creation, err);
        free(q.data_name);
        if (r < 0)
                return r;
        qcow2_geometry(&q);
        clusters = qcow2_clusters(&q, creation->size_bytes);
        tables = round_up(clusters, UINT64_C(1) << q.l2_bits);
        entries = align_up(tables, q.cluster_bytes / 8);
        if (tables * 8 > QCOW2_L1_BYTES_MAX)
                return err_set(err, -EFBIG, "a disk of %" PRIu64 " bytes is too large for clusters of %" PRIu64 " bytes", creation->size_bytes,
                               q.cluster_bytes);
        if (source)
                r = block_count_data(source, q.cluster_bytes, &data);
        if (r < 0)
                return err_errno(err, r, "cannot read the tables of disk %s", source->path);
        /* The header, L1, L2 tables, and what counts all of it: as if all data were there. */
        tables = 1 + tables + entries * 8 / q.cluster_bytes + (q.header.crypt_method ? qcow2_clusters(&q, luks_payload_bytes(&luks)) : 0);
        tables += count_clusters(&q, tables + clusters);
        measure->fully_allocated_bytes = (tables + (q.header.incompatible & QCOW2_INCOMPATIBLE_DATA_FILE ? 0 : clusters)) << q.header.cluster_bits;
        measure->required_bytes = (tables << q.header.cluster_bits) + (q.header.incompatible & QCOW2_INCOMPATIBLE_DATA_FILE ? 0 : data);
        for (const struct block_bitmap *b = source ? source->bitmaps : NULL; b; b = b->next)
                if (b->name && b->persistent && !b->inconsistent) {
                        uint64_t bits = round_up(block_bitmap_bits(b), q.cluster_bytes * 8);

                        measure->bitmaps_bytes += (bits + round_up(bits * 8, q.cluster_bytes)) << q.header.cluster_bits;
                        measure->bitmaps_bytes += align_up(24 + strlen(b->name), 8);
                }
        measure->bitmaps_bytes = align_up(measure->bitmaps_bytes, q.cluster_bytes);
        return 0;
}

int qcow2_create(struct block *file, const struct block_creation *creation, struct err *err)
{
        struct qcow2 q = {
                .file = file, .data = file, .header = { .version = 3, .cluster_bits = CLUSTER_BITS_DEFAULT, .refcount_order = 4 },
                .block = { .path = file->path },
        };
        int r = make(&q, creation, err);

        table_cache_done(&q.cache);
        qcow2_refcounts_close(&q);
        free(q.backing_name);
        free(q.backing_format);
        free(q.data_name);
        qcow2_drop_extension(&q, QCOW2_EXT_ENCRYPTION);
        return r;
}
