/*
 * A disk encrypted by LUKS, version 1 or 2: a header with key slots, and the disk behind it, sector by sector in AES-XTS (header.h).
 *
 * Requests run in fibers, through a buffer of whole sectors: what is read is decrypted in it, what is written is encrypted in it, so that the
 * guest's memory is read once and never has anything else in it. What is not of whole sectors is read, changed and written back, while no
 * other write is under way. Nothing but the disk's own sectors is written, so a crash leaves what a disk leaves: of a write that was not flushed, any sectors.
 * Discards are not handed on: they would show where data is.
 */
#include "block/luks/luks.h"

#include <errno.h>
#include <inttypes.h>

#include "base/fiber.h"
#include "base/iov.h"
#include "block/mapped.h"
#include "block/secret.h"

#define PIECE_BYTES ((uint64_t)1 << 20)

struct luks_disk {
        struct block block;
        struct block *file;
        struct luks header;
        struct cipher *cipher;      /* NULL: only looked at */
        struct fiber_lock turn;     /* writes begin in turn; one that is not of whole sectors keeps it to its end */
        unsigned whole;             /* writes of whole sectors under way */
        struct fiber_queue whole_over;
};

static struct luks_disk *to_luks(struct block *block)
{
        return container_of(block, struct luks_disk, block);
}

static int read_file(void *ctx, uint64_t offset_bytes, uint8_t *to, size_t size_bytes)
{
        return block_read(ctx, offset_bytes, to, size_bytes);
}

static int write_file(void *ctx, uint64_t offset_bytes, const uint8_t *from, size_t size_bytes)
{
        return block_write(ctx, offset_bytes, from, size_bytes);
}

/* ---- requests ---- */

static int run_cipher(struct luks_disk *l, bool encrypt, uint64_t at, uint8_t *bytes, size_t size_bytes)
{
        return cipher_run(l->cipher, encrypt, l->header.tweak_sectors * 512 + at, bytes, size_bytes);
}

static int read_sectors(struct luks_disk *l, uint64_t at, uint8_t *bytes, size_t size_bytes)
{
        int r = block_read(l->file, l->header.payload_bytes + at, bytes, size_bytes);

        return r == 0 ? run_cipher(l, false, at, bytes, size_bytes) : r;
}

static int write_sectors(struct luks_disk *l, uint64_t at, uint8_t *bytes, size_t size_bytes)
{
        int r = run_cipher(l, true, at, bytes, size_bytes);

        return r == 0 ? block_write(l->file, l->header.payload_bytes + at, bytes, size_bytes) : r;
}

/*
 * Writes of whole sectors go side by side. One that changes a part of a sector is alone: what it reads and writes back must not be what
 * another writes meanwhile.
 */
static void begin_write(struct luks_disk *l, bool whole)
{
        fiber_lock(&l->turn);
        while (!whole && l->whole)
                fiber_queue_wait(&l->whole_over);
        l->whole += whole;
        if (whole)
                fiber_unlock(&l->turn);
}

static void end_write(struct luks_disk *l, bool whole)
{
        if (!whole)
                fiber_unlock(&l->turn);
        else if (--l->whole == 0)
                fiber_queue_wake(&l->whole_over);
}

/* [at, at + size) of the guest's, through a buffer of the sectors around it. */
static int do_piece(struct luks_disk *l, const struct block_request *guest, uint64_t at, uint64_t size_bytes, uint8_t *bytes)
{
        uint64_t unit = l->header.sector_bytes, first = align_down(at, unit), end = align_up(at + size_bytes, unit), done = at - guest->offset_bytes;
        bool whole = first == at && end == at + size_bytes;
        int r = 0;

        if (guest->op == BLOCK_READ) {
                r = read_sectors(l, first, bytes, end - first);
                if (r == 0)
                        buf_to_iov(guest->iov, guest->iov_count, done, bytes + (at - first), size_bytes);
                return r;
        }
        begin_write(l, whole);
        if (!whole)
                r = read_sectors(l, first, bytes, end - first);
        if (r == 0 && guest->op == BLOCK_WRITE)
                iov_to_buf(guest->iov, guest->iov_count, done, bytes + (at - first), size_bytes);
        else if (r == 0)
                memset(bytes + (at - first), 0, size_bytes);
        if (r == 0)
                r = write_sectors(l, first, bytes, end - first);
        end_write(l, whole);
        return r;
}

