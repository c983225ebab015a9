/*
 * The file server, asked in its own language. Every request is made here by hand; what it did is looked at through the host's
 * file system. Outside of the shared directory lies a file that nothing may reach.
 */
#include "base/test.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include "device/fs.h"

#define ANSWER_MAX ((1u << 20) + 4096)

struct client {
        char base[64];  /* a temporary directory */
        char share[96]; /* base/share */
        struct fs_server *fs;
        uint64_t unique;
        uint32_t uid, gid;
        uint8_t *answer;
        size_t answer_bytes; /* of the body */
};

static void put_file(const char *path, const char *text, mode_t mode)
{
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);

        assert_true(fd >= 0);
        assert_int_equal(write(fd, text, strlen(text)), strlen(text));
        close(fd);
}

static bool file_is(const char *path, const char *text)
{
        char got[256] = "";
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? -1 : read(fd, got, sizeof(got) - 1);

        closep(&fd);
        return n >= 0 && strcmp(got, text) == 0;
}

static const char *in_share(struct client *c, const char *name)
{
        static char path[2][256];
        static unsigned turn;

        turn = !turn;
        snprintf(path[turn], sizeof(path[turn]), "%s/%s", c->share, name);
        return path[turn];
}

static const char *outside(struct client *c, const char *name)
{
        static char path[256];

        snprintf(path, sizeof(path), "%s/%s", c->base, name);
        return path;
}

/* One request; 0 or -errno, the body in c->answer. Arguments come in up to two parts. */
static int ask_thread(struct client *c, uint8_t *answer, size_t *answer_bytes, uint32_t opcode, uint64_t node, const void *a,
                      size_t a_bytes, const void *b, size_t b_bytes)
{
        struct fuse_in_header header = { .len = (uint32_t)(sizeof(header) + a_bytes + b_bytes), .opcode = opcode, .nodeid = node,
                                         .uid = c->uid, .gid = c->gid, .unique = 77 };
        struct iovec out[3] = { { &header, sizeof(header) }, { (void *)a, a_bytes }, { (void *)b, b_bytes } };
        struct iovec in[2] = { { answer, 5 }, { answer + 5, ANSWER_MAX - 5 } }; /* an odd split */
        struct fuse_out_header reply;
        uint32_t bytes = fs_server_handle(c->fs, out, 3, in, 2);

        if (!bytes)
                return 0;
        memcpy(&reply, answer, sizeof(reply));
        assert_int_equal(reply.len, bytes);
        assert_int_equal(reply.unique, 77);
        *answer_bytes = bytes - sizeof(reply);
        return reply.error;
}

static int ask2(struct client *c, uint32_t opcode, uint64_t node, const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
        return ask_thread(c, c->answer, &c->answer_bytes, opcode, node, a, a_bytes, b, b_bytes);
}

static int ask(struct client *c, uint32_t opcode, uint64_t node, const void *a, size_t a_bytes)
{
        return ask2(c, opcode, node, a, a_bytes, NULL, 0);
}

static void *body(struct client *c)
{
        return c->answer + sizeof(struct fuse_out_header);
}

static int say_init(struct client *c)
{
        struct fuse_init_in in = { .major = 7, .minor = 36, .max_readahead = 65536, .flags = ~0u };

        return ask(c, FUSE_INIT, 0, &in, sizeof(in));
}

static void start(struct client *c, bool readonly)
{
        struct err err = ERR_INIT;

        *c = (struct client){ .uid = geteuid(), .gid = getegid() };
        strcpy(c->base, "/tmp/virta-test-fs-XXXXXX");
        assert_non_null(mkdtemp(c->base));
        snprintf(c->share, sizeof(c->share), "%s/share", c->base);
        assert_int_equal(mkdir(c->share, 0755), 0);
        put_file(outside(c, "secret"), "secret", 0644);
        put_file(in_share(c, "file"), "hello", 0644);
        assert_int_equal(mkdir(in_share(c, "dir"), 0755), 0);
        put_file(in_share(c, "dir/inner"), "inner", 0644);
        c->answer = malloc(ANSWER_MAX);
        assert_int_equal(fs_server_new(c->share, readonly, &c->fs, &err), 0);
        assert_int_equal(say_init(c), 0);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
        return remove(path);
}

static unsigned open_files(void)
{
        unsigned count = 0;

        for (int fd = 0; fd < 1024; fd++)
                count += fcntl(fd, F_GETFD) >= 0;
        return count;
}

static void end(struct client *c)
{
        assert_true(file_is(outside(c, "secret"), "secret"));
        fs_server_free(c->fs);
        nftw(c->base, remove_one, 16, FTW_DEPTH | FTW_PHYS);
        free(c->answer);
}

static int lookup(struct client *c, uint64_t dir, const char *name, uint64_t *node)
{
        struct fuse_entry_out entry;
        int r = ask(c, FUSE_LOOKUP, dir, name, strlen(name) + 1);

        if (r == 0) {
                assert_int_equal(c->answer_bytes, sizeof(entry));
                memcpy(&entry, body(c), sizeof(entry));
                *node = entry.nodeid;
        }
        return r;
}

static int open_node(struct client *c, uint64_t node, uint32_t opcode, uint32_t flags, uint64_t *handle)
{
        struct fuse_open_in in = { .flags = flags };
        struct fuse_open_out out;
        int r = ask(c, opcode, node, &in, sizeof(in));

        if (r == 0) {
                memcpy(&out, body(c), sizeof(out));
                *handle = out.fh;
        }
        return r;
}

