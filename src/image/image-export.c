/*
 * Images into files. The same image gives the same bytes: names in a fixed order, no times, no owners.
 */
#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "image/image.h"

struct out {
        struct archive *archive;
        const char *path;
        struct err *err;
};

static int put(struct out *out, const char *name, uint64_t size_bytes, const void *bytes, int fd)
{
        struct archive_entry *entry = archive_entry_new();
        uint8_t buffer[128 << 10];
        ssize_t n = 1;
        int r = 0;

        if (!entry)
                return err_nomem(out->err);
        archive_entry_set_pathname(entry, name);
        archive_entry_set_filetype(entry, AE_IFREG);
        archive_entry_set_perm(entry, 0644);
        archive_entry_set_size(entry, (int64_t)size_bytes);
        archive_entry_set_mtime(entry, 0, 0);
        if (archive_write_header(out->archive, entry) != ARCHIVE_OK || (bytes && archive_write_data(out->archive, bytes, size_bytes) < 0))
                r = -EIO;
        while (!r && !bytes && (n = read(fd, buffer, sizeof(buffer))) > 0)
                if (archive_write_data(out->archive, buffer, (size_t)n) < 0)
                        r = -EIO;
        archive_entry_free(entry);
        if (n < 0)
                return err_errno(out->err, -errno, "cannot read '%s'", name);
        return r < 0 ? err_set(out->err, r, "cannot write '%s': %s", out->path, archive_error_string(out->archive)) : 0;
}

static int put_json(struct out *out, const char *name, json_t *json)
{
        _cleanup_free_ char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
        int r = text ? put(out, name, strlen(text), text, -1) : err_nomem(out->err);

        json_decref(json);
        return r;
}

static int put_blob(struct out *out, const struct image_store *store, const struct descriptor *blob, const char *name)
{
        _cleanup_close_ int fd = store_blob(store, blob, out->err);

        return fd < 0 ? fd : put(out, name, blob->size_bytes, NULL, fd);
}

/* "blobs/sha256/HEX": where both kinds of archives keep it. */
static const char *blob_name(const struct digest *digest, char name[DIGEST_TEXT_MAX + 8])
{
        sprintf(name, "blobs/%s", digest->text);
        *strchr(name, ':') = '/';
        return name;
}

static int put_contents(struct out *out, const struct image_store *store, const struct image *image, bool with_manifest)
{
        char name[DIGEST_TEXT_MAX + 8];
        int r = put_blob(out, store, &image->manifest.config, blob_name(&image->manifest.config.digest, name));

        if (!r && with_manifest)
                r = put_blob(out, store, &image->descriptor, blob_name(&image->descriptor.digest, name));
        for (size_t i = 0; !r && i < image->manifest.layer_count; i++) {
                const struct descriptor *layer = &image->manifest.layers[i];
                bool again = false;

                for (size_t before = 0; before < i; before++)
                        again = again || digest_equal(&image->manifest.layers[before].digest, &layer->digest);
                if (!again)
                        r = put_blob(out, store, layer, blob_name(&layer->digest, name));
        }
        return r;
}

static int put_oci(struct out *out, const struct image_store *store, const struct image *image)
{
        json_t *entry = descriptor_write(&image->descriptor);
        int r;

        if (entry)
                json_object_set_new(entry, "annotations", json_pack("{s:s}", "org.opencontainers.image.ref.name", image->name));
        r = put_json(out, "oci-layout", json_pack("{s:s}", "imageLayoutVersion", "1.0.0"));
        if (!r)
                r = put_json(out, "index.json", json_pack("{s:i, s:s, s:[o]}", "schemaVersion", 2, "mediaType", MEDIA_INDEX, "manifests", entry));
        return r ? r : put_contents(out, store, image, true);
}

static int put_docker(struct out *out, const struct image_store *store, const struct image *image)
{
        char name[DIGEST_TEXT_MAX + 8];
        json_t *layers = json_array();

        for (size_t i = 0; layers && i < image->manifest.layer_count; i++)
                json_array_append_new(layers, json_string(blob_name(&image->manifest.layers[i].digest, name)));
        int r = put_json(out, "manifest.json",
                         json_pack("[{s:s, s:[s], s:o}]", "Config", blob_name(&image->manifest.config.digest, name), "RepoTags", image->name, "Layers",
                                   layers));

        return r ? r : put_contents(out, store, image, false);
}

int image_export(struct image_store *store, const struct image *image, const char *path, enum image_format format, struct err *err)
{
        struct out out = { .archive = archive_write_new(), .path = path, .err = err };
        _cleanup_close_ int fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
        int r = 0;

        if (fd < 0)
                r = err_errno(err, -errno, "cannot make '%s'", path);
        else if (!out.archive || archive_write_set_format_pax_restricted(out.archive) != ARCHIVE_OK || archive_write_open_fd(out.archive, fd) != ARCHIVE_OK)
                r = err_nomem(err);
        if (!r)
                r = format == IMAGE_DOCKER_ARCHIVE ? put_docker(&out, store, image) : put_oci(&out, store, image);
        if (!r && archive_write_close(out.archive) != ARCHIVE_OK)
                r = err_set(err, -EIO, "cannot write '%s': %s", path, archive_error_string(out.archive));
        if (!r && fsync(fd) < 0)
                r = err_errno(err, -errno, "cannot write '%s'", path);
        archive_write_free(out.archive);
        if (r < 0 && fd >= 0)
                (void)unlink(path);
        return r;
}
