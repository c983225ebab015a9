/*
 * A layer, decompressed and unpacked, without the process that confines it. The first byte: 0 plain, 1 gzip, 2 zstd.
 * Whatever it is, a file beside its directory stays as it was.
 */
#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "image/store.h"
#include "image/unpack.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[64];

static void forget(void)
{
        (void)!store_remove_tree(AT_FDCWD, path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        static int root_fd = -1;
        struct layer_stream *stream;
        struct unpack unpack = { .opaque_attribute = "user.overlay.opaque", .limits = { .entries = 100, .size_bytes = 1 << 20 } };
        struct err err = ERR_INIT;
        struct stat before, after;
        int fd;

        if (!size || size > 64 << 10)
                return 0;
        if (root_fd < 0) {
                snprintf(path, sizeof(path), "/tmp/fuzz-image-layer.%d", (int)getpid());
                assert(mkdir(path, 0700) == 0);
                atexit(forget);
                root_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        }
        assert(mkdirat(root_fd, "in", 0700) == 0 && fstat(root_fd, &before) == 0);
        unpack.root_fd = openat(root_fd, "in", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        fd = memfd_create("layer", MFD_CLOEXEC);
        assert(fd >= 0 && write(fd, data + 1, size - 1) == (ssize_t)size - 1 && lseek(fd, 0, SEEK_SET) == 0);
        if (layer_stream_open(fd, data[0] % 3, NULL, &stream, &err) == 0) {
                (void)!unpack_layer(&unpack, stream, NULL, &err);
                layer_stream_close(stream);
        }
        close(fd);
        assert(fstat(root_fd, &after) == 0 && before.st_nlink == after.st_nlink && before.st_mtim.tv_nsec == after.st_mtim.tv_nsec);
        close(unpack.root_fd);
        assert(store_remove_tree(root_fd, "in") == 0);
        return 0;
}