static int read_handle(struct client *c, uint32_t opcode, uint64_t handle, uint64_t offset, uint32_t size_bytes)
{
        struct fuse_read_in in = { .fh = handle, .offset = offset, .size = size_bytes };

        return ask(c, opcode, 1, &in, sizeof(in));
}

static int write_handle(struct client *c, uint64_t handle, uint64_t offset, const void *bytes, uint32_t size_bytes)
{
        struct fuse_write_in in = { .fh = handle, .offset = offset, .size = size_bytes };

        return ask2(c, FUSE_WRITE, 1, &in, sizeof(in), bytes, size_bytes);
}

static int create(struct client *c, uint64_t dir, const char *name, uint32_t flags, mode_t mode, uint64_t *node, uint64_t *handle)
{
        struct fuse_create_in in = { .flags = flags, .mode = S_IFREG | mode };
        struct { struct fuse_entry_out entry; struct fuse_open_out open; } out;
        int r = ask2(c, FUSE_CREATE, dir, &in, sizeof(in), name, strlen(name) + 1);

        if (r == 0) {
                memcpy(&out, body(c), sizeof(out));
                *node = out.entry.nodeid;
                *handle = out.open.fh;
        }
        return r;
}

static void release(struct client *c, uint64_t handle)
{
        struct fuse_release_in in = { .fh = handle };

        assert_int_equal(ask(c, FUSE_RELEASE, 1, &in, sizeof(in)), 0);
}

static void forget(struct client *c, uint64_t node, uint64_t count)
{
        struct fuse_forget_in in = { .nlookup = count };

        ask(c, FUSE_FORGET, node, &in, sizeof(in));
}

static void test_init(void **state)
{
        struct client c;
        struct fuse_init_in in = { .major = 7, .minor = 36 };
        struct fuse_init_out out;
        uint64_t node;

        start(&c, false);
        memcpy(&out, body(&c), sizeof(out));
        assert_int_equal(out.major, 7);
        assert_int_equal(out.minor, 36);
        assert_int_equal(out.max_write, 1 << 20);
        fs_server_reset(c.fs);
        assert_int_equal(lookup(&c, 1, "file", &node), -EIO);
        in.major = 8;
        assert_int_equal(ask(&c, FUSE_INIT, 0, &in, sizeof(in)), 0);
        assert_int_equal(lookup(&c, 1, "file", &node), -EIO);
        in.major = 7;
        in.minor = 12;
        assert_int_equal(ask(&c, FUSE_INIT, 0, &in, sizeof(in)), -EPROTO);
        assert_int_equal(say_init(&c), 0);
        assert_int_equal(lookup(&c, 1, "file", &node), 0);
        end(&c);
}

static void test_read_write(void **state)
{
        static uint8_t block[1 << 20];
        struct client c;
        struct fuse_lseek_in seek = { .whence = SEEK_HOLE };
        struct fuse_fallocate_in allocate = { .offset = 0, .length = 8192 };
        struct fuse_copy_file_range_in copy = { .len = 5 };
        struct fuse_write_out written;
        struct stat st;
        uint64_t node = 0, handle = 0, file = 0, file_handle = 0;
        unsigned before;

        start(&c, false);
        before = open_files();
        assert_int_equal(lookup(&c, 1, "file", &file), 0);
        assert_int_equal(open_node(&c, file, FUSE_OPEN, O_RDONLY, &file_handle), 0);
        assert_int_equal(read_handle(&c, FUSE_READ, file_handle, 1, 100), 0);
        assert_int_equal(c.answer_bytes, 4);
        assert_memory_equal(body(&c), "ello", 4);
        assert_int_equal(read_handle(&c, FUSE_READ, file_handle, 100, 100), 0);
        assert_int_equal(c.answer_bytes, 0);
        assert_int_equal(read_handle(&c, FUSE_READ, file_handle, UINT64_MAX - 1, 100), -EINVAL);
        assert_int_equal(write_handle(&c, file_handle, 0, "x", 1), -EBADF);

        assert_int_equal(create(&c, 1, "new", O_RDWR | O_EXCL, 0640, &node, &handle), 0);
        for (size_t i = 0; i < sizeof(block); i++)
                block[i] = (uint8_t)(i * 13 + (i >> 8));
        assert_int_equal(write_handle(&c, handle, 4096, block, sizeof(block)), 0);
        memcpy(&written, body(&c), sizeof(written));
        assert_int_equal(written.size, sizeof(block));
        assert_int_equal(read_handle(&c, FUSE_READ, handle, 4096, sizeof(block)), 0);
        assert_int_equal(c.answer_bytes, sizeof(block));
        assert_memory_equal(body(&c), block, sizeof(block));
        assert_int_equal(stat(in_share(&c, "new"), &st), 0);
        assert_int_equal(st.st_size, 4096 + sizeof(block));
        assert_int_equal(st.st_mode, S_IFREG | 0640);
        seek.fh = allocate.fh = handle;
        assert_int_equal(ask(&c, FUSE_LSEEK, node, &seek, sizeof(seek)), 0);
        seek.whence = SEEK_SET;
        assert_int_equal(ask(&c, FUSE_LSEEK, node, &seek, sizeof(seek)), -EINVAL);
        assert_int_equal(ask(&c, FUSE_FALLOCATE, node, &allocate, sizeof(allocate)), 0);
        copy.fh_in = file_handle;
        copy.fh_out = handle;
        assert_int_equal(ask(&c, FUSE_COPY_FILE_RANGE, file, &copy, sizeof(copy)), 0);
        assert_int_equal(read_handle(&c, FUSE_READ, handle, 0, 5), 0);
        assert_memory_equal(body(&c), "hello", 5);
        assert_int_equal(ask(&c, FUSE_FSYNC, node, &(struct fuse_fsync_in){ .fh = handle }, sizeof(struct fuse_fsync_in)), 0);
        assert_int_equal(ask(&c, FUSE_SYNCFS, 1, "\0\0\0\0\0\0\0", 8), 0);
        assert_int_equal(create(&c, 1, "new", O_RDWR | O_EXCL, 0640, &node, &handle), -EEXIST);

        release(&c, handle);
        release(&c, file_handle);
        release(&c, file_handle);
        assert_int_equal(read_handle(&c, FUSE_READ, file_handle, 0, 5), -EBADF);
        forget(&c, node, 1);
        forget(&c, file, UINT64_MAX);
        assert_int_equal(open_node(&c, file, FUSE_OPEN, O_RDONLY, &file_handle), -ENOENT);
        assert_int_equal(open_files(), before);
        /* Truncation by an open */
        assert_int_equal(lookup(&c, 1, "new", &node), 0);
        assert_int_equal(open_node(&c, node, FUSE_OPEN, O_WRONLY | O_TRUNC, &handle), 0);
        assert_int_equal(stat(in_share(&c, "new"), &st), 0);
        assert_int_equal(st.st_size, 0);
        end(&c);
}

