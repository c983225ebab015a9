/* A hostile LUKS header, of either version; in the second the checksum of its first copy is made right. No passphrase is tried: that takes its time. */
#include <errno.h>
#include <stdlib.h>

#include "block/luks/header.h"

#define COPY_BYTES 16384u

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes);

struct bytes {
        uint8_t *at;
        size_t size_bytes;
};

static int read_bytes(void *ctx, uint64_t offset_bytes, uint8_t *to, size_t size_bytes)
{
        const struct bytes *b = ctx;
        uint64_t there = offset_bytes < b->size_bytes ? MIN((uint64_t)size_bytes, b->size_bytes - offset_bytes) : 0;

        memset(to, 0, size_bytes);
        memcpy(to, b->at + MIN(offset_bytes, b->size_bytes), there);
        return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        struct bytes b = { calloc(1, 2 * COPY_BYTES), 2 * COPY_BYTES };
        uint8_t sum[CIPHER_DIGEST_MAX];
        struct luks luks;
        int r;

        memcpy(b.at, bytes, MIN(size_bytes, (size_t)COPY_BYTES));
        if (luks_is_header(b.at, 8) && b.at[7] == 2) {
                memset(b.at + 448, 0, 64);
                if (digest_of(DIGEST_SHA256, b.at, COPY_BYTES, sum, NULL) == 0)
                        memcpy(b.at + 448, sum, 32);
        }
        r = luks_parse(&luks, read_bytes, &b, "fuzz", NULL);
        if (r == 0 && (luks.key_bytes > CIPHER_KEY_MAX || luks.digest_bytes > CIPHER_DIGEST_MAX || luks.sector_bytes < 512 || luks.sector_bytes > 4096))
                abort();
        free(b.at);
        return 0;
}
