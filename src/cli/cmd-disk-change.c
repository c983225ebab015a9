/*
 * `virta disk commit, rebase, amend, measure`: chains of images, and the options of one.
 *
 * Data is on stable storage before anything that makes it count changes: the image that was committed is emptied, or names another backing
 * file, behind a flush. A crash leaves a chain that reads the same.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/text.h"
#include "cli/disk.h"

struct change_args {
        struct disk_options options; /* first, for disk_option_add() */
        const char *path, *format, *base, *backing, *backing_format, *secret;
        uint64_t size_bytes;
        bool any_backing, keep, unsafe, quiet, json;
};

#define CHANGE(field) offsetof(struct change_args, field)
#define FORMAT_OPTION { "format", "FORMAT", "of the image; without it, what its suffix says", OPT_TEXT, CHANGE(format) }
#define QUIET_OPTION { "quiet", NULL, "no progress", OPT_FLAG, CHANGE(quiet) }

static const struct opt image_operands[] = {
        { NULL, "FILE", "the image", OPT_TEXT, CHANGE(path), .required = true, .complete = OPT_COMPLETE_FILE },
        { 0 },
};

static unsigned backing_flags(const struct change_args *args)
{
        return args->any_backing ? BLOCK_OPEN_ANY_BACKING : 0;
}

static int finish_and_close(struct disk_session *session, struct block *block, int r, struct err *err)
{
        if (r == 0)
                r = block_finish(block, err);
        disk_close(session, block);
        return r;
}

/* ---- commit ---- */

static const struct opt commit_options[] = {
        FORMAT_OPTION,
        { "base", "FILE", "the image of the chain that data goes to; without it, the backing file", OPT_TEXT, CHANGE(base), .complete = OPT_COMPLETE_FILE },
        { "keep", NULL, "leave the image as it is, instead of emptying it", OPT_FLAG, CHANGE(keep) },
        QUIET_OPTION,
        DISK_ALLOW_OPTION(struct change_args),
        DISK_SECRET_OPTION(struct change_args),
        { 0 },
};

const struct opt_command disk_commit_table = {
        .name = "disk commit",
        .summary = "write what an image holds into its backing file",
        .description = "Copies what differs from the backing file into that, and empties the image, which then reads the same. With --base the data of all "
                       "images in front of that one goes there, and none of them is emptied: they can be removed. Other images that lie on the backing file "
                       "read something else afterwards.",
        .options = commit_options,
        .operands = image_operands,
};

static bool same_file(const char *a, const char *b)
{
        _cleanup_free_ char *real_a = realpath(a, NULL), *real_b = realpath(b, NULL);

        return real_a && real_b && strcmp(real_a, real_b) == 0;
}

static int find_base(struct block *top, const char *name, struct block **base, struct err *err)
{
        struct block *at = top->child[BLOCK_BACKING];

        if (!at)
                return err_set(err, -EINVAL, "disk %s has no backing file to write to", top->path);
        while (name && at && !same_file(at->path, name))
                at = at->child[BLOCK_BACKING];
        if (!at)
                return err_set(err, -EINVAL, "disk %s is not in the chain of backing files of %s", name, top->path);
        *base = at;
        return 0;
}

/* What the images in front of `to` decide. */
static int look_in_front(struct block_copy *copy, uint64_t at, uint64_t *size_bytes, enum block_copy_what *what)
{
        return block_copy_look_in_front(copy->from, copy->to, at, size_bytes, what);
}

