/* `virta disk`: images made, looked at, checked, copied and compared, with no daemon. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>

#include "base/log.h"
#include "base/text.h"
#include "cli/disk.h"

static const struct opt_note disk_notes[] = {
        { "virta disk create root.qcow2 20G", "a disk that takes space as it is written to" },
        { "virta disk create web1.qcow2 --backing base.qcow2", "one that holds what differs from another" },
        { "virta disk convert disk.qcow2 disk.raw", "from one format to another" },
        { "virta disk check --repair root.qcow2", "after a crash" },
        { 0 },
};

static const struct opt_section disk_sections[] = { { "Examples", NULL, disk_notes }, { 0 } };

const struct opt_command disk_table = {
        .name = "disk",
        .group = true,
        .summary = "make, look at, check and copy disk images",
        .description = "Works on images by itself, while nobody else uses them: a lock on the file says so. The format of an image is the one named, "
                       "else that of the file name's suffix (.raw .img .qcow2 .vdi .vhd .vpc .vhdx .vmdk .luks); commands that only read look at the contents "
                       "where that says nothing.",
        .sections = disk_sections,
};

/* ---- sessions ---- */

int disk_command(int (*work)(struct disk_session *session, void *args, struct err *err), void *args)
{
        struct disk_session session = { .started = true };
        struct err err = ERR_INIT;
        int r = uv_loop_init(&session.loop);

        if (r < 0) {
                log_error("cannot begin: %s", uv_strerror(r));
                return CLI_FAILED;
        }
        r = work(&session, args, &err);
        if (r < 0)
                log_error("%s", err.text);
        uv_run(&session.loop, UV_RUN_DEFAULT);
        uv_loop_close(&session.loop);
        return r < 0 ? CLI_FAILED : r > 0 ? r : cli_flush();
}

void disk_close(struct disk_session *session, struct block *block)
{
        block_close(block);
        uv_run(&session->loop, UV_RUN_NOWAIT);
}

int disk_open(struct disk_session *session, const char *path, const char *format, unsigned flags, struct block **block, struct err *err)
{
        struct block_opening opening = { .loop = &session->loop, .path = path, .format = format, .flags = flags, .secret = session->secret };

        if (flags & BLOCK_OPEN_READONLY)
                opening.flags |= BLOCK_OPEN_PROBE;
        return block_open(&opening, block, err);
}

const char *disk_format_of(const struct block *block)
{
        return strcmp(block->driver->name, "file") ? block->driver->name : "raw";
}

/* ---- create ---- */

struct create_args {
        struct disk_options options; /* first, for disk_option_add() */
        const char *path, *format, *backing, *backing_format, *secret;
        uint64_t size_bytes;
        bool overwrite, any_backing;
};

int disk_option_add(void *into, const char *value, struct err *err)
{
        struct disk_options *to = into;
        char *key, *equals;

        if (to->count == DISK_OPTIONS_MAX)
                return err_set(err, -E2BIG, "'%s' is one too many, at most %d", value, DISK_OPTIONS_MAX);
        key = strdup(value);
        if (!key)
                return err_nomem(err);
        to->owned[to->count] = key;
        equals = strchr(key, '=');
        if (!equals || equals == key || !equals[1])
                return err_set(err, -EINVAL, "'%s' is not KEY=VALUE", value);
        *equals = '\0';
        to->option[to->count++] = (struct block_option){ key, equals + 1 };
        return 0;
}

void disk_options_finish(void *into)
{
        struct disk_options *options = into;

        for (unsigned n = 0; n < DISK_OPTIONS_MAX; n++)
                free(options->owned[n]);
}

#define CREATE(field) offsetof(struct create_args, field)

static const struct opt create_options[] = {
        { "format", "FORMAT", "raw, qcow2, vdi, vhd, vhdx, vmdk, luks; without it, what the file name's suffix says", OPT_TEXT, CREATE(format) },
        { "backing", "FILE", "what is not written to the new disk reads as in this one, which must not change any more", OPT_TEXT, CREATE(backing),
          .complete = OPT_COMPLETE_FILE },
        { "backing-format", "FORMAT", "of that one", OPT_TEXT, CREATE(backing_format) },
        { "option", "KEY=VALUE", "an option of the format's own", OPT_CALL, .call = disk_option_add, .repeated = true, .letter = 'o' },
        { "overwrite", NULL, "replace a file that is there already", OPT_FLAG, CREATE(overwrite) },
        DISK_ALLOW_OPTION(struct create_args),
        DISK_SECRET_OPTION(struct create_args),
        { 0 },
};

static const struct opt create_operands[] = {
        { NULL, "FILE", "the image to make", OPT_TEXT, CREATE(path), .required = true, .complete = OPT_COMPLETE_FILE },
        { NULL, "SIZE", "of the disk: 20G, 512M; with --backing that of the other disk", OPT_SIZE, CREATE(size_bytes) },
        { 0 },
};

