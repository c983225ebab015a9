/*
 * Opening disks: which driver, and which files an image may pull in.
 *
 *      path ─▶ protocol: by the scheme of a URL, else a file of the host
 *           ─▶ format:   the one named; else by the suffix; else by a probe, where the caller allows it; else raw
 *           ─▶ backing:  by the driver of the format, through block_open_backing()
 *
 * What an image names as its backing file was written by whoever made the image. It is opened read-only, only when it lies in the
 * image's own folder or below (BLOCK_OPEN_ANY_BACKING lifts that), in a format that it names or the suffix gives, never twice in one
 * chain, and BLOCK_DEPTH_MAX deep at most.
 */
#include "block/block.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>

#include "block/block-file.h"

#define PROBE_BYTES 4096

static const struct block_driver raw = {
        .name = "raw",
        .text = "a file or block device as it is",
        .suffixes = (const char *const[]){ ".raw", ".img", NULL },
};

static const struct block_driver *by_name(const char *name)
{
        for (unsigned n = 0; block_drivers[n]; n++)
                if (strcmp(block_drivers[n]->name, name) == 0)
                        return block_drivers[n];
        return NULL;
}

const struct block_driver *block_driver_find(const char *name)
{
        return strcmp(name, raw.name) == 0 ? &raw : by_name(name);
}

/* Of a URL without what is behind its path. */
static bool ends_with(const char *text, const char *end)
{
        size_t length = block_is_remote(text) ? strcspn(text, "?#") : strlen(text), end_length = strlen(end);

        return length > end_length && strncasecmp(text + length - end_length, end, end_length) == 0;
}

static bool has_suffix(const struct block_driver *driver, const char *path)
{
        for (unsigned n = 0; driver->suffixes && driver->suffixes[n]; n++)
                if (ends_with(path, driver->suffixes[n]))
                        return true;
        return false;
}

static const struct block_driver *by_suffix(const char *path)
{
        if (has_suffix(&raw, path))
                return &raw;
        for (unsigned n = 0; block_drivers[n]; n++)
                if (has_suffix(block_drivers[n], path))
                        return block_drivers[n];
        return NULL;
}

/* raw when nobody knows these bytes. */
static int by_contents(struct block *file, const struct block_driver **driver, struct err *err)
{
        uint8_t head[PROBE_BYTES];
        size_t size = MIN(file->info.size_bytes, sizeof(head));
        int best = 0, r = block_read(file, 0, head, size);

        if (r < 0)
                return err_errno(err, r, "cannot read %s", file->path);
        *driver = &raw;
        for (unsigned n = 0; block_drivers[n]; n++) {
                int score = block_drivers[n]->probe ? block_drivers[n]->probe(head, size) : 0;

                if (score > best) {
                        best = score;
                        *driver = block_drivers[n];
                }
        }
        return 0;
}

static int unknown_format(const struct block_opening *opening, struct err *err)
{
        char names[256] = "raw";
        size_t used = strlen(names);

        for (unsigned n = 0; block_drivers[n] && used < sizeof(names); n++)
                if (!block_drivers[n]->schemes)
                        used += (size_t)snprintf(names + used, sizeof(names) - used, ", %s", block_drivers[n]->name);
        return err_set(err, -EINVAL, "disk %s: no format '%s'; there are: %s", opening->path, opening->format, names);
}

static int check_format(const struct block_opening *opening, struct err *err)
{
        const struct block_driver *driver = opening->format ? block_driver_find(opening->format) : &raw;

        return driver && !driver->schemes ? 0 : unknown_format(opening, err);
}

static const struct block_driver *protocol_of(const char *path)
{
        for (unsigned n = 0; block_drivers[n]; n++)
                for (const char *const *scheme = block_drivers[n]->schemes; scheme && *scheme; scheme++) {
                        size_t length = strlen(*scheme);

                        if (strncmp(path, *scheme, length) == 0 && (strncmp(path + length, "://", 3) == 0 || (*scheme)[length - 1] == ':'))
                                return block_drivers[n];
                }
        return &block_file;
}

bool block_is_remote(const char *path)
{
        return protocol_of(path) != &block_file;
}

