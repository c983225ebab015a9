#include "image/store.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/text.h"

#define REF_NAME "org.opencontainers.image.ref.name"
#define NAMES_MAX 10000u

struct image_store {
        char path[PATH_MAX];
        int fd, lock_fd;
};

#define BLOB_PATH_MAX (6 + DIGEST_TEXT_MAX)

/* "blobs/sha256/HEX" */
static const char *blob_path(const struct digest *digest, char path[BLOB_PATH_MAX])
{
        snprintf(path, BLOB_PATH_MAX, "blobs/%s", digest->text);
        *strchr(path, ':') = '/';
        return path;
}

/* ---- opening ---- */

static int default_path(char path[PATH_MAX], struct err *err)
{
        const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
        int n;

        if (!geteuid())
                n = snprintf(path, PATH_MAX, "/var/lib/virta/images");
        else if (data && data[0] == '/')
                n = snprintf(path, PATH_MAX, "%s/virta/images", data);
        else if (home && home[0] == '/')
                n = snprintf(path, PATH_MAX, "%s/.local/share/virta/images", home);
        else
                return err_set(err, -ENOENT, "neither XDG_DATA_HOME nor HOME says where images are kept; name a place with --store");
        return n < PATH_MAX ? 0 : err_set(err, -ENAMETOOLONG, "the path of the images is too long");
}

static int make_directories(char *path, struct err *err)
{
        for (char *slash = path; slash; *slash = '/') {
                slash = strchr(slash + 1, '/');
                if (slash)
                        *slash = 0;
                if (mkdir(path, 0755) < 0 && errno != EEXIST)
                        return err_errno(err, -errno, "cannot make '%s'", path);
                if (!slash)
                        break;
        }
        return 0;
}

