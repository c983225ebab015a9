/*
 * Files: a regular file or a block device of the host, byte for byte.
 *
 * The file's size is rounded up to whole sectors: what is behind its end reads as zeroes and comes into being when it is written.
 *
 * Double use: a disk that is written holds an exclusive lock (open file description lock) on the whole file, a read-only one a
 * shared lock, so that two machines never write one image and nobody reads what another writes. Such locks belong to the open
 * file and go with it, also when the process is killed. A block device is opened with O_EXCL besides, which the kernel refuses
 * while it is mounted.
 */
#include "block/block-file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "block/file-io.h"

/* A file system notes zeroes down; for a block device without a command for it the kernel writes them, and is not to be stopped. */
#define ZEROES_FILE_BYTES (UINT32_C(1) << 31)

/* For the lock of somebody who is gone. */
#define LOCK_PATIENCE_MS 600

/* Whole sectors in an off_t. */
#define SIZE_MAX_BYTES (INT64_MAX / 4096 * 4096)

struct file {
        struct block block;
        struct file_io *io;
        int fd;
        bool no_flush, no_lock;
        bool can_write; /* though it is read-only for now */
};

static struct file *to_file(struct block *block)
{
        return container_of(block, struct file, block);
}

/*
 * The lock of a process that was killed goes when the kernel has put its io_uring away, which is a little after the process: who comes
 * at once has to wait for it.
 */
static int lock_file(int fd, const char *path, bool readonly, struct err *err)
{
        for (unsigned waited_ms = 0; waited_ms <= LOCK_PATIENCE_MS; waited_ms += 20) {
                struct flock lock = { .l_type = readonly ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET };

                if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
                        return 0;
                if (errno != EAGAIN && errno != EACCES)
                        break;
                if (waited_ms < LOCK_PATIENCE_MS)
                        usleep(20000);
        }
        if (errno == EAGAIN || errno == EACCES)
                return err_set(err, -EBUSY, "disk %s is in use by another process%s", path,
                               readonly ? " that writes it" : "; read-only users can share it");
        return err_errno(err, -errno, "cannot lock disk %s", path);
}

static int device_geometry(int fd, const char *path, struct block_info *info, struct err *err)
{
        unsigned physical = 0, optimal = 0;
        uint64_t size = 0;
        int logical = 0;

        if (ioctl(fd, BLKGETSIZE64, &size) < 0 || ioctl(fd, BLKSSZGET, &logical) < 0)
                return err_errno(err, -errno, "cannot read the size of disk %s", path);
        if (logical < BLOCK_SECTOR || !is_power_of_two((uint64_t)logical))
                return err_set(err, -EINVAL, "disk %s has blocks of %d bytes", path, logical);
        if (ioctl(fd, BLKPBSZGET, &physical) < 0 || physical < (unsigned)logical || !is_power_of_two(physical))
                physical = (unsigned)logical;
        if (ioctl(fd, BLKIOOPT, &optimal) < 0)
                optimal = 0;
        info->size_bytes = size;
        info->logical_bytes = (uint32_t)logical;
        info->physical_bytes = physical;
        info->optimal_bytes = optimal;
        info->discard_bytes = info->readonly ? 0 : physical;
        info->zeroes_bytes = info->readonly ? 0 : FILE_IO_ZEROES_WRITTEN;
        return 0;
}

static void file_geometry(int fd, const struct stat *st, struct block_info *info)
{
        uint64_t block =
                st->st_blksize >= BLOCK_SECTOR && is_power_of_two((uint64_t)st->st_blksize) ? (uint64_t)st->st_blksize : 4096;

        info->size_bytes = (uint64_t)st->st_size;
        info->logical_bytes = BLOCK_SECTOR;
        info->physical_bytes = (uint32_t)MIN(block, UINT64_C(4096));
        info->optimal_bytes = 0;
        info->discard_bytes = 0;
        info->zeroes_bytes = info->readonly ? 0 : ZEROES_FILE_BYTES;
        info->grows = !info->readonly;
        /* Found out by trying, behind the end, where there is nothing to lose. */
        if (!info->readonly &&
            fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)align_up(info->size_bytes, 65536), 4096) == 0)
                info->discard_bytes = info->physical_bytes;
}

static int set_size(const char *path, struct block_info *info, uint64_t size_bytes, struct err *err)
{
        if (size_bytes > SIZE_MAX_BYTES)
                return err_set(err, -EFBIG, "disk %s is too large", path);
        info->size_bytes = align_up(size_bytes, BLOCK_SECTOR);
        return 0;
}

