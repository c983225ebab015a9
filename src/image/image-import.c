/*
 * Images out of files: layouts and archives of other tools, and plain root file systems.
 *
 * An archive is read twice: first its documents, which say what it is and what is wanted of it; then what they name goes into the store,
 * each with its digest compared when that is known. What is not named is passed over, and no name of the archive ever becomes a
 * path here.
 *
 * Source: image-spec image-layout.md; docker-archive as `docker save` writes it: manifest.json with Config, RepoTags, Layers.
 */
#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>

#include "base/text.h"
#include "image/image.h"
#include "image/layer-stream.h"

#define ENTRIES_MAX 4000000u
#define LINKS_MAX 8

static const char *const image_format_names[] = IMAGE_FORMAT_NAMES;

/* ---- archives ---- */

struct source {
        int fd;
        const char *path;
        json_t *links; /* symbolic links of the archive: what they stand for */
};

static int open_archive(const struct source *source, struct archive **archive, struct err *err)
{
        *archive = archive_read_new();
        if (!*archive || archive_read_support_format_tar(*archive) != ARCHIVE_OK || archive_read_support_filter_gzip(*archive) != ARCHIVE_OK ||
            archive_read_support_filter_zstd(*archive) != ARCHIVE_OK) {
                archive_read_free(*archive);
                *archive = NULL;
                return err_nomem(err);
        }
        if (lseek(source->fd, 0, SEEK_SET) < 0 || archive_read_open_fd(*archive, source->fd, 128 << 10) != ARCHIVE_OK) {
                err_set(err, -EBADMSG, "'%s' is no tar archive: %s", source->path, archive_error_string(*archive));
                archive_read_free(*archive);
                *archive = NULL;
                return -EBADMSG;
        }
        return 0;
}

/* Calls fn() for each entry, with its name without a leading "./". fn() may read its data. */
static int each_entry(const struct source *source,
                      int (*fn)(struct archive *archive, struct archive_entry *entry, const char *name, void *ctx, struct err *err), void *ctx,
                      struct err *err)
{
        struct archive_entry *entry;
        struct archive *archive;
        unsigned count = 0;
        int r = open_archive(source, &archive, err), status = ARCHIVE_OK;

        while (!r && ((status = archive_read_next_header(archive, &entry)) == ARCHIVE_OK || status == ARCHIVE_WARN)) {
                const char *name = archive_entry_pathname(entry);

                if (!name || ++count > ENTRIES_MAX)
                        r = err_set(err, -EBADMSG, "'%s' has an entry without a name, or more than %u", source->path, ENTRIES_MAX);
                while (!r && name[0] == '.' && name[1] == '/')
                        name += 2;
                if (!r)
                        r = fn(archive, entry, name, ctx, err);
        }
        if (!r && status != ARCHIVE_EOF)
                r = err_set(err, -EBADMSG, "'%s' is damaged: %s", source->path, archive_error_string(archive));
        if (archive)
                archive_read_free(archive);
        return r;
}

static int read_document(struct archive *archive, struct archive_entry *entry, const char *name, json_t **json, struct err *err)
{
        int64_t size_bytes = archive_entry_size(entry);
        _cleanup_free_ char *text = NULL;
        int r;

        if (size_bytes < 0 || (uint64_t)size_bytes > MEDIA_DOCUMENT_MAX)
                return err_set(err, -EFBIG, "'%s' in the archive is larger than %zu MiB", name, MEDIA_DOCUMENT_MAX >> 20);
        text = malloc((size_t)size_bytes + 1);
        if (!text)
                return err_nomem(err);
        if (archive_read_data(archive, text, (size_t)size_bytes) != size_bytes)
                return err_set(err, -EBADMSG, "'%s' in the archive is cut", name);
        json_decref(*json);
        *json = NULL;
        r = json_parse(text, (size_t)size_bytes, json, err);
        return r < 0 ? err_wrap(err, r, "'%s' in the archive", name) : 0;
}