static const struct opt_note qcow2_notes[] = {
        { "cluster_size=SIZE", "what space is taken by: 512 to 2M, a power of two; default: 64K" },
        { "refcount_bits=N", "1, 2, 4, 8, 16, 32 or 64; default: 16" },
        { "version=2|3", "2 is what QEMU before 1.1 reads; default: 3" },
        { "compression=zlib|zstd", "of clusters that are compressed; default: zlib" },
        { "extended_l2=on|off", "32 subclusters in each cluster, of 16K and more" },
        { "lazy_refcounts=on|off", "lets QEMU write counts late" },
        { "encrypt=luks|off", "the disk's contents, by LUKS1; --secret is needed" },
        { "encrypt.KEY=VALUE", "hash, key_bits or iter_time, as luks has them" },
        { "data_file=FILE", "keeps the data apart, in this file, which must be there" },
        { "data_file_raw=on|off", "and so that it is a raw image by itself" },
        { 0 },
};

static const struct opt_note vdi_notes[] = {
        { "block_size=SIZE", "what space is taken by: 4K to 64M, a power of two; default, and all that QEMU knows: 1M" },
        { "static=on|off", "all blocks have their places from the beginning" },
        { 0 },
};

static const struct opt_note vhd_notes[] = {
        { "subformat=dynamic|fixed", "grows as it is written to, or has all its space from the beginning" },
        { "force_size=on|off", "exactly of this size; off: rounded up to cylinders, as Virtual PC counts; default: on" },
        { "block_size=SIZE", "of a dynamic image, what space is taken by: 4K to 256M, a power of two; default: 2M" },
        { 0 },
};

static const struct opt_note vhdx_notes[] = {
        { "block_size=SIZE", "what space is taken by: 1M to 256M, a power of two; default: 8M" },
        { "subformat=dynamic|fixed", "grows as it is written to, or has all its space from the beginning" },
        { "logical_sector=512|4096", "the size of a sector, as the guest sees it; default: 512" },
        { 0 },
};

static const struct opt_note vmdk_notes[] = {
        { "subformat=NAME", "monolithicSparse, monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat, streamOptimized" },
        { "adapter_type=NAME", "ide, lsilogic, buslogic, legacyESX" },
        { "zeroed_grain=on|off", "grains may be said to be zeroes in front of a backing file" },
        { 0 },
};

static const struct opt_note luks_notes[] = {
        { "version=1|2", "of LUKS; default: 2" },
        { "pbkdf=argon2id|pbkdf2", "how a passphrase becomes a key; of version 1 always pbkdf2" },
        { "hash=sha256|sha512|sha1", "default: sha256" },
        { "key_bits=256|512", "AES-128 or AES-256; default: 512" },
        { "sector_size=512|4096", "of version 2, what is encrypted by itself; default: 512" },
        { "iter_time=MS", "how long a passphrase may take to be tried, about; default: 2000" },
        { "memory=SIZE", "that Argon2 takes meanwhile; default: 256M" },
        { 0 },
};

static const struct opt_section create_sections[] = {
        { "Options of qcow2 (-o)", NULL, qcow2_notes },
        { "Options of vdi (-o)", NULL, vdi_notes },
        { "Options of vhd (-o)", NULL, vhd_notes },
        { "Options of vhdx (-o)", NULL, vhdx_notes },
        { "Options of vmdk (-o)", NULL, vmdk_notes },
        { "Options of luks (-o); --secret is needed", NULL, luks_notes },
        { 0 },
};

const struct opt_command disk_create_table = {
        .name = "disk create",
        .summary = "make a new image",
        .description = "Makes an image of a disk that reads as zeroes, or as another disk. A file that is there stays, unless --overwrite is given.",
        .options = create_options,
        .operands = create_operands,
        .sections = create_sections,
};

/* Its size and format, as the new image will see it; it must open. */
static int look_at_backing(struct disk_session *session, struct create_args *args, struct err *err)
{
        const char *slash = strrchr(args->path, '/');
        _cleanup_free_ char *path = NULL;
        struct block *block;
        int r;

        if (asprintf(&path, "%.*s%s", *args->backing != '/' && slash ? (int)(slash - args->path) + 1 : 0, args->path, args->backing) < 0)
                return err_nomem(err);
        r = disk_open(session, path, args->backing_format, BLOCK_OPEN_READONLY | (args->any_backing ? BLOCK_OPEN_ANY_BACKING : 0), &block, err);
        if (r < 0)
                return err_wrap(err, r, "backing file");
        if (!args->backing_format)
                args->backing_format = disk_format_of(block);
        if (!args->size_bytes)
                args->size_bytes = block->info.size_bytes;
        disk_close(session, block);
        return 0;
}

