#include "image/image.h"

#include <stdio.h>

#include "base/text.h"

/* ---- in the store ---- */

/* The manifest for a platform: what an index has, or it itself. */
static int resolve(const struct image_store *store, struct descriptor *descriptor, const struct platform *platform, json_t **json, struct err *err)
{
        struct platform host;

        if (!platform) {
                platform_host(&host);
                platform = &host;
        }
        for (unsigned depth = 0; depth < 4; depth++) {
                int r = store_document(store, descriptor, json, err);

                if (r < 0)
                        return r;
                if (media_is_manifest(descriptor->media_type))
                        return 0;
                r = media_is_index(descriptor->media_type) ? index_choose(*json, platform, descriptor, err)
                                                           : err_set(err, -ENOTSUP, "'%s' is neither a manifest nor an index", descriptor->media_type);
                json_decref(*json);
                *json = NULL;
                if (r < 0)
                        return r;
        }
        return err_set(err, -EBADMSG, "indexes lead to indexes without an end");
}

static int load(const struct image_store *store, const struct platform *platform, struct image *image, struct err *err)
{
        _cleanup_json_ json_t *json = NULL;
        int r = resolve(store, &image->descriptor, platform, &json, err);

        if (!r)
                r = manifest_read(json, &image->manifest, err);
        if (!r)
                r = store_document(store, &image->manifest.config, &image->config, err);
        if (r < 0)
                return r;
        image->diff_ids = calloc(image->manifest.layer_count + 1, sizeof(*image->diff_ids));
        return image->diff_ids ? config_diff_ids(image->config, image->diff_ids, image->manifest.layer_count, err) : err_nomem(err);
}

int image_load(const struct image_store *store, const struct image_name *name, const struct platform *platform, struct image *image, struct err *err)
{
        int r;

        *image = (struct image){ 0 };
        r = store_find(store, name, &image->descriptor, image->name, err);
        if (r < 0)
                return r;
        r = load(store, platform, image, err);
        if (r < 0) {
                char text[NAME_TEXT_MAX];

                image_done(image);
                return err_wrap(err, r, "image '%s'", image_name_format(name, text));
        }
        return 0;
}

void image_done(struct image *image)
{
        manifest_done(&image->manifest);
        json_decref(image->config);
        free(image->diff_ids);
        *image = (struct image){ 0 };
}

/* ---- pull ---- */

/* Bytes of a document into the store, as what it says it is. */
static int keep(struct image_store *store, const struct registry_document *document, const char *media_type, struct descriptor *descriptor, struct err *err)
{
        *descriptor = (struct descriptor){ 0 };
        snprintf(descriptor->media_type, sizeof(descriptor->media_type), "%s", media_type);
        return store_put(store, document->bytes, document->size_bytes, descriptor, err);
}

/* One manifest and all that it names. */
static int pull_manifest(struct registry *registry, struct image_store *store, const struct registry_document *document, const struct pull_options *options,
                         struct descriptor *descriptor, struct err *err)
{
        _cleanup_manifest_ struct manifest manifest = { 0 };
        _cleanup_free_ struct descriptor *blobs = NULL;
        _cleanup_json_ json_t *json = NULL;
        int r = json_parse(document->bytes, document->size_bytes, &json, err);

        if (!r)
                r = manifest_read(json, &manifest, err);
        if (r < 0)
                return r;
        blobs = calloc(manifest.layer_count + 1, sizeof(*blobs));
        if (!blobs)
                return err_nomem(err);
        blobs[0] = manifest.config;
        for (size_t i = 0; i < manifest.layer_count; i++)
                blobs[i + 1] = manifest.layers[i];
        r = registry_blobs(registry, store, blobs, manifest.layer_count + 1, options->progress, err);
        return r < 0 ? r : keep(store, document, document->media_type, descriptor, err);
}

static int pull_from(const char *host, const struct image_name *name, struct image_store *store, const struct pull_options *options,
                     struct descriptor *descriptor, struct err *err)
{
        struct registry_options how = { .config = options->config, .insecure = options->insecure };
        struct registry_document document = { 0 }, index = { 0 };
        _cleanup_registry_ struct registry *registry = NULL;
        struct descriptor chosen;
        struct platform host_platform;
        json_t *json = NULL;
        int r = registry_open(host, name->path, &how, &registry, err);