static void test_names(void **state)
{
        struct client c;
        struct fuse_mkdir_in mkdir_in = { .mode = 0777 };
        struct fuse_mknod_in mknod_in = { .mode = S_IFIFO | 0666 };
        struct fuse_rename_in rename_in;
        struct fuse_rename2_in rename2_in = { .flags = RENAME_NOREPLACE };
        struct fuse_link_in link_in;
        uint64_t dir, file, node, handle;
        struct stat st, st2;

        start(&c, false);
        umask(022);
        assert_int_equal(ask2(&c, FUSE_MKDIR, 1, &mkdir_in, sizeof(mkdir_in), "made", 5), 0);
        assert_int_equal(stat(in_share(&c, "made"), &st), 0);
        assert_int_equal(st.st_mode, S_IFDIR | 0777);
        assert_int_equal(ask2(&c, FUSE_MKDIR, 1, &mkdir_in, sizeof(mkdir_in), "made", 5), -EEXIST);
        assert_int_equal(ask2(&c, FUSE_MKNOD, 1, &mknod_in, sizeof(mknod_in), "fifo", 5), 0);
        mknod_in.mode = S_IFREG | 0600;
        assert_int_equal(ask2(&c, FUSE_MKNOD, 1, &mknod_in, sizeof(mknod_in), "plain", 6), 0);
        mknod_in.mode = S_IFCHR | 0600;
        mknod_in.rdev = 0x103;
        assert_int_equal(ask2(&c, FUSE_MKNOD, 1, &mknod_in, sizeof(mknod_in), "null", 5), -EPERM);
        mknod_in.mode = S_IFBLK | 0600;
        assert_int_equal(ask2(&c, FUSE_MKNOD, 1, &mknod_in, sizeof(mknod_in), "disk", 5), -EPERM);
        /* A pipe is not opened here, the guest has its own. */
        assert_int_equal(lookup(&c, 1, "fifo", &node), 0);
        assert_int_equal(open_node(&c, node, FUSE_OPEN, O_RDONLY, &handle), -EOPNOTSUPP);

        assert_int_equal(lookup(&c, 1, "file", &file), 0);
        assert_int_equal(lookup(&c, 1, "dir", &dir), 0);
        link_in.oldnodeid = file;
        assert_int_equal(ask2(&c, FUSE_LINK, dir, &link_in, sizeof(link_in), "second", 7), 0);
        assert_int_equal(stat(in_share(&c, "dir/second"), &st), 0);
        assert_int_equal(stat(in_share(&c, "file"), &st2), 0);
        assert_int_equal(st.st_ino, st2.st_ino);
        assert_int_equal(((struct fuse_entry_out *)body(&c))->nodeid, file);

        rename_in.newdir = dir;
        assert_int_equal(ask2(&c, FUSE_RENAME, 1, &rename_in, sizeof(rename_in), "file\0moved", 11), 0);
        assert_true(file_is(in_share(&c, "dir/moved"), "hello"));
        assert_int_equal(open_node(&c, file, FUSE_OPEN, O_RDONLY, &handle), 0);
        rename2_in.newdir = dir;
        assert_int_equal(ask2(&c, FUSE_RENAME2, dir, &rename2_in, sizeof(rename2_in), "moved\0inner", 12), -EEXIST);
        rename2_in.flags = RENAME_EXCHANGE;
        assert_int_equal(ask2(&c, FUSE_RENAME2, dir, &rename2_in, sizeof(rename2_in), "moved\0inner", 12), 0);
        assert_true(file_is(in_share(&c, "dir/inner"), "hello"));
        rename2_in.flags = RENAME_WHITEOUT;
        assert_int_equal(ask2(&c, FUSE_RENAME2, dir, &rename2_in, sizeof(rename2_in), "moved\0inner", 12), -EINVAL);

        assert_int_equal(ask(&c, FUSE_UNLINK, dir, "inner", 6), 0);
        assert_int_equal(ask(&c, FUSE_UNLINK, dir, "inner", 6), -ENOENT);
        assert_int_equal(ask(&c, FUSE_RMDIR, 1, "dir", 4), -ENOTEMPTY);
        assert_int_equal(ask(&c, FUSE_RMDIR, 1, "made", 5), 0);
        assert_int_equal(ask(&c, FUSE_UNLINK, 1, "dir", 4), -EISDIR);
        /* Not a directory */
        assert_int_equal(lookup(&c, file, "x", &node), -ENOTDIR);
        end(&c);
}

