/*
 * What is given to a registry: contents whole in one request, then the manifest that names them.
 *
 * Source: distribution-spec "Push": POST for a place, PUT with the digest.
 */
#include <stdio.h>

#include "image/registry-http.h"

static int head(struct registry *registry, const char *url, struct err *err)
{
        _cleanup_request_ struct request q = REQUEST_INIT;
        int r;

        q.method = "HEAD";
        q.url = url;
        r = request_perform(registry, &q, err);
        return r == -ENOENT ? 0 : r < 0 ? r : 1;
}

/* Where the registry wants it; the location may be of another host, and have a query of its own. */
static int ask_place(struct registry *registry, const struct digest *digest, char url[URL_MAX], struct err *err)
{
        _cleanup_request_ struct request q = REQUEST_INIT;
        char path[URL_MAX];
        int r;

        snprintf(path, sizeof(path), "/v2/%s/blobs/uploads/", registry->path);
        q.method = "POST";
        q.url = path;
        r = request_perform(registry, &q, err);
        if (r < 0)
                return r;
        if (!q.location[0] || snprintf(url, URL_MAX, "%s%cdigest=%s", q.location, strchr(q.location, '?') ? '&' : '?', digest->text) >= URL_MAX)
                return err_set(err, -EBADMSG, "'%s' does not say where contents are to be sent", registry->host);
        return 0;
}

int registry_push_blob(struct registry *registry, const struct image_store *store, const struct descriptor *blob, struct err *err)
{
        _cleanup_request_ struct request q = REQUEST_INIT;
        _cleanup_close_ int fd = -1;
        char url[URL_MAX];
        int r;

        snprintf(url, sizeof(url), "/v2/%s/blobs/%s", registry->path, blob->digest.text);
        r = head(registry, url, err);
        if (r)
                return r < 0 ? err_wrap(err, r, "%s", blob->digest.text) : 1;
        fd = store_blob(store, blob, err);
        if (fd < 0)
                return fd;
        r = ask_place(registry, &blob->digest, url, err);
        if (r < 0)
                return err_wrap(err, r, "%s", blob->digest.text);
        q.method = "PUT";
        q.url = url;
        q.media_type = "application/octet-stream";
        q.body_fd = fd;
        q.body_bytes = blob->size_bytes;
        r = request_perform(registry, &q, err);
        return r < 0 ? err_wrap(err, r, "%s", blob->digest.text) : 0;
}

int registry_push_manifest(struct registry *registry, const char *reference, const char *media_type, const void *bytes, size_t size_bytes,
                           struct err *err)
{
        _cleanup_request_ struct request q = REQUEST_INIT;
        char url[URL_MAX];
        int r;

        snprintf(url, sizeof(url), "/v2/%s/manifests/%s", registry->path, reference);
        q.method = "PUT";
        q.url = url;
        q.media_type = media_type;
        q.body = bytes;
        q.body_bytes = size_bytes;
        r = request_perform(registry, &q, err);
        return r < 0 ? err_wrap(err, r, "image '%s' with '%s'", registry->path, reference) : 0;
}