static int read_geometry(struct file *file, struct err *err)
{
        struct block_info info = { .readonly = file->block.info.readonly };
        struct stat st;
        int r = 0;

        if (fstat(file->fd, &st) < 0)
                return err_errno(err, -errno, "cannot read the size of disk %s", file->block.path);
        if (S_ISBLK(st.st_mode))
                r = device_geometry(file->fd, file->block.path, &info, err);
        else
                file_geometry(file->fd, &st, &info);
        if (r == 0)
                r = set_size(file->block.path, &info, info.size_bytes, err);
        if (r == 0)
                file->block.info = info;
        return r;
}

/* Opens without waiting (a FIFO would), then makes sure of what it is. */
static int open_file(struct file *file, unsigned flags, struct err *err)
{
        bool readonly = flags & BLOCK_OPEN_READONLY;
        int how = (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
        struct stat st;

        if (stat(file->block.path, &st) < 0)
                return err_errno(err, -errno, "cannot open disk %s", file->block.path);
        if (S_ISDIR(st.st_mode))
                return err_set(err, -EISDIR, "disk %s is a directory; a directory can be shared with --share", file->block.path);
        if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
                return err_set(err, -EINVAL, "disk %s is neither a file nor a block device", file->block.path);
        if (S_ISBLK(st.st_mode) && !readonly && !(flags & BLOCK_OPEN_NO_LOCK))
                how |= O_EXCL;
        file->can_write = readonly && flags & BLOCK_OPEN_COMMIT;
        file->fd = file->can_write ? open(file->block.path, (how & ~O_ACCMODE) | O_RDWR) : -1;
        file->can_write = file->fd >= 0;
        if (file->fd < 0)
                file->fd = open(file->block.path, how);
        if (file->fd < 0 && errno == EBUSY)
                return err_set(err, -EBUSY, "disk %s is mounted or in use on the host", file->block.path);
        if (file->fd < 0)
                return err_errno(err, -errno, "cannot open disk %s%s", file->block.path, readonly ? "" : " for writing");
        if (fstat(file->fd, &st) < 0 || (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)))
                return err_set(err, -EINVAL, "disk %s changed while it was opened", file->block.path);
        /* O_NONBLOCK would make io_uring give up where it should wait. */
        if (fcntl(file->fd, F_SETFL, 0) < 0)
                return err_errno(err, -errno, "cannot set up disk %s", file->block.path);
        file->block.info.readonly = readonly;
        return flags & BLOCK_OPEN_NO_LOCK ? 0 : lock_file(file->fd, file->block.path, readonly, err);
}

static void file_close(struct block *block)
{
        struct file *file = to_file(block);

        file_io_free(file->io);
        if (file->fd >= 0)
                close(file->fd);
        block_done(block);
        free(file);
}

static const char *const schemes[] = { "file", NULL };

static int file_open(const struct block_opening *opening, struct block **block, struct err *err)
{
        struct file *file = calloc(1, sizeof(*file));
        int r;

        if (!file)
                return err_nomem(err);
        r = block_init(&file->block, &block_file, opening, err);
        if (r < 0) {
                free(file);
                return r;
        }
        file->fd = -1;
        file->no_flush = opening->flags & BLOCK_OPEN_NO_FLUSH;
        file->no_lock = opening->flags & BLOCK_OPEN_NO_LOCK;
        r = open_file(file, opening->flags, err);
        if (r == 0)
                r = read_geometry(file, err);
        if (r == 0)
                r = file_io_new(opening->loop, file->fd, &file->block, !(opening->flags & BLOCK_OPEN_NO_URING), &file->io, err);
        if (r < 0) {
                file_close(&file->block);
                return r;
        }
        *block = &file->block;
        return 0;
}

static void file_submit(struct block *block, struct block_request *req)
{
        if (to_file(block)->no_flush) {
                req->flags &= ~(unsigned)BLOCK_F_DURABLE;
                if (req->op == BLOCK_FLUSH) {
                        block_complete(block, req, 0);
                        return;
                }
        }
        file_io_submit(to_file(block)->io, req);
}

static void file_kick(struct block *block)
{
        file_io_kick(to_file(block)->io);
}

static void file_reap(struct block *block)
{
        file_io_reap(to_file(block)->io);
}