static void test_attributes(void **state)
{
        struct client c;
        struct fuse_setattr_in set = { .valid = FATTR_MODE, .mode = 04755 };
        struct fuse_attr_out out;
        struct fuse_statfs_out statfs_out;
        struct stat st;
        uint64_t file, handle;

        start(&c, false);
        assert_int_equal(lookup(&c, 1, "file", &file), 0);
        /* A program that runs as its owner would be one on the host, too. */
        assert_int_equal(ask(&c, FUSE_SETATTR, file, &set, sizeof(set)), 0);
        assert_int_equal(stat(in_share(&c, "file"), &st), 0);
        assert_int_equal(st.st_mode, S_IFREG | 0755);
        set = (struct fuse_setattr_in){ .valid = FATTR_SIZE | FATTR_MTIME, .size = 3, .mtime = 1000000000, .mtimensec = 5 };
        assert_int_equal(ask(&c, FUSE_SETATTR, file, &set, sizeof(set)), 0);
        memcpy(&out, body(&c), sizeof(out));
        assert_int_equal(out.attr.size, 3);
        assert_int_equal(out.attr.mtime, 1000000000);
        assert_int_equal(out.attr.mtimensec, 5);
        assert_int_equal(out.attr.uid, 0);
        set.mtimensec = 1000000000;
        assert_int_equal(ask(&c, FUSE_SETATTR, file, &set, sizeof(set)), -EINVAL);
        set = (struct fuse_setattr_in){ .valid = FATTR_SIZE, .size = UINT64_MAX };
        assert_int_equal(ask(&c, FUSE_SETATTR, file, &set, sizeof(set)), -EFBIG);
        assert_int_equal(ask(&c, FUSE_STATFS, 1, NULL, 0), 0);
        memcpy(&statfs_out, body(&c), sizeof(statfs_out));
        assert_true(statfs_out.st.blocks > 0 && statfs_out.st.namelen >= 255);
        assert_int_equal(ask(&c, FUSE_ACCESS, file, &(struct fuse_access_in){ .mask = R_OK }, sizeof(struct fuse_access_in)), 0);

        /* A file that was set-user-id on the host loses that when the guest writes to it. */
        assert_int_equal(chmod(in_share(&c, "dir/inner"), 06755), 0);
        assert_int_equal(lookup(&c, 1, "dir", &handle), 0);
        assert_int_equal(lookup(&c, handle, "inner", &file), 0);
        assert_int_equal(open_node(&c, file, FUSE_OPEN, O_WRONLY, &handle), 0);
        assert_int_equal(stat(in_share(&c, "dir/inner"), &st), 0);
        assert_int_equal(st.st_mode, S_IFREG | 0755);

        /* Gone on the host, but open: its attributes are still there. */
        assert_int_equal(unlink(in_share(&c, "dir/inner")), 0);
        assert_int_equal(ask(&c, FUSE_GETATTR, file, &(struct fuse_getattr_in){ 0 }, sizeof(struct fuse_getattr_in)), 0);
        memcpy(&out, body(&c), sizeof(out));
        assert_int_equal(out.attr.nlink, 0);
        assert_int_equal(ask(&c, FUSE_IOCTL, file, NULL, 0), -ENOTTY);
        assert_int_equal(ask(&c, FUSE_SETUPMAPPING, file, NULL, 0), -ENOSYS);
        assert_int_equal(ask(&c, 12345, file, NULL, 0), -ENOSYS);
        end(&c);
}

static void test_owner(void **state)
{
        struct client c;
        struct stat st;
        uint64_t node, handle;

        if (geteuid() != 0) {
                print_message("needs root\n");
                skip();
        }
        start(&c, false);
        c.uid = 1234;
        c.gid = 5678;
        assert_int_equal(create(&c, 1, "theirs", O_RDWR, 0644, &node, &handle), 0);
        assert_int_equal(stat(in_share(&c, "theirs"), &st), 0);
        assert_int_equal(st.st_uid, 1234);
        assert_int_equal(st.st_gid, 5678);
        assert_int_equal(ask2(&c, FUSE_SYMLINK, 1, "link", 5, "target", 7), 0);
        assert_int_equal(lstat(in_share(&c, "link"), &st), 0);
        assert_int_equal(st.st_uid, 1234);
        end(&c);
}

/* As a plain user everything is the guest's root's. */
static void squashed(void)
{
        struct client c;
        struct fuse_setattr_in set = { .valid = FATTR_UID | FATTR_GID, .uid = 0, .gid = 0 };
        struct fuse_attr_out out;
        uint64_t node, handle, root_file;

        start(&c, false);
        c.uid = 1234;
        assert_int_equal(create(&c, 1, "mine", O_RDWR, 0644, &node, &handle), 0);
        assert_int_equal(ask(&c, FUSE_SETATTR, node, &set, sizeof(set)), 0);
        memcpy(&out, body(&c), sizeof(out));
        assert_int_equal(out.attr.uid, 0);
        assert_int_equal(out.attr.gid, 0);
        set.uid = 5;
        assert_int_equal(ask(&c, FUSE_SETATTR, node, &set, sizeof(set)), -EPERM);
        assert_int_equal(ask2(&c, FUSE_LINK, 1, &(struct fuse_link_in){ node }, 8, "again", 6), 0);
        assert_int_equal(lookup(&c, 1, "again", &root_file), 0);
        assert_int_equal(root_file, node);
        set = (struct fuse_setattr_in){ .valid = FATTR_MODE, .mode = 0 };
        assert_int_equal(ask(&c, FUSE_SETATTR, node, &set, sizeof(set)), 0);
        set.mode = 0600;
        assert_int_equal(ask(&c, FUSE_SETATTR, node, &set, sizeof(set)), 0);
        end(&c);
}