static int choose_format(const struct block_opening *opening, struct block *file, const struct block_driver **driver, struct err *err)
{
        bool suffix = !protocol_of(opening->path)->is_disk;

        *driver = opening->format ? block_driver_find(opening->format) : suffix ? by_suffix(opening->path) : NULL;
        if (*driver)
                return 0;
        *driver = &raw;
        return opening->flags & BLOCK_OPEN_PROBE ? by_contents(file, driver, err) : 0;
}

int block_open(const struct block_opening *opening, struct block **block, struct err *err)
{
        struct block_opening above = *opening;
        const struct block_driver *format;
        struct block *file;
        int r = check_format(opening, err);

        if (r == 0)
                r = protocol_of(opening->path)->open(opening, &file, err);
        if (r < 0)
                return r;
        r = choose_format(opening, file, &format, err);
        if (r == 0 && format == &raw && !file->info.size_bytes)
                r = err_set(err, -EINVAL, "disk %s is empty; give it a size: truncate -s 1G %s", opening->path, opening->path);
        if (r == 0 && format != &raw) {
                above.file = file;
                r = format->open(&above, block, err);
        } else if (r == 0) {
                *block = file;
        }
        if (r < 0)
                block_close(file);
        return r;
}

/* ---- new images ---- */

/* All zeroes; whatever was there is gone. */
static int create_in(const struct block_opening *opening, const struct block_driver *format, const struct block_creation *creation, struct err *err)
{
        struct block *file;
        int r = block_file.open(opening, &file, err);

        if (r < 0)
                return r;
        if (format == &raw)
                r = block_make_empty(file, align_up(creation->size_bytes, BLOCK_SECTOR), err);
        else
                r = format->create(file, creation, err);
        if (r == 0)
                r = block_flush(file);
        block_close(file);
        return r;
}

static int check_creation(const struct block_opening *opening, const struct block_driver *format, const struct block_creation *creation, struct err *err)
{
        if (!creation->size_bytes)
                return err_set(err, -EINVAL, "disk %s: a disk has at least %d bytes", opening->path, BLOCK_SECTOR);
        if (creation->size_bytes > INT64_MAX / 2)
                return err_set(err, -EFBIG, "disk %s: %" PRIu64 " bytes are more than a file can have", opening->path, creation->size_bytes);
        if (protocol_of(opening->path) != &block_file)
                return err_set(err, -EOPNOTSUPP, "disk %s: new images can only be made in files", opening->path);
        if (format != &raw && !format->create)
                return err_set(err, -EOPNOTSUPP, "disk %s: %s images are only read", opening->path, format->name);
        if (format == &raw && (creation->backing || creation->options))
                return err_set(err, -EINVAL, "disk %s: a raw image has no %s", opening->path, creation->backing ? "backing file" : "options");
        return 0;
}

int block_create(const struct block_opening *opening, const struct block_creation *creation, bool overwrite, struct err *err)
{
        const struct block_driver *format = NULL;
        struct block_creation made = *creation;
        int fd, r = check_format(opening, err);

        if (r == 0)
                r = choose_format(opening, NULL, &format, err);
        if (r == 0)
                r = check_creation(opening, format, creation, err);
        if (r != 0)
                return r;
        fd = open(opening->path, O_RDWR | O_CREAT | O_CLOEXEC | (overwrite ? 0 : O_EXCL), 0666);
        if (fd < 0 && errno == EEXIST)
                return err_set(err, -EEXIST, "disk %s is there already, and was left alone; --overwrite replaces it", opening->path);
        if (fd < 0)
                return err_errno(err, -errno, "cannot make disk %s", opening->path);
        close(fd);
        made.overwrite = overwrite;
        made.secret = opening->secret;
        r = create_in(opening, format, &made, err);
        if (r < 0 && !overwrite)
                unlinkat(AT_FDCWD, opening->path, 0); /* the call that sandboxes let through */
        return r < 0 ? err_wrap(err, r, "disk %s", opening->path) : 0;
}

/* ---- backing files ---- */