struct overview {
        json_t *index, *docker, *links;
        bool layout;
};

static int look(struct archive *archive, struct archive_entry *entry, const char *name, void *ctx, struct err *err)
{
        struct overview *overview = ctx;
        const char *target = archive_entry_symlink(entry);

        if (!strcmp(name, "oci-layout"))
                overview->layout = true;
        if (!strcmp(name, "index.json") && archive_entry_filetype(entry) == AE_IFREG)
                return read_document(archive, entry, name, &overview->index, err);
        if (!strcmp(name, "manifest.json") && archive_entry_filetype(entry) == AE_IFREG)
                return read_document(archive, entry, name, &overview->docker, err);
        /* `docker save` once wrote a layer that is there already as a link to it: "../OTHER/layer.tar". */
        if (target && archive_entry_filetype(entry) == AE_IFLNK && !strncmp(target, "../", 3) &&
            json_object_set_new(overview->links, name, json_string(target + 3)) < 0)
                return err_nomem(err);
        return 0;
}

/* ---- contents ---- */

static int ingest_entry(struct ingest *ingest, struct archive *archive, const char *name, struct err *err)
{
        uint8_t buffer[128 << 10];
        ssize_t n;
        int r = 0;

        while (!r && (n = archive_read_data(archive, buffer, sizeof(buffer))) > 0)
                r = ingest_add(ingest, buffer, (size_t)n, err);
        if (!r && n < 0)
                r = err_set(err, -EBADMSG, "'%s' in the archive is damaged: %s", name, archive_error_string(archive));
        return r;
}

/* A whole file; as above. */
static int ingest_file(struct ingest *ingest, int fd, struct err *err)
{
        uint8_t buffer[128 << 10];
        uint64_t at = 0;
        ssize_t n;
        int r = 0;

        while (!r && (n = pread(fd, buffer, sizeof(buffer), (off_t)at)) > 0) {
                r = ingest_add(ingest, buffer, (size_t)n, err);
                at += (uint64_t)n;
        }
        return r || n >= 0 ? r : err_errno(err, -errno, "cannot read");
}

/* What begins so is compressed so. */
static int layer_type(struct image_store *store, struct descriptor *layer, struct err *err)
{
        _cleanup_close_ int fd = store_blob(store, layer, err);
        uint8_t head[4] = { 0 };

        if (fd < 0)
                return fd;
        if (pread(fd, head, sizeof(head), 0) < 0)
                return err_errno(err, -errno, "cannot read %s", layer->digest.text);
        if (head[0] == 0x1f && head[1] == 0x8b)
                strcpy(layer->media_type, MEDIA_LAYER_GZIP);
        else if (head[0] == 0x28 && head[1] == 0xb5 && head[2] == 0x2f && head[3] == 0xfd)
                strcpy(layer->media_type, MEDIA_LAYER_ZSTD);
        else
                strcpy(layer->media_type, MEDIA_LAYER);
        return 0;
}

/* All that a manifest names is here. */
static int check_whole(const struct image_store *store, const struct descriptor *descriptor, struct err *err)
{
        _cleanup_manifest_ struct manifest manifest = { 0 };
        _cleanup_json_ json_t *json = NULL;
        int r = store_document(store, descriptor, &json, err);

        if (!r)
                r = manifest_read(json, &manifest, err);
        if (!r && !store_has(store, &manifest.config))
                r = err_set(err, -ENOENT, "its configuration %s is missing", manifest.config.digest.text);
        for (size_t i = 0; !r && i < manifest.layer_count; i++)
                if (!store_has(store, &manifest.layers[i]))
                        r = err_set(err, -ENOENT, "its layer %s is missing", manifest.layers[i].digest.text);
        return r;
}