static void warn_of_space(const char *path, uint64_t size_bytes)
{
        char wanted[SIZE_TEXT_MAX], free_text[SIZE_TEXT_MAX];
        struct statvfs vfs;
        uint64_t free_bytes;

        if (statvfs(path, &vfs) < 0)
                return;
        free_bytes = (uint64_t)vfs.f_bavail * vfs.f_frsize;
        if (free_bytes < size_bytes)
                log_warning("disk %s may grow to %s, and its file system has %s left", path, size_about(size_bytes, wanted),
                            size_about(free_bytes, free_text));
}

static int create_work(struct disk_session *session, void *into, struct err *err)
{
        struct create_args *args = into;
        struct block_opening opening = { .loop = &session->loop, .path = args->path, .format = args->format, .secret = args->secret };
        struct block_creation creation = { .backing = args->backing, .option = args->options.option, .options = args->options.count };
        int r = 0;

        session->secret = args->secret;
        if (args->backing)
                r = look_at_backing(session, args, err);
        if (r == 0 && !args->size_bytes)
                r = err_set(err, -EINVAL, "SIZE is missing: how large the disk is");
        creation.size_bytes = args->size_bytes;
        creation.backing_format = args->backing_format;
        if (r == 0)
                r = block_create(&opening, &creation, args->overwrite, err);
        if (r == 0)
                warn_of_space(args->path, args->size_bytes);
        return r;
}

static int create_run(void *into)
{
        return disk_command(create_work, into);
}

const struct cli_command cli_disk_create = {
        .table = &disk_create_table, .args_size = sizeof(struct create_args), .run = create_run, .finish = disk_options_finish,
};

/* ---- info, check, map: one image ---- */

struct image_args {
        const char *path, *format, *secret;
        bool json, any_backing, repair, leaks, quiet;
};

#define IMAGE(field) offsetof(struct image_args, field)
#define FORMAT_OPTION { "format", "FORMAT", "of the image; without it, what suffix or contents say", OPT_TEXT, IMAGE(format) }
#define SECRET_OPTION DISK_SECRET_OPTION(struct image_args)
#define JSON_OPTION { "json", NULL, "print JSON", OPT_FLAG, IMAGE(json) }

static const struct opt image_operands[] = {
        { NULL, "FILE", "the image", OPT_TEXT, IMAGE(path), .required = true, .complete = OPT_COMPLETE_FILE },
        { 0 },
};

static const struct opt info_options[] = { FORMAT_OPTION, JSON_OPTION, SECRET_OPTION, { 0 } };

const struct opt_command disk_info_table = {
        .name = "disk info",
        .summary = "what is known of an image",
        .description = "Shows an image's format, size, what it takes on its file system, its backing file and the options of its format. "
                       "The image is only read, and may be in use.",
        .options = info_options,
        .operands = image_operands,
};

static void print_json_members(const json_t *about, int indent)
{
        const char *key;
        json_t *value;

        json_object_foreach((json_t *)about, key, value)
        {
                char name[64];

                snprintf(name, sizeof(name), "%s:", key);
                for (char *at = name; *at; at++)
                        *at = *at == '_' ? ' ' : *at;
                if (json_is_object(value)) {
                        printf("%*s%s\n", indent, "", name);
                        print_json_members(value, indent + 2);
                } else if (json_is_array(value)) {
                        printf("%*s%-18s %zu\n", indent, "", name, json_array_size(value));
                } else if (json_is_string(value)) {
                        char text[1024];

                        text_escape(json_string_value(value), json_string_length(value), text, sizeof(text));
                        printf("%*s%-18s %s\n", indent, "", name, text);
                } else if (json_is_boolean(value)) {
                        printf("%*s%-18s %s\n", indent, "", name, json_is_true(value) ? "yes" : "no");
                } else {
                        printf("%*s%-18s %lld\n", indent, "", name, (long long)json_integer_value(value));
                }
        }
}

static int info_work(struct disk_session *session, void *into, struct err *err)
{
        struct image_args *args = into;
        char size[SIZE_TEXT_MAX], taken[SIZE_TEXT_MAX], path[1024];
        struct block *block;
        struct stat st;
        json_t *about;
        int r;

        session->secret = args->secret;
        r = disk_open(session, args->path, args->format, BLOCK_OPEN_READONLY | BLOCK_OPEN_NO_LOCK | BLOCK_OPEN_NO_BACKING, &block, err);
        if (r < 0)
                return r;
        about = json_pack("{s:s, s:s, s:I}", "file", args->path, "format", disk_format_of(block), "size_bytes", (json_int_t)block->info.size_bytes);
        if (about && stat(args->path, &st) == 0)
                json_object_set_new(about, "taken_bytes", json_integer((json_int_t)st.st_blocks * 512));
        r = about && (!block->driver->describe || block->driver->describe(block, about) == 0) ? 0 : err_nomem(err);
        if (r == 0 && args->json) {
                r = json_write(about, STDOUT_FILENO, err);
        } else if (r == 0) {
                text_escape(args->path, strlen(args->path), path, sizeof(path));
                printf("file:    %s\nformat:  %s\nsize:    %s (%" PRIu64 " bytes)\ntaken:   %s\n", path, disk_format_of(block),
                       size_about(block->info.size_bytes, size), block->info.size_bytes,
                       size_about((uint64_t)json_integer_value(json_object_get(about, "taken_bytes")), taken));
                if (json_object_get(about, disk_format_of(block))) {
                        printf("%s:\n", disk_format_of(block));
                        print_json_members(json_object_get(about, disk_format_of(block)), 2);
                }
        }
        json_decref(about);
        disk_close(session, block);
        return r;
}

