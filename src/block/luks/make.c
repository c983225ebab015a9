/* New LUKS headers: version 1 as its specification lays it out, version 2 with both copies of its header and one key slot behind them. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/random.h>
#include <time.h>

#include "base/json.h"
#include "block/luks/header.h"

#define STRIPES 4000u
#define HEADER1_BYTES 592
#define COPY_BYTES 16384u /* of version 2: the binary header and its JSON */
#define PAYLOAD1_BYTES (2u << 20)
#define PAYLOAD2_BYTES (16u << 20)
#define PROBE_ITERATIONS 20000u
#define SALT_BYTES 32

uint64_t luks_payload_bytes(const struct luks_new *how)
{
        return how->version == 1 ? PAYLOAD1_BYTES : PAYLOAD2_BYTES;
}

static int random_bytes(void *to, size_t size_bytes)
{
        return getrandom(to, size_bytes, 0) == (ssize_t)size_bytes ? 0 : -EIO;
}

static uint64_t now_us(void)
{
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* As many iterations as take about so long here. */
static int choose_iterations(struct kdf *kdf, uint32_t ms, uint32_t least, struct err *err)
{
        uint8_t key[CIPHER_KEY_MAX];
        uint64_t start = now_us(), took;
        int r;

        kdf->iterations = kdf->kind == KDF_PBKDF2 ? PROBE_ITERATIONS : 1;
        r = kdf_run(kdf, (const uint8_t *)"probe", 5, key, sizeof(key), err);
        took = MAX(now_us() - start, UINT64_C(1));
        kdf->iterations = (uint32_t)MIN(MAX(kdf->iterations * (uint64_t)ms * 1000 / took, (uint64_t)least), UINT64_C(50000000));
        return r;
}

struct making {
        const struct luks_new *how;
        uint8_t key[CIPHER_KEY_MAX], digest[CIPHER_DIGEST_MAX];
        struct kdf slot, of_digest;
        size_t digest_bytes, material_bytes;
        uint8_t *material; /* the slot's, as it is written */
        char uuid[37];
};

/* The key, split, encrypted by what the passphrase becomes. */
static int make_material(struct making *m, const uint8_t *secret, size_t secret_bytes, struct err *err)
{
        uint32_t key_bytes = m->how->key_bytes;
        uint8_t area_key[CIPHER_KEY_MAX];
        struct cipher *cipher = NULL;
        int r;

        m->material_bytes = align_up(STRIPES * (uint64_t)key_bytes, 4096);
        m->material = calloc(1, m->material_bytes);
        r = m->material ? random_bytes(m->material, STRIPES * (size_t)key_bytes) : -ENOMEM;
        if (r < 0)
                return err_errno(err, r, "cannot make a key slot");
        r = luks_af_split(m->how->digest, m->key, key_bytes, STRIPES, m->material, err);
        if (r == 0)
                r = kdf_run(&m->slot, secret, secret_bytes, area_key, key_bytes, err);
        if (r == 0)
                r = cipher_new(area_key, key_bytes, 512, &cipher, err);
        if (r == 0 && cipher_run(cipher, true, 0, m->material, m->material_bytes) < 0)
                r = err_set(err, -EIO, "libcrypto fails");
        cipher_free(cipher);
        explicit_bzero(area_key, sizeof(area_key));
        return r;
}

static int make_keys(struct making *m, struct err *err)
{
        const struct luks_new *how = m->how;
        uint8_t id[16];
        bool pbkdf2 = how->version == 1 || how->pbkdf2;
        int r = random_bytes(m->key, how->key_bytes);

        m->slot = (struct kdf){
                .kind = pbkdf2 ? KDF_PBKDF2 : KDF_ARGON2ID, .digest = how->digest, .memory_kib = how->memory_kib, .threads = 4, .salt_bytes = SALT_BYTES,
        };
        m->of_digest = (struct kdf){ .kind = KDF_PBKDF2, .digest = how->digest, .salt_bytes = SALT_BYTES };
        m->digest_bytes = how->version == 1 ? 20 : digest_bytes(how->digest);
        if (r == 0)
                r = random_bytes(m->slot.salt, SALT_BYTES);
        if (r == 0)
                r = random_bytes(m->of_digest.salt, SALT_BYTES);
        if (r == 0)
                r = random_bytes(id, sizeof(id));
        if (r < 0)
                return err_errno(err, r, "cannot make keys");
        id[6] = (uint8_t)((id[6] & 0x0f) | 0x40);
        id[8] = (uint8_t)((id[8] & 0x3f) | 0x80);
        snprintf(m->uuid, sizeof(m->uuid), "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", id[0], id[1], id[2], id[3], id[4], id[5],
                 id[6], id[7], id[8], id[9], id[10], id[11], id[12], id[13], id[14], id[15]);
        r = choose_iterations(&m->slot, how->iter_ms, pbkdf2 ? 1000 : 4, err);
        if (r == 0)
                r = choose_iterations(&m->of_digest, MAX(how->iter_ms / 8, 1u), 1000, err);
        return r == 0 ? kdf_run(&m->of_digest, m->key, how->key_bytes, m->digest, m->digest_bytes, err) : r;
}

/* ---- version 1 ---- */

static const char *const digest_texts[] = { "sha1", "sha256", "sha512" };

static void put_be(uint8_t *to, uint64_t value, unsigned bytes)
{
        while (bytes--) {
                to[bytes] = (uint8_t)value;
                value >>= 8;
        }
}

static int write1(struct making *m, luks_write_fn *write, void *ctx)
{
        uint8_t head[4096] = { 'L', 'U', 'K', 'S', 0xba, 0xbe, 0, 1 };
        int r;

        put_letters(head + 8, "aes");
        put_letters(head + 40, "xts-plain64");
        put_letters(head + 72, digest_texts[m->how->digest]);
        put_be(head + 104, PAYLOAD1_BYTES / 512, 4);
        put_be(head + 108, m->how->key_bytes, 4);
        memcpy(head + 112, m->digest, 20);
        memcpy(head + 132, m->of_digest.salt, 32);
        put_be(head + 164, m->of_digest.iterations, 4);
        put_letters(head + 168, m->uuid);
        for (unsigned n = 0; n < 8; n++) {
                uint8_t *slot = head + 208 + n * 48;

                put_be(slot, n ? 0xdead : 0x00ac71f3, 4);
                put_be(slot + 4, n ? 0 : m->slot.iterations, 4);
                memcpy(slot + 8, m->slot.salt, n ? 0 : 32);
                put_be(slot + 40, (4096 + n * m->material_bytes) / 512, 4);
                put_be(slot + 44, STRIPES, 4);
        }
        r = write(ctx, 4096, m->material, m->material_bytes);
        return r == 0 ? write(ctx, 0, head, sizeof(head)) : r;
}

/* ---- version 2 ---- */

static void put_base64(const uint8_t *bytes, size_t size_bytes, char *to)
{
        static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

        for (size_t n = 0; n < size_bytes; n += 3) {
                uint32_t v = (uint32_t)bytes[n] << 16 | (n + 1 < size_bytes ? (uint32_t)bytes[n + 1] << 8 : 0) | (n + 2 < size_bytes ? bytes[n + 2] : 0);

                *to++ = digits[v >> 18];
                *to++ = digits[v >> 12 & 63];
                *to++ = n + 1 < size_bytes ? digits[v >> 6 & 63] : '=';
                *to++ = n + 2 < size_bytes ? digits[v & 63] : '=';
        }
        *to = '\0';
}

static json_t *kdf_json(const struct kdf *kdf)
{
        char salt[100];

        put_base64(kdf->salt, kdf->salt_bytes, salt);
        if (kdf->kind == KDF_PBKDF2)
                return json_pack("{s:s, s:s, s:I, s:s}", "type", "pbkdf2", "hash", digest_texts[kdf->digest], "iterations", (json_int_t)kdf->iterations, "salt",
                                 salt);
        return json_pack("{s:s, s:I, s:I, s:I, s:s}", "type", "argon2id", "time", (json_int_t)kdf->iterations, "memory", (json_int_t)kdf->memory_kib, "cpus",
                         (json_int_t)kdf->threads, "salt", salt);
}

static json_t *make_json(const struct making *m)
{
        json_int_t key_bytes = m->how->key_bytes;
        char digest[100], area[24], offset[24], json_bytes[24], slots[24];
        json_t *of_digest = kdf_json(&m->of_digest);

        put_base64(m->digest, m->digest_bytes, digest);
        snprintf(area, sizeof(area), "%zu", m->material_bytes);
        snprintf(offset, sizeof(offset), "%u", PAYLOAD2_BYTES);
        snprintf(json_bytes, sizeof(json_bytes), "%u", COPY_BYTES - 4096);
        snprintf(slots, sizeof(slots), "%u", PAYLOAD2_BYTES - 2 * COPY_BYTES);
        if (of_digest) {
                json_object_set_new(of_digest, "keyslots", json_pack("[s]", "0"));
                json_object_set_new(of_digest, "segments", json_pack("[s]", "0"));
                json_object_set_new(of_digest, "digest", json_string(digest));
        }
        return json_pack("{s:{s:{s:s, s:I, s:{s:s, s:i, s:s}, s:{s:s, s:s, s:s, s:s, s:I}, s:o}},"
                         " s:{}, s:{s:{s:s, s:s, s:s, s:s, s:s, s:i}}, s:{s:o}, s:{s:s, s:s}}",
                         "keyslots", "0", "type", "luks2", "key_size", key_bytes, "af", "type", "luks1", "stripes", (int)STRIPES, "hash",
                         digest_texts[m->how->digest], "area", "type", "raw", "offset", "32768", "size", area, "encryption", "aes-xts-plain64", "key_size",
                         key_bytes, "kdf", kdf_json(&m->slot), "tokens", "segments", "0", "type", "crypt", "offset", offset, "size", "dynamic", "iv_tweak", "0",
                         "encryption", "aes-xts-plain64", "sector_size", (int)m->how->sector_bytes, "digests", "0", of_digest, "config", "json_size",
                         json_bytes, "keyslots_size", slots);
}

static int write_copy(const struct making *m, const char *text, uint64_t at, luks_write_fn *write, void *ctx)
{
        _cleanup_free_ uint8_t *bytes = calloc(1, COPY_BYTES);
        uint8_t sum[CIPHER_DIGEST_MAX];
        int r;

        if (!bytes)
                return -ENOMEM;
        put_letters(bytes, at ? "SKUL\xba\xbe" : "LUKS\xba\xbe");
        bytes[7] = 2;
        put_be(bytes + 8, COPY_BYTES, 8);
        put_be(bytes + 16, 1, 8);
        put_letters(bytes + 72, "sha256");
        r = random_bytes(bytes + 104, 64);
        put_letters(bytes + 168, m->uuid);
        put_be(bytes + 256, at, 8);
        put_letters(bytes + 4096, text);
        if (r == 0)
                r = digest_of(DIGEST_SHA256, bytes, COPY_BYTES, sum, NULL);
        memcpy(bytes + 448, sum, r == 0 ? 32 : 0);
        return r == 0 ? write(ctx, at, bytes, COPY_BYTES) : r;
}

static int write2(struct making *m, luks_write_fn *write, void *ctx)
{
        json_t *root = make_json(m);
        char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
        int r = text && strlen(text) < COPY_BYTES - 4096 ? write(ctx, 2 * COPY_BYTES, m->material, m->material_bytes) : -ENOMEM;

        if (r == 0)
                r = write_copy(m, text, COPY_BYTES, write, ctx);
        if (r == 0)
                r = write_copy(m, text, 0, write, ctx);
        json_decref(root);
        free(text);
        return r;
}

int luks_make(const struct luks_new *how, luks_write_fn *write, void *ctx, const uint8_t *secret, size_t secret_bytes, struct err *err)
{
        struct making m = { .how = how };
        int r = make_keys(&m, err);

        if (r == 0)
                r = make_material(&m, secret, secret_bytes, err);
        if (r == 0) {
                r = how->version == 1 ? write1(&m, write, ctx) : write2(&m, write, ctx);
                if (r < 0)
                        err_errno(err, r, "cannot write");
        }
        free(m.material);
        explicit_bzero(&m, sizeof(m));
        return r;
}