/* file.new, then file: whole, or as it was. */
static int replace_file(int dir_fd, const char *file, const char *text, size_t length, struct err *err)
{
        char temporary[64];
        int r = 0;

        snprintf(temporary, sizeof(temporary), "%s.new", file);
        _cleanup_close_ int fd = openat(dir_fd, temporary, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
        if (fd < 0)
                return err_errno(err, -errno, "cannot write '%s'", file);
        for (size_t done = 0; !r && done < length;) {
                ssize_t n = write(fd, text + done, length - done);

                if (n >= 0)
                        done += (size_t)n;
                else if (errno != EINTR)
                        r = err_errno(err, -errno, "cannot write '%s'", file);
        }
        if (!r && (fsync(fd) < 0 || renameat(dir_fd, temporary, dir_fd, file) < 0 || fsync(dir_fd) < 0))
                r = err_errno(err, -errno, "cannot write '%s'", file);
        if (r < 0)
                (void)unlinkat(dir_fd, temporary, 0);
        return r;
}

static int flock_waiting(int fd, int how)
{
        int r;

        do
                r = flock(fd, how);
        while (r < 0 && errno == EINTR);
        return r < 0 ? -errno : 0;
}

/* The files a layout has from the beginning. */
static int lay_out(const struct image_store *store, struct err *err)
{
        static const char layout[] = "{\"imageLayoutVersion\":\"1.0.0\"}\n", index[] = "{\"schemaVersion\":2,\"manifests\":[]}\n";
        static const char *const directories[] = { "blobs", "blobs/sha256", "blobs/sha512", "ingest", "layers", "leases" };
        _cleanup_close_ int fd = -1;

        for (size_t i = 0; i < ARRAY_SIZE(directories); i++)
                if (mkdirat(store->fd, directories[i], i >= 4 ? 0700 : 0755) < 0 && errno != EEXIST)
                        return err_errno(err, -errno, "cannot make '%s/%s'", store->path, directories[i]);
        fd = openat(store->fd, "index.lock", O_CREAT | O_RDWR | O_CLOEXEC, 0644);
        if (fd < 0 || flock_waiting(fd, LOCK_EX) < 0)
                return err_errno(err, -errno, "cannot lock '%s/index.lock'", store->path);
        if (faccessat(store->fd, "oci-layout", F_OK, 0) == 0 && faccessat(store->fd, "index.json", F_OK, 0) == 0)
                return 0;
        if (faccessat(store->fd, "index.json", F_OK, 0) < 0) {
                int r = replace_file(store->fd, "index.json", index, sizeof(index) - 1, err);

                if (r < 0)
                        return r;
        }
        return replace_file(store->fd, "oci-layout", layout, sizeof(layout) - 1, err);
}

int image_store_open(const char *path, struct image_store **store, struct err *err)
{
        struct image_store *made = calloc(1, sizeof(*made));
        int r = 0;

        if (!made)
                return err_nomem(err);
        made->fd = made->lock_fd = -1;
        if (!path)
                r = default_path(made->path, err);
        else if (strlen(path) < sizeof(made->path))
                strcpy(made->path, path);
        else
                r = err_set(err, -ENAMETOOLONG, "the path of the images is too long");
        if (!r)
                r = make_directories(made->path, err);
        if (!r) {
                made->fd = open(made->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
                if (made->fd < 0)
                        r = err_errno(err, -errno, "cannot open '%s'", made->path);
        }
        if (!r) {
                made->lock_fd = openat(made->fd, "lock", O_CREAT | O_RDWR | O_CLOEXEC, 0644);
                if (made->lock_fd < 0 || flock_waiting(made->lock_fd, LOCK_SH) < 0)
                        r = err_errno(err, -errno, "cannot lock '%s/lock'", made->path);
        }
        if (!r)
                r = lay_out(made, err);
        if (r < 0)
                image_store_close(made);
        else
                *store = made;
        return r;
}

void image_store_close(struct image_store *store)
{
        if (!store)
                return;
        closep(&store->lock_fd);
        closep(&store->fd);
        free(store);
}

void image_store_closep(struct image_store **store)
{
        image_store_close(*store);
}

int image_store_fd(const struct image_store *store)
{
        return store->fd;
}

const char *image_store_path(const struct image_store *store)
{
        return store->path;
}

/* ---- documents ---- */

/* All of a file of at most max_bytes, ended with a 0 that does not count; the caller's. */
static int read_whole(int fd, size_t max_bytes, char **text, size_t *length, struct err *err)
{
        struct stat st;
        ssize_t n;

        if (fstat(fd, &st) < 0)
                return -errno;
        if ((uint64_t)st.st_size > max_bytes)
                return err_set(err, -EFBIG, "it is larger than %zu MiB", max_bytes >> 20);
        *text = malloc((size_t)st.st_size + 2);
        if (!*text)
                return err_nomem(err);
        n = text_read(fd, *text, (size_t)st.st_size + 2);
        if (n != st.st_size) {
                free(steal_ptr(*text));
                return err_set(err, n < 0 ? (int)n : -EIO, "it cannot be read");
        }
        *length = (size_t)n;
        return 0;
}

int store_document(const struct image_store *store, const struct descriptor *descriptor, json_t **json, struct err *err)
{
        _cleanup_hasher_ struct hasher hasher = { 0 };
        _cleanup_close_ int fd = store_blob(store, descriptor, err);
        _cleanup_free_ char *text = NULL;
        struct digest is = { 0 };
        size_t length;
        int r;

        if (fd < 0)
                return fd;
        r = read_whole(fd, MEDIA_DOCUMENT_MAX, &text, &length, err);
        if (!r)
                r = hasher_begin(&hasher, &descriptor->digest, err);
        if (r < 0)
                return err_wrap(err, r, "'%s'", descriptor->digest.text);
        hasher_add(&hasher, text, length);
        hasher_end(&hasher, &is);
        if (!digest_equal(&is, &descriptor->digest))
                return err_set(err, -EBADMSG, "what is stored as %s is damaged: it is %s", descriptor->digest.text, is.text);
        r = json_parse(text, length, json, err);
        return r < 0 ? err_wrap(err, r, "'%s'", descriptor->digest.text) : 0;
}

bool store_has(const struct image_store *store, const struct descriptor *descriptor)
{
        char path[BLOB_PATH_MAX];
        struct stat st;

        return fstatat(store->fd, blob_path(&descriptor->digest, path), &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode) &&
               (uint64_t)st.st_size == descriptor->size_bytes;
}

int store_blob(const struct image_store *store, const struct descriptor *descriptor, struct err *err)
{
        char path[BLOB_PATH_MAX];
        _cleanup_close_ int fd = openat(store->fd, blob_path(&descriptor->digest, path), O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        struct stat st;

        if (fd < 0)
                return errno == ENOENT ? err_set(err, -ENOENT, "%s is not in the store", descriptor->digest.text)
                                       : err_errno(err, -errno, "cannot open '%s/%s'", store->path, path);
        if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size != descriptor->size_bytes)
                return err_set(err, -EBADMSG, "%s is stored with another size than it should have", descriptor->digest.text);
        return steal_fd(&fd);
}

/* ---- names ---- */

static int read_index(const struct image_store *store, json_t **json, struct err *err)
{
        _cleanup_close_ int fd = openat(store->fd, "index.json", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        _cleanup_free_ char *text = NULL;
        size_t length;
        int r;

        if (fd < 0)
                return err_errno(err, -errno, "cannot open '%s/index.json'", store->path);
        r = read_whole(fd, JSON_TEXT_MAX, &text, &length, err);
        if (!r)
                r = json_parse(text, length, json, err);
        if (r < 0)
                return err_wrap(err, r, "'%s/index.json'", store->path);
        if (!json_is_array(json_object_get(*json, "manifests")) || json_array_size(json_object_get(*json, "manifests")) > NAMES_MAX) {
                json_decref(*json);
                return err_set(err, -EBADMSG, "'%s/index.json' has no manifests, or more than %u", store->path, NAMES_MAX);
        }
        return 0;
}

static const char *name_of(const json_t *entry)
{
        const char *name = json_string_value(json_object_get(json_object_get(entry, "annotations"), REF_NAME));

        return name ? name : "";
}

static int compare_entries(const void *a, const void *b)
{
        return strcmp(name_of(*(json_t *const *)a), name_of(*(json_t *const *)b));
}

int store_each(const struct image_store *store, int (*fn)(const char *name, const struct descriptor *descriptor, void *ctx, struct err *err), void *ctx,
               struct err *err)
{
        _cleanup_json_ json_t *json = NULL;
        _cleanup_free_ json_t **entries = NULL;
        json_t *manifests, *entry;
        struct descriptor descriptor;
        size_t i;
        int r = read_index(store, &json, err);

        if (r < 0)
                return r;
        manifests = json_object_get(json, "manifests");
        entries = calloc(json_array_size(manifests) + 1, sizeof(*entries));
        if (!entries)
                return err_nomem(err);
        json_array_foreach(manifests, i, entry)
                entries[i] = entry;
        qsort(entries, json_array_size(manifests), sizeof(*entries), compare_entries);
        for (i = 0; !r && i < json_array_size(manifests); i++) {
                r = descriptor_parse(entries[i], &descriptor, err);
                r = r < 0 ? err_wrap(err, r, "'%s/index.json'", store->path) : fn(name_of(entries[i]), &descriptor, ctx, err);
        }
        return r;
}

struct search {
        const char *full, *end; /* the name; "/" and it, for a short one */
        const struct image_name *name;
        struct descriptor found;
        char found_name[NAME_TEXT_MAX];
        unsigned count;
        bool exact;
};

static bool ends_with(const char *text, const char *end)
{
        size_t length = strlen(text), end_length = strlen(end);

        return length > end_length && !strcmp(text + (length - end_length), end);
}

static int search_one(const char *name, const struct descriptor *descriptor, void *ctx, struct err *err)
{
        struct search *search = ctx;
        const struct digest *digest = &search->name->digest;
        bool exact = !strcmp(name, search->full);

        if (digest->text[0] && !digest_equal(digest, &descriptor->digest))
                return 0;
        if (search->exact || (!exact && (search->name->host[0] || !ends_with(name, search->end))))
                return 0;
        search->exact = exact;
        /* One image with two names is one. */
        if (exact || !search->count || !digest_equal(&search->found.digest, &descriptor->digest))
                search->count = exact ? 1 : search->count + 1;
        search->found = *descriptor;
        (void)!text_copy(search->found_name, sizeof(search->found_name), name);
        return 0;
}

int store_find(const struct image_store *store, const struct image_name *name, struct descriptor *descriptor, char *full, struct err *err)
{
        char text[NAME_TEXT_MAX + 1] = "/";
        struct search search = { .full = image_name_format(name, text + 1), .end = text, .name = name };
        int r = store_each(store, search_one, &search, err);

        if (r < 0)
                return r;
        if (!search.count)
                return err_set(err, -ENOENT, "there is no image '%s' here", text + 1);
        if (search.count > 1)
                return err_set(err, -EEXIST, "'%s' is short for %u images here; give the whole name", text + 1, search.count);
        *descriptor = search.found;
        if (full)
                strcpy(full, search.found_name);
        return 0;
}

/* The index without the name, and with the new entry when there is one, under its lock. */
static int change_index(struct image_store *store, const char *name, json_t *entry, struct err *err)
{
        _cleanup_close_ int lock = openat(store->fd, "index.lock", O_RDWR | O_CLOEXEC);
        _cleanup_json_ _unused_ json_t *owned = entry;
        _cleanup_json_ json_t *json = NULL;
        _cleanup_free_ char *text = NULL;
        json_t *manifests, *old;
        bool found = false;
        size_t i;
        int r;

        if (lock < 0 || flock_waiting(lock, LOCK_EX) < 0)
                return err_errno(err, -errno, "cannot lock '%s/index.lock'", store->path);
        r = read_index(store, &json, err);
        if (r < 0)
                return r;
        manifests = json_object_get(json, "manifests");
        json_array_foreach(manifests, i, old) {
                if (strcmp(name_of(old), name) != 0)
                        continue;
                json_array_remove(manifests, i--);
                found = true;
        }
        if (!entry && !found)
                return err_set(err, -ENOENT, "there is no image '%s' here", name);
        if (entry && json_array_append(manifests, entry) < 0)
                return err_nomem(err);
        text = json_dumps(json, JSON_INDENT(1));
        return text ? replace_file(store->fd, "index.json", text, strlen(text), err) : err_nomem(err);
}

int store_name(struct image_store *store, const char *name, const struct descriptor *descriptor, struct err *err)
{
        json_t *entry = descriptor_write(descriptor);

        if (!entry || json_object_set_new(entry, "annotations", json_pack("{s:s}", REF_NAME, name)) < 0) {
                json_decref(entry);
                return err_nomem(err);
        }
        return change_index(store, name, entry, err);
}

int store_unname(struct image_store *store, const char *name, struct err *err)
{
        return change_index(store, name, NULL, err);
}

/* ---- what comes in ---- */

static int hash_present(struct ingest *ingest, struct err *err)
{
        uint8_t buffer[64 << 10];
        ssize_t n;

        while ((n = pread(ingest->fd, buffer, sizeof(buffer), (off_t)ingest->have_bytes)) > 0) {
                hasher_add(&ingest->hasher, buffer, (size_t)n);
                ingest->have_bytes += (uint64_t)n;
        }
        return n < 0 ? err_errno(err, -errno, "cannot read what was fetched before") : 0;
}

int ingest_restart(struct ingest *ingest, struct err *err)
{
        ingest->have_bytes = 0;
        if (ftruncate(ingest->fd, 0) < 0)
                return err_errno(err, -errno, "cannot begin again with what is fetched");
        return hasher_begin(&ingest->hasher, ingest->want.digest.text[0] ? &ingest->want.digest : NULL, err);
}

/* Opens the file and locks it; 1: meanwhile it came into the store. */
static int open_ingest(struct ingest *ingest, struct err *err)
{
        struct image_store *store = ingest->store;
        struct stat st;

        for (;;) {
                if (ingest->want.digest.text[0] && store_has(store, &ingest->want))
                        return 1;
                ingest->fd = openat(store->fd, ingest->name, O_CREAT | O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0644);
                if (ingest->fd < 0 || flock_waiting(ingest->fd, LOCK_EX) < 0)
                        return err_errno(err, -errno, "cannot make '%s/%s'", store->path, ingest->name);
                /* Renamed or taken away by whom we waited for. */
                if (fstat(ingest->fd, &st) == 0 && st.st_nlink && (!ingest->want.digest.text[0] || !store_has(store, &ingest->want)))
                        return 0;
                closep(&ingest->fd);
                ingest->fd = -1;
        }
}

int ingest_begin(struct image_store *store, const struct descriptor *want, struct ingest *ingest, struct err *err)
{
        static _Atomic unsigned numbers;
        int r;

        *ingest = INGEST_INIT;
        ingest->store = store;
        if (want) {
                ingest->want = *want;
                snprintf(ingest->name, sizeof(ingest->name), "ingest/%s", want->digest.text);
                *strchr(ingest->name, ':') = '-';
        } else {
                snprintf(ingest->name, sizeof(ingest->name), "ingest/new-%d-%u", (int)getpid(), numbers++);
        }
        r = open_ingest(ingest, err);
        if (r)
                return r;
        if (!want)
                return ingest_restart(ingest, err);
        r = hasher_begin(&ingest->hasher, &want->digest, err);
        if (!r)
                r = hash_present(ingest, err);
        if (!r && ingest->have_bytes > want->size_bytes)
                r = ingest_restart(ingest, err);
        if (r < 0)
                ingest_done(ingest);
        return r;
}

int ingest_add(struct ingest *ingest, const void *bytes, size_t size_bytes, struct err *err)
{
        const char *at = bytes;

        if (ingest->want.digest.text[0] && size_bytes > ingest->want.size_bytes - ingest->have_bytes)
                return err_set(err, -EFBIG, "more comes of %s than the %llu bytes it has", ingest->want.digest.text,
                               (unsigned long long)ingest->want.size_bytes);
        hasher_add(&ingest->hasher, bytes, size_bytes);
        while (size_bytes) {
                ssize_t n = pwrite(ingest->fd, at, size_bytes, (off_t)ingest->have_bytes);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return err_errno(err, -errno, "cannot write to '%s/%s'", ingest->store->path, ingest->name);
                ingest->have_bytes += (uint64_t)n;
                at += n;
                size_bytes -= (size_t)n;
        }
        return 0;
}

int ingest_end(struct ingest *ingest, struct digest *digest, struct err *err)
{
        struct image_store *store = ingest->store;
        char path[BLOB_PATH_MAX];
        struct digest is = { 0 };

        hasher_end(&ingest->hasher, &is);
        if (ingest->want.digest.text[0] && (ingest->have_bytes != ingest->want.size_bytes || !digest_equal(&is, &ingest->want.digest))) {
                (void)unlinkat(store->fd, ingest->name, 0);
                return err_set(err, -EBADMSG, "what came is %s (%llu bytes), not %s (%llu bytes)", is.text, (unsigned long long)ingest->have_bytes,
                               ingest->want.digest.text, (unsigned long long)ingest->want.size_bytes);
        }
        if (fsync(ingest->fd) < 0 || renameat(store->fd, ingest->name, store->fd, blob_path(&is, path)) < 0)
                return err_errno(err, -errno, "cannot keep '%s/%s'", store->path, ingest->name);
        ingest->name[0] = 0;
        if (digest)
                *digest = is;
        return 0;
}

void ingest_done(struct ingest *ingest)
{
        if (ingest->fd >= 0 && ingest->name[0] && !ingest->want.digest.text[0])
                (void)unlinkat(ingest->store->fd, ingest->name, 0);
        closep(&ingest->fd);
        hasher_done(&ingest->hasher);
        *ingest = INGEST_INIT;
}

int store_put(struct image_store *store, const void *bytes, size_t size_bytes, struct descriptor *descriptor, struct err *err)
{
        _cleanup_ingest_ struct ingest ingest = INGEST_INIT;
        int r = digest_compute(bytes, size_bytes, &descriptor->digest, err);

        descriptor->size_bytes = size_bytes;
        if (!r)
                r = ingest_begin(store, descriptor, &ingest, err);
        if (r)
                return r > 0 ? 0 : r;
        r = ingest_restart(&ingest, err);
        if (!r)
                r = ingest_add(&ingest, bytes, size_bytes, err);
        return r < 0 ? r : ingest_end(&ingest, NULL, err);
}

int store_put_json(struct image_store *store, const json_t *json, struct descriptor *descriptor, struct err *err)
{
        _cleanup_free_ char *text = json_dumps(json, JSON_COMPACT);

        return text ? store_put(store, text, strlen(text), descriptor, err) : err_nomem(err);
}

/* ---- leases ---- */

int store_lease(struct image_store *store, const char *name, const struct digest *layers, size_t count, struct err *err)
{
        _cleanup_close_ int fd = openat(store->fd, "leases", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        _cleanup_free_ char *text = calloc(count + 1, DIGEST_TEXT_MAX + 1);
        char *end = text;

        if (fd < 0)
                return err_errno(err, -errno, "cannot open '%s/leases'", store->path);
        if (!text)
                return err_nomem(err);
        for (size_t i = 0; i < count; i++)
                end += sprintf(end, "%s\n", layers[i].text);
        return replace_file(fd, name, text, (size_t)(end - text), err);
}

void store_release(struct image_store *store, const char *name)
{
        char path[NAME_MAX + 8];

        if (snprintf(path, sizeof(path), "leases/%s", name) < (int)sizeof(path))
                (void)unlinkat(store->fd, path, 0);
}

/* ---- garbage ---- */

/* Digests that are reached, of blobs and of layers; the keys of an object. */
struct marks {
        const struct image_store *store;
        json_t *blobs, *layers;
};

static int mark(json_t *set, const char *digest, struct err *err)
{
        return json_object_set_new(set, digest, json_true()) < 0 ? err_nomem(err) : 0;
}

static int mark_manifest(struct marks *marks, const json_t *json, struct err *err)
{
        _cleanup_manifest_ struct manifest manifest = { 0 };
        _cleanup_json_ json_t *config = NULL;
        int r = manifest_read(json, &manifest, err);
        const json_t *entry;
        size_t i;

        if (!r)
                r = mark(marks->blobs, manifest.config.digest.text, err);
        for (i = 0; !r && i < manifest.layer_count; i++)
                r = mark(marks->blobs, manifest.layers[i].digest.text, err);
        if (r < 0 || !store_has(marks->store, &manifest.config))
                return r;
        r = store_document(marks->store, &manifest.config, &config, err);
        if (r < 0)
                return r;
        json_array_foreach(json_object_get(json_object_get(config, "rootfs"), "diff_ids"), i, entry)
                if (!r && json_is_string(entry))
                        r = mark(marks->layers, json_string_value(entry), err);
        return r;
}

static int mark_one(const char *name, const struct descriptor *descriptor, void *ctx, struct err *err)
{
        _cleanup_json_ json_t *json = NULL;
        struct marks *marks = ctx;
        struct descriptor below;
        const json_t *entry;
        size_t i;
        int r = mark(marks->blobs, descriptor->digest.text, err);

        /* Of an index often only one platform's image is here. */
        if (r < 0 || !store_has(marks->store, descriptor) || json_object_get(marks->blobs, descriptor->digest.text) == NULL)
                return r;
        if (media_is_manifest(descriptor->media_type)) {
                r = store_document(marks->store, descriptor, &json, err);
                return r < 0 ? r : mark_manifest(marks, json, err);
        }
        if (!media_is_index(descriptor->media_type))
                return 0;
        r = store_document(marks->store, descriptor, &json, err);
        json_array_foreach(json_object_get(json, "manifests"), i, entry) {
                if (!r)
                        r = descriptor_parse(entry, &below, err);
                /* An index in an index is more than anybody makes. */
                if (!r && !media_is_index(below.media_type))
                        r = mark_one(name, &below, ctx, err);
        }
        return r;
}

static int each_entry(const struct image_store *store, const char *directory, int (*fn)(int dir_fd, const char *name, void *ctx, struct err *err), void *ctx,
                      struct err *err)
{
        int fd = openat(store->fd, directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), r = 0;
        DIR *dir = fd < 0 ? NULL : fdopendir(fd);
        struct dirent *entry;

        if (!dir) {
                closep(&fd);
                return err_errno(err, -errno, "cannot open '%s/%s'", store->path, directory);
        }
        while (!r && (entry = readdir(dir)))
                if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
                        r = fn(dirfd(dir), entry->d_name, ctx, err);
        closedir(dir);
        return r;
}

static int mark_lease(int dir_fd, const char *name, void *ctx, struct err *err)
{
        _cleanup_close_ int fd = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        struct marks *marks = ctx;
        _cleanup_free_ char *text = NULL;
        size_t length;
        int r = fd < 0 ? err_errno(err, -errno, "cannot open lease '%s'", name)
                       : read_whole(fd, MEDIA_LAYERS_MAX * (DIGEST_TEXT_MAX + 1), &text, &length, err);

        for (char *rest = text, *line; !r && rest && (line = strsep(&rest, "\n"));)
                if (line[0])
                        r = mark(marks->layers, line, err);
        return r;
}

struct sweep {
        struct marks marks;
        const char *kind; /* of the blobs of this folder */
        struct store_garbage *garbage;
};

static int sweep_blob(int dir_fd, const char *name, void *ctx, struct err *err)
{
        struct sweep *sweep = ctx;
        char digest[DIGEST_TEXT_MAX];
        struct stat st;

        if (snprintf(digest, sizeof(digest), "%s:%s", sweep->kind, name) < (int)sizeof(digest) && json_object_get(sweep->marks.blobs, digest))
                return 0;
        if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || unlinkat(dir_fd, name, 0) < 0)
                return err_errno(err, -errno, "cannot take blob %s away", name);
        sweep->garbage->blobs++;
        sweep->garbage->size_bytes += (uint64_t)st.st_blocks * 512;
        return 0;
}

static int sweep_layer(int dir_fd, const char *name, void *ctx, struct err *err)
{
        struct sweep *sweep = ctx;
        char digest[DIGEST_TEXT_MAX];
        int r;

        if (text_copy(digest, sizeof(digest), name) && strchr(digest, '-')) {
                *strchr(digest, '-') = ':';
                if (json_object_get(sweep->marks.layers, digest))
                        return 0;
        }
        r = store_remove_tree(dir_fd, name);
        if (r < 0)
                return err_errno(err, r, "cannot take layer %s away", name);
        sweep->garbage->layers++;
        return 0;
}

/* Nobody fetches: the lock is ours alone. */
static int sweep_ingest(int dir_fd, const char *name, void *ctx, struct err *err)
{
        (void)unlinkat(dir_fd, name, 0);
        return 0;
}

int store_collect(struct image_store *store, struct store_garbage *garbage, struct err *err)
{
        _cleanup_json_ json_t *blobs = json_object(), *layers = json_object();
        struct sweep sweep = { .marks = { store, blobs, layers }, .garbage = garbage };
        int r;

        *garbage = (struct store_garbage){ 0 };
        if (!blobs || !layers)
                return err_nomem(err);
        if (flock(store->lock_fd, LOCK_EX | LOCK_NB) < 0) {
                (void)flock_waiting(store->lock_fd, LOCK_SH); /* what is tried in vain may have let go of it: flock(2) */
                return err_set(err, -EBUSY, "somebody else uses the images at the moment; what is not needed stays for now");
        }
        r = store_each(store, mark_one, &sweep.marks, err);
        if (!r)
                r = each_entry(store, "leases", mark_lease, &sweep.marks, err);
        for (unsigned n = 0; !r && n < 2; n++) {
                sweep.kind = n ? "sha512" : "sha256";
                r = each_entry(store, n ? "blobs/sha512" : "blobs/sha256", sweep_blob, &sweep, err);
        }
        if (!r)
                r = each_entry(store, "ingest", sweep_ingest, &sweep, err);
        if (!r)
                r = each_entry(store, "layers", sweep_layer, &sweep, err);
        (void)flock_waiting(store->lock_fd, LOCK_SH);
        return r;
}

int store_remove_tree(int dir_fd, const char *name)
{
        int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), r = 0;
        struct dirent *entry;
        DIR *dir;

        /* A directory's mode may keep its own owner out. */
        if (fd < 0 && errno == EACCES && fchmodat(dir_fd, name, 0700, 0) == 0)
                fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        else if (fd >= 0 && geteuid())
                (void)fchmod(fd, 0700);
        dir = fd < 0 ? NULL : fdopendir(fd);
        if (!dir) {
                r = errno == ENOENT ? 0 : errno == ENOTDIR || errno == ELOOP ? (unlinkat(dir_fd, name, 0) < 0 ? -errno : 0) : -errno;
                closep(&fd);
                return r;
        }
        while (!r && (entry = readdir(dir))) {
                if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
                        continue;
                if (unlinkat(dirfd(dir), entry->d_name, 0) < 0)
                        r = errno == EISDIR ? store_remove_tree(dirfd(dir), entry->d_name) : -errno;
        }
        closedir(dir);
        return r ? r : unlinkat(dir_fd, name, AT_REMOVEDIR) < 0 ? -errno : 0;
}
