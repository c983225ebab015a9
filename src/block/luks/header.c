#include "block/luks/header.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/cursor.h"
#include "base/json.h"

#define HEADER1_BYTES 592
#define HEADER2_BYTES 4096
#define HEADER2_MAX (4u << 20)
#define SLOT1_USED 0x00ac71f3u
#define STRIPES_MAX 4096u
#define OFFSET_MAX (UINT64_C(1) << 40)

static const uint8_t magic[6] = { 'L', 'U', 'K', 'S', 0xba, 0xbe };

bool luks_is_header(const uint8_t *head, size_t size_bytes)
{
        return size_bytes >= 8 && memcmp(head, magic, 6) == 0 && head[6] == 0 && (head[7] == 1 || head[7] == 2);
}

/* ---- stripes ---- */

/* H(number, block) over blocks of the digest's size. */
static int diffuse(enum digest digest, uint8_t *block, size_t size_bytes, struct err *err)
{
        uint8_t input[4 + CIPHER_DIGEST_MAX], output[CIPHER_DIGEST_MAX];
        size_t piece = digest_bytes(digest);
        int r = 0;

        for (uint32_t n = 0; n * piece < size_bytes && r == 0; n++) {
                size_t some = MIN(piece, size_bytes - n * piece);

                for (unsigned k = 0; k < 4; k++)
                        input[k] = (uint8_t)(n >> (24 - 8 * k));
                memcpy(input + 4, block + n * piece, some);
                r = digest_of(digest, input, 4 + some, output, err);
                if (r == 0)
                        memcpy(block + n * piece, output, some);
        }
        return r;
}

static void add(uint8_t *to, const uint8_t *from, size_t size_bytes)
{
        for (size_t n = 0; n < size_bytes; n++)
                to[n] ^= from[n];
}

int luks_af_merge(enum digest digest, const uint8_t *stripes, uint32_t count, size_t key_bytes, uint8_t *key, struct err *err)
{
        int r = 0;

        memset(key, 0, key_bytes);
        for (uint32_t n = 0; n + 1 < count && r == 0; n++) {
                add(key, stripes + n * key_bytes, key_bytes);
                r = diffuse(digest, key, key_bytes, err);
        }
        add(key, stripes + (count - 1) * key_bytes, key_bytes);
        return r;
}

/* All but the last are random already. */
int luks_af_split(enum digest digest, const uint8_t *key, size_t key_bytes, uint32_t count, uint8_t *stripes, struct err *err)
{
        uint8_t *last = stripes + (count - 1) * key_bytes, merged[CIPHER_KEY_MAX];
        int r;

        memset(last, 0, key_bytes);
        r = luks_af_merge(digest, stripes, count, key_bytes, merged, err);
        memcpy(last, merged, key_bytes);
        add(last, key, key_bytes);
        return r;
}

/* ---- version 1 ---- */

static int bad(const char *what, const char *text, struct err *err)
{
        return err_set(err, -EINVAL, "disk %s is damaged: its LUKS header has %s", what, text);
}

static int check_cipher(const char *what, const char *cipher, const char *mode, struct err *err)
{
        if (strcmp(cipher, "aes") == 0 && strcmp(mode, "xts-plain64") == 0)
                return 0;
        return err_set(err, -EOPNOTSUPP, "disk %s is encrypted by %.32s-%.32s; aes-xts-plain64 is known", what, cipher, mode);
}

static void take_text(struct cursor *in, char *to, size_t size_bytes)
{
        const void *bytes = cursor_take(in, size_bytes);

        memset(to, 0, size_bytes + 1);
        if (bytes)
                memcpy(to, bytes, size_bytes);
}