static int info_run(void *into)
{
        return disk_command(info_work, into);
}

const struct cli_command cli_disk_info = { .table = &disk_info_table, .args_size = sizeof(struct image_args), .run = info_run };

#define SAID_MAX 20

static const struct opt check_options[] = {
        FORMAT_OPTION,
        JSON_OPTION,
        SECRET_OPTION,
        { "repair", NULL, "mend all that can be mended", OPT_FLAG, IMAGE(repair) },
        { "repair-leaks", NULL, "only give back lost space", OPT_FLAG, IMAGE(leaks) },
        { "quiet", NULL, "only the result", OPT_FLAG, IMAGE(quiet) },
        { 0 },
};

static const struct opt_note check_exits[] = {
        { "0", "the image is right, or is now" },
        { "1", "it could not be checked" },
        { "2", "the command line was wrong" },
        { "3", "space is lost; no data is in danger" },
        { "4", "the image is damaged" },
        { 0 },
};

static const struct opt_section check_sections[] = { { "Exit status", NULL, check_exits }, { 0 } };

const struct opt_command disk_check_table = {
        .name = "disk check",
        .summary = "whether an image is sound, and mend it",
        .description = "Walks over all tables of an image and compares them with each other. After a crash space may be lost (leaks), which --repair "
                       "gives back. The image must not be in use.",
        .options = check_options,
        .operands = image_operands,
        .sections = check_sections,
};

/* The first of them; who wants to know of all has them counted. */
static void say(void *ctx, const char *text)
{
        unsigned *said = ctx;

        if (*said < SAID_MAX)
                fprintf(stderr, "%s\n", text);
        else if (*said == SAID_MAX)
                fprintf(stderr, "and more\n");
        ++*said;
}

static void print_check(const struct block_check *check, bool json, const char *path)
{
        if (json) {
                json_t *about = json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "file", path, "errors", (json_int_t)check->errors, "leaks",
                                          (json_int_t)check->leaks, "errors_mended", (json_int_t)check->errors_mended, "leaks_mended",
                                          (json_int_t)check->leaks_mended, "clusters", (json_int_t)check->clusters, "compressed",
                                          (json_int_t)check->compressed, "fragmented", (json_int_t)check->fragmented, "end_bytes",
                                          (json_int_t)check->end_bytes);

                if (about)
                        (void)!json_write(about, STDOUT_FILENO, NULL);
                json_decref(about);
                return;
        }
        if (check->errors || check->leaks)
                printf("%" PRIu64 " errors, %" PRIu64 " mended; %" PRIu64 " clusters lost, %" PRIu64 " given back\n", check->errors, check->errors_mended,
                       check->leaks, check->leaks_mended);
        else
                printf("no errors\n");
}

static int check_work(struct disk_session *session, void *into, struct err *err)
{
        struct image_args *args = into;
        unsigned said = 0;
        struct block_check check = {
                .ctx = &said, .mend = args->repair ? BLOCK_MEND_ALL : args->leaks ? BLOCK_MEND_LEAKS : BLOCK_MEND_NOTHING,
                .say = args->quiet ? NULL : say,
        };
        struct block *block;
        int r;

        session->secret = args->secret;
        r = disk_open(session, args->path, args->format,
                          BLOCK_OPEN_REPAIR | BLOCK_OPEN_NO_BACKING | BLOCK_OPEN_PROBE | (check.mend ? 0 : BLOCK_OPEN_READONLY), &block, err);
        if (r < 0)
                return r;
        if (block->driver->check)
                r = block->driver->check(block, &check, err);
        else
                r = err_set(err, -EOPNOTSUPP, "disk %s: a %s image has nothing that could be checked", args->path, disk_format_of(block));
        disk_close(session, block);
        if (r < 0)
                return r;
        print_check(&check, args->json, args->path);
        return check.errors > check.errors_mended ? 4 : check.leaks > check.leaks_mended ? 3 : 0;
}

static int check_run(void *into)
{
        return disk_command(check_work, into);
}

