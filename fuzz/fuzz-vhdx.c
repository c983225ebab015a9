/*
 * A hostile VHDX image. What counts in it lies far apart and has checksums, so the input is its parts, one behind the other, which are put where
 * they belong with checksums that are right: header, region table, metadata's table, its items, table of blocks, log.
 */
#define IMAGE_FORMAT "vhdx"
#define IMAGE_LAY_OUT lay_out
#include <stddef.h>
#include <stdint.h>
static void lay_out(int fd, const uint8_t *bytes, size_t size_bytes);
#include "block/vhdx/image.h"
#include "fuzz-image.inc.h"

static void put(int fd, uint64_t at, const void *bytes, size_t size_bytes)
{
        if (pwrite(fd, bytes, size_bytes, (off_t)at) < 0)
                abort();
}

static void lay_out(int fd, const uint8_t *bytes, size_t size_bytes)
{
        static const struct {
                uint64_t at;
                uint32_t size_bytes, summed;
        } parts[] = {
                { 65536, 128, VHDX_HEADER_BYTES }, { 196608, 128, VHDX_TABLE_BYTES }, { 2 << 20, 256, 0 }, { (2 << 20) + 65536, 64, 0 }, { 3 << 20, 64, 0 },
        };
        uint8_t *whole = calloc(1, VHDX_TABLE_BYTES);
        uint32_t crc[256];

        vhdx_crc_init(crc);
        put(fd, 0, "vhdxfile", 8);
        for (unsigned n = 0; n < ARRAY_SIZE(parts); n++) {
                size_t some = MIN(size_bytes, (size_t)parts[n].size_bytes);

                memset(whole, 0, VHDX_TABLE_BYTES);
                memcpy(whole, bytes, some);
                if (parts[n].summed)
                        put_le32(whole + 4, vhdx_checksum(crc, whole, parts[n].summed, 4));
                put(fd, parts[n].at, whole, MAX(parts[n].summed, parts[n].size_bytes));
                bytes += some;
                size_bytes -= some;
        }
        memset(whole, 0, VHDX_TABLE_BYTES);
        memcpy(whole, bytes, MIN(size_bytes, (size_t)VHDX_TABLE_BYTES)); /* one entry of a log */
        if (get_le32(whole + 8) <= VHDX_TABLE_BYTES)
                put_le32(whole + 4, vhdx_checksum(crc, whole, get_le32(whole + 8), 4));
        put(fd, 1 << 20, whole, VHDX_TABLE_BYTES);
        free(whole);
}