static void test_plain_user(void **state)
{
        int status;
        pid_t child;

        if (geteuid() != 0) {
                squashed();
                return;
        }
        child = fork();
        if (child == 0) {
                if (setgid(65533) < 0 || setuid(65533) < 0)
                        _exit(3);
                squashed();
                _exit(0);
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
}

static void test_xattrs(void **state)
{
        struct client c;
        struct { uint32_t size, flags; char text[32]; } set = { .size = 5 };
        struct { uint32_t size, padding; char text[32]; } get = { .size = 100 };
        uint64_t file;

        start(&c, false);
        if (setxattr(in_share(&c, "file"), "user.try", "x", 1, 0) < 0) {
                print_message("no user attributes in /tmp\n");
                end(&c);
                skip();
        }
        assert_int_equal(lookup(&c, 1, "file", &file), 0);
        memcpy(set.text, "user.a\0value", 12);
        assert_int_equal(ask(&c, FUSE_SETXATTR, file, &set, 8 + 12), 0);
        assert_int_equal(ask(&c, FUSE_SETXATTR, file, &set, 8 + 11), -EINVAL);
        strcpy(get.text, "user.a");
        assert_int_equal(ask(&c, FUSE_GETXATTR, file, &get, 8 + 7), 0);
        assert_int_equal(c.answer_bytes, 5);
        assert_memory_equal(body(&c), "value", 5);
        get.size = 4;
        assert_int_equal(ask(&c, FUSE_GETXATTR, file, &get, 8 + 7), -ERANGE);
        get.size = 0;
        assert_int_equal(ask(&c, FUSE_LISTXATTR, file, &get, 8), 0);
        assert_int_equal(((struct fuse_getxattr_out *)body(&c))->size, 16);
        memcpy(set.text, "trusted.a\0val", 13);
        set.size = 3;
        assert_int_equal(ask(&c, FUSE_SETXATTR, file, &set, 8 + 13), -EOPNOTSUPP);
        memcpy(set.text, "security.capability\0val", 23);
        assert_int_equal(ask(&c, FUSE_SETXATTR, file, &set, 8 + 23), -EOPNOTSUPP);
        assert_int_equal(ask(&c, FUSE_REMOVEXATTR, file, "user.a", 7), 0);
        assert_int_equal(ask(&c, FUSE_REMOVEXATTR, file, "user.a", 7), -ENODATA);
        end(&c);
}

static void test_directories(void **state)
{
        struct client c;
        uint64_t handle, offset = 0;
        unsigned found = 0, dots = 0, rounds = 0;
        char name[32];

        start(&c, false);
        for (unsigned i = 0; i < 500; i++) {
                snprintf(name, sizeof(name), "dir/entry-%u", i);
                put_file(in_share(&c, name), "", 0644);
        }
        assert_int_equal(lookup(&c, 1, "dir", &handle), 0);
        assert_int_equal(open_node(&c, handle, FUSE_OPENDIR, 0, &handle), 0);
        for (;;) {
                uint8_t *at = body(&c);

                assert_int_equal(read_handle(&c, rounds & 1 ? FUSE_READDIRPLUS : FUSE_READDIR, handle, offset, 4096), 0);
                if (!c.answer_bytes)
                        break;
                assert_true(c.answer_bytes <= 4096);
                for (size_t left = c.answer_bytes; left;) {
                        struct fuse_dirent *d = rounds & 1 ? &((struct fuse_direntplus *)at)->dirent : (struct fuse_dirent *)at;
                        size_t bytes = rounds & 1 ? FUSE_DIRENTPLUS_SIZE((struct fuse_direntplus *)at) : FUSE_DIRENT_SIZE(d);

                        assert_true(bytes <= left);
                        if (d->namelen == 1 || d->namelen == 2)
                                dots++;
                        else
                                found++;
                        if (rounds & 1 && d->namelen > 2)
                                assert_true(((struct fuse_direntplus *)at)->entry_out.nodeid > 1);
                        offset = d->off;
                        at += bytes;
                        left -= bytes;
                }
                rounds++;
        }
        assert_int_equal(found, 501);
        assert_int_equal(dots, 2);
        assert_int_equal(read_handle(&c, FUSE_READ, handle, 0, 10), -EBADF);
        release(&c, handle);
        end(&c);
}

static void test_readonly(void **state)
{
        struct client c;
        struct fuse_setattr_in set = { .valid = FATTR_MODE };
        struct fuse_mkdir_in mkdir_in = { .mode = 0755 };
        uint64_t file, handle;

        start(&c, true);
        assert_int_equal(lookup(&c, 1, "file", &file), 0);
        assert_int_equal(open_node(&c, file, FUSE_OPEN, O_WRONLY, &handle), -EROFS);
        assert_int_equal(open_node(&c, file, FUSE_OPEN, O_RDONLY | O_TRUNC, &handle), -EROFS);
        assert_int_equal(create(&c, 1, "new", O_RDONLY, 0644, &file, &handle), -EROFS);
        assert_int_equal(ask2(&c, FUSE_MKDIR, 1, &mkdir_in, sizeof(mkdir_in), "new", 4), -EROFS);
        assert_int_equal(ask(&c, FUSE_UNLINK, 1, "file", 5), -EROFS);
        assert_int_equal(ask(&c, FUSE_SETATTR, file, &set, sizeof(set)), -EROFS);
        assert_int_equal(ask2(&c, FUSE_SYMLINK, 1, "a", 2, "b", 2), -EROFS);
        assert_int_equal(open_node(&c, file, FUSE_OPEN, O_RDONLY, &handle), 0);
        assert_int_equal(write_handle(&c, handle, 0, "x", 1), -EROFS);
        assert_int_equal(access(in_share(&c, "new"), F_OK), -1);
        end(&c);
}

static void test_escape_names(void **state)
{
        static const char *const bad[] = { "..", ".", "", "/", "/etc", "../secret", "dir/inner", "a/../b", "dir/" };
        struct client c;
        char too_long[300];
        uint64_t node, dir;

        start(&c, false);
        assert_int_equal(lookup(&c, 1, "dir", &dir), 0);
        for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
                struct fuse_mkdir_in in = { .mode = 0755 };
                struct fuse_rename_in to = { .newdir = dir };
                char both[64];
                int length;

                assert_int_equal(lookup(&c, dir, bad[i], &node), -EINVAL);
                assert_int_equal(ask2(&c, FUSE_MKDIR, dir, &in, sizeof(in), bad[i], strlen(bad[i]) + 1), -EINVAL);
                assert_int_equal(ask(&c, FUSE_UNLINK, dir, bad[i], strlen(bad[i]) + 1), -EINVAL);
                length = snprintf(both, sizeof(both), "%s%c%s", "inner", 0, bad[i]);
                assert_int_equal(ask2(&c, FUSE_RENAME, dir, &to, sizeof(to), both, (size_t)length + 1), -EINVAL);
                assert_int_equal(ask2(&c, FUSE_LINK, 1, &(struct fuse_link_in){ dir }, 8, bad[i], strlen(bad[i]) + 1), -EINVAL);
        }
        memset(too_long, 'a', sizeof(too_long));
        too_long[299] = 0;
        assert_int_equal(lookup(&c, 1, too_long, &node), -ENAMETOOLONG);
        assert_int_equal(ask(&c, FUSE_LOOKUP, 1, "file", 4), -EINVAL); /* no end */
        assert_int_equal(lookup(&c, 12345, "file", &node), -ENOENT);
        assert_int_equal(lookup(&c, dir + (UINT64_C(1) << 32), "file", &node), -ENOENT);
        end(&c);
}