const struct cli_command cli_disk_check = { .table = &disk_check_table, .args_size = sizeof(struct image_args), .run = check_run };

static const struct opt map_options[] = { FORMAT_OPTION, JSON_OPTION, SECRET_OPTION, DISK_ALLOW_OPTION(struct image_args), { 0 } };

const struct opt_command disk_map_table = {
        .name = "disk map",
        .summary = "where an image has data",
        .description = "Lists the ranges of the disk: whether they are in the image itself or come from a backing file (depth), and whether they read "
                       "as zeroes.",
        .options = map_options,
        .operands = image_operands,
};

static int map_line(json_t *list, uint64_t at, const struct block_extent *e)
{
        json_t *about;

        if (!list) {
                printf("%#18" PRIx64 " %#14" PRIx64 "  %-5u  %s%s\n", at, e->size_bytes, e->depth, e->zero ? "zero" : "data",
                       e->compressed ? ", compressed" : "");
                return 0;
        }
        about = json_pack("{s:I, s:I, s:i, s:b, s:b, s:b}", "start", (json_int_t)at, "length", (json_int_t)e->size_bytes, "depth", (int)e->depth, "present",
                          e->present, "zero", e->zero, "data", !e->zero);
        if (about && e->host_bytes != BLOCK_NOWHERE)
                json_object_set_new(about, "offset", json_integer((json_int_t)e->host_bytes));
        return about && json_array_append_new(list, about) == 0 ? 0 : -ENOMEM;
}

static bool same(const struct block_extent *a, const struct block_extent *b)
{
        return a->zero == b->zero && a->depth == b->depth && a->present == b->present && a->compressed == b->compressed &&
               (a->host_bytes == BLOCK_NOWHERE ? b->host_bytes == BLOCK_NOWHERE : b->host_bytes == a->host_bytes + a->size_bytes);
}

static int map_extents(struct block *block, json_t *list)
{
        struct block_extent run = { 0 }, next;
        uint64_t at = 0, start = 0;
        int r = 0;

        while (at < block->info.size_bytes && r == 0) {
                r = block_status_through(block, at, block->info.size_bytes - at, &next);
                if (r < 0)
                        return r;
                if (run.size_bytes && same(&run, &next)) {
                        run.size_bytes += next.size_bytes;
                } else {
                        if (run.size_bytes)
                                r = map_line(list, start, &run);
                        run = next;
                        start = at;
                }
                at += next.size_bytes;
        }
        return r == 0 && run.size_bytes ? map_line(list, start, &run) : r;
}

static int map_work(struct disk_session *session, void *into, struct err *err)
{
        struct image_args *args = into;
        struct block *block;
        json_t *list = NULL;
        int r;

        session->secret = args->secret;
        r = disk_open(session, args->path, args->format, BLOCK_OPEN_READONLY | BLOCK_OPEN_NO_LOCK | (args->any_backing ? BLOCK_OPEN_ANY_BACKING : 0),
                      &block, err);
        if (r < 0)
                return r;
        if (args->json)
                list = json_array();
        else
                printf("%18s %14s  %-5s  %s\n", "start", "length", "depth", "what");
        r = map_extents(block, list);
        if (r < 0)
                r = err_errno(err, r, "cannot read the tables of disk %s", args->path);
        else if (list)
                r = json_write(list, STDOUT_FILENO, err);
        json_decref(list);
        disk_close(session, block);
        return r;
}

static int map_run(void *into)
{
        return disk_command(map_work, into);
}

const struct cli_command cli_disk_map = { .table = &disk_map_table, .args_size = sizeof(struct image_args), .run = map_run };

/* ---- resize, snapshot ---- */

struct resize_args {
        const char *path, *format, *secret;
        uint64_t size_bytes;
        bool shrink;
};

#define RESIZE(field) offsetof(struct resize_args, field)

static const struct opt resize_options[] = {
        { "format", "FORMAT", "of the image; without it, what its suffix says", OPT_TEXT, RESIZE(format) },
        DISK_SECRET_OPTION(struct resize_args),
        { "shrink", NULL, "let the disk become smaller: what lies behind its new end is lost", OPT_FLAG, RESIZE(shrink) },
        { 0 },
};

static const struct opt resize_operands[] = {
        { NULL, "FILE", "the image", OPT_TEXT, RESIZE(path), .required = true, .complete = OPT_COMPLETE_FILE },
        { NULL, "SIZE", "of the disk from now on", OPT_SIZE, RESIZE(size_bytes), .required = true },
        { 0 },
};

const struct opt_command disk_resize_table = {
        .name = "disk resize",
        .summary = "make a disk larger or smaller",
        .description = "Changes the size of a disk that is not in use. What is added reads as zeroes.",
        .options = resize_options,
        .operands = resize_operands,
};

