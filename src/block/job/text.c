/* Jobs by words, as the monitor of a machine, `virta disk serve` and the commands for images at rest take them. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "base/text.h"
#include "block/job/job.h"

#define WORDS_MAX 12

const char block_job_text_help[] = "stream [BASE], commit [BASE] [pivot], mirror TARGET [pivot|follow] [existing] [resume], "
                                   "backup TARGET [bitmap=NAME] [backing=FILE] [existing], resize SIZE [shrink]; with speed=SIZE (a second), "
                                   "format=FORMAT, secret=SECRET (of TARGET)";

static const char *value_of(const char *word, const char *key)
{
        size_t length = strlen(key);

        return !strncmp(word, key, length) && word[length] == '=' && word[length + 1] ? word + length + 1 : NULL;
}

static int take_word(struct block_job_words *words, const char **kind, const char *word, struct err *err)
{
        const char *value;

        if (!*kind)
                *kind = word;
        else if (!strcmp(word, "pivot"))
                words->pivot = true;
        else if (!strcmp(word, "follow"))
                words->follow = true;
        else if (!strcmp(word, "existing"))
                words->existing = true;
        else if (!strcmp(word, "resume"))
                words->resume = true;
        else if (!strcmp(word, "shrink"))
                words->shrink = true;
        else if ((value = value_of(word, "secret")))
                words->secret = value;
        else if ((value = value_of(word, "format")))
                words->format = value;
        else if ((value = value_of(word, "bitmap")))
                words->bitmap = value;
        else if ((value = value_of(word, "backing")))
                words->backing = value;
        else if ((value = value_of(word, "speed")))
                return size_parse(value, &words->speed, err);
        else if (!words->name)
                words->name = word;
        else
                return err_set(err, -EINVAL, "'%s' is one word too many for a job", word);
        return 0;
}

static int find_kind(const char *name, enum block_job_kind *kind)
{
        for (*kind = BLOCK_JOB_STREAM; *kind <= BLOCK_JOB_RESIZE; ++*kind)
                if (name && !strcmp(name, block_job_name(*kind)))
                        return 0;
        return -EINVAL;
}

static int check_words(const struct block_job_words *w, enum block_job_kind kind, struct err *err)
{
        bool to_target = kind == BLOCK_JOB_MIRROR || kind == BLOCK_JOB_BACKUP;
        const char *wrong = NULL;

        if (w->pivot && kind != BLOCK_JOB_MIRROR && kind != BLOCK_JOB_COMMIT)
                wrong = "pivot";
        else if ((w->follow || w->resume) && kind != BLOCK_JOB_MIRROR)
                wrong = w->follow ? "follow" : "resume";
        else if ((w->bitmap || w->backing) && kind != BLOCK_JOB_BACKUP)
                wrong = w->bitmap ? "bitmap=" : "backing=";
        else if ((w->existing || w->format || w->secret) && !to_target)
                wrong = w->existing ? "existing" : w->format ? "format=" : "secret=";
        else if (w->shrink && kind != BLOCK_JOB_RESIZE)
                wrong = "shrink";
        if (wrong)
                return err_set(err, -EINVAL, "%s is not for a %s", wrong, block_job_name(kind));
        if (kind == BLOCK_JOB_RESIZE && !w->name)
                return err_set(err, -EINVAL, "'resize SIZE': how large?");
        if (to_target && !w->name)
                return err_set(err, -EINVAL, "'%s TARGET': where to?", block_job_name(kind));
        if (w->backing && (w->existing || !w->bitmap))
                return err_set(err, -EINVAL, "backing= is for a new image, of what a bitmap has: it goes with bitmap=");
        return 0;
}

/* ---- the chain ---- */

static bool same_file(const char *a, const char *b)
{
        _cleanup_free_ char *real_a = realpath(a, NULL), *real_b = realpath(b, NULL);

        return !strcmp(a, b) || (real_a && real_b && !strcmp(real_a, real_b));
}

/* By its path, or by its name when only one has that. */
static int find_base(struct block *image, const char *name, struct block **base, struct err *err)
{
        struct block *found = NULL;
        unsigned count = 0;

        for (struct block *at = image->child[BLOCK_BACKING]; at; at = at->child[BLOCK_BACKING]) {
                const char *slash = strrchr(at->path, '/');

                if (same_file(at->path, name)) {
                        *base = at;
                        return 0;
                }
                if (!strcmp(slash ? slash + 1 : at->path, name)) {
                        found = at;
                        count++;
                }
        }
        if (count != 1)
                return err_set(err, -EINVAL, "disk %s is not in the chain of backing files of %s", name, image->path);
        *base = found;
        return 0;
}

