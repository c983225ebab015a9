/*
 * Encryption ("Full disk encryption header pointer"): a LUKS header lies in clusters of the file, and the guest's clusters are encrypted, each
 * sector with its place in the file for a tweak. Tables are not, nor are compressed clusters, as QEMU has it; none are made here.
 *
 * The guest's bytes go through a layer (block/luks/luks.h), a node on the file or on the data file. Who only looks at tables (a check, snapshots,
 * bitmaps) needs no passphrase: the layer then refuses to read and to write.
 */
#include <errno.h>

#include "block/luks/luks.h"
#include "block/qcow2/qcow2.h"

#define HEADER_BYTES_MAX (UINT64_C(64) << 20)

struct place {
        struct block *file;
        uint64_t offset, size_bytes;
};

static int read_header(void *ctx, uint64_t offset_bytes, uint8_t *to, size_t size_bytes)
{
        const struct place *p = ctx;

        if (offset_bytes > p->size_bytes || size_bytes > p->size_bytes - offset_bytes)
                return -EINVAL;
        return block_read(p->file, p->offset + offset_bytes, to, size_bytes);
}

static int open_layer(struct qcow2 *q, const struct block_opening *opening, const struct luks *luks, struct cipher *cipher, struct err *err)
{
        struct block *layer;
        int r = luks_layer_new(opening, q->data, q->data != q->file, luks, cipher, &layer, err);

        if (r < 0)
                return r;
        q->apart = NULL;
        block_adopt(&q->block, BLOCK_DATA, layer);
        q->content = layer;
        return 0;
}

int qcow2_content_open(struct qcow2 *q, const struct block_opening *opening, struct err *err)
{
        struct qcow2_extension *e = qcow2_extension(q, QCOW2_EXT_ENCRYPTION);
        struct place place = { .file = q->file };
        struct cipher *cipher = NULL;
        struct luks luks;
        int r;

        q->content = q->data;
        if (!q->header.crypt_method)
                return 0;
        if (q->header.autoclear & QCOW2_AUTOCLEAR_RAW_DATA)
                return err_set(err, -EINVAL, "disk %s is damaged: its data are raw and encrypted at once", q->block.path);
        if (e && e->size_bytes >= 16) {
                place.offset = be64(e->bytes);
                place.size_bytes = be64(e->bytes + 8);
        }
        if (!qcow2_offset_good(q, place.offset) || !place.offset || place.size_bytes > HEADER_BYTES_MAX)
                return err_set(err, -EINVAL, "disk %s is damaged: it does not say where its encryption header is", q->block.path);
        r = luks_parse(&luks, read_header, &place, q->block.path, err);
        if (r == 0 && (opening->secret || !(opening->flags & (BLOCK_OPEN_NO_BACKING | BLOCK_OPEN_REPAIR))))
                r = luks_unlock_by(&luks, read_header, &place, opening->secret, q->block.path, &cipher, err);
        return r == 0 ? open_layer(q, opening, &luks, cipher, err) : r;
}

int qcow2_crypt_place(struct qcow2 *q, uint64_t offset, uint64_t size_bytes, struct err *err)
{
        struct qcow2_extension *e = qcow2_set_extension(q, QCOW2_EXT_ENCRYPTION, 16);

        if (!e)
                return err_nomem(err);
        q->header.crypt_method = QCOW2_CRYPT_LUKS;
        put_be64(e->bytes, offset);
        put_be64(e->bytes + 8, size_bytes);
        return 0;
}
