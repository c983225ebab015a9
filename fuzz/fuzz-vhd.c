/* A hostile VHD image, whose footer and header have checksums that are right. */
#define IMAGE_FORMAT "vhd"
#define IMAGE_LAY_OUT lay_out
#include <stddef.h>
#include <stdint.h>
static void lay_out(int fd, const uint8_t *bytes, size_t size_bytes);
#include "block/vhd/image.h"
#include "fuzz-image.inc.h"

static void fix(int fd, uint64_t at, size_t size_bytes, size_t sum_at)
{
        uint8_t bytes[VHD_HEADER_BYTES], sum[4];

        if (pread(fd, bytes, size_bytes, (off_t)at) != (ssize_t)size_bytes)
                return;
        put_be32(sum, vhd_checksum(bytes, size_bytes, sum_at));
        if (pwrite(fd, sum, sizeof(sum), (off_t)(at + sum_at)) < 0)
                abort();
}

static void lay_out(int fd, const uint8_t *bytes, size_t size_bytes)
{
        if (pwrite(fd, bytes, MIN(size_bytes, (size_t)FILE_BYTES), 0) < 0)
                abort();
        fix(fd, 0, VHD_FOOTER_BYTES, VHD_CHECKSUM);
        fix(fd, VHD_FOOTER_BYTES, VHD_HEADER_BYTES, VHD_HEADER_CHECKSUM);
        if (size_bytes > VHD_FOOTER_BYTES && !memcmp(bytes + size_bytes - VHD_FOOTER_BYTES, "conectix", 8)) { /* a fixed one ends where it ends */
                if (ftruncate(fd, (off_t)MIN(size_bytes, (size_t)FILE_BYTES)) < 0)
                        abort();
        }
}