static int commit_into(struct disk_session *session, struct change_args *args, struct block *top, struct block *base, struct err *err)
{
        struct block_copy copy = { .from = top, .to = base, .size_bytes = top->info.size_bytes, .look = look_in_front };
        bool empty = !args->keep && base == top->child[BLOCK_BACKING];
        int r;

        if (empty && !top->driver->make_empty)
                return err_set(err, -EOPNOTSUPP, "disk %s: a %s image cannot be emptied; say --keep", top->path, disk_format_of(top));
        r = block_reopen(base, true, err);
        if (r == 0 && base->info.size_bytes < top->info.size_bytes)
                r = block_resize(base, top->info.size_bytes, err);
        if (r == 0)
                r = disk_copy_run(session, &copy, args->quiet, err);
        if (r == 0 && block_flush(base) < 0)
                r = err_errno(err, -EIO, "cannot write disk %s", base->path);
        if (r == 0)
                r = block_finish(base, err);
        return r == 0 && empty ? top->driver->make_empty(top, err) : r;
}

static int commit_work(struct disk_session *session, void *into, struct err *err)
{
        struct change_args *args = into;
        struct block *top, *base = NULL;
        int r;

        session->secret = args->secret;
        r = disk_open(session, args->path, args->format, backing_flags(args), &top, err);
        if (r < 0)
                return r;
        r = find_base(top, args->base, &base, err);
        if (r == 0)
                r = commit_into(session, args, top, base, err);
        return finish_and_close(session, top, r, err);
}

static int commit_run(void *into)
{
        return disk_command(commit_work, into);
}

const struct cli_command cli_disk_commit = { .table = &disk_commit_table, .args_size = sizeof(struct change_args), .run = commit_run };

/* ---- rebase ---- */

static const struct opt rebase_options[] = {
        FORMAT_OPTION,
        { "backing", "FILE", "the new backing file, as the image is to name it; without it, the image has none", OPT_TEXT, CHANGE(backing),
          .complete = OPT_COMPLETE_FILE },
        { "backing-format", "FORMAT", "of that one; without it, what its suffix says", OPT_TEXT, CHANGE(backing_format) },
        { "unsafe", NULL, "only change the name: for a backing file that was moved, or says the same", OPT_FLAG, CHANGE(unsafe) },
        QUIET_OPTION,
        DISK_ALLOW_OPTION(struct change_args),
        DISK_SECRET_OPTION(struct change_args),
        { 0 },
};

const struct opt_command disk_rebase_table = {
        .name = "disk rebase",
        .summary = "give an image another backing file, or none",
        .description = "The disk reads as before: where the new backing file differs from the old one, data is copied into the image first. With --unsafe "
                       "nothing is copied and neither file need be there.",
        .options = rebase_options,
        .operands = image_operands,
};

/* What the image leaves to its backing file, as that has it. */
static int look_behind(struct block_copy *copy, uint64_t at, uint64_t *size_bytes, enum block_copy_what *what)
{
        struct block_extent extent;
        int r = block_status(copy->to, at, *size_bytes, &extent);

        if (r < 0)
                return r;
        *size_bytes = extent.size_bytes;
        *what = BLOCK_COPY_SKIP;
        if (extent.present)
                return 0;
        *what = BLOCK_COPY_ZERO;
        if (!copy->from || at >= copy->from->info.size_bytes)
                return 0;
        *size_bytes = MIN(*size_bytes, copy->from->info.size_bytes - at);
        r = block_status_through(copy->from, at, *size_bytes, &extent);
        if (r < 0)
                return r;
        *size_bytes = extent.size_bytes;
        *what = extent.zero ? BLOCK_COPY_ZERO : BLOCK_COPY_DATA;
        return 0;
}

static int rebase_safely(struct disk_session *session, struct change_args *args, struct block *top, struct err *err)
{
        struct block_opening front = { .loop = &session->loop, .path = args->path, .flags = backing_flags(args), .secret = args->secret };
        struct block_copy copy = {
                .from = top->child[BLOCK_BACKING], .to = top, .size_bytes = top->info.size_bytes, .compare = true, .look = look_behind,
        };
        int r = 0;

        if (args->backing)
                r = block_open_backing(&front, args->backing, args->backing_format, &copy.other, err);
        if (r < 0)
                return r;
        if (args->backing && !args->backing_format)
                args->backing_format = disk_format_of(copy.other);
        r = disk_copy_run(session, &copy, args->quiet, err);
        if (r == 0 && block_flush(top) < 0)
                r = err_errno(err, -EIO, "cannot write disk %s", top->path);
        disk_close(session, copy.other);
        return r;
}