static void work(void *arg)
{
        struct block_request *guest = arg;
        struct luks_disk *l = (struct luks_disk *)guest->next;
        uint64_t unit = l->header.sector_bytes, at = guest->offset_bytes, end = at + guest->size_bytes;
        uint8_t *bytes = malloc(MIN(guest->size_bytes, PIECE_BYTES) + 2 * unit);
        int r = bytes ? 0 : -ENOMEM;

        while (at < end && r == 0) {
                uint64_t some = MIN(end - at, PIECE_BYTES - at % unit);

                r = do_piece(l, guest, at, some, bytes);
                at += some;
        }
        if (r == 0 && guest->flags & BLOCK_F_DURABLE && guest->op != BLOCK_READ)
                r = block_flush(l->file);
        free(bytes);
        block_complete(&l->block, guest, r);
        block_kick(&l->block);
}

static void flush_work(void *arg)
{
        struct block_request *guest = arg;
        struct luks_disk *l = (struct luks_disk *)guest->next;

        block_complete(&l->block, guest, block_flush(l->file));
}

static void luks_submit(struct block *block, struct block_request *req)
{
        struct luks_disk *l = to_luks(block);
        int r = !l->cipher ? -ENOKEY : req->op != BLOCK_READ && req->op != BLOCK_FLUSH && block->info.readonly ? -EROFS : 0;

        if (req->op == BLOCK_WRITE && req->flags & BLOCK_F_COMPRESS)
                r = -EOPNOTSUPP;
        if (r < 0 || req->op == BLOCK_DISCARD) {
                block_complete(block, req, r);
                return;
        }
        req->next = (struct block_request *)l;
        if (fiber_start(req->op == BLOCK_FLUSH ? flush_work : work, req) < 0)
                block_complete(block, req, -ENOMEM);
}

/* ---- opening ---- */

static int luks_probe(const uint8_t *head, size_t size_bytes)
{
        return luks_is_header(head, size_bytes) ? 100 : 0;
}

int luks_unlock_by(const struct luks *luks, luks_read_fn *read, void *ctx, const char *spec, const char *what, struct cipher **cipher,
                   struct err *err)
{
        struct secret *secret = calloc(1, sizeof(*secret));
        int r = secret ? secret_read(spec, what, secret, err) : err_nomem(err);

        if (r == 0)
                r = luks_unlock(luks, read, ctx, secret->bytes, secret->size_bytes, what, cipher, err);
        if (secret)
                secret_wipe(secret);
        free(secret);
        return r;
}

static int open_all(struct luks_disk *l, const struct block_opening *opening, struct err *err)
{
        const struct block_info *file = &l->file->info;
        uint64_t payload;
        int r = luks_parse(&l->header, read_file, l->file, opening->path, err);

        if (r < 0)
                return r;
        payload = l->header.payload_bytes;
        if (payload >= file->size_bytes || align_down(file->size_bytes - payload, l->header.sector_bytes) == 0)
                return err_set(err, -EINVAL, "disk %s is damaged: nothing is behind its LUKS header", opening->path);
        l->block.info = (struct block_info){
                .size_bytes = align_down(file->size_bytes - payload, l->header.sector_bytes), .logical_bytes = MAX(file->logical_bytes, 512u),
                .physical_bytes = MAX(file->physical_bytes, l->header.sector_bytes), .zeroes_bytes = file->readonly ? 0 : (uint32_t)PIECE_BYTES,
                .readonly = file->readonly,
                .noise = true,
        };
        /* What only looks at the image needs no passphrase. */
        if (!opening->secret && opening->flags & BLOCK_OPEN_NO_BACKING && opening->flags & BLOCK_OPEN_READONLY)
                return 0;
        return luks_unlock_by(&l->header, read_file, l->file, opening->secret, opening->path, &l->cipher, err);
}

static void luks_close(struct block *block)
{
        struct luks_disk *l = to_luks(block);

        block_drain(l->file);
        cipher_free(l->cipher);
        block_done(block);
        free(l);
}

