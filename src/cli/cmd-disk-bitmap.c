/* `virta disk bitmap`: which parts of a disk were written to, as its image keeps it. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/text.h"
#include "block/bitmap.h"
#include "cli/disk.h"

enum bitmap_action { BITMAP_LIST, BITMAP_ADD, BITMAP_REMOVE, BITMAP_CLEAR, BITMAP_ENABLE, BITMAP_DISABLE, BITMAP_MERGE, BITMAP_SHOW };
static const char *const bitmap_actions[] = { "list", "add", "remove", "clear", "enable", "disable", "merge", "show", NULL };

struct bitmap_args {
        const char *path, *format, *name, *other, *from, *from_format;
        uint64_t granularity_bytes;
        int action;
        bool json, disabled;
};

#define BITMAP(field) offsetof(struct bitmap_args, field)

static const struct opt bitmap_options[] = {
        { "format", "FORMAT", "of the image; without it, what its suffix says", OPT_TEXT, BITMAP(format) },
        { "granularity", "SIZE", "add: what a bit stands for, 512 to 2G, a power of two", OPT_SIZE, BITMAP(granularity_bytes),
          .fallback = "the image's cluster, 4K to 64K" },
        { "disabled", NULL, "add: it does not watch before it is enabled", OPT_FLAG, BITMAP(disabled) },
        { "from", "FILE", "merge: the image that has the other bitmap, when it is not this one", OPT_TEXT, BITMAP(from), .complete = OPT_COMPLETE_FILE },
        { "from-format", "FORMAT", "of that image", OPT_TEXT, BITMAP(from_format) },
        { "json", NULL, "list, show: print JSON", OPT_FLAG, BITMAP(json) },
        { 0 },
};

static const struct opt bitmap_operands[] = {
        { NULL, "ACTION", "list, add, remove, clear, enable, disable, merge or show", OPT_CHOICE, BITMAP(action), .required = true, .choices = bitmap_actions },
        { NULL, "FILE", "the image", OPT_TEXT, BITMAP(path), .required = true, .complete = OPT_COMPLETE_FILE },
        { NULL, "NAME", "of the bitmap", OPT_TEXT, BITMAP(name) },
        { NULL, "OTHER", "merge: the bitmap whose bits come into it", OPT_TEXT, BITMAP(other) },
        { 0 },
};

const struct opt_command disk_bitmap_table = {
        .name = "disk bitmap",
        .summary = "which parts of a disk were written to, as its image keeps it",
        .description = "A bitmap that is enabled learns of every write, and so says what an incremental backup must copy. Lists those in a qcow2 image, adds "
                       "one, removes it, clears it (nothing counts as written), lets it watch or stops that, merges another into it, or shows which ranges "
                       "it has. A bitmap of an image that was not closed is inconsistent: it can only be removed. The image must not be in use.",
        .options = bitmap_options,
        .operands = bitmap_operands,
};

/* ---- showing ---- */

static json_t *about_bitmap(const struct block_bitmap *b)
{
        return json_pack("{s:s%, s:I, s:I, s:b, s:b, s:b}", "name", b->name, strlen(b->name), "granularity_bytes", (json_int_t)(UINT64_C(1) << b->shift),
                         "dirty_bytes", (json_int_t)MIN(b->dirty << b->shift, b->size_bytes), "enabled", b->enabled, "persistent", b->persistent,
                         "inconsistent", b->inconsistent);
}

static void print_bitmap(const struct block_bitmap *b)
{
        char name[1024], dirty[SIZE_TEXT_MAX], granularity[SIZE_TEXT_MAX];

        text_escape(b->name, strlen(b->name), name, sizeof(name));
        printf("%-13s %-12s %-12s %s\n", b->inconsistent ? "inconsistent" : b->enabled ? "enabled" : "disabled",
               size_about(UINT64_C(1) << b->shift, granularity), b->inconsistent ? "-" : size_about(MIN(b->dirty << b->shift, b->size_bytes), dirty), name);
}

static int list_bitmaps(const struct block *block, bool json, struct err *err)
{
        json_t *list = json ? json_array() : NULL;
        int r = !json || list ? 0 : err_nomem(err);

        if (!json)
                printf("%-13s %-12s %-12s %s\n", "state", "granularity", "written", "name");
        for (const struct block_bitmap *b = block->bitmaps; b && r == 0; b = b->next) {
                if (!list)
                        print_bitmap(b);
                else if (json_array_append_new(list, about_bitmap(b)) < 0)
                        r = err_set(err, -EINVAL, "disk %s: the name of a bitmap is not UTF-8", block->path);
        }
        if (r == 0 && list)
                r = json_write(list, STDOUT_FILENO, err);
        json_decref(list);
        return r;
}

