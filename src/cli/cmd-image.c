/* virta-image, which is `virta image`: templates that containers start from, fetched, imported, looked at and taken away, with no daemon. */
#include <signal.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/text.h"
#include "cli/image.h"
#include "image/image.h"

struct session {
        struct image_store *store;
        const struct image_args *args;
        struct image_name name; /* of args->name, when it is given */
        struct platform platform;
};

static int with_store(void *arguments, int (*work)(struct session *session, struct err *err))
{
        struct session session = { .args = arguments };
        struct err err = ERR_INIT;
        int r = session.args->name ? image_name_parse(session.args->name, &session.name, &err) : 0;

        if (!r && session.args->platform)
                r = platform_parse(session.args->platform, &session.platform, &err);
        if (r < 0) {
                log_error("%s", err.text);
                return CLI_USAGE;
        }
        r = image_store_open(session.args->store, &session.store, &err);
        if (!r)
                r = work(&session, &err);
        if (r < 0)
                log_error("%s", err.text);
        image_store_close(session.store);
        return r < 0 ? CLI_FAILED : r > 0 ? r : cli_flush();
}

static const struct platform *platform_of(const struct session *session)
{
        return session->args->platform ? &session->platform : NULL;
}

/* ---- progress ---- */

#define PROGRESS_NS UINT64_C(200000000)

struct progress {
        uint64_t start_ns, shown_ns;
        bool any, off;
};

static void show_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes)
{
        struct progress *p = ctx;
        uint64_t now_ns = monotonic_ns();
        char done[SIZE_TEXT_MAX], total[SIZE_TEXT_MAX];

        if (!p->start_ns)
                p->start_ns = now_ns;
        /* What is over within a second needs none. */
        if (p->off || now_ns < p->start_ns + UINT64_C(1000000000) || now_ns < p->shown_ns + PROGRESS_NS)
                return;
        fprintf(stderr, "\r%5.1f %%  %s of %s  %.1f s \x1b[K", total_bytes ? 100.0 * (double)done_bytes / (double)total_bytes : 100.0,
                size_about(done_bytes, done), size_about(total_bytes, total), (double)(now_ns - p->start_ns) / 1e9);
        p->shown_ns = now_ns;
        p->any = true;
}

static struct progress begin_progress(const struct session *session)
{
        return (struct progress){ .off = session->args->quiet || !isatty(STDERR_FILENO) };
}

static void end_progress(struct progress *p)
{
        if (p->any)
                fprintf(stderr, "\r\x1b[K");
}

/* ---- pull, push ---- */

static int unpack(struct session *session, const char *full, struct progress *progress, struct err *err)
{
        struct layers_progress report = { show_progress, progress };
        _cleanup_image_ struct image image = { 0 };
        struct image_name name;
        int r = image_name_parse(full, &name, err);

        if (!r)
                r = image_load(session->store, &name, platform_of(session), &image, err);
        return r ? r : layers_unpack(session->store, &image.manifest, image.diff_ids, &report, err);
}

static int pull(struct session *session, struct err *err)
{
        _cleanup_registry_config_ struct registry_config config = { 0 };
        struct progress progress = begin_progress(session);
        struct registry_progress report = { show_progress, &progress };
        struct pull_options options = { &config, platform_of(session), session->args->insecure, &report };
        char full[NAME_TEXT_MAX];
        int r = registry_config_load(&config, err);

        if (!r)
                r = image_pull(session->store, &session->name, &options, full, err);
        if (!r) {
                progress.start_ns = 0;
                r = unpack(session, full, &progress, err);
        }
        end_progress(&progress);
        if (!r)
                puts(full);
        return r;
}

static int image_pull_run(void *args)
{
        return with_store(args, pull);
}

static int push(struct session *session, struct err *err)
{
        _cleanup_registry_config_ struct registry_config config = { 0 };
        struct pull_options options = { &config, platform_of(session), session->args->insecure, NULL };
        struct image_name to = session->name;
        struct descriptor descriptor;
        char full[NAME_TEXT_MAX];
        int r = registry_config_load(&config, err);

        if (!r)
                r = store_find(session->store, &session->name, &descriptor, full, err);
        if (!r)
                r = image_name_parse(session->args->other ? session->args->other : full, &to, err);
        return r ? r : image_push(session->store, &session->name, &to, &options, err);
}

static int image_push_run(void *args)
{
        return with_store(args, push);
}