static int parse_slot1(struct luks *l, struct luks_slot *slot, struct cursor *in, int digest)
{
        slot->used = cursor_be32(in) == SLOT1_USED;
        slot->kdf = (struct kdf){ .kind = KDF_PBKDF2, .digest = (enum digest)digest, .iterations = cursor_be32(in), .salt_bytes = 32 };
        if (cursor_get(in, slot->kdf.salt, 32) < 0)
                return -EINVAL;
        slot->offset_bytes = cursor_be32(in) * UINT64_C(512);
        slot->stripes = cursor_be32(in);
        slot->af_digest = (enum digest)digest;
        slot->area_key_bytes = l->key_bytes;
        return slot->used && (!slot->stripes || slot->stripes > STRIPES_MAX) ? -EINVAL : 0;
}

static int parse1(struct luks *l, luks_read_fn *read, void *ctx, const char *what, struct err *err)
{
        char cipher[33], mode[33], hash[33];
        uint8_t bytes[HEADER1_BYTES];
        struct cursor in = cursor_from(bytes + 8, sizeof(bytes) - 8);
        int digest, r = read(ctx, 0, bytes, sizeof(bytes));

        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", what);
        take_text(&in, cipher, 32);
        take_text(&in, mode, 32);
        take_text(&in, hash, 32);
        l->payload_bytes = cursor_be32(&in) * UINT64_C(512);
        l->key_bytes = cursor_be32(&in);
        l->sector_bytes = 512;
        digest = digest_find(hash);
        r = check_cipher(what, cipher, mode, err);
        if (r < 0)
                return r;
        if (digest < 0)
                return err_set(err, -EOPNOTSUPP, "disk %s: the digest %.32s is not known", what, hash);
        if (l->key_bytes != 32 && l->key_bytes != 64)
                return bad(what, "a key of another size than 256 or 512 bits", err);
        l->digest_bytes = 20;
        l->digest_slots = 0xff;
        l->digest_kdf = (struct kdf){ .kind = KDF_PBKDF2, .digest = (enum digest)digest, .salt_bytes = 32 };
        if (cursor_get(&in, l->digest, 20) < 0 || cursor_get(&in, l->digest_kdf.salt, 32) < 0)
                return bad(what, "no end", err);
        l->digest_kdf.iterations = cursor_be32(&in);
        take_text(&in, l->uuid, 40);
        for (unsigned n = 0; n < 8; n++)
                if (parse_slot1(l, &l->slot[n], &in, digest) < 0)
                        return bad(what, "a key slot that cannot be", err);
        return 0;
}

/* ---- version 2: a binary header, and JSON behind it ---- */

static int base64(const char *text, uint8_t *to, size_t room, size_t *size_bytes)
{
        static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        uint32_t bits = 0;
        unsigned have = 0;

        *size_bytes = 0;
        for (; text && *text && *text != '='; text++) {
                const char *at = strchr(digits, *text);

                if (!at)
                        return -EINVAL;
                bits = bits << 6 | (uint32_t)(at - digits);
                have += 6;
                if (have < 8)
                        continue;
                have -= 8;
                if (*size_bytes == room)
                        return -EINVAL;
                to[(*size_bytes)++] = (uint8_t)(bits >> have);
        }
        return text ? 0 : -EINVAL;
}

static const char *text_in(const json_t *object, const char *key)
{
        const char *text = json_string_value(json_object_get(object, key));

        return text ? text : "";
}

static uint64_t number_in(const json_t *object, const char *key)
{
        const json_t *value = json_object_get(object, key);
        char *end;
        uint64_t number;

        if (json_is_integer(value))
                return json_integer_value(value) < 0 ? UINT64_MAX : (uint64_t)json_integer_value(value);
        if (!json_is_string(value) || !*json_string_value(value)) /* 64-bit numbers are texts */
                return UINT64_MAX;
        number = strtoull(json_string_value(value), &end, 10);
        return *end ? UINT64_MAX : number;
}

