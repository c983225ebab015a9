#include "image/digest.h"

#include <stdio.h>

static const struct digest_kind {
        const char *name;
        size_t size_bytes;
        const EVP_MD *(*method)(void);
} kinds[] = {
        { "sha256", 32, EVP_sha256 },
        { "sha512", 64, EVP_sha512 },
};

static const struct digest_kind *kind_of(const char *text)
{
        for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
                size_t length = strlen(kinds[i].name);

                if (!strncmp(text, kinds[i].name, length) && text[length] == ':')
                        return &kinds[i];
        }
        return NULL;
}

int digest_parse(const char *text, struct digest *digest, struct err *err)
{
        const struct digest_kind *kind = kind_of(text);
        const char *hex = kind ? text + strlen(kind->name) + 1 : NULL;

        if (!kind)
                return err_set(err, -EINVAL, "'%.140s' is not a digest: sha256: or sha512: and hexadecimal digits", text);
        if (strlen(hex) != 2 * kind->size_bytes || strspn(hex, "0123456789abcdef") != 2 * kind->size_bytes)
                return err_set(err, -EINVAL, "'%.140s' is not a digest: %s has %zu digits of 0-9 and a-f", text, kind->name, 2 * kind->size_bytes);
        strcpy(digest->text, text);
        return 0;
}

int hasher_begin(struct hasher *hasher, const struct digest *like, struct err *err)
{
        const struct digest_kind *kind = like ? kind_of(like->text) : &kinds[0];

        if (!hasher->ctx)
                hasher->ctx = EVP_MD_CTX_new();
        if (!hasher->ctx || !EVP_DigestInit_ex(hasher->ctx, kind->method(), NULL))
                return err_nomem(err);
        hasher->kind = kind->name;
        return 0;
}

void hasher_add(struct hasher *hasher, const void *bytes, size_t size_bytes)
{
        EVP_DigestUpdate(hasher->ctx, bytes, size_bytes);
}

void hasher_end(struct hasher *hasher, struct digest *digest)
{
        uint8_t bytes[EVP_MAX_MD_SIZE];
        unsigned size_bytes = 0;
        char *at = digest->text;

        EVP_DigestFinal_ex(hasher->ctx, bytes, &size_bytes);
        at += sprintf(at, "%s:", hasher->kind);
        for (unsigned n = 0; n < size_bytes; n++)
                at += sprintf(at, "%02x", bytes[n]);
}

void hasher_done(struct hasher *hasher)
{
        EVP_MD_CTX_free(hasher->ctx);
        hasher->ctx = NULL;
}

int digest_compute(const void *bytes, size_t size_bytes, struct digest *digest, struct err *err)
{
        _cleanup_hasher_ struct hasher hasher = { 0 };
        int r = hasher_begin(&hasher, NULL, err);

        if (r < 0)
                return r;
        hasher_add(&hasher, bytes, size_bytes);
        hasher_end(&hasher, digest);
        return 0;
}
