#include "image/registry-http.h"

#include <pthread.h>
#include <stdio.h>

#include "base/clock.h"

#define MANIFESTS MEDIA_INDEX ", " MEDIA_MANIFEST ", " MEDIA_DOCKER_INDEX ", " MEDIA_DOCKER_MANIFEST
#define AT_ONCE 4

/* ---- opening ---- */

static void start_curl(void)
{
        curl_global_init(CURL_GLOBAL_DEFAULT);
}

/* Where TLS is not asked for, whether it is there. */
static int find_scheme(struct registry *registry, struct err *err)
{
        _cleanup_request_ struct request q = REQUEST_INIT;
        CURLcode code;
        int r;

        q.url = "/v2/";
        r = request_prepare(registry, &q, err);
        if (r < 0)
                return r;
        code = curl_easy_perform(q.easy);
        registry->plain_http = code == CURLE_SSL_CONNECT_ERROR || code == CURLE_COULDNT_CONNECT || code == CURLE_RECV_ERROR || code == CURLE_GOT_NOTHING;
        return 0;
}

int registry_open(const char *host, const char *path, const struct registry_options *options, struct registry **registry, struct err *err)
{
        static pthread_once_t once = PTHREAD_ONCE_INIT;
        struct registry *made = calloc(1, sizeof(*made));
        int r = 0;

        if (!made)
                return err_nomem(err);
        pthread_once(&once, start_curl);
        snprintf(made->host, sizeof(made->host), "%s", host);
        snprintf(made->path, sizeof(made->path), "%s", path);
        made->options = *options;
        made->insecure = options->insecure || registry_config_insecure(options->config, host);
        if (made->insecure)
                r = find_scheme(made, err);
        if (r < 0)
                registry_close(made);
        else
                *registry = made;
        return r;
}

void registry_close(struct registry *registry)
{
        if (!registry)
                return;
        if (registry->authorization)
                memset(registry->authorization, 0, strlen(registry->authorization));
        free(registry->authorization);
        free(registry);
}

void registry_closep(struct registry **registry)
{
        registry_close(*registry);
}

/* ---- manifests ---- */

int registry_manifest(struct registry *registry, const char *reference, struct registry_document *document, struct err *err)
{
        _cleanup_request_ struct request q = REQUEST_INIT;
        struct bytes bytes = { .max = MEDIA_DOCUMENT_MAX };
        struct digest asked;
        char url[URL_MAX], *end;
        int r;

        snprintf(url, sizeof(url), "/v2/%s/manifests/%s", registry->path, reference);
        q.url = url;
        q.accept = MANIFESTS;
        q.take = bytes_take;
        q.again = bytes_forget;
        q.ctx = &bytes;
        r = request_perform(registry, &q, err);
        if (r < 0) {
                free(bytes.text);
                return r == -ENOENT ? err_set(err, -ENOENT, "'%s' has no image '%s' with '%s'", registry->host, registry->path, reference)
                                    : err_wrap(err, r, "image '%s'", registry->path);
        }
        *document = (struct registry_document){ .bytes = bytes.text, .size_bytes = bytes.length };
        /* Without its parameters. */
        snprintf(document->media_type, sizeof(document->media_type), "%s", q.media_type_got);
        end = document->media_type + strcspn(document->media_type, "; ");
        *end = 0;
        r = bytes.text ? digest_compute(bytes.text, bytes.length, &document->digest, err)
                       : err_set(err, -EBADMSG, "'%s' sends an empty manifest", registry->host);
        if (!r && digest_parse(reference, &asked, NULL) == 0 && !strncmp(asked.text, "sha256:", 7) && !digest_equal(&asked, &document->digest))
                r = err_set(err, -EBADMSG, "'%s' sends %s for %s", registry->host, document->digest.text, asked.text);
        if (r < 0)
                free(steal_ptr(document->bytes));
        return r;
}

/* ---- contents, a few at once ---- */

struct download {
        struct request request;
        struct ingest ingest;
        const struct descriptor *blob; /* NULL: free */
        char url[URL_MAX];
        unsigned tries;
        uint64_t not_before_ns;
        bool active, begun;
};

struct downloads {
        struct registry *registry;
        struct image_store *store;
        const struct descriptor *blobs;
        size_t count, next, running;
        CURLM *multi;
        struct download slot[AT_ONCE];
        uint64_t done_bytes, total_bytes;
};

/* A whole answer to the question for a part begins anew. */
static int take_blob(void *ctx, const void *bytes, size_t size_bytes, struct err *err)
{
        struct download *d = ctx;

        if (!d->begun && d->request.status == 200 && d->ingest.have_bytes) {
                int r = ingest_restart(&d->ingest, err);

                if (r < 0)
                        return r;
        }
        d->begun = true;
        return ingest_add(&d->ingest, bytes, size_bytes, err);
}

static int launch(struct downloads *all, struct download *d, struct err *err)
{
        int r;

        d->begun = false;
        d->request.from_byte = d->ingest.have_bytes;
        r = request_prepare(all->registry, &d->request, err);
        if (!r && curl_multi_add_handle(all->multi, d->request.easy) != CURLM_OK)
                r = err_nomem(err);
        d->active = !r;
        return r;
}

