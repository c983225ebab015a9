/*
 * Raw disks: a regular file or a block device of the host, byte for byte.
 *
 * The file's size is rounded up to whole sectors: what is behind its end reads as zeroes and comes into being when it is written.
 *
 * Double use: a disk that is written holds an exclusive lock (open file description lock) on the whole file, a read-only one a
 * shared lock, so that two machines never write one image and nobody reads what another writes. Such locks belong to the open
 * file and go with it, also when the process is killed. A block device is opened with O_EXCL besides, which the kernel refuses
 * while it is mounted.
 */
#include "block/block-raw.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "block/file-io.h"

/* A file system notes zeroes down; for a block device without a command for it the kernel writes them, and is not to be stopped. */
#define ZEROES_FILE_BYTES (UINT32_C(1) << 31)

/* Whole sectors in an off_t. */
#define SIZE_MAX_BYTES (INT64_MAX / 4096 * 4096)

struct raw {
        struct block block;
        struct file_io *io;
        int fd;
        char *path;
};

static struct raw *to_raw(struct block *disk)
{
        return container_of(disk, struct raw, block);
}

static int lock_file(int fd, const char *path, bool readonly, struct err *err)
{
        struct flock lock = { .l_type = readonly ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET };

        if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
                return 0;
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
        /* Found out by trying, behind the end, where there is nothing to lose. */
        if (!info->readonly &&
            fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)align_up(info->size_bytes, 65536), 4096) == 0)
                info->discard_bytes = info->physical_bytes;
}

static int set_size(const char *path, struct block_info *info, uint64_t size_bytes, struct err *err)
{
        if (!size_bytes)
                return err_set(err, -EINVAL, "disk %s is empty; give it a size: truncate -s 1G %s", path, path);
        if (size_bytes > SIZE_MAX_BYTES)
                return err_set(err, -EFBIG, "disk %s is too large", path);
        info->size_bytes = align_up(size_bytes, BLOCK_SECTOR);
        return 0;
}

static int read_geometry(struct raw *raw, struct err *err)
{
        struct block_info info = { .readonly = raw->block.info.readonly };
        struct stat st;
        int r = 0;

        if (fstat(raw->fd, &st) < 0)
                return err_errno(err, -errno, "cannot read the size of disk %s", raw->path);
        if (S_ISBLK(st.st_mode))
                r = device_geometry(raw->fd, raw->path, &info, err);
        else
                file_geometry(raw->fd, &st, &info);
        if (r == 0)
                r = set_size(raw->path, &info, info.size_bytes, err);
        if (r == 0)
                raw->block.info = info;
        return r;
}

/* Opens without waiting (a FIFO would), then makes sure of what it is. */
static int open_file(struct raw *raw, unsigned flags, struct err *err)
{
        bool readonly = flags & BLOCK_OPEN_READONLY;
        int how = (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
        struct stat st;

        if (stat(raw->path, &st) < 0)
                return err_errno(err, -errno, "cannot open disk %s", raw->path);
        if (S_ISDIR(st.st_mode))
                return err_set(err, -EISDIR, "disk %s is a directory; a directory can be shared with --share", raw->path);
        if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
                return err_set(err, -EINVAL, "disk %s is neither a file nor a block device", raw->path);
        if (S_ISBLK(st.st_mode) && !readonly && !(flags & BLOCK_OPEN_NO_LOCK))
                how |= O_EXCL;
        raw->fd = open(raw->path, how);
        if (raw->fd < 0 && errno == EBUSY)
                return err_set(err, -EBUSY, "disk %s is mounted or in use on the host", raw->path);
        if (raw->fd < 0)
                return err_errno(err, -errno, "cannot open disk %s%s", raw->path, readonly ? "" : " for writing");
        if (fstat(raw->fd, &st) < 0 || (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)))
                return err_set(err, -EINVAL, "disk %s changed while it was opened", raw->path);
        /* O_NONBLOCK would make io_uring give up where it should wait. */
        if (fcntl(raw->fd, F_SETFL, 0) < 0)
                return err_errno(err, -errno, "cannot set up disk %s", raw->path);
        raw->block.info.readonly = readonly;
        return flags & BLOCK_OPEN_NO_LOCK ? 0 : lock_file(raw->fd, raw->path, readonly, err);
}

static void raw_close(struct block *disk)
{
        struct raw *raw = to_raw(disk);

        file_io_free(raw->io);
        if (raw->fd >= 0)
                close(raw->fd);
        free(raw->path);
        free(raw);
}

static int raw_open(uv_loop_t *loop, const char *path, unsigned flags, struct block **disk, struct err *err)
{
        struct raw *raw = calloc(1, sizeof(*raw));
        int r;

        if (!raw)
                return err_nomem(err);
        raw->block.driver = &block_raw;
        raw->fd = -1;
        raw->path = strdup(path);
        r = raw->path ? open_file(raw, flags, err) : err_nomem(err);
        if (r == 0)
                r = read_geometry(raw, err);
        if (r == 0)
                r = file_io_new(loop, raw->fd, &raw->block, !(flags & BLOCK_OPEN_NO_URING), &raw->io, err);
        if (r < 0) {
                raw_close(&raw->block);
                return r;
        }
        *disk = &raw->block;
        return 0;
}

static void raw_submit(struct block *disk, struct block_request *req)
{
        file_io_submit(to_raw(disk)->io, req);
}

static void raw_kick(struct block *disk)
{
        file_io_kick(to_raw(disk)->io);
}

static void raw_reap(struct block *disk)
{
        file_io_reap(to_raw(disk)->io);
}

static void raw_drain(struct block *disk)
{
        file_io_drain(to_raw(disk)->io);
}

/* The size alone, by a call that the sandbox lets through on files and on devices; the rest does not change. */
static int raw_refresh(struct block *disk, struct err *err)
{
        struct raw *raw = to_raw(disk);
        off_t size = lseek(raw->fd, 0, SEEK_END);

        if (size < 0)
                return err_errno(err, -errno, "cannot read the size of disk %s", raw->path);
        return set_size(raw->path, &raw->block.info, (uint64_t)size, err);
}

const struct block_driver block_raw = {
        .name = "raw",
        .text = "a file or block device as it is",
        .open = raw_open,
        .close = raw_close,
        .submit = raw_submit,
        .kick = raw_kick,
        .reap = raw_reap,
        .drain = raw_drain,
        .refresh = raw_refresh,
};