static int parse_kdf(struct kdf *kdf, const json_t *object)
{
        const char *type = text_in(object, "type");
        int digest = DIGEST_SHA256;
        uint64_t iterations;

        kdf->kind = strcmp(type, "argon2id") == 0 ? KDF_ARGON2ID : strcmp(type, "argon2i") == 0 ? KDF_ARGON2I : KDF_PBKDF2;
        if (kdf->kind == KDF_PBKDF2 && strcmp(type, "pbkdf2") != 0)
                return -EINVAL;
        iterations = number_in(object, kdf->kind == KDF_PBKDF2 ? "iterations" : "time");
        if (kdf->kind == KDF_PBKDF2) {
                digest = digest_find(text_in(object, "hash"));
        } else if (number_in(object, "memory") > UINT32_MAX || number_in(object, "cpus") > 64) {
                return -EINVAL;
        } else {
                kdf->memory_kib = (uint32_t)number_in(object, "memory");
                kdf->threads = (uint32_t)number_in(object, "cpus");
        }
        if (digest < 0 || iterations > UINT32_MAX)
                return -EINVAL;
        kdf->digest = (enum digest)digest;
        kdf->iterations = (uint32_t)iterations;
        return base64(json_string_value(json_object_get(object, "salt")), kdf->salt, sizeof(kdf->salt), &kdf->salt_bytes);
}

static int slot_number(const char *key)
{
        char *end;
        unsigned long n = strtoul(key, &end, 10);

        return *key && !*end && n < LUKS_SLOTS_MAX ? (int)n : -1;
}

static int parse_slot2(struct luks *l, const char *key, const json_t *object)
{
        const json_t *area = json_object_get(object, "area"), *af = json_object_get(object, "af");
        int n = slot_number(key), digest = digest_find(text_in(af, "hash"));
        struct luks_slot *slot;
        uint64_t key_bytes = number_in(object, "key_size");

        if (n < 0 || strcmp(text_in(object, "type"), "luks2") != 0) /* of a reencryption that goes on, say */
                return 0;
        slot = &l->slot[n];
        if (digest < 0 || (key_bytes != 32 && key_bytes != 64) || (l->key_bytes && l->key_bytes != key_bytes))
                return -EINVAL;
        if (strcmp(text_in(area, "type"), "raw") != 0 || strcmp(text_in(area, "encryption"), "aes-xts-plain64") != 0)
                return -EINVAL;
        l->key_bytes = (uint32_t)key_bytes;
        slot->af_digest = (enum digest)digest;
        slot->stripes = (uint32_t)MIN(number_in(af, "stripes"), (uint64_t)UINT32_MAX);
        slot->offset_bytes = number_in(area, "offset");
        slot->area_key_bytes = (uint32_t)MIN(number_in(area, "key_size"), (uint64_t)UINT32_MAX);
        if (!slot->stripes || slot->stripes > STRIPES_MAX || slot->offset_bytes > OFFSET_MAX || (slot->area_key_bytes != 32 && slot->area_key_bytes != 64))
                return -EINVAL;
        slot->used = true;
        return parse_kdf(&slot->kdf, json_object_get(object, "kdf"));
}

static int parse_digest2(struct luks *l, const json_t *object)
{
        const json_t *name;
        bool of_disk = false;
        size_t n;

        json_array_foreach(json_object_get(object, "segments"), n, name)
                of_disk |= json_is_string(name) && strcmp(json_string_value(name), "0") == 0;
        if (!of_disk)
                return 0;
        json_array_foreach(json_object_get(object, "keyslots"), n, name)
        {
                int slot = slot_number(json_is_string(name) ? json_string_value(name) : "");

                if (slot >= 0)
                        l->digest_slots |= 1u << slot;
        }
        if (strcmp(text_in(object, "type"), "pbkdf2") != 0 || parse_kdf(&l->digest_kdf, object) < 0)
                return -EINVAL;
        return base64(json_string_value(json_object_get(object, "digest")), l->digest, sizeof(l->digest), &l->digest_bytes);
}

