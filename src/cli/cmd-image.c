/* `virta image`: templates that containers start from, fetched, imported, looked at and taken away, with no daemon. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/text.h"
#include "cli/cli.h"
#include "image/image.h"

static const struct opt_note image_notes[] = {
        { "virta image pull registry.example/debian:12", "fetch one" },
        { "virta image import app.tar --name app:1", "take one out of a file of another tool" },
        { "virta image list", "what is here" },
        { "virta image export app:1 app.tar", "for another machine" },
        { 0 },
};

static const struct opt_section image_sections[] = { { "Examples", NULL, image_notes }, { 0 } };

const struct opt_command image_table = {
        .name = "image",
        .group = true,
        .summary = "fetch, import, look at and give away images of containers",
        .description = "Images are kept in /var/lib/virta/images, for others than root in ~/.local/share/virta/images. The folder is an OCI image layout, "
                       "which other tools can read. Layers are stored once however many images have them.\n"
                       "A name is [HOST/]NAME[:TAG][@DIGEST]. No host is built in: short names are looked for among the images that are here, "
                       "and pulled from the hosts that /etc/virta/registries.json lists under \"short-names\". Credentials are those that other tools keep "
                       "(auth.json, ~/.docker/config.json).",
        .sections = image_sections,
};

/* Of all commands here; each uses some. */
struct image_args {
        const char *name, *other, *store, *platform, *path;
        int format;
        bool json, insecure, quiet, force;
};

#define IMAGE(field) offsetof(struct image_args, field)
#define STORE_OPTION { "store", "DIRECTORY", "where images are kept", OPT_TEXT, IMAGE(store), .complete = OPT_COMPLETE_DIRECTORY }
#define PLATFORM_OPTION                                                                                                                \
        { "platform", "OS/ARCH[/VARIANT]", "the one to take where a name stands for several", OPT_TEXT, IMAGE(platform), \
                          .fallback = "this machine's" }
#define JSON_OPTION { "json", NULL, "print JSON", OPT_FLAG, IMAGE(json) }
#define INSECURE_OPTION { "insecure", NULL, "also without TLS, or with a certificate that nobody vouches for", OPT_FLAG, IMAGE(insecure) }
#define QUIET_OPTION { "quiet", NULL, "no progress", OPT_FLAG, IMAGE(quiet), .letter = 'q' }

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

static const struct opt pull_options[] = { PLATFORM_OPTION, INSECURE_OPTION, QUIET_OPTION, STORE_OPTION, { 0 } };
static const struct opt pull_operands[] = { { NULL, "NAME", "the image", OPT_TEXT, IMAGE(name), .required = true }, { 0 } };

const struct opt_command image_pull_table = {
        .name = "image pull",
        .summary = "fetch an image from a registry",
        .description = "Fetches what is not here yet, a few layers at once, compares every byte with its digest, and unpacks the layers. What was cut is "
                       "gone on with the next time. Prints the name the image has here.",
        .options = pull_options,
        .operands = pull_operands,
};

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

static const struct opt push_operands[] = {
        { NULL, "NAME", "the image, as it is called here", OPT_TEXT, IMAGE(name), .required = true },
        { NULL, "TO", "what it is to be called there: HOST/NAME[:TAG]; without it, its name", OPT_TEXT, IMAGE(other) },
        { 0 },
};

const struct opt_command image_push_table = {
        .name = "image push",
        .summary = "give an image to a registry",
        .description = "Sends the contents that the registry does not have, then the manifest that names them: a name there never stands for half an image.",
        .options = pull_options,
        .operands = push_operands,
};

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

static const struct opt list_options[] = { JSON_OPTION, STORE_OPTION, { 0 } };

const struct opt_command image_list_table = {
        .name = "image list",
        .summary = "the images that are here",
        .description = "One line an image: the first digits of its digest, what it takes as it is stored, when it was made, and its name.",
        .options = list_options,
};

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

static const struct opt show_options[] = { PLATFORM_OPTION, JSON_OPTION, STORE_OPTION, { 0 } };

const struct opt_command image_show_table = {
        .name = "image show",
        .summary = "what an image is made of, and how it is run",
        .description = "The name, digest, platform, layers and configuration of an image; with --json the configuration is as the image has it.",
        .options = show_options,
        .operands = pull_operands,
};

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

static const struct opt import_options[] = {
        { "name", "NAME", "what it is to be called", OPT_TEXT, IMAGE(name), .fallback = "as the file says" },
        { "format", "FORMAT", "of the file", OPT_CHOICE, IMAGE(format), .fallback = "what is found in it", .choices = image_format_names },
        QUIET_OPTION,
        STORE_OPTION,
        { 0 },
};

static const struct opt import_operands[] = {
        { NULL, "FILE", "an OCI layout (directory or tar), docker-archive, or a root file system (tar or directory)", OPT_TEXT, IMAGE(path), .required = true,
          .complete = OPT_COMPLETE_FILE },
        { 0 },
};

const struct opt_command image_import_table = {
        .name = "image import",
        .summary = "take an image out of a file or directory",
        .description = "Takes what `docker save`, `podman save` or `skopeo copy` wrote, plain or compressed, or a root file system, which becomes an image of "
                       "one layer. Prints the name the image has here.",
        .options = import_options,
        .operands = import_operands,
};

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

static const char *const export_formats[] = { "oci-archive", "docker-archive", NULL };

static const struct opt export_options[] = {
        { "format", "FORMAT", "of the file", OPT_CHOICE, IMAGE(format), .fallback = "oci-archive", .choices = export_formats },
        PLATFORM_OPTION,
        STORE_OPTION,
        { 0 },
};

static const struct opt export_operands[] = {
        { NULL, "NAME", "the image", OPT_TEXT, IMAGE(name), .required = true },
        { NULL, "FILE", "to be made; it must not be there", OPT_TEXT, IMAGE(path), .required = true, .complete = OPT_COMPLETE_FILE },
        { 0 },
};

const struct opt_command image_export_table = {
        .name = "image export",
        .summary = "put an image into a file",
        .description = "The same image gives the same bytes each time.",
        .options = export_options,
        .operands = export_operands,
};

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

static const struct opt store_options[] = { STORE_OPTION, { 0 } };

const struct opt_command image_delete_table = {
        .name = "image delete",
        .summary = "take an image away",
        .description = "Takes the name away, and what no other image and no container needs. While others use the images that stays until `virta image prune`.",
        .options = store_options,
        .operands = pull_operands,
};

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

const struct opt_command image_prune_table = {
        .name = "image prune",
        .summary = "take away what no image and no container needs",
        .description = "Also what was fetched in part. Prints what it was.",
        .options = store_options,
};

static int prune(struct session *session, struct err *err)
{
        return collect(session, true, err);
}

static int image_prune_run(void *args)
{
        return with_store(args, prune);
}

#define CLI_IMAGE(verb, args_prepare) \
        const struct cli_command cli_image_##verb = { .table = &image_##verb##_table, .args_size = sizeof(struct image_args), \
                                                       .run = image_##verb##_run, .prepare = args_prepare }

CLI_IMAGE(pull, NULL);
CLI_IMAGE(push, NULL);
CLI_IMAGE(list, NULL);
CLI_IMAGE(show, NULL);
CLI_IMAGE(import, import_prepare);
CLI_IMAGE(export, NULL);
CLI_IMAGE(delete, NULL);
CLI_IMAGE(prune, NULL);