/* The name asked for, or the one that the file has. */
static int choose_name(const char *wanted, const char *found, const char *path, char *full, struct err *err)
{
        const char *text = wanted && wanted[0] ? wanted : found;
        struct image_name name;
        int r;

        if (!text || !text[0])
                return err_set(err, -EINVAL, "'%s' does not say what its image is called; say it with --name", path);
        r = image_name_parse(text, &name, err);
        if (!r)
                image_name_format(&name, full);
        return r;
}

/* ---- OCI layouts ---- */

/* The one entry of an index, or the one that is called so; its own name in *found. */
static int choose_entry(const json_t *index, const char *wanted, struct descriptor *descriptor, const char **found, struct err *err)
{
        const json_t *manifests = json_object_get(index, "manifests"), *entry, *chosen = NULL;
        size_t i;

        json_array_foreach(manifests, i, entry) {
                const char *name = json_string_value(json_object_get(json_object_get(entry, "annotations"), "org.opencontainers.image.ref.name"));

                if (json_array_size(manifests) == 1 || (name && wanted && !strcmp(name, wanted))) {
                        chosen = entry;
                        *found = name;
                }
        }
        if (!chosen)
                return err_set(err, -ENOENT, "the layout has %zu images; which one, --name must say", json_array_size(manifests));
        return descriptor_parse(chosen, descriptor, err);
}

struct blob_import {
        struct image_store *store;
};

static int take_blob(struct archive *archive, struct archive_entry *entry, const char *name, void *ctx, struct err *err)
{
        struct blob_import *import = ctx;
        _cleanup_ingest_ struct ingest ingest = INGEST_INIT;
        struct descriptor want = { 0 };
        char digest[DIGEST_TEXT_MAX];
        int r;

        if (strncmp(name, "blobs/", 6) != 0 || archive_entry_filetype(entry) != AE_IFREG || !text_copy(digest, sizeof(digest), name + 6) ||
            !strchr(digest, '/'))
                return 0;
        *strchr(digest, '/') = ':';
        if (digest_parse(digest, &want.digest, NULL) < 0 || archive_entry_size(entry) < 0)
                return 0;
        want.size_bytes = (uint64_t)archive_entry_size(entry);
        r = ingest_begin(import->store, &want, &ingest, err);
        if (r)
                return r < 0 ? r : 0;
        r = ingest_restart(&ingest, err);
        if (!r)
                r = ingest_entry(&ingest, archive, name, err);
        return r ? r : ingest_end(&ingest, NULL, err);
}

static int import_layout(struct image_store *store, const char *path, const json_t *index, const char *name, char *full, struct err *err)
{
        struct descriptor descriptor;
        const char *found = NULL;
        int r = choose_entry(index, name, &descriptor, &found, err);

        if (!r && !store_has(store, &descriptor))
                r = err_set(err, -ENOENT, "its manifest %s is missing", descriptor.digest.text);
        if (!r && media_is_manifest(descriptor.media_type))
                r = check_whole(store, &descriptor, err);
        if (r < 0)
                return err_wrap(err, r, "'%s'", path);
        r = choose_name(name, found, path, full, err);
        return r ? r : store_name(store, full, &descriptor, err);
}