static void release(struct downloads *all, struct download *d)
{
        if (d->active)
                curl_multi_remove_handle(all->multi, d->request.easy);
        request_done(&d->request);
        ingest_done(&d->ingest);
        *d = (struct download){ .request = REQUEST_INIT, .ingest = INGEST_INIT };
}

static int finish(struct downloads *all, struct download *d, struct err *err)
{
        int r = ingest_end(&d->ingest, NULL, err);

        if (!r)
                all->done_bytes += d->blob->size_bytes;
        all->running--;
        release(all, d);
        return r;
}

static int begin(struct downloads *all, struct download *d, const struct descriptor *blob, struct err *err)
{
        int r = ingest_begin(all->store, blob, &d->ingest, err);

        if (r) { /* somebody else got it meanwhile */
                if (r > 0)
                        all->done_bytes += blob->size_bytes;
                return r < 0 ? r : 0;
        }
        d->blob = blob;
        all->running++;
        if (d->ingest.have_bytes == blob->size_bytes)
                return finish(all, d, err);
        snprintf(d->url, sizeof(d->url), "/v2/%s/blobs/%s", all->registry->path, blob->digest.text);
        d->request.url = d->url;
        d->request.take = take_blob;
        d->request.ctx = d;
        return launch(all, d, err);
}

static int fill(struct downloads *all, struct err *err)
{
        int r = 0;

        for (size_t i = 0; !r && i < AT_ONCE; i++) {
                struct download *d = &all->slot[i];

                while (!r && !d->blob && all->next < all->count) {
                        const struct descriptor *blob = &all->blobs[all->next++];

                        if (!store_has(all->store, blob))
                                r = begin(all, d, blob, err);
                }
                if (!r && d->blob && !d->active && monotonic_ns() >= d->not_before_ns)
                        r = launch(all, d, err);
        }
        return r;
}

/* One that ended: done, to be tried again, or the end of all. */
static int ended(struct downloads *all, struct download *d, CURLcode code, struct err *err)
{
        unsigned tries = all->registry->options.tries ? all->registry->options.tries : 5;
        uint64_t had_bytes = d->request.from_byte;
        struct err why = ERR_INIT;
        int r;

        curl_multi_remove_handle(all->multi, d->request.easy);
        d->active = false;
        r = request_judge(&d->request, code, &why);
        /* The end came where nothing was left, or more was asked for than there is: begin anew. */
        if (r < 0 && d->request.status == 416 && had_bytes) {
                r = ingest_restart(&d->ingest, err);
                return r < 0 ? r : launch(all, d, err);
        }
        if (!r && d->ingest.have_bytes < d->blob->size_bytes) {
                err_set(&why, -EIO, "'%s' sends %llu of the %llu bytes of %s", all->registry->host, (unsigned long long)d->ingest.have_bytes,
                        (unsigned long long)d->blob->size_bytes, d->blob->digest.text);
                r = REQUEST_LATER;
        }
        if (!r)
                return finish(all, d, err);
        if (r == REQUEST_AGAIN)
                return launch(all, d, err);
        /* Progress gives new patience. */
        if (d->ingest.have_bytes > had_bytes)
                d->tries = 0;
        if (r == REQUEST_LATER && ++d->tries < tries) {
                d->not_before_ns = monotonic_ns() + request_pause_ms(&d->request, d->tries) * UINT64_C(1000000);
                return 0;
        }
        if (err)
                *err = why;
        return err_wrap(err, r < 0 ? r : why.code, "%s", d->blob->digest.text);
}

static int step(struct downloads *all, const struct registry_progress *progress, struct err *err)
{
        uint64_t done_bytes = all->done_bytes;
        CURLMsg *message;
        int left, r = 0;

        if (curl_multi_perform(all->multi, &left) != CURLM_OK)
                return err_nomem(err);
        while (!r && (message = curl_multi_info_read(all->multi, &left))) {
                struct request *q;

                curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)&q);
                r = ended(all, container_of(q, struct download, request), message->data.result, err);
        }
        for (size_t i = 0; i < AT_ONCE; i++)
                done_bytes += all->slot[i].blob ? all->slot[i].ingest.have_bytes : 0;
        if (progress)
                progress->report(progress->ctx, done_bytes, all->total_bytes);
        if (!r && all->running)
                curl_multi_poll(all->multi, NULL, 0, 100, NULL);
        return r;
}

int registry_blobs(struct registry *registry, struct image_store *store, const struct descriptor *blobs, size_t count,
                   const struct registry_progress *progress, struct err *err)
{
        struct downloads all = { .registry = registry, .store = store, .blobs = blobs, .count = count, .multi = curl_multi_init() };
        int r = all.multi ? 0 : err_nomem(err);

        for (size_t i = 0; i < AT_ONCE; i++)
                all.slot[i] = (struct download){ .request = REQUEST_INIT, .ingest = INGEST_INIT };
        for (size_t i = 0; i < count; i++)
                all.total_bytes += store_has(store, &blobs[i]) ? 0 : blobs[i].size_bytes;
        while (!r) {
                r = fill(&all, err);
                if (r || !all.running)
                        break;
                r = step(&all, progress, err);
        }
        for (size_t i = 0; i < AT_ONCE; i++)
                release(&all, &all.slot[i]);
        curl_multi_cleanup(all.multi);
        return r;
}