static int resize_work(struct disk_session *session, void *into, struct err *err)
{
        struct resize_args *args = into;
        struct block *block;
        int r;

        session->secret = args->secret;
        r = disk_open(session, args->path, args->format, BLOCK_OPEN_ANY_BACKING, &block, err);
        if (r < 0)
                return r;
        if (args->size_bytes < block->info.size_bytes && !args->shrink)
                r = err_set(err, -EINVAL, "disk %s has %" PRIu64 " bytes; to make it smaller, and lose what is behind, say --shrink", args->path,
                            block->info.size_bytes);
        if (r == 0)
                r = block_resize(block, args->size_bytes, err);
        if (r == 0)
                r = block_finish(block, err);
        disk_close(session, block);
        return r;
}

static int resize_run(void *into)
{
        return disk_command(resize_work, into);
}

const struct cli_command cli_disk_resize = { .table = &disk_resize_table, .args_size = sizeof(struct resize_args), .run = resize_run };

enum snapshot_action { SNAPSHOT_LIST, SNAPSHOT_CREATE, SNAPSHOT_APPLY, SNAPSHOT_DELETE };
static const char *const snapshot_actions[] = { "list", "create", "apply", "delete", NULL };

struct snapshot_args {
        const char *path, *format, *name;
        int action;
        bool json;
};

#define SNAPSHOT(field) offsetof(struct snapshot_args, field)

static const struct opt snapshot_options[] = {
        { "format", "FORMAT", "of the image; without it, what its suffix says", OPT_TEXT, SNAPSHOT(format) },
        { "json", NULL, "list: print JSON", OPT_FLAG, SNAPSHOT(json) },
        { 0 },
};

static const struct opt snapshot_operands[] = {
        { NULL, "ACTION", "list, create, apply or delete", OPT_CHOICE, SNAPSHOT(action), .required = true, .choices = snapshot_actions },
        { NULL, "FILE", "the image", OPT_TEXT, SNAPSHOT(path), .required = true, .complete = OPT_COMPLETE_FILE },
        { NULL, "NAME", "of the snapshot, or its id", OPT_TEXT, SNAPSHOT(name) },
        { 0 },
};

const struct opt_command disk_snapshot_table = {
        .name = "disk snapshot",
        .summary = "states of a disk that its image keeps",
        .description = "Lists the snapshots in an image, makes one, goes back to one (what the disk has now is lost, the snapshot stays), or deletes one. "
                       "The image must not be in use.",
        .options = snapshot_options,
        .operands = snapshot_operands,
};

static void print_snapshots(const json_t *list)
{
        size_t n;
        json_t *about;

        printf("%-4s %-20s %-16s %s\n", "id", "made", "size", "name");
        json_array_foreach((json_t *)list, n, about)
        {
                time_t made = (time_t)json_integer_value(json_object_get(about, "date_s"));
                char when[32], size[SIZE_TEXT_MAX], name[1024], id[64];
                struct tm tm;

                if (!localtime_r(&made, &tm) || !strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &tm))
                        snprintf(when, sizeof(when), "?");
                text_escape(json_string_value(json_object_get(about, "name")), json_string_length(json_object_get(about, "name")), name, sizeof(name));
                text_escape(json_string_value(json_object_get(about, "id")), json_string_length(json_object_get(about, "id")), id, sizeof(id));
                printf("%-4s %-20s %-16s %s\n", id, when, size_about((uint64_t)json_integer_value(json_object_get(about, "size_bytes")), size), name);
        }
}

static int list_snapshots(struct block *block, bool json, struct err *err)
{
        json_t *list = json_array();
        int r = list ? block->driver->snapshots->list(block, list, err) : err_nomem(err);

        if (r == 0 && json)
                r = json_write(list, STDOUT_FILENO, err);
        else if (r == 0)
                print_snapshots(list);
        json_decref(list);
        return r;
}

static int snapshot_work(struct disk_session *session, void *into, struct err *err)
{
        struct snapshot_args *args = into;
        const struct block_snapshot_ops *ops;
        struct block *block;
        int r;

        if (args->action != SNAPSHOT_LIST && !args->name)
                return err_set(err, -EINVAL, "NAME is missing: of the snapshot");
        r = disk_open(session, args->path, args->format,
                      args->action == SNAPSHOT_LIST ? BLOCK_OPEN_READONLY | BLOCK_OPEN_NO_BACKING | BLOCK_OPEN_NO_LOCK : BLOCK_OPEN_NO_BACKING, &block, err);
        if (r < 0)
                return r;
        ops = block->driver->snapshots;
        if (!ops)
                r = err_set(err, -EOPNOTSUPP, "disk %s: a %s image keeps no snapshots", args->path, disk_format_of(block));
        else if (args->action == SNAPSHOT_LIST)
                r = list_snapshots(block, args->json, err);
        else
                r = (args->action == SNAPSHOT_CREATE  ? ops->create
                     : args->action == SNAPSHOT_APPLY ? ops->apply
                                                      : ops->delete)(block, args->name, err);
        if (r == 0 && args->action != SNAPSHOT_LIST)
                r = block_finish(block, err);
        disk_close(session, block);
        return r;
}