/* As seen from the folder of the image that names it; the caller's to free. */
static int resolve(const struct block_opening *front, const char *name, char **path, struct err *err)
{
        const char *slash = strrchr(front->path, '/');
        int folder = slash ? (int)(slash - front->path) + 1 : 0;

        if (strncmp(name, "json:", 5) == 0)
                return err_set(err, -EOPNOTSUPP, "disk %s names its backing file by a QEMU expression (json:…); only names of files can be followed",
                               front->path);
        if (*name == '/' || strstr(name, "://"))
                *path = strdup(name);
        else if (asprintf(path, "%.*s%s", folder, front->path, name) < 0)
                *path = NULL;
        return *path ? 0 : err_nomem(err);
}

static bool is_below(const char *path, const char *folder)
{
        size_t length = strlen(folder);

        return strncmp(path, folder, length) == 0 && (path[length] == '/' || (length && folder[length - 1] == '/'));
}

/* Where it really is, behind symbolic links. */
static int check_place(const struct block_opening *front, const char *path, struct err *err)
{
        _cleanup_free_ char *real = realpath(path, NULL), *image = NULL;
        char *slash;

        if (!real)
                return err_errno(err, -errno, "disk %s needs %s", front->path, path);
        image = realpath(front->path, NULL);
        slash = image ? strrchr(image, '/') : NULL;
        if (!slash)
                return err_errno(err, -errno, "disk %s", front->path);
        for (const struct block_opening *o = front; o; o = o->front) {
                _cleanup_free_ char *other = realpath(o->path, NULL);

                if (other && strcmp(real, other) == 0)
                        return err_set(err, -ELOOP, "disk %s: %s comes twice in its chain of backing files", front->path, path);
        }
        slash[slash == image] = '\0';
        if (is_below(real, image) || front->flags & BLOCK_OPEN_ANY_BACKING)
                return 0;
        return err_set(err, -EACCES, "disk %s: %s, which it needs, is not in %s, where the image is; to allow that, say backing=any",
                       front->path, path, image);
}

static int backing_format(const struct block_opening *front, const char *path, const char **format, struct err *err)
{
        const struct block_driver *driver = *format ? block_driver_find(*format) : by_suffix(path);

        if (driver && !driver->schemes) {
                *format = driver->name;
                return 0;
        }
        if (*format)
                return err_set(err, -EINVAL, "disk %s: its backing file %s is of an unknown format '%s'", front->path, path, *format);
        if (front->flags & BLOCK_OPEN_PROBE)
                return 0;
        return err_set(err, -EINVAL, "disk %s does not say of which format its backing file %s is; `virta disk rebase` can note it", front->path, path);
}

int block_open_backing(const struct block_opening *front, const char *name, const char *format, struct block **backing, struct err *err)
{
        struct block_opening opening = {
                .loop = front->loop, .flags = front->flags | BLOCK_OPEN_READONLY, .depth = front->depth + 1, .front = front,
                .secret = front->secret,
        };
        _cleanup_free_ char *path = NULL;
        int r;

        opening.flags &= ~(unsigned)BLOCK_OPEN_REPAIR;
        if (opening.depth >= BLOCK_DEPTH_MAX)
                return err_set(err, -ELOOP, "disk %s: more than %d backing files, one behind the other", front->path, BLOCK_DEPTH_MAX);
        r = resolve(front, name, &path, err);
        if (r == 0 && protocol_of(path) == &block_file)
                r = check_place(front, path, err);
        else if (r == 0 && !(front->flags & BLOCK_OPEN_ANY_BACKING))
                r = err_set(err, -EACCES, "disk %s: its backing file is %s, on the network; to allow that, say backing=any", front->path, path);
        if (r == 0)
                r = backing_format(front, path, &format, err);
        if (r < 0)
                return r;
        opening.path = path;
        opening.format = format;
        r = block_open(&opening, backing, err);
        return r < 0 && opening.depth == 1 ? err_wrap(err, r, "disk %s: its backing file", front->path) : r;
}

int block_open_beside(const struct block_opening *front, const char *name, struct block **file, struct err *err)
{
        struct block_opening opening = { .loop = front->loop, .flags = front->flags, .depth = front->depth + 1, .front = front, .format = "raw" };
        _cleanup_free_ char *path = NULL;
        int r = resolve(front, name, &path, err);

        if (r == 0)
                r = check_place(front, path, err);
        opening.path = path;
        return r == 0 ? block_open(&opening, file, err) : r;
}