static void test_escape_links(void **state)
{
        struct client c;
        char target[256];
        uint64_t node, handle;

        start(&c, false);
        for (unsigned i = 0; i < 3; i++) {
                snprintf(target, sizeof(target), "%s", i == 0 ? outside(&c, "secret") : i == 1 ? "../secret" : c.base);
                assert_int_equal(ask2(&c, FUSE_SYMLINK, 1, "out", 4, target, strlen(target) + 1), 0);
                assert_int_equal(lookup(&c, 1, "out", &node), 0);
                assert_int_equal(((struct fuse_entry_out *)body(&c))->attr.mode & S_IFMT, S_IFLNK);
                assert_int_equal(ask(&c, FUSE_READLINK, node, NULL, 0), 0);
                assert_memory_equal(body(&c), target, strlen(target));
                assert_int_equal(open_node(&c, node, FUSE_OPEN, O_RDONLY, &handle), -EOPNOTSUPP);
                assert_int_equal(open_node(&c, node, FUSE_OPENDIR, 0, &handle), -ENOTDIR);
                assert_int_equal(lookup(&c, node, "secret", &handle), -ENOTDIR);
                /* Making a file of that name does not make or open the target. */
                assert_int_equal(create(&c, 1, "out", O_RDWR | O_TRUNC, 0666, &node, &handle), -EOPNOTSUPP);
                /* Nor do its attributes change. */
                assert_int_equal(ask(&c, FUSE_UNLINK, 1, "out", 4), 0);
        }
        end(&c);
}

/*
 * A directory that the client has forgotten, known only as the parent of another that the host has moved out of it, goes into
 * that other one.
 */
static void test_moved_parent(void **state)
{
        struct fuse_rename_in in = { 0 };
        struct client c;
        char from[256], to[256];
        uint64_t outer, inner, node;

        start(&c, false);
        snprintf(from, sizeof(from), "%s", in_share(&c, "outer"));
        assert_int_equal(mkdir(from, 0755), 0);
        snprintf(from, sizeof(from), "%s", in_share(&c, "outer/inner"));
        assert_int_equal(mkdir(from, 0755), 0);
        assert_int_equal(lookup(&c, 1, "outer", &outer), 0);
        assert_int_equal(lookup(&c, outer, "inner", &inner), 0);
        forget(&c, outer, 1);
        snprintf(to, sizeof(to), "%s", in_share(&c, "moved"));
        assert_int_equal(rename(from, to), 0);
        in.newdir = inner;
        assert_int_equal(ask2(&c, FUSE_RENAME, 1, &in, sizeof(in), "outer\0outer", 12), 0);
        assert_int_equal(lookup(&c, 1, "moved", &node), 0);
        assert_int_equal(node, inner);
        assert_int_equal(lookup(&c, inner, "outer", &node), 0);
        assert_int_equal(lookup(&c, outer, "x", &node), -ENOENT);
        end(&c);
}

/*
 * A directory that turns into a link to the outside and back, while requests name what is in it; and a file that turns into a
 * link to the secret, while it is opened, written and changed.
 */
struct race {
        struct client *c;
        atomic_bool stop;
        atomic_uint swaps, reached, opened;
};

static void *swapper(void *ctx)
{
        struct race *race = ctx;
        char dir[300], dir_link[300], file[300], file_link[300];

        snprintf(dir, sizeof(dir), "%s", in_share(race->c, "race"));
        snprintf(dir_link, sizeof(dir_link), "%s", in_share(race->c, "race-link"));
        snprintf(file, sizeof(file), "%s", in_share(race->c, "victim"));
        snprintf(file_link, sizeof(file_link), "%s", in_share(race->c, "victim-link"));
        while (!atomic_load(&race->stop)) {
                renameat2(AT_FDCWD, dir, AT_FDCWD, dir_link, RENAME_EXCHANGE);
                renameat2(AT_FDCWD, file, AT_FDCWD, file_link, RENAME_EXCHANGE);
                atomic_fetch_add(&race->swaps, 1);
                sched_yield();
        }
        return NULL;
}

