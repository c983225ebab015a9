#include "image/media.h"

#include <stdio.h>
#include <sys/utsname.h>

static bool take_text(const json_t *json, const char *key, char *to, size_t size_bytes)
{
        const char *text = json_string_value(json_object_get(json, key));

        if (!text || strlen(text) >= size_bytes)
                return false;
        strcpy(to, text);
        return true;
}

/* ---- descriptors ---- */

int descriptor_parse(const json_t *json, struct descriptor *descriptor, struct err *err)
{
        const json_t *platform = json_object_get(json, "platform"), *size = json_object_get(json, "size");
        const char *digest = json_string_value(json_object_get(json, "digest"));

        *descriptor = (struct descriptor){ 0 };
        if (!json_is_object(json))
                return err_set(err, -EBADMSG, "a descriptor is not an object");
        if (!digest || digest_parse(digest, &descriptor->digest, err) < 0)
                return err_set(err, -EBADMSG, "a descriptor has no digest that is one");
        if (!take_text(json, "mediaType", descriptor->media_type, sizeof(descriptor->media_type)))
                return err_set(err, -EBADMSG, "the descriptor of %s has no media type", digest);
        if (!json_is_integer(size) || json_integer_value(size) < 0 || (uint64_t)json_integer_value(size) > MEDIA_BLOB_MAX)
                return err_set(err, -EBADMSG, "the descriptor of %s has no size that can be", digest);
        descriptor->size_bytes = (uint64_t)json_integer_value(size);
        if (platform && (!take_text(platform, "os", descriptor->platform.os, sizeof(descriptor->platform.os)) ||
                         !take_text(platform, "architecture", descriptor->platform.architecture, sizeof(descriptor->platform.architecture))))
                return err_set(err, -EBADMSG, "the platform of %s has no os or no architecture", digest);
        if (platform && json_object_get(platform, "variant") &&
            !take_text(platform, "variant", descriptor->platform.variant, sizeof(descriptor->platform.variant)))
                return err_set(err, -EBADMSG, "the platform of %s has a variant that is no text", digest);
        return 0;
}

json_t *descriptor_write(const struct descriptor *descriptor)
{
        const struct platform *platform = &descriptor->platform;
        json_t *json = json_pack("{s:s, s:s, s:I}", "mediaType", descriptor->media_type, "digest", descriptor->digest.text, "size",
                                 (json_int_t)descriptor->size_bytes);

        if (json && platform->os[0] &&
            json_object_set_new(json, "platform",
                                json_pack("{s:s, s:s, s:s*}", "architecture", platform->architecture, "os", platform->os, "variant",
                                          platform->variant[0] ? platform->variant : NULL)) < 0) {
                json_decref(json);
                return NULL;
        }
        return json;
}

bool media_is_index(const char *media_type)
{
        return !strcmp(media_type, MEDIA_INDEX) || !strcmp(media_type, MEDIA_DOCKER_INDEX);
}

bool media_is_manifest(const char *media_type)
{
        return !strcmp(media_type, MEDIA_MANIFEST) || !strcmp(media_type, MEDIA_DOCKER_MANIFEST);
}

/* ---- manifests ---- */

int manifest_read(const json_t *json, struct manifest *manifest, struct err *err)
{
        const json_t *layers = json_object_get(json, "layers"), *layer, *version = json_object_get(json, "schemaVersion");
        size_t i;
        int r;

        *manifest = (struct manifest){ 0 };
        if (!json_is_object(json) || json_integer_value(version) != 2)
                return err_set(err, -EBADMSG, "the manifest is not of schema version 2");
        if (!json_is_array(layers) || json_array_size(layers) > MEDIA_LAYERS_MAX)
                return err_set(err, -EBADMSG, "the manifest has no layers, or more than %u", MEDIA_LAYERS_MAX);
        r = descriptor_parse(json_object_get(json, "config"), &manifest->config, err);
        if (r < 0)
                return err_wrap(err, r, "the manifest's config");
        if (manifest->config.size_bytes > MEDIA_DOCUMENT_MAX)
                return err_set(err, -EBADMSG, "the image's configuration is larger than %zu MiB", MEDIA_DOCUMENT_MAX >> 20);
        manifest->layers = calloc(json_array_size(layers) + 1, sizeof(*manifest->layers));
        if (!manifest->layers)
                return err_nomem(err);
        json_array_foreach(layers, i, layer) {
                r = descriptor_parse(layer, &manifest->layers[i], err);
                if (r < 0) {
                        manifest_done(manifest);
                        return err_wrap(err, r, "layer %zu", i);
                }
        }
        manifest->layer_count = json_array_size(layers);
        return 0;
}

void manifest_done(struct manifest *manifest)
{
        free(manifest->layers);
        *manifest = (struct manifest){ 0 };
}