static int snapshot_run(void *into)
{
        return disk_command(snapshot_work, into);
}

const struct cli_command cli_disk_snapshot = { .table = &disk_snapshot_table, .args_size = sizeof(struct snapshot_args), .run = snapshot_run };

/* ---- convert, compare: two images ---- */

struct pair_args {
        struct disk_options options; /* first; of the new image */
        const char *from_path, *to_path, *from_format, *to_format, *secret, *to_secret;
        bool any_backing, overwrite, quiet, sync;
        int compression; /* index in compressions */
};

static const char *const compressions[] = { "none", "zlib", "zstd", NULL };

#define PAIR(field) offsetof(struct pair_args, field)

static const struct opt convert_options[] = {
        { "from", "FORMAT", "of the source; without it, what suffix or contents say", OPT_TEXT, PAIR(from_format) },
        { "to", "FORMAT", "of the new image; without it, what its suffix says", OPT_TEXT, PAIR(to_format) },
        { "option", "KEY=VALUE", "an option of the new format's own; see virta disk create", OPT_CALL, .call = disk_option_add, .repeated = true,
          .letter = 'o' },
        { "compress", "KIND", "compress what is copied; of qcow2", OPT_CHOICE, PAIR(compression), .choices = compressions, .fallback = "none" },
        { "overwrite", NULL, "replace a file that is there already", OPT_FLAG, PAIR(overwrite) },
        { "sync", NULL, "end when the new image is on stable storage", OPT_FLAG, PAIR(sync) },
        { "quiet", NULL, "no progress", OPT_FLAG, PAIR(quiet) },
        DISK_ALLOW_OPTION(struct pair_args),
        DISK_SECRET_OPTION(struct pair_args),
        { "to-secret", "SECRET", "the same of the second one", OPT_TEXT, PAIR(to_secret) },
        { 0 },
};

static const struct opt pair_operands[] = {
        { NULL, "SOURCE", "the image to read", OPT_TEXT, PAIR(from_path), .required = true, .complete = OPT_COMPLETE_FILE },
        { NULL, "DESTINATION", "the other one", OPT_TEXT, PAIR(to_path), .required = true, .complete = OPT_COMPLETE_FILE },
        { 0 },
};

const struct opt_command disk_convert_table = {
        .name = "disk convert",
        .summary = "copy an image into another format",
        .description = "Makes a new image with all that the source reads as, its backing files included, or writes it to a server's disk (nbd://…), "
                       "which is long enough and there already. Zeroes take no space. When it fails, or is ended, the new image is taken away again. "
                       "The host writes it to its own disk when it likes, unless --sync is given.",
        .options = convert_options,
        .operands = pair_operands,
};

/* A server's disk is there already: all of it is written, zeroes as well, and it is never taken away. */
static int convert_to_server(struct disk_session *session, struct pair_args *args, struct block *from, struct err *err)
{
        struct block_opening opening = { .loop = &session->loop, .path = args->to_path, .format = args->to_format, .flags = BLOCK_OPEN_NO_URING,
                                         .secret = args->to_secret };
        struct block_copy copy = { .from = from, .size_bytes = from->info.size_bytes };
        int r;

        if (args->options.count || args->compression || args->overwrite)
                return err_set(err, -EINVAL, "disk %s is a server's: no options, --compress or --overwrite, which are for images that are made", args->to_path);
        r = block_open(&opening, &copy.to, err);
        if (r < 0)
                return r;
        if (copy.to->info.size_bytes < copy.size_bytes)
                r = err_set(err, -ENOSPC, "disk %s has %" PRIu64 " bytes, %s %" PRIu64, args->to_path, copy.to->info.size_bytes, args->from_path,
                            copy.size_bytes);
        if (r == 0)
                r = disk_copy_run(session, &copy, args->quiet, err);
        if (r == 0)
                r = block_finish(copy.to, err);
        if (r == 0 && block_flush(copy.to) < 0)
                r = err_set(err, -EIO, "disk %s: the last of it could not be written", args->to_path);
        disk_close(session, copy.to);
        return r < 0 ? err_wrap(err, r, "disk %s into %s", args->from_path, args->to_path) : 0;
}