/* ---- list ---- */

struct listing {
        struct session *session;
        json_t *json; /* NULL: as text */
};

static uint64_t stored_bytes(const struct image *image)
{
        uint64_t bytes = image->descriptor.size_bytes + image->manifest.config.size_bytes;

        for (size_t i = 0; i < image->manifest.layer_count; i++)
                bytes += image->manifest.layers[i].size_bytes;
        return bytes;
}

static const char *created_of(const struct image *image)
{
        const char *created = json_string_value(json_object_get(image->config, "created"));

        return created ? created : "";
}

static int list_one(const char *name, const struct descriptor *descriptor, void *ctx, struct err *err)
{
        struct listing *listing = ctx;
        _cleanup_image_ struct image image = { 0 };
        char size[SIZE_TEXT_MAX], created[64], shown[NAME_TEXT_MAX * 2];
        struct image_name parsed;
        int r = image_name_parse(name, &parsed, err);

        /* What other tools put there may be no image of ours. */
        if (r < 0 || image_load(listing->session->store, &parsed, NULL, &image, NULL) < 0)
                image = (struct image){ .descriptor = *descriptor };
        if (listing->json)
                return json_array_append_new(listing->json,
                                             json_pack("{s:s, s:s, s:I, s:s}", "name", name, "digest", descriptor->digest.text, "size_bytes",
                                                       (json_int_t)stored_bytes(&image), "created", image.config ? created_of(&image) : "")) < 0
                               ? err_set(err, -EINVAL, "the name of an image is not UTF-8")
                               : 0;
        text_escape(name, strlen(name), shown, sizeof(shown));
        snprintf(created, sizeof(created), "%.10s", image.config ? created_of(&image) : "");
        printf("%-12.12s  %-10s  %-10s  %s\n", strchr(descriptor->digest.text, ':') + 1, size_about(stored_bytes(&image), size), created[0] ? created : "-",
               shown);
        return 0;
}

static int list(struct session *session, struct err *err)
{
        struct listing listing = { session, session->args->json ? json_array() : NULL };
        int r = session->args->json && !listing.json ? err_nomem(err) : 0;

        if (!r && !listing.json)
                printf("%-12s  %-10s  %-10s  %s\n", "digest", "size", "created", "name");
        if (!r)
                r = store_each(session->store, list_one, &listing, err);
        if (!r && listing.json)
                r = json_write(listing.json, STDOUT_FILENO, err);
        json_decref(listing.json);
        return r;
}

static int image_list_run(void *args)
{
        return with_store(args, list);
}

/* ---- show ---- */

static void print_words(const char *what, const json_t *array)
{
        char shown[1024];
        const json_t *word;
        size_t i;

        if (!json_array_size(array))
                return;
        printf("%-12s", what);
        json_array_foreach(array, i, word) {
                const char *text = json_is_string(word) ? json_string_value(word) : "?";

                text_escape(text, strlen(text), shown, sizeof(shown));
                printf(" %s", shown);
        }
        putchar('\n');
}

static int show_json(const struct image *image, struct err *err)
{
        json_t *layers = json_array(), *json;
        int r;

        for (size_t i = 0; layers && i < image->manifest.layer_count; i++)
                json_array_append_new(layers, json_pack("{s:s, s:s, s:I, s:s}", "digest", image->manifest.layers[i].digest.text, "media_type",
                                                        image->manifest.layers[i].media_type, "size_bytes",
                                                        (json_int_t)image->manifest.layers[i].size_bytes, "diff_id", image->diff_ids[i].text));
        json = json_pack("{s:s, s:s, s:o, s:O}", "name", image->name, "digest", image->descriptor.digest.text, "layers", layers, "config", image->config);
        r = json ? json_write(json, STDOUT_FILENO, err) : err_nomem(err);
        json_decref(json);
        return r;
}

static void show_text(const struct image *image)
{
        const json_t *config = json_object_get(image->config, "config");
        char size[SIZE_TEXT_MAX];
        const char *os = json_string_value(json_object_get(image->config, "os")), *user = json_string_value(json_object_get(config, "User"));
        const char *architecture = json_string_value(json_object_get(image->config, "architecture"));

        printf("name         %s\ndigest       %s\nplatform     %.40s/%.40s\n", image->name, image->descriptor.digest.text, os ? os : "?",
               architecture ? architecture : "?");
        for (size_t i = 0; i < image->manifest.layer_count; i++)
                printf("%-12s %s  %s\n", i ? "" : "layers", image->manifest.layers[i].digest.text, size_about(image->manifest.layers[i].size_bytes, size));
        print_words("entrypoint", json_object_get(config, "Entrypoint"));
        print_words("command", json_object_get(config, "Cmd"));
        print_words("environment", json_object_get(config, "Env"));
        if (user && user[0])
                printf("user         %.64s\n", user);
}