static int parse_segment2(struct luks *l, const json_t *segments, const char *what, struct err *err)
{
        const json_t *segment = json_object_get(segments, "0");
        uint64_t sector_bytes = number_in(segment, "sector_size");

        if (json_object_size(segments) != 1 || strcmp(text_in(segment, "type"), "crypt") != 0 || json_object_get(segment, "integrity"))
                return err_set(err, -EOPNOTSUPP, "disk %s is encrypted in several parts, or with integrity, which is not known", what);
        if (strcmp(text_in(segment, "encryption"), "aes-xts-plain64") != 0)
                return err_set(err, -EOPNOTSUPP, "disk %s is encrypted by %.64s; aes-xts-plain64 is known", what, text_in(segment, "encryption"));
        l->payload_bytes = number_in(segment, "offset");
        l->tweak_sectors = number_in(segment, "iv_tweak");
        if (l->payload_bytes > OFFSET_MAX || l->payload_bytes % 512 || l->tweak_sectors > OFFSET_MAX ||
            !is_power_of_two(sector_bytes) || sector_bytes < 512 || sector_bytes > 4096)
                return bad(what, "a segment that cannot be", err);
        l->sector_bytes = (uint32_t)sector_bytes;
        return 0;
}

static int parse_json(struct luks *l, const json_t *root, const char *what, struct err *err)
{
        const char *key;
        json_t *value;
        int r = parse_segment2(l, json_object_get(root, "segments"), what, err);

        if (r < 0)
                return r;
        if (json_array_size(json_object_get(json_object_get(json_object_get(root, "config"), "requirements"), "mandatory")))
                return err_set(err, -EOPNOTSUPP, "disk %s needs something of LUKS2 that is not known here (reencryption, say)", what);
        json_object_foreach(json_object_get(root, "keyslots"), key, value)
                if (parse_slot2(l, key, value) < 0)
                        return bad(what, "a key slot that is not known", err);
        json_object_foreach(json_object_get(root, "digests"), key, value)
                if (parse_digest2(l, value) < 0)
                        return bad(what, "a digest that is not known", err);
        return l->key_bytes && l->digest_bytes ? 0 : bad(what, "no key slots", err);
}

/* One of the two copies; -EILSEQ: it is not right. */
static int read_copy(struct luks *l, luks_read_fn *read, void *ctx, uint64_t offset, uint64_t *sequence, json_t **root)
{
        uint8_t fixed[HEADER2_BYTES], sum[CIPHER_DIGEST_MAX], was[64];
        struct cursor in = cursor_from(fixed + 8, sizeof(fixed) - 8);
        _cleanup_free_ uint8_t *bytes = NULL;
        uint64_t size_bytes;
        char algorithm[33];
        int digest, r = read(ctx, offset, fixed, sizeof(fixed));

        if (r < 0)
                return r;
        size_bytes = cursor_be64(&in);
        *sequence = cursor_be64(&in);
        (void)cursor_take(&in, 48);
        take_text(&in, algorithm, 32);
        (void)cursor_take(&in, 64);
        take_text(&in, l->uuid, 40);
        digest = digest_find(algorithm);
        if (memcmp(fixed, offset ? "SKUL\xba\xbe" : "LUKS\xba\xbe", 6) != 0 || digest < 0 || size_bytes <= HEADER2_BYTES || size_bytes > HEADER2_MAX)
                return -EILSEQ;
        bytes = malloc(size_bytes + 1);
        if (!bytes)
                return -ENOMEM;
        r = read(ctx, offset, bytes, size_bytes);
        if (r < 0)
                return r;
        memcpy(was, bytes + 448, sizeof(was));
        memset(bytes + 448, 0, sizeof(was));
        r = digest_of((enum digest)digest, bytes, size_bytes, sum, NULL);
        if (r < 0)
                return r;
        if (memcmp(sum, was, digest_bytes((enum digest)digest)) != 0)
                return -EILSEQ;
        bytes[size_bytes] = '\0';
        *root = json_loadb((char *)bytes + HEADER2_BYTES, strlen((char *)bytes + HEADER2_BYTES), JSON_REJECT_DUPLICATES, NULL);
        return *root ? 0 : -EILSEQ;
}