static int show_bitmap(const struct block_bitmap *b, bool json, struct err *err)
{
        json_t *list = json ? json_array() : NULL;
        uint64_t at = 0, offset, size_bytes;
        int r = !json || list ? 0 : err_nomem(err);

        if (!json)
                printf("%18s %14s\n", "start", "length");
        for (; r == 0 && block_bitmap_next(b, at, &offset, &size_bytes); at = offset + size_bytes) {
                if (!list)
                        printf("%#18" PRIx64 " %#14" PRIx64 "\n", offset, size_bytes);
                else if (json_array_append_new(list, json_pack("{s:I, s:I}", "start", (json_int_t)offset, "length", (json_int_t)size_bytes)) < 0)
                        r = err_nomem(err);
        }
        if (r == 0 && list)
                r = json_write(list, STDOUT_FILENO, err);
        json_decref(list);
        return r;
}

/* ---- changing ---- */

static int add_bitmap(struct block *block, const struct bitmap_args *args, struct err *err)
{
        uint64_t granularity = args->granularity_bytes ? args->granularity_bytes : block_bitmap_granularity(block);
        struct block_bitmap *b;
        int r;

        if (granularity > BLOCK_BITMAP_GRANULARITY_MAX || granularity < BLOCK_BITMAP_GRANULARITY_MIN || !is_power_of_two(granularity))
                return err_set(err, -EINVAL, "--granularity: it is a power of two, 512 to 2G");
        r = block_bitmap_can_persist(block, args->name, (uint32_t)granularity, err);
        if (r < 0)
                return r;
        r = block_bitmap_add(block, args->name, (uint32_t)granularity, &b, err);
        if (r < 0)
                return r;
        b->persistent = true;
        b->enabled = !args->disabled;
        return 0;
}

static int merge_from(struct disk_session *session, const struct bitmap_args *args, struct block_bitmap *into, struct err *err)
{
        struct block_bitmap *from;
        struct block *other = into->block;
        int r = 0;

        if (!args->other)
                return err_set(err, -EINVAL, "OTHER is missing: the bitmap to merge");
        if (args->from)
                r = disk_open(session, args->from, args->from_format, BLOCK_OPEN_READONLY | BLOCK_OPEN_NO_BACKING, &other, err);
        if (r < 0)
                return r;
        r = block_bitmap_get(other, args->other, true, &from, err);
        if (r == 0)
                r = block_bitmap_merge(into, from, err);
        if (args->from)
                disk_close(session, other);
        return r;
}

static int change_bitmap(struct disk_session *session, struct block *block, const struct bitmap_args *args, struct err *err)
{
        struct block_bitmap *b = NULL;
        int r;

        if (args->action == BITMAP_ADD)
                return add_bitmap(block, args, err);
        if (args->action == BITMAP_REMOVE) {
                b = block_bitmap_find(block, args->name);
                if (!b)
                        return err_set(err, -ENOENT, "disk %s has no bitmap %s", block->path, args->name);
                block_bitmap_remove(b);
                return 0;
        }
        r = block_bitmap_get(block, args->name, false, &b, err);
        if (r < 0)
                return r;
        switch ((enum bitmap_action)args->action) {
        case BITMAP_CLEAR: block_bitmap_clear(b, 0, b->size_bytes); break;
        case BITMAP_ENABLE: b->enabled = true; break;
        case BITMAP_DISABLE: b->enabled = false; break;
        case BITMAP_MERGE: return merge_from(session, args, b, err);
        default: return show_bitmap(b, args->json, err);
        }
        return 0;
}

static int bitmap_work(struct disk_session *session, void *into, struct err *err)
{
        struct bitmap_args *args = into;
        bool look = args->action == BITMAP_LIST || args->action == BITMAP_SHOW;
        struct block *block;
        int r;

        if (args->action != BITMAP_LIST && !args->name)
                return err_set(err, -EINVAL, "NAME is missing: of the bitmap");
        r = disk_open(session, args->path, args->format, BLOCK_OPEN_NO_BACKING | (look ? BLOCK_OPEN_READONLY | BLOCK_OPEN_NO_LOCK : 0), &block, err);
        if (r < 0)
                return r;
        if (!block->driver->keep_bitmap)
                r = err_set(err, -EOPNOTSUPP, "disk %s: its format keeps no bitmaps", args->path);
        else if (args->action == BITMAP_LIST)
                r = list_bitmaps(block, args->json, err);
        else
                r = change_bitmap(session, block, args, err);
        if (!look) {
                struct err why = ERR_INIT;
                int done = block_finish(block, &why); /* also after an error: the others are as they were, and not in use any more */

                if (r == 0 && done < 0)
                        r = err_set(err, done, "%s", why.text);
        }
        disk_close(session, block);
        return r;
}

static int bitmap_run(void *into)
{
        return disk_command(bitmap_work, into);
}

const struct cli_command cli_disk_bitmap = { .table = &disk_bitmap_table, .args_size = sizeof(struct bitmap_args), .run = bitmap_run };
