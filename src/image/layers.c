#include "image/layers.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <sys/stat.h>

#include "image/unpack.h"

#define AT_ONCE_MAX 8

struct job {
        struct unpack_process *process;
        size_t layer;
        char temporary[48]; /* below layers/ */
        int root_fd, blob_fd;
};

struct jobs {
        struct image_store *store;
        const struct manifest *manifest;
        const struct digest *diff_ids;
        int layers_fd;
        struct job job[AT_ONCE_MAX];
        size_t at_once, running, next;
        uint64_t done_bytes, total_bytes;
};

#define DIRECTORY_MAX (DIGEST_TEXT_MAX)

static const char *directory_of(const struct digest *diff_id, char name[DIRECTORY_MAX])
{
        strcpy(name, diff_id->text);
        *strchr(name, ':') = '-';
        return name;
}

const char *layers_opaque_attribute(void)
{
        return geteuid() ? "user.overlay.opaque" : "trusted.overlay.opaque";
}

const char *layer_path(const struct image_store *store, const struct digest *diff_id, char *text, size_t size_bytes)
{
        char name[DIRECTORY_MAX];

        snprintf(text, size_bytes, "%s/layers/%s", image_store_path(store), directory_of(diff_id, name));
        return text;
}

int layer_open(const struct image_store *store, const struct digest *diff_id, struct err *err)
{
        char name[DIRECTORY_MAX], path[DIRECTORY_MAX + 8];
        int fd;

        snprintf(path, sizeof(path), "layers/%s", directory_of(diff_id, name));
        fd = openat(image_store_fd(store), path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        return fd < 0 ? err_errno(err, -errno, "cannot open '%s/%s'", image_store_path(store), path) : fd;
}

static bool is_there(int layers_fd, const struct digest *diff_id)
{
        char name[DIRECTORY_MAX];

        return faccessat(layers_fd, directory_of(diff_id, name), F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* The same layer twice in an image is unpacked once. */
static bool is_repeated(const struct jobs *jobs, size_t layer)
{
        for (size_t i = 0; i < layer; i++)
                if (digest_equal(&jobs->diff_ids[i], &jobs->diff_ids[layer]))
                        return true;
        return false;
}

static void drop(struct jobs *jobs, struct job *job)
{
        unpack_abort(job->process);
        closep(&job->root_fd);
        closep(&job->blob_fd);
        if (job->temporary[0])
                (void)store_remove_tree(jobs->layers_fd, job->temporary);
        *job = (struct job){ .root_fd = -1, .blob_fd = -1 };
}

static int begin(struct jobs *jobs, struct job *job, size_t layer, struct err *err)
{
        const struct descriptor *descriptor = &jobs->manifest->layers[layer];
        struct unpack unpack = { .owners = !geteuid(), .opaque_attribute = layers_opaque_attribute() };
        int compression = layer_compression_of(descriptor->media_type, err), r;

        if (compression < 0)
                return compression;
        job->layer = layer;
        job->blob_fd = store_blob(jobs->store, descriptor, err);
        if (job->blob_fd < 0)
                return job->blob_fd;
        snprintf(job->temporary, sizeof(job->temporary), "new-%d-%zu", (int)getpid(), layer);
        (void)store_remove_tree(jobs->layers_fd, job->temporary);
        if (mkdirat(jobs->layers_fd, job->temporary, 0755) < 0)
                return err_errno(err, -errno, "cannot make '%s/layers/%s'", image_store_path(jobs->store), job->temporary);
        job->root_fd = openat(jobs->layers_fd, job->temporary, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (job->root_fd < 0)
                return err_errno(err, -errno, "cannot open '%s/layers/%s'", image_store_path(jobs->store), job->temporary);
        unpack.root_fd = job->root_fd;
        r = unpack_start(&unpack, job->blob_fd, (enum layer_compression)compression, &jobs->diff_ids[layer], &job->process, err);
        if (!r)
                jobs->running++;
        return r;
}

/* Its end: the layer gets its name, unless somebody else gave it to one of the same contents. */
static int end(struct jobs *jobs, struct job *job, struct err *err)
{
        const struct digest *diff_id = &jobs->diff_ids[job->layer];
        char name[DIRECTORY_MAX];
        int r = unpack_finish(steal_ptr(job->process), err);

        jobs->running--;
        if (r < 0)
                return err_wrap(err, r, "layer %s", jobs->manifest->layers[job->layer].digest.text);
        if (syncfs(job->root_fd) < 0)
                return err_errno(err, -errno, "cannot keep layer %s", diff_id->text);
        if (renameat(jobs->layers_fd, job->temporary, jobs->layers_fd, directory_of(diff_id, name)) < 0) {
                if (errno != EEXIST && errno != ENOTEMPTY)
                        return err_errno(err, -errno, "cannot keep layer %s", diff_id->text);
        } else {
                job->temporary[0] = 0;
        }
        jobs->done_bytes += jobs->manifest->layers[job->layer].size_bytes;
        drop(jobs, job);
        return 0;
}

static int fill(struct jobs *jobs, struct err *err)
{
        for (size_t i = 0; i < jobs->at_once; i++) {
                while (!jobs->job[i].process && jobs->next < jobs->manifest->layer_count) {
                        size_t layer = jobs->next++;
                        int r;

                        if (is_there(jobs->layers_fd, &jobs->diff_ids[layer]) || is_repeated(jobs, layer))
                                continue;
                        r = begin(jobs, &jobs->job[i], layer, err);
                        if (r < 0)
                                return r;
                }
        }
        return 0;
}

static int wait_for_some(struct jobs *jobs, const struct layers_progress *progress, struct err *err)
{
        struct pollfd events[AT_ONCE_MAX];
        uint64_t done_bytes = jobs->done_bytes;
        int r = 0;

        for (size_t i = 0; i < jobs->at_once; i++) {
                struct unpack_process *process = jobs->job[i].process;

                events[i] = (struct pollfd){ .fd = process ? unpack_fd(process) : -1, .events = POLLIN };
                done_bytes += process ? unpack_position(process) : 0;
        }
        if (progress)
                progress->report(progress->ctx, done_bytes, jobs->total_bytes);
        if (poll(events, jobs->at_once, 100) < 0 && errno != EINTR)
                return err_errno(err, -errno, "cannot wait for layers");
        for (size_t i = 0; !r && i < jobs->at_once; i++)
                if (jobs->job[i].process && events[i].revents)
                        r = end(jobs, &jobs->job[i], err);
        return r;
}

int layers_unpack(struct image_store *store, const struct manifest *manifest, const struct digest *diff_ids, const struct layers_progress *progress,
                  struct err *err)
{
        struct jobs jobs = { .store = store, .manifest = manifest, .diff_ids = diff_ids };
        long processors = sysconf(_SC_NPROCESSORS_ONLN);
        int r = 0;

        jobs.at_once = (size_t)MAX(1, MIN(processors, AT_ONCE_MAX));
        for (size_t i = 0; i < jobs.at_once; i++)
                jobs.job[i] = (struct job){ .root_fd = -1, .blob_fd = -1 };
        jobs.layers_fd = openat(image_store_fd(store), "layers", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (jobs.layers_fd < 0)
                return err_errno(err, -errno, "cannot open '%s/layers'", image_store_path(store));
        for (size_t i = 0; i < manifest->layer_count; i++)
                if (!is_there(jobs.layers_fd, &diff_ids[i]) && !is_repeated(&jobs, i))
                        jobs.total_bytes += manifest->layers[i].size_bytes;
        do {
                r = fill(&jobs, err);
                if (!r && jobs.running)
                        r = wait_for_some(&jobs, progress, err);
        } while (!r && jobs.running);
        for (size_t i = 0; i < jobs.at_once; i++)
                drop(&jobs, &jobs.job[i]);
        closep(&jobs.layers_fd);
        return r;
}