/* The first copy, else the second, which lies at one of a few places. */
static int parse2(struct luks *l, luks_read_fn *read, void *ctx, const char *what, struct err *err)
{
        uint64_t sequence = 0;
        json_t *root = NULL;
        int r = read_copy(l, read, ctx, 0, &sequence, &root);

        for (uint64_t at = 16384; r == -EILSEQ && at <= HEADER2_MAX; at *= 2)
                r = read_copy(l, read, ctx, at, &sequence, &root);
        if (r == -EILSEQ)
                return bad(what, "no copy whose checksum is right", err);
        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", what);
        r = parse_json(l, root, what, err);
        json_decref(root);
        return r;
}

int luks_parse(struct luks *luks, luks_read_fn *read, void *ctx, const char *what, struct err *err)
{
        uint8_t head[8];
        int r = read(ctx, 0, head, sizeof(head));

        if (r < 0)
                return err_errno(err, r, "cannot read disk %s", what);
        if (!luks_is_header(head, sizeof(head)))
                return err_set(err, -EINVAL, "disk %s is not encrypted by LUKS", what);
        memset(luks, 0, sizeof(*luks));
        luks->version = head[7];
        return luks->version == 1 ? parse1(luks, read, ctx, what, err) : parse2(luks, read, ctx, what, err);
}

/* ---- unlocking ---- */

static bool same(const uint8_t *a, const uint8_t *b, size_t size_bytes)
{
        uint8_t differ = 0;

        for (size_t n = 0; n < size_bytes; n++)
                differ |= a[n] ^ b[n];
        return !differ;
}

/* 1: this is the key; 0: it is not. */
static int try_slot(const struct luks *l, const struct luks_slot *slot, luks_read_fn *read, void *ctx, const uint8_t *secret, size_t secret_bytes,
                    uint8_t *key, struct err *err)
{
        size_t size_bytes = align_up((uint64_t)slot->stripes * l->key_bytes, 512);
        _cleanup_free_ uint8_t *stripes = malloc(size_bytes);
        uint8_t area_key[CIPHER_KEY_MAX], digest[CIPHER_DIGEST_MAX] = { 0 };
        struct cipher *cipher = NULL;
        int r = stripes ? kdf_run(&slot->kdf, secret, secret_bytes, area_key, slot->area_key_bytes, err) : err_nomem(err);

        if (r == 0)
                r = cipher_new(area_key, slot->area_key_bytes, 512, &cipher, err);
        if (r == 0) {
                r = read(ctx, slot->offset_bytes, stripes, size_bytes);
                if (r == 0)
                        r = cipher_run(cipher, false, 0, stripes, size_bytes);
                if (r < 0)
                        err_errno(err, r, "a key slot cannot be read");
        }
        if (r == 0)
                r = luks_af_merge(slot->af_digest, stripes, slot->stripes, l->key_bytes, key, err);
        if (r == 0)
                r = kdf_run(&l->digest_kdf, key, l->key_bytes, digest, l->digest_bytes, err);
        cipher_free(cipher);
        explicit_bzero(area_key, sizeof(area_key));
        if (stripes)
                explicit_bzero(stripes, size_bytes);
        return r < 0 ? r : same(digest, l->digest, l->digest_bytes);
}

int luks_unlock(const struct luks *luks, luks_read_fn *read, void *ctx, const uint8_t *secret, size_t secret_bytes, const char *what,
                struct cipher **cipher, struct err *err)
{
        uint8_t key[CIPHER_KEY_MAX];
        int r = 0;

        for (unsigned n = 0; n < LUKS_SLOTS_MAX && r == 0; n++)
                if (luks->slot[n].used && luks->digest_slots >> n & 1)
                        r = try_slot(luks, &luks->slot[n], read, ctx, secret, secret_bytes, key, err);
        if (r > 0)
                r = cipher_new(key, luks->key_bytes, luks->sector_bytes, cipher, err);
        else if (r == 0)
                r = err_set(err, -EACCES, "disk %s: the passphrase is not one of its own", what);
        explicit_bzero(key, sizeof(key));
        return r;
}