static int luks_open(const struct block_opening *opening, struct block **block, struct err *err)
{
        struct luks_disk *l = calloc(1, sizeof(*l));
        int r;

        if (!l)
                return err_nomem(err);
        r = block_init(&l->block, &block_luks, opening, err);
        if (r < 0) {
                free(l);
                return r;
        }
        l->file = opening->file;
        r = open_all(l, opening, err);
        if (r < 0) {
                block_close(&l->block);
                return r;
        }
        block_adopt(&l->block, BLOCK_FILE, l->file);
        *block = &l->block;
        return 0;
}

json_t *luks_about(const struct luks *h)
{
        unsigned slots = 0;

        for (unsigned n = 0; n < LUKS_SLOTS_MAX; n++)
                slots += h->slot[n].used;
        return json_pack("{s:i, s:s, s:s, s:i, s:i, s:i, s:I}", "version", (int)h->version, "uuid", h->uuid, "cipher", "aes-xts-plain64", "key_bits",
                         (int)h->key_bytes * 8, "sector_bytes", (int)h->sector_bytes, "key_slots", (int)slots, "payload_offset", (json_int_t)h->payload_bytes);
}

static int luks_describe(struct block *block, json_t *into)
{
        json_t *about = luks_about(&to_luks(block)->header);

        return about && json_object_set_new(into, "luks", about) == 0 ? 0 : -ENOMEM;
}

static int luks_resize(struct block *block, uint64_t size_bytes, struct err *err)
{
        struct luks_disk *l = to_luks(block);
        uint64_t old = block->info.size_bytes;
        int r;

        size_bytes = align_up(size_bytes, l->header.sector_bytes);
        r = block_resize(l->file, l->header.payload_bytes + size_bytes, err);
        if (r < 0)
                return r;
        block->info.size_bytes = size_bytes;
        for (; old < size_bytes && r == 0; old += PIECE_BYTES) /* zeroes are written: what is behind reads as anything */
                r = block_do(block, BLOCK_WRITE_ZEROES, 0, old, MIN(size_bytes - old, PIECE_BYTES), NULL, 0);
        return r < 0 ? err_errno(err, r, "cannot give disk %s %" PRIu64 " bytes", block->path, size_bytes) : 0;
}

/* ---- new ones ---- */

static const struct block_option_about luks_options[] = {
        { "version", "1|2", "of LUKS; default: 2" },
        { "pbkdf", "argon2id|pbkdf2", "how a passphrase becomes a key; default: argon2id, of version 1 pbkdf2" },
        { "hash", "sha256|sha512|sha1", "default: sha256" },
        { "key_bits", "256|512", "AES-128 or AES-256; default: 512" },
        { "sector_size", "512|4096", "of version 2, what is encrypted by itself; default: 512" },
        { "iter_time", "MS", "how long a passphrase may take to be tried, about; default: 2000" },
        { "memory", "SIZE", "that Argon2 takes meanwhile; default: 256M" },
        { NULL, NULL, NULL },
};

int luks_take_option(const struct block_option *o, struct luks_new *how, struct err *err)
{
        uint64_t value = mapped_option_bytes(o->value);
        int digest;

        if (strcmp(o->key, "version") == 0) {
                how->version = (unsigned)value;
                return value == 1 || value == 2 ? 0 : mapped_bad_option(o, "1 or 2", err);
        }
        if (strcmp(o->key, "pbkdf") == 0) {
                how->pbkdf2 = strcmp(o->value, "pbkdf2") == 0;
                return how->pbkdf2 || strcmp(o->value, "argon2id") == 0 ? 0 : mapped_bad_option(o, "argon2id or pbkdf2", err);
        }
        if (strcmp(o->key, "hash") == 0) {
                digest = digest_find(o->value);
                how->digest = (enum digest)MAX(digest, 0);
                return digest < 0 ? mapped_bad_option(o, "sha256, sha512 or sha1", err) : 0;
        }
        if (strcmp(o->key, "key_bits") == 0) {
                how->key_bytes = (uint32_t)(value / 8);
                return value == 256 || value == 512 ? 0 : mapped_bad_option(o, "256 or 512", err);
        }
        if (strcmp(o->key, "sector_size") == 0) {
                how->sector_bytes = (uint32_t)value;
                return value == 512 || value == 4096 ? 0 : mapped_bad_option(o, "512 or 4096", err);
        }
        if (strcmp(o->key, "iter_time") == 0) {
                how->iter_ms = (uint32_t)value;
                return value && value <= 60000 ? 0 : mapped_bad_option(o, "1 to 60000 ms", err);
        }
        if (strcmp(o->key, "memory") == 0) {
                how->memory_kib = (uint32_t)(value / 1024);
                return value >= 32768 && value <= UINT64_C(2) << 30 ? 0 : mapped_bad_option(o, "32K to 2G", err);
        }
        return err_set(err, -EINVAL, "option %s: LUKS has none of this name", o->key);
}

