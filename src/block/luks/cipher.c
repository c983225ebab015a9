#include "block/luks/cipher.h"

#include <argon2.h>
#include <dlfcn.h>
#include <errno.h>
#include <openssl/evp.h>

#define ITERATIONS_MAX 100000000u
#define MEMORY_KIB_MAX (2u << 20)

struct crypto_library {
        __typeof__(&EVP_CIPHER_CTX_new) ctx_new;
        __typeof__(&EVP_CIPHER_CTX_free) ctx_free;
        __typeof__(&EVP_CipherInit_ex) init;
        __typeof__(&EVP_CipherUpdate) update;
        __typeof__(&EVP_aes_128_xts) aes_128_xts;
        __typeof__(&EVP_aes_256_xts) aes_256_xts;
        __typeof__(&EVP_sha1) digest[3];
        __typeof__(&EVP_Digest) hash;
        __typeof__(&PKCS5_PBKDF2_HMAC) pbkdf2;
};

/* A library stays once it was loaded; what it exports is looked up anew, which costs nothing beside what it is used for. */
static int load(struct crypto_library *lib, struct err *err)
{
        static const char *const names[] = {
                "EVP_CIPHER_CTX_new", "EVP_CIPHER_CTX_free", "EVP_CipherInit_ex", "EVP_CipherUpdate", "EVP_aes_128_xts", "EVP_aes_256_xts",
                "EVP_sha1", "EVP_sha256", "EVP_sha512", "EVP_Digest", "PKCS5_PBKDF2_HMAC",
        };
        void *handle = dlopen("libcrypto.so.3", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        void *symbol[ARRAY_SIZE(names)];

        if (!handle)
                return err_set(err, -ENOENT, "encryption needs libcrypto (Debian: libssl3): %s", dlerror());
        for (unsigned n = 0; n < ARRAY_SIZE(names); n++) {
                symbol[n] = dlsym(handle, names[n]);
                if (!symbol[n])
                        return err_set(err, -ENOENT, "libcrypto has no %s", names[n]);
        }
        _Static_assert(sizeof(*lib) == sizeof(symbol), "one pointer a name");
        memcpy(lib, symbol, sizeof(symbol));
        return 0;
}

/* ---- AES-XTS ---- */

struct cipher {
        struct crypto_library lib;
        EVP_CIPHER_CTX *ctx[2]; /* decrypting, encrypting */
        uint32_t sector_bytes;
};

void cipher_free(struct cipher *cipher)
{
        if (!cipher)
                return;
        for (unsigned n = 0; n < 2; n++)
                if (cipher->ctx[n])
                        cipher->lib.ctx_free(cipher->ctx[n]);
        free(cipher);
}

int cipher_new(const uint8_t *key, size_t key_bytes, uint32_t sector_bytes, struct cipher **cipher, struct err *err)
{
        struct cipher *c = calloc(1, sizeof(*c));
        int r = c ? load(&c->lib, err) : err_nomem(err);

        if (r == 0 && key_bytes != 32 && key_bytes != 64)
                r = err_set(err, -EOPNOTSUPP, "keys of %zu bytes are not known; 32 and 64 are (AES-XTS)", key_bytes);
        for (int n = 0; n < 2 && r == 0; n++) {
                c->ctx[n] = c->lib.ctx_new();
                if (!c->ctx[n] || c->lib.init(c->ctx[n], key_bytes == 32 ? c->lib.aes_128_xts() : c->lib.aes_256_xts(), NULL, key, NULL, n) != 1)
                        r = err_set(err, -EIO, "libcrypto does not take the key");
        }
        if (r < 0) {
                cipher_free(c);
                return r;
        }
        c->sector_bytes = sector_bytes;
        *cipher = c;
        return 0;
}

int cipher_run(struct cipher *cipher, bool encrypt, uint64_t offset_bytes, uint8_t *bytes, size_t size_bytes)
{
        EVP_CIPHER_CTX *ctx = cipher->ctx[encrypt];

        for (size_t done = 0; done < size_bytes; done += cipher->sector_bytes) {
                uint64_t tweak[2] = { (offset_bytes + done) / 512, 0 };
                int length;

                if (cipher->lib.init(ctx, NULL, NULL, NULL, (const uint8_t *)tweak, -1) != 1 ||
                    cipher->lib.update(ctx, bytes + done, &length, bytes + done, (int)cipher->sector_bytes) != 1)
                        return -EIO;
        }
        return 0;
}

/* ---- digests and keys from passphrases ---- */

static const char *const digest_names[] = { "sha1", "sha256", "sha512" };

int digest_find(const char *name)
{
        for (int n = 0; n < (int)ARRAY_SIZE(digest_names); n++)
                if (strcmp(name, digest_names[n]) == 0)
                        return n;
        return -1;
}

size_t digest_bytes(enum digest digest)
{
        static const uint8_t sizes[] = { 20, 32, 64 };

        return sizes[digest];
}

int digest_of(enum digest digest, const uint8_t *bytes, size_t size_bytes, uint8_t to[CIPHER_DIGEST_MAX], struct err *err)
{
        struct crypto_library lib;
        int r = load(&lib, err);

        if (r == 0 && lib.hash(bytes, size_bytes, to, NULL, lib.digest[digest](), NULL) != 1)
                r = err_set(err, -EIO, "libcrypto cannot make a digest");
        return r;
}

static int run_argon2(const struct kdf *kdf, const uint8_t *secret, size_t secret_bytes, uint8_t *to, size_t to_bytes, struct err *err)
{
        void *handle = dlopen("libargon2.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        __typeof__(&argon2id_hash_raw) hash = handle ? dlsym(handle, kdf->kind == KDF_ARGON2I ? "argon2i_hash_raw" : "argon2id_hash_raw") : NULL;
        int r;

        if (!hash)
                return err_set(err, -ENOENT, "the passphrase needs libargon2 (Debian: libargon2-1): %s", dlerror());
        r = hash(kdf->iterations, kdf->memory_kib, kdf->threads, secret, secret_bytes, kdf->salt, kdf->salt_bytes, to, to_bytes);
        if (r == ARGON2_MEMORY_ALLOCATION_ERROR)
                return err_set(err, -ENOMEM, "the passphrase needs %u MiB of memory to be tried", kdf->memory_kib >> 10);
        return r == ARGON2_OK ? 0 : err_set(err, -EINVAL, "the passphrase cannot be tried: libargon2's error %d", r);
}

int kdf_run(const struct kdf *kdf, const uint8_t *secret, size_t secret_bytes, uint8_t *to, size_t to_bytes, struct err *err)
{
        struct crypto_library lib;
        int r;

        if (!kdf->iterations || kdf->iterations > ITERATIONS_MAX)
                return err_set(err, -EINVAL, "the passphrase would have to be tried with %u iterations", kdf->iterations);
        if (kdf->kind != KDF_PBKDF2 && (kdf->memory_kib > MEMORY_KIB_MAX || !kdf->threads || kdf->threads > 64))
                return err_set(err, -EINVAL, "the passphrase would have to be tried with %u KiB of memory", kdf->memory_kib);
        if (kdf->kind != KDF_PBKDF2)
                return run_argon2(kdf, secret, secret_bytes, to, to_bytes, err);
        r = load(&lib, err);
        if (r == 0 && lib.pbkdf2((const char *)secret, (int)secret_bytes, kdf->salt, (int)kdf->salt_bytes, (int)kdf->iterations, lib.digest[kdf->digest](),
                                 (int)to_bytes, to) != 1)
                r = err_set(err, -EIO, "libcrypto cannot make a key of the passphrase");
        return r;
}