/* As the image is to name it: where it is seen from the image's folder, or its whole path. */
static const char *name_from(const struct block *image, const struct block *base, char **owned)
{
        const char *slash = strrchr(image->path, '/');
        size_t folder = slash ? (size_t)(slash - image->path) + 1 : 0;

        if (!strncmp(base->path, image->path, folder) && base->path[folder] != '/')
                return base->path + folder;
        *owned = realpath(base->path, NULL);
        return *owned ? *owned : base->path;
}

static const char *format_of(const struct block *block)
{
        return strcmp(block->driver->name, "file") ? block->driver->name : "raw";
}

static int take_base(struct block_job_config *config, const char *name, char **owned, struct err *err)
{
        struct block *image = block_disk_root(config->disk);
        int r = name ? find_base(image, name, &config->base, err) : 0;

        if (r < 0 || !config->base)
                return r;
        config->base_name = name_from(image, config->base, owned);
        config->base_format = format_of(config->base);
        return 0;
}

/* ---- the target ---- */

static int make_target(struct block_job_config *config, const struct block_job_words *w, struct block_opening *opening, struct err *err)
{
        struct block_creation creation = { .size_bytes = config->disk->info.size_bytes, .backing = w->backing };
        const char *dot = w->backing ? strrchr(w->backing, '.') : NULL;

        /* The image that it lies on was made the same way, as a rule. */
        if (w->backing)
                creation.backing_format = dot && block_driver_find(dot + 1) ? dot + 1 : "raw";
        if (w->name && !block_is_remote(w->name) && faccessat(AT_FDCWD, w->name, F_OK, 0) == 0)
                return err_set(err, -EEXIST, "disk %s is there already, and was left alone; `existing` writes to it", w->name);
        return block_create(opening, &creation, false, err);
}

static int open_target(struct block_job_config *config, const struct block_job_words *w, bool *made, struct err *err)
{
        struct block_opening opening = { .loop = config->disk->loop, .path = w->name, .format = w->format, .flags = w->flags, .secret = w->secret };
        bool there = w->existing || w->resume || block_is_remote(w->name);
        int r = there ? 0 : make_target(config, w, &opening, err);

        *made = !there && r == 0;
        if (r < 0)
                return r;
        /* Clusters are written whole: what is behind a new image is not needed for that. */
        if (w->backing)
                opening.flags |= BLOCK_OPEN_NO_BACKING;
        r = block_open(&opening, &config->target, err);
        if (r < 0)
                return r;
        if (w->backing && config->target->info.optimal_bytes > 65536)
                r = err_set(err, -EINVAL, "disk %s has clusters too large for that", w->name);
        config->target_is_empty = !there && !w->backing && !config->target->info.noise;
        config->resume = w->resume;
        return r;
}

/* ---- all of it ---- */

int block_job_start_words(struct block_job_config *config, const struct block_job_words *w, struct block_job **job, struct err *err)
{
        _cleanup_free_ char *owned = NULL;
        bool made = false;
        int r = check_words(w, config->kind, err);

        if (r < 0)
                return r;
        config->pivot = w->pivot;
        config->follow = w->follow;
        config->bitmap = w->bitmap;
        config->bytes_a_second = w->speed;
        config->base = config->target = NULL;
        config->shrink = w->shrink;
        if (config->kind == BLOCK_JOB_RESIZE)
                r = size_parse(w->name, &config->size_bytes, err);
        else if (config->kind == BLOCK_JOB_STREAM || config->kind == BLOCK_JOB_COMMIT)
                r = take_base(config, w->name, &owned, err);
        else
                r = *block_disk_job(config->disk) ? 0 : open_target(config, w, &made, err); /* else it is refused anyway */
        if (r == 0)
                r = block_job_start(config, job, err);
        if (r < 0) {
                block_close(config->target);
                if (made && w->name)
                        (void)unlinkat(AT_FDCWD, w->name, 0);
                config->target = NULL;
        }
        return r;
}

int block_job_start_text(struct block_job_config *config, const char *text, struct block_job **job, struct err *err)
{
        _cleanup_free_ char *copy = strdup(text);
        char *save = NULL;
        struct block_job_words words = { 0 };
        const char *kind = NULL;
        int r = copy ? 0 : err_nomem(err);

        for (char *word = copy ? strtok_r(copy, " ", &save) : NULL; word && r == 0; word = strtok_r(NULL, " ", &save))
                r = take_word(&words, &kind, word, err);
        if (r < 0)
                return r;
        if (find_kind(kind, &config->kind) < 0)
                return err_set(err, -EINVAL, "there is no job '%s'; there are: %s", kind ? kind : "", block_job_text_help);
        return block_job_start_words(config, &words, job, err);
}