static int rebase_work(struct disk_session *session, void *into, struct err *err)
{
        struct change_args *args = into;
        struct block *top;
        int r;

        session->secret = args->secret;
        r = disk_open(session, args->path, args->format, args->unsafe ? BLOCK_OPEN_NO_BACKING : backing_flags(args), &top, err);
        if (r < 0)
                return r;
        if (!top->driver->set_backing)
                r = err_set(err, -EOPNOTSUPP, "disk %s: a %s image has no backing file", args->path, disk_format_of(top));
        if (r == 0 && args->backing_format && !block_driver_find(args->backing_format))
                r = err_set(err, -EINVAL, "no format '%s'", args->backing_format);
        if (r == 0 && !args->unsafe)
                r = rebase_safely(session, args, top, err);
        if (r == 0)
                r = top->driver->set_backing(top, args->backing, args->backing_format, err);
        return finish_and_close(session, top, r, err);
}

static int rebase_run(void *into)
{
        return disk_command(rebase_work, into);
}

const struct cli_command cli_disk_rebase = { .table = &disk_rebase_table, .args_size = sizeof(struct change_args), .run = rebase_run };

/* ---- amend ---- */

static const struct opt amend_options[] = {
        FORMAT_OPTION,
        { "option", "KEY=VALUE", "an option of the format's own", OPT_CALL, .call = disk_option_add, .repeated = true, .letter = 'o' },
        DISK_ALLOW_OPTION(struct change_args),
        DISK_SECRET_OPTION(struct change_args),
        { 0 },
};

static const struct opt_note amend_notes[] = {
        { "version=2|3", "to be read by QEMU before 1.1, or to have what came with it; an image with what version 2 does not know stays" },
        { "refcount_bits=N", "1, 2, 4, 8, 16, 32 or 64: how often a cluster can be used, by snapshots" },
        { "lazy_refcounts=on|off", "lets QEMU write counts late" },
        { 0 },
};

static const struct opt_section amend_sections[] = { { "Options of qcow2 (-o)", NULL, amend_notes }, { 0 } };

const struct opt_command disk_amend_table = {
        .name = "disk amend",
        .summary = "change options of an image that is there",
        .description = "What the disk reads as stays. The image must not be in use.",
        .options = amend_options,
        .operands = image_operands,
        .sections = amend_sections,
};

static int amend_work(struct disk_session *session, void *into, struct err *err)
{
        struct change_args *args = into;
        struct block *block;
        int r;

        if (!args->options.count)
                return err_set(err, -EINVAL, "-o KEY=VALUE is missing: what to change");
        session->secret = args->secret;
        r = disk_open(session, args->path, args->format, backing_flags(args), &block, err);
        if (r < 0)
                return r;
        if (block->driver->amend)
                r = block->driver->amend(block, args->options.option, args->options.count, err);
        else
                r = err_set(err, -EOPNOTSUPP, "disk %s: a %s image has no options that can change", args->path, disk_format_of(block));
        return finish_and_close(session, block, r, err);
}

static int amend_run(void *into)
{
        return disk_command(amend_work, into);
}

const struct cli_command cli_disk_amend = {
        .table = &disk_amend_table, .args_size = sizeof(struct change_args), .run = amend_run, .finish = disk_options_finish,
};

/* ---- measure ---- */

static const struct opt measure_options[] = {
        { "from", "FORMAT", "of the image; without it, what suffix or contents say", OPT_TEXT, CHANGE(format) },
        { "size", "SIZE", "of a new disk with nothing written to it, instead of an image", OPT_SIZE, CHANGE(size_bytes) },
        { "to", "FORMAT", "of the new image", OPT_TEXT, CHANGE(backing_format), .fallback = "raw" },
        { "option", "KEY=VALUE", "an option of that format's own; see virta disk create", OPT_CALL, .call = disk_option_add, .repeated = true, .letter = 'o' },
        { "json", NULL, "print JSON", OPT_FLAG, CHANGE(json) },
        DISK_ALLOW_OPTION(struct change_args),
        DISK_SECRET_OPTION(struct change_args),
        { 0 },
};