int layer_compression_of(const char *media_type, struct err *err)
{
        static const struct { const char *name; enum layer_compression compression; } types[] = {
                { MEDIA_LAYER, LAYER_PLAIN },
                { MEDIA_LAYER_GZIP, LAYER_GZIP },
                { MEDIA_LAYER_ZSTD, LAYER_ZSTD },
                { "application/vnd.docker.image.rootfs.diff.tar", LAYER_PLAIN },
                { "application/vnd.docker.image.rootfs.diff.tar.gzip", LAYER_GZIP },
                { "application/vnd.docker.image.rootfs.diff.tar.zstd", LAYER_ZSTD },
                { "application/vnd.oci.image.layer.nondistributable.v1.tar", LAYER_PLAIN },
                { "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", LAYER_GZIP },
                { "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", LAYER_ZSTD },
        };

        for (size_t i = 0; i < ARRAY_SIZE(types); i++)
                if (!strcmp(media_type, types[i].name))
                        return (int)types[i].compression;
        return err_set(err, -ENOTSUP, "a layer is of the type '%s': only tar, plain or with gzip or zstd, can be unpacked", media_type);
}

/* ---- platforms ---- */

int platform_parse(const char *text, struct platform *platform, struct err *err)
{
        char copy[100], *part[3] = { NULL }, *rest = copy;
        int count = 0;

        *platform = (struct platform){ 0 };
        if (strlen(text) < sizeof(copy)) {
                strcpy(copy, text);
                while (rest && count < 3)
                        part[count++] = strsep(&rest, "/");
        }
        for (int i = 0; i < count; i++)
                if (!part[i][0] || strlen(part[i]) >= sizeof(platform->os))
                        count = 0;
        if (count < 2 || rest)
                return err_set(err, -EINVAL, "'%s' is not a platform: OS/ARCHITECTURE[/VARIANT], as linux/amd64", text);
        strcpy(platform->os, part[0]);
        strcpy(platform->architecture, part[1]);
        if (part[2])
                strcpy(platform->variant, part[2]);
        return 0;
}

void platform_host(struct platform *platform)
{
        static const struct { const char *machine, *architecture, *variant; } names[] = {
                { "x86_64", "amd64", "" }, { "aarch64", "arm64", "v8" }, { "i686", "386", "" }, { "armv7l", "arm", "v7" },
        };
        struct utsname name;

        *platform = (struct platform){ .os = "linux" };
        uname(&name);
        for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
                if (!strcmp(name.machine, names[i].machine)) {
                        strcpy(platform->architecture, names[i].architecture);
                        strcpy(platform->variant, names[i].variant);
                        return;
                }
        }
        snprintf(platform->architecture, sizeof(platform->architecture), "%.31s", name.machine);
}

const char *platform_format(const struct platform *platform, char text[100])
{
        snprintf(text, 100, "%s/%s%s%s", platform->os, platform->architecture, platform->variant[0] ? "/" : "", platform->variant);
        return text;
}

/* 0: no fit; an equal variant is the best, none said is better than another one. */
static int fit(const struct platform *is, const struct platform *wanted)
{
        if (strcmp(is->os, wanted->os) != 0 || strcmp(is->architecture, wanted->architecture) != 0)
                return 0;
        return !strcmp(is->variant, wanted->variant) ? 3 : !is->variant[0] || !wanted->variant[0] ? 2 : 1;
}

int index_choose(const json_t *json, const struct platform *platform, struct descriptor *descriptor, struct err *err)
{
        const json_t *manifests = json_object_get(json, "manifests"), *entry;
        char there[512] = "", text[100];
        struct descriptor candidate;
        int best = 0;
        size_t i;

        if (!json_is_array(manifests))
                return err_set(err, -EBADMSG, "the index has no manifests");
        json_array_foreach(manifests, i, entry) {
                int r = descriptor_parse(entry, &candidate, err), fits;
                size_t length = strlen(there);

                if (r < 0)
                        return err_wrap(err, r, "the index");
                fits = candidate.platform.os[0] ? fit(&candidate.platform, platform) : json_array_size(manifests) == 1;
                if (fits > best) {
                        best = fits;
                        *descriptor = candidate;
                }
                if (candidate.platform.os[0])
                        snprintf(there + length, sizeof(there) - length, "%s%s", length ? ", " : "", platform_format(&candidate.platform, text));
        }
        if (!best)
                return err_set(err, -ENOENT, "there is no image for %s; there is %s", platform_format(platform, text), there[0] ? there : "none");
        return 0;
}

int config_diff_ids(const json_t *config, struct digest *diff_ids, size_t count, struct err *err)
{
        const json_t *array = json_object_get(json_object_get(config, "rootfs"), "diff_ids"), *entry;
        size_t i;

        if (!json_is_array(array) || json_array_size(array) != count)
                return err_set(err, -EBADMSG, "the image has %zu layers, its configuration names %zu", count, json_array_size(array));
        json_array_foreach(array, i, entry) {
                int r = json_is_string(entry) ? digest_parse(json_string_value(entry), &diff_ids[i], err)
                                              : err_set(err, -EBADMSG, "a diff_id is no text");

                if (r < 0)
                        return err_wrap(err, -EBADMSG, "the image's configuration");
        }
        return 0;
}