static void *racer(void *ctx)
{
        struct race *race = ctx;
        struct client c = *race->c;
        struct fuse_setattr_in set = { .valid = FATTR_MODE | FATTR_SIZE, .mode = 0777, .size = 1 };

        c.answer = malloc(ANSWER_MAX);
        while (!atomic_load(&race->stop)) {
                uint64_t dir, node, handle;

                if (lookup(&c, 1, "race", &dir) == 0) {
                        if (lookup(&c, dir, "secret", &node) == 0 && open_node(&c, node, FUSE_OPEN, O_RDWR, &handle) == 0) {
                                if (read_handle(&c, FUSE_READ, handle, 0, 100) == 0 && memcmp(body(&c), "secret", 6) == 0)
                                        atomic_fetch_add(&race->reached, 1);
                                atomic_fetch_add(&race->opened, 1);
                                write_handle(&c, handle, 0, "inside", 6);
                                release(&c, handle);
                        }
                        if (create(&c, dir, "fresh", O_RDWR, 0644, &node, &handle) == 0)
                                release(&c, handle);
                        ask(&c, FUSE_UNLINK, dir, "fresh", 6);
                }
                if (lookup(&c, 1, "victim", &node) == 0) {
                        if (open_node(&c, node, FUSE_OPEN, O_RDWR | O_TRUNC, &handle) == 0) {
                                write_handle(&c, handle, 0, "broken", 6);
                                release(&c, handle);
                        }
                        ask(&c, FUSE_SETATTR, node, &set, sizeof(set));
                        ask2(&c, FUSE_LINK, 1, &(struct fuse_link_in){ node }, 8, "linked", 7);
                        ask(&c, FUSE_UNLINK, 1, "linked", 7);
                }
                if (create(&c, 1, "victim", O_RDWR | O_TRUNC, 0666, &node, &handle) == 0) {
                        write_handle(&c, handle, 0, "broken", 6);
                        release(&c, handle);
                }
        }
        free(c.answer);
        return NULL;
}

static void test_escape_race(void **state)
{
        struct client c;
        struct race race = { .c = &c };
        pthread_t threads[4];
        struct stat st;

        start(&c, false);
        assert_int_equal(mkdir(in_share(&c, "race"), 0755), 0);
        put_file(in_share(&c, "race/secret"), "inside", 0644);
        assert_int_equal(symlink(c.base, in_share(&c, "race-link")), 0);
        put_file(in_share(&c, "victim"), "victim", 0644);
        assert_int_equal(symlink(outside(&c, "secret"), in_share(&c, "victim-link")), 0);

        for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
                assert_int_equal(pthread_create(&threads[i], NULL, i ? racer : swapper, &race), 0);
        usleep(1500000);
        atomic_store(&race.stop, true);
        for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
                pthread_join(threads[i], NULL);

        print_message("%u swaps, %u opened\n", atomic_load(&race.swaps), atomic_load(&race.opened));
        assert_true(atomic_load(&race.swaps) > 20 && atomic_load(&race.opened) > 0);
        assert_int_equal(atomic_load(&race.reached), 0);
        assert_int_equal(stat(outside(&c, "secret"), &st), 0);
        assert_int_equal(st.st_mode, S_IFREG | 0644);
        assert_int_equal(st.st_nlink, 1);
        assert_int_equal(access(outside(&c, "fresh"), F_OK), -1);
        end(&c);
}

/* More files than descriptors: they are closed and found again by name. */
static void test_few_descriptors(void **state)
{
        enum { FILES = 600 };
        struct client c;
        struct rlimit old, few = { 256, 256 };
        static uint64_t node[FILES];
        struct fuse_getattr_in get = { 0 };
        uint64_t dir, handle;
        char name[32];

        getrlimit(RLIMIT_NOFILE, &old);
        few.rlim_max = old.rlim_max;
        setrlimit(RLIMIT_NOFILE, &few);
        start(&c, false);
        assert_int_equal(lookup(&c, 1, "dir", &dir), 0);
        for (unsigned i = 0; i < FILES; i++) {
                snprintf(name, sizeof(name), "n%u", i);
                assert_int_equal(create(&c, dir, name, O_RDWR, 0644, &node[i], &handle), 0);
                assert_int_equal(write_handle(&c, handle, 0, name, (uint32_t)strlen(name)), 0);
                release(&c, handle);
        }
        /* The directory moves; what is in it is found through it. */
        assert_int_equal(ask2(&c, FUSE_RENAME, 1, &(struct fuse_rename_in){ 1 }, 8, "dir\0moved", 10), 0);
        for (unsigned i = 0; i < FILES; i++) {
                assert_int_equal(ask(&c, FUSE_GETATTR, node[i], &get, sizeof(get)), 0);
                assert_int_equal(open_node(&c, node[i], FUSE_OPEN, O_RDONLY, &handle), 0);
                assert_int_equal(read_handle(&c, FUSE_READ, handle, 0, 100), 0);
                snprintf(name, sizeof(name), "n%u", i);
                assert_int_equal(c.answer_bytes, strlen(name));
                assert_memory_equal(body(&c), name, c.answer_bytes);
                release(&c, handle);
        }
        /* Another file of the same name is not taken for it. */
        assert_int_equal(unlink(in_share(&c, "moved/n0")), 0);
        put_file(in_share(&c, "moved/n0"), "other", 0644);
        assert_int_equal(open_node(&c, node[0], FUSE_OPEN, O_RDONLY, &handle), -ESTALE);
        /* Open files are limited. */
        for (unsigned i = 1; i < FILES; i++) {
                if (open_node(&c, node[i], FUSE_OPEN, O_RDONLY, &handle) < 0) {
                        assert_in_range(i, 60, 70);
                        break;
                }
        }
        setrlimit(RLIMIT_NOFILE, &old);
        end(&c);
}