static void file_wait(struct block *block)
{
        file_io_wait(to_file(block)->io);
}

/* The size alone, by a call that the sandbox lets through on files and on devices; the rest does not change. */
static int file_refresh(struct block *block, struct err *err)
{
        struct file *file = to_file(block);
        off_t size = lseek(file->fd, 0, SEEK_END);

        if (size < 0)
                return err_errno(err, -errno, "cannot read the size of disk %s", block->path);
        if (!size)
                return err_set(err, -EINVAL, "disk %s is empty now", block->path);
        return set_size(block->path, &block->info, (uint64_t)size, err);
}

/* The host's own holes. A file system that has none says that all is data. */
static int file_status(struct block *block, uint64_t offset_bytes, uint64_t size_bytes, struct block_extent *extent)
{
        int fd = to_file(block)->fd;
        off_t data = lseek(fd, (off_t)offset_bytes, SEEK_DATA), end = (off_t)(offset_bytes + size_bytes);

        *extent = (struct block_extent){ .size_bytes = size_bytes, .present = true, .host_bytes = offset_bytes };
        if (data < 0 && errno == ENXIO)
                extent->zero = true; /* a hole up to the end, or behind it */
        if (data < 0)
                return 0;
        if (data > (off_t)offset_bytes) {
                extent->zero = true;
                end = data;
        } else {
                end = lseek(fd, (off_t)offset_bytes, SEEK_HOLE);
        }
        if (end > (off_t)offset_bytes)
                extent->size_bytes = MIN((uint64_t)end - offset_bytes, size_bytes);
        return 0;
}

static int file_resize(struct block *block, uint64_t size_bytes, struct err *err)
{
        struct file *file = to_file(block);

        if (!block->info.grows)
                return err_set(err, -EOPNOTSUPP, "disk %s is a block device; its size cannot be changed here", block->path);
        if (ftruncate(file->fd, (off_t)size_bytes) < 0)
                return err_errno(err, -errno, "cannot make disk %s %" PRIu64 " bytes long", block->path, size_bytes);
        return set_size(block->path, &block->info, size_bytes, err);
}

/* The lock goes over from one open file to the other; requests know the number, which stays. */
static int change_descriptor(struct file *file, int fd, bool writable, struct err *err)
{
        struct flock unlock = { .l_type = F_UNLCK, .l_whence = SEEK_SET };
        struct err ignored = ERR_INIT;
        int r = 0;

        if (!file->no_lock) {
                (void)fcntl(file->fd, F_OFD_SETLK, &unlock);
                r = lock_file(fd, file->block.path, !writable, err);
                if (r < 0 && lock_file(file->fd, file->block.path, writable, &ignored) < 0)
                        return err_wrap(err, r, "its lock is lost");
        }
        return r == 0 && dup3(fd, file->fd, O_CLOEXEC) < 0 ? err_errno(err, -errno, "cannot open disk %s", file->block.path) : r;
}

static int file_reopen(struct block *block, bool writable, struct err *err)
{
        struct file *file = to_file(block);
        struct stat now, before;
        _cleanup_close_ int fd = file->can_write ? -1 : open(block->path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
        int r;

        if (file->can_write) {
                r = file->no_lock ? 0 : lock_file(file->fd, block->path, !writable, err);
                if (r < 0)
                        return r;
                block->info.readonly = !writable;
                return read_geometry(file, err);
        }
        if (fd < 0)
                return err_errno(err, -errno, "cannot open disk %s%s", block->path, writable ? " for writing" : "");
        if (fstat(fd, &now) < 0 || fstat(file->fd, &before) < 0 || now.st_ino != before.st_ino || now.st_dev != before.st_dev)
                return err_set(err, -EINVAL, "disk %s is another file by now", block->path);
        if (fcntl(fd, F_SETFL, 0) < 0)
                return err_errno(err, -errno, "cannot set up disk %s", block->path);
        r = change_descriptor(file, fd, writable, err);
        if (r < 0)
                return r;
        block->info.readonly = !writable;
        return read_geometry(file, err);
}

const struct block_driver block_file = {
        .reopen = file_reopen,
        .name = "file",
        .text = "a file or block device of the host",
        .schemes = schemes,
        .open = file_open,
        .close = file_close,
        .submit = file_submit,
        .kick = file_kick,
        .reap = file_reap,
        .wait = file_wait,
        .refresh = file_refresh,
        .status = file_status,
        .resize = file_resize,
};
