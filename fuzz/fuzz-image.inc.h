/*
 * For a fuzz target of an image format, which defines IMAGE_FORMAT, and IMAGE_LAY_OUT, a function, where the input is not simply the
 * file's first bytes, and IMAGE_SECRET where one is wanted.
 *
 * A hostile image: opened, checked, mapped, read, written to, and mended. The input is the image's first bytes; it is made longer by
 * zeroes up to FILE_BYTES, so that tables may lie there.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/fiber.h"
#include "base/log.h"
#include "block/block.h"

#define FILE_BYTES (4u << 20)
#define READ_BYTES 65536u

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes);

struct bed {
        uv_loop_t loop;
        char path[64];
        uint8_t data[READ_BYTES];
};

static struct block *open_image(struct bed *bed, unsigned flags)
{
        struct block_opening opening = {
                .loop = &bed->loop, .path = bed->path, .format = IMAGE_FORMAT,
                .flags = flags | BLOCK_OPEN_NO_URING | BLOCK_OPEN_NO_BACKING | BLOCK_OPEN_NO_LOCK,
        };
        struct block *block;

        return block_open(&opening, &block, NULL) < 0 ? NULL : block;
}

static void close_image(struct bed *bed, struct block *block)
{
        block_close(block);
        uv_run(&bed->loop, UV_RUN_DEFAULT);
}

/* Whatever comes of it: all that is asked is an end without damage to us. */
static void read_places(struct bed *bed, struct block *block)
{
        uint64_t size = block->info.size_bytes, at[] = { 0, size / 2 / 512 * 512, size - 512 };
        struct block_extent extent;
        int r = 0;

        for (unsigned n = 0; n < ARRAY_SIZE(at); n++) {
                uint64_t some = MIN(size - at[n], (uint64_t)READ_BYTES);

                r |= block_read(block, at[n], bed->data, some);
                if (block_status_through(block, at[n], size - at[n], &extent) == 0 && (!extent.size_bytes || extent.size_bytes > size - at[n]))
                        abort();
        }
        (void)r;
}

static void write_places(struct bed *bed, struct block *block)
{
        uint64_t size = block->info.size_bytes;
        int r = block_write(block, 0, bed->data, MIN(size, (uint64_t)4096));

        r |= block_write(block, size - 512, bed->data, 512);
        r |= block_do(block, BLOCK_WRITE_ZEROES, BLOCK_F_UNMAP, 0, MIN(size, (uint64_t)1 << 17), NULL, 0);
        r |= block_flush(block);
        r |= block_finish(block, NULL);
        (void)r;
}

static void use(struct bed *bed)
{
        struct block_check check = { .mend = BLOCK_MEND_NOTHING };
        struct block *block = open_image(bed, BLOCK_OPEN_READONLY);
        int r = 0;

        if (block) {
                read_places(bed, block);
                close_image(bed, block);
        }
        block = open_image(bed, BLOCK_OPEN_READONLY | BLOCK_OPEN_REPAIR);
        if (block) {
                if (block->driver->check)
                        r |= block->driver->check(block, &check, NULL);
                close_image(bed, block);
        }
        block = open_image(bed, 0);
        if (block) {
                write_places(bed, block);
                close_image(bed, block);
        }
        block = open_image(bed, BLOCK_OPEN_REPAIR);
        if (block) {
                check.mend = BLOCK_MEND_ALL;
                if (block->driver->check)
                        r |= block->driver->check(block, &check, NULL);
                close_image(bed, block);
        }
        (void)r;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        struct bed *bed = calloc(1, sizeof(*bed));
        int fd = memfd_create("image", MFD_CLOEXEC);

        log_init("fuzz", LOG_ERROR);
        if (!bed || fd < 0 || uv_loop_init(&bed->loop) < 0 || ftruncate(fd, FILE_BYTES) < 0)
                abort();
#ifdef IMAGE_LAY_OUT
        IMAGE_LAY_OUT(fd, bytes, size_bytes);
#else
        if (write(fd, bytes, MIN(size_bytes, (size_t)FILE_BYTES)) < 0)
                abort();
#endif
        snprintf(bed->path, sizeof(bed->path), "/proc/self/fd/%d", fd);
        use(bed);
        uv_run(&bed->loop, UV_RUN_DEFAULT);
        if (uv_loop_close(&bed->loop) < 0)
                abort();
        close(fd);
        fiber_thread_done();
        free(bed);
        return 0;
}