static int convert_into(struct disk_session *session, struct pair_args *args, struct block *from, struct err *err)
{
        struct block_opening opening = { .loop = &session->loop, .path = args->to_path, .format = args->to_format, .flags = BLOCK_OPEN_NO_URING,
                                         .secret = args->to_secret };
        struct block_creation creation = { .size_bytes = from->info.size_bytes, .option = args->options.option, .options = args->options.count };
        struct block_copy copy = { .from = from, .size_bytes = from->info.size_bytes, .to_is_empty = true, .compress = args->compression };
        int r = 0;

        if (!args->sync)
                opening.flags |= BLOCK_OPEN_NO_FLUSH;
        if (args->compression) {
                char kind[32];

                snprintf(kind, sizeof(kind), "compression=%s", compressions[args->compression]);
                r = disk_option_add(args, kind, err);
                creation.options = args->options.count;
        }
        if (r == 0)
                r = block_create(&opening, &creation, args->overwrite, err);

        if (r < 0)
                return r;
        r = block_open(&opening, &copy.to, err);
        if (r == 0) {
                copy.to_is_empty = !copy.to->info.noise;
                copy.unit_bytes = args->compression || copy.to->info.streamed ? copy.to->info.optimal_bytes : 0;
                r = disk_copy_run(session, &copy, args->quiet, err);
                if (r == 0)
                        r = block_finish(copy.to, err);
                disk_close(session, copy.to);
        }
        if (r < 0)
                unlink(args->to_path);
        return r < 0 ? err_wrap(err, r, "disk %s into %s", args->from_path, args->to_path) : 0;
}

static int convert_work(struct disk_session *session, void *into, struct err *err)
{
        struct pair_args *args = into;
        struct block *from;
        int r;

        session->secret = args->secret;
        r = disk_open(session, args->from_path, args->from_format,
                      BLOCK_OPEN_READONLY | BLOCK_OPEN_NO_URING | (args->any_backing ? BLOCK_OPEN_ANY_BACKING : 0), &from, err);
        if (r < 0)
                return r;
        r = (block_is_remote(args->to_path) ? convert_to_server : convert_into)(session, args, from, err);
        disk_close(session, from);
        return r;
}

static int convert_run(void *into)
{
        return disk_command(convert_work, into);
}

const struct cli_command cli_disk_convert = {
        .table = &disk_convert_table, .args_size = sizeof(struct pair_args), .run = convert_run, .finish = disk_options_finish,
};

static const struct opt compare_options[] = {
        { "from", "FORMAT", "of the first image; without it, what suffix or contents say", OPT_TEXT, PAIR(from_format) },
        { "to", "FORMAT", "of the second one", OPT_TEXT, PAIR(to_format) },
        { "quiet", NULL, "no progress, and no words", OPT_FLAG, PAIR(quiet) },
        DISK_ALLOW_OPTION(struct pair_args),
        DISK_SECRET_OPTION(struct pair_args),
        { "to-secret", "SECRET", "the same of the second one", OPT_TEXT, PAIR(to_secret) },
        { 0 },
};

static const struct opt_note compare_exits[] = {
        { "0", "they read the same; where one is longer, it has zeroes there" },
        { "1", "they could not be compared" },
        { "2", "the command line was wrong" },
        { "3", "they differ" },
        { 0 },
};

static const struct opt_section compare_sections[] = { { "Exit status", NULL, compare_exits }, { 0 } };

const struct opt_command disk_compare_table = {
        .name = "disk compare",
        .summary = "whether two images read the same",
        .description = "Reads both disks, of whatever formats, and says where they differ first.",
        .options = compare_options,
        .operands = pair_operands,
        .sections = compare_sections,
};

static int compare_work(struct disk_session *session, void *into, struct err *err)
{
        struct pair_args *args = into;
        struct block_copy copy = { .compare = true };
        unsigned flags = BLOCK_OPEN_READONLY | (args->any_backing ? BLOCK_OPEN_ANY_BACKING : 0);
        int r;

        session->secret = args->secret;
        r = disk_open(session, args->from_path, args->from_format, flags, &copy.from, err);
        if (r < 0)
                return r;
        session->secret = args->to_secret;
        r = disk_open(session, args->to_path, args->to_format, flags, &copy.other, err);
        if (r == 0) {
                copy.size_bytes = MAX(copy.from->info.size_bytes, copy.other->info.size_bytes);
                r = disk_copy_run(session, &copy, args->quiet, err);
                disk_close(session, copy.other);
        }
        disk_close(session, copy.from);
        if (r < 0)
                return r;
        if (!args->quiet && copy.differs == BLOCK_NOWHERE)
                printf("they read the same\n");
        else if (!args->quiet)
                printf("they differ at byte %" PRIu64 " (%#" PRIx64 ")\n", copy.differs, copy.differs);
        return copy.differs == BLOCK_NOWHERE ? 0 : 3;
}

static int compare_run(void *into)
{
        return disk_command(compare_work, into);
}

const struct cli_command cli_disk_compare = {
        .table = &disk_compare_table, .args_size = sizeof(struct pair_args), .run = compare_run, .finish = disk_options_finish,
};