/* Each of several servers reaches its limit, and the process has descriptors left. */
static void test_divided_descriptors(void **state)
{
        enum { SERVERS = 8, FILES = 100 };
        static struct client c[SERVERS];
        struct rlimit old, few = { 1024, 1024 };
        uint64_t dir, node, handle;
        int spare[128];
        char name[32];

        getrlimit(RLIMIT_NOFILE, &old);
        few.rlim_max = old.rlim_max;
        setrlimit(RLIMIT_NOFILE, &few);
        for (unsigned s = 0; s < SERVERS; s++) {
                unsigned open_files;
                int r = 0;

                start(&c[s], false);
                fs_server_divide(c[s].fs, SERVERS);
                assert_int_equal(lookup(&c[s], 1, "dir", &dir), 0);
                for (open_files = 0; open_files < FILES; open_files++) {
                        snprintf(name, sizeof(name), "n%u", open_files);
                        r = create(&c[s], dir, name, O_RDWR, 0644, &node, &handle);
                        if (r < 0)
                                break;
                }
                assert_int_equal(r, -ENFILE);
                assert_int_equal(open_files, 1024 / SERVERS / 4);
        }
        for (size_t i = 0; i < ARRAY_SIZE(spare); i++) {
                spare[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
                assert_true(spare[i] >= 0);
        }
        for (size_t i = 0; i < ARRAY_SIZE(spare); i++)
                close(spare[i]);
        for (unsigned s = 0; s < SERVERS; s++)
                end(&c[s]);
        setrlimit(RLIMIT_NOFILE, &old);
}

static void test_save_load(void **state)
{
        struct client c;
        struct writer out = { 0 };
        struct cursor in;
        struct err err = ERR_INIT;
        uint64_t dir = 0, inner = 0, handle = 0, gone = 0, dir_handle = 0;

        start(&c, false);
        assert_int_equal(lookup(&c, 1, "dir", &dir), 0);
        assert_int_equal(lookup(&c, dir, "inner", &inner), 0);
        assert_int_equal(lookup(&c, 1, "file", &gone), 0);
        assert_int_equal(open_node(&c, inner, FUSE_OPEN, O_RDWR, &handle), 0);
        assert_int_equal(open_node(&c, dir, FUSE_OPENDIR, 0, &dir_handle), 0);
        fs_server_save(c.fs, &out);
        fs_server_free(c.fs);
        assert_int_equal(unlink(in_share(&c, "file")), 0);

        assert_int_equal(fs_server_new(c.share, false, &c.fs, &err), 0);
        in = cursor_from(out.bytes, out.size);
        assert_int_equal(fs_server_load(c.fs, &in, &err), 0);
        assert_int_equal(cursor_left(&in), 0);
        assert_int_equal(read_handle(&c, FUSE_READ, handle, 0, 100), 0);
        assert_memory_equal(body(&c), "inner", 5);
        assert_int_equal(read_handle(&c, FUSE_READDIR, dir_handle, 0, 1000), 0);
        assert_true(c.answer_bytes > 0);
        assert_int_equal(open_node(&c, gone, FUSE_OPEN, O_RDONLY, &handle), -ESTALE);
        forget(&c, inner, 1);
        forget(&c, dir, 1);
        forget(&c, gone, 1);

        /* Cut or changed, it is refused or harmless. */
        for (size_t cut = 0; cut < out.size; cut++) {
                in = cursor_from(out.bytes, cut);
                assert_int_equal(fs_server_load(c.fs, &in, &err), -EBADMSG);
        }
        for (size_t i = 0; i < out.size * 8; i += 7) {
                out.bytes[i / 8] ^= (uint8_t)(1u << i % 8);
                in = cursor_from(out.bytes, out.size);
                if (fs_server_load(c.fs, &in, &err) == 0)
                        say_init(&c);
                out.bytes[i / 8] ^= (uint8_t)(1u << i % 8);
        }
        writer_done(&out);
        end(&c);
}

static void test_errors(void **state)
{
        struct fs_server *fs = NULL;
        struct err err = ERR_INIT;

        assert_int_equal(fs_server_new("/nonexistent/directory", false, &fs, &err), -ENOENT);
        assert_non_null(strstr(err.text, "/nonexistent/directory"));
        assert_int_equal(fs_server_new("/etc/passwd", false, &fs, &err), -ENOTDIR);
        assert_null(fs);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_init),         cmocka_unit_test(test_read_write),   cmocka_unit_test(test_names),
                cmocka_unit_test(test_attributes),   cmocka_unit_test(test_owner),        cmocka_unit_test(test_plain_user),
                cmocka_unit_test(test_xattrs),       cmocka_unit_test(test_directories),  cmocka_unit_test(test_readonly),
                cmocka_unit_test(test_escape_names), cmocka_unit_test(test_escape_links),
                cmocka_unit_test(test_moved_parent), cmocka_unit_test(test_escape_race),
                cmocka_unit_test(test_few_descriptors), cmocka_unit_test(test_divided_descriptors),
                cmocka_unit_test(test_save_load), cmocka_unit_test(test_errors),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