static int show(struct session *session, struct err *err)
{
        _cleanup_image_ struct image image = { 0 };
        int r = image_load(session->store, &session->name, platform_of(session), &image, err);

        if (r < 0)
                return r;
        if (session->args->json)
                return show_json(&image, err);
        show_text(&image);
        return 0;
}

static int image_show_run(void *args)
{
        return with_store(args, show);
}

/* ---- import, export ---- */

static void import_prepare(void *args)
{
        ((struct image_args *)args)->format = -1;
}

static int import_image(struct session *session, struct err *err)
{
        struct progress progress = begin_progress(session);
        char full[NAME_TEXT_MAX];
        int r = image_import(session->store, session->args->path, session->args->format, session->args->name, full, err);

        if (!r)
                r = unpack(session, full, &progress, err);
        end_progress(&progress);
        if (!r)
                puts(full);
        return r;
}

static int image_import_run(void *args)
{
        return with_store(args, import_image);
}

static int export_image(struct session *session, struct err *err)
{
        _cleanup_image_ struct image image = { 0 };
        int r = image_load(session->store, &session->name, platform_of(session), &image, err);

        return r ? r : image_export(session->store, &image, session->args->path, session->args->format ? IMAGE_DOCKER_ARCHIVE : IMAGE_OCI_ARCHIVE, err);
}

static int image_export_run(void *args)
{
        return with_store(args, export_image);
}

/* ---- delete, prune, verify ---- */

static int collect(struct session *session, bool tell, struct err *err)
{
        struct store_garbage garbage;
        char size[SIZE_TEXT_MAX];
        int r = store_collect(session->store, &garbage, err);

        if (!r && tell)
                printf("%u contents, %u layers, %s\n", garbage.blobs, garbage.layers, size_about(garbage.size_bytes, size));
        return r;
}

static int delete_image(struct session *session, struct err *err)
{
        struct descriptor descriptor;
        char full[NAME_TEXT_MAX];
        int r = store_find(session->store, &session->name, &descriptor, full, err);

        if (!r)
                r = store_unname(session->store, full, err);
        if (r < 0)
                return r;
        r = collect(session, false, err);
        return r == -EBUSY ? 0 : r;
}

static int image_delete_run(void *args)
{
        return with_store(args, delete_image);
}

static int prune(struct session *session, struct err *err)
{
        return collect(session, true, err);
}

static int image_prune_run(void *args)
{
        return with_store(args, prune);
}

/* ---- the program ---- */

#define COMMAND(verb) { .table = &image_##verb##_table, .args_size = sizeof(struct image_args), .run = image_##verb##_run }

static const struct cli_command commands[] = {
        COMMAND(pull), COMMAND(push), COMMAND(list), COMMAND(show), COMMAND(export), COMMAND(delete), COMMAND(prune),
        { .table = &image_import_table, .args_size = sizeof(struct image_args), .run = image_import_run, .prepare = import_prepare },
};

static const struct opt_command *const image_tables[] = {
        &image_table, &image_pull_table, &image_push_table, &image_list_table, &image_show_table, &image_import_table, &image_export_table,
        &image_delete_table, &image_prune_table, NULL,
};

static const struct opt_program program = {
        .name = "virta",
        .summary = "images of containers",
        .version = VIRTA_VERSION,
        .description = "Does what `virta image` asks for.",
        .commands = image_tables,
};

/* The words are those of virta: `virta-image image pull NAME`. */
int main(int argc, char **argv)
{
        const struct opt_command *table;
        int words;

        cli_open_standard_descriptors();
        signal(SIGPIPE, SIG_IGN);
        log_init("virta", LOG_INFO);
        table = opt_find(&program, argc - 1, argv + 1, &words);
        for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
                if (table == commands[i].table)
                        return cli_run(&program, &commands[i], argc - 1 - words, argv + 1 + words);
        opt_help(&program, table, stderr);
        return CLI_USAGE;
}