struct luks_new luks_new_default(unsigned version)
{
        return (struct luks_new){ .version = version, .digest = DIGEST_SHA256, .key_bytes = 64, .sector_bytes = 512, .iter_ms = 2000, .memory_kib = 262144 };
}

int luks_make_by(const struct luks_new *how, luks_write_fn *write, void *ctx, const char *spec, const char *what, struct err *err)
{
        struct secret *secret = calloc(1, sizeof(*secret));
        int r = secret ? secret_read(spec, what, secret, err) : err_nomem(err);

        if (r == 0)
                r = luks_make(how, write, ctx, secret->bytes, secret->size_bytes, err);
        if (secret)
                secret_wipe(secret);
        free(secret);
        return r;
}

/* The disk reads as anything until it is written: that nothing was, is nobody's business. */
static int luks_create(struct block *file, const struct block_creation *creation, struct err *err)
{
        struct luks_new how = luks_new_default(2);
        int r = creation->backing ? err_set(err, -EINVAL, "an encrypted disk has no backing file") : 0;

        for (unsigned n = 0; n < creation->options && r == 0; n++)
                r = luks_take_option(&creation->option[n], &how, err);
        if (r == 0 && how.version == 1 && how.sector_bytes != 512)
                r = err_set(err, -EINVAL, "version 1 of LUKS has sectors of 512 bytes");
        if (r == 0)
                r = block_make_empty(file, luks_payload_bytes(&how) + align_up(creation->size_bytes, how.sector_bytes), err);
        return r == 0 ? luks_make_by(&how, write_file, file, creation->secret, file->path, err) : r;
}

const struct block_driver block_luks = {
        .name = "luks",
        .text = "encrypted, as Linux has it (LUKS1, LUKS2)",
        .suffixes = (const char *const[]){ ".luks", NULL },
        .probe = luks_probe,
        .open = luks_open,
        .options = luks_options,
        .create = luks_create,
        .close = luks_close,
        .submit = luks_submit,
        .describe = luks_describe,
        .resize = luks_resize,
};

/* ---- a layer of another format ---- */

/* A file that is not its own may be gone by now. */
static void layer_close(struct block *block)
{
        cipher_free(to_luks(block)->cipher);
        block_done(block);
        free(to_luks(block));
}

static void layer_reap(struct block *block)
{
        block_reap(to_luks(block)->file);
}

static void layer_wait(struct block *block)
{
        (void)block_wait_some(to_luks(block)->file);
}

/* Whoever it is a layer of has seen to the file. */
static int layer_reopen(struct block *block, bool writable, struct err *err)
{
        block->info.readonly = !writable;
        return 0;
}

static const struct block_driver luks_layer = {
        .name = "luks-layer",
        .close = layer_close,
        .submit = luks_submit,
        .reap = layer_reap,
        .wait = layer_wait,
        .reopen = layer_reopen,
};

int luks_layer_new(const struct block_opening *opening, struct block *file, bool own, const struct luks *luks, struct cipher *cipher,
                   struct block **layer, struct err *err)
{
        struct luks_disk *l = calloc(1, sizeof(*l));
        int r = l ? block_init(&l->block, &luks_layer, opening, err) : err_nomem(err);

        if (r < 0) {
                cipher_free(cipher);
                free(l);
                return r;
        }
        l->file = file;
        l->cipher = cipher;
        l->header = *luks;
        l->header.payload_bytes = l->header.tweak_sectors = 0;
        l->block.info = file->info;
        if (own)
                block_adopt(&l->block, BLOCK_FILE, file);
        *layer = &l->block;
        return 0;
}

const struct luks *luks_layer_header(const struct block *layer)
{
        return &container_of(layer, struct luks_disk, block)->header;
}