static const struct opt measure_operands[] = {
        { NULL, "FILE", "the image that would be converted", OPT_TEXT, CHANGE(path), .complete = OPT_COMPLETE_FILE },
        { 0 },
};

const struct opt_command disk_measure_table = {
        .name = "disk measure",
        .summary = "how much room a new image needs",
        .description = "Says how large the file of a new image can become: with the data that the given one has, and with all of the disk written. "
                       "Nothing is made.",
        .options = measure_options,
        .operands = measure_operands,
};

static int print_measure(const struct block_measure *m, bool json, struct err *err)
{
        char required[SIZE_TEXT_MAX], full[SIZE_TEXT_MAX], bitmaps[SIZE_TEXT_MAX];
        json_t *about;
        int r;

        if (!json) {
                printf("required:         %s (%" PRIu64 " bytes)\nfully allocated:  %s (%" PRIu64 " bytes)\n", size_about(m->required_bytes, required),
                       m->required_bytes, size_about(m->fully_allocated_bytes, full), m->fully_allocated_bytes);
                if (m->bitmaps_bytes)
                        printf("bitmaps:          %s (%" PRIu64 " bytes)\n", size_about(m->bitmaps_bytes, bitmaps), m->bitmaps_bytes);
                return 0;
        }
        about = json_pack("{s:I, s:I, s:I}", "required_bytes", (json_int_t)m->required_bytes, "fully_allocated_bytes", (json_int_t)m->fully_allocated_bytes,
                          "bitmaps_bytes", (json_int_t)m->bitmaps_bytes);
        r = about ? json_write(about, STDOUT_FILENO, err) : err_nomem(err);
        json_decref(about);
        return r;
}

static int measure(struct change_args *args, struct block *source, struct err *err)
{
        const struct block_driver *driver = block_driver_find(args->backing_format ? args->backing_format : "raw");
        struct block_creation creation = { .size_bytes = source ? source->info.size_bytes : align_up(args->size_bytes, BLOCK_SECTOR),
                                           .option = args->options.option, .options = args->options.count };
        struct block_measure m = { .required_bytes = creation.size_bytes, .fully_allocated_bytes = creation.size_bytes };
        int r = 0;

        if (!driver || driver->schemes)
                return err_set(err, -EINVAL, "no format '%s'", args->backing_format);
        if (driver->measure)
                r = driver->measure(&creation, source, &m, err);
        else if (strcmp(driver->name, "raw"))
                r = err_set(err, -EOPNOTSUPP, "of %s images nobody knows beforehand how large they become", driver->name);
        else if (args->options.count)
                r = err_set(err, -EINVAL, "a raw image has no options");
        return r == 0 ? print_measure(&m, args->json, err) : r;
}

static int measure_work(struct disk_session *session, void *into, struct err *err)
{
        struct change_args *args = into;
        struct block *source = NULL;
        int r;

        if (!args->path == !args->size_bytes)
                return err_set(err, -EINVAL, "%s", args->path ? "FILE and --size are for one or the other" : "FILE is missing, or --size");
        session->secret = args->secret;
        r = args->path ? disk_open(session, args->path, args->format, BLOCK_OPEN_READONLY | BLOCK_OPEN_NO_LOCK | backing_flags(args), &source, err) : 0;
        if (r == 0)
                r = measure(args, source, err);
        disk_close(session, source);
        return r;
}

static int measure_run(void *into)
{
        return disk_command(measure_work, into);
}

const struct cli_command cli_disk_measure = {
        .table = &disk_measure_table, .args_size = sizeof(struct change_args), .run = measure_run, .finish = disk_options_finish,
};