        platform_host(&host_platform);
        if (!r)
                r = registry_manifest(registry, name->digest.text[0] ? name->digest.text : name->tag, &document, err);
        if (!r && media_is_index(document.media_type)) {
                index = document;
                document.bytes = NULL;
                r = json_parse(index.bytes, index.size_bytes, &json, err);
                if (!r)
                        r = index_choose(json, options->platform ? options->platform : &host_platform, &chosen, err);
                if (!r)
                        r = registry_manifest(registry, chosen.digest.text, &document, err);
        }
        if (!r && !media_is_manifest(document.media_type))
                r = err_set(err, -ENOTSUP, "'%s' sends a document of the type '%.120s', which is no image's", host, document.media_type);
        if (!r)
                r = pull_manifest(registry, store, &document, options, descriptor, err);
        /* The name stands for the index: its digest is what was asked for. */
        if (!r && index.bytes)
                r = keep(store, &index, index.media_type, descriptor, err);
        json_decref(json);
        free(document.bytes);
        free(index.bytes);
        return r;
}

/* Its mirrors, then the host itself. */
static int pull_of_host(const char *host, const struct image_name *name, struct image_store *store, const struct pull_options *options,
                        struct descriptor *descriptor, struct err *err)
{
        const char *mirror;

        for (size_t i = 0; (mirror = registry_config_mirror(options->config, host, i)); i++)
                if (pull_from(mirror, name, store, options, descriptor, NULL) == 0)
                        return 0;
        return pull_from(host, name, store, options, descriptor, err);
}

int image_pull(struct image_store *store, const struct image_name *name, const struct pull_options *options, char *full, struct err *err)
{
        struct image_name found = *name;
        struct descriptor descriptor;
        const char *host;
        int r;

        if (name->host[0]) {
                r = pull_of_host(name->host, name, store, options, &descriptor, err);
        } else {
                char text[NAME_TEXT_MAX];

                r = err_set(err, -ENOENT, "'%s' names no registry, and /etc/virta/registries.json has none for short names; write HOST/%s",
                            image_name_format(name, text), name->path);
                for (size_t i = 0; r < 0 && (host = registry_config_short(options->config, i)); i++) {
                        if (!text_copy(found.host, sizeof(found.host), host))
                                continue;
                        r = pull_of_host(host, name, store, options, &descriptor, err);
                }
        }
        if (r < 0)
                return r;
        return store_name(store, image_name_format(&found, full), &descriptor, err);
}

/* ---- push ---- */

static int push_manifest(struct image_store *store, struct registry *registry, const struct descriptor *descriptor, const char *reference,
                         struct err *err)
{
        _cleanup_manifest_ struct manifest manifest = { 0 };
        _cleanup_close_ int fd = store_blob(store, descriptor, err);
        _cleanup_free_ char *bytes = NULL;
        _cleanup_json_ json_t *json = NULL;
        int r;

        if (fd < 0)
                return fd;
        r = store_document(store, descriptor, &json, err);
        if (!r)
                r = manifest_read(json, &manifest, err);
        if (!r)
                r = registry_push_blob(registry, store, &manifest.config, err);
        for (size_t i = 0; r >= 0 && i < manifest.layer_count; i++)
                r = registry_push_blob(registry, store, &manifest.layers[i], err);
        if (r < 0)
                return r;
        bytes = malloc(descriptor->size_bytes + 1);
        if (!bytes)
                return err_nomem(err);
        if (pread(fd, bytes, descriptor->size_bytes, 0) != (ssize_t)descriptor->size_bytes)
                return err_set(err, -EIO, "cannot read %s", descriptor->digest.text);
        return registry_push_manifest(registry, reference, descriptor->media_type, bytes, descriptor->size_bytes, err);
}

int image_push(struct image_store *store, const struct image_name *name, const struct image_name *to, const struct pull_options *options, struct err *err)
{
        struct registry_options how = { .config = options->config, .insecure = options->insecure, .push = true };
        _cleanup_registry_ struct registry *registry = NULL;
        _cleanup_image_ struct image image = { 0 };
        int r = image_load(store, name, options->platform, &image, err);

        if (r < 0)
                return r;
        if (!to->host[0])
                return err_set(err, -EINVAL, "'%s' names no registry to push to; write HOST/%s", to->path, to->path);
        r = registry_open(to->host, to->path, &how, &registry, err);
        return r < 0 ? r : push_manifest(store, registry, &image.descriptor, to->tag[0] ? to->tag : image.descriptor.digest.text, err);
}