static int import_blobs_of(struct image_store *store, int dir_fd, const char *kind, struct err *err)
{
        char path[32];
        struct dirent *entry;
        int fd, r = 0;
        DIR *dir;

        snprintf(path, sizeof(path), "blobs/%s", kind);
        fd = openat(dir_fd, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
                return errno == ENOENT ? 0 : err_errno(err, -errno, "cannot open '%s'", path);
        dir = fdopendir(fd);
        if (!dir) {
                close(fd);
                return err_nomem(err);
        }
        while (!r && (entry = readdir(dir))) {
                _cleanup_ingest_ struct ingest ingest = INGEST_INIT;
                _cleanup_close_ int blob = -1;
                struct descriptor want = { 0 };
                char digest[NAME_MAX + 16];
                struct stat st;

                snprintf(digest, sizeof(digest), "%s:%s", kind, entry->d_name);
                if (digest_parse(digest, &want.digest, NULL) < 0)
                        continue;
                blob = openat(dirfd(dir), entry->d_name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
                if (blob < 0 || fstat(blob, &st) < 0 || !S_ISREG(st.st_mode))
                        continue;
                want.size_bytes = (uint64_t)st.st_size;
                r = ingest_begin(store, &want, &ingest, err);
                if (r > 0) {
                        r = 0;
                        continue;
                }
                if (!r)
                        r = ingest_restart(&ingest, err);
                if (!r)
                        r = ingest_file(&ingest, blob, err);
                if (!r)
                        r = ingest_end(&ingest, NULL, err);
        }
        closedir(dir);
        return r;
}

static int import_oci_directory(struct image_store *store, const char *path, const char *name, char *full, struct err *err)
{
        _cleanup_close_ int dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        _cleanup_close_ int fd = dir_fd < 0 ? -1 : openat(dir_fd, "index.json", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        _cleanup_free_ char *text = malloc(MEDIA_DOCUMENT_MAX);
        _cleanup_json_ json_t *index = NULL;
        ssize_t n;
        int r;

        if (fd < 0)
                return err_errno(err, -errno, "cannot open '%s/index.json'", path);
        if (!text)
                return err_nomem(err);
        n = text_read(fd, text, MEDIA_DOCUMENT_MAX);
        r = n < 0 ? err_errno(err, (int)n, "cannot read") : json_parse(text, (size_t)n, &index, err);
        if (r < 0)
                return err_wrap(err, r, "'%s/index.json'", path);
        r = import_blobs_of(store, dir_fd, "sha256", err);
        if (!r)
                r = import_blobs_of(store, dir_fd, "sha512", err);
        return r < 0 ? err_wrap(err, r, "'%s'", path) : import_layout(store, path, index, name, full, err);
}

/* ---- docker-archive ---- */

struct docker_import {
        struct image_store *store;
        const json_t *wanted; /* the names of entries */
        json_t *got;          /* name: descriptor */
};

static int take_named(struct archive *archive, struct archive_entry *entry, const char *name, void *ctx, struct err *err)
{
        struct docker_import *import = ctx;
        _cleanup_ingest_ struct ingest ingest = INGEST_INIT;
        struct descriptor descriptor = { .media_type = "-" };
        int r;

        if (archive_entry_filetype(entry) != AE_IFREG || !json_object_get(import->wanted, name))
                return 0;
        r = ingest_begin(import->store, NULL, &ingest, err);
        if (!r)
                r = ingest_entry(&ingest, archive, name, err);
        descriptor.size_bytes = ingest.have_bytes;
        if (!r)
                r = ingest_end(&ingest, &descriptor.digest, err);
        if (r < 0)
                return r;
        return json_object_set_new(import->got, name, descriptor_write(&descriptor)) < 0 ? err_nomem(err) : 0;
}

/* Through links, as far as they lead. */
static const char *follow(const json_t *links, const char *name)
{
        const char *to;

        for (int n = 0; n < LINKS_MAX && (to = json_string_value(json_object_get(links, name))); n++)
                name = to;
        return name;
}

static int found_entry(const struct docker_import *import, const json_t *links, const json_t *name, struct descriptor *descriptor, struct err *err)
{
        const json_t *entry = json_is_string(name) ? json_object_get(import->got, follow(links, json_string_value(name))) : NULL;

        return entry ? descriptor_parse(entry, descriptor, err)
                     : err_set(err, -ENOENT, "'%s', which its manifest.json names, is missing", json_is_string(name) ? json_string_value(name) : "?");
}

static int name_manifest(struct image_store *store, const struct descriptor *config, json_t *layers, const char *full, struct err *err)
{
        struct descriptor descriptor = { .media_type = MEDIA_MANIFEST };
        json_t *config_json = descriptor_write(config);
        _cleanup_json_ json_t *json = config_json ? json_pack("{s:i, s:s, s:o, s:O}", "schemaVersion", 2, "mediaType", MEDIA_MANIFEST, "config",
                                                              config_json, "layers", layers)
                                                  : NULL;
        int r = json ? store_put_json(store, json, &descriptor, err) : err_nomem(err);

        return r < 0 ? r : store_name(store, full, &descriptor, err);
}

static int import_docker(struct image_store *store, const struct source *source, const struct overview *overview, const char *name, char *full,
                         struct err *err)
{
        const json_t *image = json_array_get(overview->docker, 0), *layers = json_object_get(image, "Layers"), *layer;
        _cleanup_json_ json_t *wanted = json_object(), *got = json_object(), *descriptors = json_array();
        struct docker_import import = { store, wanted, got };
        struct descriptor descriptor;
        size_t i;
        int r;

        if (!wanted || !got || !descriptors)
                return err_nomem(err);
        if (json_array_size(overview->docker) != 1)
                return err_set(err, -ENOTSUP, "'%s' has %zu images; one is taken", source->path, json_array_size(overview->docker));
        if (!json_is_array(layers) || json_array_size(layers) > MEDIA_LAYERS_MAX || !json_is_string(json_object_get(image, "Config")))
                return err_set(err, -EBADMSG, "'%s': manifest.json has no Config or no Layers", source->path);
        json_object_set_new(wanted, json_string_value(json_object_get(image, "Config")), json_true());
        json_array_foreach(layers, i, layer)
                if (json_is_string(layer))
                        json_object_set_new(wanted, follow(overview->links, json_string_value(layer)), json_true());
        r = each_entry(source, take_named, &import, err);
        json_array_foreach(layers, i, layer) {
                if (!r)
                        r = found_entry(&import, overview->links, layer, &descriptor, err);
                if (!r)
                        r = layer_type(store, &descriptor, err);
                if (!r && json_array_append_new(descriptors, descriptor_write(&descriptor)) < 0)
                        r = err_nomem(err);
        }
        if (!r)
                r = found_entry(&import, overview->links, json_object_get(image, "Config"), &descriptor, err);
        if (r < 0)
                return err_wrap(err, r, "'%s'", source->path);
        strcpy(descriptor.media_type, MEDIA_CONFIG);
        r = choose_name(name, json_string_value(json_array_get(json_object_get(image, "RepoTags"), 0)), source->path, full, err);
        return r ? r : name_manifest(store, &descriptor, descriptors, full, err);
}

/* ---- root file systems ---- */

/* The plain tar's digest of a layer in the store. */
static int find_diff_id(struct image_store *store, const struct descriptor *layer, struct digest *diff_id, struct err *err)
{
        _cleanup_close_ int fd = store_blob(store, layer, err);
        struct layer_stream *stream = NULL;
        int compression = layer_compression_of(layer->media_type, err), r;
        const void *bytes;
        ssize_t n;

        if (fd < 0 || compression < 0)
                return fd < 0 ? fd : compression;
        r = layer_stream_open(fd, (enum layer_compression)compression, NULL, &stream, err);
        if (r < 0)
                return r;
        while ((n = layer_stream_read(stream, &bytes, err)) > 0)
                ;
        if (!n)
                layer_stream_digest(stream, diff_id);
        layer_stream_close(stream);
        return (int)n;
}

static int name_layer(struct image_store *store, struct descriptor *layer, const char *path, const char *name, char *full, struct err *err)
{
        struct descriptor config = { .media_type = MEDIA_CONFIG };
        _cleanup_json_ json_t *json = NULL, *layers = NULL;
        struct platform platform;
        struct digest diff_id;
        json_t *entry;
        int r = layer_type(store, layer, err);

        if (!r)
                r = find_diff_id(store, layer, &diff_id, err);
        if (r < 0)
                return err_wrap(err, r, "'%s'", path);
        platform_host(&platform);
        json = json_pack("{s:s, s:s, s:{}, s:{s:s, s:[s]}}", "architecture", platform.architecture, "os", platform.os, "config", "rootfs", "type",
                         "layers", "diff_ids", diff_id.text);
        entry = descriptor_write(layer);
        layers = entry ? json_pack("[o]", entry) : NULL;
        if (!json || !layers)
                return err_nomem(err);
        r = store_put_json(store, json, &config, err);
        if (!r)
                r = choose_name(name, NULL, path, full, err);
        return r ? r : name_manifest(store, &config, layers, full, err);
}

static int import_tar(struct image_store *store, const struct source *source, const char *name, char *full, struct err *err)
{
        _cleanup_ingest_ struct ingest ingest = INGEST_INIT;
        struct descriptor layer = { .media_type = MEDIA_LAYER };
        int r = ingest_begin(store, NULL, &ingest, err);

        if (!r)
                r = ingest_file(&ingest, source->fd, err);
        layer.size_bytes = ingest.have_bytes;
        if (!r)
                r = ingest_end(&ingest, &layer.digest, err);
        return r < 0 ? err_wrap(err, r, "'%s'", source->path) : name_layer(store, &layer, source->path, name, full, err);
}

static la_ssize_t give_ingest(struct archive *archive, void *ctx, const void *bytes, size_t size_bytes)
{
        if (ingest_add(ctx, bytes, size_bytes, NULL) < 0) {
                archive_set_error(archive, errno ? errno : EIO, "cannot write to the store");
                return -1;
        }
        return (la_ssize_t)size_bytes;
}

static int write_tree(struct archive *disk, struct archive *tar, const char *path, struct err *err)
{
        size_t skip = strlen(path);
        struct archive_entry *entry = archive_entry_new();
        int status = ARCHIVE_OK, r = entry ? 0 : err_nomem(err);

        while (!r && (status = archive_read_next_header2(disk, entry)) == ARCHIVE_OK) {
                const char *full = archive_entry_pathname(entry), *below = full + skip;
                uint8_t buffer[64 << 10];
                ssize_t n;
                int fd;

                archive_read_disk_descend(disk);
                while (*below == '/')
                        below++;
                fd = archive_entry_filetype(entry) == AE_IFREG && archive_entry_size(entry) ? open(full, O_RDONLY | O_NOFOLLOW | O_CLOEXEC) : -1;
                if (fd < 0 && archive_entry_filetype(entry) == AE_IFREG && archive_entry_size(entry)) {
                        r = err_errno(err, -errno, "cannot open '%s'", full);
                        break;
                }
                archive_entry_set_uname(entry, NULL);
                archive_entry_set_gname(entry, NULL);
                archive_entry_set_pathname(entry, *below ? below : "./");
                if (archive_write_header(tar, entry) != ARCHIVE_OK)
                        r = err_set(err, -EIO, "cannot put '%s' into the layer: %s", full, archive_error_string(tar));
                while (!r && fd >= 0 && (n = read(fd, buffer, sizeof(buffer))) > 0)
                        if (archive_write_data(tar, buffer, (size_t)n) < 0)
                                r = err_set(err, -EIO, "cannot put '%s' into the layer: %s", full, archive_error_string(tar));
                closep(&fd);
        }
        archive_entry_free(entry);
        return r || status == ARCHIVE_EOF ? r : err_set(err, -EIO, "cannot read '%s': %s", path, archive_error_string(disk));
}

static int import_directory(struct image_store *store, const char *path, const char *name, char *full, struct err *err)
{
        struct archive *disk = archive_read_disk_new(), *tar = archive_write_new();
        _cleanup_ingest_ struct ingest ingest = INGEST_INIT;
        struct descriptor layer = { .media_type = MEDIA_LAYER };
        int r = disk && tar ? ingest_begin(store, NULL, &ingest, err) : err_nomem(err);

        if (!r && (archive_write_set_format_pax_restricted(tar) != ARCHIVE_OK ||
                   archive_write_open(tar, &ingest, NULL, give_ingest, NULL) != ARCHIVE_OK))
                r = err_nomem(err);
        if (!r && (archive_read_disk_set_symlink_physical(disk) != ARCHIVE_OK ||
                   archive_read_disk_set_behavior(disk, ARCHIVE_READDISK_NO_TRAVERSE_MOUNTS) != ARCHIVE_OK || archive_read_disk_open(disk, path) != ARCHIVE_OK))
                r = err_set(err, -EIO, "cannot open '%s': %s", path, archive_error_string(disk));
        if (!r)
                r = write_tree(disk, tar, path, err);
        if (!r && archive_write_close(tar) != ARCHIVE_OK)
                r = err_set(err, -EIO, "cannot write the layer: %s", archive_error_string(tar));
        archive_read_free(disk);
        archive_write_free(tar);
        layer.size_bytes = ingest.have_bytes;
        if (!r)
                r = ingest_end(&ingest, &layer.digest, err);
        return r < 0 ? r : name_layer(store, &layer, path, name, full, err);
}

/* ---- whatever it is ---- */

static int import_file(struct image_store *store, const char *path, int format, const char *name, char *full, struct err *err)
{
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        _cleanup_json_ json_t *links = json_object(), *index = NULL, *docker = NULL;
        struct source source = { .fd = fd, .path = path };
        struct overview overview = { .links = links };
        struct blob_import blobs = { store };
        int r;

        if (fd < 0)
                return err_errno(err, -errno, "cannot open '%s'", path);
        if (!links)
                return err_nomem(err);
        r = format == IMAGE_TAR ? 0 : each_entry(&source, look, &overview, err);
        index = overview.index;
        docker = overview.docker;
        if (r < 0)
                return r;
        if (format < 0)
                format = docker ? IMAGE_DOCKER_ARCHIVE : index && overview.layout ? IMAGE_OCI_ARCHIVE : IMAGE_TAR;
        if (format == IMAGE_TAR)
                return import_tar(store, &source, name, full, err);
        if (format == IMAGE_DOCKER_ARCHIVE && docker)
                return import_docker(store, &source, &overview, name, full, err);
        if (format != IMAGE_OCI_ARCHIVE || !index)
                return err_set(err, -EBADMSG, "'%s' is no %s", path, image_format_names[format]);
        r = each_entry(&source, take_blob, &blobs, err);
        return r < 0 ? r : import_layout(store, path, index, name, full, err);
}

int image_import(struct image_store *store, const char *path, int format, const char *name, char *full, struct err *err)
{
        char layout[PATH_MAX];
        struct stat st;

        if (stat(path, &st) < 0)
                return err_errno(err, -errno, "cannot open '%s'", path);
        if (snprintf(layout, sizeof(layout), "%s/oci-layout", path) >= (int)sizeof(layout))
                return err_set(err, -ENAMETOOLONG, "the path '%.100s…' is too long", path);
        if (S_ISDIR(st.st_mode) && format < 0)
                format = access(layout, F_OK) == 0 ? IMAGE_OCI_DIRECTORY : IMAGE_DIRECTORY;
        if (S_ISDIR(st.st_mode) != (format == IMAGE_OCI_DIRECTORY || format == IMAGE_DIRECTORY))
                return err_set(err, -EINVAL, "'%s' is %s, so it is no %s", path, S_ISDIR(st.st_mode) ? "a directory" : "no directory",
                               image_format_names[format]);
        if (format == IMAGE_OCI_DIRECTORY)
                return import_oci_directory(store, path, name, full, err);
        return format == IMAGE_DIRECTORY ? import_directory(store, path, name, full, err) : import_file(store, path, format, name, full, err);
}
