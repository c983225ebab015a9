/*
 * FUSE requests against a file server over a directory that is made afresh for each input: length (2), bytes of the request,
 * and so on. The node and handle fields of a request are taken from those that were given out, so that they are often right.
 * Nothing outside of the directory may change: a file beside it is looked at after each input.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "device/fs.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes);

#define REQUESTS_MAX 64
#define ANSWER_BYTES 8192

static int base = -1; /* a temporary directory: share/ and secret */
static char path[64], share[80];

static void clear(int dir_fd, const char *name, unsigned depth)
{
        int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        DIR *dir;
        struct dirent *d;

        if (fd < 0)
                return;
        fchmod(fd, 0700);
        dir = fdopendir(fd);
        while (dir && depth < 64 && (d = readdir(dir))) {
                if (!strcmp(d->d_name, ".") || !strcmp(d->d_name, ".."))
                        continue;
                if (unlinkat(fd, d->d_name, 0) < 0) {
                        clear(fd, d->d_name, depth + 1);
                        unlinkat(fd, d->d_name, AT_REMOVEDIR);
                }
        }
        if (dir)
                closedir(dir);
}

static void end(void)
{
        clear(base, "share", 0);
        unlinkat(base, "share", AT_REMOVEDIR);
        unlinkat(base, "secret", 0);
        rmdir(path);
}

static void put(const char *name, const char *text)
{
        int fd = openat(base, name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);

        if (fd < 0 || write(fd, text, strlen(text)) < 0)
                abort();
        close(fd);
}

static void prepare(void)
{
        if (base < 0) {
                strcpy(path, "/tmp/virta-fuzz-fs-XXXXXX");
                if (!mkdtemp(path) || (base = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
                        abort();
                snprintf(share, sizeof(share), "%s/share", path);
                put("secret", "secret");
                atexit(end);
        }
        clear(base, "share", 0);
        if (mkdirat(base, "share", 0755) < 0 && errno != EEXIST)
                abort();
        if (fchmodat(base, "share", 0755, 0) < 0)
                abort();
        if (mkdirat(base, "share/dir", 0755) < 0 || symlinkat("../../secret", base, "share/dir/out") < 0)
                abort();
        put("share/file", "hello");
}

static void check_secret(void)
{
        char got[8] = "";
        int fd = openat(base, "secret", O_RDONLY | O_CLOEXEC);
        struct stat st;

        if (fd < 0 || fstat(fd, &st) < 0 || st.st_mode != (S_IFREG | 0644) || st.st_nlink != 1 ||
            read(fd, got, sizeof(got)) != 6 || strcmp(got, "secret") != 0)
                abort();
        close(fd);
}

struct known {
        uint64_t nodes[8], handles[8];
        unsigned node_count, handle_count;
};

static void learn(struct known *known, uint32_t opcode, const uint8_t *answer, uint32_t size_bytes)
{
        uint64_t value;

        if (size_bytes < sizeof(struct fuse_out_header) + 8 || ((const struct fuse_out_header *)answer)->error)
                return;
        memcpy(&value, answer + sizeof(struct fuse_out_header), sizeof(value));
        if (opcode == FUSE_OPEN || opcode == FUSE_OPENDIR)
                known->handles[known->handle_count++ % 8] = value;
        else if (opcode == FUSE_LOOKUP || opcode == FUSE_MKDIR || opcode == FUSE_MKNOD || opcode == FUSE_SYMLINK ||
                 opcode == FUSE_LINK || opcode == FUSE_CREATE)
                known->nodes[known->node_count++ % 8] = value;
        if (opcode == FUSE_CREATE && size_bytes >= sizeof(struct fuse_out_header) + sizeof(struct fuse_entry_out) + 8)
                memcpy(&known->handles[known->handle_count++ % 8],
                       answer + sizeof(struct fuse_out_header) + sizeof(struct fuse_entry_out), 8);
}

static void one(struct fs_server *fs, struct known *known, struct cursor *request)
{
        static uint8_t answer[ANSWER_BYTES] __attribute__((aligned(8)));
        struct fuse_in_header header = { 0 };
        size_t size_bytes = cursor_left(request);
        uint8_t *bytes = malloc(size_bytes + 1);
        struct iovec out[2], in[2];

        if (!bytes)
                return;
        memcpy(bytes, request->at, size_bytes);
        memcpy(&header, bytes, MIN(size_bytes, sizeof(header)));
        if (header.len == 0)
                header.len = (uint32_t)size_bytes;
        if (header.nodeid >= 2 && header.nodeid < 10)
                header.nodeid = known->nodes[header.nodeid - 2];
        memcpy(bytes, &header, MIN(size_bytes, sizeof(header)));
        if (size_bytes >= 48 && bytes[40] < 8 && bytes[41] == 0xff)
                memcpy(bytes + 40, &known->handles[bytes[40]], 8);
        out[0] = (struct iovec){ bytes, size_bytes / 2 };
        out[1] = (struct iovec){ bytes + size_bytes / 2, size_bytes - size_bytes / 2 };
        in[0] = (struct iovec){ answer, 100 };
        in[1] = (struct iovec){ answer + 100, header.unique & 1 ? 60 : ANSWER_BYTES - 100 };
        learn(known, header.opcode, answer, fs_server_handle(fs, out, 2, in, 2));
        free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)
{
        struct { struct fuse_in_header header; struct fuse_init_in init; } init = {
                .header = { .len = sizeof(init), .opcode = FUSE_INIT }, .init = { .major = 7, .minor = 36 } };
        struct cursor in = cursor_from(bytes, size_bytes), request;
        struct known known = { .nodes = { 1, 1, 1, 1, 1, 1, 1, 1 } };
        struct fs_server *fs;

        prepare();
        if (fs_server_new(share, false, &fs, NULL) < 0)
                abort();
        request = cursor_from(&init, sizeof(init));
        one(fs, &known, &request);
        for (unsigned i = 0; i < REQUESTS_MAX && cursor_left(&in) > 2; i++) {
                size_t length = cursor_le16(&in);

                request = cursor_sub(&in, MIN(length, cursor_left(&in)));
                one(fs, &known, &request);
        }
        /* The state of it all is a record, and a changed record is another input. */
        if (size_bytes & 1) {
                struct writer out = { 0 };

                fs_server_save(fs, &out);
                if (out.size > 20)
                        out.bytes[size_bytes % out.size] ^= bytes[0];
                request = cursor_from(out.bytes, out.size);
                (void)!fs_server_load(fs, &request, NULL);
                writer_done(&out);
        }
        fs_server_free(fs);
        check_secret();
        return 0;
}
